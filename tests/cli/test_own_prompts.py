"""ppo, grpo and the online commands on prompts of one's own, with a reward of one's own."""

import json
from datetime import datetime
from decimal import Decimal

import pyarrow
import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from minirlhf import cli
from minirlhf.loops.rows import fit_rows
from minirlhf.models.forward import encode
from minirlhf.models.heads import ScalarModel
from minirlhf.models.load import load_policy, same_weights, save_policy
from minirlhf.rewards.function import reward_function
from minirlhf.runtime import History
from minirlhf.tasks.hub import named_prompts
from tests.tasks.test_formats import assistant, chat_tokenizer, user
from tests.tiny import EOS, tiny_policy, tiny_tokenizer

ROWS = [{"question": f"q{i} ", "answer": "a" * (i % 3 + 1), "id": i} for i in range(12)]
REWARD = """
def reward(prompts, completions, answer, **columns):
    return [float(text.startswith(right)) - len(text) for text, right in zip(completions, answer)]
"""


@pytest.fixture
def tiny(tmp_path):
    """A policy, a reward model, a file of questions and a reward, as a user brings them."""
    save_policy(tiny_policy(), tiny_tokenizer(), tmp_path / "policy")
    ScalarModel(tiny_policy().base_model).save(tmp_path / "scorer", tiny_tokenizer())
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    (tmp_path / "mine.py").write_text(REWARD)
    return tmp_path


def invoke(tiny, command, *more, dataset="rows.jsonl"):
    given = ["--model", tiny / "policy", "--steps", 2, "--out", tiny / "out"]
    given += ["--max-new-tokens", 6] * (command not in ("sft", "reward", "dpo"))
    given += ["--dataset", tiny / dataset, *more]
    return CliRunner().invoke(cli.app, [command, *map(str, given)])


@pytest.mark.parametrize("command", ["ppo", "grpo", "rloo", "online-dpo"])
@pytest.mark.parametrize("own", [True, False])
def test_a_command_trains_on_own_prompts_with_a_reward_model_or_a_function(command, own, tiny):
    scored = ["--reward", tiny / "mine.py"] if own else ["--scorer", tiny / "scorer"]
    if command == "ppo":
        scored += ["--scorer", tiny / "scorer"] * own  # its critic begins as a reward model
    result = invoke(tiny, command, *scored)
    assert result.exit_code == 0, (result.output, result.exception)
    said = " ".join(result.output.split())
    assert "rows.jsonl: 12 rows; prompt = question. Other columns: answer, id." in said
    history = History.load(tiny / "out" / "metrics.jsonl")
    assert len(history) == 2 and (history[0]["score"] < 0 or not own)
    assert "gold" not in history[0] and history[0]["length"] <= 6
    assert not same_weights(load_policy(tiny / "out")[0], tiny_policy())


@pytest.mark.parametrize("own", [True, False])
def test_ppo_refuses_a_critic_with_another_vocabulary(own, tiny):
    other = tiny_tokenizer()
    other.add_tokens(["more"])
    scorer = ScalarModel(tiny_policy(vocab_size=258).base_model)
    scorer.save(tiny / "other", other)
    reward = ["--reward", tiny / "mine.py"] * own
    result = invoke(tiny, "ppo", *reward, "--scorer", tiny / "other")
    assert "other'; it must be trained with the policy's own tokenizer" in str(result.exception)
    assert not (tiny / "out").exists()


def test_the_columns_of_a_row_reach_the_reward_under_their_own_names(tiny):
    rows = named_prompts(str(tiny / "rows.jsonl"), tiny_tokenizer(), say=lambda text: None)
    assert rows.column_names == ["prompt", "answer", "id", "row_of_file"]
    rows, _ = fit_rows(rows, tiny_tokenizer(), tiny_policy())
    assert rows.column_names == ["prompt", "answer", "id"]
    assert rows[4] == {"prompt": "q4 ", "answer": "aa", "id": 4}


TALK = user("q") + assistant("a")
ASKED = "<user>q<assistant>"


