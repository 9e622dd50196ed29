"""Numbers of a training run that several commands share: one name and one help for one thing."""

from typing import Annotated, Any

from minirlhf.cli.limits import LARGEST_RATE, above_0, not_negative, whole
from minirlhf.cli.options import LOSS, OPTIMISER, RUN, SAMPLING, option
from minirlhf.runtime import check

TRAINING = {  # parameter -> its panel, its help, the check of its limits
    "steps": (OPTIMISER, "Training steps, 1 or more.", whole(1, 1_000_000)),
    "batch_size": (OPTIMISER, "Responses sampled in a step, 1 or more.", whole(1, 100_000)),
    "minibatch_size": (
        OPTIMISER,
        "Responses in one update of the weights, a divisor of --batch-size. With another "
        "--batch-size the number of updates stays.",
        whole(1),
    ),
    "epochs": (OPTIMISER, "Epochs over the responses of a step, 1 or more.", whole(1, 1000)),
    "lr": (OPTIMISER, "Peak learning rate, above 0.", above_0(LARGEST_RATE)),
    "kl_coef": (
        LOSS,
        "KL coefficient: reward units per nat, 0 or more. Larger keeps the policy nearer to "
        "--model.",
        not_negative,
    ),
    "missing_eos_penalty": (
        LOSS,
        "Reward units taken off the score of a response that is cut at --max-new-tokens, 0 or "
        "more.",
        not_negative,
    ),
    "overlong_buffer": (
        LOSS,
        "Length penalty on the last tokens before --max-new-tokens: on how many. 0: none.",
        whole(0),
    ),
    "group_size": (SAMPLING, "Responses to each prompt, 1 or more.", whole(1, 10_000)),
    "temperature": (
        SAMPLING,
        "Sampling temperature, above 0. 1: the model's own distribution.",
        above_0(1e30),
    ),
    "max_new_tokens": (SAMPLING, "Longest sampled response in tokens, EOS included.", whole(1)),
}


def shared(name: str, *names: str, **given: Any) -> Any:
    """The option of a row of TRAINING. `given` replaces parts of it: help or callback."""
    panel, help, check_limits = TRAINING[name]
    return option(panel, given.pop("help", help), *names, **{"callback": check_limits} | given)


Steps = Annotated[int, shared("steps")]
Rate = Annotated[float, shared("lr")]
PairBatch = Annotated[int, shared("batch_size", help="Pairs in a step, 1 or more.")]
KLCoef = Annotated[float, shared("kl_coef")]
MissingEOSPenalty = Annotated[float, shared("missing_eos_penalty")]
Temperature = Annotated[float, shared("temperature")]
MaxNewTokens = Annotated[int, shared("max_new_tokens")]
AtOnce = Annotated[
    int,
    option(
        SAMPLING,
        "Responses in memory at once. 0: all. Another number gives other samples.",
        callback=whole(0),
    ),
]
SaveEvery = Annotated[
    float,
    option(RUN, "Seconds between two saves of the run, for --resume.", callback=above_0(1e9)),
]
SECONDS = 60.0  # of SaveEvery


def minibatch(batch: int, given: int | None, *, updates: int) -> int:
    """The size of a minibatch: as given, else that of so many updates in an epoch.

    A batch that cannot be divided so is one minibatch.
    """
    return given or (batch // updates if batch % updates == 0 else batch)


def prompts_in(batch: int, group_size: int) -> int:
    """The number of prompts of a step.

    Raises:
        ValueError: the batch does not consist of whole groups.
    """
    whole_groups = batch % group_size == 0
    check("batch_size", batch, whole_groups, f"a multiple of group_size = {group_size}")
    return batch // group_size
