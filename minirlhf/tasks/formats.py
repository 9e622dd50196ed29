"""Dataset formats of the field, converted to and from standard rows.

A loop reads standard rows. Their columns hold text, and the prompt comes first:

    prompt + completion               SFT
    prompt + chosen + rejected        preference pairs
    prompt + completion + label       unpaired preferences
    prompt                            RL

TRL has the same formats. It also has them as conversations (lists of {"role", "content"}), and it
has pairs that repeat the prompt at the start of both texts. `standard` reads all of these, and the
layouts that other public datasets have.
"""

from bisect import bisect_left
from collections.abc import Callable, Collection, Mapping
from typing import Any

import pyarrow
from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedTokenizerBase

from minirlhf.runtime import check_text
from minirlhf.tasks.conversations import SPANS, TEXTS, answer
from minirlhf.tasks.layouts import ROLES, find_layout
from minirlhf.tasks.rows import ORIGIN, Source, counted, listed, standard_rows


def check_rows(dataset: Dataset, *columns: str) -> Dataset:
    """The dataset itself, if every column is there and every row can be used for training.

    Args:
        columns: names of the columns to check.

    Raises:
        ValueError: a column is missing; a value is not text or cannot be encoded as UTF-8; a label
            is not a bool; a prompt is empty; chosen and rejected are equal.
    """
    if missing := [c for c in columns if c not in dataset.column_names]:
        raise ValueError(
            f"The dataset has the columns {dataset.column_names} and lacks {missing}; rename "
            "its columns, or convert it with minirlhf.tasks.formats.standard."
        )
    rows = zip(*(list(dataset[name]) for name in columns), strict=True)
    for number, row in enumerate(dict(zip(columns, values, strict=True)) for values in rows):
        for name, value in row.items():
            if name == "label" and not isinstance(value, bool):
                raise ValueError(
                    f"Row {number}: label is {value!r}; it must be True (good) or False (bad)."
                )
            if name in TEXTS:
                check_text(value, f"Row {number}: {name}")
        if "prompt" in row and not row["prompt"]:
            raise ValueError(
                f"Row {number}: the prompt is empty; give at least one token before the response."
            )
        if {"chosen", "rejected"} <= row.keys() and row["chosen"] == row["rejected"]:
            raise ValueError(
                f"Row {number}: chosen and rejected are the same text; remove such rows."
            )
    return dataset


def standard(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    skip_invalid: bool = False,
    drop_equal: bool = False,
    chat: bool = False,
    say: Callable[[str], object] = print,
) -> Dataset:
    """Convert a dataset of any known layout to standard rows with a prompt of their own.

    `layouts.find_layout` finds out which columns mean what; they get their standard names. Columns
    of other names stay as they are. Conversations are written with the tokenizer's chat template.
    The prompt ends where the assistant's turn begins. In pairs without a prompt column, the prompt
    is what both texts share at their start.

    Args:
        tokenizer: needed for conversations.
        columns: what the columns mean, where it cannot be seen: {"prompt": "question"}.
            {"prompt": "instruction+input"} joins two columns, {"prompt": ""} says that there is
            no such column.
        skip_invalid: leave out rows that cannot be used, instead of refusing them.
        drop_equal: leave out pairs whose chosen and rejected texts are equal.
        chat: write rows of text with the chat template too: the prompt as the user's turn, and
            each response as the assistant's.
        say: is called with a text: the columns, and the rows that were left out.

    Raises:
        ValueError: the columns are of no known format, or two of them could be meant; a row cannot
            be used (rows are counted from 0); or there are conversations but no chat template.
    """
    names = dataset.column_names
    rows = dataset.to_list()
    layout = find_layout(names, rows, columns)
    found, report = standard_rows(
        rows,
        layout,
        tokenizer,
        Source(),
        skip_invalid=skip_invalid,
        drop_equal=drop_equal,
        chat=chat,
    )
    say(report.lines(layout))
    made = as_dataset(found)
    ours = (*ROLES, *(name + SPANS for name in TEXTS))
    if others := [name for name in layout.ignored if name not in ours]:
        kept = dataset.select_columns(others).select(list(found))
        made = concatenate_datasets([made, kept], axis=1)
    return made


def as_dataset(rows: Mapping[int, dict], source: Source | None = None) -> Dataset:
    """Rows as a Dataset. A row may lack a column; it is None there.

    Args:
        rows: number of the row in its source -> the row.
        source: names the rows in messages.

    Raises:
        ValueError: a value does not fit the others of its column.
    """
    names = dict.fromkeys(name for row in rows.values() for name in row)
    columns = {name: [row.get(name) for row in rows.values()] for name in names}
    if _fits(columns):
        return Dataset.from_dict(columns)
    name = next(name for name in columns if not _fits({name: columns[name]}))
    values = columns[name]
    place = bisect_left(
        range(len(values)), True, key=lambda last: not _fits({name: values[: last + 1]})
    )
    shown = f"{values[place]!r:.60}, " if isinstance(values[place], str | int | float) else ""
    raise ValueError(
        f"{(source or Source()).cell(list(rows)[place], name)} is {shown}of type "
        f"{type(values[place]).__name__}, which does not fit the column. A column holds values of "
        "one type: texts of whole characters, numbers of 64 bits, or lists that are not nested "
        "deeply. Change the value, or write all values of the column as text."
    )


