"""Training data by name: the rows of a file, or the film reviews."""

import json

import pytest
from datasets import Dataset

from minirlhf.loops.rows import fit_rows
from minirlhf.models.load import load_policy
from minirlhf.tasks import named_demonstrations, named_pairs, reviews
from tests.tiny import tiny_policy, tiny_tokenizer

LABELLED = [
    {"prompt": "a", "completion": f"{word} {i}", "label": word == "good"}
    for i in range(3)
    for word in ("good", "bad")
]


@pytest.fixture
def file(tmp_path):
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, LABELLED)))
    return str(tmp_path / "rows.jsonl")


def test_labelled_rows_are_paired_unless_the_loss_takes_labels(file):
    given = {"rows": 4, "seed": 0, "max_tokens": 32}
    # the first four rows are good 0, bad 0, good 1, bad 1: each good one with each bad one
    pairs = named_pairs(file, None, **given)
    assert list(zip(pairs["chosen"], pairs["rejected"], strict=True)) == [
        ("good 0", "bad 0"),
        ("good 0", "bad 1"),
        ("good 1", "bad 0"),
        ("good 1", "bad 1"),
    ]
    single = named_pairs(file, None, **given, labelled=True)
    assert single["label"][:] == [True, False, True, False]


def test_demonstrations_are_the_completions_labelled_good(file):
    assert named_demonstrations(file, None, rows=4)["completion"][:] == ["good 0", "good 1"]


def write(file, *rows):
    with open(file, "w") as lines:
        lines.write("\n".join(map(json.dumps, rows)))


def test_rows_that_the_labels_leave_out_are_said(file, capfd):
    write(file, *LABELLED[:3], {"prompt": "b", "completion": "x", "label": True})
    said, given = [], {"rows": 9, "say": lambda text: said.append(text)}
    named_demonstrations(file, None, **given)
    assert said[1] == "Left out: labelled bad, which SFT does not learn: 1 row (2)."
    named_pairs(file, None, seed=0, max_tokens=9, **given)
    assert said[3] == (
        "Left out: no other completion of the same prompt with the other label: 1 row (4)."
    )
    assert "Filter" not in capfd.readouterr().err
    write(file, LABELLED[1])
    with pytest.raises(ValueError, match="Of 1 row none is labelled good, and SFT learns good"):
        named_demonstrations(file, None, **given)


PAIR = {"prompt": "p", "chosen": "c", "rejected": "r"}
LONG = {"prompt": "x" * 99, "completion": "c", "label": True}


@pytest.mark.parametrize(
    "rows, number",
    [
        ([PAIR | {"chosen": None}, PAIR, PAIR | {"prompt": "x" * 99}], "3"),
        ([PAIR | {"chosen": "x" * 99}, PAIR], "1"),
        ([*LABELLED[:2], LONG, LONG | {"completion": "d", "label": False}], "3+4"),
    ],
)
def test_rows_keep_the_numbers_that_they_have_in_the_file(rows, number, file):
    write(file, *rows)
    given = {"rows": 9, "seed": 0, "max_tokens": 32, "skip_invalid": True}
    data, model = named_pairs(file, None, **given, say=lambda text: None), tiny_policy()
    with pytest.raises(ValueError) as error:
        fit_rows(data, tiny_tokenizer(), model)
    assert str(error.value).startswith(f"rows.jsonl, row {number} (1 of 2): a sequence of ")
    kept, report = fit_rows(data, tiny_tokenizer(), model, skip_invalid=True)
    assert f"exceeds the positions of the model (row {number}).\n" in str(report)
    assert kept.column_names == ["prompt", "chosen", "rejected"]


def test_no_rows_are_refused_as_such():
    with pytest.raises(ValueError, match="rows to train on is 0; it must be at least 1"):
        fit_rows(Dataset.from_list([]), tiny_tokenizer(), tiny_policy())


def test_without_a_name_the_data_are_the_film_reviews():
    _, tokenizer = load_policy("tiny-reviews-sft")
    pairs = named_pairs("", tokenizer, rows=7, seed=3, max_tokens=32)
    drawn = reviews.preference_pairs("reward", 7, seed=3, max_tokens=32, tokenizer=tokenizer)
    assert len(pairs) == 7 and pairs[:] == drawn[:]
    assert named_demonstrations("", tokenizer, rows=1)[:2] == reviews.sft_dataset(tokenizer)[:2]
