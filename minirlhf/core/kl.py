"""KL(policy || ref), tokens sampled from the policy: estimators, the exact value, and the penalty in the reward.

log_ratio = logprob - ref_logprob at the sampled token. Value and gradient of an estimator are two questions. What is said of
gradients below holds for one token, or with the whole sequence's log-ratio in a token's place; summed per token, k2, k3 and
the exact KL leave out what a token does to later prefixes, and only k1 in the reward carries it (tests/core enumerates all
of them). Source of k1, k2, k3: Schulman, "Approximating KL divergence" (2020).
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from minirlhf.core.masking import check_same_shape, zero_masked


def log_ratio(
    logprobs: Float[Tensor, "B R"],
    ref_logprobs: Float[Tensor, "B R"],
    response_mask: Bool[Tensor, "B R"],
) -> Float[Tensor, "B R"]:
    """log pi - log pi_ref at the sampled tokens, nats; 0 where masked. The policy comes first: reversed, KL < 0 on average."""
    return zero_masked(logprobs, response_mask) - zero_masked(ref_logprobs, response_mask)


def k1(
    logprobs: Float[Tensor, "B R"],
    ref_logprobs: Float[Tensor, "B R"],
    response_mask: Bool[Tensor, "B R"],
) -> Float[Tensor, "B R"]:
    """log_ratio: unbiased, may be negative on a sample; its gradient as an on-policy loss is 0 on average."""
    return log_ratio(logprobs, ref_logprobs, response_mask)


def k2(
    logprobs: Float[Tensor, "B R"],
    ref_logprobs: Float[Tensor, "B R"],
    response_mask: Bool[Tensor, "B R"],
) -> Float[Tensor, "B R"]:
    """log_ratio^2 / 2: biased, never negative; its on-policy gradient is that of KL(policy || ref)."""
    return 0.5 * log_ratio(logprobs, ref_logprobs, response_mask).square()


def k3(
    logprobs: Float[Tensor, "B R"],
    ref_logprobs: Float[Tensor, "B R"],
    response_mask: Bool[Tensor, "B R"],
) -> Float[Tensor, "B R"]:
    """exp(-log_ratio) - 1 + log_ratio: unbiased, never negative; its on-policy gradient is that of KL(ref || policy).

    expm1, because exp(x) - 1 loses all digits where policy and reference nearly agree.
    """
    difference = log_ratio(logprobs, ref_logprobs, response_mask)
    return torch.expm1(-difference) + difference


def exact_kl(
    logits: Float[Tensor, "B R V"],
    ref_logits: Float[Tensor, "B R V"],
    response_mask: Bool[Tensor, "B R"],
) -> Float[Tensor, "B R"]:
    """sum_v p_v (log p_v - log q_v) at each position, nats: the average of k1 over the token, without its noise.

    A word that the policy forbids adds 0; one that the reference alone forbids makes the KL infinite.
    """
    check_same_shape(logits=logits, ref_logits=ref_logits)
    logits, ref_logits = (
        torch.where(response_mask[..., None], x, torch.zeros_like(x)) for x in (logits, ref_logits)
    )
    log_p, log_q = logits.log_softmax(-1), ref_logits.log_softmax(-1)
    difference = torch.where(log_p.isneginf(), torch.zeros_like(log_p), log_p - log_q)
    return zero_masked((log_p.exp() * difference).sum(-1), response_mask)


def kl_shaped_rewards(
    scores: Float[Tensor, "B"],
    old_logprobs: Float[Tensor, "B R"],
    ref_logprobs: Float[Tensor, "B R"],
    response_mask: Bool[Tensor, "B R"],
    *,
    kl_coef: float,
) -> Float[Tensor, "B R"]:
    """The reward of each token: a KL penalty everywhere, the score on the last real token (EOS included).

        r_t = -kl_coef (log pi_old - log pi_ref)_t + [t = last] score

    Fixed over PPO's epochs, hence old_logprobs. A fully masked row has no token to carry its score: all 0.
    (TRL puts the score on the position after EOS when there is one; OpenRLHF, as here, on the last action.)

    Raises:
        ValueError: a negative kl_coef, or shapes that do not fit.
    """
    if not kl_coef >= 0:
        raise ValueError(f"kl_coef is {kl_coef}; it must be 0 or more.")
    if scores.shape != response_mask.shape[:1]:
        raise ValueError(
            f"scores must have one number a row; got {tuple(scores.shape)} for mask {tuple(response_mask.shape)}."
        )
    last = response_mask & (response_mask.sum(1, keepdim=True) == response_mask.cumsum(1))
    penalty = kl_coef * log_ratio(old_logprobs, ref_logprobs, response_mask)
    return torch.where(last, scores[:, None], torch.zeros_like(penalty)) - penalty


def adapt_kl_coef(
    kl_coef: float, kl: float, *, target: float, horizon: float, batch_size: int
) -> float:
    """Ziegler et al. 2019 (2.2): a proportional controller in log space, its error clipped to +-20 %.

        error = clip(kl / target - 1, -0.2, 0.2)        kl_coef <- kl_coef (1 + error batch_size / horizon)

    Args:
        kl, target: nats a sequence. horizon: sequences.
    """
    if not (kl_coef >= 0 and target > 0 and horizon > 0 and batch_size > 0):
        raise ValueError(
            "kl_coef must be 0 or more, target, horizon and batch_size above 0; "
            f"got {kl_coef}, {target}, {horizon} and {batch_size}."
        )
    error = min(max(kl / target - 1, -0.2), 0.2)
    return kl_coef * (1 + error * batch_size / horizon)
