"""The wider family of DPO: other curves, other divergences, other weights. One function a published idea, a number a pair.

    c, r = log pi/pi_ref of the chosen and the rejected response, nats, sums over tokens;   h = c - r

    exo  apo_zero  apo_down  bco  sppo  discopop  aot  f_dpo        losses
    wpo_weights  ld_logprobs                                        what stands beside any loss, and before it

Where a loss is least, on labels of which a share p prefers the first, is in its docstring where it is known; tests/core solves for it.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from minirlhf.core.masking import check_same_shape
from minirlhf.core.preference import _above_0, _flips, _log_ratios


def exo(
    chosen_logprobs: Float[Tensor, "B"],
    rejected_logprobs: Float[Tensor, "B"],
    ref_chosen_logprobs: Float[Tensor, "B"],
    ref_rejected_logprobs: Float[Tensor, "B"],
    *,
    beta: float,
    label_smoothing: float,
) -> Float[Tensor, "B"]:
    """The KL of DPO turned round: from the policy's own belief in the pair to labels that are right with probability 1 - e.

        q log q/(1 - e) + (1 - q) log (1 - q)/e,   q = sigmoid(beta h)        least at beta h = (2 p - 1) log (1 - e)/e

    Args:
        label_smoothing: e, above 0 and below 1/2: at 0 a wrong belief would cost infinitely much.

    Source: Ji et al. 2024, equation 16 (K = 2).
    """
    _above_0(beta=beta, label_smoothing=label_smoothing)
    _flips(label_smoothing)
    chosen, rejected = _log_ratios(
        chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs
    )
    right, wrong = logsigmoid(beta * (chosen - rejected)), logsigmoid(beta * (rejected - chosen))
    return right.exp() * (right - math.log1p(-label_smoothing)) + wrong.exp() * (
        wrong - math.log(label_smoothing)
    )


def apo_zero(
    chosen_logprobs: Float[Tensor, "B"],
    rejected_logprobs: Float[Tensor, "B"],
    ref_chosen_logprobs: Float[Tensor, "B"],
    ref_rejected_logprobs: Float[Tensor, "B"],
    *,
    beta: float,
) -> Float[Tensor, "B"]:
    """Chosen up, rejected down, each against the reference: for chosen responses better than what the policy writes.

        1 - sigmoid(beta c) + sigmoid(beta r)        bounded; least nowhere: the majority wins all

    Source: D'Oosterlinck et al. 2024, equation 7 (APO-zero).
    """
    _above_0(beta=beta)
    chosen, rejected = _log_ratios(
        chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs
    )
    return torch.sigmoid(-beta * chosen) + torch.sigmoid(beta * rejected)


def apo_down(
    chosen_logprobs: Float[Tensor, "B"],
    rejected_logprobs: Float[Tensor, "B"],
    ref_chosen_logprobs: Float[Tensor, "B"],
    ref_rejected_logprobs: Float[Tensor, "B"],
    *,
    beta: float,
) -> Float[Tensor, "B"]:
    """Both down, the rejected further: for chosen responses that are worse than what the policy writes.

        sigmoid(beta c) + 1 - sigmoid(beta h)

    Source: D'Oosterlinck et al. 2024, equation 8 (APO-down).
    """
    _above_0(beta=beta)
    chosen, rejected = _log_ratios(
        chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs
    )
    return torch.sigmoid(beta * chosen) + torch.sigmoid(beta * (rejected - chosen))


def bco(
    chosen_logprobs: Float[Tensor, "B"],
    rejected_logprobs: Float[Tensor, "B"],
    ref_chosen_logprobs: Float[Tensor, "B"],
    ref_rejected_logprobs: Float[Tensor, "B"],
    shift: Float[Tensor, ""],
    *,
    beta: float,
) -> Float[Tensor, "B"]:
    """A classifier of single responses, good or bad, whose logit is the implicit reward beyond a shift.

        -log sigmoid(beta c - shift) - log sigmoid(shift - beta r)        of a free log-ratio least at beta c = shift + log w/(1 - w)

    w: the response's share of wins among the pairs that it is in.

    Args:
        shift: reward units, a running mean of all implicit rewards; carries no gradient (0 in TRL's bco_pair).

    Source: Jung et al. 2024, section 4.
    """
    _above_0(beta=beta)
    chosen, rejected = _log_ratios(
        chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs
    )
    shift = shift.detach()
    return -logsigmoid(beta * chosen - shift) - logsigmoid(shift - beta * rejected)


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
    """One step of self-play: each log-ratio is regressed on how often the response wins, against the policy that wrote it.

        (c - [wins_c - 1/2] / beta)^2 + (r - [wins_r - 1/2] / beta)^2        nats^2; of a free log-ratio least at (w - 1/2) / beta

    Args:
        *_wins: shares in which a response beats the policy's; 1 and 0 are the hard labels of a pair. beta: 1 / the paper's eta.

    Source: Wu et al. 2024 (SPPO), equation 4.7.
    """
    _above_0(beta=beta)
    if not (0 <= chosen_wins <= 1 and 0 <= rejected_wins <= 1):
        raise ValueError(
            f"chosen_wins is {chosen_wins} and rejected_wins {rejected_wins}; they must be shares, from 0 to 1."
        )
    chosen, rejected = _log_ratios(
        chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs
    )
    return (chosen - (chosen_wins - 0.5) / beta).square() + (
        rejected - (rejected_wins - 0.5) / beta
    ).square()


def discopop(
    chosen_logprobs: Float[Tensor, "B"],
    rejected_logprobs: Float[Tensor, "B"],
    ref_chosen_logprobs: Float[Tensor, "B"],
    ref_rejected_logprobs: Float[Tensor, "B"],
    *,
    beta: float,
    temperature: float = 0.05,
) -> Float[Tensor, "B"]:
    """A loss that a language model found by search: logistic where a pair is wrong, exponential where it is right; not convex between.

        (1 - m) [-log sigmoid(z)] + m exp(-z),   z = beta h,   m = sigmoid(z / temperature)

    Source: Lu et al. 2024 (DiscoPOP), equation 5.
    """
    _above_0(beta=beta, temperature=temperature)
    chosen, rejected = _log_ratios(
        chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs
    )
    z = beta * (chosen - rejected)
    # m exp(-z) in one exponent: where z is far below 0, exp(-z) alone would overflow and its product with m = 0 be nan
    return (
        torch.sigmoid(-z / temperature) * -logsigmoid(z) + (logsigmoid(z / temperature) - z).exp()
    )


def aot(
    chosen_logprobs: Float[Tensor, "B"],
    rejected_logprobs: Float[Tensor, "B"],
    ref_chosen_logprobs: Float[Tensor, "B"],
    ref_rejected_logprobs: Float[Tensor, "B"],
    *,
    beta: float,
    paired: bool = True,
) -> Float[Tensor, "B"]:
    """Distributions compared, not pairs: quantile by quantile, chosen above rejected (first-order stochastic dominance).

        -log sigmoid(beta [sort(a) - sort(b)])        paired: a, b = log pi, log pi_ref of chosen minus rejected;   else a, b = c, r

    One number a quantile of the batch, lowest first. Of a batch of one, DPO.

    Source: Melnyk et al. 2024, section 3.
    """
    _above_0(beta=beta)
    chosen, rejected = _log_ratios(
        chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs
    )
    if paired:
        chosen, rejected = (
            chosen_logprobs - rejected_logprobs,
            (ref_chosen_logprobs - ref_rejected_logprobs).detach(),
        )
    return -logsigmoid(beta * (chosen.sort().values - rejected.sort().values))


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
    """DPO under another leash than KL(pi || pi_ref): the derivative f' of its divergence in the place of the logarithm.

        -log sigmoid(beta [f'(u_c) - f'(u_r)]),   u = pi/pi_ref        least at beta f'(u) = r + constant
        f'(u) = log u (reverse KL: DPO)    -1/u (forward KL)    log 2u/(1 + u) (Jensen-Shannon)    (1 - u^-alpha) / alpha

    The powers of 1/u end at e^80, which float32 holds; beyond it nothing pulls.

    Args:
        divergence: reverse_kl, forward_kl, js or alpha.
        alpha: of the alpha divergence, read with no other; above 0 and below 1; towards 0 it is the reverse KL, towards 1 the forward one.

    Source: Wang et al. 2023, *Beyond reverse KL*, table 1.
    """
    _above_0(beta=beta)
    slopes = {
        "reverse_kl": lambda x: x,
        "forward_kl": lambda x: -(-x).clamp(max=80.0).exp(),
        "js": lambda x: math.log(2) - softplus(-x),
        "alpha": lambda x: -torch.expm1((-alpha * x).clamp(max=80.0)) / alpha,
    }
    if divergence not in slopes:
        raise ValueError(f"divergence is {divergence!r}; it must be one of {', '.join(slopes)}.")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha}; it must be above 0 and below 1.")
    chosen, rejected = map(
        slopes[divergence],
        _log_ratios(chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs),
    )
    return -logsigmoid(beta * (chosen - rejected))


def wpo_weights(
    chosen_mean_logprobs: Float[Tensor, "B"],
    rejected_mean_logprobs: Float[Tensor, "B"],
    chosen_alignment: Float[Tensor, "B"] | None = None,
    rejected_alignment: Float[Tensor, "B"] | None = None,
) -> Float[Tensor, "B"]:
    """How much each pair counts: as much as the policy would write it itself. In (0, 1], detached.

        min(1, exp(mean_c - alignment_c + mean_r - alignment_r))

    Args:
        *_mean_logprobs: mean log pi of a response's tokens, nats. *_alignment: mean over its places of log sum_v pi(v)^2, what a sampled
            token has on average ("sampled alignment"); 0 if left out.

    Source: Zhou et al. 2024 (WPO), equation 2 and section 3.3.
    """
    check_same_shape(
        chosen_mean_logprobs=chosen_mean_logprobs, rejected_mean_logprobs=rejected_mean_logprobs
    )
    if (chosen_alignment is None) != (rejected_alignment is None):
        raise ValueError("wpo_weights got the alignment of one side only; give both or neither.")
    total = chosen_mean_logprobs + rejected_mean_logprobs
    for alignment in (chosen_alignment, rejected_alignment):
        if alignment is not None:
            check_same_shape(chosen_mean_logprobs=chosen_mean_logprobs, alignment=alignment)
            total = total - alignment
    return total.clamp(max=0).exp().detach()


def ld_logprobs(
    chosen_logprobs: Float[Tensor, "B R"],
    rejected_logprobs: Float[Tensor, "B R"],
    chosen_mask: Bool[Tensor, "B R"],
    rejected_mask: Bool[Tensor, "B R"],
    *,
    alpha: float,
) -> tuple[Float[Tensor, "B"], Float[Tensor, "B"]]:
    """log pi of both responses, nats, in which what one has beyond the length of the other counts alpha: length desensitised.

        sum of the first min(|y_c|, |y_r|) tokens + alpha sum of the rest        alpha 1: plain sums; 0: nothing beyond

    The reference's log-probabilities must go through it too, or the loss does not begin where the policy is the reference.

    Source: Liu et al. 2024 (LD-DPO), section 4.
    """
    check_same_shape(chosen_logprobs=chosen_logprobs, chosen_mask=chosen_mask)
    check_same_shape(rejected_logprobs=rejected_logprobs, rejected_mask=rejected_mask)
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}; it must be from 0 to 1.")
    shorter = torch.minimum(chosen_mask.sum(1, keepdim=True), rejected_mask.sum(1, keepdim=True))
    return tuple(
        (torch.where(mask, x, 0.0) * torch.where(mask.cumsum(1) <= shorter, 1.0, alpha)).sum(1)
        for x, mask in ((chosen_logprobs, chosen_mask), (rejected_logprobs, rejected_mask))
    )
