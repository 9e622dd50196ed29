"""A lesson is built from its source: answers are not in it, solutions are a notebook of their own."""

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError

from minirlhf.classroom import course
from tests.notebooks.test_notebooks import not_current

HEAD = """# %% [markdown]
# # 42 · A made lesson

# %%
import numpy as np


class Said(str):
    __repr__ = str.__str__


class check:  # stands in for the package's checkers: importing them takes seconds
    def in_sft_units(function):
        scores, sft_scores = np.array([1.0, 3.0]), np.array([0.0, 4.0])
        right = np.array_equal(function(scores, sft_scores), (scores - 2) / 2)
        return Said("pass: right" if right else "not yet: wrong")


# %%
print("open")
"""
LESSON = (
    HEAD
    + """
# %% tags=["shared"]
factor = 2

# %% [markdown]
# **Predict** the sum.

# %% tags=["predict"]
print(3 + 4)

# %% [markdown]
# ## Exercises

# %% [markdown] tags=["exercise"]
# **1. Units.** Return the scores in units of the SFT samples.


# %% tags=["exercise"]
def in_sft_units(scores, sft_scores): ...  # your code


check.in_sft_units(in_sft_units)


# %% tags=["solution"]
def in_sft_units(scores, sft_scores):
    return (scores - sft_scores.mean()) / sft_scores.std()


check.in_sft_units(in_sft_units)

# %% [markdown] tags=["solution"]
# The standard deviation is the unit.

# %% tags=["exercise", "solution"]
print("drawn with", factor)

# %% [markdown]
# ## Going further
"""
)
BLANK = "def in_sft_units(scores, sft_scores): ...  # your code"


def written(tmp_path, text):
    source = tmp_path / "42_made.py"
    source.write_text(text, encoding="utf-8")
    return source


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A lesson's source, its folder, and the cells of lesson and solutions."""
    folder = tmp_path_factory.mktemp("made")
    source = written(folder, LESSON)
    path, _ = course.build(source, folder)
    return source, folder, path, folder / "solutions" / "42_made.ipynb"


def cells(path):
    return nbformat.read(path, 4).cells


def cell_with(path, words):
    return next(cell for cell in cells(path) if words in cell.source)


def test_the_lesson_has_the_blank_and_no_solution(made):
    _, _, lesson, _ = made
    text = "\n".join(cell.source for cell in cells(lesson))
    assert BLANK in text and "Exercises" in text and "Going further" in text
    assert "sft_scores.mean()" not in text and "is the unit" not in text


def test_answers_of_predictions_and_exercises_are_not_saved(made):
    _, _, lesson, _ = made
    assert course.text_of(cell_with(lesson, "open")) == "open\n"
    assert cell_with(lesson, "open").execution_count
    for words in ("print(3 + 4)", BLANK, "drawn with"):
        cell = cell_with(lesson, words)
        assert cell.outputs == [] and cell.execution_count is None


def test_the_solutions_hold_statement_solution_and_the_checkers_pass(made):
    _, _, _, solutions = made
    assert [(c.cell_type, c.source.splitlines()[0]) for c in cells(solutions)] == [
        ("markdown", "# Solutions: 42 · A made lesson"),
        ("code", "import numpy as np"),
        ("code", "factor = 2"),
        ("markdown", "**1. Units.** Return the scores in units of the SFT samples."),
        ("code", "def in_sft_units(scores, sft_scores):"),
        ("markdown", "The standard deviation is the unit."),
        ("code", 'print("drawn with", factor)'),
    ]
    assert course.text_of(cell_with(solutions, "sft_scores.mean()")) == "pass: right"
    assert course.text_of(cell_with(solutions, "drawn with")) == "drawn with 2\n"


