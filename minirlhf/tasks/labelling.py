"""A person labels pairs: the state of one session, saved after each choice, and its files read.

A session has no user interface. `show.label_pairs` shows it in a notebook, and `minirlhf label` in
a terminal.
"""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from minirlhf.runtime import check, write_text
from minirlhf.tasks.files import intact, read_rows
from minirlhf.tasks.pairs import Pair, check_cell

SIDES, UNDECIDED = ("left", "right"), ("tie", "skip")
CHOICES = SIDES + UNDECIDED
OF_ALL = {"annotator": str, "number": int, "pair": str, "repeat": bool, "prompt": str}
OF_DECIDED = OF_ALL | {"chosen": str, "rejected": str, "side": str}
OF_UNDECIDED = OF_ALL | {"left": str, "right": str, "choice": str}


class LabelSession:
    """One person's choices among pairs, saved after each choice.

    The file at `path` holds the pairs in which the person chose a side. It is in TRL's preference
    format: one JSON object per line with prompt, chosen and rejected. So TRL and `minirlhf reward`
    read it as it is. More columns say who chose, which side, after how many seconds, which pair
    (`pair`, the same for both orders of its sides), at which number of the session, and whether the
    pair was a repeat. chosen_mean and rejected_mean are the mean ratings, where there are any.

    A tie and a skip choose nothing, and TRL's format has no row for them: its readers take every
    row as a preference. So ties and skips are in a second file beside the first one. For
    mine.jsonl this is mine.undecided.jsonl. Keep both: `read_labels` reads them together.

    Each choice and each undo changes one of the two files. The new content is written to a
    temporary file, which is then renamed. So a process that is killed loses no choice. A session
    with the same arguments continues after the last saved choice.

    Args:
        pairs: in the order in which they are shown, as `pairs_to_label` returns them.
        path: the file of the choices; its name ends in .jsonl. It may exist.
        annotator: who chooses; a name without a slash.
        clock: function that returns the time in seconds.

    Raises:
        ValueError: there are no pairs, or the file holds labels of other pairs, of another
            annotator, or something else.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        path: str | Path,
        annotator: str = "me",
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.pairs, self.annotator, self.clock = list(pairs), annotator, clock
        self.path = files_of(path)[True]
        check_annotator(annotator)
        check("pairs", self.pairs, bool(self.pairs), "at least one pair")
        self._rows = rows_of_labels(self.path)
        self._files = {kind: _content(file) for kind, file in files_of(self.path).items()}
        self._check_resumed()
        self._shown: float | None = None  # when the current pair was first read

    @property
    def done(self) -> int:
        """How many pairs have a choice; a tie and a skip are choices too."""
        return len(self._rows)

    @property
    def progress(self) -> tuple[int, int]:
        """(number of choices, number of pairs)."""
        return self.done, len(self.pairs)

    @property
    def current(self) -> Pair | None:
        """The pair to label; None after the last one.

        The time of a choice is counted from the first reading of this property.
        """
        if self.done == len(self.pairs):
            return None
        if self._shown is None:
            self._shown = self.clock()
        return self.pairs[self.done]

    def choose(self, choice: str) -> None:
        """Save a choice for the current pair and go to the next pair.

        Args:
            choice: "left", "right", "tie" (both are equally good) or "skip" (no answer).

        Raises:
            ValueError: the choice is unknown, every pair has a choice, or another program changed
                the files.
            OSError: the file cannot be written. Nothing has changed then.
        """
        check("choice", choice, choice in CHOICES, f"one of {', '.join(CHOICES)}")
        pair = self.current
        if pair is None:
            raise ValueError(
                f"All {len(self.pairs)} pairs are labelled; nothing is left to choose."
            )
        assert self._shown is not None  # `current` has set it
        row = {"prompt": pair.prompt} | (
            _decided(pair, choice) if choice in SIDES else _undecided(pair, choice)
        )
        row |= {
            "annotator": self.annotator,
            "seconds": round(self.clock() - self._shown, 2),
            "number": self.done,
            "pair": pair.id,
            "repeat": pair.repeat,
        }
        self._save([*self._rows, row], changed=row)

    def undo(self) -> str | None:
        """Take back the last choice, also one of an earlier session.

        Returns:
            The choice that was taken back; None if there was none.
        """
        if not self._rows:
            return None
        last = self._rows[-1]
        self._save(self._rows[:-1], changed=last)
        return last["side"] if "chosen" in last else last["choice"]

    def _save(self, rows: list[dict], changed: dict) -> None:
        """Write the file to which the changed row belongs, then accept the new rows."""
        kind = "chosen" in changed
        files = files_of(self.path)
        content = "".join(json.dumps(row) + "\n" for row in rows if ("chosen" in row) == kind)
        for each, path in files.items():
            if _content(path) != self._files[each]:
                raise ValueError(
                    f"{path.name} was changed by another program or another session; nothing was "
                    "saved. Start a new session, which reads the file again."
                )
        try:
            if content:
                write_text(files[kind], content)
            else:
                files[kind].unlink(missing_ok=True)  # readers refuse a file without rows
        finally:  # Ctrl-C may come right after the file was replaced
            if _content(files[kind]) == content:
                self._files[kind], self._rows, self._shown = content, rows, None

    def _check_resumed(self) -> None:
        """Check that the saved rows are choices of this annotator among these pairs."""
        for row in self._rows[:1]:
            if row["annotator"] != self.annotator:
                raise ValueError(
                    f"{self.path} holds labels of {row['annotator']}, not of {self.annotator}; "
                    "give each person a file."
                )
        shown = [(pair.id, pair.repeat) for pair in self.pairs]
        if [(row["pair"], row["repeat"]) for row in self._rows] != shown[: self.done]:
            raise ValueError(
                f"{self.path} holds labels of other pairs than these; give the same pairs "
                "(their number, repeats and seed), or another file."
            )


def check_annotator(name: str) -> None:
    """Check the name of who labels, which becomes the name of a file.

    Raises:
        ValueError: it can be no file's name.
    """
    named = name.strip(" .") and name.isprintable() and not set(name) & set("/\\:")
    check(
        "annotator",
        name if len(name) <= 60 else f"{name[:60]} ...",
        bool(named) and len(name) <= 60 and not name.endswith(".undecided"),
        "a name of at most 60 characters, without / \\ : and not .undecided at its end",
    )


def files_of(path: str | Path) -> dict[bool, Path]:
    """The two files of a session: True -> the decided pairs, False -> ties and skips.

    Args:
        path: either of the two files.

    Raises:
        ValueError: the name does not end in .jsonl.
    """
    path = Path(path)
    check("file", str(path), path.suffix == ".jsonl", "a file whose name ends in .jsonl")
    decided = path.with_name(path.name.removesuffix(".undecided.jsonl").removesuffix(".jsonl"))
    return {
        True: decided.with_name(f"{decided.name}.jsonl"),
        False: decided.with_name(f"{decided.name}.undecided.jsonl"),
    }


def rows_of_labels(path: str | Path) -> list[dict]:
    """The saved rows of a session in the order of the choices, ties and skips among them.

    Raises:
        ValueError: a file cannot be read, a row is no label, or a label is missing.
    """
    rows = []
    for decided, file in files_of(path).items():
        found = intact(read_rows(file)) if file.exists() else []
        for number, row in enumerate(found, start=1):
            where = f"{file.name}, row {number}"
            for name, kind in (OF_DECIDED if decided else OF_UNDECIDED).items():
                check_cell(row, name, where, kind)
            for name in ("chosen_mean", "rejected_mean", "left_mean", "right_mean"):
                number = row.get(name, 0.0)
                right = isinstance(number, int | float) and abs(number) < float("inf")
                check(f"{where}, column {name}", number, right, "a number")
            name, allowed = ("side", SIDES) if decided else ("choice", UNDECIDED)
            check(f"{where}, column {name}", row[name], row[name] in allowed, " or ".join(allowed))
        rows += found
    rows.sort(key=lambda row: row["number"])
    for number, row in enumerate(rows):
        if row["number"] != number:
            both = " and ".join(file.name for file in files_of(path).values())
            raise ValueError(
                f"{path}: label number {number} is missing or another one stands there twice; "
                f"{both} must be two whole files of one session."
            )
    names = list(dict.fromkeys(row["annotator"] for row in rows))
    if len(names) > 1:
        raise ValueError(f"{path} mixes labels of {names[0]} and {names[1]}; give a file for each.")
    return rows


def read_labels(*paths: str | Path) -> pd.DataFrame:
    """The labels of one or several people, a row for each choice.

    Args:
        paths: files of `LabelSession`. The file of ties and skips beside each one is read too,
            whether it is named or not.

    Returns:
        A DataFrame with the columns annotator, number (of the choice in its session, from 0), pair,
        repeat, choice (left, right, tie, skip), seconds, prompt, left, right, chosen and rejected
        (missing for ties and skips), left_mean and right_mean (NaN where nobody rated the
        responses).

    Raises:
        ValueError: no file is given, one does not exist or is no file of labels, or the same label
            is there twice.
    """
    if not paths:
        raise ValueError("Give at least one file of labels.")
    table = []
    for path in dict.fromkeys(files_of(path)[True] for path in paths):
        if not any(file.exists() for file in files_of(path).values()):
            raise ValueError(f"There is no file '{path}'.")
        table += [_label(row) for row in rows_of_labels(path)]
    labels = pd.DataFrame(table, columns=list(_LABEL))
    twice = labels[labels.duplicated(["annotator", "number", "pair"])]
    if len(twice):
        name = twice.annotator.iloc[0]
        raise ValueError(
            f"The same labels of {name} are there twice; give each file once, and each person "
            "another name."
        )
    return labels.astype({"left_mean": float, "right_mean": float})


_LABEL = dict.fromkeys(
    "annotator number pair repeat choice seconds prompt left right chosen rejected "
    "left_mean right_mean".split()
)


def _label(row: dict) -> dict:
    """A saved row in the columns that decided and undecided rows share."""
    if "chosen" in row:
        left, right = ("chosen", "rejected") if row["side"] == "left" else ("rejected", "chosen")
        row = row | {
            "choice": row["side"],
            "left": row[left],
            "right": row[right],
            "left_mean": row.get(f"{left}_mean"),
            "right_mean": row.get(f"{right}_mean"),
        }
    return {name: row.get(name) for name in _LABEL}


def _decided(pair: Pair, side: str) -> dict:
    other = SIDES[1 - SIDES.index(side)]
    means = {"chosen_mean": getattr(pair, f"{side}_mean")}
    means["rejected_mean"] = getattr(pair, f"{other}_mean")
    row = {"chosen": getattr(pair, side), "rejected": getattr(pair, other), "side": side}
    return row | _given(means)


def _undecided(pair: Pair, choice: str) -> dict:
    means = {"left_mean": pair.left_mean, "right_mean": pair.right_mean}
    return {"left": pair.left, "right": pair.right, "choice": choice} | _given(means)


def _given(means: dict) -> dict:
    return {name: value for name, value in means.items() if value is not None}


def _content(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""
