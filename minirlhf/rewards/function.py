"""Your own reward: a Python function of texts, by TRL's contract, for use in a training loop.

The contract is that of the reward functions of GRPOTrainer and RLOOTrainer (TRL 1.12 to 1.16).
Kept:

- The function is called with keyword arguments, each a list with one value per completion: prompts,
  completions, completion_ids (token ids, EOS included), and the dataset's other columns. One
  more is trainer_state, transformers' TrainerState with global_step and max_steps. Outside of a
  loop it is None.
- If the dataset's prompts are conversations, prompts are lists of turns, and completions are lists
  of one turn of the assistant.
- It returns one number per completion, as a list, tuple, generator, array or tensor. None is for a
  completion that it does not score. `weighted` is the sum over several functions that leaves None
  out (TRL's reward_weights).
- True and False are 1 and 0. A tensor may have any dtype, and a gradient, which is not used.
- It may be async. It runs in an event loop that all async functions share.
- The columns belong to the row of the dataset, not to the prompt: several rows may have the same
  prompt, if a loop is given the prompts of this dataset in their order.

Not kept:

- A function without **kwargs gets only the arguments that it names. In TRL it fails.
- log_extra, log_metric and environments are not given.
- A completion for which every function returned None stops the run. In TRL it has no gradient.
- nan and infinity are refused, because they often come from a division by 0. In TRL nan is the same
  as None. Too few or too many numbers, a dict, a set and texts are refused as well.
- The function gets copies: what it changes in its arguments, no later call sees. What it sets in
  torch (runtime.shared.SETTINGS, such as the default dtype) is set back after each call.
- A function that raises is called again for one completion at a time, to find the first one for
  which it does.
- A reward model is not a function here; see `rollout_score`.
"""

import copy
import functools
import inspect
import math
import numbers
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from contextlib import suppress
from typing import Any

import numpy
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, TrainerState

from minirlhf.core.masking import check_same_shape
from minirlhf.core.rollout import Rollout, Score
from minirlhf.models.forward import decode, prompt_tokens, text_of
from minirlhf.runtime import PromptError, check
from minirlhf.runtime.shared import settings_kept
from minirlhf.runtime.user_code import awaited, line_of, name_of, on_one_line
from minirlhf.tasks.prompts import prompt_texts

GIVEN = ("prompts", "completions", "completion_ids", "trainer_state")
ROW_ONLY = ("prompt", "completion")  # columns that are not arguments
NUMBERS = (numbers.Number, numpy.generic, numpy.ndarray, torch.Tensor)  # what may be a number


def reward_function(
    function: Callable[..., Any],
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset | None = None,
) -> Score:
    """Turn a function of texts into a score for a training loop.

    `function(prompts=[...], completions=[...], completion_ids=[...], trainer_state=..., **columns)`
    returns one number per completion, or None for one that it does not score. The head of this
    file has the whole contract.

    Args:
        function: the reward.
        tokenizer: the policy's.
        dataset: rows with a `prompt` and other columns, such as an answer. The function is given
            these columns as lists with one value per completion.

    Returns:
        Rollout -> scores (B,), nan where the function returned None.

    Raises:
        ValueError: the function is not one or needs an argument that it is not given; a row has no
            prompt, or a column is named as an argument. When called: a prompt has no row, or
            several with different columns and the loop does not say which; the function raised; or
            it did not return one finite number or None per completion. Where one prompt is at
            fault it is a PromptError, which says which prompt.

    A function that raises is called again, for one completion at a time, to find the first one for
    which it raises the same. So its side effects and its costs come again. The message is always
    about the first exception.
    """
    rows = _checked_rows(dataset)
    columns = [name for name in (rows[0] if rows else ()) if name not in ROW_ONLY]
    names = _accepted(function, [*GIVEN, *columns])
    called = name_of(function)
    texts = prompt_texts([row["prompt"] for row in rows], tokenizer) if rows else []
    places: dict[tuple[int, ...], list[int]] = {}  # the rows of each prompt, by its tokens
    for number, ids in enumerate(prompt_tokens(tokenizer, texts)):
        places.setdefault(tuple(ids), []).append(number)

    def score(rollout: Rollout) -> torch.Tensor:
        given = _arguments(rollout, _rows_of(rollout, places, rows, tokenizer), tokenizer)
        given = {name: given[name] for name in names}
        count = len(rollout.response_ids)
        try:
            values = _called(function, copy.deepcopy(given))
        except KeyboardInterrupt:  # Ctrl-C
            raise
        except BaseException as error:  # exit() would end the run without a word
            row = _first_failing(function, given, count, error)
            said, prompt = "Called for one completion at a time, it does not raise this.", None
            if row is not None:
                of, prompt = _named(rollout, row)
                said = f"The first completion for which it does is {of}."
            step = f"at step {int(rollout.step[0])}" if "step" in rollout.columns else ""
            where = ", ".join(filter(None, [line_of(error, function), step]))
            raise PromptError(
                f"The reward function {called} raised {type(error).__name__}: "
                f"{on_one_line(error, 300)}; it was given {', '.join(given)}. "
                f"{f'This is {where}. ' if where else ''}{said}",
                prompt,
            ) from error
        if not isinstance(values, list):
            raise ValueError(
                f"The reward function {called} returned {on_one_line(values)}; it must be one "
                "number for each completion."
            )
        return _as_scores(values, rollout, called)

    return score


