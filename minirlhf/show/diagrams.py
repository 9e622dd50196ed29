"""Diagrams of RLHF with the shapes and numbers of a real batch: the pipeline, the four models.

A batch is a Rollout with further columns. Every diagram of a batch takes it in the same way:

    batch = batch.with_columns(scores=scores, ref_logprobs=ref_logprobs, values=values)
    show.four_models(batch)

Without a batch the shapes are letters: B responses, P prompt positions, R response positions and
T = P + R. A mean is taken over the tokens that the policy chose (`batch.action_mask`).
"""

import textwrap
from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from minirlhf.core.rollout import Rollout
from minirlhf.show import look
from minirlhf.show.diagrams_parts import BLUE, Facts, Line, arrow, block, legend, sheet, write

STAGES = ("SFT", "reward model", "PPO", "GRPO", "DPO")
ROADS = {  # from the SFT policy to a better one: y of the box, title, what it does
    "PPO": (100, "3  PPO", "samples responses; a critic", "predicts their score"),
    "GRPO": (196, "GRPO", "samples groups, no critic:", "compares within the group"),
    "DPO": (292, "DPO", "needs no reward model:", "learns from the pairs"),
}
FOUR = (  # name, trained or frozen, what it does, what it gives
    ("Actor", "trained", "the policy that", "is being trained", "old_logprobs"),
    ("Reference", "frozen", "copy of the actor", "before training", "ref_logprobs"),
    ("Reward model", "frozen", "judges the", "whole response", "scores"),
    ("Critic", "trained", "predicts the return", "before each token", "values"),
)


def pipeline(results: Mapping[str, str] | None = None) -> Figure:
    """The pipeline of RLHF: SFT, reward model and PPO, and the other roads GRPO and DPO.

    Args:
        results: what came out of a stage, in a few words, for example {"PPO": "gold score 1.34"}.
            The names of the stages are SFT, reward model, PPO, GRPO and DPO.

    Raises:
        ValueError: a name that is none of the stages.
    """
    results = dict(results or {})
    for name in results:
        if name not in STAGES:
            raise ValueError(f"There is no stage {name!r}; the stages are {look.quoted(STAGES)}.")
    found = {stage: _two_lines(results.get(stage, "")) for stage in STAGES}
    with look.page():
        figure, axes = sheet(410)
        block(axes, (194, 82, 482, 284), "area")
        _data(axes)
        sft = [
            ("title", "1  SFT"),
            ("text", "supervised fine-tuning:"),
            ("text", "learns to imitate"),
        ]
        block(axes, (12, 100, 164, 64), "trained", sft)
        reward = [("title", "2  Reward model"), ("text", "learns to score responses")]
        block(axes, (220, 100, 184, 64), "trained", [*reward, *found["reward model"][:1]])
        block(axes, (12, 200, 164, 56), "result", [("head", "SFT policy"), *found["SFT"]])
        for stage, (y, title, *texts) in ROADS.items():
            lines = [("title", title), *(("text", text) for text in texts)]
            block(axes, (456, y, 206, 64), "trained", lines)
            policy = [("head", f"{stage} policy"), *found[stage]]
            block(axes, (692, y + 4, 118, 56), "result", policy)
            arrow(axes, (662, y + 32), (691, y + 32))
        _roads(axes)
        legend(
            axes,
            12,
            390,
            [("data", "data"), ("trained", "training"), ("result", "policy that comes out")],
        )
    return figure


def _two_lines(result: str) -> list[Line]:
    """A result as at most two lines of text."""
    lines = textwrap.wrap(str(result), 16)
    return [("text", line) for line in [*lines[:1], *([" ".join(lines[1:])] if lines[1:] else [])]]


def _data(axes: Axes) -> None:
    """What people write, at the top of the pipeline."""
    for x, width, name, text in (
        (12, 164, "demonstrations", "good responses"),
        (220, 184, "human ratings", "A is better than B"),
        (456, 206, "prompts", "no responses needed"),
    ):
        block(axes, (x, 10, width, 50), "data", [("head", name), ("text", text)])
        arrow(axes, (x + width / 2, 60), (x + width / 2, 99))


