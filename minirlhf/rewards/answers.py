r"""Check the numerical answer in a response, for problems such as GSM8K's.

    "6 * 7 = 42 apples.\n#### 42"  ->  "42"  ->  Fraction(42)  ->  1.0 if it is right, else 0.0

The answer is found in the text of any language model, parsed to a Fraction and compared exactly.
This file needs nothing but Python.

A policy finds every text that is paid although it is wrong, and no list of words that deny or
change a number is complete. So the rule is the other way round. What may stand before and after a
number is a short list of forms (see `parse_number`), and the answer is the last thing that a
response says (see `extract_answer`). Everything else is not paid. This costs some right answers.
Ask for one format in the prompt, and the policy learns it.

Symbolic maths is deliberately not parsed: 2x, \sqrt{2}, 3^2 and 5 × 10^3 are compared as texts. For
such answers use a library for mathematical equality, such as math-verify, in a function of your own
(see `rewards.function`).

Source: Cobbe et al. 2021, Training Verifiers to Solve Math Word Problems ("#### 42" in the data);
\boxed{} is from Hendrycks et al. 2021 (MATH).
"""

import math
import re
from fractions import Fraction

LONGEST = 1000  # characters; Python refuses to parse much longer numbers, and no answer has so many
MARKS = " \t\r\n*_`$:"  # of Markdown and LaTeX, around an answer
THUS = r"(?:so|then|thus|hence|therefore|finally)"
HASHES = re.compile(r"#{4,}")
BOX = re.compile(r"\\f?box(?:ed)?\s?\{")
PHRASE = re.compile(  # at the start of a sentence or a line, or after ", so"
    rf"(?:(?:^|(?<=[.!?:] )|(?<=\n))(?:no, )?|(?<=, )(?={THUS}))\W{{0,9}}(?:{THUS},? )?"
    r"(?:(?:the|my|our) )?(?:(?:final|correct) )?answer[\s*_]{0,9}(?:is\b|:|=)",
    re.IGNORECASE,
)
SENTENCE = re.compile(r"(?<=\d)\.\s|[.!?]\s+(?=[^\d\s])|\n")  # its end; not the dot of "Rs. 500"
REASON = re.compile(r",?\s(?:because|since)\s")
HOPE = "I hope it is correct"  # ends every answer of a well-known prompt for MATH
NEXT_PROBLEM = re.compile(
    r"\n\W{0,9}(?:question|q|problem|human|user)\b\W{0,3}\d{0,3}\W{0,3}:", re.I
)

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
    (r"[^\S\n]+", " "),
]
PLAIN = str.maketrans("\u2212０１２３４５６７８９．，－＋％＄", "-0123456789.,-+%$")

# Every pattern is fast on every text: it reads a short text, or a repetition in it never backtracks
# (++), or shares no character with what follows it.
WHOLE = r"(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9])|[0-9]++)"
DECIMAL = rf"(?:{WHOLE}(?:\.[0-9]++)?|\.[0-9]++)(?:[eE][+-]?[0-9]{{1,3}}(?![0-9]))?"
CODE = r"(?:(?:USD|US|EUR|GBP|INR|CAD|AUD|Rs)\b\.? ?)?"

# What may stand before a number: words that say that one thing has this value, and an equation.
VERB = (
    r"(?:is|are|was|were|equals|makes?|gets?|got|has|have|had|needs?|costs?|earns?|pays?|takes?|sells?|"
    r"sold)"
)
CHANGED = re.compile(  # words that deny what they stand beside, leave it open or change it
    r"n['’]t\b|\b(?:no|not|never|none|neither|nor|or|cannot|wrong|incorrect|false|mistaken|maybe|"
    r"perhaps|possibly|probably|might|could|guess|doubt|unsure|if|whether|unless|suppose|assume|"
    r"another|approximately|roughly|about|almost|plus|minus|times|twice|thrice|double|triple|half|"
    r"square|cube|root|opposite|negative|inverse|reciprocal|log|ln|sin|cos|tan|mod|power)\b",
    re.IGNORECASE,
)
SUBJECT = (
    r"(?:(?:it|that|this|there|she|he|they|we|i|you)|(?:the|her|his|their|its)(?: [a-z]+){1,6})"
)
SUM = r"(?=[-(. ]*+[0-9.,]++[) ]*+[-+*/×÷])[-0-9(.](?:[-+*/×÷(). 0-9]|,(?=[0-9]{3}))*+"
BEFORE = (
    rf"(?:{THUS},? )?"
    rf"(?:(?:{SUBJECT} {VERB}|(?:it|that)['’]s) (?:exactly |only |just |now |a total of )?)?"
    rf"(?:(?:[a-z]+ ?|{SUM})?= ?)*+"
)

