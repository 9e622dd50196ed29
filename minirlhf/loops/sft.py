"""Supervised fine-tuning (SFT): imitate written responses.

    loss = -mean over response tokens of log pi(y_t | x, y_<t)

The model reads the prompt, but no loss is taken on it, nor on a user's turns in a response of
several turns. The end of sequence (EOS) is a response
token: this is where a policy learns to stop.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from minirlhf.core.masking import aggregate, loss_denominator
from minirlhf.core.policy_gradient import sft_loss
from minirlhf.loops.checkpoint import Checkpoint
from minirlhf.loops.common import (
    clipped_step,
    make_optimizer,
    micro_batches,
    set_learning_rate,
    shuffled_batches,
)
from minirlhf.loops.config import OptimiserConfig, check_batch
from minirlhf.loops.rows import check_tokens
from minirlhf.models.adapters import SomePolicy
from minirlhf.models.forward import encode, policy_logprobs
from minirlhf.runtime import History, OnStep, check, seed_all
from minirlhf.tasks.conversations import in_parts
from minirlhf.tasks.formats import check_rows


@dataclass(frozen=True)
class SFTConfig:
    """Settings of supervised fine-tuning."""

    batch_size: int = 32  # sequences per step
    epochs: float = 1.5  # passes over the data, 1 .. 3
    steps: int | None = None  # instead of epochs: so many steps, 1 or more
    max_response: int = 32  # tokens, EOS included; longer responses are cut
    optimiser: OptimiserConfig = OptimiserConfig(lr=3e-4)
    seed: int = 0

    def __post_init__(self) -> None:
        check_batch("batch_size", self.batch_size)
        check("max_response", self.max_response, self.max_response >= 1, "at least 1")
        check("epochs", self.epochs, self.epochs > 0, "above 0")
        check("steps", self.steps, self.steps is None or self.steps >= 1, "at least 1, or None")
        once = self.steps is None or self.epochs == SFTConfig.epochs
        check("epochs", self.epochs, once, f"left out where steps is given ({self.steps})")

    @classmethod
    def plain(cls, **given: Any) -> "SFTConfig":
        """SFT with a constant learning rate and no gradient clipping."""
        return cls(**{"optimiser": OptimiserConfig.plain(lr=cls.optimiser.lr)} | given)


@dataclass(frozen=True)
class SFTFormulas:
    """The functions that SFT uses; replace one to try your own: SFTFormulas(sft_loss=mine).

    A field has the name and the arguments of the package's function.
    """

    encode: Callable = encode
    sft_loss: Callable = sft_loss


def train_sft(
    model: SomePolicy,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    config: SFTConfig = SFTConfig(),
    *,
    formulas: SFTFormulas = SFTFormulas(),
    history: History | None = None,
    on_step: OnStep = lambda row: None,
    checkpoint: Checkpoint | None = None,
) -> tuple[SomePolicy, History]:
    """Fine-tune `model` in place on columns `prompt` and `completion` (TRL's format).

    Random numbers: the order of the rows is that of `shuffled_batches(..., config.seed)`. Nothing
    else is random. Dropout is off: in one or two epochs it is not needed.

    Args:
        formulas: the functions that the loop uses.
        on_step: called with each row of the history.
        checkpoint: where the run is saved and resumed from.

    Returns:
        (model, history). Rows of the history: loss (nats per token; a nat is the unit of
        natural logarithms), grad_norm, lr.
    """
    check_rows(dataset, "prompt", "completion")
    check_tokens(dataset, tokenizer, model, max_response=config.max_response)
    history = History() if history is None else history
    seed_all(config.seed)
    optimizer = make_optimizer(model, config.optimiser)
    steps = config.steps or max(1, round(config.epochs * len(dataset) / config.batch_size))
    model.eval()
    run = (checkpoint or Checkpoint()).attach(
        "sft", config, dataset, [model], [optimizer], history, formulas=formulas
    )
    batches = shuffled_batches(len(dataset), config.batch_size, steps, config.seed)
    for step, index in run.steps(batches):
        # 1. Text to tokens.
        rows = dataset[index.tolist()]
        batch = formulas.encode(
            tokenizer,
            rows["prompt"],
            in_parts(rows, "completion"),
            max_response=config.max_response,
        )
        # 2. The loss of each response token, and its gradient.
        tokens = loss_denominator(batch.action_mask)
        loss: torch.Tensor | float = 0.0
        for part in micro_batches(batch, config.optimiser):
            losses = formulas.sft_loss(policy_logprobs(model, part), part.action_mask)
            part_loss = aggregate(losses, part.action_mask, denominator=tokens)
            part_loss.backward()
            loss += part_loss.detach()
        # 3. Update and log.
        set_learning_rate(optimizer, config.optimiser, step, steps)
        grad_norm = clipped_step(model, optimizer, config.optimiser.max_grad_norm)
        lr = optimizer.param_groups[0]["lr"]
        row = history.log("sft", step, steps=steps, loss=loss, grad_norm=grad_norm, lr=lr)
        on_step(row)
    return model, history
