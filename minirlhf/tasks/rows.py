"""Rows of any known layout as standard rows: each is checked, and messages name its number."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from minirlhf.runtime import check_text
from minirlhf.tasks.conversations import ASSISTANT, SPANS, TEXTS, Template, check_turns, render
from minirlhf.tasks.files import BadRow, Row
from minirlhf.tasks.implicit import prompt_length
from minirlhf.tasks.layouts import SYSTEM, Layout

SPEAKERS = {  # who speaks, in ShareGPT's words
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
}
LABELS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}

ORIGIN = "row_of_file"  # a column that says which row of a file a row comes from, for messages

# kinds of bad rows, as the report names them
EQUAL = "two equal responses"
NO_TEXT = "a value that is missing or no text"
NO_TALK = "no conversation"


def counted(rows: int) -> str:
    """ "1 row" or "2 rows"."""
    return f"{rows} row{'s' * (rows != 1)}"


def listed(numbers: Sequence[object]) -> str:
    """How many rows, and the first of them: "5 rows (3, 8, 9, ...)"."""
    shown = ", ".join(map(str, numbers[:3]))
    return f"{counted(len(numbers))} ({shown}{', ...' * (len(numbers) > 3)})"


@dataclass(frozen=True)
class Source:
    """Where rows come from, as messages name it.

    Attributes:
        name: of the file or of the dataset on the hub. Its rows are counted from 1. Empty for a
            Dataset in Python, whose rows are counted from 0.
    """

    name: str = ""

    def row(self, number: int) -> str:
        """A row. `number` counts from 0."""
        return f"{self.name}, row {number + 1}" if self.name else f"Row {number}"

    def cell(self, number: int, column: str) -> str:
        """The value in a column of a row, as the subject of a sentence."""
        if self.name:
            return f"{self.row(number)}, column {column}: the value"
        return f"{self.row(number)}: {column}"

    def listed(self, numbers: Sequence[int]) -> str:
        """How many rows, and the first of them. `numbers` count from 0."""
        return listed([number + bool(self.name) for number in numbers])

    def origin(self, number: int) -> dict[str, str]:
        """The value of the column `ORIGIN` in a row of a file. `number` counts from 0."""
        return {"source": self.name, "row": str(number + 1)}


@dataclass
class Report:
    """What became of the rows of a dataset.

    Attributes:
        source: where they come from.
        rows: how many were read.
        kept: how many are used.
        left_out: kind of fault -> the numbers of the rows left out, from 0.
        noted: what is unusual about rows that are used -> their numbers.
    """

    source: Source
    rows: int
    kept: int
    left_out: dict[str, list[int]] = field(default_factory=dict)
    noted: dict[str, list[int]] = field(default_factory=dict)

    def lines(self, layout: Layout, *, limited: bool = False, others: str = "") -> str:
        """The columns, and the rows that are used and left out, in a line each.

        Args:
            limited: more rows may follow, which were not asked for (option --rows).
            others: said before the columns that are not read.
        """
        count = counted(self.rows)
        if limited:
            count = f"the first {'row' if self.rows == 1 else count} (--rows)"
        count = count if self.kept == self.rows else f"{self.kept} of {count}"
        others = others or ("Ignored" if self.source.name else "Other columns")
        lines = [f"{self.source.name or 'Dataset'}: {count}; {layout.described(others)}"]
        for start, kinds in (("Left out: ", self.left_out), ("Used as well: ", self.noted)):
            if kinds:
                parts = [f"{kind}: {self.source.listed(n)}" for kind, n in kinds.items()]
                lines.append(start + "; ".join(parts) + ".")
        return "\n".join(lines)


def standard_rows(
    rows: Sequence[Row | BadRow],
    layout: Layout,
    tokenizer: PreTrainedTokenizerBase | None,
    source: Source,
    *,
    skip_invalid: bool = False,
    drop_equal: bool = False,
    chat: bool = False,
) -> tuple[dict[int, Row], Report]:
    """Rows of text with the columns that `formats` describes.

    Args:
        rows: as they were read. A BadRow stands for a row that could not be read.
        layout: which columns mean what.
        tokenizer: needed for conversations.
        source: names the rows in messages.
        skip_invalid: leave out rows that cannot be used, instead of refusing them.
        drop_equal: leave out pairs of equal responses.
        chat: write rows of text with the chat template too.

    Returns:
        (the number of each row that is used -> the row, the report).

    Raises:
        ValueError: a row cannot be used, or none is left. The message is about the first such row
            and says how many there are.
    """
    found: dict[int, Row] = {}
    faults: dict[int, BadRow] = {}
    as_label: list[int] = []
    form = ""  # of the first good row
    written = getattr(tokenizer, "chat_template", None)
    template = Template(tokenizer) if tokenizer is not None and written else None
    for number, row in enumerate(rows):
        try:
            if isinstance(row, BadRow):
                raise row
            values = _values(row, layout, source, number, chat=chat)
            texts = [value for name, value in values.items() if name in TEXTS]
            talks = "messages" in values or any(isinstance(value, list) for value in texts)
            mine = "a conversation" if talks else "text"
            if form not in ("", mine) and not chat:
                raise BadRow(
                    "text among conversations, or the other way round",
                    f"{source.row(number)} is {mine}, and the rows before it are {form}; give all "
                    "rows in the same form.",
                )
            found[number] = _texts(values, template, source.row(number), chat=chat)
            form = mine
            if "label" in values and not isinstance(row[layout.columns["label"][0]], bool):
                as_label.append(number)
        except RecursionError:
            faults[number] = BadRow(
                NO_TALK, f"{source.row(number)} holds lists that are nested too deeply."
            )
        except BadRow as error:
            faults[number] = error
    report = Report(source, len(rows), len(found), noted=_unusual(found))
    if as_label:
        report.noted["a label that is 1 or 0 or a word, read as true or false"] = as_label
    _refuse(faults, report, skip_invalid=skip_invalid, drop_equal=drop_equal)
    return found, report


def _refuse(
    faults: Mapping[int, BadRow], report: Report, *, skip_invalid: bool, drop_equal: bool
) -> None:
    """Count the bad rows in the report, or refuse them.

    Raises:
        ValueError: there are bad rows that may not be left out, or no others.
    """
    for number, fault in faults.items():
        report.left_out.setdefault(fault.kind, []).append(number)
    equal = set(report.left_out.get(EQUAL, []) if drop_equal else [])
    bad = [number for number in faults if number not in equal]
    if bad and not skip_invalid:
        more = f" {len(bad)} of {report.rows} rows cannot be used." if len(bad) > 1 else ""
        skip = "--skip-invalid" if report.source.name else "skip_invalid=True"
        raise ValueError(f"{faults[bad[0]]}{more} {skip} leaves such rows out.")
    if not report.kept:
        why = f": {faults[min(faults)]}" if faults else "."
        raise ValueError(f"{report.source.name or 'The dataset'} has no row that can be used{why}")


def _values(
    row: Mapping[str, Any], layout: Layout, source: Source, number: int, *, chat: bool
) -> Row:
    """The values of a row by what they mean: prompt, chosen and so on.

    Args:
        chat: a system prompt before a prompt of text is a turn of its own.

    Raises:
        BadRow: a value is missing, is neither text nor turns, or is no label.
    """
    values: Row = {}
    for role, columns in layout.columns.items():
        parts = []
        for column in columns:
            value = row.get(column)
            if column in layout.optional and (value in (None, "", []) or value != value):
                continue
            if column not in row:
                raise BadRow(
                    "a column is missing",
                    f"{source.row(number)} has no column {column}; its columns are "
                    f"{', '.join(map(str, row)) or 'none'}.",
                )
            place = source.cell(number, column)
            parts.append(_label(value, place) if role == "label" else _cell(value, place, role))
        if len(parts) > 1:
            system = columns[0] in SYSTEM and len(parts) == len(columns)
            parts = [_joined(parts, source.cell(number, columns[-1]), system=system, chat=chat)]
        values[role] = parts[0]
    for column in layout.spans:
        if row.get(column) is not None:
            text, place = values[column.removesuffix(SPANS)], source.cell(number, column)
            values[column] = _spans(row[column], text, place)
    if layout.only_prompts and isinstance(turns := values.get("messages"), list):
        answered = turns and isinstance(turns[-1], dict) and turns[-1].get("role") == ASSISTANT
        values = {"prompt": turns[:-1] if answered else turns}
    if layout.choice:
        column, better = layout.choice
        try:
            side = better(row.get(column))
        except ValueError as error:
            raise BadRow(
                "it is not said which response is better",
                f"{source.cell(number, column)} is {row.get(column)!r}; it must be {error}.",
            ) from None
        if side is None:
            raise BadRow(
                "neither response is better",
                f"{source.row(number)}: {column} is {row.get(column)!r}, so neither response is "
                "better and the row holds no preference.",
            )
        if side == 1:
            values |= {"chosen": values["rejected"], "rejected": values["chosen"]}
    return values


def _cell(value: Any, place: str, role: str) -> Any:
    """A value that is text or a list of turns. ShareGPT's turns are written as TRL's.

    Raises:
        BadRow: it is neither.
    """
    if isinstance(value, dict):
        value = value["messages"] if "messages" in value else [value]
    if isinstance(value, list):
        return [_turn(turn, place) for turn in value]
    if value is None and role != "messages":
        raise BadRow(
            NO_TEXT,
            f"{place} is 'None', of type NoneType (null, or an empty cell); it must be text.",
        )
    if role != "messages":
        try:
            check_text(value, place)
        except ValueError as error:
            raise BadRow(NO_TEXT, str(error)) from None
    return value


def _turn(turn: Any, place: str) -> Any:
    """A turn {"from", "value"} as {"role", "content"}; any other value as it is."""
    if not isinstance(turn, dict) or not {"from", "value"} <= turn.keys():
        return turn
    role = SPEAKERS.get(turn["from"]) if isinstance(turn["from"], str) else None
    if role is None:
        raise BadRow(
            NO_TALK,
            f"{place} has a turn from {str(turn['from'])[:60]!r}; it must be from one of "
            f"{', '.join(SPEAKERS)}.",
        )
    others = {key: part for key, part in turn.items() if key not in ("from", "value")}
    return {"role": role, "content": turn["value"]} | others


def _spans(value: Any, text: Any, place: str) -> list[list[int]]:
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
            "spans that do not fit their text",
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
        raise BadRow(NO_TEXT, f"{place} holds turns, which cannot be joined to text.")
    turns = parts[1]
    has_one = turns and isinstance(turns[0], dict) and turns[0].get("role") == "system"
    return turns if has_one else [{"role": "system", "content": parts[0]}, *turns]


def _label(value: Any, place: str) -> bool:
    """True for good and False for bad; 1 and 0, and the words, mean the same.

    Raises:
        BadRow: the value is something else.
    """
    label = LABELS.get(str(value).strip().lower()) if isinstance(value, str | int | float) else None
    if label is None:
        raise BadRow(
            "a label that is neither true nor false",
            f"{place} is {str(value)[:60]!r}; a label must be true or 1 (good), or false or 0 "
            "(bad). If the column means something else: --columns label= (nothing).",
        )
    return label


def _texts(values: Row, template: Template | None, where: str, *, chat: bool) -> Row:
    """The row as text with a prompt of its own.

    Args:
        template: writes conversations.
        where: the row, as messages name it.

    Raises:
        BadRow: the row is no conversation, has no prompt, or its responses are equal.
        ValueError: there is no chat template.
    """
    try:
        check_turns(values, f"{where}: ")
    except ValueError as error:
        raise BadRow(NO_TALK, str(error)) from error
    if "messages" in values:
        *prompt, answer = values["messages"]
        values = {"prompt": prompt, "completion": [answer]}
    if "chosen" in values and values["chosen"] == values.get("rejected"):
        kind = "text" if isinstance(values["chosen"], str) else "conversation"
        raise BadRow(EQUAL, f"{where}: chosen and rejected are the same {kind}; remove such rows.")
    if "chosen" in values and "prompt" not in values:
        values = _with_prompt(values["chosen"], values["rejected"], where)
    names = [name for name in TEXTS if name in values]
    if chat or any(isinstance(values[name], list) for name in names):
        if template is None:
            raise ValueError(
                "The rows are conversations; give a tokenizer that has a chat template."
            )
        try:
            values = values | render(values, names, template, f"{where}: ")
        except ValueError as error:
            raise BadRow(NO_TALK, str(error)) from error
        if "chosen" in values and values["chosen"] == values.get("rejected"):
            raise BadRow(
                EQUAL,
                f"{where}: chosen and rejected are the same text in the tokenizer's chat template; "
                "remove such rows.",
            )
    if not values["prompt"].strip():
        raise BadRow(
            "an empty prompt",
            f"{where}: the prompt is empty; give at least one token before the response.",
        )
    return values


def _with_prompt(chosen: Any, rejected: Any, where: str) -> Row:
    """A pair without a prompt: the prompt is what both share at their start.

    Raises:
        BadRow: they share nothing there, or one has nothing after it.
    """
    if isinstance(chosen, str):
        shared = prompt_length(chosen, rejected)
        kind = "no whole word"
    else:
        both = zip(chosen, rejected, strict=False)
        shared = next(
            (i for i, (a, b) in enumerate(both) if a != b), min(map(len, (chosen, rejected)))
        )
        kind = "no turn"
        if shared == min(len(chosen), len(rejected)):
            raise BadRow(
                "no answer after the common beginning",
                f"{where}: one of chosen and rejected is the beginning of the other, so it has no "
                "answer of its own.",
            )
    if not shared:
        raise BadRow(
            "no common beginning, so no prompt",
            f"{where}: chosen and rejected share {kind} at their start, so the prompt is empty; "
            "give a column prompt.",
        )
    return {"prompt": chosen[:shared], "chosen": chosen[shared:], "rejected": rejected[shared:]}


def _unusual(rows: Mapping[int, Row]) -> dict[str, list[int]]:
    """What is unusual about rows that can be used -> the numbers of such rows."""
    noted: dict[str, list[int]] = {}
    seen: set[tuple] = set()
    for number, row in rows.items():
        key = tuple(row.get(name) for name in (*TEXTS, "label"))
        kinds = {
            "an empty response": any(not row[name].strip() for name in TEXTS[1:] if name in row),
            "the same as an earlier row": key in seen,
            "the opposite of an earlier row": "rejected" in row
            and (key[0], key[1], key[3], key[2], key[4]) in seen,
        }
        for kind in (kind for kind, holds in kinds.items() if holds):
            noted.setdefault(kind, []).append(number)
        seen.add(key)
    return noted
