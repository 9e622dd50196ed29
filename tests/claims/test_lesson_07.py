"""Lesson 07, the KL penalty: every number of its prose, and every claim about a recorded run.

The estimators and their gradients are also tested in tests/core/test_exact.py and test_kl.py.
"""

import itertools
import math

import pytest
import torch

from minirlhf import core, experiments, loops, models, rewards, tasks
from minirlhf.classroom import check
from minirlhf.evaluate import paired_difference
from minirlhf.experiments.registry import EXPERIMENTS
from tests.claims.prose import lesson

ESTIMATORS = {"k1": core.k1, "k2": core.k2, "k3": core.k3}
COEFFICIENTS = ("kl_coef 2", "kl_coef 1", "kl_coef 0.5", "kl_coef 0.25", "kl_coef 0.1", "kl_coef 0")
SEEDS = range(3)
PLACES = ("whole", "token", "reward")


# ---- section 2: three responses


@pytest.fixture(scope="module")
def three():
    return core.World(
        ("A dull film.", "A good film.", "A great film!"),
        1,
        torch.tensor([0.0, 1.0, 2.0]).double(),
        torch.tensor([[0.6, 0.3, 0.1]]).double().log(),
    )


def test_the_gibbs_policy_by_hand(three):
    expected = torch.tensor([0.375, 0.375, 0.25]).double()
    torch.testing.assert_close(three.gibbs(beta=1 / math.log(2)), expected)


def test_the_objective_of_every_policy_is_that_of_the_best_one_minus_its_distance():
    """J = beta log Z - beta KL(pi || pi*), for policies drawn at random."""
    hand, beta = seven_responses(), 1 / math.log(2)
    log_z, best = math.log(47 / 36), hand.gibbs_logits(beta=beta)
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        some = torch.randn(3, 3, generator=generator, dtype=torch.float64)
        shortfall = beta * hand.kl(some, best)
        torch.testing.assert_close(hand.objective(some, beta=beta), beta * log_z - shortfall)
    torch.testing.assert_close(hand.objective(best, beta=beta).item(), beta * log_z)


def seven_responses():
    """The world of lessons 03 and 04: good, bad and the full stop."""
    return core.World.from_reward(
        ("good", "bad", "."), 2, lambda words: float(words.count("good") - words.count("bad"))
    )


def test_the_gibbs_policy_of_the_seven_responses_by_hand():
    weights = torch.tensor([16.0, 4, 8, 4, 1, 2, 12]).double()
    torch.testing.assert_close(seven_responses().gibbs(beta=1 / math.log(2)), weights / 47)


def test_the_mean_of_the_token_rewards_is_the_objective():
    hand, beta = seven_responses(), 1 / math.log(2)
    policy = torch.tensor([[1.0, -1, 0], [0, 0.5, 0], [-1, 0, 1]]).double()
    old, ref = hand.logprobs(policy), hand.logprobs(hand.ref_logits)
    rewards = core.kl_shaped_rewards(hand.rewards, old, ref, hand.response_mask, kl_coef=beta)
    mean = hand.expectation(policy, rewards.sum(1))
    torch.testing.assert_close(mean, hand.objective(policy, beta=beta))


def test_rejection_samples_the_gibbs_policy(three):
    beta, generator = 1 / math.log(2), torch.Generator().manual_seed(0)
    start, best = three.probs(three.ref_logits), three.gibbs(beta=beta)
    drawn = torch.multinomial(start, 200_000, True, generator=generator)
    chance = ((three.rewards - three.rewards.max()) / beta).exp()
    kept = drawn[torch.rand(len(drawn), generator=generator) < chance[drawn]]
    error = (best * (1 - best) / len(kept)).sqrt()
    assert ((kept.bincount() / len(kept) - best).abs() < 4 * error).all()
    assert len(kept) / len(drawn) == pytest.approx(kept_share(three), abs=0.005)


def kept_share(three):
    """The share that rejection keeps: Z exp(-r_max / beta)."""
    return (three.probs(three.ref_logits) * 2.0 ** (three.rewards - 2)).sum().item()


# ---- sections 4 and 5: estimators in a small world


@pytest.fixture(scope="module")
def world():
    return core.World.random(3, 3, seed=0)


@pytest.fixture(scope="module")
def walk(world):
    generator = torch.Generator().manual_seed(1)
    direction = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    return [world.ref_logits + step * direction for step in torch.linspace(0.1, 2, 20)]


def of_response(world, logits):
    """Each estimator summed over the tokens of each response, and the exact KL of each prefix."""
    pair = world.logprobs(logits), world.logprobs(world.ref_logits)
    values = {name: k(*pair, world.response_mask).sum(1) for name, k in ESTIMATORS.items()}
    return values | {"exact": at_positions(world, logits).sum(1)}


def at_positions(world, logits):
    """The exact KL of the next token at each position of each response, (N, R)."""
    tables = logits[world.visited], world.ref_logits[world.visited]
    return core.exact_kl(*tables, world.response_mask)


def bias_and_noise(world, logits):
    """name -> (bias, standard deviation from response to response)."""
    kl, found = world.kl(logits, world.ref_logits), {}
    for name, values in of_response(world, logits).items():
        mean = world.expectation(logits, values)
        variance = world.expectation(logits, (values - mean).square())
        found[name] = ((mean - kl).item(), variance.sqrt().item())
    return found


def test_k2_alone_is_biased_and_the_exact_kl_is_quieter_than_k1(world, walk):
    for logits in walk:
        found = bias_and_noise(world, logits)
        assert all(abs(found[name][0]) < 1e-9 for name in ("k1", "k3", "exact"))
        assert found["k2"][0] < 0
        assert found["exact"][1] < found["k1"][1]


def noisiest_far_away(world, walk):
    """(response, its log-ratios, its probability, its share of k3's variance) far away."""
    far = walk[-1]
    ratio = world.logprobs(far) - world.logprobs(world.ref_logits)
    values, chance = of_response(world, far)["k3"], world.probs(far)
    parts = chance * (values - world.expectation(far, values)).square()
    i = parts.argmax()
    words = "".join(world.vocab[word] for word in world.sequences[i])
    return words, ratio[i].tolist(), chance[i].item(), (parts[i] / parts.sum()).item()


