"""Resumable training: one checkpoint file, replaced atomically.

for step, batch in checkpoint.steps(batches):  # begins after the last saved step
    ...
"""

import hashlib
import json
import random
import signal
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from datasets import Dataset
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from minirlhf.core.rollout import Score
from minirlhf.loops.formulas import function_signature, identity
from minirlhf.models.adapters import LanguageModel
from minirlhf.runtime import History, atomic_path

if TYPE_CHECKING:
    from _typeshed import DataclassInstance  # any dataclass

Batch = TypeVar("Batch")  # what a loop reads in one step


class Stopped(Exception):
    """Ctrl-C was pressed. The current step was finished first, and saved if there is a path."""


class Checkpoint:
    """Weights, optimisers, random generators and History of a run, saved at intervals.

        with Checkpoint("run.safetensors", resume=True) as checkpoint:
            train_ppo(..., checkpoint=checkpoint)

    `Checkpoint()` without a path saves nothing. Inside `with`, Ctrl-C finishes the current step,
    saves and raises Stopped; a second Ctrl-C stops at once.

    Args:
        path: the file: a .safetensors with a JSON header.
        resume: continue the run that the file holds. Without it, an existing file is an error,
            because the file may hold a run that you still need.
        every: seconds between two saves.
        origin: what else must be the same when the run is resumed, by name, for example
            {"reward model": "tiny-reviews-reward"}.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        resume: bool = False,
        every: float = 60.0,
        origin: dict | None = None,
    ) -> None:
        self.path = Path(path) if path else None
        self.resume, self.every, self.origin = resume, every, origin or {}
        self.stopping = False  # Ctrl-C was pressed
        self.started, self.earlier = time.time(), 0.0  # earlier: seconds spent before a resume

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
                other settings, data, weights or formulas; or a formula has no source to compare.

        Warns:
            UserWarning: a formula has no source, so this run cannot be resumed.
        """
        if self.path:
            for left in self.path.parent.glob(f".{self.path.name}.*"):  # a save that was killed
                left.unlink()
            replaced = {} if formulas is None else identity(formulas)
            self.unknown = [name for name, source in replaced.items() if source is None]
            size = sum(p.numel() for model in models for _, p in _trained(model))
            facts = {
                "loop": loop,
                "data": _digest(data),
                "start": _fingerprint(models),
                "trained parameters": size,
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
            if isinstance(reference, torch.nn.Module):
                facts["reference"] = _fingerprint([reference])
            self.config = json.loads(json.dumps(facts | self.origin | asdict(config)))
        self.models, self.optimizers, self.history, self.first = models, optimizers, history, 0
        self.generators, self.state = generators, {} if state is None else state
        if self.path and self.path.exists():
            self._restore()
        return self

    def steps(self, batches: Iterable[Batch]) -> Iterator[tuple[int, Batch]]:
        """(step, batch), from the first step that is not yet done.

        A step is complete when the loop asks for the next one. Nothing is saved before that, so a
        file never holds half a step.

        Args:
            batches: the batches of all steps from the first; the same ones in every run.
        """
        saved = time.time()
        for step, batch in islice(enumerate(batches), self.first, None):
            yield step, batch
            self.first = step + 1
            if self.path and (self.stopping or time.time() - saved >= self.every):
                self.save()
                saved = time.time()
            if self.stopping:
                where = f"saved in {self.path}." if self.path else "nothing was saved."
                raise Stopped(f"Stopped after step {step}; {where}")
        if self.path:
            self.save()

    def __enter__(self) -> "Checkpoint":
        def stop(number: int, frame: object) -> None:
            if self.stopping:
                raise KeyboardInterrupt
            self.stopping = True

        if threading.current_thread() is threading.main_thread():  # only it may handle signals
            self.before = signal.signal(signal.SIGINT, stop)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self.before)
        if self.stopping and kind is None:  # Ctrl-C came while no loop was running
            if self.path and self.path.exists():
                raise Stopped(f"Stopped; the run is saved in {self.path}.")
            raise KeyboardInterrupt

    def remove(self) -> None:
        """Delete the file: the run is complete and its result is saved elsewhere."""
        if self.path:
            self.path.unlink(missing_ok=True)

    def save(self) -> None:
        """Write everything to a temporary file, then rename it to `path`, if there is one."""
        if self.path is None:
            return
        tensors = {
            f"model.{m}.{name}": p.contiguous()
            for m, model in enumerate(self.models)
            for name, p in _trained(model)
        }
        for o, optimizer in enumerate(self.optimizers):
            for index, moments in optimizer.state_dict()["state"].items():
                tensors |= {
                    f"optimizer.{o}.{index}.{name}": torch.as_tensor(value, device="cpu")
                    for name, value in moments.items()
                }
        tensors |= {
            f"generator.{g}": generator.get_state()
            for g, generator in enumerate(self._generators())
        }
        header = {
            "step": self.first,
            "config": self.config,
            "history": self.history,
            "state": self.state,
            "random": random.getstate(),
            "seconds": self.earlier + time.time() - self.started,
        }
        with atomic_path(self.path) as temporary:
            save_file(
                tensors,
                temporary,
                metadata={key: json.dumps(value) for key, value in header.items()},
            )

    def _restore(self) -> None:
        """Check that the file belongs to the same run, then restore all that it holds."""
        try:
            with safe_open(self.path, "pt") as file:
                header = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
                tensors = {key: file.get_tensor(key) for key in file.keys()}
            header = {
                key: header[key]
                for key in ("step", "config", "history", "state", "random", "seconds")
            }
        except (SafetensorError, KeyError, ValueError) as error:
            raise ValueError(
                f"{self.path} is damaged or is not a checkpoint of a run; "
                "remove the file to start anew."
            ) from error
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
        if other := sorted(
            key
            for key in {*self.config, *header["config"]}
            if self.config.get(key) != header["config"].get(key)
        ):
            raise ValueError(
                f"{self.path} belongs to another run, which differs in: {', '.join(other)}. "
                "Give the same settings, or remove the file to start anew."
            )
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
        version, numbers, spare = header["random"]
        random.setstate((version, tuple(numbers), spare))
        self.first, self.earlier = header["step"], header["seconds"]
        self.history[:] = header["history"]
        self.state.update(header["state"])

    def _generators(self) -> list[torch.Generator]:
        return [torch.default_generator, *self.generators]


def _digest(data: Dataset | torch.Tensor | list) -> str:
    """SHA-256 of all rows of the data, shortened."""
    whole = data.tolist() if isinstance(data, torch.Tensor) else data[:]
    return hashlib.sha256(repr(whole).encode("utf-8", "backslashreplace")).hexdigest()[:16]


def _fingerprint(models: list) -> str:
    """SHA-256 of the weights that a run starts from, without adapters, shortened.

    Adapters are drawn at random, so they differ when a run is started again.
    """
    digest = hashlib.sha256()
    for model in models:
        for name, p in model.named_parameters():
            if "lora_" not in name:
                digest.update(p.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _trained(model: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    """The trainable parameters by name, tied weights once. Frozen ones stay as they were loaded."""
    return [(name, p.data) for name, p in model.named_parameters() if p.requires_grad]
