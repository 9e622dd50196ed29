"""Feedback on steps: tiny-long-steps, and Step-DPO beside DPO on whole responses."""

from dataclasses import replace
from typing import Any

from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from minirlhf import evaluate
from minirlhf.experiments.agent import imitate
from minirlhf.loops.config import OptimiserConfig
from minirlhf.loops.online import OnlineConfig, train_online
from minirlhf.loops.preference import DPOConfig
from minirlhf.loops.pretrain import PretrainConfig, new_gpt2
from minirlhf.loops.step_dpo import StepDPOConfig, train_step_dpo
from minirlhf.models.adapters import Policy, fused_gelu
from minirlhf.models.forward import decode
from minirlhf.models.load import load_policy
from minirlhf.models.sampling import SamplingConfig, sample_text
from minirlhf.rewards.function import reward_function
from minirlhf.rewards.rules import right_answer
from minirlhf.runtime import History, OnStep, Row, seed_all
from minirlhf.tasks import arithmetic
from minirlhf.tour import trainable

MODEL = "tiny-long-steps"
LEVELS = (arithmetic.LONG,)
DEMONSTRATIONS, STEPS = 60_000, 650  # of tiny-long-steps
ASKED, TRIES = 400, 16  # held-out problems, and samples of each
SAMPLING = SamplingConfig(max_new_tokens=72, temperature=1.0)
PROBE_EVERY = 20  # steps


def train_tiny_long_steps(
    seed: int = 0, steps: int = STEPS, *, history: History | None = None, **on: Any
) -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast, History]:
    """Train tiny-long-steps: a new GPT-2 of 0.6 M parameters, on 60,000 solved long problems.

    All demonstrations are written in steps, four to six of them. The training is stopped early on
    purpose, when about one step in ten is wrong.

    Args:
        on: on_step and checkpoint, as of `imitate`.

    Returns:
        (model, tokenizer, history).
    """
    tokenizer, history = arithmetic.step_tokenizer(), History() if history is None else history
    rows = arithmetic.rows(arithmetic.problems("train", DEMONSTRATIONS, levels=LEVELS))
    seed_all(seed)
    model = fused_gelu(new_gpt2(tokenizer, layers=3, width=128, positions=128))
    config = PretrainConfig(steps=steps, batch_size=64, lr=2e-3, seed=seed)
    imitate(model, tokenizer, rows, config, history=history, **on)
    return model, tokenizer, history


def judged_steps(
    policy: Policy,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    asked: int | None = None,
    samples: int | None = None,
) -> dict:
    """Evaluate a policy on held-out long problems.

    Args:
        asked: how many problems (ASKED). samples: of each (TRIES).

    Returns:
        The numbers of `evaluate.pass_summary`, and step_right: the share of right steps among those
        of single samples, each up to and including its first wrong step.
    """
    prompts = [p.prompt for p in arithmetic.problems("test", asked or ASKED, levels=LEVELS)]
    row = evaluate.pass_summary(
        policy,
        tokenizer,
        prompts,
        right_answer,
        samples=samples or TRIES,
        seed=1000 + seed,
        config=SAMPLING,
    )
    texts = sampled_texts(policy, tokenizer, prompts, seed=2000 + seed)
    checked = [
        arithmetic.checked_steps(prompt, text) for prompt, text in zip(prompts, texts, strict=True)
    ]
    wrong = sum(not row[-1] for row in checked)
    return row | {"step_right": 1 - wrong / sum(map(len, checked))}


def sampled_texts(
    policy: Policy, tokenizer: PreTrainedTokenizerBase, prompts: list[str], *, seed: int
) -> list[str]:
    """One sampled response to each prompt, as text."""
    drawn = sample_text(policy, tokenizer, prompts, config=SAMPLING, seed=seed, batch_size=512)
    return [text for batch in drawn for text in decode(tokenizer, batch)]


def long_problems() -> list[str]:
    """10,000 prompts of the training split."""
    return [p.prompt for p in arithmetic.problems("train", 10_000, seed=1, levels=LEVELS)]


# Both ways have the same learning rate and number of steps. It was chosen on the split "val".
OWN = DPOConfig(
    beta=0.1,
    steps=200,
    max_response=SAMPLING.max_new_tokens + 24,
    optimiser=OptimiserConfig(lr=1e-4),
)
# Problems of a training step. With 64, Step-DPO has about 292 steps checked. Two responses to each
# of 146 problems have as many answers checked.
PROMPTS = {"step": 64, "whole": 146}


def steps_config(settings: dict) -> Any:
    """Settings of a run: `way` is "start", "step" or "whole"."""
    way = settings["way"]
    dpo = replace(OWN, seed=settings["seed"], batch_size=PROMPTS.get(way, OWN.batch_size))
    configs: dict[str, Any] = {
        "step": StepDPOConfig(
            step_end="=", max_step=24, sampling=SAMPLING, dpo=replace(dpo, append_eos=False)
        ),
        "whole": OnlineConfig(samples=2, missing_eos_penalty=0.0, sampling=SAMPLING, dpo=dpo),
        "start": dpo,
    }
    return configs[way]


def steps_run(settings: dict, config: Any, on_step: OnStep) -> tuple[dict, list[dict]]:
    """Step-DPO or DPO on whole responses, from the committed model.

    The History of the two has, after every PROBE_EVERY steps, the share of right answers among
    single samples, and the number of labels so far. A label is a step that was checked in Step-DPO,
    and a final answer that was checked in DPO on whole responses.
    """
    policy, tokenizer = load_policy(MODEL)
    seed = settings["seed"]
    if settings["way"] == "start":
        return judged_steps(policy, tokenizer, seed=seed, asked=ASKED, samples=TRIES), []
    actor, count = trainable(policy), {"labels": 0}
    practice = long_problems()
    asked = arithmetic.problems("test", ASKED, levels=LEVELS)
    probed: list[dict] = []

    def probe(step: int) -> None:
        texts = sampled_texts(actor, tokenizer, [p.prompt for p in asked], seed=3000 + seed)
        right = right_answer([p.prompt for p in asked], texts)
        probed.append({"step": step, "right": sum(right) / len(right)} | count)

    def watch(row: Row) -> None:
        if (row["step"] + 1) % PROBE_EVERY == 0:
            probe(row["step"] + 1)
        on_step(row)

    probe(0)
    on: dict[str, Any] = {"reference": policy, "on_step": watch}
    if settings["way"] == "step":

        def judge(prompt: str, before: str, step: str) -> bool:
            count["labels"] += 1
            return arithmetic.right_step(prompt, before, step)

        train_step_dpo(actor, tokenizer, practice, judge, config, **on)
    else:

        def right(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
            count["labels"] += len(prompts)
            return right_answer(prompts, completions)

        train_online(actor, tokenizer, practice, reward_function(right, tokenizer), config, **on)
    row = judged_steps(actor, tokenizer, seed=seed, asked=ASKED, samples=TRIES)
    return row | count, probed
