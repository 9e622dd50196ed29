"""The commands online-dpo, iterative-dpo and rso: DPO on pairs of the policy's own responses."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from minirlhf.cli.commands import COMMANDS
from minirlhf.cli.data_options import (
    AllRows,
    Chat,
    Columns,
    MaxPrompt,
    Prompts,
    Reward,
    ScorerOrReward,
    SkipInvalid,
)
from minirlhf.cli.judging import print_judged
from minirlhf.cli.limits import whole
from minirlhf.cli.loss_options import (
    Beta,
    Mixup,
    PairLoss,
    ReferenceFree,
    Setting,
    SyncEvery,
    settings,
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
    Seed,
)
from minirlhf.cli.prompts import prompts_and_score
from minirlhf.cli.terminal import running, save
from minirlhf.cli.training_options import (
    SECONDS,
    MaxNewTokens,
    MissingEOSPenalty,
    PairBatch,
    Rate,
    SaveEvery,
    Steps,
    Temperature,
    shared,
)
from minirlhf.loops.online import ONLINE, OnlineConfig, train_online
from minirlhf.loops.preference import DPOConfig
from minirlhf.models.adapters import fitted
from minirlhf.models.load import load_policy
from minirlhf.runtime import PARTIAL

app = typer.Typer()
PAIRS = {
    "best and worst": "the best and the worst one",
    "rejection": "two that rejection sampling keeps",
}
WHEN = {"online-dpo": "at every step", "rso": "once, before the first step"}
ONLINE_HELP = """{summary}

The policy samples {row.samples} responses to each prompt. By their scores a pair of them is chosen:
{pair}. Responses are sampled {when}.

Example: minirlhf {name} --steps 50
"""


def _online_command(name: str) -> None:
    """The command of one way to make pairs of the policy's own responses."""
    preset: OnlineConfig = ONLINE[name]

    def command(
        model: Model = "tiny-reviews-sft",
        scorer: ScorerOrReward = None,
        reward: Reward = None,
        lora: Lora = 0,
        bf16: Bf16 = False,
        dataset: Prompts = "",
        rows: AllRows = None,
        columns: Columns = "",
        skip_invalid: SkipInvalid = False,
        chat: Chat = False,
        max_prompt: MaxPrompt = None,
        steps: Steps = preset.dpo.steps,
        batch_size: PairBatch = preset.dpo.batch_size,
        lr: Rate = preset.dpo.optimiser.lr,
        micro_batch: MicroBatch = 0,
        recompute: Recompute = False,
        loss: PairLoss = preset.dpo.loss,
        beta: Beta = None,
        setting: Setting = None,
        reference_free: ReferenceFree = False,
        sync_every: SyncEvery = preset.dpo.sync_every,
        mixup: Mixup = preset.dpo.mixup,
        missing_eos_penalty: MissingEOSPenalty = preset.missing_eos_penalty,
        group_size: Annotated[
            int,
            shared(
                "group_size",
                "--group-size",
                "--samples",
                help="Responses to each prompt, 2 or more.",
                callback=whole(2, 10_000),
            ),
        ] = preset.samples,
        temperature: Temperature = preset.sampling.temperature,
        max_new_tokens: MaxNewTokens = preset.sampling.max_new_tokens,
        out: Out = Path("out") / name,
        seed: Seed = 0,
        device: Device = "cpu",
        save_every: SaveEvery = SECONDS,
        resume: Resume = False,
        check_only: CheckOnly = False,
    ) -> None:
        start, tokenizer = load_policy(model)
        own = DPOConfig(
            loss,
            beta,
            settings(setting),
            steps=preset.dpo.steps,
            batch_size=batch_size,
            reference_free=reference_free,
            sync_every=sync_every,
            mixup=mixup,
            optimiser=replace(DPOConfig.optimiser, lr=lr, micro_batch=micro_batch),
            seed=seed,
        )
        drawn: dict = {"max_new_tokens": max_new_tokens, "temperature": temperature}
        config = replace(
            with_loss(preset, own),
            samples=group_size,
            missing_eos_penalty=missing_eos_penalty,
            sampling=replace(preset.sampling, **drawn),
        ).with_steps(steps)
        prompts, score, monitors, names, chat_written = prompts_and_score(
            start,
            tokenizer,
            scorer=scorer,
            max_new_tokens=max_new_tokens,
            reward=reward,
            dataset=dataset,
            rows=rows,
            columns=columns,
            skip_invalid=skip_invalid,
            chat=chat,
            max_prompt=max_prompt,
            models=[model],
            check_only=check_only,
        )
        policy = fitted(start, lora=lora, bf16=bf16, recompute=recompute)
        origin = {"scorer": scorer or SCORER, "reward": str(reward)}
        with running(
            out / PARTIAL,
            resume,
            save_every,
            every=5,
            check_only=check_only,
            prompts=names,
            **origin,
        ) as on:
            policy, history = train_online(
                policy, tokenizer, prompts, score, config, monitors=monitors, **on
            )
        save(policy, tokenizer, out, history, chat=chat_written)
        if not dataset:
            print_judged(policy, tokenizer, model, seed)

    described = ONLINE_HELP.format(
        summary=COMMANDS[name].summary,
        row=preset,
        pair=PAIRS[preset.pick],
        when=WHEN.get(name, f"again after every {preset.refresh} steps"),
        name=name,
    )
    app.command(name, help=described)(command)


for _name in ONLINE:
    _online_command(_name)


def with_loss(preset: OnlineConfig, own: DPOConfig) -> OnlineConfig:
    """The preset with another loss. A beta that is given is that of rejection sampling too."""
    told = own.beta is not None or "beta" in own.settings
    if told:
        beta = own.of_loss["beta"]
        assert beta is not None  # every loss has one
        return replace(preset, dpo=own, accept_beta=beta)
    beta = preset.dpo.beta if own.loss == preset.dpo.loss else None
    return replace(preset, dpo=replace(own, beta=beta))
