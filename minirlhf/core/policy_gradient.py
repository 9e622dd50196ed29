"""Policy-gradient losses and value losses, one value per token.

The losses are not reduced here: `masking.aggregate` turns the per-token losses into the scalar that
is differentiated.

Shapes and symbols used below:

    B responses of at most R tokens; column t of a (B, R) tensor belongs to response token y_t
    pi, pi_old      the current policy and the policy that sampled the responses
    log pi_t        log pi(y_t | prompt, y_<t), the log-probability of token t, in nats (units of
                    the natural logarithm)
    ratio_t         pi_t / pi_old_t = exp(log pi_t - log pi_old_t), the importance ratio of token t
    A_t             the advantage of token t: how much better than expected the return was; in
                    reward units, or without unit after scaling or whitening

`response_mask` is True at the tokens that count; for a Rollout pass `batch.action_mask`. Everywhere
else the loss and its gradient are 0. The critic is the network that predicts returns, in reward
units (the unit of the score).
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from minirlhf.core.checks import check_not_negative, checked
from minirlhf.core.masking import masked_mean, masked_var, zero_masked


@checked
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


@checked
def reinforce(
    logprobs: Float[Tensor, "B R"],
    advantages: Float[Tensor, "B R"],
    response_mask: Bool[Tensor, "B R"],
) -> Float[Tensor, "B R"]:
    """REINFORCE loss of each token.

        loss_t = -A_t log pi_t

    The loss is minus the advantage times the log-probability of the token. Only its gradient has a
    meaning: the value of the loss does not say whether the policy improves.

    Args:
        logprobs: log pi_t under the current policy, nats.
        advantages: A_t; they carry no gradient.
        response_mask: True at the tokens that count.

    Returns:
        The loss of each token; 0 where masked.

    Source: Williams 1992.
    """
    return -zero_masked(advantages, response_mask).detach() * zero_masked(logprobs, response_mask)


@checked
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
    """Clipped surrogate loss of proximal policy optimisation (PPO), for each token.

        loss_t = -min(ratio_t A_t, clip(ratio_t, 1 - clip_eps, 1 + clip_eps_high) A_t)

    The clip takes away the incentive to move a token's probability further than the clip range. It
    acts on one side only. With A_t > 0 the loss is constant once ratio_t exceeds 1 + clip_eps_high.
    With A_t < 0 it is constant once ratio_t falls below 1 - clip_eps. On the other side the min
    picks the unclipped term. For example, with A_t = -1, ratio_t = 1.5 and clip_eps = 0.2 it is
    min(-1.5, -1.2) = -1.5: the token is still pushed down.

    At ratio 1 the gradient equals that of `reinforce`.

    Args:
        logprobs: log pi_t under the current policy, nats.
        old_logprobs: log pi_old_t under the policy that sampled, nats; they carry no gradient.
        advantages: A_t; they carry no gradient.
        response_mask: True at the tokens that count.
        clip_eps: how far the ratio may fall below 1, from 0 to 1.
        clip_eps_high: how far the ratio may rise above 1; clip_eps if None. A larger value than
            clip_eps is the "clip-higher" of DAPO.
        dual_clip: c > 1 also bounds the loss of tokens with A_t < 0: it is at most -c A_t (Ye et
            al. 2020). None: no such bound.

    Returns:
        The loss of each token; 0 where masked.

    Raises:
        ValueError: a clip range or a dual_clip that is not allowed, or shapes that differ.

    Source: Schulman et al. 2017, equation 7.
    """
    low, high = _clip_range(clip_eps, clip_eps_high)
    if dual_clip is not None and not dual_clip > 1:
        raise ValueError(f"dual_clip is {dual_clip}; it must be above 1, or None.")
    advantages = zero_masked(advantages, response_mask).detach()
    # `live` marks the tokens whose loss is not 0. The ratio of all other tokens is set to 1: if it
    # overflowed, their loss and gradient would be 0 * inf = NaN.
    live = response_mask & (advantages != 0)
    log_ratio = zero_masked(logprobs, live) - zero_masked(old_logprobs, live).detach()
    # Where the loss is bounded for large ratios, the log-ratio is limited to 80: without the limit
    # exp would overflow, and its gradient would be 0 * inf = NaN.
    bounded = (advantages > 0) | (dual_clip is not None)
    ratio = torch.where(bounded, log_ratio.clamp(max=80), log_ratio).exp()
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(low, high) * advantages)
    if dual_clip is not None:
        surrogate = torch.where(
            advantages < 0, torch.maximum(surrogate, dual_clip * advantages), surrogate
        )
    return -zero_masked(surrogate, response_mask)


@checked
def cispo(
    logprobs: Float[Tensor, "B R"],
    old_logprobs: Float[Tensor, "B R"],
    advantages: Float[Tensor, "B R"],
    response_mask: Bool[Tensor, "B R"],
    *,
    clip_eps: float = 1.0,
    clip_eps_high: float | None = 4.0,
) -> Float[Tensor, "B R"]:
    """CISPO loss of each token: PPO with the importance weight clipped instead of the objective.

        loss_t = -detach(clip(ratio_t, 1 - clip_eps, 1 + clip_eps_high)) A_t log pi_t

    This is `reinforce` with each token weighted by its clipped importance ratio. The weight carries
    no gradient, so every token keeps its gradient, with a bounded weight. PPO's loss is constant
    for a token whose ratio has left the clip range in the direction of its advantage. Such a token
    has no gradient in PPO.

    Args:
        logprobs: log pi_t under the current policy, nats.
        old_logprobs: log pi_old_t under the policy that sampled, nats.
        advantages: A_t; they carry no gradient.
        response_mask: True at the tokens that count.
        clip_eps: how far the weight may fall below 1. The paper sets no lower bound, which is
            clip_eps = 1.
        clip_eps_high: how far the weight may rise above 1; the paper tunes it. With 4 the weight is
            at most 5.

    Returns:
        The loss of each token; 0 where masked.

    Raises:
        ValueError: a clip range that is not allowed, or shapes that differ.

    Source: MiniMax 2025 (MiniMax-M1, equation 4).
    """
    low, high = _clip_range(clip_eps, clip_eps_high)
    logprobs = zero_masked(logprobs, response_mask)
    log_ratio = (logprobs - zero_masked(old_logprobs, response_mask)).detach()
    weight = log_ratio.clamp(max=80).exp().clamp(low, high)  # an infinite weight times 0 is NaN
    return -weight * zero_masked(advantages, response_mask).detach() * logprobs


@checked
def sequence_log_ratio(
    logprobs: Float[Tensor, "B R"],
    old_logprobs: Float[Tensor, "B R"],
    response_mask: Bool[Tensor, "B R"],
    *,
    by_length: bool,
) -> Float[Tensor, "B"]:
    """Log importance ratio of each whole response.

        by_length=False    sum_t (log pi_t - log pi_old_t)     nats per response
        by_length=True     mean_t (log pi_t - log pi_old_t)    nats per token

    Args:
        logprobs: log pi_t under the current policy, nats.
        old_logprobs: log pi_old_t under the policy that sampled, nats; they carry no gradient.
        response_mask: True at the tokens that count.
        by_length: divide by the number of tokens that count.

    Returns:
        One number per response; 0 for a row that is masked throughout.
    """
    lengths = response_mask.sum(1).clamp(min=1)
    log_ratio = (
        zero_masked(logprobs, response_mask) - zero_masked(old_logprobs, response_mask).detach()
    )
    return log_ratio.sum(1) / (lengths if by_length else 1)


@checked
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
    """PPO's clipped loss with one importance ratio per response.

        by_length=False    ratio = exp(sum_t (log pi_t - log pi_old_t))
        by_length=True     ratio = exp(mean_t (log pi_t - log pi_old_t))

        loss = -min(ratio A, clip(ratio, 1 - clip_eps, 1 + clip_eps_high) A)

    The reward is given to a whole response. So each response gets one ratio and one clip. With the
    sum, the ratio is the true importance weight of the response; TRL's RLOO (REINFORCE
    leave-one-out) uses it. With the mean it is GSPO (group sequence policy optimisation), and the
    spread of the ratio does not grow with the response length.

    Each token of a response carries the loss of the response. Reduce with how="sequence_mean", so
    that the loss of a response counts once. At ratio 1 the gradient of that loss is

        -A sum_t grad log pi_t

    divided by the length if `by_length`.

    Args:
        logprobs: log pi_t under the current policy, nats.
        old_logprobs: log pi_old_t under the policy that sampled, nats; they carry no gradient.
        advantages: A, one per response; they carry no gradient.
        response_mask: True at the tokens that count.
        by_length: use the mean over tokens instead of the sum.
        clip_eps, clip_eps_high: as in `ppo_clip`. GSPO uses small values, 3e-4 and 4e-4, because a
            mean of many log-ratios changes little.

    Returns:
        At each token the loss of its response; 0 where masked, so a fully masked row adds 0.

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


