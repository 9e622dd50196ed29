"""Series over a common axis: lines, bands, reference lines."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from minirlhf.show import look

MARKED = 16  # a line of up to this many points has a marker at each


def lines(
    series: Mapping,
    x: look.Numbers | Mapping | None = None,
    *,
    bands: Mapping | None = None,
    spread: tuple[float, float] = (0.0, 1.0),
    xlabel: str = "",
    ylabel: str | dict[str, str] = "",
    title: str = "",
    log: str | dict[str, str] = "",
    reference: Mapping | float | None = None,
    vertical: Mapping[str, float] | None = None,
    xlim: tuple | None = None,
    ylim: tuple | dict[str, tuple] | None = None,
    names: str = "legend",
    order: Iterable[str] | None = None,
) -> Figure:
    """Series over a common axis, one line per name, side by side in panels if wanted.

    One panel: `lines({"clip": y, "no clip": z}, x)`. Several: `lines({"bias": {"V": b}, "noise":
    {"V": n}}, x)`, a dict per panel title. `bands`, `ylabel`, `log`, `reference` and `ylim` may be
    dicts by panel title.

    Args:
        series: name -> values. Values in two dimensions are (runs, points): the line is the mean
            over the runs, the band reaches from one quantile of the runs to another.
        x: (points,) for all series, or name -> (points,). 0, 1, 2, ... by default.
        bands: name -> (low, high), where the values are in one dimension.
        spread: the two quantiles of the runs that bound the band; (0, 1) is the range.
        log: which axes are logarithmic: "x", "y" or "xy".
        reference: name -> height of a horizontal line. vertical: name -> place of a vertical line.
        names: "legend", or "end" to write each name at the end of its line.
        order: all names of the lesson, so that each keeps its colour.

    Raises:
        ValueError: there is nothing to draw, lengths differ, a band belongs to no series, or a log
            axis gets values of 0 or below.
    """
    if not isinstance(series, Mapping) or not series:
        raise ValueError("lines needs a dict of at least one name and its values.")
    if names not in ("legend", "end"):
        raise ValueError(f'names is {names!r}; it must be "legend" or "end".')
    nested = isinstance(next(iter(series.values())), Mapping)
    panels = series if nested else {title: series}
    drawn = {
        panel: _series_of(content, x, _bands_of(bands or {}, panel, panels), spread)
        for panel, content in panels.items()
    }
    style = look.styles([name for content in drawn.values() for name in content], order)
    with look.page():
        width = 6.4 if len(panels) == 1 else min(3.7 * len(panels), 11)
        figure = look.new_figure(width, 3.2)
        grid = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (panel, content) in zip(grid, drawn.items(), strict=True):
            scale = look.for_panel(log, panel, panels) or ""
            for name, each in content.items():
                _line(axes, name, each, style[name], scale)
            look.reference_lines(axes, look.for_panel(reference, panel, panels), vertical)
            axes.set(xlabel=xlabel, ylabel=look.for_panel(ylabel, panel, panels) or "", title=panel)
            _scales(axes, scale, content)
            _limits(axes, xlim, look.for_panel(ylim, panel, panels))
        _name_lines(figure, grid, drawn, style, names, title if nested else "")
        _say_what_bands_are(figure, drawn, spread)
    return figure


@dataclass(frozen=True)
class Series:
    """One line: its points, its band (or None), and how many runs it is the mean of."""

    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None
    high: np.ndarray | None
    runs: int


def _series_of(
    content: Mapping, x: look.Numbers | Mapping | None, bands: Mapping, spread: tuple
) -> dict[str, Series]:
    """name -> Series, with equal lengths."""
    if not isinstance(content, Mapping) or not content:
        raise ValueError("A panel needs a dict of at least one name and its values.")
    return {
        str(name): _one_series(str(name), values, _x_of(name, x), bands.get(name), spread)
        for name, values in content.items()
    }


def _bands_of(bands: Mapping, panel: str, panels: Mapping) -> Mapping:
    """The bands of one panel. They are given panel by panel if all values are dicts."""
    by_panel = bool(bands) and all(isinstance(each, Mapping) for each in bands.values())
    known = panels if by_panel else {name for content in panels.values() for name in content}
    _only_known(bands, known)
    if not by_panel:
        return bands
    own = bands.get(panel, {})
    _only_known(own, panels[panel])
    return own


def _only_known(bands: Mapping, known: Iterable) -> None:
    if unknown := [name for name in bands if name not in known]:
        names = ", ".join(map(str, known))
        raise ValueError(f"bands has {unknown[0]!r}; it must name one of {names}.")


def _x_of(name: str, x: look.Numbers | Mapping | None) -> look.Numbers | None:
    if not isinstance(x, Mapping):
        return x
    if name not in x:
        raise ValueError(f"There is no x for series {name!r}.")
    return x[name]


def _one_series(
    name: str, values: look.Numbers, x: look.Numbers | None, band: tuple | None, spread: tuple
) -> Series:
    values = look.numbers(values, f"Series {name!r}")
    if values.ndim not in (1, 2):
        raise ValueError(f"Series {name!r} has {values.ndim} dimensions; it must have 1 or 2.")
    runs, y = (len(values), values.mean(0)) if values.ndim == 2 else (1, values)
    low = high = None
    if band is not None:
        low, high = (look.numbers(side, f"The band of {name!r}") for side in band)
    elif runs > 1:
        low, high = np.quantile(values, spread, axis=0)
    x = np.arange(len(y)) if x is None else look.finite(x, f"The x of {name!r}")
    for what, part in (("x values", x), ("lower ends", low), ("upper ends", high)):
        if part is not None and part.shape != y.shape:
            raise ValueError(f"Series {name!r} has {len(y)} points but {np.size(part)} {what}.")
    return Series(x, y, low, high, runs if band is None else 1)


def _line(axes: Axes, name: str, series: Series, style: look.Style, scale: str) -> None:
    if "y" in scale:
        look.above_zero(series.y, f"Series {name!r}")
    if "x" in scale:
        look.above_zero(series.x, f"The x of {name!r}")
    axes.plot(
        series.x,
        series.y,
        color=style.colour,
        linestyle=style.dashes,
        linewidth=2,
        marker=style.marker if len(series.x) <= MARKED else None,
        markersize=5,
        label=name,
    )
    if series.low is not None and series.high is not None:
        ends: dict[str, Any] = {"color": style.colour, "alpha": 0.15, "linewidth": 0}
        axes.fill_between(series.x, series.low, series.high, **ends)


def _scales(axes: Axes, scale: str, content: Mapping) -> None:
    places = np.unique(np.concatenate([np.asarray(each.x, float) for each in content.values()]))
    whole = (places == np.round(places)).all()
    gaps = np.diff(places)
    if "x" in scale:
        axes.set_xscale("log")
        look.plain_ticks(axes.xaxis)
    elif whole:
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    even = not whole and len(gaps) > 0 and np.allclose(gaps, gaps[0])
    if len(places) <= 8 and ("x" in scale or even):  # few points: a tick at each
        axes.set_xticks(places, [f"{place:g}" for place in places])
    if "y" in scale:
        axes.set_yscale("log")
        look.plain_ticks(axes.yaxis)


def _limits(axes: Axes, x: tuple | None, y: tuple | None) -> None:
    if x is not None:
        axes.set_xlim(x)
    if y is not None:
        axes.set_ylim(y)


def _name_lines(
    figure: Figure, grid: Iterable[Axes], drawn: dict, style: dict, names: str, title: str
) -> None:
    """The names of the lines, and in words what the bands are."""
    handles, labels = look.handles_of(grid)
    if names == "end":
        for axes, content in zip(grid, drawn.values(), strict=True):
            _write_at_the_ends(figure, axes, content, style)
    elif len(labels) == 1 and labels[0] in style:  # one line needs no legend
        handles, labels = [], []
    shown = [i for i, label in enumerate(labels) if names == "legend" or label not in style]
    if shown or title:
        look.legend_above(figure, [handles[i] for i in shown], [labels[i] for i in shown], title)


def _say_what_bands_are(figure: Figure, drawn: dict, spread: tuple) -> None:
    runs = {each.runs for content in drawn.values() for each in content.values()} - {1}
    if runs:
        note = _band_note(sorted(runs), spread)
        figure.supxlabel(note, fontsize=look.SIZES["note"], color="#555555")


def _band_note(runs: list[int], spread: tuple) -> str:
    line = f"line: mean of {' or '.join(map(str, runs))} runs"
    if tuple(spread) == (0.0, 1.0):
        return f"{line}; band: lowest to highest"
    return f"{line}; band: from {spread[0]:.0%} to {spread[1]:.0%} of the runs"


def _write_at_the_ends(figure: Figure, axes: Axes, content: Mapping, style: dict) -> None:
    """Each name right of its line's last point; names that would overlap are moved apart."""
    to_axes = axes.transScale + axes.transLimits
    ends = []
    for name, series in content.items():
        last = np.flatnonzero(np.isfinite(series.y))[-1]
        ends.append((to_axes.transform((series.x[last], series.y[last]))[1], name))
    gap = 1.35 * look.SIZES["legend"] / 72 / (0.75 * figure.get_figheight())
    heights = spaced([height for height, _ in ends], gap)
    for (_, name), height in zip(ends, heights, strict=True):
        axes.text(
            1.015,
            height,
            name,
            color=style[name].colour,
            transform=axes.transAxes,
            va="center",
            fontsize=look.SIZES["legend"],
        )


def spaced(places: list[float], gap: float) -> list[float]:
    """Places moved as little as needed so that neighbours are at least `gap` apart.

    Their order stays. Places that are too close form a block around their common mean.
    """
    order = sorted(range(len(places)), key=lambda i: places[i])
    blocks: list[list] = []  # [sum of wanted first places, members]
    for i in order:
        blocks.append([places[i], [i]])
        while len(blocks) > 1 and _start(blocks[-2]) + gap * len(blocks[-2][1]) > _start(
            blocks[-1]
        ):
            wanted, members = blocks.pop()
            shift = gap * len(blocks[-1][1])
            blocks[-1][0] += wanted - shift * len(members)
            blocks[-1][1] += members
    result = [0.0] * len(places)
    for block in blocks:
        for rank, i in enumerate(block[1]):
            result[i] = _start(block) + rank * gap
    return result


def _start(block: list) -> float:
    return block[0] / len(block[1])
