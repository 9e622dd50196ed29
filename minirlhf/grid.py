"""The tour over several seeds, and PPO under other settings, recorded for the notebooks; and recorded rows once more, compared."""

import json
import random
import re
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from unittest.mock import patch

import torch
from torch.nn.functional import logsigmoid

from minirlhf import evaluate
from minirlhf.classroom.claims import RESULTS, differences, load_results, record
from minirlhf.faults import FAULTS
from minirlhf.loops.config import KLConfig, OptimiserConfig
from minirlhf.loops.group import train_group
from minirlhf.loops.ppo import PPOConfig, train_ppo
from minirlhf.loops.reward import RewardConfig, train_reward_model
from minirlhf.models.adapters import merged, with_lora
from minirlhf.models.heads import ScalarModel, SharedCritic
from minirlhf.models.load import load_policy, load_scalar
from minirlhf.models.sampling import sample
from minirlhf.practice import TASKS, group_config, judged, scoring
from minirlhf.rewards.gold import gold_judge
from minirlhf.rewards.model import rollout_judge, rollout_score, text_judge
from minirlhf.runtime import atomic_path, check, commit, write_text
from minirlhf.show.curves import method_points, reward_kl_plane
from minirlhf.tasks import reviews
from minirlhf.tour import Tour, TourConfig, trainable

JUDGED, PASSED = ("gold", "proxy", "kl", "length"), ("greedy", "pass_1", "pass_16", "length")
COMPARED = {"tour": JUDGED, "leash": JUDGED, "ablations": JUDGED, "labels": ("accuracy", "loss", "confidence"),
            "family": PASSED, "jitter": PASSED, "hacking": JUDGED, "resources": JUDGED}
