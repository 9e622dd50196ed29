"""Shapes are enforced while testing: every annotation of minirlhf.core is checked at each call."""

import os
import signal

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is downloaded after set-up
if workers := os.environ.get(
    "PYTEST_XDIST_WORKER_COUNT"
):  # the cores are shared; so they are in the notebooks' kernels
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // int(workers)))

import pytest
import torch
from jaxtyping import install_import_hook

import tests.typecheck  # noqa: F401  (the hook names it)

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

install_import_hook("minirlhf.core", "tests.typecheck.beartype")


@pytest.fixture
def usual_signals():
    """Ctrl-C and SIGHUP act as usual, also where the tests run behind a `&` or under nohup."""
    usual = {"SIGINT": signal.default_int_handler, "SIGHUP": signal.SIG_DFL}  # no SIGHUP on Windows
    before = {}
    for name, handler in usual.items():
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_IGN:
            before[number] = signal.signal(number, handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def world():
    """Three words, three tokens, 15 sequences: small enough to enumerate, float64."""
    from minirlhf.core.exact import World

    return World.random(3, 3, seed=0)


@pytest.fixture
def policy(world):
    """A policy in that world that is not the reference."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(world.ref_logits.shape, generator=generator, dtype=torch.float64)
