"""How much labels agree: with the crowd, with the same person's own, between two people."""

from itertools import combinations
from typing import Any

import pandas as pd
from scipy.stats import binomtest

COLUMNS = ["comparison", "annotator", "other", "pairs", "agree", "agreement", "low", "high", "ties"]


def label_agreement(labels: pd.DataFrame) -> pd.DataFrame:
    """How often labels agree with the crowd, with the same person's repeats, and between people.

        agreement = agree / pairs

    `pairs` counts the comparisons in which both sides chose a response, and `agree` those in which
    both chose the same one. A comparison in which one side or both said "tie" is in the column
    `ties` and in no other. So a person who calls every close pair a tie has a higher agreement:
    read `ties` beside it. A skip is no answer and is counted nowhere.

    - "with the crowd": the crowd chooses the response with the higher mean rating. Equal means are
      a tie. Pairs without ratings are left out.
    - "with oneself": the first answer to a pair, against the answer when it came again with its
      sides swapped. A person who always chooses the left side has an agreement of 0.
    - "between people": the answers of two people to the same pair.

    Repeats count only in "with oneself". So each pair counts once in the other two.

    Args:
        labels: a row for each choice, as `tasks.read_labels` returns it.

    Returns:
        A row for each person and each kind of comparison, and for each two people. `low` and `high`
        are a 95 % confidence interval of the agreement (Wilson's; it takes the pairs as
        independent). Without pairs agreement, low and high are NaN.
    """
    answers = labels[labels.choice != "skip"]
    first, again = (
        {
            name: dict(zip(rows.pair, rows.itertuples(), strict=True))
            for name, rows in answers[answers.repeat == repeat]
            .drop_duplicates(["annotator", "pair"])
            .groupby("annotator")
        }
        for repeat in (False, True)
    )
    names = sorted(labels.annotator.unique())
    compared = []  # (comparison, annotator, other, [(answer, answer), ...])
    for name in names:
        rated = [
            row for row in first.get(name, {}).values() if pd.notna(row.left_mean + row.right_mean)
        ]
        answered = [(_text(row), _crowd(row)) for row in rated]
        compared.append(("with the crowd", name, "crowd", answered))
    for name in names:
        answered = _both(first.get(name, {}), again.get(name, {}))
        compared.append(("with oneself", name, name, answered))
    for name, other in combinations(names, 2):
        answered = _both(first.get(name, {}), first.get(other, {}))
        compared.append(("between people", name, other, answered))
    return pd.DataFrame([_row(*entry) for entry in compared], columns=COLUMNS)


def _text(row: Any) -> str | None:
    """The response that a person chose; None for a tie."""
    return None if row.choice == "tie" else getattr(row, row.choice)


def _crowd(row: Any) -> str | None:
    """The response with the higher mean rating; None for equal means."""
    if row.left_mean == row.right_mean:
        return None
    return row.left if row.left_mean > row.right_mean else row.right


def _both(one: dict, two: dict) -> list[tuple[str | None, str | None]]:
    """The two answers to each pair that both have answered."""
    return [(_text(one[pair]), _text(two[pair])) for pair in one if pair in two]


def _row(comparison: str, annotator: str, other: str, answers: list[tuple]) -> dict:
    decided = [(a, b) for a, b in answers if a is not None and b is not None]
    pairs, agree = len(decided), sum(a == b for a, b in decided)
    share = low = high = float("nan")
    if pairs:
        share = agree / pairs
        low, high = binomtest(agree, pairs).proportion_ci(method="wilson")
    ties = len(answers) - pairs
    return dict(
        zip(
            COLUMNS,
            (comparison, annotator, other, pairs, agree, share, low, high, ties),
            strict=True,
        )
    )
