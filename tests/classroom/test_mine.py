import json
import os
import signal
import sys
from pathlib import Path

import pytest
import torch

from minirlhf.classroom import own_file
from minirlhf.classroom.check import EXERCISES
from minirlhf.classroom.mine import PLACES, described, load_mine, supervised, tour_formulas
from minirlhf.classroom.own_file import reward_of
from minirlhf.loops import PPOFormulas
from minirlhf.tasks import reviews
from minirlhf.tour import Tour, TourFormulas
from tests.tiny import tiny_tour

WHOLE = """
import torch
from torch.nn.functional import logsigmoid, pad

def gae_advantages(rewards, values, mask, gamma, lam):
    rewards, values = torch.where(mask, rewards, 0.0), torch.where(mask, values, 0.0)
    ahead, out = 0.0, torch.zeros_like(rewards)
    for t in reversed(range(rewards.shape[1])):
        following = values[:, t + 1] if t + 1 < rewards.shape[1] else 0.0
        ahead = torch.where(mask[:, t], rewards[:, t] + gamma * following - values[:, t] + gamma * lam * ahead, 0.0)
        out[:, t] = ahead
    return out

def ppo_loss(logprobs, old_logprobs, advantages, mask, eps):
    ratio = torch.where(mask, logprobs - old_logprobs, 0.0).exp()
    advantages = torch.where(mask, advantages, 0.0)
    return torch.max(-ratio * advantages, -ratio.clamp(1 - eps, 1 + eps) * advantages)

def kl_shaped_rewards(scores, old_logprobs, ref_logprobs, mask, kl_coef):
    rewards = -kl_coef * torch.where(mask, old_logprobs - ref_logprobs, 0.0)
    return rewards.scatter_add(1, mask.sum(1, keepdim=True) - 1, scores[:, None])

def bradley_terry_loss(chosen_scores, rejected_scores):
    return -logsigmoid(chosen_scores - rejected_scores).mean()

def group_advantages(group_scores):
    centred = group_scores - group_scores.mean(1, keepdim=True)
    equal = group_scores.amax(1, keepdim=True) == group_scores.amin(1, keepdim=True)
    return torch.where(equal, 0.0, centred) / (group_scores.std(1, keepdim=True) + 1e-4)

def dpo_loss(chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs, beta):
    return -logsigmoid(beta * (chosen_logprobs - ref_chosen_logprobs - rejected_logprobs + ref_rejected_logprobs))
"""


@pytest.fixture
def whole(tmp_path):
    path = tmp_path / "my_rlhf.py"
    path.write_text(WHOLE)
    return path


def test_every_place_has_an_exercise_and_a_formula_of_that_name():
    assert set(PLACES) <= set(EXERCISES)
    for _, _, formula, stages in PLACES.values():
        for stage in stages:
            assert callable(getattr(getattr(TourFormulas(), stage), formula))


def test_a_tour_with_the_students_six_functions_is_the_tour(whole, tmp_path, monkeypatch):
    titles = reviews.rl_prompts()[:64]
    monkeypatch.setattr(reviews, "rl_prompts", lambda: titles)
    for judged in ("_accuracy", "_evaluate"):  # only what is trained is compared
        monkeypatch.setattr(Tour, judged, lambda self, checkpoint: [])
    mine, config = load_mine(whole), tiny_tour()
    assert list(mine) == list(PLACES)
    called = {name: 0 for name in mine}

    def counted(name, function):
        def call(*given):
            called[name] += 1
            return function(*given)

        return call

    formulas = tour_formulas({name: counted(name, f) for name, f in mine.items()})
    theirs = Tour(tmp_path / "theirs", config, formulas=formulas, mine=described(mine, whole))
    theirs.run()
    package = Tour(tmp_path / "package", config)
    package.run()
    assert all(called.values()), called
    for one, other in zip(theirs.history, package.history, strict=True):
        assert one.keys() == other.keys()
        for key in ("loss", "score", "kl", "policy_loss", "value_loss"):
            if key in one:
                assert one[key] == pytest.approx(other[key], rel=1e-3, abs=1e-4), (
                    key,
                    one["stage"],
                    one["step"],
                )
    note = json.loads((tmp_path / "theirs" / "ppo.json").read_text())["settings"]["formulas"]
    assert set(note) == {"ppo gae", "ppo ppo_clip", "ppo kl_shaped_rewards"} | {
        "reward reward_model_loss"  # PPO's score comes from it
    }
    note = json.loads((tmp_path / "theirs" / "sft.json").read_text())["settings"]
    assert "formulas" not in note  # no function of the student's is used there


