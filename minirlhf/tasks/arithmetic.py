"""Arithmetic in written steps: unlimited problems, whose steps and answers can be checked.

    prompt    (7+5)*3-9=
    response  12*3-9=36-9=27 EOS     written steps: one operation per step, in order of precedence
    or        ~27 EOS                the answer alone, without steps

A response is a chain of equations, and each link is either true or false. Numbers are whole and
never negative.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256

from datasets import Dataset
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from minirlhf.runtime import check

NUMERALS, EOS = "0123456789", "<|endoftext|>"
SYMBOLS = NUMERALS + "+-*()=~"
LEVELS = {  # a, b, c are numbers up to 20; d, e are digits
    1: ("a+b", "a-b"),
    2: ("a+b+c", "a+b-c", "a-b+c", "a-b-c"),
    3: ("(a+b)*d", "(a-b)*d", "a*d+b", "a*d-b", "a+b*d", "a-b*d"),
    4: ("(a+b)*d-c", "(a-b)*d+c", "a*d+b*e", "a*d-b*e", "a+b*d-c", "a-b+c*d"),
    5: ("a+b+c+d", "a+b+c-d", "a+b-c+d", "a-b+c+d", "a+b-c-d", "a-b+c-d"),
}
LONG = 6  # the level of problems of five to seven numbers, from `_long_expression`
USUAL = (1, 2, 3, 4)  # the levels that are drawn if nothing else is said
LARGEST = 60  # largest number allowed in a problem and its steps
NUMBER = re.compile("[0-9]{1,9}")
PRECEDENCE = {"+": 1, "-": 1, "*": 2}


@dataclass(frozen=True)
class Problem:
    """An expression and its value."""

    expression: str
    answer: int
    # 1: one operation; 2, 5: two, three of + and -; 3, 4: two, three with a *; 6: four to six
    level: int

    @property
    def prompt(self) -> str:
        """The expression and "="."""
        return self.expression + "="


def reductions(expression: str) -> list[str]:
    """All expressions that one operation can turn this one into, leftmost operation first.

    An operation may be done if its neighbours do not bind more tightly and if the operation on its
    left does not bind as tightly: 9-4+1 becomes 5+1 and not 9-5. A result below 0 is not allowed.

    Returns:
        A list; empty if no operation can be done, as for 3-9.
    """
    tokens, found = re.findall("[0-9]+|.", expression, re.DOTALL), []
    for i in range(1, len(tokens) - 1):
        a, operation, b = tokens[i - 1 : i + 2]
        if operation in PRECEDENCE and NUMBER.fullmatch(a) and NUMBER.fullmatch(b):
            left, right = (
                PRECEDENCE.get(tokens[j], 0) if 0 <= j < len(tokens) else 0 for j in (i - 2, i + 2)
            )
            value = {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[operation]
            if left < PRECEDENCE[operation] >= right and value >= 0:
                before, after = tokens[: i - 1], tokens[i + 2 :]
                # drop the brackets around a single number
                if before[-1:] == ["("] and after[:1] == [")"]:
                    before, after = before[:-1], after[1:]
                found.append("".join([*before, str(value), *after]))
    return found


def solution(expression: str) -> str:
    """The correct response in written steps, for example 12*3-9=36-9=27."""
    written = []
    while after := reductions(expression):
        expression = after[0]
        written.append(expression)
    return "=".join(written)


def steps_right(problem: str, response: str) -> list[bool]:
    """For each written step, whether one correct operation leads to it from the step before.

    A step after a wrong one can still be right: it only has to follow from the step before it.
    """
    chain = [problem.removesuffix("="), *response.split("=")]
    return [after in reductions(before) for before, after in zip(chain, chain[1:], strict=False)]


def right_step(prompt: str, before: str, step: str) -> bool:
    """Whether one correct operation leads to this step, and = follows if it is not the last.

    Args:
        prompt: for example 8+5-2*3=. before: the steps before this one, with their =, or "".
        step: the step with its end: 13-6= if another one follows, 7 if it is the last.
    """
    last = (prompt + before).removesuffix("=").rsplit("=", 1)[-1]
    written = step.removesuffix("=")
    is_last = NUMBER.fullmatch(written) is not None
    return written in reductions(last) and step.endswith("=") != is_last


def checked_steps(prompt: str, response: str) -> list[bool]:
    """What a checker finds who reads a response step by step and stops at the first wrong one."""
    steps = [step + "=" for step in response.split("=")]
    steps[-1] = steps[-1].removesuffix("=")
    before, found = "", []
    for step in steps:
        found.append(right_step(prompt, before, step))
        before += step
        if not found[-1]:
            break
    return found


def labelled_steps(prompt: str, response: str) -> dict:
    """A row of `train_prm`: the steps of a response, labelled up to the first wrong one.

    Returns:
        prompt; completions, the steps; labels: 1.0 for a right step, 0.0 for the first wrong one,
        and None for each step after it, because nobody checked it.
    """
    steps, found = response.split("="), checked_steps(prompt, response)
    labels = [*map(float, found), *[None] * (len(steps) - len(found))]
    return {"prompt": prompt, "completions": steps, "labels": labels}


def answer_of(response: str) -> int | None:
    """The number at the end of the chain, or after ~; None if there is none."""
    last = response.removeprefix("~").rsplit("=", 1)[-1]
    return int(last) if NUMBER.fullmatch(last) else None


def planted_error(expression: str, draw: random.Random) -> tuple[str, int]:
    """A solution with one wrong digit, continued correctly to a wrong answer.

    For example 12*3-9=26-9=17, where the digit at position 7 (the 2) is wrong. Everything after it
    follows correctly from the wrong digit, so it is the only error.

    Returns:
        The response and the position of the wrong digit. One character is one token.

    Raises:
        ValueError: no digit can be changed so that every number stays between 0 and 60 (`LARGEST`)
            and the answer is wrong.
    """
    written, right = solution(expression).split("="), answer_of(solution(expression))
    every = [
        (k, i, digit)
        for k, step in enumerate(written)
        for i, c in enumerate(step)
        if c in NUMERALS
        for digit in NUMERALS
        if digit != c
    ]
    for k, i, digit in draw.sample(every, len(every)):
        wrong = written[k][:i] + digit + written[k][i + 1 :]
        chain = "=".join([*written[:k], wrong] + ([solution(wrong)] if reductions(wrong) else []))
        numbers = NUMBER.findall(chain)
        if all(str(int(n)) == n and int(n) <= LARGEST for n in numbers) and answer_of(
            chain
        ) not in (None, right):
            return chain, len("=".join(written[:k])) + (k > 0) + i
    raise ValueError(
        f"No single digit of {'='.join(written)!r} can be changed so that the answer is wrong "
        f"and every number is from 0 to {LARGEST}; give another expression."
    )


def draw_problems(
    split: str = "train", *, seed: int, levels: tuple[int, ...] = USUAL
) -> Iterator[Problem]:
    """Draw problems without end, each level equally often.

    The expression alone decides its split, whatever the seed: 10 % test, 5 % val, the rest train.

    Args:
        split: train, val or test.
        seed: of the draw.
        levels: some of 1 to 5, see `LEVELS`, or 6 (`LONG`): five to seven numbers, so that four to
            six steps are written.

    Raises:
        ValueError: the split or a level is unknown, or there is no level.
    """
    check("split", split, split in ("train", "val", "test"), "train, val or test")
    check(
        "levels",
        levels,
        set(levels) <= {*LEVELS, LONG} and bool(levels),
        f"some of {[*sorted(LEVELS), LONG]}",
    )
    draw = random.Random(f"{split} {seed}")
    while True:
        level, found = draw.choice(levels), None
        # some forms rarely meet the limits; drawing again keeps all levels equally frequent
        while found is None:
            expression = _expression(level, draw)
            if (
                split_of(expression) == split
                and (answer := answer_of(chain := solution(expression))) is not None
            ):
                found = (
                    Problem(expression, answer, level)
                    if max(map(int, NUMBER.findall(chain))) <= LARGEST
                    else None
                )
        yield found


def _expression(level: int, draw: random.Random) -> str:
    """An expression of a level, which may be too large or go below 0."""
    if level == LONG:
        return _long_expression(draw)
    numbers = {letter: draw.randint(1, 20) for letter in "abc"} | {
        letter: draw.randint(2, 9) for letter in "de"
    }
    form = draw.choice(LEVELS[level])
    return "".join(str(numbers.get(symbol, symbol)) for symbol in form)


def _long_expression(draw: random.Random) -> str:
    """Five to seven numbers, such as 12-5+3*4-7+6: four to six operations, one in five a *."""
    parts = [str(draw.randint(1, 20))]
    for _ in range(draw.randint(4, 6)):
        operation = draw.choice("++--*")
        parts += [operation, str(draw.randint(2, 5) if operation == "*" else draw.randint(1, 20))]
    return "".join(parts)


def split_of(expression: str) -> str:
    """The split of an expression, from its SHA-256: no training problem is ever a test problem."""
    place = int(sha256(expression.encode()).hexdigest(), 16) % 100
    return "test" if place < 10 else "val" if place < 15 else "train"


def problems(
    split: str, count: int, *, seed: int = 0, levels: tuple[int, ...] = USUAL
) -> list[Problem]:
    """The first `count` different problems of `draw_problems`."""
    check("count", count, count >= 1, "at least 1")
    found: dict[str, Problem] = {}
    drawn = draw_problems(split, seed=seed, levels=levels)
    while len(found) < count:
        problem = next(drawn)
        found.setdefault(problem.expression, problem)
    return list(found.values())


def rows(found: list[Problem], *, at_once: float = 0.0, seed: int = 0) -> Dataset:
    """Problems as a dataset with the columns prompt, completion, answer and level.

    All completions are right.

    Args:
        found: the problems.
        at_once: share of completions that give the answer alone, after ~ (0 to 1).
        seed: of the draw that chooses them.
    """
    check("at_once", at_once, 0 <= at_once <= 1, "between 0 and 1")
    draw = random.Random(seed)
    return Dataset.from_list(
        [
            {
                "prompt": p.prompt,
                "completion": f"~{p.answer}" if draw.random() < at_once else solution(p.expression),
                "answer": str(p.answer),
                "level": p.level,
            }
            for p in found
        ]
    )


def step_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of tiny-steps."""
    return character_tokenizer(SYMBOLS)


def character_tokenizer(symbols: str) -> PreTrainedTokenizerFast:
    """A tokenizer with one token per character. EOS is also the padding token."""
    tokenizer = Tokenizer(
        models.WordLevel({token: i for i, token in enumerate([EOS, *symbols])}, unk_token=EOS)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS,
        bos_token=EOS,
        pad_token=EOS,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
