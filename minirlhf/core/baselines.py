"""Advantages without a critic: what was to be expected of a response is read off other responses.

A baseline that does not depend on the response it is subtracted from leaves the expected gradient alone; one that does bends it, by
a factor (`group_relative`) or not (dividing by a standard deviation climbs another objective). tests/core enumerates each.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from minirlhf.core.kl import log_ratio
from minirlhf.core.masking import check_same_shape, masked_whiten, zero_masked
from minirlhf.core.returns import reward_to_go


def _centre(group_scores: Tensor) -> Tensor:
    """r_i - mean r of its group; exactly 0 in a group of equal scores, even when their mean rounds."""
    if group_scores.dim() != 2 or group_scores.shape[1] < 2 or len(group_scores) == 0:
        seen = tuple(group_scores.shape)
        raise ValueError(
            f"group_scores must be (N, G) with N >= 1, G >= 2; got {seen}: a group of one has no baseline."
        )
    equal = (group_scores == group_scores[:, :1]).all(1, keepdim=True)
    return torch.where(
        equal, torch.zeros_like(group_scores), group_scores - group_scores.mean(1, keepdim=True)
    )


def group_relative(
    group_scores: Float[Tensor, "N G"],
    *,
    scale_by_std: bool = True,
    unbiased: bool = True,
    eps: float = 1e-4,
    min_std: float = 0.0,
) -> Float[Tensor, "N G"]:
    """GRPO: how a response did beside the others of its prompt.

        A_i = (r_i - mean r) / (max(std r, min_std) + eps)        without std: r_i - mean r

    The mean includes r_i itself, so without std the expected gradient is (G - 1) / G of the true one. A group of equal scores
    gives exactly 0; one of nearly equal scores gives advantages of full size, unless min_std (reward units) is a floor: what differs
    by less than it is not blown up. The std divides by G - 1 with eps 1e-4 as in TRL (verl: eps 1e-6; OpenRLHF: 1e-9).

    Source: Shao et al. 2024 (4.1); without std: Liu et al. 2025 (Dr. GRPO).
    """
    if not min_std >= 0:
        raise ValueError(f"min_std is {min_std}; it must be 0 or more reward units.")
    centred = _centre(group_scores)
    if not scale_by_std:
        return centred
    return centred / (group_scores.std(1, keepdim=True, unbiased=unbiased).clamp(min=min_std) + eps)


def batch_relative(
    group_scores: Float[Tensor, "N G"], *, eps: float = 1e-4
) -> Float[Tensor, "N G"]:
    """GRPO with one unit for all prompts: the group's mean is subtracted, the standard deviation is the whole batch's.

        A_i = (r_i - mean of its group) / (std of all N G scores + eps)        the std divides by N G - 1

    A prompt on which all responses are nearly equal stays small beside one that divides them. TRL's scale_rewards="batch".
    """
    return _centre(group_scores) / (group_scores.std() + eps)


def leave_one_out(group_scores: Float[Tensor, "N G"]) -> Float[Tensor, "N G"]:
    """RLOO: the baseline of a response is the mean of the others, so it is independent of it and adds no bias.

        A_i = r_i - (sum_j r_j - r_i) / (G - 1)  =  G / (G - 1) (r_i - mean r)        computed so: equal scores give exactly 0

    Source: Ahmadian et al. 2024; Kool et al. 2019.
    """
    centred, size = _centre(group_scores), group_scores.shape[1]
    return centred * (size / (size - 1))


def remax(scores: Float[Tensor, "B"], greedy_scores: Float[Tensor, "B"]) -> Float[Tensor, "B"]:
    """ReMax: the baseline of a sample is the score of the greedy response to the same prompt: A_i = r_i - r_greedy.

    It does not depend on the sample, so it adds no bias; it costs a response more a prompt. Source: Li et al. 2023 (ReMax).
    """
    check_same_shape(scores=scores, greedy_scores=greedy_scores)
    return scores - greedy_scores


def running_mean(mean: float, scores: Float[Tensor, "B"], *, decay: float = 0.9) -> float:
    """The baseline of plain REINFORCE, for the NEXT batch: decay mean + (1 - decay) mean(scores).

    Subtract it before it is updated: a mean that has seen the batch depends on the responses it is subtracted from.

    Source: Williams 1992 (reinforcement comparison).
    """
    if not 0 <= decay < 1:
        raise ValueError(f"decay is {decay}; it must be 0 or more and below 1.")
    return decay * mean + (1 - decay) * scores.mean().item()


def reinforce_plus_plus(
    rewards: Float[Tensor, "B R"], response_mask: Bool[Tensor, "B R"]
) -> Float[Tensor, "B R"]:
    """REINFORCE++: the reward from each token on, KL charges included, whitened over all real tokens of the batch.

        G_t = sum_{s >= t} r_s        A_t = (G_t - mean G) / std G        mean and std over the batch, not the group

    The batch's mean is a baseline that has seen the response, and its prompts differ: an easy prompt's responses all look good.

    Args:
        rewards: per token, as `kl_shaped_rewards` makes them. Source: Hu 2025 (REINFORCE++).
    """
    return masked_whiten(reward_to_go(rewards, response_mask), response_mask)


def reinforce_plus_plus_baseline(
    group_scores: Float[Tensor, "N G"], response_mask: Bool[Tensor, "B R"]
) -> Float[Tensor, "B R"]:
    """REINFORCE++-baseline: the group's mean is subtracted first, then all real tokens of the batch are whitened.

        A_it = whiten(r_i - mean of its group)        B = N G rows, a group's side by side

    Source: Hu 2025 (REINFORCE++-baseline; its KL is a loss, k2).
    """
    return masked_whiten(over_tokens(_centre(group_scores), response_mask), response_mask)


def over_tokens(
    group_advantages: Float[Tensor, "N G"], response_mask: Bool[Tensor, "B R"]
) -> Float[Tensor, "B R"]:
    """One number a response to each of its real tokens, 0 where masked; B = N G rows, a group's side by side."""
    if group_advantages.numel() != len(response_mask):
        raise ValueError(
            f"{tuple(group_advantages.shape)} advantages do not fit the {len(response_mask)} rows of the mask."
        )
    return zero_masked(group_advantages.reshape(-1, 1).expand(response_mask.shape), response_mask)


def charge_tokens(
    advantages: Float[Tensor, "B R"],
    old_logprobs: Float[Tensor, "B R"],
    ref_logprobs: Float[Tensor, "B R"],
    response_mask: Bool[Tensor, "B R"],
    *,
    kl_coef: float,
) -> Float[Tensor, "B R"]:
    """The KL penalty after the baseline: each token pays for itself and what follows, as OpenRLHF's RLOO does.

        A_t <- A_t - kl_coef sum_{s >= t} (log pi_old - log pi_ref)_s

    What was charged before a token does not enter its advantage (it cannot be helped any more): less noise than a charge on the whole
    response, the same mean. But the group's mean of the charges is no baseline here.
    """
    if not kl_coef >= 0:
        raise ValueError(f"kl_coef is {kl_coef}; it must be 0 or more.")
    charges = log_ratio(old_logprobs, ref_logprobs, response_mask)
    check_same_shape(advantages=advantages, charges=charges)
    return zero_masked(advantages, response_mask) - kl_coef * reward_to_go(charges, response_mask)
