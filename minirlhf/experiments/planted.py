"""Who finds the place of an error? Calculations with one wrong digit, and the model's own mistakes, read token by token."""

import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from datasets import Dataset

from minirlhf import evaluate
from minirlhf.experiments.practice import LEVELS, TASKS
from minirlhf.experiments.runs import kept
from minirlhf.loops.config import OptimiserConfig
from minirlhf.loops.preference import DPOConfig, train_dpo
from minirlhf.loops.verifier import VerifierConfig, prefix_logits, train_verifier
from minirlhf.models.forward import decode, encode, policy_logprobs
from minirlhf.models.load import load_policy
from minirlhf.models.sampling import sample_text
from minirlhf.tasks import arithmetic
from minirlhf.tasks.formats import unpaired
from minirlhf.tour import trainable

LOCATED = {  # DPO and the verifier read as many texts: 38,400
    "problems": 5000,
    "asked": 400,
    "dpo": {"steps": 300, "batch_size": 64, "optimiser": OptimiserConfig(lr=3e-4)},
    "verifier": VerifierConfig(steps=600, batch_size=64, optimiser=OptimiserConfig(lr=3e-4)),
}


def planted_run(path: Path, settings: dict, on_step: Callable) -> tuple[dict, list[dict]]:
    """DPO and a verifier on right and wrong calculations of tiny-steps' problems: who finds the place of an error? (its row, nothing)

    texts: "planted", right solutions against the same with one wrong digit; or "own", the model's own right and wrong samples. Asked on
    400 held-out problems with a planted digit (right: the very token), and on samples of the start, 400 or as many as there are, with
    one false step (right: the step). Blamed is the token with the lowest log pi_ref (surprisal), log pi/pi_ref (implicit), log pi, or
    change of V.
    """
    seed, dpo, checks = (
        settings["seed"],
        DPOConfig(**LOCATED["dpo"], seed=settings["seed"]),
        LOCATED["verifier"],
    )

    def made():
        policy, tokenizer = load_policy("tiny-steps")
        practice = arithmetic.problems("train", LOCATED["problems"], seed=1 + seed, levels=LEVELS)
        pairs = (
            planted_pairs(practice, seed)
            if settings["texts"] == "planted"
            else own_pairs(policy, tokenizer, practice, seed)
        )
        actor, columns = trainable(policy), ["prompt", "chosen", "rejected"]
        train_dpo(
            actor, tokenizer, pairs.select_columns(columns), dpo, reference=policy, on_step=on_step
        )
        verifier, history = train_verifier(
            trainable(policy).base_model,
            tokenizer,
            unpaired(pairs.select_columns(columns)),
            replace(checks, seed=seed),
            on_step=on_step,
        )
        asked = arithmetic.problems("test", LOCATED["asked"], levels=LEVELS)
        planted = planted_pairs(asked, 0)
        faulty = false_steps(policy, tokenizer, asked, 0, LOCATED["asked"])
        row = {
            "pairs": len(pairs),
            "verifier_right": sum(r["right"] for r in history[-20:]) / len(history[-20:]),
        }
        for name, cases, unit in (("planted", planted, "place"), ("own", faulty, "step")):
            batch = encode(tokenizer, cases["prompt"], cases["rejected"])
            for evidence, values in evidence_of(policy, actor, verifier, batch).items():
                blamed = torch.where(batch.response_mask, values, torch.inf).argmin(1).tolist()
                if unit == "step":
                    blamed = [
                        text[:at].count("=")
                        for text, at in zip(cases["rejected"], blamed, strict=True)
                    ]
                found = [float(at == where) for at, where in zip(blamed, cases[unit], strict=True)]
                low, high = evaluate.bootstrap(torch.tensor(found))
                row |= {
                    f"{name}, {evidence}": sum(found) / len(found),
                    f"{name}, {evidence}, interval": [low, high],
                }
            row[f"{name}, cases"] = len(cases)
            sizes = [
                text.count("=") + 1 if unit == "step" else len(text) + 1
                for text in cases["rejected"]
            ]
            row[f"{name}, by chance"] = sum(1 / size for size in sizes) / len(sizes)
        return row, []

    return kept(
        path,
        settings
        | {"config": dpo, "checks": checks}
        | {key: LOCATED[key] for key in ("problems", "asked")},
        made,
    )


@torch.no_grad()
def evidence_of(policy, actor, verifier, batch) -> dict[str, torch.Tensor]:
    """What each of four readers holds against a token, (B, R); low where something went wrong."""
    before, after = policy_logprobs(policy, batch), policy_logprobs(actor, batch)
    values = prefix_logits(verifier, batch)[0].sigmoid()
    return {
        "surprisal": before,
        "implicit reward": after - before,
        "surprisal after DPO": after,
        "value": values.diff(dim=1),
    }


def planted_pairs(found: list[arithmetic.Problem], seed: int) -> Dataset:
    """prompt, chosen (the solution), rejected (one digit wrong, carried on), place (of the digit: a token)."""
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
    policy, tokenizer, found: list[arithmetic.Problem], seed: int, tries: int = 16
) -> list[tuple[arithmetic.Problem, str]]:
    """Worked samples of the policy at temperature 1, each different text of a problem once; answers given at once are left out."""
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


def own_pairs(policy, tokenizer, found: list[arithmetic.Problem], seed: int) -> Dataset:
    """prompt, chosen, rejected: the policy's worked samples that end right against those that end wrong, one to one within a problem."""
    kinds = defaultdict(lambda: ([], []))
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
    policy, tokenizer, found: list[arithmetic.Problem], seed: int, count: int
) -> Dataset:
    """prompt, rejected (a sample of several steps of which one is false), step (its number)."""
    rows = []
    for p, text in own_samples(policy, tokenizer, found, seed):
        steps = arithmetic.steps_right(p.prompt, text)
        if steps.count(False) == 1 and len(steps) > 1 and arithmetic.answer_of(text) is not None:
            rows.append({"prompt": p.prompt, "rejected": text, "step": steps.index(False)})
    return Dataset.from_list(random.Random(seed).sample(rows, min(count, len(rows))))
