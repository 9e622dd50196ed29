"""From logits to the log-probabilities of the response tokens.

Shapes: B sequences of P prompt and R response positions, T = P + R; V words in the vocabulary.
Log-probabilities and entropies are in nats, the unit of natural logarithms. `response_mask` is True
at the tokens that count; for a Rollout pass `batch.action_mask`.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from minirlhf.core.checks import check_above_0, checked
from minirlhf.core.masking import zero_masked


@checked
def response_slice(x: Float[Tensor, "B T ..."], prompt_length: int) -> Float[Tensor, "B R ..."]:
    """Shift from the T positions of a sequence to its R response tokens: x[:, P-1:-1].

    The output of a model at position i has read the tokens 0 to i. Column t of the result is
    position P-1+t. So it depends only on the tokens before response token t. Logits there predict
    token t. A value there is the value of the state in which token t was chosen.

    Use this function for the shift wherever you need one entry per response token. Only
    `loops.prefix_logits` slices on its own, because it also keeps the last position.

    Args:
        x: a tensor with one entry per position, such as logits or values.
        prompt_length: P, at least 1 and below T.

    Raises:
        ValueError: prompt_length is out of range.
    """
    if not 1 <= prompt_length < x.shape[1]:
        raise ValueError(
            f"prompt_length is {prompt_length}; with {x.shape[1]} positions it must be from 1 to "
            f"{x.shape[1] - 1}."
        )
    return x[:, prompt_length - 1 : -1]


@checked
def response_logprobs(
    logits: Float[Tensor, "B R V"],
    response_ids: Int[Tensor, "B R"],
    response_mask: Bool[Tensor, "B R"],
    *,
    temperature: float = 1.0,
) -> Float[Tensor, "B R"]:
    """Log-probability of each response token.

        log pi(y_t | prompt, y_<t) = log_softmax(logits / temperature)[y_t]

    log_softmax is used because log(softmax(x)) loses small probabilities.

    Args:
        logits: column t predicts response token t (see `response_slice`).
        response_ids: y_t, token ids.
        response_mask: True at the tokens that count.
        temperature: that of the rollout, above 0. Use the same one for every policy.

    Returns:
        Nats; 0 where masked. At least float32.

    Raises:
        ValueError: temperature is not above 0, an id is no word of the vocabulary, or shapes
            differ.
    """
    log_p = _log_softmax(logits, response_mask, temperature)
    ids = response_ids[response_mask].long()
    if not ((ids >= 0) & (ids < logits.shape[-1])).all():
        raise ValueError(
            f"response_ids has ids from {ids.min()} to {ids.max()}; with {logits.shape[-1]} words "
            f"in logits they must be from 0 to {logits.shape[-1] - 1}."
        )
    logprobs = log_p.gather(-1, ids[:, None])[:, 0]
    return log_p.new_zeros(response_mask.shape).masked_scatter(response_mask, logprobs)


def _log_softmax(logits: Tensor, response_mask: Tensor, temperature: float) -> Tensor:
    """log pi of every word at the N tokens that count: (N, V), at least float32.

    Padding is left out before the softmax, so NaN there has no effect.
    """
    check_above_0(temperature=temperature)
    # Without padding no copy is needed.
    real = logits.flatten(0, 1) if response_mask.all() else logits[response_mask]
    # In bfloat16 a log-probability from -16 to -8 would be rounded by up to 1/32.
    real = real.to(torch.promote_types(real.dtype, torch.float32))
    return (real if temperature == 1 else real / temperature).log_softmax(-1)


@checked
def sequence_logprobs(
    logprobs: Float[Tensor, "B R"], response_mask: Bool[Tensor, "B R"]
) -> Float[Tensor, "B"]:
    """Log-probability of each response.

        log pi(y | prompt) = sum over t of log pi(y_t | prompt, y_<t)

    Args:
        logprobs: of each token, nats.
        response_mask: True at the tokens that count.

    Returns:
        Nats per response.
    """
    return zero_masked(logprobs, response_mask).sum(1)


@checked
def entropy(
    logits: Float[Tensor, "B R V"], response_mask: Bool[Tensor, "B R"], *, temperature: float = 1.0
) -> Float[Tensor, "B R"]:
    """Entropy of the next-token distribution at each position.

        H_t = -(sum over v of p_v log p_v)

    Args:
        logits: column t predicts response token t.
        response_mask: True at the tokens that count.
        temperature: that of the rollout, above 0.

    Returns:
        Nats, from 0 to log V; 0 where masked.

    Raises:
        ValueError: temperature is not above 0, or shapes differ.
    """
    log_p = _log_softmax(logits, response_mask, temperature)
    # A forbidden word has log p = -inf. It must add 0 to the entropy, so -inf is made finite.
    entropies = -(log_p.exp() * log_p.clamp(min=torch.finfo(log_p.dtype).min)).sum(-1)
    return log_p.new_zeros(response_mask.shape).masked_scatter(response_mask, entropies)
