"""The capstone: a tour of RLHF with a student's own functions in place of the package's.

`my_rlhf.py` holds functions that the exercises ask for. Each is checked first. A wrong one stops
the tour with the checker's message. Where a function is missing or returns None, the package's is
used.
"""

import inspect
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor

from minirlhf.classroom.check import EXERCISES
from minirlhf.classroom.exercise import student_number
from minirlhf.classroom.own_file import module_of, supervised
from minirlhf.runtime import check
from minirlhf.tour import TourFormulas

# What a loop expects of a formula is not always what an exercise asks for: one function each
# translates between the two.


def _gae(mine: Callable) -> Callable:
    def gae(
        rewards: Tensor, values: Tensor, response_mask: Tensor, *, gamma: float, lam: float
    ) -> tuple[Tensor, Tensor]:
        advantages = mine(rewards, values, response_mask, gamma, lam)
        returns = torch.where(response_mask, advantages + values, 0.0)  # the critic's targets
        return advantages, returns

    return gae


def _ppo_clip(mine: Callable) -> Callable:
    def ppo_clip(
        logprobs: Tensor,
        old_logprobs: Tensor,
        advantages: Tensor,
        mask: Tensor,
        *,
        clip_eps: float,
        clip_eps_high: float | None,
    ) -> Tensor:
        return mine(logprobs, old_logprobs, advantages, mask, clip_eps)

    return ppo_clip


def _kl_shaped_rewards(mine: Callable) -> Callable:
    def kl_shaped_rewards(
        scores: Tensor, old_logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, *, kl_coef: float
    ) -> Tensor:
        return mine(scores, old_logprobs, ref_logprobs, mask, kl_coef)

    return kl_shaped_rewards


def _reward_model_loss(mine: Callable) -> Callable:
    def reward_model_loss(
        chosen_scores: Tensor, rejected_scores: Tensor, *, centering_coef: float
    ) -> Tensor:
        check("centering_coef", centering_coef, centering_coef == 0, "0 with a loss of your own")
        mean = mine(chosen_scores, rejected_scores)
        return mean.expand(len(chosen_scores))  # one loss per pair: the mean of equal losses

    return reward_model_loss


def _group_relative(mine: Callable) -> Callable:
    def group_relative(group_scores: Tensor, *, scale_by_std: bool) -> Tensor:
        return mine(group_scores)

    return group_relative


def _dpo(mine: Callable) -> Callable:
    def dpo(*logprobs: Tensor, beta: float) -> Tensor:
        return mine(*logprobs, beta)

    return dpo


# exercise -> (its lesson, its translation, the formula that it replaces, the stages that use it)
PLACES: dict[str, tuple[str, Callable, str, tuple[str, ...]]] = {
    "gae_advantages": ("05", _gae, "gae", ("ppo",)),
    "ppo_loss": ("06", _ppo_clip, "ppo_clip", ("ppo", "grpo")),
    "kl_shaped_rewards": ("07", _kl_shaped_rewards, "kl_shaped_rewards", ("ppo", "grpo")),
    "bradley_terry_loss": ("08", _reward_model_loss, "reward_model_loss", ("reward",)),
    "group_advantages": ("11", _group_relative, "group_relative", ("grpo",)),
    "dpo_loss": ("12", _dpo, "dpo", ("dpo",)),
}


def load_mine(path: str | Path) -> dict[str, Callable]:
    """The functions of a student's file that the tour can use, each checked.

    Raises:
        ValueError: the file is missing or cannot be run, it holds none of these functions, one of
            them is wrong, or MINIRLHF_STUDENT is not a number.
    """
    path = Path(path)
    known = ", ".join(f"{name} (lesson {lesson})" for name, (lesson, *_) in PLACES.items())
    check("--mine", str(path), path.is_file(), f"a Python file with functions of yours: {known}")
    module = module_of(path)
    found = {
        name: getattr(module, name) for name in PLACES if callable(getattr(module, name, None))
    }
    student_number()  # said once here, instead of once for each function
    results = {}
    for name, function in found.items():
        with supervised(path, f"is not ready. {name}"):
            results[name] = EXERCISES[name](function)
    if wrong := [
        f"{name}: {r.message}"
        for name, r in results.items()
        if not r and "returned None" not in r.message
    ]:
        raise ValueError(f"{path.name} is not ready. " + " ".join(wrong))
    mine = {name: found[name] for name, result in results.items() if result}
    theirs = (name for name, thing in vars(module).items() if inspect.isfunction(thing))
    check(
        f"{path.name}'s functions",
        sorted(theirs),
        bool(mine),
        f"at least one, with a body of its own, of {known}",
    )
    return mine


def described(mine: dict[str, Callable], path: Path | None) -> str:
    """Names of a student's functions, their file and its SHA-256, for the report; "" if none."""
    if not mine or path is None:
        return ""
    digest = sha256(path.read_bytes()).hexdigest()[:8]
    return f"{', '.join(mine)} ({path.name}, sha256 {digest})"


def tour_formulas(mine: dict[str, Callable]) -> TourFormulas:
    """The formulas of a tour in which these functions, by exercise, replace the package's."""
    formulas = TourFormulas()
    for name, function in mine.items():
        _, translated, formula, stages = PLACES[name]
        for stage in stages:
            of_stage = replace(getattr(formulas, stage), **{formula: translated(function)})
            formulas = replace(formulas, **{stage: of_stage})
    return formulas
