"""Agreement between human raters: ceiling, ties, Krippendorff's alpha, odds of two steps."""

from collections import Counter

import torch
from torch import Tensor

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
    values = torch.arange(-4.0, 5.0, dtype=torch.float64, device="cpu")
    rows = {
        ratings: [ratings.count(v) for v in range(-4, 5)]
        for ratings in {r.ratings for pair in pairs for r in pair}
    }
    a, b = (
        torch.tensor([rows[r.ratings] for r in side], dtype=torch.float64, device="cpu")
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


def disagreements(items: list[tuple[int, ...]]) -> tuple[float, float]:
    """Observed and expected disagreement of ratings on an interval scale.

    D_o is the mean, over all ratings, of the mean squared difference from the other ratings of the
    same item. D_e is the same mean with the other ratings of all items.

    Args:
        items: the ratings of each item. Items with a single rating are ignored.

    Returns:
        (D_o, D_e), in squared rating units.
    """
    items = [x for x in items if len(x) > 1]
    n = sum(map(len, items))
    total, squares = sum(map(sum, items)), sum(v * v for x in items for v in x)
    within = (
        sum(2 * (len(x) * sum(v * v for v in x) - sum(x) ** 2) / (len(x) - 1) for x in items) / n
    )
    return within, 2 * (n * squares - total**2) / (n * (n - 1))


def krippendorff_alpha(items: list[tuple[int, ...]]) -> float:
    """Krippendorff's alpha for ratings on an interval scale.

        alpha = 1 - D_o / D_e

    D_o and D_e are the `disagreements`. alpha is 1 if all raters agree and 0 if they agree as often
    as by chance.

    Args:
        items: the ratings of each item. Items with a single rating are ignored.

    Source: Krippendorff 2011, *Computing Krippendorff's alpha-reliability*.
    """
    observed, expected = disagreements(items)
    return 1 - observed / expected


def two_halves(ratings: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Split the ratings of each review into two halves at random.

    Args:
        ratings: (n, m) of the n reviews of a film. NaN where a review has fewer than m ratings.
        generator: of the split.

    Returns:
        first (n,): the means of the first halves, which are the larger ones.
        second (n,): the means of the other halves.
        above (n, n): the share of pairs of ratings, one of review i and one of review j, both from
            the other halves, in which that of i is higher.
    """
    order = torch.rand(ratings.shape, generator=generator, device="cpu")
    order = order.masked_fill(ratings.isnan(), torch.inf).argsort(1)
    ratings = ratings.gather(1, order)  # shuffled, NaN last
    size = (~ratings.isnan()).sum(1, keepdim=True)
    inside = torch.arange(ratings.shape[1], device="cpu") < (size + 1) // 2
    one, other = ratings.where(inside, torch.nan), ratings.where(~inside, torch.nan)
    missing = other.isnan()
    ordered = other.masked_fill(missing, torch.inf).sort(1).values
    lower = torch.searchsorted(ordered, other.flatten().repeat(len(other), 1))
    lower = lower.view(len(other), *other.shape)  # [j, i, k]: ratings of j below the k-th of i
    wins = lower.masked_fill(missing, 0).sum(2).T
    number = (~missing).sum(1)
    return one.nanmean(1), other.nanmean(1), wins / (number[:, None] * number)


def step_choices(first: Tensor, above: Tensor, step: float) -> Tensor:
    """How often a is chosen over b, b over a, b over c, c over b, a over c and c over a.

    The result (6,) is summed over all triples.

    A triple is three reviews a, b, c of a film. By `first`, b is between step - 0.25 and
    step + 0.25 below a (half open), and c is the same below b.

    Args:
        first, above: what `two_halves` returns.
        step: in rating units, at least 0.25.
    """
    ahead = first[:, None] - first
    near = ((ahead >= step - 0.25) & (ahead < step + 0.25)).to(above.dtype)
    # how often i and j are a and b, b and c, a and c of a triple
    triples = torch.stack([near * near.sum(1), near * near.sum(0)[:, None], near @ near])
    return torch.stack([triples * above, triples * above.T], 1).sum((2, 3)).flatten()


def odds_of_steps(
    films: list[list[Review]],
    steps: tuple[float, ...],
    *,
    splits: int = 4,
    redraws: int = 500,
    seed: int = 0,
) -> list[dict[str, float]]:
    """Whether the odds of two steps multiply, as the Bradley-Terry model says.

    Review b is one step below a, and c is one step below b. One half of the people says so
    (`two_halves`), and the odds come from the other half. So a review that is ahead by chance is
    not also chosen for the same chance. The choices are summed over all triples of a film, over
    all films, and over several splits of the people.

    Compare the ratio with that of simulated ratings on the same scale, and not with 1. Rounded
    ratings, with their ties dropped, lower it even where the Bradley-Terry model is true before
    rounding. The chance errors of the first half raise it for large steps.

    Args:
        films: the rated reviews of each film.
        steps: sizes of a step, in rating units (`step_choices`).
        splits: number of random splits of the people.
        redraws: number of draws of the films, with replacement, for the interval.
        seed: of the splits and of the draws.

    Returns:
        A row for each step: `step`, the odds `a : b` and `b : c`, their `product`, the odds
        `a : c`, the `ratio` of the last two, which is 1 in the Bradley-Terry model of choices
        without ties, and its 95 % bootstrap interval, `low` to `high`.
    """
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(len(steps), len(films), 6, device="cpu")
    for place, film in enumerate(films):
        ratings = torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(r.ratings, device="cpu").float() for r in film],
            batch_first=True,
            padding_value=torch.nan,
        )
        for _ in range(splits):
            first, _, above = two_halves(ratings, generator)
            for i, step in enumerate(steps):
                total[i, place] += step_choices(first, above, step)
    again = torch.randint(len(films), (redraws, len(films)), generator=generator, device="cpu")
    rows = []
    for step, choices in zip(steps, total, strict=True):
        sums = torch.cat([choices.sum(0)[None], choices[again].sum(1)])  # the first is the real one
        ab, bc, ac = (sums[:, 0::2] / sums[:, 1::2]).T
        ratio = ac / (ab * bc)
        low, high = ratio[1:].quantile(torch.tensor([0.025, 0.975], device="cpu")).tolist()
        odds = {"a : b": ab[0], "b : c": bc[0], "product": ab[0] * bc[0], "a : c": ac[0]}
        row = {"step": step} | {name: x.item() for name, x in (odds | {"ratio": ratio[0]}).items()}
        rows.append(row | {"low": low, "high": high})
    return rows
