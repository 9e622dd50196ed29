r"""Check the numerical answer in a response, for problems such as GSM8K's.

    "6 * 7 = 42 apples.\n#### 42"  ->  "42"  ->  Fraction(42)  ->  1.0 if it is right, else 0.0

The answer is found in the text of any language model, parsed to a Fraction and compared exactly.
This file needs nothing but Python.

Symbolic maths is deliberately not parsed: 2x, \sqrt{2}, 3^2, 5 × 10^3 and number words
("forty-two") do not count as numbers here. They are compared as texts. Ambiguous texts ("1,2" or
"41 or 42") do not count as numbers either, so that a policy is not rewarded for what could be read
in its favour.

Source: Cobbe et al. 2021, Training Verifiers to Solve Math Word Problems ("#### 42" in the data);
\boxed{} is from Hendrycks et al. 2021 (MATH).
"""

import re
from fractions import Fraction

PHRASE = re.compile(r"\banswer[\s*_]{0,9}(?:is\b|:|=)", re.IGNORECASE)
END = re.compile(
    r"(?<=\d)[.!?]\s|[.!?]\s+(?=[^\d\s])|(?<=\d),\s+(?=[^\W\d_])|\b(?:because|since|so|which)\b"
)  # where an answer ends; not at the dot of "Rs. 500"
MARKS = " \t\r\n*_`$:"  # of Markdown and LaTeX, around an answer
LATEX = [
    ("\u2212", "-"),
    (r"\{,\}|,\\!", ","),
    (r"\\([$%])", r"\1"),
    (r"\\[,;: ()\[\]]", " "),
    (r"\^\{?\\circ\}?", "°"),
    (r"(?<=[0-9])(?=\\[dt]?frac)", " "),  # 1\frac{1}{2} is a mixed number
    (r"\\[dt]?frac\s*\{\s*([+-]?[0-9.,]+)\s*\}\s*\{\s*([0-9.,]+)\s*\}", r"\1/\2 "),
    (r"\\(?:boxed|(?:text|math)[a-z]{0,2})\{([^{}]*)\}", r" \1 "),
    (r"(?<=[A-Za-z])\s?\^\{?[23]\}?", " "),  # cm^2
]
# Every pattern is fast on every text, for one of three reasons: a repetition never backtracks (++),
# or it shares no character with what follows it, or it is tried only once per text.
WHOLE = r"(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9])|[0-9]++)"
DECIMAL = rf"(?:{WHOLE}(?:\.[0-9]++)?|(?<![\w.])\.[0-9]++)(?:[eE][+-]?[0-9]{{1,3}}(?![0-9]))?"
NUMBER = re.compile(
    rf"(?:(?<![\w)\]}}%])([+-])(?:[$€£¥₹] ?)?)?(?:({WHOLE}) +(?=[0-9]++/[0-9]))?({DECIMAL})"
    rf"(?: ?/ ?({DECIMAL}))?"
)
# one letter alone: 2x is not a number, 2 boxes is
VARIABLE = re.compile(r"(?<![^\W\d_])[nxyzπ](?![^\W\d_])")
# allowed next to a number, besides letters and spaces; after it also / and -
BESIDE = set("$€£¥₹¢%°.,:;!?'\"()[]*_`~≈²³")
LONGEST = 1000  # characters; Python refuses to parse much longer numbers, and no answer has so many


def _head(text: str) -> str:
    """The answer at the start of a text, up to the end of its sentence or line."""
    line = text.lstrip(MARKS).split("\n", 1)[0]
    return END.split(line, maxsplit=1)[0].rstrip(MARKS + ".,;!?")


def _boxed(text: str) -> str:
    r"""The content of the last \boxed{...}; "" if there is none or its brace is not closed."""
    _, found, rest = text.rpartition(r"\boxed{")
    depth = 1
    for i, character in enumerate(rest if found else ""):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return rest[:i].strip(MARKS)
    return ""


def _plain(text: str) -> str:
    """The text with LaTeX's ways of writing a number replaced by plain ones."""
    for pattern, plain in LATEX:
        text = re.sub(pattern, plain, text)
    return text


