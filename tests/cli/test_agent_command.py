"""agent: on products with the calculator, with a tool of the reader's own, and what it refuses."""

import json
from functools import partial

import pytest
from typer.testing import CliRunner

from minirlhf import cli
from minirlhf.cli import agent
from minirlhf.experiments.multi_turn import multi_turn_config
from minirlhf.models.load import load_policy, same_weights, save_policy
from minirlhf.runtime import History
from minirlhf.show.progress import Progresses
from minirlhf.tasks.calculator import OUTCOMES, Calculator
from tests.models.test_tool import TOKENIZER, policy

TOOL = """
CALL_END = "]"
calls = [0]

def run(text):
    calls[0] += 1
    {}
    return "{{7}}"
"""
REWARD = """
def reward(prompts, completions, **columns):
    return [text.count("{7}") + text.count("1") for text in completions]
"""
NAMES = ("right", "low", "high", *OUTCOMES)


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A small policy with the symbols of the calculator, prompts, a tool and a reward."""
    save_policy(policy().float(), TOKENIZER, tmp_path / "policy")
    rows = [{"prompt": f"{i}{i}+1="} for i in range(1, 9)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "tool.py").write_text(TOOL.format(""))
    (tmp_path / "reward.py").write_text(REWARD)
    monkeypatch.setattr(agent, "asked_once", partial(agent.asked_once, asked=8))
    monkeypatch.setattr(agent, "product_prompts", lambda: ["47*83+5=", "10*10-1=", "5+12*34="])
    return tmp_path


def run(own, *more, steps=2, files=True):
    given = ["--model", own / "policy", "--steps", steps, "--iterations", 2, "--lr", 0.01]
    given += ["--batch-size", 4, "--group-size", 3, "--max-new-tokens", 16, "--out", own / "out"]
    if files:
        given += ["--dataset", own / "rows.jsonl", "--tool", own / "tool.py"]
        given += ["--reward", own / "reward.py"]
    return CliRunner().invoke(cli.app, ["agent", *map(str, [*given, *more])])


def said(result):
    assert result.exception is None, repr(result.exception)
    return " ".join(result.output.split())


@pytest.mark.parametrize("method", ["grpo", "dpo", "kto"])
def test_the_policy_is_judged_before_training_and_after_each_iteration(method, own):
    more = ["--reference-follows"] * (method == "dpo")
    told = said(run(own, "--method", method, "--error-rate", 0.5, *more, files=False))
    for when in ("before training", "after iteration 1 of 2", "after iteration 2 of 2"):
        assert f"Held-out problems {when}: " in told
    assert told.count("95 % interval") == told.count("no end of call") == 3
    assert len(History.load(own / "out" / "metrics.jsonl")) == 2


def test_a_policy_trains_with_a_tool_of_ones_own(own):
    told = said(run(own))
    assert "rows.jsonl: 8 rows; prompt." in told and "Held-out" not in told
    history = History.load(own / "out" / "metrics.jsonl")
    assert len(history) == 2
    assert not same_weights(load_policy(own / "out")[0], load_policy(own / "policy")[0])


def test_the_defaults_are_those_of_the_experiment(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(agent, "asked_once", lambda *a, **k: dict.fromkeys(NAMES, 0.0))
    monkeypatch.setattr(agent, "train_multi_turn", lambda *a, **k: seen.append(a[4]) or 1 / 0)
    for method in ("grpo", "dpo", "kto"):
        given = ["agent", "--method", method, "--out", str(tmp_path / "out")]
        assert isinstance(CliRunner().invoke(cli.app, given).exception, ZeroDivisionError)
        assert seen[-1] == multi_turn_config({"method": method, "seed": 0}), method


@pytest.mark.parametrize(
    "more, files, method",
    [
        (["--error-rate", 0.5], False, "grpo"),
        ([], True, "dpo"),
    ],
)
def test_a_stopped_run_resumes_to_the_same_weights(more, files, method, own, monkeypatch):
    """The tool's random answers are drawn as if the run had never stopped."""

    class Noisy(Calculator):
        def run(self, ids):
            return [self.ids[self.draw.choice("123456789")]]

    def ones(prompts, completions, **columns):
        return [text.count("1") for text in completions]

    monkeypatch.setattr(agent, "Calculator", Noisy)
    monkeypatch.setattr(agent, "right_with_calculator", ones)
    given = {"steps": 4, "files": files}
    more = [*more, "--method", method]
    said(run(own, *more, **given))
    (own / "out").rename(own / "whole")

    def stop(progress, row):
        if row["step"] == 2:
            raise ValueError("stop")

    with monkeypatch.context() as patch:
        patch.setattr(Progresses, "__call__", stop)
        assert "stop" in str(run(own, *more, "--save-every", 1e-9, **given).exception)
    assert "Continues: 2 of 4 steps are done." in said(run(own, *more, "--resume", **given))
    assert same_weights(load_policy(own / "out")[0], load_policy(own / "whole")[0])
    assert not same_weights(load_policy(own / "out")[0], load_policy(own / "policy")[0])


