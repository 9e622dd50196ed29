"""Settings that several loops share. A wrong value raises a ValueError when a config is created."""

from dataclasses import dataclass
from typing import Any, TypedDict

import torch

from minirlhf.core.kl import adapt_kl_coef
from minirlhf.runtime import check

SCHEDULES = ("linear", "constant")
MOST = 100_000  # responses or pairs in one step; a mistyped size would wait for ever


def check_batch(name: str, size: int, *, least: int = 1) -> None:
    """Check the number of responses or pairs in a step.

    Raises:
        ValueError: it is below `least` or above MOST.
    """
    check(name, size, least <= size <= MOST, f"at least {least} and at most {MOST:,} in a step")


class Clip(TypedDict):
    """The ends of a clip, as keyword arguments of `core.ppo_clip`."""

    clip_eps: float
    clip_eps_high: float | None


@dataclass(frozen=True)
class OptimiserConfig:
    """AdamW without weight decay, as is usual in RLHF.

    Args:
        lr: peak learning rate: about 1e-6 for large models, 5e-5 .. 1e-3 for small ones.
        max_grad_norm: the norm to which the gradient is clipped; None: not clipped.
        schedule: "linear", a short warm-up and then a linear decay to 0, or "constant".
        betas: of AdamW's moments.
        micro_batch: sequences (for preference losses: pairs) in one forward and backward pass. A
            smaller one needs less memory and gives the same gradient. 0: all of an optimiser step.
    """

    lr: float = 1e-4
    max_grad_norm: float | None = 1.0
    schedule: str = "linear"
    betas: tuple[float, float] = (0.9, 0.95)
    micro_batch: int = 0

    def __post_init__(self) -> None:
        allowed_lr = "above 0 and finite, from 1e-30 to 1e30"
        check("lr", self.lr, 1e-30 <= self.lr <= 1e30, allowed_lr)
        allowed = self.max_grad_norm is None or self.max_grad_norm > 0
        check(
            "max_grad_norm", self.max_grad_norm, allowed, "above 0, or None to leave it unclipped"
        )
        known = f"one of {', '.join(SCHEDULES)}"
        check("schedule", self.schedule, self.schedule in SCHEDULES, known)
        check("micro_batch", self.micro_batch, self.micro_batch >= 0, "0 (off) or more")

    @classmethod
    def plain(cls, **given: Any) -> "OptimiserConfig":
        """A constant learning rate and no gradient clipping."""
        return cls(**{"schedule": "constant", "max_grad_norm": None} | given)

    def split(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The rows of one optimiser step, split into micro-batches."""
        return rows.split(self.micro_batch or len(rows))


@dataclass(frozen=True)
class KLConfig:
    """The KL penalty: each token's reward is lowered by kl_coef times log(pi / pi_ref).

    Some rows of FAMILY add the penalty to the loss instead, with the weight kl_coef. A nat is the
    unit of natural logarithms.

    Args:
        kl_coef: reward units per nat, 0 .. 1 where a reward unit is the standard deviation of the
            reward model's score on SFT samples. 0: no penalty.
        target: nats per response. If it is given, kl_coef is adapted until the KL is about this
            large (Ziegler et al. 2019).
        horizon: sequences over which kl_coef adapts; a larger one adapts more slowly.
    """

    kl_coef: float = 0.5
    target: float | None = None
    horizon: float = 2000.0

    def __post_init__(self) -> None:
        check("kl_coef", self.kl_coef, 0 <= self.kl_coef <= 1e30, "0 or more, up to 1e30")
        good = self.target is None or 1e-30 <= self.target <= 1e30
        check("target", self.target, good, "None or above 0, from 1e-30 to 1e30")
        good = 1e-30 <= self.horizon <= 1e30
        check("horizon", self.horizon, good, "above 0, from 1e-30 to 1e30")

    def next_coef(self, kl_coef: float, kl: torch.Tensor) -> float:
        """The KL coefficient of the next step: adapted towards the target, if there is one.

        Args:
            kl_coef: the coefficient of this step, reward units per nat.
            kl: (B,) log pi - log pi_ref of each response of this step, nats.
        """
        if self.target is None:
            return kl_coef
        return adapt_kl_coef(
            kl_coef,
            kl.mean().item(),
            target=self.target,
            horizon=self.horizon,
            batch_size=len(kl),
        )
