"""Process and outcome reward models on long calculations, with equally many checks."""

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerBase

from minirlhf.core.process_reward import STEP_AGGREGATIONS, process_reward_score
from minirlhf.core.rollout import Rollout
from minirlhf.experiments.steps import (
    ASKED,
    LEVELS,
    MODEL,
    SAMPLING,
    TRIES,
    sampled_texts,
)
from minirlhf.loops.config import OptimiserConfig
from minirlhf.loops.process_reward import PRMConfig, train_prm
from minirlhf.loops.step_labels import continuation_labels
from minirlhf.models.adapters import Policy
from minirlhf.models.forward import encode, policy_logprobs
from minirlhf.models.heads import ScalarModel
from minirlhf.models.load import load_policy
from minirlhf.models.logprob_input import WithLogprobs
from minirlhf.models.sampling import sample_text
from minirlhf.models.steps import step_end_ids, step_logits
from minirlhf.rewards.rules import right_answer
from minirlhf.runtime import OnStep
from minirlhf.tasks import arithmetic
from minirlhf.tour import trainable

PROBLEMS, ROLLOUTS = 400, 8  # problems whose responses are read; continuations of each step


def process_rewards_config(settings: dict) -> PRMConfig:
    """Settings of the training of each reward model: `seed`; see `process_rewards_run`.

    With `logprobs` or `frozen` only the head is trained, so fewer and longer updates are enough.
    """
    head_alone = "logprobs" in settings or "frozen" in settings
    return PRMConfig(
        step_end="=",
        steps=100 if head_alone else 400,
        batch_size=32,
        optimiser=OptimiserConfig(lr=1e-2 if head_alone else 1e-3),
        seed=settings["seed"],
    )


