import math

import pytest
import torch

from minirlhf.core.baselines import group_relative, leave_one_out
from minirlhf.core.masking import aggregate
from minirlhf.core.policy_gradient import (
    cispo,
    explained_variance,
    is_clipped,
    mean_ratio,
    ppo_clip,
    reinforce,
    sequence_clip,
    sft_loss,
    value_loss,
    value_loss_clipped,
)

ONE = torch.ones(1, 1, dtype=torch.bool)


@pytest.mark.parametrize(
    "ratio, advantage, loss, gradient",
    [
        # clip_eps 1/2: the band is [0.5, 1.5]; the gradient with respect to log pi is -ratio * A where it is not cut
        (1.0, 2.0, -2.0, -2.0),
        (2.0, 2.0, -3.0, 0.0),  # A > 0, ratio above: clipped at 1.5 * 2, nothing more to gain
        (0.25, 2.0, -0.5, -0.5),  # A > 0, ratio below: free to come back
        (1.0, -2.0, 2.0, 2.0),
        (2.0, -2.0, 4.0, 4.0),  # A < 0, ratio above: free to come back
        (0.25, -2.0, 1.0, 0.0),  # A < 0, ratio below: clipped at 0.5 * 2
    ],
)
def test_the_six_cases_of_the_clip(ratio, advantage, loss, gradient):
    logprobs = torch.tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)
    old, advantages = (
        torch.zeros(1, 1, dtype=torch.float64),
        torch.tensor([[advantage]], dtype=torch.float64),
    )
    got = ppo_clip(logprobs, old, advantages, ONE, clip_eps=0.5)
    got.sum().backward()
    torch.testing.assert_close(got.detach(), torch.tensor([[loss]], dtype=torch.float64))
    torch.testing.assert_close(logprobs.grad, torch.tensor([[gradient]], dtype=torch.float64))
    assert is_clipped(logprobs, old, advantages, ONE, clip_eps=0.5).item() == (gradient == 0)


def test_clip_higher_and_dual_clip_by_hand():
    up = torch.tensor([[math.log(2.0)]], dtype=torch.float64)
    old, plus, minus = torch.zeros_like(up), torch.ones_like(up), -torch.ones_like(up)
    assert ppo_clip(up, old, plus, ONE, clip_eps=0.2, clip_eps_high=0.5).item() == -1.5
    assert is_clipped(up, old, plus, ONE, clip_eps=0.2, clip_eps_high=2.0).item() is False
    far = torch.tensor([[math.log(8.0)]], dtype=torch.float64)
    torch.testing.assert_close(
        ppo_clip(far, old, minus, ONE, dual_clip=3.0), 3 * plus
    )  # without: 8


def test_ppo_at_ratio_one_has_the_gradient_of_reinforce():
    mask = torch.tensor([[True, True, False], [True, False, False]])
    logprobs, advantages = torch.randn(2, 2, 3, dtype=torch.float64)
    a, b = (logprobs.clone().requires_grad_(True) for _ in range(2))
    ppo_clip(a, logprobs, advantages, mask).sum().backward()
    reinforce(b, advantages, mask).sum().backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=1e-12)
    assert a.grad[~mask].eq(0).all()
    assert mean_ratio(logprobs, logprobs, mask) == 1


def test_reinforce_by_hand():
    # -A log pi: -2 * -3 = 6; the masked token counts nothing
    mask = torch.tensor([[True, False]])
    assert reinforce(torch.tensor([[-3.0, -9.0]]), torch.tensor([[2.0, 9.0]]), mask).tolist() == [
        [6.0, 0.0]
    ]


