"""Scores from a process reward model: one number for a response, from those of its steps."""

import torch

from minirlhf.core.process_reward import process_reward_score
from minirlhf.core.rollout import Rollout, Score
from minirlhf.models.heads import ScalarModel
from minirlhf.models.steps import step_logits


def process_score(model: ScalarModel, ends: tuple[int, ...], *, how: str = "min") -> Score:
    """The score function of a process reward model, as loops and best-of-n take it.

    Args:
        ends: the ids that end a step, see `models.step_end_ids`.
        how: last, min or product, see `core.process_reward_score`.

    Returns:
        Rollout -> scores (B,), log-probabilities in nats.
    """

    @torch.no_grad()
    def score(rollout: Rollout) -> torch.Tensor:
        return process_reward_score(*step_logits(model, rollout, ends), how=how)

    score.model = model  # type: ignore[attr-defined]  # loops check that it can read all prompts
    return score
