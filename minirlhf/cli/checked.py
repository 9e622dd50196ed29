"""Rows as tokens, checked and described before a command trains on them."""

import math
from collections.abc import Sequence
from typing import Any

import pandas
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedTokenizerBase

from minirlhf.cli.terminal import console, say
from minirlhf.loops.lengths import row_lengths
from minirlhf.loops.row_report import RowReport
from minirlhf.loops.rows import AnyModel, fit_rows, shortest_reader
from minirlhf.models.load import unlike_training

NEARLY_ALL = 0.9  # of the rows: the default --max-response is refused where it cuts as many


def checked_rows(
    data: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    model: AnyModel,
    *,
    models: Sequence[str],
    skip_invalid: bool,
    check_only: bool,
    by_default: bool = False,
    **limits: Any,
) -> tuple[Dataset, RowReport]:
    """The rows that a command will train on, and the report on all of them, which is said.

    Args:
        models: names of those that read the prompts, to compare with what they learned from.
        skip_invalid: leave out rows that cannot be used.
        check_only: print the lengths of all rows first.
        by_default: the user gave no --max-response.
        limits: further arguments of `fit_rows`.

    Raises:
        ValueError: as `fit_rows`; or the default --max-response would cut nearly all rows.
    """
    if check_only:
        print_lengths(data, tokenizer, model, **limits)
    data, report = fit_rows(data, tokenizer, model, skip_invalid=skip_invalid, **limits)
    say(str(report))
    say_plain(models, data["prompt"][:], tokenizer, chat=report.chat, films=not report.source)
    if by_default and len(report.cut) >= NEARLY_ALL * report.kept:
        raise ValueError(_refused(report))
    return data, report


def say_plain(
    models: Sequence[str],
    prompts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    chat: bool,
    films: bool = False,
    to: Console | None = None,
) -> None:
    """Warn where a model learned from texts of its chat template and these prompts are plain.

    Args:
        models, prompts, chat: as in `unlike_training`.
        films: they are this project's film titles or texts, which --chat does not write.
        to: where it is printed; by default with all else.
    """
    advice = "Give a --dataset of your own, and --chat." if films else "Give --chat."
    for sentence in unlike_training(models, prompts, tokenizer, chat=chat, advice=advice):
        say(f"Warning: {sentence}", to=to)


def _refused(report: RowReport) -> str:
    return (
        f"--max-response was left out, and its default of {report.max_response} tokens would cut "
        f"responses in {len(report.cut):,} of {report.kept:,} rows; {report.cuts_none}. Give the "
        f"number that you want ({report.max_response} trains on the beginnings alone)."
    )


def print_lengths(
    data: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    model: AnyModel,
    **limits: Any,
) -> None:
    """A table of the lengths of prompts and responses in tokens (`row_lengths`)."""
    positions, reader = shortest_reader(model, limits.get("others"))
    room = f"the {reader} reads {positions}" if positions else "the model has no limit"
    table = Table("", "median", "95 %", "longest", "limit", "rows over", "enough for all")
    table.title = f"Lengths of {len(data):,} rows in tokens, EOS included ({room})"
    options = {"prompts": "--max-prompt", "responses": "--max-response"}
    for name, row in row_lengths(data, tokenizer, model, **limits).iterrows():
        table.add_row(
            str(name),
            *(f"{math.ceil(row[key])}" for key in ("median", "p95", "longest")),
            "none" if pandas.isna(row["limit"]) else f"{row['limit']}",
            f"{row['over']}",
            "too long to fit"
            if pandas.isna(row["smallest"])
            else f"{options[str(name)]} {row['smallest']}",
        )
    console.print(table)
