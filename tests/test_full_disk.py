"""A disk that becomes full, or refuses one call, at any write of a save: the model is not lost."""

import errno
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
from safetensors import SafetensorError
from transformers import modeling_utils

from minirlhf.cli import terminal
from minirlhf.cli.terminal import save, saving
from minirlhf.loops import checkpoint_file
from minirlhf.models.heads import ScalarModel
from minirlhf.models.load import load_scalar, save_policy
from minirlhf.runtime import PARTIAL, History, Kept, kept_elsewhere, output_folder, write_text
from tests.tiny import needs_posix, tiny_policy, tiny_tokenizer

OLD, NEW = tiny_policy(0), tiny_policy(1)
HISTORY = History([{"stage": "sft", "step": 0, "loss": 1.0}])
WRITES = os.O_WRONLY | os.O_RDWR
FULL = "No space left on device"


class Disk:
    """Refuses calls that change files below `place`: one of them, or all from one on.

    Python's own calls are seen by an audit hook. safetensors and tokenizers write in Rust, so their
    functions are replaced; each raises what the library raises when the disk is full.
    """

    def __init__(self) -> None:
        self.place: str | None = None  # None: nothing is refused
        sys.addaudithook(self.audit)  # it cannot be removed again

    def start(self, place: Path, refused: int, after: bool) -> None:
        self.place, self.refused, self.after, self.calls = str(place), refused, after, 0

    def audit(self, event: str, given: tuple) -> None:
        if self.place is None:
            return
        if event == "open":
            name, _, flags = given
            changes = isinstance(flags, int) and flags & WRITES
        else:
            name, changes = given[0] if given else "", event in ("os.mkdir", "os.chmod")
        if event == "os.rename":  # a full disk can still rename
            name, changes = given[1], not self.after
        if changes and isinstance(name, str | os.PathLike):
            self.call(os.fspath(name), OSError(errno.ENOSPC, FULL))

    def call(self, name: str, error: Exception) -> None:
        if self.place and name.startswith(self.place):
            self.calls += 1
            if self.calls == self.refused or (self.after and self.calls > self.refused):
                raise error


@pytest.fixture(scope="module")
def audited():
    return Disk()


@pytest.fixture
def disk(audited, monkeypatch, tmp_path):
    def refusing(function, error, place):
        def call(*given, **named):
            audited.call(os.fspath(given[place]), error)
            return function(*given, **named)

        return call

    broken = SafetensorError(f"Error while serializing: I/O error: {FULL} (os error 28)")
    for module, name in ((modeling_utils, "safe_save_file"), (checkpoint_file, "save_file")):
        monkeypatch.setattr(module, name, refusing(getattr(module, name), broken, 1))
    bare = Exception(f"{FULL} (os error 28)")
    saved = refusing(tiny_tokenizer().save_pretrained.__func__, bare, 1)
    monkeypatch.setattr("transformers.PreTrainedTokenizerFast.save_pretrained", saved)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    yield audited
    audited.place = None


def saved_in(folder, write):
    """What was said of a save over an older model in the middle of a run: (model's folder, text)."""
    out = folder / "disk" / "out"
    try:
        write(out)
    except Exception as error:
        said = " ".join([str(error), *getattr(error, "__notes__", [])])
        named = re.search(r"[Tt]he model is in (\S+?)[.,]?(\s|$)", said)
        return Path(named[1]) if named else None, said
    return out, ""


@needs_posix
@pytest.mark.parametrize("after", [False, True], ids=["one call", "from one call on"])
def test_whatever_write_fails_a_named_folder_holds_the_whole_model(
    after, disk, tmp_path, monkeypatch
):
    monkeypatch.setattr(terminal, "say", lambda text: None)
    save_policy(OLD, tiny_tokenizer(), tmp_path / "old")
    save_policy(NEW, tiny_tokenizer(), tmp_path / "new")
    whole = {p.name: p.read_bytes() for p in (tmp_path / "new").iterdir()}
    found = {"out": 0, "kept": 0, "without metrics": 0}
    for refused in range(1, 100):
        place = tmp_path / f"{refused}"
        shutil.copytree(tmp_path / "old", place / "disk" / "out")
        with output_folder(place / "disk" / "out", model=True):
            disk.start(place / "disk", refused, after)
            folder, said = saved_in(place, lambda out: save(NEW, tiny_tokenizer(), out, HISTORY))
            disk.place = None
        if disk.calls < refused:
            break
        assert folder is not None, said
        assert {p.name: p.read_bytes() for p in folder.iterdir() if p.name in whole} == whole, said
        assert said.count("cannot be written") <= 1, said
        metrics = (folder / "metrics.jsonl").is_file()
        assert metrics or "metrics.jsonl could not be written (No space" in said
        found["out" if folder.name == "out" else "kept"] += 1
        found["without metrics"] += not metrics
        kept = [p for p in (*place.glob("disk/*kept*"), *tmp_path.glob("temporary/*"))]
        assert kept == [folder] * (folder.name != "out")  # a failed attempt leaves nothing
        for each in kept:
            os.rename(each, place / "kept")
    assert disk.calls < refused and found["kept"] > 10 and found["without metrics"], found


@needs_posix
def test_a_run_that_no_place_can_hold_is_still_in_its_checkpoint(disk, tmp_path):
    out = tmp_path / "disk" / "out"
    out.mkdir(parents=True)
    (out / PARTIAL).write_bytes(b"the run")
    with output_folder(out, model=True), pytest.raises(OSError) as error:
        disk.start(tmp_path, 3, after=True)
        with saving(out, HISTORY):
            save_policy(NEW, tiny_tokenizer(), out)
    assert not isinstance(error.value, Kept)
    assert str(error.value) == f"{out} cannot be written ({FULL}), nor can another folder."
    then = f"The run is in {out / PARTIAL}: make room, then give the same command with --resume."
    assert error.value.__notes__ == [then]
    disk.place = None
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["disk", "out", "temporary", PARTIAL]


def test_files_of_a_model_have_the_permissions_of_other_files(tmp_path):
    """safetensors makes private files."""
    save_policy(NEW, tiny_tokenizer(), tmp_path / "policy")
    ScalarModel(NEW.base_model).save(tmp_path / "scalar", tiny_tokenizer())
    load_scalar(tmp_path / "scalar")
    modes = {p.name: p.stat().st_mode & 0o777 for p in tmp_path.glob("*/*.*")}
    assert len(modes) >= 5 and set(modes.values()) == {0o644 if os.name == "posix" else 0o666}


@needs_posix
@pytest.mark.parametrize("mask", [0o077, 0o022])
def test_the_umask_says_who_may_read_what_is_written(mask, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = os.umask(mask)
    try:
        save_policy(NEW, tiny_tokenizer(), tmp_path / "policy")
        kept = kept_elsewhere(tmp_path / "out", lambda place: (place / "a").write_text("a"))
        write_text(tmp_path / "table.csv", "a")
        assert os.umask(mask) == mask  # it is as it was
    finally:
        os.umask(before)
    files = [*tmp_path.glob("policy/*"), kept / "a", tmp_path / "table.csv"]
    assert {p.stat().st_mode & 0o777 for p in files} == {0o666 & ~mask}
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / "policy", kept)} == {0o777 & ~mask}