def test_value_losses_by_hand():
    mask = torch.tensor([[True, True, False]])
    values, old, returns = (
        torch.tensor([[3.0, 0.0, 9.0]]),
        torch.tensor([[0.0, 0.0, 9.0]]),
        torch.tensor([[4.0, 2.0, 0.0]]),
    )
    assert value_loss(values, returns, mask).tolist() == [[0.5, 2.0, 0.0]]  # (3-4)^2/2, (0-2)^2/2
    # V clipped to 0 +- 1: first 1, (1-4)^2/2 = 4.5 > 0.5; second stays 0
    assert value_loss_clipped(values, old, returns, mask, clip_eps=1.0).tolist() == [
        [4.5, 2.0, 0.0]
    ]


def test_explained_variance_by_hand():
    mask = torch.ones(1, 2, dtype=torch.bool)
    returns = torch.tensor([[0.0, 4.0]])
    assert explained_variance(returns, returns, mask) == 1
    assert (
        explained_variance(torch.tensor([[7.0, 7.0]]), returns, mask) == 0
    )  # a constant, wrong as it may be, explains nothing
    assert (
        explained_variance(torch.tensor([[1.0, 3.0]]), returns, mask) == 0.75
    )  # residuals -1, 1: 1 - 1/4
    assert explained_variance(returns, torch.ones(1, 2), mask).isnan()


@pytest.mark.parametrize(
    "loss",
    [
        lambda x, y, z, m: reinforce(x, z, m),
        lambda x, y, z, m: ppo_clip(x, y, z, m),
        lambda x, y, z, m: value_loss(x, z, m),
        lambda x, y, z, m: value_loss_clipped(x, y, z, m, clip_eps=0.2),
    ],
)
def test_nan_in_padding_reaches_neither_value_nor_gradient(loss):
    mask = torch.tensor([[True, True, False], [True, False, False]])
    x, y, z = (torch.where(mask, torch.randn(2, 3), torch.nan) for _ in range(3))
    x.requires_grad_(True)
    total = loss(x, y, z, mask)
    total.sum().backward()
    assert total.isfinite().all() and x.grad.isfinite().all()
    assert total[~mask].eq(0).all()


def test_gradchecks_away_from_kinks():
    mask = torch.ones(1, 3, dtype=torch.bool)
    advantages = torch.tensor([[1.0, -1.0, 2.0]], dtype=torch.float64)
    logprobs = torch.tensor([[0.1, -0.1, 0.6]], dtype=torch.float64, requires_grad=True)
    old = torch.zeros(1, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: ppo_clip(x, old, advantages, mask), logprobs)
    assert torch.autograd.gradcheck(
        lambda x: value_loss_clipped(x, old, advantages, mask, clip_eps=0.3), logprobs
    )


def test_bad_clips_raise():
    x = torch.zeros(1, 1)
    for bad in ({"clip_eps": -0.1}, {"clip_eps": 2.0}, {"dual_clip": 1.0}):
        with pytest.raises(ValueError):
            ppo_clip(x, x, x, ONE, **bad)


def test_group_baselines_by_hand():
    scores = torch.tensor([[1.0, 3.0, 8.0]])
    # mean 4: -3, -1, 4; the others' means are 5.5, 4.5, 2
    assert group_relative(scores, scale_by_std=False).tolist() == [[-3.0, -1.0, 4.0]]
    assert leave_one_out(scores).tolist() == [[-4.5, -1.5, 6.0]]
    # 0 and 2: mean 1, std with n - 1 is sqrt(2)
    torch.testing.assert_close(
        group_relative(torch.tensor([[0.0, 2.0]], dtype=torch.float64), eps=0.0),
        torch.tensor([[-1.0, 1.0]], dtype=torch.float64) / math.sqrt(2),
    )


def test_leave_one_out_is_g_over_g_minus_one_times_centred():
    scores = torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(
        leave_one_out(scores), 4 / 3 * group_relative(scores, scale_by_std=False)
    )


def test_equal_scores_give_exactly_zero_and_groups_of_one_raise():
    assert group_relative(torch.full((2, 3), 0.1)).eq(0).all()  # 0.1 * 3 / 3 is not 0.1 in float32
    for function in (group_relative, leave_one_out):
        with pytest.raises(ValueError, match="group of one"):
            function(torch.zeros(4, 1))


