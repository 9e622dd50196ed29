"""The family of policy-gradient methods without a critic: an algorithm is a row of choices.

    baseline | scale | where the KL penalty enters | importance ratio | clip | denominator

`train_group` runs any row; FAMILY holds the published ones. Shapes: B responses of at most R
tokens. A row of your own is one line:

    Algorithm(baseline="others' mean", scale="none", clip="cispo", clip_eps=1, clip_eps_high=4)
"""

from collections.abc import Callable
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
    running_mean,
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
from minirlhf.core.returns import overlong_penalty
from minirlhf.core.rollout import Rollout
from minirlhf.loops.config import Clip
from minirlhf.models.sampling import sample
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
class GroupFormulas:
    """The functions that the family uses; replace one to try yours: GroupFormulas(remax=mine).

    A field has the name and the arguments of the package's function. The metrics ratio and
    clip_fraction always describe the package's clip.
    """

    sample: Callable = sample
    overlong_penalty: Callable = overlong_penalty
    running_mean: Callable = running_mean
    kl_shaped_rewards: Callable = kl_shaped_rewards
    group_relative: Callable = group_relative
    batch_relative: Callable = batch_relative
    leave_one_out: Callable = leave_one_out
    remax: Callable = remax
    over_tokens: Callable = over_tokens
    charge_tokens: Callable = charge_tokens
    masked_whiten: Callable = masked_whiten
    reinforce: Callable = reinforce
    ppo_clip: Callable = ppo_clip
    cispo: Callable = cispo
    sequence_clip: Callable = sequence_clip
    k2: Callable = k2
    k3: Callable = k3


