"""The command evaluate: is a model better than the one it started from, on data of one's own?"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

from minirlhf.classroom.own_file import reward_of
from minirlhf.cli.data_options import (
    Chat,
    Columns,
    MaxPrompt,
    Reward,
    SkipInvalid,
    sampled_response,
)
from minirlhf.cli.evaluating import pair_table, responses_of
from minirlhf.cli.evaluation_tables import print_comparison, print_pairs, write_tables
from minirlhf.cli.limits import count_rows, only_with
from minirlhf.cli.options import (
    DATA,
    Device,
    Seed,
    given,
    model_option,
    option,
    out_table,
)
from minirlhf.cli.readers import Reader, pairs_for, prompts_for
from minirlhf.cli.terminal import naming_rows, say
from minirlhf.cli.training_options import AtOnce, shared
from minirlhf.evaluate import compare
from minirlhf.models.sampling import SamplingConfig
from minirlhf.runtime import check
from minirlhf.tasks.layouts import parse_columns

app = typer.Typer()
SAMPLES, AT_ONCE = 4, 64  # responses to each prompt, and in memory
DEFAULT = SamplingConfig()
NOTHING = (
    "There is nothing to compute. Give --model with --scorer or --reward, to score its responses; "
    "or, with pairs in --dataset, --scorer alone, or --model with --base."
)


@app.command()
def evaluate(
    model: Annotated[
        str | None,
        model_option("Language model to judge: a name, folder or hub name.", show_default="none"),
    ] = None,
    base: Annotated[
        str | None,
        model_option("Language model that it is compared with.", show_default="none"),
    ] = None,
    scorer: Annotated[
        str | None,
        model_option("Reward model that scores. Not with --reward.", show_default="none"),
    ] = None,
    reward: Reward = None,
    dataset: Annotated[
        str,
        option(
            DATA,
            "Held-out prompts or pairs of your own: the dataset as for dpo.",
            show_default="must be given",
        ),
    ] = "",
    rows: Annotated[
        int | None,
        option(
            DATA,
            "Prompts or pairs to read: the first rows of --dataset.",
            "--rows",
            "--prompts",
            show_default="all",
            callback=count_rows,
        ),
    ] = None,
    columns: Columns = "",
    skip_invalid: SkipInvalid = False,
    chat: Chat = False,
    max_prompt: MaxPrompt = None,
    max_response: Annotated[
        int | None,
        sampled_response(
            show_default=f"{DEFAULT.max_new_tokens} for samples; pairs are read whole"
        ),
    ] = None,
    samples: Annotated[
        int | None, shared("group_size", "--samples", show_default=str(SAMPLES))
    ] = None,
    temperature: Annotated[
        float | None, shared("temperature", show_default=str(DEFAULT.temperature))
    ] = None,
    micro_batch: AtOnce = AT_ONCE,
    out: Annotated[Path | None, out_table("Also write the table to this file.")] = None,
    responses: Annotated[
        Path | None, out_table("Also write all responses and their scores to this file.")
    ] = None,
    seed: Seed = 0,
    device: Device = "cpu",
) -> None:
    """Compare a model with its start, on data of your own.

    With --model, and --scorer or --reward: the model's responses to the prompts of the dataset are
    scored, and compared with those of --base if it is given.

    With pairs and --scorer alone: how often the reward model prefers the chosen response. With
    pairs and --model and --base alone: how often DPO's implicit reward does.

    Example: minirlhf evaluate --model out/grpo --base gpt2 --dataset mine.jsonl --reward mine.py
    """
    only_with("--scorer", scorer, reward is None, "a reward model, and --reward is a function")
    only_with("--base", base, model is not None, "--model")
    only_with("--reward", reward and str(reward), model is not None, "--model")
    sampled = model is not None and (scorer is not None or reward is not None)
    of_samples = {"samples": samples, "temperature": temperature, "responses": responses}
    for name, value in of_samples.items():
        shown = str(value) if isinstance(value, Path) else value
        only_with(f"--{name}", shown, sampled, "--model and one of --scorer and --reward")
    if not dataset:
        raise ValueError("Give --dataset: a file of held-out prompts or pairs of your own.")
    check("--responses", str(responses), not responses or responses != out, "another than --out")
    if not sampled and scorer is None and base is None:
        raise ValueError(NOTHING)
    by: Any = reward and reward_of(reward)
    policies = [Reader.policy(name) for name in (model, base) if name]
    if scorer:
        by = Reader.scorer(scorer)
    readers = [*policies, by] if scorer else policies
    reading: dict[str, Any] = {
        "rows": rows,
        "columns": parse_columns(columns),
        "skip_invalid": skip_invalid,
        "chat": chat,
        "max_prompt": max_prompt,
    }
    names = [name for name in (model, base) if name]
    if not sampled:
        by_whom = "the reward model" if scorer else "DPO's implicit reward"
        say(f"Computed: how often {by_whom} prefers the chosen response of a pair.")
        pairs = pairs_for(readers, dataset, max_response=max_response, **reading)
        table = pair_table(readers, pairs, max_response, micro_batch or len(pairs), seed)
        try:
            return print_pairs(table, by_whom)
        finally:  # also where the output is closed early
            write_tables({out: table})
    say(f"Computed: scores of sampled responses ({', '.join(names)}).")
    config = replace(DEFAULT, **given(max_new_tokens=max_response, temperature=temperature))
    read, rows_read = prompts_for(readers, dataset, max_new_tokens=config.max_new_tokens, **reading)
    with naming_rows(rows_read):
        drawn = responses_of(policies, read, by, config, samples or SAMPLES, micro_batch, seed)
    table = compare(*drawn, bootstrap_seed=seed)
    table.insert(1, "name", names)
    every = [rows.assign(model=m) for m, rows in zip(table.model, drawn, strict=True)]
    try:  # a file that cannot be written must not hide the table
        print_comparison(table, drawn, config.max_new_tokens)
    finally:
        write_tables({responses: pd.concat(every), out: table})
