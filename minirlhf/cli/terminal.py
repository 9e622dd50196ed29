"""What the training commands share: a progress bar, a checkpoint, the result on disk."""

import shlex
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
import typer
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from minirlhf.loops.checkpoint import Checked, Checkpoint, Stopped
from minirlhf.loops.common import nothing_learned
from minirlhf.loops.row_report import CUT
from minirlhf.loops.rows import WRITTEN
from minirlhf.models.adapters import Policy
from minirlhf.models.load import save_policy
from minirlhf.runtime import PARTIAL, History, Kept, PromptError, reason, signals_wait
from minirlhf.show.progress import Progresses
from minirlhf.show.strips import printable

console = Console()


def say(text: str, *, to: Console | None = None) -> None:
    """Print a sentence as it is: no colours, no markup, and no control characters but line ends.

    Outside a terminal a line is not broken, so that a path stays in one piece.

    Args:
        to: where it is printed; by default on the standard output.
    """
    to = to or console
    to.print(printable(text, "\n"), highlight=False, markup=False, soft_wrap=not to.is_terminal)


@contextmanager
def running(
    path: Path,
    resume: bool,
    save_every: float,
    *,
    every: int,
    check_only: bool = False,
    prompts: Sequence[str] = (),
    **origin: str,
) -> Iterator[dict[str, Any]]:
    """What a loop takes from the command line: a progress bar, and a checkpoint at `path`.

    Args:
        save_every: seconds between two saves.
        every: a line of metrics is printed after so many steps.
        check_only: end the command before the first step, with a sentence and exit code 0.
        prompts: names of the rows of a file that the loop's prompts are, for an error about one.
        origin: what else must be the same when the run is resumed.
    """
    if resume and not path.exists():
        if (path.parent / "config.json").exists():
            raise ValueError(
                f"{path.parent} holds a finished model and no stopped run, so there is nothing to "
                "resume; leave --resume out to train it anew, or give another --out."
            )
        say(f"{path} does not exist, so there is nothing to resume. The run starts from step 0.")
    for start in (WRITTEN, CUT):  # the command has said it
        warnings.filterwarnings("ignore", message=start)
    checkpoint = Checkpoint(
        path,
        resume=resume,
        every=save_every,
        origin=origin,
        command=resuming(),
        check_only=check_only,
    )
    try:
        with checkpoint, Progresses(console, every=every) as progress:
            with naming_rows(prompts):
                yield {"on_step": progress, "checkpoint": checkpoint}
    except Checked:
        end_checked()


@contextmanager
def naming_rows(prompts: Sequence[str]) -> Iterator[None]:
    """Add to an error about one prompt which row of a file it is.

    Args:
        prompts: the name of each prompt's row; empty where they are of no file.
    """
    try:
        yield
    except PromptError as error:
        if error.prompt is not None and prompts:
            error.add_note(f"Prompt {error.prompt + 1} is {prompts[error.prompt]}.")
        raise


def end_checked() -> NoReturn:
    """End a command that was given --check-only, with exit code 0."""
    say("Checked: the first step can begin. Nothing was trained or written (--check-only).")
    raise typer.Exit from None


def resuming() -> str:
    """This command, as it is typed to resume its run."""
    typed = sys.argv[1:]
    return shlex.join(["minirlhf", *typed, *["--resume"] * ("--resume" not in typed)])


def save(
    policy: Policy,
    tokenizer: PreTrainedTokenizerBase,
    out: Path,
    history: History,
    *,
    dtype: torch.dtype = torch.float32,
    chat: bool = False,
    in_groups: bool = False,
) -> None:
    """Write the model and its metrics, and say where nothing could be learned from the scores.

    Args:
        chat: the chat template wrote what the model learned from.
        in_groups: as in `nothing_learned`.
    """
    with saving(out, history):
        save_policy(policy, tokenizer, out, dtype=dtype, chat=chat)
    say(f"Wrote {out}.")
    if said := nothing_learned(history, in_groups=in_groups):
        say(said)


@contextmanager
def saving(
    out: Path, history: History, *, metrics: Path | None = None, run: Path | None = None
) -> Iterator[None]:
    """Around the saving of a model: its metrics are saved too, then the checkpoint is removed.

    Ctrl-C, SIGTERM and SIGHUP wait until all is saved.

    Args:
        out: the folder of the model.
        metrics: the folder of its metrics.jsonl; `out` by default.
        run: the checkpoint; by default it is in `out`.

    Raises:
        OSError: something could not be written. The message says where the model is.
        Stopped: a signal came, and the model is complete.
    """
    run = run or out / PARTIAL
    with signals_wait() as signals:
        kept: Kept | None = None
        try:
            yield
        except Kept as error:
            kept = error
        except OSError as error:
            error.add_note(_to_finish(run))
            raise
        try:
            history.save((kept.folder if kept else metrics or out) / "metrics.jsonl")
        except (OSError, ValueError) as error:
            cause = f"could not be written ({reason(error)})."
            if kept is None:
                failed = OSError(f"The model is in {out}, but its metrics.jsonl {cause}")
                failed.add_note(_to_finish(run))
                raise failed from error
            kept.add_note(f"Its metrics.jsonl {cause}")
        if kept:
            raise kept
        Checkpoint(run).remove()
    if signals:
        raise Stopped(f"The run is complete: its model is in {out}.", signals[0], finished=True)


def _to_finish(run: Path) -> str:
    """How to save a run again that could not be written; empty where no checkpoint holds it."""
    if not run.is_file():
        return ""
    return f"The run is in {run}: make room, then give the same command with --resume."
