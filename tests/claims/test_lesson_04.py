"""Lesson 04, the policy gradient: every number of its prose, and what the lesson leaves out."""

import copy
import itertools
import math
import re
from fractions import Fraction

import nbformat
import pandas as pd
import pytest
import torch

from minirlhf import core, experiments, loops, models, rewards, tasks
from minirlhf.classroom import check
from minirlhf.classroom.course import NOTEBOOKS
from tests.claims.prose import lesson
from tests.loops.test_by_hand import lesson_source
from tests.loops.test_by_hand import score as share_of_early_tokens
from tests.tiny import ending_policy, tiny_tokenizer

SMALL = core.World.from_reward(
    ("good", "bad", "."), 2, lambda w: float(w.count("good") - w.count("bad"))
)
OFFSET = 20
RANDOM = core.World.random(3, 3, seed=0)
POLICY = RANDOM.ref_logits + torch.randn(
    RANDOM.ref_logits.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64
)


def of_tokens(world, logits):
    """The gradient of log pi of every token, (N, R, S, V)."""
    return torch.autograd.functional.jacobian(world.logprobs, logits)


def angle(a, b):
    """The cosine of two gradients."""
    return torch.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()


# ---- sections 3 and 5: by hand


def test_the_table_of_the_small_world():
    logits = SMALL.ref_logits
    values, q = SMALL.values(logits)
    reach = torch.tensor([1, 1 / 3, 1 / 3]).double()
    assert values.tolist() == pytest.approx([0, 1, -1], abs=1e-12)
    by_hand = reach[:, None] * logits.softmax(1) * (q - values[:, None])
    torch.testing.assert_close(by_hand, SMALL.gradient(logits))
    torch.testing.assert_close(by_hand[0], 3 * by_hand[1])  # docs/teaching.md, session 2


def one_logit(said):
    """Section 3: what pushes the logit of *good* after the prefix *good*."""
    values, q = SMALL.values(SMALL.ref_logits)
    gradient, pi, parts = SMALL.gradient(SMALL.ref_logits)[1, 0], 1 / 3, torch.zeros(2).double()
    for name, word in (("good good", "good"), ("good bad", "bad"), ("good .", ".")):
        index = SMALL.labels.index(name.replace(" ", ""))
        chance, score = SMALL.probs(SMALL.ref_logits)[index], SMALL.rewards[index].item()
        up, down = score * (word == "good"), pi * score
        parts += chance * torch.tensor([up, down], dtype=torch.float64)
        slope = (word == "good") - pi
        said(f"| *{name}* |", chance, score, slope, score, up - down)
        assert slope * score == pytest.approx(up - down)
    up, down = parts.tolist()
    assert up - down == pytest.approx(gradient.item())
    reach = SMALL.probs(SMALL.ref_logits)[[y.startswith("good") for y in SMALL.labels]].sum()
    said("| $P(\\text{reach } s)$ |", reach)
    said("| $\\pi(a \\mid s)$ |", pi)
    said("| $Q(s,a) - V(s)$ |", q[1, 0], values[1])
    assert reach * pi * (q[1, 0] - values[1]) == pytest.approx(gradient.item())
    said("| **up** |", reach, pi, q[1, 0], reach, pi, q[1, 0], up)
    said("| **down** |", reach, -pi, values[1], reach, -pi, values[1], -down)


def table_of_four_responses(said):
    """Section 5: what each response does to the first logits of *good* and *bad*."""
    names = ("good good", "bad .", "bad . again", ". at once")
    scores = [22, 19, 19, 20]
    for name, score in zip(names, scores, strict=True):
        index = SMALL.labels.index(re.sub("at once|again| ", "", name))
        assert score == SMALL.rewards[index] + OFFSET
    sums = torch.zeros(2, 2, dtype=torch.float64)
    mean = sum(scores) / 4
    for name, score in zip(names, scores, strict=True):
        pushes = [
            [x * ((name.split()[0] == word) - 1 / 3) for word in ("good", "bad")]
            for x in (score, score - mean)
        ]
        sums += torch.tensor(pushes, dtype=torch.float64)
        said(f"| {name} | {score} |", *pushes[0], score - mean, *pushes[1])
        said(f"| {name} |", score)
    (good, bad), (good_after, bad_after) = (sums / 4).tolist()
    said("| **mean** |", mean, good, bad, mean - mean, good_after, bad_after)
    truth = SMALL.gradient(SMALL.ref_logits)[0]
    assert good < 0 < bad and good_after / truth[0] == pytest.approx(bad_after / truth[1].item())


# ---- section 8: all batches of four responses


def bias_and_spread(numbers, size=4, world=SMALL, logits=None):
    """(bias, spread) in units of the true gradient; numbers: (M, size, R) or (M, size, 1)."""
    logits = world.ref_logits if logits is None else logits
    index, chance = world.groups(logits, size)
    truth = world.gradient(logits)
    gradients = of_tokens(world, logits)[index]
    estimates = torch.einsum("mbt,mbtsv->msv", numbers.expand(gradients.shape[:3]), gradients)
    mean = torch.einsum("m,msv->sv", chance, estimates) / size
    spread = (chance * (estimates / size - mean).square().sum((1, 2))).sum().sqrt()
    return ((mean - truth).norm() / truth.norm()).item(), (spread / truth.norm()).item()


