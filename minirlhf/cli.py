"""The command line: each command is one loop with its defaults, on the committed models and the real ratings."""

import logging
import os
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import Annotated

import datasets
import torch
import transformers
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from safetensors import SafetensorError

from minirlhf.classroom.mine import PLACES, described, in_place, load_mine
from minirlhf.evaluate import sharpened_or_learned
from minirlhf.experiments import (
    NAMES,
    RECORDED_SEEDS,
    fill_readme,
    readme_to_fill,
    record_smollm2,
    repeat_run,
    repeat_tour,
    run_experiment,
)
from minirlhf.experiments.practice import (
    ASKED,
    STEPS,
    TASKS,
    TRIES,
    group_config,
    judged,
    scoring,
    train_tiny_steps,
)
from minirlhf.loops.checkpoint import Checkpoint, Stopped
from minirlhf.loops.family import FAMILY
from minirlhf.loops.gold import GoldConfig, train_gold
from minirlhf.loops.group import train_group
from minirlhf.loops.online import ONLINE, train_online
from minirlhf.loops.ppo import PPOConfig, train_ppo
from minirlhf.loops.preference import LOSSES, DPOConfig, train_dpo
from minirlhf.loops.pretrain import PretrainConfig, train_base
from minirlhf.loops.reward import RewardConfig, train_reward_model
from minirlhf.loops.sft import SFTConfig, train_sft
from minirlhf.models.adapters import fitted, merged
from minirlhf.models.forward import decode
from minirlhf.models.load import load_policy, load_scalar, save_policy
from minirlhf.models.sampling import SamplingConfig, sample_text
from minirlhf.rewards.gold import correlation, ensemble_judge, gold_judge
from minirlhf.rewards.model import normalise_scores, prefix_scores
from minirlhf.runtime import SMOLLM2, History, check, check_folder, set_threads, write_text
from minirlhf.search.selection import best_of_n
from minirlhf.show.progress import Progresses
from minirlhf.show.strips import printable, strip_colour, token_strip_html
from minirlhf.tasks import reviews, sources
from minirlhf.tasks.formats import completions, paired
from minirlhf.tasks.hub import DATASETS, load_by_name
from minirlhf.tour import Tour, TourConfig, write_tour_report

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="RLHF from scratch on a laptop: real human ratings, a small GPT-2, every formula readable.",
)
console = Console()
PARTIAL = "training.safetensors"  # in --out until the result is there
Out = Annotated[
    Path,
    typer.Option(help="Folder to write to; what it holds is replaced only when the new is whole."),
]
Seed = Annotated[int, typer.Option(help="Seed of everything random in the run.")]
Model = Annotated[
    str,
    typer.Option(
        help=f"Policy: tiny-reviews, tiny-reviews-sft, {SMOLLM2}, a folder, or a hub name."
    ),
]
Steps = Annotated[int, typer.Option(help="Steps, 1 or more.")]
OwnSteps = Annotated[
    int | None, typer.Option(help="Steps, 1 or more; the task's own number, if left out.")
]
Rate = Annotated[float, typer.Option(help="Peak learning rate, above 0.")]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume", help="Go on with the run that was stopped in --out, to the same result."
    ),
]
Data = Annotated[
    str,
    typer.Option(
        "--dataset",
        help=f"{', '.join(DATASETS)}, a hub name, or a .jsonl file in one of TRL's formats; "
        "the reviews, if left out.",
    ),
]
Rows = Annotated[
    int,
    typer.Option(help="Rows of the dataset to read, from the first; pairs drawn of the reviews."),
]
MaxResponse = Annotated[int, typer.Option(help="Tokens a response is cut to, EOS included.")]
Lora = Annotated[int, typer.Option(help="Rank of low-rank adapters; 0 trains every weight.")]
Bf16 = Annotated[bool, typer.Option("--bf16", help="With --lora: the frozen weights in bfloat16.")]
Recompute = Annotated[
    bool,
    typer.Option(
        "--recompute", help="Gradient checkpointing: less memory, about a third more time."
    ),
]
MicroBatch = Annotated[
    int,
    typer.Option(
        help="Sequences or pairs that are in memory at once; 0: all of an optimiser step's."
    ),
]
KLCoef = Annotated[float, typer.Option(help="KL penalty, reward units per nat, 0 or more.")]
Scorer = Annotated[str, typer.Option(help="Reward model.")]
LossName = Annotated[str, typer.Option(help=f"One of {', '.join(LOSSES)}.")]
PairLoss = Annotated[
    str,
    typer.Option(
        help=f"One of {', '.join(name for name, row in LOSSES.items() if not row.single)}."
    ),
]
Beta = Annotated[
    float | None, typer.Option(help="Reward units per nat, above 0; the loss's own, if left out.")
]
Setting = Annotated[
    list[str] | None,
    typer.Option(
        help="NAME=NUMBER of the loss: penalty=50, or tdpo's alpha=none; may be repeated."
    ),
]
ReferenceFree = Annotated[
    bool,
    typer.Option(
        "--reference-free", help="No reference: every text counts as equally likely before."
    ),
]
SyncEvery = Annotated[
    int, typer.Option(help="Steps after which the reference moves to the policy; 0: never.")
]
Mixup = Annotated[
    float, typer.Option(help="With --sync-every, how far it moves, above 0; 1: all the way.")
]


