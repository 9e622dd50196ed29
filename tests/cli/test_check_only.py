"""--check-only: what is checked before the first step, the lengths of the data, and no more."""

import json
import re

import pytest

from tests.cli.test_own_prompts import invoke, tiny  # noqa: F401  # a fixture

PAIRS = [
    {"prompt": f"film {i}\n", "chosen": "a good one" + "x" * i, "rejected": "bad"}
    for i in range(12)
]
NEVER = "def reward(prompts, completions, **columns):\n    raise RuntimeError('called')\n"


def said(result):
    return " ".join(result.output.split())


@pytest.mark.parametrize("command", ["sft", "reward", "dpo", "ppo", "grpo", "online-dpo"])
def test_a_command_checks_says_the_lengths_and_writes_nothing(command, tiny):  # noqa: F811
    (tiny / "pairs.jsonl").write_text("\n".join(map(json.dumps, PAIRS)))
    (tiny / "mine.py").write_text(NEVER)
    sampled = command in ("ppo", "grpo", "online-dpo")
    given = ["--reward", tiny / "mine.py"] if sampled else ["--max-response", 15]
    given += ["--scorer", tiny / "scorer"] * (command == "ppo")
    before = sorted(tiny.iterdir())
    result = invoke(tiny, command, *given, "--check-only", dataset="pairs.jsonl")
    assert (result.exit_code, result.exception) == (0, None)
    assert "Nothing was trained or written" in said(result)
    assert sorted(tiny.iterdir()) == before
    prompts, *responses = re.findall(r"│ (?:prompts|responses) +│(.*)│\n", result.output)
    assert prompts.replace(" ", "") == "7│8│8│none│0│--max-prompt8"
    if not sampled:  # 11 to 22 tokens; sft reads no rejected ones
        middle = 17 if command == "sft" else 8
        assert responses[0].replace(" ", "").startswith(f"{middle}│2")
        assert responses[0].replace(" ", "").endswith("│22│15│7│--max-response22")
        assert "--max-response 22 cuts none." in said(result)


@pytest.mark.parametrize(
    "given, sentence",
    [
        (["--reward", "none.py"], "--reward is 'none.py'; it must be a Python file"),
        (["--out", "{}/rows.jsonl"], "it must be a folder, and this is a file"),
        (["--max-new-tokens", 60, "--scorer", "{}/scorer"], "rows.jsonl, rows 11, 12 (2 of 12): a"),
    ],
)
def test_what_a_run_would_refuse_is_refused(given, sentence, tiny):  # noqa: F811
    given = [str(text).format(tiny) for text in given]
    result = invoke(tiny, "grpo", *given, "--check-only")
    assert result.exit_code == 1 and sentence in str(result.exception)


def test_a_stopped_run_stays_as_it_is(tiny):  # noqa: F811
    (tiny / "mine.py").write_text(
        "def reward(completions, trainer_state, **columns):\n"
        "    return [1.0 / (1 - trainer_state.global_step) for text in completions]\n"
    )
    given = ["--reward", tiny / "mine.py", "--batch-size", 4, "--group-size", 2]
    assert invoke(tiny, "grpo", *given).exception
    saved = (tiny / "out" / "training.safetensors").read_bytes()
    error = invoke(tiny, "grpo", *given, "--check-only").exception
    assert "holds a run that was stopped after 1 steps" in str(error)
    result = invoke(tiny, "grpo", *given, "--check-only", "--resume")
    assert result.exit_code == 0 and "Continues: 1 of 2 steps is done." in said(result)
    assert (tiny / "out" / "training.safetensors").read_bytes() == saved


@pytest.mark.parametrize("command", ["sft", "reward", "dpo"])
def test_the_default_limit_is_refused_where_it_cuts_nearly_all_rows(command, tiny):  # noqa: F811
    rows = [row | {"chosen": "long" * 13} for row in PAIRS[:9]] + PAIRS[:1]
    (tiny / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    default = 48 if command == "reward" else 32
    steps = [] if command == "sft" else ["--steps", 1]
    error = str(invoke(tiny, command, *steps, dataset="pairs.jsonl").exception)
    assert error == (
        f"--max-response was left out, and its default of {default} tokens would cut responses in "
        f"9 of 10 rows; --max-response 53 cuts none. Give the number that you want ({default} "
        "trains on the beginnings alone)."
    )
    assert not (tiny / "out").exists()
    result = invoke(tiny, command, "--max-response", default, "--check-only", dataset="pairs.jsonl")
    assert result.exit_code == 0 and "--max-response 53 cuts none" in said(result)
    (tiny / "pairs.jsonl").write_text("\n".join(map(json.dumps, [*rows, PAIRS[1]])))
    result = invoke(tiny, command, "--check-only", dataset="pairs.jsonl")
    assert result.exit_code == 0, result.exception


def test_resume_never_replaces_a_finished_model(tiny):  # noqa: F811
    (tiny / "mine.py").write_text(
        "def reward(completions, **columns):\n    return [1.0] * len(completions)\n"
    )
    given = ["--reward", tiny / "mine.py", "--batch-size", 4, "--group-size", 2]
    assert invoke(tiny, "grpo", *given, "--resume").exit_code == 0  # nothing there: from step 0
    before = (tiny / "out" / "model.safetensors").read_bytes()
    result = invoke(tiny, "grpo", *given, "--lr", 0.1, "--resume")
    assert "holds a finished model and no stopped run" in str(result.exception)
    assert (tiny / "out" / "model.safetensors").read_bytes() == before
