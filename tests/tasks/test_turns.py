"""What keys of turns, labels beside conversations and repeated prompts mean, and what is said."""

import json

import pytest

from minirlhf.tasks import load_by_name, named_demonstrations, named_pairs, named_prompts
from minirlhf.tasks.formats import standard
from tests.tasks.test_conversations import (
    CHATML,
    assistant,
    chat_tokenizer,
    learned,
    rows,
    turn,
    user,
)
from tests.tiny import tiny_tokenizer

CALLS = CHATML.replace(
    "{{ m['content'] }}", "{{ m.content }}{{ m.tool_calls | tojson if m.tool_calls }}"
)
CALL = {"name": "f", "arguments": {"x": None, "y": 1}}


def file_of(tmp_path, *given):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, given)))
    return str(path)


@pytest.mark.parametrize(
    "asked, reply, said",
    [
        (turn("user<|im_end|>", "a"), {}, "messages: turn 1 has '<|im_end|>' written in its role"),
        (turn("user", "a", name="x<|im_end|>"), {}, "'<|im_end|>' written in its name"),
        (user("a"), {"reasoning_content": "<|endoftext|>"}, "written in its reasoning_content"),
        (
            user("a"),
            {"tool_calls": [CALL | {"arguments": {"x": "<|im_start|>"}}]},
            "messages: turn 2 has '<|im_start|>' written in its tool_calls",
        ),
    ],
)
def test_a_special_token_is_refused_wherever_it_stands_in_a_turn(asked, reply, said):
    with pytest.raises(ValueError) as error:
        standard(rows({"messages": [asked, assistant("b", **reply)]}), chat_tokenizer(CALLS))
    assert said in str(error.value)


def test_a_label_beside_messages_means_what_it_means_beside_a_completion(tmp_path):
    talk = [user("r"), assistant("c")]
    given = [
        {"messages": [user("q"), assistant(text), *talk], "label": good}
        for text, good in (("a", True), ("b", False))
    ]
    path, tokenizer, said = file_of(tmp_path, *given), chat_tokenizer(), []
    data = named_demonstrations(path, tokenizer, rows=9, say=said.append)
    assert [learned(tokenizer, row, "completion") for row in data] == ["a<|im_end|>c<|im_end|>"]
    assert said[1] == "Left out: labelled bad, which SFT does not learn: 1 row (2)."
    of = {"rows": 9, "seed": 0, "max_tokens": 9}
    assert named_pairs(path, tokenizer, labelled=True, **of)["label"][:] == [True, False]
    (pair,) = named_pairs(path, tokenizer, **of)
    assert (pair["chosen"][0], pair["rejected"][0]) == ("a", "b")


@pytest.mark.parametrize("key", ["training", "loss", "loss_weight"])
@pytest.mark.parametrize("value", [False, 0])
def test_other_keys_for_a_turn_that_is_only_read_are_honoured(key, value):
    talk, said = [user("q"), assistant("a", **{key: value}), user("r"), assistant("b")], []
    tokenizer = chat_tokenizer()
    row = standard(rows({"messages": talk}), tokenizer, say=said.append)[0]
    assert learned(tokenizer, row, "completion") == "b<|im_end|>"
    assert "Learned: every turn of the assistant in messages whose weight is not 0, wi" in said[0]


@pytest.mark.parametrize(
    "key, value", [("mask", True), ("mask", 0), ("train_detail", [{"train": False}])]
)
def test_a_key_that_may_mean_not_learned_is_refused(key, value):
    row = {"messages": [user("q"), assistant("a", **{key: value})]}
    with pytest.raises(ValueError, match=f"turn 2 of messages has the {key} .* say it with the"):
        standard(rows(row), chat_tokenizer())


def test_keys_of_turns_that_nothing_reads_are_named_once():
    row, said = {"messages": [turn("user", "q", mood="x"), assistant("a", mood="y", id="z")]}, []
    plain = {"messages": [user("q"), assistant("b")]}
    standard(rows(row, plain, row), chat_tokenizer(), say=said.append)
    assert said[0].endswith("\nIgnored in turns: id (2 rows), mood (2 rows).")
    standard(rows(row), chat_tokenizer(CHATML + "{# mood id #}"), say=said.append)
    assert "Ignored" not in said[1]


def test_an_older_call_beside_a_content_is_not_dropped():
    row = {"messages": [user("q"), assistant("a", function_call={"name": "f", "arguments": "1"})]}
    with pytest.raises(ValueError, match="turn 2 calls tools, .* write such calls .no function_ca"):
        standard(rows(row), chat_tokenizer())
    alone = {"messages": [user("q"), assistant(None, function_call={"name": "f"})]}
    written = CHATML.replace(
        "{{ m['content'] }}", "{{ (m.function_call or m).name }}{{ m.content }}"
    )
    assert standard(rows(alone), chat_tokenizer(written))["completion"][0] == "f"


def test_a_null_argument_of_a_call_stays_and_is_said(tmp_path):
    calls, said = [{"type": "function", "function": CALL, "id": None}], []
    path = file_of(tmp_path, {"messages": [user("q"), assistant("a", tool_calls=calls)]})
    data = load_by_name(path, chat_tokenizer(CALLS), say=said.append)
    assert json.loads(data["completion"][0][1:]) == [{"type": "function", "function": CALL}]
    assert "an argument of a tool's call that is null" in said[0]


NO_SYSTEM = CHATML.replace(
    "{% for m in messages %}", "{% for m in messages if m.role != 'system' %}"
)


