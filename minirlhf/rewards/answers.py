r"""Check the numerical answer in a response, for problems such as GSM8K's.

    "6 * 7 = 42 apples.\n#### 42"  ->  "42"  ->  Fraction(42)  ->  1.0 if it is right, else 0.0

The answer is found in the text of any language model, parsed to a Fraction and compared exactly.
This file needs nothing but Python.

A policy finds every text that is paid although it is wrong. So only plain numbers are read, in the
few forms that `parse_number` lists, and a text that can be read in two ways is never paid. This
costs some right answers. Ask for one format in the prompt, and the policy learns it.

Symbolic maths is deliberately not parsed: 2x, \sqrt{2}, 3^2 and 5 × 10^3 are compared as texts. For
such answers use a library for mathematical equality, such as math-verify, in a function of your own
(see `rewards.function`).

Source: Cobbe et al. 2021, Training Verifiers to Solve Math Word Problems ("#### 42" in the data);
\boxed{} is from Hendrycks et al. 2021 (MATH).
"""

import math
import re
from fractions import Fraction

HASHES = re.compile(r"#{4,}")
BOX = re.compile(r"\\f?box(?:ed)?\s?\{")
PHRASE = re.compile(r"\banswer[\s*_]{0,9}(?:is\b|:|=)", re.IGNORECASE)
SENTENCE = re.compile(r"(?<=\d)\.\s|[.!?]\s+(?=[^\d\s])|\n")  # its end; not the dot of "Rs. 500"
REASON = re.compile(r",?\s+(?:because|since|so|which)\b|(?<=\d),\s+leaving\b")
NEXT_PROBLEM = re.compile(
    r"\n\W{0,9}(?:question|q|problem|human|user)\b\W{0,3}\d{0,3}\W{0,3}:", re.I
)
MARKS = " \t\r\n*_`$:"  # of Markdown and LaTeX, around an answer
LONGEST = 1000  # characters; Python refuses to parse much longer numbers, and no answer has so many

# Words that take an answer back: at the start of a sentence or after a comma, or anywhere.
TAKEN_BACK = re.compile(
    r"(?:^|[.!?,;\n(])\W{0,9}(?:wait|actually|sorry|correction|oops|hmm|scratch that|rather|"
    r"instead|alternatively|or|but|maybe|perhaps|i mean|edit|"
    r"no\b(?=[,.;:!]|\s+\W{0,3}\d|\s+(?:wait|it|the\s+answer)\b))\b|"
    r"\b(?:wrong|incorrect|mistake|kidding|not (?:right|correct)|(?:re|double-?)(?:check|calculate|"
    r"consider|do)|(?:real|correct|right|true) (?:answer|result|value))\b",
    re.IGNORECASE,
)
# Words before an answer that deny it or leave it open; before a number also words that compare.
DENIED = (
    r"n['’]t\b|\b(?:no|not|never|none|neither|nor|cannot|wrong|incorrect|false|mistaken|maybe|"
    r"perhaps|possibly|probably|might|could|guess|unsure|if|whether|suppose|assume|another)\b"
)
UNSURE = re.compile(
    DENIED + r"|\b(?:or|without|unless|except|approximately|roughly|about|around|nearly|almost|"
    r"than|least|most)\b",
    re.IGNORECASE,
)
# What makes the content of a box a part of something else: before the box and after it.
BEFORE_BOX = re.compile(
    r"(?:\w|[-+*/^_<>≠≈±×·÷]\s*|\\(?:times|cdot|pm|mp|div|neq?|approx|sim|[lg](?:eq?|t))\s*|"
    r"(?:[\^_}]|\\[dtc]?frac|\\sqrt)\s*\{\s*)$"
)
AFTER_BOX = re.compile(
    r"\w|[\s$]*(?:[-+*/^_<>≠≈±×·÷!]|\\(?:times|cdot|pm|mp|div|neq?|approx|sqrt|[dtc]?frac)|"
    r",\s*[\\$]{0,2}\d)"
)
OPERATORS = set(
    "plus minus times divided over under mod modulo remainder squared cubed factorial power root "
    "sqrt twice thrice double triple half halves square cube opposite negative inverse reciprocal "
    "log ln exp sin cos tan base".split()
)
# Words after a number that change it or leave it open.
NO_UNITS = OPERATORS - {"square"} | set(
    "hundred hundreds thousand thousands million millions billion billions trillion trillions "
    "dozen dozens score lakh crore third thirds quarter quarters fourth fourths fifth fifths sixth "
    "sixths seventh sevenths eighth eighths ninth ninths tenth tenths hundredth hundredths "
    "thousandth thousandths zero one two three four five six seven eight nine ten eleven twelve "
    "thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty "
    "seventy eighty ninety and but nor not than below above least most minimum maximum "
    "approximately about around roughly ish choose past unless when if odd something point fold "
    "wrong incorrect false maybe perhaps probably possibly theta alpha beta "
    "gamma lambda infinity inf nan".split()
)
# Units that may follow a number without a space; 2x and 2ab are products.
STUCK_UNITS = set(
    "km cm mm nm mg kg mL ml cl dl lb lbs oz ft yd mi in hr hrs min mins sec secs pm am mph kph "
    "kmh kW MW kWh MB GB TB kB Hz kHz MHz GHz USD EUR GBP".split()
)
# All units of one or two letters, and words between units; other units have three letters or more.
SHORT_UNITS = STUCK_UNITS | set("m g h s l L sq of at on an".split())
AREAS = SHORT_UNITS | set("meters metres miles feet inches units yards".split())  # cm^2

