"""A run killed before, during or after a save resumes to the weights of an uninterrupted run."""

import os
import random
import re
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from functools import partial

import pytest
import torch
from datasets import Dataset

import minirlhf.loops.checkpoint as module
import minirlhf.loops.checkpoint_file as files
from minirlhf.cli import report
from minirlhf.loops.checkpoint import Checkpoint, Stopped
from minirlhf.loops.config import KLConfig
from minirlhf.loops.family import FAMILY
from minirlhf.loops.gold import GoldConfig, train_gold
from minirlhf.loops.group import GroupConfig, train_group
from minirlhf.loops.losses import DPOFormulas
from minirlhf.loops.online import OnlineConfig, train_online
from minirlhf.loops.ppo import PPOConfig, train_ppo
from minirlhf.loops.preference import DPOConfig, train_dpo
from minirlhf.loops.pretrain import PretrainConfig, new_gpt2, train_base
from minirlhf.loops.process_reward import PRMConfig, train_prm
from minirlhf.loops.reward import RewardConfig, train_reward_model
from minirlhf.loops.sft import SFTConfig, train_sft
from minirlhf.loops.step_dpo import StepDPOConfig, train_step_dpo
from minirlhf.loops.verifier import VerifierConfig, train_verifier
from minirlhf.models.heads import ScalarModel
from minirlhf.models.sampling import SamplingConfig, sample
from minirlhf.tasks.arithmetic import step_tokenizer
from minirlhf.tasks.calculator import Calculator, agent_tokenizer
from minirlhf.tasks.reviews import Review
from tests.tiny import needs_posix, tiny_policy, tiny_tokenizer

PROMPTS = ["one", "a second", "3", "four"]
PAIRS = Dataset.from_list(
    [{"prompt": p, "chosen": "aa" + p, "rejected": "xx", "completion": "ok"} for p in PROMPTS]
)
TEXTS = [f"sentence number {i} of a small corpus." for i in range(40)]
SHORT, ADAPTIVE = SamplingConfig(max_new_tokens=5), KLConfig(kl_coef=0.1, target=0.5, horizon=50.0)


def first_half(rollout):
    noise = 0.1 * random.random()  # a reward may draw from Python's generator
    return ((rollout.response_ids < 129) & rollout.response_mask).sum(
        1
    ) / rollout.response_mask.sum(1) + noise


def sft(model=None, **on):
    return train_sft(
        model or tiny_policy(), tiny_tokenizer(), PAIRS, SFTConfig(batch_size=2, epochs=3), **on
    )


def reward(**on):  # with dropout: the state of its random generator is saved too
    return train_reward_model(
        tiny_policy().base_model, tiny_tokenizer(), PAIRS, RewardConfig(batch_size=4, steps=6), **on
    )


def gold(**on):
    reviews = [Review(t, "m", "gold", (3, 3), True) for t in PROMPTS]
    return train_gold(
        tiny_policy().base_model,
        tiny_tokenizer(),
        reviews,
        GoldConfig(batch_size=2, epochs=3),
        **on,
    )


def dpo(**on):
    return train_dpo(tiny_policy(), tiny_tokenizer(), PAIRS, DPOConfig(batch_size=2, steps=6), **on)


def kto(**on):  # with a reference that moves: its weights are saved too
    config = DPOConfig("kto", batch_size=2, steps=6, sync_every=2, mixup=0.5)
    return train_dpo(
        tiny_policy(),
        tiny_tokenizer(),
        PAIRS,
        config,
        reference=tiny_policy().requires_grad_(False),
        **on,
    )


def online(**on):  # with pairs sampled up to four steps earlier
    config = OnlineConfig(
        samples=3, refresh=4, pick="rejection", sampling=SHORT, dpo=DPOConfig(batch_size=2, steps=6)
    )
    return train_online(tiny_policy(), tiny_tokenizer(), PROMPTS, first_half, config, **on)


def even(prompt, before, step):
    """A judge of steps; it draws from Python's generator, as a judge of a user may."""
    return (len(step) + random.getrandbits(1)) % 2 == 0


def step_dpo(**on):  # with pairs sampled up to two steps earlier
    torch.manual_seed(0)
    tokenizer = step_tokenizer()  # of 17 tokens, so that a step ends now and then
    model = new_gpt2(tokenizer, layers=1, width=16, heads=2, positions=64)
    config = StepDPOConfig(
        step_end="=",
        tries=4,
        max_step=16,
        refresh=3,
        sampling=SamplingConfig(max_new_tokens=24),
        dpo=DPOConfig(batch_size=6, steps=6, append_eos=False, max_response=40),
    )
    prompts = ["1+2=", "8-5*1=", "9*3=", "7+7-2=", "4+4=", "6-1="]
    return train_step_dpo(model, tokenizer, prompts, even, config, **on)


