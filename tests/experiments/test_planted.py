"""Locating planted errors and the model's own errors: the cases and the run."""

import torch

from minirlhf.experiments import planted
from minirlhf.experiments.practice import LEVELS
from minirlhf.loops.verifier import VerifierConfig
from minirlhf.models.load import load_policy
from minirlhf.tasks import arithmetic

SMALL = {
    "problems": 40,
    "asked": 40,
    "dpo": {"steps": 2, "batch_size": 4},
    "verifier": VerifierConfig(steps=2, batch_size=4),
}


def test_each_case_is_wrong_only_at_the_marked_step():
    policy, tokenizer = load_policy("tiny-steps")
    asked = arithmetic.problems("test", 40, levels=LEVELS)
    for row in planted.planted_pairs(asked, 0):
        assert all(arithmetic.steps_right(row["prompt"], row["chosen"]))
        at = row["place"]
        assert (
            row["rejected"][:at] == row["chosen"][:at] and row["rejected"][at] != row["chosen"][at]
        )
    answers = {p.prompt: p.answer for p in asked}
    pairs = planted.own_pairs(policy, tokenizer, asked, 0)
    assert len(pairs) > 10
    for row in pairs:
        assert (
            arithmetic.answer_of(row["chosen"])
            == answers[row["prompt"]]
            != arithmetic.answer_of(row["rejected"])
        )
    faulty = planted.false_steps(policy, tokenizer, asked, 0, 15)
    assert len(faulty) == 15 and len({(row["prompt"], row["rejected"]) for row in faulty}) == 15
    for row in faulty:
        steps = arithmetic.steps_right(row["prompt"], row["rejected"])
        assert len(steps) > 1 and [i for i, right in enumerate(steps) if not right] == [row["step"]]


def test_the_run_reports_how_often_each_method_locates_an_error(monkeypatch):
    monkeypatch.setattr(planted, "LOCATED", SMALL)
    for texts in ("planted", "own"):
        settings = {"texts": texts, "seed": 0}
        config = planted.planted_config(settings)
        row, history = planted.planted_run(settings, config, lambda row: None)
        assert (
            history == [] and row["planted, cases"] == 40 and 0.05 < row["planted, by chance"] < 0.2
        )
        assert (
            row["planted, surprisal"] > 0.8
        )  # the committed model alone locates far more than chance
        for name in ("planted", "own"):
            for evidence in ("surprisal", "implicit reward", "surprisal after DPO", "value"):
                low, high = row[f"{name}, {evidence}, interval"]
                assert 0 <= low <= row[f"{name}, {evidence}"] <= high <= 1


def test_the_evidence_by_hand():
    policy, tokenizer = load_policy("tiny-steps")
    pairs = planted.planted_pairs(arithmetic.problems("test", 8, levels=LEVELS), 0)
    batch = planted.encode(tokenizer, pairs["prompt"], pairs["rejected"])
    torch.manual_seed(0)
    verifier, _ = planted.train_verifier(
        load_policy("tiny-steps")[0].base_model,
        tokenizer,
        planted.unpaired(pairs.select_columns(["prompt", "chosen", "rejected"])),
        VerifierConfig(steps=1, batch_size=4),
    )
    found = planted.evidence_of(policy, policy, verifier, batch)
    assert found["implicit reward"].eq(0).all() and torch.equal(
        found["surprisal"], found["surprisal after DPO"]
    )
    values = planted.prefix_logits(verifier, batch)[0].sigmoid()
    torch.testing.assert_close(
        found["value"].sum(1), values[:, -1] - values[:, 0]
    )  # the changes of all steps add up to the total change in value
