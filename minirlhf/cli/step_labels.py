"""The rows of `minirlhf prm`: labels from continuations, and the rows that are held out."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from minirlhf.classroom.own_file import reward_of
from minirlhf.cli.prompts import read_prompts
from minirlhf.cli.terminal import console, end_checked, say
from minirlhf.core.rollout import Score
from minirlhf.experiments.step_readers import PROBLEMS
from minirlhf.experiments.steps import LEVELS
from minirlhf.loops.process_reward import PRMConfig
from minirlhf.loops.step_labels import continuation_labels
from minirlhf.models.fit import end_ids
from minirlhf.models.forward import encode, encode_prompts
from minirlhf.models.sampling import SamplingConfig, sample
from minirlhf.models.steps import step_end_ids
from minirlhf.rewards.function import reward_function
from minirlhf.rewards.rules import right_answer
from minirlhf.runtime import check, write_text
from minirlhf.show.progress import Progresses
from minirlhf.tasks import arithmetic

Right = Callable[[list[str], list[str]], list[float]]
AT_ONCE = 32  # prompts whose responses are labelled together


def sampled_labels(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: PRMConfig,
    sampling: SamplingConfig,
    *,
    reward: Path | None,
    continuations: int,
    hard: bool,
    labels: Path | None,
    **asked: Any,
) -> tuple[Dataset, bool]:
    """One response of the policy to each prompt, its steps labelled by continuations.

    Also whether the chat template wrote the prompts.

    Args:
        reward: a file of the reader's own; None: the rule of arithmetic.
        continuations: of each step. labels: file for the rows.
        asked: further arguments of `read_prompts`.

    Raises:
        ValueError: the prompts or the reward cannot be used, or no response ended.
    """
    own = None if reward is None else reward_of(reward)
    found = read_prompts(
        policy,
        tokenizer,
        lambda: [p.prompt for p in arithmetic.problems("train", PROBLEMS, levels=LEVELS)],
        max_new_tokens=sampling.max_new_tokens,
        **asked,
    )
    right: Right = right_answer
    if own is not None:
        _check_once(found.prompts, found.names)
        right = right_if_above_0(reward_function(own, tokenizer, found.data), tokenizer)
        say("A response counts as right where the reward is above 0.")
    step_end_ids(policy, tokenizer, config.step_end)  # refuses a text that ends no token
    if asked["check_only"]:
        end_checked()
    generator = torch.Generator().manual_seed(config.seed)
    parts = [found.prompts[i : i + AT_ONCE] for i in range(0, len(found.prompts), AT_ONCE)]
    made = []
    with Progresses(console, every=len(parts)) as progress:
        for step, prompts in enumerate(parts):
            drawn = sample(
                policy,
                *encode_prompts(tokenizer, prompts),
                eos_id=end_ids(policy, tokenizer),
                config=sampling,
                generator=generator,
            )
            rows = continuation_labels(
                policy,
                tokenizer,
                prompts,
                drawn,
                right,
                step_end=config.step_end,
                count=continuations,
                hard=hard,
                sampling=sampling,
                generator=generator,
            )
            made += [rows] if len(rows) else []
            progress({"stage": "labels", "step": step, "steps": len(parts)})
    allowed = "at least 1: all responses were cut; raise --max-new-tokens"
    check("responses that ended", 0, bool(made), allowed)
    data = concatenate_datasets(made)
    good = sum(row["labels"][-1] for row in data) / len(data)
    say(
        f"{len(data)} of {len(found.prompts)} responses ended and are labelled; {good:.0%} of them "
        f"are right."
    )
    if labels:
        write_text(labels, "".join(json.dumps(row) + "\n" for row in data))
        say(f"Wrote {labels}. `--dataset {labels}` without --reward trains on these rows again.")
    return data, found.chat


def right_if_above_0(score: Score, tokenizer: PreTrainedTokenizerBase) -> Right:
    """(prompts, responses) -> 1.0 where the score is above 0, else 0.0.

    Raises:
        ValueError: when called: the score of a response is nan, as for a reward of None.
    """

    def right(prompts: list[str], responses: list[str]) -> list[float]:
        if not prompts:
            return []
        scores = score(encode(tokenizer, prompts, responses)).tolist()
        for prompt, value in zip(prompts, scores, strict=True):
            given = f"The reward of a response to {prompt[:60]!r}"
            check(given, None, value == value, "a number: 1 if the response is right, else 0")
        return [float(value > 0) for value in scores]

    return right


def _check_once(prompts: list[str], names: list[str]) -> None:
    """Refuse a prompt that comes twice: the reward could not tell whose columns it is given."""
    first: dict[str, int] = {}
    for number, prompt in enumerate(prompts):
        if prompt in first:
            raise ValueError(
                f"{names[first[prompt]]} and {names[number]} have the same prompt "
                f"{prompt[:60]!r}; prm samples one response to each prompt, so give each once."
            )
        first[prompt] = number


def held_out_tenth(data: Dataset, seed: int) -> tuple[Dataset, Dataset]:
    """(rows to learn, the rows of a tenth of the prompts), drawn by the seed; at least one each.

    Raises:
        ValueError: all rows have the same prompt.
    """
    prompts = list(dict.fromkeys(data["prompt"]))
    allowed = "at least 2, as a tenth of the prompts is held out"
    check("The number of different prompts", len(prompts), len(prompts) >= 2, allowed)
    random.Random(seed).shuffle(prompts)
    chosen = {*prompts[: max(1, len(prompts) // 10)]}
    held = [i for i, prompt in enumerate(data["prompt"]) if prompt in chosen]
    learned = [i for i, prompt in enumerate(data["prompt"]) if prompt not in chosen]
    return data.select(learned), data.select(held)