LATEX = [  # tried in this order
    (r"<<[^<>]{0,200}>>", ""),  # GSM8K's calculator
    (r"(?<![\w*)])\*\*([^*\n]{1,100})\*\*(?![\w*(])", r"\1"),  # bold, in Markdown
    (r"~(?=\\?[A-Za-z])", " "),  # ~42 is about 42
    (r"\{,\}|,\s?\\!\s?", ","),
    (r"\\!", ""),
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
]
PLAIN = str.maketrans("\u2212０１２３４５６７８９．，－＋％＄", "-0123456789.,-+%$")

# Every pattern is fast on every text: it reads a short text, or a repetition in it never backtracks
# (++), or shares no character with what follows it.
WHOLE = r"(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9])|[0-9]++)"
DECIMAL = rf"(?:{WHOLE}(?:\.[0-9]++)?|(?<![\w.])\.[0-9]++)(?:[eE][+-]?[0-9]{{1,3}}(?![0-9]))?"
VALUE = re.compile(rf"(?:({WHOLE}) +(?=[0-9]++/[0-9]))?({DECIMAL})(?: ?/ ?({DECIMAL}))?")
LETTER = r"[^\W\d_]"
UNIT = re.compile(
    rf"(?:\s?%|\s?°\s?[CF]?(?!{LETTER}))?"
    rf"(?:(?:\s+|[/-])?{LETTER}+(?:(?:\s+|\s?[/-]\s?){LETTER}+)*+)?\s*\.?"
)
# one letter by itself, but not the words a and I
VARIABLE = re.compile(rf"(?<!{LETTER})(?<!['’])(?![aAI]\s+{LETTER}){LETTER}(?!{LETTER})")
CODE = r"(?:(?:USD|US|EUR|GBP|INR|CAD|AUD|Rs)\b\.?\s*)?"
# how a number is announced
LINK = re.compile(
    r"(?:(?<![<>!=:≈≠])={1,2}|(?<=[^\W\d]):(?=\s)|\b(?:is|are|was|were|equals?|makes?|gets?|got|has|"
    r"have|had|gives?|gave|costs?|earns?|needs?|pays?|takes?|spends?|saves?|sells?|sold|uses?|"
    r"eats?|runs?|walks?|works?|weighs?|leaves?|leaving|so|then|thus|hence|therefore|total|"
    r"altogether|finally|answer)\b,?|(?<=[A-Za-z])['’]s\b)\s*"
    rf"(?:(?:exactly|only|just|equal to|a total of|now)\s+)*{CODE}$"
)


def _plain(text: str) -> str:
    """The text with other ways of writing a number (LaTeX, wide digits) replaced by plain ones."""
    text = text.translate(PLAIN)
    for pattern, plain in LATEX:
        text = re.sub(pattern, plain, text)
    return text.strip()


def _is_unit(after: str) -> bool:
    """Whether what follows a number is nothing, or a unit in at most six words.

    Yes: " apples in all", "%", " km/h", "-pound bag", "°C", " cm²". No: "x", " or 43", " million",
    "th", "!", " (about)".
    """
    if not UNIT.fullmatch(after):
        return False
    stuck = after[:1]
    words = re.findall(
        rf"{LETTER}+", re.sub(r"^\s?(?:%|°\s?[CF]?)|(?<=\s)a\s(?=[a-z]{3})", "", after)
    )
    if stuck.isalpha() and words[0].rstrip("²³") not in STUCK_UNITS:
        return False
    if stuck in ("/", "-") and len(words[0]) < 2:  # 5/x and 5-x
        return False
    return len(words) <= 6 and all(
        word.rstrip("²³") in AREAS
        or (len(word) > 2 and word.isalpha() and word.casefold() not in NO_UNITS)
        for word in words
    )


