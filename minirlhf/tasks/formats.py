"""The field's dataset formats, in and out. A loop reads standard rows: text columns, prompt first.

    prompt + completion (SFT)     prompt + chosen + rejected (pairs)     prompt + completion + label (unpaired)     prompt (RL)

TRL knows these, the same as conversations (lists of {"role", "content"}), and pairs whose prompt stands in both texts.
"""

from os.path import commonprefix

from datasets import Dataset

from minirlhf.runtime import check_text

TEXTS = ("prompt", "completion", "chosen", "rejected")


def check_rows(dataset: Dataset, *columns: str) -> Dataset:
    """The dataset itself, if each of `columns` is there and every row can be learned from.

    Raises:
        ValueError: a missing column; something that is not text, or cannot be written as UTF-8; an empty prompt; a pair of equals.
    """
    if missing := [c for c in columns if c not in dataset.column_names]:
        raise ValueError(
            f"The dataset has the columns {dataset.column_names} and lacks {missing}; see minirlhf.tasks.formats.standard."
        )
    rows = zip(*(list(dataset[name]) for name in columns), strict=True)
    for number, row in enumerate(dict(zip(columns, values, strict=True)) for values in rows):
        for name, value in row.items():
            if name == "label" and not isinstance(value, bool):
                raise ValueError(
                    f"Row {number}: label is {value!r}; it must be True (good) or False."
                )
            if name in TEXTS:
                check_text(value, f"Row {number}: {name}")
        if "prompt" in row and not row["prompt"]:
            raise ValueError(
                f"Row {number}: the prompt is empty; a response needs a token before it."
            )
        if {"chosen", "rejected"} <= row.keys() and row["chosen"] == row["rejected"]:
            raise ValueError(
                f"Row {number}: chosen and rejected are the same text; filter such rows out."
            )
    return dataset


def standard(dataset: Dataset, tokenizer=None, *, drop_equal: bool = False) -> Dataset:
    """Any of TRL's formats as standard rows with an explicit prompt; with `drop_equal` without the pairs of equal texts.

    Conversations go through the tokenizer's chat template: the prompt ends where the assistant's turn begins.

    Raises:
        ValueError: conversations without a tokenizer that has a chat template; columns of no known format.
    """
    columns = set(dataset.column_names)
    if {"chosen", "rejected"} <= columns and "prompt" not in columns:
        dataset = dataset.map(_extract_prompt)
    elif "messages" in columns:
        dataset = dataset.map(
            lambda row: {"prompt": row["messages"][:-1], "completion": row["messages"][-1:]},
            remove_columns=["messages"],
        )
    elif "prompt" not in columns:
        raise ValueError(
            f"The columns {sorted(columns)} are of no known format; give prompt, prompt + completion, "
            "prompt + chosen + rejected, or messages."
        )
    texts = [c for c in TEXTS if c in dataset.column_names]
    if len(dataset) and any(_is_conversation(dataset[0][c]) for c in texts):
        if getattr(tokenizer, "chat_template", None) is None:
            raise ValueError("These are conversations; give a tokenizer that has a chat template.")
        dataset = Dataset.from_list([row | _render(row, texts, tokenizer) for row in dataset])
    if drop_equal and "chosen" in texts:
        dataset = dataset.filter(lambda row: row["chosen"] != row["rejected"])
    return check_rows(dataset, *texts, *(["label"] if "label" in dataset.column_names else []))


def conversational(dataset: Dataset) -> Dataset:
    """Standard rows as conversations of one turn: the prompt is the user's, the rest the assistant's."""
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
    """Pairs as prompt + completion + label: each text on its own, True for the chosen one."""
    return Dataset.from_list(
        [
            {"prompt": row["prompt"], "completion": row[name], "label": name == "chosen"}
            for row in check_rows(dataset, "prompt", "chosen", "rejected")
            for name in ("chosen", "rejected")
        ]
    )


