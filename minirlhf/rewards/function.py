"""Your own reward: a Python function of texts, by TRL's contract, for use in a training loop."""

import functools
import math
from collections.abc import Callable, Sequence

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from minirlhf.core.masking import check_same_shape
from minirlhf.core.rollout import Rollout, Score
from minirlhf.models.forward import decode, prompt_tokens, text_of
from minirlhf.runtime import check


def reward_function(
    function: Callable[..., Sequence[float]],
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset | None = None,
) -> Score:
    """Turn a function of texts into a score for a training loop.

    `function(prompts=[...], completions=[...], **columns)` returns one number per completion.

    Args:
        function: the reward.
        tokenizer: the policy's.
        dataset: rows with a `prompt` and other columns, such as an answer. The function is given
            these columns as lists with one value per completion.

    Returns:
        Rollout -> scores (B,).

    Raises:
        ValueError: two rows have the same prompt. When called: a prompt has no row, the function
            raised, or it did not return one finite number per completion.
    """
    rows = {}
    for row in dataset or []:
        key = tuple(prompt_tokens(tokenizer, [row["prompt"]])[0])
        if key in rows:
            raise ValueError(
                f"Two rows have the prompt {row['prompt'][:60]!r}; keep one row per prompt, "
                "because the prompt decides which row's columns belong to a completion."
            )
        rows[key] = row

    def score(rollout: Rollout) -> torch.Tensor:
        ids = [
            tuple(row[mask].tolist())
            for row, mask in zip(rollout.prompt_ids, rollout.prompt_mask, strict=True)
        ]
        completions = decode(tokenizer, rollout)
        if rows and (unknown := [i for i in ids if i not in rows]):
            raise ValueError(
                f"The prompt {text_of(tokenizer, list(unknown[0]))[:60]!r} has no row in the "
                "dataset of the reward function; add it, or train on the dataset's prompts only."
            )
        prompts = [
            rows[i]["prompt"]
            if rows
            else text_of(tokenizer, list(i)).removeprefix(tokenizer.bos_token or "")
            for i in ids
        ]
        given = {"prompts": prompts, "completions": completions}
        given |= {
            name: [rows[i][name] for i in ids]
            for name in next(iter(rows.values()), {})
            if name != "prompt"
        }
        try:
            values = function(**given)
        except Exception as error:
            raise ValueError(
                f"The reward function raised {type(error).__name__}: {error}; it was given "
                f"{', '.join(given)}."
            ) from error
        try:
            values = [float(value) for value in values]
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"The reward function returned {str(values)[:80]}; it must be one number for each "
                "completion."
            ) from error
        if len(values) != len(completions) or not all(map(math.isfinite, values)):
            raise ValueError(
                f"The reward function returned {len(values)} values for {len(completions)} "
                f"completions, {values[:4]} ...; it must be one finite number for each."
            )
        return torch.tensor(values, device="cpu")

    return score


def weighted(
    functions: list[tuple[Score, float]],
) -> Score:
    """Weighted sum of several rewards.

        weighted([(reward_function(answer_reward, tokenizer, dataset), 1.0),
                  (reward_function(form, tokenizer), 0.2)])

    Args:
        functions: pairs (function, weight). A function maps a Rollout to scores (B,), as those that
            `reward_function` returns.

    Returns:
        Rollout -> scores (B,), the sum of weight times scores.

    Raises:
        ValueError: there is no pair, or a weight is not finite. When called: the functions return
            different shapes.
    """
    functions = list(functions)
    check(
        "functions",
        functions,
        bool(functions) and all(isinstance(f, tuple) and len(f) == 2 for f in functions),
        "a list of one pair (function, weight) or more",
    )
    for _, weight in functions:
        check(
            "weight",
            weight,
            isinstance(weight, (int, float)) and math.isfinite(weight),
            "a finite number",
        )

    def score(rollout: Rollout) -> torch.Tensor:
        scores = [function(rollout) for function, _ in functions]
        check_same_shape(**{f"scores {i}": s for i, s in enumerate(scores)})
        parts = [weight * s for s, (_, weight) in zip(scores, functions, strict=True)]
        return functools.reduce(torch.add, parts)

    return score
