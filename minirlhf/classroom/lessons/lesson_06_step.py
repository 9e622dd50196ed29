"""Exercise 4 of lesson 06: the whole step of PPO, compared with that of the lesson.

The columns of the batches are compared first. If an update differs, `Watched` has recorded which
responses each update used, and its gradient. So the message says whether the minibatches, the
actor's loss or the critic's loss is the first thing that differs.
"""

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from minirlhf.classroom.exercise import Result
from minirlhf.core.masking import aggregate
from minirlhf.core.policy_gradient import ppo_clip, value_loss
from minirlhf.core.rollout import Rollout
from minirlhf.models.forward import policy_logprobs, response_values

EPOCHS, MINIBATCH = 2, 32
KEPT = 8  # updates whose weights and gradients are kept: at least those of the first step
PARTS = {  # a column -> what to look at if it is the first one that differs
    "response_ids": "Look at part 1: prompts in order, `sampling`, and `generator` for all draws.",
    "old_logprobs": "Leave those of `models.sample` as they are.",
    "scores": "Look at part 2: `score` of the batch.",
    "rewards": (
        "Look at the reference in part 2 and at part 3: temperature 0.7, kl_coef 0.5, "
        "old minus reference, the score at the last token."
    ),
    "advantages": "Look at the critic's values in part 2 and at GAE in part 4: gamma 1, lam 0.95.",
    "targets": "The target is the second result of `core.gae`: advantage plus value.",
}
UPDATED = ("response_ids", "old_logprobs", "advantages")  # they show an update of a step before
SUSPECTS = {
    "actor": "temperature, `old_logprobs`, sign, and the mask of the minibatch",
    "critic": "new values, targets, sign, and the mask of the minibatch",
}


class Update(NamedTuple):
    """One update: the token ids that the model read, and the weights and gradients.

    The weights and gradients are empty after the first KEPT updates.
    """

    ids: list[list[int]]
    weights: list[Tensor]
    gradients: list[Tensor]


class Watched:
    """A model, and what each update of it used: its responses, its weights and its gradient.

    Args:
        model: the actor or the critic.
        optimizer: its optimiser.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model: Any = model
        self.copy: Any = copy.deepcopy(model)
        self.ids: list[list[int]] = []
        self.updates: list[Update] = []
        words = next(m for m in model.modules() if isinstance(m, nn.Embedding))
        words.register_forward_pre_hook(self._reads)
        optimizer.register_step_pre_hook(self._steps)

    def _reads(self, embedding: nn.Module, given: tuple) -> None:
        self.ids = given[0].tolist()

    def _steps(self, *_: object) -> None:
        weights, gradients = [], []
        if len(self.updates) < KEPT:
            for p in self.model.parameters():
                weights.append(p.detach().clone())
                gradients.append(torch.zeros_like(p) if p.grad is None else p.grad.clone())
        self.updates.append(Update(self.ids, weights, gradients))

    def of_batch(self, batch: Rollout) -> list[tuple[list[int], Update]]:
        """The updates that used responses of this batch alone, each with the rows of the batch."""
        pads = set(batch.sequences[~batch.attention_mask].tolist())
        row_of = {_stripped(ids, pads): i for i, ids in enumerate(batch.sequences.tolist())}
        found = []
        for update in self.updates:
            keys = [_stripped(ids, pads) for ids in update.ids]
            if all(key in row_of for key in keys):
                found.append(([row_of[key] for key in keys], update))
        return found

    def gradient(self, name: str, weights: list[Tensor], part: Rollout) -> list[Tensor]:
        """The gradient of section 4's loss of the actor or the critic, on a minibatch."""
        with torch.no_grad():
            for p, value in zip(self.copy.parameters(), weights, strict=True):
                p.copy_(value)
        mask = part.response_mask
        if name == "actor":
            logprobs = policy_logprobs(self.copy, part, temperature=0.7)
            losses = ppo_clip(logprobs, part.old_logprobs, part.advantages, mask, clip_eps=0.2)
        else:
            losses = value_loss(response_values(self.copy, part), part.targets, mask)
        parameters = list(self.copy.parameters())
        found = torch.autograd.grad(aggregate(losses, mask), parameters, allow_unused=True)
        return [
            torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)
        ]


def watch_updates(
    *,
    actor: tuple[nn.Module, torch.optim.Optimizer],
    critic: tuple[nn.Module, torch.optim.Optimizer],
) -> dict[str, Watched]:
    """Record the updates of actor and critic from now on, for `whole_step`.

    Args:
        actor, critic: the model and its optimiser, before the first update.

    Returns:
        name -> what its updates used.
    """
    return {"actor": Watched(*actor), "critic": Watched(*critic)}


