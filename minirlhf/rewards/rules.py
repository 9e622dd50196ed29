"""Rewards that are rules: what can be verified needs no model of what people like. TRL's contract: lists in, one number a completion.

right_answer: 1 if the chain of equations ends in the right number        right_steps: share of its links that are true
"""

from minirlhf.runtime import check
from minirlhf.tasks.arithmetic import answer_of, solution, steps_right


def right_answer(prompts: list[str], completions: list[str], **columns) -> list[float]:
    """1 where the response ends in the value of the prompt's expression, else 0; how it got there does not matter.

    Raises:
        ValueError: a prompt that is no problem: no response to it could be right.
    """
    wanted = [answer_of(solution(prompt.removesuffix("="))) for prompt in prompts]
    for prompt, answer in zip(prompts, wanted, strict=True):
        check(
            "prompt",
            prompt,
            answer is not None,
            "an expression of whole numbers, +, -, * and brackets that never goes below 0, and =",
        )
    return [
        float(answer_of(text) == answer) for text, answer in zip(completions, wanted, strict=True)
    ]


def right_steps(prompts: list[str], completions: list[str], **columns) -> list[float]:
    """The share of the links that follow from the one before, each by one operation; whether the chain is at its end does not matter."""
    links = [steps_right(prompt, text) for prompt, text in zip(prompts, completions, strict=True)]
    return [sum(row) / len(row) for row in links]
