"""Every notebook runs under FAST=1, and the committed one is executed from the current source."""

import os
import signal
import socket
import subprocess
import sys
import time

import jupytext
import nbformat
import pytest
from jupyter_client.connect import LocalPortCache
from nbclient.exceptions import CellExecutionError
from typer.testing import CliRunner

from minirlhf import cli
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
from minirlhf.classroom.kernels import kernels, run_anew, run_together
from tests.tiny import needs_posix

NAMES = [s.stem for s in notebook_sources()]


def errors_of(notebook):
    return [
        output
        for cell in notebook.cells
        if cell.cell_type == "code" and "raises-exception" not in tags(cell)
        for output in cell.outputs
        if output.output_type == "error"
    ]


@pytest.fixture(scope="module")
def kernel():
    """One kernel under FAST=1 for all notebooks: importing the package takes ten seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAST", "1")
        with kernels(1) as (kernel,):
            patch.undo()
            yield kernel


@pytest.mark.notebook
@pytest.mark.parametrize("name", NAMES)
def test_the_notebook_runs(name, kernel):
    source = jupytext.read(NOTEBOOKS / "src" / f"{name}.py")
    for notebook in (lesson_of(source), solutions_of(source, name)):
        if notebook is not None:
            run_anew(notebook, kernel)
            code = [cell for cell in notebook.cells if cell.cell_type == "code"]
            assert all(cell.execution_count for cell in code) and any(c.outputs for c in code)
            assert not errors_of(notebook)


@pytest.mark.notebook
def test_a_notebook_knows_no_name_of_the_one_before_it(kernel):
    def notebook(code):
        return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])

    draw = "import torch; print(torch.initial_seed(), torch.rand(()).item())"
    first, again = notebook(draw), notebook(draw)
    run_anew(first, kernel)
    run_anew(notebook("import torch; torch.manual_seed(1); left = torch.rand(3)"), kernel)
    run_anew(again, kernel)
    assert first.cells[0].outputs == again.cells[0].outputs
    with pytest.raises(CellExecutionError, match="name 'left' is not defined"):
        run_anew(notebook("left"), kernel)


MEET = """# %%
import time
from pathlib import Path

def meet(me, other):
    Path(FOLDER, me).touch()
    for _ in range(600):  # for a minute at most
        if Path(FOLDER, other).exists():
            return
        time.sleep(0.1)
    raise TimeoutError(f"{me} is alone")

# %% tags=["exercise"]
meet("lesson", "solutions")

# %% tags=["solution"]
meet("solutions", "lesson")
"""


def test_a_lesson_and_its_solutions_run_at_the_same_time(tmp_path):
    """Each waits for a file that the other one writes."""
    source = tmp_path / "00_meet.py"
    source.write_text(MEET.replace("FOLDER", repr(str(tmp_path))))
    build(source, tmp_path / "out")
    assert (tmp_path / "out" / "solutions" / "00_meet.ipynb").is_file()


STAY = """# %%
import os, time
from pathlib import Path

def meet(me, other):
    Path(FOLDER, me).write_text(str(os.getpid()))
    while not Path(FOLDER, other).exists():
        time.sleep(0.1)
    time.sleep(0.5)  # the other one has written its number

# %% tags=["exercise"]
meet("lesson", "solutions")
LESSON

