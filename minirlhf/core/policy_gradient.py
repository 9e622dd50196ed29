"""Policy-gradient losses and value losses, one number a token, unreduced (`masking.aggregate` reduces)."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from minirlhf.core.masking import check_same_shape, masked_mean, masked_var, zero_masked


def sft_loss(
    logprobs: Float[Tensor, "B R"], response_mask: Bool[Tensor, "B R"]
) -> Float[Tensor, "B R"]:
    """Loss of supervised fine-tuning (SFT): the negative log-probability of each written token.

        loss_t = -log pi(y_t | x, y_<t)

    It is REINFORCE's loss with an advantage of 1 at every token of a demonstration.

    Args:
        logprobs: nats, log-probabilities of the demonstration's tokens under the policy.
        response_mask: the tokens to be imitated, EOS included.

    Returns:
        Nats, one value per token, 0 where masked.
    """
    return -zero_masked(logprobs, response_mask)


def reinforce(
    logprobs: Float[Tensor, "B R"],
    advantages: Float[Tensor, "B R"],
    response_mask: Bool[Tensor, "B R"],
) -> Float[Tensor, "B R"]:
    """loss_t = -A_t log pi(y_t). Its gradient, not its value, is the point. Advantages carry no gradient.

    Source: Williams 1992.
    """
    check_same_shape(logprobs=logprobs, advantages=advantages, response_mask=response_mask)
    return -zero_masked(advantages, response_mask).detach() * zero_masked(logprobs, response_mask)


def ppo_clip(
    logprobs: Float[Tensor, "B R"],
    old_logprobs: Float[Tensor, "B R"],
    advantages: Float[Tensor, "B R"],
    response_mask: Bool[Tensor, "B R"],
    *,
    clip_eps: float = 0.2,
    clip_eps_high: float | None = None,
    dual_clip: float | None = None,
) -> Float[Tensor, "B R"]:
    """PPO's clipped surrogate: no reward for moving a token's probability further than the clip allows.

        ratio = pi / pi_old        loss_t = -min(ratio A, clip(ratio, 1 - clip_eps, 1 + clip_eps_high) A)

    At ratio 1 its gradient is REINFORCE's. clip_eps_high defaults to clip_eps; larger is DAPO's clip-higher. dual_clip c > 1 also
    bounds the loss of A < 0 by -c A (Ye et al. 2020).

    Source: Schulman et al. 2017, equation 7.
    """
    check_same_shape(
        logprobs=logprobs,
        old_logprobs=old_logprobs,
        advantages=advantages,
        response_mask=response_mask,
    )
    low, high = _clip_range(clip_eps, clip_eps_high)
    if dual_clip is not None and not dual_clip > 1:
        raise ValueError(f"dual_clip is {dual_clip}; it must be above 1.")
    advantages = zero_masked(advantages, response_mask).detach()
    live = response_mask & (
        advantages != 0
    )  # elsewhere loss and gradient are 0, but a ratio that overflows would make 0 * inf of it
    log_ratio = zero_masked(logprobs, live) - zero_masked(old_logprobs, live).detach()
    bounded = (advantages > 0) | (
        dual_clip is not None
    )  # the clip holds here; beyond e^80 exp's gradient would be 0 * inf
    ratio = torch.where(bounded, log_ratio.clamp(max=80), log_ratio).exp()
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(low, high) * advantages)
    if dual_clip is not None:
        surrogate = torch.where(
            advantages < 0, torch.maximum(surrogate, dual_clip * advantages), surrogate
        )
    return -zero_masked(surrogate, response_mask)


def cispo(
    logprobs: Float[Tensor, "B R"],
    old_logprobs: Float[Tensor, "B R"],
    advantages: Float[Tensor, "B R"],
    response_mask: Bool[Tensor, "B R"],
    *,
    clip_eps: float = 1.0,
    clip_eps_high: float | None = 4.0,
) -> Float[Tensor, "B R"]:
    """CISPO: the ratio only weighs, so it is what is clipped, and no token loses its gradient.

        loss_t = -detach(clip(ratio, 1 - clip_eps, 1 + clip_eps_high)) A_t log pi(y_t)

    PPO's clip silences a token that has moved far; here it goes on being taught, with a bounded weight. The paper sets no lower end
    (clip_eps = 1) and tunes the upper one; 4 is a ratio of 5 at most.

    Source: MiniMax 2025 (MiniMax-M1, equation 4).
    """
    check_same_shape(
        logprobs=logprobs,
        old_logprobs=old_logprobs,
        advantages=advantages,
        response_mask=response_mask,
    )
    low, high = _clip_range(clip_eps, clip_eps_high)
    logprobs = zero_masked(logprobs, response_mask)
    weight = (logprobs - zero_masked(old_logprobs, response_mask)).detach().exp().clamp(low, high)
    return -weight * zero_masked(advantages, response_mask).detach() * logprobs


def sequence_log_ratio(
    logprobs: Float[Tensor, "B R"],
    old_logprobs: Float[Tensor, "B R"],
    response_mask: Bool[Tensor, "B R"],
    *,
    by_length: bool,
) -> Float[Tensor, "B"]:
    """sum_t log pi_t / pi_old_t of a response, nats; by_length: their mean, nats a token. 0 for a row without a real token."""
    lengths = response_mask.sum(1).clamp(min=1)
    log_ratio = (
        zero_masked(logprobs, response_mask) - zero_masked(old_logprobs, response_mask).detach()
    )
    return log_ratio.sum(1) / (lengths if by_length else 1)


def sequence_clip(
    logprobs: Float[Tensor, "B R"],
    old_logprobs: Float[Tensor, "B R"],
    advantages: Float[Tensor, "B"],
    response_mask: Bool[Tensor, "B R"],
    *,
    by_length: bool,
    clip_eps: float,
    clip_eps_high: float | None = None,
) -> Float[Tensor, "B R"]:
    """PPO's clip with one ratio a response: what was rewarded is the whole of it. Each of its tokens carries the response's loss.

        ratio = exp(sum_t log pi_t / pi_old_t)          by_length=False: the true importance weight; RLOO as TRL has it
        ratio = exp(mean_t log pi_t / pi_old_t)         by_length=True: GSPO; its spread does not grow with the length
        loss  = -min(ratio A, clip(ratio, 1 - clip_eps, 1 + clip_eps_high) A)

    Reduce it with how="sequence_mean": a response's loss counts once. At ratio 1 the gradient is A sum_t grad log pi_t, divided by the
    length if by_length. GSPO's clip is small, 3e-4 and 4e-4: a mean of many log-ratios hardly moves. A row without a real token adds 0.

    Source: Zheng et al. 2025 (GSPO, equations 5 and 7); Ahmadian et al. 2024 (RLOO).
    """
    log_ratio = sequence_log_ratio(logprobs, old_logprobs, response_mask, by_length=by_length)
    one = torch.ones_like(advantages, dtype=torch.bool)[:, None]
    losses = ppo_clip(
        log_ratio[:, None],
        torch.zeros_like(log_ratio)[:, None],
        advantages[:, None],
        one,
        clip_eps=clip_eps,
        clip_eps_high=clip_eps_high,
    )
    return zero_masked(losses.expand(response_mask.shape), response_mask)


def is_clipped(
    logprobs: Float[Tensor, "B R"],
    old_logprobs: Float[Tensor, "B R"],
    advantages: Float[Tensor, "B R"],
    response_mask: Bool[Tensor, "B R"],
    *,
    clip_eps: float = 0.2,
    clip_eps_high: float | None = None,
) -> Bool[Tensor, "B R"]:
    """True where the clip takes the gradient away: the ratio left the band on the side that the advantage rewards."""
    low, high = _clip_range(clip_eps, clip_eps_high)
    ratio = (zero_masked(logprobs, response_mask) - zero_masked(old_logprobs, response_mask)).exp()
    outside = ((advantages > 0) & (ratio > high)) | ((advantages < 0) & (ratio < low))
    return outside & response_mask


def _clip_range(clip_eps: float, clip_eps_high: float | None) -> tuple[float, float]:
    """The band's two ends, 1 - clip_eps and 1 + clip_eps_high."""
    above = clip_eps if clip_eps_high is None else clip_eps_high
    if not (0 <= clip_eps <= 1 and above >= 0):
        raise ValueError(f"clip_eps {clip_eps} must be in [0, 1], clip_eps_high {above} 0 or more.")
    return 1 - clip_eps, 1 + above


