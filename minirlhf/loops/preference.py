"""Preference optimisation: from pairs to a policy, no reward model and no sampling.

    loss = -log sigmoid(beta [log pi/pi_ref (chosen) - log pi/pi_ref (rejected)])        (Rafailov et al. 2023)
"""

from dataclasses import dataclass

import torch
from datasets import Dataset

from minirlhf.core.logprobs import sequence_logprobs
from minirlhf.core.preference import dpo, implicit_rewards
from minirlhf.loops.checkpoint import Checkpoint
from minirlhf.loops.common import clipped_step, linear_decay, make_optimizer, shuffled_batches
from minirlhf.loops.config import OptimiserConfig
from minirlhf.models.adapters import reference_of
from minirlhf.models.forward import encode, policy_logprobs
from minirlhf.runtime import History, check, seed_all
from minirlhf.tasks.formats import check_rows


@dataclass(frozen=True)
class DPOConfig:
    """Settings of DPO."""

    batch_size: int = 32  # pairs a step
    steps: int = 100
    beta: float = 0.1  # reward units per nat, 0.01 .. 0.5
    max_response: int = 32  # tokens, EOS included
    optimiser: OptimiserConfig = OptimiserConfig(lr=5e-5)
    seed: int = 0

    def __post_init__(self):
        check("batch_size", self.batch_size, self.batch_size >= 1, "at least 1")
        check("steps", self.steps, self.steps >= 1, "at least 1")
        check("beta", self.beta, 0 < self.beta < float("inf"), "above 0 and finite")


def train_dpo(model, tokenizer, dataset: Dataset, config: DPOConfig = DPOConfig(), *, reference=None,
              history: History | None = None, on_step=lambda row: None, checkpoint: Checkpoint | None = None):
    """Train `model` in place on columns `prompt`, `chosen`, `rejected`.

    Returns:
        (model, history). Rows: loss (ln 2 at step 0), reward_chosen, reward_rejected, margin (beta * log-ratios, reward units),
        accuracy (strict >), logps_chosen, logps_rejected (nats a sequence; both may fall), grad_norm.
    """
    check_rows(dataset, "prompt", "chosen", "rejected")
    history = History() if history is None else history
    seed_all(config.seed)
    reference = reference_of(model) if reference is None else reference.eval()  # under no_grad, never trained
    optimizer = make_optimizer(model, config.optimiser)
    model.eval()  # dropout off: the loss must be ln 2 at step 0
    run = (checkpoint or Checkpoint()).attach("dpo", config, dataset, [model], [optimizer], history)
    for step, index in run.steps(shuffled_batches(len(dataset), config.batch_size, config.steps, config.seed)):
        linear_decay(optimizer, config.optimiser.lr, step, config.steps)
        done = []
        for micro in config.optimiser.split(index):
            # 1. chosen and rejected in one batch; sums of log-probabilities over the response
            rows = dataset[micro.tolist()]
            batch = encode(tokenizer, rows["prompt"] * 2, rows["chosen"] + rows["rejected"], max_response=config.max_response)
            logps = sequence_logprobs(policy_logprobs(model, batch), batch.response_mask)
            with torch.no_grad():
                ref_logps = sequence_logprobs(policy_logprobs(reference, batch), batch.response_mask)
            # 2. the loss of each pair; a micro-batch adds its share of their mean
            losses = dpo(*logps.chunk(2), *ref_logps.chunk(2), beta=config.beta)
            (losses.sum() / len(index)).backward()
            rewards = implicit_rewards(logps, ref_logps, beta=config.beta)
            done.append(torch.stack([losses.detach(), *rewards.chunk(2), *logps.detach().chunk(2)]))
        grad_norm = clipped_step(model, optimizer, config.optimiser.max_grad_norm)
        # 3. log
        losses, reward_chosen, reward_rejected, logps_chosen, logps_rejected = torch.cat(done, 1)
        margins = reward_chosen - reward_rejected
        on_step(history.log(
            "dpo", step, steps=config.steps, loss=losses.mean(), reward_chosen=reward_chosen.mean(), margin=margins.mean(),
            reward_rejected=reward_rejected.mean(), accuracy=(margins > 0).float().mean(),
            logps_chosen=logps_chosen.mean(), logps_rejected=logps_rejected.mean(), grad_norm=grad_norm))
    return model, history
