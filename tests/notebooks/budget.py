"""The budget of a lesson: counters over a notebook, and what exceeds the budget.

A lesson is an executed notebook (nbformat). Each function below answers one question of it;
`exceeds` applies the limits and returns a list of sentences.

Words. A word is a run of characters between spaces that has a letter or digit. An inline formula or
a piece of inline code is one word. Fenced code, displayed formulas, tables, HTML tags and the
addresses of links are not counted.

Lines. A line of code is a line that is not blank; comments count. The lengths of cells and of the
whole leave out the cells tagged "exercise". Imports and style are checked in every cell.
"""

import ast
import html.parser
import re
import subprocess
import sys

from minirlhf.classroom.course import tags

WIDTH = 88
OUTPUT_WIDTH, OUTPUT_LINES, PRINTED_LINES = 100, 30, 12


def headings(notebook):
    """(name, index of the cell, offset in the cell) of each heading of level 1 to 3."""
    found = []
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            text = re.sub(r"```.*?```", lambda m: " " * len(m[0]), cell.source, flags=re.S)
            found += [
                (m[1].strip(), index, m.start())
                for m in re.finditer(r"^#{1,3} +(.+)$", text, re.MULTILINE)
            ]
    return found


def position(notebook, name):
    """(cell, offset) of the heading with this name; None if there is none."""
    return next(((i, at) for title, i, at in headings(notebook) if title == name), None)


def text_between(notebook, start=None, end=None):
    """The markdown from one (cell, offset) to another; from the start or to the end if None."""
    start, end = start or (0, 0), end or (len(notebook.cells), 0)
    parts = []
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type != "markdown" or not start[0] <= index <= end[0]:
            continue
        first = start[1] if index == start[0] else 0
        last = end[1] if index == end[0] else None
        parts.append(cell.source[first:last])
    return "\n\n".join(parts)


def words(text):
    """The number of words of a markdown text."""
    text = re.sub(r"```.*?```|\$\$.*?\$\$|<!--.*?-->", " ", text, flags=re.S)
    text = re.sub(r"^ *\|.*$", " ", text, flags=re.MULTILINE)
    text = re.sub(r"`[^`\n]+`|\$[^$]+\$", " formula ", text)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"</?[a-zA-Z][^>]*>|https?://\S+", " ", text)
    return sum(any(c.isalnum() for c in word) for word in text.split())


def code_cells(notebook, exercises=False):
    """The code cells, without those of the exercises unless asked for."""
    return [
        cell
        for cell in notebook.cells
        if cell.cell_type == "code" and (exercises or "exercise" not in tags(cell))
    ]


def lines(cell):
    """The number of lines of code of a cell."""
    return sum(bool(line.strip()) for line in cell.source.splitlines())


def tree_of(cell):
    """The syntax tree of a cell, without IPython's own lines."""
    code = [
        "" if line.startswith(("%", "!")) else line.rstrip("; ")
        for line in cell.source.splitlines()
    ]
    return ast.parse("\n".join(code))


def import_lines(notebook):
    """The number of lines that the import statements take."""
    return sum(
        node.end_lineno - node.lineno + 1
        for cell in code_cells(notebook, exercises=True)
        for node in ast.walk(tree_of(cell))
        if isinstance(node, ast.Import | ast.ImportFrom)
    )


def unformatted(path):
    """What `ruff format` would change in a notebook, as a diff; "" if nothing."""
    return subprocess.run(
        [sys.executable, "-m", "ruff", "format", "--isolated", "--no-cache", "--diff"]
        + ["--line-length", str(WIDTH), "--target-version", "py311", str(path)],
        capture_output=True,
        text=True,
    ).stdout


def forbidden(notebook):
    """The pieces of code that do not belong in a lesson, each with the reason."""
    found, imported, records = [], set(), set()
    for cell in code_cells(notebook, exercises=True):
        tree = tree_of(cell)
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                imported |= {(a.asname or a.name).split(".")[0] for a in node.names}
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and reads_records(node.value, records):
                records |= {t.id for t in node.targets if isinstance(t, ast.Name)}
        for node in ast.walk(tree):
            if reason := reason_against(node, imported, records):
                found.append(f"{reason}: {ast.unparse(node)[:60]}")
    return found