def value_loss(
    values: Float[Tensor, "B R"], returns: Float[Tensor, "B R"], response_mask: Bool[Tensor, "B R"]
) -> Float[Tensor, "B R"]:
    """1/2 (V_t - return_t)^2, squared reward units; returns carry no gradient."""
    check_same_shape(values=values, returns=returns, response_mask=response_mask)
    return (
        0.5
        * (
            zero_masked(values, response_mask) - zero_masked(returns, response_mask).detach()
        ).square()
    )


def value_loss_clipped(
    values: Float[Tensor, "B R"],
    old_values: Float[Tensor, "B R"],
    returns: Float[Tensor, "B R"],
    response_mask: Bool[Tensor, "B R"],
    *,
    clip_eps: float,
) -> Float[Tensor, "B R"]:
    """1/2 max((V - return)^2, (V_clipped - return)^2), V_clipped within clip_eps (reward units) of the rollout's values.

    The larger of the two: a step past the clip earns nothing. Source: PPO's reference implementation; not in the paper.
    """
    if not clip_eps >= 0:
        raise ValueError(f"clip_eps is {clip_eps}; it must be 0 or more reward units.")
    values, old_values = (
        zero_masked(values, response_mask),
        zero_masked(old_values, response_mask).detach(),
    )
    clipped = old_values + (values - old_values).clamp(-clip_eps, clip_eps)
    return torch.maximum(
        value_loss(values, returns, response_mask), value_loss(clipped, returns, response_mask)
    )


def explained_variance(
    values: Float[Tensor, "B R"], returns: Float[Tensor, "B R"], response_mask: Bool[Tensor, "B R"]
) -> Float[Tensor, ""]:
    """1 - var(return - V) / var(return): 1 = a perfect critic, 0 = no better than a constant, below 0 = worse.

    Returns of no variance have nothing to explain: NaN there, as a number would be invented.
    """
    spread = masked_var(returns, response_mask)
    residual = masked_var(
        zero_masked(returns, response_mask) - zero_masked(values, response_mask), response_mask
    )
    real = returns[response_mask]
    equal = (real == real[0]).all()  # not spread == 0: the mean of equal numbers may round
    return torch.where(equal, torch.full_like(spread, float("nan")), 1 - residual / spread)


def mean_ratio(
    logprobs: Float[Tensor, "B R"],
    old_logprobs: Float[Tensor, "B R"],
    response_mask: Bool[Tensor, "B R"],
) -> Float[Tensor, ""]:
    """Mean of pi / pi_old over real tokens: exactly 1 at the first minibatch, a little around it later."""
    return masked_mean(
        (zero_masked(logprobs, response_mask) - zero_masked(old_logprobs, response_mask)).exp(),
        response_mask,
    )
