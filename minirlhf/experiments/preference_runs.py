"""Runs of the preference losses on film reviews, and what they do to held-out pairs."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from minirlhf.core.logprobs import sequence_logprobs
from minirlhf.core.rollout import Score
from minirlhf.experiments.practice import judged, scoring
from minirlhf.experiments.registry import BEST
from minirlhf.loops.config import OptimiserConfig
from minirlhf.loops.online import ONLINE, OnlineConfig, train_online
from minirlhf.loops.preference import DPOConfig, train_dpo
from minirlhf.loops.sft import SFTConfig, train_sft
from minirlhf.models.adapters import LanguageModel, Policy
from minirlhf.models.forward import encode, policy_logprobs
from minirlhf.models.load import load_policy, load_scalar
from minirlhf.rewards.model import Judge, text_judge
from minirlhf.runtime import OnStep, Row
from minirlhf.search.selection import best_of_n
from minirlhf.tasks import reviews
from minirlhf.tasks.formats import texts_once
from minirlhf.tour import TourConfig, trainable

PROBE_EVERY = 10  # steps


def preference_config(settings: dict) -> DPOConfig | OnlineConfig | SFTConfig:
    """Settings of a preference run: `seed`, `dpo` (fields of DPOConfig), and `way`.

    `way` says where the training texts come from:
        "ratings"     pairs of human texts, labelled by human ratings (the default)
        "relabelled"  the same pairs, labelled by the reward model
        "once"        pairs that the start samples, labelled by the reward model
        "imitated"    SFT on the best of BEST samples
        a name of ONLINE, whose pairs the policy samples while it learns
    """
    way = settings.get("way", "ratings")
    own = {"seed": settings["seed"]} | settings.get("dpo", {})
    if way == "imitated":
        return SFTConfig(epochs=3, optimiser=OptimiserConfig(lr=1e-4), seed=settings["seed"])
    if way in ("ratings", "relabelled"):
        return DPOConfig(**own)
    online = OnlineConfig(refresh=DPOConfig.steps) if way == "once" else ONLINE[way]
    return replace(online, dpo=replace(online.dpo, **own))


def preference_run(
    settings: dict, config: DPOConfig | OnlineConfig | SFTConfig, on_step: OnStep
) -> tuple[dict, list[dict]]:
    """A preference run from the committed SFT model, evaluated on the test films.

    The row, and every tenth History row, also hold the numbers of `pair_probe` on 128 pairs of
    validation films.
    """
    policy, tokenizer = load_policy("tiny-reviews-sft")
    score, monitors = scoring("reviews", policy, tokenizer)
    actor, probe = trainable(policy), pair_probe(policy, tokenizer)
    probing = 0.0  # seconds

    def watch(row: Row) -> None:
        nonlocal probing
        if row["step"] % PROBE_EVERY == 0:
            began = time.time()
            row |= probe(actor)
            probing += time.time() - began
        on_step(row)

    started = time.time()
    if isinstance(config, OnlineConfig):
        prompts = reviews.rl_prompts()
        on: dict[str, Any] = {"reference": policy, "on_step": watch, "monitors": monitors}
        _, history = train_online(actor, tokenizer, prompts, score, config, **on)
    elif isinstance(config, DPOConfig):
        pairs = rated_pairs(config, tokenizer)
        if settings.get("way") == "relabelled":
            scorer, _ = load_scalar("tiny-reviews-reward")
            pairs = relabelled(pairs, text_judge([scorer], tokenizer))
        _, history = train_dpo(actor, tokenizer, pairs, config, reference=policy, on_step=watch)
    else:
        best = best_samples(policy, tokenizer, score, settings["seed"])
        _, history = train_sft(actor, tokenizer, best, config, on_step=watch)
    row = {"seconds": time.time() - started - probing} | probe(actor)
    row |= judged("reviews", actor, tokenizer, reference=policy, seed=settings["seed"])
    return row, [step for step in history if step["step"] % PROBE_EVERY == 0]


def best_samples(
    policy: Policy, tokenizer: PreTrainedTokenizerBase, score: Score, seed: int
) -> Dataset:
    """prompt, completion: the best of BEST samples for each of the training prompts."""
    prompts = reviews.rl_prompts()
    texts = best_of_n(policy, tokenizer, prompts, score, BEST, seed=seed)
    return Dataset.from_dict({"prompt": prompts, "completion": texts})


def order_config(settings: dict) -> DPOConfig:
    """Settings of an order run: `seed` and `dpo` (fields of DPOConfig)."""
    return DPOConfig(seed=settings["seed"], **settings["dpo"])


def order_run(settings: dict, config: DPOConfig, on_step: OnStep) -> tuple[dict, list[dict]]:
    """A preference loss on human pairs, then `pair_probe` on 2,000 pairs of the test films.

    The row also counts film by film. The History is empty.
    """
    policy, tokenizer = load_policy("tiny-reviews-sft")
    actor, pairs = trainable(policy), rated_pairs(config, tokenizer)
    train_dpo(actor, tokenizer, pairs, config, reference=policy, on_step=on_step)
    return pair_probe(policy, tokenizer, "test", 2000, by_film=True)(actor), []


def rated_pairs(config: DPOConfig, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Pairs of human texts about the same film, labelled by one human rating per text."""
    return reviews.preference_pairs(
        "reward",
        TourConfig.pairs,
        seed=config.seed,
        max_tokens=config.max_response,
        tokenizer=tokenizer,
    )


