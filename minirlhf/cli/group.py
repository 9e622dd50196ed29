"""The group methods: train on sampled responses, without a critic."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from minirlhf.cli.commands import COMMANDS
from minirlhf.cli.data_options import (
    AllRows,
    Chat,
    Columns,
    MaxNewTokens,
    MaxPrompt,
    Prompts,
    Reward,
    ScorerOrReward,
    SkipInvalid,
)
from minirlhf.cli.judging import print_passes
from minirlhf.cli.limits import LARGEST_RATE, above_0, not_negative, only_with
from minirlhf.cli.options import (
    DATA,
    LOSS,
    MODEL,
    OPTIMISER,
    SCORER,
    Bf16,
    Device,
    Lora,
    MicroBatch,
    Out,
    Recompute,
    Resume,
    Seed,
    TaskSteps,
    given,
    option,
)
from minirlhf.cli.prompts import prompts_and_score
from minirlhf.cli.terminal import running, save
from minirlhf.experiments.practice import TASKS, group_config, judged, scoring
from minirlhf.loops.family import FAMILY
from minirlhf.loops.group import train_group
from minirlhf.models.adapters import fitted, merged
from minirlhf.models.load import load_policy
from minirlhf.runtime import PARTIAL

app = typer.Typer()
OWN = "the task's own"
GROUP_HELP = """{summary}

Source: {row.source}. Baseline: {row.baseline}. Scale: {row.scale}. KL: {row.kl}.
Ratio: {row.ratio}. Clip: {row.clip}. Aggregation: {row.aggregation}.

Example: minirlhf {name} --task arithmetic
"""


def _group_command(name: str) -> None:
    """The command of one row of the family."""

    def command(
        model: Annotated[
            str, option(MODEL, "Language model: a name, a folder, or a hub name.", show_default=OWN)
        ] = "",
        scorer: ScorerOrReward = None,
        reward: Reward = None,
        lora: Lora = 0,
        bf16: Bf16 = False,
        task: Annotated[
            str,
            option(
                DATA,
                "reviews: write film reviews, or answers to --dataset, scored by a reward model. "
                "arithmetic: solve problems, right or wrong.",
            ),
        ] = "reviews",
        dataset: Prompts = "",
        rows: AllRows = None,
        columns: Columns = "",
        skip_invalid: SkipInvalid = False,
        chat: Chat = False,
        max_prompt: MaxPrompt = None,
        steps: TaskSteps = None,
        lr: Annotated[
            float | None,
            option(
                OPTIMISER,
                "Peak learning rate, above 0.",
                show_default=OWN,
                callback=above_0(LARGEST_RATE),
            ),
        ] = None,
        micro_batch: MicroBatch = 0,
        recompute: Recompute = False,
        kl_coef: Annotated[
            float | None,
            option(
                LOSS,
                "KL coefficient: reward units per nat, 0 or more.",
                show_default=OWN,
                callback=not_negative,
            ),
        ] = None,
        max_new_tokens: MaxNewTokens = None,
        out: Out = Path("out") / name,
        seed: Seed = 0,
        device: Device = "cpu",
        resume: Resume = False,
    ) -> None:
        config = group_config(task, name, seed=seed, **given(steps=steps))
        of_reviews = task == "reviews"
        only_with("--scorer", scorer, of_reviews, "the task reviews")
        only_with("--reward", reward and str(reward), of_reviews, "the task reviews")
        only_with("--dataset", dataset or None, of_reviews, "the task reviews")
        start, tokenizer = load_policy(model or TASKS[task].model)
        config = replace(
            config,
            sampling=replace(config.sampling, **given(max_new_tokens=max_new_tokens)),
            optimiser=replace(config.optimiser, micro_batch=micro_batch, **given(lr=lr)),
            kl=replace(config.kl, **given(kl_coef=kl_coef)),
        )
        arithmetic = task == "arithmetic"
        if arithmetic:
            (score, monitors), prompts = scoring(task, start, tokenizer), TASKS[task].prompts()
            before = judged(task, start, tokenizer, reference=start, seed=seed)
        else:
            prompts, score, monitors = prompts_and_score(
                start,
                tokenizer,
                scorer=scorer,
                max_new_tokens=config.sampling.max_new_tokens,
                reward=reward,
                dataset=dataset,
                rows=rows,
                columns=columns,
                skip_invalid=skip_invalid,
                chat=chat,
                max_prompt=max_prompt,
            )
        policy = fitted(start, lora=lora, bf16=bf16, recompute=recompute)
        every = 10 if arithmetic else 1
        with running(out / PARTIAL, resume, every=every, scorer=scorer or SCORER, task=task) as on:
            policy, history = train_group(
                policy, tokenizer, prompts, score, config, monitors=monitors, **on
            )
        save(policy, tokenizer, out, history)
        if arithmetic:
            policy = merged(policy)
            print_passes(before, judged(task, policy, tokenizer, reference=policy, seed=seed))

    summary, row = COMMANDS[name].summary, FAMILY[name]
    app.command(name, help=GROUP_HELP.format(summary=summary, row=row, name=name))(command)


for _name in FAMILY:
    _group_command(_name)
