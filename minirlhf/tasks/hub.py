"""Well-known datasets of the hub by name, as standard rows. Nothing is downloaded until one is asked for."""

from collections.abc import Callable
from pathlib import Path

from datasets import Dataset, load_dataset

from minirlhf.runtime import check
from minirlhf.tasks.formats import standard


def imdb_rows(dataset: Dataset, words: int = 8) -> Dataset:
    """Film reviews with a sentiment: the first words are the prompt, the rest the completion, positive is good (unpaired rows)."""

    def row(given):
        beginning = given["text"].split(" ", words)
        return {
            "prompt": " ".join(beginning[:words]),
            "completion": " " + " ".join(beginning[words:]),
            "label": given["label"] == 1,
        }

    return Dataset.from_list(
        [row(given) for given in dataset if len(given["text"].split(" ")) > words]
    )


def known_pairs(dataset: Dataset, tokenizer=None) -> Dataset:
    """Standard rows of a set that the reader cannot mend: its pairs of equal texts are left out."""
    return standard(dataset, tokenizer, drop_equal=True)


DATASETS: dict[
    str, tuple[str, str, Callable]
] = {  # name -> the hub's name, its split, how its rows become standard ones
    "hh-rlhf": ("Anthropic/hh-rlhf", "train", known_pairs),
    "ultrafeedback": ("HuggingFaceH4/ultrafeedback_binarized", "train_prefs", known_pairs),
    "imdb": ("stanfordnlp/imdb", "train", lambda dataset, tokenizer: imdb_rows(dataset)),
}


def load_by_name(
    name: str,
    tokenizer=None,
    *,
    split: str | None = None,
    rows: int | None = None,
    load=load_dataset,
) -> Dataset:
    """A dataset of the hub, or a local .jsonl file, as standard rows.

    Args:
        name: hh-rlhf, ultrafeedback, imdb; any hub name or .jsonl path whose columns are in one of TRL's formats.
        tokenizer: needed for conversations. rows: only the first so many. load: what fetches (`datasets.load_dataset`).

    Raises:
        ValueError: it cannot be fetched, or has no known format.
    """
    check("rows", rows, rows is None or rows >= 1, "1 or more")
    hub, usual, parse = DATASETS.get(name, (name, "train", standard))
    try:
        if hub.endswith(".jsonl"):
            dataset = load("json", data_files=hub, split="train")
        else:
            dataset = load(hub, split=split or usual)
    except Exception as error:  # the hub, the network, a file: each with an exception of its own
        if Path(hub).is_file():
            why = str(error.__cause__ or "no rows") if hub.endswith(".jsonl") else "it is no .jsonl"
            raise ValueError(f"The file '{name}' cannot be read: {why.splitlines()[0]}") from error
        raise ValueError(
            f"No dataset '{name}': not one of {', '.join(DATASETS)}, and neither a readable .jsonl file nor reachable "
            f"on the hub ({type(error).__name__}); check the spelling or the network."
        ) from error
    columns = [
        c
        for c in ("prompt", "completion", "chosen", "rejected", "label", "messages", "text")
        if c in dataset.column_names
    ]
    if {"chosen", "rejected"} <= set(columns):
        columns = [
            c for c in columns if c != "messages"
        ]  # ultrafeedback has the chosen conversation once more
    dataset = dataset.shuffle(seed=0) if name == "imdb" else dataset  # it is sorted by label
    dataset = dataset.select_columns(columns).select(range(min(rows or len(dataset), len(dataset))))
    return parse(dataset, tokenizer)
