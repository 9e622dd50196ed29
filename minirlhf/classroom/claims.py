"""Checks for the numbers quoted in the lessons, and the records behind them.

Exact statements are plain asserts in the notebook. Statistical statements go through `claim`. In a
full run their evidence is computed live. Under FAST=1 it is read from data/results. A committed
command recorded these results, and `make claims` repeats some of them.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

from minirlhf.runtime import DATA, ROOT, check, write_text

FAST = os.environ.get("FAST", "") not in ("", "0")
RESULTS = DATA / "results"
REQUIRED = ("claim", "seed", "commit", "command")
METHODS = {
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


class ClaimFailed(AssertionError):
    """A statement in a lesson is not supported by its evidence."""


def claim(
    sentence: str, holds: bool | Callable[[], bool], *, evidence: str, seeds: int = 1
) -> None:
    """Check a statement of the prose: print it with its evidence if it holds, raise if it does not.

    Args:
        sentence: what the prose says.
        holds: whether the evidence supports the sentence, or a function that computes this.
        evidence: the numbers behind the sentence, with their intervals.
        seeds: the number of seeds behind the evidence.

    Raises:
        ClaimFailed: the sentence does not hold.
        ValueError: there is no evidence, or no seed.
        TypeError: `holds` is neither true nor false. A list, for example, is refused: a list with
            entries is always truthy, so it would support any sentence.
    """
    holds = holds() if callable(holds) else holds
    if holds not in (True, False):
        raise TypeError(f"holds is {holds!r}; it must be True or False, for: {sentence}")
    check("evidence", evidence, bool(evidence.strip()), "the numbers behind the sentence")
    check("seeds", seeds, seeds >= 1, "1 or more")
    if not holds:
        raise ClaimFailed(
            f"Not supported: {sentence} Evidence: {evidence} ({seeds} seed{'s' * (seeds != 1)})."
        )
    print(f"\u2713 {sentence}  [{evidence}; {seeds} seed{'s' * (seeds != 1)}]")


def load_results(name: str, *, folder: Path | None = None) -> list[dict]:
    """Rows of data/results/<name>.jsonl.

    Raises:
        ValueError: no such record, an empty one (of no rows, anything is true), or a row without claim, seed, commit and command.
    """
    path = (folder or RESULTS) / f"{name}.jsonl"
    if not path.is_file():
        raise ValueError(
            f"Nothing is recorded as '{name}'; known: {sorted(p.stem for p in path.parent.glob('*.jsonl'))}."
        )
    return _checked(
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()], path
    )


def record(name: str, rows: list[dict], *, folder: Path | None = None) -> Path:
    """Write rows as data/results/<name>.jsonl, whole or not at all; what `load_results` would refuse is refused here."""
    path = (folder or RESULTS) / f"{name}.jsonl"
    write_text(
        path, "".join(json.dumps(row, sort_keys=True) + "\n" for row in _checked(rows, path))
    )
    return path


def differences(recorded: dict, again: dict, *, tolerance: dict[str, float]) -> list[str]:
    """What a re-run row says otherwise than the recorded one, beyond the tolerance of each compared number. NaN always differs."""
    return [
        f"{key}: recorded {recorded[key]:.4g}, now {again[key]:.4g}, allowed {allowed:g}"
        for key, allowed in tolerance.items()
        if not abs(recorded[key] - again[key]) <= allowed
    ]


def evidence(live: Callable[[], list[dict]], name: str) -> list[dict]:
    """The rows behind a statistical claim.

    Args:
        live: computes the rows; called in a full run.
        name: the record in data/results that is read instead under FAST=1.
    """
    return load_results(name) if FAST else live()


def readme_tables(results: Path = RESULTS) -> dict[str, str]:
    """The recorded means over seeds as Markdown: `tour`, a row a method, and `reward`, a row a gap band."""
    tour, accuracy = (
        load_results("tour", folder=results),
        load_results("reward_model", folder=results),
    )
    for row in accuracy:
        row["band"] = f"{row['low']:g} to {row['high']:g}"
    return {
        "tour": _markdown(tour, "method", "method", METHODS),
        "reward": _markdown(
            accuracy, "band", "gap of the others' means", {name: name for name in ACCURACY}
        ),
    }


def fill_readme(path: Path = ROOT / "README.md", results: Path = RESULTS) -> None:
    """Put the tables between their marks in the README, so that nobody types a number."""
    text = readme_to_fill(path)
    for name, table in readme_tables(results).items():
        before, rest = text.split(f"<!-- {name} -->\n")
        text = (
            before
            + f"<!-- {name} -->\n{table}<!-- /{name} -->"
            + rest.split(f"<!-- /{name} -->")[1]
        )
    write_text(path, text)


def readme_to_fill(path: Path = ROOT / "README.md") -> str:
    """The README's text, both tables' marks being there once: asked before a grid runs for twenty minutes."""
    text = path.read_text(encoding="utf-8")
    for mark in ("<!-- tour -->\n", "<!-- /tour -->", "<!-- reward -->\n", "<!-- /reward -->"):
        check(
            f"the number of marks '{mark.strip()}' in {path.name}",
            text.count(mark),
            text.count(mark) == 1,
            "1: its table stands there",
        )
    return text


def _markdown(rows: list[dict], key: str, title: str, columns: dict[str, str]) -> str:
    lines = [[title, *columns], ["---"] * (1 + len(columns))]
    for value in dict.fromkeys(row[key] for row in rows):
        same = [row for row in rows if row[key] == value]
        lines.append(
            [
                value,
                *(
                    f"{sum(row[column] for row in same) / len(same):.2f}"
                    for column in columns.values()
                ),
            ]
        )
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _checked(rows: list[dict], path: Path) -> list[dict]:
    if not rows:
        raise ValueError(f"{path.name} has no rows.")
    for number, row in enumerate(rows, 1):
        if missing := [key for key in REQUIRED if key not in row]:
            raise ValueError(f"Row {number} of {path.name} lacks {', '.join(missing)}.")
    return rows
