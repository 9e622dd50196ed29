"""Exercises of lesson 06b: three recorded runs without their names, and three comparisons at equal
KL."""

import math
from numbers import Real

import pandas as pd

from minirlhf.classroom.exercise import Result
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


# The table of section 4, PPO with five KL coefficients, and the three methods of exercise 3.
LINE_KL, LINE_GOLD = (0.73, 1.00, 2.04, 4.06, 9.14), (0.61, 0.91, 1.43, 2.01, 2.78)
METHODS = {"P": (1.43, 1.40), "Q": (6.1, 2.20), "R": (20.0, 2.95)}  # KL and gold
NEAR = 0.02  # an answer may differ by this much: the table is rounded


def three_methods(*, P: object, Q: object, R: object) -> Result:
    """Check the answers of exercise 3.

    Args:
        P, Q, R: the gold of each method minus the gold of the line at the same KL, a number; None
            if the line does not reach that KL.

    Returns:
        The Result. The message says which answer is wrong, and why if it is a common mistake.
    """
    for name, answer in {"P": P, "Q": Q, "R": R}.items():
        problem = _problem(*METHODS[name], answer)
        if problem:
            return Result(False, f"{name}: {problem}")
    return Result(True, "P is above the line, Q is below it, and R is beyond its end.")


def _problem(kl: float, gold: float, answer: object) -> str:
    """What is wrong with an answer; "" if it is right."""
    if answer is ...:
        return "write a number in place of the dots, or None."
    reached = kl <= LINE_KL[-1]
    if answer is None:
        return f"the line reaches {kl} nats, so you can compare." if reached else ""
    if isinstance(answer, bool) or not isinstance(answer, Real):
        return "the answer must be a number, or None."
    if not reached:
        return f"the line ends at {LINE_KL[-1]} nats. Nobody knows how it goes on."
    given = float(answer)
    at = next(i for i, point in enumerate(LINE_KL) if point > kl)
    (x0, x1), (y0, y1) = LINE_KL[at - 1 : at + 1], LINE_GOLD[at - 1 : at + 1]
    way = math.log(kl / x0) / math.log(x1 / x0)
    height = y0 + way * (y1 - y0)
    mistakes = {
        "the sign is wrong. Take the gold of the method minus that of the line.": height - gold,
        "this is the gold of the line. Subtract it from the gold of the method.": height,
        "the line is straight on a logarithmic axis. You went straight in the KL itself.": (
            gold - y0 - (kl - x0) / (x1 - x0) * (y1 - y0)
        ),
        "you compared with the point at the left. Go half-way to the next one.": gold - y0,
        "you compared with the point at the right. Go only half-way to it.": gold - y1,
    }
    if abs(given - (gold - height)) <= NEAR:
        return ""
    message = min(mistakes, key=lambda name: abs(given - mistakes[name]))  # the nearest one
    if abs(given - mistakes[message]) <= NEAR:
        return message
    return (
        f"not this number. Which two points of the line lie on either side of {kl} nats? "
        "What is the mean of their gold?"
    )
