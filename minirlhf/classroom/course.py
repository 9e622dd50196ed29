"""Execute the course's notebooks.

notebooks/src/NN_name.py (py:percent format) becomes notebooks/NN_name.ipynb with outputs.
"""

import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

from minirlhf.runtime import ROOT, atomic_path, check

NOTEBOOKS = ROOT / "notebooks"


def build(source: Path, out: Path | None = None) -> tuple[Path, float]:
    """Execute one source in a fresh kernel and write the notebook atomically.

    Args:
        source: the py:percent file.
        out: the folder to write to; notebooks/ by default.

    Returns:
        The notebook's path, and the seconds that it took.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed. An existing notebook is not replaced.
    """
    started = time.time()
    notebook = jupytext.read(source)
    notebook.metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
    }
    quiet = ["--log-level=ERROR"]  # hides the kernel's warning that its TCP is not encrypted
    NotebookClient(
        notebook,
        timeout=600,
        resources={"metadata": {"path": str(NOTEBOOKS)}},
        extra_arguments=quiet,
    ).execute()
    for index, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{index}"  # stable ids keep diffs small
        cell.metadata.pop("execution", None)  # time stamps would change at each run
    path = (out or NOTEBOOKS) / f"{source.stem}.ipynb"
    with atomic_path(path) as temporary:
        nbformat.write(notebook, temporary)
    return path, time.time() - started


def notebook_sources(names: list[str] | None = None) -> list[Path]:
    """The sources of the notebooks, in order.

    Args:
        names: only the files whose name begins with one of these, such as `00` or `01_why_rlhf`.

    Raises:
        ValueError: no source begins with one of the names.
    """
    every = sorted((NOTEBOOKS / "src").glob("*.py"))
    for name in names or ():
        check(
            "notebook",
            name,
            any(s.stem.startswith(name) for s in every),
            f"one of {', '.join(s.stem for s in every)}",
        )
    return [s for s in every if not names or s.stem.startswith(tuple(names))]
