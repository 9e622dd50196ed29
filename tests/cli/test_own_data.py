"""The command line with the reader's own data and model, and a run that is stopped and resumed."""

import json
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from typer.testing import CliRunner

from minirlhf import cli
from minirlhf.cli import judging, online
from minirlhf.cli.terminal import PARTIAL
from minirlhf.experiments import smollm2
from minirlhf.loops.config import OptimiserConfig
from minirlhf.loops.online import ONLINE
from minirlhf.loops.ppo import PPOConfig
from minirlhf.loops.preference import LOSSES, DPOConfig
from minirlhf.loops.reward import RewardConfig
from minirlhf.models.load import load_policy, load_scalar, save_policy
from minirlhf.rewards.model import text_judge
from minirlhf.runtime import ROOT, SMOLLM2
from minirlhf.tasks import reviews, sources
from tests.loops.test_preference_loop import AT_THE_START
from tests.tasks.test_formats import TEMPLATE
from tests.tiny import needs_posix, tiny_policy, tiny_tokenizer

ROWS = [
    {
        "prompt": f"film {i}\n",
        "chosen": f"a good one, number {i}",
        "rejected": f"a bad one, number {i}",
    }
    for i in range(12)
]
FORMATS = {
    "explicit": ROWS,
    "implicit": [
        {"chosen": r["prompt"] + r["chosen"], "rejected": r["prompt"] + r["rejected"]} for r in ROWS
    ],
    "unpaired": [
        {"prompt": r["prompt"], "completion": r[side], "label": side == "chosen"}
        for r in ROWS
        for side in ("chosen", "rejected")
    ],
}


@pytest.fixture
def tiny(tmp_path):
    """A tiny model on disk, small enough to train in a second."""
    save_policy(tiny_policy(), tiny_tokenizer(), tmp_path / "tiny")
    return str(tmp_path / "tiny")


def invoke(*arguments):
    result = CliRunner().invoke(cli.app, list(map(str, arguments)))
    assert result.exception is None, repr(result.exception)
    return result.output


def data(tmp_path, rows):
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "rows.jsonl"


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("command", ["sft", "reward", "dpo"])
def test_a_command_trains_on_a_local_dataset(command, form, tiny, tmp_path):
    steps = ["--epochs", 0.5] if command == "sft" else ["--steps", 2]
    invoke(
        command,
        "--model",
        tiny,
        "--dataset",
        data(tmp_path, FORMATS[form]),
        *steps,
        "--out",
        tmp_path / "out",
    )
    assert (load_scalar if command == "reward" else load_policy)(tmp_path / "out")
    rows = [
        json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    ]
    assert rows[0]["loss"] > 0 and not (tmp_path / "out" / PARTIAL).exists()


def pair_of(number, word):
    return [
        {"role": "user", "content": f"q{number}"},
        {"role": "assistant", "content": f"{word} {number}"},
    ]


PUBLIC = {  # files as public sets have them: (name, content of row i, the columns as they are said)
    "hh-rlhf": (
        "hh.jsonl.gz",
        lambda i: {
            "chosen": f"\n\nHuman: q{i}\n\nAssistant: good {i}",
            "rejected": f"\n\nHuman: q{i}\n\nAssistant: bad {i}",
        },
        "prompt = the common beginning of chosen and rejected; chosen; rejected.",
    ),
    "UltraFeedback": (
        "ultra.parquet",
        lambda i: {
            "prompt": f"q{i}",
            "prompt_id": str(i),
            "chosen": pair_of(i, "good"),
            "rejected": pair_of(i, "bad"),
            "messages": pair_of(i, "good"),
            "score_chosen": 8.5,
        },
        "prompt; chosen; rejected. Ignored: prompt_id, messages, score_chosen.",
    ),
    "Alpaca": (
        "alpaca.json",
        lambda i: {"instruction": f"Say {i}", "input": "x" * (i % 2), "output": f"good {i}"},
        "prompt = instruction + input; completion = output.",
    ),
    "ShareGPT": (
        "share.json",
        lambda i: {
            "id": str(i),
            "conversations": [
                {"from": "human", "value": f"q{i}"},
                {"from": "gpt", "value": f"good {i}"},
            ],
        },
        "messages = conversations. Ignored: id.",
    ),
    "a spreadsheet": (
        "mine.csv",
        lambda i: {"Question": f"q{i}", "Answer": f"good {i}"},
        "prompt = Question; completion = Answer.",
    ),
}
WRITERS = {
    ".parquet": lambda rows, path: rows.to_parquet(path),
    ".json": lambda rows, path: rows.to_json(path, lines=False),
    ".csv": lambda rows, path: rows.to_csv(path),
    ".gz": lambda rows, path: rows.to_json(path, compression="gzip"),
}


