"""The commit that a record names: "-dirty" only where a tracked file differs."""

import os
import subprocess

import pytest

from minirlhf.runtime import commit, settings
from tests.stress import conftest


def git(*arguments):
    named = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *named, *arguments], cwd=settings.ROOT, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "ROOT", tmp_path)
    monkeypatch.setattr(settings, "IN_CHECKOUT", True)
    git("init")
    (tmp_path / ".gitignore").write_text("out\n")
    (tmp_path / "page.md").write_text("a page\n")
    (tmp_path / "code.py").write_text("a = 1\n")
    git("add", ".")
    git("commit", "-m", "one")
    return tmp_path


def test_files_that_git_does_not_track_do_not_count(repository):
    (repository / "out").mkdir()
    (repository / "out" / "model").write_text("ignored")
    (repository / "notes.txt").write_text("untracked")
    os.utime(repository / "code.py", (0, 0))
    assert "-dirty" not in commit() and len(commit()) >= 7


def test_a_tracked_file_counts_unless_it_is_the_output(repository):
    before = commit()
    (repository / "page.md").write_text("another page\n")
    assert commit() == f"{before}-dirty" and commit(repository / "page.md") == before
    (repository / "code.py").write_text("a = 2\n")
    assert commit(repository / "page.md") == f"{before}-dirty"


def test_the_figures_of_make_stress_name_the_commit_of_their_begin(repository, monkeypatch):
    class Config:
        stash = pytest.Stash()

    monkeypatch.setattr(conftest, "PAGE", repository / "page.md")
    conftest.pytest_configure(Config)
    begun = commit()
    (repository / "code.py").write_text("a = 2\n")  # during the run
    assert Config.stash[conftest.BEGUN] == begun != commit()
