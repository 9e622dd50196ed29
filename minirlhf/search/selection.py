"""Best-of-n sampling: sample n responses to a prompt and keep the one with the highest score.

The policy's weights do not change. core/best_of_n.py has the formulas: how far best-of-n is from
the policy, and the mean of another score of the response that is kept.
"""

import torch
from datasets import Dataset
from einops import rearrange
from transformers import PreTrainedTokenizerBase

from minirlhf.core.rollout import Score
from minirlhf.models.adapters import Policy
from minirlhf.models.forward import decode
from minirlhf.models.sampling import SamplingConfig, sample_text


def best_index(scores: torch.Tensor, n: int) -> torch.Tensor:
    """Row numbers (N,) of the best of each prompt's n responses; the first one if scores are equal.

    Args:
        scores: (N * n,), the n scores of a prompt next to each other.
    """
    grouped = rearrange(scores, "(p n) -> p n", n=n)
    return torch.arange(len(grouped), device=grouped.device) * n + grouped.argmax(1)


def best_of_n(
    model: Policy,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    score: Score,
    n: int,
    *,
    config: SamplingConfig = SamplingConfig(),
    seed: int = 0,
) -> list[str]:
    """The response with the highest score among n samples, for each prompt.

    Args:
        score: Rollout -> scores (B,).
        n: samples per prompt.
        config, seed: of the sampling.

    Returns:
        One response per prompt, as text.
    """
    rollouts = sample_text(
        model, tokenizer, [p for p in prompts for _ in range(n)], config=config, seed=seed
    )
    texts = [text for r in rollouts for text in decode(tokenizer, r)]
    scores = torch.cat([score(r) for r in rollouts])
    return [texts[i] for i in best_index(scores, n)]


def best_of_n_rows(
    model: Policy,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    score: Score,
    n: int,
    *,
    seed: int = 0,
) -> Dataset:
    """Demonstrations for SFT from the policy's own samples (rejection sampling).

    Returns:
        Columns prompt and completion: for each prompt the best of n samples.
    """
    texts = best_of_n(model, tokenizer, prompts, score, n, seed=seed)
    return Dataset.from_dict({"prompt": prompts, "completion": texts})
