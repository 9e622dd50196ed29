"""Arithmetic in steps: the verifier by hand and against Python's own evaluation, splits, tokens, rules."""

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minirlhf.rewards.rules import right_answer, right_steps
from minirlhf.tasks.arithmetic import (
    LARGEST,
    USUAL,
    answer_of,
    checked_steps,
    draw_problems,
    labelled_steps,
    planted_error,
    problems,
    reductions,
    rows,
    solution,
    split_of,
    step_tokenizer,
    steps_right,
)


@pytest.mark.parametrize(
    "expression, after",
    [
        ("3+4", ["7"]),
        ("9-4+1", ["5+1"]),
        ("2+3*4", ["2+12"]),
        ("2*3+4*5", ["6+4*5", "2*3+20"]),
        ("(7+5)*3-9", ["12*3-9"]),
        ("8-(2+3)", ["8-5"]),
        ("(2+3)*(4+5)", ["5*(4+5)", "(2+3)*9"]),
        ("2*3*4", ["6*4"]),
        ("\u0663+4", []),
        ("9" * 5000 + "+1", []),
        ("3-9", []),
        ("7", []),
        ("", []),
        ("3+", []),
        ("+3", []),
        ("a+b", []),
        ("3+-4", []),
        ("(3)", []),
        ("12 + 3", []),
        ("3/4", []),
    ],
)
def test_one_operation_by_hand(expression, after):
    assert reductions(expression) == after


@pytest.mark.parametrize(
    "response, right",
    [
        ("12*3-9=36-9=27", [True, True, True]),
        ("12*3-9=35-9=26", [True, False, True]),  # one error, and right steps after it
        ("12*3-9=27", [True, False]),  # two operations at once
        ("36-9=27", [False, True]),
        ("12*3-9=36-9=27=27", [True, True, True, False]),
        ("", [False]),
        ("=27", [False, False]),
        ("12*3-9==27", [True, False, False]),
    ],
)
def test_steps_right_by_hand(response, right):
    assert steps_right("(7+5)*3-9=", response) == right


@pytest.mark.parametrize(
    ("response", "found"),
    [
        ("8+5-6=13-6=7", [True, True, True]),
        ("8+5-6=14-6=8", [True, False]),  # nobody reads on
        ("7", [False]),
        ("8+5-6=13-6=", [True, True, False]),  # an end where a step should stand
        ("8+5-6=13-6", [True, False]),  # the same step without =: the policy stopped too early
    ],
)
def test_a_checker_stops_at_the_first_wrong_step(response, found):
    assert checked_steps("8+5-2*3=", response) == found


def test_the_steps_after_the_first_wrong_one_have_no_label():
    row = labelled_steps("12+10-1+7=", "22-1+7=20+7=27")
    assert row["prompt"] == "12+10-1+7=" and row["completions"] == ["22-1+7", "20+7", "27"]
    assert row["labels"] == [1.0, 0.0, None]
    assert labelled_steps("12+10-1+7=", "22-1+7=21+7=28")["labels"] == [1.0, 1.0, 1.0]
    # the first step has an = too many, so nobody reads the empty step behind it
    assert labelled_steps("8+5=", "13=")["labels"] == [0.0, None]


@pytest.mark.parametrize(
    "response, answer",
    [
        ("12*3=36", 36),
        ("007", 7),
        ("~36", 36),
        ("~", None),
        ("3=~4", None),
        ("12*3", None),
        ("", None),
        ("3=", None),
        ("3=-4", None),
        ("²", None),
        ("9" * 10_000, None),
    ],
)
def test_the_answer_is_the_number_at_the_end(response, answer):
    assert answer_of(response) == answer


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_every_solution_agrees_with_python(split):
    found = problems(split, 400, seed=3) + problems(split, 100, seed=3, levels=(5,))
    assert len({p.expression for p in found}) == 500
    for problem in found:
        chain = [problem.expression, *solution(problem.expression).split("=")]
        assert {eval(link) for link in chain} == {problem.answer}
        assert (
            all(steps_right(problem.prompt, solution(problem.expression)))
            and len(chain) - 1 == {1: 1, 2: 2, 3: 2, 4: 3, 5: 3}[problem.level]
        )
        assert max(int(n) for link in chain for n in re.findall(r"\d+", link)) <= LARGEST
        assert split_of(problem.expression) == split


