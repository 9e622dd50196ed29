"""All lessons keep the budget, and the counters of the budget count."""

import copy

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from minirlhf.classroom.course import NOTEBOOKS, notebook_sources
from tests.notebooks import budget


def test_all_lessons_keep_the_budget():
    wrong = {}
    for source in notebook_sources():
        path = NOTEBOOKS / f"{source.stem}.ipynb"
        if found := budget.exceeds(nbformat.read(path, 4), path):
            wrong[source.stem] = found
    assert wrong == {}


def text(source):
    return new_markdown_cell(source)


def code(source, *outputs, tags=()):
    return new_code_cell(source.rstrip(), outputs=list(outputs), metadata={"tags": list(tags)})


def printed(words):
    return new_output("stream", text=words)


def table(rows, columns, word="12345678"):
    row = f"<tr>{f'<td>{word}</td>' * columns}</tr>"
    data = {"text/html": f"<table>{row * rows}</table>", "text/plain": "x" * 500}
    return new_output("execute_result", data=data)


def exceeds(tmp_path, *cells, name="42_made.ipynb", end=True):
    ending = [text("## Exercises")] if end else []
    cells = [copy.deepcopy(cell) for cell in (*cells, *ending)]
    for index, cell in enumerate(cells):
        cell["id"] = f"cell-{index}"
    notebook = new_notebook(cells=cells)
    nbformat.write(notebook, tmp_path / name)
    return budget.exceeds(notebook, tmp_path / name)


@pytest.mark.parametrize(
    "markdown, number",
    [
        ("One *emphasised* word, and 2 numbers.", 6),
        ("## 1. The clip\n\n- a\n- b", 5),
        ("a - b", 2),
        ("The ratio $\\rho_t = \\frac{a b}{c d}$ and `core.gae(a, b)`.", 5),
        ("before\n\n$$ L = a + b $$\n\nafter", 2),
        ("before\n```python\nx = 1\n```\nafter", 2),
        ("before\n\n| a | b |\n|---|---|\n| c | d |\n\nafter", 2),
        ("see [two words](https://a.b/c) and https://a.b/c", 4),
        ('<details><summary class="x y">What you see</summary>\n\nthis\n</details>', 4),
        ("<!-- no word --> one", 1),
    ],
)
def test_words_are_counted(markdown, number):
    assert budget.words(markdown) == number


def test_a_lesson_at_the_limits_is_within_the_budget(tmp_path):
    ten = "a = 1  # comment\n\nb = 2" + "\nc = 3" * 8
    cells = [
        text("# 42 · Made\n\n" + "word " * 2398),
        code("import math  # noqa\nfrom minirlhf import core\n" + "import json\n" * 6),
        code("x = 1\n" * 40),
        *[code(ten) for _ in range(13)],
        code("y = 1\n" * 2, printed("a\n" * 12), table(30, 10)),
        text("## Exercises\n\n" + "word " * 9000),
        *[code("z = 1\n" * 50, tags=["exercise"]) for _ in range(30)],
        text("## Going further\n\n" + "word " * 1498),
        text("## References\n\n" + "word " * 9000),
    ]
    assert exceeds(tmp_path, *cells, end=False) == []


