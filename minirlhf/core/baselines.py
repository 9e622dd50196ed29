"""Advantages without a critic: a prompt's other samples are the baseline."""

import torch
from jaxtyping import Float
from torch import Tensor


def _centre(group_scores: Tensor) -> Tensor:
    """r_i - mean r of its group; exactly 0 in a group of equal scores, even when their mean rounds."""
    if group_scores.dim() != 2 or group_scores.shape[1] < 2 or len(group_scores) == 0:
        seen = tuple(group_scores.shape)
        raise ValueError(f"group_scores must be (N, G) with N >= 1, G >= 2; got {seen}: a group of one has no baseline.")
    equal = (group_scores == group_scores[:, :1]).all(1, keepdim=True)
    return torch.where(equal, torch.zeros_like(group_scores), group_scores - group_scores.mean(1, keepdim=True))


def group_relative(group_scores: Float[Tensor, "N G"], *, scale_by_std: bool = True, unbiased: bool = True,
                   eps: float = 1e-4) -> Float[Tensor, "N G"]:
    """GRPO: how a response did beside the others of its prompt.

        A_i = (r_i - mean r) / (std r + eps)        without std: r_i - mean r

    The mean includes r_i itself, so without std the expected gradient is (G - 1) / G of the true one. A group of equal scores
    gives exactly 0. The std divides by G - 1 with eps 1e-4 as in TRL (verl: eps 1e-6; OpenRLHF: 1e-9).

    Source: Shao et al. 2024 (4.1); without std: Liu et al. 2025 (Dr. GRPO).
    """
    centred = _centre(group_scores)
    if not scale_by_std:
        return centred
    return centred / (group_scores.std(1, keepdim=True, unbiased=unbiased) + eps)


def leave_one_out(group_scores: Float[Tensor, "N G"]) -> Float[Tensor, "N G"]:
    """RLOO: the baseline of a response is the mean of the others, so it is independent of it and adds no bias.

        A_i = r_i - (sum_j r_j - r_i) / (G - 1)  =  G / (G - 1) (r_i - mean r)        computed so: equal scores give exactly 0

    Source: Ahmadian et al. 2024; Kool et al. 2019.
    """
    centred, size = _centre(group_scores), group_scores.shape[1]
    return centred * (size / (size - 1))
