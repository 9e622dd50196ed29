"""Direct preference optimisation (DPO) and its family, one value per pair.

These losses need no separate reward model: the reward of a response is computed from the policy's
own log-probabilities (see `implicit_rewards`). There is one function per published loss. No loss is
averaged over the batch.

Symbols used below:

    B                      the number of pairs
    pi, pi_ref             the policy that is trained, and the reference, which a loss leaves fixed
    log pi/pi_ref (y)      log pi(y | prompt) - log pi_ref(y | prompt), nats (units of the natural
                           logarithm)
    h                      log pi/pi_ref (chosen) - log pi/pi_ref (rejected), nats
    sigmoid(x)             1 / (1 + exp(-x))
    r_i                    the true reward of response i, in reward units
    p                      the share of labels that prefer response i of a pair (i, j);
                           the Bradley-Terry model says p = sigmoid(r_i - r_j)
    Z                      the constant that makes probabilities add up to 1

Log-probabilities are sums over the tokens of a response, unless the name of an argument says mean.

    with a reference       dpo, cdpo, robust_dpo, ipo, hinge, dpop, nca, tdpo;
                           kto, which scores single responses
    without a reference    cpo, simpo, orpo

Where the minimum of a loss is known, its docstring gives it. It is the minimum of the mean loss
over all pairs of responses. In each pair (i, j) a share p of the labels prefers i, and the share
1 - p prefers j. The tests minimise the loss numerically and compare.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid

from minirlhf.core.checks import check_above_0, check_not_negative, checked
from minirlhf.core.masking import check_same_shape


@checked
def dpo(
    chosen_logprobs: Float[Tensor, "B"],
    rejected_logprobs: Float[Tensor, "B"],
    ref_chosen_logprobs: Float[Tensor, "B"],
    ref_rejected_logprobs: Float[Tensor, "B"],
    *,
    beta: float,
) -> Float[Tensor, "B"]:
    """DPO loss of each pair.

        h = log pi/pi_ref (chosen) - log pi/pi_ref (rejected)

        loss = -log sigmoid(beta h)

    h is how much more the policy prefers the chosen response than the reference does. The loss is
    ln 2 where policy and reference are the same. Let p be the share of labels that prefer the
    chosen response. The loss is smallest at beta h = log(p / (1 - p)). Under the Bradley-Terry
    model this is the difference of their rewards. So the best policy is the Gibbs policy:

        pi = pi_ref exp(r / beta) / Z

    Args:
        chosen_logprobs, rejected_logprobs: log pi of each response, summed over its tokens, nats.
        ref_chosen_logprobs, ref_rejected_logprobs: the same under the reference; they carry no
            gradient. Means over tokens would give another loss.
        beta: reward units per nat, above 0.

    Returns:
        One loss per pair, nats.

    Raises:
        ValueError: beta is not above 0, or shapes differ.

    Source: Rafailov et al. 2023, equation 7.
    """
    check_above_0(beta=beta)
    chosen, rejected = _log_ratios(
        chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs
    )
    return -logsigmoid(beta * (chosen - rejected))


@checked
def cdpo(
    chosen_logprobs: Float[Tensor, "B"],
    rejected_logprobs: Float[Tensor, "B"],
    ref_chosen_logprobs: Float[Tensor, "B"],
    ref_rejected_logprobs: Float[Tensor, "B"],
    *,
    beta: float,
    label_smoothing: float,
) -> Float[Tensor, "B"]:
    """Conservative DPO loss (cDPO) of each pair: cross-entropy with smoothed labels.

        h = log pi/pi_ref (chosen) - log pi/pi_ref (rejected)

        e = label_smoothing
        loss = -(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h)

    The loss assumes that a label is wrong with probability e. If all labels prefer the same
    response, it is smallest at beta h = log((1 - e) / e). The DPO loss would push h to infinity.

    `robust_dpo` is another formula for the same name "label smoothing".

    Args:
        chosen_logprobs, rejected_logprobs: log pi of each response, summed over its tokens, nats.
        ref_chosen_logprobs, ref_rejected_logprobs: the same under the reference; they carry no
            gradient.
        beta: reward units per nat, above 0.
        label_smoothing: e, the assumed share of wrong labels, from 0 to below 1/2; 0 is DPO.

    Returns:
        One loss per pair, nats.

    Raises:
        ValueError: beta or label_smoothing is out of range, or shapes differ.

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


