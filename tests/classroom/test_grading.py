"""Grading a folder of submissions."""

import time

import nbformat
import pandas as pd
import pytest
from typer.testing import CliRunner

from minirlhf import cli
from minirlhf.classroom.grading import (
    COLUMNS,
    RESULTS,
    check_answer,
    grade_folder,
    sentences,
    write_grades,
)
from minirlhf.classroom.submissions import RESULT, Answer
from minirlhf.runtime import ROOT

RIGHT = """
import torch
def in_sft_units(scores, sft_scores):
    print("nobody sees this")
    return (scores - sft_scores.mean()) / sft_scores.std()
"""
WRONG = RIGHT.replace("- sft_scores.mean()", "")


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("class")
    (folder / "anna").mkdir()
    solved = ROOT / "notebooks" / "solutions" / "08_the_reward_model.ipynb"
    (folder / "anna" / "08_the_reward_model.ipynb").write_bytes(solved.read_bytes())
    given = ROOT / "notebooks" / "08_the_reward_model.ipynb"
    (folder / "ben").mkdir()
    (folder / "ben" / "08_the_reward_model.ipynb").write_bytes(given.read_bytes())
    (folder / "ben" / "08_again.py").write_text(RIGHT)
    (folder / "carla.py").write_text(WRONG)
    (folder / "dora.py").write_text("def in_sft_units(:")
    (folder / "emil").mkdir()
    empty = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("x = 1")])
    nbformat.write(empty, folder / "emil" / "08_the_reward_model.ipynb")
    return grade_folder(folder)


def results(grades, student):
    rows = grades[grades["student"] == student]
    return dict(zip(rows["exercise"], rows["result"], strict=True))


def test_the_solutions_pass(graded):
    found = results(graded, "anna")
    assert {*found} == {"bradley_terry_loss", "best_of_k_loss", "in_sft_units", "read_score"}
    assert {*found.values()} == {"passed"}


def test_blank_wrong_missing_and_unreadable_answers_are_told_apart(graded):
    ben = graded[graded["student"] == "ben"]
    assert sorted(ben["result"]) == ["blank"] * 4 + ["passed"]
    assert results(graded, "carla") == {"in_sft_units": "not yet"}
    assert results(graded, "dora") == {"": "unreadable"}
    assert {*results(graded, "emil").values()} == {"missing"}
    assert len(results(graded, "emil")) == 4
    assert list(graded) == COLUMNS and {*graded["result"]} <= {*RESULTS}


def test_each_row_says_why(graded):
    messages = graded.set_index("student")["message"]
    assert "dora.py is not Python (line 1:" in messages["dora"]
    assert (messages.str.len() > 10).all()
    assert not messages.str.contains("\n").any()
    carla = graded[graded["student"] == "carla"].iloc[0]
    assert carla["lesson"] == "08_the_reward_model" and carla["file"] == "carla.py"


def test_there_is_a_sentence_for_each_exercise(graded):
    lines = [x for x in sentences(graded) if "in_sft_units" in x]
    assert len(lines) == 1
    assert lines[0].startswith(
        "08_the_reward_model in_sft_units: 2 of 5 passed, 1 not yet, 1 blank, 1 missing."
    )


def code(body):
    return Answer("in_sft_units", f"{body}\n{RESULT} = in_sft_units\n")


@pytest.mark.parametrize(
    "body, result, message",
    [
        (RIGHT, "passed", "agrees with the reference"),
        ("def in_sft_units(a, b):\n    while True: pass", "time limit", "stopped after 1 seconds."),
        ("import time\ntime.sleep(60)", "time limit", "stopped after 1 seconds."),
        ("import os\nos._exit(0)", "not yet", "the code ends the process (exit code 0)."),
        ("import os\nos.abort()", "not yet", "the code ends the process (exit code -6)."),
        ("raise SystemExit(3)", "not yet", "the code stops with SystemExit: 3"),
        ("1 / 0", "not yet", "the code stops with ZeroDivisionError: division by zero"),
        ("input()", "not yet", "the code stops with EOFError"),
        ("import subprocess, sys\nsubprocess.run(['sleep', '60'])", "time limit", "stopped after"),
    ],
)
def test_an_answer_cannot_stop_the_grading(body, result, message):
    started = time.monotonic()
    found = check_answer(code(body), seconds=1.0 if result == "time limit" else 60.0)
    assert found[0] == result
    assert message in found[1]
    assert time.monotonic() - started < 50  # the sleeping process was not waited for


def test_the_seed_draws_other_cases():
    source = "import torch\ndef in_sft_units(a, b): raise ValueError(str(a.sum().item()))"
    found = {seed: check_answer(code(source), seconds=60, seed=seed)[1] for seed in (0, 0, 1)}
    assert found[0] != found[1]


def test_only_the_named_exercises_are_graded_and_each_student_has_them(tmp_path):
    (tmp_path / "anna.py").write_text(RIGHT)
    (tmp_path / "ben").mkdir()
    (tmp_path / "ben" / "a.py").write_text("x = 1")
    (tmp_path / "ben" / "b.py").write_text(WRONG)
    grades = grade_folder(tmp_path, exercises=("in_sft_units", "ppo_loss"))
    assert results(grades, "anna") == {"in_sft_units": "passed", "ppo_loss": "missing"}
    assert results(grades, "ben") == {"in_sft_units": "not yet", "ppo_loss": "missing"}
    assert len(grades) == 4
    with pytest.raises(ValueError, match="exercise is 'other'; it must be one of"):
        grade_folder(tmp_path, exercises=("other",))
    with pytest.raises(ValueError, match="--seconds is 0; it must be greater than 0"):
        grade_folder(tmp_path, seconds=0)


def test_a_text_in_the_csv_is_no_formula(tmp_path):
    row = ["=cmd()", "+a.py", "", "", "passed", "@x"]
    write_grades(pd.DataFrame([row], columns=COLUMNS), tmp_path / "grades.csv")
    read = pd.read_csv(tmp_path / "grades.csv")
    assert list(read.loc[0, ["student", "file", "message"]]) == ["'=cmd()", "'+a.py", "'@x"]


def test_the_command_writes_the_rows_and_says_the_sentences(tmp_path):
    (tmp_path / "class").mkdir()
    (tmp_path / "class" / "anna.py").write_text(RIGHT)
    out = tmp_path / "grades.csv"
    result = CliRunner().invoke(cli.app, ["grade", str(tmp_path / "class"), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "in_sft_units: 1 of 1 passed." in result.output
    assert pd.read_csv(out)["result"].tolist() == ["passed"]
