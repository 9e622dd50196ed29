"""From logits to the log-probabilities of the tokens that were written."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from minirlhf.core.masking import check_same_shape, zero_masked


def response_slice(x: Float[Tensor, "B T ..."], prompt_length: int) -> Float[Tensor, "B R ..."]:
    """THE shift: from the T positions of a sequence to the R response tokens, x[:, P-1:-1].

    A model's output at position i has read tokens 0..i. So column t of the result, position P - 1 + t, was computed from the
    text *before* response token t: the logits that predict it, the value of the state it was chosen in.
    """
    if not 1 <= prompt_length < x.shape[1]:
        raise ValueError(
            f"prompt_length is {prompt_length}; it must be from 1 to {x.shape[1] - 1} for {x.shape[1]} positions."
        )
    return x[:, prompt_length - 1 : -1]


def response_logprobs(
    logits: Float[Tensor, "B R V"],
    response_ids: Int[Tensor, "B R"],
    response_mask: Bool[Tensor, "B R"],
    *,
    temperature: float = 1.0,
) -> Float[Tensor, "B R"]:
    """log pi(y_t | x, y_<t) in nats; 0 where masked.

        log softmax(logits / temperature)[y_t]        log_softmax, because log(softmax) loses the small ones

    Args:
        logits: column t predicts response token t (see `response_slice`). temperature: that of the rollout, for every policy.
    """
    check_same_shape(response_ids=response_ids, response_mask=response_mask)
    log_p = _log_softmax(logits, response_mask, temperature)
    logprobs = log_p.gather(-1, response_ids[response_mask][:, None])[:, 0]
    return torch.zeros(response_mask.shape, dtype=log_p.dtype).masked_scatter(
        response_mask, logprobs
    )


def _log_softmax(logits: Tensor, response_mask: Tensor, temperature: float) -> Tensor:
    """log pi of every word at the N real tokens, (N, V), in float32 at least: padding, NaN or not, is never exponentiated."""
    if not temperature > 0:  # NaN is not
        raise ValueError(f"temperature is {temperature}; it must be above 0.")
    check_same_shape(positions=logits[..., 0], response_mask=response_mask)
    real = (
        logits.flatten(0, 1) if response_mask.all() else logits[response_mask]
    )  # without padding no copy is needed
    real = real.to(
        torch.promote_types(real.dtype, torch.float32)
    )  # in bfloat16 a log-probability of 8 is right to 1/32 only
    return (real if temperature == 1 else real / temperature).log_softmax(-1)


def sequence_logprobs(
    logprobs: Float[Tensor, "B R"], response_mask: Bool[Tensor, "B R"]
) -> Float[Tensor, "B"]:
    """log pi(y | x) = sum_t log pi(y_t | x, y_<t), nats a sequence."""
    return zero_masked(logprobs, response_mask).sum(1)


def entropy(
    logits: Float[Tensor, "B R V"], response_mask: Bool[Tensor, "B R"], *, temperature: float = 1.0
) -> Float[Tensor, "B R"]:
    """H_t = -sum_v p_v log p_v in nats, from 0 to log V; 0 where masked."""
    log_p = _log_softmax(logits, response_mask, temperature)
    # p log p with log p = -inf is 0: a forbidden token has no entropy
    entropies = -(log_p.exp() * log_p.clamp(min=torch.finfo(log_p.dtype).min)).sum(-1)
    return torch.zeros(response_mask.shape, dtype=log_p.dtype).masked_scatter(
        response_mask, entropies
    )
