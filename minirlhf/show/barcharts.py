"""Values by name, or by group and name, as bars."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from minirlhf.show import look

HATCHES = ("", "//", "..", "\\\\", "xx", "--")  # bars of a group, told apart in grey print


def bars(
    values: Mapping | pd.Series | pd.DataFrame,
    *,
    intervals: Mapping | None = None,
    label: str = "",
    title: str = "",
    reference: Mapping | float | None = None,
    limits: tuple | None = None,
    horizontal: bool | None = None,
    stacked: bool = False,
    order: Iterable[str] | None = None,
) -> Figure:
    """Values as bars by name, or by group and name.

    `bars({"SFT": 0.4, "PPO": 1.4})` draws a bar per name. `bars({"planted digit": {"value": 0.3,
    ...}, "own error": {...}})` draws a group of bars per outer name, and the inner names have
    colours and a legend. A value may be a list of several runs: the bar is their mean and each run
    is a dot.

    Args:
        values: name -> value, or group -> name -> value; a pandas Series (two index levels are
            groups) or a DataFrame (a row is a group, a column a name). A DataFrame with columns low
            and high, such as that of `experiments.mean_over_seeds`, is one bar per row: its first
            column, with the interval from low to high.
        intervals: (low, high) under the same keys; missing ones are not drawn.
        label: what is measured, with its unit.
        reference: name -> place of a line across all bars, or one number.
        limits: the two ends of the axis of values.
        horizontal: names at the left. By default where they would not fit below.
        stacked: the values of a group are parts of one bar, one after the other.
        order: all names of the lesson, so that each keeps its colour.

    Raises:
        ValueError: there is nothing to draw, a value is not finite, an interval does not hold
            low <= high, a DataFrame with low and high comes with other intervals, or what is to be
            stacked has no groups, has intervals, is negative, or is a list of runs.
    """
    if isinstance(values, pd.DataFrame) and {"low", "high"} <= set(values.columns):
        if intervals is not None:
            raise ValueError("This table has columns low and high; leave `intervals` out.")
        values, intervals = _bars_and_ends(values)
    groups, grouped = _groups(values)
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    ends = _intervals(intervals or {}, groups, grouped)
    if stacked:
        _check_parts(groups, grouped, ends)
    style = look.styles(names, order)
    if not grouped and len(names) > len(look.COLOURS):  # the axis names them; colours would repeat
        style = dict.fromkeys(names, look.Style(look.COLOURS[0], "o", "-"))
    ticks = list(groups) if grouped else names
    if horizontal is None:
        horizontal = len(ticks) > 8 or max(map(len, ticks)) > 70 / len(ticks)
    with look.page():
        across = len(ticks) if stacked else max(len(ticks), len(groups) * len(names))
        size = (6.4, min(max(1.3 + 0.27 * across, 2.2), 10)) if horizontal else (6.4, 3.4)
        figure = look.new_figure(*size)
        axes = figure.add_subplot()
        thick = 0.8 / len(names) if grouped and not stacked else 0.7
        start = dict.fromkeys(groups, 0.0)  # where the next part of a stacked bar begins
        for rank, name in enumerate(names):
            for place, group in enumerate(groups):
                if name in groups[group]:
                    shift = (rank - (len(names) - 1) / 2) * thick
                    at = place + shift if grouped else rank
                    at = place if stacked else at
                    content = (groups[group][name], ends.get((group, name)), start[group])
                    hatch = HATCHES[rank % len(HATCHES)] if grouped else ""
                    _bar(axes, at, thick, name, content, style[name], hatch, horizontal)
                    start[group] += stacked * content[0].mean()
        _bar_axes(axes, ticks, label, limits, reference, horizontal)
        axes.set_title(title)
        handles, labels = look.handles_of([axes])
        keep = [i for i, text in enumerate(labels) if grouped or text not in style]
        if keep:
            look.legend_above(figure, [handles[i] for i in keep], [labels[i] for i in keep])
    return figure


def _bars_and_ends(table: pd.DataFrame) -> tuple[pd.Series, dict]:
    """The first column, and (low, high) under the same keys; rows without an interval have none."""
    ends: dict = {}
    for key, low, high in zip(table.index, table["low"], table["high"], strict=True):
        if pd.notna(low) and pd.notna(high):
            if isinstance(key, tuple):
                ends.setdefault(key[0], {})[key[1]] = (low, high)
            else:
                ends[key] = (low, high)
    return table.iloc[:, 0], ends


def _groups(values: Mapping | pd.Series | pd.DataFrame) -> tuple[dict, bool]:
    """group -> name -> (runs,), and whether groups were given."""
    if isinstance(values, pd.DataFrame):
        values = {row: dict(cells.dropna()) for row, cells in values.iterrows()}
    elif isinstance(values, pd.Series):
        nested: dict = {}
        for key, value in values.items():
            group, name = key if isinstance(key, tuple) else (None, key)
            nested.setdefault(group, {})[name] = value
        values = nested.get(None, nested)
    if not isinstance(values, Mapping) or not values:
        raise ValueError("bars needs a dict, Series or DataFrame with at least one value.")
    grouped = isinstance(next(iter(values.values())), Mapping)
    groups = values if grouped else {"": values}
    if not all(isinstance(group, Mapping) and group for group in groups.values()):
        raise ValueError("bars needs either a value for every name or a dict of values for all.")
    return {
        str(group): {
            str(name): np.atleast_1d(look.finite(value, f"The value of {name!r}"))
            for name, value in cells.items()
        }
        for group, cells in groups.items()
    }, grouped


def _intervals(intervals: Mapping, groups: dict, grouped: bool) -> dict[tuple, tuple]:
    nested = intervals if grouped else {"": intervals}
    result = {}
    for group, cells in nested.items():
        for name, ends in cells.items():
            key = (str(group), str(name))
            if key[1] not in groups.get(key[0], {}):
                raise ValueError(f"There is an interval for {name!r} but no value.")
            ends = look.finite(ends, f"The interval of {name!r}")
            if ends.shape != (2,) or ends[0] > ends[1]:
                raise ValueError(f"The interval of {name!r} must be (low, high) with low <= high.")
            result[key] = tuple(ends)
    return result


def _check_parts(groups: dict, grouped: bool, ends: dict) -> None:
    single = all(
        len(runs) == 1 and runs[0] >= 0 for cells in groups.values() for runs in cells.values()
    )
    if not grouped or ends or not single:
        raise ValueError("Only groups of single values of at least 0, without intervals, stack.")


def _bar(
    axes: Axes,
    at: float,
    thick: float,
    name: str,
    content: tuple,
    style: look.Style,
    hatch: str,
    horizontal: bool,
) -> None:
    runs, interval, start = content
    mean = runs.mean()
    draw = axes.barh if horizontal else axes.bar
    draw(
        at,
        mean,
        thick * 0.92,
        start,
        color=style.colour,
        edgecolor=look.DARK,
        hatch=hatch,
        hatchcolor="white",
        linewidth=0.4,
        label=name,
    )
    if interval is not None:
        ends = np.array([[mean - interval[0]], [interval[1] - mean]])
        spot = (mean, at) if horizontal else (at, mean)
        errors: dict[str, Any] = {"xerr": ends} if horizontal else {"yerr": ends}
        axes.errorbar(*spot, **errors, linestyle="none", capsize=3, ecolor=look.DARK)
    if len(runs) > 1:
        spots = (runs, [at] * len(runs)) if horizontal else ([at] * len(runs), runs)
        axes.plot(*spots, "o", markersize=3.6, markerfacecolor="white", markeredgecolor=look.DARK)


def _bar_axes(
    axes: Axes,
    ticks: list[str],
    label: str,
    limits: tuple | None,
    reference: Mapping | float | None,
    horizontal: bool,
) -> None:
    places = range(len(ticks))
    if horizontal:
        axes.set_yticks(places, [look.wrapped(tick, 34) for tick in ticks])
        axes.set(xlabel=label, xlim=limits, ylim=(len(ticks) - 0.4, -0.6))
        axes.grid(False, axis="y")
        look.reference_lines(axes, None, reference)
    else:
        axes.set_xticks(places, [look.wrapped(tick, 70 // len(ticks)) for tick in ticks])
        axes.set(ylabel=label, ylim=limits)
        axes.grid(False, axis="x")
        look.reference_lines(axes, reference)
