import json
from collections import Counter
from dataclasses import replace

import pytest
import torch
from datasets import Dataset

from minirlhf.classroom.claims import load_results, record
from minirlhf.core.kl import kl_shaped_rewards
from minirlhf.experiments import practice, runs
from minirlhf.experiments import recording as grid
from minirlhf.experiments.faults import FAULTS
from minirlhf.loops import ppo
from minirlhf.loops.config import KLConfig
from minirlhf.loops.ppo import PPOConfig
from minirlhf.models.forward import encode, policy_logprobs
from minirlhf.models.load import load_policy
from tests.tiny import tiny_policy, tiny_tokenizer

RECORDED = grid.VARIANTS
SMALL = {"steps": 1, "batch_size": 4, "minibatch_size": 2, "epochs": 1}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Every experiment with two variants of a step each, judged on two titles or forty pairs."""
    pairs = runs.reviews.preference_pairs
    monkeypatch.setattr(
        runs.reviews,
        "preference_pairs",
        lambda split, count, **given: pairs(split, min(count, 40), **given),
    )
    monkeypatch.setattr(
        grid,
        "VARIANTS",
        {
            "leash": {"kl_coef 0": SMALL, "kl_coef 1": SMALL | {"gamma": 0.9}},
            "ablations": {"as it is": SMALL},
            "labels": {"4 pairs": {"pairs": 4}},
            "atlas": {name: SMALL for name in ("healthy", *FAULTS)},
        },
    )
    monkeypatch.setattr(runs, "RewardConfig", lambda seed: grid_reward(seed))
    monkeypatch.setattr(runs.reviews, "eval_prompts", lambda split: ["a film\n", "another\n"])


def grid_reward(seed):
    from minirlhf.loops.reward import RewardConfig

    return RewardConfig(seed=seed, steps=1, batch_size=4)


def nothing(row):
    pass


def test_an_experiment_is_recorded_resumed_and_one_of_its_rows_compared(tmp_path, monkeypatch):
    results = tmp_path / "results"
    for name in ("leash", "ablations", "labels"):
        grid.record_variants(name, tmp_path / name, 2, on_step=nothing, results=results)
    rows = load_results("leash", folder=results)
    assert [(row["variant"], row["seed"]) for row in rows] == [
        (f"kl_coef {c}", s) for c in (0, 1) for s in (0, 1)
    ]
    assert len(load_results("leash_history", folder=results)) == 4 and "gold_by_prompt" in rows[0]
    assert [row["pairs"] for row in load_results("labels", folder=results)] == [4, 4]
    with monkeypatch.context() as patch:  # a second run trains nothing
        patch.setattr(runs, "train_ppo", None)
        patch.setattr(runs, "train_reward_model", None)
        for name in ("leash", "labels"):
            grid.record_variants(
                name, tmp_path / name, 2, on_step=nothing, results=tmp_path / "again"
            )
    assert load_results("leash", folder=tmp_path / "again") == rows
    for draw in range(3):
        which, wrong = grid.rerun_variant(
            tmp_path / f"new-{draw}", draw=draw, on_step=nothing, results=results
        )
        assert "seed" in which and wrong == []
    for name, keys in (("leash", "gold"), ("ablations", "gold"), ("labels", "loss")):
        changed = load_results(name, folder=results)
        for row in changed:
            row[keys] += 5.0
        record(name, changed, folder=results)
    _, wrong = grid.rerun_variant(tmp_path / "new-0", draw=0, on_step=nothing, results=results)
    assert len(wrong) == 1 and "recorded" in wrong[0]


def test_other_settings_are_another_run(tmp_path):
    first = runs.ppo_run(tmp_path / "x.json", SMALL, nothing)
    again = runs.ppo_run(tmp_path / "x.json", SMALL, nothing)
    other = runs.ppo_run(tmp_path / "x.json", SMALL | {"seed": 1}, nothing)
    assert first[0]["gold"] == again[0]["gold"] and first[1] == again[1] and other[1] != first[1]
    assert json.loads((tmp_path / "x.json").read_text())["config"]["seed"] == 1


def test_every_fault_is_in_its_run_and_gone_afterwards(tmp_path, monkeypatch):
    import minirlhf.experiments.faults as faults

    started = []

    def untaught(name):
        started.append(name)
        return load_policy("tiny-reviews")

    monkeypatch.setitem(
        FAULTS, "EOS never trained", {"experiments.runs.load_policy": untaught}
    )  # its own takes half a minute
    rows = {
        name: grid.run_variant("atlas", name, 0, tmp_path, on_step=nothing)[1][-1]
        for name in ("healthy", *FAULTS)
    }
    assert rows["dead critic"]["explained_variance"] == 0
    assert rows["reward scale wrong"]["score"] == pytest.approx(
        20 * rows["healthy"]["score"], rel=1e-4
    )
    assert rows["whitening at the optimum"]["score"] == 1
    assert started == ["tiny-reviews-sft"]
    assert ppo.kl_shaped_rewards is kl_shaped_rewards and runs.load_policy is load_policy
    assert runs.rollout_score is faults.rollout_score


def test_the_kl_sign_is_turned():
    old, ref = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-1.5, -1.0]])
    mask = torch.ones(1, 2, dtype=torch.bool)
    wrong = FAULTS["KL sign wrong"]["loops.ppo.kl_shaped_rewards"](
        torch.zeros(1), old, ref, mask, kl_coef=1.0
    )
    assert wrong.tolist() == [[0.5, -1.0]]  # + (old - ref): paid for drifting


def test_sft_without_eos_never_sees_one(monkeypatch):
    import minirlhf.experiments.faults as faults
    import minirlhf.loops.sft as sft

    seen = []

    def looks(model, tokenizer, dataset, config):
        batch = sft.encode(
            tokenizer, ["a film\n", "b\n"], ["Good.", "Rather long, and bad."], max_response=8
        )
        seen.append(
            (batch.response_ids[batch.response_mask] == tokenizer.eos_token_id).any().item()
        )
        return model, None

    monkeypatch.setattr(faults, "train_sft", looks)
    FAULTS["EOS never trained"]["experiments.runs.load_policy"]("tiny-reviews-sft")
    assert seen == [False]


SHORT = {"steps": 1}
PRACTISED = {  # each kind of run of lesson 10 and 11, a step long
    "family": {
        "start": {"row": "start"},
        "remax": {"row": "remax", "given": SHORT},
        "ppo": {"row": "ppo", "given": SHORT | {"critic_warmup": 1}},
        "ppo, 8": {"row": "ppo", "given": SHORT | {"samples_per_prompt": 8}},
    },
    "jitter": {
        "dropped": {"row": "grpo", "choices": {"drop_spread": 0.01}, "given": SHORT, "jitter": 1e-3}
    },
    "hacking": {
        name: {"task": "reviews", "row": name, "given": SHORT | {"kl": KLConfig(kl_coef=0.1)}}
        for name in ("dr-grpo", "ppo")
    },
    "resources": {
        name: {"config": PPOConfig(**SMALL)} | choice
        for name, choice in (
            ("shared", {"critic": "shared"}),
            ("sft", {"critic": "sft"}),
            ("adapters", {"lora": 2}),
        )
    },
}


LIKED = {
    "dpo": {"dpo": {"steps": 1}},
    "kto": {"dpo": {"loss": "kto", "steps": 1}},
    "synced": {"dpo": {"steps": 2, "sync_every": 1}},
    "labels": {"way": "relabelled", "dpo": {"steps": 1}},
    "once": {"way": "once", "dpo": {"steps": 1}},
    "rso": {"way": "rso", "dpo": {"steps": 1, "batch_size": 2}},
    "best": {"way": "imitated"},
}


def test_the_experiment_of_part_three_runs_and_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(grid, "VARIANTS", {"preference": LIKED})
    monkeypatch.setattr(runs.reviews, "rl_prompts", lambda: ["a film\n", "another\n", "a third\n"])
    online, probe = runs.OnlineConfig, runs.pair_probe
    monkeypatch.setattr(
        runs, "OnlineConfig", lambda **given: online(**given | {"refresh": 1})
    )
    monkeypatch.setattr(
        runs, "ONLINE", {"rso": replace(runs.ONLINE["rso"], refresh=1, samples=3)}
    )
    monkeypatch.setattr(runs, "pair_probe", lambda *given: probe(*given, count=6))
    grid.record_variants("preference", tmp_path, 1, on_step=nothing, results=tmp_path / "results")
    rows = {row["variant"]: row for row in load_results("preference", folder=tmp_path / "results")}
    assert list(rows) == list(LIKED)
    for row in rows.values():
        assert all(
            key in row
            for key in (
                *grid.COMPARED["preference"],
                "seconds",
                "chosen_change",
                "rejected_change",
                "right_order",
            )
        )
        assert row["chosen_change"] != 0 and 0 <= row["right_order"] <= 1
    histories = load_results("preference_history", folder=tmp_path / "results")
    assert {row["variant"] for row in histories} == set(LIKED) and all(
        "chosen_change" in row for row in histories
    )


def test_the_order_of_held_out_pairs_is_counted_film_by_film(tmp_path, monkeypatch):
    monkeypatch.setattr(grid, "VARIANTS", {"order": {"ipo": {"dpo": {"loss": "ipo", "steps": 2}}}})
    probe, drawn, pairs = runs.pair_probe, [], runs.reviews.preference_pairs
    monkeypatch.setattr(
        runs,
        "pair_probe",
        lambda model, tokenizer, split, count, **by: probe(model, tokenizer, split, 12, **by),
    )
    monkeypatch.setattr(
        runs.reviews,
        "preference_pairs",
        lambda *a, **k: drawn.append((a, d := pairs(*a, **k))) or d,
    )
    grid.record_variants("order", tmp_path, 1, on_step=nothing, results=tmp_path / "results")
    (row,), held_out = load_results("order", folder=tmp_path / "results"), drawn[1][1]
    assert [given for given, _ in drawn] == [("reward", runs.TourConfig.pairs), ("test", 12)]
    assert all(key in row for key in grid.COMPARED["order"])
    assert {film: pairs for film, (_, pairs) in row["by_film"].items()} == Counter(
        held_out["prompt"]
    )
    assert sum(right for right, _ in row["by_film"].values()) / 12 == row["right_order"]


def test_a_probe_asks_by_how_much_each_side_moved(monkeypatch):
    start, moved, tokenizer = tiny_policy(0), tiny_policy(1), tiny_tokenizer()
    rows = [
        {"prompt": "f", "chosen": "good", "rejected": "bad"},
        {"prompt": "g", "chosen": "bad", "rejected": "so so"},
        {"prompt": "f", "chosen": "good", "rejected": "so so"},
    ]
    monkeypatch.setattr(runs.reviews, "preference_pairs", lambda *a, **k: Dataset.from_list(rows))
    got = runs.pair_probe(start, tokenizer, by_film=True)(moved)

    def change(prompt, text):  # alone, without a batch
        one = encode(tokenizer, [prompt], [text])
        return (policy_logprobs(moved, one) - policy_logprobs(start, one)).sum().item()

    changes = [
        [change(row["prompt"], row[side]) for row in rows] for side in ("chosen", "rejected")
    ]
    right = [c > r for c, r in zip(*changes, strict=True)]
    assert got["chosen_change"] == pytest.approx(sum(changes[0]) / 3, abs=1e-4)
    assert got["rejected_change"] == pytest.approx(sum(changes[1]) / 3, abs=1e-4)
    assert got["right_order"] == pytest.approx(sum(right) / 3) and got["by_film"] == {
        "f": [right[0] + right[2], 2],
        "g": [right[1], 1],
    }
    assert 0 < sum(right) < 3  # both kinds are there


def test_relabelled_pairs_are_the_same_texts_as_the_judge_orders_them():
    pairs = Dataset.from_list(
        [
            {"prompt": "p", "chosen": "long one", "rejected": "a", "chosen_mean": 1.0},
            {"prompt": "p", "chosen": "a", "rejected": "long one", "chosen_mean": 1.0},
        ]
    )
    judged = runs.relabelled(
        pairs, lambda prompts, texts: torch.tensor([float(len(t)) for t in texts])
    )
    assert judged[:] == {"prompt": ["p", "p"], "chosen": ["long one"] * 2, "rejected": ["a"] * 2}


@pytest.mark.parametrize("name", PRACTISED)
def test_the_experiments_of_part_two_run_and_are_kept(name, tmp_path, monkeypatch):
    monkeypatch.setattr(grid, "VARIANTS", PRACTISED)
    monkeypatch.setattr(practice, "ASKED", 4)
    monkeypatch.setattr(
        practice, "practice_problems", lambda: ["3+4*2=", "(5-2)*6=", "1+1+1="] * 50
    )
    grid.record_variants(name, tmp_path / name, 1, on_step=nothing, results=tmp_path)
    rows = load_results(name, folder=tmp_path)
    assert [row["variant"] for row in rows] == list(PRACTISED[name])
    for row in rows:
        assert all(key in row for key in grid.COMPARED[name])
        assert row["variant"] == "start" or row["seconds"] > row.get("sampling_seconds", 0) >= 0
    histories = load_results(f"{name}_history", folder=tmp_path)
    assert {row["variant"] for row in histories} == set(PRACTISED[name]) - {"start"}
    if name == "jitter":  # the score trembles, what is right does not
        assert histories[0]["right"] <= histories[0]["score"] < histories[0]["right"] + 1e-3
    for trainer in ("train_ppo", "train_group"):  # a second run trains nothing
        monkeypatch.setattr(runs, trainer, None)
    grid.record_variants(name, tmp_path / name, 1, on_step=nothing, results=tmp_path / "again")
    assert load_results(name, folder=tmp_path / "again") == rows


def test_the_experiments_that_are_recorded_are_those_that_can_be_compared():
    recorded = RECORDED
    assert set(recorded) - {"atlas"} == set(grid.COMPARED) - {"tour"}
    config = practice.group_config("arithmetic", "grpo")
    assert (
        recorded["family"]["ppo, 8 responses a prompt"]["given"]["samples_per_prompt"]
        == config.group_size
    )
