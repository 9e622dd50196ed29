"""Lesson 11, GRPO: every number of its prose, and every claim about a recorded run."""

import copy
import functools
import math
import re

import nbformat
import pytest
import torch

from minirlhf import core, evaluate, experiments, loops, models, rewards, tasks
from minirlhf.classroom import check
from minirlhf.classroom.course import NOTEBOOKS
from minirlhf.loops import FAMILY
from minirlhf.tasks import arithmetic
from tests.claims.prose import lesson
from tests.loops.test_by_hand import lesson_step

SEEDS = range(3)
FOUR_UPDATES = "grpo, 4 epochs"
PASSED = ("pass_1", "greedy")
LONG = ("grpo, 400 steps", "reinforce, 400 steps")
ONE_UPDATE = ("grpo", "dr-grpo", "dapo", "gspo", "cispo")
FULL, QUARTER, TENTH = (f"{part} of the learning rate" for part in ("all", "a quarter", "a tenth"))
LONGER = (5,)
WORTH_HAVING = 0.05  # section 9: a rise of pass@16
VERDICTS = {"A": "learning", "B": "undecided", "C": "sharpening", "D": "undecided"}  # exercise 6
AFTER_40_STEPS = {"paid": (0.5, 0.65), "at random": (0.2, 0.35)}  # share of right answers


@pytest.fixture(scope="module")
def runs():
    return experiments.results("family").set_index(["variant", "seed"]).sort_index()


@pytest.fixture(scope="module")
def longer():
    """Training on problems of levels 2 to 4, evaluation on those of level 5."""
    return by_run("longer")


@pytest.fixture(scope="module")
def dealt():
    """Training on scores that are dealt out to the responses at random."""
    return by_run("dealt")


def by_run(name):
    """A record with one row for each variant and seed, complete and of the registry's settings."""
    rows = experiments.results(name).set_index(["variant", "seed"])
    assert list(rows.index) == [(v, s) for v in experiments.EXPERIMENTS[name] for s in SEEDS]
    assert set(rows.command) == {f"minirlhf experiment {name} --seeds 3"}
    return rows


@pytest.fixture(scope="module")
def steps():
    return experiments.results("family_history")


@pytest.fixture(scope="module")
def grpo(steps):
    """The curves of the recorded run, each the mean over the seeds."""
    rows = steps[steps.variant == "grpo"]
    assert sorted(rows.seed.unique()) == list(SEEDS) and set(rows.steps) == {80}
    return rows.select_dtypes("number").groupby(rows.step).mean()


def column(runs, variant, name):
    """The values of the three seeds."""
    return runs.loc[variant][name]


def mean(runs, variant, name):
    return column(runs, variant, name).mean()


# ---- sections 2 and 4: groups


def advantages(*scores):
    return core.group_relative(torch.tensor([scores], dtype=torch.float64))[0]


@pytest.fixture(scope="module")
def model():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield models.load_policy("tiny-steps")
    torch.set_num_threads(threads)


def drawn(model, count, seed):
    """A group as the lesson samples it: (texts, scores, batch)."""
    policy, tokenizer = model
    sampling = models.SamplingConfig(max_new_tokens=24, temperature=1.0)
    prompts = ["16+16+11="] * count
    (batch,) = models.sample_text(policy, tokenizer, prompts, config=sampling, seed=seed)
    texts = models.decode(tokenizer, batch)
    return texts, torch.tensor(rewards.right_answer(prompts, texts)), batch


def test_the_group_of_four_is_the_one_in_the_table(model):
    texts, scores, _ = drawn(model, 4, seed=8)
    assert texts == ["~43", "~45", "32+11=33", "32+11=43"]
    assert scores.tolist() == [1, 0, 0, 1]


def test_a_wrong_response_of_the_group_of_eight_has_a_right_first_step(model):
    texts, scores, _ = drawn(model, 8, seed=2)
    assert [text for text, score in zip(texts, scores, strict=True) if score] == ["32+11=43"]
    assert "32+11=33" in texts
    assert tasks.arithmetic.steps_right("16+16+11=", "32+11=33") == [True, False]


def test_the_policy_answers_mostly_at_once_and_is_right_mostly_in_steps(model):
    policy, tokenizer = model
    prompts = [p.prompt for p in tasks.arithmetic.problems("test", 200, levels=(2, 3, 4))]
    each = [prompt for prompt in prompts for _ in range(4)]
    sampling = models.SamplingConfig(max_new_tokens=24, temperature=1.0)
    batches = models.sample_text(policy, tokenizer, each, config=sampling, batch_size=800)
    texts = [text for batch in batches for text in models.decode(tokenizer, batch)]
    right = torch.tensor(rewards.right_answer(each, texts))
    at_once = torch.tensor([text.startswith("~") for text in texts])
    assert at_once.double().mean() > 0.7
    assert right[at_once].mean() < 1 / 3 and right[~at_once].mean() > 0.6
    # responses with a right first step do better than the other samples of the same problem
    first = [tasks.arithmetic.steps_right(p, t)[0] for p, t in zip(each, texts, strict=True)]
    better = right.view(-1, 4) - right.view(-1, 4).mean(1, keepdim=True)
    assert better[torch.tensor(first).view(-1, 4)].mean() > 0.2


