"""Groups of settings that several loops share. A wrong value raises when the group is made."""

from dataclasses import dataclass

import torch

from minirlhf.core.kl import adapt_kl_coef
from minirlhf.runtime import check

SCHEDULES = ("linear", "constant")


@dataclass(frozen=True)
class OptimiserConfig:
    """AdamW without weight decay, as RLHF uses it."""

    lr: float = 1e-4  # peak learning rate: 1e-6 for large models, 5e-5 .. 1e-3 for small ones
    max_grad_norm: float | None = 1.0  # the gradient's norm is clipped to this; None: not clipped
    schedule: str = "linear"  # a short warm-up, then linearly to 0; or "constant"
    betas: tuple[float, float] = (0.9, 0.95)
    micro_batch: int = (
        0  # sequences in one forward and backward pass; 0: all of an optimiser step's
    )

    def __post_init__(self):
        check("lr", self.lr, 0 < self.lr < float("inf"), "above 0 and finite")
        allowed = self.max_grad_norm is None or self.max_grad_norm > 0
        check(
            "max_grad_norm", self.max_grad_norm, allowed, "above 0, or None to leave it unclipped"
        )
        known = f"one of {', '.join(SCHEDULES)}"
        check("schedule", self.schedule, self.schedule in SCHEDULES, known)
        check("micro_batch", self.micro_batch, self.micro_batch >= 0, "0 (off) or more")

    @classmethod
    def plain(cls, **given) -> "OptimiserConfig":
        """A constant learning rate and no gradient clipping."""
        return cls(**{"schedule": "constant", "max_grad_norm": None} | given)

    def split(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The rows of one optimiser step in micro-batches."""
        return rows.split(self.micro_batch or len(rows))


@dataclass(frozen=True)
class KLConfig:
    """The KL penalty: the reward of a token is lowered by kl_coef times log(pi / pi_ref)."""

    kl_coef: float = 0.5  # reward units (sd of SFT samples) per nat, 0 .. 1; 0: no penalty
    target: float | None = None  # nats per sequence; if given, kl_coef adapts (Ziegler et al. 2019)
    horizon: float = 2000.0  # sequences over which kl_coef adapts

    def __post_init__(self):
        check("kl_coef", self.kl_coef, 0 <= self.kl_coef < float("inf"), "0 or more, and finite")
        check("target", self.target, self.target is None or self.target > 0, "None or above 0")
        check("horizon", self.horizon, self.horizon > 0, "above 0")

    def next_coef(self, kl_coef: float, kl: torch.Tensor) -> float:
        """The KL coefficient of the next step: adapted towards the target, if there is one.

        Args:
            kl_coef: this step's, reward units per nat.
            kl: (B,) this step's log pi - log pi_ref of each response, nats.
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
