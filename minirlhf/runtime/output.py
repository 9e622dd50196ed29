"""Files and folders that a run writes: atomic, tried and locked before it begins."""

import errno
import hashlib
import os
import platform
import shutil
import stat
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

from minirlhf.runtime.paths import (
    OURS,
    PARTIAL,
    check_file,
    check_strangers,
    folder_of,
    of_a_model,
    reason,
    resolved,
)

NO_LINK = getattr(os, "O_NOFOLLOW", 0)  # Windows has no such flag
NEW, READY, OLD = (f"{OURS}{name}" for name in ("new", "ready", "old"))  # see atomic_folder
_held: dict[Path, int] = {}  # the lock's file -> the process that holds it


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
        with _naming(path):
            yield Path(name)
            # mkstemp makes private files
            os.chmod(name, path.stat().st_mode & 0o777 if path.exists() else _allowed(0o666))
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
    killed then, the next writer (`locked`) finishes or undoes the move. A reader changes nothing.

    Raises:
        ValueError: `path` cannot be written, another process writes to it, or it holds files that
            do not belong to a model.
    """
    with output_folder(path, model=True) as folder:
        try:
            (folder / NEW).mkdir()
            yield folder / NEW
            finish(folder / NEW)
            (folder / OLD).mkdir()
            for file in _model_files(folder):
                os.replace(file, folder / OLD / file.name)
            os.replace(folder / NEW, folder / READY)
        finally:
            _settle(folder)


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
    folder = folder_of(path)
    if model and _held.get(_lock_file(folder)) != os.getpid():  # else it was checked at the start
        check_strangers(path, folder)
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
        ValueError: another process holds the lock, or its file cannot be made; or one of our hidden
            names is a link, which could lead to files of the user.

    Warns:
        UserWarning: the file system has no locks, so other processes are not kept out.
    """
    path, process = resolved(path), os.getpid()
    file = _lock_file(path)
    if _held.get(file) == process:
        yield
        return
    with _naming(path, early=True):
        handle = _acquire(file, path)
    _held[file] = process
    try:
        if path.is_dir():
            _settle(path)
        for left in file.parent.glob(f"{_temporary(path)}*"):
            if left != file:
                with suppress(OSError):
                    left.unlink()
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


def holds_a_lock() -> bool:
    """Whether this process holds a lock: it is in the middle of a run."""
    return os.getpid() in _held.values()


def _lock_file(path: Path) -> Path:
    """The file whose lock guards a folder or a file."""
    return path / f"{OURS}lock" if path.is_dir() else path.with_name(f"{_ours(path.name)}lock")


def _acquire(file: Path, path: Path) -> int:
    """Open and lock `file`, which may not be a link, a pipe or a device. Returns its handle."""
    while True:
        _check_no_link(file)
        handle = os.open(file, os.O_RDWR | os.O_CREAT | NO_LINK, 0o644)
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
            os.close(handle)
            raise ValueError(f"{file} is no file of ours: remove it.")
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
                with suppress(OSError):  # the disk is full, which the trial will say
                    os.ftruncate(handle, 0)
                    os.write(handle, f"process {os.getpid()} on {platform.node()}".encode())
                return handle
        os.close(handle)


def _settle(folder: Path) -> None:
    """Finish or undo a write by `atomic_folder`. What is complete becomes the model in `folder`."""
    new, ready, old = folder / NEW, folder / READY, folder / OLD
    for each in (new, ready, old):
        _check_no_link(each)
        if each.exists() and not each.is_dir():
            raise ValueError(f"{each} is no folder of ours: remove it.")
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


def finish(folder: Path) -> None:
    """Give a folder and its files the permissions of new ones, and wait until they are on the disk.

    safetensors makes private files, and tempfile private folders.
    """
    os.chmod(folder, _allowed(0o777))
    for file in folder.rglob("*"):
        if file.is_file():
            os.chmod(file, _allowed(0o666))
            _to_disk(file)


def _allowed(mode: int) -> int:
    """Permissions without those that the user's umask takes from new files."""
    mask = os.umask(0o077)  # it can only be read by setting it
    os.umask(mask)
    return mode & ~mask


def _check_no_link(path: Path) -> None:
    """Refuse a link in the place of a lock or of a folder of ours: we never make one.

    Raises:
        ValueError: there is one. It could lead to files of the user.
    """
    if path.is_symlink():
        raise ValueError(f"{path} is a link, which does not belong there: remove it.")


def _config_last(path: Path) -> tuple[bool, str]:
    return path.name == "config.json", path.name


def _model_files(folder: Path) -> list[Path]:
    """The files of the model in a folder, config.json first, without a checkpoint."""
    files = [p for p in folder.iterdir() if of_a_model(p) and PARTIAL not in p.name]
    return sorted(files, key=_config_last, reverse=True)


def _ours(name: str) -> str:
    """How the names of the temporary files and of the lock of the file `name` begin."""
    return f"{OURS}{hashlib.sha256(os.fsencode(name)).hexdigest()[:12]}."


def _to_disk(path: Path) -> None:
    """Wait until a file's data are on the disk.

    Done before a rename, it leaves the old file or the new one after a power cut.
    """
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


@contextmanager
def _naming(path: Path, *, early: bool = False) -> Iterator[None]:
    """Replace an OSError by one that names `path`; `early`, before a run, by a ValueError."""
    try:
        yield
    except OSError as error:
        said = f"{path} cannot be written: {reason(error)}"
        if early:
            raise ValueError(f"{said}; give another name.") from error
        raise OSError(f"{said}.") from error


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make a folder and those above it; at the end, remove those of them that are empty."""
    missing = [each for each in (folder, *folder.parents) if not os.path.lexists(each)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        file = next((each for each in folder.parents if each.is_file()), None)
        cause = f"{file} is a file" if file else reason(error)
        raise ValueError(f"The folder {folder} cannot be made: {cause}.") from (
            None if file else error
        )
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
        with _naming(path, early=True):
            with trial.open("xb") as file:  # x: it follows no link
                file.write(bytes(2**16))
            _to_disk(trial)
            os.replace(trial, trial.with_suffix(".renamed"))
    finally:
        for name in (trial, trial.with_suffix(".renamed")):
            with suppress(OSError):
                name.unlink()


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically, in UTF-8."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
