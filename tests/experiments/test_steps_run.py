"""The experiments on steps: which step a model blames, and a small run of each."""

from dataclasses import replace

import pytest
import torch
from datasets import Dataset

from minirlhf.core.process_reward import process_reward_score
from minirlhf.experiments import process_rewards, steps
from minirlhf.experiments.registry import EXPERIMENTS
from minirlhf.models.forward import encode, policy_logprobs
from minirlhf.models.heads import ScalarModel
from minirlhf.models.load import load_policy
from minirlhf.models.steps import step_end_ids, step_logits
from minirlhf.tasks import arithmetic


@pytest.fixture(scope="module")
def start():
    return load_policy(steps.MODEL)


def test_picked_and_located_by_hand():
    right = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    scores = torch.tensor([0.0, 3.0, 1.0, 2.0, 5.0, 4.0, 0.0, 0.0])
    assert process_rewards.picked(scores, right).tolist() == [1, 0, 0, 1]
    cases = Dataset.from_dict({"step": [0, 1, 2, 2]})
    assert process_rewards.located([0, 0, 2, 2], cases).tolist() == [1, 0, 1, 1]


def test_a_pick_without_a_judge_by_hand():
    """One of two texts is right, and 2 has most votes; then one of three, and 4 has most."""
    texts = ["1=2", "1=2", "1=2", "3", "a=4", "b=4", "5", "b=4"]
    right = torch.tensor([[1.0, 1, 1, 0], [0, 0, 1, 0]])
    found = process_rewards.without_a_judge(texts, right)
    assert found == {"blind": pytest.approx((1 / 2 + 1 / 3) / 2), "majority": 0.5}


def test_a_reward_model_blames_the_first_step_below_one_half_or_the_lowest(monkeypatch, start):
    _, tokenizer = start
    logits = torch.tensor([[2.0, -1.0, -5.0], [3.0, 1.0, 2.0], [1.0, 2.0, 0.0]])
    mask = torch.tensor([[True] * 3, [True] * 3, [True, True, False]])
    monkeypatch.setattr(process_rewards, "step_logits", lambda *_, **__: (logits, mask))
    cases = Dataset.from_dict({"prompt": ["1+1="] * 3, "response": ["2"] * 3})
    assert process_rewards.blamed_by_scorer(None, tokenizer, cases, ()) == [1, 1, 0]


def test_surprisal_blames_the_step_of_the_least_likely_token(start):
    policy, tokenizer = start
    cases = process_rewards.planted_errors(arithmetic.problems("test", 5, levels=steps.LEVELS))
    blamed = process_rewards.blamed_by_surprisal(policy, tokenizer, cases)
    batch = encode(tokenizer, cases["prompt"][:], cases["response"][:])
    with torch.no_grad():
        logprobs = policy_logprobs(policy, batch)
    for i, text in enumerate(cases["response"]):
        at = logprobs[i, : len(text) + 1].argmin().item()
        assert blamed[i] == text[:at].count("=")
        assert not arithmetic.checked_steps(cases["prompt"][i], text)[-1]
        assert len(arithmetic.checked_steps(cases["prompt"][i], text)) - 1 == cases["step"][i]


def test_own_errors_are_wrong_samples_with_their_first_wrong_step():
    texts = ["13-6=7", "14-6=8", "14-6=8", "12=", "13-6=8"]
    cases = process_rewards.own_errors(["8+5-6="] * 5, texts, seed=0)
    found = dict(zip(cases["response"], cases["step"], strict=True))
    assert found == {"14-6=8": 0, "13-6=8": 1}


@pytest.mark.notebook  # no training of a lesson, so CI runs it
def test_the_gate_of_tiny_long_steps(start):
    """About one step in ten is wrong, and most problems are solved in some of 16 tries."""
    row = steps.judged_steps(*start, seed=0)
    # the figures of data/checkpoints/README.md; 400 problems: standard errors of about 0.02
    assert abs(row["step_right"] - 0.88) < 0.03 and abs(row["greedy"] - 0.86) < 0.04
    assert abs(row["pass_1"] - 0.62) < 0.04 and row["pass_16"] > 0.96


def small(monkeypatch):
    for module in (steps, process_rewards):
        monkeypatch.setattr(module, "ASKED", 8)
        monkeypatch.setattr(module, "TRIES", 2)
    monkeypatch.setattr(steps, "PROBE_EVERY", 1)
    monkeypatch.setattr(process_rewards, "PROBLEMS", 6)
    monkeypatch.setattr(process_rewards, "ROLLOUTS", 2)
    monkeypatch.setattr(steps, "OWN", replace(steps.OWN, steps=2))
    monkeypatch.setattr(steps, "PROMPTS", {"step": 6, "whole": 8})


