"""Lesson 11, section 9 and exercise 6: sharpening or learning, and the verdicts on runs."""

import math
import re

import pytest
import torch

from minirlhf import evaluate, experiments
from minirlhf.classroom import check
from minirlhf.classroom.exercise import LONGEST
from minirlhf.classroom.lessons.lesson_11_verdicts import MISTAKES, VERDICTS
from minirlhf.tasks import arithmetic
from tests.claims.records_11 import SEEDS, by_run, column, family, mean

LONG = ("grpo, 400 steps", "reinforce, 400 steps")
LONGER = (5,)
WORTH_HAVING = 0.05  # a rise of pass@16
RULE = ["no gain", "undecided", "learning", "sharpening with a loss", "sharpening", "undecided"]


@pytest.fixture(scope="module")
def runs():
    return family()


@pytest.fixture(scope="module")
def longer():
    """Training on problems of levels 2 to 4, evaluation on those of level 5."""
    return by_run("longer")


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


def first_case(one, each, together):
    """Which case of the rule of section 9 holds first, counted from 0.

    The first two are its questions 1 and 2; the others are the lines of its table. one, together:
    (change, low, high) of pass@1 and of pass@16, pooled. each: pass@16 by seed.
    """
    _, low, high = together
    fits = (one[1] <= 0, contradict(each), low > 0, high < 0, high < WORTH_HAVING, True)
    return fits.index(True)


def verdict(one, each, together):
    """The verdict of the rule of section 9; the arguments are those of `first_case`."""
    return RULE[first_case(one, each, together)]


def contradict(each):
    """Whether the interval of one seed lies above 0, and that of another below."""
    return max(low for _, low, _ in each) > 0 > min(high for _, _, high in each)


@pytest.mark.parametrize("variant, said", [("grpo", "undecided"), (LONG[0], "sharpening")])
def test_the_verdicts_on_the_harder_problems_follow_the_rule(longer, variant, said):
    each = [gain(longer, variant, seed) for seed in SEEDS]
    one, together = (pooled(longer, variant, name) for name in ("pass_1", "pass_16"))
    assert not contradict(each)
    assert verdict(one, each, together) == said


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
def test_right_answers_gather_on_fewer_problems(longer, seed):
    before, after = (right_samples(longer, v, seed) for v in ("start", LONG[0]))
    assert (after >= 8).sum() > 2 * (before >= 8).sum()
    assert (after > 0).sum() < (before > 0).sum()


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


def test_practised_sums_have_three_numbers_and_the_harder_ones_four():
    patterns = arithmetic.LEVELS
    assert all(signs(p) <= 2 for level in experiments.LEVELS for p in patterns[level])
    practised = experiments.practice_problems()  # drawn from these levels, as the examples are
    assert max(map(signs, practised)) == 2
    assert {len(re.findall("[-+*]", problem)) for problem in practised} == {2, 3}
    assert all(signs(problem) == 2 for problem in practised if "*" not in problem)
    harder = arithmetic.problems("test", 400, levels=LONGER)
    assert harder[0].prompt == "12+5-16+2=" and all(signs(p.expression) == 3 for p in harder)


def signs(expression):
    return len(re.findall("[+-]", expression))


# ---- exercise 6: its checker


def test_the_checker_accepts_the_six_verdicts_of_the_rule():
    assert check.six_verdicts(VERDICTS)


@pytest.mark.parametrize("run, wrong", MISTAKES)
def test_the_checker_names_the_mistake_behind_a_wrong_verdict(run, wrong):
    assert wrong in VERDICTS.values() and wrong != VERDICTS[run]
    result = check.six_verdicts(VERDICTS | {run: wrong})
    assert not result and MISTAKES[run, wrong] in result.message
    assert result.message.startswith(f'run {run} is not "{wrong}": ')
    assert len(result.message) <= LONGEST


