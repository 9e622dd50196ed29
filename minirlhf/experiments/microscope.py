"""PPO, read token by token: a run at several steps, and a batch at each of its updates.

These are the records that the token microscope shows.
"""

import time
from dataclasses import replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from minirlhf import evaluate
from minirlhf.core.policy_gradient import ppo_clip
from minirlhf.core.returns import gae
from minirlhf.core.rollout import Rollout
from minirlhf.experiments.practice import judged, scoring
from minirlhf.loops.config import OptimiserConfig
from minirlhf.loops.ppo import PPOConfig, PPOFormulas, train_ppo
from minirlhf.models.adapters import Policy
from minirlhf.models.load import load_policy, load_scalar
from minirlhf.models.sampling import sample, sample_text
from minirlhf.rewards.model import rollout_score
from minirlhf.runtime import OnStep
from minirlhf.tasks import reviews
from minirlhf.tour import trainable

SAMPLES_SEED = 1000  # of the responses that are read
DIGITS = 5  # significant digits of a recorded number


def microscope_run(settings: dict, config: PPOConfig, on_step: OnStep) -> tuple[dict, list[dict]]:
    """PPO on the reviews, read at the steps `read_at` on the first `prompts` test prompts.

    A step is read before its update; step 24 of 24 is read after the last one. The policy and the
    critic of that step read two sets of responses, one of each to each prompt:

        fixed    sampled once, by the SFT model. They are read as if the policy of the step had
                 sampled them: kl compares this policy with the SFT model, and the advantages are
                 those of GAE. The reading shows how one text changes its numbers.
        fresh    sampled by the policy of the step. The random numbers are the same at every step.

    Both sets are numbered from 0, so a microscope shows one of them.

    The score includes PPO's penalty for a missing EOS. Advantages are shown before PPO whitens
    them. Reading changes nothing: the run is that of the same settings without it.

    Returns:
        The row: the judged numbers of a PPO run, the seconds of training and reading, and `tables`,
        one per step and set, in the form of `as_record`. The History of the run.
    """
    policy, tokenizer = load_policy("tiny-reviews-sft")
    score, monitors = scoring("reviews", policy, tokenizer)
    scorer, _ = load_scalar("tiny-reviews-reward")
    actor, critic = trainable(policy), trainable(scorer)
    prompts = reviews.eval_prompts("test")[: settings["prompts"]]

    def sampled(model: Policy) -> Rollout:
        rollouts = sample_text(model, tokenizer, prompts, config=config.sampling, seed=SAMPLES_SEED)
        return Rollout.concat(rollouts)

    def read(batch: Rollout, *, step: int, source: str) -> dict:
        unfinished = ~batch.finished(tokenizer.eos_token_id)
        scores = score(batch) - config.missing_eos_penalty * unfinished
        table = evaluate.token_table(
            batch.with_columns(scores=scores),
            tokenizer,
            actor=actor,
            reference=policy,
            reward_model=scorer,
            critic=critic,
            temperature=config.sampling.temperature,
            kl_coef=config.kl.kl_coef,
            gamma=config.gamma,
            lam=config.lam,
            **config.clip,
        )
        place = {"source": source, "step": step, "settings": table.attrs["settings"]}
        return place | as_record(table)

    fixed = sampled(policy)
    fixed = replace(fixed, old_logprobs=torch.zeros_like(fixed.old_logprobs))  # as if written
    tables = []

    def read_both(step: int) -> None:
        if step in settings["read_at"]:
            tables.append(read(fixed, step=step, source="fixed"))
            tables.append(read(sampled(actor), step=step, source="fresh"))

    def after_update(row: dict) -> None:
        on_step(row)
        read_both(row["step"] + 1)

    started = time.time()
    read_both(0)
    history = train_ppo(
        actor,
        critic,
        tokenizer,
        reviews.rl_prompts(),
        score,
        config,
        reference=policy,
        monitors=monitors,
        on_step=after_update,
    )[2]
    seconds = time.time() - started
    row = judged("reviews", actor, tokenizer, reference=policy, seed=config.seed)
    return row | {"seconds": seconds, "tables": tables}, list(history)


