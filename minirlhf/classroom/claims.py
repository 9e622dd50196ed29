"""Checks for the numbers quoted in the lessons.

Exact statements are plain asserts in the notebook. Statistical statements go through `claim`. In a
full run their evidence is computed live. Under FAST=1 it is read from data/results. A committed
command recorded these results, and `make claims` repeats some of them.
"""

import os
from collections.abc import Callable

from minirlhf.experiments.records import load_results
from minirlhf.runtime import check

FAST = os.environ.get("FAST", "") not in ("", "0")

__all__ = ["FAST", "ClaimFailed", "claim", "evidence", "load_results"]


class ClaimFailed(AssertionError):
    """A statement in a lesson is not supported by its evidence."""


def claim(
    sentence: str, holds: bool | Callable[[], bool], *, evidence: str, seeds: int = 1
) -> None:
    """Check a statement of the prose: print it with its evidence if it holds, raise if it does not.

    Args:
        sentence: what the prose says.
        holds: whether the evidence supports the sentence, or a function that computes this.
        evidence: the numbers behind the sentence, with their intervals.
        seeds: the number of seeds behind the evidence.

    Raises:
        ClaimFailed: the sentence does not hold.
        ValueError: there is no evidence, or no seed.
        TypeError: `holds` is neither true nor false. A list, for example, is refused: a list with
            entries is always truthy, so it would support any sentence.
    """
    holds = holds() if callable(holds) else holds
    if holds not in (True, False):
        raise TypeError(f"holds is {holds!r}; it must be True or False, for: {sentence}")
    check("evidence", evidence, bool(evidence.strip()), "the numbers behind the sentence")
    check("seeds", seeds, seeds >= 1, "1 or more")
    if not holds:
        raise ClaimFailed(
            f"Not supported: {sentence} Evidence: {evidence} ({seeds} seed{'s' * (seeds != 1)})."
        )
    print(f"\u2713 {sentence}  [{evidence}; {seeds} seed{'s' * (seeds != 1)}]")


def evidence(live: Callable[[], list[dict]], name: str) -> list[dict]:
    """The rows behind a statistical claim.

    Args:
        live: computes the rows; called in a full run.
        name: the record in data/results that is read instead under FAST=1.
    """
    return load_results(name) if FAST else live()
