"""Progress in a terminal: a bar per stage and a line of metrics every few steps."""

from contextlib import suppress

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class Progresses:
    """A progress bar per stage; called, inside `with`, with each row of a History.

    A row with `step` and `steps` moves the bar of its stage. Every few steps the row's metrics are
    printed.

    Args:
        every: steps between two printed lines.
    """

    SHOWN = (
        "loss",
        "score",
        "right",
        "mended",
        "gold",
        "kl",
        "entropy",
        "length",
        "clip_fraction",
        "accuracy",
        "margin",
        "rewards/accuracies",
        "rewards/margins",
        "displaced",
        "bits_per_byte",
    )

    def __init__(self, console: Console, every: int = 5) -> None:
        self.bar = Progress(
            TextColumn("{task.description:>8}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TimeRemainingColumn(),
            console=console,
        )
        self.every = every
        self.tasks: dict[str, TaskID] = {}  # stage -> its bar

    def __enter__(self) -> "Progresses":
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(OSError, SystemExit):
            self.bar.stop()

    def __call__(self, row: dict) -> None:
        with suppress(OSError, SystemExit):  # a closed terminal or pipe does not end a run
            self._show(row)

    def _show(self, row: dict) -> None:
        stage, step, steps = row["stage"], row["step"], row.get("steps")
        if stage not in self.tasks:
            self.tasks[stage] = self.bar.add_task(stage, total=steps)
        self.bar.update(self.tasks[stage], completed=step + 1)
        if step % self.every == 0 or step + 1 == steps:
            numbers = "  ".join(f"{k} {row[k]:.3f}" for k in self.SHOWN if k in row)
            self.bar.console.print(f"{stage:>8} {step:4d}  {numbers}", highlight=False)
