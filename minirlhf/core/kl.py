"""Estimators of KL(policy || reference), its exact value, and the KL penalty in the reward.

The tokens are sampled from the policy pi. At each sampled token

    log_ratio = log pi - log pi_ref        in nats, the unit of natural logarithms

The value and the gradient of an estimator are two separate questions. The value: is the mean of the
estimator the Kullback-Leibler (KL) divergence? The gradient: in which direction does the policy
move if the estimator is used as a loss on its own samples?

    estimator    formula                            value       mean gradient as a loss
    k1           log_ratio                          unbiased    0
    k2           log_ratio^2 / 2                    biased      the gradient of KL(policy || ref)
    k3           exp(-log_ratio) - 1 + log_ratio    unbiased    the gradient of KL(ref || policy)

The last column holds for a single token. It also holds for a whole sequence if log_ratio is that of
the sequence. Libraries sum one term per token over the sequence instead. Then k2, k3 and the exact
KL, used as a loss, leave out the effect of a token on later prefixes. Only k1, placed in the
reward, includes this effect (`kl_shaped_rewards`). The tests compute each of these gradients
exactly.

Shapes: B responses of at most R tokens, V words in the vocabulary. `response_mask` is True at the
tokens that count; for a Rollout pass `batch.action_mask`.

Source of k1, k2 and k3: Schulman, "Approximating KL divergence" (2020).
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from minirlhf.core.checks import check_above_0, check_finite, check_not_negative, checked
from minirlhf.core.masking import zero_masked


@checked
def log_ratio(
    logprobs: Float[Tensor, "B R"],
    ref_logprobs: Float[Tensor, "B R"],
    response_mask: Bool[Tensor, "B R"],
) -> Float[Tensor, "B R"]:
    """Log-ratio log pi - log pi_ref of each sampled token.

    The policy comes first. In the other order the mean would be minus the KL, below 0.

    Args:
        logprobs, ref_logprobs: log pi and log pi_ref of the sampled tokens, nats.
        response_mask: True at the tokens that count.

    Returns:
        Nats; 0 where masked.

    Raises:
        ValueError: shapes differ.
    """
    return zero_masked(logprobs, response_mask) - zero_masked(ref_logprobs, response_mask)


@checked
def k1(
    logprobs: Float[Tensor, "B R"],
    ref_logprobs: Float[Tensor, "B R"],
    response_mask: Bool[Tensor, "B R"],
) -> Float[Tensor, "B R"]:
    """Estimator k1 of KL(policy || ref) at each token.

        k1 = log_ratio

    It is unbiased, and may be negative on a sample. As a loss on samples of the policy its gradient
    is 0 on average.

    Args:
        logprobs, ref_logprobs: log pi and log pi_ref of the sampled tokens, nats.
        response_mask: True at the tokens that count.

    Returns:
        Nats; 0 where masked.
    """
    return log_ratio(logprobs, ref_logprobs, response_mask)


@checked
def k2(
    logprobs: Float[Tensor, "B R"],
    ref_logprobs: Float[Tensor, "B R"],
    response_mask: Bool[Tensor, "B R"],
) -> Float[Tensor, "B R"]:
    """Estimator k2 of KL(policy || ref) at each token.

        k2 = log_ratio^2 / 2

    It is biased, and never negative. As a loss on samples of the policy its mean gradient is the
    gradient of KL(policy || ref) for a single token. The top of this file says what holds for
    sequences.

    Args:
        logprobs, ref_logprobs: log pi and log pi_ref of the sampled tokens, nats.
        response_mask: True at the tokens that count.

    Returns:
        Nats; 0 where masked.
    """
    return 0.5 * log_ratio(logprobs, ref_logprobs, response_mask).square()


@checked
def k3(
    logprobs: Float[Tensor, "B R"],
    ref_logprobs: Float[Tensor, "B R"],
    response_mask: Bool[Tensor, "B R"],
) -> Float[Tensor, "B R"]:
    """Estimator k3 of KL(policy || ref) at each token.

        k3 = exp(-log_ratio) - 1 + log_ratio

    It is unbiased, and never negative. As a loss on samples of the policy its mean gradient is the
    gradient of KL(ref || policy) for a single token. The top of this file says what holds for
    sequences.

    expm1 is used because exp(x) - 1 loses all digits where policy and reference nearly agree.

    Args:
        logprobs, ref_logprobs: log pi and log pi_ref of the sampled tokens, nats.
        response_mask: True at the tokens that count.

    Returns:
        Nats; 0 where masked.
    """
    difference = log_ratio(logprobs, ref_logprobs, response_mask)
    return torch.expm1(-difference) + difference


@checked
def exact_kl(
    logits: Float[Tensor, "B R V"],
    ref_logits: Float[Tensor, "B R V"],
    response_mask: Bool[Tensor, "B R"],
) -> Float[Tensor, "B R"]:
    """Exact KL(policy || ref) of the next token at each position.

        KL = sum over v of p_v (log p_v - log q_v)

    p and q are the probabilities of each word v under the policy and the reference. The result is
    the mean of k1 over all tokens that the policy could sample here, so it has no sampling noise. A
    word whose probability under the policy is 0 or rounded to 0 adds 0. A word that only the
    reference forbids makes the KL infinite.

    Args:
        logits: of the policy; column t predicts response token t.
        ref_logits: of the reference.
        response_mask: True at the tokens that count.

    Returns:
        Nats; 0 where masked.

    Raises:
        ValueError: shapes differ.
    """
    logits, ref_logits = (
        torch.where(response_mask[..., None], x, torch.zeros_like(x)) for x in (logits, ref_logits)
    )
    log_p, log_q = logits.log_softmax(-1), ref_logits.log_softmax(-1)
    p = log_p.exp()
    difference = torch.where(p == 0, torch.zeros_like(p), log_p - log_q)  # 0 times infinity is NaN
    return zero_masked((p * difference).sum(-1), response_mask)


@checked
def kl_shaped_rewards(
    scores: Float[Tensor, "B"],
    old_logprobs: Float[Tensor, "B R"],
    ref_logprobs: Float[Tensor, "B R"],
    response_mask: Bool[Tensor, "B R"],
    *,
    kl_coef: float,
) -> Float[Tensor, "B R"]:
    """Reward of each token: a KL penalty at every token, and the score at the last one.

        r_t = -kl_coef (log pi_old - log pi_ref)_t + (score if t is the last real token, else 0)

    The last real token is EOS, or the last token of a response that was truncated (cut off before
    EOS). A reward unit is the unit of the score. The penalty uses
    old_logprobs, so the rewards stay fixed during the epochs of PPO. A row that is masked
    throughout has no token for its score; its rewards are all 0.

    TRL puts the score on the position after EOS if there is one. OpenRLHF puts it on the last
    action, as we do.

    Args:
        scores: the score of each response, reward units.
        old_logprobs: log pi_old of each token, under the policy that sampled, nats.
        ref_logprobs: log pi_ref of each token, nats.
        response_mask: True at the tokens that count.
        kl_coef: the KL coefficient, reward units per nat, 0 or more.

    Returns:
        Reward units; 0 where masked.

    Raises:
        ValueError: kl_coef is negative, or shapes do not fit.
    """
    check_not_negative(kl_coef=kl_coef)
    last = response_mask & (response_mask.sum(1, keepdim=True) == response_mask.cumsum(1))
    penalty = kl_coef * log_ratio(old_logprobs, ref_logprobs, response_mask)
    return torch.where(last, scores[:, None], torch.zeros_like(penalty)) - penalty


@checked
def adapt_kl_coef(
    kl_coef: float, kl: float, *, target: float, horizon: float, batch_size: int
) -> float:
    """Adapt the KL coefficient so that the measured KL approaches a target.

        error   = clip(kl / target - 1, -0.2, 0.2)
        kl_coef <- kl_coef (1 + error batch_size / horizon)

    This is a proportional controller in log space. If the KL is above the target, the coefficient
    is multiplied by a factor above 1; if it is below, by a factor below 1. The relative error is
    clipped to 20 %. The factor is above 0, because batch_size must be below 5 horizon.

    Args:
        kl_coef: the coefficient so far, reward units per nat, 0 or more.
        kl: measured KL to the reference, nats per response.
        target: wanted KL, nats per response, above 0.
        horizon: sequences; the larger, the slower the change; above 0.
        batch_size: sequences in this batch, above 0.

    Returns:
        The new KL coefficient.

    Raises:
        ValueError: an argument is out of range, NaN or infinite, or batch_size is not below 5
            horizon.

    Source: Ziegler et al. 2019, section 2.2.
    """
    check_not_negative(kl_coef=kl_coef)
    check_finite(kl=kl)
    check_above_0(target=target, horizon=horizon, batch_size=batch_size)
    if batch_size >= 5 * horizon:
        raise ValueError(
            f"batch_size is {batch_size} and horizon is {horizon}; batch_size must be below "
            "5 horizon, because the coefficient could become negative."
        )
    error = min(max(kl / target - 1, -0.2), 0.2)
    return kl_coef * (1 + error * batch_size / horizon)
