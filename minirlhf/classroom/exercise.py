"""Exercises that check a student's function.

A checker calls your function on random cases and compares the answers with the reference solution.
Their seed is the environment variable MINIRLHF_STUDENT, a number: with another number you get other
cases. If your answers equal those of a known mistake, the message names the mistake. Otherwise it
shows one small case with a wrong answer. A message has at most LONGEST characters.
"""

import copy
import itertools
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minirlhf.runtime import check

CASES = 12
LONGEST = 300  # characters of a message
SIZES = re.compile("size|shape|dimension|index|shorter|longer|unpack", re.IGNORECASE)
NUMBERS = 12  # numbers of the largest tensor that a message shows
PADDING = (
    "Where the mask is False a number can be NaN, and NaN * 0 is NaN: "
    "use torch.where on the inputs."
)


@dataclass(frozen=True)
class Result:
    """The outcome of a check: true if passed; printed as "pass" or "not yet" and a message."""

    passed: bool
    message: str

    def __bool__(self) -> bool:
        return self.passed

    def __repr__(self) -> str:
        return ("pass: " if self.passed else "not yet: ") + self.message


@dataclass(frozen=True)
class Exercise:
    """One exercise: random cases, a reference solution, and common mistakes with their messages.

    Args:
        name: the name of the function that the student writes.
        arguments: the names of its arguments. A name that ends in "mask" marks a mask.
        case: draws the arguments of one case from a generator.
        reference: the reference solution.
        mistakes: message -> a function with that mistake.
        differentiate: arguments whose gradient is compared too, besides the value.
        edges: fixed cases that a random draw would seldom give; they are checked too.
        sizes: what to say of the arguments' sizes, if the function raises an error about sizes.
    """

    name: str
    arguments: tuple[str, ...]
    case: Callable[[torch.Generator], tuple]
    reference: Callable[..., Tensor]
    mistakes: dict[str, Callable[..., Tensor]]
    differentiate: tuple[str, ...] = ()
    edges: tuple[tuple, ...] = ()
    sizes: str = ""

    def __call__(self, function: Callable, *, seed: int | None = None) -> Result:
        """Check a function.

        Args:
            function: the student's function.
            seed: the seed of the cases; by default that of MINIRLHF_STUDENT, or 0.

        Returns:
            The Result. An exception that the function raises becomes a message.
        """
        try:
            seed = student_number() if seed is None else seed
        except ValueError as error:
            return Result(False, cut(str(error), LONGEST))
        cases, plain = self._cases(torch.Generator().manual_seed(seed))
        answers, right = [], [self._evaluate(self.reference, case) for case in cases]
        for case, (expected, *_) in zip(cases, right, strict=True):
            answer, problem = self._answer(function, case, expected)
            if problem:
                return Result(False, cut(problem, LONGEST))
            answers.append(answer)
        if _same(answers, right):
            edges = " and on the edge cases" if self.edges else ""
            message = f"{self.name} agrees with the reference on {CASES} random cases{edges}."
            return Result(True, message)
        message = (
            self._mistake(cases, answers)
            or self._padding(cases, answers, right, plain)
            or _nan(cases, answers)
            or self._difference(function, cases, answers, right)
        )
        return Result(False, cut(message, LONGEST))

    def _mistake(self, cases: list[tuple], answers: list) -> str:
        """The message of the known mistake that gives these answers; "" if none does."""
        for message, wrong in self.mistakes.items():
            pairs = zip(answers, cases, strict=True)  # the first case mostly tells them apart
            if all(_same([answer], [self._evaluate(wrong, case)]) for answer, case in pairs):
                return message
        return ""

    def _padding(self, cases: list[tuple], answers: list, right: list, plain: int) -> str:
        """What is wrong with the padding, or else with the cases whose padding is not NaN."""
        if len(cases) == plain:
            return ""  # no padding is NaN
        if _same(answers[:plain], right[:plain]):
            return (
                "your function looks for NaN. Where the mask is False there can also be ordinary "
                "numbers. Use the mask."
            )
        if not any(x.isnan().any() for x in itertools.chain(*answers)):
            return ""
        clean = [i for i, case in enumerate(cases) if not _has_nan(case)]
        cases, answers, right = ([x[i] for i in clean] for x in (cases, answers, right))
        if _same(answers, right):
            return f"the mask comes too late, or by multiplication. {PADDING}"
        return self._mistake(cases, answers)

    def _masks(self) -> bool:
        return any(name.endswith("mask") for name in self.arguments)

    def _cases(self, generator: torch.Generator) -> tuple[list[tuple], int]:
        """(all cases, the number of those before the copies with filled padding).

        Padding is NaN in one copy of a case and ordinary numbers in the other. So a function that
        looks for NaN instead of using the mask fails.
        """
        cases = [*(self.case(generator) for _ in range(CASES)), *self.edges]
        plain = len(cases)
        if self._masks():
            copies = [tuple(map(_filled, case, range(len(case)))) for case in cases]
            cases += [
                filled
                for case, filled in zip(cases, copies, strict=True)
                if not all(map(_unchanged, case, filled))
            ]
        return cases, plain

    def _answer(self, function: Callable, case: tuple, expected: Tensor) -> tuple[list, str]:
        """([answer, *gradients], "") of a student's function on a case, or ([], what is wrong)."""
        given = copy.deepcopy(case)
        in_place = "the function changes its input in place; work on a copy."
        try:
            answer, *gradients = self._evaluate(function, given)
        except Exception as error:  # reported as a message
            if "in-place" in str(error):  # torch forbids it for leaves that require grad
                return [], in_place
            text = cut(" ".join(str(error).split()), 160)
            said = f"{self.name} raised {cut(type(error).__name__, 60)}: {text}"
            if self.sizes and _about_sizes(error):
                said = cut(said.rstrip(": ."), LONGEST - len(self.sizes) - 2)
                said += f". {self.sizes}"
            return [], said
        if answer is None:
            return [], f"{self.name} returned None. Is the `return` missing?"
        if type(answer) in (int, float) and not expected.shape:
            answer = torch.tensor(float(answer) if expected.is_floating_point() else answer)
        if not isinstance(answer, Tensor):
            kind = cut(type(answer).__name__, 60)
            return [], f"{self.name} must return a tensor. It returned an object of type {kind}."
        if answer.shape != expected.shape:
            shape, wanted = cut(str(tuple(answer.shape)), 60), tuple(expected.shape)
            return [], f"the answer's shape is {shape}. It must be {wanted}."
        if _kind(answer) != _kind(expected):
            kind = f"{_kind(answer)} ({answer.dtype})"
            return [], f"the answer is a tensor of {kind}. It must be of {_kind(expected)}."
        if not all(_unchanged(a, b) for a, b in zip(given, case, strict=True)):
            return [], in_place
        return [answer, *gradients], ""

    def _difference(self, function: Callable, cases: list, answers: list, right: list) -> str:
        """A small case on which answer and reference differ, in words."""
        wrong = [
            one for one in zip(cases, answers, right, strict=True) if not _same([one[1]], [one[2]])
        ]
        smallest = min(wrong, key=lambda one: _size(one[0]))
        case, answer, expected = self._one_row(function, smallest[0]) or smallest
        which = next(
            i for i, (a, r) in enumerate(zip(answer, expected, strict=True)) if not _equal(a, r)
        )
        what = "your answer is"
        if which:
            what = f"the gradient with respect to {self.differentiate[which - 1]} is"
        got, wanted = answer[which], expected[which]
        place = _first_place(got, wanted)
        if got.numel() > 4:
            what, got, wanted = f"at {list(place)} {what}", got[place], wanted[place]
        got, wanted = _apart(got, wanted)
        end = f"{what} {got}. It must be {wanted}."
        every = zip(self.arguments, case, strict=True)
        near = zip(self.arguments, (_near(x, place, expected[which]) for x in case), strict=True)
        given = {}
        for arguments in (every, near):
            given = {name: x for name, x in arguments if x is not None}
            start = "; ".join(f"{name} = {_shown(x)}" for name, x in given.items())
            small = all(x.numel() <= NUMBERS for x in given.values() if isinstance(x, Tensor))
            if small and len(start) + len(end) + 6 <= LONGEST:
                return f"for {start}, {end}" if start else end
        return end

    def _one_row(self, function: Callable, case: tuple) -> tuple | None:
        """(case, answer, expected) for one row of a case on which they still differ, or None."""
        tensors = [x for x in case if isinstance(x, Tensor)]
        rows = {len(x) if x.dim() else 0 for x in tensors}
        if len(rows) != 1 or max(x.dim() for x in tensors) < 2:
            return None
        for i in range(rows.pop()):
            row = tuple(x[i : i + 1].clone() if isinstance(x, Tensor) else x for x in case)
            try:
                expected = self._evaluate(self.reference, row)
            except Exception:  # a single row is no case of this exercise
                return None
            answer, problem = self._answer(function, row, expected[0])
            finite = all(x.isfinite().all() for x in expected)
            if finite and not problem and not _same([answer], [expected]):
                return row, answer, expected
        return None

    def _evaluate(self, function: Callable, case: tuple) -> list:
        """The function's answer, and the gradients of its sum.

        There is one gradient for each argument in `differentiate`; it is 0 where there is none.
        """
        arguments = list(case)
        leaves = [
            arguments[self.arguments.index(name)].detach().clone().requires_grad_(True)
            for name in self.differentiate
        ]
        for name, leaf in zip(self.differentiate, leaves, strict=True):
            arguments[self.arguments.index(name)] = leaf
        answer = function(*arguments)
        if not leaves or not isinstance(answer, Tensor):
            return [answer]
        if not answer.requires_grad:
            return [answer, *map(torch.zeros_like, leaves)]
        gradients = torch.autograd.grad(answer.sum(), leaves, allow_unused=True)
        return [
            answer.detach(),
            *(
                torch.zeros_like(x) if g is None else g
                for g, x in zip(gradients, leaves, strict=True)
            ),
        ]


