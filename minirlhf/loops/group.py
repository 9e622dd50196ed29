"""Policy gradients without a critic: GRPO and its family.

A critic is a network that predicts the return. Here sampled responses give the baseline instead,
most often those to the same prompt. Group relative policy optimisation (GRPO) compares the score
r_i of each of the G responses to a prompt with their mean, and clips the loss as PPO does:

    A_i = (r_i - mean r) / (std r + eps)
    ratio = pi / pi_old      loss = -min(ratio A, clip(ratio, 1 - clip_eps, 1 + clip_eps) A)

A is the advantage and ratio the importance ratio of a token. Scores are in reward units, and
log-probabilities in nats, the unit of natural logarithms. Shapes: B responses of at most R tokens.

Source: Shao et al. 2024. By default the KL penalty is taken off the score, as in PPO; the row
`grpo-paper` has it as a loss. The other rows of the family: loops/family.py.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from einops import rearrange, repeat
from transformers import PreTrainedTokenizerBase

from minirlhf.core.masking import aggregate, loss_denominator, masked_mean
from minirlhf.core.policy_gradient import mean_ratio
from minirlhf.core.rollout import Rollout, Score
from minirlhf.loops.checkpoint import Checkpoint
from minirlhf.loops.common import (
    MeanMetrics,
    checked_scores,
    clipped_step,
    make_optimizer,
    micro_batches,
    sampling_metrics,
    set_learning_rate,
    shuffled_batches,
    with_rows,
)
from minirlhf.loops.config import KLConfig, OptimiserConfig, check_batch
from minirlhf.loops.family import FAMILY, Algorithm, GroupFormulas
from minirlhf.loops.rows import also_reading, check_tokens
from minirlhf.models.adapters import LanguageModel, SomePolicy, reference_of
from minirlhf.models.fit import end_ids
from minirlhf.models.forward import encode_prompts, policy_logprobs
from minirlhf.models.sampling import SamplingConfig
from minirlhf.runtime import History, OnStep, check, seed_all
from minirlhf.tasks.prompts import prompt_texts

# metrics of the update; they are 0 where every response was masked and nothing was updated
UPDATE_METRICS = ("policy_loss", "ratio", "clip_fraction", "grad_norm")


@dataclass(frozen=True)
class GroupConfig:
    """Settings of GRPO and its family. A step samples `prompts_per_step` groups of responses.

    Args:
        algorithm: the row of choices, see `Algorithm`; FAMILY has the published ones.
        steps: batches that are sampled.
        prompts_per_step: groups per step.
        group_size: G, responses to a prompt, 4 .. 16; 1 for rows without groups.
        minibatch_size: responses per optimiser step; a divisor of all responses of a step.
        epochs: passes over a batch; 1 for rows without an importance ratio.
        missing_eos_penalty: reward units, 0 or more, taken off the score of a truncated response.
        mask_truncated: truncated responses have no loss (DAPO's overlong filtering). They still
            count in the mean of their group.
        max_refills: rounds in which new prompts replace dropped groups; see drop_spread.
        sampling: how responses are drawn. kl: the KL penalty. optimiser: the policy's.
        seed: of everything random.

    Raises:
        ValueError: a value outside its range, or one that does not fit the algorithm.
    """

    algorithm: Algorithm = FAMILY["grpo"]
    steps: int = 24
    prompts_per_step: int = 16
    group_size: int = 4
    minibatch_size: int = 32
    epochs: int = 2
    missing_eos_penalty: float = 1.0
    mask_truncated: bool = False
    max_refills: int = 3
    sampling: SamplingConfig = SamplingConfig()
    kl: KLConfig = KLConfig()
    optimiser: OptimiserConfig = OptimiserConfig(lr=1e-4)
    seed: int = 0

    def __post_init__(self) -> None:
        for field in ("steps", "prompts_per_step", "group_size", "minibatch_size", "epochs"):
            check(field, getattr(self, field), getattr(self, field) >= 1, "at least 1")
        enough = self.group_size > 1 or not self.algorithm.compares
        allowed = "at least 2: a group of one has no baseline"
        check("group_size", self.group_size, enough, allowed)
        batch = self.prompts_per_step * self.group_size
        check_batch("prompts_per_step * group_size", batch)
        whole = batch % self.minibatch_size == 0
        allowed = f"a divisor of the {batch} samples per step"
        check("minibatch_size", self.minibatch_size, whole, allowed)
        once = self.epochs == 1 and self.minibatch_size == batch
        check(
            "epochs, minibatch_size",
            (self.epochs, self.minibatch_size),
            once or self.algorithm.ratio != "none",
            f"1 and {batch}: without an importance ratio, samples are good for one update only",
        )
        check("max_refills", self.max_refills, self.max_refills >= 0, "0 or more")
        buffer, longest = self.algorithm.overlong_buffer, self.sampling.max_new_tokens
        check("overlong_buffer", buffer, buffer <= longest, f"at most max_new_tokens = {longest}")
        good = 0 <= self.missing_eos_penalty < float("inf")
        check("missing_eos_penalty", self.missing_eos_penalty, good, "0 or more, and finite")

    @classmethod
    def named(cls, name: str, **given: Any) -> "GroupConfig":
        """Settings for a row of FAMILY by its name, with the same number of samples per step.

        A row without groups takes one response from each of more prompts. A row without an
        importance ratio makes one update per step.
        """
        check("algorithm", name, name in FAMILY, f"one of {', '.join(FAMILY)}")
        row = FAMILY[name]
        settings: dict[str, Any] = {"algorithm": row}
        if not row.compares:
            settings["group_size"] = 1
            settings["prompts_per_step"] = cls.prompts_per_step * cls.group_size
        settings |= given
        if row.ratio == "none":
            prompts = settings.get("prompts_per_step", cls.prompts_per_step)
            batch = prompts * settings.get("group_size", cls.group_size)
            settings = {"epochs": 1, "minibatch_size": batch} | settings
        return cls(**settings)

    @classmethod
    def plain(cls, name: str = "grpo", **given: Any) -> "GroupConfig":
        """A row of FAMILY with every extra switched off.

        No penalty for a missing EOS, a constant learning rate, no gradient clipping. The row's own
        choices stay, such as drop_spread and overlong_buffer of "dapo". The KL penalty stays too;
        kl=KLConfig(kl_coef=0) turns it off.
        """
        off = {
            "missing_eos_penalty": 0.0,
            "optimiser": OptimiserConfig.plain(lr=cls.optimiser.lr),
        }
        return cls.named(name, **off | given)

    @property
    def stage(self) -> str:
        """Name of the stage in a History: that of the row in FAMILY, or "group" for other rows.

        A row with another overlong_buffer keeps its name: the buffer depends on max_new_tokens.
        """
        same = {name: replace(row, overlong_buffer=0) for name, row in FAMILY.items()}
        own = replace(self.algorithm, overlong_buffer=0)
        return next((name for name, row in same.items() if row == own), "group")

    @property
    def constant(self) -> float | None:
        """The denominator per response if the aggregation is "constant", else None."""
        constant = self.algorithm.aggregation == "constant"
        return float(self.sampling.max_new_tokens) if constant else None


def train_group(
    model: SomePolicy,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Iterable[Any],
    score: Score,
    config: GroupConfig = GroupConfig(),
    *,
    formulas: GroupFormulas = GroupFormulas(),
    reference: LanguageModel | None = None,
    monitors: dict[str, Score] | None = None,
    history: History | None = None,
    on_step: OnStep = lambda row: None,
    checkpoint: Checkpoint | None = None,
) -> tuple[SomePolicy, History]:
    """Train `model` in place by GRPO or another row of its family.

    Random numbers: the order of the prompts is that of `shuffled_batches(..., config.seed)`.
    Another generator, torch.Generator().manual_seed(config.seed), draws in each step the
    responses (one uniform per response and token position, see `sample`); with drop_spread, the
    new prompts of each refill by one torch.randint and then their responses; then one
    torch.randperm(B) per epoch. Nothing else is random: greedy responses draw nothing.

    Args:
        prompts: texts or conversations, in any form that `tasks.prompt_texts` reads.
        score: batch -> (B,) reward units, to be maximised.
        formulas: the functions that the loop uses.
        reference: the frozen policy of the KL penalty; by default a copy of the model.
        monitors: further scores by name, logged only.
        on_step: called with each row of the history.
        checkpoint: where the run is saved and resumed from.

    Returns:
        (model, history). Rows of the history:
        score: mean over the responses sampled first, before any group is replaced, reward units.
        score_range: their highest less their lowest score. The same responses, if in groups, give
        reward_std (mean standard deviation within groups), frac_reward_zero_std (share of groups
        with equal scores) and best_of_group (mean of each group's best score: pass@G where scores
        are 0 or 1).
        kl: nats per response. kl_coef. entropy: nats per token, estimated as -mean log pi of the
        sampled tokens. length: tokens. missing_eos: share of truncated responses (cut off before
        EOS). If drop_spread replaces groups, kl, entropy, length, missing_eos and the monitors
        describe the batch after that.
        ratio, clip_fraction, policy_loss, grad_norm: means over the optimiser steps.
        samples: all responses sampled in this step.
    """
    history = History() if history is None else history
    texts = prompt_texts(prompts, tokenizer)
    generator = seed_all(config.seed)
    algorithm, eos_id = config.algorithm, end_ids(model, tokenizer)
    sampling = config.sampling.for_training()  # refuses top-k and top-p
    others = also_reading(score, reference=reference)
    check_tokens(texts, tokenizer, model, max_new_tokens=sampling.max_new_tokens, others=others)
    reference = reference_of(model) if reference is None else reference.eval()
    optimizer = make_optimizer(model, config.optimiser)
    state: dict[str, Any] = {"kl_coef": config.kl.kl_coef, "running_mean": None}
    model.eval()  # dropout off: the importance ratio must be 1 at the first minibatch

    def draw(index: torch.Tensor, **given: Any) -> tuple[Rollout, torch.Tensor, torch.Tensor]:
        """Responses to prompts [index], their scores, and the scores less penalties."""
        settings = {"config": sampling, "samples_per_prompt": config.group_size} | given
        ids, prompt_mask = encode_prompts(tokenizer, [texts[i] for i in index])
        batch = formulas.sample(
            model, ids, prompt_mask, eos_id=eos_id, generator=generator, **settings
        )
        batch = with_rows(batch, index, step, config.steps)
        scores = checked_scores(score, batch)
        return batch, scores, _penalised(scores, batch, eos_id, config, formulas)

    run = (checkpoint or Checkpoint()).attach(
        config.stage,
        config,
        texts,
        [model],
        [optimizer],
        history,
        generators=[generator],
        state=state,
        formulas=formulas,
        score=score,
        reference=reference,
    )
    batches = shuffled_batches(len(texts), config.prompts_per_step, config.steps, config.seed)
    for step, index in run.steps(batches):
        kl_coef = state["kl_coef"]
        # 1. Sample a group of responses to each prompt, and score them.
        batch, scores, penalised = draw(index)
        samples, group_metrics = len(scores), _group_metrics(scores, config.group_size)
        if algorithm.drop_spread is not None:
            batch, penalised, more = _refilled(
                batch, scores, penalised, draw, config, len(texts), generator
            )
            samples += more
        # 2. The baseline, if it is not the group's own, and the reference's log-probabilities.
        baseline, more = _baseline(algorithm, penalised, index, draw, state, config, formulas)
        samples += more
        with torch.no_grad():
            ref_logprobs = policy_logprobs(reference, batch, temperature=sampling.temperature)
        # 3. Advantages.
        advantages = algorithm.advantages(
            penalised,
            batch,
            ref_logprobs,
            kl_coef=kl_coef,
            group_size=config.group_size,
            baseline=baseline,
            formulas=formulas,
        )
        # 4. Update: some epochs in minibatches, each an optimiser step.
        batch = batch.with_columns(advantages=advantages, ref_logprobs=ref_logprobs)
        learning = _without_truncated(batch, eos_id) if config.mask_truncated else batch
        set_learning_rate(optimizer, config.optimiser, step, config.steps)
        minibatches = _minibatches(learning, config, generator)
        metrics = MeanMetrics(len(minibatches), UPDATE_METRICS)
        for rows in minibatches:
            minibatch = learning.select(rows)
            denominator = loss_denominator(
                minibatch.action_mask, how=algorithm.aggregation, constant=config.constant
            )
            for part in micro_batches(minibatch, config.optimiser):
                logprobs = policy_logprobs(model, part, temperature=sampling.temperature)
                losses = algorithm.losses(
                    logprobs,
                    part.old_logprobs,
                    part.advantages,
                    part.ref_logprobs,
                    part.action_mask,
                    kl_coef=kl_coef,
                    formulas=formulas,
                )
                loss = aggregate(
                    losses,
                    part.action_mask,
                    how=algorithm.aggregation,
                    constant=config.constant,
                    denominator=denominator,
                )
                loss.backward()
                metrics.add(
                    policy_loss=loss, **_ratio_metrics(logprobs, part, minibatch, algorithm)
                )
            grad_norm = clipped_step(model, optimizer, config.optimiser.max_grad_norm)
            metrics.add(grad_norm=grad_norm)
        # 5. Log what was sampled before this update, and how the update went.
        sampled = sampling_metrics(batch, ref_logprobs, eos_id)
        kl = sampled.pop("kl")
        logged = history.log(
            config.stage,
            step,
            steps=config.steps,
            score=scores.mean(),
            score_range=scores.max() - scores.min(),
            kl=kl.mean(),
            kl_coef=kl_coef,
            samples=samples,
            **group_metrics,
            **sampled,
            **metrics,
            **{name: monitor(batch).mean() for name, monitor in (monitors or {}).items()},
        )
        on_step(logged)
        state["kl_coef"] = config.kl.next_coef(kl_coef, kl)
    return model, history


def _penalised(
    scores: torch.Tensor,
    batch: Rollout,
    eos_id: tuple[int, ...],
    config: GroupConfig,
    formulas: GroupFormulas,
) -> torch.Tensor:
    """(B,) scores less the penalties for a missing EOS and for length."""
    penalised = scores - config.missing_eos_penalty * ~batch.finished(eos_id)
    buffer = config.algorithm.overlong_buffer
    if not buffer:
        return penalised
    lengths, limit = batch.action_mask.sum(1), config.sampling.max_new_tokens
    return penalised + formulas.overlong_penalty(lengths, max_tokens=limit, buffer=buffer)


def _group_metrics(scores: torch.Tensor, group_size: int) -> dict[str, torch.Tensor]:
    """Metrics of the groups, before any is replaced; none for groups of one."""
    if group_size == 1:
        return {}
    grouped = rearrange(scores, "(n g) -> n g", g=group_size)
    return {
        "frac_reward_zero_std": (grouped == grouped[:, :1]).all(1).float().mean(),
        "reward_std": grouped.std(1).mean(),
        "best_of_group": grouped.max(1).values.mean(),
    }


def _baseline(
    row: Algorithm,
    penalised: torch.Tensor,
    index: torch.Tensor,
    draw: Callable,
    state: dict,
    config: GroupConfig,
    formulas: GroupFormulas,
) -> tuple[torch.Tensor | float, int]:
    """(baseline, number of responses sampled for it), for rows without a group baseline.

    "greedy" is the score of a greedy response to each prompt, which is sampled here. "running mean"
    is the mean score of earlier batches, because a mean that contains a response depends on it. The
    first batch has no earlier one, so its own mean is used. Other rows get 0.

    Both are of scores less penalties, without the KL penalty. With kl="score" the KL penalty is
    taken off the responses only. On average this lowers all advantages by about kl_coef KL.
    """
    if row.baseline == "greedy":
        greedy = replace(config.sampling, greedy=True)
        of_greedy = draw(index, config=greedy, samples_per_prompt=1)[2]
        return repeat(of_greedy, "n -> (n g)", g=config.group_size), len(index)
    if row.baseline == "running mean":
        earlier = state["running_mean"]
        baseline = penalised.mean().item() if earlier is None else earlier
        state["running_mean"] = formulas.running_mean(baseline, penalised)
        return baseline, 0
    return 0.0, 0


def _without_truncated(batch: Rollout, eos_id: tuple[int, ...]) -> Rollout:
    """The same batch, but no token of a truncated response counts in the loss.

    The advantages were computed before. So truncated responses still count in the baseline.
    """
    finished = batch.finished(eos_id)[:, None]
    return replace(batch, action_mask=batch.action_mask & finished)


def _minibatches(
    batch: Rollout, config: GroupConfig, generator: torch.Generator
) -> list[torch.Tensor]:
    """Row numbers of each optimiser step, for all epochs.

    A step in which no token counts is left out.
    """
    orders = [
        torch.randperm(len(batch.action_mask), generator=generator, device="cpu")
        for _ in range(config.epochs)
    ]
    every = [rows for order in orders for rows in order.split(config.minibatch_size)]
    return [rows for rows in every if batch.action_mask[rows].any()]


@torch.no_grad()
def _ratio_metrics(
    logprobs: torch.Tensor, part: Rollout, minibatch: Rollout, row: Algorithm
) -> dict[str, torch.Tensor]:
    """Mean ratio and share of clipped tokens, weighted by this part's share of the minibatch."""
    mask = part.action_mask
    share = mask.sum() / minibatch.action_mask.sum()
    clipped = row.clipped(logprobs, part.old_logprobs, part.advantages, mask)
    return {
        "ratio": share * mean_ratio(logprobs, part.old_logprobs, mask),
        "clip_fraction": share * masked_mean(clipped.float(), mask),
    }


def _refilled(
    batch: Rollout,
    scores: torch.Tensor,
    penalised: torch.Tensor,
    draw: Callable,
    config: GroupConfig,
    n_prompts: int,
    generator: torch.Generator,
) -> tuple[Rollout, torch.Tensor, int]:
    """Replace groups of equal scores by groups of new prompts (dynamic sampling).

    Scores are equal here if they differ by no more than drop_spread, before any penalty is taken
    off. After config.max_refills rounds, missing groups are filled up with groups of equal scores.
    So the batch keeps its size, and so do the denominators that count rows.

    Returns:
        (batch, penalised scores, number of responses sampled for the replacement).
    """
    size, wanted = config.group_size, config.prompts_per_step
    limit = config.algorithm.drop_spread
    assert limit is not None  # otherwise no group is replaced
    batches, all_penalised = [batch], [penalised]
    kept: list[int] = []  # numbers of groups
    alike: list[int] = []
    drawn = 0  # how many groups were drawn so far
    for attempt in range(config.max_refills + 1):
        grouped = rearrange(scores, "(n g) -> n g", g=size)
        spread = grouped.max(1).values - grouped.min(1).values
        for differs in (spread > limit).tolist():
            (kept if differs else alike).append(drawn)
            drawn += 1
        if len(kept) >= wanted or attempt == config.max_refills:
            break
        new = torch.randint(n_prompts, (wanted - len(kept),), generator=generator, device="cpu")
        batch, scores, penalised = draw(new)
        batches.append(batch)
        all_penalised.append(penalised)
    groups = torch.tensor((kept + alike)[:wanted], device="cpu")
    rows = (groups[:, None] * size + torch.arange(size, device="cpu")).flatten()
    joined = Rollout.concat(batches).select(rows)
    return joined, torch.cat(all_penalised)[rows], (drawn - wanted) * size
