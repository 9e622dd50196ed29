"""What a report calls rows that are odd, and what a refusal says of those that cannot be used."""

import json

import pytest
from typer.testing import CliRunner

from minirlhf import cli
from minirlhf.loops.rows import fit_rows
from minirlhf.models.load import load_policy, save_policy
from minirlhf.tasks.hub import named_demonstrations, named_pairs, named_prompts
from tests.tasks.test_formats import assistant, chat_tokenizer, user
from tests.tiny import EOS, tiny_policy, tiny_tokenizer

READ = {"rows": 100, "seed": 0, "max_tokens": 9}


@pytest.fixture
def said():
    return []


@pytest.fixture
def rows(tmp_path, said):
    """Rows of a file, as sft, dpo or grpo reads them; what the report says is in `said`."""

    def read(way, *given, tokenizer=None, **options):
        file = tmp_path / "mine.jsonl"
        file.write_text("\n".join(map(json.dumps, given)))
        tokenizer = tokenizer or chat_tokenizer()
        options |= {"say": said.append}
        if way == "pairs":
            return named_pairs(str(file), tokenizer, **READ, **options)
        if way == "prompts":
            return named_prompts(str(file), tokenizer, **options)
        return named_demonstrations(str(file), tokenizer, rows=100, **options)

    return read


def sharegpt(*values, speakers=("human", "gpt")):
    return {
        "conversations": [
            {"from": speakers[i % 2], "value": value} for i, value in enumerate(values)
        ]
    }


UF = {"prompt": "q", "chosen": user("q") + assistant("a"), "rejected": user("q") + assistant("b")}
ALONE = {"system": "s", "prompt": "q", "chosen": assistant("a"), "rejected": assistant("b")}
ALPACA = {
    "instruction": "q",
    "input": "more",
    "chosen": {"from": "gpt", "value": "a"},
    "rejected": {"from": "gpt", "value": "b"},
}


@pytest.mark.parametrize("row", [UF, ALPACA, ALONE, UF | {"prompt": user("q")}])
def test_a_prompt_beside_turns_is_the_same_text_for_grpo_as_for_dpo(row, rows, said):
    prompt = rows("pairs", row)["prompt"][:]
    said.clear()
    assert rows("prompts", row)["prompt"][:] == prompt and prompt[0].endswith("<assistant>")
    told = (
        "The answers beside the prompts (chosen, rejected) are turns, so the chat template writes "
        "a prompt of text as the user's turn: 1 row (1)."
    )
    assert (told in said[0]) == isinstance(row.get("prompt", ""), str)
    assert "plain text" not in said[0]


def test_a_prompt_beside_texts_or_without_a_template_stays_plain(rows):
    assert rows("prompts", UF | {"chosen": "a", "rejected": "b"})["prompt"][:] == ["q"]
    assert rows("prompts", {"prompt": "q", "answer": [{"text": "4"}]})["prompt"][:] == ["q"]
    assert rows("prompts", UF, tokenizer=tiny_tokenizer())["prompt"][:] == ["q"]
    turns = {"prompt": "q", "completion": assistant("a")}
    assert rows("prompts", turns)["prompt"] == rows("sft", turns)["prompt"]


@pytest.mark.parametrize(
    "row, kind",
    [
        (sharegpt("q", ""), "an empty response"),
        (sharegpt("q", "a", "r", " "), "an empty response"),
        (sharegpt("q", "", "r", "b"), "an empty turn of the assistant before the last"),
        (sharegpt("q", "a", "r", "b", speakers=("human", "gpt")), ""),
        ({"messages": user("q") + user("r") + assistant("a")}, "two turns of one role in a row"),
        (
            {"messages": user("q") + assistant("a") + user("r") + user("s") + assistant("b")},
            "two turns of one role in a row",
        ),
    ],
)
def test_odd_turns_are_used_and_named(row, kind, rows, said):
    assert len(rows("sft", sharegpt("q", "a") if "messages" not in row else TALK, row)) == 2
    assert ("Used as well: " in said[0]) == bool(kind)
    assert not kind or f"{kind}" in said[0] and ": 1 row (2)." in said[0]


