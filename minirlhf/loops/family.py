"""The family tree of policy-gradient methods without a critic: an algorithm is a row of choices.

    who pays the KL | what is subtracted | in which unit | one ratio for what | how it is clipped | what the sum is divided by

`train_group` takes any row; FAMILY holds the published ones. A row that nobody has published is one line:

    Algorithm(baseline="others' mean", scale="none", ratio="token", clip="cispo", clip_eps=1, clip_eps_high=4, aggregation="token_mean")
"""

from dataclasses import dataclass

import torch
from einops import rearrange

from minirlhf.core.baselines import (
    batch_relative,
    charge_tokens,
    group_relative,
    leave_one_out,
    over_tokens,
    remax,
)
from minirlhf.core.kl import k2, k3, kl_shaped_rewards
from minirlhf.core.masking import AGGREGATIONS, masked_whiten
from minirlhf.core.policy_gradient import (
    cispo,
    is_clipped,
    ppo_clip,
    reinforce,
    sequence_clip,
    sequence_log_ratio,
)
from minirlhf.core.rollout import Rollout
from minirlhf.runtime import check

CHOICES = {
    "baseline": ("none", "running mean", "greedy", "group mean", "others' mean"),
    "scale": ("none", "group std", "batch std", "whiten"),
    "kl": ("score", "tokens", "k2 loss", "k3 loss"),
    "ratio": ("none", "token", "sequence", "sequence mean"),
    "clip": ("none", "ppo", "cispo"),
    "aggregation": AGGREGATIONS,
}