def student_number() -> int:
    """The number in MINIRLHF_STUDENT; 0 if it is not set.

    Raises:
        ValueError: it is not a whole number, for example a name.
    """
    given = os.environ.get("MINIRLHF_STUDENT", "0")
    is_number = given.isdecimal() and len(given) <= 18  # torch's seeds have 64 bits
    check("MINIRLHF_STUDENT", given, is_number, "a whole number, such as 17")
    return int(given)


def _about_sizes(error: Exception) -> bool:
    """Whether an error comes of wrong sizes: an iterator has ended, or the message says so."""
    kinds = (IndexError, RuntimeError, ValueError)
    says_so = isinstance(error, kinds) and bool(SIZES.search(str(error)))
    return says_so or isinstance(error, StopIteration)


def _nan(cases: list[tuple], answers: list) -> str:
    """Where an answer or its gradient is NaN, and the likely reason; "" if none is."""
    parts = {
        "the answer": [answer for answer, *_ in answers],
        "its gradient": [gradient for _, *gradients in answers for gradient in gradients],
    }
    for whose, tensors in parts.items():
        if any(x.isnan().any() for x in tensors):
            padded = any(map(_has_nan, cases))
            reason = (
                f"{PADDING} 0 / 0 is NaN too."
                if padded
                else "0 / 0, inf - inf and 0 * inf are NaN. "
                "A gradient flows through both branches of torch.where."
            )
            return f"{whose} contains NaN. {reason}"
    return ""


