"""Over-optimisation: the gold score against the distance from the first policy.

A policy is optimised for a proxy, a reward model that was learned from labels. Gold is what we
really want. As the policy moves away from its start, the proxy's score keeps growing, and the gold
score may reach a peak and fall. Gao, Schulman and Hilton (2023) found one curve for each way to
optimise, with two coefficients:

    d = sqrt(KL(policy || start))        KL in nats per response
    best-of-n                gain = d (alpha - beta d)
    reinforcement learning   gain = d (alpha - beta log d)

The gain is the gold score less that of the first policy, so it is 0 at d = 0. A larger
alpha lifts the curve, and a larger beta bends it down earlier.

`ensemble_reward` makes one proxy of several reward models.

Shapes: N points of a curve; M reward models, B responses.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from minirlhf.core.checks import check_finite, check_not_negative, checked

FORMS = ("best-of-n", "rl")
ENSEMBLES = ("mean", "min", "variance")


@checked
def overoptimisation_gain(
    d: Float[Tensor, "N"], alpha: float, beta: float, *, form: str
) -> Float[Tensor, "N"]:
    """Gain in gold score at distance d.

        "best-of-n"    d (alpha - beta d)
        "rl"           d (alpha - beta log d)

    Args:
        d: square root of the KL in nats, 0 or more.
        alpha, beta: the coefficients. alpha is in gold units per unit of d, the square root of a
            nat; beta of "best-of-n" is in gold units per nat.
        form: one of FORMS.

    Returns:
        Gold units; 0 at d = 0.

    Raises:
        ValueError: a d below 0, or an unknown form.

    Source: Gao, Schulman and Hilton 2023, section 1.
    """
    first, second = _terms(d, form)
    return alpha * first - beta * second


@checked
def overoptimisation_peak(alpha: float, beta: float, *, form: str) -> float:
    """The distance d at which the gain is largest.

        "best-of-n"    alpha / (2 beta)
        "rl"           exp(alpha / beta - 1)

    Infinity where the curve rises without end: beta is below 0, or it is 0 and alpha above 0. 0
    where it falls from the start.

    Raises:
        ValueError: an unknown form, or a coefficient that is not finite.
    """
    _check_form(form)
    check_finite(alpha=alpha, beta=beta)
    if beta <= 0:
        return 0.0 if beta == 0 and alpha <= 0 else math.inf
    if form == "best-of-n":
        return max(0.0, alpha / (2 * beta))
    exponent = alpha / beta - 1
    return math.exp(exponent) if exponent < 700 else math.inf


@checked
def fit_overoptimisation(
    d: Float[Tensor, "N"], gain: Float[Tensor, "N"], *, form: str
) -> tuple[float, float]:
    """alpha and beta of the curve through measured points, by least squares.

    Both forms are linear in alpha and beta, so the fit needs no search.

    The curve of "rl" is infinitely steep at d = 0, which no policy is. Leave out points near 0, for
    example those with d below 1.

    Args:
        d: distance of each point, above 0; at least two different ones.
        gain: gold score less that of the first policy.
        form: one of FORMS.

    Returns:
        (alpha, beta).

    Raises:
        ValueError: fewer than two different distances, one that is not above 0, a number that is
            not finite, or an unknown form.

    Source: Gao, Schulman and Hilton 2023; least squares is our choice.
    """
    if not (d.isfinite().all() and gain.isfinite().all() and (d > 0).all()):
        raise ValueError("d must be finite and above 0, and gain must be finite.")
    if len(d.unique()) < 2:
        raise ValueError("The points have one distance d; a fit needs at least two different ones.")
    terms = torch.stack(_terms(d.double(), form), 1)
    alpha, minus_beta = torch.linalg.lstsq(terms, gain.double()[:, None]).solution[:, 0].tolist()
    return alpha, -minus_beta


@checked
def ensemble_reward(
    scores: Float[Tensor, "M B"], *, how: str, penalty: float = 1.0
) -> Float[Tensor, "B"]:
    """One score for each response from the scores of M reward models.

        "mean"        mean over the models
        "min"         the lowest of them: the worst case
        "variance"    mean - penalty * variance over the models

    Where the models disagree, at least one of them is wrong. The last two score such a response
    lower, so a policy gains less by a fault that not all of the models have.

    Args:
        scores: of each model, all in the same units: normalise each on the same responses.
        how: one of ENSEMBLES.
        penalty: weight of the variance, 0 or more. The variance divides by M, not M - 1.

    Returns:
        One score per response.

    Raises:
        ValueError: an unknown `how`, or a penalty below 0.

    Source: Coste, Anwar, Kirk and Krueger 2024.
    """
    check_not_negative(penalty=penalty)
    if how not in ENSEMBLES:
        raise ValueError(f"how is {how!r}; it must be one of {ENSEMBLES}.")
    if how == "min":
        return scores.amin(0)
    mean = scores.mean(0)
    return mean if how == "mean" else mean - penalty * scores.var(0, correction=0)


def _terms(d: Tensor, form: str) -> tuple[Tensor, Tensor]:
    """What alpha and beta are multiplied with."""
    _check_form(form)
    if not (d >= 0).all():
        raise ValueError("d has an entry below 0; it is the square root of a KL.")
    return d, d.square() if form == "best-of-n" else torch.xlogy(d, d)


def _check_form(form: str) -> None:
    if form not in FORMS:
        raise ValueError(f"form is {form!r}; it must be one of {FORMS}.")
