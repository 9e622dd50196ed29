"""The lessons in JupyterLab, started as `make lab` starts it."""

import re

import pytest

from minirlhf.classroom.course import NOTEBOOKS
from minirlhf.runtime import ROOT
from tests.browser.jupyterlab import jupyterlab, wait

pytestmark = pytest.mark.browser

PICTURES = {  # lesson -> how many pictures from files its text shows
    path.stem: found
    for path in sorted((NOTEBOOKS / "src").glob("*.py"))
    if (found := len(re.findall(r"^# !\[.*\]\(\.\./", path.read_text("utf-8"), re.MULTILINE)))
}
LOADED = """[...document.querySelectorAll('.jp-RenderedMarkdown img')]
    .filter(image => image.naturalWidth > 100).length"""


def test_pictures_from_files_are_shown(browser, tmp_path):
    """They lie outside of notebooks/, so JupyterLab must serve the whole repository."""
    (command,) = re.findall(r"-m jupyter lab (.*)", (ROOT / "Makefile").read_text("utf-8"))
    assert PICTURES
    with jupyterlab(tmp_path, *command.split()) as url:
        for lesson, count in PICTURES.items():
            browser.driver.get(f"{url}doc/tree/notebooks/{lesson}.ipynb?reset")
            wait(lambda count=count: browser.js(LOADED) == count)


def test_the_pages_start_jupyterlab_as_the_makefile_does():
    (command,) = re.findall(r"-m (jupyter lab .*)", (ROOT / "Makefile").read_text("utf-8"))
    told = [
        line
        for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
        for line in re.findall(r"-m (jupyter lab [^`#\n]*)", path.read_text("utf-8"))
    ]
    assert told and {line.strip().rstrip("`)") for line in told} == {command}
