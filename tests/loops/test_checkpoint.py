"""A run killed before, during or after a save resumes to the weights of an uninterrupted run."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest
import torch
from datasets import Dataset

import minirlhf.loops.checkpoint as module
from minirlhf.cli import report
from minirlhf.loops.checkpoint import Checkpoint, Stopped
from minirlhf.loops.config import KLConfig
from minirlhf.loops.family import FAMILY
from minirlhf.loops.gold import GoldConfig, train_gold
from minirlhf.loops.group import GroupConfig, train_group
from minirlhf.loops.online import OnlineConfig, train_online
from minirlhf.loops.ppo import PPOConfig, train_ppo
from minirlhf.loops.preference import DPOConfig, train_dpo
from minirlhf.loops.pretrain import PretrainConfig, train_base
from minirlhf.loops.reward import RewardConfig, train_reward_model
from minirlhf.loops.sft import SFTConfig, train_sft
from minirlhf.loops.verifier import VerifierConfig, train_verifier
from minirlhf.models.heads import ScalarModel
from minirlhf.models.sampling import SamplingConfig
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


def sft(**on):
    return train_sft(
        tiny_policy(), tiny_tokenizer(), PAIRS, SFTConfig(batch_size=2, epochs=3), **on
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
    "verifier": verifier,
    "ppo": ppo,
    "grpo": grpo,
    "pretrain": pretrain,
    "reinforce": row("reinforce"),
    "dapo": row("dapo"),
    "remax": row("remax"),
}


@pytest.fixture(scope="module")
def bytes_of_a_run(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "training.safetensors"
    sft(checkpoint=Checkpoint(path))
    return path.read_bytes()


@pytest.fixture
def run_of_sft(bytes_of_a_run, tmp_path):
    """The file of a finished run of `sft`."""
    path = tmp_path / "training.safetensors"
    path.write_bytes(bytes_of_a_run)
    return path


class Killed(Exception):
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
    save, calls = module.save_file, []

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

    monkeypatch.setattr(module, "save_file", fragile)
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
def test_ctrl_c_finishes_the_step_and_saves(tmp_path):
    path, whole = tmp_path / "training.safetensors", ppo()

    def interrupt(row):
        if row["step"] == 2:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with (
        pytest.raises(Stopped, match="after step 2; .*training.safetensors"),
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
        from tests.loops.test_checkpoint import Checkpoint, grpo, module
        saved = []
        def slow(tensors, file, save=module.save_file, **given):
            saved.append(file)
            if len(saved) == 4:
                file.write_bytes(b"half of a file")
                print("now", flush=True)
                time.sleep(600)
            save(tensors, file, **given)
        module.save_file = slow
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


@pytest.mark.parametrize(
    "spoil, said",
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "damaged"),
        (lambda path: path.write_bytes(b""), "damaged"),
        (
            lambda path: module.save_file({"a": torch.zeros(1)}, path),
            "damaged or is not a checkpoint",
        ),
    ],
)
def test_a_damaged_checkpoint_is_refused_and_not_changed(spoil, said, run_of_sft):
    spoil(run_of_sft)
    before = run_of_sft.read_bytes()
    with pytest.raises(ValueError, match=said):
        sft(checkpoint=Checkpoint(run_of_sft, resume=True))
    assert run_of_sft.read_bytes() == before


@pytest.mark.parametrize(
    "change, said",
    [
        ({"lr": 1e-5}, "optimiser"),
        ({"seed": 1}, "seed"),
        ({"loop": dpo}, "loop"),
        ({"rows": 3}, "data"),
        ({"words": "bb"}, "data"),
        ({"start": 1}, "start"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(change, said, run_of_sft):
    config = SFTConfig(batch_size=2, epochs=3)
    if "loop" in change:
        with pytest.raises(ValueError, match="another .*loop"):
            dpo(checkpoint=Checkpoint(run_of_sft, resume=True))
        return
    if "lr" in change:
        config = replace(config, optimiser=replace(config.optimiser, lr=change["lr"]))
    config, data = (
        replace(config, seed=change.get("seed", 0)),
        PAIRS.select(range(change.get("rows", len(PAIRS)))),
    )
    data = data.map(lambda row: {"completion": change.get("words", row["completion"])})
    with pytest.raises(ValueError, match=f"another .*{said}"):
        train_sft(
            tiny_policy(change.get("start", 0)),
            tiny_tokenizer(),
            data,
            config,
            checkpoint=Checkpoint(run_of_sft, resume=True),
        )


def test_a_checkpoint_without_a_path_saves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sft(checkpoint=Checkpoint(every=0.0))
    assert not list(tmp_path.iterdir())


@needs_posix
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
            assert not checkpoint.stopping
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_flipped_byte_is_found_anywhere_in_the_file(run_of_sft):
    path, draw = run_of_sft, random.Random(0)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    places = [0, 7, 8, header - 1, header, len(whole) - 1]
    places += [draw.randrange(end) for end in (header, len(whole)) for _ in range(20)]
    places.append(whole.index(b'"sha256"') + 12)
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= draw.randint(1, 255)
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged or is not a checkpoint"):
            Checkpoint(path)._read()
    path.write_bytes(whole)
    Checkpoint(path)._read()


FIELDS = ("step", "config", "history", "state", "random", "seconds", "machine")


def changed(path, *, header=None, tensors=None):
    """Write the file again, with other parts and the right checksum."""
    kept, found = Checkpoint(path)._read()
    kept, found = kept | (header or {}), found | (tensors or {})
    kept = {key: value for key, value in kept.items() if value is not None}
    found = {key: value for key, value in found.items() if value is not None}
    metadata = {key: json.dumps(value) for key, value in kept.items()}
    module.save_file(found, path, metadata=metadata | {"sha256": module.BLANK})
    module._seal(path)


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("value", [None, "text"])
def test_a_wrong_field_of_the_header_is_refused(field, value, run_of_sft):
    changed(run_of_sft, header={field: value})
    with pytest.raises(ValueError, match=f"damaged.*: {field} is missing or of another type"):
        Checkpoint(run_of_sft)._read()


def test_a_state_of_another_generator_is_refused(run_of_sft):
    changed(run_of_sft, header={"random": [1]})
    with pytest.raises(ValueError, match="does not fit the run that it names"):
        sft(checkpoint=Checkpoint(run_of_sft, resume=True))


@pytest.mark.parametrize(
    "name, value",
    [
        ("model.0.transformer.wte.weight", None),
        ("model.0.transformer.wte.weight", torch.zeros(1, 1)),
        ("optimizer.0.0.exp_avg", torch.zeros(3, 4)),
        ("optimizer.0.999.exp_avg", torch.zeros(3)),
        ("optimizer.0.", torch.zeros(3)),
        ("generator.0", None),
        ("generator.0", torch.zeros(3)),
        ("generator.0", torch.zeros(5056, dtype=torch.uint8)),
    ],
)
def test_a_wrong_tensor_is_refused(name, value, run_of_sft):
    changed(run_of_sft, tensors={name: value})
    with pytest.raises(ValueError, match="does not fit the run that it names"):
        sft(checkpoint=Checkpoint(run_of_sft, resume=True))


@needs_posix
@pytest.mark.parametrize("kind", ["a folder", "a pipe", "not allowed"])
def test_a_checkpoint_that_cannot_be_read_is_called_by_its_cause(kind, tmp_path, monkeypatch):
    path = tmp_path / "training.safetensors"
    if kind == "a folder":
        path.mkdir()
    elif kind == "a pipe":
        os.mkfifo(path)
    else:
        sft(checkpoint=Checkpoint(path))

        def denied(*given):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(module, "_sha256", denied)
    said = {"a folder": "this is a folder", "a pipe": "a device or a pipe"}
    with pytest.raises(ValueError, match=said.get(kind, "cannot be read: Permission denied")):
        sft(checkpoint=Checkpoint(path, resume=True))
    assert os.listdir(tmp_path) == [path.name]


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
    monkeypatch.setattr(module, "save_file", full)
    assert equal(whole, sft(checkpoint=Checkpoint(tmp_path / "c.safetensors", every=0.0)))
    assert "could not be written (No space left on device). The run goes on." in (
        capsys.readouterr().out
    )
    assert not list(tmp_path.iterdir())


@needs_posix
def test_a_run_stopped_on_a_full_disk_is_kept_elsewhere(tmp_path, monkeypatch):
    path, whole, save = tmp_path / "c.safetensors", sft(), module.save_file

    def full_once(tensors, file, **given):
        monkeypatch.setattr(module, "save_file", save)
        full()

    monkeypatch.setattr(module, "save_file", full_once)
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