def main() -> None:
    """Run a command; a wrong input ends in one sentence instead of a traceback."""
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.logging.set_verbosity(
        datasets.logging.CRITICAL
    )  # what it has to say comes as our one sentence
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)
    set_threads()
    for stream in (
        sys.stdout,
        sys.stderr,
    ):  # a terminal without some letter shows a question mark for it
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        app()
    except Stopped as stopped:
        console.print(
            f"{stopped} The same command with --resume goes on from there (tour, grid, smollm2: without).",
            highlight=False,
        )
        raise SystemExit(130) from None
    except (ValueError, ArithmeticError, OSError, RuntimeError, SafetensorError) as error:
        if os.environ.get("MINIRLHF_TRACEBACK"):
            raise
        Console(stderr=True).print(
            Text("Error: ", style="bold red") + Text(str(error).splitlines()[0], style="default")
        )
        raise SystemExit(1) from None


@app.command()
def data(
    model: Annotated[
        str, typer.Option(help=f"Also a language model: {SMOLLM2}, 93 MB, 270 MB on disk.")
    ] = "",
):
    """Fetch and check the third-party ratings (12 MB, once)."""
    check("model", model, model in ("", SMOLLM2), f"{SMOLLM2}, or left out")
    console.print(f"The rating sets are in {sources.fetch()}, whole and unchanged.")
    if model:
        console.print(f"{SMOLLM2} is in {sources.fetch_smollm2()}: give `--model {SMOLLM2}`.")


@app.command()
def tour(
    out: Out = Path("out/tour"),
    seed: Seed = 0,
    reduced: Annotated[
        bool, typer.Option(help="A few steps of each stage, to see that all works.")
    ] = False,
    mine: Annotated[
        Path | None,
        typer.Option(
            help="Python file of your own functions for the package's place; to OUT/mine."
        ),
    ] = None,
    export: Annotated[
        Path | None, typer.Option(help="Also write SFT and reward model there, in 16 bits.")
    ] = None,
):
    """SFT -> reward model -> PPO, then DPO and GRPO, on real ratings; ends with out/tour/report.html."""
    own = load_mine(mine) if mine else {}
    if own:
        out, others = out / "mine", ", ".join(name for name in PLACES if name not in own)
        console.print(
            f"Yours, checked: {', '.join(own)}. The package's: {others or 'none of the six'}.",
            highlight=False,
        )
    sources.fetch()
    started = time.time()
    config = (TourConfig.reduced() if reduced else TourConfig()).seeded(seed)
    with Progresses(console) as progress, in_place(own):
        run = Tour(out, config, progress, mine=described(own, mine))
        rows = run.run()
    table = Table(title=f"{len(set(rows[0]['prompts']))} held-out films, 95 % intervals over films")
    columns = ("method", "gold", "proxy", "kl", "length", "distinct_2")  # the rest is in the report
    for name in columns:
        table.add_column(name, no_wrap=True)
    for row in rows:
        interval = f"{row['gold']:.2f} [{row['gold_low']:.2f}, {row['gold_high']:.2f}]"
        table.add_row(row["method"], interval, *(f"{row[name]:.2f}" for name in columns[2:]))
    console.print(table)
    path = write_tour_report(run, out / "report.html")
    if export:
        save_policy(run.sft, run.tokenizer, export / "tiny-reviews-sft", dtype=torch.float16)
        run.reward_model.save(export / "tiny-reviews-reward", run.tokenizer)
    console.print("  ".join(f"{stage} {seconds:.0f} s" for stage, seconds in run.times.items()))
    console.print(
        f"{time.time() - started:.0f} s in all. Open {path} in a browser. Samples come from a small model of film "
        "reviews and may offend.",
        highlight=False,
    )