def test_k1_is_noisiest_near_the_reference_and_k3_far_from_it(world, walk):
    near, far = bias_and_noise(world, walk[0]), bias_and_noise(world, walk[-1])
    assert near["k1"][1] > 9 * max(near["k2"][1], near["k3"][1])
    assert far["k3"][1] > 10 * max(far["k1"][1], far["k2"][1])


def per_response(world, logits, weights):
    """sum over t of weights[n, t] grad log pi(y_t), for each response: (N, S, V)."""
    slopes = torch.autograd.functional.jacobian(world.logprobs, logits)
    return torch.einsum("nt,ntsv->nsv", weights, slopes)


def placed(world, logits):
    """(estimator, placement) -> the gradient of each response, (N, S, V).

    By hand, from the derivatives of the estimators: 1, l, and 1 - exp(-l).
    """
    mask = world.response_mask
    ratio = world.logprobs(logits) - world.logprobs(world.ref_logits)
    whole = ratio.sum(1, keepdim=True).expand(-1, 3)
    pair = world.logprobs(logits), world.logprobs(world.ref_logits)
    slopes = {"k1": torch.ones_like, "k2": lambda x: x, "k3": lambda x: -torch.expm1(-x)}
    found = {}
    for name, k in ESTIMATORS.items():
        returns = core.reward_to_go(k(*pair, mask), mask)
        weights = dict(
            zip(PLACES, (slopes[name](whole), slopes[name](ratio), returns), strict=True)
        )
        for place, weight in weights.items():
            found[name, place] = per_response(world, logits, torch.where(mask, weight, 0.0))
    return found


def kl_gradients(world, logits):
    """The gradients of KL(policy || reference) and KL(reference || policy)."""
    moved = logits.clone().requires_grad_(True)
    ways = world.kl(moved, world.ref_logits), world.kl(world.ref_logits, moved)
    return [torch.autograd.grad(way, moved)[0] for way in ways]


def cosine(a, b):
    return torch.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()


@pytest.fixture(scope="module")
def cosines(world, walk):
    truth = kl_gradients(world, walk[9])[0]
    return {
        key: cosine(world.expectation(walk[9], each), truth)
        for key, each in placed(world, walk[9]).items()
    }


@pytest.mark.parametrize("seed", range(4))
def test_the_ones_and_zeros_hold_in_every_world(seed):
    world = core.World.random(3, 3, seed=seed)
    generator = torch.Generator().manual_seed(100 + seed)
    logits = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    truth, other = kl_gradients(world, logits)
    mean = {key: world.expectation(logits, x) for key, x in placed(world, logits).items()}
    for key in (("k1", "reward"), ("k2", "whole")):
        torch.testing.assert_close(mean[key], truth, rtol=0, atol=1e-9)
    assert max(mean["k1", place].abs().max() for place in ("whole", "token")) < 1e-9
    torch.testing.assert_close(mean["k3", "whole"], other, rtol=0, atol=1e-9)
    for key in (("k2", "token"), ("k3", "token"), ("k3", "whole"), ("k2", "reward")):
        assert cosine(mean[key], truth) < 0.999
    assert cosine(mean["k3", "token"], other) < 0.999


def test_in_the_reward_k2_k3_and_the_exact_kl_push_away_here(world, walk, cosines):
    assert max(cosines["k2", "reward"], cosines["k3", "reward"]) < 0
    assert exact_in_the_reward(world, walk[9]) < 0


def exact_in_the_reward(world, logits):
    returns = core.reward_to_go(at_positions(world, logits), world.response_mask)
    mean = world.expectation(logits, per_response(world, logits, returns))
    return cosine(mean, kl_gradients(world, logits)[0])


def noise_of(world, logits, each):
    """The total variance of a gradient from response to response; its mean must be the truth."""
    mean = world.expectation(logits, each)
    torch.testing.assert_close(mean, kl_gradients(world, logits)[0], rtol=0, atol=1e-9)
    return world.expectation(logits, (each - mean).square().sum((1, 2))).item()


def complete(world, logits):
    """Three gradients of each response that have the true mean."""
    mask = world.response_mask
    ratio = world.logprobs(logits) - world.logprobs(world.ref_logits)
    positions, parts = at_positions(world, logits), placed(world, logits)

    def later(values):
        return per_response(world, logits, core.reward_to_go(values, mask) - values)

    exact = torch.autograd.functional.jacobian(lambda x: at_positions(world, x).sum(1), logits)
    return {
        "k1 in the reward": parts["k1", "reward"],
        "k2 of the whole response": parts["k2", "whole"],
        "k2 and later k1": parts["k2", "token"] + later(ratio),
        "exact and later k1": exact + later(ratio),
        "exact and later exact": exact + later(positions),
    }


def test_all_of_the_gradient_with_less_noise(world, walk):
    ways = complete(world, walk[9])
    noise = {name: noise_of(world, walk[9], each) for name, each in ways.items()}
    torch.testing.assert_close(ways["k1 in the reward"], ways["k2 and later k1"])
    assert noise["exact and later exact"] == pytest.approx(noise["k1 in the reward"] / 3, rel=0.15)


@pytest.fixture(scope="module")
def added_noise(world, walk):
    """k2 of the whole response against k1 in the reward: by how much the gradient's standard
    deviation is larger, for each policy of the walk."""
    ratios = []
    for logits in walk:
        parts = placed(world, logits)
        ways = (parts["k2", "whole"], parts["k1", "reward"])
        whole, reward = (noise_of(world, logits, each) for each in ways)
        ratios.append((whole / reward) ** 0.5 - 1)
    return ratios


def test_the_exact_kl_in_the_loss_lacks_the_later_tokens_too(world, walk):
    exact = torch.autograd.functional.jacobian(lambda x: at_positions(world, x).sum(1), walk[9])
    mean = [world.expectation(walk[9], x) for x in (exact, placed(world, walk[9])["k2", "token"])]
    torch.testing.assert_close(*mean, rtol=0, atol=1e-9)


