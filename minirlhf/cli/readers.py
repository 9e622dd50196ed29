"""The rows that several models read: each with its own tokenizer, and all of them the same rows."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from minirlhf.cli.checked import say_plain
from minirlhf.cli.limits import MANY
from minirlhf.cli.terminal import say
from minirlhf.evaluate.comparison import check_enough
from minirlhf.loops.rows import fit_rows
from minirlhf.models.adapters import Policy
from minirlhf.models.fit import same_vocabulary
from minirlhf.models.heads import ScalarModel
from minirlhf.models.load import load_policy, load_scalar
from minirlhf.tasks.hub import named_pairs, named_prompts


class Reader(NamedTuple):
    """A policy or a reward model with its tokenizer."""

    name: str  # in messages
    given: str  # the name or folder that the user gave
    model: Policy | ScalarModel
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def policy(cls, given: str) -> "Reader":
        """A language model by its name or folder."""
        return cls(f"model {given}", given, *load_policy(given))

    @classmethod
    def scorer(cls, given: str, name: str = "reward model") -> "Reader":
        """A reward model by its name or folder."""
        return cls(name, given, *load_scalar(given))

    @property
    def backbone(self) -> Any:
        """The model that reads the tokens."""
        return self.model.backbone if isinstance(self.model, ScalarModel) else self.model


def same_tokens(a: Reader, b: Reader) -> bool:
    """Whether two models read the same tokens: their tokenizers have the same vocabulary."""
    return same_vocabulary(a.tokenizer, b.tokenizer)


def prompts_for(
    readers: list[Reader],
    dataset: str,
    *,
    max_new_tokens: int,
    max_prompt: int | None,
    skip_invalid: bool,
    films: Sequence[str] = (),
    **loading: Any,
) -> tuple[dict[str, Dataset], list[str]]:
    """The prompts of a dataset for each reader: the same rows in the same order.

    Readers of the same tokens read the same text, as the first of them writes it. Another tokenizer
    writes conversations with its own chat template. A row that one reader leaves out is left out
    for all.

    Args:
        dataset: "": the prompts are `films`.
        max_new_tokens: tokens that will be sampled after each prompt.
        max_prompt, skip_invalid: as in `loops.fit_rows`.
        loading: as `tasks.named_prompts` takes it.

    Returns:
        (the rows of each reader, by its name; the names of these rows in their file).

    Raises:
        ValueError: the rows cannot be used, or fewer than two prompts are left.
    """
    writers = [next(w.name for w in readers if same_tokens(w, reader)) for reader in readers]
    read: dict[str, tuple[Dataset, list[str]]] = {}  # writer -> rows, and their names in the file
    for writer in dict.fromkeys(writers):
        first, *others = (r for r, name in zip(readers, writers, strict=True) if name == writer)
        try:
            data = (
                named_prompts(
                    dataset, first.tokenizer, skip_invalid=skip_invalid, say=say, **loading
                )
                if dataset
                else Dataset.from_dict({"prompt": films})
            )
            data, report = fit_rows(
                data,
                first.tokenizer,
                first.backbone,
                max_new_tokens=max_new_tokens,
                max_prompt=max_prompt,
                responses=(),
                skip_invalid=skip_invalid,
                others={other.name: other.backbone for other in others},
            )
        except ValueError as error:
            if len(set(writers)) > 1:
                error.add_note(f"The rows were read with the tokenizer of the {writer}.")
            raise
        say(str(report))
        models, asked = [reader.given for reader in (first, *others)], data["prompt"][:]
        say_plain(models, asked, first.tokenizer, chat=report.chat, films=not dataset)
        read[writer] = data, report.names
    common = set.intersection(*(set(names) for _, names in read.values()))
    made = {
        writer: data.select([i for i, name in enumerate(names) if name in common])
        for writer, (data, names) in read.items()
    }
    if len(read) > 1:
        say(f"{len(common):,} rows are used: those that all models read. Their tokenizers differ.")
    check_enough(len(set(made[writers[0]]["prompt"])), "prompts")
    names = [name for name in read[writers[0]][1] if name in common]
    return {r.name: made[writer] for r, writer in zip(readers, writers, strict=True)}, names


def pairs_for(
    readers: list[Reader],
    dataset: str,
    *,
    rows: int | None,
    max_response: int | None,
    max_prompt: int | None,
    skip_invalid: bool,
    **loading: Any,
) -> Dataset:
    """The preference pairs of a dataset, for readers of the same tokens.

    Args:
        rows: read only the first so many; None: all.
        max_response, max_prompt, skip_invalid: as in `loops.fit_rows`.
        loading: as `tasks.named_pairs` takes it.

    Raises:
        ValueError: the readers have different tokenizers, the dataset has no pairs, the pairs
            cannot be used, or fewer than two are left.
    """
    first, *others = readers
    for other in others:
        if not same_tokens(first, other):
            raise ValueError(
                f"The {first.name} and the {other.name} have different tokenizers; give two "
                "models with the same one, so that both read the same tokens."
            )
    try:
        data = named_pairs(
            dataset,
            first.tokenizer,
            rows=rows or MANY,
            seed=0,
            max_tokens=0,
            skip_invalid=skip_invalid,
            say=say,
            **loading,
        )
    except ValueError as error:
        error.add_note("For prompts without pairs give --model and one of --scorer and --reward.")
        raise
    data, report = fit_rows(
        data,
        first.tokenizer,
        first.backbone,
        max_response=max_response,
        max_prompt=max_prompt,
        skip_invalid=skip_invalid,
        others={other.name: other.backbone for other in others},
    )
    say(str(report))
    check_enough(len(data), "pairs")
    return data
