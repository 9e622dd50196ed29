"""The list of commands: each one's module, panel and summary.

`minirlhf --help` and shell completion read only this list. They are fast, because they do not
import torch.
"""

from dataclasses import dataclass, replace
from importlib import import_module
from inspect import cleandoc
from typing import TYPE_CHECKING

import typer
from typer.core import TyperGroup

from minirlhf.cli.options import RUN

if TYPE_CHECKING:
    from typer._click import core as click  # typer's own copy of click

START, TRAIN, EXPERIMENTS, CLASS = "Start here", "Train", "Experiments", "Class"
GROUP = "Train without a critic: GRPO and its family"
TURNS = "Train on steps and turns"


@dataclass(frozen=True)
class Command:
    """A row of COMMANDS. The summary is the first sentence of the command's own help."""

    panel: str
    module: str
    summary: str
    hidden: bool = False


LISTED = {  # (panel, module) -> {command: summary}
    (START, "run"): {
        "data": "Download the human ratings (12 MB) and check them.",
        "tour": "Run all of RLHF: SFT, reward model, PPO, DPO, GRPO.",
    },
    (START, "samples"): {
        "sample": "Print responses that a language model samples.",
        "score": "Print the reward of every prefix of a response.",
    },
    (START, "evaluation"): {
        "evaluate": "Compare a model with its start, on data of your own.",
    },
    (START, "best_of_n"): {
        "best-of-n": "Print what the best of n samples gains, by two judges.",
    },
    (START, "label"): {
        "label": "Label pairs of reviews in the terminal.",
        "label-agreement": "Print how much the labels of people agree.",
    },
    (TRAIN, "sft"): {
        "sft": "Train on demonstrations: supervised fine-tuning (SFT).",
    },
    (TRAIN, "reward"): {
        "reward": "Train a reward model on preference pairs.",
    },
    (TRAIN, "ppo"): {
        "ppo": "Train by proximal policy optimisation (PPO).",
    },
    (TRAIN, "preference"): {
        "dpo": "Train by direct preference optimisation (DPO).",
    },
    (TRAIN, "online"): {
        "online-dpo": "DPO on the policy's own pairs, new ones every step.",
        "iterative-dpo": "DPO on the policy's own pairs, made every few steps.",
        "rso": "DPO on own pairs, kept by rejection sampling (RSO).",
    },
    (TRAIN, "pretrain"): {
        "pretrain": "Train a small base language model from random weights.",
        "gold": "Train the gold reward models, which only judge.",
    },
    (GROUP, "group"): {
        "grpo": "GRPO: (score - group mean) / group standard deviation.",
        "grpo-paper": "GRPO with the KL as a loss (k3), as in the paper.",
        "grpo-no-std": "GRPO without dividing by the standard deviation.",
        "grpo-batch-std": "GRPO with the standard deviation of the batch.",
        "dr-grpo": "Dr. GRPO: no division by std or response length.",
        "dapo": "DAPO: higher upper clip, no groups of equal scores.",
        "gspo": "GSPO: one ratio per response instead of per token.",
        "cispo": "CISPO: clips the importance weight, not the objective.",
        "rloo": "RLOO: baseline is the mean of the other responses.",
        "rloo-openrlhf": "RLOO with a KL penalty at each token, as in OpenRLHF.",
        "rloo-verl": "RLOO with one ratio per token, as in verl.",
        "reinforce": "REINFORCE: baseline is the mean of earlier batches.",
        "remax": "ReMax: baseline is the score of the greedy response.",
        "reinforce++": "REINFORCE++: advantages whitened over the batch.",
        "reinforce++-baseline": "REINFORCE++ with group-mean baseline and a KL loss.",
    },
    (TURNS, "step_dpo"): {
        "step-dpo": "Step-DPO: DPO on single steps of written solutions.",
    },
    (TURNS, "prm"): {
        "prm": "Train a process reward model: one score per step.",
    },
    (TURNS, "agent"): {
        "agent": "Train a policy that calls a tool, on its own turns.",
    },
    (EXPERIMENTS, "experiment"): {
        "experiment": "Run an experiment over several seeds and record it.",
        "claims": "Repeat recorded experiments and compare the results.",
        "smollm2": "Train on a real language model, SmolLM2-135M.",
    },
    (CLASS, "course"): {
        "course": "Run the course's notebooks and save their outputs.",
        "grade": "Check the exercises in a folder of submissions.",
        "assignment": "Write lessons' exercises as assignments for nbgrader.",
    },
}
COMMANDS = {
    name: Command(panel, module, summary)
    for (panel, module), summaries in LISTED.items()
    for name, summary in summaries.items()
}
COMMANDS["grid"] = replace(COMMANDS["experiment"], hidden=True)  # named in older records


class OnDemand(TyperGroup):
    """A group of commands whose modules are imported one by one, when a command is called."""

    def parse_args(self, ctx: "click.Context", args: list[str]) -> list[str]:
        check_texts(args)
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: "click.Context", args: list[str]
    ) -> "tuple[str | None, click.Command | None, list[str]]":
        name, found, rest = super().resolve_command(ctx, args)
        if name is None or found is None:
            return name, found, rest
        if ctx.obj:
            ctx.obj()  # `minirlhf.cli.prepare`; nothing under completion and in tests
        command = loaded(name)
        help_option = command.get_help_option(ctx)
        if help_option is not None:
            help_option.rich_help_panel = RUN
        return name, command, rest


def check_texts(args: list[str]) -> None:
    """Check the texts of a command line: an empty one is often a shell variable that is not set.

    Raises:
        ValueError: the value of an option is empty, or a text is not UTF-8.
    """
    for before, text in zip(["", *args], args, strict=False):
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError:
                raise ValueError(
                    f"The text {ascii(text)} of the command line is not UTF-8; give or rename it "
                    "in UTF-8."
                ) from None
        name, is_given, value = text.partition("=")
        nothing_in_it = name.startswith("--") and is_given and not value.strip()
        if nothing_in_it or (before.startswith("--") and not text.strip()):
            option = name if nothing_in_it else before
            raise ValueError(f"{option} is empty; give a value, or leave the option out.")


def listed(app: typer.Typer, name: str) -> None:
    """Add the command's row to the list: its name, panel and summary, without its options."""
    row = COMMANDS[name]
    app.command(name, help=row.summary, rich_help_panel=row.panel, hidden=row.hidden)(lambda: None)


def loaded(name: str) -> "click.Command":
    """The command itself, from its module's `app`."""
    module = import_module(f"{__package__}.{COMMANDS[name].module}")
    command = typer.main.get_group(module.app).commands[name]
    paragraphs = cleandoc(command.help or "").split("\n\n")
    command.help = "\n\n".join(" ".join(p.split()) for p in paragraphs)  # the terminal wraps them
    return command
