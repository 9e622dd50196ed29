"""Variants against baseline runs: differences with intervals, and how far repeats scatter."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import t as student_t

from minirlhf.show import look

BLUE = look.COLOURS[0]  # of all variants but the baseline, which is grey
BAND = "#d9d9d9"
MEAN: dict[str, Any] = {
    "marker": "o",
    "markersize": 7.5,
    "markeredgecolor": look.DARK,
    "markeredgewidth": 0.6,
    "linestyle": "none",
}
NAMED = 40  # characters: baseline runs with longer names are called "baseline"


@dataclass(frozen=True)
class Difference:
    """One variant against the baseline runs: its runs, their mean, and the difference of the means.

    `low` and `high` bound the 95 % interval of the difference; both are None where there is none.
    """

    variant: str
    runs: tuple[float, ...]
    mean: float
    difference: float
    low: float | None
    high: float | None


def difference_of_means(
    runs: Sequence[float], baseline: Sequence[float]
) -> tuple[float, float | None, float | None]:
    """mean(runs) - mean(baseline), and its 95 % interval by Welch's t-test.

        se^2 = s_a^2 / n_a + s_b^2 / n_b          interval = difference +- t(0.975, df) se
        df   = se^4 / [ (s_a^2 / n_a)^2 / (n_a - 1) + (s_b^2 / n_b)^2 / (n_b - 1) ]

    s^2 is the variance with n - 1. The two groups may scatter differently. With fewer than two
    runs on either side, or without any scatter, there is no interval: (difference, None, None).

    Source: Welch 1947.
    """
    a, b = np.asarray(runs, float), np.asarray(baseline, float)
    difference = float(a.mean() - b.mean())
    if min(len(a), len(b)) < 2:
        return difference, None, None
    parts = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    if sum(parts) == 0:
        return difference, None, None
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / (len(a) - 1) + parts[1] ** 2 / (len(b) - 1))
    half = float(student_t.ppf(0.975, freedom)) * math.sqrt(sum(parts))
    return difference, difference - half, difference + half


def differences(
    df: look.Records,
    *,
    value: str,
    by: str = "variant",
    repeats: Sequence[str] | str | None = None,
    variants: Iterable[str] | str | None = None,
    intervals: Mapping[str, tuple[float, float]] | pd.DataFrame | None = None,
    interval_of: str | None = None,
    label: str | None = None,
    title: str = "",
    sort: bool = False,
) -> Figure:
    """A row per variant: how far its runs are from the baseline runs.

    **What is compared.** The baseline runs are all runs of all variants named in `repeats`: runs
    with the same settings. Zero on the axis is their mean. For every variant the figure shows

    - each run (seed) as a small circle, at its value minus the mean of the baseline runs;
    - the mean of the runs as a large circle, grey for the baseline and blue for all others;
    - the interval of the difference as a bar;
    - the numbers at the right: mean, difference [low, high].

    The **grey band** reaches from the lowest to the highest baseline run. A variant whose runs lie
    inside the band may differ from the baseline by luck only.

    **The interval** is `difference_of_means` (Welch) over runs. It says how the difference would
    vary with other seeds. Runs are not paired by seed: two runs with the same seed and other
    settings soon sample other tokens. It says nothing about other prompts, since all runs answer
    the same ones. Where that matters, pass `intervals` that were computed over prompts, or over
    prompts and seeds.

    Args:
        df: rows with columns `variant`, `seed` and the one named by `value`; a row per run.
        by: the column that names the variants, if it is not `variant`.
        repeats: the variants of the baseline runs; the first variant of the data by default.
        variants: which variants to draw beside the baseline; all by default.
        intervals: variant -> (low, high) of the difference, drawn instead of Welch's. Or a table
            with the variants as index and columns low and high, as
            `experiments.difference_over_prompts_and_seeds` returns it; its column `difference`
            must then be the difference from the same baseline. A variant that has none (or NaN)
            is drawn without an interval.
        interval_of: what the intervals are, for the legend; given exactly if `intervals` is.
        label: what is measured, with its unit; the column's name by default.
        sort: variants from the lowest to the highest mean; the order of the data by default.

    Raises:
        ValueError: no rows, a column is missing, a value is not finite, a variant of `repeats`,
            `variants` or `intervals` is not in the data, one seed of a variant stands in two
            rows, two variants of `repeats` hold the same runs, or the intervals have another
            baseline.
    """
    if (intervals is None) != (interval_of is None):
        raise ValueError(
            "`intervals` and `interval_of` belong together: interval_of says in the legend what "
            'the intervals are, for example "95 % interval over prompts and seeds".'
        )
    table, baseline = difference_table(
        df, value=value, by=by, repeats=repeats, variants=variants, intervals=intervals
    )
    if sort:
        first = len(baseline)  # the baseline stays on top
        table = table[:first] + sorted(table[first:], key=lambda row: row.mean)
    centre = float(np.mean([run for runs in baseline.values() for run in runs]))
    with look.page():
        figure = look.new_figure(7.6, min(1.15 + 0.33 * len(table), 14))
        axes = figure.add_subplot()
        _scatter_band(axes, baseline, centre)
        for place, row in enumerate(table):
            colour = look.GREY if row.variant in baseline else BLUE
            _difference_row(axes, place, row, centre, colour)
        axes.set_yticks(range(len(table)), [look.wrapped(row.variant, 34) for row in table])
        axes.set_ylim(len(table) - 0.4, -1.25)
        axes.grid(False, axis="y")
        names, runs, mark = _baseline_in_words(baseline)
        axes.set_xlabel(f"{label or value}, difference from the mean of {names}")
        numbers = axes.secondary_yaxis("right")
        texts = [_in_numbers(row, baseline, _digits(table), mark) for row in table]
        numbers.set_yticks([-0.9, *range(len(table))], ["mean, difference", *texts])
        numbers.tick_params(length=0, labelsize=look.SIZES["note"])
        numbers.spines["right"].set_visible(False)
        if all(row.low is None for row in table):
            interval_of = ""
        elif interval_of is None:
            interval_of = "95 % interval over seeds"
        _difference_legend(figure, interval_of, runs, title)
    return figure


def difference_table(
    df: look.Records,
    *,
    value: str,
    by: str = "variant",
    repeats: Sequence[str] | str | None = None,
    variants: Iterable[str] | str | None = None,
    intervals: Mapping[str, tuple[float, float]] | pd.DataFrame | None = None,
) -> tuple[list[Difference], dict[str, tuple[float, ...]]]:
    """The numbers behind `differences`.

    Returns:
        (a row per variant, the baseline's first; the baseline runs by variant).
    """
    frame = look.frame_of(df, [by, "seed", value])
    look.no_missing_name(frame, [by, "seed"])
    look.no_gaps(frame, by, value)
    look.one_row_each(frame, [by, "seed"])
    runs = {
        str(name): {
            seed: float(run) for seed, run in group.sort_values("seed")[["seed", value]].values
        }
        for name, group in frame.groupby(by, sort=False)
    }
    repeats = look.names_of(repeats or next(iter(runs)))
    chosen = list(runs) if variants is None else look.names_of(variants)
    given = _ends_by_variant(intervals)
    for name in [*repeats, *chosen, *(given or {})]:
        if name not in runs:
            raise ValueError(f"There is no variant {name!r}; there are {look.quoted(runs)}.")
    _check_repeats_differ({name: runs[name] for name in repeats})
    baseline = {name: tuple(runs[name].values()) for name in repeats}
    pooled = [run for each in baseline.values() for run in each]
    rows = []
    for name in [*repeats, *(name for name in chosen if name not in repeats)]:
        values = tuple(runs[name].values())
        difference, low, high = difference_of_means(values, pooled)
        if name in baseline:
            low = high = None  # a part of the baseline is not compared with itself
        elif given is not None:
            low, high = given.get(name, (None, None))
        rows.append(Difference(name, values, float(np.mean(values)), difference, low, high))
    if isinstance(intervals, pd.DataFrame):
        _check_same_baseline(rows, baseline, intervals)
    return rows, baseline


def _ends_by_variant(
    intervals: Mapping[str, tuple[float, float]] | pd.DataFrame | None,
) -> dict[str, tuple[float, float]] | None:
    """variant -> (low, high) as given; a missing interval is (None, None)."""
    if isinstance(intervals, pd.DataFrame):
        look.frame_of(intervals, ["low", "high"])
        intervals = {
            str(name): ends
            for name, *ends in zip(
                intervals.index, intervals["low"], intervals["high"], strict=True
            )
        }
    if intervals is None:
        return None
    found: dict[str, tuple] = {}
    for name, (low, high) in intervals.items():
        if math.isnan(low) or math.isnan(high):
            found[name] = (None, None)
        elif low > high:
            raise ValueError(f"The interval of {name!r} must be (low, high) with low <= high.")
        else:
            found[name] = (float(low), float(high))
    return found


def _check_repeats_differ(repeats: dict[str, dict]) -> None:
    """Refuse two variants that hold the same runs, which would count twice."""
    for one, other in itertools.combinations(repeats, 2):
        both = repeats[one].keys() & repeats[other].keys()
        if both and all(repeats[one][seed] == repeats[other][seed] for seed in both):
            raise ValueError(
                f"{one!r} and {other!r} have the same values at the same seeds: they are the same "
                "runs, so name only one of them in `repeats`."
            )


def _check_same_baseline(rows: list[Difference], baseline: dict, intervals: pd.DataFrame) -> None:
    """Refuse intervals of differences from other runs than those that are drawn."""
    if "difference" not in intervals:
        return
    given = {str(name): float(x) for name, x in intervals["difference"].items()}
    scale = max(abs(run) for row in rows for run in row.runs)
    for row in rows:
        wanted = given.get(row.variant, row.difference)
        if row.variant not in baseline and not abs(wanted - row.difference) <= 1e-5 * scale:
            raise ValueError(
                f"`intervals` has {wanted:.4g} as the difference of {row.variant!r}, and the "
                f"figure {row.difference:.4g}: they have another baseline. Give the table the "
                f"baseline {list(baseline)}."
            )


def _scatter_band(axes: Axes, baseline: dict, centre: float) -> None:
    runs = [run - centre for each in baseline.values() for run in each]
    axes.axvspan(min(runs), max(runs), color=BAND, linewidth=0, zorder=0)
    axes.axvline(0, color="#666666", linewidth=1, zorder=1)


def _difference_row(axes: Axes, place: int, row: Difference, centre: float, colour: str) -> None:
    if row.low is not None and row.high is not None:
        axes.plot([row.low, row.high], [place] * 2, color=look.DARK, linewidth=1.4, zorder=2)
        axes.plot([row.low, row.high], [place] * 2, "|", color=look.DARK, markersize=7, zorder=2)
    axes.plot(
        [run - centre for run in row.runs],
        [place + 0.31] * len(row.runs),  # below the mean, which they would hide
        "o",
        markersize=4,
        markerfacecolor="white",
        markeredgecolor=look.DARK,
        markeredgewidth=0.9,
        linestyle="none",
        zorder=4,
    )
    axes.plot(row.difference, place, color=colour, zorder=3, **MEAN)


def _digits(table: list[Difference]) -> int:
    """Decimals in which the differences between the variants, and every bound, can be seen."""
    means = [row.mean for row in table]
    size = max(means) - min(means) or max(map(abs, means)) or 1.0
    digits = min(max(math.ceil(-math.log10(size / 50)), 0), 6)  # a fiftieth of their range
    bounds = [end for row in table for end in (row.low, row.high) if end is not None]
    return look.decimals(bounds, digits)


def _in_numbers(row: Difference, baseline: dict, digits: int, mark: str) -> str:
    """Mean, difference and interval; for the baseline its mean and `mark`."""
    mean = f"{row.mean:z.{digits}f}"
    if row.variant in baseline:
        return f"{mean}  {mark}".rstrip()
    text = f"{mean}  {row.difference:+z.{digits}f}"
    if row.low is None:
        return text
    return f"{text} [{row.low:+z.{digits}f}, {row.high:+z.{digits}f}]"


def _baseline_in_words(baseline: dict) -> tuple[str, str, str]:
    """What axis, legend and rows call the baseline runs: by their names if these are short.

    "'a' and 'b'", "6 runs of 'a' and 'b'" and ""; or, if the names are long,
    "the baseline runs", "6 baseline runs" and "baseline". One run has no range for the legend.
    """
    count, names = sum(map(len, baseline.values())), " and ".join(map(repr, baseline))
    short = len(names) <= NAMED
    runs = f"{count} runs of {names}" if short else f"{count} baseline runs"
    runs = runs if count > 1 else ""
    return (names, runs, "") if short else ("the baseline runs", runs, "baseline")


def _difference_legend(figure: Figure, interval_of: str, runs: str, title: str) -> None:
    axes = figure.axes[0]
    white: dict[str, Any] = {
        "markerfacecolor": "white",
        "markeredgecolor": look.DARK,
        "linestyle": "none",
    }
    (run,) = axes.plot([], [], "o", markersize=4.5, **white)
    (mean,) = axes.plot([], [], color=BLUE, **MEAN)
    handles: list[Artist] = [run, mean]
    labels = ["one run", "mean of the runs"]
    if interval_of:
        (line,) = axes.plot([], [], "-|", color=look.DARK)
        handles, labels = [*handles, line], [*labels, interval_of]
    if runs:
        band = axes.fill_between([], [], color=BAND)
        handles, labels = [*handles, band], [*labels, f"range of the {runs}"]
    look.legend_above(figure, handles, labels, title)
