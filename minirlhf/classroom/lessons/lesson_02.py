"""Lesson 02: preference without ties, alpha, the ceiling of one rater's choice, and a split that leaks."""

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
    "share_preferring",
    ("a", "b"),
    _two_case,
    _share,
    {
        "ties are in the denominator: divide by the comparisons that differ.": lambda a, b: (
            (a[:, None] > b).float().mean()
        ),
        "ties count as wins: > and not >=.": lambda a, b: (a[:, None] >= b).float().mean(),
        "ties count one half; they are to be left out.": lambda a, b: (
            (a[:, None] > b).float() + 0.5 * (a[:, None] == b).float()
        ).mean(),
        "this is the share that prefers b.": lambda a, b: 1 - _share(a, b),
        "this compares the means; the question is about single ratings.": lambda a, b: (
            a.float().mean() > b.float().mean()
        ).float(),
        "0 / 0 where no two ratings differ: one half there.": lambda a, b: (
            (a[:, None] > b).sum() / (a[:, None] != b).sum()
        ),
    },
    edges=((torch.tensor([2, 2]), torch.tensor([2])),),
)


def _alpha_case(g):
    return (2 * torch.randn(5, 1, generator=g) + torch.randn(5, 4, generator=g),)


interval_alpha = Exercise(
    "interval_alpha",
    ("ratings",),
    _alpha_case,
    lambda r: 1 - r.var(1).mean() / r.var(),
    {
        "variances that divide by n, not n - 1: a rating is not compared with itself.": lambda r: (
            1 - r.var(1, unbiased=False).mean() / r.var(unbiased=False)
        ),
        "both variances divide by n - 1: within a text too, where one of n raters is compared with n - 1 others.": lambda r: (
            1 - r.var(1, unbiased=False).mean() / r.var()
        ),
        "both variances divide by n - 1: that of all ratings too.": lambda r: (
            1 - r.var(1).mean() / r.var(unbiased=False)
        ),
        "this is the ratio of the disagreements; alpha is one minus it.": lambda r: (
            r.var(1).mean() / r.var()
        ),
        "the expected disagreement is that of all ratings, not of the texts' means.": lambda r: (
            1 - r.var(1).mean() / r.mean(1).var()
        ),
        "standard deviations; alpha compares squared differences.": lambda r: (
            1 - r.std(1).mean() / r.std()
        ),
        "the disagreement of a *person* over texts; it should be within a text, over people.": lambda r: (
            1 - r.var(0).mean() / r.var()
        ),
    },
)


def _choices_case(g):
    a, b = torch.randint(-4, 5, (4, 4), generator=g), torch.randint(-4, 5, (4, 3), generator=g)
    a[0], b[0] = (
        torch.tensor([-1, 1, 1, 1]),
        torch.tensor([0, 1, 1]),
    )  # ties; -1 against 0, and the others are even
    return a, b


def _choices(a, b, others=lambda x: (x.sum(1, keepdim=True) - x) / (x.shape[1] - 1)):
    """(N, m, n) each: what the others' means say, what was chosen."""
    return others(a)[:, :, None] - others(b)[:, None], a[:, :, None] - b[:, None]


def _ceiling(gap, said):
    return (0.5 + 0.5 * (gap * said).sign())[said != 0].mean()


def _of_pairs(gap, said):
    return torch.stack(
        [_ceiling(*pair) for pair in zip(gap, said, strict=True) if (pair[1] != 0).any()]
    )


choice_ceiling = Exercise(
    "choice_ceiling",
    ("a", "b"),
    _choices_case,
    lambda a, b: _ceiling(*_choices(a, b)),
    {
        "the means hold the two ratings that are to be predicted: leave them out, or chance differences count as knowledge.": lambda a, b: (
            _ceiling(*_choices(a, b, lambda x: x.float().mean(1, keepdim=True).expand(x.shape)))
        ),
        "this takes the better of p and 1 - p: the direction must come from the other raters.": lambda a, b: (
            torch.stack(
                [torch.maximum(p := _share(x, y), 1 - p) for x, y in zip(a, b, strict=True)]
            ).mean()
        ),
        "where the others are even nothing is known: one half.": lambda a, b: (
            lambda gap, said: (gap * said > 0)[said != 0].float().mean()
        )(*_choices(a, b)),
        "ties are no choices: leave them out of the count.": lambda a, b: (
            lambda gap, said: (0.5 + 0.5 * (gap * said).sign()).mean()
        )(*_choices(a, b)),
        "each pair weighs the same; a pair is asked about as often as two of its ratings differ, so each *choice* weighs the same.": lambda a, b: (
            _of_pairs(*_choices(a, b)).mean()
        ),
        "the others are one fewer: divide by m - 1 and by n - 1.": lambda a, b: _ceiling(
            *_choices(a, b, lambda x: (x.sum(1, keepdim=True) - x) / x.shape[1])
        ),
        "the direction is turned.": lambda a, b: 1 - _ceiling(*_choices(a, b)),
    },
    edges=((torch.tensor([[0, 2], [3, 3]]), torch.tensor([[1, 2], [3, 3]])),),
)


def _films_case(g):
    film = torch.randint(8, (20,), generator=g)
    film[:8] = torch.arange(8)
    return film[torch.randperm(20, generator=g)], int(torch.randint(1, 4, (), generator=g))


held_out_pairs = Exercise(
    "held_out_pairs",
    ("film", "n"),
    _films_case,
    lambda film, n: film >= film.unique()[-n:].min(),
    {
        "still every third pair: pairs of one film, even the same pair, stand on both sides.": lambda film, n: (
            torch.arange(len(film)) % 3 == 0
        ),
        "these are the last n pairs; hold out the last n films with all their pairs.": lambda film, n: (
            torch.arange(len(film)) >= len(film) - n
        ),
        "these are the first n films; the last n were asked for.": lambda film, n: film < n,
        "the other way round: True is for the pairs to judge on.": lambda film, n: (
            film < film.unique()[-n]
        ),
        "every third *film*; the last n were asked for.": lambda film, n: film % 3 == 0,
        "no film has such a number here: the last n are the highest that stand in `film`.": lambda film, n: (
            film > film.max()
        ),
        "one film too many.": lambda film, n: film >= film.unique()[-n] - 1,
    },
)