BRIEF = 80  # steps of the arithmetic runs: a fifth of the command line's
LOOSE = KLConfig(kl_coef=0.1)
VARIANTS = {  # PPO under other settings, the reward model from fewer labels, the family of GRPO; one row a setting and seed
    "labels": {f"{n} pairs": {"pairs": n} for n in (100, 400, 1600, 6400, 25_600)},
    "leash": {f"kl_coef {c:g}": {"kl": KLConfig(kl_coef=c)} for c in (0, 0.1, 0.25, 0.5, 1, 2)}
    | {"target 2 nats": {"kl": KLConfig(kl_coef=0.1, target=2.0, horizon=100.0)}},
    "ablations": {
        "as it is": {}, "no clip": {"clip_eps": 1 - 1e-6, "clip_eps_high": 1e6}, "no value clip": {"value_clip_eps": 1e6},
        "no whitening": {"whiten": False}, "lambda 1": {"lam": 1.0}, "one epoch": {"epochs": 1}, "eight epochs": {"epochs": 8},
        "eight epochs, no clip": {"epochs": 8, "clip_eps": 1 - 1e-6, "clip_eps_high": 1e6}},
    "atlas": {  # one healthy run and seven that are not: lesson 09 shows their logs without names
        "healthy": {}, "hacked": {"kl": KLConfig(kl_coef=0.0)}, "collapsed": {"actor": OptimiserConfig(lr=3e-3)}, "dead critic": {},
        "KL sign wrong": {}, "reward scale wrong": {}, "EOS never trained": {}, "whitening at the optimum": {}},
    "family": {  # arithmetic, as many responses for all: 128 a step
        name: {"row": name} for name in ("start", "grpo", "rloo", "dr-grpo", "dapo", "gspo", "cispo", "reinforce", "remax", "reinforce++",
                                         "reinforce++-baseline")}
    | {"ppo": {"row": "ppo"}, "ppo, critic trained first": {"row": "ppo", "given": {"critic_warmup": 15}},
       "ppo, 8 responses a prompt": {"row": "ppo", "given": {"samples_per_prompt": TASKS["arithmetic"].settings["group_size"]}}}
    | {f"{name}, 4 epochs": {"row": name, "given": {"epochs": 4, "steps": BRIEF // 2}} for name in ("grpo", "gspo", "cispo")}
    | {f"{name}, 400 steps": {"row": name, "given": {"steps": 400}} for name in ("grpo", "reinforce")},
    "jitter": {  # a rule whose score trembles by a thousandth, as two readings of a reward model would
        "grpo, exact scores": {"row": "grpo"}, "grpo": {"row": "grpo", "jitter": 1e-3}, "no std": {"row": "grpo-no-std", "jitter": 1e-3},
        "a floor of 0.1": {"row": "grpo", "choices": {"min_std": 0.1}, "jitter": 1e-3},
        "groups dropped": {"row": "grpo", "choices": {"drop_spread": 0.01}, "jitter": 1e-3}},
    "hacking": {  # reviews on a loose leash: who goes how far with the reward model, and how long the texts become
        name: {"task": "reviews", "row": name, "given": {"kl": LOOSE}} for name in ("grpo", "grpo-no-std", "dr-grpo", "rloo", "ppo")},
    "resources": {  # PPO with less: each against "as it is" of the ablations
        "shared trunk": {"critic": "shared"}, "adapters of rank 16": {"lora": 16}, "critic from the SFT model": {"critic": "sft"}},
}


def record_grid(folder: Path, seeds: int, config: TourConfig, *, command: str, on_step: Callable, results: Path = RESULTS) -> None:
    """Run the tour with seeds 0, 1, ... and write tour, tour_history and reward_model into `results`.

    Each seed has its own folder, whose finished stages are reused: an interrupted grid goes on where it stopped. The record is written
    when all seeds are there, so that it is never a mixture of two grids.
    """
    check("seeds", seeds, seeds >= 1, "at least 1")
    table, curves, accuracy, at = [], [], [], commit()
    for seed in range(seeds):
        run = Tour(folder / f"seed-{seed}", config.seeded(seed), on_step)
        rows = run.run()
        origin = {"claim": "tour", "seed": seed, "commit": at, "command": command}
        for row in rows:
            row["samples"] = evaluate.first_samples(row.pop("prompts"), row.pop("texts"), 6)
        table += [origin | row for row in rows]
        curves += [origin | row for row in run.history if row["stage"] in ("ppo", "dpo", "grpo")]
        accuracy += [origin | row for row in run.reward_accuracy]
    for name, rows in (("tour", table), ("tour_history", curves), ("reward_model", accuracy)):
        record(name, rows, folder=results)
    with atomic_path(results / "methods.png") as temporary:
        reward_kl_plane(method_points(table), ylabel="gold score (predicted rating, -4..4)").savefig(temporary, format="png")


def rerun(folder: Path, config: TourConfig, *, draw: int, on_step: Callable, results: Path = RESULTS) -> tuple[int, list[str]]:
    """Run one recorded seed, drawn by `draw`, once more. Returns (seed, what differs).

    On another machine a float's last digit differs, and sampling carries it on: a number may differ by as much as the recorded
    seeds differ among themselves, or by a tenth.
    """
    recorded = load_results("tour", folder=results)
    seed = random.Random(draw).choice(sorted({row["seed"] for row in recorded}))
    again = {row["method"]: row for row in Tour(folder / f"seed-{seed}", config.seeded(seed), on_step).run()}
    wrong = []
    for row in (r for r in recorded if r["seed"] == seed):
        tolerance = _spread([r for r in recorded if r["method"] == row["method"]], COMPARED["tour"])
        wrong += [f"{row['method']} {line}" for line in differences(row, again[row["method"]], tolerance=tolerance)]
    return seed, wrong


def record_variants(name: str, folder: Path, seeds: int, *, on_step: Callable, results: Path = RESULTS) -> None:
    """Run one of VARIANTS' experiments with seeds 0, 1, ... and write <name> and <name>_history into `results`.

    Each run leaves a file in `folder`, made under the same settings it is reused. The record is written when all runs are there.
    """
    table, curves, origin = [], [], {"claim": name, "commit": commit(), "command": f"minirlhf grid {name} --seeds {seeds}"}
    for variant in VARIANTS[name]:
        for seed in range(seeds):
            row, history = run_variant(name, variant, seed, folder, on_step=on_step)
            here = origin | {"variant": variant, "seed": seed}
            table.append(here | row)
            curves += [here | step for step in history]
    record(name, table, folder=results)
    if curves:
        record(f"{name}_history", curves, folder=results)


def rerun_variant(folder: Path, *, draw: int, on_step: Callable, results: Path = RESULTS) -> tuple[str, list[str]]:
    """Run one recorded row of the experiments of several seeds, drawn by `draw`, once more. Returns (which, what differs)."""
    names = [name for name in sorted({*COMPARED} - {"tour"}) if (results / f"{name}.jsonl").is_file()]
    rows = [row for name in names for row in load_results(name, folder=results)]
    row = random.Random(draw).choice(rows)
    same = [r for r in rows if (r["claim"], r["variant"]) == (row["claim"], row["variant"])]
    again, _ = run_variant(row["claim"], row["variant"], row["seed"], folder, on_step=on_step)
    return f"{row['claim']}, {row['variant']}, seed {row['seed']}", differences(row, again, tolerance=_spread(same, COMPARED[row["claim"]]))


def _spread(rows: list[dict], keys: tuple[str, ...]) -> dict[str, float]:
    """By how much a number may differ when it is made once more, on whatever machine: as much as the seeds differ, or by a tenth."""
    values = {key: [row[key] for row in rows] for key in keys}
    return {key: max(max(v) - min(v), 0.1 * max(map(abs, v)), 0.05) for key, v in values.items()}


def run_variant(name: str, variant: str, seed: int, folder: Path, *, on_step: Callable) -> tuple[dict, list[dict]]:
    """One run of an experiment: (its row, its History). What `folder` holds of it, made under the same settings, is reused."""
    path, settings = folder / f"{re.sub('[^a-z0-9.+]+', '-', variant.lower())}-{seed}.json", VARIANTS[name][variant] | {"seed": seed}
    run = {"labels": label_run, "family": group_run, "jitter": group_run, "hacking": group_run, "resources": thrifty_run}.get(name, ppo_run)
    with ExitStack() as stack:
        for target, fault in FAULTS.get(variant, {}).items():
            stack.enter_context(patch(f"minirlhf.{target}", fault))
        return run(path, settings, on_step)


def _kept(path: Path, settings, make: Callable[[], tuple[dict, list[dict]]]) -> tuple[dict, list[dict]]:
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
        labels = reviews.preference_pairs("reward", settings["pairs"], seed=config.seed, max_tokens=config.max_response,
                                          tokenizer=tokenizer)
        model, _ = train_reward_model(trainable(policy.base_model), tokenizer, labels, config, on_step=on_step)
        test, judge = reviews.preference_pairs("test", 2000, seed=17)[:], text_judge([model], tokenizer)
        margins = judge(test["prompt"], test["chosen"]) - judge(test["prompt"], test["rejected"])
        return {"pairs": settings["pairs"], "accuracy": (margins > 0).float().mean().item(), "loss": -logsigmoid(margins).mean().item(),
                "confidence": torch.sigmoid(margins.abs()).mean().item()}, []

    return _kept(path, settings, made)


def ppo_run(path: Path, settings: dict, on_step: Callable) -> tuple[dict, list[dict]]:
    """PPO from the committed SFT and reward models under PPOConfig's `settings`: (its judgement on the test films, its History)."""
    return thrifty_run(path, {"config": replace(PPOConfig(), **settings), "seed": settings.get("seed", 0)}, on_step)


def thrifty_run(path: Path, settings: dict, on_step: Callable) -> tuple[dict, list[dict]]:
    """PPO on the reviews with `critic` "shared" (a head on the actor's trunk) or "sft" (its backbone, a new head), or `lora` adapters."""
    config = settings.get("config", PPOConfig(seed=settings["seed"]))

    def made():
        (policy, tokenizer), (scorer, _) = load_policy("tiny-reviews-sft"), load_scalar("tiny-reviews-reward")
        score, gold = rollout_score(scorer, tokenizer.eos_token_id), rollout_judge(gold_judge(), tokenizer)
        torch.manual_seed(config.seed)  # a new head, adapters
        actor, critic = trainable(policy), trainable(scorer)
        if "critic" in settings:
            critic = SharedCritic(actor) if settings["critic"] == "shared" else ScalarModel(trainable(policy).base_model)
        if rank := settings.get("lora"):
            actor, critic.backbone = with_lora(actor, rank, seed=config.seed), with_lora(critic.backbone, rank, seed=config.seed)
        started = time.time()
        actor, _, history = train_ppo(actor, critic, tokenizer, reviews.rl_prompts(), score, config,
                                      reference=None if rank else policy, monitors={"gold": gold}, on_step=on_step)
        seconds = time.time() - started
        row = judged("reviews", merged(actor), tokenizer, reference=policy, seed=config.seed)
        return row | {"seconds": seconds}, list(history)

    return _kept(path, settings, made)


def group_run(path: Path, settings: dict, on_step: Callable) -> tuple[dict, list[dict]]:
    """A `row` of the family, or PPO, on a `task`: (its judgement on held-out prompts, about 25 rows of its History).

    `choices` change the row, `given` the loop's settings; `jitter` is added to each score, uniform in [0, jitter). PPO writes as many
    responses a step, its critic is the policy's backbone with a new head.
    """
    task, name = settings.get("task", "arithmetic"), settings["row"]
    given = ({"steps": BRIEF} if task == "arithmetic" else {}) | settings.get("given", {}) | {"seed": settings["seed"]}
    if name == "start":  # the policy that all of them begin with
        config = group_config(task, "grpo", **given)
    elif name == "ppo":
        same = group_config(task, "grpo", **{k: v for k, v in given.items() if k in ("kl", "steps")})
        batch = {"batch_size": same.prompts_per_step * same.group_size}
        config = PPOConfig(**{"steps": same.steps, "minibatch_size": same.minibatch_size, "epochs": same.epochs, "actor": same.optimiser,
                              "missing_eos_penalty": same.missing_eos_penalty, "sampling": same.sampling, "kl": same.kl} | batch | given)
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
            score, monitors = (lambda r: (s := exact(r)) + jitter * torch.rand(s.shape, generator=draw)), {"right": exact}
        own = {"monitors": monitors, "on_step": on_step, "reference": policy}
        torch.manual_seed(config.seed)
        actor, prompts, clock, started = trainable(policy), TASKS[task].prompts(), [], time.time()
        with patch(f"minirlhf.loops.{'ppo' if name == 'ppo' else 'group'}.sample", _clocked(sample, clock)):
            if name == "ppo":
                critic = load_scalar("tiny-reviews-reward")[0] if task == "reviews" else ScalarModel(trainable(policy).base_model)
                history = train_ppo(actor, trainable(critic), tokenizer, prompts, score, config, **own)[2]
            else:
                history = train_group(actor, tokenizer, prompts, score, config, **own)[1]
        seconds = {"seconds": time.time() - started, "sampling_seconds": sum(clock)}
        every = max(1, config.steps // 25)
        return judged(task, actor, tokenizer, reference=policy, seed=config.seed) | seconds, [r for r in history if r["step"] % every == 0]

    return _kept(path, settings | {"config": config}, made)


def _clocked(function: Callable, clock: list[float]) -> Callable:
    """The function, and its seconds in `clock`."""
    def timed(*args, **kwargs):
        started = time.time()
        result = function(*args, **kwargs)
        clock.append(time.time() - started)
        return result

    return timed
