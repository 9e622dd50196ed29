"""Rows as tokens, checked before the first step.

A row can look good as text and still be of no use as tokens: too long for the model, cut so that
both sides of a pair are equal, or ended too early. One pass of the tokenizer finds such rows.
"""

import re
import warnings
from collections.abc import Iterable, Sequence
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerBase

from minirlhf.core.rollout import Score
from minirlhf.loops.row_report import RowReport
from minirlhf.models.adapters import BelowAdapter
from minirlhf.models.fit import check_fit
from minirlhf.models.forward import (
    Response,
    position_limit,
    prompt_tokens,
    response_tokens,
    special_tokens,
    template_tokens,
    text_of,
    without_end,
)
from minirlhf.runtime import check
from minirlhf.tasks.conversations import in_parts
from minirlhf.tasks.formats import check_columns
from minirlhf.tasks.prompts import prompt_texts
from minirlhf.tasks.reports import ORIGIN
from minirlhf.tasks.turns import TEXTS

WRITTEN = "Special tokens of the tokenizer are written in "  # start of a warning
CHUNK = 1000  # texts that are tokenised at once
TOO_LONG = "a sequence exceeds the positions"
NO_PROMPT = "the prompt has no tokens"
END_INSIDE = "the end token stands inside a response"
NOT_LEARNED = "no learned token is left after the cut at max_response"
UNKNOWN = "a text has characters that the tokenizer can only write as its end token"
SAME = "chosen and rejected are the same tokens"
SAME_CUT = "chosen and rejected are the same tokens after the cut at max_response"
LONG_PROMPT = "the prompt has more than max_prompt tokens"
ADVICE = {
    TOO_LONG: "leave out long prompts (--max-prompt, or fit_rows(max_prompt=...)), or give "
    "responses fewer tokens",
    NO_PROMPT: "give at least one token before the response",
    END_INSIDE: "give several turns as a conversation, or take the token out of the text",
    NOT_LEARNED: "raise --max-response (max_response) into the first turn that is learned",
    UNKNOWN: "write the text with characters that the tokenizer knows",
    SAME: "their texts differ only in what this tokenizer leaves out or does not know; change them",
    SAME_CUT: "raise --max-response (max_response) above the first difference",
}

AnyModel = nn.Module | BelowAdapter  # a model that reads rows


class _Text(NamedTuple):
    """What is known of a text once it is tokens."""

    length: int  # tokens, after the cut
    whole: int  # tokens before the cut
    cut: bool
    tokens: int  # hash of the tokens
    all_tokens: int  # hash of the tokens before the cut
    as_text: bool
    as_tokens: bool
    unknown: bool
    empty: bool
    end_inside: bool
    learned: bool  # a token after the cut has a loss
    noted: bool  # a report mentions it


