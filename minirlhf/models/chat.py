"""Whether a model learned from texts that its chat template wrote: a note in the model's folder.

The note is a file of ours, which transformers does not read. Folders without it say nothing.
"""

import json
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from minirlhf.models.forward import template_tokens
from minirlhf.models.weight_files import read_table
from minirlhf.runtime import check

NOTE = "minirlhf.json"  # {"chat": true}


def write_note(folder: Path, *, chat: bool) -> None:
    """Note in a folder that the model in it learned from texts of its chat template, if it did."""
    if chat:
        (folder / NOTE).write_text(json.dumps({"chat": True}))


def read_note(folder: Path) -> bool:
    """Whether the model in a folder learned from texts of its chat template, as its note says.

    Raises:
        ValueError: the note is damaged.
    """
    if not (folder / NOTE).is_file():
        return False
    chat = read_table(folder / NOTE).get("chat", False)
    check(f"chat in its {NOTE}", chat, isinstance(chat, bool), "true or false")
    return chat


def looks_written(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    """Whether a text holds a special token that the tokenizer's chat template writes."""
    return any(token in text for token in template_tokens(tokenizer))
