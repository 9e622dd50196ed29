"""A reward function that fails in the middle of a run, is mended, and goes on."""

import json
import shlex
import sys

import pytest

from minirlhf import cli
from minirlhf.models.load import load_policy, same_weights
from tests.cli.test_own_prompts import invoke, tiny  # noqa: F401  # a fixture

MENDED = """
def reward(prompts, completions, trainer_state, **columns):
    lengths = [len(text) for text in completions]
    {}
    return lengths
"""
FAILS = MENDED.format("trainer_state.global_step == 2 and 1 / 0")


@pytest.mark.parametrize("name", ["grpo", "online-dpo"])
def test_a_mended_reward_goes_on_as_if_it_had_never_failed(
    name,
    tiny,  # noqa: F811
    monkeypatch,
    capsys,
):
    given = ["--reward", tiny / "mine.py", "--steps", 4, "--batch-size", 4, "--group-size", 2]
    typed = ["minirlhf", name, *map(str, given), "--out", str(tiny / "out")]
    monkeypatch.setattr(sys, "argv", typed)
    (tiny / "mine.py").write_text(MENDED.format(""))
    assert invoke(tiny, name, *given).exit_code == 0
    (tiny / "out").rename(tiny / "whole")

    (tiny / "mine.py").write_text(FAILS)
    error = invoke(tiny, name, *given).exception
    run = tiny / "out" / "training.safetensors"
    assert cli.report(error) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert said.startswith("Error: The reward function reward raised ZeroDivisionError: division")
    assert "This is mine.py, line 4, at step 2." in said
    assert said.endswith(
        f"The run as it was before step 2 is saved in {run}. Mend the cause, then run the same "
        "command with --resume (in Python resume=True)."
    )

    for option in ("--model", "--scorer"):
        command = ["sample", "x"] if option == "--model" else ["score", "x"]
        result = run_cli(*command, option, tiny / "out")
        assert f"'{tiny / 'out'}' holds no model yet: training.safetensors is a run" in result
        assert f"stopped after 2 steps. Finish it first, with `{shlex.join(typed)} --res" in result

    (tiny / "mine.py").write_text(MENDED.format(""))
    assert "stopped after 2 steps" in str(invoke(tiny, name, *given).exception)
    other = str(invoke(tiny, name, *given, "--lr", 0.5, "--seed", 1, "--resume").exception)
    assert "in the file, 0.5 now)" in other and "seed (0 in the file, 1 now)" in other
    assert f"`{shlex.join(typed)} --resume` began it." in other
    result = invoke(tiny, name, *given, "--resume")
    assert result.exit_code == 0, result.exception
    said = "Changed since step 2: the score (the reward function or the judge, or what it reads)."
    assert said in " ".join(result.output.split())
    same = same_weights(load_policy(tiny / "whole")[0], load_policy(tiny / "out")[0])
    assert same and not run.exists()


@pytest.mark.parametrize(
    "line, said",
    [
        ("return [1 / (right != 'b') for right in answer]", "raised ZeroDivisionError"),
        ("return [None if right == 'b' else 1.0 for right in answer]", "it must be finite"),
        ("return ['x' if right == 'b' else 1.0 for right in answer]", "returned 'x' for"),
    ],
)
def test_an_error_about_a_prompt_names_its_row_of_the_file(line, said, tiny):  # noqa: F811
    rows = [{"question": f"q{i} ", "answer": "b" if i == 4 else "a"} for i in range(6)]
    rows[1]["question"] = "x" * 70  # left out: later rows are other prompts
    (tiny / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tiny / "mine.py").write_text(f"def reward(completions, answer, **columns):\n    {line}\n")
    given = ["--reward", tiny / "mine.py", "--batch-size", 10, "--group-size", 2]
    error = invoke(tiny, "grpo", *given, "--max-prompt", 9).exception
    assert said in str(error) and ", to prompt 4" in str(error)
    assert error.__notes__[0] == "Prompt 4 is rows.jsonl, row 5."


def run_cli(*given):
    from typer.testing import CliRunner

    return str(CliRunner().invoke(cli.app, [*map(str, given)]).exception)


def test_another_file_for_the_reward_is_another_run(tiny):  # noqa: F811
    (tiny / "mine.py").write_text(FAILS)
    (tiny / "other.py").write_text(MENDED.format(""))
    given = ["--steps", 4, "--batch-size", 4, "--group-size", 2]
    assert invoke(tiny, "grpo", *given, "--reward", tiny / "mine.py").exception
    error = invoke(tiny, "grpo", *given, "--reward", tiny / "other.py", "--resume").exception
    assert "differs in: reward (" in str(error) and "other.py' now)" in str(error)


@pytest.mark.parametrize(
    "kind, code, said",
    [
        ("GeneratorExit", 1, "Error: The reward function reward raised GeneratorExit: now; it"),
        ("KeyboardInterrupt", 130, "Stopped in step 2. The run as it was"),
    ],
)
def test_no_exception_of_a_reward_loses_the_steps_before_it(
    kind,
    code,
    said,
    tiny,  # noqa: F811
    capsys,
):
    (tiny / "mine.py").write_text(
        f"def now():\n    raise {kind}('now')\n"
        + MENDED.format("trainer_state.global_step == 2 and now()")
    )
    given = ["--reward", tiny / "mine.py", "--steps", 3, "--batch-size", 4, "--group-size", 2]
    assert cli.report(invoke(tiny, "grpo", *given).exception) == code
    printed = capsys.readouterr()
    printed = " ".join((printed.err or printed.out).split())
    saved = f"The run as it was before step 2 is saved in {tiny / 'out' / 'training.safetensors'}."
    assert printed.startswith(said) and saved in printed and "--resume" in printed
