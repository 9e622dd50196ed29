"""Lesson 02: preference without ties, alpha, the split-half ceiling, and a split that leaks."""

import torch

from minirlhf.classroom.exercise import Exercise


def _two_case(g):
    a, b = torch.randint(-4, 5, (5,), generator=g), torch.randint(-4, 5, (4,), generator=g)
    b[0] = a[0]  # a tie at least
    return a, b


def _share(a, b):
    above, below = (a[:, None] > b).sum(), (a[:, None] < b).sum()
    return above / (above + below) if above + below else torch.tensor(0.5)


share_preferring = Exercise(
    "share_preferring", ("a", "b"), _two_case, _share,
    {"ties are in the denominator: divide by the comparisons that differ.": lambda a, b: (a[:, None] > b).float().mean(),
     "ties count as wins: > and not >=.": lambda a, b: (a[:, None] >= b).float().mean(),
     "ties count one half; they are to be left out.":
         lambda a, b: ((a[:, None] > b).float() + 0.5 * (a[:, None] == b).float()).mean(),
     "this is the share that prefers b.": lambda a, b: 1 - _share(a, b),
     "this compares the means; the question is about single ratings.": lambda a, b: (a.float().mean() > b.float().mean()).float(),
     "0 / 0 where no two ratings differ: one half there.": lambda a, b: (a[:, None] > b).sum() / (a[:, None] != b).sum()},
    edges=((torch.tensor([2, 2]), torch.tensor([2])),))


def _alpha_case(g):
    return (2 * torch.randn(5, 1, generator=g) + torch.randn(5, 4, generator=g),)


interval_alpha = Exercise(
    "interval_alpha", ("ratings",), _alpha_case, lambda r: 1 - r.var(1).mean() / r.var(),
    {"variances that divide by n, not n - 1: a rating is not compared with itself.":
         lambda r: 1 - r.var(1, unbiased=False).mean() / r.var(unbiased=False),
     "this is the ratio of the disagreements; alpha is one minus it.": lambda r: r.var(1).mean() / r.var(),
     "the expected disagreement is that of all ratings, not of the texts' means.": lambda r: 1 - r.var(1).mean() / r.mean(1).var(),
     "standard deviations; alpha compares squared differences.": lambda r: 1 - r.std(1).mean() / r.std(),
     "the disagreement of a *person* over texts; it should be within a text, over people.": lambda r: 1 - r.var(0).mean() / r.var()})


def _halves_case(g):
    first, second = torch.randint(-4, 5, (2, 4, 2, 3), generator=g)
    first[0, 1] = first[0, 0]  # first halves that are equal
    second[1] = torch.tensor([[4, -1, -1], [0, 0, 0]])  # a higher mean, and preferred by one in three
    return first, second


def _ceiling(first, second):
    share = torch.stack([_share(a, b) for a, b in second])
    a, b = first.sum(2).unbind(1)
    return torch.where(a > b, share, torch.where(a < b, 1 - share, 0.5)).mean()


split_half_ceiling = Exercise(
    "split_half_ceiling", ("first", "second"), _halves_case, _ceiling,
    {"direction and agreement from the same ratings: chance differences are counted as knowledge.": lambda f, s: _ceiling(s, s),
     "this takes the better of p and 1 - p: the direction must come from the first halves.":
         lambda f, s: torch.stack([torch.maximum(p := _share(a, b), 1 - p) for a, b in s]).mean(),
     "where the first halves are equal nothing is known: one half.":
         lambda f, s: torch.where((d := f.sum(2))[:, 0] > d[:, 1], p := torch.stack([_share(a, b) for a, b in s]), 1 - p).mean(),
     "the direction is turned.": lambda f, s: 1 - _ceiling(f, s),
     "0 / 0 where no two ratings of the second halves differ: one half there.":
         lambda f, s: _ceiling(f, s) * torch.where((s[:, 0, :, None] != s[:, 1, None, :]).any((1, 2)).all(), 1, torch.nan)},
    edges=((torch.tensor([[[1, 2], [0, 0]]]), torch.tensor([[[1, 1], [1, 1]]])),))


def _films_case(g):
    film = torch.randint(8, (20,), generator=g)
    film[:8] = torch.arange(8)
    return film[torch.randperm(20, generator=g)], int(torch.randint(1, 4, (), generator=g))


held_out_pairs = Exercise(
    "held_out_pairs", ("film", "n"), _films_case, lambda film, n: film >= film.unique()[-n:].min(),
    {"still every third pair: pairs of one film, even the same pair, stand on both sides.":
         lambda film, n: torch.arange(len(film)) % 3 == 0,
     "these are the last n pairs; hold out the last n films with all their pairs.":
         lambda film, n: torch.arange(len(film)) >= len(film) - n,
     "these are the first n films; the last n were asked for.": lambda film, n: film < n,
     "the other way round: True is for the pairs to judge on.": lambda film, n: film < film.unique()[-n],
     "every third *film*; the last n were asked for.": lambda film, n: film % 3 == 0,
     "no film has such a number here: the last n are the highest that stand in `film`.": lambda film, n: film > film.max(),
     "one film too many.": lambda film, n: film >= film.unique()[-n] - 1})
