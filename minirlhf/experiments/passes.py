"""pass@k for every k, from the records of an experiment."""

import pandas as pd
import torch

from minirlhf.experiments.tables import by_prompt


def pass_at_each_k(
    frame: pd.DataFrame, samples: int, *, by: str = "variant"
) -> dict[str, torch.Tensor]:
    """pass@1 to pass@n of each variant, by seed.

    A record keeps, for each problem, which share of its n samples is right. That is enough: pass@k
    depends on how many samples are right, not on which.

    Args:
        frame: a DataFrame of `results` with the column "pass_1_by_prompt".
        samples: n, the samples of a problem.
        by: the column that names a variant.

    Returns:
        variant -> (seeds, n): pass@k for k = 1 to n, the mean over the problems. `show.lines`
        draws it as it is.

    Raises:
        ValueError: the records have no such column, a variant has two rows of one seed, or a
            share is not that of a whole number of n samples.
    """
    from minirlhf.evaluate import pass_at_k  # loads transformers, which takes seconds

    if samples < 1:
        raise ValueError(f"samples is {samples}; it must be at least 1.")
    long = by_prompt(frame, "pass_1", by=by)
    right = samples * long["pass_1"]
    broken = long[~((right - right.round()).abs() < 1e-4)]
    if len(broken):
        row = broken.iloc[0]
        raise ValueError(
            f"Seed {row['seed']} of {row[by]!r} has pass@1 {row['pass_1']:.4g} at problem "
            f"{row['prompt']}; it must be a whole number of samples divided by {samples}."
        )
    curves = {}
    for name, rows in long.assign(right=right.round()).groupby(by, sort=False):
        counts = rows.pivot(index="seed", columns="prompt", values="right").to_numpy()
        # If c samples are right, the first c become True: their order does not matter.
        order = torch.arange(samples, device="cpu")
        passed = order < torch.tensor(counts.reshape(-1, 1), device="cpu")
        by_k = [pass_at_k(passed, k).view(counts.shape).mean(1) for k in range(1, samples + 1)]
        curves[name] = torch.stack(by_k, 1)
    return curves
