"""Tables of recorded results, against cases worked by hand and against `evaluate`."""

import itertools
import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import t as student_t

from minirlhf import evaluate, experiments
from minirlhf.experiments import records
from minirlhf.experiments.tables import interval_over_both, interval_over_seeds

ORIGIN = {"claim": "x", "commit": "c", "command": "c"}
ROWS = [  # two variants, two seeds, three prompts
    {"variant": "a", "seed": 0, "gold": 2.0, "gold_by_prompt": [1.0, 2.0, 3.0]},
    {"variant": "a", "seed": 1, "gold": 4.0, "gold_by_prompt": [3.0, 4.0, 5.0]},
    {"variant": "b", "seed": 0, "gold": 1.0, "gold_by_prompt": [1.0, 1.0, 1.0]},
    {"variant": "b", "seed": 1, "gold": 2.0, "gold_by_prompt": [1.0, 2.0, 3.0]},
]
FRAME = pd.DataFrame(ROWS)


def written(folder, name, rows):
    records.record(name, [ORIGIN | row for row in rows], folder=folder)


def test_results_are_one_row_per_run_with_the_columns_as_recorded(tmp_path):
    written(tmp_path, "one", ROWS)
    written(tmp_path, "two", [{"variant": "c", "seed": 0, "loss": 0.5}])
    frame = experiments.results("one", folder=tmp_path)
    assert list(frame["experiment"]) == ["one"] * 4
    assert frame["gold"].tolist() == [2.0, 4.0, 1.0, 2.0]
    assert frame["gold_by_prompt"].tolist() == [row["gold_by_prompt"] for row in ROWS]
    both = experiments.results("one", "two", folder=tmp_path)
    assert list(both["experiment"]) == ["one"] * 4 + ["two"]
    assert both["gold"].isna().tolist() == [False] * 4 + [True]
    assert both["loss"].tolist()[-1] == 0.5


RECORDED = [path.stem for path in sorted(records.RESULTS.glob("*.jsonl"))]


# these two records have a row per token: tests/experiments/test_microscope_run.py
@pytest.mark.parametrize("name", sorted({*RECORDED} - {"microscope", "one_batch"}))
def test_every_record_becomes_a_dataframe_with_all_values(name):
    frame, rows = experiments.results(name), experiments.load_results(name)
    assert len(frame) == len(rows) and set(frame["experiment"]) == {name}
    for (_, cells), row in zip(frame.iterrows(), rows, strict=True):
        for key, value in row.items():
            assert cells[key] == value or value != value
    assert set(frame.columns) == {"experiment"} | {key for row in rows for key in row}


def test_an_unknown_record_is_refused_with_the_known_names(tmp_path):
    written(tmp_path, "one", ROWS)
    written(tmp_path, "two", ROWS)
    with pytest.raises(ValueError) as error:
        experiments.results("one", "three", folder=tmp_path)
    assert str(error.value) == "Nothing is recorded as 'three'; the records are one, two."
    with pytest.raises(ValueError, match="No record was asked for; the records are one, two"):
        experiments.results(folder=tmp_path)
    with pytest.raises(ValueError, match="holds no records"):
        experiments.results("one", folder=tmp_path / "empty")


def test_a_long_table_by_prompt_has_a_row_per_run_and_prompt():
    long = experiments.by_prompt(FRAME, "gold")
    assert list(long.columns) == ["variant", "seed", "prompt", "gold"]
    assert len(long) == 2 * 2 * 3
    one = long[(long["variant"] == "a") & (long["seed"] == 1)]
    assert one["prompt"].tolist() == [0, 1, 2] and one["gold"].tolist() == [3.0, 4.0, 5.0]


def test_mean_and_range_over_seeds_by_hand():
    # a: (2 + 4)/2 = 3, from 2 to 4.  b: (1 + 2)/2 = 1.5, from 1 to 2.
    table = experiments.mean_over_seeds(FRAME, "gold")
    assert table.to_dict("index") == {
        "a": {"mean": 3.0, "low": 2.0, "high": 4.0, "seeds": 2},
        "b": {"mean": 1.5, "low": 1.0, "high": 2.0, "seeds": 2},
    }
    assert table.index.name == "variant"


