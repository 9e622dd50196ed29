"""Tokenised batches, and their logits, log-probabilities, scores and values under a model.

Logits are computed only at the positions that predict a response token.

Batches are made on the CPU. A model reads a batch on the model's own device, and what it says about
the tokens comes back to the batch's device: log-probabilities, scores and values. So a loss is
computed on the CPU, from a few numbers per token, wherever the model is.
"""

from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedTokenizerBase

from minirlhf.core.logprobs import response_logprobs, response_slice
from minirlhf.core.rollout import Rollout
from minirlhf.models.adapters import BelowAdapter, LanguageModel
from minirlhf.runtime import check, check_text

if TYPE_CHECKING:  # heads.py imports this file
    from minirlhf.models.heads import ScalarModel


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: list[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokenise prompts and pad them on the left.

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
    ids = tokenizer(list(prompts)).input_ids if prompts else []
    if not ids or min(map(len, ids)) == 0:
        raise ValueError(
            f"There are {len(ids)} prompts, "
            f"the shortest of {min(map(len, ids), default=0)} tokens; give "
            "at least one prompt, each of at least one token."
        )
    width = max(map(len, ids))
    padded = [[tokenizer.pad_token_id] * (width - len(row)) + row for row in ids]
    mask = [[False] * (width - len(row)) + [True] * len(row) for row in ids]
    return torch.tensor(padded, device="cpu"), torch.tensor(mask, device="cpu")


def encode(
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    responses: list[str],
    *,
    max_response: int | None = None,
) -> Rollout:
    """Tokenise prompts and written responses as a Rollout.

    Each response ends in EOS. An EOS inside a response ends it there, as it does in a sampled
    response. old_logprobs are 0, because no policy sampled these responses. Prompt and response are
    tokenised separately, so the prompt's tokens are always the first tokens of the sequence.

    Args:
        prompts, responses: B texts each.
        max_response: most tokens of a response, EOS included. A longer response is cut and has no
            EOS.

    Raises:
        ValueError: a prompt is empty, something is not text, or max_response is below 1.
    """
    check("max_response", max_response, max_response is None or max_response >= 1, "at least 1")
    prompt_ids, prompt_mask = encode_prompts(tokenizer, prompts)
    for response in responses:
        check_text(response, "The response")
    # no BOS between prompt and response
    written = tokenizer(list(responses), add_special_tokens=False).input_ids
    ended = [[*row, tokenizer.eos_token_id] for row in written]
    # the first EOS ends a response
    ids = [row[: row.index(tokenizer.eos_token_id) + 1][:max_response] for row in ended]
    width = max(map(len, ids))
    padded = [row + [tokenizer.pad_token_id] * (width - len(row)) for row in ids]
    mask = [[True] * len(row) + [False] * (width - len(row)) for row in ids]
    response_ids, response_mask = (torch.tensor(x, device="cpu") for x in (padded, mask))
    nothing = torch.zeros(response_ids.shape, device="cpu")
    return Rollout(prompt_ids, prompt_mask, response_ids, response_mask, nothing)


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
        ValueError: a sequence is longer than the model can read.
    """
    _check_length(model, rollout)
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
        ValueError: a sequence is longer than the model can read.
    """
    _check_length(model.backbone, rollout)
    read = rollout.to(device_of(model))
    return model(read.sequences, read.attention_mask, read.position_ids).to(rollout.device)


def response_values(critic: "ScalarModel", rollout: Rollout) -> torch.Tensor:
    """The critic's values (B, R) in reward units.

    Column t is the value of the tokens before response token t.

    Raises:
        ValueError: a sequence is longer than the model can read.
    """
    return response_slice(token_scores(critic, rollout), rollout.prompt_ids.shape[1])


def _check_length(model: torch.nn.Module | BelowAdapter, rollout: Rollout) -> None:
    longest, limit = (
        int(rollout.attention_mask.sum(1).max()),
        getattr(model.config, "max_position_embeddings", None),
    )
    if limit and longest > limit:
        raise ValueError(
            f"A sequence of {longest} tokens, prompt and EOS included, exceeds the "
            f"{limit} positions of the model; shorten the prompt or the response."
        )
