"""Group advantages: by hand, and in expectation over every group there is."""

import itertools
import math

import pytest
import torch

from minirlhf.core.baselines import (
    batch_relative,
    charge_tokens,
    group_relative,
    leave_one_out,
    over_tokens,
    reinforce_plus_plus,
    reinforce_plus_plus_baseline,
    remax,
    running_mean,
)


def test_standard_deviations_by_hand():
    # 3 5 7: mean 5; n - 1: (4 + 0 + 4) / 2 = 4, sd 2.   1 5: mean 3; n: (4 + 4) / 2 = 4, sd 2
    three, two = torch.tensor([[3.0, 5.0, 7.0]]), torch.tensor([[1.0, 5.0]])
    assert group_relative(three, eps=0.0).tolist() == [[-1, 0, 1]]
    assert group_relative(two, eps=0.0, unbiased=False).tolist() == [[-1, 1]]
    assert group_relative(three, eps=2.0).tolist() == [[-0.5, 0, 0.5]]  # 2 / (2 + 2)
    # the default is TRL's: n - 1 and 1e-4
    torch.testing.assert_close(
        group_relative(three.double())[0, 2].item(), 2 / (2 + 1e-4), rtol=1e-12, atol=0
    )


def test_a_group_does_not_depend_on_other_groups():
    scores = torch.tensor([[3.0, 5.0, 7.0], [300.0, 500.0, 700.0], [1.0, 1.0, 1.0]])
    assert group_relative(scores, eps=0.0).nan_to_num(0.0).tolist() == [
        [-1, 0, 1],
        [-1, 0, 1],
        [0, 0, 0],
    ]
    assert leave_one_out(scores)[0].tolist() == [-3, 0, 3]  # others' means 6, 5, 4


def all_groups(probability, size):
    """Groups of independent 0/1 rewards and the probability of each."""
    scores = torch.tensor(list(itertools.product([0.0, 1.0], repeat=size)), dtype=torch.float64)
    return scores, torch.where(scores == 1, probability, 1 - probability).prod(1)


@pytest.mark.parametrize("size, share", [(2, 0.34), (4, 0.68), (8, 0.86)])
def test_std_scaled_gradient_of_pass_or_fail_tends_to_that_of_an_arcsine(size, share):
    # one logit, p = sigmoid(logit) = 0.36: d log P(1) = 1 - p, d log P(0) = -p; the limit d 2 arcsin(sqrt p) = sqrt(p (1 - p))
    p = 0.36
    scores, weight = all_groups(p, size)
    gradient = (weight * (group_relative(scores, eps=1e-12) * (scores - p)).mean(1)).sum().item()
    assert gradient / math.sqrt(p * (1 - p)) == pytest.approx(share, abs=0.005)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_expected_gradient_of_each_baseline_for_a_coin(size):
    # the true gradient of p is p (1 - p)
    p = 0.25
    scores, weight = all_groups(p, size)
    estimates = {
        "centred": (group_relative(scores, scale_by_std=False) * (scores - p)).mean(1),
        "leave one out": (leave_one_out(scores) * (scores - p)).mean(1),
        "none": (scores * (scores - p)).mean(1),
        "greedy": ((scores - 0.0) * (scores - p)).mean(
            1
        ),  # ReMax: the greedy response fails, its score is 0
    }
    mean = {name: (weight * x).sum().item() for name, x in estimates.items()}
    assert mean["centred"] == pytest.approx((size - 1) / size * p * (1 - p), abs=1e-12)
    for name in ("leave one out", "none", "greedy"):
        assert mean[name] == pytest.approx(p * (1 - p), abs=1e-12)


def test_leave_one_out_lowers_the_variance_of_an_offset_reward(world, policy):
    # rewards far from 0: without a baseline the offset is all noise
    p, rewards = world.probs(policy), world.rewards + 10
    rows = []
    for n in range(len(p)):
        logits = policy.clone().requires_grad_(True)
        rows.append(torch.autograd.grad(world.sequence_logprobs(logits)[n], logits)[0].flatten())
    score = torch.stack(rows)  # gradient of log pi(y_n)
    pairs = torch.tensor(list(itertools.product(range(len(p)), repeat=2)))
    weight = p[pairs].prod(1)

    def moments(advantages):
        g = (advantages[..., None] * score[pairs]).mean(1)
        mean = (weight[:, None] * g).sum(0)
        return mean, (weight[:, None] * (g - mean).square()).sum()

    plain, with_baseline = moments(rewards[pairs]), moments(leave_one_out(rewards[pairs]))
    torch.testing.assert_close(with_baseline[0], plain[0], rtol=0, atol=1e-9)  # the same mean
    torch.testing.assert_close(plain[0], world.gradient(policy).flatten(), rtol=0, atol=1e-9)
    assert with_baseline[1] < plain[1] / 10
    # ReMax: the score of the greedy response, a constant here, leaves the mean alone as well
    greedy = world.probs(policy * 1e3).argmax()
    torch.testing.assert_close(
        moments((rewards - rewards[greedy])[pairs])[0], plain[0], rtol=0, atol=1e-9
    )


