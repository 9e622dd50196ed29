"""The command reward: train a reward model on preference pairs."""

from dataclasses import replace
from itertools import cycle, islice
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
from minirlhf.cli.options import (
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
)
from minirlhf.cli.terminal import running, saving, say
from minirlhf.cli.training_options import SECONDS, Rate, SaveEvery, Steps, shared
from minirlhf.loops.reward import RewardConfig, train_reward_model
from minirlhf.models.adapters import fitted
from minirlhf.models.fit import end_ids
from minirlhf.models.heads import check_savable
from minirlhf.models.load import load_policy
from minirlhf.models.sampling import SamplingConfig, sample_text
from minirlhf.rewards.model import normalise_scores
from minirlhf.runtime import PARTIAL
from minirlhf.tasks import reviews
from minirlhf.tasks.hub import named_pairs
from minirlhf.tasks.layouts import parse_columns
from minirlhf.tour import TourConfig

app = typer.Typer()


@app.command()
def reward(
    model: Model = "tiny-reviews-sft",
    lora: Lora = 0,
    bf16: Bf16 = False,
    dataset: Data = "",
    rows: Rows = TourConfig.pairs,
    columns: Columns = "",
    skip_invalid: SkipInvalid = False,
    chat: Chat = False,
    max_prompt: MaxPrompt = None,
    max_response: Annotated[int | None, max_response_option(RewardConfig.max_response)] = None,
    steps: Steps = RewardConfig.steps,
    batch_size: Annotated[
        int,
        shared(
            "batch_size",
            help="Texts in a step, 2 or more. Texts that are compared stay together, so a step "
            "may have a few more.",
        ),
    ] = RewardConfig.batch_size,
    lr: Rate = RewardConfig.optimiser.lr,
    micro_batch: MicroBatch = 0,
    recompute: Recompute = False,
    out: Out = Path("out/reward"),
    seed: Seed = 0,
    device: Device = "cpu",
    save_every: SaveEvery = SECONDS,
    resume: Resume = False,
    check_only: CheckOnly = False,
) -> None:
    """Train a reward model on preference pairs.

    It learns to score the chosen response of a pair above the rejected one (Bradley-Terry). Its
    scores are then shifted and scaled: mean 0 and standard deviation 1 on samples of --model.

    Example: minirlhf reward --steps 80 --out out/reward
    """
    of_dataset(dataset, columns=columns, skip_invalid=skip_invalid, chat=chat)
    policy, tokenizer = load_policy(model)
    check_savable(policy)
    config = RewardConfig(
        seed=seed,
        steps=steps,
        batch_size=batch_size,
        **given(max_response=max_response),
        optimiser=replace(RewardConfig.optimiser, lr=lr, micro_batch=micro_batch),
    )
    data = named_pairs(
        dataset,
        tokenizer,
        rows=rows,
        seed=seed,
        max_tokens=config.max_response,
        columns=parse_columns(columns),
        skip_invalid=skip_invalid,
        chat=chat,
        say=say,
    )
    data, report = checked_rows(
        data,
        tokenizer,
        policy,
        max_response=config.max_response,
        models=[model],
        by_default=max_response is None,
        max_new_tokens=SamplingConfig.max_new_tokens,  # samples set the scale of the scores
        max_prompt=max_prompt,
        skip_invalid=skip_invalid,
        check_only=check_only,
    )
    drawn = SamplingConfig()
    say(
        f"Scores are in standard deviations of 256 samples of {model} (temperature "
        f"{drawn.temperature}, at most {drawn.max_new_tokens} tokens)."
    )
    prompts = islice(cycle(data["prompt"] if dataset else reviews.rl_prompts()), 256)
    samples = [] if check_only else sample_text(policy, tokenizer, list(prompts), seed=seed)
    backbone = fitted(policy.base_model, lora=lora, bf16=bf16, recompute=recompute)
    with running(out / PARTIAL, resume, save_every, every=20, check_only=check_only) as on:
        scorer, history = train_reward_model(backbone, tokenizer, data, config, **on)
    scorer = normalise_scores(scorer, samples, end_ids(policy, tokenizer))
    with saving(out, history):
        scorer.save(out, tokenizer, chat=report.chat)
    say(f"Wrote {out}: shift {scorer.shift:.3f}, scale {scorer.scale:.3f} (raw reward units).")
