"""Run an experiment over several seeds and record it; repeat some recorded runs at random.

Every finished run is saved, and every stage of a tour. The same command goes on where it stopped.
A record is written when all of its runs are there, so it never mixes two commands. A row of the
EXPERIMENTS has the commit at which its own run began.
"""

import random
from pathlib import Path

from minirlhf import evaluate
from minirlhf.experiments.records import RESULTS, differences, load_results, record
from minirlhf.experiments.registry import COMPARED, EXPERIMENTS, RECORDED_SEEDS, SEEDS
from minirlhf.experiments.runs import run_variant
from minirlhf.experiments.smollm2 import SmolConfig, train_and_compare
from minirlhf.runtime import OnStep, atomic_path, check, commit
from minirlhf.show.plane import frontier
from minirlhf.tour import Tour, TourConfig

NAMES = ("tour", "reward_model", *EXPERIMENTS)  # what `run_experiment` can run


def silent(row: dict) -> None:
    """Do nothing after a step."""


def run_experiment(
    name: str,
    folder: Path,
    seeds: int | None = None,
    *,
    on_step: OnStep = silent,
    results: Path = RESULTS,
    config: TourConfig = TourConfig(),
) -> None:
    """Run an experiment with seeds 0, 1, ... and write its records into `results`.

        tour           writes tour, tour_history, reward_model and the figure methods.png
        reward_model   runs the tour up to its reward model; writes reward_model
        the others     are in EXPERIMENTS; each writes <name> and, if it has steps, <name>_history

    Args:
        seeds: how many; by default 3, and 1 for the microscope and one_batch.
        folder: for finished runs. They are reused if they were made under the same settings.
        on_step: called with each new row of metrics.
        config: settings of the tour.

    Raises:
        ValueError: there is no such experiment, or `seeds` is below 1.
    """
    check("experiment", name, name in NAMES, f"one of {', '.join(NAMES)}")
    seeds = SEEDS.get(name, RECORDED_SEEDS) if seeds is None else seeds
    check("seeds", seeds, seeds >= 1, "at least 1")
    command = f"minirlhf experiment {name} --seeds {seeds}"
    origin = {"claim": name, "commit": commit(), "command": command}
    if name == "tour":
        _record_tour(folder, seeds, config, origin, on_step, results)
    elif name == "reward_model":
        _record_reward_model(folder, seeds, config, origin | {"claim": "tour"}, on_step, results)
    else:
        _record_variants(name, folder / name, seeds, origin, on_step, results)


def _record_tour(
    folder: Path, seeds: int, config: TourConfig, origin: dict, on_step: OnStep, results: Path
) -> None:
    table, steps = [], []
    for seed in range(seeds):
        run = Tour(folder / f"seed-{seed}", config.seeded(seed), on_step)
        rows = run.run()
        for row in rows:
            row["samples"] = evaluate.first_samples(row.pop("prompts"), row.pop("texts"), 6)
        here = origin | {"seed": seed}
        table += [here | row for row in rows]
        steps += [here | row for row in run.history if row["stage"] in ("ppo", "dpo", "grpo")]
    record("tour", table, folder=results)
    record("tour_history", steps, folder=results)
    _record_reward_model(folder, seeds, config, origin, on_step, results)
    figure = frontier(table, by="method", ylabel="gold score (predicted rating, -4..4)")
    with atomic_path(results / "methods.png") as temporary:
        figure.savefig(temporary, format="png")


def _record_reward_model(
    folder: Path, seeds: int, config: TourConfig, origin: dict, on_step: OnStep, results: Path
) -> None:
    rows = []
    for seed in range(seeds):
        run = Tour(folder / f"seed-{seed}", config.seeded(seed), on_step)
        rows += [origin | {"seed": seed} | row for row in run.learn_reward()]
    record("reward_model", rows, folder=results)


def _record_variants(
    name: str, folder: Path, seeds: int, origin: dict, on_step: OnStep, results: Path
) -> None:
    table, steps = [], []
    for variant in EXPERIMENTS[name]:
        for seed in range(seeds):
            row, history = run_variant(name, variant, seed, folder, on_step=on_step)
            here = origin | {"variant": variant, "seed": seed, "commit": row["commit"]}
            table.append(here | row)
            steps += [here | step for step in history]
    record(name, table, folder=results)
    if steps:
        record(f"{name}_history", steps, folder=results)


def record_smollm2(
    folder: Path,
    config: SmolConfig = SmolConfig(),
    *,
    on_step: OnStep = silent,
    results: Path = RESULTS,
) -> list[dict]:
    """Run the SmolLM2 demonstration and write its record, smollm2. Returns its rows."""
    rows = train_and_compare(folder, config, on_step=on_step)
    origin = {"claim": "smollm2", "seed": 0, "commit": commit(), "command": "minirlhf smollm2"}
    record("smollm2", [origin | row for row in rows], folder=results)
    return rows


def repeat_run(
    folder: Path, *, draw: int, on_step: OnStep = silent, results: Path = RESULTS
) -> tuple[str, list[str]]:
    """Repeat one recorded run of the EXPERIMENTS, chosen at random, and compare it.

    Args:
        folder: an empty folder for the new run. draw: seed of the random choice.

    Returns:
        (which run, one sentence for each number that is not reproduced).
    """
    names = [name for name in sorted({*COMPARED} - {"tour"}) if _is_recorded(name, results)]
    rows = [row for name in names for row in load_results(name, folder=results)]
    row = random.Random(draw).choice(rows)
    name, variant, seed = row["claim"], row["variant"], row["seed"]
    again, _ = run_variant(name, variant, seed, folder, on_step=on_step)
    same = [r for r in rows if (r["claim"], r["variant"]) == (name, variant)]
    wrong = differences(row, again, tolerance=_tolerance(same, COMPARED[name]))
    return f"{name}, {variant}, seed {seed}", wrong


def repeat_tour(
    folder: Path,
    config: TourConfig = TourConfig(),
    *,
    draw: int,
    on_step: OnStep = silent,
    results: Path = RESULTS,
) -> tuple[str, list[str]]:
    """Repeat the tour with one recorded seed, chosen at random; see `repeat_run`."""
    recorded = load_results("tour", folder=results)
    seed = random.Random(draw).choice(sorted({row["seed"] for row in recorded}))
    rows = Tour(folder / f"seed-{seed}", config.seeded(seed), on_step).run()
    again = {row["method"]: row for row in rows}
    wrong = []
    for row in recorded:
        if row["seed"] == seed:
            method = row["method"]
            same = [r for r in recorded if r["method"] == method]
            tolerance = _tolerance(same, COMPARED["tour"])
            wrong += [f"{method} {w}" for w in differences(row, again[method], tolerance=tolerance)]
    return f"The tour's seed {seed}", wrong


def _is_recorded(name: str, results: Path) -> bool:
    return (results / f"{name}.jsonl").is_file()


def _tolerance(rows: list[dict], columns: tuple[str, ...]) -> dict[str, float]:
    """How far a repeated number may be off: the range over seeds, a tenth of the value, or 0.05.

    The largest of the three counts. On another machine the last digit of a number differs; another
    token is sampled, and the runs drift apart.
    """
    values = {column: [row[column] for row in rows] for column in columns}
    return {c: max(max(v) - min(v), 0.1 * max(map(abs, v)), 0.05) for c, v in values.items()}