def one_batch_config(settings: dict) -> PPOConfig:
    """Three plain steps at a fifth of the usual learning rates, as in lesson 06."""
    return PPOConfig.plain(
        steps=3,
        actor=OptimiserConfig.plain(lr=2e-5),
        critic=OptimiserConfig.plain(lr=6e-5),
        seed=settings["seed"],
    )


def one_batch_run(settings: dict, config: PPOConfig, on_step: OnStep) -> tuple[dict, list[dict]]:
    """PPO on the reviews. The last batch is read before each of its updates and after the last.

    The first `texts` responses of the batch are read. Their rewards, values, advantages and targets
    are those of the step, so they are the same in every reading. The log-probabilities and the
    ratio are those of the actor at the reading. `used` says whether the next update is made with
    the minibatch that holds the response.

    Returns:
        The row: score, KL, length and clip fraction of the last batch, the seconds, and `tables`,
        one per reading, in the form of `as_record`. `step` is the number of updates on the batch
        before the reading. The History of the run.
    """
    policy, tokenizer = load_policy("tiny-reviews-sft")
    scorer, _ = load_scalar("tiny-reviews-reward")
    score = rollout_score(scorer, tokenizer.eos_token_id)
    actor = trainable(policy)
    batches: list[Rollout] = []
    tables: list[dict] = []

    def draw(*args: Any, **given: Any) -> Rollout:
        batches.append(sample(*args, **given))
        return batches[-1]

    def advantages_of(rewards: Tensor, values: Tensor, mask: Tensor, **given: Any) -> tuple:
        advantages, returns = gae(rewards, values, mask, **given)
        batches[-1] = batches[-1].with_columns(
            rewards=rewards, values=values, advantages=advantages, returns=returns
        )
        return advantages, returns

    def read(minibatch: Tensor) -> None:
        """Read the batch; `minibatch` is the old log-probabilities of the next update."""
        rows = batches[-1].select(torch.arange(settings["texts"]))
        used = torch.isin(rows.old_logprobs[:, 0], minibatch[:, 0])  # the first token tells them
        table = evaluate.token_table(
            rows.with_columns(scores=score(rows), used=used),
            tokenizer,
            actor=actor,
            reference=policy,
            temperature=config.sampling.temperature,
            kl_coef=config.kl.kl_coef,
            gamma=config.gamma,
            lam=config.lam,
            alternatives=0,
            **config.clip,
        )
        place = {"source": "batch", "step": len(tables), "settings": table.attrs["settings"]}
        tables.append(place | as_record(table))

    def read_and_clip(logprobs: Tensor, old_logprobs: Tensor, *args: Any, **given: Any) -> Tensor:
        if len(batches) == config.steps:
            read(old_logprobs)
        return ppo_clip(logprobs, old_logprobs, *args, **given)

    started = time.time()
    history = train_ppo(
        actor,
        trainable(scorer),
        tokenizer,
        reviews.rl_prompts(),
        score,
        config,
        reference=policy,
        formulas=PPOFormulas(sample=draw, gae=advantages_of, ppo_clip=read_and_clip),
        on_step=on_step,
    )[2]
    read(batches[-1].old_logprobs[:0])  # no update follows
    row = {name: history[-1][name] for name in ("score", "kl", "length", "clip_fraction")}
    return row | {"seconds": time.time() - started, "tables": tables}, list(history)


def as_record(table: pd.DataFrame) -> dict[str, list]:
    """The columns of a token table as lists, numbers rounded to DIGITS significant digits."""
    return {name: [rounded(entry) for entry in column] for name, column in table.items()}


def rounded(entry: Any) -> Any:
    """A number with DIGITS significant digits; lists entry by entry; anything else as it is."""
    if isinstance(entry, float):
        return float(f"{entry:.{DIGITS}g}")
    if isinstance(entry, (list, tuple)):
        return [rounded(part) for part in entry]
    return entry.item() if hasattr(entry, "item") else entry