def reason_against(node, imported, records):
    """Why a piece of code does not belong in a lesson; "" if it may stay."""
    if isinstance(node, ast.Call):
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        if name == "setattr":
            return "something is patched"
        if name == "print" and has_columns(node):
            return "columns made with print"
    if isinstance(node, ast.Attribute) and is_private(node.attr):
        return "a private name"
    if isinstance(node, ast.ImportFrom | ast.Import):
        parts = [part for a in node.names for part in a.name.split(".")]
        parts += (getattr(node, "module", "") or "").split(".")
        if any(map(is_private, parts)):
            return "a private name"
        if {"mock", "monkeypatch"} & set(parts):
            return "something is patched"
    if isinstance(node, ast.Assign | ast.AugAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        if any(isinstance(t, ast.Attribute) and root(t) in imported for t in targets):
            return "something is patched"
    if isinstance(node, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
        if any(reads_records(part.iter, records) for part in node.generators):
            return "a comprehension over records"
    return ""


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def root(node):
    """The name that an expression such as a.b.c or a.b["c"] begins with."""
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return getattr(node, "id", "")


def reads_records(node, records):
    """Whether an expression uses results(...), or a name that was assigned from it."""
    return any(
        (
            isinstance(part, ast.Call)
            and getattr(part.func, "id", getattr(part.func, "attr", ""))
            in ("results", "load_results")
        )
        or (isinstance(part, ast.Name) and part.id in records)
        for part in ast.walk(node)
    )


def has_columns(call):
    """Whether a call pads what it prints: a width in a format, a tab, ljust, rjust or center."""
    for node in ast.walk(call):
        if isinstance(node, ast.FormattedValue) and node.format_spec is not None:
            parts = node.format_spec.values  # a width may be an expression: {x:<{width}}
            spec = "".join(p.value if isinstance(p, ast.Constant) else "9" for p in parts)
            if re.match(r"(.?[<>^=])?[-+ ]?#?0?[1-9]", spec):
                return True
        if isinstance(node, ast.Attribute) and node.attr in ("ljust", "rjust", "center"):
            return True
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if "\t" in node.value or re.search(
                r"%[-+ 0]*[1-9]\d*[.\dsdfg]|\{[^{}]*:[^{}]?[<>^]", node.value
            ):
                return True
    return False


class Table(html.parser.HTMLParser):
    """The rows of the tables of a page, each a list of its cells' texts."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.open = [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")
            self.open = True

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.open = False

    def handle_data(self, data):
        if self.open:
            self.rows[-1][-1] += data


def sizes(cell):
    """(what, lines, widest line) of each text or table that a code cell shows.

    A table has a line for each row. Its width is that of its widest cells, with two spaces between
    columns. Pictures, interactive HTML, other HTML and tables whose cells are wrapped have none. All that a cell prints is one text.
    """
    found, printed = [], ""
    for output in cell.outputs:
        data = output.get("data", {})
        if output.output_type == "stream":
            printed += output.text
        elif "<table" in data.get("text/html", "") and "<script" not in data["text/html"]:
            if "white-space:pre-wrap" in data["text/html"]:  # show.texts: its cells are wrapped
                continue
            rows = Table(data["text/html"]).rows
            columns = max(map(len, rows), default=0)
            widest = [max(len(r[i]) for r in rows if i < len(r)) for i in range(columns)]
            found.append(("table", len(rows), sum(widest) + 2 * max(columns - 1, 0)))
        elif "text/html" not in data and "image/png" not in data and "text/plain" in data:
            found.append(("text", *measured(data["text/plain"])))
    return found + ([("print", *measured(printed))] if printed else [])


def measured(text):
    """(lines, widest line) of a text."""
    rows = text.rstrip("\n").split("\n")
    return len(rows), max(map(len, rows))


def glued_to_a_table(notebook):
    """The first characters of each line of text that Markdown would draw as a table's last row."""
    prose = text_between(notebook)
    return re.findall(r"^ *\|.*\n(?! *\||</| *$)(.{1,40})", prose, re.MULTILINE)


def exceeds(notebook, path):
    """What exceeds the budget of a lesson, or of a lab: a list of sentences.

    Args:
        notebook: the executed notebook.
        path: its file. A name such as 11b_objections is that of a lab.
    """
    wrong = []

    def at_most(limit, number, what):
        if number > limit:
            wrong.append(f"{what}: {number}, at most {limit}")

    lab = re.match(r"\d+b_", path.name) is not None
    exercises, further = position(notebook, "Exercises"), position(notebook, "Going further")
    if exercises is None:
        return ['there is no heading "Exercises"']
    at_most(2400, words(text_between(notebook, end=exercises)), "words before the exercises")
    if further is not None:
        if further < exercises:
            wrong.append('"Going further" stands before the exercises')
        later = [(i, at) for _, i, at in headings(notebook) if (i, at) > further]
        end = next((p for p in later if p == position(notebook, "References")), None)
        at_most(1500, words(text_between(notebook, further, end)), 'words of "Going further"')
    code = code_cells(notebook)
    at_most(24 if lab else 18, len(code), "code cells")
    at_most(240 if lab else 180, sum(map(lines, code)), "lines of code")
    long = sorted((lines(cell) for cell in code if lines(cell) > 15), reverse=True)
    at_most(1, len(long), "code cells of more than 15 lines")
    at_most(40, long[0] if long else 0, "lines of the longest code cell")
    at_most(8, import_lines(notebook), "lines of imports")
    for cell in code_cells(notebook, exercises=True):
        for line in cell.source.splitlines():
            at_most(WIDTH, len(line), f"characters of the line `{line[:40]}`")
    if difference := unformatted(path):
        wrong.append(f"run ruff format: {difference}")
    for cell in code_cells(notebook, exercises=True):
        name = cell.source.strip().split("\n")[0][:40]
        for what, rows, width in sizes(cell):
            limit = PRINTED_LINES if what == "print" else OUTPUT_LINES
            at_most(limit, rows, f"lines of the {what} under `{name}`")
            at_most(OUTPUT_WIDTH, width, f"characters of a line of the {what} under `{name}`")
    wrong += [f"no blank line after the table: {line}" for line in glued_to_a_table(notebook)]
    return wrong + forbidden(notebook)
