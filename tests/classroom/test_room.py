import subprocess
import sys

from minirlhf import classroom
from minirlhf.classroom.check import EXERCISES


def test_every_exported_name_exists():
    assert all(hasattr(classroom, name) for name in classroom.__all__)
    assert len(set(classroom.__all__)) == len(classroom.__all__)


def test_every_checker_is_reached_from_the_room():
    assert all(getattr(classroom.check, name) is value for name, value in EXERCISES.items())


def test_the_classroom_is_imported_without_jupyter():
    seen = subprocess.run(
        [sys.executable, "-c", "import sys, minirlhf.classroom; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert "minirlhf.classroom.check" in seen
    assert not {"nbclient", "nbformat", "jupytext", "minirlhf.classroom.course"} & set(seen)


def test_course_is_imported_on_first_use():
    assert callable(classroom.course.build)
