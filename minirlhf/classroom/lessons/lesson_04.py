"""Exercises of lesson 04: the policy gradient as a loss, reward-to-go, the baseline of least
variance, and whitening with a bug."""

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
        "the sign is wrong. An optimiser minimises, so the loss is "
        "minus the reward times the log-probability.": lambda p, r, m: -_loss(p, r, m),
        "this divides by the number of tokens. Sum over the tokens of each response, "
        "then take the mean over responses.": lambda p, r, m: _loss(p, r, m) * len(r) / m.sum(),
        "each response is divided by its own length. Sum over its tokens.": lambda p, r, m: (
            -(r * torch.where(m, p, 0.0).sum(1) / m.sum(1)).mean()
        ),
        "this is the sum over responses. Take the mean, because with a sum "
        "the step grows with the batch.": lambda p, r, m: _loss(p, r, m) * len(r),
        "these are probabilities, not log-probabilities. "
        "The gradient of pi is not the gradient of log pi.": lambda p, r, m: (
            -(r[:, None] * torch.where(m, p, -torch.inf).exp()).sum(1).mean()
        ),
        "the value is right, but it carries no gradient. "
        "`.item()`, `.detach()` or `no_grad` removes it.": lambda p, r, m: _loss(p, r, m).detach(),
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
        "this sums from the left, over the past. "
        "A token's return sums its own reward and the rewards after it.": lambda r, m, g: (
            torch.where(m, torch.where(m, r, 0.0).cumsum(1), 0.0)
        ),
        "every token gets the reward of the whole response. "
        "Leave out the rewards before the token.": lambda r, m, g: torch.where(
            m, torch.where(m, r, 0.0).sum(1, keepdim=True), 0.0
        ),
        "this discounts from the start of the response. "
        "G_t discounts from token t on, so the reward of token t has weight 1.": lambda r, m, g: (
            _to_go(torch.where(m, r, 0.0) * g ** torch.arange(r.shape[1]), m, 1.0)
        ),
        "the token's own reward is missing.": lambda r, m, g: (
            _to_go(r, m, g) - torch.where(m, r, 0.0)
        ),
        "the token's own reward is discounted too. It has weight 1, and the next "
        "reward has weight gamma.": lambda r, m, g: g * _to_go(r, m, g),
    },
)

least_noise_baseline = Exercise(
    "least_noise_baseline",
    ("squares", "returns"),
    lambda g: (torch.rand(6, generator=g) + 0.1, torch.randn(6, generator=g)),
    lambda s, r: (s * r).sum() / s.sum(),
    {
        "this is the plain mean, which minimises sum (G - b)^2. "
        "Minimise the sum that is weighted with `squares`.": lambda s, r: r.mean(),
        "the weights do not sum to 1. Divide by the sum of the weights, not by n.": lambda s, r: (
            s * r
        ).mean(),
        "`squares` are squared already. "
        "Use them as weights without squaring them again.": lambda s, r: (
            (s.square() * r).sum() / s.square().sum()
        ),
        "use `squares` as the weights, not their square roots.": lambda s, r: (
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
        "the bug is still there: the mean is added again at the end. "
        "This brings back the noise of having no baseline.": lambda r: _white(r) + r.mean(),
        "the standard deviation divides by n - 1. This exercise, like the package, "
        "divides by n: std(unbiased=False).": lambda r: (r - r.mean()) / r.std(),
        "the mean is 0, but the standard deviation is not 1. "
        "Divide by the standard deviation: the "
        "root of the mean square of what is left.": lambda r: r - r.mean(),
        "this divides by the variance. Divide by the standard "
        "deviation, its square root.": lambda r: (r - r.mean()) / r.var(unbiased=False),
        "the standard deviation is 1, but the mean is not subtracted.": lambda r: (
            r / r.std(unbiased=False)
        ),
    },
)
