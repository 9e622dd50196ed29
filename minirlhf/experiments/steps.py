"""Feedback on steps: tiny-long-steps, Step-DPO beside DPO, and process beside outcome rewards."""

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from minirlhf import evaluate
from minirlhf.core.process_reward import STEP_AGGREGATIONS, process_reward_score
from minirlhf.core.rollout import Rollout
from minirlhf.experiments.agent import imitate
from minirlhf.loops.config import OptimiserConfig
from minirlhf.loops.online import OnlineConfig, train_online
from minirlhf.loops.preference import DPOConfig
from minirlhf.loops.pretrain import PretrainConfig, new_gpt2
from minirlhf.loops.process_reward import PRMConfig, continuation_labels, train_prm
from minirlhf.loops.step_dpo import StepDPOConfig, train_step_dpo
from minirlhf.models.adapters import Policy, fused_gelu
from minirlhf.models.forward import decode, encode, policy_logprobs
from minirlhf.models.heads import ScalarModel
from minirlhf.models.load import load_policy
from minirlhf.models.sampling import SamplingConfig, sample_text
from minirlhf.models.steps import step_end_ids, step_logits
from minirlhf.rewards.function import reward_function
from minirlhf.rewards.rules import right_answer
from minirlhf.runtime import History, OnStep, Row, seed_all
from minirlhf.tasks import arithmetic
from minirlhf.tour import trainable

MODEL = "tiny-long-steps"
LEVELS = (arithmetic.LONG,)
DEMONSTRATIONS, STEPS = 60_000, 650  # of tiny-long-steps
ASKED, TRIES = 400, 16  # held-out problems, and samples of each
SAMPLING = SamplingConfig(max_new_tokens=72, temperature=1.0)
PROBE_EVERY = 10  # steps


def train_tiny_long_steps(
    seed: int = 0, steps: int = STEPS, *, history: History | None = None, **on: Any
) -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast, History]:
    """Train tiny-long-steps: a new GPT-2 of 0.6 M parameters, on 60,000 solved long problems.

    All demonstrations are written in steps, four to six of them. The training is stopped early on
    purpose, when about one step in ten is wrong.

    Args:
        on: on_step and checkpoint, as of `imitate`.

    Returns:
        (model, tokenizer, history).
    """
    tokenizer, history = arithmetic.step_tokenizer(), History() if history is None else history
    rows = arithmetic.rows(arithmetic.problems("train", DEMONSTRATIONS, levels=LEVELS))
    seed_all(seed)
    model = fused_gelu(new_gpt2(tokenizer, layers=3, width=128, positions=128))
    config = PretrainConfig(steps=steps, batch_size=64, lr=2e-3, seed=seed)
    imitate(model, tokenizer, rows, config, history=history, **on)
    return model, tokenizer, history