def trained(world, key, *, beta=0.5, steps=150):
    """The policies of ascent along the score's gradient minus beta times that of a penalty."""
    ref, mask, logits, path = (
        world.logprobs(world.ref_logits),
        world.response_mask,
        world.ref_logits,
        [],
    )
    name, place = key or ("k1", "token")
    k = ESTIMATORS[name]
    for _ in range(steps):
        path.append(logits)
        moved = logits.clone().requires_grad_(True)
        new, old = world.logprobs(moved), world.logprobs(logits)
        if place == "whole":
            losses = k(new.sum(1, keepdim=True), ref.sum(1, keepdim=True), mask[:, :1])
        elif place == "token":
            losses = k(new, ref, mask)
        else:
            losses = core.reward_to_go(k(old, ref, mask), mask) * new
        penalty = torch.autograd.grad(world.expectation(logits, losses.sum(1)), moved)[0]
        logits = logits + 2 * (world.gradient(logits) - (beta if key else 0.0) * penalty)
    return path


@pytest.fixture(scope="module")
def ends(world):
    """(estimator, placement) -> (KL, J at beta 0.5) of the last policy."""
    keys = [("k1", "token"), ("k1", "reward"), ("k2", "token"), ("k3", "token")]
    last = {key: trained(world, key)[-1] for key in keys}
    return {
        key: (world.kl(x, world.ref_logits).item(), world.objective(x, beta=0.5).item())
        for key, x in last.items()
    }


@pytest.mark.parametrize(
    "pair", [[("k1", "token"), None], [("k2", "whole"), ("k1", "reward")]], ids=str
)
def test_two_placements_that_train_alike(world, pair):
    """k1 in the loss as no penalty does; k2 of the whole response as k1 in the reward does."""
    one, other = (trained(world, key, steps=30) for key in pair)
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def test_only_k1_in_the_reward_reaches_the_best_objective(world, ends):
    best = world.objective(world.gibbs_logits(beta=0.5), beta=0.5).item()
    assert best - 0.002 < ends["k1", "reward"][1] < best
    assert all(ends[key][1] < best - 0.03 for key in (("k2", "token"), ("k3", "token")))


def trained_together(worlds, key, *, beta=0.5, steps=150):
    """The last policy of `trained` in each of many worlds of the same shape, all at once."""
    (name, place), one, count = key, worlds[0], len(worlds)
    mask, k = one.response_mask, ESTIMATORS[name]
    every = mask.expand(count, *mask.shape).flatten(0, 1)

    def logprobs(logits):
        return torch.where(mask, logits.log_softmax(-1)[:, one.visited, one.response_ids], 0.0)

    rewards = torch.stack([world.rewards for world in worlds])
    logits = torch.stack([world.ref_logits for world in worlds])
    ref = logprobs(logits).flatten(0, 1)
    for step in range(steps):
        moved = logits.clone().requires_grad_(True)
        new, old = logprobs(moved).flatten(0, 1), logprobs(logits).flatten(0, 1)
        if place == "token":
            losses = k(new, ref, every)
        else:
            losses = core.reward_to_go(k(old, ref, every), every) * new
        penalty = old.sum(1).exp() @ losses.sum(1)
        score = new.sum(1).exp() @ rewards.flatten()
        if step < steps - 1:
            logits = logits + 2 * torch.autograd.grad(score - beta * penalty, moved)[0]
    return logits


@pytest.fixture(scope="module")
def other_worlds():
    """The KL of k1 in the reward, and of k2 and k3 token by token, after training: (worlds, 3)."""
    worlds = [core.World.random(3, 3, seed=seed) for seed in range(30)]
    columns = []
    for key in (("k1", "reward"), ("k2", "token"), ("k3", "token")):
        policies = trained_together(worlds, key)
        torch.testing.assert_close(policies[7], trained(worlds[7], key)[-1], rtol=0, atol=1e-9)
        columns.append([w.kl(x, w.ref_logits) for w, x in zip(worlds, policies, strict=True)])
    return torch.tensor(columns).T


def test_in_other_worlds_the_penalties_by_token_can_miss_on_the_other_side(other_worlds):
    """In the lesson's world k2 is too weak and k3 too strong."""
    reward, k2, k3 = other_worlds.T
    assert (k2 < reward - 0.05).any() and (k3 > reward + 0.5).any()
    assert k2[0] > reward[0] > k3[0]


# ---- a real policy


@pytest.fixture(scope="module")
def on_a_real_policy():
    """The values of k1 and of the exact KL, and each estimator's gradient in two halves."""
    sft, tokenizer = models.load_policy("tiny-reviews-sft")
    base, _ = models.load_policy("tiny-reviews")
    titles = tasks.reviews.eval_prompts("test") * 2
    sampling = models.SamplingConfig(temperature=1.0, max_new_tokens=32)
    batches = models.sample_text(
        sft, tokenizer, titles[:128], config=sampling, seed=0, batch_size=64
    )
    values, halves = {"k1": [], "exact": []}, {name: [] for name in ESTIMATORS}
    for batch in batches:
        ids, mask = batch.response_ids, batch.response_mask
        here = models.policy_logits(sft, batch)
        with torch.no_grad():
            there = models.policy_logits(base, batch)
            theirs = core.response_logprobs(there, ids, mask)
            values["exact"].append(core.exact_kl(here, there, mask).sum(1))
        ours = core.response_logprobs(here, ids, mask)
        values["k1"].append(core.k1(ours.detach(), theirs, mask).sum(1))
        for name, k in ESTIMATORS.items():
            loss = k(ours, theirs, mask).sum(1).mean()
            parts = torch.autograd.grad(loss, list(sft.parameters()), retain_graph=True)
            halves[name].append(torch.cat([part.flatten() for part in parts]))
    agreement = {name: cosine(*pair) for name, pair in halves.items()}
    values = {name: torch.cat(each) for name, each in values.items()}
    errors = {name: (x.std() / math.sqrt(len(x))).item() for name, x in values.items()}
    return {name: x.mean().item() for name, x in values.items()}, errors, agreement


@pytest.mark.slow
def test_on_a_real_policy_the_exact_kl_is_quieter_and_k1_in_the_loss_is_noise(on_a_real_policy):
    mean, error, agreement = on_a_real_policy
    assert abs(mean["k1"] - mean["exact"]) < 3 * error["k1"] and error["exact"] < error["k1"]
    assert min(agreement["k2"], agreement["k3"]) > 0.2 and abs(agreement["k1"]) < 0.1


