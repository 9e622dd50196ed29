"""Runs of the recorded experiments: settings in, (row, History) out.

Each kind of run has two functions. `*_config` turns settings into the config of its loop.
`*_run` trains under that config and evaluates the result on held-out prompts.
"""

import json
import re
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import logsigmoid
from transformers import PreTrainedModel

from minirlhf.core.rollout import Rollout, Score
from minirlhf.experiments.faults import FAULTS, Fault
from minirlhf.experiments.microscope import microscope_run, one_batch_config, one_batch_run
from minirlhf.experiments.multi_turn import multi_turn_config, multi_turn_run
from minirlhf.experiments.overoptimisation import overoptimisation_config, overoptimisation_run
from minirlhf.experiments.planted import planted_config, planted_run
from minirlhf.experiments.practice import TASKS, group_config, judged, scoring
from minirlhf.experiments.preference_runs import (
    order_config,
    order_run,
    preference_config,
    preference_run,
)
from minirlhf.experiments.process_rewards import process_rewards_config, process_rewards_run
from minirlhf.experiments.registry import BRIEF, EXPERIMENTS
from minirlhf.experiments.steps import steps_config, steps_run
from minirlhf.loops.family import GroupFormulas
from minirlhf.loops.group import GroupConfig, train_group
from minirlhf.loops.ppo import PPOConfig, PPOFormulas, train_ppo
from minirlhf.loops.reward import RewardConfig, train_reward_model
from minirlhf.models.adapters import Policy, merged, with_lora
from minirlhf.models.heads import ScalarModel, SharedCritic
from minirlhf.models.load import load_policy, load_scalar
from minirlhf.models.sampling import sample
from minirlhf.rewards.gold import gold_judge
from minirlhf.rewards.model import rollout_judge, rollout_score, text_judge
from minirlhf.runtime import OnStep, commit, write_text
from minirlhf.tasks import reviews
from minirlhf.tour import trainable

RowAndHistory = tuple[dict, list[dict]]


def run_variant(
    name: str, variant: str, seed: int, folder: Path, *, on_step: OnStep
) -> RowAndHistory:
    """One run of an experiment: its row and its History.

    The result is saved in `folder`. A result that is already there, made under the same settings
    and with the same fault's functions, is returned without training. The row's `commit` is the one
    at which the run began; it is "unknown" in results that were saved without it.
    """
    configure, run = RUNS.get(name, (ppo_config, ppo_run))
    settings = EXPERIMENTS[name][variant] | {"seed": seed}
    config = configure(settings)
    key = settings | {"config": config}
    if "fault" in settings:
        key["fault_source"] = FAULTS[settings["fault"]].source()

    def make() -> RowAndHistory:
        begun_at = commit()
        row, history = run(settings, config, on_step)
        return row | {"commit": begun_at}, history

    path = folder / f"{re.sub('[^a-z0-9.+]+', '-', variant.lower())}-{seed}.json"
    row, history = saved(path, key, make)
    return {"commit": "unknown"} | row, history


def saved(path: Path, settings: dict, make: Callable[[], RowAndHistory]) -> RowAndHistory:
    """The (row, History) in the file `path` if it was made under `settings`; else a new one, saved.

    The file is replaced only after the new result is complete.
    """
    wanted = json.loads(json.dumps(settings, default=asdict))
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["config"] == wanted:
            return found["row"], found["history"]
    row, history = make()
    write_text(path, json.dumps({"config": wanted, "row": row, "history": history}))
    return row, history


def reward_config(settings: dict) -> RewardConfig:
    """Settings of a reward model's training: `seed`."""
    return RewardConfig(seed=settings["seed"])


def reward_run(settings: dict, config: RewardConfig, on_step: OnStep) -> RowAndHistory:
    """A reward model trained from the committed SFT model on `pairs` labels. The History is empty.

    The row says how it predicts 2,000 held-out pairs: accuracy, mean loss in nats, and the mean
    probability that it gives to its own prediction.
    """
    policy, tokenizer = load_policy("tiny-reviews-sft")
    labels = reviews.preference_pairs(
        "reward",
        settings["pairs"],
        seed=config.seed,
        max_tokens=config.max_response,
        tokenizer=tokenizer,
    )
    backbone = trainable(policy.base_model)
    model, _ = train_reward_model(backbone, tokenizer, labels, config, on_step=on_step)
    test = reviews.preference_pairs("test", 2000, seed=17)[:]
    judge = text_judge([model], tokenizer)
    margins = judge(test["prompt"], test["chosen"]) - judge(test["prompt"], test["rejected"])
    row = {
        "pairs": settings["pairs"],
        "accuracy": (margins > 0).float().mean().item(),
        "loss": -logsigmoid(margins).mean().item(),
        "confidence": torch.sigmoid(margins.abs()).mean().item(),
    }
    return row, []


