"""Lesson 00: the simplest use of a score, and the leash by hand."""

import torch

from minirlhf.classroom.exercise import Exercise
from minirlhf.search.selection import best_index


def _scores_case(g):
    prompts, n = torch.randint(2, 5, (2,), generator=g).tolist()
    return torch.randn(prompts * n, generator=g), n


best_of_n = Exercise(
    "best_of_n",
    ("scores", "n"),
    _scores_case,
    best_index,
    {
        "these are places within each group; add where the group begins (prompt number * n).": lambda s, n: (
            s.view(-1, n).argmax(1)
        ),
        "a group begins at prompt number * n; you added the prompt number alone.": lambda s, n: (
            torch.arange(len(s) // n) + s.view(-1, n).argmax(1)
        ),
        "this picks the worst of each group: argmin for argmax.": lambda s, n: (
            torch.arange(len(s) // n) * n + s.view(-1, n).argmin(1)
        ),
        "the n samples of one prompt stand side by side; you took every n-th sample for a group.": lambda s, n: (
            s.view(n, -1).argmax(0) * (len(s) // n) + torch.arange(len(s) // n)
        ),
    },
)


def _kl_case(g):
    mask = torch.arange(3) < torch.randint(1, 4, (2, 1), generator=g)
    logprobs, ref_logprobs = -torch.rand(2, 2, 3, generator=g)
    if (
        torch.rand((), generator=g) < 0.5
    ):  # padding may hold anything: here NaN, there numbers like any others
        logprobs = torch.where(mask, logprobs, torch.nan)
    return (
        torch.randn(2, generator=g),
        logprobs,
        ref_logprobs,
        mask,
        torch.rand((), generator=g).item(),
    )


def _penalised(scores, logprobs, ref_logprobs, mask, kl_coef):
    return scores - kl_coef * torch.where(mask, logprobs - ref_logprobs, 0.0).sum(1)


kl_penalised_score = Exercise(
    "kl_penalised_score",
    ("scores", "logprobs", "ref_logprobs", "mask", "kl_coef"),
    _kl_case,
    _penalised,
    {
        "the log-ratio is reversed: it is log pi - log pi_ref, the policy first; this pays for drifting away.": lambda s, a, b, m, k: (
            _penalised(s, b, a, m, k)
        ),
        "this takes the mean over tokens; the penalty of a response is the sum.": lambda s, a, b, m, k: (
            s - k * torch.where(m, a - b, 0.0).sum(1) / m.sum(1)
        ),
        "the coefficient is missing.": lambda s, a, b, m, k: _penalised(s, a, b, m, 1.0),
        "padding is counted where it is no NaN: `nansum` and `nan_to_num` hide NaN, they do not look at the mask.": lambda s, a, b, m, k: (
            s - k * (a - b).nansum(1)
        ),
    },
)
