"""Exercises of lesson 13: soft values, the values inside a policy, and blaming a step."""

import torch

from minirlhf.classroom.exercise import Exercise
from minirlhf.core import reward_to_go


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
        "exp(900) is infinite. Add the logarithms of the two factors first, "
        "then use logsumexp.": lambda p, q, b: b * (p.exp() * (q / b).exp()).sum().log(),
        "this sums exp(Q / beta) without its weights. Each token counts with its probability "
        "under the reference, not with its log-probability.": lambda p, q, b: (
            b * torch.logsumexp(p * q / b, 0)
        ),
    },
    edges=((torch.tensor([0.5, 0.25, 0.25]).log(), torch.tensor([900.0, -900.0, 0.0]), 1.0),),
)


def _prefix_case(g):
    mask = torch.arange(5) < torch.randint(1, 6, (4, 1), generator=g)
    mask[0], mask[1] = torch.arange(5) < 5, torch.arange(5) < 2
    new, ref = (torch.where(mask, -4 * torch.rand(4, 5, generator=g), torch.nan) for _ in range(2))
    rewards = torch.randn(4, generator=g)
    return new, ref, rewards, mask, 0.1 + torch.rand((), generator=g).item()


def _gains(new, ref, mask, beta):
    return beta * (torch.where(mask, new, 0.0) - torch.where(mask, ref, 0.0))


def _values(new, ref, rewards, mask, beta):
    to_come = reward_to_go(_gains(new, ref, mask, beta), mask)
    return torch.where(mask, rewards[:, None] - to_come, 0.0)


def _after(new, ref, rewards, mask, beta):
    gains = _gains(new, ref, mask, beta)
    return torch.where(mask, rewards[:, None] - reward_to_go(gains, mask) + gains, 0.0)


def _from_the_start(new, ref, rewards, mask, beta, before=True):
    gains = _gains(new, ref, mask, beta)
    return torch.where(mask, gains.cumsum(1) - gains * before, 0.0)


prefix_values = Exercise(
    "prefix_values",
    ("logprobs", "ref_logprobs", "rewards", "mask", "beta"),
    _prefix_case,
    _values,
    {
        "these are the values after each token. At the last token that is the reward itself. "
        "Return the value before each token.": _after,
        "this sums from the start of the response, so it is V* minus its value at the prompt. "
        "You know the reward, which stands at the end: sum from there.": _from_the_start,
        "this sums from the start of the response, and it includes the token itself. "
        "You know the reward, which stands at the end: sum from there.": lambda *x: _from_the_start(
            *x, before=False
        ),
        "this sums from the start and adds the result to the reward. "
        "At the prompt V* is the reward minus the sum over all tokens.": lambda n, r, s, m, b: (
            torch.where(m, s[:, None] + _from_the_start(n, r, s, m, b), 0.0)
        ),
        "the sign is wrong. The value before a token is the reward minus "
        "what this token and the later ones gained.": lambda n, r, s, m, b: _values(r, n, s, m, b),
        "this is what the tokens gain from here on. Subtract it from the reward.": (
            lambda n, r, s, m, b: reward_to_go(_gains(n, r, m, b), m)
        ),
        "this is the reward minus the gain of this token alone. "
        "The later tokens gain something, too.": lambda n, r, s, m, b: torch.where(
            m, s[:, None] - _gains(n, r, m, b), 0.0
        ),
        "beta is missing.": lambda n, r, s, m, b: _values(n, r, s, m, 1.0),
        "this divides by beta. The implicit reward is "
        "beta times the log-ratio.": lambda n, r, s, m, b: _values(n, r, s, m, 1 / b),
        "the reference is missing. The gain of a token is "
        "beta times its log-ratio.": lambda n, r, s, m, b: _values(n, torch.zeros_like(r), s, m, b),
        "the padding holds the reward. It must be 0 there.": lambda n, r, s, m, b: (
            s[:, None] - reward_to_go(_gains(n, r, m, b), m)
        ),
    },
)


def _policy_case(g):
    policy, ref = torch.randn(2, 5, generator=g).log_softmax(1)
    return policy, ref, 2 * torch.randn(5, generator=g), 0.2 + torch.rand((), generator=g).item()


def _value_of(policy, ref, q, beta):
    return (policy.exp() * (q - beta * (policy - ref))).sum()


state_value = Exercise(
    "state_value",
    ("logprobs", "ref_logprobs", "q", "beta"),
    _policy_case,
    _value_of,
    {
        "the bug is still there. On paper, take q = (0, 0), beta = 1, a reference with "
        "(0.5, 0.5) and a policy with (0.9, 0.1). Write down the two terms of the KL penalty of "
        "section 2. Their sum is 0.37. Which sum does this function compute?": lambda p, r, q, b: (
            (p.exp() * q).sum() - b * (r.exp() * (r - p)).sum()
        ),
        "the log-ratios of the KL penalty are weighted with the probabilities of the reference. "
        "But the policy chooses the tokens.": lambda p, r, q, b: (
            (p.exp() * q).sum() - b * (r.exp() * (p - r)).sum()
        ),
        "everything is a mean under the reference. "
        "But the policy chooses the tokens.": lambda p, r, q, b: (
            r.exp() * (q - b * (p - r))
        ).sum(),
        "the KL penalty is missing. Without it the value can be above V*.": lambda p, r, q, b: (
            p.exp() * q
        ).sum(),
        "this is V*, the value of the best policy. "
        "Return the value of the policy that is given.": lambda p, r, q, b: _soft(r, q, b),
        "the sign of the KL penalty is wrong. It lowers the value: take q minus beta times "
        "(policy minus reference).": lambda p, r, q, b: _value_of(p, r, q, -b),
        "the reference is missing from the KL penalty: "
        "this is the penalty of a reference that gives every token the same probability, "
        "up to a constant.": lambda p, r, q, b: (p.exp() * (q - b * p)).sum(),
        "this is a plain mean over the tokens. Weight each token by the probability "
        "that the policy gives it.": lambda p, r, q, b: (q - b * (p - r)).mean(),
        "this is a sum over the tokens. Weight each token by the probability "
        "that the policy gives it.": lambda p, r, q, b: (q - b * (p - r)).sum(),
        "the log-probability is used as the weight of a token. "
        "Take its exponential.": lambda p, r, q, b: (p * (q - b * (p - r))).sum(),
    },
)


