"""Exercises that check a student's function.

A checker calls your function on random cases and compares the answers with the reference solution.
Their seed is the environment variable MINIRLHF_STUDENT, a number: with another number you get other
cases. If your answers equal those of a known mistake, the message names the mistake. Otherwise it
shows the first case with a wrong answer.
"""

import copy
import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

CASES = 12


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
    """

    name: str
    arguments: tuple[str, ...]
    case: Callable[[torch.Generator], tuple]
    reference: Callable[..., Tensor]
    mistakes: dict[str, Callable[..., Tensor]]
    differentiate: tuple[str, ...] = ()
    edges: tuple[tuple, ...] = ()

    def __call__(self, function: Callable, *, seed: int | None = None) -> Result:
        """Check a function.

        Args:
            function: the student's function.
            seed: the seed of the cases; by default that of MINIRLHF_STUDENT, or 0.

        Returns:
            The Result. An exception that the function raises becomes a message.
        """
        seed = int(os.environ.get("MINIRLHF_STUDENT", "0")) if seed is None else seed
        generator = torch.Generator().manual_seed(seed)
        cases = [*(self.case(generator) for _ in range(CASES)), *self.edges]
        plain = len(cases)
        # Padding is NaN in one copy of a case and ordinary numbers in the other. So a function
        # that looks for NaN instead of using the mask fails.
        if any(name.endswith("mask") for name in self.arguments):
            cases += [
                filled
                for case in cases
                if not all(
                    map(_unchanged, case, filled := tuple(map(_filled, case, range(len(case)))))
                )
            ]
        answers, right = [], [self._evaluate(self.reference, case) for case in cases]
        for case, (expected, *_) in zip(cases, right, strict=True):
            given = copy.deepcopy(case)
            try:
                answer, *gradients = self._evaluate(function, given)
            except Exception as error:  # reported as a message
                if "in-place" in str(error):  # torch forbids it for leaves that require grad
                    return Result(False, "the function changes its input in place; work on a copy.")
                return Result(
                    False,
                    f"{self.name} raised {type(error).__name__}: {' '.join(str(error).split())}",
                )
            if answer is None:
                return Result(False, f"{self.name} returned None. Is the `return` missing?")
            if type(answer) in (int, float) and not expected.shape:
                answer = torch.tensor(float(answer) if expected.is_floating_point() else answer)
            if not isinstance(answer, Tensor):
                return Result(
                    False,
                    f"{self.name} must return a tensor. "
                    f"It returned an object of type {type(answer).__name__}.",
                )
            if answer.shape != expected.shape:
                return Result(
                    False,
                    f"the answer's shape is {tuple(answer.shape)}. "
                    f"It must be {tuple(expected.shape)}.",
                )
            if _kind(answer) != _kind(expected):
                return Result(
                    False,
                    f"the answer is a tensor of {_kind(answer)} ({answer.dtype}). "
                    f"It must be of {_kind(expected)}.",
                )
            if not all(_unchanged(a, b) for a, b in zip(given, case, strict=True)):
                return Result(False, "the function changes its input in place; work on a copy.")
            answers.append([answer, *gradients])
        if _same(answers, right):
            return Result(
                True,
                f"{self.name} agrees with the reference on {CASES} random cases"
                f"{' and on the edge cases' if self.edges else ''}.",
            )
        for sentence, wrong in self.mistakes.items():
            if _same(answers, [self._evaluate(wrong, case) for case in cases]):
                return Result(False, sentence)
        if len(cases) > plain and _same(answers[:plain], right[:plain]):
            return Result(
                False,
                "your function finds padding by its NaN. Padding can also hold ordinary numbers. "
                "Use the mask.",
            )
        for whose, x in (
            ("the answer", [a for a, *_ in answers]),
            ("its gradient", [g for _, *gs in answers for g in gs]),
        ):
            if any(y.isnan().any() for y in x):
                padded = any(
                    isinstance(y, Tensor) and y.is_floating_point() and y.isnan().any()
                    for y in itertools.chain(*cases)
                )
                reason = (
                    "Padding can hold NaN, and NaN * 0 is NaN. Use torch.where on the inputs, "
                    "then sum. 0 / 0 is NaN too."
                    if padded
                    else "0 / 0, inf - inf and 0 * inf are NaN. "
                    "A gradient flows through both branches of torch.where."
                )
                return Result(False, f"{whose} contains NaN. {reason}")
        case, answer, expected = next(
            (c, a, r) for c, a, r in zip(cases, answers, right, strict=True) if not _same([a], [r])
        )
        given = "; ".join(
            f"{name} = {_shown(x)}" for name, x in zip(self.arguments, case, strict=True)
        )
        which = next(
            i for i, (a, r) in enumerate(zip(answer, expected, strict=True)) if not _equal(a, r)
        )
        what = (
            f"the gradient with respect to {self.differentiate[which - 1]} is"
            if which
            else "your answer is"
        )
        return Result(
            False,
            f"for {given}, {what} {_shown(answer[which])}. It must be {_shown(expected[which])}.",
        )

    def _evaluate(self, function: Callable, case: tuple) -> list:
        """The function's answer, and the gradients of its sum.

        There is one gradient for each argument in `differentiate`; it is 0 where there is none.
        """
        case = list(case)
        leaves = [
            case[self.arguments.index(name)].detach().clone().requires_grad_(True)
            for name in self.differentiate
        ]
        for name, leaf in zip(self.differentiate, leaves, strict=True):
            case[self.arguments.index(name)] = leaf
        answer = function(*case)
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


def _filled(x, place: int):
    """Replace NaN by ordinary numbers, different ones for each argument."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return x
    return torch.where(
        x.isnan(), torch.linspace(-2 - place, 3 + 2 * place, x.numel()).view(x.shape).to(x.dtype), x
    )


def _unchanged(a, b) -> bool:
    """Whether a and b are equal; NaN equals NaN."""
    return (
        a == b
        if not isinstance(a, Tensor)
        else a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())
    )


def _kind(x: Tensor) -> str:
    return (
        "booleans" if x.dtype == torch.bool else "floats" if x.is_floating_point() else "integers"
    )


def _shown(x) -> str:
    """A number, or a tensor with its shape before it, as text in a message."""
    if not isinstance(x, Tensor):
        return f"{x:.4g}"
    return f"{tuple(x.shape)} {_rounded(x.tolist())}"


def _rounded(x):
    """Rounded to four decimals, or to one significant digit where that would give 0."""
    if isinstance(x, list):
        return [_rounded(y) for y in x]
    return round(x, 4) or float(f"{x:.1g}") if isinstance(x, float) else x


def _equal(answer: Tensor, expected: Tensor) -> bool:
    return torch.allclose(answer.double(), expected.double(), rtol=1e-5, atol=1e-6, equal_nan=True)


def _same(answers: list, others: list) -> bool:
    return all(
        _equal(a, b)
        for mine, theirs in zip(answers, others, strict=True)
        for a, b in zip(mine, theirs, strict=True)
    )
