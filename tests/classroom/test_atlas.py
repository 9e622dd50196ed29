import pytest

from minirlhf.classroom import atlas
from minirlhf.experiments import EXPERIMENTS, load_results

KEY = atlas._names()


def test_the_runs_are_shown_without_their_names_and_each_once():
    runs = atlas.runs()
    assert list(runs) == list("ABCDE") and {
        atlas.RECORDED.get(name, name) for name in atlas.CLUES
    } == set(EXPERIMENTS["atlas"])
    assert set(KEY.values()) == set(atlas.CLUES) - set(atlas.NAMED) and len(KEY) == 5
    assert all(
        len(rows) == 24 and [row["step"] for row in rows] == list(range(24))
        for rows in runs.values()
    )
    assert not any(
        name in str(row)
        for rows in runs.values()
        for row in rows
        for name in (*atlas.CLUES, *atlas.RECORDED.values())
    )


def test_right_diagnoses_get_the_reasons_and_a_wrong_one_is_told_what_such_a_run_looks_like():
    reasons = [f"{x} is '{name}'. In such a run {atlas.CLUES[name]}" for x, name in KEY.items()]
    for order in (KEY, dict(reversed(KEY.items()))):
        assert " ".join(atlas.diagnosed(order).split()) == " ".join(["5 of 5.", *reasons])
    assert max(map(len, atlas.diagnosed(KEY).splitlines())) <= 100
    first = dict([next(iter(KEY.items()))])
    assert atlas.diagnosed(first) == "1 of 5."
    for letter, name in KEY.items():
        for said in set(atlas.CLUES) - {name}:
            answer = " ".join(atlas.diagnosed(KEY | {letter: said}).split())
            assert answer == f"4 of 5. {letter} is not '{said}'. In such a run {atlas.CLUES[said]}"
            assert atlas.CLUES[name] not in answer
    assert atlas.diagnosed({}) == "0 of 5."


@pytest.mark.parametrize("answers", [{"I": "healthy"}, {"A": "fine"}])
def test_an_unknown_letter_or_diagnosis_is_refused(answers):
    assert (
        "not yet" in (said := atlas.diagnosed(answers))
        and "The letters are A, B" in said
        and "\n" not in said
    )


def test_every_clue_is_true_of_the_record():
    logs = {
        name: [row for row in load_results("atlas_history") if row["variant"] == name]
        for name in EXPERIMENTS["atlas"]
    }

    def column(name, key):
        return [row[key] for row in logs[name]]

    others = {name: [n for n in logs if n != name] for name in logs}
    healthy = logs["healthy"]
    assert (
        healthy[-1]["score"] - healthy[0]["score"] > 0.8
        and healthy[-1]["gold"] - healthy[0]["gold"] > 0.6
    )
    assert max(column("healthy", "kl")) < 3 and healthy[-1]["explained_variance"] > 0.6
    assert healthy[-1]["value_loss"] < healthy[0]["value_loss"] / 5
    dead = column("dead critic", "value_loss")
    assert 0.22 < dead[0] / healthy[0]["value_loss"] < 0.28 and min(dead[1:]) > 1.4 * dead[0]
    assert (
        column("hacked", "kl")[-1] > 60
        and max(column("hacked", "gold")) > column("hacked", "gold")[-1] + 0.5
    )
    assert column("hacked", "entropy")[-1] < 0.2 * column("hacked", "entropy")[0]
    assert (
        column("collapsed", "kl")[1] > 20
        and min(column("collapsed", "entropy")) < 0.01
        and max(column("collapsed", "length")[5:12]) < 7
    )
    assert (
        max(column("collapsed", "clip_fraction")[:2])
        > 0.3
        > max(max(column(n, "clip_fraction")) for n in others["collapsed"])
    )
    assert set(column("dead critic", "explained_variance")) == {0.0}
    assert all(0.0 not in column(name, "explained_variance") for name in others["dead critic"])
    kl = column("KL sign wrong", "kl")
    assert (
        kl[-1] > 200
        and kl[-1] - kl[12] > 50
        and min(column("KL sign wrong", "missing_eos")[10:]) > 0.85
    )
    assert (
        max(column("reward scale wrong", "score"))
        > 30
        > 5 * max(max(column(n, "score")) for n in others["reward scale wrong"])
    )
    assert column("reward scale wrong", "value_loss")[0] > 50 * max(
        column(n, "value_loss")[0] for n in others["reward scale wrong"]
    )
    assert (
        column("EOS never trained", "missing_eos")[0] > 0.7
        and column("EOS never trained", "missing_eos")[-1] < 0.2
    )
    assert all(column(name, "missing_eos")[0] < 0.1 for name in others["EOS never trained"])
    flat = logs["whitening at the optimum"]
    assert {row["score"] for row in flat} == {1.0} and 1 < max(row["kl"] for row in flat) < 1.2
    assert flat[-1]["value_loss"] < healthy[-1]["value_loss"] / 2
    assert min(row["length"] for row in flat) > 0.75 * flat[0]["length"]
