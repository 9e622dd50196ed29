"""The numbers of README.md, docs/results.md and docs/speed.md, recomputed from the records."""

import json
import math
import re
import statistics

import pytest
from safetensors.torch import load_file

from minirlhf.classroom import mine
from minirlhf.evaluate import paired_difference
from minirlhf.experiments.pages import METHODS, TABLES, fill_pages, pages_to_fill
from minirlhf.experiments.practice import group_config
from minirlhf.experiments.recording import NAMES
from minirlhf.experiments.records import RESULTS, load_results, record
from minirlhf.experiments.registry import EXPERIMENTS
from minirlhf.runtime import ROOT
from minirlhf.tasks.agreement import human_ceiling
from minirlhf.tasks.reviews import load_reviews, pairs_within_films
from tests.claims.prose import page, prose_of

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


README, PAGE = ROOT / "README.md", ROOT / "docs" / "results.md"
JUDGES = ("gold", "proxy", "ensemble", "lexicon")


def test_the_numbers_of_the_readme():
    weights = load_file(ROOT / "data" / "checkpoints" / "tiny-reviews" / "model.safetensors")
    with page(README) as said:
        said("These are means over", len(SEEDS))
        said("The models are small:", sum(w.numel() for w in weights.values()) / 1e6)
        said("It ends with exercises. Six of them fill", len(mine.PLACES) == 6)
        said("a step of TRL's GRPO takes", ratio(speed_rows(), "grpo"))


def test_the_numbers_of_the_results():
    with page(PAGE) as said:
        check_tour(said)
        check_reward_model(said)
        check_arithmetic(said)
        check_smollm2(said)


def test_the_table_of_experiments_names_each_of_them_and_the_lessons_that_read_its_record():
    rows = dict(re.findall(r"^\| `(\w+)`.*?\|(.*)\|$", PAGE.read_text("utf-8"), re.MULTILINE))
    assert set(NAMES) | {"smollm2"} <= set(rows)
    for path in sorted((ROOT / "notebooks" / "src").glob("*.py")):
        for arguments in re.findall(r"experiments\.results\(([^)]*)\)", path.read_text("utf-8")):
            for name in re.findall(r'"(\w+)"', arguments):
                linked = rows[name.removesuffix("_history")]
                assert f"{path.stem}.ipynb" in linked, f"{name} is read by {path.stem}"


def check_tour(said):
    films = len(by("PPO", 0)["gold_by_prompt"])
    alone = [
        paired_difference(
            by("PPO", seed)["gold_by_prompt"], by("best-of-4", seed)["gold_by_prompt"]
        )
        for seed in SEEDS
    ]
    difference, low, high = paired_difference(mean_by_prompt("PPO"), mean_by_prompt("best-of-4"))
    assert 0 < low < difference < high
    assert min(d for d, _, _ in alone) > 0 and sum(low <= 0 for _, low, _ in alone) == 1
    said("PPO scores above best-of-4 on every seed**, by", min(alone)[0], max(alone)[0])
    said("Over the three seeds the difference is", difference, low, high)
    said("For one of the three seeds alone the 95 % interval includes", 0)
    kl = {m: mean_of(m, "kl") for m in ("PPO", "DPO", "GRPO")}
    said("PPO's KL is about", kl["PPO"])
    shares = [by("PPO", seed)["distinct_2"] / by("SFT", seed)["distinct_2"] for seed in SEEDS]
    assert min(shares) >= 0.8
    said("Its distinct-2 is", min(shares), max(shares))
    check_judges(said)
    said("DPO's KL is more than twice PPO's", kl["DPO"] > 2 * kl["PPO"])
    said(
        "leaves more reviews unfinished",
        mean_of("DPO", "missing_eos") > mean_of("PPO", "missing_eos"),
    )
    said("GRPO's KL is larger than PPO's", kl["GRPO"] > kl["PPO"])
    said("Three seeds,", films)
    found = [smallest_difference("PPO", "best-of-4", seed) for seed in SEEDS]
    said("difference between PPO and best-of-4 over the", films)
    said("one seed finds a difference of", statistics.mean(found))


def check_judges(said):
    interval = {
        (a, b, judge): paired_difference(mean_by_prompt(a, judge), mean_by_prompt(b, judge))[1:]
        for a, b in (("PPO", "best-of-4"), ("best-of-16", "PPO"), ("PPO", "DPO"), ("GRPO", "PPO"))
        for judge in JUDGES
    }
    above, even = (lambda i: i[0] > 0), (lambda i: i[0] <= 0 <= i[1])
    for pair in (("PPO", "best-of-4"), ("best-of-16", "PPO")):
        for judge in JUDGES:
            said("All four judges put PPO above best-of-4", above(interval[*pair, judge]))
    for judge in ("gold", "ensemble", "lexicon"):
        said(
            "PPO and DPO are even for three of the four judges", even(interval["PPO", "DPO", judge])
        )
    said("Only the proxy", above(interval["PPO", "DPO", "proxy"]))
    said("Gold puts GRPO above PPO", above(interval["GRPO", "PPO", "gold"]))
    for judge in ("proxy", "ensemble", "lexicon"):
        said("no other judge does", even(interval["GRPO", "PPO", judge]))


