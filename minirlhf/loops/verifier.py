"""A verifier: how likely is it, after each token, that the answer will be right? (Cobbe et al. 2021, token-level)

    loss = mean over the prompt's end and all response tokens of -[z log V_t + (1 - z) log (1 - V_t)]        z = 1: right in the end

Every prefix of a text has the text's label, so V_t is the mean label of what begins like this: the value of whoever wrote the texts.
"""

from dataclasses import dataclass

import torch
from datasets import Dataset
from torch.nn.functional import binary_cross_entropy_with_logits

from minirlhf.core.masking import aggregate
from minirlhf.core.rollout import Rollout
from minirlhf.loops.checkpoint import Checkpoint
from minirlhf.loops.common import clipped_step, linear_decay, make_optimizer, shuffled_batches
from minirlhf.loops.config import OptimiserConfig
from minirlhf.models.forward import encode, token_scores
from minirlhf.models.heads import ScalarModel
from minirlhf.runtime import History, check, seed_all
from minirlhf.tasks.formats import check_rows


@dataclass(frozen=True)
class VerifierConfig:
    """Settings of a verifier's training."""

    batch_size: int = 64  # texts a step
    steps: int = 400
    max_response: int = 32  # tokens, EOS included
    optimiser: OptimiserConfig = OptimiserConfig(lr=1e-3)
    seed: int = 0

    def __post_init__(self):
        check("batch_size", self.batch_size, self.batch_size >= 1, "at least 1")
        check("steps", self.steps, self.steps >= 1, "at least 1")


def train_verifier(
    backbone,
    tokenizer,
    dataset: Dataset,
    config: VerifierConfig = VerifierConfig(),
    *,
    history: History | None = None,
    on_step=lambda row: None,
    checkpoint: Checkpoint | None = None,
) -> tuple[ScalarModel, History]:
    """Train `backbone` with a new head on columns `prompt`, `completion`, `label` (True: right).

    Returns:
        (ScalarModel whose scores are logits of V, history); rows: loss (nats a token), right (share of texts on whose side V ends),
        grad_norm.
    """
    check_rows(dataset, "prompt", "completion", "label")
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
        linear_decay(optimizer, config.optimiser.lr, step, config.steps)
        rows = dataset[index.tolist()]
        batch = encode(
            tokenizer, rows["prompt"], rows["completion"], max_response=config.max_response
        )
        label = torch.tensor(rows["label"]).float()
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
    """Logits of V (B, R + 1) after the prompt and after each response token, and which of them are real."""
    mask = torch.cat(
        [torch.ones(len(batch.response_mask), 1, dtype=torch.bool), batch.response_mask], 1
    )
    return token_scores(model, batch)[:, batch.prompt_ids.shape[1] - 1 :], mask
