"""Agreement between human raters: the ceiling for a reward model, ties, Krippendorff's alpha."""

from collections import Counter

import torch

from minirlhf.tasks.reviews import Review


def preference_share(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    """Probability that a random rating of a is above a random rating of b, given that they differ.

    Args:
        a, b: all ratings of two snippets.

    Returns:
        A number from 0 to 1; 0.5 if all pairs of ratings are ties.
    """
    count_a, count_b = Counter(a), Counter(b)
    above = sum(n * m for x, n in count_a.items() for y, m in count_b.items() if x > y)
    below = sum(n * m for x, n in count_a.items() for y, m in count_b.items() if x < y)
    return above / (above + below) if above + below else 0.5


def human_ceiling(
    pairs: list[tuple[Review, Review]], min_gap: float = 0.0, max_gap: float = 8.0
) -> float:
    """Human agreement: how often the other raters' means predict one rater's choice.

        mean over (x, y), x a rating of a, y a rating of b, x != y, of
            1 if sign(x - y) = sign(gap),   0 otherwise,   1/2 if gap = 0
        gap = mean(a's ratings without x) - mean(b's ratings without y)

    Only choices with min_gap <= |gap| < max_gap count. They are weighted as `preference_pairs`
    draws them: a random pair of snippets, then a random rating of each, ties left out.

    The ratings x and y are left out of both means, for two reasons. If they stayed in, the chance
    part of the choice would be part of the prediction, and would count as agreement. They would
    also decide about the band: a pair could look close because of these two ratings. With x and y
    left out, random ratings give 1/2 in every band.

    Args:
        pairs: two snippets each, with at least two ratings per snippet.
        min_gap, max_gap: band of |gap| in rating units, half open.

    Returns:
        A share from 0 to 1; nan if no choice falls into the band.
    """
    values = torch.arange(-4.0, 5.0, dtype=torch.float64)
    rows = {
        ratings: [ratings.count(v) for v in range(-4, 5)]
        for ratings in {r.ratings for pair in pairs for r in pair}
    }
    a, b = (
        torch.tensor([rows[r.ratings] for r in side], dtype=torch.float64)
        for side in zip(*pairs, strict=True)
    )  # (N, 9): number of raters who gave each of the nine ratings
    # means of the other raters
    of_a, of_b = (((c @ values)[:, None] - values) / (c.sum(1, keepdim=True) - 1) for c in (a, b))
    gap, said = of_a[:, :, None] - of_b[:, None], values[:, None] - values
    asked = a[:, :, None] * b[:, None] / (a.sum(1) * b.sum(1))[:, None, None]
    asked = asked * (said != 0) * ((min_gap <= gap.abs()) & (gap.abs() < max_gap))
    return ((asked * (0.5 + 0.5 * (gap * said).sign())).sum() / asked.sum()).item()


def tie_share(pairs: list[tuple[Review, Review]]) -> float:
    """Probability that two random ratings, one of each snippet, are equal; mean over the pairs."""
    same = (
        sum(n * Counter(b.ratings)[x] for x, n in Counter(a.ratings).items())
        / (len(a.ratings) * len(b.ratings))
        for a, b in pairs
    )
    return sum(same) / len(pairs)


def krippendorff_alpha(items: list[tuple[int, ...]]) -> float:
    """Krippendorff's alpha for ratings on an interval scale.

        alpha = 1 - D_o / D_e

    D_o is the mean, over all ratings, of the squared difference from the other ratings of the same
    item. D_e is the same mean with the other ratings of all items. alpha is 1 if all raters agree
    and 0 if they agree as often as by chance.

    Args:
        items: the ratings of each item. Items with a single rating are ignored.

    Source: Krippendorff 2011, *Computing Krippendorff's alpha-reliability*.
    """
    items = [x for x in items if len(x) > 1]
    n = sum(map(len, items))
    total, squares = sum(map(sum, items)), sum(v * v for x in items for v in x)
    within = (
        sum(2 * (len(x) * sum(v * v for v in x) - sum(x) ** 2) / (len(x) - 1) for x in items) / n
    )
    return 1 - within / (2 * (n * squares - total**2) / (n * (n - 1)))