# ---- section 5: one step


def steps_by_hand(model, prompts, seed, batches=1):
    """What the lesson's `grpo_step` returns: the mean score, and the ratios outside, per batch."""
    policy, tokenizer = copy.deepcopy(model[0]), model[1]
    step = lesson_step(
        "11_grpo",
        "grpo_step",
        tokenizer=tokenizer,
        sampling=models.SamplingConfig(max_new_tokens=24, temperature=1.0),
        score=rewards.reward_function(rewards.right_answer, tokenizer),
        actor=policy,
        optimizer=loops.make_optimizer(policy, loops.OptimiserConfig(lr=1e-4)),
        generator=torch.Generator().manual_seed(seed),
    )
    order = loops.shuffled_batches(len(prompts), 16, batches, seed=seed)
    return [step([prompts[i] for i in index]) for index in order]


@pytest.mark.parametrize("seed", SEEDS)
def test_roughly_one_ratio_in_ten_is_outside_the_clip_range_at_the_fourth_update(model, seed):
    batches = steps_by_hand(model, experiments.practice_problems(), seed, batches=2)
    _, first, second, third, fourth = batches[0]
    assert first == 0 and min(second, third) > 0
    assert 0.05 < fourth < 0.3
    # After Adam's very first update more ratios are outside than after that of the next batch.
    assert second > 2 * batches[1][2]


def test_adams_first_update_moves_every_weight_by_the_learning_rate():
    weights = torch.nn.Parameter(torch.zeros(5))
    optimizer = loops.make_optimizer(torch.nn.ParameterList([weights]), loops.OptimiserConfig())
    weights.grad = torch.tensor([1e-3, -1e-2, 0.1, -1.0, 10.0])
    optimizer.step()
    expected = -1e-4 * weights.grad.sign()
    torch.testing.assert_close(weights.detach(), expected, rtol=1e-4, atol=0)


# ---- section 7: the gradient of a loss, and the factor of a prompt


@pytest.fixture(scope="module")
def directions():
    """(size, cosine, length) of the exact expected gradient, compared with the true one.

    The divisors are 1, 3 and the response's own length; the baseline is the expected score. The
    length is that of wrong responses after a step of length 1 along the gradient.
    """
    world = core.World.from_reward(("good", "bad", "."), 3, lambda w: float(w[0] == "good"))
    p, true = world.probs(world.ref_logits), world.gradient(world.ref_logits)
    centred = world.rewards - (p * world.rewards).sum()
    found = {"before": length_of_wrong(world, world.ref_logits)}
    for name, divisor in (("1", 1), ("3", 3), ("own", world.response_mask.sum(1))):
        logits = world.ref_logits.clone().requires_grad_(True)
        (p * centred / divisor * world.sequence_logprobs(logits)).sum().backward()
        size = logits.grad.norm() / true.norm()
        cosine = (logits.grad * true).sum() / true.norm() ** 2 / size
        after = length_of_wrong(world, world.ref_logits + logits.grad / logits.grad.norm())
        found[name] = size.item(), cosine.item(), after
    return found


def length_of_wrong(world, logits):
    """The mean number of words of the wrong responses, under the policy with these logits."""
    p, wrong = world.probs(logits), world.rewards == 0
    lengths = world.response_mask.sum(1).to(p.dtype)
    return ((p * lengths)[wrong].sum() / p[wrong].sum()).item()


def test_the_table_of_section_7(directions):
    before = directions["before"]
    assert directions["1"] == pytest.approx((1, 1, before))
    assert directions["3"] == pytest.approx((1 / 3, 1, before))
    shown = [
        [directions[name][0] * share, *directions[name][1:]]
        for name in ("1", "3", "own")
        for share in (3 / 4, 1)  # the mean of the group, and the mean of the others
    ]
    table = torch.tensor(numbers_of_table("of_group = "), dtype=torch.float64)
    torch.testing.assert_close(table, torch.tensor(shown, dtype=torch.float64), rtol=0, atol=5.1e-3)
    assert (table[:4, 1] == 1).all() and (table[4:, 1] < 0.95).all()
    assert (table[4:, 2] > before + 0.1).all()


def lesson_table(start):
    """The cells of the DataFrames under the code of lesson 11 that starts with these words."""
    cells = nbformat.read(NOTEBOOKS / "11_grpo.ipynb", 4).cells
    (html,) = [
        output.data["text/html"]
        for cell in cells
        if cell.cell_type == "code" and re.search(rf"^{re.escape(start)}", cell.source, re.M)
        for output in cell.outputs
    ]
    rows = re.findall(r"<tr>(.*?)</tr>", html, re.DOTALL)
    return [found for row in rows if (found := re.findall(r"<td>(.*?)</td>", row))]


def numbers_of_table(start):
    """The last three columns of such a table, as numbers."""
    return [[float(x) for x in row[-3:]] for row in lesson_table(start)]


def test_the_mean_of_the_group_is_that_of_the_others_shortened():
    scores = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    others = (scores.sum(1, keepdim=True) - scores) / 3
    torch.testing.assert_close(scores - scores.mean(1, keepdim=True), 3 / 4 * (scores - others))


