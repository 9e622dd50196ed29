"""A process that is killed again and again, at random moments, ends with the weights of a whole run."""

import random
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from minirlhf.loops.checkpoint import Checkpoint
from tests.loops.test_checkpoint import LOOPS

SCRIPT = """
import os
import sys
import time
import torch
from safetensors.torch import save_file
from tests.loops.test_checkpoint import LOOPS, Checkpoint
torch.set_num_threads(1)
loop, folder = sys.argv[1:]
print("ready", flush=True)
model, _ = LOOPS[loop](checkpoint=Checkpoint(folder + "/run.safetensors", every=0.0, resume=True), on_step=lambda row: time.sleep(0.1))
save_file({str(i): p.detach().contiguous() for i, p in enumerate(model.parameters())}, folder + "/half")
os.replace(folder + "/half", folder + "/done")
"""
KILLS = 6  # at most; a process that ends before its kill was whole


@pytest.mark.parametrize("loop", LOOPS)
def test_a_run_that_is_killed_again_and_again_gives_the_same_weights(
    loop, tmp_path, record_property
):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    whole, _ = LOOPS[loop]()
    started = time.time()
    checkpoint = Checkpoint(tmp_path / "timed", every=0.0)
    LOOPS[loop](checkpoint=checkpoint, on_step=lambda row: time.sleep(0.1))
    lasts = time.time() - started
    torch.set_num_threads(threads)
    draw, kills, resumed = random.Random(0), 0, 0
    while not (tmp_path / "done").exists():
        arguments = [sys.executable, "-c", SCRIPT, loop, str(tmp_path)]
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "ready\n"
        resumed += (tmp_path / "run.safetensors").exists()
        if kills < KILLS:
            time.sleep(draw.uniform(0, lasts / 2))
            kills += process.poll() is None
            process.kill()
        process.wait()
    found = load_file(tmp_path / "done")
    parameters = dict(enumerate(whole.parameters()))
    assert len(found) == len(parameters)
    assert all(torch.equal(found[str(i)], p) for i, p in parameters.items())
    assert kills > 0 and resumed > 0
    record_property(f"{loop}: killed, resumed from a file", f"{kills} times, {resumed} times")