def _fits(columns: dict[str, list[Any]]) -> bool:
    """Whether a Dataset can hold the columns."""
    if any(_is_deep(value) for values in columns.values() for value in values):
        return False  # each level can double the time that datasets takes
    try:
        Dataset.from_dict(columns)
    except (ValueError, TypeError, OverflowError, RecursionError, pyarrow.ArrowException):
        return False
    return True


def _is_deep(value: object, levels: int = 10) -> bool:
    """Whether a value is lists or dicts that are nested in more than so many levels."""
    if not isinstance(value, list | dict):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deep(part, levels - 1) for part in inner)


def conversational(dataset: Dataset) -> Dataset:
    """Standard rows as conversations of one turn each.

    The prompt is the user's message, everything else the assistant's.
    """
    role = {
        "prompt": "user",
        "completion": "assistant",
        "chosen": "assistant",
        "rejected": "assistant",
    }
    return Dataset.from_list(
        [
            {c: [{"role": role[c], "content": v}] if c in role else v for c, v in row.items()}
            for row in dataset
        ]
    )


def unpaired(dataset: Dataset) -> Dataset:
    """Pairs as unpaired rows: prompt, completion and label, True for the chosen text."""
    return Dataset.from_list(
        [
            {"prompt": row["prompt"], **answer(row, name), "label": name == "chosen"}
            for row in check_rows(dataset, "prompt", "chosen", "rejected")
            for name in ("chosen", "rejected")
        ]
    )


def paired(dataset: Dataset, *, say: Callable[[str], object] = print) -> Dataset:
    """Unpaired rows as pairs: for each prompt, every good completion with every bad one.

    Prompts that have only good or only bad completions are left out.

    Args:
        say: is called with a text: the rows that were left out.

    Raises:
        ValueError: no prompt has both.
    """
    kinds: dict[str, dict[bool, list[int]]] = {}
    given = list(check_rows(dataset, "prompt", "completion", "label"))
    for i, row in enumerate(given):
        kinds.setdefault(row["prompt"], {True: [], False: []})[row["label"]].append(i)
    pairs = [
        (good, bad)
        for kind in kinds.values()
        for good in kind[True]
        for bad in kind[False]
        if given[good]["completion"] != given[bad]["completion"]
    ]
    rows = [
        {
            "prompt": given[good]["prompt"],
            **answer(given[good], "completion", "chosen"),
            **answer(given[bad], "completion", "rejected"),
            **_origin_of_pair(given[good], given[bad]),
        }
        for good, bad in pairs
    ]
    if not rows:
        raise ValueError(
            "No prompt has both a good and a bad completion, so there are no pairs; "
            "use a loss of unpaired rows, or SFT on the good completions."
        )
    why = "no other completion of the same prompt with the other label"
    _say_left_out(dataset, {i for pair in pairs for i in pair}, why, say)
    return Dataset.from_list(rows)


def _origin_of_pair(good: dict, bad: dict) -> dict[str, dict[str, str]]:
    """The column `ORIGIN` of a pair, if its two rows have one: row "3+5"."""
    if ORIGIN not in good:
        return {}
    return {ORIGIN: good[ORIGIN] | {"row": f"{good[ORIGIN]['row']}+{bad[ORIGIN]['row']}"}}


def _say_left_out(
    dataset: Dataset, kept: Collection[int], why: str, say: Callable[[str], object]
) -> None:
    """Say which rows are not among those that are kept, if there are any."""
    left = [i for i in range(len(dataset)) if i not in kept]
    if left:
        origin = dataset[:].get(ORIGIN)
        say(f"Left out: {why}: {listed([origin[i]['row'] for i in left] if origin else left)}.")


def texts_once(rows: dict) -> tuple[list[str], list[str], list[int], list[int]]:
    """The different responses of preference pairs, and the positions of each row's two responses.

    One response can be in many pairs; a reward model then scores it once.

    Args:
        rows: columns prompt, chosen and rejected, as lists.

    Returns:
        (prompts, responses, chosen, rejected): the K different responses with their prompts, and
        for each row the positions of its chosen and its rejected response, from 0 to K - 1.
    """
    sides = [list(zip(rows["prompt"], rows[side], strict=True)) for side in ("chosen", "rejected")]
    place = {text: k for k, text in enumerate(dict.fromkeys(sides[0] + sides[1]))}
    prompts, responses = map(list, zip(*place, strict=True))
    chosen, rejected = ([place[text] for text in side] for side in sides)
    return prompts, responses, chosen, rejected


def completions(dataset: Dataset, *, say: Callable[[str], object] = print) -> Dataset:
    """Rows for SFT: prompt and completion.

    Pairs give their chosen text, unpaired rows their good completions. Other rows stay as they are.

    Args:
        say: is called with a text: the rows that were left out.

    Raises:
        ValueError: no completion is labelled good.
    """
    if "chosen" in dataset.column_names:
        names = answer(dict.fromkeys(dataset.column_names), "chosen")
        renamed = {name.replace("completion", "chosen"): name for name in names}
        others = [name for name in ("prompt", ORIGIN) if name in dataset.column_names]
        return dataset.select_columns([*others, *renamed]).rename_columns(renamed)
    if "label" not in dataset.column_names:
        return dataset
    good = [i for i, label in enumerate(dataset["label"]) if label]
    if not good:
        raise ValueError(
            f"Of {counted(len(dataset))} none is labelled good, and SFT learns good completions "
            "alone; give rows with the label true."
        )
    _say_left_out(dataset, set(good), "labelled bad, which SFT does not learn", say)
    return dataset.select(good)
