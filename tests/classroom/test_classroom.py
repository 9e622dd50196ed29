import json

import pytest
import torch

from minirlhf.classroom import check, claims

DIFFERENT = {  # right answers written in another way
    "best_of_n": lambda s, n: torch.tensor([max(range(i, i + n), key=lambda j: s[j].item()) for i in range(0, len(s), n)]),
    "kl_penalised_score": lambda s, a, b, m, k: torch.stack(
        [s[i] - k * sum(((a - b)[i][t] for t in range(a.shape[1]) if m[i, t]), torch.tensor(0.0)) for i in range(len(s))]),
    "eos_mask": lambda ids, e: torch.tensor(
        [[e not in row[:t] for t in range(len(row))] for row in ids.tolist()]),
    "score_of_text": lambda s, m: torch.stack([row[keep][-1] for row, keep in zip(s, m, strict=True)]),
}


@pytest.mark.parametrize("name", check.EXERCISES)
@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_right_answers_pass_and_every_listed_mistake_is_named(name, seed):
    exercise = check.EXERCISES[name]
    assert exercise(exercise.reference, seed=seed)
    assert exercise(DIFFERENT[name], seed=seed)
    for sentence, wrong in exercise.mistakes.items():
        result = exercise(wrong, seed=seed)
        assert not result and result.message == sentence


@pytest.mark.parametrize("name", check.EXERCISES)
def test_blank_broken_and_random_answers_fail_with_one_sentence(name):
    exercise = check.EXERCISES[name]

    def raises(*a):
        raise KeyError("oops")

    def in_place(*a):
        a[0].zero_()
        return exercise.reference(*a)

    def random(*a):
        return torch.rand(exercise.reference(*a).shape)

    for function, said in ((lambda *a: None, "NoneType"), (raises, "KeyError"), (in_place, "in place"), (random, "it gives"),
                           (lambda *a: exercise.reference(*a)[:1], "shape"), (lambda *a: [1, 2], "list"),
                           (lambda *a: exercise.reference(*a).double() * torch.nan, "nan")):
        result = exercise(function)
        assert not result and said in result.message and "\n" not in result.message


def test_a_claim_prints_its_evidence_or_fails(capsys):
    claims.claim("PPO scores higher.", True, evidence="0.8 [0.6, 1.0]", seeds=3)
    assert "PPO scores higher." in capsys.readouterr().out
    with pytest.raises(claims.ClaimFailed, match="Not borne out"):
        claims.claim("PPO scores higher.", False, evidence="-0.1")


def test_results_are_recorded_whole_and_read_back(tmp_path):
    row = {"claim": "x", "seed": 0, "commit": "abc", "command": "minirlhf grid", "gold": 1.0}
    claims.record("x", [row], folder=tmp_path)
    assert claims.load_results("x", folder=tmp_path) == [row]
    with pytest.raises(ValueError, match="Nothing is recorded as 'y'"):
        claims.load_results("y", folder=tmp_path)
    (tmp_path / "z.jsonl").write_text(json.dumps({"claim": "z"}) + "\n")
    with pytest.raises(ValueError, match="lacks seed, commit, command"):
        claims.load_results("z", folder=tmp_path)


def test_a_rerun_that_differs_is_told():
    assert claims.differences({"gold": 1.0}, {"gold": 1.05}, tolerance={"gold": 0.1}) == []
    assert claims.differences({"gold": 1.0}, {"gold": 2.0}, tolerance={"gold": 0.1}) == ["gold: recorded 1, now 2, allowed 0.1"]


def test_fast_reads_the_record_and_a_full_run_computes(monkeypatch):
    monkeypatch.setattr(claims, "FAST", False)
    assert claims.evidence(lambda: [{"live": True}], "none") == [{"live": True}]
    monkeypatch.setattr(claims, "FAST", True)
    with pytest.raises(ValueError, match="Nothing is recorded"):
        claims.evidence(lambda: [{"live": True}], "none")
