"""The exact world drawn: its tree of prefixes, its policies, and paths to the optimum."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from minirlhf.core.exact import World
from minirlhf.show import look
from minirlhf.show.series import lines

LARGEST = 40  # sequences that fit a page


def world(
    world: World,
    policies: Mapping[str, torch.Tensor] | None = None,
    *,
    beta: float | None = None,
    tree: str | None = None,
    title: str = "",
) -> Figure:
    """The tree of all prefixes at the left, the probability of every sequence at the right.

    Each row is one finished sequence. Every branch of the tree is labelled with its token and the
    probability of that token after its prefix; its width grows with the probability of coming
    there. The bars are the sequence's probability under each policy. The column r is its reward.

    Args:
        world: at most 40 sequences. policies: name -> (S, V) logits; the reference by default.
        beta: also draw the optimal policy of this KL coefficient, as "optimum, beta = ...".
        tree: the name of the policy whose probabilities stand in the tree; the first one by
            default.

    Raises:
        ValueError: the world is too large, a table of logits has the wrong shape or is not
            finite, or no policy has the name `tree`.
    """
    count = len(world.sequences)
    if count > LARGEST:
        raise ValueError(f"This world has {count} sequences; at most {LARGEST} fit a figure.")
    tables = dict(policies or {"reference": world.ref_logits})
    if beta is not None:
        if not beta > 0:
            raise ValueError(f"beta is {beta}; it must be above 0.")
        tables[f"optimum, beta = {beta:g}"] = world.gibbs_logits(beta=beta)
    shape = (len(world.states), len(world.vocab))
    for name, logits in tables.items():
        found = look.finite(logits, f"The logits of {name!r}").shape
        if found != shape:
            raise ValueError(f"The logits of {name!r} have shape {found}; this world has {shape}.")
    tree = next(iter(tables)) if tree is None else tree
    if tree not in tables:
        raise ValueError(f"There is no policy {tree!r}; there are {look.quoted(tables)}.")
    tables = {
        name: torch.as_tensor(logits, device="cpu").detach() for name, logits in tables.items()
    }
    with look.page():
        high = 0.24 + 0.07 * len(tables)
        figure = look.new_figure(8.2, max(0.95 + high * count, 2.4))
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1.25, 1))
        _tree(left, world, tables[tree])
        left.set_title(f"next-token probabilities: {tree}")
        _sequence_bars(right, world, tables)
        left.set_ylim(count - 0.4, -0.9)
        if len(tables) > 1 or title:
            look.legend_above(figure, *look.handles_of([right]), title)
    return figure


def _tree(axes: Axes, world: World, logits: torch.Tensor) -> None:
    """Prefixes from left to right; a finished sequence ends in its own row."""
    rows = {sequence: row for row, sequence in enumerate(world.sequences)}
    heights: dict[tuple[int, ...], float] = dict(rows)
    # longest first: a prefix stands in the middle of its children
    for state in reversed(world.states):
        children = [heights[(*state, word)] for word in range(len(world.vocab))]
        heights[state] = (min(children) + max(children)) / 2
    reach: dict[tuple[int, ...], float] = {(): 1.0}
    for state, probs in zip(world.states, logits.softmax(-1).tolist(), strict=True):
        for word, probability in enumerate(probs):
            child = (*state, word)
            reach[child] = reach[state] * probability
            _branch(axes, state, child, heights, reach[child], world.vocab[word], probability)
    for sequence, row in rows.items():
        if len(sequence) < world.max_length:  # a dotted line leads to the row's end
            axes.plot(
                [len(sequence), world.max_length], [row] * 2, ":", color="#cccccc", linewidth=1
            )
    axes.plot(0, heights[()], "o", color=look.DARK, markersize=5)
    axes.text(-0.06, heights[()], "start", ha="right", va="center", fontsize=look.SIZES["tick"])
    axes.set_xlim(-0.42, world.max_length + 0.02)
    axes.axis("off")


def _branch(
    axes: Axes,
    state: tuple[int, ...],
    child: tuple[int, ...],
    heights: dict[tuple[int, ...], float],
    reach: float,
    word: str,
    probability: float,
) -> None:
    start, end = len(state), len(child)
    axes.plot(
        [start, start + 0.32, end],
        [heights[state], heights[child], heights[child]],
        color=look.COLOURS[0],
        linewidth=0.6 + 5 * reach,
        solid_joinstyle="round",
        alpha=0.55,
    )
    axes.text(
        start + 0.37,
        heights[child],
        f"{word}  {probability:.2f}",
        fontsize=look.SIZES["note"],
        va="center",
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.9},
    )


def _sequence_bars(axes: Axes, world: World, tables: Mapping) -> None:
    style, thick = look.styles(tables), 0.8 / len(tables)
    hatches = ("", "", "////", "....")
    largest = 0.0
    for rank, (name, logits) in enumerate(tables.items()):
        probs = world.probs(logits).tolist()
        largest = max(largest, *probs)
        shift = (rank - (len(tables) - 1) / 2) * thick
        axes.barh(
            [row + shift for row in range(len(probs))],
            probs,
            thick * 0.94,
            color=style[name].colour,
            edgecolor="white",
            hatch=hatches[rank % len(hatches)],
            linewidth=0,
            label=name,
        )
    gap = " " if max(map(len, world.vocab)) > 1 else ""
    names = [gap.join(world.vocab[word] for word in sequence) for sequence in world.sequences]
    axes.set_yticks(range(len(names)), names, family="monospace", fontsize=look.SIZES["tick"])
    axes.tick_params(axis="y", length=0, labelleft=True)
    axes.grid(False, axis="y")
    for row, reward in enumerate(world.rewards.tolist()):
        axes.text(largest * 1.22, row, f"{reward:+z.2f}", ha="right", va="center", fontsize=8)
    axes.text(largest * 1.22, -0.75, "r", ha="right", va="center", style="italic", fontsize=9)
    axes.set(xlim=(0, largest * 1.24), xlabel="probability of the response; r: its score")


def policy_bars(
    labels: Sequence[str],
    policies: Mapping,
    *,
    rewards: Sequence[float] | torch.Tensor | None = None,
) -> Figure:
    """The probability of every sequence under each policy, with the rewards above the bars.

    Args:
        labels: the N sequences as text. policies: name -> (N,) probabilities. rewards: (N,).

    Raises:
        ValueError: no policy, or one without N finite probabilities.
    """
    if not policies:
        raise ValueError("policy_bars needs at least one policy.")
    heights = {str(name): look.finite(p, f"Policy {name!r}") for name, p in policies.items()}
    for name, probs in [*heights.items(), ("rewards", rewards if rewards is not None else labels)]:
        if len(probs) != len(labels):
            raise ValueError(f"{name!r} has {len(probs)} numbers for {len(labels)} sequences.")
    count, style = len(heights), look.styles(heights)
    # many labels are turned, so that the figure fits a page
    upright = 60 if len(labels) > 16 else 0
    top = max(probs.max() for probs in heights.values())
    with look.page():
        figure = look.new_figure(min(max(6.0, 0.5 * len(labels)), 10), 3.2)
        axes = figure.add_subplot()
        for index, (name, probs) in enumerate(heights.items()):
            places = [i + (index - (count - 1) / 2) * 0.8 / count for i in range(len(labels))]
            axes.bar(places, probs, 0.8 / count, label=name, color=style[name].colour)
        for i, reward in enumerate([] if rewards is None else rewards):
            text: dict[str, Any] = {"ha": "center", "fontsize": 7.5, "rotation": upright}
            axes.text(i, top * 1.06, f"{float(reward):+z.1f}", **text)
        if rewards is not None:
            axes.text(-1, top * 1.06, "r", ha="center", fontsize=8, style="italic")
        axes.set(xlim=(-1.4, len(labels) - 0.4), ylim=(0, top * (1.22 if upright else 1.16)))
        font: dict[str, Any] = {"family": "monospace", "fontsize": 8, "rotation": upright}
        axes.set_xticks(range(len(labels)), list(labels), **font)
        axes.grid(False, axis="x")
        axes.set_ylabel("probability")
        look.legend_above(figure, *look.handles_of([axes]))
    return figure


def distance_to_optimum(
    walks: Mapping[str, Sequence[float]], *, ylabel: str = "KL(optimum || policy), nats"
) -> Figure:
    """The distance of each path from the optimum by step, on a log scale.

    A straight line is an exponential fall. Distances below 1e-16 are drawn at 1e-16.
    """
    content = {name: look.numbers(path, f"Path {name!r}") for name, path in walks.items()}
    content = {name: path.clip(min=1e-16) for name, path in content.items()}
    return lines(content, xlabel="step", ylabel=ylabel, log="y")
