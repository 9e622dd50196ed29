"""Grading a folder of submissions."""

import os
import time

import nbformat
import pandas as pd
import pytest
from typer.testing import CliRunner

from minirlhf import cli
from minirlhf.classroom.course import notebook_sources
from minirlhf.classroom.grading import (
    COLUMNS,
    RESULTS,
    by_student,
    check_answer,
    grade_folder,
    sentences,
    write_grades,
)
from minirlhf.classroom.submissions import RESULT, Answer, _blanks, exercises_of_lessons
from minirlhf.runtime import ROOT
from tests.tiny import needs_posix

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
    names = "bradley_terry_loss best_of_k_loss in_sft_units calibrate read_score"
    assert {*found} == {*names.split()}
    assert {*found.values()} == {"passed"}


def test_blank_wrong_missing_and_unreadable_answers_are_told_apart(graded):
    ben = results(graded, "ben")
    assert ben.pop("in_sft_units") == "passed"  # the better one of two files
    assert {*ben.values()} == {"blank"} and len(ben) == 4
    assert results(graded, "carla") == {"in_sft_units": "not yet"}
    assert results(graded, "dora") == {"": "unreadable"}
    assert {*results(graded, "emil").values()} == {"missing"}
    assert len(results(graded, "emil")) == 5
    assert list(graded) == COLUMNS and {*graded["result"]} <= {*RESULTS}
    assert not graded.duplicated(["student", "exercise"]).any()


def test_a_class_has_one_row_for_each_student(graded):
    table = by_student(graded).set_index("student")
    assert list(table.index) == ["anna", "ben", "carla", "dora", "emil"]
    assert table["passed"].to_dict() == {"anna": 5, "ben": 1, "carla": 0, "dora": 0, "emil": 0}
    assert (table["of"] == 5).all()
    assert table.loc["ben", "in_sft_units"] == "passed"
    assert pd.isna(table.loc["carla", "read_score"])


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
        "08_the_reward_model in_sft_units: 2 of 4 passed, 1 not yet, 1 missing."
    )


def code(body, needed=True):
    statements = (body, f"{RESULT} = in_sft_units")
    return Answer("in_sft_units", statements, (needed, True))


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
        ("raise ValueError('\\ud800\\x1b[31m')", "not yet", "the code stops with ValueError"),
    ],
)
def test_an_answer_cannot_stop_the_grading(body, result, message):
    found = check_answer(code(body), seconds=1.0 if result == "time limit" else 60.0)
    assert found[0] == result
    assert message in found[1]


@pytest.mark.parametrize(
    "written", ["5", '["passed"]', '["best", "x"]', "[" * 5000, "\xff", '["passed", 7]', ""]
)
def test_a_result_that_an_answer_has_written_badly_is_no_result(written):
    body = f"import os\nopen('result.json', 'w').write({written!r})\nos._exit(0)"
    assert check_answer(code(body), seconds=60)[1].startswith("the code ends the process")


@needs_posix
def test_what_an_answer_starts_ends_with_it(tmp_path):
    pid = tmp_path / "pid"
    body = (
        "import subprocess\nprocess = subprocess.Popen(['sleep', '600'])\n"
        f"open({str(pid)!r}, 'w').write(str(process.pid))\nprocess.wait()"
    )
    assert check_answer(code(body), seconds=2)[0] == "time limit"
    with pytest.raises(ProcessLookupError):
        for _ in range(100):  # it has been killed, and its parent collects it
            os.kill(int(pid.read_text()), 0)
            time.sleep(0.1)


def test_an_error_in_a_statement_that_is_not_needed_does_not_count():
    answer = Answer(
        "in_sft_units",
        ("import no_such_package", RIGHT, f"{RESULT} = in_sft_units"),
        (False, True, True),
    )
    assert check_answer(answer, seconds=60)[0] == "passed"


def test_an_answer_may_import_from_its_folder(tmp_path):
    (tmp_path / "mine.py").write_text(RIGHT)
    answer = code("from mine import in_sft_units")
    assert check_answer(answer, seconds=60, folder=tmp_path)[0] == "passed"


def test_annotations_and_dataclasses_work_as_in_a_file():
    body = (
        "from __future__ import annotations",
        "from dataclasses import dataclass",
        "@dataclass\nclass Box:\n    x: Unknown = 3",
        RIGHT,
        f"{RESULT} = in_sft_units",
    )
    assert check_answer(Answer("in_sft_units", body, (True,) * 5), seconds=60)[0] == "passed"


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
    for seconds in (0, float("inf"), float("nan"), 1e8):
        with pytest.raises(ValueError, match="it must be above 0 and at most 3600"):
            grade_folder(tmp_path, seconds=seconds)


