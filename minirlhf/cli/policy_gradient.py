"""Commands that train on sampled responses: ppo, and the group methods without a critic."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from minirlhf.cli.commands import COMMANDS
from minirlhf.cli.judging import print_passes
from minirlhf.cli.limits import LARGEST_RATE, above_0, not_negative, only_with
from minirlhf.cli.options import (
    DATA,
    LOSS,
    MODEL,
    OPTIMISER,
    Bf16,
    Device,
    KLCoef,
    Lora,
    MicroBatch,
    Model,
    Out,
    Rate,
    Recompute,
    Resume,
    Scorer,
    Seed,
    Steps,
    TaskSteps,
    given,
    option,
)
from minirlhf.cli.terminal import running, save
from minirlhf.experiments.practice import TASKS, group_config, judged, scoring
from minirlhf.loops.family import FAMILY
from minirlhf.loops.group import train_group
from minirlhf.loops.ppo import PPOConfig, train_ppo
from minirlhf.models.adapters import fitted, merged
from minirlhf.models.load import load_policy, load_scalar
from minirlhf.runtime import PARTIAL
from minirlhf.tasks import reviews

app = typer.Typer()
OWN, SCORER = "the task's own", "tiny-reviews-reward"
GROUP_HELP = """{summary}

Source: {row.source}. Baseline: {row.baseline}. Scale: {row.scale}. KL: {row.kl}.
Ratio: {row.ratio}. Clip: {row.clip}. Aggregation: {row.aggregation}.

Example: minirlhf {name} --task arithmetic
"""


@app.command()
def ppo(
    model: Model = "tiny-reviews-sft",
    scorer: Scorer = "tiny-reviews-reward",
    lora: Lora = 0,
    bf16: Bf16 = False,
    steps: Steps = PPOConfig.steps,
    lr: Rate = PPOConfig.actor.lr,
    micro_batch: MicroBatch = 0,
    recompute: Recompute = False,
    kl_coef: KLCoef = PPOConfig.kl.kl_coef,
    out: Out = Path("out/ppo"),
    seed: Seed = 0,
    device: Device = "cpu",
    resume: Resume = False,
) -> None:
    """Train by proximal policy optimisation (PPO).

    The baseline is a critic. The reward is the score of a reward model minus a KL penalty at
    each token.

    Example: minirlhf ppo --kl-coef 0.1 --out out/loose
    """
    start, tokenizer = load_policy(model)
    score, monitors = scoring("reviews", tokenizer, scorer)
    config = PPOConfig(
        seed=seed,
        steps=steps,
        actor=replace(PPOConfig.actor, lr=lr, micro_batch=micro_batch),
        kl=replace(PPOConfig.kl, kl_coef=kl_coef),
    )
    fit: dict[str, Any] = {"lora": lora, "bf16": bf16, "recompute": recompute}
    policy, critic = fitted(start, **fit), load_scalar(scorer)[0]
    critic.backbone = fitted(critic.backbone, **fit)
    prompts = reviews.rl_prompts()
    with running(out / PARTIAL, resume, every=1, scorer=scorer) as on:
        policy, _, history = train_ppo(
            policy, critic, tokenizer, prompts, score, config, monitors=monitors, **on
        )
    save(policy, tokenizer, out, history)


def _group_command(name: str) -> None:
    """The command of one row of the family."""

    def command(
        model: Annotated[
            str, option(MODEL, "Language model: a name, a folder, or a hub name.", show_default=OWN)
        ] = "",
        scorer: Annotated[
            str | None,
            option(
                MODEL,
                "Reward model for the task reviews: a name or a folder.",
                show_default=SCORER,
            ),
        ] = None,
        lora: Lora = 0,
        bf16: Bf16 = False,
        task: Annotated[
            str,
            option(
                DATA,
                "reviews: write film reviews, scored by a reward model. "
                "arithmetic: solve problems, right or wrong.",
            ),
        ] = "reviews",
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
        out: Out = Path("out") / name,
        seed: Seed = 0,
        device: Device = "cpu",
        resume: Resume = False,
    ) -> None:
        config = group_config(task, name, seed=seed, **given(steps=steps))
        only_with("--scorer", scorer, task == "reviews", "the task reviews")
        scorer = scorer or SCORER
        start, tokenizer = load_policy(model or TASKS[task].model)
        (score, monitors), prompts = scoring(task, tokenizer, scorer), TASKS[task].prompts()
        config = replace(
            config,
            optimiser=replace(config.optimiser, micro_batch=micro_batch, **given(lr=lr)),
            kl=replace(config.kl, **given(kl_coef=kl_coef)),
        )
        arithmetic = task == "arithmetic"
        if arithmetic:
            before = judged(task, start, tokenizer, reference=start, seed=seed)
        policy = fitted(start, lora=lora, bf16=bf16, recompute=recompute)
        every = 10 if arithmetic else 1
        with running(out / PARTIAL, resume, every=every, scorer=scorer, task=task) as on:
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
