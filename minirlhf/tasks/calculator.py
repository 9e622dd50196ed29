"""Products with a calculator: problems that a policy cannot do in its head, and a tool that can.

    prompt    47*83+5=
    response  [47*83]{3901}3906 EOS     a call, the calculator's result, the answer
    or        ~3906 EOS                 the answer in the head, without a call

One character is one token. The policy writes the call and the answer. The calculator reads the ids
between the brackets and appends the ids of its result. A call that it refuses has the result {!}.
"""

import random
import re
from collections.abc import Iterator
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from minirlhf.runtime import check
from minirlhf.tasks.arithmetic import (
    NUMBER,
    NUMERALS,
    Problem,
    character_tokenizer,
    solution,
    split_of,
)
from minirlhf.tasks.turns import SPANS

SYMBOLS = NUMERALS + "+-*=~[]{}!"
FORMS = ("a*b+c", "a*b-c", "c+a*b")  # a and b from 10 to 99, c from 1 to 99
LEVEL = 3  # of a `Problem`: two operations, one of them a *
CALL = re.compile(r"([0-9]{1,2})\*([0-9]{1,2})")  # all that the calculator accepts
KINDS = ("right call", "wrong call", "in the head")  # of a demonstration
OUTCOMES = ("right call", "wrong call", "refused call", "no end of call", "no call", "forged")


def agent_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of tiny-agent: one token per character."""
    return character_tokenizer(SYMBOLS)


class Calculator:
    """The tool: it multiplies two numbers of one or two digits.

    It reads token ids and writes token ids. What stands between the last [ and the ] that ends the
    call must be a product such as 47*83; everything else is refused.

    Args:
        tokenizer: `agent_tokenizer()`, or another that has each of its symbols as one token.
        error_rate: share of the calls that get a wrong result: the product with one digit changed
            (0 to 1).
        seed: of the draw of wrong results. None: Python's global generator draws them, whose state
            a Checkpoint saves.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, error_rate: float = 0.0, seed: int | None = 0
    ) -> None:
        check("error_rate", error_rate, 0 <= error_rate <= 1, "between 0 and 1")
        vocabulary = tokenizer.get_vocab()
        missing = [symbol for symbol in SYMBOLS if symbol not in vocabulary]
        check("tokenizer", missing, not missing, f"one that has each of {SYMBOLS} as one token")
        self.ids = {symbol: vocabulary[symbol] for symbol in SYMBOLS}
        self.symbols = {i: symbol for symbol, i in self.ids.items()}
        self.call_end = self.ids["]"]
        self.error_rate = error_rate
        self.draw: Any = random if seed is None else random.Random(seed)

    def run(self, ids: list[int]) -> list[int]:
        """The ids of {result}, for a response that ends with a call; of {!} for a refused call."""
        written = "".join(self.symbols.get(i, "?") for i in ids[:-1])
        call = CALL.fullmatch(written.rpartition("[")[2]) if "[" in written else None
        result = str(int(call[1]) * int(call[2])) if call else "!"
        if call and self.draw.random() < self.error_rate:
            result = one_digit_changed(result, self.draw)
        return [self.ids[symbol] for symbol in "{" + result + "}"]


def one_digit_changed(text: str, draw: Any) -> str:
    """The text with one of its digits replaced by another one, from 1 to 9."""
    place = draw.choice([i for i, symbol in enumerate(text) if symbol in NUMERALS])
    digit = draw.choice([d for d in NUMERALS[1:] if d != text[place]])
    return text[:place] + digit + text[place + 1 :]


def draw_problems(split: str = "train", *, seed: int) -> Iterator[Problem]:
    """Draw problems without end: a product of two two-digit numbers, and one more operation.

    The expression alone decides its split, as in `tasks.arithmetic`.

    Raises:
        ValueError: the split is not train, val or test.
    """
    check("split", split, split in ("train", "val", "test"), "train, val or test")
    draw = random.Random(f"calculator {split} {seed}")
    while True:
        a, b, c = draw.randint(10, 99), draw.randint(10, 99), draw.randint(1, 99)
        numbers = {"a": str(a), "b": str(b), "c": str(c)}
        expression = "".join(numbers.get(symbol, symbol) for symbol in draw.choice(FORMS))
        if split_of(expression) == split:
            yield Problem(expression, _value(expression), LEVEL)