def choices(size=4):
    """What may stand in front of the gradient, by name: (M, size, R) or (M, size, 1)."""
    index, _ = SMALL.groups(SMALL.ref_logits, size)
    score = SMALL.rewards[index][..., None]
    paid = torch.tensor([1.0, -1.0, 0.0]).double()[SMALL.response_ids]
    raised = score + OFFSET
    mean = raised.mean(1, keepdim=True)
    values = SMALL.by_token(SMALL.values(SMALL.ref_logits)[0])[index]
    return {
        "score": score,
        "return": core.reward_to_go(paid, SMALL.response_mask)[index],
        "raised": raised,
        "batch mean": raised - mean,
        "others": core.leave_one_out(raised[..., 0])[..., None],
        "value": raised - (values + OFFSET),
        "best": raised - raised.amax(1, keepdim=True),
    }


@pytest.fixture(scope="module")
def exact():
    return {name: bias_and_spread(numbers) for name, numbers in choices().items()}


def test_which_choices_are_biased(exact):
    for name in ("score", "return", "raised", "others", "value"):
        assert exact[name][0] < 1e-10, name
    assert exact["batch mean"][0] == pytest.approx(1 / 4)
    assert exact["best"][0] > exact["batch mean"][0]


def test_the_batch_mean_gives_three_quarters_of_the_mean_of_the_others():
    every = choices()
    torch.testing.assert_close(every["batch mean"], 0.75 * every["others"])


def mean_after_the_best(size):
    """(mean of the score minus the best of the batch, given the own score; the bias it makes).

    The mean is one number for each response, (N,). Its expected gradient is that of a world with
    these numbers as scores.
    """
    score, chance = SMALL.rewards, SMALL.probs(SMALL.ref_logits)
    heights = score.unique()
    at_most = torch.stack([chance[score <= h].sum() for h in heights]) ** (size - 1)
    of_best = torch.diff(at_most, prepend=torch.zeros(1).double())  # of the other responses
    numbers = (score[:, None] - torch.maximum(heights, score[:, None])) @ of_best
    moved = SMALL.ref_logits.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(SMALL.probs(moved) @ numbers, moved)
    truth = SMALL.gradient(SMALL.ref_logits)
    return numbers, ((gradient - truth).norm() / truth.norm()).item()


def test_the_best_score_as_baseline_keeps_the_order_of_the_scores(exact):
    """And the numbers are the means over the batches in which a response is the first one."""
    numbers, bias = mean_after_the_best(4)
    index, chance = SMALL.groups(SMALL.ref_logits, 4)
    for row, number in enumerate(numbers):
        first = index[:, 0] == row
        mean = (chance * choices()["best"][:, 0, 0])[first].sum() / chance[first].sum()
        assert number.item() == pytest.approx(mean.item(), abs=1e-9)
    assert bias == pytest.approx(exact["best"][0])
    for size in (4, 16):
        in_order = mean_after_the_best(size)[0][SMALL.rewards.argsort()]
        assert (in_order.diff() > -1e-12).all()


def test_the_value_has_the_spread_of_the_return_only_by_coincidence():
    logits = SMALL.ref_logits.clone()
    logits[:, 0] += 1  # a policy that likes *good*
    index, _ = SMALL.groups(logits, 4)
    paid = torch.tensor([1.0, -1.0, 0.0]).double()[SMALL.response_ids]
    returns = core.reward_to_go(paid, SMALL.response_mask)[index]
    values = SMALL.by_token(SMALL.values(logits)[0])[index]
    of_return, of_value = (
        bias_and_spread(x, logits=logits)
        for x in (returns, SMALL.rewards[index][..., None] - values)
    )
    assert of_return[0] < 1e-10 and of_value[0] < 1e-10
    assert abs(of_return[1] - of_value[1]) > 0.1


def test_the_cells_of_the_page_compute_these_numbers(exact):
    """The table is not saved with the page, so that nobody reads it before the prediction."""
    cells = nbformat.read(NOTEBOOKS / "04_the_policy_gradient.ipynb", 4).cells
    starts = (
        "world = core.World",
        "logits, mask = uniform",
        "batches, _ =",
        "rows = {",
    )
    code = [next(c.source for c in cells if c.source.startswith(start)) for start in starts]
    code[0] = code[0].split("show.world")[0]
    scope: dict = {"core": core, "torch": torch, "pd": pd}
    exec("\n".join(code), scope)
    names = list(exact)[:-1]  # "best" belongs to an exercise
    assert len(names) == len(scope["table"])
    for row, name in zip(scope["table"].values(), names, strict=True):
        assert row == pytest.approx(exact[name], abs=1e-9), name


# ---- section 9: learning


def learn(advantages_of, offset=0.0, **given):
    """The expected score before each step, as the lesson computes it: (runs, steps)."""
    return trained(advantages_of, offset, **given)[0]


def trained(advantages_of, offset=0.0, *, world=SMALL, steps=100, rate=0.5, runs=40):
    """(expected score before each step, probability of every response after the last)."""
    drawings = [torch.Generator().manual_seed(seed) for seed in range(runs)]
    logits = world.ref_logits.expand(runs, -1, -1)
    every, paths = torch.arange(runs)[:, None, None], []
    for _ in range(steps):
        moved = logits.clone().requires_grad_(True)
        tokens = moved.log_softmax(-1)[every, world.visited, world.response_ids]
        logprobs = torch.where(world.response_mask, tokens, 0.0).sum(2)
        probs = logprobs.detach().exp()
        paths.append(probs @ world.rewards)
        pairs = zip(probs, drawings, strict=True)
        rows = torch.stack([torch.multinomial(p, 16, True, generator=g) for p, g in pairs])
        advantages = torch.stack([advantages_of(world.rewards[r] + offset) for r in rows])
        (advantages * logprobs.gather(1, rows)).mean(1).sum().backward()
        logits = logits + rate * moved.grad
    return torch.stack(paths, 1), probs


def as_it_is(scores):
    return scores


def minus_the_others(scores):
    return scores - (scores.sum() - scores) / 15


