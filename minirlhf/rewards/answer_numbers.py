r"""Read the number of an answer: parse_number("$1,234.50") is Fraction(2469, 2).

What may stand before and after the number is a short list of forms, and the words in them must be
known: those of the lists in `answer_words`, and words of the question.
"""

import re
from fractions import Fraction
from typing import NamedTuple

from minirlhf.rewards import answer_words as known

LONGEST = 1000  # characters; Python refuses to parse much longer numbers, and no answer has so many
LATEX = [  # other ways of writing a number, and plain ones; tried in this order
    (r"<<[-+*/()., %0-9]{1,200}=[-., %0-9]{1,40}>>", ""),  # GSM8K's calculator
    (r"(?<![\w*)])\*\*([^*\n]{1,100})\*\*(?![\w*(])", r"\1"),  # bold, in Markdown
    (r"~(?=\\?[A-Za-z])", " "),  # ~42 is about 42
    (r"\{,\}|,\s?\\!\s?", ","),
    (r"\\([$%])", r"\1"),
    (r"\\(?:[,;:> ()\[\]]|quad\b|qquad\b|displaystyle\b|left(?=[(\[])|right(?=[)\]]))", " "),
    (r"\^\s?(?:\\circ\b|\{\s?\\circ\s?\})|\\degree\b", "°"),
    (r"\\(?:times|cdot)\b", "×"),
    (r"\\div\b", "÷"),
    (r"(?<=[0-9])(?=\\[dtc]?frac)", " "),  # 1\frac{1}{2} is a mixed number
    # an argument of \frac is what stands in braces, or one digit
    (
        r"\\[dtc]?frac\s*(?:\{\s*([+-]?[0-9.,]+)\s*\}|([0-9]))"
        r"\s*(?:\{\s*([0-9.,]+)\s*\}|([0-9]))",
        r"\1\2/\3\4 ",
    ),
    (r"\\(?:f?box(?:ed)?|(?:text|math)[a-z]{0,6}|[mh]box|operatorname)\s?\{([^{}]*)\}", r" \1 "),
    (r"(?<=[A-Za-z])\s?\^\s?(?:2|\{2\})(?![0-9])", "²"),  # cm^2
    (r"(?<=[A-Za-z])\s?\^\s?(?:3|\{3\})(?![0-9])", "³"),
    (r"[$£€¥₹¢`]", " "),  # currencies, and marks of LaTeX and Markdown
    (r"[^\S\n]+", " "),
]
PLAIN = str.maketrans("\u2212０１２３４５６７８９．，－＋％＄’“”", '-0123456789.,-+%$\'""')

# The grammar of a number; `_all_known` checks the words. It is fast on every text: a repetition
# never backtracks (++), is short, or shares no character with what follows it.
WHOLE = r"(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9])|[0-9]++)"
DECIMAL = rf"(?:{WHOLE}(?:\.[0-9]++)?|\.[0-9]++)(?:[eE][+-]?[0-9]{{1,3}}(?![0-9]))?"
CODE = r"(?:(?:USD|US|EUR|GBP|INR|CAD|AUD|Rs)\b\.? ?)?"
SUM = r"(?=[-(. ]*+[0-9.,]++[) ]*+[-+*/×÷])[-0-9(.](?:[-+*/×÷(). 0-9]|,(?=[0-9]{3}))*+"
NAME = r"[a-z]{2,}+(?:'s)?(?: [a-z]{2,}+(?:'s)?){0,6}"
SUBJECT = rf"(?:[a-z]|{NAME}(?: [a-z])?)"
CLAIM = (
    rf"(?:(?P<verb>(?:it|that)'s|{SUBJECT} {known.VERB}:?(?: (?:her|him|them))?) )?"
    rf"(?:{known.JUST} )?"
    rf"(?:(?:[a-z]|{NAME}|{SUM})? ?= ?)*+"
)
NUMBER = re.compile(
    rf"(?P<before>(?i:(?:{known.THUS},? )?(?:(?:a|{NAME}): ?)?(?P<claim>{CLAIM})))"
    rf"{CODE}(?P<sign>[+-]?) ?{CODE}"
    rf"(?P<value>(?:(?P<whole>{WHOLE}) (?=[0-9]++/))?(?P<top>{DECIMAL})"
    rf"(?: ?/ ?(?P<bottom>{DECIMAL}))?)"
    r"(?:(?P<short>[A-Za-z]{2,3})[²³]?| ?%| ?°(?: ?[CF])?)?"
    r"(?: (?:more )?(?:square |cubic |sq )?(?!left|altogether)(?P<unit>[A-Za-z]+)[²³]?)?"
    r"(?:(?: ?/ ?| per | an? | every )(?P<rate>[A-Za-z]+)[²³]?)?"
    r"(?: (?:in all|in total|altogether|left|old))? ?\.? ?"
)


