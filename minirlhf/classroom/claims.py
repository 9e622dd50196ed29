"""Checks for the numbers that the lessons quote.

A lesson states a result with `claim`, which fails the notebook if the result does not hold. In a
full run the evidence is computed. With FAST=1 it is read from the recorded experiments.
"""

import os
from collections.abc import Callable

from minirlhf.experiments.records import load_results
from minirlhf.runtime import check

FAST = os.environ.get("FAST", "") not in ("", "0")

__all__ = ["FAST", "ClaimFailed", "claim", "evidence", "load_results"]


class ClaimFailed(AssertionError):
    """The evidence does not support the sentence."""


def claim(
    sentence: str, holds: bool | Callable[[], bool], *, evidence: str, seeds: int = 1
) -> None:
    """Print the sentence with its evidence if it holds; fail the notebook if it does not.

    Args:
        sentence: what the lesson says.
        holds: whether the evidence supports it, or a function that finds out.
        evidence: the numbers, with their intervals.
        seeds: how many seeds were run.

    Raises:
        ClaimFailed: the sentence does not hold.
        ValueError: `evidence` is empty, or `seeds` is below 1.
        TypeError: `holds` is neither true nor false. A list or a function would count as true and
            support any sentence.
    """
    holds = holds() if callable(holds) else holds
    if holds not in (True, False):
        raise TypeError(f"A claim holds or does not; got {holds!r} for: {sentence}")
    check("evidence", evidence, bool(evidence.strip()), "the numbers behind the sentence")
    check("seeds", seeds, seeds >= 1, "1 or more")
    if not holds:
        raise ClaimFailed(
            f"Does not hold: {sentence} Evidence: {evidence} ({seeds} seed{'s' * (seeds != 1)})."
        )
    print(f"\u2713 {sentence}  [{evidence}; {seeds} seed{'s' * (seeds != 1)}]")


def evidence(live: Callable[[], list[dict]], name: str) -> list[dict]:
    """The rows behind a claim: computed by `live`, or read from the record with FAST=1."""
    return load_results(name) if FAST else live()
