"""What a reward function may return and do, beside the usual list of numbers."""

import decimal
import math

import numpy as np
import pytest
import torch
from datasets import Dataset

from minirlhf.models.forward import encode
from minirlhf.rewards.function import reward_function
from tests.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def batch():
    return encode(TOKENIZER, ["a", "b", "a"], ["x", "y", "z"])


def scores_of(values):
    return reward_function(lambda completions: values, TOKENIZER)(batch())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "values",
    [
        [True, False, True],
        torch.tensor([True, False, True]),
        [np.bool_(True), np.int8(0), np.float16(1)],
        [torch.ones((), dtype=torch.half, requires_grad=True), 0, 1],
        (x for x in (1, 0, 1)),
        np.array([1, 0, 1], dtype=object),
        [decimal.Decimal(1), 0, 1.0],
    ],
)
def test_truths_and_numbers_of_every_type_are_read(values):
    assert scores_of(values).tolist() == [1.0, 0.0, 1.0]


async def one_by_one(completions):
    for _ in completions:
        yield 1.0


@pytest.mark.parametrize(
    "values, said",
    [
        (
            [1.0, -math.inf, 2.0],
            "returned '-inf' for completion 2 of 3; it must be one finite number",
        ),
        (
            np.array([1.0, np.nan, 2.0]),
            "returned 'nan' for completion 2 of 3; .*, or None where it has",
        ),
        (torch.ones(1, 3), "returned 1 values for 3 completions"),
        (torch.ones(3, 2), r"returned '\[1.0, 1.0\]' for completion 1 of 3"),
        ([1j] * 3, "returned '1j' for completion 1 of 3"),
        (torch.ones(3).to_sparse(), r"returned tensor\(.* it must be one number for each"),
        (torch.ones(3, device="meta"), r"returned tensor\(.* it must be one number for each"),
        (one_by_one("abc"), "returned <async_generator .* it must be one number for each"),
        ({0: 1.0, 1: 1.0, 2: 1.0}, "it must be one number for each completion"),
        ([1.0] * 4, "returned 4 values for 3 completions"),
    ],
)
def test_what_is_not_one_finite_number_each_is_refused(values, said):
    with pytest.raises(ValueError, match=said) as caught:
        scores_of(values)
    assert "\n" not in str(caught.value)


def test_what_a_function_changes_in_its_arguments_no_later_call_sees():
    rows = Dataset.from_list([{"prompt": "a", "answer": ["1"]}, {"prompt": "b", "answer": ["2"]}])

    def counted(prompts, completions, completion_ids, answer):
        counts = [float(len(words)) for words in answer]
        answer[0].append("more")
        completion_ids[0].clear()
        prompts.clear()
        completions[:] = "changed"
        return counts

    score = reward_function(counted, TOKENIZER, rows)
    assert score(batch()).tolist() == score(batch()).tolist() == [1.0, 1.0, 1.0]


def ratio(text):
    return 1 / (text != "y")


@pytest.mark.parametrize(
    "alone, named",
    [
        (ratio, "The first completion for which it does is 2 of 3."),
        (lambda text: 1.0, "Called for one completion at a time, it does not raise this."),
        (lambda text: [][0], "Called for one completion at a time, it does not raise this."),
        (lambda text: 1 / 0, "Called for one completion at a time, it does not raise this."),
    ],
)
def test_the_first_exception_is_reported_whatever_later_calls_do(alone, named):
    def failing(completions):
        return list(map(ratio if len(completions) > 1 else alone, completions))

    with pytest.raises(ValueError) as error:
        reward_function(failing, tiny_tokenizer())(batch())
    assert "raised ZeroDivisionError: division by zero; it" in str(error.value)
    assert str(error.value).endswith(named)


def test_a_function_that_empties_its_arguments_and_fails_is_refused():
    def failing(prompts, completions):
        assert completions.pop() != "y", "no y"
        return 1 / 0 if completions else [1.0]

    said = "raised ZeroDivisionError: division by zero; .* Called for one completion at a time, it does not"
    with pytest.raises(ValueError, match=said):
        reward_function(failing, TOKENIZER)(batch())
