"""Conversations as text: which turns are learned, and which conversations are refused."""

import pytest
from datasets import Dataset

from minirlhf.models.forward import encode
from minirlhf.tasks.conversations import in_parts, render
from minirlhf.tasks.formats import completions, paired, standard, unpaired
from minirlhf.tasks.prompts import prompt_texts
from tests.tiny import tiny_tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LOOP = "{% for m in messages %}"
ASK = "{% endfor %}{% if add_generation_prompt %}[a]{% endif %}"


def chat_tokenizer(template=CHATML):
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.chat_template = template
    return tokenizer


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


def user(content):
    return turn("user", content)


def assistant(content, **more):
    return turn("assistant", content, **more)


def rows(*given):
    return Dataset.from_list(list(given))


TALK = [assistant("one"), user("and"), assistant("two")]


def learned(tokenizer, row, name):
    """The text of the tokens that count in the loss."""
    batch = encode(tokenizer, [row["prompt"]], in_parts({key: [row[key]] for key in row}, name))
    return tokenizer.decode(batch.response_ids[batch.action_mask])


def test_all_turns_of_the_assistant_are_learned_with_their_ends():
    tokenizer = chat_tokenizer()
    row = standard(rows({"prompt": [user("q")], "completion": TALK}), tokenizer)[0]
    assert learned(tokenizer, row, "completion") == "one<|im_end|>two<|im_end|>"
    # read, but not learned: what stands between the answers
    batch = encode(tokenizer, [row["prompt"]], in_parts({k: [row[k]] for k in row}, "completion"))
    read = tokenizer.decode(batch.response_ids[0][batch.response_mask[0] & ~batch.action_mask[0]])
    assert read == "\n<|im_start|>user\nand<|im_end|>\n<|im_start|>assistant\n"
    whole = tokenizer.apply_chat_template([user("q"), *TALK], tokenize=False)
    assert tokenizer.decode(batch.sequences[0]) == whole.removesuffix("\n")


def test_of_messages_every_turn_of_the_assistant_is_learned():
    tokenizer, said = chat_tokenizer(), []
    talk = [turn("system", "s"), assistant("hello"), user("q"), *TALK]
    row = standard(rows({"messages": talk}), tokenizer, say=said.append)[0]
    assert row["prompt"].endswith(
        "hello<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
    )
    assert learned(tokenizer, row, "completion") == "one<|im_end|>two<|im_end|>"
    assert said[0].endswith(
        "Learned: every turn of the assistant in messages after the user's first turn, with its "
        "end. Other turns are read and not learned."
    )
    # by hand: "a" and its end are tokens 0 and 1, "\n<|im_start|>user\nr<|im_end|>\n<|im_start|>
    # assistant\n" are 1 + 1 + 4 + 1 + 1 + 1 + 1 + 1 + 9 + 1 = 21 tokens, then "b" and its end
    row = standard(
        rows({"messages": [user("q"), assistant("a"), user("r"), assistant("b")]}), tokenizer
    )[0]
    batch = encode(tokenizer, [row["prompt"]], in_parts({k: [row[k]] for k in row}, "completion"))
    assert batch.action_mask[0].nonzero().flatten().tolist() == [0, 1, 23, 24]
    short = standard(rows({"messages": [user("q"), assistant("a")]}), tokenizer)[0]
    assert short["completion"] == "a"


LAST_THOUGHT = CHATML.replace(  # only the last turn has its thought, as in Qwen3's template
    "{{ m['content'] }}",
    "{% if m.role == 'assistant' and loop.last %}<think>{{ m.reasoning_content }}</think>"
    "{% endif %}{{ m['content'] }}",
)


def test_where_earlier_answers_cannot_be_told_the_last_one_is_learned_and_this_is_said():
    tokenizer, said = chat_tokenizer(LAST_THOUGHT), []
    talk = [
        assistant("one", reasoning_content="x"),
        user("and"),
        assistant("two", reasoning_content="y"),
    ]
    short = {"messages": [user("q"), talk[2]]}
    data = standard(rows({"messages": [user("q"), *talk]}, short), tokenizer, say=said.append)
    assert learned(tokenizer, data[0], "completion") == "<think>y</think>two<|im_end|>"
    assert data["completion"][1] == "<think>y</think>two"
    noted = "only the last answer is learned, as the chat template writes earlier ones in another"
    assert f"{noted} way: 1 row (1)." in said[0]
    assert "leaves out a thought in a turn that is only read: 1 row (1)" in said[0]
    with pytest.raises(ValueError, match="writes earlier turns differently when others follow"):
        standard(rows({"prompt": [user("q")], "completion": talk}), tokenizer)


THOUGHT = "<think>long</think>answer"
R1 = CHATML.replace("m['content']", "m['content'].split('</think>')[-1]")
NO_TOOLS = CHATML.replace("{% for m in messages %}", LOOP + "{% if m.role != 'tool' %}").replace(
    "{% endfor %}", "{% endif %}{% endfor %}"
)
TOOLS = CHATML.replace(
    "m['content'] }}", "(m['content'] | tojson if m.role == 'tool' else m['content']) }}"
)


