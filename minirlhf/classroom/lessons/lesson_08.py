"""Exercises of lesson 08: the Bradley-Terry loss, a choice among K, scores in units of the SFT
samples, and a score read at the wrong position."""

import torch
from torch.nn.functional import logsigmoid

from minirlhf.classroom.exercise import Exercise
from minirlhf.core.bradley_terry import last_token_scores


def _pair_case(g):
    chosen, rejected = 2 * torch.randn(2, 5, generator=g)
    chosen[0], rejected[0] = -100.0, 100.0  # far apart, in the wrong order
    return chosen, rejected


def _loss(chosen, rejected):
    return -logsigmoid(chosen - rejected).mean()


bradley_terry_loss = Exercise(
    "bradley_terry_loss",
    ("chosen_scores", "rejected_scores"),
    _pair_case,
    _loss,
    {
        "log(sigmoid(x)) is minus infinity at x = -200. Use logsigmoid.": lambda c, r: (
            -torch.sigmoid(c - r).log().mean()
        ),
        "chosen and rejected are exchanged: this "
        "makes the rejected responses score higher.": lambda c, r: _loss(r, c),
        "the sign is wrong. A loss is minus the log-probability.": lambda c, r: -_loss(c, r),
        "this is the sum over pairs. Take the mean, because with a sum "
        "the step grows with the batch.": lambda c, r: _loss(c, r) * len(c),
        "this is a hinge loss, not minus the log-probability of a choice.": lambda c, r: torch.relu(
            1 - (c - r)
        ).mean(),
        "this is the probability of the wrong choice. The loss is minus the "
        "log-probability of the right choice.": lambda c, r: torch.sigmoid(r - c).mean(),
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
        "this counts one choice as K - 1 independent comparisons. "
        "Choosing the best of K is one event: use a softmax.": _against_each,
        "the softmax runs over the batch. "
        "The responses that were compared are on the last axis.": lambda s, c: (
            -s.log_softmax(0).gather(1, c[:, None]).mean()
        ),
        "the sign is wrong. A loss is minus the log-probability.": lambda s, c: -_best(s, c),
        "this is a probability, not its logarithm.": lambda s, c: (
            -s.softmax(1).gather(1, c[:, None]).mean()
        ),
        "this is the loss of the response that the *model* scores highest. "
        "Use the response that people chose.": lambda s, c: -s.log_softmax(1).amax(1).mean(),
    },
    differentiate=("scores",),
)

in_sft_units = Exercise(
    "in_sft_units",
    ("scores", "sft_scores"),
    lambda g: (torch.randn(4, generator=g), 2 + 3 * torch.randn(6, generator=g)),
    lambda s, b: (s - b.mean()) / b.std(),
    {
        "the mean and standard deviation are those of the scores themselves. "
        "Then every policy has mean 0. "
        "Take both from the SFT samples.": lambda s, b: (s - s.mean()) / s.std(),
        "the unit is missing. Divide by the standard deviation of the SFT samples.": lambda s, b: (
            s - b.mean()
        ),
        "the mean of the SFT samples is not subtracted.": lambda s, b: s / b.std(),
        "you divided before you subtracted the mean. Subtract first.": lambda s, b: (
            s / b.std() - b.mean()
        ),
        "this divides by the variance. Divide by the standard deviation.": lambda s, b: (
            (s - b.mean()) / b.var()
        ),
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
        "the bug is still there: the number of real tokens is used as a position. "
        "With padding on the left, the sequence begins later.": lambda s, m: s.gather(
            1, m.long().sum(1)[:, None].clamp(max=5)
        )[:, 0],
        "the number of real tokens minus 1 is the right "
        "position only without padding on the left.": lambda s, m: s.gather(
            1, m.long().sum(1)[:, None] - 1
        )[:, 0],
        "this reads the last column, which is padding where the response is short.": lambda s, m: s[
            :, -1
        ],
        "this is the first real token. "
        "Read the score where the whole sequence has been read, at the last one.": lambda s, m: (
            s.gather(1, m.long().argmax(1, keepdim=True))[:, 0]
        ),
        "this is the mean over the sequence. "
        "The score is read at its last real token.": lambda s, m: (
            torch.where(m, s, 0.0).sum(1) / m.sum(1)
        ),
    },
)
