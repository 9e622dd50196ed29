"""Run notebooks in Python kernels, at the same time."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
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
import torch
from minirlhf.runtime import set_threads
torch.manual_seed(0)
set_threads()
del torch, set_threads
"""


@contextmanager
def kernels(number: int) -> Iterator[list[KernelManager]]:
    """So many new kernels, which stop at the end of the block."""
    started: list[KernelManager] = []
    try:
        for _ in range(number):
            started.append(start())
        for index, kernel in enumerate(started):
            if not answers(kernel):  # such as where another program was faster to take its port
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
    """Wait for a kernel that has just been started. Returns whether it runs within a minute."""
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
    stay imported, with their settings and caches: importing ours takes ten seconds.
    """
    run(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(ANEW)]), kernel)
    run(notebook, kernel)


def run_together(notebooks: Sequence[NotebookNode], used: Sequence[KernelManager] = ()) -> None:
    """Execute notebooks in place at the same time, each in a kernel of its own.

    Where one fails, and at Ctrl-C, all kernels stop, those of `used` too.

    Args:
        used: kernels that have run other notebooks, at least as many; new ones by default.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    execute = run_anew if used else run
    with (
        ThreadPoolExecutor(len(notebooks)) as threads,
        nullcontext(used) if used else kernels(len(notebooks)) as each,
    ):
        try:
            pairs = zip(notebooks, each[: len(notebooks)], strict=True)
            running = {threads.submit(execute, notebook, kernel) for notebook, kernel in pairs}
            while running:  # on Windows a wait without an end does not hear Ctrl-C
                done, running = wait(running, timeout=1, return_when=FIRST_COMPLETED)
                for ended in done:
                    ended.result()
        except BaseException:
            stop(each)  # without its kernel a thread ends
            raise


def stop(started: Sequence[KernelManager]) -> None:
    """Stop those kernels that still run."""
    for kernel in started:
        if kernel.has_kernel:
            kernel.shutdown_kernel(now=True)
