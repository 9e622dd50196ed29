r"""Read the number of an answer: parse_number("$1,234.50") is Fraction(2469, 2)."""

import re
from fractions import Fraction

LONGEST = 1000  # characters; Python refuses to parse much longer numbers, and no answer has so many
ARGUMENT = r"(?:\{{\s*({}[0-9.,]+)\s*\}}|([0-9]))"
WRAPPERS = (  # commands that only set what is in their braces: not \textminus or \mathbin
    "f?box(?:ed)?|[mh]box|operatorname|text(?:normal|bf|it|md|rm|sc|sf|sl|tt|up)?|"
    "math(?:normal|bb|bf|cal|frak|it|rm|scr|sf|tt)"
)
LATEX = [  # other ways of writing a number, and plain ones; tried in this order
    (r"~(?=\\?[A-Za-z])", " "),  # ~42 is about 42
    (r"\{,\}|,\s?\\!\s?", ","),
    (r"\\([$%])", r"\1"),
    (r"\\(?:[,;:> ()\[\]]|quad\b|qquad\b|displaystyle\b|left(?=[(\[])|right(?=[)\]]))", " "),
    (r"\^\s?(?:\\circ\b|\{\s?\\circ\s?\})|\\degree\b", "°"),
    (r"\\(?:times|cdot)\b", "×"),
    (r"(?<=[0-9])(?=\\[dtc]?frac)", " "),  # 1\frac{1}{2} is a mixed number
    # an argument of \frac is what stands in braces, or one digit
    (rf"\\[dtc]?frac\s*{ARGUMENT.format('[+-]?')}\s*{ARGUMENT.format('')}", r"\1\2/\3\4 "),
    (rf"\\(?:{WRAPPERS})\s?\{{(?=\s*[^{{}}\s])([^{{}}]*)\}}", r" \1 "),
    (r"(?<=[A-Za-z])\s?\^\s?(?:2|\{2\})(?![0-9])", "²"),  # cm^2
    (r"(?<=[A-Za-z])\s?\^\s?(?:3|\{3\})(?![0-9])", "³"),
    (r"([+-])[$£€¥₹¢]\s?", r"\1"),  # -$5, but not - $5: it may be an item of a list
    (r"[$£€¥₹¢`]", " "),  # currencies, and marks of LaTeX and Markdown
    (r"[^\S\n]+", " "),
]
PLAIN = str.maketrans("\u2212０１２３４５６７８９．，－＋％＄’“”", '-0123456789.,-+%$\'""')

# The grammar of a number. It is fast on every text: a repetition never backtracks (++), is short,
# or shares no character with what follows it.
WHOLE = r"(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9])|[0-9]++)"
DECIMAL = rf"(?:{WHOLE}(?:\.[0-9]++)?|\.[0-9]++)(?:[eE][+-]?[0-9]{{1,3}}(?![0-9]))?"
NUMBER = re.compile(
    r"(?:(?P<name>[A-Za-z]) ?= ?)?(?P<sign>[+-]?)"
    rf"(?P<value>(?:(?P<whole>{WHOLE}) (?=[0-9]++/))?(?P<top>{DECIMAL})"
    rf"(?: ?/ ?(?P<bottom>{DECIMAL}))?)"
    r"(?P<unit>[ %°/A-Za-z][-%°²³/A-Za-z ]*)?"
)
SHORT = (  # units that may touch the number, as in 5km
    "km|cm|mm|nm|mg|kg|mL|ml|cl|dl|lbs?|oz|ft|yd|mi|in|hrs?|mins?|secs?|mph|kph|km/h|kW|MW|kWh|"
    "[kMGT]B|[kMG]?Hz"
)
WORDS = (
    "dollar|cent|euro|rupee|meter|metre|foot|feet|inch|inche|mile|yard|gram|kilogram|centimeter|"
    "kilometer|pound|ounce|second|minute|hour|day|week|month|year|liter|litre|cup|gallon|percent|"
    "degree|unit|way"
)
RATES = "second|minute|hour|day|week|month|year|gallon"
UNIT = re.compile(
    rf"(?: ?(?:%|° ?[CF]?|(?:{SHORT})[²³]?)"
    rf"| (?:(?:square|cubic|sq) )?(?:m/s|[mghsLl]|{SHORT}|(?i:{WORDS})s?)[²³]?)?"
    rf"(?:(?:/| per | an? )(?:{RATES}))?"
)
VERB = r"(?:do|does|did|is|are|was|were|will|would|can|could|should|has|have|had)\b"
ASKED = re.compile(rf"\bhow many ((?!{VERB})[a-z-]+(?: (?!{VERB})[a-z-]+){{0,3}})", re.I)
END = re.compile(r" (?:left|in all|in total|altogether)$")