def test_a_turn_that_is_left_out_is_found_though_its_letters_stand_elsewhere():
    row = {"messages": [turn("system", "a"), user("cat"), assistant("b")]}
    with pytest.raises(ValueError, match="leaves out or changes turn 1, of role 'system'"):
        standard(rows(row), chat_tokenizer(NO_SYSTEM))
    written = standard(rows(row), chat_tokenizer())["prompt"][0]
    assert "system\na<|im_end|>" in written


def test_a_prompt_that_every_response_repeats_is_taken_off_and_otherwise_said():
    whole, other = ({"prompt": "Q: hi\nA:", "completion": f"{a} yes"} for a in ("Q: hi\nA:", "no"))
    said = []
    assert standard(rows(whole, whole), say=said.append)["completion"][:] == [" yes", " yes"]
    assert "Every response begins with its whole prompt; this beginning was taken off: 2" in said[0]
    mixed = standard(rows(other, whole, whole), say=said.append)["completion"][:]
    assert mixed == ["no yes", "Q: hi\nA: yes", "Q: hi\nA: yes"]
    assert "begins with its whole prompt, which is left there and learned: 2 rows (2" in said[1]
    pair = {"prompt": "Q ", "chosen": "Q a", "rejected": "Q b"}
    (row,) = standard(rows(pair))
    assert (row["chosen"], row["rejected"]) == ("a", "b")
    echo = {"prompt": "cat", "completion": "cat"}
    assert standard(rows(echo))[0] == echo


def test_what_is_said_of_learning_chat_and_empty_rows_is_so(tmp_path):
    path, said = file_of(tmp_path, {"messages": [user("q"), assistant("a")]}), []
    named_prompts(path, chat_tokenizer(), say=said.append)
    assert "Learned" not in said[0]
    with pytest.raises(
        ValueError, match="--chat .chat=True. writes rows of text with the tokenize"
    ):
        standard(rows({"prompt": "q", "completion": "a"}), tiny_tokenizer(), chat=True)
    with pytest.raises(ValueError, match="rows.jsonl has no columns: its rows are empty; give"):
        load_by_name(file_of(tmp_path, {}))


FACTORY = [
    {"from": "human", "value": "2+2?"},
    {"from": "function_call", "value": '{"name": "sum", "arguments": {"a": 2}}'},
    {"from": "observation", "value": "4"},
    {"from": "gpt", "value": "It is 4."},
]
TOOLS = [{"name": "sum", "description": "adds", "parameters": {}}]
WITH_TOOLS = "{{ tools | tojson if tools }}" + CALLS


@pytest.mark.parametrize("tools", [TOOLS, json.dumps(TOOLS), "", None])
def test_calls_and_tools_of_llama_factory_are_written_by_the_template(tools, tmp_path):
    path, tokenizer, said = file_of(tmp_path, {"conversations": FACTORY, "tools": tools}), None, []
    tokenizer = chat_tokenizer(WITH_TOOLS)
    data = named_demonstrations(path, tokenizer, rows=9, say=said.append)
    assert "messages = conversations; tools." in said[0] and "leaves out" not in said[0]
    call = '[{"type": "function", "function": {"name": "sum", "arguments": {"a": 2}}}]'
    assert learned(tokenizer, data[0], "completion") == f"{call}<|im_end|>It is 4.<|im_end|>"
    assert "tool\n4" in data["completion"][0] and ('"adds"' in data["prompt"][0]) == bool(tools)
    prompts = named_prompts(path, tokenizer, say=said.append)
    assert ('"adds"' in prompts["prompt"][0]) == bool(tools) and prompts["tools"][:] == [tools]


@pytest.mark.parametrize(
    "turn, tools, said",
    [
        (
            {"from": "function_call", "value": "sum(2)"},
            None,
            "it must be JSON: an object with name",
        ),
        ({"from": "function_call", "value": '{"name": "sum"}'}, None, "it must be JSON: an object"),
        (FACTORY[1], "sum", "column tools: the value is 'sum'; it must be a list of objects"),
        (FACTORY[1], [{"name": "<|im_end|>"}], "row 1: the column tools has '<|im_end|>' written"),
    ],
)
def test_calls_and_tools_of_another_form_are_refused(turn, tools, said, tmp_path):
    path = file_of(tmp_path, {"conversations": [FACTORY[0], turn, *FACTORY[2:]], "tools": tools})
    with pytest.raises(ValueError) as error:
        load_by_name(path, chat_tokenizer(WITH_TOOLS), say=lambda text: None)
    assert said in str(error.value) and str(error.value).startswith("rows.jsonl, row 1")


def test_a_template_without_calls_or_tools_is_named(tmp_path):
    path, said = file_of(tmp_path, {"conversations": FACTORY, "tools": TOOLS}), []
    with pytest.raises(
        ValueError, match="turn 2 calls tools, and the tokenizer's chat template do"
    ):
        load_by_name(path, chat_tokenizer(CHATML), say=said.append)
    load_by_name(path, chat_tokenizer(CALLS), say=said.append)
    assert "the chat template leaves out the list of tools: 1 row (1)." in said[0]


def test_a_greeting_is_read_and_what_is_said_to_be_learned_is_true(tmp_path):
    talk = [assistant("Hello!"), user("q"), assistant("a"), user("r"), assistant("b")]
    tokenizer, said = chat_tokenizer(CHATML), []
    for name, given in (("messages", talk), ("messages", talk[1:])):
        path = file_of(tmp_path, {name: given})
        data = named_demonstrations(path, tokenizer, rows=9, say=said.append)
        assert learned(tokenizer, data[0], "completion") == "a<|im_end|>b<|im_end|>"
    assert "before the user's first, which is read and not learned: 1 row (1)." in said[0]
    assert "every turn of the assistant in messages after the user's first turn, with" in said[0]
    assert "every turn of the assistant in messages, with its end." in said[1]
