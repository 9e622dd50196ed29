"""The command agent: train a policy that calls a tool, on its own responses."""

from dataclasses import replace
from functools import partial
from math import ceil
from pathlib import Path
from typing import Annotated, Any

import typer

from minirlhf.classroom.own_file import tool_of
from minirlhf.cli.data_options import (
    AllRows,
    Chat,
    Columns,
    MaxPrompt,
    Reward,
    SkipInvalid,
    prompts_option,
)
from minirlhf.cli.judging import print_asked
from minirlhf.cli.limits import only_with, whole
from minirlhf.cli.loss_options import Beta
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
from minirlhf.cli.prompts import prompts_and_score, read_prompts
from minirlhf.cli.step_options import (
    METHODS,
    ErrorRate,
    Iterations,
    Method,
    ReferenceFollows,
    ToolFile,
)
from minirlhf.cli.terminal import running, save
from minirlhf.cli.training_options import (
    SECONDS,
    MissingEOSPenalty,
    Rate,
    SaveEvery,
    Steps,
    Temperature,
    shared,
)
from minirlhf.experiments.agent import SAMPLING, asked_once
from minirlhf.experiments.multi_turn import (
    ITERATIONS,
    OPTIMISER,
    PROMPTS,
    REFRESH,
    SAMPLES,
    multi_turn_config,
    product_prompts,
    train_multi_turn,
)
from minirlhf.models.adapters import fitted, merged
from minirlhf.models.agent import TextTool, Tool
from minirlhf.models.load import load_policy
from minirlhf.models.sampling import sample
from minirlhf.rewards.function import reward_function
from minirlhf.rewards.rules import right_with_calculator
from minirlhf.runtime import PARTIAL, Row, check
from minirlhf.tasks.calculator import Calculator

app = typer.Typer()


@app.command()
def agent(
    model: Model = "tiny-agent",
    tool: ToolFile = None,
    reward: Reward = None,
    lora: Lora = 0,
    bf16: Bf16 = False,
    dataset: Annotated[str, prompts_option("products with a calculator")] = "",
    rows: AllRows = None,
    columns: Columns = "",
    skip_invalid: SkipInvalid = False,
    chat: Chat = False,
    max_prompt: MaxPrompt = None,
    error_rate: ErrorRate = None,
    steps: Steps = ITERATIONS * REFRESH,
    iterations: Iterations = ITERATIONS,
    batch_size: Annotated[
        int, shared("batch_size", help="Prompts in a step; each gets --group-size responses.")
    ] = PROMPTS,
    lr: Rate = OPTIMISER.lr,
    micro_batch: MicroBatch = 0,
    recompute: Recompute = False,
    method: Method = METHODS[0],
    beta: Beta = None,
    reference_follows: ReferenceFollows = False,
    missing_eos_penalty: MissingEOSPenalty = 0.0,
    group_size: Annotated[int, shared("group_size", callback=whole(2, 10_000))] = SAMPLES,
    temperature: Temperature = SAMPLING.temperature,
    max_new_tokens: Annotated[
        int,
        shared("max_new_tokens", help="Longest response in tokens, with the tool's and EOS."),
    ] = SAMPLING.max_new_tokens,
    out: Out = Path("out/agent"),
    seed: Seed = 0,
    device: Device = "cpu",
    save_every: SaveEvery = SECONDS,
    resume: Resume = False,
    check_only: CheckOnly = False,
) -> None:
    """Train a policy that calls a tool, on its own turns.

    The policy writes until its call ends. The tool appends its answer, and the policy goes on. The
    loss counts only what the policy wrote. On your own prompts, tool and reward are files of yours.

    Example: minirlhf agent --method dpo --error-rate 0.1
    """
    check("method", method, method in METHODS, f"one of {', '.join(METHODS)}")
    pairs = method != "grpo"
    only_with("--reference-follows", reference_follows or None, pairs, "--method dpo or kto")
    only_with("--beta", beta, pairs, "--method dpo or kto")
    only_with("--error-rate", error_rate, not dataset, "the calculator, without --dataset")
    for name, path in (("--tool", tool), ("--reward", reward)):
        only_with(name, path and str(path), bool(dataset), "--dataset")
        check(name, path, path is not None or not dataset, "a file of yours with --dataset")
    own, error_rate = tool_of(tool) if tool else None, error_rate or 0.0
    start, tokenizer = load_policy(model)
    refresh = ceil(steps / iterations)
    allowed = f"a number of parts for steps = {steps}, such as {ceil(steps / refresh)}"
    check("iterations", iterations, ceil(steps / refresh) == iterations, allowed)
    config = multi_turn_config(
        {"method": method, "follows": reference_follows, "seed": seed},
        steps=steps,
        refresh=refresh,
        prompts=batch_size,
        samples=group_size,
        **given(beta=beta),
        missing_eos_penalty=missing_eos_penalty,
        sampling=replace(SAMPLING, max_new_tokens=max_new_tokens, temperature=temperature),
        optimiser=replace(OPTIMISER, lr=lr, micro_batch=micro_batch),
    )
    asked: dict[str, Any] = {"dataset": dataset, "rows": rows, "columns": columns, "chat": chat}
    asked |= {"skip_invalid": skip_invalid, "max_prompt": max_prompt, "check_only": check_only}
    asked |= {"max_new_tokens": max_new_tokens, "models": [model]}
    if own:
        calls: Tool = TextTool(tokenizer, *own)
        prompts, score, _, names, chat_written = prompts_and_score(
            start, tokenizer, scorer=None, reward=reward, **asked
        )
    else:
        calls = Calculator(tokenizer, error_rate=error_rate, seed=None)
        score = reward_function(right_with_calculator, tokenizer)
        prompts, _, names, chat_written = read_prompts(start, tokenizer, product_prompts, **asked)
    policy = fitted(start, lora=lora, bf16=bf16, recompute=recompute)

    def judge(when: str) -> None:
        """Print how the policy does on held-out problems."""
        if own is None and not check_only:
            held_out = Calculator(tokenizer, error_rate=error_rate, seed=seed)
            row = asked_once(merged(policy), tokenizer, held_out, seed=seed, config=config.sampling)
            print_asked(when, row)

    judge("before training")
    origin = {"reward": str(reward), "tool file": str(tool), "error rate": str(error_rate)}
    with running(
        out / PARTIAL,
        resume,
        save_every,
        every=6,
        check_only=check_only,
        prompts=names,
        **origin,
    ) as on:

        def on_step(row: Row) -> None:
            on["on_step"](row)
            done = row["step"] + 1
            if done % refresh == 0 or done == steps:
                judge(f"after iteration {ceil(done / refresh)} of {iterations}")

        policy, history = train_multi_turn(
            policy,
            tokenizer,
            prompts,
            score,
            config,
            partial(sample, tool=calls),
            on_step=on_step,
            checkpoint=on["checkpoint"],
        )
    save(policy, tokenizer, out, history, chat=chat_written, in_groups=method == "grpo")
