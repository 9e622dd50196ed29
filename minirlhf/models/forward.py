"""Text to a batch, and a batch through a model. Logits are computed only where a response token needs them."""

import torch

from minirlhf.core.logprobs import response_logprobs, response_slice
from minirlhf.core.rollout import Rollout
from minirlhf.runtime import check, check_text


def encode_prompts(tokenizer, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts -> left-padded ids (B, P) and their mask (B, P).

    Raises:
        ValueError: no prompts, or an empty one (the first response token needs a token before it).
    """
    for prompt in prompts:
        check_text(prompt, "The prompt")
    ids = tokenizer(list(prompts)).input_ids if prompts else []
    if not ids or min(map(len, ids)) == 0:
        raise ValueError(
            f"Got {len(ids)} prompts, the shortest of {min(map(len, ids), default=0)} tokens; each needs at least one."
        )
    width = max(map(len, ids))
    padded = torch.tensor([[tokenizer.pad_token_id] * (width - len(row)) + row for row in ids])
    mask = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in ids])
    return padded, mask


def encode(
    tokenizer, prompts: list[str], responses: list[str], *, max_response: int | None = None
) -> Rollout:
    """Prompts and written responses -> a Rollout: responses end in EOS, old_logprobs are 0 (nobody sampled them).

    Prompt and response are tokenised apart, so the prompt's tokens are a prefix of the whole by construction.

    Args:
        max_response: cut responses to this many tokens, EOS included; a cut response has no EOS.
    """
    check("max_response", max_response, max_response is None or max_response >= 1, "at least 1")
    prompt_ids, prompt_mask = encode_prompts(tokenizer, prompts)
    for response in responses:
        check_text(response, "The response")
    written = tokenizer(
        list(responses), add_special_tokens=False
    ).input_ids  # a response begins with no BOS of its own
    ended = [[*row, tokenizer.eos_token_id] for row in written]
    ids = [
        row[: row.index(tokenizer.eos_token_id) + 1][:max_response] for row in ended
    ]  # EOS within a text ends it, as in a sample
    width = max(map(len, ids))
    response_ids = torch.tensor(
        [row + [tokenizer.pad_token_id] * (width - len(row)) for row in ids]
    )
    response_mask = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in ids])
    return Rollout(
        prompt_ids, prompt_mask, response_ids, response_mask, torch.zeros(response_ids.shape)
    )


def decode(tokenizer, rollout: Rollout) -> list[str]:
    """The responses as text, EOS and padding left out."""
    rows = zip(rollout.response_ids, rollout.response_mask, strict=True)
    return [tokenizer.decode(ids[mask], skip_special_tokens=True) for ids, mask in rows]


def policy_logits(model, rollout: Rollout) -> torch.Tensor:
    """Logits (B, R, V) that predict the response tokens: column t is computed from the text before response token t."""
    _check_length(model, rollout)
    width = rollout.response_ids.shape[1]
    logits = model(
        input_ids=rollout.sequences,
        attention_mask=rollout.attention_mask.long(),
        position_ids=rollout.position_ids,
        use_cache=False,
        logits_to_keep=width + 1,
    ).logits
    return response_slice(
        logits, 1
    )  # of the T positions the model kept the last R + 1: a prompt of length 1


def policy_logprobs(model, rollout: Rollout, *, temperature: float = 1.0) -> torch.Tensor:
    """Log-probabilities (B, R), nats, of the policy's tokens (`action_mask`) under `model`; else 0."""
    logits = policy_logits(model, rollout)
    return response_logprobs(
        logits, rollout.response_ids, rollout.action_mask, temperature=temperature
    )


def token_scores(model, rollout: Rollout) -> torch.Tensor:
    """A ScalarModel's score (B, T) at every position of prompt and response."""
    _check_length(model.backbone, rollout)
    return model(rollout.sequences, rollout.attention_mask, rollout.position_ids)


def response_values(critic, rollout: Rollout) -> torch.Tensor:
    """V (B, R) in reward units: column t is the critic's value of the text before response token t."""
    return response_slice(token_scores(critic, rollout), rollout.prompt_ids.shape[1])


def _check_length(model, rollout: Rollout) -> None:
    longest, limit = (
        int(rollout.attention_mask.sum(1).max()),
        getattr(model.config, "max_position_embeddings", None),
    )
    if limit and longest > limit:
        raise ValueError(
            f"A text of {longest} tokens, prompt and EOS included, exceeds the {limit} that the model reads; shorten it."
        )
