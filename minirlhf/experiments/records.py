"""Records of experiments: data/results/<name>.jsonl, one row per run.

A record <name>_history has one row per step. A row is one JSON object. It says which experiment it
belongs to (`claim`), its `seed`, and the `commit` and `command` that made it.
"""

import json
from pathlib import Path

import pandas as pd

from minirlhf.runtime import DATA, write_text

RESULTS = DATA / "results"
REQUIRED = ("claim", "seed", "commit", "command")


def results(*names: str, folder: Path | None = None) -> pd.DataFrame:
    """The records of these names as one DataFrame: one row per run, or per step of a `_history`.

    Columns are as recorded, after `experiment`, the record's name. A column that a row was
    recorded without holds NaN there. Most cells are a number or a text. Some hold a Python list or
    dict, as recorded: `gold_by_prompt` (one number per prompt, always in the same order of
    prompts), `samples` (prompt -> text), `by_film`, intervals. `by_prompt` makes a long table
    of the first kind.

    The records "microscope" and "one_batch" have one row per token instead, ready for
    `show.microscope`: the columns of `evaluate.token_table`, `step`, and `source`. See
    `experiments.microscope`.

    Args:
        names: one or more records, for example "ablations", "leash", "leash_history".
        folder: where the records are; data/results, if left out.

    Raises:
        ValueError: no name was given, or a name has no record.
    """
    if not names:
        raise ValueError(f"No record was asked for; {_known(folder or RESULTS)}.")
    recorded = [(name, row) for name in names for row in load_results(name, folder=folder)]
    table = pd.DataFrame(
        {"experiment": name} | row
        for name, run in recorded
        for row in (_token_rows(run) if "tables" in run else [run])
    )
    settings = [part.get("settings") for _, run in recorded for part in run.get("tables", [])]
    if settings and settings[0] and all(s == settings[0] for s in settings):
        table.attrs["settings"] = settings[0]  # for the microscope
    return table


def load_results(name: str, *, folder: Path | None = None) -> list[dict]:
    """Rows of data/results/<name>.jsonl as dicts; `results` gives them as a DataFrame.

    Raises:
        ValueError: the record does not exist or is empty, or a row lacks claim, seed, commit or
            command.
    """
    path = (folder or RESULTS) / f"{name}.jsonl"
    if not path.is_file():
        raise ValueError(f"Nothing is recorded as '{name}'; {_known(path.parent)}.")
    lines = path.read_text(encoding="utf-8").splitlines()
    return _checked([json.loads(line) for line in lines], path)


def record(name: str, rows: list[dict], *, folder: Path | None = None) -> Path:
    """Write rows to data/results/<name>.jsonl. The old file is replaced after all are written.

    Raises:
        ValueError: `load_results` would refuse these rows.
    """
    path = (folder or RESULTS) / f"{name}.jsonl"
    lines = [json.dumps(row, sort_keys=True) + "\n" for row in _checked(rows, path)]
    write_text(path, "".join(lines))
    return path


def differences(recorded: dict, again: dict, *, tolerance: dict[str, float]) -> list[str]:
    """One sentence for each number of a repeated run that is further off than its tolerance.

    Args:
        tolerance: column -> the largest allowed absolute difference. NaN always differs.
    """
    return [
        f"{key}: recorded {recorded[key]:.4g}, now {again[key]:.4g}, allowed {allowed:g}"
        for key, allowed in tolerance.items()
        if not abs(recorded[key] - again[key]) <= allowed
    ]


def _token_rows(row: dict) -> list[dict]:
    """The token tables of a recorded run: one row per token, step and source."""
    rows = []
    for table in row["tables"]:
        here = {"seed": row["seed"]} | {name: table[name] for name in ("source", "step")}
        columns = {n: column for n, column in table.items() if n not in (*here, "settings")}
        rows += [
            here | dict(zip(columns, entries, strict=True))
            for entries in zip(*columns.values(), strict=True)
        ]
    return rows


def _checked(rows: list[dict], path: Path) -> list[dict]:
    if not rows:
        raise ValueError(f"{path.name} has no rows.")
    for number, row in enumerate(rows, 1):
        if missing := [key for key in REQUIRED if key not in row]:
            raise ValueError(f"Row {number} of {path.name} lacks {', '.join(missing)}.")
    return rows


def _known(folder: Path) -> str:
    names = sorted(path.stem for path in folder.glob("*.jsonl"))
    return f"the records are {', '.join(names)}" if names else f"{folder} holds no records"
