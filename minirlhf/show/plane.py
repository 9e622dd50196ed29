"""Score against KL: methods as points, and one method at several settings or steps as a curve."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from minirlhf.show import look

CROWDED = 12  # a path with more points has a mark at its end only, and no bars


def frontier(
    data: look.Records,
    *,
    x: str = "kl",
    y: str = "gold",
    by: str = "variant",
    curves: Mapping[str, Sequence] | None = None,
    along: str | None = None,
    log: bool = False,
    xlabel: str = "KL to the reference, nats per response",
    ylabel: str | None = None,
    title: str = "",
    order: Iterable[str] | None = None,
) -> Figure:
    """Score against KL: higher is better, and further right is further from the reference.

    A point per value of `by`. If several rows (seeds) have that value, the point is their mean,
    and the bars reach from the lowest to the highest of them in both directions. A single row has
    bars from its columns `<x>_low`, `<x>_high`, `<y>_low` and `<y>_high`, where the data has
    them.

    Args:
        data: rows with the columns x, y and by: a DataFrame or a list of dicts.
        curves: name -> the values of `by` whose points are joined in the given order, as one
            method at several settings. The points of a curve share its name and colour.
        along: a column (for example "step"): every value of `by` is then a curve along it,
            through the mean over the seeds at each of its values.
        log: a logarithmic KL axis.
        order: all names of the lesson, so that each keeps its colour.

    Raises:
        ValueError: no rows, a column is missing, a value is not finite, a curve names a value of
            `by` that is not in the data, a KL of 0 or below on a log axis, a row without `by`, or
            two rows of the same `by` and seed (and `along`).
    """
    keys = [by, *([along] if along else [])]
    frame = look.frame_of(data, [x, y, *keys])
    if along:
        frame = frame[frame[x].notna() & frame[y].notna()]  # metrics logged at some steps only
        look.frame_of(frame, [])
    for column in (x, y):
        look.no_gaps(frame, by, column)
    if "seed" in frame:
        keys.append("seed")
    look.no_missing_name(frame, keys)
    if "seed" in frame:
        look.one_row_each(frame, keys)
    curves = {name: look.names_of(members) for name, members in (curves or {}).items()}
    if log:
        look.above_zero(frame[x].to_numpy(float), f"Column {x!r}")
    paths = _paths(frame, x, y, by, along, curves)
    style = look.styles(paths, order)
    with look.page():
        many = len(paths) > 6  # then the legend has its own column at the right
        figure = look.new_figure(7.6 if many else 6.4, max(4.2, 0.6 + 0.22 * len(paths)))
        axes = figure.add_subplot()
        for name, points in paths.items():
            _path(axes, name, points, style[name], joined=bool(along) or name in curves)
        axes.set(xlabel=xlabel, ylabel=ylabel or y, title=title)
        if log:
            axes.set_xscale("log")
            look.plain_ticks(axes.xaxis)
        handles, labels = look.handles_of([axes])
        handles = [drawn.lines[0] for drawn in handles]  # the mark alone, without its bars
        labels = [look.wrapped(name, 26) for name in labels]
        if many:
            figure.legend(handles, labels, loc="outside right upper", labelspacing=0.6)
        else:
            axes.legend(handles, labels, handlelength=2.8)
        if note := _spread_note(frame, by, along):
            figure.supxlabel(note, fontsize=look.SIZES["note"], color="#555555")
    return figure


def _paths(
    frame: pd.DataFrame, x: str, y: str, by: str, along: str | None, curves: Mapping
) -> dict[str, list[dict]]:
    """Name in the legend -> its points."""
    groups = {str(name): group for name, group in frame.groupby(by, sort=False)}
    if along:
        return {
            name: [_point(rows, x, y) for _, rows in group.groupby(along)]
            for name, group in groups.items()
        }
    joined = {str(member): str(name) for name, members in curves.items() for member in members}
    for member, name in joined.items():
        if member not in groups:
            raise ValueError(f"Curve {name!r} needs {member!r}, which the data does not have.")
    paths = {
        str(name): [_point(groups[str(member)], x, y) for member in members]
        for name, members in curves.items()
    }
    return paths | {
        name: [_point(group, x, y)] for name, group in groups.items() if name not in joined
    }


def _point(rows: pd.DataFrame, x: str, y: str) -> dict:
    """Mean, low and high of both columns."""
    point = {}
    for key, column in (("x", x), ("y", y)):
        values = rows[column].astype(float)
        ends = [f"{column}_low", f"{column}_high"]
        point[key] = float(values.mean())
        if len(values) > 1:
            point |= {f"{key}_low": float(values.min()), f"{key}_high": float(values.max())}
        elif set(ends) <= set(rows) and rows[ends].notna().all(axis=None):
            point |= dict(
                zip((f"{key}_low", f"{key}_high"), map(float, rows[ends].iloc[0]), strict=True)
            )
    return point


def _path(axes: Axes, name: str, points: list[dict], style: look.Style, *, joined: bool) -> None:
    across, up = [point["x"] for point in points], [point["y"] for point in points]
    errors: dict[str, Any] = {}
    for key, where in (("x", across), ("y", up)):
        if all(f"{key}_low" in point for point in points):
            low = [at - point[f"{key}_low"] for at, point in zip(where, points, strict=True)]
            high = [point[f"{key}_high"] - at for at, point in zip(where, points, strict=True)]
            errors[f"{key}err"] = np.maximum([low, high], 0)
    many = len(points) > CROWDED
    axes.errorbar(
        across,
        up,
        **({} if many else errors),
        color=style.colour,
        marker=style.marker,
        markevery=[len(points) - 1] if many else None,  # the end of the path
        markersize=6.5,
        markeredgecolor=look.DARK,
        markeredgewidth=0.5,
        linestyle=style.dashes if joined else "none",
        linewidth=1.6,
        elinewidth=1,
        capsize=2,
        label=name,
    )


def _spread_note(frame: pd.DataFrame, by: str, along: str | None) -> str:
    rows = frame.groupby([by, along] if along else by).size()
    if rows.max() == 1:
        return ""
    low, high = rows.min(), rows.max()
    count = f"{low}" if low == high else f"{low} to {high}"
    bars = "" if along and frame[along].nunique() > CROWDED else "; bars: lowest to highest"
    where = f" at each {along}; the mark is the last {along}" if along and not bars else ""
    return f"mean of {count} runs{where}{bars}"
