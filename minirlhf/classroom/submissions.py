"""What a student hands in: the functions in a notebook or in a Python file, and their exercises.

A notebook is not executed as a whole, because its runs take minutes. What is executed: all
imports, functions and classes, and of the other statements those that an answer needs.
"""

import ast
import re
import symtable
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import nbformat
from IPython.core.inputtransformer2 import TransformerManager

from minirlhf.classroom.check import EXERCISES
from minirlhf.runtime import lesson_sources

RESULT = "_answer"  # the name of an answer after its statements have run
NOT_PYTHON = (SyntaxError, ValueError, RecursionError, MemoryError)
DEFINITIONS = ast.FunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom
TIMED = re.compile(r"\s*%%(time|timeit|capture)\b[^\n]*\n")  # magics before an ordinary cell


@dataclass(frozen=True)
class Answer:
    """A student's answer to one exercise.

    Args:
        exercise: the name of the exercise.
        statements: Python statements, in order. The last one gives the answer the name RESULT.
        needed: for each statement, whether the answer needs it. An error in another one, such as
            the import of a package that is not installed, does not count.
        blank: whether it is still the blank that the lesson gives.
    """

    exercise: str
    statements: tuple[str, ...]
    needed: tuple[bool, ...]
    blank: bool = False


@dataclass(frozen=True)
class Submission:
    """One file of a student.

    Args:
        student: the first folder below the graded one, or else the file's name.
        path: the file.
        answers: the answers that it holds, by exercise.
        problem: why the file, or a part of it, cannot be read; "" if all of it can.
    """

    student: str
    path: Path
    answers: dict[str, Answer]
    problem: str = ""


def read_submissions(folder: str | Path) -> list[Submission]:
    """All notebooks (.ipynb) and Python files (.py) in a folder and in the folders below it.

    The first folder below `folder` names the student: `anna/06_ppo.ipynb` is Anna's. A file that
    lies directly in `folder` is named after its student: `ben.py` is Ben's.

    Raises:
        ValueError: the folder does not exist or holds no such file.
    """
    folder = Path(folder)
    return [read_submission(path, _student(path, folder)) for path in _files(folder)]


def students_in(folder: str | Path) -> list[str]:
    """The students who have a file in a folder, each once. See read_submissions."""
    folder = Path(folder)
    return list(dict.fromkeys(_student(path, folder) for path in _files(folder)))


def _files(folder: Path) -> list[Path]:
    """The notebooks and Python files in a folder and in the folders below it."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder. Give the folder that holds the submissions.")
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix in (".ipynb", ".py")
        and path.is_file()
        and not any(
            part.startswith(".") or part == "__pycache__" for part in path.relative_to(folder).parts
        )
    ]
    if not files:
        raise ValueError(
            f"{folder} holds no notebook (.ipynb) and no Python file (.py), here or in its folders."
        )
    return files


def _student(path: Path, folder: Path) -> str:
    below = path.relative_to(folder)
    name = below.parts[0] if len(below.parts) > 1 else below.stem
    return unicodedata.normalize("NFC", name)  # a Mac writes an accent as a letter of its own


def read_submission(path: Path, student: str = "") -> Submission:
    """The answers in one notebook or Python file. A cell that is no Python is left out."""
    try:
        cells = list(_cells(path))
    except Exception as error:  # nbformat and json raise many kinds
        reason = " ".join(str(error).split())[:100]
        return Submission(student, path, {}, f"{path.name} cannot be read: {reason}")
    statements: list[_Statement] = []
    problems = []
    for number, source in cells:
        try:
            statements += [_Statement(node) for node in ast.parse(source).body]
        except NOT_PYTHON as error:
            number_of_line = getattr(error, "lineno", None)
            line = f"line {number_of_line}: " if number_of_line else ""
            reason = error.msg if isinstance(error, SyntaxError) else type(error).__name__
            where = f"code cell {number} of {path.name}" if number else path.name
            problems.append(f"{where} is not Python ({line}{reason}).")
    return Submission(student, path, _answers(statements, path), " ".join(problems))


def _cells(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, source) of the code cells of a notebook; (0, source) of a Python file."""
    if path.suffix == ".py":
        yield 0, path.read_text(encoding="utf-8-sig")
        return
    notebook = nbformat.read(path, as_version=4)
    codes = (cell for cell in notebook.cells if cell.cell_type == "code")
    for number, cell in enumerate(codes, start=1):
        yield number, TransformerManager().transform_cell(TIMED.sub("", cell.source, count=1))


class _Statement:
    """A statement at the top of a file or cell, and which global names it deals with.

    Args:
        node: its syntax tree.

    Raises:
        SyntaxError: it is not valid, for example because an argument has the same name twice.
    """

    def __init__(self, node: ast.stmt) -> None:
        self.node, self.source = node, ast.unparse(node)
        self.is_definition = isinstance(node, DEFINITIONS)
        self.functions = {n.name for n in ast.walk(node) if isinstance(n, ast.FunctionDef)}
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Lambda):
            self.functions |= {t.id for t in node.targets if isinstance(t, ast.Name)}
        top = symtable.symtable(self.source, "submission", "exec")
        names = top.get_symbols()
        self.defines = {s.get_name() for s in names if s.is_assigned() or s.is_imported()}
        self.uses = {s.get_name() for s in names if s.is_referenced()}
        inner = list(top.get_children())
        while inner:  # a name inside a function is global unless the function assigns it
            table = inner.pop()
            self.uses |= {s.get_name() for s in table.get_symbols() if s.is_global()}
            inner += table.get_children()
        self.changes = set() if self.is_definition else _changed(node)