def test_groups_keep_the_order_of_the_record_and_may_have_several_columns():
    steps = pd.DataFrame(
        [
            {"variant": v, "seed": s, "step": t, "kl": base + s + 10 * t}
            for v, base in (("z", 1.0), ("a", 2.0))
            for s in (0, 2)
            for t in (0, 1)
        ]
    )
    table = experiments.mean_over_seeds(steps, "kl", by=["variant", "step"])
    assert list(table.index) == [("z", 0), ("z", 1), ("a", 0), ("a", 1)]
    # z at step 1: seeds 0 and 2 give 11 and 13, mean 12
    assert table.loc[("z", 1)].tolist() == [12.0, 11.0, 13.0, 2.0]


def test_the_mean_with_a_missing_value_is_missing():
    frame = pd.DataFrame(
        [{"variant": "a", "seed": 0, "gold": 1.0}, {"variant": "a", "seed": 1, "gold": None}]
    )
    table = experiments.mean_over_seeds(frame, "gold")
    assert table[["mean", "low", "high"]].isna().all(axis=None) and table["seeds"].item() == 2


def test_equal_variant_names_of_two_experiments_are_refused():
    mixed = experiments.results("family", "jitter")
    with pytest.raises(ValueError, match="variant 'grpo' has more than one row of seed 0"):
        experiments.mean_over_seeds(mixed, "greedy")
    with pytest.raises(ValueError, match="variant 'grpo' has more than one row of seed 0"):
        experiments.difference_over_prompts(mixed, "greedy", "start")
    table = experiments.mean_over_seeds(mixed, "greedy", by=["experiment", "variant"])
    assert table.loc[("family", "grpo"), "seeds"] == table.loc[("jitter", "grpo"), "seeds"] == 3


def test_a_difference_over_prompts_averages_the_seeds_of_a_prompt_first():
    # a by prompt: (1 + 3)/2, (2 + 4)/2, (3 + 5)/2 = 2, 3, 4.  b: 1, 1.5, 2.  a - b: 1, 1.5, 2.
    table = experiments.difference_over_prompts(FRAME, "gold", "b")
    expected = evaluate.paired_difference([2.0, 3.0, 4.0], [1.0, 1.5, 2.0])
    assert list(table.index) == ["a"] and table.index.name == "variant"
    assert table.loc["a", "difference"] == 1.5
    assert tuple(table.loc["a", ["difference", "low", "high"]]) == expected
    assert 1.0 <= table.loc["a", "low"] < 1.5 < table.loc["a", "high"] <= 2.0
    assert table.loc["a", ["prompts", "seeds"]].tolist() == [3, 2]


def test_one_seed_or_no_scatter_gives_no_interval_over_seeds():
    frame = pd.DataFrame(ROWS[:1] + [ROWS[0] | {"variant": "c", "gold_by_prompt": [0.5, 1.5, 2.5]}])
    table = experiments.difference_over_prompts(frame, "gold", "c")
    assert table.loc["a", ["difference", "low", "high"]].tolist() == [0.5, 0.5, 0.5]
    again = pd.concat([frame, frame.assign(seed=1)])
    for rows in (frame, again):  # one seed; two seeds and the same difference everywhere
        table = experiments.difference_over_prompts_and_seeds(rows, "gold", "c")
        assert table.loc["a", "difference"] == 0.5
        assert table.loc["a", ["low", "high"]].isna().all()
    recorded = experiments.results("ablations")
    table = experiments.difference_over_prompts_and_seeds(
        recorded[recorded["seed"] == 0], "gold", "as it is"
    )
    assert table["difference"].notna().all() and table[["low", "high"]].isna().all(axis=None)


