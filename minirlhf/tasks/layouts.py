"""Which columns of a dataset hold the prompt, the responses and the labels.

Public datasets have many names for the same thing. `find_layout` knows the usual ones. Where two
columns could be meant it refuses, and the reader says which one: `columns={"prompt": "question"}`
in Python, `--columns prompt=question` on the command line.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from minirlhf.runtime import check
from minirlhf.tasks.lines import listed
from minirlhf.tasks.turns import SPANS, TEXTS, is_conversation

ROLES = ("prompt", "completion", "chosen", "rejected", "label", "messages")

PROMPTS = ("instruction", "question", "query", "problem", "input", "context", "history")
ADDED = (("instruction", "input"), ("instruction", "context"))  # a task and what it is about
SYSTEM = ("system", "system_prompt")
TOOLS = "tools"  # beside conversations: the tools that the assistant may call
COMPLETIONS = ("response", "output", "answer", "solution")
CONVERSATIONS = ("messages", "conversations", "conversation")
LABELS = ("label", "kto_tag")
PAIRS = (
    ("chosen", "rejected"),
    ("chosen_response", "rejected_response"),
    ("response_chosen", "response_rejected"),
    ("response_j", "response_k"),  # StackExchange
    ("preferred_output", "non_preferred_output"),
    ("preferred", "dispreferred"),
    ("accepted", "rejected"),
)


def by_sign(value: Any) -> int | None:
    """Below 0: the first response is better. Above 0: the second. 0: neither."""
    if isinstance(value, bool) or not is_number(value) or float(value) != float(value):
        raise ValueError("a number below 0 (the first is better), above 0 (the second), or 0")
    return None if float(value) == 0 else int(float(value) > 0)


def is_number(value: Any) -> bool:
    """Whether a value is a number, or the text of one, as in a CSV file."""
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def by_value(first: Sequence[object], second: Sequence[object], tie: Sequence[object] = ()) -> Any:
    """A function from the value of a choice to the better response: 0, 1, or None for a tie."""

    def better(value: object) -> int | None:
        for result, values in ((0, first), (1, second), (None, tie)):
            if any(value == v and isinstance(value, bool) == isinstance(v, bool) for v in values):
                return result
        raise ValueError(f"{first[0]!r} (the first is better) or {second[0]!r} (the second)")

    return better


# (first response, second response, the column that says which is better, how it says so)
CHOICES: tuple[tuple[str, str, str, Callable[[object], int | None]], ...] = (
    ("response_0", "response_1", "better_response_id", by_value([0, "0"], [1, "1"])),  # PKU
    ("human_ref_A", "human_ref_B", "labels", by_value([1, "1"], [0, "0"])),  # SHP
    ("response_1", "response_2", "preference_strength", by_sign),  # HelpSteer2
    ("response1", "response2", "overall_preference", by_sign),  # HelpSteer3
    *(
        (
            f"{kind}_a",
            f"{kind}_b",
            "winner",
            by_value(["model_a", "a", "A"], ["model_b", "b", "B"], ["tie", "tie (bothbad)"]),
        )
        for kind in ("response", "conversation")  # Chatbot Arena
    ),
)

SCORES = (  # of the chosen and of the rejected response
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("rating_chosen", "rating_rejected"),
    ("chosen_rating", "rejected_rating"),
    ("chosen-rating", "rejected-rating"),
)

# names of what is known about a row: not the prompt's, if the values look like it, too
ABOUT = re.compile(
    r"((prompt|chosen|rejected)[_-])?(idx|index|uid|uuid|hash|source|dataset|origin|subset|split|"
    r"scores?|ratings?|margin|models?|lang|language|category|annotator|date|time|timestamp|url|"
    r"license|metadata|meta|rewards?|preference|side|labels?)([_-](name|chosen|rejected|[a-z0-9]))?|"
    r"(\w+[_-])?ids?"
)


@dataclass(frozen=True)
class Layout:
    """Where a dataset has its prompts, responses and labels.

    Attributes:
        columns: role -> the columns that hold it. Several columns of a prompt are joined.
        choice: (column, function) where the better of two responses is chosen in each row. The
            function gives 0 or 1, the position of the better one, or None for a tie.
        ignored: the other columns.
        spans: columns such as `chosen_spans`, which say what the assistant wrote in a text of
            several turns.
        only_prompts: the responses are not read. Of `messages`, all turns before the assistant's
            last answer are the prompt.
        answers: columns of responses that are not read, where only prompts are.
    """

    columns: dict[str, tuple[str, ...]]
    ignored: tuple[str, ...]
    choice: tuple[str, Callable[[object], int | None]] | None = None
    spans: tuple[str, ...] = ()
    only_prompts: bool = False
    answers: tuple[str, ...] = ()

    @property
    def implicit(self) -> bool:
        """Whether the prompt is what chosen and rejected share at their start."""
        return "chosen" in self.columns and "prompt" not in self.columns

    @property
    def used(self) -> frozenset[str]:
        """The columns that are read."""
        choice = {self.choice[0]} if self.choice else set()
        parts = {part for parts in self.columns.values() for part in parts}
        return frozenset(parts | choice | set(self.spans))

    @property
    def named(self) -> dict[str, str]:
        """The column of the file that holds each role, as messages name it."""
        found = {role: " + ".join(columns) for role, columns in self.columns.items()}
        if self.choice:
            found |= {"chosen": "chosen", "rejected": "rejected"}
        if "messages" in found:  # prompt and completion are parts of it
            found |= dict.fromkeys(("messages", *TEXTS[:2]), self.columns["messages"][-1])
        return found

    @property
    def scores(self) -> tuple[str, str] | None:
        """Two columns, not read, that may say the score of the chosen and rejected response."""
        known = (pair for pair in SCORES if "chosen" in self.columns and {*pair} <= {*self.ignored})
        return None if self.choice else next(known, None)

    @property
    def optional(self) -> frozenset[str]:
        """Columns that may be empty: a system prompt, what is joined to the prompt, or tools."""
        joined = [parts for parts in self.columns.values() if len(parts) > 1]
        main = {next((p for p in parts if p not in SYSTEM), parts[0]) for parts in joined}
        tools = frozenset(self.columns.get(TOOLS, ()))
        return frozenset(part for parts in joined for part in parts) - main | tools

    @property
    def ends_line(self) -> bool:
        """Whether a line break ends a prompt of text: one of Alpaca's layout or of several columns.

        Their responses follow without a space or line break of their own.
        """
        prompt = [column for column in self.columns.get("prompt", ()) if column not in SYSTEM]
        return "instruction" in prompt or len(prompt) > 1

    def described(self, others: str = "Ignored") -> str:
        """What the columns mean, in a line. `others` is said before the other columns."""
        parts = []
        if self.implicit:
            parts.append("prompt = the common beginning of chosen and rejected")
        for role, names in self.columns.items():
            if self.choice and role in ("chosen", "rejected"):
                kind = "better" if role == "chosen" else "other"
                names = (
                    f"the {kind} of {self.columns['chosen'][0]} and "
                    f"{self.columns['rejected'][0]} by {self.choice[0]}",
                )
            parts.append(role if names == (role,) else f"{role} = {' + '.join(names)}")
        parts += self.spans
        ignored = listed(name or "(no name)" for name in self.ignored)
        return "; ".join(parts) + (f". {others}: {ignored}." if ignored else ".")


def find_layout(
    names: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    given: Mapping[str, str] | None = None,
    *,
    name: str = "",
    only_prompts: bool = False,
) -> Layout:
    """Find out which columns of a dataset mean what.

    Args:
        names: the columns of the dataset.
        rows: its rows. They show which unknown column could hold the prompt.
        given: role -> column, where the reader says so; "a+b" for columns to be joined, "" for
            a role that no column has.
        name: of the dataset, to begin messages with.
        only_prompts: the responses will not be read, so it does not matter which they are.

    Raises:
        ValueError: the columns are of no known format, or two of them could be meant.
    """
    said = _given(names, given or {}, name)
    # LLaMA-Factory's column of earlier turns is usually empty
    some = [n for n in names if n != "history" or any(row.get(n) for row in rows)]
    clear = only_prompts
    layout = _pairs(some, rows, said, name, clear) or _others(some, said, name, clear)
    for role, parts in said.items():
        if parts and role not in layout.columns:
            raise ValueError(
                f"columns gives {role}={'+'.join(parts)}, and the dataset is read as "
                f"{', '.join(layout.columns)}, which has no {role}."
            )
    columns = _with_system(layout, names, rows, said)
    talk = columns.get("messages", columns.get("prompt", columns.get("chosen", ())))[-1:]
    given_turns = any(isinstance(row.get(column), list | dict) for row in rows for column in talk)
    tools: dict[str, tuple[str, ...]] = {}
    if given_turns and TOOLS in names:
        tools = {TOOLS: (TOOLS,)}
    read = next((role for role in ("prompt", "messages") if role in columns), "")
    if only_prompts and read:
        known = {*TEXTS[1:], *COMPLETIONS}.union(*PAIRS, *(choice[:2] for choice in CHOICES))
        known = known.union(*(columns.get(role, ()) for role in TEXTS[1:])) - {*columns[read]}
        found = _layout({read: columns[read]} | tools, names, only_prompts=True)
        return replace(found, answers=tuple(name for name in names if name in known))
    return _layout(columns | tools, names, layout.choice)


def parse_columns(text: str) -> dict[str, str]:
    """What --columns says: "prompt=question,completion=answer" as a dict from role to column.

    Raises:
        ValueError: a part is not ROLE=COLUMN, or a role comes twice.
    """
    found: dict[str, str] = {}
    for part in re.split(rf",(?=\s*(?:{'|'.join(ROLES)})\s*=)", text) if text else []:
        role, equals, column = part.partition("=")
        role = role.strip()
        right = bool(equals) and role not in found
        check("columns", text, right, "ROLE=COLUMN, for example prompt=question,completion=answer")
        found[role] = column
    return found


def _given(names: Sequence[str], given: Mapping[str, str], name: str) -> dict[str, tuple[str, ...]]:
    """The columns that the reader names for each role."""
    said: dict[str, tuple[str, ...]] = {}
    for role, column in given.items():
        if role not in ROLES:
            raise ValueError(f"columns names '{role}'; it must be one of {', '.join(ROLES)}.")
        column = column if column in names else column.strip()
        parts = (column,) if column in names else tuple(column.split("+")) if column else ()
        if missing := [part for part in parts if part not in names]:
            raise ValueError(
                f"{_of(name)}has no column '{missing[0]}' for {role}; "
                f"its columns are {listed(names)}."
            )
        if len(parts) > 1 and role != "prompt":
            raise ValueError(f"columns is {role}={column}; only a prompt can be several columns.")
        if "prompt" in parts and "prompt" not in given:
            raise ValueError(
                f"columns is {role}={column}, so the column prompt is not the prompt; say which "
                "column is: prompt=NAME, or prompt= (nothing)."
            )
        said[role] = parts
    used = [part for parts in said.values() for part in parts]
    if twice := [part for part in used if used.count(part) > 1]:
        raise ValueError(f"columns names '{twice[0]}' twice; give each role a column of its own.")
    return said


def _pairs(
    names: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    said: dict[str, tuple[str, ...]],
    name: str,
    clear: bool,
) -> Layout | None:
    """The layout of preference pairs, or None where there are none.

    Args:
        clear: it does not matter which of several pairs is meant.
    """
    if said.get("completion") or said.get("messages"):
        return None
    found: dict[str, tuple[str, ...]] = {}
    choice = None
    if any(role in said for role in ("chosen", "rejected")):
        for role in ("chosen", "rejected"):
            if parts := said.get(role, (role,) if role in names else ()):
                found[role] = parts
    elif pairs := [pair for pair in PAIRS if set(pair) <= set(names)]:
        pair = _only("chosen", pairs, clear or pairs[0] == PAIRS[0], name)
        found = {"chosen": (pair[0],), "rejected": (pair[1],)}
    elif choices := [row for row in CHOICES if set(row[:3]) <= set(names)]:
        first, second, column, better = _only("chosen", choices, clear, name)
        found, choice = {"chosen": (first,), "rejected": (second,)}, (column, better)
    if len(found) < 2:
        return None
    used = {*found["chosen"], *found["rejected"], choice[0] if choice else ""}
    prompt = _prompt_of_pairs([n for n in names if n not in used], rows, said, name)
    columns = ({"prompt": prompt} if prompt else {}) | found
    return _layout(columns, names, choice)


def _prompt_of_pairs(
    others: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    said: dict[str, tuple[str, ...]],
    name: str,
) -> tuple[str, ...]:
    """The columns of the prompt; none where the responses alone can hold it.

    Raises:
        ValueError: a column of unknown meaning could hold it.
    """
    if "prompt" in said:
        return said["prompt"]
    if found := _prompt(others, name, more=("conversations",)):
        return found
    possible = [n for n in others if n not in SYSTEM and could_be_prompt(n, rows)]
    if possible:
        ways = " or ".join(f"prompt={n}" for n in possible[:4])
        raise ValueError(
            f"{_of(name)}has pairs and no column prompt, but {listed(possible)}; give "
            f"--columns {ways}, or --columns prompt= (nothing) if the prompt is what both "
            "texts share at their start."
        )
    return ()


def could_be_prompt(name: str, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a column of unknown meaning could hold the prompt: it holds text or turns."""
    values = [
        value
        for row in rows
        if isinstance(value := row.get(name), str | list | dict) and value and not is_number(value)
    ]
    if not name or not values:
        return False
    return not (ABOUT.fullmatch(name.lower()) and _tell_about(values))