def test_before_the_training_scores_have_mean_0_and_standard_deviation_1():
    policy, tokenizer = models.load_policy("tiny-reviews-sft")
    scorer, _ = models.load_scalar("tiny-reviews-reward")
    score = rewards.rollout_score(scorer, tokenizer.eos_token_id)
    prompts = tasks.reviews.rl_prompts()[:256]
    found = torch.cat([score(x) for x in models.sample_text(policy, tokenizer, prompts, seed=3)])
    assert abs(found.mean()) < 4 / math.sqrt(len(found)) and abs(found.std() - 1) < 0.2


# ---- the frontier, best-of-n, the controller and no penalty in the small world


def reward_and_kl(world, probs):
    start = world.probs(world.ref_logits)
    kl = (torch.xlogy(probs, probs) - torch.xlogy(probs, start)).sum()
    return (probs @ world.rewards).item(), kl.item()


def best_of(world, n):
    """The probabilities of the best of n responses of the reference."""
    start, order = world.probs(world.ref_logits), world.rewards.argsort()
    share = start[order].cumsum(0).clamp(max=1)
    chance = torch.cat([torch.zeros(1).double(), share**n]).diff()
    return torch.zeros_like(start).index_put((order,), chance)


def test_no_policy_lies_above_the_gibbs_policies(world):
    generator = torch.Generator().manual_seed(0)
    others = [
        world.probs(world.ref_logits + step * torch.randn(7, 3, generator=generator).double())
        for step in (0.3, 0.6, 1.0, 1.5)
        for _ in range(60)
    ]
    others += [best_of(world, n) for n in (2, 4, 8, 16)]
    points = torch.tensor([reward_and_kl(world, probs) for probs in others]).double()
    for beta in torch.logspace(1.5, -2, 80).tolist():
        reward, kl = reward_and_kl(world, world.gibbs(beta=beta))
        assert (points[:, 0] - beta * points[:, 1] <= reward - beta * kl + 1e-9).all()


def test_the_kl_of_best_of_n_is_below_its_bound(world):
    for n in (2, 4, 8, 16):
        assert reward_and_kl(world, best_of(world, n))[1] <= math.log(n) - (n - 1) / n


def same_kl(world, kl):
    """(beta, mean reward) of the Gibbs policy with this KL."""
    ref = world.sequence_logprobs(world.ref_logits)
    beta = check.EXERCISES["coefficient_for_kl"].reference(ref, world.rewards, kl).item()
    reward, found = reward_and_kl(world, world.gibbs(beta=beta))
    assert found == pytest.approx(kl)
    return beta, reward


def controlled(world, coefficient, *, target=0.5, steps=400):
    """(KL, coefficient) at each step of ascent on J with an adapted coefficient."""
    logits, rows = world.ref_logits, []
    for _ in range(steps):
        rows.append((world.kl(logits, world.ref_logits).item(), coefficient))
        logits = logits + 2 * world.gradient(logits, beta=coefficient)
        coefficient = core.adapt_kl_coef(
            coefficient, rows[-1][0], target=target, horizon=2000, batch_size=256
        )
    return rows


@pytest.fixture(scope="module")
def drives(world):
    return {start: controlled(world, start) for start in (0.05, 5.0)}


def test_the_controller_settles_at_the_target_and_its_gibbs_policy(world, drives):
    for rows in drives.values():
        kl, coefficient = rows[-1]
        assert abs(kl - 0.5) < 0.01
        assert abs(reward_and_kl(world, world.gibbs(beta=coefficient))[1] - kl) < 0.01
    low, high = (rows[-1][1] for rows in drives.values())
    assert low == pytest.approx(high, rel=0.03)
    assert 4.5 < max(kl for kl, _ in drives[0.05]) / 0.5 < 5.5  # on the way from the low start


def test_without_a_penalty_the_best_response_gets_everything(world):
    logits = world.ref_logits
    for _ in range(500):
        logits = logits + 5 * world.gradient(logits)
    top = world.rewards.argmax()
    assert world.probs(logits)[top] > 0.999 and world.probs(world.ref_logits)[top] < 0.07


# ---- recorded runs


@pytest.fixture(scope="module")
def runs():
    found = experiments.results("leash").set_index(["variant", "seed"]).sort_index()
    assert len(found) == 3 * (len(COEFFICIENTS) + 1)
    return found


@pytest.fixture(scope="module")
def history():
    return experiments.results("leash_history")


@pytest.fixture(scope="module")
def microscope():
    run = experiments.results("microscope")
    return run[run.source == "fresh"]


def mean(runs, variant, name):
    return runs.loc[variant][name].mean()


def paired(runs, one, other, seed):
    columns = [runs.loc[(variant, seed)].gold_by_prompt for variant in (one, other)]
    return paired_difference(*columns)


def test_a_weaker_penalty_has_more_kl_and_gold_down_to_a_tenth(runs):
    for larger, smaller in itertools.pairwise(COEFFICIENTS[:-1]):
        for name in ("kl", "gold"):
            assert mean(runs, smaller, name) > mean(runs, larger, name)


def test_without_a_penalty_gold_is_lower_than_at_a_tenth_and_higher_than_at_a_half(runs):
    for seed in SEEDS:
        assert paired(runs, "kl_coef 0.1", "kl_coef 0", seed)[1] > 0
        assert paired(runs, "kl_coef 0", "kl_coef 0.5", seed)[1] > 1
        proxy = runs.proxy
        assert proxy["kl_coef 0", seed] > proxy["kl_coef 0.1", seed] + 1


def test_without_a_penalty_gold_was_higher_half_way_on_every_seed(history):
    for seed in SEEDS:
        by_step = history[history.seed == seed].pivot(
            index="step", columns="variant", values="gold"
        )
        free, held = by_step["kl_coef 0"], by_step["kl_coef 0.1"]
        assert free.max() > held.max()
        assert 8 < free.idxmax() < 14 and free.iloc[-1] < free.max() - 0.3


def test_the_controller_overshoots_and_has_not_come_back_on_every_seed(history):
    found = history[history.variant == "target 2 nats"].pivot(
        index="step", columns="seed", values="kl"
    )
    assert found.max().min() > 6 and found.iloc[-1].min() > 3


def test_nobody_wrote_what_the_policy_without_a_penalty_writes(runs):
    text = "funny and funny"
    for seed in SEEDS:
        samples = runs.loc[("kl_coef 0", seed)].samples.values()
        assert all("funny, funny" in x or text in x for x in samples)
    assert not any(text in x or "funny, funny" in x for x in every_review())


