"""The command dpo: train on preference pairs."""

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
    Rows,
    SkipInvalid,
    max_response_option,
    of_dataset,
)
from minirlhf.cli.judging import print_judged
from minirlhf.cli.loss_options import (
    Beta,
    LossName,
    Mixup,
    ReferenceFree,
    Setting,
    SyncEvery,
    settings,
)
from minirlhf.cli.options import (
    OPTIMISER,
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
    option,
)
from minirlhf.cli.terminal import running, save, say
from minirlhf.cli.training_options import SECONDS, PairBatch, Rate, SaveEvery, Steps
from minirlhf.loops.preference import LOSSES, DPOConfig, train_dpo
from minirlhf.models.adapters import fitted
from minirlhf.models.load import load_policy
from minirlhf.runtime import PARTIAL
from minirlhf.tasks.hub import named_pairs
from minirlhf.tasks.layouts import parse_columns
from minirlhf.tour import TourConfig

app = typer.Typer()


@app.command()
def dpo(
    model: Model = "tiny-reviews-sft",
    lora: Lora = 0,
    bf16: Bf16 = False,
    dataset: Data = "",
    rows: Rows = TourConfig.pairs,
    columns: Columns = "",
    skip_invalid: SkipInvalid = False,
    chat: Chat = False,
    max_prompt: MaxPrompt = None,
    max_response: Annotated[int | None, max_response_option(DPOConfig.max_response)] = None,
    steps: Steps = DPOConfig.steps,
    batch_size: PairBatch = DPOConfig.batch_size,
    lr: Rate = DPOConfig.optimiser.lr,
    micro_batch: MicroBatch = 0,
    recompute: Recompute = False,
    precompute: Annotated[
        bool,
        option(
            OPTIMISER,
            "Compute the reference's log-probabilities once, before the first step.",
            "--precompute",
        ),
    ] = False,
    loss: LossName = DPOConfig.loss,
    beta: Beta = None,
    setting: Setting = None,
    reference_free: ReferenceFree = False,
    sync_every: SyncEvery = DPOConfig.sync_every,
    mixup: Mixup = DPOConfig.mixup,
    out: Out = Path("out/dpo"),
    seed: Seed = 0,
    device: Device = "cpu",
    save_every: SaveEvery = SECONDS,
    resume: Resume = False,
    check_only: CheckOnly = False,
) -> None:
    """Train by direct preference optimisation (DPO).

    The policy learns from pairs of a chosen and a rejected response, without a reward model and
    without sampling. The reference is a copy of --model that stays as it is. --loss selects
    another loss of the family.

    Example: minirlhf dpo --loss simpo --setting margin=0.5
    """
    of_dataset(dataset, columns=columns, skip_invalid=skip_invalid, chat=chat)
    start, tokenizer = load_policy(model)
    config = DPOConfig(
        loss,
        beta,
        settings(setting),
        steps=steps,
        batch_size=batch_size,
        **given(max_response=max_response),
        reference_free=reference_free,
        sync_every=sync_every,
        mixup=mixup,
        precompute=precompute,
        optimiser=replace(DPOConfig.optimiser, lr=lr, micro_batch=micro_batch),
        seed=seed,
    )
    data = named_pairs(
        dataset,
        tokenizer,
        rows=rows,
        seed=seed,
        max_tokens=config.max_response,
        labelled=LOSSES[loss].single,
        columns=parse_columns(columns),
        skip_invalid=skip_invalid,
        say=say,
        chat=chat,
    )
    data, report = checked_rows(
        data,
        tokenizer,
        start,
        max_response=config.max_response,
        models=[model],
        by_default=max_response is None,
        max_prompt=max_prompt,
        shifted=LOSSES[loss].single,
        skip_invalid=skip_invalid,
        check_only=check_only,
    )
    policy = fitted(start, lora=lora, bf16=bf16, recompute=recompute)
    with running(out / PARTIAL, resume, save_every, every=10, check_only=check_only) as on:
        policy, history = train_dpo(policy, tokenizer, data, config, **on)
    save(policy, tokenizer, out, history, chat=report.chat)
    if not dataset:
        print_judged(policy, tokenizer, model, seed)
