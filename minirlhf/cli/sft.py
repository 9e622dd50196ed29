"""The command sft: train on demonstrations."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from minirlhf.cli.checked import checked_rows
from minirlhf.cli.data_options import (
    Chat,
    Columns,
    Data,
    MaxPrompt,
    SkipInvalid,
    max_response_option,
    of_dataset,
)
from minirlhf.cli.limits import above_0, count_rows, only_with, whole
from minirlhf.cli.options import (
    DATA,
    OPTIMISER,
    SCORER,
    Bf16,
    CheckOnly,
    Device,
    Lora,
    MicroBatch,
    Model,
    Out,
    Recompute,
    Resume,
    Seed,
    given,
    model_option,
    option,
)
from minirlhf.cli.terminal import running, save, say
from minirlhf.cli.training_options import SECONDS, Rate, SaveEvery, shared
from minirlhf.experiments.practice import scoring
from minirlhf.loops.sft import SFTConfig, train_sft
from minirlhf.models.adapters import fitted
from minirlhf.models.load import load_policy
from minirlhf.models.sampling import SamplingConfig
from minirlhf.runtime import PARTIAL, check
from minirlhf.search.selection import best_of_n_rows
from minirlhf.tasks import reviews
from minirlhf.tasks.hub import named_demonstrations
from minirlhf.tasks.layouts import parse_columns
from minirlhf.tour import TourConfig

app = typer.Typer()


@app.command()
def sft(
    model: Model = "tiny-reviews",
    scorer: Annotated[
        str | None,
        model_option("Reward model for --best-of.", show_default=SCORER),
    ] = None,
    lora: Lora = 0,
    bf16: Bf16 = False,
    dataset: Data = "",
    rows: Annotated[
        int | None,
        option(
            DATA,
            "Rows to read of --dataset.",
            show_default=f"{TourConfig.pairs}",
            callback=count_rows,
        ),
    ] = None,
    columns: Columns = "",
    skip_invalid: SkipInvalid = False,
    chat: Chat = False,
    max_prompt: MaxPrompt = None,
    max_response: Annotated[int | None, max_response_option(SFTConfig.max_response)] = None,
    best_of: Annotated[
        int,
        option(
            DATA,
            "Train on the model's own samples instead: per prompt, the one with the highest "
            "reward of this many (rejection sampling). 0: off.",
            callback=whole(0, 10_000),
        ),
    ] = 0,
    epochs: Annotated[
        float | None,
        option(
            OPTIMISER,
            "Epochs over the data, above 0.",
            show_default=f"{SFTConfig.epochs}",
            callback=above_0(1e6),
        ),
    ] = None,
    steps: Annotated[
        int | None,
        shared(
            "steps",
            help="Training steps, instead of --epochs.",
            show_default="as --epochs says",
        ),
    ] = None,
    batch_size: Annotated[
        int, shared("batch_size", help="Demonstrations in a step, 1 or more.")
    ] = SFTConfig.batch_size,
    lr: Rate = SFTConfig.optimiser.lr,
    micro_batch: MicroBatch = 0,
    recompute: Recompute = False,
    out: Out = Path("out/sft"),
    seed: Seed = 0,
    device: Device = "cpu",
    save_every: SaveEvery = SECONDS,
    resume: Resume = False,
    check_only: CheckOnly = False,
) -> None:
    """Train on demonstrations: supervised fine-tuning (SFT).

    The model learns to write each response after its prompt; the loss counts the response only.
    Without --dataset, the prompts are film titles and the responses are reviews.

    Example: minirlhf sft --epochs 1 --out out/sft
    """
    only_with("--scorer", scorer, best_of > 0, "--best-of")
    only_with("--rows", rows, bool(dataset), "--dataset; all film reviews are used without it")
    of_dataset(dataset, columns=columns, skip_invalid=skip_invalid, chat=chat)
    only_with("--check-only", check_only or None, not best_of, "rows, not samples (--best-of)")
    start, tokenizer = load_policy(model)
    allowed = best_of == 0 or (best_of > 1 and not dataset)
    check("best_of", best_of, allowed, "0, or 2 and more without a dataset")
    check("--epochs", epochs, None in (epochs, steps), "left out with --steps")
    config = SFTConfig(
        **given(epochs=epochs, steps=steps, max_response=max_response),
        seed=seed,
        batch_size=batch_size,
        optimiser=replace(SFTConfig.optimiser, lr=lr, micro_batch=micro_batch),
    )
    if best_of:
        score, _ = scoring("reviews", start, tokenizer, **given(scorer=scorer))
        prompts, drawn = reviews.rl_prompts(), SamplingConfig()
        say(
            f"The demonstrations are the best of {best_of} samples of {model} to each of "
            f"{len(prompts)} film titles, by {scorer or SCORER} (temperature {drawn.temperature}, "
            f"at most {drawn.max_new_tokens} tokens)."
        )
        data = best_of_n_rows(start, tokenizer, prompts, score, best_of, seed=seed)
    else:
        data = named_demonstrations(
            dataset,
            tokenizer,
            rows=rows or TourConfig.pairs,
            columns=parse_columns(columns),
            skip_invalid=skip_invalid,
            chat=chat,
            say=say,
        )
    data, report = checked_rows(
        data,
        tokenizer,
        start,
        max_response=config.max_response,
        models=[model, scorer or SCORER] if best_of else [model],
        by_default=max_response is None,
        max_prompt=max_prompt,
        skip_invalid=skip_invalid,
        check_only=check_only,
    )
    policy = fitted(start, lora=lora, bf16=bf16, recompute=recompute)
    with running(out / PARTIAL, resume, save_every, every=20, check_only=check_only) as on:
        policy, history = train_sft(policy, tokenizer, data, config, **on)
    save(policy, tokenizer, out, history, chat=report.chat)
