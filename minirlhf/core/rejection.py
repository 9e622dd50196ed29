"""Rejection sampling: keep some samples of one policy, so that they are like samples of another."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from minirlhf.core.checks import check_above_0, checked


@checked
def rejection_sample(
    scores: Float[Tensor, "B K"],
    *,
    beta: float,
    count: int = 1,
    generator: torch.Generator | None = None,
) -> Int[Tensor, "B count"]:
    """Choose `count` of the K responses to each prompt by rejection sampling.

        1. Propose one of the remaining responses at random.
        2. Accept it with probability exp((r - max r) / beta). Otherwise go back to 1.

    The K responses are sampled from a policy pi, and r is the score. The accepted responses are
    like samples from the Gibbs policy pi exp(r / beta) / Z, where Z makes the probabilities add up
    to 1. No training is needed. This holds in the limit of large K. With few responses max r is the
    maximum of K scores instead of the maximum over all responses, and the selection is milder.

    The first accepted response is column i with probability softmax(r / beta)_i. The next ones
    follow the same rule among the remaining columns. The function draws from the same distribution
    without proposals: it adds Gumbel noise to r / beta and takes the `count` largest. As beta goes
    to 0 these are the best responses; for large beta they are a random choice.

    Args:
        scores: r of the K responses to each of B prompts, reward units.
        beta: reward units per nat, above 0.
        count: how many responses to choose, from 1 to K.
        generator: source of random numbers; torch's global one if None.

    Returns:
        Numbers of the chosen responses, 0 to K - 1, in the order in which they are accepted.

    Raises:
        ValueError: beta is not above 0, a score is not finite, or count is not from 1 to K.

    Source: Liu et al. 2023 (RSO), section 3.2. Their code proposes each response once per round, in
    order, which is close to this.
    """
    check_above_0(beta=beta)
    if not scores.isfinite().all():
        raise ValueError("scores has NaN or infinity; every score must be finite.")
    if not 1 <= count <= scores.shape[1]:
        raise ValueError(
            f"count is {count}; it must be from 1 to {scores.shape[1]}, the responses per prompt."
        )
    uniform = torch.rand(scores.shape, dtype=torch.float64, generator=generator, device="cpu")
    uniform = uniform.to(scores.device).clamp(min=torch.finfo(torch.float64).tiny)
    return (scores.double() / beta - (-uniform.log()).log()).topk(count).indices
