"""Prompts on the command line: left as they are, or written with the chat template; long ones."""

import json
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from minirlhf import cli
from minirlhf.cli import samples
from minirlhf.models.load import load_policy, save_policy
from tests.tiny import tiny_policy, tiny_tokenizer

TEMPLATE = (
    "{% for m in messages %}[{{ m.role[0] }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[a]{% endif %}"
)


@pytest.fixture
def folder(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    save_policy(tiny_policy(), tokenizer, tmp_path / "chat")
    return str(tmp_path / "chat")


def asked(monkeypatch, *arguments, n=1):
    """The prompts that `sample` gives to the model."""
    seen = []
    monkeypatch.setattr(
        samples, "sample_text", lambda p, t, prompts, **k: seen.append(prompts) or []
    )
    result = CliRunner().invoke(cli.app, ["sample", *arguments, "--n", str(n)])
    return seen[0] if seen else result.exception


@pytest.mark.parametrize("model", ["tiny-reviews", "tiny-reviews-sft"])
def test_titles_end_in_a_line_break_for_our_models_of_reviews(model, monkeypatch):
    given = [monkeypatch, "the film", "two\n", "--model", model]
    assert asked(*given) == ["the film\n", "two\n"]


def test_a_tokenizer_is_loaded_once_however_many_responses_are_sampled(monkeypatch):
    loads, load = [], samples.AutoTokenizer.from_pretrained
    loader = SimpleNamespace(from_pretrained=lambda path: loads.append(path) or load(path))
    monkeypatch.setattr(samples, "AutoTokenizer", loader)
    samples._films_tokenizer.cache_clear()
    given = asked(monkeypatch, "a", "b", "--model", "tiny-reviews", n=3)
    assert given == ["a\n"] * 3 + ["b\n"] * 3 and len(loads) == 1


def test_prompts_of_other_models_stay_as_they_are(folder, monkeypatch):
    assert asked(monkeypatch, "the film", " x ", "--model", folder) == ["the film", " x "]
    assert asked(monkeypatch, "q", "--model", folder, "--chat") == ["[u]q[a]"]
    error = asked(monkeypatch, "q", "--chat")
    assert str(error) == "chat is True; it must be off: the tokenizer has no chat template."


def test_chat_writes_prompt_and_response(folder):
    tokenizer = load_policy(folder)[1]
    found = samples.as_asked("q", tokenizer, True, completion="a")
    assert found == {"prompt": "[u]q[a]", "completion": "a"}
    assert samples.as_asked("q", tokenizer, False, completion="a")["prompt"] == "q"


@pytest.mark.parametrize("command", ["sft", "reward", "dpo"])
def test_a_command_takes_chat_and_leaves_long_prompts_out(command, folder, tmp_path):
    rows = [{"prompt": f"q{i}", "chosen": "good", "rejected": "bad"} for i in range(3)]
    rows.append(rows[0] | {"prompt": "x" * 70})
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    steps = ["--epochs", "0.5"] if command == "sft" else ["--steps", "1"]
    given = ["--model", folder, "--dataset", str(tmp_path / "rows.jsonl"), "--chat", *steps]
    given = [command, *given, "--out", str(tmp_path / "out")]
    error = CliRunner().invoke(cli.app, given).exception
    assert str(error).startswith(
        "rows.jsonl, row 4 (1 of 4): a sequence of "
    ) and "--max-prompt" in str(error)
    assert not (tmp_path / "out").exists()
    done = CliRunner().invoke(cli.app, [*given, "--max-prompt", "20"])
    assert done.exception is None, repr(done.exception)
    said = " ".join(done.output.split())
    assert (
        "3 of 4 rows are kept; left out: the prompt has more than max_prompt tokens (row 4)" in said
    )


@pytest.mark.parametrize("command", ["sft", "reward", "dpo"])
def test_chat_needs_a_dataset(command):
    error = CliRunner().invoke(cli.app, [command, "--chat"]).exception
    assert str(error) == "--chat is True, but it works only with --dataset: leave it out."
