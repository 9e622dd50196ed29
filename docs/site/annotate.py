"""A Python file as a page: docstrings and comments stand beside the code that they are about."""

import ast
import html
import inspect
import io
import re
import tokenize
from dataclasses import dataclass, field

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

TITLED = re.compile(r"(Args|Returns|Raises|Yields|Source|Sources|Example|Examples):\s*")
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@dataclass
class Row:
    """Words and the code beside them. `title` is set where a function or class begins."""

    title: str = ""
    words: list[str] = field(default_factory=list)
    docstring: str = ""
    code: list[str] = field(default_factory=list)


def page(source: str, name: str) -> str:
    """A Python file as a Markdown page with HTML rows.

    Args:
        source: the file's text.
        name: its path in the repository, for the title.
    """
    first, *rows = rows_of(source)
    titles = [row.title for row in rows if row.title]
    links = " · ".join(f'<a href="#code-{title}">{title}</a>' for title in titles)
    parts = [f"# `{name}`", _html(words_of(first.docstring) + f"<p>{links}</p>", "introduction")]
    for row in ([first] if first.code else []) + rows:
        if row.title:
            parts.append(f"## `{row.title}`")
        comment = f"<p>{_inline(' '.join(row.words))}</p>" if row.words else ""
        words = words_of(row.docstring) if row is not first else ""
        code = highlight("\n".join(row.code).strip("\n"), PythonLexer(stripnl=False), _FORMATTER)
        parts.append(
            _html(
                f'<div class="words">{comment}{words}</div>\n'
                f'<div class="code highlight"><pre>{code}</pre></div>',
                "annotated",
                f"code-{row.title}" if row.title else "",
            )
        )
    return "\n\n".join(parts) + "\n"


def rows_of(source: str) -> list[Row]:
    """A file's rows, in order. The first one has the file's docstring and its imports."""
    tree = ast.parse(source)
    nodes = [tree, *(node for node in ast.walk(tree) if isinstance(node, DEFINITIONS))]
    docstrings = {}  # first line -> (last line, text)
    for node in nodes:
        if (text := ast.get_docstring(node)) is not None:
            docstrings[node.body[0].lineno] = node.body[0].end_lineno, text
    starts = {_first_line(node): "" for node in nodes[1:] if ast.get_docstring(node)}
    starts |= {_first_line(node): node.name for node in tree.body if isinstance(node, DEFINITIONS)}
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    comments = {
        t.start[0]
        for t in tokens
        if t.type == tokenize.COMMENT and not t.line[: t.start[1]].strip()
    }
    rows, skip, commented = [Row()], 0, False
    for number, line in enumerate(source.splitlines(), start=1):
        if number <= skip:
            continue
        if number in starts:
            above = rows[-1]  # a comment right above a function belongs to it
            if not (above.words and not any(above.code)):
                rows.append(Row())
            rows[-1].title = starts[number]
            rows[-1].code.append(line)
            if number in docstrings:  # on the same line
                skip, rows[-1].docstring = docstrings[number]
        elif number in docstrings:
            skip, rows[-1].docstring = docstrings[number]
        elif number in comments:
            if not commented and (any(rows[-1].code) or rows[-1].docstring):
                rows.append(Row())
            rows[-1].words.append(line.strip().lstrip("#").strip())
        else:
            rows[-1].code.append(line)
        commented = number in comments
    return [row for i, row in enumerate(rows) if i == 0 or any(row.code) or row.words]


def _first_line(node: ast.AST) -> int:
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])


def words_of(docstring: str) -> str:
    """A docstring as HTML. Indented blocks keep their layout: they are formulas or code."""
    parts = []
    for block in re.split(r"\n\s*\n", inspect.cleandoc(docstring)) if docstring else ():
        lines = block.split("\n")
        title = TITLED.match(lines[0])
        if title and title.end() == len(lines[0]):
            parts += [f'<p class="title">{title[1]}</p>', _entries(lines[1:])]
        elif all(line.startswith("    ") for line in lines):
            parts.append(f"<pre>{html.escape(inspect.cleandoc(block))}</pre>")
        else:
            parts.append(f"<p>{_inline(' '.join(line.strip() for line in lines))}</p>")
    return "\n".join(parts)


def _entries(lines: list[str]) -> str:
    """The lines below `Args:` or `Returns:`, one paragraph for each entry."""
    entries: list[str] = []
    for line in inspect.cleandoc("\n".join(["", *lines])).split("\n"):
        if line.startswith(" ") and entries:
            entries[-1] += " " + line.strip()
        else:
            entries.append(line.strip())
    return "".join(
        f'<p class="entry">{re.sub(r"^([*A-Za-z_][A-Za-z_0-9, *]*):", _bold, _inline(entry))}</p>'
        for entry in entries
    )


def _bold(match: re.Match) -> str:
    return f"<code>{match[1]}</code>:"


def _inline(text: str) -> str:
    """Escaped text with `code` as code and *emphasis* as emphasis."""
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))
    return re.sub(r"(?<![\w*])\*(\w[\w ]*)\*(?![\w*])", r"<em>\1</em>", text)


def _html(body: str, kind: str, place: str = "") -> str:
    """Raw HTML for Sphinx. The fence is longer than any in a docstring. `place` is an HTML id."""
    identity = f' id="{place}"' if place else ""
    return f'``````{{raw}} html\n<div class="{kind}"{identity}>\n{body}\n</div>\n``````'


_FORMATTER = HtmlFormatter(nowrap=True)
