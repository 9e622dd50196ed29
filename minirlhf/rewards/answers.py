r"""Check the numerical answer in a response, for problems such as GSM8K's.

    "6 * 7 = 42 apples.\n#### 42"  ->  "42"  ->  Fraction(42)  ->  1.0 if it is right, else 0.0

The answer is found in the text of any language model, parsed to a Fraction and compared exactly.

A policy finds every text that is paid although it is wrong, and no list of words that deny or
change a number is complete. So the rule is the other way round. A response must mark its answer,
and say nothing else after it (see `extract_answer`). Beside the number may stand only words that
are known: those of the short lists in `answer_words`, and words of the question (`parse_number`).
Everything else is not paid. This costs some right answers. Ask for one format in the prompt, and
the policy learns it. Only the final answer is judged, not the way to it: "1 + 1 = 3" answers 3.

Symbolic maths is not parsed here: 2x, \sqrt{2}, 3^2 and 5 × 10^3 are compared as texts. For such
answers use `rewards.symbolic_answer_reward`.

Source: Cobbe et al. 2021, Training Verifiers to Solve Math Word Problems ("#### 42" in the data);
\boxed{} is from Hendrycks et al. 2021 (MATH), <answer> from DeepSeek-AI 2025 (R1).
"""

import math
import re
from collections.abc import Callable
from typing import Any

from minirlhf.rewards.answer_numbers import LONGEST, parse_number, plain_text, read_number
from minirlhf.rewards.answer_words import DENY, THUS, VERB, words, words_of_question

MARKS = " \t\n*_`$"  # of Markdown and LaTeX, around an answer
CLOSING = ("", "i hope it is correct", "i hope this helps", "this is the final answer")
SENTENCE_END = re.compile(  # not the dot of "Rs. 500" or "max. $5", nor the mark of "x! = 6"
    r"(?<=[0-9]\.)\s++(?!=)|(?<=[.?])(?<!approx\.)(?<!\bca\.)(?<!\best\.)(?<!\bmax\.)(?<!\bmin\.)"
    r"(?<!\bvs\.)\s++(?![\d=])|(?<=[a-z]{3}!)\s++(?![\d=])|\n(?!=)"
)
REASON = re.compile(r",?\s(?:because|since)\s")
NEXT_PROBLEM = re.compile(
    r"\n\W{0,9}(?:question|q|problem|human|user)\b\W{0,3}\d{0,3}\W{0,3}:", re.I
)

