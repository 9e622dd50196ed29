"""A real language model on a laptop: SmolLM2-135M, low-rank adapters, the same ratings, the same loops.

Two ways to learn a preference from pairs of reviews of a film, both judged on pairs of films that neither saw:
    a reward head    P(a over b) = sigmoid(r(a) - r(b))
    DPO              P(a over b) = sigmoid(beta log pi(a)/ref(a) - beta log pi(b)/ref(b))       its implicit reward
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset

from minirlhf.core.logprobs import sequence_logprobs
from minirlhf.core.preference import implicit_rewards
from minirlhf.core.rollout import Rollout
from minirlhf.evaluate import bootstrap
from minirlhf.loops.checkpoint import Checkpoint
from minirlhf.loops.config import OptimiserConfig
from minirlhf.loops.preference import DPOConfig, train_dpo
from minirlhf.loops.reward import RewardConfig, train_reward_model
from minirlhf.models.adapters import BelowAdapter, fitted
from minirlhf.models.forward import encode, policy_logprobs
from minirlhf.models.load import load_policy, load_scalar, save_policy
from minirlhf.models.sampling import sample_text
from minirlhf.rewards.model import normalise_scores, prefix_scores, text_judge
from minirlhf.runtime import SMOLLM2
from minirlhf.tasks import reviews

NOTES_SENTENCE = (
    "I love to walk the dog, what do you like?"  # scored prefix by prefix in many course notes
)


@dataclass(frozen=True)
class SmolConfig:
    """Settings of the demonstration: some minutes a stage on 2 cores."""

    model: str = SMOLLM2
    rank: int = 16  # of the adapters
    pairs: int = 40_000  # drawn from the reward films; how many are read is steps times batch
    held_out: int = 600  # pairs of the split's films to judge on
    split: str = "test"
    reward: RewardConfig = RewardConfig(
        steps=90, batch_size=32, dropout=0.0, max_response=32, optimiser=OptimiserConfig(lr=3e-4)
    )
    dpo: DPOConfig = DPOConfig(
        steps=40, batch_size=16, max_response=32, optimiser=OptimiserConfig(lr=3e-4)
    )


def run(
    folder: Path, config: SmolConfig, sentence: str, on_step: Callable = lambda row: None
) -> list[dict]:
    """Train both, save both as ordinary models; returns a row each: accuracy on held-out pairs with its 95 % interval over films.

    The row of tiny-reviews-reward is of the same pairs; a last row holds the reward of every prefix of `sentence`, in both readings.
    """
    policy, tokenizer = load_policy(config.model)
    cut = config.reward.max_response
    pairs = reviews.preference_pairs(
        "reward", config.pairs, seed=config.reward.seed, max_tokens=cut, tokenizer=tokenizer
    )
    held_out = reviews.preference_pairs(
        config.split, config.held_out, seed=17, max_tokens=cut, tokenizer=tokenizer
    )
    started = time.time()
    samples = sample_text(policy, tokenizer, reviews.rl_prompts()[:64], seed=config.reward.seed)
    with Checkpoint(folder / "reward.training.safetensors", resume=True) as checkpoint:
        backbone = fitted(policy.base_model, lora=config.rank, bf16=True)
        scorer, _ = train_reward_model(
            backbone, tokenizer, pairs, config.reward, on_step=on_step, checkpoint=checkpoint
        )
    normalise_scores(scorer, samples, tokenizer.eos_token_id).save(folder / "reward", tokenizer)
    judge = text_judge([scorer], tokenizer, max_response=cut)
    rows = [
        {
            "method": "reward head",
            **accuracy(held_out, judge),
            "seconds": time.time() - started + checkpoint.earlier,
        }
    ]
    tiny, its_tokenizer = load_scalar("tiny-reviews-reward")
    rows.append(
        {
            "method": "tiny-reviews-reward",
            **accuracy(held_out, text_judge([tiny], its_tokenizer, max_response=2 * cut)),
        }
    )
    tokens, with_eos, one_pass = prefix_scores(scorer, tokenizer, "the film\n", sentence)
    policy, started = fitted(load_policy(config.model)[0], lora=config.rank, bf16=True), time.time()
    with Checkpoint(folder / "dpo.training.safetensors", resume=True) as checkpoint:
        train_dpo(policy, tokenizer, pairs, config.dpo, on_step=on_step, checkpoint=checkpoint)
    save_policy(policy, tokenizer, folder / "dpo")
    judge = implicit_judge(policy, tokenizer, beta=config.dpo.of_loss["beta"], max_response=cut)
    rows.append(
        {
            "method": "DPO's implicit reward",
            **accuracy(held_out, judge),
            "seconds": time.time() - started + checkpoint.earlier,
        }
    )
    rows.append(
        {
            "method": "prefixes",
            "tokens": tokens,
            "with_eos": with_eos.tolist(),
            "one_pass": one_pass.tolist(),
        }
    )
    for stage in ("reward", "dpo"):
        (folder / f"{stage}.training.safetensors").unlink()
    return rows


def accuracy(pairs: Dataset, judge: Callable) -> dict[str, float]:
    """How often the judge prefers the chosen text: the mean over films of each film's share, and its 95 % interval over films."""
    rows = pairs[:]
    right = (
        judge(rows["prompt"], rows["chosen"]) > judge(rows["prompt"], rows["rejected"])
    ).tolist()
    films = {
        prompt: [r for r, p in zip(right, rows["prompt"], strict=True) if p == prompt]
        for prompt in rows["prompt"]
    }
    shares = torch.tensor([sum(film) / len(film) for film in films.values()])
    low, high = bootstrap(shares)
    return {
        "accuracy": shares.mean().item(),
        "low": low,
        "high": high,
        "films": len(films),
        "pairs": len(right),
    }


def implicit_judge(
    policy, tokenizer, *, beta: float, max_response: int, batch_size: int = 32
) -> Callable:
    """(prompts, responses) -> (N,): DPO's own reward, beta log pi / pi_ref, reward units; the reference is what lies below the adapter."""
    reference = BelowAdapter(policy)

    @torch.no_grad()
    def logps(model, batch: Rollout):
        return sequence_logprobs(policy_logprobs(model, batch), batch.response_mask)

    def judge(prompts, responses):
        batches = (
            encode(
                tokenizer,
                prompts[i : i + batch_size],
                responses[i : i + batch_size],
                max_response=max_response,
            )
            for i in range(0, len(prompts), batch_size)
        )
        return torch.cat(
            [implicit_rewards(logps(policy, b), logps(reference, b), beta=beta) for b in batches]
        )

    return judge
