"""Every estimator against the world that is solved: value, gradient, bias (DETAILS: what an exact-gradient test may claim)."""

import itertools
import math

import pytest
import torch

from minirlhf.core.baselines import group_relative, leave_one_out
from minirlhf.core.bradley_terry import preference_probability
from minirlhf.core.exact import World
from minirlhf.core.kl import exact_kl, k1, k2, k3, kl_shaped_rewards, log_ratio
from minirlhf.core.masking import aggregate, masked_whiten
from minirlhf.core.policy_gradient import ppo_clip, reinforce
from minirlhf.core.preference import dpo, implicit_rewards
from minirlhf.core.returns import gae, reward_to_go

EXACT = {"rtol": 0, "atol": 1e-9}


def cosine(a, b):
    return torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()


def terminal(world, scores=None):
    """Rewards (N, R): the score on the last real token."""
    rollout = world.rollout(world.ref_logits)
    scores = world.rewards if scores is None else scores
    return kl_shaped_rewards(
        scores, rollout.old_logprobs, rollout.old_logprobs, world.response_mask, kl_coef=0.0
    )


def surrogate_gradient(world, policy, advantages, loss=reinforce):
    """Ascent direction in expectation: every sequence weighted by its probability, sequence-sum aggregation."""
    logits = policy.clone().requires_grad_(True)
    per_sequence = loss(world.logprobs(logits), advantages, world.response_mask).sum(1)
    return -torch.autograd.grad(world.expectation(policy, per_sequence), logits)[0]


def estimator_gradients(world, policy, x):
    """d/dlogits of an on-policy loss x(logprobs) -> (N,), sampling distribution held fixed, in expectation."""
    logits = policy.clone().requires_grad_(True)
    return torch.autograd.grad(
        world.expectation(policy, x(world.logprobs(logits), logits)), logits
    )[0]


# ---- the oracle itself
def test_the_tree_by_hand():
    # a, b and EOS in two tokens: aa, ab, a., ba, bb, b., .
    world = World(("a", "b", "."), 2, torch.arange(7.0).double(), torch.zeros(3, 3).double())
    assert world.labels == ["aa", "ab", "a.", "ba", "bb", "b.", "."]
    # uniform: 1/9 for two tokens, 1/3 for "."; J = (0+1+2+3+4+5)/9 + 6/3
    torch.testing.assert_close(
        world.objective(world.ref_logits), torch.tensor(15 / 9 + 2, dtype=torch.float64), **EXACT
    )
    # V(a) = (0+1+2)/3 = 1, V(b) = (3+4+5)/3 = 4, Q(empty) = [1, 4, 6]
    values, q = world.values(world.ref_logits)
    torch.testing.assert_close(values[1:], torch.tensor([1.0, 4.0], dtype=torch.float64), **EXACT)
    torch.testing.assert_close(q[0], torch.tensor([1.0, 4.0, 6.0], dtype=torch.float64), **EXACT)
    with pytest.raises((ValueError, TypeError)):
        World(("a", "b", "."), 2, torch.zeros(5), torch.zeros(3, 3))


def test_probabilities_gradient_and_values_agree(world, policy):
    torch.testing.assert_close(
        world.probs(policy).sum(), torch.tensor(1.0, dtype=torch.float64), **EXACT
    )
    logits = policy.clone().requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: world.objective(x, beta=0.3), logits)
    for beta in (0.0, 0.3):
        torch.testing.assert_close(
            world.values(policy, beta=beta)[0][0], world.objective(policy, beta=beta), **EXACT
        )
    assert world.optimal_values()[0][0] == world.rewards.max()


def test_the_gibbs_policy_is_the_optimum(world, policy):
    beta = 0.5
    best = world.gibbs_logits(beta=beta)
    torch.testing.assert_close(world.probs(best), world.gibbs(beta=beta), **EXACT)
    assert world.gradient(best, beta=beta).abs().max() < 1e-12
    soft_value = world.optimal_values(beta=beta)[0][0]
    torch.testing.assert_close(world.objective(best, beta=beta), soft_value, **EXACT)
    # V*(empty) = beta log E_ref exp(r / beta), and J falls short of it by beta KL(pi || pi*)
    log_mean = (world.sequence_logprobs(world.ref_logits) + world.rewards / beta).logsumexp(0)
    torch.testing.assert_close(soft_value, beta * log_mean, **EXACT)
    shortfall = soft_value - world.objective(policy, beta=beta)
    torch.testing.assert_close(shortfall, beta * world.kl(policy, best), **EXACT)


