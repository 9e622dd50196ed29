import itertools
import math
import random
from pathlib import Path

import pytest
import torch

from minirlhf.tasks.agreement import (
    disagreements,
    human_ceiling,
    krippendorff_alpha,
    odds_of_steps,
    preference_share,
    step_choices,
    tie_share,
    two_halves,
)
from minirlhf.tasks.reviews import GAP_BANDS, Review, load_reviews, pairs_within_films


def review(*ratings):
    return Review("t", "m", "val", ratings, True)


def test_preference_and_tie_shares_by_hand():
    # a: 1, 3; b: 2, 3. Pairs: 1<2, 1<3, 3>2, 3=3: one above, two below, one tie
    assert preference_share((1, 3), (2, 3)) == 1 / 3
    assert tie_share([(review(1, 3), review(2, 3))]) == 1 / 4
    assert preference_share((2, 2), (2, 2)) == 0.5


def test_human_ceiling_by_hand():
    # a: 0, 4, 4; b: 1, 3. A rating of each, and the gap of the others: 0|1: 4 - 3 = +1, wrong; 0|3: 4 - 1 = +3, wrong;
    # twice 4|1: 2 - 3 = -1, wrong; twice 4|3: 2 - 1 = +1, right
    pair = [(review(0, 4, 4), review(1, 3))]
    assert human_ceiling(pair) == pytest.approx(2 / 6, abs=1e-15)
    assert (
        human_ceiling(pair, 0, 2) == pytest.approx(2 / 5, abs=1e-15)
        and human_ceiling(pair, 3, 8) == 0
    )
    assert human_ceiling(pair, 1, 3) == pytest.approx(2 / 5, abs=1e-15)  # half open
    assert math.isnan(human_ceiling(pair, 1.5, 2))
    # a: 0, 2; b: 1, 2. 0|1: 2 - 2, even: one half; 0|2: 2 - 1, wrong; 2|1: 0 - 2, wrong; 2|2 is a tie and is not counted
    assert human_ceiling([(review(0, 2), review(1, 2))]) == pytest.approx(0.5 / 3, abs=1e-15)
    assert human_ceiling([(review(3, 3, 3, 3), review(-1, -1, -1, -1))]) == 1


@pytest.mark.parametrize("seed", range(3))
def test_the_human_ceiling_of_random_ratings_is_one_half(seed):
    rng = random.Random(seed)
    noise = [
        (
            review(*(rng.randint(-4, 4) for _ in range(16))),
            review(*(rng.randint(-4, 4) for _ in range(16))),
        )
        for _ in range(4000)
    ]
    for low, high in (
        (0.0, 0.5),
        (0.5, 1.0),
        (1.0, 2.0),
        (0.0, 8.0),
    ):  # gaps above 2 hardly occur
        assert (
            abs(human_ceiling(noise, low, high) - 0.5) < 0.02
        )  # if the gap included the two ratings themselves: 0.40 to 0.70
    close = [(a, b) for a, b in noise if abs(a.mean - b.mean) < 0.5]
    assert human_ceiling(close) < 0.45  # pairs selected by their full means are biased


def test_a_pair_whose_ratings_always_tie_does_not_count_in_the_ceiling():
    # in the first pair all ratings agree and never tie; in the second all tie
    sure, doubtful = (
        (review(3, 3, 3, 3), review(-1, -1, -1, -1)),
        (review(1, 1, 1, 1), review(1, 1, 1, 1)),
    )
    assert human_ceiling([sure, doubtful]) == 1  # a pair that always ties has weight 0


def test_krippendorff_alpha_by_hand():
    # items (1, 1), (3, 3): no disagreement within; (1, 3), (3, 1): D_o = 4, D_e = 2 (4 * 20 - 64) / 12 = 8/3: 1 - 3/2
    assert krippendorff_alpha([(1, 1), (3, 3)]) == 1
    assert abs(krippendorff_alpha([(1, 3), (3, 1)]) - -0.5) < 1e-12
    assert disagreements([(1, 3), (3, 1)]) == pytest.approx((4, 8 / 3), abs=1e-12)
    # (0, 0, 3) disagrees by 6 on average of its three pairs, (1, 1) by 0: each rating counts once
    assert disagreements([(0, 0, 3), (1, 1)])[0] == pytest.approx((3 * 6 + 2 * 0) / 5, abs=1e-12)


def test_the_human_ceiling_grows_with_the_rating_gap():
    pairs = pairs_within_films("val")
    assert human_ceiling(pairs, 0, 0.5) < 0.65 < 0.9 < human_ceiling(pairs, 2, 3.5)
    near, far = (pairs_within_films("val", *band) for band in ((0.0, 0.5), (2.0, 3.5)))
    assert tie_share(far) < tie_share(near)


def test_the_table_of_the_data_card_is_correct():
    card = (Path(__file__).parents[2] / "data" / "README.md").read_text(encoding="utf-8")
    every = pairs_within_films("test")
    names = ("0 to 0.5", "0.5 to 1", "1 to 2", "2 to 3.5", "3.5 and more", "all")
    for (low, high), name in zip((*GAP_BANDS, (0.0, 8.0)), names, strict=True):
        pairs = pairs_within_films("test", low, high)
        assert (
            f"| {name} | {len(pairs):,} | {human_ceiling(every, low, high):.2f} | {100 * tie_share(pairs):.0f} % |"
            in card
        )
    assert round(krippendorff_alpha([r.ratings for r in load_reviews() if r.ratings]), 2) == 0.80