def _tell_about(values: Sequence[str | list | dict]) -> bool:
    """Whether values look like names, numbers and marks of rows: without spaces, or few."""
    texts = [value for value in values if isinstance(value, str)]
    words = [text for text in texts if len(text.split()) > 1 or not text.isascii()]
    few = len(set(texts)) <= len(texts) / 10
    return (few or not words) and not any(map(is_conversation, values))


def _others(
    names: Sequence[str], said: dict[str, tuple[str, ...]], name: str, clear: bool
) -> Layout:
    """The layout of conversations, of prompts with responses, or of prompts alone.

    Args:
        clear: it does not matter which column holds the responses.
    """
    marks = said.get("label", tuple(n for n in LABELS if n in names)[:1])
    label = {"label": marks} if marks else {}
    messages = said.get("messages", tuple(n for n in CONVERSATIONS if n in names))
    usual = ("completion",) if "completion" in names else COMPLETIONS
    completion = tuple(n for n in usual if n in names)
    if said.get("completion"):
        messages, completion = said.get("messages", ()), said["completion"]
    elif clear or "completion" in said or said.get("messages"):
        completion = ()
    if said.get("prompt"):
        messages = said.get("messages", ())
    elif "prompt" in said and messages:
        completion = ()
    if messages and completion:
        raise _ambiguous(
            "the responses", (*messages, *completion), name, ("messages", "completion")
        )
    if messages:
        column = _only("messages", messages, "messages" in messages, name)
        return _layout({"messages": (column,)} | label, names)
    prompt = said["prompt"] if "prompt" in said else _prompt(names, name)
    columns = {"prompt": prompt} if prompt else {}
    if completion:
        columns["completion"] = (_only("completion", completion, len(completion) == 1, name),)
        columns |= label
    elif "chosen" in names and "chosen" not in said:  # a good response without a bad one
        columns["chosen"] = ("chosen",)
    if not prompt and "prompt" in said:
        raise ValueError(
            f"{_of(name)}has neither pairs nor a conversation, so a column must be the prompt, and "
            f"columns gives prompt= (nothing); its columns are {listed(names)}."
        )
    if not names:
        raise ValueError(
            f"{_of(name)}has no columns: its rows are empty; give prompt, prompt + completion, "
            "prompt + chosen + rejected, or messages."
        )
    if not prompt:
        raise ValueError(
            f"{_of(name)}has the columns {listed(names)}, which are of no known format; give "
            "prompt, prompt + completion, prompt + chosen + rejected, or messages. Or say which "
            "column is which, for example --columns prompt=NAME,completion=NAME."
        )
    return _layout(columns, names)


