"""Supervised fine-tuning: imitate written responses. The prompt is read, never trained on.

loss = -mean over response tokens of log pi(y_t | x, y_<t)        EOS is a response token: stopping is learned here
"""

from dataclasses import dataclass

import torch
from datasets import Dataset

from minirlhf.core.masking import aggregate, loss_denominator
from minirlhf.loops.checkpoint import Checkpoint
from minirlhf.loops.common import clipped_step, linear_decay, make_optimizer, shuffled_batches
from minirlhf.loops.config import OptimiserConfig
from minirlhf.models.forward import encode, policy_logprobs
from minirlhf.runtime import History, check, seed_all
from minirlhf.tasks.formats import check_rows


@dataclass(frozen=True)
class SFTConfig:
    """Settings of supervised fine-tuning."""

    batch_size: int = 32  # sequences a step
    epochs: float = 1.5  # passes over the data, 1 .. 3
    max_response: int = 32  # tokens, EOS included; longer responses are cut
    optimiser: OptimiserConfig = OptimiserConfig(lr=3e-4)
    seed: int = 0

    def __post_init__(self):
        check("batch_size", self.batch_size, self.batch_size >= 1, "at least 1")
        check("epochs", self.epochs, self.epochs > 0, "above 0")


def train_sft(
    model,
    tokenizer,
    dataset: Dataset,
    config: SFTConfig = SFTConfig(),
    *,
    history: History | None = None,
    on_step=lambda row: None,
    checkpoint: Checkpoint | None = None,
):
    """Fine-tune `model` in place on columns `prompt` and `completion` (TRL's prompt-completion format).

    Returns:
        (model, history); rows: loss (nats a token), grad_norm, lr.
    """
    check_rows(dataset, "prompt", "completion")
    history = History() if history is None else history
    seed_all(config.seed)
    optimizer = make_optimizer(model, config.optimiser)
    steps = max(1, round(config.epochs * len(dataset) / config.batch_size))
    model.eval()  # dropout off: a pass or two over the data has no need of it
    run = (checkpoint or Checkpoint()).attach("sft", config, dataset, [model], [optimizer], history)
    for step, index in run.steps(
        shuffled_batches(len(dataset), config.batch_size, steps, config.seed)
    ):
        rows = dataset[index.tolist()]
        batch = encode(
            tokenizer, rows["prompt"], rows["completion"], max_response=config.max_response
        )
        linear_decay(optimizer, config.optimiser.lr, step, steps)
        total, loss = loss_denominator(batch.response_mask, how="token_mean"), 0.0
        for micro in config.optimiser.split(torch.arange(len(index))):
            part = batch.select(micro)
            part_loss = aggregate(
                -policy_logprobs(model, part),
                part.response_mask,
                how="token_mean",
                denominator=total,
            )
            part_loss.backward()
            loss += part_loss.detach()
        grad_norm = clipped_step(model, optimizer, config.optimiser.max_grad_norm)
        on_step(
            history.log(
                "sft",
                step,
                steps=steps,
                loss=loss,
                grad_norm=grad_norm,
                lr=optimizer.param_groups[0]["lr"],
            )
        )
    return model, history