def agent(**on):  # KTO on responses with a tool's turns, sampled up to two steps earlier
    torch.manual_seed(0)
    tokenizer = agent_tokenizer()
    model = new_gpt2(tokenizer, layers=1, width=16, heads=2, positions=64)
    calculator = Calculator(tokenizer, error_rate=0.5)
    config = OnlineConfig(
        refresh=3,
        pick="labels",
        missing_eos_penalty=0.0,
        sampling=SamplingConfig(max_new_tokens=24),
        dpo=DPOConfig("kto", batch_size=3, steps=6, max_response=25),
    )
    formulas = replace(DPOFormulas(), sample=partial(sample, tool=calculator))
    on |= {"formulas": formulas}
    return train_online(model, tokenizer, ["1*2+3=", "4*5-6=", "7*8+9="], mostly_even, config, **on)


def mostly_even(rollout):
    """1 if most token ids are even, else 0: both labels occur."""
    even_ids = (rollout.response_ids % 2 == 0) & rollout.response_mask
    return (even_ids.sum(1) > rollout.response_mask.sum(1) / 2).float()


def prm(**on):  # with steps that have no label
    rows = [
        {"prompt": p, "completions": ["a", "bb"], "labels": [i / 4, None]}
        for i, p in enumerate(PROMPTS)
    ]
    config = PRMConfig(step_end="e", batch_size=2, steps=6)
    return train_prm(
        tiny_policy().base_model, tiny_tokenizer(), Dataset.from_list(rows), config, **on
    )


def verifier(**on):
    rows = Dataset.from_list(
        [
            {"prompt": p, "completion": text, "label": text == "ok"}
            for p in PROMPTS
            for text in ("ok", "no")
        ]
    )
    return train_verifier(
        tiny_policy().base_model,
        tiny_tokenizer(),
        rows,
        VerifierConfig(batch_size=2, steps=6),
        **on,
    )


def ppo(**on):  # with an adaptive KL coefficient: a number that changes from step to step
    config = PPOConfig(steps=6, batch_size=4, minibatch_size=2, sampling=SHORT, kl=ADAPTIVE)
    critic = ScalarModel(tiny_policy(1).base_model)
    actor, critic, history = train_ppo(
        tiny_policy(), critic, tiny_tokenizer(), PROMPTS, first_half, config, **on
    )
    return torch.nn.ModuleList([actor, critic]), history


def grpo(**on):
    config = GroupConfig(
        steps=6, prompts_per_step=2, group_size=2, minibatch_size=2, sampling=SHORT, kl=ADAPTIVE
    )
    return train_group(tiny_policy(), tiny_tokenizer(), PROMPTS, first_half, config, **on)


def row(name):  # with state between steps: a running mean, replaced groups
    def train(**on):
        algorithm = replace(FAMILY[name], overlong_buffer=0)
        config = GroupConfig.named(
            name,
            algorithm=algorithm,
            steps=6,
            prompts_per_step=2,
            group_size=2,
            minibatch_size=4,
            sampling=SHORT,
            kl=ADAPTIVE,
        )
        return train_group(tiny_policy(), tiny_tokenizer(), PROMPTS, first_half, config, **on)

    return train


def pretrain(**on):
    config = PretrainConfig(
        n_layer=1, n_embd=16, n_head=2, vocab_size=300, block=16, batch_size=2, steps=6, warmup=2
    )
    model, _, history = train_base(TEXTS, TEXTS[:3], config, **on)
    return model, [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in history]


LOOPS = {
    "sft": sft,
    "reward": reward,
    "gold": gold,
    "dpo": dpo,
    "kto": kto,
    "online": online,
    "step dpo": step_dpo,
    "agent": agent,
    "prm": prm,
    "verifier": verifier,
    "ppo": ppo,
    "grpo": grpo,
    "pretrain": pretrain,
    "reinforce": row("reinforce"),
    "dapo": row("dapo"),
    "remax": row("remax"),
}


class Killed(BaseException):
    pass


def die(*given):
    raise Killed