@pytest.fixture(scope="module")
def learned():
    return {
        "score": learn(as_it_is),
        "raised": learn(as_it_is, OFFSET),
        "others": learn(minus_the_others, OFFSET),
        "plus 3": learn(as_it_is, 3),
        "best": learn(lambda r: r - r.max(), OFFSET),
        "fixed best": learn(lambda r: r - OFFSET - SMALL.rewards.max(), OFFSET),
        "slow": learn(as_it_is, OFFSET, rate=0.02, steps=1000, runs=5),
        "slow, others": learn(minus_the_others, OFFSET, rate=0.02, steps=1000, runs=5),
    }


def test_an_offset_of_20_hurts_and_a_baseline_repairs_it(learned):
    last = {name: path[:, -1] for name, path in learned.items()}
    assert last["score"].min() > 1.95 and last["others"].min() > 1.95
    difference = last["others"] - last["raised"]
    half = 1.96 * difference.std() / math.sqrt(len(difference))
    assert difference.mean() - half > 0.9
    assert last["raised"].min() < -0.9 and last["raised"].max() > 1.95
    gap = (learned["score"].mean(0) - learned["others"].mean(0)).abs().max()
    assert gap < 0.05  # one curve lies on the other
    assert last["plus 3"].min() > 1.9
    assert last["best"].min() > 1.95
    for name in ("others", "fixed best"):  # exercise 4: the same curve
        assert (learned["best"].mean(0) - learned[name].mean(0)).abs().max() < 0.05


def test_a_run_may_leave_the_response_that_it_has_settled_on(learned):
    """Section 9: with an offset; the lower edge of the band jumps between -2 and -1."""
    early, late = (trained(as_it_is, OFFSET, steps=n)[1] for n in (21, 101))
    settled = early.max(1).values > 0.9
    left = settled & (early.argmax(1) != late.argmax(1))
    assert settled.sum() > 30 and left.sum() > 10
    edge = learned["raised"].min(0).values[10:].round()
    assert edge[0] == -2 and edge[-1] == -1 and set(edge.tolist()) == {-2, -1}
    assert (edge[1:] != edge[:-1]).sum() == 3  # to -1, back to -2, and to -1 again


def test_the_others_mean_repairs_an_offset_in_a_random_world_too():
    raised, others = (learn(f, OFFSET, world=RANDOM, runs=20) for f in (as_it_is, minus_the_others))
    assert others[:, -1].mean() > raised[:, -1].mean() + 0.5
    mended = learn(lambda r: r - r.max(), OFFSET, world=RANDOM, runs=20)[:, -1]
    assert mended.min() > 1 and abs(mended.mean() - others[:, -1].mean()) < 0.2


# ---- section 10: the run on the page


def logged():
    """The table of section 10, as the page shows it: {"mean score": [...], "loss": [...]}."""
    cells = nbformat.read(NOTEBOOKS / "04_the_policy_gradient.ipynb", 4).cells
    (cell,) = [c for c in cells if c.source.startswith("log = train_by_hand")]
    lines = cell.outputs[-1]["data"]["text/plain"].splitlines()
    rows = [line.rsplit(None, len(lines[0].split()) - 1) for line in lines[1:]]
    return {name.strip(): [float(x) for x in numbers] for name, *numbers in rows}


def reviews_on_the_page():
    cells = nbformat.read(NOTEBOOKS / "04_the_policy_gradient.ipynb", 4).cells
    (cell,) = [
        c for c in cells if c.source.startswith('titles = tasks.reviews.eval_prompts("test")')
    ]
    return cell.outputs[0]["data"]["text/html"]


def test_the_loss_rises_with_the_score():
    table = logged()
    score, loss = table["mean score"], table["loss"]
    assert len(score) == 6 and score == sorted(score)
    assert score[-1] - score[0] > 1
    assert loss[-1] > loss[0] + 10


PRAISE = "funny touching compelling fascinating heartfelt entertaining moving well-made".split()


def test_each_review_has_words_of_praise_after_training():
    rows = re.findall("<tr>(.*?)</tr>", reviews_on_the_page())[1:]
    after = [re.findall("<td[^>]*>(.*?)</td>", row)[-1] for row in rows]
    assert len(after) == 3 and any("funny" in review for review in after)
    assert all(any(word in review for word in PRAISE) for review in after)


@pytest.mark.slow
def test_words_of_praise_have_become_more_likely_in_the_reviews_from_before():
    """The strips of section 10, from `train_group`, which leaves the weights of the page's loop."""
    start, tokenizer = models.load_policy("tiny-reviews-sft")
    reward_model, _ = models.load_scalar("tiny-reviews-reward")
    score = rewards.rollout_score(reward_model, tokenizer.eos_token_id)
    config = loops.GroupConfig.plain("reinforce", steps=6, kl=loops.KLConfig(kl_coef=0))
    assert config.prompts_per_step == 64 and config.optimiser.lr == 1e-4
    policy, _ = loops.train_group(
        copy.deepcopy(start), tokenizer, tasks.reviews.rl_prompts(), score, config
    )
    titles = tasks.reviews.eval_prompts("test")[:3]
    (batch,) = models.sample_text(start, tokenizer, titles, config=config.sampling, seed=0)
    with torch.no_grad():
        now = models.policy_logprobs(policy, batch, temperature=config.sampling.temperature)
    change, found = now - batch.old_logprobs, {}
    for row, ids, mask in zip(change, batch.response_ids, batch.response_mask, strict=True):
        for token, moved in zip(ids[mask].tolist(), row[mask].tolist(), strict=True):
            found.setdefault(tokenizer.decode([token]).strip(), []).append(moved)
    assert all(min(found[word]) > 0.7 for word in ("funny", "great"))
    assert all(max(found[word]) < -0.4 for word in ("but", "us", "eless"))
    assert max(found["starts"]) < -2 and max(found["."]) > 1.5  # as far as the words above
    # such words stand in reviews with other scores
    prompts, scores, texts = tasks.reviews.rl_prompts()[:384], [], []
    for batch in models.sample_text(start, tokenizer, prompts, config=config.sampling, seed=0):
        texts += models.decode(tokenizer, batch)
        scores += score(batch).tolist()
    scores = torch.tensor(scores)
    has = {w: torch.tensor([f" {w}" in text for text in texts]) for w in ("funny", "great", "but")}
    lead = {word: (scores[row].mean() - scores[~row].mean()).item() for word, row in has.items()}
    assert lead["funny"] > 0.3 and lead["great"] > 0.1 and lead["but"] < -0.1


