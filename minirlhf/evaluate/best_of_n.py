"""Best-of-n as n grows: the score that chooses, and a second judge that does not.

drawn = evaluate.scored_responses(model, tokenizer, prompts, score, samples_per_prompt=128,
                                  judge=judge)
table = evaluate.best_of_n_table(drawn, 64)                a row for each n = 1, 2, 4, ..., 64
evaluate.best_of_n_verdict(table)                          grows, falls, no change seen
evaluate.best_of_n_kept(drawn, 64)                         the response that is kept, for each row

The score that chooses grows with n in any case. Only another judge can say whether the responses
get better. Where its mean falls while the score still grows, the score is over-optimised.
"""

import math
from numbers import Integral

import numpy as np
import pandas as pd
import torch

from minirlhf.core.best_of_n import best_of_n_kl, best_of_n_mean
from minirlhf.evaluate.comparison import check_enough, with_interval
from minirlhf.runtime import check


def best_of_n_table(drawn: pd.DataFrame, n: int, *, bootstrap_seed: int = 0) -> pd.DataFrame:
    """The mean score of the best of 1, 2, 4, ... and n responses, and the mean of a second judge.

    Each mean is estimated without bias from all responses (`core.best_of_n_mean`), so more than n
    to each prompt make it less noisy. Intervals are 95 % bootstrap intervals over prompts. Rows
    with the same prompt count as one prompt, because they are not independent.

    Args:
        drawn: what `scored_responses` returned, n or more responses to each row. The column judge
            is read if there is one.
        n: the largest number of responses that one is chosen from, at least 2.

    Returns:
        A row for each n. kl_bound is `core.best_of_n_kl`, an upper bound of the KL from the policy
        in nats (at the temperature and the length of the samples), and sqrt_kl its root. prompts,
        and samples (responses to each row), say how much is known. score is the mean score of the
        response that is kept. With a judge there are also judge, its mean for the same response;
        and judge_to_last, the judge's mean at the largest n minus that of this row, paired by
        prompt. NAME_low and NAME_high are the interval of NAME.

    Raises:
        ValueError: n is no whole number from 2 to the number of responses to a row, the rows have
            different numbers of responses, a row has two prompts, there is one prompt only, a
            column is missing, or a score is not a finite number.
    """
    ordered = _checked(drawn, n, least=2)
    n = int(n)  # of numpy, where it comes from a table
    prompt_of = ordered.groupby("row").prompt.first()
    count = len(ordered) // len(prompt_of)
    check_enough(prompt_of.nunique(), "prompts")
    columns = [name for name in ("score", "judge") if name in ordered]
    values = {name: _numbers(ordered[name]).view(-1, count) for name in columns}

    def means(name: str, among: int) -> torch.Tensor:
        """(prompts,) the mean of a column for the best of so many responses."""
        of_row = best_of_n_mean(values[name], values["score"], among)
        by_prompt = pd.Series(of_row.numpy(), prompt_of.index).groupby(prompt_of).mean()
        return _numbers(by_prompt)

    rows = []
    for among in sorted({*(2**i for i in range(n.bit_length())), n}):
        bound = best_of_n_kl(among)
        row = {"n": among, "kl_bound": bound, "sqrt_kl": math.sqrt(bound)}
        row |= {"prompts": prompt_of.nunique(), "samples": count}
        found = {name: means(name, among) for name in columns}
        if "judge" in found:
            found["judge_to_last"] = means("judge", n) - found["judge"]
        for name, by_prompt in found.items():
            row |= with_interval(name, by_prompt, bootstrap_seed)
        rows.append(row)
    return pd.DataFrame(rows)


def best_of_n_verdict(table: pd.DataFrame) -> str:
    """What the second judge of a `best_of_n_table` says: 'grows', 'falls' or 'no change seen'.

    Two differences are read: from the row where the judge's mean is highest to the largest n, and
    from half the largest n to it. Half is the largest row at or below n / 2.

    'falls': the 95 % interval of one of them is below 0. 'grows': the interval of the difference
    from half is above 0. Otherwise no change is seen, which does not mean that there is none.

    The row where the mean is highest is found in the same samples. With few prompts this makes a
    fall easier to find than 95 % say. See it again with other prompts before you rely on it.

    Raises:
        ValueError: the table has no second judge.
    """
    return verdict_and_row(table)[0]


def verdict_and_row(table: pd.DataFrame) -> tuple[str, pd.Series]:
    """The verdict, and the row whose difference to the largest n decided it."""
    check("columns of the table", ", ".join(table), "judge" in table, "with a judge among them")
    best = table.loc[table.judge.idxmax()]
    half = table[table.n <= table.n.iloc[-1] / 2].iloc[-1]
    for row in (best, half):
        if row.judge_to_last_high < 0:
            return "falls", row
    return "grows" if half.judge_to_last_low > 0 else "no change seen", half


def best_of_n_kept(drawn: pd.DataFrame, n: int) -> pd.DataFrame:
    """The rows of `drawn` that best-of-n keeps: the best of the first n responses to each row.

    Of equal scores the first is kept. n = 1 gives the first response, which nothing chose.

    Args:
        drawn: what `scored_responses` returned.

    Raises:
        ValueError: as for `best_of_n_table`, but n may be 1, and there may be one prompt only.
    """
    first = _checked(drawn, n, least=1).groupby("row").head(n)
    return first.loc[first.groupby("row").score.idxmax()].reset_index(drop=True)


def _checked(drawn: pd.DataFrame, n: int, least: int) -> pd.DataFrame:
    """The responses sorted by row, with a new index, once n of each row can be chosen from."""
    for name in ("row", "prompt", "score"):
        check("columns of drawn", ", ".join(drawn), name in drawn, f"with {name} among them")
    for name in [each for each in ("score", "judge") if each in drawn]:
        bad = drawn[~np.isfinite(pd.to_numeric(drawn[name], errors="coerce"))]
        if len(bad):
            row, prompt, value = bad[["row", "prompt", name]].astype(object).iloc[0]
            which = f"{name} of a response to row {row}, the prompt {prompt!r},"
            check(which, value, False, "a finite number")
    ordered = drawn.sort_values("row", kind="stable", ignore_index=True)
    of_rows = ordered.groupby("row")
    sizes = sorted(set(of_rows.size().tolist()))
    check("responses to each row", sizes, len(sizes) == 1, "one number")
    most = int(of_rows.prompt.nunique().max())
    check("the largest number of different prompts in a row", most, most == 1, "1")
    allowed = f"a whole number from {least} to {sizes[0]}, the number of responses to each row"
    check("n", n, isinstance(n, Integral) and least <= n <= sizes[0], allowed)
    return ordered


def _numbers(column: pd.Series) -> torch.Tensor:
    return torch.tensor(column.to_numpy(), dtype=torch.float64, device="cpu")
