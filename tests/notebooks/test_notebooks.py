"""Every notebook runs under FAST=1, and the committed one is executed from the current source."""

import re

import jupytext
import nbformat
import pytest

from minirlhf.classroom.course import NOTEBOOKS, build, notebook_sources

NAMES = [s.stem for s in notebook_sources()]


@pytest.mark.parametrize("name", NAMES)
def test_the_notebook_runs(name, tmp_path, monkeypatch):
    monkeypatch.setenv("FAST", "1")
    path, _ = build(NOTEBOOKS / "src" / f"{name}.py", tmp_path)
    notebook = nbformat.read(path, 4)
    assert all(
        output.output_type != "error"
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    )


@pytest.mark.parametrize("name", NAMES)
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


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_notebook_is_executed_and_current(name):
    committed = nbformat.read(NOTEBOOKS / f"{name}.ipynb", 4)
    source = jupytext.read(NOTEBOOKS / "src" / f"{name}.py")
    assert [c.source for c in committed.cells] == [c.source for c in source.cells], (
        "run `minirlhf course`"
    )
    code = [c for c in committed.cells if c.cell_type == "code"]
    assert all(c.execution_count for c in code) and any(c.outputs for c in code)
