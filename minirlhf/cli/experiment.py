"""Commands that record results and repeat them: experiment (formerly grid), claims, smollm2."""

import signal
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from minirlhf.cli.limits import a_seed, only_with, whole
from minirlhf.cli.options import RUN, WorkFolder, option
from minirlhf.cli.terminal import console, say
from minirlhf.experiments.pages import fill_pages, pages_to_fill
from minirlhf.experiments.recording import (
    NAMES,
    record_smollm2,
    repeat_run,
    repeat_tour,
    run_experiment,
)
from minirlhf.experiments.registry import RECORDED_SEEDS
from minirlhf.loops.checkpoint import Stopped
from minirlhf.runtime import ROOT, check, need_checkout
from minirlhf.show.progress import Progresses
from minirlhf.tasks import sources

app = typer.Typer()
DEFAULT_OUT, FORMER_OUT = Path("out/experiment"), Path("out/grid")


@app.command("grid", hidden=True)
@app.command()
def experiment(
    name: Annotated[str, typer.Argument(help=f"One of {', '.join(NAMES)}.")] = "tour",
    seeds: Annotated[
        int | None,
        option(
            RUN,
            "Number of seeds, starting at 0.",
            show_default="3; 1 for the records of single tokens",
            callback=whole(1, 10_000),
        ),
    ] = None,
    out: WorkFolder = DEFAULT_OUT,
    tables: Annotated[
        bool,
        option(RUN, "Only fill the tables in README.md and docs from the records; run nothing."),
    ] = False,
) -> None:
    """Run an experiment over several seeds and record it.

    The results go to data/results. The tour with 3 seeds also fills the tables in README.md and
    docs.

    Example: minirlhf experiment ablations --seeds 3
    """
    check("name", name, name in NAMES, f"one of {', '.join(NAMES)}")
    if tables:
        only_with("--seeds", seeds, False, "runs, and --tables runs nothing")
    need_checkout("`experiment`")
    pages_to_fill()
    if tables:
        say_filled(fill_pages())
        return
    if out == DEFAULT_OUT and FORMER_OUT.exists():
        say(f"{FORMER_OUT}, the former folder, is not used. To use it, add --out {FORMER_OUT}.")
    try:
        with Progresses(console, every=20) as progress:
            run_experiment(name, out, seeds, on_step=progress)
    except (KeyboardInterrupt, Stopped) as stopped:
        say(f"Stopped. Finished runs are kept in {out}; the same command goes on from there.")
        raise typer.Exit(128 + getattr(stopped, "number", signal.SIGINT)) from None
    if name not in ("tour", "reward_model"):
        return
    if seeds in (None, RECORDED_SEEDS):
        say_filled(fill_pages())
    else:
        say(f"The tables of the pages are of {RECORDED_SEEDS} seeds, so they were not changed.")


def say_filled(pages: list[Path]) -> None:
    """Say which pages have new tables."""
    names = ", ".join(path.relative_to(ROOT).as_posix() for path in pages)
    say(f"Filled the tables in {names}." if names else "The tables agree with the records.")


@app.command()
def claims(
    draw: Annotated[
        int,
        option(
            RUN,
            "Seed of the random choice: another one repeats others.",
            callback=a_seed,
        ),
    ] = 0,
) -> None:
    """Repeat recorded experiments and compare the results.

    One run of an experiment and one seed of the tour are chosen at random. A number agrees if
    it differs by no more than the recorded seeds differ from each other, or by no more than 10 %.

    Example: minirlhf claims --draw 7
    """
    try:
        with tempfile.TemporaryDirectory() as folder, Progresses(console, every=20) as progress:
            for repeat in (repeat_run, repeat_tour):
                which, wrong = repeat(Path(folder), draw=draw, on_step=progress)
                print_compared(which, wrong)
    except Stopped as stopped:  # its folder is gone: there is nothing to continue
        raise typer.Exit(128 + stopped.number) from None


def print_compared(which: str, wrong: list[str]) -> None:
    """Say that a repeated result agrees with the recorded one.

    Raises:
        ValueError: it does not.
    """
    if wrong:
        raise ValueError(f"{which} differs from the recorded results: {'; '.join(wrong)}")
    say(f"{which} agrees with the recorded results.")


@app.command()
def smollm2(out: WorkFolder = Path("out/smollm2")) -> None:
    """Train on a real language model, SmolLM2-135M.

    A reward model and DPO each train low-rank adapters and are judged on held-out films. This
    takes up to 20 minutes.

    Example: minirlhf smollm2 --out out/smollm2
    """
    need_checkout("`smollm2`")
    sources.fetch()
    sources.fetch_smollm2()
    started = time.time()
    with Progresses(console, every=5) as progress:
        rows = record_smollm2(out, on_step=progress)
    for row in rows[:-1]:
        say(
            f"{row['method']}: ranks {row['accuracy']:.3f} [{row['low']:.3f}, {row['high']:.3f}] "
            f"of {row['pairs']} pairs from {row['films']} held-out films correctly"
        )
    say(f"{time.time() - started:.0f} s in all.")
