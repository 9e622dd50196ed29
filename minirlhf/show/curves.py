"""Curves of a run, bands over several, and the plane of reward against KL."""

from matplotlib.figure import Figure

COLOURS = ("#3b6fb6", "#d95f02", "#4d9221", "#7b3294", "#666666", "#c51b7d")
MARKERS = "osD^vP"


def curves(histories, metrics: list[str], *, stage: str, columns: int = 3, labels: dict[str, str] | None = None) -> Figure:
    """Small multiples of metrics over steps. Several histories (seeds) are drawn as their mean and their range.

    Args:
        histories: rows of one run, or a list of such lists. metrics: keys of the rows; those that no row has are left out.
    """
    runs = histories if histories and isinstance(histories[0], list) else [histories]
    metrics = [m for m in metrics if any(m in row for row in runs[0] if row["stage"] == stage)]
    count = len(metrics)
    lines = -(-count // columns)
    figure = Figure(figsize=(3.3 * min(columns, count), 2.3 * lines), dpi=110, layout="constrained")
    for index, metric in enumerate(metrics):
        axes = figure.add_subplot(lines, min(columns, count), index + 1)
        series = [[row[metric] for row in run if row["stage"] == stage and metric in row] for run in runs]
        steps = list(zip(*series, strict=False))  # cut to the shortest run
        axes.plot([sum(values) / len(values) for values in steps], color=COLOURS[0])
        if len(runs) > 1:
            axes.fill_between(range(len(steps)), [min(v) for v in steps], [max(v) for v in steps], color=COLOURS[0], alpha=0.2)
        axes.set_title((labels or {}).get(metric, metric), fontsize=9.5)
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
    return figure


def reward_kl_plane(points: list[dict], *, ylabel: str = "gold score") -> Figure:
    """Each method as a point: KL to the reference, nats a sequence, against its score with its interval.

    Args:
        points: dicts with label, kl, score and, if known, low and high.
    """
    figure = Figure(figsize=(6, 3.8), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    for index, point in enumerate(points):
        style = {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)], "markersize": 7}
        error = [[point["score"] - point["low"]], [point["high"] - point["score"]]] if "low" in point else None
        axes.errorbar(point["kl"], point["score"], yerr=error, linestyle="none", capsize=3, label=point["label"], **style)
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
        points.append({"label": method, "kl": sum(row["kl"] for row in group) / len(group), "score": sum(scores) / len(scores),
                       "low": min(scores), "high": max(scores)})
    return points