def every_review():
    return [review.text.lower() for review in tasks.reviews.load_reviews()]


def test_best_of_16_has_more_gold_than_ppo_at_a_half_for_less_kl(runs):
    tour = experiments.results("tour").set_index("method")
    best = tour.loc["best-of-16"]
    assert best.gold.mean() > mean(runs, "kl_coef 0.5", "gold")
    assert math.log(16) - 15 / 16 < mean(runs, "kl_coef 0.5", "kl")


# ---- the exercises


def penalty_alone(function, world, logits, steps=100):
    """Exercise 3: the policy after 100 steps along the mean gradient of the penalty, no score."""
    ref, mask = world.logprobs(world.ref_logits), world.response_mask
    for _ in range(steps):
        moved = logits.clone().requires_grad_(True)
        world.expectation(logits, function(world.logprobs(moved), ref, mask)).backward()
        logits = logits - 2 * moved.grad
    return logits


def with_the_bug(logprobs, ref_logprobs, mask):
    new, ref = (torch.where(mask, x, 0.0) for x in (logprobs, ref_logprobs))
    return (core.reward_to_go(new - ref, mask) * new).sum(1)


@pytest.fixture(scope="module")
def wrong_ends(world, walk):
    """The last policies of exercise 3's two runs with the bug."""
    return [penalty_alone(with_the_bug, world, start) for start in (world.ref_logits, walk[9])]


def test_the_curves_of_exercise_3_show_the_bug_and_its_repair(world, walk, wrong_ends):
    for start in (world.ref_logits, walk[9]):
        mended = penalty_alone(check.EXERCISES["penalty_loss"].reference, world, start)
        assert world.kl(mended, world.ref_logits) < 0.001
    one, other = (world.kl(end, world.ref_logits).item() for end in wrong_ends)
    assert one == pytest.approx(other, abs=0.01) and min(one, other) > 0.05
    a, b = (world.probs(end) for end in wrong_ends)
    assert (a - b).abs().sum() < 0.05  # the same policy, and a flatter one after every prefix
    for end in wrong_ends:
        assert (entropy(end) > entropy(world.ref_logits)).all()


def entropy(logits):
    """The entropy of the next word after each prefix, (S,)."""
    return -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)


def test_with_the_bug_of_exercise_3_the_last_token_is_drawn_by_the_root_of_the_reference(world):
    """Prefixes of two tokens have no later token; the bug's mean gradient is 0 at this policy."""
    halved = (world.ref_logits / 2).requires_grad_(True)
    ref, mask = world.logprobs(world.ref_logits), world.response_mask
    losses = with_the_bug(world.logprobs(halved), ref, mask)
    world.expectation(halved.detach(), losses).backward()
    last = [i for i, state in enumerate(world.states) if len(state) == 2]
    assert len(last) == 4
    assert halved.grad[last].abs().max() < 1e-9 < 1e-3 < halved.grad[0].abs().max()


def test_the_checker_of_exercise_3_does_not_name_the_bug():
    message = check.penalty_loss(with_the_bug).message
    assert "the bug is still there" in message and "On paper" in message
    assert not any(word in message for word in ("detach", "return", "reward", "fixed"))


def test_the_checker_of_exercise_4a_takes_every_right_form():
    def as_the_hint_says(ref_logprobs, rewards, beta):
        x = ref_logprobs + rewards / beta
        return x - torch.logsumexp(x, 0)

    def by_the_largest(ref_logprobs, rewards, beta):
        x = ref_logprobs + rewards / beta
        x = x - x.max()
        return x - x.exp().sum().log()

    def of_probabilities(ref_logprobs, rewards, beta):
        return (ref_logprobs + rewards / beta).softmax(0).log()

    def naive(ref_logprobs, rewards, beta):
        weights = ref_logprobs.exp() * (rewards / beta).exp()
        return (weights / weights.sum()).log()

    for right in (as_the_hint_says, by_the_largest, of_probabilities):
        assert check.gibbs_logprobs(right), check.gibbs_logprobs(right).message
    assert not check.gibbs_logprobs(naive)


def test_the_weights_of_exercise_2_repair_k3(world, walk):
    parts, mask = placed(world, walk[9]), world.response_mask
    ratio = world.logprobs(walk[9]) - world.logprobs(world.ref_logits)
    weights = check.EXERCISES["missing_weights"].reference(ratio, mask)
    both = parts["k3", "token"] + per_response(world, walk[9], weights)
    torch.testing.assert_close(both, parts["k1", "reward"])
    noise = noise_of(world, walk[9], both)
    others = 0
    for message, mistake in check.EXERCISES["missing_weights"].mistakes.items():
        other = parts["k3", "token"] + per_response(world, walk[9], mistake(ratio, mask))
        mean, truth = world.expectation(walk[9], other), kl_gradients(world, walk[9])[0]
        right = bool((mean - truth).abs().max() < 1e-9)
        assert right == message.startswith("right on average"), message
        if right:  # the checker and the solution say that it is noisier
            others += 1
            assert noise_of(world, walk[9], other) > 1.2 * noise
    assert others == 4


# ---- the prose


def test_the_numbers_of_lesson_07(
    three,
    world,
    walk,
    cosines,
    ends,
    added_noise,
    other_worlds,
    runs,
    history,
    microscope,
    wrong_ends,
    on_a_real_policy,
):
    with lesson("07") as said:
        opening(said, runs)
        best_policy(said, three, microscope)
        values(said, three, world, walk)
        by_hand(said, three)
        gradients(said, world, walk, cosines, ends)
        more_gradients(said, added_noise, other_worlds)
        recorded(said, runs, history)
        controller(said, runs, history)
        exercises(said, world, wrong_ends)
        further(said, three, world, walk, runs, history, on_a_real_policy)


def opening(said, runs):
    zero, half = "kl_coef 0", "kl_coef 0.5"
    config = loops.PPOConfig()
    assert config.kl.kl_coef == 0.5
    said("We trained the review writer of lesson 06 for", config.steps)
    said("with a KL penalty (coefficient", config.kl.kl_coef)
    films = {len(row) for row in runs.gold_by_prompt}
    said("The mean score is", mean(runs, zero, "proxy"), mean(runs, half, "proxy"), *films, 0, 1)
    said("None of our", len(every_review()))
    training = experiments.results("leash_history")
    assert abs(training[training.step == 0].score.mean()) < 0.05


