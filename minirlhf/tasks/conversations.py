"""Conversations: lists of turns {"role", "content"}, checked and written as text."""

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from minirlhf.runtime import check_text

TEXTS = ("prompt", "completion", "chosen", "rejected")


def is_conversation(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(turn, dict) and {"role", "content"} <= turn.keys() for turn in value
    )


def check_turns(dataset: Dataset) -> None:
    """Check that a list in a text column, and every value of `messages`, is a conversation.

    Raises:
        ValueError: it is not, it has no turn, or chosen and rejected are not of one kind.
    """
    columns = [name for name in ("messages", *TEXTS) if name in dataset.column_names]
    for number, values in enumerate(zip(*(list(dataset[name]) for name in columns), strict=True)):
        row = dict(zip(columns, values, strict=True))
        for name, value in row.items():
            if not isinstance(value, list) and name != "messages":
                check_text(value, f"Row {number}: {name}")
                continue
            least = 2 if name == "messages" else 1
            if not is_conversation(value) or len(value) < least:
                raise ValueError(
                    f"Row {number}: {name} is {str(value)[:60]!r}; it must be a list of turns, "
                    f"{least} or more, each with role and content."
                )
            for turn in value:
                check_text(turn["role"], f"Row {number}: a role in {name}")
                check_text(turn["content"], f"Row {number}: a content in {name}")
        if {"chosen", "rejected"} <= row.keys():
            kinds = {isinstance(row[name], list) for name in ("chosen", "rejected")}
            if len(kinds) == 2:
                raise ValueError(
                    f"Row {number}: one of chosen and rejected is text and the other a "
                    "conversation; give both in the same form."
                )


def render(row: dict, texts: list[str], tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """The texts of a conversation, written with the tokenizer's chat template."""
    turns = (
        row["prompt"]
        if is_conversation(row["prompt"])
        else [{"role": "user", "content": row["prompt"]}]
    )
    # if the tokenizer adds BOS itself, remove the template's BOS
    bos = tokenizer.bos_token if tokenizer("a").input_ids[0] == tokenizer.bos_token_id else None

    def written(turns: list[dict], *, ask: bool = False) -> str:
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=ask)
        return str(text).removeprefix(bos or "")

    prompt = written(turns, ask=True)
    rendered = {"prompt": prompt}
    for name in texts[1:]:
        reply = (
            row[name]
            if is_conversation(row[name])
            else [{"role": "assistant", "content": row[name]}]
        )
        # ultrafeedback repeats the prompt in both texts
        reply = reply[len(turns) :] if reply[: len(turns)] == turns else reply
        whole = written([*turns, *reply])
        if not whole.startswith(prompt):
            raise ValueError(
                "This chat template writes the prompt differently when a response follows it; "
                "apply the template yourself and give rows of text."
            )
        rendered[name] = (
            whole[len(prompt) :].removesuffix("\n").removesuffix(tokenizer.eos_token or "")
        )
    return rendered