def whole_step(
    mine: Sequence[Rollout],
    expected: Sequence[Rollout],
    watched: dict[str, Watched],
    **right: nn.Module,
) -> Result:
    """Compare the steps of a PPO loop with those of the lesson, and name what differs first.

    Args:
        mine: the batch that each step returned, with the columns scores, rewards, advantages and
            targets.
        expected: the same of the lesson.
        watched: what `watch_updates` recorded.
        right: actor and critic after the lesson's steps.

    Returns:
        The Result. Its message names the step and the column that differs first, or what differs
        first in the updates.
    """
    for step, (batch, wanted) in enumerate(zip(mine, expected, strict=True), 1):
        if not isinstance(batch, Rollout):
            kind = type(batch).__name__
            return Result(False, f"my_step returned {kind}. It must return the batch.")
        for name, hint in PARTS.items():
            if problem := _differs(batch, wanted, name):
                if step > 1 and name in UPDATED:
                    hint = _update(watched, expected[0], step - 1)
                return Result(False, f"step {step}: {problem} {hint}")
    for name, model in right.items():
        pairs = zip(watched[name].model.parameters(), model.parameters(), strict=True)
        if not all(torch.equal(a, b) for a, b in pairs):
            start = f"all batches are right, but the {name}'s weights differ at the end."
            return Result(False, f"{start} {_update(watched, expected[0], len(mine))}")
    return Result(
        True, f"all columns of {len(mine)} steps and the weights equal those of section 4."
    )


def _update(watched: dict[str, Watched], batch: Rollout, last: int) -> str:
    """What differs first in the updates of the first step: minibatches, actor, or critic.

    Args:
        batch: of the first step.
        last: the last step whose batch is right. The first wrong update is at the latest there.
    """
    updates = {name: one.of_batch(batch) for name, one in watched.items()}
    for name, found in updates.items():
        if problem := _minibatches(name, [rows for rows, _ in found], len(batch.sequences)):
            return problem
    for name, found in updates.items():
        before = None
        kept = [(rows, update) for rows, update in found if update.weights]
        for number, (rows, (_, weights, given)) in enumerate(kept, 1):
            right = watched[name].gradient(name, weights, batch.select(rows))
            if not _equal(given, right):
                start = f"Step 1, update {number}: the minibatch is right"
                if before and _equal(given, [a + b for a, b in zip(right, before, strict=True)]):
                    return (
                        f"{start}, but the {name}'s gradient still holds that of the update "
                        "before. Look at `zero_grad`."
                    )
                if times := _times(given, right):
                    return (
                        f"{start}, and the {name}'s gradient has the right direction, but it is "
                        f"{times:.4g} times as long as it should be. Look at the mean over tokens."
                    )
                what = f"{start}, but the {name}'s gradient differs. Look at its loss:"
                if number > 1:
                    return (
                        f"{what} update 1 was right. What must stay fixed for the whole step, and "
                        "what must be computed anew?"
                    )
                return f"{what} {SUSPECTS[name]}; at `backward`."
            before = given
    if last > 1:
        return f"Step 1 is right; what is different in step {last}?"
    return (
        "In step 1 the losses are right, so the random numbers or the order of the lines differ: "
        "`torch.randperm` once per epoch, with `generator`."
    )


def _minibatches(name: str, updates: list[list[int]], size: int) -> str:
    """What is wrong with the rows of the updates of one step; "" if nothing is."""
    each = size // MINIBATCH
    if len(updates) != EPOCHS * each:
        return (
            f"In step 1 the {name} was updated {len(updates)} times on rows of its batch, not "
            f"{EPOCHS * each} times. Look at part 5: epochs, `split`, `select`, `step`."
        )
    for epoch in range(EPOCHS):
        parts = updates[epoch * each : (epoch + 1) * each]
        whole = sorted(row for part in parts for row in part) == list(range(size))
        if not whole or any(len(part) != MINIBATCH for part in parts):
            return (
                f"In step 1 the minibatches of epoch {epoch + 1} do not hold each response once, "
                f"{MINIBATCH} at a time. Look at part 5: `randperm`, `split` and `select`."
            )
    return ""


def _stripped(ids: list[int], pads: set[int]) -> tuple[int, ...]:
    """Token ids without padding at both ends."""
    real = [i for i, token in enumerate(ids) if token not in pads]
    return tuple(ids[real[0] : real[-1] + 1]) if real else ()


def _equal(given: list[Tensor], right: list[Tensor]) -> bool:
    """Whether two gradients are equal, up to rounding."""
    a, b = (torch.cat([x.flatten() for x in gradient]) for gradient in (given, right))
    return bool((a - b).norm() <= 1e-3 * b.norm())


def _times(given: list[Tensor], right: list[Tensor]) -> float:
    """How many times as long as another of the same direction a gradient is; 0 if it differs."""
    a, b = (torch.cat([x.flatten() for x in gradient]) for gradient in (given, right))
    times = (a @ b / (b @ b)).item()
    return times if times > 0 and (a - times * b).norm() <= 1e-3 * a.norm() else 0.0


def _differs(batch: Rollout, right: Rollout, name: str) -> str:
    """How a column of the batch differs from the right one; "" if it does not."""
    if name in right.columns and name not in batch.columns:
        return f"the batch has no column `{name}`; `batch.with_columns` adds it."
    answer, expected = (getattr(b, name) for b in (batch, right))
    if answer.shape != expected.shape:
        what = "the sampled tokens" if name == "response_ids" else f"`{name}`"
        return f"{what} have the shape {tuple(answer.shape)}, not {tuple(expected.shape)}."
    real = right.response_mask if answer.dim() == 2 else torch.ones_like(answer, dtype=torch.bool)
    if torch.allclose(answer[real].double(), expected[real].double(), rtol=1e-4, atol=1e-5):
        return ""
    return "the sampled tokens differ." if name == "response_ids" else f"`{name}` differ first."
