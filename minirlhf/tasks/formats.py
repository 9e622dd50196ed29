"""Dataset formats of the field, converted to and from standard rows.

A loop reads standard rows. Their columns hold text, and the prompt comes first:

    prompt + completion               SFT
    prompt + chosen + rejected        preference pairs
    prompt + completion + label       unpaired preferences
    prompt                            RL

TRL has the same formats. It also has them as conversations (lists of {"role", "content"}), and it
has pairs that repeat the prompt at the start of both texts. `standard` reads all of these.
"""

from os.path import commonprefix

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from minirlhf.runtime import check_text
from minirlhf.tasks.conversations import TEXTS, answer, check_turns, is_conversation, render


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
    drop_equal: bool = False,
    chat: bool = False,
) -> Dataset:
    """Convert any of TRL's formats to standard rows with a prompt of their own.

    Conversations are written with the tokenizer's chat template. The prompt ends where the
    assistant's turn begins. In pairs without a prompt column, the prompt is what both texts share
    at their start.

    Args:
        tokenizer: needed for conversations.
        drop_equal: leave out pairs whose chosen and rejected texts are equal.
        chat: write rows of text with the chat template too: the prompt as the user's turn, and
            each response as the assistant's.

    Raises:
        ValueError: the columns are of no known format; a row fails `check_rows`; a turn lacks its
            role or the text of its content (as calls of tools do); or there are conversations but
            no chat template.
    """
    columns = set(dataset.column_names)
    check_turns(dataset)
    if {"chosen", "rejected"} <= columns and "prompt" not in columns:
        dataset = dataset.map(_extract_prompt)
    elif "messages" in columns:
        dataset = dataset.map(
            lambda row: {"prompt": row["messages"][:-1], "completion": row["messages"][-1:]},
            remove_columns=["messages"],
        )
    elif "prompt" not in columns:
        raise ValueError(
            f"The columns {sorted(columns)} are of no known format; give prompt, "
            "prompt + completion, prompt + chosen + rejected, or messages."
        )
    texts = [c for c in TEXTS if c in dataset.column_names]
    if len(dataset) and (chat or any(is_conversation(dataset[0][c]) for c in texts)):
        if tokenizer is None or getattr(tokenizer, "chat_template", None) is None:
            raise ValueError(
                "The rows are conversations; give a tokenizer that has a chat template."
            )
        rendered = [render(row, texts, tokenizer, f"Row {i}: ") for i, row in enumerate(dataset)]
        every = {name: None for row in rendered for name in row}  # some rows have spans
        dataset = Dataset.from_list(
            [row | every | new for row, new in zip(dataset, rendered, strict=True)]
        )
    if drop_equal and "chosen" in texts:
        dataset = dataset.filter(lambda row: row["chosen"] != row["rejected"])
    return check_rows(dataset, *texts, *(["label"] if "label" in dataset.column_names else []))


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


def _extract_prompt(row: dict) -> dict:
    """Split a pair into its prompt and two responses.

    The prompt is the common beginning of both texts, up to a whole turn or a whole word.
    """
    chosen, rejected = row["chosen"], row["rejected"]
    if isinstance(chosen, list):
        shared = next(
            (i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b),
            min(len(chosen), len(rejected)),
        )
    else:
        shared = len(commonprefix([chosen, rejected]))
        # Anthropic's transcripts: the last turn that both share
        whole = chosen.rfind("\n\nAssistant:", 0, shared)
        shared = whole + len("\n\nAssistant:") if whole >= 0 else chosen.rfind(" ", 0, shared + 1)
        shared = max(shared, 0)
    return {"prompt": chosen[:shared], "chosen": chosen[shared:], "rejected": rejected[shared:]}