# ---- section 10 and exercise 6: the loop, with pieces of it replaced


def two_logs(*changes):
    """The logs of section 10's loop on a tiny policy: as it is, and with pieces replaced."""
    logs, size = [], 64
    for replaced in ((), changes):
        source = lesson_source("04_the_policy_gradient", "train_by_hand")
        for right, wrong in replaced:
            assert source.count(right) == 1, right
            source = source.replace(right, wrong)
        tokenizer, policy = tiny_tokenizer(), ending_policy()
        names = {
            "core": core,
            "models": models,
            "torch": torch,
            "tokenizer": tokenizer,
            "prompts": [str(n) for n in range(size)],
            "eos_id": tokenizer.eos_token_id,
            "sampling": models.SamplingConfig(temperature=0.7, max_new_tokens=10),
            "score": share_of_early_tokens,
            "policy": policy,
            "optimizer": loops.make_optimizer(policy, loops.OptimiserConfig(lr=1e-2)),
            "generator": torch.Generator().manual_seed(0),
        }
        exec(source, names)
        logs.append(names["train_by_hand"](list(loops.shuffled_batches(size, size, 4, seed=0))))
    return logs


def first_difference(right, mine):
    """(name, step) of the first number that differs by more than rounding; None if none does."""
    for step, (a, b) in enumerate(zip(right, mine, strict=True)):
        for name in ("mean score", "loss"):
            if abs(a[name] - b[name]) > 1e-4:
                return name, step
    return None


SHUFFLE = "batch = batch.select(torch.randperm(len(titles), generator=generator))"
AGGREGATE = 'how="sequence_sum"'
AFTERWARDS = "baseline = 0.9 * baseline + 0.1 * mean_score"


@pytest.mark.parametrize(
    "change, name, later",
    [
        (("config=sampling,", "config=models.SamplingConfig(temperature=1.0),"), "mean score", 0),
        (("temperature=0.7", "temperature=1.0"), "loss", 0),
        (("(scores - baseline)", "scores"), "loss", 0),
        (("(scores - baseline)", "(baseline - scores)"), "loss", 0),
        ((AGGREGATE, 'how="token_mean"'), "loss", 0),
        ((SHUFFLE, ""), "mean score", 1),
        (("optimizer.step()", ""), "mean score", 1),
        (("optimizer.zero_grad()", ""), "loss", 2),
        ((AFTERWARDS, ""), "loss", 2),
        ((AFTERWARDS, "baseline = 0.1 * baseline + 0.9 * mean_score"), "loss", 2),
    ],
)
def test_the_first_number_that_differs_tells_where_to_look(change, name, later):
    """Exercise 6. The shuffle alone does not change the loss of its batch."""
    assert first_difference(*two_logs(change)) == (name, later)


def test_the_loop_as_it_is_has_no_difference():
    assert first_difference(*two_logs()) is None


# ---- going further: a recorded run


def recorded():
    history = experiments.results("family_history")
    runs = history[history.variant == "reinforce"]
    family = experiments.results("family")
    return runs, family[family.variant.isin(["start", "reinforce"])]


def test_reinforce_learns_arithmetic_on_every_seed():
    runs, family = recorded()
    assert sorted(runs.seed.unique()) == [0, 1, 2]
    for seed in range(3):
        one = runs[runs.seed == seed]
        assert one.score.tail(5).mean() > one.score.head(5).mean() + 0.2
        assert one.entropy.iloc[-1] < one.entropy.iloc[0] / 2
        before, after = (
            family[(family.variant == v) & (family.seed == seed)] for v in ("start", "reinforce")
        )
        change = torch.tensor(after.pass_1_by_prompt.iloc[0]) - torch.tensor(
            before.pass_1_by_prompt.iloc[0]
        )
        assert change.mean() - 1.96 * change.std() / math.sqrt(len(change)) > 0.25


# ---- going further: a world with random scores


def of_one_response(numbers):
    """(mean gradient, spread of one response) in the random world; numbers: (N, R)."""
    gradients = torch.einsum(
        "nt,ntsv->nsv", numbers * RANDOM.response_mask, of_tokens(RANDOM, POLICY)
    )
    mean = RANDOM.expectation(POLICY, gradients)
    return mean, RANDOM.expectation(POLICY, (gradients - mean).square().sum((1, 2))).sqrt().item()


def baselines():
    """Name -> baseline of each token, (N, R): none, V, and b*, a mean with weights |g|^2."""
    mask, scores = RANDOM.response_mask, RANDOM.rewards[:, None]
    squares = of_tokens(RANDOM, POLICY).square().sum((2, 3))
    chance = RANDOM.probs(POLICY).detach()[:, None] * mask
    parts = torch.zeros(2, len(RANDOM.states), dtype=torch.float64)
    for row, x in enumerate((squares * scores, squares)):
        parts[row].index_add_(0, RANDOM.visited.flatten(), (chance * x).flatten())
    return {
        "none": torch.zeros(mask.shape, dtype=torch.float64),
        "V": RANDOM.by_token(RANDOM.values(POLICY)[0]),
        "b*": RANDOM.by_token(parts[0] / parts[1]),
    }


