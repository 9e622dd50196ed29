"""transformers' `generate` on the work of workload.py: `python hf.py TASK name=value ...`.

Prints one JSON line.
"""

import sys

import torch
from workload import (
    REVIEWS,
    TEMPERATURE,
    WARMUP,
    Clock,
    policy,
    review_sizes,
    review_writer,
    rows,
    sizes,
    tokenizer,
)


def draw(model, ids, mask, size, **given):
    """Responses from the whole distribution."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bool(size["bf16"])):
        return model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=True,
            top_k=0,
            top_p=1.0,
            use_cache=True,
            **given,
        )


def generate(size, clock):
    model, words, new = policy(size).eval(), tokenizer(size), size["completion"]
    ids = words([p for p, _, _ in rows(size["batch"], size)], return_tensors="pt").input_ids
    given = dict(temperature=1.0, min_new_tokens=new, max_new_tokens=new)
    clock()
    for _ in range(size["steps"] + WARMUP):
        draw(model, ids, torch.ones_like(ids), size, **given)
        clock()


def reviews(size, clock):
    model, words, prompts = review_writer()
    batch, eos = words(prompts, padding=True, return_tensors="pt"), words.eos_token_id
    ids, mask, masks = batch.input_ids, batch.attention_mask, []
    given = dict(temperature=TEMPERATURE, max_new_tokens=REVIEWS["new"], pad_token_id=eos)
    clock()
    for _ in range(size["steps"] + WARMUP):
        ended = draw(model, ids, mask, size, **given)[:, ids.shape[1] :] == eos
        clock()
        masks.append(ended.cumsum(1) - ended.long() == 0)  # up to the first EOS
    return review_sizes(mask, masks)


if __name__ == "__main__":
    task, size = sizes(sys.argv[1:])
    torch.manual_seed(0)
    clock = Clock()
    size |= globals()[task](size, clock) or {}
    clock.report(task, "transformers", size, torch=torch.__version__)
