"""Lesson 06, PPO: every number of its prose, and every claim about a recorded run."""

import copy
import json
import math
import re

import nbformat
import pytest
import torch

from minirlhf import core, experiments, loops, models, rewards, tasks
from minirlhf.classroom.course import NOTEBOOKS
from minirlhf.experiments.microscope import one_batch_config
from tests.claims.prose import lesson
from tests.claims.records_06 import SEEDS, first_step_of_the_loop


@pytest.fixture(scope="module")
def tour():
    history = experiments.results("tour_history")
    return history[history.stage == "ppo"]


SOURCE = (NOTEBOOKS / "src" / "06_ppo.py").read_text("utf-8")


# ---- sections 4 and 5: the recorded batch


@pytest.fixture(scope="module")
def recorded():
    return experiments.results("one_batch")


def followed(recorded, text, token):
    """A token of the recorded batch: its rows, one before each update and one after the last."""
    rows = recorded[(recorded.text == text) & (recorded.token == token)].sort_values("step")
    assert rows.step.tolist() == [0, 1, 2, 3, 4]
    return rows.reset_index(drop=True)


def test_the_recorded_batch_is_the_third_one_of_the_lesson(recorded):
    """The page's own run printed the score of the record; both have the same settings."""
    (row,) = experiments.load_results("one_batch")
    cells = nbformat.read(NOTEBOOKS / "06_ppo.ipynb", 4).cells
    (cell,) = [c for c in cells if "mean score of each batch" in c.source]
    printed = json.loads(cell.outputs[0]["text"].split(":")[1])
    assert printed == [round(s, 2) for s in experiments.results("one_batch_history").score]
    assert printed[-1] == round(row["score"], 2) and sorted(recorded.text.unique()) == [0, 1, 2, 3]
    assert recorded[recorded.step == 0].ratio.to_numpy() == pytest.approx(1.0, abs=1e-4)
    same = ["token", "old_logprob", "ref_logprob", "reward", "value", "advantage", "return"]
    first = recorded[recorded.step == 0][same].reset_index(drop=True)
    for step in range(1, 5):  # all but the ratio is fixed for the whole step
        assert recorded[recorded.step == step][same].reset_index(drop=True).equals(first)


def test_moving_is_one_of_three_tokens_and_its_advantage_is_the_sum_of_the_later_errors(recorded):
    rows = recorded[(recorded.text == 1) & (recorded.step == 0)]
    assert "".join(rows.token).startswith("A moving portrait")
    word, later = (
        followed(recorded, 1, " moving").iloc[0],
        followed(recorded, 1, " portrait").iloc[0],
    )
    assert word.td_error == pytest.approx(word.reward + later.value - word.value, abs=1e-4)
    assert word.advantage == pytest.approx(word.td_error + 0.95 * later.advantage, abs=1e-4)
    assert word["return"] == pytest.approx(word.advantage + word.value, abs=1e-4)
    assert later.value < word.value and word.td_error < 0 < word.advantage


def test_the_tokens_that_the_clip_stops_and_does_not_stop(recorded):
    up, down, back = (
        followed(recorded, *which) for which in ((0, "or"), (1, "er"), (0, " offers"))
    )
    # the gradient of update n + 1 is that of reading n
    assert up.advantage[0] > 0 and up.ratio[3] < 1.2 < up.ratio[4] and up.used[3]
    assert not up.clipped[3] and up.clipped[4]
    assert down.advantage[0] < 0 and down.clipped[3] and down.clipped[4] and not down.used[3]
    assert back.advantage[0] > 0 and back.ratio[4] < 0.8 and not back.clipped[4]


# ---- section 5: why a clipped token moves on. *er* is this token of the whole batch:


ER = (1, 11)  # response, position
# Its ratio before and after update 4, measured by `third_step`.
MOMENTUM_ONLY = (0.7281, 0.6215)  # the gradient of update 4 is set to 0
OTHERS_ONLY = (0.8844, 0.8423)  # the advantage of *er* is set to 0


