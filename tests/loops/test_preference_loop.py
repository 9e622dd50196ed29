"""The loops of offline and online preference optimisation: first values, references, learning."""

import copy
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from minirlhf.core.logprobs import sequence_logprobs
from minirlhf.loops import online as module
from minirlhf.loops import preference
from minirlhf.loops.config import OptimiserConfig
from minirlhf.loops.online import ONLINE, OnlineConfig, pairs_of, train_online
from minirlhf.loops.preference import (
    LOSSES,
    DPOConfig,
    preference_step,
    reference_for,
    sync,
    train_dpo,
)
from minirlhf.models.adapters import BelowAdapter
from minirlhf.models.forward import encode, policy_logits, policy_logprobs
from minirlhf.models.sampling import SamplingConfig
from minirlhf.tasks.formats import unpaired
from tests.loops.test_loops import PAIRS, PROMPTS, first_half
from tests.tiny import tiny_policy, tiny_tokenizer

FAST, SHORT = OptimiserConfig(lr=1e-3), SamplingConfig(max_new_tokens=6, temperature=1.0)
LN2 = math.log(2)
AT_THE_START = {  # the loss if the policy equals the reference; losses without a reference are left out
    "dpo": LN2,
    "cdpo": LN2,
    "robust": LN2,
    "ipo": 25.0,
    "ipo-mean": 0.25,
    "hinge": 1.0,
    "dpop": LN2,
    "nca": 2 * LN2,
    "tdpo": LN2,
    "kto": 0.5,
}


def run(loss="dpo", *, data=PAIRS, seed=0, **given):
    model = tiny_policy(seed)
    config = DPOConfig(loss, **{"steps": 20, "batch_size": 9, "optimiser": FAST} | given)
    return train_dpo(model, tiny_tokenizer(), data, config)


def margins(model, start):
    """The change in log-probability, good minus bad, for two responses that no training pair holds."""
    batch = encode(tiny_tokenizer(), ["new prompt"] * 2, ["aea", "xyx"])
    after, before = (
        sequence_logprobs(policy_logprobs(m, batch), batch.response_mask) for m in (model, start)
    )
    good, bad = (after - before).tolist()
    return good - bad


@pytest.mark.parametrize("loss", LOSSES)
def test_each_loss_has_its_known_first_value_and_learns_the_preference(loss):
    model, history = run(loss)
    if loss in AT_THE_START:
        assert history[0]["loss"] == pytest.approx(AT_THE_START[loss], abs=1e-5)
        assert history[0]["rewards/margins"] == 0 and history[0]["displaced"] == 0
    else:
        assert "displaced" not in history[0]
    assert history[-1]["loss"] < history[0]["loss"]
    assert margins(model, tiny_policy()) > 1
    shuffled = PAIRS.map(
        lambda row, i: {"chosen": row["rejected"], "rejected": row["chosen"]} if i % 2 else row,
        with_indices=True,
    )
    assert (
        abs(margins(run(loss, data=shuffled)[0], tiny_policy())) < margins(model, tiny_policy()) / 2
    )


def test_logged_rewards_and_loss_by_hand():
    # one pair, two steps: its rewards at the second step are beta times the change in its
    # log-probabilities since the first
    first, second = run(data=PAIRS.select([0]), steps=2, batch_size=1, beta=0.5)[1]
    changed = {
        side: second[f"logps/{side}"] - first[f"logps/{side}"] for side in ("chosen", "rejected")
    }
    assert first["logps/chosen"] < 0 and all(
        second[f"rewards/{side}"] == pytest.approx(0.5 * changed[side], abs=1e-4)
        for side in changed
    )
    assert second["rewards/margins"] == pytest.approx(
        second["rewards/chosen"] - second["rewards/rejected"], abs=1e-6
    )
    assert second["rewards/accuracies"] == float(second["rewards/margins"] > 0) == 1.0
    assert second["displaced"] == float(second["rewards/chosen"] < 0)
    assert second["loss"] == pytest.approx(
        math.log1p(math.exp(-second["rewards/margins"])), abs=1e-5
    )


