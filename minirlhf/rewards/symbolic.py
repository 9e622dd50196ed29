r"""Check a symbolic answer, for problems such as MATH's: \boxed{2\sqrt{3}}.

math-verify reads the formulas, and sympy compares them exactly: their difference must simplify to
0. math-verify's own comparison is not used. It is made for models that try to be right, and a
policy finds what it takes too lightly: numbers that agree in 15 digits, x = 4 = 5 or 5 million for
5, "east" for "seat" (as products of letters), dx/dy for dy/dx, or the question itself, such as
\int_0^1 x dx for 1/2. So formulas are compared only if they look alike and are of a simple kind
(see `same_symbolic_answer`). Equal in value is enough then: \sqrt{12} is paid for 2\sqrt{3}.
It does not check that an answer is simplified.

math-verify is in minirlhf's extra `math`. Source: https://github.com/huggingface/Math-Verify.
"""

import re
import threading
from dataclasses import replace
from typing import Any

from minirlhf.rewards.answer_numbers import parse_number
from minirlhf.rewards.answers import extract_answer, reward_of_rows, same_answer

SPACE = re.compile(r"\s+|\\(?:(?:left|right|displaystyle|quad)(?![A-Za-z])|[,;:! ])|\$")
LIST = re.compile(r"(\(|\[|\\\{)(.*)(\)|\]|\\\})")
FORMULA = re.compile(  # all that a formula may hold; no capital, because math-verify reads X as x
    r"(?:[0-9a-z+*/^(){} -]|\\sqrt\[[0-9]\]|\\(?:[dt]?frac|sqrt|cdot|pi|infty|sin|cos|tan|log|ln|"
    r"alpha|beta|gamma|theta|lambda|mu|phi|omega)(?![A-Za-z]))*"
)
FREE = re.compile(r"\\(?:[dt]?frac|sqrt|cdot)")  # with or without them a value can be the same
UNSURE = re.compile(  # x1, words, two numbers side by side, \frac{dy}{dx}, 1/2x: x below the line?
    r"(?<![\\a-z])[a-z][a-z0-9]|[0-9] +[0-9]|\{ *d|/(?! *[0-9]+ *(?:[-+)]|$))"
)
EXPONENT = re.compile(r"\^ *(?:\{([^{}^]*)\}|([^ {]))")
LONGEST = 200  # characters
SECONDS = 5


def symbolic_answer_reward(
    prompts: list, completions: list, *, answer: list, **columns: object
) -> list[float]:
    r"""1.0 for each completion whose answer equals the right one, 0.0 for the others.

        symbolic_answer_reward(["..."], [r"so \boxed{(x+1)^2}"], answer=["x^2 + 2x + 1"])  ->  [1.0]

    The answer is marked as for `rewards.answer_reward`, and compared by `same_symbolic_answer`. It
    follows TRL's contract for reward functions (see `rewards.function`).

    Args:
        prompts, completions, answer: as those of `rewards.answer_reward`.

    Raises:
        ImportError: math-verify is not installed.
        ValueError: as by `rewards.answer_reward`.
    """
    _math_verify()
    return reward_of_rows(prompts, completions, answer, extract_answer, same_symbolic_answer)


def same_symbolic_answer(given: str | None, wanted: str, question: str = "") -> bool:
    r"""Whether two answers are equal, for `answers.same_answer` or as formulas.

    | both are                     | equal if                                              |
    |------------------------------|-------------------------------------------------------|
    | formulas                     | the difference simplifies to 0, exactly               |
    | equations with one =         | both left sides are equal, and both right sides       |
    | lists in the same ( ) or [ ) | their parts are equal, in the same order              |
    | sets in \{ \}                | their parts are equal, in any order                   |

    A formula holds numbers, small letters, + - * / ^, brackets, \frac, \sqrt, \cdot, \pi, \infty,
    \sin, \cos, \tan, \log, \ln and Greek letters, and nothing else. Both formulas must hold the
    same letters and commands (other than \frac, \sqrt and \cdot), and neither may be a plain
    number: 3.46 is not 2\sqrt{3}, and \log_2 8 is not 3.

    Everything else is equal only as text: decimals, capitals, primes, indices, < > \le, \in, \cup,
    \times, |x|, n!, \frac{dy}{dx}, \text{}, 1/2x, two or more letters side by side (xy, 3 mod 5x),
    and formulas of more than 200 characters or with exponents of more than four digits together.
    "x =" before the answer is left out if the wanted answer has no =.
    """
    if given is None:
        return False
    if "=" not in wanted:
        given = re.sub(r"^\s*[A-Za-z]\s*=", "", given)
    if same_answer(given, wanted, question):
        return True
    if max(len(given), len(wanted)) > LONGEST:
        return False
    return _same(_tidy(given), _tidy(wanted))


