"""The preference losses as a table: what each needs, and its settings.

`train_dpo` and `train_online` run any row of LOSSES. The formulas are in
core/preference.py.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from minirlhf.core.kl import exact_kl
from minirlhf.core.preference import (
    cdpo,
    cpo,
    dpo,
    dpop,
    hinge,
    implicit_rewards,
    ipo,
    kto,
    kto_baseline,
    nca,
    orpo,
    robust_dpo,
    simpo,
    tdpo,
)
from minirlhf.models.sampling import sample


@dataclass(frozen=True)
class DPOFormulas:
    """The functions that the preference losses use; replace one: DPOFormulas(dpo=my_dpo).

    A field has the name and the arguments of the package's function.
    """

    dpo: Callable = dpo
    cdpo: Callable = cdpo
    robust_dpo: Callable = robust_dpo
    ipo: Callable = ipo
    hinge: Callable = hinge
    dpop: Callable = dpop
    nca: Callable = nca
    tdpo: Callable = tdpo
    kto: Callable = kto
    kto_baseline: Callable = kto_baseline
    cpo: Callable = cpo
    simpo: Callable = simpo
    orpo: Callable = orpo
    exact_kl: Callable = exact_kl
    implicit_rewards: Callable = implicit_rewards
    sample: Callable = sample  # of `train_online`


@dataclass(frozen=True)
class Answers:
    """The inputs that a loss may use, for N responses.

    For B pairs N = 2B: first all chosen responses, then all rejected ones.

    Args:
        logprobs: (N,) log-probability of each response under the policy, nats (units of the natural
            logarithm).
        ref_logprobs: (N,) the same under the reference; 0 without one.
        lengths: (N,) tokens.
        chosen: (N,) True for a chosen or desirable response.
        kl: (N,) KL(pi_ref || pi) summed over the positions of each response, nats; 0 if not needed.
        kl_baseline: KTO's baseline, nats.
    """

    logprobs: torch.Tensor
    ref_logprobs: torch.Tensor
    lengths: torch.Tensor
    chosen: torch.Tensor
    kl: torch.Tensor
    kl_baseline: torch.Tensor

    @property
    def four(self) -> tuple[torch.Tensor, ...]:
        """(chosen, rejected, the same two under the reference), each (B,)."""
        return *self.logprobs.chunk(2), *self.ref_logprobs.chunk(2)

    @property
    def means(self) -> tuple[torch.Tensor, ...]:
        """(chosen, rejected): mean log-probabilities per token, each (B,)."""
        return (self.logprobs / self.lengths).chunk(2)

    @property
    def both_lengths(self) -> dict[str, torch.Tensor]:
        """The lengths as keyword arguments of `core.ipo`."""
        chosen, rejected = self.lengths.chunk(2)
        return {"chosen_lengths": chosen, "rejected_lengths": rejected}


@dataclass(frozen=True)
class Loss:
    """A row of LOSSES.

    Args:
        of: a function (formulas, answers, **settings) that computes the losses: one per pair, (B,),
            or one per response, (N,), if `single`.
        settings: the settings of this loss and their usual values.
        reference: whether it needs a reference policy.
        kl: whether it needs the KL at every position.
        single: whether it takes single responses with a label instead of pairs.
        mean: whether it uses log-probabilities averaged over a response's tokens instead of sums.
    """

    of: Callable[..., torch.Tensor]
    settings: dict[str, float]
    reference: bool = True
    kl: bool = False
    single: bool = False
    mean: bool = False


BETA, FLIPPED = {"beta": 0.1}, {"beta": 0.1, "label_smoothing": 0.2}
WEIGHTS = {"desirable_weight": 1.0, "undesirable_weight": 1.0}
LOSSES = {
    "dpo": Loss(lambda f, x, **s: f.dpo(*x.four, **s), BETA),
    "cdpo": Loss(lambda f, x, **s: f.cdpo(*x.four, **s), FLIPPED),
    "robust": Loss(lambda f, x, **s: f.robust_dpo(*x.four, **s), FLIPPED),
    "ipo": Loss(lambda f, x, **s: f.ipo(*x.four, **s), BETA),
    "ipo-mean": Loss(
        lambda f, x, **s: f.ipo(*x.four, **s, **x.both_lengths), {"beta": 1.0}, mean=True
    ),
    "hinge": Loss(lambda f, x, **s: f.hinge(*x.four, **s), BETA),
    "dpop": Loss(lambda f, x, **s: f.dpop(*x.four, **s), BETA | {"penalty": 5.0}),
    "nca": Loss(lambda f, x, **s: f.nca(*x.four, **s), BETA),
    "tdpo": Loss(
        lambda f, x, **s: f.tdpo(*x.four, *x.kl.chunk(2), **s), BETA | {"alpha": 0.5}, kl=True
    ),
    "kto": Loss(
        lambda f, x, **s: f.kto(x.logprobs, x.ref_logprobs, x.chosen, x.kl_baseline, **s),
        BETA | WEIGHTS,
        single=True,
    ),
    "cpo": Loss(
        lambda f, x, **s: f.cpo(*x.four[:2], **s), BETA | {"nll_coef": 1.0}, reference=False
    ),
    "simpo": Loss(
        lambda f, x, **s: f.simpo(*x.means, **s),
        {"beta": 2.0, "margin": 1.0},
        reference=False,
        mean=True,
    ),
    "orpo": Loss(lambda f, x, **s: f.orpo(*x.means, **s), BETA, reference=False, mean=True),
}