def test_a_tiny_gpt_can_be_tabulated():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    gpt = (
        GPT2LMHeadModel(
            GPT2Config(
                vocab_size=3,
                n_positions=8,
                n_embd=16,
                n_layer=1,
                n_head=2,
                bos_token_id=2,
                eos_token_id=2,
            )
        )
        .double()
        .eval()
    )
    world = World.random(3, 3)
    logits = world.tabulate(lambda ids: gpt(ids).logits, torch.tensor([2]))
    # the whole sequences in one pass, by the model itself
    rollout = world.rollout(logits.detach())
    whole = (
        gpt(rollout.sequences)
        .logits[:, :-1]
        .log_softmax(-1)
        .gather(-1, rollout.response_ids[..., None])[..., 0]
    )
    torch.testing.assert_close(
        (whole * rollout.response_mask).sum(1), world.sequence_logprobs(logits), **EXACT
    )
    world.objective(logits).backward()
    assert all(p.grad.isfinite().all() for p in gpt.parameters())


# ---- policy gradient
@pytest.mark.parametrize("loss", [reinforce, lambda lp, a, m: ppo_clip(lp, lp.detach(), a, m)])
@pytest.mark.parametrize("baseline", ["none", "constant", "value", "wrong value"])
def test_policy_gradient_is_unbiased_under_sequence_sum(world, policy, loss, baseline):
    advantages = reward_to_go(terminal(world), world.response_mask)
    table = {
        "none": torch.zeros(7),
        "constant": torch.full((7,), 3.0),
        "value": world.values(policy)[0],
        "wrong value": torch.arange(7.0),
    }[baseline].double()
    got = surrogate_gradient(world, policy, advantages - world.by_token(table), loss)
    torch.testing.assert_close(got, world.gradient(policy), **EXACT)


def test_a_value_baseline_lowers_the_variance(world, policy):
    rewards, mask = reward_to_go(terminal(world), world.response_mask), world.response_mask

    def variance(advantages):
        rows = []
        for n in range(len(world.sequences)):
            logits = policy.clone().requires_grad_(True)
            loss = reinforce(world.logprobs(logits), advantages, mask)[n].sum()
            rows.append(-torch.autograd.grad(loss, logits)[0])
        g = torch.stack(rows)
        return (
            (world.expectation(policy, g.square()) - world.expectation(policy, g).square())
            .sum()
            .item()
        )

    assert variance(rewards - world.by_token(world.values(policy)[0])) < variance(rewards)


def expected_group_gradient(world, policy, weights, size):
    """E over all tuples of `size` sequences of the gradient that `weights(group of indices) -> (size,)` gives."""
    logits = policy.clone().requires_grad_(True)
    log_p = world.sequence_logprobs(logits)
    p, total = log_p.exp().detach(), 0.0
    for group in itertools.product(range(len(world.sequences)), repeat=size):
        index = torch.tensor(group)
        total = total + p[index].prod() * (weights(index) * log_p[index]).mean()
    return torch.autograd.grad(total, logits)[0]


@pytest.mark.parametrize("size", [2, 3])
def test_expected_gradient_of_group_baselines(world, policy, size):
    truth = world.gradient(policy)
    centred = expected_group_gradient(
        world, policy, lambda i: group_relative(world.rewards[i][None], scale_by_std=False)[0], size
    )
    torch.testing.assert_close(centred, (size - 1) / size * truth, **EXACT)
    loo = expected_group_gradient(
        world, policy, lambda i: leave_one_out(world.rewards[i][None])[0], size
    )
    torch.testing.assert_close(loo, truth, **EXACT)


