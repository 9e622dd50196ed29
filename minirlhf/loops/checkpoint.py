"""Runs that survive: all that a loop needs to go on as if it had never stopped, in one file that a rename replaces whole.

for step, batch in checkpoint.steps(batches):        the first step is the one after the last save
    ...
"""

import hashlib
import json
import random
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from minirlhf.runtime import History, atomic_path


class Stopped(Exception):
    """Ctrl-C, after the step that was under way was finished and saved."""


class Checkpoint:
    """Weights, optimisers, generators and History of a run, saved every so often; `Checkpoint()` saves nothing.

    Inside `with`, Ctrl-C finishes the step under way and saves; a second one does not wait.

    Args:
        path: the file, a .safetensors with a JSON header.
        resume: go on from what the file holds. Without it a file that is there is an error: it is somebody's work.
        every: seconds from save to save. origin: what else must be the same when it goes on, by name.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        resume: bool = False,
        every: float = 60.0,
        origin: dict | None = None,
    ):
        self.path, self.resume, self.every, self.stopping = (
            Path(path) if path else None,
            resume,
            every,
            False,
        )
        self.origin, self.earlier, self.started = (
            origin or {},
            0.0,
            time.time(),
        )  # earlier: seconds of the runs before this one

    def attach(
        self,
        loop: str,
        config,
        data,
        models: list,
        optimizers: list,
        history: History,
        *,
        generators: list = (),
        state: dict | None = None,
    ) -> "Checkpoint":
        """Name what makes up the run, and put it where the last save left it. Returns itself.

        Args:
            loop, config, data: its name, its settings (a dataclass) and its rows: they and the weights that it starts from must be the
                same when it goes on.
            generators: besides torch's global one. state: numbers that change from step to step, in a dict that the loop keeps up to date.

        Raises:
            ValueError: a file is there without `resume`; it is damaged, or of a run with other settings.
        """
        if self.path:
            for left in self.path.parent.glob(f".{self.path.name}.*"):  # by a save that was killed
                left.unlink()
            size = sum(p.numel() for model in models for _, p in _trained(model))
            facts = {
                "loop": loop,
                "data": _digest(data),
                "start": _fingerprint(models),
                "trained parameters": size,
            } | self.origin
            self.config = json.loads(json.dumps(facts | asdict(config)))
        self.models, self.optimizers, self.history, self.first = models, optimizers, history, 0
        self.generators, self.state = generators, {} if state is None else state
        if self.path and self.path.exists():
            self._restore()
        return self

    def steps(self, batches: Iterable) -> Iterator[tuple[int, object]]:
        """(step, batch) from the first step that is still to be done; `batches` must be the same ones in every run.

        A step is over when the loop asks for the next one: only then is anything saved, so a file never holds half a step.
        """
        saved = time.time()
        for step, batch in islice(enumerate(batches), self.first, None):
            yield step, batch
            self.first = step + 1
            if self.path and (self.stopping or time.time() - saved >= self.every):
                self.save()
                saved = time.time()
            if self.stopping:
                raise Stopped(
                    f"Stopped after step {step}; "
                    + (f"{self.path} holds it all." if self.path else "nothing was saved.")
                )
        if self.path:
            self.save()

    def __enter__(self) -> "Checkpoint":
        def stop(number, frame):
            if self.stopping:
                raise KeyboardInterrupt
            self.stopping = True

        if threading.current_thread() is threading.main_thread():  # signals are the main thread's
            self.before = signal.signal(signal.SIGINT, stop)
        return self

    def __exit__(self, kind, *_) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self.before)
        if self.stopping and kind is None:  # asked for where no loop was stepping
            if self.path and self.path.exists():
                raise Stopped(f"Stopped; {self.path} holds it all.")
            raise KeyboardInterrupt

    def remove(self) -> None:
        """The run is over and its result is saved."""
        if self.path:
            self.path.unlink(missing_ok=True)

    def save(self) -> None:
        """Write everything beside `path`, then rename."""
        tensors = {
            f"model.{m}.{name}": p.contiguous()
            for m, model in enumerate(self.models)
            for name, p in _trained(model)
        }
        for o, optimizer in enumerate(self.optimizers):
            for index, moments in optimizer.state_dict()["state"].items():
                tensors |= {
                    f"optimizer.{o}.{index}.{name}": torch.as_tensor(value)
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
                f"{self.path} is damaged or no checkpoint of a run; remove it to start anew."
            ) from error
        if not self.resume:
            raise ValueError(
                f"{self.path} holds a run stopped after {header['step']} steps; go on with --resume or remove it."
            )
        if other := sorted(
            key
            for key in {*self.config, *header["config"]}
            if self.config.get(key) != header["config"].get(key)
        ):
            raise ValueError(
                f"{self.path} was made with another {', '.join(other)}; give the same settings, or remove it to start anew."
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


def _digest(data) -> str:
    """Of all rows: a run goes on with the data that it began with."""
    whole = data.tolist() if isinstance(data, torch.Tensor) else data[:]
    return hashlib.sha256(repr(whole).encode("utf-8", "backslashreplace")).hexdigest()[:16]


def _fingerprint(models: list) -> str:
    """Of the weights a run starts from, adapters apart: those are drawn, not loaded."""
    digest = hashlib.sha256()
    for model in models:
        for name, p in model.named_parameters():
            if "lora_" not in name:
                digest.update(p.detach().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _trained(model: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    """What learns, by name, tied weights once; what is frozen is as the caller loaded it."""
    return [(name, p.data) for name, p in model.named_parameters() if p.requires_grad]