def test_who_has_no_file_is_listed_if_the_class_is_given(tmp_path):
    (tmp_path / "anna.py").write_text(RIGHT)
    grades = grade_folder(tmp_path, exercises=("in_sft_units",), students=("anna", "zoe"))
    assert grades["student"].tolist() == ["anna", "zoe"]
    assert grades["result"].tolist() == ["passed", "missing"]
    assert grades["message"].iloc[1] == "there is no file of this student."


def test_one_bad_file_does_not_stop_the_others(tmp_path):
    (tmp_path / "anna.py").write_text(RIGHT)
    (tmp_path / "ben.py").write_text("def f(x, x): return 1")
    (tmp_path / "carl.py").write_bytes(b"\x00\xff")
    folder = os.fsencode(tmp_path)
    with open(folder + b"/Jos\xe9.py", "w") as file:  # a name that is not UTF-8
        file.write(RIGHT)
    seen = []
    grades = grade_folder(tmp_path, on_file=lambda s, rows: seen.append(len(rows)))
    write_grades(grades, tmp_path / "grades.csv")
    assert sorted(grades["result"]) == ["passed", "passed", "unreadable", "unreadable"]
    assert seen == [1, 2, 3, 4]
    assert "Jos\ufffd" in grades["student"].tolist()


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
    overview = pd.read_csv(tmp_path / "grades_by_student.csv")
    assert overview.loc[0].to_dict() == {
        "student": "anna",
        "passed": 1,
        "of": 1,
        "in_sft_units": "passed",
    }


@pytest.mark.parametrize("make", [lambda folder: None, lambda folder: folder.mkdir(parents=True)])
def test_a_copy_without_the_sources_is_refused_before_the_first_answer(tmp_path, monkeypatch, make):
    monkeypatch.setattr("minirlhf.runtime.settings.ROOT", tmp_path)
    make(tmp_path / "notebooks" / "src")
    (tmp_path / "class").mkdir()
    (tmp_path / "class" / "anna.py").write_text(RIGHT)
    out = ["--out", str(tmp_path / "out" / "a.csv")]
    for given in (["grade", str(tmp_path / "class"), *out], ["assignment", "05", *out], ["course"]):
        error = str(CliRunner().invoke(cli.app, given).exception)
        assert "needs the sources of the lessons" in error and "full copy" in error
        assert str(tmp_path / "notebooks" / "src") in error
    for read in (exercises_of_lessons, _blanks, notebook_sources):
        with pytest.raises(ValueError, match="needs the sources of the lessons"):
            getattr(read, "__wrapped__", read)()
    assert not (tmp_path / "out").exists()


def test_who_is_not_in_the_class_is_named(tmp_path):
    names, folder = tmp_path / "class.txt", tmp_path / "handed in"
    for student in ("anna", "ben_2"):
        (folder / student).mkdir(parents=True)
        (folder / student / "a.py").write_text(RIGHT)
    names.write_text("anna\n\nben\n")
    given = ["grade", str(folder), "--students", str(names), "--out", str(tmp_path / "g.csv")]
    result = CliRunner().invoke(cli.app, [*given, "--exercise", "in_sft_units"])
    assert result.output.startswith(f"Not in {names}: ben_2. Each is one more student")
    assert pd.read_csv(tmp_path / "g_by_student.csv")["student"].tolist() == [
        "anna",
        "ben_2",
        "ben",
    ]
    names.write_text("anna\nben_2\n")
    assert "Not in" not in CliRunner().invoke(cli.app, given).output


def test_an_accent_of_a_mac_is_that_of_the_class(tmp_path):
    composed, apart = "Zo\u00eb", "Zoe\u0308"  # one letter, or e and two dots
    folder = tmp_path / "handed in"
    (folder / apart).mkdir(parents=True)
    (folder / apart / "a.py").write_text(RIGHT)
    names, out = tmp_path / "class.txt", tmp_path / "g.csv"
    given = ["grade", str(folder), "--students", str(names), "--out", str(out)]
    for written in (composed, apart):
        names.write_text(f"{written}\n", encoding="utf-8")
        result = CliRunner().invoke(cli.app, [*given, "--exercise", "in_sft_units"])
        assert "Not in" not in result.output
        assert pd.read_csv(tmp_path / "g_by_student.csv")["student"].tolist() == [composed]


def test_two_students_of_the_same_name_are_refused(tmp_path):
    (tmp_path / "class.txt").write_text("anna\nben\n\nanna \n")
    (tmp_path / "anna.py").write_text(RIGHT)
    out = tmp_path / "out" / "g.csv"
    given = ["grade", str(tmp_path), "--students", str(tmp_path / "class.txt"), "--out", str(out)]
    error = str(CliRunner().invoke(cli.app, given).exception)
    assert error.startswith("Lines 1 and 4 of ") and "are both 'anna'" in error
    assert not out.exists()