def test_the_interval_over_prompts_and_seeds_by_hand():
    # D = a - b is 0, 2 for seed 0 and 4, 6 for seed 1. Mean 3; means of the seeds 1 and 5, of the
    # prompts 2 and 4. MS_seed = 2 (4 + 4) / 1 = 16, MS_prompt = 2 (1 + 1) / 1 = 4, no residual.
    # var = (16 + 4) / 4 = 5, df = 20^2 / (16^2 + 4^2) = 1.470588; t(0.975, df) = 6.3 and something.
    frame = pd.DataFrame(
        [
            {"variant": "a", "seed": 0, "gold_by_prompt": [1.0, 4.0]},
            {"variant": "a", "seed": 1, "gold_by_prompt": [5.0, 8.0]},
            {"variant": "b", "seed": 0, "gold_by_prompt": [1.0, 2.0]},
            {"variant": "b", "seed": 1, "gold_by_prompt": [1.0, 2.0]},
        ]
    )
    table = experiments.difference_over_prompts_and_seeds(frame, "gold", "b")
    half = student_t.ppf(0.975, 400 / 272) * 5**0.5
    assert table.loc["a", ["difference", "low", "high"]].tolist() == pytest.approx(
        [3.0, 3.0 - half, 3.0 + half]
    )
    assert table.loc["a", ["prompts", "seeds"]].tolist() == [2, 2]


@pytest.mark.parametrize(
    "seed, prompt, noise",
    [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.12, 1.0, 1.0)],
    ids=["only seeds", "only prompts", "only noise", "mixed"],
)
def test_the_interval_over_prompts_and_seeds_has_the_stated_coverage(seed, prompt, noise):
    # 3 seeds, 76 prompts; the numbers are the standard deviations of the three effects
    generator = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    hits = 0
    for _ in range(600):
        values = seed * normal(3, 1) + prompt * normal(1, 76) + noise * normal(3, 76)
        low, high = interval_over_both(values)
        hits += low <= 0 <= high
    assert 0.92 <= hits / 600 <= 0.995


def test_several_baselines_are_pooled():
    # pooled baseline by prompt: seed 0 (b + c)/2 = 1, 1.5, 2; seed 1 = 2, 3, 4
    more = [
        {"variant": "c", "seed": 0, "gold_by_prompt": [1.0, 2.0, 3.0]},
        {"variant": "c", "seed": 1, "gold_by_prompt": [3.0, 4.0, 5.0]},
    ]
    frame = pd.concat([FRAME, pd.DataFrame(more)], ignore_index=True)
    for function in (
        experiments.difference_over_prompts,
        experiments.difference_over_prompts_and_seeds,
    ):
        table = function(frame, "gold", ["b", "c"])
        # a is 2 and 4 on average, the baselines 1, 2, 2 and 4
        assert list(table.index) == ["a"] and table.loc["a", "difference"] == 3 - 2.25
    with pytest.raises(ValueError, match=r"'b' with 'c' has \[0, 1, 0\]"):
        experiments.difference_over_prompts_and_seeds(frame.head(5), "gold", ["b", "c"])


def test_one_string_is_one_variant_and_both_names_of_a_column_are_known():
    both = FRAME.assign(variant=FRAME["variant"] * 2)  # "aa" and "bb"
    for column in ("gold", "gold_by_prompt"):
        table = experiments.difference_over_prompts(both, column, "bb", "aa")
        assert table.loc["aa", "difference"] == 1.5
    assert experiments.by_prompt(FRAME, "gold_by_prompt").equals(
        experiments.by_prompt(FRAME, "gold")
    )


def test_the_tour_difference_equals_the_paired_difference_of_seed_means():
    tour = experiments.results("tour")

    def mean_by_prompt(method):
        columns = tour[tour["method"] == method]["gold_by_prompt"]
        return [sum(values) / len(values) for values in zip(*columns, strict=True)]

    expected = evaluate.paired_difference(mean_by_prompt("PPO"), mean_by_prompt("best-of-4"))
    table = experiments.difference_over_prompts(tour, "gold", "best-of-4", ["PPO"], by="method")
    assert tuple(table.loc["PPO", ["difference", "low", "high"]]) == pytest.approx(expected)
    assert list(table.index) == ["PPO"] and table.index.name == "method"


