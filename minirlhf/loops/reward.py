"""The reward model: from pairs, one preferred, to a score.

    P(chosen > rejected) = sigmoid(r_chosen - r_rejected)        loss = -log P        (Bradley and Terry 1952)

The score is read at the last real token, EOS included. Afterwards `rewards.model.normalise_scores` shifts and scales
it to mean 0 and standard deviation 1 on samples of the SFT model, because a Bradley-Terry score has neither zero nor unit.

A step holds several texts of each of a few prompts and *all* the comparisons among them (Ouyang et al. 2022, 3.5): a text goes
through the model once however often it was compared, and is not learned by heart from one noisy comparison after another.
"""

import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from datasets import Dataset
from torch.utils.checkpoint import checkpoint as recomputed

from minirlhf.core.bradley_terry import last_token_scores, reward_model_loss
from minirlhf.loops.checkpoint import Checkpoint
from minirlhf.loops.common import clipped_step, linear_decay, make_optimizer, set_dropout
from minirlhf.loops.config import OptimiserConfig
from minirlhf.models.forward import encode, token_scores
from minirlhf.models.heads import ScalarModel
from minirlhf.runtime import History, check, seed_all
from minirlhf.tasks.formats import check_rows


@dataclass(frozen=True)
class RewardConfig:
    """Settings of reward-model training."""

    batch_size: int = 64  # texts a step
    texts_per_prompt: int = (
        8  # about so many texts of a prompt are compared with each other in a step; 2 .. 16
    )
    steps: int = 160
    dropout: float = 0.1  # the same few thousand texts come back every epoch
    max_response: int = 48  # tokens, EOS included
    centering_coef: float = 0.0  # coef * (r_c + r_r)^2, 0 .. 0.01 (Eisenstein et al. 2023)
    optimiser: OptimiserConfig = OptimiserConfig(lr=4e-4)
    seed: int = 0

    def __post_init__(self):
        check("texts_per_prompt", self.texts_per_prompt, self.texts_per_prompt >= 2, "at least 2")
        check("batch_size", self.batch_size, self.batch_size >= 2, "at least 2")
        check("steps", self.steps, self.steps >= 1, "at least 1")
        check("dropout", self.dropout, 0 <= self.dropout < 1, "in [0, 1)")
        check("centering_coef", self.centering_coef, self.centering_coef >= 0, "0 or more")


def train_reward_model(
    backbone,
    tokenizer,
    dataset: Dataset,
    config: RewardConfig = RewardConfig(),
    *,
    history: History | None = None,
    on_step=lambda row: None,
    checkpoint: Checkpoint | None = None,
) -> tuple[ScalarModel, History]:
    """Train `backbone` (a copy of the SFT model without its language-model head) on `prompt`, `chosen`, `rejected`.

    Returns:
        (ScalarModel, history); rows: loss (nats a pair), accuracy (strict >), margin (raw score), grad_norm.
    """
    check_rows(dataset, "prompt", "chosen", "rejected")
    history = History() if history is None else history
    seed_all(config.seed)
    model = ScalarModel(backbone)
    set_dropout(model, config.dropout)
    optimizer = make_optimizer(model, config.optimiser)
    run = (checkpoint or Checkpoint()).attach(
        "reward", config, dataset, [model], [optimizer], history
    )
    for step, pairs in run.steps(islice(comparison_batches(dataset, config), config.steps)):
        # 1. each text once, whatever the number of its comparisons
        texts = list(dict.fromkeys((prompt, text) for prompt, *both in pairs for text in both))
        place = {text: i for i, text in enumerate(texts)}
        scores = text_scores(
            model, tokenizer, texts, config.max_response, micro_batch=config.optimiser.micro_batch
        )
        chosen = scores[[place[prompt, text] for prompt, text, _ in pairs]]
        rejected = scores[[place[prompt, text] for prompt, _, text in pairs]]
        # 2. the loss of each pair; a pair is the unit, so their plain mean
        loss = reward_model_loss(chosen, rejected, centering_coef=config.centering_coef).mean()
        linear_decay(optimizer, config.optimiser.lr, step, config.steps)
        loss.backward()
        grad_norm = clipped_step(model, optimizer, config.optimiser.max_grad_norm)
        margins = (chosen - rejected).detach()
        on_step(
            history.log(
                "reward",
                step,
                steps=config.steps,
                loss=loss,
                accuracy=(margins > 0).float().mean(),
                margin=margins.mean(),
                grad_norm=grad_norm,
            )
        )
    return model.eval(), history


def comparison_batches(
    dataset: Dataset, config: RewardConfig
) -> Iterator[list[tuple[str, str, str]]]:
    """Lists of (prompt, chosen, rejected) without end: a prompt's texts are dealt at random into hands of about
    `texts_per_prompt`, a batch takes hands until it holds `batch_size` texts, an epoch deals every text once.

    Raises:
        ValueError: no pairs.
    """
    compared = defaultdict(lambda: defaultdict(list))  # prompt -> chosen -> [rejected, ...]
    for prompt, chosen, rejected in zip(
        *(dataset[:][name] for name in ("prompt", "chosen", "rejected")), strict=True
    ):
        compared[prompt][chosen].append(rejected)
    if not compared:
        raise ValueError("There are no pairs to learn from.")
    rng = random.Random(config.seed)
    batch, size = [], 0
    while True:
        hands = []
        for prompt, wins in compared.items():
            texts = sorted({*wins, *(text for lost in wins.values() for text in lost)})
            rng.shuffle(texts)
            count = max(1, round(len(texts) / config.texts_per_prompt))
            hands += [(prompt, set(texts[start::count])) for start in range(count)]
        rng.shuffle(hands)
        for prompt, hand in hands:
            within = [
                (prompt, a, b)
                for a in compared[prompt]
                if a in hand
                for b in compared[prompt][a]
                if b in hand
            ]
            batch, size = batch + within, size + len(hand) * bool(within)
            if size >= config.batch_size:
                yield batch
                batch, size = [], 0


def text_scores(
    model: ScalarModel,
    tokenizer,
    texts: list[tuple[str, str]],
    max_response: int,
    *,
    micro_batch: int = 0,
) -> torch.Tensor:
    """Raw scores (N,) of (prompt, response) texts, in parts of like length: less padding, the same numbers.

    Args:
        micro_batch: texts a part; each is then computed once more when the gradient is needed, so that only one is in memory at a time.
    """

    def scored(rows: list[int]) -> torch.Tensor:
        batch = encode(
            tokenizer, *zip(*(texts[i] for i in rows), strict=True), max_response=max_response
        )
        return last_token_scores(token_scores(model, batch), batch.attention_mask)

    order = sorted(range(len(texts)), key=lambda i: len(texts[i][1]))
    size = micro_batch or -(-len(texts) // 4)
    parts = [order[start : start + size] for start in range(0, len(order), size)]
    scores = [
        recomputed(scored, rows, use_reentrant=False) if micro_batch else scored(rows)
        for rows in parts
    ]
    return torch.cat(scores)[torch.tensor(order).argsort()]
