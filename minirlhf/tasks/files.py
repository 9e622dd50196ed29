"""Rows of a local file: JSON, CSV, Parquet or Arrow, as `datasets` writes them.

The rows are read one after the other, as they are. So a row keeps its number, a value keeps its
type, and what stands after the last row that is asked for is not read.
"""

import csv
import lzma
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pyarrow
from datasets import load_from_disk

from minirlhf.tasks.json_files import rows_of_json, rows_of_jsonl
from minirlhf.tasks.lines import COMPRESSED, BadRow, Row
from minirlhf.tasks.table_files import rows_of_arrow, rows_of_batch, rows_of_csv, rows_of_parquet

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow")


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
    try:
        return list(found.to_list())
    except Exception:  # a value that cannot be read; find out which
        table = found.with_format("arrow")[:]
        return [row for batch in table.to_batches() for row in rows_of_batch(path, batch)]


def is_saved_dataset(path: Path) -> bool:
    """Whether a folder was written by `save_to_disk`."""
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()