@pytest.mark.parametrize(
    "cells, wrong",
    [
        ([text("word " * 2401)], "words before the exercises: 2401, at most 2400"),
        ([text("## Exercises\n## Going further\n" + "x " * 1499)], "further"),
        ([text("## Going further"), text("## Exercises")], "stands before the exercises"),
        ([code("x = 1")] * 19, "code cells: 19, at most 18"),
        ([code("x = 1\n" * 13)] * 14, "lines of code: 182, at most 180"),
        ([code("x = 1\n" * 16)] * 2, "code cells of more than 15 lines: 2, at most 1"),
        ([code("# a\n" * 41)], "lines of the longest code cell: 41, at most 40"),
        ([code("import json\n" * 9)], "lines of imports: 9, at most 8"),
        (
            [code("from json import (\n" + "".join(f"    a{i},\n" for i in range(7)) + ")")],
            "lines of imports: 9, at most 8",
        ),
        ([code("# " + "x" * 87)], "characters of the line `# xxx"),
        ([code("x  = 1")], "run ruff format"),
        ([code("x", printed("a\n" * 13))], "lines of the print under `x`: 13, at most 12"),
        ([code("x", printed("a" * 101))], "characters of a line of the print under `x`: 101"),
        ([code("x", printed("a\n" * 7), printed("a\n" * 7))], "lines of the print under `x`: 14"),
        ([code("x", table(31, 2))], "lines of the table under `x`: 31, at most 30"),
        ([code("x", table(2, 11))], "characters of a line of the table under `x`: 108"),
        ([text("| a |\n|---|\n| b |\nA sentence.")], "no blank line after the table: A sentence."),
    ],
)
def test_what_exceeds_the_budget_is_found(tmp_path, cells, wrong):
    end = not any("Exercises" in cell.source for cell in cells)
    (found,) = exceeds(tmp_path, *cells, end=end)
    assert wrong in found


def test_a_lesson_without_exercises_is_found(tmp_path):
    assert exceeds(tmp_path, text("# 42"), end=False) == ['there is no heading "Exercises"']


def test_a_lab_may_have_more_cells_and_lines(tmp_path):
    cells = [code("x = 1\n" * 10)] * 24
    assert exceeds(tmp_path, *cells, name="42b_lab.ipynb") == []
    assert exceeds(tmp_path, *cells, name="42_lesson.ipynb")
    assert exceeds(tmp_path, *cells, code("x = 1"), name="42b_lab.ipynb") == [
        "code cells: 25, at most 24",
        "lines of code: 241, at most 240",
    ]


def test_pictures_and_interactive_pages_have_no_lines(tmp_path):
    long = {"text/plain": "x" * 900}
    shown = [
        new_output("display_data", data=long | {"image/png": "", "text/html": "<svg>"}),
        new_output("display_data", data=long | {"text/html": "<table></table><script></script>"}),
        new_output("display_data", data=long | {"text/html": "<b>x</b>"}),
    ]
    assert exceeds(tmp_path, code("x", *shown)) == []


@pytest.mark.parametrize(
    "source, reason",
    [
        ("model._cache", "a private name"),
        ("from minirlhf.core import _private", "a private name"),
        ("import torch._C", "a private name"),
        ("from minirlhf import core\ncore.gae = 1", "something is patched"),
        ("from minirlhf import core\ncore.returns.gae = 1", "something is patched"),
        ('setattr(core, "gae", 1)', "something is patched"),
        ("from unittest import mock", "something is patched"),
        ('[row["gold"] for row in results("tour")]', "a comprehension over records"),
        ('x = experiments.results("a")\ny = x[x.seed == 0]\nlist(r for r in y)', "a comprehension"),
        ('print(f"{a:>22} b")', "columns made with print"),
        ('print(f"{a:6.2f}")', "columns made with print"),
        ('print(f"{a:<{width}}")', "columns made with print"),
        ('print("a".ljust(8))', "columns made with print"),
        ('print("%8.2f" % a)', "columns made with print"),
        ('print("{:>8}".format(a))', "columns made with print"),
        ('print("a\\tb")', "columns made with print"),
    ],
)
def test_code_that_does_not_belong_in_a_lesson_is_found(source, reason):
    for tags in ((), ("exercise",)):
        (found,) = budget.forbidden(new_notebook(cells=[code(source, tags=tags)]))
        assert found.startswith(reason)


@pytest.mark.parametrize(
    "source",
    [
        "%matplotlib inline\nshow.lines(runs);",
        "model.__class__\nfor _ in range(2):\n    x = 1",
        'runs = experiments.results("tour")\nruns.groupby("method").gold.mean()',
        "[row.sum() for row in rows]",
        "model.training = False",
        'print(f"A = {advantage:+.0f}: {x:.2f} {y:,}", "50 % of them")',
    ],
)
def test_ordinary_code_may_stay(source):
    assert budget.forbidden(new_notebook(cells=[code(source)])) == []
