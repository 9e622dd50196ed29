"""The lessons in JupyterLab, started as `make lab` starts it."""

import re
from urllib.request import urlopen

import pytest

from minirlhf.classroom.course import NOTEBOOKS
from minirlhf.runtime import ROOT
from tests.browser.jupyterlab import jupyterlab

pytestmark = pytest.mark.browser

PICTURES = [
    (NOTEBOOKS / found).resolve().relative_to(ROOT).as_posix()
    for path in sorted((NOTEBOOKS / "src").glob("*.py"))
    for found in re.findall(r"^# !\[.*\]\((\.\./.*)\)", path.read_text("utf-8"), re.MULTILINE)
]


def test_pictures_from_files_are_served(tmp_path):
    """They lie outside of notebooks/, so JupyterLab must serve the whole repository."""
    (command,) = re.findall(r"-m jupyter lab (.*)", (ROOT / "Makefile").read_text("utf-8"))
    assert PICTURES
    with jupyterlab(tmp_path, *command.split()) as url:
        for picture in PICTURES:
            assert urlopen(f"{url}api/contents/{picture}?content=0").status == 200


def test_the_pages_start_jupyterlab_as_the_makefile_does():
    (command,) = re.findall(r"-m (jupyter lab .*)", (ROOT / "Makefile").read_text("utf-8"))
    told = [
        line
        for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
        for line in re.findall(r"-m (jupyter lab [^`#\n]*)", path.read_text("utf-8"))
    ]
    assert told and {line.strip().rstrip("`)") for line in told} == {command}
