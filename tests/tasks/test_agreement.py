import math
import random
from pathlib import Path

import pytest

from minirlhf.tasks.agreement import human_ceiling, krippendorff_alpha, preference_share, tie_share
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