class Number(NamedTuple):
    written: str  # with its sign
    value: Fraction
    verb: bool  # a subject and a verb stand before it
    equation: bool  # a = stands before it


def plain_text(text: str) -> str:
    """The text with other ways of writing a number (LaTeX, wide digits) replaced by plain ones."""
    text = text.translate(PLAIN)
    for pattern, plain in LATEX:
        text = re.sub(pattern, plain, text)
    return text.strip()


def _all_known(found: re.Match, asked: frozenset[str]) -> bool:
    """Whether all words beside a number are of the lists or of the question (`asked`)."""
    before = known.words(found["before"])
    # "one example answer is 5" speaks of another answer, and 42/h may be a quotient
    names = known.KNOWN if "answer" in before else known.KNOWN | asked
    rates = known.RATES | ({"h", "s"} if found["short"] or found["unit"] else set())
    return (
        all(len(word) == 1 or word in names for word in before)
        and (found["short"] is None or found["short"] in known.SHORT)
        and (found["unit"] is None or known.is_unit(found["unit"], asked))
        and (found["rate"] is None or found["rate"] in rates)
    )


def read_number(text: str, asked: frozenset[str]) -> Number | None:
    """The number of a short text; None if there is none."""
    if len(text) > 4 * LONGEST:
        return None
    raw, text = text, plain_text(text)
    if re.match("[-+*•] ", text) and not re.match(r"\s*[-+] ?[$£€¥₹\\]", raw):
        return None  # a minus, or a bullet?
    if text[:1] + text[-1:] in ("()", "[]", "''", '""') and "," not in text:  # not (1,234)
        text = text[1:-1].strip()
    found = NUMBER.fullmatch(text)
    if not found or len(found["value"]) > LONGEST or not _all_known(found, asked):
        return None
    if re.search(r"[-+*/×÷(] ?=", found["before"]):  # 1/ = 12
        return None
    whole, top, bottom = (
        Fraction((found[part] or without).replace(",", ""))
        for part, without in (("whole", "0"), ("top", "0"), ("bottom", "1"))
    )
    if not bottom or (found["whole"] and top >= bottom):
        return None
    value, sign = whole + top / bottom, found["sign"]
    return Number(
        sign + found["value"],
        -value if sign == "-" else value,
        bool(found["verb"]),
        "=" in found["claim"],
    )


def parse_number(text: str, question: str = "") -> Fraction | None:
    r"""The exact value of the number that a text gives.

        "$1,234.50" -> 2469/2    "−3/4 km" -> -3/4    "1 1/2 cups", "\frac{3}{2}", "\frac32" -> 3/2
        "x = 5", "3 + 2 = 5", "The largest n is 5", "Total: 5" -> 5             "1e3" -> 1000
        "1,2", "41 or 42", "1/0", "2x", "3^2", "> 5", "about 5", "5!", "5th", "xy = 5" -> None
        "5 apples" -> 5 if the question says "apples" (or "5 apple", for 1 of them), else None

    A number is written in the digits 0 to 9: a whole number, with or without commas between
    thousands; a decimal with a point; a fraction a/b or \frac{a}{b}; a mixed number a b/c; each
    with or without an exponent e of at most three digits, and a sign. Wide digits and the Unicode
    minus count as plain ones. Brackets, quotes or \text{} may stand around it.

    Before it may stand, in this order, and nothing else:
    - "so", "thus", "therefore" or similar;
    - a name and a colon: up to seven known words, or "A";
    - a subject and a verb: one letter or up to seven known words, with "is", "has", "costs",
      "bought", "will take" or similar;
    - "exactly", "only" or similar;
    - names or sums of numbers, without units, each with "=". A name is one letter or known words;
    - a currency.
    A word is known if it is in `answer_words.KNOWN` or in the question, without those that deny,
    change or limit a number (not, or, about, half, than).

    After it may stand, in this order, and nothing else:
    - % or °, or a short unit such as km, also without a space: 5km, but not 5x;
    - one unit of `answer_words.UNITS`, or a plural in -s of the question that is no number (apples,
      but not thirds or dozens), or its singular, also with "more", "square" or "cubic";
    - "per hour", "a day" or similar: a rate for a unit of time, or per gallon;
    - "in all", "in total", "altogether", "left" or "old";
    - a full stop.

    Units are ignored: 50% is 50. The reason is that GSM8K's answers are bare numbers in the unit
    that the question asks for. A question "what percentage" has the answer "#### 50", so 50% as 1/2
    would count as wrong. pm and am are no units.

    Args:
        question: the problem that the number answers; without it only the words of the lists count.

    Returns:
        A Fraction. None for every other text. Also None for a number of more than 1,000 characters
        or an exponent of more than three digits, because its value could fill the memory.
    """
    number = read_number(text, known.words_of_question(question))
    return number and number.value
