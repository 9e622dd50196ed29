"""Lesson 06b: three recorded runs, to be diagnosed without their names."""

import pandas as pd

from minirlhf.experiments.records import results

LETTERS = {"kl_coef 2": "A", "kl_coef 0": "B", "kl_coef 0.25": "C"}
TELLING = ["experiment", "claim", "command", "commit", "kl_coef"]  # these columns give it away


def three_runs() -> pd.DataFrame:
    """The logs of three recorded runs of PPO that differ in one setting, without its name.

    Returns:
        A row per step and seed, in order, ready for `show.curves`. The column `variant` is A, B or
        C.
    """
    history = results("leash_history").drop(columns=TELLING)
    history["variant"] = history.variant.map(LETTERS)
    return history.dropna(subset="variant").sort_values(["variant", "seed", "step"])
