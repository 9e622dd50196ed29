"""The labels of steps that `prm` has made so far, in a file of --out: a stop loses few of them."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from minirlhf.cli.terminal import resuming, say
from minirlhf.loops.checkpoint import Stopped
from minirlhf.loops.checkpoint_fit import check_settings
from minirlhf.runtime import reason, write_text


class KeptLabels:
    """The labelled rows of the groups of prompts that are done, and the generator after them.

    Args:
        path: the file.
        resume: go on after the groups that the file holds. Without it, an existing file is an
            error, because it may hold labels that you still need.
        settings: what must be the same when the file is continued; "score" may be another.
        groups: how many there are in all.
        generator: draws all samples; its state is restored.

    Raises:
        ValueError: the file exists and `resume` is off; it is damaged; or its settings are others.
    """

    def __init__(
        self,
        path: Path,
        resume: bool,
        settings: dict[str, Any],
        *,
        groups: int,
        generator: torch.Generator,
    ) -> None:
        self.path, self.groups, self.generator = path, groups, generator
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))
        self.rows: list[dict] = []
        self.done = 0  # groups
        if os.path.lexists(path):
            self._read(resume)

    def _read(self, resume: bool) -> None:
        try:
            held = json.loads(self.path.read_text(encoding="utf-8"))
            header = {"config": held["settings"], "command": held["command"], "step": held["done"]}
            state = torch.tensor(list(bytes.fromhex(held["generator"])), dtype=torch.uint8)
            torch.Generator().set_state(state)
            self.rows, self.done = [*held["rows"]], int(held["done"])
            then = dict(header["config"])
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise ValueError(
                f"{self.path} does not hold labels that can be read ({reason(error)}). Remove the "
                "file to start anew."
            ) from error
        if not resume:
            raise ValueError(
                f"{self.path} holds the labels of {self.done} of {self.groups} groups of prompts, "
                "of a run that was stopped; continue it with --resume, or remove the file."
            )
        complete = self.done == self.groups  # then nothing asks the score any more
        now = self.settings | ({"score": then.get("score")} if complete else {})
        check_settings(self.path, header, now)
        self.generator.set_state(state)
        say(f"Continues: {self.done} of {self.groups} groups of prompts are labelled.")

    def add(self, rows: list[dict]) -> None:
        """Keep the rows of one more group. A file that cannot be written is only said."""
        self.rows += rows
        self.done += 1
        held = {
            "settings": self.settings,
            "command": resuming(),
            "done": self.done,
            "generator": bytes(self.generator.get_state().tolist()).hex(),
            "rows": self.rows,
        }
        try:
            write_text(self.path, json.dumps(held))
        except OSError as error:
            say(f"{self.path} could not be written ({reason(error)}). The run goes on.")

    @contextmanager
    def naming(self) -> Iterator[None]:
        """Around the labelling: an error or Ctrl-C says where the labels are."""
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:
            if not self.path.is_file():
                raise
            kept = f"The labels of {self.done} of {self.groups} groups of prompts are in "
            if isinstance(error, KeyboardInterrupt):
                raise Stopped(f"Stopped. {kept}{self.path}.") from error
            error.add_note(f"{kept}{self.path}. Mend the cause, then run `{resuming()}`.")
            raise