def own_spread(baseline):
    """sum_t E[(G_t - b)^2 |g|^2]: what b* minimises."""
    squares = of_tokens(RANDOM, POLICY).square().sum((2, 3))
    chance = RANDOM.probs(POLICY).detach()[:, None] * RANDOM.response_mask
    return (chance * (RANDOM.rewards[:, None] - baseline).square() * squares).sum().item()


@pytest.fixture(scope="module")
def best():
    length = RANDOM.gradient(POLICY).norm().item()
    scores = RANDOM.rewards[:, None]
    return {
        name: (of_one_response(scores - b)[1] / length, own_spread(b))
        for name, b in baselines().items()
    }


def test_the_best_baseline_is_unbiased_and_takes_off_more_than_the_value(best):
    mean, _ = of_one_response(RANDOM.rewards[:, None] - baselines()["b*"])
    torch.testing.assert_close(mean, RANDOM.gradient(POLICY))
    for column in (0, 1):
        assert best["b*"][column] < best["V"][column] < best["none"][column]
    assert best["V"][1] - best["b*"][1] > best["none"][1] - best["V"][1]
    shifted = {x: own_spread(baselines()["b*"] + x) for x in (-0.01, 0.0, 0.01)}
    assert min(shifted, key=shifted.get) == 0


def test_what_surprises_has_a_large_gradient():
    squares = of_tokens(RANDOM, POLICY).square().sum((2, 3))
    for state in range(len(RANDOM.states)):
        here = (RANDOM.visited == state) & RANDOM.response_mask
        likely = POLICY.softmax(1)[state].argmax()
        chosen = here & (RANDOM.response_ids == likely)
        assert squares[chosen].max() < squares[here & ~chosen].min()


@pytest.mark.parametrize("size", [2, 4])
def test_a_mean_of_few_others_adds_spread_where_scores_are_near_0(size):
    for world, logits in ((SMALL, SMALL.ref_logits), (RANDOM, POLICY)):
        scores = world.rewards[world.groups(logits, size)[0]]
        plain, others = (
            bias_and_spread(x[..., None], size, world, logits)
            for x in (scores, core.leave_one_out(scores))
        )
        assert others[0] < 1e-10 and others[1] > plain[1]


def test_the_squared_extra_spread_falls_with_the_number_of_others():
    """Noise of one response: that of the batch, times the root of the batch size."""
    extra = []
    for size in (2, 3, 4):
        every = choices(size)
        spread = [bias_and_spread(every[name], size)[1] for name in ("score", "others")]
        extra.append((size - 1) * size * (spread[1] ** 2 - spread[0] ** 2))
    assert extra == pytest.approx([extra[0]] * 3, rel=0.2)


def test_with_rewards_per_token_every_choice_of_the_old_page_holds():
    """A KL penalty of 0.5 per nat gives every token a reward of its own."""
    mask, beta = RANDOM.response_mask, 0.5
    logprobs, ref = RANDOM.logprobs(POLICY), RANDOM.logprobs(RANDOM.ref_logits)
    pay = core.kl_shaped_rewards(RANDOM.rewards, logprobs, ref, mask, kl_coef=beta)
    total = pay.sum(1, keepdim=True).expand(mask.shape)
    returns = core.reward_to_go(pay, mask)
    values = RANDOM.by_token(RANDOM.values(POLICY, beta=beta)[0])
    rows = {
        "plus 100": total + 100,
        "score": total,
        "minus the mean": total - RANDOM.expectation(POLICY, pay.sum(1)),
        "return": returns,
        "minus V": returns - values,
    }
    spread, truth = {}, RANDOM.gradient(POLICY, beta=beta)
    for name, numbers in rows.items():
        mean, spread[name] = of_one_response(numbers)
        torch.testing.assert_close(mean, truth)
    assert spread["minus V"] < spread["return"] < spread["score"] < spread["plus 100"] / 30
    divided = (returns - values) / mask.sum(1, keepdim=True)
    mean, of_divided = of_one_response(divided)
    assert angle(mean, truth) < 0.96
    along = ((mean * truth).sum() / truth.square().sum()).item()
    assert of_divided / along > spread["minus V"]  # measured against its shorter step


def test_a_batch_points_nearer_to_the_gradient_without_an_offset():
    """The median angle of a batch to the true gradient, over many batches."""
    gradients = of_tokens(RANDOM, POLICY)
    scores, truth = RANDOM.rewards[:, None].expand(15, 3), RANDOM.gradient(POLICY).flatten()
    drawing = torch.Generator().manual_seed(0)

    def median(numbers, size, draws=1500):
        each = torch.einsum("nt,ntsv->nsv", numbers * RANDOM.response_mask, gradients).flatten(1)
        rows = torch.multinomial(RANDOM.probs(POLICY), draws * size, True, generator=drawing)
        means = each[rows].view(draws, size, -1).mean(1)
        return -torch.cosine_similarity(means, truth[None], dim=1).median().item()

    sizes = (4, 16, 64, 256)
    plus_3, plain, value = (
        [median(x, size) for size in sizes] for x in (scores + 3, scores, scores - baselines()["V"])
    )
    assert all(a > max(b, c) for a, b, c in zip(plus_3, plain, value, strict=True))
    assert sum(value) < sum(plain)


# ---- going further: denominators


