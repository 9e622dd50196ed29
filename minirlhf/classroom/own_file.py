"""Runs a Python file of the user's own: with a time limit, and without side effects on the run."""

import importlib.util
import io
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from types import ModuleType
from typing import TextIO

from minirlhf.runtime.shared import restore_settings, shared_settings

SECONDS = 60.0  # for the file, and for the check of each of its functions
LONGEST_OUTPUT = 10_000  # characters


def module_of(path: Path) -> ModuleType:
    """The module that a Python file makes when it is run.

    Raises:
        ValueError: its name does not end in .py, or running it fails (see `supervised`).
    """
    name = f"_own_{path.stem}"  # never that of another module
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path.name} cannot be run: a Python file's name ends in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    try:
        with supervised(path, "cannot be run"):
            spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def reward_of(path: Path) -> Callable:
    """The function `reward` of a Python file, which can import files beside it at any time.

    Raises:
        ValueError: the file is missing, cannot be run, or has no function of that name.
    """
    if not path.is_file():
        raise ValueError(f"--reward is '{path}'; it must be a Python file with a function reward.")
    function = getattr(module_of(path), "reward", None)
    sys.path.append(str(path.absolute().parent))
    if not callable(function):
        raise ValueError(
            f"{path.name} has no function reward; define reward(prompts, completions, **columns), "
            "which returns one number for each completion."
        )
    return function


class _Output(io.TextIOBase):
    """A stream that passes the first LONGEST_OUTPUT characters on, and drops the rest."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.left = stream, LONGEST_OUTPUT

    def write(self, text: str) -> int:
        if self.left > 0:
            self.stream.write(text[: self.left])
            self.left -= len(text)
            if self.left <= 0:
                self.stream.write("\n... (more output of the file is not shown)\n")
        return len(text)


@contextmanager
def supervised(path: Path, what: str, seconds: float = SECONDS) -> Iterator[None]:
    """Run code of a student's file inside `with`.

    Its output is cut, and the settings that it shares with the run must stay as they are. On
    Windows, and outside the main thread, there is no time limit.

    Args:
        what: what an error means, to follow the file's name.
        seconds: the time limit.

    Raises:
        ValueError: the code raises anything, exits, takes too long, or changes a setting.
        KeyboardInterrupt: Ctrl-C was pressed.
    """
    pressed: list[int] = []

    def interrupted(number: int, frame: object) -> None:
        pressed.append(number)
        raise KeyboardInterrupt

    path = path.absolute()  # as in a traceback
    before, folder, places = shared_settings(), str(path.parent), [*sys.path]
    limited = hasattr(signal, "SIGALRM") and threading.current_thread() is threading.main_thread()
    if limited:
        handlers = [
            (number, signal.signal(number, interrupted))
            for number in (signal.SIGINT, signal.SIGALRM)
        ]
        signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # again, if the code catches it
    sys.path.append(folder)  # files beside it can be imported
    try:
        with redirect_stdout(_Output(sys.stdout)), redirect_stderr(_Output(sys.stderr)):
            yield
    except BaseException as error:
        if signal.SIGINT in pressed:
            raise
        cause = f"it did not finish within {seconds:g} seconds." if pressed else _told(error, path)
        raise ValueError(f"{path.name} {what}: {cause}") from error
    finally:
        if limited:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in handlers:
                signal.signal(number, handler)
        with suppress(ValueError):
            sys.path.remove(folder)
        sys.path += [place for place in places if place not in sys.path]  # it may have emptied it
        changed = restore_settings(before)
    if changed:
        raise ValueError(
            f"{path.name} {what}: it changes {', '.join(changed)} for all code that runs after it; "
            "leave such settings as they are."
        )


def _told(error: BaseException, path: Path) -> str:
    """What an error in a student's file says, with the line of the file where it arose."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename) == path]
    line = getattr(error, "lineno", None) or (lines[-1] if lines else None)
    where = f" (line {line})" if line else ""
    if isinstance(error, SystemExit):
        return f"it ends Python, by exit() or sys.exit(){where}; leave that out."
    said = ": ".join(filter(None, [type(error).__name__, " ".join(str(error).split())]))
    return f"{said}{where}"
