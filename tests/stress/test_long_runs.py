"""Hundreds of steps: what was learned stays, and memory does not grow."""

import resource
import sys

import pytest

from minirlhf.loops.config import KLConfig, OptimiserConfig
from tests.loops.test_loops import run_group, run_ppo

STEPS = 400
UNIT = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes


def peak() -> float:
    """The most memory that this process has held so far, in megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT / 1e6


@pytest.mark.parametrize("loop", ["ppo", "grpo"])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_long_run_keeps_what_it_learned_and_its_memory(loop, seed, record_property):
    held = {}

    def on_step(row):
        held[row["step"]] = peak()

    slow = OptimiserConfig(lr=2e-3)
    rates = {"actor": slow, "critic": slow} if loop == "ppo" else {"optimiser": slow}
    run = {"ppo": run_ppo, "grpo": run_group}[loop]
    history = run(seed=seed, steps=STEPS, kl=KLConfig(kl_coef=0.05), on_step=on_step, **rates)[-1]
    scores = history.column(loop, "score")
    early, late = sum(scores[:10]) / 10, sum(scores[-50:]) / 50
    grown = held[STEPS - 1] - held[STEPS // 4]
    assert late > 0.9 > 0.7 > early and min(scores[-50:]) > 0.75
    assert grown < 50  # megabytes: a graph that is kept by mistake would hold far more
    record_property(
        f"{loop}, {STEPS} steps, seed {seed}",
        f"score {early:.2f} to {late:.2f}, {grown:.0f} MB more after step {STEPS // 4}",
    )
