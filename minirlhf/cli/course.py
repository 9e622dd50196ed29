"""Commands of the classroom: course, grade, assignment."""

import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from minirlhf.cli.limits import a_seed, above_0
from minirlhf.cli.options import RUN, option, out_file, out_folder
from minirlhf.cli.terminal import say
from minirlhf.runtime import check
from minirlhf.show.strips import printable

if TYPE_CHECKING:  # `minirlhf grade --help` needs neither
    import pandas as pd

    from minirlhf.classroom.submissions import Submission

app = typer.Typer()
Names = Annotated[
    list[str] | None,
    typer.Argument(
        help="Numbers or first letters of notebooks, such as 05 or 06_ppo.", show_default="all"
    ),
]


@contextmanager
def requirements_for(command: str) -> Iterator[None]:
    """Say which packages to install where an import fails."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ValueError(
            f"`{command}` needs {error.name}: run `python -m pip install -r requirements-dev.txt`."
        ) from None


@app.command()
def course(names: Names = None) -> None:
    """Run the course's notebooks and save their outputs.

    A lesson and its solutions run at the same time, each in a new process. With FAST=1 in the
    environment they make short runs and read recorded results, and all lessons share two processes.

    Example: minirlhf course 05 06
    """
    with requirements_for("course"):
        from minirlhf.classroom import FAST
        from minirlhf.classroom.course import build, notebook_sources
        from minirlhf.classroom.kernels import kernels
    sources = notebook_sources(names)
    with kernels(2) if FAST else nullcontext(()) as used:
        for source in sources:
            path, seconds = build(source, used=used)
            say(f"{path.name}: {seconds:.0f} s")


@app.command()
def grade(
    folder: Annotated[str, typer.Argument(help="The folder with the students' files.")],
    out: Annotated[Path, out_file("The CSV file to write.")] = Path("out/grades.csv"),
    exercise: Annotated[
        list[str] | None,
        option(
            RUN,
            "An exercise to grade, such as ppo_loss; can be given several times.",
            show_default="all that a file answers, and the others of its lesson",
        ),
    ] = None,
    students: Annotated[
        Path | None,
        option(
            RUN,
            "A text file with the class, one name on a line. Who has no file is listed, too, and "
            "who is not in it is named.",
            show_default="only those who have a file",
        ),
    ] = None,
    seconds: Annotated[
        float, option(RUN, "Time limit of one answer, in seconds.", callback=above_0(1e6))
    ] = 30.0,
    seed: Annotated[int, option(RUN, "Seed of the checkers' random cases.", callback=a_seed)] = 0,
) -> None:
    """Check the exercises in a folder of submissions.

    Reads all notebooks and Python files in the folder and in the folders below it. The first
    folder below it names the student: anna/06_ppo.ipynb is Anna's. Only the functions that answer
    an exercise are run. They run in a process of their own, but they can do what you can do: grade
    strangers' files in a container.

    Example: minirlhf grade submissions --exercise ppo_loss --exercise gae_advantages
    """
    from minirlhf.runtime import lesson_sources

    lesson_sources("Grading")  # before the next imports, which need packages of the notebooks
    from minirlhf.classroom.grading import by_student, grade_folder, sentences, write_grades
    from minirlhf.classroom.submissions import students_in

    names = class_of(students) if students else []

    def graded(submission: "Submission", grades: "pd.DataFrame") -> None:
        write_grades(grades, out)  # after each file, so that an interruption loses little
        say(f"Checked {printable(str(submission.path))}.")

    check("folder", folder, bool(folder.strip()), "a folder with the files of students")
    if students and (others := [name for name in students_in(folder) if name not in names]):
        say(
            f"Not in {students}: {', '.join(map(printable, others))}. Each is one more student in "
            "the tables. If you did not mean that, name the folder or file as in the class."
        )
    grades = grade_folder(
        Path(folder),
        exercises=tuple(exercise or ()),
        students=tuple(names),
        seconds=seconds,
        seed=seed,
        on_file=graded,
    )
    write_grades(grades, out)
    overview = out.with_name(f"{out.stem}_by_student.csv")
    write_grades(by_student(grades), overview)
    for sentence in sentences(grades):
        say(sentence)
    say(f"{out}: a row for each of {grades['student'].nunique()} students and each exercise.")
    say(f"{overview}: a row for each student.")


def class_of(path: Path) -> list[str]:
    """The names of the students in a text file, one on a line.

    Raises:
        ValueError: it cannot be read, it is not UTF-8, or two lines have the same name.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"The file '{path}' cannot be read as UTF-8 text: {error}.") from error
    line_of: dict[str, int] = {}
    names = [unicodedata.normalize("NFC", line.strip()) for line in lines]
    for number, name in enumerate(names, start=1):
        if name in line_of:
            raise ValueError(
                f"Lines {line_of[name]} and {number} of {path} are both '{printable(name)}': give "
                "two students two names, here and in the folders, or delete one of the lines."
            )
        if name:
            line_of[name] = number
    return list(line_of)


@app.command()
def assignment(
    names: Names = None,
    out: Annotated[Path, out_folder("The course folder of nbgrader.")] = Path("out/nbgrader"),
) -> None:
    """Write lessons' exercises as assignments for nbgrader.

    Each notebook goes to source/NN_name in the course folder, with the solutions between nbgrader's
    marks and the checkers as locked test cells. Then run `nbgrader generate_assignment` there.

    Example: minirlhf assignment 05 06
    """
    with requirements_for("assignment"):
        from minirlhf.classroom.assignments import write_assignments
    for path in write_assignments(names, out):
        say(f"Wrote {path}.")
    say(f"In {out}, run `nbgrader generate_assignment NAME` with the name of an assignment.")