def best_policy(said, three, microscope):
    step_beta = 1 / math.log(2)
    start, best = three.probs(three.ref_logits), three.gibbs(beta=step_beta)
    factors = 2**three.rewards
    weights = start * factors
    z = weights.sum().item()
    for i, name in enumerate(three.vocab):
        row = [x[i].item() for x in (start, three.rewards, factors, weights, weights)]
        said(f"| *{name}* |", *row, z, best[i].item())
    said("| sum |", 1, z, 1)
    far, near = three.gibbs(beta=10 * step_beta), three.gibbs(beta=step_beta / 4)
    assert round(10 * step_beta, 1) == 14.4 and round(step_beta / 4, 2) == 0.36
    assert far.argmax() == 0 and near.argmax() == 2
    said("*A dull film.*, with", far[0].item(), start[0].item())
    products = start * 16**three.rewards
    low = [start[1].item(), 16, products[1].item(), start[2].item(), 256, products[2].item()]
    said("*A great film!*, with", near[2].item(), products[0].item(), *low)
    said(
        "two policies are equal, otherwise it is positive",
        three.kl(three.ref_logits, three.ref_logits).item() == 0,
    )
    said("[\\ell(y)]$. It is", 0)
    said("Its unit is the **nat**: at", 1, math.e)
    said("The KL is", 0)
    best_j, ref_j = (
        three.objective(x, beta=step_beta).item()
        for x in (three.gibbs_logits(beta=step_beta), three.ref_logits)
    )
    assert best_j == pytest.approx(step_beta * math.log(z)) and round(best_j, 2) == 0.68
    assert round(step_beta, 2) == 1.44 and ref_j == pytest.approx(0.5)
    treat = microscope[(microscope.step == 24) & (microscope.prompt == "amys o\n")]
    tokens = treat.set_index("token")
    heart, last = tokens.loc[" heart"], tokens.loc[" treat"]
    policy, reference = math.exp(heart.logprob), math.exp(heart.ref_logprob)
    said("*heart* has the log-ratio", heart.kl, policy, reference, heart.reward)
    assert heart.reward == pytest.approx(-0.5 * heart.kl, abs=1e-3)
    said("*treat* has", last.kl, last.reward)
    assert len(treat) == 7
    said("All seven log-ratios add up to", treat.kl.sum())
    end = treat.iloc[-1]
    assert end.token == "<|endoftext|>"
    assert end.reward == pytest.approx(end.score - 0.5 * end.kl, abs=1e-3)
    # a sample of the KL may be negative
    earlier = microscope[microscope.step == 8].groupby("prompt").kl.sum()
    assert earlier.min() == pytest.approx(-2.29, abs=0.005)


def values(said, three, world, walk):
    policy, start = three.gibbs(beta=1 / math.log(2)), three.probs(three.ref_logits)
    ratio = (policy / start).log()
    rows = {"k1": ratio, "k2": ratio.square() / 2, "k3": (-ratio).exp() - 1 + ratio}
    for i, name in enumerate(("dull", "good", "great")):
        estimates = [x[i].item() for x in rows.values()]
        said(f"| *{name}* |", policy[i].item(), start[i].item(), *estimates)
    means = {name: (policy @ x).item() for name, x in rows.items()}
    assert means["k1"] == pytest.approx(means["k3"])
    said("$k_1$ and $k_3$ have the mean", means["k1"], means["k2"])
    said("is the sum of $\\pi_{\\text{ref}}$, which is", 1, 0)
    said("so there are", len(world.sequences))
    said("exact: sums over all", len(world.sequences))
    near, far = bias_and_noise(world, walk[0]), bias_and_noise(world, walk[-1])
    farthest = world.kl(walk[-1], world.ref_logits).item()
    said("they are the KL, far away", farthest, farthest + far["k2"][0])
    times = [near["k1"][1] / near[name][1] for name in ("k2", "k3")]
    said("about ten times as noisy", min(times) > 9, max(times) < 11)
    small, zero = torch.full((1, 1), 0.1).double(), torch.zeros(1, 1).double()
    pair = [k(small, zero, torch.ones(1, 1).bool()).item() for k in (core.k2, core.k3)]
    said("if $\\ell = k_1$ is", 0.1, pair[0])
    assert [round(value, 3) for value in pair] == [0.005, 0.005]
    words, of_words, chance, share = noisiest_far_away(world, walk)
    assert words == "a."
    numbers = far["k3"][1], far["k1"][1], share, of_words[1], math.exp(-of_words[1])
    said("Far away, $k_3$ is the noisiest by far, with", *numbers)
    said("only twice in", 10_000, round(10_000 * chance) == 2)


def by_hand(said, three):
    """Section 5: the two parts of k1's gradient, for the logit of "great"."""
    policy, start = three.gibbs(beta=1 / math.log(2)), three.probs(three.ref_logits)
    ratio = (policy / start).log()
    slope = torch.tensor([0.0, 0, 1]).double() - policy[2]
    parts = policy * slope, policy * ratio * slope
    for i, name in enumerate(("dull", "good", "great")):
        said(f"| {name} |", *(round(x[i].item(), 6) for x in (policy, ratio, slope, *parts)))
    said("| total | | | |", round(parts[0].sum().item(), 9), parts[1].sum().item())
    said("because the probabilities add up to", 1)
    logits = policy.log()[None].requires_grad_(True)
    truth = torch.autograd.grad(three.kl(logits, three.ref_logits), logits)[0][0, 2]
    torch.testing.assert_close(parts[1].sum(), truth)
    six_penalties(said, policy, ratio)
    inverse = (-ratio).exp()
    third = policy * (1 - inverse) * slope
    for i, name in enumerate(three.vocab):
        row = [round(x[i].item(), 6) for x in (policy, inverse, 1 - inverse, slope, third)]
        said(f"| {name} |", *row)
    total = round(third.sum().item(), 9)
    said("| the total |", total)
    said("The KL has", truth.item(), total)
    said("The first sum is", 0)
    backwards = torch.autograd.grad(three.kl(three.ref_logits, logits), logits)[0][0, 2]
    torch.testing.assert_close(third.sum(), backwards)
    always = torch.tensor([[-1e9, -1e9, 0.0]]).double()
    said(
        "Our KL is $\\log(1 / 0.1) = 2.3$",
        round(three.kl(always, three.ref_logits).item(), 1) == 2.3,
    )
    assert three.kl(three.ref_logits, always) > 1e8


