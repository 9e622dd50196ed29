"""What `best-of-n` prints: the table by n, a verdict, and the responses that are kept."""

from typing import Any

import pandas as pd
from rich.table import Table
from rich.text import Text

from minirlhf.cli.evaluation_tables import SHOWN, interval, plain, warn_of_few
from minirlhf.cli.terminal import console, say
from minirlhf.evaluate import best_of_n_verdict

NO_JUDGE = (
    "No verdict: there is no second judge (--judge). The score that chooses grows with n in any "
    "case, so it cannot say whether the responses get better."
)


def print_best_of_n(table: pd.DataFrame, *, by: str, judge: str | None) -> None:
    """The table of `evaluate.best_of_n_table` and its verdict.

    Args:
        by: what chooses.
        judge: the second judge; None: there is none.
    """
    prompts, samples = int(table.prompts[0]), int(table.samples[0])
    second = "" if judge is None else f" The second judge, {judge}, does not choose."
    say(
        f"{prompts:,} prompts, {samples:,} responses to each. Of n responses the one with the "
        f"highest score by {by} is kept.{second} KL bound: how far that is at most from the model, "
        "in nats. In brackets: 95 % intervals over prompts."
    )
    columns = {"score": "score"} | ({} if judge is None else {"judge": "second judge"})
    lines = Table("n", "KL bound", "its root", *columns.values())
    for _, row in table.iterrows():
        means = [interval(row, name) for name in columns]
        lines.add_row(f"{row.n:.0f}", f"{row.kl_bound:.2f}", f"{row.sqrt_kl:.2f}", *means)
    console.print(lines)
    say(NO_JUDGE if judge is None else sentence(table, by, judge))
    warn_of_few(prompts, "prompts")


def sentence(table: pd.DataFrame, by: str, judge: str) -> str:
    """The verdict on the second judge's column, in plain words."""
    best, before, last = table.loc[table.judge.idxmax()], table.iloc[-2], table.iloc[-1]
    since = f"from n = {before.n:.0f} to n = {last.n:.0f}, {change(before)},"
    if best_of_n_verdict(table) == "falls":
        return (
            f"Verdict: the mean of {judge} is highest at n = {best.n:.0f} and falls after it. The "
            f"difference to n = {last.n:.0f}, {change(best)}, is below 0: what {by} chooses there "
            f"is worse by {judge}, so {by} is over-optimised."
        )
    if best_of_n_verdict(table) == "grows":
        said = f"Verdict: the mean of {judge} still grows at the largest n. Its difference "
        said += f"{since} is above 0."
    else:
        said = f"Verdict: the mean of {judge} is not seen to grow at the largest n. Its difference "
        said += f"{since} {contains(before)}."
    if best.n < last.n:
        said += f" It is highest at n = {best.n:.0f}, but the difference from there to "
        said += f"n = {last.n:.0f}, {change(best)}, {contains(best)}."
    return said


def change(row: pd.Series) -> str:
    return interval(row, "judge_to_last", "+")


def contains(row: pd.Series) -> str:
    """Where 0 is in the interval of a row's difference to the largest n."""
    return "is below 0" if row.judge_to_last_high < 0 else "contains 0"


def print_kept(first: pd.DataFrame, best: pd.DataFrame, n: int, longest: int) -> None:
    """The responses that are kept to the first prompts, for n = 1 and for the largest n.

    Args:
        first, best: `evaluate.best_of_n_kept` for both.
        longest: tokens after which a response was cut.
    """
    cut = int((~best.finished).sum())
    if cut:
        say(
            f"{cut:,} of the {len(best):,} responses kept at n = {n} have no EOS: they are cut at "
            f"{longest} tokens (--max-response)."
        )
    say("What is kept for the first prompts, with its score:")
    shown = Table("prompt", "n = 1", f"n = {n}", show_lines=True)
    for row in best.drop_duplicates("prompt").index[:SHOWN]:
        shown.add_row(
            plain(best.prompt[row]), *(with_scores(each.loc[row]) for each in (first, best))
        )
    console.print(shown)


def with_scores(row: Any) -> Text:
    """A response, and below it what both judges say."""
    judged = f"; second judge {row.judge:.2f}" if "judge" in row else ""
    return plain(row.response) + Text(f"\n({row.score:.2f}{judged})", style="dim")
