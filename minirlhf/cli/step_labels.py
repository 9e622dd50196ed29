"""The rows of `minirlhf prm`: labels from continuations, and the rows that are held out."""

import json
import random
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from minirlhf.classroom.own_file import reward_of
from minirlhf.cli.kept_labels import KeptLabels
from minirlhf.cli.prompts import read_prompts
from minirlhf.cli.terminal import console, end_checked, naming_rows, say
from minirlhf.core.rollout import Score
from minirlhf.experiments.process_rewards import PROBLEMS
from minirlhf.experiments.steps import LEVELS
from minirlhf.loops.checkpoint_fit import digest, fingerprint
from minirlhf.loops.formulas import function_signature
from minirlhf.loops.process_reward import PRMConfig
from minirlhf.loops.step_labels import continuation_labels
from minirlhf.models.fit import end_ids
from minirlhf.models.forward import encode, encode_prompts
from minirlhf.models.sampling import SamplingConfig, sample
from minirlhf.models.steps import step_end_ids
from minirlhf.rewards.function import reward_function
from minirlhf.rewards.rules import right_answer
from minirlhf.runtime import PromptError, check, write_text
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
    kept: Path,
    resume: bool,
    **asked: Any,
) -> tuple[Dataset, bool]:
    """One response of the policy to each prompt, its steps labelled by continuations.

    Also whether the chat template wrote the prompts.

    Args:
        reward: a file of the reader's own; None: the rule of arithmetic.
        continuations: of each step. labels: file for the rows.
        kept: file for what is labelled so far. resume: go on with it.
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
        right = right_if_above_0(
            reward_function(own, tokenizer, found.data), tokenizer, found.prompts
        )
        say("A response counts as right where the reward is above 0.")
    step_end_ids(policy, tokenizer, config.step_end)  # refuses a text that ends no token
    generator = torch.Generator().manual_seed(config.seed)
    parts = [found.prompts[i : i + AT_ONCE] for i in range(0, len(found.prompts), AT_ONCE)]
    settings = {
        "data": digest(found.prompts),
        "start": fingerprint([policy]),
        "step_end": config.step_end,
        "seed": config.seed,
        "continuations": continuations,
        "hard": hard,
        "prompts at once": AT_ONCE,
        "score": function_signature(right_answer if own is None else own),
        **asdict(sampling),
    }
    done = KeptLabels(kept, resume, settings, groups=len(parts), generator=generator)
    if asked["check_only"]:
        end_checked()
    rest = range(done.done, len(parts))
    with (
        done.naming(),
        naming_rows(found.names),
        Progresses(console, every=len(parts)) as progress,
    ):
        for step in rest:
            prompts = parts[step]
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
                say=say,
            )
            done.add(rows.to_list())
            progress({"stage": "labels", "step": step, "steps": len(parts)})
    allowed = (
        "at least 1: the others were cut (raise --max-new-tokens), or have a step that cannot be "
        "told apart (--step-end)"
    )
    check("responses that ended", 0, bool(done.rows), allowed)
    data = Dataset.from_list(done.rows)
    good = sum(row["labels"][-1] for row in data) / len(data)
    say(
        f"{len(data)} of {len(found.prompts)} responses ended and are labelled; {good:.0%} of them "
        f"are right."
    )
    if labels:
        write_text(labels, "".join(json.dumps(row) + "\n" for row in data))
        say(f"Wrote {labels}. `--dataset {labels}` without --reward trains on these rows again.")
    return data, found.chat


def right_if_above_0(score: Score, tokenizer: PreTrainedTokenizerBase, every: list[str]) -> Right:
    """(prompts, responses) -> 1.0 where the score is above 0, else 0.0.

    Args:
        every: all prompts, each once.

    Raises:
        PromptError: when called: the score of a response is nan, as for a reward of None. Or the
            score raised it.
    """
    row_of = {prompt: row for row, prompt in enumerate(every)}

    def right(prompts: list[str], responses: list[str]) -> list[float]:
        rows = torch.tensor([row_of[prompt] for prompt in prompts], device="cpu")
        batch = encode(tokenizer, prompts, responses).with_columns(prompt_row=rows)
        scores = score(batch).tolist()
        for prompt, value in zip(prompts, scores, strict=True):
            if value != value:
                raise PromptError(
                    f"The reward of a response to {prompt[:60]!r} is None; it must be a number: "
                    "above 0 if the response is right, else 0.",
                    row_of[prompt],
                )
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