def six_penalties(said, policy, ratio):
    """Section 5's prediction: the mean gradient of six penalties for the three logits."""
    slopes = torch.eye(3).double() - policy  # grad log pi; row: response
    values = {"k1": ratio, "k2": ratio.square() / 2, "k3": (-ratio).exp() - 1 + ratio}
    reward = {name: (policy * x) @ slopes for name, x in values.items()}
    truth, other = reward["k1"], policy - policy / ratio.exp()
    loss = {"k2": (policy * ratio) @ slopes, "k3": (policy * (1 - (-ratio).exp())) @ slopes}
    torch.testing.assert_close(loss["k2"], truth)
    torch.testing.assert_close(loss["k3"], other)
    assert (other - truth).abs().max() > 0.04  # near, but not equal
    good = [x[1].item() for x in (reward["k2"], reward["k3"], truth)]
    assert values["k2"].argmin() == 1 and values["k3"].argmin() == 1
    said("even have the wrong sign for *good*:", *good, policy[1].item(), 0.3)
    assert (policy / ratio.exp())[1].item() == pytest.approx(0.3)


def gradients(said, world, walk, cosines, ends):
    # the mean gradients of nine penalties in the small world, against the true one
    expected = {
        "k1": (0, 0, 1),
        "k2": (1, 0.86, -0.26),
        "k3": (0.75, 0.75, -0.29),
    }
    for name, row in expected.items():
        found = [cosines[name, place] for place in PLACES]
        assert found == pytest.approx(row, abs=0.005)
    said("with $\\beta = 0.5$. Each of", 150)
    best = world.gibbs_logits(beta=0.5)
    goal = world.kl(best, world.ref_logits).item(), world.objective(best, beta=0.5).item()
    assert ends["k1", "reward"] == pytest.approx(goal, abs=0.03)
    said("| the Gibbs policy |", *goal)
    said("penalty | KL after", 150)
    k2, k3 = ends["k2", "token"], ends["k3", "token"]
    said("$k_2$ is too weak here and $k_3$ too strong", k3[0] < goal[0] < k2[0])
    said("| $k_1$ in the reward |", *ends["k1", "reward"])
    said("| $k_2$ in the loss, token by token |", *k2)
    said("| $k_3$ in the loss, token by token |", *k3)
    said("| $k_1$ in the loss (not drawn) |", *ends["k1", "token"])
    ratio, mask = torch.tensor([[0.5, -0.2, 1.0]]), torch.ones(1, 3).bool()
    own, returns = ratio[0].tolist(), core.reward_to_go(ratio, mask)[0].tolist()
    zero = torch.zeros(1, 3)  # only differences of log-probabilities count
    by_token, whole = ratio.clone().requires_grad_(True), ratio.clone().requires_grad_(True)
    core.k2(by_token, zero, mask).sum().backward()
    core.k2(whole.sum(1, keepdim=True), zero[:, :1], mask[:, :1]).sum().backward()
    torch.testing.assert_close(by_token.grad, ratio)
    torch.testing.assert_close(whole.grad, ratio.sum().expand(1, 3))
    torch.testing.assert_close(core.k1(ratio, zero, mask), ratio)
    said("| log-ratio $\\ell_t$ |", *own)
    said("token by token: its own log-ratio |", *own)
    third = ratio.clone().requires_grad_(True)
    core.k3(third, zero, mask).sum().backward()
    torch.testing.assert_close(third.grad, 1 - (-ratio).exp())
    said("token by token: $1 - e^{-\\ell_t}$", *third.grad[0].tolist())
    said("its own and the later ones |", *returns)
    said("whole response: all of them |", *[ratio.sum().item()] * 3)


def more_gradients(said, added_noise, other_worlds):
    noise = min(added_noise), max(added_noise)
    said("with more noise (by", 100 * noise[0], noise[1])
    said("The standard deviation of the gradient is larger by", 100 * noise[0], noise[1])
    reward, k2, k3 = other_worlds.T
    seeds = len(other_worlds)
    said("We repeated the training of section 7 in", seeds, 0, seeds - 1, (k2 > reward).sum())
    said("ends with a lower KL in", (k3 < reward).sum())


def recorded(said, runs, history):
    gold = {variant: mean(runs, variant, "gold") for variant in COEFFICIENTS}
    assert {len(x) for x in runs.gold_by_prompt} == {76}
    said("is the rating from", -4, 4)
    said("a weaker penalty has more KL and more gold, from", gold["kl_coef 2"], gold["kl_coef 0.1"])
    free = history[history.variant == "kl_coef 0"].groupby("step").gold.mean()
    assert free.idxmax() == 10
    default = loops.KLConfig().kl_coef
    said("Without a penalty gold falls back to", gold["kl_coef 0"], 0.1)
    said("gold without a penalty was", free.max(), 10, free.iloc[-1])
    assert gold["kl_coef 0"] > gold["kl_coef 0.5"] + 1
    said("But even so it is far above the", gold["kl_coef 0.5"], default == 0.5)
    said("**The score rises to the end**, to", mean(runs, "kl_coef 0", "proxy"))
    tour = experiments.results("tour").set_index("method")
    variety = {variant: mean(runs, variant, "distinct_2") for variant in COEFFICIENTS}
    reference, half = tour.loc["SFT"].distinct_2.mean(), variety["kl_coef 0.5"]
    low = variety["kl_coef 0.1"]
    said("**Variety warns before gold does.** It falls from", half, 0.5, low, 0.1, reference)
    assert max(gold, key=gold.get) == "kl_coef 0.1"
    kl, length = (mean(runs, "kl_coef 0", name) for name in ("kl", "length"))
    each = kl / length
    said("With no penalty the KL is", kl)
    said("**How far is", kl, length, each, math.exp(3))
    assert round(each) == 3
    guesses = sum(math.comb(30, k) for k in range(21, 31)) / 2**30
    said("So test gold: for", 30, 21, guesses)
    choosing(said, runs, gold, variety, reference)
    for seed in SEEDS:
        at = runs.distinct_2
        assert at["kl_coef 0.5", seed] > reference - 0.07
        assert at["kl_coef 0.25", seed] < reference - 0.13


