"""Exercises of lesson 02: labels without ties, alpha, the human ceiling, a leaking split."""

import torch

from minirlhf.classroom.exercise import Exercise


def _two_case(g):
    a, b = torch.randint(-4, 5, (5,), generator=g), torch.randint(-4, 5, (4,), generator=g)
    b[0] = a[0]  # at least one tie
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
        "ties are in the denominator. Divide by the number of "
        "comparisons that differ.": lambda a, b: (a[:, None] > b).float().mean(),
        "ties count as wins. Use `>`, not `>=`.": lambda a, b: (a[:, None] >= b).float().mean(),
        "ties count one half. Leave them out instead.": lambda a, b: (
            (a[:, None] > b).float() + 0.5 * (a[:, None] == b).float()
        ).mean(),
        "this is the share that prefers b. Return the share that prefers a.": lambda a, b: (
            1 - _share(a, b)
        ),
        "this compares the means. The question is about single ratings.": lambda a, b: (
            a.float().mean() > b.float().mean()
        ).float(),
        "where no two ratings differ, 0 / 0 is NaN. Return one half there.": lambda a, b: (
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
        "both variances divide by n. "
        "Divide by n - 1, because a rating is not compared with itself.": lambda r: (
            1 - r.var(1, unbiased=False).mean() / r.var(unbiased=False)
        ),
        "the variance within a review divides by n. Divide by n - 1 there too: each of the "
        "n raters is compared with n - 1 others.": lambda r: (
            1 - r.var(1, unbiased=False).mean() / r.var()
        ),
        "the variance of all ratings divides by their number n. "
        "Divide by n - 1 there too.": lambda r: 1 - r.var(1).mean() / r.var(unbiased=False),
        "this adds the variances of the rows. Take their mean.": lambda r: (
            1 - r.var(1).sum() / r.var()
        ),
        "the observed disagreement is doubled, and the expected one is not. Both are mean squared "
        "differences: compute them in the same way.": lambda r: 1 - 2 * r.var(1).mean() / r.var(),
        "the expected disagreement is doubled, and the observed one is not. Both are mean squared "
        "differences: compute them in the same way.": lambda r: 1 - r.var(1).mean() / (2 * r.var()),
        "this is the ratio of the two disagreements. Alpha is 1 minus this ratio.": lambda r: (
            r.var(1).mean() / r.var()
        ),
        "the expected disagreement is the variance of all ratings. You used the variance "
        "of the reviews' means.": lambda r: 1 - r.var(1).mean() / r.mean(1).var(),
        "these are standard deviations. Alpha compares squared "
        "differences, so use variances.": lambda r: 1 - r.std(1).mean() / r.std(),
        "this is the disagreement of one *person* over the reviews. "
        "It should be the disagreement within "
        "a review, over the people who rated it.": lambda r: 1 - r.var(0).mean() / r.var(),
        "the expected disagreement is that of *any* two ratings. You used the variance of each "
        "column: it compares ratings of the same person only.": lambda r: (
            1 - r.var(1).mean() / r.var(0).mean()
        ),
    },
)


def _labels_case(g):
    a, b = torch.randint(-4, 5, (4, 4), generator=g), torch.randint(-4, 5, (4, 3), generator=g)
    # Pair 0 has ties, and for the label -1 against 0 the other raters' means are equal.
    a[0], b[0] = torch.tensor([-1, 1, 1, 1]), torch.tensor([0, 1, 1])
    return a, b


def _labels(a, b, others=lambda x: (x.sum(1, keepdim=True) - x) / (x.shape[1] - 1)):
    """The difference of the other raters' means, and that of the two ratings; (N, m, n) each."""
    return others(a)[:, :, None] - others(b)[:, None], a[:, :, None] - b[:, None]


def _ceiling(gap, said):
    return (0.5 + 0.5 * (gap * said).sign())[said != 0].mean()


def _half_if_equal(gap, right):
    """1 where right, else 0, but 1/2 where the other raters' means are equal."""
    return torch.where(gap == 0, 0.5, right.float())


def _of_pairs(gap, said):
    return torch.stack(
        [_ceiling(*pair) for pair in zip(gap, said, strict=True) if (pair[1] != 0).any()]
    )


