"""Numbers in the prose of a lesson, compared with the record that they come from.

    def test_the_numbers_of_lesson_06():
        with lesson("06") as said:
            said("Without it the KL is about", kl["no clip"], kl["as it is"])
            said("gold is lower on every seed", (lower < 0).all())

`said(words, *values)` finds the one paragraph that has these words, and compares the numbers behind
them, in order. At its end, `with lesson(...)` requires that every number of the prose was compared.
Then it changes each number in a copy of the prose and requires that its comparison fails.

How a number is compared. It must equal the value rounded to as many decimals as the prose writes:
"1.43" is a value from 1.425 to 1.435. "31 %" is a value of 0.31, "1,076" of 1076, "3/4" of exactly
0.75. The sign counts, in "-0.2" as in "+0.2". Words from "two" to "twelve" may be compared, and
need not be: a value that equals the next word takes it, otherwise the word is skipped.

Not numbers of the prose: code, formulas, addresses of links, the references, years, numbers of
lessons, sections, exercises, figures and list items, versions of libraries, minutes to read, names
such as GPT-2, k3 and best-of-4, and the level of a 95 % interval.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from numbers import Real
from pathlib import Path

import nbformat
from nbformat.v4 import new_markdown_cell

from minirlhf.classroom.course import NOTEBOOKS

WORDS = "two three four five six seven eight nine ten eleven twelve".split()
NUMBER = re.compile(
    r"(?P<name>(?:[A-Za-z_@]|(?<=[A-Za-z])[-/])\d[\w.]*)"
    r"|(?P<sign>(?<![\w)\]])[-+\u2212\u2013](?=\d))?"
    r"(?P<digits>\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?)"
    r"(?:/(?P<over>\d+)|e(?P<power>[-+]?\d+))?(?P<percent>\s?%)?"
    r"|\b(?P<word>" + "|".join(WORDS) + r")\b",
    re.IGNORECASE,
)
ASIDE = [  # pieces of the prose without numbers that a record could give
    r"```.*?```|`[^`]*`",
    r"\$\$.*?\$\$|\$[^$]+\$",
    r"<!--.*?-->|</?[a-zA-Z][^>]*>|\]\([^)]*\)|https?://\S+",
    r"^#+ +\d+[a-z]?\b|^\s*\d+\. |\*\*\d+\.|(?<=\n)\d+\. ",
    r"\b(?:[Ll]essons?|[Ss]ections?|[Ee]xercises?|[Qq]uestions?|[Ff]igures?|[Tt]ables?)\s"
    r"\(?\d+[a-z]?\)?(?:(?:, | and | to |, and | or )\d+[a-z]?(?![.,]?\d))*",
    r"\b(?:19[5-9]\d|20[0-3]\d)\b(?![.,]\d| ?%)",
    r"\b(?:TRL|OpenRLHF|verl|DeepSpeed-Chat|PyTorch|Python|version|v)\s?\d+(?:\.\d+)+",
    r"\b95 ?% (?=(?:confidence )?intervals?)",
    r"\*\([^)]*\d+ minutes\)\*",
]


@dataclass
class Number:
    """A number as the prose writes it, and whether a claim has compared it."""

    text: str
    start: int
    value: float
    unit: Decimal  # the last digit that is written
    word: bool = False
    exact: bool = False
    checked: bool = False

    def equals(self, value: Real) -> bool:
        """Whether a computed value, rounded as the prose rounds, is this number."""
        if self.exact:
            return abs(value - self.value) < 1e-9
        return bool(abs(value - self.value) <= float(self.unit) / 2 + 1e-12 * max(1, abs(value)))


@dataclass
class Paragraph:
    """A paragraph, a list item, a heading or a row of a table."""

    text: str
    numbers: list[Number] = field(default_factory=list)


def blanked(text: str) -> str:
    """A text of the same length in which all that is not prose is replaced by spaces."""
    for pattern in ASIDE:
        text = re.sub(pattern, lambda m: " " * len(m[0]), text, flags=re.DOTALL | re.MULTILINE)
    return text


def numbers_of(text: str) -> list[Number]:
    """The numbers of a paragraph, in order."""
    found = []
    for m in NUMBER.finditer(blanked(text)):
        if m["word"]:
            count = WORDS.index(m["word"].lower()) + 2
            found.append(Number(m[0], m.start(), count, Decimal(1), word=True))
        elif m["digits"]:
            written = Decimal(m["digits"].replace(",", ""))
            scale = Decimal(10) ** int(m["power"] or 0) / (100 if m["percent"] else 1)
            unit = Decimal(1).scaleb(written.as_tuple().exponent) * scale
            value = float(written * scale) / float(m["over"] or 1)
            if m["sign"] and m["sign"] != "+":
                value = -value
            found.append(Number(m[0], m.start(), value, unit, exact=bool(m["over"])))
    return found


def paragraphs_of(cells: list) -> list[Paragraph]:
    """The paragraphs of the text cells before the references, without the line on minutes."""
    text = "\n\n".join(c.source for c in cells if c.cell_type == "markdown")
    text = re.split(r"^(?:#+ +|\*\*)References", text, flags=re.MULTILINE)[0]
    held = []  # fenced code and displayed formulas may have empty lines: they are one piece

    def hold(match):
        held.append(match[0])
        return f"\ue000{len(held) - 1}\ue001"

    text = re.sub(r"```.*?```|\$\$.*?\$\$", hold, text, flags=re.DOTALL)
    parts = re.split(r"\n\s*\n|\n(?=\s*[-*] |\s*\d+\. |#+ |\|)", text)
    parts = [re.sub("\ue000(\\d+)\ue001", lambda m: held[int(m[1])], part) for part in parts]
    parts = [" ".join(part.split()) for part in parts if part.strip()]
    return [
        Paragraph(part, numbers_of(part))
        for part in parts
        if not re.match(r"\*\*You need\b|#+ You need\b", part)
    ]


class Said:
    """The prose of one notebook. Calling it compares numbers of one paragraph with values."""

    def __init__(self, cells: list):
        self.paragraphs = paragraphs_of(cells)
        self.calls: list[tuple[Paragraph, str, tuple]] = []  # the paragraph, words and values

    def __call__(self, words: str, *values: Real | bool) -> None:
        """Require that the prose says these words, with these numbers behind them.

        Args:
            words: words of exactly one paragraph, as the notebook writes them. Line breaks do not
                count.
            values: what the next numbers must be, in order. A value that is True or False is a
                comparison: it must be True, and it reads no number.

        Raises:
            AssertionError: no paragraph or several have the words, a number is missing or differs,
                or a comparison is False.
        """
        words = " ".join(words.split())
        places = [
            (paragraph, match.end())
            for paragraph in self.paragraphs
            for match in re.finditer(rf"(?<!\w){re.escape(words)}(?!\w)", paragraph.text)
        ]
        assert places, f'the lesson does not say "{words}"'
        assert len(places) == 1, f'the lesson says "{words}" {len(places)} times; give more words'
        paragraph, start = places[0]
        self.calls.append((paragraph, words, values))
        self._compare_all(words, values, paragraph, start)

    def _compare_all(self, words: str, values: tuple, paragraph: Paragraph, start: int) -> None:
        following = iter([n for n in paragraph.numbers if n.start >= start])
        for value in values:
            if is_true_or_false(value):
                assert value, f'the lesson says "{words}", and this does not hold'
                continue
            self._compare(words, float(value), following)

    def _compare(self, words: str, value: float, following: Iterator[Number]) -> None:
        for number in following:
            if number.equals(value):
                number.checked = True
                return
            assert number.word, (
                f'behind "{words}" the lesson says {number.text.strip()}; computed: {value:.6g}'
            )
        raise AssertionError(f'behind "{words}" the lesson has no number for {value:.6g}')

    def unchecked(self) -> list[str]:
        """The numbers that no claim has compared, each with the words around it."""
        return [
            f"{n.text.strip()} in: ...{p.text[max(0, n.start - 50) : n.start + 40]}..."
            for p in self.paragraphs
            for n in p.numbers
            if not n.checked and not n.word
        ]

    def unnoticed(self) -> list[str]:
        """The numbers that can be changed without any comparison failing, with words around them.

        Each is changed in a copy of its paragraph, one after the other, and the comparisons of
        this paragraph are made again.
        """
        found = []
        for paragraph in self.paragraphs:
            calls = [(words, values) for p, words, values in self.calls if p is paragraph]
            for number in paragraph.numbers:
                if number.checked and not self._notices(paragraph, number, calls):
                    found.append(f"{number.text.strip()} in: ...{paragraph.text[:80]}...")
        return found

    def _notices(self, paragraph: Paragraph, number: Number, calls: list) -> bool:
        """Whether a comparison fails when this number of a paragraph is another one."""
        end = number.start + len(number.text)
        text = paragraph.text[: number.start] + other(number) + paragraph.text[end:]
        changed = Paragraph(text, numbers_of(text))
        for words, values in calls:
            match = re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text)
            if match is None:
                return True
            try:
                self._compare_all(words, values, changed, match.end())
            except AssertionError:
                return True
        return False


def other(number: Number) -> str:
    """Another number, written in the same way: its last digit, or its word, is five further on."""
    if number.word:
        return WORDS[(WORDS.index(number.text.lower()) + 5) % len(WORDS)]
    whole = re.split("[/e%]", number.text)[0]
    place = max(i for i, letter in enumerate(whole) if letter.isdigit())
    return f"{whole[:place]}{(int(whole[place]) + 5) % 10}{number.text[place + 1 :]}"


def is_true_or_false(value) -> bool:
    """Whether a value is a bool of Python, NumPy, pandas or torch."""
    return isinstance(value, bool) or "bool" in str(getattr(value, "dtype", ""))


def _notebook_of(name: str) -> Path:
    found = sorted(NOTEBOOKS.glob(f"{name}_*.ipynb"))
    assert len(found) == 1, f"lesson {name} has {len(found)} notebooks; it must have one"
    return found[0]


def code_of(name: str, words: str) -> str:
    """The source of the one code cell of a lesson that has these words."""
    cells = nbformat.read(_notebook_of(name), 4).cells
    found = [c.source for c in cells if c.cell_type == "code" and words in c.source]
    assert len(found) == 1, f"{len(found)} cells of lesson {name} have {words!r}"
    return found[0]


def _require_all(said: Said, path: Path) -> None:
    left = said.unchecked()
    assert not left, f"{path.name}: nothing checks these numbers:\n" + "\n".join(left)
    left = said.unnoticed()
    assert not left, f"{path.name}: no check fails if one of these changes:\n" + "\n".join(left)


@contextmanager
def lesson(name: str | Path) -> Iterator[Said]:
    """The prose of a lesson; at the end every number of it must have been compared.

    Args:
        name: the first letters of a notebook's name up to "_", such as "06" or "11b", or the path
            of a notebook.

    Raises:
        AssertionError: a number of the prose was not compared, or could change unnoticed.
    """
    path = name if isinstance(name, Path) else _notebook_of(name)
    said = Said(nbformat.read(path, 4).cells)
    yield said
    _require_all(said, path)


def prose_of(path: Path) -> Said:
    """The prose of a Markdown page.

    Left out: the tables between marks (`experiments.fill_pages` writes them), and links whose text
    is the number of a lesson.
    """
    text = path.read_text(encoding="utf-8")
    generated = re.compile(r"^<!-- ([\w-]+) -->\n.*?^<!-- /\1 -->$", re.DOTALL | re.MULTILINE)
    text = re.sub(r"\[\d+b?\]\([^)]*\.ipynb\)", "", generated.sub("", text))
    return Said([new_markdown_cell(text)])


@contextmanager
def page(path: Path) -> Iterator[Said]:
    """The prose of a Markdown page; at the end every number of it must have been compared.

    Raises:
        AssertionError: a number of the prose was not compared.
    """
    said = prose_of(path)
    yield said
    _require_all(said, path)