def third_step(*, silent=False, no_own_push=False):
    """The third step of the lesson's run, as it is or with one change.

    Args:
        silent: the gradient of update 4 is 0.
        no_own_push: the advantage of *er* is 0.

    Returns:
        (5, B, R) log-ratios before each update and after the last.
    """
    config = one_batch_config({"seed": 0})
    policy, tokenizer = models.load_policy("tiny-reviews-sft")
    reward_model, _ = models.load_scalar("tiny-reviews-reward")
    actor, batches, readings = copy.deepcopy(policy), [], []

    def draw(*args, **given):
        batches.append(models.sample(*args, **given))
        return batches[-1]

    def gae(*args, **given):
        advantages, returns = core.gae(*args, **given)
        if no_own_push and len(batches) == config.steps:
            advantages[ER] = 0
        return advantages, returns

    def read():
        batch = batches[-1]
        with torch.no_grad():
            new = models.policy_logprobs(actor, batch, temperature=config.sampling.temperature)
        readings.append(new - batch.old_logprobs)

    def clip(*args, **given):
        if len(batches) == config.steps:
            read()
        return core.ppo_clip(*args, **given) * (0 if silent and len(readings) == 4 else 1)

    score = rewards.rollout_score(reward_model, tokenizer.eos_token_id)
    loops.train_ppo(
        actor,
        copy.deepcopy(reward_model),
        tokenizer,
        tasks.reviews.rl_prompts(),
        score,
        config,
        formulas=loops.PPOFormulas(sample=draw, gae=gae, ppo_clip=clip),
    )
    read()
    return torch.stack(readings)


@pytest.mark.slow
def test_a_clipped_token_moves_on_by_momentum_and_by_the_push_of_other_tokens(recorded):
    real = third_step()
    er = followed(recorded, 1, "er")
    place = (slice(None), *ER)
    assert real[place].exp().tolist() == pytest.approx(er.ratio.tolist(), abs=0.01)
    momentum, others = third_step(silent=True), third_step(no_own_push=True)
    assert momentum[place].exp()[3:].tolist() == pytest.approx(MOMENTUM_ONLY, abs=0.01)
    assert others[place].exp()[3:].tolist() == pytest.approx(OTHERS_ONLY, abs=0.01)


# ---- section 2: the error of the single ratio


def not_good(scale):
    """A row of the table: the change of the old policy to the new one is multiplied by `scale`.

    *good* after *not* has the advantage 1, the other words -1. The old policy writes both in equal
    parts, so its mean advantage is 0.
    """
    old, reached, good = 0.5, 0.5 + scale * (0.1 - 0.5), 0.5 + scale * (0.6 - 0.5)
    mean = good - (1 - good)
    parts = good, 1 - good, mean, old, mean, old * mean, reached, mean, reached * mean
    return *parts, old - reached, mean, (old - reached) * mean


def exact_world(seed):
    """A world, and the exact advantage under its start of each token of each response."""
    world = core.World.random(3, 3, seed=seed)
    values, action_values = world.values(world.ref_logits)
    exact = (action_values - values[:, None])[world.visited, world.response_ids]
    return world, torch.where(world.response_mask, exact, 0.0)


@pytest.mark.parametrize("seed", range(3))
def test_with_the_product_of_ratios_and_exact_advantages_the_estimate_has_no_error(seed):
    world, exact = exact_world(seed)
    start, mask, probs = world.ref_logits, world.response_mask, world.probs(world.ref_logits)
    far = start + 2 * torch.randn(start.shape, generator=torch.Generator().manual_seed(seed))
    log_ratio = torch.where(mask, world.logprobs(far) - world.logprobs(start), 0.0)
    true = world.objective(far) - world.objective(start)
    product, single = (
        probs @ (weight.exp() * exact).sum(1) for weight in (log_ratio.cumsum(1), log_ratio)
    )
    assert torch.isclose(product, true) and (single - true).abs() > 0.05


@pytest.mark.parametrize("seed", range(3))
def test_the_gain_is_the_new_policys_mean_of_the_advantages_of_the_old_one(seed):
    """And those of a response add up to its score minus the value of the prompt."""
    world, exact = exact_world(seed)
    start, before = world.ref_logits, world.objective(world.ref_logits)
    assert torch.allclose(exact.sum(1), world.rewards - before)
    far = start + 2 * torch.randn(start.shape, generator=torch.Generator().manual_seed(seed))
    gain = world.objective(far) - before
    assert torch.isclose(world.probs(far) @ exact.sum(1), gain)