@pytest.mark.parametrize(
    "command, kind",
    [
        *((command, kind) for command in ("sft", "reward", "dpo") for kind in list(PUBLIC)[:2]),
        *(("sft", kind) for kind in list(PUBLIC)[2:]),
    ],
)
def test_a_command_trains_on_files_like_those_of_public_sets(command, kind, tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    save_policy(tiny_policy(), tokenizer, tmp_path / "tiny")
    name, row, columns = PUBLIC[kind]
    file = tmp_path / name
    WRITERS[file.suffix](Dataset.from_list([row(i) for i in range(12)]), file)
    steps = ["--epochs", 0.5] if command == "sft" else ["--steps", 1]
    more = ["--columns", "prompt=Question,completion=Answer"] if kind == "a spreadsheet" else []
    given = ["--model", tmp_path / "tiny", "--dataset", file, "--out", tmp_path / "out"]
    said = " ".join(invoke(command, *given, *steps, *more).split())
    assert f"{name}: 12 rows; {columns}" in said
    assert (load_scalar if command == "reward" else load_policy)(tmp_path / "out")


@pytest.mark.parametrize("command", ["sft", "reward", "dpo"])
def test_rows_that_cannot_be_used_are_refused_or_left_out(command, tiny, tmp_path):
    bad = [{**ROWS[0], "chosen": None}, {**ROWS[0], "prompt": None}]
    given = [command, "--model", tiny, "--dataset", data(tmp_path, [*ROWS, *bad]), "--out"]
    refused = CliRunner().invoke(cli.app, [*map(str, given), str(tmp_path / "out")]).exception
    assert isinstance(refused, ValueError) and "2 of 14 rows cannot be used" in str(refused)
    assert str(refused).startswith("rows.jsonl, row 13, column chosen: ")
    steps = ["--epochs", 0.5] if command == "sft" else ["--steps", 1]
    said = " ".join(invoke(*given, tmp_path / "out", "--skip-invalid", *steps).split())
    assert "rows.jsonl: 12 of 14 rows; prompt; chosen; rejected. Left out: " in said
    for column, row in (("chosen", 13), ("prompt", 14)):
        assert f"a value of {column} that is missing or no text: 1 row ({row})" in said


def test_the_first_rows_of_a_file_are_said_to_be_the_first(tiny, tmp_path):
    given = ["--model", tiny, "--dataset", data(tmp_path, ROWS), "--out", tmp_path / "out"]
    said = " ".join(invoke("dpo", *given, "--rows", 8, "--steps", 1).split())
    assert "rows.jsonl: the first 8 rows (--rows); prompt; chosen; rejected." in said


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_is_a_command(loss, tiny, tmp_path):
    rows = data(tmp_path, FORMATS["unpaired" if loss == "kto" else "explicit"])
    given = {
        "dpop": ["--setting", "penalty=3e0", "--setting", "beta=.5"],
        "tdpo": ["--setting", "alpha=none"],
    }.get(loss, [])
    invoke(
        "dpo",
        "--loss",
        loss,
        "--model",
        tiny,
        "--dataset",
        rows,
        "--steps",
        2,
        "--out",
        tmp_path / "out",
        *given,
    )
    first = json.loads((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()[0])
    if loss in AT_THE_START:
        assert (
            first["loss"] == pytest.approx(AT_THE_START[loss], abs=1e-5)
            and first["rewards/margins"] == 0
        )
    else:  # without a reference the reward is log pi itself, so its margin is not 0
        assert first["loss"] > 0 != first["rewards/margins"]


def test_a_model_is_saved_even_if_it_is_too_short_for_evaluation(tmp_path, monkeypatch):
    monkeypatch.setattr(reviews, "preference_pairs", lambda *a, **k: Dataset.from_list(ROWS))
    for positions, said in (
        (96, "Held-out films: gold"),
        (48, "Not judged on the held-out films: A prompt of"),
    ):
        save_policy(tiny_policy(positions=positions), tiny_tokenizer(), tmp_path / str(positions))
        told = invoke(
            "dpo",
            "--model",
            tmp_path / str(positions),
            "--steps",
            1,
            "--out",
            tmp_path / f"out-{positions}",
        )
        assert said in " ".join(told.split()) and load_policy(tmp_path / f"out-{positions}")


@pytest.mark.parametrize(
    "given, beta, accepted",
    [
        ([], 0.5, 0.5),
        (["--beta", 0.2], 0.2, 0.2),
        (["--setting", "beta=0.3"], 0.3, 0.3),
        (["--loss", "ipo"], 0.1, 0.5),
    ],
)
def test_rso_uses_a_given_beta_for_the_loss_and_for_acceptance(
    given, beta, accepted, tmp_path, monkeypatch
):
    taken = []
    monkeypatch.setattr(online, "train_online", lambda *a, **k: taken.append(a[4]) or 1 / 0)
    result = CliRunner().invoke(cli.app, ["rso", *map(str, given), "--out", str(tmp_path / "out")])
    assert isinstance(result.exception, ZeroDivisionError)
    assert (taken[0].dpo.of_loss["beta"], taken[0].accept_beta) == (beta, accepted)


@pytest.mark.parametrize("name", [*ONLINE, "sft"])
def test_every_online_method_and_best_of_n_sft_are_commands(name, tmp_path, monkeypatch):
    monkeypatch.setattr(reviews, "rl_prompts", lambda: ["a film\n", "another\n", "a third\n"])
    monkeypatch.setattr(
        judging,
        "judged",
        lambda task, policy, tokenizer, **given: {
            "gold": 1.0,
            "gold_low": 0.5,
            "gold_high": 1.5,
            "kl": 2.0,
            "length": 9.0,
            "distinct_2": 0.8,
        },
    )
    steps = ["--epochs", 0.4, "--best-of", 2] if name == "sft" else ["--steps", 1]
    said = invoke(name, *steps, "--out", tmp_path / "out")
    rows = [
        json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    ]
    assert len(rows) == 1 and load_policy(tmp_path / "out")
    if name != "sft":
        assert (
            "gold 1.00 [0.50, 1.50], KL 2.0 nats, 9 tokens" in " ".join(said.split())
            and rows[0]["pairs"] > 20
        )
    else:
        assert rows[0]["loss"] < 4  # nats a token, on the model's own words


@pytest.mark.parametrize(
    "options",
    [["--lora", 4], ["--lora", 4, "--bf16", "--recompute"], ["--micro-batch", 2], ["--recompute"]],
)
def test_options_that_save_memory_keep_the_loss(options, tiny, tmp_path):
    losses = []
    for name, given in (("plain", []), ("saving", options)):
        invoke(
            "dpo",
            "--model",
            tiny,
            "--dataset",
            data(tmp_path, ROWS),
            "--steps",
            2,
            "--out",
            tmp_path / name,
            *given,
        )
        rows = [
            json.loads(line)
            for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        ]
        losses.append([row["loss"] for row in rows])
    assert losses[0][0] == pytest.approx(losses[1][0], abs=1e-6)
    if "--lora" in options:
        assert abs(losses[1][1] - losses[1][0]) > 1e-6  # it learns
    else:  # the same run, in less memory
        assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    load_policy(tmp_path / "saving")


def run_code(page, tiny):
    """Run the Python blocks of a page in order. Returns their names, stages and configs."""
    names, stages, configs = {}, [], []
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.S):
        code = block.replace('"gpt2"', repr(str(tiny))).replace("steps=10", "steps=1")
        code = code.replace('"chosen": "..."', '"chosen": "other"')  # the two must differ
        names.pop("history", None)
        exec(compile(code, page.name, "exec"), names)
        stages += [row["stage"] for row in names.get("history", [])[-1:]]
        configs += [names["config"]] if "config = " in code else []
    return names, stages, configs


def test_the_code_of_the_readme_runs(tiny):
    names, stages, _ = run_code(ROOT / "README.md", tiny)
    assert stages == ["grpo"] and names["history"][-1]["score"] < 0  # minus the length of a text


def test_the_code_on_your_own_data_runs(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # it writes files
    shutil.copytree(tiny, "my-model")
    lines = [f'{{"prompt": "p{i % 60}", "n": {i}}}\n' for i in range(180)]
    Path("questions.jsonl").write_text("".join(lines))
    names, stages, _ = run_code(ROOT / "docs" / "your_own.md", tiny)
    train = Path("train.jsonl").read_text().splitlines()
    kept = Counter(json.loads(line)["prompt"] for line in train)
    assert set(kept.values()) == {3} and 45 <= len(kept) < 60  # all rows of a prompt, or none
    assert stages == ["dpo", "sft", "grpo", "grpo", "ppo"]
    assert list(names["table"].model) == ["new", "base"] and names["table"].kl[0] > 0
    # what transformers gives, with the numbers of scalar.json, is the score
    model, tokenizer = load_scalar(tmp_path / "out" / "scorer")
    expected = text_judge([model], tokenizer)(["the film\n"], ["A warm, funny film."]).item()
    assert names["score"] == pytest.approx(expected, abs=1e-2)  # it computes in float16


def test_the_code_of_the_page_on_the_code_runs(tiny):
    names, _, configs = run_code(ROOT / "docs" / "code.md", tiny)
    assert configs[0] == PPOConfig.plain(steps=3) and configs[1].stage == "group"
    assert list(names["table"].columns) == ["mean", "low", "high", "seeds"]
    assert names["advantages"][0, 1:3].tolist() == [0, 0]  # a tool's tokens


def test_every_page_with_python_code_is_run():
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    with_code = {p.name for p in pages if "```python" in p.read_text(encoding="utf-8")}
    assert with_code == {"README.md", "your_own.md", "code.md", "teaching.md"}


def test_the_code_of_the_page_on_teaching_says_not_yet(tiny, capsys):
    names, *_ = run_code(ROOT / "docs" / "teaching.md", tiny)
    assert capsys.readouterr().out.startswith("not yet: ")
    assert not names["check"].group_advantages(names["group_advantages"])


@needs_posix
@pytest.mark.usefixtures("usual_signals")
def test_a_command_resumed_after_ctrl_c_gives_the_same_weights(tiny, tmp_path):
    def options(out):
        rows = data(tmp_path, ROWS)
        given = ["--model", tiny, "--dataset", rows, "--steps", 60, "--out", tmp_path / out]
        return ["dpo", *map(str, given)]

    invoke(*options("whole"))
    run = subprocess.Popen(  # Ctrl-C goes to a process of its own
        [sys.executable, "-m", "minirlhf.cli", *options("stopped")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    next(line for line in run.stdout if "loss" in line)  # wait until it trains
    run.send_signal(signal.SIGINT)
    said, errors = run.communicate(timeout=120)
    assert run.returncode == 130, said + errors
    assert "--resume" in " ".join(said.split()) and "Traceback" not in errors
    again = CliRunner().invoke(cli.app, options("stopped")).exception
    assert isinstance(again, ValueError) and "continue it with --resume" in str(again)
    resumed = invoke(*options("stopped"), "--resume")
    assert "dpo    0" not in resumed  # it does not start from step 0
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert (tmp_path / "whole" / "metrics.jsonl").read_text() == (
        tmp_path / "stopped" / "metrics.jsonl"
    ).read_text()


def test_smollm2_is_downloaded_only_on_request(tmp_path, monkeypatch):
    monkeypatch.setattr("minirlhf.models.load.CACHE", tmp_path)
    with pytest.raises(ValueError, match=f"`minirlhf data --model {SMOLLM2}` once"):
        load_policy(SMOLLM2)
    monkeypatch.setattr(sources, "CACHE", tmp_path)
    monkeypatch.setattr(
        sources,
        "fetch",
        lambda pins=sources.SOURCES: (_ for _ in ()).throw(sources.SourceError("no network")),
    )
    with pytest.raises(sources.SourceError):
        sources.fetch_smollm2()
    assert not list(tmp_path.iterdir())
    save_policy(
        tiny_policy(), tiny_tokenizer(), tmp_path / SMOLLM2
    )  # a model that is already there is not downloaded again
    assert sources.fetch_smollm2() == tmp_path / SMOLLM2 and load_policy(SMOLLM2)


def test_the_smollm2_comparison_saves_a_reward_model_and_a_policy(tiny, tmp_path):
    save_policy(
        tiny_policy(positions=160), tiny_tokenizer(), tiny
    )  # film titles are long at one token a byte
    config = smollm2.SmolConfig(
        sentence="A film.",
        model=tiny,
        rank=2,
        pairs=50,
        held_out=20,
        split="val",
        reward=RewardConfig(
            steps=2, batch_size=8, dropout=0.0, max_response=32, optimiser=OptimiserConfig(lr=1e-3)
        ),
        dpo=DPOConfig(steps=2, batch_size=4, max_response=32, optimiser=OptimiserConfig(lr=1e-3)),
    )
    rows = smollm2.train_and_compare(tmp_path / "out", config)
    assert [row["method"] for row in rows] == [
        "reward head",
        "tiny-reviews-reward",
        "DPO's implicit reward",
        "prefixes",
    ]
    assert all(
        0 <= row["low"] <= row["accuracy"] <= row["high"] <= 1 and row["pairs"] == 20
        for row in rows[:3]
    )
    assert len(rows[3]["tokens"]) == len(rows[3]["with_eos"]) == len(rows[3]["one_pass"]) == 7
    assert load_scalar(tmp_path / "out" / "reward") and load_policy(tmp_path / "out" / "dpo")
    assert not list((tmp_path / "out").glob("*.safetensors"))  # a second run trains again


def test_accuracy_and_its_interval_are_over_films():
    pairs = Dataset.from_list(
        [{"prompt": p, "chosen": c, "rejected": "b"} for p, c in [("x", "aaa")] * 3 + [("y", "")]]
    )
    found = smollm2.accuracy(
        pairs, lambda prompts, texts: torch.tensor([float(len(t)) for t in texts])
    )
    assert found == {
        "accuracy": 0.5,
        "low": 0.0,
        "high": 1.0,
        "films": 2,
        "pairs": 4,
    }  # all pairs of x are right, the pair of y is wrong


def test_the_implicit_judge_is_the_implicit_reward_of_dpo():
    model = smollm2.fitted(tiny_policy(), lora=2)
    judge = smollm2.implicit_judge(model, tiny_tokenizer(), beta=0.5, max_response=8)
    assert torch.allclose(
        judge(["a"] * 3, ["b", "c", "dd"]), torch.zeros(3), atol=1e-6
    )  # nothing learned yet
    config = DPOConfig(steps=8, batch_size=12, optimiser=OptimiserConfig(lr=1e-2))
    smollm2.train_dpo(model, tiny_tokenizer(), Dataset.from_list(ROWS), config)
    prompts, chosen, rejected = (
        [row[name] for row in ROWS] for name in ("prompt", "chosen", "rejected")
    )
    judge = smollm2.implicit_judge(model, tiny_tokenizer(), beta=0.5, max_response=8)
    assert (judge(prompts, chosen) > judge(prompts, rejected)).all()
