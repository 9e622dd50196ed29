"""Exercises of lesson 13: rewards of single tokens, soft values, and locating an error."""

import torch

from minirlhf.classroom.exercise import Exercise


def _tokens_case(g):
    mask = torch.arange(5) < torch.randint(1, 6, (4, 1), generator=g)
    mask[0], mask[1] = torch.arange(5) < 5, torch.arange(5) < 2
    new, ref = (torch.where(mask, -4 * torch.rand(4, 5, generator=g), torch.nan) for _ in range(2))
    return new, ref, mask, 0.1 + torch.rand((), generator=g).item()


def _rewards(new, ref, mask, beta):
    return torch.where(
        mask, beta * (torch.where(mask, new, 0.0) - torch.where(mask, ref, 0.0)), 0.0
    )


token_rewards = Exercise(
    "token_rewards",
    ("logprobs", "ref_logprobs", "mask", "beta"),
    _tokens_case,
    _rewards,
    {
        "beta is missing.": lambda n, r, m, b: _rewards(n, r, m, 1.0),
        "this divides by beta. The implicit reward is "
        "beta times the log-ratio.": lambda n, r, m, b: _rewards(n, r, m, 1 / b),
        "the sign is wrong. Take policy minus reference.": lambda n, r, m, b: _rewards(r, n, m, b),
        "this uses the policy's log-probability alone. "
        "What the policy has learned is its difference from the reference.": lambda n, r, m, b: (
            _rewards(n, torch.zeros_like(r), m, b)
        ),
        "this is the running sum, the reward of the response so far. "
        "Return the reward of each token.": lambda n, r, m, b: _rewards(n, r, m, b).cumsum(1),
    },
)


def _state_case(g):
    return (
        torch.randn(5, generator=g).log_softmax(0),
        2 * torch.randn(5, generator=g),
        0.2 + torch.rand((), generator=g).item(),
    )


def _soft(ref, q, beta):
    return beta * torch.logsumexp(ref + q / beta, 0)


soft_value = Exercise(
    "soft_value",
    ("ref_logprobs", "q", "beta"),
    _state_case,
    _soft,
    {
        "the reference is missing. V* weights each word by its "
        "probability under the reference.": lambda p, q, b: b * torch.logsumexp(q / b, 0),
        "this is the mean of Q under the reference. It is the value when the policy may not "
        "leave the reference (beta to infinity).": lambda p, q, b: (p.exp() * q).sum(),
        "this is the largest Q. It is the value without a KL penalty (beta = 0).": lambda p, q, b: (
            q.max()
        ),
        "the factor beta before the logarithm is missing.": lambda p, q, b: _soft(p, q, b) / b,
        "beta multiplies Q in the exponent, but it must divide Q.": lambda p, q, b: (
            b * torch.logsumexp(p + q * b, 0)
        ),
        "this is the mean of Q under the best policy. "
        "The KL penalty of that policy is not subtracted.": lambda p, q, b: (
            (p + q / b).softmax(0) * q
        ).sum(),
    },
    edges=((torch.tensor([0.5, 0.25, 0.25]).log(), torch.tensor([900.0, -900.0, 0.0]), 1.0),),
)


def _chain_case(g):
    values = torch.randn(4, 6, generator=g)
    mask = torch.arange(6) < torch.randint(2, 7, (4, 1), generator=g)
    mask[0], mask[1] = torch.arange(6) < 6, torch.arange(6) < 2
    return torch.where(mask, values, torch.nan), torch.randn(4, generator=g), mask


def _drops(values, final, mask):
    values = torch.where(mask, values, 0.0)
    last = mask & (mask.cumsum(1) == mask.sum(1, keepdim=True))
    after = torch.where(
        last, final[:, None], torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], 1)
    )
    return torch.where(mask, after - values, 0.0)


def _drops_without_the_end(values, final, mask):
    return _drops(values, torch.zeros_like(final), mask)


value_steps = Exercise(
    "value_steps",
    ("values", "scores", "mask"),
    _chain_case,
    _drops,
    {
        "the last token is wrong. After the last token comes the score.": _drops_without_the_end,
        "the sign is wrong. Take after minus before, so "
        "that an error lowers the value.": lambda v, s, m: -_drops(v, s, m),
        "this is each value minus the one before it, one position off. "
        "The effect of token t is V after it minus V before it.": lambda v, s, m: torch.where(
            m,
            torch.where(m, v, 0.0)
            - torch.where(m, v, 0.0).roll(1, 1) * (torch.arange(v.shape[1]) > 0),
            0.0,
        ),
        "this is each value minus the one before it, with 0 for the first token. "
        "It is one position off. "
        "The effect of token t is V after it minus V before it.": lambda v, s, m: torch.where(
            m, torch.nn.functional.pad(torch.where(m, v, 0.0).diff(dim=1), (1, 0)), 0.0
        ),
        "these are the values. Return what each token changed.": lambda v, s, m: torch.where(
            m, v, 0.0
        ),
    },
)


def _locate_case(g):
    mask = torch.arange(6) < torch.randint(2, 7, (5, 1), generator=g)
    mask[0], mask[1] = torch.arange(6) < 6, torch.arange(6) < 3
    evidence = torch.randn(5, 6, generator=g)
    # Row 2 has two equal lowest values.
    evidence[2] = torch.tensor([0.2, -1.0, 0.3, -1.0, 0.0, 0.0])
    mask[2] = torch.tensor([True, True, True, True, False, False])
    evidence[3, :2] = torch.tensor([40.0, 70.0])  # all real values are far above 0
    mask[3] = torch.arange(6) < 2
    return torch.where(mask, evidence, torch.nan), mask


def _lowest(evidence, mask):
    return torch.where(mask, evidence, torch.inf).argmin(1)


blamed_token = Exercise(
    "blamed_token",
    ("evidence", "mask"),
    _locate_case,
    _lowest,
    {
        "you took the highest value. "
        "The evidence is low where something went wrong.": lambda e, m: torch.where(
            m, e, -torch.inf
        ).argmax(1),
        "padding was set to 0, so it is the lowest where all real values are above 0. "
        "Set it to infinity.": lambda e, m: torch.where(m, e, 0.0).argmin(1),
        "you took the largest absolute value. A very *good* token is not an error.": lambda e, m: (
            torch.where(m, e.abs(), -torch.inf).argmax(1)
        ),
        "of several equal values you took the last. "
        "Take the first: the first error comes first.": lambda e, m: (
            e.shape[1] - 1 - torch.where(m, e, torch.inf).flip(1).argmin(1)
        ),
    },
)
