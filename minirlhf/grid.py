"""The tour over several seeds, and PPO under other settings, recorded for the notebooks; and recorded rows once more, compared."""

import random
import re
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

from minirlhf import evaluate
from minirlhf.classroom.claims import RESULTS, differences, load_results, record
from minirlhf.experiments import (
    BEST,
    BRIEF,
    group_run,
    label_run,
    order_run,
    ppo_run,
    preference_run,
    thrifty_run,
)
from minirlhf.faults import FAULTS
from minirlhf.loops.config import KLConfig, OptimiserConfig
from minirlhf.loops.online import LEASH, ONLINE
from minirlhf.loops.preference import LOSSES
from minirlhf.planted import planted_run
from minirlhf.practice import TASKS
from minirlhf.runtime import atomic_path, check, commit
from minirlhf.show.plane import frontier
from minirlhf.tour import Tour, TourConfig

JUDGED, PASSED = ("gold", "proxy", "kl", "length"), ("greedy", "pass_1", "pass_16", "length")
COMPARED = {
    "tour": JUDGED,
    "leash": JUDGED,
    "ablations": JUDGED,
    "labels": ("accuracy", "loss", "confidence"),
    "family": PASSED,
    "jitter": PASSED,
    "hacking": JUDGED,
    "resources": JUDGED,
    "betas": JUDGED,
    "preference": JUDGED,
    "order": ("chosen_change", "rejected_change", "right_order"),
    "planted": tuple(
        f"{asked}, {who}"
        for asked in ("planted", "own")
        for who in ("surprisal", "implicit reward", "value")
    ),
}
LOOSE = KLConfig(kl_coef=0.1)
VARIANTS = {  # PPO under other settings, the reward model from fewer labels, the family of GRPO; one row a setting and seed
    "labels": {f"{n} pairs": {"pairs": n} for n in (100, 400, 1600, 6400, 25_600)},
    "leash": {f"kl_coef {c:g}": {"kl": KLConfig(kl_coef=c)} for c in (0, 0.1, 0.25, 0.5, 1, 2)}
    | {"target 2 nats": {"kl": KLConfig(kl_coef=0.1, target=2.0, horizon=100.0)}},
    "ablations": {
        "as it is": {},
        "no clip": {"clip_eps": 1 - 1e-6, "clip_eps_high": 1e6},
        "no value clip": {"value_clip_eps": 1e6},
        "no whitening": {"whiten": False},
        "lambda 1": {"lam": 1.0},
        "one epoch": {"epochs": 1},
        "eight epochs": {"epochs": 8},
        "eight epochs, no clip": {"epochs": 8, "clip_eps": 1 - 1e-6, "clip_eps_high": 1e6},
    },
    "atlas": {  # one healthy run and seven that are not: lesson 09 shows their logs without names
        "healthy": {},
        "hacked": {"kl": KLConfig(kl_coef=0.0)},
        "collapsed": {"actor": OptimiserConfig(lr=3e-3)},
        "dead critic": {},
        "KL sign wrong": {},
        "reward scale wrong": {},
        "EOS never trained": {},
        "whitening at the optimum": {},
    },
    "family": {  # arithmetic, as many responses for all: 128 a step
        name: {"row": name}
        for name in (
            "start",
            "grpo",
            "rloo",
            "dr-grpo",
            "dapo",
            "gspo",
            "cispo",
            "reinforce",
            "remax",
            "reinforce++",
            "reinforce++-baseline",
        )
    }
    | {
        "ppo": {"row": "ppo"},
        "ppo, critic trained first": {"row": "ppo", "given": {"critic_warmup": 15}},
        "ppo, 8 responses a prompt": {
            "row": "ppo",
            "given": {"samples_per_prompt": TASKS["arithmetic"].settings["group_size"]},
        },
    }
    | {
        f"{name}, 4 epochs": {"row": name, "given": {"epochs": 4, "steps": BRIEF // 2}}
        for name in ("grpo", "gspo", "cispo")
    }
    | {
        f"{name}, 400 steps": {"row": name, "given": {"steps": 400}}
        for name in ("grpo", "reinforce")
    },
    "jitter": {  # a rule whose score trembles by a thousandth, as two readings of a reward model would
        "grpo, exact scores": {"row": "grpo"},
        "grpo": {"row": "grpo", "jitter": 1e-3},
        "no std": {"row": "grpo-no-std", "jitter": 1e-3},
        "a floor of 0.1": {"row": "grpo", "choices": {"min_std": 0.1}, "jitter": 1e-3},
        "groups dropped": {"row": "grpo", "choices": {"drop_spread": 0.01}, "jitter": 1e-3},
    },
    "hacking": {  # reviews on a loose leash: who goes how far with the reward model, and how long the texts become
        name: {"task": "reviews", "row": name, "given": {"kl": LOOSE}}
        for name in ("grpo", "grpo-no-std", "dr-grpo", "rloo", "ppo")
    },
    "resources": {  # PPO with less: each against "as it is" of the ablations
        "shared trunk": {"critic": "shared"},
        "adapters of rank 16": {"lora": 16},
        "critic from the SFT model": {"critic": "sft"},
    },
    "betas": {
        f"beta {beta:g}": {"dpo": {"beta": beta}} for beta in (0.03, 0.1, 0.3, 1)
    },  # DPO on the pairs of human ratings
    "planted": {
        "planted digits": {"texts": "planted"},
        "own samples": {"texts": "own"},
    },  # who finds an error in a calculation?
    "order": {
        name: {"dpo": {"loss": name}} for name in LOSSES
    },  # which of two people's texts: 2,000 pairs of the test films
    "preference": {  # its family on the same pairs; then the reference, and who wrote the texts
        **{name: {"dpo": {"loss": name}} for name in LOSSES},
        "dpo, synced": {"dpo": {"sync_every": 25}},
        "dpo, mixed": {"dpo": {"sync_every": 25, "mixup": 0.6}},
        "dpo, no reference": {"dpo": {"reference_free": True}},
        "human texts, the scorer's labels": {"way": "relabelled", "dpo": {"beta": LEASH.beta}},
        "the start's own texts": {"way": "once", "dpo": {"beta": LEASH.beta}},
        **{name: {"way": name} for name in ONLINE},
        f"best of {BEST}, imitated": {"way": "imitated"},
    },
}


def record_grid(
    folder: Path,
    seeds: int,
    config: TourConfig,
    *,
    command: str,
    on_step: Callable,
    results: Path = RESULTS,
) -> None:
    """Run the tour with seeds 0, 1, ... and write tour, tour_history and reward_model into `results`.

    Each seed has its own folder, whose finished stages are reused: an interrupted grid goes on where it stopped. The record is written
    when all seeds are there, so that it is never a mixture of two grids.
    """
    check("seeds", seeds, seeds >= 1, "at least 1")
    table, curves, at = [], [], commit()
    for seed in range(seeds):
        run = Tour(folder / f"seed-{seed}", config.seeded(seed), on_step)
        rows = run.run()
        origin = {"claim": "tour", "seed": seed, "commit": at, "command": command}
        for row in rows:
            row["samples"] = evaluate.first_samples(row.pop("prompts"), row.pop("texts"), 6)
        table += [origin | row for row in rows]
        curves += [origin | row for row in run.history if row["stage"] in ("ppo", "dpo", "grpo")]
    for name, rows in (("tour", table), ("tour_history", curves)):
        record(name, rows, folder=results)
    record_accuracy(folder, seeds, config, command=command, on_step=on_step, results=results)
    with atomic_path(results / "methods.png") as temporary:
        figure = frontier(table, by="method", ylabel="gold score (predicted rating, -4..4)")
        figure.savefig(temporary, format="png")


def record_accuracy(
    folder: Path,
    seeds: int,
    config: TourConfig,
    *,
    command: str,
    on_step: Callable,
    results: Path = RESULTS,
) -> None:
    """The tour's stages up to the reward model over several seeds, and how often it ranks as people did: reward_model in `results`."""
    origin = {"claim": "tour", "commit": commit(), "command": command}
    record(
        "reward_model",
        [
            origin | {"seed": seed} | row
            for seed in range(seeds)
            for row in Tour(folder / f"seed-{seed}", config.seeded(seed), on_step).learn_reward()
        ],
        folder=results,
    )


def rerun(
    folder: Path, config: TourConfig, *, draw: int, on_step: Callable, results: Path = RESULTS
) -> tuple[int, list[str]]:
    """Run one recorded seed, drawn by `draw`, once more. Returns (seed, what differs).

    On another machine a float's last digit differs, and sampling carries it on: a number may differ by as much as the recorded
    seeds differ among themselves, or by a tenth.
    """
    recorded = load_results("tour", folder=results)
    seed = random.Random(draw).choice(sorted({row["seed"] for row in recorded}))
    again = {
        row["method"]: row
        for row in Tour(folder / f"seed-{seed}", config.seeded(seed), on_step).run()
    }
    wrong = []
    for row in (r for r in recorded if r["seed"] == seed):
        tolerance = _spread([r for r in recorded if r["method"] == row["method"]], COMPARED["tour"])
        wrong += [
            f"{row['method']} {line}"
            for line in differences(row, again[row["method"]], tolerance=tolerance)
        ]
    return seed, wrong


def record_variants(
    name: str, folder: Path, seeds: int, *, on_step: Callable, results: Path = RESULTS
) -> None:
    """Run one of VARIANTS' experiments with seeds 0, 1, ... and write <name> and <name>_history into `results`.

    Each run leaves a file in `folder`, made under the same settings it is reused. The record is written when all runs are there.
    """
    table, curves, origin = (
        [],
        [],
        {"claim": name, "commit": commit(), "command": f"minirlhf grid {name} --seeds {seeds}"},
    )
    for variant in VARIANTS[name]:
        for seed in range(seeds):
            row, history = run_variant(name, variant, seed, folder, on_step=on_step)
            here = origin | {"variant": variant, "seed": seed}
            table.append(here | row)
            curves += [here | step for step in history]
    record(name, table, folder=results)
    if curves:
        record(f"{name}_history", curves, folder=results)


def rerun_variant(
    folder: Path, *, draw: int, on_step: Callable, results: Path = RESULTS
) -> tuple[str, list[str]]:
    """Run one recorded row of the experiments of several seeds, drawn by `draw`, once more. Returns (which, what differs)."""
    names = [
        name for name in sorted({*COMPARED} - {"tour"}) if (results / f"{name}.jsonl").is_file()
    ]
    rows = [row for name in names for row in load_results(name, folder=results)]
    row = random.Random(draw).choice(rows)
    same = [r for r in rows if (r["claim"], r["variant"]) == (row["claim"], row["variant"])]
    again, _ = run_variant(row["claim"], row["variant"], row["seed"], folder, on_step=on_step)
    return f"{row['claim']}, {row['variant']}, seed {row['seed']}", differences(
        row, again, tolerance=_spread(same, COMPARED[row["claim"]])
    )


def _spread(rows: list[dict], keys: tuple[str, ...]) -> dict[str, float]:
    """By how much a number may differ when it is made once more, on whatever machine: as much as the seeds differ, or by a tenth."""
    values = {key: [row[key] for row in rows] for key in keys}
    return {key: max(max(v) - min(v), 0.1 * max(map(abs, v)), 0.05) for key, v in values.items()}


def run_variant(
    name: str, variant: str, seed: int, folder: Path, *, on_step: Callable
) -> tuple[dict, list[dict]]:
    """One run of an experiment: (its row, its History). What `folder` holds of it, made under the same settings, is reused."""
    path, settings = (
        folder / f"{re.sub('[^a-z0-9.+]+', '-', variant.lower())}-{seed}.json",
        VARIANTS[name][variant] | {"seed": seed},
    )
    run = {
        "labels": label_run,
        "family": group_run,
        "jitter": group_run,
        "hacking": group_run,
        "resources": thrifty_run,
        "planted": planted_run,
        "betas": preference_run,
        "preference": preference_run,
        "order": order_run,
    }.get(name, ppo_run)
    with ExitStack() as stack:
        for target, fault in FAULTS.get(variant, {}).items():
            stack.enter_context(patch(f"minirlhf.{target}", fault))
        return run(path, settings, on_step)