@app.command()
def grid(
    name: Annotated[
        str,
        typer.Argument(help=f"One of {', '.join(NAMES)}."),
    ] = "tour",
    seeds: Annotated[int, typer.Option(help="How many seeds, from 0 on.")] = RECORDED_SEEDS,
    out: Out = Path("out/grid"),
):
    """The tour, or an experiment, over several seeds, recorded into data/results; resumes. The tour with 3: the README's tables too."""
    readme_to_fill()
    with Progresses(console, every=20) as progress:
        run_experiment(name, out, seeds, on_step=progress)
    if name not in ("tour", "reward_model"):
        return
    if seeds == RECORDED_SEEDS:
        fill_readme()
    else:
        console.print(f"README.md speaks of {RECORDED_SEEDS} seeds: its tables were left alone.")


def check_reproduced(which: str, wrong: list[str]) -> None:
    if wrong:
        raise ValueError(f"{which} is not reproduced: " + "; ".join(wrong))
    console.print(f"{which} is reproduced.", highlight=False)


@app.command()
def claims(draw: Annotated[int, typer.Option(help="Seed of the drawing.")] = 0):
    """Re-run a row of the experiments and a seed of the tour, drawn, from nothing; compare within the spread of the recorded seeds."""
    try:
        with tempfile.TemporaryDirectory() as folder, Progresses(console, every=20) as progress:
            which, wrong = repeat_run(Path(folder), draw=draw, on_step=progress)
            check_reproduced(which, wrong)
            which, wrong = repeat_tour(Path(folder), draw=draw, on_step=progress)
            check_reproduced(which, wrong)
    except Stopped:
        raise KeyboardInterrupt from None  # its folder is gone; there is nothing to go on from


@app.command()
def course(
    names: Annotated[
        list[str] | None, typer.Argument(help="Numbers or beginnings of names; all by default.")
    ] = None,
):
    """Execute every notebook from its source, with outputs; FAST=1 reads recorded results where a full run computes."""
    from minirlhf.classroom.course import build, notebook_sources  # needs requirements-dev.txt

    for source in notebook_sources(names):
        path, seconds = build(source)
        console.print(f"{path.name}: {seconds:.0f} s", highlight=False)


@app.command(SMOLLM2.split("-")[0])
def real_model(out: Out = Path("out/smollm2")):
    """A reward head and DPO on SmolLM2-135M, with adapters, judged on held-out films and recorded; up to 20 minutes, resumes."""
    sources.fetch()
    sources.fetch_smollm2()
    started = time.time()
    with Progresses(console, every=5) as progress:
        rows = record_smollm2(out, on_step=progress)
    for row in rows[:-1]:
        console.print(
            f"{row['method']}: right on {row['accuracy']:.3f} [{row['low']:.3f}, {row['high']:.3f}] of {row['pairs']} pairs of "
            f"{row['films']} held-out films",
            highlight=False,
        )
    console.print(f"{time.time() - started:.0f} s in all.", highlight=False)


