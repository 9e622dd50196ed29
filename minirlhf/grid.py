"""The tour over several seeds, recorded for the notebooks; and recorded rows once more, compared."""

import random
from collections.abc import Callable
from pathlib import Path

from minirlhf.classroom.claims import RESULTS, differences, load_results, record
from minirlhf.runtime import atomic_path, check, commit
from minirlhf.show.curves import method_points, reward_kl_plane
from minirlhf.tour import Tour, TourConfig, first_samples

COMPARED = ("gold", "proxy", "kl", "length")


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
        spread = {key: [r[key] for r in recorded if r["method"] == row["method"]] for key in COMPARED}
        tolerance = {key: max(0.1 * abs(row[key]), max(v) - min(v), 0.05) for key, v in spread.items()}
        wrong += [f"{row['method']} {line}" for line in differences(row, again[row["method"]], tolerance=tolerance)]
    return seed, wrong
