"""The command ppo: train on sampled responses, with a critic."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from minirlhf.cli.data_options import (
    AllRows,
    Chat,
    Columns,
    MaxPrompt,
    Prompts,
    Reward,
    SkipInvalid,
)
from minirlhf.cli.options import (
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
    Scorer,
    Seed,
)
from minirlhf.cli.prompts import prompts_and_score
from minirlhf.cli.terminal import running, save
from minirlhf.cli.training_options import (
    SECONDS,
    KLCoef,
    MaxNewTokens,
    MissingEOSPenalty,
    Rate,
    SaveEvery,
    Steps,
    Temperature,
    minibatch,
    prompts_in,
    shared,
)
from minirlhf.loops.ppo import PPOConfig, train_ppo
from minirlhf.models.adapters import fitted
from minirlhf.models.fit import same_vocabulary
from minirlhf.models.load import load_policy, load_scalar
from minirlhf.models.sampling import SamplingConfig
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
    batch_size: Annotated[int, shared("batch_size")] = PPOConfig.batch_size,
    minibatch_size: Annotated[
        int | None, shared("minibatch_size", show_default=f"{PPOConfig.minibatch_size}")
    ] = None,
    epochs: Annotated[int, shared("epochs")] = PPOConfig.epochs,
    lr: Rate = PPOConfig.actor.lr,
    critic_lr: Annotated[
        float, shared("lr", help="Peak learning rate of the critic, above 0.")
    ] = PPOConfig.critic.lr,
    micro_batch: MicroBatch = 0,
    recompute: Recompute = False,
    kl_coef: KLCoef = PPOConfig.kl.kl_coef,
    missing_eos_penalty: MissingEOSPenalty = PPOConfig.missing_eos_penalty,
    group_size: Annotated[int, shared("group_size")] = PPOConfig.samples_per_prompt,
    temperature: Temperature = SamplingConfig.temperature,
    max_new_tokens: MaxNewTokens = SamplingConfig.max_new_tokens,
    out: Out = Path("out/ppo"),
    seed: Seed = 0,
    device: Device = "cpu",
    save_every: SaveEvery = SECONDS,
    resume: Resume = False,
    check_only: CheckOnly = False,
) -> None:
    """Train by proximal policy optimisation (PPO).

    The policy samples responses and learns from their rewards. The reward is the score of
    --scorer, or of a function of your own, minus a KL penalty at each token. The baseline is a
    critic, a second network that predicts the reward; it starts as a copy of --scorer.

    Example: minirlhf ppo --kl-coef 0.1 --out out/loose
    """
    start, tokenizer = load_policy(model)
    prompts_in(batch_size, group_size)
    updates = PPOConfig.batch_size // PPOConfig.minibatch_size
    config = PPOConfig(
        seed=seed,
        steps=steps,
        batch_size=batch_size,
        samples_per_prompt=group_size,
        minibatch_size=minibatch(batch_size, minibatch_size, updates=updates),
        epochs=epochs,
        missing_eos_penalty=missing_eos_penalty,
        sampling=SamplingConfig(max_new_tokens, temperature),
        critic=replace(PPOConfig.critic, lr=critic_lr),
        actor=replace(PPOConfig.actor, lr=lr, micro_batch=micro_batch),
        kl=replace(PPOConfig.kl, kl_coef=kl_coef),
    )
    critic, its_tokenizer = load_scalar(scorer)
    same = same_vocabulary(its_tokenizer, tokenizer)
    check("scorer", scorer, same, "trained with the policy's own tokenizer: the critic copies it")
    prompts, score, monitors, names, chat_written = prompts_and_score(
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
        models=[model, scorer],
        check_only=check_only,
        critic=critic.backbone,
    )
    fit: dict[str, Any] = {"lora": lora, "bf16": bf16, "recompute": recompute}
    policy = fitted(start, **fit)
    critic.backbone = fitted(critic.backbone, **fit)
    origin = {"scorer": scorer, "reward": str(reward)}
    with running(
        out / PARTIAL, resume, save_every, every=1, check_only=check_only, prompts=names, **origin
    ) as on:
        policy, _, history = train_ppo(
            policy, critic, tokenizer, prompts, score, config, monitors=monitors, **on
        )
    save(policy, tokenizer, out, history, chat=chat_written)