@app.command()
def pretrain(
    out: Out = Path("out/pretrain"),
    seed: Seed = 0,
    steps: OwnSteps = None,
    task: Annotated[
        str, typer.Option(help="reviews: tiny-reviews from raw text; arithmetic: tiny-steps.")
    ] = "reviews",
    layers: Annotated[int, typer.Option(help="Transformer layers.")] = PretrainConfig.n_layer,
    width: Annotated[
        int, typer.Option(help="Hidden size, a multiple of the 4 heads.")
    ] = PretrainConfig.n_embd,
    bf16: Annotated[
        bool, typer.Option(help="bfloat16 autocast: faster on some CPUs, slower on others.")
    ] = False,
    resume: Resume = False,
):
    """Train a base model from nothing: tiny-reviews on raw text, or tiny-steps on arithmetic; saves every minute."""
    check("task", task, task in TASKS, f"one of {', '.join(TASKS)}")
    if task == "arithmetic":
        with _running(out / PARTIAL, resume, every=50) as on:
            model, tokenizer, history = train_tiny_steps(
                seed, STEPS if steps is None else steps, **on
            )
        asked = judged(task, model, tokenizer, reference=model, seed=seed)
        _save(model, tokenizer, out, history, dtype=torch.float16)
        return console.print(
            f"Held-out problems: {asked['greedy']:.1%} greedy, pass@1 {asked['pass_1']:.1%}, "
            f"pass@{TRIES} {asked[f'pass_{TRIES}']:.1%}.",
            highlight=False,
        )
    sources.fetch()
    config = PretrainConfig(
        seed=seed,
        bf16=bf16,
        steps=PretrainConfig.steps if steps is None else steps,
        n_layer=layers,
        n_embd=width,
    )
    held_out = [r.text for r in reviews.load_reviews() if r.split == "val"]
    with _running(out / "pretraining.safetensors", resume, every=1) as on:
        model, tokenizer, history = train_base(reviews.pretraining_texts(), held_out, config, **on)
    save_policy(model, tokenizer, out / "model", dtype=torch.float16)
    history.save(out / "metrics.jsonl")
    on["checkpoint"].remove()
    console.print(
        f"Wrote {out / 'model'}: {history[-1]['bits_per_byte']:.3f} bits per byte on the validation films."
    )


@app.command()
def sft(
    model: Model = "tiny-reviews",
    out: Out = Path("out/sft"),
    seed: Seed = 0,
    lr: Rate = SFTConfig.optimiser.lr,
    epochs: Annotated[
        float, typer.Option(help="Passes over the data, above 0.")
    ] = SFTConfig.epochs,
    dataset: Data = "",
    rows: Rows = TourConfig.pairs,
    max_response: MaxResponse = SFTConfig.max_response,
    resume: Resume = False,
    best_of: Annotated[
        int, typer.Option(help="Imitate the best of so many samples of the model itself; 0: off.")
    ] = 0,
    scorer: Annotated[
        str, typer.Option(help="Reward model that --best-of picks by.")
    ] = "tiny-reviews-reward",
    lora: Lora = 0,
    bf16: Bf16 = False,
    recompute: Recompute = False,
    micro_batch: MicroBatch = 0,
):
    """Supervised fine-tuning: title -> review, the loss on the response only. With --best-of: on what a scorer likes of its own."""
    policy, tokenizer = load_policy(model)
    check(
        "best_of",
        best_of,
        best_of == 0 or (best_of > 1 and not dataset),
        "0, or 2 and more without a dataset",
    )
    config = SFTConfig(
        seed=seed,
        epochs=epochs,
        max_response=max_response,
        optimiser=replace(SFTConfig.optimiser, lr=lr, micro_batch=micro_batch),
    )
    if best_of:  # rejection sampling: samples instead of a gradient
        prompts, likes = reviews.rl_prompts(), scoring("reviews", tokenizer, scorer)[0]
        texts = best_of_n(policy, tokenizer, prompts, likes, best_of, seed=seed)
        data = datasets.Dataset.from_dict({"prompt": prompts, "completion": texts})
    else:
        data = (
            completions(load_by_name(dataset, tokenizer, rows=rows))
            if dataset
            else reviews.sft_dataset(tokenizer)
        )
    policy = fitted(policy, lora=lora, bf16=bf16, recompute=recompute)
    with _running(out / PARTIAL, resume, every=20) as on:
        policy, history = train_sft(policy, tokenizer, data, config, **on)
    _save(policy, tokenizer, out, history)


