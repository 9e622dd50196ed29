"""What every run needs: paths, seeds, threads, atomic files, checks of inputs, and the history."""

import errno
import hashlib
import json
import os
import platform
import random
import shutil
import stat
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from platformdirs import user_cache_path
from safetensors import SafetensorError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

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
    "additional_chat_templates",
    "metrics.jsonl",
    "training.safetensors",
    ".training.safetensors.*",
)  # the files of a saved model's folder
PARTIAL = "training.safetensors"  # the checkpoint in a model's folder
SYSTEM_FILES = ("lost+found", ".DS_Store", "Thumbs.db", "desktop.ini", ".nfs*", ".Trash*")
OURS = ".minirlhf."  # how the names of our temporary files and locks begin
NEW, READY, OLD = (f"{OURS}{name}" for name in ("new", "ready", "old"))  # see atomic_folder


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
    temporary file is renamed to `path`. Otherwise it is removed, and `path` is as before. If `path`
    is a link, the file that it points to is replaced.

    Raises:
        ValueError: `path` is a folder, a device, a pipe, or protected.
        OSError: the file cannot be written. The message names it.
    """
    path = check_file(path)
    with _naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=_ours(path.name))
    os.close(handle)
    try:
        yield Path(name)
        with _naming(path):
            # mkstemp makes private files
            os.chmod(name, path.stat().st_mode & 0o777 if path.exists() else 0o644)
            _to_disk(Path(name))
            os.replace(name, path)
    finally:
        if os.path.exists(name):
            os.unlink(name)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Context manager that writes a model's folder: all of the new files, or all of the old ones.

    It gives a temporary folder inside `path`. If the block ends without an error, the files there
    replace those of the model in `path`, config.json last. `path` itself is not renamed, so it may
    be a mount point, the current folder or a link. A checkpoint (training.safetensors) stays.

    While the files are moved, `path` has no config.json and cannot be loaded. If the process is
    killed then, the next writer (`locked`) finishes or undoes the move.

    Raises:
        ValueError: `path` cannot be written, another process writes to it, or it holds files that
            do not belong to a model.
    """
    with output_folder(path, model=True) as folder:
        try:
            (folder / NEW).mkdir()
            yield folder / NEW
            for file in (folder / NEW).rglob("*"):
                if file.is_file():
                    _to_disk(file)
            (folder / OLD).mkdir()
            for file in _model_files(folder):
                os.replace(file, folder / OLD / file.name)
            os.replace(folder / NEW, folder / READY)
        finally:
            _settle(folder)


class Kept(OSError):
    """A folder could not be written, and its files are in another one, `folder`."""

    def __init__(self, message: str, folder: Path) -> None:
        super().__init__(message)
        self.folder = folder


def save_folder(path: str | Path, write: Callable[[Path], object]) -> None:
    """Write a model's folder (`atomic_folder`), or keep it in another place if that fails.

    Args:
        write: writes the files into the folder that it is given.

    Raises:
        Kept: `path` could not be written. The files are in a folder beside it or, where that fails
            too, in the system's folder for temporary files. The message says where.
        OSError: no other place could be written either.
        ValueError: as in `atomic_folder`.
    """
    try:
        with atomic_folder(path) as temporary:
            write(temporary)
        return
    except (OSError, SafetensorError) as error:
        failed, cause = error, reason(error)
    for place in (resolved(path).parent, Path(tempfile.gettempdir())):
        with suppress(OSError, SafetensorError):
            kept = Path(tempfile.mkdtemp(dir=place, prefix="minirlhf-kept-"))
            write(kept)
            break
    else:
        raise OSError(f"{path} cannot be written ({cause}), nor can another folder.") from failed
    raise Kept(f"{path} cannot be written ({cause}); the model is in {kept}.", kept) from failed


@contextmanager
def output_folder(path: str | Path, *, model: bool) -> Iterator[Path]:
    """Context manager that checks a folder for results and holds its lock.

    A file is written there and renamed, so that what cannot be written is refused before a run. A
    folder that does not exist is made, and removed again if it is still empty at the end.

    Args:
        model: the folder may hold only a model (`check_folder`).

    Raises:
        ValueError: the folder cannot be written, another process writes to it, or it holds files
            that do not belong to a model.
    """
    folder = _folder(path)
    if model and _held.get(_lock_file(folder)) != os.getpid():  # else it was checked at the start
        check_folder(path)
    with _made(folder), locked(folder):
        _try_to_write(folder)
        yield folder


