"""How far people agree: the ceiling that a reward model is read against, ties, Krippendorff's alpha."""

from collections import Counter

import torch

from minirlhf.tasks.reviews import Review


def preference_share(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    """P(a random rating of a is above a random rating of b), ties left out; 0.5 where all are ties."""
    count_a, count_b = Counter(a), Counter(b)
    above = sum(n * m for x, n in count_a.items() for y, m in count_b.items() if x > y)
    below = sum(n * m for x, n in count_a.items() for y, m in count_b.items() if x < y)
    return above / (above + below) if above + below else 0.5


def human_ceiling(
    pairs: list[tuple[Review, Review]], min_gap: float = 0.0, max_gap: float = 8.0
) -> float:
    """How often the other raters' means predict one rater's choice, over all single choices that are no ties.

        mean over (x, y), x a rating of a, y one of b, x != y, of   1[sign(x - y) = sign(gap)],   1/2 where gap = 0
        gap = mean(a's ratings but x) - mean(b's ratings but y),    min_gap <= |gap| < max_gap

    A pair counts x != y as often as `preference_pairs` would draw it. The chosen ratings are left out of the direction *and* of the
    band: by means that hold them chance differences would count as knowledge, and close pairs would be close because a rating made them so.
    Of ratings dealt out at random it is 1/2 in every band. Each snippet needs two ratings; nan where no choice falls in the band.
    """
    values = torch.arange(-4.0, 5.0, dtype=torch.float64)
    rows = {
        r: [Counter(r.ratings)[v] for v in range(-4, 5)]
        for r in {r for pair in pairs for r in pair}
    }
    a, b = (
        torch.tensor([rows[r] for r in side], dtype=torch.float64)
        for side in zip(*pairs, strict=True)
    )  # (N, 9) raters who said v
    of_a, of_b = (
        ((c @ values)[:, None] - values) / (c.sum(1, keepdim=True) - 1) for c in (a, b)
    )  # the others' means
    gap, said = of_a[:, :, None] - of_b[:, None], values[:, None] - values
    asked = a[:, :, None] * b[:, None] / (a.sum(1) * b.sum(1))[:, None, None]
    asked = asked * (said != 0) * ((min_gap <= gap.abs()) & (gap.abs() < max_gap))
    return ((asked * (0.5 + 0.5 * (gap * said).sign())).sum() / asked.sum()).item()


def tie_share(pairs: list[tuple[Review, Review]]) -> float:
    """P(two single ratings, one of each snippet, are equal)."""
    same = (
        sum(n * Counter(b.ratings)[x] for x, n in Counter(a.ratings).items())
        / (len(a.ratings) * len(b.ratings))
        for a, b in pairs
    )
    return sum(same) / len(pairs)


def krippendorff_alpha(items: list[tuple[int, ...]]) -> float:
    """Interval-scale alpha: 1 - observed / expected disagreement; 1 = all agree, 0 = as chance would have it.

        D_o = mean over pairable values of squared differences within an item        D_e = the same over all values

    Source: Krippendorff 2011, *Computing Krippendorff's alpha-reliability*.
    """
    items = [x for x in items if len(x) > 1]
    n = sum(map(len, items))
    total, squares = sum(map(sum, items)), sum(v * v for x in items for v in x)
    within = (
        sum(2 * (len(x) * sum(v * v for v in x) - sum(x) ** 2) / (len(x) - 1) for x in items) / n
    )
    return 1 - within / (2 * (n * squares - total**2) / (n * (n - 1)))
