"""Progress in a terminal: a bar per stage and a line of metrics every few steps."""

from contextlib import suppress

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

SHOWN = {  # a metric -> its name in the line; those that matter most come first
    "loss": "loss",
    "score": "score",
    "right": "right",
    "mended": "mended",
    "gold": "gold",
    "kl": "kl",
    "length": "length",
    "clip_fraction": "clip",
    "accuracy": "accuracy",
    "margin": "margin",
    "rewards/accuracies": "accuracy",
    "rewards/margins": "margin",
    "displaced": "displaced",
    "bits_per_byte": "bits/byte",
    "entropy": "entropy",
}
ROOM = 6  # characters of a number: a longer one may push the last metrics out of the line


class Progresses:
    """A progress bar per stage; called, inside `with`, with each row of a History.

    A row with `step` and `steps` moves the bar of its stage. Every few steps the row's metrics are
    printed: in a terminal as many as one line has room for, elsewhere all of `SHOWN`. The file
    metrics.jsonl has them all.

    Args:
        every: steps between two printed lines.
    """

    def __init__(self, console: Console, every: int = 5) -> None:
        self.bar = Progress(
            TextColumn("{task.description:>6}"),
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
            if {"accuracy", "rewards/accuracies"} & row.keys():
                self._print(
                    f"{stage}: accuracy is that of the training batches, not of held-out pairs."
                )
        self.bar.update(self.tasks[stage], completed=step + 1)
        if step % self.every == 0 or step + 1 == steps:
            console = self.bar.console
            self._print(metrics_line(row, console.width if console.is_terminal else None))

    def _print(self, line: str) -> None:
        self.bar.console.print(line, highlight=False, markup=False, soft_wrap=True)


def metrics_line(row: dict, width: int | None) -> str:
    """The stage, the step and the metrics `SHOWN` of a row of a History, in one line.

    Args:
        width: leave out the metrics that do not fit into so many characters, from the first on.
            None: no limit.
    """
    line = f"{row['stage']:>6} {row['step']:4d}"
    for metric, name in SHOWN.items():
        if metric in row:
            number = f"{row[metric]:.3f}"
            if width and len(line) + len(f"  {name} ") + max(len(number), ROOM) > width:
                break
            line += f"  {name} {number}"
    return line