@pytest.mark.parametrize(
    "row, columns, prompt, told",
    [
        ({"prompt": "RAW", "question": "Q"}, {"prompt": "question"}, "Q", "prompt = question."),
        ({"prompt": "RAW", "messages": TALK}, None, ASKED, "messages."),
        (
            {"prompt": "RAW", "chosen": "It is a", "rejected": "It is b"},
            {"prompt": ""},
            "It is",
            "prompt = the common beginning of chosen and rejected",
        ),
        ({"problem": "p", "solution": "s", "answer": "3"}, None, "p", "prompt = problem. Other"),
        ({"problem": "p", "solution": "s", "messages": TALK}, None, ASKED, "messages. Other"),
        ({"prompt": "p", "completion": "c", "messages": TALK}, None, ASKED, "messages. Other"),
        (
            {"prompt": "p", "response_j": 0, "response_k": 1, "preferred": 2, "dispreferred": 3},
            None,
            "p",
            "prompt. Other columns: response_j, ",
        ),
        ({"messages": user("q")}, None, ASKED, "messages."),
        ({"messages": TALK + user("r")}, None, f"{ASKED}a{EOS}<user>r<assistant>", "messages."),
        ({"messages": user("q"), "system": "s"}, None, f"<system>s{ASKED}", "system + messages."),
    ],
)
def test_the_prompt_that_was_said_is_the_prompt_that_is_used(row, columns, prompt, told, tiny):
    (tiny / "mine.jsonl").write_text(json.dumps(row))
    said = []
    data = named_prompts(
        str(tiny / "mine.jsonl"), chat_tokenizer(), columns=columns, say=said.append
    )
    assert data["prompt"][:] == [prompt] and told in said[0]
    others = {name: row[name] for name in row if name in data.column_names and name != "prompt"}
    assert {name: data[0][name] for name in others} == others


MIXED = [
    [True, 2.0, 3],
    [2.0, True],
    [1, 2.5],
    [1, "1", None],
    [42, 2**70],
    ["x", "\ud800"],
    [{"a": 1}, {"b": 2}, {"a": 1.0}],
    [[{"f": {"x": 1}}], [{"f": {"y": 2}}]],
    ["x", [[[[[[[[[[[[1]]]]]]]]]]]]],
    [{"b": 1, "a": 2}],
]


