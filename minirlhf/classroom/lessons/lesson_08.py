"""Lesson 08: the Bradley-Terry loss, the best of several, zero and unit, and a score that is read beside the text."""

import torch
from torch.nn.functional import logsigmoid

from minirlhf.classroom.exercise import Exercise
from minirlhf.core.bradley_terry import last_token_scores


def _pair_case(g):
    chosen, rejected = 2 * torch.randn(2, 5, generator=g)
    chosen[0], rejected[0] = -100.0, 100.0  # far apart, and wrong
    return chosen, rejected


def _loss(chosen, rejected):
    return -logsigmoid(chosen - rejected).mean()


bradley_terry_loss = Exercise(
    "bradley_terry_loss",
    ("chosen_scores", "rejected_scores"),
    _pair_case,
    _loss,
    {
        "log(sigmoid(x)) is minus infinity at -200: use logsigmoid.": lambda c, r: (
            -torch.sigmoid(c - r).log().mean()
        ),
        "chosen and rejected are exchanged: this makes rejected texts score higher.": lambda c, r: (
            _loss(r, c)
        ),
        "the sign: a loss is minus the log-probability.": lambda c, r: -_loss(c, r),
        "the sum over pairs; take the mean, or the step grows with the batch.": lambda c, r: (
            _loss(c, r) * len(c)
        ),
        "this is a hinge, not the log-probability of a choice.": lambda c, r: torch.relu(
            1 - (c - r)
        ).mean(),
        "this is the probability of the wrong choice, not its log-loss.": lambda c, r: (
            torch.sigmoid(r - c).mean()
        ),
    },
    differentiate=("chosen_scores", "rejected_scores"),
)


def _best_case(g):
    return 2 * torch.randn(4, 3, generator=g), torch.randint(3, (4,), generator=g)


def _best(scores, chosen):
    return -scores.log_softmax(1).gather(1, chosen[:, None]).mean()


def _against_each(scores, chosen):
    won = scores.gather(1, chosen[:, None])
    others = torch.ones_like(scores, dtype=torch.bool).scatter(1, chosen[:, None], False)
    return -torch.where(others, logsigmoid(won - scores), 0.0).sum(1).mean()


best_of_k_loss = Exercise(
    "best_of_k_loss",
    ("scores", "chosen"),
    _best_case,
    _best,
    {
        "this makes K - 1 independent comparisons of one choice; choosing the best of K is one event, a softmax.": _against_each,
        "the softmax runs over the batch: the texts that were compared are in the last axis.": lambda s, c: (
            -s.log_softmax(0).gather(1, c[:, None]).mean()
        ),
        "the sign: a loss is minus the log-probability.": lambda s, c: -_best(s, c),
        "this is a probability, not its logarithm.": lambda s, c: (
            -s.softmax(1).gather(1, c[:, None]).mean()
        ),
        "this is the loss of the text that the *model* likes best; people chose another.": lambda s, c: (
            -s.log_softmax(1).amax(1).mean()
        ),
    },
    differentiate=("scores",),
)

in_sft_units = Exercise(
    "in_sft_units",
    ("scores", "sft_scores"),
    lambda g: (torch.randn(4, generator=g), 2 + 3 * torch.randn(6, generator=g)),
    lambda s, b: (s - b.mean()) / b.std(),
    {
        "zero and unit are taken from the scores themselves: then every policy has mean 0. Take them from the SFT samples.": lambda s, b: (
            (s - s.mean()) / s.std()
        ),
        "the unit is missing: divide by the standard deviation of the SFT samples.": lambda s, b: (
            s - b.mean()
        ),
        "the zero is missing.": lambda s, b: s / b.std(),
        "divided before the mean was taken off.": lambda s, b: s / b.std() - b.mean(),
        "divided by the variance.": lambda s, b: (s - b.mean()) / b.var(),
    },
)


def _read_case(g):
    left, right = torch.randint(0, 3, (2, 3, 1), generator=g)
    left[0], right[0] = 1, 1
    places = torch.arange(6)
    return torch.randn(3, 6, generator=g), (places >= left) & (places < 6 - right)


read_score = Exercise(
    "read_score",
    ("token_scores", "attention_mask"),
    _read_case,
    last_token_scores,
    {
        "still the number of real tokens for a place: with padding on the left the text begins later.": lambda s, m: (
            s.gather(1, m.long().sum(1)[:, None].clamp(max=5))[:, 0]
        ),
        "one back is right only without padding on the left.": lambda s, m: s.gather(
            1, m.long().sum(1)[:, None] - 1
        )[:, 0],
        "this is the last column: padding, where the response is short.": lambda s, m: s[:, -1],
        "this is the first real token; the score is read where all has been read.": lambda s, m: (
            s.gather(1, m.long().argmax(1, keepdim=True))[:, 0]
        ),
        "this is the mean over the text; the score is read at its last token.": lambda s, m: (
            torch.where(m, s, 0.0).sum(1) / m.sum(1)
        ),
    },
)