TALK = {"messages": user("q") + assistant("a")}
HH = "\n\nHuman: hi\n\nAssistant:"


@pytest.mark.parametrize("more", ["\n\nHuman: Thanks!", "\n\nHuman: x\n\nAssistant: y"])
def test_a_response_with_a_further_turn_is_named_unless_chat_reads_it(more, rows, said):
    good = {"chosen": f"{HH} yes", "rejected": f"{HH} no"}
    bad = {"chosen": f"{HH} yes{more}", "rejected": f"{HH} no"}
    rows("pairs", good, bad)
    assert (
        "Used as well: a response with a further turn of Human: or Assistant:, which is learned "
        "as text (--chat reads transcripts as turns): 1 row (2)."
    ) in said[0]
    said.clear()
    rows("pairs", good, bad, chat=True, skip_invalid=True)
    assert "further turn" not in said[0]


@pytest.mark.parametrize(
    "names", [("score_chosen", "score_rejected"), ("chosen-rating", "rejected-rating")]
)
def test_scores_that_prefer_the_rejected_response_are_named(names, rows, said):
    scored = [dict(zip(names, pair, strict=True)) for pair in ((9, 2), (2.0, "9"), (None, 1))]
    pairs = [{"prompt": f"q{i}", "chosen": "a", "rejected": "b"} | s for i, s in enumerate(scored)]
    rows("pairs", *pairs)
    told = f"{names[0]} below {names[1]}, which prefers the rejected response: 1 row (2)."
    assert told in said[0]


def test_special_tokens_count_only_where_the_data_wrote_them(rows, tmp_path):
    tokenizer = chat_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    tokenizer.chat_template = "<turn>" + tokenizer.chat_template
    model = tiny_policy(vocab_size=len(tokenizer))
    templated = {"prompt": "<turn>q", "completion": "a"}
    for given, chat, count in ((TALK, False, 0), ({"prompt": "q", "completion": "a"}, True, 0)):
        data = rows("sft", given, given | {"id": 1}, tokenizer=tokenizer, chat=chat)
        assert data["prompt"][0].startswith("<turn>")
        report = fit_rows(data, tokenizer, model)[1]
        assert len(report.as_tokens) == count and report.chat
        assert "special tokens of the chat template" not in str(report)
    data = rows("sft", templated, {"prompt": "q", "completion": "a"}, tokenizer=tokenizer)
    report = fit_rows(data, tokenizer, model)[1]
    assert report.as_tokens == [0] and not report.chat
    assert "special tokens of the chat template, read as tokens (row 1)" in str(report)


def test_each_unknown_speaker_is_named_and_a_long_list_ends(rows, said):
    bad = [sharegpt("q", "a", speakers=("human", name)) for name in ("narrator", "bot", "bot")]
    rows("sft", sharegpt("q", "a"), *bad, skip_invalid=True)
    told = "an unknown speaker 'narrator' in conversations: 1 row (2); an unknown speaker 'bot' in"
    assert told in said[0]
    said.clear()
    many = [sharegpt("q", "a", speakers=("human", f"bot {i}")) for i in range(20)]
    rows("sft", sharegpt("q", "a"), *many, skip_invalid=True)
    assert "'bot 11' in conversations: 1 row (13); 8 more kinds." in said[0]