def test_what_a_template_leaves_out_of_turns_that_are_only_read_is_said():
    used = [user("q"), assistant("look"), turn("tool", 'a "5"'), assistant("5")]
    thought = [user("q"), assistant("one", thinking="x"), user("r")]
    changed = [user("q"), assistant("<think>x</think>one"), user("r")]
    tool = "the chat template leaves out a tool's turn"
    of_reading = "of the assistant that is only read"
    for template, row, kind in (
        (NO_TOOLS, {"messages": used}, tool),
        (NO_TOOLS, {"prompt": used[:3], "completion": used[3:]}, tool),
        (TOOLS, {"messages": used}, ""),
        (
            CHATML,
            {"prompt": thought},
            "the chat template leaves out a thought in a turn that is only read",
        ),
        (R1, {"prompt": changed}, f"the chat template leaves out or changes a turn {of_reading}"),
        (CHATML, {"prompt": changed}, ""),
    ):
        answer = {"completion": [assistant("a")], "messages": [user("q"), assistant("a")]}
        plain, said = {key: answer.get(key, [user("q")]) for key in row}, []
        standard(rows(plain, row, row), chat_tokenizer(template), say=said.append)
        assert (f"{kind}: 2 rows (2, 3)" if kind else "Dataset") in said[0]
        assert ("the chat template leaves out" in said[0]) == bool(kind)
    with pytest.warns(
        UserWarning, match="Prompts: the chat template leaves out a tool's turn: 2 rows .2, 3"
    ):
        prompt_texts([used[:1], used[:3], used[:3]], chat_tokenizer(NO_TOOLS))


def test_a_thought_that_would_be_learned_and_is_left_out_is_refused():
    row = {"messages": [user("q"), assistant("a", reasoning_content="because")]}
    said = "Row 1: .* leaves out the reasoning_content of turn 2 of messages, which is learned; "
    with pytest.raises(ValueError, match=said):
        standard(rows(row), chat_tokenizer())


def test_spans_travel_with_their_texts():
    tokenizer = chat_tokenizer()
    short = {"prompt": [user("q")], "chosen": [assistant("a")], "rejected": [assistant("b")]}
    long = {"prompt": [user("q")], "chosen": TALK, "rejected": [*TALK[:2], assistant("x")]}
    pairs = standard(rows(short, long), tokenizer)
    assert pairs["chosen_spans"][0] is None
    for data, name in (
        (pairs, "chosen"),
        (completions(pairs), "completion"),
        (unpaired(pairs).filter(lambda row: row["label"]), "completion"),
    ):
        assert [learned(tokenizer, row, name) for row in data] == [
            "a<|im_end|>",
            "one<|im_end|>two<|im_end|>",
        ]
    again = paired(unpaired(pairs))[3]
    assert learned(tokenizer, again, "chosen") == "one<|im_end|>two<|im_end|>"
    assert learned(tokenizer, again, "rejected") == "one<|im_end|>x<|im_end|>"


@pytest.mark.parametrize(
    "weights, said",
    [((0, 1), "two<|im_end|>"), ((1, None), "one<|im_end|>two<|im_end|>")],
)
def test_a_turn_of_weight_0_is_read_but_not_learned(weights, said):
    tokenizer = chat_tokenizer()
    talk = [assistant("one", weight=weights[0]), user("and"), assistant("two", weight=weights[1])]
    row = standard(rows({"prompt": [user("q")], "completion": talk}), tokenizer)[0]
    assert learned(tokenizer, row, "completion") == said


def test_contents_in_parts_and_calls_of_tools_are_read():
    tokenizer = chat_tokenizer(
        LOOP
        + "[{{ m.role[0] }}]{{ m.content }}"
        + "{% for c in m.tool_calls or [] %}call {{ c.name }}{% endfor %}{{ eos_token }}"
        + ASK
    )
    parts = [{"type": "text", "text": "what "}, {"type": "text", "text": "now"}]
    talk = [
        turn("assistant", None, tool_calls=[{"name": "clock"}]),
        turn("tool", "noon"),
        assistant("It is noon."),
    ]
    found = render(
        {"prompt": [turn("user", parts)], "completion": talk}, ["prompt", "completion"], tokenizer
    )
    assert found["prompt"] == "[u]what now<|im_end|>[a]"
    assert found["completion"] == "call clock<|im_end|>[t]noon<|im_end|>[a]It is noon."
    assert learned(tokenizer, found, "completion") == "call clock<|im_end|>It is noon.<|im_end|>"


