"""Labels in a terminal: keys, a stop, a restart, and a reward model trained on the file."""

import json
import os
import select
import sys
import time

import pytest
from rich.console import Console
from typer.testing import CliRunner

from minirlhf import cli, evaluate, tasks
from minirlhf.cli.commands import loaded
from minirlhf.models.load import load_scalar, save_policy
from minirlhf.rewards import text_judge
from tests.tiny import needs_posix, tiny_policy, tiny_tokenizer


def invoke(*arguments, keys=""):
    return CliRunner().invoke(cli.app, [*map(str, arguments)], input=keys)


def said(result):
    assert result.exit_code == 0 and not result.exception, repr(result.exception)
    return " ".join(result.output.split())


@pytest.fixture
def file(tmp_path):
    """Twelve pairs of a good response and a bad one."""
    rows = [
        {"prompt": f"film {i}\n", "response_a": f"a good one {i}", "response_b": f"a bad one {i}"}
        for i in range(12)
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "pairs.jsonl"


def test_fewer_pairs_than_the_usual_repeats_are_labelled(tmp_path):
    out = tmp_path / "me.jsonl"
    assert "2 of 4 pairs are labelled" in said(
        invoke("label", "--count", "2", "--out", out, keys="12q")
    )
    error = invoke("label", "--count", "2", "--repeats", "3", "--out", tmp_path / "b.jsonl")
    assert "repeats is 3; it must be 0 to 2" in str(error.exception)


@pytest.mark.parametrize(
    "given, sentence",
    [
        (["label", "--annotator", "."], "annotator is '.'; it must be a name of at most 60 cha"),
        (["label", "--annotator", ".."], "annotator is '..'; it must be a name"),
        (["label", "--annotator", "x" * 260], f"annotator is '{'x' * 60} ...'; it must be a name"),
        (["label-agreement", ""], "file is ''; it must be the name of a file of labels"),
        (["grade", ""], "folder is ''; it must be a folder with the files of students"),
    ],
)
def test_a_name_that_is_none_is_refused_in_one_sentence(given, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    error = invoke(*given).exception
    assert isinstance(error, ValueError) and sentence in str(error), error


def test_keys_label_pairs_of_reviews_and_the_same_command_continues(tmp_path):
    out = tmp_path / "labels.jsonl"
    command = ["label", "--annotator", "anna", "--count", 5, "--repeats", 1, "--out", out]
    first = said(invoke(*command, keys="1\nx\n0 u S\nq"))
    assert "'x' is none of the keys." in first and "tie is taken back" in first
    assert "2 of 6 pairs are labelled." in first and "The same command continues." in first
    assert tasks.read_labels(out).choice.tolist() == ["left", "skip"]
    second = said(invoke(*command, keys="2201u2"))  # the last choice is taken back and made again
    assert "Pair 3 of 6" in second and "Pair 1 of 6" not in second
    assert "6 of 6 pairs are labelled." in second and "continues" not in second
    assert "All pairs are labelled." in said(invoke(*command, keys="1"))
    table = tasks.read_labels(out)
    assert table.choice.tolist() == ["left", "skip", "right", "right", "tie", "right"]
    assert set(table.annotator) == {"anna"} and table.repeat.sum() == 1
    shown = tasks.pairs_to_label(5, repeats=1)
    assert table.left.tolist() == [pair.left for pair in shown]
    refused = invoke(*command, "--seed", 1).exception
    assert isinstance(refused, ValueError) and "labels of other pairs" in str(refused)


def test_there_is_nothing_to_undo_before_the_first_choice(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = said(invoke("label", "--pairs", file, keys="u"))
    assert "There is nothing to undo." in told and "0 of 12" in told
    assert not (tmp_path / "out").exists()
    said(invoke("label", "--pairs", file, "--annotator", "ben", keys="1"))
    assert tasks.read_labels("out/labels/ben.jsonl").annotator.tolist() == ["ben"]


def test_text_cannot_control_the_terminal(tmp_path):
    hostile = {"prompt": "[red]p", "response_a": "\x1b[2J[bold]a", "response_b": "\x9b31mb"}
    (tmp_path / "p.jsonl").write_text(json.dumps(hostile))
    told = invoke("label", "--pairs", tmp_path / "p.jsonl", "--out", tmp_path / "o.jsonl", keys="1")
    assert "[red]p" in told.output and "[2J[bold]a" in told.output
    assert not set(told.output) & {"\x1b", "\x9b"}


@needs_posix
def test_ctrl_c_in_a_terminal_loses_nothing(file, tmp_path, monkeypatch):
    out = tmp_path / "labels.jsonl"
    monkeypatch.setattr("minirlhf.cli.label.console", Console(width=400, color_system=None))
    monkeypatch.setattr("minirlhf.cli.terminal.console", Console(width=400, color_system=None))
    import pty
    import termios

    child, terminal = pty.fork()  # a real terminal: each key counts without Enter
    if not child:
        sys.stdin, sys.stdout = open(0), open(1, "w", buffering=1)
        try:
            loaded("label").main(["--pairs", str(file), "--out", str(out)])
        except SystemExit as end:
            os._exit(end.code)
        finally:
            os._exit(99)
    seen = ""

    def until(text):
        nonlocal seen
        while text not in seen:
            assert select.select([terminal], [], [], 60)[0], seen
            seen += os.read(terminal, 4096).decode(errors="replace")

    for number, key in ((1, b"1"), (2, b"0"), (3, b"\x03")):
        until(f"Pair {number} of 12")
        until("q stop")
        while termios.tcgetattr(terminal)[3] & termios.ICANON:  # until it waits for a key
            time.sleep(0.01)
        seen = ""
        os.write(terminal, key)
    until("2 of 12 pairs are labelled.")
    until("The same command continues.")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130
    os.close(terminal)
    assert tasks.read_labels(out).choice.tolist() == ["left", "tie"]


def test_pairs_of_a_file_are_not_counted_off(tmp_path):
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("prompt,response_a,response_b\nx,y,z\n")
    result = CliRunner().invoke(cli.app, ["label", "--pairs", str(pairs), "--count", "1"])
    assert isinstance(result.exception, ValueError)
    assert "--count is 1; it must be left out with --pairs" in str(result.exception)


def test_the_end_names_the_files_that_are_there(tmp_path):
    pairs, out = tmp_path / "pairs.csv", tmp_path / "x.jsonl"
    pairs.write_text("prompt,response_a,response_b\nx,y,z\n")
    command = ["label", "--pairs", str(pairs), "--out", str(out)]
    said = " ".join(CliRunner().invoke(cli.app, command, input="q").output.split())
    assert "0 of 1 pairs are labelled. The same command continues." in said
    said = "".join(CliRunner().invoke(cli.app, command, input="0").output.split())
    assert f"Theyarein{tmp_path}/x.undecided.jsonl." in said


def test_agreement_is_printed(tmp_path):
    for name, keys in (("anna", "1200011"), ("ben", "1111111")):
        out = tmp_path / f"{name}.jsonl"
        said(
            invoke(
                "label", "--annotator", name, "--count", 5, "--repeats", 2, "--out", out, keys=keys
            )
        )
    files = sorted(tmp_path.glob("*.jsonl"))
    assert len(files) == 3  # anna's ties have a file of their own
    told = invoke("label-agreement", *files)
    assert told.exit_code == 0
    printed = [
        [cell.strip() for cell in line.split("│")[1:-1]]
        for line in told.output.splitlines()
        if line.startswith("│")
    ]
    found = evaluate.label_agreement(tasks.read_labels(*files))
    with_whom = ["the crowd", "the crowd", "oneself", "oneself", "ben"]
    assert [row[:2] for row in printed] == [
        list(names) for names in zip(found.annotator, with_whom, strict=True)
    ]
    assert [[int(row[k]) for k in (2, 3, 6)] for row in printed] == found[
        ["agree", "pairs", "ties"]
    ].values.tolist()
    # all of ben's choices are left, so he never agrees with himself; anna's repeats are ties
    assert printed[3][2:] == ["0", "2", "0%", "0% to 66%", "0"]
    assert printed[2][2:] == ["0", "0", "", "", "2"]
    assert printed[4][2:] == ["2", "3", "67%", "21% to 94%", "2"]
    missing = invoke("label-agreement", tmp_path / "none.jsonl").exception
    assert isinstance(missing, ValueError) and "There is no file" in str(missing)


def test_a_reward_model_is_trained_on_the_clicks(file, tmp_path):
    """A simulated person prefers the good responses and twice says tie: label, train, score."""
    pairs = tasks.pairs_from_file(file)
    keys = ["1" if "good" in pair.left else "2" for pair in pairs]
    keys[3] = keys[7] = "0"
    out = tmp_path / "labels.jsonl"
    said(invoke("label", "--pairs", file, "--out", out, keys="".join(keys)))
    save_policy(tiny_policy(), tiny_tokenizer(), tmp_path / "tiny")
    options = ["--model", tmp_path / "tiny", "--steps", 40, "--lr", 3e-3, "--out", tmp_path / "rm"]
    said(invoke("reward", "--dataset", out, *options))
    model, tokenizer = load_scalar(tmp_path / "rm")
    judge, prompts = text_judge([model], tokenizer), [pair.prompt for pair in pairs]
    good, bad = (
        judge(prompts, list(texts))
        for texts in zip(*(sorted((p.left, p.right), reverse=True) for p in pairs), strict=True)
    )
    assert (good > bad).all()  # also in the two pairs of the ties
    told = said(invoke("score", "a good one", "--scorer", tmp_path / "rm", "--prompt", "film 1"))
    assert "prefix ends with" in told
