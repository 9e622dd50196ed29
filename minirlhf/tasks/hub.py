"""Well-known datasets of the hub by name, as standard rows. Each is downloaded on first use."""

from collections.abc import Callable
from pathlib import Path

from datasets import Dataset, load_dataset
from transformers import PreTrainedTokenizerBase

from minirlhf.runtime import check
from minirlhf.tasks import reviews
from minirlhf.tasks.formats import completions, paired, standard


def imdb_rows(dataset: Dataset, words: int = 8) -> Dataset:
    """Film reviews with a sentiment, as unpaired rows.

    The first `words` words are the prompt, the rest is the completion. A positive review is good.
    Reviews that are not longer than the prompt are left out.
    """

    def row(given: dict) -> dict:
        beginning = given["text"].split(" ", words)
        return {
            "prompt": " ".join(beginning[:words]),
            "completion": " " + " ".join(beginning[words:]),
            "label": given["label"] == 1,
        }

    return Dataset.from_list(
        [row(given) for given in dataset if len(given["text"].split(" ")) > words]
    )


def known_pairs(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase | None = None, *, chat: bool = False
) -> Dataset:
    """Standard rows of a well-known dataset, without its pairs of equal texts.

    The reader cannot correct such a dataset, so these pairs are dropped instead of refused.
    """
    return standard(dataset, tokenizer, drop_equal=True, chat=chat)


# name -> (name on the hub, split, function that makes standard rows)
DATASETS: dict[str, tuple[str, str, Callable]] = {
    "hh-rlhf": ("Anthropic/hh-rlhf", "train", known_pairs),
    "ultrafeedback": ("HuggingFaceH4/ultrafeedback_binarized", "train_prefs", known_pairs),
    "imdb": ("stanfordnlp/imdb", "train", lambda dataset, tokenizer, chat: imdb_rows(dataset)),
}


def load_by_name(
    name: str,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    split: str | None = None,
    rows: int | None = None,
    chat: bool = False,
    load: Callable[..., Dataset] = load_dataset,
) -> Dataset:
    """Load a dataset of the hub, or a local .jsonl file, as standard rows.

    Args:
        name: hh-rlhf, ultrafeedback or imdb; or any hub name or .jsonl path in one of TRL's
            formats.
        tokenizer: needed for conversations.
        split: of the dataset on the hub; by default its training split.
        rows: load only the first so many.
        chat: write rows of text with the chat template too (see `formats.standard`).
        load: function that downloads, with the signature of `datasets.load_dataset`.

    Raises:
        ValueError: the dataset cannot be loaded, or has no known format.
    """
    check("rows", rows, rows is None or rows >= 1, "1 or more")
    check("chat", chat, not (chat and name == "imdb"), "off with imdb, whose texts are no answers")
    hub, usual, parse = DATASETS.get(name, (name, "train", standard))
    try:
        if hub.endswith(".jsonl"):
            dataset = load("json", data_files=hub, split="train")
        else:
            dataset = load(hub, split=split or usual)
    except Exception as error:  # hub, network and files raise many types
        if Path(hub).is_file():
            why = (
                str(error.__cause__ or "no rows")
                if hub.endswith(".jsonl")
                else "its name does not end in .jsonl"
            )
            raise ValueError(f"The file '{name}' cannot be read: {why.splitlines()[0]}") from error
        raise ValueError(
            f"No dataset '{name}': it is neither one of {', '.join(DATASETS)}, nor a readable "
            f".jsonl file, nor reachable on the hub ({type(error).__name__}); check the spelling "
            "or the network."
        ) from error
    columns = [
        c
        for c in ("prompt", "completion", "chosen", "rejected", "label", "messages", "text")
        if c in dataset.column_names
    ]
    if {"chosen", "rejected"} <= set(columns):
        # ultrafeedback repeats the chosen conversation in this column
        columns = [c for c in columns if c != "messages"]
    dataset = dataset.shuffle(seed=0) if name == "imdb" else dataset  # it is sorted by label
    dataset = dataset.select_columns(columns).select(range(min(rows or len(dataset), len(dataset))))
    return parse(dataset, tokenizer, chat=chat)


def named_demonstrations(
    name: str, tokenizer: PreTrainedTokenizerBase, *, rows: int, chat: bool = False
) -> Dataset:
    """Prompts and completions for SFT.

    Args:
        name: a dataset that `load_by_name` knows; empty for all film reviews.
        rows: load only the first so many rows of a named dataset.
        chat: write rows of text with the chat template too.
    """
    check("chat", chat, bool(name) or not chat, "given together with a dataset")
    if not name:
        return reviews.sft_dataset(tokenizer)
    return completions(load_by_name(name, tokenizer, rows=rows, chat=chat))


def named_pairs(
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    rows: int,
    seed: int,
    max_tokens: int,
    labelled: bool = False,
    chat: bool = False,
) -> Dataset:
    """Preference pairs.

    Args:
        name: a dataset that `load_by_name` knows; empty for pairs drawn from the film reviews.
        rows: the first rows of a named dataset, or the number of pairs to draw.
        seed: of the pairs drawn from the film reviews.
        max_tokens: length of the longest review among them.
        labelled: leave single responses with a label as they are, for a loss such as KTO.
            Otherwise they are paired.
        chat: write rows of text with the chat template too.
    """
    check("chat", chat, bool(name) or not chat, "given together with a dataset")
    if not name:
        return reviews.preference_pairs(
            "reward", rows, seed=seed, max_tokens=max_tokens, tokenizer=tokenizer
        )
    data = load_by_name(name, tokenizer, rows=rows, chat=chat)
    return paired(data) if "label" in data.column_names and not labelled else data
