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
        A row per point: variant, seed, d, gold and proxy (gains), and n or step. The proxies have
        the score 0 at the start, on the prompts of rl. A KL that was estimated below 0 counts as 0.

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
    if way == "rl":
        start = rows.set_index(["variant", "seed"]).start
        keys = pd.MultiIndex.from_frame(points[["variant", "seed"]])
        points["gold"] -= start[keys].to_numpy()
    else:
        first = points[points.n == 1].set_index(["variant", "seed"])
        keys = pd.MultiIndex.from_frame(points[["variant", "seed"]])
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
    least: float = 1.0,
    draws: int = 500,
) -> pd.DataFrame:
    """The law fitted to the gold curves, with 95 % intervals, and the peak that was seen.

    The intervals come from drawing seeds anew, and for best-of-n also films, `draws` times, and
    fitting each time. Three seeds give wide steps, so the intervals of rl are rough.

    Args:
        history, rows, way, variants: as in `gain_curves`.
        least: the smallest distance of a point that is fitted.

    Returns:
        A row per variant: alpha, beta and peak (the distance at which the fitted curve is highest;
        infinity where it never turns), each with its ends _low and _high; seen, the distance of the
        highest mean gain among the points; gain, that gain; farthest, the largest distance; turns,
        the share of the draws in which the fitted peak lies before the largest distance.
    """
    points = gain_curves(history, rows, way, variants)
    table = {}
    for name in variants:
        if way == "best-of-n":
            drawn = _drawn_best_of_n(history[history.variant == name], draws)
        else:
            drawn = _drawn_rl(points[points.variant == name], draws)
        fits = []
        for d, gain in drawn:
            fitted = d >= least
            alpha, beta = fit_overoptimisation(
                torch.tensor(d[fitted]), torch.tensor(gain[fitted]), form=way
            )
            fits.append((alpha, beta, overoptimisation_peak(alpha, beta, form=way)))
        values = np.array(fits)  # the first: every seed and film once
        row: dict[str, float] = {}
        for i, column in enumerate(("alpha", "beta", "peak")):
            low, high = np.quantile(values[1:, i], [0.025, 0.975], method="nearest")
            row |= {column: values[0, i], f"{column}_low": low, f"{column}_high": high}
        own = points[points.variant == name]
        mean = own.groupby("n" if way == "best-of-n" else "step")[["d", "gold"]].mean()
        best = mean.gold.idxmax()
        row |= {"seen": mean.d[best], "gain": mean.gold[best], "farthest": mean.d.max()}
        row["turns"] = float((values[1:, 2] < mean.d.max()).mean())
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


def _drawn_rl(points: pd.DataFrame, draws: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(d, gain) of all steps: once of all seeds, then of drawn ones."""
    of_seed = [(p.d.to_numpy(), p.gold.to_numpy()) for _, p in points.groupby("seed")]
    generator = np.random.default_rng(0)
    for draw in range(draws + 1):
        count = len(of_seed)
        some = generator.integers(count, size=count) if draw else np.arange(count)
        d, gain = zip(*(of_seed[i] for i in some), strict=True)
        yield np.concatenate(d), np.concatenate(gain)
