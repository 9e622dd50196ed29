"""Anybody's reward: a plain Python function of texts, by TRL's contract, made into what the loops ask for."""

import math
from collections.abc import Callable

import torch
from datasets import Dataset

from minirlhf.core.masking import check_same_shape
from minirlhf.core.rollout import Rollout
from minirlhf.models.forward import decode
from minirlhf.runtime import check


def reward_function(
    function: Callable, tokenizer, dataset: Dataset | None = None
) -> Callable[[Rollout], torch.Tensor]:
    """Rollout -> (B,) from `function(prompts=[...], completions=[...], **columns)`, which returns one number a completion.

    Args:
        dataset: rows with a `prompt` and other columns (an answer, say), given to the function as lists, a value a completion.

    Raises:
        ValueError: two rows have the same prompt. When called: the function raised, or returned anything but a finite number a completion.
    """
    rows = {}
    for row in dataset or []:
        key = tuple(tokenizer(row["prompt"]).input_ids)
        if key in rows:
            raise ValueError(
                f"Two rows have the prompt {row['prompt'][:60]!r}; whose columns are a completion's?"
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
                f"The prompt {tokenizer.decode(list(unknown[0]))[:60]!r} has no row in the dataset of the reward function."
            )
        prompts = [
            rows[i]["prompt"]
            if rows
            else tokenizer.decode(list(i)).removeprefix(tokenizer.bos_token or "")
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
                f"The reward function raised {type(error).__name__}: {error}; it was given {', '.join(given)}."
            ) from error
        try:
            values = [float(value) for value in values]
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"The reward function returned {str(values)[:80]}; it must be one number for each completion."
            ) from error
        if len(values) != len(completions) or not all(map(math.isfinite, values)):
            raise ValueError(
                f"The reward function returned {len(values)} values for {len(completions)} completions, {values[:4]} ...; "
                "it must be one finite number for each."
            )
        return torch.tensor(values)

    return score


def weighted(
    functions: list[tuple[Callable[[Rollout], torch.Tensor], float]],
) -> Callable[[Rollout], torch.Tensor]:
    """Rollout -> (B,): the sum of weight x scores over pairs (function, weight); a function is what `reward_function` returns.

        weighted([(reward_function(answer_reward, tokenizer, dataset), 1.0), (reward_function(form, tokenizer), 0.2)])

    Raises:
        ValueError: no pair, or a weight that is not finite. When called: functions that return different shapes.
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
        return sum(weight * s for s, (_, weight) in zip(scores, functions, strict=True))

    return score
