"""The labelling widget without a browser: its view, its messages, and a notebook without a reader."""

import json

import nbformat
import pytest
from nbclient import NotebookClient

from minirlhf import show
from minirlhf.runtime import ROOT
from minirlhf.tasks import LabelSession, Pair, read_labels

PAIRS = [Pair("the film\n", text, "dull") for text in ("a", "b", "c")]


@pytest.fixture
def session(tmp_path):
    return LabelSession(PAIRS, tmp_path / "anna.jsonl", "anna")


def send(widget, action, seen):
    widget._received(widget, {"action": action, "seen": seen}, [])
    return widget.view


def test_messages_of_the_browser_are_choices(session):
    widget = show.label_pairs(session, question="Which one?")
    view = widget.view
    assert (view["question"], view["prompt"], view["left"]) == ("Which one?", "the film", "a")
    assert send(widget, "left", 0)["left"] == "b"
    assert send(widget, "tie", 1)["done"] == 2
    assert send(widget, "undo", 2)["left"] == "b"
    send(widget, "skip", 1)
    view = send(widget, "right", 2)
    assert view["finished"] and view["done"] == view["total"] == 3 and view["left"] == ""
    assert read_labels(session.path).choice.tolist() == ["left", "skip", "right"]
    assert repr(widget).startswith("3 of 3 pairs labelled, saved in ")


def test_a_message_about_another_pair_changes_nothing(session):
    widget = show.label_pairs(session)
    send(widget, "left", 0)
    before = widget.view
    for action in ("left", "undo"):
        view = send(widget, action, 0)  # a second click on the same view
        assert view == before | {"answers": view["answers"]}
        assert view["answers"] > before["answers"]  # the browser hears of it all the same
    assert session.progress == (1, 3)


def test_two_widgets_of_one_session_cannot_label_unseen_pairs(session):
    one, two = show.label_pairs(session), show.label_pairs(session)
    send(one, "left", 0)
    assert send(two, "right", 0)["left"] == "b" and session.progress == (1, 3)
    assert send(two, "right", 1)["left"] == "c"


@pytest.mark.parametrize("action", ["both", None, 5, "__class__"])
def test_an_unknown_message_is_answered_with_a_sentence(action, session):
    view = send(show.label_pairs(session), action, 0)
    assert view["error"].startswith("choice is ") and session.progress == (0, 3)


def test_an_error_while_saving_is_answered_and_gone_after_the_next_choice(session, monkeypatch):
    widget = show.label_pairs(session)
    with monkeypatch.context() as patch:
        patch.setattr(
            "minirlhf.runtime.output.os.fsync", lambda file: (_ for _ in ()).throw(OSError("full"))
        )
        assert send(widget, "left", 0)["error"].endswith("anna.jsonl cannot be written: full.")
    assert session.progress == (0, 3) and send(widget, "left", 0)["error"] == ""


def test_characters_that_turn_or_hide_text_are_replaced(tmp_path):
    hostile = Pair("p\u202e", "a\x00\n\tb", "c\u2066")
    view = show.label_pairs(LabelSession([hostile], tmp_path / "x.jsonl")).view
    assert (view["prompt"], view["left"], view["right"]) == ("p\ufffd", "a\ufffd\n\tb", "c\ufffd")


def test_a_session_of_another_kind_can_be_shown():
    """The widget needs only what the protocol names."""

    class Counting:
        path, pairs, made = "nowhere", PAIRS, []
        current = PAIRS[0]
        progress = property(lambda self: (len(self.made), 3))
        choose = lambda self, choice: self.made.append(choice)
        undo = lambda self: self.made.pop()

    counting = Counting()
    widget = show.label_pairs(counting)
    send(widget, "left", 0)
    send(widget, "tie", 1)
    send(widget, "undo", 2)
    assert counting.made == ["left"] and widget.view["file"] == "nowhere"


def test_the_files_of_the_widget_ask_for_nothing_outside():
    for name in ("labelling.js", "labelling.css"):
        text = (ROOT / "minirlhf" / "show" / name).read_text(encoding="utf-8")
        for word in ("http", "import ", "import(", "fetch", "url(", "innerHTML", "eval"):
            assert word not in text, (name, word)


def test_a_notebook_without_a_reader_does_not_wait(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    code = (
        "from minirlhf import show, tasks\n"
        "pairs = [tasks.Pair('the film', 'warm', 'dull')]\n"
        "session = tasks.LabelSession(pairs, 'anna.jsonl', 'anna')\n"
        "show.label_pairs(session)"
    )
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(code), nbformat.v4.new_code_cell("session.progress")]
    )
    NotebookClient(
        notebook,
        timeout=300,
        resources={"metadata": {"path": str(tmp_path)}},
        extra_arguments=["--log-level=ERROR"],
    ).execute()
    (shown,), (progress,) = (cell.outputs for cell in notebook.cells)
    assert "application/vnd.jupyter.widget-view+json" in shown.data
    assert shown.data["text/plain"] == "0 of 1 pairs labelled, saved in anna.jsonl"
    assert progress.data["text/plain"] == "(0, 1)"
    assert json.loads(json.dumps(notebook.metadata.widgets))  # its state is in the notebook