def _prompt(names: Sequence[str], name: str, more: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The columns of the prompt by their usual names; none if there are none."""
    if "prompt" in names:
        return ("prompt",)
    found = tuple(n for n in (*PROMPTS, *more) if n in names)
    if found in ADDED or len(found) < 2:
        return found
    raise _ambiguous("the prompt", found, name, ("prompt",))


def _with_system(
    layout: Layout,
    names: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    said: dict[str, tuple[str, ...]],
) -> dict[str, tuple[str, ...]]:
    """The columns of each role, with a system prompt before the prompt where there is one."""
    system = next((n for n in SYSTEM if n in names and any(row.get(n) for row in rows)), None)
    role = "messages" if "messages" in layout.columns else "prompt"
    columns = dict(layout.columns)
    if system and role in columns and role not in said and system not in layout.used:
        columns[role] = (system, *columns[role])
    return columns


def _layout(
    columns: dict[str, tuple[str, ...]],
    names: Sequence[str],
    choice: Any = None,
    *,
    only_prompts: bool = False,
) -> Layout:
    spans = tuple(role + SPANS for role in TEXTS[1:] if columns.get(role) == (role,))
    spans = tuple(n for n in spans if n in names and "prompt" in columns)
    used = Layout(columns, (), choice, spans).used
    return Layout(columns, tuple(n for n in names if n not in used), choice, spans, only_prompts)


def _only(role: str, found: Sequence[Any], clear: bool, name: str) -> Any:
    """The first of what was found, if it is clear that it is meant."""
    if clear or len(found) == 1:
        return found[0]
    flat = [n if isinstance(n, str) else " and ".join(map(str, n[:2])) for n in found]
    raise _ambiguous(f"the {role}", tuple(flat), name, (role,))


def _ambiguous(what: str, found: tuple[str, ...], name: str, roles: tuple[str, ...]) -> ValueError:
    example = " or ".join(f"--columns {role}=NAME" for role in roles)
    if roles == ("prompt",) and "history" not in found:
        example += f", or join them with --columns prompt={'+'.join(found)}"
    return ValueError(
        f"{_of(name)}has several columns that could be {what}: {', '.join(found)}; say which one "
        f"with {example}."
    )


def _of(name: str) -> str:
    return f"{name} " if name else "The dataset "