def moved():
    """(a trained policy, its reference, a function that gives the log-probabilities of responses)."""

    def logprobs(model, prompts, responses):
        batch = encode(tiny_tokenizer(), prompts, responses, max_response=32)
        return sequence_logprobs(policy_logprobs(model, batch), batch.response_mask), batch

    return (
        run("orpo", data=PAIRS.select(range(4)), optimiser=OptimiserConfig(lr=1e-2))[0],
        tiny_policy().requires_grad_(False),
        logprobs,
    )


def gradients(model):
    return [p.grad for p in model.parameters()]


def test_a_step_of_tdpo_by_hand():
    (policy, reference, logprobs), rows = moved(), PAIRS[:3]
    policy.zero_grad()
    again, sides = copy.deepcopy(policy), []
    log = preference_step(policy, reference, tiny_tokenizer(), rows, DPOConfig("tdpo"))
    for side in ("chosen", "rejected"):
        (new, batch), old = (
            logprobs(again, rows["prompt"], rows[side]),
            logprobs(reference, rows["prompt"], rows[side])[0],
        )
        p, q = (policy_logits(model, batch).log_softmax(-1) for model in (again, reference))
        kl = torch.where(batch.response_mask, (q.exp() * (q - p)).sum(-1), 0.0).sum(
            1
        )  # forward: the reference first
        sides.append((new - old, kl))
    (won, won_kl), (lost, lost_kl) = sides
    loss = -torch.nn.functional.logsigmoid(
        0.1 * (won - lost - 0.5 * (lost_kl - won_kl.detach()))
    ).mean()
    loss.backward()
    assert won_kl.min() > 0.05 and log["loss"].item() == pytest.approx(loss.item(), abs=1e-5)
    for one, other in zip(gradients(policy), gradients(again), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def test_a_step_of_kto_by_hand():
    (policy, reference, logprobs), rows = moved(), unpaired(PAIRS.select([0, 4, 8]))[:]
    log = preference_step(policy, reference, tiny_tokenizer(), rows, DPOConfig("kto"))
    gain, apart = (
        logprobs(policy, prompts, rows["completion"])[0]
        - logprobs(reference, prompts, rows["completion"])[0]
        for prompts in (rows["prompt"], rows["prompt"][-1:] + rows["prompt"][:-1])
    )  # z: each response under the prompt of the row before
    z, up = apart.mean().clamp(min=0), torch.tensor(rows["label"])
    assert (
        z > 0.01 and abs(z - gain.mean().clamp(min=0)) > 1e-3
    )  # z is neither 0 nor the value with the right prompts
    assert log["loss"].item() == pytest.approx(
        torch.sigmoid(torch.where(up, -0.1, 0.1) * (gain - z)).mean().item(), abs=1e-6
    )


def test_a_batch_is_counted_in_pairs(monkeypatch):
    seen, step = [], preference.preference_step
    monkeypatch.setattr(
        preference,
        "preference_step",
        lambda *a, **k: seen.append(len(a[3]["prompt"])) or step(*a, **k),
    )
    run("kto", steps=1, batch_size=4), run("dpo", steps=1, batch_size=4)
    run("dpo", data=PAIRS.add_column("label", [True] * len(PAIRS)), steps=1, batch_size=4)
    assert seen == [
        8,
        4,
        4,
    ]  # KTO: two single responses for each pair; a label column does not make DPO into KTO


def test_kto_accepts_unpaired_rows():
    pairs, single = run("kto", steps=4)[1], run("kto", steps=4, data=unpaired(PAIRS))[1]
    assert pairs == single and "rewards/accuracies" not in pairs[0]
    only_good = Dataset.from_list(
        [{"prompt": p, "completion": "aaa", "label": True} for p in PROMPTS]
    )
    history = run("kto", steps=2, data=only_good, batch_size=2)[1]
    assert "rewards/rejected" not in history[0] and "rewards/margins" not in history[0]


def test_updating_the_reference_at_every_step_keeps_the_loss_at_ln_two():
    history = run(sync_every=1)[1]
    assert all(
        row["loss"] == pytest.approx(LN2, abs=1e-6) and row["rewards/margins"] == 0
        for row in history
    )
    soft, kept = run(sync_every=1, mixup=0.5)[1], run()[1]
    assert 0 < soft[-1]["rewards/margins"] < kept[-1]["rewards/margins"]
    # with sync_every=2 the first two steps equal those of a fixed reference; then the margin is 0 again
    two = run(sync_every=2)[1]
    assert two[:2] == kept[:2] and two[2]["rewards/margins"] == 0 and two[3]["rewards/margins"] != 0


def test_updating_the_reference_does_not_change_the_given_model():
    given = tiny_policy().requires_grad_(False)
    before = copy.deepcopy(given.state_dict())
    config = DPOConfig(steps=3, batch_size=9, sync_every=1, optimiser=FAST)
    train_dpo(tiny_policy(), tiny_tokenizer(), PAIRS, config, reference=given)
    assert all(torch.equal(before[key], value) for key, value in given.state_dict().items())


def test_a_model_below_its_adapter_is_no_reference_that_can_be_updated():
    below = BelowAdapter(tiny_policy())
    with pytest.raises(ValueError, match="cannot update a model below its adapter"):
        reference_for(tiny_policy(), DPOConfig(sync_every=1), below)


def test_simpo_logs_rewards_per_token():
    pair = Dataset.from_list(
        [{"prompt": "p", "chosen": "aaaaaaa", "rejected": "x"}]
    )  # 8 and 2 tokens with EOS
    row = run("simpo", data=pair, steps=1, batch_size=1)[1][0]
    assert row["rewards/chosen"] == pytest.approx(2 * row["logps/chosen"] / 8, rel=1e-5)
    assert row["rewards/rejected"] == pytest.approx(2 * row["logps/rejected"] / 2, rel=1e-5)


def test_sync_mixes_the_weights_by_hand():
    a, b = torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(a.weight, 8.0), torch.nn.init.constant_(b.weight, 4.0)
    sync(a, b, 0.25)  # 1/4 * 4 + 3/4 * 8
    assert a.weight.item() == 7.0 and b.weight.item() == 4.0


def test_precomputing_reference_log_probabilities_gives_the_same_history():
    for one, other in zip(run()[1], run(precompute=True)[1], strict=True):
        assert all(one[key] == pytest.approx(other[key], abs=1e-5) for key in one if key != "stage")


def test_reference_free_dpo_is_cpo_without_its_nll_term():
    free, cpo = run(reference_free=True)[1], run("cpo", settings={"nll_coef": 0.0})[1]
    assert [row["loss"] for row in free] == pytest.approx([row["loss"] for row in cpo], abs=1e-6)
    assert free[0]["rewards/chosen"] == pytest.approx(0.1 * free[0]["logps/chosen"], abs=1e-5)


def test_beta_and_settings_of_the_loss():
    assert DPOConfig().of_loss == {"beta": 0.1} and DPOConfig(beta=0.5).of_loss == {"beta": 0.5}
    assert DPOConfig("simpo").of_loss == {"beta": 2.0, "margin": 1.0}
    assert DPOConfig("dpop", settings={"penalty": 50.0}).of_loss == {"beta": 0.1, "penalty": 50.0}


@pytest.mark.parametrize(
    "given, said",
    [
        ({"loss": "ppo"}, "loss is 'ppo'; it must be one of dpo, cdpo"),
        ({"settings": {"penalty": 1.0}}, "settings is"),
        ({"beta": 0.0}, "beta is 0"),
        ({"sync_every": -1}, "sync_every is -1"),
        ({"mixup": 0.0}, "mixup is 0"),
        ({"mixup": 1.5}, "mixup is 1.5"),
        (
            {"loss": "dpop", "settings": {"penalty": math.nan}},
            "penalty is nan; it must be a finite number",
        ),
        ({"loss": "dpop", "settings": {"penalty": None}}, "penalty is None"),
        ({"mixup": 0.3}, "mixup is 0.3; it must be above 0, at most 1; 1 without sync_every"),
        ({"loss": "simpo", "reference_free": True}, "it has no reference"),
        ({"loss": "cdpo", "settings": {"label_smoothing": 0.7}}, "label_smoothing is 0.7"),
        ({"loss": "dpop", "settings": {"penalty": -1.0}}, "penalty is -1.0"),
        ({"settings": {"beta": -1.0}}, "beta is -1.0"),
        ({"beta": 0.1, "settings": {"beta": 0.2}}, "given once"),
        ({"loss": "simpo", "sync_every": 5}, "without a reference"),
        ({"loss": "kto", "precompute": True}, "precompute is True"),
        ({"sync_every": 5, "precompute": True}, "precompute is True"),
        ({"loss": "tdpo", "reference_free": True}, "reference_free is True"),
    ],
)
def test_inconsistent_settings_are_refused(given, said):
    with pytest.raises(ValueError, match=said):
        DPOConfig(**given)


def test_the_page_of_losses_lists_every_loss_with_its_formula_and_settings():
    text = (Path(__file__).parents[2] / "docs" / "losses.md").read_text(encoding="utf-8")
    rows = {}
    for title in ("The formulas", "Settings"):
        section = text.split(f"## {title}")[1].split("\n## ")[0]
        rows[title] = {
            cells[0].strip("`"): cells
            for line in section.splitlines()
            if line.startswith("| `") and (cells := line.strip("| ").split(" | "))
        }
        assert list(rows[title]) == list(LOSSES)
    for name, row in LOSSES.items():
        settings = ", ".join(f"{key} {value}" for key, value in row.settings.items())
        assert rows["Settings"][name][-1] == settings, name
        for key in {*row.settings} - {"beta", "label_smoothing"}:
            assert key in rows["The formulas"][name][1], (name, key)
    minima = text.split("## Where each loss is smallest")[1].split("\n## ")[0]
    solved = re.findall("^[|] (`.*?) [|]", minima, re.M)
    assert {*re.findall("`(\\w+)`", " ".join(solved)), "ipo-mean"} == {*LOSSES}


# ---- online: pairs of the policy's own samples
def test_pairs_of_samples_by_hand():
    texts, scores = ["a", "b", "c", "d", "d", "d"], torch.tensor([2.0, 5.0, 1.0, 0.0, 3.0, 1.0])
    best = pairs_of(["p", "q"], texts, scores, OnlineConfig(samples=3))
    assert best == {
        "prompt": ["p"],
        "chosen": ["b"],
        "rejected": ["c"],
    }  # all responses to q are equal
    assert pairs_of(["p"], texts[:3], torch.ones(3), OnlineConfig(samples=3)) == {
        "prompt": [],
        "chosen": [],
        "rejected": [],
    }
    sharp = OnlineConfig(samples=3, pick="rejection", accept_beta=1e-6)
    assert pairs_of(["p"], texts[:3], scores[:3], sharp) == {
        "prompt": ["p"],
        "chosen": ["b"],
        "rejected": ["a"],
    }  # the two best


def online(name="online-dpo", score=first_half):
    own = replace(ONLINE[name].dpo, batch_size=32, beta=0.3, optimiser=OptimiserConfig(lr=1e-2))
    config = replace(
        ONLINE[name], samples=8, missing_eos_penalty=0.0, sampling=SHORT, dpo=own
    ).with_steps(40)
    return train_online(tiny_policy(), tiny_tokenizer(), PROMPTS, score, config)


@pytest.mark.parametrize("name", ONLINE)
def test_each_online_method_raises_the_score_of_its_samples(name):
    def after(score):
        model, history = online(name, score)
        probe = OnlineConfig(sampling=SHORT, dpo=DPOConfig(steps=1, batch_size=96))
        return train_online(model, tiny_tokenizer(), PROMPTS, first_half, probe)[1][0][
            "score"
        ], history

    (trained, history), (control, _) = (
        after(first_half),
        after(lambda r: torch.rand(len(r.response_ids))),
    )
    assert trained > 0.65 > 0.58 > control
    assert history[0]["loss"] == pytest.approx(1.0 if name == "rso" else LN2, abs=1e-5)
    assert [row["step"] for row in history if "score" in row] == list(
        range(0, 40, min(ONLINE[name].refresh, 40))
    )


def test_an_online_step_logs_monitors_and_updates_the_reference():
    own = DPOConfig(steps=4, batch_size=32, sync_every=1, optimiser=FAST)
    config = OnlineConfig(samples=4, sampling=SHORT, dpo=own)
    half = {"half": lambda r: 0.5 * first_half(r)}
    _, history = train_online(
        tiny_policy(), tiny_tokenizer(), PROMPTS, first_half, config, monitors=half
    )
    for row in history:
        assert row["loss"] == pytest.approx(LN2, abs=1e-6) and row["rewards/margins"] == 0
        assert row["half"] == pytest.approx(row["score"] / 2, abs=1e-6)
    assert history[0]["entropy"] == pytest.approx(
        math.log(257), abs=0.1
    )  # nats a token: the random policy is nearly uniform


def test_the_missing_eos_penalty_lowers_the_score_of_unfinished_responses(monkeypatch):
    told, pairs = [], module.pairs_of
    monkeypatch.setattr(
        module,
        "pairs_of",
        lambda asked, texts, worth, *a: told.append(worth) or pairs(asked, texts, worth, *a),
    )

    def score(rollout):
        told.append(rollout.finished(0))
        return torch.arange(len(rollout.response_ids)).float()

    config = OnlineConfig(
        samples=4,
        missing_eos_penalty=3.0,
        dpo=DPOConfig(steps=1, batch_size=256),
        sampling=SamplingConfig(max_new_tokens=60, temperature=1.0),
    )
    train_online(tiny_policy(positions=96), tiny_tokenizer(), PROMPTS * 90, score, config)
    finished, worth = told
    assert 50 < finished.sum() < len(finished) - 50
    assert torch.equal(worth, torch.arange(len(finished)).float() - 3.0 * ~finished)


def test_a_step_without_pairs_does_not_change_the_weights():
    before = copy.deepcopy(tiny_policy().state_dict())
    model, history = online(score=lambda r: torch.zeros(len(r.response_ids)))
    assert all(row["pairs"] == 0 and "loss" not in row for row in history)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    "given, said",
    [
        ({"samples": 1}, "samples is 1"),
        ({"refresh": 0}, "refresh is 0"),
        ({"pick": "worst"}, "pick is 'worst'"),
        ({"accept_beta": 0.0}, "accept_beta is 0"),
        ({"missing_eos_penalty": -1.0}, "missing_eos_penalty is -1"),
        ({"dpo": DPOConfig("kto")}, "a loss of pairs"),
        ({"dpo": DPOConfig(precompute=True)}, "precompute"),
    ],
)
def test_inconsistent_online_settings_are_refused(given, said):
    with pytest.raises(ValueError, match=said):
        OnlineConfig(**given)


def test_the_refresh_interval_is_at_most_the_number_of_steps():
    assert (
        ONLINE["rso"].with_steps(7).refresh == 7
        and ONLINE["iterative-dpo"].with_steps(7).refresh == 7
    )
    assert (
        ONLINE["iterative-dpo"].with_steps(50).refresh == 25
        and ONLINE["online-dpo"].with_steps(7).refresh == 1
    )
