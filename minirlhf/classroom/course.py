"""Execute the course's notebooks.

notebooks/src/NN_name.py (py:percent format) becomes notebooks/NN_name.ipynb with outputs.

In a source, tags say what a cell is for:

    # %% tags=["predict"]             a cell that answers a prediction
    # %% [markdown] tags=["exercise"] the statement of an exercise
    # %% tags=["exercise"]            its blank: the student writes here
    # %% tags=["solution"]            its solution, as code or as [markdown]
    # %% tags=["exercise", "solution"]  code of the exercise that the solution needs too
    # %% tags=["shared"]              code of the lesson that the solutions need

The lesson holds every cell except the solutions. Its predict and exercise cells are executed, and
then saved without output. A source with solutions has a second notebook,
notebooks/solutions/NN_name.ipynb: the first code cell (the imports), the shared cells, the
statements and the solutions. A source without tags becomes one notebook with all outputs.

The blank of an exercise must run without an error: a checker says "not yet". Where a blank must
fail, or a later cell needs its answer, those cells have the tag "raises-exception" beside
"exercise". Jupyter then continues after the error.
"""

import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import jupytext
import nbformat
from jupyter_client.manager import KernelManager
from nbformat import NotebookNode

from minirlhf.classroom.kernels import NOTEBOOKS, run_together
from minirlhf.runtime import atomic_path, check, lesson_sources

TAGS = {"predict", "exercise", "solution", "shared", "raises-exception"}


def build(
    source: Path, out: Path | None = None, *, used: Sequence[KernelManager] = ()
) -> tuple[Path, float]:
    """Execute one source and write its notebooks atomically.

    The lesson and its solutions run at the same time, each in a fresh kernel.

    Args:
        source: the py:percent file.
        out: the folder to write to; notebooks/ by default. Solutions are written to its folder
            solutions/.
        used: two kernels that have run other notebooks, instead of fresh ones.

    Returns:
        The lesson's path, and the seconds that lesson and solutions took.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed. An existing notebook is not replaced.
        ValueError: a tag is unknown, or the checker refuses a solution.
    """
    started = time.time()
    out = NOTEBOOKS if out is None else out
    written = jupytext.read(source)
    lesson, solutions = lesson_of(written), solutions_of(written, source.stem)
    notebooks = [one for one in (lesson, solutions) if one is not None]
    run_together(notebooks, used)
    for notebook in notebooks:
        for index, cell in enumerate(notebook.cells):
            cell["id"] = f"cell-{index}"  # stable ids keep diffs small
            cell.metadata.pop("execution", None)  # time stamps would change at each run
    for cell in lesson.cells:
        if cell.cell_type == "code" and answers(cell):
            cell.outputs, cell.execution_count = [], None
    if not any("widget-view" in str(cell.get("outputs")) for cell in lesson.cells):
        lesson.metadata.pop("widgets", None)  # the state of widgets that are not shown
    if solutions is not None:
        if refused := [c.source for c in solutions.cells if "not yet: " in text_of(c)]:
            first = refused[0].strip().splitlines()[0]
            raise ValueError(f"{source.name}: the checker refuses the solution `{first}`")
        _write(solutions, out / "solutions" / f"{source.stem}.ipynb")
    path = out / f"{source.stem}.ipynb"
    _write(lesson, path)
    return path, time.time() - started


def lesson_of(notebook: NotebookNode) -> NotebookNode:
    """The lesson: every cell of a source except those for the solutions alone.

    Raises:
        ValueError: a tag is unknown.
    """
    for cell in notebook.cells:
        for tag in sorted(tags(cell)):
            check("tag", tag, tag in TAGS, f"one of {', '.join(sorted(TAGS))}")
    return _notebook(
        c for c in notebook.cells if "solution" not in tags(c) or "exercise" in tags(c)
    )


def solutions_of(notebook: NotebookNode, name: str) -> NotebookNode | None:
    """The notebook of the solutions; None if the source has none.

    Args:
        notebook: the source of the lesson.
        name: the lesson's file name without its ending, for a link to it.
    """
    if not any("solution" in tags(cell) for cell in notebook.cells):
        return None
    title = notebook.cells[0].source.splitlines()[0].lstrip("# ")
    first = next(i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code")
    kept = [
        cell
        for i, cell in enumerate(notebook.cells)
        if i == first
        or tags(cell) & {"solution", "shared"}
        or ("exercise" in tags(cell) and cell.cell_type == "markdown")
    ]
    heading = nbformat.v4.new_markdown_cell(
        f"# Solutions: {title}\n\nTry the exercises of [the lesson](../{name}.ipynb) first."
    )
    return _notebook([heading, *kept])


def tags(cell: NotebookNode) -> set[str]:
    """The tags of a cell."""
    return set(cell.metadata.get("tags", ()))


def answers(cell: NotebookNode) -> bool:
    """Whether a cell's output would answer a prediction or an exercise."""
    return bool(tags(cell) & {"predict", "exercise"})


def text_of(cell: NotebookNode) -> str:
    """The text that a code cell has printed or returned; "" for other cells."""
    return "\n".join(
        output.get("text") or output.get("data", {}).get("text/plain", "")
        for output in cell.get("outputs", ())
    )


def _notebook(cells: Iterable[dict]) -> NotebookNode:
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.from_dict(cell) for cell in cells]
    notebook.metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
    }
    return notebook


def _write(notebook: NotebookNode, path: Path) -> None:
    with atomic_path(path) as temporary:
        nbformat.write(notebook, temporary)


def notebook_sources(names: list[str] | None = None) -> list[Path]:
    """The sources of the notebooks, in order.

    Args:
        names: only the files whose name begins with one of these, such as `00` or `01_why_rlhf`.

    Raises:
        ValueError: no source begins with one of the names, or there are no sources.
    """
    every = lesson_sources("The course")
    for name in names or ():
        check(
            "notebook",
            name,
            any(s.stem.startswith(name) for s in every),
            f"one of {', '.join(s.stem for s in every)}",
        )
    return [s for s in every if not names or s.stem.startswith(tuple(names))]
