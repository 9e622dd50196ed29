"""What is read from a submission."""

import nbformat
import pytest

from minirlhf.classroom import check
from minirlhf.classroom.submissions import (
    RESULT,
    exercises_of_lessons,
    lesson_of_exercise,
    lesson_of_file,
    read_submission,
    read_submissions,
)
from minirlhf.runtime import ROOT

CHECKED = "check.gae_advantages(None)"  # tells which lesson the notebook is
WRONG = "def td_error(rewards, values, mask, gamma):\n    return rewards\n"


def notebook(path, *cells):
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(
        nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, cells))), path
    )
    return path


def answers(path, *cells):
    return read_submission(notebook(path, *cells)).answers


def defined(answer):
    """What an answer's needed statements define, without running its checker."""
    names = {}
    for source, needed in zip(answer.statements, answer.needed, strict=True):
        if needed:
            exec(source, names)
    return names


def test_an_answer_has_what_it_needs_and_no_run(tmp_path):
    found = answers(
        tmp_path / "05.ipynb",
        "%matplotlib inline\nimport torch\nfrom minirlhf import loops",
        "history = loops.train_ppo(policy, pairs)",
        "factor = 2.0\ndef shifted(x):\n    return torch.roll(x, -1) * factor",
        "ratio = history.loss",  # the function has a local name like it
        "def td_error(rewards, values, mask, gamma):\n"
        "    ratio = shifted(values)\n    return rewards + ratio",
        "check.td_error(td_error)",
    )
    names = defined(found["td_error"])
    assert names[RESULT] is names["td_error"]
    assert not any("train_ppo" in text for text in found["td_error"].statements)
    assert "history" not in names and "loops" not in names and names["factor"] == 2.0
    assert not found["td_error"].blank


@pytest.mark.parametrize(
    "cells, expected",
    [
        (["def td_error(): return 1", "check.td_error(td_error)", "def td_error(): return 2"], 2),
        (["def mine(): return 3", "print(check.td_error(mine))"], 3),
        (["from minirlhf import classroom", "classroom.check.td_error(lambda: 4)"], 4),
        (["td_error = lambda: 5"], 5),
        (["def td_error(): return 6", "def other(): return 7", "check.td_error(other)"], 7),
        (["x = 8", "def td_error(): return x", "check.td_error(td_error)", "x = 9"], 8),
        (["def a(): return b()", "def b(): return 10", "check.td_error(a)"], 10),
        (["from math import floor", "def td_error(): return floor(11.5)"], 11),
        (["def td_error(): return _b()\n\ndef _b(): return 12"], 12),
        (
            [
                "def td_error(): return b()",
                "check.td_error(td_error)",
                "b = 1",
                "def td_error(): return b",
            ],
            1,
        ),
        (["import math", "import math\ndef f(x=math.pi): return 13", "td_error = lambda: f()"], 13),
        (["n = 14\ndef td_error(s=n): return s", "n = 15", "check.td_error(td_error)"], 14),
        (["t = {}", "t['a'] = 16", "def td_error(): return t['a']"], 16),
        (["xs = []\nfor i in range(17): xs.append(i)", "def td_error(): return len(xs)"], 17),
        (["%%time\ndef td_error(): return 18"], 18),
        (["import contextlib\nwith contextlib.suppress(): \n    def td_error(): return 19"], 19),
        (["def wrap(f): return f", "@wrap\ndef td_error(): return 20"], 20),
        (
            [
                "import torch\ntorch.manual_seed(0)",
                "x = torch.ones(21)\ndef td_error(): return len(x)",
            ],
            21,
        ),
    ],
)
def test_the_answer_is_what_the_last_check_is_given(tmp_path, cells, expected):
    found = answers(tmp_path / "a.ipynb", CHECKED, *cells)["td_error"]
    assert defined(found)[RESULT]() == expected


def test_a_name_of_another_lesson_is_no_answer(tmp_path):
    other = "def dpo_loss(): return 1"
    assert {*answers(tmp_path / "a.ipynb", CHECKED, other, WRONG)} == {"gae_advantages", "td_error"}
    assert answers(tmp_path / "a.ipynb", other) == {}
    assert {*answers(tmp_path / "12_dpo.ipynb", other)} == {"dpo_loss"}
    assert answers(tmp_path / "12_dpo.ipynb", "dpo_loss = losses[0]") == {}


