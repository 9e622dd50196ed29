"""The checker of three comparisons at equal KL (lesson 06b, exercise 3)."""

import math

import numpy as np
import pytest

from minirlhf import experiments
from minirlhf.classroom import check
from minirlhf.classroom.exercise import LONGEST
from minirlhf.classroom.lessons.lesson_06b import LINE_GOLD, LINE_KL, METHODS

RIGHT = {"P": 0.23, "Q": -0.195, "R": None}


def test_the_right_answers_pass():
    assert check.three_methods(**RIGHT)
    exact = {  # half-way on the logarithmic axis, by hand
        "P": 1.40 - (0.91 + 1.43) / 2,
        "Q": 2.20 - (2.01 + 2.78) / 2,
    }
    assert check.three_methods(**exact, R=None)
    assert check.three_methods(P=np.float32(0.23), Q=np.float64(-0.195), R=None)


@pytest.mark.parametrize(
    ("name", "answer", "message"),
    [
        ("P", ..., "in place of the dots"),
        ("P", -0.23, "the sign is wrong"),
        ("P", 1.17, "the gold of the line"),
        ("P", 1.40 - (0.91 + 0.52 * 0.43 / 1.04), "logarithmic"),
        ("P", 0.49, "at the left"),
        ("P", -0.03, "at the right"),
        ("P", None, "the line reaches 1.43 nats"),
        ("P", "above", "a number, or None"),
        ("P", True, "a number, or None"),
        ("P", math.nan, "not this number"),
        ("Q", 0.195, "the sign is wrong"),
        ("Q", 0.19, "at the left"),
        ("Q", 2.2 - (2.01 + 2.04 * 0.77 / 5.08), "logarithmic"),
        ("Q", 5.0, "Which two points"),
        ("R", 0.17, "the line ends at 9.14"),
    ],
)
def test_a_wrong_answer_is_named(name, answer, message):
    result = check.three_methods(**RIGHT | {name: answer})
    assert not result and result.message.startswith(f"{name}: ") and message in result.message
    assert len(result.message) <= LONGEST


def test_the_line_is_that_of_the_record():
    runs = experiments.results("leash").groupby("variant")[["kl", "gold"]].mean()
    line = runs.loc[["kl_coef 2", "kl_coef 1", "kl_coef 0.5", "kl_coef 0.25", "kl_coef 0.1"]]
    assert line.kl.round(2).tolist() == list(LINE_KL)
    assert line.gold.round(2).tolist() == list(LINE_GOLD)
    assert METHODS["R"][1] > max(LINE_GOLD) and METHODS["R"][0] > LINE_KL[-1]
