"""Exercises of lesson 03: V and Q, advantages, shifted logits, sampling, a wrong axis."""

import torch

from minirlhf.classroom.exercise import Exercise
from minirlhf.core.logprobs import response_slice


def _sampled_case(g):
    """Twelve sampled responses of three words; the first begins with the prefix and the word."""
    ids = torch.randint(3, (12, 3), generator=g)
    rewards = torch.randn(12, 3, generator=g)
    t = int(torch.randint(1, 3, (), generator=g))
    ids[1] = ids[0]
    ids[2, :t] = ids[0, :t]  # the same prefix, then another word
    ids[2, t] = (ids[0, t] + 1) % 3
    ids[3, t] = ids[0, t]  # another prefix, then the same word
    ids[3, 0] = (ids[0, 0] + 1) % 3
    return ids, rewards, ids[0, :t].clone(), int(ids[0, t])


def _means(ids, rewards, prefix, word, start=None, stop=None, here=None, chosen=None):
    """[V, Q] as means over `here` and `chosen` of the rewards from position start to stop."""
    t = len(prefix)
    returns = rewards[:, t if start is None else start : stop].sum(1)
    here = (ids[:, :t] == prefix).all(1) if here is None else here
    chosen = here & (ids[:, t] == word) if chosen is None else chosen
    return torch.stack([returns[here].mean(), returns[chosen].mean()])


def _sums(ids, rewards, prefix, word):
    t = len(prefix)
    here = (ids[:, :t] == prefix).all(1)
    chosen = here & (ids[:, t] == word)
    return _means(ids, rewards, prefix, word) * torch.stack([here.sum(), chosen.sum()])


def _over_all(ids, rewards, prefix, word):
    """The sums divided by the number of all responses."""
    return _sums(ids, rewards, prefix, word) / len(ids)


def _q_of_the_longer_prefix(ids, rewards, prefix, word):
    """Q without the reward of the word itself."""
    return torch.stack(
        [
            _means(ids, rewards, prefix, word)[0],
            _means(ids, rewards, prefix, word, start=len(prefix) + 1)[1],
        ]
    )


v_and_q = Exercise(
    "v_and_q",
    ("ids", "rewards", "prefix", "word"),
    _sampled_case,
    _means,
    {
        "you count the rewards before the prefix ends, too. A return begins with the reward of the "
        "word after the prefix.": lambda i, r, p, w: _means(i, r, p, w, start=0),
        "you take only the reward of one word. A return is the sum of the rewards from this word "
        "to the last.": lambda i, r, p, w: _means(i, r, p, w, stop=len(p) + 1),
        "Q leaves out the reward of the word itself. The return of a token begins with its own "
        "reward.": _q_of_the_longer_prefix,
        "V and Q both leave out the reward of the word after the prefix.": lambda i, r, p, w: (
            _means(i, r, p, w, start=len(p) + 1)
        ),
        "you divide by the number of all responses. Take the mean over those that begin with the "
        "prefix.": _over_all,
        "these are sums. V and Q are means.": _sums,
        "V is the mean over all responses. Take only those that begin with the prefix.": (
            lambda i, r, p, w: _means(
                i,
                r,
                p,
                w,
                here=torch.ones(len(i), dtype=torch.bool),
                chosen=(i[:, : len(p)] == p).all(1) & (i[:, len(p)] == w),
            )
        ),
        "you compare only the last word of the prefix. All its words must be equal.": (
            lambda i, r, p, w: (
                _means(i, r, p, w, here=(i[:, : len(p)] == p)[:, -1])
                if len(p)
                else _means(i, r, p, w)
            )
        ),
        "one equal word of the prefix is enough for you. All its words must be equal.": (
            lambda i, r, p, w: (
                _means(i, r, p, w, here=(i[:, : len(p)] == p).any(1))
                if len(p)
                else _means(i, r, p, w)
            )
        ),
        "Q is a mean over responses with other prefixes, too. The prefix and the word must both be "
        "the same.": lambda i, r, p, w: _means(i, r, p, w, chosen=i[:, len(p)] == w),
        "the second number is Q - V, the advantage. Return Q.": lambda i, r, p, w: (
            _means(i, r, p, w) - torch.stack([torch.tensor(0.0), _means(i, r, p, w)[0]])
        ),
        "V and Q stand in the wrong order.": lambda i, r, p, w: _means(i, r, p, w).flip(0),
    },
    edges=(
        (
            torch.tensor([[0, 1], [1, 0], [1, 1]]),
            torch.tensor([[1.0, 2.0], [4.0, 8.0], [16.0, 32.0]]),
            torch.tensor([], dtype=torch.long),
            1,
        ),
    ),
)


