"""The command ppo: train on sampled responses, with a critic."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

from minirlhf.cli.data_options import (
    AllRows,
    Chat,
    Columns,
    MaxNewTokens,
    MaxPrompt,
    Prompts,
    Reward,
    SkipInvalid,
)
from minirlhf.cli.options import (
    SCORER,
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
    given,
)
from minirlhf.cli.prompts import prompts_and_score
from minirlhf.cli.terminal import running, save
from minirlhf.loops.ppo import PPOConfig, train_ppo
from minirlhf.models.adapters import fitted
from minirlhf.models.load import load_policy, load_scalar
from minirlhf.runtime import PARTIAL, check

app = typer.Typer()


@app.command()
def ppo(
    model: Model = "tiny-reviews-sft",
    scorer: Scorer = SCORER,
    reward: Reward = None,
    lora: Lora = 0,
    bf16: Bf16 = False,
    dataset: Prompts = "",
    rows: AllRows = None,
    columns: Columns = "",
    skip_invalid: SkipInvalid = False,
    chat: Chat = False,
    max_prompt: MaxPrompt = None,
    steps: Steps = PPOConfig.steps,
    lr: Rate = PPOConfig.actor.lr,
    micro_batch: MicroBatch = 0,
    recompute: Recompute = False,
    kl_coef: KLCoef = PPOConfig.kl.kl_coef,
    max_new_tokens: MaxNewTokens = None,
    out: Out = Path("out/ppo"),
    seed: Seed = 0,
    device: Device = "cpu",
    resume: Resume = False,
) -> None:
    """Train by proximal policy optimisation (PPO).

    The baseline is a critic, which starts as a copy of --scorer. The reward is the score of
    --scorer, or of a function of your own, minus a KL penalty at each token.

    Example: minirlhf ppo --kl-coef 0.1 --out out/loose
    """
    start, tokenizer = load_policy(model)
    config = PPOConfig(
        seed=seed,
        steps=steps,
        sampling=replace(PPOConfig.sampling, **given(max_new_tokens=max_new_tokens)),
        actor=replace(PPOConfig.actor, lr=lr, micro_batch=micro_batch),
        kl=replace(PPOConfig.kl, kl_coef=kl_coef),
    )
    critic, its_tokenizer = load_scalar(scorer)
    same = its_tokenizer.get_vocab() == tokenizer.get_vocab()
    check("scorer", scorer, same, "trained with the policy's own tokenizer: the critic copies it")
    prompts, score, monitors = prompts_and_score(
        start,
        tokenizer,
        scorer=scorer if reward is None else None,
        max_new_tokens=config.sampling.max_new_tokens,
        reward=reward,
        dataset=dataset,
        rows=rows,
        columns=columns,
        skip_invalid=skip_invalid,
        chat=chat,
        max_prompt=max_prompt,
        critic=critic.backbone,
    )
    fit: dict[str, Any] = {"lora": lora, "bf16": bf16, "recompute": recompute}
    policy = fitted(start, **fit)
    critic.backbone = fitted(critic.backbone, **fit)
    with running(out / PARTIAL, resume, every=1, scorer=scorer) as on:
        policy, _, history = train_ppo(
            policy, critic, tokenizer, prompts, score, config, monitors=monitors, **on
        )
    save(policy, tokenizer, out, history)
