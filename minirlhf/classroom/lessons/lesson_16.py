"""Exercises of lesson 16: the estimate of best-of-n, its exact distribution, the distance on the
axis of the law, the peak of a fitted curve, and an early stop."""

import math

import torch

from minirlhf.classroom.exercise import Exercise
from minirlhf.core import overoptimisation
from minirlhf.core.best_of_n import best_of_n_mean


def _samples_case(g):
    count = int(torch.randint(4, 8, (1,), generator=g))
    n = int(torch.randint(2, count, (1,), generator=g))
    scores = torch.randperm(count, generator=g).float() + torch.rand(1, generator=g)
    return torch.randn(count, generator=g), scores, n


def _weighted(values, by, weight):
    """The values, the lowest `by` first, times weight(i) for i = 1, 2, ..."""
    ordered = values[by.argsort()]
    return sum(weight(i) * value for i, value in enumerate(ordered, 1))


def _chance(i, n, count):
    return math.comb(i - 1, n - 1) / math.comb(count, n)


best_of_n_gold = Exercise(
    "best_of_n_gold",
    ("gold", "proxy", "n"),
    _samples_case,
    lambda gold, proxy, n: best_of_n_mean(gold[None], proxy[None], n)[0],
    {
        "this takes the first n samples and keeps the best of them. It is right on average, but it "
        "leaves the other samples unused.": lambda gold, proxy, n: gold[:n][proxy[:n].argmax()],
        "this sorts by gold. The best of n is chosen by the proxy; gold is only read.": (
            lambda gold, proxy, n: _weighted(gold, gold, lambda i: _chance(i, n, len(gold)))
        ),
        "this is the mean proxy of the kept sample. Its gold is wanted.": (
            lambda gold, proxy, n: _weighted(proxy, proxy, lambda i: _chance(i, n, len(gold)))
        ),
        "this counts one sample too many below each. The lowest sample has none below it, the next "
        "one has 1.": lambda gold, proxy, n: _weighted(
            gold, proxy, lambda i: math.comb(i, n - 1) / math.comb(len(gold), n)
        ),
        "this draws with replacement: one sample can be drawn twice. Count the ways to take n "
        "different samples.": lambda gold, proxy, n: _weighted(
            gold, proxy, lambda i: (i / len(gold)) ** n - ((i - 1) / len(gold)) ** n
        ),
        "this counts one sample too few below each. Sample i of the formula, counted from 1, has "
        "i - 1 below it.": lambda gold, proxy, n: _weighted(
            gold,
            proxy,
            lambda i: math.comb(max(i - 2, 0), n - 1) / math.comb(len(gold), n),
        ),
        "this takes the samples as they come. Sort them by their proxy scores.": (
            lambda gold, proxy, n: _weighted(
                gold, torch.arange(len(gold)), lambda i: _chance(i, n, len(gold))
            )
        ),
        "the samples are sorted the wrong way: this is the worst of n.": (
            lambda gold, proxy, n: _weighted(gold, -proxy, lambda i: _chance(i, n, len(gold)))
        ),
        "the weights do not sum to 1: divide by C(N, n), the number of ways to take n of N.": (
            lambda gold, proxy, n: _weighted(gold, proxy, lambda i: math.comb(i - 1, n - 1))
        ),
    },
)


def _world_case(g):
    count = int(torch.randint(3, 6, (1,), generator=g))
    probs = torch.rand(count, generator=g) + 0.1
    scores = torch.randperm(count, generator=g).float()
    return probs / probs.sum(), scores, int(torch.randint(2, 6, (1,), generator=g))


def _below(probs, scores):
    """The probability of a lower score than that of each response."""
    return (scores[:, None] > scores).to(probs) @ probs


def _kept(probs, scores, n):  # as core.best_of_n_probs, which refuses what a wrong answer leaves
    below = _below(probs, scores)
    return (below + probs) ** n - below**n


kept_probs = Exercise(
    "kept_probs",
    ("probs", "scores", "n"),
    _world_case,
    _kept,
    {
        "this is the chance that all n samples score at most this much. Subtract the chance that "
        "all of them score lower.": lambda p, s, n: (_below(p, s) + p) ** n,
        "this is the chance that the response is among the n samples. It is kept only if none of "
        "them scores higher.": lambda p, s, n: 1 - (1 - p) ** n,
        "this is n p F^(n-1), which holds for very rare responses only.": lambda p, s, n: (
            n * p * (_below(p, s) + p) ** (n - 1)
        ),
        "this keeps the worst of n.": lambda p, s, n: _kept(p, -s, n),
        "this sums the probabilities in the order in which the responses are listed. Sum those of "
        "all responses with a lower score.": lambda p, s, n: (
            p.cumsum(0) ** n - (p.cumsum(0) - p) ** n
        ),
    },
    edges=((torch.tensor([0.5, 0.3, 0.2]), torch.tensor([2.0, 0.0, 1.0]), 1),),
)


def _ratios_case(g):
    mask = torch.arange(5) < torch.randint(1, 6, (4, 1), generator=g)
    mask[0] = torch.arange(5) < 2  # at least one row with padding
    ratios = 0.2 + torch.rand(4, 5, generator=g)
    return torch.where(mask, ratios, torch.nan), mask


def _sums(ratios, mask):
    return torch.where(mask, ratios, 0.0).sum(1)


