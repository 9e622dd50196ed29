"""Records are written and read completely, and a repeated row is compared with its record."""

import json

import pytest

from minirlhf.experiments import records

ROW = {"claim": "x", "seed": 0, "commit": "abc", "command": "minirlhf experiment x", "gold": 1.0}


def test_recorded_rows_are_read_back_unchanged(tmp_path):
    records.record("x", [ROW], folder=tmp_path)
    assert records.load_results("x", folder=tmp_path) == [ROW]
    with pytest.raises(ValueError, match="Nothing is recorded as 'y'; the records are x"):
        records.load_results("y", folder=tmp_path)
    (tmp_path / "z.jsonl").write_text(json.dumps({"claim": "z"}) + "\n")
    with pytest.raises(ValueError, match="lacks seed, commit, command"):
        records.load_results("z", folder=tmp_path)
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ValueError, match="no rows"):
        records.load_results("empty", folder=tmp_path)


def test_a_refused_record_leaves_the_old_record_unchanged(tmp_path):
    records.record("x", [ROW], folder=tmp_path)
    with pytest.raises(ValueError, match="lacks seed, commit, command"):
        records.record("x", [ROW, {"claim": "x"}], folder=tmp_path)
    with pytest.raises(ValueError, match="no rows"):
        records.record("x", [], folder=tmp_path)
    assert records.load_results("x", folder=tmp_path) == [ROW]


def test_a_repeated_row_that_differs_is_reported():
    assert records.differences({"gold": 1.0}, {"gold": 1.05}, tolerance={"gold": 0.1}) == []
    assert records.differences({"gold": 1.0}, {"gold": 2.0}, tolerance={"gold": 0.1}) == [
        "gold: recorded 1, now 2, allowed 0.1"
    ]
    assert records.differences({"gold": 1.0}, {"gold": float("nan")}, tolerance={"gold": 0.1}) == [
        "gold: recorded 1, now nan, allowed 0.1"
    ]