# %% tags=["solution"]
meet("solutions", "lesson")
time.sleep(600)
"""


def has_stopped(process):
    """Wait until a process has stopped, for a minute at most."""
    for _ in range(600):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def staying(tmp_path, lesson):
    """A lesson that runs so much code while its solutions sleep, and where their kernels are."""
    source = tmp_path / "00_stay.py"
    text = STAY.replace("FOLDER", repr(str(tmp_path))).replace("LESSON", lesson)
    source.write_text(text)
    return source, [tmp_path / name for name in ("lesson", "solutions")]


@needs_posix
def test_where_a_lesson_fails_its_solutions_stop(tmp_path):
    source, kernels = staying(tmp_path, "1 / 0")
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        build(source, tmp_path / "out")
    assert all(has_stopped(int(kernel.read_text())) for kernel in kernels)
    assert not (tmp_path / "out").exists()


IN_A_COMMAND = """
import sys
from pathlib import Path
from minirlhf import cli
from minirlhf.classroom import course
course.notebook_sources = lambda names: [Path(sys.argv.pop())]
cli.main()
"""


@needs_posix
@pytest.mark.usefixtures("usual_signals")
def test_ctrl_c_stops_the_course_and_its_kernels(tmp_path):
    source, kernels = staying(tmp_path, "Path(FOLDER, 'there').touch(); time.sleep(600)")
    source.write_text(source.read_text().replace("FOLDER", repr(str(tmp_path))))
    run = subprocess.Popen(
        [sys.executable, "-c", IN_A_COMMAND, "course", str(source)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    for _ in range(3000):  # for five minutes at most
        if (tmp_path / "there").exists() or run.poll() is not None:
            break
        time.sleep(0.1)
    run.send_signal(signal.SIGINT)
    said, _ = run.communicate(timeout=120)
    assert run.returncode == 130 and "Traceback" not in said, said
    assert all(has_stopped(int(kernel.read_text())) for kernel in kernels)


def test_with_fast_the_command_uses_the_same_kernels_again(tmp_path, monkeypatch):
    sources = [tmp_path / "00_a.py", tmp_path / "01_b.py"]
    seen = []
    monkeypatch.setattr("minirlhf.classroom.FAST", True)
    monkeypatch.setattr("minirlhf.classroom.course.notebook_sources", lambda names: sources)
    monkeypatch.setattr(
        "minirlhf.classroom.course.build", lambda source, used: (source, seen.append(used) or 1.0)
    )
    said = CliRunner().invoke(cli.app, ["course"]).output
    assert len(seen[0]) == 2 and seen[0] is seen[1]
    assert said.splitlines() == ["00_a.py: 1 s", "01_b.py: 1 s"]


SAYS = """# %%
import os, torch
print(torch.initial_seed(), torch.rand(()).item(), "left" in globals())
left = os.getpid()

# %% tags=["exercise"]
0

# %% tags=["solution"]
print(torch.rand(()).item(), os.getpid())
"""


def test_with_used_kernels_a_notebook_knows_no_name_of_the_one_before_it(tmp_path):
    source = tmp_path / "00_says.py"
    source.write_text(SAYS)
    folders = [tmp_path / "once", tmp_path / "again"]
    with kernels(2) as used:
        for folder in folders:
            build(source, folder, used=used)
    for path in ("00_says.ipynb", "solutions/00_says.ipynb"):
        once, again = ((folder / path).read_text() for folder in folders)
        assert once == again and "False" in once  # the process is the same one, too


def test_a_kernel_whose_port_was_taken_is_started_again(monkeypatch):
    free = LocalPortCache.find_available_port
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = [taken.getsockname()[1]]
        monkeypatch.setattr(
            LocalPortCache,
            "find_available_port",
            lambda self, ip: ports.pop() if ports else free(self, ip),
        )
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("print(1)")])
        run_together([notebook])
    assert notebook.cells[0].outputs[0].text == "1\n" and not ports


def test_a_built_notebook_is_executed_in_a_kernel_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr("minirlhf.classroom.course.NOTEBOOKS", tmp_path)
    source = tmp_path / "00_short.py"
    source.write_text("# %% [markdown]\n# A short one.\n\n# %%\nprint(1 + 1)\n")
    path, seconds = build(source, tmp_path / "out")
    assert path == tmp_path / "out" / "00_short.ipynb" and seconds > 0
    prose, code = nbformat.read(path, 4).cells
    assert prose.source == "A short one." and code.outputs[0].text == "2\n"
    assert (prose.id, code.id) == ("cell-0", "cell-1") and "execution" not in code.metadata
    before = path.read_bytes()
    source.write_text("# %%\nprint(1 / 0)\n")
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        build(source, tmp_path / "out")  # the old one is not replaced
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == [path.name]


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
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == set(NAMES)
    sources = {s.stem: jupytext.read(s) for s in notebook_sources()}
    with_solutions = {n for n, source in sources.items() if solutions_of(source, n) is not None}
    assert {path.stem for path in (NOTEBOOKS / "solutions").glob("*.ipynb")} == with_solutions
