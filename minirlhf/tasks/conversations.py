"""Conversations: lists of turns {"role", "content"}, checked and written as text.

A row of text has one string for each response. A response of several turns has a second column,
such as `chosen_spans`: the [start, end) characters of the turns that the assistant wrote. The
user's turns between them are read by the policy and have no loss.
"""

import re
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from minirlhf.runtime import check_text
from minirlhf.tasks.lines import BadRow

TEXTS = ("prompt", "completion", "chosen", "rejected")
ASSISTANT = "assistant"
LEARNED = (None, True, 1)  # values of the keys `weight` and `train` of a turn that is learned
NOT_LEARNED = (False, 0)
SPANS = "_spans"  # end of the name of the column with the assistant's turns
THOUGHTS = ("reasoning_content", "thinking", "reasoning")  # keys of a turn, besides its content
Turns = list[dict[str, Any]]

# kinds of bad rows, as the report names them
NO_TALK = "no conversation"
ORDER = "turns in an order that gives nothing to learn"
SPECIAL = "a special token written in a turn"
NO_CALLS = "calls of tools that the chat template does not write"
REFUSED = "a conversation that the chat template cannot write"
LOST = "a turn that the chat template leaves out or changes"
EARLIER = "earlier turns that the chat template writes differently when others follow"
NO_WEIGHT = "a weight that is not 1 or 0, or is 0 in the last turn"

# what is unusual about rows that are used
TOOL_LOST = "the chat template leaves out a tool's turn"
THOUGHT_LOST = "the chat template leaves out a thought in a turn that is only read"
TURN_LOST = "the chat template leaves out or changes a turn of the assistant that is only read"


def is_conversation(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(turn, dict) and {"role", "content"} <= turn.keys() for turn in value
    )


def check_turns(row: Mapping[str, Any], where: str) -> None:
    """Check that a list in a text column, and every value of `messages`, is a conversation.

    Args:
        where: start of an error message, for example "Row 3: ".

    Raises:
        ValueError: it is not, it has no turn, a turn has no text, the turns are in an order that
            gives nothing to learn, or chosen and rejected are not of one kind.
    """
    row = {name: row[name] for name in ("messages", *TEXTS) if name in row}
    for name, value in row.items():
        if not isinstance(value, list) and name != "messages":
            check_text(value, f"{where}{name}")
            continue
        least = 2 if name == "messages" else 1
        if not is_conversation(value) or len(value) < least:
            raise BadRow(
                NO_TALK,
                f"{where}{name} is {str(value)[:60]!r}; it must be a list of turns, {least} or "
                "more, each with role and content.",
            )
        for turn in value:
            check_text(turn["role"], f"{where}a role in {name}")
            text_of_turn(turn, f"{where}a content in {name}")
    if {"chosen", "rejected"} <= row.keys():
        kinds = {isinstance(row[name], list) for name in ("chosen", "rejected")}
        if len(kinds) == 2:
            raise BadRow(
                "text beside a conversation",
                f"{where}one of chosen and rejected is text and the other a conversation; give "
                "both in the same form.",
            )
    for name, value in row.items():
        if isinstance(value, list):
            _check_order(value, f"{where}{name}", answer=name != "prompt")


def text_of_turn(turn: dict[str, Any], name: str) -> str:
    """The text of a turn's content: of its parts, if it has parts {"type": "text", "text": ...}.

    A turn that only calls tools has no content; its text is empty.

    Raises:
        ValueError: the content is no text, or holds parts that are not text, such as images.
    """
    content = turn["content"]
    if content is None and turn.get("tool_calls"):
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
            ORDER,
            f"{name} ends with a turn of role {roles[-1]!r}; it must end with the assistant's "
            "turn, which is what is learned. Leave the last turn out.",
        )
    for i, (one, two) in enumerate(zip(roles, roles[1:], strict=False)):
        if one == two == ASSISTANT:
            raise BadRow(
                ORDER,
                f"{name}: turns {i} and {i + 1} are both the assistant's; join them to one turn.",
            )


