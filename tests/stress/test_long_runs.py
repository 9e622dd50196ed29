"""Hundreds of steps: what was learned stays, and memory does not grow."""

import os
from pathlib import Path

import pytest

from minirlhf.loops.config import KLConfig, OptimiserConfig
from tests.loops.test_loops import run_group, run_ppo

STEPS = 400
HELD = Path("/proc/self/statm")  # Linux: how much memory this process holds now, in pages


def megabytes() -> float:
    """The memory that this process holds now."""
    return int(HELD.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.mark.skipif(not HELD.exists(), reason="reads the memory of a process as Linux gives it")
@pytest.mark.parametrize("loop", ["ppo", "grpo"])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_long_run_keeps_what_it_learned_and_its_memory(loop, seed, record_property):
    held = {}

    def on_step(row):
        held[row["step"]] = megabytes()

    slow = OptimiserConfig(lr=2e-3)
    rates = {"actor": slow, "critic": slow} if loop == "ppo" else {"optimiser": slow}
    run = {"ppo": run_ppo, "grpo": run_group}[loop]
    settings = rates | {"steps": STEPS, "kl": KLConfig(kl_coef=0.05)}
    history = run(seed=seed, on_step=on_step, **settings)[-1]
    scores = history.column(loop, "score")
    early, late = sum(scores[:10]) / 10, sum(scores[-50:]) / 50
    quarter = STEPS // 4
    grown = max(held[s] for s in range(STEPS - 20, STEPS)) - max(
        held[s] for s in range(quarter, quarter + 20)
    )
    assert late > 0.9 > 0.7 > early and min(scores[-50:]) > 0.75
    assert grown < 50  # megabytes: batches or graphs that are kept by mistake hold far more
    record_property(
        f"{loop}, {STEPS} steps, seed {seed}",
        f"score {early:.2f} to {late:.2f}, {grown:.0f} MB more after step {quarter}",
    )