def _changed(node: ast.stmt) -> set[str]:
    """Names whose objects a statement may change: x[0] = 1, x.a = 1, x.append(1)."""
    targets = []
    for part in ast.walk(node):
        if isinstance(part, ast.Subscript | ast.Attribute) and isinstance(part.ctx, ast.Store):
            targets.append(part.value)
        elif isinstance(part, ast.Call) and isinstance(part.func, ast.Attribute):
            targets.append(part.func.value)
    return {target.id for target in targets if isinstance(target, ast.Name)}


def _answers(statements: list[_Statement], path: Path) -> dict[str, Answer]:
    """The answers that a file's statements hold.

    The last call `check.exercise(answer)` says which object is the answer. Without a call it is
    the function with the exercise's name; in a notebook, only for the exercises of its lesson,
    because a lesson's own functions may have the name of another lesson's exercise.
    """
    called: dict[str, tuple[int, ast.expr]] = {}
    for place, statement in enumerate(statements):
        called |= {exercise: (place, given) for exercise, given in calls(statement.node)}
    lessons = {lesson_of_file(path), *map(lesson_of_exercise, called)}
    asked = dict(called)
    for statement in statements:
        for name in statement.functions & {*EXERCISES} - {*called}:
            if path.suffix == ".py" or lesson_of_exercise(name) in lessons:
                asked[name] = len(statements), ast.Name(name, ast.Load())
    found = {exercise: _answer(exercise, *given, statements) for exercise, given in asked.items()}
    return {exercise: answer for exercise, answer in found.items() if answer is not None}


def _answer(
    exercise: str, place: int, given: ast.expr, statements: list[_Statement]
) -> Answer | None:
    """The answer that the expression `given` has at `place`; None if its function is not there."""
    blank = False
    if isinstance(given, ast.Name):
        last = next(
            (i for i, s in reversed(list(enumerate(statements))) if given.id in s.defines), None
        )
        if last is None:
            return None  # the call is there, the function is not
        if last > place:
            place = len(statements)  # a later cell has a better version
        blank = _shape(statements[last].node) == _blanks().get(exercise)
    result = _Statement(
        ast.fix_missing_locations(ast.Assign([ast.Name(RESULT, ast.Store())], given))
    )
    before = statements[:place]
    needed = _needed(before, result.uses)
    kept = [i for i, s in enumerate(before) if s.is_definition or i in needed]
    return Answer(
        exercise,
        (*(before[i].source for i in kept), result.source),
        (*(i in needed for i in kept), True),
        blank,
    )


def _needed(statements: list[_Statement], names: set[str]) -> set[int]:
    """The places of the statements that `names` need, directly or through other names."""
    imported = {
        name
        for statement in statements
        if isinstance(statement.node, ast.Import | ast.ImportFrom)
        for name in statement.defines
    }
    chosen: set[int] = set()
    known: set[str] = set()
    wanted = set(names)
    while wanted:
        name = wanted.pop()
        known.add(name)
        for place, statement in enumerate(statements):
            changes = statement.changes - imported  # torch.manual_seed(0) does not change torch
            if name in statement.defines | changes and place not in chosen:
                chosen.add(place)
                wanted |= statement.uses - known
    return chosen


def calls(statement: ast.stmt) -> Iterator[tuple[str, ast.expr]]:
    """(exercise, first argument) of each call `check.exercise(...)` in a statement."""
    for node in ast.walk(statement):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in EXERCISES
            and ast.unparse(node.func.value).split(".")[-1] == "check"
            and node.args
        ):
            yield node.func.attr, node.args[0]


def _shape(statement: ast.stmt) -> str:
    """A function's arguments and body without comments and layout; "" for other statements."""
    if not isinstance(statement, ast.FunctionDef):
        return ""
    return ast.dump(statement.args) + "".join(map(ast.dump, statement.body))


def needed_code(cells: list[str], code: str) -> str:
    """The statements of some cells that `code` needs, in order: imports, functions and values."""
    statements = [
        _Statement(node)
        for source in cells
        for node in ast.parse(TransformerManager().transform_cell(source)).body
    ]
    names = set().union(*(_Statement(node).uses for node in ast.parse(code).body))
    return "\n".join(statements[i].source for i in sorted(_needed(statements, names)))


@cache
def _blanks() -> dict[str, str]:
    """exercise -> the shape of the function that its lesson gives."""
    shapes: dict[str, str] = {}
    for source in lesson_sources("Grading"):
        for statement in ast.parse(source.read_text(encoding="utf-8")).body:
            if isinstance(statement, ast.FunctionDef) and statement.name in EXERCISES:
                shapes.setdefault(statement.name, _shape(statement))  # the solution comes later
    return shapes


@cache
def exercises_of_lessons() -> dict[str, tuple[str, ...]]:
    """lesson, such as 06_ppo -> the exercises that it asks for, in order.

    Raises:
        ValueError: the lessons are not there.
    """
    lessons = {}
    for source in lesson_sources("Grading"):
        statements = ast.parse(source.read_text(encoding="utf-8")).body
        asked = [exercise for statement in statements for exercise, _ in calls(statement)]
        lessons[source.stem] = tuple(dict.fromkeys(asked))
    return lessons


def lesson_of_exercise(exercise: str) -> str:
    """The lesson that asks for an exercise, such as 06_ppo; "" if none does."""
    lessons = exercises_of_lessons()
    return next((lesson for lesson, asked in lessons.items() if exercise in asked), "")


def lesson_of_file(path: Path) -> str:
    """The lesson whose name is in a file's name, such as 06_ppo; "" if there is none."""
    names = sorted(exercises_of_lessons(), key=len, reverse=True)
    return next((name for name in names if re.search(rf"(^|\W|_){name}", path.stem)), "")
