"""Tokenised batches, and their logits, log-probabilities, scores and values under a model.

Logits are computed only at the positions that predict a response token.

Batches are made on the CPU. A model reads a batch on the model's own device, and what it says about
the tokens comes back to the batch's device: log-probabilities, scores and values. So a loss is
computed on the CPU, from a few numbers per token, wherever the model is.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedTokenizerBase

from minirlhf.core.logprobs import response_logprobs, response_slice
from minirlhf.core.rollout import Rollout
from minirlhf.models.adapters import BelowAdapter, LanguageModel
from minirlhf.models.fit import embedding_rows
from minirlhf.runtime import check, check_text

if TYPE_CHECKING:  # heads.py imports this file
    from minirlhf.models.heads import ScalarModel


# a response as text, or in parts: (text, whether the policy wrote it)
# a text, or parts of text or of token ids, and whether the policy wrote them
Response = str | list[tuple[str | list[int], bool]]
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The special tokens of a tokenizer, and their ids: `<|endoftext|>`, `<|im_end|>`, `[SEP]`."""
    added = {t.content: i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    named = zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
    return added | dict(named)


def template_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The special tokens that the tokenizer's chat template writes, and their ids.

    Written in a text, they are tokens: the text may be what the template wrote. Other special
    tokens in a text are text (`text_tokens`).
    """
    template = getattr(tokenizer, "chat_template", None) or ""
    source = template if isinstance(template, str) else " ".join(map(str, template.values()))
    named = {getattr(tokenizer, name, None) for name in NAMED if name in source}
    return {t: i for t, i in special_tokens(tokenizer).items() if t in source or t in named}


def text_tokens(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Token ids of each text, without the tokens that a tokenizer adds around a text.

    A special token that is written in a text is text, like any other characters. So a response that
    explains `<|endoftext|>` does not end there. The special tokens of the tokenizer's chat template
    are tokens, because you may have applied the template yourself. With
    `tokenizer.split_special_tokens = True` these are text too.

    transformers would warn of texts that are longer than its model_max_length (verbose=False keeps
    it quiet): too long a row is refused, left out or cut by us, who say so.
    """
    if not texts:
        return []
    rows = tokenizer(texts, add_special_tokens=False, verbose=False).input_ids
    ours = template_tokens(tokenizer)
    foreign = set(special_tokens(tokenizer).values()) - set(ours.values())
    for i, row in enumerate(rows):
        if not foreign.isdisjoint(row):
            rows[i] = _spelled(tokenizer, texts[i], ours)
    return rows


def _spelled(tokenizer: PreTrainedTokenizerBase, text: str, kept: dict[str, int]) -> list[int]:
    """The token ids of a text whose special tokens are spelled out, except those in `kept`."""
    parts = re.split("(" + "|".join(map(re.escape, kept)) + ")", text) if kept else [text]
    ids: list[int] = []
    for part in parts:
        if part in kept and not tokenizer.split_special_tokens:
            ids.append(kept[part])
        elif part:
            spelled = tokenizer(
                part, add_special_tokens=False, split_special_tokens=True, verbose=False
            )
            ids += spelled.input_ids
    return ids


def spelled_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text in which every special token is text, also those of a template."""
    return _spelled(tokenizer, text, {})


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, prompts: list[str]) -> list[list[int]]:
    """Token ids of each prompt, as a policy reads it.

    What the tokenizer puts before a text stays (BOS, for example), but it is not doubled where the
    prompt begins with it. What the tokenizer puts behind a text is left out: a policy that reads an
    end of text (EOS) would answer after the end.
    """
    whole = tokenizer("a").input_ids
    bare = tokenizer("a", add_special_tokens=False).input_ids
    starts = range(len(whole) - len(bare) + 1)
    start = next((i for i in starts if whole[i : i + len(bare)] == bare), 0)
    before, bos, bos_id = whole[:start], tokenizer.bos_token, tokenizer.bos_token_id
    begun = [bos is not None and prompt.startswith(bos) for prompt in prompts]
    texts = [p[len(bos or "") :] if b else p for p, b in zip(prompts, begun, strict=True)]
    with_bos = before if bos_id in before else [*before, bos_id]
    return [
        [*(with_bos if b else before), *row]
        for b, row in zip(begun, text_tokens(tokenizer, texts), strict=True)
    ]


def without_end(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """The text of a response without an EOS at its end and the white space behind that."""
    return re.sub(rf"(?:{re.escape(tokenizer.eos_token)}\s*)+\Z", "", text)


def response_tokens(
    tokenizer: PreTrainedTokenizerBase,
    responses: Sequence[Response],
    *,
    max_response: int | None = None,
    append_eos: bool = True,
) -> tuple[list[list[int]], list[list[bool]]]:
    """Token ids of each response, which ends in one EOS, and which of them the policy wrote.

    An EOS at the end of the text, and white space behind it, is the end of the response. A response
    of more than max_response tokens is cut and has no EOS. A part of token ids is taken as it is.

    Args:
        append_eos: False: a response gets no EOS, except where its text ends in one.

    Raises:
        ValueError: the tokenizer has no EOS.
    """
    eos = tokenizer.eos_token_id
    check("The tokenizer's eos_token_id", eos, eos is not None, "the token that ends a response")
    parts: list[list[tuple[str | list[int], bool]]] = [
        [(r, True)] if isinstance(r, str) else list(r) for r in responses
    ]
    ended = []  # whether the response gets an EOS
    for row in parts:
        last, own = row[-1]
        text = without_end(tokenizer, last) if isinstance(last, str) else last
        ended.append(append_eos or text != last)
        row[-1] = (text, own)
    texts = [part for row in parts for part, _ in row if isinstance(part, str)]
    read = iter(text_tokens(tokenizer, texts))
    ids, chosen = [], []
    for row, ends in zip(parts, ended, strict=True):
        pairs = [
            (i, own) for part, own in row for i in (next(read) if isinstance(part, str) else part)
        ]
        pairs = [*pairs, *[(eos, row[-1][1])] * ends][:max_response]
        ids.append([i for i, _ in pairs])
        chosen.append([own for _, own in pairs])
    return ids, chosen


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: list[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokenise prompts (see `prompt_tokens`) and pad them on the left.

    Returns:
        prompt_ids (B, P) and prompt_mask (B, P), True at real tokens.

    Raises:
        ValueError: there are no prompts, or a prompt is not text or has no tokens. The first
            response token needs a token before it.
    """
    if isinstance(prompts, str):  # its letters would be read as prompts
        raise ValueError(f"prompts is {prompts[:60]!r}; it must be a list of texts: [prompt].")
    for prompt in prompts:
        check_text(prompt, "The prompt")
    ids = prompt_tokens(tokenizer, list(prompts))
    if not ids or min(map(len, ids)) == 0:
        raise ValueError(
            f"There are {len(ids)} prompts, "
            f"the shortest of {min(map(len, ids), default=0)} tokens; give "
            "at least one prompt, each of at least one token."
        )
    return left_padded(ids)


def left_padded(ids: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids of several prompts, padded on the left, and the mask of real tokens, both (B, P)."""
    width = max(map(len, ids))
    padded = [[0] * (width - len(row)) + row for row in ids]  # every model has an id 0
    mask = [[False] * (width - len(row)) + [True] * len(row) for row in ids]
    return torch.tensor(padded, device="cpu"), torch.tensor(mask, device="cpu")


def encode(
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    responses: Sequence[Response],
    *,
    max_response: int | None = None,
    append_eos: bool = True,
) -> Rollout:
    """Tokenise prompts and written responses as a Rollout.

    Each response ends in one EOS. Special tokens that are written in a text are text, except those
    of the tokenizer's chat template (see `text_tokens`). old_logprobs are 0, because no policy
    sampled these responses. Prompt and response are tokenised separately, so the prompt's tokens
    are always the first tokens of the sequence.

    Args:
        prompts: B texts.
        responses: B texts. A response in parts, (text, whether the policy wrote it), is tokenised
            part by part. A part may also be a list of token ids, as they were sampled, without the
            EOS. Parts of others, such as a user's next turn, are not in `action_mask`.
        max_response: most tokens of a response, EOS included. A longer response is cut and has no
            EOS.
        append_eos: False for responses that are not finished, such as a single step of a solution:
            a response gets no EOS, except where its text ends in one.

    Raises:
        ValueError: a prompt is empty, something is not text, max_response is below 1, or the
            tokenizer has no EOS.
    """
    check("max_response", max_response, max_response is None or max_response >= 1, "at least 1")
    for response in responses:
        for part in [p for p, _ in response] if isinstance(response, list) else [response]:
            if not isinstance(part, list):
                check_text(part, "The response")
    prompt_ids, prompt_mask = encode_prompts(tokenizer, prompts)
    ids, chosen = response_tokens(
        tokenizer, responses, max_response=max_response, append_eos=append_eos
    )
    width = max(map(len, ids))
    padded = [row + [0] * (width - len(row)) for row in ids]
    mask = [[True] * len(row) + [False] * (width - len(row)) for row in ids]
    actions = [row + [False] * (width - len(row)) for row in chosen]
    response_ids, response_mask, action_mask = (
        torch.tensor(x, device="cpu") for x in (padded, mask, actions)
    )
    nothing = torch.zeros(response_ids.shape, device="cpu")
    return Rollout(prompt_ids, prompt_mask, response_ids, response_mask, nothing, action_mask)


def device_of(model: torch.nn.Module | BelowAdapter) -> torch.device:
    """The device of a model's weights (of the first, where they are on several).

    A model without weights, such as a table of answers, counts as being on the CPU.
    """
    weights = next(model.parameters(), None) if hasattr(model, "parameters") else None
    return torch.device("cpu") if weights is None else weights.device


def decode(tokenizer: PreTrainedTokenizerBase, rollout: Rollout) -> list[str]:
    """The responses as text, without EOS and padding."""
    rows = zip(rollout.response_ids, rollout.response_mask, strict=True)
    return [text_of(tokenizer, ids[mask], skip_special_tokens=True) for ids, mask in rows]


def text_of(
    tokenizer: PreTrainedTokenizerBase, ids: torch.Tensor | list[int], **options: bool
) -> str:
    """The text of one row of token ids; options as `tokenizer.decode` has them."""
    text = tokenizer.decode(ids, **options)
    return text  # type: ignore[return-value]  # it would be a list for several rows


def policy_logits(model: LanguageModel, rollout: Rollout) -> torch.Tensor:
    """Logits (B, R, V) that predict the response tokens, on the model's device.

    Column t is computed from the tokens before response token t.

    Raises:
        ValueError: a sequence is longer than the model can read, or holds a token it lacks.
    """
    _check_readable(model, rollout)
    rollout, width = rollout.to(device_of(model)), rollout.response_ids.shape[1]
    logits = model(
        input_ids=rollout.sequences,
        attention_mask=rollout.attention_mask.long(),
        position_ids=rollout.position_ids,
        use_cache=False,
        logits_to_keep=width + 1,
    ).logits
    # the model returned the last R + 1 of T positions, as if the prompt had one token
    return response_slice(logits, 1)


def policy_logprobs(
    model: LanguageModel, rollout: Rollout, *, temperature: float = 1.0
) -> torch.Tensor:
    """Log-probabilities (B, R) of the response tokens under `model`, in nats.

    They are 0 where `action_mask` is False: at padding, and at tokens that the policy did not
    choose.

    Args:
        temperature: divides the logits. Use the temperature at which the responses were sampled.

    Raises:
        ValueError: a sequence is longer than the model can read, or the temperature is not above 0.
    """
    logits = policy_logits(model, rollout)
    ids, mask = (x.to(logits.device) for x in (rollout.response_ids, rollout.action_mask))
    return response_logprobs(logits, ids, mask, temperature=temperature).to(rollout.device)


def token_scores(model: "ScalarModel", rollout: Rollout) -> torch.Tensor:
    """Scores (B, T) of a ScalarModel at every position of prompt and response.

    Raises:
        ValueError: a sequence is longer than the model can read, or holds a token it lacks.
    """
    _check_readable(model.backbone, rollout)
    read = rollout.to(device_of(model))
    return model(read.sequences, read.attention_mask, read.position_ids).to(rollout.device)


def response_values(critic: "ScalarModel", rollout: Rollout) -> torch.Tensor:
    """The critic's values (B, R) in reward units.

    Column t is the value of the tokens before response token t.

    Raises:
        ValueError: a sequence is longer than the model can read, or holds a token it lacks.
    """
    return response_slice(token_scores(critic, rollout), rollout.prompt_ids.shape[1])


def position_limit(model: torch.nn.Module | BelowAdapter) -> int | None:
    """The most tokens that a model reads in one sequence; None if its config names no limit.

    A model that reads text and images has the limit in its text config.
    """
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    limits = (getattr(config, name, None) for name in ("max_position_embeddings", "max_seq_len"))
    return next((limit for limit in limits if limit and limit > 0), None)  # XLNet's limit is -1


def _check_readable(model: torch.nn.Module | BelowAdapter, rollout: Rollout) -> None:
    """Refuse sequences that are longer than the model reads, and tokens that it does not have."""
    longest, limit = int(rollout.attention_mask.sum(1).max()), position_limit(model)
    if limit and longest > limit:
        raise ValueError(
            f"A sequence of {longest} tokens, prompt and EOS included, exceeds the "
            f"{limit} positions of the model; shorten the prompt or the response."
        )
    if not isinstance(model, torch.nn.Module) or not hasattr(model, "get_input_embeddings"):
        return  # a reference below an adapter has the policy's embedding
    last, rows = int(rollout.sequences.max()), embedding_rows(model)
    if last >= rows:
        raise ValueError(
            f"A sequence holds the token id {last}, but the model's embedding has {rows} rows, for "
            f"the ids 0 to {rows - 1}; policy, reward model and critic need the same vocabulary."
        )
