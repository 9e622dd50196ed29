"""Colours, markers, fonts and legends that all figures share, and checks of what is drawn.

**Colours.** `COLOURS` can be told apart by colour-blind readers. Every name also has its own
marker and line style, so that a figure still reads in grey print. A name gets its style from
`styles`:

1. SFT, the reference and other starting points are grey (`REFERENCES`). In a figure with nothing
   else the second one is black.
2. PPO, DPO, GRPO, RLOO and REINFORCE each have a fixed place in the list (`PLACES`), and so has
   the optimum.
3. All other names take the places that are left, in the order in which they first appear in the
   data.

So that a variant keeps its colour in a figure that draws a part of the variants only, pass the
full list as `order=` to every figure of a lesson.

**Page.** The background is opaque white and the text is dark, whatever style the reader's
matplotlib has.
"""

import io
import textwrap
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import matplotlib.style
import matplotlib.ticker
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure

Numbers = torch.Tensor | np.ndarray | Iterable | float  # whatever `numbers` can read
Records: TypeAlias = pd.DataFrame | Iterable[dict]  # a DataFrame, a History or a list of dicts

COLOURS = ("#1f6fb4", "#e07b00", "#0b6e4f", "#a50f15", "#56b4e9", "#332288")
MARKERS = "osD^vPX"
DASHES = ("-", "--", "-.", ":", (0, (6, 1.5)))
GREY, DARK = "#8c8c8c", "#222222"
REFERENCES = ("sft", "reference", "ref", "start", "base", "base model", "initial policy")
PLACES = {"ppo": 0, "dpo": 1, "grpo": 2, "rloo": 3, "reinforce": 4, "optimum": 5}
SIZES = {"title": 10, "label": 9, "tick": 8.5, "legend": 8.5, "note": 8}


@dataclass(frozen=True)
class Style:
    """How one name is drawn: colour, marker and line style."""

    colour: str
    marker: str
    dashes: str | tuple


def styles(names: Iterable, order: Iterable | None = None) -> dict[str, Style]:
    """The style of every name, by the three rules at the top of this file.

    Args:
        names: the names that are drawn, in the order of the data.
        order: all names of the lesson; a name keeps its style when others are not drawn.
    """
    listed = list(dict.fromkeys(map(str, [*names_of(order or ()), *names])))
    fixed: dict[str, int] = {}
    for name in listed:
        place = PLACES.get("optimum" if name.startswith("optimum") else name.lower())
        if place is not None and place not in fixed.values():
            fixed[name] = place
    free = (place for place in range(len(listed) + len(PLACES)) if place not in fixed.values())
    alone = all(name.lower() in REFERENCES for name in listed)
    result, references = {}, 0
    for name in listed:
        if name.lower() in REFERENCES:  # a second one, such as SFT beside base, has other dashes
            result[name] = Style(
                DARK if alone and references else GREY,
                MARKERS[references % len(MARKERS)],
                DASHES[references % len(DASHES)],
            )
            references += 1
            continue
        place = fixed[name] if name in fixed else next(free)
        result[name] = Style(
            COLOURS[place % len(COLOURS)],
            MARKERS[place % len(MARKERS)],
            DASHES[place % len(DASHES)],
        )
    return result


def page() -> AbstractContextManager:
    """Fonts and colours of all figures, as a context; afterwards the reader's settings are back."""
    return matplotlib.style.context(
        {
            "font.size": SIZES["label"],
            "axes.titlesize": SIZES["title"],
            "axes.labelsize": SIZES["label"],
            "xtick.labelsize": SIZES["tick"],
            "ytick.labelsize": SIZES["tick"],
            "legend.fontsize": SIZES["legend"],
            "legend.frameon": False,
            "text.color": DARK,
            "axes.labelcolor": DARK,
            "xtick.color": DARK,
            "ytick.color": DARK,
            "axes.edgecolor": "#666666",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "text.parse_math": False,  # names of models and columns may hold a "$"
            "axes.axisbelow": True,
            "axes.grid": True,
            "grid.color": "#e2e2e2",
            "grid.linewidth": 0.8,
        },
        after_reset=True,
    )


