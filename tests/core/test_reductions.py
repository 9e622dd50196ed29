"""The family tree: which row turns into which, shown on gradients, and the theorems that the exact world obeys."""

import itertools

import pytest
import torch

from minirlhf.core.baselines import group_relative, leave_one_out
from minirlhf.core.exact import World
from minirlhf.core.kl import kl_shaped_rewards
from minirlhf.core.masking import aggregate, masked_whiten
from minirlhf.core.policy_gradient import ppo_clip, reinforce
from minirlhf.core.returns import gae, reward_to_go

EXACT = {"rtol": 0, "atol": 1e-9}
MASK = torch.arange(4) < torch.tensor([4, 2, 3, 1])[:, None]


def gradient(loss, logprobs, **options):
    leaf = logprobs.clone().requires_grad_(True)
    return torch.autograd.grad(aggregate(loss(leaf), MASK, **options), leaf)[0]


@pytest.fixture
def numbers():
    return torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(
    "how, constant",
    [("token_mean", None), ("sequence_mean", None), ("sequence_sum", None), ("constant", 4.0)],
)
@pytest.mark.parametrize(
    "clip", [{"clip_eps": 0.0}, {"clip_eps": 0.2, "clip_eps_high": 0.3}, {"dual_clip": 3.0}]
)
def test_ppo_at_ratio_one_is_reinforce_for_every_clip_and_denominator(numbers, how, constant, clip):
    logprobs, advantages = numbers
    ppo = gradient(
        lambda x: ppo_clip(x, logprobs, advantages, MASK, **clip),
        logprobs,
        how=how,
        constant=constant,
    )
    plain = gradient(lambda x: reinforce(x, advantages, MASK), logprobs, how=how, constant=constant)
    torch.testing.assert_close(ppo, plain, **EXACT)


def test_a_constant_denominator_is_the_sequence_sum_over_that_constant(numbers):
    logprobs, advantages = numbers
    dr_grpo = gradient(
        lambda x: reinforce(x, advantages, MASK), logprobs, how="constant", constant=4.0
    )
    sum_ = gradient(lambda x: reinforce(x, advantages, MASK), logprobs, how="sequence_sum")
    torch.testing.assert_close(dr_grpo, sum_ / 4, **EXACT)


def test_denominators_agree_up_to_scale_for_responses_of_equal_length(numbers):
    x, full = numbers[0], torch.ones(4, 4, dtype=torch.bool)
    assert aggregate(x, full, how="token_mean").item() == pytest.approx(
        aggregate(x, full, how="sequence_mean").item(), abs=1e-12
    )
    assert aggregate(x, full, how="sequence_sum").item() == pytest.approx(
        4 * aggregate(x, full).item(), abs=1e-12
    )


def test_rloo_is_g_over_g_minus_one_times_centred_grpo(numbers):
    scores, logprobs = torch.tensor([[1.0, 5.0, 2.0, -3.0]], dtype=torch.float64), numbers[0]
    spread = lambda advantages: advantages[0][:, None].expand(4, 4)
    rloo = gradient(
        lambda x: reinforce(x, spread(leave_one_out(scores)), MASK), logprobs, how="sequence_sum"
    )
    grpo = gradient(
        lambda x: reinforce(x, spread(group_relative(scores, scale_by_std=False)), MASK),
        logprobs,
        how="sequence_sum",
    )
    torch.testing.assert_close(rloo, 4 / 3 * grpo, **EXACT)


def test_a_wide_clip_is_no_clip(numbers):
    logprobs, advantages = numbers
    old = logprobs - 0.4 * advantages.flip(0)
    wide = gradient(
        lambda x: ppo_clip(x, old, advantages, MASK, clip_eps=1.0, clip_eps_high=1e6), logprobs
    )
    # d(-ratio A) / dlogprob = -ratio A, over the 10 real tokens
    torch.testing.assert_close(wide, -(logprobs - old).exp() * advantages * MASK / 10, **EXACT)


def test_the_importance_ratio_corrects_off_policy_gradients_for_one_token(policy):
    world = World.random(5, 1, seed=2)
    sampler, now = torch.randn(
        2, 1, 5, generator=torch.Generator().manual_seed(5), dtype=torch.float64
    )
    logits = now.clone().requires_grad_(True)
    old, mask = world.logprobs(sampler), world.response_mask
    loss = ppo_clip(
        world.logprobs(logits), old, world.rewards[:, None], mask, clip_eps=1.0, clip_eps_high=1e6
    )
    got = -torch.autograd.grad(world.expectation(sampler, loss.sum(1)), logits)[0]
    torch.testing.assert_close(got, world.gradient(now), **EXACT)