# The markers of an answer, in the order in which they count.
TAG = re.compile("<answer>([^<]*)</answer>")  # read as ####
HASHES = re.compile("#{4,}")
BOX = re.compile(r"\\f?box(?:ed)?\s?\{")
PHRASE = re.compile(  # at the start of a sentence or a line, or after ", so"
    rf"(?:(?:^|(?<=[.!?] )|(?<=\n))(?:no, )?|(?<=, )(?={THUS}))\W{{0,9}}(?:{THUS},? )?"
    r"(?:(?:the|my|our) )?(?:(?:final|correct) )?(?:answer|ans)[\s*_]{0,9}"
    r"(?:(?:is|equals|w(?:ill|ould) be)\b|:|=)",
    re.IGNORECASE,
)
BEFORE_BOX = re.compile(
    rf"(?:^|(?<![<>!=:≈≠])=|\b(?:{VERB}|{THUS}|answer|get|have|obtain)[:,]?)[ *_]*$", re.I
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
    """A response without its thinking (R1's <think>), the next problem and empty lines."""
    text = NEXT_PROBLEM.split(text.rsplit("</think>", 1)[-1], maxsplit=1)[0]
    text = TAG.sub(r"#### \1\n", text)
    return "\n".join(line.strip() for line in text.splitlines() if line.strip())


def _sentences(text: str) -> list[str]:
    """The sentences; a reason (because, since) in the first is a sentence of its own."""
    first, *later = SENTENCE_END.split(text)
    return [*REASON.split(first, maxsplit=1), *later]


def _all_agree(pieces: list[str], answer: str, asked: frozenset[str]) -> bool:
    """Whether all that follows an answer says nothing, or the same number."""
    given = read_number(answer, asked)
    for piece in pieces:
        said = read_number(piece, asked)
        if piece.strip(MARKS + ".,;:\\()[]").lower() not in CLOSING and not (
            said and given and said.value == given.value
        ):
            return False
    return True


def _clause(before: str) -> str:
    """What leads to a marker: its own sentence, with the line before it if that goes on."""
    *others, own = SENTENCE_END.split(before)
    goes_on = others and not own.strip(MARKS + "\\[(") and not others[-1].endswith((".", "!", "?"))
    return f"{others[-1]} {own}" if goes_on else own


def _leaves_open(before: str) -> bool:
    """Whether the last word of a text denies, such as "not" or "or"."""
    *_, last = "", *before.rstrip(" \n:_`$*[(\\").rsplit(None, 1)
    return not DENY.isdisjoint(words(last))


def _marked(text: str, marker: re.Pattern, asked: frozenset[str]) -> str | None:
    """The answer after the last #### or phrase; "" if there is none, None if it does not count."""
    *_, (start, end) = (0, 0), *(found.span() for found in marker.finditer(text))
    answer, *later = _sentences(text[end:].lstrip(MARKS + ":"))
    answer = answer.strip(MARKS)
    answer = answer if answer.endswith("...") else answer.rstrip(MARKS + ".")
    if not end or not answer:
        return ""
    own_line = SENTENCE_END.split(text[:start])[-1]
    if marker is HASHES:
        counts = "=" not in answer and not own_line.strip(MARKS)
        counts = counts and not _leaves_open(text[:start])
    else:
        counts = DENY.isdisjoint(words(_clause(text[:start])))
    return answer if counts and _all_agree(later, answer, asked) else None


def _boxed(text: str, asked: frozenset[str]) -> str | None:
    r"""The content of the last \boxed{}; "" if there is none, None if it does not count."""
    start, inside, close = _last_box(text)
    answer = text[inside:close].strip(MARKS)
    if not answer:
        return ""
    after, *later = _sentences(text[close + 1 :])
    after = answer + after if read_number(answer, asked) else after  # its unit
    clause = _clause(text[:start])
    counts = (
        DENY.isdisjoint(words(clause))
        and not BOX.search(clause)
        and BEFORE_BOX.search(plain_text(clause[-LONGEST:]))
    )
    return answer if counts and _all_agree([after, *later], answer, asked) else None


def _unmarked(text: str, asked: frozenset[str]) -> str | None:
    """The number of a response that is a number, or equations in each line, and nothing else."""
    lines = SENTENCE_END.split(text.strip(" \n`"))
    numbers = [read_number(line.replace("\n", " "), asked) for line in lines]
    whole = all(n and not n.verb and (n.equation or len(lines) == 1) for n in numbers)
    return numbers[-1].written if whole else None  # type: ignore[union-attr]  # none is None


def extract_answer(text: str, question: str = "") -> str | None:
    r"""The answer that a text gives, as it is written there; None if there is none.

        "... #### 42\n"  ->  "42"      "The answer is 42 cents, since 6 * 7 = 42"  ->  "42 cents"
        "so \boxed{42}"  ->  "42"      "That makes 40 + 2 = 42 in all."            ->  None

    What stands before </think> is left out. The answer is the first of these that is not empty:
    - what follows the last #### at the start of a sentence or line, up to the end of it.
      It is a number with its unit, or a text, but no equation. <answer>42</answer> is read as
      #### 42;
    - the content of the last \boxed{} or \fbox{};
    - what follows the last "the answer is", "Answer:" or similar at the start of a sentence or line
      or after ", so", up to the end of the sentence or line;
    - the whole response, if it is a number with its unit ("so 42 cents", "Total: 42"), or if each
      of its lines is an equation ("x = 40 + 2 = 42").

    An unmarked number in a sentence is not enough. "Tom has 12 marbles." answers another question
    than "How many has Janet?", and no rule about words can tell.

    There is no answer (None) if more follows it than a unit, a full stop, marks of Markdown or
    LaTeX, a reason (because, since) or a sentence that `parse_number` reads as the same number, and
    a closing sentence such as "I hope it is correct". The next problem ("Question: ..."), which
    base models write, is left out with all that follows it. "The answer is 42. No, 43" has no
    answer, "The answer is 41. No, the answer is 42" has.

    There is none either if the sentence before a box or phrase holds a word that denies or changes
    the answer (not, if, or, twice), or if the text before #### ends in such a word. Before a box it
    must be empty or end with "=", "is", "has", "so" or similar, and hold no other box. A Markdown
    heading with four # is mistaken for the first marker.

    Args:
        question: the words of it may stand beside a number, as `parse_number` says.
    """
    asked = words_of_question(question)
    text = _response(text)
    answer = _marked(text, HASHES, asked)
    answer = _boxed(text, asked) if answer == "" else answer
    answer = _marked(text, PHRASE, asked) if answer == "" else answer
    if answer == "":
        return _unmarked(text, asked)
    return answer


def boxed_answer(text: str, question: str = "") -> str | None:
    r"""The content of the last \boxed{} if it is the answer, by the rules of `extract_answer`."""
    return _boxed(_response(text), words_of_question(question)) or None


def same_answer(given: str | None, wanted: str, question: str = "") -> bool:
    r"""Whether two answers are equal: as exact numbers, or else as texts.

    "0.50" equals "1/2", and "$1,000" equals "1000". If neither is a number, the texts are compared,
    without \text{} and similar, and without regard to spaces beside marks: "(3, 4)" equals "(3,4)",
    \text{B} and (B) equal "B". Upper and lower case are the same in texts of letters only: "Paris"
    equals "paris", but "2X" is not "2x".
    """
    if given is None:
        return False
    numbers = parse_number(given, question), parse_number(wanted, question)
    if numbers != (None, None):
        return numbers[0] == numbers[1] and not _other_name(given, wanted)
    return given == wanted or (
        max(len(given), len(wanted)) <= 4 * LONGEST and _as_text(given) == _as_text(wanted)
    )


def _other_name(given: str, wanted: str) -> bool:
    """Whether both are equations with a name on the left, and the names differ: y = 5 and x = 5."""
    left = [text.partition("=")[0].strip(MARKS) for text in (given, wanted) if "=" in text]
    return len(left) == 2 and left[0] != left[1] and left[1].isalpha()


def _as_text(text: str) -> str:
    """A text as it is compared."""
    text = " ".join(plain_text(text).split())
    text = text if "!" in text else re.sub(r" ?([-+*/=,()\[\]]) ?", r"\1", text)
    text = text[1:-1] if re.fullmatch(r"\([A-Za-z]\)", text) else text
    letters_only = re.fullmatch(r"[^\W\d_]+(?:[ '.,-]+[^\W\d_]+)*", text)
    return text.casefold() if letters_only else text


def answer_reward(
    prompts: list, completions: list, *, answer: list, **columns: object
) -> list[float]:
    r"""1.0 for each completion whose answer is right, 0.0 for the others.

        answer_reward(["6 * 7?"], ["The answer is 42."], answer=["6 * 7 = <<6*7=42>>42\n#### 42"])
        ->  [1.0]

    It follows TRL's contract for reward functions (see `rewards.function`).

    Args:
        prompts: the questions, as text or as conversations; their words may stand beside a number.
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
    text = text.strip(MARKS)
    good = isinstance(plain, str) or (isinstance(plain, (int, float)) and math.isfinite(plain))
    if not text or not good:
        raise ValueError(
            f"Answer {row} is {repr(answer)[:60]}; it must hold the right answer, as text or as a "
            "finite number."
        )
    return text