def test_the_value_clip_takes_the_larger_error():
    # V = return = 0, old 2, clip 1/2: V_clipped = 2 - 1/2; 1/2 (3/2)^2 = 1.125 > 0 and no gradient
    values = torch.tensor([[0.0]], requires_grad=True)
    loss = value_loss_clipped(
        values, torch.tensor([[2.0]]), torch.tensor([[0.0]]), ONE, clip_eps=0.5
    )
    loss.sum().backward()
    assert loss.item() == 1.125 and values.grad.item() == 0
    # V = 3, old 1, return 0: the plain error 4.5 is larger than 1/2 (3/2)^2, and its gradient 3 stays
    values = torch.tensor([[3.0]], requires_grad=True)
    loss = value_loss_clipped(
        values, torch.tensor([[1.0]]), torch.tensor([[0.0]]), ONE, clip_eps=0.5
    )
    loss.sum().backward()
    assert loss.item() == 4.5 and values.grad.item() == 3
    with pytest.raises(ValueError, match="clip_eps"):
        value_loss_clipped(values, values, values, ONE, clip_eps=-0.1)


@pytest.mark.parametrize("advantage, cut_low, cut_high", [(1.0, False, True), (-1.0, True, False)])
def test_two_sided_clips_are_asymmetric(advantage, cut_low, cut_high):
    # the band is [3/4, 2]: ratios 1/2 and 4 are outside; 1.5, beyond 1 + 1/4, is inside
    advantages = torch.tensor([[advantage]], dtype=torch.float64)
    for ratio, cut in ((0.5, cut_low), (1.5, False), (4.0, cut_high)):
        logprobs = torch.tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)
        old = torch.zeros(1, 1, dtype=torch.float64)
        clip = {"clip_eps": 0.25, "clip_eps_high": 1.0}
        ppo_clip(logprobs, old, advantages, ONE, **clip).sum().backward()
        assert (
            is_clipped(logprobs, old, advantages, ONE, **clip).item()
            == cut
            == (logprobs.grad.item() == 0)
        )


def test_the_dual_clip_does_not_change_positive_advantages():
    # ratio 8, A = 1, clip_eps 1/4: loss -1.25 with dual_clip 3 as without
    logprobs, one = (
        torch.tensor([[math.log(8.0)]], dtype=torch.float64),
        torch.ones(1, 1, dtype=torch.float64),
    )
    for dual_clip in (None, 3.0):
        assert (
            ppo_clip(logprobs, 0 * one, one, ONE, clip_eps=0.25, dual_clip=dual_clip).item()
            == -1.25
        )


def test_explained_variance_of_equal_returns_is_nan_even_if_their_mean_rounds():
    full = torch.ones(1, 7, dtype=torch.bool)
    assert explained_variance(torch.randn(1, 7), torch.full((1, 7), 0.1), full).isnan()
    # worse than a constant is below 0: residuals 4, -4 of returns -2, 2: 1 - 16 / 4
    assert (
        explained_variance(torch.tensor([[2.0, -2.0]]), torch.tensor([[-2.0, 2.0]]), full[:, :2])
        == -3
    )


def test_equal_scores_give_exactly_zero_for_leave_one_out_too():
    assert leave_one_out(torch.full((1, 3), 0.1, dtype=torch.float64)).eq(0).all()
    with pytest.raises(ValueError, match="N >= 1"):
        group_relative(torch.zeros(0, 4))


def test_clipped_tokens_are_those_without_gradient():
    generator = torch.Generator().manual_seed(0)
    old, advantages = (
        -3 * torch.rand(8, 6, generator=generator).double(),
        torch.randn(8, 6, generator=generator).double(),
    )
    logprobs = (old + 0.4 * torch.randn(8, 6, generator=generator)).requires_grad_(True)
    mask = torch.arange(6) < torch.randint(1, 7, (8, 1), generator=generator)
    losses = ppo_clip(logprobs, old, advantages, mask, clip_eps=0.1, clip_eps_high=0.3)
    (gradient,) = torch.autograd.grad(losses.sum(), logprobs)
    clipped = is_clipped(logprobs, old, advantages, mask, clip_eps=0.1, clip_eps_high=0.3)
    assert torch.equal(clipped, (gradient == 0) & mask) and 0 < clipped.sum() < mask.sum()


