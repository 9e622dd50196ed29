"""The capstone: a tour of RLHF with a student's own functions in place of the package's.

`my_rlhf.py` holds functions that the exercises ask for. Each is checked first. A wrong one stops
the tour with the checker's message. Where a function is missing or returns None, the package's is
used.
"""

import importlib.util
import inspect
import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from minirlhf.classroom.check import EXERCISES
from minirlhf.runtime import check
from minirlhf.tour import TourFormulas

SECONDS = 60.0  # for the file, and for the check of each of its functions
LONGEST_OUTPUT = 10_000  # characters

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
        ValueError: the file is missing or cannot be run, it holds none of these functions, or one
            of them is wrong.
    """
    path = Path(path)
    known = ", ".join(f"{name} (lesson {lesson})" for name, (lesson, *_) in PLACES.items())
    check("--mine", str(path), path.is_file(), f"a Python file with functions of yours: {known}")
    spec = importlib.util.spec_from_file_location("my_rlhf", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path.name} cannot be run: a Python file's name ends in .py.")
    module = importlib.util.module_from_spec(spec)
    with supervised(path, "cannot be run"):
        spec.loader.exec_module(module)
    found = {
        name: getattr(module, name) for name in PLACES if callable(getattr(module, name, None))
    }
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


class _Output(io.TextIOBase):
    """A stream that passes the first LONGEST_OUTPUT characters on, and drops the rest."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.left = stream, LONGEST_OUTPUT

    def write(self, text: str) -> int:
        if self.left > 0:
            self.stream.write(text[: self.left])
            self.left -= len(text)
            if self.left <= 0:
                self.stream.write("\n... (more output of the file is not shown)\n")
        return len(text)


@contextmanager
def supervised(path: Path, what: str, seconds: float = SECONDS) -> Iterator[None]:
    """Run code of a student's file inside `with`.

    Its output is cut, and the settings that it shares with the tour must stay as they are. On
    Windows, and outside the main thread, there is no time limit.

    Args:
        what: what an error means, to follow the file's name.
        seconds: the time limit.

    Raises:
        ValueError: the code raises anything, exits, takes too long, or changes a setting.
        KeyboardInterrupt: Ctrl-C was pressed.
    """
    pressed: list[int] = []

    def interrupted(number: int, frame: object) -> None:
        pressed.append(number)
        raise KeyboardInterrupt

    before, folder = _settings(), str(path.absolute().parent)
    limited = hasattr(signal, "SIGALRM") and threading.current_thread() is threading.main_thread()
    if limited:
        handlers = [
            (number, signal.signal(number, interrupted))
            for number in (signal.SIGINT, signal.SIGALRM)
        ]
        signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # again, if the code catches it
    sys.path.append(folder)  # files beside it can be imported
    try:
        with redirect_stdout(_Output(sys.stdout)), redirect_stderr(_Output(sys.stderr)):
            yield
    except BaseException as error:
        if signal.SIGINT in pressed:
            raise
        cause = f"it did not finish within {seconds:g} seconds." if pressed else _told(error, path)
        raise ValueError(f"{path.name} {what}: {cause}") from error
    finally:
        if limited:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in handlers:
                signal.signal(number, handler)
        sys.path.remove(folder)
        changed = _restore(before)
    if changed:
        raise ValueError(
            f"{path.name} {what}: it changes {', '.join(changed)}, and the whole tour would change "
            "with it; leave such settings as they are."
        )


def _told(error: BaseException, path: Path) -> str:
    """What an error in a student's file says, with the line of the file where it arose."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename) == path]
    line = getattr(error, "lineno", None) or (lines[-1] if lines else None)
    where = f" (line {line})" if line else ""
    if isinstance(error, SystemExit):
        return f"it ends Python, by exit() or sys.exit(){where}; leave that out."
    said = ": ".join(filter(None, [type(error).__name__, " ".join(str(error).split())]))
    return f"{said}{where}"


def _settings() -> dict[str, Any]:
    """The settings that a student's file shares with the tour, by name."""
    return {
        "the working folder": os.getcwd(),
        "torch's default dtype": torch.get_default_dtype(),
        "whether torch computes gradients": torch.is_grad_enabled(),
        "torch's number of threads": torch.get_num_threads(),
        "torch's default device": torch.get_default_device(),
    }


def _restore(before: dict[str, Any]) -> list[str]:
    """Set the settings back. Returns the names of those that had changed."""
    now = _settings()
    changed = [name for name, value in before.items() if now[name] != value]
    setters: tuple[Callable, ...] = (
        os.chdir,
        torch.set_default_dtype,
        torch.set_grad_enabled,
        torch.set_num_threads,
        torch.set_default_device,
    )
    for (name, value), setter in zip(before.items(), setters, strict=True):
        if name in changed:
            setter(value)
    return changed


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
