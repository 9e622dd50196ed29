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

from collections.abc import Callable, Mapping

from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedTokenizerBase

from minirlhf.runtime import check_text
from minirlhf.tasks.conversations import TEXTS, answer
from minirlhf.tasks.layouts import ROLES, find_layout
from minirlhf.tasks.rows import Source, standard_rows


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
    layout = find_layout(names, dataset.select(range(min(1000, len(dataset)))).to_list(), columns)
    rows = dataset.select_columns(sorted(layout.used)).to_list()
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
    if others := [name for name in layout.ignored if name not in ROLES]:
        kept = dataset.select_columns(others).select(list(found))
        made = concatenate_datasets([made, kept], axis=1)
    return made


def as_dataset(rows: Mapping[int, dict]) -> Dataset:
    """Rows as a Dataset. A row may lack a column; it is None there."""
    names = dict.fromkeys(name for row in rows.values() for name in row)
    return Dataset.from_list([{name: row.get(name) for name in names} for row in rows.values()])


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


def paired(dataset: Dataset) -> Dataset:
    """Unpaired rows as pairs: for each prompt, every good completion with every bad one.

    Prompts that have only good or only bad completions are left out.

    Raises:
        ValueError: no prompt has both.
    """
    kinds: dict[str, dict[bool, list[dict]]] = {}
    for row in check_rows(dataset, "prompt", "completion", "label"):
        kinds.setdefault(row["prompt"], {True: [], False: []})[row["label"]].append(row)
    rows = [
        {
            "prompt": prompt,
            **answer(good, "completion", "chosen"),
            **answer(bad, "completion", "rejected"),
        }
        for prompt, kind in kinds.items()
        for good in kind[True]
        for bad in kind[False]
        if good["completion"] != bad["completion"]
    ]
    if not rows:
        raise ValueError(
            "No prompt has both a good and a bad completion, so there are no pairs; "
            "use a loss of unpaired rows, or SFT on the good completions."
        )
    return Dataset.from_list(rows)


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


def completions(dataset: Dataset) -> Dataset:
    """Rows for SFT: prompt and completion.

    Pairs give their chosen text, unpaired rows their good completions. Other rows stay as they are.
    """
    if "chosen" in dataset.column_names:
        names = answer(dict.fromkeys(dataset.column_names), "chosen")
        kept = ["prompt", *(name.replace("completion", "chosen") for name in names)]
        return dataset.select_columns(kept).rename_columns(dict(zip(kept[1:], names, strict=True)))
    return dataset.filter(lambda row: row["label"]) if "label" in dataset.column_names else dataset