def test_grpo_with_std_follows_the_gradient_of_an_arcsine(policy):
    world = World.random(3, 3)
    passed = (torch.arange(15) % 3 == 0).double()
    world = World(world.vocab, 3, passed, world.ref_logits)
    p = world.objective(policy).item()

    def share_of_limit(size):
        # k of G succeed; each group's gradient is Bessel's sqrt((G-1)/G) E[sqrt(q (1 - q))] / (p (1 - p)) grad p, q = k / G
        mean = sum(
            math.comb(size, k) * p**k * (1 - p) ** (size - k) * math.sqrt(k / size * (1 - k / size))
            for k in range(size + 1)
        )
        return math.sqrt((size - 1) / size) * mean / math.sqrt(p * (1 - p))

    limit = world.gradient(policy) / math.sqrt(p * (1 - p))  # gradient of 2 arcsin(sqrt p)
    for size in (2, 3):
        got = expected_group_gradient(
            world, policy, lambda i: group_relative(passed[i][None], eps=1e-14)[0], size
        )
        torch.testing.assert_close(got, share_of_limit(size) * limit, rtol=0, atol=1e-6)
    shares = [share_of_limit(size) for size in (2, 4, 8, 16, 256)]
    assert shares == sorted(shares) and 0.99 < shares[-1] < 1


def test_mean_aggregations_are_biased_and_the_sequence_sum_is_not(world, policy):
    truth, mask = world.gradient(policy), world.response_mask
    advantages = reward_to_go(terminal(world), mask)

    def expected(how, batch):
        logits = policy.clone().requires_grad_(True)
        losses, p, total = (
            reinforce(world.logprobs(logits), advantages, mask),
            world.probs(policy),
            0.0,
        )
        for group in itertools.product(range(len(p)), repeat=batch):
            index = torch.tensor(group)
            total = total + p[index].prod() * aggregate(losses[index], mask[index], how=how)
        return -torch.autograd.grad(total, logits)[0]

    torch.testing.assert_close(expected("sequence_sum", 2), truth, **EXACT)
    torch.testing.assert_close(
        expected("sequence_mean", 1), expected("sequence_mean", 2), **EXACT
    )  # biased whatever the batch
    assert cosine(expected("sequence_mean", 1), truth) < 0.99
    angles = [cosine(expected("token_mean", batch), truth) for batch in (1, 2, 3)]
    assert (
        angles == sorted(angles) and angles[0] < 0.99
    )  # biased at small batches, less at larger ones


@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
def test_gae_is_unbiased_with_the_true_v_or_at_lambda_one(world, policy, lam):
    truth, true_v = world.gradient(policy), world.values(policy)[0]
    wrong_v = true_v + torch.linspace(-1, 1, 7).double()

    def gradient(table):
        advantages, _ = gae(
            terminal(world), world.by_token(table), world.response_mask, gamma=1.0, lam=lam
        )
        return surrogate_gradient(world, policy, advantages)

    torch.testing.assert_close(gradient(true_v), truth, **EXACT)
    error = (gradient(wrong_v) - truth).norm() / truth.norm()
    assert error < 1e-9 if lam == 1.0 else error > 1e-2


# ---- KL: value and gradient are two questions
def test_values_of_the_kl_estimators(world, policy):
    truth, mask = world.kl(policy, world.ref_logits), world.response_mask
    pair = (world.logprobs(policy), world.logprobs(world.ref_logits), mask)
    for unbiased in (k1, k3):
        torch.testing.assert_close(
            world.expectation(policy, unbiased(*pair).sum(1)), truth, **EXACT
        )
    exact = exact_kl(policy[world.visited], world.ref_logits[world.visited], mask).sum(1)
    torch.testing.assert_close(world.expectation(policy, exact), truth, **EXACT)
    assert (world.expectation(policy, k2(*pair).sum(1)) - truth).abs() > 0.01
    spread = [world.expectation(policy, (x - truth).square()) for x in (exact, k1(*pair).sum(1))]
    assert spread[0] < spread[1]  # Rao-Blackwell
    assert k1(*pair).min() < 0 <= min(k2(*pair).min(), k3(*pair).min())


