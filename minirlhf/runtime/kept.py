"""The model of a run that is over, in another place where its own cannot be written."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from minirlhf.runtime.output import atomic_folder, finish, holds_a_lock
from minirlhf.runtime.paths import reason, resolved


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
        Kept: `path` could not be written. The files are in the folder that the message names.
        OSError: no other place could be written either.
        ValueError: as in `atomic_folder`, where no run holds a lock: nothing is lost then.
    """
    during_a_run = holds_a_lock()  # the folder was in order when the run began
    try:
        with atomic_folder(path) as temporary:
            write(temporary)
        return
    except Exception as error:  # tokenizers raises a bare Exception when the disk is full
        if isinstance(error, ValueError) and not during_a_run:
            raise
        failed = error
    said = f"{path} cannot be written ({reason(failed)})"
    kept = kept_elsewhere(resolved(path), write)
    if kept is None:
        raise OSError(f"{said}, nor can another folder.") from failed
    raise Kept(f"{said}; the model is in {kept}.", kept) from failed


def kept_elsewhere(path: Path, write: Callable[[Path], object]) -> Path | None:
    """Write into a new folder beside `path` or, where that fails, among the temporary files.

    A folder that could not be written completely is removed.

    Args:
        write: writes the files into the folder that it is given.

    Returns:
        The folder; None if neither place can be written.
    """
    for place in (path.parent, None):  # None: the system's folder for temporary files
        folder = None
        try:
            folder = Path(tempfile.mkdtemp(dir=place, prefix="minirlhf-kept-"))
            write(folder)
            finish(folder)
            return folder
        except Exception:  # as above
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
    return None
