"""Resumable training: one checkpoint file, replaced atomically.

for step, batch in checkpoint.steps(batches):  # begins after the last saved step
    ...
"""

import json
import os
import random
import shutil
import signal
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from datasets import Dataset

from minirlhf.core.rollout import Score
from minirlhf.loops.checkpoint_file import random_state, read_file, write_file
from minirlhf.loops.checkpoint_fit import (
    check_run,
    check_settings,
    check_tensors,
    digest,
    fingerprint,
    fits,
    flat,
)
from minirlhf.loops.formulas import function_signature, identity, tool_of
from minirlhf.models.adapters import LanguageModel
from minirlhf.runtime import (
    History,
    check,
    kept_elsewhere,
    output_file,
    reason,
    signals_wait,
    straight,
)

if TYPE_CHECKING:
    from _typeshed import DataclassInstance  # any dataclass

Batch = TypeVar("Batch")  # what a loop reads in one step


class Stopped(Exception):
    """A signal stopped the run. The current step was finished first, and saved if there is a path.

    Args:
        number: the signal's: SIGINT for Ctrl-C, SIGTERM for `kill`, SIGHUP for a closed terminal.
        finished: whether the run was complete, so that there is nothing to continue.
    """

    def __init__(
        self, message: str, number: int = signal.SIGINT, *, finished: bool = False
    ) -> None:
        super().__init__(message)
        self.number, self.finished = number, finished


class Checked(Exception):
    """A run was checked as it is before its first step, and goes no further (`check_only`)."""