def weight(p, size, *, scaled=True):
    """What GRPO multiplies the gradient of p by: the mean over the number c of right responses."""
    total = 0.0
    for c in range(size + 1):
        mean, std = c / size, math.sqrt(c * (size - c) / (size * (size - 1)))
        unit = std + 1e-4 if scaled else 1.0
        slope = (c * (1 - mean) / p + (size - c) * mean / (1 - p)) / size
        total += math.comb(size, c) * p**c * (1 - p) ** (size - c) * slope / unit
    return total


def factor(p, size):
    """By how much the division multiplies the expected gradient of a prompt."""
    return weight(p, size) / weight(p, size, scaled=False)


@pytest.mark.parametrize("p", [0.02, 0.36, 0.5, 0.9])
def test_the_factor_of_a_prompt(p):
    for size in (2, 4, 8, 16):
        assert math.isclose(weight(p, size, scaled=False), (size - 1) / size)
        ours = lesson_step("11_grpo", "factor")(torch.tensor(p, dtype=torch.float64), size)
        assert math.isclose(factor(p, size), ours.item(), rel_tol=1e-3)  # without delta
    assert math.isclose(factor(p, 2), factor(0.5, 2))  # flat: a group of two cannot tell
    assert math.isclose(factor(0.36, 1000), 1 / math.sqrt(0.36 * 0.64), rel_tol=5e-3)
    assert factor(0.02, 16) > factor(0.02, 8) > factor(0.02, 4) > factor(0.02, 2)
    assert factor(0.02, 16) > factor(0.5, 16) and math.isclose(factor(0.02, 16), factor(0.98, 16))


def test_the_slope_of_grpos_objective():
    p = torch.linspace(0.05, 0.95, 19, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad((2 * p.sqrt().arcsin()).sum(), p)
    torch.testing.assert_close(slope, 1 / (p * (1 - p)).sqrt())


# ---- section 8: a run


@pytest.mark.parametrize("seed", SEEDS)
def test_forty_steps_on_right_answers_help_and_on_random_scores_harm(steps, seed):
    random = experiments.results("dealt_history")
    paid = steps[(steps.variant == "grpo") & (steps.seed == seed)].set_index("step")
    control = random[(random.variant == FULL) & (random.seed == seed)].set_index("step")
    near_40 = slice(31, 45)
    assert paid.score.loc[near_40].mean() > paid.score[0] + 0.05
    assert control.right.loc[near_40].mean() < control.right[0] - 0.05
    assert control.kl.loc[near_40].mean() > paid.kl.loc[near_40].mean()


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS[:2])
@pytest.mark.parametrize("name", AFTER_40_STEPS)
def test_forty_steps_end_where_section_8_says(model, name, seed):
    """The lesson's own run. Its page says a range, because another processor rounds differently."""
    policy, tokenizer = copy.deepcopy(model[0]), model[1]
    right = rewards.reward_function(rewards.right_answer, tokenizer)
    drawing = torch.Generator().manual_seed(seed)

    def at_random(batch):
        scores = right(batch)
        return scores[torch.randperm(len(scores), generator=drawing)]

    reward = {"paid": right, "at random": at_random}[name]
    config = experiments.group_config("arithmetic", "grpo", steps=40, seed=seed)
    prompts, monitors = experiments.practice_problems(), {"right": right}
    _, run = loops.train_group(policy, tokenizer, prompts, reward, config, monitors=monitors)
    shares = run.column("grpo", "right")
    low, high = AFTER_40_STEPS[name]
    assert 0.35 < sum(shares[:5]) / 5 < 0.45
    assert low < sum(shares[-5:]) / 5 < high


def test_after_training_there_are_more_steps_and_one_problem_does_worse():
    before, after = (lesson_table(f"table({of}, questions)") for of in ("start", "trained"))
    written = [sum("~" not in cell for row in rows for cell in row) for rows in (before, after)]
    assert written[1] > 2 * written[0]
    assert "".join(after[0]).count("✓") < "".join(before[0]).count("✓")


def test_the_responses_become_steps(grpo):
    assert grpo.length.iloc[-5:].mean() > 1.7 * grpo.length.iloc[0]
    assert grpo.kl_coef.max() == 0


def test_no_method_of_the_comparison_updates_more_than_once_per_batch():
    configs = [experiments.group_config("arithmetic", name) for name in FAMILY]
    assert all(c.epochs == 1 and c.minibatch_size == 128 for c in configs)
    assert any(c.algorithm.ratio == "none" for c in configs)


# ---- section 9: sharpening or learning


def verdicts(runs, variant):
    start = runs.loc["start"]
    return [
        evaluate.sharpened_or_learned(start.loc[s], runs.loc[variant].loc[s], samples=16)
        for s in SEEDS
    ]


def gain(runs, variant, seed, name="pass_16"):
    """(mean, low, high) of the difference from the start, over the 400 problems."""
    after, before = (runs.loc[v].loc[seed][f"{name}_by_prompt"] for v in (variant, "start"))
    assert len(after) == 400
    return evaluate.paired_difference(after, before)


def test_80_steps_of_grpo_sharpen_twice_and_teach_once(runs):
    assert verdicts(runs, "grpo") == ["sharpening", "learning", "sharpening"]


def verdict(each, together):
    """The rule of section 9. each, together: (change of pass@16, low, high), by seed and pooled."""
    _, low, high = together
    if contradict(each):
        return "undecided"
    if low > 0:
        return "learning"
    return "sharpening" if high < WORTH_HAVING else "undecided"


