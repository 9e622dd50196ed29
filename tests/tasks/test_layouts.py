"""Which columns of public datasets hold the prompt, the responses and the labels."""

import pytest
from datasets import Dataset

from minirlhf.tasks import standard
from minirlhf.tasks.layouts import CHOICES, find_layout, parse_columns
from tests.tasks.test_formats import assistant, chat_tokenizer, user


def shared(*turns):
    """Turns in ShareGPT's form."""
    return [{"from": speaker, "value": text} for speaker, text in turns]


QA = {"prompt": "q", "completion": "a"}
LINE = {"prompt": "q\n"}
PAIR = {"prompt": "q", "chosen": "good", "rejected": "bad"}
ASKED = "<user>q<assistant>"
LAYOUTS = {
    "Alpaca": (
        {"instruction": "Name", "input": "a film", "output": "a", "text": "Below is"},
        {"prompt": "Name\n\na film\n", "completion": "a"},
    ),
    "Alpaca without input": ({"instruction": "q", "input": "", "output": "a"}, QA | LINE),
    "Alpaca with a null input": ({"instruction": "q", "input": None, "output": "a"}, QA | LINE),
    "Alpaca with an empty history": (
        {"instruction": "q", "input": "", "output": "a", "history": []},
        QA | LINE,
    ),
    "Alpaca pairs": (
        {"instruction": "q", "input": "", "chosen": "good", "rejected": "bad"},
        PAIR | LINE,
    ),
    "Dolly": (
        {"instruction": "q", "context": "", "response": "a", "category": "open_qa"},
        QA | LINE,
    ),
    "OpenOrca": (
        {"id": "1", "system_prompt": "Be kind.", "question": "q", "response": "a"},
        {"prompt": "Be kind.\n\nq", "completion": "a"},
    ),
    "Orca pairs": ({"system": "", "question": "q", "chosen": "good", "rejected": "bad"}, PAIR),
    "question and answer": ({"question": "q", "answer": "a"}, QA),
    "prompt and response": ({"prompt": "q", "response": "a", "helpfulness": 4}, QA),
    "query and response": (
        {"query": "q", "response": "a", "type": "x", "original_question": ""},
        QA,
    ),
    "problem and solution": ({"problem": "q", "solution": "a", "level": 3}, QA),
    "input and output": ({"input": "q", "output": "a"}, QA),
    "a label": ({"instruction": "q", "output": "a", "kto_tag": True}, QA | LINE | {"label": True}),
    "ShareGPT": (
        {"id": "1", "conversations": shared(("human", "q"), ("gpt", "a"))},
        {"prompt": ASKED, "completion": "a"},
    ),
    "ShareGPT with a system": (
        {"system": "s", "tools": "", "conversations": shared(("human", "q"), ("gpt", "a"))},
        {"prompt": f"<system>s{ASKED}", "completion": "a"},
    ),
    "ShareGPT whose turns have a system": (
        {
            "system": "other",
            "conversations": shared(("system", "s"), ("human", "q"), ("gpt", "a")),
        },
        {"prompt": f"<system>s{ASKED}", "completion": "a"},
    ),
    "ShareGPT pairs": (
        {
            "conversations": shared(("human", "q")),
            "chosen": shared(("gpt", "good"))[0],
            "rejected": shared(("gpt", "bad"))[0],
        },
        PAIR | {"prompt": ASKED},
    ),
    "UltraChat": (
        {"prompt": "q", "prompt_id": "1", "messages": user("q") + assistant("a")},
        {"prompt": ASKED, "completion": "a"},
    ),
    "UltraFeedback": (
        {
            "prompt": "q",
            "prompt_id": "1",
            "chosen": user("q") + assistant("good"),
            "rejected": user("q") + assistant("bad"),
            "messages": user("q") + assistant("good"),
            "score_chosen": 8.0,
        },
        PAIR | {"prompt": ASKED},
    ),
    "UltraFeedback of Argilla": (
        {"instruction": "q", "chosen_response": "good", "rejected_response": "bad"},
        PAIR | LINE,
    ),
    "OpenAI's pairs": (
        {
            "input": {"messages": user("q")},
            "preferred_output": assistant("good"),
            "non_preferred_output": assistant("bad"),
        },
        PAIR | {"prompt": ASKED},
    ),
    "StackExchange": (
        {"qid": 1, "question": "q", "date": "d", "response_j": "good", "response_k": "bad"},
        PAIR,
    ),
    "PKU, the second": (
        {"prompt": "q", "response_0": "bad", "response_1": "good", "better_response_id": 1},
        PAIR,
    ),
    "PKU, the first": (
        {"prompt": "q", "response_0": "good", "response_1": "bad", "better_response_id": 0},
        PAIR,
    ),
    "SHP, A": (
        {"history": "q", "human_ref_A": "good", "human_ref_B": "bad", "labels": 1},
        PAIR,
    ),
    "SHP, B": (
        {"history": "q", "human_ref_A": "bad", "human_ref_B": "good", "labels": 0},
        PAIR,
    ),
    "HelpSteer2, the first": (
        {"prompt": "q", "response_1": "good", "response_2": "bad", "preference_strength": -2},
        PAIR,
    ),
    "HelpSteer2, the second, as in a CSV file": (
        {"prompt": "q", "response_1": "bad", "response_2": "good", "preference_strength": "1"},
        PAIR,
    ),
    "HelpSteer3": (
        {
            "context": user("q"),
            "response1": "bad",
            "response2": "good",
            "overall_preference": 3,
            "domain": "general",
        },
        PAIR | {"prompt": ASKED},
    ),
    "Chatbot Arena": (
        {
            "conversation_a": user("q") + assistant("bad"),
            "conversation_b": user("q") + assistant("good"),
            "winner": "model_b",
            "model_a": "x",
        },
        PAIR | {"prompt": ASKED},
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_usual_layouts_are_known(name):
    given, expected = LAYOUTS[name]
    (row,) = standard(Dataset.from_list([given]), chat_tokenizer())
    assert {column: row[column] for column in expected} == expected
    assert all(row[column] == given[column] for column in row.keys() - expected.keys())


def test_a_line_names_the_columns_found_and_the_others():
    said = []
    given = {"id": 1, "instruction": "q", "input": "", "output": "a", "score": 0.5}
    standard(Dataset.from_list([given]), say=said.append)
    assert said == [
        "Dataset: 1 row; prompt = instruction + input; completion = output. "
        "Other columns: id, score."
    ]
    assert find_layout(list(given), [given]).described() == (
        "prompt = instruction + input; completion = output. Ignored: id, score."
    )
    pair = {"chosen": "a b", "rejected": "a c", "": "0"}
    assert find_layout(list(pair), [pair]).described() == (
        "prompt = the common beginning of chosen and rejected; chosen; rejected. Ignored: (no name)."
    )


@pytest.mark.parametrize(
    "others",
    [
        {},
        {"id": "x1", "source": "web", "prompt_id": "p", "chosen_model": "m", "language": "en"},
        {"score_chosen": 1.0, "margin": "0.5", "": "0", "Unnamed: 0": "0", "rating": 3},
        {"notes": None, "flag": True, "count": "12", "remark": "", "empty": []},
        {"model_a": "x", "dataset_name": "y", "metadata": {"a": "b c"}, "models": ["m n"]},
    ],
)
def test_a_prompt_is_implicit_where_no_column_can_hold_it(others):
    (row,) = standard(Dataset.from_list([others | {"chosen": "It is a", "rejected": "It is b"}]))
    assert (row["prompt"], row["chosen"], row["rejected"]) == ("It is", " a", " b")


@pytest.mark.parametrize(
    "name, value",
    [
        ("task", "Write a poem"),
        ("user_message", "hello"),
        ("text", "hello"),
        ("messages", user("q")),
        ("topic", "films"),
        ("Prompt", "q"),
        ("source", "Guten Tag Welt"),
        ("source_text", "Guten Tag Welt"),
        ("model_input", "hello"),
        ("language", "\u4f60\u597d"),
        ("dataset", user("q")),
    ],
)
def test_a_column_that_could_be_the_prompt_is_not_passed_over(name, value):
    pair = {"chosen": "It is a", "rejected": "It is b", name: value}
    with pytest.raises(ValueError) as refused:
        standard(Dataset.from_list([pair]))
    assert f"no column prompt, but {name}; give --columns prompt={name}, or" in str(refused.value)
    (row,) = standard(Dataset.from_list([pair]), columns={"prompt": ""})
    assert row["prompt"] == "It is"


def test_a_few_names_with_spaces_say_something_about_the_rows():
    pairs = [
        {"chosen": f"It is {i}", "rejected": f"It is not {i}", "source": ("Stack X", "web")[i % 2]}
        for i in range(20)
    ]
    assert standard(Dataset.from_list(pairs))["prompt"][:] == ["It is"] * 20


def test_nothing_can_be_said_of_every_role():
    row = {"prompt": "q", "chosen": "b", "rejected": "c", "completion": "d"}
    row["messages"] = user("m") + assistant("n")
    data = Dataset.from_list([row])
    talk = Dataset.from_list([{"prompt": "q", "completion": "d", "messages": row["messages"]}])

    def read(data, **columns):
        found = standard(data, chat_tokenizer(), columns=columns)[0]
        return found["prompt"], found.get("completion")

    assert read(data, chosen="", messages="") == ("q", "d")
    assert read(talk, completion="") == read(talk, prompt="") == ("<user>m<assistant>", "n")
    with pytest.raises(ValueError, match=r"a column must be the prompt, and columns gives prompt="):
        read(Dataset.from_list([{"prompt": "q", "completion": "d"}]), prompt="")


@pytest.mark.parametrize("name", ["instruction", "question", "query", "problem", "input"])
def test_a_usual_name_of_the_prompt_is_never_passed_over(name):
    pair = {"chosen": "It is a", "rejected": "It is b", name: "What is it?"}
    (row,) = standard(Dataset.from_list([pair]))
    end = "\n" * (name == "instruction")
    assert row == {"prompt": f"What is it?{end}", "chosen": "It is a", "rejected": "It is b"}


@pytest.mark.parametrize(
    "given, sentence, columns, expected",
    [
        (
            {"question": "q", "context": "c", "answer": "a"},
            "could be the prompt: question, context; say which one with --columns prompt=NAME, or "
            "join them with --columns prompt=question+context",
            {"prompt": "context+question"},
            {"prompt": "c\n\nq\n", "completion": "a"},
        ),
        (
            {"prompt": "q", "response": "x", "output": "a"},
            "could be the completion: response, output; say which one with --columns "
            "completion=NAME",
            {"completion": "output"},
            QA,
        ),
        (
            {"problem": "q", "solution": "a", "messages": user("q") + assistant("b")},
            "could be the responses: messages, solution; say which one with --columns "
            "messages=NAME or --columns completion=NAME",
            {"completion": "solution"},
            QA,
        ),
        (
            {"problem": "q", "solution": "a", "messages": user("q") + assistant("b")},
            "could be the responses",
            {"messages": "messages"},
            {"prompt": ASKED, "completion": "b"},
        ),
        (
            {
                "prompt": "q",
                "chosen_response": "x",
                "rejected_response": "y",
                "response_j": "good",
                "response_k": "bad",
            },
            "could be the chosen: chosen_response and rejected_response, response_j and",
            {"chosen": "response_j", "rejected": "response_k"},
            PAIR,
        ),
        (
            {"ask": "q", "reply": "a"},
            "has the columns ask, reply, which are of no known format",
            {"prompt": "ask", "completion": "reply"},
            QA,
        ),
        ({"text": "q a"}, "of no known format", {"prompt": "text"}, {"prompt": "q a"}),
        (
            {"instruction": "q", "output": "a", "history": [["x", "y"]]},
            "could be the prompt: instruction, history",
            {"prompt": "instruction"},
            QA | LINE,
        ),
        (
            {"question": "q", "answer": "a", "label": "algebra"},
            "label is 'algebra'; a label must be true or 1 (good), or false or 0 (bad). If the "
            "column means something else: --columns label= (nothing)",
            {"label": ""},
            QA,
        ),
    ],
)
def test_what_is_not_clear_is_refused_and_an_option_says_it(given, sentence, columns, expected):
    data = Dataset.from_list([given])
    with pytest.raises(ValueError) as refused:
        standard(data, chat_tokenizer())
    assert sentence in str(refused.value)
    (row,) = standard(data, chat_tokenizer(), columns=columns)
    assert {name: row[name] for name in expected} == expected


def test_columns_that_are_said_come_before_usual_names():
    given = {"prompt": "x", "question": "q", "completion": "y", "answer": "a", "system": "s"}
    (row,) = standard(Dataset.from_list([given]), columns={"prompt": "question"})
    assert (row["prompt"], row["completion"]) == ("q", "y")
    both = {"prompt": "question", "completion": "answer"}
    assert standard(Dataset.from_list([given]), columns=both)[0]["completion"] == "a"
    plus = {"a+b": "q", "a": "", "completion": "a"}
    assert standard(Dataset.from_list([plus]), columns={"prompt": "a+b"})[0]["prompt"] == "q"


@pytest.mark.parametrize(
    "columns, sentence",
    [
        ({"prompt": "questn"}, "has no column 'questn' for prompt; its columns are question, an"),
        ({"prompt": "question+x"}, "has no column 'x' for prompt"),
        ({"promt": "question"}, "columns names 'promt'; it must be one of prompt, completion"),
        ({"prompt": "answer", "completion": "answer"}, "columns names 'answer' twice"),
        ({"completion": "question+answer"}, "only a prompt can be several columns"),
        (
            {"chosen": "answer"},
            "columns gives chosen=answer, and the dataset is read as prompt, co",
        ),
    ],
)
def test_columns_that_cannot_be_meant_are_refused(columns, sentence):
    with pytest.raises(ValueError) as refused:
        standard(Dataset.from_list([{"question": "q", "answer": "a"}]), columns=columns)
    assert sentence in str(refused.value)


def test_where_the_column_prompt_is_something_else_the_prompt_must_be_said():
    pairs = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c", "asked": "q"}])
    with pytest.raises(ValueError, match="chosen=prompt, so the column prompt is not the prompt"):
        standard(pairs, columns={"chosen": "prompt"})
    (row,) = standard(pairs, columns={"chosen": "prompt", "prompt": "asked"})
    assert (row["prompt"], row["chosen"]) == ("q", "a")


@pytest.mark.parametrize("missing", [{}, {"chosen": "nowhere"}, {"prompt": ""}])
def test_of_many_columns_the_first_ones_are_named(missing):
    many = {f"c{i}": "x" for i in range(2000)}
    row = many | ({"chosen": "a"} if missing else PAIR)
    if missing:
        with pytest.raises(ValueError) as error:
            standard(Dataset.from_list([row]), columns=missing)
        said = str(error.value)
    else:
        said = find_layout([*row], [row]).described()
    assert "c0, c1, c2," in said and " more" in said and len(said) < 400, said


def test_a_label_does_not_belong_to_pairs():
    pairs = Dataset.from_list([PAIR | {"label": "algebra", "x": 1}])
    assert standard(pairs).column_names == ["prompt", "chosen", "rejected", "x"]
    with pytest.raises(ValueError, match="columns gives label=x, and the dataset is read as prom"):
        standard(pairs, columns={"label": "x"})


def test_columns_are_read_from_an_option():
    assert parse_columns("") == {}
    assert parse_columns("prompt=a, b,completion= c") == {"prompt": "a, b", "completion": " c"}
    assert parse_columns(" prompt = a , completion =b") == {"prompt": " a ", "completion": "b"}
    (row,) = standard(
        Dataset.from_list([{"a": "q", "b": "r"}]),
        columns=parse_columns(" prompt = a , completion =b"),
    )
    assert row == {"prompt": "q", "completion": "r"}
    assert parse_columns("prompt=,label=x=y") == {"prompt": "", "label": "x=y"}
    for wrong in ("prompt", "prompt:a", "prompt=a,prompt=b", ","):
        with pytest.raises(ValueError, match="it must be ROLE=COLUMN, for example prompt=question"):
            parse_columns(wrong)


@pytest.mark.parametrize("first, second, column", [choice[:3] for choice in CHOICES])
@pytest.mark.parametrize("value", ["often", None, True, float("nan"), "tie", 0])
def test_a_choice_that_is_none_is_refused(first, second, column, value):
    if value == 0 and column in ("labels", "better_response_id"):
        value = 2  # 0 is a choice there
    row = {"prompt": "q", first: "x", second: "y", column: value}
    talk = first == "conversation_a"
    row |= {n: user("q") + assistant(n) for n in (first, second)} if talk else {}
    with pytest.raises(ValueError, match=f"{column} is .*(it must be|neither response is better)"):
        standard(Dataset.from_list([row]), chat_tokenizer())