def _checked_rows(dataset: Dataset | None) -> list[dict[str, Any]]:
    """The rows of the dataset; an empty list for None."""
    if dataset is None:
        return []
    rows = list(dataset)
    check("dataset", type(dataset).__name__, bool(rows), "a Dataset with one row or more")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, Mapping) or "prompt" not in row:
            raise ValueError(
                f"Row {number} of the reward function's dataset is {str(row)[:60]!r}; it must have "
                "a `prompt`. Give a Dataset (Dataset.from_pandas makes one of a table)."
            )
        if row.keys() != rows[0].keys():
            raise ValueError(
                f"Row {number} of the reward function's dataset has the columns {', '.join(row)}, "
                f"and row 1 has {', '.join(rows[0])}; give every row the same columns."
            )
    if taken := {*GIVEN} & {*rows[0]}:
        raise ValueError(
            f"The dataset has a column {min(taken)!r}, which is the name of an argument of the "
            "reward function; rename the column."
        )
    return rows


def _rows_of(
    rollout: Rollout, places: dict[tuple[int, ...], list[int]], rows: list, tokenizer: Any
) -> list[dict[str, Any]]:
    """The row of the dataset that each response belongs to; without a dataset, only its prompt.

    Args:
        places: the numbers of the rows with a prompt, by its tokens. Which of several rows it is, a
            loop says in the column prompt_row.
    """
    told = rollout.columns.get("prompt_row")
    numbers = [None] * len(rollout.prompt_ids) if told is None else told.tolist()
    found = []
    for ids, mask, number in zip(rollout.prompt_ids, rollout.prompt_mask, numbers, strict=True):
        key = tuple(ids[mask].tolist())
        text = text_of(tokenizer, list(key))
        if not rows:
            found.append({"prompt": text.removeprefix(tokenizer.bos_token or "")})
            continue
        if key not in places:
            raise PromptError(
                f"The prompt {text[:60]!r} has no row in the dataset of the reward function; add "
                "it, or train on the dataset's prompts only.",
                number,
            )
        same = places[key]
        place = number if number in same else same[0]
        if place != number and len({repr(rows[i]) for i in same}) > 1:
            raise ValueError(
                f"Rows {same[0] + 1} and {same[1] + 1} both have the prompt {text[:60]!r}, so it "
                "is not known which row's columns belong to a completion; give the loop the "
                "prompts of this dataset in their order."
            )
        found.append(rows[place])
    return found


def _arguments(rollout: Rollout, rows: list[dict[str, Any]], tokenizer: Any) -> dict[str, Any]:
    """All arguments of the function for a batch, by name."""
    texts: list[Any] = decode(tokenizer, rollout)
    if not isinstance(rows[0]["prompt"], str):
        texts = [[{"role": "assistant", "content": text}] for text in texts]
    responses = zip(rollout.response_ids, rollout.response_mask, strict=True)
    return {
        "prompts": [row["prompt"] for row in rows],
        "completions": texts,
        "completion_ids": [ids[mask].tolist() for ids, mask in responses],
        "trainer_state": _progress(rollout),
        **{name: [row[name] for row in rows] for name in rows[0] if name not in ROW_ONLY},
    }


def _progress(rollout: Rollout) -> TrainerState | None:
    """TRL's trainer_state of a batch that a loop sampled."""
    if "steps" not in rollout.columns:
        return None
    return TrainerState(global_step=int(rollout.step[0]), max_steps=int(rollout.steps[0]))


