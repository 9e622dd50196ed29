"""Lesson 03: the shift, drawing a word, entropy, and a softmax over the wrong axis."""

import torch

from minirlhf.classroom.exercise import Exercise
from minirlhf.core.logprobs import response_slice


def _logprobs_case(g):
    length = int(torch.randint(2, 4, (), generator=g))
    return (
        torch.randn(2, length + 3, 5, generator=g),
        torch.randint(5, (2, length + 3), generator=g),
        length,
    )


def _gather(logits, ids):
    return logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0]


def _logprobs(logits, ids, prompt_length):
    return _gather(response_slice(logits, prompt_length), ids[:, prompt_length:])


token_logprobs = Exercise(
    "token_logprobs",
    ("logits", "ids", "prompt_length"),
    _logprobs_case,
    _logprobs,
    {
        "no shift: the logits at a token's own place have read it already; those one to the left predict it.": lambda x, i, p: (
            _gather(x[:, p:], i[:, p:])
        ),
        "the softmax runs over the wrong axis: words are the last one.": lambda x, i, p: (
            response_slice(x, p).log_softmax(1).gather(-1, i[:, p:, None])[..., 0]
        ),
        "these are probabilities: take the logarithm.": lambda x, i, p: _logprobs(x, i, p).exp(),
        "these are logits: they are not normalised; log_softmax first.": lambda x, i, p: (
            response_slice(x, p).gather(-1, i[:, p:, None])[..., 0]
        ),
        "shifted twice: the logits two places to the left.": lambda x, i, p: _gather(
            x[:, p - 2 : -2], i[:, p:]
        ),
        "the tokens before are scored: ids must begin at the prompt's length.": lambda x, i, p: (
            _gather(x[:, p - 1 : -1], i[:, p - 1 : -1])
        ),
    },
)


def _draw_case(g):
    return (
        torch.randn(4, 6, generator=g),
        0.5 + torch.rand((), generator=g).item(),
        torch.rand(4, generator=g),
    )


def _draw(logits, temperature, uniform):
    cumulative = (logits / temperature).softmax(-1).cumsum(-1)
    return (cumulative <= uniform[:, None]).sum(-1).clamp(max=logits.shape[-1] - 1)


draw_word = Exercise(
    "draw_word",
    ("logits", "temperature", "uniform"),
    _draw_case,
    _draw,
    {
        "the temperature is not used.": lambda x, t, u: _draw(x, 1.0, u),
        "the temperature multiplies; it divides the logits.": lambda x, t, u: _draw(x, 1 / t, u),
        "this is greedy: the uniform number is not used.": lambda x, t, u: x.argmax(-1),
        "one word too far: it is the first whose sum passes u.": lambda x, t, u: (
            _draw(x, t, u) + 1
        ).clamp(max=x.shape[-1] - 1),
        "one word too early: words whose sum is below u are passed over.": lambda x, t, u: (
            _draw(x, t, u) - 1
        ).clamp(min=0),
        "the temperature divides probabilities after the softmax; it belongs before it, to the logits.": lambda x, t, u: (
            _draw(x.softmax(-1), t, u)
        ),
        "a word of probability 0 is drawn when u is 0: pass over sums that are *at most* u.": lambda x, t, u: (
            ((x / t).softmax(-1).cumsum(-1) < u[:, None]).sum(-1).clamp(max=x.shape[-1] - 1)
        ),
        "an id beyond the last word: rounding leaves the last sum a little below 1, and u may lie above it.": lambda x, t, u: (
            ((x / t).softmax(-1).cumsum(-1) <= u[:, None]).sum(-1)
        ),
    },
    edges=(
        (torch.tensor([[-torch.inf, 0.0, 1.0]]), 1.0, torch.zeros(1)),
        (
            torch.randn(64, 97, generator=torch.Generator().manual_seed(0)),
            1.0,
            torch.full((64,), 1 - 2**-24),
        ),
    ),
)


def _entropy_case(g):
    logits = 2 * torch.randn(4, 6, generator=g)
    logits[0, :3] = -torch.inf
    return (logits,)


def _entropy(logits):
    log_p = logits.log_softmax(-1)
    return -torch.where(log_p.isinf(), 0.0, log_p.exp() * log_p).sum(-1)


next_word_entropy = Exercise(
    "next_word_entropy",
    ("logits",),
    _entropy_case,
    _entropy,
    {
        "the sign: entropy is never negative.": lambda x: -_entropy(x),
        "in bits; the exercise asks for nats, the natural logarithm.": lambda x: (
            _entropy(x) / torch.tensor(2.0).log()
        ),
        "the mean over words; it is the sum.": lambda x: _entropy(x) / x.shape[-1],
        "this is the surprise at the likeliest word, not the mean surprise.": lambda x: (
            -x.log_softmax(-1).amax(-1)
        ),
        "0 * infinity is NaN: a forbidden word, whose log-probability is -inf, adds 0.": lambda x: (
            -(x.log_softmax(-1).exp() * x.log_softmax(-1)).sum(-1)
        ),
    },
)


def _sft_case(g):
    mask = torch.arange(4) < torch.randint(1, 5, (3, 1), generator=g)
    mask[0] = torch.arange(4) < 2
    return torch.randn(3, 4, 5, generator=g), torch.randint(5, (3, 4), generator=g), mask


def _nll(logits, ids, mask):
    return -torch.where(mask, _gather(logits, ids), 0.0).sum() / mask.sum()


sft_loss = Exercise(
    "sft_loss",
    ("logits", "ids", "mask"),
    _sft_case,
    _nll,
    {
        "still normalised over the places of a text: words are the last axis.": lambda x, i, m: (
            -torch.where(m, x.log_softmax(1).gather(-1, i[..., None])[..., 0], 0.0).sum() / m.sum()
        ),
        "normalised over the texts of the batch now; words are the last axis.": lambda x, i, m: (
            -torch.where(m, x.log_softmax(0).gather(-1, i[..., None])[..., 0], 0.0).sum() / m.sum()
        ),
        "padding is counted.": lambda x, i, m: -_gather(x, i).mean(),
        "padding is left out of the sum, but counted in the mean: divide by the number of real tokens.": lambda x, i, m: (
            -torch.where(m, _gather(x, i), 0.0).mean()
        ),
        "the sign is lost: a loss is minus the log-probability.": lambda x, i, m: -_nll(x, i, m),
    },
    differentiate=("logits",),
)