def mean_of(method, column):
    return statistics.mean(by(method, seed)[column] for seed in SEEDS)


def smallest_difference(method, other, seed):
    """The difference that a two-sided test at 5 % finds with probability 0.8, films as pairs."""
    pairs = zip(by(method, seed)["gold_by_prompt"], by(other, seed)["gold_by_prompt"], strict=True)
    each = [a - b for a, b in pairs]
    normal = statistics.NormalDist()
    return (
        (normal.inv_cdf(0.975) + normal.inv_cdf(0.8))
        * statistics.stdev(each)
        / math.sqrt(len(each))
    )


def check_reward_model(said):
    fewest = min(len(review.ratings) for review in load_reviews() if review.ratings)
    said("It learned from the *mean* rating of", fewest)


@pytest.mark.parametrize("seed", SEEDS)
def test_ppo_keeps_a_small_kl_and_does_not_collapse(seed):
    ppo = by("PPO", seed)
    assert ppo["kl"] <= 3
    assert ppo["opening_share"] <= 0.2
    assert ppo["missing_eos"] < 0.1


def test_the_tables_of_the_pages_equal_the_records():
    assert TABLES["tour"](RESULTS).count("\n") == TABLES["reward"](RESULTS).count("\n") == 8
    text = "".join(pages_to_fill().values())
    for name, table in TABLES.items():
        assert f"<!-- {name} -->\n{table(RESULTS)}<!-- /{name} -->" in text, (
            "run `minirlhf experiment --tables`, which fills them in"
        )


def check_smollm2(said):
    rows = {row["method"]: row for row in load_results("smollm2")}
    head, ours = rows["reward head"], rows["tiny-reviews-reward"]
    for method, words in (
        ("reward head", "A reward head on SmolLM2:"),
        ("DPO's implicit reward", "The implicit reward of DPO on SmolLM2:"),
        ("tiny-reviews-reward", "Our own `tiny-reviews-reward`, on the same pairs:"),
    ):
        row = rows[method]
        assert row["low"] > 0.5 and (row["pairs"], row["films"]) == (head["pairs"], head["films"])
        said(words, row["accuracy"], row["low"], row["high"])
    said("Each model is asked about", head["pairs"], head["films"])
    said("the reward head on SmolLM2 is ahead of our own model", head["low"] > ours["accuracy"])
    assert sum(row.get("seconds", 0) for row in rows.values()) < 20 * 60


def check_arithmetic(said):
    runs = load_results("family")

    def mean(variant, key, rows=runs):
        return statistics.mean(row[key] for row in rows if row["variant"] == variant)

    start, grpo, plain = "start", "grpo, 400 steps", "reinforce, 400 steps"
    of_grpo = [row for row in runs if row["variant"] == grpo]
    steps = EXPERIMENTS["family"][grpo]["given"]["steps"]
    assert group_config("arithmetic", "grpo").steps == steps
    said("GRPO improves single answers a lot", mean(grpo, "pass_1") > 1.5 * mean(start, "pass_1"))
    said("`minirlhf grpo --task arithmetic` takes", steps, mean(grpo, "seconds") / 60)
    said("The record has", len(of_grpo), len(of_grpo[0]["pass_1_by_prompt"]))
    said("The share of problems solved rises from", mean(start, "greedy"), mean(grpo, "greedy"))
    said("for greedy answers, and from", mean(start, "pass_1"), mean(grpo, "pass_1"))
    said("pass@16 stays at", *sorted(mean(variant, "pass_16") for variant in (start, grpo)))
    harder = load_results("longer")
    for words, key in (("There pass@1 rises from", "pass_1"), ("does not rise: it is", "pass_16")):
        said(words, *(mean(variant, key, harder) for variant in (start, grpo)))
    said("Responses become twice as long", 1.8 < mean(grpo, "length") / mean(start, "length") < 2.1)
    config = group_config("arithmetic", "reinforce")
    said("with one response to each of", config.prompts_per_step)
    said("prompts, reaches", mean(plain, "greedy"), mean(plain, "pass_1"))


