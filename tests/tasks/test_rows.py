"""Rows that teach nothing, or are no rows: each is named, counted, and refused or left out."""

import json

import pytest
from datasets import Dataset

from minirlhf.tasks import load_by_name, named_demonstrations, named_pairs, standard
from tests.tasks.test_formats import assistant, chat_tokenizer, user
from tests.tiny import EOS

GOOD = {"prompt": "a film", "chosen": "good", "rejected": "bad"}
SFT = {"prompt": "a film", "completion": "good"}
KTO = SFT | {"label": True}
IMPLICIT = {"chosen": "It is good", "rejected": "It is bad"}
TALK = {"chosen": user("q") + assistant("good"), "rejected": user("q") + assistant("bad")}
CHAT = {"messages": user("q") + assistant("good")}


def written(tmp_path, *rows):
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(tmp_path / "mine.jsonl")


def turns(*contents):
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]


BAD = [
    # (a good row, the bad row after it, what the sentence says after "mine.jsonl, row 2")
    (GOOD, GOOD | {"chosen": None}, ", column chosen: the value is 'None', of type NoneType"),
    (GOOD, {"prompt": "a", "chosen": "b"}, " has no column rejected; its columns are prompt, ch"),
    (GOOD, {}, " has no column prompt; its columns are none"),
    (GOOD, GOOD | {"prompt": None}, ", column prompt: the value is 'None'"),
    (GOOD, GOOD | {"prompt": ""}, ": the prompt is empty"),
    (GOOD, GOOD | {"prompt": " \n"}, ": the prompt is empty"),
    (GOOD, GOOD | {"rejected": "good"}, ": chosen and rejected are the same text"),
    (GOOD, GOOD | {"rejected": 7}, ", column rejected: the value is '7', of type int"),
    (GOOD, GOOD | {"rejected": 0.5}, ", column rejected: the value is '0.5', of type float"),
    (GOOD, GOOD | {"rejected": float("nan")}, ", column rejected: the value is 'nan'"),
    (GOOD, GOOD | {"rejected": True}, ", column rejected: the value is 'True', of type bool"),
    (GOOD, GOOD | {"chosen": "\ud800"}, ", column chosen: the value holds half a character"),
    (GOOD, GOOD | {"chosen": ["good"]}, " is a conversation, and the rows before it are text"),
    (GOOD, GOOD | {"chosen": {"text": "x"}}, " is a conversation, and the rows before it are"),
    (IMPLICIT, {"chosen": None, "rejected": None}, ", column chosen: the value is 'None'"),
    (IMPLICIT, {"chosen": "x y", "rejected": None}, ", column rejected: the value is 'None'"),
    (IMPLICIT, {"chosen": "", "rejected": ""}, ": chosen and rejected are the same text"),
    (IMPLICIT, {"chosen": "yes", "rejected": "no"}, ": chosen and rejected share no whole word"),
    (TALK, TALK | {"rejected": TALK["chosen"]}, ": chosen and rejected are the same conversation"),
    (TALK, TALK | {"rejected": user("q")}, ": one of chosen and rejected is the beginning of the"),
    (
        TALK,
        {"chosen": turns("q", "a"), "rejected": turns("p", "b")},
        ": chosen and rejected share no turn at their start",
    ),
    (TALK, TALK | {"rejected": None}, ", column rejected: the value is 'None'"),
    (TALK, TALK | {"rejected": [None]}, ": rejected is '[None]'; it must be a list of turns"),
    (TALK, TALK | {"rejected": [[[[]]]]}, ": rejected is '[[[[]]]]'; it must be a list of turns"),
    (TALK, TALK | {"rejected": []}, ": rejected is '[]'; it must be a list of turns, 1 or more"),
    (TALK, TALK | {"rejected": "text"}, ": one of chosen and rejected is text and the other"),
    (TALK, IMPLICIT, " is text, and the rows before it are a conversation"),
    (CHAT, {"messages": None}, ": messages is 'None'; it must be a list of turns, 2 or more"),
    (
        CHAT,
        {"messages": turns("q", None)},
        ": the content of turn 2 in messages is 'None', of type NoneType",
    ),
    (
        CHAT,
        {"messages": turns(None, "a")},
        ": the content of turn 1 in messages is 'None', of type NoneType",
    ),
    (CHAT, {"messages": turns("q", 4)}, ": the content of turn 2 in messages is '4', of type int"),
    (
        CHAT,
        {"messages": [{"role": None, "content": "x"}] * 2},
        ": the role of turn 1 in messages is 'None'",
    ),
    (CHAT, {"messages": "q a"}, ": messages is 'q a'; it must be a list of turns"),
    (
        CHAT,
        {"messages": [{"from": "narrator", "value": "x"}] * 2},
        ", column messages: the value "
        "has a turn from 'narrator'; it must be from one of human, user, gpt",
    ),
    (
        CHAT,
        {"messages": [{"from": None, "value": "x"}] * 2},
        ", column messages: the value has a turn from 'None'",
    ),
    (SFT, {"prompt": "a", "completion": None}, ", column completion: the value is 'None'"),
    (KTO, KTO | {"label": None}, ", column label: the value is 'None'; a label must be true or 1"),
    (KTO, KTO | {"label": 2}, ", column label: the value is '2'; a label must be"),
    (KTO, KTO | {"label": -1}, ", column label: the value is '-1'; a label must be"),
    (KTO, KTO | {"label": "yes"}, ", column label: the value is 'yes'; a label must be"),
    (KTO, KTO | {"label": []}, ", column label: the value is '[]'; a label must be"),
]


