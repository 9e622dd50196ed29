"""Mutation testing of core: how many small errors would its tests notice?

    python tests/mutants.py --count 300 --seed 0

Each mutant is one changed operator, comparison, constant, sign, branch or reduction in one module of a copy of the package; it is killed
when the tests of core fail (the module's own first). Survivors are printed with their line.
"""

import argparse
import ast
import copy
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
BINARY = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.MatMult: ast.Add,
}
COMPARE = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
}
NAMES = {
    "mean": "sum",
    "sum": "mean",
    "min": "max",
    "max": "min",
    "minimum": "maximum",
    "maximum": "minimum",
    "any": "all",
    "all": "any",
    "exp": "expm1",
    "log": "log1p",
    "logsigmoid": "sigmoid",
    "zeros_like": "ones_like",
    "argmax": "argmin",
    "square": "abs",
    "cumsum": "cumprod",
    "detach": "clone",
    "logsumexp": "amax",
}
HIDDEN = (ast.Raise, ast.JoinedStr, ast.arg)  # messages and annotations


def mutants(tree: ast.Module):
    """(what changed, the changed tree), one after the other."""
    nodes = [n for n in _visible(tree)]
    for index, node in enumerate(nodes):
        for label, change in _changes(node):
            other = copy.deepcopy(tree)
            change(list(_visible(other))[index])
            yield f"{node.lineno}: {label}: {ast.unparse(node)}", other


def _visible(node: ast.AST):
    for name, value in ast.iter_fields(node):
        if name in ("returns", "annotation"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not isinstance(child, HIDDEN):
                yield child
                yield from _visible(child)


def _changes(node: ast.AST):
    if isinstance(node, ast.BinOp) and type(node.op) in BINARY:
        yield "operator", lambda n: setattr(n, "op", BINARY[type(n.op)]())
    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARE:
        yield "comparison", lambda n: setattr(n, "ops", [COMPARE[type(n.ops[0])](), *n.ops[1:]])
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield "flag", lambda n: setattr(n, "value", not n.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        yield "constant", lambda n: setattr(n, "value", n.value + 1)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.Not, ast.Invert)):
        yield (
            "sign",
            lambda n: (
                setattr(n, "op", ast.UAdd())
                if isinstance(n.op, ast.USub)
                else setattr(n, "operand", _twice(n))
            ),
        )
    if isinstance(node, ast.BoolOp):
        yield (
            "and/or",
            lambda n: setattr(n, "op", ast.Or() if isinstance(n.op, ast.And) else ast.And()),
        )
    if isinstance(node, (ast.If, ast.IfExp)):
        yield "branch", lambda n: setattr(n, "test", ast.UnaryOp(ast.Not(), n.test))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        if node.func.attr in NAMES:
            yield "name", lambda n: setattr(n.func, "attr", NAMES[n.func.attr])
        if node.func.attr == "where" and len(node.args) == 3:
            yield "where", lambda n: setattr(n, "args", [n.args[0], n.args[2], n.args[1]])


def _twice(node: ast.UnaryOp) -> ast.UnaryOp:
    return ast.UnaryOp(node.op, node.operand)  # not not x, ~~x


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--modules", nargs="*", help="Of core, by name; all, if left out.")
    options = parser.parse_args()
    every = [
        (path.stem, *mutant)
        for path in sorted((ROOT / "minirlhf" / "core").glob("*.py"))
        if not options.modules or path.stem in options.modules
        for mutant in mutants(_bare(ast.parse(path.read_text())))
    ]
    drawn = random.Random(options.seed).sample(every, min(options.count, len(every)))
    print(f"{len(drawn)} of {len(every)} mutants")
    with tempfile.TemporaryDirectory() as folder:
        for name in ("minirlhf", "tests"):
            shutil.copytree(
                ROOT / name, Path(folder) / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        shutil.copy(ROOT / "pyproject.toml", folder)
        (Path(folder) / "data").symlink_to(ROOT / "data")
        os.chdir(folder)
        sys.path.insert(0, folder)
        sys.dont_write_bytecode = True
        import beartype  # noqa: F401  (imported once; each mutant's tests run in a fork)
        import hypothesis
        import jaxtyping  # noqa: F401
        import pytest
        import torch

        torch.set_num_threads(1)
        for path in sorted(
            (ROOT / "minirlhf" / "core").glob("*.py")
        ):  # the control: the unchanged module must pass
            if code := _judged(
                Path(folder), path.stem, _bare(ast.parse(path.read_text())), hypothesis, pytest
            ):
                raise SystemExit(f"{path.name} fails its tests unchanged (code {code}).")
        killed, total = {}, {}
        started = time.time()
        for number, (module, what, tree) in enumerate(sorted(drawn, key=lambda m: m[0])):
            code = _judged(Path(folder), module, tree, hypothesis, pytest)
            total[module] = total.get(module, 0) + 1
            if code == 0:
                print(f"survived  {module}.py {what}", flush=True)
            else:
                killed[module] = killed.get(module, 0) + 1
            if number % 50 == 49:
                print(f"... {number + 1} in {time.time() - started:.0f} s", flush=True)
    for module, n in total.items():
        print(f"{module:>16}: {killed.get(module, 0)} of {n} killed")
    print(
        f"{'all':>16}: {sum(killed.values())} of {sum(total.values())} = {sum(killed.values()) / sum(total.values()):.1%}"
    )


def _judged(folder: Path, module: str, tree: ast.Module, hypothesis, pytest) -> int:
    """The exit code of core's tests with `tree` in the module's place; 0 = nothing noticed."""
    path = folder / "minirlhf" / "core" / f"{module}.py"
    whole = path.read_text()
    path.write_text(ast.unparse(tree))
    child = os.fork()
    if not child:
        _judge(module, hypothesis, pytest)
    _, status = os.waitpid(child, 0)
    path.write_text(whole)
    return os.waitstatus_to_exitcode(status)


def _judge(module: str, hypothesis, pytest) -> None:
    """In the forked process: run core's tests against the mutant, the module's own first; exit with pytest's code."""
    hypothesis.settings.register_profile(
        "mutants", phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate], database=None
    )
    hypothesis.settings.load_profile("mutants")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1), os.dup2(nowhere, 2)
    signal.alarm(120)  # an endless loop also counts as killed
    own = Path(f"tests/core/test_{module}.py")
    others = sorted(p for p in Path("tests/core").glob("test_*.py") if p != own)
    os._exit(
        int(
            pytest.main(
                [
                    "-x",
                    "-q",
                    "--tb=no",
                    "-p",
                    "no:cacheprovider",
                    *map(str, [p for p in (own, *others) if p.exists()]),
                ]
            )
        )
    )


def _bare(tree: ast.Module) -> ast.Module:
    """The tree without docstrings, which do not change behaviour."""
    for node in ast.walk(tree):
        if (
            isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef))
            and ast.get_docstring(node) is not None
            and len(node.body) > 1
        ):
            node.body = node.body[1:]
    return tree


if __name__ == "__main__":
    main()
