"""Every kind of run with one or two steps, the faults, and recorded and repeated experiments."""

import json
from collections import Counter
from dataclasses import replace

import pytest
import torch
from datasets import Dataset

from minirlhf.experiments import load_results, practice, preference_runs, recording, registry, runs
from minirlhf.experiments.faults import FAULTS, Fault
from minirlhf.experiments.records import record
from minirlhf.loops.config import KLConfig
from minirlhf.loops.ppo import PPOConfig
from minirlhf.loops.reward import RewardConfig
from minirlhf.models.forward import encode, policy_logprobs
from minirlhf.models.load import load_policy
from tests.tiny import tiny_policy, tiny_tokenizer

BRIEFLY = {"steps": 1, "batch_size": 4, "minibatch_size": 2, "epochs": 1}
SMALL = {"ppo": BRIEFLY}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Experiments of one or two variants of one step each, judged on two titles or forty pairs."""
    pairs = runs.reviews.preference_pairs
    monkeypatch.setattr(
        runs.reviews,
        "preference_pairs",
        lambda split, count, **given: pairs(split, min(count, 40), **given),
    )
    monkeypatch.setattr(runs.reviews, "eval_prompts", lambda split: ["a film\n", "another\n"])
    replaced(
        monkeypatch,
        {
            "leash": {"kl_coef 0": SMALL, "kl_coef 1": {"ppo": BRIEFLY | {"gamma": 0.9}}},
            "ablations": {"as it is": SMALL},
            "labels": {"4 pairs": {"pairs": 4}},
            "atlas": {
                variant: registry.EXPERIMENTS["atlas"][variant] | SMALL
                for variant in ("healthy", *FAULTS)
            },
        },
    )
    config = lambda settings: RewardConfig(seed=settings["seed"], steps=1, batch_size=4)
    monkeypatch.setitem(runs.RUNS, "labels", (config, runs.reward_run))


def replaced(monkeypatch, experiments):
    """Other experiments in the registry's place."""
    monkeypatch.setattr(runs, "EXPERIMENTS", experiments)
    monkeypatch.setattr(recording, "EXPERIMENTS", experiments)


def nothing(row):
    pass


def never(*given):
    raise AssertionError("a saved run was run again")


def test_an_experiment_is_recorded_resumed_and_a_row_repeated(tmp_path, monkeypatch):
    results = tmp_path / "results"
    for name in ("leash", "ablations", "labels"):
        recording.run_experiment(name, tmp_path, 2, results=results)
    rows = load_results("leash", folder=results)
    assert [(row["variant"], row["seed"]) for row in rows] == [
        (f"kl_coef {c}", s) for c in (0, 1) for s in (0, 1)
    ]
    assert {row["command"] for row in rows} == {"minirlhf experiment leash --seeds 2"}
    assert len(load_results("leash_history", folder=results)) == 4 and "gold_by_prompt" in rows[0]
    assert [row["pairs"] for row in load_results("labels", folder=results)] == [4, 4]
    with monkeypatch.context() as patch:  # a second time nothing is trained
        patch.setattr(runs, "train_ppo", never)
        patch.setattr(runs, "train_reward_model", never)
        for name in ("leash", "labels"):
            recording.run_experiment(name, tmp_path, 2, results=tmp_path / "again")
    assert load_results("leash", folder=tmp_path / "again") == rows
    for draw in range(3):
        which, wrong = recording.repeat_run(tmp_path / f"new-{draw}", draw=draw, results=results)
        assert "seed" in which and wrong == []
    for name, column in (("leash", "gold"), ("ablations", "gold"), ("labels", "loss")):
        changed = load_results(name, folder=results)
        for row in changed:
            row[column] += 5.0
        record(name, changed, folder=results)
    _, wrong = recording.repeat_run(tmp_path / "new-0", draw=0, results=results)
    assert len(wrong) == 1 and "recorded" in wrong[0]


def test_a_stopped_experiment_resumes_with_its_finished_runs(tmp_path, monkeypatch):
    replaced(monkeypatch, {"long": {"a": {"size": 1}, "b": {"size": 2}}})
    done = []

    def run(settings, config, on_step):
        if len(done) == 3 and stops:
            raise KeyboardInterrupt
        done.append((settings["size"], settings["seed"]))
        return {"gold": float(settings["size"])}, [{"step": 0}]

    monkeypatch.setattr(recording, "NAMES", ("long",))
    monkeypatch.setitem(runs.RUNS, "long", (lambda settings: None, run))
    stops = True
    with pytest.raises(KeyboardInterrupt):
        recording.run_experiment("long", tmp_path / "out", 2, results=tmp_path)
    assert done == [(1, 0), (1, 1), (2, 0)] and not list(tmp_path.glob("*.jsonl"))
    stops = False
    recording.run_experiment("long", tmp_path / "out", 2, results=tmp_path)
    assert done == [(1, 0), (1, 1), (2, 0), (2, 1)]  # only the missing one was run
    assert [row["gold"] for row in load_results("long", folder=tmp_path)] == [1.0, 1.0, 2.0, 2.0]
    assert len(load_results("long_history", folder=tmp_path)) == 4