@contextmanager
def output_file(path: str | Path) -> Iterator[Path]:
    """Context manager that checks that a file can be written, and holds its lock.

    Raises:
        ValueError: it cannot be written, another process writes to it, or it is a folder, a device,
            a pipe or write-protected.
    """
    file = check_file(path)
    with _made(file.parent), locked(file):
        _try_to_write(file)
        yield file


@contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Hold the lock of a folder or of a file while the block runs.

    The lock is a hidden file, which is removed afterwards. The system drops the lock when the
    process dies. What a killed writer left is then put right: a half-moved folder is finished or
    undone, and its temporary files are removed. A process that holds the lock may take it again.

    Raises:
        ValueError: another process holds the lock, or its file cannot be made.

    Warns:
        UserWarning: the file system has no locks, so other processes are not kept out.
    """
    path, process = resolved(path), os.getpid()
    file = _lock_file(path)
    if _held.get(file) == process:
        yield
        return
    try:
        handle = _acquire(file, path)
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written: {reason(error)}; give another name."
        ) from error
    _held[file] = process
    try:
        if path.is_dir():
            _settle(path)
        for left in file.parent.glob(f"{_temporary(path)}*"):
            if left != file:
                left.unlink(missing_ok=True)
        yield
    finally:
        if _held.get(file) == os.getpid() == process:  # not in a process that was forked meanwhile
            del _held[file]
            if os.name == "posix":
                with suppress(OSError):  # the folder may be gone
                    file.unlink()
            os.close(handle)
            if os.name != "posix":  # Windows removes only what is closed
                with suppress(OSError):
                    file.unlink()


_held: dict[Path, int] = {}  # the lock's file -> the process that holds it


def _lock_file(path: Path) -> Path:
    """The file whose lock guards a folder or a file."""
    return path / f"{OURS}lock" if path.is_dir() else path.with_name(f"{_ours(path.name)}lock")


def _acquire(file: Path, path: Path) -> int:
    """Open and lock `file`. Returns its handle."""
    while True:
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if sys.platform == "win32":
                os.lseek(handle, 1000, os.SEEK_SET)  # a locked byte cannot be read
                msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
                os.lseek(handle, 0, os.SEEK_SET)
            else:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                other = os.read(handle, 200).decode(errors="replace").strip()
                os.close(handle)
                raise ValueError(
                    f"{path} is in use by another run ({other or 'it has just begun'}); wait until "
                    "it ends, or give another name."
                ) from None
            warnings.warn(
                f"The file system of {path} has no locks ({reason(error)}): take care that no "
                "other run writes there.",
                stacklevel=4,
            )
        with suppress(FileNotFoundError):  # else its holder removed it after it was opened here
            if os.path.samestat(os.fstat(handle), os.stat(file)):
                os.ftruncate(handle, 0)
                os.write(handle, f"process {os.getpid()} on {platform.node()}".encode())
                return handle
        os.close(handle)


def _settle(folder: Path) -> None:
    """Finish or undo a write by `atomic_folder`. What is complete becomes the model in `folder`."""
    new, ready, old = folder / NEW, folder / READY, folder / OLD
    if ready.is_dir():  # all old files are out of the way: finish
        for file in sorted(ready.iterdir(), key=_config_last):
            os.replace(file, folder / file.name)
        shutil.rmtree(old, ignore_errors=True)
        ready.rmdir()
    elif old.is_dir():  # some are not: undo
        for file in sorted(old.iterdir(), key=_config_last):
            os.replace(file, folder / file.name)
        old.rmdir()
    shutil.rmtree(new, ignore_errors=True)


def _config_last(path: Path) -> tuple[bool, str]:
    return path.name == "config.json", path.name


def _model_files(folder: Path) -> list[Path]:
    """The files of the model in a folder, config.json first, without a checkpoint."""
    files = [p for p in folder.iterdir() if _of_a_model(p) and PARTIAL not in p.name]
    return sorted(files, key=_config_last, reverse=True)


def _of_a_model(path: Path) -> bool:
    """Whether a file in a folder belongs to a model."""
    is_file = not path.is_dir() or path.name == "additional_chat_templates"
    return is_file and any(path.match(name) for name in MODEL_FILES)


def _ours(name: str) -> str:
    """How the names of the temporary files and of the lock of the file `name` begin."""
    return f"{OURS}{hashlib.sha256(os.fsencode(name)).hexdigest()[:12]}."


def _to_disk(path: Path) -> None:
    """Wait until a file's data are on the disk.

    Done before a rename, it leaves the old file or the new one after a power cut.
    """
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def reason(error: Exception) -> str:
    """The cause of an error in a few words, without the names of temporary files."""
    return getattr(error, "strerror", None) or next(iter(str(error).splitlines()), repr(error))


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Replace an OSError by one that names `path`."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{path} cannot be written: {reason(error)}.") from error


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make a folder and those above it; at the end, remove those of them that are empty."""
    missing = [each for each in (folder, *folder.parents) if not os.path.lexists(each)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        file = next((each for each in folder.parents if each.is_file()), None)
        cause = f"{file} is a file" if file else reason(error)
        raise ValueError(f"The folder {folder} cannot be made: {cause}.") from error
    try:
        yield
    finally:
        with suppress(OSError):  # one of them is in use
            for each in missing:
                each.rmdir()


def _temporary(path: Path) -> str:
    """How the names begin of the temporary files of a file, or of a folder's metrics."""
    return _ours("metrics.jsonl" if path.is_dir() else path.name)


def _try_to_write(path: Path) -> None:
    """Write a file into a folder or beside a file, rename and remove it. Its lock must be held.

    Raises:
        ValueError: that fails.
    """
    trial = _lock_file(path).with_name(f"{_temporary(path)}trial")
    try:
        trial.write_bytes(bytes(2**16))
        _to_disk(trial)
        os.replace(trial, trial.with_suffix(".renamed"))
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written: {reason(error)}; give another name."
        ) from error
    finally:
        for name in (trial, trial.with_suffix(".renamed")):
            with suppress(OSError):
                name.unlink()


