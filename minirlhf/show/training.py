"""Curves of training runs: one small panel per metric, seeds as a band."""

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from minirlhf.show import look

UNITS = {  # titles of the panels; a metric without an entry has its own name
    "kl": "kl, nats per response",
    "kl_per_token": "kl_per_token, nats",
    "entropy": "entropy, nats per token",
    "length": "length, tokens",
    "logps/chosen": "logps/chosen, nats",
    "logps/rejected": "logps/rejected, nats",
}


def curves(
    data: look.Records | list[list[dict]],
    *,
    stage: str | None = None,
    columns: Iterable[str] | str,
    by: str | None = "variant",
    across: int = 3,
    x: str = "step",
    labels: Mapping[str, str] | None = None,
    order: Iterable[str] | None = None,
) -> Figure:
    """Metrics over the steps of training: a panel per metric, the mean and the range of the seeds.

    Args:
        data: a DataFrame of histories (a row per step; with a column `seed` if there are several
            runs), a History, or a list of Histories, one per run.
        stage: which rows: "sft", "reward", "ppo", "dpo", ...; all rows by default.
        columns: the metrics, one panel each.
        by: the column that tells lines apart, if the data has it: a line and a band per value.
        across: panels in a row. x: the column of the horizontal axis.
        labels: metric -> title of its panel, instead of the metric's name and unit.
        order: all names of the lesson, so that each keeps its colour.

    Only steps that every run of a line has are drawn, so that a mean never changes its runs
    half-way. A metric that is logged at every tenth step has a point at each of those.

    Raises:
        ValueError: no rows of that stage, a metric that no row has, a row without `by` or seed,
            two rows of one run at one step, or runs without a common step.
    """
    columns = list(dict.fromkeys(look.names_of(columns)))
    if not columns:
        raise ValueError("curves needs at least one metric in `columns`.")
    frame = _history_frame(data, stage, x)
    absent = [name for name in columns if name not in frame or not frame[name].notna().any()]
    if absent:
        where = f"No row of stage {stage!r}" if stage else "No row"
        raise ValueError(f"{where} has {' or '.join(map(repr, absent))}.")
    named = by in frame and frame[by].notna().any() if by else False
    look.no_missing_name(frame, [*([by] if by and named else []), "seed"])
    groups = dict(list(frame.groupby(by, sort=False))) if named else {"": frame}
    style = look.styles(groups, order)
    many, across = len(groups) > 1, min(across, len(columns))
    with look.page():
        rows = -(-len(columns) // across)
        figure = look.new_figure(max(3.1 * across, 4.6), 2.2 * rows + 0.2)
        for index, metric in enumerate(columns, 1):
            axes = figure.add_subplot(rows, across, index)
            for name, group in groups.items():
                _band(axes, group, metric, x, str(name), style[str(name)])
            axes.set_title((labels or UNITS).get(metric, metric), fontsize=look.SIZES["label"])
            if index > len(columns) - across:
                axes.set_xlabel(x)
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        if many:
            look.legend_above(figure, *look.handles_of(figure.axes))
        _say_what_is_drawn(figure, groups)
    return figure


def _history_frame(
    data: look.Records | list[list[dict]], stage: str | None, x: str
) -> pd.DataFrame:
    """The rows of the stage, with a column `seed`: in a list of runs, the number of the run."""
    if not isinstance(data, pd.DataFrame):
        data = list(data)
        if data and isinstance(data[0], list):
            data = [row | {"seed": run} for run, rows in enumerate(data) for row in rows]
    frame = look.frame_of(data, [x, *(["stage"] if stage else [])])
    if stage:
        known = list(frame["stage"].unique())
        frame = frame[frame["stage"] == stage]
        if frame.empty:
            raise ValueError(f"No row of stage {stage!r}; there are {look.quoted(known)}.")
    return frame if "seed" in frame else frame.assign(seed=0)


def _band(
    axes: Axes, group: pd.DataFrame, metric: str, x: str, name: str, style: look.Style
) -> None:
    """One line: the mean over the runs at the steps that all of them have, and their range."""
    rows = group[group[metric].notna()]
    if rows.empty:
        return
    if rows.duplicated([x, "seed"]).any():
        raise ValueError(
            f"Two rows of one run have the same {x} and both have {metric!r}; "
            "choose one stage, or name in `by` the column that tells the runs apart."
        )
    table = rows.pivot(index=x, columns="seed", values=metric).dropna().astype(float)
    if table.empty:
        raise ValueError(f"The runs have no common {x} at which {metric!r} is logged.")
    marker = style.marker if len(table) < 12 else None
    look_of: dict[str, Any] = {"color": style.colour, "linestyle": style.dashes, "linewidth": 1.8}
    axes.plot(table.index, table.mean(axis=1), marker=marker, markersize=4, label=name, **look_of)
    if table.shape[1] > 1:
        low, high = table.min(axis=1), table.max(axis=1)
        axes.fill_between(table.index, low, high, color=style.colour, alpha=0.18, linewidth=0)


def _say_what_is_drawn(figure: Figure, groups: dict) -> None:
    """In words, below the panels: how many runs there are and what the band is."""
    seeds = {group["seed"].nunique() for group in groups.values()}
    if max(seeds) > 1:
        low, high = min(seeds), max(seeds)
        count = f"{low}" if low == high else f"{low} to {high}"
        note = f"line: mean of {count} runs; band: lowest to highest"
        figure.supxlabel(note, fontsize=look.SIZES["note"], color="#555555")
