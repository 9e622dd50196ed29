"""The lines of a text file, compressed or not, and what a row is that cannot be read."""

import bz2
import gzip
import lzma
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow

Row = dict[str, Any]

COMPRESSED: dict[str, Callable[..., Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": lambda path: BufferedReader(pyarrow.input_stream(str(path), compression="zstd")),
}
MOST_NAMES = 20  # of columns in one sentence
UNREADABLE = "no row that can be read"  # a kind of BadRow


def listed(names: Iterable[object]) -> str:
    """Names of columns for a sentence: the first ones, and how many more there are."""
    said = [str(name) for name in names]
    more = f" and {len(said) - MOST_NAMES:,} more" if len(said) > MOST_NAMES else ""
    return ", ".join(said[:MOST_NAMES]) + more


class BadRow(ValueError):
    """A row that cannot be read or used. The rows after it still can.

    Attributes:
        kind: why, in a few words, to count such rows.
    """

    def __init__(self, kind: str, sentence: str) -> None:
        super().__init__(sentence)
        self.kind = kind


@dataclass(frozen=True)
class Unreadable:
    """Stands for a value of a table that cannot be read; `why` says why not."""

    why: str


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file with their numbers from 1, each with its line break.

    Raises:
        ValueError: the file is not text in UTF-8.
    """
    opened = COMPRESSED.get(path.suffix.lower(), lambda path: open(path, "rb"))
    with opened(path) as file:
        yield from _decoded(path, file)


def _decoded(path: Path, file: BinaryIO) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(file, start=1):
        if number == 1:
            _check_utf8(path, line[:4096])
        try:
            yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"The file '{path}' cannot be read: line {number} is not UTF-8 at byte "
                f"{error.start + 1}; save the file as UTF-8."
            ) from error


def _check_utf8(path: Path, start: bytes) -> None:
    """Refuse what is seen at the start of a file: UTF-16, or bytes that are no text."""
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError(f"The file '{path}' cannot be read: it is UTF-16; save it as UTF-8.")
    if b"\0" in start:
        raise ValueError(
            f"The file '{path}' cannot be read: it is no text in UTF-8 (it holds bytes of zero), "
            "whatever its name says."
        )
