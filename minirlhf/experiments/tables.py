"""Tables of recorded results: means over seeds, paired differences, and how a lesson shows them.

Every function takes a DataFrame from `results` and returns a DataFrame. A variant is named by the
column `variant`. In the records "tour" and "smollm2" that column is called `method`: pass
`by="method"`.
"""

from collections.abc import Sequence

import pandas as pd
import torch

DRAWS = 2000  # of the bootstrap, as in `evaluate.bootstrap`


def by_prompt(frame: pd.DataFrame, column: str, *, by: str = "variant") -> pd.DataFrame:
    """One row per run and prompt: `by`, seed, prompt, and `column`.

    Args:
        column: a number that was recorded for every prompt, for example "gold" or "pass_1"; it is
            read from `<column>_by_prompt`. prompt is its place in that list, from 0. Every run of
            an experiment has the same prompts in the same order.

    Raises:
        ValueError: the records have no such column, or a variant has two rows of one seed.
    """
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
    baseline: str,
    variants: Sequence[str] | None = None,
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
    baseline: str,
    variants: Sequence[str] | None = None,
    *,
    by: str = "variant",
    seed: int = 0,
) -> pd.DataFrame:
    """Mean of (variant - baseline), with its 95 % interval over prompts and over seeds.

    With D[s, p] = variant - baseline for seed s and prompt p, each of 2,000 draws picks prompts
    with replacement and, independently, seeds with replacement, and takes the mean of D over all
    chosen pairs (s, p). The two variants are paired by prompt and by seed. The interval is from
    the 2.5 % to the 97.5 % quantile of these means.

    With few seeds the interval is too narrow: resampling S seeds gives (S - 1)/S of the variance
    between seeds, which is two thirds for three seeds. With one seed the result is that of
    `evaluate.paired_difference`.

    Args, Returns: as in `difference_over_prompts`.

    Raises:
        ValueError: the variant and the baseline were not run with the same seeds.
    """
    rows = {}
    for name, values, base in _compared(frame, column, baseline, variants, by):
        if list(values.index) != list(base.index):
            raise ValueError(
                f"'{name}' has the seeds {list(values.index)} and '{baseline}' has "
                f"{list(base.index)}; this interval needs the same seeds."
            )
        difference = _matrix(values) - _matrix(base)
        low, high = _bootstrap_both(difference, seed)
        rows[name] = (difference.mean().item(), low, high, *reversed(difference.shape))
    return _differences(rows, by)


def with_interval(frame: pd.DataFrame, *, digits: int = 2) -> pd.Series:
    """Each row as text, for example "1.34 [1.20, 1.48]": the first column, then low and high.

    Args:
        frame: a table of `mean_over_seeds`, `difference_over_prompts` or
            `difference_over_prompts_and_seeds`.
    """
    _check_columns(frame, ["low", "high"])
    first = frame.columns[0]
    return pd.Series(
        [
            f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
            for value, low, high in zip(frame[first], frame["low"], frame["high"], strict=True)
        ],
        index=frame.index,
        name=first,
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


def _compared(frame: pd.DataFrame, column: str, baseline: str, variants, by: str):
    """(variant, its values, the baseline's values), each a table of seeds by prompts."""
    long = by_prompt(frame, column, by=by)
    known = list(dict.fromkeys(long[by]))
    chosen = [name for name in known if name != baseline] if variants is None else list(variants)
    for name in (baseline, *chosen):
        if name not in known:
            raise ValueError(f"No {by} is called '{name}'; there are {', '.join(known)}.")
    tables = {
        name: rows.pivot(index="seed", columns="prompt", values=column)
        for name, rows in long.groupby(by)
    }
    for name in chosen:
        counts = (len(tables[name].columns), len(tables[baseline].columns))
        if counts[0] != counts[1]:
            raise ValueError(
                f"'{name}' was evaluated on {counts[0]} prompts and '{baseline}' on {counts[1]}; "
                "a paired difference needs the same prompts."
            )
        yield name, tables[name], tables[baseline]


def _matrix(table: pd.DataFrame) -> torch.Tensor:
    return torch.tensor(table.to_numpy(), dtype=torch.float64)


def _bootstrap_both(values: torch.Tensor, seed: int) -> tuple[float, float]:
    """95 % percentile interval of the mean of (S, P) values; both axes resampled."""
    seeds, prompts = values.shape
    generator = torch.Generator().manual_seed(seed)
    prompt = torch.randint(prompts, (DRAWS, prompts), generator=generator)
    chosen = torch.randint(seeds, (DRAWS, seeds), generator=generator)
    means = values[chosen[:, :, None], prompt[:, None, :]].mean((1, 2))
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=values.dtype))
    return low.item(), high.item()


def _differences(rows: dict[str, tuple], by: str) -> pd.DataFrame:
    table = pd.DataFrame.from_dict(
        rows, orient="index", columns=["difference", "low", "high", "prompts", "seeds"]
    )
    return table.rename_axis(by)


def _check_columns(frame: pd.DataFrame, columns: list[str]) -> None:
    for column in columns:
        if column not in frame.columns:
            raise ValueError(
                f"No column '{column}'; there are {', '.join(map(str, frame.columns))}."
            )


def _check_one_row_per_seed(frame: pd.DataFrame, keys: list[str]) -> None:
    twice = frame[frame.duplicated([*keys, "seed"])]
    if len(twice):
        row = twice.iloc[0]
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
