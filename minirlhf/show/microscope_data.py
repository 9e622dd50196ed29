"""The data of the token microscope: tables of tokens become one small dict of JSON values.

Columns are stored as lists, numbers with four significant digits at most. Every token and every
prompt is stored once, in a list of words and a list of prompts. Elsewhere its index stands.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Number
from typing import Any

import pandas as pd

from minirlhf.runtime import check
from minirlhf.show.microscope_columns import KNOWN, describe
from minirlhf.show.strips import printable

NEEDED = ("text", "position", "token")
NOT_NUMBERS = (*NEEDED, "prompt", "step", "seed", "chosen", "alternatives", "ref_alternatives")
SETTINGS = ("kl_coef", "gamma", "lam")
JOINERS = "\u200c\u200d"  # they join or part letters and emoji, and cannot harm a page


def microscope_data(
    table: pd.DataFrame | Mapping[str, pd.DataFrame], limits: Mapping[str, float] | None = None
) -> dict:
    """The tables as one dict that JSON can hold.

    Args:
        table: a row a token, or title -> such a table. `show.microscope` lists the columns.
        limits: column name -> end of its colour scale; the largest value
            by default.

    Returns:
        columns: a dict per column of numbers. words, prompts: texts, each once. steps: the training
        steps of all tables, sorted. sides: a dict per table with a frame per step, and in each
        frame the texts with their tokens and numbers. A table with `attrs["settings"]` gives its
        side these settings.

    Raises:
        ValueError: what a table lacks, in one sentence.
    """
    tables = _tables(table)
    names = _number_columns(tables)
    columns = [_column(name, tables, (limits or {}).get(name)) for name in names]
    words, prompts = _Index(), _Index()
    sides = []
    for title, rows in tables.items():
        frames = []
        for step, frame in rows.groupby("step") if "step" in rows else [(None, rows)]:
            texts = [
                _text(int(text), group.sort_values("position"), columns, words, prompts)
                for text, group in frame.groupby("text")
            ]
            frames.append({"step": None if step is None else int(step), "texts": texts})
        side: dict = {"title": clean(title), "frames": frames}
        if (settings := _settings(rows)) is not None:
            side["settings"] = settings
        sides.append(side)
    steps = {f["step"] for side in sides for f in side["frames"]} - {None}
    return {
        "columns": columns,
        "words": list(words),
        "prompts": list(prompts),
        "steps": sorted(steps),
        "sides": sides,
    }


def to_json(data: dict) -> str:
    """JSON that cannot end the script element that holds it, nor start another one."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def clean(text: str) -> str:
    """Text without control characters, lone surrogates and marks that turn the direction.

    Line ends, tabs and the joiners of emoji stay. A token that is only a joiner would be invisible.
    """
    shown = printable(str(text), keep="\n\t" + JOINERS)
    return shown if shown.strip(JOINERS) else printable(shown)


class _Index(dict):
    """Text -> its place in the list of texts; a new text is appended."""

    def place(self, text: str) -> int:
        return self.setdefault(clean(text), len(self))


