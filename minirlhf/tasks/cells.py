"""The values of a row by what they mean: each is text, turns of a conversation, or a label."""

from collections.abc import Mapping
from typing import Any

from minirlhf.runtime import check_text
from minirlhf.runtime.checks import LONGEST_TEXT
from minirlhf.tasks.json_files import parsed
from minirlhf.tasks.layouts import SYSTEM, Layout
from minirlhf.tasks.lines import BadRow, Row, Unreadable, listed
from minirlhf.tasks.reports import Source
from minirlhf.tasks.turns import ASSISTANT, SPANS

SPEAKERS = {  # who speaks, in ShareGPT's words
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_call": "assistant",  # LLaMA-Factory's turn that calls tools, as JSON
}
LABELS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


def values_of(
    row: Mapping[str, Any], layout: Layout, source: Source, number: int, *, chat: bool
) -> Row:
    """The values of a row by what they mean: prompt, chosen and so on.

    Args:
        chat: a system prompt before a prompt of text is a turn of its own.

    Raises:
        BadRow: a value is missing or cannot be read, is neither text nor turns, or is no label.
    """
    for column in layout.used:
        if isinstance(broken := row.get(column), Unreadable):
            raise BadRow(
                f"a value of {column} that cannot be read",
                f"{source.cell(number, column)} cannot be read: {broken.why}.",
            )
    values: Row = {}
    for role, columns in layout.columns.items():
        parts = []
        for column in columns:
            value = row.get(column)
            if column in layout.optional and (value in (None, "", []) or value != value):
                continue
            if column not in row:
                raise BadRow(
                    f"no column {column}",
                    f"{source.row(number)} has no column {column}; its columns are "
                    f"{listed(row) or 'none'}.",
                )
            place = source.cell(number, column)
            parts.append(READ.get(role, _text_or_turns)(value, place, column))
        if not parts:  # of tools
            continue
        if len(parts) > 1:
            system = columns[0] in SYSTEM and len(parts) == len(columns)
            parts = [_joined(parts, source.cell(number, columns[-1]), system=system, chat=chat)]
        values[role] = parts[0]
    prompt = values.get("prompt")
    if layout.ends_line and not chat and isinstance(prompt, str) and not prompt[-1:].isspace():
        values["prompt"] = prompt + "\n" * bool(prompt)
    for column in layout.spans:
        if row.get(column) is not None:
            text, place = values[column.removesuffix(SPANS)], source.cell(number, column)
            values[column] = _spans(row[column], text, place, column)
    if layout.only_prompts and isinstance(turns := values.get("messages"), list):
        answered = turns and isinstance(turns[-1], dict) and turns[-1].get("role") == ASSISTANT
        tools = {"tools": values["tools"]} if "tools" in values else {}
        values = {"prompt": turns[:-1] if answered else turns} | tools
    if layout.choice:
        column, better = layout.choice
        try:
            side = better(row.get(column))
        except ValueError as error:
            raise BadRow(
                f"a value of {column} that does not say which response is better",
                f"{source.cell(number, column)} is {row.get(column)!r}; it must be {error}.",
            ) from None
        if side is None:
            raise BadRow(
                f"neither response is better by {column}",
                f"{source.row(number)}: {column} is {row.get(column)!r}, so neither response is "
                "better and the row holds no preference.",
            )
        if side == 1:
            values |= {"chosen": values["rejected"], "rejected": values["chosen"]}
    return values


def _text_or_turns(value: Any, place: str, column: str) -> Any:
    """A value that is text or a list of turns.

    Raises:
        BadRow: it is neither.
    """
    if isinstance(value, dict | list):
        return _turns(value, place, column)
    long = isinstance(value, str) and len(value) > LONGEST_TEXT
    kind = f"a value of {column} that is {'too long' if long else 'missing or no text'}"
    if value is None:
        raise BadRow(
            kind, f"{place} is 'None', of type NoneType (null, or no cell); it must be text."
        )
    try:
        check_text(value, place)
    except ValueError as error:
        raise BadRow(kind, str(error)) from None
    return value


def _turns(value: Any, place: str, column: str) -> Any:
    """A list of turns. ShareGPT's are written as TRL's. What is no list stays as it is."""
    if isinstance(value, dict):
        value = value["messages"] if "messages" in value else [value]
    return [_turn(turn, place, column) for turn in value] if isinstance(value, list) else value