def speed_rows():
    lines = (ROOT / "tests" / "benchmarks" / "results.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [row for row in rows if "round" in row and not row["bf16"]]


def ratio(rows, task):
    """The median over rounds of their seconds over ours."""
    same = [row for row in rows if row["task"] == task]
    ours, theirs = (
        {r["round"]: r["seconds"] for r in same if (r["side"] == "minirlhf") == mine}
        for mine in (True, False)
    )
    return statistics.median(theirs[number] / ours[number] for number in ours)


def test_the_numbers_of_the_speed_against_the_libraries():
    said, rows = prose_of(ROOT / "docs" / "speed.md"), speed_rows()
    for task, words in {
        "sft": "SFT",
        "dpo": "DPO",
        "grpo": "GRPO",
        "rloo": "RLOO",
        "ppo": "PPO",
        "reward": "a reward model",
    }.items():
        said(f"{words} {ratio(rows, task):.2f}", True)
    said("`generate` of transformers", ratio(rows, "generate"))
    shares = [
        statistics.median(
            row["sampling"]
            for row in rows
            if row["task"] == "grpo" and (row["side"] == "minirlhf") == ours
        )
        for ours in (False, True)
    ]
    said("Sampling is", *shares)


MARKED = "".join(f"above\n<!-- {name} -->\nstale\n<!-- /{name} -->\nbelow\n" for name in TABLES)


def folder_of_pages(folder, readme, page=""):
    (folder / "docs").mkdir(exist_ok=True)
    (folder / "README.md").write_text(readme)
    (folder / "docs" / "page.md").write_text(page)
    return folder


def test_each_table_is_filled_on_the_page_that_has_its_marks(tmp_path):
    origin = {"claim": "c", "commit": "c", "command": "c"}
    numbers = dict.fromkeys(METHODS.values(), 1.0)
    methods = ("SFT", "best-of-16", "PPO", "DPO", "GRPO")
    record(
        "tour",
        [
            origin | numbers | {"method": method, "seed": s, "gold": g, "kl": 0.25}
            for method in methods
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
    first, second = MARKED[: (cut := MARKED.index("above", 1))], MARKED[cut:]
    root = folder_of_pages(tmp_path, first, second)
    assert fill_pages(root, tmp_path) == [root / "README.md", root / "docs" / "page.md"]
    readme, page = (root / "README.md").read_text(), (root / "docs" / "page.md").read_text()
    assert "| PPO | 1.50 | 1.00 |" in readme and "stale" not in readme + page
    assert "| KL from SFT, nats |" + 5 * " 0.25 |" in page
    assert "| 0 to 0.5 | 0.25 | 0.50 | 1.00 | 0.75 |" in page
    for text, tables in ((readme, 1), (page, len(TABLES) - 1)):
        assert text.splitlines().count("above") == text.splitlines().count("below") == tables
    assert fill_pages(root, tmp_path) == []  # nothing is left to change


@pytest.mark.parametrize(
    "readme, page, sentence",
    [
        ("no table", "", "The table 'tour' stands on no page"),
        (MARKED, "<!-- tour -->\n<!-- /tour -->\n", "stands on README.md and docs/page.md"),
        (MARKED, "<!-- chess -->\n", "'<!-- chess -->' in docs/page.md names no table; it must be"),
        (MARKED.replace("<!-- /tour -->", ""), "", "'<!-- tour -->' in README.md is not followed"),
        (MARKED + "<!-- tour -->\n", "", "'<!-- tour -->' in README.md is not followed"),
        (MARKED.replace("<!-- tour -->", ""), "", "'<!-- /tour -->' in README.md does not follow"),
    ],
)
def test_wrong_marks_are_refused_in_one_sentence(readme, page, sentence, tmp_path):
    root = folder_of_pages(tmp_path, readme, page)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        fill_pages(root)
    assert (root / "README.md").read_text() == readme


def _recorded(name):
    return (RESULTS / f"{name}.jsonl").is_file()


def test_the_page_of_results_names_every_experiment_and_lessons_that_read_it():
    rows = re.findall(r"^\| `(\w+)`.* \| (.*) \|$", PAGE.read_text(encoding="utf-8"), re.M)
    assert [name for name, _ in rows] != [] and {name for name, _ in rows} == {*NAMES, "smollm2"}
    for name, lessons in rows:
        sources = re.findall(r"notebooks/(\w+)\.ipynb", lessons)
        # an experiment that no lesson reads yet has no record yet
        assert bool(sources) or (lessons == "none yet" and not _recorded(name)), name
        for source in sources:
            text = (ROOT / "notebooks" / "src" / f"{source}.py").read_text(encoding="utf-8")
            # a lesson may quote a record without a table or figure
            command = re.search(rf"`minirlhf (experiment )?{name}`", text)
            assert re.search(rf'"{name}(_history)?"', text) or command, (name, source)