def test_the_policy_gradient_theorem(world, policy):
    # dJ / dlogit(s, a) = visits(s) pi(a | s) [Q(s, a) - V(s)], visits enumerated here by prefix
    values, q = world.values(policy)
    probs, sequences = world.probs(policy), world.sequences
    visits = torch.stack(
        [
            sum(probs[n] for n, y in enumerate(sequences) if len(y) > len(s) and y[: len(s)] == s)
            for s in world.states
        ]
    )
    expected = visits[:, None] * policy.softmax(-1) * (q - values[:, None])
    torch.testing.assert_close(world.gradient(policy), expected, **EXACT)


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("beta", [0.0, 0.7])
def test_expected_gae_with_the_true_v_is_q_minus_v(world, policy, lam, beta):
    values, q = world.values(policy, beta=beta)
    old, mask = world.logprobs(policy), world.response_mask
    rewards = kl_shaped_rewards(
        world.rewards, old, world.logprobs(world.ref_logits), mask, kl_coef=beta
    )
    advantages, _ = gae(rewards, world.by_token(values), mask, lam=lam)
    probs = world.probs(policy)
    for s, a in itertools.product(range(7), range(3)):
        here = mask & (world.visited == s) & (world.response_ids == a)
        weight = probs[:, None] * here
        mean = (weight * advantages).sum() / weight.sum()
        torch.testing.assert_close(mean, q[s, a] - values[s], **EXACT)


def test_lambda_zero_with_the_true_v_has_the_least_variance(world, policy):
    table, mask = world.values(policy)[0], world.response_mask
    zeros = torch.zeros(15, 3, dtype=torch.float64)
    rewards = kl_shaped_rewards(world.rewards, zeros, zeros, mask, kl_coef=0.0)

    def variance(lam):
        advantages, _ = gae(rewards, world.by_token(table), mask, lam=lam)
        return world.expectation(
            policy, advantages.square().sum(1)
        ).item()  # their mean is 0 at every state

    spread = [variance(lam) for lam in (0.0, 0.5, 0.9, 1.0)]
    assert spread == sorted(spread) and spread[0] < spread[-1] / 2


def test_soft_values_lie_between_the_reference_and_the_best(world):
    hard, soft_cold = world.optimal_values()[0], world.optimal_values(beta=1e-3)[0]
    reference, soft_hot = world.values(world.ref_logits)[0], world.optimal_values(beta=1e4)[0]
    torch.testing.assert_close(soft_cold, hard, rtol=0, atol=0.02)  # beta -> 0: the best response
    torch.testing.assert_close(
        soft_hot, reference, rtol=0, atol=1e-3
    )  # beta -> infinity: the reference
    ladder = torch.stack(
        [reference, world.optimal_values(beta=2.0)[0], world.optimal_values(beta=0.5)[0], hard]
    )
    assert (ladder.diff(dim=0) > 0).all()


def test_advantages_are_zero_at_the_gibbs_policy_and_whitening_scales_noise(world):
    beta = 0.5
    best, mask = world.gibbs_logits(beta=beta), world.response_mask
    rewards = kl_shaped_rewards(
        world.rewards, world.logprobs(best), world.logprobs(world.ref_logits), mask, kl_coef=beta
    )
    advantages, _ = gae(rewards, world.by_token(world.values(best, beta=beta)[0]), mask, lam=1.0)
    assert advantages.abs().max() < 1e-12
    # a critic wrong by a thousandth: without whitening a thousandth stays, with it the error is as loud as any signal
    noise = 1e-3 * torch.randn(7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wrong, _ = gae(rewards, world.by_token(world.values(best, beta=beta)[0] + noise), mask, lam=1.0)
    assert wrong.abs().max() < 0.01 and masked_whiten(wrong, mask).abs().max() > 1


def test_the_token_mean_tends_to_the_gradient_over_the_mean_length(world, policy):
    mask, lengths = world.response_mask, world.response_mask.sum(1).double()
    zeros = torch.zeros(15, 3, dtype=torch.float64)
    advantages = reward_to_go(
        kl_shaped_rewards(world.rewards, zeros, zeros, mask, kl_coef=0.0), mask
    )
    limit = world.gradient(policy) / world.expectation(policy, lengths)
    probs = world.probs(policy)

    def error(size):
        logits = policy.clone().requires_grad_(True)
        losses = reinforce(world.logprobs(logits), advantages, mask)
        total = sum(
            probs[list(group)].prod()
            * aggregate(losses[list(group)], mask[list(group)], how="token_mean")
            for group in itertools.product(range(15), repeat=size)
        )
        return (-torch.autograd.grad(total, logits)[0] - limit).norm() / limit.norm()

    errors = [error(size).item() for size in (1, 2, 3)]
    assert errors == sorted(errors, reverse=True) and errors[2] < errors[0] / 2