def expected(how, size):
    """Cosine of the expected gradient of `core.aggregate(..., how)` with the true one."""
    advantages = RANDOM.rewards[:, None] - baselines()["V"]
    index, chance = RANDOM.groups(POLICY, size)
    moved = POLICY.clone().requires_grad_(True)
    mask = RANDOM.response_mask
    losses = core.reinforce(RANDOM.logprobs(moved), advantages, mask)
    lengths = mask.sum(1).double()
    if how == "token_mean":
        each = losses.sum(1)[index].sum(1) / lengths[index].sum(1)
    elif how == "sequence_mean":
        each = (losses.sum(1) / lengths)[index].mean(1)
    else:
        each = losses.sum(1)[index].mean(1) / (3 if how == "constant" else 1)
    one = index[-7]  # and the package's own function gives the same
    constant = 3.0 if how == "constant" else None
    package = core.aggregate(losses[one], mask[one], how=how, constant=constant)
    torch.testing.assert_close(each[-7], package)
    (chance * each).sum().backward()
    return angle(-moved.grad, RANDOM.gradient(POLICY))


def test_only_a_fixed_denominator_keeps_the_direction():
    assert expected("sequence_sum", 2) == pytest.approx(1) == expected("constant", 2)
    tokens = [expected("token_mean", size) for size in (1, 2, 4)]
    assert tokens == sorted(tokens) and tokens[-1] > 0.995
    mean = [expected("sequence_mean", size) for size in (1, 2, 4)]
    assert mean == pytest.approx([tokens[0]] * 3) and mean[0] < 0.95


def test_of_one_batch_the_token_mean_is_the_sum_divided_by_the_mean_length():
    """The denominator of section 10: the same direction, and nearly the same step of Adam."""
    mask = torch.arange(30) < torch.tensor([[30], [11], [19]])
    drawing = torch.Generator().manual_seed(0)
    ends = {}
    for how in ("sequence_sum", "token_mean"):
        weights = torch.nn.Parameter(torch.zeros(3, 30))
        losses = torch.randn(3, 30, generator=drawing.manual_seed(0)) * weights
        loss = core.aggregate(losses, mask, how=how)
        (gradient,) = torch.autograd.grad(loss, weights, retain_graph=True)
        step = loops.make_optimizer(torch.nn.ParameterList([weights]), loops.OptimiserConfig())
        loss.backward()
        step.step()
        ends[how] = gradient, weights.detach().clone()
    (of_sum, after_sum), (of_mean, after_mean) = ends["sequence_sum"], ends["token_mean"]
    torch.testing.assert_close(of_sum, of_mean * mask.sum(1).float().mean())
    torch.testing.assert_close(after_sum, after_mean, rtol=0.01, atol=0)


# ---- going further: spread on the language model


@pytest.fixture(scope="module")
def sampled():
    """(Name -> cosines of the gradients of two halves, mean length) of 256 reviews.

    There are 35 ways to halve eight batches. A gradient is linear in the numbers in front of it. So
    each batch needs two backward passes: one with the scores, and one with 1 in front of every
    response.
    """
    policy, tokenizer = models.load_policy("tiny-reviews-sft")
    scorer, _ = models.load_scalar("tiny-reviews-reward")
    score = rewards.rollout_score(scorer, tokenizer.eos_token_id)
    titles = (tasks.reviews.rl_prompts() * 2)[:256]
    with_score, with_one, means, lengths = [], [], [], []
    for batch in models.sample_text(policy, tokenizer, titles, seed=0, batch_size=32):
        scores, mask = score(batch), batch.response_mask
        logprobs = models.policy_logprobs(policy, batch, temperature=0.7).mul(mask).sum(1)
        for numbers, kept in ((scores, with_score), (torch.ones(32), with_one)):
            parts = torch.autograd.grad(
                (numbers * logprobs).mean(), list(policy.parameters()), retain_graph=True
            )
            kept.append(torch.cat([p.flatten() for p in parts]))
        means.append(scores.mean())
        lengths.append(mask.sum(1).float().mean().item())
    scored, ones, mean = torch.stack(with_score), torch.stack(with_one), torch.stack(means)[:, None]
    cuts = [half for half in itertools.combinations(range(8), 4) if 0 in half]
    found = {}
    for name, each in {
        "score": scored,
        "score + 3": scored + 3 * ones,
        "minus the others": (scored - mean * ones) * 32 / 31,
    }.items():
        dots = each @ each.T
        member = torch.tensor([[float(i in half) for i in range(8)] for half in cuts])
        pairs = ((member, 1 - member), (member, member), (1 - member, 1 - member))
        across, a, b = (torch.einsum("ki,ij,kj->k", x, dots, y) for x, y in pairs)
        found[name] = across / (a * b).sqrt()
    return found, sum(lengths) / len(lengths)


@pytest.fixture(scope="module")
def halves(sampled):
    return sampled[0]


@pytest.mark.slow
def test_halves_of_real_batches_agree_more_with_a_baseline(halves):
    assert len(halves["score"]) == 35
    assert (halves["minus the others"] > halves["score + 3"]).all()
    assert (halves["score"] > halves["score + 3"]).all()


# ---- every number of the prose


