"""Every name that a notebook imports from minirlhf exists."""

import ast
import importlib
import json
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
FILES = sorted([*NOTEBOOKS.rglob("*.py"), *NOTEBOOKS.rglob("*.ipynb")])


def code_of(path: Path) -> str:
    """The Python of a source, or of the code cells of a notebook, without IPython's own lines."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = [c for c in json.loads(text)["cells"] if c["cell_type"] == "code"]
        text = "\n".join("".join(cell["source"]) for cell in cells)
    return "\n".join(line for line in text.splitlines() if not line.startswith(("%", "!")))


def unresolved(code: str) -> list[str]:
    """The imported names of minirlhf that do not exist."""
    wrong = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names = [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [(node.module, alias.name) for alias in node.names]
        else:
            continue
        wrong += [
            f"{module}.{name or ''}"
            for module, name in names
            if module.split(".")[0] == "minirlhf" and not exists(module, name)
        ]
    return wrong


def exists(module: str, name: str | None) -> bool:
    try:
        found = importlib.import_module(module)
        return (
            name is None
            or hasattr(found, name)
            or bool(importlib.import_module(f"{module}.{name}"))
        )
    except ModuleNotFoundError:
        return False


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(NOTEBOOKS)))
def test_every_import_of_a_notebook_exists(path):
    assert unresolved(code_of(path)) == []


def test_an_import_that_does_not_exist_is_found():
    code = "import math\nfrom minirlhf.nowhere import VARIANTS\nfrom minirlhf import core, nothing"
    assert unresolved(code) == ["minirlhf.nowhere.VARIANTS", "minirlhf.nothing"]
    assert unresolved("from minirlhf.experiments import results, run_it") == [
        "minirlhf.experiments.run_it"
    ]
