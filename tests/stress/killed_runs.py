"""A process with everything imported, which starts runs as forks of itself: a run starts at once.

It reads a command per line from its input and answers each with a line, both as JSON:

    ["start", job]             -> the number of the new process
    ["wait", process, seconds] -> its exit code; it is killed after so many seconds, null for never

`Runs` is the other end. A job names a loop of tests/loops/test_checkpoint.py and a folder.
"""

import json
import os
import signal
import subprocess
import sys
import time
import traceback

REFUSED = 3  # the exit code of a run whose checkpoint another process uses
CALLS = {"open", "os.chmod", "os.remove", "os.rename", "os.mkdir", "os.rmdir", "half a file"}


class Runs:
    """Starts runs in forks of one process, waits for them and kills them."""

    def __enter__(self):
        self.server = subprocess.Popen(
            [sys.executable, "-m", "tests.stress.killed_runs"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.server.stdout.readline() == "ready\n"
        return self

    def __exit__(self, *error):
        self.server.stdin.close()
        self.server.wait()

    def _ask(self, *command):
        self.server.stdin.write(json.dumps(command) + "\n")
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline())

    def start(self, loop, folder, **job):
        """Start a run. Returns the number of its process.

        Args:
            kill: [save, call]: die before this call of the system in this save.
            pause: seconds to wait after a step.
        """
        return self._ask("start", {"loop": loop, "folder": str(folder)} | job)

    def wait(self, process, after=None):
        """The exit code of a run, -9 if it was killed."""
        return self._ask("wait", process, after)

    def run(self, loop, folder, *, after=None, **job):
        """Start a run and wait for it."""
        return self.wait(self.start(loop, folder, **job), after)


def serve():
    import torch

    import tests.loops.test_checkpoint  # noqa: F401  (here, so that no run has to do it)

    torch.set_num_threads(1)
    print("ready", flush=True)
    for line in sys.stdin:
        name, *given = json.loads(line)
        answer = start(*given) if name == "start" else wait(*given)
        print(json.dumps(answer), flush=True)


def start(job):
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        os.dup2(2, 1)  # what a run prints is no answer
        code = run(**job)
    except BaseException:
        traceback.print_exc()
    os._exit(code)


def wait(process, after):
    end = None if after is None else time.time() + after
    while end is not None and time.time() < end:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    if end is not None:
        os.kill(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def run(loop, folder, kill=None, pause=0.0):
    """A loop with a checkpoint, then its model and metrics in the folder. Returns the exit code."""
    from safetensors.torch import save_file

    from tests.loops.test_checkpoint import LOOPS, Checkpoint

    if kill:
        die_within_a_save(*kill)
    checkpoint = Checkpoint(f"{folder}/run.safetensors", every=0.0, resume=True)
    try:
        model, history = LOOPS[loop](checkpoint=checkpoint, on_step=lambda row: time.sleep(pause))
    except ValueError as error:
        if "in use by another run" in str(error):
            return REFUSED
        raise
    weights = {str(i): p.detach().contiguous() for i, p in enumerate(model.parameters())}
    save_file(weights, f"{folder}/half", {"history": json.dumps(history)})
    os.replace(f"{folder}/half", f"{folder}/done")
    return 0


def die_within_a_save(save, call):
    """Kill this process before the `call`-th call of the system in the `save`-th save."""
    import minirlhf.loops.checkpoint_file as files
    from minirlhf.loops.checkpoint import Checkpoint

    write, save_file, left = Checkpoint._write, files.save_file, [save, call]

    def watch(event, *_):
        if left[0] == 0 and event in CALLS:
            left[1] -= 1
            if left[1] < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def counted(self, path):
        left[0] -= 1
        write(self, path)
        left[0] -= left[0] == 0  # the save to die in is over

    def half(tensors, file, **given):
        if left[0] == 0 and left[1] == 0:  # this one is not made by Python
            save_file(tensors, file, **given)
            os.truncate(file, os.path.getsize(file) // 2)
        watch("half a file")
        save_file(tensors, file, **given)

    Checkpoint._write, files.save_file = counted, half
    sys.addaudithook(watch)


if __name__ == "__main__":
    serve()