@pytest.mark.parametrize(
    "way, row, kind, sentence",
    [
        (
            "pairs",
            UF | {"chosen": user("other") + assistant("a")},
            "the question in chosen differs from prompt",
            "the question in chosen differs from prompt: turn 1 is user: 'other' in chosen and "
            "user: 'q' in prompt; make them equal",
        ),
        (
            "pairs",
            UF | {"chosen": user("q")},
            "a conversation",  # of the user alone
            "chosen has no turn of the assistant after the question",
        ),
        (
            "sft",
            {"messages": user("q") + user("r")},
            "no turn of the assistant to learn",
            "messages has no turn of the assistant after the question, so there is nothing",
        ),
        (
            "sft",
            {"messages": user("q") + [{"role": "assistant", "content": None}]},
            "a turn whose role or content is missing or no text",
            "the content of turn 2 in messages is 'None'",
        ),
        (
            "sft",
            sharegpt("q", "a", "r", f"b{EOS}c"),
            "a special token written in a turn",
            f"conversations: turn 4 has {EOS!r} written",
        ),
        (
            "sft",
            sharegpt("q", "a", "r"),
            "a conversation that does not end with the assistant's turn",
            "conversations ends with a turn of role 'user'",
        ),
        (
            "sft",
            {"messages": TALK["messages"] + assistant("b")},
            "two turns of the assistant in a row",
            "messages: turns 2 and 3 are both the assistant's",
        ),
    ],
)
def test_a_fault_is_called_what_it_is_by_the_names_of_the_file(
    way, row, kind, sentence, rows, said
):
    good = UF if way == "pairs" else sharegpt("q", "a") if "conversations" in row else TALK
    with pytest.raises(ValueError) as refused:
        rows(way, good, row)
    assert str(refused.value).startswith(f"mine.jsonl, row 2: {sentence}")
    assert "completion" not in str(refused.value)
    rows(way, good, row, skip_invalid=True)
    if kind != "a conversation":
        assert f"Left out: {kind}: 1 row (2)." in said[-1]


def test_a_repeated_prompt_is_no_repeated_row(rows, said):
    given = [{"prompt": "q", "answer": "1"}, {"prompt": "q", "answer": "2"}]
    rows("prompts", *given)
    assert "Used as well: the same prompt as an earlier row: 1 row (2)." in said[0]
    said.clear()
    rows("sft", *given)
    assert "Used as well" not in said[0]


def test_what_is_learned_of_sharegpt_is_called_by_its_column(rows, said):
    rows("sft", sharegpt("q", "a"))
    assert "Learned: every turn of the assistant in conversations, with its end." in said[0]


def test_pairs_of_a_file_of_conversations_are_refused_with_the_commands_that_take_it(rows):
    with pytest.raises(ValueError) as refused:
        rows("pairs", sharegpt("q", "a"))
    assert str(refused.value).startswith(
        "mine.jsonl holds conversations (conversations) without rejected answers, so there are no "
        "pairs. The command sft learns from conversations, and grpo, ppo and the online commands"
    )
    with pytest.raises(ValueError) as refused:
        rows("pairs", {"question": "q", "answer": "a", "id": 1}, tokenizer=tiny_tokenizer())
    assert "it has answer, question, id and lacks ['chosen', 'rejected']" in str(refused.value)


def test_a_model_without_a_template_gets_one_by_the_two_lines_of_the_refusal(tmp_path):
    save_policy(tiny_policy(), tiny_tokenizer(), tmp_path / "m")
    talk = sharegpt("q", "a", "r", "b")
    (tmp_path / "mine.jsonl").write_text(json.dumps(talk))
    given = ["sft", "--model", tmp_path / "m", "--dataset", tmp_path / "mine.jsonl", "--check-only"]
    given = [str(part) for part in given]
    said = str(CliRunner().invoke(cli.app, given).exception)
    assert said.startswith("mine.jsonl, row 1 is a conversation, and the model's tokenizer has no")
    assert "smollm2-135m" in said and "\n" not in said
    tokenizer = load_policy(tmp_path / "m")[1]
    lines = said.partition("`: ")[2].replace("FOLDER", "folder").removesuffix(".")
    exec(lines, {"tokenizer": tokenizer, "folder": tmp_path / "m"})
    done = CliRunner().invoke(cli.app, given)
    assert done.exit_code == 0, done.exception
    said = " ".join(done.output.split())
    assert f"the assistant wrote 'a{EOS}', 'b{EOS}'." in said
