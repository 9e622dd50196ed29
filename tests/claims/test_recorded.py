"""What the notebooks and the README say of the recorded grid, over its seeds."""

import pytest

from minirlhf.classroom.claims import load_results
from minirlhf.evaluate import paired_difference
from minirlhf.runtime import ROOT

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
    ppo = by("PPO", seed)
    assert ppo["kl"] <= 6
    assert ppo["opening_share"] <= 0.2
    assert ppo["missing_eos"] < 0.1


def test_the_readme_says_how_much_variety_ppo_costs():
    # the aim was 0.8 of SFT's distinct-2 on every seed; it was missed, and the README says so
    shares = [by("PPO", seed)["distinct_2"] / by("SFT", seed)["distinct_2"] for seed in SEEDS]
    said = f"{min(shares):.2f} to {max(shares):.2f} of SFT's"
    assert said in " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())


def test_the_tables_of_the_readme_are_the_record():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    tables = {}
    for cells in ([cell.strip() for cell in row.split("|")] for row in readme.splitlines() if row.count("|") in (6, 10)):
        if cells[2].replace("-", "").replace(".", "").isdigit():
            tables[cells[1]] = [float(cell) for cell in cells[2:-1]]
    columns = ("gold", "proxy", "ensemble", "lexicon", "kl", "length", "distinct_2", "opening_share")
    for method in dict.fromkeys(row["method"] for row in ROWS):
        means = [sum(by(method, seed)[key] for seed in SEEDS) / len(SEEDS) for key in columns]
        assert tables[method] == pytest.approx(means, abs=0.0051)
    accuracy = load_results("reward_model")
    for low, high in dict.fromkeys((row["low"], row["high"]) for row in accuracy):
        rows = [row for row in accuracy if (row["low"], row["high"]) == (low, high)]
        keys = ("reward model", "bag of words", "human ceiling", "mean probability")
        means = [sum(row[key] for row in rows) / len(rows) for key in keys]
        assert tables[f"{low:g} to {high:g}"] == pytest.approx(means, abs=0.0051)