def resolved(path: str | Path) -> Path:
    """The absolute path without links."""
    return Path(os.path.realpath(path))


def _folder(path: str | Path) -> Path:
    """The folder that a path leads to, which need not exist yet.

    Raises:
        ValueError: the path leads to something else.
    """
    try:
        folder = resolved(path)
        is_there, is_link = folder.exists(), os.path.islink(path)
    except (OSError, ValueError) as error:  # a name that is too long or holds a null
        raise ValueError(f"{str(path)[:60]!r} is no folder's name: {reason(error)}.") from error
    check("folder", str(path), not is_there or folder.is_dir(), "a folder, and this is a file")
    check("folder", str(path), folder != Path(folder.anchor), "below the root of the file system")
    check(
        "folder",
        str(path),
        is_there or not is_link,
        f"a folder or a link to one, and this link leads to {folder}, which does not exist",
    )
    return folder


def check_file(path: str | Path) -> Path:
    """Check that a file may be written or replaced, and return its path without links.

    Raises:
        ValueError: the path is a folder, a device, a pipe or a write-protected file.
    """
    try:
        file = resolved(path)
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return file
    except (OSError, ValueError) as error:  # too long, or a file where a folder must be
        raise ValueError(f"{str(path)[:60]!r} is no file's name: {reason(error)}.") from error
    check("file", str(path), not stat.S_ISDIR(mode), "a file, and this is a folder")
    check("file", str(path), stat.S_ISREG(mode), "a file, and this is a device or a pipe")
    allowed = os.access(path, os.R_OK | os.W_OK)
    check("file", str(path), allowed, "a file that you may read and write")
    return file


def check_folder(path: str | Path) -> Path:
    """Check that a model may be written to `path`, and return the folder without links.

    Files of the operating system, such as lost+found, are left alone.

    Raises:
        ValueError: it is no folder, or it holds files that do not belong to a model.
    """
    folder = _folder(path)
    known = (*SYSTEM_FILES, f"{OURS}*")
    try:
        inside = list(folder.iterdir()) if folder.exists() else []
    except OSError as error:
        raise ValueError(f"The folder {path} cannot be read: {reason(error)}.") from error
    strangers = [
        p.name for p in inside if not (_of_a_model(p) or any(p.match(name) for name in known))
    ]
    check(
        "folder",
        str(path),
        not strangers,
        f"new or hold only a model, but it also holds {', '.join(sorted(strangers)[:3])}; "
        "give another folder",
    )
    return folder


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