def test_variants_with_unequal_prompts_or_seeds_are_refused():
    fewer = pd.DataFrame([*ROWS[:3], ROWS[3] | {"gold_by_prompt": [1.0, 2.0]}])
    with pytest.raises(ValueError, match="Seed 1 of 'b' has 2 prompts and seed 0 has 3"):
        experiments.difference_over_prompts(fewer, "gold", "b")
    shorter = pd.DataFrame([*ROWS[:2], ROWS[2] | {"gold_by_prompt": [1.0, 2.0]}])
    with pytest.raises(ValueError, match="'a' was evaluated on 3 prompts and 'b' on 2"):
        experiments.difference_over_prompts(shorter, "gold", "b")
    with pytest.raises(ValueError, match=r"'a' has the seeds \[0, 1\] and 'b' has \[0\]"):
        experiments.difference_over_prompts_and_seeds(FRAME.head(3), "gold", "b")
    assert experiments.difference_over_prompts(FRAME.head(3), "gold", "b").loc["a", "seeds"] == 1
    with pytest.raises(ValueError, match="No variant is called 'c'; there are 'a', 'b'"):
        experiments.difference_over_prompts(FRAME, "gold", "c")
    with pytest.raises(ValueError, match="No variant is called 'c'; there are 'a', 'b'"):
        experiments.difference_over_prompts(FRAME, "gold", "a", ["c"])
    with pytest.raises(ValueError, match="No variant is called 'b'"):
        experiments.difference_over_prompts(FRAME.head(0), "gold", "b")
    for function in (experiments.mean_over_seeds, experiments.by_prompt):
        with pytest.raises(ValueError, match="No column 'silver"):
            function(FRAME, "silver")


def test_a_table_as_shown_holds_the_mean_and_the_range_as_text():
    table = experiments.shown(FRAME.assign(kl=0.126), {"gold": "gold score", "kl": "KL, nats"})
    assert table.to_dict("index") == {
        "a": {"gold score": "3.00 [2.00, 4.00]", "KL, nats": "0.13 [0.13, 0.13]"},
        "b": {"gold score": "1.50 [1.00, 2.00]", "KL, nats": "0.13 [0.13, 0.13]"},
    }
    one = experiments.shown(FRAME, {"gold": "gold"}, digits=1)
    assert one.loc["b", "gold"] == "1.5 [1.0, 2.0]"
    text = experiments.with_interval(
        pd.DataFrame({"difference": [-0.5], "low": [-1.004], "high": [0.0]}, index=["a"])
    )
    assert text.to_dict() == {"a": "-0.50 [-1.00, 0.00]"}


def test_a_bound_is_printed_as_zero_only_if_it_is_zero():
    def texts(*row):
        frame = pd.DataFrame([row], columns=["difference", "low", "high"])
        return experiments.with_interval(frame).tolist()

    assert texts(-0.2, -0.4, -0.0039) == ["-0.200 [-0.400, -0.004]"]
    assert texts(-0.2, -0.4, -1e-9) == ["-0.20 [-0.40, 0.00]"]  # no more than 4 decimals; no -0.00
    assert texts(-0.001, -0.4, 0.4) == ["0.00 [-0.40, 0.40]"]
    assert texts(0.5, float("nan"), float("nan")) == ["0.50 [nan, nan]"]


def test_the_name_of_a_column_says_what_the_brackets_are():
    mean = experiments.mean_over_seeds(FRAME, "gold")
    assert experiments.with_interval(mean).name == "mean [lowest seed, highest seed]"
    difference = experiments.difference_over_prompts(FRAME, "gold", "b")
    assert experiments.with_interval(difference).name == "difference [95 % interval]"


