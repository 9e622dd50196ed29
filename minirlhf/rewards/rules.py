"""Verifiable rewards for arithmetic: rules that need no reward model.

    right_answer           1 if the chain of equations ends in the right number
    right_steps            share of its links that are true
    right_with_calculator  1 if the answer after the last call is right

They follow TRL's contract: lists in, one number per completion out.
"""

from minirlhf.runtime import check
from minirlhf.tasks import calculator
from minirlhf.tasks.arithmetic import answer_of, solution, steps_right


def right_answer(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
    """1.0 if the response ends in the value of the prompt's expression, else 0.0.

    The steps that lead there do not matter.

    Raises:
        ValueError: a prompt is not a problem, so that no response could be right.
    """
    wanted = _answers(prompts)
    return [
        float(answer_of(text) == answer) for text, answer in zip(completions, wanted, strict=True)
    ]


def right_steps(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
    """Share of the links that follow from the one before by one correct operation.

    Whether the chain reaches its final value does not matter.
    """
    links = [steps_right(prompt, text) for prompt, text in zip(prompts, completions, strict=True)]
    return [sum(row) / len(row) for row in links]


def right_with_calculator(
    prompts: list[str], completions: list[str], **columns: object
) -> list[float]:
    """1.0 if the answer after the last call, or after ~, is the value of the expression, else 0.0.

    Whether the calculator was called, and for what, does not matter.

    Raises:
        ValueError: a prompt is not a problem, so that no response could be right.
    """
    return [
        float(calculator.answer_of(text) == answer)
        for text, answer in zip(completions, _answers(prompts), strict=True)
    ]


def _answers(prompts: list[str]) -> list[int | None]:
    """The values of the prompts' expressions."""
    wanted = [answer_of(solution(prompt.removesuffix("="))) for prompt in prompts]
    for prompt, answer in zip(prompts, wanted, strict=True):
        check(
            "prompt",
            prompt,
            answer is not None,
            "an expression of whole numbers, +, -, * and brackets that never goes below 0, then =",
        )
    return wanted
