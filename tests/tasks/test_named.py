"""Training data by name: the rows of a file, or the film reviews."""

import json

import pytest

from minirlhf.models.load import load_policy
from minirlhf.tasks import named_demonstrations, named_pairs, reviews

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


def test_without_a_name_the_data_are_the_film_reviews():
    _, tokenizer = load_policy("tiny-reviews-sft")
    pairs = named_pairs("", tokenizer, rows=7, seed=3, max_tokens=32)
    drawn = reviews.preference_pairs("reward", 7, seed=3, max_tokens=32, tokenizer=tokenizer)
    assert len(pairs) == 7 and pairs[:] == drawn[:]
    assert named_demonstrations("", tokenizer, rows=1)[:2] == reviews.sft_dataset(tokenizer)[:2]
