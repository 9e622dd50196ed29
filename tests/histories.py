"""Short seeded runs of every loop, each reduced to one line: to be equal before and after a refactoring.

    python tests/histories.py > before.txt      (change the code)      python tests/histories.py | diff before.txt -

A line has the run's name and a SHA-256 of its metrics and final weights. One thread, so that sums are taken in one order.
Runs on the same machine and the same version of torch are equal bit for bit; on another machine the last digits differ.
"""

import hashlib
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from datasets import Dataset  # noqa: E402

from minirlhf.loops.config import KLConfig, OptimiserConfig  # noqa: E402
from minirlhf.loops.family import FAMILY, Algorithm  # noqa: E402
from minirlhf.loops.gold import GoldConfig, train_gold  # noqa: E402
from minirlhf.loops.group import GroupConfig, train_group  # noqa: E402
from minirlhf.loops.online import ONLINE, OnlineConfig, train_online  # noqa: E402
from minirlhf.loops.ppo import PPOConfig, train_ppo  # noqa: E402
from minirlhf.loops.preference import LOSSES, DPOConfig, train_dpo  # noqa: E402
from minirlhf.loops.pretrain import PretrainConfig, train_base  # noqa: E402
from minirlhf.loops.reward import RewardConfig, train_reward_model  # noqa: E402
from minirlhf.loops.sft import SFTConfig, train_sft  # noqa: E402
from minirlhf.loops.verifier import VerifierConfig, train_verifier  # noqa: E402
from minirlhf.models.adapters import with_lora  # noqa: E402
from minirlhf.models.heads import ScalarModel, SharedCritic  # noqa: E402
from minirlhf.models.sampling import SamplingConfig  # noqa: E402
from minirlhf.tasks.reviews import Review  # noqa: E402
from minirlhf.tour import Tour, TourConfig  # noqa: E402
from tests.tiny import ending_policy, tiny_policy, tiny_tokenizer  # noqa: E402

PROMPTS = ["one", "a second", "3"]
PAIRS = Dataset.from_list(
    [
        {"prompt": p, "chosen": c * n, "rejected": r * 3}
        for p in PROMPTS
        for n, (c, r) in enumerate(("ax", "ey", "iz"), 2)
    ]
)
COMPLETIONS = Dataset.from_list(
    [{"prompt": p, "completion": c * n} for p in PROMPTS for n, c in enumerate("aei", 1)]
)
LABELLED = Dataset.from_list(
    [
        {"prompt": p, "completion": c * n, "label": c in "ae"}
        for p in PROMPTS
        for n, c in enumerate("aeiou", 1)
    ]
)
QUICK, KL = OptimiserConfig(lr=1e-2), KLConfig(kl_coef=0.1)
SHORT = SamplingConfig(max_new_tokens=12)
MICRO = OptimiserConfig(lr=1e-2, micro_batch=3)


def first_half(rollout):
    """The share of response tokens from the first half of the vocabulary."""
    hits = (rollout.response_ids < 129) & rollout.response_mask
    return hits.sum(1) / rollout.response_mask.sum(1)


