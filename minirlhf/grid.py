"""The tour over several seeds, and PPO under other settings, recorded for the notebooks; and recorded rows once more, compared."""

import json
import random
import re
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
from minirlhf.loops.ppo import PPOConfig, train_ppo
from minirlhf.loops.reward import RewardConfig, train_reward_model
from minirlhf.models.load import load_policy, load_scalar
from minirlhf.rewards.gold import gold_judge
from minirlhf.rewards.model import rollout_judge, rollout_score, text_judge
from minirlhf.runtime import atomic_path, check, commit, write_text
from minirlhf.show.curves import method_points, reward_kl_plane
from minirlhf.tasks import reviews
from minirlhf.tour import Tour, TourConfig, first_samples, trainable

JUDGED = ("gold", "proxy", "kl", "length")
COMPARED = {"tour": JUDGED, "leash": JUDGED, "ablations": JUDGED, "labels": ("accuracy", "loss", "confidence")}
VARIANTS = {  # PPO under other settings, and the reward model from fewer labels; one row a setting and seed
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
        table += [origin | {k: v for k, v in row.items() if k not in ("texts", "prompts")} | {"samples": first_samples(row, 6)}
                  for row in rows]
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
    rows = [row for name in ("ablations", "labels", "leash") for row in load_results(name, folder=results)]
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
    path, settings = folder / f"{re.sub('[^a-z0-9.]+', '-', variant.lower())}-{seed}.json", VARIANTS[name][variant] | {"seed": seed}
    with ExitStack() as stack:
        for target, fault in FAULTS.get(variant, {}).items():
            stack.enter_context(patch(f"minirlhf.{target}", fault))
        return (label_run if name == "labels" else ppo_run)(path, settings, on_step)


def label_run(path: Path, settings: dict, on_step: Callable) -> tuple[dict, list[dict]]:
    """A reward model from the committed SFT model on `pairs` labels: (its judgement of 2,000 test pairs, nothing)."""
    if path.exists() and (kept := json.loads(path.read_text()))["config"] == settings:
        return kept["row"], []
    policy, tokenizer = load_policy("tiny-reviews-sft")
    config = RewardConfig(seed=settings["seed"])
    labels = reviews.preference_pairs("reward", settings["pairs"], seed=config.seed, max_tokens=config.max_response, tokenizer=tokenizer)
    model, _ = train_reward_model(trainable(policy.base_model), tokenizer, labels, config, on_step=on_step)
    test, judge = reviews.preference_pairs("test", 2000, seed=17)[:], text_judge([model], tokenizer)
    margins = judge(test["prompt"], test["chosen"]) - judge(test["prompt"], test["rejected"])
    row = {"pairs": settings["pairs"], "accuracy": (margins > 0).float().mean().item(), "loss": -logsigmoid(margins).mean().item(),
           "confidence": torch.sigmoid(margins.abs()).mean().item()}
    write_text(path, json.dumps({"config": settings, "row": row}))
    return row, []


def ppo_run(path: Path, settings: dict, on_step: Callable) -> tuple[dict, list[dict]]:
    """PPO from the committed SFT and reward models under PPOConfig's `settings`: (its judgement on the test films, its History)."""
    config = replace(PPOConfig(), **settings)
    wanted = json.loads(json.dumps(asdict(config)))
    if path.exists() and (kept := json.loads(path.read_text()))["config"] == wanted:
        return kept["row"], kept["history"]
    (policy, tokenizer), (scorer, _) = load_policy("tiny-reviews-sft"), load_scalar("tiny-reviews-reward")
    score, gold = rollout_score(scorer, tokenizer.eos_token_id), rollout_judge(gold_judge(), tokenizer)
    actor, _, history = train_ppo(trainable(policy), trainable(scorer), tokenizer, reviews.rl_prompts(), score, config,
                                  reference=policy, monitors={"gold": gold}, on_step=on_step)
    drawn = evaluate.draw(actor, tokenizer, reviews.eval_prompts("test"), samples_per_prompt=4, reference=policy, seed=1000 + config.seed)
    row = evaluate.summary(drawn, {"gold": gold_judge(), "proxy": text_judge([scorer], tokenizer)})
    row |= {"samples": first_samples({"prompts": drawn.prompts, "texts": drawn.texts}, 6)}
    write_text(path, json.dumps({"config": wanted, "row": row, "history": list(history)}))
    return row, list(history)
