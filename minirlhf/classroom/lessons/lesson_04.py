"""Exercises of lesson 04: REINFORCE's loss, the returns of the tokens, a baseline with a bug."""

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


def _loss(logprobs, scores, mask):
    return -(scores * torch.where(mask, logprobs, 0.0).sum(1)).mean()


policy_gradient_loss = Exercise(
    "policy_gradient_loss",
    ("logprobs", "scores", "mask"),
    _loss_case,
    _loss,
    {
        "the sign is wrong. An optimiser minimises, so the loss is "
        "minus the score times the log-probability.": lambda p, r, m: -_loss(p, r, m),
        "this divides by the number of tokens. Sum over the tokens of each response, "
        "then take the mean over responses.": lambda p, r, m: _loss(p, r, m) * len(r) / m.sum(),
        "every score is multiplied with every response: a column (B, 1) times a row (B,) is a "
        "table (B, B). Give both the same shape.": lambda p, r, m: (
            -(r[:, None] * torch.where(m, p, 0.0).sum(1)).mean()
        ),
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
    return torch.where(mask, torch.randn(3, 4, generator=g), torch.nan), mask


def _only(rewards, mask):
    return torch.where(mask, rewards, 0.0)


returns_to_go = Exercise(
    "returns_to_go",
    ("rewards", "mask"),
    _to_go_case,
    returns.reward_to_go,
    {
        "this sums from the left, over the past. "
        "A token's return sums its own reward and the rewards after it.": lambda r, m: _only(
            _only(r, m).cumsum(1), m
        ),
        "every token gets the reward of the whole response. "
        "Leave out the rewards before the token.": lambda r, m: _only(
            _only(r, m).sum(1, keepdim=True), m
        ),
        "the token's own reward is missing.": lambda r, m: returns.reward_to_go(r, m) - _only(r, m),
        "the rows are turned round once too often or too seldom. "
        "The first column must hold the return of the first token.": lambda r, m: _only(
            _only(r, m).flip(1).cumsum(1), m
        ),
        "the returns are right at real tokens. "
        "Where the mask is false they must be 0. They are not.": lambda r, m: torch.where(
            m, returns.reward_to_go(r, m), 1.0
        ),
    },
)


def _value_case(g):
    logprobs, scores, mask = _loss_case(g)
    values = torch.nn.functional.pad(
        torch.where(mask, torch.randn(mask.shape, generator=g), 0.0), (0, 1)
    )
    return logprobs, scores, values, mask


def _baseline(logprobs, scores, values, mask):
    """REINFORCE with one number for each token subtracted from the score."""
    return -((scores[:, None] - values) * torch.where(mask, logprobs, 0.0)).sum(1).mean()


def _with_values(logprobs, scores, values, mask):
    return _baseline(logprobs, scores, values[:, :-1], mask)


baseline_loss = Exercise(
    "baseline_loss",
    ("logprobs", "scores", "values", "mask"),
    _value_case,
    _with_values,
    {
        "the bug is still there. On paper, take one response of two words with the score 0, and V "
        "of the start 0 and 1 after the first word. Which advantages do the two words have? Which "
        "ones does the function give them?": lambda p, r, v, m: _baseline(p, r, v[:, 1:], m),
        "the sign of the loss is wrong. An optimiser minimises, so the loss is "
        "minus the advantage times the log-probability.": lambda p, r, v, m: (
            -_with_values(p, r, v, m)
        ),
        "the advantage is the score minus the value. You add the value.": lambda p, r, v, m: (
            _with_values(p, r, -v, m)
        ),
        "the baseline is missing. Subtract the value of the prefix.": lambda p, r, v, m: (
            _with_values(p, r, 0 * v, m)
        ),
        "V of the start is subtracted at every token. That is a baseline, but subtract the value "
        "of each token's own prefix.": lambda p, r, v, m: _baseline(p, r, v[:, :1], m),
        "this is the change of the value from one prefix to the next. Take the score minus the "
        "value.": lambda p, r, v, m: _baseline(p, 0 * r, v[:, :-1] - v[:, 1:], m),
        "this is the sum over responses. Take the mean.": lambda p, r, v, m: (
            _with_values(p, r, v, m) * len(r)
        ),
        "this divides by the number of tokens. Sum over the tokens of each response, "
        "then take the mean over responses.": lambda p, r, v, m: (
            _with_values(p, r, v, m) * len(r) / m.sum()
        ),
    },
    differentiate=("logprobs",),
)
