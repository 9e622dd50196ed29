"""Tables of recorded results: means over seeds, paired differences, and how a lesson shows them.

Every function takes a DataFrame from `results` and returns a DataFrame. A variant is named by the
column `variant`. In the records "tour" and "smollm2" that column is called `method`: pass
`by="method"`.
"""

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pandas as pd
import torch

BRACKETS = {  # first column of a table -> what `with_interval` shows
    "mean": "mean [lowest seed, highest seed]",
    "difference": "difference [95 % interval]",
}


def by_prompt(frame: pd.DataFrame, column: str, *, by: str = "variant") -> pd.DataFrame:
    """One row per run and prompt: `by`, seed, prompt, and `column`.

    Args:
        column: a number that was recorded for every prompt, for example "gold" or "pass_1"; it is
            read from `<column>_by_prompt`, and "gold_by_prompt" means the same. prompt is its
            place in that list, from 0. Every run of an experiment has the same prompts in the same
            order.

    Raises:
        ValueError: the records have no such column, or a variant has two rows of one seed.
    """
    column = _without_ending(column)
    _check_columns(frame, [by, f"{column}_by_prompt"])
    frame = frame.dropna(subset=[f"{column}_by_prompt"])
    _check_one_row_per_seed(frame, [by])
    _check_same_prompts(frame, column, by)
    rows = [
        {by: name, "seed": seed, "prompt": prompt, column: value}
        for name, seed, values in zip(
            frame[by], frame["seed"], frame[f"{column}_by_prompt"], strict=True
        )
        for prompt, value in enumerate(values)
    ]
    return pd.DataFrame(rows, columns=[by, "seed", "prompt", column])


def mean_over_seeds(
    frame: pd.DataFrame, column: str, *, by: str | Sequence[str] = "variant"
) -> pd.DataFrame:
    """The mean of a column over seeds and its range: columns mean, low, high and seeds.

    low and high are the smallest and the largest value of the seeds, not a confidence interval. A
    missing value of one seed gives NaN.

    Args:
        by: the columns that name a group, for example "variant"; ["variant", "step"] for a
            history. Groups keep the order of the records and become the index.

    Raises:
        ValueError: the records have no such column, or a group has two rows of one seed, because
            a further column has to be in `by` ("step", or "experiment" after
            `results("family", "jitter")`).
    """
    keys = [by] if isinstance(by, str) else list(by)
    _check_columns(frame, [*keys, column])
    _check_one_row_per_seed(frame, keys)
    values = frame.groupby(by if isinstance(by, str) else keys, sort=False)[column]
    return pd.DataFrame(
        {
            "mean": values.agg(lambda x: x.mean(skipna=False)),
            "low": values.agg(lambda x: x.min(skipna=False)),
            "high": values.agg(lambda x: x.max(skipna=False)),
            "seeds": values.size(),
        }
    )


def difference_over_prompts(
    frame: pd.DataFrame,
    column: str,
    baseline: str | Sequence[str],
    variants: str | Sequence[str] | None = None,
    *,
    by: str = "variant",
    seed: int = 0,
) -> pd.DataFrame:
    """Mean of (variant - baseline) on the same prompts, with its 95 % interval over prompts.

    Each variant is first averaged over its seeds, prompt by prompt. Then the prompts are resampled
    with replacement, as in `evaluate.paired_difference`. The interval says what other prompts
    would change. It does not say what other seeds would change.

    Args:
        column: a number that was recorded for every prompt; see `by_prompt`.
        baseline: one variant, or several whose runs are pooled, as `show.differences` pools the
            runs of `repeats`.
        variants: compared with the baseline; all others, if left out.
        seed: of the resampling.

    Returns:
        One row per variant: difference, low, high, prompts, seeds. `seeds` is the smaller number
        of seeds of the two.
    """
    from minirlhf.evaluate import paired_difference  # loads transformers, which takes seconds

    rows = {}
    for name, values, base in _compared(frame, column, baseline, variants, by):
        means = (_matrix(runs).mean(0).tolist() for runs in (values, base))
        difference, low, high = paired_difference(*means, seed=seed)
        rows[name] = (difference, low, high, len(values.columns), min(len(values), len(base)))
    return _differences(rows, by)