def test_another_version_of_a_function_is_another_run(whole):
    def replaced():
        return Tour("nowhere", formulas=tour_formulas(load_mine(whole)))._replaced({"ppo", "dpo"})

    before = replaced()
    assert replaced() == before
    whole.write_text(WHOLE.replace("ahead, out = 0.0,", "ahead, out = 0.0 * 1,"))
    after = replaced()
    changed = {k for k in before["formulas"] if before["formulas"][k] != after["formulas"][k]}
    assert changed == {"ppo gae"}
    assert Tour("nowhere")._replaced({"ppo"}) == {}


def test_a_function_without_a_source_is_always_a_new_run():
    formulas = TourFormulas(ppo=PPOFormulas(gae=eval("lambda *a, **k: None")))
    run = Tour("nowhere", formulas=formulas)
    first = run._replaced({"ppo"})
    assert "unknown source" in first["formulas"]["ppo gae"] and run._replaced({"ppo"}) != first


def test_what_is_blank_or_missing_is_the_packages(tmp_path):
    path = tmp_path / "my_rlhf.py"
    path.write_text(WHOLE.split("def ppo_loss")[0] + "\ndef ppo_loss(*given): ...\n")
    assert list(load_mine(path)) == ["gae_advantages"]
    assert (
        "gae_advantages (my_rlhf.py" in described(load_mine(path), path)
        and described({}, None) == ""
    )


@pytest.mark.parametrize(
    "source, said",
    [
        ("def gae_advantages(r, v, m, g, lam): return r\n", "gae_advantages: "),
        (
            WHOLE.replace("old_logprobs - ref_logprobs", "ref_logprobs - old_logprobs"),
            "kl_shaped_rewards: ",
        ),
        ("def gae(:\n", "SyntaxError"),
        ("raise KeyError('x')\n", "KeyError"),
        ("x = 1\n", r"at least one, with a body"),
        ("def dpo_loss(*given): ...\n", "at least one, with a body"),
    ],
)
def test_what_is_wrong_stops_the_tour_with_one_sentence(tmp_path, source, said):
    path = tmp_path / "my_rlhf.py"
    path.write_text(source)
    with pytest.raises(ValueError, match=said):
        load_mine(path)


def test_no_file_says_what_it_may_hold(tmp_path):
    with pytest.raises(ValueError, match=r"gae_advantages \(lesson 05\)"):
        load_mine(tmp_path / "nowhere.py")


def test_a_file_of_another_kind_is_no_python_file(tmp_path):
    path = tmp_path / "my_rlhf.txt"
    path.write_text("x = 1\n")
    with pytest.raises(ValueError, match=r"a Python file's name ends in \.py"):
        load_mine(path)


def test_a_loss_of_ones_own_is_not_centred(whole):
    loss = tour_formulas(load_mine(whole)).reward.reward_model_loss
    with pytest.raises(ValueError, match="centering_coef"):
        loss(torch.zeros(2), torch.zeros(2), centering_coef=0.1)


FORMULA = "def dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta):\n    "


