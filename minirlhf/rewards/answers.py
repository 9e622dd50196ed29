r"""Check the answer in a response, for problems such as GSM8K's.

    "6 * 7 = 42 apples.\n#### 42"  ->  "42"  ->  Fraction(42)  ->  1.0 if it is right, else 0.0

A policy finds every text that is paid although it is wrong. So a response must mark its answer, and
the answer is all that follows the last mark. `answer_reward` says what is paid. Symbolic maths (2x,
\sqrt{2}, 3^2) is compared as text; for such answers use `rewards.symbolic_answer_reward`.

Source: Cobbe et al. 2021, Training Verifiers to Solve Math Word Problems ("#### 42" in the data);
\boxed{} is from Hendrycks et al. 2021 (MATH), <answer> from DeepSeek-AI 2025 (R1).
"""

import math
import re
from collections.abc import Callable
from typing import Any

from minirlhf.rewards.answer_numbers import LONGEST, parse_number, plain_text, read_number

MARKS = " \t\n*_`$"  # of Markdown and LaTeX, around an answer
NEXT_PROBLEM = re.compile(
    r"\n\W{0,9}(?:question|q|problem|human|user)\b\W{0,3}\d{0,3}\W{0,3}:", re.I
)
CLOSING = re.compile(r"\sI hope it is correct\.?\s*$")  # the prompt of Lewkowycz et al. 2022
BOLD = re.compile(r"(?<![\w*)])\*\*([^*\n]{1,100})\*\*(?![\w*(])")
TAG = re.compile("<answer>([^<]*)</answer>")  # read as ####
THUS = "(?:so|then|thus|hence|therefore|finally)"
ANSWER = (  # "the answer is", "Final answer:", or a heading
    rf"(?:{THUS},? )?(?:(?:the|my|our) )?(?:(?:final|correct) )?(?:answer|ans|a(?=\W{{0,3}}:))"
    r"[*_ ]*+(?:is\b|:|=|\n)[\s*_:]*+"
)
LINE = re.compile(  # a mark at the start of a line or sentence
    rf"(?:^|(?<=[.!?] ))[*_`$> ]*+(?:#*+[*_ ]*+(?:{ANSWER})++|#{{4,}}+)", re.I | re.M
)
BOX = re.compile(r"\\f?box(?:ed)?\s?\{")
SENTENCE_END = re.compile(r"(?<=[.!?])(?<!approx\.)(?<!max\.)(?<!min\.)(?<!\bca\.)\s(?!=)")
LETTERS = "alpha|beta|gamma|theta|lambda|mu|pi|sigma|phi|omega"
GREEK = rf"\\(?:{LETTERS})"
BEFORE_BOX = re.compile(  # one of a few words, or = after a letter, number or bracket: not \geq=
    rf"(?:^|(?:[0-9)}}\]$|'°%&]|(?<![A-Za-z\\])[A-Za-z]+|{GREEK}|[0-9)]! ?) ?=|\b(?:is|are|be|"
    rf"has|have|had|gets?|gives|obtain|makes|equals|answer|result|solution|{THUS}):?)$",
    re.I,
)
MULTIPLE = re.compile(  # 2x = or -x = or x/2 =, which does not say what x is
    r"(?:(?:[0-9]|(?:^|[ =(])-)[A-Za-z]|(?<![A-Za-z])[A-Za-z] ?/ ?[0-9]+) ?=$"
)
OPERATOR = re.compile(  # 6 × or x >= or x \geq, at the end of a line; but not --- or 6\pi
    r"(?:[\w)}\]%°](?: \*{1,2}| ?(?![∎∞∴∵])[-–+/^~<>·×÷±¬\u2200-\u22ff\u2a00-\u2aff]=?)|[a-z] ?!=|"
    rf"\\(?!(?:{LETTERS}|infty|dots|ldots|checkmark|square|blacksquare|qed|q?quad)$)[A-Za-z]+ ?=?)$"
)
OTHER_NUMBER = re.compile(  # one less is
    r"\b(?:less|fewer|more|below|above|before|after) (?:is|are|be|was|were|gives|equals|=):?$",
    re.I,
)
DENY = frozenset(
    """no not never none neither nor or cannot wrong incorrect false maybe perhaps possibly probably
    might could guess doubt if whether unless suppose assume another approximately roughly about
    almost than plus minus times twice double triple half square cube root negative opposite
    except""".split()
)


def _last_box(text: str) -> tuple[int, int, int]:
    r"""The places of the last \boxed{}, of its content and end; it is empty if not closed."""
    *_, (start, inside) = (0, 0), *(found.span() for found in BOX.finditer(text))
    depth = 1
    for i in range(inside, len(text) if inside else 0):
        depth += (text[i] == "{") - (text[i] == "}")
        if depth == 0:
            return start, inside, i
    return start, inside, inside


