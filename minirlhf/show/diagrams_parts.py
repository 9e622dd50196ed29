"""Boxes, arrows and lines of text: what the diagrams are made of.

A sheet is a figure whose coordinates are hundredths of an inch, with y = 0 at the top. A box is
(x, y, width, height) in these units.
"""

from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path
from matplotlib.text import Text

from minirlhf.core.rollout import Rollout
from minirlhf.show import look
from minirlhf.show.strips import _drawable, printable

WIDTH = 820  # of a sheet: 902 pixels at 110 dots per inch, as wide as a notebook
BLUE, GREEN = look.COLOURS[0], look.COLOURS[2]
KINDS = {  # of a box: fill, edge, line style, line width, roundness of the corners
    "data": ("#ffffff", "#555555", "-", 1.0, 2),
    "trained": ("#dcebf8", BLUE, "-", 1.6, 6),
    "frozen": ("#e9e9e9", "#777777", (0, (4, 2.5)), 1.3, 6),
    "result": ("#d9f0e3", GREEN, "-", 1.6, 24),
    "area": ("#f6f6f6", "#bbbbbb", "-", 0.8, 6),
}
STYLES = {  # of a line of text: size in points, weight, family, room that the line takes
    "title": (11, "bold", "DejaVu Sans", 20),
    "head": (9.2, "bold", "DejaVu Sans", 16.5),
    "text": (9.2, "normal", "DejaVu Sans", 16.5),
    "code": (9.2, "normal", "DejaVu Sans Mono", 16.5),
    "gap": (9.2, "normal", "DejaVu Sans", 6),  # an empty line of less height
}
Box = tuple[float, float, float, float]
Line = tuple[str, str]  # (style, text)


def sheet(height: float) -> tuple[Figure, Axes]:
    """An empty white figure, WIDTH wide, with one axes over all of it."""
    figure = look.Picture(figsize=(WIDTH / 100, height / 100), dpi=110, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(height, 0))
    axes.axis("off")
    return figure, axes


def write(
    axes: Axes,
    x: float,
    y: float,
    line: Line,
    *,
    width: float | None = None,
    ha: str = "center",
    colour: str = look.DARK,
) -> Text:
    """One line of text, centred vertically at y, and cut with an ellipsis where it is too wide.

    Args:
        line: (style, text); a "$" in it is drawn as it is.
        width: the room for it; None: no limit.
    """
    style, text = line
    size, weight, family, _ = STYLES[style]
    drawn = axes.text(
        x,
        y,
        _drawable(printable(text), family),
        fontsize=size,
        fontweight=weight,
        family=family,
        color=colour,
        ha=ha,
        va="center_baseline",
        parse_math=False,
    )
    if width is not None:
        _shorten(drawn, width)
    return drawn


def width_of(text: Text) -> float:
    """The width of a drawn text in the units of the sheet."""
    return text.get_window_extent().width * 100 / text.figure.dpi


def _shorten(drawn: Text, width: float) -> None:
    """Drop characters from the end of a text until it fits, and end it with an ellipsis."""
    text = drawn.get_text()
    wide = width_of(drawn)
    while text and wide > width:
        text = text[: min(len(text) - 1, int(len(text) * width / wide) + 1)]
        drawn.set_text(text.rstrip() + "\u2026")
        wide = width_of(drawn)


def block(axes: Axes, box: Box, kind: str, lines: Sequence[Line] = ()) -> None:
    """A box with lines of text, centred in it."""
    x, y, width, height = box
    fill, edge, dashes, thick, corner = KINDS[kind]
    frame = FancyBboxPatch(
        (x, y),
        width,
        height,
        boxstyle=f"round,pad=0,rounding_size={min(corner, height / 2)}",
        facecolor=fill,
        edgecolor=edge,
        linestyle=dashes,
        linewidth=thick,
        zorder=0 if kind == "area" else 1,
    )
    frame.set_gid(kind)
    axes.add_patch(frame)
    rooms = [STYLES[style][3] for style, _ in lines]
    top = y + (height - sum(rooms)) / 2
    for line, room in zip(lines, rooms, strict=True):
        write(axes, x + width / 2, top + room / 2, line, width=width - 10)
        top += room


