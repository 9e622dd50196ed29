"""The prompts of an RL loop, in the forms in which a caller may hold them, as a list of texts."""

import warnings
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

from transformers import PreTrainedTokenizerBase

from minirlhf.runtime import check, check_text
from minirlhf.tasks.conversations import Template, render
from minirlhf.tasks.reports import listed
from minirlhf.tasks.turns import check_turns, is_conversation

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

    Warns:
        UserWarning: the chat template leaves out turns or thoughts of conversations, or nothing
            reads a key of their turns.
    """
    template = Template(tokenizer) if getattr(tokenizer, "chat_template", None) else None
    texts: list[str] = []
    noted: dict[str, list[int]] = {}
    for row, value in enumerate(_values(prompts), start=1):
        texts.append(_text_of(row, value, template))
        for kind in dict.fromkeys(template.noted if template else ()):
            noted.setdefault(kind, []).append(row)
    for kind, rows in noted.items():
        warnings.warn(f"Prompts: {kind}: {listed(rows)}.", stacklevel=2)
    if template and (ignored := template.ignored_keys()):
        warnings.warn(f"Prompts: {ignored}", stacklevel=2)
    check("rows to train on", len(texts), bool(texts), "at least 1: there are no prompts")
    return texts


def _values(prompts: Iterable[Any]) -> Iterable[Any]:
    """The prompts one by one, without the table that they are a column of."""
    kind = type(prompts).__name__
    _check_many(prompts, "prompts", FORMS)
    columns = _columns(prompts)
    if columns is None:
        return prompts
    if "prompt" not in columns or not hasattr(prompts, "__getitem__"):
        raise ValueError(
            f"prompts is a {kind} with {', '.join(map(str, columns))[:200] or 'nothing'}; it must "
            f"have a column `prompt`: rename one, or give the column itself."
        )
    column = prompts["prompt"]
    _check_many(column, "The column `prompt`", "one column of texts", table=False)
    return column


def _columns(prompts: Any) -> Any:
    """The names of a table's columns; None for what is no table."""
    columns = prompts if isinstance(prompts, Mapping) else getattr(prompts, "columns", None)
    return getattr(prompts, "column_names", columns)  # of a Dataset


def _check_many(prompts: object, name: str, allowed: str, *, table: bool = True) -> None:
    """Refuse one text, a set, what has no items, and a table where none is allowed.

    Args:
        name: start of the message.
    """
    one = isinstance(prompts, (str, bytes, AbstractSet)) or not _has_items(prompts)
    if one or (not table and _columns(prompts) is not None):
        kind = type(prompts).__name__
        hint = {"str": "; for one prompt give a list of one text", "set": ", which has an order"}
        raise ValueError(
            f"{name} is {str(prompts)[:60]!r}, of type {kind}; it must be {allowed}"
            f"{hint.get(kind, '')}."
        )


def _has_items(prompts: object) -> bool:
    try:
        iter(prompts)  # type: ignore[call-overload]  # what has none raises
    except TypeError:
        return False
    return True


def _text_of(row: int, value: Any, template: Template | None) -> str:
    """One prompt as text. `row` counts from 1."""
    if template is not None:
        template.noted = []
    if isinstance(value, Mapping) and "prompt" in value:
        value = value["prompt"]
    if isinstance(value, list) and value and is_conversation(value):
        if template is None:
            raise ValueError(
                f"Prompt {row} is a conversation; give a tokenizer that has a chat template, or "
                "texts."
            )
        try:
            check_turns({"prompt": value}, f"Prompt {row}: ")
            value = render({"prompt": value}, ["prompt"], template, f"Prompt {row}: ")["prompt"]
        except RecursionError:
            raise ValueError(f"Prompt {row} holds lists that are nested too deeply.") from None
    check_text(value, f"Prompt {row}")
    if not value:
        raise ValueError(f"Prompt {row} is empty; remove it or give it a text.")
    return str(value)