def _is_announced(before: str) -> bool:
    """Whether what stands before a number says that one thing has this value.

    Yes: "", "x =", "3 + 4 =", "The largest n is", "Then she has 2 * 4 =". No: "a + 3z =", "2x is",
    "not", "it is about", "41 or", "3:".
    """
    if re.fullmatch(CODE, before.strip()):
        return True
    link = LINK.search(before)
    odd = re.search(r"[<>≤≥≠≈±∓|^_√{}]", before) or any(
        c.isnumeric() and not c.isascii() for c in before
    )
    if not link or odd or UNSURE.search(before):
        return False
    for side in before[: link.start()].split("="):
        variables = VARIABLE.findall(side)
        if re.search(r"\d", side):  # a sum, perhaps in words, of numbers only
            if variables or re.search(rf"\\|\d{LETTER}|{LETTER}\d", side):
                return False
        else:  # a name or a description
            words = {word.casefold() for word in re.findall(rf"{LETTER}+", side)}
            if len(variables) > 1 or words & OPERATORS or re.search(r"[-+*/×÷%]", side):
                return False
    return True


def _number_in(text: str) -> tuple[str, Fraction] | None:
    """The last number of a short text and its value; None if the text says more than this number.

    The number is returned as it is written, with its sign.
    """
    if len(text) > 4 * LONGEST:
        return None
    text = _plain(text)
    enclosed = re.fullmatch(r"[(\[\"'](.*)[)\]\"']", text, re.DOTALL)
    text = enclosed[1].strip() if enclosed else text
    found = list(VALUE.finditer(text))
    if not found or len(found[-1][0]) > LONGEST or (enclosed and "," in text):  # (1,234)
        return None
    number = found[-1]
    before = text[: number.start()]  # a space at its end counts: "so 5", but not "R5"
    sign = before.rstrip()[-1:]
    sign = sign if sign in ("+", "-") else ""
    if sign:
        before = before.rstrip()[:-1]
    if not (_is_unit(text[number.end() :]) and _is_announced(before)):
        return None
    whole, top, bottom = (
        Fraction((part or without).replace(",", ""))
        for part, without in zip(number.groups(), "001", strict=True)
    )
    if not bottom or (number[1] and top >= bottom):
        return None
    value = whole + top / bottom
    return sign + number[0], -value if sign == "-" else value


def _head(text: str) -> str:
    """The answer at the start of a text, up to the end of its sentence or line."""
    line = text.lstrip(MARKS).split("\n", 1)[0]
    if len(line) > 4 * LONGEST:
        return line  # no number is read from it
    line = REASON.split(SENTENCE.split(line, maxsplit=1)[0], maxsplit=1)[0].rstrip(MARKS + ",;")
    return line if line.endswith("...") else line.rstrip(MARKS + ".")


def _in_braces(text: str) -> str:
    """What stands before the brace that closes the one before this text; "" if none does."""
    depth = 1
    for i, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[:i].strip(MARKS)
    return ""


def extract_answer(text: str) -> str | None:
    r"""The answer that a text gives, as it is written there; None if there is none.

        "... #### 42\n"  ->  "42"        "The answer is 42 apples, since ..."  ->  "42 apples"
        "so \boxed{42}"  ->  "42"        "40 + 2 makes 42 in all."             ->  "42"

    The answer is the first of these that is not empty:
    - what follows the last ####;
    - the content of the last \boxed{} or \fbox{};
    - what follows the last "the answer is", "Answer:" or similar;
    - the number of the last sentence, if `parse_number` reads this sentence.

    What follows a marker is read up to the end of its sentence or line, without Markdown or LaTeX
    marks around it. A Markdown heading with four # is mistaken for the first marker, and a number
    in it for the answer. So ask for one format in the prompt.

    There is no answer (None) where a text gives several: two markers in one sentence ("\boxed{41}
    or \boxed{42}"), or words that take the answer back ("The answer is 42. No, 43"). An answer
    after these words counts ("The answer is 42. No, the answer is 43").
    """
    for marker, read in ((HASHES, _head), (BOX, _in_braces), (PHRASE, _head)):
        places = [found.span() for found in marker.finditer(text)]
        if not places or not (answer := read(text[places[-1][1] :])):
            continue
        start, end = places[-1]
        between = text[places[-2][1] : start] if len(places) > 1 else ""
        if re.search(r"\d|\b(?:or|and)\b", between) and not SENTENCE.search(between):
            return None
        clause = re.split(r"[,;:]", SENTENCE.split(text[:start])[-1])[-1]
        if re.search(DENIED, clause, re.IGNORECASE):
            return None
        if marker is PHRASE and OPERATORS & set(clause.casefold().split()):  # twice the answer is
            return None
        after = text[end:].split(answer, 1)[-1]
        if marker is BOX:
            after = after.partition("}")[2]
            if BEFORE_BOX.search(text[max(0, start - LONGEST) : start]) or AFTER_BOX.match(after):
                return None
        return None if TAKEN_BACK.search(NEXT_PROBLEM.split(after, maxsplit=1)[0]) else answer
    number = _number_in(SENTENCE.split(text.strip())[-1])
    return number and number[0]