def difference_over_prompts_and_seeds(
    frame: pd.DataFrame,
    column: str,
    baseline: str | Sequence[str],
    variants: str | Sequence[str] | None = None,
    *,
    by: str = "variant",
) -> pd.DataFrame:
    """Mean of (variant - baseline), with its 95 % interval for other prompts and other seeds.

    D[s, p] is variant - baseline for seed s and prompt p, so the two variants are paired by seed
    and by prompt. The interval is that of `interval_over_both`. Three seeds say little about other
    seeds, so where the seeds differ, the interval is wide.

    Args, Returns: as in `difference_over_prompts`. With one seed low and high are NaN, because one
    seed says nothing about other seeds.

    Raises:
        ValueError: the variant and the baseline were not run with the same seeds.
    """
    rows = {}
    for name, values, base in _compared(frame, column, baseline, variants, by):
        mean_base = base.groupby(level="seed").mean()
        wanted = list(values.index) * (len(base) // max(len(mean_base), 1))
        if sorted(wanted) != sorted(base.index):
            raise ValueError(
                f"{name!r} has the seeds {list(values.index)} and {_named(baseline)} has "
                f"{list(base.index)}; this interval needs the same seeds."
            )
        difference = _matrix(values) - _matrix(mean_base)
        low, high = interval_over_both(difference)
        rows[name] = (difference.mean().item(), low, high, *reversed(difference.shape))
    return _differences(rows, by)


def above_curve(
    frame: pd.DataFrame,
    column: str,
    curve: Sequence[str],
    variants: str | Sequence[str] | None = None,
    *,
    kl: str = "kl",
    minus: str | None = None,
    by: str = "variant",
) -> pd.DataFrame:
    """How far variants lie above a curve at equal KL, with 95 % intervals.

    The curve is one method at several settings. Each seed has a curve of its own: its points are
    that seed's runs, and straight lines in the logarithm of the KL join them. Beyond its ends the
    curve is level: a run there is compared with the end. For seed s and prompt p

        D[s, p] = value of the run - value of the curve at the KL of the run .

    The difference is the mean of D, and its interval is for other seeds and other prompts
    (`interval_over_both`). A column with one number per run has no prompts, so its interval is for
    other seeds (`interval_over_seeds`).

    Args:
        column: a number that was recorded for every prompt (see `by_prompt`), or for every run.
        curve: the variants that the curve goes through.
        variants: compared with the curve; all others, if left out.
        kl: the column of the distance, above 0. Give a column of your own to count the distance
            in another way, for example per token.
        minus: a variant whose D is subtracted from that of each variant.

    Returns:
        One row per variant: difference, low, high, prompts, seeds. low and high are NaN where
        nothing says how D scatters, as with one seed.

    Raises:
        ValueError: a column or a variant is missing, a distance is not above 0, or the variants
            differ in their seeds or in the number of their prompts.
    """
    curve, column = _list_of(curve), _without_ending(column)
    per_run = column in frame and f"{column}_by_prompt" not in frame
    values, distances = _values_and_distances(frame, column, kl, by, per_run=per_run)
    chosen = [n for n in values if n not in curve] if variants is None else _list_of(variants)
    others = [minus] if minus else []
    _check_comparable(values, distances, list(dict.fromkeys([*curve, *chosen, *others])), by)
    above = {
        name: _above_own_curve(values, distances, curve, name)
        for name in dict.fromkeys([*chosen, *others])
    }
    rows = {}
    for name in chosen:
        difference = above[name] - (above[minus] if minus else 0)
        seeds, prompts = difference.shape
        interval = (
            interval_over_seeds(difference[:, 0]) if per_run else interval_over_both(difference)
        )
        rows[name] = (difference.mean().item(), *interval, prompts, seeds)
    return _differences(rows, by)


def interval_over_seeds(values: torch.Tensor) -> tuple[float, float]:
    """The 95 % interval of the mean of (S,) values, for other seeds.

        mean +- t(0.975, S - 1) s / sqrt(S)

    s is their standard deviation. For three seeds t is 4.30. Both ends are NaN with one seed, and
    where all values are equal: then nothing says how they scatter.

    Source: Student 1908.
    """
    from scipy.stats import t as student_t  # takes a second to load

    if len(values) < 2 or values.std() <= 1e-12 * values.abs().max():
        return math.nan, math.nan
    t = float(student_t.ppf(0.975, len(values) - 1))
    half = t * values.std().item() / math.sqrt(len(values))
    return values.mean().item() - half, values.mean().item() + half


def interval_over_both(differences: torch.Tensor) -> tuple[float, float]:
    """The 95 % interval of the mean of (S, P) differences, for other seeds and other prompts.

    The differences are taken as mean + effect of the seed + effect of the prompt + residual, all
    independent. With the mean squares MS of this two-way layout,

        MS_seed     = P sum_s (D[s, .] - D)^2 / (S - 1)
        MS_prompt   = S sum_p (D[., p] - D)^2 / (P - 1)
        MS_residual = sum_sp (D[s, p] - D[s, .] - D[., p] + D)^2 / ((S - 1)(P - 1))

    the variance of the mean D, its degrees of freedom (Satterthwaite) and the interval are

        var = (MS_seed + MS_prompt - MS_residual) / (S P)
        df  = (S P var)^2 / [ MS_seed^2 / (S - 1) + MS_prompt^2 / (P - 1)
                              + MS_residual^2 / ((S - 1)(P - 1)) ]
        D +- t(0.975, df) sqrt(var)

    var is at least max(MS_seed, MS_prompt) / (S P). For 3 seeds and 76 prompts the interval holds
    the true mean in 92 to 99 % of simulated cases; see the tests.

    Returns:
        (low, high). Both are NaN if there is one seed or one prompt, or if all differences are
        equal: then nothing says how they scatter.

    Source: Satterthwaite 1946.
    """
    from scipy.stats import t as student_t  # takes a second to load

    seeds, prompts = differences.shape
    if min(seeds, prompts) < 2:
        return math.nan, math.nan
    mean = differences.mean()
    of_seeds, of_prompts = differences.mean(1, keepdim=True), differences.mean(0, keepdim=True)
    freedom = (seeds - 1, prompts - 1, (seeds - 1) * (prompts - 1))
    squares = (
        prompts * (of_seeds - mean).square().sum().item() / freedom[0],
        seeds * (of_prompts - mean).square().sum().item() / freedom[1],
        (differences - of_seeds - of_prompts + mean).square().sum().item() / freedom[2],
    )
    total = max(squares[0] + squares[1] - squares[2], *squares[:2])
    if math.sqrt(total) <= 1e-12 * differences.abs().max().item():
        return math.nan, math.nan
    df = total**2 / sum(ms**2 / n for ms, n in zip(squares, freedom, strict=True))
    half = float(student_t.ppf(0.975, df)) * math.sqrt(total / (seeds * prompts))
    return mean.item() - half, mean.item() + half


def with_interval(frame: pd.DataFrame, *, digits: int = 2) -> pd.Series:
    """Each row as text, for example "1.34 [1.20, 1.48]": the first column, then low and high.

    There are more decimals, up to 4, where a bound that is not 0 would be rounded to 0. The name
    of the Series says what the brackets are: "mean [lowest seed, highest seed]" for a table of
    `mean_over_seeds`, "difference [95 % interval]" for the others.

    Args:
        frame: a table of `mean_over_seeds`, `difference_over_prompts`,
            `difference_over_prompts_and_seeds` or `above_curve`.
    """
    from minirlhf.show.look import decimals  # loads matplotlib

    _check_columns(frame, ["low", "high"])
    first = frame.columns[0]
    bounds = frame[["low", "high"]].to_numpy(float).ravel()
    digits = decimals(bounds[~pd.isna(bounds)].tolist(), digits)
    return pd.Series(
        [
            f"{value:z.{digits}f} [{low:z.{digits}f}, {high:z.{digits}f}]"
            for value, low, high in zip(frame[first], frame["low"], frame["high"], strict=True)
        ],
        index=frame.index,
        name=BRACKETS.get(first, first),
    )


def shown(
    frame: pd.DataFrame,
    columns: dict[str, str],
    *,
    by: str | Sequence[str] = "variant",
    digits: int = 2,
) -> pd.DataFrame:
    """The table of a lesson: one row per variant, each cell "mean [lowest seed, highest seed]".

    Args:
        columns: column of the record -> its label in the table, for example
            {"gold": "gold score", "kl": "KL, nats"}.
    """
    return pd.DataFrame(
        {
            label: with_interval(mean_over_seeds(frame, column, by=by), digits=digits)
            for column, label in columns.items()
        }
    )


def samples(
    frame: pd.DataFrame,
    variants: Sequence[str] | None = None,
    *,
    by: str = "variant",
    seed: int = 0,
) -> pd.DataFrame:
    """Recorded responses side by side: one row per prompt, one column per variant.

    They are the first samples of the first prompts, not selected by score.

    Args:
        variants: which ones, in this order; all that have recorded samples, if left out.
        seed: of the run.

    Raises:
        ValueError: the records have no samples, or a variant has none with this seed.
    """
    _check_columns(frame, [by, "seed", "samples"])
    frame = frame[(frame["seed"] == seed) & frame["samples"].notna()]
    _check_one_row_per_seed(frame, [by])
    texts = dict(zip(frame[by], frame["samples"], strict=True))
    chosen = list(texts) if variants is None else _list_of(variants)
    for name in chosen:
        if name not in texts:
            known = _quoted(texts)
            raise ValueError(f"{name!r} has no samples with seed {seed}; there are {known}.")
    table = pd.DataFrame({name: texts[name] for name in chosen})
    table.index = pd.Index([prompt.strip() for prompt in table.index], name="prompt")
    return table


def _compared(
    frame: pd.DataFrame,
    column: str,
    baseline: str | Iterable[str],
    variants: str | Iterable[str] | None,
    by: str,
) -> Iterator[tuple[str, pd.DataFrame, pd.DataFrame]]:
    """(variant, its values, the baselines' values), each a table of seeds by prompts."""
    long = by_prompt(frame, column, by=by)
    column = _without_ending(column)
    known = list(dict.fromkeys(long[by]))
    baselines = _list_of(baseline)
    chosen = [n for n in known if n not in baselines] if variants is None else _list_of(variants)
    for name in (*baselines, *chosen):
        if name not in known:
            raise ValueError(f"No {by} is called {name!r}; there are {_quoted(known)}.")
    tables = {
        name: rows.pivot(index="seed", columns="prompt", values=column)
        for name, rows in long.groupby(by)
    }
    for name in (*baselines, *chosen):
        counts = (len(tables[name].columns), len(tables[baselines[0]].columns))
        if counts[0] != counts[1]:
            raise ValueError(
                f"{name!r} was evaluated on {counts[0]} prompts and {baselines[0]!r} on "
                f"{counts[1]}; a paired difference needs the same prompts."
            )
    base = pd.concat([tables[name] for name in baselines])
    for name in chosen:
        yield name, tables[name], base


def _values_and_distances(
    frame: pd.DataFrame, column: str, kl: str, by: str, *, per_run: bool
) -> tuple[dict[str, pd.DataFrame], dict[str, pd.Series]]:
    """Name -> (seeds, prompts) values of a column, and name -> (seeds,) distances.

    With `per_run` the column has one number per run, which counts as one prompt.
    """
    _check_columns(frame, [kl])
    if per_run:
        _check_one_row_per_seed(frame, [by])
        long = frame[[by, "seed", column]].assign(prompt=0)
    else:
        long = by_prompt(frame, column, by=by)
    values = {
        name: rows.pivot(index="seed", columns="prompt", values=column)
        for name, rows in long.groupby(by, sort=False)
    }
    distances = {
        name: rows.set_index("seed")[kl].loc[values[name].index]
        for name, rows in frame[frame[by].isin(list(values))].groupby(by)
    }
    return values, distances


def _above_own_curve(
    values: dict[str, pd.DataFrame], distances: dict[str, pd.Series], curve: list[str], name: str
) -> torch.Tensor:
    """(seeds, prompts): each value of a variant minus that of its seed's curve at the same KL."""
    x = np.log([distances[setting] for setting in curve])  # (settings, seeds)
    y = np.stack([values[setting] for setting in curve])  # (settings, seeds, prompts)
    at, runs = np.log(distances[name].to_numpy()), values[name].to_numpy()
    rows = []
    for seed in range(len(runs)):
        order = x[:, seed].argsort()
        points, heights = x[order, seed], y[order, seed]
        on_curve = [np.interp(at[seed], points, of_prompt) for of_prompt in heights.T]
        rows.append(runs[seed] - on_curve)
    return torch.tensor(np.stack(rows), dtype=torch.float64, device="cpu")


def _check_comparable(values: dict, distances: dict, names: list[str], by: str) -> None:
    first = names[0]
    for name in names:
        if name not in values:
            raise ValueError(f"No {by} is called {name!r}; there are {_quoted(values)}.")
        if not (distances[name] > 0).all():
            raise ValueError(f"{name!r} has a distance that is not above 0.")
        if values[name].isna().any(axis=None):
            raise ValueError(f"{name!r} has a missing value; each of its runs needs one.")
        for axis, what in enumerate(("seeds", "prompts")):
            if not values[name].axes[axis].equals(values[first].axes[axis]):
                raise ValueError(f"{name!r} and {first!r} differ in their {what}.")


def _list_of(names: str | Iterable[str]) -> list[str]:
    """Distinct names; a single string is one name."""
    return [names] if isinstance(names, str) else list(dict.fromkeys(names))


def _quoted(names: Iterable) -> str:
    return ", ".join(map(repr, names))


def _named(baseline: str | Sequence[str]) -> str:
    return " with ".join(map(repr, _list_of(baseline)))


def _without_ending(column: str) -> str:
    return column.removesuffix("_by_prompt")


def _matrix(table: pd.DataFrame) -> torch.Tensor:
    return torch.tensor(table.to_numpy(), dtype=torch.float64, device="cpu")


def _differences(rows: dict[str, tuple], by: str) -> pd.DataFrame:
    table = pd.DataFrame.from_dict(
        rows, orient="index", columns=["difference", "low", "high", "prompts", "seeds"]
    )
    return table.rename_axis(by)


def _check_columns(frame: pd.DataFrame, columns: list[str]) -> None:
    for column in columns:
        if column not in frame.columns:
            raise ValueError(f"No column {column!r}; there are {_quoted(frame.columns)}.")


def _check_one_row_per_seed(frame: pd.DataFrame, keys: list[str]) -> None:
    twice = frame[frame.duplicated([*keys, "seed"])]
    if len(twice):
        row = twice[[*keys, "seed"]].astype(object).iloc[0]
        group = ", ".join(f"{key} {row[key]!r}" for key in keys)
        raise ValueError(
            f"{group} has more than one row of seed {row['seed']}; "
            "name a further column in `by`, or keep one experiment's rows."
        )


def _check_same_prompts(frame: pd.DataFrame, column: str, by: str) -> None:
    counts = frame[f"{column}_by_prompt"].map(len)
    for name, runs in frame.assign(prompts=counts).groupby(by, sort=False):
        first = runs.iloc[0]
        for _, run in runs.iterrows():
            if run["prompts"] != first["prompts"]:
                raise ValueError(
                    f"Seed {run['seed']} of '{name}' has {run['prompts']} prompts and "
                    f"seed {first['seed']} has {first['prompts']}."
                )