def test_gradients_of_the_kl_estimators(world, policy):
    ref, mask, one = (
        world.logprobs(world.ref_logits),
        world.response_mask,
        torch.ones(15, 1, dtype=torch.bool),
    )
    ref_sequence = ref.sum(1, keepdim=True)
    logits = policy.clone().requires_grad_(True)
    forward = torch.autograd.grad(world.kl(logits, world.ref_logits), logits)[
        0
    ]  # KL(policy || ref)
    reverse = torch.autograd.grad(world.kl(world.ref_logits, logits), logits)[
        0
    ]  # KL(ref || policy)

    sequence = {
        k: estimator_gradients(
            world, policy, lambda lp, _, k=k: k(lp.sum(1, keepdim=True), ref_sequence, one)[:, 0]
        )
        for k in (k1, k2, k3)
    }
    assert sequence[k1].abs().max() < 1e-9
    torch.testing.assert_close(sequence[k2], forward, **EXACT)
    torch.testing.assert_close(sequence[k3], reverse, **EXACT)

    token = {
        k: estimator_gradients(world, policy, lambda lp, _, k=k: k(lp, ref, mask).sum(1))
        for k in (k1, k2, k3)
    }
    assert token[k1].abs().max() < 1e-9
    assert (
        cosine(token[k2], forward) < 0.99 and cosine(token[k3], reverse) < 0.99
    )  # a token's effect on later prefixes is missing
    exact = estimator_gradients(
        world,
        policy,
        lambda _, x: exact_kl(x[world.visited], world.ref_logits[world.visited], mask).sum(1),
    )
    torch.testing.assert_close(exact, token[k2], **EXACT)  # the same missing term

    # k1 in the reward, as reward-to-go, has the whole gradient; so has per-token k2 plus the *later* tokens' k1 in the reward
    ratio = log_ratio(world.logprobs(policy), ref, mask)
    to_go = reward_to_go(-ratio, mask)
    torch.testing.assert_close(surrogate_gradient(world, policy, to_go), -forward, **EXACT)
    later = surrogate_gradient(world, policy, (to_go + ratio) * mask)
    torch.testing.assert_close(token[k2] - later, forward, **EXACT)


def test_k2_has_the_gradient_of_the_kl_for_one_token_responses():
    world = World.random(4, 1, seed=3)
    policy, ref = torch.randn_like(world.ref_logits), world.logprobs(world.ref_logits)
    logits = policy.clone().requires_grad_(True)
    forward = torch.autograd.grad(world.kl(logits, world.ref_logits), logits)[0]
    token = estimator_gradients(
        world, policy, lambda lp, _: k2(lp, ref, world.response_mask).sum(1)
    )
    torch.testing.assert_close(token, forward, **EXACT)


def test_kl_by_hand():
    one = torch.tensor([[True]])
    log2 = torch.tensor([[math.log(2)]], dtype=torch.float64)
    zero = torch.zeros_like(log2)
    # policy twice as likely: log_ratio = log 2, exp(-log_ratio) - 1 = -1/2
    torch.testing.assert_close(k1(log2, zero, one), log2)
    torch.testing.assert_close(k2(log2, zero, one), log2**2 / 2)
    torch.testing.assert_close(k3(log2, zero, one), log2 - 0.5)
    # p = (1/2, 1/2), q = (1/4, 3/4): 1/2 log 2 + 1/2 log 2/3
    p, q = (
        torch.zeros(1, 1, 2, dtype=torch.float64),
        torch.tensor([[[0.0, math.log(3)]]], dtype=torch.float64),
    )
    torch.testing.assert_close(
        exact_kl(p, q, one), torch.tensor([[0.5 * math.log(2) + 0.5 * math.log(2 / 3)]]).double()
    )


def test_exact_kl_of_a_forbidden_word():
    # p = (1, 0), q = (1/2, 1/2): log 2, and a finite gradient; a word that q alone forbids makes it infinite
    logits = torch.tensor([[[0.0, -math.inf]]], dtype=torch.float64, requires_grad=True)
    even, one = torch.zeros(1, 1, 2, dtype=torch.float64), torch.tensor([[True]])
    kl = exact_kl(logits, even, one)
    torch.testing.assert_close(kl.item(), math.log(2), **EXACT)
    kl.sum().backward()
    assert logits.grad.isfinite().all()
    assert exact_kl(even, logits.detach(), one).item() == math.inf


