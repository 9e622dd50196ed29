"""A person labels pairs: which pairs come, what is saved, and what a reader makes of the files."""

import json
import os
import signal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minirlhf.runtime import output
from minirlhf.tasks import (
    LabelSession,
    Pair,
    load_by_name,
    pairs_from_file,
    pairs_to_label,
    read_labels,
    reviews,
)
from minirlhf.tasks.labelling import CHOICES
from tests.tiny import needs_posix

PAIRS = [Pair("the film\n", text, "dull", 2.0, -1.0) for text in "abcdefgh"]
ROW = {"prompt": "the film\n", "response_a": "warm", "response_b": "dull"}


class Clock:
    """Seconds that pass only when a test says so."""

    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def file(tmp_path):
    return tmp_path / "labels" / "anna.jsonl"


def rows(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def labelled(file, *choices, pairs=PAIRS, annotator="anna"):
    session = LabelSession(pairs, file, annotator)
    for choice in choices:
        session.choose(choice)
    return session


# Which pairs come


def test_pairs_are_of_one_film_and_no_film_is_held_out():
    held_out = {r.movie for r in reviews.load_reviews() if r.split in ("test", "val", "gold")}
    by_text = {r.text: r for r in reviews.load_reviews()}
    for pair in pairs_to_label(200, repeats=20, seed=3):
        left, right = by_text[pair.left], by_text[pair.right]
        assert left.movie == right.movie and left.text != right.text
        assert left.split == "reward" and left.movie not in held_out
        assert pair.prompt == left.prompt
        assert (pair.left_mean, pair.right_mean) == (left.mean, right.mean)


def test_the_draw_is_the_same_for_the_same_seed():
    assert pairs_to_label(20, seed=1) == pairs_to_label(20, seed=1)
    assert pairs_to_label(20, seed=1) != pairs_to_label(20, seed=2)


@pytest.mark.parametrize("count, repeats", [(1, 0), (1, 1), (20, 5), (20, 10), (21, 15), (20, 20)])
def test_repeats_come_with_swapped_sides_after_half_of_the_pairs(count, repeats):
    shown = pairs_to_label(count, repeats=repeats, seed=5)
    first = {pair.id: (i, pair) for i, pair in enumerate(shown) if not pair.repeat}
    again = {pair.id: (i, pair) for i, pair in enumerate(shown) if pair.repeat}
    assert len(first) == count and len(again) == repeats and len(shown) == count + repeats
    for key, (late, pair) in again.items():
        early, before = first[key]
        assert (pair.left, pair.right) == (before.right, before.left)
        assert (pair.left_mean, pair.right_mean) == (before.right_mean, before.left_mean)
        assert late - early > count // 2


def test_the_better_review_is_on_either_side():
    shown = pairs_to_label(400, repeats=0)
    left = sum(pair.left_mean > pair.right_mean for pair in shown)
    assert 150 < left < 250  # five standard deviations of 400 fair coins


@pytest.mark.parametrize(
    "given, sentence",
    [
        ({"count": 0}, "count is 0; it must be at least 1"),
        ({"count": 10**6}, "at most .*, the number of pairs"),
        ({"count": 5, "repeats": 6}, "repeats is 6; it must be 0 to 5"),
        ({"count": 5, "repeats": -1}, "repeats is -1"),
    ],
)
def test_impossible_numbers_of_pairs_are_refused(given, sentence):
    with pytest.raises(ValueError, match=sentence):
        pairs_to_label(**given)


def written(tmp_path, name, *given):
    text = "".join(json.dumps(row) + "\n" if isinstance(row, dict) else row for row in given)
    (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path / name


def test_a_file_of_pairs_is_read_from_jsonl_and_csv(tmp_path):
    others = [ROW | {"response_a": text, "model": "x"} for text in ('é, "two"', "three\nlines")]
    jsonl = written(tmp_path, "pairs.jsonl", ROW, "\n", *others)
    csv = written(
        tmp_path,
        "pairs.csv",
        "\ufeffresponse_b,prompt,model,response_a\n",  # with a BOM, as Excel writes it
        'dull,"the film\n",y,warm\n',
        'dull,"the film\n",y,"é, ""two"""\n',
        'dull,"the film\n",y,"three\nlines"\n',
    )
    found = pairs_from_file(jsonl)
    assert found == pairs_from_file(csv)
    texts = {("the film\n", *sorted((pair.left, pair.right))) for pair in found}
    assert texts == {
        ("the film\n", *sorted((t, "dull"))) for t in ("warm", 'é, "two"', "three\nlines")
    }
    assert all(pair.left_mean is None and pair.right_mean is None for pair in found)
    assert len(pairs_from_file(csv, repeats=2)) == 5


def test_a_person_cannot_know_which_response_is_whose(tmp_path):
    given = [ROW | {"response_a": f"a{i}", "response_b": f"b{i}"} for i in range(400)]
    found = pairs_from_file(written(tmp_path, "pairs.jsonl", *given))
    assert 150 < sum(pair.left.startswith("a") for pair in found) < 250
    assert [pair.left[1:] for pair in found] != [str(i) for i in range(400)]


def test_the_side_does_not_follow_from_the_order(tmp_path):
    rows = [ROW | {"response_a": f"a{i}", "response_b": f"b{i}"} for i in range(2)]
    file, seen = written(tmp_path, "pairs.jsonl", *rows), dict.fromkeys(("a0", "b0", "a1", "b1"), 0)
    for seed in range(400):
        seen[pairs_from_file(file, seed=seed)[0].left] += 1
    assert min(seen.values()) > 60  # 100 on average; one stream for both gave 0 for two of them


@pytest.mark.parametrize(
    "given, sentence",
    [
        ([ROW, {"prompt": "x", "response_a": "y"}], "row 2: column response_b is missing; its "),
        ([ROW | {"response_b": None}], "row 1: column response_b is missing"),
        ([ROW | {"response_a": " "}], "row 1, column response_a: the text is empty"),
        ([ROW | {"prompt": ""}], "row 1, column prompt: the text is empty"),
        ([ROW | {"response_a": 5}], "row 1, column response_a: the value is '5', of type int"),
        ([ROW | {"response_a": "\ud800"}], "column response_a: the value holds half a character"),
        ([ROW | {"response_b": "warm"}], "row 1: response_a and response_b are the same text"),
        ([ROW, ROW | {"response_a": "dull", "response_b": "warm"}], "row 2: .* pair of row 1"),
        ([ROW, "{nonsense\n"], "row 2 is no JSON: Expecting property name"),
        (["[1]\n"], "row 1 is no JSON object"),
        (["[" * 100_000 + "\n"], "row 1 cannot be read as JSON"),
        (['{"prompt": ' + "1" * 5000 + "}\n"], "row 1 cannot be read as JSON"),
        ([], "has no rows"),
    ],
)
def test_a_file_that_cannot_be_used_names_file_row_and_column(given, sentence, tmp_path):
    with pytest.raises(ValueError, match=rf"pairs\.jsonl.*{sentence}"):
        pairs_from_file(written(tmp_path, "pairs.jsonl", *given))


def test_a_csv_file_that_cannot_be_used_names_file_row_and_column(tmp_path):
    file = written(tmp_path, "p.csv", "prompt,response_a,response_b\n", "x,y,z\n", "x,y\n")
    with pytest.raises(ValueError, match="p.csv, row 2: column response_b is missing"):
        pairs_from_file(file)
    (tmp_path / "latin.csv").write_bytes(b"prompt,response_a,response_b\n\xe9,y,z\n")
    for name in ("latin.csv", "missing.csv"):
        with pytest.raises(ValueError, match=rf"The file '.*{name}' cannot be read"):
            pairs_from_file(tmp_path / name)
    with pytest.raises(ValueError, match="it must be a .jsonl or a .csv file"):
        pairs_from_file(tmp_path / "pairs.txt")


# What is saved


def test_a_choice_is_a_row_of_trl_s_preference_format(file):
    clock = Clock()
    session = LabelSession(PAIRS, file, "anna", clock=clock)
    clock.now += 50  # nobody looks yet
    assert session.current == PAIRS[0]
    clock.now += 2.5
    assert session.current == PAIRS[0]
    clock.now += 1
    session.choose("right")
    assert rows(file) == [
        {
            "prompt": "the film\n",
            "chosen": "dull",
            "rejected": "a",
            "side": "right",
            "chosen_mean": -1.0,
            "rejected_mean": 2.0,
            "annotator": "anna",
            "seconds": 3.5,
            "number": 0,
            "pair": PAIRS[0].id,
            "repeat": False,
        }
    ]
    assert session.current == PAIRS[1] and session.progress == (1, 8)


def test_ties_and_skips_are_in_a_second_file_and_trainers_read_the_first(file):
    labelled(file, "left", "tie", "skip", "right")
    second = file.with_name("anna.undecided.jsonl")
    assert [row["number"] for row in rows(file)] == [0, 3]
    assert [(row["number"], row["choice"]) for row in rows(second)] == [(1, "tie"), (2, "skip")]
    dataset = load_by_name(str(file))  # checks that each row is a preference
    assert dataset["chosen"][:] == ["a", "dull"] and dataset["rejected"][:] == ["dull", "d"]
    assert dataset["prompt"][:] == ["the film\n"] * 2


def test_a_pair_without_ratings_is_saved_without_them(file):
    labelled(file, "left", "tie", pairs=[Pair("p", "a", "b"), Pair("p", "c", "d")])
    assert not [name for name in rows(file)[0] if "mean" in name]
    table = read_labels(file)
    assert table[["left_mean", "right_mean"]].isna().all(axis=None)


def test_a_session_continues_where_it_stopped(file):
    labelled(file, "left", "tie", "right")
    session = LabelSession(PAIRS, file, "anna")
    assert session.current == PAIRS[3] and session.progress == (3, 8)
    session.choose("skip")
    assert read_labels(file).choice.tolist() == ["left", "tie", "right", "skip"]


def test_undo_takes_back_choices_of_an_earlier_session(file):
    labelled(file, "left", "tie", "right")
    session = LabelSession(PAIRS, file, "anna")
    assert [session.undo() for _ in range(4)] == ["right", "tie", "left", None]
    assert session.current == PAIRS[0] and session.progress == (0, 8)
    assert not list(file.parent.iterdir())  # no file without rows is left
    session.choose("right")
    assert read_labels(file).choice.tolist() == ["right"]


def test_all_pairs_labelled(file):
    session = labelled(file, *["left"] * 8)
    assert session.current is None and session.progress == (8, 8)
    with pytest.raises(ValueError, match="All 8 pairs are labelled"):
        session.choose("left")
    assert session.undo() == "left" and session.current == PAIRS[7]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from([*CHOICES, "undo", "again"]), max_size=14))
