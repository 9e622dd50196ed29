"""Rooms export their public names: `from minirlhf import core`, then `core.gae`."""

import ast
import importlib
import re
from pathlib import Path

import pytest

import minirlhf

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "minirlhf"
ROOMS = (
    "classroom",
    "core",
    "evaluate",
    "experiments",
    "loops",
    "models",
    "rewards",
    "search",
    "show",
    "tasks",
)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PUBLIC = {*ROOMS, "tour"}


@pytest.mark.parametrize("room", ROOMS)
def test_a_package_exports_only_names_that_exist(room):
    module = importlib.import_module(f"minirlhf.{room}")
    assert module.__doc__ and module.__all__
    assert len(set(module.__all__)) == len(module.__all__)
    for name in module.__all__:
        assert hasattr(module, name), name


@pytest.mark.parametrize("room", ROOMS)
def test_an_exported_name_of_a_module_is_the_module(room):
    module = importlib.import_module(f"minirlhf.{room}")
    files = {path.stem for path in (PACKAGE / room).glob("*.py")}
    for name in files & set(module.__all__):  # a task or the checkers: exported as a module
        assert getattr(module, name) is importlib.import_module(f"minirlhf.{room}.{name}")


def not_exported(code: str) -> list[str]:
    """What some code uses of minirlhf besides exported names: deep imports and unknown attributes."""
    wrong, rooms = [], {}
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            wrong += [a.name for a in node.names if a.name.split(".")[0] == "minirlhf"]
        elif isinstance(node, ast.ImportFrom) and node.module == "minirlhf":
            wrong += [a.name for a in node.names if a.name not in PUBLIC]
            rooms |= {a.asname or a.name: a.name for a in node.names if a.name in PUBLIC}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("minirlhf."):
            room = importlib.import_module(node.module)
            deep = node.module.count(".") > 1 or node.module.split(".")[1] not in PUBLIC
            wrong += [
                f"{node.module}.{a.name}"
                for a in node.names
                if deep or a.name not in getattr(room, "__all__", vars(room))
            ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            room = rooms.get(node.value.id)
            if room:
                module = importlib.import_module(f"minirlhf.{room}")
                if node.attr not in getattr(module, "__all__", vars(module)):
                    wrong.append(f"{room}.{node.attr}")
    return wrong


@pytest.mark.parametrize(
    "code, wrong",
    [
        ("from minirlhf import core, loops\ncore.gae\nloops.PPOConfig.plain(steps=3)", []),
        ("from minirlhf.classroom import check", []),
        ("from minirlhf import evaluate\nevaluate.bootstrap", []),
        ("from minirlhf.core.kl import k1", ["minirlhf.core.kl.k1"]),
        ("from minirlhf import core\ncore.no_such_name", ["core.no_such_name"]),
        ("from minirlhf import core\ncore.returns", ["core.returns"]),
        ("from minirlhf import runtime", ["runtime"]),
        ("import minirlhf.core", ["minirlhf.core"]),
    ],
)
def test_names_that_are_not_exported_are_found(code, wrong):
    assert not_exported(code) == wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_pages_use_exported_names_only(page):
    for code in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
        assert not not_exported(code), code


def test_notebooks_use_exported_names_only():
    for source in sorted((ROOT / "notebooks" / "src").glob("*.py")):
        assert not not_exported(source.read_text(encoding="utf-8")), source.stem


def test_minirlhf_lists_its_packages():
    assert PUBLIC <= set(minirlhf.__all__)