def test_a_clip_eps_of_zero_by_hand():
    old = torch.full((1, 3), -1.0, dtype=torch.float64)
    advantages = torch.tensor([[1.0, -1.0, 0.0]]).double()
    three = torch.ones(1, 3, dtype=torch.bool)
    for moved, flat in (
        (0.0, [False, False, False]),
        (0.5, [True, False, False]),
        (-0.5, [False, True, False]),
    ):
        x = (old + moved).requires_grad_(True)
        (gradient,) = torch.autograd.grad(
            ppo_clip(x, old, advantages, three, clip_eps=0.0).sum(), x
        )
        assert is_clipped(x, old, advantages, three, clip_eps=0.0).tolist() == [
            flat
        ]  # an advantage of 0 is not cut: it has nothing to cut
        assert (gradient[0, :2] == 0).tolist() == flat[:2] and gradient[0, 2] == 0
    assert value_loss_clipped(old, old, advantages, three, clip_eps=0.0).tolist() == [
        [2.0, 0.0, 0.5]
    ]


def test_ppo_clip_and_is_clipped_have_the_same_defaults():
    ratios = torch.tensor([[0.79, 0.81, 1.19, 1.21]]).double().log().requires_grad_(True)
    four = torch.ones(1, 4, dtype=torch.bool)
    for a in (1.0, -1.0):
        advantages = torch.full((1, 4), a, dtype=torch.float64)
        (gradient,) = torch.autograd.grad(
            ppo_clip(ratios, torch.zeros(1, 4).double(), advantages, four).sum(), ratios
        )
        assert torch.equal(
            is_clipped(ratios, torch.zeros(1, 4).double(), advantages, four), gradient == 0
        )
        assert (gradient == 0).sum() == 1


@pytest.mark.parametrize("advantage, dual_clip", [(0.5, None), (0.5, 3.0), (-0.5, 3.0)])
def test_an_overflowing_ratio_is_clipped_without_nan(advantage, dual_clip):
    x = torch.tensor([[1000.0]], requires_grad=True)
    loss = ppo_clip(x, torch.zeros(1, 1), torch.tensor([[advantage]]), ONE, dual_clip=dual_clip)
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    assert loss.item() == pytest.approx(-0.6 if advantage > 0 else 1.5) and gradient.item() == 0


def test_old_numbers_and_targets_get_no_gradient():
    new, old, target = (torch.tensor([[x]], requires_grad=True) for x in (0.3, 0.1, 2.0))
    loss = ppo_clip(new, old, target, ONE) + value_loss_clipped(new, old, target, ONE, clip_eps=0.5)
    assert torch.autograd.grad(loss.sum(), (old, target), allow_unused=True) == (None, None)


def test_cispo_by_hand():
    # ratios 2 and 1/4; the weights are clipped to 1.5 and 1/2; loss -w A log pi, gradient -w A: nothing is silenced
    logprobs = torch.tensor(
        [[math.log(0.5), math.log(0.125)]], dtype=torch.float64, requires_grad=True
    )
    old = torch.tensor([[math.log(0.25), math.log(0.5)]], dtype=torch.float64)
    advantages, both = (
        torch.tensor([[2.0, -4.0]], dtype=torch.float64),
        torch.ones(1, 2, dtype=torch.bool),
    )
    loss = cispo(logprobs, old, advantages, both, clip_eps=0.5, clip_eps_high=0.5)
    loss.sum().backward()
    assert logprobs.grad.tolist() == [[-3.0, 2.0]]
    torch.testing.assert_close(
        loss.detach(), torch.tensor([[3 * math.log(2), -2 * math.log(8)]], dtype=torch.float64)
    )
    # the defaults: no lower end, a ratio of 5 at most
    far = torch.tensor([[math.log(8.0), math.log(0.01)]], dtype=torch.float64, requires_grad=True)
    cispo(far, 0 * far.detach(), torch.ones_like(advantages), both).sum().backward()
    torch.testing.assert_close(far.grad, torch.tensor([[-5.0, -0.01]], dtype=torch.float64))


