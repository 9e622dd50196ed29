"""One way to judge every method: the same prompts, several samples each, paired by prompt, with intervals."""

import itertools
import random
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from minirlhf.core.logprobs import entropy
from minirlhf.core.masking import masked_mean
from minirlhf.models.forward import decode, policy_logits, policy_logprobs
from minirlhf.models.sampling import SamplingConfig, sample_text
from minirlhf.rewards.model import Judge
from minirlhf.runtime import check


@dataclass(frozen=True)
class Samples:
    """Responses of one method: `samples_per_prompt` for each prompt, a prompt's side by side.

    kl: (N,) log pi(y|x) - log pi_ref(y|x), nats a sequence: its mean estimates KL(pi || ref), tokens from pi.
    """

    prompts: list[str]
    texts: list[str]
    kl: torch.Tensor
    lengths: torch.Tensor
    finished: torch.Tensor
    entropy: float  # nats a token, of the policy that sampled

    def select(self, index: torch.Tensor, *, kl: float) -> "Samples":
        """Some rows, as another method's samples whose KL is known by a formula (best-of-n)."""
        rows = index.tolist()
        return Samples(
            [self.prompts[i] for i in rows],
            [self.texts[i] for i in rows],
            torch.full((len(rows),), kl),
            self.lengths[index],
            self.finished[index],
            self.entropy,
        )


@torch.no_grad()
def draw(
    model,
    tokenizer,
    prompts: list[str],
    *,
    samples_per_prompt: int,
    reference,
    config=SamplingConfig(),
    seed=0,
) -> Samples:
    """Sample each prompt several times and measure what does not need a judge."""
    repeated = [p for p in prompts for _ in range(samples_per_prompt)]
    rollouts = sample_text(model, tokenizer, repeated, config=config, seed=seed)
    kl, spread = [], []
    for r in rollouts:
        log_ratio = r.old_logprobs - policy_logprobs(reference, r, temperature=config.temperature)
        kl.append((log_ratio * r.response_mask).sum(1))
        logits = policy_logits(model, r)
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
        torch.cat([r.finished(tokenizer.eos_token_id) for r in rollouts]),
        torch.stack(spread).mean().item(),
    )


