"""Locating errors: which method finds the wrong token or step in a calculation?

The calculations have one planted wrong digit, or they are the model's own false samples.
"""

import random
from collections import defaultdict
from dataclasses import replace
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from minirlhf import evaluate
from minirlhf.core.rollout import Rollout
from minirlhf.experiments.practice import LEVELS, TASKS
from minirlhf.loops.config import OptimiserConfig
from minirlhf.loops.preference import DPOConfig, train_dpo
from minirlhf.loops.verifier import VerifierConfig, prefix_logits, train_verifier
from minirlhf.models.adapters import LanguageModel, Policy
from minirlhf.models.forward import decode, encode, policy_logprobs
from minirlhf.models.heads import ScalarModel
from minirlhf.models.load import load_policy
from minirlhf.models.sampling import sample_text
from minirlhf.runtime import OnStep
from minirlhf.tasks import arithmetic
from minirlhf.tasks.formats import unpaired
from minirlhf.tour import trainable

LOCATED: dict[str, Any] = {  # DPO and the verifier read the same number of texts: 38,400
    "problems": 5000,
    "asked": 400,
    "dpo": {"steps": 300, "batch_size": 64, "optimiser": OptimiserConfig(lr=3e-4)},
    "verifier": VerifierConfig(steps=600, batch_size=64, optimiser=OptimiserConfig(lr=3e-4)),
}


def planted_config(settings: dict) -> dict:
    """Settings of DPO and of the verifier, and how many problems they practise and are asked."""
    return LOCATED | {
        "dpo": DPOConfig(**LOCATED["dpo"], seed=settings["seed"]),
        "verifier": replace(LOCATED["verifier"], seed=settings["seed"]),
    }


def planted_run(settings: dict, config: dict, on_step: OnStep) -> tuple[dict, list[dict]]:
    """DPO and a verifier trained on right and wrong calculations; how often each locates an error.

    `texts`: "planted" (right solutions, and the same with one wrong digit) or "own" (the model's
    own right and wrong samples). The History is empty. The row holds shares of two kinds of cases:

        planted   held-out problems with one planted wrong digit; right is the very token
        own       samples of the start with exactly one false step; right is the step

    Each method blames the token with its lowest value; see `evidence_of`.
    """
    seed = settings["seed"]
    policy, tokenizer = load_policy("tiny-steps")
    practice = arithmetic.problems("train", config["problems"], seed=1 + seed, levels=LEVELS)
    if settings["texts"] == "planted":
        pairs = planted_pairs(practice, seed)
    else:
        pairs = own_pairs(policy, tokenizer, practice, seed)
    texts = pairs.select_columns(["prompt", "chosen", "rejected"])
    actor = trainable(policy)
    train_dpo(actor, tokenizer, texts, config["dpo"], reference=policy, on_step=on_step)
    verifier, history = train_verifier(
        trainable(policy).base_model,
        tokenizer,
        unpaired(texts),
        config["verifier"],
        on_step=on_step,
    )
    last = history[-20:]
    row = {"pairs": len(pairs), "verifier_right": sum(r["right"] for r in last) / len(last)}
    asked = arithmetic.problems("test", config["asked"], levels=LEVELS)
    for name, cases, unit in (
        ("planted", planted_pairs(asked, 0), "place"),
        ("own", false_steps(policy, tokenizer, asked, 0, config["asked"]), "step"),
    ):
        batch = encode(tokenizer, cases["prompt"], cases["rejected"])
        for method, values in evidence_of(policy, actor, verifier, batch).items():
            row |= _share_found(f"{name}, {method}", values, batch, cases, unit)
        row[f"{name}, cases"] = len(cases)
        row[f"{name}, by chance"] = _share_by_chance(cases["rejected"], unit)
    return row, []


def _share_found(
    name: str, values: torch.Tensor, batch: Rollout, cases: Dataset, unit: str
) -> dict:
    """The share of cases whose lowest value is at the error, with its 95 % interval over cases."""
    blamed = torch.where(batch.response_mask, values, torch.inf).argmin(1).tolist()
    if unit == "step":
        blamed = [text[:at].count("=") for text, at in zip(cases["rejected"], blamed, strict=True)]
    found = [float(at == where) for at, where in zip(blamed, cases[unit], strict=True)]
    low, high = evaluate.bootstrap(torch.tensor(found, device="cpu"))
    return {name: sum(found) / len(found), f"{name}, interval": [low, high]}


