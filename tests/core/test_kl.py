"""What tests/core/test_exact.py leaves open on KL: signs and sizes by hand, the controller, the whole gradient of J."""

import math

import pytest
import torch

from minirlhf.core.exact import World
from minirlhf.core.kl import adapt_kl_coef, exact_kl, k1, k2, k3, kl_shaped_rewards
from minirlhf.core.policy_gradient import reinforce
from minirlhf.core.returns import reward_to_go

ONE = torch.tensor([[True]])


def test_estimators_by_hand_on_both_sides_of_zero():
    # policy less likely than the reference by exp(-1/2): k1 = -1/2, k2 = 1/8; k3 = exp(1/2) - 1 - 1/2 > 0
    logprob, ref = (
        torch.tensor([[-1.5]], dtype=torch.float64),
        torch.tensor([[-1.0]], dtype=torch.float64),
    )
    assert k1(logprob, ref, ONE) == -0.5
    assert k2(logprob, ref, ONE) == 0.125
    torch.testing.assert_close(
        k3(logprob, ref, ONE).item(), math.exp(0.5) - 1.5, rtol=1e-12, atol=0
    )


def test_k3_is_precise_where_the_policies_nearly_agree():
    # for a log-ratio x: k3 = x^2 / 2 - x^3 / 6 + ...; at 1e-6, exp(-x) - 1 + x would keep four digits
    x = torch.tensor([[1e-6]], dtype=torch.float64)
    torch.testing.assert_close(
        k3(x, torch.zeros_like(x), ONE).item(), 5e-13 * (1 - 1e-6 / 3), rtol=1e-8, atol=0
    )
    assert k3(x, torch.zeros_like(x), ONE) > 0


def test_exact_kl_is_not_symmetric_by_hand():
    # p = (1/2, 1/2), q = (1/4, 3/4): KL(p || q) = 1/2 log 2 + 1/2 log 2/3; KL(q || p) = 1/4 log 1/2 + 3/4 log 3/2
    p, q = (
        torch.zeros(1, 1, 2, dtype=torch.float64),
        torch.tensor([[[0.0, math.log(3)]]], dtype=torch.float64),
    )
    torch.testing.assert_close(
        exact_kl(q, p, ONE).item(), 0.25 * math.log(0.5) + 0.75 * math.log(1.5), rtol=1e-12, atol=0
    )
    assert exact_kl(q, q, ONE) == 0


@pytest.mark.parametrize(
    "mask, expected",
    [
        (
            [[True, True, True]],
            [[-0.5, 0.25, 4.0]],
        ),  # no EOS, cut at R: the score is on the last column
        ([[True, False, False]], [[3.5, 0.0, 0.0]]),  # a one-token response carries both
    ],
)
def test_the_score_is_added_at_the_last_real_token(mask, expected):
    # log-ratios 1, -1/2, 0 at kl_coef 1/2: -1/2, 1/4, 0; score 4
    old, ref = torch.tensor([[-1.0, -2.0, -3.0]]), torch.tensor([[-2.0, -1.5, -3.0]])
    assert (
        kl_shaped_rewards(torch.tensor([4.0]), old, ref, torch.tensor(mask), kl_coef=0.5).tolist()
        == expected
    )


def test_the_score_of_an_empty_response_is_ignored():
    mask, zeros = torch.tensor([[True], [False]]), torch.zeros(2, 1)
    assert kl_shaped_rewards(
        torch.tensor([1.0, math.nan]), zeros, zeros, mask, kl_coef=0.5
    ).tolist() == [[1.0], [0.0]]


@pytest.mark.parametrize(
    "kl, expected",
    [
        (
            2.25,
            2 * (1 + 0.125 / 4),
        ),  # error 2.25 / 2 - 1 = 1/8; 16 of a horizon of 64: a quarter of it
        (1.75, 2 * (1 - 0.125 / 4)),
        (2.0, 2.0),
        (200.0, 2 * (1 + 0.2 / 4)),  # clipped
        (0.0, 2 * (1 - 0.2 / 4)),
        (-9.0, 2 * (1 - 0.2 / 4)),  # k1's mean over a batch may be negative
    ],
)
def test_the_adaptive_kl_coefficient_by_hand(kl, expected):
    assert adapt_kl_coef(2.0, kl, target=2.0, horizon=64.0, batch_size=16) == expected


@pytest.mark.parametrize(
    "bad", [{"target": 0.0}, {"target": -1.0}, {"horizon": 0.0}, {"batch_size": 0}]
)
def test_the_adaptive_kl_coefficient_refuses_bad_arguments(bad):
    with pytest.raises(ValueError, match="above 0"):
        adapt_kl_coef(0.1, 1.0, **{"target": 1.0, "horizon": 10.0, "batch_size": 1, **bad})


def test_k1_in_the_reward_gives_the_full_gradient_of_j(world, policy):
    for beta in (0.0, 0.3, 2.0):
        logits = policy.clone().requires_grad_(True)
        old, ref, mask = (
            world.logprobs(policy),
            world.logprobs(world.ref_logits),
            world.response_mask,
        )
        advantages = reward_to_go(
            kl_shaped_rewards(world.rewards, old, ref, mask, kl_coef=beta), mask
        )
        loss = world.expectation(policy, reinforce(world.logprobs(logits), advantages, mask).sum(1))
        torch.testing.assert_close(
            -torch.autograd.grad(loss, logits)[0],
            world.gradient(policy, beta=beta),
            rtol=0,
            atol=1e-9,
        )


def test_value_bias_and_variance_of_the_sequence_estimators(world, policy):
    # the same three functions with the sequence's log-ratio in a token's place
    truth, one = world.kl(policy, world.ref_logits), torch.ones(15, 1, dtype=torch.bool)
    pair = (
        world.sequence_logprobs(policy)[:, None],
        world.sequence_logprobs(world.ref_logits)[:, None],
        one,
    )
    mean = {k: world.expectation(policy, k(*pair)[:, 0]) for k in (k1, k2, k3)}
    torch.testing.assert_close(mean[k1], truth, rtol=0, atol=1e-12)
    torch.testing.assert_close(mean[k3], truth, rtol=0, atol=1e-12)
    assert (mean[k2] - truth).abs() > 0.01


def test_near_the_reference_k3_has_far_less_variance_than_k1(world):
    near = world.ref_logits + 0.01 * torch.randn(
        7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    truth, mask = world.kl(near, world.ref_logits), world.response_mask
    pair = world.logprobs(near), world.logprobs(world.ref_logits), mask
    variance = {k: world.expectation(near, (k(*pair).sum(1) - truth).square()) for k in (k1, k3)}
    assert variance[k3] < variance[k1] / 100


def test_gradients_of_the_kl_estimators_for_one_token():
    world = World.random(4, 1, seed=3)
    policy = torch.randn(1, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ref, mask = world.logprobs(world.ref_logits), world.response_mask
    logits = policy.clone().requires_grad_(True)
    forward = torch.autograd.grad(world.kl(logits, world.ref_logits), logits)[0]
    reverse = torch.autograd.grad(world.kl(world.ref_logits, logits), logits)[0]
    for k, expected in ((k1, torch.zeros_like(forward)), (k2, forward), (k3, reverse)):
        got = torch.autograd.grad(
            world.expectation(policy, k(world.logprobs(logits), ref, mask).sum(1)), logits
        )[0]
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)
    exact = exact_kl(logits[None], world.ref_logits[None], torch.tensor([[True]])).sum()
    torch.testing.assert_close(torch.autograd.grad(exact, logits)[0], forward, rtol=0, atol=1e-9)