@pytest.mark.parametrize("seed", range(3))
def test_at_the_old_policy_the_estimate_has_the_gradient_of_the_true_score(seed):
    """So ten times smaller changes leave about a hundred times smaller errors."""
    world, exact = exact_world(seed)
    start, probs, before = (
        world.ref_logits,
        world.probs(world.ref_logits),
        world.logprobs(world.ref_logits),
    )

    def estimate_and_score(logits):
        estimate = probs @ ((world.logprobs(logits) - before).exp() * exact).sum(1)
        return estimate, world.objective(logits) - world.objective(start)

    logits = start.clone().requires_grad_(True)
    slopes = [torch.autograd.grad(x, logits)[0] for x in estimate_and_score(logits)]
    assert torch.allclose(*slopes)
    error = []
    for length in (0.1, 0.01):
        estimate, score = estimate_and_score(start + length * slopes[0])
        error.append((estimate - score).abs().item())
    assert 80 < error[0] / error[1] < 125


# ---- the exact world, in section 3, exercise 3 and "Going further"


WORLD = core.World.random(3, 3, seed=0)


def logprobs(logits):
    """(K, 15, R) of K policies at once, 0 where masked."""
    every = torch.arange(len(logits))[:, None, None]
    tokens = logits.log_softmax(-1)[every, WORLD.visited, WORLD.response_ids]
    return torch.where(WORLD.response_mask, tokens, 0.0)


def drawn_batches(count):
    """(count, 4) responses, drawn as in the lesson."""
    generator = torch.Generator().manual_seed(0)
    probs = WORLD.probs(WORLD.ref_logits).expand(count, -1)
    return torch.multinomial(probs, 4, replacement=True, generator=generator)


def walks(count, *, updates=60):
    """Change of the true expected return of `count` policies, each updated on a batch of its own.

    Returns:
        (count, updates + 1) with the clip, and without it; the same of PPO's own estimate. The
        lesson does this one by one.
    """
    rows = drawn_batches(count)
    pick = torch.arange(count)[:, None], rows
    scores, mask = WORLD.rewards[rows], WORLD.response_mask[rows]
    advantages = (scores - (scores.sum(1, keepdim=True) - scores) / 3)[..., None]
    start = WORLD.ref_logits.expand(count, -1, -1)
    old, paths, estimates = logprobs(start)[pick], [], []
    for low, high in ((0.8, 1.2), (0.0, 1e9)):
        logits, path, estimate = start, [], []
        for _ in range(updates + 1):
            path.append(logprobs(logits).sum(2).exp() @ WORLD.rewards)
            moved = logits.clone().requires_grad_(True)
            ratio = (logprobs(moved)[pick] - old).exp()
            used = torch.where(mask, ratio * advantages, 0.0).sum(2).mean(1)
            estimate.append(used.detach())
            gain = torch.minimum(ratio * advantages, ratio.clamp(low, high) * advantages)
            torch.where(mask, gain, 0.0).sum(2).mean(1).sum().backward()
            logits = logits + moved.grad
        paths.append(torch.stack(path, 1) - WORLD.objective(WORLD.ref_logits))
        estimates.append(torch.stack(estimate, 1) - estimate[0][:, None])
    return *paths, *estimates


def learned(rows, advantages, updates):
    """The probability of the last response of a batch, before and after updates without the clip."""
    old, logits = WORLD.logprobs(WORLD.ref_logits), WORLD.ref_logits
    for _ in range(updates):
        logits = logits.detach().requires_grad_(True)
        ratio = (WORLD.logprobs(logits) - old).exp()[rows]
        (ratio * advantages[:, None]).sum(1).mean().backward()
        logits = logits + logits.grad
    return WORLD.probs(WORLD.ref_logits)[rows[-1]].item(), WORLD.probs(logits)[rows[-1]].item()


def distances(updates=60):
    """(2, updates + 1, 40): KL of each policy from the old one, with the clip and without it."""
    rows, start = drawn_batches(40), WORLD.ref_logits.expand(40, -1, -1)
    pick, mask = (torch.arange(40)[:, None], rows), WORLD.response_mask[rows]
    scores, before, found = WORLD.rewards[rows], logprobs(start), []
    advantages = ((scores - scores.mean(1, keepdim=True)) * 4 / 3)[..., None]
    for low, high in ((0.8, 1.2), (0.0, 1e9)):
        logits, path = start, []
        for _ in range(updates + 1):
            now = logprobs(logits).sum(2)
            path.append((now.exp() * (now - before.sum(2))).sum(1))
            moved = logits.clone().requires_grad_(True)
            ratio = (logprobs(moved) - before)[pick].exp()
            gain = torch.minimum(ratio * advantages, ratio.clamp(low, high) * advantages)
            torch.where(mask, gain, 0.0).sum(2).mean(1).sum().backward()
            logits = logits + moved.grad
        found.append(torch.stack(path))
    return torch.stack(found)


