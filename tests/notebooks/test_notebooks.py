"""Every notebook runs under FAST=1, and the committed one is executed from the current source."""

import re

import jupytext
import nbformat
import pytest

from minirlhf.classroom.course import (
    NOTEBOOKS,
    answers,
    build,
    lesson_of,
    notebook_sources,
    solutions_of,
    tags,
    text_of,
)
from tests.notebooks.rebuilt import REBUILT

NAMES = [s.stem for s in notebook_sources()]
OLD = [name for name in NAMES if name not in REBUILT]  # the others: tests/claims/


def errors_of(notebook):
    return [
        output
        for cell in notebook.cells
        if cell.cell_type == "code" and "raises-exception" not in tags(cell)
        for output in cell.outputs
        if output.output_type == "error"
    ]


@pytest.mark.parametrize("name", NAMES)
def test_the_notebook_runs(name, tmp_path, monkeypatch):
    monkeypatch.setenv("FAST", "1")
    path, _ = build(NOTEBOOKS / "src" / f"{name}.py", tmp_path)
    assert not errors_of(nbformat.read(path, 4))


@pytest.mark.parametrize("name", OLD)
def test_a_number_in_prose_is_computed_in_the_notebook(name):
    """Each decimal in the prose, except code and library versions, is a rounded computed number."""
    cells = nbformat.read(NOTEBOOKS / f"{name}.ipynb", 4).cells
    prose = "\n".join(c.source for c in cells if c.cell_type == "markdown").split(
        "**References.**"
    )[0]
    prose = re.sub(
        r"```.*?```|`[^`]*`|(?:TRL|OpenRLHF|verl)[ ,A-Za-z(]*\d+\.\d+", "", prose, flags=re.S
    )
    code = [c for c in cells if c.cell_type == "code"]
    shown = [c.source for c in code] + [
        str(o.get("text") or o.get("data", {}).get("text/plain", ""))
        for c in code
        for o in c.outputs
    ]
    computed = [float(x) for x in re.findall(r"\d+\.\d+", "\n".join(shown))]
    said = re.findall(r"(?<![\w.,/])\d+\.\d+(?![\w.]*\d)", prose)
    alone = [
        x
        for x in said
        if all(abs(y - float(x)) > 0.5001 * 10 ** -len(x.split(".")[1]) for y in computed)
    ]
    assert not alone, f"{alone}: prose says it, nothing in the notebook computes it"


def not_current(source, folder):
    """What is wrong with the notebooks in a folder that a source was built into."""
    written, wrong = jupytext.read(source), []
    pairs = [(folder / f"{source.stem}.ipynb", lesson_of(written))]
    if (solutions := solutions_of(written, source.stem)) is not None:
        pairs.append((folder / "solutions" / f"{source.stem}.ipynb", solutions))
    for path, expected in pairs:
        if not path.is_file():
            return [f"{path} is missing"]
        cells = nbformat.read(path, 4).cells
        if [c.source for c in cells] != [c.source for c in expected.cells]:
            return [f"{path} is not built from the current source"]
        if [tags(c) for c in cells] != [tags(c) for c in expected.cells]:
            return [f"{path} has other tags than its source"]
        code = [c for c in cells if c.cell_type == "code"]
        blank = [c for c in code if answers(c)] if path.parent == folder else []
        for cell in code:
            if cell in blank and (cell.outputs or cell.execution_count):
                wrong.append(f"{path}: an output gives the answer away: {cell.source[:60]}")
            if cell not in blank and not cell.execution_count:
                wrong.append(f"{path}: a cell is not executed: {cell.source[:60]}")
            if path.parent != folder and "not yet: " in text_of(cell):
                wrong.append(f"{path}: the checker refuses a solution: {cell.source[:60]}")
        if not any(c.outputs for c in code):
            wrong.append(f"{path} has no outputs")
        if errors_of(nbformat.read(path, 4)):
            wrong.append(f"{path} holds an error")
    return wrong


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_notebook_is_executed_and_current(name):
    assert not_current(NOTEBOOKS / "src" / f"{name}.py", NOTEBOOKS) == [], "run `minirlhf course`"


def test_every_committed_notebook_has_a_source():
    committed = {path.stem for path in NOTEBOOKS.rglob("*.ipynb") if path.parent.name[0] != "."}
    assert committed == set(NAMES)
