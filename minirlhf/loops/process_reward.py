"""Train a process reward model (PRM): for each step of a solution, the probability that it is good.

    loss = mean over steps of -[y log p + (1 - y) log(1 - p)]        p = sigmoid(z)

z is read at the last token of a step, so one forward pass reads all steps of a response. The labels
y come from people, or from the policy itself: `loops.continuation_labels` lets it finish
the response several times after each step, and a rule checks the answers (Math-Shepherd).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerBase

from minirlhf.core.masking import aggregate
from minirlhf.core.process_reward import process_reward_loss
from minirlhf.loops.checkpoint import Checkpoint
from minirlhf.loops.common import clipped_step, make_optimizer, set_learning_rate, shuffled_batches
from minirlhf.loops.config import OptimiserConfig, check_batch
from minirlhf.loops.rows import check_tokens
from minirlhf.models.forward import encode
from minirlhf.models.heads import ScalarModel
from minirlhf.models.steps import step_end_ids, step_logits, steps_of
from minirlhf.runtime import History, OnStep, check, seed_all
from minirlhf.tasks.formats import check_columns, check_rows
from minirlhf.tasks.reports import ORIGIN, counted
from minirlhf.tasks.stepwise import check_steps


@dataclass(frozen=True)
class PRMConfig:
    """Settings of a process reward model's training."""

    step_end: str = "\n"  # text that ends a step; EOS always does
    batch_size: int = 32  # responses per step
    steps: int = 300
    max_response: int = 128  # tokens, EOS included; longer responses are refused
    optimiser: OptimiserConfig = OptimiserConfig(lr=3e-4)
    seed: int = 0

    def __post_init__(self) -> None:
        check_batch("batch_size", self.batch_size)
        for name in ("steps", "max_response"):
            check(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        check("step_end", self.step_end, self.step_end != "", "the text that ends a step")


def train_prm(
    backbone: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    config: PRMConfig = PRMConfig(),
    *,
    history: History | None = None,
    on_step: OnStep = lambda row: None,
    checkpoint: Checkpoint | None = None,
) -> tuple[ScalarModel, History]:
    """Train `backbone` with a new head on columns `prompt`, `completions`, `labels`.

    This is TRL's format of stepwise supervision. The steps of a response are joined by `step_end`;
    EOS ends the last one.

    Random numbers: the order of the rows is that of `shuffled_batches(..., config.seed)`; torch's
    global generator, seeded with config.seed, draws the head's weights. Dropout is off.

    Args:
        dataset: completions is a list of texts, the steps; labels has a number from 0 to 1, True,
            False or None (no label) for each.

    Returns:
        (a ScalarModel whose scores are the logits z, history). Rows of the history: loss (nats per
        step; a nat is the unit of natural logarithms), grad_norm, and right: the share of labelled
        steps with p and y on the same side of 1/2 (a y of 1/2 counts as below).

    Raises:
        ValueError: a row has no such values, a step has the text that ends steps, or a response is
            too long.
    """
    rows = step_rows(dataset, tokenizer, backbone, config)
    check_tokens(rows, tokenizer, backbone)
    ends = step_end_ids(backbone, tokenizer, config.step_end)
    history = History() if history is None else history
    seed_all(config.seed)
    model = ScalarModel(backbone).eval()
    optimizer = make_optimizer(model, config.optimiser)
    run = (checkpoint or Checkpoint()).attach("prm", config, rows, [model], [optimizer], history)
    batches = shuffled_batches(len(rows), config.batch_size, config.steps, config.seed)
    for step, index in run.steps(batches):
        count = sum(y is not None for labels in rows[index.tolist()]["labels"] for y in labels)
        losses, sides = torch.zeros((), device="cpu"), []
        for part in config.optimiser.split(index):
            # 1. The logit of each step, and its label.
            logits, labels, rated = _read(model, tokenizer, rows[part.tolist()], ends)
            # 2. The loss of each step, their mean, and its gradient.
            of_steps = process_reward_loss(logits, labels, rated)
            loss = aggregate(of_steps, rated, denominator=float(count))
            loss.backward()
            losses += loss.detach()
            sides.append(((logits > 0) == (labels > 0.5))[rated])
        # 3. Update and log.
        set_learning_rate(optimizer, config.optimiser, step, config.steps)
        grad_norm = clipped_step(model, optimizer, config.optimiser.max_grad_norm)
        right = torch.cat(sides).float().mean()
        row = history.log(
            "prm", step, steps=config.steps, loss=losses, right=right, grad_norm=grad_norm
        )
        on_step(row)
    return model.eval(), history


def _read(
    model: ScalarModel, tokenizer: PreTrainedTokenizerBase, some: dict, ends: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(logits, labels, whether there is a label), each (B, S), of some rows of `step_rows`."""
    batch = encode(tokenizer, some["prompt"], some["completion"])
    logits, is_step = step_logits(model, batch, ends)
    labels = torch.zeros_like(logits)
    labels[is_step] = torch.tensor(
        [float("nan") if y is None else y for row in some["labels"] for y in row], device="cpu"
    )
    return logits, labels, is_step & ~labels.isnan()


@torch.no_grad()
def judged_prm(
    model: ScalarModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    config: PRMConfig = PRMConfig(),
) -> dict[str, float]:
    """Evaluate a process reward model on labelled steps, such as rows that were held out.

    Args:
        dataset: as of `train_prm`.

    Returns:
        loss: nats per step. right: share of labelled steps with p and y on the same side of 1/2.
        usual: the same share for a model that always says the more frequent side. steps: number of
        labelled steps.
    """
    rows = step_rows(dataset, tokenizer, model.backbone, config)
    ends = step_end_ids(model.backbone, tokenizer, config.step_end)
    found = []
    for index in torch.arange(len(rows), device="cpu").split(config.batch_size):
        logits, labels, rated = _read(model, tokenizer, rows[index.tolist()], ends)
        losses = process_reward_loss(logits, labels, rated)
        found.append([x[rated] for x in (losses, logits, labels)])
    loss, logits, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
    good = (labels > 0.5).float().mean().item()
    return {
        "loss": loss.mean().item(),
        "right": ((logits > 0) == (labels > 0.5)).float().mean().item(),
        "usual": max(good, 1 - good),
        "steps": len(labels),
    }


def step_rows(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    model: nn.Module,
    config: PRMConfig,
    *,
    skip_invalid: bool = False,
    say: Callable[[str], object] = print,
) -> Dataset:
    """Labelled steps with a column `completion`, the whole response, checked as tokens.

    Args:
        dataset: as of `train_prm`. A column `row_of_file` names the rows in messages.
        model: its end tokens end a step.
        skip_invalid: leave out rows that cannot be used, instead of refusing them.
        say: is called with a sentence about the rows that were left out.

    Raises:
        ValueError: a row has no such values, is too long, or has steps that the tokenizer does not
            keep apart.
    """
    check_columns(dataset, "prompt", "completions", "labels")
    ends = step_end_ids(model, tokenizer, config.step_end)
    made, faults = [], []
    for number, row in enumerate(dataset, start=1):
        origin = row.get(ORIGIN)
        where = f"{origin['source']}, row {origin['row']}" if origin else f"Row {number}"
        try:
            check_steps(row, where, config.step_end)
            labels = [None if y is None else float(y) for y in row["labels"]]
            row = row | {"completion": config.step_end.join(row["completions"]), "labels": labels}
            _check_tokens_of(row, where, tokenizer, ends, config)
            made.append(row)
        except ValueError as fault:
            if not skip_invalid:
                raise
            faults.append(fault)
    if faults:
        check("rows that can be used", 0, bool(made), f"at least 1. The first fault: {faults[0]}")
        say(f"Left out: {counted(len(faults))} of {len(dataset)}. The first: {faults[0]}")
    return check_rows(Dataset.from_list(made), "prompt", "completion")


def _check_tokens_of(
    row: dict,
    where: str,
    tokenizer: PreTrainedTokenizerBase,
    ends: tuple[int, ...],
    config: PRMConfig,
) -> None:
    """Refuse a row that is too long, or whose steps the tokenizer does not keep apart."""
    batch = encode(tokenizer, [row["prompt"]], [row["completion"]])
    length, found = batch.response_ids.shape[1], len(steps_of(batch, ends)[0])
    if length > config.max_response:
        raise ValueError(
            f"{where}: the response has {length} tokens, EOS included; max_response is "
            f"{config.max_response}. Give a larger number, or leave the row out."
        )
    if found != len(row["labels"]):
        raise ValueError(
            f"{where} has {len(row['labels'])} steps, but {found} as tokens: the tokenizer writes "
            f"{config.step_end!r} together with what follows; choose another step_end "
            "(--step-end)."
        )