def fit_rows(
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    model: AnyModel,
    *,
    max_response: int | None = None,
    max_new_tokens: int = 0,
    max_prompt: int | None = None,
    shifted: bool = False,
    responses: Sequence[str] = TEXTS[1:],
    skip_invalid: bool = False,
    others: dict[str, AnyModel] | None = None,
) -> tuple[Dataset, RowReport]:
    """The rows that can be trained on, and a report on all of them.

    Args:
        rows: standard rows: prompt, and completion or chosen and rejected if there are any. A
            column `row_of_file`, as `tasks.named_pairs` writes it, names the rows in messages.
        model: it reads the rows; its positions are the longest sequence.
        max_response: tokens after which a response is cut, EOS included.
        max_new_tokens: tokens that will be sampled after each prompt.
        max_prompt: leave out rows with prompts of more tokens. They are not cut: a part of a
            prompt is another prompt.
        shifted: each response is also read after the prompt of another row, as in KTO.
        responses: the columns of responses that will be read, where there are such columns.
        skip_invalid: leave out rows that cannot be used, instead of refusing them.
        others: further models that read the rows, by name (`also_reading`).

    Returns:
        (rows, report): the rows that are kept, without `row_of_file`, and what happens to which
        row.

    Raises:
        ValueError: these are no standard rows; a row cannot be used; or no row is left. A row
            cannot be used if it is longer than a model reads; if both sides of a pair are the same
            tokens; if an end token stands inside a response; if no learned token is left after the
            cut; or if the prompt has no tokens.
    """
    check("max_prompt", max_prompt, max_prompt is None or max_prompt >= 1, "at least 1")
    check("max_response", max_response, max_response is None or max_response >= 1, "at least 1")
    prompts, answers = read_rows(rows, tokenizer, responses, max_response)
    limit, shortest = shortest_reader(model, others)
    origin = list(rows[ORIGIN]) if ORIGIN in rows.column_names else []
    report = RowReport(len(prompts), numbers=[row["row"] for row in origin])
    report.source = origin[0]["source"] if origin else ""
    written = [row["chat"] for row in origin] or [False] * len(prompts)
    report.max_response, report.positions, report.reader = max_response, limit, shortest
    rooms = rooms_of(answers, len(prompts), max_new_tokens, shifted=shifted)
    faults: dict[str, list[int]] = {}
    for i, (prompt, *sides) in enumerate(zip(prompts, *answers.values(), strict=True)):
        room = rooms[i]
        why = _fault(prompt, sides, len(answers) == 2, limit and limit - room)
        if max_prompt and prompt.length > max_prompt:
            report.dropped.setdefault(LONG_PROMPT, []).append(i)
        elif why:
            faults.setdefault(why, []).append(i)
        elif any(text.noted for text in (prompt, *sides)):
            _note(report, i, [prompt, *sides], written=written[i])
    if faults and not skip_invalid:
        why, which = next(iter(faults.items()))
        advice = f"{ADVICE[why]}, or leave the row{'s' * (len(which) > 1)} out."
        if why == TOO_LONG:
            length = prompts[which[0]].length + rooms[which[0]]
            why = f"a sequence of {length} tokens, EOS included, exceeds the {limit} positions"
            why += f" of the {shortest}"
        which_rows = report.named(which)
        start = f"{report.source}, {which_rows}" if report.source else which_rows.capitalize()
        raise ValueError(f"{start} ({len(which):,} of {len(prompts):,}): {why}; {advice}")
    report.dropped |= {
        f"{why} of the {shortest}" if why == TOO_LONG else why: which
        for why, which in faults.items()
    }
    if not report.kept:
        raise ValueError(f"No row is left to train on: {str(report).splitlines()[0]}")
    left_out = {i for which in report.dropped.values() for i in which}
    kept = [i for i in range(len(prompts)) if i not in left_out]
    report.chat = all(written[i] or prompts[i].as_tokens for i in kept)
    first = kept[0]
    shown = rows[first : first + 1]
    texts = {name: in_parts(shown, name)[0] for name in answers}
    report.longest = max((column[i].whole for column in answers.values() for i in kept), default=0)
    whole = rooms_of(answers, len(prompts), max_new_tokens, shifted=shifted, cut=False)
    report.too_long = [i for i in kept if limit and prompts[i].length + whole[i] > limit]
    seen = _as_read(tokenizer, shown["prompt"][0], texts, max_response)
    report.example = f"{report.named([first]).capitalize()} as the model reads it: {seen}."
    if left_out:
        rows = rows.select(kept)
    return rows.remove_columns(ORIGIN) if origin else rows, report


def read_rows(
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    responses: Sequence[str],
    max_response: int | None,
) -> tuple[list["_Text"], dict[str, list["_Text"]]]:
    """What is known of each prompt, and of each response by its column, as tokens.

    Raises:
        ValueError: these are no standard rows, or there are none.
    """
    check("rows to train on", len(rows), len(rows) > 0, "at least 1")
    names = getattr(rows, "column_names", [])
    check_columns(rows, "prompt", *(name for name in responses if name in names))
    given = rows[:]
    prompts = _Reader(tokenizer, None).prompts(given["prompt"])
    reader = _Reader(tokenizer, max_response)
    columns = [name for name in responses if name in given]
    return prompts, {name: reader.responses(in_parts(given, name)) for name in columns}


