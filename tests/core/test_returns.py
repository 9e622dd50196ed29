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


def test_a_penalty_of_length_by_hand():
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
