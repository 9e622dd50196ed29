"""The two faulty runs of lab 15b's exercises 4 and 5, as their figures show them."""

import copy
import random
from dataclasses import replace

import torch
from datasets import Dataset

from minirlhf import core, loops, models, rewards, tasks
from minirlhf.loops.step_dpo import step_pairs

LEVELS = (tasks.arithmetic.LONG,)
SAMPLING = models.SamplingConfig(max_new_tokens=72, temperature=1.0)
PROBED = (0, 2, 4, 6, 8, 10)  # training steps


def problems(split, count, seed=0):
    found = tasks.arithmetic.problems(split, count, seed=seed, levels=LEVELS)
    return [p.prompt for p in found]


def responses(policy, tokenizer, prompts, seed):
    drawn = models.sample_text(
        policy, tokenizer, prompts, config=SAMPLING, seed=seed, batch_size=len(prompts)
    )[0]
    return models.decode(tokenizer, drawn)


def trained_on_steps(*, append_eos, loss="imitation", lr=1e-4, probed=PROBED, count=200):
    """(share of right answers, written steps of a response of `count`) at the steps `probed`.

    loss: imitation, on right steps that the policy wrote in the place of wrong ones; or DPO, on
    these steps and the wrong ones. append_eos: the fault.
    """
    start, tokenizer = models.load_policy("tiny-long-steps")
    actor = copy.deepcopy(start).requires_grad_(True)
    train, held_out = problems("train", 2000, seed=1), problems("val", count)
    optimizer = loops.make_optimizer(actor, loops.OptimiserConfig.plain(lr=lr))
    generator = torch.Generator().manual_seed(0)
    ends = models.step_end_ids(start, tokenizer, "=")
    config = loops.StepDPOConfig(
        step_end="=",
        max_step=24,
        sampling=SAMPLING,
        dpo=replace(loops.StepDPOConfig().dpo, max_response=96),
    )
    found = []
    batches = [*loops.shuffled_batches(len(train), 32, max(probed), seed=0), None]
    for step, index in enumerate(batches):
        if step in probed:
            texts = responses(actor, tokenizer, held_out, seed=5)
            right = sum(rewards.right_answer(held_out, texts)) / len(texts)
            found.append((right, sum(t.count("=") + 1 for t in texts) / len(texts)))
        if index is None:
            break
        rows, _ = step_pairs(
            actor,
            tokenizer,
            [train[i] for i in index],
            tasks.arithmetic.right_step,
            config,
            ends,
            generator,
        )
        sides = [rows["chosen"], rows["rejected"]] if loss == "dpo" else [rows["chosen"]]
        asked = rows["prompt"] * len(sides)
        batch = models.encode(tokenizer, asked, sum(sides, []), append_eos=append_eos)
        logprobs = core.sequence_logprobs(models.policy_logprobs(actor, batch), batch.action_mask)
        if loss == "dpo":
            with torch.no_grad():
                ref = core.sequence_logprobs(
                    models.policy_logprobs(start, batch), batch.action_mask
                )
            losses = core.dpo(*logprobs.chunk(2), *ref.chunk(2), beta=0.1)
        else:
            losses = -logprobs
        losses.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return [list(values) for values in zip(*found, strict=True)]


def one_step_checked(prompt, text, draw):
    """A row of `train_prm` of which one step has a label: whether it follows from the one before."""
    steps, found = text.split("="), tasks.arithmetic.steps_right(prompt, text)
    labels = [None] * len(steps)
    checked = draw.randrange(len(steps))
    labels[checked] = float(found[checked])
    return {"prompt": prompt, "completions": steps, "labels": labels}


def reward_model_reads(*, cast):
    """Mean probability of good at right steps and at wrong steps of held-out responses.

    cast: the fault. A step without a label counts as good.

    Returns:
        (the two means, share of labels on the right side in the last 10 updates).
    """
    start, tokenizer = models.load_policy("tiny-long-steps")
    prompts, draw = problems("train", 2000, seed=1)[:400], random.Random(0)
    texts = responses(start, tokenizer, prompts, seed=0)
    pairs = [pair for pair in zip(prompts, texts, strict=True) if all(pair[1].split("="))]
    rows = [one_step_checked(*pair, draw) for pair in pairs]
    if cast:
        rows = [r | {"labels": [1.0 if y is None else y for y in r["labels"]]} for r in rows]
    config = loops.PRMConfig(
        step_end="=", steps=100, batch_size=32, optimiser=loops.OptimiserConfig.plain(lr=1e-2)
    )
    ends = models.step_end_ids(start, tokenizer, "=")
    backbone = models.WithLogprobs(start, ends)
    scorer, history = loops.train_prm(backbone, tokenizer, Dataset.from_list(rows), config)
    prompts = problems("val", 400)
    texts = responses(start, tokenizer, prompts, seed=6)
    kept = [(p, t) for p, t in zip(prompts, texts, strict=True) if all(t.split("="))]
    batch = models.encode(tokenizer, [p for p, _ in kept], [t for _, t in kept])
    with torch.no_grad():
        logits, is_step = models.step_logits(scorer, batch, ends)
    right = torch.zeros_like(is_step)
    right[is_step] = torch.tensor([y for pair in kept for y in tasks.arithmetic.steps_right(*pair)])
    good = logits.sigmoid()
    means = [good[some & is_step].mean().item() for some in (right, ~right)]
    return means, sum(r["right"] for r in history[-10:]) / 10
