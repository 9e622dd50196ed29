"""Exercises of lesson 13: soft values, values inside a policy, of any policy; locating errors."""

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


def _from_the_start(new, ref, rewards, mask, beta, *, before=True):
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
        "this sums from the start of the response and takes the sum from the reward. The reward is "
        "known at the end. Take from it what the tokens from here to the end gain.": (
            lambda n, r, s, m, b: torch.where(
                m, s[:, None] - _from_the_start(n, r, s, m, b, before=False), 0.0
            )
        ),
        "this sums from the start of the response and takes the sum of the earlier tokens from the "
        "reward. Take from it what the tokens from here to the end gain.": (
            lambda n, r, s, m, b: torch.where(m, s[:, None] - _from_the_start(n, r, s, m, b), 0.0)
        ),
        "this sums from the start of the response, and the padding holds the sum. You know the "
        "reward, which stands at the end: sum from there. The padding must be 0.": (
            lambda n, r, s, m, b: _gains(n, r, m, b).cumsum(1)
        ),
        "this sums the earlier tokens from the start, and the padding holds the sum. You know the "
        "reward, which stands at the end: sum from there. The padding must be 0.": (
            lambda n, r, s, m, b: _gains(n, r, m, b).cumsum(1) - _gains(n, r, m, b)
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
        "every place holds V* of the prompt. A later prefix has its own value: take from the "
        "reward only what the tokens from there to the end gain.": lambda n, r, s, m, b: (
            torch.where(m, s[:, None] - _gains(n, r, m, b).sum(1, keepdim=True), 0.0)
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
        "the bug is still there. Take the hint's two tokens with beta = 1. Compute the value by "
        "hand and with this function. Which of its two terms differs? Write out the sum that the "
        "function computes for it.": lambda p, r, q, b: (
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


def _cases_with_errors(g):
    size = torch.randint(3, 8, (6, 1), generator=g)  # with EOS
    size[0], size[1], size[4:] = 7, 3, 4
    mask = torch.arange(7) < size
    place = (torch.rand(6, generator=g) * (size[:, 0] - 1)).long()
    place[0], place[1], place[3] = 5, 1, 0  # the last digit of rows 0 and 1
    evidence = torch.randn(6, 7, generator=g) + torch.tensor([3.0, -3.0] * 3)[:, None]
    found = torch.arange(6) % 3 < 2  # the method sees these errors
    evidence[torch.arange(6), place] -= 4.0 * found
    evidence[1] = -0.3 * torch.rand(7, generator=g)  # above ordinary numbers in its padding
    evidence[1, place[1]] = -0.35
    evidence[4:] = 0.5 + torch.rand(2, 7, generator=g)  # above 0, a padding of zeros
    evidence[[4, 5], place[4:]] = 0.2
    return torch.where(mask, evidence, torch.nan), place, mask


def _shares(evidence, place, mask, *, back=2):
    """The three shares; the rule takes the token that stands `back` before the end."""
    size = mask.sum(1)
    blamed = torch.where(mask, evidence, torch.inf).argmin(1)
    hits = [(blamed == place).float(), (size - back == place).float(), 1 / size]
    return torch.stack(hits).mean(1)


def _with_share(at, value):
    """A mistake: the reference with another number for one of the three shares."""

    def wrong(evidence, place, mask):
        shares = _shares(evidence, place, mask)
        shares[at] = value(evidence, place, mask)
        return shares

    return wrong


def _hit(blamed, place):
    return (blamed == place).float().mean()


blame_shares = Exercise(
    "blame_shares",
    ("evidence", "place", "mask"),
    _cases_with_errors,
    _shares,
    {
        "the method blames the token with the highest evidence. "
        "It must blame the one with the lowest.": _with_share(
            0, lambda e, p, m: _hit(torch.where(m, e, -torch.inf).argmax(1), p)
        ),
        "the method can blame the padding: its numbers take part in the minimum. "
        "Use the mask.": _with_share(0, lambda e, p, m: _hit(e.argmin(1), p)),
        "the evidence is 0 in the padding. If a response has only positive evidence, 0 is the "
        "lowest and the padding is blamed. Put infinity there.": _with_share(
            0, lambda e, p, m: _hit(torch.where(m, e, 0.0).argmin(1), p)
        ),
        "the mask comes by multiplication: NaN times 0 is NaN, and 0 can be the lowest number. "
        "Put infinity in the padding, with torch.where.": _with_share(
            0, lambda e, p, m: _hit((e * m).argmin(1), p)
        ),
        "the rule blames EOS, where no digit stands. The last digit stands before EOS.": (
            lambda *x: _shares(*x, back=1)
        ),
        "the rule takes the end of the padded row. "
        "The last digit of a response depends on its length: count with the mask.": _with_share(
            1, lambda e, p, m: _hit(torch.full_like(p, m.shape[1] - 2), p)
        ),
        "the random token is drawn from the padded row. "
        "Draw it from the tokens of the response.": _with_share(2, lambda e, p, m: 1 / m.shape[1]),
        "the random token is drawn without EOS. EOS can be drawn, too.": _with_share(
            2, lambda e, p, m: (1 / (m.sum(1) - 1)).mean()
        ),
        "the share of a random token is 1 / (mean length). Responses differ in length: take the "
        "mean of 1 / length.": _with_share(2, lambda e, p, m: 1 / m.sum(1).float().mean()),
        "these are numbers of responses. Divide by B to get shares.": lambda e, p, m: (
            len(p) * _shares(e, p, m)
        ),
        "the shares of the rule and of the random token are swapped.": lambda *x: _shares(*x)[
            [0, 2, 1]
        ],
    },
)