def test_a_mended_tool_goes_on_as_if_it_had_never_failed(own):
    counted = TOOL.format("open(__file__ + '.calls', 'a').write('x')")
    (own / "tool.py").write_text(counted)
    said(run(own, "--iterations", 1, steps=1))
    calls = len((own / "tool.py.calls").read_text())
    (own / "out").rename(own / "one")
    (own / "tool.py").write_text(TOOL.format(""))
    said(run(own, steps=3))
    (own / "out").rename(own / "whole")
    (own / "tool.py").write_text(TOOL.format(f"if calls[0] > {calls}: 1 / 0"))
    error = run(own, steps=3).exception
    assert str(error).startswith(
        "The tool's function run raised ZeroDivisionError: division by zero (tool.py, line 7); it "
        "was given the response '"
    )
    assert "The run as it was before step 1 is saved in" in error.__notes__[0]
    (own / "tool.py").write_text(TOOL.format(""))
    told = said(run(own, "--resume", steps=3))
    assert "Changed since step 1: the tool (its function, or what it reads)." in told
    assert same_weights(load_policy(own / "out")[0], load_policy(own / "whole")[0])


@pytest.mark.parametrize(
    "code, sentence",
    [
        ("x = 1", "tool.py has no function run; define run(text), which returns the text of"),
        ("def run(text): return ''", "tool.py has no CALL_END; set it to the text of the token"),
        ("CALL_END = 5\ndef run(text): return ''", "tool.py sets CALL_END to 5; set it to"),
        ("CALL_END = ']'\ndef run(a, b): return ''", "tool.py: run takes (a, b); define run(text)"),
        (
            "CALL_END = '</call>'\ndef run(text): return ''",
            "The end of a call is '</call>'; it must be a text that is one token of the policy's",
        ),
        (TOOL.format("return 7"), "The tool's function run returned 7, of type int; it must be"),
        (TOOL.format("return 'x'"), "run returned 'x', which has characters that the tokenizer"),
    ],
)
def test_a_tool_that_cannot_be_used_is_refused_in_a_sentence(code, sentence, own):
    (own / "tool.py").write_text(code)
    error = run(own).exception
    assert isinstance(error, ValueError) and sentence in str(error)


@pytest.mark.parametrize(
    "more, files, sentence",
    [
        (["--method", "ppo"], False, "method is 'ppo'; it must be one of grpo, dpo, kto"),
        (["--reference-follows"], False, "--reference-follows is True, but it works only with"),
        (["--beta", 0.2], False, "--beta is 0.2, but it works only with --method dpo or kto"),
        (["--error-rate", 2], False, "error_rate is 2.0; it must be 0, or from 1e-30 to 1."),
        (["--error-rate", 0.1], True, "--error-rate is 0.1, but it works only with the calculator"),
        (
            ["--iterations", 3],
            False,
            "iterations is 3; it must be a number of parts for steps = 2, such as 2.",
        ),
        (["--tool", "{}/tool.py"], False, "tool.py', but it works only with --dataset"),
        (["--dataset", "{}/rows.jsonl"], False, "--tool is None; it must be a file of yours with"),
        (["--tool", "none.py"], True, "--tool is 'none.py'; it must be a Python file with a funct"),
        (["--max-new-tokens", 60], True, "exceeds the 64 positions"),
    ],
)
def test_agent_refuses(more, files, sentence, own):
    more = [str(text).format(own) for text in more]
    assert sentence in str(run(own, *more, files=files).exception)
    assert not (own / "out" / "model.safetensors").exists()


@pytest.mark.parametrize("files", [True, False])
def test_check_only_writes_nothing_and_calls_nobody(files, own):
    (own / "tool.py").write_text(TOOL.format("1 / 0"))
    before = sorted(own.iterdir())
    told = said(run(own, "--check-only", files=files))
    assert "Nothing was trained or written" in told and "Held-out" not in told
    assert sorted(own.iterdir()) == before
