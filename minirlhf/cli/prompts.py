"""What the commands that sample responses train on: prompts and a score."""

from pathlib import Path
from typing import NamedTuple

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from minirlhf.classroom.own_file import reward_of
from minirlhf.cli.checked import checked_rows, print_lengths
from minirlhf.cli.data_options import of_dataset
from minirlhf.cli.limits import only_with
from minirlhf.cli.options import SCORER
from minirlhf.cli.terminal import say
from minirlhf.core.rollout import Score
from minirlhf.experiments.practice import scored_by, scoring
from minirlhf.loops.rows import AnyModel, also_reading
from minirlhf.rewards.function import reward_function
from minirlhf.tasks import reviews
from minirlhf.tasks.hub import named_prompts
from minirlhf.tasks.layouts import parse_columns


class Sampled(NamedTuple):
    """What responses are sampled to, and what scores them."""

    prompts: list[str]
    score: Score
    monitors: dict[str, Score]
    names: list[str]  # of the prompts' rows in their file; empty where they are of no file


def prompts_and_score(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    scorer: str | None,
    max_new_tokens: int,
    reward: Path | None = None,
    dataset: str = "",
    rows: int | None = None,
    columns: str = "",
    skip_invalid: bool = False,
    chat: bool = False,
    max_prompt: int | None = None,
    critic: AnyModel | None = None,
    check_only: bool = False,
) -> Sampled:
    """The prompts and the score of a command, by its options.

    Args:
        policy: the model that will be trained.
        scorer: the reward model; None: SCORER. It is not asked where there is a `reward`.
        max_new_tokens: of the responses.
        critic: it reads the prompts too, where there is one.
        check_only: print the lengths of the prompts.

    Returns:
        The prompts, their names and the score. The gold score is a monitor where the task is film
        reviews.

    Raises:
        ValueError: an option needs --dataset, the dataset cannot be used, or the reward's file or
            the reward model cannot. Or both a scorer and a reward are given.
    """
    of_dataset(
        dataset,
        rows=rows,
        columns=columns,
        skip_invalid=skip_invalid,
        chat=chat,
        max_prompt=max_prompt,
    )
    only_with("--scorer", scorer, reward is None, "a reward model, and --reward is a function")
    own = None if reward is None else reward_of(reward)
    data = None
    score = None
    if dataset:
        data = named_prompts(
            dataset,
            tokenizer,
            rows=rows,
            columns=parse_columns(columns),
            skip_invalid=skip_invalid,
            chat=chat,
            say=say,
        )
        score = None if own is not None else scored_by(scorer or SCORER, policy, tokenizer)
        data, report = checked_rows(
            data,
            tokenizer,
            policy,
            max_new_tokens=max_new_tokens,
            max_prompt=max_prompt,
            responses=(),  # what the dataset answers is for the reward
            skip_invalid=skip_invalid,
            check_only=check_only,
            others=also_reading(score, critic=critic),
        )
    prompts = reviews.rl_prompts() if data is None else list(data["prompt"])
    if check_only and data is None:
        as_rows = Dataset.from_dict({"prompt": prompts})
        print_lengths(as_rows, tokenizer, policy, max_new_tokens=max_new_tokens)
    names = [] if data is None else report.names
    if own is not None:
        return Sampled(prompts, reward_function(own, tokenizer, data), {}, names)
    if score is not None:
        return Sampled(prompts, score, {}, names)
    return Sampled(prompts, *scoring("reviews", policy, tokenizer, scorer or SCORER), names)
