"""How far people agree: the ceiling that a reward model is read against, ties, Krippendorff's alpha."""

import random
from collections import Counter

from minirlhf.tasks.reviews import Review


def preference_share(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    """P(a random rating of a is above a random rating of b), ties left out; 0.5 where all are ties."""
    count_a, count_b = Counter(a), Counter(b)
    above = sum(n * m for x, n in count_a.items() for y, m in count_b.items() if x > y)
    below = sum(n * m for x, n in count_a.items() for y, m in count_b.items() if x < y)
    return above / (above + below) if above + below else 0.5


def human_ceiling(pairs: list[tuple[Review, Review]], *, seed: int = 0, most: int = 3000) -> float:
    """The accuracy that other people reach at predicting one rater's choice, over choices that are no ties.

    A pair weighs as often as two of its ratings differ, since a pair drawn from equal ratings is dropped (`preference_pairs`).
    The direction comes from one random half of each snippet's raters, the probability from the other half: slightly pessimistic,
    because half the raters know less than all. (Taking both from the same ratings would be biased upward.)
    """
    rng = random.Random(seed)
    total, weights = 0.0, 0.0
    chosen = pairs if len(pairs) <= most else rng.sample(pairs, most)
    for a, b in chosen:
        (a1, a2), (b1, b2) = _halves(a.ratings, rng), _halves(b.ratings, rng)
        difference = sum(a1) / len(a1) - sum(b1) / len(b1)
        p = preference_share(a2, b2)
        weight = 1 - tie_share([(a, b)])
        total += weight * (p if difference > 0 else 1 - p if difference < 0 else 0.5)
        weights += weight
    return total / weights


def tie_share(pairs: list[tuple[Review, Review]]) -> float:
    """P(two single ratings, one of each snippet, are equal)."""
    same = (sum(n * Counter(b.ratings)[x] for x, n in Counter(a.ratings).items()) / (len(a.ratings) * len(b.ratings)) for a, b in pairs)
    return sum(same) / len(pairs)


def krippendorff_alpha(items: list[tuple[int, ...]]) -> float:
    """Interval-scale alpha: 1 - observed / expected disagreement; 1 = all agree, 0 = as chance would have it.

        D_o = mean over pairable values of squared differences within an item        D_e = the same over all values

    Source: Krippendorff 2011, *Computing Krippendorff's alpha-reliability*.
    """
    items = [x for x in items if len(x) > 1]
    n = sum(map(len, items))
    total, squares = sum(map(sum, items)), sum(v * v for x in items for v in x)
    within = sum(2 * (len(x) * sum(v * v for v in x) - sum(x) ** 2) / (len(x) - 1) for x in items) / n
    return 1 - within / (2 * (n * squares - total**2) / (n * (n - 1)))


def _halves(ratings: tuple[int, ...], rng: random.Random) -> tuple[list[int], list[int]]:
    order = rng.sample(ratings, len(ratings))
    middle = len(order) // 2
    return order[:middle], order[middle:]
