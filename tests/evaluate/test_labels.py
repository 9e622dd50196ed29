"""Agreement of labels, worked by hand."""

import math

import pandas as pd
import pytest

from minirlhf.evaluate import label_agreement


def answer(annotator, pair, choice, left_mean=1.0, right_mean=-1.0, repeat=False):
    """An answer to a pair with a good response and a bad one; a repeat has the good one right."""
    sides = ("bad", "good") if repeat else ("good", "bad")
    means = (right_mean, left_mean) if repeat else (left_mean, right_mean)
    return {
        "annotator": annotator,
        "pair": pair,
        "repeat": repeat,
        "choice": choice,
        "left": f"{pair} {sides[0]}",
        "right": f"{pair} {sides[1]}",
        "left_mean": means[0],
        "right_mean": means[1],
    }


def table(*answers):
    return label_agreement(pd.DataFrame(answers)).set_index(["comparison", "annotator"])


BY_HAND = (
    answer("anna", "A", "left"),
    answer("anna", "B", "right"),
    answer("anna", "C", "tie"),
    answer("anna", "D", "left", left_mean=0.5, right_mean=0.5),  # the crowd's tie
    answer("anna", "E", "skip"),
    answer("anna", "A", "right", repeat=True),  # the same response as before
    answer("anna", "B", "right", repeat=True),  # the same side: the other response
    answer("anna", "C", "left", repeat=True),
    answer("ben", "A", "left"),
    answer("ben", "B", "left"),
    answer("ben", "D", "left", left_mean=0.5, right_mean=0.5),
    answer("ben", "E", "right"),
)


def test_agreement_by_hand():
    found = table(*BY_HAND)
    counts = found[["pairs", "agree", "ties"]].to_dict("index")
    assert {key: (*row.values(),) for key, row in counts.items()} == {
        # A agrees, B does not. C is her tie, D the crowd's. E was skipped.
        ("with the crowd", "anna"): (2, 1, 2),
        # A and B agree, E does not, D is the crowd's tie.
        ("with the crowd", "ben"): (3, 2, 1),
        # A agrees, B does not, C was a tie the first time.
        ("with oneself", "anna"): (2, 1, 1),
        ("with oneself", "ben"): (0, 0, 0),
        # A and D agree, B does not. E was skipped by anna, C was not shown to ben.
        ("between people", "anna"): (3, 2, 0),
    }
    assert found.other.tolist() == ["crowd", "crowd", "anna", "ben", "ben"]
    shares = found.agreement.tolist()
    assert shares[:3] == [1 / 2, 2 / 3, 1 / 2] and math.isnan(shares[3]) and shares[4] == 2 / 3


def test_the_interval_is_wilson_s():
    # Where all of n agree, Wilson's interval goes from n / (n + z^2) to 1. For n = 4 and z = 1.96
    # the lower end is 4 / 7.84 = 0.51.
    row = table(*(answer("anna", pair, "left") for pair in "ABCD")).iloc[0]
    assert (row.agreement, row.high) == (1.0, 1.0)
    assert row.low == pytest.approx(0.5101, abs=1e-4)


def test_always_the_left_side_never_agrees_with_itself():
    found = table(*(answer("anna", p, "left", repeat=r) for p in "ABC" for r in (False, True)))
    row = found.loc["with oneself", "anna"]
    assert (row.pairs, row.agree, row.low) == (3, 0, 0.0)


def test_a_repeat_counts_only_with_oneself():
    found = table(answer("anna", "A", "left"), answer("anna", "A", "left", repeat=True))
    assert found.loc["with the crowd", "anna"].pairs == 1
    assert found.loc["with oneself", "anna"].pairs == 1


def test_a_tie_on_one_side_or_both_is_a_tie():
    choices = (("tie", "tie"), ("tie", "left"), ("right", "tie"), ("right", "right"))
    found = table(
        *(
            answer(n, p, c[k])
            for k, n in enumerate("ab")
            for p, c in zip("ABCD", choices, strict=True)
        )
    )
    row = found.loc["between people", "a"]
    assert (row.ties, row.pairs, row.agree) == (3, 1, 1)


def test_pairs_without_ratings_are_not_compared_with_the_crowd():
    none = float("nan")
    found = table(*(answer(n, "A", "left", none, none) for n in ("anna", "ben")))
    row = found.loc["with the crowd", "anna"]
    assert (row.pairs, row.ties) == (0, 0) and math.isnan(row.agreement) and math.isnan(row.low)
    half = table(answer("anna", "A", "left", 1.0, none))
    assert half.loc["with the crowd", "anna"].pairs == 0
    assert found.loc["between people", "anna"].agreement == 1.0


def test_three_people_are_compared_in_twos():
    found = table(*(answer(name, "A", "left") for name in ("c", "a", "b")))
    people = found.loc[["between people"]].reset_index()
    assert list(zip(people.annotator, people.other, strict=True)) == [
        ("a", "b"),
        ("a", "c"),
        ("b", "c"),
    ]
