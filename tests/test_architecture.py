"""The house as it is drawn: which room may import which, and how much code each may hold."""

import ast
import io
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "minirlhf"
BELOW = {  # what a room may import; its own room always
    "core": set(),
    "runtime": set(),
    "models": {"core", "runtime"},
    "tasks": {"core", "runtime"},
    "rewards": {"core", "runtime", "models", "tasks"},
    "loops": {"core", "runtime", "models", "tasks", "rewards"},
    "search": {"core", "runtime", "models", "tasks", "rewards"},
    "evaluate": {"core", "runtime", "models", "tasks", "rewards"},
    "show": {"core", "runtime"},
    "classroom": {
        "core",
        "runtime",
        "models",
        "tasks",
        "rewards",
        "loops",
        "search",
        "evaluate",
        "show",
    },
}
EVERYTHING = {
    *BELOW,
    "tour",
    "practice",
    "experiments",
    "planted",
    "grid",
    "faults",
    "smollm2",
    "cli",
}
BUDGET = {  # code lines: no blanks, comments, docstrings
    ("core",): 900,
    (
        "loops",
    ): 1200,  # the family trees as data: fifteen algorithms, thirteen losses, pairs of the policy's own making
    ("models",): 330,
    (
        "cost",
    ): 200,  # a critic on the actor's trunk; what a model costs, counted, and how long it takes, predicted
    (
        "tasks",
        "rewards",
    ): 715,  # arithmetic and its verifier; the answers of any model's text, compared exactly
    ("show",): 500,
    ("classroom",): 450,
    ("lessons",): 100
    * 24,  # what is asked, not how: exercises with their named mistakes, at most a hundred lines a lesson
    ("search",): 200,
    (
        "cli",
        "runtime",
    ): 530,  # the reader's own data and model, a loss by name; runs that lose nothing
    (
        "tour",
        "practice",
        "evaluate",
        "faults",
        "smollm2",
    ): 480,  # the tour, tasks, judges, planted bugs, a real model
    ("grid", "experiments", "planted"): 380,  # what is recorded, and the runs behind it
}
FILES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> set[str]:
    names = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    return (
        names
        | {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        | {
            f"{node.module}.{alias.name}"
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module == "minirlhf"
            for alias in node.names
        }
    )


def code_lines(path: Path) -> int:
    source = path.read_text()
    docstrings = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(
            node
        ):
            docstrings |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    skipped = (
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    )
    lines = {
        line
        for t in tokenize.generate_tokens(io.StringIO(source).readline)
        if t.type not in skipped
        for line in range(t.start[0], t.end[0] + 1)
    }
    return len(lines - docstrings)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_arrows_point_one_way(path):
    own = room(path)
    allowed = EVERYTHING if own in EVERYTHING - {*BELOW} | {"__init__"} else BELOW[own] | {own}
    used = {
        name.split(".")[1]
        for name in imports(ast.parse(path.read_text()))
        if name.startswith("minirlhf.")
    }
    assert used <= allowed, f"{path.name} in {own} imports {used - allowed}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "core").glob("*.py")), ids=lambda p: p.name)
def test_core_is_pure(path):
    tree = ast.parse(path.read_text())
    outside = {name.split(".")[0] for name in imports(tree)} - {
        "minirlhf",
        "torch",
        "einops",
        "jaxtyping",
    }
    assert outside <= {"collections", "dataclasses", "functools", "itertools", "math"}
    assert "loss_type" not in path.read_text()
    for function in [
        n for n in tree.body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_")
    ]:
        assert ast.get_docstring(function), f"{function.name} has no docstring"
        assert len(function.args.args) + len(function.args.kwonlyargs) <= 8, function.name


def test_nothing_is_unpickled():
    for path in FILES:
        calls = [
            ast.unparse(n.func)
            for n in ast.walk(ast.parse(path.read_text()))
            if isinstance(n, ast.Call)
        ]
        assert not {"torch.load", "pickle.load", "pickle.loads"} & set(calls), path
        assert "pickle" not in imports(ast.parse(path.read_text())), path


def budget_of(path: Path) -> str:
    own = {"lessons": "lessons", "cost": "cost", "roofline": "cost"}
    return own.get(path.parent.name) or own.get(path.stem) or room(path)


@pytest.mark.parametrize("rooms", BUDGET, ids="+".join)
def test_line_budget(rooms):
    used = sum(code_lines(path) for path in FILES if budget_of(path) in rooms)
    assert used <= BUDGET[rooms], (
        f"{'+'.join(rooms)} has {used} code lines; at most {BUDGET[rooms]}"
    )
