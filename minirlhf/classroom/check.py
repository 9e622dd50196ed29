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
    arguments: tuple[str, ...]
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
                return Result(False, f"{self.name} raised {type(error).__name__}: {' '.join(str(error).split())}")
            if answer is None:
                return Result(False, f"{self.name} returned None: is the `return` missing?")
            if not isinstance(answer, Tensor):
                return Result(False, f"{self.name} must return a tensor; it returned {type(answer).__name__}.")
            expected = self.reference(*case)
            if answer.shape != expected.shape:
                return Result(False, f"the shape is {tuple(answer.shape)}, it must be {tuple(expected.shape)}.")
            if _kind(answer) != _kind(expected):
                return Result(False, f"the answer is a tensor of {_kind(answer)} ({answer.dtype}), it must be of {_kind(expected)}.")
            if answer.isnan().any():
                return Result(False, "the answer has NaN in it: padding may hold anything, and NaN * 0 is NaN; use torch.where, then sum.")
            if not all(_unchanged(a, b) for a, b in zip(given, case, strict=True)):
                return Result(False, "the function changes its input in place; work on a copy.")
            answers.append(answer)
        if all(_equal(a, self.reference(*c)) for a, c in zip(answers, cases, strict=True)):
            return Result(True, f"{self.name} agrees with the reference on {CASES} random cases.")
        for sentence, wrong in self.mistakes.items():
            if all(_equal(a, wrong(*c)) for a, c in zip(answers, cases, strict=True)):
                return Result(False, sentence)
        case, answer = next((c, a) for a, c in zip(answers, cases, strict=True) if not _equal(a, self.reference(*c)))
        given = "; ".join(f"{name} = {_shown(x)}" for name, x in zip(self.arguments, case, strict=True))
        return Result(False, f"for {given} it gives {_shown(answer)}; the answer is {_shown(self.reference(*case))}.")


def _unchanged(a, b) -> bool:
    """Equal, NaN being equal to NaN."""
    return a == b if not isinstance(a, Tensor) else a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


def _kind(x: Tensor) -> str:
    return "booleans" if x.dtype == torch.bool else "floats" if x.is_floating_point() else "integers"


def _shown(x) -> str:
    """A number or a tensor, its shape before it, short enough to work through by hand."""
    if not isinstance(x, Tensor):
        return f"{x:.4g}"
    rounded = x.double().mul(1e4).round().div(1e4) if x.is_floating_point() else x
    return f"{tuple(x.shape)} {rounded.tolist()}"


def _equal(answer: Tensor, expected: Tensor) -> bool:
    return torch.allclose(answer.double(), expected.double(), rtol=1e-5, atol=1e-6)


# ---- notebook 00
def _scores_case(g):
    prompts, n = torch.randint(2, 5, (2,), generator=g).tolist()
    return torch.randn(prompts * n, generator=g), n