label_ceiling = Exercise(
    "label_ceiling",
    ("a", "b"),
    _labels_case,
    lambda a, b: _ceiling(*_labels(a, b)),
    {
        "your means include the two ratings that are to be predicted. "
        "Leave them out, or chance differences count as knowledge.": lambda a, b: _ceiling(
            *_labels(a, b, lambda x: x.float().mean(1, keepdim=True).expand(x.shape))
        ),
        "this takes the larger of p and 1 - p. "
        "The direction of the prediction must come from the other raters.": lambda a, b: (
            torch.stack(
                [torch.maximum(p := _share(x, y), 1 - p) for x, y in zip(a, b, strict=True)]
            ).mean()
        ),
        "where the means of the other raters are equal, they predict nothing. "
        "Count one half there.": lambda a, b: (
            lambda gap, said: (gap * said > 0)[said != 0].float().mean()
        )(*_labels(a, b)),
        "two equal ratings are not a label. Leave them out of the count.": lambda a, b: (
            lambda gap, said: (0.5 + 0.5 * (gap * said).sign()).mean()
        )(*_labels(a, b)),
        "two equal ratings are not a label, but they are counted here, as wrong. Leave them out. "
        "And where the others' means are equal, count one half.": lambda a, b: (
            lambda gap, said: (gap * said > 0).float().mean()
        )(*_labels(a, b)),
        "two equal ratings are not a label, but they are counted here, as right. Leave them out. "
        "And where the others' means are equal, count one half.": lambda a, b: (
            lambda gap, said: (gap * said >= 0).float().mean()
        )(*_labels(a, b)),
        "two equal ratings are not a label, but they are in the number of labels. "
        "Divide by the number of ratings that differ.": lambda a, b: (
            lambda gap, said: ((0.5 + 0.5 * (gap * said).sign()) * (said != 0)).mean()
        )(*_labels(a, b)),
        "two equal ratings are not a label, but they count as right where the others' means are "
        "equal. Leave them out.": lambda a, b: (
            lambda gap, said: (gap.sign() == said.sign()).float().mean()
        )(*_labels(a, b)),
        "two equal ratings are not a label, but `(gap > 0) == (label > 0)` reads them as a label "
        "for b. Leave them out.": lambda a, b: (
            lambda gap, said: _half_if_equal(gap, (gap > 0) == (said > 0)).mean()
        )(*_labels(a, b)),
        "two equal ratings are not a label, but `(gap > 0) == (label > 0)` reads them as a label "
        "for b, and equal means as a prediction of b. Leave such labels out, and count one half "
        "for such means.": lambda a, b: (
            lambda gap, said: ((gap > 0) == (said > 0)).float().mean()
        )(*_labels(a, b)),
        "equal ratings are not a label, but they count as wrong. Leave them out.": lambda a, b: (
            lambda gap, said: _half_if_equal(gap, gap * said > 0).mean()
        )(*_labels(a, b)),
        "equal ratings are not a label, but they count as right. Leave them out.": lambda a, b: (
            lambda gap, said: _half_if_equal(gap, gap * said >= 0).mean()
        )(*_labels(a, b)),
        "two equal ratings are not a label. They are not in your number of labels, but each "
        "adds one half to your sum.": lambda a, b: (
            lambda gap, said: (0.5 + 0.5 * (gap * said).sign()).sum() / (said != 0).sum()
        )(*_labels(a, b)),
        "where the means of the other raters are equal, your function predicts b. They "
        "predict nothing there: count one half.": lambda a, b: (
            lambda gap, said: ((gap > 0) == (said > 0))[said != 0].float().mean()
        )(*_labels(a, b)),
        "labels for which the others' means are equal are left out. Keep them, and count one half "
        "for each.": lambda a, b: (
            lambda gap, said: (gap * said > 0)[(said != 0) & (gap != 0)].float().mean()
        )(*_labels(a, b)),
        "each pair has the same weight. Give each *label* the same "
        "weight: a pair with more differing "
        "ratings then counts for more.": lambda a, b: _of_pairs(*_labels(a, b)).mean(),
        "this is the mean of the pairs' shares. A pair that always ties has no share (0 / 0). "
        "Give each *label* the same weight: divide the sum over all pairs once.": lambda a, b: (
            torch.stack([_ceiling(*x) for x in zip(*_labels(a, b), strict=True)]).mean()
        ),
        "you divided the sum of the other ratings by m and by n. "
        "There are only m - 1 and n - 1 of them.": lambda a, b: _ceiling(
            *_labels(a, b, lambda x: (x.sum(1, keepdim=True) - x) / x.shape[1])
        ),
        "the direction is reversed. This is the share of labels that "
        "the other raters predict wrongly.": lambda a, b: 1 - _ceiling(*_labels(a, b)),
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
        "the bug is still there. On paper, take three pairs, of the films 1, 2 and 0, and n = 1. "
        "Which pair should be true, and which is?": lambda film, n: (
            torch.arange(len(film)) >= len(film) - film.bincount()[-n:].sum()
        )[film.argsort(stable=True)],
        "this takes the last part of the rows. A film then has pairs on both sides. "
        "Choose films.": lambda film, n: (
            torch.arange(len(film)) >= round(len(film) * (1 - n / (int(film.max()) + 1)))
        ),
        "these are the pairs of the last n films if the pairs were sorted by film. "
        "They are not.": lambda film, n: (
            torch.arange(len(film)) >= len(film) - film.bincount()[-n:].sum()
        ),
        "this chooses pairs by their place in the table. A film then has pairs on both sides. "
        "Choose films.": lambda film, n: torch.arange(len(film)) % 3 == 0,
        "these are the last n pairs. "
        "Hold out the last n *films*, with all their pairs.": lambda film, n: (
            torch.arange(len(film)) >= len(film) - n
        ),
        "these are the first n films. Hold out the last n.": lambda film, n: film < n,
        "the result is inverted. True marks the pairs to evaluate on.": lambda film, n: (
            film < film.unique()[-n]
        ),
        "this is every third *film*. Hold out the last n films.": lambda film, n: film % 3 == 0,
        "no film here has a number that high, so nothing is held out. "
        "The last n films have the n highest numbers in `film`.": lambda film, n: film > film.max(),
        "one film too many is held out.": lambda film, n: film >= film.unique()[-n] - 1,
    },
)