def test_a_check_of_a_deleted_function_is_no_answer(tmp_path):
    assert answers(tmp_path / "a.ipynb", "check.td_error(td_error)") == {}


def test_the_blank_of_the_lesson_is_known_as_blank():
    for lesson, asked in exercises_of_lessons().items():
        path = next((ROOT / "notebooks").glob(f"{lesson}.ipynb"))
        found = read_submission(path).answers
        assert {*found} == {*asked}, lesson
        assert all(answer.blank for answer in found.values()), lesson


def test_every_exercise_belongs_to_a_lesson():
    assert all(lesson_of_exercise(name) for name in check.EXERCISES)
    assert lesson_of_exercise("ppo_loss") == "06_ppo"
    assert lesson_of_exercise("other") == ""


def test_a_file_is_of_the_lesson_in_its_name(tmp_path):
    assert lesson_of_file(tmp_path / "anna_06_ppo(1).ipynb") == "06_ppo"
    assert lesson_of_file(tmp_path / "11b_five_objections.ipynb") == "11b_five_objections"
    assert lesson_of_file(tmp_path / "homework.ipynb") == ""


def test_a_cell_that_is_no_python_is_left_out_and_named(tmp_path):
    path = notebook(tmp_path / "05_advantages_gae.ipynb", "x = 1", "def broken(:", WRONG, "!ls")
    submission = read_submission(path)
    assert {*submission.answers} == {"td_error"}
    assert submission.problem.startswith(
        "code cell 2 of 05_advantages_gae.ipynb is not Python (line 1: "
    )


@pytest.mark.parametrize(
    "broken",
    [
        "def f(x, x): return 1",
        "nonlocal x",
        "def f():\n    from math import *",
        "x = " + "1+" * 5000 + "1",
    ]
    + ["def f(x):\n    global x", "x = '\x00'"],
)
def test_a_file_that_does_not_compile_is_named(tmp_path, broken):
    (tmp_path / "a.py").write_text(f"{WRONG}\n{broken}\n")
    assert read_submission(tmp_path / "a.py").problem.startswith("a.py is not Python (")
    submission = read_submission(notebook(tmp_path / "05_advantages_gae.ipynb", WRONG, broken))
    assert {*submission.answers} == {"td_error"} and "code cell 2" in submission.problem


@pytest.mark.parametrize("content", ["{", "[]", "", '{"cells": 3}', "\x00"])
def test_a_file_that_is_no_notebook_is_named(tmp_path, content):
    (tmp_path / "a.ipynb").write_text(content)
    submission = read_submission(tmp_path / "a.ipynb")
    assert submission.answers == {}
    assert submission.problem.startswith("a.ipynb cannot be read: ")


def test_a_python_file_is_read_with_its_mark_of_encoding(tmp_path):
    (tmp_path / "a.py").write_text(WRONG, encoding="utf-8-sig")
    assert {*read_submission(tmp_path / "a.py").answers} == {"td_error"}
    (tmp_path / "b.py").write_bytes(b"\xff\xfe")
    assert read_submission(tmp_path / "b.py").problem.startswith("b.py cannot be read: ")


def test_the_first_folder_names_the_student(tmp_path):
    notebook(tmp_path / "anna" / "05" / "05.ipynb", WRONG)
    notebook(tmp_path / "anna" / ".ipynb_checkpoints" / "05.ipynb", WRONG)
    notebook(tmp_path / ".hidden" / "05.ipynb", WRONG)
    (tmp_path / "ben.py").write_text(WRONG)
    (tmp_path / "notes.txt").write_text("x")
    read = [(s.student, s.path.name) for s in read_submissions(tmp_path)]
    assert read == [("anna", "05.ipynb"), ("ben", "ben.py")]


def test_a_folder_without_submissions_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="holds no notebook"):
        read_submissions(tmp_path)
    with pytest.raises(ValueError, match="is not a folder"):
        read_submissions(tmp_path / "none")
