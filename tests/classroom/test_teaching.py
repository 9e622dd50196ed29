"""docs/teaching.md: its commands, and the numbers of its answers."""

import re
import subprocess

import pytest
import torch

from minirlhf import core
from minirlhf.classroom.check import EXERCISES
from minirlhf.classroom.mine import PLACES
from minirlhf.runtime import ROOT
from tests.tiny import needs_posix

PAGE = (ROOT / "docs" / "teaching.md").read_text(encoding="utf-8")


def test_the_homeworks_have_the_number_of_exercises_that_the_page_says():
    graded = [
        re.findall(r"--exercise (\w+)", command)
        for command in re.findall(r"^minirlhf grade (?:.*\\\n)*.*", PAGE, flags=re.M)
    ]
    assert {*sum(graded, [])} <= {*EXERCISES}
    assert " + ".join(str(len(names)) for names in graded) == "3 + 6 + 6"
    assert "3 + 6 + 6 = 15" in PAGE
    assert len({*graded[2]} & {*graded[0], *graded[1]}) == 4  # "grades four functions again"
    assert {*graded[2]} == {*PLACES}


def answers(name):
    """The two answers of the talk about a function."""
    return re.search(rf"^\| `{name}` \|(.*)\|(.*)\|$", PAGE, flags=re.M).groups()


def gradient(loss, *given):
    given = [x.clone().requires_grad_(True) for x in given]
    loss(*given).sum().backward()
    return [x.grad for x in given]


def test_the_answers_for_the_talk_have_the_numbers_of_the_functions():
    rewards, values = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.5, -0.5, 1.5]])
    real = torch.ones(1, 3).bool()
    advantages, _ = core.gae(rewards, values, real, gamma=0, lam=0.95)
    assert torch.equal(advantages, rewards - values) and "r − V" in answers("gae_advantages")[1]

    (slope,) = gradient(lambda r: -torch.sigmoid(r), torch.tensor(-5.0))
    (right,) = gradient(lambda r: -torch.nn.functional.logsigmoid(r), torch.tensor(-5.0))
    said = f"{-slope.item():.3f} instead of {-right.item():.3f}"
    assert said in answers("bradley_terry_loss")[0]

    near = torch.tensor([[1.001, 1.0]], dtype=torch.float64)
    plain, divided = (core.group_relative(near, scale_by_std=s)[0, 0] for s in (False, True))
    assert f"±{plain:.4f} instead of ±{divided:.2f}" in answers("group_advantages")[0]
    assert not core.group_relative(torch.zeros(1, 4)).any()

    chosen, rejected, ref_chosen, ref_rejected = (
        torch.tensor([-x]) for x in (20.0, 16.0, 21.0, 15.0)
    )
    whole = core.dpo(chosen, rejected, ref_chosen, ref_rejected, beta=0.5).item()
    without = core.dpo(chosen, rejected, 0 * chosen, 0 * chosen, beta=0.5).item()
    assert f"{without:.2f} instead of {whole:.2f}" in answers("dpo_loss")[0]


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_a_clip_of_0_stops_tokens_that_moved_the_right_way(advantage):
    old, advantages = torch.zeros(1, 3), torch.full((1, 3), advantage)
    moved = torch.tensor([[0.0, 0.01, -0.01]]) * advantage  # not yet, right way, wrong way

    def clipped_to_0(logprobs):
        ratio = (logprobs - old).exp()
        return -torch.minimum(ratio * advantages, ratio.clamp(1, 1) * advantages)

    (pushes,) = gradient(clipped_to_0, moved)
    assert (pushes[0] != 0).tolist() == [True, False, True]


@needs_posix
def test_the_loop_over_moodles_folders_leaves_students_of_the_same_name_apart(tmp_path):
    loop = re.search(r"```sh\n(for folder.*?)```", PAGE, flags=re.S)[1]
    same = [f"Anna Smith_{n}_assignsubmission_file" for n in (12, 34)]
    for name in (*same, "Ben Li_5_assignsubmission_file_"):
        (tmp_path / name).mkdir()
    done = subprocess.run(["sh", "-c", loop], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.splitlines() == [f"rename by hand: {name}" for name in same]
    assert sorted(p.name for p in tmp_path.iterdir()) == [*same, "Ben Li"]
