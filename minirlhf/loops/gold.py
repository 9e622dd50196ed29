"""Train a member of the gold ensemble: regression of a review's mean rating.

    loss = 1/2 (r(x, y) - mean rating)^2

The score r is read at the last token, end of sequence (EOS) included. Score and rating are in
rating units, -4 .. 4, so the loss is in squared rating units.

The ensemble is a second judge beside the gold reward model (see rewards/gold.py). It is trained on
films, from a backbone and with seeds that no training on rewards uses.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from minirlhf.core.bradley_terry import last_token_scores
from minirlhf.loops.checkpoint import Checkpoint
from minirlhf.loops.common import (
    clipped_step,
    make_optimizer,
    set_dropout,
    set_learning_rate,
    shuffled_batches,
)
from minirlhf.loops.config import OptimiserConfig
from minirlhf.models.forward import encode, token_scores
from minirlhf.models.heads import ScalarModel
from minirlhf.runtime import History, OnStep, check, seed_all
from minirlhf.tasks.reviews import Review


@dataclass(frozen=True)
class GoldConfig:
    """Settings of one member of the ensemble."""

    batch_size: int = 32  # reviews per step
    epochs: float = 4.0
    dropout: float = 0.1  # without dropout, about 4,000 reviews are overfitted
    max_response: int = 64  # tokens, EOS included
    optimiser: OptimiserConfig = OptimiserConfig(lr=3e-4)
    seed: int = 0

    def __post_init__(self) -> None:
        check("epochs", self.epochs, self.epochs > 0, "above 0")
        check(
            "micro_batch",
            self.optimiser.micro_batch,
            self.optimiser.micro_batch == 0,
            "0: this loop has no micro-batches",
        )
        check("dropout", self.dropout, 0 <= self.dropout < 1, "in [0, 1)")


def train_gold(
    backbone: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    reviews: list[Review],
    config: GoldConfig = GoldConfig(),
    *,
    history: History | None = None,
    on_step: OnStep = lambda row: None,
    checkpoint: Checkpoint | None = None,
) -> tuple[ScalarModel, History]:
    """Train `backbone` with a new scalar head to predict the mean rating of each review.

    Random numbers: the order of the reviews is that of `shuffled_batches(..., config.seed)`;
    torch's global generator, seeded with config.seed, draws the head's weights and then dropout.

    Returns:
        (ScalarModel, history). Rows of the history: loss (squared rating units).
    """
    history = History() if history is None else history
    seed_all(config.seed)
    model = ScalarModel(backbone)
    optimizer = make_optimizer(model, config.optimiser)
    steps = max(1, round(config.epochs * len(reviews) / config.batch_size))
    set_dropout(model, config.dropout)
    run = (checkpoint or Checkpoint()).attach(
        "gold", config, reviews, [model], [optimizer], history
    )
    for step, index in run.steps(
        shuffled_batches(len(reviews), config.batch_size, steps, config.seed)
    ):
        rows = [reviews[i] for i in index]
        batch = encode(
            tokenizer,
            [r.prompt for r in rows],
            [r.text for r in rows],
            max_response=config.max_response,
        )
        target = torch.tensor([r.mean for r in rows], device="cpu")
        loss = (
            0.5
            * (last_token_scores(token_scores(model, batch), batch.attention_mask) - target)
            .square()
            .mean()
        )
        set_learning_rate(optimizer, config.optimiser, step, steps, warmup=20)
        loss.backward()
        clipped_step(model, optimizer, config.optimiser.max_grad_norm)
        on_step(history.log("gold", step, steps=steps, loss=loss))
    return model.eval(), history