def _tables(table: pd.DataFrame | Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Title -> table, after the checks."""
    tables = {"": table} if isinstance(table, pd.DataFrame) else table
    if not isinstance(tables, Mapping) or not all(
        isinstance(t, pd.DataFrame) for t in tables.values()
    ):
        raise ValueError(
            f"table is a {type(table).__name__}; it must be a DataFrame with a row a token, or a "
            "mapping from title to such a DataFrame."
        )
    if not tables:
        raise ValueError("The mapping holds no table; give at least one title with its table.")
    for title, rows in tables.items():
        name = f"The table {title!r}" if title else "The table"
        missing = [column for column in NEEDED if column not in rows]
        if missing:
            raise ValueError(
                f"{name} has no column {', '.join(missing)}; it has {_listed(rows.columns)}."
            )
        if rows.empty:
            raise ValueError(f"{name} is empty; it needs at least one token.")
        key = [c for c in ("step", "text", "position") if c in rows]
        for column in key:
            if not pd.api.types.is_integer_dtype(rows[column]):
                raise ValueError(f"{name} needs whole numbers in its column {column}.")
        twice = rows[rows.duplicated(key)]
        if len(twice):
            place = ", ".join(f"{c} {twice.iloc[0][c]}" for c in key)
            raise ValueError(f"{name} has two rows for {place}; it needs one row a token.")
    return {str(title): rows for title, rows in tables.items()}


def _number_columns(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """The names of all columns of numbers: the known ones in their order, then the others."""
    names: dict[str, None] = {}  # in the order of the data
    for rows in tables.values():
        for name in rows.columns:
            if isinstance(name, str) and name not in NOT_NUMBERS and _is_numbers(rows[name]):
                names[name] = None
    if not names:
        raise ValueError("The table has no column of numbers, so there is nothing to colour.")
    for name in names:
        check("A column's name", name, name == clean(name), "text that can be printed")
    return [name for name in KNOWN if name in names] + [n for n in names if n not in KNOWN]


def _is_numbers(column: pd.Series) -> bool:
    if column.dtype == object:
        values = column.dropna()
        return len(values) > 0 and all(isinstance(v, Number) for v in values)
    return pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column)


def _is_yes_or_no(column: pd.Series) -> bool:
    return pd.api.types.is_bool_dtype(column.dropna().infer_objects())


def _column(name: str, tables: Mapping[str, pd.DataFrame], limit: float | None) -> dict:
    """Label, meaning and colour scale of a column: one scale for all tables, texts and steps."""
    known = describe(name)
    parts = [rows[name] for rows in tables.values() if name in rows]
    yes_or_no = all(_is_yes_or_no(part) for part in parts)
    finite = [float(v) for part in parts for v in part.dropna() if math.isfinite(v)]
    away = [known.distance(v) for v in finite]
    largest = max((abs(v) for v in away if math.isfinite(v)), default=0.0)
    if limit is not None:
        lowest = 1 if known.factor else 0
        check(f"limits[{name!r}]", limit, lowest < limit < math.inf, f"a number above {lowest}")
        limit = known.distance(limit)
    return {
        "name": name,
        "label": clean(known.label),
        "group": known.group,
        "unit": known.unit,
        "about": known.about,
        "kind": "yes or no" if yes_or_no else "number",
        "factor": known.factor,
        "limit": 1.0 if yes_or_no else _short(limit or largest),
        "low": min(away, default=0.0) < 0,  # is this half of the scale used?
        "high": max(away, default=0.0) > 0,
    }


def _text(
    text: int, rows: pd.DataFrame, columns: list[dict], words: _Index, prompts: _Index
) -> dict:
    """One response: its tokens as places in the list of words, its numbers as lists."""
    data = {"text": text, "tokens": [words.place(token) for token in rows["token"]]}
    if "prompt" in rows and isinstance(rows["prompt"].iloc[0], str):
        data["prompt"] = prompts.place(rows["prompt"].iloc[0])
    if "chosen" in rows and not rows["chosen"].all():
        data["chosen"] = [int(chosen) for chosen in rows["chosen"]]
    data["numbers"] = {
        c["name"]: [_short(v, small=c["limit"] < 0.01) for v in rows[c["name"]]]
        for c in columns
        if c["name"] in rows
    }
    for key in ("alternatives", "ref_alternatives"):
        if key in rows:
            data[key] = [_pairs(pairs, words, key) for pairs in rows[key]]
    return data


def _settings(rows: pd.DataFrame) -> dict[str, float] | None:
    """The settings by which `evaluate.token_table` made the columns; None without them."""
    given = rows.attrs.get("settings")
    if not isinstance(given, Mapping) or not set(SETTINGS) <= set(given):
        return None
    numbers = {name: float(given[name]) for name in SETTINGS}
    return numbers if all(map(math.isfinite, numbers.values())) else None


def _pairs(pairs: Any, words: _Index, key: str) -> list:
    """[(token, probability), ...] as one flat list: place, probability, place, probability, ..."""
    if pairs is None or (isinstance(pairs, float) and math.isnan(pairs)):
        return []
    flat = []
    for pair in pairs:
        good = isinstance(pair, Sequence) and len(pair) == 2 and isinstance(pair[1], Number)
        if not good or not 0 <= pair[1] <= 1:
            raise ValueError(f"{key} holds {pair!r}; it must be a pair (token, probability).")
        flat += [words.place(pair[0]), _short(pair[1])]
    return flat[:10]  # the five likeliest


def _short(value: float | None, *, small: bool = True) -> float | int | str | None:
    """A number with four significant digits; None for NaN, text for an infinite number.

    Args:
        small: False for a number that is shown with three decimals. It is rounded only once.
    """
    if value is None or value is pd.NA or math.isnan(value):
        return None
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    value = float(value)
    short = float(f"{value:.4g}") if small or abs(value) >= 10 else round(value, 3)
    return int(short) if short == int(short) else short


def _listed(names: Iterable) -> str:
    return ", ".join(map(str, names)) or "no columns"
