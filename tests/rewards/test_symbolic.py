"""Symbolic answers in a box, compared by math-verify; what it takes too lightly is refused."""

import importlib.util
import logging
import sys
import threading

import pytest

from minirlhf.rewards import same_symbolic_answer, symbolic_answer_reward

needs_math_verify = pytest.mark.skipif(
    importlib.util.find_spec("math_verify") is None,
    reason='math-verify is not installed: python -m pip install "math-verify>=0.9"',
)
EQUAL = [  # (given, wanted)
    (r"2\sqrt{3}", r"\sqrt{12}"), (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}"),
    ("(x+1)^2", "x^2 + 2x + 1"), (r"x = 2\sqrt3", r"2\sqrt{3}"), (r"\frac{\pi}{2}", r"\dfrac{\pi}{2}"),
    (r"\left(1, \sqrt{2}\right)", r"(1,\sqrt2)"), ("y = 2x + 1", "y = 1 + 2x"), ("42", "42.0"),
    (r"\{\sqrt2, 1\}", r"\{1, \sqrt{2}\}"), (r"\text{Paris}", "paris"), ("x=5", "5"), ("101_2", "101_2"),
    (r"\{(3,2+x),(1,4)\}", r"\{(1,4),(3,x+2)\}"), ("([x,2y),(1,y))", "([x,y+y),(1,y))"),
    (r"\theta = \pi/3", r"\theta=\frac{\pi}{3}"), (r"x \leq 2", r"x\le 2"), ("(y, 1 + x)", "(y,x+1)"),
    (r"(-\infty,1) \cup (2,\infty)", r"(-\infty, 1)\cup(2, \infty)"), (r"\frac{dy}{dx}", r"\frac{dy}{dx}"),
]  # fmt: skip
DIFFERENT = [  # what math-verify alone pays, or could be slow for, and what is plainly wrong
    ("2+3", "5"), ("6*7", "42"), (r"\log_2 8", "3"), (r"\int_0^1 x dx", "1/2"), ("4=5", "5"),
    (r"5\text{ million}", "5"), ("12pm", "12am"), ("0.333333", r"\frac13"), ("1.41421356", r"\sqrt2"),
    ("2X", "2x"), ("seat", "east"), ("101_2", "101"), ("101_3", "101_2"), ("1/3", "10:30"),
    ("1:3", "10:30"), ("2 3", "5"), (r"x + 2\,3", "x + 5"), ("y = 3x = 2x", "y = 2x"),
    (r"3\pi = 12\pi", r"12\pi"), (r"12\pi\text{ million}", r"12\pi"), (r"12\pi\%", r"12\pi"),
    (r"1, \sqrt2", r"(1,\sqrt2)"), (r"\{1, \sqrt2\}", r"(1,\sqrt2)"), (r"[1,\sqrt2)", r"(1,\sqrt2]"),
    (r"(\pi,\pi)", r"(2\pi,2\pi)"), ("(x,x)", "(2x,2x)"), ("f'", "f"), (r"2\sqrt{3}'", r"2\sqrt{3}"),
    (r"2\sqrt{3}, 5", r"2\sqrt{3}"), (r"\sqrt2 < x", r"x < \sqrt2"), (r"\sqrt{23}", r"\sqrt23"),
    ("x", "y"), ("2x", "x"), (r"x^{9^{9^9}}", "x"), ("x + 9^{99999}", "x"), ("(x^{99})^{999}", "x"),
    ("x!", "x"), ("x" + "+x-x" * 100, "x"), ("", "x"), (None, "x"), (r"\sqrt", "x"), ("y=y", "y=2y"),
    ("0x=0", "x=2x"), ("2y = 4x + 2", "y = 2x + 1"), ("3x - 7 = 29", "x = 12"), ("a=b", "b=a"),
    (r"\frac{dx}{dy}", r"\frac{dy}{dx}"), ("x'", "x''"), (r"A \in x", r"x \in A"), ("x! = 6", "x != 6"),
    (r"B \times A", r"A \times B"), (r"\sqrt{2+10^{-18}}", r"\sqrt{2}"), (r"x+10^{-999}", "x"),
    (r"\frac{1414213562373095}{1000000000000000}\sqrt{1}", r"\sqrt{2}"), ("2 d", "2d^{0}"), ("x1", "x"),
    (r"x\frac{33333333333333333}{100000000000000000}", r"\frac{x}{3}"), ("A + 2a", "a + 2A"),
    ("(x,y)", "(y,x)"), (r"\{x,x,y\}", r"\{x,y,y\}"), ("(1,000, x)", "(1,0,x)"), ("0.33x", "0.3x"),
    (r"x+\infty", r"2x+\infty"), (r"2\infty", r"\infty"), (r"\lim_{x\to 0} 2x", r"\lim_{x\to 0} x"),
    (r"\sqrt{5}+\sqrt{\frac{1}{10^{60}}}", r"\sqrt{5}"), ("b < a", "a < b"), ("x/2y", "xy/2"), (r"\frac{0}{0}x", "x"), (r"\frac{x}{0}", r"\frac{2x}{0}"),
    (r"\{(1,4),(3,2)\}", r"\{(1,2),(3,4)\}"), ("(x,y),(y+1,x)", "(x,y),(1+y,x)"), ("(x,y,2x)", "(x,y)"),
    ("5 to 3x", "3 to 5x"), ("3 mod 5x", "5 mod 3x"), ("2 if x", "x if 2"), ("2xy", "2yx"),
]  # fmt: skip


