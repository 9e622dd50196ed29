"""Exercises of lesson 04: REINFORCE's loss, the returns of the tokens, a loss with a bug."""

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


def _of_responses(logprobs, mask):
    """(B,) the log-probabilities of the responses."""
    return torch.where(mask, logprobs, 0.0).sum(1)


def _centred(logprobs, scores, mask):
    return -((scores - scores.mean()) * _of_responses(logprobs, mask)).mean()


centred_loss = Exercise(
    "centred_loss",
    ("logprobs", "scores", "mask"),
    _loss_case,
    _centred,
    {
        "the bug is still there. On paper, take two responses of one token, with the advantages 1 "
        "and -1 and the log-probabilities -1 and -3. Which products does the loss need, and which "
        "ones are in the mean?": lambda p, r, m: (
            -((r - r.mean())[:, None] * _of_responses(p, m)).mean()
        ),
        "the sign is wrong. An optimiser minimises, so the loss is "
        "minus the advantage times the log-probability.": lambda p, r, m: -_centred(p, r, m),
        "the baseline is missing. Subtract the mean score of the batch.": _loss,
        "this is the sum over responses. Take the mean.": lambda p, r, m: (
            _centred(p, r, m) * len(r)
        ),
        "this divides by the number of tokens. Sum over the tokens of each response, "
        "then take the mean over responses.": lambda p, r, m: _centred(p, r, m) * len(r) / m.sum(),
        "this is the mean over all positions, with padding. Sum over the tokens of each response, "
        "then take the mean over responses.": lambda p, r, m: _centred(p, r, m) / m.shape[1],
    },
    differentiate=("logprobs",),
)