@app.command()
def reward(
    model: Model = "tiny-reviews-sft",
    out: Out = Path("out/reward"),
    seed: Seed = 0,
    steps: Steps = RewardConfig.steps,
    lr: Rate = RewardConfig.optimiser.lr,
    dataset: Data = "",
    rows: Rows = TourConfig.pairs,
    max_response: MaxResponse = RewardConfig.max_response,
    resume: Resume = False,
    lora: Lora = 0,
    bf16: Bf16 = False,
    recompute: Recompute = False,
    micro_batch: MicroBatch = 0,
):
    """Train a Bradley-Terry reward model and normalise it on samples of `model`."""
    policy, tokenizer = load_policy(model)
    config = RewardConfig(
        seed=seed,
        steps=steps,
        max_response=max_response,
        optimiser=replace(RewardConfig.optimiser, lr=lr, micro_batch=micro_batch),
    )
    data = _pairs(dataset, tokenizer, rows, seed, max_response)
    prompts = islice(cycle(data["prompt"] if dataset else reviews.rl_prompts()), 256)
    samples = sample_text(policy, tokenizer, list(prompts), seed=seed)
    backbone = fitted(policy.base_model, lora=lora, bf16=bf16, recompute=recompute)
    with _running(out / PARTIAL, resume, every=20) as on:
        scorer, history = train_reward_model(backbone, tokenizer, data, config, **on)
    normalise_scores(scorer, samples, tokenizer.eos_token_id).save(out, tokenizer)
    history.save(out / "metrics.jsonl")
    console.print(
        f"Wrote {out}: shift {scorer.shift:.3f}, scale {scorer.scale:.3f} (raw reward units)."
    )


@app.command()
def gold(
    model: Model = "out/pretrain-gold/model",
    out: Out = Path("out/gold"),
    members: Annotated[int, typer.Option(help="Size of the ensemble.")] = 3,
    resume: Resume = False,
):
    """Train the ensemble that regresses the mean ratings of the gold films, and compare it with the ridge."""
    _, tokenizer = load_policy(model)
    rated = [r for r in reviews.load_reviews() if r.split == "gold" and r.ratings]
    for member in range(members):
        if resume and (out / f"gold-{member}").exists():
            continue
        with _running(out / f"training-{member}.safetensors", resume, every=50) as on:
            scorer, _ = train_gold(
                load_policy(model)[0].base_model,
                tokenizer,
                rated,
                GoldConfig(seed=100 + member),
                **on,
            )
        scorer.save(out / f"gold-{member}", tokenizer)
        on["checkpoint"].remove()
    for name, judge in (("ridge", gold_judge()), ("ensemble", ensemble_judge(out))):
        console.print(
            f"{name}: r = {correlation(judge):.3f} with the mean ratings of the validation films"
        )


@app.command()
def ppo(
    model: Model = "tiny-reviews-sft",
    scorer: Scorer = "tiny-reviews-reward",
    out: Out = Path("out/ppo"),
    seed: Seed = 0,
    steps: Steps = PPOConfig.steps,
    lr: Rate = PPOConfig.actor.lr,
    kl_coef: KLCoef = PPOConfig.kl.kl_coef,
    resume: Resume = False,
    lora: Lora = 0,
    bf16: Bf16 = False,
    recompute: Recompute = False,
    micro_batch: MicroBatch = 0,
):
    """PPO with a learned critic and the KL penalty in the reward."""
    policy, tokenizer = load_policy(model)
    score, monitors = scoring("reviews", tokenizer, scorer)
    config = PPOConfig(
        seed=seed,
        steps=steps,
        actor=replace(PPOConfig.actor, lr=lr, micro_batch=micro_batch),
        kl=replace(PPOConfig.kl, kl_coef=kl_coef),
    )
    policy, critic = (
        fitted(policy, lora=lora, bf16=bf16, recompute=recompute),
        load_scalar(scorer)[0],
    )
    critic.backbone = fitted(critic.backbone, lora=lora, bf16=bf16, recompute=recompute)
    with _running(out / PARTIAL, resume, every=1, scorer=scorer) as on:
        policy, _, history = train_ppo(
            policy, critic, tokenizer, reviews.rl_prompts(), score, config, monitors=monitors, **on
        )
    _save(policy, tokenizer, out, history)


