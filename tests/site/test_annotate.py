"""The source as pages: words beside the code."""

import ast
import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "minirlhf").rglob("*.py"))
SITE = ROOT / "docs" / "site"


def module(name):
    spec = importlib.util.spec_from_file_location(name, SITE / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    sys.modules[name] = found  # dataclasses look it up
    spec.loader.exec_module(found)
    return found


annotate = module("annotate")
SMALL = '''"""The file.

    x = 1
"""

import os

# a constant
SIZE = 1  # not a comment line


# why it is here
@cache
def area(side, other):
    """The *area* of `side`.

        a = s * o

    Args:
        side: a length
            in metres.
        other: < 3.

    Returns:
        the area.
    """
    a = side * other
    # both steps
    # matter
    return a


class Box:
    """A box."""

    def open(self):
        """Open it."""
'''


def test_a_function_stands_beside_its_docstring_and_comments():
    first, constant, area, steps, box, opened = annotate.rows_of(SMALL)
    assert first.docstring.startswith("The file.") and "import os" in first.code
    assert constant.words == ["a constant"] and constant.code[0].startswith("SIZE = 1  #")
    assert area.title == "area" and area.words == ["why it is here"]
    assert area.code == ["@cache", "def area(side, other):", "    a = side * other"]
    assert steps.words == ["both steps", "matter"] and steps.code[0] == "    return a"
    assert box.title == "Box" and box.docstring == "A box."
    assert opened.title == "" and opened.docstring == "Open it."


def test_a_class_in_one_line_and_a_text_with_a_hash_are_kept():
    first, error, text = annotate.rows_of(
        'import os\nclass Wrong(Exception): """It is wrong."""\n# a text\nTEXT = """\n# a heading\n"""\n'
    )
    assert error.title == "Wrong" and error.docstring == "It is wrong."
    assert error.code == ['class Wrong(Exception): """It is wrong."""']
    assert text.words == ["a text"] and "# a heading" in text.code


def test_a_title_is_no_markdown():
    page = annotate.page("def __getattr__(name):\n    pass\n", "minirlhf/core/__init__.py")
    assert page.startswith("# `minirlhf/core/__init__.py`\n")
    assert "\n## `__getattr__`\n" in page


def test_a_docstring_becomes_html():
    words = annotate.words_of(annotate.rows_of(SMALL)[2].docstring)
    assert "<p>The <em>area</em> of <code>side</code>.</p>" in words
    assert "<pre>a = s * o</pre>" in words
    assert '<p class="title">Args</p>' in words
    assert '<p class="entry"><code>side</code>: a length in metres.</p>' in words
    assert '<p class="entry"><code>other</code>: &lt; 3.</p>' in words
    assert annotate.words_of("") == ""


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_line_of_a_file_is_on_its_page_once_and_in_order(path):
    source = path.read_text()
    rows = annotate.rows_of(source)
    docstrings = {
        line
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        if ast.get_docstring(node) is not None
        for line in range(node.body[0].lineno, node.body[0].end_lineno + 1)
    }
    kept = [x for i, x in enumerate(source.splitlines(), 1) if i not in docstrings and x.strip()]
    code = [line for line in kept if not line.strip().startswith("#")]
    comments = [x.strip().lstrip("#").strip() for x in kept if x.strip().startswith("#")]
    assert [line for row in rows for line in row.code if line.strip()] == code
    assert [words for row in rows for words in row.words] == comments
    said = [ast.get_docstring(node) for node in _documented(ast.parse(source))]
    assert sorted(row.docstring for row in rows if row.docstring) == sorted(said)


def _documented(tree):
    nodes = [
        n for n in ast.walk(tree) if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef)
    ]
    return [node for node in nodes if ast.get_docstring(node)]
