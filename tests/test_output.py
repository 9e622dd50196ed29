"""Where results go: refused before a run if it cannot be written or is in use; nothing is lost."""

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from minirlhf import cli
from minirlhf.cli import sft
from minirlhf.loops.checkpoint_file import read_file
from minirlhf.models.load import load_policy, same_weights, save_policy
from minirlhf.runtime import (
    History,
    Kept,
    atomic_folder,
    atomic_path,
    check_folder,
    locked,
    output,
    output_file,
    output_folder,
    write_text,
)
from tests.tiny import needs_posix, tiny_policy, tiny_tokenizer


def prepared(place, folder):
    """The path to try, after the preparation of its case in an empty folder."""
    path = folder / "out"
    if place == "a file":
        path.write_text("mine")
    elif place == "below a file":
        (folder / "file").write_text("mine")
        path = folder / "file" / "out"
    elif place == "a broken link":
        path.symlink_to(folder / "nowhere")
    elif place == "a link to itself":
        path.symlink_to(path)
    elif place == "with a stranger":
        path.mkdir()
        (path / "notes.txt").write_text("mine")
    elif place == "with a folder named like a file":
        (path / "model.safetensors").mkdir(parents=True)
    elif place == "the root":
        path = Path("/")
    elif place == "a long name":
        path = folder / ("x" * 300)
    elif place == "a null":
        path = folder / "a\0b"
    return path


def trained(folder, on_step):
    """A run of `sft` that calls on_step(out, row) after each step: (result, out)."""
    save_policy(tiny_policy(), tiny_tokenizer(), folder / "policy")
    rows = "\n".join(f'{{"prompt": "q{i}", "completion": "a"}}' for i in range(8))
    (folder / "rows.jsonl").write_text(rows)
    out, train = folder / "out", sft.train_sft

    def watched(*given, **more):
        return train(*given, **more | {"on_step": lambda row: on_step(out, row)})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sft, "train_sft", watched)
        given = ["--model", folder / "policy", "--dataset", folder / "rows.jsonl", "--out", out]
        given += ["--steps", 4, "--save-every", 1e-9]
        return CliRunner().invoke(cli.app, ["sft", *map(str, given)]), out


@needs_posix
@pytest.mark.parametrize("then", ["a file", "deleted", "a link"])
def test_a_folder_that_changes_during_a_run_loses_nothing(then, tmp_path):
    def change(out, row):
        if row["step"] == 1:
            shutil.rmtree(out)
            if then == "a file":
                out.write_text("mine")
            elif then == "a link":
                (tmp_path / "there").mkdir()
                out.symlink_to(tmp_path / "there")

    result, out = trained(tmp_path, change)
    if then == "a file":
        assert isinstance(result.exception, Kept) and out.read_text() == "mine"
        kept = re.search(r"this is a file\); the model is in (\S+)\.$", str(result.exception))[1]
        said = " ".join(result.output.split())
        assert "is a file, not a folder). The run goes on." in said
    else:
        assert result.exit_code == 0, result.exception
        kept = out
    assert not same_weights(load_policy(kept)[0], tiny_policy())
    assert len(History.load(Path(kept) / "metrics.jsonl")) == 4


@needs_posix
def test_a_run_stopped_after_its_folder_became_a_file_is_kept_elsewhere(tmp_path):
    def change(out, row):
        if row["step"] == 1:
            shutil.rmtree(out)
            out.write_text("mine")
            os.kill(os.getpid(), signal.SIGTERM)

    result, out = trained(tmp_path, change)
    kept = re.search(r"the run is saved in (\S+)\. Move that file to", str(result.exception))[1]
    assert read_file(Path(kept))[0]["step"] == 2
    shutil.rmtree(Path(kept).parent)