def at_the_kl(wanted, kl, scores):
    """The score of each walk where its KL first reaches `wanted`: on the line between two updates.

    Args:
        wanted: (40,), kl: (updates + 1, 40), scores: (40, updates + 1).
    """
    walk, after = torch.arange(len(scores)), (kl >= wanted).long().argmax(0)
    share = (wanted - kl[after - 1, walk]) / (kl[after, walk] - kl[after - 1, walk])
    return scores[walk, after - 1] + share * (scores[walk, after] - scores[walk, after - 1])


@pytest.fixture(scope="module")
def reused():
    return walks(40)


def test_a_few_updates_take_what_the_clip_allows(reused):
    clip = reused[0]
    assert clip.mean(0)[5] > 0.95 * clip.mean(0)[-1]


def test_three_updates_without_the_clip_beat_sixty_with_it(reused):
    clip, free, *_ = reused
    assert free.mean(0)[3] > clip.mean(0)[-1] and free[:, 3].min() > clip[:, -1].min()
    assert free[:, 3].min() > 0 > free[:, 5].min()


def promises(world, clip, updates=60):
    """(updates + 1, 2): the surrogate with exact advantages, and the true score, as changes."""
    start, mask = world.ref_logits, world.response_mask
    before, probs = world.logprobs(start), world.probs(start)
    values, action_values = world.values(start)
    advantages = action_values[world.visited, world.response_ids] - values[world.visited]
    advantages = torch.where(mask, advantages, 0.0)
    logits, path = start, []
    for _ in range(updates + 1):
        logits = logits.detach().requires_grad_(True)
        ratio = (world.logprobs(logits) - before).exp()
        gain = ratio * advantages
        path.append([(probs @ gain.sum(1)).item(), world.objective(logits).item()])
        if clip:
            gain = torch.minimum(gain, ratio.clamp(0.8, 1.2) * advantages)
        (probs @ gain.sum(1)).backward()
        logits = logits + logits.grad
    return torch.tensor(path) - torch.tensor(path[0])


@pytest.mark.parametrize("seed", range(5))
def test_without_the_clip_the_surrogate_promises_too_much_and_with_it_hardly(seed):
    world = core.World.random(3, 3, seed=seed)
    promised, true = promises(world, clip=False).T
    error = promised - true
    assert error[60] > 0.2 and error[5].abs() < 0.6 * error[60]
    if seed == 0:  # the world of the lesson
        assert (error[2:] - error[1:-1]).min() > 0  # it grows with every update
    held, with_clip = promises(world, clip=True).T
    assert (held - with_clip)[-1].abs() < 0.3 * error[60]


def pulled(alpha, eps=0.2, updates=60, rate=1.0):
    """Exercise 3: (S, V) ratios after each update on the exact batch, and the true score at the end.

    Returns:
        (updates + 1, S, V) of each word after each prefix, and the score.
    """
    start, mask = WORLD.ref_logits, WORLD.response_mask
    before, probs = WORLD.logprobs(start), WORLD.probs(start)
    values, action_values = WORLD.values(start)
    advantages = action_values[WORLD.visited, WORLD.response_ids] - values[WORLD.visited]
    side = advantages.sign()  # 1 for a good token, -1 for a bad one
    logits, path = start, []
    for _ in range(updates + 1):
        logits = logits.detach().requires_grad_(True)
        ratio = (WORLD.logprobs(logits) - before).exp()
        path.append((logits.log_softmax(-1) - start.log_softmax(-1)).exp().detach())
        score = WORLD.objective(logits).item()
        beyond = (side * (ratio - 1) - eps).clamp(min=0)
        gain = ratio * advantages - (1 + alpha) * beyond * advantages.abs()
        (probs @ torch.where(mask, gain, 0.0).sum(1)).backward()
        logits = logits + rate * logits.grad
    return torch.stack(path), score


