"""With micro-batches the gradient, the weights and the log equal those of the whole batch."""

import copy
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch

from minirlhf.core.rollout import Rollout
from minirlhf.loops.config import OptimiserConfig
from minirlhf.loops.family import FAMILY
from minirlhf.loops.group import GroupConfig, train_group
from minirlhf.loops.ppo import PPOConfig, train_ppo
from minirlhf.loops.preference import LOSSES, DPOConfig, train_dpo
from minirlhf.loops.reward import RewardConfig, train_reward_model
from minirlhf.loops.sft import SFTConfig, train_sft
from minirlhf.models.heads import ScalarModel
from tests.loops.test_checkpoint import PAIRS, PROMPTS, SHORT, first_half
from tests.tiny import tiny_policy, tiny_tokenizer

STEPS, TOKENIZER = 3, tiny_tokenizer()


def double(seed=0):
    return tiny_policy(seed).double()


def sft(optimiser):
    return train_sft(
        double(), TOKENIZER, PAIRS, SFTConfig(batch_size=4, epochs=STEPS, optimiser=optimiser)
    )


def reward(optimiser):
    torch.manual_seed(0)
    backbone = double().base_model
    config = RewardConfig(batch_size=6, steps=STEPS, dropout=0.0, optimiser=optimiser)
    torch.set_default_dtype(torch.float64)  # the head is made inside
    try:
        return train_reward_model(backbone, TOKENIZER, PAIRS, config)
    finally:
        torch.set_default_dtype(torch.float32)


def dpo(loss, **given):
    def train(optimiser):
        return train_dpo(
            double(),
            TOKENIZER,
            PAIRS,
            DPOConfig(loss, batch_size=4, steps=STEPS, optimiser=optimiser, **given),
        )

    return pytest.param(train, id="-".join([loss, *given]))


def ppo(optimiser):
    config = PPOConfig(
        steps=STEPS,
        batch_size=8,
        minibatch_size=4,
        sampling=SHORT,
        actor=optimiser,
        critic=replace(optimiser, micro_batch=0),
    )
    critic = ScalarModel(double(1).base_model).double()
    actor, critic, history = train_ppo(double(), critic, TOKENIZER, PROMPTS, first_half, config)
    return torch.nn.ModuleList([actor, critic]), history


def every_other(rollout, eos_id):
    return torch.arange(len(rollout.response_ids)) % 2 == 0


def row(name, **given):
    def train(optimiser):
        size = (
            dict(prompts_per_step=2, group_size=4)
            if FAMILY[name].ratio == "none"
            else dict(prompts_per_step=2, group_size=4, minibatch_size=4)
        )
        algorithm = replace(FAMILY[name], overlong_buffer=FAMILY[name].overlong_buffer and 2)
        config = GroupConfig.named(
            name,
            algorithm=algorithm,
            steps=STEPS,
            sampling=SHORT,
            optimiser=optimiser,
            **size,
            **given,
        )
        with patch.object(
            Rollout, "finished", every_other if given else Rollout.finished
        ):  # a random model rarely writes EOS
            return train_group(double(), TOKENIZER, PROMPTS, first_half, config)

    return pytest.param(train, id="-".join([name, *given]))


@pytest.mark.parametrize(
    "loop",
    [
        sft,
        reward,
        *map(dpo, LOSSES),
        dpo("dpo", precompute=True),
        ppo,
        *map(row, FAMILY),
        row("dapo", mask_truncated=True),
        row("dr-grpo", mask_truncated=True),
    ],
)
@pytest.mark.parametrize("micro_batch", [1, 3])
def test_micro_batches_do_not_change_the_weights_or_the_log(loop, micro_batch):
    torch.manual_seed(0)
    optimiser = OptimiserConfig(lr=1e-2)
    (whole, history), start = loop(optimiser), copy.deepcopy(double())
    parts, rows = loop(replace(optimiser, micro_batch=micro_batch))
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert a.dtype == torch.float64 and torch.allclose(a, b, rtol=0, atol=1e-9)
    assert not torch.allclose(
        next(whole.parameters()), next(start.parameters()), atol=1e-4
    )  # something was learned
    for one, other in zip(history, rows, strict=True):
        assert one.keys() == other.keys()
        assert all(
            one[key] == pytest.approx(other[key], abs=1e-6) for key in one if key != "stage"
        ), (one, other)
