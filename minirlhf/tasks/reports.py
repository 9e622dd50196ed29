"""What became of the rows of a dataset, in sentences that name the file and the rows."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from minirlhf.tasks.layouts import Layout

MOST_KINDS = 12  # of rows that a line names
ORIGIN = "row_of_file"  # a column that says which row of a file a row comes from, for messages


def counted(rows: int) -> str:
    """ "1 row" or "2 rows"."""
    return f"{rows} row{'s' * (rows != 1)}"


def listed(numbers: Sequence[object]) -> str:
    """How many rows, and the first of them: "5 rows (3, 8, 9, ...)"."""
    shown = ", ".join(map(str, numbers[:3]))
    return f"{counted(len(numbers))} ({shown}{', ...' * (len(numbers) > 3)})"


@dataclass(frozen=True)
class Source:
    """Where rows come from, as messages name it.

    Attributes:
        name: of the file or of the dataset on the hub. Empty for a Dataset in Python.

    Messages count rows from 1, wherever they come from: row 1 is dataset[0]. Arguments count from
    0.
    """

    name: str = ""

    def row(self, number: int) -> str:
        """A row. `number` counts from 0."""
        return f"{self.name}, row {number + 1}" if self.name else f"Row {number + 1}"

    def cell(self, number: int, column: str) -> str:
        """The value in a column of a row, as the subject of a sentence."""
        if self.name:
            return f"{self.row(number)}, column {column}: the value"
        return f"{self.row(number)}: {column}"

    def listed(self, numbers: Sequence[int]) -> str:
        """How many rows, and the first of them. `numbers` count from 0."""
        return listed([number + 1 for number in numbers])

    def origin(self, number: int, *, chat: bool) -> dict[str, Any]:
        """The value of the column `ORIGIN` in a row of a file.

        Args:
            number: of the row, from 0.
            chat: the chat template wrote the texts of the row.
        """
        return {"source": self.name, "row": str(number + 1), "chat": chat}


@dataclass
class Report:
    """What became of the rows of a dataset.

    Attributes:
        source: where they come from.
        rows: how many were read.
        kept: how many are used.
        left_out: kind of fault -> the numbers of the rows left out, from 0.
        noted: what is unusual about rows that are used -> their numbers.
        remarks: sentences about all rows.
        chat: whether the chat template wrote the texts.
    """

    source: Source
    rows: int
    kept: int
    left_out: dict[str, list[int]] = field(default_factory=dict)
    noted: dict[str, list[int]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    chat: bool = False

    def lines(self, layout: Layout, *, limited: bool = False, others: str = "") -> str:
        """The columns, and the rows that are used and left out, in a line each.

        Args:
            limited: more rows may follow, which were not asked for (option --rows).
            others: said before the columns that are not read.
        """
        count = counted(self.rows)
        if limited:
            count = f"the first {'row' if self.rows == 1 else count} (--rows)"
        count = count if self.kept == self.rows else f"{self.kept} of {count}"
        others = others or ("Ignored" if self.source.name else "Other columns")
        lines = [f"{self.source.name or 'Dataset'}: {count}; {layout.described(others)}"]
        for start, kinds in (("Left out: ", self.left_out), ("Used as well: ", self.noted)):
            if kinds:
                parts = [f"{kind}: {self.source.listed(n)}" for kind, n in kinds.items()]
                if more := parts[MOST_KINDS:]:
                    parts = [*parts[:MOST_KINDS], f"{len(more)} more kinds"]
                lines.append(start + "; ".join(parts) + ".")
        return "\n".join([*lines, *self.remarks])