def pair_probe(
    start: Policy,
    tokenizer: PreTrainedTokenizerBase,
    split: str = "val",
    count: int = 128,
    *,
    by_film: bool = False,
) -> Callable:
    """A function that says how a model's log-probabilities of held-out pairs differ from `start`'s.

    The function takes a model and returns the mean over `count` pairs of:
        chosen_change, rejected_change   log pi(text) - log pi_start(text), nats per response
        right_order                      whether the change is larger for the chosen text (0 or 1)
    With `by_film` it also returns each film's [number of pairs in the right order, pairs].
    """
    pairs = reviews.preference_pairs(
        split, count, seed=17, max_tokens=SFTConfig.max_response, tokenizer=tokenizer
    )[:]
    prompts, texts, chosen, rejected = texts_once(pairs)
    batch = encode(tokenizer, prompts, texts)

    @torch.no_grad()
    def logprobs(model: LanguageModel) -> torch.Tensor:
        parts = map(batch.select, torch.arange(len(texts), device="cpu").split(64))
        return torch.cat(
            [sequence_logprobs(policy_logprobs(model, p), p.response_mask) for p in parts]
        )

    before = logprobs(start)

    def probe(model: Policy) -> dict:
        change = logprobs(model) - before
        right = (change[chosen] > change[rejected]).double()
        row: dict = {
            "chosen_change": change[chosen].mean().item(),
            "rejected_change": change[rejected].mean().item(),
            "right_order": right.mean().item(),
        }
        if by_film:
            row["by_film"] = {film: [0.0, n] for film, n in Counter(pairs["prompt"]).items()}
            for film, one in zip(pairs["prompt"], right.tolist(), strict=True):
                row["by_film"][film][0] += one
        return row

    return probe


def relabelled(pairs: Dataset, judge: Judge) -> Dataset:
    """The same pairs of texts; `chosen` is the text with the higher score of the judge."""
    rows = pairs.select_columns(["prompt", "chosen", "rejected"])[:]
    prompts, texts, *sides = texts_once(rows)
    score = judge(prompts, texts).tolist()
    ordered = [(a, b) if score[a] > score[b] else (b, a) for a, b in zip(*sides, strict=True)]
    return Dataset.from_list(
        [{"prompt": prompts[a], "chosen": texts[a], "rejected": texts[b]} for a, b in ordered]
    )
