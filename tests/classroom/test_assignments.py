"""Assignments for nbgrader."""

import os
import shutil
import subprocess
import sys

import jupytext
import nbformat
import pytest

from minirlhf.classroom.assignments import BEGIN, END, assignment_of, write_assignments
from minirlhf.classroom.course import notebook_sources
from minirlhf.classroom.submissions import exercises_of_lessons

SOURCES = {source.stem: source for source in notebook_sources()}
WITH_EXERCISES = [name for name, asked in exercises_of_lessons().items() if asked]


def assignment(name):
    return assignment_of(jupytext.read(SOURCES[name]), name)


def released(source):
    """A cell without what stands between nbgrader's marks."""
    before, _, rest = source.partition(BEGIN)
    return before + rest.partition(END)[2]


@pytest.mark.parametrize("name", WITH_EXERCISES)
def test_an_assignment_has_all_exercises_of_its_lesson(name):
    notebook = assignment(name)
    kinds = [cell.metadata["nbgrader"] for cell in notebook.cells]
    identities = [kind["grade_id"] for kind in kinds]
    assert len(set(identities)) == len(identities)
    assert [k["grade_id"] for k in kinds if k["grade"]] == list(exercises_of_lessons()[name])
    for cell, kind in zip(notebook.cells, kinds, strict=True):
        assert kind["locked"] != kind["solution"]
        assert cell.source.strip()
        assert (BEGIN in cell.source) == (END in cell.source) == kind["solution"]
        if kind["solution"]:
            assert "check." not in cell.source  # only the locked cell calls the checker
    nbformat.validate(notebook)


@pytest.mark.parametrize("name", WITH_EXERCISES)
def test_the_solutions_of_an_assignment_pass_and_its_blanks_do_not(name):
    code = [(c.source, c.metadata["nbgrader"]) for c in assignment(name).cells]
    for keep, passes in ((str, True), (released, False)):
        names = {}
        for source, kind in code:
            if kind["solution"] or kind["grade_id"] == "setup":
                exec(keep(source), names)
            elif kind["grade"] and passes:
                exec(source, names)
            elif kind["grade"]:
                with pytest.raises(AssertionError):
                    exec(source, names)


def test_a_notebook_that_is_there_is_not_overwritten(tmp_path):
    (path,) = write_assignments(["06"], tmp_path)
    assert path == tmp_path / "source" / "06_ppo" / "06_ppo.ipynb"
    path.write_text("mine")
    (tmp_path / "nbgrader_config.py").write_text("mine")
    with pytest.raises(ValueError, match="06_ppo.ipynb, which would be overwritten"):
        write_assignments(["05", "06"], tmp_path)
    assert path.read_text() == "mine"
    assert not (tmp_path / "source" / "05_advantages_gae").exists()
    write_assignments(["05"], tmp_path)
    assert (tmp_path / "nbgrader_config.py").read_text() == "mine"


def test_a_lesson_without_checked_exercises_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="lessons with an exercise that a checker grades"):
        write_assignments(["90"], tmp_path)


@pytest.mark.nbgrader
def test_nbgrader_grades_solved_blank_wrong_and_released_submissions(tmp_path):
    """nbgrader itself: what it releases, and the points that it gives to four students."""
    import nbgrader  # noqa: F401  (missing: an error, see requirements-class.txt)
    import pandas as pd

    (source,) = write_assignments(["06"], tmp_path)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])

    def nbgrader_does(*arguments):
        command = [sys.executable, "-m", "nbgrader", *arguments]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr

    nbgrader_does("generate_assignment", "06_ppo")
    release = tmp_path / "release" / "06_ppo" / "06_ppo.ipynb"
    text = release.read_text()
    assert "SOLUTION" not in text and "torch.minimum" not in text
    assert "def ppo_loss(logprobs, old_logprobs, advantages, mask, eps): ..." in text

    def hand_in(student, path, change=lambda notebook: None):
        notebook = nbformat.read(path, as_version=4)
        change(notebook)
        folder = tmp_path / "submitted" / student / "06_ppo"
        folder.mkdir(parents=True)
        nbformat.write(notebook, folder / "06_ppo.ipynb")

    def only_the_first_is_right(notebook):
        for cell in notebook.cells:
            if cell.metadata["nbgrader"]["grade_id"] == "clipped_share-answer":
                cell.source += "\n\ndef clipped_share(*given):\n    return torch.tensor(0.5)"

    def cheats(notebook):  # the locked cell is taken from the source again
        for cell in notebook.cells:
            if cell.metadata["nbgrader"]["grade"]:
                cell.source = "assert True"

    hand_in("solved", source)
    hand_in("released", release)
    hand_in("wrong", source, only_the_first_is_right)
    hand_in("cheating", release, cheats)
    nbgrader_does("autograde", "06_ppo")
    nbgrader_does("export")
    grades = pd.read_csv(tmp_path / "grades.csv").set_index("student_id")
    assert grades["score"].to_dict() == {"solved": 3, "released": 0, "wrong": 2, "cheating": 0}
    assert (grades["max_score"] == 3).all()
    shutil.rmtree(tmp_path / "submitted")  # nbgrader makes what it has graded read-only
