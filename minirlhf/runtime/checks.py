"""Checks of what is given: one value, one text. And an error about one prompt of a run."""

LONGEST_TEXT = 1_000_000  # characters of one text; to read more as tokens takes seconds


class PromptError(ValueError):
    """What went wrong with the response to one prompt, in the middle of a run.

    Attributes:
        prompt: the position of the prompt among those that the loop was given, from 0; None where
            it is not known. Whoever has the file can say which row that is.
    """

    def __init__(self, message: str, prompt: int | None = None) -> None:
        super().__init__(message)
        self.prompt = prompt


def check(field: str, value: object, ok: bool, allowed: str) -> None:
    """Check a condition on one value.

    Args:
        field: name of the value in the message.
        value: what was given.
        ok: the condition.
        allowed: what is allowed, to complete "it must be ...".

    Raises:
        ValueError: not `ok`. The message names the field, the value and what is allowed.
    """
    if not ok:
        raise ValueError(f"{field} is {value!r}; it must be {allowed}.")


def check_text(value: object, name: str) -> None:
    """Check that `value` is text of at most LONGEST_TEXT characters, which UTF-8 can encode.

    Args:
        name: start of the message, for example "The prompt".

    Raises:
        ValueError: it is not a string, it is longer, or it holds half of a surrogate pair.
    """
    if not isinstance(value, str):
        raise ValueError(
            f"{name} is {str(value)[:60]!r}, of type {type(value).__name__}; it must be text."
        )
    if len(value) > LONGEST_TEXT:
        raise ValueError(
            f"{name} is a text of {len(value):,} characters; it must be at most {LONGEST_TEXT:,}: "
            "shorten it, or divide it into several rows."
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} holds half a character (a lone surrogate) at position {error.start}; "
            "repair the text's encoding."
        ) from error
