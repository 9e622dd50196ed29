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
from minirlhf.runtime import check


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
) -> Dataset:
    """Label the steps of sampled responses without people: the policy finishes them, a rule checks.

    The last step of a response is not continued. Its label is whether the response itself is right.
    Responses that were cut off are left out.

    Args:
        prompts: B texts. responses: their B responses, as `models.sample` drew them.
        right: (prompts, responses) -> 1.0 for each right response, else 0.0.
        count: N, continuations of each step. Each has at most sampling.max_new_tokens tokens, and
            fewer where the model reads no more.
        hard: labels 1 or 0, whether any continuation is right; else the share that is.

    Returns:
        Columns prompt, completions, labels, as `train_prm` takes them.
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
    ended = [float("nan")] * (len(places) * count)
    size = max(1, 512 // count)
    for start in range(0, len(places), size):
        some = range(start, min(start + size, len(places)))
        prompt_ids, prompt_mask = left_padded([own[places[i][0]] + prefixes[i] for i in some])
        room = (position_limit(model) or 10**9) - prompt_ids.shape[1] - 1  # one for EOS
        check("positions left to continue a response", room, room >= 1, "at least 1")
        drawn = sample(
            model,
            prompt_ids,
            prompt_mask,
            eos_id=finals,
            config=replace(sampling, max_new_tokens=min(room, sampling.max_new_tokens)),
            samples_per_prompt=count,
            generator=generator,
        )
        texts, asked = [], []
        for row, (ids, mask) in enumerate(
            zip(drawn.response_ids, drawn.response_mask, strict=True)
        ):
            i = start + row // count
            texts.append(
                text_of(tokenizer, prefixes[i] + ids[mask].tolist(), skip_special_tokens=True)
            )
            asked.append(prompts[places[i][0]])
        ended[start * count : start * count + len(texts)] = right(asked, texts)
    # 2. One label for each step; that of the last one is the response's own.
    of_place = torch.tensor(ended, device="cpu").view(-1, count).bool()
    labels = step_labels(of_place[None], torch.ones(1, len(places), dtype=torch.bool), hard=hard)
    labels_of = dict(zip(places, labels[0].tolist(), strict=True)) if places else {}
    kept = [b for b, row in enumerate(steps) if row]
    written = [[text_of(tokenizer, s, skip_special_tokens=True) for s in steps[b]] for b in kept]
    outcomes = right([prompts[b] for b in kept], ["".join(row) for row in written])
    return Dataset.from_list(
        [
            {
                "prompt": prompts[b],
                "completions": [step.removesuffix(step_end) for step in row],
                "labels": [labels_of[b, s] for s in range(len(row) - 1)] + [float(outcome)],
            }
            for b, row, outcome in zip(kept, written, outcomes, strict=True)
        ]
    )
