"""A model that learned from texts of its chat template says so when it is given plain prompts."""

import json

import pytest
from typer.testing import CliRunner

from minirlhf import cli, models
from minirlhf.models.chat import NOTE
from minirlhf.models.heads import ScalarModel
from minirlhf.models.load import load_policy, load_scalar, save_policy
from tests.cli.test_chat import TEMPLATE
from tests.tiny import tiny_policy, tiny_tokenizer

PAIRS = [{"prompt": f"q{i}", "chosen": "good", "rejected": "bad"} for i in range(4)]
TALKS = [
    {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": f"a{i}"}]}
    for i in range(4)
]
SAID = "was trained on texts written with its chat template (--chat); these prompts are plain."


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A policy and a reward model that learned from plain texts, and two that did not."""
    monkeypatch.chdir(tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    for name, chat in (("plain", False), ("chat", True)):
        save_policy(tiny_policy(), tokenizer, name, chat=chat)
        ScalarModel(tiny_policy().base_model).save(f"{name}-score", tokenizer, chat=chat)
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, PAIRS)))
    (tmp_path / "talks.jsonl").write_text("\n".join(map(json.dumps, TALKS)))
    (tmp_path / "mine.py").write_text("def reward(prompts, completions, **c): return [0.0, 1.0]*9")
    return tmp_path


def run(command, *given):
    """What a command prints on the standard output and on stderr."""
    result = CliRunner().invoke(cli.app, [command, *map(str, given)])
    assert result.exit_code == 0, (result.output, result.exception)
    return " ".join(result.stdout.split()), " ".join(result.stderr.split())


@pytest.mark.parametrize("command", ["reward", "grpo", "ppo", "online-dpo"])
def test_a_saved_folder_says_that_the_template_wrote_what_was_learned(command, made):
    sampled = command in ("grpo", "ppo", "online-dpo")
    given = ["--model", "plain", "--steps", 1, "--batch-size", 4, "--group-size", 2]
    given = [*given, "--scorer", "plain-score", "--max-new-tokens", 3] if sampled else given[:6]
    given += ["--dataset", "pairs.jsonl", "--out", "out", "--chat"]
    assert "Warning" not in run(command, *given)[0]
    assert models.trained_with_chat("out")
    (load_scalar if command == "reward" else load_policy)("out")  # the note is no part of it


def test_conversations_are_written_with_the_template_and_the_next_save_forgets_it(made):
    given = ["--model", "plain", "--steps", 1, "--out", "out"]
    run("sft", *given, "--dataset", "talks.jsonl")
    assert models.trained_with_chat("out")
    run("sft", *given, "--dataset", "pairs.jsonl")
    assert not models.trained_with_chat("out") and not (made / "out" / NOTE).exists()


@pytest.mark.parametrize("command", ["reward", "dpo", "grpo", "ppo", "rso"])
def test_training_on_plain_prompts_after_the_template_is_said(command, made):
    sampled = command in ("grpo", "ppo", "rso")
    given = ["--dataset", "pairs.jsonl", "--check-only"] + ["--max-new-tokens", 3] * sampled
    for model, scorer in (("chat", "plain-score"), ("plain", "chat-score")):
        more = [*given, "--model", model, *["--scorer", scorer] * sampled]
        learned = [name for name in (model, scorer) if name.startswith("chat")]
        learned = [name for name in learned if sampled or name == model]
        said = run(command, *more)[0]
        assert said.count(SAID) == len(learned)
        for name in learned:
            assert f"Warning: {name} {SAID} Give --chat." in said
    assert SAID not in run(command, *more, "--chat")[0]


def test_the_critic_of_ppo_is_compared_too_and_a_scorer_that_is_not_asked_is_not(made):
    given = ["--dataset", "pairs.jsonl", "--check-only", "--max-new-tokens", 3]
    given += ["--model", "plain", "--reward", "mine.py"]
    assert f"Warning: chat-score {SAID}" in run("ppo", *given, "--scorer", "chat-score")[0]
    assert "Warning" not in run("grpo", *given)[0]


def test_sample_and_score_warn_on_stderr(made):
    short = ["--n", 1, "--max-new-tokens", 3]
    said, warned = run("sample", "q", "--model", "chat", *short)
    assert warned == f"Warning: chat {SAID} Give --chat." and SAID not in said
    assert run("sample", "q", "--model", "chat", "--chat", *short)[1] == ""
    assert run("sample", "q", "--model", "plain", *short)[1] == ""
    score = ["score", "a", "--prompt", "q", "--scorer", "chat-score"]
    assert run(*score)[1] == f"Warning: chat-score {SAID} Give --chat."
    assert run(*score, "--chat")[1] == ""


@pytest.mark.parametrize("command", ["evaluate", "best-of-n"])
def test_responses_to_plain_prompts_after_the_template_are_judged_with_a_warning(command, made):
    given = ["--dataset", "pairs.jsonl", "--max-response", 3, "--samples", 2]
    given += ["--n", 2] if command == "best-of-n" else []
    for model, scorer in (("chat", "plain-score"), ("plain", "chat-score")):
        named = [*given, "--model", model, "--scorer", scorer]
        learned = model if model == "chat" else scorer
        assert f"Warning: {learned} {SAID} Give --chat." in run(command, *named)[0]
    assert SAID not in run(command, *named, "--chat")[0]


def test_film_titles_are_plain_and_take_no_chat(made):
    given = ["--scorer", "plain-score", "--max-new-tokens", 3, "--check-only"]
    said = run("grpo", "--model", "chat", *given)[0]
    assert f"Warning: chat {SAID} Give a --dataset of your own, and --chat." in said


def test_in_python_one_function_says_it():
    tokenizer = tiny_tokenizer()
    assert not models.trained_with_chat("tiny-reviews-sft")
    assert not models.trained_with_chat("no-such-model")
    assert models.unlike_training(["tiny-reviews-sft"], ["the film"], tokenizer) == []


def test_prompts_that_hold_the_tokens_of_the_template_are_no_plain_prompts(made):
    tokenizer = load_policy("chat")[1]
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    tokenizer.chat_template = "<turn>" + TEMPLATE
    assert models.unlike_training(["chat"], ["<turn>[u]q[a]"], tokenizer) == []
    assert len(models.unlike_training(["chat"], ["<turn>[u]q[a]", "q"], tokenizer)) == 1


def test_a_damaged_note_is_refused_in_one_sentence(made):
    for text, why in (("{", "is not a valid JSON file"), ('{"chat": 1}', "chat in its")):
        (made / "chat" / NOTE).write_text(text)
        with pytest.raises(ValueError, match=f"'chat'.*{why}.*Correct it or remove {NOTE}"):
            models.trained_with_chat("chat")