def _world_case(g):
    words = int(torch.randint(3, 5, (), generator=g))
    return (
        torch.randn(words + 1, words, generator=g),
        2 * torch.randn(words, words, generator=g),
        *torch.randperm(words, generator=g)[:2].tolist(),
    )


def _word_advantages(logits, scores, a, b):
    probs = logits.softmax(-1)
    after = (probs[1:] * scores).sum(-1)
    return torch.stack([after[a] - probs[0] @ after, scores[a, b] - after[a]])


def _second_word_as_it_fell(logits, scores, a, b):
    """The score minus V at the start: a sample of the first advantage."""
    probs = logits.softmax(-1)
    after = (probs[1:] * scores).sum(-1)
    return torch.stack([scores[a, b] - probs[0] @ after, scores[a, b] - after[a]])


def _rows_shifted(logits, scores, a, b):
    """As if the last row belonged to the start."""
    return _word_advantages(logits.roll(1, 0), scores, a, b)


word_advantages = Exercise(
    "word_advantages",
    ("logits", "scores", "a", "b"),
    _world_case,
    _word_advantages,
    {
        "this takes a plain mean over the words. A value is a mean under the policy: weigh each "
        "word with its probability.": lambda x, s, a, b: _word_advantages(0 * x, s, a, b),
        "these are the Q of the two words. Subtract V of the prefix.": lambda x, s, a, b: (
            torch.stack([(x[1 + a].softmax(-1) * s[a]).sum(), s[a, b]])
        ),
        "the advantage of the first word is not Q - V. You subtract V at the start from the score "
        "of this one response. Q of the first word is the mean over all second words.": (
            _second_word_as_it_fell
        ),
        "the sign is wrong. An advantage is Q - V.": lambda x, s, a, b: (
            -_word_advantages(x, s, a, b)
        ),
        "the softmax runs over the wrong axis. A row belongs to a prefix, and its columns are the "
        "words.": lambda x, s, a, b: torch.stack(
            [
                (after := (x.softmax(0)[1:] * s).sum(-1))[a] - x.softmax(0)[0] @ after,
                s[a, b] - after[a],
            ]
        ),
        "both advantages subtract V at the start. The second word is chosen after the first, so "
        "subtract V of that prefix.": lambda x, s, a, b: torch.stack(
            [
                (after := (x[1:].softmax(-1) * s).sum(-1))[a] - (v := x[0].softmax(-1) @ after),
                s[a, b] - v,
            ]
        ),
        "the rows of the logits are shifted. Row 0 belongs to the start, and row 1 + a to the "
        "prefix that is the word number a.": _rows_shifted,
        "the two advantages stand in the wrong order.": lambda x, s, a, b: _word_advantages(
            x, s, a, b
        ).flip(0),
    },
)


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
        "the logits are not shifted. "
        "The logits at a token's own position have already read that token. "
        "The logits one position "
        "to the left predict it.": lambda x, i, p: _gather(x[:, p:], i[:, p:]),
        "the softmax runs over the wrong axis. The vocabulary is the last axis.": lambda x, i, p: (
            response_slice(x, p).log_softmax(1).gather(-1, i[:, p:, None])[..., 0]
        ),
        "these are probabilities. Take the logarithm.": lambda x, i, p: _logprobs(x, i, p).exp(),
        "these are logits, which are not normalised. Apply log_softmax first.": lambda x, i, p: (
            response_slice(x, p).gather(-1, i[:, p:, None])[..., 0]
        ),
        "the logits are shifted twice: you read them two positions to the left.": lambda x, i, p: (
            _gather(x[:, p - 2 : -2], i[:, p:])
        ),
        "exp overflows, or a small probability becomes 0, where logits are far apart. "
        "Use log_softmax.": lambda x, i, p: (
            response_slice(x, p).softmax(-1).log().gather(-1, i[:, p:, None])[..., 0]
        ),
        "you scored the token before each response token. "
        "The response's ids begin at index `prompt_length`.": lambda x, i, p: _gather(
            x[:, p - 1 : -1], i[:, p - 1 : -1]
        ),
    },
    edges=((200 * torch.eye(2)[None, [0, 1, 0, 1]], torch.tensor([[0, 1, 0, 1]]), 2),),
)


def _draw_case(g):
    return (
        torch.randn(4, 6, generator=g),
        0.5 + torch.rand((), generator=g).item(),
        torch.rand(4, generator=g),
    )


