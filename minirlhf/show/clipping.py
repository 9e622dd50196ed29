"""PPO's clipped objective as a function of the importance ratio."""

import math

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from minirlhf.core.policy_gradient import ppo_clip
from minirlhf.show import look

POINTS = 2001


def clip(
    eps: float = 0.2,
    *,
    clip_eps_high: float | None = None,
    dual_clip: float | None = None,
    largest_ratio: float | None = None,
) -> Figure:
    """What PPO maximises for one token, against the ratio, for A = +1 and A = -1.

    The curve is minus `core.ppo_clip` itself, and its gradient comes from autograd. It is solid
    where the token has a gradient and dashed where it has none. The thin line is ratio times A,
    without clip.

    Args:
        eps, clip_eps_high, dual_clip: as in `ppo_clip`. largest_ratio: the right end of the axis.

    Raises:
        ValueError: a setting that `ppo_clip` refuses, or a right end that hides the clip.
    """
    settings = {"clip_eps": eps, "clip_eps_high": clip_eps_high, "dual_clip": dual_clip}
    one = torch.ones(1, dtype=torch.float64, device="cpu")
    _objective(one, 1.0, settings)  # refuses what ppo_clip refuses
    high = eps if clip_eps_high is None else clip_eps_high
    edge = max(1 + high, dual_clip or 0)
    smallest = max(0.0, 1 - 5 * eps)
    largest = largest_ratio or max(1 + 5 * high, edge + (0.5 if dual_clip else 0))
    if not edge < largest < math.inf:
        raise ValueError(f"largest_ratio is {largest}; it must be above {edge:g} to show the clip.")
    ratios = torch.linspace(smallest, largest, POINTS, dtype=torch.float64, device="cpu")[1:]
    with look.page():
        figure = look.new_figure(7.4, 3.2)
        for axes, advantage in zip(figure.subplots(1, 2), (1.0, -1.0), strict=True):
            objective, gradient = _objective(ratios, advantage, settings)
            axes.plot(ratios, ratios * advantage, color="#aaaaaa", linewidth=1, label="ratio x A")
            _pieces(axes, ratios, objective, gradient == 0)
            here = [1 + high, 1 - eps]
            if advantage < 0:
                here = [1 - eps, *([dual_clip] if dual_clip else []), 1 + high]
            for place in (1.0, *here):
                axes.axvline(place, color="#bbbbbb", linewidth=0.8, linestyle=":")
            ticks = _apart([*here, 1.0, smallest, largest], largest - smallest)
            axes.set_xticks(ticks, [f"{tick:.6g}" for tick in ticks])
            sign, how = (">", "better") if advantage > 0 else ("<", "worse")
            axes.set_title(f"A {sign} 0: the token was {how} than expected")
            axes.set(xlabel="ratio = new probability / old probability", xlim=(smallest, largest))
        figure.axes[0].set_ylabel("objective for |A| = 1 (maximised)")
        look.legend_above(figure, *look.handles_of(figure.axes))
    return figure


def _apart(places: list[float], span: float) -> list[float]:
    """The places whose labels do not overlap; earlier ones first."""
    digit = 0.024 * span  # the width of a digit
    kept: list[float] = []
    for place in places:
        sizes = [len(f"{place:.6g}{other:.6g}") / 2 + 1 for other in kept]
        if all(abs(place - o) >= size * digit for o, size in zip(kept, sizes, strict=True)):
            kept.append(place)
    return sorted(kept)


def _objective(
    ratios: torch.Tensor, advantage: float, settings: dict
) -> tuple[torch.Tensor, torch.Tensor]:
    """(objective, its gradient with respect to the log-probability) at each ratio."""
    logprobs = ratios.log()[:, None].requires_grad_(True)
    old, mask = torch.zeros_like(logprobs), torch.ones_like(logprobs, dtype=torch.bool)
    loss = ppo_clip(logprobs, old, torch.full_like(old, advantage), mask, **settings)
    (slope,) = torch.autograd.grad(loss.sum(), logprobs)
    return -loss.detach()[:, 0], -slope[:, 0]


def _pieces(axes: Axes, ratios: torch.Tensor, objective: torch.Tensor, flat: torch.Tensor) -> None:
    """The curve in stretches with and without gradient."""
    ends = [0, *(torch.nonzero(flat[1:] != flat[:-1])[:, 0] + 1).tolist(), len(ratios)]
    for start, stop in zip(ends, ends[1:], strict=False):
        silent = bool(flat[start])
        part = slice(max(start - 1, 0) if silent else start, stop)  # no gap before a dashed stretch
        axes.plot(
            ratios[part],
            objective[part],
            color=look.COLOURS[1] if silent else look.COLOURS[0],
            linestyle=(0, (2.2, 1.2)) if silent else "-",
            linewidth=2.6,
            label="no gradient (clipped)" if silent else "gradient",
        )