def test_the_numbers_of_the_prose(exact, learned, best, sampled):
    halves, tokens_each = sampled
    runs, family = recorded()
    by_step = runs.groupby("step")[["score", "entropy"]].mean()
    pass_1 = family.groupby("variant").pass_1.mean()
    table = logged()["mean score"]
    spread = {name: values[1] for name, values in exact.items()}
    last = {name: path[:, -1] for name, path in learned.items()}
    near = [((last["raised"] - end).abs() < 0.1).sum().item() for end in (2, 1, 0, -1)]
    near_ends = [x for pair in zip(near, (2, 1, 0, -1), strict=True) for x in pair]
    count = len(last["raised"])
    assert sum(near) == count
    _, stuck = trained(as_it_is, OFFSET, steps=21)  # the probabilities after 20 updates
    wrong = with_values(after_the_word)[0][:, -1]
    minus_best = [trained(lambda r: r - r.max(), OFFSET, steps=n)[1] for n in (1, 11)]
    good_good = [probs[:, SMALL.labels.index("goodgood")] for probs in minus_best]
    in_batch = [(1 - (1 - p) ** 16).mean() for p in good_good]  # share of batches that have it
    tokens, mean = (
        [expected(how, n) for n in (1, 2, 4)] for how in ("token_mean", "sequence_mean")
    )
    of_two = [bias_and_spread(choices(2)[name], 2)[1] for name in ("score", "others")]
    config = loops.GroupConfig.plain("reinforce", prompts_per_step=64)
    temperature, size = config.sampling.temperature, config.prompts_per_step
    with lesson("04") as said:
        # 1 and 2: the formula
        said("A score of", 2, 1)
        # 3: the small world
        said("It is uniform at first: all logits are", 0, 1 / 3)
        one_logit(said)
        # 4: reward-to-go
        said("Its score is", 1 - 1, 1)
        said("| first: good |", 1, 1 - 1, 1, 1, 1 - 1)
        said("| second: bad |", -1, 1 - 1, -1)
        said("probabilities sum to", 1)
        # 5: baselines
        said("Add", OFFSET, 2 + OFFSET, -1 + OFFSET)
        said("takes the score, the right half the score −", OFFSET)
        said("| response | score | it pushes *good* by | it pushes *bad* by | score −", OFFSET)
        table_of_four_responses(said)
        said("In the right half we have subtracted", OFFSET)
        said("With scores near", OFFSET, OFFSET, 1, OFFSET, 0)
        # 6 and 7: baselines
        assert 1 - exact["batch mean"][0] == pytest.approx(3 / 4)
        said("it changes nothing on average. What remains is", Fraction(3, 4))
        good = SMALL.values(SMALL.ref_logits)[1][0, 0]
        ends = [SMALL.rewards[SMALL.labels.index(y)] for y in ("goodgood", "goodbad", "good.")]
        assert good == pytest.approx(sum(ends).item() / 3)
        said("(lesson 03: $Q(s_t, y_t) = r_t + V(s_{t+1})$, and $r_t$ is", 0, good, *ends, 0)
        said("So $G_t - V$ is", ends[0], ends[1], ends[2], good)
        # 8: bias and spread
        said("A spread of", 1)
        for line in ("3. the score +", "4. the score +", "5. the score +", "6. the score +"):
            said(line, OFFSET)
        said("minus its value $V(s_t)$:", *(v + OFFSET for v in SMALL.values(SMALL.ref_logits)[0]))
        said("Only the batch mean has one:", exact["batch mean"][0])
        said("has a smaller spread than the score:", spread["return"], spread["score"])
        said("has the score +", OFFSET, spread["raised"], spread["raised"] / spread["score"])
        said("The batch mean leaves", spread["batch mean"], spread["others"], spread["value"])
        assert spread["value"] == pytest.approx(spread["return"])
        score, after_good = 1 - 1, SMALL.values(SMALL.ref_logits)[0][1]
        said("has even more spread than the plain score", spread["others"], spread["score"])
        said("*bad* after *good*: the score is", score, after_good, score, after_good, -1, 0)
        assert score - after_good == -1  # the return of *bad*
        said("The advantages are", Fraction(3, 4), Fraction(3, 4))
        # 9: learning
        said("Learning with scores near", OFFSET)
        said("policy of the small world:", 100, 16, 0.5, count, OFFSET, 0, SMALL.rewards.max())
        said("the score as it is; the score +", OFFSET, OFFSET, 100, count)
        said("reaches the best policy in all", last["score"].min() > 1.95, count)
        said("- **With an offset of", OFFSET, last["raised"].mean())
        said("But no run ends near it:", *near_ends)
        said("The line is the mean of the", len(last["raised"]))
        assert (last["raised"] - last["raised"].mean()).abs().min() > 0.2
        said(
            "Every sampled response is pushed up by about",
            OFFSET,
            stuck.max(1).values.mean() > 0.9,
        )
        said("With the baseline** the line is nearly that of the left panel", True)
        # 10: the language model
        said("before training they have the mean", 0, 1)
        said("`order` holds the numbers of", size)
        said("Samples and log-probabilities have the same temperature,", temperature)
        said("divided by the mean length of its responses (here about", 18 < tokens_each < 22, 20)
        said("The mean score rises by more than", table[-1] - table[0] > 1, 1)
        # exercises and questions
        said("padding can hold NaN, and NaN times", 0)
        said("of every token, (B, R), and", 0)
        said("In the small world it can be exact: column $t$ of `values` (B, R +", 1, 0)
        said("At which score does the *mean* of the", count)
        said("Before you mend it**, the", count, wrong.mean(), wrong.min(), wrong.max())
        said("lesson 03 has $Q(s_t, y_t) = r_t + V(s_{t+1})$, and here $r_t$ is", 0, 0)
        ends = [SMALL.rewards[SMALL.labels.index(y)] for y in ("goodgood", "badgood", ".")]
        said("The value after it is", 0, *ends)
        shares = [x for end in ends for x in (1 / 3, end)]
        said("**The mean stops at", 2 / 3, 1 / 3, *shares, sum(ends) / 3, 0)
        said("Then every advantage is negative or", 0)
        said("**Bias:** yes,", exact["best"][0], exact["batch mean"][0])
        means = dict(zip(SMALL.rewards.tolist(), mean_after_the_best(4)[0].tolist(), strict=True))
        said("For a response with the score", 2, means[2], 1, means[1])
        said("For a score of", 1, means[1], means[0], 0, means[-1], -1, means[-2], -2)
        said("**Why just as fast?** Section 9 has batches of", 16, in_batch[0])
        said("and after ten steps nearly all", in_batch[1] > 0.99)
        said("So the best score is nearly always", 2 + OFFSET, mean_after_the_best(16)[1])
        said("each entry holds the numbers of", size)
        said("under the name `my_training`: sample at temperature", temperature, 0.9)
        said("**The mean score of step", 0)
        said("**The loss of step", 0)
        said("With the mean of the others all advantages are", 0)
        # going further
        steps, samples = runs.steps.iloc[0], runs.samples.iloc[0]
        said("problem such as `16+16+11=`. The score is", 1, 0, steps, samples)
        start, end = by_step.head(2).mean(), by_step.tail(5).mean()
        said("**score**: the share of right answers rises from", start.score, end.score)
        said("falls from", by_step.entropy.iloc[0], end.entropy)
        problems = len(family.pass_1_by_prompt.iloc[0])
        tested = [round(pass_1[name], 2) for name in ("start", "reinforce")]
        said("right answers rises from", *tested, problems)
        more = (spread["raised"] / spread["others"]) ** 2
        said("you would need about", abs(more - 260) < 5, 260, spread["raised"], spread["others"])
        said("The score *without* the", OFFSET, spread["score"], spread["others"], 0)
        said("There the spread grows from", *of_two)
        said("pays where scores are far from", 0)
        said("How large may the offset be?", *(3, count, last["plus 3"].mean(), OFFSET))
        slow, mended = (learned[name][:, -1].mean() for name in ("slow", "slow, others"))
        said("but then you need more of them. Replace", 0.5, 0.02, 100, 1000, 5, slow, mended)
        said("with respect to $b$ is", 0)
        for name, row in (("none", "none"), ("V", "$V(s_t)$"), ("b*", "$b^*(s_t)$")):
            said(f"| {row} |", best[name][0])
        said("the sequence mean has a cosine of", mean[0], tokens[0], tokens[2])
        said("But we can sample", 8 * 32)
        said("point in unrelated directions: their cosine is near", 0)
        said("Without errors their cosine would be", 1, len(halves["score"]), 8, 32)
        said("| the score (scaled to mean", 0, halves["score"].mean())
        said("| the score plus", 3, halves["score + 3"].mean())
        said("| the same, minus the mean of the others |", halves["minus the others"].mean())
        said("In all", (halves["minus the others"] > halves["score + 3"]).sum(), 0)


