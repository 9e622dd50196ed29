"""Rows of JSON: an object a line, one list of objects, or columns as pandas writes them."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from minirlhf.tasks.lines import UNREADABLE, BadRow, Row, lines_of


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

    An object with a list in its field `data` or `train` gives the rows of that list. An object of
    columns gives their rows.

    Raises:
        ValueError: the file is no JSON, or its columns have different lengths.
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
        rows = None
        if isinstance(whole, dict):
            rows = _list_in(whole) or _rows_of_columns(whole, path)
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


def _rows_of_columns(whole: Row, path: Path) -> list | None:
    """The rows of a table that is written as one object; None if the object is a row.

        {"prompt": ["a", "b"]}                           a dict of lists
        {"prompt": {"0": "a", "1": "b"}}                 pandas, orient="columns"
        {"0": {"prompt": "a"}, "1": {"prompt": "b"}}     pandas, orient="index"
        {"columns": ["prompt"], "data": [["a"], ["b"]]}  pandas, orient="split"

    Raises:
        ValueError: the columns have different lengths.
    """
    names, cells, parts = whole.get("columns"), whole.get("data"), list(whole.values())
    if isinstance(names, list) and isinstance(cells, list):
        if all(isinstance(row, list) and len(row) == len(names) for row in cells):
            return [dict(zip(map(str, names), row, strict=True)) for row in cells]
    if parts and all(isinstance(part, dict) and part for part in parts):
        if all(map(str.isdigit, whole)):
            return parts
        if all(str.isdigit(key) for part in parts for key in part):
            keys = dict.fromkeys(key for part in parts for key in part)
            return [{name: whole[name].get(key) for name in whole} for key in keys]
    lists = parts and all(isinstance(part, list) for part in parts)
    if not lists or any(map(_is_one_talk, parts)):
        return None
    if len(set(map(len, parts))) > 1:
        lengths = ", ".join(f"{name} {len(part)}" for name, part in whole.items())
        raise ValueError(
            f"The file '{path}' cannot be read: it holds columns of different lengths ({lengths})."
        )
    return [dict(zip(whole, row, strict=True)) for row in zip(*parts, strict=True)]


def _is_one_talk(value: list) -> bool:
    """Whether a list holds the turns of one conversation, so it is a cell and no column."""
    return any(isinstance(part, dict) and {"role", "from"} & part.keys() for part in value)


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