@needs_math_verify
@pytest.mark.parametrize("given, wanted", EQUAL)
def test_equal_answers_are_equal(given, wanted):
    assert same_symbolic_answer(given, wanted)


@needs_math_verify
@pytest.mark.parametrize("given, wanted", DIFFERENT, ids=lambda text: str(text)[:20])
def test_other_answers_are_not(given, wanted):
    assert not same_symbolic_answer(given, wanted)


@needs_math_verify
def test_only_a_marked_answer_is_paid():
    texts = [r"\boxed{(x+1)^2}", r"not \boxed{(x+1)^2}", r"\boxed{x} or \boxed{(x+1)^2}", "(x+1)^2"]
    rewards = symbolic_answer_reward([""] * 4, texts, answer=[r"So $\boxed{x^2+2x+1}$."] * 4)
    assert rewards == [1.0, 0.0, 0.0, 0.0]
    marked = ["#### (x+1)^2", "The answer is $(x+1)^2$.", r"\boxed{(x+1)^2} The answer is x"]
    assert symbolic_answer_reward([""] * 3, marked, answer=["x^2+2x+1"] * 3) == [1.0, 1.0, 0.0]


@needs_math_verify
def test_it_works_outside_the_main_thread():
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it says that its limits are off
    found = []
    thread = threading.Thread(
        target=lambda: found.append(same_symbolic_answer("(x+1)^2", "x^2+2x+1"))
    )
    thread.start()
    thread.join()
    assert found == [True]


def test_without_math_verify_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(
        ImportError, match=r'^symbolic_answer_reward needs .*`python -m pip install "math-verify'
    ):
        symbolic_answer_reward([""], [r"\boxed{x}"], answer=["x"])


@needs_math_verify
@pytest.mark.parametrize(
    "given, wanted",
    [
        ("A, C, B, D", "A, B, C, D"),
        ("1,3,2,4", "1,2,3,4"),
        ("A B", "B A"),
        ("1/2x", r"\frac{1}{2x}"),
        ("x/2y", r"\frac{x}{2y}"),
        (r"1/2\sqrt{3}", r"\frac{1}{2\sqrt{3}}"),
    ],
)
def test_another_order_and_unclear_fractions_are_not_paid(given, wanted):
    assert not same_symbolic_answer(given, wanted)
    assert same_symbolic_answer(wanted, wanted)
