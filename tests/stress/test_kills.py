"""Runs that are killed again and again end with the weights of a whole run; damage is found."""

import os
import random
import shutil
import signal
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from minirlhf.loops.checkpoint import Checkpoint
from minirlhf.models.load import load_policy, same_weights, save_policy
from minirlhf.runtime import locked
from tests.loops.test_checkpoint import LOOPS, ppo, sft
from tests.stress.killed_runs import REFUSED, Runs
from tests.tiny import needs_posix, tiny_policy, tiny_tokenizer

pytestmark = needs_posix
KILLED = -signal.SIGKILL
CALLS = 12  # of the system in a save, about: to open, to write half, to rename ...
FLIPS, ROUNDS = 100, 20


@pytest.fixture(scope="module")
def runs():
    with Runs() as started:
        yield started


@pytest.mark.parametrize("loop", LOOPS)
def test_a_run_that_is_killed_again_and_again_gives_the_same_weights(
    loop, runs, tmp_path, request, record_property
):
    wanted = request.config.getoption("kills")
    whole, folder, draw = tmp_path / "whole", tmp_path / "killed", random.Random(0)
    whole.mkdir()
    folder.mkdir()
    started = time.time()
    assert runs.run(loop, whole) == 0
    lasts, steps = time.time() - started, 6
    kills, resumed, ends = {"random": 0, "within": 0}, 0, 0
    while sum(kills.values()) < wanted or os.listdir(folder):
        kind = "within" if kills["within"] < kills["random"] else "random"
        resumed += (folder / "run.safetensors").exists()
        if sum(kills.values()) == wanted:
            code = runs.run(loop, folder)
        elif kind == "random":
            code = runs.run(loop, folder, after=draw.uniform(0, lasts / 2))
        else:
            kill = [draw.randint(1, steps), draw.randrange(CALLS)]
            code = runs.run(loop, folder, kill=kill)
        assert code in (0, KILLED)
        kills[kind] += code == KILLED
        if (folder / "done").exists():
            one, other = (load_file(each / "done") for each in (whole, folder))
            assert one.keys() == other.keys()
            assert all(torch.equal(one[name], other[name]) for name in one)
            shutil.rmtree(folder)
            folder.mkdir()
            ends += 1
    assert kills["within"] > 0 and resumed > 0 and ends > 0
    record_property(
        f"{loop}: killed at random, within a save; resumed from a file; ended",
        f"{kills['random']}, {kills['within']}; {resumed}; {ends} times, all with the same bits",
    )


def die_at(call, action):
    """Run `action` in a fork that is killed before its `call`-th call that changes a file.

    Returns:
        Whether it was killed; else it ended before.
    """
    process = os.fork()
    if not process:
        left = [call]

        def watch(event, arguments):
            writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & 3
            if writes or event in ("os.rename", "os.mkdir", "os.rmdir", "os.remove"):
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        action()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == KILLED


def test_a_folder_whose_save_is_killed_holds_the_old_model_or_the_new_one(
    tmp_path, record_property
):
    """A reader changes nothing: it may refuse the folder until the next writer puts it right."""
    torch.set_num_threads(1)
    old, new, call, found = tiny_policy(0), tiny_policy(1), 0, {"old": 0, "new": 0}
    refused = 0
    save_policy(old, tiny_tokenizer(), tmp_path / "model")
    names = sorted(os.listdir(tmp_path / "model"))
    while die_at(call, lambda: save_policy(new, tiny_tokenizer(), tmp_path / "model")):
        try:
            first, _ = load_policy(tmp_path / "model")
        except ValueError as error:
            assert "was interrupted" in str(error)
            first, refused = None, refused + 1
        with locked(tmp_path / "model"):
            pass
        now, _ = load_policy(tmp_path / "model")
        assert first is None or same_weights(now, first)
        which = "old" if same_weights(now, old) else "new"
        assert which == "old" or same_weights(now, new)
        found[which] += 1
        assert sorted(os.listdir(tmp_path / "model")) == names
        save_policy(old, tiny_tokenizer(), tmp_path / "model")
        call += 1
    assert min(found.values()) > 0 and refused > 0
    record_property(
        "save of a model: killed before each call of the system that changes a file",
        f"{call} calls; then the old model {found['old']} times, the new one {found['new']} times; "
        f"refused until the next save {refused} times",
    )


def test_every_flipped_byte_of_a_checkpoint_is_found(tmp_path, record_property):
    path = tmp_path / "run.safetensors"
    ppo(checkpoint=Checkpoint(path))
    whole, draw, found = path.read_bytes(), random.Random(0), 0
    header = 8 + int.from_bytes(whole[:8], "little")
    for number in range(FLIPS):
        damaged = bytearray(whole)
        damaged[draw.randrange(header if number % 2 else len(whole))] ^= draw.randint(1, 255)
        path.write_bytes(damaged)
        try:
            ppo(checkpoint=Checkpoint(path, resume=True))
        except ValueError as error:
            found += "damaged" in str(error)
    assert found == FLIPS
    record_property("flipped bytes of a checkpoint: found", f"{found} of {FLIPS}")
    path.write_bytes(whole)
    ppo(checkpoint=Checkpoint(path, resume=True))


def test_the_second_of_two_processes_is_always_refused(runs, tmp_path, record_property):
    whole, _ = sft()
    for number in range(ROUNDS):
        folder = tmp_path / str(number)
        folder.mkdir()
        both = [runs.start("sft", folder, pause=0.1) for _ in range(2)]
        assert sorted(map(runs.wait, both)) == [0, REFUSED]
        found = load_file(folder / "done")
        assert all(torch.equal(found[str(i)], p) for i, p in enumerate(whole.parameters()))
    record_property(
        "two processes with one checkpoint: the second refused", f"{ROUNDS} of {ROUNDS}"
    )
