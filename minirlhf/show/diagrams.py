"""Diagrams of RLHF with the shapes and numbers of a real batch: the pipeline, the four models.

A batch is a Rollout with further columns. Every diagram of a batch takes it in the same way:

    batch = batch.with_columns(scores=scores, ref_logprobs=ref_logprobs, values=values)
    show.four_models(batch)

Without a batch the shapes are letters: B responses, P prompt positions, R response positions and
T = P + R. A mean is taken over the tokens that the policy chose (`batch.action_mask`).
"""

import re
import textwrap
from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from minirlhf.core.rollout import Rollout
from minirlhf.runtime import check
from minirlhf.show import look
from minirlhf.show.diagrams_parts import BLUE, Facts, Line, arrow, block, legend, sheet, write

STAGES = ("SFT", "reward model", "PPO", "GRPO", "DPO")
ROADS = {  # from the SFT policy to a better one: y of the box, title, what it does
    "PPO": (42, "3  PPO", "samples responses; a critic", "predicts their score"),
    "GRPO": (214, "GRPO", "samples groups, no critic:", "compares within the group"),
    "DPO": (312, "DPO", "needs no reward model:", "learns from the pairs"),
}
NOTES = {  # under the pipeline: word of a result, what it means
    "gold score": "the rating that people would give, "
    "predicted by a model that training never sees.",
    "KL": "distance from the SFT policy, in nats per response.",
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
            The names of the stages are SFT, reward model, PPO, GRPO and DPO. Where a result has
            the words "gold score" or "KL", a line under the picture says what they mean.

    Raises:
        ValueError: a name that is none of the stages.
    """
    results = {stage: str(result) for stage, result in (results or {}).items()}
    for name in results:
        if name not in STAGES:
            raise ValueError(f"There is no stage {name!r}; the stages are {look.quoted(STAGES)}.")
    found = {stage: _two_lines(results.get(stage, "")) for stage in STAGES}
    notes = {
        word: meaning
        for word, meaning in NOTES.items()
        if any(re.search(rf"\b{word}\b", result) for result in results.values())
    }
    with look.page():
        figure, axes = sheet(402 + 19 * len(notes) + 6 * bool(notes))
        block(axes, (194, 24, 482, 368), "area")
        start = ("The reward model, PPO,", "GRPO and DPO start", "from the SFT policy.")
        for index, text in enumerate(start):
            write(axes, 210, 54 + 17 * index, ("head", text), ha="left")
        _data(axes)
        sft = [
            ("title", "1  SFT"),
            ("text", "supervised fine-tuning:"),
            ("text", "learns to imitate"),
        ]
        block(axes, (12, 78, 164, 64), "trained", sft)
        reward = [("title", "2  Reward model"), ("text", "learns to score responses")]
        block(axes, (210, 158, 184, 64), "trained", [*reward, *found["reward model"][:1]])
        block(axes, (12, 162, 164, 56), "result", [("head", "SFT policy"), *found["SFT"]])
        for stage, (y, title, *texts) in ROADS.items():
            lines = [("title", title), *(("text", text) for text in texts)]
            block(axes, (456, y, 206, 64), "trained", lines)
            policy = [("head", f"{stage} policy"), *found[stage]]
            block(axes, (692, y + 4, 118, 56), "result", policy)
            arrow(axes, (662, y + 32), (691, y + 32))
        _roads(axes)
        for index, entry in enumerate(
            [
                ("data", "data, or a rule"),
                ("trained", "training"),
                ("result", "policy that comes out"),
            ]
        ):
            legend(axes, 12, 338 + 22 * index, [entry])
        for index, (word, meaning) in enumerate(notes.items()):
            write(axes, 12, 410 + 19 * index, ("text", f"{word}: {meaning}"), ha="left")
    return figure


def _two_lines(result: str) -> list[Line]:
    """A result as at most two lines of text."""
    lines = textwrap.wrap(result, 16)
    return [("text", line) for line in [*lines[:1], *([" ".join(lines[1:])] if lines[1:] else [])]]


def _data(axes: Axes) -> None:
    """What people give: demonstrations, prompts, judgements, and a rule that can score."""
    for box, name, text in (
        ((12, 10, 164, 46), "demonstrations", "good responses"),
        ((456, 140, 206, 46), "prompts", "no responses needed"),
        ((236, 240, 158, 46), "or a rule, e.g.", "is the number right?"),
        ((210, 321, 184, 46), "human judgements", "a person prefers A to B"),
    ):
        block(axes, box, "data", [("head", name), ("text", text)])


def _roads(axes: Axes) -> None:
    """The arrows of the pipeline from one stage to another, with their words."""
    arrow(axes, (94, 56), (94, 77))  # demonstrations, SFT, its policy, and where that goes
    arrow(axes, (94, 142), (94, 161))
    arrow(axes, (176, 190), (193, 190))
    arrow(axes, (559, 140), (559, 107))  # prompts to PPO and to GRPO
    arrow(axes, (559, 186), (559, 213))
    arrow(axes, (394, 190), (428, 190), (428, 74), (455, 74))  # score to PPO and to GRPO
    arrow(axes, (428, 189), (428, 231), (455, 231))
    write(axes, 420, 134, ("text", "score"), ha="right")
    arrow(axes, (394, 263), (455, 263))  # the rule to GRPO
    arrow(axes, (222, 321), (222, 223))  # ratings to the reward model and to DPO
    arrow(axes, (394, 344), (455, 344))
    write(axes, 422, 331, ("text", "pairs"))


def four_models(batch: Rollout | None = None, *, kl_coef: float | None = None) -> Figure:
    """The four models of PPO: what each reads, what it gives, and which two are trained.

    Args:
        batch: with the columns scores (B,), what the reward model gave; ref_logprobs (B, R), of
            the reference; values (B, R), of the critic. None: shapes as letters, no numbers.
        kl_coef: KL coefficient, reward units per nat, drawn in the rewards. None: the words.

    Raises:
        ValueError: a column is missing, has another shape, or has a number that is not finite;
            kl_coef is negative or not finite.
    """
    facts = Facts(batch)
    if kl_coef is not None:
        check("kl_coef", kl_coef, 0 <= kl_coef < float("inf"), "0 or more, and finite")
    with look.page():
        figure, axes = sheet(462)
        _read(axes, facts)
        for index, card in enumerate(FOUR):
            _card(axes, 22 + 199 * index, card, facts)
        _made_of_them(axes, facts, kl_coef)
        legend(
            axes,
            22,
            446,
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
    axis = f"{facts.size('B')} responses of at most {facts.size('R')} tokens"
    write(axes, 798, 14, ("text", f"{facts.shape('BR')} is {axis}"), ha="right")
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
        ("text", f"a number per {each}:"),
        ("code", column),
        ("code", facts.shape(shape)),
        *([("text", f"mean {mean}{unit}")] if mean else []),
    ]
    block(axes, (x, 104, 179, 162), kind, lines)


def _made_of_them(axes: Axes, facts: Facts, kl_coef: float | None) -> None:
    """Below the models: rewards and advantages, and what they train."""
    for index, (*_, column) in enumerate(FOUR):
        x = 111 + 199 * index
        arrow(axes, (x, 266), (x, 301))
        write(axes, x + 9, 283, ("code", column), ha="left")
    factor = "KL coefficient" if kl_coef is None else f"{kl_coef:.4g}"
    rewards = [
        ("head", f"rewards {facts.shape('BR')}"),
        (
            "text",
            f"each token: minus the KL penalty, {factor} \u00d7 (old_logprobs - ref_logprobs)",
        ),
        ("text", "last token: also plus the score"),
    ]
    block(axes, (22, 302, 571, 72), "data", rewards)
    gae = [
        ("head", "advantages A, and"),
        ("head", "critic's targets A + V"),
        ("code", facts.shape("BR")),
        ("text", "estimated by GAE"),
    ]
    block(axes, (619, 302, 179, 72), "data", gae)
    arrow(axes, (593, 338), (618, 338))
    for start, side, end in ((640, 8, 21), (776, 812, 799)):
        points = [(start, 374), (start, 394), (side, 394), (side, 185), (end, 185)]
        arrow(axes, *points, colour=BLUE)
    write(axes, 22, 409, ("text", "advantages train the actor"), ha="left", colour=BLUE)
    write(axes, 798, 409, ("text", "these targets train the critic"), ha="right", colour=BLUE)
