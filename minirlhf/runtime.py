"""What every run needs and no algorithm is about: paths, seeds, threads, atomic files, checkpoints, history."""

import json
import os
import random
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data"
CACHE = Path(
    os.environ.get("MINIRLHF_CACHE", DATA / "cache")
)  # what others made, fetched; git ignores it
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
)  # what a saved model's folder consists of


def seed_all(seed: int) -> torch.Generator:
    """Seed Python's and torch's global generators; return a generator of its own for sampling."""
    random.seed(seed)
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


def set_threads(threads: int | None = None) -> int:
    """Use `threads` cores for tensor work (default: OMP_NUM_THREADS, or those this process may run on, at most 8)."""
    available = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    wanted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    threads = threads or (int(wanted) if wanted.isdigit() else 0) or min(available, 8)
    torch.set_num_threads(threads)
    return threads


@contextmanager
def atomic_path(path: str | Path):
    """Give a temporary name beside `path`; rename it to `path` when the block ends well, remove it otherwise."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        yield Path(name)
        os.chmod(name, 0o644)  # mkstemp makes files private; results are not
        with open(name, "rb+") as file:
            os.fsync(
                file.fileno()
            )  # on the disk before the name is: a power cut leaves the old file or the new one
        os.replace(name, path)
    finally:
        if os.path.exists(name):
            os.unlink(name)


@contextmanager
def atomic_folder(path: str | Path):
    """Give a temporary folder beside `path`; when the block ends well it takes the place of `path`.

    Raises:
        ValueError: `path` holds files that are not a model's: they would be lost.
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
                if not path.exists():  # an error, or Ctrl-C, between the two
                    os.replace(old / path.name, path)
                shutil.rmtree(old)
        else:
            os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_folder(path: str | Path) -> Path:
    """Raise a ValueError if `path` holds files that are not a model's: a model that is written there would replace them."""
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
        f"new, or hold a model only: it holds {', '.join(sorted(strangers)[:3])} too",
    )
    return path


def check(field: str, value, ok: bool, allowed: str) -> None:
    """Raise a ValueError that names the field, the value given and what is allowed."""
    if not ok:
        raise ValueError(f"{field} is {value!r}; it must be {allowed}.")


def check_text(value, name: str) -> None:
    """Raise a ValueError unless `value` is a text that can be encoded."""
    if not isinstance(value, str):
        raise ValueError(
            f"{name} is {str(value)[:60]!r}, of type {type(value).__name__}; it must be text."
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} holds half a character (a lone surrogate) at place {error.start}; repair the text's encoding."
        ) from error


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


class History(list):
    """Rows of metrics, one dict a step: {"stage": "ppo", "step": 3, "kl": 0.8, ...}. Saved as JSON lines."""

    def log(self, stage: str, step: int, **metrics) -> dict:
        row = {"stage": stage, "step": step} | {
            k: v.item() if isinstance(v, torch.Tensor) else v for k, v in metrics.items()
        }
        self.append(row)
        return row

    def column(self, stage: str, metric: str) -> list[float]:
        return [row[metric] for row in self if row["stage"] == stage and metric in row]

    def save(self, path: str | Path) -> None:
        write_text(path, "".join(json.dumps(row) + "\n" for row in self))

    @classmethod
    def load(cls, path: str | Path) -> "History":
        return cls(json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines())


def commit() -> str:
    """The commit that the working tree stands on, with "-dirty" where files differ from it; "unknown" outside a checkout."""
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