def test_shaped_rewards_by_hand():
    mask = torch.tensor([[True, True, False], [False, False, False]])
    old, ref = torch.tensor([[-1.0, -2.0, 0.0]] * 2), torch.tensor([[-2.0, -1.0, 0.0]] * 2)
    # log-ratios 1, -1; kl_coef 1/2: -0.5, +0.5 + score 8; the second row has no token
    got = kl_shaped_rewards(torch.tensor([8.0, 8.0]), old, ref, mask, kl_coef=0.5)
    assert got.tolist() == [[-0.5, 8.5, 0.0], [0.0, 0.0, 0.0]]
    poisoned = torch.where(mask, old, torch.nan).requires_grad_(True)
    shaped = kl_shaped_rewards(torch.tensor([8.0, 8.0]), poisoned, ref, mask, kl_coef=0.5)
    shaped.sum().backward()
    assert shaped.isfinite().all() and poisoned.grad.isfinite().all()
    with pytest.raises(ValueError, match="kl_coef"):
        kl_shaped_rewards(torch.tensor([8.0, 8.0]), old, ref, mask, kl_coef=-0.1)


# ---- where PPO and DPO end
def walk(world, *, beta, whiten, steps=300):
    """PPO in expectation: one ascent step a rollout, exact V, KL in the reward, a decaying step. Returns the logits."""
    logits = world.ref_logits.clone()
    for step in range(steps):
        rollout = world.rollout(logits)
        ref = world.logprobs(world.ref_logits)
        rewards = kl_shaped_rewards(
            world.rewards, rollout.old_logprobs, ref, world.response_mask, kl_coef=beta
        )
        values = world.by_token(world.values(logits, beta=beta)[0])
        advantages, _ = gae(rewards, values, world.response_mask, gamma=1.0, lam=1.0)
        if whiten:
            advantages = masked_whiten(advantages, world.response_mask)
        gradient = surrogate_gradient(world, logits, advantages)
        # precondition by the visits of each state, so that rare prefixes move as fast as common ones (a natural gradient)
        p, visits = world.probs(logits), torch.zeros(len(world.states), dtype=torch.float64)
        weight = p[:, None].expand_as(world.response_mask)[world.response_mask]
        visits.index_put_((world.visited[world.response_mask],), weight, accumulate=True)
        probs = logits.softmax(-1)
        logits = logits + 0.5 / beta * gradient / (visits[:, None] * probs) / (1 + step / 100)
        logits = logits.log_softmax(-1)
    return logits


def test_ascent_reaches_the_gibbs_policy_only_without_whitening(world):
    beta = 0.5
    target = world.gibbs_logits(beta=beta)
    assert world.kl(target, walk(world, beta=beta, whiten=False)) < 1e-6
    assert world.kl(target, walk(world, beta=beta, whiten=True)) > 1e-3


def solve_dpo(world, *, beta, label):
    """The population optimum over all pairs: label(r_i, r_j) is the share that prefers i; float64 LBFGS."""
    i, j = torch.triu_indices(len(world.sequences), len(world.sequences), 1)
    share, ref = (
        label(world.rewards[i], world.rewards[j]),
        world.sequence_logprobs(world.ref_logits),
    )
    logits = world.ref_logits.clone().requires_grad_(True)
    optimizer = torch.optim.LBFGS(
        [logits],
        lr=1,
        max_iter=2000,
        tolerance_grad=1e-12,
        tolerance_change=1e-16,
        history_size=50,
        line_search_fn="strong_wolfe",
    )

    def closure():
        optimizer.zero_grad()
        log_p = world.sequence_logprobs(logits)
        win = dpo(log_p[i], log_p[j], ref[i], ref[j], beta=beta)
        lose = dpo(log_p[j], log_p[i], ref[j], ref[i], beta=beta)
        loss = (share * win + (1 - share) * lose).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    return logits.detach()