def _group_command(name: str) -> None:
    """The command of one row of the family tree."""

    def command(
        task: Annotated[
            str, typer.Option(help=f"What to practise: {', '.join(TASKS)}.")
        ] = "reviews",
        model: Annotated[
            str, typer.Option(help="Policy to begin with; the task's own, if left out.")
        ] = "",
        scorer: Annotated[
            str, typer.Option(help="Reward model, for the reviews.")
        ] = "tiny-reviews-reward",
        out: Out = Path("out") / name,
        seed: Seed = 0,
        steps: OwnSteps = None,
        lr: Annotated[
            float | None, typer.Option(help="Peak learning rate, above 0; likewise.")
        ] = None,
        kl_coef: Annotated[
            float | None,
            typer.Option(help="KL penalty, reward units per nat, 0 or more; likewise."),
        ] = None,
        resume: Resume = False,
        lora: Lora = 0,
        bf16: Bf16 = False,
        recompute: Recompute = False,
        micro_batch: MicroBatch = 0,
    ):
        config = group_config(task, name, seed=seed)
        policy, tokenizer = load_policy(model or TASKS[task].model)
        (score, monitors), prompts = scoring(task, tokenizer, scorer), TASKS[task].prompts()
        optimiser = replace(
            config.optimiser, lr=config.optimiser.lr if lr is None else lr, micro_batch=micro_batch
        )
        config = replace(
            config,
            steps=config.steps if steps is None else steps,
            optimiser=optimiser,
            kl=replace(config.kl, kl_coef=config.kl.kl_coef if kl_coef is None else kl_coef),
        )
        before = (
            judged(task, policy, tokenizer, reference=policy, seed=seed)
            if task == "arithmetic"
            else None
        )
        policy = fitted(policy, lora=lora, bf16=bf16, recompute=recompute)
        with _running(
            out / PARTIAL, resume, every=1 if task == "reviews" else 10, scorer=scorer, task=task
        ) as on:
            policy, history = train_group(
                policy, tokenizer, prompts, score, config, monitors=monitors, **on
            )
        _save(policy, tokenizer, out, history)
        if before:
            policy = merged(policy)
            _print_passes(before, judged(task, policy, tokenizer, reference=policy, seed=seed))

    row = FAMILY[name]
    command.__doc__ = (
        f"{name}: baseline {row.baseline}, unit {row.scale}, ratio {row.ratio}, clip {row.clip}, aggregation "
        f"{row.aggregation} ({row.source})."
    )
    app.command(name)(command)


for _name in FAMILY:
    _group_command(_name)


@app.command()
def dpo(
    model: Model = "tiny-reviews-sft",
    out: Out = Path("out/dpo"),
    loss: LossName = DPOConfig.loss,
    seed: Seed = 0,
    steps: Steps = DPOConfig.steps,
    lr: Rate = DPOConfig.optimiser.lr,
    beta: Beta = None,
    setting: Setting = None,
    reference_free: ReferenceFree = False,
    sync_every: SyncEvery = DPOConfig.sync_every,
    mixup: Mixup = DPOConfig.mixup,
    precompute: Annotated[
        bool,
        typer.Option("--precompute", help="The reference's log-probabilities once, at the start."),
    ] = False,
    dataset: Data = "",
    rows: Rows = TourConfig.pairs,
    max_response: MaxResponse = DPOConfig.max_response,
    resume: Resume = False,
    lora: Lora = 0,
    bf16: Bf16 = False,
    recompute: Recompute = False,
    micro_batch: MicroBatch = 0,
):
    """DPO, or another loss of its family, on pairs of human ratings: no reward model, no sampling."""
    policy, tokenizer = load_policy(model)
    config = _preference(
        loss,
        seed,
        steps,
        lr,
        beta,
        setting,
        reference_free,
        sync_every,
        mixup,
        micro_batch,
        max_response,
        precompute,
    )
    data = _pairs(dataset, tokenizer, rows, seed, max_response, single=LOSSES[loss].single)
    policy = fitted(policy, lora=lora, bf16=bf16, recompute=recompute)
    with _running(out / PARTIAL, resume, every=10) as on:
        policy, history = train_dpo(policy, tokenizer, data, config, **on)
    _save(policy, tokenizer, out, history)
    if not dataset:
        _print_judged(policy, tokenizer, model, seed)


