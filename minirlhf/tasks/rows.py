"""Rows of any known layout as standard rows: each is checked, and messages name its number."""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from minirlhf.tasks.cells import values_of
from minirlhf.tasks.conversations import EARLIER, EMPTY, Template, render
from minirlhf.tasks.implicit import has_further_turn, is_transcript, prompt_length, turns_of
from minirlhf.tasks.layouts import TOOLS, Layout, is_number
from minirlhf.tasks.lines import BadRow, Row
from minirlhf.tasks.reports import Report, Source
from minirlhf.tasks.turns import (
    ASSISTANT,
    NO_TALK,
    SPANS,
    TEXTS,
    Turns,
    are_turns,
    check_turns,
)

# kinds of bad rows, as the report names them
EQUAL = "two equal responses"

# how a tokenizer without a chat template gets one; the test of this sentence runs its two lines
GET_TEMPLATE = (
    "Give a --model whose tokenizer has one, such as smollm2-135m (first: minirlhf data --model "
    "smollm2-135m). Or add one to your model's folder, in two lines of Python after `_, tokenizer "
    "= models.load_policy(FOLDER)`: tokenizer.chat_template = "
    '"{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }} {% endfor %}'
    '{% if add_generation_prompt %}assistant: {% endif %}"; tokenizer.save_pretrained(FOLDER).'
)

# what is unusual about rows that are used
AS_LABEL = "a label that is 1 or 0 or a word, read as true or false"
REPEATED = "a response that begins with its whole prompt, which is left there and learned"
FURTHER = (
    "a response with a further turn of Human: or Assistant:, which is learned as text (--chat "
    "reads transcripts as turns)"
)
GREETING = "a turn of the assistant before the user's first, which is read and not learned"
LAST_ONLY = (
    "only the last answer is learned, as the chat template writes earlier ones in another way"
)


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
    noted: dict[str, list[int]] = {}
    form = ""  # of the first good row
    written = getattr(tokenizer, "chat_template", None)
    template = Template(tokenizer) if tokenizer is not None and written else None
    read: dict[int, Row] = {}
    worded: list[int] = []  # rows whose label is no bool
    asked: list[int] = []  # rows whose prompt of text becomes the user's turn
    below: list[int] = []  # rows whose scores prefer the rejected response
    for number, row in enumerate(rows):
        try:
            if isinstance(row, BadRow):
                raise row
            read[number] = values_of(row, layout, source, number, chat=chat)
            if "label" in read[number] and not isinstance(row[layout.columns["label"][0]], bool):
                worded.append(number)
            if template is not None and not chat and _is_asked(row, read[number], layout):
                read[number]["prompt"] = [{"role": "user", "content": read[number]["prompt"]}]
                asked.append(number)
            if layout.scores and _is_below(*(row.get(column) for column in layout.scores)):
                below.append(number)
        except RecursionError:
            faults[number] = _nested(number, source)
        except BadRow as error:
            faults[number] = error
    repeats = [number for number, values in read.items() if _repeats_prompt(values)]
    for number, values in read.items():
        try:
            if len(repeats) == len(read):
                values = _without_prompt(values)
            texts = [value for name, value in values.items() if name in TEXTS]
            talks = "messages" in values or any(isinstance(value, list) for value in texts)
            mine = "a conversation" if talks else "text"
            if form not in ("", mine) and not chat:
                raise BadRow(
                    "text among conversations, or the other way round",
                    f"{source.row(number)} is {mine}, and the rows before it are {form}; give all "
                    "rows in the same form.",
                )
            found[number], kinds = _texts(
                values, template, source.row(number), layout.named, chat=chat
            )
            form = mine
            for kind in kinds:
                noted.setdefault(kind, []).append(number)
        except RecursionError:
            faults[number] = _nested(number, source)
        except BadRow as error:
            faults[number] = error
    faults = dict(sorted(faults.items()))
    some_repeat = repeats if len(repeats) < len(read) else []
    prefers = "{} below {}, which prefers the rejected response".format(*layout.scores or ("", ""))
    for kind, numbers in ((AS_LABEL, worded), (REPEATED, some_repeat), (prefers, below)):
        if used := [number for number in numbers if number in found]:
            noted[kind] = used
    report = Report(source, len(rows), len(found), noted=_unusual(found, noted.pop(EMPTY, [])))
    report.noted |= noted
    report.chat = chat or form == "a conversation"
    if repeats and len(repeats) == len(read):
        report.remarks.append(
            "Every response begins with its whole prompt; this beginning was taken off: "
            f"{source.listed(repeats)}."
        )
    if asked := [number for number in asked if number in found]:
        report.remarks.append(
            f"The answers beside the prompts ({', '.join(layout.answers)}) are turns, so the chat "
            f"template writes a prompt of text as the user's turn: {source.listed(asked)}."
        )
    learned = {"messages", "completion"} & layout.columns.keys()
    if form == "a conversation" and learned and not layout.only_prompts:
        some = " after the user's first turn" if GREETING in noted else ""
        some += " whose weight is not 0" if template and template.some_only_read else ""
        last = " (of some rows only the last)" if LAST_ONLY in noted else ""
        report.remarks.append(
            f"Learned: every turn of the assistant in {layout.named[min(learned)]}{some}{last}, "
            "with its end. "
            "Other turns are read and not learned."
        )
    if template and (ignored := template.ignored_keys()):
        report.remarks.append(ignored)
    if form == "text" and template is not None and not chat and found:
        prompt = found[min(found)]["prompt"]
        if not (template.special and template.special.search(prompt)):
            option = "--chat writes" if source.name else "chat=True writes"
            report.remarks.append(
                f"The rows are plain text, and the tokenizer has a chat template: {option} them "
                "with it, as turns of the user and the assistant."
            )
    _refuse(faults, report, skip_invalid=skip_invalid, drop_equal=drop_equal)
    return found, report


