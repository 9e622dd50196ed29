"""The command best-of-n: what choosing among more samples gains, by two judges."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from minirlhf.classroom.own_file import reward_of
from minirlhf.cli.best_of_n_tables import print_best_of_n, print_kept
from minirlhf.cli.data_options import (
    Chat,
    Columns,
    MaxPrompt,
    Reward,
    ScorerOrReward,
    SkipInvalid,
    of_dataset,
    prompts_option,
    sampled_response,
)
from minirlhf.cli.evaluating import say_sampling, scores_for, second_judge
from minirlhf.cli.evaluation_tables import write_tables
from minirlhf.cli.limits import count_rows, only_with, whole
from minirlhf.cli.options import (
    DATA,
    SAMPLING,
    SCORER,
    Device,
    Model,
    Seed,
    model_option,
    option,
    out_table,
)
from minirlhf.cli.readers import Reader, prompts_for
from minirlhf.cli.terminal import naming_rows
from minirlhf.cli.training_options import AtOnce, Temperature, shared
from minirlhf.evaluate import best_of_n_kept, best_of_n_table, scored_responses, text_score
from minirlhf.models.sampling import SamplingConfig
from minirlhf.rewards.gold import gold_judge
from minirlhf.runtime import check
from minirlhf.tasks.layouts import parse_columns
from minirlhf.tasks.reviews import eval_prompts

app = typer.Typer()
FILMS, TIMES, AT_ONCE = 40, 2, 128  # prompts; samples for each of n; responses in memory
DEFAULT = SamplingConfig()
WRITTEN = {"prompt": "prompt", "response": "completion", "score": "score"}  # columns of --out


@app.command("best-of-n")
def best_of_n(
    model: Model = "tiny-reviews-sft",
    scorer: ScorerOrReward = None,
    reward: Reward = None,
    judge: Annotated[
        str | None,
        model_option(
            "Second judge, which does not choose: the folder of a reward model, or a Python file "
            "as for --reward.",
            show_default="gold for film reviews",
        ),
    ] = None,
    dataset: Annotated[str, prompts_option("titles of films that no training uses")] = "",
    rows: Annotated[
        int | None,
        option(
            DATA,
            "Prompts to read: the first ones.",
            "--rows",
            "--prompts",
            show_default=f"{FILMS} films; all of --dataset",
            callback=count_rows,
        ),
    ] = None,
    columns: Columns = "",
    skip_invalid: SkipInvalid = False,
    chat: Chat = False,
    max_prompt: MaxPrompt = None,
    max_response: Annotated[int, sampled_response()] = DEFAULT.max_new_tokens,
    n: Annotated[
        int,
        option(
            SAMPLING,
            "The most samples that one response is chosen from, 2 or more.",
            callback=whole(2, 10_000),
        ),
    ] = 64,
    samples: Annotated[
        int | None,
        shared(
            "group_size",
            "--samples",
            help="Responses to each prompt, at least n. More make the means less noisy.",
            show_default=f"{TIMES} n",
        ),
    ] = None,
    temperature: Temperature = DEFAULT.temperature,
    micro_batch: AtOnce = AT_ONCE,
    out: Annotated[
        Path | None,
        out_table(
            "Also write the best of the first n responses to each prompt to this file, for "
            "sft --dataset."
        ),
    ] = None,
    table: Annotated[Path | None, out_table("Also write the table to this file.")] = None,
    seed: Seed = 0,
    device: Device = "cpu",
) -> None:
    """Print what the best of n samples gains, by two judges.

    The model samples responses to each prompt, and the one with the highest score is kept. The
    table shows the mean score of what is kept for n = 1, 2, 4 and so on, and beside it the mean of
    a second judge, which does not choose. Without --dataset, the prompts are film titles.

    Example: minirlhf best-of-n --n 64
    """
    count = samples or TIMES * n
    check("--samples", samples, count >= n, f"at least {n}, as --n says")
    only_with("--scorer", scorer, reward is None, "a reward model, and --reward is a function")
    check("--table", str(table), not table or table != out, "another than --out")
    of_dataset(
        dataset, columns=columns, skip_invalid=skip_invalid, chat=chat, max_prompt=max_prompt
    )
    if dataset and scorer is None and reward is None:
        raise ValueError(
            "Give --scorer or --reward: what scores the responses to the prompts of --dataset. "
            f"The default, {SCORER}, is for film reviews alone."
        )
    by: Any = reward_of(reward) if reward else Reader.scorer(scorer or SCORER)
    second = second_judge(judge, by, reward) if judge else None
    policy = Reader.policy(model)
    readers = [policy, *(each for each in (by, second) if isinstance(each, Reader))]
    config = replace(DEFAULT, max_new_tokens=max_response, temperature=temperature)
    read, rows_read = prompts_for(
        readers,
        dataset,
        max_new_tokens=max_response,
        max_prompt=max_prompt,
        skip_invalid=skip_invalid,
        films=() if dataset else eval_prompts("test")[: rows or FILMS],
        rows=rows,
        columns=parse_columns(columns),
        chat=chat,
    )
    asked = read[policy.name]["prompt"][:]
    at_once = micro_batch or len(asked) * count
    (score,) = scores_for([policy], read, by, batch_size=at_once)
    judged = None
    if second is not None:
        (judged,) = scores_for([policy], read, second, batch_size=at_once)
    elif not dataset:
        judged, judge = text_score(gold_judge(), policy.tokenizer, asked), "gold"
    say_sampling(policy, read[policy.name], count)
    with naming_rows(rows_read if dataset else ()):
        drawn = scored_responses(
            policy.backbone,
            policy.tokenizer,
            asked,
            score,
            samples_per_prompt=count,
            judge=judged,
            config=config,
            seed=seed,
            batch_size=at_once,
        )
    found, kept = best_of_n_table(drawn, n, bootstrap_seed=seed), best_of_n_kept(drawn, n)
    try:  # a file that cannot be written must not hide the table
        print_best_of_n(found, by=f"{reward or scorer or SCORER}", judge=judge)
        print_kept(best_of_n_kept(drawn, 1), kept, n, max_response)
    finally:
        write_tables({out: kept.rename(columns=WRITTEN)[[*WRITTEN.values()]], table: found})
