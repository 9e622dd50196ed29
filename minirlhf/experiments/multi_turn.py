"""An agent that learns from its own trajectories: DPO, KTO and GRPO, with and without the mask."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from minirlhf.core.rollout import Rollout, Score
from minirlhf.experiments.agent import ASKED, SAMPLING, asked_once, judged_agent
from minirlhf.loops.config import KLConfig, OptimiserConfig
from minirlhf.loops.family import GroupFormulas
from minirlhf.loops.group import GroupConfig, train_group
from minirlhf.loops.losses import DPOFormulas
from minirlhf.loops.online import OnlineConfig, pairs_of, responses_in_parts, train_online
from minirlhf.loops.preference import DPOConfig
from minirlhf.models.adapters import Policy, SomePolicy
from minirlhf.models.agent import Tool
from minirlhf.models.fit import end_ids
from minirlhf.models.forward import encode, encode_prompts, policy_logprobs
from minirlhf.models.load import load_policy
from minirlhf.models.sampling import SamplingConfig, sample
from minirlhf.rewards.function import reward_function
from minirlhf.rewards.rules import right_with_calculator
from minirlhf.runtime import History, OnStep, Row
from minirlhf.tasks.calculator import Calculator, problems
from minirlhf.tour import trainable

ITERATIONS, REFRESH = 3, 12  # sample, pair, train; steps of each iteration
SAMPLES, PROMPTS = 8, 32  # responses to a prompt, prompts of a step
OPTIMISER = OptimiserConfig(lr=1e-4)


def multi_turn_config(
    settings: dict,
    *,
    steps: int = ITERATIONS * REFRESH,
    refresh: int = REFRESH,
    prompts: int = PROMPTS,
    samples: int = SAMPLES,
    beta: float = 0.1,
    missing_eos_penalty: float = 0.0,
    sampling: SamplingConfig = SAMPLING,
    optimiser: OptimiserConfig = OPTIMISER,
) -> OnlineConfig | GroupConfig:
    """Settings of a run: `method` is "start", "dpo", "kto" or "grpo", and `follows` a bool.

    follows: after each iteration the reference becomes the policy; else it stays the start. The
    tool's settings are in `multi_turn_run`.

    Args:
        refresh: steps of an iteration. prompts: of a step. samples: responses to each.
    """
    seed = settings["seed"]
    if settings["method"] in ("grpo", "start"):
        return GroupConfig.named(
            "grpo",
            steps=steps,
            prompts_per_step=prompts,
            group_size=samples,
            minibatch_size=prompts * samples,
            epochs=1,
            missing_eos_penalty=missing_eos_penalty,
            kl=KLConfig(kl_coef=0.0),
            sampling=sampling,
            optimiser=optimiser,
            seed=seed,
        )
    return OnlineConfig(
        samples=samples,
        refresh=refresh,
        pick="labels" if settings["method"] == "kto" else "best and worst",
        missing_eos_penalty=missing_eos_penalty,
        sampling=sampling,
        dpo=DPOConfig(
            loss=settings["method"],
            beta=beta,
            steps=steps,
            batch_size=prompts,
            max_response=sampling.max_new_tokens + 1,
            sync_every=refresh if settings.get("follows") else 0,
            optimiser=optimiser,
            seed=seed,
        ),
    )


def multi_turn_run(
    settings: dict, config: OnlineConfig | GroupConfig, on_step: OnStep
) -> tuple[dict, list[dict]]:
    """Train tiny-agent on its own trajectories, and evaluate it on held-out problems.

    `mask`: False: the tool's tokens count as if the policy had written them. `errs`: share of the
    calls that get a wrong result, in training and in the evaluation, except for the shares of
    `calculator.OUTCOMES` (see `judged_agent`). The History has the accuracy after each iteration:
    the share of right answers among single samples.

    The row has the numbers of `judged_agent`, and of `margins` on held-out problems.
    """
    policy, tokenizer = load_policy("tiny-agent")
    seed, errs = settings["seed"], settings.get("errs", 0.0)
    actor = trainable(policy)
    tool = Calculator(tokenizer, error_rate=errs, seed=seed)
    draw: Callable[..., Rollout] = partial(sample, tool=tool)
    if not settings.get("mask", True):
        draw = unmasked(draw)
    practice = product_prompts()
    held_out = [p.prompt for p in problems("test", ASKED)]
    probed: list[dict] = []

    def probe(step: int) -> None:
        judge = Calculator(tokenizer, error_rate=errs, seed=100 + seed)
        found = asked_once(actor, tokenizer, judge, seed=seed, asked=ASKED)
        interval = [found["low"], found["high"]]
        row = {"step": step, "right": found["right"], "right, interval": interval}
        probed.append(row)

    def watch(row: Row) -> None:
        if (row["step"] + 1) % REFRESH == 0:
            probe(row["step"] + 1)
        on_step(row)

    probe(0)
    score = reward_function(right_with_calculator, tokenizer)
    on: dict[str, Any] = {"reference": policy, "on_step": watch}
    if settings["method"] != "start":
        torch.manual_seed(seed)
        train_multi_turn(actor, tokenizer, practice, score, config, draw, **on)
    judge = Calculator(tokenizer, error_rate=errs, seed=200 + seed)
    row = judged_agent(actor, tokenizer, seed=seed, tool=judge)
    judge = Calculator(tokenizer, error_rate=errs, seed=300 + seed)
    return row | margins(actor, policy, tokenizer, held_out, judge, seed=seed), probed


def product_prompts() -> list[str]:
    """10,000 prompts of the training split."""
    return [p.prompt for p in problems("train", 10_000, seed=1)]


def train_multi_turn(
    model: SomePolicy,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    score: Score,
    config: OnlineConfig | GroupConfig,
    draw: Callable[..., Rollout],
    **on: Any,
) -> tuple[SomePolicy, History]:
    """`train_online` or `train_group`, as the settings have it.

    Args:
        draw: samples responses; `partial(sample, tool=...)` for a policy that can call a tool.
        on: further arguments of both loops, such as on_step and checkpoint.
    """
    if isinstance(config, OnlineConfig):
        formulas = replace(DPOFormulas(), sample=draw)
        return train_online(model, tokenizer, prompts, score, config, formulas=formulas, **on)
    group = replace(GroupFormulas(), sample=draw)
    return train_group(model, tokenizer, prompts, score, config, formulas=group, **on)


def unmasked(draw: Callable[..., Rollout]) -> Callable[..., Rollout]:
    """The same sampling, but every token counts as the policy's own. This is the fault."""

    def sample_all(model: Policy, *args: Any, **options: Any) -> Rollout:
        batch = draw(model, *args, **options)
        every = replace(batch, action_mask=batch.response_mask)
        with torch.no_grad():
            # the probabilities of the tool's tokens under the policy, which did not draw them
            logprobs = policy_logprobs(model, every)
        old = torch.where(batch.action_mask, batch.old_logprobs, logprobs)
        return replace(every, old_logprobs=old)

    return sample_all


