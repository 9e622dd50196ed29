"""Settings of Python and torch that a user's own code shares with the run that calls it."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