def contradict(each):
    """Whether the interval of one seed lies above 0, and that of another below."""
    return max(low for _, low, _ in each) > 0 > min(high for _, _, high in each)


@pytest.mark.parametrize("variant, said", [("grpo", "undecided"), (LONG[0], "sharpening")])
def test_the_verdicts_on_the_harder_problems_follow_the_rule(longer, variant, said):
    each = [gain(longer, variant, seed) for seed in SEEDS]
    assert pooled(longer, variant, "pass_1")[1] > 0  # pass@1 has risen
    assert not contradict(each)
    assert verdict(each, pooled(longer, variant, "pass_16")) == said


@pytest.mark.parametrize("variant", LONG)
def test_after_400_steps_pass_at_16_has_risen_on_no_seed(runs, variant):
    assert verdicts(runs, variant) == ["sharpening"] * 3
    assert all(gain(runs, variant, seed)[1] <= 0 for seed in SEEDS)


def test_with_every_method_pass_at_1_rises_on_every_seed(runs):
    names = [n for n in runs.index.get_level_values("variant").unique() if n != "start"]
    assert len(names) == 18
    for name in names:
        assert "no gain" not in verdicts(runs, name)


def test_no_greedy_answer_reaches_nine_in_ten(runs):
    assert runs.greedy.max() < 0.9
    assert min(column(runs, name, "greedy").min() for name in LONG) > 0.87


@pytest.mark.parametrize("seed", SEEDS)
def test_400_steps_sharpen_on_the_harder_problems(longer, seed):
    assert verdicts(longer, "grpo, 400 steps")[seed] == "sharpening"
    mean, low, _ = gain(longer, "grpo, 400 steps", seed, "pass_1")
    assert low > 0 and mean > 0.02
    mean, low, high = gain(longer, "grpo, 400 steps", seed)
    assert low <= 0 and mean < 0  # no rise; and below the start
    assert longer.loc[("start", seed)].pass_16 < 0.4  # there was room


def test_that_something_is_lost_on_the_harder_problems_is_not_settled(longer):
    below = [gain(longer, "grpo, 400 steps", seed)[2] < 0 for seed in SEEDS]
    assert sum(below) == 1
    start = column(longer, "start", "pass_16")
    fall = start.mean() - mean(longer, "grpo, 400 steps", "pass_16")
    assert start.max() - start.min() > fall
    assert set(column(longer, "start", "greedy")) == {longer.loc[("start", 0)].greedy}  # one model


def test_80_steps_get_three_verdicts_on_the_harder_problems(longer):
    assert verdicts(longer, "grpo") == ["sharpening", "learning", "no gain"]
    _, low, high = pooled(longer, "grpo", "pass_16")
    assert low < 0 < high


def pooled(longer, variant, name):
    """The change of a measure with its interval; that of each problem is averaged over seeds."""
    after, before = (
        torch.tensor(column(longer, v, f"{name}_by_prompt").tolist(), dtype=torch.float64).mean(0)
        for v in (variant, "start")
    )
    return evaluate.paired_difference(after.tolist(), before.tolist())


def passed(longer, variant):
    """pass@k on the harder problems for k from 1 to 16, each the mean over problems and seeds."""
    return torch.stack([at_k(longer, variant, k) for k in range(1, 17)]).mean(1)


def at_k(longer, variant, k):
    """pass@k of each seed, from the number of right samples of each problem."""
    counts = torch.stack([right_samples(longer, variant, seed) for seed in SEEDS])
    missed = [math.comb(16 - c, k) / math.comb(16, k) for c in range(17)]
    return 1 - torch.tensor(missed, dtype=torch.float64)[counts].mean(1)


def right_samples(longer, variant, seed):
    """How many of the 16 samples of each problem are right."""
    counts = 16 * torch.tensor(longer.loc[(variant, seed)].pass_1_by_prompt)
    assert len(counts) == 400 and torch.equal(counts, counts.round())
    return counts.long()