best_of_n = Exercise(
    "best_of_n", ("scores", "n"), _scores_case, best_index,
    {"these are places within each group; add where the group begins (prompt number * n).": lambda s, n: s.view(-1, n).argmax(1),
     "a group begins at prompt number * n; you added the prompt number alone.":
         lambda s, n: torch.arange(len(s) // n) + s.view(-1, n).argmax(1),
     "this picks the worst of each group: argmin for argmax.": lambda s, n: torch.arange(len(s) // n) * n + s.view(-1, n).argmin(1),
     "the n samples of one prompt stand side by side; you took every n-th sample for a group.":
         lambda s, n: s.view(n, -1).argmax(0) * (len(s) // n) + torch.arange(len(s) // n)})


def _kl_case(g):
    mask = torch.arange(3) < torch.randint(1, 4, (2, 1), generator=g)
    logprobs, ref_logprobs = -torch.rand(2, 2, 3, generator=g)
    if torch.rand((), generator=g) < 0.5:  # padding may hold anything: here NaN, there numbers like any others
        logprobs = torch.where(mask, logprobs, torch.nan)
    return torch.randn(2, generator=g), logprobs, ref_logprobs, mask, torch.rand((), generator=g).item()


def _penalised(scores, logprobs, ref_logprobs, mask, kl_coef):
    return scores - kl_coef * torch.where(mask, logprobs - ref_logprobs, 0.0).sum(1)


kl_penalised_score = Exercise(
    "kl_penalised_score", ("scores", "logprobs", "ref_logprobs", "mask", "kl_coef"), _kl_case, _penalised,
    {"the log-ratio is reversed: it is log pi - log pi_ref, the policy first; this pays for drifting away.":
         lambda s, a, b, m, k: _penalised(s, b, a, m, k),
     "this takes the mean over tokens; the penalty of a response is the sum.":
         lambda s, a, b, m, k: s - k * torch.where(m, a - b, 0.0).sum(1) / m.sum(1),
     "the coefficient is missing.": lambda s, a, b, m, k: _penalised(s, a, b, m, 1.0),
     "padding is counted where it is no NaN: `nansum` and `nan_to_num` hide NaN, they do not look at the mask.":
         lambda s, a, b, m, k: s - k * (a - b).nansum(1)})


# ---- notebook 01
def _ids_case(g):
    eos_id = int(torch.randint(5, (), generator=g))
    ids = (eos_id + torch.randint(1, 5, (5, 6), generator=g)) % 5  # no EOS yet; row 4 stays so
    ids[0, 2:], ids[1, 5:], ids[2, 0:] = eos_id, eos_id, eos_id  # ends early, late, at once; padding has EOS's id, as in GPT-2
    ids[3, 3] = eos_id  # a sampler that was not stopped went on writing
    return ids, eos_id


def _eos_mask(ids, eos_id):
    return (ids == eos_id).long().cumsum(1) - (ids == eos_id).long() == 0


eos_mask = Exercise(
    "eos_mask", ("ids", "eos_id"), _ids_case, _eos_mask,
    {"EOS itself is masked: padding has the same id, so `ids != eos_id` drops it, and stopping would never be trained.":
         lambda ids, e: ids != e,
     "EOS itself is left out; it is a choice of the policy like any other, and without it stopping would never be trained.":
         lambda ids, e: (ids == e).cumsum(1) == 0,
     "text after the first EOS is kept; the response ends there, whatever follows.":
         lambda ids, e: (ids != e) | _eos_mask(ids, e),
     "padding is kept: only the first EOS counts, the others are filling.":
         lambda ids, e: (ids == e) | _eos_mask(ids, e),
     "rows without EOS are all real; argmax gives 0 for them.":
         lambda ids, e: torch.arange(ids.shape[1]) <= (ids == e).int().argmax(1, keepdim=True),
     "nothing is masked.": lambda ids, e: torch.ones_like(ids, dtype=torch.bool),
     "this keeps the padding and drops the text: the mask is inverted.": lambda ids, e: ~_eos_mask(ids, e)})


def _prefix_case(g):
    rows = int(torch.randint(1, 4, (), generator=g))  # one text is a batch too
    mask = torch.arange(5) < torch.randint(1, 6, (rows, 1), generator=g)
    return torch.randn(rows, 5, generator=g), mask


score_of_text = Exercise(
    "score_of_text", ("token_scores", "mask"), _prefix_case, last_token_scores,
    {"this reads the last column, which is padding in shorter rows.": lambda s, m: s[:, -1],
     "one too far: the number of real tokens is the index after the last one.":
         lambda s, m: s.gather(1, m.sum(1, keepdim=True).clamp(max=s.shape[1] - 1))[:, 0],
     "this is the mean over real tokens; the reward of a text is read at its last token.":
         lambda s, m: (s * m).sum(1) / m.sum(1),
     "this is the sum over real tokens; the reward of a text is read at its last token.": lambda s, m: (s * m).sum(1)})

EXERCISES = {e.name: e for e in (best_of_n, kl_penalised_score, eos_mask, score_of_text)}