TEMPERATURES = {  # a message -> the probabilities of the words
    "": lambda x, t: (x / t).softmax(-1),
    "the temperature is not used. ": lambda x, t: x.softmax(-1),
    "the temperature multiplies the logits. Divide the logits by it. ": lambda x, t: (
        x * t
    ).softmax(-1),
}
ENDS = {  # a message -> the word, from the cumulative sums and the uniform numbers (B, 1)
    "": lambda c, u: (c <= u).sum(-1).clamp(max=c.shape[-1] - 1),
    "a word of probability 0 is drawn when the uniform number is 0. The number has passed a sum "
    "that is *equal* to it, too: compare with <=, or look for the first sum "
    "*above* it.": lambda c, u: (c < u).sum(-1).clamp(max=c.shape[-1] - 1),
    "an id lies beyond the last word. Rounding leaves the last cumulative sum a little "
    "below 1, and the uniform number can be above it. Then draw the last word.": lambda c, u: (
        c <= u
    ).sum(-1),
    "two edges are wrong. If the uniform number equals a sum, it has passed it: compare with <=. "
    "And rounding can leave the last sum below the number. Then draw the last word.": lambda c, u: (
        c < u
    ).sum(-1),
    "argmax gives word 0 if no cumulative sum is above the uniform number. Rounding can leave the "
    "last sum below it. Then draw the last word.": lambda c, u: (c > u).int().argmax(-1),
    "two edges are wrong. Look for the first sum *above* the uniform number: >, not >=. And if no "
    "sum is above it, argmax gives word 0. Then draw the last word.": lambda c, u: (
        (c >= u).int().argmax(-1)
    ),
}


def _drawing(probs_of, end):
    """A way to draw: the probabilities from logits and temperature, then the word from the sums."""
    return lambda x, t, u: end(probs_of(x, t).cumsum(-1), u[:, None])


def _draw(logits, temperature, uniform):
    return _drawing(TEMPERATURES[""], ENDS[""])(logits, temperature, uniform)


draw_word = Exercise(
    "draw_word",
    ("logits", "temperature", "uniform"),
    _draw_case,
    _draw,
    {
        (said + edge[:1].upper() + edge[1:] if said else edge).strip(): _drawing(probs_of, end)
        for said, probs_of in TEMPERATURES.items()
        for edge, end in ENDS.items()
        if said or edge
    }
    | {
        "this is greedy decoding: the uniform number is not used.": lambda x, t, u: x.argmax(-1),
        "this is one word too far. "
        "Draw the first word whose cumulative sum is above the uniform number.": lambda x, t, u: (
            _draw(x, t, u) + 1
        ).clamp(max=x.shape[-1] - 1),
        "this is one word too early. Skip the words whose cumulative "
        "sum is below the uniform number.": lambda x, t, u: (_draw(x, t, u) - 1).clamp(min=0),
        "you divided the probabilities by the temperature, after the softmax. "
        "Divide the logits by it, before the softmax.": lambda x, t, u: _draw(x.softmax(-1), t, u),
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


def _sft_case(g):
    mask = torch.arange(4) < torch.randint(1, 5, (3, 1), generator=g)
    mask[0] = torch.arange(4) < 2
    logits = torch.randn(3, 4, 5, generator=g)
    return (
        torch.where(mask[..., None], logits, torch.nan),
        torch.randint(5, (3, 4), generator=g),
        mask,
    )


def _surprise(logits, ids, mask, axis=-1):
    """-log p of each token, (B, R), after the logits at padding are replaced by 0."""
    logits = torch.where(mask[..., None], logits, 0.0)
    return -logits.log_softmax(axis).gather(-1, ids[..., None])[..., 0]


def _nll(logits, ids, mask, axis=-1):
    surprise = _surprise(logits, ids, mask, axis)
    return torch.where(mask, surprise, 0.0).sum() / mask.sum()


sft_loss = Exercise(
    "sft_loss",
    ("logits", "ids", "mask"),
    _sft_case,
    _nll,
    {
        "the bug is still there. On paper, take a response of one token, two words and equal "
        "logits. What is the surprise? Which loss does the function return?": lambda x, i, m: _nll(
            x, i, m, axis=1
        ),
        "the softmax now runs over the sequences of the batch. "
        "The vocabulary is the last axis.": lambda x, i, m: _nll(x, i, m, axis=0),
        "padding is counted. Use the mask.": lambda x, i, m: _surprise(x, i, m).mean(),
        "padding is left out of the sum but counted in the mean. "
        "Divide by the number of real tokens.": lambda x, i, m: torch.where(
            m, _surprise(x, i, m), 0.0
        ).mean(),
        "the sign is wrong. A loss is minus the log-probability.": lambda x, i, m: -_nll(x, i, m),
    },
    differentiate=("logits",),
)
