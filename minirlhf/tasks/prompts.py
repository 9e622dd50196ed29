"""The prompts of an RL loop, in the forms in which a caller may hold them, as a list of texts."""

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

from transformers import PreTrainedTokenizerBase

from minirlhf.runtime import check, check_text
from minirlhf.tasks.conversations import is_conversation, render

FORMS = "a list of texts, a Series, a column of a Dataset, or a Dataset with a column `prompt`"


def prompt_texts(prompts: Iterable[Any], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The prompts as a list of texts, in their order.

        prompt_texts(dataset["prompt"], tokenizer)        prompt_texts(frame.prompt, tokenizer)

    Args:
        prompts: a list, tuple, array, Series, column of a Dataset or generator of prompts. Or a
            Dataset, DataFrame or dict with a column `prompt`, or rows with this key; other columns
            are not used. A prompt is a text, or a conversation: a list of turns {"role",
            "content"}, which is written with the tokenizer's chat template.

    Raises:
        ValueError: `prompts` is one text, a set (it has no order), has no column `prompt`, or holds
            no prompt. Or a prompt, named by its row, is not text (None and NaN are not), cannot be
            encoded as UTF-8, is empty, or is a conversation and there is no chat template.
    """
    texts = [_text_of(row, value, tokenizer) for row, value in enumerate(_values(prompts))]
    check("rows to train on", len(texts), bool(texts), "at least 1: there are no prompts")
    return texts


def _values(prompts: Iterable[Any]) -> Iterable[Any]:
    """The prompts one by one, without the table that they are a column of."""
    kind = type(prompts).__name__
    if isinstance(prompts, (str, bytes, AbstractSet)) or not _has_items(prompts):
        hint = {"str": "; for one prompt give a list of one text", "set": ", which has an order"}
        raise ValueError(
            f"prompts is {str(prompts)[:60]!r}, of type {kind}; it must be {FORMS}"
            f"{hint.get(kind, '')}."
        )
    columns = prompts if isinstance(prompts, Mapping) else getattr(prompts, "columns", None)
    columns = getattr(prompts, "column_names", columns)  # of a Dataset
    if columns is None:
        return prompts
    if "prompt" not in columns or not hasattr(prompts, "__getitem__"):
        raise ValueError(
            f"prompts is a {kind} with {', '.join(map(str, columns))[:200] or 'nothing'}; it must "
            f"have a column `prompt`: rename one, or give the column itself."
        )
    return prompts["prompt"]


def _has_items(prompts: object) -> bool:
    try:
        iter(prompts)  # type: ignore[call-overload]  # what has none raises
    except TypeError:
        return False
    return True


def _text_of(row: int, value: Any, tokenizer: PreTrainedTokenizerBase) -> str:
    """One prompt as text."""
    if isinstance(value, Mapping) and "prompt" in value:
        value = value["prompt"]
    if isinstance(value, list) and value and is_conversation(value):
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError(
                f"Prompt {row} is a conversation; give a tokenizer that has a chat template, or "
                "texts."
            )
        for turn in value:
            check_text(turn["content"], f"Prompt {row}: a content")
        value = render({"prompt": value}, ["prompt"], tokenizer)["prompt"]
    check_text(value, f"Prompt {row}")
    if not value:
        raise ValueError(f"Prompt {row} is empty; remove it or give it a text.")
    return str(value)