def largest(ratios):
    """The largest ratio of a word after each update."""
    return ratios.flatten(1).max(1).values


def advantages_of_words():
    """(S, V), exact."""
    values, action_values = WORLD.values(WORLD.ref_logits)
    return action_values - values[:, None]


def test_the_pull_back_keeps_the_ratio_near_the_range_and_gains_less():
    (clip, clip_score), (back, back_score) = pulled(alpha=0), pulled(alpha=0.3)
    clip, back = largest(clip), largest(back)
    assert clip[-1] > clip[10] > 1.35 and clip[-1] > 1.6  # it goes on rising
    assert 1.2 < back[20:].min() and back.max() < 1.35
    assert WORLD.objective(WORLD.ref_logits) < back_score < clip_score


def test_after_ba_two_bad_words_are_held_at_the_end_of_their_range_and_push_a_beyond_its_own():
    """With small steps, too: the pull on *a* is weaker than the two pushes, and a larger one is not."""
    ba = WORLD.states.index((1, 0))
    assert (advantages_of_words()[ba] > 0).tolist() == [True, False, False]
    good, *bad = pulled(alpha=0.3, rate=0.1, updates=600)[0][-1, ba]
    assert good > 1.27 and all(0.79 < word < 0.81 for word in bad)
    assert pulled(alpha=1, rate=0.1, updates=600)[0][-1, ba, 0] < 1.22


# ---- every number of the prose


