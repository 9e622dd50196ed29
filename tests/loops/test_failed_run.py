"""A run that an error ends is saved as it was before the step that failed."""

import random
import re

import pytest
import torch

import minirlhf.loops.checkpoint_file as files
from minirlhf.loops.checkpoint import Checkpoint
from tests.loops import test_checkpoint as runs

FIRST_HALF = runs.first_half


def failing(step, call):
    """The score of the runs, which fails in this step, when it is called for this time in it."""
    steps = []

    def score(rollout):
        steps.append(int(rollout.step[0]))
        if steps.count(step) == call:
            random.random()  # what was drawn before an error must not count
            torch.rand(1)
            raise ValueError("no number")
        return FIRST_HALF(rollout)

    return score


@pytest.mark.parametrize(
    "loop, step, call",
    [
        ("ppo", 3, 1),
        ("reinforce", 3, 1),
        ("remax", 3, 2),  # the greedy responses
        ("online", 4, 1),
        ("online", 4, 2),  # the prompts of a later step
    ],
)
def test_a_run_whose_score_failed_resumes_to_identical_weights(
    loop, step, call, tmp_path, monkeypatch, capsys
):
    path, train = tmp_path / "run.safetensors", runs.LOOPS[loop]
    whole = train()
    with monkeypatch.context() as patch:
        patch.setattr(runs, "first_half", failing(step, call))
        with pytest.raises(ValueError, match="no number") as error, Checkpoint(path) as checkpoint:
            train(checkpoint=checkpoint)
    (note,) = error.value.__notes__
    assert note == (
        f"The run as it was before step {step} is saved in {path}. Mend the cause, then run the "
        "same command with --resume (in Python resume=True)."
    )
    steps = []
    checkpoint = Checkpoint(path, resume=True)
    again = train(checkpoint=checkpoint, on_step=lambda row: steps.append(row["step"]))
    assert runs.equal(whole, again) and steps[0] == step
    assert f"Changed since step {step}: the score (the reward function" in capsys.readouterr().out


def test_an_error_in_the_first_step_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "first_half", failing(0, 1))
    with pytest.raises(ValueError) as error, Checkpoint(tmp_path / "c.safetensors") as checkpoint:
        runs.LOOPS["reinforce"](checkpoint=checkpoint)
    assert not hasattr(error.value, "__notes__") and not [*tmp_path.iterdir()]


def test_an_error_after_an_update_leaves_the_last_save(tmp_path):
    path, whole = tmp_path / "c.safetensors", runs.LOOPS["reinforce"]()
    saves = iter([0.0, 1e9, 1e9, 1e9])

    def raises(row):
        checkpoint.every = next(saves)
        if row["step"] == 2:
            raise KeyError("step")

    with pytest.raises(KeyError) as error, Checkpoint(path) as checkpoint:
        runs.LOOPS["reinforce"](checkpoint=checkpoint, on_step=raises)
    assert f"The run as it was before step 1 is in {path}. Mend" in error.value.__notes__[0]
    steps = []
    again = runs.LOOPS["reinforce"](
        checkpoint=Checkpoint(path, resume=True), on_step=lambda row: steps.append(row["step"])
    )
    assert runs.equal(whole, again) and steps[0] == 1


def test_what_may_be_damaged_is_not_saved(tmp_path, monkeypatch):
    def damaged(rollout):
        if int(rollout.step[0]) == 2:
            raise FloatingPointError("nan")
        return FIRST_HALF(rollout)

    monkeypatch.setattr(runs, "first_half", damaged)
    with pytest.raises(FloatingPointError), Checkpoint(tmp_path / "c.safetensors") as checkpoint:
        runs.LOOPS["reinforce"](checkpoint=checkpoint)
    assert not [*tmp_path.iterdir()]


def test_a_run_that_cannot_be_saved_after_an_error_is_kept_elsewhere(tmp_path, monkeypatch):
    path, save = tmp_path / "c.safetensors", files.save_file

    def full_once(tensors, file, **given):
        monkeypatch.setattr(files, "save_file", save)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "save_file", full_once)
    monkeypatch.setattr(runs, "first_half", failing(3, 1))
    with pytest.raises(ValueError) as error, Checkpoint(path) as checkpoint:
        runs.LOOPS["reinforce"](checkpoint=checkpoint)
    kept = re.search(r"the run is saved in (\S+). Move that file to", error.value.__notes__[0])[1]
    assert files.read_file(kept)[0]["step"] == 3 and not path.exists()


def test_a_smaller_micro_batch_may_go_on(tmp_path, capsys):
    path = tmp_path / "c.safetensors"
    runs.sft(checkpoint=Checkpoint(path))
    header, tensors = files.read_file(path)
    header["config"]["optimiser.micro_batch"] = 1
    files.write_file(path, header, tensors)
    runs.sft(checkpoint=Checkpoint(path, resume=True))
    assert "the micro-batch, which rounds differently" in capsys.readouterr().out
