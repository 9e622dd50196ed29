"""What `evaluate` prints and writes: a table of models or of pairs, a verdict, and samples."""

import math
from pathlib import Path

import pandas as pd
from rich.table import Column, Table
from rich.text import Text

from minirlhf.cli.terminal import console, say
from minirlhf.evaluate import verdict
from minirlhf.runtime import atomic_path
from minirlhf.show import printable

SHOWN, FEW = 3, 20  # prompts with their responses; fewer prompts or pairs give too narrow intervals


def print_comparison(table: pd.DataFrame, drawn: list[pd.DataFrame], longest: int) -> None:
    """The table of `evaluate.compare`, a line a measure; the verdict; and the first responses.

    Args:
        table: also with a column name: what each model is called.
        drawn: the responses of each model.
        longest: tokens after which a response was cut.
    """
    rows, names = [row for _, row in table.iterrows()], list(table.name)
    new, prompts = table.iloc[0], int(table.prompts[0])
    count = len(drawn[0]) // drawn[0].row.nunique()
    say(
        f"{prompts:,} prompts, {count} responses to each. In brackets: 95 % intervals over prompts."
    )
    lines = Table("", *(Column(plain(name)) for name in names))
    lines.add_row("mean score", *(interval(row, "score") for row in rows))
    if len(table) == 2:
        lines.add_row("difference, paired", interval(new, "difference", "+"))
        lines.add_row("win rate (ties: half)", interval(new, "win_rate"))
        kl = "other tokenizers" if math.isnan(new.kl) else f"{new.kl:.2f}"
        lines.add_row("KL(new || base), nats per response", kl)
    lines.add_row("length, tokens", *(f"{row.length:.1f}" for row in rows))
    lines.add_row(f"without EOS (cut at {longest})", *(f"{row.missing_eos:.0%}" for row in rows))
    lines.add_row("distinct-2", *(f"{row.distinct_2:.2f}" for row in rows))
    openings = (f"{row.opening!r} ({row.opening_share:.0%})" for row in rows)
    lines.add_row("commonest first words", *map(plain, openings))
    console.print(lines)
    if len(table) == 2:
        if math.isnan(new.kl):
            say("The KL is left out: the two models have different tokenizers.")
        say(sentence(table, names[0], names[1]))
    warn_of_few(prompts, "prompts")
    say("The first response to each of the first prompts, not selected:")
    shown = Table("prompt", *(Column(plain(name)) for name in names), show_lines=True)
    for row in drawn[0].drop_duplicates("prompt").row[:SHOWN]:
        firsts = [frame[frame.row == row].iloc[0] for frame in drawn]
        shown.add_row(plain(firsts[0].prompt), *(plain(first.response) for first in firsts))
    console.print(shown)


def print_pairs(table: pd.DataFrame, by: str) -> None:
    """The table of `evaluate.pair_accuracy`, and the verdict.

    Args:
        by: what scored the pairs.
    """
    pairs = int(table.pairs[0])
    say(f"{pairs:,} pairs. In brackets: 95 % intervals over pairs.")
    lines = Table("", "accuracy")
    for name, row in zip((by, "the longer answer is better"), table.itertuples(), strict=True):
        lines.add_row(name, interval(row, "accuracy"))
    lines.add_row("difference, paired", interval(table.iloc[0], "difference", "+"))
    console.print(lines)
    length = "the rule that the longer answer is better"
    say(sentence(table, by, length, "is right more often", "is right less often"))
    warn_of_few(pairs, "pairs")


def sentence(
    table: pd.DataFrame,
    new: str,
    base: str,
    more: str = "scores higher",
    less: str = "scores lower",
) -> str:
    """The verdict on a table in one sentence. more, less: what is said of a difference."""
    said, measured = verdict(table), interval(table.iloc[0], "difference", "+")
    who = {
        "better": f"{new} {more} than {base}",
        "worse": f"{new} {less} than {base}",
        "no difference seen": f"no difference seen between {new} and {base}",
    }[said]
    where = {"better": "is above 0", "worse": "is below 0"}.get(said, "contains 0")
    return f"Verdict: {who}. The interval of the difference, {measured}, {where}."


def warn_of_few(count: int, what: str) -> None:
    """Say that an interval over so few is too narrow."""
    if count < FEW:
        say(f"With fewer than {FEW} {what} the intervals are too narrow. Give more.")


def interval(row: object, name: str, sign: str = "") -> str:
    """A number with its interval, in as many digits as the interval's width asks for."""
    value, low, high = (float(getattr(row, name + end)) for end in ("", "_low", "_high"))
    width = high - low or abs(value)
    digits = min(max(2, 1 - math.floor(math.log10(width))), 9) if width > 0 else 2
    numbers = [f"{each:{sign}.{digits}f}" for each in (value, low, high)]
    return f"{numbers[0]} [{numbers[1]}, {numbers[2]}]"


def plain(text: str, most: int = 300) -> Text:
    """A text as it is in a cell: no markup, no control characters, its middle left out if long."""
    if len(text) > most:
        text = f"{text[: most // 2]} ... {text[-most // 2 :]}"
    return Text(printable(text.strip("\n"), "\n"))


def write_tables(tables: dict[Path | None, pd.DataFrame]) -> None:
    """Write tables as .csv or .jsonl, each replaced only after all of it is written.

    One that cannot be written does not keep the others from being written.

    Args:
        tables: file -> table; None for one that is not written.

    Raises:
        OSError: a file cannot be written. The message names it; its notes say what else failed.
    """
    written, failed = [], []
    for file, table in tables.items():
        if file is None:
            continue
        try:
            with atomic_path(file) as temporary:
                if file.suffix == ".csv":
                    table.to_csv(temporary, index=False)
                else:
                    table.to_json(temporary, orient="records", lines=True, force_ascii=False)
            written.append(file)
        except Exception as error:
            failed.append(error)
    for file in written:
        say(f"Wrote {file}.")
    for other in failed[1:]:
        failed[0].add_note(str(other))
    if failed:
        raise failed[0]
