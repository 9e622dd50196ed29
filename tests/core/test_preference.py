"""Bradley-Terry and DPO: gradients, populations, and what they have in common."""

import math

import pytest
import torch
from torch.autograd import grad, gradcheck

from minirlhf.core.bradley_terry import preference_probability, reward_model_loss
from minirlhf.core.preference import dpo, implicit_rewards


def T(*x):
    return torch.tensor(x, dtype=torch.float64)


def test_implicit_rewards_by_hand():
    # beta (log pi - log pi_ref): 1/2 (-1 - -3) = 1, 1/2 (-3 - -2) = -1/2
    assert implicit_rewards(T(-1.0, -3.0), T(-3.0, -2.0), beta=0.5).tolist() == [1.0, -0.5]


def test_dpo_is_bradley_terry_on_implicit_rewards():
    chosen, rejected, ref_chosen, ref_rejected = torch.randn(4, 6, dtype=torch.float64)
    chosen, rejected = chosen.requires_grad_(True), rejected.requires_grad_(True)
    loss = dpo(chosen, rejected, ref_chosen, ref_rejected, beta=0.3)
    rewards = [0.3 * (chosen - ref_chosen), 0.3 * (rejected - ref_rejected)]
    same = reward_model_loss(*rewards)
    torch.testing.assert_close(loss, same, rtol=0, atol=1e-12)
    for a, b in zip(grad(loss.sum(), (chosen, rejected)), grad(same.sum(), (chosen, rejected)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_at_the_reference_the_gradient_is_beta_half_each_way():
    x, y = T(-7.0).requires_grad_(True), T(-5.0).requires_grad_(True)
    assert [g.item() for g in grad(dpo(x, y, T(-7.0), T(-5.0), beta=0.5).sum(), (x, y))] == [-0.25, 0.25]


def test_dpo_needs_the_difference_of_log_ratios_only():
    chosen, rejected, ref_chosen, ref_rejected = torch.randn(4, 6, dtype=torch.float64)
    base = dpo(chosen, rejected, ref_chosen, ref_rejected, beta=0.3)
    # both logprobs may fall together: the loss does not see it (likelihood displacement)
    torch.testing.assert_close(dpo(chosen - 5, rejected - 5, ref_chosen, ref_rejected, beta=0.3), base, rtol=0, atol=1e-12)


def test_gradcheck():
    x, y = (torch.randn(4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    ref, margin = torch.randn(4, dtype=torch.float64), torch.rand(4, dtype=torch.float64)
    assert gradcheck(lambda x, y: dpo(x, y, ref, -ref, beta=0.7), (x, y))
    assert gradcheck(lambda x, y: reward_model_loss(x, y, margin=margin, centering_coef=0.1), (x, y))
    assert gradcheck(preference_probability, (x, y))


def test_losses_stay_finite_and_keep_their_slope_far_out():
    x, zero = torch.tensor([-300.0], requires_grad=True), torch.zeros(1)
    for loss, slope in ((dpo(x, zero, zero, zero, beta=0.5), -0.5), (reward_model_loss(x, zero), -1.0)):
        assert loss.item() == -slope * 300  # -log sigmoid(-m) = m far out, in float32 as well
        assert grad(loss.sum(), x)[0].item() == slope


def test_preference_probabilities_add_to_one_and_ignore_a_constant():
    a, b = torch.randn(2, 8, dtype=torch.float64)
    torch.testing.assert_close(preference_probability(a, b) + preference_probability(b, a), torch.ones_like(a))
    torch.testing.assert_close(preference_probability(a + 9, b + 9), preference_probability(a, b))
    assert preference_probability(T(0.0), T(0.0)) == 0.5
    torch.testing.assert_close(preference_probability(T(math.log(3)), T(0.0)), T(0.75))


def minimise(loss, x):
    optimizer = torch.optim.LBFGS([x], max_iter=2000, tolerance_grad=1e-12, tolerance_change=1e-16, history_size=50,
                                  line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        value = loss(x)
        value.backward()
        return value

    optimizer.step(closure)
    return x.detach()


def test_bradley_terry_recovers_every_reward_up_to_a_constant(world):
    i, j = torch.triu_indices(15, 15, 1)
    share = preference_probability(world.rewards[i], world.rewards[j])

    def population(centering_coef):
        def loss(r):
            win, lose = (reward_model_loss(r[a], r[b], centering_coef=centering_coef) for a, b in ((i, j), (j, i)))
            return (share * win + (1 - share) * lose).mean()

        return minimise(loss, torch.ones(15, dtype=torch.float64, requires_grad=True))

    found = population(0.0)
    torch.testing.assert_close(found - found.mean(), world.rewards - world.rewards.mean(), rtol=0, atol=1e-6)
    # only centring sees a constant c: sum_ij (r_i + r_j + 2c)^2 is least where the mean score is 0
    assert population(0.01).mean().abs() < 1e-6


def test_hard_labels_have_no_finite_optimum():
    # two responses, one always preferred: the slope never reaches 0
    difference = torch.linspace(0, 30, 7, dtype=torch.float64, requires_grad=True)
    (slope,) = grad(reward_model_loss(difference, torch.zeros_like(difference)).sum(), difference)
    assert (slope < 0).all() and (slope.diff() > 0).all()


@pytest.mark.parametrize("beta", [0.0, -0.1])
def test_beta_must_be_above_zero(beta):
    with pytest.raises(ValueError, match="beta"):
        dpo(T(0.0), T(0.0), T(0.0), T(0.0), beta=beta)
