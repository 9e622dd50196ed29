"""The capstone: a tour of RLHF with a student's own functions where the package's would stand.

`my_rlhf.py` holds what the exercises made. Each function is checked first; one that is wrong stops the tour with the checker's sentence,
one that is missing or returns None is the package's.
"""

import importlib.util
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from pathlib import Path
from unittest.mock import patch

import torch

from minirlhf.classroom.check import EXERCISES
from minirlhf.runtime import check


def _gae(mine):
    def gae(rewards, values, response_mask, *, gamma, lam):
        advantages = mine(rewards, values, response_mask, gamma, lam)
        return advantages, torch.where(
            response_mask, advantages + values, 0.0
        )  # returns: what the critic is taught

    return gae


def _pair_losses(mine):
    def reward_model_loss(chosen_scores, rejected_scores, *, centering_coef):
        check("centering_coef", centering_coef, centering_coef == 0, "0 with a loss of your own")
        return mine(chosen_scores, rejected_scores).expand(
            len(chosen_scores)
        )  # a mean; its mean is itself

    return reward_model_loss


PLACES: dict[
    str, tuple[str, Callable, tuple[str, ...]]
] = {  # exercise -> lesson, how it is called there, whose place it takes
    "gae_advantages": ("05", _gae, ("ppo.gae",)),
    "ppo_loss": (
        "06",
        lambda mine: (
            lambda new, old, gains, mask, *, clip_eps, clip_eps_high: mine(
                new, old, gains, mask, clip_eps
            )
        ),
        ("ppo.ppo_clip", "family.ppo_clip"),
    ),
    "kl_shaped_rewards": (
        "07",
        lambda mine: (
            lambda scores, old, ref, mask, *, kl_coef: mine(scores, old, ref, mask, kl_coef)
        ),
        ("ppo.kl_shaped_rewards", "family.kl_shaped_rewards"),
    ),
    "bradley_terry_loss": ("08", _pair_losses, ("reward.reward_model_loss",)),
    "group_advantages": (
        "11",
        lambda mine: lambda group_scores, *, scale_by_std: mine(group_scores),
        ("family.group_relative",),
    ),
    "dpo_loss": (
        "12",
        lambda mine: lambda *logprobs, beta: mine(*logprobs, beta),
        ("preference.dpo",),
    ),
}


def load_mine(path: str | Path) -> dict[str, Callable]:
    """The functions of a student's file that stand in PLACES, each checked; {} is a mistake too.

    Raises:
        ValueError: the file is missing, cannot be run, holds none of the functions, or a function is wrong; one sentence says which.
    """
    path, known = (
        Path(path),
        ", ".join(f"{name} (lesson {lesson})" for name, (lesson, *_) in PLACES.items()),
    )
    check("--mine", str(path), path.is_file(), f"a Python file with functions of yours: {known}")
    spec = importlib.util.spec_from_file_location("my_rlhf", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(
            f"{path.name} cannot be run: {type(error).__name__}: {' '.join(str(error).split())}"
        ) from error
    found = {
        name: getattr(module, name) for name in PLACES if callable(getattr(module, name, None))
    }
    results = {name: EXERCISES[name](function) for name, function in found.items()}
    if wrong := [
        f"{name}: {r.message}"
        for name, r in results.items()
        if not r and "returned None" not in r.message
    ]:
        raise ValueError(f"{path.name} is not ready. " + " ".join(wrong))
    mine = {name: found[name] for name, result in results.items() if result}
    check(
        f"{path.name}'s functions",
        sorted(found),
        bool(mine),
        f"at least one, with a body of its own, of {known}",
    )
    return mine


def described(mine: dict[str, Callable], path: Path | None) -> str:
    """Which functions are the student's, and of which file as it now is; "" if none."""
    return (
        f"{', '.join(mine)} ({path.name}, sha256 {sha256(path.read_bytes()).hexdigest()[:8]})"
        if mine
        else ""
    )


@contextmanager
def in_place(mine: dict[str, Callable]):
    """Within this block the loops call the student's functions."""
    with ExitStack() as stack:
        for name, function in mine.items():
            _, adapt, targets = PLACES[name]
            for target in targets:
                stack.enter_context(patch(f"minirlhf.loops.{target}", adapt(function)))
        yield