def _online_command(name: str) -> None:
    """The command of one way to make pairs of the policy's own responses."""
    preset = ONLINE[name]

    def command(
        model: Model = "tiny-reviews-sft",
        scorer: Scorer = "tiny-reviews-reward",
        out: Out = Path("out") / name,
        loss: PairLoss = preset.dpo.loss,
        seed: Seed = 0,
        steps: Steps = preset.dpo.steps,
        lr: Rate = preset.dpo.optimiser.lr,
        samples: Annotated[int, typer.Option(help="Responses a prompt.")] = preset.samples,
        beta: Beta = None,
        setting: Setting = None,
        reference_free: ReferenceFree = False,
        sync_every: SyncEvery = preset.dpo.sync_every,
        mixup: Mixup = preset.dpo.mixup,
        resume: Resume = False,
        lora: Lora = 0,
        bf16: Bf16 = False,
        recompute: Recompute = False,
        micro_batch: MicroBatch = 0,
    ):
        policy, tokenizer = load_policy(model)
        score, monitors = scoring("reviews", tokenizer, scorer)
        told = beta is not None or any(text.startswith("beta=") for text in setting or [])
        beta = beta if told or loss != preset.dpo.loss else preset.dpo.beta
        own = _preference(
            loss,
            seed,
            preset.dpo.steps,
            lr,
            beta,
            setting,
            reference_free,
            sync_every,
            mixup,
            micro_batch,
        )
        accepted = own.of_loss["beta"] if told else preset.accept_beta
        config = replace(preset, samples=samples, dpo=own, accept_beta=accepted).with_steps(steps)
        policy = fitted(policy, lora=lora, bf16=bf16, recompute=recompute)
        with _running(out / PARTIAL, resume, every=5, scorer=scorer) as on:
            policy, history = train_online(
                policy, tokenizer, reviews.rl_prompts(), score, config, monitors=monitors, **on
            )
        _save(policy, tokenizer, out, history)
        _print_judged(policy, tokenizer, model, seed)

    command.__doc__ = (
        f"{preset.samples} responses of the policy to each prompt, a pair of them ({preset.pick}) as a reward model says; "
        f"new ones after {preset.refresh} of {preset.dpo.steps} steps."
    )
    app.command(name)(command)


for _name in ONLINE:
    _online_command(_name)


@app.command()
def sample(
    prompts: Annotated[list[str], typer.Argument(help="Film titles, or any prompts.")],
    model: Model = "tiny-reviews-sft",
    n: Annotated[int, typer.Option(help="Samples a prompt.")] = 3,
    seed: Seed = 0,
    temperature: Annotated[
        float, typer.Option(help="Above 0; 1 is the model's own distribution.")
    ] = SamplingConfig.temperature,
    max_new_tokens: Annotated[
        int, typer.Option(help="Tokens, EOS included.")
    ] = SamplingConfig.max_new_tokens,
):
    """Print unselected samples. They may offend: the model imitates critics."""
    check("n", n, n >= 1, "at least 1")
    policy, tokenizer = load_policy(model)
    config = SamplingConfig(max_new_tokens=max_new_tokens, temperature=temperature)
    every = [p if p.endswith("\n") else p + "\n" for p in prompts for _ in range(n)]
    texts = [
        t
        for r in sample_text(policy, tokenizer, every, config=config, seed=seed)
        for t in decode(tokenizer, r)
    ]
    for prompt, text in zip(every, texts, strict=True):
        console.print(Text(prompt.strip() + ":", style="bold"), Text(printable(text)))


@app.command()
def score(
    text: Annotated[str, typer.Argument(help="The response to score.")],
    prompt: Annotated[str, typer.Option(help="The film's title.")] = "the film",
    scorer: Annotated[str, typer.Option(help="Reward model.")] = "tiny-reviews-reward",
    html: Annotated[Path | None, typer.Option(help="Also write a page with both pictures.")] = None,
):
    """The reward of every prefix, in both readings: prefix + EOS scored alone, and the head read at each token of one pass."""
    model, tokenizer = load_scalar(scorer)
    tokens, with_eos, one_pass = prefix_scores(model, tokenizer, prompt.strip() + "\n", text)
    limit = float(torch.cat([with_eos, one_pass]).abs().max())
    titles = {
        "(a) prefix + EOS, each scored alone (a trained position, on unusual text)": with_eos,
        "(b) one pass, read at each token (natural text, an untrained position)": one_pass,
    }
    for title, values in titles.items():
        console.print(Text(title, style="bold"))
        strip = Text()
        for token, value in zip(tokens, values.tolist(), strict=True):
            strip.append(printable(token), style=f"black on {strip_colour(value, limit)}")
        console.print(strip)
    table = Table("prefix ends with", "(a) prefix + EOS", "(b) one pass")
    for token, a, b in zip(tokens, with_eos.tolist(), one_pass.tolist(), strict=True):
        table.add_row(Text(printable(token)), f"{a:+.3f}", f"{b:+.3f}")
    console.print(table)
    unit = (
        "predicted ratings, -4..4"
        if (model.shift, model.scale) == (0.0, 1.0)
        else "standard deviations of the SFT model's samples"
    )
    warning = (
        f"Reward units: {unit}. The scorer learned from film reviews; the further "
        "a text lies from them (a dog walk, say), the less its numbers mean."
    )
    console.print(warning, highlight=False)
    if html:
        strips = [token_strip_html(tokens, values, title=title) for title, values in titles.items()]
        write_text(
            html,
            "<!doctype html><meta charset=utf-8><title>Reward of every prefix</title>"
            + "".join(strips)
            + f"<p>{warning}</p>",
        )
        console.print(f"Wrote {html}.")


