"""Rows of tables: CSV, Parquet and Arrow."""

import csv
import re
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

import pyarrow
from pyarrow.parquet import ParquetFile

from minirlhf.tasks.lines import UNREADABLE, BadRow, Row, Unreadable, lines_of

SEPARATORS = (",", ";", "\t")
LONGEST_CELL = 2**31 - 1  # characters; the csv module's own limit is 131,072


def separator_of(path: Path, usual: str) -> str:
    """What separates the cells of a CSV file, by its first line.

    Args:
        usual: the separator that the file's name tells. Another one is used only where the first
            line cannot be split at this one.

    Raises:
        ValueError: the first line can be split at two others.
    """
    first = next((line for _, line in lines_of(path) if line.strip()), "")
    first = re.split(r"\r(?!\n)", first)[0]
    if _can_be_split(first, usual):
        return usual
    found = [each for each in SEPARATORS if _can_be_split(first, each)]
    if len(found) > 1:
        raise ValueError(
            f"The file '{path}' cannot be read: its first line can be split at "
            f"{' and at '.join(map(repr, found))}; save it with {usual!r} between the cells."
        )
    return found[0] if found else usual


def _can_be_split(line: str, separator: str) -> bool:
    try:
        return len(next(csv.reader([line], delimiter=separator, strict=True), [])) > 1
    except csv.Error:
        return False


def rows_of_csv(path: Path, usual: str = ",") -> Iterator[Row | BadRow]:
    """The rows of a CSV file; the first line names the columns. An empty cell is "".

    A cell that lacks at the end of a row is None. A row with more cells than the first line is
    given as a BadRow.

    Raises:
        ValueError: two columns have one name, a quotation mark is not closed, or the separator
            cannot be told (`separator_of`).
    """
    csv.field_size_limit(LONGEST_CELL)
    delimiter = separator_of(path, usual)
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
                    f"and the first line names {len(names)} columns; put a text with "
                    f"{delimiter!r} or line breaks in quotes.",
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
            yield from rows_of_batch(path, batch)


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
            yield from rows_of_batch(path, batch)


def rows_of_batch(path: Path, batch: pyarrow.RecordBatch) -> Iterator[Row]:
    names = batch.schema.names
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(
            f"The file '{path}' cannot be read: two columns have the name '{twice[0]}'."
        )
    columns = [_values(column) for column in batch.columns]
    for cells in zip(*columns, strict=True):
        yield dict(zip(names, cells, strict=True))


def _values(column: pyarrow.Array) -> list:
    """The values of a column. One that cannot be read, such as broken text, is `Unreadable`."""
    try:
        return list(column.to_pylist())
    except Exception:  # each type of column raises others
        return [_value(scalar) for scalar in column]


def _value(scalar: pyarrow.Scalar) -> object:
    try:
        return scalar.as_py()
    except Exception as error:
        why = next(iter(str(error).splitlines()), "") or type(error).__name__
        return Unreadable(f"{why} (a value of type {scalar.type})")
