"""What a policy can practise: film reviews for a reward model, arithmetic for a rule. Shared by the command line and the recorded grids.

A task is a policy to begin with, prompts, a score, and a way to judge the result on prompts that no training saw.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch

from minirlhf import evaluate
from minirlhf.core.rollout import Rollout
from minirlhf.loops.config import KLConfig, OptimiserConfig
from minirlhf.loops.group import GroupConfig
from minirlhf.loops.pretrain import new_gpt2
from minirlhf.loops.sft import SFTConfig, train_sft
from minirlhf.models.adapters import fused_gelu
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
LEVELS = (2, 3, 4)  # two and three operations: with one there are no steps to write
DEMONSTRATIONS, STEPS, MORE_STEPS = 30_000, 2800, 100  # of tiny-steps


@dataclass(frozen=True)
class Task:
    """model: the policy it begins with. settings: of a GroupConfig, where the loop's defaults do not fit."""

    model: str
    settings: dict
    prompts: Callable[[], list[str]]


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


@cache
def practice_problems() -> list[str]:
    """10,000 prompts of the practice split."""
    return [
        problem.prompt for problem in arithmetic.problems("train", 10_000, seed=1, levels=LEVELS)
    ]


def train_tiny_steps(seed: int = 0, steps: int = STEPS, *, history: History | None = None, **on):
    """tiny-steps from nothing: a GPT-2 of 0.6 M parameters on 30,000 problems, first three in four worked in steps, at last one in four.

    All demonstrations are correct. In steps the model can do what it cannot do in its head; but imitation does not say that one way of
    answering is safer than the other, and it ends by answering mostly at once. Whoever trains on rewards may find out.

    Returns:
        (model, tokenizer, history). `on` goes to `train_sft`; a resumed run repeats the second part, which takes half a minute.
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


def group_config(task: str, name: str, **given) -> GroupConfig:
    """A row of the family with a task's settings; where it does not compare samples of a prompt, as many prompts as others have samples."""
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
    task: str, tokenizer, scorer: str = "tiny-reviews-reward"
) -> tuple[Callable[[Rollout], torch.Tensor], dict[str, Callable]]:
    """(score, monitors) of a task."""
    if task == "arithmetic":
        return reward_function(right_answer, tokenizer), {}
    model, its_tokenizer = load_scalar(scorer)
    check(
        "scorer",
        scorer,
        tokenizer.get_vocab() == its_tokenizer.get_vocab(),
        "trained with the policy's own tokenizer",
    )
    return rollout_score(model.requires_grad_(False), tokenizer.eos_token_id), {
        "gold": rollout_judge(gold_judge(), tokenizer)
    }


def judged(
    task: str, policy, tokenizer, *, reference, seed: int, scorer: str = "tiny-reviews-reward"
) -> dict:
    """The numbers of a policy on held-out prompts: gold and what must stand beside it, or pass@k on problems nobody practised.

    scorer "": no proxy. A reward model reads the texts of its own tokenizer's policies only.
    """
    if task == "arithmetic":
        asked = arithmetic.problems("test", ASKED, levels=LEVELS)
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