def _nested(number: int, source: Source) -> BadRow:
    return BadRow(NO_TALK, f"{source.row(number)} holds lists that are nested too deeply.")


def _is_asked(row: Row, values: Row, layout: Layout) -> bool:
    """Whether the prompt is text and an answer beside it, which is not read, is turns."""
    prompt = values.get("prompt")
    answered = any(are_turns(row.get(column)) for column in layout.answers)
    return answered and isinstance(prompt, str) and bool(prompt.strip())


def _is_below(chosen: Any, rejected: Any) -> bool:
    """Whether the score of the chosen response is below that of the rejected one."""
    return is_number(chosen) and is_number(rejected) and float(chosen) < float(rejected)


def _repeats_prompt(values: Row) -> bool:
    """Whether each response of a row of text begins with its whole prompt, and goes on."""
    prompt, texts = values.get("prompt"), [values[n] for n in TEXTS[1:] if n in values]
    if not isinstance(prompt, str) or not prompt.strip() or not texts:
        return False
    if any(name + SPANS in values for name in TEXTS):
        return False
    return all(
        isinstance(text, str) and text.startswith(prompt) and text[len(prompt) :].strip()
        for text in texts
    )


def _without_prompt(values: Row) -> Row:
    """The row without the prompt at the start of its responses."""
    start = len(values["prompt"])
    return values | {name: values[name][start:] for name in TEXTS[1:] if name in values}


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


