"""The tasks of the command line's --task and of the experiments.

On `reviews` a reward model scores film reviews. On `arithmetic` a rule checks the answer. A task
has a policy to begin with, prompts, a score, and an evaluation on held-out prompts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from minirlhf import evaluate
from minirlhf.core.rollout import Score
from minirlhf.loops.config import KLConfig, OptimiserConfig
from minirlhf.loops.group import GroupConfig
from minirlhf.loops.pretrain import new_gpt2
from minirlhf.loops.sft import SFTConfig, train_sft
from minirlhf.models.adapters import LanguageModel, Policy, fused_gelu
from minirlhf.models.fit import end_ids, same_vocabulary
from minirlhf.models.load import load_scalar
from minirlhf.models.sampling import SamplingConfig
from minirlhf.rewards.function import reward_function
from minirlhf.rewards.gold import gold_judge
from minirlhf.rewards.model import rollout_judge, rollout_score, text_judge
from minirlhf.rewards.rules import right_answer
from minirlhf.runtime import History, check, seed_all
from minirlhf.tasks import arithmetic, reviews

ASKED = 400  # held-out problems
TRIES = 16  # samples of each
LEVELS = (2, 3, 4)  # problems of two and three operations, which can be solved in steps
DEMONSTRATIONS, STEPS, MORE_STEPS = 30_000, 2800, 100  # of tiny-steps


@dataclass(frozen=True)
class Task:
    """One task.

    model: name of the policy that training starts from. settings: fields of GroupConfig that
    differ from its defaults. prompts: returns the training prompts.
    """

    model: str
    settings: dict
    prompts: Callable[[], list[str]]


@cache
def practice_problems() -> list[str]:
    """10,000 prompts of the training split."""
    return [p.prompt for p in arithmetic.problems("train", 10_000, seed=1, levels=LEVELS)]


TASKS = {
    "reviews": Task("tiny-reviews-sft", {}, reviews.rl_prompts),
    "arithmetic": Task(
        "tiny-steps",
        dict(
            steps=400,
            prompts_per_step=16,
            group_size=8,
            minibatch_size=128,
            epochs=1,
            missing_eos_penalty=0.0,
            kl=KLConfig(kl_coef=0.0),
            optimiser=OptimiserConfig(lr=1e-4),
            sampling=SamplingConfig(max_new_tokens=24, temperature=1.0),
        ),
        lambda: practice_problems(),
    ),
}


def train_tiny_steps(
    seed: int = 0, steps: int = STEPS, *, history: History | None = None, **on: Any
) -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast, History]:
    """Train tiny-steps: a new GPT-2 of 0.6 M parameters, by SFT on 30,000 solved problems.

    First three in four demonstrations are solved in steps, in the second part one in four. All of
    them are correct. The model is much better in steps, but imitation does not teach it to prefer
    them, so it ends by answering mostly at once. Training on rewards can discover the steps.

    Args:
        steps: of the first part. on: arguments of `train_sft`; only the first part has a
            checkpoint, so a resumed run repeats the second, which takes half a minute.

    Returns:
        (model, tokenizer, history).
    """
    tokenizer, history = arithmetic.step_tokenizer(), History() if history is None else history
    worked = arithmetic.problems("train", DEMONSTRATIONS, levels=LEVELS)
    seed_all(seed)
    model = fused_gelu(new_gpt2(tokenizer, layers=3, width=128, positions=64))
    for at_once, count, lr in ((0.25, steps, 2e-3), (0.75, MORE_STEPS, 2e-4)):
        data = arithmetic.rows(worked, at_once=at_once)
        config = SFTConfig(
            batch_size=64,
            epochs=64 * count / len(data),
            optimiser=OptimiserConfig(lr=lr),
            seed=seed,
        )
        model, history = train_sft(model, tokenizer, data, config, history=history, **on)
        on.pop("checkpoint", None)
    return model, tokenizer, history


def group_config(task: str, name: str, **given: Any) -> GroupConfig:
    """The config of a group algorithm, with the settings that fit the task.

    An algorithm that does not compare samples of one prompt gets more prompts instead, so that
    every algorithm samples the same number of responses per step.
    """
    check("task", task, task in TASKS, f"one of {', '.join(TASKS)}")
    settings = dict(TASKS[task].settings)
    plain = GroupConfig.named(name)
    if "group_size" in settings and plain.group_size == 1:
        settings |= {
            "prompts_per_step": settings["prompts_per_step"] * settings["group_size"],
            "group_size": 1,
        }
    if plain.algorithm.ratio == "none":
        settings.pop("minibatch_size", None)
    return GroupConfig.named(name, **settings | given)


def scoring(
    task: str,
    policy: Policy,
    tokenizer: PreTrainedTokenizerBase,
    scorer: str = "tiny-reviews-reward",
) -> tuple[Score, dict[str, Score]]:
    """(score, monitors) of a task. The score trains the policy; monitors are only logged.

    Raises:
        ValueError: the reward model `scorer` has another tokenizer than the policy.
    """
    if task == "arithmetic":
        return reward_function(right_answer, tokenizer), {}
    return scored_by(scorer, policy, tokenizer), {"gold": rollout_judge(gold_judge(), tokenizer)}


def scored_by(scorer: str, policy: Policy, tokenizer: PreTrainedTokenizerBase) -> Score:
    """The score of a reward model, by its name, for the responses of a policy.

    Raises:
        ValueError: it has another tokenizer than the policy.
    """
    model, its_tokenizer = load_scalar(scorer)
    same = same_vocabulary(tokenizer, its_tokenizer)
    check("scorer", scorer, same, "trained with the policy's own tokenizer")
    return rollout_score(model.requires_grad_(False), end_ids(policy, tokenizer))


def judged(
    task: str,
    policy: Policy,
    tokenizer: PreTrainedTokenizerBase,
    *,
    reference: LanguageModel,
    seed: int,
    scorer: str = "tiny-reviews-reward",
    levels: tuple[int, ...] = LEVELS,
) -> dict:
    """Evaluate a policy on held-out prompts. `levels` are those of the arithmetic problems.

    Reviews: the numbers of `evaluate.summary` with the gold score and, unless `scorer` is "", the
    reward model's own score (proxy). Arithmetic: the numbers of `evaluate.pass_summary`.
    """
    if task == "arithmetic":
        asked = arithmetic.problems("test", ASKED, levels=levels)
        return evaluate.pass_summary(
            policy,
            tokenizer,
            [p.prompt for p in asked],
            right_answer,
            samples=TRIES,
            seed=1000 + seed,
            config=TASKS[task].settings["sampling"],
        )
    drawn = evaluate.draw(
        policy,
        tokenizer,
        reviews.eval_prompts("test"),
        samples_per_prompt=4,
        reference=reference,
        seed=1000 + seed,
    )
    judges = {"gold": gold_judge()} | (
        {"proxy": text_judge([load_scalar(scorer)[0]], tokenizer)} if scorer else {}
    )
    row = evaluate.summary(drawn, judges)
    return row | {"samples": evaluate.first_samples(drawn.prompts, drawn.texts, 6)}