@dataclass(frozen=True)
class Algorithm:
    """One row. The names of the choices are CHOICES; wrong ones, and pairs that make no sense, raise.

    baseline: what a score is compared with: nothing; the mean of earlier batches; the greedy response's score; the mean of its prompt's
        samples, itself among them or not.
    scale: the unit: reward units as they are; the std of the group; of the batch's scores; or all tokens of the batch whitened.
    kl: taken off the score before the baseline; charged token by token after it; or a loss, whose gradient leaves out what a token
        does to later ones (k2) or is that of the reversed KL (k3): see core/kl.py.
    ratio: none (samples are good for one step), one a token, one a response, or a response's geometric mean over its tokens.
    clip: none; PPO's, of the objective; CISPO's, of the weight. clip_eps below 1, clip_eps_high above (the same if None).
    aggregation: the denominator, see `masking.aggregate`; "constant" is max_new_tokens.
    min_std: reward units, a floor under the group's std. drop_spread: dynamic sampling: a group whose scores differ by no more than this
        (reward units; 0: equal ones; None: off) teaches nothing, others are drawn in its place. overlong_buffer: tokens before the
        limit over which a penalty of length sets in.
    """

    baseline: str = "group mean"
    scale: str = "group std"
    kl: str = "score"
    ratio: str = "token"
    clip: str = "ppo"
    clip_eps: float = 0.2
    clip_eps_high: float | None = None
    aggregation: str = "sequence_mean"
    min_std: float = 0.0
    drop_spread: float | None = None
    overlong_buffer: int = 0
    source: str = ""

    def __post_init__(self):
        for name, allowed in CHOICES.items():
            check(
                name,
                getattr(self, name),
                getattr(self, name) in allowed,
                f"one of {', '.join(allowed)}",
            )
        check("clip_eps", self.clip_eps, 0 < self.clip_eps <= 1, "above 0 and at most 1")
        check(
            "clip_eps_high",
            self.clip_eps_high,
            self.clip_eps_high is None or self.clip_eps_high > 0,
            "None or above 0",
        )
        check(
            "min_std",
            self.min_std,
            self.min_std == 0 or (self.min_std > 0 and self.scale == "group std"),
            "0, or more with group std",
        )
        check(
            "drop_spread",
            self.drop_spread,
            self.drop_spread is None or self.drop_spread >= 0,
            "None (off) or 0 or more reward units",
        )
        check(
            "overlong_buffer",
            self.overlong_buffer,
            self.overlong_buffer >= 0,
            "0 (off) or more tokens",
        )
        if self.scale in ("group std", "batch std"):
            check(
                "baseline",
                self.baseline,
                self.baseline == "group mean",
                f"group mean where the unit is the {self.scale}",
            )
        check(
            "drop_spread",
            self.drop_spread,
            self.drop_spread is None or self.baseline != "greedy",
            "None with the greedy baseline, which is of the prompts first drawn",
        )
        if self.ratio == "none":
            check("clip", self.clip, self.clip == "none", "none without a ratio")
        if self.ratio.startswith("sequence"):  # one number a response: its loss counts once
            check("clip", self.clip, self.clip == "ppo", "ppo with a ratio of the whole response")
            check(
                "kl",
                self.kl,
                self.kl != "tokens",
                "score or a loss with a ratio of the whole response",
            )
            check(
                "scale",
                self.scale,
                self.scale != "whiten",
                "none, or of the group or batch, with a ratio of the whole response",
            )
            check(
                "aggregation",
                self.aggregation,
                self.aggregation == "sequence_mean",
                "sequence_mean with a ratio of the whole response",
            )

    @property
    def compares(self) -> bool:
        """Does it need several samples of a prompt?"""
        return self.baseline in ("group mean", "others' mean") or self.drop_spread is not None

    def advantages(
        self,
        scores: torch.Tensor,
        rollout: Rollout,
        ref_logprobs: torch.Tensor,
        *,
        kl_coef: float,
        group_size: int,
        baseline: torch.Tensor | float = 0.0,
    ) -> torch.Tensor:
        """(B, R) advantages, 0 where masked: baseline, unit, charges.

        Args:
            scores: (B,) reward units, a prompt's side by side. baseline: the running mean, or the (B,) scores of the greedy responses.
        """
        old, mask = rollout.old_logprobs, rollout.response_mask
        if self.kl == "score":
            scores = kl_shaped_rewards(scores, old, ref_logprobs, mask, kl_coef=kl_coef).sum(1)
        grouped = rearrange(scores, "(n g) -> n g", g=group_size)
        if self.scale == "batch std":
            compared = batch_relative(grouped)
        elif self.baseline == "group mean":
            floor = {"min_std": self.min_std} if self.min_std else {}
            compared = group_relative(grouped, scale_by_std=self.scale == "group std", **floor)
        elif self.baseline == "others' mean":
            compared = leave_one_out(grouped)
        else:
            compared = (
                grouped if self.baseline == "none" else remax(scores, scores * 0 + baseline)[None]
            )
        tokens = over_tokens(compared, mask)
        if self.kl == "tokens":
            tokens = charge_tokens(tokens, old, ref_logprobs, mask, kl_coef=kl_coef)
        return masked_whiten(tokens, mask) if self.scale == "whiten" else tokens

    def losses(
        self,
        logprobs: torch.Tensor,
        old_logprobs: torch.Tensor,
        advantages: torch.Tensor,
        ref_logprobs: torch.Tensor,
        mask: torch.Tensor,
        *,
        kl_coef: float,
    ) -> torch.Tensor:
        """(B, R) losses, to be aggregated by this row's own denominator."""
        clip = {"clip_eps": self.clip_eps, "clip_eps_high": self.clip_eps_high}
        if self.ratio == "none":
            losses = reinforce(logprobs, advantages, mask)
        elif self.ratio == "token":
            if self.clip == "none":
                clip = {"clip_eps": 1.0, "clip_eps_high": float("inf")}
            losses = (cispo if self.clip == "cispo" else ppo_clip)(
                logprobs, old_logprobs, advantages, mask, **clip
            )
        else:  # every token of a response has the same advantage
            losses = sequence_clip(
                logprobs,
                old_logprobs,
                advantages[:, 0],
                mask,
                by_length=self.ratio == "sequence mean",
                **clip,
            )
        if self.kl.endswith("loss"):
            losses = losses + kl_coef * (k2 if self.kl == "k2 loss" else k3)(
                logprobs, ref_logprobs, mask
            )
        return losses

    def clipped(
        self,
        logprobs: torch.Tensor,
        old_logprobs: torch.Tensor,
        advantages: torch.Tensor,
        mask: torch.Tensor,
    ) -> torch.Tensor:
        """(B, R): where the clip took a gradient away: of a token, or of all of a response's; nowhere without PPO's clip."""
        if self.clip != "ppo":
            return torch.zeros_like(mask)
        bounds = {"clip_eps": self.clip_eps, "clip_eps_high": self.clip_eps_high}
        if self.ratio == "token":
            return is_clipped(logprobs, old_logprobs, advantages, mask, **bounds)
        log_ratio = sequence_log_ratio(
            logprobs, old_logprobs, mask, by_length=self.ratio == "sequence mean"
        )[:, None]
        return mask & is_clipped(
            log_ratio, torch.zeros_like(log_ratio), advantages[:, :1], mask[:, :1], **bounds
        )