def choosing(said, runs, gold, variety, reference):
    """Section 10: what the samples show; and best-of-16."""
    texts = {v: runs.loc[(v, 0)].samples for v in COEFFICIENTS}
    shown = {v: [x["amys o\n"], x["big bad love\n"]] for v, x in texts.items()}
    assert shown["kl_coef 0.1"][0] == "A very funny, funny, funny film."
    limit, quarter = 0.9 * reference, variety["kl_coef 0.25"]
    left = [v for v in COEFFICIENTS if variety[v] >= limit]
    assert left == ["kl_coef 2", "kl_coef 1", "kl_coef 0.5"]
    assert max(left, key=gold.get) == "kl_coef 0.5"
    said("**Variety**: our limit is", limit, 0.25, quarter, 0.25, 0.1, 0)
    assert len({x for v in COEFFICIENTS[:2] for x in shown[v]}) == 4
    said("the sentences at", 2, 1, 0.1)
    said("Here are samples for two films (first seed).", 0)
    said("Of the rest,", 0.5, gold["kl_coef 0.5"])
    accepted = [v for v in COEFFICIENTS if variety[v] >= 0.6]
    assert max(accepted, key=gold.get) == "kl_coef 0.25"
    said("and we made it after the runs. If", 0.6, 0.25, gold["kl_coef 0.25"])
    tour = experiments.results("tour").set_index("method").loc["best-of-16"]
    best, half = math.log(16) - 15 / 16, mean(runs, "kl_coef 0.5", "kl")
    said("**Is it worth it?** Best-of-16 (lesson 01) samples", 16, tour.gold.mean(), best, half, 16)


def controller(said, runs, history):
    found = history[history.variant == "target 2 nats"].groupby("step")[["kl", "kl_coef"]].mean()
    assert len(found) == 24
    after = core.adapt_kl_coef(0.1, 6.0, target=2.0, horizon=100, batch_size=64)
    assert after == pytest.approx(0.1128)
    said("let $\\beta = 0.1$, the KL", 6, 2, 0.2)
    fixed = [mean(runs, variant, "kl") for variant in ("kl_coef 0.1", "kl_coef 0.5")]
    said("with this controller, from $\\beta = 0.1$. (Fixed at", 0.1, fixed[0], 0.5, fixed[1], 24)
    said("The KL rises to about", found.kl.max(), found.kl.max() > 4 * 2, found.kl.iloc[-1])
    said("so the controller lowers $\\beta$ to", found.kl_coef.min())
    said("grows by at most", 0.2 * 64 / 100)
    said("to reach", found.kl_coef.iloc[-1])


def exercises(said, world, wrong_ends):
    said("for a given $\\beta$. A score of", 1000)
    said("PPO's rewards (B, R). Return", 0)
    said("NaN times", 0)
    said("and the mask. Return", 0)
    said("There $w$ is not", 0)
    said("for all words, the mean gradient is", 0)
    said("From the reference, the KL must stay at", 0, 0)
    for end in wrong_ends:  # the solution says 0.07 nats
        assert world.kl(end, world.ref_logits).item() == pytest.approx(0.07, abs=0.005)
    roots = [math.sqrt(chance) for chance in (0.64, 0.04)]
    said("brings probabilities nearer to each other:", 0.64, 0.04, *roots)
    said("It lies between", 0.01, 100)
    said("Scale the reward model first (mean", 0, 1)
    said("A log shows a KL of", -0.4)
    said("Where the reference has probability", 0)


def further(said, three, world, walk, runs, history, real):
    said("For our three responses you keep a share of", kept_share(three))
    assert exact_in_the_reward(world, walk[9]) == pytest.approx(-0.15, abs=0.005)
    _, _, agreement = real
    said("(lesson 03). We took", 128)
    said("two halves of the samples (cosine", 1, 0)
    said("the cosine between the halves is", agreement["k2"], agreement["k3"])
    said("For $k_1$ it is less than", 0.1, 0, abs(agreement["k1"]) < 0.1)
    reward, kl = reward_and_kl(world, best_of(world, 16))
    matched = same_kl(world, kl)[1]
    start = reward_and_kl(world, world.probs(world.ref_logits))[0]
    said("Best-of-16 has a KL of", kl)
    said("It is better by only", matched - reward)
    said("a hundredth of the gain", 0.008 < (matched - reward) / (matched - start) < 0.012)
    said("those of PPO were not.", math.log(16) - 15 / 16)
    apart = [paired(runs, "kl_coef 0.1", "kl_coef 0", seed) for seed in SEEDS]
    closest = min(apart, key=lambda x: x[1])
    said("**How sure is section 9?** Is gold at", 0.1, 0, sum(x[0] for x in apart) / 3)
    said("The one that comes nearest to", 0, *closest[1:], 0, 0.5, 1)
    free = history[history.variant == "kl_coef 0"].groupby("step").gold.mean()
    said("The peak of", free.max(), 24, 64)
    repeats(said, runs, history)
    said("Its coefficient is", 0)


def repeats(said, runs, history):
    """The runs of lesson 06b that have the settings and seeds of the KL coefficient 0.5."""
    half, settings = "kl_coef 0.5", EXPERIMENTS["ablations"]["as it is"]
    assert settings == {} and EXPERIMENTS["leash"][half]["ppo"]["kl"] == loops.PPOConfig().kl
    again = experiments.results("ablations").set_index(["variant", "seed"]).loc["as it is"]
    here = runs.loc[half]
    means = [x[name].mean() for x in (again, here) for name in ("gold", "kl")]
    said("as 0.5 here (*as it is*). There gold is", *means)
    said("the same three seeds as", 0.5)
    early = [
        x[(x.variant == name) & (x.step < 4)].set_index(["seed", "step"]).sort_index()
        for x, name in ((experiments.results("ablations_history"), "as it is"), (history, half))
    ]
    assert early[0].index.equals(early[1].index) and len(early[0]) == 12
    assert (early[0].score - early[1].score).abs().max() < 1e-6
    apart = (early[0].kl - early[1].kl).abs().max()
    said("differ only by rounding: the KL by less than", 1e-6, apart < 1e-6)
    said("for one seed, gold differs by", (again.gold - here.gold).abs().max(), 0.1)