def test_any_choices_undos_and_restarts_equal_their_replay(tmp_path_factory, actions):
    file = tmp_path_factory.mktemp("any") / "anna.jsonl"
    session, expected = LabelSession(PAIRS, file, "anna"), []
    for action in actions:
        if action == "again":
            session = LabelSession(PAIRS, file, "anna")
        elif action == "undo":
            assert session.undo() == (expected.pop() if expected else None)
        elif len(expected) < len(PAIRS):
            session.choose(action)
            expected.append(action)
        assert session.done == len(expected)
    found = read_labels(file) if expected else None
    assert (found.choice.tolist() if expected else []) == expected
    decided = rows(file) if file.exists() else []
    sides = [(row["number"], row["side"]) for row in decided]
    assert sides == [(i, c) for i, c in enumerate(expected) if c in ("left", "right")]


@pytest.mark.parametrize("place", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError("the disk is full"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("action", ["left", "tie", "undo"])
def test_an_error_while_saving_changes_nothing(place, error, action, file, monkeypatch):
    session = labelled(file, "left", "tie", "right", "right")
    before = {path.name: path.read_text() for path in file.parent.iterdir()}

    def fail(*given):
        raise error

    act = session.undo if action == "undo" else lambda: session.choose(action)
    with monkeypatch.context() as patch:
        patch.setattr(output.os, place, fail)
        with pytest.raises(type(error)):
            act()
    assert {path.name: path.read_text() for path in file.parent.iterdir()} == before
    act()  # and the session goes on
    expected = ["left", "tie", "right", *{"undo": []}.get(action, ["right", action])]
    assert read_labels(file).choice.tolist() == expected


@pytest.mark.parametrize("action", ["left", "undo"])
def test_a_stop_right_after_the_file_was_replaced_keeps_the_choice(action, file, monkeypatch):
    session = labelled(file, "right", "right")
    rename = os.replace

    def late(*given):
        rename(*given)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(output.os, "replace", late)
        with pytest.raises(KeyboardInterrupt):
            session.undo() if action == "undo" else session.choose(action)
    expected = ["right"] if action == "undo" else ["right", "right", "left"]
    assert session.done == len(expected)
    session.choose("tie")
    assert read_labels(file).choice.tolist() == [*expected, "tie"]


@needs_posix
@pytest.mark.parametrize("place", ["fsync", "before the rename", "after the rename"])
def test_a_process_killed_while_saving_loses_no_choice(place, file):
    session = labelled(file, "left", "tie", "right")
    child = os.fork()
    if not child:  # the process that dies
        rename = os.replace

        def die(*given):
            if place == "after the rename":
                rename(*given)
            os.kill(os.getpid(), signal.SIGKILL)

        setattr(output.os, "fsync" if place == "fsync" else "replace", die)
        try:
            session.choose("left")
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    saved = place == "after the rename"
    again = LabelSession(PAIRS, file, "anna")
    assert again.done == 3 + saved
    again.choose("skip")
    expected = ["left", "tie", "right", *(["left"] * saved), "skip"]
    assert read_labels(file).choice.tolist() == expected


@pytest.mark.parametrize(
    "pairs, annotator, sentence",
    [
        (PAIRS, "ben", "holds labels of anna, not of ben; give each person a file"),
        (PAIRS[::-1], "anna", "holds labels of other pairs than these"),
        (PAIRS[:1], "anna", "holds labels of other pairs than these"),
        ([Pair("another\n", "a", "dull"), *PAIRS[1:]], "anna", "holds labels of other pairs"),
        ([], "anna", "pairs is .*; it must be at least one pair"),
        (
            PAIRS,
            "a/b",
            "annotator is 'a/b'; it must be a name of at most 60 characters, without / ",
        ),
        (PAIRS, "a:b", "it must be a name of at most 60 characters, without / "),
        (PAIRS, "anna.undecided", "and not .undecided at its end"),
        (PAIRS, " ", "annotator is ' '"),
    ],
)
def test_a_file_of_something_else_is_refused(pairs, annotator, sentence, file):
    labelled(file, "left", "right")
    before = file.read_text()
    with pytest.raises(ValueError, match=sentence) as refused:
        LabelSession(pairs, file, annotator)
    assert "\n" not in str(refused.value) and file.read_text() == before


def test_more_pairs_of_the_same_order_go_on_in_the_same_file(file):
    labelled(file, "left", "right", pairs=PAIRS[:2])
    assert LabelSession(PAIRS, file, "anna").current == PAIRS[2]


@pytest.mark.parametrize("theirs", ["left", "tie"])
@pytest.mark.parametrize("act", ["left", "tie", "undo"])
def test_a_second_session_on_the_same_file_cannot_overwrite_the_first(theirs, act, file):
    labelled(file, "right", "skip")
    one, two = LabelSession(PAIRS, file, "anna"), LabelSession(PAIRS, file, "anna")
    one.choose(theirs)
    with pytest.raises(ValueError, match="was changed by another program or another session"):
        two.undo() if act == "undo" else two.choose(act)
    assert read_labels(file).choice.tolist() == ["right", "skip", theirs] and two.done == 2


def test_an_unknown_choice_and_another_ending_are_refused(file):
    with pytest.raises(ValueError, match="choice is 'both'; it must be one of left, right, tie"):
        LabelSession(PAIRS, file).choose("both")
    with pytest.raises(ValueError, match="it must be a file whose name ends in .jsonl"):
        LabelSession(PAIRS, file.with_suffix(".csv"))


# What a reader makes of the files


def test_labels_of_several_people_are_one_table(tmp_path):
    for name, choices in (("anna", ["left", "tie"]), ("ben", ["right", "left", "skip"])):
        labelled(tmp_path / f"{name}.jsonl", *choices, annotator=name)
    everything = sorted(tmp_path.iterdir())  # `*.jsonl` names the files of ties and skips too
    table = read_labels(*everything)
    assert len(everything) == 4 and table.annotator.tolist() == ["anna"] * 2 + ["ben"] * 3
    assert table.choice.tolist() == ["left", "tie", "right", "left", "skip"]
    assert table.left.tolist() == ["a", "b", "a", "b", "c"] and set(table.right) == {"dull"}
    assert table.chosen[0] == "a" and table.chosen.isna().tolist() == [
        False,
        True,
        False,
        False,
        True,
    ]
    assert table.rejected[2] == "a" and table.left_mean.tolist() == [2.0] * 5
    assert table.pair.tolist() == [PAIRS[i].id for i in (0, 1, 0, 1, 2)]


def test_joined_files_train_one_reward_model(tmp_path):
    unrated = [Pair("p", "x", "y"), *PAIRS[1:]]
    for name, pairs in (("anna", unrated), ("ben", PAIRS)):
        labelled(tmp_path / f"{name}.jsonl", "left", "right", pairs=pairs, annotator=name)
    joined = tmp_path / "ours.jsonl"
    joined.write_text("".join((tmp_path / f"{n}.jsonl").read_text() for n in ("anna", "ben")))
    dataset = load_by_name(str(joined))
    assert dataset["chosen"][:] == ["x", "dull", "a", "dull"]
    with pytest.raises(ValueError, match="must be two whole files of one session"):
        read_labels(joined)


def test_a_file_of_ties_alone_is_read(file):
    labelled(file, "tie", "tie")
    assert not file.exists() and read_labels(file).choice.tolist() == ["tie", "tie"]


def damaged(file, change):
    """The file after `change` of its list of rows."""
    found = rows(file)
    change(found)
    file.write_text("".join(json.dumps(row) + "\n" for row in found))


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda rows: rows.pop(0), "label number 0 is missing"),
        (lambda rows: rows.append(rows[0]), "another one stands there twice"),
        (lambda rows: rows[1].pop("pair"), "anna.jsonl, row 2: column pair is missing"),
        (lambda rows: rows[1].update(number="1"), "row 2, column number: '1' is no int"),
        (lambda rows: rows[0].update(side="up"), "row 1, column side is 'up'; it must be left or"),
        (lambda rows: rows[1].update(annotator="ben"), "mixes labels of anna and ben"),
        (lambda rows: rows[1].pop("chosen"), "row 2: column chosen is missing"),
        (lambda rows: rows[0].update(chosen_mean="abc"), "row 1, column chosen_mean is 'abc'"),
    ],
)
def test_a_damaged_file_of_labels_is_refused(change, sentence, file):
    labelled(file, "left", "right", "tie", "left")
    damaged(file, change)
    for read in (read_labels, lambda path: LabelSession(PAIRS, path, "anna")):
        with pytest.raises(ValueError, match=sentence):
            read(file)


def test_labels_that_are_not_there_or_twice_are_refused(file, tmp_path):
    labelled(file, "left", "right")
    copy = tmp_path / "copy.jsonl"
    copy.write_text(file.read_text())
    with pytest.raises(ValueError, match="The same labels of anna are there twice"):
        read_labels(file, copy)
    with pytest.raises(ValueError, match="There is no file '.*none.jsonl'"):
        read_labels(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="at least one file"):
        read_labels()
    Path(copy).write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="copy.jsonl' cannot be read"):
        read_labels(copy)
