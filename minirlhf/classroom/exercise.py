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
        cases, plain = self._cases(torch.Generator().manual_seed(seed))
        answers, right = [], [self._evaluate(self.reference, case) for case in cases]
        for case, (expected, *_) in zip(cases, right, strict=True):
            answer, problem = self._answer(function, case, expected)
            if problem:
                return Result(False, problem)
            answers.append(answer)
        if _same(answers, right):
            edges = " and on the edge cases" if self.edges else ""
            message = f"{self.name} agrees with the reference on {CASES} random cases{edges}."
            return Result(True, message)
        for message, wrong in self.mistakes.items():
            if _same(answers, [self._evaluate(wrong, case) for case in cases]):
                return Result(False, message)
        if len(cases) > plain and _same(answers[:plain], right[:plain]):
            return Result(
                False,
                "your function finds padding by its NaN. Padding can also hold ordinary numbers. "
                "Use the mask.",
            )
        return Result(False, _nan(cases, answers) or self._first_difference(cases, answers, right))

    def _cases(self, generator: torch.Generator) -> tuple[list[tuple], int]:
        """(all cases, the number of those before the copies with filled padding).

        Padding is NaN in one copy of a case and ordinary numbers in the other. So a function that
        looks for NaN instead of using the mask fails.
        """
        cases = [*(self.case(generator) for _ in range(CASES)), *self.edges]
        plain = len(cases)
        if any(name.endswith("mask") for name in self.arguments):
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
            text = " ".join(str(error).split())
            return [], f"{self.name} raised {type(error).__name__}: {text}"
        if answer is None:
            return [], f"{self.name} returned None. Is the `return` missing?"
        if type(answer) in (int, float) and not expected.shape:
            answer = torch.tensor(float(answer) if expected.is_floating_point() else answer)
        if not isinstance(answer, Tensor):
            kind = type(answer).__name__
            return [], f"{self.name} must return a tensor. It returned an object of type {kind}."
        if answer.shape != expected.shape:
            shape, wanted = tuple(answer.shape), tuple(expected.shape)
            return [], f"the answer's shape is {shape}. It must be {wanted}."
        if _kind(answer) != _kind(expected):
            kind = f"{_kind(answer)} ({answer.dtype})"
            return [], f"the answer is a tensor of {kind}. It must be of {_kind(expected)}."
        if not all(_unchanged(a, b) for a, b in zip(given, case, strict=True)):
            return [], in_place
        return [answer, *gradients], ""

    def _first_difference(self, cases: list[tuple], answers: list, right: list) -> str:
        """The first case on which answer and reference differ, in words."""
        case, answer, expected = next(
            (c, a, r) for c, a, r in zip(cases, answers, right, strict=True) if not _same([a], [r])
        )
        given = "; ".join(
            f"{name} = {_shown(x)}" for name, x in zip(self.arguments, case, strict=True)
        )
        which = next(
            i for i, (a, r) in enumerate(zip(answer, expected, strict=True)) if not _equal(a, r)
        )
        what = "your answer is"
        if which:
            what = f"the gradient with respect to {self.differentiate[which - 1]} is"
        wanted = _shown(expected[which])
        return f"for {given}, {what} {_shown(answer[which])}. It must be {wanted}."

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


def _nan(cases: list[tuple], answers: list) -> str:
    """Where an answer or its gradient is NaN, and the likely reason; "" if none is."""
    parts = {
        "the answer": [answer for answer, *_ in answers],
        "its gradient": [gradient for _, *gradients in answers for gradient in gradients],
    }
    for whose, tensors in parts.items():
        if any(x.isnan().any() for x in tensors):
            padded = any(
                isinstance(x, Tensor) and x.is_floating_point() and x.isnan().any()
                for x in itertools.chain(*cases)
            )
            reason = (
                "Padding can hold NaN, and NaN * 0 is NaN. Use torch.where on the inputs, "
                "then sum. 0 / 0 is NaN too."
                if padded
                else "0 / 0, inf - inf and 0 * inf are NaN. "
                "A gradient flows through both branches of torch.where."
            )
            return f"{whose} contains NaN. {reason}"
    return ""


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
