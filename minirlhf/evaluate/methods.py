"""Evaluation, the same for every method: shared prompts, several samples each, 95 % intervals.

Methods are compared on the same prompts, paired by prompt.
"""

import itertools
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from minirlhf.core.kl import log_ratio
from minirlhf.core.logprobs import entropy
from minirlhf.core.masking import masked_mean
from minirlhf.models.adapters import LanguageModel, Policy
from minirlhf.models.agent import Tool
from minirlhf.models.fit import end_ids
from minirlhf.models.forward import decode, policy_logits, policy_logprobs
from minirlhf.models.sampling import SamplingConfig, sample_text
from minirlhf.rewards.model import Judge
from minirlhf.runtime import check


@dataclass(frozen=True)
class Samples:
    """Sampled responses of one method, N in all, and what is measured on them.

    Each prompt has the same number of responses, next to each other.

        kl: (N,) log pi(y|x) - log pi_ref(y|x), nats per response, both at the sampling temperature.
            The responses come from pi, so the mean estimates KL(pi || pi_ref).
        lengths: (N,) tokens, EOS included.
        finished: (N,) bool, whether the response ended in EOS.
    """

    prompts: list[str]
    texts: list[str]
    kl: torch.Tensor
    lengths: torch.Tensor
    finished: torch.Tensor
    entropy: float  # nats per token, of the policy that sampled

    def select(self, index: torch.Tensor, *, kl: float) -> "Samples":
        """Some of the responses, as the samples of another method (best-of-n).

        Args:
            index: rows to keep.
            kl: the new method's KL in nats, known from a formula; every row gets this value.
        """
        rows = index.tolist()
        return Samples(
            [self.prompts[i] for i in rows],
            [self.texts[i] for i in rows],
            torch.full((len(rows),), kl, device="cpu"),
            self.lengths[index],
            self.finished[index],
            self.entropy,
        )


@torch.no_grad()
def draw(
    model: Policy,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    *,
    samples_per_prompt: int,
    reference: LanguageModel,
    config: SamplingConfig = SamplingConfig(),
    seed: int = 0,
) -> Samples:
    """Sample responses to each prompt, and measure KL, length and entropy.

    Args:
        model: the policy.
        samples_per_prompt: responses per prompt.
        reference: the reference policy, for the KL.
        config, seed: of the sampling.
    """
    repeated = [p for p in prompts for _ in range(samples_per_prompt)]
    rollouts = sample_text(model, tokenizer, repeated, config=config, seed=seed)
    kl, spread = [], []
    for r in rollouts:
        ref_logprobs = policy_logprobs(reference, r, temperature=config.temperature)
        kl.append(log_ratio(r.old_logprobs, ref_logprobs, r.action_mask).sum(1))
        logits = policy_logits(model, r).to(r.device)
        spread.append(
            masked_mean(
                entropy(logits, r.response_mask, temperature=config.temperature), r.response_mask
            )
        )
    return Samples(
        repeated,
        [text for r in rollouts for text in decode(tokenizer, r)],
        torch.cat(kl),
        torch.cat([r.response_mask.sum(1) for r in rollouts]),
        torch.cat([r.finished(end_ids(model, tokenizer)) for r in rollouts]),
        torch.stack(spread).mean().item(),
    )


def summary(samples: Samples, judges: dict[str, Judge], *, prompts_seed: int = 0) -> dict:
    """One row of the table of methods: mean scores with 95 % intervals, and other metrics.

    The intervals are bootstrapped over prompts. The row also has KL, length, entropy, the share of
    responses without EOS, and two measures of diversity, because a score must not be read without
    these.

    Args:
        samples: as `draw` returns them.
        judges: name -> (prompts, responses) -> scores (N,).
        prompts_seed: of the bootstrap.
    """
    row: dict[str, Any] = {}
    per_prompt = len(samples.texts) // len(dict.fromkeys(samples.prompts))
    for name, judge in judges.items():
        scores = judge(samples.prompts, samples.texts)
        by_prompt = scores.view(-1, per_prompt).mean(1)
        low, high = bootstrap(by_prompt, seed=prompts_seed)
        row |= {
            name: scores.mean().item(),
            f"{name}_low": low,
            f"{name}_high": high,
            f"{name}_by_prompt": by_prompt.tolist(),
        }
    opening, share = most_common_opening(samples.texts)
    return row | {
        "kl": samples.kl.mean().item(),
        "length": samples.lengths.float().mean().item(),
        "entropy": samples.entropy,
        "missing_eos": 1 - samples.finished.float().mean().item(),
        "distinct_2": distinct_n(samples.texts, 2),
        "opening": opening,
        "opening_share": share,
    }