def shortest_reader(
    model: AnyModel, others: dict[str, AnyModel] | None = None
) -> tuple[int | None, str]:
    """(the longest sequence that all models read, the name of the model that reads no longer one).

    The length is None where no model has a limit. `model` is named "model".
    """
    limits = {name: position_limit(m) for name, m in ({"model": model} | (others or {})).items()}
    known = {name: limit for name, limit in limits.items() if limit}
    name = min(known, key=lambda name: known[name], default="model")
    return known.get(name), name


def rooms_of(
    answers: dict[str, list["_Text"]],
    count: int,
    max_new_tokens: int,
    *,
    shifted: bool,
    cut: bool = True,
) -> list[int]:
    """How many tokens follow the prompt of each row: a response, written or sampled, with its EOS.

    Args:
        answers: the responses by their column. count: of rows.
        shifted: each response is also read after the prompt of another row.
        cut: after the cut at max_response, else whole.
    """
    sampled = max_new_tokens and max_new_tokens + 1  # and EOS
    sides = [[text.length if cut else text.whole for text in texts] for texts in answers.values()]
    rooms = (
        [max([sampled, *row]) for row in zip(*sides, strict=True)] if sides else [sampled] * count
    )
    return [max(rooms)] * count if shifted else rooms


def check_tokens(
    rows: Dataset | Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    model: AnyModel,
    *,
    max_response: int | None = None,
    max_new_tokens: int = 0,
    shifted: bool = False,
    others: dict[str, AnyModel] | None = None,
) -> RowReport:
    """Refuse rows (or prompts) that cannot be used, before the first step; see `fit_rows`.

    Raises:
        ValueError: as `fit_rows`; or a model lacks a token of the tokenizer, or there is no EOS.

    Warns:
        UserWarning: a special token of the tokenizer is written in a text, and read as text; or
            half of the rows have a response that is cut at max_response.
    """
    if not isinstance(rows, Dataset):
        rows = Dataset.from_dict({"prompt": prompt_texts(rows, tokenizer)})
    if not len(rows):
        return RowReport(0)  # the loop itself says so
    for each in (model, *(others or {}).values()):
        if isinstance(each, nn.Module) and hasattr(each, "get_input_embeddings"):
            check_fit(each, tokenizer)
    _, report = fit_rows(
        rows,
        tokenizer,
        model,
        max_response=max_response,
        max_new_tokens=max_new_tokens,
        shifted=shifted,
        others=others,
    )
    if 2 * len(report.cut) >= report.kept:
        warnings.warn(report.cut_said, stacklevel=3)
    if report.as_text:
        warnings.warn(
            f"{WRITTEN}{report.named(report.as_text)} and are read as text, because the "
            "tokenizer's chat template does not write them.",
            stacklevel=3,
        )
    return report


def also_reading(score: Score | None = None, **models: AnyModel | None) -> dict[str, AnyModel]:
    """The models besides the policy that read a loop's batches, by their names in messages.

    Args:
        score: its reward model is one of them, if `rewards.rollout_score` made the score.
        models: others by name; None for one that is not there or is a copy of the policy.
    """
    scorer = getattr(score, "model", None)
    models["reward model"] = scorer.backbone if scorer is not None else None
    return {name: model for name, model in models.items() if model is not None}


def _as_read(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    responses: dict[str, Response],
    max_response: int | None,
) -> str:
    """A prompt and its responses, decoded from their tokens and shortened, with \\n for a line end.

    Of a response in parts, those that the assistant wrote are named too.
    """
    said = [f"prompt {_shown(text_of(tokenizer, prompt_tokens(tokenizer, [prompt])[0]))}"]
    for name, response in responses.items():
        (ids,), (own,) = response_tokens(tokenizer, [response], max_response=max_response)
        said.append(f"{name} {_shown(text_of(tokenizer, ids))}")
        if not all(own):
            runs = groupby(zip(own, ids, strict=True), key=itemgetter(0))
            turns = [[i for _, i in run] for wrote, run in runs if wrote]
            shown = ", ".join(_shown(text_of(tokenizer, turn)) for turn in turns)
            said.append(f"of which the assistant wrote {shown}")
    return "; ".join(said)


def _shown(text: str, most: int = 200) -> str:
    return repr(text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 2 :]}")