def summary(samples: Samples, judges: dict[str, Judge], *, prompts_seed: int = 0) -> dict:
    """Mean of each judge with a 95 % bootstrap interval over prompts, and the numbers that must stand beside a score."""
    row = {}
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
    """95 % percentile interval of the mean of (N,) independent values, resampled with replacement."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(len(values), (draws, len(values)), generator=generator)
    low, high = values[index].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=values.dtype))
    return low.item(), high.item()


def paired_difference(
    a: list[float], b: list[float], *, seed: int = 0
) -> tuple[float, float, float]:
    """Mean of a - b over the same prompts, and its 95 % bootstrap interval. With several seeds, pass their mean by prompt."""
    check("prompts", (len(a), len(b)), len(a) == len(b) >= 1, "as many for both, at least 1")
    difference = torch.tensor(a) - torch.tensor(b)
    return (difference.mean().item(), *bootstrap(difference, seed=seed))


def pass_at_k(right: torch.Tensor, k: int) -> torch.Tensor:
    """(N,) for each prompt the chance that one of k samples is right, estimated without bias from n >= k of them.

        1 - C(n - c, k) / C(n, k)        c of the n samples are right

    k = 1 is the share that is right; k = n is whether any is. The plug-in 1 - (1 - c/n)^k is too low.

    Args:
        right: (N, n) bool. Source: Chen et al. 2021 (Codex), equation 1.
    """
    check(
        "right",
        tuple(right.shape),
        right.dtype == torch.bool and right.dim() == 2,
        "(N, n) booleans",
    )
    n = right.shape[1]
    check("k", k, 1 <= k <= n, f"from 1 to the {n} samples of a prompt")
    wrong = n - right.sum(1).double()
    misses = torch.stack([(wrong - i).clamp(min=0) / (n - i) for i in range(k)])
    return 1 - misses.prod(0)


def pass_summary(
    model,
    tokenizer,
    prompts: list[str],
    right: Callable,
    *,
    samples: int,
    config: SamplingConfig,
    seed: int = 0,
) -> dict:
    """Greedy accuracy, pass@1 and pass@n on problems that can be verified, each also by prompt; entropy and length of the samples.

    Args:
        right: a reward function by TRL's contract that gives 0 or 1. samples: n a prompt, at config's temperature.
    """
    greedy = sample_text(
        model, tokenizer, prompts, config=replace(config, greedy=True), batch_size=256
    )
    solved = (
        torch.tensor(right(prompts, [text for r in greedy for text in decode(tokenizer, r)])) == 1
    )
    repeated = [prompt for prompt in prompts for _ in range(samples)]
    drawn = sample_text(model, tokenizer, repeated, config=config, seed=seed, batch_size=512)
    passed = (
        torch.tensor(right(repeated, [text for r in drawn for text in decode(tokenizer, r)])) == 1
    ).view(-1, samples)
    one, most = pass_at_k(passed, 1), pass_at_k(passed, samples)
    tokens = sum(r.response_mask.sum() for r in drawn)
    return {
        "greedy": solved.double().mean().item(),
        "pass_1": one.mean().item(),
        f"pass_{samples}": most.mean().item(),
        "greedy_by_prompt": solved.double().tolist(),
        "pass_1_by_prompt": one.tolist(),
        f"pass_{samples}_by_prompt": most.tolist(),
        "entropy": (-sum(r.old_logprobs.sum() for r in drawn) / tokens).item(),
        "length": (tokens / len(repeated)).item(),
        "missing_eos": 1
        - torch.cat([r.finished(tokenizer.eos_token_id) for r in drawn]).float().mean().item(),
    }


def sharpened_or_learned(before: dict, after: dict, *, samples: int = 16) -> str:
    """What a gain in pass@1 is: 'learning' if pass@n rises with it, 'sharpening' if it does not, 'no gain' if pass@1 does not rise.

    Rises: the 95 % bootstrap interval of the paired difference over problems lies above 0. Sharpening brings out what the start could
    already do in n tries; learning solves problems that it could not. Where the start solves nearly all in n tries, nobody can tell.
    """
    one, most = (
        paired_difference(after[key], before[key])
        for key in ("pass_1_by_prompt", f"pass_{samples}_by_prompt")
    )
    return "no gain" if one[1] <= 0 else "learning" if most[1] > 0 else "sharpening"


def first_samples(prompts: list[str], texts: list[str], n: int) -> dict[str, str]:
    """The first sample of each of the first n prompts: prompt -> text, unselected."""
    return {prompt: texts[prompts.index(prompt)] for prompt in list(dict.fromkeys(prompts))[:n]}


def win_rate(a: list[float], b: list[float]) -> float:
    """Share of prompts on which a scores above b; a tie counts one half. Swapping a and b gives 1 minus it."""
    a, b = torch.tensor(a), torch.tensor(b)
    return ((a > b).float() + 0.5 * (a == b).float()).mean().item()


def distinct_n(texts: list[str], n: int, *, budget: int = 500, seed: int = 0) -> float:
    """Share of distinct word n-grams among the first `budget` of them, texts in a seeded order.

    A fixed budget, because the share falls with the amount of text: without it shorter samples would look more varied. (Where there are
    fewer n-grams all are used, and the share is not comparable.)
    """
    order = random.Random(seed).sample(range(len(texts)), len(texts))
    grams = (gram for i in order for gram in _grams(texts[i], n))
    seen = list(itertools.islice(grams, budget))
    return len(set(seen)) / len(seen) if seen else 0.0


def most_common_opening(texts: list[str], n: int = 4) -> tuple[str, float]:
    """The commonest first n words and the share of texts that begin with them: a number for "they all sound alike"."""
    openings = Counter(" ".join(re.findall(r"[\w']+", text.lower())[:n]) for text in texts)
    ((opening, count),) = openings.most_common(1)
    return opening, count / len(texts)


def _grams(text: str, n: int) -> list[tuple[str, ...]]:
    words = re.findall(r"[\w']+", text.lower())
    return list(zip(*(words[i:] for i in range(n)), strict=False))
