"""Runs a Python file of the user's own: with a time limit, and without side effects on the run."""

import importlib.util
import inspect
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
from minirlhf.runtime.user_code import told

SECONDS = 60.0  # for the file, and for the check of each of its functions
LONGEST_OUTPUT = 10_000  # characters


def module_of(path: Path) -> ModuleType:
    """The module that a Python file makes when it is run. Nothing is written beside the file.

    Raises:
        ValueError: its name does not end in .py, or running it fails (see `supervised`).
    """
    name = f"_own_{path.stem}"  # never that of another module
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path.name} cannot be run: a Python file's name ends in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    usual, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # no __pycache__
    try:
        with supervised(path, "cannot be run"):
            spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    finally:
        sys.dont_write_bytecode = usual
    return module


def reward_of(path: Path, option: str = "--reward") -> Callable:
    """The function `reward` of a Python file, which can import files beside it at any time.

    Args:
        option: what the file was given to.

    Raises:
        ValueError: the file is missing, cannot be run, or has no function of that name.
    """
    reward = "reward(prompts, completions, **columns), which returns one number for each completion"
    return _function(_loaded(path, option, "a function reward"), path, "reward", reward)


def judge_of(path: Path) -> Callable[[str, str, str], bool]:
    """The function `right_step` of a Python file, as `train_step_dpo` takes it.

    Raises:
        ValueError: as `reward_of`; or its arguments are not prompt, before and step.
    """
    module = _loaded(path, "--judge", "a function right_step")
    wanted = "right_step(prompt, before, step)"
    judge = _function(module, path, "right_step", f"{wanted}, which returns True or False")
    _can_be_called(judge, path, wanted, "prompt", "before", "step")
    return judge


def tool_of(path: Path) -> tuple[str, Callable[[str], str]]:
    """(`CALL_END`, the function `run`) of a Python file, as `TextTool` takes them.

    Raises:
        ValueError: as `reward_of`; or there is no CALL_END, or `run` does not take one text.
    """
    module = _loaded(path, "--tool", "a function run and a text CALL_END")
    run = _function(module, path, "run", "run(text), which returns the text of the answer")
    _can_be_called(run, path, "run(text)", "")
    call_end = getattr(module, "CALL_END", None)
    if not isinstance(call_end, str) or not call_end:
        given = "has no CALL_END" if call_end is None else f"sets CALL_END to {call_end!r}"
        raise ValueError(
            f"{path.name} {given}; set it to the text of the token that ends a call, such as "
            'CALL_END = "</call>".'
        )
    return call_end, run


def _loaded(path: Path, option: str, needed: str) -> ModuleType:
    """The module of an option's file, which can import files beside it at any time."""
    if not path.is_file():
        raise ValueError(f"{option} is '{path}'; it must be a Python file with {needed}.")
    module = module_of(path)
    sys.path.append(str(path.absolute().parent))
    return module


def _function(module: ModuleType, path: Path, name: str, wanted: str) -> Callable:
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"{path.name} has no function {name}; define {wanted}.")
    return function


def _can_be_called(function: Callable, path: Path, wanted: str, *names: str) -> None:
    """Check that a function can be called with these values, in this order.

    Args:
        wanted: how it is called, such as right_step(prompt, before, step).
        names: of its first arguments. "": the name does not matter.
    """
    good, taken = False, "arguments that cannot be read"  # of some builtins
    with suppress(TypeError, ValueError):
        signature = inspect.signature(function)
        taken = str(signature)
        signature.bind(*names)  # TypeError: too many or too few
        found = signature.parameters
        good = all(name in ("", its_name) for name, its_name in zip(names, found, strict=False))
    if not good:
        raise ValueError(
            f"{path.name}: {wanted.partition('(')[0]} takes {taken}; define {wanted}, with these "
            "arguments in this order. Further ones need a default."
        )


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
    running = True

    def interrupted(number: int, frame: object) -> None:
        pressed.append(number)
        if running:  # afterwards the message is written, and nothing may break it off
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
        try:
            with redirect_stdout(_Output(sys.stdout)), redirect_stderr(_Output(sys.stderr)):
                yield
        finally:
            running = False
    except BaseException as error:
        if signal.SIGINT in pressed:
            raise KeyboardInterrupt from error
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
    if signal.SIGINT in pressed:
        raise KeyboardInterrupt
    if changed:
        raise ValueError(
            f"{path.name} {what}: it changes {', '.join(changed)} for all code that runs after it; "
            "leave such settings as they are."
        )


def _told(error: BaseException, path: Path) -> str:
    """What an error in a student's file says, with the line of the file where it arose."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename) == path]
    if isinstance(error, SyntaxError) and error.filename == str(path):
        lines.append(error.lineno)
    line = lines[-1] if lines else None
    where = f" (line {line})" if line else ""
    if isinstance(error, SystemExit):
        return f"it ends Python, by exit() or sys.exit(){where}; leave that out."
    return f"{told(error)}{where}"
