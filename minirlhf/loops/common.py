"""What the loops share: an optimiser and its step, the order of batches, means of metrics."""

from collections.abc import Iterator

import torch

from minirlhf.core.kl import log_ratio
from minirlhf.core.masking import masked_mean
from minirlhf.core.rollout import Rollout, Score
from minirlhf.loops.config import OptimiserConfig
from minirlhf.runtime import History, PromptError, check


def make_optimizer(model: torch.nn.Module, config: OptimiserConfig) -> torch.optim.Optimizer:
    """AdamW over the trainable parameters, without weight decay, as one fused kernel.

    An AdamW that is not fused rounds differently: the weights then differ by up to about 4e-5.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(
        parameters, lr=config.lr, betas=config.betas, weight_decay=0.0, fused=True
    )


def clipped_step(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, max_grad_norm: float | None
) -> torch.Tensor:
    """Clip the gradient's norm, take an optimiser step, and clear the gradient.

    Args:
        max_grad_norm: the norm to which the gradient is clipped; None leaves it as it is.

    Returns:
        The norm before clipping.

    Raises:
        FloatingPointError: the gradient is not finite; the weights are left as they were.
    """
    limit = float("inf") if max_grad_norm is None else max_grad_norm
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), limit)
    if not torch.isfinite(norm):
        raise FloatingPointError(
            f"The gradient's norm is {norm.item()}; lower lr or look at the last batch. "
            "This model's weights were left as they were."
        )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def set_learning_rate(
    optimizer: torch.optim.Optimizer,
    config: OptimiserConfig,
    step: int,
    steps: int,
    *,
    warmup: int = 5,
) -> None:
    """Set the learning rate of one step by config.schedule.

    constant: always config.lr.
    linear: config.lr times a warm-up over `warmup` steps, times a decay to 0 (`linear_decay`).
    """
    if config.schedule == "linear":
        linear_decay(optimizer, config.lr, step, steps, warmup)
    else:
        _set_all(optimizer, config.lr)


def linear_decay(
    optimizer: torch.optim.Optimizer, lr: float, step: int, steps: int, warmup: int = 5
) -> None:
    """Set the learning rate of a step: lr times a linear warm-up times a linear decay.

        lr_step = lr * min(1, (step + 1) / warmup) * (1 - step / steps)

    Steps count from 0. The decay begins at step 0, so with a warm-up of several steps lr itself is
    never quite reached. If the warm-up is over by then, the last step has lr / steps.
    """
    _set_all(optimizer, lr * (min(1.0, (step + 1) / warmup) * (1 - step / steps)))


def _set_all(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def set_dropout(model: torch.nn.Module, p: float) -> None:
    """Training mode with dropout p everywhere.

    Policies in RL have dropout off: the importance ratio must be 1 at the first minibatch.
    """
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = p


def shuffled_batches(n: int, batch_size: int, steps: int, seed: int) -> Iterator[torch.Tensor]:
    """`steps` batches of row numbers. Each epoch over the n rows has a new order.

    A batch may take its last rows from the next epoch. The order follows from the seed alone, by a
    generator of its own (one torch.randperm(n) per epoch): a resumed run sees the same batches.
    """
    generator = torch.Generator().manual_seed(seed)
    check("rows to train on", n, n >= 1, "at least 1")
    pool = torch.empty(0, dtype=torch.long, device="cpu")
    for _ in range(steps):
        while len(pool) < batch_size:
            pool = torch.cat([pool, torch.randperm(n, generator=generator, device="cpu")])
        yield pool[:batch_size]
        pool = pool[batch_size:]


def micro_batches(batch: Rollout, config: OptimiserConfig) -> Iterator[Rollout]:
    """The batch of one optimiser step in parts of config.micro_batch rows; whole if that is 0.

    Parts without a token that counts are left out: they have no loss.
    """
    if not config.micro_batch:
        yield batch
        return
    for rows in config.split(torch.arange(len(batch.response_mask), device="cpu")):
        part = batch.select(rows)
        if part.action_mask.any():
            yield part


def with_rows(batch: Rollout, index: torch.Tensor, step: int, steps: int) -> Rollout:
    """The sampled batch with what a score may ask for: which prompt, and how far the run is.

    Args:
        index: numbers of the prompts; each has the same number of responses, side by side.

    Returns:
        The batch with columns (B,): prompt_row, the number of the prompt; step and steps, of the
        run.
    """
    row = index.repeat_interleave(len(batch.response_ids) // len(index))
    progress = {"step": torch.full_like(row, step), "steps": torch.full_like(row, steps)}
    return batch.with_columns(prompt_row=row, **progress)


@torch.no_grad()
def checked_scores(score: Score, batch: Rollout) -> torch.Tensor:
    """score(batch), (B,) reward units. The batch is one of `with_rows`.

    Raises:
        ValueError: it is not one finite number per response.
        PromptError: a number is not finite. The message names the first response and its prompt.
    """
    scores, count = score(batch), len(batch.response_ids)
    if not isinstance(scores, torch.Tensor) or scores.shape != (count,):
        given = (
            f"a tensor of shape {tuple(scores.shape)}"
            if isinstance(scores, torch.Tensor)
            else f"{str(scores)[:60]}, of type {type(scores).__name__}"
        )
        raise ValueError(
            f"The score of a batch is {given}; it must be a tensor of one number for each of the "
            f"{count} responses, of shape ({count},). `rewards.reward_function` makes a score from "
            "a function of texts."
        )
    if not (finite := scores.isfinite()).all():
        row = int((~finite).nonzero()[0])
        prompt = int(batch.prompt_row[row])
        raise PromptError(
            f"The score of response {row + 1} of {count}, to prompt {prompt + 1}, is "
            f"{scores[row].item()}; it must be finite. "
            "It is nan where every reward function returned None: let one of them score every row.",
            prompt,
        )
    return scores


def sampling_metrics(
    batch: Rollout, ref_logprobs: torch.Tensor, eos_id: int | tuple[int, ...]
) -> dict[str, torch.Tensor]:
    """Metrics of the sampled responses, as `train_ppo` and `train_group` log them.

    Returns:
        kl: (B,) log pi - log pi_ref of each response, nats (units of the natural logarithm).
        entropy: nats per token, estimated as -mean log pi of the sampled tokens. length: mean
        number of tokens that the policy chose. missing_eos: share of truncated responses, which
        were cut off before EOS.
    """
    mask = batch.action_mask
    return {
        "kl": log_ratio(batch.old_logprobs, ref_logprobs, mask).sum(1),
        "entropy": -masked_mean(batch.old_logprobs, mask),
        "length": mask.sum(1).float().mean(),
        "missing_eos": 1 - batch.finished(eos_id).float().mean(),
    }


def nothing_learned(history: History, *, in_groups: bool = False) -> str:
    """A sentence where nothing could be learned from the scores of a run; empty where something.

    Args:
        history: of `train_ppo`, `train_group`, `train_online` or `train_step_dpo`.
        in_groups: a score is compared with those of its group alone, as in GRPO.
    """
    if any(row.get("pairs") for row in history):  # also responses with a label, for KTO
        return ""
    rows = [row for row in history if "score" in row]
    steps = f"In all steps so far ({len(history)})"
    if not rows and any("pairs" in row for row in history):  # of `train_step_dpo`
        tried = any("mended" in row for row in history)
        what = "no try of a wrong step was right" if tried else "no finished step was wrong"
        return f"{steps} {what}, so there was no pair of steps and nothing was learned."
    if not rows or not all("score_range" in row for row in rows):  # an older run, resumed
        return ""
    equal = (
        all(row["score_range"] == 0 for row in rows) and len({row["score"] for row in rows}) == 1
    )
    if equal:
        what = f"{steps} every response had the same score ({rows[0]['score']:g})"
    elif in_groups and all(row.get("frac_reward_zero_std") == 1 for row in rows):
        what = f"{steps} all responses of a group had equal scores"
    elif all(row.get("pairs") == 0 for row in history):
        what = f"{steps} no two responses to a prompt had different texts and scores"
    else:
        return ""
    return f"{what}, so nothing could be learned from this score, only from penalties."


class MeanMetrics(dict[str, float]):
    """Means of metrics over the optimiser steps made on one batch.

    Call `add` once per optimiser step with the value of the step. Or call it once per micro-batch
    with the part of this value that comes from the micro-batch.

    Args:
        optimiser_steps: the number of optimiser steps made on the batch.
        names: metrics that are 0 if nothing is added to them.
    """

    def __init__(self, optimiser_steps: int, names: tuple[str, ...] = ()) -> None:
        super().__init__(dict.fromkeys(names, 0.0))
        self.optimiser_steps = optimiser_steps

    def add(self, **metrics: torch.Tensor) -> None:
        for name, value in metrics.items():
            self[name] = self.get(name, 0.0) + value.item() / self.optimiser_steps
