"""A user's own code inside a run: the settings that it shares, and where an error of it arose."""

import inspect
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

SETTINGS: dict[
    str, tuple[Callable, Callable]
] = {  # what is said -> (how it is read, how it is set)
    "the working folder": (os.getcwd, os.chdir),
    "torch's default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "whether torch computes gradients": (torch.is_grad_enabled, torch.set_grad_enabled),
    "torch's number of threads": (torch.get_num_threads, torch.set_num_threads),
    "torch's default device": (torch.get_default_device, torch.set_default_device),
    "whether torch is deterministic": (
        torch.get_deterministic_debug_mode,
        torch.set_deterministic_debug_mode,
    ),
}


def shared_settings() -> dict[str, Any]:
    """The values of SETTINGS, by name."""
    return {name: read() for name, (read, _) in SETTINGS.items()}


def restore_settings(before: dict[str, Any]) -> list[str]:
    """Set the settings back. Returns the names of those that had changed."""
    now = shared_settings()
    changed = [name for name, value in before.items() if now[name] != value]
    for name in changed:
        SETTINGS[name][1](before[name])
    return changed


@contextmanager
def settings_kept() -> Iterator[None]:
    """The settings after `with` are those before it, whatever the code inside sets."""
    before = shared_settings()
    try:
        yield
    finally:
        restore_settings(before)


def line_of(error: BaseException, function: Callable) -> str:
    """The file and the line of the user's code where an error arose, such as mine.py, line 3."""
    own = inspect.unwrap(function)
    code = getattr(own, "__code__", None) or getattr(type(own).__call__, "__code__", None)
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if code and frame.filename == code.co_filename]
    frame = (inside or frames)[-1]
    return f"{Path(frame.filename).name}, line {frame.lineno}"


def raised(error: BaseException, function: Callable) -> str:
    """What a user's function raised, and where: raised KeyError: 'x' (mine.py, line 3)."""
    said = ": ".join(filter(None, [type(error).__name__, " ".join(str(error).split())]))
    return f"raised {said} ({line_of(error, function)})"
