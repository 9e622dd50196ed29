"""Datasets by name, as standard rows: files of your own, and datasets of the hub.

A dataset of the hub is downloaded on first use.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from datasets import Dataset, load_dataset
from transformers import PreTrainedTokenizerBase

from minirlhf.runtime import check
from minirlhf.tasks import reviews
from minirlhf.tasks.files import (
    COMPRESSED,
    SUFFIXES,
    BadRow,
    Row,
    is_data_file,
    is_saved_dataset,
    read_folder,
    read_rows,
)
from minirlhf.tasks.formats import as_dataset, completions, paired
from minirlhf.tasks.layouts import Layout, find_layout
from minirlhf.tasks.lines import Unreadable
from minirlhf.tasks.reports import ORIGIN, Source
from minirlhf.tasks.rows import standard_rows


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


# name -> (name on the hub, its training split)
DATASETS: dict[str, tuple[str, str]] = {
    "hh-rlhf": ("Anthropic/hh-rlhf", "train"),
    "ultrafeedback": ("HuggingFaceH4/ultrafeedback_binarized", "train_prefs"),
    "imdb": ("stanfordnlp/imdb", "train"),
}


def load_by_name(
    name: str,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    split: str | None = None,
    rows: int | None = None,
    chat: bool = False,
    columns: Mapping[str, str] | None = None,
    skip_invalid: bool = False,
    say: Callable[[str], object] = print,
    load: Callable[..., Dataset] = load_dataset,
) -> Dataset:
    """Load a dataset of the hub, a local file, or a folder of `save_to_disk`, as standard rows.

    Pairs of equal responses are left out of `DATASETS`, because the reader cannot correct them.

    Args:
        name: hh-rlhf, ultrafeedback or imdb; any hub name; or the path of a file or folder. The
            name of a file ends in .jsonl, .json, .csv, .tsv, .parquet or .arrow, with .gz, .bz2,
            .xz or .zst after it where a file of text is compressed.
        tokenizer: needed for conversations.
        split: of the dataset; by default its training split.
        rows: load only the first so many. What follows in a local file is not read.
        columns: what the columns mean, where it cannot be seen; see `formats.standard`.
        skip_invalid: leave out rows that cannot be used, instead of refusing them.
        chat: write rows of text with the chat template too (see `formats.standard`).
        say: is called with a text: the columns, and the rows that were left out.
        load: function that downloads, with the signature of `datasets.load_dataset`.

    Raises:
        ValueError: the dataset cannot be loaded, has no known format, or has a row that cannot be
            used. Rows are counted from 1.
    """
    made, _ = _loaded(
        name,
        tokenizer,
        split=split,
        rows=rows,
        chat=chat,
        columns=columns,
        skip_invalid=skip_invalid,
        say=say,
        load=load,
    )
    return made.remove_columns(ORIGIN) if ORIGIN in made.column_names else made


def _loaded(
    name: str,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    split: str | None = None,
    rows: int | None,
    chat: bool,
    columns: Mapping[str, str] | None,
    skip_invalid: bool,
    say: Callable[[str], object],
    load: Callable[..., Dataset] = load_dataset,
) -> tuple[Dataset, Layout]:
    """What `load_by_name` returns, with the column `ORIGIN` except for imdb, and its layout."""
    check("columns", columns, not (columns and name == "imdb"), "left out with imdb")
    check("chat", chat, not (chat and name == "imdb"), "off with imdb, whose texts are no answers")
    if name == "imdb":
        check("rows", rows, rows is None or rows >= 1, "1 or more")
        read = _from_hub(name, *DATASETS[name], split, rows, load)
        say(f"imdb: {len(read)} rows; the first 8 words of text are the prompt.")
        return imdb_rows(read), Layout({}, ())
    found, layout = _read(name, split, rows, columns, load)
    source = Source(_title(name))
    made, report = standard_rows(
        found,
        layout,
        tokenizer,
        source,
        skip_invalid=skip_invalid,
        drop_equal=name in DATASETS,
        chat=chat,
    )
    say(report.lines(layout, limited=len(found) == rows))
    numbered = {
        number: row | {ORIGIN: source.origin(number, chat=report.chat)}
        for number, row in made.items()
    }
    return as_dataset(numbered), layout


def _read(
    name: str,
    split: str | None,
    rows: int | None,
    columns: Mapping[str, str] | None,
    load: Callable[..., Dataset],
    *,
    only_prompts: bool = False,
) -> tuple[Sequence[Row | BadRow], Layout]:
    """The first rows of a dataset as they are, and which of their columns mean what.

    Args:
        only_prompts: the responses will not be read.

    Raises:
        ValueError: the dataset cannot be loaded, or has no known format.
    """
    found, title = read_named(name, split, rows, load)
    good = [row for row in found if isinstance(row, dict)]
    if not good:
        raise ValueError(f"'{name}' cannot be read, it has no row that can be used: {found[0]}")
    names = list(dict.fromkeys(column for row in good for column in row))
    layout = find_layout(names, good, columns, name=title, only_prompts=only_prompts)
    return found, layout


def read_named(
    name: str,
    split: str | None,
    rows: int | None,
    load: Callable[..., Dataset] = load_dataset,
) -> tuple[Sequence[Row | BadRow], str]:
    """(the first rows of a dataset as they are, its name in messages).

    Raises:
        ValueError: the dataset cannot be loaded.
    """
    check("rows", rows, rows is None or rows >= 1, "1 or more")
    path = _path(name)
    if name in DATASETS:
        found: Sequence[Row | BadRow] = _from_hub(
            name, *DATASETS[name], split, rows, load
        ).to_list()
    elif is_saved_dataset(path):
        found = read_folder(path, split, rows)
    elif path.is_file() or (is_data_file(path) and not path.is_dir()):
        found = _from_file(path, rows)
    else:
        found = _from_hub(name, name, "train", split, rows, load).to_list()
    if not found:
        kind = "folder" if path.is_dir() else "file" if path.is_file() else "dataset"
        raise ValueError(f"The {kind} '{name}' cannot be read: no rows.")
    return found, _title(name)


def _path(name: str) -> Path:
    """The path that a name may be.

    Raises:
        ValueError: it is empty, too long or the root folder, so it can name no dataset.
    """
    allowed = "the name of a dataset, of a file, or of a folder of data"
    try:
        Path(name).exists()
        usable = bool(name.strip() and Path(name).absolute().name)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise ValueError(
            f"dataset is {name[:60]!r}, of {len(name):,} letters, which is no path ({why}); it "
            f"must be {allowed}."
        ) from None
    check("dataset", name, usable, allowed)
    return Path(name)


def _title(name: str) -> str:
    """The name of a dataset in messages: of a file or folder without the folders above it."""
    return Path(name).absolute().name if Path(name).exists() else name


def _from_file(path: Path, rows: int | None) -> list[Row | BadRow]:
    """The first rows of a local file.

    Raises:
        ValueError: there is no such file, its name has another ending, or it cannot be read.
    """
    if not path.exists():
        raise ValueError(f"No dataset '{path}': there is no such file; check the spelling.")
    if not path.is_file():
        raise ValueError(f"The file '{path}' cannot be read: it is no file.")
    if not is_data_file(path):
        raise ValueError(
            f"The file '{path}' cannot be read: its name does not end in {', '.join(SUFFIXES)}, "
            f"nor in one of these with {', '.join(COMPRESSED)} after it."
        )
    return read_rows(path, rows)


def _from_hub(
    name: str,
    hub: str,
    usual: str,
    split: str | None,
    rows: int | None,
    load: Callable[..., Dataset],
) -> Dataset:
    """The first rows of a dataset on the hub, or of a folder of data files.

    Raises:
        ValueError: it cannot be loaded.
    """
    try:
        dataset = load(hub, split=split or usual)
    except Exception as error:  # hub, network and files raise many types
        why = next(iter(str(error).splitlines()), "") or type(error).__name__
        if Path(hub).exists():
            raise ValueError(f"The folder '{name}' cannot be read: {why}") from error
        if name in DATASETS:
            raise ValueError(
                f"No dataset '{name}': it cannot be downloaded ({type(error).__name__}: {why}); "
                "check the network."
            ) from error
        raise ValueError(
            f"No dataset '{name}': it is neither one of {', '.join(DATASETS)}, nor a readable "
            f"file ({', '.join(SUFFIXES)}), nor reachable on the hub ({type(error).__name__}); "
            "check the spelling or the network."
        ) from error
    dataset = dataset.shuffle(seed=0) if name == "imdb" else dataset  # it is sorted by label
    return dataset.select(range(min(rows or len(dataset), len(dataset))))


def _check_named(name: str, columns: Mapping[str, str] | None, chat: bool) -> None:
    """Refuse options about the rows of a dataset where there is none."""
    check("columns", columns, bool(name) or not columns, "left out without a dataset")
    check("chat", chat, bool(name) or not chat, "given together with a dataset")


def named_demonstrations(
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    rows: int,
    columns: Mapping[str, str] | None = None,
    skip_invalid: bool = False,
    chat: bool = False,
    say: Callable[[str], object] = print,
) -> Dataset:
    """Prompts and completions for SFT, with a column `row_of_file` as in `named_pairs`.

    Args:
        name: a dataset that `load_by_name` knows; empty for all film reviews.
        rows: load only the first so many rows of a named dataset.
        columns, skip_invalid, chat, say: as in `load_by_name`.

    Raises:
        ValueError: the dataset has no responses, or `load_by_name` refuses it.
    """
    _check_named(name, columns, chat)
    if not name:
        return reviews.sft_dataset(tokenizer)
    data, layout = _loaded(
        name,
        tokenizer,
        rows=rows,
        columns=columns,
        skip_invalid=skip_invalid,
        chat=chat,
        say=say,
    )
    data = completions(data, say=say)
    if "completion" not in data.column_names:
        raise _lacks(name, layout, ["completion"], "of no known format for SFT", "completion=NAME")
    return data


def named_pairs(
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    rows: int,
    seed: int,
    max_tokens: int,
    labelled: bool = False,
    columns: Mapping[str, str] | None = None,
    skip_invalid: bool = False,
    chat: bool = False,
    say: Callable[[str], object] = print,
) -> Dataset:
    """Preference pairs.

    A column `row_of_file` says which row of a named dataset each pair is, and whether the chat
    template wrote it; `loops.fit_rows` names rows by it, and takes it away.

    Args:
        name: a dataset that `load_by_name` knows; empty for pairs drawn from the film reviews.
        rows: the first rows of a named dataset, or the number of pairs to draw.
        seed: of the pairs drawn from the film reviews.
        max_tokens: length of the longest review among them.
        labelled: leave single responses with a label as they are, for a loss such as KTO.
            Otherwise they are paired.
        columns, skip_invalid, chat, say: as in `load_by_name`.

    Raises:
        ValueError: the dataset has neither pairs nor labels, or `load_by_name` refuses it.
    """
    _check_named(name, columns, chat)
    if not name:
        return reviews.preference_pairs(
            "reward", rows, seed=seed, max_tokens=max_tokens, tokenizer=tokenizer
        )
    data, layout = _loaded(
        name,
        tokenizer,
        rows=rows,
        columns=columns,
        skip_invalid=skip_invalid,
        chat=chat,
        say=say,
    )
    if "label" in data.column_names:
        return data if labelled else paired(data, say=say)
    if lacking := [c for c in ("chosen", "rejected") if c not in data.column_names]:
        raise _lacks(
            name, layout, lacking, "of no known format for pairs", "chosen=NAME,rejected=NAME"
        )
    return data


def named_prompts(
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    rows: int | None = None,
    columns: Mapping[str, str] | None = None,
    skip_invalid: bool = False,
    chat: bool = False,
    say: Callable[[str], object] = print,
    load: Callable[..., Dataset] = load_dataset,
) -> Dataset:
    """Prompts to sample responses to, with the other columns of their rows.

    A reward function is given these columns under the names that they have in the dataset.
    Responses that the dataset holds are not learned from. Of conversations in `messages`, the
    prompt is all turns before the assistant's last answer. A column `row_of_file` is as in
    `named_pairs`.

    Args:
        name: a dataset that `load_by_name` knows, except imdb.
        rows, columns, skip_invalid, chat, say, load: as in `load_by_name`.

    Raises:
        ValueError: the dataset has no prompts, or `load_by_name` refuses it.
    """
    check("dataset", name, name != "imdb", "another one: imdb has texts without prompts")
    found, layout = _read(name, None, rows, columns, load, only_prompts=True)
    source, asked = Source(_title(name)), layout.columns.get("prompt", ())
    made, report = standard_rows(
        found, layout, tokenizer, source, skip_invalid=skip_invalid, chat=chat
    )
    say(report.lines(layout, limited=len(found) == rows, others="Other columns"))
    given = {number: row for number, row in enumerate(found) if isinstance(row, dict)}
    broken = _unreadable(given, source)
    if broken:
        say("Not given to a reward: " + " ".join(broken.values()))
    prompts = {
        number: {"prompt": row["prompt"]}
        | {c: v for c, v in given[number].items() if c not in (*asked, "prompt", *broken)}
        | {ORIGIN: source.origin(number, chat=report.chat)}
        for number, row in made.items()
    }
    return as_dataset(prompts, source)


def _unreadable(rows: Mapping[int, Row], source: Source) -> dict[str, str]:
    """Columns with a value that cannot be read -> a sentence on the first of them."""
    found: dict[str, str] = {}
    for number, row in rows.items():
        for column, value in row.items():
            if isinstance(value, Unreadable) and column not in found:
                found[column] = f"{source.cell(number, column)} cannot be read: {value.why}."
    return found


def _lacks(name: str, layout: Layout, lacking: list[str], what: str, example: str) -> ValueError:
    """The refusal of a dataset that does not have the columns for a way of training."""
    advice = f"if other columns are meant, give --columns {example}."
    if "messages" in layout.columns:
        return ValueError(
            f"{_title(name)} holds conversations ({layout.named['messages']}) without rejected "
            "answers, so there are no pairs. The command sft learns from conversations, and grpo, "
            f"ppo and the online commands take their prompts; {advice}"
        )
    has = ", ".join([*sorted(layout.used), *layout.ignored])
    return ValueError(f"{_title(name)} is {what}: it has {has} and lacks {lacking}; {advice}")
