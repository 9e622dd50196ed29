"""The helper that compares numbers in prose, and: every lesson uses it."""

import ast
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from minirlhf.classroom.course import notebook_sources
from tests.claims.prose import Number, lesson, numbers_of, other

TEXT = """# 42 · A made lesson

**You need** lessons 04 and 05. 35 minutes to read, 60 for the exercises.

## 3. The record (2017)

With *eight* epochs the clip
decides. Without it the KL is about 7.2 nats instead of 4.1, and gold falls
by -0.04 in 31 % of 1,076 films.

$$ x = 5 $$

| method | gold |
|---|---|
| PPO | 1.43 |

- Take `kl_coef=0.5` and $\\epsilon = 0.2$: see section 4, GPT-2, k3 and best-of-16.

1. The 95 % interval is [0.6, 1.0].
"""


@pytest.fixture
def made(tmp_path):
    path = tmp_path / "42_made.ipynb"
    cells = [
        new_markdown_cell(TEXT),
        new_code_cell("x = 99"),
        new_markdown_cell("**References.** Volume 7, pages 12 to 99."),
    ]
    nbformat.write(new_notebook(cells=cells), path)
    return path


def claims(said, *, kl=7.2):
    said("decides. Without it the KL is about", kl, torch.tensor(4.06), -0.0351, 0.309, 1076)
    said("PPO |", np.float64(1.4349))
    said("interval is", 0.6, 1)


def test_a_lesson_whose_numbers_are_right_passes(made):
    with lesson(made) as said:
        claims(said)


@pytest.mark.parametrize("kl", [7.14, 7.26, -7.2, 4.1])
def test_a_wrong_number_fails(made, kl):
    with pytest.raises(AssertionError, match='the KL is about" the lesson says 7.2; computed'):
        with lesson(made) as said:
            claims(said, kl=kl)


@pytest.mark.parametrize(
    "words, values, wrong",
    [
        ("No such words", [1], "does not say"),
        ("the", [1], "2 times; give more words"),
        ("interval is", [0.6, 1.0, 2], "has no number for 2"),
        ("and gold falls by", [0.04], "says -0.04"),
        ("decides. Without it", [False], "does not hold"),
        ("decides. Without it", [np.bool_(False)], "does not hold"),
        ("decides. Without it", [torch.tensor(False)], "does not hold"),
    ],
)
def test_what_the_prose_does_not_say_fails(made, words, values, wrong):
    with pytest.raises(AssertionError, match=wrong):
        with lesson(made) as said:
            said(words, *values)


def test_a_number_that_nothing_checks_fails(made):
    with pytest.raises(AssertionError, match="nothing checks these numbers") as error:
        with lesson(made) as said:
            said("decides. Without it the KL is about", 7.2, 4.1, -0.04)
    found = [line.split(" in: ")[0] for line in str(error.value).splitlines()[1:]]
    assert found == ["31 %", "1,076", "1.43", "0.6", "1.0"]


@pytest.mark.parametrize(
    "written, changed",
    [("7.2", "7.7"), ("31 %", "36 %"), ("1,076", "1,071"), ("3/4", "8/4"), ("2e-3", "7e-3")]
    + [("-0.04", "-0.09"), ("two", "seven"), ("Twelve", "six"), ("0", "5")],
)
def test_another_number_is_written_in_the_same_way(written, changed):
    (number,) = numbers_of(written)
    assert other(number) == changed
    (new,) = numbers_of(changed)
    assert not new.equals(number.value)


def test_each_number_is_changed_in_a_copy_and_its_check_fails(made, monkeypatch):
    with lesson(made) as said:
        claims(said)
    assert said.unnoticed() == []
    checked = [n for p in said.paragraphs for n in p.numbers if n.checked]
    assert len(checked) == 8
    monkeypatch.setattr(Number, "equals", lambda number, value: True)  # a check that cannot fail
    assert len(said.unnoticed()) == 8
    with pytest.raises(AssertionError, match="no check fails if one of these changes"):
        with lesson(made) as said:
            claims(said)


def test_a_number_written_as_a_word_may_be_checked(made):
    with lesson(made) as said:
        said("With", 8)
        claims(said)
    with pytest.raises(AssertionError, match="says 7.2; computed: 9"):
        with lesson(made) as said:
            said("With", 9)


def test_a_comparison_reads_no_number(made):
    with lesson(made) as said:
        said("Without it the KL is about", True, 7.2)
        claims(said)


@pytest.mark.parametrize(
    "text, values",
    [
        ("12 of 76 films", [12, 76]),
        ("from 0.2 to 0.45, or 2-4 times", [0.2, 0.45, 2, 4]),
        ("\u22120.2 and +0.3 and (-1)", [-0.2, 0.3, -1]),
        ("1e-5, 3/4, 12.5% and 5 %", [1e-5, 0.75, 0.125, 0.05]),
        ("a policy of 70B parameters and 2048 tokens", [70, 2048]),
        ("all three seeds; Two of twelve", [3, 2, 12]),
        ("**4. Find the bug** *(medium, 15 minutes)*. Mend 3 lines.", [3]),
        ("in lessons 04, 05 and 11b, section 2; Schulman 2017", []),
        ("GPT-2, k3, pass@16, best-of-4, top-p, R2", []),
        ("TRL 1.12 and [the page](https://a.b/12)", []),
        ("x $a = 3$ and `y = 4` and <summary>1. Why 5?</summary>", [1, 5]),
        ("A sentence that ends with 5.", [5]),
    ],
)
def test_numbers_are_read(text, values):
    assert [n.value for n in numbers_of(text)] == pytest.approx(values)


@pytest.mark.parametrize(
    "text, value, equal",
    [
        ("1.43", 1.4349, True),
        ("1.43", 1.4351, False),
        ("1.40", 1.41, False),
        ("1.4", 1.41, True),
        ("7", 7.49, True),
        ("7", 7.51, False),
        ("31 %", 0.314, True),
        ("31 %", 0.316, False),
        ("31 %", 31, False),
        ("1e-5", 1.4e-5, True),
        ("1e-5", 1.6e-5, False),
        ("3/4", 0.75, True),
        ("3/4", 0.76, False),
        ("1,076", 1076, True),
    ],
)
def test_a_number_equals_what_rounds_to_it(text, value, equal):
    (number,) = numbers_of(text)
    assert number.equals(value) == equal


def test_every_lesson_has_its_claims():
    missing = [s.stem for s in notebook_sources() if not opens(s.stem.split("_")[0])]
    assert missing == []


def opens(number):
    """Whether tests/claims/test_lesson_NN.py has `with lesson("NN")` in a test."""
    path = Path(__file__).parent / f"test_lesson_{number}.py"
    return path.is_file() and opened_in(path.read_text(encoding="utf-8"), number)


def opened_in(code, number):
    return any(
        ast.unparse(item.context_expr) == f"lesson('{number}')"
        for test in ast.walk(ast.parse(code))
        if isinstance(test, ast.FunctionDef) and test.name.startswith("test_")
        for node in ast.walk(test)
        if isinstance(node, ast.With)
        for item in node.items
    )


def test_a_file_without_the_lesson_is_found():
    assert opened_in('def test_x():\n    with lesson("06") as said:\n        pass', "06")
    assert not opened_in('def test_x():\n    with lesson("07") as said:\n        pass', "06")
    assert not opened_in('def helper():\n    with lesson("06") as said:\n        pass', "06")
    assert not opens("no_such_lesson")
