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

import json
from collections.abc import Callable, Collection, Mapping

import pyarrow
from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedTokenizerBase

from minirlhf.runtime import check_text
from minirlhf.tasks.conversations import answer
from minirlhf.tasks.layouts import ROLES, find_layout
from minirlhf.tasks.reports import ORIGIN, Source, counted, listed
from minirlhf.tasks.rows import standard_rows
from minirlhf.tasks.turns import SPANS, TEXTS

TO_STANDARD = (
    "tasks.standard(dataset, tokenizer) makes standard rows of a Dataset, "
    "tasks.load_by_name(path, tokenizer) of a file; loops.fit_rows then checks their lengths"
)


def check_columns(dataset: Dataset, *columns: str) -> None:
    """Refuse what is no Dataset of standard rows, and say how to make one.

    Args:
        columns: names of columns that must be there. Those of texts must hold no conversations.

    Raises:
        ValueError: it is no Dataset, a column is missing, or a column of texts holds lists.
    """
    if not isinstance(dataset, Dataset):
        raise ValueError(
            f"The rows are of type {type(dataset).__name__}; they must be a Dataset. "
            f"Dataset.from_list makes one of a list of dicts. {TO_STANDARD}."
        )
    if missing := [c for c in columns if c not in dataset.column_names]:
        raise ValueError(
            f"The dataset has the columns {dataset.column_names} and lacks {missing}; rename "
            f"its columns, or convert it: {TO_STANDARD}."
        )
    for name in (c for c in columns if c in TEXTS):
        for number, value in enumerate(dataset[name], start=1):
            if isinstance(value, list):
                raise ValueError(
                    f"Row {number}: {name} is a conversation, and the loops read text; convert "
                    f"it: {TO_STANDARD}."
                )


def check_rows(dataset: Dataset, *columns: str) -> Dataset:
    """The dataset itself, if every column is there and every row can be used for training.

    Args:
        columns: names of the columns to check.

    Raises:
        ValueError: it is no Dataset; a column is missing; a value is not text or cannot be encoded
            as UTF-8; a label is not a bool; a prompt is empty; chosen and rejected are equal.
    """
    check_columns(dataset, *columns)
    rows = zip(*(list(dataset[name]) for name in columns), strict=True)
    named = (dict(zip(columns, values, strict=True)) for values in rows)
    for number, row in enumerate(named, start=1):
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
            be used (messages count rows from 1); or there are conversations but no chat template.
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

    A table holds values of one type in a column. It would make True of [True, 0.5] a 1.0, and give
    all dicts of a column the same keys. Such a column is held as JSON instead, and each value is
    read from it again, so that it stays as it is.

    Args:
        rows: number of the row in its source -> the row.
        source: names the rows in messages.

    Raises:
        ValueError: a column holds values that neither a table nor JSON can hold.
    """
    names = dict.fromkeys(name for row in rows.values() for name in row)
    columns = {name: [row.get(name) for row in rows.values()] for name in names}
    as_json = []
    for name, values in columns.items():
        held = _held(values)
        if held is None or repr(held) != repr(values):
            try:
                columns[name] = [json.dumps(value) for value in values]
                as_json.append(name)
            except (TypeError, ValueError, RecursionError):  # of no type that JSON has
                if held is None:
                    kinds = ", ".join(sorted({type(value).__name__ for value in values}))
                    raise ValueError(
                        f"{(source or Source()).name or 'The dataset'}: column {name} holds "
                        f"values of the types {kinds} that no column can hold; leave it out, or "
                        "write its values as text."
                    ) from None

    def read_again(columns: dict[str, list]) -> dict[str, list]:
        return {
            name: [json.loads(value) for value in values] if name in as_json else values
            for name, values in columns.items()
        }

    made = Dataset.from_dict(columns)
    return made.with_transform(read_again) if as_json else made


def _held(values: list) -> list | None:
    """What a column of a Dataset makes of these values; None if it cannot hold them."""
    if any(map(_is_deep, values)):
        return None  # each level can double the time that datasets takes
    try:
        held = Dataset.from_dict({"x": values})["x"]
    except (ValueError, TypeError, OverflowError, RecursionError, pyarrow.ArrowException):
        return None
    return values if all(isinstance(value, str) for value in values) else list(held)


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


def _origin_of_pair(good: dict, bad: dict) -> dict[str, dict]:
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
        say(f"Left out: {why}: {listed([origin[i]['row'] if origin else i + 1 for i in left])}.")


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