class _Reader:
    """Reads texts as tokens, equal texts once, and says what the tokenizer makes of them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_response: int | None) -> None:
        self.tokenizer, self.max_response = tokenizer, max_response
        self.ours = {} if tokenizer.split_special_tokens else template_tokens(tokenizer)
        foreign = [re.escape(t) for t in special_tokens(tokenizer) if t not in self.ours]
        self.foreign = re.compile("|".join(foreign)) if foreign else None
        self.known: dict[str | tuple, _Text] = {}  # responses read so far

    def prompts(self, texts: list[str]) -> list[_Text]:
        bos = self.tokenizer.bos_token or ""
        known = {}
        for part in _chunks(list(dict.fromkeys(texts))):
            for text, ids in zip(part, prompt_tokens(self.tokenizer, part), strict=True):
                body = ids[1:] if ids[:1] == [self.tokenizer.bos_token_id] else ids
                known[text] = self._read(text.removeprefix(bos), ids, body)
        return [known[text] for text in texts]

    def responses(self, texts: list[Response]) -> list[_Text]:
        keys = [text if isinstance(text, str) else tuple(text) for text in texts]
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in self.known}
        for part in _chunks(list(new.items())):
            tokens, chosen = response_tokens(self.tokenizer, [text for _, text in part])
            for (key, text), ids, own in zip(part, tokens, chosen, strict=True):
                whole = text if isinstance(text, str) else "".join(piece for piece, _ in text)
                read = self._read(without_end(self.tokenizer, whole), ids, ids[:-1])
                empty = len(ids) == 1
                ends = self.tokenizer.eos_token_id in ids[:-1] and isinstance(text, str)
                self.known[key] = read._replace(
                    empty=empty,
                    end_inside=ends,
                    learned=any(own[: self.max_response]),
                    noted=read.noted or empty,
                )
        return [self.known[key] for key in keys]

    def _read(self, text: str, ids: list[int], body: list[int]) -> _Text:
        """`body` holds the tokens of the text itself, without BOS and EOS around it."""
        tokenizer, kept = self.tokenizer, ids[: self.max_response]
        stands_for = {
            tokenizer.unk_token_id: tokenizer.unk_token,
            tokenizer.eos_token_id: tokenizer.eos_token,
        }
        unwritten = [i for i, token in stands_for.items() if i in body and token not in text]
        cut = len(kept) < len(ids)
        as_text = self.foreign is not None and self.foreign.search(text) is not None
        as_tokens = any(token in text for token in self.ours)
        return _Text(
            length=len(kept),
            whole=len(ids),
            cut=cut,
            tokens=hash(tuple(kept)),
            all_tokens=hash(tuple(ids)),
            as_text=as_text,
            as_tokens=as_tokens,
            unknown=bool(unwritten),
            empty=False,
            end_inside=tokenizer.eos_token_id in unwritten,
            learned=True,
            noted=cut or as_text or as_tokens or bool(unwritten),
        )


def _chunks(texts: list) -> Iterable[list]:
    return (texts[start : start + CHUNK] for start in range(0, len(texts), CHUNK))


def _fault(prompt: _Text, sides: list[_Text], pair: bool, room: int | None) -> str | None:
    """Why a row cannot be used; None if it can. `room` is the longest prompt that fits."""
    if prompt.length == 0:
        return NO_PROMPT
    if room is not None and prompt.length > room:
        return TOO_LONG
    if any(text.end_inside for text in (prompt, *sides)):
        odd = any(text.end_inside and text.unknown for text in (prompt, *sides))
        return UNKNOWN if odd else END_INSIDE
    if pair and sides[0].tokens == sides[1].tokens:
        return SAME if sides[0].all_tokens == sides[1].all_tokens else SAME_CUT
    if not all(text.learned for text in sides):
        return NOT_LEARNED
    return None


def _note(report: RowReport, i: int, texts: list[_Text], *, written: bool) -> None:
    """Note what a report says of a row that is kept; `written`: by the chat template."""
    for found in ("cut", "as_text", "as_tokens", "unknown", "empty"):
        ours = written and found == "as_tokens"  # the template's own tokens
        if not ours and any(getattr(text, found) for text in texts):
            getattr(report, found).append(i)
