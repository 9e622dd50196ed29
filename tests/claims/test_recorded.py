"""The README's claims, recomputed from the recorded experiments."""

import json
import statistics

import pytest

from minirlhf.evaluate import paired_difference
from minirlhf.experiments.records import METHODS, fill_readme, load_results, readme_tables, record
from minirlhf.runtime import ROOT
from minirlhf.tasks.agreement import human_ceiling
from minirlhf.tasks.reviews import pairs_within_films

ROWS = load_results("tour")
SEEDS = sorted({row["seed"] for row in ROWS})


def by(method, seed):
    return next(row for row in ROWS if row["method"] == method and row["seed"] == seed)


def mean_by_prompt(method, judge="gold"):
    columns = [by(method, seed)[f"{judge}_by_prompt"] for seed in SEEDS]
    return [sum(values) / len(values) for values in zip(*columns, strict=True)]


def test_the_record_has_every_method_for_every_seed():
    assert SEEDS == [0, 1, 2]
    for seed in SEEDS:
        assert [row["method"] for row in ROWS if row["seed"] == seed] == [
            "SFT",
            "best-of-4",
            "best-of-16",
            "PPO",
            "DPO",
            "GRPO",
        ]
    assert len({row["command"] for row in ROWS}) == 1


def test_the_recorded_human_ceiling_is_recomputed_exactly():
    pairs = pairs_within_films("test")
    for row in load_results("reward_model"):
        assert row["human ceiling"] == pytest.approx(
            human_ceiling(pairs, row["low"], row["high"]), abs=1e-9
        )


def said(sentence):
    return sentence in " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())