@pytest.mark.parametrize("variant", ["start", "step dpo", "whole responses"])
def test_a_small_run_counts_what_was_checked(monkeypatch, variant):
    small(monkeypatch)
    settings = EXPERIMENTS["steps"][variant] | {"seed": 0}
    row, history = steps.steps_run(settings, steps.steps_config(settings), lambda row: None)
    assert 0 <= row["pass_1"] <= row["pass_2"] <= 1
    if variant == "start":
        assert history == []
        return
    assert [r["step"] for r in history] == [0, 1, 2]
    labels = [r["labels"] for r in history]
    assert labels[0] == 0 < labels[1] < labels[2] == row["labels"]
    if variant == "whole responses":
        assert row["labels"] == 2 * 2 * 8  # steps, responses, problems


@pytest.mark.notebook  # no training of a lesson, so CI runs it
def test_small_runs_of_the_reward_models_have_equally_many_checks(monkeypatch):
    small(monkeypatch)
    rows = {}
    for name, variant in EXPERIMENTS["process_rewards"].items():
        settings = variant | {"seed": 0}
        config = replace(process_rewards.process_rewards_config(settings), steps=3, batch_size=4)
        rows[name], _ = process_rewards.process_rewards_run(settings, config, lambda row: None)
    # every continuation and every response has one outcome; the rule labels as many steps
    difference = rows["labels of the rule"]["labels"] - rows["outcomes"]["labels"]
    assert 0 <= difference <= 6
    assert rows["soft labels"]["labels"] == rows["hard labels"]["labels"]
    for row in rows.values():
        assert 0 <= row["best_product"] <= row["possible"] <= 1
        assert row["possible"] == rows["soft labels"]["possible"]  # the same responses
        assert len(row["best_product_by_prompt"]) == len(row["planted_by_prompt"]) == 4
    policy = rows["no reward model"]
    assert "best_min" not in policy and 0 <= policy["blind"] <= policy["possible"]
    assert 0 <= policy["labels_half"] <= 1 and 0 <= policy["labels_fall"] <= 1


@pytest.mark.parametrize(
    "name, trained",
    [
        ("log-probabilities too, 1,000 checks", {"head.weight", "head.bias", "backbone.direction"}),
        ("head only, text alone", {"head.weight", "head.bias"}),
    ],
)
def test_the_weights_that_a_reward_model_with_a_frozen_body_trains(monkeypatch, name, trained):
    class Found(Exception):
        pass

    def found(backbone, tokenizer, rows, config, **_):
        model = ScalarModel(backbone)
        raise Found({n for n, p in model.named_parameters() if p.requires_grad}, config.steps)

    small(monkeypatch)
    monkeypatch.setattr(process_rewards, "train_prm", found)
    settings = EXPERIMENTS["process_rewards"][name] | {"seed": 0, "checks": 10}
    config = process_rewards.process_rewards_config(settings)
    with pytest.raises(Found) as seen:
        process_rewards.process_rewards_run(settings, config, lambda row: None)
    assert seen.value.args == (trained, 100)


def test_the_rows_of_the_reward_models_follow_from_the_same_continuations(monkeypatch, start):
    small(monkeypatch)
    data = process_rewards.training_rows(*start, seed=0)
    soft, hard = data["soft"], data["hard"]
    for a, b in zip(soft["labels"], hard["labels"], strict=True):
        assert [float(y > 0) for y in a] == b
    assert all(sum(y is not None for y in labels) == 1 for labels in data["outcome"]["labels"])
    # the mean label of a prefix is the share of right ones among its continuations
    prompt, completions, labels = soft[0]["prompt"], soft[0]["completions"], soft[0]["labels"]
    first = [
        row["labels"][-1]
        for row in data["outcome"]
        if row["prompt"] == prompt and row["completions"][0] == completions[0]
    ]
    # those of the first step come first, ROLLOUTS of them
    assert sum(first[: process_rewards.ROLLOUTS]) / process_rewards.ROLLOUTS == labels[0]


def test_scores_of_one_response_follow_from_its_steps(start):
    policy, tokenizer = start
    scorer = ScalarModel(policy.base_model).eval()
    ends = step_end_ids(policy, tokenizer, "=")
    batch = encode(tokenizer, ["8+5-6="], ["13-6=7"])
    with torch.no_grad():
        logits, mask = step_logits(scorer, batch, ends)
    total = process_reward_score(logits, mask, how="product").item()
    assert total == pytest.approx(logits.sigmoid().log().sum().item(), abs=1e-5)
