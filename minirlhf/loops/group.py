"""Policy gradients without a critic: GRPO and its family. A prompt's other samples say what was to be expected.

A_i = (r_i - mean r) / (std r + eps)   for the G responses of one prompt, the same at each of its tokens
(Shao et al. 2024; the other rows of the family: loops/family.py)
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from einops import rearrange, repeat

from minirlhf.core.baselines import running_mean
from minirlhf.core.kl import adapt_kl_coef
from minirlhf.core.masking import aggregate, loss_denominator, masked_mean
from minirlhf.core.policy_gradient import mean_ratio
from minirlhf.core.returns import overlong_penalty
from minirlhf.core.rollout import Rollout
from minirlhf.loops.checkpoint import Checkpoint
from minirlhf.loops.common import clipped_step, linear_decay, make_optimizer, shuffled_batches
from minirlhf.loops.config import KLConfig, OptimiserConfig
from minirlhf.loops.family import FAMILY, Algorithm
from minirlhf.models.adapters import reference_of
from minirlhf.models.forward import encode_prompts, policy_logprobs
from minirlhf.models.sampling import SamplingConfig, sample
from minirlhf.runtime import History, check, seed_all


@dataclass(frozen=True)
class GroupConfig:
    """Settings of GRPO and its family. A step is one rollout of `prompts_per_step` groups."""

    algorithm: Algorithm = FAMILY["grpo"]
    steps: int = 24
    prompts_per_step: int = 16
    group_size: int = 4  # G, 4 .. 16; 1 where the baseline does not compare
    minibatch_size: int = 32  # sequences an optimiser step
    epochs: int = 2
    missing_eos_penalty: float = 1.0  # reward units
    mask_truncated: bool = (
        False  # a response that was cut takes no part in the loss (DAPO's overlong filtering)
    )
    max_refills: int = 3  # rounds of new prompts in the place of groups that were dropped
    sampling: SamplingConfig = SamplingConfig()
    kl: KLConfig = KLConfig()
    optimiser: OptimiserConfig = OptimiserConfig(lr=1e-4)
    seed: int = 0

    def __post_init__(self):
        for field in ("steps", "prompts_per_step", "group_size", "minibatch_size", "epochs"):
            check(field, getattr(self, field), getattr(self, field) >= 1, "at least 1")
        alone = self.group_size == 1
        check(
            "group_size",
            self.group_size,
            not (alone and self.algorithm.compares),
            "at least 2: a group of one has no baseline",
        )
        batch = self.prompts_per_step * self.group_size
        check(
            "minibatch_size",
            self.minibatch_size,
            batch % self.minibatch_size == 0,
            f"a divisor of the {batch} samples a step",
        )
        once = self.epochs == 1 and self.minibatch_size == batch
        check(
            "epochs, minibatch_size",
            (self.epochs, self.minibatch_size),
            once or self.algorithm.ratio != "none",
            f"1 and {batch}, all of a step's samples: without a ratio they are good for one update",
        )
        check("max_refills", self.max_refills, self.max_refills >= 0, "0 or more")
        buffer, longest = self.algorithm.overlong_buffer, self.sampling.max_new_tokens
        check("overlong_buffer", buffer, buffer <= longest, f"at most max_new_tokens = {longest}")

    @classmethod
    def named(cls, name: str, **given) -> "GroupConfig":
        """The settings of a row of FAMILY: as many samples a step as the others, one update where the row has no ratio."""
        check("algorithm", name, name in FAMILY, f"one of {', '.join(FAMILY)}")
        alone = (
            {}
            if FAMILY[name].compares
            else {"group_size": 1, "prompts_per_step": cls.prompts_per_step * cls.group_size}
        )
        given = {"algorithm": FAMILY[name]} | alone | given
        batch = given.get("prompts_per_step", cls.prompts_per_step) * given.get(
            "group_size", cls.group_size
        )
        return cls(
            **({"epochs": 1, "minibatch_size": batch} if FAMILY[name].ratio == "none" else {})
            | given
        )

    @property
    def stage(self) -> str:
        """What its rows are called in a History."""
        return next((name for name, row in FAMILY.items() if row == self.algorithm), "group")


def train_group(
    model,
    tokenizer,
    prompts: list[str],
    score: Callable[[Rollout], torch.Tensor],
    config: GroupConfig = GroupConfig(),
    *,
    reference=None,
    monitors: dict[str, Callable] | None = None,
    history: History | None = None,
    on_step=lambda row: None,
    checkpoint: Checkpoint | None = None,
):
    """Train `model` in place.

    Args:
        score: Rollout -> (B,) reward units. monitors: the same, only logged.

    Returns:
        (model, history). Rows: score; of groups best_of_group (mean of each prompt's best: pass@G where scores are 0 or 1), reward_std
        (within groups), frac_reward_zero_std (before any is dropped); kl (nats a sequence), entropy (nats a token, estimated:
        -mean log pi of what was sampled), length, missing_eos, ratio, clip_fraction, policy_loss, grad_norm, kl_coef,
        samples (written in this step).
    """
    history = History() if history is None else history
    generator = seed_all(config.seed)
    row, G, sampling, eos_id = (
        config.algorithm,
        config.group_size,
        config.sampling.for_training(),
        tokenizer.eos_token_id,
    )
    reference = (
        reference_of(model) if reference is None else reference.eval()
    )  # under no_grad, never trained
    optimizer = make_optimizer(model, config.optimiser)
    state = {"kl_coef": config.kl.kl_coef, "running_mean": None}
    model.eval()

    def draw(index, **given) -> tuple[Rollout, torch.Tensor, torch.Tensor]:
        """Responses to prompts by number, and what each is worth: its score, less the penalties of length."""
        settings = {"config": sampling, "samples_per_prompt": G, "generator": generator} | given
        rollout = sample(
            model,
            *encode_prompts(tokenizer, [prompts[i] for i in index]),
            eos_id=eos_id,
            **settings,
        )
        with torch.no_grad():
            scores = score(rollout)
            worth = scores - config.missing_eos_penalty * ~rollout.finished(eos_id)
            if row.overlong_buffer:
                lengths = rollout.response_mask.sum(1)
                worth = worth + overlong_penalty(
                    lengths, max_tokens=sampling.max_new_tokens, buffer=row.overlong_buffer
                )
        return rollout, scores, worth

    run = (checkpoint or Checkpoint()).attach(
        config.stage,
        config,
        prompts,
        [model],
        [optimizer],
        history,
        generators=[generator],
        state=state,
    )
    for step, index in run.steps(
        shuffled_batches(len(prompts), config.prompts_per_step, config.steps, config.seed)
    ):
        kl_coef = state["kl_coef"]
        # 1. rollout and score: each prompt G times, groups side by side; dynamic sampling draws others for groups of equal scores
        rollout, scores, worth = draw(index)
        grouped = rearrange(scores, "(n g) -> n g", g=G)
        log, written = {"score": scores.mean()}, len(scores)
        if G > 1:
            log |= {
                "frac_reward_zero_std": (grouped == grouped[:, :1]).all(1).float().mean(),
                "reward_std": grouped.std(1).mean(),
                "best_of_group": grouped.max(1).values.mean(),
            }
        if row.drop_spread is not None:
            rollout, worth, more = _refilled(
                rollout, scores, worth, draw, config, len(prompts), generator
            )
            written += more
        mask, finished = rollout.response_mask, rollout.finished(eos_id)
        # 2. what is expected, and the reference
        with torch.no_grad():
            baseline = 0.0
            if row.baseline == "greedy":
                baseline = repeat(
                    draw(index, config=replace(sampling, greedy=True), samples_per_prompt=1)[2],
                    "n -> (n g)",
                    g=G,
                )
                written += len(index)
            elif (
                row.baseline == "running mean"
            ):  # of the batches before this one; the first has none but itself
                baseline = (
                    worth.mean().item() if state["running_mean"] is None else state["running_mean"]
                )
                state["running_mean"] = running_mean(baseline, worth)
            ref_logprobs = policy_logprobs(reference, rollout, temperature=sampling.temperature)
            # 3. advantages
            advantages = row.advantages(
                worth, rollout, ref_logprobs, kl_coef=kl_coef, group_size=G, baseline=baseline
            )
        # 4. update
        linear_decay(optimizer, config.optimiser.lr, step, config.steps)
        learned = mask & finished[:, None] if config.mask_truncated else mask
        update = dict.fromkeys(
            ("policy_loss", "ratio", "clip_fraction", "grad_norm"), 0.0
        )  # what they stay if all were cut
        parts = [
            rows
            for _ in range(config.epochs)
            for rows in torch.randperm(len(mask), generator=generator).split(config.minibatch_size)
            if learned[rows].any()
        ]
        constant = float(sampling.max_new_tokens) if row.aggregation == "constant" else None
        for rows in parts:
            total = loss_denominator(learned[rows], how=row.aggregation, constant=constant)
            for micro in config.optimiser.split(rows):
                part = rollout.select(micro)
                width = part.response_ids.shape[1]
                gains, refs, counts = (
                    advantages[micro, :width],
                    ref_logprobs[micro, :width],
                    learned[micro, :width],
                )
                if not counts.any():
                    continue
                logprobs = policy_logprobs(model, part, temperature=sampling.temperature)
                losses = row.losses(
                    logprobs, part.old_logprobs, gains, refs, counts, kl_coef=kl_coef
                )
                loss = aggregate(
                    losses, counts, how=row.aggregation, constant=constant, denominator=total
                )
                loss.backward()
                with torch.no_grad():
                    share = counts.sum() / learned[rows].sum()
                    clipped = row.clipped(logprobs, part.old_logprobs, gains, counts)
                    for name, value in {
                        "policy_loss": loss,
                        "ratio": share * mean_ratio(logprobs, part.old_logprobs, counts),
                        "clip_fraction": share * masked_mean(clipped.float(), counts),
                    }.items():
                        update[name] += value.item() / len(parts)
            update["grad_norm"] += clipped_step(
                model, optimizer, config.optimiser.max_grad_norm
            ).item() / len(parts)
        # 5. log
        kl = ((rollout.old_logprobs - ref_logprobs) * mask).sum(1)
        log |= update | {
            name: monitor(rollout).mean() for name, monitor in (monitors or {}).items()
        }
        on_step(
            history.log(
                config.stage,
                step,
                steps=config.steps,
                kl=kl.mean(),
                kl_coef=kl_coef,
                samples=written,
                entropy=-masked_mean(rollout.old_logprobs, mask),
                length=mask.sum(1).float().mean(),
                missing_eos=1 - finished.float().mean(),
                **log,
            )
        )
        if config.kl.target is not None:
            state["kl_coef"] = adapt_kl_coef(
                kl_coef,
                kl.mean().item(),
                target=config.kl.target,
                horizon=config.kl.horizon,
                batch_size=len(mask),
            )
    return model, history


def _refilled(
    rollout: Rollout,
    scores: torch.Tensor,
    worth: torch.Tensor,
    draw: Callable,
    config: GroupConfig,
    n_prompts: int,
    generator: torch.Generator,
) -> tuple[Rollout, torch.Tensor, int]:
    """Groups whose scores differ, new prompts drawn for the others: (rollout, worth, responses written for it).

    What is still missing after max_refills rounds is filled up with groups that do not differ: the batch keeps its size, and all
    denominators theirs.
    """
    G, wanted, rollouts, worths = config.group_size, config.prompts_per_step, [rollout], [worth]
    kept, alike, drawn = [], [], 0  # numbers of groups; groups drawn so far
    for attempt in range(config.max_refills + 1):
        grouped = rearrange(scores, "(n g) -> n g", g=G)
        differ = (
            grouped.max(1).values - grouped.min(1).values > config.algorithm.drop_spread
        ).tolist()
        kept += [drawn + i for i, different in enumerate(differ) if different]
        alike += [drawn + i for i, different in enumerate(differ) if not different]
        drawn += len(differ)
        if len(kept) >= wanted or attempt == config.max_refills:
            break
        rollout, scores, worth = draw(
            torch.randint(n_prompts, (wanted - len(kept),), generator=generator)
        )
        rollouts.append(rollout)
        worths.append(worth)
    rows = (torch.tensor((kept + alike)[:wanted])[:, None] * G + torch.arange(G)).flatten()
    return Rollout.concat(rollouts).select(rows), torch.cat(worths)[rows], (drawn - wanted) * G
