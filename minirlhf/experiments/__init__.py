"""Recorded experiments: what is run, how, and the records that the lessons read.

`results("family")` is a DataFrame of recorded runs. `run_experiment("family", folder)` runs them.
The functions that run something need every loop, so they are imported when they are first used.
"""

from minirlhf.experiments.records import fill_readme, load_results, readme_to_fill, results
from minirlhf.experiments.tables import (
    by_prompt,
    difference_over_prompts,
    difference_over_prompts_and_seeds,
    mean_over_seeds,
    shown,
    with_interval,
)

__all__ = [
    "EXPERIMENTS",
    "NAMES",
    "RECORDED_SEEDS",
    "by_prompt",
    "difference_over_prompts",
    "difference_over_prompts_and_seeds",
    "fill_readme",
    "load_results",
    "mean_over_seeds",
    "readme_to_fill",
    "record_smollm2",
    "repeat_run",
    "repeat_tour",
    "results",
    "run_experiment",
    "shown",
    "with_interval",
]


def __getattr__(name: str):
    if name in __all__:
        from minirlhf.experiments import recording

        return getattr(recording, name)
    raise AttributeError(f"module 'minirlhf.experiments' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
