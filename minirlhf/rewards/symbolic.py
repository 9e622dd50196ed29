r"""Check a symbolic answer in a box, for problems such as MATH's: \boxed{2\sqrt{3}}.

Whether two answers are equal is left to math-verify. It is in minirlhf's extra `math`.

math-verify is made for the answers of models that try to be right, and a policy finds what it takes
too lightly: x = 4 = 5, 12 pm and 5 million for 5, \log_2 8 for 3, 2X for 2x, "east" for "seat" (as
products of letters), or the question itself, such as \int_0^1 x dx for 1/2. So it is asked only
about answers that look alike (see `same_symbolic_answer`). Equal in value is enough then:
\sqrt{12} is paid for 2\sqrt{3}. It does not check that an answer is simplified.

Source: math-verify, https://github.com/huggingface/Math-Verify.
"""

import re
import threading
from typing import Any

from minirlhf.rewards.answer_numbers import parse_number
from minirlhf.rewards.answers import boxed_answer, reward_of_rows, same_answer

FREE = re.compile(  # they change nothing, or a fraction or root into one of the same value
    r"\\(?:(?:[dtc]?frac|sqrt|cdot|times|left|right|displaystyle|quad)(?![A-Za-z])|[,;:! ])"
)
MARK = re.compile(r"\\(?:[A-Za-z]+|.)|[A-Za-z]+|[^A-Za-z0-9\s\\+*/^(){}-]", re.S)
UNSURE = re.compile(r":|[0-9})]_|[0-9](?:\s|\\[,;:! ])+[0-9]|=.*=", re.S)
EXPONENT = re.compile(r"\^\s*(?:\{([^{}^]*)\}|([^\s{]))")
LONGEST = 200  # characters
SECONDS = 5


def symbolic_answer_reward(
    prompts: list, completions: list, *, answer: list, **columns: object
) -> list[float]:
    r"""1.0 for each completion with a box whose content equals the answer, 0.0 for the others.

        symbolic_answer_reward(["..."], [r"so \boxed{(x+1)^2}"], answer=["x^2 + 2x + 1"])  ->  [1.0]

    It follows TRL's contract for reward functions (see `rewards.function`).

    Args:
        prompts, completions, answer: as those of `rewards.answer_reward`. The answer may stand in
            \boxed{} or between $.

    Raises:
        ImportError: math-verify is not installed.
        ValueError: as by `rewards.answer_reward`.
    """
    _math_verify()
    return reward_of_rows(prompts, completions, answer, boxed_answer, same_symbolic_answer)


def same_symbolic_answer(given: str | None, wanted: str, question: str = "") -> bool:
    r"""Whether two answers are equal, for `answers.same_answer` or in the eyes of math-verify.

    math-verify is asked only if neither is a plain number (then only the same number is equal), and
    if both hold the same letters, commands of LaTeX (other than \frac, \sqrt, \cdot and \left) and
    marks such as , = < [ % and the decimal point. So 3.46 is not 2\sqrt{3}, and (1,2] is not [1,2).
    "x =" before the answer is left out if the wanted answer has no =. Texts of more than 200
    characters, with a ratio or time (3:4), a number in another base, two numbers side by side, two
    equals signs or exponents of more than four digits together are equal only as texts.
    """
    if given is None:
        return False
    if "=" not in wanted:
        given = re.sub(r"^\s*[A-Za-z]\s*=", "", given)
    if same_answer(given, wanted, question):
        return True
    if any(parse_number(text, question) is not None for text in (given, wanted)):
        return False
    return (
        _marks(given) == _marks(wanted)
        and not any(map(_refused, (given, wanted)))
        and _equal(given, wanted)
    )


def _marks(text: str) -> set[str]:
    """The letters, commands and marks of a formula; with a comma, also its first and last sign."""
    text = FREE.sub(" ", text).replace("$", "").strip()
    return set(MARK.findall(text)) | (
        {"first" + text[0], "last" + text[-1]} if "," in text else set()
    )


# 1/2x: is the x above or below the line?
PRODUCT_BELOW = re.compile(r"/\s*(?:[0-9]+\s*[A-Za-z\\]|[A-Za-z]\s*[A-Za-z\\(])")


def _refused(text: str) -> bool:
    """Whether math-verify misreads a text or could need much time or memory for it."""
    exponents = EXPONENT.findall(text)
    digits = re.sub("[^0-9]", "", "".join(braced + plain for braced, plain in exponents))
    return bool(
        len(text) > LONGEST
        or UNSURE.search(text)
        or len(exponents) != text.count("^")  # a tower
        or len(digits) > 4
        or "!" in text
        # math-verify ignores the order of a list without brackets
        or ("," in text and not re.match(r"\s*(?:\\left\s*)?(?:[(\[]|\\\{)", text))
        or re.fullmatch(r"\s*[A-Z](?:\s+[A-Z])+\s*", text)  # and that of letters
        or PRODUCT_BELOW.search(text)
    )


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
    """Whether math-verify finds two formulas equal. Its time limits need the main thread."""
    verify = _math_verify()
    main = threading.current_thread() is threading.main_thread()
    limit = SECONDS if main else None
    latex = [verify.LatexExtractionConfig(boxed_match_priority=0)]
    right, said = (
        verify.parse(
            rf"\boxed{{{text}}}",
            extraction_config=latex,
            fallback_mode="no_fallback",
            extraction_mode="first_match",
            parsing_timeout=limit,
        )
        for text in (wanted, given)
    )
    return bool(right and said and verify.verify(right, said, timeout_seconds=limit))
