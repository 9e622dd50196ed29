"""Lesson 04: the policy gradient as a loss, what a token answers for, the quietest baseline, and whitening that is none."""

import torch

from minirlhf.classroom.exercise import Exercise
from minirlhf.core import returns


def _rows(g, rows=3, width=4):
    """A mask (rows, width) whose first row has padding."""
    mask = torch.arange(width) < torch.randint(1, width + 1, (rows, 1), generator=g)
    mask[0] = torch.arange(width) < 2
    return mask


def _loss_case(g):
    mask = _rows(g)
    return (
        torch.where(mask, -2 * torch.rand(3, 4, generator=g), torch.nan),
        torch.randn(3, generator=g),
        mask,
    )


def _loss(logprobs, rewards, mask):
    return -(rewards * torch.where(mask, logprobs, 0.0).sum(1)).mean()


policy_gradient_loss = Exercise(
    "policy_gradient_loss",
    ("logprobs", "rewards", "mask"),
    _loss_case,
    _loss,
    {
        "the sign: an optimiser goes down, so the loss is minus reward times log-probability.": lambda p, r, m: (
            -_loss(p, r, m)
        ),
        "divided by the number of tokens: sum over a text's tokens, then the mean over texts.": lambda p, r, m: (
            _loss(p, r, m) * len(r) / m.sum()
        ),
        "each text is divided by its own length; sum over its tokens.": lambda p, r, m: (
            -(r * torch.where(m, p, 0.0).sum(1) / m.sum(1)).mean()
        ),
        "summed over texts; take their mean, or the step grows with the batch.": lambda p, r, m: (
            _loss(p, r, m) * len(r)
        ),
        "these are probabilities, not logarithms: the gradient of pi is not the one of log pi.": lambda p, r, m: (
            -(r[:, None] * torch.where(m, p, -torch.inf).exp()).sum(1).mean()
        ),
        "right as a number, but it carries no gradient: `.item()`, `.detach()` or `no_grad` cut it off.": lambda p, r, m: (
            _loss(p, r, m).detach()
        ),
    },
    differentiate=("logprobs",),
)


def _to_go_case(g):
    mask = _rows(g)
    return (
        torch.where(mask, torch.randn(3, 4, generator=g), torch.nan),
        mask,
        0.3 + 0.6 * torch.rand((), generator=g).item(),
    )


def _to_go(rewards, mask, gamma):
    return returns.reward_to_go(rewards, mask, gamma=gamma)


discounted_to_go = Exercise(
    "discounted_to_go",
    ("rewards", "mask", "gamma"),
    _to_go_case,
    _to_go,
    {
        "gamma is not used.": lambda r, m, g: _to_go(r, m, 1.0),
        "this sums from the left: the past. A token answers for itself and what comes after.": lambda r, m, g: (
            torch.where(m, torch.where(m, r, 0.0).cumsum(1), 0.0)
        ),
        "every token gets the whole text's reward; leave out what was paid before it.": lambda r, m, g: (
            torch.where(m, torch.where(m, r, 0.0).sum(1, keepdim=True), 0.0)
        ),
        "this discounts from the start of the text; G_t counts from token t on: its own reward has weight 1.": lambda r, m, g: (
            _to_go(torch.where(m, r, 0.0) * g ** torch.arange(r.shape[1]), m, 1.0)
        ),
        "a token's own reward is missing.": lambda r, m, g: (
            _to_go(r, m, g) - torch.where(m, r, 0.0)
        ),
        "a token's own reward is discounted too; it has weight 1, the next one gamma.": lambda r, m, g: (
            g * _to_go(r, m, g)
        ),
    },
)

least_noise_baseline = Exercise(
    "least_noise_baseline",
    ("squares", "returns"),
    lambda g: (torch.rand(6, generator=g) + 0.1, torch.randn(6, generator=g)),
    lambda s, r: (s * r).sum() / s.sum(),
    {
        "this is the plain mean: it makes sum (G - b)^2 least, not the one weighted with the squared pushes.": lambda s, r: (
            r.mean()
        ),
        "the weights do not sum to 1: divide by their sum, not by n.": lambda s, r: (s * r).mean(),
        "the squares are squared already; weigh with them as they are.": lambda s, r: (
            (s.square() * r).sum() / s.square().sum()
        ),
        "weigh with the squares, not with their roots.": lambda s, r: (
            (s.sqrt() * r).sum() / s.sqrt().sum()
        ),
    },
)


def _white(rewards):
    return (rewards - rewards.mean()) / (rewards.std(unbiased=False) + 1e-8)


whitened = Exercise(
    "whitened",
    ("rewards",),
    lambda g: (3 + 2 * torch.randn(8, generator=g),),
    _white,
    {
        "still the mean comes back at the end: that is the noise of no baseline.": lambda r: (
            _white(r) + r.mean()
        ),
        "the standard deviation divides by n - 1; this exercise, as the package, by n: std(unbiased=False).": lambda r: (
            (r - r.mean()) / r.std()
        ),
        "mean 0, but the standard deviation is not 1: divide by the root of the mean square.": lambda r: (
            r - r.mean()
        ),
        "divided by the variance; the standard deviation is its root.": lambda r: (
            (r - r.mean()) / r.var(unbiased=False)
        ),
        "the standard deviation is 1, but the mean is still there.": lambda r: (
            r / r.std(unbiased=False)
        ),
    },
)