def _filled(x: object, place: int) -> object:
    """Replace NaN by ordinary numbers, different ones for each argument."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return x
    return torch.where(
        x.isnan(), torch.linspace(-2 - place, 3 + 2 * place, x.numel()).view(x.shape).to(x.dtype), x
    )


def _unchanged(a: Any, b: Any) -> bool:
    """Whether a and b are equal; NaN equals NaN."""
    return (
        a == b
        if not isinstance(a, Tensor)
        else a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())
    )


def _kind(x: Tensor) -> str:
    if x.is_complex():
        return "complex numbers"
    return (
        "booleans" if x.dtype == torch.bool else "floats" if x.is_floating_point() else "integers"
    )


def _has_nan(case: tuple) -> bool:
    """Whether a tensor of a case holds NaN."""
    return any(isinstance(x, Tensor) and bool(x.isnan().any()) for x in case)


def _size(case: tuple) -> int:
    """The number of numbers in a case."""
    return sum(x.numel() if isinstance(x, Tensor) else 1 for x in case)


def _first_place(answer: Tensor, expected: Tensor) -> tuple[int, ...]:
    """The index of the first entry that differs."""
    flat = zip(answer.reshape(-1), expected.reshape(-1), strict=True)
    first = next(i for i, (a, r) in enumerate(flat) if not _equal(a, r))
    return tuple(int(i) for i in torch.unravel_index(torch.tensor(first), answer.shape))


def _near(x: object, place: tuple[int, ...], answer: Tensor) -> object:
    """What an argument has to do with one entry of the answer: its entry, its row, or None."""
    if not isinstance(x, Tensor):
        return x
    if x.shape == answer.shape:
        return x[place]
    row = x[place[0]] if place and x.dim() and len(x) == len(answer) else x
    return row if row.numel() <= NUMBERS else None


def _apart(answer: Tensor, expected: Tensor) -> tuple[str, str]:
    """Both as text, with as many digits as it takes to see that they differ."""
    texts = [(_shown(answer, digits), _shown(expected, digits)) for digits in (4, 8, 17)]
    return next(((a, e) for a, e in texts if a != e), texts[-1])


def _shown(x: object, digits: int = 4) -> str:
    """A number, or a tensor as nested lists, as text in a message."""
    x = x.tolist() if isinstance(x, Tensor) else x
    if isinstance(x, list):
        return f"[{', '.join(_shown(y, digits) for y in x)}]"
    return f"{x + 0.0:.{digits}g}" if isinstance(x, float) else str(x)  # + 0.0: no "-0"


def cut(text: str, longest: int) -> str:
    """A text of at most this many characters."""
    return text if len(text) <= longest else f"{text[: longest - 6].rstrip()} [...]"


def _equal(answer: Tensor, expected: Tensor) -> bool:
    return torch.allclose(answer.double(), expected.double(), rtol=1e-5, atol=1e-6, equal_nan=True)


def _same(answers: list, others: list) -> bool:
    return all(
        _equal(a, b)
        for mine, theirs in zip(answers, others, strict=True)
        for a, b in zip(mine, theirs, strict=True)
    )