def ppo_config(settings: dict) -> PPOConfig:
    """Settings of PPO: `seed`, and `ppo` (fields of PPOConfig)."""
    return PPOConfig(**settings.get("ppo", {}) | {"seed": settings["seed"]})


def ppo_run(settings: dict, config: PPOConfig, on_step: OnStep) -> RowAndHistory:
    """PPO on the reviews from the committed SFT and reward models, evaluated on the test films.

    `critic`: "shared" (a head on the actor's trunk) or "sft" (the SFT model's backbone and a new
    head); left out, the critic starts as the reward model. `lora`: the rank of adapters. `fault`:
    one of FAULTS.
    """
    fault = FAULTS[settings["fault"]] if "fault" in settings else Fault()
    policy, tokenizer = fault.start()
    scorer, _ = load_scalar("tiny-reviews-reward")
    score = fault.score(rollout_score(scorer, tokenizer.eos_token_id))
    gold = rollout_judge(gold_judge(), tokenizer)
    torch.manual_seed(config.seed)  # for a new head and for adapters
    actor, critic = _actor_and_critic(settings, config.seed, policy, scorer)
    started = time.time()
    actor, _, history = train_ppo(
        actor,
        critic,
        tokenizer,
        reviews.rl_prompts(),
        score,
        config,
        reference=None if "lora" in settings else policy,
        monitors={"gold": gold},
        on_step=on_step,
        formulas=PPOFormulas(**fault.formulas),
    )
    seconds = time.time() - started
    row = judged("reviews", merged(actor), tokenizer, reference=policy, seed=config.seed)
    return row | {"seconds": seconds}, list(history)


def _actor_and_critic(
    settings: dict, seed: int, policy: PreTrainedModel, scorer: ScalarModel
) -> tuple[Policy, ScalarModel]:
    """Trainable copies, with the critic and the adapters that the settings ask for."""
    actor: Policy = trainable(policy)
    critic = trainable(scorer)
    if settings.get("critic") == "shared":
        critic = SharedCritic(actor)
    elif settings.get("critic") == "sft":
        critic = ScalarModel(trainable(policy).base_model)
    if rank := settings.get("lora"):
        actor = with_lora(actor, rank, seed=seed)
        critic.backbone = with_lora(critic.backbone, rank, seed=seed)
    return actor, critic


def group_run_config(settings: dict) -> GroupConfig | PPOConfig:
    """Settings of the family of group algorithms, and of PPO beside them.

    `row`: an algorithm, "ppo", or "start" (no training). `task`: arithmetic, if left out. `given`:
    fields of the config. `choices`: what differs from the algorithm's row. PPO samples as many
    responses per step as the others.
    """
    task, name = settings.get("task", "arithmetic"), settings["row"]
    given = {"steps": BRIEF} if task == "arithmetic" else {}
    given |= settings.get("given", {}) | {"seed": settings["seed"]}
    if name == "ppo":
        return _ppo_beside_groups(task, given)
    config = group_config(task, "grpo" if name == "start" else name, **given)
    return replace(config, algorithm=replace(config.algorithm, **settings.get("choices", {})))


def _ppo_beside_groups(task: str, given: dict) -> PPOConfig:
    """PPO with the batch, the optimiser and the sampling of GRPO on this task."""
    same = group_config(task, "grpo", **{k: given[k] for k in ("kl", "steps") if k in given})
    shared = {
        "steps": same.steps,
        "batch_size": same.prompts_per_step * same.group_size,
        "minibatch_size": same.minibatch_size,
        "epochs": same.epochs,
        "actor": same.optimiser,
        "missing_eos_penalty": same.missing_eos_penalty,
        "sampling": same.sampling,
        "kl": same.kl,
    }
    return PPOConfig(**shared | given)


