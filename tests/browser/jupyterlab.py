"""A real JupyterLab, with its own settings, kernels and port."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from minirlhf.runtime import ROOT

SETTINGS = (
    "--no-browser --allow-root --ServerApp.port=0 --IdentityProvider.token= "
    "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate "
    "--LabApp.extension_manager=readonly"
)


def wait(found, seconds=120.0):
    """What `found` returns, as soon as it is something."""
    end = time.monotonic() + seconds
    while not (result := found()):
        assert time.monotonic() < end, "nothing appeared"
        time.sleep(0.1)
    return result


def answers(url: str) -> bool:
    """Whether the server listens. Its file with the address is there a moment earlier."""
    try:
        return urlopen(url + "api").status == 200
    except URLError:
        return False


@contextmanager
def jupyterlab(folder: Path, *where: str) -> Iterator[str]:
    """The address of a JupyterLab without a token, as long as the context lasts.

    Args:
        folder: an empty folder for its settings and its log.
        where: arguments that say which files it serves. It starts in the repository's folder.
    """
    own = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_RUNTIME_DIR": "run", "JUPYTER_DATA_DIR": "data"}
    places = {name: str(folder / place) for name, place in own.items()}
    (folder / "config" / "labconfig").mkdir(parents=True)
    quiet = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}
    (folder / "config" / "labconfig" / "page_config.json").write_text(json.dumps(quiet))
    with open(folder / "log.txt", "w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *SETTINGS.split(), *where],
            cwd=ROOT,
            env=os.environ | places | {"PYTHONPATH": str(ROOT)},
            stdout=log,
            stderr=log,
            start_new_session=True,  # the server and its kernel are ended together
        )

    def address():
        assert server.poll() is None, (folder / "log.txt").read_text()
        for file in (folder / "run").glob("jpserver-*.json"):
            return json.loads(file.read_text() or "{}").get("url")

    try:
        url = wait(address)
        wait(lambda: answers(url))
        yield url
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
