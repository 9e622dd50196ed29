import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minirlhf.core.returns import gae, overlong_penalty, reward_to_go, td_errors

MASK = torch.tensor([[True, True, True], [True, False, False]])


def test_gae_by_hand():
    # gamma 1/2, lam 1/2, gamma * lam = 1/4; every number is exact in binary, so compare with ==.
    rewards, values = (
        torch.tensor([[0.0, 2.0, 4.0], [3.0, 7.0, 7.0]]),
        torch.tensor([[1.0, 4.0, 2.0], [1.0, 7.0, 7.0]]),
    )
    # row 0, t=2: delta = 4 + 0   - 2 = 2      A = 2
    #        t=1: delta = 2 + 2/2 - 4 = -1     A = -1 + 2/4 = -0.5
    #        t=0: delta = 0 + 4/2 - 1 = 1      A = 1 - 0.5/4 = 0.875
    # row 1 is one token long: delta = 3 + 0 - 1 = 2; the 7s are padding
    advantages, returns = gae(rewards, values, MASK, gamma=0.5, lam=0.5)
    assert advantages.tolist() == [[0.875, -0.5, 2.0], [2.0, 0.0, 0.0]]
    assert returns.tolist() == [[1.875, 3.5, 4.0], [3.0, 0.0, 0.0]]
    assert td_errors(rewards, values, MASK, gamma=0.5).tolist() == [
        [1.0, -1.0, 2.0],
        [2.0, 0.0, 0.0],
    ]
    # t=2: 4    t=1: 2 + 4/2 = 4    t=0: 0 + 4/2 = 2
    assert reward_to_go(rewards, MASK, gamma=0.5).tolist() == [[2.0, 4.0, 4.0], [3.0, 0.0, 0.0]]


def test_lambda_one_is_monte_carlo_minus_v_and_zero_is_the_td_error():
    rewards, values = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    monte_carlo = reward_to_go(rewards, MASK, gamma=0.9) - values * MASK
    torch.testing.assert_close(gae(rewards, values, MASK, gamma=0.9, lam=1.0)[0], monte_carlo)
    torch.testing.assert_close(
        gae(rewards, values, MASK, gamma=0.9, lam=0.0)[0],
        td_errors(rewards, values, MASK, gamma=0.9),
    )


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    pad=st.integers(0, 3),
    junk=st.sampled_from([1.0, -1e20, float("nan"), float("inf")]),
    lam=st.floats(0, 1),
)
def test_padding_and_row_order_change_nothing(lengths, pad, junk, lam):
    mask = torch.arange(4 + pad) < torch.tensor(lengths)[:, None]
    rewards, values = torch.randn(2, len(lengths), 4 + pad, dtype=torch.float64)
    clean = gae(rewards[:, :4], values[:, :4], mask[:, :4], lam=lam)
    rewards, values = (
        torch.where(mask, x, junk).flip(0).requires_grad_(True) for x in (rewards, values)
    )
    dirty = gae(rewards, values, mask.flip(0), lam=lam)
    for a, b in zip(clean, dirty, strict=True):
        torch.testing.assert_close(b.flip(0)[:, :4], a, rtol=0, atol=1e-12)
    dirty[1].sum().backward()
    assert rewards.grad.isfinite().all() and values.grad.isfinite().all()


@pytest.mark.parametrize("bad", [{"lam": 2.0}, {"lam": -0.1}, {"gamma": 1.5}])
def test_out_of_range_raises(bad):
    with pytest.raises(ValueError, match="between 0 and 1"):
        gae(torch.zeros(2, 3), torch.zeros(2, 3), MASK, **bad)


def test_the_defaults_are_undiscounted_and_lambda_0_95():
    rewards, values = torch.tensor([[1.0, 2.0, 4.0], [1.0, 0.0, 0.0]]), torch.zeros(2, 3)
    assert reward_to_go(rewards, MASK).tolist() == [[7, 6, 4], [1, 0, 0]]
    assert td_errors(rewards, torch.ones(2, 3), MASK).tolist() == [
        [1, 2, 3],
        [0, 0, 0],
    ]  # r + V' - V, V' = 0 at the end
    torch.testing.assert_close(
        gae(rewards, values, MASK)[0][0, 1].item(), 2 + 0.95 * 4, rtol=1e-6, atol=0
    )


