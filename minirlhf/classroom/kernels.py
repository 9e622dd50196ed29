"""Run notebooks in Python kernels, at the same time."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, nullcontext

import nbformat
from jupyter_client.asynchronous import AsyncKernelClient
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode

from minirlhf.runtime import ROOT

NOTEBOOKS = ROOT / "notebooks"
ANEW = """
get_ipython().reset()
import os, torch
torch.manual_seed(0)
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count()))
del os, torch
"""


@contextmanager
def kernels(number: int) -> Iterator[list[KernelManager]]:
    """So many new kernels, which stop at the end of the block."""
    started: list[KernelManager] = []
    try:
        for _ in range(number):
            started.append(start())
        for index, kernel in enumerate(started):
            if not answers(kernel):  # another program took a port before the kernel had it
                stop([kernel])
                started[index] = start()
        yield started
    finally:
        stop(started)


def start() -> KernelManager:
    """A new kernel, which may need a second until it answers."""
    kernel = KernelManager(kernel_name="python3")
    kernel.client_factory = AsyncKernelClient  # the one that nbclient needs
    quiet = ["--log-level=ERROR"]  # hides a warning that its TCP is not encrypted
    # Kernels share the cores: a thread of one that waits must not hold a core that another needs.
    environment = {"OMP_WAIT_POLICY": "passive", **os.environ}
    kernel.start_kernel(cwd=str(NOTEBOOKS), extra_arguments=quiet, env=environment)
    return kernel


def answers(kernel: KernelManager) -> bool:
    """Wait for a kernel that has just been started. Returns whether it runs."""
    client = kernel.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
    except RuntimeError:
        return False
    finally:
        client.stop_channels()
    return True


def run(notebook: NotebookNode, kernel: KernelManager) -> None:
    """Execute a notebook in place.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    client = NotebookClient(notebook, km=kernel, timeout=600)
    try:
        client.execute()
    finally:
        if client.kc is not None:
            client.kc.stop_channels()


def run_anew(notebook: NotebookNode, kernel: KernelManager) -> None:
    """Execute a notebook in a kernel that has run others.

    Before it, all names are deleted, and torch gets the seed 0 and its number of threads. Packages
    stay imported; importing ours takes ten seconds.
    """
    run(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(ANEW)]), kernel)
    run(notebook, kernel)


def run_together(notebooks: Sequence[NotebookNode], used: Sequence[KernelManager] = ()) -> None:
    """Execute notebooks in place at the same time, each in a kernel of its own.

    When one fails, and at Ctrl-C, the others stop.

    Args:
        used: kernels that have run other notebooks, one for each; new ones by default.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    execute = run_anew if used else run
    with (
        nullcontext(used) if used else kernels(len(notebooks)) as each,
        ThreadPoolExecutor(len(notebooks)) as threads,
    ):
        runs = [
            threads.submit(execute, notebook, kernel)
            for notebook, kernel in zip(notebooks, each, strict=False)
        ]
        try:
            for done in as_completed(runs):
                done.result()
        except BaseException:
            stop(each)  # without its kernel a thread ends
            raise


def stop(started: Sequence[KernelManager]) -> None:
    """Stop those kernels that still run."""
    for kernel in started:
        if kernel.has_kernel:
            kernel.shutdown_kernel(now=True)
