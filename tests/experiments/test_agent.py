"""tiny-agent: it can use the calculator, mostly it does not, and in its head it cannot multiply."""

from functools import partial

import pytest
import torch

from minirlhf.experiments import agent, practice
from minirlhf.loops.config import OptimiserConfig
from minirlhf.loops.family import GroupFormulas
from minirlhf.loops.group import train_group
from minirlhf.models.forward import decode
from minirlhf.models.load import load_policy
from minirlhf.models.sampling import sample, sample_text
from minirlhf.rewards.function import reward_function
from minirlhf.rewards.rules import right_with_calculator
from minirlhf.tasks import calculator


@pytest.fixture(scope="module")
def judged():
    policy, tokenizer = load_policy("tiny-agent")
    return agent.judged_agent(policy, tokenizer, seed=0)


def test_the_gate_of_tiny_agent(judged):
    # a share of 0.3 in 6,400 samples has a standard error of about 0.006 (and problems differ)
    assert 0.25 < judged["pass_1"] < 0.5
    assert judged["pass_16"] > 0.95
    assert judged["in_the_head"] < 0.1  # or else no tool would be needed
    assert judged["greedy"] < 0.1


def test_its_habits_are_those_of_its_demonstrations(judged):
    assert sum(judged[name] for name in calculator.OUTCOMES) == pytest.approx(1)
    for name, share in zip(("right call", "wrong call", "no call"), agent.SHARES, strict=True):
        assert abs(judged[name] - share) < 0.08  # 400 samples: a standard error of 0.025 at most
    assert judged["forged"] + judged["no end of call"] + judged["refused call"] < 0.02
    assert judged["missing_eos"] < 0.01


def test_right_calls_are_mostly_followed_by_right_answers():
    policy, tokenizer = load_policy("tiny-agent")
    prompts = [p.prompt for p in calculator.problems("test", 400)]
    tool = calculator.Calculator(tokenizer)
    drawn = sample_text(policy, tokenizer, prompts, config=agent.SAMPLING, seed=1, tool=tool)
    written = [text for batch in drawn for text in agent.written_by_policy(batch, tokenizer)]
    texts = [text for batch in drawn for text in decode(tokenizer, batch)]
    right = right_with_calculator(prompts, texts)
    called = [
        answer
        for prompt, text, answer in zip(prompts, written, right, strict=True)
        if calculator.outcome(prompt[:-1], text) == "right call"
    ]
    assert len(called) > 80 and sum(called) / len(called) > 0.8


def test_ids_of_a_trajectory_are_those_of_its_text():
    policy, tokenizer = load_policy("tiny-agent")
    prompts = [p.prompt for p in calculator.problems("test", 64)]
    tool = calculator.Calculator(tokenizer)
    (batch,) = sample_text(policy, tokenizer, prompts, config=agent.SAMPLING, tool=tool)
    assert not batch.action_mask[batch.response_mask].all()
    for row, text in enumerate(decode(tokenizer, batch)):
        ids = batch.response_ids[row][batch.response_mask[row]]
        again = tokenizer(text, add_special_tokens=False).input_ids
        assert ids.tolist() == again + [tokenizer.eos_token_id]


def test_twelve_steps_of_grpo_teach_it_to_call():
    policy, tokenizer = load_policy("tiny-agent")
    tool = calculator.Calculator(tokenizer)
    config = practice.group_config(
        "arithmetic",
        "grpo",
        steps=12,
        optimiser=OptimiserConfig(lr=3e-4),
        sampling=agent.SAMPLING,
    )
    prompts = [p.prompt for p in calculator.problems("train", 500, seed=1)]
    score = reward_function(right_with_calculator, tokenizer)
    _, history = train_group(
        policy,
        tokenizer,
        prompts,
        score,
        config,
        formulas=GroupFormulas(sample=partial(sample, tool=tool)),
    )
    scores = torch.tensor(history.column("grpo", "score"))
    assert scores[-3:].mean() > scores[:3].mean() + 0.15, scores