def film_of(*reviews):
    """Ratings as a matrix, with NaN where a review has fewer of them."""
    longest = max(map(len, reviews))
    return torch.tensor([[*r, *[math.nan] * (longest - len(r))] for r in reviews])


def test_two_halves_are_a_split_of_the_ratings():
    powers = [1.0, 2.0, 4.0, 8.0, 16.0]  # a sum says which of them are in it
    film = film_of(powers, powers[:4], powers[:3])
    seen = set()
    for seed in range(40):
        first, second, _ = two_halves(film, torch.Generator().manual_seed(seed))
        for i, size in enumerate((5, 4, 3)):
            larger, smaller = (size + 1) // 2, size // 2
            one, other = round(larger * first[i].item()), round(smaller * second[i].item())
            assert one & other == 0 and one + other == 2**size - 1
            assert one.bit_count() == larger
        seen.add((round(3 * first[0].item()), round(2 * first[1].item())))
    assert len(seen) > 20  # at random, and for each review on its own


def test_the_choices_of_the_other_half_are_those_of_a_loop():
    # each review has the same rating in both halves, or ratings that any split separates alike
    film = film_of((1, 1, 1, 1), (0, 0, 0), (2, 2))
    _, _, above = two_halves(film, torch.Generator().manual_seed(0))
    assert above.tolist() == [[0, 1, 0], [0, 0, 0], [1, 1, 0]]
    for seed in range(10):
        # of (r, s, s), one rating is in the other half: the mean says which
        film = film_of((0.5, 3, 3), (-1, 2, 2), (1, 1, 1, 1, 1))
        _, second, above = two_halves(film, torch.Generator().manual_seed(seed))
        assert above.tolist() == (second[:, None] > second).float().tolist()


def test_choices_with_ties_and_unequal_sizes_are_shares():
    ratings = [(4, 1, 4, 1), (3, 0, 3, 0, 0, 3), (2, 1, 1, 2)]
    for seed in range(5):
        _, second, above = two_halves(film_of(*ratings), torch.Generator().manual_seed(seed))
        halves = []
        for review, mean in zip(ratings, second.tolist(), strict=True):
            size = len(review) // 2
            fits = itertools.combinations(review, size)
            halves.append(next(x for x in fits if abs(sum(x) / size - mean) < 1e-5))
        for (i, x), (j, y) in itertools.product(enumerate(halves), repeat=2):
            share = sum(p > q for p in x for q in y) / (len(x) * len(y))
            assert above[i, j].item() == pytest.approx(share, abs=1e-6)


@pytest.mark.parametrize("step", [0.5, 1.0, 2.0])
def test_the_choices_of_triples_are_those_of_a_loop(step):
    generator = torch.Generator().manual_seed(0)
    first = 2 * torch.randn(20, generator=generator)
    above = torch.rand(20, 20, generator=generator)
    expected, found = torch.zeros(6), 0
    for a, b, c in itertools.permutations(range(20), 3):
        gaps = (first[a] - first[b]).item(), (first[b] - first[c]).item()
        if all(step - 0.25 <= gap < step + 0.25 for gap in gaps):
            order = ((a, b), (b, a), (b, c), (c, b), (a, c), (c, a))
            expected += torch.stack([above[i, j] for i, j in order])
            found += 1
    assert found > 3
    torch.testing.assert_close(step_choices(first, above, step), expected)


def simulated_films(noise, films=150):
    """Films of nine reviews with means 1 apart or less, 16 ratings each."""
    generator = torch.Generator().manual_seed(7)
    result = []
    for _ in range(films):
        means = torch.arange(-2, 2.5, 0.5)[:, None]
        ratings = means + noise(torch.rand(9, 16, generator=generator))
        result.append([review(*x) for x in ratings.tolist()])
    return result


def test_the_odds_of_two_steps_multiply_where_bradley_terry_is_true():
    films = simulated_films(lambda u: -(-u.log()).log())  # Gumbel noise
    for row in odds_of_steps(films, (0.5, 1.0)):
        assert abs(row["ratio"] - 1) < 0.05 and row["low"] < 1.01 < row["high"] < 1.1
        assert row["product"] == pytest.approx(row["a : b"] * row["b : c"], rel=1e-5)
        assert row["ratio"] == pytest.approx(row["a : c"] / row["product"], rel=1e-5)
    # the gap that decides is that of the noisy half: the odds are below e, for steps of 1
    assert 1.5 < row["a : b"] < math.e
    # a uniform noise has short tails: the odds of two steps are larger than the product
    (row,) = odds_of_steps(simulated_films(lambda u: 3 * u), (1.0,))
    assert row["low"] > 1.05
    assert odds_of_steps(films[:20], (1.0,)) == odds_of_steps(films[:20], (1.0,))
    assert odds_of_steps(films[:20], (1.0,)) != odds_of_steps(films[:20], (1.0,), seed=1)