def _accepted(function: Callable, names: list[str]) -> list[str]:
    """Those of the arguments that the function takes.

    Raises:
        ValueError: it is not a function, or it needs others.
    """
    if not callable(function) or isinstance(function, torch.nn.Module):
        raise ValueError(
            f"function is {str(function)[:60]!r}; it must be a Python function of prompts and "
            "completions. For a reward model use rewards.rollout_score(models.load_scalar(name)[0],"
            " eos_id), for several functions rewards.weighted."
        )
    try:
        parameters = inspect.signature(function).parameters.values()
    except Exception:  # of a builtin; or an object of the user's raises what it likes
        return names
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    lacking = [p.name for p in parameters if p.default is p.empty and p.name in named]
    lacking = [name for name in lacking if name not in names]
    lacking += [p.name for p in parameters if p.kind is p.POSITIONAL_ONLY]
    if lacking:
        raise ValueError(
            f"The reward function {name_of(function)} needs the argument "
            f"{lacking[0]}, but it is given {', '.join(names)}, by name. A column of the dataset "
            "becomes an argument; others need a default."
        )
    every = any(p.kind is p.VAR_KEYWORD for p in parameters)
    taken = names if every else [name for name in names if name in named]
    if not taken:
        raise ValueError(
            f"The reward function {name_of(function)} takes none of the arguments that it is "
            f"given by name: {', '.join(names)}. Name completions, for example."
        )
    return taken


@settings_kept()
def _called(function: Callable, given: dict[str, Any]) -> Any:
    """What the function returns, as a list where it can be read as one; awaited if it is async."""
    values = function(**given)
    if inspect.isawaitable(values):
        values = awaited(values)
    if isinstance(values, torch.Tensor):
        if values.layout != torch.strided or values.device.type == "meta":
            return values  # no numbers to read one by one
        values = values.detach().reshape(len(values), -1).squeeze(1) if values.dim() else values
    if hasattr(values, "tolist"):
        return values.tolist()
    if isinstance(values, Iterable) and not isinstance(values, (str, bytes, Mapping, AbstractSet)):
        return list(values)
    return values


def _first_failing(
    function: Callable, given: dict[str, Any], count: int, error: BaseException
) -> int | None:
    """The first completion that alone makes the function raise `error`: its kind, at its line.

    None if there is no such completion: another exception says nothing about this one.
    """
    kind = (type(error), line_of(error, function))
    for row in range(count):
        alone = {name: [v[row]] if isinstance(v, list) else v for name, v in given.items()}
        try:
            _called(function, copy.deepcopy(alone))
        except BaseException as other:
            if (type(other), line_of(other, function)) == kind:
                return row
            if isinstance(other, KeyboardInterrupt):
                return None
    return None


def _named(rollout: Rollout, row: int) -> tuple[str, int | None]:
    """("3 of 8, to prompt 5", the position of this prompt), where a loop says the prompt."""
    told = rollout.columns.get("prompt_row")
    prompt = None if told is None else int(told[row])
    to = "" if prompt is None else f", to prompt {prompt + 1}"
    return f"{row + 1} of {len(rollout.response_ids)}{to}", prompt


def _as_scores(values: list, rollout: Rollout, called: str) -> torch.Tensor:
    """(B,) scores, nan for None."""
    count = len(rollout.response_ids)
    if len(values) != count:
        raise ValueError(
            f"The reward function {called} returned {len(values)} values for {count} completions, "
            f"{on_one_line(values[:4])} ...; it must be one finite number for each."
        )
    scores = torch.full((count,), math.nan, device="cpu")
    for row, value in enumerate(values):
        if value is None:
            continue
        value = value.detach() if isinstance(value, torch.Tensor) else value
        is_number: bool = isinstance(value, NUMBERS) and not isinstance(value, str | bytes)
        if is_number:
            with suppress(Exception):  # no number, or one too large for float32: it stays nan
                scores[row] = float(value)
        if not scores[row].isfinite():
            of, prompt = _named(rollout, row)
            raise PromptError(
                f"The reward function {called} returned {on_one_line(value, 40)!r} for completion "
                f"{of}; it must be one finite number for each completion, or None where it has no "
                "score.",
                prompt,
            )
    return scores


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
        Rollout -> scores (B,), the sum of weight times scores. A function that has nan for a
        response (its reward is None there) is left out of the sum for it. The sum is nan where all
        functions have nan; the loops refuse that.

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
        unscored = torch.stack([s.isnan() for s in scores]).all(0)
        parts = [
            weight * s.masked_fill(s.isnan(), 0.0)
            for s, (_, weight) in zip(scores, functions, strict=True)
        ]
        return functools.reduce(torch.add, parts).masked_fill(unscored, math.nan)

    return score
