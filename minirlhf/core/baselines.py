"""Advantages without a critic.

A baseline is an estimate of the expected reward, and is subtracted from the reward of a response. A
critic is a network that predicts it. The functions here compute it from scores instead: those of
the samples of the same prompt, of the whole batch, of a greedy response, or of earlier batches. The
mean of a group or of a batch includes the response itself; `leave_one_out` excludes it.

A baseline that does not depend on the response leaves the expected policy gradient unchanged. A
baseline that depends on the response may change it. The group mean multiplies the expected gradient
by a constant (see `group_relative`). Dividing by a standard deviation changes the objective. The
tests compute the expected gradient of each function exactly.

Shapes and symbols used below:

    N prompts with G sampled responses each; group_scores is (N, G), one row per prompt
    B = N G rows of a batch, the G responses to one prompt next to each other; R tokens
    r_i         the score of response i; a reward unit is the unit of the scores
    A_i         its advantage
    return_t    the sum of the rewards from token t to the end

`response_mask` is True at the tokens that count; for a Rollout pass `batch.action_mask`.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from minirlhf.core.checks import check_finite, check_not_negative, checked
from minirlhf.core.kl import log_ratio
from minirlhf.core.masking import masked_whiten, zero_masked
from minirlhf.core.returns import reward_to_go


def _centre(group_scores: Tensor) -> Tensor:
    """Score minus the mean of its group, r_i - mean r.

    It is exactly 0 in a group of equal scores, even if their mean is rounded.
    """
    if group_scores.dim() != 2 or group_scores.shape[1] < 2 or len(group_scores) == 0:
        seen = tuple(group_scores.shape)
        raise ValueError(
            f"group_scores has shape {seen}; it must be (N, G) with N >= 1 and G >= 2, "
            "because a group of one has no baseline."
        )
    equal = (group_scores == group_scores[:, :1]).all(1, keepdim=True)
    return torch.where(
        equal, torch.zeros_like(group_scores), group_scores - group_scores.mean(1, keepdim=True)
    )


def _scaled(centred: Tensor, scale: Tensor) -> Tensor:
    """centred / scale. A scale of 0, that of equal scores without eps, leaves them at 0."""
    return centred / scale.masked_fill(scale == 0, 1)


@checked
def group_relative(
    group_scores: Float[Tensor, "N G"],
    *,
    scale_by_std: bool = True,
    unbiased: bool = True,
    eps: float = 1e-4,
    min_std: float = 0.0,
) -> Float[Tensor, "N G"]:
    """Advantage of group relative policy optimisation (GRPO): the score relative to the group.

        scale_by_std=True     A_i = (r_i - mean r) / (max(std r, min_std) + eps)
        scale_by_std=False    A_i = r_i - mean r

    Mean and standard deviation are those of the G responses to the same prompt. The mean includes
    r_i itself. So without the standard deviation the expected gradient is (G - 1) / G times the
    true one.

    A group of equal scores gives exactly 0. A group of nearly equal scores gives advantages as
    large as any other group, unless min_std sets a lower limit. Differences that are small compared
    with min_std then stay small.

    The defaults are those of TRL: the sum of squares is divided by G - 1, and eps is 1e-4. verl and
    OpenRLHF also divide by G - 1; their eps is 1e-6 and 1e-9.

    Args:
        group_scores: r_i, reward units.
        scale_by_std: divide by the standard deviation of the group. Dr. GRPO does not.
        unbiased: divide the sum of squares by G - 1 (True) or by G (False).
        eps: added to the standard deviation, reward units, 0 or more.
        min_std: lower limit of the standard deviation, reward units, 0 or more.

    Returns:
        One advantage per response: without unit if scaled, in reward units if not.

    Raises:
        ValueError: groups of one, no group, or a negative eps or min_std.

    Source: Shao et al. 2024 (4.1); without the standard deviation: Liu et al. 2025 (Dr. GRPO).
    """
    check_not_negative(eps=eps, min_std=min_std)
    centred = _centre(group_scores)
    if not scale_by_std:
        return centred
    return _scaled(
        centred, group_scores.std(1, keepdim=True, unbiased=unbiased).clamp(min=min_std) + eps
    )


@checked
def batch_relative(
    group_scores: Float[Tensor, "N G"], *, eps: float = 1e-4
) -> Float[Tensor, "N G"]:
    """GRPO advantage scaled by the standard deviation of the whole batch.

        A_i = (r_i - mean of its group) / (std of all N G scores + eps)

    All prompts share one scale. So the advantages of a prompt whose scores are nearly equal stay
    smaller than those of a prompt whose scores differ. This is scale_rewards="batch" in TRL. The
    sum of squares is divided by N G - 1.

    Args:
        group_scores: r_i, reward units.
        eps: added to the standard deviation, reward units, 0 or more.

    Returns:
        One advantage per response, without unit.

    Raises:
        ValueError: groups of one, no group, or a negative eps.
    """
    check_not_negative(eps=eps)
    return _scaled(_centre(group_scores), group_scores.std() + eps)


@checked
def leave_one_out(group_scores: Float[Tensor, "N G"]) -> Float[Tensor, "N G"]:
    """REINFORCE leave-one-out (RLOO) advantage, relative to the mean of the other scores.

        A_i = r_i - (sum_j r_j - r_i) / (G - 1)

    The baseline of response i is the mean score of the other G - 1 responses to its prompt. It does
    not depend on response i, so it adds no bias. The function computes the equal expression
    G / (G - 1) (r_i - mean r), which gives exactly 0 for equal scores.

    Args:
        group_scores: r_i, reward units.

    Returns:
        One advantage per response, reward units.

    Raises:
        ValueError: groups of one, or no group.

    Source: Ahmadian et al. 2024; Kool et al. 2019.
    """
    centred, size = _centre(group_scores), group_scores.shape[1]
    return centred * (size / (size - 1))


@checked
def remax(scores: Float[Tensor, "B"], greedy_scores: Float[Tensor, "B"]) -> Float[Tensor, "B"]:
    """ReMax advantage: the baseline is the score of the greedy response to the same prompt.

        A_i = r_i - r_greedy

    The baseline does not depend on the sampled response, so it adds no bias. It costs one more
    response per prompt.

    Args:
        scores: r_i of one sampled response per prompt, reward units.
        greedy_scores: r_greedy of the same prompt, reward units.

    Returns:
        One advantage per response, reward units.

    Raises:
        ValueError: shapes differ.

    Source: Li et al. 2023 (ReMax).
    """
    return scores - greedy_scores


@checked
def running_mean(mean: float, scores: Float[Tensor, "B"], *, decay: float = 0.9) -> float:
    """Running mean of the scores: the baseline of plain REINFORCE, for the next batch.

        new mean = decay mean + (1 - decay) mean(scores)

    Subtract the old mean from a batch before you update it with that batch. A mean that already
    contains the batch depends on the responses from which it is subtracted.

    Args:
        mean: the running mean before this batch, reward units.
        scores: scores of this batch, reward units.
        decay: weight of the old mean, from 0 to below 1.

    Returns:
        The running mean for the next batch, reward units.

    Raises:
        ValueError: decay is out of range, or mean or a score is not finite: it would stay in every
            later mean.

    Source: Williams 1992 (reinforcement comparison).
    """
    if not 0 <= decay < 1:
        raise ValueError(f"decay is {decay}; it must be 0 or more and below 1.")
    of_batch = scores.mean().item()
    check_finite(mean=mean, mean_of_scores=of_batch)
    return decay * mean + (1 - decay) * of_batch


@checked
def reinforce_plus_plus(
    rewards: Float[Tensor, "B R"], response_mask: Bool[Tensor, "B R"]
) -> Float[Tensor, "B R"]:
    """REINFORCE++ advantage: the reward-to-go, whitened over all real tokens of the batch.

        return_t = sum over s >= t of r_s
        A_t      = (return_t - mean return) / std return

    The rewards r_s include the KL penalties. Mean and standard deviation are taken over all real
    tokens of the batch, not over a group.

    The batch mean contains the response itself, so it is not an independent baseline. It also mixes
    prompts: all responses to an easy prompt look better than average.

    The sum of squares is divided by the number of tokens n. verl divides by n - 1.

    Args:
        rewards: r_s of each token, reward units, as `kl.kl_shaped_rewards` returns them.
        response_mask: True at the tokens that count.

    Returns:
        One advantage per token, without unit; 0 where masked.

    Raises:
        ValueError: no token counts, or shapes differ.

    Source: Hu 2025 (REINFORCE++).
    """
    return masked_whiten(reward_to_go(rewards, response_mask), response_mask)


@checked
def reinforce_plus_plus_baseline(
    group_scores: Float[Tensor, "N G"], response_mask: Bool[Tensor, "B R"]
) -> Float[Tensor, "B R"]:
    """REINFORCE++-baseline advantage: group-centred scores, whitened over the tokens of the batch.

        A_it = whiten(r_i - mean of its group)

    Every real token of response i gets the score minus the mean of its group. Then all real tokens
    of the batch are whitened: scaled to mean 0 and variance 1. The sum of squares is divided by the
    number of tokens n. verl divides by n - 1.

    The KL penalty is not part of the rewards here; in the paper it is a loss, k2.

    Args:
        group_scores: r_i, reward units.
        response_mask: True at the tokens that count; B = N G rows, a group's responses next to each
            other.

    Returns:
        One advantage per token, without unit; 0 where masked.

    Raises:
        ValueError: groups of one, no group, no token counts, or B is not N G.

    Source: Hu 2025 (REINFORCE++-baseline).
    """
    return masked_whiten(over_tokens(_centre(group_scores), response_mask), response_mask)


@checked
def over_tokens(
    group_advantages: Float[Tensor, "N G"], response_mask: Bool[Tensor, "B R"]
) -> Float[Tensor, "B R"]:
    """Copy the advantage of each response to its real tokens.

    Args:
        group_advantages: one advantage per response.
        response_mask: True at the tokens that count; B = N G rows, a group's responses next to each
            other.

    Returns:
        The advantage of its response at each token; 0 where masked.

    Raises:
        ValueError: B is not N G.
    """
    if group_advantages.numel() != len(response_mask):
        raise ValueError(
            f"{tuple(group_advantages.shape)} advantages do not fit the {len(response_mask)} rows "
            "of response_mask; there must be one advantage per row."
        )
    return zero_masked(group_advantages.reshape(-1, 1).expand(response_mask.shape), response_mask)


@checked
def charge_tokens(
    advantages: Float[Tensor, "B R"],
    old_logprobs: Float[Tensor, "B R"],
    ref_logprobs: Float[Tensor, "B R"],
    response_mask: Bool[Tensor, "B R"],
    *,
    kl_coef: float,
) -> Float[Tensor, "B R"]:
    """Subtract the KL penalty from advantages, token by token.

        A_t <- A_t - kl_coef * sum over s >= t of (log pi_old - log pi_ref)_s

    Here the penalty enters after the baseline, as in OpenRLHF's RLOO. The advantage of a token is
    lowered by its own penalty and by those of all later tokens. Penalties of earlier tokens are
    left out, because this token cannot change them. The expected gradient is the same as with the
    penalty of the whole response, and it is less noisy. The penalties themselves have no baseline:
    their group mean, for example, is not subtracted.

    Args:
        advantages: A_t, reward units.
        old_logprobs, ref_logprobs: log pi_old and log pi_ref of each token, nats (units of the
            natural logarithm).
        response_mask: True at the tokens that count.
        kl_coef: the KL coefficient, reward units per nat, 0 or more.

    Returns:
        One advantage per token; 0 where masked.

    Raises:
        ValueError: kl_coef is negative, or shapes differ.
    """
    check_not_negative(kl_coef=kl_coef)
    charges = log_ratio(old_logprobs, ref_logprobs, response_mask)
    return zero_masked(advantages, response_mask) - kl_coef * reward_to_go(charges, response_mask)