def parse_number(text: str) -> Fraction | None:
    r"""The exact value of the number that a text gives.

        "$1,234.50" -> 2469/2    "−3/4 km" -> -3/4    "1 1/2 cups", "\frac{3}{2}", "\frac32" -> 3/2
        "x = 5", "3 + 2 = 5", "The largest n is 5" -> 5                        "1e3" -> 1000
        "1,2", "41 or 42", "1/0", "2x", "3^2", "> 5", "about 5", "not 5", "5!", "5th" -> None

    A number is written in the digits 0 to 9: a whole number, with or without commas between
    thousands; a decimal with a point; a fraction a/b or \frac{a}{b}; a mixed number a b/c; each
    with or without an exponent e of at most three digits, and a sign. Wide digits and the Unicode
    minus count as plain ones. Brackets, quotes or \text{} may stand around it.

    Before it may stand a currency, or what says that one thing has this value: a name or words and
    "is", "=", "has" or similar, or a sum of numbers and "=". After it may stand a unit of at most
    six words. A unit without a space must be a known one: 5km, but not 5x. Units are ignored: 50%
    is 50. The reason is that GSM8K's answers are bare numbers in the unit that the question asks
    for. A question "what percentage" has the answer "#### 50", so 50% as 1/2 would count as wrong.

    Returns:
        A Fraction. None for every other text: a second number, variable, operator, power, root,
        range or comparison beside the number; a word that denies it, leaves it open or changes it
        (not, about, or, half, million, dozen). Also None for a number of more than 1,000 characters
        or an exponent of more than three digits, because its value could fill the memory.
    """
    number = _number_in(text)
    return number and number[1]


def same_answer(given: str | None, wanted: str) -> bool:
    """Whether two answers are equal: as exact numbers, or else as texts.

    "0.50" equals "1/2", and "$1,000" equals "1000". If neither is a number, the texts are compared
    without regard to spaces at their ends and repeated spaces. Upper and lower case are the same in
    texts of letters only: "Paris" equals "paris", but "2X" is not "2x".
    """
    if given is None:
        return False
    numbers = parse_number(given), parse_number(wanted)
    if numbers != (None, None):
        return numbers[0] == numbers[1]
    texts = [" ".join(text.split()) for text in (given, wanted)]
    if all(re.fullmatch(r"[^\W\d_ ]+(?:[ '’.,-]+[^\W\d_]+)*", text) for text in texts):
        texts = [text.casefold() for text in texts]
    return texts[0] == texts[1]


def answer_reward(
    prompts: list, completions: list, *, answer: list, **columns: object
) -> list[float]:
    r"""1.0 for each completion whose answer is right, 0.0 for the others.

        answer_reward(["6 * 7?"], ["That makes 42."], answer=["6 * 7 = <<6*7=42>>42\n#### 42"])
        ->  [1.0]

    It follows TRL's contract for reward functions (see `rewards.function`).

    Args:
        prompts: not used.
        completions: responses, as text or as conversations, whose last turn is read.
        answer: a column of the dataset: GSM8K's whole solution, or the bare answer as text or
            number.

    Raises:
        ValueError: there are not as many answers as completions, or an answer is empty or neither
            text nor a finite number.
    """
    if isinstance(answer, str) or len(answer) != len(completions):
        raise ValueError(
            f"answer holds {len(answer)} values for {len(completions)} completions; "
            "give one for each."
        )
    wanted = [_wanted(i, a) for i, a in enumerate(answer)]
    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    return [
        float(same_answer(extract_answer(text), right))
        for text, right in zip(texts, wanted, strict=True)
    ]


def _wanted(row: int, answer: object) -> str:
    """The right answer as text."""
    plain = answer.item() if hasattr(answer, "item") else answer  # of numpy or torch
    text = str(plain).strip()
    if "####" in text:
        text = _head(text.rsplit("####", 1)[1])
    good = isinstance(plain, str) or (isinstance(plain, (int, float)) and math.isfinite(plain))
    if not text or not good:
        raise ValueError(
            f"Answer {row} is {repr(answer)[:60]}; it must hold the right answer, as text or as a "
            "finite number."
        )
    return text