def _turn(turn: Any, place: str, column: str) -> Any:
    """A turn {"from", "value"} as {"role", "content"}; any other value as it is."""
    if not isinstance(turn, dict) or not {"from", "value"} <= turn.keys():
        return turn
    role = SPEAKERS.get(turn["from"]) if isinstance(turn["from"], str) else None
    if role is None:
        raise BadRow(
            f"an unknown speaker {str(turn['from'])[:40]!r} in {column}",
            f"{place} has a turn from {str(turn['from'])[:60]!r}; it must be from one of "
            f"{', '.join(SPEAKERS)}.",
        )
    others = {key: part for key, part in turn.items() if key not in ("from", "value")}
    if turn["from"] == "function_call":
        others = {"tool_calls": _calls(turn["value"], place, column)} | others
        return {"role": role, "content": ""} | others
    return {"role": role, "content": turn["value"]} | others


def _calls(value: Any, place: str, column: str) -> list[dict[str, Any]]:
    """The calls of tools in a turn of LLaMA-Factory, {"name", "arguments"} in JSON, as templates
    read them.

    Raises:
        BadRow: it is something else.
    """
    calls = _from_json(value)
    calls = calls if isinstance(calls, list) else [calls]
    if not calls or not all(
        isinstance(call, dict) and isinstance(call.get("name"), str) and "arguments" in call
        for call in calls
    ):
        raise BadRow(
            f"a call of a tool in {column} that cannot be read",
            f"{place} has a turn from 'function_call' with {str(value)[:60]!r}; it must be JSON: "
            "an object with name and arguments, or a list of them.",
        )
    return [{"type": "function", "function": call} for call in calls]


def _tools(value: Any, place: str, column: str) -> list[dict[str, Any]]:
    """The tools of a row, as chat templates read them: a list of objects, or its JSON.

    Raises:
        BadRow: it is something else.
    """
    tools = _from_json(value)
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise BadRow(
            f"a value of {column} that is no list of tools",
            f"{place} is {str(value)[:60]!r}; it must be a list of objects that describe tools, or "
            "its JSON. If the column means something else, rename it.",
        )
    return [
        tool if "function" in tool else {"type": "function", "function": tool} for tool in tools
    ]


def _from_json(value: Any) -> Any:
    """The value of a JSON text; None where it is no JSON. What is no text stays as it is."""
    try:
        return parsed(value) if isinstance(value, str) else value
    except ValueError:
        return None


def _spans(value: Any, text: Any, place: str, column: str) -> list[list[int]]:
    """The [start, end) characters of the assistant's turns in a text; the last ends it.

    Raises:
        BadRow: they are something else.
    """
    pairs = isinstance(value, list) and all(
        isinstance(span, list) and len(span) == 2 and all(type(i) is int for i in span)
        for span in value
    )
    places = [i for span in value for i in span] if pairs else []
    fits = isinstance(text, str) and places[-1:] == [len(text)] and places[0] >= 0
    if not fits or places != sorted(places):
        raise BadRow(
            f"a value of {column} that does not fit its text",
            f"{place} is {str(value)[:60]!r}; it must be a list of [start, end) characters, one "
            "after the other, whose last is the end of the text. Or leave the column out.",
        )
    return value


def _joined(parts: list[Any], place: str, *, system: bool, chat: bool) -> Any:
    """Several texts as one, with an empty line between them.

    Args:
        system: the first is the text of the system. Before turns it becomes a turn, unless the
            turns have one.
        chat: it becomes a turn before a text, too.

    Raises:
        BadRow: turns would be joined to another text.
    """
    if all(isinstance(part, str) for part in parts):
        if system and chat:
            asked = {"role": "user", "content": "\n\n".join(parts[1:])}
            return [{"role": "system", "content": parts[0]}, asked]
        return "\n\n".join(parts)
    if not (system and len(parts) == 2 and isinstance(parts[0], str)):
        kind = "turns that cannot be joined to text"
        raise BadRow(kind, f"{place} holds turns, which cannot be joined to text.")
    turns = parts[1]
    has_one = turns and isinstance(turns[0], dict) and turns[0].get("role") == "system"
    return turns if has_one else [{"role": "system", "content": parts[0]}, *turns]


def _label(value: Any, place: str, column: str) -> bool:
    """True for good and False for bad; 1 and 0, and the words, mean the same.

    Raises:
        BadRow: the value is something else.
    """
    label = LABELS.get(str(value).strip().lower()) if isinstance(value, str | int | float) else None
    if label is None:
        raise BadRow(
            f"a value of {column} that is neither true nor false",
            f"{place} is {str(value)[:60]!r}; a label must be true or 1 (good), or false or 0 "
            "(bad). If the column means something else: --columns label= (nothing).",
        )
    return label


READ = {"label": _label, "messages": _turns, "tools": _tools}  # other roles: text or turns
