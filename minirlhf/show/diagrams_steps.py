"""Diagrams of one training step with real numbers: a step of PPO, and a group of GRPO."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from minirlhf.core.baselines import group_relative
from minirlhf.core.kl import k1
from minirlhf.core.rollout import Rollout
from minirlhf.show import look
from minirlhf.show.diagrams_parts import (
    BLUE,
    Facts,
    arrow,
    block,
    legend,
    number,
    sheet,
    width_of,
    write,
)
from minirlhf.show.strips import strip_colour, visible

ROWS = 12  # of a group, at most; further responses are counted, not drawn
SCALE = 1.6  # end of the colour scale, in largest advantages: colours stay light under the text
UPDATE = ("clip_fraction", "value_loss")


def ppo_step(
    batch: Rollout | None = None,
    *,
    epochs: int = 2,
    minibatch_size: int = 32,
    row: Mapping[str, float] | None = None,
) -> Figure:
    """One step of PPO: sample, ask three models, rewards, advantages, update.

    Args:
        batch: with the columns scores (B,), ref_logprobs, values, rewards, advantages and returns
            (the critic's targets), each (B, R). None: shapes as letters, no numbers.
        epochs: passes over the batch. minibatch_size: responses per optimiser step, a divisor of B.
        row: of this step in the history of `train_ppo`; clip_fraction and value_loss are drawn,
            and its step where it has one.

    Raises:
        ValueError: a column is missing, has another shape, or has a number that is not finite;
            minibatch_size does not divide B; epochs is below 1; or row lacks one of the two.
    """
    facts = Facts(batch)
    parts = _parts(batch, epochs, minibatch_size)
    missing = [name for name in UPDATE if row is not None and name not in row]
    if missing:
        raise ValueError(f"row has no {missing[0]!r}; give a row of train_ppo's history.")
    with look.page():
        figure, axes = sheet(534)
        _sampled_and_asked(axes, facts)
        _rewards_and_advantages(axes, facts)
        _minibatches(axes, facts, parts, epochs, minibatch_size)
        _new_networks(axes, row)
        legend(
            axes,
            14,
            516,
            [
                ("trained", "trained"),
                ("frozen", "frozen"),
                ("data", "numbers of the batch"),
                ("area", "training on the batch"),
            ],
        )
        write(axes, 806, 516, ("text", _which_step({} if row is None else row)), ha="right")
    return figure


def _which_step(row: Mapping[str, float]) -> str:
    """ "step 4 of 8" of a row of a history, where steps count from 0; empty without a step."""
    if "step" not in row:
        return ""
    of = f" of {int(row['steps'])}" if "steps" in row else ""
    return f"This is step {int(row['step']) + 1}{of}."


def _parts(batch: Rollout | None, epochs: int, minibatch_size: int) -> int:
    """The number of minibatches in an epoch; two, for the picture, without a batch."""
    if epochs < 1 or minibatch_size < 1:
        raise ValueError(
            f"epochs is {epochs} and minibatch_size is {minibatch_size}; both must be at least 1."
        )
    if batch is None:
        return 2
    rows = len(batch.response_ids)
    if rows % minibatch_size:
        raise ValueError(
            f"minibatch_size is {minibatch_size}; it must be a divisor of the batch's {rows} rows."
        )
    return rows // minibatch_size


def _sampled_and_asked(axes: Axes, facts: Facts) -> None:
    """Beats 1 and 2: the actor samples; three models read the batch. Rewards need old_logprobs."""
    batch = facts.batch
    length = "" if batch is None else f"{batch.response_mask.sum(1).double().mean().item():.1f}"
    lines = [
        ("title", "1  Sample"),
        ("text", "the actor writes"),
        ("text", "a response to"),
        ("text", "each prompt"),
        ("gap", ""),
        ("code", "sequences"),
        ("code", facts.shape("BT")),
        *([("text", "responses:"), ("text", f"mean {length} tokens")] if length else []),
    ]
    block(axes, (14, 95, 144, 158), "trained", lines)
    write(axes, 287, 44, ("title", "2  Ask three models"))
    asked = [
        ("reward model", "frozen", "scores", "B"),
        ("reference", "frozen", "ref_logprobs", "BR"),
        ("critic", "trained", "values", "BR"),
    ]
    for index, (name, kind, column, letters) in enumerate(asked):
        y = 62 + 80 * index
        mean = facts.mean(column)
        lines = [("head", name), ("code", f"{column} {facts.shape(letters)}")]
        unit = " nats" if column == "ref_logprobs" else ""
        lines += [("text", f"mean {mean}{unit}")] if mean else []
        block(axes, (188, y, 198, 64), kind, lines)
        points = [(158, 174), (173, 174), (173, y + 32), (187, y + 32)]
        arrow(axes, *(points if index != 1 else points[::3]))
    arrow(axes, (86, 94), (86, 26), (526, 26), (526, 69))
    write(axes, 287, 12, ("code", f"old_logprobs {facts.shape('BR')}"))


def _rewards_and_advantages(axes: Axes, facts: Facts) -> None:
    """Beats 3 and 4: scores and KL penalty become rewards, then advantages and targets."""
    kl, spread = _kl(facts), _range(facts, "advantages")
    lines = [
        ("title", "3  Rewards"),
        ("code", f"rewards {facts.shape('BR')}"),
        ("text", "each token: minus the KL penalty"),
        ("text", "last token: also plus the score"),
        *([("text", f"KL {kl} nats per response")] if kl else []),
    ]
    facts.mean("rewards")  # refuses a wrong column
    block(axes, (412, 70, 228, 106), "data", lines)
    arrow(axes, (386, 94), (411, 94))
    arrow(axes, (386, 160), (411, 160))
    mean = facts.mean("returns")
    lines = [
        ("title", "4  Advantages"),
        ("text", "by GAE"),
        ("gap", ""),
        ("code", "advantages"),
        *([("text", spread)] if spread else []),
        ("code", "targets"),
        *([("text", f"mean {mean}")] if mean else []),
        ("text", f"both {facts.shape('BR')}"),
    ]
    block(axes, (662, 50, 144, 146), "data", lines)
    arrow(axes, (640, 123), (661, 123))
    arrow(axes, (386, 254), (704, 254), (704, 197))


def _minibatches(axes: Axes, facts: Facts, parts: int, epochs: int, size: int) -> None:
    """Beat 5, right side: the epochs and their minibatches."""
    known = facts.batch is not None
    block(axes, (442, 324, 364, 164), "area")
    arrow(axes, (764, 196), (764, 323))
    write(axes, 624, 348, ("title", "5  Update"))
    write(axes, 624, 370, ("code", "advantages, targets, old_logprobs"))
    rows, columns = min(epochs, 3), min(parts, 4)
    left = 624 - (62 + 70 * columns) / 2
    for epoch in range(rows):
        y = 418 - 13 * (rows - 1) + 26 * epoch
        write(axes, left, y, ("text", f"epoch {epoch + 1}"), ha="left")
        for column in range(columns):
            box = (left + 62 + 70 * column, y - 11, 66, 22)
            rows_in_it = f"{size} rows" if size < 1000 else str(size)
            block(axes, box, "data", [("text", rows_in_it if known else "rows")])
    steps = f"{epochs * parts} updates of each network"
    if (rows, columns) != (epochs, parts):
        steps = f"in all {epochs} epochs of {parts} minibatches"
    write(axes, 624, 470, ("text", steps if known else "minibatches, in a new order every epoch"))


def _new_networks(axes: Axes, row: Mapping[str, float] | None) -> None:
    """Beat 5, left side: the trained critic and actor, which take the next step."""
    clipped = loss = ""
    if row is not None:
        clipped = f"{100 * row['clip_fraction']:.1f} % of tokens clipped"
        loss = f"mean loss {number(row['value_loss'])}"
    critic = [("head", "new critic"), ("text", "loss: \u00bd (value - target)\u00b2")]
    actor = [
        ("head", "new actor"),
        ("text", "min(ratio A, clip(ratio) A)"),
        ("text", "ratio: new / old probability"),
    ]
    for y, height, lines, result in ((324, 64, critic, loss), (408, 80, actor, clipped)):
        lines += [("text", result)] if result else []
        block(axes, (188, y, 198, height), "trained", lines)
        arrow(axes, (442, y + height / 2), (387, y + height / 2), colour=BLUE)
    arrow(axes, (287, 324), (287, 287), colour=BLUE)
    write(axes, 297, 305, ("text", "next step"), ha="left", colour=BLUE)
    arrow(axes, (188, 448), (86, 448), (86, 254), colour=BLUE)
    write(axes, 96, 305, ("text", "next step"), ha="left", colour=BLUE)


def _kl(facts: Facts) -> str:
    """Mean over the responses of log pi_old - log pi_ref, summed over tokens, nats."""
    if facts.batch is None:
        return ""
    facts.column("ref_logprobs"), facts.column("old_logprobs")
    batch = facts.batch
    each = k1(batch.old_logprobs, batch.ref_logprobs, batch.action_mask)
    return number(each.sum(1).mean().item())


def _range(facts: Facts, column: str) -> str:
    if facts.batch is None:
        return ""
    values = facts.column(column)
    return f"{number(values.min().item())} to {number(values.max().item())}"


def grpo_group(
    prompt: str,
    responses: Sequence[Sequence[str]],
    scores: look.Numbers,
    *,
    scale_by_std: bool = True,
    note: str = "",
) -> Figure:
    """A group of GRPO: one prompt, G responses, their scores and advantages.

        advantage = (score - mean) / standard deviation       of the G scores

    The squared standard deviation is the sum of (score - mean)^2, divided by G - 1.
    The advantages are those of `core.group_relative`. A token has the colour of its advantage,
    and all tokens of a response have the same one.

    Args:
        prompt: its text.
        responses: the tokens of each response, as text: G lists of strings, G >= 2.
        scores: (G,), reward units.
        scale_by_std: divide by the standard deviation; Dr. GRPO does not.
        note: what a reader must know of this prompt or its tokens, in a few words.

    Raises:
        ValueError: the numbers of responses and scores differ, there are fewer than two, a response
            is no list of tokens or is empty, or a score is not finite.
    """
    values = look.finite(scores, "scores")
    if values.ndim != 1 or len(values) != len(responses) or len(values) < 2:
        raise ValueError(
            f"There are {len(responses)} responses and scores of shape {values.shape}; a group has "
            "at least two responses, with one score each."
        )
    for index, tokens in enumerate(responses):
        if isinstance(tokens, str) or not len(tokens):
            raise ValueError(
                f"Response {index} is {tokens!r}; give its tokens, a list of at least one string."
            )
    given = torch.tensor(values, device="cpu")[None]
    advantages = group_relative(given, scale_by_std=scale_by_std)[0].tolist()
    limit = SCALE * max(map(abs, advantages))
    shown = min(len(values), ROWS)
    bottom = 126 + 31 * shown + (22 if shown < len(values) else 0)
    with look.page():
        figure, axes = sheet(bottom + 98)
        block(axes, (14, 10, 792, 36), "data")
        write(axes, 26, 28, ("head", "prompt"), ha="left")
        write(axes, 96, 28, ("code", visible(prompt)), ha="left", width=700)
        arrow(axes, (60, 46), (60, 84))
        samples = f"the policy samples G = {len(values)} responses"
        drawn = write(axes, 70, 65, ("text", samples), ha="left")
        if note:
            start = 70 + width_of(drawn) + 30
            write(axes, start, 65, ("text", visible(note)), ha="left", width=806 - start)
        write(axes, 14, 102, ("head", "responses, token by token"), ha="left")
        longest = max(
            _tokens(axes, 132 + 31 * i, responses[i], advantages[i], limit) for i in range(shown)
        )
        middle = max(longest + 40, 440)  # of the scores; the box at the bottom begins at 410
        write(axes, middle, 102, ("head", "score"))
        write(axes, middle + 105, 102, ("head", "advantage"))
        for index in range(shown):
            y, advantage = 132 + 31 * index, advantages[index]
            write(axes, middle, y, ("code", _score(values, index)))
            _cell(axes, middle + 60, y, 90, advantage, limit)
            signed = f"{'+' if advantage > 0 else ''}{number(advantage)}"
            write(axes, middle + 105, y, ("code", signed))
        if shown < len(values):
            more = f"and {len(values) - shown} more responses"
            write(axes, 14, bottom - 6, ("text", more), ha="left")
        _footer(axes, bottom, middle, values, scale_by_std)
    return figure


def _score(scores: np.ndarray, index: int) -> str:
    """A score as text; without decimals if all scores are whole numbers."""
    whole = all(float(score).is_integer() and abs(score) < 10_000 for score in scores)
    return f"{scores[index]:z.0f}" if whole else number(scores[index])


def _tokens(axes: Axes, y: float, tokens: Sequence[str], advantage: float, limit: float) -> float:
    """The tokens of one response as boxes in one colour; those that do not fit are counted.

    Returns:
        Where the row ends.
    """
    x, end = 14.0, 610.0
    for index, token in enumerate(tokens):
        drawn = write(axes, x, y, ("code", visible(token)), width=240)
        size = width_of(drawn) + 12
        last = index == len(tokens) - 1
        if x + size > (end if last else end - 90):
            drawn.remove()
            write(axes, x + 6, y, ("text", f"and {len(tokens) - index} more"), ha="left")
            return end
        drawn.set_x(x + size / 2)
        _cell(axes, x, y, size, advantage, limit)
        x += size + 4
    return x - 4


def _cell(axes: Axes, x: float, y: float, width: float, advantage: float, limit: float) -> None:
    """A box in the colour of an advantage; below 0 its edge is dashed, for print in grey."""
    axes.add_patch(
        Rectangle(
            (x, y - 12),
            width,
            24,
            facecolor=strip_colour(advantage, limit),
            edgecolor="#444444",
            linewidth=1.1,
            linestyle=(0, (2, 1.5)) if advantage < 0 else "-",
        )
    )


def _footer(axes: Axes, y: float, middle: float, scores: np.ndarray, scale_by_std: bool) -> None:
    """Mean and standard deviation of the scores, the formula, and what the colours mean."""
    mean, std = number(scores.mean()), number(scores.std(ddof=1))
    lines = [("head", f"mean {mean}"), ("text", "advantage = score - mean")]
    if scale_by_std:
        lines = [
            ("head", f"mean {mean}     standard deviation {std}"),
            ("text", "standard deviation\u00b2 = sum of (score - mean)\u00b2 / (G - 1)"),
            ("text", "advantage = (score - mean) / standard deviation"),
        ]
    if (scores == scores[0]).all():
        lines = [
            ("head", f"All scores are {_score(scores, 0)}."),
            ("text", "No response is better than another: nothing is learned."),
        ]
    block(axes, (410, y + 24, 396, 64), "data", lines)
    arrow(axes, (middle, y - 6), (middle, y + 23))
    arrow(axes, (middle + 105, y + 24), (middle + 105, y - 5))
    write(axes, 14, y + 22, ("head", "All tokens of a response have its advantage."), ha="left")
    for sign, at, meaning in (
        ("+", y + 44, "its tokens become more likely"),
        ("-", y + 70, "its tokens become less likely"),
    ):
        _cell(axes, 14, at, 24, float(f"{sign}1"), SCALE)
        write(axes, 26, at, ("code", sign))
        write(axes, 46, at, ("text", meaning), ha="left")
