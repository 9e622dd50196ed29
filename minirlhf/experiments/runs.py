"""The runs behind the recorded experiments: each trains once under given settings, judges on held-out prompts, and is kept in a file."""

import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from unittest.mock import patch

import torch
from datasets import Dataset
from torch.nn.functional import logsigmoid

from minirlhf.core.logprobs import sequence_logprobs
from minirlhf.experiments.practice import TASKS, group_config, judged, scoring
from minirlhf.loops.config import OptimiserConfig
from minirlhf.loops.group import train_group
from minirlhf.loops.online import ONLINE, OnlineConfig, train_online
from minirlhf.loops.ppo import PPOConfig, train_ppo
from minirlhf.loops.preference import DPOConfig, train_dpo
from minirlhf.loops.reward import RewardConfig, train_reward_model
from minirlhf.loops.sft import SFTConfig, train_sft
from minirlhf.models.adapters import merged, with_lora
from minirlhf.models.forward import encode, policy_logprobs
from minirlhf.models.heads import ScalarModel, SharedCritic
from minirlhf.models.load import load_policy, load_scalar
from minirlhf.models.sampling import sample
from minirlhf.rewards.gold import gold_judge
from minirlhf.rewards.model import rollout_judge, rollout_score, text_judge
from minirlhf.runtime import write_text
from minirlhf.search.selection import best_of_n
from minirlhf.tasks import reviews
from minirlhf.tasks.formats import texts_once
from minirlhf.tour import TourConfig, trainable

BRIEF = 80  # steps of the arithmetic runs: a fifth of the command line's
BEST = 8  # samples of a prompt, of which the best is imitated


def kept(
    path: Path, settings, make: Callable[[], tuple[dict, list[dict]]]
) -> tuple[dict, list[dict]]:
    """(row, History) of an earlier run under the same settings, or of one that is made now and kept."""
    wanted = json.loads(json.dumps(settings, default=asdict))
    if path.exists() and (kept := json.loads(path.read_text()))["config"] == wanted:
        return kept["row"], kept["history"]
    row, history = make()
    write_text(path, json.dumps({"config": wanted, "row": row, "history": history}))
    return row, history


def label_run(path: Path, settings: dict, on_step: Callable) -> tuple[dict, list[dict]]:
    """A reward model from the committed SFT model on `pairs` labels: (its judgement of 2,000 test pairs, nothing)."""

    def made():
        policy, tokenizer = load_policy("tiny-reviews-sft")
        config = RewardConfig(seed=settings["seed"])
        labels = reviews.preference_pairs(
            "reward",
            settings["pairs"],
            seed=config.seed,
            max_tokens=config.max_response,
            tokenizer=tokenizer,
        )
        model, _ = train_reward_model(
            trainable(policy.base_model), tokenizer, labels, config, on_step=on_step
        )
        test, judge = (
            reviews.preference_pairs("test", 2000, seed=17)[:],
            text_judge([model], tokenizer),
        )
        margins = judge(test["prompt"], test["chosen"]) - judge(test["prompt"], test["rejected"])
        return {
            "pairs": settings["pairs"],
            "accuracy": (margins > 0).float().mean().item(),
            "loss": -logsigmoid(margins).mean().item(),
            "confidence": torch.sigmoid(margins.abs()).mean().item(),
        }, []

    return kept(path, settings, made)


def ppo_run(path: Path, settings: dict, on_step: Callable) -> tuple[dict, list[dict]]:
    """PPO from the committed SFT and reward models under PPOConfig's `settings`: (its judgement on the test films, its History)."""
    return thrifty_run(
        path, {"config": replace(PPOConfig(), **settings), "seed": settings.get("seed", 0)}, on_step
    )


def thrifty_run(path: Path, settings: dict, on_step: Callable) -> tuple[dict, list[dict]]:
    """PPO on the reviews with `critic` "shared" (a head on the actor's trunk) or "sft" (its backbone, a new head), or `lora` adapters."""
    config = settings.get("config", PPOConfig(seed=settings["seed"]))

    def made():
        (policy, tokenizer), (scorer, _) = (
            load_policy("tiny-reviews-sft"),
            load_scalar("tiny-reviews-reward"),
        )
        score, gold = (
            rollout_score(scorer, tokenizer.eos_token_id),
            rollout_judge(gold_judge(), tokenizer),
        )
        torch.manual_seed(config.seed)  # a new head, adapters
        actor, critic = trainable(policy), trainable(scorer)
        if "critic" in settings:
            critic = (
                SharedCritic(actor)
                if settings["critic"] == "shared"
                else ScalarModel(trainable(policy).base_model)
            )
        if rank := settings.get("lora"):
            actor, critic.backbone = (
                with_lora(actor, rank, seed=config.seed),
                with_lora(critic.backbone, rank, seed=config.seed),
            )
        started = time.time()
        actor, _, history = train_ppo(
            actor,
            critic,
            tokenizer,
            reviews.rl_prompts(),
            score,
            config,
            reference=None if rank else policy,
            monitors={"gold": gold},
            on_step=on_step,
        )
        seconds = time.time() - started
        row = judged("reviews", merged(actor), tokenizer, reference=policy, seed=config.seed)
        return row | {"seconds": seconds}, list(history)

    return kept(path, settings, made)