MASK = torch.tensor([[True, True], [True, False]])


def test_min_std_by_hand():
    # 1 and 1 + 1/512: 1/1024 from their mean; with a floor of 1/2 that is 1/512, without it (std 1/512 / sqrt 2) 1 / sqrt 2
    scores = torch.tensor([[1.0, 1 + 1 / 512], [0.0, 4.0]], dtype=torch.float64)
    floored = group_relative(scores, eps=0.0, min_std=0.5)
    torch.testing.assert_close(floored[0], torch.tensor([-1.0, 1.0]).double() / 512, rtol=0, atol=0)
    torch.testing.assert_close(floored[1], group_relative(scores, eps=0.0)[1], rtol=0, atol=0)
    torch.testing.assert_close(
        group_relative(scores, eps=0.0)[0].abs(),
        torch.full((2,), 0.5).double().sqrt(),
        rtol=1e-9,
        atol=0,
    )
    with pytest.raises(ValueError, match="min_std is -1"):
        group_relative(scores, min_std=-1.0)


def test_batch_relative_by_hand():
    # group means 2 and 7; all four: mean 4.5, squares 12.25 + 2.25 + 2.25 + 12.25 = 29, over 3
    scores = torch.tensor([[1.0, 3.0], [6.0, 8.0]], dtype=torch.float64)
    expected = torch.tensor([[-1.0, 1.0], [-1.0, 1.0]]).double() / (29 / 3) ** 0.5
    torch.testing.assert_close(batch_relative(scores, eps=0.0), expected)
    torch.testing.assert_close(
        batch_relative(scores)[0, 1].item(), 1 / ((29 / 3) ** 0.5 + 1e-4), rtol=1e-12, atol=0
    )
    assert batch_relative(torch.full((2, 3), 0.1)).eq(0).all()


def test_greedy_and_running_baselines_by_hand():
    assert remax(torch.tensor([3.0, -1.0]), torch.tensor([1.0, 1.0])).tolist() == [2.0, -2.0]
    assert running_mean(2.0, torch.tensor([4.0, 8.0]), decay=0.5) == 4.0  # 2 / 2 + 6 / 2
    assert running_mean(2.0, torch.tensor([12.0])) == pytest.approx(3.0)  # 0.9 * 2 + 0.1 * 12
    assert running_mean(2.0, torch.tensor([12.0]), decay=0.0) == 12.0
    for decay in (-0.1, 1.0):
        with pytest.raises(ValueError, match=f"decay is {decay}"):
            running_mean(0.0, torch.zeros(1), decay=decay)


def test_reinforce_plus_plus_by_hand():
    # to go: (1 + 2, 2), (7); mean 4; deviations -1, -2, 3; variance 14 / 3
    rewards = torch.tensor([[1.0, 2.0], [7.0, float("nan")]], dtype=torch.float64)
    expected = torch.tensor([[-1.0, -2.0], [3.0, 0.0]]).double() / (14 / 3) ** 0.5
    torch.testing.assert_close(reinforce_plus_plus(rewards, MASK), expected, rtol=1e-7, atol=0)
    # one group, 1 and 4, centred -1.5, 1.5 on two tokens and one: mean -0.5, deviations -1, -1, 2, variance 2
    expected = torch.tensor([[-1.0, -1.0], [2.0, 0.0]]).double() / 2**0.5
    torch.testing.assert_close(
        reinforce_plus_plus_baseline(torch.tensor([[1.0, 4.0]]).double(), MASK),
        expected,
        rtol=1e-7,
        atol=0,
    )


def test_kl_penalty_of_token_advantages_by_hand():
    old, ref = torch.tensor([[-1.0, -2.0], [-3.0, 9.0]]), torch.tensor([[-2.0, -4.0], [-1.0, 9.0]])
    # log-ratios 1, 2 and -2; to go 3, 2 and -2; half of it off the advantages
    advantages = over_tokens(torch.tensor([[5.0, 7.0]]), MASK)
    assert advantages.tolist() == [[5.0, 5.0], [7.0, 0.0]]
    assert charge_tokens(advantages, old, ref, MASK, kl_coef=0.5).tolist() == [
        [3.5, 4.0],
        [8.0, 0.0],
    ]
    with pytest.raises(ValueError, match="kl_coef is -1"):
        charge_tokens(advantages, old, ref, MASK, kl_coef=-1.0)
    with pytest.raises(ValueError, match=r"\(1, 3\) advantages do not fit the 2 rows"):
        over_tokens(torch.zeros(1, 3), MASK)


@pytest.mark.parametrize(
    "function",
    [
        group_relative,
        batch_relative,
        leave_one_out,
        lambda s: reinforce_plus_plus_baseline(s, torch.ones(len(s), 1, dtype=torch.bool)),
    ],
)
def test_a_group_of_one_is_refused(function):
    with pytest.raises(ValueError, match="a group of one has no baseline"):
        function(torch.zeros(3, 1))