@pytest.mark.parametrize("good, bad, sentence", BAD, ids=lambda value: str(value)[:40])
def test_a_bad_row_is_refused_by_its_number_or_left_out(good, bad, sentence, tmp_path):
    file, said = written(tmp_path, good, bad, bad), []
    with pytest.raises(ValueError) as refused:
        load_by_name(file, chat_tokenizer())
    text = str(refused.value)
    assert text.startswith(f"mine.jsonl, row 2{sentence}") and "\n" not in text
    assert text.endswith("2 of 3 rows cannot be used. --skip-invalid leaves such rows out.")
    found = load_by_name(file, chat_tokenizer(), skip_invalid=True, say=said.append)
    assert len(found) == 1 and "mine.jsonl: 1 of 3 rows; " in said[0]
    assert "Left out: " in said[0] and ": 2 rows (2, 3)." in said[0]


def test_a_bad_first_row_does_not_decide_on_the_form_of_the_others(tmp_path):
    file = written(tmp_path, GOOD | {"chosen": {"text": "x"}}, GOOD, GOOD | {"chosen": "fine"})
    assert len(load_by_name(file, skip_invalid=True)) == 2


def test_a_row_nested_hundreds_of_lists_deep_is_refused(tmp_path):
    deep = "[" * 900 + "]" * 900
    asked = f'{{"role": "user", "content": "q", "x": {deep}}}'
    told = '{"role": "assistant", "content": "a"}'
    (tmp_path / "a.jsonl").write_text(f'{{"messages": [{asked}, {told}]}}')
    with pytest.raises(ValueError, match="a.jsonl, row 1 holds lists that are nested too deeply"):
        load_by_name(str(tmp_path / "a.jsonl"), chat_tokenizer())
    for depth in (300, 900):
        value = "[" * depth + "]" * depth
        (tmp_path / "a.jsonl").write_text(f'{{"prompt": "a", "chosen": {value}, "rejected": "b"}}')
        with pytest.raises(ValueError, match="a.jsonl, row 1"):
            load_by_name(str(tmp_path / "a.jsonl"), chat_tokenizer())


def test_with_chat_a_system_prompt_beside_a_text_is_a_turn(tmp_path):
    row = {"system": "s", "question": "q", "answer": "a"}
    found = load_by_name(written(tmp_path, row, row | {"system": ""}), chat_tokenizer(), chat=True)
    assert found["prompt"][:] == ["<system>s<user>q<assistant>", "<user>q<assistant>"]


def test_spans_are_read_again_where_rows_were_saved(tmp_path):
    talk = assistant("one") + user("and") + assistant("two")
    given = [{"prompt": user("q"), "completion": c} for c in (talk, assistant("x"))]
    rows = standard(Dataset.from_list(given), chat_tokenizer())
    rows.save_to_disk(tmp_path / "saved")
    for again in (load_by_name(str(tmp_path / "saved")), standard(rows)):
        assert again.to_list() == rows.to_list() and again["completion_spans"][0]
    none = Dataset.from_list([row | {"completion_spans": None} for row in given])
    assert standard(none, chat_tokenizer()).to_list() == rows.to_list()


@pytest.mark.parametrize(
    "spans", [[[0, 3]], [], [[2, 4], [0, 4]], [[-1, 4]], ["ab"], 7, [[0, 4.0]]]
)
@pytest.mark.parametrize("completion", ["abcd", assistant("abcd")])
def test_spans_that_do_not_fit_their_text_are_refused(spans, completion, tmp_path):
    row = {"prompt": "q", "completion": completion, "completion_spans": spans}
    with pytest.raises(
        ValueError, match="row 1, column completion_spans: the value is .* of \\[star"
    ):
        load_by_name(written(tmp_path, row), chat_tokenizer())