def equal(one, other):
    (model, history), (again, rows) = one, other
    return history == rows and all(
        torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)
    )


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("when", ["before", "within", "after"])
def test_a_killed_run_resumes_to_identical_weights(loop, when, tmp_path, monkeypatch):
    path, run = tmp_path / "training.safetensors", LOOPS[loop]
    whole = run()
    save, calls = files.save_file, []

    def fragile(tensors, file, **given):
        calls.append(file)
        if when == "within" and len(calls) == 3:
            file.write_bytes(b"half of a file")
            die()
        save(tensors, file, **given)
        if when == "after" and len(calls) == 3:
            monkeypatch.setattr(
                module.time, "time", die
            )  # time.time is called first after the save and its rename

    monkeypatch.setattr(files, "save_file", fragile)
    with pytest.raises(Killed):
        run(
            checkpoint=Checkpoint(path, every=1e9 if when == "before" else 0.0),
            **{"on_step": die} if when == "before" else {},
        )
    monkeypatch.undo()
    assert path.exists() == (when != "before")
    assert [p.name for p in tmp_path.iterdir()] == (
        [path.name] if when != "before" else []
    )  # no incomplete file is left
    if when != "before":
        with pytest.raises(ValueError, match="--resume"):
            run(checkpoint=Checkpoint(path))
    (
        torch.manual_seed(123),
        random.seed(123),
    )  # the global generators must not matter on resuming
    checkpoint = Checkpoint(path, resume=True)
    assert equal(whole, run(checkpoint=checkpoint))
    assert (
        checkpoint.first == len(whole[1]) and path.exists()
    )  # the checkpoint stays until the caller removes it
    assert equal(
        whole, run(checkpoint=Checkpoint(path, resume=True))
    )  # resuming a finished run takes no step
    checkpoint.remove()
    assert not path.exists()


@needs_posix
@pytest.mark.usefixtures("usual_signals")
def test_ctrl_c_finishes_the_step_and_saves(tmp_path):
    path, whole = tmp_path / "training.safetensors", ppo()

    def interrupt(row):
        if row["step"] == 2:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with (
        pytest.raises(Stopped, match="after 3 steps; .*training.safetensors"),
        Checkpoint(path) as checkpoint,
    ):
        ppo(checkpoint=checkpoint, on_step=interrupt)
    assert signal.getsignal(signal.SIGINT) is before
    steps = []
    assert equal(
        whole,
        ppo(
            checkpoint=Checkpoint(path, resume=True), on_step=lambda row: steps.append(row["step"])
        ),
    )
    assert steps == [3, 4, 5]


@needs_posix
@pytest.mark.usefixtures("usual_signals")
def test_ctrl_c_outside_a_training_step_still_stops(tmp_path):
    path = tmp_path / "training.safetensors"
    with pytest.raises(KeyboardInterrupt), Checkpoint(path):
        os.kill(os.getpid(), signal.SIGINT)
    with (
        pytest.raises(Stopped, match="saved in .*training.safetensors"),
        Checkpoint(path) as checkpoint,
    ):
        sft(checkpoint=checkpoint)
        os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(Stopped, match="nothing was saved"), Checkpoint() as checkpoint:
        sft(checkpoint=checkpoint, on_step=lambda row: os.kill(os.getpid(), signal.SIGINT))


def test_training_time_is_added_up_over_resumed_runs(tmp_path):
    first = Checkpoint(tmp_path / "c.safetensors")
    first.started -= 100
    sft(checkpoint=first)
    again = Checkpoint(tmp_path / "c.safetensors", resume=True)
    sft(checkpoint=again)
    assert 100 < again.earlier < 200


def test_a_checkpoint_with_another_origin_is_refused(tmp_path):
    sft(checkpoint=Checkpoint(tmp_path / "c.safetensors", origin={"scorer": "a"}))
    with pytest.raises(ValueError, match="another run, which differs in: scorer"):
        sft(checkpoint=Checkpoint(tmp_path / "c.safetensors", resume=True, origin={"scorer": "b"}))


@needs_posix
@pytest.mark.usefixtures("usual_signals")
def test_a_second_ctrl_c_stops_at_once(tmp_path):
    def impatient(row):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt), Checkpoint(tmp_path / "c.safetensors") as checkpoint:
        sft(checkpoint=checkpoint, on_step=impatient)