# What may stand after it: a unit from these lists, or one word in the plural.
SHORT = (  # also without a space; 2x and 2ab are products
    r"(?:km|cm|mm|nm|mg|kg|mL|ml|cl|dl|lbs?|oz|ft|yd|mi|in|hrs?|mins?|secs?|pm|am|mph|kph|kmh|kW|"
    r"MW|kWh|MB|GB|TB|kB|Hz|kHz|MHz|GHz|USD|EUR|GBP)"
)
LONG = (
    r"(?:dollar|cent|euro|rupee|meter|metre|foot|inch|mile|yard|gram|kilogram|pound|ounce|second|"
    r"minute|hour|day|week|month|year|liter|litre|cup|gallon|percent|degree|person|unit)"
)
PLURAL = (  # not those that are numbers, and no verb or adverb that is known
    r"(?:feet|inches|months|people|men|women|children|"
    r"(?!(?:is|was|has|does|this|thus|plus|minus|times|less|unless|perhaps|always|yes|equals|"
    r"ones|twos|threes|fours|fives|sixes|sevens|eights|nines|tens)\b)"
    r"(?![a-z]*(?:th|illion|hundred|thousand|dozen|score|half|halve|third|quarter|pair|couple|"
    r"double|triple|crore|lakh|tie)s\b)[a-z]{2,20}s)"
)
AFTER = (
    rf"(?:{SHORT}[²³]?| ?%| ?°(?: ?[CF])?)?"
    rf"(?: (?:more )?(?:square |cubic )?(?:{SHORT}|[mghslL]|{LONG}|{PLURAL})[²³]?)?"
    rf"(?:(?: ?/ ?| per | an? | every )(?:h|s|{SHORT}|{LONG}))?"
    r"(?: (?:in all|in total|altogether|left))? ?\.? ?"
)
NUMBER = re.compile(
    rf"(?P<before>(?i:{BEFORE})){CODE}(?P<sign>[+-]?) ?{CODE}"
    rf"(?P<value>(?:(?P<whole>{WHOLE}) (?=[0-9]++/))?(?P<top>{DECIMAL})"
    rf"(?: ?/ ?(?P<bottom>{DECIMAL}))?){AFTER}"
)
BEFORE_BOX = re.compile(
    rf"(?:^|(?<![<>!=:≈≠])=|\b(?:{VERB}|{THUS}|answer|be|get|have|obtain)[:,]?)[ *_]*$", re.I
)


def _plain(text: str) -> str:
    """The text with other ways of writing a number (LaTeX, wide digits) replaced by plain ones."""
    text = text.translate(PLAIN)
    for pattern, plain in LATEX:
        text = re.sub(pattern, plain, text)
    return text.strip()


def _number_in(text: str) -> tuple[str, Fraction] | None:
    """The number of a short text, as it is written with its sign, and its value; None if none."""
    if len(text) > 4 * LONGEST:
        return None
    text = _plain(text)
    enclosed = re.fullmatch(r"[(\[\"']([^,]*)[)\]\"']", text)  # not (1,234)
    found = NUMBER.fullmatch(enclosed[1].strip() if enclosed else text)
    if not found or len(found["value"]) > LONGEST or CHANGED.search(found["before"]):
        return None
    whole, top, bottom = (
        Fraction((found[part] or without).replace(",", ""))
        for part, without in (("whole", "0"), ("top", "0"), ("bottom", "1"))
    )
    if not bottom or (found["whole"] and top >= bottom):
        return None
    value, sign = whole + top / bottom, found["sign"]
    return sign + found["value"], -value if sign == "-" else value


def _box_end(text: str, start: int) -> int:
    """The place of the brace that closes the one before `start`; `start` if none does."""
    depth = 1
    for i in range(start, len(text)):
        depth += (text[i] == "{") - (text[i] == "}")
        if depth == 0:
            return i
    return start


def _agrees(piece: str, value: Fraction | None) -> bool:
    """Whether what follows an answer says nothing, or the same number."""
    said = piece.strip(MARKS + ".,;\\()[]")
    return said in ("", HOPE) or (value is not None and parse_number(piece) == value)


