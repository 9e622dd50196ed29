"""The metrics of a run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from minirlhf.runtime.output import write_text

Row = dict[str, Any]  # the metrics of one step, by name
OnStep = Callable[[Row], object]  # what a loop calls with each new row of its History


class History(list[Row]):
    """Metrics of a run: a list with one dict per step.

    A row is {"stage": "ppo", "step": 3, "kl": 0.8, ...}. A file holds one row per line, as JSON.
    """

    def log(self, stage: str, step: int, **metrics: Any) -> Row:
        """Append one row and return it. Tensors of one element become numbers."""
        row = {"stage": stage, "step": step} | {
            k: v.item() if isinstance(v, torch.Tensor) else v for k, v in metrics.items()
        }
        self.append(row)
        return row

    def column(self, stage: str, metric: str) -> list[float]:
        """The values of one metric in one stage; rows without it are left out."""
        return [row[metric] for row in self if row["stage"] == stage and metric in row]

    def save(self, path: str | Path) -> None:
        """Write the rows to a file, atomically."""
        write_text(path, "".join(json.dumps(row) + "\n" for row in self))

    @classmethod
    def load(cls, path: str | Path) -> "History":
        """Read what `save` wrote."""
        return cls(json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines())