def test_a_run_is_saved_by_its_settings_and_config(tmp_path):
    path, made = tmp_path / "x.json", []

    def make():
        made.append(len(made))
        return {"gold": float(len(made))}, []

    first = runs.saved(path, {"seed": 0, "config": PPOConfig()}, make)
    assert (
        runs.saved(path, {"seed": 0, "config": PPOConfig()}, make) == first == ({"gold": 1.0}, [])
    )
    assert runs.saved(path, {"seed": 1, "config": PPOConfig()}, make)[0] == {"gold": 2.0}
    assert runs.saved(path, {"seed": 1, "config": PPOConfig(lam=0.5)}, make)[0] == {"gold": 3.0}
    assert len(made) == 3 and json.loads(path.read_text())["config"]["seed"] == 1


def test_a_row_has_the_commit_of_its_own_run(tmp_path, monkeypatch):
    replaced(monkeypatch, {"long": {"a": {"size": 1}, "b": {"size": 2}}})
    commits = iter(["one", "two"])
    monkeypatch.setattr(runs, "commit", lambda: next(commits))
    monkeypatch.setattr(recording, "commit", lambda: "at the end")
    monkeypatch.setattr(recording, "NAMES", ("long",))
    run = lambda settings, config, on_step: ({"gold": 1.0}, [{"step": 0}])
    monkeypatch.setitem(runs.RUNS, "long", (lambda settings: None, run))
    for _ in range(2):  # the second time nothing is run, and the commits are the first ones
        recording.run_experiment("long", tmp_path / "out", 1, results=tmp_path)
        for name in ("long", "long_history"):
            rows = load_results(name, folder=tmp_path)
            assert [row["commit"] for row in rows] == ["one", "two"]
    path = tmp_path / "out" / "long" / "a-0.json"  # saved by an earlier version
    content = json.loads(path.read_text())
    del content["row"]["commit"]
    path.write_text(json.dumps(content))
    row, _ = runs.run_variant("long", "a", 0, path.parent, on_step=nothing)
    assert row == {"gold": 1.0, "commit": "unknown"}


def test_a_run_with_another_fault_of_the_same_name_is_made_again(tmp_path, monkeypatch):
    own = Fault(formulas={"response_values": never})
    assert len({fault.source() for fault in (*FAULTS.values(), Fault(), own)}) == len(FAULTS) + 2
    made = []
    replaced(monkeypatch, {"atlas": {"scaled": {"fault": "reward scale wrong"}}})
    run = lambda *given: (made.append(1) or {"gold": 1.0}, [])
    monkeypatch.setitem(runs.RUNS, "atlas", (lambda settings: None, run))
    for fault, count in ((None, 1), (None, 1), (Fault(score=FAULTS["dead critic"].score), 2)):
        if fault:
            monkeypatch.setitem(FAULTS, "reward scale wrong", fault)
        runs.run_variant("atlas", "scaled", 0, tmp_path, on_step=nothing)
        assert len(made) == count


def test_an_unknown_experiment_is_refused(tmp_path):
    with pytest.raises(ValueError, match="experiment is 'leesh'; it must be one of tour, reward_m"):
        recording.run_experiment("leesh", tmp_path)
    with pytest.raises(ValueError, match="seeds is 0; it must be at least 1"):
        recording.run_experiment("leash", tmp_path, 0)


def test_every_fault_changes_its_own_run_only(tmp_path, monkeypatch):
    started = []

    def untrained():
        started.append("without EOS")
        return load_policy("tiny-reviews")

    fault = replace(
        FAULTS["EOS never trained"], start=untrained
    )  # the real one trains for half a minute
    monkeypatch.setitem(FAULTS, "EOS never trained", fault)
    rows = {
        name: runs.run_variant("atlas", name, 0, tmp_path, on_step=nothing)[1][-1]
        for name in (*FAULTS, "healthy")
    }
    assert rows["dead critic"]["explained_variance"] == 0 != rows["healthy"]["explained_variance"]
    assert rows["reward scale wrong"]["score"] == pytest.approx(
        20 * rows["healthy"]["score"], rel=1e-4
    )
    assert rows["whitening at the optimum"]["score"] == 1
    assert started == ["without EOS"]


