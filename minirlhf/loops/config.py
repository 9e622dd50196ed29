"""The small groups of settings that every loop shares. A wrong value raises when the group is made."""

from dataclasses import dataclass

import torch

from minirlhf.runtime import check


@dataclass(frozen=True)
class OptimiserConfig:
    """AdamW without weight decay, as RLHF uses it."""

    lr: float = 1e-4  # 1e-6 for large models, 5e-5 .. 1e-3 for small ones
    max_grad_norm: float = 1.0  # clip of the gradient's norm
    betas: tuple[float, float] = (0.9, 0.95)
    micro_batch: int = 0  # sequences a forward and backward pass, 0 = all of a step's at once; less memory, the same gradient

    def __post_init__(self):
        check("lr", self.lr, 0 < self.lr < float("inf"), "above 0 and finite")
        check("max_grad_norm", self.max_grad_norm, self.max_grad_norm > 0, "above 0")
        check("micro_batch", self.micro_batch, self.micro_batch >= 0, "0 (off) or more")

    def split(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The rows of one optimiser step in micro-batches."""
        return rows.split(self.micro_batch or len(rows))


@dataclass(frozen=True)
class KLConfig:
    """The leash to the reference: reward minus kl_coef times log(pi / ref) at each token."""

    kl_coef: float = 0.5  # reward units (sd of SFT samples) per nat, 0 .. 1; 0 is no leash; chosen for PPO on the validation films
    target: float | None = None  # nats a sequence; when given, kl_coef adapts (Ziegler et al. 2019)
    horizon: float = 2000.0  # sequences over which it adapts

    def __post_init__(self):
        check("kl_coef", self.kl_coef, 0 <= self.kl_coef < float("inf"), "0 or more, and finite")
        check("target", self.target, self.target is None or self.target > 0, "None or above 0")
        check("horizon", self.horizon, self.horizon > 0, "above 0")