def problems(split: str, count: int, *, seed: int = 0) -> list[Problem]:
    """The first `count` different problems of `draw_problems`."""
    check("count", count, 1 <= count <= 10_000_000, "from 1 to 10,000,000")
    found: dict[str, Problem] = {}
    drawn = draw_problems(split, seed=seed)
    while len(found) < count:
        problem = next(drawn)
        found.setdefault(problem.expression, problem)
    return list(found.values())


def product_in(expression: str) -> str:
    """The product in a problem: 47*83 in 5+47*83."""
    return next(term for term in re.split("[+-]", expression) if "*" in term)


def answer_of(response: str) -> int | None:
    """The number after the last result or ~; None if there is none, or if more stands there."""
    last = re.split("[]}~]", response)[-1]
    return int(last) if NUMBER.fullmatch(last) else None


def outcome(expression: str, written: str) -> str:
    """What a policy did with the calculator.

    Args:
        expression: the problem, such as 47*83+5.
        written: what the policy wrote itself, without the calculator's tokens: [47*83]3906.

    Returns:
        One of `OUTCOMES`:
        right call: every call is the problem's product, or the product with its factors exchanged.
        wrong call: another product was called for.
        refused call: a call is no product of numbers of one or two digits.
        no end of call: the last call has no ].
        no call: an answer in the head.
        forged: the policy wrote {, } or ! itself, as if it were the calculator.
    """
    if set("{}!") & set(written):
        return "forged"
    if not set("[]") & set(written):
        return "no call"
    *calls, answer = written.split("]")
    if "[" in answer:
        return "no end of call"
    inside = [call.rpartition("[")[2] for call in calls if "[" in call]
    if len(inside) < len(calls) or not all(CALL.fullmatch(call) for call in inside):
        return "refused call"
    factors = sorted(product_in(expression).split("*"))
    right = all(sorted(call.split("*")) == factors for call in inside)
    return "right call" if right else "wrong call"


def demonstrations(
    found: list[Problem], shares: tuple[float, float, float] = (0.3, 0.1, 0.6), *, seed: int = 0
) -> Dataset:
    """Solved problems as rows with the columns prompt, completion, completion_spans and answer.

    A wrong call has one digit changed. Its answer follows rightly from the wrong result.
    completion_spans says what the policy writes, so that nothing is learned on the calculator's
    tokens.

    Args:
        found: the problems.
        shares: of right calls, wrong calls and answers in the head.
        seed: of the draw that chooses the kind of each row.
    """
    good = len(shares) == len(KINDS) and min(shares) >= 0 and abs(sum(shares) - 1) < 1e-9
    check("shares", shares, good, f"one share, 0 or more, for each of {KINDS}; their sum is 1")
    draw = random.Random(seed)
    return Dataset.from_list(
        [_demonstration(p, draw.choices(KINDS, shares)[0], draw) for p in found]
    )


def _demonstration(problem: Problem, kind: str, draw: random.Random) -> dict:
    """One row."""
    row = {"prompt": problem.prompt, "answer": str(problem.answer)}
    if kind == "in the head":
        completion = f"~{problem.answer}"
        return row | {"completion": completion, "completion" + SPANS: [[0, len(completion)]]}
    product = called = product_in(problem.expression)
    if kind == "wrong call":
        called = one_digit_changed(product, draw)
    answer = _value(problem.expression.replace(product, called))
    call, result = f"[{called}]", f"{{{_value(called)}}}"
    completion = f"{call}{result}{answer}"
    spans = [[0, len(call)], [len(call + result), len(completion)]]
    return row | {"completion": completion, "completion" + SPANS: spans}


def _value(expression: str) -> int:
    """The value of an expression of `FORMS`, which is at least 1 because a*b >= 100 > c."""
    return int(solution(expression).rpartition("=")[2])
