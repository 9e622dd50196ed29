"""The options of training: the same name for the same thing, and each reaches its setting."""

from dataclasses import replace

import pytest

from minirlhf.cli import group, online, ppo, preference, reward, sft
from minirlhf.cli.commands import loaded
from minirlhf.loops.checkpoint import Checkpoint
from minirlhf.loops.config import KLConfig, OptimiserConfig
from minirlhf.loops.family import FAMILY
from minirlhf.loops.group import GroupConfig
from minirlhf.loops.online import ONLINE
from minirlhf.loops.ppo import PPOConfig
from minirlhf.loops.preference import DPOConfig
from minirlhf.loops.reward import RewardConfig
from minirlhf.loops.sft import SFTConfig
from minirlhf.models.sampling import SamplingConfig
from tests.cli.test_own_prompts import invoke, tiny  # noqa: F401  # a fixture

EVERY = {"steps", "batch_size", "lr", "micro_batch", "seed", "save_every", "resume", "out"}
EVERY |= {"check_only"}
SAMPLED = {"group_size", "temperature", "max_new_tokens", "missing_eos_penalty"}
HAVE = {  # command -> options that it has besides EVERY
    "sft": {"epochs"},
    "reward": set(),
    "dpo": {"beta"},
    "ppo": SAMPLED | {"epochs", "minibatch_size", "kl_coef"},
    **dict.fromkeys(FAMILY, SAMPLED | {"epochs", "minibatch_size", "kl_coef", "overlong_buffer"}),
    **dict.fromkeys(ONLINE, SAMPLED | {"beta"}),
    "agent": SAMPLED | {"beta"},
    "step-dpo": {"beta", "temperature", "max_new_tokens"},
    "prm": {"temperature", "max_new_tokens"},
}


@pytest.mark.parametrize("name", HAVE)
def test_a_training_command_has_the_options_of_the_first_hour(name):
    flags = {p.name: p.opts for p in loaded(name).params}
    assert EVERY | HAVE[name] <= flags.keys()
    assert all(flags[key][0] == f"--{key.replace('_', '-')}" for key in EVERY | HAVE[name])


SHORT = SamplingConfig(max_new_tokens=7, temperature=0.5)
RATE, MICRO = OptimiserConfig(lr=0.01), OptimiserConfig(lr=0.01, micro_batch=2)
COMMON = ["--batch-size", 8, "--lr", 0.01, "--micro-batch", 2, "--seed", 3]
DRAWN = ["--temperature", 0.5, "--max-new-tokens", 7, "--missing-eos-penalty", 0.25]
PENALTY = {"missing_eos_penalty": 0.25, "sampling": SHORT}


@pytest.mark.parametrize(
    "name, module, train, given, config",
    [
        (
            "sft",
            sft,
            "train_sft",
            COMMON,
            SFTConfig(batch_size=8, steps=2, optimiser=MICRO, seed=3),
        ),
        (
            "reward",
            reward,
            "train_reward_model",
            COMMON,
            RewardConfig(batch_size=8, steps=2, optimiser=MICRO, seed=3),
        ),
        (
            "dpo",
            preference,
            "train_dpo",
            [*COMMON, "--beta", 0.2],
            DPOConfig(beta=0.2, batch_size=8, steps=2, optimiser=MICRO, seed=3),
        ),
        (
            "ppo",
            ppo,
            "train_ppo",
            [*COMMON, *DRAWN, "--group-size", 2, "--epochs", 3, "--kl-coef", 0.1]
            + ["--critic-lr", 0.02],
            PPOConfig(
                steps=2,
                batch_size=8,
                samples_per_prompt=2,
                minibatch_size=4,
                epochs=3,
                kl=KLConfig(kl_coef=0.1),
                actor=MICRO,
                critic=replace(RATE, lr=0.02),
                seed=3,
                **PENALTY,
            ),
        ),
        (
            "dapo",
            group,
            "train_group",
            [*COMMON, *DRAWN, "--group-size", 2, "--epochs", 3, "--kl-coef", 0.1]
            + ["--minibatch-size", 8, "--overlong-buffer", 3],
            GroupConfig(
                algorithm=replace(FAMILY["dapo"], overlong_buffer=3),
                steps=2,
                prompts_per_step=4,
                group_size=2,
                minibatch_size=8,
                epochs=3,
                kl=KLConfig(kl_coef=0.1),
                optimiser=MICRO,
                seed=3,
                **PENALTY,
            ),
        ),
        (
            "rso",
            online,
            "train_online",
            [*COMMON, *DRAWN, "--group-size", 3],
            replace(
                ONLINE["rso"],
                samples=3,
                refresh=2,
                dpo=replace(
                    ONLINE["rso"].dpo, beta=0.5, steps=2, batch_size=8, optimiser=MICRO, seed=3
                ),
                **PENALTY,
            ),
        ),
    ],
)
def test_every_option_reaches_its_setting(
    name,
    module,
    train,
    given,
    config,
    tiny,  # noqa: F811
    monkeypatch,
):
    seen, intervals = [], []
    monkeypatch.setattr(
        module,
        train,
        lambda *a, checkpoint, **k: seen.extend(a) or intervals.append(checkpoint.every) or 1 / 0,
    )
    rows = "rows.jsonl"
    if name in ("sft", "reward", "dpo"):
        rows = "pairs.jsonl"
        pairs = [f'{{"prompt": "q{i}", "chosen": "a", "rejected": "b"}}' for i in range(12)]
        if name == "sft":
            pairs = [f'{{"prompt": "q{i}", "completion": "a"}}' for i in range(12)]
        (tiny / rows).write_text("\n".join(pairs))
    else:
        given = ["--scorer", tiny / "scorer", *given]
    result = invoke(tiny, name, *given, "--save-every", 5, dataset=rows)
    assert isinstance(result.exception, ZeroDivisionError), result.exception
    assert intervals == [5.0] and config in seen, seen[-1]


def test_the_batch_keeps_its_share_of_minibatches(tiny, monkeypatch):  # noqa: F811
    seen = []
    monkeypatch.setattr(ppo, "train_ppo", lambda *a, **k: seen.append(a[5]) or 1 / 0)
    for batch in (8, 7):
        invoke(tiny, "ppo", "--scorer", tiny / "scorer", "--batch-size", batch)
    assert [(c.batch_size, c.minibatch_size) for c in seen] == [(8, 4), (7, 7)]


def test_a_run_is_saved_as_often_as_asked(tiny, monkeypatch):  # noqa: F811
    saves, write = [], Checkpoint._write
    monkeypatch.setattr(Checkpoint, "_write", lambda *a: saves.append(1) or write(*a))
    for seconds in (1e-9, 1e9):
        given = ["--scorer", tiny / "scorer", "--batch-size", 4, "--save-every", seconds]
        assert invoke(tiny, "grpo", *given).exit_code == 0
    assert len(saves) == 3 + 1  # after each of two steps and at the end; at the end
