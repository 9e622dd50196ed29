"""One PPO run, read token by token at several steps: the record that the token microscope shows."""

import time
from dataclasses import replace
from typing import Any

import pandas as pd
import torch

from minirlhf import evaluate
from minirlhf.core.rollout import Rollout
from minirlhf.experiments.practice import judged, scoring
from minirlhf.loops.ppo import PPOConfig, train_ppo
from minirlhf.models.adapters import Policy
from minirlhf.models.load import load_policy, load_scalar
from minirlhf.models.sampling import sample_text
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
