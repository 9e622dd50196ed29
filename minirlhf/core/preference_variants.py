"""Further losses of the family of direct preference optimisation (DPO), one value per pair.

Only `aot` gives one value per quantile of the batch instead. There is one function per published
idea. No loss is averaged over the batch.

Symbols used below:

    B             the number of pairs
    pi, pi_ref    the policy that is trained, and the reference, which a loss leaves fixed
    c, r          log pi/pi_ref of the chosen and of the rejected response, nats (units of the
                  natural logarithm), sums over tokens
    h             c - r
    p             the share of labels that prefer the first response of a pair

    losses                          exo, apo_zero, apo_down, bco, sppo, discopop, aot, f_dpo
    weights for any loss            wpo_weights
    log-probabilities for any loss  ld_logprobs

Where the minimum of a loss is known, its docstring gives it. The tests minimise the loss
numerically and compare.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from minirlhf.core.checks import SMALLEST, check_above_0, checked
from minirlhf.core.preference import _flips, _log_ratios


@checked
def exo(
    chosen_logprobs: Float[Tensor, "B"],
    rejected_logprobs: Float[Tensor, "B"],
    ref_chosen_logprobs: Float[Tensor, "B"],
    ref_rejected_logprobs: Float[Tensor, "B"],
    *,
    beta: float,
    label_smoothing: float,
) -> Float[Tensor, "B"]:
    """Exact optimisation loss (EXO) of each pair: a reverse KL to smoothed labels.

        h = log pi/pi_ref (chosen) - log pi/pi_ref (rejected)

        e = label_smoothing
        q = sigmoid(beta h)
        loss = q log(q / (1 - e)) + (1 - q) log((1 - q) / e)

    q is the policy's own probability that the chosen response is better; the label gives it the
    probability 1 - e. The loss is KL(policy || label), where cDPO minimises KL(label || policy).
    Let p be the share of labels that prefer the chosen response. The loss is smallest at

        beta h = (2 p - 1) log((1 - e) / e)

    Args:
        chosen_logprobs, rejected_logprobs: log pi of each response, summed over its tokens, nats.
        ref_chosen_logprobs, ref_rejected_logprobs: the same under the reference; they carry no
            gradient.
        beta: reward units per nat, above 0.
        label_smoothing: e, above 0 and below 1/2. At 0 the loss would be infinite for every finite
            h.

    Returns:
        One loss per pair, nats.

    Raises:
        ValueError: beta or label_smoothing is out of range, or shapes differ.

    Source: Ji et al. 2024, equation 16 (K = 2).
    """
    check_above_0(beta=beta, label_smoothing=label_smoothing)
    _flips(label_smoothing)
    chosen, rejected = _log_ratios(
        chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs
    )
    right, wrong = logsigmoid(beta * (chosen - rejected)), logsigmoid(beta * (rejected - chosen))
    return right.exp() * (right - math.log1p(-label_smoothing)) + wrong.exp() * (
        wrong - math.log(label_smoothing)
    )


@checked
def apo_zero(
    chosen_logprobs: Float[Tensor, "B"],
    rejected_logprobs: Float[Tensor, "B"],
    ref_chosen_logprobs: Float[Tensor, "B"],
    ref_rejected_logprobs: Float[Tensor, "B"],
    *,
    beta: float,
) -> Float[Tensor, "B"]:
    """Anchored preference optimisation loss (APO-zero) of each pair.

        c, r = log pi/pi_ref of the chosen and of the rejected response

        loss = 1 - sigmoid(beta c) + sigmoid(beta r)

    The loss raises the chosen response and lowers the rejected one, each relative to the reference.
    It is meant for chosen responses that are better than those of the policy.

    The loss stays between 0 and 2. It has no minimum at a finite log-ratio: the log-ratio of a
    response that most labels prefer rises without end.

    Args:
        chosen_logprobs, rejected_logprobs: log pi of each response, summed over its tokens, nats.
        ref_chosen_logprobs, ref_rejected_logprobs: the same under the reference; they carry no
            gradient.
        beta: reward units per nat, above 0.

    Returns:
        One loss per pair, no unit.

    Raises:
        ValueError: beta is not above 0, or shapes differ.

    Source: D'Oosterlinck et al. 2024, equation 7 (APO-zero).
    """
    check_above_0(beta=beta)
    chosen, rejected = _log_ratios(
        chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs
    )
    return torch.sigmoid(-beta * chosen) + torch.sigmoid(beta * rejected)


@checked
def apo_down(
    chosen_logprobs: Float[Tensor, "B"],
    rejected_logprobs: Float[Tensor, "B"],
    ref_chosen_logprobs: Float[Tensor, "B"],
    ref_rejected_logprobs: Float[Tensor, "B"],
    *,
    beta: float,
) -> Float[Tensor, "B"]:
    """Anchored preference optimisation loss (APO-down) of each pair.

        c, r = log pi/pi_ref of the chosen and of the rejected response
        h = c - r

        loss = sigmoid(beta c) + 1 - sigmoid(beta h)

    The loss lowers both responses relative to the reference, the rejected one further. It is meant
    for chosen responses that are worse than those of the policy.

    Args:
        chosen_logprobs, rejected_logprobs: log pi of each response, summed over its tokens, nats.
        ref_chosen_logprobs, ref_rejected_logprobs: the same under the reference; they carry no
            gradient.
        beta: reward units per nat, above 0.

    Returns:
        One loss per pair, no unit.

    Raises:
        ValueError: beta is not above 0, or shapes differ.

    Source: D'Oosterlinck et al. 2024, equation 8 (APO-down).
    """
    check_above_0(beta=beta)
    chosen, rejected = _log_ratios(
        chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs
    )
    return torch.sigmoid(beta * chosen) + torch.sigmoid(beta * (rejected - chosen))


@checked
def bco(
    chosen_logprobs: Float[Tensor, "B"],
    rejected_logprobs: Float[Tensor, "B"],
    ref_chosen_logprobs: Float[Tensor, "B"],
    ref_rejected_logprobs: Float[Tensor, "B"],
    shift: Float[Tensor, ""],
    *,
    beta: float,
) -> Float[Tensor, "B"]:
    """Binary classifier optimisation loss (BCO) of each pair.

        c, r = log pi/pi_ref of the chosen and of the rejected response

        loss = -log sigmoid(beta c - shift) - log sigmoid(shift - beta r)

    This is a classifier of single responses into good and bad. Its logit is the implicit reward
    minus a shift. Let w be the share of its pairs that a response wins. If the log-ratios were free
    numbers, the loss would be smallest where the implicit reward is shift + log(w / (1 - w)).

    Args:
        chosen_logprobs, rejected_logprobs: log pi of each response, summed over its tokens, nats.
        ref_chosen_logprobs, ref_rejected_logprobs: the same under the reference; they carry no
            gradient.
        shift: reward units, a running mean of all implicit rewards; it carries no gradient. TRL's
            `bco_pair` uses 0.
        beta: reward units per nat, above 0.

    Returns:
        One loss per pair, nats.

    Raises:
        ValueError: beta is not above 0, or shapes differ.

    Source: Jung et al. 2024, section 4.
    """
    check_above_0(beta=beta)
    chosen, rejected = _log_ratios(
        chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs
    )
    shift = shift.detach()
    return -logsigmoid(beta * chosen - shift) - logsigmoid(shift - beta * rejected)


@checked
def sppo(
    chosen_logprobs: Float[Tensor, "B"],
    rejected_logprobs: Float[Tensor, "B"],
    ref_chosen_logprobs: Float[Tensor, "B"],
    ref_rejected_logprobs: Float[Tensor, "B"],
    *,
    beta: float,
    chosen_wins: float = 1.0,
    rejected_wins: float = 0.0,
) -> Float[Tensor, "B"]:
    """Self-play preference optimisation loss (SPPO) of each pair.

        c, r = log pi/pi_ref of the chosen and of the rejected response
        w_c, w_r = the win rates of the chosen and of the rejected response against the policy that
                   wrote them
        loss = (c - (w_c - 1/2) / beta)^2 + (r - (w_r - 1/2) / beta)^2

    This is one step of self-play. The log-ratio of each response is regressed on its win rate minus
    1/2. The reference must be the policy that wrote the responses, not the initial policy. If the
    log-ratios were free numbers, the loss would be smallest at (w - 1/2) / beta.

    Args:
        chosen_logprobs, rejected_logprobs: log pi of each response, summed over its tokens, nats.
        ref_chosen_logprobs, ref_rejected_logprobs: the same under the reference; they carry no
            gradient.
        beta: 1 / eta of the paper, per nat, above 0.
        chosen_wins, rejected_wins: w_c and w_r, from 0 to 1, one number each for all pairs of the
            batch. The defaults 1 and 0 are the hard labels of a pair; TRL's `sppo_hard` always uses
            these.

    Returns:
        One loss per pair, nats squared.

    Raises:
        ValueError: beta is not above 0, a win rate is out of range, or shapes differ.

    Source: Wu et al. 2024 (SPPO), equation 4.7.
    """
    check_above_0(beta=beta)
    if not (0 <= chosen_wins <= 1 and 0 <= rejected_wins <= 1):
        raise ValueError(
            f"chosen_wins is {chosen_wins} and rejected_wins is {rejected_wins}; "
            "both must be win rates from 0 to 1."
        )
    chosen, rejected = _log_ratios(
        chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs
    )
    return (chosen - (chosen_wins - 0.5) / beta).square() + (
        rejected - (rejected_wins - 0.5) / beta
    ).square()


@checked
def discopop(
    chosen_logprobs: Float[Tensor, "B"],
    rejected_logprobs: Float[Tensor, "B"],
    ref_chosen_logprobs: Float[Tensor, "B"],
    ref_rejected_logprobs: Float[Tensor, "B"],
    *,
    beta: float,
    temperature: float = 0.05,
) -> Float[Tensor, "B"]:
    """DiscoPOP loss of each pair: a mixture of a logistic and an exponential loss.

        h = log pi/pi_ref (chosen) - log pi/pi_ref (rejected)
        z = beta h
        m = sigmoid(z / temperature)
        loss = (1 - m) (-log sigmoid(z)) + m exp(-z)

    A language model found this loss by search. It is logistic where the policy orders the pair
    wrongly (z far below 0), and exponential where it orders the pair correctly. In between it is
    not convex.

    Args:
        chosen_logprobs, rejected_logprobs: log pi of each response, summed over its tokens, nats.
        ref_chosen_logprobs, ref_rejected_logprobs: the same under the reference; they carry no
            gradient.
        beta: reward units per nat, above 0.
        temperature: width of the transition, reward units, above 0.

    Returns:
        One loss per pair, no unit.

    Raises:
        ValueError: beta or temperature is not above 0, or shapes differ.

    Source: Lu et al. 2024 (DiscoPOP), equation 5.
    """
    check_above_0(beta=beta, temperature=temperature)
    chosen, rejected = _log_ratios(
        chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs
    )
    z = beta * (chosen - rejected)
    # m exp(-z) is computed with one exponent. Where z is far below 0, exp(-z) alone would overflow,
    # and its product with m = 0 would be NaN.
    return (
        torch.sigmoid(-z / temperature) * -logsigmoid(z) + (logsigmoid(z / temperature) - z).exp()
    )


@checked
def aot(
    chosen_logprobs: Float[Tensor, "B"],
    rejected_logprobs: Float[Tensor, "B"],
    ref_chosen_logprobs: Float[Tensor, "B"],
    ref_rejected_logprobs: Float[Tensor, "B"],
    *,
    beta: float,
    paired: bool = True,
) -> Float[Tensor, "B"]:
    """Alignment via optimal transport loss (AOT), one value per quantile of the batch.

        c, r = log pi/pi_ref of the chosen and of the rejected response

        loss = -log sigmoid(beta [sort(a) - sort(b)])

        paired=True     a = log pi(chosen) - log pi(rejected), b = the same under pi_ref
        paired=False    a = c, b = r

    The loss compares distributions over the batch instead of single pairs. It sorts a and b, and
    asks that each quantile of a is above the same quantile of b. This is first-order stochastic
    dominance. For a batch of one it equals DPO.

    Args:
        chosen_logprobs, rejected_logprobs: log pi of each response, summed over its tokens, nats.
        ref_chosen_logprobs, ref_rejected_logprobs: the same under the reference; they carry no
            gradient.
        beta: reward units per nat, above 0.
        paired: compare the policy with the reference (True), or chosen with rejected responses
            (False).

    Returns:
        One loss per quantile, the lowest first, nats.

    Raises:
        ValueError: beta is not above 0, or shapes differ.

    Source: Melnyk et al. 2024, section 3.
    """
    check_above_0(beta=beta)
    chosen, rejected = _log_ratios(
        chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs
    )
    if paired:
        chosen, rejected = (
            chosen_logprobs - rejected_logprobs,
            (ref_chosen_logprobs - ref_rejected_logprobs).detach(),
        )
    return -logsigmoid(beta * (chosen.sort().values - rejected.sort().values))


@checked
def f_dpo(
    chosen_logprobs: Float[Tensor, "B"],
    rejected_logprobs: Float[Tensor, "B"],
    ref_chosen_logprobs: Float[Tensor, "B"],
    ref_rejected_logprobs: Float[Tensor, "B"],
    *,
    beta: float,
    divergence: str = "reverse_kl",
    alpha: float = 0.5,
) -> Float[Tensor, "B"]:
    """DPO loss of each pair with another divergence than KL(pi || pi_ref).

        u = pi/pi_ref of a response
        loss = -log sigmoid(beta [f'(u_c) - f'(u_r)])

        reverse_kl    f'(u) = log u                    this is DPO
        forward_kl    f'(u) = -1 / u
        js            f'(u) = log(2 u / (1 + u))       Jensen-Shannon
        alpha         f'(u) = (1 - u^-alpha) / alpha

    f' is the derivative of the function that defines the divergence; it takes the place of DPO's
    logarithm. The loss is smallest at beta f'(u) = r + constant, where r is the reward.

    Powers of 1/u are limited to e^80, which float32 can hold. Beyond the limit the gradient is 0.

    Args:
        chosen_logprobs, rejected_logprobs: log pi of each response, summed over its tokens, nats.
        ref_chosen_logprobs, ref_rejected_logprobs: the same under the reference; they carry no
            gradient.
        beta: reward units per nat, above 0.
        divergence: reverse_kl, forward_kl, js or alpha.
        alpha: parameter of the alpha divergence, above 0 and below 1. Towards 0 it becomes the
            reverse KL, towards 1 the forward KL. The other divergences do not use alpha, but a
            value out of range raises for them too.

    Returns:
        One loss per pair, nats.

    Raises:
        ValueError: an unknown divergence, beta or alpha out of range, or shapes that differ.

    Source: Wang et al. 2023, *Beyond reverse KL*, table 1.
    """
    check_above_0(beta=beta)
    slopes = {
        "reverse_kl": lambda x: x,
        "forward_kl": lambda x: -(-x).clamp(max=80.0).exp(),
        "js": lambda x: math.log(2) - softplus(-x),
        "alpha": lambda x: -torch.expm1((-alpha * x).clamp(max=80.0)) / alpha,
    }
    if divergence not in slopes:
        raise ValueError(f"divergence is {divergence!r}; it must be one of {', '.join(slopes)}.")
    if not SMALLEST <= alpha < 1:
        raise ValueError(f"alpha is {alpha}; it must be above 0 and below 1.")
    chosen, rejected = map(
        slopes[divergence],
        _log_ratios(chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs),
    )
    return -logsigmoid(beta * (chosen - rejected))


@checked
def wpo_weights(
    chosen_mean_logprobs: Float[Tensor, "B"],
    rejected_mean_logprobs: Float[Tensor, "B"],
    chosen_alignment: Float[Tensor, "B"] | None = None,
    rejected_alignment: Float[Tensor, "B"] | None = None,
) -> Float[Tensor, "B"]:
    """Weights of weighted preference optimisation (WPO), one per pair.

        m_c, m_r = mean over tokens of log pi, for the chosen and the rejected response
        a_c, a_r = mean over positions of log sum_v pi(v)^2
        weight   = min(1, exp(m_c - a_c + m_r - a_r))

    A pair gets a large weight if both responses are likely under the policy. Multiply any loss per
    pair by the weights. sum_v pi(v)^2 is the expected probability of a token that is sampled at
    this position. The paper calls the subtraction of a_c and a_r "sampled alignment".

    The weight is never above 1. Older versions of TRL clamp it in the same way; newer ones do not,
    so that their weights may exceed 1. TRL always subtracts the alignment.

    Args:
        chosen_mean_logprobs, rejected_mean_logprobs: m_c and m_r, nats per token.
        chosen_alignment, rejected_alignment: a_c and a_r, nats per token; 0 if left out. Give both
            or neither.

    Returns:
        One weight per pair, in (0, 1]; it carries no gradient.

    Raises:
        ValueError: the alignment of one side only, or shapes that differ.

    Source: Zhou et al. 2024 (WPO), equation 2 and section 3.3.
    """
    if (chosen_alignment is None) != (rejected_alignment is None):
        raise ValueError("wpo_weights got the alignment of one side only; give both or neither.")
    total = chosen_mean_logprobs + rejected_mean_logprobs
    for alignment in (chosen_alignment, rejected_alignment):
        if alignment is not None:
            total = total - alignment
    return total.clamp(max=0).exp().detach()


@checked
def ld_logprobs(
    chosen_logprobs: Float[Tensor, "B R"],
    rejected_logprobs: Float[Tensor, "B R"],
    chosen_mask: Bool[Tensor, "B R"],
    rejected_mask: Bool[Tensor, "B R"],
    *,
    alpha: float,
) -> tuple[Float[Tensor, "B"], Float[Tensor, "B"]]:
    """Length-desensitised log-probabilities of both responses of each pair (LD-DPO).

        n = min(length of the chosen response, length of the rejected response)
        result = sum over the first n tokens of log pi + alpha times the sum over the rest

    Tokens beyond the length of the shorter response count with weight alpha. alpha = 1 gives plain
    sums; alpha = 0 leaves these tokens out.

    Pass the results to a loss in place of the summed log-probabilities. Treat the reference in the
    same way. Otherwise the loss does not start from log-ratios of 0.

    Args:
        chosen_logprobs, rejected_logprobs: log pi of each token, nats.
        chosen_mask, rejected_mask: True at the tokens that count.
        alpha: weight of the tokens beyond the shorter length, from 0 to 1.

    Returns:
        (chosen, rejected), nats per response.

    Raises:
        ValueError: alpha is out of range, or shapes differ.

    Source: Liu et al. 2024 (LD-DPO), section 4.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}; it must be from 0 to 1.")
    shorter = torch.minimum(chosen_mask.sum(1, keepdim=True), rejected_mask.sum(1, keepdim=True))

    def weighted(x: Tensor, mask: Tensor) -> Tensor:
        weights = torch.where(mask.cumsum(1) <= shorter, 1.0, alpha)
        return (torch.where(mask, x, 0.0) * weights).sum(1)

    return weighted(chosen_logprobs, chosen_mask), weighted(rejected_logprobs, rejected_mask)