@pytest.mark.parametrize("tags, kept", [('tags=["exercise"]', False), ("", True)])
def test_the_state_of_a_widget_is_saved_only_with_its_output(tags, kept, tmp_path, monkeypatch):
    """In place of a kernel: the last cell shows a widget, and its state is in the notebook."""

    def execute(notebooks, used):
        (notebook,) = notebooks
        view = {"application/vnd.jupyter.widget-view+json": {"model_id": "a"}}
        notebook.cells[-1].outputs = [nbformat.v4.new_output("display_data", view)]
        notebook.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {}}

    monkeypatch.setattr(course, "run_together", execute)
    source = written(tmp_path, f"# %% [markdown]\n# # 42\n\n# %% {tags}\nwidget\n")
    path, _ = course.build(source, tmp_path)
    assert ("widgets" in nbformat.read(path, 4).metadata) == kept
    assert bool(cells(path)[-1].outputs) == kept


def test_what_was_just_built_is_current(made):
    source, folder, *_ = made
    assert not_current(source, folder) == []


def changed(path, folder, change):
    """A copy of both notebooks in which one cell is changed."""
    (folder / "solutions").mkdir()
    for original in (path, path.parent / "solutions" / path.name):
        notebook = nbformat.read(original, 4)
        change(notebook)
        nbformat.write(notebook, folder / original.relative_to(path.parent))


def set_output(words, text):
    def change(notebook):
        for cell in notebook.cells:
            if words in cell.source:
                cell.outputs = [nbformat.v4.new_output("stream", text=text)]

    return change


def unexecuted(notebook):
    for cell in notebook.cells:
        if cell.source == 'print("open")':
            cell.execution_count = None


def reworded(notebook):
    for cell in notebook.cells:
        cell.source = cell.source.replace("is the unit", "is a unit")


@pytest.mark.parametrize(
    "change, wrong",
    [
        (set_output("print(3 + 4)", "7"), "gives the answer away"),
        (set_output(BLANK, "not yet: ..."), "gives the answer away"),
        (set_output("sft_scores.mean()", "not yet: ..."), "refuses a solution"),
        (unexecuted, "is not executed"),
        (reworded, "not built from the current source"),
        (lambda notebook: notebook.cells[-1].metadata.pop("tags", 0), "other tags"),
    ],
)
def test_a_notebook_that_is_not_current_is_found(made, tmp_path, change, wrong):
    source, _, lesson, _ = made
    changed(lesson, tmp_path, change)
    (found,) = not_current(source, tmp_path)
    assert wrong in found


def test_a_missing_notebook_of_solutions_is_found(made, tmp_path):
    source, _, lesson, _ = made
    nbformat.write(nbformat.read(lesson, 4), tmp_path / lesson.name)
    (found,) = not_current(source, tmp_path)
    assert "is missing" in found


def test_a_source_without_tags_keeps_all_outputs_and_has_no_solutions(tmp_path):
    path, _ = course.build(written(tmp_path, HEAD), tmp_path)
    assert [c.execution_count for c in cells(path) if c.cell_type == "code"] == [1, 2]
    assert course.text_of(cell_with(path, "open")) == "open\n"
    assert not (tmp_path / "solutions").exists()


def test_a_solution_that_the_checker_refuses_is_not_built(tmp_path):
    wrong = LESSON.replace("/ sft_scores.std()", "* sft_scores.std()")
    with pytest.raises(ValueError, match="refuses the solution `def in_sft_units"):
        course.build(written(tmp_path, wrong), tmp_path)
    assert not list(tmp_path.rglob("*.ipynb"))


def test_a_blank_that_raises_is_refused_unless_it_says_so(tmp_path):
    raises = HEAD + '\n# %% tags=["exercise"]\nin_sft_units.missing\n'
    with pytest.raises(CellExecutionError):
        course.build(written(tmp_path, raises), tmp_path)
    said = raises.replace('["exercise"]', '["exercise", "raises-exception"]')
    path, _ = course.build(written(tmp_path, said), tmp_path)
    assert cells(path)[-1].outputs == []


def test_an_unknown_tag_is_refused(tmp_path):
    with pytest.raises(ValueError, match="tag is 'exercises'"):
        course.build(written(tmp_path, HEAD + '\n# %% tags=["exercises"]\n1\n'), tmp_path)
