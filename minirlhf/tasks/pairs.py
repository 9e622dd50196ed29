"""Pairs of responses for a person to label: drawn from the film reviews, or read from a file."""

import hashlib
import json
import random
from dataclasses import dataclass, replace
from pathlib import Path

from minirlhf.runtime import check, check_text
from minirlhf.tasks import reviews
from minirlhf.tasks.files import COMPRESSED, SUFFIXES, intact, is_data_file, read_rows

COLUMNS = ("prompt", "response_a", "response_b")


@dataclass(frozen=True)
class Pair:
    """Two responses to one prompt, as a person sees them.

    The mean ratings are kept aside: a person who labels does not see them. They are None where
    nobody rated the responses. `repeat` says that the person has seen this pair before, with the
    sides swapped.
    """

    prompt: str
    left: str
    right: str
    left_mean: float | None = None  # mean rating of the left response, -4 to 4
    right_mean: float | None = None
    repeat: bool = False

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits. They are the same whichever response is on the left."""
        texts = [self.prompt, *sorted((self.left, self.right))]
        return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:12]

    def swapped(self) -> "Pair":
        """The same pair with the other response on the left."""
        return replace(
            self,
            left=self.right,
            right=self.left,
            left_mean=self.right_mean,
            right_mean=self.left_mean,
        )


def pairs_to_label(count: int = 30, *, repeats: int | None = None, seed: int = 0) -> list[Pair]:
    """Pairs of rated reviews of the same film, for a person to label.

    The films are those that a reward model learns from (split "reward"). No film of the splits
    test, val and gold is among them, so a model trained on the labels can still be tested.

    Args:
        count: number of different pairs.
        repeats: so many of the pairs come a second time, with the sides swapped. They measure how
            often a person agrees with themselves. At least half of the pairs lie between the first
            time and the second. None: 6, or `count` where that is smaller.
        seed: of the draw. People who label with the same seed see the same pairs.

    Returns:
        count + repeats pairs, in the order in which they are shown.

    Raises:
        ValueError: there are not so many pairs, or `repeats` is not between 0 and `count`.
    """
    candidates = reviews.pairs_within_films("reward")
    fits = 1 <= count <= len(candidates)
    check("count", count, fits, f"at least 1 and at most {len(candidates)}, the number of pairs")
    rng = random.Random(seed)
    drawn = rng.sample(candidates, count)
    pairs = [Pair(a.prompt, a.text, b.text, a.mean, b.mean) for a, b in drawn]
    return with_sides_and_repeats(pairs, min(6, count) if repeats is None else repeats, rng)


def pairs_from_file(path: str | Path, *, repeats: int = 0, seed: int = 0) -> list[Pair]:
    """Pairs from a file of yours, for a person to label.

    The file has the columns `prompt`, `response_a` and `response_b`. It is JSONL (one JSON object
    per line), CSV (the first line names the columns), or another kind that `files.read_rows` reads.
    Other columns are not read. The order of the pairs and the side of each response are drawn, so
    that a person cannot know which response came from which source.

    Args:
        path: a file, text in UTF-8.
        repeats: so many pairs come a second time, with the sides swapped.
        seed: of the order and the sides.

    Raises:
        ValueError: the file cannot be read, or a row cannot be used. The message names the file,
            the row and the column. Rows are counted from 1, in a CSV file without its first line.
    """
    path, pairs = Path(path), []
    first: dict[str, int] = {}  # pair -> the row in which it stands
    allowed = f"a .jsonl or a .csv file (or one of {', '.join((*SUFFIXES, *COMPRESSED))})"
    check("file", str(path), is_data_file(path), allowed)
    for number, row in enumerate(intact(read_rows(path)), start=1):
        where = f"{path.name}, row {number}"
        for name in COLUMNS:
            check_cell(row, name, where)
        if row["response_a"] == row["response_b"]:
            raise ValueError(f"{where}: response_a and response_b are the same text.")
        pair = Pair(*(row[name] for name in COLUMNS))
        if pair.id in first:
            raise ValueError(f"{where}: this is the pair of row {first[pair.id]} again; remove it.")
        first[pair.id] = number
        pairs.append(pair)
    if not pairs:
        raise ValueError(f"{path.name} has no rows; give at least one pair.")
    rng = random.Random(seed)
    rng.shuffle(pairs)
    return with_sides_and_repeats(pairs, repeats, rng)


def with_sides_and_repeats(pairs: list[Pair], repeats: int, rng: random.Random) -> list[Pair]:
    """The pairs with random sides, and some of them again later with the sides swapped.

    `rng` is the one that has drawn the pairs: a new one with the same seed would repeat its draws,
    and the sides would follow from the order.
    """
    count = len(pairs)
    check("repeats", repeats, 0 <= repeats <= count, f"0 to {count}, the number of pairs")
    pairs = [rng.choice((pair, pair.swapped())) for pair in pairs]
    early = range(max(repeats, (count + 1) // 2))  # a pair of the first half can come again late
    again = rng.sample(early, repeats)
    places = [(float(i), pair) for i, pair in enumerate(pairs)]
    places += [(i + count // 2 + 0.5, replace(pairs[i].swapped(), repeat=True)) for i in again]
    return [pair for _, pair in sorted(places, key=lambda entry: entry[0])]


def check_cell(row: dict, name: str, where: str, kind: type = str) -> None:
    """Check that a row has a column, and that its value is of a kind (a text: not empty).

    Raises:
        ValueError: it is not so. The message begins with `where`.
    """
    value = row.get(name)
    if value is None:
        found = ", ".join(str(key) for key in row if key is not None) or "none"
        raise ValueError(f"{where}: column {name} is missing; its columns are {found}.")
    if kind is str:
        check_text(value, f"{where}, column {name}: the value")
        if not value.strip():
            raise ValueError(f"{where}, column {name}: the text is empty.")
    elif not isinstance(value, kind):
        raise ValueError(f"{where}, column {name}: {value!r} is no {kind.__name__}.")
