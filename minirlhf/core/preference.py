"""Direct preference optimisation and its family: the policy is its own reward model. One function a published loss, a number a pair.

    h = log pi/pi_ref (chosen) - log pi/pi_ref (rejected), nats, sums over the responses' tokens unless a name says mean

    with a reference   dpo  cdpo  robust_dpo  ipo  hinge  dpop  nca  tdpo  and, one response at a time, kto
    without one        cpo  simpo  orpo

Where a loss is least, in a world of all pairs with labels p = sigmoid(r_i - r_j), is in its docstring where it is known; tests/core
solves for it.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid

from minirlhf.core.masking import check_same_shape


def dpo(
    chosen_logprobs: Float[Tensor, "B"],
    rejected_logprobs: Float[Tensor, "B"],
    ref_chosen_logprobs: Float[Tensor, "B"],
    ref_rejected_logprobs: Float[Tensor, "B"],
    *,
    beta: float,
) -> Float[Tensor, "B"]:
    """The loss of each pair, nats; ln 2 where policy and reference are the same.

        -log sigmoid(beta h)        least at beta h = log p/(1 - p) = r_c - r_r: the Gibbs policy pi_ref exp(r / beta) / Z

    Args:
        *_logprobs: sums over the response's tokens, nats (means would be another loss). beta: reward units per nat.

    Source: Rafailov et al. 2023, equation 7.
    """
    _above_0(beta=beta)
    chosen, rejected = _log_ratios(
        chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs
    )
    return -logsigmoid(beta * (chosen - rejected))


def cdpo(
    chosen_logprobs: Float[Tensor, "B"],
    rejected_logprobs: Float[Tensor, "B"],
    ref_chosen_logprobs: Float[Tensor, "B"],
    ref_rejected_logprobs: Float[Tensor, "B"],
    *,
    beta: float,
    label_smoothing: float,
) -> Float[Tensor, "B"]:
    """Conservative DPO: cross-entropy against labels that are wrong with probability e = label_smoothing.

        -(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h)        a sure label's is least at beta h = log (1 - e)/e, not at infinity

    Source: Mitchell 2023 (a note on DPO with noisy preferences).
    """
    _flips(label_smoothing)
    right, wrong = (
        dpo(*x, beta=beta)
        for x in _both_ways(
            chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs
        )
    )
    return (1 - label_smoothing) * right + label_smoothing * wrong


def robust_dpo(
    chosen_logprobs: Float[Tensor, "B"],
    rejected_logprobs: Float[Tensor, "B"],
    ref_chosen_logprobs: Float[Tensor, "B"],
    ref_rejected_logprobs: Float[Tensor, "B"],
    *,
    beta: float,
    label_smoothing: float,
) -> Float[Tensor, "B"]:
    """DPO's loss without the bias that flipped labels bring: its mean over labels flipped with probability e is DPO's on true ones.

        [(1 - e) l(beta h) - e l(-beta h)] / (1 - 2 e)        l = -log sigmoid

    Least where DPO's is on true labels; may be negative. Another formula than `cdpo` under the same word, "label smoothing". (TRL 1.x's
    plain loss ignores label_smoothing.)

    Source: Chowdhury et al. 2024, section 3.
    """
    _flips(label_smoothing)
    right, wrong = (
        dpo(*x, beta=beta)
        for x in _both_ways(
            chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs
        )
    )
    return ((1 - label_smoothing) * right - label_smoothing * wrong) / (1 - 2 * label_smoothing)


def ipo(
    chosen_logprobs: Float[Tensor, "B"],
    rejected_logprobs: Float[Tensor, "B"],
    ref_chosen_logprobs: Float[Tensor, "B"],
    ref_rejected_logprobs: Float[Tensor, "B"],
    *,
    beta: float,
    chosen_lengths: Int[Tensor, "B"] | None = None,
    rejected_lengths: Int[Tensor, "B"] | None = None,
) -> Float[Tensor, "B"]:
    """A squared error instead of a logarithm: h is to be 1 / (2 beta) and no more, however sure the labels are.

        (h - 1 / (2 beta))^2        nats^2; least at log pi/pi_ref (i) = [mean over j of p_ij] / beta + constant, hard labels or not

    Args:
        *_lengths: tokens; with them each log-ratio is its response's mean over tokens, as in TRL (OpenRLHF: sums).

    Source: Azar et al. 2023, equation 17 (sums).
    """
    _above_0(beta=beta)
    chosen, rejected = _log_ratios(
        chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs
    )
    if (chosen_lengths is None) != (rejected_lengths is None):
        raise ValueError(
            "ipo got lengths of one side only; give both (a mean over tokens) or neither (sums)."
        )
    if chosen_lengths is not None:
        check_same_shape(
            chosen_logprobs=chosen, chosen_lengths=chosen_lengths, rejected_lengths=rejected_lengths
        )
        chosen, rejected = (
            chosen / chosen_lengths.clamp(min=1),
            rejected / rejected_lengths.clamp(min=1),
        )
    return (chosen - rejected - 1 / (2 * beta)).square()


def hinge(
    chosen_logprobs: Float[Tensor, "B"],
    rejected_logprobs: Float[Tensor, "B"],
    ref_chosen_logprobs: Float[Tensor, "B"],
    ref_rejected_logprobs: Float[Tensor, "B"],
    *,
    beta: float,
) -> Float[Tensor, "B"]:
    """A pair pulls at full strength until its margin is 1, then not at all: how sure its label is does not matter.

        max(0, 1 - beta h)        least at beta h = 1 for every p above 1/2

    Source: Zhao et al. 2023 (SLiC-HF); on log-ratios as in Liu et al. 2023 (RSO). SLiC's own has no reference: pass zeros for it.
    """
    _above_0(beta=beta)
    chosen, rejected = _log_ratios(
        chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs
    )
    return (1 - beta * (chosen - rejected)).relu()


def dpop(
    chosen_logprobs: Float[Tensor, "B"],
    rejected_logprobs: Float[Tensor, "B"],
    ref_chosen_logprobs: Float[Tensor, "B"],
    ref_rejected_logprobs: Float[Tensor, "B"],
    *,
    beta: float,
    penalty: float,
) -> Float[Tensor, "B"]:
    """DPO-positive: a chosen response that has become less likely than in the reference takes the margin away again.

        -log sigmoid(beta [h - penalty max(0, log pi_ref/pi (chosen))])        below the reference it pulls 1 + penalty times as hard

    Args:
        penalty: lambda, no unit, 5 to 50; 0 is DPO.

    Source: Pal et al. 2024 (Smaug), section 4.
    """
    _above_0(beta=beta)
    _not_negative(penalty=penalty)
    chosen, rejected = _log_ratios(
        chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs
    )
    return -logsigmoid(beta * (chosen - rejected - penalty * (-chosen).relu()))


def nca(
    chosen_logprobs: Float[Tensor, "B"],
    rejected_logprobs: Float[Tensor, "B"],
    ref_chosen_logprobs: Float[Tensor, "B"],
    ref_rejected_logprobs: Float[Tensor, "B"],
    *,
    beta: float,
) -> Float[Tensor, "B"]:
    """Noise contrastive alignment, for pairs: absolute rewards are fitted, not only their difference.

        -log sigmoid(r_c) - 1/2 log sigmoid(-r_c) - 1/2 log sigmoid(-r_r)        r = beta log pi/pi_ref

    Least at r_i = log 2 P(i is chosen), were the log-ratios free: one that always wins goes up to log 2 and stays; it does not fall with
    its partner. A policy's probabilities add up to 1 there if beta is 1 and pairs are drawn from the reference; else it is near.

    Source: Chen et al. 2024 (NCA, K = 2); TRL's nca_pair.
    """
    _above_0(beta=beta)
    chosen, rejected = (
        beta * x
        for x in _log_ratios(
            chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs
        )
    )
    return -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)


def tdpo(
    chosen_logprobs: Float[Tensor, "B"],
    rejected_logprobs: Float[Tensor, "B"],
    ref_chosen_logprobs: Float[Tensor, "B"],
    ref_rejected_logprobs: Float[Tensor, "B"],
    chosen_kl: Float[Tensor, "B"],
    rejected_kl: Float[Tensor, "B"],
    *,
    beta: float,
    alpha: float | None = None,
) -> Float[Tensor, "B"]:
    """Token-level DPO: the forward KL of each response's places joins the margin, so that drift is seen where it happens.

        -log sigmoid(beta [h - (kl_rejected - kl_chosen)])                 TDPO1 (alpha None)
        -log sigmoid(beta [h - alpha (kl_rejected - sg(kl_chosen))])       TDPO2: the chosen one's own KL is not pushed up

    TDPO1 is least at pi(a|s) = pi_ref(a|s) exp(Q(s, a) / beta) / Z(s) with Q that of pi_ref: one step of improvement at each prefix, not
    the Gibbs policy, whose Q looks ahead along itself.

    Args:
        *_kl: sums over a response's places of KL(pi_ref || pi), exact over the vocabulary, nats, with their gradient (`kl.exact_kl` with
            the reference first).

    Source: Zeng et al. 2024, section 4.
    """
    _above_0(beta=beta)
    check_same_shape(chosen_logprobs=chosen_logprobs, chosen_kl=chosen_kl, rejected_kl=rejected_kl)
    chosen, rejected = _log_ratios(
        chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs
    )
    if alpha is None:
        return -logsigmoid(beta * (chosen - rejected - (rejected_kl - chosen_kl)))
    _not_negative(alpha=alpha)
    return -logsigmoid(beta * (chosen - rejected - alpha * (rejected_kl - chosen_kl.detach())))


def kto(
    logprobs: Float[Tensor, "B"],
    ref_logprobs: Float[Tensor, "B"],
    desirable: Bool[Tensor, "B"],
    kl_baseline: Float[Tensor, ""],
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Float[Tensor, "B"]:
    """The loss of each response, which needs a thumb and no partner.

        weight_+ (1 - sigmoid(beta [log pi/pi_ref - z]))    desirable
        weight_- (1 - sigmoid(beta [z - log pi/pi_ref]))    undesirable

    Bounded, so one absurd label cannot pull far; but linear in the share of thumbs up, so with equal weights the majority wins all.

    Args:
        kl_baseline: z, nats, from `kto_baseline`; carries no gradient.

    Source: Ethayarajh et al. 2024, section 4.1.
    """
    _above_0(beta=beta)
    _not_negative(desirable_weight=desirable_weight, undesirable_weight=undesirable_weight)
    check_same_shape(logprobs=logprobs, ref_logprobs=ref_logprobs, desirable=desirable)
    gain = beta * (logprobs - ref_logprobs.detach() - kl_baseline.detach())
    return torch.where(
        desirable, desirable_weight * torch.sigmoid(-gain), undesirable_weight * torch.sigmoid(gain)
    )


def kto_baseline(
    mismatched_logprobs: Float[Tensor, "B"], mismatched_ref_logprobs: Float[Tensor, "B"]
) -> Float[Tensor, ""]:
    """KTO's z: an estimate of KL(pi || pi_ref), nats, at least 0, detached: mean log-ratio of responses under *other* prompts.

    Raises:
        ValueError: fewer than two responses: with one there is no other prompt.

    Source: Ethayarajh et al. 2024, section 4.1.
    """
    check_same_shape(
        mismatched_logprobs=mismatched_logprobs, mismatched_ref_logprobs=mismatched_ref_logprobs
    )
    if len(mismatched_logprobs) < 2:
        raise ValueError(
            f"mismatched_logprobs has {len(mismatched_logprobs)} responses; KTO's baseline needs at least 2."
        )
    return (mismatched_logprobs - mismatched_ref_logprobs).mean().clamp(min=0).detach()


def cpo(
    chosen_logprobs: Float[Tensor, "B"],
    rejected_logprobs: Float[Tensor, "B"],
    *,
    beta: float,
    nll_coef: float = 1.0,
) -> Float[Tensor, "B"]:
    """Contrastive preference optimisation: DPO against a uniform reference, which cancels, and imitation of the chosen response.

        -log sigmoid(beta [log pi(chosen) - log pi(rejected)]) - nll_coef log pi(chosen)        without imitation least at exp(r / beta) / Z

    Source: Xu et al. 2024, section 3 (the imitation term summed; TRL takes its mean over tokens).
    """
    _above_0(beta=beta)
    _not_negative(nll_coef=nll_coef)
    check_same_shape(chosen_logprobs=chosen_logprobs, rejected_logprobs=rejected_logprobs)
    return -logsigmoid(beta * (chosen_logprobs - rejected_logprobs)) - nll_coef * chosen_logprobs


def simpo(
    chosen_mean_logprobs: Float[Tensor, "B"],
    rejected_mean_logprobs: Float[Tensor, "B"],
    *,
    beta: float,
    margin: float,
) -> Float[Tensor, "B"]:
    """No reference, and a token's mean log-probability as the reward: of two equal texts the longer one no longer has the lower one.

        -log sigmoid(beta [mean_c - mean_r] - margin)        margin 0: least at mean_i = r_i / beta + constant

    Args:
        *_mean_logprobs: nats a token. beta: reward units per nat, 2 to 10. margin: gamma, reward units (the paper's code takes
            gamma / beta).

    Source: Meng et al. 2024, equation 6.
    """
    _above_0(beta=beta)
    _not_negative(margin=margin)
    check_same_shape(
        chosen_mean_logprobs=chosen_mean_logprobs, rejected_mean_logprobs=rejected_mean_logprobs
    )
    return -logsigmoid(beta * (chosen_mean_logprobs - rejected_mean_logprobs) - margin)


def orpo(
    chosen_mean_logprobs: Float[Tensor, "B"],
    rejected_mean_logprobs: Float[Tensor, "B"],
    *,
    beta: float,
) -> Float[Tensor, "B"]:
    """Imitation of the chosen response, and the odds of both: one stage in the place of SFT and DPO.

        -mean_c - beta log sigmoid(log odds_c - log odds_r)        log odds = mean - log(1 - exp(mean))

    Args:
        *_mean_logprobs: nats a token, below 0: at 0 the odds are infinite. beta: the paper's lambda, no unit.

    Source: Hong, Lee and Thorne 2024, section 4 (TRL's imitation term covers the prompt as well).
    """
    _above_0(beta=beta)
    check_same_shape(
        chosen_mean_logprobs=chosen_mean_logprobs, rejected_mean_logprobs=rejected_mean_logprobs
    )
    chosen, rejected = (x - _log1mexp(x) for x in (chosen_mean_logprobs, rejected_mean_logprobs))
    return -chosen_mean_logprobs - beta * logsigmoid(chosen - rejected)


def implicit_rewards(
    logprobs: Float[Tensor, "..."], ref_logprobs: Float[Tensor, "..."], *, beta: float
) -> Float[Tensor, "..."]:
    """beta (log pi - log pi_ref), reward units, detached: what DPO's policy thinks of a response (or of each token)."""
    _above_0(beta=beta)
    check_same_shape(logprobs=logprobs, ref_logprobs=ref_logprobs)
    return beta * (logprobs - ref_logprobs).detach()


def _log_ratios(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor
) -> tuple[Tensor, Tensor]:
    """log pi/pi_ref of both responses; nothing flows into the reference."""
    check_same_shape(
        chosen_logprobs=chosen,
        rejected_logprobs=rejected,
        ref_chosen_logprobs=ref_chosen,
        ref_rejected_logprobs=ref_rejected,
    )
    return chosen - ref_chosen.detach(), rejected - ref_rejected.detach()


def _both_ways(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor
) -> tuple[tuple, tuple]:
    return (chosen, rejected, ref_chosen, ref_rejected), (
        rejected,
        chosen,
        ref_rejected,
        ref_chosen,
    )


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x < 0 without loss of digits on either side; x is held a hair below 0."""
    x = x.clamp(max=-(torch.finfo(x.dtype).tiny ** 0.5))
    near = x > -0.6931471805599453
    return torch.where(
        near,
        torch.log(-torch.expm1(torch.where(near, x, -1.0))),
        torch.log1p(-torch.exp(torch.where(near, -1.0, x))),
    )


def _above_0(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} is {value}; it must be above 0.")


def _not_negative(**values: float) -> None:
    for name, value in values.items():
        if not value >= 0:
            raise ValueError(f"{name} is {value}; it must be 0 or more.")


def _flips(label_smoothing: float) -> None:
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(
            f"label_smoothing is {label_smoothing}; it must be a share of wrong labels, from 0 to below 0.5."
        )
