r"""Is the answer right? A number, found in what any language model wrote and compared exactly, for problems such as GSM8K's.

    "6 * 7 = 42 apples.\n#### 42"  ->  "42"  ->  Fraction(42)  ->  1.0 where the solution ends in "#### 42", else 0.0

Symbolic maths is deliberately not handled: 2x, \sqrt{2}, 3^2, 5 × 10^3 and number words ("forty-two") are no numbers here, and are compared
as texts. What is doubtful (1,2 or "41 or 42") is no number either: a policy is not paid for what could be read in its favour.

Source: Cobbe et al. 2021, Training Verifiers to Solve Math Word Problems (the data's "#### 42"); \boxed{} is Hendrycks et al. 2021 (MATH).
"""

import re
from fractions import Fraction

PHRASE = re.compile(r"\banswer[\s*_]{0,9}(?:is\b|:|=)", re.IGNORECASE)
END = re.compile(
    r"(?<=\d)[.!?]\s|[.!?]\s+(?=[^\d\s])|(?<=\d),\s+(?=[^\W\d_])|\b(?:because|since|so|which)\b"
)  # but of no "Rs. 500"
MARKS = " \t\r\n*_`$:"  # Markdown's and LaTeX's, around an answer
LATEX = [
    ("\u2212", "-"),
    (r"\{,\}|,\\!", ","),
    (r"\\([$%])", r"\1"),
    (r"\\[,;: ()\[\]]", " "),
    (r"\^\{?\\circ\}?", "°"),
    (r"(?<=[0-9])(?=\\[dt]?frac)", " "),  # 1\frac{1}{2} is mixed
    (r"\\[dt]?frac\s*\{\s*([+-]?[0-9.,]+)\s*\}\s*\{\s*([0-9.,]+)\s*\}", r"\1/\2 "),
    (r"\\(?:boxed|(?:text|math)[a-z]{0,2})\{([^{}]*)\}", r" \1 "),
    (r"(?<=[A-Za-z])\s?\^\{?[23]\}?", " "),
]  # cm^2
# No pattern is slow: a repetition gives nothing back (++), or what follows it shares no character with it, or it is tried once a text.
WHOLE = r"(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9])|[0-9]++)"
DECIMAL = rf"(?:{WHOLE}(?:\.[0-9]++)?|(?<![\w.])\.[0-9]++)(?:[eE][+-]?[0-9]{{1,3}}(?![0-9]))?"
NUMBER = re.compile(
    rf"(?:(?<![\w)\]}}%])([+-])(?:[$€£¥₹] ?)?)?(?:({WHOLE}) +(?=[0-9]++/[0-9]))?({DECIMAL})(?: ?/ ?({DECIMAL}))?"
)
VARIABLE = re.compile(
    r"(?<![^\W\d_])[nxyzπ](?![^\W\d_])"
)  # one letter alone: 2x is no number, 2 boxes is
BESIDE = set(
    "$€£¥₹¢%°.,:;!?'\"()[]*_`~≈²³"
)  # what may stand beside a number, with letters and blanks; after it / and - too
LONGEST = 1000  # characters: Python refuses to read much longer numbers, and no answer is one


def _head(text: str) -> str:
    """The answer that a text begins with: to the end of its sentence or line."""
    line = text.lstrip(MARKS).split("\n", 1)[0]
    return END.split(line, maxsplit=1)[0].rstrip(MARKS + ".,;!?")


def _boxed(text: str) -> str:
    r"""What the last \boxed{...} holds; "" where there is none, or its brace is not closed."""
    _, found, rest = text.rpartition(r"\boxed{")
    depth = 1
    for i, character in enumerate(rest if found else ""):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return rest[:i].strip(MARKS)
    return ""


def _plain(text: str) -> str:
    """LaTeX's ways of writing a number, written plainly."""
    for pattern, plain in LATEX:
        text = re.sub(pattern, plain, text)
    return text


def extract_answer(text: str) -> str | None:
    r"""The answer that a text gives, as it is written there; None where it gives none.

        "... #### 42\n"  "so \boxed{42}"  "The answer is 42 apples, since ..."  "40 + 2 makes 42 in all."  ->  42, 42, 42 apples, 42

    The first of these places that holds anything: what follows the last ####; the last \boxed{}; what follows the last "the answer is",
    "Answer:" and the like; the last number. What follows is read to the end of its sentence or line, without the marks around it. A
    Markdown heading of four # is taken for the first place, as a number in it is for the answer: ask for one format in the prompt.
    """
    marked, said = text.rsplit("####", 1), PHRASE.split(text)
    found = (
        (_head(marked[1]) if len(marked) > 1 else "")
        or _boxed(text)
        or (_head(said[-1]) if len(said) > 1 else "")
    )
    return found or ([None] + [number[0] for number in NUMBER.finditer(_plain(text))])[-1]


def parse_number(text: str) -> Fraction | None:
    r"""The exact value of the one number in a text; None where there is none, more than one, or more than a number and its unit.

        "$1,234.50" -> 2469/2    "−3/4 km" -> -3/4    "1 1/2 cups", "\frac{3}{2}" -> 3/2    "x = 5" -> 5    "1e3" -> 1000
        "1,2", "41 or 42", "1/0", "2x", "3^2", "> 5" -> None

    Units are not computed with: 50% is 50, 2 dozen is 2, 1.5 million is 1.5. GSM8K's answers are bare, in the unit that the question asks
    for ("what percentage ...": #### 50), and 50% as 1/2 would fail them all. Other words beside the number are taken for units too,
    whatever they say ("not 5" is 5). Of an equation the right side is read. A number of more than 1,000 characters, or with an exponent of
    more than three digits, is None: its value would fill the memory.
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
    """Equal as numbers, exactly ("0.50" and "1/2", "$1,000" and "1000"); where one is no number, as texts but for case and blanks."""
    if given is None:
        return False
    numbers = parse_number(given), parse_number(wanted)
    return (
        numbers[0] == numbers[1]
        if None not in numbers
        else given.casefold().split() == wanted.casefold().split()
    )


def answer_reward(
    prompts: list[str], completions: list[str], *, answer: list, **columns
) -> list[float]:
    """1.0 for each completion whose answer is right, 0.0 for the others: a reward function by TRL's contract (`rewards.function`).

        answer_reward(["6 * 7?"], ["That makes 42."], answer=["6 * 7 = <<6*7=42>>42\\n#### 42"])  ->  [1.0]

    Args:
        answer: a column of the dataset: GSM8K's whole solution, or the bare answer as a text or number.

    Raises:
        ValueError: there are not as many answers as completions, or one holds nothing.
    """
    if len(answer) != len(completions):
        raise ValueError(
            f"answer holds {len(answer)} values for {len(completions)} completions; give one for each."
        )
    wanted = [extract_answer(str(a)) if "####" in str(a) else str(a).strip() for a in answer]
    if empty := [i for i, text in enumerate(wanted) if not text or answer[i] is None]:
        raise ValueError(
            f"Answer {empty[0]} is {repr(answer[empty[0]])[:60]}; it must hold the right answer."
        )
    return [
        float(same_answer(extract_answer(text), right))
        for text, right in zip(completions, wanted, strict=True)
    ]
