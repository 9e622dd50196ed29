"""Every notebook runs from its source under FAST=1, and what is committed has the outputs of that source."""

import jupytext
import nbformat
import pytest

from minirlhf.classroom.course import NOTEBOOKS, build, notebook_sources

NAMES = [s.stem for s in notebook_sources()]


@pytest.mark.parametrize("name", NAMES)
def test_it_runs(name, tmp_path, monkeypatch):
    monkeypatch.setenv("FAST", "1")
    path, _ = build(NOTEBOOKS / "src" / f"{name}.py", tmp_path)
    notebook = nbformat.read(path, 4)
    assert all(output.output_type != "error" for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_committed_is_executed_and_current(name):
    committed = nbformat.read(NOTEBOOKS / f"{name}.ipynb", 4)
    source = jupytext.read(NOTEBOOKS / "src" / f"{name}.py")
    assert [c.source for c in committed.cells] == [c.source for c in source.cells], "run `minirlhf course`"
    code = [c for c in committed.cells if c.cell_type == "code"]
    assert all(c.execution_count for c in code) and any(c.outputs for c in code)