def _roads(axes: Axes) -> None:
    """The arrows of the pipeline from one stage to another, with their words."""
    arrow(axes, (94, 164), (94, 199))
    arrow(axes, (176, 228), (193, 228))
    arrow(axes, (404, 132), (455, 132))
    arrow(axes, (312, 164), (312, 228), (455, 228))
    arrow(axes, (220, 35), (206, 35), (206, 324), (455, 324))
    write(axes, 427, 119, ("text", "score"))
    write(axes, 383, 215, ("text", "score, or a rule"))
    write(axes, 330, 311, ("text", "pairs (A, B) directly"))
    write(axes, 220, 253, ("head", "all four start from"), ha="left")
    write(axes, 220, 270, ("head", "the SFT policy"), ha="left")


def four_models(batch: Rollout | None = None) -> Figure:
    """The four models of PPO: what each reads, what it gives, and which two are trained.

    Args:
        batch: with the columns scores (B,), what the reward model gave; ref_logprobs (B, R), of
            the reference; values (B, R), of the critic. None: shapes as letters, no numbers.

    Raises:
        ValueError: a column is missing, has another shape, or has a number that is not finite.
    """
    facts = Facts(batch)
    with look.page():
        figure, axes = sheet(452)
        _read(axes, facts)
        for index, card in enumerate(FOUR):
            _card(axes, 22 + 199 * index, card, facts)
        _made_of_them(axes, facts)
        legend(
            axes,
            22,
            436,
            [
                ("trained", "trained in every step"),
                ("frozen", "frozen: never changes"),
                ("data", "numbers of the batch"),
            ],
        )
    return figure


def _read(axes: Axes, facts: Facts) -> None:
    """The batch at the top: the actor reads the prompt and writes the response."""
    write(axes, 22, 14, ("head", f"one batch: sequences {facts.shape('BT')}"), ha="left")
    block(axes, (22, 26, 118, 42), "data", [("head", "prompt"), ("code", facts.shape("BP"))])
    block(axes, (140, 26, 658, 42), "data", [("head", "response"), ("code", facts.shape("BR"))])
    arrow(axes, (50, 68), (50, 103))
    write(axes, 59, 86, ("text", "reads"), ha="left")
    arrow(axes, (154, 104), (154, 69))
    write(axes, 163, 86, ("text", "writes"), ha="left")
    for x in (310, 509, 708):
        arrow(axes, (x, 68), (x, 103))
        write(axes, x + 9, 86, ("text", "reads both"), ha="left")


def _card(axes: Axes, x: float, card: tuple[str, ...], facts: Facts) -> None:
    name, kind, first, second, column = card
    shape, each = ("B", "response") if column == "scores" else ("BR", "token")
    unit = " nats" if column.endswith("logprobs") else ""
    mean = facts.mean(column)
    lines = [
        ("title", name),
        ("head", kind),
        ("text", first),
        ("text", second),
        ("gap", ""),
        ("text", f"gives one per {each}:"),
        ("code", column),
        ("code", facts.shape(shape)),
        *([("text", f"mean {mean}{unit}")] if mean else []),
    ]
    block(axes, (x, 104, 179, 162), kind, lines)


def _made_of_them(axes: Axes, facts: Facts) -> None:
    """Below the models: rewards and advantages, and what they train."""
    for x, word in ((111, "KL penalty"), (310, "KL penalty"), (509, "score"), (708, "values")):
        arrow(axes, (x, 266), (x, 301))
        write(axes, x + 9, 283, ("text", word), ha="left")
    rewards = [
        ("head", f"rewards {facts.shape('BR')}"),
        ("text", "every token: minus the KL penalty.  Last token: plus the score."),
    ]
    block(axes, (22, 302, 571, 58), "data", rewards)
    gae = [("head", "advantages, returns"), ("code", facts.shape("BR")), ("text", "by GAE")]
    block(axes, (619, 302, 179, 58), "data", gae)
    arrow(axes, (593, 331), (618, 331))
    for start, side, end in ((640, 8, 21), (776, 812, 799)):
        points = [(start, 360), (start, 382), (side, 382), (side, 185), (end, 185)]
        arrow(axes, *points, colour=BLUE)
    write(axes, 22, 397, ("text", "advantages train the actor"), ha="left", colour=BLUE)
    write(axes, 798, 397, ("text", "returns train the critic"), ha="right", colour=BLUE)