@pytest.mark.parametrize("run", VERDICTS)
def test_the_checker_asks_for_a_verdict_that_is_missing_or_has_another_name(run):
    for given in ({}, {run: ""}, {run: "Lernen"}, {run: None}):
        answers = {r: v for r, v in VERDICTS.items() if r != run} | given
        result = check.six_verdicts(answers)
        assert not result and result.message.startswith(f"run {run} needs a verdict.")
        assert all(f'"{name}"' in result.message for name in VERDICTS.values())
        assert len(result.message) <= LONGEST


def test_a_wrong_verdict_without_a_named_mistake_still_gets_a_hint():
    result = check.six_verdicts(VERDICTS | {"A": "no gain"})
    assert not result and "section 9" in result.message


# ---- the numbers of the prose, called by test_lesson_11.py


def rule(said, longer):
    """Section 9: pass@k, the interval and the verdicts."""
    for model, chances in (
        ("before training", (0.5, 0.5, 0.0)),
        ("one model after it: **sharpening**", (0.9, 0.9, 0.0)),
        ("another model after it: **learning**", (0.7, 0.7, 0.4)),
    ):
        passed = [sum(1 - (1 - p) ** k for p in chances) / 3 for k in (1, 16)]
        said(f"| {model} |", *chances, *passed)
    problems = len(longer.loc[("start", 0)].pass_16_by_prompt)
    said("The mean of these", problems)
    said("We estimate it from our own (the *bootstrap*). Draw", problems, 0.95)
    said("worth having. Ours is", WORTH_HAVING)
    said("Does the pooled interval of pass@1 lie above", 0)
    said("Does the interval of pass@16 lie above", 0, 0)
    said("| the interval contains", 0, WORTH_HAVING)
    said("| no, it lies above", 0)
    said("| no, it lies below", 0)
    said("| yes | no, the whole interval is below", WORTH_HAVING)
    rows = [p.text for p in said.paragraphs if re.match(r"\| (yes|no, it lies)\b", p.text)]
    table = [re.search(r"\*\*(.+?)\*\*", row)[1] for row in rows]
    assert table == [RULE[case] for case in (2, 5, 4, 3)]
    said("A problem that goes from", 0.02, 0.1, 1 - 0.98**16, 1 - 0.9**16)


def six_runs(said):
    """Exercise 6: made-up changes of pass@1 and pass@16."""
    said("each with three seeds. The start solves", 0.4, 16)
    said("| run | problems | pass@1, pooled | pass@16, seed", 0, 1, 2)
    still = ((0, -0.03, 0.03), (-0.01, -0.04, 0.02), (0.01, -0.02, 0.04), (0, -0.02, 0.02))
    runs = {
        "A": ((0.03, -0.01, 0.07), (0.05, 0.01, 0.09), (0.04, -0.01, 0.09), (0.04, 0.01, 0.07)),
        "B": ((0.08, 0.04, 0.12), (-0.05, -0.09, -0.01), (0, -0.04, 0.04), (0.01, -0.02, 0.04)),
        "C": still,
        "D": ((0.05, -0.07, 0.17), (0.03, -0.09, 0.15), (0.07, -0.06, 0.2), (0.05, -0.05, 0.15)),
        "E": (still[2], still[0], still[1], still[3]),
        "F": (
            (-0.06, -0.1, -0.02),
            (-0.03, -0.07, 0.01),
            (-0.06, -0.1, -0.02),
            (-0.05, -0.08, -0.02),
        ),
    }
    firsts = {
        "A": (0.06, 0.03, 0.09),
        "B": (0.05, 0.02, 0.08),
        "C": (0.08, 0.05, 0.11),
        "D": (0.12, 0.04, 0.2),
        "E": (0.01, -0.01, 0.03),
        "F": (0.07, 0.04, 0.1),
    }
    for run, cells in runs.items():
        row = (firsts[run], *cells)
        said(f"| {run} |", 40 if run == "D" else 400, *[x for cell in row for x in cell])
        *changes, together = cells
        assert math.isclose(sum(x for x, _, _ in changes) / 3, together[0], abs_tol=1e-9)
        assert all(math.isclose((low + high) / 2, x, abs_tol=1e-9) for x, low, high in row)
        assert verdict(firsts[run], changes, together) == VERDICTS[run]
        verb = "has" if run == "E" else "is"
        said(f"**{run} {verb} {VERDICTS[run]}.**")
    rises = {run: [low > 0 for _, low, _ in cells] for run, cells in runs.items()}
    assert rises["A"] == [False, True, False, True] and rises["B"] == [True, False, False, False]
    assert not any(rises["C"] + rises["D"] + rises["F"])
    said("**A is learning.** The pooled interval of pass@16 lies above", 0)
    said("their intervals contain", 0)
    said("**B is undecided.** The interval of seed", 0, 0, 1)
    said("**C is sharpening.** The pooled interval contains", 0, WORTH_HAVING, 1 - 0.4)
    assert still[3][1] < 0 < still[3][2] < WORTH_HAVING
    said("**D is undecided.** The pooled interval contains", 0, WORTH_HAVING, 40)
    said("But the interval of pass@1 contains", 0, firsts["E"][1] < 0 < firsts["E"][2])
    assert all(low < 0 < WORTH_HAVING < high for _, low, high in runs["D"])
    said("**F is sharpening with a loss.** The pooled interval of pass@16 lies below", 0, 16)
    assert runs["F"][-1][2] < 0


