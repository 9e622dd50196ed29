"""The options of commands that read rows: which dataset, which columns, which rows are used.

`prompts_and_score` reads what the commands that sample responses need.
"""

from pathlib import Path
from typing import Annotated, Any

from minirlhf.cli.limits import count_rows, not_empty, only_with, whole
from minirlhf.cli.options import DATA, MODEL, SAMPLING, SCORER, model_option, option


def of_dataset(dataset: str, **options: object) -> None:
    """Refuse options that are about the rows of --dataset where there is none.

    Args:
        options: by the names of their parameters; empty or None where they were left out.
    """
    for name, value in options.items():
        only_with(f"--{name.replace('_', '-')}", value or None, bool(dataset), "--dataset")


Data = Annotated[
    str,
    option(
        DATA,
        "hh-rlhf, ultrafeedback, imdb, a hub name, a file (.jsonl, .json, .csv, .tsv, .parquet, "
        ".arrow, also compressed), or a folder that save_to_disk wrote.",
        "--dataset",
        show_default="film reviews",
        callback=not_empty,
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


def max_response_option(default: int) -> Any:
    """The option --max-response. `default` holds where it is left out, as `checked_rows` says."""
    return option(
        DATA,
        "Longest response in tokens, EOS included. Longer ones are cut. The default is refused "
        "where it would cut nearly all of your rows.",
        show_default=f"{default}",
        callback=whole(1),
    )


def sampled_response(**given: Any) -> Any:
    """The option --max-response of responses that are sampled to be judged."""
    return option(
        DATA,
        "Longest response in tokens, EOS included. Longer ones are cut.",
        callback=whole(1),
        **given,
    )


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
AllRows = Annotated[
    int | None,
    option(DATA, "Rows to read of --dataset.", show_default="all", callback=count_rows),
]


def prompts_option(default: str) -> Any:
    """The option --dataset of prompts. `default` says what is used where it is left out."""
    return option(
        DATA,
        "Prompts of your own: the dataset as for dpo. Responses in it are not used.",
        "--dataset",
        show_default=default,
        callback=not_empty,
    )


Prompts = Annotated[str, prompts_option("titles of films")]
ScorerOrReward = Annotated[
    str | None,
    model_option(f"Reward model: {SCORER} or a folder. Not with --reward.", show_default=SCORER),
]
Reward = Annotated[
    Path | None,
    option(
        MODEL,
        "Python file with a function reward(prompts, completions, **columns), which scores "
        "instead of --scorer.",
        show_default="none",
    ),
]
MaxNewTokens = Annotated[
    int | None,
    option(
        SAMPLING,
        "Longest sampled response in tokens, EOS included.",
        show_default="the task's own",
        callback=whole(1),
    ),
]
