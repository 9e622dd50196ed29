"""Rows of a local file: JSON, CSV, Parquet or Arrow, as `datasets` writes them.

The rows are read one after the other, as they are. So a row keeps its number, a value keeps its
type, and what stands after the last row that is asked for is not read.
"""

import bz2
import csv
import gzip
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from io import BufferedReader
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow
from datasets import load_from_disk
from pyarrow.parquet import ParquetFile

Row = dict[str, Any]

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow")
COMPRESSED: dict[str, Callable[..., Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": lambda path: BufferedReader(pyarrow.input_stream(str(path), compression="zstd")),
}
UNREADABLE = "no row that can be read"  # a kind of BadRow
LONGEST_CELL = 2**31 - 1  # characters; the csv module's own limit is 131,072


class BadRow(ValueError):
    """A row that cannot be read or used. The rows after it still can.

    Attributes:
        kind: why, in a few words, to count such rows.
    """

    def __init__(self, kind: str, sentence: str) -> None:
        super().__init__(sentence)
        self.kind = kind


def is_data_file(path: Path) -> bool:
    """Whether the name ends in one of `SUFFIXES`, in small or large letters, compressed or not."""
    return suffix_of(path) in SUFFIXES


def suffix_of(path: Path) -> str:
    """The suffix in small letters, without that of a compression: .jsonl for A.JSONL.gz."""
    name = path.name.lower()
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    return Path(name).suffix


def read_rows(path: Path, count: int | None = None) -> list[Row | BadRow]:
    """The rows of a local file.

    Args:
        path: a file whose name ends in one of `SUFFIXES`.
        count: read only the first so many rows. What follows is not looked at.

    Returns:
        A dict from column to value for each row. In its place a `BadRow`, where a line of a
        JSONL file is no JSON object, or a row of a CSV file has too many cells.

    Raises:
        ValueError: the file cannot be read. The message names it, and the row and the line.
    """
    suffix = suffix_of(path)
    try:
        rows: Iterator[Row | BadRow]
        if suffix in (".parquet", ".arrow"):
            rows = rows_of_parquet(path) if suffix == ".parquet" else rows_of_arrow(path)
        elif suffix == ".json":
            rows = rows_of_json(path)
        elif suffix in (".csv", ".tsv"):
            rows = rows_of_csv(path, "\t" if suffix == ".tsv" else ",")
        else:
            rows = rows_of_jsonl(path)
        found = list(islice(rows, count))
    except (OSError, EOFError, zlib.error, lzma.LZMAError, csv.Error, pyarrow.ArrowException) as e:
        why = next(iter(str(e).splitlines()), "") or type(e).__name__
        raise ValueError(f"The file '{path}' cannot be read: {why}") from e
    return found


def intact(rows: list[Row | BadRow]) -> list[Row]:
    """The rows themselves.

    Raises:
        BadRow: there is one among them.
    """
    for row in rows:
        if isinstance(row, BadRow):
            raise row
    return [row for row in rows if isinstance(row, dict)]


def read_folder(path: Path, split: str | None, count: int | None) -> list[Row]:
    """The rows of a folder that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote.

    Args:
        split: which part of a DatasetDict; by default train.
        count: only the first so many rows.

    Raises:
        ValueError: the folder cannot be read, or there is no such split.
    """
    try:
        found = load_from_disk(str(path))
    except Exception as error:  # a damaged folder raises many types
        why = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise ValueError(f"The folder '{path}' cannot be read: {why}") from error
    if isinstance(found, dict):
        if (split or "train") not in found:
            raise ValueError(
                f"The folder '{path}' has no split '{split or 'train'}', but {', '.join(found)}; "
                f"give the folder of one, for example '{path / next(iter(found), '')}'."
            )
        found = found[split or "train"]
    found = found.select(range(min(len(found), len(found) if count is None else count)))
    return list(found.to_list())


def is_saved_dataset(path: Path) -> bool:
    """Whether a folder was written by `save_to_disk`."""
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


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


def rows_of_jsonl(path: Path) -> Iterator[Row | BadRow]:
    """The rows of a JSONL file; empty lines are left out. A bad line is given as a BadRow."""
    number = 0
    for at, line in lines_of(path):
        if line.strip():
            number += 1
            try:
                yield object_of(line, f"{path.name}, row {number}", at)
            except BadRow as bad:
                yield bad


def object_of(line: str, where: str, at: int) -> Row:
    """The JSON object of one line.

    Args:
        where: start of the message: the file and the row.
        at: number of the line.

    Raises:
        BadRow: there is none.
    """
    whole = "; a file that is one list must be named .json" if line.startswith("[") else ""
    try:
        row = parsed(line)
    except json.JSONDecodeError as error:
        raise BadRow(
            UNREADABLE,
            f"{where} is no JSON: {error.msg} at character {error.pos + 1} of line {at}{whole}.",
        ) from None
    except ValueError as error:
        raise BadRow(
            UNREADABLE, f"{where} cannot be read as JSON: {error}, in line {at}."
        ) from None
    if not isinstance(row, dict):
        raise BadRow(UNREADABLE, f"{where} is no JSON object with columns, in line {at}{whole}.")
    return row


def parsed(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is no JSON, is nested too deeply, holds a number of thousands of digits, or
            has a name twice in one object.
    """
    try:
        return json.loads(text, object_pairs_hook=_with_unique_names)
    except RecursionError:
        raise ValueError("lists or objects are nested too deeply") from None


def _with_unique_names(pairs: list[tuple[str, Any]]) -> Row:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object has the name '{twice}' twice")
    return found


def rows_of_json(path: Path) -> Iterator[Row | BadRow]:
    """The rows of a .json file: one list of objects, or an object a line, as `datasets` writes.

    An object with a list in its field `data` or `train` gives the rows of that list.

    Raises:
        ValueError: the file is no JSON.
    """
    some = list(islice((line.lstrip() for _, line in lines_of(path) if line.strip()), 2))
    if not some:
        return
    if some[0].startswith("["):
        yield from _rows_of_list(path)
    elif _is_object(some[0]) and len(some) > 1:
        yield from rows_of_jsonl(path)
    else:
        try:
            whole = parsed("".join(line for _, line in lines_of(path)))
        except json.JSONDecodeError as error:
            raise _no_json(path, error) from None
        except ValueError as error:
            raise ValueError(f"The file '{path}' cannot be read: {error}.") from None
        rows = _list_in(whole) if isinstance(whole, dict) else None
        for number, row in enumerate([whole] if rows is None else rows, start=1):
            yield _row_or_broken(row, path, number)


def _is_object(line: str) -> bool:
    """Whether a line is an object by itself, so that another one can follow."""
    try:
        return isinstance(parsed(line), dict)
    except ValueError:
        return False


def _list_in(whole: Row) -> list | None:
    """The list of objects in the field `data` or `train` of an object; None if there is none."""
    lists = [whole[name] for name in ("data", "train") if isinstance(whole.get(name), list)]
    found = [rows for rows in lists if len(whole) == 1 or (rows and isinstance(rows[0], dict))]
    return found[0] if len(found) == 1 else None


def _rows_of_list(path: Path) -> Iterator[Row | BadRow]:
    """The objects of one JSON list. Each is parsed when it is asked for."""
    text = "".join(line for _, line in lines_of(path))
    decoder = json.JSONDecoder(object_pairs_hook=_with_unique_names)
    number, at = 0, _next(text, text.index("[") + 1)
    while number or text[at : at + 1] != "]":
        number += 1
        try:
            row, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise _no_json(path, error, f" (row {number})") from None
        except (RecursionError, ValueError) as error:
            why = "nested too deeply" if isinstance(error, RecursionError) else error
            raise ValueError(f"The file '{path}' cannot be read: row {number}: {why}.") from None
        yield _row_or_broken(row, path, number)
        at = _next(text, at)
        if text[at : at + 1] == "]":
            break
        if text[at : at + 1] != ",":
            missing = json.JSONDecodeError("Expecting ',' or ']'", text, at)
            raise _no_json(path, missing, f" (after row {number})")
        at = _next(text, at + 1)
    if text[at + 1 :].strip():
        raise _no_json(path, json.JSONDecodeError("Text after the list", text, at + 1))


def _next(text: str, at: int) -> int:
    """Where the next letter that is no white space stands."""
    while text[at : at + 1] in (" ", "\n", "\r", "\t"):
        at += 1
    return at


def _row_or_broken(row: Any, path: Path, number: int) -> Row | BadRow:
    if isinstance(row, dict):
        return row
    return BadRow(UNREADABLE, f"{path.name}, row {number} is no JSON object with columns.")


def _no_json(path: Path, error: json.JSONDecodeError, where: str = "") -> ValueError:
    return ValueError(
        f"The file '{path}' cannot be read: JSON parse error: {error.msg} in line {error.lineno}, "
        f"character {error.colno}{where}."
    )


def rows_of_csv(path: Path, delimiter: str = ",") -> Iterator[Row | BadRow]:
    """The rows of a CSV file; the first line names the columns. An empty cell is "".

    A cell that lacks at the end of a row is None. A row with more cells than the first line is
    given as a BadRow.

    Raises:
        ValueError: two columns have one name, or a quotation mark is not closed.
    """
    csv.field_size_limit(LONGEST_CELL)
    # an old Mac ends its lines with \r alone
    pieces = (piece for _, line in lines_of(path) for piece in re.split(r"(?<=\r)(?!\n)", line))
    reader = csv.reader((p for p in pieces if p), delimiter=delimiter, strict=True)
    number = 0
    try:
        names = next((cells for cells in reader if cells), [])
        if twice := [name for name in names if name and names.count(name) > 1]:
            raise ValueError(
                f"The file '{path}' cannot be read: two columns have the name '{twice[0]}'."
            )
        for cells in reader:
            if not cells:
                continue
            number += 1
            if len(cells) > len(names):
                yield BadRow(
                    UNREADABLE,
                    f"{path.name}, row {number} (line {reader.line_num}) has {len(cells)} cells, "
                    f"and the first line names {len(names)} columns; put a text with commas or "
                    "line breaks in quotes.",
                )
            else:
                yield dict(zip_longest(names, cells))
    except csv.Error as error:
        raise ValueError(
            f"The file '{path}' cannot be read: {error}, in row {number + 1} (line "
            f"{reader.line_num})."
        ) from error


def rows_of_parquet(path: Path) -> Iterator[Row]:
    """The rows of a Parquet file."""
    with ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=1000):
            yield from _rows_of_batch(path, batch)


def rows_of_arrow(path: Path) -> Iterator[Row]:
    """The rows of an Arrow file, either a stream, as `datasets` writes, or a file with an index."""
    with pyarrow.memory_map(str(path)) as source:
        try:
            batches = iter(pyarrow.ipc.open_stream(source))
        except pyarrow.ArrowInvalid:
            source.seek(0)
            file = pyarrow.ipc.open_file(source)
            batches = (file.get_batch(i) for i in range(file.num_record_batches))
        for batch in batches:
            yield from _rows_of_batch(path, batch)


def _rows_of_batch(path: Path, batch: pyarrow.RecordBatch) -> Iterator[Row]:
    names = batch.schema.names
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(
            f"The file '{path}' cannot be read: two columns have the name '{twice[0]}'."
        )
    yield from batch.to_pylist()
