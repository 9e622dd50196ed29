"""What every run needs: paths, seeds, threads, atomic files, checks of inputs, and the history."""

import json
import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from platformdirs import user_cache_path

PACKAGE = Path(__file__).resolve().parent
ROOT = PACKAGE.parent  # the repository, where the package is used from a checkout
IN_CHECKOUT = (ROOT / "pyproject.toml").is_file() and not (PACKAGE / "data").is_dir()
DATA = ROOT / "data" if IN_CHECKOUT else PACKAGE / "data"  # models and records; a wheel holds them
# downloads from third parties; git ignores data/cache
CACHE = Path(
    os.environ.get("MINIRLHF_CACHE")
    or (DATA / "cache" if IN_CHECKOUT else user_cache_path("minirlhf"))
)
SMOLLM2 = "smollm2-135m"
MODEL_FILES = (
    "*config.json",
    "model*.safetensors*",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template*",
    "scalar.json",
    "metrics.jsonl",
    "training.safetensors",
)  # the files of a saved model's folder


_default_device = torch.device("cpu")  # where models are loaded; see use_device


def use_device(name: str) -> torch.device:
    """Load models on this device from now on, where no other one is asked for.

    Args:
        name: cpu, cuda (also cuda:1), mps, or auto: a GPU if there is one, else the CPU.

    Raises:
        ValueError: the name is unknown, or this machine has no such device.
    """
    global _default_device
    _default_device = device_named(name)
    return _default_device


def device_named(name: str | torch.device | None = None) -> torch.device:
    """The device of that name; None: the one that `use_device` chose, the CPU at first.

    Raises:
        ValueError: the name is unknown, or this machine has no such device.
    """
    if name is None:
        return _default_device
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next((kind for kind, is_there in there.items() if is_there), "cpu"))
    kind = str(name).partition(":")[0]
    check("device", str(name), kind in ("cpu", *there), "cpu, cuda, mps or auto")
    check("device", str(name), there.get(kind, True), "one that torch finds on this machine")
    return torch.device(name)


def seed_all(seed: int) -> torch.Generator:
    """Seed the global generators of Python and torch.

    Returns:
        A separate generator with the same seed, for sampling.

    Raises:
        ValueError: the seed is no whole number from 0 to 2^32 - 1.
    """
    check_seed(seed)
    random.seed(seed)
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


def check_seed(seed: int) -> None:
    """Raise a ValueError unless the seed is a whole number from 0 to 2^32 - 1.

    Loops multiply a seed to give each step its own, and larger products do not fit into a seed.
    """
    whole = isinstance(seed, int) and not isinstance(seed, bool)
    check("seed", seed, whole and 0 <= seed < 2**32, "a whole number from 0 to 4,294,967,295")


def set_threads(threads: int | None = None) -> int:
    """Set the number of CPU threads for tensor work.

    Args:
        threads: by default OMP_NUM_THREADS. Where that is not set, the number of cores that this
            process may use, at most 8.

    Returns:
        The number of threads.
    """
    available = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    wanted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    threads = threads or (int(wanted) if wanted.isdigit() else 0) or min(available, 8)
    torch.set_num_threads(threads)
    return threads


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Context manager that writes a file atomically.

    It gives a temporary path in the folder of `path`. If the block ends without an error, the
    temporary file is renamed to `path`. Otherwise it is removed, and `path` is as before.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        yield Path(name)
        os.chmod(name, 0o644)  # mkstemp makes private files
        with open(name, "rb+") as file:
            # the data reach the disk before the rename: after a power cut the file is the old
            # one or the new one
            os.fsync(file.fileno())
        os.replace(name, path)
    finally:
        if os.path.exists(name):
            os.unlink(name)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Context manager that writes a folder atomically.

    It gives a temporary folder next to `path`. If the block ends without an error, that folder
    replaces `path`. Otherwise it is removed, and `path` is as before.

    Raises:
        ValueError: `path` holds files that do not belong to a model. They would be lost.
    """
    path = check_folder(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield temporary
        os.chmod(temporary, 0o755)
        if path.exists():
            old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old."))
            try:
                os.replace(path, old / path.name)
                os.replace(temporary, path)
            finally:
                if not path.exists():  # an error or Ctrl-C came between the two renames
                    os.replace(old / path.name, path)
                shutil.rmtree(old)
        else:
            os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_folder(path: str | Path) -> Path:
    """Check that a model may be written to `path`, and return it as a Path.

    Raises:
        ValueError: the folder holds files that do not belong to a model. They would be lost.
    """
    path = Path(path)
    strangers = (
        [p.name for p in path.glob("*") if not any(p.match(name) for name in MODEL_FILES)]
        if path.is_dir()
        else []
    )
    check(
        "folder",
        str(path),
        not strangers,
        f"new or hold only a model, but it also holds {', '.join(sorted(strangers)[:3])}; "
        "give another folder",
    )
    return path


def check(field: str, value: object, ok: bool, allowed: str) -> None:
    """Check a condition on one value.

    Args:
        field: name of the value in the message.
        value: what was given.
        ok: the condition.
        allowed: what is allowed, to complete "it must be ...".

    Raises:
        ValueError: not `ok`. The message names the field, the value and what is allowed.
    """
    if not ok:
        raise ValueError(f"{field} is {value!r}; it must be {allowed}.")


def check_text(value: object, name: str) -> None:
    """Check that `value` is text that can be encoded as UTF-8.

    Args:
        name: start of the message, for example "The prompt".

    Raises:
        ValueError: it is not a string, or it holds half of a surrogate pair.
    """
    if not isinstance(value, str):
        raise ValueError(
            f"{name} is {str(value)[:60]!r}, of type {type(value).__name__}; it must be text."
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} holds half a character (a lone surrogate) at position {error.start}; "
            "repair the text's encoding."
        ) from error


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically, in UTF-8."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


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


def need_checkout(what: str) -> None:
    """Refuse what reads or writes files that only the repository has.

    Raises:
        ValueError: the package was installed without the repository.
    """
    if not IN_CHECKOUT:
        raise ValueError(
            f"{what} needs the repository of minirlhf (its notebooks, pages and records), and this "
            "is an installed package without it: get the repository and run the command there."
        )


def commit() -> str:
    """The git commit of the working tree, for the records.

    It ends in "-dirty" if files differ from the commit. Outside a checkout it is "unknown".
    """
    if not IN_CHECKOUT:
        return "unknown"  # a repository around the environment is another project's
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()