@pytest.mark.parametrize("mean, ratio", [(False, 4.0), (True, 2.0)])
def test_the_sequence_ratio_by_hand(mean, ratio):
    # token ratios 8 and 1/2: their product is 4, its square root 2; the clip ends at 3, so the product is clipped and the root is not
    logprobs = torch.tensor(
        [[math.log(8), math.log(0.5)], [0.0, float("nan")]], dtype=torch.float64, requires_grad=True
    )
    mask = torch.tensor([[True, True], [True, False]])
    old = torch.tensor([[0.0, 0.0], [0.0, float("nan")]], dtype=torch.float64)
    loss = sequence_clip(
        logprobs,
        old,
        torch.tensor([1.0, -1.0]).double(),
        mask,
        by_length=mean,
        clip_eps=0.5,
        clip_eps_high=2.0,
    )
    expected = -min(ratio, 3.0)
    torch.testing.assert_close(
        loss.detach(), torch.tensor([[expected, expected], [1.0, 0.0]], dtype=torch.float64)
    )
    aggregate(loss, mask, how="sequence_mean").backward()
    # of row 0: -ratio A / length where the root is taken, halved by the two rows; 0 where it is clipped. Row 1: ratio 1, A = -1
    first = [-ratio / 2 / 2] * 2 if mean else [0.0, 0.0]
    torch.testing.assert_close(
        logprobs.grad, torch.tensor([first, [0.5, 0.0]], dtype=torch.float64)
    )


def test_sequence_and_token_ratios_have_the_same_gradient_at_ratio_one():
    torch.manual_seed(0)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    start, advantages = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, dtype=torch.float64)

    def gradient(loss, how):
        x = start.clone().requires_grad_(True)
        aggregate(loss(x), mask, how=how).backward()
        return x.grad

    tokens = advantages[:, None].expand(2, 3)
    whole = gradient(
        lambda x: sequence_clip(x, start, advantages, mask, by_length=False, clip_eps=0.2),
        "sequence_mean",
    )
    torch.testing.assert_close(
        whole, gradient(lambda x: reinforce(x, tokens, mask), "sequence_sum"), rtol=0, atol=1e-12
    )
    root = gradient(
        lambda x: sequence_clip(x, start, advantages, mask, by_length=True, clip_eps=3e-4),
        "sequence_mean",
    )
    torch.testing.assert_close(
        root,
        gradient(lambda x: ppo_clip(x, start, tokens, mask), "sequence_mean"),
        rtol=0,
        atol=1e-12,
    )
    for how in ("token_mean", "sequence_mean", "sequence_sum"):
        torch.testing.assert_close(
            gradient(lambda x: cispo(x, start, tokens, mask), how),
            gradient(lambda x: reinforce(x, tokens, mask), how),
            rtol=0,
            atol=1e-12,
        )


def test_the_sft_loss_is_the_negative_log_probability_and_ignores_padding():
    logprobs = torch.tensor([[-1.0, -2.5], [-0.5, float("nan")]], requires_grad=True)
    mask = torch.tensor([[True, True], [True, False]])
    losses = sft_loss(logprobs, mask)
    assert losses.tolist() == [[1.0, 2.5], [0.5, 0.0]]
    losses.sum().backward()
    assert logprobs.grad.tolist() == [[-1.0, -1.0], [-1.0, 0.0]]
    # REINFORCE with an advantage of 1 at every token
    assert torch.equal(losses, reinforce(logprobs, torch.ones(2, 2), mask))