def judged_steps(
    policy: Policy,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    asked: int | None = None,
    samples: int | None = None,
) -> dict:
    """Evaluate a policy on held-out long problems.

    Args:
        asked: how many problems (ASKED). samples: of each (TRIES).

    Returns:
        The numbers of `evaluate.pass_summary`, and step_right: the share of right steps among those
        of single samples, each up to and including its first wrong step.
    """
    prompts = [p.prompt for p in arithmetic.problems("test", asked or ASKED, levels=LEVELS)]
    row = evaluate.pass_summary(
        policy,
        tokenizer,
        prompts,
        right_answer,
        samples=samples or TRIES,
        seed=1000 + seed,
        config=SAMPLING,
    )
    texts = sampled_texts(policy, tokenizer, prompts, seed=2000 + seed)
    checked = [checked_steps(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
    wrong = sum(not row[-1] for row in checked)
    return row | {"step_right": 1 - wrong / sum(map(len, checked))}


def sampled_texts(
    policy: Policy, tokenizer: PreTrainedTokenizerBase, prompts: list[str], *, seed: int
) -> list[str]:
    """One sampled response to each prompt, as text."""
    drawn = sample_text(policy, tokenizer, prompts, config=SAMPLING, seed=seed, batch_size=512)
    return [text for batch in drawn for text in decode(tokenizer, batch)]


def checked_steps(prompt: str, response: str) -> list[bool]:
    """What a checker finds who reads a response step by step and stops at the first wrong one."""
    steps = [step + "=" for step in response.split("=")]
    steps[-1] = steps[-1].removesuffix("=")
    before, found = "", []
    for step in steps:
        found.append(arithmetic.right_step(prompt, before, step))
        before += step
        if not found[-1]:
            break
    return found


def long_problems() -> list[str]:
    """10,000 prompts of the training split."""
    return [p.prompt for p in arithmetic.problems("train", 10_000, seed=1, levels=LEVELS)]


# One step of Step-DPO and of DPO samples responses to as many prompts.
OWN = DPOConfig(
    beta=0.1,
    steps=60,
    batch_size=64,
    max_response=SAMPLING.max_new_tokens + 24,
    optimiser=OptimiserConfig(lr=5e-5),
)


def steps_config(settings: dict) -> Any:
    """Settings of a run: `way` is "start", "step", "whole" or "readers"; `given` changes OWN."""
    dpo = replace(OWN, seed=settings["seed"], **settings.get("given", {}))
    configs: dict[str, Any] = {
        "step": StepDPOConfig(
            step_end="=", max_step=24, sampling=SAMPLING, dpo=replace(dpo, append_eos=False)
        ),
        "whole": OnlineConfig(samples=2, missing_eos_penalty=0.0, sampling=SAMPLING, dpo=dpo),
        "readers": PRMConfig(
            step_end="=",
            steps=400,
            batch_size=32,
            optimiser=OptimiserConfig(lr=1e-3),
            seed=settings["seed"],
        ),
        "start": dpo,
    }
    return configs[settings["way"]]


def steps_run(settings: dict, config: Any, on_step: OnStep) -> tuple[dict, list[dict]]:
    """Step-DPO or DPO on whole responses, from the committed model; or readers of its responses.

    The History of the two has, after every PROBE_EVERY steps, the share of right answers among
    single samples, and how much was checked so far:

        labels     steps that a checker has read, who stops at the first wrong one
        answers    responses that were checked
    """
    policy, tokenizer = load_policy(MODEL)
    seed = settings["seed"]
    if settings["way"] == "start":
        return judged_steps(policy, tokenizer, seed=seed), []
    if settings["way"] == "readers":
        return readers_run(policy, tokenizer, config, on_step), []
    actor, count = trainable(policy), {"labels": 0, "answers": 0}
    practice = long_problems()
    asked = arithmetic.problems("test", ASKED, levels=LEVELS)
    probed: list[dict] = []

    def probe(step: int) -> None:
        texts = sampled_texts(actor, tokenizer, [p.prompt for p in asked], seed=3000 + seed)
        right = right_answer([p.prompt for p in asked], texts)
        probed.append({"step": step, "right": sum(right) / len(right)} | count)

    def watch(row: Row) -> None:
        if (row["step"] + 1) % PROBE_EVERY == 0:
            probe(row["step"] + 1)
        on_step(row)

    probe(0)
    on: dict[str, Any] = {"reference": policy, "on_step": watch}
    if settings["way"] == "step":

        def judge(prompt: str, before: str, step: str) -> bool:
            count["labels"] += 1
            return arithmetic.right_step(prompt, before, step)

        train_step_dpo(actor, tokenizer, practice, judge, config, **on)
    else:

        def right(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
            pairs = zip(prompts, completions, strict=True)
            count["labels"] += sum(len(checked_steps(*pair)) for pair in pairs)
            count["answers"] += len(prompts)
            return right_answer(prompts, completions)

        train_online(actor, tokenizer, practice, reward_function(right, tokenizer), config, **on)
    return judged_steps(actor, tokenizer, seed=seed) | count, probed


PROBLEMS, ROLLOUTS = 400, 8  # problems whose responses are read; continuations of each step


def readers_run(
    policy: Any, tokenizer: PreTrainedTokenizerBase, config: PRMConfig, on_step: OnStep
) -> dict:
    """Four readers of the policy's responses, trained on equally many labels.

    soft, hard        process reward models: labels from ROLLOUTS continuations of each step
    outcome           the same continuations as whole responses, each with its outcome as the only
                      label, at its last step
    outcome, all      the same, with the outcome as the label of every step
    checked           each step labelled by the rule itself, one label a step

    The row says how often each picks a right response among TRIES (`best of 16, ...`), and how
    often it finds the first wrong step (`first wrong step, ...`), beside the policy's own
    log-probabilities.
    """
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
        reader, history = train_prm(backbone, tokenizer, rows, config, on_step=on_step)
        row[f"loss, {name}"] = sum(r["loss"] for r in history[-50:]) / 50
        read = in_batches(partial(step_logits, reader, ends=ends), tokenizer, prompts, texts)
        for how in STEP_AGGREGATIONS:
            scores = torch.cat([process_reward_score(*r, how=how) for r in read])
            row |= picked(f"best of {TRIES}, {name}, {how}", scores, right)
        for kind, some in (("own", cases), ("planted", planted)):
            row |= located(
                f"first wrong step, {kind}, {name}",
                reader_blame(reader, tokenizer, some, ends),
                some,
            )
    for kind, some in (("own", cases), ("planted", planted)):
        row |= located(
            f"first wrong step, {kind}, surprisal", surprisal_blame(policy, tokenizer, some), some
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
    return row | picked(f"best of {TRIES}, log-probability", likely, right)


def training_rows(
    policy: Policy, tokenizer: PreTrainedTokenizerBase, seed: int
) -> dict[str, Dataset]:
    """The rows of each reader, by its name; see `readers_run`."""
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


def reader_blame(
    reader: ScalarModel,
    tokenizer: PreTrainedTokenizerBase,
    cases: Dataset,
    ends: tuple[int, ...],
) -> list[int]:
    """The first step whose probability is below 1/2; if there is none, the step with the lowest."""
    logits, mask = in_batches(
        partial(step_logits, reader, ends=ends),
        tokenizer,
        cases["prompt"][:],
        cases["response"][:],
    )[0]
    bad = (logits < 0) & mask
    lowest = logits.where(mask, torch.inf).argmin(1)
    return torch.where(bad.any(1), bad.byte().argmax(1), lowest).tolist()


def surprisal_blame(
    policy: Policy, tokenizer: PreTrainedTokenizerBase, cases: Dataset
) -> list[int]:
    """The step with the token that the policy itself finds least likely."""
    texts = cases["response"][:]
    batch = encode(tokenizer, cases["prompt"][:], texts)
    with torch.no_grad():
        logprobs = policy_logprobs(policy, batch)
    least = logprobs.where(batch.response_mask, torch.inf).argmin(1).tolist()
    return [text[:at].count("=") for text, at in zip(texts, least, strict=True)]