@checked
def robust_dpo(
    chosen_logprobs: Float[Tensor, "B"],
    rejected_logprobs: Float[Tensor, "B"],
    ref_chosen_logprobs: Float[Tensor, "B"],
    ref_rejected_logprobs: Float[Tensor, "B"],
    *,
    beta: float,
    label_smoothing: float,
) -> Float[Tensor, "B"]:
    """Robust DPO loss of each pair: DPO corrected for wrong labels.

        h = log pi/pi_ref (chosen) - log pi/pi_ref (rejected)

        e = label_smoothing
        l(x) = -log sigmoid(x)
        loss = [(1 - e) l(beta h) - e l(-beta h)] / (1 - 2 e)

    Suppose labels are flipped with probability e. Then the expected value of this loss is the DPO
    loss on the true labels. So it is smallest where DPO is smallest on true labels. A single value
    may be negative.

    `cdpo` is another formula for the same name "label smoothing". The plain DPO loss of TRL 1.x
    ignores its `label_smoothing` without a warning.

    Args:
        chosen_logprobs, rejected_logprobs: log pi of each response, summed over its tokens, nats.
        ref_chosen_logprobs, ref_rejected_logprobs: the same under the reference; they carry no
            gradient.
        beta: reward units per nat, above 0.
        label_smoothing: e, the share of wrong labels, from 0 to below 1/2; 0 is DPO.

    Returns:
        One loss per pair, nats.

    Raises:
        ValueError: beta or label_smoothing is out of range, or shapes differ.

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


@checked
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
    """Identity preference optimisation loss (IPO) of each pair: a squared error.

        h = log pi/pi_ref (chosen) - log pi/pi_ref (rejected)

        loss = (h - 1 / (2 beta))^2

    Each pair pulls h towards 1 / (2 beta) and no further, even if all labels agree. Let p_ij be the
    share of labels that prefer i to j, with p_ii = 1/2. The loss is smallest where the log-ratio of
    each response is its mean share of wins divided by beta, up to a constant. This holds for hard
    and for soft labels.

        log pi/pi_ref (i) = [mean over all j of p_ij] / beta + constant

    TRL divides the log-ratio of each response by its number of tokens; pass the lengths for this
    form. OpenRLHF and equation 17 of the paper use sums; leave the lengths out.

    Args:
        chosen_logprobs, rejected_logprobs: log pi of each response, summed over its tokens, nats.
        ref_chosen_logprobs, ref_rejected_logprobs: the same under the reference; they carry no
            gradient.
        beta: per nat, above 0.
        chosen_lengths, rejected_lengths: numbers of tokens. With them each log-ratio is the mean
            over the tokens of its response. Give both or neither.

    Returns:
        One loss per pair, nats squared.

    Raises:
        ValueError: beta is not above 0, lengths of one side only, or shapes differ.

    Source: Azar et al. 2023, equation 17 (with sums).
    """
    check_above_0(beta=beta)
    chosen, rejected = _log_ratios(
        chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs
    )
    if (chosen_lengths is None) != (rejected_lengths is None):
        raise ValueError(
            "ipo got the lengths of one side only; give both (means over tokens) or neither (sums)."
        )
    if chosen_lengths is not None and rejected_lengths is not None:
        chosen, rejected = (
            chosen / chosen_lengths.clamp(min=1),
            rejected / rejected_lengths.clamp(min=1),
        )
    return (chosen - rejected - 1 / (2 * beta)).square()


@checked
def hinge(
    chosen_logprobs: Float[Tensor, "B"],
    rejected_logprobs: Float[Tensor, "B"],
    ref_chosen_logprobs: Float[Tensor, "B"],
    ref_rejected_logprobs: Float[Tensor, "B"],
    *,
    beta: float,
) -> Float[Tensor, "B"]:
    """Hinge loss of each pair.

        h = log pi/pi_ref (chosen) - log pi/pi_ref (rejected)

        loss = max(0, 1 - beta h)

    A pair has a gradient of constant size until beta h reaches 1, and none after that. For every
    share p above 1/2 the loss is smallest at beta h = 1, so it does not learn how large p is.

    Args:
        chosen_logprobs, rejected_logprobs: log pi of each response, summed over its tokens, nats.
        ref_chosen_logprobs, ref_rejected_logprobs: the same under the reference; they carry no
            gradient. SLiC-HF itself has no reference: pass zeros for this form.
        beta: reward units per nat, above 0.

    Returns:
        One loss per pair, no unit.

    Raises:
        ValueError: beta is not above 0, or shapes differ.

    Source: Zhao et al. 2023 (SLiC-HF); with log-ratios as in Liu et al. 2023 (RSO).
    """
    check_above_0(beta=beta)
    chosen, rejected = _log_ratios(
        chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs
    )
    return (1 - beta * (chosen - rejected)).relu()


@checked
def dpop(
    chosen_logprobs: Float[Tensor, "B"],
    rejected_logprobs: Float[Tensor, "B"],
    ref_chosen_logprobs: Float[Tensor, "B"],
    ref_rejected_logprobs: Float[Tensor, "B"],
    *,
    beta: float,
    penalty: float,
) -> Float[Tensor, "B"]:
    """DPO-positive loss (DPOP) of each pair.

        h = log pi/pi_ref (chosen) - log pi/pi_ref (rejected)

        loss = -log sigmoid(beta [h - penalty max(0, log pi_ref/pi (chosen))])

    The extra term is above 0 when the chosen response is less likely under the policy than under
    the reference. Then a change of its log-probability changes the margin 1 + penalty times as
    much.

    Args:
        chosen_logprobs, rejected_logprobs: log pi of each response, summed over its tokens, nats.
        ref_chosen_logprobs, ref_rejected_logprobs: the same under the reference; they carry no
            gradient.
        beta: reward units per nat, above 0.
        penalty: the paper's lambda, no unit, usually 5 to 50; 0 is DPO.

    Returns:
        One loss per pair, nats.

    Raises:
        ValueError: beta is not above 0, penalty is negative, or shapes differ.

    Source: Pal et al. 2024 (Smaug), section 4.
    """
    check_above_0(beta=beta)
    check_not_negative(penalty=penalty)
    chosen, rejected = _log_ratios(
        chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs
    )
    return -logsigmoid(beta * (chosen - rejected - penalty * (-chosen).relu()))


@checked
def nca(
    chosen_logprobs: Float[Tensor, "B"],
    rejected_logprobs: Float[Tensor, "B"],
    ref_chosen_logprobs: Float[Tensor, "B"],
    ref_rejected_logprobs: Float[Tensor, "B"],
    *,
    beta: float,
) -> Float[Tensor, "B"]:
    """Noise contrastive alignment loss (NCA) of each pair.

        r_c, r_r = beta log pi/pi_ref of the chosen and of the rejected response
        loss = -log sigmoid(r_c) - 1/2 log sigmoid(-r_c) - 1/2 log sigmoid(-r_r)

    DPO fits only the difference of the implicit rewards r_c and r_r. NCA fits each of them.

    Let w_i be the share of its pairs that response i wins. If the log-ratios were free numbers, the
    loss would be smallest at r_i = log(2 w_i). A response that always wins gets the reward log 2,
    and its log-probability does not fall together with that of the rejected response. With beta = 1
    and pairs drawn from the reference, the probabilities at this minimum add up to 1, so a policy
    can reach it. Otherwise the best policy is only close to it.

    Args:
        chosen_logprobs, rejected_logprobs: log pi of each response, summed over its tokens, nats.
        ref_chosen_logprobs, ref_rejected_logprobs: the same under the reference; they carry no
            gradient.
        beta: reward units per nat, above 0.

    Returns:
        One loss per pair, nats.

    Raises:
        ValueError: beta is not above 0, or shapes differ.

    Source: Chen et al. 2024 (NCA, K = 2); `nca_pair` in TRL.
    """
    check_above_0(beta=beta)
    chosen, rejected = (
        beta * x
        for x in _log_ratios(
            chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs
        )
    )
    return -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)


@checked
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
    """Token-level DPO loss (TDPO) of each pair: DPO with the KL of each response in the margin.

        h = log pi/pi_ref (chosen) - log pi/pi_ref (rejected)

        kl = sum over the positions of a response of KL(pi_ref || pi), nats

        TDPO1    loss = -log sigmoid(beta [h - (kl_rejected - kl_chosen)])
        TDPO2    loss = -log sigmoid(beta [h - alpha (kl_rejected - detach(kl_chosen))])

    The KL is measured at every position, so the loss sees where the policy moves away from the
    reference. In TDPO1 the gradient raises the KL of the chosen response. TDPO2 detaches this KL,
    so the gradient does not.

    Let s be a prefix, a the next token, and Q(s, a) the expected reward when pi_ref writes the
    rest. TDPO1 is smallest at

        pi(a|s) = pi_ref(a|s) exp(Q(s, a) / beta) / Z(s)

    This is one step of policy improvement at each prefix. It is not the Gibbs policy. The Gibbs
    policy has the same form with another Q, for which the Gibbs policy itself writes the rest and
    not pi_ref (`exact.World.optimal_values`).

    Args:
        chosen_logprobs, rejected_logprobs: log pi of each response, summed over its tokens, nats.
        ref_chosen_logprobs, ref_rejected_logprobs: the same under the reference; they carry no
            gradient.
        chosen_kl, rejected_kl: kl of each response, nats, exact over the vocabulary and with its
            gradient. Use `kl.exact_kl` with the reference as the first argument, and sum over
            positions.
        beta: reward units per nat, above 0.
        alpha: weight of the KL difference in TDPO2, no unit, 0 or more; None is TDPO1.

    Returns:
        One loss per pair, nats.

    Raises:
        ValueError: beta is not above 0, alpha is negative, or shapes differ.

    Source: Zeng et al. 2024, section 4.
    """
    check_above_0(beta=beta)
    chosen, rejected = _log_ratios(
        chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs
    )
    if alpha is None:
        return -logsigmoid(beta * (chosen - rejected - (rejected_kl - chosen_kl)))
    check_not_negative(alpha=alpha)
    return -logsigmoid(beta * (chosen - rejected - alpha * (rejected_kl - chosen_kl.detach())))


@checked
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
    """Kahneman-Tversky optimisation loss (KTO) of each response.

        g = beta (log pi/pi_ref - z)
        desirable      loss = desirable_weight (1 - sigmoid(g))
        undesirable    loss = undesirable_weight (1 - sigmoid(-g))

    z is an estimate of KL(pi || pi_ref), see `kto_baseline`. Each response has its own label,
    desirable or not. It is not compared with a second response.

    The loss of a response stays between 0 and its weight, so one wrong label has a limited effect.
    With equal weights the expected loss of a response is linear in sigmoid(g). So it has no minimum
    at a finite log-ratio. If most labels are desirable, the log-ratio rises without end. If most
    are undesirable, it falls without end.

    Args:
        logprobs: log pi of each response, summed over its tokens, nats.
        ref_logprobs: the same under the reference; they carry no gradient.
        desirable: True for a desirable response.
        kl_baseline: z, nats, from `kto_baseline`; it carries no gradient.
        beta: reward units per nat, above 0.
        desirable_weight, undesirable_weight: weights of the two kinds, 0 or more.

    Returns:
        One loss per response, no unit.

    Raises:
        ValueError: beta is not above 0, a weight is negative, or shapes differ.

    Source: Ethayarajh et al. 2024, section 4.1.
    """
    check_above_0(beta=beta)
    check_not_negative(desirable_weight=desirable_weight, undesirable_weight=undesirable_weight)
    gain = beta * (logprobs - ref_logprobs.detach() - kl_baseline.detach())
    return torch.where(
        desirable, desirable_weight * torch.sigmoid(-gain), undesirable_weight * torch.sigmoid(gain)
    )


@checked
def kto_baseline(
    mismatched_logprobs: Float[Tensor, "B"], mismatched_ref_logprobs: Float[Tensor, "B"]
) -> Float[Tensor, ""]:
    """KTO's baseline z: an estimate of KL(pi || pi_ref).

        z = max(0, mean of log pi/pi_ref over mismatched pairs)

    A mismatched pair is the response to one prompt, scored under another prompt.

    Args:
        mismatched_logprobs: log pi of each response given another prompt than its own, summed over
            its tokens, nats.
        mismatched_ref_logprobs: the same under the reference.

    Returns:
        z, nats, at least 0; it carries no gradient.

    Raises:
        ValueError: fewer than two responses (there is no other prompt then), or shapes that differ.

    Source: Ethayarajh et al. 2024, section 4.1.
    """
    if len(mismatched_logprobs) < 2:
        raise ValueError(
            f"mismatched_logprobs has {len(mismatched_logprobs)} responses; "
            "it must have at least 2, because each response is scored under the prompt of another."
        )
    return (mismatched_logprobs - mismatched_ref_logprobs).mean().clamp(min=0).detach()


@checked
def cpo(
    chosen_logprobs: Float[Tensor, "B"],
    rejected_logprobs: Float[Tensor, "B"],
    *,
    beta: float,
    nll_coef: float = 1.0,
) -> Float[Tensor, "B"]:
    """Contrastive preference optimisation loss (CPO) of each pair.

        loss = -log sigmoid(beta [log pi(chosen) - log pi(rejected)]) - nll_coef log pi(chosen)

    The first term is DPO with a uniform reference, which cancels. The second term imitates the
    chosen response. Without it (nll_coef = 0) the loss is smallest at pi = exp(r / beta) / Z.

    The imitation term is a sum over tokens, as in the paper. TRL takes its mean over tokens.

    Args:
        chosen_logprobs, rejected_logprobs: log pi of each response, summed over its tokens, nats.
        beta: reward units per nat, above 0.
        nll_coef: weight of the imitation term, 0 or more.

    Returns:
        One loss per pair, nats.

    Raises:
        ValueError: beta is not above 0, nll_coef is negative, or shapes differ.

    Source: Xu et al. 2024, section 3.
    """
    check_above_0(beta=beta)
    check_not_negative(nll_coef=nll_coef)
    return -logsigmoid(beta * (chosen_logprobs - rejected_logprobs)) - nll_coef * chosen_logprobs


@checked
def simpo(
    chosen_mean_logprobs: Float[Tensor, "B"],
    rejected_mean_logprobs: Float[Tensor, "B"],
    *,
    beta: float,
    margin: float,
) -> Float[Tensor, "B"]:
    """Simple preference optimisation loss (SimPO) of each pair.

        m_c, m_r = mean over tokens of log pi, for the chosen and the rejected response
        loss = -log sigmoid(beta [m_c - m_r] - margin)

    There is no reference. The reward of a response is beta times its mean log-probability per
    token. So a response no longer gets a lower reward only because it has more tokens. Without a
    margin the loss is smallest at m_i = r_i / beta + constant.

    Args:
        chosen_mean_logprobs, rejected_mean_logprobs: m_c and m_r, nats per token.
        beta: reward units per nat, above 0, usually 2 to 10.
        margin: the paper's gamma, reward units, 0 or more. The paper's code takes the ratio of
            gamma to beta instead.

    Returns:
        One loss per pair, nats.

    Raises:
        ValueError: beta is not above 0, margin is negative, or shapes differ.

    Source: Meng et al. 2024, equation 6.
    """
    check_above_0(beta=beta)
    check_not_negative(margin=margin)
    return -logsigmoid(beta * (chosen_mean_logprobs - rejected_mean_logprobs) - margin)


@checked
def orpo(
    chosen_mean_logprobs: Float[Tensor, "B"],
    rejected_mean_logprobs: Float[Tensor, "B"],
    *,
    beta: float,
) -> Float[Tensor, "B"]:
    """Odds ratio preference optimisation loss (ORPO) of each pair.

        m_c, m_r = mean over tokens of log pi, for the chosen and the rejected response
        log odds = m - log(1 - exp(m))
        loss     = -m_c - beta log sigmoid(log odds_c - log odds_r)

    The first term imitates the chosen response. The second term compares the odds of the chosen and
    the rejected response. One stage of training replaces supervised fine-tuning (SFT) and DPO.

    TRL's imitation term differs from ours in two ways. It covers the tokens of the prompt as well
    as those of the chosen response. And it divides the sum over the batch by the number of all
    these tokens, so a long sequence weighs more. Here the term is the mean over the tokens of the
    chosen response, and each pair weighs the same. The odds use means over response tokens, here
    and in TRL.

    Args:
        chosen_mean_logprobs, rejected_mean_logprobs: m_c and m_r, nats per token, below 0. At 0 the
            odds are infinite, so values are kept just below it.
        beta: the paper's lambda, no unit, above 0.

    Returns:
        One loss per pair, nats.

    Raises:
        ValueError: beta is not above 0, or shapes differ.

    Source: Hong, Lee and Thorne 2024, section 4.
    """
    check_above_0(beta=beta)
    chosen, rejected = (x - _log1mexp(x) for x in (chosen_mean_logprobs, rejected_mean_logprobs))
    return -chosen_mean_logprobs - beta * logsigmoid(chosen - rejected)


@checked
def implicit_rewards(
    logprobs: Float[Tensor, "..."], ref_logprobs: Float[Tensor, "..."], *, beta: float
) -> Float[Tensor, "..."]:
    """Implicit reward of each response or of each token, as DPO defines it.

        reward = beta (log pi - log pi_ref)

    For responses, it is the reward for which the policy would be the Gibbs policy, up to a constant
    per prompt. The rewards of the tokens add up to that of their response.

    Args:
        logprobs, ref_logprobs: log pi and log pi_ref, of responses or of tokens, nats.
        beta: reward units per nat, above 0.

    Returns:
        Reward units, in the shape of the arguments; they carry no gradient.

    Raises:
        ValueError: beta is not above 0, or shapes differ.
    """
    check_above_0(beta=beta)
    check_same_shape(logprobs=logprobs, ref_logprobs=ref_logprobs)
    return beta * (logprobs - ref_logprobs).detach()


def _log_ratios(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor
) -> tuple[Tensor, Tensor]:
    """log pi/pi_ref of chosen and rejected responses; the reference carries no gradient."""
    return chosen - ref_chosen.detach(), rejected - ref_rejected.detach()


def _both_ways(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor
) -> tuple[tuple, tuple]:
    """The four log-probabilities as given, and with chosen and rejected exchanged."""
    return (chosen, rejected, ref_chosen, ref_rejected), (
        rejected,
        chosen,
        ref_rejected,
        ref_chosen,
    )


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x < 0, accurate both near 0 and far below 0.

    x is kept just below 0, where the logarithm is finite.
    """
    x = x.clamp(max=-(torch.finfo(x.dtype).tiny ** 0.5))
    near = x > -0.6931471805599453
    return torch.where(
        near,
        torch.log(-torch.expm1(torch.where(near, x, -1.0))),
        torch.log1p(-torch.exp(torch.where(near, -1.0, x))),
    )


def _flips(label_smoothing: float) -> None:
    """Raise a ValueError unless label_smoothing is from 0 to below 1/2."""
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(
            f"label_smoothing is {label_smoothing}; it must be the share of wrong labels, "
            "from 0 to below 0.5."
        )