def plain_text(text: str) -> str:
    """The text with other ways of writing a number (LaTeX, wide digits) replaced by plain ones."""
    text = text.translate(PLAIN)
    for pattern, plain in LATEX:
        text = re.sub(pattern, plain, text)
    return text.strip()


def _is_unit(unit: str, question: str) -> bool:
    """Whether a text is a known unit, or what the question asks "how many" of."""
    unit = END.sub("", unit.rstrip())
    asked = [f" {words} ".lower() for words in ASKED.findall(question)[-1:]]
    same = (f"{unit} ".lower(), f"{unit}s ".lower())  # 1 apple
    return bool(UNIT.fullmatch(unit)) or any(words.startswith(same) for words in asked)


def _names(letter: str, question: str) -> bool:
    """Whether a question speaks of x, and does not give it as in "if x = 3"."""
    given = re.search(rf"(?:^|[A-Za-z]{{2}} |, ){letter} ?= ?-?[0-9]", question)
    return not given and bool(re.search(rf"(?<![A-Za-z\\]){letter}(?![A-Za-z])", question))


def read_number(text: str, question: str) -> tuple[str | None, Fraction] | None:
    """The name, as x in "x = 5", and the value of a short text; None if it is no number."""
    found = NUMBER.fullmatch(plain_text(text)) if len(text) <= 4 * LONGEST else None
    if not found or len(found["value"]) > LONGEST or not _is_unit(found["unit"] or "", question):
        return None
    if found["name"] and not _names(found["name"], question):
        return None
    whole, top, bottom = (
        Fraction((found[part] or without).replace(",", ""))
        for part, without in (("whole", "0"), ("top", "0"), ("bottom", "1"))
    )
    if not bottom or (found["whole"] and top >= bottom):
        return None
    value = whole + top / bottom
    return found["name"], -value if found["sign"] == "-" else value


def parse_number(text: str, question: str = "") -> Fraction | None:
    r"""The exact value of a text that is a number, with or without a unit.

        "$1,234.50" -> 2469/2    "−3/4 km" -> -3/4    "1 1/2 cups", "\frac{3}{2}", "\frac32" -> 3/2
        "5 apples", "1 apple" -> 5, 1 if the question says "how many apples", else None
        "x = 5" -> 5 if the question speaks of x, and does not give it ("if x = 3"), else None
        "41 or 42", "Tom has 5", "about 5", "- 5", "1 000", "½", "2x", "3^2", "5 dozen" -> None

    A number is a whole number, with or without commas between thousands, a decimal, a fraction or a
    mixed number. A sign touches it. Before it may stand a currency, after it a unit and nothing
    else: one of the lists in this file (km, %, miles per hour), or the first one to four words
    after the last "how many" of the question, up to a verb such as "are". Of "how many red apples
    are left" this is "red apples", but not "apples". "left", "in all", "in total" or "altogether"
    may end it.

    The unit is ignored: 50% is 50, and 90 hours are 90. The reason is that GSM8K's answers are bare
    numbers in the unit that the question asks for.

    Args:
        question: the problem that the number answers.

    Returns:
        A Fraction. None for every other text. Also None for a number of more than 1,000 characters
        or an exponent of more than three digits, because its value could fill the memory.
    """
    number = read_number(text, question)
    return number and number[1]
