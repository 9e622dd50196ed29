"""Options that several commands share. The help page shows them in panels."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

DATA, MODEL, OPTIMISER, LOSS = "Data", "Model", "Optimiser", "Loss"
SAMPLING, RUN = "Sampling", "Run"


def option(panel: str, help: str, *names: str, **given: Any) -> Any:
    """An option in a panel of the help page."""
    return typer.Option(*names, help=help, rich_help_panel=panel, **given)


MANY = 10**9  # no count of anything is larger


def whole(low: int, high: int = MANY, meaning: str = "") -> Callable:
    """The callback of an option: a whole number from `low` to `high`.

    Args:
        meaning: what the number is, where the option's name does not say it.
    """

    def checked(param: typer.CallbackParam, value: int | None) -> int | None:
        good = value is None or low <= value <= high
        _check(param, value, good, f"at least {low} and at most {high:,}", meaning)
        return value

    return checked


def above_0(high: float) -> Callable:
    """The callback of an option: a number above 0 and at most `high`.

    Below 1e-30 a number is refused, too: float32 would round it, or its square, to 0.
    """

    def checked(param: typer.CallbackParam, value: float | None) -> float | None:
        good = value is None or 1e-30 <= value <= high
        _check(param, value, good, f"above 0, from 1e-30 to {high:g}")
        return value

    return checked


def not_negative(param: typer.CallbackParam, value: float | None) -> float | None:
    """The callback of an option: 0 or more, and at most 1e30."""
    good = value is None or 0 <= value <= 1e30
    _check(param, value, good, "0 or more, and at most 1e30")
    return value


def _check(
    param: typer.CallbackParam, value: object, good: bool, allowed: str, meaning: str = ""
) -> None:
    from minirlhf.runtime import check  # imported here, because torch takes seconds

    check(f"--{param.name}: the {meaning}" if meaning else f"{param.name}", value, good, allowed)


def only_with(option: str, value: object, allowed: bool, what: str) -> None:
    """Refuse an option that the command would ignore.

    Args:
        value: what was given; None where the option was left out.
        what: what the option needs, to complete "it works only with ...".

    Raises:
        ValueError: the option was given, and is not `allowed`.
    """
    if value is not None and not allowed:
        raise ValueError(f"{option} is {value!r}, but it works only with {what}: leave it out.")


def of_dataset(dataset: str, **options: object) -> None:
    """Refuse options that are about the rows of --dataset where there is none.

    Args:
        options: by the names of their parameters; empty or None where they were left out.
    """
    for name, value in options.items():
        only_with(f"--{name.replace('_', '-')}", value or None, bool(dataset), "--dataset")


def count_rows(value: int | None) -> int | None:
    if value is not None and not 1 <= value <= MANY:
        raise ValueError(
            f"--rows is a number n, and n is {value}; it must be at least 1 pair or row and at "
            f"most {MANY:,}."
        )
    return value


Model = Annotated[
    str,
    option(
        MODEL,
        "Language model: tiny-reviews, tiny-reviews-sft, smollm2-135m, a folder, or a hub name.",
    ),
]
Scorer = Annotated[str, option(MODEL, "Reward model: tiny-reviews-reward or a folder.")]


def _use_device(name: str) -> str:
    """Load every model of the command on this device: no command has to read the option."""
    from minirlhf.runtime import use_device  # imported here, because torch takes seconds

    use_device(name)
    return name


Device = Annotated[
    str,
    option(
        MODEL,
        "Where models run: cpu, cuda, mps, or auto (a GPU if there is one).",
        callback=_use_device,
    ),
]
Lora = Annotated[
    int,
    option(
        MODEL,
        "Rank of low-rank adapters (LoRA). 0: train all weights instead.",
        callback=whole(0, 10_000, "rank"),
    ),
]
Bf16 = Annotated[
    bool, option(MODEL, "Keep the frozen weights in bfloat16. Only with --lora.", "--bf16")
]

Data = Annotated[
    str,
    option(
        DATA,
        "hh-rlhf, ultrafeedback, imdb, a hub name, a file (.jsonl, .json, .csv, .tsv, .parquet, "
        ".arrow, also compressed), or a folder that save_to_disk wrote.",
        "--dataset",
        show_default="film reviews",
    ),
]
Rows = Annotated[
    int,
    option(
        DATA,
        "Rows to read of the dataset, or pairs to draw from the film reviews.",
        callback=count_rows,
    ),
]
Columns = Annotated[
    str,
    option(
        DATA,
        "Which column is which, if the names do not say it: prompt=question,completion=answer. "
        "Also chosen, rejected, label, messages; prompt=a+b joins two, prompt= means none.",
        show_default="by their names",
    ),
]
SkipInvalid = Annotated[
    bool,
    option(
        DATA,
        "Leave out rows that cannot be used, and say which. Otherwise they are refused.",
        "--skip-invalid",
    ),
]
MaxResponse = Annotated[
    int,
    option(
        DATA,
        "Longest response in tokens, EOS included. Longer ones are cut.",
        callback=whole(0),  # where 0 is too few, the data say so
    ),
]

MaxPrompt = Annotated[
    int | None,
    option(
        DATA,
        "Leave out rows whose prompt has more tokens, and say which.",
        show_default="no limit; too long ones are refused",
        callback=whole(1),
    ),
]
Chat = Annotated[
    bool,
    option(
        DATA,
        "Write prompts and responses of text with the tokenizer's chat template, as turns of the "
        "user and the assistant. Conversations are always written with it.",
        "--chat",
    ),
]

Steps = Annotated[int, option(OPTIMISER, "Training steps, 1 or more.", callback=whole(1))]
TaskSteps = Annotated[
    int | None,
    option(
        OPTIMISER,
        "Training steps, 1 or more.",
        show_default="the task's own",
        callback=whole(1),
    ),
]
LARGEST_RATE = 1000.0
Rate = Annotated[
    float, option(OPTIMISER, "Peak learning rate, above 0.", callback=above_0(LARGEST_RATE))
]
MicroBatch = Annotated[
    int,
    option(
        OPTIMISER,
        "Sequences or pairs in memory at once: less memory, the same gradient. 0: all.",
        callback=whole(0),
    ),
]
Recompute = Annotated[
    bool,
    option(
        OPTIMISER,
        "Gradient checkpointing: less memory, about a third more time.",
        "--recompute",
    ),
]

KLCoef = Annotated[
    float,
    option(LOSS, "KL coefficient: reward units per nat, 0 or more.", callback=not_negative),
]


def _hold(folder: bool, model: bool = False) -> Callable:
    """The callback of an option for output: refuse at once what cannot be written or is in use.

    Args:
        folder: the option is a folder, else a file. model: the folder may hold only a model.
    """

    def callback(context: typer.Context, path: Path | None) -> Path | None:
        from minirlhf.runtime import output_file, output_folder  # as above

        if path is not None and not context.resilient_parsing:
            held = output_folder(path, model=model) if folder else output_file(path)
            context.with_resource(held)  # until the command ends
        return path

    return callback


def out_file(help: str) -> Any:
    """An option for a file that the command writes."""
    return option(RUN, help, callback=_hold(folder=False))


def out_folder(help: str, *, model: bool = False) -> Any:
    """An option for a folder that the command writes. model: it may hold only a model."""
    return option(RUN, help, callback=_hold(folder=True, model=model))


REPLACED = "Folder for the result. Its contents are replaced only after the new output is complete."
Out = Annotated[Path, out_folder(REPLACED, model=True)]
OutParts = Annotated[Path, out_folder(REPLACED)]  # for models in folders below it
WorkFolder = Annotated[
    Path, out_folder("Folder for finished parts. A later call continues from them.")
]
LARGEST_SEED = 2**32 - 1
Seed = Annotated[
    int, option(RUN, "Seed of all random numbers in the run.", callback=whole(0, LARGEST_SEED))
]
Resume = Annotated[
    bool,
    option(
        RUN,
        "Continue the run that was stopped in --out. The result is the same as without a stop.",
        "--resume",
    ),
]


def given(**options: object) -> dict:
    """The options that the user gave: those that are not None."""
    return {name: value for name, value in options.items() if value is not None}
