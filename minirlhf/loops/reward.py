"""Train a reward model: it learns a score for responses from pairs with a preferred response.

    P(chosen > rejected) = sigmoid(r_chosen - r_rejected)    loss = -log P    (Bradley and Terry
    1952)

The score is read at the last real token, end of sequence (EOS) included. A Bradley-Terry score has
no zero of its own, and its unit is the log-odds (the logit) of a preference. Afterwards
`rewards.normalise_scores` shifts and scales it to mean 0 and standard deviation 1 on samples of the
SFT model.

A step holds several responses to each of a few prompts and all comparisons among them (Ouyang et
al. 2022, section 3.5). Each response passes through the model once per step, however often it was
compared. So the model does not memorise it from one noisy comparison after another.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from torch.utils.checkpoint import checkpoint as recomputed
from transformers import PreTrainedTokenizerBase

from minirlhf.core.bradley_terry import last_token_scores, reward_model_loss
from minirlhf.loops.checkpoint import Checkpoint
from minirlhf.loops.common import clipped_step, make_optimizer, set_dropout, set_learning_rate
from minirlhf.loops.config import OptimiserConfig, check_batch
from minirlhf.loops.rows import check_tokens
from minirlhf.models.forward import encode, token_scores
from minirlhf.models.heads import ScalarModel
from minirlhf.runtime import History, OnStep, check, seed_all
from minirlhf.tasks.formats import check_rows


@dataclass(frozen=True)
class RewardConfig:
    """Settings of reward-model training."""

    batch_size: int = 64  # texts per step, or a few more: groups are not split
    texts_per_prompt: int = 8  # about this many texts of a prompt form a group, 2 .. 16
    steps: int = 160
    dropout: float = 0.1  # the same few thousand texts come back every epoch
    max_response: int = 48  # tokens, EOS included
    centering_coef: float = 0.0  # coef * (r_c + r_r)^2, 0 .. 0.01 (Eisenstein et al. 2023)
    sort_by_length: bool = True  # a forward pass reads texts of similar length: less padding
    optimiser: OptimiserConfig = OptimiserConfig(lr=4e-4)
    seed: int = 0

    def __post_init__(self) -> None:
        check("texts_per_prompt", self.texts_per_prompt, self.texts_per_prompt >= 2, "at least 2")
        check_batch("batch_size", self.batch_size, least=2)
        check("max_response", self.max_response, self.max_response >= 1, "at least 1")
        check("steps", self.steps, self.steps >= 1, "at least 1")
        check("dropout", self.dropout, 0 <= self.dropout < 1, "in [0, 1)")
        check("centering_coef", self.centering_coef, self.centering_coef >= 0, "0 or more")

    @classmethod
    def plain(cls, **given: Any) -> "RewardConfig":
        """Reward-model training with every extra switched off.

        No dropout, all texts of a step in one batch in the order in which the pairs name them, a
        constant learning rate, no gradient clipping.
        """
        off: dict[str, Any] = {
            "dropout": 0.0,
            "sort_by_length": False,
            "optimiser": OptimiserConfig.plain(lr=cls.optimiser.lr),
        }
        return cls(**off | given)


@dataclass(frozen=True)
class RewardFormulas:
    """The functions that reward-model training uses; replace one to try your own.

    A field has the name and the arguments of the package's function.
    """

    last_token_scores: Callable = last_token_scores
    reward_model_loss: Callable = reward_model_loss


def train_reward_model(
    backbone: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    config: RewardConfig = RewardConfig(),
    *,
    formulas: RewardFormulas = RewardFormulas(),
    history: History | None = None,
    on_step: OnStep = lambda row: None,
    checkpoint: Checkpoint | None = None,
) -> tuple[ScalarModel, History]:
    """Train `backbone` with a new scalar head on columns `prompt`, `chosen`, `rejected`.

    Random numbers: the batches are drawn by random.Random(config.seed), see `comparison_batches`.
    torch's global generator, seeded with config.seed, draws the head's weights (`ScalarModel`) and
    then dropout.

    Args:
        backbone: usually a copy of the SFT model without its language-model head.
        formulas: the functions that the loop uses.
        on_step: called with each row of the history.
        checkpoint: where the run is saved and resumed from.

    Returns:
        (ScalarModel, history). Rows of the history: loss (nats per pair; a nat is the unit of
        natural logarithms), accuracy (share of pairs with chosen above rejected), margin (mean
        difference of the scores before they are normalised), grad_norm.
    """
    check_rows(dataset, "prompt", "chosen", "rejected")
    check_tokens(dataset, tokenizer, backbone, max_response=config.max_response)
    history = History() if history is None else history
    seed_all(config.seed)
    model = ScalarModel(backbone)
    set_dropout(model, config.dropout)
    optimizer = make_optimizer(model, config.optimiser)
    run = (checkpoint or Checkpoint()).attach(
        "reward", config, dataset, [model], [optimizer], history, formulas=formulas
    )
    for step, pairs in run.steps(islice(comparison_batches(dataset, config), config.steps)):
        # 1. The score of each text, once, however often it was compared.
        texts = distinct_texts(pairs)
        scores = text_scores(
            model,
            tokenizer,
            texts,
            config.max_response,
            micro_batch=config.optimiser.micro_batch,
            sort_by_length=config.sort_by_length,
            last_token_scores=formulas.last_token_scores,
        )
        place = {text: i for i, text in enumerate(texts)}
        chosen = scores[[place[prompt, text] for prompt, text, _ in pairs]]
        rejected = scores[[place[prompt, text] for prompt, _, text in pairs]]
        # 2. The loss of each pair, and their mean.
        losses = formulas.reward_model_loss(chosen, rejected, centering_coef=config.centering_coef)
        loss = losses.mean()
        loss.backward()
        # 3. Update and log.
        set_learning_rate(optimizer, config.optimiser, step, config.steps)
        grad_norm = clipped_step(model, optimizer, config.optimiser.max_grad_norm)
        margins = (chosen - rejected).detach()
        row = history.log(
            "reward",
            step,
            steps=config.steps,
            loss=loss,
            accuracy=(margins > 0).float().mean(),
            margin=margins.mean(),
            grad_norm=grad_norm,
        )
        on_step(row)
    return model.eval(), history


def comparison_batches(
    dataset: Dataset, config: RewardConfig
) -> Iterator[list[tuple[str, str, str]]]:
    """Batches of (prompt, chosen, rejected) without end.

    In each epoch the texts of a prompt are shuffled and split into groups of about
    `texts_per_prompt`. Then the groups of all prompts are shuffled. A batch takes groups, with all
    comparisons inside them, until it holds at least `batch_size` texts.

    So an epoch shows a text at most once. A text that is not compared with another of its group is
    not shown. Comparisons between two groups are left out in this epoch. A batch may take its last
    groups from the next epoch.

    Raises:
        ValueError: no pairs.
    """
    # prompt -> chosen -> [rejected, ...]
    compared: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    rows = dataset[:]
    for prompt, chosen, rejected in zip(
        rows["prompt"], rows["chosen"], rows["rejected"], strict=True
    ):
        compared[prompt][chosen].append(rejected)
    if not compared:
        raise ValueError("There are no pairs to learn from.")
    rng = random.Random(config.seed)
    batch: list[tuple[str, str, str]] = []
    size = 0
    while True:
        groups = []
        for prompt, wins in compared.items():
            texts = sorted({*wins, *(text for lost in wins.values() for text in lost)})
            rng.shuffle(texts)
            count = max(1, round(len(texts) / config.texts_per_prompt))
            groups += [(prompt, set(texts[start::count])) for start in range(count)]
        rng.shuffle(groups)
        for prompt, group in groups:
            within = [
                (prompt, chosen, rejected)
                for chosen in compared[prompt]
                if chosen in group
                for rejected in compared[prompt][chosen]
                if rejected in group
            ]
            batch, size = batch + within, size + len(group) * bool(within)
            if size >= config.batch_size:
                yield batch
                batch, size = [], 0


def distinct_texts(pairs: list[tuple[str, str, str]]) -> list[tuple[str, str]]:
    """(prompt, response) of every text in (prompt, chosen, rejected) pairs, each once, in order."""
    return list(dict.fromkeys((prompt, text) for prompt, *both in pairs for text in both))


def text_scores(
    model: ScalarModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: list[tuple[str, str]],
    max_response: int,
    *,
    micro_batch: int = 0,
    sort_by_length: bool = True,
    last_token_scores: Callable = last_token_scores,
) -> torch.Tensor:
    """Raw scores (N,) of (prompt, response) texts.

    Args:
        max_response: tokens of a response that are read, EOS included.
        micro_batch: texts in one forward pass. Each part is computed a second time when its
            gradient is needed, so that only one part is in memory at a time. 0: no such limit.
        sort_by_length: sort the responses by their number of characters, and compute them in parts
            of similar length: four parts if micro_batch is 0. There is less padding to compute.
            Without dropout the scores are the same up to rounding.
        last_token_scores: the formula that reads the score.
    """

    def scored(rows: list[int]) -> torch.Tensor:
        prompts, responses = [texts[i][0] for i in rows], [texts[i][1] for i in rows]
        batch = encode(tokenizer, prompts, responses, max_response=max_response)
        return last_token_scores(token_scores(model, batch), batch.attention_mask)

    order = list(range(len(texts)))
    if sort_by_length:
        order.sort(key=lambda i: len(texts[i][1]))
    size = micro_batch or (-(-len(texts) // 4) if sort_by_length else len(texts))
    parts = [order[start : start + size] for start in range(0, len(order), size)]
    scores = [
        recomputed(scored, rows, use_reentrant=False) if micro_batch else scored(rows)
        for rows in parts
    ]
    return torch.cat(scores)[torch.tensor(order, device="cpu").argsort()]