def extract_answer(text: str) -> str | None:
    r"""The answer that a text gives, as it is written there; None if there is none.

        "... #### 42\n"  ->  "42"      "The answer is 42 apples, since 6 * 7 = 42"  ->  "42 apples"
        "so \boxed{42}"  ->  "42"      "That makes 40 + 2 = 42 in all."             ->  "42"

    The answer is the first of these that is not empty:
    - what follows the last #### at the start of a sentence or line, up to the end of it;
    - the content of the last \boxed{} or \fbox{};
    - what follows the last "the answer is", "Answer:" or similar at the start of a sentence or line
      or after ", so", up to the end of the sentence or line;
    - the number of the last sentence or line, if `parse_number` reads it.

    There is no answer (None) if more follows it than a unit, marks of Markdown or LaTeX, a reason
    (because, since) or a sentence that `parse_number` reads as the same number, "I hope it is
    correct", and the next problem ("Question: ..."), which base models write. "The answer is 42.
    No, 43" has no answer, "The answer is 41. No, the answer is 42" has.

    There is none either if something stands before #### in its sentence, or if the sentence before
    another marker holds a word that denies or changes the answer (not, if, or, twice). Before a box
    it must be empty or end with "=", "is", "has", "so" or similar, and hold no other box. A
    Markdown heading with four # is mistaken for the first marker.
    """
    for marker in (HASHES, BOX, PHRASE):
        places = [found.span() for found in marker.finditer(text)]
        if not places:
            continue
        start, end = places[-1]
        close = _box_end(text, end) if marker is BOX else end
        first, *later = SENTENCE.split(
            NEXT_PROBLEM.split(text[close:], maxsplit=1)[0].lstrip(MARKS)
        )
        if marker is BOX:
            answer = text[end:close].strip(MARKS)
            later.insert(0, first[1:] if parse_number(answer) is None else answer + first[1:])
        else:
            answer, *reason = REASON.split(first, maxsplit=1)
            answer, later = answer.rstrip(MARKS + ",;"), reason + later
            answer = answer if answer.endswith("...") else answer.rstrip(MARKS + ".")
        if not answer:
            continue
        clause, value = SENTENCE.split(text[:start])[-1], parse_number(answer)
        if CHANGED.search(clause) or not all(_agrees(piece, value) for piece in later):
            return None
        if marker is HASHES and clause.strip(MARKS):
            return None
        before = _plain(clause[-LONGEST:])
        if marker is BOX and (BOX.search(clause) or not BEFORE_BOX.search(before)):
            return None
        return answer
    number = _number_in(SENTENCE.split(text.strip())[-1])
    return number and number[0]


def parse_number(text: str) -> Fraction | None:
    r"""The exact value of the number that a text gives.

        "$1,234.50" -> 2469/2    "−3/4 km" -> -3/4    "1 1/2 cups", "\frac{3}{2}", "\frac32" -> 3/2
        "x = 5", "3 + 2 = 5", "The largest n is 5" -> 5                        "1e3" -> 1000
        "1,2", "41 or 42", "1/0", "2x", "3^2", "> 5", "about 5", "5!", "5th", "5 doubled" -> None

    A number is written in the digits 0 to 9: a whole number, with or without commas between
    thousands; a decimal with a point; a fraction a/b or \frac{a}{b}; a mixed number a b/c; each
    with or without an exponent e of at most three digits, and a sign. Wide digits and the Unicode
    minus count as plain ones. Brackets, quotes or \text{} may stand around it.

    Before it may stand, in this order, and nothing else:
    - "so", "thus", "therefore" or similar;
    - a pronoun, or "the" and one to six words, with "is", "has", "costs" or similar, but no word
      that denies or changes a number (not, or, about, half);
    - names or sums of numbers, without units, each with "=";
    - a currency.

    After it may stand, in this order, and nothing else:
    - % or °, or a short unit such as km, also without a space: 5km, but not 5x;
    - one unit of a closed list, or one word in the plural that ends in s and is no number
      ("apples", but not "thirds"; "doubled" is none), also with "more", "square" or "cubic";
    - "per hour", "a day", "/h" or similar;
    - "in all", "in total", "altogether" or "left", and a full stop.

    Units are ignored: 50% is 50. The reason is that GSM8K's answers are bare numbers in the unit
    that the question asks for. A question "what percentage" has the answer "#### 50", so 50% as 1/2
    would count as wrong.

    Returns:
        A Fraction. None for every other text. Also None for a number of more than 1,000 characters
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
        text = text.rsplit("####", 1)[1].strip(MARKS)
    good = isinstance(plain, str) or (isinstance(plain, (int, float)) and math.isfinite(plain))
    if not text or not good:
        raise ValueError(
            f"Answer {row} is {repr(answer)[:60]}; it must hold the right answer, as text or as a "
            "finite number."
        )
    return text
