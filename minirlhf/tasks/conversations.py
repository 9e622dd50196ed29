"""Conversations: lists of turns {"role", "content"}, checked and written as text.

A row of text has one string for each response. A response of several turns has a second column,
such as `chosen_spans`: the [start, end) characters of the turns that the assistant wrote. The
user's turns between them are read by the policy and have no loss.
"""

import re
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from minirlhf.tasks.lines import BadRow
from minirlhf.tasks.reports import counted
from minirlhf.tasks.turns import (
    ASSISTANT,
    CALLS,
    KNOWN,
    NO_WEIGHT,
    SPANS,
    THOUGHTS,
    Turns,
    has_null_argument,
    is_conversation,
    is_learned,
    says_nothing,
    text_of_turn,
    texts_in,
    without_none,
)

# kinds of bad rows, as the report names them
NO_QUESTION = "no turn before the answer"
ANSWERED = "a prompt that ends with the assistant's turn"
NO_ANSWER = "no turn of the assistant to learn"
SPECIAL = "a special token written in a turn"
NO_CALLS = "calls of tools that the chat template does not write"
REFUSED = "a conversation that the chat template cannot write"
LOST = "a turn that the chat template leaves out or changes"
EARLIER = "earlier turns that the chat template writes differently when others follow"

# what is unusual about rows that are used
EMPTY = "an empty response"
EMPTY_TURN = "an empty turn of the assistant before the last, which is learned"
SAME_ROLE = "two turns of one role in a row"
NULL = "an argument of a tool's call that is null (a table adds such arguments to calls)"
TOOLS_LOST = "the chat template leaves out the list of tools"
TOOL_LOST = "the chat template leaves out a tool's turn"
THOUGHT_LOST = "the chat template leaves out a thought in a turn that is only read"
TURN_LOST = "the chat template leaves out or changes a turn of the assistant that is only read"