def test_ppo_beats_best_of_four_by_the_difference_in_the_readme():
    alone = [
        paired_difference(
            by("PPO", seed)["gold_by_prompt"], by("best-of-4", seed)["gold_by_prompt"]
        )
        for seed in SEEDS
    ]
    difference, low, high = paired_difference(mean_by_prompt("PPO"), mean_by_prompt("best-of-4"))
    assert 0 < low < difference < high
    assert min(d for d, _, _ in alone) > 0 and sum(low <= 0 for _, low, _ in alone) == 1
    assert said(
        f"by +{min(alone)[0]:.2f} to +{max(alone)[0]:.2f} of gold, over the three by +{difference:.2f} [{low:.2f}, {high:.2f}]"
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_ppo_keeps_a_small_kl_and_does_not_collapse(seed):
    ppo = by("PPO", seed)
    assert ppo["kl"] <= 3
    assert ppo["opening_share"] <= 0.2
    assert ppo["missing_eos"] < 0.1


def test_the_readme_gives_the_recorded_loss_of_diversity():
    shares = [by("PPO", seed)["distinct_2"] / by("SFT", seed)["distinct_2"] for seed in SEEDS]
    assert min(shares) >= 0.8
    assert said(f"{min(shares):.2f} to {max(shares):.2f} of SFT's")


def test_the_readme_comparisons_hold_under_every_judge():
    interval = {
        (a, b, judge): paired_difference(mean_by_prompt(a, judge), mean_by_prompt(b, judge))[1:]
        for a, b in (("PPO", "best-of-4"), ("best-of-16", "PPO"), ("PPO", "DPO"), ("GRPO", "PPO"))
        for judge in ("gold", "proxy", "ensemble", "lexicon")
    }
    above, even = (lambda i: i[0] > 0), (lambda i: i[0] <= 0 <= i[1])
    for pair in (("PPO", "best-of-4"), ("best-of-16", "PPO")):
        assert all(
            above(interval[*pair, judge]) for judge in ("gold", "proxy", "ensemble", "lexicon")
        )
    assert above(interval["PPO", "DPO", "proxy"]) and all(
        even(interval["PPO", "DPO", j]) for j in ("gold", "ensemble", "lexicon")
    )
    assert above(interval["GRPO", "PPO", "gold"]) and all(
        even(interval["GRPO", "PPO", j]) for j in ("proxy", "ensemble", "lexicon")
    )
    kl, unfinished = (
        {m: sum(by(m, s)[key] for s in SEEDS) for m in ("PPO", "DPO", "GRPO")}
        for key in ("kl", "missing_eos")
    )
    assert (
        kl["DPO"] > 2 * kl["PPO"]
        and kl["GRPO"] > kl["PPO"]
        and unfinished["DPO"] > unfinished["PPO"]
        and round(kl["PPO"] / 3) == 2
    )


def test_the_tables_of_the_readme_equal_the_record():
    readme, tables = (ROOT / "README.md").read_text(encoding="utf-8"), readme_tables()
    assert readme.count("<!-- tour -->") == readme.count("<!-- reward -->") == 1
    assert tables["tour"].count("\n") == 8 and tables["reward"].count("\n") == 8
    for name, table in tables.items():
        assert f"<!-- {name} -->\n{table}<!-- /{name} -->" in readme, (
            "run `minirlhf experiment tour`, which fills them in"
        )


def test_a_table_holds_the_means_over_seeds(tmp_path):
    origin = {"claim": "c", "commit": "c", "command": "c"}
    numbers = dict.fromkeys(METHODS.values(), 1.0)
    record(
        "tour",
        [
            origin | numbers | {"method": "PPO", "seed": s, "gold": g}
            for s, g in ((0, 1.0), (1, 2.0))
        ],
        folder=tmp_path,
    )
    bands = {
        "low": 0.0,
        "high": 0.5,
        "reward model": 0.25,
        "bag of words": 0.5,
        "human ceiling": 1.0,
        "mean probability": 0.75,
    }
    record("reward_model", [origin | bands | {"seed": 0}], folder=tmp_path)
    readme = tmp_path / "README.md"
    readme.write_text(
        "above\n<!-- tour -->\nstale\n<!-- /tour -->\nbetween\n<!-- reward -->\nstale\n<!-- /reward -->\nbelow\n"
    )
    fill_readme(readme, tmp_path)
    other = tmp_path / "other.md"
    other.write_text("no table here")
    with pytest.raises(ValueError, match="marks '<!-- tour -->' in other.md is 0; it must be 1"):
        fill_readme(other, tmp_path)
    text = readme.read_text()
    assert (
        "| PPO | 1.50 | 1.00 |" in text
        and "| 0 to 0.5 | 0.25 | 0.50 | 1.00 | 0.75 |" in text
        and "stale" not in text
    )
    assert [line for line in text.splitlines() if line in ("above", "between", "below")] == [
        "above",
        "between",
        "below",
    ]


def test_the_readme_numbers_of_smollm2_are_recorded():
    rows = {row["method"]: row for row in load_results("smollm2")}
    for method, words in (
        ("reward head", "a reward head"),
        ("DPO's implicit reward", "DPO's implicit reward"),
        ("tiny-reviews-reward", "our own tiny-reviews-reward, on the same pairs,"),
    ):
        row = rows[method]
        assert row["low"] > 0.5 and said(
            f"{words} {row['accuracy']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
        )
        assert said(f"On {row['pairs']} pairs of {row['films']} films")
    assert rows["reward head"]["low"] > rows["tiny-reviews-reward"]["accuracy"]
    assert sum(row.get("seconds", 0) for row in rows.values()) < 20 * 60


def test_the_readme_numbers_of_speed_are_recorded():
    rows = [
        json.loads(line)
        for line in (ROOT / "tests" / "benchmarks" / "results.jsonl").read_text().splitlines()
    ]
    rows = [row for row in rows if "round" in row and not row["bf16"]]
    for task, words in {
        "sft": "SFT",
        "dpo": "DPO",
        "grpo": "GRPO",
        "rloo": "RLOO",
        "ppo": "PPO",
        "reward": "a reward model",
    }.items():
        assert said(f"{words} {ratio(rows, task):.2f}"), (task, ratio(rows, task))
    assert said(f"`generate` {ratio(rows, 'generate'):.2f} times as long")


def ratio(rows, task):
    """The median over rounds of their seconds over ours."""
    same = [row for row in rows if row["task"] == task]
    ours, theirs = (
        {r["round"]: r["seconds"] for r in same if (r["side"] == "minirlhf") == mine}
        for mine in (True, False)
    )
    return statistics.median(theirs[number] / ours[number] for number in ours)


def test_the_readme_numbers_of_arithmetic_are_recorded():
    rows = load_results("family")

    def percent(variant, key):
        return (
            f"{statistics.mean(row[key] for row in rows if row['variant'] == variant):.0%}".replace(
                "%", " %"
            )
        )

    start, grpo, plain = "start", "grpo, 400 steps", "reinforce, 400 steps"
    assert said(
        f"takes it from {percent(start, 'greedy')} to {percent(grpo, 'greedy')} greedily and from "
        f"{percent(start, 'pass_1')} to {percent(grpo, 'pass_1')} of single samples"
    )
    assert {percent(variant, "pass_16") for variant in (start, grpo)} == {"97 %", "98 %"} and said(
        "pass@16 stays at 97 to 98 %"
    )
    assert said(f"reaches {percent(plain, 'greedy')} and {percent(plain, 'pass_1')}.")
    lengths = [
        statistics.mean(row["length"] for row in rows if row["variant"] == variant)
        for variant in (start, grpo)
    ]
    assert 1.8 < lengths[1] / lengths[0] < 2.1 and said("its responses become twice as long")
    command = [row["seconds"] for row in rows if row["variant"] == grpo]
    assert (
        len(command) == 3
        and 200 < statistics.mean(command) < 400
        and said("about five minutes of one core; three seeds")
    )