def digest(history, *models) -> str:
    found = hashlib.sha256(repr([sorted(row.items()) for row in history]).encode())
    for model in models:
        for name, p in model.named_parameters():
            found.update(name.encode() + p.detach().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def ppo(shared=False, lora=False, **given):
    torch.manual_seed(5)
    actor = tiny_policy(0) if shared or lora else ending_policy(0)
    critic = SharedCritic(actor) if shared else ScalarModel(tiny_policy(1).base_model)
    if lora:
        actor = with_lora(actor, 4)
    settings = (
        dict(
            steps=3,
            batch_size=12,
            minibatch_size=6,
            sampling=SHORT,
            actor=QUICK,
            critic=QUICK,
            kl=KL,
        )
        | given
    )
    actor, critic, history = train_ppo(
        actor,
        critic,
        tiny_tokenizer(),
        PROMPTS,
        first_half,
        PPOConfig(**settings),
        monitors={"half": first_half},
    )
    return digest(history, actor, critic)


def group(config):
    model, history = train_group(
        ending_policy(),
        tiny_tokenizer(),
        PROMPTS,
        first_half,
        config,
        monitors={"half": first_half},
    )
    return digest(history, model)


def family(name, **given):
    size = (
        {"prompts_per_step": 4, "group_size": 3}
        if FAMILY[name].compares
        else {"prompts_per_step": 12, "group_size": 1}
    )
    minibatch = {"minibatch_size": 6} if FAMILY[name].ratio != "none" else {}
    return group(
        GroupConfig.named(
            name, **dict(steps=3, sampling=SHORT, optimiser=QUICK, kl=KL) | size | minibatch | given
        )
    )


def group_row(row, **given):
    return group(
        GroupConfig(
            **dict(
                algorithm=row,
                steps=3,
                prompts_per_step=4,
                group_size=3,
                minibatch_size=6,
                sampling=SHORT,
                optimiser=QUICK,
                kl=KL,
            )
            | given
        )
    )


def dpo(data=PAIRS, **given):
    settings = dict(steps=3, batch_size=5, optimiser=OptimiserConfig(lr=1e-3)) | given
    model, history = train_dpo(tiny_policy(), tiny_tokenizer(), data, DPOConfig(**settings))
    return digest(history, model)


def online(config):
    model, history = train_online(
        ending_policy(),
        tiny_tokenizer(),
        PROMPTS,
        first_half,
        config,
        monitors={"half": first_half},
    )
    return digest(history, model)


def pretrain():
    config = PretrainConfig(
        n_layer=1, n_embd=16, n_head=2, vocab_size=260, block=8, batch_size=2, steps=3, warmup=1
    )
    texts = [f"a text of some words, number {i}" for i in range(30)]
    model, _, history = train_base(texts, texts[:3], config)
    return digest(
        [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in history], model
    )


def gold():
    reviews = [Review(f"text {i}", "a_film", "gold", (i % 5 - 2, 1), True) for i in range(20)]
    return digest(
        *reversed(
            train_gold(
                tiny_policy().base_model,
                tiny_tokenizer(),
                reviews,
                GoldConfig(epochs=0.5, batch_size=4),
            )
        )
    )


def tour():
    with tempfile.TemporaryDirectory() as folder:
        run = Tour(folder, TourConfig.reduced())
        rows = [{k: v for k, v in row.items() if k != "seconds"} for row in run.run()]
        return digest(
            [*rows, *run.history, *run.reward_accuracy],
            run.ppo,
            run.dpo,
            run.grpo,
            run.reward_model,
        )


def runs():
    """(name, a function that gives the digest)."""
    yield (
        "sft",
        lambda: digest(
            *reversed(
                train_sft(
                    tiny_policy(),
                    tiny_tokenizer(),
                    COMPLETIONS,
                    SFTConfig(batch_size=4, optimiser=QUICK),
                )
            )
        ),
    )
    yield (
        "sft, micro-batches",
        lambda: digest(
            *reversed(
                train_sft(
                    tiny_policy(),
                    tiny_tokenizer(),
                    COMPLETIONS,
                    SFTConfig(batch_size=4, optimiser=MICRO),
                )
            )
        ),
    )
    for name, optimiser in (("reward", QUICK), ("reward, micro-batches", MICRO)):
        yield (
            name,
            lambda o=optimiser: digest(
                *reversed(
                    train_reward_model(
                        tiny_policy().base_model,
                        tiny_tokenizer(),
                        PAIRS,
                        RewardConfig(steps=3, batch_size=6, optimiser=o, centering_coef=0.01),
                    )
                )
            ),
        )
    yield "gold", gold
    yield "pretrain", pretrain
    yield (
        "verifier",
        lambda: digest(
            *reversed(
                train_verifier(
                    tiny_policy().base_model,
                    tiny_tokenizer(),
                    LABELLED,
                    VerifierConfig(steps=3, batch_size=4),
                )
            )
        ),
    )
    variants = {
        "": {},
        "adaptive KL": {"kl": KLConfig(kl_coef=0.1, target=0.5, horizon=100.0)},
        "no whitening": {"whiten": False},
        "three samples a prompt": {"samples_per_prompt": 3},
        "micro-batches": {"actor": MICRO},
        "warm-up": {"critic_warmup": 2},
        "clip higher": {
            "clip_eps": 0.1,
            "clip_eps_high": 0.3,
            "gamma": 0.9,
            "lam": 0.5,
            "value_coef": 0.5,
        },
        "shared trunk": {"shared": True},
        "shared trunk, micro-batches": {"shared": True, "actor": MICRO},
        "adapters": {"lora": True},
    }
    for name, given in variants.items():
        yield f"ppo, {name}", lambda g=given: ppo(**g)
    for name in FAMILY:
        yield f"group, {name}", lambda n=name: family(n)
        yield f"group, {name}, micro-batches", lambda n=name: family(n, optimiser=MICRO)
    yield "group, truncated masked", lambda: family("grpo", mask_truncated=True)
    yield (
        "group, truncated masked, constant",
        lambda: family("dr-grpo", mask_truncated=True, optimiser=MICRO),
    )
    yield (
        "group, adaptive KL",
        lambda: family("grpo", kl=KLConfig(kl_coef=0.1, target=0.5, horizon=100.0)),
    )
    yield "group, no clip", lambda: group_row(Algorithm(clip="none"))
    yield "group, min_std", lambda: group_row(Algorithm(min_std=0.5))
    yield "group, refilled", lambda: group_row(Algorithm(drop_spread=0.2, overlong_buffer=4))
    for name, row in LOSSES.items():
        yield f"dpo, {name}", lambda n=name: dpo(loss=n)
        yield (
            f"dpo, {name}, micro-batches",
            lambda n=name: dpo(loss=n, optimiser=OptimiserConfig(lr=1e-3, micro_batch=2)),
        )
        if row.single:
            yield f"dpo, {name}, labels", lambda n=name: dpo(LABELLED, loss=n)
    yield "dpo, synced", lambda: dpo(sync_every=2, mixup=0.6)
    yield "dpo, precomputed", lambda: dpo(precompute=True)
    yield "dpo, no reference", lambda: dpo(reference_free=True)
    for name, preset in ONLINE.items():
        small = dict(
            steps=4,
            batch_size=3,
            max_response=12,
            optimiser=OptimiserConfig(lr=1e-3),
            loss=preset.dpo.loss,
            beta=preset.dpo.beta,
        )
        given = dict(
            samples=preset.samples,
            refresh=min(preset.refresh, 2),
            pick=preset.pick,
            accept_beta=preset.accept_beta,
            sampling=SHORT,
        )
        yield (
            f"online, {name}",
            lambda s=small, g=given: online(OnlineConfig(dpo=DPOConfig(**s), **g)),
        )
    yield "tour, reduced", tour


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name, run in runs():
        if len(sys.argv) < 2 or any(word in name for word in sys.argv[1:]):
            print(f"{run()}  {name}", flush=True)
