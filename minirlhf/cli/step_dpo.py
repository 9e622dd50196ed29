"""The command step-dpo: DPO on single steps of written solutions."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from minirlhf.classroom.own_file import judge_of
from minirlhf.cli.data_options import AllRows, Chat, Columns, MaxPrompt, SkipInvalid, prompts_option
from minirlhf.cli.judging import print_steps
from minirlhf.cli.limits import only_with, whole
from minirlhf.cli.loss_options import Beta, PairLoss
from minirlhf.cli.options import (
    SAMPLING,
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
    option,
)
from minirlhf.cli.prompts import read_prompts
from minirlhf.cli.step_options import JudgeFile, StepEnd, step_end_of
from minirlhf.cli.terminal import running, save
from minirlhf.cli.training_options import (
    SECONDS,
    Rate,
    SaveEvery,
    Steps,
    Temperature,
    shared,
)
from minirlhf.experiments.steps import MODEL as USUAL
from minirlhf.experiments.steps import OWN, judged_steps, long_problems
from minirlhf.experiments.steps import SAMPLING as DRAWN
from minirlhf.loops.step_dpo import StepDPOConfig, train_step_dpo
from minirlhf.models.adapters import fitted, merged
from minirlhf.models.load import load_policy
from minirlhf.runtime import PARTIAL, check
from minirlhf.tasks.arithmetic import right_step

app = typer.Typer()
ASKED, SAMPLES = 200, 4  # held-out problems, and samples of each


@app.command()
def step_dpo(
    model: Model = USUAL,
    judge: JudgeFile = None,
    lora: Lora = 0,
    bf16: Bf16 = False,
    dataset: Annotated[str, prompts_option("long arithmetic problems")] = "",
    rows: AllRows = None,
    columns: Columns = "",
    skip_invalid: SkipInvalid = False,
    chat: Chat = False,
    max_prompt: MaxPrompt = None,
    steps: Steps = OWN.steps,
    batch_size: Annotated[
        int, shared("batch_size", help="Prompts in a step; each gives one pair at most.")
    ] = OWN.batch_size,
    lr: Rate = OWN.optimiser.lr,
    micro_batch: MicroBatch = 0,
    recompute: Recompute = False,
    loss: PairLoss = OWN.loss,
    beta: Beta = None,
    step_end: StepEnd = None,
    tries: Annotated[
        int,
        option(
            SAMPLING,
            "Times that the policy writes a wrong step again, at most.",
            callback=whole(1, 10_000),
        ),
    ] = StepDPOConfig.tries,
    max_step: Annotated[
        int,
        option(SAMPLING, "Longest step in tokens, its end included.", callback=whole(1)),
    ] = 24,
    max_new_tokens: Annotated[int, shared("max_new_tokens")] = DRAWN.max_new_tokens,
    temperature: Temperature = DRAWN.temperature,
    out: Out = Path("out/step-dpo"),
    seed: Seed = 0,
    device: Device = "cpu",
    save_every: SaveEvery = SECONDS,
    resume: Resume = False,
    check_only: CheckOnly = False,
) -> None:
    """Step-DPO: DPO on single steps of written solutions.

    The policy writes a solution. A judge checks its steps up to the first wrong one, and the policy
    writes that step again until it is right. The two steps are a pair. On your own prompts, the
    judge is a function of yours.

    Example: minirlhf step-dpo --steps 60
    """
    only_with("--step-end", step_end, bool(dataset), "--dataset")
    check("--judge", judge, judge is not None or not dataset, "a file of yours with --dataset")
    is_right = right_step if judge is None else judge_of(judge)
    start, tokenizer = load_policy(model)
    optimiser = replace(OWN.optimiser, lr=lr, micro_batch=micro_batch)
    config = StepDPOConfig(
        step_end=step_end_of(step_end, dataset),
        tries=tries,
        max_step=max_step,
        sampling=replace(DRAWN, max_new_tokens=max_new_tokens, temperature=temperature),
        dpo=replace(
            OWN,
            loss=loss,
            beta=beta,
            steps=steps,
            batch_size=batch_size,
            max_response=max_new_tokens + max_step,
            append_eos=False,
            optimiser=optimiser,
            seed=seed,
        ),
    )
    prompts, _, names, chat_written = read_prompts(
        start,
        tokenizer,
        long_problems,
        models=[model],
        max_new_tokens=config.max_new_tokens,
        dataset=dataset,
        rows=rows,
        columns=columns,
        skip_invalid=skip_invalid,
        chat=chat,
        max_prompt=max_prompt,
        check_only=check_only,
    )
    judged = not (dataset or check_only)
    size = {"asked": ASKED, "samples": SAMPLES}
    before = judged_steps(start, tokenizer, seed=seed, **size) if judged else {}
    policy = fitted(start, lora=lora, bf16=bf16, recompute=recompute)
    with running(
        out / PARTIAL,
        resume,
        save_every,
        every=5,
        check_only=check_only,
        prompts=names,
        judge=str(judge),
    ) as on:
        policy, history = train_step_dpo(policy, tokenizer, prompts, is_right, config, **on)
    save(policy, tokenizer, out, history, chat=chat_written)
    if judged:
        print_steps(before, judged_steps(merged(policy), tokenizer, seed=seed, **size), **size)