def render(
    row: dict,
    texts: list[str],
    template: "PreTrainedTokenizerBase | Template",
    name: str = "",
    columns: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The texts of a conversation, written with the tokenizer's chat template.

    Args:
        row: its values are conversations, or texts: of the user in `prompt`, else of the assistant.
        texts: the columns to write, `prompt` first.
        template: the tokenizer, or for many rows a `Template` of it.
        name: start of an error message, for example "Row 3: ".
        columns: column of the row -> the column of the file that it comes from, as messages name
            it; by default the same. `prompt` and `completion` may be parts of one conversation.

    Returns:
        A text for each column. A response of several turns also has NAME_spans: the characters of
        the assistant's turns, their ends included.

    Raises:
        ValueError: the template cannot write the conversation, writes it in a way from which the
            assistant's turns cannot be told, or a turn holds special tokens of the tokenizer.
    """
    if not isinstance(template, Template):
        template = Template(template)
    template.name, template.noted, template.columns = name, [], columns or {}
    template.check_tools()
    asked = template.turns(row["prompt"], "user", "prompt")
    if not asked:
        raise BadRow(
            NO_QUESTION, f"{name}there is no turn before the answer, so there is no prompt."
        )
    if asked[-1]["role"] == ASSISTANT:
        raise BadRow(
            ANSWERED,
            f"{name}the prompt ends with the assistant's turn, and another would follow; it must "
            "end with the turn that the assistant answers.",
        )
    prompt = template.prompt(asked)
    rendered: dict[str, Any] = {"prompt": prompt}
    for column in texts[1:]:
        before = len(asked) if template.is_one_conversation else 0
        reply = template.turns(row[column], ASSISTANT, column, before)
        if reply[: len(asked)] == asked:  # ultrafeedback repeats the prompt in both texts
            reply, before = reply[len(asked) :], len(asked)
        if not reply or reply[0]["role"] != ASSISTANT:
            raise template.no_answer(asked, reply, column)
        rendered |= template.response(asked, reply, column, prompt, before)
    return rendered


def answer(row: dict[str, Any], name: str, to: str = "completion") -> dict[str, Any]:
    """The response `name` of a row, and its spans if it has them, under another name."""
    return {to + end: row[name + end] for end in ("", SPANS) if name + end in row}


def in_parts(rows: dict[str, list], name: str) -> list[str | list[tuple[str | list[int], bool]]]:
    """The responses of some rows, as `models.forward.encode` takes them.

    A response with spans is in parts: (text, whether the assistant wrote it).
    """
    spans = rows.get(name + SPANS) or [None] * len(rows[name])
    return [_parts(text, of) if of else text for text, of in zip(rows[name], spans, strict=True)]


def _parts(text: str, spans: list[list[int]]) -> list[tuple[str | list[int], bool]]:
    """The text from span to span, and what stands between them. The last span ends the text."""
    parts: list[tuple[str | list[int], bool]] = []
    end = 0
    for start, stop in spans:
        parts += [(text[end:start], False)] * (start > end) + [(text[start:stop], True)]
        end = stop
    return parts


class Template:
    """The chat template of a tokenizer.

    Attributes:
        name: start of an error message, for example "Row 3: ".
        noted: what is unusual about the row that `render` wrote last, for its report.
        ignored: key of turns that nothing reads -> the names of the rows that have it.
        tools: those that the assistant may call in the conversations that are written next.
        some_only_read: whether a turn of the assistant in a response was not learned.
        columns: column of the row -> the column of the file, for messages.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer, self.name = tokenizer, ""
        self.noted: list[str] = []
        self.columns: Mapping[str, str] = {}
        self.ignored: dict[str, set[str]] = {}
        self.tools: list[Any] = []
        self.some_only_read = False
        tokens = tokenizer.added_tokens_decoder.values()
        special = "|".join(re.escape(token.content) for token in tokens if token.special)
        self.special = re.compile(special) if special else None
        # if the tokenizer adds BOS itself, remove the template's BOS
        adds = tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]
        self.bos = (tokenizer.bos_token or "") if adds else ""

    @property
    def is_one_conversation(self) -> bool:
        """Whether prompt and completion are the parts of one column."""
        return "prompt" in self.columns and self.columns["prompt"] == self.columns.get("completion")

    def turns(
        self, value: str | Turns, role: str, column: str, before: int = 0
    ) -> list[dict[str, Any]]:
        """A conversation as templates expect it: contents are text, and no key's value is None.

        A text is one turn of this role. `before` is the number of turns before it in its column.

        Raises:
            ValueError: a turn holds a special token, which would be read as the template's own,
                or it calls tools and the template does not write such calls.
        """
        turns = value if is_conversation(value) else [{"role": role, "content": value}]
        assert isinstance(turns, list)
        name, found = f"{self.name}{self.columns.get(column, column)}", list[dict[str, Any]]()
        for i, turn in enumerate(turns, start=1 + before):
            turn = without_none(turn) | {
                "content": text_of_turn(turn, f"{name}: the content of turn {i}")
            }
            self._check_special(turn, f"{name}: turn {i}")
            for key in CALLS:
                if turn.get(key) and key not in str(self.tokenizer.chat_template):
                    raise BadRow(
                        NO_CALLS,
                        f"{name}: turn {i} calls tools, and the tokenizer's chat template "
                        f"does not write such calls (no {key} in it); leave the row out, or use a "
                        "model whose template does.",
                    )
            if has_null_argument(turn):
                self.noted.append(NULL)
            for key in turn.keys() - set(KNOWN):
                if not re.search(rf"\b{re.escape(key)}\b", str(self.tokenizer.chat_template)):
                    self.ignored.setdefault(key, set()).add(self.name)
            if found and found[-1]["role"] == turn["role"] not in (ASSISTANT, "tool"):
                self.noted.append(SAME_ROLE)
            found.append(turn)
        return found

    def no_answer(self, asked: Turns, reply: Turns, column: str) -> BadRow:
        """The fault of a response that does not begin with the assistant's turn."""
        name = self.columns.get(column, column)
        if self.is_one_conversation or not reply:
            return BadRow(
                NO_ANSWER,
                f"{self.name}{name} has no turn of the assistant after the question, so there is "
                "nothing to learn; leave the row out.",
            )
        asks = "prompt" in self.columns or not self.columns
        if asks and ASSISTANT in [turn["role"] for turn in reply]:
            prompt = self.columns.get("prompt", "prompt")
            differ = (i for i, (a, b) in enumerate(zip(asked, reply, strict=False)) if a != b)
            i = next(differ, min(len(asked), len(reply)) - 1)
            theirs, ours = (f"{t[i]['role']}: {t[i]['content'][:60]!r}" for t in (reply, asked))
            return BadRow(
                f"the question in {name} differs from {prompt}",
                f"{self.name}the question in {name} differs from {prompt}: turn {i + 1} is "
                f"{theirs} in {name} and {ours} in {prompt}; make them equal, or give the answer "
                f"alone in {name}.",
            )
        return BadRow(
            NO_ANSWER,
            f"{self.name}the answer in {name} begins with role {reply[0]['role']!r}; it must begin "
            "with a turn of role 'assistant'.",
        )

    def ignored_keys(self) -> str:
        """A sentence on the keys of turns that nothing reads; empty if there are none."""
        said = [f"{key} ({counted(len(rows))})" for key, rows in sorted(self.ignored.items())]
        return f"Ignored in turns: {', '.join(said)}." if said else ""

    def check_tools(self) -> None:
        """Refuse a special token in the tools, and note a template that does not write tools."""
        if self.tools:
            self._check_special({"tools": self.tools}, f"{self.name}the column tools")
            if not re.search(r"\btools\b", str(self.tokenizer.chat_template)):
                self.noted.append(TOOLS_LOST)

    def _check_special(self, turn: dict[str, Any], name: str) -> None:
        """Refuse a special token in any text of a turn, whatever its key."""
        for key, value in turn.items():
            written = self.special and self.special.search("\n".join(texts_in([key, value])))
            if written:
                raise BadRow(
                    SPECIAL,
                    f"{name} has {written[0]!r} written in its {key}, which this tokenizer reads "
                    "as a special token; change the text, or leave the row out.",
                )

    def written(self, turns: Turns, *, ask: bool = False) -> str:
        """The turns as text; with `ask`, up to where the assistant's next turn begins."""
        try:
            text = self.tokenizer.apply_chat_template(
                turns, tools=self.tools or None, tokenize=False, add_generation_prompt=ask
            )
        except Exception as error:  # a template may raise anything
            why = next(iter(str(error).splitlines()), type(error).__name__)
            raise BadRow(
                REFUSED,
                f"{self.name}the tokenizer's chat template cannot write this conversation: {why}",
            ) from error
        return str(text).removeprefix(self.bos)

    def prompt(self, asked: Turns) -> str:
        """The text before the assistant's answer."""
        prompt = self.written(asked, ask=True)
        self._check_whole(asked, prompt)
        self._note_lost(asked, 0, prompt)
        if prompt == self.written(asked):
            answered = self.written([*asked, {"role": ASSISTANT, "content": "0"}])
            if answered.startswith(prompt) and not answered[len(prompt) :].lstrip().startswith("0"):
                raise ValueError(
                    "The tokenizer's chat template has no generation prompt: it does not write "
                    "where the assistant's turn begins when add_generation_prompt is True; add "
                    "this to the template."
                )
        return prompt

    def response(
        self, asked: Turns, reply: Turns, column: str, prompt: str, before_it: int = 0
    ) -> dict[str, Any]:
        """The text after the prompt, and the characters in it that the assistant wrote.

        `before_it` is the number of turns before the reply in its column.
        """
        turns, first = [*asked, *reply], len(asked)
        named = self.columns.get(column, column)
        whole = self.written(turns)
        self._check_whole(turns, whole)
        spans: list[list[int]] = []
        for i in [i for i in range(first, len(turns)) if turns[i]["role"] == ASSISTANT]:
            before = prompt if i == first else self.written(turns[:i], ask=True)
            after = whole if i + 1 == len(turns) else self.written(turns[: i + 1])
            if not (whole.startswith(before) and whole.startswith(after.rstrip())):
                raise self._differs(earlier=i > first or whole.startswith(before))
            name = f"turn {i - first + 1 + before_it} of {named}"
            learned = is_learned(turns[i], f"{self.name}{name}")
            if learned:
                self._check_thought(turns, i, name)
                written = whole[: len(after)]
                self._check_learned(turns[i], before, written, name)
                spans.append([len(before) - len(prompt), len(after.rstrip()) - len(prompt)])
                if says_nothing(turns[i]):
                    self.noted.append(EMPTY if i + 1 == len(turns) else EMPTY_TURN)
                continue
            self.some_only_read = True
            if i + 1 == len(turns):
                raise BadRow(
                    NO_WEIGHT,
                    f"{self.name}the last turn of {named} has a weight of 0, so nothing is "
                    "learned there; end the conversation before it.",
                )
        self._note_lost(turns, first, whole)
        text = self._without_end(whole[len(prompt) :])
        if len(reply) == 1:
            return {column: text}
        spans[-1][1] = len(text)
        return {column: text, column + SPANS: spans}

    def _check_whole(self, turns: Turns, text: str) -> None:
        """Refuse a template that does not write the turns of the system and the user.

        A short content may stand elsewhere in the text, so a marker in its place is looked for too.
        """
        read = [i for i, turn in enumerate(turns) if turn["role"] not in (ASSISTANT, "tool")]
        marks = {i: f"marker{i}inplaceofacontent" for i in read if turns[i]["content"].strip()}
        try:
            marked = self.written(
                [turn | {"content": marks.get(i, turn["content"])} for i, turn in enumerate(turns)]
            )
        except BadRow:  # the template reads the contents
            marked = " ".join(marks.values())
        for i, mark in marks.items():
            if turns[i]["content"].strip() not in text or mark not in marked:
                raise BadRow(
                    LOST,
                    f"{self.name}the tokenizer's chat template leaves out or changes turn {i + 1}, "
                    f"of role {turns[i]['role']!r}; use roles that the template writes.",
                )

    def _note_lost(self, turns: Turns, start: int, text: str) -> None:
        """Note what the template leaves out of turns that are only read, from turn `start` on.

        Args:
            start: 0 for the turns of a prompt, of which none is learned.
            text: what the template writes.
        """
        text = "".join(text.split())
        for i in range(start, len(turns)):
            turn = turns[i]
            if turn["role"] == "tool" and turn["content"] and self._leaves_out(turns, i, "content"):
                self.noted.append(TOOL_LOST)
            if turn["role"] == ASSISTANT and (not start or not is_learned(turn, self.name)):
                if any(turn.get(key) and self._leaves_out(turns, i, key) for key in THOUGHTS):
                    self.noted.append(THOUGHT_LOST)
                whole = "".join(turn["content"].split())
                if whole and (whole not in text or self._leaves_out(turns, i, "content")):
                    self.noted.append(TURN_LOST)

    def _check_thought(self, turns: Turns, i: int, name: str) -> None:
        """Refuse a template that leaves out the thought of a turn that is learned."""
        for key in THOUGHTS:
            if turns[i].get(key) and self._leaves_out(turns, i, key):
                raise BadRow(
                    LOST,
                    f"{self.name}the tokenizer's chat template leaves out the {key} of {name}, "
                    "which is learned; write it into the content as the model should write it, or "
                    "take the key out.",
                )

    def _leaves_out(self, turns: Turns, i: int, key: str) -> bool:
        """Whether the template writes the same text whatever this key of a turn holds."""
        other = turns[i] | {key: "0" if turns[i][key] == "1" else "1"}
        try:
            changed = self.written([*turns[:i], other, *turns[i + 1 :]])
        except BadRow:  # the template reads the value
            return False
        return changed == self.written(turns)

    def _check_learned(self, turn: dict[str, Any], before: str, text: str, name: str) -> None:
        """Refuse a template that does not write all of a turn that is learned.

        Its start, such as <think>, may already be in the text before it. White space may differ: a
        template may put line breaks around a thought.
        """
        content, before, text = ("".join(t.split()) for t in (turn["content"], before, text))
        if text.find(content, max(0, len(before) - max(0, len(content) - 1))) < 0:
            raise BadRow(
                LOST,
                f"{self.name}the tokenizer's chat template leaves out or changes the content of "
                f"{name}, which is learned (it may leave out thoughts); apply the template "
                "yourself and give rows of text.",
            )

    def _differs(self, *, earlier: bool) -> BadRow:
        if not earlier:
            return BadRow(
                REFUSED,
                f"{self.name}this chat template writes the prompt differently when a response "
                "follows it; apply the template yourself and give rows of text.",
            )
        return BadRow(
            EARLIER,
            f"{self.name}this chat template writes earlier turns differently when others follow "
            "(it may leave out their thoughts), so the assistant's turns cannot be told apart; "
            "give one row for each answer, with the turns before it as the prompt.",
        )

    def _without_end(self, text: str) -> str:
        """The text without the end of the last turn: `encode` writes it."""
        end = self.tokenizer.eos_token
        if end and text.rstrip().endswith(end):
            return text.rstrip().removesuffix(end)
        return text.removesuffix("\n")