def test_dpo_optimum_is_gibbs_and_its_token_rewards_are_q_minus_v(world):
    beta = 0.5
    found = solve_dpo(world, beta=beta, label=preference_probability)
    assert (world.probs(found) - world.gibbs(beta=beta)).abs().max() < 1e-6
    values, q = world.optimal_values(beta=beta)  # from the true reward
    tokens = implicit_rewards(found.log_softmax(-1), world.ref_logits.log_softmax(-1), beta=beta)
    torch.testing.assert_close(tokens, q - values[:, None], rtol=0, atol=1e-4)


def test_dpo_with_hard_labels_does_not_reach_the_gibbs_policy(world):
    hard = solve_dpo(world, beta=0.5, label=lambda a, b: (a > b).double())
    assert (world.probs(hard) - world.gibbs(beta=0.5)).abs().max() > 0.1


# ---- the reader's side of the oracle
def test_a_world_from_a_reward_function_by_hand():
    # "." and "a": aa a. . with probabilities 1/4 1/4 1/2 and rewards 4 0 1; everything is exact in binary
    world = World.from_reward(
        ("a", "."), 2, lambda words: 4.0 if words == ["a", "a"] else float(words == ["."])
    )
    logits = world.ref_logits
    assert world.labels == ["aa", "a.", "."] and world.rewards.tolist() == [4, 0, 1]
    torch.testing.assert_close(
        world.probs(logits), torch.tensor([0.25, 0.25, 0.5], dtype=torch.float64), **EXACT
    )
    torch.testing.assert_close(world.objective(logits).item(), 1.5, **EXACT)  # 4/4 + 0/4 + 1/2
    # V(a) = (4 + 0) / 2 = 2, Q(empty) = [2, 1], V = 1.5; gradient visits * pi * (Q - V): 1 * 1/2 * 1/2, and 1/2 * 1/2 * 2 below
    expected = torch.tensor([[0.25, -0.25], [0.5, -0.5]], dtype=torch.float64)
    torch.testing.assert_close(world.gradient(logits), expected, **EXACT)
    assert world.optimal_values()[0].tolist() == [4, 4] and world.optimal_values()[1].tolist() == [
        [4, 1],
        [4, 0],
    ]
    # the score of a word is paid at its end: E[number of tokens] = 2/4 + 2/4 + 1/2
    torch.testing.assert_close(
        world.expectation(logits, world.response_mask.sum(1).double()).item(), 1.5, **EXACT
    )
    # soft, beta 1: V(a) = log (e^4 + 1) / 2
    torch.testing.assert_close(
        world.optimal_values(beta=1.0)[0][1].item(), math.log((math.exp(4) + 1) / 2), **EXACT
    )


def test_kl_and_values_of_a_world_by_hand():
    # one token, p = (3/4, 1/4) against q = (1/2, 1/2): 3/4 log 3/2 + 1/4 log 1/2
    world = World(("a", "."), 1, torch.zeros(2).double(), torch.zeros(1, 2).double())
    policy = torch.tensor([[math.log(3), 0.0]], dtype=torch.float64)
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    torch.testing.assert_close(world.kl(policy, world.ref_logits).item(), expected, **EXACT)
    torch.testing.assert_close(world.objective(policy, beta=2.0).item(), -2 * expected, **EXACT)
    # V with the KL in the reward is J; Q carries its own token's penalty: -2 log(3/2) and -2 log(1/2)
    values, q = world.values(policy, beta=2.0)
    torch.testing.assert_close(values.item(), -2 * expected, **EXACT)
    torch.testing.assert_close(
        q[0], torch.tensor([-2 * math.log(1.5), -2 * math.log(0.5)], dtype=torch.float64), **EXACT
    )


@pytest.mark.parametrize("size", [1, 2, 3])
def test_groups_are_all_tuples_with_their_probabilities(world, policy, size):
    index, probability = world.groups(policy, size)
    assert index.shape == (15**size, size) and not probability.requires_grad
    torch.testing.assert_close(probability.sum().item(), 1.0, **EXACT)
    torch.testing.assert_close(probability, world.probs(policy)[index].prod(1), **EXACT)
    # the mean of a group's mean is J
    torch.testing.assert_close(
        (probability * world.rewards[index].mean(1)).sum(), world.objective(policy), **EXACT
    )


