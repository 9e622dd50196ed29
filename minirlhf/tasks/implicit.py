"""Texts without columns of their own: a prompt that two texts share, and transcripts of turns."""

import re
import unicodedata
from os.path import commonprefix
from typing import Any

SPEAKERS = {"Human": "user", "Assistant": "assistant"}
SPEAKS = re.compile(r"(?:\A|\n\n)(Human|Assistant):")
TURN = "\n\nAssistant:"  # the end of a prompt in Anthropic's transcripts
# scripts that put no spaces between words, by the first word of their letters' names in Unicode;
# the first of them is Thai, from U+0E00
WITHOUT_SPACES = frozenset(
    "CJK HIRAGANA KATAKANA KATAKANA-HIRAGANA BOPOMOFO IDEOGRAPHIC FULLWIDTH HALFWIDTH "
    "THAI LAO KHMER MYANMAR TIBETAN JAVANESE BALINESE YI".split()
)
JOINER = "\u200d"  # joins emoji to one


def prompt_length(chosen: str, rejected: str) -> int:
    """How many characters of two texts are their prompt.

    In Anthropic's transcripts the prompt ends with the last `Assistant:` that both texts have;
    without one, what is shared is a part of what the human says, and no prompt.
    Otherwise it is what both share, up to the last line break or space. A line break belongs to
    the prompt and a space to the responses, as in the tokens of GPT-2. In scripts without spaces,
    such as Chinese, a prompt without either ends before the first character that differs.

    Returns:
        The length of the prompt. 0 if the texts share no whole word at their start.
    """
    shared = len(commonprefix([chosen, rejected]))
    turn = chosen.rfind(TURN, 0, shared)
    if turn >= 0:
        return turn + len(TURN)
    if is_transcript(chosen) and is_transcript(rejected):
        return 0
    for ends, letters in (
        (_ends_a_line_or_word, r"\s"),
        (_ends_without_space, "[\u0e00-\U0010ffff]"),
    ):
        beside = re.finditer(letters, chosen[: shared + 1])
        places = {place for found in beside for place in found.span() if 0 < place <= shared}
        for end in sorted(places, reverse=True):
            sides = (chosen[end : end + 1], rejected[end : end + 1])
            if ends(chosen[end - 1], sides) and not _inside_a_letter(chosen[end - 1], sides):
                if not chosen[:end].strip():
                    break
                if chosen[end:].strip() and rejected[end:].strip():
                    return end
    return 0


def _ends_a_line_or_word(before: str, after: tuple[str, str]) -> bool:
    """Whether a prompt can end between these characters: after a line break or before a space."""
    if before in "\n\r\u2028\u2029":
        return before + after[0] != "\r\n"
    return all(letter.isspace() and letter not in "\n\r\u2028\u2029" for letter in after)


def _ends_without_space(before: str, after: tuple[str, str]) -> bool:
    """Whether a prompt can end between these characters, as their script has no spaces."""
    return _has_no_spaces(before) or all(_has_no_spaces(letter) for letter in after)


def _has_no_spaces(letter: str) -> bool:
    return bool(letter) and unicodedata.name(letter, "").split(" ")[0] in WITHOUT_SPACES


def _inside_a_letter(before: str, after: tuple[str, str]) -> bool:
    """Whether what a reader sees as one letter would be cut: accents, vowel signs, emoji."""
    return before == JOINER or any(
        letter == JOINER
        or unicodedata.category(letter).startswith("M")
        or unicodedata.category(letter) == "Cs"
        or "\U0001f3fb" <= letter <= "\U0001f3ff"  # skin tones
        or letter in "\uff9e\uff9f\u0e33\u0eb3"  # halfwidth voicing marks; am of Thai and Lao
        for letter in after
        if letter
    )


def is_transcript(text: str) -> bool:
    """Whether a text is a transcript such as Anthropic's: turns of `Human:` and `Assistant:`."""
    return text.lstrip().startswith("Human:") and TURN in text


def has_further_turn(text: str) -> bool:
    """Whether a response of a transcript goes on with a turn of `Human:` or `Assistant:`."""
    return any(f"\n\n{speaker}:" in text for speaker in SPEAKERS)


def turns_of(text: Any, column: str) -> Any:
    """The turns of a transcript, as {"role", "content"}. Turns stay as they are.

    Args:
        text: a transcript; in a column of responses it may begin with the text of the assistant.

    Returns:
        The turns. A prompt that ends in `Assistant:` has no turn for it.
    """
    if not isinstance(text, str):
        return text
    if not SPEAKS.match(text.lstrip()):
        text = f"Assistant:{text}"
    _, *parts = SPEAKS.split(text.strip())
    turns = [
        {"role": SPEAKERS[speaker], "content": content.strip()}
        for speaker, content in zip(parts[::2], parts[1::2], strict=True)
    ]
    unsaid = column == "prompt" and turns[-1] == {"role": "assistant", "content": ""}
    return turns[:-1] if unsaid else turns