def arrow(
    axes: Axes, *points: tuple[float, float], colour: str = "#444444", head: bool = True
) -> None:
    """A line through the points, with a head at the last one."""
    axes.add_patch(
        FancyArrowPatch(
            path=Path(points),
            arrowstyle="-|>,head_length=5,head_width=2.6" if head else "-",
            linewidth=1.6,
            color=colour,
            joinstyle="miter",
            capstyle="butt",
            shrinkA=0,
            shrinkB=0,
            zorder=0.5,
        )
    )


def legend(axes: Axes, x: float, y: float, entries: Sequence[tuple[str, str]]) -> None:
    """Small boxes with their meaning, from left to right: (kind, meaning)."""
    for kind, meaning in entries:
        block(axes, (x, y - 7, 22, 14), kind)
        drawn = write(axes, x + 29, y, ("text", meaning), ha="left")
        x += 29 + width_of(drawn) + 24


def number(value: float) -> str:
    """A number in few digits: two decimals, or two digits where it is very small or large."""
    plain = value == 0 or 0.01 <= abs(value) < 10_000
    return f"{value:z.2f}" if plain else f"{value:.2g}"


class Facts:
    """Shapes and means of a batch as text; letters and no means where there is no batch."""

    def __init__(self, batch: Rollout | None) -> None:
        if batch is not None and not isinstance(batch, Rollout):
            raise ValueError(f"batch is a {type(batch).__name__}; give a Rollout, or None.")
        self.batch = batch
        if batch is not None:
            rows, prompt = batch.prompt_ids.shape
            response = batch.response_ids.shape[1]
            self.sizes = {"B": rows, "P": prompt, "R": response, "T": prompt + response}

    def size(self, letter: str) -> str:
        """One axis of the batch: "B" is 64, or B without a batch."""
        return letter if self.batch is None else str(self.sizes[letter])

    def shape(self, letters: str) -> str:
        """A shape by its letters: "BR" is (64, 28), or (B, R) without a batch."""
        sizes = [self.size(letter) for letter in letters]
        return f"({sizes[0]},)" if len(sizes) == 1 else f"({', '.join(sizes)})"

    def column(self, name: str) -> torch.Tensor:
        """The numbers of a column that count, as one row: (B,), or one per token of `action_mask`.

        Raises:
            ValueError: there is no such column, it has another shape, or a number is not finite.
        """
        batch, fields = self.batch, ("old_logprobs",)
        if batch is None:
            raise ValueError(f"Without a batch there is no column {name!r}; give a Rollout.")
        if name not in (*batch.columns, *fields):
            known = look.quoted(batch.columns) or "none"
            raise ValueError(
                f"The batch has no column {name!r}; its columns are {known}. "
                f"Add it with batch.with_columns({name}=...)."
            )
        values, letters = getattr(batch, name), "B" if name == "scores" else "BR"
        wanted = tuple(self.sizes[letter] for letter in letters)
        if tuple(values.shape) != wanted:
            raise ValueError(
                f"Column {name!r} has shape {tuple(values.shape)}; it must be {wanted}, {letters}."
            )
        values = values.detach().double().cpu()
        if letters == "BR":
            values = values[batch.action_mask.cpu()]
        if not values.numel():
            raise ValueError("The batch has no token that the policy chose: action_mask is False.")
        if not values.isfinite().all():
            raise ValueError(f"Column {name!r} has a value that is NaN or infinite.")
        return values

    def mean(self, name: str) -> str:
        """The mean of a column as text; empty without a batch. Raises as `column`."""
        return "" if self.batch is None else number(self.column(name).mean().item())