def render(
    row: dict, texts: list[str], template: "PreTrainedTokenizerBase | Template", name: str = ""
) -> dict[str, Any]:
    """The texts of a conversation, written with the tokenizer's chat template.

    Args:
        row: its values are conversations, or texts: of the user in `prompt`, else of the assistant.
        texts: the columns to write, `prompt` first.
        template: the tokenizer, or for many rows a `Template` of it.
        name: start of an error message, for example "Row 3: ".

    Returns:
        A text for each column. A response of several turns also has NAME_spans: the characters of
        the assistant's turns, their ends included.

    Raises:
        ValueError: the template cannot write the conversation, writes it in a way from which the
            assistant's turns cannot be told, or a content holds special tokens of the tokenizer.
    """
    if not isinstance(template, Template):
        template = Template(template)
    template.name, template.noted = name, []
    asked = template.turns(row["prompt"], "user", "prompt")
    if not asked:
        raise BadRow(ORDER, f"{name}there is no turn before the answer, so there is no prompt.")
    if asked[-1]["role"] == ASSISTANT:
        raise BadRow(
            ORDER,
            f"{name}the prompt ends with the assistant's turn, and another would follow; it must "
            "end with the turn that the assistant answers.",
        )
    prompt = template.prompt(asked)
    rendered: dict[str, Any] = {"prompt": prompt}
    for column in texts[1:]:
        reply = template.turns(row[column], ASSISTANT, column)
        # ultrafeedback repeats the prompt in both texts
        reply = reply[len(asked) :] if reply[: len(asked)] == asked else reply
        if not reply or reply[0]["role"] != ASSISTANT:
            found = f"role {reply[0]['role']!r}" if reply else "no turn"
            raise BadRow(
                ORDER,
                f"{name}the answer in {column} begins with {found}; it must begin with a turn "
                "of role 'assistant'.",
            )
        rendered |= template.response(asked, reply, column, prompt)
    return rendered


def answer(row: dict[str, Any], name: str, to: str = "completion") -> dict[str, Any]:
    """The response `name` of a row, and its spans if it has them, under another name."""
    return {to + end: row[name + end] for end in ("", SPANS) if name + end in row}


def in_parts(rows: dict[str, list], name: str) -> list[str | list[tuple[str, bool]]]:
    """The responses of some rows, as `models.forward.encode` takes them.

    A response with spans is in parts: (text, whether the assistant wrote it).
    """
    spans = rows.get(name + SPANS) or [None] * len(rows[name])
    return [_parts(text, of) if of else text for text, of in zip(rows[name], spans, strict=True)]


def _parts(text: str, spans: list[list[int]]) -> list[tuple[str, bool]]:
    """The text from span to span, and what stands between them. The last span ends the text."""
    parts, end = [], 0
    for start, stop in spans:
        parts += [(text[end:start], False)] * (start > end) + [(text[start:stop], True)]
        end = stop
    return parts


