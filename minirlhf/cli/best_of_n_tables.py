"""What `best-of-n` prints: the table by n, a verdict, and the responses that are kept."""

from typing import Any

import pandas as pd
from rich.table import Table
from rich.text import Text

from minirlhf.cli.evaluation_tables import SHOWN, interval, plain, warn_of_few
from minirlhf.cli.terminal import console, say
from minirlhf.evaluate.best_of_n import verdict_and_row

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
        f"highest score by {by} is kept.{second} KL bound: how far that is at most, in nats, from "
        "the model as it sampled: at --temperature, and cut at --max-response. In brackets: "
        "95 % intervals over prompts."
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
    best, last = table.loc[table.judge.idxmax()], table.iloc[-1]
    verdict, row = verdict_and_row(table)
    since = f"from n = {row.n:.0f} to n = {last.n:.0f}"
    if verdict == "falls":
        return (
            f"Verdict: the mean of {judge} is highest at n = {best.n:.0f}, and it falls {since}. "
            f"The difference, {change(row)}, is below 0: what {by} chooses there is worse by "
            f"{judge}, so {by} is over-optimised."
        )
    grows = verdict == "grows"
    said = f"Verdict: the mean of {judge} {'still grows' if grows else 'is not seen to grow'} "
    said += f"at the largest n. Its difference {since}, {change(row)}, "
    said += "is above 0." if grows else "contains 0."
    if best.n not in (row.n, last.n):
        said += f" It is highest at n = {best.n:.0f}, but the difference from there to "
        said += f"n = {last.n:.0f}, {change(best)}, contains 0."
    return said


def change(row: pd.Series) -> str:
    return interval(row, "judge_to_last", "+")


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
