"""The exercises of a lesson as an assignment for nbgrader.

An assignment holds the exercises that have a checker. The student's cell comes first, then a
locked cell with the checker, worth one point. The solution stands between nbgrader's marks, which
`nbgrader generate_assignment` removes. What has no checker (predictions, "the whole step on an
empty page") stays in the lesson.
"""

import ast
import re
from pathlib import Path

import jupytext
import nbformat
from nbformat import NotebookNode

from minirlhf.classroom.course import notebook_sources, tags
from minirlhf.classroom.submissions import calls, needed_code
from minirlhf.runtime import atomic_path, check, write_text

CONFIG = '''"""nbgrader's settings for minirlhf's assignments."""

c = get_config()
c.CourseDirectory.course_id = "minirlhf"
c.ClearSolutions.code_stub = {"python": ""}  # each cell keeps the blank that the lesson gives
c.ExecutePreprocessor.timeout = 120  # seconds for one cell
'''
BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"


def write_assignments(names: list[str] | None, out: str | Path) -> list[Path]:
    """Write the assignments of some lessons, and nbgrader's settings, into a course folder.

    Args:
        names: lessons, as for notebook_sources; all by default. A lesson whose exercises have no
            checker is left out.
        out: the course folder. A lesson's notebook is source/NN_name/NN_name.ipynb.

    Returns:
        The paths of the notebooks.

    Raises:
        ValueError: no lesson has such a name, none of them has an exercise with a checker, or one
            of the notebooks is already there.
    """
    out = Path(out)
    notebooks = {}
    for source in notebook_sources(names):
        path = out / "source" / source.stem / f"{source.stem}.ipynb"
        assignment = assignment_of(jupytext.read(source), source.stem)
        if assignment is not None:
            notebooks[path] = assignment
    check("lessons", names, bool(notebooks), "lessons with an exercise that a checker grades")
    there = [str(path) for path in notebooks if path.exists()]
    check(
        "--out",
        str(out),
        not there,
        f"a folder without {' and '.join(there[:3])}, which would be overwritten; move the file "
        "away or give another folder",
    )
    for path, notebook in notebooks.items():
        with atomic_path(path) as temporary:
            nbformat.write(notebook, temporary)
    if not (out / "nbgrader_config.py").exists():
        write_text(out / "nbgrader_config.py", CONFIG)
    return list(notebooks)


def assignment_of(notebook: NotebookNode, name: str) -> NotebookNode | None:
    """A lesson's exercises as a notebook in nbgrader's format; None if no exercise has a checker.

    Args:
        notebook: the source of the lesson.
        name: the lesson's file name without its ending.
    """
    title = notebook.cells[0].source.splitlines()[0].lstrip("# ")
    cells, answers = [], []
    statements: list[str] = []  # of one exercise
    given: list[str] = []  # its cells so far
    exercises: list[str] = []
    blank = ""
    for cell in notebook.cells:
        kind = tags(cell) & {"exercise", "solution"}
        if cell.cell_type == "markdown" and kind == {"exercise"}:
            if FIRST_LINE.match(cell.source):
                statements, given = [], []
            statements.append(cell.source)
        elif cell.cell_type == "code" and kind == {"exercise"}:
            given.append(_without_calls(cell.source))
            exercises, blank = _exercises(cell.source), "\n".join(given).strip()
        elif cell.cell_type == "code" and kind == {"solution"} and exercises:
            solution = _without_calls(cell.source)
            source = f"{blank}\n{BEGIN}\n{solution}\n{END}"
            cells += [_text(f"{exercises[0]}-text", "\n\n".join(statements))]
            cells += [_answer(exercises[0], source), *map(_test, exercises)]
            answers.append(f"{blank}\n{solution}")
            exercises, statements, given = [], [], []
    if not answers:
        return None
    heading = (
        f"# {title}: exercises\n\nThe lesson is `{name}.ipynb`. Write your answer in the cell "
        "below each exercise. The cell after it checks it."
    )
    lesson = [c.source for c in notebook.cells if c.cell_type == "code" and not tags(c) & _ASIDE]
    imports = "from minirlhf.classroom import check\n" + needed_code(lesson, "\n".join(answers))
    setup = nbformat.v4.new_code_cell(imports, metadata=_metadata("setup", locked=True))
    return _notebook([_text("heading", heading), setup, *cells])


FIRST_LINE = re.compile(r"\*\*[0-9]+\.")  # of an exercise: **3. Mend the loss**
_ASIDE = {"exercise", "solution", "predict"}


def _exercises(source: str) -> list[str]:
    """The exercises whose checkers a cell calls."""
    names = [name for statement in _parsed(source) for name, _ in calls(statement)]
    return list(dict.fromkeys(names))


def _without_calls(source: str) -> str:
    """A cell's source without its calls of a checker and its figures."""
    lines = source.splitlines()
    for statement in reversed(_parsed(source)):
        figure = ast.unparse(statement).startswith("show.")
        if isinstance(statement, ast.Expr) and (figure or any(calls(statement))):
            del lines[statement.lineno - 1 : statement.end_lineno]
    return "\n".join(lines).strip()


def _parsed(source: str) -> list[ast.stmt]:
    return ast.parse("\n".join("" if x.startswith("%") else x for x in source.splitlines())).body


def _metadata(
    identity: str, *, locked: bool = False, grade: bool = False, solution: bool = False
) -> dict:
    cell = {
        "schema_version": 3,
        "grade_id": identity,
        "locked": locked,
        "grade": grade,
        "solution": solution,
        "task": False,
    }
    return {"nbgrader": cell | ({"points": 1.0} if grade else {})}


def _text(identity: str, source: str) -> NotebookNode:
    return nbformat.v4.new_markdown_cell(source, metadata=_metadata(identity, locked=True))


def _answer(exercise: str, source: str) -> NotebookNode:
    metadata = _metadata(f"{exercise}-answer", solution=True)
    return nbformat.v4.new_code_cell(source, metadata=metadata)


def _test(exercise: str) -> NotebookNode:
    source = f"result = check.{exercise}({exercise})\nprint(result)\nassert result, result.message"
    metadata = _metadata(exercise, locked=True, grade=True)
    return nbformat.v4.new_code_cell(source, metadata=metadata)


def _notebook(cells: list[NotebookNode]) -> NotebookNode:
    notebook = nbformat.v4.new_notebook(cells=cells)
    for index, cell in enumerate(cells):
        cell["id"] = f"cell-{index}"
    notebook.metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
    }
    return notebook