@dataclass(frozen=True)
class Algorithm:
    """One row of choices. The possible values are in CHOICES.

    Args:
        baseline: what is subtracted from a score: nothing; the mean of earlier batches; the score
            of the greedy response; the mean of the prompt's responses, with the response itself
            ("group mean") or without it ("others' mean").
        scale: unit of the advantage: reward units ("none"); the standard deviation of the group, or
            of all scores of the batch; or all tokens of the batch whitened.
        kl: where the KL penalty enters: taken off the score before the baseline ("score"); taken
            off each token's advantage after the baseline ("tokens"); or added as a loss, k2 or k3.
            The gradient of these losses leaves out the effect of a token on later ones. That of k3
            belongs to the reversed KL, KL(pi_ref || pi). See core/kl.py.
        ratio: the importance ratio pi / pi_old: none (samples are good for one update only), one
            per token, one per response ("sequence"), or the geometric mean over the response's
            tokens ("sequence mean").
        clip: none; PPO's, which clips the objective; CISPO's, which clips the weight.
        clip_eps: lower end of the clip. clip_eps_high: upper end; the same if None.
        aggregation: the denominator of the loss, see `core.aggregate`; that of "constant" is
            max_new_tokens.
        min_std: reward units, a lower bound of the group's standard deviation.
        drop_spread: dynamic sampling. A group whose scores differ by no more than this (reward
            units: the unit of the scores) is replaced by the group of a new prompt. 0 drops groups
            of equal scores; None is off.
        overlong_buffer: the length penalty starts this many tokens before max_new_tokens; 0: no
            length penalty.
        source: where the row was published.

    Raises:
        ValueError: an unknown choice, or two choices that do not go together.
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

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            self._check(name, getattr(self, name) in allowed, f"one of {', '.join(allowed)}")
        self._check("clip_eps", 0 < self.clip_eps <= 1, "above 0 and at most 1")
        good = self.clip_eps_high is None or self.clip_eps_high > 0
        self._check("clip_eps_high", good, "None or above 0")
        good = self.min_std == 0 or (self.min_std > 0 and self.scale == "group std")
        self._check("min_std", good, "0, or more with group std")
        good = self.drop_spread is None or self.drop_spread >= 0
        self._check("drop_spread", good, "None (off) or 0 or more reward units")
        self._check("overlong_buffer", self.overlong_buffer >= 0, "0 (off) or more tokens")
        self._check_together()

    def _check_together(self) -> None:
        """Refuse choices that do not go together."""
        if self.scale in ("group std", "batch std"):
            allowed = f"group mean where the unit is the {self.scale}"
            self._check("baseline", self.baseline == "group mean", allowed)
        if self.baseline == "greedy":
            allowed = "None with the greedy baseline: new groups have no greedy response"
            self._check("drop_spread", self.drop_spread is None, allowed)
        if self.ratio == "none":
            self._check("clip", self.clip == "none", "none without a ratio")
        if self.ratio.startswith("sequence"):  # one ratio per response: its loss must count once
            whole = "with a ratio of the whole response"
            self._check("clip", self.clip == "ppo", f"ppo {whole}")
            self._check("kl", self.kl != "tokens", f"score or a loss {whole}")
            good = self.scale != "whiten"
            self._check("scale", good, f"none, group std or batch std {whole}")
            good = self.aggregation == "sequence_mean"
            self._check("aggregation", good, f"sequence_mean {whole}")

    def _check(self, name: str, ok: bool, allowed: str) -> None:
        check(name, getattr(self, name), ok, allowed)

    @property
    def compares(self) -> bool:
        """Whether the row needs several responses to a prompt."""
        return self.baseline in ("group mean", "others' mean") or self.drop_spread is not None

    @property
    def bounds(self) -> Clip:
        """The ends of the clip, as keyword arguments of `core.ppo_clip`."""
        return {"clip_eps": self.clip_eps, "clip_eps_high": self.clip_eps_high}

    def advantages(
        self,
        scores: torch.Tensor,
        rollout: Rollout,
        ref_logprobs: torch.Tensor,
        *,
        kl_coef: float,
        group_size: int,
        baseline: torch.Tensor | float = 0.0,
        formulas: GroupFormulas = GroupFormulas(),
    ) -> torch.Tensor:
        """Advantages of the row: scores less their baseline, in the unit that `scale` names.

        They include the KL penalty, unless the row has it as a loss.

        Args:
            scores: (B,) reward units, the responses to one prompt side by side.
            rollout: the responses.
            ref_logprobs: (B, R) log pi_ref of each token, nats (units of the natural logarithm).
            kl_coef: KL coefficient, reward units per nat.
            group_size: responses to a prompt.
            baseline: the running mean, or the (B,) scores of the greedy responses.
            formulas: the functions to use.

        Returns:
            (B, R) advantages, 0 where masked.
        """
        old, mask = rollout.old_logprobs, rollout.action_mask
        if self.kl == "score":
            rewards = formulas.kl_shaped_rewards(scores, old, ref_logprobs, mask, kl_coef=kl_coef)
            scores = rewards.sum(1)
        grouped = rearrange(scores, "(n g) -> n g", g=group_size)
        if self.scale == "batch std":
            compared = formulas.batch_relative(grouped)
        elif self.baseline == "group mean":
            floor = {"min_std": self.min_std} if self.min_std else {}
            scale = self.scale == "group std"
            compared = formulas.group_relative(grouped, scale_by_std=scale, **floor)
        elif self.baseline == "others' mean":
            compared = formulas.leave_one_out(grouped)
        elif self.baseline == "none":
            compared = grouped
        else:  # a number for all, or one for each response
            compared = formulas.remax(scores, scores * 0 + baseline)[None]
        tokens = formulas.over_tokens(compared, mask)
        if self.kl == "tokens":
            tokens = formulas.charge_tokens(tokens, old, ref_logprobs, mask, kl_coef=kl_coef)
        return formulas.masked_whiten(tokens, mask) if self.scale == "whiten" else tokens

    def losses(
        self,
        logprobs: torch.Tensor,
        old_logprobs: torch.Tensor,
        advantages: torch.Tensor,
        ref_logprobs: torch.Tensor,
        mask: torch.Tensor,
        *,
        kl_coef: float,
        formulas: GroupFormulas = GroupFormulas(),
    ) -> torch.Tensor:
        """(B, R) losses, to be reduced with the row's own `aggregation`.

        All arguments are (B, R); log-probabilities in nats, advantages as `advantages` gives them.
        """
        if self.ratio == "none":
            losses = formulas.reinforce(logprobs, advantages, mask)
        elif self.ratio == "token":
            bounds = self.bounds
            if self.clip == "none":
                bounds = {"clip_eps": 1.0, "clip_eps_high": float("inf")}
            clipped_loss = formulas.cispo if self.clip == "cispo" else formulas.ppo_clip
            losses = clipped_loss(logprobs, old_logprobs, advantages, mask, **bounds)
        else:
            losses = formulas.sequence_clip(
                logprobs,
                old_logprobs,
                _of_response(advantages, mask),
                mask,
                by_length=self.ratio == "sequence mean",
                **self.bounds,
            )
        if self.kl.endswith("loss"):
            penalty = formulas.k2 if self.kl == "k2 loss" else formulas.k3
            losses = losses + kl_coef * penalty(logprobs, ref_logprobs, mask)
        return losses

    def clipped(
        self,
        logprobs: torch.Tensor,
        old_logprobs: torch.Tensor,
        advantages: torch.Tensor,
        mask: torch.Tensor,
    ) -> torch.Tensor:
        """(B, R) True where PPO's clip removes the gradient, of a token or of a whole response.

        For rows without PPO's clip it is False everywhere.
        """
        if self.clip != "ppo":
            return torch.zeros_like(mask)
        if self.ratio == "token":
            return is_clipped(logprobs, old_logprobs, advantages, mask, **self.bounds)
        by_length = self.ratio == "sequence mean"
        log_ratio = sequence_log_ratio(logprobs, old_logprobs, mask, by_length=by_length)[:, None]
        return mask & is_clipped(
            log_ratio,
            torch.zeros_like(log_ratio),
            _of_response(advantages, mask)[:, None],
            mask.any(1, keepdim=True),
            **self.bounds,
        )


def _of_response(advantages: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(B,) the advantage of each response, read at its first token: it is equal at all tokens."""
    return advantages.gather(1, mask.byte().argmax(1, keepdim=True))[:, 0]


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
        "others' mean", "none", "tokens", aggregation="token_mean", source="as in OpenRLHF"
    ),
    "rloo-verl": Algorithm(
        "others' mean", "none", "score", aggregation="token_mean", source="as in verl"
    ),
    "reinforce++": Algorithm(
        "none", "whiten", "tokens", aggregation="token_mean", source="Hu 2025"
    ),
    "reinforce++-baseline": Algorithm(
        "group mean", "whiten", "k2 loss", aggregation="token_mean", source="Hu 2025"
    ),
    "grpo": Algorithm(source="Shao et al. 2024; KL moved to the score"),
    "grpo-paper": Algorithm(kl="k3 loss", source="Shao et al. 2024"),
    "grpo-no-std": Algorithm(scale="none", source="Dr. GRPO, only its scale"),
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
    """The table of algorithms as docs/algorithms.md shows it, in Markdown."""
    names = ("baseline", "scale", "kl", "ratio", "clip", "aggregation")

    def cells(row: Algorithm) -> list[str]:
        high = row.clip_eps if row.clip_eps_high is None else row.clip_eps_high
        clip = "none" if row.clip == "none" else f"{row.clip} {row.clip_eps:g}, {high:g}"
        extras = [
            *(["drops equal groups"] if row.drop_spread is not None else []),
            *(["overlong penalty"] if row.overlong_buffer else []),
        ]
        extra = "; " + ", ".join(extras) if extras else ""
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
