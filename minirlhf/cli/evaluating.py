"""What `evaluate` and `best-of-n` compute: scores of responses, and the accuracy on pairs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from datasets import Dataset

from minirlhf.classroom.own_file import reward_of
from minirlhf.cli.readers import Reader, same_tokens
from minirlhf.cli.terminal import say
from minirlhf.core.rollout import Score
from minirlhf.evaluate import pair_accuracy, scored_pairs, scored_responses, text_score
from minirlhf.models.forward import position_limit, prompt_tokens
from minirlhf.models.heads import ScalarModel
from minirlhf.models.load import same_weights
from minirlhf.models.sampling import SamplingConfig
from minirlhf.rewards.function import reward_function
from minirlhf.rewards.model import text_judge
from minirlhf.runtime import check


def pair_table(
    readers: list[Reader], pairs: Dataset, max_response: int | None, at_once: int, seed: int
) -> pd.DataFrame:
    """The accuracy of a reward model, or of a policy and its reference, on pairs."""
    models = [reader.model for reader in readers]
    parts = ["reward_model"] if len(models) == 1 else ["policy", "reference"]
    given: dict[str, Any] = dict(zip(parts, models, strict=True))
    scored = scored_pairs(
        pairs, readers[0].tokenizer, max_response=max_response, batch_size=at_once, **given
    )
    return pair_accuracy(scored, bootstrap_seed=seed)


def responses_of(
    policies: list[Reader],
    read: dict[str, Dataset],
    by: Any,
    config: SamplingConfig,
    count: int,
    micro_batch: int,
    seed: int,
) -> list[pd.DataFrame]:
    """The scored responses of each policy; the first one's with its KL from the second.

    Args:
        read, by: the prompts and what scores, as `scores_for` takes them.
        count: responses to each prompt.
    """
    at_once = micro_batch or len(read[policies[0].name]) * count
    scores = scores_for(policies, read, by, batch_size=at_once)
    drawn: list[pd.DataFrame] = []
    compared = len(policies) == 2 and same_tokens(*policies)
    for policy, score in zip(policies, scores, strict=True):
        rows = read[policy.name]
        say_sampling(policy, rows, count)
        drawn.append(
            scored_responses(
                policy.backbone,
                policy.tokenizer,
                rows["prompt"][:],
                score,
                samples_per_prompt=count,
                reference=policies[1].backbone if compared and not drawn else None,
                config=config,
                seed=seed,
                batch_size=at_once,
            )
        )
    return drawn


def second_judge(given: str, by: Callable | Reader, reward: Path | None) -> Callable | Reader:
    """The second judge of best-of-n: the function of a Python file, or a reward model.

    Args:
        given: what --judge is.
        by: what chooses. reward: the file that it is from, if it is a function.

    Raises:
        ValueError: there is no such file or reward model, or it is the same as what chooses.
    """
    judge: Callable | Reader
    if given.endswith(".py"):
        judge = reward_of(Path(given), "--judge")
        same = reward is not None and Path(given).read_bytes() == reward.read_bytes()
    else:
        try:
            judge = Reader.scorer(given, "second judge")
        except ValueError as error:
            error.add_note("--judge is a reward model, or a Python file whose name ends in .py.")
            raise
        same = isinstance(by, Reader) and same_weights(judge.model, by.model)
    other = "another than what chooses, whose own score grows with n in any case"
    check("--judge", given, not same, other)
    return judge


def say_sampling(policy: Reader, rows: Dataset, count: int) -> None:
    """Say how many responses are about to be sampled."""
    say(f"Sampling {count} responses to each of {len(rows):,} rows from the {policy.name} ...")


def scores_for(
    policies: list[Reader],
    read: dict[str, Dataset],
    by: Callable | Reader,
    *,
    batch_size: int,
) -> list[Score]:
    """The score of each policy's responses.

    Args:
        read: the rows of the policies and of a reward model, as `prompts_for` returns them.
        by: a reward function, or the reward model.
        batch_size: responses that the reward model reads at once.

    Raises:
        ValueError: the function needs an argument that the dataset does not have.
    """
    if not isinstance(by, Reader):
        return [reward_function(by, policy.tokenizer, read[policy.name]) for policy in policies]
    assert isinstance(by.model, ScalarModel)
    prompts, limit = read[by.name]["prompt"][:], position_limit(by.backbone)
    room = limit and limit - max(map(len, prompt_tokens(by.tokenizer, prompts)))
    if room and not all(same_tokens(by, policy) for policy in policies):
        say(f"The {by.name} has another tokenizer. It reads at most {room} tokens of a response.")
    judge = text_judge([by.model], by.tokenizer, batch_size=batch_size, max_response=room)
    return [text_score(judge, policy.tokenizer, prompts) for policy in policies]