def test_splits_are_disjoint_and_levels_are_balanced():
    drawn = {
        split: {p.expression for p in problems(split, 1500, seed=seed)}
        for seed, split in enumerate(("train", "val", "test"))
    }
    assert (
        not drawn["train"] & drawn["test"]
        and not drawn["train"] & drawn["val"]
        and not drawn["val"] & drawn["test"]
    )
    stream = draw_problems("train", seed=0)
    counts = [0] * (len(USUAL) + 1)
    for _ in range(2000):
        counts[next(stream).level] += 1
    assert min(counts[1:]) > 2000 / len(USUAL) * 0.85
    assert {p.level for p in problems("test", 50, levels=(2, 4))} == {2, 4}
    for wrong in (
        {"split": "dev", "count": 1},
        {"split": "test", "count": 0},
        {"split": "test", "count": 1, "levels": (7,)},
    ):
        with pytest.raises(ValueError, match="it must be"):
            problems(**wrong)


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="0123456789+-*()=", max_size=24))
def test_any_text_can_be_judged_and_reductions_keep_the_value(text):
    steps_right("3+4=", text), answer_of(text)
    for after in reductions(text):
        if re.fullmatch(r"(?!.*(?<!\d)0\d)[(]*\d+([-+*][(]*\d+[)]*)*", text) and text.count(
            "("
        ) == text.count(")"):
            try:
                value = eval(text)
            except SyntaxError:
                continue
            assert eval(re.sub(r"(?<!\d)0+(?=\d)", "", after)) == value


def test_each_character_is_one_token_and_decodes_back():
    tokenizer, text = step_tokenizer(), "(7+5)*3-9=12*3-9=36-9=27"
    ids = tokenizer(text).input_ids
    assert (
        len(ids) == len(text)
        and tokenizer.decode(ids) == text
        and len(tokenizer) == 18
        and 0 not in ids
    )


def test_rows_of_problems_and_their_rewards():
    data = rows(problems("test", 20))
    assert set(data.column_names) == {"prompt", "completion", "answer", "level"}
    given = {"prompts": list(data["prompt"]), "completions": list(data["completion"])}
    assert right_answer(**given) == right_steps(**given, answer=data["answer"]) == [1.0] * 20
    mixed = rows(problems("test", 400, levels=(2, 3, 4)), at_once=0.75)
    short = sum(text.startswith("~") for text in mixed["completion"]) / 400
    assert (
        right_answer(list(mixed["prompt"]), list(mixed["completion"])) == [1.0] * 400
        and 0.68 < short < 0.82
    )
    assert right_answer(["3+4=", "3+4=", "3+4="], ["7", "8", "2+5=7"]) == [1.0, 0.0, 1.0]
    assert right_steps(["3+4="] * 3, ["7", "8", "2+5=7"]) == [1.0, 0.0, 0.5]
    for prompt in (
        "the film\n",
        "3-9=",
        "",
    ):  # an invalid prompt is refused instead of scored
        with pytest.raises(
            ValueError, match="prompt is .* it must be an expression of whole numbers"
        ):
            right_answer([prompt], ["no number"])


def test_a_planted_error_makes_exactly_one_step_wrong():
    draw, places = random.Random(0), set()
    for problem in problems("train", 200, levels=(2, 3, 4)):
        wrong, place = planted_error(problem.expression, draw)
        right = solution(problem.expression)
        assert (
            wrong[:place] == right[:place]
            and wrong[place] != right[place]
            and wrong[place].isdigit()
        )
        assert (
            steps_right(problem.prompt, wrong).count(False) == 1
        )  # this step holds the changed digit
        assert steps_right(problem.prompt, wrong)[wrong[:place].count("=")] is False
        assert answer_of(wrong) not in (None, problem.answer)
        places.add((wrong[:place].count("="), wrong.count("=")))
    assert {(0, 1), (1, 1), (2, 2)} <= places  # errors in first and in last steps
    assert planted_error("3+4*2", random.Random(5)) == planted_error("3+4*2", random.Random(5))
    with pytest.raises(ValueError, match="No single digit"):
        planted_error("7", draw)