@contextmanager
def _running(path: Path, resume: bool, every: int, **origin: str):
    """What a loop is given by the command line: a bar, and a checkpoint that is there until the result is."""
    if path.name == PARTIAL:
        check_folder(path.parent)  # before an hour's work, not after it
    if resume and not path.exists():
        console.print(
            f"{path} is not there: nothing to resume, so the run starts anew.", highlight=False
        )
    with (
        Checkpoint(path, resume=resume, origin=origin) as checkpoint,
        Progresses(console, every=every) as progress,
    ):
        yield {"on_step": progress, "checkpoint": checkpoint}


def _preference(
    loss,
    seed,
    steps,
    lr,
    beta,
    setting,
    reference_free,
    sync_every,
    mixup,
    micro_batch,
    max_response=DPOConfig.max_response,
    precompute=False,
) -> DPOConfig:
    """Settings of a loss as the command line gives them."""
    given = {}
    for text in setting or []:
        name, _, number = text.partition("=")
        try:
            given[name] = None if number == "none" else float(number)
        except ValueError:
            check("setting", text, False, "NAME=NUMBER, such as penalty=50")
    optimiser = replace(DPOConfig.optimiser, lr=lr, micro_batch=micro_batch)
    return DPOConfig(
        loss,
        beta,
        given,
        steps=steps,
        max_response=max_response,
        reference_free=reference_free,
        sync_every=sync_every,
        mixup=mixup,
        precompute=precompute,
        optimiser=optimiser,
        seed=seed,
    )


def _print_judged(policy, tokenizer, start: str, seed: int) -> None:
    """Gold on held-out films with its interval over films, and what must stand beside it."""
    try:
        row = judged(
            "reviews",
            merged(policy),
            tokenizer,
            reference=load_policy(start)[0],
            seed=seed,
            scorer="",
        )
    except (
        ValueError
    ) as wrong:  # a model that is too short for the films' titles, say; what was trained is saved
        return console.print(
            f"Not judged on the held-out films: {wrong}", highlight=False, markup=False
        )
    console.print(
        f"Held-out films: gold {row['gold']:.2f} [{row['gold_low']:.2f}, {row['gold_high']:.2f}], KL {row['kl']:.1f} nats, "
        f"{row['length']:.0f} tokens, distinct-2 {row['distinct_2']:.2f}.",
        highlight=False,
    )


def _pairs(dataset: str, tokenizer, rows: int, seed: int, max_response: int, single: bool = False):
    """Preference pairs of a named dataset, or of the reviews, one rating a side; with `single`, rows with a label as they are."""
    if not dataset:
        return reviews.preference_pairs(
            "reward", rows, seed=seed, max_tokens=max_response, tokenizer=tokenizer
        )
    data = load_by_name(dataset, tokenizer, rows=rows)
    return paired(data) if "label" in data.column_names and not single else data


def _print_passes(before: dict, after: dict) -> None:
    """Held-out problems before and after, and what the gain is."""
    table = Table(
        "", "greedy", "pass@1", f"pass@{TRIES}", title=f"{ASKED} problems that no training saw"
    )
    for name, row in (("before", before), ("after", after)):
        table.add_row(name, *(f"{row[key]:.1%}" for key in ("greedy", "pass_1", f"pass_{TRIES}")))
    console.print(table)
    console.print(
        f"By the intervals of the paired differences this is {sharpened_or_learned(before, after)}.",
        highlight=False,
    )


def _save(policy, tokenizer, out: Path, history: History, *, dtype=torch.float32) -> None:
    save_policy(policy, tokenizer, out, dtype=dtype)
    history.save(out / "metrics.jsonl")
    console.print(f"Wrote {out}.")


if __name__ == "__main__":
    main()