def _response(text: str) -> str:
    """A response without its thinking (R1's <think>), the next problem, bold and empty lines."""
    text = NEXT_PROBLEM.split(text.rsplit("</think>", 1)[-1], maxsplit=1)[0]
    text = CLOSING.sub("", BOLD.sub(r"\1", TAG.sub(r"#### \1\n", text)))
    return "\n".join(line.strip() for line in text.splitlines() if line.strip())


def _trim(text: str) -> str:
    """The text without marks of Markdown or LaTeX around it, and without a full stop."""
    return text.strip(MARKS).removesuffix(".").strip(MARKS)


def _lead(before: str) -> str:
    """The sentence that leads to a mark, on its line or the line above; "" if it has ended."""
    line = before.rstrip(MARKS + "#\\[(").rsplit("\n", 1)[-1]
    return SENTENCE_END.split(line + " ")[-1].strip()


def _denies(text: str) -> bool:
    """Whether a text holds a word such as not, or, if, half."""
    return not DENY.isdisjoint(re.findall("[a-z]+", re.sub("n['’]t", " not", text.lower())))


def _boxed(text: str, question: str) -> str | None:
    r"""The answer of the last \boxed{}, with a unit that follows it; None if it does not count."""
    start, inside, close = _last_box(text)
    lead, answer, after = _lead(text[:start]), _trim(text[inside:close]), text[close + 1 :]
    if (
        max(len(lead), len(after)) > LONGEST
        or _denies(lead)
        or BOX.search(lead)
        or OTHER_NUMBER.search(lead)
        or not BEFORE_BOX.search(plain_text(lead))
        or MULTIPLE.search(plain_text(lead))
    ):
        return None
    unit = _trim(plain_text(after))
    if not unit:
        return answer or None
    answer = f"{answer} {unit}"
    is_unit = re.match("[A-Za-z%°]", unit) and parse_number(answer, question) is not None
    return answer if is_unit else None


TERM = r"[( ]{0,3}-?[0-9][0-9,.]*+[) ]{0,3}"
STEPS = re.compile(rf"((?:[A-Za-z] ?= ?)?)(?:{TERM}(?:[-+*/×]{TERM})+= ?)*+")


def _unmarked(text: str, question: str) -> str | None:
    """The number of a response that is a number, or an equation that ends in it."""
    text = plain_text(_trim(text)) if len(text) <= LONGEST else ""
    text = STEPS.sub(r"\1", text, count=1)
    return text if parse_number(text, question) is not None else None


def extract_answer(text: str, question: str = "") -> str | None:
    r"""The answer that a text gives, as `answer_reward` describes it; None if there is none.

        "... #### 42\n"  ->  "42"      "The answer is 42 cents."  ->  "42 cents"
        "so \boxed{42}"  ->  "42"      "That makes 42 in all."    ->  None

    Args:
        question: says which units count after a box, and in a response without a mark.
    """
    text = _response(text)
    if "<think>" in text:  # it never ended
        return None
    *_, last = None, *LINE.finditer(text)
    box = _last_box(text)
    if box[1] and (last is None or box[0] > last.start()):
        return _boxed(text, question)
    if last is None:
        return _unmarked(text, question)
    before = text[: last.start()]
    *_, open_end = re.split("[0-9]", _lead(before))  # the rest is a step of the solution
    *_, word = "", *before.rsplit(None, 1)  # "This is wrong.\n#### 42"
    line_above = plain_text(before[-LONGEST:].rstrip("\n").rsplit("\n", 1)[-1])
    if (
        _denies(open_end)
        or (before.endswith("\n") and _denies(word))
        or OTHER_NUMBER.search(line_above)
        or OPERATOR.search(line_above)
    ):
        return None
    return _trim(text[last.end() :]) or None


def same_answer(given: str | None, wanted: str, question: str = "") -> bool:
    r"""Whether two answers are equal: as exact numbers, or else as texts.

    "0.50" equals "1/2", and "$1,000" equals "1000". If neither is a number, the texts are compared,
    without \text{} and similar, and without regard to spaces beside marks: "(3, 4)" equals "(3,4)",
    \text{B}, (B) and B) equal "B". Upper and lower case are the same in texts of letters only:
    "Paris" equals "paris", but "2X" is not "2x".
    """
    if given is None:
        return False
    question = f"{question}\n{wanted}"  # x = 5 may be given where it is wanted
    said, right = read_number(given, question), read_number(wanted, question)
    if said and right:
        same_name = said[0] == right[0] or None in (said[0], right[0])  # not y = 5 for x = 5
        return said[1] == right[1] and same_name
    short = max(len(given), len(wanted)) <= 4 * LONGEST
    return given == wanted or (
        not said and not right and short and _as_text(given) == _as_text(wanted)
    )


def _as_text(text: str) -> str:
    """A text as it is compared."""
    text = " ".join(plain_text(text).split())
    text = text if "!" in text else re.sub(r" ?([-+*/=<>≠,()\[\]]) ?", r"\1", text)
    text = re.sub(r"^\(?([A-Za-z])\)$", r"\1", text)
    letters_only = re.fullmatch(r"[^\W\d_]+(?:[ '.,-]+[^\W\d_]+)*", text)
    return text.casefold() if letters_only else text


