"""Lesson 11, going further: why random scores do harm."""

import pytest

from minirlhf import evaluate, experiments
from tests.claims.records_11 import SEEDS, by_run, column, family, mean

FULL, QUARTER, TENTH = (f"{part} of the learning rate" for part in ("all", "a quarter", "a tenth"))


@pytest.fixture(scope="module")
def runs():
    return family()


@pytest.fixture(scope="module")
def dealt():
    """Training on scores that are dealt out to the responses at random."""
    return by_run("dealt")


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


# ---- the numbers of the prose, called by test_lesson_11.py


def random_scores(said, dealt, runs):
    """Going further: why random rewards do harm."""
    said("so the expected gradient is exactly", 0)
    said("has three learning rates, each with", 3, 80, 400)
    said(
        "Before training, pass@1 is", mean(runs, "start", "pass_1"), mean(runs, "start", "pass_16")
    )
    for words, share in (
        ("as in section 8:", FULL),
        ("a quarter of it |", QUARTER),
        ("a tenth of it |", TENTH),
    ):
        one = column(dealt, share, "pass_1")
        rate = [1e-4] if share == FULL else []
        said(f"| {words}", *rate, one.mean(), one.min(), one.max(), mean(dealt, share, "pass_16"))
