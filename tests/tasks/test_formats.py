"""The dataset formats of TRL, and rows that cannot be trained on."""

import pytest
from datasets import Dataset
from tokenizers.processors import TemplateProcessing

from minirlhf.loops.preference import DPOConfig, train_dpo
from minirlhf.loops.reward import RewardConfig, train_reward_model
from minirlhf.loops.rows import fit_rows
from minirlhf.loops.sft import SFTConfig, train_sft
from minirlhf.tasks.formats import (
    check_rows,
    conversational,
    paired,
    standard,
    texts_once,
    unpaired,
)
from minirlhf.tasks.hub import load_by_name
from tests.tiny import EOS, tiny_policy, tiny_tokenizer

PAIRS = [{"prompt": "What is 2 + 2?", "chosen": " It is 4.", "rejected": " It is 5."}]
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{{ eos_token if m['role'] == 'assistant' }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_texts_once_lists_each_response_of_a_prompt_once():
    rows = {"prompt": ["f", "f", "g"], "chosen": ["a", "b", "a"], "rejected": ["b", "c", "c"]}
    assert texts_once(rows) == (
        ["f", "f", "g", "f", "g"],
        ["a", "b", "a", "c", "c"],
        [0, 1, 2],
        [1, 3, 4],
    )


def user(text):
    return [{"role": "user", "content": text}]


def assistant(text):
    return [{"role": "assistant", "content": text}]


def chat_tokenizer():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def rows(*given):
    return Dataset.from_list(list(given))


@pytest.mark.parametrize(
    "given, expected",
    [
        (PAIRS[0], PAIRS[0]),
        ({"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "b"}),
        (
            {"prompt": "a", "completion": "b", "label": True},
            {"prompt": "a", "completion": "b", "label": True},
        ),
        ({"prompt": "a"}, {"prompt": "a"}),
        (
            {
                "chosen": "The sky is blue.",
                "rejected": "The sky is green.",
            },  # implicit prompt: the common beginning, up to a whole word
            {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
        ),
        (
            {"chosen": "The sky is blue", "rejected": "The sky is black"},
            {"prompt": "The sky is", "chosen": " blue", "rejected": " black"},
        ),
        (
            {
                "chosen": "\n\nHuman: hi there\n\nAssistant: hello you\n\nHuman: and?\n\nAssistant: that is all",
                "rejected": "\n\nHuman: hi there\n\nAssistant: hello you\n\nHuman: and?\n\nAssistant: that was it",
            },
            {
                "prompt": "\n\nHuman: hi there\n\nAssistant: hello you\n\nHuman: and?\n\nAssistant:",
                "chosen": " that is all",
                "rejected": " that was it",
            },
        ),
    ],
)
def test_standard_formats(given, expected):
    (row,) = standard(rows(given))
    assert row == expected


@pytest.mark.parametrize(
    "given, expected",
    [
        (
            {"prompt": user("q"), "chosen": assistant("a"), "rejected": assistant("b")},
            {"prompt": "<user>q<assistant>", "chosen": "a", "rejected": "b"},
        ),
        (
            {"chosen": user("q") + assistant("a"), "rejected": user("q") + assistant("b")},
            {"prompt": "<user>q<assistant>", "chosen": "a", "rejected": "b"},
        ),
        (
            {"messages": user("q") + assistant("a")},
            {"prompt": "<user>q<assistant>", "completion": "a"},
        ),
        (
            {"messages": user("q") + assistant("a") + user("r") + assistant("b")},
            {
                "prompt": "<user>q<assistant>",
                "completion": "a<|endoftext|><user>r<assistant>b",
                "completion_spans": [[0, 14], [32, 33]],
            },
        ),
        ({"prompt": user("q")}, {"prompt": "<user>q<assistant>"}),
        (
            {"prompt": user("q"), "completion": assistant("a"), "label": False},
            {"prompt": "<user>q<assistant>", "completion": "a", "label": False},
        ),
        (
            {
                "prompt": "q",
                "chosen": user("q") + assistant("a"),
                "rejected": user("q") + assistant("b"),
            },  # ultrafeedback_binarized
            {"prompt": "<user>q<assistant>", "chosen": "a", "rejected": "b"},
        ),
    ],
)
def test_conversations_go_through_the_chat_template(given, expected):
    (row,) = standard(rows(given), chat_tokenizer())
    assert row == expected


RAW = {
    "prompt": user("q"),
    "completion": assistant("a"),
    "chosen": assistant("a"),
    "rejected": assistant("b"),
}


@pytest.mark.parametrize(
    "given, said",
    [
        ([RAW], "The rows are of type list; they must be a Dataset. Dataset.from_list makes one"),
        (rows({"messages": user("q") + assistant("a")}), "lacks ['prompt'"),
        (rows(RAW), "Row 1: prompt is a conversation, and the loops read text; convert it: tasks."),
        (rows(RAW | {"prompt": "q"}), "is a conversation, and the loops read text; convert it: "),
    ],
)
def test_rows_that_are_not_standard_are_refused_with_the_way_to_standard_rows(given, said):
    model, tokenizer = tiny_policy(), chat_tokenizer()
    for call in (
        lambda: train_sft(model, tokenizer, given),
        lambda: train_dpo(model, tokenizer, given),
        lambda: train_reward_model(model.base_model, tokenizer, given),
        lambda: fit_rows(given, tokenizer, model),
    ):
        with pytest.raises(ValueError) as refused:
            call()
        assert said in str(refused.value) and "tasks.standard(dataset, tokenizer)" in str(
            refused.value
        )
        assert "tasks.load_by_name(path, tokenizer)" in str(refused.value)
        assert "loops.fit_rows" in str(refused.value)


def test_the_response_ends_in_one_eos():
    from minirlhf.models.forward import encode

    tokenizer = chat_tokenizer()
    (row,) = standard(rows({"messages": user("q") + assistant("a")}), tokenizer)
    batch = encode(tokenizer, [row["prompt"]], [row["completion"]])
    assert batch.response_ids[0].tolist().count(tokenizer.eos_token_id) == 1


def test_conversational_and_unpaired_formats_convert_back():
    standard_rows = Dataset.from_list(PAIRS)
    assert standard(conversational(standard_rows), chat_tokenizer()).to_list() == [
        {
            "prompt": "<user>What is 2 + 2?<assistant>",
            "chosen": " It is 4.",
            "rejected": " It is 5.",
        }
    ]
    alone = unpaired(standard_rows)
    assert [(r["completion"], r["label"]) for r in alone] == [
        (" It is 4.", True),
        (" It is 5.", False),
    ]
    assert paired(alone).to_list() == PAIRS


def test_paired_combines_every_good_and_bad_response_of_a_prompt():
    given = [
        ("p", "a", True),
        ("p", "b", True),
        ("p", "x", False),
        ("q", "c", True),
        ("p", "a", False),
    ]
    pairs = paired(
        Dataset.from_list(
            [dict(zip(("prompt", "completion", "label"), row, strict=True)) for row in given]
        )
    )
    assert [tuple(r.values()) for r in pairs] == [("p", "a", "x"), ("p", "b", "x"), ("p", "b", "a")]
    with pytest.raises(ValueError, match="both a good and a bad"):
        paired(rows({"prompt": "p", "completion": "a", "label": True}))


@pytest.mark.parametrize(
    "row, columns, said",
    [
        ({"prompt": "a", "text": "b"}, ("prompt", "completion"), "lacks .'completion'"),
        (
            {"prompt": "a", "completion": 7},
            ("prompt", "completion"),
            "Row 1: completion is '7', of type int; it must be text",
        ),
        (
            {"prompt": "a", "completion": None},
            ("prompt", "completion"),
            "Row 1: completion is 'None'",
        ),
        ({"prompt": "", "completion": "b"}, ("prompt", "completion"), "Row 1: the prompt is empty"),
        (
            {"prompt": "a", "chosen": "b", "rejected": "b"},
            ("prompt", "chosen", "rejected"),
            "same text",
        ),
        (
            {"prompt": "a", "completion": "b", "label": 1},
            ("prompt", "completion", "label"),
            "label is 1; it must be True",
        ),
    ],
)
def test_a_row_that_cannot_be_used_is_refused(row, columns, said):
    with pytest.raises(ValueError, match=said):
        check_rows(rows(row), *columns)


@pytest.mark.parametrize(
    "given, tokenizer, said",
    [
        ({"words": "a"}, None, "of no known format"),
        ({"prompt": user("q")}, None, "chat template"),
        ({"prompt": user("q")}, tiny_tokenizer(), "chat template"),
    ],
)
def test_an_unknown_format_is_refused(given, tokenizer, said):
    with pytest.raises(ValueError, match=said):
        standard(rows(given), tokenizer)


@pytest.mark.parametrize(
    "train",
    [
        lambda data: train_sft(tiny_policy(), tiny_tokenizer(), data, SFTConfig()),
        lambda data: train_dpo(tiny_policy(), tiny_tokenizer(), data, DPOConfig()),
        lambda data: train_reward_model(
            tiny_policy().base_model, tiny_tokenizer(), data, RewardConfig()
        ),
    ],
)
def test_loops_refuse_missing_columns_before_the_first_step(train):
    with pytest.raises(ValueError, match="lacks"):
        train(rows({"prompt": "a", "response": "b"}))


HH = {
    "chosen": "\n\nHuman: hi\n\nAssistant: hello",
    "rejected": "\n\nHuman: hi\n\nAssistant: go away",
}
ULTRA = {
    "prompt": "hi",
    "prompt_id": "1",
    "chosen": user("hi") + assistant("hello"),
    "rejected": user("hi") + assistant("go away"),
    "messages": user("hi") + assistant("hello"),
    "score_chosen": 8.0,
    "score_rejected": 2.0,
}
IMDB = {"text": "one two three four five six seven eight nine ten", "label": 1}


@pytest.mark.parametrize(
    "name, hub, split, schema, expected",
    [
        (
            "hh-rlhf",
            "Anthropic/hh-rlhf",
            "train",
            HH,
            {"prompt": "\n\nHuman: hi\n\nAssistant:", "chosen": " hello", "rejected": " go away"},
        ),
        (
            "ultrafeedback",
            "HuggingFaceH4/ultrafeedback_binarized",
            "train_prefs",
            ULTRA,
            {"prompt": "<user>hi<assistant>", "chosen": "hello", "rejected": "go away"},
        ),
        (
            "imdb",
            "stanfordnlp/imdb",
            "train",
            IMDB,
            {
                "prompt": "one two three four five six seven eight",
                "completion": " nine ten",
                "label": True,
            },
        ),
    ],
)
def test_datasets_by_name(name, hub, split, schema, expected, tmp_path):
    file, asked = tmp_path / "rows.jsonl", []
    rows(schema, schema).to_json(file)

    def load(given, split):
        asked.append((given, split))
        return Dataset.from_json(str(file), cache_dir=str(tmp_path))

    (row,) = load_by_name(name, chat_tokenizer(), rows=1, load=load)
    assert row == expected and asked == [(hub, split)]


def test_pairs_of_equal_texts_are_dropped_and_imdb_is_shuffled(tmp_path):
    def loaded(*given):
        file = tmp_path / f"{len(given)}.jsonl"
        rows(*given).to_json(file)
        return lambda name, split: Dataset.from_json(str(file), cache_dir=str(tmp_path))

    equal = {"chosen": HH["chosen"], "rejected": HH["chosen"]}
    (row,) = load_by_name("hh-rlhf", load=loaded(equal, HH, equal))
    assert row["chosen"] == " hello" and row["rejected"] == " go away"
    films = load_by_name(
        "imdb", rows=20, load=loaded(*[IMDB | {"label": int(i >= 30)} for i in range(60)])
    )
    assert len(films) == 20 and 5 <= sum(films["label"]) <= 15
    with pytest.raises(ValueError, match="rows is 0; it must be 1 or more"):
        load_by_name("imdb", rows=0)


def test_bos_is_written_once_if_template_and_tokenizer_both_add_it():
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = "{{ bos_token }}" + TEMPLATE
    given = rows({"prompt": user("q"), "completion": assistant("a")})
    assert standard(given, tokenizer).to_list() == [
        {"prompt": f"{EOS}<user>q<assistant>", "completion": "a"}
    ]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{EOS} $A", special_tokens=[(EOS, 0)]
    )
    assert standard(given, tokenizer).to_list() == [
        {"prompt": "<user>q<assistant>", "completion": "a"}
    ]


def test_a_local_file_is_loaded_and_an_unknown_name_is_refused(tmp_path):
    file = tmp_path / "pairs.jsonl"
    Dataset.from_list(PAIRS).to_json(file)
    assert load_by_name(str(file)).to_list() == PAIRS
    with pytest.raises(ValueError, match="No dataset .*missing.jsonl.*check the spelling"):
        load_by_name(str(tmp_path / "missing.jsonl"))

    def no_network(*given, **more):
        raise ConnectionError("no route")

    with pytest.raises(ValueError, match="No dataset 'hh-rlhf'.*ConnectionError.*network"):
        load_by_name("hh-rlhf", load=no_network)


def test_a_system_prompt_that_begins_late_is_used():
    many = [{"prompt": "q", "completion": "a", "system": None}] * 1000
    data = rows(*many, many[0] | {"system": "s"})
    assert standard(data, say=lambda text: None)["prompt"][999:] == ["q", "s\n\nq"]


TURN = {"role": "user", "content": "hello"}


@pytest.mark.parametrize(
    "row, sentence",
    [
        ({"messages": None}, "Row 1: messages is 'None'; it must be a list of turns, 2 or more"),
        ({"messages": [TURN]}, "2 or more, each with role and content"),
        (
            {"chosen": [], "rejected": []},
            "Row 1: chosen is '[]'; it must be a list of turns, 1 or more",
        ),
        ({"chosen": "a", "rejected": [TURN]}, "one of chosen and rejected is text and the other"),
        ({"chosen": None, "rejected": "a"}, "Row 1: chosen is 'None', of type NoneType"),
        (
            {"prompt": [{"role": "user"}], "completion": "a"},
            "it must be a list of turns, 1 or more",
        ),
        (
            {"prompt": [{"role": "user", "content": None}], "completion": "a"},
            "Row 1: the content of turn 1 in prompt is 'None', of type NoneType; it must be text",
        ),
    ],
)
def test_rows_that_are_no_conversations_are_refused_with_their_place(row, sentence):
    with pytest.raises(ValueError) as error:
        standard(Dataset.from_list([row]), tiny_tokenizer())
    assert sentence in str(error.value)
