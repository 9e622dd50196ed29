"""The command prm: train a process reward model, which scores each step of a solution."""

from pathlib import Path
from typing import Annotated

import typer

from minirlhf.cli.checked import checked_rows
from minirlhf.cli.data_options import AllRows, Chat, Columns, MaxPrompt, SkipInvalid
from minirlhf.cli.limits import not_empty, only_with, whole
from minirlhf.cli.options import (
    DATA,
    MODEL,
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
    out_file,
)
from minirlhf.cli.step_labels import held_out_tenth, sampled_labels
from minirlhf.cli.step_options import StepEnd, step_end_of
from minirlhf.cli.terminal import running, saving, say
from minirlhf.cli.training_options import SECONDS, Rate, SaveEvery, Steps, Temperature, shared
from minirlhf.experiments.process_rewards import ROLLOUTS
from minirlhf.experiments.steps import MODEL as USUAL
from minirlhf.experiments.steps import SAMPLING as DRAWN
from minirlhf.loops.config import OptimiserConfig
from minirlhf.loops.process_reward import PRMConfig, judged_prm, step_rows, train_prm
from minirlhf.models.adapters import fitted
from minirlhf.models.heads import check_savable
from minirlhf.models.load import load_policy
from minirlhf.models.sampling import SamplingConfig
from minirlhf.runtime import LABELS, PARTIAL
from minirlhf.tasks.stepwise import named_steps

app = typer.Typer()
LONGEST = 1_000_000  # of --max-response where it is left out: what the model reads is the limit


@app.command()
def prm(
    model: Model = USUAL,
    reward: Annotated[
        Path | None,
        option(
            MODEL,
            "Python file with a function reward(prompts, completions, **columns). The policy "
            "answers the prompts of --dataset; a response is right where the reward is above 0.",
            show_default="none",
        ),
    ] = None,
    lora: Lora = 0,
    bf16: Bf16 = False,
    dataset: Annotated[
        str,
        option(
            DATA,
            "Labelled steps: columns prompt, completions, labels (also as Math-Shepherd or PRM800K "
            "have them). With --reward: prompts, as for grpo.",
            "--dataset",
            show_default="400 arithmetic problems",
            callback=not_empty,
        ),
    ] = "",
    rows: AllRows = None,
    columns: Columns = "",
    skip_invalid: SkipInvalid = False,
    chat: Chat = False,
    max_prompt: MaxPrompt = None,
    max_response: Annotated[
        int | None,
        option(
            DATA,
            "Longest response in tokens, EOS included. Longer ones are refused.",
            show_default="what the model reads",
            callback=whole(1),
        ),
    ] = None,
    step_end: StepEnd = None,
    steps: Steps = 400,
    batch_size: Annotated[int, shared("batch_size", help="Responses in a step.")] = 32,
    lr: Rate = 1e-3,
    micro_batch: MicroBatch = 0,
    recompute: Recompute = False,
    continuations: Annotated[
        int,
        option(
            SAMPLING,
            "Continuations of each step, whose outcomes label it.",
            callback=whole(1, 10_000),
        ),
    ] = ROLLOUTS,
    hard: Annotated[
        bool,
        option(SAMPLING, "Label 1 if any continuation is right, not the share.", "--hard"),
    ] = False,
    max_new_tokens: Annotated[int, shared("max_new_tokens")] = DRAWN.max_new_tokens,
    temperature: Temperature = DRAWN.temperature,
    out: Out = Path("out/prm"),
    labels: Annotated[
        Path | None,
        out_file("Also write the labelled rows to this file (.jsonl), before the first step."),
    ] = None,
    seed: Seed = 0,
    device: Device = "cpu",
    save_every: SaveEvery = SECONDS,
    resume: Resume = False,
    check_only: CheckOnly = False,
) -> None:
    """Train a process reward model: one score per step.

    It learns the probability that a step is good. The labels come from --dataset. Or the policy
    finishes a solution several times after each step, and a rule checks the answers.

    Example: minirlhf prm --steps 400
    """
    sampled = reward is not None or not dataset
    only_with("--reward", reward and str(reward), bool(dataset), "--dataset")
    only_with("--step-end", step_end, bool(dataset), "--dataset")
    what = "prompts: without --dataset, or with --reward"
    only_with("--hard", hard or None, sampled, what)
    only_with("--labels", labels and str(labels), sampled, what)
    what = "prompts: with --dataset and --reward"
    for name, value in (("columns", columns), ("chat", chat), ("max-prompt", max_prompt)):
        only_with(f"--{name}", value or None, reward is not None, what)
    policy, tokenizer = load_policy(model)
    check_savable(policy)
    config = PRMConfig(
        step_end=step_end_of(step_end, dataset),
        batch_size=batch_size,
        steps=steps,
        max_response=LONGEST if max_response is None else max_response,
        optimiser=OptimiserConfig(lr=lr, micro_batch=micro_batch),
        seed=seed,
    )
    if sampled:
        data, chat_written = sampled_labels(
            policy,
            tokenizer,
            config,
            SamplingConfig(max_new_tokens, temperature),
            reward=reward,
            continuations=continuations,
            hard=hard,
            labels=labels,
            kept=out / LABELS,
            resume=resume,
            dataset=dataset,
            rows=rows,
            columns=columns,
            skip_invalid=skip_invalid,
            chat=chat,
            max_prompt=max_prompt,
            check_only=check_only,
            models=[model],
        )
    else:
        chat_written = False
        data = named_steps(
            dataset, rows=rows, skip_invalid=skip_invalid, step_end=config.step_end, say=say
        )
    data = step_rows(data, tokenizer, policy, config, skip_invalid=skip_invalid or sampled, say=say)
    data, _ = checked_rows(
        data,
        tokenizer,
        policy,
        models=[] if sampled else [model],
        skip_invalid=skip_invalid or sampled,
        check_only=check_only,
    )
    learned, held_out = held_out_tenth(data, seed)
    backbone = fitted(policy.base_model, lora=lora, bf16=bf16, recompute=recompute)
    with running(out / PARTIAL, resume, save_every, every=20, check_only=check_only) as on:
        scorer, history = train_prm(backbone, tokenizer, learned, config, **on)
    with saving(out, history):
        scorer.save(out, tokenizer, chat=chat_written)
    (out / LABELS).unlink(missing_ok=True)
    row = judged_prm(scorer, tokenizer, held_out, config)
    say(
        f"Wrote {out}. On {len(held_out)} held-out rows ({row['steps']} labelled steps; a tenth of "
        f"the prompts, not learned): loss {row['loss']:.3f} nats per step, {row['right']:.1%} of "
        f"the steps on the right side of 1/2 (the more frequent side: {row['usual']:.1%})."
    )
