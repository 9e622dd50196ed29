"""The file of a checkpoint: a .safetensors whose header holds JSON and the file's own SHA-256.

FIELDS says what each field of the header must be. A file that anything has changed is refused: by
its SHA-256, and where that was put right, by these rules.
"""

import hashlib
import json
import math
import os
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from minirlhf.runtime import atomic_path, reason

BLANK = "0" * 64  # stands for a file's SHA-256 until that is known


class Field(NamedTuple):
    """A field of the header: its name, its type, a rule for its values, and the rule in words."""

    name: str
    kind: type
    good: Callable[[Any], bool]
    allowed: str


def _is_number(value: object, low: float = -math.inf) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= low  # type: ignore[arg-type,operator]


def _is_random_state(value: list) -> bool:
    try:
        random.Random().setstate(random_state(value))
    except (TypeError, ValueError, OverflowError):
        return False
    return True


def _is_row(row: object) -> bool:
    return isinstance(row, dict) and type(row.get("stage")) is str and type(row.get("step")) is int


PAIRS, LABELLED = {"prompt", "chosen", "rejected"}, {"prompt", "completion", "label"}


def _are_rows(rows: object) -> bool:
    """Whether these are the rows of a training step: pairs or labelled responses, as columns."""
    if not isinstance(rows, dict) or rows.keys() not in (PAIRS, LABELLED):
        return False
    if not all(isinstance(column, list) for column in rows.values()):
        return False
    rules = {"prompt": lambda value: type(value) is str, "label": lambda value: type(value) is bool}
    good = all(all(map(rules.get(name, _is_response), column)) for name, column in rows.items())
    return good and len({len(column) for column in rows.values()}) == 1


def _is_response(value: object) -> bool:
    """Whether this is a text, or parts: [a text or token ids, whether the policy wrote it]."""
    if not isinstance(value, list):
        return type(value) is str
    return value != [] and all(map(_is_part, value))


def _is_part(part: object) -> bool:
    if not isinstance(part, list) or len(part) != 2 or type(part[1]) is not bool:
        return False
    if isinstance(part[0], list):
        return all(type(i) is int and i >= 0 for i in part[0])
    return type(part[0]) is str


STATE: dict[str, Callable[[Any], bool]] = {  # the numbers that a loop keeps from step to step
    "kl_coef": lambda value: _is_number(value, 0),
    "running_mean": lambda value: value is None or _is_number(value),
    "pool": lambda value: isinstance(value, list) and all(map(_are_rows, value)),
}


def _is_state(value: dict) -> bool:
    return all(STATE[name](kept) for name, kept in value.items() if name in STATE)


FIELDS = (
    Field("step", int, lambda value: value >= 0, "a whole number, 0 or more"),
    Field("config", dict, lambda value: True, "the settings of the run"),
    Field(
        "history",
        list,
        lambda rows: all(map(_is_row, rows)),
        "a list of rows, each with its stage and its step",
    ),
    Field("state", dict, _is_state, f"what a loop keeps, such as {', '.join(STATE)}"),
    Field("random", list, _is_random_state, "a state of Python's random generator"),
    Field("seconds", float, lambda value: _is_number(value, 0), "a number of seconds, 0 or more"),
    Field(
        "machine",
        dict,
        lambda value: all(type(part) in (int, str) for part in value.values()),
        "the number of threads, torch's version and the device",
    ),
    Field("command", str, lambda value: True, "the command that began the run, or empty"),
)


def random_state(value: list) -> tuple:
    """What `random.setstate` takes, from the lists that JSON made of it."""
    version, numbers, spare = value
    return version, tuple(numbers), spare


def write_file(path: Path, header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """Write a checkpoint: first to a temporary file, which is then renamed to `path`."""
    with atomic_path(path) as temporary:
        metadata = {key: json.dumps(value) for key, value in header.items()}
        save_file(tensors, temporary, metadata=metadata | {"sha256": BLANK})
        seal(temporary)


def read_file(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """(header, tensors) of a checkpoint.

    Raises:
        ValueError: it cannot be read, a byte of it has changed since it was saved, or a field of
            the header breaks its rule.
    """
    try:
        kept, found, _ = sha256(path)
        if kept != found:
            raise ValueError("its SHA-256 is another one than when it was saved")
        with safe_open(path, "pt") as file:
            header = _header(file.metadata())
            tensors = {key: file.get_tensor(key) for key in file.keys()}
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {reason(error)}.") from error
    except (SafetensorError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged or is not a checkpoint of a run ({reason(error)}); "
            "remove the file to start anew."
        ) from error
    return header, tensors


def _header(metadata: dict[str, str]) -> dict[str, Any]:
    """The fields of the header.

    Raises:
        ValueError: a field is missing, unknown, or breaks its rule.
    """
    header = {name: json.loads(value) for name, value in metadata.items() if name != "sha256"}
    for field in FIELDS:
        if field.name not in header:
            raise ValueError(f"it has no field {field.name}")
        value = header[field.name]
        if type(value) is not field.kind or not field.good(value):
            shown = json.dumps(value)
            shown = shown if len(shown) <= 60 else f"{shown[:60]} ..."
            raise ValueError(f"its {field.name} is {shown}; it must be {field.allowed}")
    if unknown := sorted(header.keys() - {field.name for field in FIELDS}):
        raise ValueError(f"it has an unknown field {unknown[0]}")
    return header


def sha256(path: Path) -> tuple[str, str, int]:
    """(SHA-256 that a file keeps in its header, the one that it has, the place of the first).

    The second is of all bytes, with 64 zeros in the place of the first.

    Raises:
        ValueError: the header keeps none.
    """
    with open(path, "rb") as file:
        size = file.read(8)
        header = file.read(min(int.from_bytes(size, "little"), os.path.getsize(path)))
        kept = re.search(rb'"sha256":"([0-9a-f]{64})"', header)
        if kept is None:
            raise ValueError("it holds no SHA-256 of itself")
        start, end = kept.span(1)
        digest = hashlib.sha256(size + header[:start] + BLANK.encode() + header[end:])
        while part := file.read(2**20):
            digest.update(part)
    return kept[1].decode(), digest.hexdigest(), len(size) + start


def seal(path: Path) -> None:
    """Write a file's SHA-256 into its header, in place of the zeros there."""
    _, found, place = sha256(path)
    with open(path, "rb+") as file:
        file.seek(place)
        file.write(found.encode())


def unfinished(folder: Path) -> str | None:
    """What to say of a folder with a run that was stopped and no model; None for another folder.

    The commands `pretrain` and `gold` keep the run beside the folder of the model.
    """
    if os.path.isfile(folder / "config.json"):
        return None
    beside = [] if os.path.exists(folder) else [folder.parent]
    for place in filter(os.path.isdir, [folder, *beside]):
        for file in sorted(place.glob("*training*.safetensors")):
            try:
                with safe_open(file, "pt") as opened:
                    header = _header(opened.metadata() or {})
            except (OSError, SafetensorError, ValueError):
                continue  # no checkpoint, or a damaged one
            command = f"`{header['command']}`" if header["command"] else "resume=True"
            return (
                f"'{folder}' holds no model yet: {file.name} is a run that was stopped after "
                f"{header['step']} steps. Finish it first, with {command}."
            )
    return None
