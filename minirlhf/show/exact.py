"""The exact world drawn: a policy as bars over its sequences, and walks to the optimum."""

from matplotlib.figure import Figure

from minirlhf.show.curves import COLOURS


def policy_bars(labels: list[str], policies: dict, *, rewards=None) -> Figure:
    """The probability of every sequence under each policy; with `rewards`, the reward as a line of numbers above."""
    count = len(policies)
    figure = Figure(figsize=(max(6, 0.5 * len(labels)), 3.2), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    top = 0.0
    for index, (name, probs) in enumerate(policies.items()):
        heights = [float(p) for p in probs]
        top = max(top, *heights)
        offset = (index - (count - 1) / 2) * 0.8 / count
        axes.bar([i + offset for i in range(len(labels))], heights, 0.8 / count, label=name, color=COLOURS[index % len(COLOURS)])
    if rewards is not None:
        for i, reward in enumerate(rewards):
            axes.text(i, top * 1.06, f"{float(reward):+.1f}", ha="center", fontsize=7.5, color="#444444")
        axes.text(-0.9, top * 1.06, "r", ha="center", fontsize=8, style="italic")
    axes.set_ylim(0, top * 1.16)
    axes.set_xticks(range(len(labels)), labels, family="monospace", fontsize=8, rotation=60 if len(labels) > 16 else 0)
    axes.set_ylabel("probability")
    axes.legend(fontsize=8, frameon=False)
    return figure


def distance_to_optimum(walks: dict[str, list[float]], *, ylabel: str = "KL(optimum || policy), nats") -> Figure:
    """Each walk's distance to pi* by step, on a log scale: a straight line down is a walk that arrives."""
    figure = Figure(figsize=(6, 3.2), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    for index, (name, distances) in enumerate(walks.items()):
        axes.semilogy([max(float(d), 1e-16) for d in distances], label=name, color=COLOURS[index % len(COLOURS)],
                      linestyle=("-", "--", ":", "-.")[index % 4])
    axes.set_xlabel("step")
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, frameon=False)
    return figure
