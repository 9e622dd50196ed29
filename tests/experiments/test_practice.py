"""Training on a task: its settings, its scores, and the evaluation on verifiable problems."""

import itertools
from dataclasses import replace

import pytest
import torch

from minirlhf import evaluate
from minirlhf.core.rollout import Rollout
from minirlhf.experiments import practice
from minirlhf.loops.family import FAMILY
from minirlhf.loops.group import GroupConfig
from minirlhf.models.forward import encode
from minirlhf.models.load import load_policy
from minirlhf.models.sampling import SamplingConfig
from minirlhf.tasks.arithmetic import problems, solution, split_of


@pytest.mark.parametrize("c", range(6))
@pytest.mark.parametrize("k", range(1, 6))
def test_pass_at_k_is_the_mean_over_all_draws_of_k(c, k):
    right = torch.tensor([[i < c for i in range(5)]])
    draws = [any(right[0, i] for i in draw) for draw in itertools.combinations(range(5), k)]
    assert evaluate.pass_at_k(right, k).item() == pytest.approx(sum(draws) / len(draws), abs=1e-12)


def test_pass_at_k_refuses_wrong_shapes_types_and_k():
    two = torch.zeros(2, 3, dtype=torch.bool)
    for wrong, k, sentence in (
        (two.float(), 1, "type bool"),
        (two, 4, "from 1 to the 3"),
        (two, 0, "from 1"),
        (two[0], 1, "N, n"),
    ):
        with pytest.raises(ValueError, match=sentence):
            evaluate.pass_at_k(wrong, k)


@pytest.mark.parametrize(
    "one, most, verdict",
    [
        (0.4, 0.0, "sharpening"),
        (0.4, 0.3, "learning"),
        (0.4, -0.3, "sharpening"),
        (0.0, 0.3, "no gain"),
        (-0.2, 0.0, "no gain"),
    ],
)
def test_a_gain_in_pass_1_without_a_gain_in_pass_16_is_sharpening(one, most, verdict):
    before = {"pass_1_by_prompt": [0.5, 0.4] * 50, "pass_16_by_prompt": [0.6, 0.5] * 50}
    after = {
        key: [x + gain for x in before[key]]
        for key, gain in (("pass_1_by_prompt", one), ("pass_16_by_prompt", most))
    }
    assert evaluate.sharpened_or_learned(before, after) == verdict


def test_settings_fit_the_task_and_the_algorithm():
    for name, row in FAMILY.items():
        config = practice.group_config("arithmetic", name)
        same = practice.TASKS["arithmetic"].settings
        assert (
            config.prompts_per_step * config.group_size
            == same["prompts_per_step"] * same["group_size"]
        )
        assert (
            (config.group_size == 1) == (not row.compares)
            and config.stage == name
            and config.kl.kl_coef == 0
        )
        assert practice.group_config("reviews", name) == GroupConfig.named(name)
    assert practice.group_config("arithmetic", "grpo", steps=3, seed=5).steps == 3
    with pytest.raises(ValueError, match="task is 'chess'; it must be one of reviews, arithmetic"):
        practice.group_config("chess", "grpo")


def test_training_and_test_problems_are_disjoint():
    practised = set(practice.practice_problems())
    asked = {p.prompt for p in problems("test", practice.ASKED, levels=practice.LEVELS)}
    assert len(practised) == 10_000 and not practised & asked
    assert {split_of(prompt[:-1]) for prompt in practised} == {"train"}


def test_an_evaluation_asks_problems_of_the_levels_that_are_given(monkeypatch):
    monkeypatch.setattr(practice, "ASKED", 5)
    monkeypatch.setattr(
        practice.evaluate, "pass_summary", lambda model, tokenizer, prompts, *a, **k: prompts
    )
    given = ("arithmetic", None, None)
    for levels, more in ((practice.LEVELS, {}), ((5,), {"levels": (5,)})):
        asked = practice.judged(*given, reference=None, seed=0, **more)
        assert asked == [p.prompt for p in problems("test", 5, levels=levels)]


def test_tiny_steps_reaches_the_scores_on_its_model_card():
    model, tokenizer = load_policy("tiny-steps")
    asked = practice.judged("arithmetic", model, tokenizer, reference=model, seed=0)
    card = {"greedy": 0.41, "pass_1": 0.40, "pass_16": 0.98}  # as in data/checkpoints/README.md
    assert all(abs(asked[key] - said) < 0.02 for key, said in card.items()), asked
    assert asked["missing_eos"] < 0.02
    assert len(asked["greedy_by_prompt"]) == practice.ASKED
    assert sum(p.numel() for p in model.parameters()) == 605_568


def test_the_arithmetic_score_checks_the_answer_of_the_response():
    model, tokenizer = load_policy("tiny-steps")
    score, monitors = practice.scoring("arithmetic", model, tokenizer)
    found = problems("test", 8)
    right = encode(tokenizer, [p.prompt for p in found], [solution(p.expression) for p in found])
    assert isinstance(right, Rollout) and score(right).tolist() == [1.0] * 8 and monitors == {}
    wrong = encode(
        tokenizer, [p.prompt for p in found], [solution(p.expression) + "=1" for p in found]
    )
    assert score(wrong).tolist() == [float(p.answer == 1) for p in found]


def test_a_reward_model_reads_eos_at_every_end_of_the_policys_responses():
    model, tokenizer = load_policy("tiny-reviews-sft")
    eos, end = tokenizer.eos_token_id, 5
    model.generation_config.eos_token_id = [eos, end]
    score, _ = practice.scoring("reviews", model, tokenizer)
    batch = encode(tokenizer, ["a"], ["good"])
    other = torch.where(batch.response_ids == eos, end, batch.response_ids)
    assert end in other and score(replace(batch, response_ids=other)).equal(score(batch))


def test_passes_are_counted_by_prompt():
    model, tokenizer = load_policy("tiny-steps")
    prompts = [p.prompt for p in problems("test", 6)]
    always = lambda prompts, completions: [
        float(prompt == prompts[0]) for prompt in prompts
    ]  # right for the first problem, whatever the response
    row = evaluate.pass_summary(
        model, tokenizer, prompts, always, samples=4, config=SamplingConfig(max_new_tokens=24)
    )
    assert (
        row["greedy_by_prompt"]
        == row["pass_1_by_prompt"]
        == row["pass_4_by_prompt"]
        == [1.0] + [0.0] * 5
    )
    assert (
        row["pass_1"] == pytest.approx(1 / 6) and 0 < row["entropy"] < 3 and 1 < row["length"] < 25
    )