def paired(dataset: Dataset) -> Dataset:
    """Unpaired rows as pairs: for each prompt every good completion with every bad one; prompts with one kind only are left out."""
    kinds: dict[str, dict[bool, list[str]]] = {}
    for row in check_rows(dataset, "prompt", "completion", "label"):
        kinds.setdefault(row["prompt"], {True: [], False: []})[row["label"]].append(
            row["completion"]
        )
    rows = [
        {"prompt": prompt, "chosen": good, "rejected": bad}
        for prompt, kind in kinds.items()
        for good in kind[True]
        for bad in kind[False]
        if good != bad
    ]
    if not rows:
        raise ValueError(
            "No prompt has both a good and a bad completion: such rows can be imitated (sft), not compared."
        )
    return Dataset.from_list(rows)


def texts_once(rows: dict) -> tuple[list[str], list[str], list[int], list[int]]:
    """Prompts and texts of pairs, each once (a text is in many pairs), and the places there of every row's chosen and rejected one."""
    sides = [list(zip(rows["prompt"], rows[side], strict=True)) for side in ("chosen", "rejected")]
    place = {text: k for k, text in enumerate(dict.fromkeys(sides[0] + sides[1]))}
    return *map(list, zip(*place, strict=True)), *([place[text] for text in side] for side in sides)


def completions(dataset: Dataset) -> Dataset:
    """Rows to imitate: prompt + completion as they are; of pairs the chosen text; of unpaired rows the good ones."""
    if "chosen" in dataset.column_names:
        return dataset.select_columns(["prompt", "chosen"]).rename_column("chosen", "completion")
    return dataset.filter(lambda row: row["label"]) if "label" in dataset.column_names else dataset


def _is_conversation(value) -> bool:
    return isinstance(value, list) and all(
        isinstance(turn, dict) and {"role", "content"} <= turn.keys() for turn in value
    )


def _extract_prompt(row: dict) -> dict:
    """What chosen and rejected have in common at their beginning, up to whole turns or words, is the prompt."""
    chosen, rejected = row["chosen"], row["rejected"]
    if isinstance(chosen, list):
        shared = next(
            (i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b),
            min(len(chosen), len(rejected)),
        )
    else:
        shared = len(commonprefix([chosen, rejected]))
        whole = chosen.rfind(
            "\n\nAssistant:", 0, shared
        )  # Anthropic's transcripts: the last turn both share
        shared = whole + len("\n\nAssistant:") if whole >= 0 else chosen.rfind(" ", 0, shared + 1)
        shared = max(shared, 0)
    return {"prompt": chosen[:shared], "chosen": chosen[shared:], "rejected": rejected[shared:]}


def _render(row: dict, texts: list[str], tokenizer) -> dict[str, str]:
    turns = (
        row["prompt"]
        if _is_conversation(row["prompt"])
        else [{"role": "user", "content": row["prompt"]}]
    )
    bos = (
        tokenizer.bos_token if tokenizer("a").input_ids[0] == tokenizer.bos_token_id else None
    )  # who adds it needs no second one
    prompt = tokenizer.apply_chat_template(
        turns, tokenize=False, add_generation_prompt=True
    ).removeprefix(bos or "")
    rendered = {"prompt": prompt}
    for name in texts[1:]:
        reply = (
            row[name]
            if _is_conversation(row[name])
            else [{"role": "assistant", "content": row[name]}]
        )
        reply = (
            reply[len(turns) :] if reply[: len(turns)] == turns else reply
        )  # ultrafeedback repeats the prompt in both texts
        whole = tokenizer.apply_chat_template([*turns, *reply], tokenize=False).removeprefix(
            bos or ""
        )
        if not whole.startswith(prompt):
            raise ValueError(
                "This chat template writes the prompt otherwise once the answer is there; render the texts yourself."
            )
        rendered[name] = (
            whole[len(prompt) :].removesuffix("\n").removesuffix(tokenizer.eos_token or "")
        )
    return rendered
