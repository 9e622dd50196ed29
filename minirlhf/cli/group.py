"""The group methods: train on sampled responses, without a critic."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

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
from minirlhf.cli.group_numbers import defaults, sized
from minirlhf.cli.judging import print_passes
from minirlhf.cli.limits import only_with
from minirlhf.cli.options import (
    DATA,
    SCORER,
    Bf16,
    CheckOnly,
    Device,
    Lora,
    MicroBatch,
    Out,
    Recompute,
    Resume,
    Seed,
    given,
    model_option,
    option,
)
from minirlhf.cli.prompts import prompts_and_score
from minirlhf.cli.terminal import running, save
from minirlhf.cli.training_options import SECONDS, SaveEvery, shared
from minirlhf.experiments.practice import TASKS, group_config, judged, scoring
from minirlhf.loops.family import FAMILY
from minirlhf.loops.group import train_group
from minirlhf.models.adapters import fitted, merged
from minirlhf.models.load import load_policy
from minirlhf.runtime import PARTIAL

app = typer.Typer()
MODELS = "; ".join(f"{row.model} for {task}" for task, row in TASKS.items())
GROUP_HELP = """{summary}

The policy samples responses to each prompt. Those that score above the baseline become likelier.
The choices of this method, which docs/algorithms.md explains:

Source: {row.source}. Baseline: {row.baseline}. Scale: {row.scale}. KL: {row.kl}.
Ratio: {row.ratio}. Clip: {row.clip}. Aggregation: {row.aggregation}.

Example: minirlhf {name} --task arithmetic
"""


def _group_command(name: str) -> None:
    """The command of one row of the family."""
    own = defaults(name)

    def number(key: str) -> Any:
        return shared(key, show_default=own[key])

    def command(
        model: Annotated[
            str,
            model_option("Language model: a name, a folder, or a hub name.", show_default=MODELS),
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
        steps: Annotated[int | None, number("steps")] = None,
        batch_size: Annotated[int | None, number("batch_size")] = None,
        minibatch_size: Annotated[int | None, number("minibatch_size")] = None,
        epochs: Annotated[int | None, number("epochs")] = None,
        lr: Annotated[float | None, number("lr")] = None,
        micro_batch: MicroBatch = 0,
        recompute: Recompute = False,
        kl_coef: Annotated[float | None, number("kl_coef")] = None,
        missing_eos_penalty: Annotated[float | None, number("missing_eos_penalty")] = None,
        overlong_buffer: Annotated[int | None, number("overlong_buffer")] = None,
        group_size: Annotated[int | None, number("group_size")] = None,
        temperature: Annotated[float | None, number("temperature")] = None,
        max_new_tokens: Annotated[int | None, number("max_new_tokens")] = None,
        out: Out = Path("out") / name,
        seed: Seed = 0,
        device: Device = "cpu",
        save_every: SaveEvery = SECONDS,
        resume: Resume = False,
        check_only: CheckOnly = False,
    ) -> None:
        config = group_config(task, name, seed=seed, **given(steps=steps))
        of_reviews = task == "reviews"
        only_with("--scorer", scorer, of_reviews, "the task reviews")
        only_with("--reward", reward and str(reward), of_reviews, "the task reviews")
        only_with("--dataset", dataset or None, of_reviews, "the task reviews")
        start, tokenizer = load_policy(model or TASKS[task].model)
        config = replace(
            sized(config, batch_size, minibatch_size, group_size),
            algorithm=replace(config.algorithm, **given(overlong_buffer=overlong_buffer)),
            **given(epochs=epochs, missing_eos_penalty=missing_eos_penalty),
            sampling=replace(
                config.sampling,
                **given(max_new_tokens=max_new_tokens, temperature=temperature),
            ),
            optimiser=replace(config.optimiser, micro_batch=micro_batch, **given(lr=lr)),
            kl=replace(config.kl, **given(kl_coef=kl_coef)),
        )
        arithmetic = task == "arithmetic"
        names: list[str] = []
        chat_written = False
        if arithmetic:
            (score, monitors), prompts = scoring(task, start, tokenizer), TASKS[task].prompts()
            if not check_only:
                before = judged(task, start, tokenizer, reference=start, seed=seed)
        else:
            prompts, score, monitors, names, chat_written = prompts_and_score(
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
                models=[model or TASKS[task].model],
                check_only=check_only,
            )
        policy = fitted(start, lora=lora, bf16=bf16, recompute=recompute)
        every = 10 if arithmetic else 1
        origin = {"scorer": scorer or SCORER, "reward": str(reward), "task": task}
        with running(
            out / PARTIAL,
            resume,
            save_every,
            every=every,
            check_only=check_only,
            prompts=names,
            **origin,
        ) as on:
            policy, history = train_group(
                policy, tokenizer, prompts, score, config, monitors=monitors, **on
            )
        in_groups = FAMILY[name].baseline in ("group mean", "others' mean")
        save(policy, tokenizer, out, history, chat=chat_written, in_groups=in_groups)
        if arithmetic:
            policy = merged(policy)
            print_passes(before, judged(task, policy, tokenizer, reference=policy, seed=seed))

    summary, row = COMMANDS[name].summary, FAMILY[name]
    app.command(name, help=GROUP_HELP.format(summary=summary, row=row, name=name))(command)


for _name in FAMILY:
    _group_command(_name)
