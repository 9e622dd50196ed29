"""The reward model: from pairs, one preferred, to a score.

    P(chosen > rejected) = sigmoid(r_chosen - r_rejected)        loss = -log P        (Bradley and Terry 1952)

The score is read at the last real token, EOS included. Afterwards `rewards.model.normalise_scores` shifts and scales
it to mean 0 and standard deviation 1 on samples of the SFT model, because a Bradley-Terry score has neither zero nor unit.
"""

from dataclasses import dataclass

from datasets import Dataset

from minirlhf.core.bradley_terry import last_token_scores, reward_model_loss
from minirlhf.loops.common import clipped_step, linear_decay, make_optimizer, shuffled_batches
from minirlhf.loops.config import OptimiserConfig
from minirlhf.models.forward import encode, token_scores
from minirlhf.models.heads import ScalarModel
from minirlhf.runtime import History, check, seed_all


@dataclass(frozen=True)
class RewardConfig:
    """Settings of reward-model training."""

    batch_size: int = 32  # pairs a step
    steps: int = 240
    max_response: int = 48  # tokens, EOS included
    centering_coef: float = 0.0  # coef * (r_c + r_r)^2, 0 .. 0.01 (Eisenstein et al. 2023)
    optimiser: OptimiserConfig = OptimiserConfig(lr=4e-4)
    seed: int = 0

    def __post_init__(self):
        check("batch_size", self.batch_size, self.batch_size >= 1, "at least 1")
        check("steps", self.steps, self.steps >= 1, "at least 1")
        check("centering_coef", self.centering_coef, self.centering_coef >= 0, "0 or more")


def train_reward_model(backbone, tokenizer, dataset: Dataset, config: RewardConfig = RewardConfig(), *,
                       history: History | None = None, on_step=lambda row: None) -> tuple[ScalarModel, History]:
    """Train `backbone` (a copy of the SFT model without its language-model head) on `prompt`, `chosen`, `rejected`.

    Returns:
        (ScalarModel, history); rows: loss (nats a pair), accuracy (strict >), margin (raw score), grad_norm.
    """
    history = History() if history is None else history
    generator = seed_all(config.seed)
    model = ScalarModel(backbone)
    optimizer = make_optimizer(model, config.optimiser)
    model.eval()
    for step, index in enumerate(shuffled_batches(len(dataset), config.batch_size, config.steps, generator)):
        # 1. one batch holds the chosen half, then the rejected half: one forward for both
        rows = dataset[index.tolist()]
        batch = encode(tokenizer, rows["prompt"] * 2, rows["chosen"] + rows["rejected"], max_response=config.max_response)
        chosen, rejected = last_token_scores(token_scores(model, batch), batch.attention_mask).chunk(2)
        # 2. the loss of each pair; a pair is the unit, so their plain mean
        loss = reward_model_loss(chosen, rejected, centering_coef=config.centering_coef).mean()
        linear_decay(optimizer, config.optimiser.lr, step, config.steps)
        loss.backward()
        grad_norm = clipped_step(model, optimizer, config.optimiser.max_grad_norm)
        margins = (chosen - rejected).detach()
        on_step(history.log("reward", step, steps=config.steps, loss=loss, accuracy=(margins > 0).float().mean(),
                            margin=margins.mean(), grad_norm=grad_norm))
    return model, history