def _texts(
    values: Row,
    template: Template | None,
    where: str,
    columns: Mapping[str, str],
    *,
    chat: bool,
) -> tuple[Row, list[str]]:
    """The row as text with a prompt of its own, and what is unusual about it.

    Args:
        template: writes conversations.
        where: the row, as messages name it.
        columns: role -> its column, as messages name it.

    Raises:
        BadRow: the row is no conversation, has no prompt, or its responses are equal.
        ValueError: there is no chat template.
    """
    _check_turns(values, where, columns)
    turns, greeted = values.get("messages"), False
    if template is not None:
        template.tools = values.get(TOOLS, [])
    values = {role: value for role, value in values.items() if role not in ("messages", TOOLS)}
    if turns:
        first = _first_answer(turns)
        values = values | _cut_at(first, turns)
        greeted = any(turn["role"] == ASSISTANT for turn in turns[:first])
    both = f"{where}: {columns.get('chosen')} and {columns.get('rejected')} are the same"
    if "chosen" in values and values["chosen"] == values.get("rejected"):
        kind = "text" if isinstance(values["chosen"], str) else "conversation"
        raise BadRow(EQUAL, f"{both} {kind}; remove such rows.")
    if "chosen" in values and "prompt" not in values:
        values = _with_prompt(values["chosen"], values["rejected"], where)
    names = [name for name in TEXTS if name in values]
    noted: list[str] = []
    _check_prompt(values["prompt"], where)
    if chat and isinstance(values["prompt"], str) and is_transcript(values["prompt"]):
        values = values | {name: turns_of(values[name], name) for name in names}
        _check_turns(values, where, columns)
    if chat or any(isinstance(values[name], list) for name in names):
        if template is None and not any(isinstance(values[name], list) for name in names):
            raise ValueError(
                "--chat (chat=True) writes rows of text with the tokenizer's chat template, and "
                "this tokenizer has none; leave it out, or use a model that has a template."
            )
        if template is None:
            raise ValueError(
                f"{where} is a conversation, and the model's tokenizer has no chat template to "
                f"write it with. {GET_TEMPLATE}"
            )
        try:
            written = render(values, names, template, f"{where}: ", columns)
            noted = [*template.noted]
        except BadRow as fault:
            if fault.kind != EARLIER or not turns:
                raise
            values = values | _cut_at(len(turns) - 1, turns)
            written = render(values, names, template, f"{where}: ", columns)
            noted = [*template.noted, LAST_ONLY]
        values = values | written
        if "chosen" in values and values["chosen"] == values.get("rejected"):
            raise BadRow(
                EQUAL,
                f"{both} text in the tokenizer's chat template; remove such rows.",
            )
    elif any(has_further_turn(values[name]) for name in names if name != "prompt"):
        noted = [FURTHER]
    _check_prompt(values["prompt"], where)
    return values, list(dict.fromkeys([GREETING] * greeted + noted))


def _check_prompt(prompt: Any, where: str) -> None:
    if isinstance(prompt, str) and not prompt.strip():
        raise BadRow(
            "an empty prompt",
            f"{where}: the prompt is empty; give at least one token before the response.",
        )


def _check_turns(values: Row, where: str, columns: Mapping[str, str]) -> None:
    try:
        check_turns(values, f"{where}: ", columns)
    except ValueError as error:
        raise BadRow(getattr(error, "kind", NO_TALK), str(error)) from error


def _first_answer(turns: Turns) -> int:
    """The number of the first turn of the assistant that follows a user's; else of the last turn.

    A greeting before the user's first turn belongs to the prompt.
    """
    roles = [turn["role"] for turn in turns]
    asked = roles.index("user") if "user" in roles else len(roles)
    return roles.index(ASSISTANT, asked) if ASSISTANT in roles[asked:] else len(roles) - 1


def _cut_at(first: int, turns: Turns) -> Row:
    """The turns of a conversation as a prompt, and a completion that begins at turn `first`."""
    return {"prompt": turns[:first], "completion": turns[first:]}


def _with_prompt(chosen: Any, rejected: Any, where: str) -> Row:
    """A pair without a prompt: the prompt is what both share at their start.

    Raises:
        BadRow: they share nothing there, or one has nothing after it.
    """
    if isinstance(chosen, str):
        shared = prompt_length(chosen, rejected)
        both_talk = is_transcript(chosen) and is_transcript(rejected)
        kind = "no turn of the assistant" if both_talk else "no whole word"
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


def _unusual(rows: Mapping[int, Row], empty: Sequence[int]) -> dict[str, list[int]]:
    """What is unusual about rows that can be used -> the numbers of such rows.

    Args:
        empty: rows whose last turn is empty, before the chat template wrote them.
    """
    noted: dict[str, list[int]] = {}
    seen: set[tuple] = set()
    for number, row in rows.items():
        key = tuple(row.get(name) for name in (*TEXTS, "label"))
        texts = [row[name] for name in TEXTS[1:] if name in row]
        same = "the same as an earlier row" if texts else "the same prompt as an earlier row"
        kinds = {
            EMPTY: number in empty or not all(text.strip() for text in texts),
            same: key in seen,
            "the same as an earlier row, but with the other label": "label" in row
            and (*key[:-1], not row["label"]) in seen,
            "the opposite of an earlier row": "rejected" in row
            and (key[0], key[1], key[3], key[2], key[4]) in seen,
        }
        for kind in (kind for kind, holds in kinds.items() if holds):
            noted.setdefault(kind, []).append(number)
        seen.add(key)
    return noted
