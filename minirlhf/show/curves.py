"""Curves of a run, bands over several, and the plane of reward against KL."""

import torch
from matplotlib.figure import Figure

COLOURS = ("#3b6fb6", "#d95f02", "#4d9221", "#7b3294", "#666666", "#c51b7d")
MARKERS = "osD^vP"


def curves(
    histories,
    metrics: list[str],
    *,
    stage: str,
    x: str = "step",
    columns: int = 3,
    labels: dict[str, str] | None = None,
) -> Figure:
    """Small multiples of metrics over steps. Several histories (seeds) are drawn as their mean and their range.

    A metric that is measured at some steps only stands at those; of several runs, the steps that all of them have are drawn.

    Args:
        histories: rows of one run, or a list of such lists. metrics: keys of the rows; those that no row has are left out.
        x: the key of the horizontal axis.

    Raises:
        ValueError: nothing to draw.
    """
    runs = histories if histories and isinstance(histories[0], list) else [histories]
    drawn = {}
    for metric in metrics:
        series = [
            {
                row[x]: row[metric]
                for row in run
                if row["stage"] == stage and row.get(metric) is not None
            }
            for run in runs
        ]
        if steps := sorted(set.intersection(*map(set, series))):
            drawn[metric] = (
                steps,
                torch.tensor(
                    [[points[step] for step in steps] for points in series], dtype=torch.float64
                ),
            )
    if not drawn:
        raise ValueError(f"No row of stage '{stage}' has any of {metrics}.")
    columns = min(columns, len(drawn))
    lines = -(-len(drawn) // columns)
    figure = Figure(figsize=(3.3 * columns, 2.3 * lines), dpi=110, layout="constrained")
    for index, (metric, (steps, values)) in enumerate(drawn.items(), 1):
        axes = figure.add_subplot(lines, columns, index)
        axes.plot(steps, values.mean(0), color=COLOURS[0], marker="." if len(steps) < 12 else None)
        if len(runs) > 1:
            axes.fill_between(steps, values.amin(0), values.amax(0), color=COLOURS[0], alpha=0.2)
        axes.set_title((labels or {}).get(metric, metric), fontsize=9.5)
        axes.set_xlabel(x, fontsize=8)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
    if len(runs) > 1:
        figure.suptitle(
            f"{stage}: mean of {len(runs)} runs, band from the lowest to the highest", fontsize=9
        )
    return figure


def reward_kl_plane(points: list[dict], *, ylabel: str = "gold score") -> Figure:
    """Each method as a point: KL to the reference, nats a sequence, against its score with its interval.

    Args:
        points: dicts with label, kl, score and, where known, low and high of the score, kl_low and kl_high of the KL.
    """
    figure = Figure(figsize=(6, 3.8), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    for index, point in enumerate(points):
        style = {
            "color": COLOURS[index % len(COLOURS)],
            "marker": MARKERS[index % len(MARKERS)],
            "markersize": 7,
        }
        height = (
            [[point["score"] - point["low"]], [point["high"] - point["score"]]]
            if "low" in point
            else None
        )
        width = (
            [[point["kl"] - point["kl_low"]], [point["kl_high"] - point["kl"]]]
            if "kl_low" in point
            else None
        )
        axes.errorbar(
            point["kl"],
            point["score"],
            height,
            width,
            linestyle="none",
            capsize=3,
            elinewidth=1,
            label=point["label"],
            **style,
        )
    axes.set_xlabel("KL(policy || SFT), nats a sequence (best-of-n: its bound)")
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, frameon=False)
    return figure


def method_points(rows: list[dict], *, score: str = "gold") -> list[dict]:
    """Recorded rows of several seeds -> one point a method for `reward_kl_plane`: means, and the range of the seeds."""
    points = []
    for method in dict.fromkeys(row["method"] for row in rows):
        group = [row for row in rows if row["method"] == method]
        scores = [row[score] for row in group]
        points.append(
            {
                "label": method,
                "kl": sum(row["kl"] for row in group) / len(group),
                "score": sum(scores) / len(scores),
                "low": min(scores),
                "high": max(scores),
            }
        )
    return points
