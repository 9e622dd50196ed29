"""Execute the notebooks: notebooks/src/NN_name.py (py:percent) -> notebooks/NN_name.ipynb with its outputs."""

import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

from minirlhf.runtime import ROOT, atomic_path, check

NOTEBOOKS = ROOT / "notebooks"


def build(source: Path, out: Path | None = None) -> tuple[Path, float]:
    """Run one source from the top in a fresh kernel and write the notebook whole. Returns (path, seconds).

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed; the notebook that was there stays.
    """
    started = time.time()
    notebook = jupytext.read(source)
    notebook.metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
    }
    quiet = ["--log-level=ERROR"]  # the kernel says on each start that its TCP is not encrypted
    NotebookClient(
        notebook,
        timeout=600,
        resources={"metadata": {"path": str(NOTEBOOKS)}},
        extra_arguments=quiet,
    ).execute()
    for index, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{index}"  # stable ids keep the diff to what changed
        cell.metadata.pop("execution", None)  # time stamps, likewise
    path = (out or NOTEBOOKS) / f"{source.stem}.ipynb"
    with atomic_path(path) as temporary:
        nbformat.write(notebook, temporary)
    return path, time.time() - started


def notebook_sources(names: list[str] | None = None) -> list[Path]:
    """The notebooks' sources in order; with names, those whose file begins with one of them (`00`, `01_why_rlhf`)."""
    every = sorted((NOTEBOOKS / "src").glob("*.py"))
    for name in names or ():
        check(
            "notebook",
            name,
            any(s.stem.startswith(name) for s in every),
            f"one of {', '.join(s.stem for s in every)}",
        )
    return [s for s in every if not names or s.stem.startswith(tuple(names))]
