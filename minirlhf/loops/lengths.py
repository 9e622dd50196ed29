"""How long rows are as tokens, before a run: which --max-response and --max-prompt they need."""

from collections.abc import Sequence

import pandas
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from minirlhf.loops.rows import AnyModel, read_rows, rooms_of, shortest_reader
from minirlhf.tasks.turns import TEXTS


def row_lengths(
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    model: AnyModel,
    *,
    max_response: int | None = None,
    max_new_tokens: int = 0,
    max_prompt: int | None = None,
    shifted: bool = False,
    responses: Sequence[str] = TEXTS[1:],
    others: dict[str, AnyModel] | None = None,
) -> pandas.DataFrame:
    """The lengths of prompts and responses in tokens, and the limits that would change none.

    Args:
        rows, tokenizer, model: and all others, as in `fit_rows`.

    Returns:
        A row for `prompts` and, if there are any, one for `responses` (those of a pair are two).
        The columns:

        median, p95, longest: tokens; of responses uncut, EOS included.
        limit: max_prompt or max_response; missing where there is none.
        over: rows with a text above the limit. Their prompt is left out, their response is cut.
        smallest: the smallest limit that would change no row; missing where the model's positions
        allow none. For responses, rows whose prompt is above max_prompt do not count.

    Raises:
        ValueError: these are no standard rows, or there are none.
    """
    prompts, answers = read_rows(rows, tokenizer, responses, max_response)
    positions, _ = shortest_reader(model, others)
    lengths = [prompt.length for prompt in prompts]
    rooms = {
        cut: rooms_of(answers, len(prompts), max_new_tokens, shifted=shifted, cut=cut)
        for cut in (True, False)
    }

    def fits(i: int, *, cut: bool) -> bool:
        return positions is None or lengths[i] + rooms[cut][i] <= positions

    kept = [i for i, length in enumerate(lengths) if max_prompt is None or length <= max_prompt]
    every = all(fits(i, cut=True) for i in range(len(prompts)))
    table = {"prompts": _described(lengths, max_prompt, len(prompts) - len(kept), every)}
    if answers:
        sides = list(zip(*answers.values(), strict=True))
        whole = [text.whole for i in kept for text in sides[i]]
        over = sum(any(text.cut for text in sides[i]) for i in kept)
        every = all(fits(i, cut=False) for i in kept)
        table["responses"] = _described(whole, max_response, over, every)
    found = pandas.DataFrame.from_dict(table, orient="index")
    return found.astype(dict.fromkeys(("longest", "limit", "over", "smallest"), "Int64"))


def _described(lengths: list[int], limit: int | None, over: int, possible: bool) -> dict:
    """A row of the table. possible: the model can read all of them whole."""
    numbers = pandas.Series(lengths, dtype=float)
    longest = max(lengths, default=0)
    return {
        "median": numbers.median(),
        "p95": numbers.quantile(0.95),
        "longest": longest,
        "limit": limit,
        "over": over,
        "smallest": longest if possible else None,
    }