def test_samples_stand_side_by_side_with_a_row_per_prompt():
    rows = [
        {"variant": v, "seed": s, "samples": {"film a\n": f"{v}{s}a", "film b\n": f"{v}{s}b"}}
        for s in (0, 1)
        for v in ("sft", "ppo")
    ]
    frame = pd.DataFrame([*rows, {"variant": "none", "seed": 0}])
    table = experiments.samples(frame, ["ppo", "sft"], seed=1)
    assert table.to_dict("list") == {"ppo": ["ppo1a", "ppo1b"], "sft": ["sft1a", "sft1b"]}
    assert table.index.tolist() == ["film a", "film b"] and table.index.name == "prompt"
    assert list(experiments.samples(frame)) == ["sft", "ppo"]  # those that have samples
    with pytest.raises(ValueError, match="'none' has no samples with seed 0; there are 'sft', 'p"):
        experiments.samples(frame, ["none"])
    with pytest.raises(ValueError, match="No column 'samples'"):
        experiments.samples(frame[["variant", "seed"]])


def test_load_results_returns_a_list_of_dicts():
    rows = records.load_results("family")
    assert type(rows) is list and type(rows[0]) is dict
    lines = (records.RESULTS / "family.jsonl").read_text(encoding="utf-8").splitlines()
    assert rows == [json.loads(line) for line in lines]


def test_every_exported_name_is_there():
    for name in experiments.__all__:
        assert getattr(experiments, name) is not None
    assert set(experiments.__all__) <= set(dir(experiments))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = experiments.nothing


