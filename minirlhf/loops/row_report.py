"""What the check of rows as tokens found, in sentences."""

from collections.abc import Sequence
from dataclasses import dataclass, field

CUT = "Cut: "  # start of a warning


@dataclass
class RowReport:
    """What the check found: the rows to which something happens.

    The lists hold positions in the Dataset, from 0. Messages count from 1: "row 1" is dataset[0].

    Attributes:
        rows: how many rows were checked.
        dropped: reason -> rows that are left out.
        cut: rows with a response that is cut at max_response tokens.
        max_response: where responses are cut; None: nowhere.
        longest: tokens of the longest response of the rows that are kept, EOS included, uncut.
        too_long: rows that would be longer than a model reads if no response were cut.
        positions: the longest sequence that is read, by the model `reader`; None: no limit.
        as_text: rows with special tokens in a text that are read as text.
        as_tokens: rows of text with special tokens of the chat template, read as tokens. Rows of
            a file that the template wrote do not count; `tasks.named_pairs` and its like say so.
        chat: the chat template wrote the prompts that are kept: the rows say so, or each prompt
            holds special tokens of the template.
        unknown: rows with characters that the tokenizer does not know.
        empty: rows with an empty response.
        example: the first row that is kept, as the model reads it.
        source: the file or dataset that the rows come from, if they say so.
        numbers: of the rows in their source, where a pair of two rows is "3+5". Empty if it is not
            known; then messages count the rows that were checked, from 1.
    """

    rows: int
    dropped: dict[str, list[int]] = field(default_factory=dict)
    cut: list[int] = field(default_factory=list)
    max_response: int | None = None
    longest: int = 0
    too_long: list[int] = field(default_factory=list)
    positions: int | None = None
    reader: str = "model"
    as_text: list[int] = field(default_factory=list)
    as_tokens: list[int] = field(default_factory=list)
    chat: bool = False
    unknown: list[int] = field(default_factory=list)
    empty: list[int] = field(default_factory=list)
    example: str = ""
    source: str = ""
    numbers: list[str] = field(default_factory=list)

    @property
    def kept(self) -> int:
        """How many rows are left."""
        return self.rows - sum(map(len, self.dropped.values()))

    def __str__(self) -> str:
        notes = {
            "special tokens in a text, read as text": self.as_text,
            "special tokens of the chat template, read as tokens": self.as_tokens,
            "characters that the tokenizer does not know": self.unknown,
            "empty responses": self.empty,
        }
        said = [f"{self.kept:,} of {self.rows:,} rows are kept"]
        said += [f"left out: {why} ({self.named(rows)})" for why, rows in self.dropped.items()]
        said += [f"{what} ({self.named(rows)})" for what, rows in notes.items() if rows]
        lines = ["; ".join(said) + ".", self.cut_said, self.example]
        return "\n".join(line for line in lines if line)

    @property
    def cut_said(self) -> str:
        """A sentence on the responses that are cut, and what would cut none; empty without any."""
        if not self.cut:
            return ""
        return (
            f"{CUT}{len(self.cut):,} of {self.kept:,} rows have a response of more tokens than "
            f"--max-response {self.max_response} (max_response), so its end is not read "
            f"({self.named(self.cut)}); {self.cuts_none}."
        )

    @property
    def cuts_none(self) -> str:
        """Which max_response cuts no response, or that none does: the end of a sentence."""
        if not self.too_long:
            return f"--max-response {self.longest} cuts none"
        return (
            f"the longest has {self.longest}, and whole responses do not fit into the "
            f"{self.positions} positions of the {self.reader} ({self.named(self.too_long)})"
        )

    @property
    def names(self) -> list[str]:
        """The name of each row that is kept, such as "mine.jsonl, row 5"."""
        left_out = {i for rows in self.dropped.values() for i in rows}
        start = f"{self.source}, " if self.source else ""
        return [start + self.named([i]) for i in range(self.rows) if i not in left_out]

    def named(self, rows: list[int]) -> str:
        """Some rows by their numbers in their source, as `numbered` writes them."""
        return numbered([self.numbers[i] if self.numbers else i + 1 for i in rows])


def numbered(rows: Sequence[int | str], most: int = 5) -> str:
    """The numbers of some rows: "row 7", or "rows 3, 4, 9, 11, 20 and 2 more"."""
    more = f" and {len(rows) - most:,} more" if len(rows) > most else ""
    return f"row{'s' * (len(rows) > 1)} {', '.join(map(str, rows[:most]))}{more}"
