"""Paths, devices, seeds and threads."""

import os
import random
import subprocess
from pathlib import Path

import torch
from platformdirs import user_cache_path

from minirlhf.runtime.checks import check

PACKAGE = Path(__file__).resolve().parents[1]
ROOT = PACKAGE.parent  # the repository, where the package is used from a checkout
IN_CHECKOUT = (ROOT / "pyproject.toml").is_file() and not (PACKAGE / "data").is_dir()
DATA = ROOT / "data" if IN_CHECKOUT else PACKAGE / "data"  # models and records; a wheel holds them
# downloads from third parties; git ignores data/cache
CACHE = Path(
    os.environ.get("MINIRLHF_CACHE")
    or (DATA / "cache" if IN_CHECKOUT else user_cache_path("minirlhf"))
)
SMOLLM2 = "smollm2-135m"
LARGEST_SEED = 2**32 - 1

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
    good = whole and 0 <= seed <= LARGEST_SEED
    check("seed", seed, good, f"a whole number from 0 to {LARGEST_SEED:,}")


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


def lesson_sources(what: str) -> list[Path]:
    """The sources of the lessons, notebooks/src/*.py, in order.

    Args:
        what: what needs them, for the message.

    Raises:
        ValueError: there is no repository, or its folder notebooks/src is missing or empty.
    """
    need_checkout(what)
    folder = ROOT / "notebooks" / "src"
    sources = sorted(folder.glob("*.py"))
    if not sources:
        raise ValueError(
            f"{what} needs the sources of the lessons, and the folder {folder} is missing or "
            "empty: work in a full copy of the repository."
        )
    return sources


def commit(*outputs: Path) -> str:
    """The git commit of the working tree, for the records. Ask for it before the run begins.

    It ends in "-dirty" if files that git tracks differ from the commit, whichever they are: also a
    page that is edited while a long run goes on. Outside a checkout it is "unknown".

    Args:
        outputs: files in the repository that the record itself changes; they may differ.
    """
    if not IN_CHECKOUT:
        return "unknown"  # a repository around the environment is another project's
    others = [f":(exclude){path.relative_to(ROOT).as_posix()}" for path in outputs]
    try:
        name = _git("describe", "--always")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", *others)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{name}-dirty" if changed else name


def _git(*arguments: str) -> str:
    """What a command of git prints about the repository."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()