def _steps_case(g):
    mask = torch.arange(8) < torch.randint(3, 9, (5, 1), generator=g)
    mask[0], mask[1] = torch.arange(8) < 8, torch.arange(8) < 3
    evidence, equals = torch.randn(5, 8, generator=g), torch.rand(5, 8, generator=g) < 0.3
    evidence[0, :4] = torch.tensor([0.2, -9.0, 0.3, 0.1])
    equals[0, :4] = torch.tensor([True, True, False, True])  # the blamed token is an "="
    # Row 2 has two equal lowest values in different steps.
    evidence[2] = torch.tensor([0.2, -4.0, 0.3, -4.0, 0.0, 0.0, 0.0, 0.0])
    equals[2] = torch.tensor([False, False, True, False, False, False, True, False])
    mask[2] = torch.arange(8) < 5
    evidence[3, :4] = torch.tensor([30.0, 70.0, 60.0, 40.0])  # all real values are far above 0
    equals[3] = torch.tensor([True, False, True, False, True, False, False, False])
    mask[3] = torch.arange(8) < 4
    return torch.where(mask, evidence, torch.nan), equals, mask


def _lowest(evidence, mask, padding=torch.inf):
    return torch.where(mask, evidence, padding).argmin(1)


def _step_of(at, equals):
    before = equals.long().cumsum(1) - equals.long()
    return before.gather(1, at[:, None])[:, 0]


def _last_of_equals(evidence, mask):
    return evidence.shape[1] - 1 - torch.where(mask, evidence, torch.inf).flip(1).argmin(1)


def _highest(evidence, mask):
    return torch.where(mask, evidence, -torch.inf).argmax(1)


def _largest(evidence, mask):
    return torch.where(mask, evidence.abs(), -torch.inf).argmax(1)


def _least_sum(evidence, equals, mask):
    step = equals.long().cumsum(1) - equals.long()
    real = torch.where(mask, evidence, 0.0)
    sums = torch.zeros(len(step), 9).scatter_add(1, step, real)
    there = torch.zeros(len(step), 9).scatter_add(1, step, mask.float()) > 0
    return torch.where(there, sums, torch.inf).argmin(1)


blamed_step = Exercise(
    "blamed_step",
    ("evidence", "equals", "mask"),
    _steps_case,
    lambda e, q, m: _step_of(_lowest(e, m), q),
    {
        'a "=" is counted in the step that follows it. It belongs to the step that it '
        'ends: count the "=" before the token.': lambda e, q, m: (
            q.long().cumsum(1).gather(1, _lowest(e, m)[:, None])[:, 0]
        ),
        'a "=" is counted in the step that follows it, and padding was set to 0. A "=" belongs to '
        "the step that it ends. And 0 is the lowest where all real values are above 0: set the "
        "padding to infinity.": lambda e, q, m: (
            q.long().cumsum(1).gather(1, _lowest(e, m, 0.0)[:, None])[:, 0]
        ),
        "the lowest value was searched in the padding, too, where NaN counts as the lowest. "
        "Set the padding to infinity before you search.": lambda e, q, m: _step_of(e.argmin(1), q),
        'the padding was searched, too, where NaN counts as the lowest. And a "=" is counted in '
        "the step that follows it, but it belongs to the step that it ends.": lambda e, q, m: (
            q.long().cumsum(1).gather(1, e.argmin(1)[:, None])[:, 0]
        ),
        'this is the number of all "=" in the row. Count only those before the blamed token.': (
            lambda e, q, m: q.long().sum(1)
        ),
        'this is the number of real "=" in the response. Count only those before the blamed '
        "token.": lambda e, q, m: (q & m).long().sum(1),
        "this is the number of the token. Return the number of its step.": lambda e, q, m: _lowest(
            e, m
        ),
        "steps are counted from 1. Count from 0.": lambda e, q, m: _step_of(_lowest(e, m), q) + 1,
        "padding was set to 0, so it is the lowest where all real values are above 0. "
        "Set it to infinity.": lambda e, q, m: _step_of(_lowest(e, m, 0.0), q),
        "you took the highest value. "
        "The evidence is low where something went wrong.": lambda e, q, m: _step_of(
            _highest(e, m), q
        ),
        "you took the largest absolute value. A very *good* token is not an error.": (
            lambda e, q, m: _step_of(_largest(e, m), q)
        ),
        "of several equal values you took the last. "
        "Take the first: the first error comes first.": lambda e, q, m: _step_of(
            _last_of_equals(e, m), q
        ),
        "this is the step whose tokens have the lowest sum. "
        "Take the step of the lowest token.": _least_sum,
    },
)
