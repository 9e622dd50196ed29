"""A table of texts: whole responses side by side, safe to show."""

from dataclasses import dataclass

import pandas as pd

from minirlhf.show.strips import escape, printable

CELL = "text-align:left;vertical-align:top;padding:.3em .8em;white-space:pre-wrap"


@dataclass(frozen=True)
class Texts:
    """A table that a notebook shows with all of its text: as HTML, or as plain lines."""

    table: pd.DataFrame

    def _repr_html_(self) -> str:
        names = ["" if self.table.index.name is None else self.table.index.name, *self.table]
        head = "".join(f'<th style="{CELL}">{escape(str(name))}</th>' for name in names)
        rows = "".join(
            "<tr>" + "".join(f'<td style="{CELL}">{escape(str(x))}</td>' for x in row) + "</tr>"
            for row in self.table.itertuples(name=None)
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"

    def __repr__(self) -> str:
        """One line per text: the row's name, the column's name, the text."""
        return "\n".join(
            printable(f"{name} | {column}: {text}")
            for name, row in self.table.iterrows()
            for column, text in row.items()
        )


def texts(table: pd.DataFrame) -> Texts:
    """A DataFrame of texts as a table in which no text is cut off. All text is escaped.

    pandas' own table cuts a text after 50 characters.

    Args:
        table: a row per prompt and a column per variant, as `experiments.samples` returns it.

    Raises:
        ValueError: the table has no rows or no columns.
    """
    if table.empty:
        raise ValueError("There are no texts to show: the table is empty.")
    return Texts(table)
