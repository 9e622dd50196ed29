"""Exercises of lesson 00: best of n, and the KL penalty by hand."""

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
        "these are indices within each group: each lies between 0 and n - 1. "
        "You need rows of `scores`, where the groups stand one after the other.": lambda s, n: (
            s.view(-1, n).argmax(1)
        ),
        "you added the prompt number to the index within the group. "
        "At which row of `scores` does the third group begin, if n is 4?": lambda s, n: (
            torch.arange(len(s) // n) + s.view(-1, n).argmax(1)
        ),
        "this picks the worst sample of each group. Use argmax, not argmin.": lambda s, n: (
            torch.arange(len(s) // n) * n + s.view(-1, n).argmin(1)
        ),
        "the n samples of one prompt are next to each other in `scores`. "
        "Your groups mix samples of different "
        "prompts: reshape to (N, n), not to (n, N).": lambda s, n: (
            s.view(n, -1).argmax(0) * (len(s) // n) + torch.arange(len(s) // n)
        ),
    },
)


def _kl_case(g):
    mask = torch.arange(3) < torch.randint(1, 4, (2, 1), generator=g)
    logprobs, ref_logprobs = -torch.rand(2, 2, 3, generator=g)
    # Padding can hold anything: NaN in half of the cases, ordinary numbers in the others.
    if torch.rand((), generator=g) < 0.5:
        logprobs = torch.where(mask, logprobs, torch.nan)
    return (
        torch.randn(2, generator=g),
        logprobs,
        ref_logprobs,
        mask,
        torch.rand((), generator=g).item(),
    )


# The second token is so unlikely that its probability is 0 in float32, and its logarithm is not.
_UNLIKELY = (
    torch.tensor([1.0]),
    torch.tensor([[-1.0, -300.0]]),
    torch.tensor([[-2.0, -302.0]]),
    torch.tensor([[True, True]]),
    0.5,
)


def _penalised(scores, logprobs, ref_logprobs, mask, kl_coef):
    return scores - kl_coef * torch.where(mask, logprobs - ref_logprobs, 0.0).sum(1)


kl_penalised_score = Exercise(
    "kl_penalised_score",
    ("scores", "logprobs", "ref_logprobs", "mask", "kl_coef"),
    _kl_case,
    _penalised,
    {
        "the log-ratio is reversed. It is log pi - log pi_ref, with the policy first. "
        "Yours rewards the policy for "
        "moving away from the reference.": lambda s, a, b, m, k: _penalised(s, b, a, m, k),
        "this uses the mean over tokens. "
        "The KL penalty of a response is the sum over its tokens.": lambda s, a, b, m, k: (
            s - k * torch.where(m, a - b, 0.0).sum(1) / m.sum(1)
        ),
        "this uses the mean over all positions, padding included. "
        "The KL penalty of a response is a sum: "
        "its probability is a product over its tokens.": lambda s, a, b, m, k: (
            s - k * torch.where(m, a - b, 0.0).mean(1)
        ),
        "`kl_coef` is missing. Multiply the KL penalty by it.": lambda s, a, b, m, k: _penalised(
            s, a, b, m, 1.0
        ),
        "padding is counted wherever it is not NaN. `nansum` and `nan_to_num` "
        "only hide NaN: use the mask.": lambda s, a, b, m, k: s - k * (a - b).nansum(1),
        "you divide probabilities. That of a very unlikely token is rounded to 0, "
        "and 0 / 0 is NaN. Subtract the log-probabilities instead.": lambda s, a, b, m, k: (
            s - k * torch.where(m, (a.exp() / b.exp()).log(), 0.0).sum(1)
        ),
    },
    edges=(_UNLIKELY,),
)