def bootstrap(values: torch.Tensor, *, draws: int = 2000, seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap confidence interval of the mean (percentile method).

    Args:
        values: (N,) independent values, resampled with replacement.
        draws: number of resamples.

    Returns:
        (low, high).
    """
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(len(values), (draws, len(values)), generator=generator, device="cpu")
    ends = torch.tensor([0.025, 0.975], dtype=values.dtype, device="cpu")
    low, high = values.cpu()[index].mean(1).quantile(ends)
    return low.item(), high.item()


def with_ends(values: torch.Tensor, seed: int = 0) -> tuple[float, float, float]:
    """(mean, low, high): the mean of independent values, and its `bootstrap` interval."""
    return (values.mean().item(), *bootstrap(values, seed=seed))


def paired_difference(
    a: list[float], b: list[float], *, seed: int = 0
) -> tuple[float, float, float]:
    """Mean of a - b over the same prompts, with its 95 % bootstrap confidence interval.

    Args:
        a, b: one value per prompt, in the same order. With several seeds, give each prompt's mean
            over the seeds.

    Returns:
        (mean, low, high).

    Raises:
        ValueError: a and b are empty or differ in length.
    """
    check(
        "prompts",
        (len(a), len(b)),
        len(a) == len(b) >= 1,
        "the same number for a and b, at least 1",
    )
    difference = torch.tensor(a, device="cpu") - torch.tensor(b, device="cpu")
    return with_ends(difference, seed)


def pass_at_k(right: torch.Tensor, k: int) -> torch.Tensor:
    """pass@k: for each prompt, the chance that at least one of k samples is right.

        1 - C(n - c, k) / C(n, k)        c of the prompt's n samples are right

    The estimate is unbiased. For k = 1 it is the share of right samples. For k = n it says whether
    any sample is right. The simpler 1 - (1 - c/n)^k is too low on average.

    Args:
        right: (N, n) bool.
        k: from 1 to n.

    Returns:
        (N,), from 0 to 1.

    Raises:
        ValueError: right is not (N, n) bool, or k is out of range.

    Source: Chen et al. 2021 (Codex), equation 1.
    """
    check(
        "right",
        tuple(right.shape),
        right.dtype == torch.bool and right.dim() == 2,
        "of shape (N, n) and type bool",
    )
    n = right.shape[1]
    check("k", k, 1 <= k <= n, f"from 1 to the {n} samples of a prompt")
    wrong = n - right.sum(1).double()
    misses = torch.stack([(wrong - i).clamp(min=0) / (n - i) for i in range(k)])
    return 1 - misses.prod(0)


def pass_summary(
    model: Policy,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    right: Callable[..., Sequence[float]],
    *,
    samples: int,
    config: SamplingConfig,
    seed: int = 0,
    tool: Tool | None = None,
) -> dict:
    """Greedy accuracy, pass@1 and pass@n on problems whose answers can be verified.

    Each is given as a mean and by prompt. Entropy, length and the share of responses without EOS
    are those of the n samples per prompt. Entropy is estimated from the sampled tokens'
    log-probabilities. Entropy and length count the tokens that the policy chose.

    Args:
        right: a reward function by TRL's contract that returns 0 or 1.
        samples: n per prompt, at config's temperature.
        tool: what the policy can call.
    """
    greedy = sample_text(
        model, tokenizer, prompts, config=replace(config, greedy=True), batch_size=256, tool=tool
    )
    solved = (
        torch.tensor(
            right(prompts, [text for r in greedy for text in decode(tokenizer, r)]), device="cpu"
        )
        == 1
    )
    repeated = [prompt for prompt in prompts for _ in range(samples)]
    drawn = sample_text(
        model, tokenizer, repeated, config=config, seed=seed, batch_size=512, tool=tool
    )
    passed = (
        torch.tensor(
            right(repeated, [text for r in drawn for text in decode(tokenizer, r)]), device="cpu"
        )
        == 1
    ).view(-1, samples)
    one, most = pass_at_k(passed, 1), pass_at_k(passed, samples)
    zero = torch.tensor(0, device="cpu")
    tokens = sum((r.action_mask.sum() for r in drawn), start=zero)
    return {
        "greedy": solved.double().mean().item(),
        "pass_1": one.mean().item(),
        f"pass_{samples}": most.mean().item(),
        "greedy_by_prompt": solved.double().tolist(),
        "pass_1_by_prompt": one.tolist(),
        f"pass_{samples}_by_prompt": most.tolist(),
        "entropy": (-sum((r.old_logprobs.sum() for r in drawn), start=zero) / tokens).item(),
        "length": (tokens / len(repeated)).item(),
        "missing_eos": 1
        - torch.cat([r.finished(end_ids(model, tokenizer)) for r in drawn]).float().mean().item(),
    }


def sharpened_or_learned(before: dict, after: dict, *, samples: int = 16) -> str:
    """Tell whether a gain in pass@1 is learning or sharpening.

    Returns:
        'no gain' if pass@1 does not rise. 'learning' if pass@n rises as well: the policy solves
        problems that the start did not solve in n samples. 'sharpening' if pass@n does not rise:
        the policy only makes more likely what the start could already do in n samples.

    A value rises if the 95 % bootstrap interval of its paired difference over problems is above 0.
    If the start already solves nearly all problems in n samples, the two cases cannot be told
    apart.

    Args:
        before, after: rows of `pass_summary` on the same problems.
        samples: n.
    """
    one, most = (
        paired_difference(after[key], before[key])
        for key in ("pass_1_by_prompt", f"pass_{samples}_by_prompt")
    )
    return "no gain" if one[1] <= 0 else "learning" if most[1] > 0 else "sharpening"


def first_samples(prompts: list[str], texts: list[str], n: int) -> dict[str, str]:
    """The first sample of each of the first n prompts, as {prompt: response}.

    It is not selected by score.
    """
    return {prompt: texts[prompts.index(prompt)] for prompt in list(dict.fromkeys(prompts))[:n]}


def win_rate(a: list[float], b: list[float]) -> float:
    """Win rate: the share of prompts on which a scores above b. A tie counts one half.

    Swapping a and b gives 1 minus the win rate.
    """
    ours, theirs = torch.tensor(a, device="cpu"), torch.tensor(b, device="cpu")
    return wins(ours, theirs).mean().item()


def wins(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """(N,) 1 where a is above b, one half where both are equal, and 0 elsewhere."""
    return (a > b).to(a.dtype) + 0.5 * (a == b).to(a.dtype)


def distinct_n(texts: list[str], n: int, *, budget: int = 500, seed: int = 0) -> float:
    """distinct-n: the share of different word n-grams among the first `budget` n-grams.

    The share falls as the amount of text grows. A fixed budget keeps shorter responses from looking
    more varied. If there are fewer n-grams than the budget, all are used, and the share is not
    comparable.

    Args:
        texts: responses, read in a random order that `seed` fixes.
        n: words per n-gram.
    """
    order = random.Random(seed).sample(range(len(texts)), len(texts))
    grams = (gram for i in order for gram in _grams(texts[i], n))
    seen = list(itertools.islice(grams, budget))
    return len(set(seen)) / len(seen) if seen else 0.0


def most_common_opening(texts: list[str], n: int = 4) -> tuple[str, float]:
    """The most common first n words, and the share of responses that start with them.

    It measures how much the responses sound alike.
    """
    openings = Counter(" ".join(re.findall(r"[\w']+", text.lower())[:n]) for text in texts)
    ((opening, count),) = openings.most_common(1)
    return opening, count / len(texts)


def _grams(text: str, n: int) -> list[tuple[str, ...]]:
    """The word n-grams of a text, in order."""
    words = re.findall(r"[\w']+", text.lower())
    return list(zip(*(words[i:] for i in range(n)), strict=False))
