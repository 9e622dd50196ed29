"""What the tests of lessons 14 and 14b share: the records, and gold at equal KL.

Gold at equal KL is how far a preference run lies above the curve of DPO at several values of beta.

The curve goes through the means over seeds of DPO at four values of beta, linear in log KL, and is
level beyond its ends. Lessons 14 and 14b quote these numbers. They are computed here without the
package's `experiments.above_curve`, and must agree with it.
"""

from functools import cache

import torch
from scipy.stats import t as student_t

from minirlhf import experiments

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
DRAWS = 10_000


def recorded(*names):
    """The runs of some records by (variant, seed). All have three seeds."""
    runs = experiments.results(*names).set_index(["variant", "seed"]).sort_index()
    assert set(runs.index.get_level_values("seed")) == {0, 1, 2}
    return runs


def mean(runs, variant, column):
    assert len(runs.loc[variant]) == 3
    return runs.loc[variant][column].mean()


def along(kl, x, y):
    """The gold of the curve at a KL: (draws,), from its points x and y, (draws, 4)."""
    kl = kl.clamp(x[:, 0], x[:, -1])[:, None]
    at = (x[:, 1:-1] < kl).sum(1, keepdim=True)
    (x0, x1), (y0, y1) = ([z.gather(1, at + k) for k in (0, 1)] for z in (x, y))
    return (y0 + (kl.log() - x0.log()) / (x1.log() - x0.log()) * (y1 - y0))[:, 0]


@cache
def measured(record, variant):
    """(gold (seeds, films), KL of a response (seeds,), tokens (seeds,))."""
    runs = experiments.results(record)
    runs = runs[runs.variant == variant].sort_values("seed")
    assert list(runs.seed) == [0, 1, 2]
    columns = ("gold_by_prompt", "kl", "length")
    return [torch.tensor(runs[column].tolist()).double() for column in columns]


@cache
def above(variant, per="response", other=None):
    """(gold minus the curve's at equal KL, low, high): a 95 % interval over seeds and films.

    Seeds and films are drawn anew 10,000 times, those of the curve too.

    Args:
        per: what KL is counted by, "response" or "token".
        other: another variant whose distance from the curve is then subtracted.
    """
    ours = [measured("preference", v) for v in (variant, *([other] if other else []))]
    curve = [measured("betas", v) for v in BETAS]
    generator = torch.Generator().manual_seed(0)
    shape = ours[0][0].shape
    drawn = [[torch.randint(n, (n,), generator=generator) for n in shape] for _ in range(DRAWS)]
    rows = zip([torch.arange(n) for n in shape], *drawn, strict=True)  # first: all as they are
    which, films = map(torch.stack, rows)

    def points(gold, kl, tokens):
        kl = kl / (tokens if per == "token" else 1)
        return kl[which].mean(1), gold[which[:, :, None], films[:, None]].mean((1, 2))

    x, y = (torch.stack(z, 1) for z in zip(*(points(*v) for v in curve), strict=True))
    first, *second = [gold - along(kl, x, y) for kl, gold in (points(*v) for v in ours)]
    ahead = first - sum(second)
    low, high = ahead[1:].quantile(torch.tensor([0.025, 0.975]).double()).tolist()
    return ahead[0].item(), low, high


STUDENT = student_t.ppf(0.975, 2)  # the factor of a 95 % interval from three numbers, 4.30


def seed_by_seed(variant, per="response", other=None):
    """The distance from the curve on each seed alone (3,), minus that of another variant."""

    def means(record, name):  # over films, of each seed
        gold, kl, tokens = measured(record, name)
        return kl / (tokens if per == "token" else 1), gold.mean(1)

    def distance(name):
        x, y = (torch.stack(z, 1) for z in zip(*(means("betas", v) for v in BETAS), strict=True))
        kl, gold = means("preference", name)
        return gold - along(kl, x, y)

    return distance(variant) - (0 if other is None else distance(other))


def by_student(leads):
    """The 95 % interval of a mean of three numbers: mean -+ 4.30 standard errors."""
    half = STUDENT * leads.std() / len(leads) ** 0.5
    return (leads.mean() - half).item(), (leads.mean() + half).item()