class Template:
    """The chat template of a tokenizer.

    Attributes:
        name: start of an error message, for example "Row 3: ".
        noted: what is unusual about the row that `render` wrote last, for its report.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer, self.name = tokenizer, ""
        self.noted: list[str] = []
        tokens = tokenizer.added_tokens_decoder.values()
        special = "|".join(re.escape(token.content) for token in tokens if token.special)
        self.special = re.compile(special) if special else None
        # if the tokenizer adds BOS itself, remove the template's BOS
        adds = tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]
        self.bos = (tokenizer.bos_token or "") if adds else ""

    def turns(self, value: str | Turns, role: str, column: str) -> list[dict[str, Any]]:
        """A conversation as templates expect it: contents are text, and no key's value is None.

        A text is one turn of this role.

        Raises:
            ValueError: a content holds a special token, which would be read as the template's own,
                or a turn calls tools and the template does not write such calls.
        """
        turns = value if is_conversation(value) else [{"role": role, "content": value}]
        assert isinstance(turns, list)
        name, found = f"{self.name}{column}", []
        for i, turn in enumerate(turns):
            text = text_of_turn(turn, f"{name}: the content of turn {i}")
            if self.special and (written := self.special.search(text)):
                raise BadRow(
                    SPECIAL,
                    f"{name}: turn {i} has {written[0]!r} written in its content, which this "
                    "tokenizer reads as a special token; change the text, or leave the row out.",
                )
            if turn.get("tool_calls") and "tool_calls" not in str(self.tokenizer.chat_template):
                raise BadRow(
                    NO_CALLS,
                    f"{name}: turn {i} calls tools, and the tokenizer's chat template does not "
                    "write such calls; leave the row out, or use a model whose template does.",
                )
            found.append(_without_none(turn) | {"content": text})
        return found

    def written(self, turns: Turns, *, ask: bool = False) -> str:
        """The turns as text; with `ask`, up to where the assistant's next turn begins."""
        try:
            text = self.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=ask
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

    def response(self, asked: Turns, reply: Turns, column: str, prompt: str) -> dict[str, Any]:
        """The text after the prompt, and the characters in it that the assistant wrote."""
        turns, first = [*asked, *reply], len(asked)
        whole = self.written(turns)
        self._check_whole(turns, whole)
        spans: list[list[int]] = []
        for i in [i for i in range(first, len(turns)) if turns[i]["role"] == ASSISTANT]:
            before = prompt if i == first else self.written(turns[:i], ask=True)
            after = whole if i + 1 == len(turns) else self.written(turns[: i + 1])
            if not (whole.startswith(before) and whole.startswith(after.rstrip())):
                raise self._differs(earlier=i > first or whole.startswith(before))
            learned = _is_learned(turns[i], f"{self.name}turn {i - first} of {column}")
            if learned:
                self._check_thought(turns, i, f"turn {i - first} of {column}")
                written = whole[: len(after)]
                self._check_learned(turns[i], before, written, f"turn {i - first} of {column}")
                spans.append([len(before) - len(prompt), len(after.rstrip()) - len(prompt)])
            elif i + 1 == len(turns):
                raise BadRow(
                    NO_WEIGHT,
                    f"{self.name}the last turn of {column} has a weight of 0, so nothing is "
                    "learned there; end the conversation before it.",
                )
        self._note_lost(turns, first, whole)
        text = self._without_end(whole[len(prompt) :])
        if len(reply) == 1:
            return {column: text}
        spans[-1][1] = len(text)
        return {column: text, column + SPANS: spans}

    def _check_whole(self, turns: Turns, text: str) -> None:
        """Refuse a template that does not write the turns of the system and the user."""
        for i, turn in enumerate(turns):
            if turn["role"] not in (ASSISTANT, "tool") and turn["content"].strip() not in text:
                raise BadRow(
                    LOST,
                    f"{self.name}the tokenizer's chat template leaves out or changes turn {i}, "
                    f"of role {turn['role']!r}; use roles that the template writes.",
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
            if turn["role"] == ASSISTANT and (not start or not _is_learned(turn, self.name)):
                if any(turn.get(key) and self._leaves_out(turns, i, key) for key in THOUGHTS):
                    self.noted.append(THOUGHT_LOST)
                if "".join(turn["content"].split()) not in text:
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


def _is_learned(turn: dict[str, Any], name: str) -> bool:
    """Whether a turn of the assistant is learned, by its keys `weight` (0 or 1) and `train`."""
    for key in ("weight", "train"):
        value = turn.get(key)
        if value not in (*LEARNED, *NOT_LEARNED):
            raise BadRow(
                NO_WEIGHT,
                f"{name} has the {key} {value!r}; it must be 1 (learned) or 0 (only read).",
            )
    return turn.get("weight") not in NOT_LEARNED and turn.get("train") not in NOT_LEARNED


def _without_none(value: Any) -> Any:
    """The same value without the keys that hold None: a table gives each turn every key."""
    if isinstance(value, dict):
        return {key: _without_none(v) for key, v in value.items() if v is not None}
    return [_without_none(v) for v in value] if isinstance(value, list) else value