def test_the_lines_of_pass_at_k_cross_once_near_8(longer):
    ahead = passed(longer, "grpo, 400 steps") > passed(longer, "start")
    assert ahead.tolist() == [True] * 7 + [False] * 9
    assert (passed(longer, "grpo") > passed(longer, "start")).all()
    for variant, by_k in experiments.pass_at_each_k(longer.reset_index(), 16).items():
        torch.testing.assert_close(by_k.mean(0), passed(longer, variant))  # the lesson's figure
    for variant in ("start", "grpo, 400 steps"):
        for k, name in ((1, "pass_1"), (16, "pass_16")):
            recorded = torch.tensor(column(longer, variant, name).tolist(), dtype=torch.float64)
            torch.testing.assert_close(at_k(longer, variant, k), recorded, rtol=0, atol=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_right_answers_gather_on_fewer_problems(longer, seed):
    before, after = (right_samples(longer, v, seed) for v in ("start", "grpo, 400 steps"))
    assert (after >= 8).sum() > 2 * (before >= 8).sum()
    assert (after > 0).sum() < (before > 0).sum()


def test_no_example_and_no_practice_problem_has_three_plus_or_minus_signs():
    patterns = arithmetic.LEVELS
    assert all(signs(p) <= 2 for level in experiments.LEVELS for p in patterns[level])
    practised = experiments.practice_problems()  # drawn from these levels, as the examples are
    assert max(map(signs, practised)) == 2
    harder = arithmetic.problems("test", 400, levels=LONGER)
    assert harder[0].prompt == "12+5-16+2=" and all(signs(p.expression) == 3 for p in harder)


def signs(expression):
    return len(re.findall("[+-]", expression))


# ---- going further: random scores


@pytest.mark.parametrize("seed", SEEDS)
def test_shorter_steps_on_random_scores_do_less_harm(dealt, runs, seed):
    falls = [-random_gain(dealt, runs, share, seed)[0] for share in (FULL, QUARTER, TENTH)]
    assert falls[0] > 2 * falls[1] > 4 * falls[2] > 0
    assert all(random_gain(dealt, runs, share, seed)[2] < 0 for share in (FULL, QUARTER))


def random_gain(dealt, runs, share, seed):
    """(mean, low, high) of the change of pass@1 from the untrained policy."""
    before, after = runs.loc[("start", seed)], dealt.loc[(share, seed)]
    return evaluate.paired_difference(after.pass_1_by_prompt, before.pass_1_by_prompt)


def test_a_tenth_of_the_learning_rate_does_hardly_any_harm(dealt, runs):
    highs = [random_gain(dealt, runs, TENTH, seed)[2] for seed in SEEDS]
    assert sum(high >= 0 for high in highs) == 1
    lr = [
        experiments.EXPERIMENTS["dealt"][share]["given"]["optimiser"].lr
        for share in (FULL, QUARTER, TENTH)
    ]
    assert lr == pytest.approx([1e-4, 1e-4 / 4, 1e-4 / 10])
    assert experiments.group_config("arithmetic", "grpo").optimiser.lr == lr[0]


# ---- going further: one change each


def test_with_one_update_gspo_is_grpo_up_to_rounding(runs):
    apart = column(runs, "grpo", "pass_1") - column(runs, "gspo", "pass_1")
    assert apart.abs().max() < 0.001


def test_with_one_update_the_five_methods_differ_less_than_the_seeds_of_one(runs):
    means = [mean(runs, name, "pass_1") for name in ONE_UPDATE]
    seeds = column(runs, "grpo", "pass_1")
    assert max(means) - min(means) < seeds.max() - seeds.min()


# ---- going further: the denominator


def lengths(own_length):
    """(right, wrong): mean length at each of 61 exact steps in the world of exercise 3."""
    world = core.World.from_reward(("good", "bad", "."), 6, lambda w: float(w[0] == "good"))
    long, right = world.response_mask.sum(1).double(), world.rewards == 1
    logits, path = world.ref_logits, []
    for _ in range(61):
        p = world.probs(logits)
        path.append([((p * long)[rows].sum() / p[rows].sum()).item() for rows in (right, ~right)])
        moved = logits.clone().requires_grad_(True)
        centred = world.rewards - (p * world.rewards).sum()
        divisor = long if own_length else 6.0
        (p * centred / divisor * world.logprobs(moved).sum(1)).sum().backward()
        logits = logits + 4 * moved.grad
    assert p[right].sum() > 0.95
    return torch.tensor(path, dtype=torch.float64)


def test_only_the_own_length_moves_the_length():
    own, constant = lengths(True), lengths(False)
    assert (own[1:, 1] > own[:-1, 1]).all() and (own[1:, 0] < own[:-1, 0]).all()
    torch.testing.assert_close(constant, constant[:1].expand(61, 2), rtol=0, atol=1e-9)


def test_the_mean_length_of_the_group_moves_the_length_and_a_constant_does_not():
    """Exercise 3: the curve of the colleague's loss rises, that of the right one is flat.

    That of the mean of the other lengths is flat, too.
    """

    def divided(logprobs, group_scores, mask, max_tokens, *, others=False):
        lengths = mask.sum(1).view(group_scores.shape).double()
        means = lengths.mean(1, keepdim=True).expand(lengths.shape)
        if others:
            means = (lengths.sum(1, keepdim=True) - lengths) / (lengths.shape[1] - 1)
        weighted = logprobs * (max_tokens / means.flatten())[:, None]
        return check.colleagues_loss.reference(weighted, group_scores, mask, max_tokens)

    length = lesson_step("11_grpo", "length_of_wrong_responses")
    shared = torch.tensor(length(divided))
    of_others = torch.tensor(length(functools.partial(divided, others=True)))
    assert (of_others - of_others[0]).abs().max() < 0.03
    constant = torch.tensor(length(check.colleagues_loss.reference))
    assert shared[-1] > shared[20] > shared[5] > shared[0] + 0.05 and shared[-1] < 2.6
    assert (constant - constant[0]).abs().max() < 0.03


# ---- every number of the prose


def test_the_numbers_of_the_prose(runs, longer, dealt, grpo, model, directions):
    means = [mean(runs, name, "pass_1") for name in ONE_UPDATE]
    seeds = column(runs, "grpo", "pass_1")
    own = lengths(own_length=True)
    with lesson("11") as said:
        # 1 to 4: definitions, groups and the task
        said("A score says little by itself. Is", 0.7)
        said("avoids a division by", 0)
        groups_of_section_2(said)
        said("Our rule is:", 1, 0)
        said("a language model with", parameters(model) / 1e6)
        group_by_hand(said)
        # 5: one step
        said("A batch has", 16, 8)
        said("with B =", 16 * 8)
        said("Two epochs with minibatches of", 64, 2 * 16 * 8 // 64)
        said("outside the clip range", 1 - 0.2, 1 + 0.2)
        said("table of section 5.** At update", 2)
        said("generalised advantage estimation. Part", 3)
        said("In the first update all ratios are", 1)
        said("so we set the penalty to", 0)
        said("before part", 3)
        # 6: the microscope
        microscope(said, model)
        # 7: the gradient
        gradients(said, model, directions)
        # 8: a run
        said("a short run of our own:", 40)
        said("So every ratio is", 1)
        own_run(said)
        longer_runs(said, runs)
        late, last_ten = grpo[grpo.index >= 60], grpo[grpo.index >= 70]
        said(
            "With one update per batch it rises from",
            grpo.score[0],
            grpo.score[-5:].mean(),
            5,
        )
        said("It nearly doubles, from", grpo.length[0], late.length.mean())
        equal = grpo.frac_reward_zero_std
        said(
            "all scores are equal | It rises from",
            equal[grpo.index < 10].mean(),
            last_ten.frac_reward_zero_std.mean(),
        )
        # 9: sharpening or learning
        for model_of, chances in (
            ("before training", (0.5, 0.5, 0.0)),
            ("one model after it", (0.9, 0.9, 0.0)),
            ("another model after it", (0.7, 0.7, 0.4)),
        ):
            passed = [sum(1 - (1 - p) ** k for p in chances) / 3 for k in (1, 16)]
            said(f"| {model_of} |", *chances, *passed)
        rule(said)
        said("by the *bootstrap*: draw", 400)
        said("The interval is the middle", 0.95)
        problems = len(runs.loc[("start", 0)].pass_16_by_prompt)
        said("Is there room? On", problems, mean(runs, "start", "pass_16"))
        harder(said, longer)
        # going further: variants
        three = means[:3]
        said("In the recorded runs of", 80, max(three) - min(three))
        said("differ by more,", seeds.max() - seeds.min())
        # exercises and questions
        said("must give exactly", 0)
        said("on three scores of", 0.9, 0)
        hint = torch.tensor([0.9, 0.9, 0.9])
        assert ((hint - hint.mean()) / (hint.std() + 1e-4)).abs().max() > 0
        said("that learns, so all ratios are", 1)
        said("sample groups of", 8, 64)
        said("and NaN times", 0)
        four_verdicts(said)
        said("without the standard deviation is", 3 / 4)
        said("a learning rate that is", 4 / 3)
        said("My GRPO loss is", 0)
        said("So the loss of a batch is", 0)
        said("Yes. At ratio", 1)
        said("The gradient is not", 0)
        said("The ratio in my log is always", 1)
        # going further
        random_scores(said, dealt, runs)
        said("lengthen the wrong responses from", own[0, 1], own[-1, 1])
        said("shorten the right ones from", own[0, 0], own[-1, 0])
        pair = [mean(runs, v, "length") for v in ("grpo", "dr-grpo")]
        said("is weak beside the reward: after", 80, *pair)
        said("their advantage is", 0)


def own_run(said):
    """Section 8: the lesson's own run. A slow test runs it."""
    said("The share of right answers starts near", 0.4, *AFTER_40_STEPS["paid"], 5)
    said("In the control it *falls*, to between", *AFTER_40_STEPS["at random"])
    before, after = (lesson_table(f"table({of}, questions)") for of in ("start", "trained"))
    count = ["".join(rows[0]).count("✓") for rows in (before, after)]
    assert len(before[0]) == 5 and tasks.arithmetic.problems("test", 1)[0].prompt == "16-1-10="
    said("(Five samples are few: `16-1-10=` does worse.)", count[1] < count[0])


def rule(said):
    """Section 9: the rule, and the problem that the start could already solve."""
    said("A problem that goes from", 0.02, 0.1, 1 - 0.98**16, 1 - 0.9**16)
    said("more problems are solved within", 16)
    said("the interval of one lies above", 0)
    said("Before looking, we call a rise of", WORTH_HAVING)
    said("| the pooled interval of pass@1 does not lie above", 0)
    said("| the pooled interval of pass@16 lies above", 0)
    said("| it ends below", WORTH_HAVING, 0)
    said("| it reaches", WORTH_HAVING)
    example = (0.01, -0.01, 0.03)
    assert verdict([example] * 3, example) == "sharpening"
    said("and the interval of pass@16 is", *example[1:])
    said("so no rise is shown. It ends below", WORTH_HAVING)
    said("It holds", 0)


def longer_runs(said, runs):
    """Section 8: GRPO with one update per batch, and with four."""
    registered = experiments.EXPERIMENTS["family"][FOUR_UPDATES]["given"]
    assert registered == {"epochs": 4, "steps": 40}  # a minibatch is the whole batch
    said("experiment family`, three seeds each. `grpo` has", 80)
    said(f"`{FOUR_UPDATES}` makes", *[registered["epochs"]] * 2, registered["steps"])
    history = experiments.results("family_history")
    clipped = history[history.variant == FOUR_UPDATES].groupby("step").clip_fraction.mean()
    assert (history[history.variant == "grpo"].clip_fraction == 0).all()
    said("whose gradient the clip removes | It is", 0, clipped.max())
    said("because it is another measure: a ratio above", 1 + 0.2, 1 - 0.2)
    said("also the first, where every ratio is", 1)
    said("with Dr. GRPO, which does not have it, responses get as long", as_long(runs))
    said("it takes two epochs of two minibatches. On", len(runs.loc[("grpo", 0)].pass_1_by_prompt))
    said("| no training |", 0, 0, *(mean(runs, "start", x) for x in PASSED))
    for name, steps, epochs in (("grpo", 80, 1), (FOUR_UPDATES, 40, 4)):
        right = [mean(runs, name, x) for x in PASSED]
        said(f"| `{name}` |", steps * 16 * 8, steps * epochs, *right)
    sampled, greedy = ([column(runs, v, x) for v in (FOUR_UPDATES, "grpo")] for x in PASSED)
    said("get as far with half the responses", sampled[0].mean() > sampled[1].mean() - 0.01)
    said("on every seed it is lower", (greedy[0] < greedy[1]).all())


def as_long(runs):
    """Whether GRPO and Dr. GRPO end at the same length, up to a quarter of a token."""
    return abs(mean(runs, "grpo", "length") - mean(runs, "dr-grpo", "length")) < 0.25


def gradients(said, model, directions):
    """Section 7: three divisors, two baselines, and the standard deviation."""
    said("While all ratios are", 1)
    said("that of the true one is", 1)
    said("| cosine |", 1)
    said("after a step along the gradient; before the step it is", directions["before"])
    said("only shortens the gradient**, to", 3 / 4)
    _, scores, _ = drawn(model, 8, seed=2)
    blame = -core.group_relative(scores[None]).min().item()
    said("**Not divided**, a wrong response of", 9, 9, blame, 4, 4, blame)
    said("**Divided**, each response gets", blame, 4, blame, 4, blame / 4, 9, blame / 9)
    said("because the sum of all $\\nabla \\pi(y)$ is", 0)
    said("Take groups of", 16)
    said("(The unit is the same in all rows.)", units_agree(0.02, 16))
    chance = [math.comb(16, c) * 0.02**c * 0.98 ** (16 - c) for c in range(17)]
    sigma = [torch.tensor([1.0] * c + [0.0] * (16 - c)).double().std().item() for c in range(17)]
    means = [sum(x * y for x, y in zip(chance, z, strict=True)) for z in (squares(sigma), sigma)]
    for c, words in enumerate(("none", "one", "two")):
        said(f"| {words} |", chance[c], sigma[c] ** 2, sigma[c])
    said("| mean over all groups |", *means)
    said("With one right answer of", 16, sigma[1] ** 2, sigma[1])
    said("the gradient of this prompt gets", means[1] / means[0], means[1], means[0])
    assert math.isclose(means[1] / means[0], factor(0.02, 16), rel_tol=1e-3)  # without delta
    said("**Predict.** Groups of", 16)
    said("And in groups of", 2)
    ends, middle = factor(0.02, 16), factor(0.5, 16)
    two = factor(0.5, 2)
    said("have the same factor in groups of", 16, ends, middle, 16, 2, two)


def units_agree(p, size):
    """Whether groups with c right answers have the gradient sigma^2, or sigma, times one number."""
    units = []
    for c in range(1, size):
        slope = (c * (1 - c / size) / p + (size - c) * c / size / (1 - p)) / size
        units.append(slope / (c * (size - c) / (size * (size - 1))))
    return all(math.isclose(unit, (size - 1) / size / (p * (1 - p))) for unit in units)


def squares(numbers):
    return [x * x for x in numbers]


def four_verdicts(said):
    """Exercise 6: made-up changes of pass@16."""
    said("each with three seeds. The start solves", 0.4, 16)
    said("| run | problems | seed", 0, 1, 2)
    runs = {
        "A": ((0.03, -0.01, 0.07), (0.05, 0.01, 0.09), (0.04, -0.01, 0.09), (0.04, 0.01, 0.07)),
        "B": ((0.08, 0.04, 0.12), (-0.05, -0.09, -0.01), (0, -0.04, 0.04), (0.01, -0.02, 0.04)),
        "C": ((0, -0.03, 0.03), (-0.01, -0.04, 0.02), (0.01, -0.02, 0.04), (0, -0.02, 0.02)),
        "D": ((0.05, -0.07, 0.17), (0.03, -0.09, 0.15), (0.07, -0.06, 0.2), (0.05, -0.05, 0.15)),
    }
    for run, cells in runs.items():
        said(f"| {run} |", 40 if run == "D" else 400, *[x for cell in cells for x in cell])
        *changes, (pooled, _, _) = cells
        assert math.isclose(sum(x for x, _, _ in changes) / 3, pooled, abs_tol=1e-9)
        assert all(math.isclose((low + high) / 2, x, abs_tol=1e-9) for x, low, high in cells)
        assert verdict(changes, cells[-1]) == VERDICTS[run]
        said(f"**{run} is {VERDICTS[run]}.**")
    rises = {run: [low > 0 for _, low, _ in cells] for run, cells in runs.items()}
    assert rises["A"] == [False, True, False, True] and rises["B"] == [True, False, False, False]
    assert not any(rises["C"] + rises["D"])
    said("But an interval that contains", 0)
    said("and the pooled interval is above", 0)
    said("**B is undecided.** The interval of seed", 0, 0, 1)
    said("**C is sharpening.** Its intervals contain", 0, runs["C"][3][2], WORTH_HAVING, 1 - 0.4)
    said("**D is undecided.** Its intervals contain", 0, WORTH_HAVING, 40)
    assert all(low < 0 < WORTH_HAVING < high for _, low, high in runs["D"])


def harder(said, longer):
    """Section 9: problems that are longer than those practised."""
    start, end = "start", "grpo, 400 steps"
    said("trains as in section 8, for", 80, 400, 3, 400, mean(longer, start, "pass_16"), 16)
    said("**Predict.** After", 400, *(mean(longer, v, "pass_1") for v in (start, end)), 80)
    said("**Sharpening after", 400)
    assert pooled(longer, end, "pass_1")[1] > 0
    said("The interval of pass@1 lies above", 0)
    room = 1 - mean(longer, start, "pass_16")
    said("The interval of pass@16 holds", 0, pooled(longer, end, "pass_16")[2], room)
    counts = {
        v: torch.stack([right_samples(longer, v, s) for s in SEEDS]).double() for v in (start, end)
    }
    half, once = ([(counts[v] >= least).sum().item() / 3 for v in (end, start)] for least in (8, 1))
    said("400 steps at least one sample is right for", once[0], 400, once[1])
    said("often right** (section 9). After", 400)
    said("But at least half of the samples are right for", *half, 3)
    said("**Undecided after", 80)
    _, low, high = pooled(longer, "grpo", "pass_16")
    assert low < 0 < WORTH_HAVING < high
    said("But the interval of pass@16 holds", 0, WORTH_HAVING)
    assert verdicts(longer, "grpo") == ["sharpening", "learning", "no gain"]
    said("holds 0 and 0.05. With seed", 1)
    said("and with seed", 2)


def random_scores(said, dealt, runs):
    """Going further: why random rewards do harm."""
    said("So the expected gradient is exactly", 0)
    said("trains the control for", 80, 3, 3, 400)
    said("training, pass@1 is", mean(runs, "start", "pass_1"), mean(runs, "start", "pass_16"))
    for words, share in (
        ("as in section 8:", FULL),
        ("a quarter of it |", QUARTER),
        ("a tenth of it |", TENTH),
    ):
        one = column(dealt, share, "pass_1")
        rate = [1e-4] if share == FULL else []
        said(f"| {words}", *rate, one.mean(), one.min(), one.max(), mean(dealt, share, "pass_16"))
    said("But the loss gives none: its expected gradient is", 0)


def parameters(model):
    return sum(p.numel() for p in model[0].parameters())


def groups_of_section_2(said):
    said("one response is right |", 1, 0, 0, 0)
    said("all are right |", 1, 1, 1, 1)
    said("two responses, far apart |", 1, 0)
    said("two responses, nearly equal |", 1.001, 1)
    one = advantages(1, 0, 0, 0)
    said("*One is right*: about", one[0], one[1])
    said("advantages sum to", 0)
    assert not advantages(1, 1, 1, 1).any() and not advantages(0, 0, 0, 0).any()
    said("*All are right*:", 0)
    said("*Far apart*:", *advantages(1, 0))
    said("*Nearly equal*:", *advantages(1.001, 1), advantages(1, 0)[0], 0.001 / math.sqrt(2))


def group_by_hand(said):
    scores, centre = [1, 0, 0, 1], 1 / 2
    std = math.sqrt(sum((r - centre) ** 2 for r in scores) / 3)
    said("have the scores", *scores)
    said("The mean is", centre)
    for text, r in zip(("`~43`", "`~45`", "`32+11=33`", "`32+11=43`"), scores, strict=True):
        said(f"| {text} |", r, r - centre, (r - centre) ** 2, (r - centre) / std)
    said("The squares sum to", 1, 1 / 3, std)
    said("So the advantages are", 0.5, std, 0.5 / std, -0.5 / std)


def microscope(said, model):
    texts, scores, batch = drawn(model, 8, seed=2)
    each = core.group_relative(scores[None])[0]
    right, wrong = each[texts.index("32+11=43")].item(), each[texts.index("32+11=33")].item()
    said("`32+11=43`, has the advantage", right, wrong)
    said("Its first step is right:", 16, 16, 16 + 16)
    at_once = sum(text.startswith("~") for text in texts)
    said("Look at response", texts.index("32+11=33"))
    lengths = {len(text) + 1 for text in texts if text.startswith("~")}
    assert at_once == 6 and lengths == {4} and len("32+11=43") + 1 == 9
    said("Six responses of", 4, at_once, wrong, 4, at_once * wrong / 4)
    said("They have", 9, right, -wrong, 9, (right + wrong) / 9)
    policy, tokenizer = model
    table = evaluate.token_table(batch, tokenizer, actor=policy, temperature=1.0)
    first = dict(table.alternatives[0])
    assert (round(first["~"], 2), round(first["3"], 2)) == (0.79, 0.21)
