"""The layers of the package: which may import which, and what shipped code never does."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "minirlhf"
BASE = {"core", "runtime"}
SCORED = BASE | {"models", "tasks", "rewards"}
TAUGHT = SCORED | {"loops", "search", "evaluate"}
BELOW = {  # what a room may import, besides itself
    "core": set(),
    "runtime": set(),
    "models": BASE,
    "tasks": BASE,
    "rewards": BASE | {"models", "tasks"},
    "loops": SCORED,
    "search": SCORED,
    "evaluate": SCORED,
    "show": BASE,  # data only: tensors, DataFrames and a Rollout
    "tour": TAUGHT | {"show"},
    "experiments": TAUGHT | {"show", "tour"},
    "classroom": TAUGHT | {"show", "tour", "experiments"},
    "cli": TAUGHT | {"show", "tour", "experiments", "classroom"},
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


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_package_imports_only_packages_below_it(path):
    own = room(path)
    allowed = {*BELOW} if own == "__init__" else BELOW[own] | {own}
    used = {
        name.split(".")[1]
        for name in imports(ast.parse(path.read_text()))
        if name.startswith("minirlhf.")
    }
    assert used <= allowed, f"{path.name} in {own} imports {used - allowed}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "core").glob("*.py")), ids=lambda p: p.name)
def test_core_imports_little_and_documents_its_functions(path):
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


def test_no_module_uses_pickle():
    for path in FILES:
        calls = [
            ast.unparse(n.func)
            for n in ast.walk(ast.parse(path.read_text()))
            if isinstance(n, ast.Call)
        ]
        assert not {"torch.load", "pickle.load", "pickle.loads"} & set(calls), path
        assert "pickle" not in imports(ast.parse(path.read_text())), path


def test_no_module_imports_unittest():
    """Other functions come in as arguments (`formulas=`), so that a reader sees where they go."""
    for path in FILES:
        used = imports(ast.parse(path.read_text()))
        assert not any(name.split(".")[0] == "unittest" for name in used), path


def test_no_function_is_named_by_a_dotted_path_in_a_string():
    for path in FILES:
        for text in strings(ast.parse(path.read_text())):
            assert not is_path_of_a_name(text), f"{path.relative_to(PACKAGE)}: {text!r}"


def test_a_dotted_path_of_a_function_is_recognised():
    assert is_path_of_a_name("ppo.gae") and is_path_of_a_name("loops.ppo.gae")
    assert is_path_of_a_name("minirlhf.loops.")  # the beginning of an f-string
    assert not any(map(is_path_of_a_name, ("report.html", "metrics.jsonl", "group.", "ppo")))
    tree = ast.parse('"""ppo.gae in a docstring."""\nx = f"minirlhf.loops.{y}"')
    assert strings(tree) == ["minirlhf.loops."]


def strings(tree: ast.AST) -> list[str]:
    """Every string of a module, parts of f-strings too, but no docstrings."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and ast.get_docstring(node) is not None
    }
    constants = [node for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    return [n.value for n in constants if isinstance(n.value, str) and id(n) not in docstrings]


def is_path_of_a_name(text: str) -> bool:
    """Whether a text is "module.name" of this package, or begins with minirlhf.<room>."""
    if match := re.match(r"minirlhf\.(\w+)", text):
        return match[1] in BELOW
    *_, module, name = ["", *text.split(".")]
    return name in names_by_module().get(module, set())


@cache
def names_by_module() -> dict[str, set[str]]:
    """Module -> the names that it defines or imports."""
    found = {}
    for path in FILES:
        names = found.setdefault(path.stem, set())
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                names.add(node.name)
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                names |= {alias.asname or alias.name for alias in node.names}
    return found
