"""Options of step-dpo, prm and agent: the files of the reader's own, steps, and iterations."""

from pathlib import Path
from typing import Annotated

from minirlhf.cli.limits import share, whole
from minirlhf.cli.options import DATA, LOSS, MODEL, OPTIMISER, option

METHODS = ("grpo", "dpo", "kto")  # of agent

JudgeFile = Annotated[
    Path | None,
    option(
        MODEL,
        "Python file with a function right_step(prompt, before, step), which returns True or "
        "False. Needed with --dataset.",
        show_default="the rules of arithmetic",
    ),
]
ToolFile = Annotated[
    Path | None,
    option(
        MODEL,
        "Python file with CALL_END, the text of the token that ends a call, and a function "
        "run(text), which answers a call. Needed with --dataset.",
        show_default="a calculator",
    ),
]
StepEnd = Annotated[
    str | None,
    option(
        DATA,
        r"Text that ends a step; \n is a line break. One token of the tokenizer must end in it.",
        show_default=r"=; \n with --dataset",
    ),
]
ErrorRate = Annotated[
    float | None,
    option(
        DATA,
        "Share of the calculator's results that are wrong, from 0 to 1.",
        show_default="0",
        callback=share,
    ),
]
Iterations = Annotated[
    int,
    option(
        OPTIMISER,
        "Parts of the run, 1 or more. dpo and kto sample responses at the start of each. The "
        "policy is judged after each.",
        callback=whole(1),
    ),
]
Method = Annotated[
    str,
    option(
        LOSS,
        "grpo: rewards. dpo: the best against the worst response to a prompt. kto: single "
        "responses, right where the reward is above 0.",
    ),
]
ReferenceFollows = Annotated[
    bool,
    option(
        LOSS,
        "After each iteration the reference becomes the policy. Only with --method dpo or kto.",
        "--reference-follows",
    ),
]


def step_end_of(given: str | None, dataset: str) -> str:
    r"""The text that ends a step, with line breaks in the place of \n."""
    if given is None:
        return "\n" if dataset else "="
    return given.replace("\\n", "\n")