@checked
def is_clipped(
    logprobs: Float[Tensor, "B R"],
    old_logprobs: Float[Tensor, "B R"],
    advantages: Float[Tensor, "B R"],
    response_mask: Bool[Tensor, "B R"],
    *,
    clip_eps: float = 0.2,
    clip_eps_high: float | None = None,
) -> Bool[Tensor, "B R"]:
    """Mask of the tokens whose gradient PPO's clip sets to 0.

        (A_t > 0 and ratio_t > 1 + clip_eps_high) or (A_t < 0 and ratio_t < 1 - clip_eps)

    These are the tokens whose probability has already moved out of the clip range in the direction
    that their advantage rewards. The share of them among the real tokens is the clip fraction. The
    bound `dual_clip` is not counted.

    Args:
        logprobs, old_logprobs, advantages, response_mask, clip_eps, clip_eps_high: as in
            `ppo_clip`.

    Returns:
        True where the clip sets the gradient to 0; False where masked.
    """
    low, high = _clip_range(clip_eps, clip_eps_high)
    ratio = (zero_masked(logprobs, response_mask) - zero_masked(old_logprobs, response_mask)).exp()
    outside = ((advantages > 0) & (ratio > high)) | ((advantages < 0) & (ratio < low))
    return outside & response_mask


