"""Responses with tokens that the policy did not choose, such as a tool's, in the loops."""

from dataclasses import replace

import pytest
import torch

from minirlhf.loops.config import KLConfig
from minirlhf.loops.family import FAMILY, GroupFormulas
from minirlhf.loops.group import GroupConfig, train_group
from minirlhf.loops.ppo import PPOConfig, PPOFormulas, train_ppo
from minirlhf.models.heads import ScalarModel
from minirlhf.models.sampling import SamplingConfig, sample
from tests.loops.test_by_hand import PROMPTS, TOKENIZER, score
from tests.tiny import tiny_policy

SAMPLING, KL = SamplingConfig(max_new_tokens=6), KLConfig(kl_coef=0.1)


def with_tool(junk):
    """Sampling in which a tool wrote the second and third token of every other response."""

    def sampled(*args, **given):
        batch = sample(*args, **given)
        tool = torch.zeros_like(batch.response_mask)
        tool[::2, 1:3] = True
        tool &= batch.response_mask
        return replace(
            batch,
            action_mask=batch.response_mask & ~tool,
            old_logprobs=torch.where(tool, junk, batch.old_logprobs),
        )

    return sampled


def ppo(sampled):
    torch.manual_seed(0)
    actor, critic = tiny_policy(), ScalarModel(tiny_policy(1).base_model)
    config = PPOConfig(steps=2, batch_size=8, minibatch_size=4, sampling=SAMPLING, kl=KL)
    return train_ppo(
        actor,
        critic,
        TOKENIZER,
        PROMPTS,
        score,
        config,
        formulas=PPOFormulas(sample=sampled),
    )


def group(name, sampled):
    row = FAMILY[name]
    size = {"prompts_per_step": 2, "group_size": 4} if row.compares else {"prompts_per_step": 8}
    minibatch = {"minibatch_size": 4} if row.ratio != "none" else {}
    config = GroupConfig.named(name, steps=2, sampling=SAMPLING, kl=KL, **size, **minibatch)
    formulas = GroupFormulas(sample=sampled)
    return train_group(tiny_policy(), TOKENIZER, PROMPTS, score, config, formulas=formulas)


RUNS = {"ppo": ppo} | {
    name: lambda sampled, name=name: group(name, sampled)
    for name in ("grpo", "gspo", "rloo", "rloo-openrlhf", "reinforce", "reinforce++", "dr-grpo")
}


@pytest.mark.parametrize("name", RUNS)
def test_values_at_tool_tokens_do_not_affect_training(name):
    *models, history = RUNS[name](with_tool(0.0))
    *others, again = RUNS[name](with_tool(123.0))
    assert history == again
    for one, other in zip(models, others, strict=True):
        assert all(map(torch.equal, one.parameters(), other.parameters()))
    assert all(torch.isfinite(p).all() for p in models[0].parameters())


def test_tool_tokens_are_not_counted_in_the_length():
    whole, holes = ppo(sample)[2][0], ppo(with_tool(0.0))[2][0]
    assert whole["score"] == holes["score"]  # the same responses
    assert whole["length"] == 6 and holes["length"] == 5  # half of them have two tokens less
