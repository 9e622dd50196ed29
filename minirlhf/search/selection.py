"""Best-of-n: sample n responses to a prompt, keep the one a scorer likes best. The policy stays as it is.

KL(best-of-n || policy) <= log n - (n - 1) / n        nats (an upper bound; Beirami et al. 2024)
"""

import math
from collections.abc import Callable

import torch
from einops import rearrange

from minirlhf.models.forward import decode
from minirlhf.models.sampling import SamplingConfig, sample_text


def best_of_n_kl(n: int) -> float:
    """log n - (n - 1) / n: the KL bound in nats; 0 for n = 1."""
    return math.log(n) - (n - 1) / n


def best_index(scores: torch.Tensor, n: int) -> torch.Tensor:
    """(N * n,) scores, each prompt's n side by side -> (N,) row numbers of the best; the first of equals."""
    grouped = rearrange(scores, "(p n) -> p n", n=n)
    return torch.arange(len(grouped)) * n + grouped.argmax(1)


def best_of_n(
    model,
    tokenizer,
    prompts: list[str],
    score: Callable,
    n: int,
    *,
    config: SamplingConfig = SamplingConfig(),
    seed: int = 0,
) -> list[str]:
    """The best of n sampled responses for each prompt; `score` takes a Rollout and gives (B,)."""
    rollouts = sample_text(
        model, tokenizer, [p for p in prompts for _ in range(n)], config=config, seed=seed
    )
    texts = [text for r in rollouts for text in decode(tokenizer, r)]
    scores = torch.cat([score(r) for r in rollouts])
    return [texts[i] for i in best_index(scores, n)]
