"""Recorded experiments: what is run, how, and the records that the lessons read.

`results("family")` is a DataFrame of recorded runs. `run_experiment("family", folder)` runs them.
"""

from importlib import import_module
from typing import Any

from minirlhf.experiments.passes import pass_at_each_k
from minirlhf.experiments.records import load_results, results
from minirlhf.experiments.tables import (
    above_curve,
    by_prompt,
    difference_over_prompts,
    difference_over_prompts_and_seeds,
    mean_over_seeds,
    samples,
    shown,
    with_interval,
)

# Name -> its module. These modules need every loop, which takes seconds to import, and a lesson
# that only reads a record does not. They are imported when one of their names is first used.
ON_FIRST_USE = {
    "EXPERIMENTS": "registry",
    "RECORDED_SEEDS": "registry",
    "fill_pages": "pages",
    "pages_to_fill": "pages",
    "FAULTS": "faults",
    "Fault": "faults",
    "NAMES": "recording",
    "record_smollm2": "recording",
    "repeat_run": "recording",
    "repeat_tour": "recording",
    "run_experiment": "recording",
    "LEVELS": "practice",
    "TASKS": "practice",
    "group_config": "practice",
    "judged": "practice",
    "practice_problems": "practice",
    "scoring": "practice",
    "train_tiny_steps": "practice",
    "LOCATED": "planted",
    "evidence_of": "planted",
    "false_steps": "planted",
    "planted_pairs": "planted",
    "fitted_curves": "overoptimisation_curves",
    "gain_curves": "overoptimisation_curves",
    "gold_pairs": "overoptimisation",
}

__all__ = [
    "above_curve",
    "by_prompt",
    "difference_over_prompts",
    "difference_over_prompts_and_seeds",
    "load_results",
    "mean_over_seeds",
    "pass_at_each_k",
    "results",
    "samples",
    "shown",
    "with_interval",
    *ON_FIRST_USE,
]


def __getattr__(name: str) -> Any:
    if name in ON_FIRST_USE:
        return getattr(import_module(f"{__name__}.{ON_FIRST_USE[name]}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *ON_FIRST_USE})