def test_rows_of_a_dataset_are_counted_from_1():
    data = Dataset.from_list([GOOD, GOOD | {"chosen": "bad"}, GOOD | {"prompt": None}])
    with pytest.raises(ValueError) as refused:
        standard(data)
    assert str(refused.value) == (
        "Row 2: chosen and rejected are the same text; remove such rows. "
        "2 of 3 rows cannot be used. skip_invalid=True leaves such rows out."
    )
    said = []
    assert standard(data, skip_invalid=True, say=said.append).to_list() == [GOOD]
    assert said == [
        "Dataset: 1 of 3 rows; prompt; chosen; rejected.\n"
        "Left out: two equal responses: 1 row (2); a value of prompt that is missing or no text: 1 row (3)."
    ]


def test_other_columns_stay_beside_the_rows_that_are_kept():
    data = Dataset.from_list(
        [SFT | {"n": i, "completion": text} for i, text in enumerate("a b".split())]
    )
    data = data.add_item({"prompt": None, "completion": "x", "n": 2}).add_item(SFT | {"n": 3})
    assert standard(data, skip_invalid=True)["n"][:] == [0, 1, 3]


def test_if_no_row_is_left_the_first_fault_is_said(tmp_path):
    file = written(tmp_path, GOOD | {"rejected": "good"}, GOOD | {"prompt": None})
    with pytest.raises(ValueError, match="mine.jsonl has no row that can be used: .*row 1: chosen"):
        load_by_name(file, skip_invalid=True)
    (tmp_path / "mine.jsonl").write_text("{\n[1]\n")
    with pytest.raises(
        ValueError,
        match="mine.jsonl' cannot be read, it has no row that can be used: .*row 1 is no",
    ):
        load_by_name(file, skip_invalid=True)


def test_labels_may_be_numbers_or_words_and_a_line_says_so(tmp_path):
    labels, said = [True, 1, "1", "true", "True", 1.0, False, 0, "0", "FALSE", 0.0], []
    file = written(
        tmp_path, *({**SFT, "completion": str(i), "label": v} for i, v in enumerate(labels))
    )
    found = load_by_name(file, say=said.append)
    assert found["label"][:] == [True] * 6 + [False] * 5
    assert (
        "a label that is 1 or 0 or a word, read as true or false: 9 rows (2, 3, 4, ...)" in said[0]
    )


def test_repeated_opposite_and_empty_rows_are_used_and_named(tmp_path):
    opposite = GOOD | {"chosen": "bad", "rejected": "good"}
    file = written(tmp_path, GOOD, GOOD, opposite, GOOD | {"chosen": ""}, GOOD | {"chosen": " "})
    said = []
    assert len(load_by_name(file, say=said.append)) == 5
    assert said[0].endswith(
        "Used as well: the same as an earlier row: 1 row (2); the opposite of an earlier row: "
        "1 row (3); an empty response: 2 rows (4, 5)."
    )


def test_the_report_says_of_each_kind_of_bad_row_how_many_and_in_which_column(tmp_path):
    talk, bad = (
        turns("q", "a"),
        [
            {"messages": None},
            {"messages": turns("q", "a", "r")},
            {"messages": [{"from": "narrator", "value": "x"}] * 2},
            {"messages": turns("q", f"a{EOS}b")},
            {"messages": turns("q", "a", "r")},
        ],
    )
    said = []
    given = [{"messages": talk}, *bad, {}]
    load_by_name(written(tmp_path, *given), chat_tokenizer(), skip_invalid=True, say=said.append)
    assert said[0].split("\n")[1] == (
        "Left out: no conversation: 1 row (2); a conversation that does not end with the "
        "assistant's turn: 2 rows (3, 6); an unknown speaker 'narrator' in messages: 1 row (4); a special token written in a "
        "turn: 1 row (5); no column messages: 1 row (7)."
    )
    bad = [GOOD | {"chosen": None}, GOOD | {"prompt": 7}, GOOD | {"chosen": 1}]
    load_by_name(written(tmp_path, GOOD, *bad), skip_invalid=True, say=said.append)
    assert said[1].endswith(
        "Left out: a value of chosen that is missing or no text: 2 rows (2, 4); a value of prompt "
        "that is missing or no text: 1 row (3)."
    )


def test_a_text_of_more_than_a_million_characters_is_not_read_as_tokens(tmp_path):
    long, said = [GOOD | {name: "a " * 500_001} for name in GOOD], []
    for row in long:
        with pytest.raises(ValueError, match="is a text of 1,000,002 characters; it must be at mo"):
            load_by_name(written(tmp_path, GOOD, row))
    load_by_name(written(tmp_path, GOOD, *long), skip_invalid=True, say=said.append)
    assert "a value of chosen that is too long: 1 row (3)" in said[0]
    talk = [{"messages": turns("q", "b " * 500_001)}]
    with pytest.raises(ValueError, match="1,000,002 characters"):
        load_by_name(written(tmp_path, *talk), chat_tokenizer())