def answer_reward(
    prompts: list, completions: list, *, answer: list, **columns: object
) -> list[float]:
    r"""1.0 for each completion whose answer is right, 0.0 for the others.

        answer_reward(["6 * 7?"], ["The answer is 42."], answer=["6 * 7 = <<6*7=42>>42\n#### 42"])
        ->  [1.0]

    The answer is all that follows the last mark. It must be a number, with or without a unit, or
    the text of the right answer (see `parse_number` and `same_answer`):

    | accepted                                        | where                                      |
    |-------------------------------------------------|--------------------------------------------|
    | #### 42 apples      <answer>42</answer>         | at the start of a line or sentence         |
    | So the answer is $42.    Answer: 42    A: 42    | at the start of a line or sentence         |
    | ## Final answer      (and 42 on the next line)  | a line of its own                          |
    | \boxed{42} apples    6 * 7 = \boxed{42}         | so, or after "=", "is", "has" and some     |
    | 42 apples    x = 6 * 7 = 42                     | the whole response                         |

    | refused                                         | why                                        |
    |-------------------------------------------------|--------------------------------------------|
    | The answer is Tom has 42.    #### 42, as 6*7=42 | other words than a unit                    |
    | #### 42 or 43     The answer is 42. No, 43.     |                                            |
    | It is not \boxed{42}     Do not write\n#### 42  | not, or, if, half ... lead to the mark     |
    | x ~= \boxed{42}     \boxed{41} = \boxed{42}     | another sign than =, or two boxes          |
    | 2x = \boxed{42}    6 ×\n#### 42                  | only a part of the answer              |
    | - 42     4 200     ½     24!     42 (forty-two) | not a plain number                         |

    Ignored are the unit, Markdown, a full stop, "I hope it is correct." at the end, what stands
    before </think>, the next problem ("Question: ...", which base models write), earlier marks and
    sentences. The way to an answer is not judged: "1 + 1 = 3" answers 3.

    It follows TRL's contract for reward functions (see `rewards.function`).

    Args:
        prompts: the questions, as text or as conversations.
        completions: responses, as text or as conversations, whose last turn is read.
        answer: a column of the dataset: GSM8K's or MATH's whole solution, or the bare answer as
            text or number.

    Raises:
        ValueError: there are not as many prompts or answers as completions; an answer is empty or
            neither text nor a finite number; or a completion is neither text nor a conversation
            whose last turn has a text.
    """
    return reward_of_rows(prompts, completions, answer, extract_answer, same_answer)


def reward_of_rows(
    prompts: list,
    completions: list,
    answer: list,
    extract: Callable[[str, str], str | None],
    same: Callable[[str | None, str, str], bool],
) -> list[float]:
    """1.0 where what `extract` finds in a completion is the `same` as the answer, else 0.0."""
    for name, column in (("prompts", prompts), ("answer", answer)):
        count = len(column) if hasattr(column, "__len__") and not isinstance(column, str) else "no"
        if count != len(completions):
            raise ValueError(
                f"{name} holds {count} values for {len(completions)} completions; give one for "
                "each, in a list."
            )
    wanted = [_wanted(row, right) for row, right in enumerate(answer, start=1)]
    questions = [_question(prompt) for prompt in prompts]
    texts = [_last_text(row, completion) for row, completion in enumerate(completions, start=1)]
    return [
        float(same(extract(text, question), right, question))
        for text, question, right in zip(texts, questions, wanted, strict=True)
    ]


def _question(prompt: Any) -> str:
    """The text of a prompt, or of all turns of a conversation."""
    if isinstance(prompt, str):
        return prompt
    turns = prompt if isinstance(prompt, (list, tuple)) else []
    contents = [turn.get("content") for turn in turns if isinstance(turn, dict)]
    return "\n".join(content for content in contents if isinstance(content, str))


def _last_text(row: int, completion: Any) -> str:
    try:
        text = completion if isinstance(completion, str) else completion[-1]["content"]
    except (TypeError, LookupError):
        text = None
    if not isinstance(text, str):
        raise ValueError(
            f"Completion {row} is {repr(completion)[:80]}; it must be a text, or a conversation "
            "whose last turn has a text as its content."
        )
    return text


def _wanted(row: int, answer: Any) -> str:
    """The right answer as text."""
    plain = answer.item() if hasattr(answer, "item") else answer  # of numpy or torch
    text = str(plain).strip()
    _, inside, close = _last_box(text)
    text = text.rsplit("####", 1)[1] if "####" in text else text[inside:close] or text
    text = _trim(text)
    good = isinstance(plain, str) or (isinstance(plain, (int, float)) and math.isfinite(plain))
    if not text or not good:
        raise ValueError(
            f"Answer {row} is {repr(answer)[:60]}; it must hold the right answer, as text or as a "
            "finite number."
        )
    return text
