"""Arithmetic in written steps: problems without end, an answer that is right or wrong, and steps that can each be checked.

    prompt  (7+5)*3-9=        response  12*3-9=36-9=27 EOS        one operation a step, in the order of precedence
                              or        ~27 EOS                   at once, in one's head

A chain of equations: every link is a statement that is true or false. Numbers are whole and never negative.
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
}
LARGEST = 60  # of any number on the way
NUMBER = re.compile("[0-9]{1,9}")
PRECEDENCE = {"+": 1, "-": 1, "*": 2}


@dataclass(frozen=True)
class Problem:
    """An expression and its value. The prompt is the expression and "="."""

    expression: str
    answer: int
    level: int  # 1: one operation; 2: two of + and -; 3: two, one a product; 4: three

    @property
    def prompt(self) -> str:
        return self.expression + "="


def reductions(expression: str) -> list[str]:
    """What one operation can make of an expression, leftmost first; [] where nothing can be done (3-9 is none of ours).

    An operation may be done when its neighbours do not bind more tightly, and those to the left not equally: 9-4+1 is 5+1, not 9-5.
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
                if before[-1:] == ["("] and after[:1] == [")"]:  # a number needs no bracket
                    before, after = before[:-1], after[1:]
                found.append("".join([*before, str(value), *after]))
    return found


def solution(expression: str) -> str:
    """The response that a careful pupil writes: 12*3-9=36-9=27."""
    written = []
    while after := reductions(expression):
        expression = after[0]
        written.append(expression)
    return "=".join(written)


def steps_right(problem: str, response: str) -> list[bool]:
    """For each step written: does it follow from the one before by one operation, rightly done? After a wrong one others may be right."""
    chain = [problem.removesuffix("="), *response.split("=")]
    return [after in reductions(before) for before, after in zip(chain, chain[1:], strict=False)]


def answer_of(response: str) -> int | None:
    """The number at the end of the chain, or after ~; None where there is none."""
    last = response.removeprefix("~").rsplit("=", 1)[-1]
    return int(last) if NUMBER.fullmatch(last) else None


def planted_error(expression: str, draw: random.Random) -> tuple[str, int]:
    """A solution with one wrong digit, carried on rightly to a wrong answer: 12*3-9=26-9=17; and the place of the digit (7: the 2).

    Only at that place does anything go wrong; what follows is what a careful pupil makes of it. A place is a character, and a token.
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
        f"No single digit of {'='.join(written)!r} can be wrong with numbers from 0 to {LARGEST} all the way."
    )


def draw_problems(
    split: str = "train", *, seed: int, levels: tuple[int, ...] = tuple(LEVELS)
) -> Iterator[Problem]:
    """Problems without end, each level as often. An expression belongs to one split for ever: test 10 %, val 5 %, train the rest."""
    check("split", split, split in ("train", "val", "test"), "train, val or test")
    check(
        "levels", levels, set(levels) <= set(LEVELS) and bool(levels), f"some of {sorted(LEVELS)}"
    )
    draw = random.Random(f"{split} {seed}")
    while True:
        level, found = draw.choice(levels), None
        while (
            found is None
        ):  # some forms meet the limits seldom; each level is as frequent all the same
            numbers = {letter: draw.randint(1, 20) for letter in "abc"} | {
                letter: draw.randint(2, 9) for letter in "de"
            }
            expression = re.sub(
                "[a-e]", lambda m, n=numbers: str(n[m[0]]), draw.choice(LEVELS[level])
            )
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


def split_of(expression: str) -> str:
    """Of its own digits, not of a draw: no problem is ever both practised and asked."""
    place = int(sha256(expression.encode()).hexdigest(), 16) % 100
    return "test" if place < 10 else "val" if place < 15 else "train"


def problems(
    split: str, count: int, *, seed: int = 0, levels: tuple[int, ...] = tuple(LEVELS)
) -> list[Problem]:
    """The first `count` different ones of `draw_problems`."""
    check("count", count, count >= 1, "at least 1")
    found: dict[str, Problem] = {}
    for problem in draw_problems(split, seed=seed, levels=levels):
        found.setdefault(problem.expression, problem)
        if len(found) == count:
            return list(found.values())


def rows(found: list[Problem], *, at_once: float = 0.0, seed: int = 0) -> Dataset:
    """Columns prompt, completion, answer, level. All completions are right; a share `at_once` has ~ and the answer."""
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
    """One token a character; EOS and padding are one."""
    tokenizer = Tokenizer(
        models.WordLevel({token: i for i, token in enumerate([EOS, *SYMBOLS])}, unk_token=EOS)
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
