"""The lines of a run: they fit a terminal, and the last one says where nothing was learned."""

import io
import json
import re

import pytest
from rich.console import Console
from typer.testing import CliRunner

from minirlhf import cli, loops
from minirlhf.cli import terminal
from minirlhf.models.heads import ScalarModel
from minirlhf.models.load import save_policy
from minirlhf.runtime import History
from minirlhf.show.progress import SHOWN, Progresses, metrics_line
from tests.tiny import tiny_policy, tiny_tokenizer

REWARDS = {
    "zero": "[0.0] * len(completions)",
    "by_prompt": "[float(p.endswith('1')) for p in prompts]",
    "by_text": "[float(sum(map(ord, c))) for c in completions]",
}


@pytest.fixture
def made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_policy(tiny_policy(), tiny_tokenizer(), "policy")
    ScalarModel(tiny_policy().base_model).save("scorer", tiny_tokenizer())
    rows = [{"prompt": f"q{i}", "chosen": "good", "rejected": "bad"} for i in range(4)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name, value in REWARDS.items():
        code = f"def reward(prompts, completions, **columns):\n    return {value}\n"
        (tmp_path / f"{name}.py").write_text(code)


def run(command, *given):
    given = [command, "--model", "policy", "--dataset", "rows.jsonl", "--steps", 2, *given]
    result = CliRunner().invoke(cli.app, [str(part) for part in given])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def sampled(command, reward):
    given = ["--reward", f"{reward}.py", "--max-new-tokens", 4, "--out", "out"]
    given += ["--batch-size", 4, "--group-size", 2 if command != "reinforce" else 1]
    given += ["--scorer", "scorer"] * (command == "ppo")
    return run(command, *given).strip().splitlines()[-1]


SAME = "In all steps so far (2) every response had the same score (0), so nothing could be learned"
GROUPS = "In all steps so far (2) all responses of a group had equal scores, so nothing could be"


@pytest.mark.parametrize("command", ["ppo", "grpo", "online-dpo"])
def test_a_score_that_is_always_the_same_is_said_at_the_end(command, made):
    assert sampled(command, "zero").startswith(SAME)


def test_scores_that_are_equal_in_each_group_teach_only_what_compares_with_others(made):
    assert sampled("grpo", "by_prompt").startswith(GROUPS)
    assert sampled("reinforce", "by_prompt") == "Wrote out."


def test_pairs_that_were_never_there_are_said():
    row = {"score": 1.0, "score_range": 0.5, "pairs": 0}
    history = History([row, {"pairs": 0}])
    assert "no two responses to a prompt had different texts" in loops.nothing_learned(history)
    assert loops.nothing_learned(History([row, {"pairs": 1}])) == ""
    assert loops.nothing_learned(History([row | {"score_range": 0, "pairs": 4}])) == ""  # KTO
    assert loops.nothing_learned(History([{"score": 1.0}])) == ""  # an older run
    assert loops.nothing_learned(History([{"loss": 1.0}])) == ""


SAMPLED = {"score": -1.2, "gold": 0.1, "kl": 12.3, "entropy": 1, "length": 31.4, "clip_fraction": 0}
PAIRS = {"rewards/accuracies": 1, "rewards/margins": -0.2, "displaced": 0.5}
ROWS = {
    "ppo": SAMPLED,
    "grpo": SAMPLED,
    "dpo": {"loss": 0.693} | PAIRS,
    "reward": {"loss": 0.693, "accuracy": 0.5, "margin": -0.1},
    "sft": {"loss": 4.123},
}


@pytest.mark.parametrize("command", ROWS)
def test_the_lines_of_a_run_fit_a_terminal_of_80_columns(command):
    screen = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    row = {"stage": command, "step": 0} | ROWS[command]
    with Progresses(screen) as progress:
        progress(row | {"steps": 2})
    text, line = screen.file.getvalue(), metrics_line(row, 80)
    assert f"{line}\n" in text.replace("\r", "\n") and len(line) <= 80
    told = f"{command}: accuracy is that of the training batches, not of held-out pairs."
    assert text.count(told) == (command in ("dpo", "reward"))


def test_the_commands_have_a_line_of_80_columns(made, monkeypatch):
    screen = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    monkeypatch.setattr(terminal, "console", screen)
    run("dpo", "--out", "out")
    assert re.search(r"   dpo    0  loss 0.693  accuracy .*  displaced ", screen.file.getvalue())


def test_a_line_has_the_metrics_that_fit_and_all_of_them_outside_a_terminal():
    row = {"stage": "iterative-dpo", "step": 4321} | dict.fromkeys(SHOWN, -10.0)
    for width in (40, 80, 120):
        line = metrics_line(row, width)
        assert width - 20 < len(line) <= width
        assert metrics_line(row, None).startswith(line)
    out = io.StringIO()
    with Progresses(Console(file=out, width=80)) as progress:
        progress(row | {"steps": 5000})
    progress.every = 1
    assert metrics_line(row, None) not in out.getvalue()  # step 4321 is no fifth step
    progress(row | {"steps": 5000})
    assert metrics_line(row, None) + "\n" in out.getvalue()
