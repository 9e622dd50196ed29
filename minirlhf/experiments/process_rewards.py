"""Process and outcome reward models on long calculations, with equally many checks."""

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from minirlhf import evaluate
from minirlhf.core.process_reward import STEP_AGGREGATIONS, process_reward_score
from minirlhf.core.rollout import Rollout
from minirlhf.experiments.steps import (
    ASKED,
    LEVELS,
    MODEL,
    SAMPLING,
    TRIES,
    checked_steps,
    sampled_texts,
)
from minirlhf.loops.config import OptimiserConfig
from minirlhf.loops.process_reward import PRMConfig, train_prm
from minirlhf.loops.step_labels import continuation_labels
from minirlhf.models.adapters import Policy
from minirlhf.models.forward import encode, policy_logprobs
from minirlhf.models.heads import ScalarModel
from minirlhf.models.load import load_policy
from minirlhf.models.sampling import sample_text
from minirlhf.models.steps import step_end_ids, step_logits
from minirlhf.rewards.rules import right_answer
from minirlhf.runtime import OnStep
from minirlhf.tasks import arithmetic
from minirlhf.tour import trainable

PROBLEMS, ROLLOUTS = 400, 8  # problems whose responses are read; continuations of each step


def process_rewards_config(settings: dict) -> PRMConfig:
    """Settings of the training of each reward model: `seed`."""
    return PRMConfig(
        step_end="=",
        steps=400,
        batch_size=32,
        optimiser=OptimiserConfig(lr=1e-3),
        seed=settings["seed"],
    )