@pytest.mark.parametrize("values", MIXED, ids=str)
def test_columns_reach_the_reward_as_the_file_has_them(values, tiny):
    rows = [{"prompt": f"p{i}", "n": i, "right": value} for i, value in enumerate(values)]
    (tiny / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = named_prompts(str(tiny / "mine.jsonl"), tiny_tokenizer(), say=lambda text: None)
    data, _ = fit_rows(data, tiny_tokenizer(), tiny_policy())
    assert repr([row["right"] for row in data]) == repr(data[:]["right"]) == repr(values)
    given = []

    def reward(completions, right, **columns):
        given.extend(right)
        return [0.0] * len(completions)

    score = reward_function(reward, tiny_tokenizer(), data)
    score(encode(tiny_tokenizer(), data["prompt"][:], ["x"] * len(data)))
    assert repr(given) == repr(values)


def test_times_and_decimals_of_a_table_reach_the_reward(tiny):
    rows = {"prompt": ["a", "b"], "at": [datetime(2026, 1, 2), None], "n": [Decimal("1.5")] * 2}
    pyarrow.parquet.write_table(pyarrow.table(rows), tiny / "mine.parquet")
    data = named_prompts(str(tiny / "mine.parquet"), tiny_tokenizer(), say=lambda text: None)
    assert data[:]["at"] == rows["at"] and data[:]["n"] == rows["n"]


@pytest.mark.parametrize("command", ["grpo", "ppo"])
def test_skip_invalid_leaves_out_rows_that_are_too_long_for_the_reward_model_alone(command, tiny):
    ScalarModel(tiny_policy(positions=32).base_model).save(tiny / "short", tiny_tokenizer())
    rows = [*ROWS, {"question": "x" * 40, "answer": "a", "id": 12}]
    (tiny / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    reward = ["--reward", tiny / "mine.py"] * (command == "ppo")  # the critic is too short then
    given = [command, "--scorer", tiny / "short", *reward]
    reader = "critic" if command == "ppo" else "reward model"
    said = str(invoke(tiny, *given).exception)
    assert (
        f"rows.jsonl, row 13 (1 of 13): a sequence of 47 tokens, EOS included, exceeds the 32 positions of the {reader}; "
        in said
    )
    result = invoke(tiny, *given, "--skip-invalid")
    assert result.exception is None, repr(result.exception)
    told = " ".join(result.output.split())
    assert f"left out: a sequence exceeds the positions of the {reader} (row 13)" in told
    assert "Row 1 as the model reads it: prompt 'q0 '." in told


@pytest.mark.parametrize(
    "command, option",
    [
        ("sft", "--dataset"),
        ("dpo", "--dataset"),
        ("reward", "--dataset"),
        ("ppo", "--dataset"),
        ("grpo", "--dataset"),
        ("grpo", "--scorer"),
        ("online-dpo", "--dataset"),
    ],
)
def test_an_empty_name_is_refused_and_not_read_as_the_default(command, option, tiny):
    result = CliRunner().invoke(cli.app, [command, option, "", "--out", str(tiny / "out")])
    expected = f"{option} is empty; give a value, or leave the option out."
    assert str(result.exception) == expected
    assert not (tiny / "out").exists()


def test_responses_beside_the_prompts_do_not_stop_a_command(tiny):
    rows = [{"prompt": f"p{i}", "chosen": None, "rejected": "x" * 300} for i in range(12)]
    (tiny / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    result = invoke(tiny, "grpo", "--scorer", tiny / "scorer", dataset="pairs.jsonl")
    assert result.exception is None, repr(result.exception)


def test_responses_of_a_dataset_need_no_check_where_only_its_prompts_are_used(tiny):
    pairs = [{"prompt": "p", "chosen": None, "rejected": None, "n": 1}]
    (tiny / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    rows = named_prompts(str(tiny / "pairs.jsonl"), tiny_tokenizer(), say=lambda text: None)
    assert rows["prompt"][:] == ["p"] and rows["n"][:] == [1]


def test_an_implicit_prompt_is_a_prompt_too(tiny):
    pair = {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}
    (tiny / "pairs.jsonl").write_text(json.dumps(pair))
    rows = named_prompts(str(tiny / "pairs.jsonl"), tiny_tokenizer(), say=lambda text: None)
    assert rows["prompt"][:] == ["\n\nHuman: a\n\nAssistant:"]


@pytest.mark.parametrize(
    "more, sentence",
    [
        (["--columns", "prompt=nothing"], "rows.jsonl has no column 'nothing' for prompt"),
        (["--reward", "missing.py"], "--reward is 'missing.py'; it must be a Python file"),
        (["--task", "arithmetic"], "but it works only with the task reviews"),
    ],
)
def test_wrong_options_are_refused_before_training(more, sentence, tiny):
    result = invoke(tiny, "grpo", *more)
    assert sentence in str(result.exception) and not (tiny / "out").exists()


def test_if_no_prompt_is_left_the_command_stops_before_training(tiny):
    result = invoke(tiny, "grpo", "--scorer", tiny / "scorer", "--max-prompt", 1)
    assert "No row is left to train on" in str(result.exception) and not (tiny / "out").exists()


def test_options_of_rows_need_a_dataset(tiny):
    for option in (["--rows", "3"], ["--skip-invalid"], ["--chat"], ["--max-prompt", "4"]):
        error = CliRunner().invoke(cli.app, ["grpo", *option]).exception
        assert "but it works only with --dataset: leave it out." in str(error)


@pytest.mark.parametrize(
    "code, sentence",
    [
        ("x = 1", "mine.py has no function reward; define reward(prompts, completions"),
        ("raise KeyError('no')", "mine.py cannot be run: KeyError: 'no' (line 1)"),
        (
            "def reward(prompts, completions, solution):\n    return []",
            "needs the argument solution",
        ),
        ("def reward(prompts, **c):\n    return [1 / 0] * 2", "raised ZeroDivisionError"),
        (
            "def reward(prompts, **c):\n    return [float('nan') for p in prompts]",
            "one finite number",
        ),
    ],
)
def test_a_reward_that_cannot_be_used_is_refused_in_a_sentence(code, sentence, tiny):
    (tiny / "mine.py").write_text(code)
    error = invoke(tiny, "grpo", "--reward", tiny / "mine.py").exception
    assert isinstance(error, ValueError) and sentence in str(error)


def test_a_reward_may_be_an_object_with_call(tiny):
    code = "class R:\n    def __call__(self, prompts, completions, **c):\n"
    code += "        return [len(text) for text in completions]\n\nreward = R()\n"
    (tiny / "mine.py").write_text(code)
    result = invoke(tiny, "grpo", "--reward", tiny / "mine.py")
    assert result.exit_code == 0, (result.output, result.exception)