@pytest.mark.parametrize(
    "given, sentence",
    [
        (["sft", "--out", ""], "--out is empty; give a value, or leave the option out."),
        (["sft", "--out="], "--out is empty"),
        (["sample", "x", "--model", ""], "--model is empty"),
        (["grpo", "--dataset", ""], "--dataset is empty"),  # a shell variable that is not set
        (["sft", "--out", "out/\udcff"], r"'out/\udcff' of the command line is not UTF-8"),
        (["sample", "\udcff"], r"'\udcff' of the command line is not UTF-8"),
    ],
)
def test_a_text_of_the_command_line_that_is_empty_or_not_utf8_is_refused(
    given, sentence, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    error = CliRunner().invoke(cli.app, given).exception
    assert isinstance(error, ValueError) and sentence in str(error), error
    assert not [*tmp_path.iterdir()]


@needs_posix
@pytest.mark.parametrize("held", [output_folder, output_file])
def test_a_folder_whose_name_is_not_utf8_is_refused_before_a_run(held, tmp_path):
    place = tmp_path / os.fsdecode(b"\xff") / "out"
    given = {"model": True} if held is output_folder else {}
    with pytest.raises(ValueError, match="is not UTF-8; give another name"):
        held(place, **given).__enter__()
    assert not [*tmp_path.iterdir()]


@needs_posix
@pytest.mark.parametrize(
    "place, sentence",
    [
        ("a file", "it must be a folder, and this is a file"),
        ("below a file", "is a file"),
        ("a broken link", "this link leads to .*nowhere, which does not exist"),
        ("a link to itself", "this link leads to itself"),
        ("with a stranger", "it also holds notes.txt; give another folder"),
        ("with a folder named like a file", "it also holds model.safetensors"),
        ("the root", "below the root"),
        ("a long name", "is no folder's name"),
        ("a null", "is no folder's name: embedded null byte"),
    ],
)
def test_a_folder_that_cannot_be_meant_is_refused_before_a_run(place, sentence, tmp_path):
    path = prepared(place, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=sentence), output_folder(path, model=True):
        pass
    with pytest.raises(ValueError, match=sentence):
        save_policy(tiny_policy(), tiny_tokenizer(), path)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("call", ["replace", "fsync", "open", "mkdir"])
def test_a_folder_where_nothing_can_be_written_is_refused_before_models_are_loaded(
    call, tmp_path, monkeypatch
):
    def refuse(*given, **named):
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:
        where = Path if call == "mkdir" else output.os
        patch.setattr(where, call, refuse)
        patch.setattr("minirlhf.cli.preference.load_policy", lambda name: pytest.fail("loaded"))
        result = CliRunner().invoke(cli.app, ["dpo", "--out", str(tmp_path / "out")])
    assert isinstance(result.exception, ValueError), result.exception
    assert "Read-only file system" in str(result.exception)
    assert not list(tmp_path.iterdir())


@needs_posix
def test_a_link_is_written_where_it_points(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to("disk")
    (tmp_path / "page.html").symlink_to("disk/page.html")
    save_policy(tiny_policy(), tiny_tokenizer(), tmp_path / "out")
    write_text(tmp_path / "page.html", "new")
    assert (tmp_path / "out").is_symlink() and (tmp_path / "page.html").is_symlink()
    assert (tmp_path / "disk" / "page.html").read_text() == "new"
    assert (tmp_path / "disk" / "config.json").is_file()


def test_a_folder_is_not_renamed_and_keeps_the_files_of_the_system(tmp_path, monkeypatch):
    (tmp_path / "lost+found").mkdir()  # so is a mount point, which cannot be renamed
    monkeypatch.chdir(tmp_path)
    before = os.stat(".").st_ino
    for seed in (0, 1):
        save_policy(tiny_policy(seed), tiny_tokenizer(), ".")
        assert same_weights(load_policy(".")[0], tiny_policy(seed))
    assert os.stat(".").st_ino == before and Path("lost+found").is_dir()
    with atomic_folder(".") as temporary:  # files of the former model do not stay
        (temporary / "config.json").write_text("{}")
    assert sorted(os.listdir(".")) == ["config.json", "lost+found"]


def full(*given, **named):
    raise OSError(errno.ENOSPC, "No space left on device")


@needs_posix
@pytest.mark.parametrize("place", ["device", "pipe", "folder", "long", "below a file"])
def test_only_files_are_replaced(place, tmp_path):
    path = tmp_path / "page.html"
    if place == "device":
        path = Path("/dev/null")
    elif place == "pipe":
        os.mkfifo(path)
    elif place == "folder":
        path.mkdir()
    elif place == "long":
        path = tmp_path / ("x" * 300)
    else:
        path.write_text("")
        path = path / "page.html"
    with pytest.raises(
        ValueError, match="^(file is|'.*' is no file's name|.* is a file, not a folder)"
    ):
        write_text(path, "page")
    with pytest.raises(ValueError), output_file(path):
        pass
    result = CliRunner().invoke(cli.app, ["score", "fine", "--html", str(path)])
    assert isinstance(result.exception, ValueError)
    assert not Path("/dev/null").is_file()


@needs_posix
def test_a_replaced_file_keeps_its_permissions(tmp_path):
    path = tmp_path / "labels.jsonl"
    write_text(path, "a")
    path.chmod(0o600)
    write_text(path, "b")
    assert path.stat().st_mode & 0o777 == 0o600


HOLD = """
import sys
from minirlhf.runtime import output_file, output_folder
with output_file(sys.argv[1]), output_folder(sys.argv[2], model=True):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused_until_the_first_one_dies(tmp_path):
    file, folder = tmp_path / "file", tmp_path / "folder"
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(file), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert first.stdout.readline() == "held\n"
    said = f"in use by another run .process {first.pid} on .*wait"
    for path in (file, folder):
        with pytest.raises(ValueError, match=said), locked(path):
            pass
    with pytest.raises(ValueError, match=said):
        save_policy(tiny_policy(), tiny_tokenizer(), folder)
    result = CliRunner().invoke(cli.app, ["dpo", "--out", str(folder)])
    assert "in use by another run" in str(result.exception)
    check_folder(folder)  # the lock is no stranger
    first.kill()
    first.wait()
    with locked(file), locked(folder):  # the system has dropped the locks
        pass
    assert list(tmp_path.rglob("*")) == [folder]


def test_a_command_that_fails_leaves_no_folder(tmp_path):
    result = CliRunner().invoke(cli.app, ["dpo", "--steps", "0", "--out", str(tmp_path / "a/b")])
    assert "steps is 0" in str(result.exception)
    assert not list(tmp_path.iterdir())


@needs_posix
def test_what_a_killed_writer_left_is_removed(tmp_path):
    child = os.fork()
    if not child:
        with output_folder(tmp_path, model=True), atomic_path(tmp_path / "metrics.jsonl"):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    left = os.listdir(tmp_path)
    assert len(left) == 2 and all(name.startswith(output.OURS) for name in left)
    with output_folder(tmp_path, model=True):
        pass
    assert not os.listdir(tmp_path)


@needs_posix
def test_a_save_killed_while_it_moves_files_is_finished_or_undone(tmp_path):
    """Killed before the second, the middle and the last rename. The next writer puts it right."""
    save_policy(tiny_policy(0), tiny_tokenizer(), tmp_path)
    names, found = sorted(os.listdir(tmp_path)), []
    for last in (3, 7, 8, 12):  # the first is that of `_try_to_write`
        child = os.fork()
        if not child:
            rename, calls = os.replace, []

            def dying(*given, rename=rename, calls=calls, last=last):
                calls.append(given)
                if len(calls) == last:
                    os.kill(os.getpid(), signal.SIGKILL)
                rename(*given)

            output.os.replace = dying
            save_policy(tiny_policy(1), tiny_tokenizer(), tmp_path)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        left = sorted(tmp_path.rglob("*"))
        with pytest.raises(ValueError, match="A save of .* was interrupted .* with --resume"):
            load_policy(tmp_path)
        assert sorted(tmp_path.rglob("*")) == left  # a reader changes nothing
        with locked(tmp_path):
            pass
        model, _ = load_policy(tmp_path)
        found.append(next(seed for seed in (0, 1) if same_weights(model, tiny_policy(seed))))
        assert sorted(os.listdir(tmp_path)) == names
    assert found == [0, 0, 1, 1]


@needs_posix
@pytest.mark.parametrize("name", ["lock", "new", "ready", "old"])
def test_a_planted_link_is_never_followed(name, tmp_path):
    """A folder from elsewhere, or one that others may write to."""
    mine, model = tmp_path / "mine", tmp_path / "model"
    mine.mkdir()
    (mine / "a.txt").write_text("mine")
    save_policy(tiny_policy(), tiny_tokenizer(), model)
    link = model / f"{output.OURS}{name}"
    link.symlink_to(mine / "a.txt" if name == "lock" else mine)
    (model / output.OLD).mkdir(exist_ok=True)
    load_policy(model)
    with pytest.raises(ValueError, match=f"{name} is a link, which .* remove it"):
        save_policy(tiny_policy(), tiny_tokenizer(), model)
    assert link.is_symlink() and (model / "config.json").is_file()
    assert [(p.name, p.read_text()) for p in mine.iterdir()] == [("a.txt", "mine")]


@needs_posix
@pytest.mark.parametrize("kind", ["link", "second name", "pipe"])
def test_only_a_file_of_its_own_is_a_lock(kind, tmp_path):
    mine, page = tmp_path / "mine.txt", tmp_path / "page.html"
    mine.write_text("mine")
    lock = output._lock_file(page)
    if kind == "link":
        lock.symlink_to(mine)
    elif kind == "second name":
        lock.hardlink_to(mine)
    else:
        os.mkfifo(lock)
    with pytest.raises(ValueError, match="lock is .*: remove it"), output_file(page):
        pass
    assert mine.read_text() == "mine"


STRANGERS = """experiment_config.json tsconfig.json tokenizer_notes.md vocab.py chat_template_ideas.txt
model_comparison.safetensors.md model.safetensors.bak adapter_config.json"""


@pytest.mark.parametrize("name", STRANGERS.split())
def test_a_file_that_no_save_wrote_is_not_replaced(name, tmp_path):
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=f"it also holds {name}; give another folder"):
        check_folder(tmp_path)
    with atomic_folder(tmp_path / "model") as temporary:
        (temporary / "config.json").write_text("{}")
        (tmp_path / "model" / name).write_text("mine")  # it comes during the save
    assert (tmp_path / "model" / name).read_text() == "mine"


def test_what_a_save_wrote_may_be_replaced(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = {"default": "{{ messages }}", "tools": "{{ tools }}"}
    tokenizer.save_pretrained(tmp_path)
    tiny_policy().save_pretrained(tmp_path, max_shard_size="20KB")
    check_folder(tmp_path)
    with atomic_folder(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    if sys.platform == "win32":
        monkeypatch.setattr(output.msvcrt, "locking", full)
    else:
        monkeypatch.setattr(output.fcntl, "flock", full)
    with pytest.warns(UserWarning, match="has no locks .No space left on device"):
        with locked(tmp_path):
            pass
