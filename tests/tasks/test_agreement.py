import random

from minirlhf.tasks.agreement import human_ceiling, krippendorff_alpha, preference_share, tie_share
from minirlhf.tasks.reviews import Review, pairs_within_films


def review(*ratings):
    return Review("t", "m", "val", ratings, True)


def test_shares_by_hand():
    # a: 1, 3; b: 2, 3. Pairs: 1<2, 1<3, 3>2, 3=3: one above, two below, one tie
    assert preference_share((1, 3), (2, 3)) == 1 / 3
    assert tie_share([(review(1, 3), review(2, 3))]) == 1 / 4
    assert preference_share((2, 2), (2, 2)) == 0.5


def test_ceiling_is_one_where_all_agree_and_a_half_for_noise():
    assert human_ceiling([(review(3, 3, 3, 3), review(-1, -1, -1, -1))]) == 1
    rng = random.Random(0)
    noise = [(review(*(rng.randint(-4, 4) for _ in range(16))), review(*(rng.randint(-4, 4) for _ in range(16)))) for _ in range(1500)]
    assert abs(human_ceiling(noise) - 0.5) < 0.02  # taking direction and share from the same ratings would give about 0.6


def test_a_pair_weighs_in_the_ceiling_as_often_as_its_ratings_differ():
    # the first pair: never a tie, all agree: 1, weight 1. The second: 1 and 1 tie always in three of four draws
    sure, doubtful = (review(3, 3, 3, 3), review(-1, -1, -1, -1)), (review(1, 1, 1, 1), review(1, 1, 1, 1))
    assert human_ceiling([sure, doubtful]) == 1  # a pair that is always a tie is never asked about


def test_alpha_by_hand():
    # items (1, 1), (3, 3): no disagreement within; (1, 3), (3, 1): D_o = 4, D_e = 2 (4 * 20 - 64) / 12 = 8/3: 1 - 3/2
    assert krippendorff_alpha([(1, 1), (3, 3)]) == 1
    assert abs(krippendorff_alpha([(1, 3), (3, 1)]) - -0.5) < 1e-12


def test_pairs_grow_easier_with_the_gap():
    near, far = (pairs_within_films("val", *band) for band in ((0.0, 0.5), (2.0, 3.5)))
    assert human_ceiling(near) < 0.6 < 0.9 < human_ceiling(far)
    assert tie_share(far) < tie_share(near)


def test_the_data_card_says_what_is_true():
    from minirlhf.tasks.reviews import GAP_BANDS, load_reviews

    expected = [(4858, 0.51, 0.33), (3644, 0.76, 0.27), (3725, 0.90, 0.17), (3880, 0.98, 0.05), (3108, 1.00, 0.01), (19215, 0.83, 0.18)]
    for band, (count, ceiling, ties) in zip((*GAP_BANDS, (0.0, 8.0)), expected, strict=True):
        pairs = pairs_within_films("test", *band)
        assert len(pairs) == count
        assert abs(human_ceiling(pairs) - ceiling) < 0.01
        assert abs(tie_share(pairs) - ties) < 0.01
    assert round(krippendorff_alpha([r.ratings for r in load_reviews() if r.ratings]), 2) == 0.80