def test_a_length_penalty_by_hand():
    # limit 10, the last 4 tokens: free to 6, then a quarter a token
    lengths = torch.tensor([1, 6, 7, 9, 10, 12])
    assert overlong_penalty(lengths, max_tokens=10, buffer=4).tolist() == [
        0,
        0,
        -0.25,
        -0.75,
        -1,
        -1,
    ]
    assert overlong_penalty(lengths, max_tokens=10, buffer=10)[0] == pytest.approx(-0.1)
    for buffer in (0, 11):
        with pytest.raises(
            ValueError, match=f"buffer is {buffer}; it must be from 1 to max_tokens = 10"
        ):
            overlong_penalty(lengths, max_tokens=10, buffer=buffer)


HOLES = torch.tensor(
    [[True, False, True, True], [False, True, False, True], [True, True, False, False]]
)


def test_gae_with_holes_by_hand():
    # gamma 1/2, lam 1/2. A tool wrote the second token of the first row: the next value after t=0
    # is that of t=2, and gamma and lam count once on the way.
    rewards = torch.tensor([[0.0, 0.0, 2.0, 4.0]])
    values = torch.tensor([[1.0, 9.0, 4.0, 2.0]])
    # the numbers of test_gae_by_hand: A = 2, -1/2, 7/8 at t = 3, 2, 0
    advantages, returns = gae(rewards, values, HOLES[:1], gamma=0.5, lam=0.5)
    assert advantages.tolist() == [[0.875, 0.0, -0.5, 2.0]]
    assert returns.tolist() == [[1.875, 0.0, 3.5, 4.0]]
    assert td_errors(rewards, values, HOLES[:1], gamma=0.5).tolist() == [[1.0, 0.0, -1.0, 2.0]]
    assert reward_to_go(rewards, HOLES[:1], gamma=0.5).tolist() == [[2.0, 0.0, 4.0, 4.0]]


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=4),
    gamma=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    lam=st.sampled_from([0.0, 0.5, 1.0]),
    junk=st.sampled_from([0.0, float("nan")]),
)
def test_holes_are_dropped_and_the_rest_is_computed_as_if_they_were_not_there(
    rows, gamma, lam, junk
):
    mask = torch.tensor(rows)
    rewards, values = torch.randn(2, *mask.shape)
    dirty = [torch.where(mask, rewards, junk), torch.where(mask, values, junk)]
    for x in dirty:
        x.requires_grad_(True)
    advantages, returns = gae(*dirty, mask, gamma=gamma, lam=lam)
    togo = reward_to_go(dirty[0], mask, gamma=gamma)
    for row, real in enumerate(mask):
        assert not advantages[row, ~real].any() and not togo[row, ~real].any()
        if real.any():
            whole = torch.ones(1, int(real.sum()), dtype=torch.bool)
            alone = rewards[row, real][None], values[row, real][None], whole
            for ours, theirs in zip(
                (advantages, returns), gae(*alone, gamma=gamma, lam=lam), strict=True
            ):
                assert torch.equal(ours[row, real], theirs[0])
            alone = reward_to_go(alone[0], whole, gamma=gamma)[0]
            assert torch.equal(togo[row, real], alone)
    (advantages.sum() + returns.sum() + togo.sum()).backward()
    assert all(x.grad.isfinite().all() for x in dirty)


@pytest.mark.parametrize("function", [reward_to_go, td_errors, gae])
def test_a_reward_on_a_hole_is_refused(function):
    rewards = torch.zeros(3, 4)
    rewards[1, 2] = 0.5
    given = (rewards,) if function is reward_to_go else (rewards, torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"rewards\[1, 2\] is 0.5, but the policy did not choose"):
        function(*given, HOLES)
    rewards[1, 2], rewards[2, 3] = 0, 7.0  # after the last token that counts: padding, not a hole
    assert function(*given, HOLES) is not None


def test_the_score_lands_on_the_last_action():
    from minirlhf.core.kl import kl_shaped_rewards

    # log-ratios: 1 at every token; kl_coef 1/4. The score 3 belongs to the last True of each row.
    logprobs, ref = torch.zeros(3, 4), -torch.ones(3, 4)
    rewards = kl_shaped_rewards(torch.tensor([3.0, 3.0, 3.0]), logprobs, ref, HOLES, kl_coef=0.25)
    assert rewards.tolist() == [
        [-0.25, 0.0, -0.25, 2.75],
        [0.0, -0.25, 0.0, 2.75],
        [-0.25, 2.75, 0.0, 0.0],
    ]
    assert reward_to_go(rewards, HOLES)[0].tolist() == [2.25, 0.0, 2.5, 2.75]
