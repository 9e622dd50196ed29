"""A user's own code inside a run: the settings that it shares, and where an error of it arose."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.backends import cuda

DEVICES = ("cpu", "cuda", "mps")


def _matmul_precision() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # torch has two ways to set it, and both were used
        return "mixed"


def _autocast() -> list[tuple[bool, torch.dtype]]:
    """Whether each device computes in fewer bits (autocast), and in which dtype."""
    return [(torch.is_autocast_enabled(name), torch.get_autocast_dtype(name)) for name in DEVICES]


def _set_autocast(before: list[tuple[bool, torch.dtype]]) -> None:
    for name, (enabled, dtype) in zip(DEVICES, before, strict=True):
        torch.set_autocast_enabled(name, enabled)
        torch.set_autocast_dtype(name, dtype)


def _attention() -> list[bool]:
    """Which of torch's kernels for attention may be used."""
    return [
        cuda.flash_sdp_enabled(),
        cuda.mem_efficient_sdp_enabled(),
        cuda.math_sdp_enabled(),
        cuda.cudnn_sdp_enabled(),
    ]


def _set_attention(before: list[bool]) -> None:
    flash, efficient, math, cudnn = before
    cuda.enable_flash_sdp(flash)
    cuda.enable_mem_efficient_sdp(efficient)
    cuda.enable_math_sdp(math)
    cuda.enable_cudnn_sdp(cudnn)


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
    "torch's precision of float32 products": (
        _matmul_precision,
        torch.set_float32_matmul_precision,
    ),
    "torch's autocast": (_autocast, _set_autocast),
    "torch's kernels for attention": (_attention, _set_attention),
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
