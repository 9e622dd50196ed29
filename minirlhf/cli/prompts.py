"""What the commands that sample responses train on: prompts and a score."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from minirlhf.classroom.own_file import reward_of
from minirlhf.cli.checked import checked_rows, print_lengths, say_plain
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
    chat: bool  # whether the chat template wrote the prompts


class PromptRows(NamedTuple):
    """What responses are sampled to."""

    prompts: list[str]
    data: Dataset | None  # their rows, with the other columns; None where they are of no file
    names: list[str]  # of the rows in their file
    chat: bool  # whether the chat template wrote the prompts


def read_prompts(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    usual: Callable[[], list[str]],
    *,
    models: Sequence[str],
    max_new_tokens: int,
    dataset: str = "",
    rows: int | None = None,
    columns: str = "",
    skip_invalid: bool = False,
    chat: bool = False,
    max_prompt: int | None = None,
    others: Callable[[], dict[str, AnyModel]] = dict,
    check_only: bool = False,
) -> PromptRows:
    """The prompts of a command, by its options, checked as tokens.

    Args:
        usual: gives the prompts where there is no dataset.
        others: loads the models that read the prompts besides the policy, after the dataset was
            read.
        models, max_new_tokens, check_only: as in `prompts_and_score`.

    Raises:
        ValueError: an option needs --dataset, or the dataset cannot be used.
    """
    of_dataset(
        dataset,
        rows=rows,
        columns=columns,
        skip_invalid=skip_invalid,
        chat=chat,
        max_prompt=max_prompt,
    )
    if not dataset:
        prompts = usual()
        if check_only:
            as_rows = Dataset.from_dict({"prompt": prompts})
            print_lengths(as_rows, tokenizer, policy, max_new_tokens=max_new_tokens)
        say_plain(models, prompts, tokenizer, chat=False, films=True)
        return PromptRows(prompts, None, [], False)
    data = named_prompts(
        dataset,
        tokenizer,
        rows=rows,
        columns=parse_columns(columns),
        skip_invalid=skip_invalid,
        chat=chat,
        say=say,
    )
    data, report = checked_rows(
        data,
        tokenizer,
        policy,
        max_new_tokens=max_new_tokens,
        max_prompt=max_prompt,
        responses=(),  # what the dataset answers is for the reward
        skip_invalid=skip_invalid,
        models=models,
        check_only=check_only,
        others=others(),
    )
    return PromptRows(list(data["prompt"]), data, report.names, report.chat)


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
    models: Sequence[str],
    check_only: bool = False,
) -> Sampled:
    """The prompts and the score of a command, by its options.

    Args:
        policy: the model that will be trained.
        scorer: the reward model; None: SCORER. It is not asked where there is a `reward`.
        max_new_tokens: of the responses.
        critic: it reads the prompts too, where there is one.
        models: names of the policy and the critic, to compare the prompts with what these learned
            from. The scorer is compared as well.
        check_only: print the lengths of the prompts.

    Returns:
        The prompts, their names and the score. The gold score is a monitor where the task is film
        reviews.

    Raises:
        ValueError: an option needs --dataset, the dataset cannot be used, or the reward's file or
            the reward model cannot. Or both a scorer and a reward are given.
    """
    only_with("--scorer", scorer, reward is None, "a reward model, and --reward is a function")
    own = None if reward is None else reward_of(reward)
    score = None

    def readers() -> dict[str, AnyModel]:
        nonlocal score
        score = None if own is not None else scored_by(scorer or SCORER, policy, tokenizer)
        return also_reading(score, critic=critic)

    prompts, data, names, chat = read_prompts(
        policy,
        tokenizer,
        reviews.rl_prompts,
        models=[*models] if own is not None else [*models, scorer or SCORER],
        max_new_tokens=max_new_tokens,
        dataset=dataset,
        rows=rows,
        columns=columns,
        skip_invalid=skip_invalid,
        chat=chat,
        max_prompt=max_prompt,
        others=readers,
        check_only=check_only,
    )
    if own is not None:
        return Sampled(prompts, reward_function(own, tokenizer, data), {}, names, chat)
    if score is not None:
        return Sampled(prompts, score, {}, names, chat)
    score, monitors = scoring("reviews", policy, tokenizer, scorer or SCORER)
    return Sampled(prompts, score, monitors, names, chat)