def test_a_record_is_read_without_importing_the_loops():
    code = (
        "import sys, minirlhf.experiments as e; e.mean_over_seeds(e.results('labels'), 'loss'); "
        "print('transformers' in sys.modules or 'minirlhf.loops' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


CURVE = [  # three settings with two seeds and two prompts, and two variants
    {"variant": name, "seed": seed, "kl": kl, "gold_by_prompt": gold}
    for name, kl, golds in (
        ("strong", 1.0, ([0.0, 2.0], [0.0, 2.0])),
        ("middle", 4.0, ([1.0, 3.0], [1.0, 3.0])),
        ("weak", 16.0, ([1.0, 3.0], [3.0, 5.0])),
        ("between", 2.0, ([2.0, 3.0], [3.0, 4.0])),
        ("beyond", 100.0, ([2.0, 2.0], [2.0, 2.0])),
    )
    for seed, gold in enumerate(golds)
]
SETTINGS = ["weak", "middle", "strong"]  # in any order


def interval(difference, freedom, variance):
    half = student_t.ppf(0.975, freedom) * variance**0.5
    return [difference, difference - half, difference + half]


def test_the_distance_from_a_curve_at_equal_kl_by_hand():
    table = experiments.above_curve(pd.DataFrame(CURVE), "gold", SETTINGS)
    # KL 2 is half-way from 1 to 4 in its logarithm, so both seeds' curves have 0.5 and 2.5 there.
    # D is 1.5 and 0.5, 2.5 and 1.5. MS_seed and MS_prompt are 1, MS_residual is 0.
    numbers = ["difference", "low", "high"]
    assert table.loc["between", numbers].tolist() == pytest.approx(interval(1.5, 2, 2 / 4))
    # The ends of the curves have 1 and 3, 3 and 5, so D is 1 and -1, -1 and -3: MS 4, 4, 0.
    assert table.loc["beyond", numbers].tolist() == pytest.approx(interval(-1, 2, 8 / 4))
    assert (table.seeds == 2).all() and (table.prompts == 2).all()
    text = experiments.with_interval(table)
    assert text.name == "difference [95 % interval]" and text["between"] == "1.50 [-1.54, 4.54]"


def test_each_seed_has_a_curve_of_its_own():
    frame = pd.DataFrame(CURVE)
    apart = frame.assign(kl=frame.kl * (1 + 9 * frame.seed))  # seed 1 goes ten times as far
    whole, moved = (experiments.above_curve(f, "gold", SETTINGS) for f in (frame, apart))
    pd.testing.assert_frame_equal(whole, moved)
    # in seed 1 the order of the settings by KL is another one
    swapped = frame.assign(kl=frame.kl.where(frame.seed == 0, 16 / frame.kl))
    table = experiments.above_curve(swapped, "gold", SETTINGS, "between")
    # seed 1: KL 8, half-way from 4 (1 and 3) to 16 (0 and 2), and D is 2.5 and 1.5 as before
    assert table.loc["between", "difference"] == pytest.approx(1.5)


def test_a_number_per_run_is_compared_with_a_curve_too():
    frame = pd.DataFrame(CURVE)
    frame["fell"] = frame.gold_by_prompt.map(lambda golds: golds[0])
    table = experiments.above_curve(frame, "fell", SETTINGS, "between")
    # D is 1.5 and 2.5: mean 2, s^2 = 0.5
    assert table.loc["between"].tolist() == pytest.approx([*interval(2, 1, 0.5 / 2), 1, 2])


def test_an_interval_over_seeds_needs_two_seeds_that_differ():
    low, high = interval_over_seeds(torch.tensor([1.0, 2.0, 6.0]))
    half = student_t.ppf(0.975, 2) * (7 / 3) ** 0.5  # s^2 is (4 + 1 + 9) / 2 = 7
    assert (low, high) == pytest.approx((3 - half, 3 + half))
    for values in ([1.0], [2.0, 2.0, 2.0], [0.0, 0.0]):
        assert np.isnan(interval_over_seeds(torch.tensor(values))).all()


@pytest.mark.parametrize("own", [0.0, 0.1, 0.5], ids=["prompts", "both", "seeds"])
def test_the_interval_at_equal_kl_has_the_stated_coverage(own):
    """A curve gold = log KL with three seeds, 20 prompts and noise; the variant lies on it.

    `own` is the standard deviation of what a run has of its seed alone, in gold and in log KL.
    """
    generator = np.random.default_rng(0)
    settings, hits = {"a": 0.0, "b": 1.0, "c": 2.0, "on it": 1.3}, 0
    for _ in range(200):
        of_prompt, rows = generator.normal(0, 0.3, 20), []
        for (name, middle), seed in itertools.product(settings.items(), range(3)):
            way = middle + generator.normal(0, own)
            gold = way + generator.normal(0, own) + of_prompt + generator.normal(0, 0.3, 20)
            run = {"variant": name, "seed": seed, "kl": np.exp(way), "gold_by_prompt": list(gold)}
            rows.append(run)
        table = experiments.above_curve(pd.DataFrame(rows), "gold", ["a", "b", "c"], "on it")
        hits += table.low.item() <= 0 <= table.high.item()
    assert 0.92 <= hits / 200 <= 0.995


def test_the_distance_from_a_curve_minus_that_of_another_variant():
    frame = pd.DataFrame(CURVE)
    both = experiments.above_curve(frame, "gold", SETTINGS, "between", minus="beyond")
    assert both.difference.item() == pytest.approx(1.5 - -1)
    itself = experiments.above_curve(frame, "gold", SETTINGS, "beyond", minus="beyond")
    assert itself.difference.item() == 0 and itself[["low", "high"]].isna().all(axis=None)
    halved = frame.assign(halved=frame.kl / 2)
    again = experiments.above_curve(halved, "gold", SETTINGS, "between", kl="halved")
    assert again.difference.item() == pytest.approx(1.5)  # the curve moves along


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda f: f[(f.variant != "weak") | (f.seed == 0)], "'middle' and 'weak' differ in their"),
        (lambda f: f.assign(kl=f.kl - 1), "'strong' has a distance that is not above 0"),
        (lambda f: f[f.variant != "strong"], "No variant is called 'strong'"),
        (lambda f: f.drop(columns="kl"), "No column 'kl'"),
        (
            lambda f: f.assign(gold=f.kl.where(f.seed == 0)).drop(columns="gold_by_prompt"),
            "'weak' has a missing value",
        ),
    ],
)
def test_what_cannot_be_compared_with_a_curve_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        experiments.above_curve(change(pd.DataFrame(CURVE)), "gold", SETTINGS)