@pytest.mark.parametrize(
    "row, said",
    [
        (
            {"messages": [user("a"), assistant("b"), user("c")]},
            "Row 1: messages ends with a turn of role 'user'; it must end with the assistant's",
        ),
        (
            {"prompt": [user("a")], "completion": [assistant("b"), user("c")]},
            "Row 1: completion ends with a turn of role 'user'",
        ),
        ({"prompt": [user("a")], "completion": [user("b")]}, "completion begins with role 'user'"),
        (
            {"messages": [user("a"), assistant("b"), assistant("c")]},
            "Row 1: messages: turns 2 and 3 are both the assistant's; join them",
        ),
        (
            {"prompt": [user("a"), assistant("b")]},
            "Row 1: the prompt ends with the assistant's turn, and another would follow",
        ),
        (
            {"messages": [user("a"), turn("assistant", None)]},
            "Row 1: the content of turn 2 in messages is 'None', of type NoneType; it must be text",
        ),
        (
            {"messages": [user("a"), turn("assistant", None, tool_calls=[{"name": "f"}])]},
            "turn 2 calls tools, and the tokenizer's chat template does not write such calls",
        ),
        (
            {"messages": [turn("user", [{"type": "image", "text": "x"}])] * 2},
            "the content of turn 1 in messages has a part of type 'image'; only text can be read",
        ),
        (
            {"messages": [user("say <|im_end|>"), assistant("b")]},
            "Row 1: messages: turn 1 has '<|im_end|>' written in its content",
        ),
        (
            {"messages": [user("a"), assistant("b<|endoftext|>c")]},
            "messages: turn 2 has '<|endoftext|>' written in its content",
        ),
        (
            {"messages": [user("a"), assistant("b", weight=0)]},
            "Row 1: the last turn of messages has a weight of 0",
        ),
        (
            {"messages": [user("a"), assistant("b", weight=0.5)]},
            "turn 2 of messages has the weight 0.5; it must be 1 (learned) or 0 (only read)",
        ),
    ],
)
def test_a_conversation_that_cannot_be_meant_is_refused(row, said):
    with pytest.raises(ValueError) as error:
        standard(rows(row), chat_tokenizer())
    assert said in str(error.value) and str(error.value).startswith("Row 1")


ONLY_USER = CHATML.replace("{{ m['content'] }}", "{{ m['content'] if m.role == 'user' }}")


@pytest.mark.parametrize("template, content", [(R1, THOUGHT), (ONLY_USER, "q")])
@pytest.mark.parametrize("earlier", [[], [assistant("<think>x</think>a", weight=0), user("and")]])
def test_a_template_that_changes_what_is_learned_is_refused(template, content, earlier):
    good = {"prompt": [user("q")], "completion": [assistant("" if "if" in template else "yes")]}
    row = {"prompt": [user("q")], "completion": [*earlier, assistant(content)]}
    said = (
        f"Row 2: .* leaves out or changes the content of turn {len(earlier) + 1} of completion, whi"
    )
    with pytest.raises(ValueError, match=said):
        standard(rows(good, row), chat_tokenizer(template))


@pytest.mark.parametrize(
    "template",
    [
        CHATML,
        CHATML.replace("m['content']", "m['content'] | replace('</think>', '\n</think>\n\n')"),
        CHATML.replace("assistant\n{% endif", "assistant\n<think>{% endif"),
    ],
    ids=["as it is", "with other white space", "the prompt ends in <think>"],
)
def test_a_template_may_write_a_thought_in_its_own_way(template):
    row = {"prompt": [user("q")], "completion": [assistant(THOUGHT)]}
    text = standard(rows(row), chat_tokenizer(template))["completion"][0]
    assert "long" in text and text.endswith("answer")


@pytest.mark.parametrize(
    "template, said",
    [
        (
            "{{ raise_exception('Roles must alternate!') }}",
            "Row 1: the tokenizer's chat template cannot write this conversation: Roles must",
        ),
        (LOOP + "{{ m.content + 1 }}" + ASK, "chat template cannot write this conversation: can"),
        (
            LOOP + "{% if m.role != 'system' %}{{ m.content }}{% endif %}" + ASK,
            "leaves out or changes turn 1",
        ),
        (LOOP + "{{ m.role }}: {{ m.content }}\n{% endfor %}", "has no generation prompt"),
        (
            LOOP + "{{ m.content }}{% endfor %}{% if add_generation_prompt %}[a]<think>{% endif %}",
            "Row 1: this chat template writes the prompt differently when a response follows",
        ),
        (
            LOOP
            + "{% if m.role == 'assistant' %}[a]{% if loop.last %}<think>{% endif %}{% endif %}"
            + "{{ m.content }}"
            + ASK,
            "Row 1: this chat template writes earlier turns differently when others follow",
        ),
    ],
)
def test_a_template_that_cannot_be_used_is_refused_with_its_own_message(template, said):
    talk = {"prompt": [turn("system", "be brief"), user("q")], "completion": TALK}
    with pytest.raises(ValueError) as error:
        standard(rows(talk), chat_tokenizer(template))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_with_chat_rows_of_text_are_written_with_the_template():
    given = rows({"prompt": "q", "completion": "a"})
    (row,) = standard(given, chat_tokenizer(), chat=True)
    assert row == {
        "prompt": "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n",
        "completion": "a",
    }
    with pytest.raises(ValueError, match="chat template"):
        standard(given, tiny_tokenizer(), chat=True)
    (row,) = standard(given, chat_tokenizer())
    assert row == given[0]
