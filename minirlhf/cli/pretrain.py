"""Commands that make models of the package from scratch: pretrain, gold."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from transformers import PreTrainedTokenizerBase

from minirlhf.cli.limits import only_with, whole
from minirlhf.cli.options import (
    DATA,
    MODEL,
    OPTIMISER,
    Device,
    Model,
    OutParts,
    Resume,
    Seed,
    TaskSteps,
    given,
    option,
)
from minirlhf.cli.terminal import running, save, saving, say
from minirlhf.cli.training_options import SECONDS, SaveEvery
from minirlhf.experiments.agent import judged_agent, train_tiny_agent
from minirlhf.experiments.practice import TRIES, judged, train_tiny_steps
from minirlhf.experiments.steps import judged_steps, train_tiny_long_steps
from minirlhf.loops.gold import GoldConfig, train_gold
from minirlhf.loops.pretrain import PretrainConfig, train_base
from minirlhf.models.adapters import Policy
from minirlhf.models.load import load_policy, save_policy
from minirlhf.rewards.gold import correlation, ensemble_judge, gold_judge
from minirlhf.runtime import PARTIAL, check, check_folder
from minirlhf.tasks import reviews, sources

app = typer.Typer()


def _judged(model: Policy, tokenizer: PreTrainedTokenizerBase, *, seed: int) -> dict:
    return judged("arithmetic", model, tokenizer, reference=model, seed=seed)


# task: (training, evaluation on held-out problems)
OF_PROBLEMS: dict[str, tuple[Callable, Callable]] = {
    "arithmetic": (train_tiny_steps, _judged),
    "long-arithmetic": (train_tiny_long_steps, judged_steps),
    "calculator": (train_tiny_agent, judged_agent),
}


@app.command()
def pretrain(
    layers: Annotated[
        int | None,
        option(
            MODEL,
            "Transformer layers. Only with the task reviews.",
            show_default=str(PretrainConfig.n_layer),
            callback=whole(1, 1000),
        ),
    ] = None,
    width: Annotated[
        int | None,
        option(
            MODEL,
            "Hidden size, a multiple of the 4 attention heads. Only with the task reviews.",
            show_default=str(PretrainConfig.n_embd),
            callback=whole(1, 100_000),
        ),
    ] = None,
    task: Annotated[
        str,
        option(
            DATA,
            "reviews: raw text of film reviews. arithmetic: worked calculations. long-arithmetic: "
            "longer ones, of four to six steps. calculator: products, some of them with calls of "
            "a calculator.",
        ),
    ] = "reviews",
    steps: TaskSteps = None,
    bf16: Annotated[
        bool,
        option(
            OPTIMISER,
            "bfloat16 autocast: faster on some CPUs, slower on others. Only with the task reviews.",
            "--bf16",
        ),
    ] = False,
    out: OutParts = Path("out/pretrain"),
    seed: Seed = 0,
    device: Device = "cpu",
    save_every: SaveEvery = SECONDS,
    resume: Resume = False,
) -> None:
    """Train a small base language model from random weights.

    This is how tiny-reviews (film reviews), tiny-steps (arithmetic), tiny-long-steps
    (long-arithmetic) and tiny-agent (calculator) were made.

    Example: minirlhf pretrain --layers 2 --steps 500
    """
    tasks = ("reviews", *OF_PROBLEMS)
    check("task", task, task in tasks, f"one of {', '.join(tasks)}")
    if task in OF_PROBLEMS:
        for name, value in {"layers": layers, "width": width, "bf16": bf16 or None}.items():
            only_with(f"--{name}", value, False, "the task reviews")
        return pretrain_on_problems(task, out, seed, steps, resume, save_every)
    check_folder(out / "model")
    sources.fetch()
    config = PretrainConfig(
        seed=seed, bf16=bf16, **given(steps=steps, n_layer=layers, n_embd=width)
    )
    held_out = [r.text for r in reviews.load_reviews() if r.split == "val"]
    file = out / "pretraining.safetensors"
    with running(file, resume, save_every, every=1) as on:
        model, tokenizer, history = train_base(reviews.pretraining_texts(), held_out, config, **on)
    with saving(out / "model", history, metrics=out, run=file):
        save_policy(model, tokenizer, out / "model", dtype=torch.float16)
    bits = history[-1]["bits_per_byte"]
    say(f"Wrote {out / 'model'}: {bits:.3f} bits per byte on the validation films.")


def pretrain_on_problems(
    task: str, out: Path, seed: int, steps: int | None, resume: bool, save_every: float
) -> None:
    """tiny-steps, tiny-long-steps or tiny-agent, and how many held-out problems it solves."""
    check_folder(out)
    train, judge = OF_PROBLEMS[task]
    with running(out / PARTIAL, resume, save_every, every=50) as on:
        model, tokenizer, history = train(seed, **given(steps=steps), **on)
    row = judge(model, tokenizer, seed=seed)
    save(model, tokenizer, out, history, dtype=torch.float16)
    say(
        f"Held-out problems: {row['greedy']:.1%} greedy, pass@1 {row['pass_1']:.1%}, "
        f"pass@{TRIES} {row[f'pass_{TRIES}']:.1%}."
    )
    if "step_right" in row:
        say(f"Of the steps that it writes {row['step_right']:.1%} are right.")
    if "in_the_head" in row:
        say(f"Without the calculator {row['in_the_head']:.1%} of the answers are right.")


@app.command()
def gold(
    model: Model = "out/pretrain-gold/model",
    members: Annotated[
        int, option(MODEL, "Number of reward models in the ensemble.", callback=whole(1, 1000))
    ] = 3,
    device: Device = "cpu",
    out: OutParts = Path("out/gold"),
    save_every: SaveEvery = SECONDS,
    resume: Resume = False,
) -> None:
    """Train the gold reward models, which only judge.

    They predict mean ratings of films that no other model sees. The ensemble is then compared
    with the ridge regression that the package uses as gold.

    Example: minirlhf gold --model out/pretrain/model
    """
    _, tokenizer = load_policy(model)
    rated = [r for r in reviews.load_reviews() if r.split == "gold" and r.ratings]
    for member in range(members):
        check_folder(out / f"gold-{member}")
    for member in range(members):
        if resume and (out / f"gold-{member}" / "config.json").exists():
            continue
        backbone, config = load_policy(model)[0].base_model, GoldConfig(seed=100 + member)
        file = out / f"training-{member}.safetensors"
        with running(file, resume, save_every, every=50) as on:
            scorer, history = train_gold(backbone, tokenizer, rated, config, **on)
        with saving(out / f"gold-{member}", history, run=file):
            scorer.save(out / f"gold-{member}", tokenizer)
    for name, judge in (("ridge", gold_judge()), ("ensemble", ensemble_judge(out))):
        r = correlation(judge)
        say(f"{name}: correlation {r:.3f} with the mean ratings of the validation films")
