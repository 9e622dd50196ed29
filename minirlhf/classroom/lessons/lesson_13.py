"""Lesson 13: a policy as a Q-function: rewards of tokens, soft values, and where an error is."""

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
        "beta divides; the implicit reward is beta times the log-ratio.": lambda n, r, m, b: (
            _rewards(n, r, m, 1 / b)
        ),
        "the sign: policy minus reference.": lambda n, r, m, b: _rewards(r, n, m, b),
        "this is the policy's log-probability; what it learned is the difference to the reference.": lambda n, r, m, b: (
            _rewards(n, torch.zeros_like(r), m, b)
        ),
        "the running sum: the reward of the text so far; asked is each token's own.": lambda n, r, m, b: (
            _rewards(n, r, m, b).cumsum(1)
        ),
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
        "the reference is missing: V* weighs the words by how likely they were.": lambda p, q, b: (
            b * torch.logsumexp(q / b, 0)
        ),
        "the mean of Q under the reference: the value of *not* choosing (beta without end).": lambda p, q, b: (
            (p.exp() * q).sum()
        ),
        "the largest Q: the value without a leash (beta 0).": lambda p, q, b: q.max(),
        "the factor beta before the logarithm is missing.": lambda p, q, b: _soft(p, q, b) / b,
        "beta multiplies Q inside; it divides.": lambda p, q, b: b * torch.logsumexp(p + q * b, 0),
        "the mean of Q under the best policy: its KL is not paid.": lambda p, q, b: (
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
        "the end: after the last token stands the score.": _drops_without_the_end,
        "the sign: after minus before; an error lowers the value.": lambda v, s, m: (
            -_drops(v, s, m)
        ),
        "each value minus the one before it: off by one; what token t did is V after it minus V before it.": lambda v, s, m: (
            torch.where(
                m,
                torch.where(m, v, 0.0)
                - torch.where(m, v, 0.0).roll(1, 1) * (torch.arange(v.shape[1]) > 0),
                0.0,
            )
        ),
        "each value minus the one before it, the first left at 0: off by one; what token t did is V after it minus V before it.": lambda v, s, m: (
            torch.where(m, torch.nn.functional.pad(torch.where(m, v, 0.0).diff(dim=1), (1, 0)), 0.0)
        ),
        "these are the values; asked is what each token changed.": lambda v, s, m: torch.where(
            m, v, 0.0
        ),
    },
)


def _locate_case(g):
    mask = torch.arange(6) < torch.randint(2, 7, (5, 1), generator=g)
    mask[0], mask[1] = torch.arange(6) < 6, torch.arange(6) < 3
    evidence = torch.randn(5, 6, generator=g)
    evidence[2], mask[2] = (
        torch.tensor([0.2, -1.0, 0.3, -1.0, 0.0, 0.0]),
        torch.tensor([True, True, True, True, False, False]),
    )  # a tie
    evidence[3, :2] = torch.tensor([40.0, 70.0])  # all far above 0: still there is a lowest
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
        "the highest was taken: the evidence is low where something went wrong.": lambda e, m: (
            torch.where(m, e, -torch.inf).argmax(1)
        ),
        "padding was set to 0 and won where all real numbers are above it: set it to infinity.": lambda e, m: (
            torch.where(m, e, 0.0).argmin(1)
        ),
        "the largest in size: a very *good* token is no error.": lambda e, m: torch.where(
            m, e.abs(), -torch.inf
        ).argmax(1),
        "of equals the last was taken; the first error comes first.": lambda e, m: (
            e.shape[1] - 1 - torch.where(m, e, torch.inf).flip(1).argmin(1)
        ),
    },
)
