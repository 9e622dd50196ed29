"""Turns of a conversation, {"role", "content"}: checked, before a chat template writes them."""

from collections.abc import Iterator, Mapping
from typing import Any

from minirlhf.runtime import check_text
from minirlhf.tasks.lines import BadRow

TEXTS = ("prompt", "completion", "chosen", "rejected")
ASSISTANT = "assistant"
LEARNED = (None, True, 1)  # values of the keys WEIGHTS of a turn that is learned
NOT_LEARNED = (False, 0)
WEIGHTS = ("weight", "train", "training", "loss", "loss_weight")
UNCLEAR = ("mask", "loss_mask", "train_detail")  # keys that may say that a turn is not learned
CALLS = ("tool_calls", "function_call")  # the second is OpenAI's older form
THOUGHTS = ("reasoning_content", "thinking", "reasoning")  # keys of a turn, besides its content
KNOWN = ("role", "content", "name", "tool_call_id", *WEIGHTS, *CALLS, *THOUGHTS)
SPANS = "_spans"  # end of the name of the column with the assistant's turns
Turns = list[dict[str, Any]]

# kinds of bad rows, as the report names them
NO_TALK = "no conversation"
NO_TEXT = "a turn whose role or content is missing or no text"
ENDS = "a conversation that does not end with the assistant's turn"
TWO_ANSWERS = "two turns of the assistant in a row"
NO_WEIGHT = "a weight that is not 1 or 0, or is 0 in the last turn"


def is_conversation(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(turn, dict) and {"role", "content"} <= turn.keys() for turn in value
    )


def are_turns(value: object) -> bool:
    """Whether a value looks like turns: a list of them, or one, with TRL's keys or ShareGPT's."""
    first = value[0] if isinstance(value, list) and value else value
    return isinstance(first, dict) and any(
        keys <= first.keys() for keys in ({"role", "content"}, {"from", "value"})
    )


def says_nothing(turn: Mapping[str, Any]) -> bool:
    """Whether a turn is empty: it has no text, calls no tool and holds no thought."""
    return not (turn["content"].strip() or any(turn.get(key) for key in (*CALLS, *THOUGHTS)))


def check_turns(
    row: Mapping[str, Any], where: str, columns: Mapping[str, str] | None = None
) -> None:
    """Check that a list in a text column, and every value of `messages`, is a conversation.

    Args:
        where: start of an error message, for example "Row 3: ".
        columns: role -> its column in the file, as messages name it; by default the role.

    Raises:
        ValueError: it is not, it has no turn, a turn has no text, the turns are in an order that
            gives nothing to learn, or chosen and rejected are not of one kind.
    """
    row = {role: row[role] for role in ("messages", *TEXTS) if role in row}
    named = {role: (columns or {}).get(role, role) for role in (*row, "chosen", "rejected")}
    for role, value in row.items():
        name = named[role]
        if not isinstance(value, list) and role != "messages":
            check_text(value, f"{where}{name}")
            continue
        least = 2 if role == "messages" else 1
        if not is_conversation(value) or len(value) < least:
            raise BadRow(
                NO_TALK,
                f"{where}{name} is {str(value)[:60]!r}; it must be a list of turns, {least} or "
                "more, each with role and content.",
            )
        for i, turn in enumerate(value, start=1):
            try:
                check_text(turn["role"], f"{where}the role of turn {i} in {name}")
                text_of_turn(turn, f"{where}the content of turn {i} in {name}")
            except ValueError as error:
                raise BadRow(NO_TEXT, str(error)) from error
    if {"chosen", "rejected"} <= row.keys():
        kinds = {isinstance(row[name], list) for name in ("chosen", "rejected")}
        if len(kinds) == 2:
            raise BadRow(
                "text beside a conversation",
                f"{where}one of {named['chosen']} and {named['rejected']} is text and the other a "
                "conversation; give both in the same form.",
            )
    for role, value in row.items():
        if isinstance(value, list):
            _check_order(value, f"{where}{named[role]}", answer=role != "prompt")


def text_of_turn(turn: dict[str, Any], name: str) -> str:
    """The text of a turn's content: of its parts, if it has parts {"type": "text", "text": ...}.

    A turn that only calls tools has no content; its text is empty.

    Raises:
        ValueError: the content is no text, or holds parts that are not text, such as images.
    """
    content = turn["content"]
    if content is None and any(turn.get(key) for key in CALLS):
        return ""
    if isinstance(content, list):
        for part in content:
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            if kind != "text":
                raise ValueError(f"{name} has a part of type {kind!r}; only text can be read.")
            check_text(part.get("text"), name)
        return "".join(part["text"] for part in content)
    check_text(content, name)
    return str(content)


def _check_order(turns: Turns, name: str, *, answer: bool) -> None:
    """Refuse two answers in a row, and an answer that ends in another's turn."""
    roles = [turn["role"] for turn in turns]
    if answer and ASSISTANT in roles and roles[-1] != ASSISTANT:
        raise BadRow(
            ENDS,
            f"{name} ends with a turn of role {roles[-1]!r}; it must end with the assistant's "
            "turn, which is what is learned. Leave the last turn out.",
        )
    for i, (one, two) in enumerate(zip(roles, roles[1:], strict=False), start=1):
        if one == two == ASSISTANT:
            raise BadRow(
                TWO_ANSWERS,
                f"{name}: turns {i} and {i + 1} are both the assistant's; join them to one turn.",
            )


def is_learned(turn: dict[str, Any], name: str) -> bool:
    """Whether a turn of the assistant is learned, by its keys `WEIGHTS` (0 or 1).

    Args:
        name: of the turn, to begin a message with.

    Raises:
        ValueError: a value is something else, or a key may mean one or the other.
    """
    for key in WEIGHTS:
        if turn.get(key) not in (*LEARNED, *NOT_LEARNED):
            raise BadRow(
                NO_WEIGHT,
                f"{name} has the {key} {turn[key]!r}; it must be 1 (learned) or 0 (only read).",
            )
    for key in UNCLEAR:
        value = turn.get(key)
        if value is not None and (isinstance(value, list) or value in (0, 1)):
            raise BadRow(
                NO_WEIGHT,
                f"{name} has the {key} {str(value)[:60]}, which may mean that it is not learned; "
                "say it with the key weight instead: 1 (learned) or 0 (only read).",
            )
    return all(turn.get(key) not in NOT_LEARNED for key in WEIGHTS)


def texts_in(value: Any) -> Iterator[str]:
    """All texts in a value of a turn, the keys of its dicts among them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in [*value, *value.values()] if isinstance(value, dict) else value:
            yield from texts_in(part)


def has_null_argument(turn: dict[str, Any]) -> bool:
    """Whether a call of a tool has an argument that is None, here or in a value of it."""
    return any(
        isinstance(value, dict)
        and any(
            isinstance(given := each.get("arguments"), dict) and None in given.values()
            for each in (value, value.get("function"))
            if isinstance(each, dict)
        )
        for key in CALLS
        for value in (turn[key] if isinstance(turn.get(key), list) else [turn.get(key)])
    )


def without_none(value: Any) -> Any:
    """The same value without the keys that hold None: a table gives each turn every key.

    The arguments of a call stay as they are: there None is a value.
    """
    if isinstance(value, dict):
        return {
            key: v if key == "arguments" else without_none(v)
            for key, v in value.items()
            if v is not None
        }
    return [without_none(v) for v in value] if isinstance(value, list) else value