@needs_posix
def test_a_process_killed_within_a_save_resumes_to_identical_weights(tmp_path):
    path = tmp_path / "training.safetensors"
    script = f"""
        import time
        from tests.loops.test_checkpoint import Checkpoint, files, grpo
        saved = []
        def slow(tensors, file, save=files.save_file, **given):
            saved.append(file)
            if len(saved) == 4:
                file.write_bytes(b"half of a file")
                print("now", flush=True)
                time.sleep(600)
            save(tensors, file, **given)
        files.save_file = slow
        grpo(checkpoint=Checkpoint({str(path)!r}, every=0.0))
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"now\n"
    assert len(os.listdir(tmp_path)) == 3  # with the half file and the lock
    process.kill()
    assert process.wait() == -signal.SIGKILL
    steps = []
    assert equal(
        grpo(),
        grpo(
            checkpoint=Checkpoint(path, resume=True), on_step=lambda row: steps.append(row["step"])
        ),
    )
    assert steps == [3, 4, 5] and [p.name for p in tmp_path.iterdir()] == [
        path.name
    ]  # the incomplete file of the killed save is removed


def test_a_checkpoint_without_a_path_saves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sft(checkpoint=Checkpoint(every=0.0))
    assert not list(tmp_path.iterdir())


@needs_posix
@pytest.mark.usefixtures("usual_signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_signals_save_like_ctrl_c_and_have_an_exit_code_of_their_own(number, tmp_path):
    path, whole = tmp_path / "training.safetensors", sft()
    before = signal.getsignal(number)
    with pytest.raises(Stopped, match="saved in") as stopped, Checkpoint(path) as checkpoint:
        sft(checkpoint=checkpoint, on_step=lambda row: os.kill(os.getpid(), number))
    assert report(stopped.value) == 128 + number and signal.getsignal(number) is before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert equal(whole, sft(checkpoint=Checkpoint(path, resume=True)))
    with pytest.raises(Stopped, match="nothing was saved") as stopped, Checkpoint():
        os.kill(os.getpid(), number)
    assert report(stopped.value) == 128 + number


@needs_posix
def test_a_signal_that_is_ignored_stays_ignored():  # so does nohup
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Checkpoint() as checkpoint:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not checkpoint.signals
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_run_that_goes_on_with_other_threads_says_so(tmp_path, capsys):
    path, threads = tmp_path / "training.safetensors", torch.get_num_threads()
    sft(checkpoint=Checkpoint(path))
    sft(checkpoint=Checkpoint(path, resume=True))
    assert capsys.readouterr().out == ""
    torch.set_num_threads(threads + 1)
    try:
        sft(checkpoint=Checkpoint(path, resume=True))
    finally:
        torch.set_num_threads(threads)
    said = f"The run goes on elsewhere (threads {threads} before and {threads + 1} now)"
    assert said in capsys.readouterr().out


def full(*given, **named):
    raise OSError(28, "No space left on device")


def test_a_save_that_fails_does_not_end_the_run(tmp_path, monkeypatch, capsys):
    whole = sft()
    monkeypatch.setattr(files, "save_file", full)
    assert equal(whole, sft(checkpoint=Checkpoint(tmp_path / "c.safetensors", every=0.0)))
    assert "could not be written (No space left on device). The run goes on." in (
        capsys.readouterr().out
    )
    assert not list(tmp_path.iterdir())


@needs_posix
@pytest.mark.usefixtures("usual_signals")
def test_a_run_stopped_on_a_full_disk_is_kept_elsewhere(tmp_path, monkeypatch):
    path, whole, save = tmp_path / "c.safetensors", sft(), files.save_file

    def full_once(tensors, file, **given):
        monkeypatch.setattr(files, "save_file", save)
        full()

    monkeypatch.setattr(files, "save_file", full_once)
    with pytest.raises(Stopped) as stopped, Checkpoint(path) as checkpoint:
        sft(checkpoint=checkpoint, on_step=lambda row: os.kill(os.getpid(), signal.SIGINT))
    kept = re.search("the run is saved in (.*?safetensors)", str(stopped.value))[1]
    assert not path.exists()
    os.replace(kept, path)
    os.rmdir(os.path.dirname(kept))
    assert equal(whole, sft(checkpoint=Checkpoint(path, resume=True)))


def test_a_disk_without_room_for_the_run_is_refused(tmp_path, monkeypatch):
    """The weights and two averages of Adam, twice: a save writes a new file beside the old one."""
    path, usage = tmp_path / "c.safetensors", module.shutil.disk_usage(tmp_path)
    whole = 3 * sum(p.nbytes for p in tiny_policy().parameters())

    def with_free(free):
        monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage._replace(free=free))

    with_free(2 * whole - 1)
    with pytest.raises(ValueError, match="free space of the disk is '.* MB'; it must be at least"):
        sft(checkpoint=Checkpoint(path))
    assert not list(tmp_path.iterdir())
    with_free(2 * whole)
    sft(checkpoint=Checkpoint(path))
    with_free(whole)
    sft(checkpoint=Checkpoint(path, resume=True))
