import math

import pytest
import torch

from minirlhf.core.bradley_terry import (
    last_token_scores,
    per_token_reward_loss,
    preference_probability,
    reward_model_loss,
)
from minirlhf.core.preference import dpo, implicit_rewards


def T(*x):
    return torch.tensor(x, dtype=torch.float64)


def test_probability_and_loss_by_hand():
    # a difference of log 3: odds 3 to 1
    torch.testing.assert_close(preference_probability(T(math.log(3)), T(0.0)), T(0.75))
    torch.testing.assert_close(reward_model_loss(T(math.log(3)), T(0.0)), T(-math.log(0.75)))
    # a margin of log 3 makes it even: ln 2; centring adds 0.5 * (log 3)^2
    torch.testing.assert_close(
        reward_model_loss(T(math.log(3)), T(0.0), margin=T(math.log(3))), T(math.log(2))
    )
    centred = reward_model_loss(T(1.0), T(1.0), centering_coef=0.5)
    torch.testing.assert_close(centred, T(math.log(2) + 0.5 * 4))


def test_the_loss_is_stable_where_log_of_sigmoid_is_not():
    assert reward_model_loss(torch.tensor([-500.0]), torch.tensor([500.0])).item() == 1000
    zeros = torch.zeros(1)
    assert dpo(torch.tensor([-1e4]), zeros, zeros, zeros, beta=1.0).item() == 1e4


def test_a_constant_added_to_all_scores_changes_nothing():
    a, b = torch.randn(2, 6, dtype=torch.float64)
    torch.testing.assert_close(
        reward_model_loss(a + 7, b + 7), reward_model_loss(a, b), rtol=0, atol=1e-12
    )


def test_the_last_token_is_found_with_padding_on_either_side():
    scores = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    mask = torch.tensor([[True, True, False], [False, True, True]])
    assert last_token_scores(scores, mask).tolist() == [2.0, 6.0]
    with pytest.raises(ValueError, match="no real token"):
        last_token_scores(scores, torch.tensor([[True, True, True], [False, False, False]]))


def test_per_token_loss_by_hand():
    # ids agree at t = 0; from t = 1 on, differences log 3 and, past the end of the rejected, log 3 - held 0 = log 3
    chosen, rejected = T(9.0, math.log(3), math.log(3))[None], T(-9.0, 0.0, 5.0)[None]
    chosen_mask, rejected_mask = (
        torch.tensor([[True, True, True]]),
        torch.tensor([[True, True, False]]),
    )
    loss = per_token_reward_loss(
        chosen,
        rejected,
        chosen_mask,
        rejected_mask,
        torch.tensor([[1, 2, 3]]),
        torch.tensor([[1, 4, 0]]),
    )
    torch.testing.assert_close(loss, T(-math.log(0.75)))
    same = torch.tensor([[1, 2, 3]])
    with pytest.raises(ValueError, match="identical"):
        per_token_reward_loss(chosen, rejected, chosen_mask, chosen_mask, same, same)


def test_dpo_by_hand():
    # log-ratios: chosen -1 - -3 = 2, rejected -2 - -1 = -1; beta 1/3: margin 1
    loss = dpo(T(-1.0), T(-2.0), T(-3.0), T(-1.0), beta=1 / 3)
    torch.testing.assert_close(loss, T(math.log1p(math.exp(-1))))
    torch.testing.assert_close(implicit_rewards(T(-1.0), T(-3.0), beta=0.5), T(1.0))
    x = torch.randn(4, dtype=torch.float64)
    torch.testing.assert_close(dpo(x, x, x, x, beta=0.1), torch.full_like(x, math.log(2)))
    with pytest.raises(ValueError, match="beta"):
        dpo(x, x, x, x, beta=0.0)


def test_dpo_gradient_by_hand():
    # d loss / d chosen = -beta sigmoid(-margin), and the opposite for rejected; the reference gets none
    chosen, rejected, ref = (
        T(0.3).requires_grad_(True),
        T(-0.2).requires_grad_(True),
        T(0.0).requires_grad_(True),
    )
    dpo(chosen, rejected, ref, ref, beta=2.0).sum().backward()
    expected = 2 * torch.sigmoid(T(-1.0))
    torch.testing.assert_close(chosen.grad, -expected)
    torch.testing.assert_close(rejected.grad, expected)
    assert ref.grad is None
    assert not implicit_rewards(chosen, rejected, beta=1.0).requires_grad


def test_shapes_do_not_broadcast():
    with pytest.raises((ValueError, TypeError)):
        reward_model_loss(torch.zeros(3), torch.zeros(3, 1))


def test_per_token_loss_counts_every_token_after_the_first_difference():
    # ids differ at t = 1 and agree again at t = 2, which counts all the same: differences log 3, 0, and none for t = 0
    chosen, rejected = T(9.0, math.log(3), 5.0)[None], T(-9.0, 0.0, 5.0)[None]
    full = torch.ones(1, 3, dtype=torch.bool)
    loss = per_token_reward_loss(
        chosen, rejected, full, full, torch.tensor([[1, 2, 3]]), torch.tensor([[1, 4, 3]])
    )
    torch.testing.assert_close(loss, T((-math.log(0.75) + math.log(2)) / 2))


def test_the_last_token_is_the_last_true_entry_of_the_mask():
    scores, mask = torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([[False, False, True, False]])
    assert last_token_scores(scores, mask).tolist() == [3.0]