def process_rewards_run(
    settings: dict, config: PRMConfig, on_step: OnStep
) -> tuple[dict, list[dict]]:
    """Train one reward model on the policy's responses, and see what it is good for.

    `labels` names the training rows, as `training_rows` gives them. All have equally many checks.
    None: no reward model. The policy's own log-probabilities take its place. `checks`: as many
    checks of the rule instead. `logprobs`: the policy's log-probabilities are a further input, see
    `WithLogprobs`, and only the head is trained. `frozen`: only the head is trained, without this
    input.

    The History is empty. The row:

        labels, loss     number of labels; mean loss of the last 50 steps (nats per label)
        best_last, best_min, best_product
                         how often the response with the highest score among TRIES is right, for
                         each way to score a response; without a reward model the score is the
                         log-probability of the response, in best_product
        random, possible the same for a response picked at random, and for a perfect judge
        own, planted     how often the blamed step is the first wrong one: in the policy's own wrong
                         responses, and in right ones with one wrong digit
        chance_own, chance_planted  the same for a step picked at random; own_cases: their number
        best_..._by_prompt, planted_by_prompt   the same, case by case

    Without a reward model the row also has what such a model could reach:

        blind            the pick of a judge that scores each different text at random
        majority         the most frequent final answer among the TRIES responses is right
        labels_half, labels_fall
                         `own`, if the labels were known: soft labels of ROLLOUTS continuations; the
                         blamed step is the first below 1/2 (else the lowest), or that of the
                         largest fall
    """
    policy, tokenizer = load_policy(MODEL)
    seed = config.seed
    row: dict[str, Any] = {}
    ends = step_end_ids(policy, tokenizer, config.step_end)
    asked = arithmetic.problems("test", ASKED // 2, levels=LEVELS)
    prompts = [p.prompt for p in asked for _ in range(TRIES)]
    texts = sampled_texts(policy, tokenizer, prompts, seed=4000 + seed)
    right = torch.tensor(right_answer(prompts, texts), device="cpu").view(-1, TRIES)
    cases = {"own": own_errors(prompts, texts, seed), "planted": planted_errors(asked)}
    if settings["labels"] is None:
        likely = in_batches(
            lambda batch: policy_logprobs(policy, batch).where(batch.response_mask, 0).sum(1),
            tokenizer,
            prompts,
            texts,
        )
        scores = {"product": torch.cat(likely)}
        row |= without_a_judge(texts, right)
        chances = dict(zip(prompts[::TRIES], right.mean(1).tolist(), strict=True))
        row |= located_by_labels(policy, tokenizer, cases["own"], chances, seed)
        blamed = {k: blamed_by_surprisal(policy, tokenizer, some) for k, some in cases.items()}
    else:
        if "checks" in settings:
            rows = rule_rows(policy, tokenizer, settings["checks"], seed)
        else:
            rows = training_rows(policy, tokenizer, seed)[settings["labels"]]
        if "logprobs" in settings:
            backbone: nn.Module = WithLogprobs(policy, ends)
        elif "frozen" in settings:
            backbone = policy.base_model.requires_grad_(False)
        else:
            backbone = trainable(policy).base_model
        scorer, history = train_prm(backbone, tokenizer, rows, config, on_step=on_step)
        row["labels"] = sum(y is not None for labels in rows["labels"] for y in labels)
        row["loss"] = sum(r["loss"] for r in history[-50:]) / len(history[-50:])
        read = in_batches(partial(step_logits, scorer, ends=ends), tokenizer, prompts, texts)
        scores = {
            how: torch.cat([process_reward_score(*r, how=how) for r in read])
            for how in STEP_AGGREGATIONS
        }
        blamed = {k: blamed_by_scorer(scorer, tokenizer, c, ends) for k, c in cases.items()}
    for how, of_responses in scores.items():
        found = picked(of_responses, right)
        row |= {f"best_{how}": found.mean().item(), f"best_{how}_by_prompt": found.tolist()}
    row |= {"random": right.mean().item(), "possible": right.amax(1).mean().item()}
    for kind, some in cases.items():
        row[kind] = located(blamed[kind], some).mean().item()
        row[f"chance_{kind}"] = sum(1 / (r.count("=") + 1) for r in some["response"]) / len(some)
    row["planted_by_prompt"] = located(blamed["planted"], cases["planted"]).tolist()
    return row | {"own_cases": len(cases["own"])}, []


def training_rows(
    policy: Policy, tokenizer: PreTrainedTokenizerBase, seed: int
) -> dict[str, Dataset]:
    """The training rows of each reward model, by its name.

    soft, hard            labels of steps, from ROLLOUTS continuations of each step
    outcome               the same continuations as whole responses, each with its outcome as the
                          only label, at its last step
    outcome, every step   the same, with the outcome as the label of every step
    rule                  each step labelled by the rule itself, one label a step
    """
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
    more = [p.prompt for p in problems[PROBLEMS : PROBLEMS + len(outcome) // 2 + 8]]
    checked = labelled_by_rule(policy, tokenizer, more, len(outcome), seed)
    rows = {"outcome": outcome, "outcome, every step": every, "rule": checked}
    return {"soft": soft, "hard": hard} | {n: Dataset.from_list(r) for n, r in rows.items()}


def rule_rows(
    policy: Policy, tokenizer: PreTrainedTokenizerBase, checks: int, seed: int
) -> Dataset:
    """Rows labelled by the rule, as in `training_rows`, with this many checks, or a few more."""
    count = PROBLEMS + checks // 3 + 8  # about four steps of a response are read
    problems = arithmetic.problems("train", count, seed=10 + seed, levels=LEVELS)
    prompts = [p.prompt for p in problems[PROBLEMS:]]
    return Dataset.from_list(labelled_by_rule(policy, tokenizer, prompts, checks, seed))


def labelled_by_rule(
    policy: Policy, tokenizer: PreTrainedTokenizerBase, prompts: list[str], checks: int, seed: int
) -> list[dict]:
    """One response to each prompt, its steps labelled by the rule up to the first wrong one.

    The rule reads no further response after this many checks.
    """
    texts = sampled_texts(policy, tokenizer, prompts, seed=7000 + seed)
    rows: list[dict] = []
    count = 0
    for prompt, text in zip(prompts, texts, strict=True):
        if count < checks and all(text.split("=")):
            rows.append(arithmetic.labelled_steps(prompt, text))
            count += len(arithmetic.checked_steps(prompt, text))
    return rows


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


def picked(scores: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Whether the response with the highest score is right, for each problem."""
    best = scores.view(right.shape).argmax(1, keepdim=True)
    return right.gather(1, best)[:, 0]


def located(blamed: list[int], cases: Dataset) -> torch.Tensor:
    """Whether the blamed step is the first wrong one, for each case."""
    found = [float(a == b) for a, b in zip(blamed, cases["step"], strict=True)]
    return torch.tensor(found, device="cpu")


def without_a_judge(texts: list[str], right: torch.Tensor) -> dict[str, float]:
    """blind and majority, see `process_rewards_run`. Responses to a prompt stand side by side."""
    blind, majority = [], []
    for i, row in enumerate(right.tolist()):
        some = texts[i * len(row) : (i + 1) * len(row)]
        of_text = dict(zip(some, row, strict=True))
        blind.append(sum(of_text.values()) / len(of_text))
        answers = [arithmetic.answer_of(text) for text in some]
        most = max(answers, key=answers.count)
        majority.append(row[answers.index(most)])
    return {"blind": sum(blind) / len(blind), "majority": sum(majority) / len(majority)}


def located_by_labels(
    policy: Policy,
    tokenizer: PreTrainedTokenizerBase,
    cases: Dataset,
    chances: dict[str, float],
    seed: int,
) -> dict[str, float]:
    """labels_half and labels_fall, see `process_rewards_run`.

    Args:
        chances: prompt -> share of right responses, the label before the first step.
    """
    labelled = continuation_labels(
        policy,
        tokenizer,
        cases["prompt"][:],
        encode(tokenizer, cases["prompt"][:], cases["response"][:]),
        right_answer,
        step_end="=",
        count=ROLLOUTS,
        sampling=SAMPLING,
        generator=torch.Generator().manual_seed(8000 + seed),
    )
    half, fall = [], []
    for prompt, labels in zip(labelled["prompt"], labelled["labels"], strict=True):
        low = [k for k, y in enumerate(labels) if y < 0.5]
        half.append(low[0] if low else labels.index(min(labels)))
        changes = [y - x for x, y in zip([chances[prompt], *labels], labels, strict=False)]
        fall.append(changes.index(min(changes)))
    return {
        "labels_half": located(half, cases).mean().item(),
        "labels_fall": located(fall, cases).mean().item(),
    }


def own_errors(prompts: list[str], texts: list[str], seed: int) -> Dataset:
    """Up to 400 samples with a wrong step: prompt, response, step (the first wrong one)."""
    rows = []
    for prompt, text in dict.fromkeys(zip(prompts, texts, strict=True)):
        found = arithmetic.checked_steps(prompt, text)
        if not found[-1] and all(text.split("=")):
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
