"""The multi-turn experiment: the mask and its absence, and a small run of each way."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from minirlhf.experiments import multi_turn
from minirlhf.experiments.registry import EXPERIMENTS
from minirlhf.loops.online import OnlineConfig
from minirlhf.models.fit import end_ids
from minirlhf.models.forward import encode_prompts, policy_logprobs
from minirlhf.models.load import load_policy
from minirlhf.models.sampling import sample
from minirlhf.tasks.calculator import Calculator, problems


@pytest.fixture(scope="module")
def agent():
    return load_policy("tiny-agent")


def drawn(agent, draw, count=16):
    policy, tokenizer = agent
    prompts = [p.prompt for p in problems("test", count)]
    return draw(
        policy,
        *encode_prompts(tokenizer, prompts),
        eos_id=end_ids(policy, tokenizer),
        config=multi_turn.SAMPLING,
        generator=torch.Generator().manual_seed(0),
    )


def test_without_the_mask_the_tool_tokens_are_actions_with_the_policys_probability(agent):
    draw = partial(sample, tool=Calculator(agent[1]))
    right, wrong = drawn(agent, draw), drawn(agent, multi_turn.unmasked(draw))
    assert torch.equal(right.response_ids, wrong.response_ids)
    on_tool = right.response_mask & ~right.action_mask
    assert on_tool.sum() > 20 and torch.equal(wrong.action_mask, wrong.response_mask)
    own = right.action_mask
    assert torch.equal(right.old_logprobs[own], wrong.old_logprobs[own])
    with torch.no_grad():
        again = policy_logprobs(agent[0], wrong)
    assert torch.allclose(wrong.old_logprobs[on_tool], again[on_tool], atol=1e-4)
    assert (wrong.old_logprobs[on_tool] < 0).all()


def test_margins_of_a_policy_with_itself_are_zero_and_their_part_lies_on_the_tool(agent):
    policy, tokenizer = agent
    prompts = [p.prompt for p in problems("test", 24)]
    tool = Calculator(tokenizer)
    same = multi_turn.margins(policy, policy, tokenizer, prompts, tool, seed=0)
    assert same["margin"] == same["margin_on_tool"] == 0 < same["margin_pairs"] <= 24


def test_settings_of_each_way():
    ways = EXPERIMENTS["multi_turn"]
    assert len(ways) == 18 and ways["kto, no mask; the tool errs"]["errs"] == 0.2
    follows = multi_turn.multi_turn_config(ways["dpo, reference follows"] | {"seed": 3})
    fixed = multi_turn.multi_turn_config(ways["dpo"] | {"seed": 3})
    assert (follows.dpo.sync_every, fixed.dpo.sync_every, fixed.dpo.seed) == (12, 0, 3)
    assert multi_turn.multi_turn_config(ways["kto"] | {"seed": 0}).pick == "labels"


@pytest.mark.parametrize("variant", ["start", "dpo", "kto, no mask", "grpo; the tool errs"])
def test_a_small_run(monkeypatch, variant):
    monkeypatch.setattr(multi_turn, "ASKED", 8)
    monkeypatch.setattr(multi_turn, "REFRESH", 1)
    monkeypatch.setattr(multi_turn, "PROMPTS", 4)
    monkeypatch.setattr(multi_turn, "SAMPLES", 4)
    monkeypatch.setattr(multi_turn, "judged_agent", lambda *given, **more: {"pass_1": 0.5})
    settings = EXPERIMENTS["multi_turn"][variant] | {"seed": 0}
    config = multi_turn.multi_turn_config(settings)
    if isinstance(config, OnlineConfig):
        config = replace(config, dpo=replace(config.dpo, steps=2))
    else:
        config = replace(config, steps=2)
    row, history = multi_turn.multi_turn_run(settings, config, lambda row: None)
    assert [r["step"] for r in history] == ([0] if variant == "start" else [0, 1, 2])
    assert row["margin_pairs"] > 0 and (row["margin"] == 0) is (variant == "start")
