"""Labels of steps without people: the policy finishes a response, and a rule checks the answers."""

from collections.abc import Callable
from dataclasses import replace

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from minirlhf.core.process_reward import step_labels
from minirlhf.core.rollout import Rollout
from minirlhf.models.adapters import Policy
from minirlhf.models.fit import end_ids
from minirlhf.models.forward import left_padded, position_limit, text_of
from minirlhf.models.sampling import SamplingConfig, sample
from minirlhf.models.steps import step_end_ids, steps_of
from minirlhf.tasks.stepwise import check_steps

AT_ONCE = 512  # continuations that are sampled together


@torch.no_grad()
def continuation_labels(
    model: Policy,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    responses: Rollout,
    right: Callable[[list[str], list[str]], list[float]],
    *,
    step_end: str,
    count: int = 8,
    hard: bool = False,
    sampling: SamplingConfig = SamplingConfig(max_new_tokens=96, temperature=1.0),
    generator: torch.Generator | None = None,
    say: Callable[[str], object] = print,
) -> Dataset:
    """Label the steps of sampled responses without people: the policy finishes them, a rule checks.

    The last step of a response is not continued. Its label is whether the response itself is right.
    Responses that were cut off are left out, and those whose steps cannot be told apart as texts.

    Args:
        prompts: B texts. responses: their B responses, as `models.sample` drew them.
        right: (prompts, responses) -> 1.0 for each right response, else 0.0.
        count: N, continuations of each step. Each has at most sampling.max_new_tokens tokens, and
            fewer where the model reads no more.
        hard: labels 1 or 0, whether any continuation is right; else the share that is.
        say: is called with a sentence about finished responses that are left out: a step has no
            text, or has the text that ends a step inside.

    Returns:
        Columns prompt, completions, labels, as `train_prm` takes them. Of several ends of a step
        in a row, such as empty lines, one is kept.
    """
    ends, finals = step_end_ids(model, tokenizer, step_end), end_ids(model, tokenizer)
    done = responses.finished(finals).tolist()
    steps = [row if ok else [] for row, ok in zip(steps_of(responses, ends), done, strict=True)]
    # 1. Every prefix that ends with a step which is not the last, N times.
    places = [(b, s) for b, row in enumerate(steps) for s in range(len(row) - 1)]
    prefixes = [[i for step in steps[b][: s + 1] for i in step] for b, s in places]
    own = [
        ids[mask].tolist()
        for ids, mask in zip(responses.prompt_ids, responses.prompt_mask, strict=True)
    ]
    read = [own[b] + prefix for (b, _), prefix in zip(places, prefixes, strict=True)]
    limit = position_limit(model) or 10**9
    # a response that was sampled leaves room for one token after each of its prefixes
    most = [min(sampling.max_new_tokens, max(1, limit - len(ids) - 1)) for ids in read]
    written = _continued(model, read, most, finals, count, sampling, generator)
    # 2. Their answers, checked.
    asked = [prompts[b] for b, _ in places for _ in range(count)]
    texts = [
        text_of(tokenizer, prefixes[i // count] + ids, skip_special_tokens=True)
        for i, ids in enumerate(written)
    ]
    ended: list[float] = []
    for start in range(0, len(texts), AT_ONCE):
        some = slice(start, start + AT_ONCE)
        ended += right(asked[some], texts[some])
    # 3. One label for each step; that of the last one is the response's own.
    labels_of: dict[tuple[int, int], float] = {}
    if places:
        of_place = torch.tensor(ended, device="cpu").view(1, -1, count).bool()
        exist = torch.ones(1, len(places), dtype=torch.bool, device="cpu")
        labels = step_labels(of_place, exist, hard=hard)[0].tolist()
        labels_of = dict(zip(places, labels, strict=True))
    kept = [b for b, row in enumerate(steps) if row]
    whole = [[text_of(tokenizer, s, skip_special_tokens=True) for s in steps[b]] for b in kept]
    outcomes = right([prompts[b] for b in kept], ["".join(row) for row in whole]) if kept else []
    made, faults = [], []
    for b, row, outcome in zip(kept, whole, outcomes, strict=True):
        solved = {
            "prompt": prompts[b],
            "completions": [_without_ends(step, step_end) for step in row],
            "labels": [labels_of[b, s] for s in range(len(row) - 1)] + [float(outcome)],
        }
        try:
            check_steps(solved, f"Response {b + 1}", step_end)
            made.append(solved)
        except ValueError as fault:
            faults.append(fault)
    if faults:
        say(f"Left out: {len(faults)} of {len(kept)} finished responses. The first: {faults[0]}")
    return Dataset.from_list(made)


def _continued(
    model: Policy,
    read: list[list[int]],
    most: list[int],
    finals: tuple[int, ...],
    count: int,
    sampling: SamplingConfig,
    generator: torch.Generator | None,
) -> list[list[int]]:
    """The ids of `count` continuations of each row, side by side.

    Rows are sampled together, and all stop where the longest of them has no position left. Those
    that had more go on afterwards, so a continuation does not depend on its neighbours' lengths.

    Args:
        read: the ids of each row. most: tokens of its continuations, at most; 1 or more.
    """
    written, cut = [], []
    size = max(1, AT_ONCE // count)
    for start in range(0, len(read), size):
        some = slice(start, start + size)
        drawn = sample(
            model,
            *left_padded(read[some]),
            eos_id=finals,
            config=replace(sampling, max_new_tokens=min(most[some])),
            samples_per_prompt=count,
            generator=generator,
        )
        done = drawn.finished(finals).tolist()
        for ids, mask, ended in zip(drawn.response_ids, drawn.response_mask, done, strict=True):
            written.append(ids[mask].tolist())
            left = most[(len(written) - 1) // count] - len(written[-1])
            if left > 0 and not ended:
                cut.append((left, len(written) - 1))
    if cut:
        cut.sort()  # rows with as many positions left are sampled together
        longer = [read[i // count] + written[i] for _, i in cut]
        room = [left for left, _ in cut]
        more = _continued(model, longer, room, finals, 1, sampling, generator)
        for (_, i), ids in zip(cut, more, strict=True):
            written[i] += ids
    return written


def _without_ends(step: str, step_end: str) -> str:
    """The text of a step without the ends of steps before and after it."""
    while step.startswith(step_end):
        step = step.removeprefix(step_end)
    while step.endswith(step_end):
        step = step.removesuffix(step_end)
    return step