def test_bias_and_spread_of_the_loss_of_every_batch(world, policy):
    """Against the gradient of REINFORCE's loss, batch after batch; the numbers differ by token."""
    index, chance = world.groups(policy, 2)
    mask, drawing = world.response_mask, torch.Generator().manual_seed(0)
    advantages = torch.randn(*index.shape, mask.shape[1], generator=drawing, dtype=torch.float64)
    each = []
    for rows, numbers in zip(index, advantages, strict=True):
        moved = policy.clone().requires_grad_(True)
        losses = reinforce(world.logprobs(moved)[rows], numbers, mask[rows])
        aggregate(losses, mask[rows], how="sequence_sum").backward()
        each.append(-moved.grad)
    each, truth = torch.stack(each), world.gradient(policy)
    mean = (chance[:, None, None] * each).sum(0)
    variance = (chance * (each - mean).square().sum((1, 2))).sum()
    padded = torch.where(mask[index], advantages, torch.nan)  # numbers at padding do not count
    assert world.bias_and_spread(policy, padded) == pytest.approx(
        (((mean - truth).norm() / truth.norm()).item(), (variance.sqrt() / truth.norm()).item())
    )


def test_the_batch_mean_has_the_bias_1_over_b_and_the_spread_falls_with_the_root_of_b(
    world, policy
):
    one = world.bias_and_spread(policy, world.rewards[:, None, None])
    scores = world.rewards[world.groups(policy, 2)[0]]
    two = world.bias_and_spread(policy, scores[..., None])
    assert one[0] < 1e-10 and two[0] < 1e-10
    assert one[1] == pytest.approx(math.sqrt(2) * two[1])
    centred = scores - scores.mean(1, keepdim=True)
    assert world.bias_and_spread(policy, centred[..., None])[0] == pytest.approx(1 / 2)


def test_all_sequences_of_a_world_form_a_rollout(world, policy):
    logits = policy.clone().requires_grad_(True)
    rollout = world.rollout(logits)
    assert rollout.response_ids.shape == (15, 3) and rollout.finished(2).tolist() == [
        y[-1] == 2 for y in world.sequences
    ]
    assert not rollout.old_logprobs.requires_grad  # the sampler's, fixed
    table = world.by_token(torch.arange(7.0) + 1)
    assert table[~world.response_mask].eq(0).all() and table[:, 0].eq(1).all()
    # logits by token through the package's own function
    from minirlhf.core.logprobs import response_logprobs

    own = response_logprobs(world.by_token(policy), rollout.response_ids, rollout.response_mask)
    torch.testing.assert_close(own, rollout.old_logprobs, **EXACT)


def test_an_expectation_gives_the_sampler_no_gradient(world, policy):
    logits = policy.clone().requires_grad_(True)
    assert not world.expectation(logits, world.rewards).requires_grad


def test_a_world_refuses_bad_arguments(world):
    blank = torch.zeros(1, 2).double()
    for bad in ((("a",), 1), (("a", "."), 0)):
        with pytest.raises(ValueError, match="A world needs"):
            World(*bad, torch.zeros(2).double(), blank)
    with pytest.raises(ValueError, match="has 9 words"):
        world.tabulate(lambda ids: torch.zeros(1, ids.shape[1], 9))
    with pytest.raises(ValueError, match="beta"):
        world.gibbs(beta=0.0)
    with pytest.raises(ValueError, match="beta"):
        world.optimal_values(beta=-1.0)


def test_tabulate_starts_from_the_prompt_of_the_rollout(world):
    # a model whose logits are the last id: the default prompt is EOS, id 2, as in `rollout`
    rows = world.tabulate(lambda ids: ids[..., None].double().expand(*ids.shape, 3))
    assert rows[:3, 0].tolist() == [2, 0, 1]  # after nothing, "a", "b"
    assert world != World.random(3, 3) and world.rollout(world.ref_logits) != world.rollout(
        world.ref_logits
    )  # compared by identity
