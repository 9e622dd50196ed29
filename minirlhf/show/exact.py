"""The exact world drawn: a policy as bars over its sequences, and walks to the optimum."""

import torch
from matplotlib.figure import Figure

from minirlhf.show.curves import COLOURS

STYLES = ("-", "--", ":", "-.")


def policy_bars(labels: list[str], policies: dict, *, rewards=None) -> Figure:
    """The probability of every sequence under each policy; with `rewards`, the reward as a line of numbers above."""
    count, upright = (
        len(policies),
        60 if len(labels) > 16 else 0,
    )  # many labels are turned, so that the picture fits a page
    figure = Figure(
        figsize=(min(max(6, 0.5 * len(labels)), 10), 3.2), dpi=110, layout="constrained"
    )
    axes = figure.add_subplot()
    top = 0.0
    for index, (name, probs) in enumerate(policies.items()):
        heights = [float(p) for p in probs]
        top = max(top, *heights)
        offset = (index - (count - 1) / 2) * 0.8 / count
        axes.bar(
            [i + offset for i in range(len(labels))],
            heights,
            0.8 / count,
            label=name,
            color=COLOURS[index % len(COLOURS)],
        )
    if rewards is not None:
        for i, reward in enumerate(rewards):
            axes.text(
                i,
                top * 1.06,
                f"{float(reward):+z.1f}",
                ha="center",
                fontsize=7.5,
                color="#444444",
                rotation=upright,
            )
        axes.text(-1, top * 1.06, "r", ha="center", fontsize=8, style="italic")
    axes.set(xlim=(-1.4, len(labels) - 0.4), ylim=(0, top * (1.22 if upright else 1.16)))
    axes.set_xticks(range(len(labels)), labels, family="monospace", fontsize=8, rotation=upright)
    axes.set_ylabel("probability")
    figure.legend(loc="outside upper center", ncols=count, fontsize=8, frameon=False)
    return figure


def distance_to_optimum(
    walks: dict[str, list[float]], *, ylabel: str = "KL(optimum || policy), nats"
) -> Figure:
    """Each walk's distance to pi* by step, on a log scale: a straight line down is a walk that arrives."""
    figure = Figure(figsize=(6, 3.2), dpi=110, layout="constrained")
    _distances(figure.add_subplot(), walks, ylabel)
    return figure


def trajectories(paths: dict, target) -> Figure:
    """Walks of policies to an optimum: left as lines in the plane that holds most of the motion, right their distance to it.

        KL(target || policy) = sum_y target(y) [log target(y) - log policy(y)]

    The plane is spanned by the first two principal components of the probabilities around the target; with three sequences it is
    the whole simplex. A dot begins each walk, the star is the target.

    Args:
        paths: name -> (K, N) probabilities of all N sequences at K steps. target: (N,) probabilities.
    """
    paths = {name: torch.as_tensor(path, dtype=torch.float64) for name, path in paths.items()}
    target = torch.as_tensor(target, dtype=torch.float64)
    _, spread, directions = torch.linalg.svd(
        torch.cat([path - target for path in paths.values()]), full_matrices=False
    )
    shares = spread.square() / spread.square().sum()
    figure = Figure(figsize=(9, 3.6), dpi=110, layout="constrained")
    plane, right = figure.subplots(1, 2)
    for index, (name, path) in enumerate(paths.items()):
        x, y = ((path - target) @ directions[:2].T).T
        plane.plot(
            x,
            y,
            label=name,
            color=COLOURS[index % len(COLOURS)],
            linestyle=STYLES[index % len(STYLES)],
        )
        plane.plot(x[0], y[0], "o", color=COLOURS[index % len(COLOURS)], markersize=5)
    plane.plot(0, 0, "*", color="black", markersize=12, label="optimum", linestyle="none")
    plane.set_xlabel(f"1st component ({shares[0]:.0%} of the motion)")
    plane.set_ylabel(f"2nd component ({shares[1]:.0%})")
    plane.grid(alpha=0.3)
    plane.legend(fontsize=8, frameon=False)
    entropy_term = torch.xlogy(target, target).sum()
    _distances(
        right,
        {name: entropy_term - torch.xlogy(target, path).sum(1) for name, path in paths.items()},
        "KL(optimum || policy), nats",
    )
    return figure


def _distances(axes, walks: dict, ylabel: str) -> None:
    for index, (name, distances) in enumerate(walks.items()):
        axes.semilogy(
            [max(float(d), 1e-16) for d in distances],
            label=name,
            color=COLOURS[index % len(COLOURS)],
            linestyle=STYLES[index % len(STYLES)],
        )
    axes.set_xlabel("step")
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, frameon=False)
