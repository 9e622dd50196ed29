"""What the tests of lessons 14 and 14b share: the records, and gold at equal KL.

Gold at equal KL is how far a preference run lies above the curve of DPO at several values of beta.

Each seed has a curve of its own: DPO's runs at four values of beta, linear in log KL, and level
beyond its ends. Lessons 14 and 14b quote these numbers. They are computed here without the package's
`experiments.above_curve`, and must agree with it. Only the interval of the differences is the
package's `interval_over_both`, which `tests/experiments/test_tables.py` tests.
"""

from functools import cache

import torch
from scipy.stats import t as student_t

from minirlhf import experiments
from minirlhf.experiments.tables import interval_over_both

# the losses that lab 14b compares; one that is added later is not in the lessons
COMPARED = (
    "dpo",
    "cdpo",
    "robust",
    "ipo",
    "ipo-mean",
    "hinge",
    "dpop",
    "nca",
    "tdpo",
    "kto",
    "cpo",
    "simpo",
    "orpo",
)

BETAS = ("beta 1", "beta 0.3", "beta 0.1", "beta 0.03")  # from the shortest way to the longest
HUMAN, ONCE = "human texts, the scorer's labels", "the start's own texts"  # variants


def recorded(*names):
    """The runs of some records by (variant, seed). All have three seeds."""
    runs = experiments.results(*names).set_index(["variant", "seed"]).sort_index()
    assert set(runs.index.get_level_values("seed")) == {0, 1, 2}
    return runs


def mean(runs, variant, column):
    assert len(runs.loc[variant]) == 3
    return runs.loc[variant][column].mean()


def along(kl, x, y):
    """The curve at a KL, for each row: (N,), from points x and y, (N, 4)."""
    return torch.stack([heights(*row) for row in zip(kl, x, y, strict=True)])


@cache
def measured(record, variant):
    """(gold (seeds, films), KL of a response (seeds,), tokens (seeds,))."""
    runs = experiments.results(record)
    runs = runs[runs.variant == variant].sort_values("seed")
    assert list(runs.seed) == [0, 1, 2]
    columns = ("gold_by_prompt", "kl", "length")
    return [torch.tensor(runs[column].tolist()).double() for column in columns]


def heights(kl, x, y):
    """A curve (...) at a KL, from its points: x (4,) is their KL, y (4, ...) their height."""
    kl = kl.clamp(x[0], x[-1])
    k = int((x[1:-1] < kl).sum())
    way = (kl / x[k]).log() / (x[k + 1] / x[k]).log()
    return y[k] + way * (y[k + 1] - y[k])


@cache
def leads(variant, per="response", other=None):
    """(S, F): gold minus that of the same seed's curve at equal KL, on each film.

    Args:
        per: what KL is counted by, "response" or "token".
        other: another variant whose distance from the curve is then subtracted.
    """
    curve = [measured("betas", v) for v in BETAS]
    golds, kls = (torch.stack([point[k] for point in curve], 1) for k in (0, 1))  # (S, 4, ...)
    gold, kl, tokens = measured("preference", variant)
    if per == "token":
        kls, kl = kls / torch.stack([point[2] for point in curve], 1), kl / tokens
    each = [g - heights(at, x, y) for g, at, x, y in zip(gold, kl, kls, golds, strict=True)]
    return torch.stack(each) - (0 if other is None else leads(other, per))


def above(variant, per="response", other=None):
    """The mean of `leads`, low, high: a 95 % interval for other seeds and other films."""
    each = leads(variant, per, other)
    return each.mean().item(), *interval_over_both(each)


STUDENT = student_t.ppf(0.975, 2)  # the factor of a 95 % interval from three numbers, 4.30


def by_student(leads):
    """The 95 % interval of a mean of three numbers: mean -+ 4.30 standard errors."""
    half = STUDENT * leads.std() / len(leads) ** 0.5
    return (leads.mean() - half).item(), (leads.mean() + half).item()
