"""A verifier: after each token, the probability that the answer will be right.

    loss = mean over t of -[z log V_t + (1 - z) log(1 - V_t)]

V_t is the probability after t response tokens; V_0 is that after the prompt. In core, V_t is the
value before token t instead. z is 1 for a response that is right in the end, 0 for one that is
wrong. Every prefix of a response has the label of the whole response. So V_t learns the mean label
of all responses that begin with this prefix: the value function of the policy that wrote them.

Source: Cobbe et al. 2021, the token-level verifier.
"""

from dataclasses import dataclass

import torch
from datasets import Dataset
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import PreTrainedTokenizerBase

from minirlhf.core.masking import aggregate
from minirlhf.core.rollout import Rollout
from minirlhf.loops.checkpoint import Checkpoint
from minirlhf.loops.common import clipped_step, make_optimizer, set_learning_rate, shuffled_batches
from minirlhf.loops.config import OptimiserConfig, check_batch
from minirlhf.loops.rows import check_tokens
from minirlhf.models.forward import encode, token_scores
from minirlhf.models.heads import ScalarModel
from minirlhf.runtime import History, OnStep, check, seed_all
from minirlhf.tasks.formats import check_rows


@dataclass(frozen=True)
class VerifierConfig:
    """Settings of a verifier's training."""

    batch_size: int = 64  # texts per step
    steps: int = 400
    max_response: int = 32  # tokens, EOS included
    optimiser: OptimiserConfig = OptimiserConfig(lr=1e-3)
    seed: int = 0

    def __post_init__(self) -> None:
        check_batch("batch_size", self.batch_size)
        check("steps", self.steps, self.steps >= 1, "at least 1")


def train_verifier(
    backbone: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    config: VerifierConfig = VerifierConfig(),
    *,
    history: History | None = None,
    on_step: OnStep = lambda row: None,
    checkpoint: Checkpoint | None = None,
) -> tuple[ScalarModel, History]:
    """Train `backbone` with a new head on columns `prompt`, `completion`, `label` (True: right).

    Random numbers: the order of the rows is that of `shuffled_batches(..., config.seed)`; torch's
    global generator, seeded with config.seed, draws the head's weights. Dropout is off.

    Returns:
        (a ScalarModel whose scores are the logits of V, history). Rows of the history: loss (nats
        per token; a nat is the unit of natural logarithms), grad_norm, and right: the share of
        texts whose label the last V predicts, above 1/2 for True and at most 1/2 for False.
    """
    check_rows(dataset, "prompt", "completion", "label")
    check_tokens(dataset, tokenizer, backbone, max_response=config.max_response)
    history = History() if history is None else history
    seed_all(config.seed)
    model = ScalarModel(backbone).eval()
    optimizer = make_optimizer(model, config.optimiser)
    run = (checkpoint or Checkpoint()).attach(
        "verifier", config, dataset, [model], [optimizer], history
    )
    for step, index in run.steps(
        shuffled_batches(len(dataset), config.batch_size, config.steps, config.seed)
    ):
        set_learning_rate(optimizer, config.optimiser, step, config.steps)
        rows = dataset[index.tolist()]
        batch = encode(
            tokenizer, rows["prompt"], rows["completion"], max_response=config.max_response
        )
        label = torch.tensor(rows["label"], device="cpu").float()
        logits, mask = prefix_logits(model, batch)
        losses = binary_cross_entropy_with_logits(
            logits, label[:, None].expand_as(logits), reduction="none"
        )
        loss = aggregate(losses, mask, how="token_mean")
        loss.backward()
        grad_norm = clipped_step(model, optimizer, config.optimiser.max_grad_norm)
        last = logits.detach().gather(1, batch.response_mask.sum(1, keepdim=True))[:, 0]
        on_step(
            history.log(
                "verifier",
                step,
                steps=config.steps,
                loss=loss,
                right=((last > 0) == (label == 1)).float().mean(),
                grad_norm=grad_norm,
            )
        )
    return model, history


def prefix_logits(model: ScalarModel, batch: Rollout) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of V after the prompt and after each response token.

    Returns:
        (logits, mask), both (B, R + 1): B responses of at most R tokens. The mask is True at the
        prompt's end and at real response tokens.
    """
    mask = torch.cat(
        [batch.response_mask.new_ones(len(batch.response_mask), 1), batch.response_mask], 1
    )
    return token_scores(model, batch)[:, batch.prompt_ids.shape[1] - 1 :], mask