distance = Exercise(
    "distance",
    ("log_ratios", "mask"),
    _ratios_case,
    lambda x, m: _sums(x, m).mean().sqrt(),
    {
        "the bug is still there. On paper, take two responses with the log-ratios 1, 1 and "
        "1, 1, 1, 1. What is the KL of a whole response, and what does this return?": lambda x, m: (
            _sums(x, m).sum() / m.sum()
        ).sqrt(),
        "this averages over the tokens of each response. Sum them.": lambda x, m: (
            (_sums(x, m) / m.sum(1)).mean().sqrt()
        ),
        "this is the KL. The distance d is its square root.": lambda x, m: _sums(x, m).mean(),
        "this is the mean of the square roots. First take the mean over responses, which is the "
        "KL, and then its root.": lambda x, m: _sums(x, m).sqrt().mean(),
        "this is the sum over all responses. Take their mean.": lambda x, m: (
            _sums(x, m).sum().sqrt()
        ),
    },
)


def _curve_case(g):
    d = 1 + 8 * torch.rand(8, generator=g, dtype=torch.float64)
    alpha, beta = (1 + torch.rand(2, generator=g)).tolist()
    noise = 0.05 * torch.randn(8, generator=g, dtype=torch.float64)
    gain = overoptimisation.overoptimisation_gain(d, alpha, beta / 2, form="rl")
    return d, gain + noise


def _fit(one, other, gain):  # core.fit_overoptimisation refuses what a wrong answer leaves
    """The two factors with which the terms come nearest to the gain, in the least-squares sense."""
    squares = (one @ one) * (other @ other) - (one @ other) ** 2
    first = (other @ other) * (one @ gain) - (one @ other) * (other @ gain)
    second = (one @ one) * (other @ gain) - (one @ other) * (one @ gain)
    return first / squares, second / squares


def _peak(d, gain, logarithm=torch.log):
    alpha, beta = _fit(d, -d * logarithm(d), gain)
    return (alpha / beta - 1).exp()


def _peak_of_best_of_n(d, gain):
    alpha, beta = _fit(d, -d.square(), gain)
    return alpha / (2 * beta)


peak_of_rl = Exercise(
    "peak_of_rl",
    ("d", "gain"),
    _curve_case,
    _peak,
    {
        "this is the form of best-of-n, d (alpha - beta d). Reinforcement learning has log d in "
        "the place of the second d.": _peak_of_best_of_n,
        "this is where the gain is back at 0. Where is its derivative 0? d stands in two places of "
        "the law.": lambda d, y: _peak(d, y) * math.e,
        "this is the distance with the largest measured gain. Fit the curve, and take its peak.": (
            lambda d, y: d[y.argmax()]
        ),
        "beta has the wrong sign. The law is alpha d - beta (d log d).": lambda d, y: (
            1 / (_peak(d, y) * math.e**2)
        ),
        "the logarithm has the base 10. The law has the natural one.": (
            lambda d, y: _peak(d, y, torch.log10)
        ),
    },
)


def _run_case(g):
    """A curve that rises, falls for longer than the patience, and may rise higher afterwards."""
    patience = int(torch.randint(2, 4, (1,), generator=g))
    rise, less = torch.rand(3, generator=g).cumsum(0), torch.rand(patience, generator=g)
    dip = rise[1] - 0.1 * torch.rand(1, generator=g)  # a step down before the best one
    first = torch.cat([rise[:2], dip, rise[2:], rise[-1] - 0.1 - less])
    return torch.cat([first, 4 * torch.rand(3, generator=g)]), patience


def _stopped(held_out, patience, *, from_last=False, late=0):
    best = 0
    for step in range(1, len(held_out)):
        against = step - 1 if from_last else best
        if held_out[step] > held_out[against]:
            best = step
        elif step - best >= patience + late:
            break
    return best, step


def _stopped_by_falls(held_out, patience):
    best = falls = 0
    for step in range(1, len(held_out)):
        if held_out[step] > held_out[best]:
            best = step
        falls = falls + 1 if held_out[step] < held_out[step - 1] else 0
        if falls >= patience:
            break
    return torch.tensor(best)


early_stop = Exercise(
    "early_stop",
    ("held_out", "patience"),
    _run_case,
    lambda held_out, patience: torch.tensor(_stopped(held_out, patience)[0]),
    {
        "this is the best step of the whole run. You stop before you see its end.": (
            lambda held_out, patience: held_out.argmax()
        ),
        "this is the step at which you stop. Return the best one up to there.": (
            lambda held_out, patience: torch.tensor(_stopped(held_out, patience)[1])
        ),
        "this compares with the step before. Compare with the highest score so far.": (
            lambda held_out, patience: torch.tensor(_stopped(held_out, patience, from_last=True)[0])
        ),
        "this is the first step that is followed by a lower score. Wait for `patience` steps.": (
            lambda held_out, patience: torch.tensor(_stopped(held_out, 1)[0])
        ),
        "this counts steps that are lower than the step before. Count the steps since the highest "
        "score so far.": _stopped_by_falls,
        "this stops one step too early: the best score must be `patience` steps old.": (
            lambda held_out, patience: torch.tensor(_stopped(held_out, patience, late=-1)[0])
        ),
        "this waits one step too long: stop as soon as the best score is `patience` steps old.": (
            lambda held_out, patience: torch.tensor(_stopped(held_out, patience, late=1)[0])
        ),
    },
    edges=((torch.tensor([0.0, 1.0, 0.5, 0.4, 2.0]), 3), (torch.tensor([1.0, 0.5, 0.4]), 2)),
)