def test_the_numbers_of_the_prose(tour, recorded, reused):
    eps, ratio = 0.2, 1.5
    config = loops.PPOConfig()
    temperature = config.sampling.temperature
    world = len(WORLD.sequences)
    clip, free, clip_estimate, free_estimate = reused
    updates = config.epochs * config.batch_size // config.minibatch_size
    picture = (NOTEBOOKS.parent / "docs/images/ppo_step.svg").read_text()
    with lesson("06") as said:
        # 1 to 4: definitions and settings
        own = experiments.results("parts").groupby("variant")
        shares = own.sampling_seconds.sum() / own.seconds.sum()
        said("sampling is often the slow part of RLHF", shares.max() < 1 / 4)
        said("A ratio of", ratio, ratio - 1)
        said("leaves a ratio between", 1 - eps, 1 + eps)
        said("The usual", config.clip_eps)
        chosen_by_old, by_new = 20, 30
        more = by_new / chosen_by_old
        said("continued the same prefix", 100, chosen_by_old, by_new)
        said("The batch has only", chosen_by_old, by_new, chosen_by_old, more, more == ratio)
        reached, written = 0.1 / 0.5, 0.6 / 0.5  # the ratios of *not*, and of *good* after it
        should = reached * written
        said("| *not* |", 0.5, 0.1, reached, reached)
        said("| *good* after *not* |", 0.5, 0.6, written, reached, written, should)
        often, now, counted = 100 * 0.5 * 0.5, 100 * 0.1 * 0.6, 100 * 0.5 * 0.5 * written
        said("comes to this *good* less often. In", 100, often, now)
        said("But with the weight", written, often, counted)
        said("count as 30: five times too many", counted / now == pytest.approx(5))
        assert often * should == pytest.approx(now)
        large, small = (not_good(scale) for scale in (1, 0.1))
        said("After *not*, let *good* have the advantage", 1, -1, 0)
        ratios = 0.6 / 0.5, 0.4 / 0.5  # of *good* after *not*, and of the other words
        weighted = 0.5 * ratios[0] - 0.5 * ratios[1]
        said("Weighted with their ratios", *ratios)
        said("the mean advantage is", 0.5, ratios[0], 0.5, ratios[1], weighted, *large[:2])
        assert weighted == pytest.approx(large[2])
        said("PPO's estimate multiplies it by", large[3])
        said("The gain multiplies it by", large[6])
        said("| as above |", *large)
        said("| ten times smaller |", *small)
        hundred = large[-1] / small[-1]
        said("the error is a hundred times smaller", hundred == pytest.approx(100))
        policy_share, reference_share = 0.4, 0.2
        said("| **KL coefficient** |", config.kl.kl_coef)
        said("Take care with negative terms:", -(1 - eps), -0.6)
        by_hand(said, eps)
        epochs = loops.PPOConfig.plain().epochs
        said(
            "is one pass over the batch. We make",
            epochs,
            config.batch_size,
            2,
            config.minibatch_size,
            updates,
        )
        said("The actor writes a short review", config.batch_size)
        said("stands wherever log-probabilities are computed", temperature)
        said("After the last token", 0)
        said("Right after sampling, every ratio is", 1)
        first = recorded[recorded.step == 0]
        said(
            "| *log-ratio* | $\\pi_{\\text{old}}$ with the reference", 0, first.kl.abs().max() > 0.1
        )
        said("| *importance ratio* $\\rho_t$ |", 1, first.ratio.sub(1).abs().max() < 1e-4)
        shown = experiments.results("one_batch_history").score
        said("The mean scores, about", *shown)
        lesson_04 = NOTEBOOKS / "src" / "04_the_policy_gradient.py"
        rate = re.search(r"OptimiserConfig\(lr=([^)]+)\)", lesson_04.read_text("utf-8"))[1]
        five_times = float(rate) / one_batch_config({"seed": 0}).actor.lr == pytest.approx(5)
        assert "KLConfig(kl_coef=0)" in lesson_04.read_text("utf-8")
        said("(REINFORCE in lesson 04 had five times this learning rate", five_times)
        spread = first_step_of_the_loop()[2]
        said("a standard deviation of about", spread, config.batch_size, 1 / 8)
        assert 1 / config.batch_size**0.5 == 1 / 8 and shown.max() - shown.min() < 2 / 8
        # 5: one token
        said("Responses are numbered from", recorded.text.min(), 1, 1)
        said("Here are these three tokens before update", 1, 1)
        said(
            "The picture shows training step", int(re.search(r"This is step (\d+) of", picture)[1])
        )
        token, after = (followed(recorded, 1, name) for name in (" moving", " portrait"))
        now, then = token.iloc[0], after.iloc[0]
        assert now.reward == pytest.approx(-config.kl.kl_coef * now.kl, abs=1e-4)
        said("| log-ratio |", now.old_logprob, -now.ref_logprob, now.kl)
        said("| reward $r_t$ |", -config.kl.kl_coef, now.kl, now.reward)
        said("| value $\\hat V_t$, and", now.value, then.value)
        said("| TD error $\\delta_t$ |", now.reward, then.value, now.value, now.td_error)
        said("| advantage $\\hat A_t$ |", now.td_error, config.lam, then.advantage, now.advantage)
        said("from the end: *portrait* has", then.advantage)
        said("| critic's target |", now.advantage, now.value, now["return"])
        logprob = token.logprob[1], -token.old_logprob[1]
        said("| ratio in update", 2, *logprob, math.exp(sum(logprob)))
        assert math.exp(sum(logprob)) == pytest.approx(token.ratio[1], abs=5e-5)
        said("The log-probability", token.logprob[1])
        said("| loss in update", 2, -token.ratio[1], now.advantage, -token.ratio[1] * now.advantage)
        assert token.used.tolist() == [False, True, True, False, False]
        first_use = token.used.tolist().index(True) + 1  # updates count from 1
        said("This response is first used in update", first_use, 1, token.ratio[0])
        (the,) = recorded[recorded.clipped & recorded.used & (recorded.step == 3)].itertuples()
        assert (the.token, the.text) == (" the", 0) and the.advantage > 0
        place = the.step + 1, the.position, the.text
        said("One of the tokens that update", *place, the.advantage, the.ratio)
        said("Its loss is", -(1 + eps), the.advantage, -(1 + eps) * the.advantage)
        said("whatever its exact ratio. So its gradient is", 0)
        # the microscope, in "Going further"
        said("Here are four responses, numbered from", recorded.text.min())
        said("shows the logarithm of the importance ratio:", math.log(1 + eps), 1 + eps)
        said("ratio before update", 4)
        up, down, back = (
            followed(recorded, *which) for which in ((0, "or"), (1, "er"), (0, " offers"))
        )
        said("A clipped token moves on, although update", 4, not down.used[3])
        assert down.used.tolist() == [False, True, True, False, False]
        real = tuple(down.ratio[3:])
        change = [math.log(after / before) for before, after in (real, MOMENTUM_ONLY, OTHERS_ONLY)]
        said("**Why *er* moves on.** In update", 4, -change[0])
        said("- The gradient of update", 4, 0, -change[1])
        assert change[1] == pytest.approx(change[0], rel=0.1)
        said("- The advantage of *er* is set to", 0, updates, 4, -change[2])
        third = 0.28 < change[2] / change[0] < 0.38
        said("So about a third of the momentum comes", third)
        whole = math.log(OTHERS_ONLY[1]) / math.log(down.ratio[4])
        said("Of the fall in all four updates, too,", 0.3 < whole < 0.4)
        said("| *or*, response", 0, up.advantage[0], up.ratio[3], up.ratio[4])
        said("| *er*, response", 1, down.advantage[0], down.ratio[3], down.ratio[4])
        said("| *offers*, response", 0, back.advantage[0], back.ratio[3], back.ratio[4])
        said("One update moved it beyond", 1 + eps)
        said("The clip does not hold a token at", 1 + eps, up.ratio[4] > 1 + eps > up.ratio[3])
        # the small world, in section 3 and "Going further"
        free_promise, held = (promises(WORLD, clip=c)[-1] for c in (False, True))
        made = clip.shape[1] - 1
        before_all = WORLD.objective(WORLD.ref_logits)
        worst = free[:, -1].argmin()
        assert worst == clip[:, -1].argmin() == free[:, 3].argmin()
        rows = drawn_batches(len(clip))[worst]
        assert f"batch = torch.tensor({rows.tolist()})" in SOURCE
        said("Let us use one small batch far too often", made)
        said("A response has at most three words, so", world)
        said("The old policy has the true score", before_all)
        scores = WORLD.rewards[rows]
        seen = scores - (scores.sum() - scores) / 3
        for response, place in (("aa.", 0), ("bb.", 1), ("bab", 2)):
            letters = "".join("ab."[word] for word in WORLD.response_ids[rows[place]])
            said(f"| *{response}* |", scores[place], seen[place], letters == response)
        said("| *bab*, again |", scores[3], seen[3], bool(rows[2] == rows[3]))
        rises = bool((free_estimate[worst].diff() > 0).all())
        # `walks` gives each token the whole advantage, and takes steps a third as large
        said("PPO's estimate rises all the way, to", free_estimate[worst, -1] / 3, rises)
        said("But the true score *falls* by", -free[worst, -1])
        said("both move little: the estimate rises by", clip_estimate[worst, -1] / 3)
        said("0.22, and the true score falls by", -clip[worst, -1])
        assert free[worst].argmax() == 2
        said("the true score even rises, by", free[worst].max())
        said("All four responses are worse than the mean", before_all, scores.max() < before_all)
        said("without the clip, its probability rises from", *learned(rows, seen, made))
        said("This batch is unlucky: of", len(clip))
        rise = (free[:, -1] > 0).sum()
        assert ((free[:, -1] > clip[:, -1]) | (free[:, -1] < 0)).all()
        said("most damage. On", rise, free[:, -1].mean(), clip[:, -1].mean())
        said("The batch of section 3 is one of", len(clip), 4)
        average = free[:, -1].mean(), clip[:, -1].mean()
        said("exercise 3 the true score rises by", free_promise[1], free_promise[0], held[1])
        further = distances()
        stopped = at_the_kl(further[0, -1], further[1], free)
        difference = stopped - clip[:, -1]
        error = (difference.std() / len(clip) ** 0.5).item()
        said("run with the clip has after", made)
        said("The true score then rises by", stopped.mean(), average[1])
        said("And no batch ends below its start", bool(stopped.min() > 0))
        said("there is no clear difference", abs(difference.mean().item()) < 1.96 * error)
        said("**So stopping early** can replace the clip", stopped.min() > clip[:, -1].min())
        limits = bool((further[1, -1] > further[0, -1]).all())
        said("It limits how much one batch can do", limits)
        more = free.mean(0) - clip.mean(0)  # after one update nothing is clipped yet
        assert more[2:].min() > 0.05
        higher = (free[:, -1] > clip[:, -1]).sum().item()
        below = free[:, -1] < 0
        count = below.sum().item()
        said("- **At equal updates** no clip gains more:", *average, higher, len(clip))
        assert not (below & (free[:, -1] > clip[:, -1])).any() and higher + count == len(clip)
        ends = free[below, -1].sort().values
        said("**How rare is the damage?** Of the", len(clip), count, *ends, clip[worst, -1])
        assert (clip[:, -1] < 0).nonzero().flatten().tolist() == [worst]
        # 6: a run
        said("`train_ppo` with its usual settings:", config.steps, config.batch_size, len(SEEDS))
        higher = config.actor.lr / one_batch_config({"seed": 0}).actor.lr
        said("which is five times as large at its highest", higher == pytest.approx(5))
        said(
            "| **score** |",
            round(tour[tour.step == 0].score.mean()),
            tour[tour.step > 15].score.mean(),
        )
        liked, by_reference = (policy_share, 1 - policy_share), (reference_share, 0.8)
        parts = [p * math.log(p / q) for p, q in zip(liked, by_reference, strict=True)]
        said("Say that two alternatives are possible", *liked, *by_reference)
        odds = liked[1] / by_reference[1]
        said(
            "Then the mean log-ratio is",
            liked[0],
            2,
            liked[1],
            odds,
            parts[0],
            -parts[1],
            sum(parts),
        )
        assert liked[0] / by_reference[0] == 2
        said("| **gold** |", -4, 4)
        said("| **kl** |", tour[tour.step > 7].kl.mean())
        judged = experiments.results("tour").set_index("method")
        length = judged.length.groupby("method").mean()
        said("On average PPO's reviews are shorter", length["PPO"], length["SFT"])
        films = len(experiments.results("ablations").gold_by_prompt.iloc[0])
        test_films, shown = set(tasks.reviews.eval_prompts("test")), judged.samples.iloc[0]
        said("Here is the first one for each of", 3, films)
        assert films == len(test_films) and set(shown) <= test_films
        assert not test_films & set(tasks.reviews.rl_prompts())
        logged = experiments.results("parts_history", "ablations_history")
        later = logged[logged.step > 0].groupby(["variant", "seed"])[["score", "kl"]].mean()
        more = later.loc["as it is"] - later.loc["REINFORCE"]
        said("the whole training is higher by", more.score.min(), more.score.max())
        said("But it also moves further from the reference", more.kl.min() > 0)
        # exercises and questions
        said("true at real tokens. Return", 0)
        said("NaN times", 0)
        said("have the shapes of exercise 1. Return", 0)
        said("can be any positive number, also above", 1)
        said("use it in the small world of section 3. We make", made, world)
        said("does each of them end, above or below", 1 + eps)
        (plain, plain_score), (back, back_score) = pulled(alpha=0), pulled(alpha=0.3)
        after = len(plain) - 1
        said("| before the first update |", 1, before_all)
        said("| PPO's clip, after", after, largest(plain)[-1], plain_score)
        said("after 60 updates | 1.70, still rising", largest(plain)[-1] == largest(plain).max())
        said("| the pull with", after, largest(back)[-1], back_score)
        said("**Why does the pull not end at", 1 + eps)
        said("because their probabilities add up to", 1)
        ba, aa = WORLD.states.index((1, 0)), WORLD.states.index((0, 0))
        good, *bad = WORLD.ref_logits[ba].softmax(-1)
        said("Its next token is *a* with the probability", good, *bad)
        good, *bad = back[-1, ba]
        said("to the end of their own range, to about", *bad[:1])
        said("to the end of their own range, to about", *bad[1:])
        said("its ratio becomes", good, good == back[-1].max())
        best = advantages_of_words()
        assert best.max() == best[aa, 0]
        said("Its ratio becomes", back[-1, aa, 0], plain[-1, aa, 0])
        said(
            "and pays for it: the score rises by", back_score - before_all, plain_score - before_all
        )
        said("Use the temperature", temperature, config.minibatch_size)
        said("Why is every ratio", 1)
        said("If a ratio differs from", 1)
        said("All ratios are", 1)
        # going further
        said("of many ratios is often far from", 1)


def by_hand(said, eps):
    """The table of four tokens."""
    for name, old, new, advantage in (
        ("good, already up", 0.5, 0.75, 1),
        ("good, but down", 0.5, 0.3, 1),
        ("bad, already down", 0.5, 0.3, -1),
        ("bad, but up", 0.2, 0.3, -1),
    ):
        ratio = new / old
        clipped = min(max(ratio, 1 - eps), 1 + eps) * advantage
        loss = -min(ratio * advantage, clipped)
        said(name, new, old, ratio, advantage, ratio * advantage, clipped, loss)