def harder(said, longer):
    """Section 9: problems that are longer than those practised."""
    start, end = "start", "grpo, 400 steps"
    said("trains as in section 8, for", 400, 3)
    said("Training lifts pass@1 from", *(mean(longer, v, "pass_1") for v in (start, end)))
    said("the trained model is ahead. With", 16)
    cases = {
        v: first_case(
            pooled(longer, v, "pass_1"),
            [gain(longer, v, s) for s in SEEDS],
            pooled(longer, v, "pass_16"),
        )
        for v in ("grpo", end)
    }
    assert (RULE[cases[end]], RULE[cases["grpo"]]) == ("sharpening", "undecided")
    assert cases["grpo"] == 5  # not because seeds contradict each other
    said("the pooled interval of pass@1 lies above", 0, pooled(longer, end, "pass_1")[1] > 0)
    said("Second step: the interval of seed", 2, 0, gain(longer, end, 2)[2] < 0)
    no_seed = all(gain(longer, end, s)[1] <= 0 for s in SEEDS)
    said("But no interval of pass@16 lies above", 0, no_seed)
    change, low, high = pooled(longer, end, "pass_16")
    assert low < 0 < high < WORTH_HAVING
    said("Third step: the pooled interval of pass@16, from", low, high, 0, WORTH_HAVING)
    measured = column(longer, start, "pass_16")
    said("It is the same model three times, but its pass@16 is", *measured)
    spread = measured.max() - measured.min()
    said("This spread is larger than the gap between the two lines at", spread > abs(change))
    said("sums of four numbers instead of three, such as")
    gathered(said, longer)
    said("**Other lengths of training.** After", 80)
    _, low, high = pooled(longer, "grpo", "pass_16")
    assert low < 0 < WORTH_HAVING < high
    said("the verdict is undecided: the pooled interval of pass@16 contains", 0, WORTH_HAVING, 1)
    assert verdicts(longer, "grpo") == ["sharpening", "learning", "no gain"]
    said("and with seed", 2)


def gathered(said, longer):
    """Going further: for how many problems one sample is right, and for how many half of them."""
    counts = {
        v: torch.stack([right_samples(longer, v, s) for s in SEEDS]) for v in ("start", LONG[0])
    }
    once, half = (
        [(counts[v] >= least).sum().item() / len(SEEDS) for v in counts] for least in (1, 8)
    )
    said("**Fewer problems, more often right.** With", 16, counts["start"].shape[1], once[0])
    said("such problems. But", 8, *half, 3)
    said("of them. After", 400, once[1])
    change, low, high = pooled(longer, LONG[0], "pass_16")
    said(
        "pass@16 falls a little. (Its interval in section 9 contains", 0, change < 0, low < 0 < high
    )