def _share_by_chance(texts: list[str], unit: str) -> float:
    """The share that a uniformly random token, or step, would find."""
    sizes = [text.count("=") + 1 if unit == "step" else len(text) + 1 for text in texts]
    return sum(1 / size for size in sizes) / len(sizes)


@torch.no_grad()
def evidence_of(
    policy: LanguageModel, actor: Policy, verifier: ScalarModel, batch: Rollout
) -> dict[str, torch.Tensor]:
    """What four methods say of each token, (B, R); a low value means that something went wrong.

    surprisal             log pi_ref of the token, before any training, nats
    implicit reward       log pi - log pi_ref after DPO, nats
    surprisal after DPO   log pi of the token, nats
    value                 the change that the token makes in the verifier's probability of success
    """
    before, after = policy_logprobs(policy, batch), policy_logprobs(actor, batch)
    values = prefix_logits(verifier, batch)[0].sigmoid()
    return {
        "surprisal": before,
        "implicit reward": after - before,
        "surprisal after DPO": after,
        "value": values.diff(dim=1),
    }


def planted_pairs(found: list[arithmetic.Problem], seed: int) -> Dataset:
    """Pairs of a solution and the same with one wrong digit.

    Columns: prompt; chosen, the solution; rejected, the solution with one wrong digit, from which
    the later steps go on; place, the position of that digit (a token).
    """
    draw = random.Random(seed)
    rows = [(p, *arithmetic.planted_error(p.expression, draw)) for p in found]
    return Dataset.from_list(
        [
            {
                "prompt": p.prompt,
                "chosen": arithmetic.solution(p.expression),
                "rejected": wrong,
                "place": place,
            }
            for p, wrong, place in rows
        ]
    )


def own_samples(
    policy: Policy,
    tokenizer: PreTrainedTokenizerBase,
    found: list[arithmetic.Problem],
    seed: int,
    tries: int = 16,
) -> list[tuple[arithmetic.Problem, str]]:
    """Samples of the policy that show their steps, at temperature 1.

    Each different text of a problem is listed once. Answers without steps are left out.
    """
    repeated = [p for p in found for _ in range(tries)]
    drawn = sample_text(
        policy,
        tokenizer,
        [p.prompt for p in repeated],
        config=TASKS["arithmetic"].settings["sampling"],
        seed=seed,
        batch_size=512,
    )
    texts = [text for rollout in drawn for text in decode(tokenizer, rollout)]
    return [
        (p, text) for p, text in dict.fromkeys(zip(repeated, texts, strict=True)) if "=" in text
    ]


def own_pairs(
    policy: Policy, tokenizer: PreTrainedTokenizerBase, found: list[arithmetic.Problem], seed: int
) -> Dataset:
    """Pairs of the policy's own samples: prompt, chosen (right answer), rejected (wrong answer).

    Within a problem each sample is used at most once.
    """
    kinds: dict[str, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    for p, text in own_samples(policy, tokenizer, found, seed):
        kinds[p.prompt][arithmetic.answer_of(text) == p.answer].append(text)
    return Dataset.from_list(
        [
            {"prompt": prompt, "chosen": good, "rejected": bad}
            for prompt, (wrong, right) in kinds.items()
            for good, bad in zip(right, wrong, strict=False)
        ]
    )


def false_steps(
    policy: Policy,
    tokenizer: PreTrainedTokenizerBase,
    found: list[arithmetic.Problem],
    seed: int,
    count: int,
) -> Dataset:
    """Samples of several steps with exactly one false step: prompt, rejected (the sample), step.

    `step` is the number of the false step, from 0.
    """
    rows = []
    for p, text in own_samples(policy, tokenizer, found, seed):
        steps = arithmetic.steps_right(p.prompt, text)
        if steps.count(False) == 1 and len(steps) > 1 and arithmetic.answer_of(text) is not None:
            rows.append({"prompt": p.prompt, "rejected": text, "step": steps.index(False)})
    return Dataset.from_list(random.Random(seed).sample(rows, min(count, len(rows))))
