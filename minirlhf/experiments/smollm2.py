"""SmolLM2-135M on a laptop: the same ratings and the same loops, with low-rank adapters.

Two ways to learn a preference from pairs of reviews of one film:
    a reward head   P(a over b) = sigmoid(r(a) - r(b))
    DPO             P(a over b) = sigmoid(beta log pi(a)/pi_ref(a) - beta log pi(b)/pi_ref(b))
Both are judged on pairs of films that neither was trained on. The argument of DPO's sigmoid is the
difference of its implicit rewards.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from minirlhf.core.logprobs import sequence_logprobs
from minirlhf.core.preference import implicit_rewards
from minirlhf.core.rollout import Rollout
from minirlhf.evaluate import bootstrap
from minirlhf.loops.checkpoint import Checkpoint
from minirlhf.loops.config import OptimiserConfig
from minirlhf.loops.preference import DPOConfig, train_dpo
from minirlhf.loops.reward import RewardConfig, train_reward_model
from minirlhf.models.adapters import BelowAdapter, LanguageModel, fitted, has_adapter
from minirlhf.models.forward import encode, policy_logprobs
from minirlhf.models.heads import ScalarModel
from minirlhf.models.load import load_policy, load_scalar, save_policy
from minirlhf.models.sampling import sample_text
from minirlhf.rewards.model import Judge, normalise_scores, prefix_scores, text_judge
from minirlhf.runtime import SMOLLM2, OnStep, check_folder
from minirlhf.tasks import reviews

if TYPE_CHECKING:  # importing peft takes two seconds
    from peft import PeftModel

# Many course notes score this sentence prefix by prefix.
NOTES_SENTENCE = "I love to walk the dog, what do you like?"


@dataclass(frozen=True)
class SmolConfig:
    """Settings of the demonstration: some minutes a stage on 2 cores."""

    model: str = SMOLLM2
    rank: int = 16  # of the adapters
    pairs: int = 40_000  # drawn from the reward films; training reads steps * batch_size of them
    held_out: int = 600  # pairs to judge on, from the films of `split`
    split: str = "test"
    sentence: str = NOTES_SENTENCE  # every prefix of it is scored
    reward: RewardConfig = RewardConfig(
        steps=90, batch_size=32, dropout=0.0, max_response=32, optimiser=OptimiserConfig(lr=3e-4)
    )
    dpo: DPOConfig = DPOConfig(
        steps=40, batch_size=16, max_response=32, optimiser=OptimiserConfig(lr=3e-4)
    )


def train_and_compare(
    folder: Path, config: SmolConfig = SmolConfig(), *, on_step: OnStep = lambda row: None
) -> list[dict]:
    """Train a reward head and DPO, save both as ordinary models, and compare them.

    Returns:
        One row each for the reward head, tiny-reviews-reward and DPO: accuracy on the same
        held-out pairs with its 95 % interval over films, and the seconds of training. A last row
        holds the reward of every prefix of `config.sentence`, read in two ways (`prefix_scores`).
    """
    for stage in ("reward", "dpo"):
        check_folder(folder / stage)
    policy, tokenizer = load_policy(config.model)
    cut = config.reward.max_response
    limits: dict[str, Any] = {"max_tokens": cut, "tokenizer": tokenizer}
    pairs = reviews.preference_pairs("reward", config.pairs, seed=config.reward.seed, **limits)
    held_out = reviews.preference_pairs(config.split, config.held_out, seed=17, **limits)
    scorer, seconds = _train_reward_head(folder, config, policy, tokenizer, pairs, on_step)
    judge = text_judge([scorer], tokenizer, max_response=cut)
    rows = [{"method": "reward head", **accuracy(held_out, judge), "seconds": seconds}]
    tiny, its_tokenizer = load_scalar("tiny-reviews-reward")
    judge = text_judge([tiny], its_tokenizer, max_response=2 * cut)
    rows.append({"method": "tiny-reviews-reward", **accuracy(held_out, judge)})
    tokens, with_eos, one_pass = prefix_scores(scorer, tokenizer, "the film\n", config.sentence)
    trained, seconds = _train_dpo(folder, config, tokenizer, pairs, on_step)
    beta = config.dpo.of_loss["beta"]
    assert beta is not None  # every loss has one
    judge = implicit_judge(trained, tokenizer, beta=beta, max_response=cut)
    rows.append(
        {"method": "DPO's implicit reward", **accuracy(held_out, judge), "seconds": seconds}
    )
    prefixes = {"with_eos": with_eos.tolist(), "one_pass": one_pass.tolist()}
    rows.append({"method": "prefixes", "tokens": tokens, **prefixes})
    for stage in ("reward", "dpo"):
        (folder / f"{stage}.training.safetensors").unlink()
    return rows


def _train_reward_head(
    folder: Path,
    config: SmolConfig,
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Dataset,
    on_step: OnStep,
) -> tuple[ScalarModel, float]:
    """(reward model, seconds); resumes, and saves the model."""
    started = time.time()
    samples = sample_text(policy, tokenizer, reviews.rl_prompts()[:64], seed=config.reward.seed)
    with Checkpoint(folder / "reward.training.safetensors", resume=True) as checkpoint:
        backbone = fitted(policy.base_model, lora=config.rank, bf16=True)
        on: dict[str, Any] = {"on_step": on_step, "checkpoint": checkpoint}
        scorer, _ = train_reward_model(backbone, tokenizer, pairs, config.reward, **on)
    normalise_scores(scorer, samples, tokenizer.eos_token_id).save(folder / "reward", tokenizer)
    return scorer, time.time() - started + checkpoint.earlier


def _train_dpo(
    folder: Path,
    config: SmolConfig,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Dataset,
    on_step: OnStep,
) -> tuple["PeftModel", float]:
    """(policy, seconds); resumes, and saves the policy."""
    policy, started = fitted(load_policy(config.model)[0], lora=config.rank, bf16=True), time.time()
    assert has_adapter(policy)  # the rank is above 0
    with Checkpoint(folder / "dpo.training.safetensors", resume=True) as checkpoint:
        train_dpo(policy, tokenizer, pairs, config.dpo, on_step=on_step, checkpoint=checkpoint)
    save_policy(policy, tokenizer, folder / "dpo")
    return policy, time.time() - started + checkpoint.earlier


def accuracy(pairs: Dataset, judge: Judge) -> dict[str, float]:
    """How often the judge gives the chosen text the higher score, with a 95 % interval over films.

    The accuracy is the mean over films of each film's own share.
    """
    rows = pairs[:]
    chosen, rejected = (judge(rows["prompt"], rows[side]) for side in ("chosen", "rejected"))
    films: dict[str, list[bool]] = {prompt: [] for prompt in rows["prompt"]}
    for prompt, right in zip(rows["prompt"], (chosen > rejected).tolist(), strict=True):
        films[prompt].append(right)
    shares = torch.tensor([sum(film) / len(film) for film in films.values()], device="cpu")
    low, high = bootstrap(shares)
    return {
        "accuracy": shares.mean().item(),
        "low": low,
        "high": high,
        "films": len(films),
        "pairs": len(rows["prompt"]),
    }


def implicit_judge(
    policy: "PeftModel",
    tokenizer: PreTrainedTokenizerBase,
    *,
    beta: float,
    max_response: int,
    batch_size: int = 32,
) -> Judge:
    """A judge that scores with DPO's implicit reward, beta log pi / pi_ref.

    The reference policy is the model without its adapter. The judge takes prompts and responses
    and returns (N,) scores in reward units.
    """
    reference = BelowAdapter(policy)

    @torch.no_grad()
    def logps(model: LanguageModel, batch: Rollout) -> torch.Tensor:
        return sequence_logprobs(policy_logprobs(model, batch), batch.response_mask)

    def judge(prompts: list[str], responses: list[str]) -> torch.Tensor:
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
