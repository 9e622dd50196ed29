"""What a student hands in: the functions in a notebook or in a Python file, and their exercises.

A notebook is not executed as a whole, because its runs take minutes. Only what an answer needs is
kept: the function, the functions and values that it uses, and the imports.
"""

import ast
import re
import symtable
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import nbformat
from IPython.core.inputtransformer2 import TransformerManager

from minirlhf.classroom.check import EXERCISES
from minirlhf.runtime import ROOT

SOURCES = ROOT / "notebooks" / "src"
RESULT = "_answer"  # the name of an answer in its code


@dataclass(frozen=True)
class Answer:
    """A student's answer to one exercise.

    Args:
        exercise: the name of the exercise.
        code: Python code that defines the answer under the name RESULT.
        blank: whether it is still the blank that the lesson gives.
    """

    exercise: str
    code: str
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
    return [read_submission(path, _student(path.relative_to(folder))) for path in files]


def _student(path: Path) -> str:
    return path.parts[0] if len(path.parts) > 1 else path.stem


def read_submission(path: Path, student: str = "") -> Submission:
    """The answers in one notebook or Python file. A cell that is no Python is left out."""
    try:
        cells = list(_cells(path))
    except Exception as error:  # nbformat and json raise many kinds
        reason = " ".join(str(error).split())[:100]
        return Submission(student, path, {}, f"{path.name} cannot be read: {reason}")
    statements, problems = [], []
    for number, source in cells:
        try:
            statements += ast.parse(source).body
        except (SyntaxError, ValueError) as error:
            line = f"line {error.lineno}: {error.msg}" if isinstance(error, SyntaxError) else error
            where = f"code cell {number} of {path.name}" if number else path.name
            problems.append(f"{where} is not Python ({line}).")
    return Submission(student, path, _answers(statements, path), " ".join(problems))


def _cells(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, source) of the code cells of a notebook; (0, source) of a Python file."""
    if path.suffix == ".py":
        yield 0, path.read_text(encoding="utf-8-sig")
        return
    notebook = nbformat.read(path, as_version=4)
    codes = (cell for cell in notebook.cells if cell.cell_type == "code")
    for number, cell in enumerate(codes, start=1):
        yield number, TransformerManager().transform_cell(cell.source)


def _answers(statements: list[ast.stmt], path: Path) -> dict[str, Answer]:
    """The answers that a file's statements hold.

    The last call `check.exercise(answer)` says which object is the answer. Without a call it is
    the function with the exercise's name; in a notebook, only for the exercises of its lesson,
    because a lesson's own functions may have the name of another lesson's exercise.
    """
    tables = [_Names(statement) for statement in statements]
    defined = {name: i for i, table in enumerate(tables) for name in table.defined}  # last place
    asked: dict[str, tuple[int, ast.expr]] = {}
    for place, statement in enumerate(statements):
        asked |= {exercise: (place, given) for exercise, given in calls(statement)}
    lessons = {lesson_of_file(path), *map(lesson_of_exercise, asked)}
    for name, place in defined.items():
        function = isinstance(statements[place], ast.FunctionDef) or _is_lambda(statements[place])
        own = path.suffix == ".py" or lesson_of_exercise(name) in lessons
        if name in EXERCISES and name not in asked and function and own:
            asked[name] = place, ast.Name(name, ast.Load())
    found = {}
    for exercise, (place, given) in asked.items():
        blank = False
        if isinstance(given, ast.Name):
            if given.id not in defined:
                continue  # the call is there, the function is not
            place = max(place, defined[given.id] + 1)  # a later cell may hold a better version
            blank = _shape(statements[defined[given.id]]) == _blanks().get(exercise)
        last = ast.fix_missing_locations(ast.Assign([ast.Name(RESULT, ast.Store())], given))
        needed = _needed(tables, place, _Names(last).used)
        code = "\n".join(map(ast.unparse, [*(statements[i] for i in needed), last]))
        found[exercise] = Answer(exercise, code, blank)
    return found


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


class _Names:
    """The global names that a statement defines, and those that it uses."""

    def __init__(self, statement: ast.stmt):
        # a name inside a function is global only if the function does not assign it
        top = symtable.symtable(ast.unparse(statement), "submission", "exec")
        self.defined = {s.get_name() for s in top.get_symbols() if s.is_assigned()}
        self.defined |= {s.get_name() for s in top.get_symbols() if s.is_imported()}
        self.used = {s.get_name() for s in top.get_symbols() if s.is_referenced()}
        inner = list(top.get_children())
        while inner:
            table = inner.pop()
            self.used |= {s.get_name() for s in table.get_symbols() if s.is_global()}
            inner += table.get_children()
        # the body of a function looks its names up when it is called, not where it stands
        self.later = isinstance(statement, ast.FunctionDef | ast.ClassDef)
        self.always = isinstance(statement, ast.ImportFrom) and statement.names[0].name == "*"


def _needed(tables: list[_Names], place: int, names: set[str]) -> list[int]:
    """The places of the statements that `names` need when they are used at `place`, in order."""
    chosen = {i for i, table in enumerate(tables[:place]) if table.always}
    wanted = [(name, place) for name in sorted(names)]
    while wanted:
        name, before = wanted.pop()
        found = next((i for i in reversed(range(before)) if name in tables[i].defined), None)
        if found is None or found in chosen:
            continue
        chosen.add(found)
        limit = place if tables[found].later else found
        wanted += [(used, limit) for used in tables[found].used]
    return sorted(chosen)


def _is_lambda(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Lambda)


def _shape(statement: ast.stmt) -> str:
    """A function's arguments and body without comments and layout; "" for other statements."""
    if not isinstance(statement, ast.FunctionDef):
        return ""
    return ast.dump(statement.args) + "".join(map(ast.dump, statement.body))


def needed_code(cells: list[str], code: str) -> str:
    """The statements of some cells that `code` needs, in order: imports, functions and values."""
    statements = [
        statement
        for source in cells
        for statement in ast.parse(TransformerManager().transform_cell(source)).body
    ]
    tables = [_Names(statement) for statement in statements]
    names = set().union(*(_Names(statement).used for statement in ast.parse(code).body))
    return "\n".join(ast.unparse(statements[i]) for i in _needed(tables, len(tables), names))


@cache
def _blanks() -> dict[str, str]:
    """exercise -> the shape of the function that its lesson gives."""
    shapes: dict[str, str] = {}
    for source in sorted(SOURCES.glob("*.py")):
        for statement in ast.parse(source.read_text(encoding="utf-8")).body:
            if isinstance(statement, ast.FunctionDef) and statement.name in EXERCISES:
                shapes.setdefault(statement.name, _shape(statement))  # the solution comes later
    return shapes


@cache
def exercises_of_lessons() -> dict[str, tuple[str, ...]]:
    """lesson, such as 06_ppo -> the exercises that it asks for, in order."""
    lessons = {}
    for source in sorted(SOURCES.glob("*.py")):
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
