"""Best-of-n: sample n responses and keep the one with the highest score.

    best_of_n_kl            how far best-of-n is from the policy: a bound from n alone
    best_of_n_probs         the exact distribution of the response that is kept, where all responses
                            and their probabilities are known
    best_of_n_mean          the mean of another value, such as the gold score, of the response that
                            is kept: an estimate from n samples or, with less noise, from more

Shapes: P prompts with N samples each, or Y possible responses. KL is in nats, the unit of natural
logarithms.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from minirlhf.core.checks import checked


@checked
def best_of_n_kl(n: int) -> float:
    """Upper bound of the KL divergence of best-of-n from the policy, in nats.

        log n - (n - 1) / n

    It is 0 for n = 1. It is nearly exact as long as each response is much rarer than 1 / n and no
    two responses have the same score. It grows without end, while the exact KL stops at log(1 / p)
    for the best response of probability p; `best_of_n_probs` gives that.

    Raises:
        ValueError: n is below 1.

    Source: Beirami et al. 2024.
    """
    if n < 1:
        raise ValueError(f"n is {n}; it must be at least 1.")
    return math.log(n) - (n - 1) / n


@checked
def best_of_n_probs(
    probs: Float[Tensor, "Y"], scores: Float[Tensor, "Y"], n: int
) -> Float[Tensor, "Y"]:
    """The probability that best-of-n keeps each response, where all Y of them are known.

        P(y) = F(y)^n - F(below y)^n

    F(y) is the probability of a response with at most the score of y, and F(below y) of one with a
    lower score. Responses with equal scores share this in proportion to their probabilities, as if
    the tie were broken by chance.

    The exact KL of best-of-n is then sum over y of P(y) log(P(y) / p(y)).

    Args:
        probs: p of each response under the policy; their sum is 1.
        scores: what the best response is chosen by.
        n: samples, at least 1.

    Returns:
        P of each response; their sum is 1.

    Raises:
        ValueError: n is below 1, the probabilities do not sum to 1, a score is NaN, or shapes
            differ.

    Source: Beirami et al. 2024.
    """
    if n < 1:
        raise ValueError(f"n is {n}; it must be at least 1.")
    total = probs.double().sum()
    if not (abs(total.item() - 1) < 1e-4 and (probs >= 0).all()):
        raise ValueError(f"probs sum to {total.item():g}; they must be 0 or more and sum to 1.")
    _check_scores(scores)
    exact = probs.double() / total  # an error in the sum would be raised to the power n
    below = (scores[:, None] > scores).double() @ exact
    group = (scores[:, None] == scores).double() @ exact  # of all responses with this score
    kept = (below + group).pow(n) - below.pow(n)
    return torch.where(group > 0, kept * exact / group, exact).to(probs.dtype)


@checked
def best_of_n_mean(
    values: Float[Tensor, "P N"], scores: Float[Tensor, "P N"], n: int
) -> Float[Tensor, "P"]:
    """Mean value of the best of n samples, estimated without bias from N samples of each prompt.

    Of all C(N, n) ways to take n of the N samples, this is the mean over all of them of the value
    of the one with the highest score. Sort the samples by score, the lowest first. Sample i is the
    best of the n if the others are among the i - 1 below it:

        estimate = sum over i of value_i C(i - 1, n - 1) / C(N, n)

    With n = 1 it is the mean value, with n = N the value of the best sample. Taking the first n
    samples instead uses only n of the N samples, so it is as right on average, but noisy. Samples
    with equal scores count as one group: each of them is kept equally often.

    Args:
        values: what is wanted of the kept response, for example its gold score; for the score
            itself give `scores` twice.
        scores: what it is chosen by, for example the score of a reward model (the proxy).
        n: from 1 to N.

    Returns:
        One mean per prompt, in units of the values.

    Raises:
        ValueError: n is out of range, a score is NaN, or shapes differ.

    Source: Nakano et al. 2021 (WebGPT), appendix I.
    """
    count = scores.shape[1]
    if not 1 <= n <= count:
        raise ValueError(f"n is {n}; it must be from 1 to the {count} samples of a prompt.")
    _check_scores(scores)
    # all_below[k] = C(k, n) / C(N, n): the chance that all n samples are among the lowest k.
    # Each is the next one times (k + 1 - n) / (k + 1).
    k = torch.arange(count, 0, -1, dtype=torch.float64, device=scores.device)
    steps = (k - n).clamp(min=0) / k
    all_below = torch.cat([torch.ones_like(steps[:1]), steps]).cumprod(0).flip(0)
    ordered = scores.sort(1).values
    low = torch.searchsorted(ordered, scores.contiguous())
    high = torch.searchsorted(ordered, scores.contiguous(), right=True)
    weights = (all_below[high] - all_below[low]) / (high - low)
    return (values.double() * weights).sum(1).to(values.dtype)


def _check_scores(scores: Tensor) -> None:
    if scores.isnan().any():
        where = scores.isnan().nonzero()[0].tolist()
        raise ValueError(f"scores{where} is NaN; every score must be a number.")