def after_the_word(logprobs, scores, values, mask):
    """Exercise 3, as it is given: the value after each word is subtracted."""
    advantages = scores[:, None] - values[:, 1:]
    return -(advantages * torch.where(mask, logprobs, 0.0)).sum(1).mean()


def with_values(loss_of, runs=40):
    """Expected score before each step of exercise 3, and the first words' last probabilities."""
    paths, first = [], []
    for seed in range(runs):
        drawing, path, logits = torch.Generator().manual_seed(seed), [], SMALL.ref_logits
        for _ in range(100):
            path.append(SMALL.objective(logits).item())
            rows = torch.multinomial(SMALL.probs(logits), 16, True, generator=drawing)
            values = torch.nn.functional.pad(SMALL.by_token(SMALL.values(logits)[0])[rows], (0, 1))
            moved, mask = logits.clone().requires_grad_(True), SMALL.response_mask[rows]
            loss_of(SMALL.logprobs(moved)[rows], SMALL.rewards[rows], values, mask).backward()
            logits = logits - 0.5 * moved.grad
        paths.append(path)
        first.append(logits.softmax(1)[0])
    return torch.tensor(paths), torch.stack(first)


def test_a_value_after_the_word_teaches_no_first_word_and_the_mended_loss_learns(learned):
    """The expected gradient of the first logits is 0, and the runs end as the solution says."""
    moved = SMALL.ref_logits.clone().requires_grad_(True)
    values = torch.nn.functional.pad(SMALL.by_token(SMALL.values(SMALL.ref_logits)[0]), (0, 1))
    numbers = SMALL.rewards[:, None] - values[:, 1:]
    each = (numbers * SMALL.logprobs(moved)).sum(1)
    SMALL.expectation(SMALL.ref_logits, each).backward()
    assert moved.grad[0].abs().max() < 1e-12 and moved.grad[1:].norm() > 0.1
    paths, first = with_values(after_the_word)
    last = paths[:, -1]
    assert (first.mean(0) - 1 / 3).abs().max() < 0.05
    assert paths.max() < 1  # far below the best score, 2
    assert last.mean() == pytest.approx(2 / 3, abs=0.02)
    mended = with_values(check.baseline_loss.reference)[0]
    assert mended[:, -1].min() > 1.95
    assert (mended.mean(0) - learned["score"].mean(0)).abs().max() < 0.05  # one line on the other


def test_one_score_for_every_response_gives_the_loss_zero():
    """(B, 1) times (B,) is (B, B): a mistake that the checker of exercise 1 names."""
    rows = torch.multinomial(
        SMALL.probs(SMALL.ref_logits), 16, True, generator=torch.Generator().manual_seed(0)
    )
    moved = SMALL.ref_logits.clone().requires_grad_(True)
    scores = SMALL.rewards[rows] + OFFSET
    centred, of_responses = scores - scores.mean(), SMALL.sequence_logprobs(moved)[rows]
    loss = -(centred[:, None] * of_responses).mean()
    (gradient,) = torch.autograd.grad(loss, moved, retain_graph=True)
    assert loss.abs() < 1e-12 and gradient.abs().max() < 1e-12
    (gradient,) = torch.autograd.grad(-(centred * of_responses).mean(), moved)
    assert gradient.norm() > 0.1