def test_the_kl_sign_fault_adds_the_kl_penalty_to_the_reward():
    old, ref = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-1.5, -1.0]])
    mask = torch.ones(1, 2, dtype=torch.bool)
    wrong = FAULTS["KL sign wrong"].formulas["kl_shaped_rewards"]
    # + (old - ref) instead of - (old - ref): -1 + 1.5 = 0.5 and -2 + 1 = -1
    assert wrong(torch.zeros(1), old, ref, mask, kl_coef=1.0).tolist() == [[0.5, -1.0]]


def test_the_missing_eos_fault_trains_sft_without_eos(monkeypatch):
    from minirlhf.experiments import faults

    def looks(model, tokenizer, dataset, config, *, formulas):
        texts = (["a film\n", "b\n"], ["Good.", "Rather long, and bad."])
        batch = formulas.encode(tokenizer, *texts, max_response=8)
        seen.append((batch.response_ids[batch.response_mask] == tokenizer.eos_token_id).any())
        return model, None

    seen = []
    monkeypatch.setattr(faults, "train_sft", looks)
    FAULTS["EOS never trained"].start()
    assert [bool(x) for x in seen] == [False]


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
    "longer": {
        "start": {"row": "start", "levels": (5,)},
        "grpo": {"row": "grpo", "given": SHORT, "levels": (5,)},
    },
    "dealt": {"all": {"row": "grpo", "given": SHORT, "dealt": True}},
    "hacking": {
        name: {"task": "reviews", "row": name, "given": SHORT | {"kl": KLConfig(kl_coef=0.1)}}
        for name in ("dr-grpo", "ppo")
    },
    "parts": {
        "REINFORCE": {"task": "reviews", "row": "reinforce", "given": SHORT},
        "with GAE": {"task": "reviews", "row": "ppo", "given": SHORT | registry.NO_REUSE},
    },
    "resources": {
        name: SMALL | choice
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


def test_the_preference_experiment_runs_and_is_recorded(tmp_path, monkeypatch):
    replaced(monkeypatch, {"preference": LIKED})
    probe = preference_runs.pair_probe

    def config(settings):
        made = preference_runs.preference_config(settings)
        smaller = {"rso": {"refresh": 1, "samples": 3}, "once": {"refresh": 1}}
        return replace(made, **smaller.get(settings.get("way"), {}))

    monkeypatch.setitem(runs.RUNS, "preference", (config, preference_runs.preference_run))
    prompts = ["a film\n", "another\n", "a third\n"]
    monkeypatch.setattr(preference_runs.reviews, "rl_prompts", lambda: prompts)
    monkeypatch.setattr(preference_runs, "pair_probe", lambda *given: probe(*given, count=6))
    recording.run_experiment("preference", tmp_path, 1, results=tmp_path / "results")
    rows = {row["variant"]: row for row in load_results("preference", folder=tmp_path / "results")}
    assert list(rows) == list(LIKED)
    probed = ("chosen_change", "rejected_change", "right_order")
    for row in rows.values():
        assert {*registry.COMPARED["preference"], "seconds", *probed} <= set(row)
        assert row["chosen_change"] != 0 and 0 <= row["right_order"] <= 1
    histories = load_results("preference_history", folder=tmp_path / "results")
    assert {row["variant"] for row in histories} == set(LIKED)
    assert all("chosen_change" in row for row in histories)


def test_the_order_of_held_out_pairs_is_counted_by_film(tmp_path, monkeypatch):
    replaced(monkeypatch, {"order": {"ipo": {"dpo": {"loss": "ipo", "steps": 2}}}})
    probe, drawn = preference_runs.pair_probe, []
    pairs = preference_runs.reviews.preference_pairs
    monkeypatch.setattr(
        preference_runs,
        "pair_probe",
        lambda model, tokenizer, split, count, **by: probe(model, tokenizer, split, 12, **by),
    )
    monkeypatch.setattr(
        preference_runs.reviews,
        "preference_pairs",
        lambda *a, **k: drawn.append((a, d := pairs(*a, **k))) or d,
    )
    recording.run_experiment("order", tmp_path, 1, results=tmp_path / "results")
    (row,), held_out = load_results("order", folder=tmp_path / "results"), drawn[1][1]
    assert [given for given, _ in drawn] == [
        ("reward", preference_runs.TourConfig.pairs),
        ("test", 12),
    ]
    assert all(key in row for key in registry.COMPARED["order"])
    assert {film: pairs for film, (_, pairs) in row["by_film"].items()} == Counter(
        held_out["prompt"]
    )
    assert sum(right for right, _ in row["by_film"].values()) / 12 == row["right_order"]


def test_the_pair_probe_gives_the_change_in_log_probability_by_hand(monkeypatch):
    start, moved, tokenizer = tiny_policy(0), tiny_policy(1), tiny_tokenizer()
    rows = [
        {"prompt": "f", "chosen": "good", "rejected": "bad"},
        {"prompt": "g", "chosen": "bad", "rejected": "so so"},
        {"prompt": "f", "chosen": "good", "rejected": "so so"},
    ]
    monkeypatch.setattr(
        preference_runs.reviews, "preference_pairs", lambda *a, **k: Dataset.from_list(rows)
    )
    got = preference_runs.pair_probe(start, tokenizer, by_film=True)(moved)

    def change(prompt, text):  # each pair by itself, without a batch
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
    assert 0 < sum(right) < 3  # some pairs are in the right order, others are not


def test_relabelled_pairs_follow_the_order_of_the_judge():
    pairs = Dataset.from_list(
        [
            {"prompt": "p", "chosen": "long one", "rejected": "a", "chosen_mean": 1.0},
            {"prompt": "p", "chosen": "a", "rejected": "long one", "chosen_mean": 1.0},
        ]
    )
    judged = preference_runs.relabelled(
        pairs, lambda prompts, texts: torch.tensor([float(len(t)) for t in texts])
    )
    assert judged[:] == {"prompt": ["p", "p"], "chosen": ["long one"] * 2, "rejected": ["a"] * 2}


@pytest.mark.parametrize("name", PRACTISED)
def test_the_group_and_ppo_experiments_run_and_are_recorded(name, tmp_path, monkeypatch):
    replaced(monkeypatch, PRACTISED)
    monkeypatch.setattr(practice, "ASKED", 4)
    problems = ["3+4*2=", "(5-2)*6=", "1+1+1="] * 50
    monkeypatch.setattr(practice, "practice_problems", lambda: problems)
    recording.run_experiment(name, tmp_path, 1, results=tmp_path)
    rows = load_results(name, folder=tmp_path)
    assert [row["variant"] for row in rows] == list(PRACTISED[name])
    for row in rows:
        assert all(key in row for key in registry.COMPARED[name])
        assert row["variant"] == "start" or row["seconds"] > row.get("sampling_seconds", 0) >= 0
        assert name == "resources" or row["variant"] == "start" or row["sampling_seconds"] > 0
    histories = load_results(f"{name}_history", folder=tmp_path)
    assert {row["variant"] for row in histories} == set(PRACTISED[name]) - {"start"}
    if name == "jitter":  # the score has noise, `right` has none
        assert histories[0]["right"] <= histories[0]["score"] < histories[0]["right"] + 1e-3
    if name == "dealt":  # the same scores, in another order
        assert histories[0]["right"] == histories[0]["score"]
    for trainer in ("train_ppo", "train_group"):  # a second time nothing is trained
        monkeypatch.setattr(runs, trainer, never)
    recording.run_experiment(name, tmp_path, 1, results=tmp_path / "again")
    assert load_results(name, folder=tmp_path / "again") == rows


def test_dealt_scores_are_those_of_the_batch_in_a_random_order():
    scores = torch.arange(32.0)
    first, again = (runs._dealt(lambda batch: scores, seed=0) for _ in range(2))
    batches = [first(None), first(None)]
    assert all(torch.equal(dealt.sort().values, scores) for dealt in batches)
    assert not torch.equal(batches[0], scores) and not torch.equal(*batches)
    assert torch.equal(again(None), batches[0])


def test_the_experiment_longer_asks_longer_problems(monkeypatch):
    asked = []
    monkeypatch.setattr(runs, "judged", lambda *given, **more: asked.append(more) or {})
    for name, variant in (("longer", "start"), ("family", "start")):
        settings = registry.EXPERIMENTS[name][variant] | {"seed": 0}
        runs.group_run(settings, runs.group_run_config(settings), never)
    assert asked[0]["levels"] == (5,) and "levels" not in asked[1]


def test_every_recorded_experiment_can_be_compared_and_configured():
    everything = registry.EXPERIMENTS
    assert set(everything) - {"atlas"} == set(registry.COMPARED) - {"tour"}
    assert set(runs.RUNS) <= set(everything)
    config = practice.group_config("arithmetic", "grpo")
    given = everything["family"]["ppo, 8 responses a prompt"]["given"]
    assert given["samples_per_prompt"] == config.group_size
    for name, variants in everything.items():
        configure, _ = runs.RUNS.get(name, (runs.ppo_config, runs.ppo_run))
        for settings in variants.values():
            json.dumps(settings | {"config": configure(settings | {"seed": 7})}, default=vars)
    faults = [s["fault"] for s in everything["atlas"].values() if "fault" in s]
    assert sorted(faults) == sorted(FAULTS)