def group_run(settings: dict, config: GroupConfig | PPOConfig, on_step: OnStep) -> RowAndHistory:
    """An algorithm of the family, or PPO, evaluated on held-out prompts; about 25 History rows.

    `jitter`: noise added to every score, uniform in [0, jitter). `dealt`: the scores of each batch
    are dealt out to its responses at random. `levels`: of the arithmetic problems of the
    evaluation. PPO's critic starts as the reward model on the reviews, and as the policy's backbone
    with a new head on arithmetic.
    """
    task = settings.get("task", "arithmetic")
    policy, tokenizer = load_policy(TASKS[task].model)
    asked: dict[str, Any] = {"reference": policy, "seed": config.seed}
    asked |= {"levels": settings["levels"]} if "levels" in settings else {}
    if settings["row"] == "start":
        return judged(task, policy, tokenizer, **asked), []
    score, monitors = scoring(task, policy, tokenizer)
    if "jitter" in settings:
        monitors = {"right": score}
        score = _with_noise(score, settings["jitter"], config.seed)
    if settings.get("dealt"):
        monitors = {"right": score}
        score = _dealt(score, config.seed)
    torch.manual_seed(config.seed)
    actor, prompts = trainable(policy), TASKS[task].prompts()
    on: dict[str, Any] = {"monitors": monitors, "on_step": on_step, "reference": policy}
    clock: list[float] = []
    started = time.time()
    if isinstance(config, PPOConfig):
        critic = _critic_on(task, policy)
        on["formulas"] = PPOFormulas(sample=_timed(sample, clock))
        history = train_ppo(actor, critic, tokenizer, prompts, score, config, **on)[2]
    else:
        on["formulas"] = GroupFormulas(sample=_timed(sample, clock))
        history = train_group(actor, tokenizer, prompts, score, config, **on)[1]
    seconds = {"seconds": time.time() - started, "sampling_seconds": sum(clock)}
    every = max(1, config.steps // 25)
    row = judged(task, actor, tokenizer, **asked)
    return row | seconds, [step for step in history if step["step"] % every == 0]


def _critic_on(task: str, policy: PreTrainedModel) -> ScalarModel:
    if task == "reviews":
        return trainable(load_scalar("tiny-reviews-reward")[0])
    return trainable(ScalarModel(trainable(policy).base_model))


def _with_noise(score: Score, size: float, seed: int) -> Score:
    """The score plus noise that is uniform in [0, size)."""
    generator = torch.Generator().manual_seed(seed)

    def noisy(rollout: Rollout) -> torch.Tensor:
        scores = score(rollout)
        return scores + size * torch.rand(scores.shape, generator=generator, device="cpu")

    return noisy


def _dealt(score: Score, seed: int) -> Score:
    """The scores of a batch in a random order: no score belongs to its response any more."""
    generator = torch.Generator().manual_seed(seed)

    def dealt(rollout: Rollout) -> torch.Tensor:
        scores = score(rollout)
        return scores[torch.randperm(len(scores), generator=generator, device="cpu")]

    return dealt


def _timed(function: Callable, clock: list[float]) -> Callable:
    """The same function; each call appends its seconds to `clock`."""

    def timed(*args: Any, **kwargs: Any) -> Any:
        started = time.time()
        result = function(*args, **kwargs)
        clock.append(time.time() - started)
        return result

    return timed


# experiment -> (settings -> config, run); the experiments left out are runs of PPO
RUNS: dict[str, tuple[Callable, Callable]] = {
    "labels": (reward_config, reward_run),
    "family": (group_run_config, group_run),
    "jitter": (group_run_config, group_run),
    "longer": (group_run_config, group_run),
    "dealt": (group_run_config, group_run),
    "hacking": (group_run_config, group_run),
    "parts": (group_run_config, group_run),
    "planted": (planted_config, planted_run),
    "microscope": (ppo_config, microscope_run),
    "one_batch": (one_batch_config, one_batch_run),
    "betas": (preference_config, preference_run),
    "preference": (preference_config, preference_run),
    "order": (order_config, order_run),
    "multi_turn": (multi_turn_config, multi_turn_run),
    "steps": (steps_config, steps_run),
    "process_rewards": (process_rewards_config, process_rewards_run),
    "overoptimisation": (overoptimisation_config, overoptimisation_run),
}