def _clip_range(clip_eps: float, clip_eps_high: float | None) -> tuple[float, float]:
    """Both ends of the clip range: 1 - clip_eps and 1 + clip_eps_high."""
    above = clip_eps if clip_eps_high is None else clip_eps_high
    if not (0 <= clip_eps <= 1 and above >= 0):
        raise ValueError(
            f"clip_eps is {clip_eps} and clip_eps_high is {above}; "
            "clip_eps must be from 0 to 1 and clip_eps_high 0 or more."
        )
    return 1 - clip_eps, 1 + above


@checked
def value_loss(
    values: Float[Tensor, "B R"], returns: Float[Tensor, "B R"], response_mask: Bool[Tensor, "B R"]
) -> Float[Tensor, "B R"]:
    """Squared error of the critic at each token.

        loss_t = 1/2 (V_t - return_t)^2

    Args:
        values: V_t, the critic's prediction before token t, reward units.
        returns: return_t, the target, reward units; it carries no gradient.
        response_mask: True at the tokens that count.

    Returns:
        The loss of each token, squared reward units; 0 where masked.
    """
    return (
        0.5
        * (
            zero_masked(values, response_mask) - zero_masked(returns, response_mask).detach()
        ).square()
    )


@checked
def value_loss_clipped(
    values: Float[Tensor, "B R"],
    old_values: Float[Tensor, "B R"],
    returns: Float[Tensor, "B R"],
    response_mask: Bool[Tensor, "B R"],
    *,
    clip_eps: float,
) -> Float[Tensor, "B R"]:
    """Squared error of the critic, with the change of the values clipped.

        V_clipped_t = V_old_t + clip(V_t - V_old_t, -clip_eps, clip_eps)
        loss_t      = 1/2 max((V_t - return_t)^2, (V_clipped_t - return_t)^2)

    V_old_t is the value that the critic gave when the responses were sampled. The loss is the
    larger of both errors. So it no longer falls once a value has moved by more than clip_eps
    towards its return.

    Args:
        values: V_t under the current critic, reward units.
        old_values: V_old_t, reward units; they carry no gradient.
        returns: return_t, the target, reward units; it carries no gradient.
        response_mask: True at the tokens that count.
        clip_eps: largest useful change of a value, reward units, 0 or more.

    Returns:
        The loss of each token, squared reward units; 0 where masked.

    Raises:
        ValueError: a negative clip_eps, or shapes that differ.

    Source: PPO's reference implementation; it is not in the paper.
    """
    check_not_negative(clip_eps=clip_eps)
    values, old_values = (
        zero_masked(values, response_mask),
        zero_masked(old_values, response_mask).detach(),
    )
    clipped = old_values + (values - old_values).clamp(-clip_eps, clip_eps)
    return torch.maximum(
        value_loss(values, returns, response_mask), value_loss(clipped, returns, response_mask)
    )


@checked
def explained_variance(
    values: Float[Tensor, "B R"], returns: Float[Tensor, "B R"], response_mask: Bool[Tensor, "B R"]
) -> Float[Tensor, ""]:
    """Share of the variance of the returns that the critic explains.

        1 - var(return - V) / var(return)

    1 is a perfect critic. 0 is no better than a constant, and below 0 is worse than a constant. If
    all returns are equal there is no variance to explain, and the result is NaN.

    Args:
        values: V_t, reward units.
        returns: return_t, reward units.
        response_mask: True at the tokens that count.

    Raises:
        ValueError: no token counts, or shapes that differ.
    """
    spread = masked_var(returns, response_mask)
    residual = masked_var(
        zero_masked(returns, response_mask) - zero_masked(values, response_mask), response_mask
    )
    real = returns[response_mask]
    # `spread == 0` would miss equal returns whose mean is rounded.
    equal = (real == real[0]).all()
    return torch.where(equal, torch.full_like(spread, float("nan")), 1 - residual / spread)


@checked
def mean_ratio(
    logprobs: Float[Tensor, "B R"],
    old_logprobs: Float[Tensor, "B R"],
    response_mask: Bool[Tensor, "B R"],
) -> Float[Tensor, ""]:
    """Mean importance ratio pi_t / pi_old_t over the real tokens.

    It is exactly 1 at the first minibatch after sampling, and close to 1 later.

    Args:
        logprobs, old_logprobs: nats, under the current policy and the policy that sampled.
        response_mask: True at the tokens that count.

    Raises:
        ValueError: no token counts, or shapes that differ.
    """
    return masked_mean(
        (zero_masked(logprobs, response_mask) - zero_masked(old_logprobs, response_mask)).exp(),
        response_mask,
    )
