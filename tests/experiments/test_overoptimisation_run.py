"""The experiment overoptimisation, made tiny: its pool, its labels, its rows."""

from dataclasses import replace

import pytest
import torch

from minirlhf.core.best_of_n import best_of_n_kl
from minirlhf.experiments import overoptimisation
from minirlhf.experiments.registry import EXPERIMENTS
from minirlhf.rewards.gold import gold_judge
from minirlhf.tasks import reviews

VARIANTS = EXPERIMENTS["overoptimisation"]


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """Two films, 16 samples of each, proxies of three steps, and nothing kept between tests."""
    for name, value in {"FILMS": 2, "SAMPLES": 16, "NS": (1, 4, 16), "HELD_OUT": 8}.items():
        monkeypatch.setattr(overoptimisation, name, value)
    monkeypatch.setattr(overoptimisation, "proxy_steps", lambda labels: 3)
    monkeypatch.setattr(overoptimisation, "MEMBERS", 2)
    prompts = reviews.rl_prompts()[:8]
    monkeypatch.setattr(overoptimisation.reviews, "rl_prompts", lambda: prompts)
    forget()
    yield
    forget()


def forget():
    for name in ("pool", "proxy", "gold_pairs", "start_samples"):
        getattr(overoptimisation, name).cache_clear()


def run(settings):
    settings = settings | {"seed": 0, "labels": 12}
    config = overoptimisation.overoptimisation_config(settings)
    config = replace(config, steps=2, prompts_per_step=4, minibatch_size=16)
    return overoptimisation.overoptimisation_run(settings, config, lambda row: None)


def test_labels_are_drawn_from_gold():
    pairs = overoptimisation.gold_pairs("val", 200, 0)[:]
    gold = gold_judge()
    gap = gold(pairs["prompt"], pairs["chosen"]) - gold(pairs["prompt"], pairs["rejected"])
    torch.testing.assert_close(gap, torch.tensor(pairs["gap"]), rtol=0, atol=1e-5)
    expected = torch.sigmoid(gap.abs())  # chance that a label agrees with gold
    noise = (expected * (1 - expected)).sum().sqrt()
    assert abs((gap > 0).sum() - expected.sum()) < 4 * noise
    assert 0 < (gap < 0).sum() < 100


def test_pool_holds_each_response_with_its_own_scores():
    made = overoptimisation.pool()
    tokenizer = overoptimisation.load_policy(overoptimisation.POLICY)[1]
    texts = [text for part in made.parts for text in overoptimisation.decode(tokenizer, part)]
    assert made.columns["gold"].flatten().tolist() == gold_judge()(texts, texts).tolist()
    assert made.columns["length"].shape == (2, 16)
    assert len({tuple(part.prompt_ids[0].tolist()) for part in made.parts}) == 2


def test_gold_itself_is_the_best_proxy_for_gold():
    row, history = run(VARIANTS["gold itself"])
    assert [r["n"] for r in history] == [1, 4, 16] and history[1]["kl"] == best_of_n_kl(4)
    best = overoptimisation.pool().columns["gold"].amax(1)
    assert history[-1]["gold_by_prompt"] == overoptimisation.rounded(best.tolist())
    assert row == {"gold": history[-1]["gold"], "kl": history[-1]["kl"]}
    by_length = run(VARIANTS["the longest"])[1]
    assert by_length[0]["gold"] == pytest.approx(history[0]["gold"])  # n = 1 chooses nothing
    assert by_length[-1]["gold"] < history[-1]["gold"]
    assert by_length[-1]["length"] > history[-1]["length"]


def test_a_proxy_is_optimised_in_both_ways():
    row, history = run(VARIANTS["2 x 64, 200 labels"])
    ways = [r["way"] for r in history]
    assert ways == ["best-of-n"] * 3 + ["rl"] * 2
    proxy = [r["proxy"] for r in history if r["way"] == "best-of-n"]
    assert proxy == sorted(proxy)
    assert len(history[3]["texts"]) == 3 and history[4]["texts"] == []
    assert history[3]["kl"] == pytest.approx(0, abs=1e-4)  # before the first update
    assert history[4]["kl"] != 0
    assert 0 <= row["agreement"] <= 1 and row["loss"] > 0
    forget()
    assert run(VARIANTS["2 x 64, 200 labels"]) == (row, history)


def test_the_held_out_proxy_has_labels_of_its_own():
    run(VARIANTS["2 x 64, 200 labels"])
    mine, other = (overoptimisation.gold_pairs("reward", 12, seed)[:] for seed in (0, 10))
    assert not {*mine["chosen"], *mine["rejected"]} & {*other["chosen"], *other["rejected"]}


def test_members_of_an_ensemble_differ_and_a_kl_penalty_has_no_best_of_n():
    name = "3 x 192, 1000 labels"
    of_lowest, lowest = run(VARIANTS[f"{name}, lowest of 5"])
    of_mean, mean = run(VARIANTS[f"{name}, mean of 5"])
    assert of_lowest["start_proxy"] < of_mean["start_proxy"] == pytest.approx(0, abs=1e-5)
    assert "loss" not in of_mean and of_mean["start_gold"] == of_lowest["start_gold"]
    assert all(a["proxy"] < b["proxy"] for a, b in zip(lowest, mean, strict=True) if "n" in a)
    _, penalised = run(VARIANTS[f"{name}, kl_coef 0.1"])
    assert {r["way"] for r in penalised} == {"rl"}


def test_every_size_has_a_model():
    assert {v["size"] for v in VARIANTS.values() if "size" in v} == {*overoptimisation.SIZES}
    for variant in VARIANTS.values():
        overoptimisation.overoptimisation_config(variant | {"seed": 0})
