"""The curves of the record overoptimisation: gain against distance, and the law fitted to them."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch

from minirlhf.core.overoptimisation import fit_overoptimisation, overoptimisation_peak
from minirlhf.runtime import check

WAYS = ("best-of-n", "rl")


def gain_curves(
    history: pd.DataFrame, rows: pd.DataFrame, way: str, variants: Sequence[str]
) -> pd.DataFrame:
    """Distance and gain of every recorded point.

        d = sqrt(KL)        gain = score - score of the first policy

    Args:
        history, rows: the records overoptimisation_history and overoptimisation.
        way: "best-of-n" or "rl".
        variants: whose points.

    Returns:
        A row per point: variant, seed, d, gold and proxy (gains), and n or step. A KL that was
        estimated below 0 counts as 0. Best-of-n has the prompts of test films and rl those of
        training, so the two are not points of one curve; the first policy's scores on rl's prompts
        come from one response to each, the same for all seeds.

    Raises:
        ValueError: an unknown way, or a variant without such points.
    """
    check("way", way, way in WAYS, f"one of {', '.join(WAYS)}")
    every = history[history.way == way]
    for name in variants:
        there = (every.variant == name).any()
        check("variant", name, there, f"one with rows of {way} in the record")
    points = every[every.variant.isin(variants)].copy()
    points["d"] = points.kl.clip(lower=0) ** 0.5
    keys = pd.MultiIndex.from_frame(points[["variant", "seed"]])
    if way == "rl":
        started = rows[["variant", "seed", "start_gold", "start_proxy"]]
        first = started.rename(columns={"start_gold": "gold", "start_proxy": "proxy"})
    else:
        first = points[points.n == 1]
    first = first.set_index(["variant", "seed"])
    for column in ("gold", "proxy"):
        points[column] -= first[column][keys].to_numpy()
    which = "n" if way == "best-of-n" else "step"
    return points[["variant", "seed", which, "d", "gold", "proxy"]].reset_index(drop=True)


def fitted_curves(
    history: pd.DataFrame,
    rows: pd.DataFrame,
    way: str,
    variants: Sequence[str],
    *,
    min_d: float = 1.0,
    draws: int = 500,
) -> pd.DataFrame:
    """The law fitted to the gold curves, and the peak that was observed.

    Of best-of-n one curve is fitted, the mean over seeds and films. The ends _low and _high are a
    95 % interval: seeds and films are drawn anew `draws` times, and each draw is fitted. Of rl each
    seed is fitted alone, because the seeds reach different distances. alpha and beta are the means
    of these fits, peak is that of these means, and the ends are the range of the fits: three seeds
    are too few for an interval.

    Args:
        history, rows, way, variants: as in `gain_curves`.
        min_d: the smallest distance of a point that is fitted.

    Returns:
        A row per variant: alpha, beta and peak (the distance at which the fitted curve is highest;
        infinity where it never turns), each with its ends _low and _high; observed_peak, the
        distance of the highest mean gain among the points; observed_gain, that gain; max_d, the
        largest distance; share_peaked, the share of the draws (of rl: of the seeds) whose fitted
        peak lies before max_d (of rl: before the largest distance of that seed).

    Raises:
        ValueError: fewer than two points of a variant reach min_d, or `draws` is below 1.
    """
    check("draws", draws, draws >= 1, "at least 1")
    points = gain_curves(history, rows, way, variants)
    table = {}
    for name in variants:
        own = points[points.variant == name]
        mean = own.groupby("n" if way == "best-of-n" else "step")[["d", "gold"]].mean()
        reach = own[own.d >= min_d].groupby("seed").d.nunique()
        if len(reach) < own.seed.nunique() or reach.min() < 2:
            raise ValueError(
                f"min_d is {min_d:g}, and {name!r} has fewer than two points of {way} beyond it: "
                f"its largest distance is {own.d.max():.2f}. Give a smaller min_d."
            )
        if way == "best-of-n":
            whole, *drawn = _drawn_best_of_n(history[history.variant == name], draws)
            middle, ends = _fit(*whole, way, min_d), [0.025, 0.975]
        else:
            drawn = [(run.d.to_numpy(), run.gold.to_numpy()) for _, run in own.groupby("seed")]
            middle, ends = None, [0, 1]
        furthest = [d.max() for d, _ in drawn]
        fits = [_fit(*curve, way, min_d) for curve in drawn]
        alpha, beta = middle or np.mean(fits, axis=0)
        peaks = [overoptimisation_peak(*each, form=way) for each in [(alpha, beta), *fits]]
        values = np.column_stack([fits, peaks[1:]])
        row: dict[str, float] = {"alpha": alpha, "beta": beta, "peak": peaks[0]}
        for i, column in enumerate([*row]):
            low, high = np.quantile(values[:, i], ends, method="nearest")
            row |= {f"{column}_low": low, f"{column}_high": high}
        best = mean.gold.idxmax()
        row |= {"observed_peak": mean.d[best], "observed_gain": mean.gold[best]}
        row |= {"max_d": mean.d.max(), "share_peaked": (values[:, 2] < furthest).mean()}
        table[name] = row
    return pd.DataFrame.from_dict(table, orient="index").rename_axis("variant")


def _drawn_best_of_n(history: pd.DataFrame, draws: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(d, gain) of each n above 1: once of all seeds and films, then of drawn ones."""
    points = history[history.way == "best-of-n"].sort_values(["seed", "n"])
    seeds, tries = points.seed.nunique(), points.n.nunique()
    gold = np.array(points.gold_by_prompt.tolist()).reshape(seeds, tries, -1)
    d = np.sqrt(points.kl.to_numpy()[:tries])
    generator = np.random.default_rng(0)
    for draw in range(draws + 1):
        some, films = (
            generator.integers(n, size=n) if draw else np.arange(n) for n in (seeds, gold.shape[2])
        )
        mean = gold[some][:, :, films].mean((0, 2))
        yield d[1:], mean[1:] - mean[0]


def _fit(d: np.ndarray, gain: np.ndarray, way: str, min_d: float) -> tuple[float, float]:
    """alpha and beta of the points with a distance of at least min_d."""
    fitted = d >= min_d
    return fit_overoptimisation(torch.tensor(d[fitted]), torch.tensor(gain[fitted]), form=way)