def group_run(path: Path, settings: dict, on_step: Callable) -> tuple[dict, list[dict]]:
    """A `row` of the family, or PPO, on a `task`: (its judgement on held-out prompts, about 25 rows of its History).

    `choices` change the row, `given` the loop's settings; `jitter` is added to each score, uniform in [0, jitter). PPO writes as many
    responses a step, its critic is the policy's backbone with a new head.
    """
    task, name = settings.get("task", "arithmetic"), settings["row"]
    given = (
        ({"steps": BRIEF} if task == "arithmetic" else {})
        | settings.get("given", {})
        | {"seed": settings["seed"]}
    )
    if name == "start":  # the policy that all of them begin with
        config = group_config(task, "grpo", **given)
    elif name == "ppo":
        same = group_config(
            task, "grpo", **{k: v for k, v in given.items() if k in ("kl", "steps")}
        )
        batch = {"batch_size": same.prompts_per_step * same.group_size}
        config = PPOConfig(
            **{
                "steps": same.steps,
                "minibatch_size": same.minibatch_size,
                "epochs": same.epochs,
                "actor": same.optimiser,
                "missing_eos_penalty": same.missing_eos_penalty,
                "sampling": same.sampling,
                "kl": same.kl,
            }
            | batch
            | given
        )
    else:
        config = group_config(task, name, **given)
        config = replace(config, algorithm=replace(config.algorithm, **settings.get("choices", {})))

    def made():
        policy, tokenizer = load_policy(TASKS[task].model)
        if name == "start":
            return judged(task, policy, tokenizer, reference=policy, seed=config.seed), []
        score, monitors = scoring(task, tokenizer)
        if jitter := settings.get("jitter"):
            exact, draw = score, torch.Generator().manual_seed(config.seed)
            score, monitors = (
                (lambda r: (s := exact(r)) + jitter * torch.rand(s.shape, generator=draw)),
                {"right": exact},
            )
        own = {"monitors": monitors, "on_step": on_step, "reference": policy}
        torch.manual_seed(config.seed)
        actor, prompts, clock, started = trainable(policy), TASKS[task].prompts(), [], time.time()
        with patch(
            f"minirlhf.loops.{'ppo' if name == 'ppo' else 'group'}.sample", _clocked(sample, clock)
        ):
            if name == "ppo":
                critic = (
                    load_scalar("tiny-reviews-reward")[0]
                    if task == "reviews"
                    else ScalarModel(trainable(policy).base_model)
                )
                history = train_ppo(
                    actor, trainable(critic), tokenizer, prompts, score, config, **own
                )[2]
            else:
                history = train_group(actor, tokenizer, prompts, score, config, **own)[1]
        seconds = {"seconds": time.time() - started, "sampling_seconds": sum(clock)}
        every = max(1, config.steps // 25)
        return judged(task, actor, tokenizer, reference=policy, seed=config.seed) | seconds, [
            r for r in history if r["step"] % every == 0
        ]

    return kept(path, settings | {"config": config}, made)


def preference_run(path: Path, settings: dict, on_step: Callable) -> tuple[dict, list[dict]]:
    """A `dpo` config on the reviews' pairs, or on texts made another `way`: (its judgement on the test films, its History).

    Every tenth row, and the judgement, say what became of 128 pairs of validation films (human texts and ratings): the mean change of
    log pi, nats a response, of the chosen and of the rejected ones, and the share of pairs whose order the change has right.
    """
    way, own = settings.get("way", "ratings"), {"seed": settings["seed"]} | settings.get("dpo", {})
    if way == "imitated":
        config = SFTConfig(epochs=3, optimiser=OptimiserConfig(lr=1e-4), seed=settings["seed"])
    elif way in ("ratings", "relabelled"):
        config = DPOConfig(**own)
    else:
        online = OnlineConfig(refresh=DPOConfig.steps) if way == "once" else ONLINE[way]
        config = replace(online, dpo=replace(online.dpo, **own))

    def made():
        policy, tokenizer = load_policy("tiny-reviews-sft")
        (score, monitors), prompts = scoring("reviews", tokenizer), reviews.rl_prompts()
        actor, probed, history, clock = trainable(policy), pair_probe(policy, tokenizer), [], []
        started = time.time()

        def watch(row):
            if row["step"] % 10 == 0:
                row |= _clocked(probed, clock)(actor)
            on_step(row)

        if way == "imitated":
            texts = best_of_n(policy, tokenizer, prompts, score, BEST, seed=settings["seed"])
            history = train_sft(
                actor,
                tokenizer,
                Dataset.from_dict({"prompt": prompts, "completion": texts}),
                config,
                on_step=watch,
            )[1]
        elif way in ("ratings", "relabelled"):
            pairs = _rated_pairs(config, tokenizer)
            pairs = (
                pairs
                if way == "ratings"
                else relabelled(
                    pairs, text_judge([load_scalar("tiny-reviews-reward")[0]], tokenizer)
                )
            )
            history = train_dpo(actor, tokenizer, pairs, config, reference=policy, on_step=watch)[1]
        else:
            history = train_online(
                actor,
                tokenizer,
                prompts,
                score,
                config,
                reference=policy,
                monitors=monitors,
                on_step=watch,
            )[1]
        row = {"seconds": time.time() - started - sum(clock)} | probed(actor)
        row |= judged("reviews", actor, tokenizer, reference=policy, seed=settings["seed"])
        return row, [r for r in history if r["step"] % 10 == 0]

    return kept(path, settings | {"config": config}, made)


def order_run(path: Path, settings: dict, on_step: Callable) -> tuple[dict, list[dict]]:
    """A `dpo` config on the reviews' pairs: (what became of 2,000 pairs of test films, in all and film by film; nothing)."""
    config = DPOConfig(seed=settings["seed"], **settings["dpo"])

    def made():
        policy, tokenizer = load_policy("tiny-reviews-sft")
        actor, pairs = trainable(policy), _rated_pairs(config, tokenizer)
        train_dpo(actor, tokenizer, pairs, config, reference=policy, on_step=on_step)
        return pair_probe(policy, tokenizer, "test", 2000, by_film=True)(actor), []

    return kept(path, settings | {"config": config}, made)


def _rated_pairs(config: DPOConfig, tokenizer) -> Dataset:
    return reviews.preference_pairs(
        "reward",
        TourConfig.pairs,
        seed=config.seed,
        max_tokens=config.max_response,
        tokenizer=tokenizer,
    )


def pair_probe(
    start, tokenizer, split: str = "val", count: int = 128, *, by_film: bool = False
) -> Callable:
    """model -> what became of `count` pairs of held-out films since `start`: chosen_change, rejected_change, right_order.

    With `by_film` also each film's [pairs whose order the change has right, pairs].
    """
    pairs = reviews.preference_pairs(
        split, count, seed=17, max_tokens=SFTConfig.max_response, tokenizer=tokenizer
    )[:]
    prompts, texts, chosen, rejected = texts_once(pairs)
    batch = encode(tokenizer, prompts, texts)

    @torch.no_grad()
    def logprobs(model):
        return torch.cat(
            [
                sequence_logprobs(policy_logprobs(model, part), part.response_mask)
                for part in map(batch.select, torch.arange(len(texts)).split(64))
            ]
        )

    before = logprobs(start)

    def probed(model):
        change = logprobs(model) - before
        right = (change[chosen] > change[rejected]).double()
        row = {
            "chosen_change": change[chosen].mean().item(),
            "rejected_change": change[rejected].mean().item(),
            "right_order": right.mean().item(),
        }
        if by_film:
            row["by_film"] = {film: [0.0, n] for film, n in Counter(pairs["prompt"]).items()}
            for film, one in zip(pairs["prompt"], right.tolist(), strict=True):
                row["by_film"][film][0] += one
        return row

    return probed


def relabelled(pairs: Dataset, judge: Callable) -> Dataset:
    """The same pairs of texts, but the judge says which one is chosen."""
    rows = pairs.select_columns(["prompt", "chosen", "rejected"])[:]
    prompts, texts, *sides = texts_once(rows)
    score = judge(prompts, texts).tolist()
    ordered = [(a, b) if score[a] > score[b] else (b, a) for a, b in zip(*sides, strict=True)]
    return Dataset.from_list(
        [{"prompt": prompts[a], "chosen": texts[a], "rejected": texts[b]} for a, b in ordered]
    )


def _clocked(function: Callable, clock: list[float]) -> Callable:
    """The function, and its seconds in `clock`."""

    def timed(*args, **kwargs):
        started = time.time()
        result = function(*args, **kwargs)
        clock.append(time.time() - started)
        return result

    return timed