def extract_answer(text: str) -> str | None:
    r"""The answer that a text gives, as it is written there; None if there is none.

        "... #### 42\n"  ->  "42"        "The answer is 42 apples, since ..."  ->  "42 apples"
        "so \boxed{42}"  ->  "42"        "40 + 2 makes 42 in all."             ->  "42"

    The answer is the first of these that is not empty:
    - what follows the last ####;
    - the content of the last \boxed{};
    - what follows the last "the answer is", "Answer:" or similar;
    - the last number.

    What follows a marker is read up to the end of its sentence or line, without Markdown or LaTeX
    marks around it. A Markdown heading with four # is mistaken for the first marker, and a number
    in it for the answer. So ask for one format in the prompt.
    """
    marked, said = text.rsplit("####", 1), PHRASE.split(text)
    found = (
        (_head(marked[1]) if len(marked) > 1 else "")
        or _boxed(text)
        or (_head(said[-1]) if len(said) > 1 else "")
    )
    return found or ([None] + [number[0] for number in NUMBER.finditer(_plain(text))])[-1]


def parse_number(text: str) -> Fraction | None:
    r"""The exact value of the single number in a text.

        "$1,234.50" -> 2469/2    "−3/4 km" -> -3/4    "1 1/2 cups", "\frac{3}{2}" -> 3/2
        "x = 5" -> 5             "1e3" -> 1000
        "1,2", "41 or 42", "1/0", "2x", "3^2", "> 5" -> None

    Units are ignored: 50% is 50, 2 dozen is 2, 1.5 million is 1.5. The reason is that GSM8K's
    answers are bare numbers in the unit that the question asks for. A question "what percentage"
    has the answer "#### 50", so 50% as 1/2 would count as wrong. Every other word next to the
    number is taken for a unit too, whatever it says ("not 5" is 5). In an equation the right side
    is read.

    Returns:
        A Fraction. None if there is no number, more than one, or anything besides a number and its
        unit. Also None for a number of more than 1,000 characters or an exponent of more than three
        digits, because its value could fill the memory.
    """
    text = re.sub(r"^(?s:.*)(?<![<>!])=", "", _plain(text)).strip()
    text = re.sub(r"^([+-])\s+", r"\1", text)
    found = list(NUMBER.finditer(text))
    if len(found) != 1 or len(found[0][0]) > LONGEST:
        return None
    before, after = text[: found[0].start()], text[found[0].end() :]
    strangers = {
        c
        for c in before + after.replace("/", "").replace("-", "")
        if not (c.isalpha() or c.isspace())
    } - BESIDE
    if strangers or VARIABLE.search(before + " " + after):
        return None
    sign, whole, numerator, denominator = (
        part and part.replace(",", "") for part in found[0].groups()
    )
    if denominator and not Fraction(denominator):
        return None
    value = Fraction(whole or 0) + Fraction(numerator) / Fraction(denominator or 1)
    return -value if sign == "-" else value


def same_answer(given: str | None, wanted: str) -> bool:
    """Whether two answers are equal: as exact numbers, or else as texts.

    "0.50" equals "1/2", and "$1,000" equals "1000". If either is not a number, the texts are
    compared without regard to upper case and spaces.
    """
    if given is None:
        return False
    numbers = parse_number(given), parse_number(wanted)
    return (
        numbers[0] == numbers[1]
        if None not in numbers
        else given.casefold().split() == wanted.casefold().split()
    )


def answer_reward(
    prompts: list[str], completions: list[str], *, answer: list, **columns: object
) -> list[float]:
    r"""1.0 for each completion whose answer is right, 0.0 for the others.

        answer_reward(["6 * 7?"], ["That makes 42."], answer=["6 * 7 = <<6*7=42>>42\n#### 42"])
        ->  [1.0]

    It follows TRL's contract for reward functions (see `rewards.function`).

    Args:
        prompts: not used.
        completions: responses, as text.
        answer: a column of the dataset: GSM8K's whole solution, or the bare answer as text or
            number.

    Raises:
        ValueError: there are not as many answers as completions, or an answer is empty.
    """
    if len(answer) != len(completions):
        raise ValueError(
            f"answer holds {len(answer)} values for {len(completions)} completions; "
            "give one for each."
        )
    wanted = [extract_answer(str(a)) or "" if "####" in str(a) else str(a).strip() for a in answer]
    if empty := [i for i, text in enumerate(wanted) if not text or answer[i] is None]:
        raise ValueError(
            f"Answer {empty[0]} is {repr(answer[empty[0]])[:60]}; it must hold the right answer."
        )
    return [
        float(same_answer(extract_answer(text), right))
        for text, right in zip(completions, wanted, strict=True)
    ]