def _tidy(text: str) -> str:
    r"""A formula without commands of layout, and with spaces between letters and digits only."""
    text = re.sub(r"\\([lgn])eq?(?![a-z])", r"\\\1e", SPACE.sub(" ", text).strip())
    return text if "!" in text else re.sub(" (?![A-Za-z0-9])|(?<![A-Za-z0-9]) ", "", text)


def _same(given: str, wanted: str) -> bool:
    """Whether two lists, sets, equations or formulas are equal."""
    if same_answer(given, wanted):
        return True
    if "," in given + wanted:
        lists = LIST.fullmatch(given), LIST.fullmatch(wanted)
        if not lists[0] or not lists[1] or lists[0].group(1, 3) != lists[1].group(1, 3):
            return False
        if re.search("[0-9],[0-9]{3}(?![0-9])", given + wanted):  # thousands?
            return False
        is_set = lists[0].group(1, 3) == ("\\{", "\\}")
        parts = _parts(lists[0][2]), _parts(lists[1][2])
        return bool(parts[0]) and _same_parts(*parts, is_set)
    if "=" in given + wanted:
        sides = given.split("="), wanted.split("=")
        return len(sides[0]) == 2 and _same_parts(*sides, False)
    return _is_formula(given, wanted) and _equal(given, wanted)


def _parts(text: str) -> list[str]:
    """The parts between commas that stand in no bracket; none if the brackets do not match."""
    parts, depth = [""], 0
    for sign in text:
        depth += (sign in "([{") - (sign in ")]}")
        if depth < 0:
            return []
        if sign == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += sign
    return parts if depth == 0 else []


def _same_parts(given: list[str], wanted: list[str], any_order: bool) -> bool:
    """Whether the parts are equal, each to the one at its place or each to one of its own."""
    left = list(wanted)
    for part in given:
        open_ones = left if any_order else left[:1]
        found = [i for i, right in enumerate(open_ones) if _same(part.strip(), right.strip())]
        if not found:
            return False
        del left[found[0]]
    return not left


def _is_formula(given: str, wanted: str) -> bool:
    """Whether two texts are formulas that look alike, and that sympy can compare."""
    if any(parse_number(text) is not None for text in (given, wanted)):
        return False
    marks = [set(re.findall(r"\\?[A-Za-z]+", FREE.sub(" ", text))) for text in (given, wanted)]
    for text in (given, wanted):
        exponents = EXPONENT.findall(text)
        digits = re.sub("[^0-9]", "", "".join(braced + plain for braced, plain in exponents))
        if (
            not FORMULA.fullmatch(text)
            or UNSURE.search(text)
            or len(exponents) != text.count("^")  # a tower
            or len(digits) > 4
        ):
            return False
    return marks[0] == marks[1]


def _math_verify() -> Any:
    try:
        import math_verify
    except ImportError as error:
        raise ImportError(
            "symbolic_answer_reward needs math-verify, which is not installed: run "
            '`python -m pip install "math-verify>=0.9"`, or install "minirlhf[math]".'
        ) from error
    return math_verify


def _equal(given: str, wanted: str) -> bool:
    """Whether the difference of two formulas is 0. The time limits need the main thread."""
    verify = _math_verify()
    from math_verify.errors import TimeoutException
    from math_verify.utils import timeout
    from sympy import Expr, simplify

    main = threading.current_thread() is threading.main_thread()
    limit = SECONDS if main else None
    latex = verify.LatexExtractionConfig(boxed_match_priority=0)
    no_units = replace(latex.normalization_config, units=False)  # else 2 d is 2 days, and 2
    values = [
        verify.parse(
            rf"\boxed{{{text}}}",
            extraction_config=[replace(latex, normalization_config=no_units)],
            fallback_mode="no_fallback",
            extraction_mode="first_match",
            parsing_timeout=limit,
        )
        for text in (given, wanted)
    ]
    if not all(value and isinstance(value[0], Expr) for value in values):
        return False
    try:
        return bool(timeout(limit)(lambda: simplify(values[0][0] - values[1][0]) == 0)())
    except (TimeoutException, Exception):  # the first is no Exception
        return False
