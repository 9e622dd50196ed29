"""Options of the preference losses, which dpo and its online forms share."""

from typing import Annotated

from minirlhf.cli.limits import above_0, whole
from minirlhf.cli.options import LOSS, option
from minirlhf.loops.preference import LOSSES
from minirlhf.runtime import check

PAIR_LOSSES = [name for name, row in LOSSES.items() if not row.single]
LossName = Annotated[str, option(LOSS, f"One of {', '.join(LOSSES)}.")]
PairLoss = Annotated[str, option(LOSS, f"One of {', '.join(PAIR_LOSSES)}.")]
Beta = Annotated[
    float | None,
    option(
        LOSS,
        "Reward units per nat, above 0. Larger keeps the policy nearer to the reference.",
        show_default="the loss's own",
        callback=above_0(1e30),
    ),
]
Setting = Annotated[
    list[str] | None,
    option(
        LOSS,
        "NAME=NUMBER, another setting of the loss, such as penalty=50 for dpop. "
        "May be repeated. alpha=none for tdpo.",
    ),
]
ReferenceFree = Annotated[
    bool,
    option(LOSS, "Use no reference: its log-probabilities count as 0.", "--reference-free"),
]
SyncEvery = Annotated[
    int,
    option(
        LOSS,
        "Update the reference from the policy after this many steps. 0: never.",
        callback=whole(0),
    ),
]
Mixup = Annotated[
    float,
    option(
        LOSS,
        "Weight of the policy in that update, above 0 and at most 1. 1: copy the policy. "
        "Only with --sync-every.",
        callback=above_0(1.0),
    ),
]


def settings(texts: list[str] | None) -> dict[str, float | None]:
    """["penalty=50", "alpha=none"] -> {"penalty": 50.0, "alpha": None}."""
    parsed = {}
    for text in texts or []:
        name, _, number = text.partition("=")
        try:
            parsed[name] = None if number == "none" else float(number)
        except ValueError:
            check("setting", text, False, "NAME=NUMBER, such as penalty=50")
        value = parsed[name]
        good = value is None or value == 0 or 1e-30 <= abs(value) <= 1e30
        check(
            "setting", text, good, "NAME=NUMBER with 0 or a number from 1e-30 to 1e30 (or below 0)"
        )
    return parsed
