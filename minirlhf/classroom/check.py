"""Exercises that check themselves: `check.eos_mask(your_function)` says pass, or the likely mistake in one sentence.

A checker runs your function on random cases drawn by your own seed (environment variable MINIRLHF_STUDENT, a number) and compares
with the reference. If your answers equal those of a known mistake, it names the mistake; else it shows the first case that differs.
"""

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from minirlhf.core.bradley_terry import last_token_scores
from minirlhf.search.best_of_n import best_index

CASES = 12


@dataclass(frozen=True)
class Result:
    """Truthy when passed; prints as its one sentence."""

    passed: bool
    message: str

    def __bool__(self) -> bool:
        return self.passed

    def __repr__(self) -> str:
        return ("pass: " if self.passed else "not yet: ") + self.message


@dataclass(frozen=True)
class Exercise:
    """One exercise: cases from a generator, the right answer, and the mistakes that people make, each with its sentence."""

    name: str
    case: Callable[[torch.Generator], tuple]
    reference: Callable[..., Tensor]
    mistakes: dict[str, Callable[..., Tensor]]

    def __call__(self, function: Callable, *, seed: int | None = None) -> Result:
        """Check a function. Returns a Result; never raises for what the function does."""
        seed = int(os.environ.get("MINIRLHF_STUDENT", "0")) if seed is None else seed
        generator = torch.Generator().manual_seed(seed)
        cases = [self.case(generator) for _ in range(CASES)]
        answers = []
        for case in cases:
            given = copy.deepcopy(case)
            try:
                answer = function(*given)
            except Exception as error:  # whatever a student's code raises is told, not thrown
                return Result(False, f"{self.name} raised {type(error).__name__}: {error}")
            if not isinstance(answer, Tensor):
                return Result(False, f"{self.name} must return a tensor; it returned {type(answer).__name__}.")
            expected = self.reference(*case)
            if answer.shape != expected.shape:
                return Result(False, f"the shape is {tuple(answer.shape)}, it must be {tuple(expected.shape)}.")
            if any(isinstance(a, Tensor) and not torch.equal(a, b) for a, b in zip(given, case, strict=True)):
                return Result(False, "the function changes its input in place; work on a copy.")
            answers.append(answer)
        if all(_equal(a, self.reference(*c)) for a, c in zip(answers, cases, strict=True)):
            return Result(True, f"{self.name} agrees with the reference on {CASES} random cases.")
        for sentence, wrong in self.mistakes.items():
            if all(_equal(a, wrong(*c)) for a, c in zip(answers, cases, strict=True)):
                return Result(False, sentence)
        case, answer = next((c, a) for a, c in zip(answers, cases, strict=True) if not _equal(a, self.reference(*c)))
        shown = ", ".join(str(x.tolist() if isinstance(x, Tensor) else x) for x in case)
        return Result(False, f"for ({shown}) it gives {answer.tolist()}; the answer is {self.reference(*case).tolist()}.")


def _equal(answer: Tensor, expected: Tensor) -> bool:
    return torch.allclose(answer.double(), expected.double(), rtol=1e-5, atol=1e-6)


# ---- notebook 00
def _scores_case(g):
    return torch.randn(3 * 4, generator=g), 4


best_of_n = Exercise(
    "best_of_n", _scores_case, best_index,
    {"these are places within each group; add where the group begins (prompt number * n).": lambda s, n: s.view(-1, n).argmax(1),
     "this picks the worst of each group: argmin for argmax.": lambda s, n: torch.arange(len(s) // n) * n + s.view(-1, n).argmin(1),
     "the n samples of one prompt stand side by side; you took every n-th sample for a group.":
         lambda s, n: s.view(n, -1).argmax(0) * (len(s) // n) + torch.arange(len(s) // n)})


def _kl_case(g):
    mask = torch.arange(5) < torch.randint(1, 5, (4, 1), generator=g)
    logprobs, ref_logprobs = -torch.rand(2, 4, 5, generator=g)
    return torch.randn(4, generator=g), logprobs, ref_logprobs, mask, 0.5


def _penalised(scores, logprobs, ref_logprobs, mask, kl_coef):
    return scores - kl_coef * torch.where(mask, logprobs - ref_logprobs, 0.0).sum(1)


kl_penalised_score = Exercise(
    "kl_penalised_score", _kl_case, _penalised,
    {"the log-ratio is reversed: it is log pi - log pi_ref, the policy first; this pays for drifting away.":
         lambda s, a, b, m, k: _penalised(s, b, a, m, k),
     "padding is counted: use the mask.": lambda s, a, b, m, k: s - k * (a - b).sum(1),
     "this takes the mean over tokens; the penalty of a response is the sum.":
         lambda s, a, b, m, k: s - k * ((a - b) * m).sum(1) / m.sum(1),
     "the coefficient is missing.": lambda s, a, b, m, k: _penalised(s, a, b, m, 1.0)})


# ---- notebook 01
def _ids_case(g):
    ids = torch.randint(1, 5, (4, 6), generator=g)
    ids[0, 2], ids[1, 5], ids[2, 0] = 0, 0, 0  # an early end, one at the last place, one at once; row 3 has none
    ids[0, 3:], ids[2, 1:] = 0, 0  # padding has EOS's id, as in GPT-2
    return ids, 0


def _eos_mask(ids, eos_id):
    return (ids == eos_id).long().cumsum(1) - (ids == eos_id).long() == 0


eos_mask = Exercise(
    "eos_mask", _ids_case, _eos_mask,
    {"EOS itself is masked: padding has the same id, so `ids != eos_id` drops it, and stopping would never be trained.":
         lambda ids, e: ids != e,
     "nothing is masked.": lambda ids, e: torch.ones_like(ids, dtype=torch.bool),
     "this keeps the padding and drops the text: the mask is inverted.": lambda ids, e: ~_eos_mask(ids, e)})


def _prefix_case(g):
    mask = torch.arange(6) < torch.randint(1, 6, (4, 1), generator=g)
    return torch.randn(4, 6, generator=g), mask


score_of_text = Exercise(
    "score_of_text", _prefix_case, last_token_scores,
    {"this reads the last column, which is padding in shorter rows.": lambda s, m: s[:, -1],
     "one too far: the number of real tokens is the index after the last one.":
         lambda s, m: s.gather(1, m.sum(1, keepdim=True).clamp(max=s.shape[1] - 1))[:, 0],
     "this is the mean over real tokens; the reward of a text is read at its last token.":
         lambda s, m: (s * m).sum(1) / m.sum(1),
     "this is the sum over real tokens; the reward of a text is read at its last token.": lambda s, m: (s * m).sum(1)})

EXERCISES = {e.name: e for e in (best_of_n, kl_penalised_score, eos_mask, score_of_text)}
