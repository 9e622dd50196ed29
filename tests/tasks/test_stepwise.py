"""Labelled steps in the layouts of TRL, Math-Shepherd and PRM800K."""

import json

import pytest

from minirlhf.tasks.stepwise import named_steps

SHEPHERD = {
    "input": "2+2+1? Step 1: 2+2=4 \u043a\u0438\nStep 2: 4+1=6 \u043a\u0438",
    "label": "2+2+1? Step 1: 2+2=4 +\nStep 2: 4+1=6 -",
    "task": "GSM8K",
}
STEPS = [
    {
        "completions": [{"text": "no", "rating": -1}, {"text": "2+2=4", "rating": 1}],
        "chosen_completion": 1,
    },
    {"completions": None, "human_completion": {"text": "so", "rating": None}},
    {"completions": [{"text": "hm", "rating": 0}], "chosen_completion": 0},
    {"completions": [{"text": "6", "rating": -1}], "chosen_completion": None},
]
PRM800K = {"question": {"problem": "2+2+1?", "ground_truth_answer": "5"}, "label": {"steps": STEPS}}


def read(tmp_path, *rows, **given):
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    said = []
    data = named_steps(str(tmp_path / "mine.jsonl"), say=said.append, **given)
    return [{k: v for k, v in row.items() if k != "row_of_file"} for row in data], said


def test_rows_of_trl_stay_as_they_are(tmp_path):
    row = {"prompt": "p", "completions": ["a", "b"], "labels": [True, None], "id": 3}
    rows, said = read(tmp_path, row, row | {"labels": [0.5, 0]})
    assert rows[0] == {"prompt": "p", "completions": ["a", "b"], "labels": [1.0, None]}
    assert rows[1]["labels"] == [0.5, 0.0]
    assert said == ["mine.jsonl: 2 of 2 rows; prompt; completions; labels."]


def test_math_shepherd(tmp_path):
    rows, said = read(tmp_path, SHEPHERD)
    assert rows == [
        {
            "prompt": "2+2+1?\n",
            "completions": ["Step 1: 2+2=4", "Step 2: 4+1=6"],
            "labels": [1.0, 0.0],
        }
    ]
    assert said == ["mine.jsonl: 1 of 1 rows; steps and labels as in Math-Shepherd; + is right."]


def test_prm800k(tmp_path):
    rows, said = read(tmp_path, PRM800K)
    assert rows == [
        {
            "prompt": "2+2+1?\n",
            "completions": ["2+2=4", "so", "hm", "6"],
            "labels": [1.0, None, 1.0, 0.0],
        }
    ]
    assert "1 and 0 are right" in said[0]


@pytest.mark.parametrize(
    "row, words",
    [
        (SHEPHERD | {"label": SHEPHERD["label"].replace("6 -", "7 -")}, "must be the same text as"),
        (SHEPHERD | {"label": 1}, "input and label are not as in Math-Shepherd"),
        (SHEPHERD | {"input": "2+2?"}, "or give rows with the columns prompt"),
        (PRM800K | {"question": "2+2?"}, "question and label are not as in PRM800K"),
        (PRM800K | {"label": {"steps": [{"completions": []}]}}, "not as in PRM800K"),
        ({"text": "x"}, "mine.jsonl has the columns text, which hold no labelled steps; give rows"),
    ],
)
def test_other_rows_are_refused(row, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        read(tmp_path, row)


def test_a_row_that_is_no_row_is_left_out_and_named(tmp_path):
    rows, said = read(tmp_path, SHEPHERD, [1], SHEPHERD, skip_invalid=True)
    assert len(rows) == 2 and said[1].startswith("Left out: 1 row (2). The first: ")
    with pytest.raises(ValueError, match="--skip-invalid leaves such rows out"):
        read(tmp_path, SHEPHERD, [1])