def process_rewards_run(
    settings: dict, config: PRMConfig, on_step: OnStep
) -> tuple[dict, list[dict]]:
    """Train five reward models on the policy's responses; each has equally many checks.

    soft, hard        process reward models: labels from ROLLOUTS continuations of each step
    outcome           the same continuations as whole responses, each with its outcome as the only
                      label, at its last step
    outcome, all      the same, with the outcome as the label of every step
    checked           each step labelled by the rule itself, one label a step

    The row says how often each picks a right response among TRIES (`best of 16, ...`), and how
    often it finds the first wrong step (`first wrong step, ...`), beside the policy's own
    log-probabilities. The History is empty.
    """
    policy, tokenizer = load_policy(MODEL)
    seed = config.seed
    data = training_rows(policy, tokenizer, seed)
    ends = step_end_ids(policy, tokenizer, config.step_end)
    asked = arithmetic.problems("test", ASKED // 2, levels=LEVELS)
    prompts = [p.prompt for p in asked for _ in range(TRIES)]
    texts = sampled_texts(policy, tokenizer, prompts, seed=4000 + seed)
    right = torch.tensor(right_answer(prompts, texts), device="cpu").view(-1, TRIES)
    cases = own_errors(prompts, texts, seed)
    planted = planted_errors(asked)
    row: dict[str, Any] = {
        f"labels, {name}": sum(y is not None for r in rows["labels"] for y in r)
        for name, rows in data.items()
    }
    row |= {
        "picked at random": right.mean().item(),
        "best possible": right.amax(1).mean().item(),
        "own cases": len(cases),
        "planted cases": len(planted),
    }
    for name, rows in data.items():
        backbone = trainable(policy).base_model
        scorer, history = train_prm(backbone, tokenizer, rows, config, on_step=on_step)
        row[f"loss, {name}"] = sum(r["loss"] for r in history[-50:]) / 50
        read = in_batches(partial(step_logits, scorer, ends=ends), tokenizer, prompts, texts)
        for how in STEP_AGGREGATIONS:
            scores = torch.cat([process_reward_score(*r, how=how) for r in read])
            row |= picked(f"best of {TRIES}, {name}, {how}", scores, right)
        for kind, some in (("own", cases), ("planted", planted)):
            row |= located(
                f"first wrong step, {kind}, {name}",
                blamed_by_scorer(scorer, tokenizer, some, ends),
                some,
            )
    for kind, some in (("own", cases), ("planted", planted)):
        row |= located(
            f"first wrong step, {kind}, surprisal",
            blamed_by_surprisal(policy, tokenizer, some),
            some,
        )
        row[f"first wrong step, {kind}, by chance"] = sum(
            1 / (r.count("=") + 1) for r in some["response"]
        ) / len(some)
    likely = torch.cat(
        in_batches(
            lambda batch: policy_logprobs(policy, batch).where(batch.response_mask, 0).sum(1),
            tokenizer,
            prompts,
            texts,
        )
    )
    return row | picked(f"best of {TRIES}, log-probability", likely, right), []


def training_rows(
    policy: Policy, tokenizer: PreTrainedTokenizerBase, seed: int
) -> dict[str, Dataset]:
    """The rows of each reward model, by its name; see `process_rewards_run`."""
    problems = arithmetic.problems("train", 8000, seed=10 + seed, levels=LEVELS)
    prompts = [p.prompt for p in problems[:PROBLEMS]]
    batch = sample_text(
        policy, tokenizer, prompts, config=SAMPLING, seed=5000 + seed, batch_size=PROBLEMS
    )[0]
    seen: list[tuple[str, str, float]] = []  # every response whose answer was checked

    def right(prompts: list[str], texts: list[str]) -> list[float]:
        found = right_answer(prompts, texts)
        seen.extend(zip(prompts, texts, found, strict=True))
        return found

    soft = continuation_labels(
        policy,
        tokenizer,
        prompts,
        batch,
        right,
        step_end="=",
        count=ROLLOUTS,
        sampling=SAMPLING,
        generator=torch.Generator().manual_seed(6000 + seed),
    )
    hard = soft.map(lambda row: {"labels": [float(y > 0) for y in row["labels"]]})
    outcome = [
        {"prompt": prompt, "completions": steps, "labels": [None] * (len(steps) - 1) + [float(z)]}
        for prompt, text, z in seen
        if all(steps := text.split("="))
    ]
    every = [row | {"labels": [row["labels"][-1]] * len(row["labels"])} for row in outcome]
    # as many labels from the rule: the steps of other responses, up to the first wrong one
    more = [p.prompt for p in problems[PROBLEMS : PROBLEMS + len(outcome) // 2 + 8]]
    texts = sampled_texts(policy, tokenizer, more, seed=7000 + seed)
    checked: list[dict] = []
    count = 0
    for prompt, text in zip(more, texts, strict=True):
        steps = text.split("=")
        if count < len(outcome) and all(steps):
            labels: list[float | None] = [float(y) for y in checked_steps(prompt, text)]
            count += len(labels)
            labels += [None] * (len(steps) - len(labels))
            checked.append({"prompt": prompt, "completions": steps, "labels": labels})
    rows = {"outcome": outcome, "outcome, all": every, "checked": checked}
    return {"soft": soft, "hard": hard} | {n: Dataset.from_list(r) for n, r in rows.items()}


def in_batches(
    read: Callable[[Rollout], Any],
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    texts: list[str],
    size: int = 512,
) -> list:
    """What `read` finds in these responses, batch by batch, without gradients."""
    with torch.no_grad():
        return [
            read(encode(tokenizer, prompts[i : i + size], texts[i : i + size]))
            for i in range(0, len(texts), size)
        ]


def picked(name: str, scores: torch.Tensor, right: torch.Tensor) -> dict:
    """How often the response with the highest score is right; 95 % interval over problems."""
    best = scores.view(right.shape).argmax(1, keepdim=True)
    return with_interval(name, right.gather(1, best)[:, 0])


def located(name: str, blamed: list[int], cases: Dataset) -> dict:
    """How often the blamed step is the wrong one; 95 % interval over cases."""
    found = [float(a == b) for a, b in zip(blamed, cases["step"], strict=True)]
    return with_interval(name, torch.tensor(found, device="cpu"))


def with_interval(name: str, values: torch.Tensor) -> dict:
    """The mean and its interval."""
    low, high = evaluate.bootstrap(values)
    return {name: values.mean().item(), f"{name}, interval": [low, high]}


def own_errors(prompts: list[str], texts: list[str], seed: int) -> Dataset:
    """Up to 400 samples with a wrong step: prompt, response, step (the first wrong one)."""
    rows = []
    for prompt, text in dict.fromkeys(zip(prompts, texts, strict=True)):
        found = checked_steps(prompt, text)
        if not found[-1] and all(text.split("=")) and len(found) <= text.count("=") + 1:
            rows.append({"prompt": prompt, "response": text, "step": len(found) - 1})
    return Dataset.from_list(random.Random(seed).sample(rows, min(400, len(rows))))


def planted_errors(found: list[arithmetic.Problem]) -> Dataset:
    """Right solutions with one wrong digit, continued from it: prompt, response, step."""
    draw, rows = random.Random(0), []
    for p in found:
        text, place = arithmetic.planted_error(p.expression, draw)
        rows.append({"prompt": p.prompt, "response": text, "step": text[:place].count("=")})
    return Dataset.from_list(rows)


def blamed_by_scorer(
    scorer: ScalarModel,
    tokenizer: PreTrainedTokenizerBase,
    cases: Dataset,
    ends: tuple[int, ...],
) -> list[int]:
    """The first step whose probability is below 1/2; if there is none, the step with the lowest."""
    logits, mask = in_batches(
        partial(step_logits, scorer, ends=ends),
        tokenizer,
        cases["prompt"][:],
        cases["response"][:],
    )[0]
    bad = (logits < 0) & mask
    lowest = logits.where(mask, torch.inf).argmin(1)
    return torch.where(bad.any(1), bad.byte().argmax(1), lowest).tolist()


def blamed_by_surprisal(
    policy: Policy, tokenizer: PreTrainedTokenizerBase, cases: Dataset
) -> list[int]:
    """The step with the token that the policy itself finds least likely."""
    texts = cases["response"][:]
    batch = encode(tokenizer, cases["prompt"][:], texts)
    with torch.no_grad():
        logprobs = policy_logprobs(policy, batch)
    least = logprobs.where(batch.response_mask, torch.inf).argmin(1).tolist()
    return [text[:at].count("=") for text, at in zip(texts, least, strict=True)]
