"""The numbers of a group method: what the help shows, and what the options make of them."""

from dataclasses import replace

from minirlhf.cli.training_options import minibatch, prompts_in
from minirlhf.experiments.practice import group_config
from minirlhf.loops.group import GroupConfig


def defaults(name: str) -> dict[str, str]:
    """The default of each number, as the help shows it: of film reviews, then of arithmetic."""
    rows = [
        {
            "steps": config.steps,
            "batch_size": config.prompts_per_step * config.group_size,
            "minibatch_size": config.minibatch_size,
            "epochs": config.epochs,
            "lr": config.optimiser.lr,
            "kl_coef": config.kl.kl_coef,
            "missing_eos_penalty": config.missing_eos_penalty,
            "overlong_buffer": config.algorithm.overlong_buffer,
            "group_size": config.group_size,
            "temperature": config.sampling.temperature,
            "max_new_tokens": config.sampling.max_new_tokens,
        }
        for config in (group_config(task, name) for task in ("reviews", "arithmetic"))
    ]
    return {
        key: f"{value}" if value == other else f"{value}; {other} for arithmetic"
        for (key, value), other in zip(rows[0].items(), rows[1].values(), strict=True)
    }


def sized(
    config: GroupConfig, batch_size: int | None, minibatch_size: int | None, group_size: int | None
) -> GroupConfig:
    """The config with other numbers of responses; None leaves one as it is."""
    before = config.prompts_per_step * config.group_size
    batch, group = batch_size or before, group_size or config.group_size
    return replace(
        config,
        prompts_per_step=prompts_in(batch, group),
        group_size=group,
        minibatch_size=minibatch(batch, minibatch_size, updates=before // config.minibatch_size),
    )