@torch.no_grad()
def margins(
    actor: Policy,
    policy: Policy,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    tool: Tool,
    *,
    seed: int,
) -> dict:
    """The margin log pi/pi_ref (chosen) - log pi/pi_ref (rejected), and its part on tool tokens.

    The pairs are a right and a wrong sample of the start, one pair for each prompt that has both.

    Returns:
        margin and margin_on_tool (nats, means over pairs), and margin_pairs, their number.
    """
    generator, eos_id = torch.Generator().manual_seed(seed), end_ids(policy, tokenizer)
    batch = sample(
        policy,
        *encode_prompts(tokenizer, prompts),
        eos_id=eos_id,
        config=SAMPLING,
        samples_per_prompt=SAMPLES,
        generator=generator,
        tool=tool,
    )
    scores = reward_function(right_with_calculator, tokenizer)(batch)
    responses = responses_in_parts(batch, tokenizer, eos_id)
    rows = pairs_of(prompts, responses, scores, OnlineConfig(samples=SAMPLES))
    sums = []
    for side in ("chosen", "rejected"):
        read = encode(tokenizer, rows["prompt"], rows[side])
        every = replace(read, action_mask=read.response_mask)
        ratio = policy_logprobs(actor, every) - policy_logprobs(policy, every)
        on_tool = read.response_mask & ~read.action_mask
        sums.append([ratio.where(m, 0).sum(1).mean() for m in (read.response_mask, on_tool)])
    return {
        "margin": (sums[0][0] - sums[1][0]).item(),
        "margin_on_tool": (sums[0][1] - sums[1][1]).item(),
        "margin_pairs": len(rows["prompt"]),
    }
