"""Options that several commands share. The help page shows them in panels."""

from pathlib import Path
from typing import Annotated, Any

import typer

from minirlhf.cli.folders import a_model, hold
from minirlhf.cli.limits import a_seed, only_with, whole

DATA, MODEL, OPTIMISER, LOSS = "Data", "Model", "Optimiser", "Loss"
SAMPLING, RUN = "Sampling", "Run"
TABLES = (".csv", ".jsonl")  # endings of the tables that a command writes


def option(panel: str, help: str, *names: str, **given: Any) -> Any:
    """An option in a panel of the help page."""
    return typer.Option(*names, help=help, rich_help_panel=panel, **given)


def model_option(help: str, **given: Any) -> Any:
    """An option for a model by its name or folder."""
    return option(MODEL, help, callback=a_model, **given)


Model = Annotated[
    str,
    model_option(
        "Language model: tiny-reviews, tiny-reviews-sft, smollm2-135m, a folder, or a hub name."
    ),
]
SCORER = "tiny-reviews-reward"
Scorer = Annotated[str, model_option(f"Reward model: {SCORER} or a folder.")]


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
        is_eager=True,  # --bf16 asks for it
    ),
]


def _with_lora(context: typer.Context, bf16: bool) -> bool:
    lora = context.params.get("lora", 0)  # read before this option, because it is eager
    only_with("--bf16", bf16 or None, lora > 0, "--lora, such as --lora 16")
    return bf16


Bf16 = Annotated[
    bool,
    option(
        MODEL,
        "Keep the frozen weights in bfloat16. Only with --lora.",
        "--bf16",
        callback=_with_lora,
    ),
]

TaskSteps = Annotated[
    int | None,
    option(
        OPTIMISER,
        "Training steps, 1 or more.",
        show_default="the task's own",
        callback=whole(1),
    ),
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


def out_file(help: str) -> Any:
    """An option for a file that the command writes."""
    return option(RUN, help, callback=hold(folder=False))


def out_table(help: str) -> Any:
    """An option for a table that the command writes."""
    return option(RUN, help, callback=hold(folder=False, endings=TABLES))


def out_folder(help: str, *, model: bool = False) -> Any:
    """An option for a folder that the command writes. model: it may hold only a model."""
    return option(RUN, help, callback=hold(folder=True, model=model))


REPLACED = "Folder for the result. Its contents are replaced only after the new output is complete."
Out = Annotated[Path, out_folder(REPLACED, model=True)]
OutParts = Annotated[Path, out_folder(REPLACED)]  # for models in folders below it
WorkFolder = Annotated[
    Path, out_folder("Folder for finished parts. A later call continues from them.")
]
Seed = Annotated[int, option(RUN, "Seed of all random numbers in the run.", callback=a_seed)]
Resume = Annotated[
    bool,
    option(
        RUN,
        "Continue the run that was stopped in --out. The result is the same as without a stop.",
        "--resume",
    ),
]
CheckOnly = Annotated[
    bool,
    option(
        RUN,
        "Check all that is checked before the first step, print how long the data are in tokens, "
        "and stop. Nothing is written.",
        "--check-only",
    ),
]


def given(**options: object) -> dict:
    """The options that the user gave: those that are not None."""
    return {name: value for name, value in options.items() if value is not None}