FAMILY = {
    "reinforce": Algorithm(
        "running mean",
        "none",
        "score",
        "none",
        "none",
        aggregation="sequence_sum",
        source="Williams 1992",
    ),
    "remax": Algorithm(
        "greedy",
        "none",
        "score",
        "none",
        "none",
        aggregation="sequence_sum",
        source="Li et al. 2023",
    ),
    "rloo": Algorithm(
        "others' mean", "none", "score", "sequence", source="Ahmadian et al. 2024, as in TRL"
    ),
    "rloo-openrlhf": Algorithm(
        "others' mean", "none", "tokens", aggregation="token_mean", source="OpenRLHF's reading"
    ),
    "rloo-verl": Algorithm(
        "others' mean", "none", "score", aggregation="token_mean", source="verl's reading"
    ),
    "reinforce++": Algorithm(
        "none", "whiten", "tokens", aggregation="token_mean", source="Hu 2025"
    ),
    "reinforce++-baseline": Algorithm(
        "group mean", "whiten", "k2 loss", aggregation="token_mean", source="Hu 2025"
    ),
    "grpo": Algorithm(source="Shao et al. 2024; KL moved to the score"),
    "grpo-paper": Algorithm(kl="k3 loss", source="Shao et al. 2024"),
    "grpo-no-std": Algorithm(scale="none", source="Dr. GRPO's first half"),
    "grpo-batch-std": Algorithm(scale="batch std", source="TRL's scale_rewards=batch"),
    "dr-grpo": Algorithm(scale="none", aggregation="constant", source="Liu et al. 2025"),
    "dapo": Algorithm(
        clip_eps_high=0.28,
        aggregation="token_mean",
        drop_spread=0.0,
        overlong_buffer=6,
        source="Yu et al. 2025",
    ),
    "gspo": Algorithm(
        ratio="sequence mean", clip_eps=3e-4, clip_eps_high=4e-4, source="Zheng et al. 2025"
    ),
    "cispo": Algorithm(
        clip="cispo",
        clip_eps=1.0,
        clip_eps_high=4.0,
        aggregation="token_mean",
        source="MiniMax 2025",
    ),
}


def markdown(rows: dict[str, Algorithm] = FAMILY) -> str:
    """The table as the README prints it."""
    names = ("baseline", "scale", "kl", "ratio", "clip", "aggregation")

    def cells(row: Algorithm) -> list[str]:
        high = row.clip_eps if row.clip_eps_high is None else row.clip_eps_high
        clip = "none" if row.clip == "none" else f"{row.clip} {row.clip_eps:g}, {high:g}"
        extra = "; drops equal groups, overlong penalty" if row.drop_spread is not None else ""
        return [
            row.baseline,
            row.scale,
            row.kl,
            row.ratio,
            clip,
            row.aggregation + extra,
            row.source,
        ]

    lines = [
        ["name", *names, "source"],
        ["---"] * (len(names) + 2),
        *([f"`{name}`", *cells(row)] for name, row in rows.items()),
    ]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)
