"""Records of experiments: data/results/<name>.jsonl, one row per run.

A record <name>_history has one row per step. A row is one JSON object. It says which experiment it
belongs to (`claim`), its `seed`, and the `commit` and `command` that made it.
"""

import json
from pathlib import Path

import pandas as pd

from minirlhf.runtime import DATA, ROOT, check, write_text

RESULTS = DATA / "results"
REQUIRED = ("claim", "seed", "commit", "command")
METHODS = {  # column of the README's table -> column of the record
    "gold": "gold",
    "proxy": "proxy",
    "ensemble": "ensemble",
    "lexicon": "lexicon",
    "KL, nats": "kl",
    "tokens": "length",
    "distinct-2": "distinct_2",
    "commonest opening": "opening_share",
}
ACCURACY = ("reward model", "bag of words", "human ceiling", "mean probability")


def results(*names: str, folder: Path | None = None) -> pd.DataFrame:
    """The records of these names as one DataFrame: one row per run, or per step of a `_history`.

    Columns are as recorded, after `experiment`, the record's name. A column that a row was
    recorded without holds NaN there. Most cells are a number or a text. Some hold a Python list or
    dict, as recorded: `gold_by_prompt` (one number per prompt, always in the same order of
    prompts), `samples` (prompt -> text), `by_film`, intervals. `by_prompt` makes a long table
    of the first kind.

    The record "microscope" has one row per token instead, ready for `show.microscope`: the columns
    of `evaluate.token_table`, `step`, and `source`. See `experiments.microscope`.

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


def readme_tables(folder: Path = RESULTS) -> dict[str, str]:
    """The README's tables in Markdown, as means over seeds.

    `tour` has one row per method. `reward` has one row per band of the rating gap.
    """
    tour = load_results("tour", folder=folder)
    accuracy = load_results("reward_model", folder=folder)
    for row in accuracy:
        row["band"] = f"{row['low']:g} to {row['high']:g}"
    columns = {name: name for name in ACCURACY}
    return {
        "tour": _markdown(tour, "method", "method", METHODS),
        "reward": _markdown(accuracy, "band", "rating gap (mean of the other raters)", columns),
    }


def fill_readme(path: Path = ROOT / "README.md", folder: Path = RESULTS) -> None:
    """Write the tables between their marks in the README."""
    text = readme_to_fill(path)
    for name, table in readme_tables(folder).items():
        before, rest = text.split(f"<!-- {name} -->\n")
        after = rest.split(f"<!-- /{name} -->")[1]
        text = f"{before}<!-- {name} -->\n{table}<!-- /{name} -->{after}"
    write_text(path, text)


def readme_to_fill(path: Path = ROOT / "README.md") -> str:
    """The README's text, after a check that each table's marks are there exactly once.

    A long command calls this first, so that a missing mark stops it before it trains.
    """
    text = path.read_text(encoding="utf-8")
    for mark in ("<!-- tour -->\n", "<!-- /tour -->", "<!-- reward -->\n", "<!-- /reward -->"):
        count = text.count(mark)
        field = f"the number of marks '{mark.strip()}' in {path.name}"
        check(field, count, count == 1, "1: its table stands there")
    return text


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


def _markdown(rows: list[dict], key: str, title: str, columns: dict[str, str]) -> str:
    lines = [[title, *columns], ["---"] * (1 + len(columns))]
    for value in dict.fromkeys(row[key] for row in rows):
        same = [row for row in rows if row[key] == value]
        means = (sum(row[column] for row in same) / len(same) for column in columns.values())
        lines.append([value, *(f"{mean:.2f}" for mean in means)])
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


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
