"""--out and --html: refused before the first step where a save would fail or lose something."""

import os
import signal
from pathlib import Path

import pytest
from typer.testing import CliRunner

from minirlhf import cli
from minirlhf.cli import sft, terminal
from minirlhf.models.load import load_policy, save_policy
from minirlhf.runtime import PARTIAL, History, Kept, output
from minirlhf.runtime.signals import SIGNALS
from tests.tiny import needs_posix, tiny_policy, tiny_tokenizer


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The current folder, with a policy and eight rows."""
    monkeypatch.chdir(tmp_path)
    save_policy(tiny_policy(), tiny_tokenizer(), "policy")
    rows = "\n".join(f'{{"prompt": "q{i}", "completion": "a"}}' for i in range(8))
    Path("rows.jsonl").write_text(rows)
    return tmp_path


def run(*given):
    command = ["sft", "--dataset", "rows.jsonl", "--steps", "1", "--save-every", "1e-9"]
    return CliRunner().invoke(cli.app, [*command, *map(str, given)])


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("out", ["policy", "policy/", "link", "other/../policy"])
def test_the_model_that_a_command_reads_is_not_replaced(order, out, place):
    if os.name == "posix":
        Path("link").symlink_to("policy")
    elif out == "link":
        return
    before = Path("policy/model.safetensors").read_bytes()
    pairs = [("--model", "policy"), ("--out", out)][::order]
    error = run(*(text for pair in pairs for text in pair)).exception
    assert isinstance(error, ValueError)
    assert "the folder of a model that this command reads, and the result would" in str(error)
    assert Path("policy/model.safetensors").read_bytes() == before


def test_a_folder_before_two_dots_need_not_exist(place):
    result = run("--model", "policy", "--out", "nope/../m")
    assert result.exit_code == 0, result.exception
    load_policy("m")
    assert not Path("nope").exists() and not Path("m", PARTIAL).exists()


@needs_posix
@pytest.mark.parametrize(
    "name, make, sentence",
    [
        (".minirlhf.old", Path.touch, "is no folder of ours: remove it"),
        (".minirlhf.ready", Path.touch, "is no folder of ours: remove it"),
        (".minirlhf.new", Path.touch, "is no folder of ours: remove it"),
        ("metrics.jsonl", os.mkfifo, "this is a device or a pipe"),
        ("config.json", lambda path: path.symlink_to("/dev/null"), "this is a device or a pipe"),
        ("tokenizer.json", Path.touch, "a file that you may read and write"),  # see below
    ],
)
def test_what_a_save_could_not_replace_is_refused_at_once(name, make, sentence, place, monkeypatch):
    Path("out").mkdir()
    make(Path("out", name))
    if sentence.endswith("write"):  # of another user, or immutable; root may write to others
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != name)
    monkeypatch.setattr(sft, "load_policy", lambda name: pytest.fail("loaded"))
    error = run("--model", "policy", "--out", "out").exception
    assert isinstance(error, ValueError) and sentence in str(error), error
    assert os.listdir("out") == [name]


@needs_posix
def test_a_model_file_that_is_a_link_to_a_file_may_be_replaced(place):
    Path("out").mkdir()
    Path("mine").write_text("mine")
    Path("out/model.safetensors").symlink_to("../mine")
    assert run("--model", "policy", "--out", "out").exit_code == 0
    assert Path("mine").read_text() == "mine" and not Path("out/model.safetensors").is_symlink()


def test_a_page_never_takes_the_name_of_a_file_of_a_model(place):
    error = CliRunner().invoke(cli.app, ["score", "fine", "--html", "out/config.json"]).exception
    assert "of another name: this one belongs to a model" in str(error)


@pytest.mark.parametrize("given", [["--out", " "], ["--out= "], ["--model", "\t"]])
def test_a_value_of_spaces_is_empty(given, place):
    said = f"{given[0].strip('= ')} is empty; give a value, or leave the option out."
    assert str(run(*given).exception) == said


def test_a_lock_that_cannot_be_written_leaves_nothing(place, monkeypatch):
    def full(*given):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(output.os, "write", full)
        patch.setattr(output.os, "fsync", full)
        error = run("--model", "policy", "--out", "a/out").exception
    assert "No space left on device; give another name." in str(error)
    assert sorted(os.listdir()) == ["policy", "rows.jsonl"]


@needs_posix
@pytest.mark.usefixtures("usual_signals")
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("place_of_save", ["out", "kept"])
def test_a_signal_during_the_last_save_waits_until_the_model_is_complete(
    number, place_of_save, place, monkeypatch, capsys
):
    before, save = signal.getsignal(number), sft.save

    def interrupted(*given, **options):
        monkeypatch.setattr(output, "_settle", sent)
        save(*given, **options)

    def sent(folder, settle=output._settle):
        os.kill(os.getpid(), number)  # while the files are moved
        settle(folder)
        if place_of_save == "kept":
            monkeypatch.setattr(output, "_settle", settle)
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sft, "save", interrupted)
    error = run("--model", "policy", "--out", "out").exception
    assert signal.getsignal(number) is before
    if place_of_save == "kept":  # where the model is matters more
        assert isinstance(error, Kept) and len(History.load(error.folder / "metrics.jsonl")) == 1
        return
    assert str(error) == "The run is complete: its model is in out."
    assert cli.report(error) == 128 + number
    assert "--resume" not in capsys.readouterr().out
    load_policy("out")
    assert len(History.load("out/metrics.jsonl")) == 1 and not Path("out", PARTIAL).exists()


@needs_posix
@pytest.mark.usefixtures("usual_signals")
def test_a_second_ctrl_c_ends_the_last_save(tmp_path):
    with pytest.raises(KeyboardInterrupt), terminal.saving(tmp_path, History()):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("not reached")
