"""The labelling widget in a real JupyterLab, with its own keys and its own kernel."""

import json
import os
import signal
import subprocess
import sys
import time
from urllib.request import urlopen

import nbformat
import pytest

from minirlhf.runtime import ROOT
from minirlhf.tasks import read_labels

pytestmark = pytest.mark.browser

CODE = """
from minirlhf import show, tasks
pairs = [tasks.Pair("the film\\n", text, "dull", 2.0, -1.0) for text in ("one", "two", "three", "four")]
show.label_pairs(tasks.LabelSession(pairs, "anna.jsonl", "anna"))
"""
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


@pytest.fixture
def lab(tmp_path):
    """The address of a JupyterLab that serves a notebook in `tmp_path`, without a token."""
    cells = [nbformat.v4.new_code_cell(CODE, id="first"), nbformat.v4.new_code_cell("", id="last")]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    nbformat.write(notebook, tmp_path / "label.ipynb")
    own = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_RUNTIME_DIR": "run", "JUPYTER_DATA_DIR": "data"}
    places = {name: str(tmp_path / place) for name, place in own.items()}
    (tmp_path / "config" / "labconfig").mkdir(parents=True)
    quiet = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}
    (tmp_path / "config" / "labconfig" / "page_config.json").write_text(json.dumps(quiet))
    command = [sys.executable, "-m", "jupyterlab", *SETTINGS.split(), f"--notebook-dir={tmp_path}"]
    with open(tmp_path / "log.txt", "w") as log:
        server = subprocess.Popen(
            command,
            env=os.environ | places | {"PYTHONPATH": str(ROOT)},
            stdout=log,
            stderr=log,
            start_new_session=True,  # the server and its kernel are ended together
        )

    def address():
        assert server.poll() is None, (tmp_path / "log.txt").read_text()
        for file in (tmp_path / "run").glob("jpserver-*.json"):
            return json.loads(file.read_text() or "{}").get("url")

    try:
        url = wait(address)
        wait(lambda: urlopen(url + "api").status == 200)
        yield url
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def test_clicks_and_keys_in_jupyterlab_are_in_the_file(lab, browser, tmp_path):
    file = tmp_path / "anna.jsonl"
    browser.driver.get(lab + "doc/tree/label.ipynb?reset")
    wait(lambda: "| Idle" in browser.one("body").text)
    wait(lambda: browser.all(".jp-Cell .cm-content"))[0].click()
    browser._actions().key_down("\ue008").send_keys("\ue007").key_up("\ue008").perform()
    texts = lambda: [text.text for text in browser.all(".minirlhf-label .text")]
    said = lambda: browser.one(".minirlhf-label .count").text
    wait(texts)
    assert texts() == ["one", "dull"]
    browser.one("[data-action=right]").click()
    wait(lambda: said() == "1 of 4 labelled")
    for done, key in ((2, "1"), (3, "0"), (2, "u"), (3, "2"), (4, "s")):
        browser._actions().send_keys(key).perform()
        wait(lambda done=done: said() == f"{done} of 4 labelled")
    assert read_labels(file).choice.tolist() == ["right", "left", "right", "skip"]
    browser._actions().send_keys("dd").perform()  # would delete a cell of the notebook
    assert len(browser.all(".jp-Cell")) == 2
    assert not browser.all(".jp-Cell .jp-RenderedMarkdown")  # 1 would make a heading
