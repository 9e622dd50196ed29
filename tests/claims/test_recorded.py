"""What the notebooks and the README say of the recorded grid, over its seeds."""

import pytest

from minirlhf.classroom.claims import load_results
from minirlhf.evaluate import paired_difference

ROWS = load_results("tour")
SEEDS = sorted({row["seed"] for row in ROWS})


def by(method, seed):
    return next(row for row in ROWS if row["method"] == method and row["seed"] == seed)


def mean_by_prompt(method, judge="gold"):
    columns = [by(method, seed)[f"{judge}_by_prompt"] for seed in SEEDS]
    return [sum(values) / len(values) for values in zip(*columns, strict=True)]


def test_the_record_is_whole():
    assert SEEDS == [0, 1, 2]
    for seed in SEEDS:
        assert [row["method"] for row in ROWS if row["seed"] == seed] == ["SFT", "best-of-4", "best-of-16", "PPO", "DPO", "GRPO"]
    assert len({row["command"] for row in ROWS}) == 1


def test_ppo_beats_best_of_four_paired_by_film():
    difference, low, high = paired_difference(mean_by_prompt("PPO"), mean_by_prompt("best-of-4"))
    assert 0 < low < difference < high


@pytest.mark.parametrize("seed", SEEDS)
def test_ppo_stays_on_its_leash_and_does_not_collapse(seed):
    ppo, sft = by("PPO", seed), by("SFT", seed)
    assert ppo["kl"] <= 6
    assert ppo["opening_share"] <= 0.2
    assert ppo["distinct_2"] >= 0.8 * sft["distinct_2"]
