"""Rejection sampling: responses of another policy from those of this one, without training it."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def rejection_sample(
    scores: Float[Tensor, "B K"],
    *,
    beta: float,
    count: int = 1,
    generator: torch.Generator | None = None,
) -> Int[Tensor, "B count"]:
    """Which `count` of K responses drawn from pi to keep, so that they are like draws from pi exp(r / beta) / Z; numbers of columns.

        propose one of those left at random, take it with probability exp((r - max r) / beta), else propose again

    The first is column i with probability softmax(r / beta)_i, the next likewise among the others: so the `count` largest of r / beta
    with Gumbel noise are taken, and nothing is proposed twice. As beta goes to 0 they are the best, as it grows any. The target is met
    as K grows; with few the best of K stands for the best of all, which is milder.

    Args:
        scores: reward units. beta: reward units per nat. generator: torch's global one by default.

    Raises:
        ValueError: a beta that is not above 0, or a count that K does not allow.

    Source: Liu et al. 2023 (RSO), section 3.2 (their code proposes each once a round, in order, which is close to it).
    """
    if not beta > 0:
        raise ValueError(f"beta is {beta}; it must be above 0.")
    if not 1 <= count <= scores.shape[1]:
        raise ValueError(
            f"count is {count}; it must be from 1 to the {scores.shape[1]} responses of a prompt."
        )
    uniform = torch.rand(scores.shape, dtype=torch.float64, generator=generator).clamp(
        min=torch.finfo(torch.float64).tiny
    )
    return (scores.double() / beta - (-uniform.log()).log()).topk(count).indices
