"""Resumable training: one checkpoint file, replaced atomically.

for step, batch in checkpoint.steps(batches):  # begins after the last saved step
    ...
"""

import hashlib
import json
import os
import random
import re
import shutil
import signal
import tempfile
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from datasets import Dataset
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from minirlhf.core.rollout import Score
from minirlhf.loops.formulas import function_signature, identity
from minirlhf.models.adapters import LanguageModel
from minirlhf.runtime import History, atomic_path, check, output_file, reason

if TYPE_CHECKING:
    from _typeshed import DataclassInstance  # any dataclass

Batch = TypeVar("Batch")  # what a loop reads in one step
BLANK = "0" * 64  # stands for a file's SHA-256 until that is known
SIGNALS = [getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, n)]


class Stopped(Exception):
    """A signal stopped the run. The current step was finished first, and saved if there is a path.

    Args:
        number: the signal's: SIGINT for Ctrl-C, SIGTERM for `kill`, SIGHUP for a closed terminal.
    """

    def __init__(self, message: str, number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.number = number


class Checkpoint:
    """Weights, optimisers, random generators and History of a run, saved at intervals.

        with Checkpoint("run.safetensors", resume=True) as checkpoint:
            train_ppo(..., checkpoint=checkpoint)

    `Checkpoint()` without a path saves nothing. Inside `with`, Ctrl-C finishes the current step,
    saves and raises Stopped. SIGTERM and SIGHUP do the same. A second Ctrl-C stops at once, without
    a save. While a loop runs, no other process may use the file.

    A save that fails does not end the run: a sentence is printed, and the run goes on.

    Args:
        path: the file: a .safetensors with a JSON header. It holds its own SHA-256.
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
        self.stopping = 0  # the signal that came, such as SIGINT for Ctrl-C
        self.lock = ExitStack()
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
                other settings, data, weights or formulas; a formula has no source to compare;
                another process uses the file; or it cannot be written.

        Warns:
            UserWarning: a formula has no source, so this run cannot be resumed.
        """
        if self.path:
            replaced = {} if formulas is None else identity(formulas)
            self.unknown = [name for name, source in replaced.items() if source is None]
            weights = [p for model in models for _, p in _trained(model)]
            facts = {
                "loop": loop,
                "data": _digest(data),
                "start": _fingerprint(models),
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
            if isinstance(reference, torch.nn.Module):
                facts["reference"] = _fingerprint([reference])
            self.config = json.loads(json.dumps(facts | self.origin | asdict(config)))
        self.models, self.optimizers, self.history, self.first = models, optimizers, history, 0
        self.generators, self.state = generators, {} if state is None else state
        if self.path:
            self._hold(sum(p.nbytes for p in weights))
            try:
                if os.path.lexists(self.path):
                    self._restore()
            except BaseException:
                self.lock.close()
                raise
        return self

    def steps(self, batches: Iterable[Batch]) -> Iterator[tuple[int, Batch]]:
        """(step, batch), from the first step that is not yet done.

        A step is complete when the loop asks for the next one. Nothing is saved before that, so a
        file never holds half a step.

        Args:
            batches: the batches of all steps from the first; the same ones in every run.
        """
        saved = time.time()
        with self.lock:
            for step, batch in islice(enumerate(batches), self.first, None):
                yield step, batch
                self.first = step + 1
                if self.stopping:
                    raise Stopped(f"Stopped after step {step}; {self._last()}", self.stopping)
                if self.path and time.time() - saved >= self.every:
                    if failed := self._try_to_save(self.path):
                        print(f"{failed}. The run goes on.")
                    saved = time.time()
            if self.path and (failed := self._try_to_save(self.path)):
                print(f"{failed}. The run is complete.")

    def __enter__(self) -> "Checkpoint":
        def stop(number: int, frame: object) -> None:
            if self.stopping and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.stopping = self.stopping or number

        self.before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():  # only it may handle signals
            for number in SIGNALS:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):  # nohup ignores SIGHUP
                    self.before[number] = signal.signal(number, stop)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.lock.close()
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if self.stopping and kind is None:  # the signal came while no loop was running
            if self.path and self.path.exists():
                raise Stopped(f"Stopped; the run is saved in {self.path}.", self.stopping)
            if self.stopping == signal.SIGINT:
                raise KeyboardInterrupt
            raise Stopped("Stopped; nothing was saved.", self.stopping)

    def remove(self) -> None:
        """Delete the file: the run is complete and its result is saved elsewhere."""
        if self.path:
            self.path.unlink(missing_ok=True)

    def _write(self, path: Path) -> None:
        """Write everything to a temporary file, then rename it to `path`."""
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
            "machine": self._machine(),
        }
        with atomic_path(path) as temporary:
            metadata = {key: json.dumps(value) for key, value in header.items()}
            save_file(tensors, temporary, metadata=metadata | {"sha256": BLANK})
            _seal(temporary)

    def _try_to_save(self, path: Path) -> str:
        """Save. Returns what stood in the way, "" for nothing."""
        try:
            self._write(path)
        except (OSError, SafetensorError) as error:
            return f"{path} could not be written ({reason(error)})"
        return ""

    def _last(self) -> str:
        """Save before a stop, in another place if that fails. Returns where the run is."""
        if self.path is None:
            return "nothing was saved."
        if not (failed := self._try_to_save(self.path)):
            return f"saved in {self.path}."
        kept = Path(tempfile.mkdtemp(prefix="minirlhf-kept-")) / self.path.name
        if self._try_to_save(kept):
            return f"{failed}, nor could {kept}. What an earlier save wrote is still there."
        return f"{failed}, so the run is saved in {kept}. Move that file to {self.path}."

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
        header, tensors = self._read()
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
        try:
            self._fill(header, tensors)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"{self.path} does not fit the run that it names ({type(error).__name__}: "
                f"{reason(error)}); remove the file to start anew."
            ) from error
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

    def _read(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """(header, tensors) of the file.

        Raises:
            ValueError: it cannot be read, or a byte of it has changed since it was saved.
        """
        assert self.path is not None  # `attach` has looked
        try:
            kept, found, _ = _sha256(self.path)
            if kept != found:
                raise ValueError("its SHA-256 is another one than when it was saved")
            with safe_open(self.path, "pt") as file:
                header = {k: json.loads(v) for k, v in file.metadata().items() if k != "sha256"}
                tensors = {key: file.get_tensor(key) for key in file.keys()}
        except OSError as error:
            raise ValueError(f"{self.path} cannot be read: {reason(error)}.") from error
        except (SafetensorError, ValueError) as error:
            raise ValueError(
                f"{self.path} is damaged or is not a checkpoint of a run ({reason(error)}); "
                "remove the file to start anew."
            ) from error
        kinds = {
            "step": int,
            "config": dict,
            "history": list,
            "state": dict,
            "random": list,
            "seconds": float,
            "machine": dict,
        }
        wrong = [name for name, kind in kinds.items() if not isinstance(header.get(name), kind)]
        if wrong:
            raise ValueError(
                f"{self.path} is damaged or is not a checkpoint of a run: {', '.join(wrong)} is "
                "missing or of another type; remove the file to start anew."
            )
        return header, tensors

    def _fill(self, header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        """Restore the run from a file's header and tensors."""
        with torch.no_grad():
            for m, model in enumerate(self.models):
                for name, p in _trained(model):
                    saved = tensors[f"model.{m}.{name}"]
                    check(
                        f"the shape of {name}",
                        [*saved.shape],
                        saved.shape == p.shape,
                        f"{[*p.shape]}",
                    )
                    p.copy_(saved)
        for o, optimizer in enumerate(self.optimizers):
            whole = optimizer.state_dict() | {"state": {}}
            sizes = [p.shape for group in optimizer.param_groups for p in group["params"]]
            for key in (k for k in tensors if k.startswith(f"optimizer.{o}.")):
                _, _, index, name = key.split(".", 3)
                shape = tensors[key].shape
                check(key, [*shape], shape in (sizes[int(index)], ()), f"{[*sizes[int(index)]]}")
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


def _sha256(path: Path) -> tuple[str, str, int]:
    """(SHA-256 that a file keeps in its header, the one that it has, the place of the first).

    The second is of all bytes, with 64 zeros in the place of the first.

    Raises:
        ValueError: the header keeps none.
    """
    with open(path, "rb") as file:
        size = file.read(8)
        header = file.read(min(int.from_bytes(size, "little"), os.path.getsize(path)))
        kept = re.search(rb'"sha256":"([0-9a-f]{64})"', header)
        if kept is None:
            raise ValueError("it holds no SHA-256 of itself")
        start, end = kept.span(1)
        digest = hashlib.sha256(size + header[:start] + BLANK.encode() + header[end:])
        while part := file.read(2**20):
            digest.update(part)
    return kept[1].decode(), digest.hexdigest(), len(size) + start


def _seal(path: Path) -> None:
    """Write a file's SHA-256 into its header, in place of the zeros there."""
    _, found, place = _sha256(path)
    with open(path, "rb+") as file:
        file.seek(place)
        file.write(found.encode())


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
