"""Commands to start with: data, tour."""

import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.table import Table

from minirlhf.classroom.mine import PLACES, described, load_mine, tour_formulas
from minirlhf.cli.options import MODEL, RUN, Device, OutParts, Seed, option, out_folder
from minirlhf.cli.terminal import console, say
from minirlhf.experiments.records import load_results
from minirlhf.models.load import save_policy
from minirlhf.runtime import SMOLLM2, check
from minirlhf.show.progress import Progresses
from minirlhf.tasks import sources
from minirlhf.tour import Tour, TourConfig, write_tour_report

app = typer.Typer()


@app.command()
def data(
    model: Annotated[
        str,
        option(
            MODEL,
            f"Also download a language model: {SMOLLM2} (93 MB, 270 MB on disk).",
            show_default="none",
        ),
    ] = "",
) -> None:
    """Download the human ratings (12 MB) and check them.

    Needed once. Each file is compared with a recorded SHA-256.

    Example: minirlhf data --model smollm2-135m
    """
    check("model", model, model in ("", SMOLLM2), f"{SMOLLM2}, or left out")
    say(f"The ratings are in {sources.fetch()}. Their checksums are correct.")
    if model:
        say(f"{SMOLLM2} is in {sources.fetch_smollm2()}. Use it with `--model {SMOLLM2}`.")


@app.command()
def tour(
    device: Device = "cpu",
    mine: Annotated[
        Path | None,
        option(
            RUN,
            "Python file with the functions that you wrote in the lessons, such as ppo_loss. They "
            "replace the package's. The result goes to the folder mine in --out.",
        ),
    ] = None,
    out: OutParts = Path("out/tour"),
    export: Annotated[
        Path | None,
        out_folder("Folder to save the SFT and reward models to as well, in 16 bits."),
    ] = None,
    seed: Seed = 0,
    reduced: Annotated[
        bool, option(RUN, "Only a few steps per stage, to see that everything works.", "--reduced")
    ] = False,
) -> None:
    """Run all of RLHF: SFT, reward model, PPO, DPO, GRPO.

    The tour trains on real human ratings, judges every policy on held-out films, and writes
    report.html. On two cores it takes about five minutes. A second call reuses finished stages.

    Example: minirlhf tour --out out/tour
    """
    own = load_mine(mine) if mine else {}
    if own:
        others = ", ".join(name for name in PLACES if name not in own)
        say(f"Your functions, checked: {', '.join(own)}. The package's: {others or 'none'}.")
    out = out / "mine" if own else out
    sources.fetch()
    started = time.time()
    config = (TourConfig.reduced() if reduced else TourConfig()).seeded(seed)
    with Progresses(console) as progress:
        formulas = tour_formulas(own)
        run = Tour(out, config, progress, formulas=formulas, mine=described(own, mine))
        print_methods(run.run())
    if reduced:
        say("--reduced trains for a few steps only: these numbers show that all stages run.")
    path = write_tour_report(run, out / "report.html", recorded_tour())
    if export:
        save_policy(run.sft, run.tokenizer, export / "tiny-reviews-sft", dtype=torch.float16)
        run.reward_model.save(export / "tiny-reviews-reward", run.tokenizer)
    say("  ".join(f"{stage} {seconds:.0f} s" for stage, seconds in run.times.items()))
    say(
        f"{time.time() - started:.0f} s in all. Open {path} in a browser. "
        "The samples come from a small model of film reviews and may offend."
    )


def recorded_tour() -> list[dict] | None:
    """The recorded rows of the tour, which its report shows beside the new ones; None without."""
    try:
        return load_results("tour")
    except (ValueError, FileNotFoundError):
        return None


def print_methods(rows: list[dict]) -> None:
    """The tour's table: a row a method. The report has the other columns."""
    films = len(set(rows[0]["prompts"]))
    table = Table(title=f"{films} held-out films, 95 % confidence intervals over films")
    columns = ("method", "gold", "proxy", "kl", "length", "distinct_2")
    for name in columns:
        table.add_column(name, no_wrap=True)
    for row in rows:
        interval = f"{row['gold']:.2f} [{row['gold_low']:.2f}, {row['gold_high']:.2f}]"
        table.add_row(row["method"], interval, *(f"{row[name]:.2f}" for name in columns[2:]))
    console.print(table)