def test_rows_with_both_labels_are_used_and_named(tmp_path):
    rows, said = [KTO, KTO | {"prompt": "b"}, KTO | {"label": False}, KTO, KTO | {"label": 0}], []
    assert len(load_by_name(written(tmp_path, *rows), say=said.append)) == 5
    assert "the same as an earlier row, but with the other label: 3 rows (3, 4, 5)" in said[0]


HH = "\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant:"


def test_with_chat_a_transcript_becomes_turns(tmp_path):
    asked = f"<user>q<assistant>a{EOS}<user>r<assistant>"
    pair = {"chosen": f"{HH} good", "rejected": f"{HH} bad\n\nHuman: why?\n\nAssistant: so"}
    (row,) = load_by_name(written(tmp_path, pair), chat_tokenizer(), chat=True)
    assert row["prompt"] == asked and row["chosen"] == "good"
    assert row["rejected"] == f"bad{EOS}<user>why?<assistant>so"
    assert [row["rejected"][start:end] for start, end in row["rejected_spans"]] == [
        f"bad{EOS}",
        "so",
    ]
    for completion in ("good", "\n\nAssistant: good", f"{HH} good"):
        given = written(tmp_path, {"prompt": HH, "completion": completion})
        assert load_by_name(given, chat_tokenizer(), chat=True)[0] == {
            "prompt": asked,
            "completion": "good",
        }
    given = written(tmp_path, {"prompt": "\n\nHuman: q\n\nAssistant: a\n\nAssistant:"})
    with pytest.raises(
        ValueError, match="row 1: prompt.* are both the assistant's|prompt ends with"
    ):
        load_by_name(given, chat_tokenizer(), chat=True)
    plain = {"prompt": "Human: rights?", "completion": "Assistant: yes"}
    (row,) = load_by_name(written(tmp_path, plain), chat_tokenizer(), chat=True)
    assert row["prompt"] == "<user>Human: rights?<assistant>"


def test_plain_rows_beside_a_chat_template_are_said(tmp_path):
    def said(tokenizer, *rows, **given):
        told = []
        load_by_name(written(tmp_path, *rows), tokenizer, say=told.append, **given)
        return told[0]

    hint = "the tokenizer has a chat template: --chat writes them with it"
    assert hint in said(chat_tokenizer(), SFT)
    applied = SFT | {"prompt": f"<user>q{EOS}<assistant>"}
    for tokenizer, row, chat in (
        (None, SFT, False),
        (chat_tokenizer(), applied, False),
        (chat_tokenizer(), CHAT, False),
        (chat_tokenizer(), SFT, True),
    ):
        assert hint not in said(tokenizer, row, chat=chat)


def test_columns_of_no_meaning_may_be_of_any_type(tmp_path):
    mixed = ({"x": 1}, {"x": "1"}, {"x": [1]}, {"x": {"y": None}}, {})
    file = written(tmp_path, *(GOOD | {"chosen": str(i)} | x for i, x in enumerate(mixed)))
    assert load_by_name(file)["chosen"][:] == list("01234")


def test_a_dataset_without_what_a_way_of_training_needs_is_refused(tmp_path):
    given = {"rows": 9, "say": lambda said: None}
    with pytest.raises(ValueError, match=r"mine.jsonl is of no known format for pairs: it has "):
        named_pairs(written(tmp_path, SFT), None, seed=0, max_tokens=9, **given)
    with pytest.raises(ValueError, match=r"of no known format for SFT: .*lacks \['completion'\]"):
        named_demonstrations(written(tmp_path, {"question": "q"}), None, **given)
    for name, more in (("", {}), ("imdb", {"load": None})):
        with pytest.raises(ValueError, match="columns is .*; it must be left out with"):
            call = load_by_name if name else named_demonstrations
            call(name, None, rows=9, columns={"prompt": "x"}, **more)


@pytest.mark.parametrize("chat", [False, True])
def test_an_empty_prompt_is_refused_with_a_template_too(chat, tmp_path):
    row = {"prompt": " ", "chosen": "yes", "rejected": "no"}
    with pytest.raises(ValueError, match=r"mine.jsonl, row 1: the prompt is empty"):
        load_by_name(written(tmp_path, row), chat_tokenizer(), chat=chat)


@pytest.mark.parametrize("chat", [False, True])
def test_transcripts_that_differ_in_what_the_human_says_are_refused(chat, tmp_path):
    talk = "\n\nHuman: What is {}?\n\nAssistant: {}"
    row = {"chosen": talk.format(33, "A number."), "rejected": talk.format(34, "No idea.")}
    with pytest.raises(ValueError, match="share no turn of the assistant at their start"):
        load_by_name(written(tmp_path, row), chat_tokenizer(), chat=chat)
