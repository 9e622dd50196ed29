"""Conversations as text: which turns are learned, and which conversations are refused."""

import pytest
from datasets import Dataset

from minirlhf.models.forward import encode
from minirlhf.tasks.conversations import in_parts, render
from minirlhf.tasks.formats import completions, paired, standard, unpaired
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
            "Row 0: messages ends with a turn of role 'user'; it must end with the assistant's",
        ),
        (
            {"prompt": [user("a")], "completion": [assistant("b"), user("c")]},
            "Row 0: completion ends with a turn of role 'user'",
        ),
        ({"prompt": [user("a")], "completion": [user("b")]}, "completion begins with role 'user'"),
        (
            {"messages": [user("a"), assistant("b"), assistant("c")]},
            "Row 0: messages: turns 1 and 2 are both the assistant's; join them",
        ),
        (
            {"prompt": [user("a"), assistant("b")]},
            "Row 0: the prompt ends with the assistant's turn, and another would follow",
        ),
        (
            {"messages": [user("a"), turn("assistant", None)]},
            "Row 0: a content in messages is 'None', of type NoneType; it must be text",
        ),
        (
            {"messages": [user("a"), turn("assistant", None, tool_calls=[{"name": "f"}])]},
            "turn 0 calls tools, and the tokenizer's chat template does not write such calls",
        ),
        (
            {"messages": [turn("user", [{"type": "image", "text": "x"}])] * 2},
            "a content in messages has a part of type 'image'; only text can be read",
        ),
        (
            {"messages": [user("say <|im_end|>"), assistant("b")]},
            "Row 0: prompt: turn 0 has '<|im_end|>' written in its content",
        ),
        (
            {"messages": [user("a"), assistant("b<|endoftext|>c")]},
            "completion: turn 0 has '<|endoftext|>' written in its content",
        ),
        (
            {"messages": [user("a"), assistant("b", weight=0)]},
            "Row 0: the last turn of completion has a weight of 0",
        ),
        (
            {"messages": [user("a"), assistant("b", weight=0.5)]},
            "turn 0 of completion has the weight 0.5; it must be 1 (learned) or 0 (only read)",
        ),
    ],
)
def test_a_conversation_that_cannot_be_meant_is_refused(row, said):
    with pytest.raises(ValueError) as error:
        standard(rows(row), chat_tokenizer())
    assert said in str(error.value) and str(error.value).startswith("Row 0")


THOUGHT = "<think>long</think>answer"
R1 = CHATML.replace("m['content']", "m['content'].split('</think>')[-1]")
ONLY_USER = CHATML.replace("{{ m['content'] }}", "{{ m['content'] if m.role == 'user' }}")


@pytest.mark.parametrize("template, content", [(R1, THOUGHT), (ONLY_USER, "q")])
@pytest.mark.parametrize("earlier", [[], [assistant("<think>x</think>a", weight=0), user("and")]])
def test_a_template_that_changes_what_is_learned_is_refused(template, content, earlier):
    good = {"prompt": [user("q")], "completion": [assistant("" if "if" in template else "yes")]}
    row = {"prompt": [user("q")], "completion": [*earlier, assistant(content)]}
    said = f"Row 1: .* leaves out or changes the content of turn {len(earlier)} of completion, whi"
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
            "Row 0: the tokenizer's chat template cannot write this conversation: Roles must",
        ),
        (LOOP + "{{ m.content + 1 }}" + ASK, "chat template cannot write this conversation: can"),
        (
            LOOP + "{% if m.role != 'system' %}{{ m.content }}{% endif %}" + ASK,
            "leaves out or changes turn 0",
        ),
        (LOOP + "{{ m.role }}: {{ m.content }}\n{% endfor %}", "has no generation prompt"),
        (
            LOOP + "{{ m.content }}{% endfor %}{% if add_generation_prompt %}[a]<think>{% endif %}",
            "Row 0: this chat template writes the prompt differently when a response follows",
        ),
        (
            LOOP
            + "{% if m.role == 'assistant' %}[a]{% if loop.last %}<think>{% endif %}{% endif %}"
            + "{{ m.content }}"
            + ASK,
            "Row 0: this chat template writes earlier turns differently when others follow",
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