class Picture(Figure):
    """A matplotlib Figure that a notebook shows by itself, without `%matplotlib inline`."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=self.dpi)
        return file.getvalue()


def new_figure(
    width: float, height: float, *, layout: Literal["constrained"] | None = "constrained"
) -> Figure:
    """An empty figure on opaque white, in inches. No pyplot state."""
    return Picture(figsize=(width, height), dpi=110, facecolor="white", layout=layout)


def numbers(values: Numbers, what: str) -> np.ndarray:
    """Values as a float64 array: lists, tensors (also with gradients), arrays or columns.

    Raises:
        ValueError: something is no number, there are no values, or none of them is finite.
    """
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().double().numpy()
    elif isinstance(values, Iterable):
        values = [v.detach().cpu().numpy() if isinstance(v, torch.Tensor) else v for v in values]
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} holds something that is not a number: {error}.") from None
    if not array.size:
        raise ValueError(f"{what} has no values.")
    if not np.isfinite(array).any():
        raise ValueError(f"{what} has no finite number.")
    return array


def finite(values: Numbers, what: str) -> np.ndarray:
    """As `numbers`, and every value is finite."""
    array = numbers(values, what)
    if not np.isfinite(array).all():
        raise ValueError(f"{what} has a value that is NaN or infinite.")
    return array


def frame_of(data: Records, columns: Iterable[str]) -> pd.DataFrame:
    """Records as a DataFrame: a DataFrame, a History or a list of dicts.

    Raises:
        ValueError: there are no rows, or a column is missing.
    """
    frame = data if isinstance(data, pd.DataFrame) else pd.DataFrame(list(data))
    if frame.empty:
        raise ValueError("There are no rows to draw.")
    missing = [name for name in columns if name not in frame]
    if missing:
        known = quoted(frame.columns)
        raise ValueError(f"The data has no column {missing[0]!r}; its columns are {known}.")
    return frame


def no_gaps(frame: pd.DataFrame, name_column: str, column: str) -> None:
    """Refuse a column that has no finite number in some row, and name the first such row."""
    values = pd.to_numeric(frame[column], errors="coerce")
    bad = frame.loc[~np.isfinite(values), name_column]
    if len(bad):
        raise ValueError(
            f"Column {column!r} has no finite number in {len(bad)} of {len(frame)} rows; "
            f"the first is of {str(bad.iloc[0])!r}."
        )


def no_missing_name(frame: pd.DataFrame, columns: Iterable[str]) -> None:
    """Refuse rows without a value in one of these columns, which tell rows apart."""
    for column in columns:
        if missing := int(frame[column].isna().sum()):
            raise ValueError(
                f"Column {column!r} has no value in {missing} of {len(frame)} rows; "
                "leave these rows out or fill them in."
            )


def one_row_each(frame: pd.DataFrame, keys: list[str]) -> None:
    """Refuse two rows with the same values of `keys`, and name the first such group."""
    twice = frame[frame.duplicated(keys)]
    if len(twice):
        row = twice[keys].astype(object).iloc[0]
        group = ", ".join(f"{key} {value!r}" for key, value in row.items())
        raise ValueError(
            f"There are two rows of {group}; "
            "name in `by` the column that tells them apart, or keep one experiment's rows."
        )


def names_of(names: str | Iterable) -> list:
    """Names as a list; a single string is one name."""
    return [names] if isinstance(names, str) else list(names)


def quoted(names: Iterable) -> str:
    """Names for an error message: 'a', 'b'."""
    return ", ".join(repr(str(name)) for name in names)


def decimals(bounds: Iterable[float], digits: int, most: int = 4) -> int:
    """At least `digits` decimals, and more until no bound of an interval is rounded to 0.

    So that an interval that excludes 0 does not seem to reach it. At most `most` decimals; bounds
    that would be 0 even then do not count.
    """
    seen = [bound for bound in bounds if round(bound, most)]
    while digits < most and any(not round(bound, digits) for bound in seen):
        digits += 1
    return digits


def above_zero(values: np.ndarray, what: str) -> None:
    """Refuse values that a log axis cannot show."""
    if (values[np.isfinite(values)] <= 0).any():
        raise ValueError(f"{what} has values of 0 or below, which a log axis cannot show.")


def wrapped(name: object, width: int = 30) -> str:
    """A long name on several lines."""
    return textwrap.fill(str(name), width, break_long_words=False) or " "


def plain_ticks(axis: Axis) -> None:
    """Ticks of a log axis as 0.1, 1, 10 instead of powers of ten, where they are short."""
    axis.set_major_formatter(matplotlib.ticker.FuncFormatter(_short))
    axis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    low, high = sorted(axis.get_view_interval())
    if low > 0 and high / low < 300:  # about two decades: label 2 and 5 as well
        axis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1.0, 2.0, 5.0)))


def _short(value: float, _position: int | None = None) -> str:
    return f"{value:g}" if 1e-4 < abs(value) < 1e6 else f"{value:.0e}"


def legend_above(figure: Figure, handles: list, labels: list[str], title: str = "") -> None:
    """A legend above the axes, and the title above it (the axes keep their height)."""
    if not labels:
        figure.suptitle(title, fontsize=SIZES["title"])
        return
    longest = max(map(len, labels))
    fitting = int(figure.get_figwidth() * 13 / (longest + 6))  # about 13 characters an inch
    columns = max(1, min(len(labels), fitting))
    rows = -(-len(labels) // columns) + bool(title)
    figure.set_figheight(figure.get_figheight() + 0.2 * rows)
    figure.legend(
        handles,
        labels,
        loc="outside upper center",
        ncols=columns,
        handlelength=2.8,
        title=title or None,
        title_fontsize=SIZES["title"],
    )


def handles_of(axes_list: Iterable[Axes]) -> tuple[list, list[str]]:
    """Every label once, with its first handle."""
    found: dict[str, object] = {}
    for axes in axes_list:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    return list(found.values()), list(found)


def for_panel(option: Any, panel: str, panels: Mapping) -> Any:
    """An option that holds for all panels, or a dict with one entry per panel title."""
    if isinstance(option, dict) and option and set(option) <= set(panels):
        return option.get(panel)
    return option


def reference_lines(
    axes: Axes, horizontal: Mapping | float | None, vertical: Mapping | float | None = None
) -> None:
    """Grey lines across the axes: name -> place, or one number without a name.

    Every named line has its own dashes and stands in the legend.
    """
    dashes = [(0, (1, 1.5)), (0, (4, 2)), (0, (4, 2, 1, 2)), (0, (8, 2))]
    drawn = []
    for draw, places in ((axes.axhline, horizontal), (axes.axvline, vertical)):
        if isinstance(places, Mapping):
            drawn += [(draw, name, place) for name, place in places.items()]
        elif places is not None:
            draw(float(places), color="#555555", linewidth=0.9)
    for index, (draw, name, place) in enumerate(drawn):
        style = dashes[index % len(dashes)]
        draw(float(place), color="#555555", linewidth=1.3, linestyle=style, label=str(name))