class Checkpoint:
    """Weights, optimisers, random generators and History of a run, saved at intervals.

        with Checkpoint("run.safetensors", resume=True) as checkpoint:
            train_ppo(..., checkpoint=checkpoint)

    `Checkpoint()` without a path saves nothing. Inside `with`, Ctrl-C finishes the current step,
    saves and raises Stopped. SIGTERM and SIGHUP do the same. A second Ctrl-C stops at once, without
    a save. While a loop runs, no other process may use the file.

    An error inside `with`, such as one of the reward function, saves the run as it was before the
    step that failed, if no weight has changed in that step. A note of the error says where. A
    KeyboardInterrupt that is no Ctrl-C does the same and raises Stopped. When
    the run is resumed, the score or the tool may be another one (MAY_CHANGE); a sentence says so.

    A save that fails does not end the run: a sentence is printed, and the run goes on.

    Args:
        path: the file: a .safetensors with a JSON header. It holds its own SHA-256.
        resume: continue the run that the file holds. Without it, an existing file is an error,
            because the file may hold a run that you still need.
        every: seconds between two saves.
        origin: what else must be the same when the run is resumed, by name, for example
            {"reward model": "tiny-reviews-reward"}.
        command: what began the run, to be named where it is not finished.
        check_only: raise Checked where the first step would begin, and save nothing.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        resume: bool = False,
        every: float = 60.0,
        origin: dict | None = None,
        command: str = "",
        check_only: bool = False,
    ) -> None:
        self.path = straight(Path(path)) if path else None
        self.resume, self.every, self.origin = resume, every, origin or {}
        self.command, self.check_only = command, check_only
        self.signals: list[int] = []  # those that came, such as SIGINT for Ctrl-C
        self.lock = ExitStack()
        self.started, self.earlier = time.time(), 0.0  # earlier: seconds spent before a resume
        self.saved = 0  # steps that the file holds
        self.stepping = False  # whether this process has begun a step
        self.before_step: dict[str, Any] | None = None  # what a step may change before its update

    def attach(
        self,
        loop: str,
        config: "DataclassInstance",
        data: Dataset | torch.Tensor | list,
        models: list,
        optimizers: list[torch.optim.Optimizer],
        history: History,
        *,
        generators: Sequence[torch.Generator] = (),
        state: dict | None = None,
        formulas: "DataclassInstance | None" = None,
        score: Score | None = None,
        reference: LanguageModel | None = None,
    ) -> "Checkpoint":
        """Register the parts of a run, and restore them if it is resumed. Returns the Checkpoint.

        A run is recognised by the loop's name, its settings, its data, its formulas, its score, its
        reference and the weights that it starts from.

        Args:
            loop: name of the loop.
            config: its settings, a dataclass.
            data: its rows.
            models: what is trained. optimizers: their optimisers. history: what is logged.
            generators: those of the loop; torch's global one is always saved.
            state: numbers that change from step to step, in a dict that the loop keeps up to date.
            formulas: the dataclass of functions that the loop uses (see loops/formulas.py).
            score: what the loop maximises. It is compared by its source and by what it holds. A
                model that it holds is not compared: name it in `origin`.
            reference: the frozen policy, if it is not a copy of the model; compared by its weights.

        Raises:
            ValueError: the file exists and `resume` is off; it is damaged; it belongs to a run with
                other settings, data, weights or formulas; a formula has no source to compare;
                another process uses the file; or it cannot be written.
            Checked: everything is in order, and it is `check_only`.

        Warns:
            UserWarning: a formula has no source, so this run cannot be resumed.
        """
        if self.path:
            replaced = {} if formulas is None else identity(formulas)
            self.unknown = [name for name, source in replaced.items() if source is None]
            weights = [p for model in models for _, p in _trained(model)]
            facts = {
                "loop": loop,
                "data": digest(data),
                "start": fingerprint(models),
                "trained parameters": sum(p.numel() for p in weights),
            }
            facts |= {
                f"formula {name}": source or "of unknown source"
                for name, source in replaced.items()
            }
            if self.unknown:
                warnings.warn(
                    f"The formula {', '.join(self.unknown)} has no source that can be read, so "
                    "this run cannot be resumed after an interruption.",
                    stacklevel=3,
                )
            if score is not None:
                facts["score"] = function_signature(score)
            if (tool := tool_of(formulas)) is not None:
                facts["tool"] = function_signature(tool.run)
            if isinstance(reference, torch.nn.Module):
                facts["reference"] = fingerprint([reference])
            self.config = json.loads(json.dumps(flat(facts | self.origin | asdict(config))))
        self.models, self.optimizers, self.history, self.first = models, optimizers, history, 0
        self.generators, self.state = generators, {} if state is None else state
        if self.path:
            try:
                self._hold(sum(p.nbytes for p in weights))
                if os.path.lexists(self.path):
                    self._restore()
            except BaseException:
                self.lock.close()
                raise
            for optimizer in optimizers:
                optimizer.register_step_pre_hook(self._updating)
        if self.check_only:
            self.lock.close()
            raise Checked
        return self

    def steps(self, batches: Iterable[Batch]) -> Iterator[tuple[int, Batch]]:
        """(step, batch), from the first step that is not yet done.

        A step is complete when the loop asks for the next one. Nothing is saved before that, so a
        file never holds half a step.

        Args:
            batches: the batches of all steps from the first; the same ones in every run.
        """
        saved, step = time.time(), -1
        with self.lock:
            for step, batch in enumerate(batches):
                if step < self.first:
                    continue
                self.before_step, self.stepping = self._changing() if self.path else None, True
                yield step, batch
                self.before_step = None
                self.first = step + 1
                if self.signals:
                    raise Stopped(
                        f"Stopped after {self.first} steps; {self._last()}", self.signals[0]
                    )
                if self.path and time.time() - saved >= self.every:
                    if failed := self._try_to_save(self.path):
                        print(f"{failed}. The run goes on.")
                    saved = time.time()
            if self.path:
                fits(self.path, "step", self.first, self.first <= step + 1, f"at most {step + 1}")
            if self.path and (failed := self._try_to_save(self.path)):
                print(f"{failed}. The run is complete.")

    def __enter__(self) -> "Checkpoint":
        self.waiting = ExitStack()
        self.signals = self.waiting.enter_context(signals_wait())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: object
    ) -> None:
        at_once = isinstance(error, KeyboardInterrupt) and self.signals  # the second Ctrl-C
        kept = "" if at_once or isinstance(error, Stopped | None) else self._save_before(error)
        self.lock.close()
        self.waiting.close()
        if kept and isinstance(error, KeyboardInterrupt):
            raise Stopped(f"Stopped in step {self.first}. {kept}") from error
        if kept and error:
            how = "" if self.resume else " with --resume (in Python resume=True)"
            error.add_note(f"{kept} Mend the cause, then run the same command{how}.")
        if self.signals and kind is None:  # the signal came while no loop was running
            if self.path and self.path.exists():
                raise Stopped(f"Stopped; the run is saved in {self.path}.", self.signals[0])
            if self.signals[0] == signal.SIGINT:
                raise KeyboardInterrupt
            raise Stopped("Stopped; nothing was saved.", self.signals[0])

    def remove(self) -> None:
        """Delete the file: the run is complete and its result is saved elsewhere."""
        if self.path:
            self.path.unlink(missing_ok=True)

    def _write(self, path: Path) -> None:
        """Write everything to `path`."""
        tensors = self._weights()
        for o, optimizer in enumerate(self.optimizers):
            for index, moments in optimizer.state_dict()["state"].items():
                tensors |= {
                    f"optimizer.{o}.{index}.{name}": torch.as_tensor(value, device="cpu")
                    for name, value in moments.items()
                }
        changing = self.before_step or self._changing()
        tensors |= changing["generators"]
        header = {
            "step": self.first,
            "config": self.config,
            "history": self.history[: changing["rows"]],
            "state": changing["state"],
            "random": changing["random"],
            "seconds": self.earlier + time.time() - self.started,
            "machine": self._machine(),
            "command": self.command,
        }
        write_file(path, header, tensors)

    def _weights(self) -> dict[str, torch.Tensor]:
        """The trained parameters, by their names in the file."""
        return {
            f"model.{m}.{name}": p.contiguous()
            for m, model in enumerate(self.models)
            for name, p in _trained(model)
        }

    def _changing(self) -> dict[str, Any]:
        """What a step may change before it updates the weights."""
        return {
            "generators": {
                f"generator.{g}": generator.get_state()
                for g, generator in enumerate(self._generators())
            },
            "random": random.getstate(),
            "state": json.loads(json.dumps(self.state)),
            "rows": len(self.history),
        }

    def _updating(self, *_: object) -> None:
        """Called before an optimiser's step: the state before the step of the run is gone then."""
        self.before_step = None

    def _save_before(self, error: BaseException | None) -> str:
        """Save the run as it was before the step that failed. Returns where it is, "" for nowhere.

        After an update in this step, that is the last save.
        """
        if self.path is None or not self.stepping:
            return ""
        whole = self.before_step is not None and not isinstance(error, FloatingPointError)
        if whole and self.first > self.saved:
            return f"The run as it was before step {self.first} is {self._last()}"
        place = f"The run as it was before step {self.saved} is in {self.path}."
        return place if self.saved else ""

    def _try_to_save(self, path: Path) -> str:
        """Save. Returns what stood in the way, "" for nothing."""
        try:
            self._write(path)
        except Exception as error:  # a library may raise anything when the disk is full
            return f"{path} could not be written ({reason(error)})"
        self.saved = self.first
        return ""

    def _last(self) -> str:
        """Save before a stop, in another place if that fails. Returns where the run is."""
        if self.path is None:
            return "nothing was saved."
        earlier = self.saved
        if not (failed := self._try_to_save(self.path)):
            return f"saved in {self.path}."
        name = self.path.name
        kept = kept_elsewhere(self.path.parent, lambda folder: self._write(folder / name))
        if kept:
            return f"{failed}, so the run is saved in {kept / name}. Move that file to {self.path}."
        still = f"{self.path} still holds the run as it was after {earlier} steps."
        there = earlier and self.path.exists()
        return f"{failed}, nor could another place. {still if there else 'Nothing was saved.'}"

    def _hold(self, size: int) -> None:
        """Take the lock of the file. Its disk must have room for weights of `size` bytes.

        The file also holds the two averages of Adam, and a save writes a new file beside the old.
        """
        assert self.path is not None  # `attach` has looked
        self.lock.enter_context(output_file(self.path))
        free = shutil.disk_usage(self.path.parent).free
        size *= 3 if self.path.exists() else 6
        check(
            "The free space of the disk",
            f"{free / 1e6:.1f} MB",
            free >= size,
            f"at least {size / 1e6:.1f} MB to save the run in {self.path}",
        )

    def _machine(self) -> dict[str, Any]:
        """What the bits of a result depend on, besides the settings."""
        device = next(self.models[0].parameters()).device
        cpu = torch.backends.cpu.get_cpu_capability()
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
        threads = torch.get_num_threads()
        return {"threads": threads, "torch": torch.__version__, "device": f"{device.type} ({name})"}

    def _restore(self) -> None:
        """Check that the file belongs to the same run, then restore all that it holds."""
        assert self.path is not None  # `attach` has looked
        header, tensors = read_file(self.path)
        if not self.resume:
            raise ValueError(
                f"{self.path} holds a run that was stopped after {header['step']} steps; "
                "continue it with --resume (in Python resume=True), or remove the file."
            )
        if self.unknown:
            raise ValueError(
                f"{self.path} cannot be resumed: the formula {', '.join(self.unknown)} has no "
                "source to compare with that of the earlier run. Put it into a file, or start anew."
            )
        check_settings(self.path, header, self.config)
        check_run(self.path, header, self.state, len(self.history))
        live = self._weights() | self._changing()["generators"]
        check_tensors(self.path, tensors, live, self.optimizers)
        self._fill(header, tensors)
        steps = self.history[-1].get("steps", 0) if self.history else 0
        if 0 < self.first < steps:
            done = f"{self.first} of {steps} steps"
            print(f"Continues: {done} {'is' if self.first == 1 else 'are'} done.")
        now = self._machine()
        if other := [
            f"{name} {header['machine'].get(name)} before and {now[name]} now"
            for name in now
            if header["machine"].get(name) != now[name]
        ]:
            print(
                f"The run goes on elsewhere ({'; '.join(other)}): it may not end with the same "
                "bits as a run without a stop."
            )

    def _fill(self, header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        """Restore the run from a file's header and tensors."""
        with torch.no_grad():
            for m, model in enumerate(self.models):
                for name, p in _trained(model):
                    p.copy_(tensors[f"model.{m}.{name}"])
        for o, optimizer in enumerate(self.optimizers):
            whole = optimizer.state_dict() | {"state": {}}
            for key in (k for k in tensors if k.startswith(f"optimizer.{o}.")):
                _, _, index, name = key.split(".", 3)
                whole["state"].setdefault(int(index), {})[name] = tensors[key]
            optimizer.load_state_dict(whole)
        for g, generator in enumerate(self._generators()):
            generator.set_state(tensors[f"generator.{g}"])
        random.setstate(random_state(header["random"]))
        self.first = self.saved = header["step"]
        self.earlier = header["seconds"]
        self.history[:] = header["history"]
        self.state.update(header["state"])

    def _generators(self) -> list[torch.Generator]:
        return [torch.default_generator, *self.generators]


def _trained(model: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    """The trainable parameters by name, tied weights once. Frozen ones stay as they were loaded."""
    return [(name, p.data) for name, p in model.named_parameters() if p.requires_grad]
