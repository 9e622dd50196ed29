"""Lesson 06: PPO's loss, its clipped tokens, its sister with a penalty, and gradients that are accumulated."""

import torch

from minirlhf.classroom.exercise import Exercise
from minirlhf.core import policy_gradient


def _mask(g, rows=3, width=4):
    mask = torch.arange(width) < torch.randint(1, width + 1, (rows, 1), generator=g)
    mask[0] = torch.arange(width) < 2
    return mask


def _tokens_case(g):
    mask = _mask(g)
    old = -0.5 - 2 * torch.rand(3, 4, generator=g)
    new, advantages = old + 0.4 * torch.randn(3, 4, generator=g), torch.randn(3, 4, generator=g)
    return *(torch.where(mask, x, torch.nan) for x in (new, old, advantages)), mask


def _loss_case(g):
    return *_tokens_case(g), 0.1 + 0.2 * torch.rand((), generator=g).item()


def _loss(new, old, advantages, mask, eps):
    return policy_gradient.ppo_clip(new, old, advantages, mask, clip_eps=eps)


def _parts(new, old, advantages, mask):
    new, old, advantages = (torch.where(mask, x, 0.0) for x in (new, old, advantages))
    return (new - old).exp(), advantages


def _clip_only(n, o, a, m, e):
    ratio, a = _parts(n, o, a, m)
    return -ratio.clamp(1 - e, 1 + e) * a


def _greedy(n, o, a, m, e):
    ratio, a = _parts(n, o, a, m)
    return -torch.maximum(ratio * a, ratio.clamp(1 - e, 1 + e) * a)


def _unclipped(n, o, a, m, e):
    ratio, a = _parts(n, o, a, m)
    return -ratio * a


def _from_old(n, o, a, m, e):
    ratio, a = _parts(o, n, a, m)
    return -torch.minimum(ratio * a, ratio.clamp(1 - e, 1 + e) * a)


ppo_loss = Exercise(
    "ppo_loss",
    ("logprobs", "old_logprobs", "advantages", "mask", "eps"),
    _loss_case,
    _loss,
    {
        "the sign: this is what should be maximised; a loss is its negative.": lambda *x: (
            -_loss(*x)
        ),
        "nothing is clipped.": _unclipped,
        "only the clipped term: a token that moved the wrong way must still be pulled back; take the min of both gains.": _clip_only,
        "the larger gain is taken, so the clip never holds: of gains the min, of losses the max.": _greedy,
        "the ratio is upside down: new over old.": _from_old,
        "this is the log-ratio, not the ratio: exp is missing.": lambda n, o, a, m, e: (
            -torch.minimum(*(r * torch.where(m, a, 0.0) for r in _log_ratios(n, o, m, e)))
        ),
        "right as a number, but it carries no gradient: something detaches `logprobs`.": lambda *x: (
            _loss(*x).detach()
        ),
    },
    differentiate=("logprobs",),
)


def _log_ratios(new, old, mask, eps):
    ratio = torch.where(mask, new, 0.0) - torch.where(mask, old, 0.0)
    return ratio, ratio.clamp(1 - eps, 1 + eps)


def _share_case(g):
    new, old, advantages, mask = _tokens_case(g)
    eps = 0.1 + 0.2 * torch.rand((), generator=g).item()
    return torch.where(mask, (new - old).exp(), 5.0), torch.where(mask, advantages, 1.0), mask, eps


def _share(ratio, advantages, mask, eps):
    return (_clipped(ratio, advantages, eps) & mask).sum() / mask.sum()


def _clipped(ratio, advantages, eps):
    return ((advantages > 0) & (ratio > 1 + eps)) | ((advantages < 0) & (ratio < 1 - eps))


clipped_share = Exercise(
    "clipped_share",
    ("ratio", "advantages", "mask", "eps"),
    _share_case,
    _share,
    {
        "every ratio outside the band is counted; a good token below it and a bad one above it still have their gradient.": lambda r, a, m, e: (
            (((r - 1).abs() > e) & m).sum() / m.sum()
        ),
        "padding is counted.": lambda r, a, m, e: _clipped(r, a, e).float().mean(),
        "divided by all places; padding is no token.": lambda r, a, m, e: (
            (_clipped(r, a, e) & m).float().mean()
        ),
        "these are the two cases in which the token is pulled *back*.": lambda r, a, m, e: (
            (_clipped(r, -a, e) & m).sum() / m.sum()
        ),
    },
)


def _penalty_case(g):
    return *_tokens_case(g), 0.2 + torch.rand((), generator=g).item()


def _penalty(new, old, advantages, mask, coef):
    ratio, advantages = _parts(new, old, advantages, mask)
    return -ratio * advantages - coef * torch.where(mask, new - old, 0.0)


ppo_penalty = Exercise(
    "ppo_penalty",
    ("logprobs", "old_logprobs", "advantages", "mask", "coef"),
    _penalty_case,
    _penalty,
    {
        "the KL is the other way round: under texts of the old policy, log pi_old - log pi.": lambda n, o, a, m, c: (
            _penalty(n, o, a, m, -c)
        ),
        "k2: its gradient here is not the KL's; the plain log-ratio's is, since the policy that samples does not move.": lambda n, o, a, m, c: (
            _penalty(n, o, a, m, 0.0) + 0.5 * c * torch.where(m, n - o, 0.0).square()
        ),
        "k3: its mean gradient is right here too, but the plain log-ratio was asked for.": lambda n, o, a, m, c: (
            _penalty(n, o, a, m, c) + c * (_parts(n, o, a, m)[0] - 1)
        ),
        "the penalty is missing.": lambda n, o, a, m, c: _penalty(n, o, a, m, 0.0),
        "the coefficient is missing.": lambda n, o, a, m, c: _penalty(n, o, a, m, 1.0),
        "the sign of the first term: what is gained stands in a loss with a minus.": lambda n, o, a, m, c: (
            _penalty(n, o, -a, m, c)
        ),
    },
    differentiate=("logprobs",),
)


def _accumulate_case(g):
    mask = _mask(g, rows=6)
    mask[0], mask[1] = torch.arange(4) < 1, torch.arange(4) < 4
    return (
        torch.where(mask, torch.randn(6, 4, generator=g), torch.nan),
        mask,
        int(torch.randint(1, 4, (), generator=g)),
    )


def _chunks(losses, mask, size):
    return [
        (torch.where(m, x, 0.0), m)
        for x, m in zip(losses.split(size), mask.split(size), strict=True)
    ]


accumulated_loss = Exercise(
    "accumulated_loss",
    ("losses", "mask", "size"),
    _accumulate_case,
    lambda x, m, s: torch.where(m, x, 0.0).sum() / m.sum(),
    {
        "still each micro-batch is divided by its own tokens: tokens of short texts weigh more.": lambda x, m, s: (
            torch.stack([a.sum() / b.sum() for a, b in _chunks(x, m, s)]).mean()
        ),
        "the micro-batches' means are added without sharing: the step grows with their number.": lambda x, m, s: (
            torch.stack([a.sum() / b.sum() for a, b in _chunks(x, m, s)]).sum()
        ),
        "divided by the number of texts; the token mean divides by the batch's tokens.": lambda x, m, s: (
            torch.where(m, x, 0.0).sum() / len(m)
        ),
        "divided by all places; padding is no token.": lambda x, m, s: torch.where(
            m, x, 0.0
        ).mean(),
        "each text is divided by its own length.": lambda x, m, s: (
            torch.where(m, x, 0.0).sum(1) / m.sum(1)
        ).mean(),
    },
    differentiate=("losses",),
)