@pytest.mark.parametrize(
    "source, said",
    [
        ("x = 1\nexit()", "cannot be run: it ends Python, by exit() or sys.exit() (line 2)"),
        ("import sys\nsys.exit(0)", "it ends Python, by exit() or sys.exit() (line 2)"),
        ("raise KeyboardInterrupt", "cannot be run: KeyboardInterrupt (line 1)"),
        ("raise BaseException('odd')", "cannot be run: BaseException: odd (line 1)"),
        ("while True:\n    pass", "cannot be run: it did not finish within 1 seconds."),
        (
            "while True:\n    try:\n        while True: pass\n    except Exception: pass",
            "it did not finish within 1 seconds.",
        ),
        ("import no_such_package", "No module named 'no_such_package' (line 1)"),
        ("x = 1\ndef f(:", "SyntaxError: invalid syntax"),
        ("x = 1\ndef f(:", "(line 2)"),
        ("1 / 0", "ZeroDivisionError: division by zero (line 1)"),
        ("import json\nx = 1\njson.loads('[')", "(line 3)"),  # not line 1, of the JSON text
        (
            "class Odd(Exception):\n    def __str__(self):\n        1 / 0\nraise Odd",
            "cannot be run: Odd: (a Odd that cannot be shown) (line 4)",
        ),
        ("def f(): f()\nf()", "RecursionError: maximum recursion depth exceeded"),
        ("x = '\\0", "SyntaxError"),
        ("def dpo(a): return a", "functions is ['dpo']; it must be at least one"),
        ("dpo_loss = 3", "functions is []; it must be at least one"),
        (FORMULA + "exit()", "is not ready. dpo_loss: it ends Python, by exit() or sys.exit()"),
        (FORMULA + "raise KeyboardInterrupt", "is not ready. dpo_loss: KeyboardInterrupt"),
        (FORMULA + "while True: pass", "dpo_loss: it did not finish within 1 seconds."),
        ("import os\nos.chdir('/')", "it changes the working folder for all code that runs"),
        ("import torch\ntorch.autocast('cpu').__enter__()", "it changes torch's autocast for all"),
        ("import torch\ntorch.set_float32_matmul_precision('medium')", "precision of float32"),
        ("import sys\nsys.path.clear()\nimport nowhere", "ModuleNotFoundError"),
        (
            "import torch\ntorch.set_default_dtype(torch.float64)",
            "it changes torch's default dtype",
        ),
        ("import torch\ntorch.set_grad_enabled(False)", "whether torch computes gradients"),
    ],
)
def test_a_file_that_misbehaves_ends_in_one_sentence(source, said, tmp_path, monkeypatch):
    monkeypatch.setattr(supervised.__wrapped__, "__defaults__", (1.0,))
    path, before = tmp_path / "my_rlhf.py", (os.getcwd(), torch.get_default_dtype())
    path.write_text(source)
    with pytest.raises(ValueError) as error:
        load_mine(path)
    text = str(error.value)
    assert text.startswith("my_rlhf.py") and said in text and "\n" not in text, text
    assert before == (os.getcwd(), torch.get_default_dtype()) and torch.is_grad_enabled()


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="Windows has no such timer")
def test_a_time_limit_that_ends_while_the_error_is_told_does_not_break_it_off(
    tmp_path, monkeypatch
):
    told = own_file._told

    def slow(*args):
        signal.raise_signal(signal.SIGALRM)
        return told(*args)

    monkeypatch.setattr(own_file, "_told", slow)
    path = tmp_path / "my_rlhf.py"
    path.write_text("1 / 0")
    with pytest.raises(ValueError, match="ZeroDivisionError: division by zero"):
        load_mine(path)


def test_a_file_may_print_and_import_its_neighbour(tmp_path, capsys):
    (tmp_path / "neighbour.py").write_text(WHOLE)
    path = tmp_path / "my_rlhf.py"
    path.write_text(
        "from neighbour import *\nprint('hello')\nfor i in range(9999): print('x' * 99)"
    )
    assert list(load_mine(path)) == list(PLACES)
    said = capsys.readouterr().out
    assert said.startswith("hello") and len(said) < 11_000 and "more output" in said


def test_a_student_who_is_not_a_number_is_named_once(whole, monkeypatch):
    monkeypatch.setenv("MINIRLHF_STUDENT", "anna")
    with pytest.raises(ValueError, match="^MINIRLHF_STUDENT is 'anna'; it must be a whole number"):
        load_mine(whole)


@pytest.mark.parametrize("source, line", [("x = 1\n1 / 0", 2), ("\n\nexit()", 3), ("a b", 1)])
def test_a_relative_path_keeps_the_line_of_the_error(source, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("bad.py").write_text(source)
    for path in ("bad.py", "./bad.py", f"../{tmp_path.name}/bad.py"):
        with pytest.raises(ValueError, match=rf"bad\.py cannot be run: .*\(line {line}\)"):
            reward_of(Path(path))
        assert "_own_bad" not in sys.modules


def test_a_reward_may_hold_dataclasses_and_import_its_neighbour_late(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "late_neighbour.py").write_text("PAID = 0.5\n")
    path = tmp_path / "own.py"
    path.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n\n"
        "@dataclass\nclass Rule:\n    paid: float\n\n"
        "def reward(completions, **columns):\n    import late_neighbour\n"
        "    return [Rule(late_neighbour.PAID).paid for _ in completions]\n"
    )
    assert reward_of(path)(completions=["a", "b"]) == [0.5, 0.5]
