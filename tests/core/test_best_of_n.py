"""Best-of-n: the bound, the exact distribution, and the estimate from more than n samples."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minirlhf.core.best_of_n import best_of_n_kl, best_of_n_mean, best_of_n_probs

EXACT = {"rtol": 0, "atol": 1e-12}


def T(*x):
    return torch.tensor(x, dtype=torch.float64)


def kl(q, p):
    return torch.xlogy(q, q / p).sum().item()


# ---- the exact distribution
def test_two_samples_of_two_responses_by_hand():
    # the worse response is kept if both samples are the worse one: 0.9^2 = 0.81
    kept = best_of_n_probs(T(0.9, 0.1), T(0.0, 1.0), 2)
    torch.testing.assert_close(kept, T(0.81, 0.19), **EXACT)


def test_tied_responses_share_by_their_probability():
    # the group of two with p = 0.5 is kept unless all samples are of the other: 1 - 0.5^2 = 0.75
    kept = best_of_n_probs(T(0.5, 0.4, 0.1), T(0.0, 1.0, 1.0), 2)
    torch.testing.assert_close(kept, T(0.25, 0.6, 0.15), **EXACT)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_distribution_equals_a_list_of_all_draws(n):
    p, scores = T(0.4, 0.3, 0.2, 0.1), T(1.0, 0.0, 1.0, 2.0)
    kept = torch.zeros(4, dtype=torch.float64)
    for draw in itertools.product(range(4), repeat=n):
        best = max(scores[y] for y in draw)
        tied = [y for y in draw if scores[y] == best]
        for y in tied:
            kept[y] += math.prod(p[i].item() for i in draw) / len(tied)
    torch.testing.assert_close(best_of_n_probs(p, scores, n), kept, **EXACT)


def test_exact_kl_stays_below_the_bound_and_stops_at_the_best_response():
    p, scores = T(0.4, 0.3, 0.2, 0.1), T(0.0, 1.0, 2.0, 3.0)
    found = [kl(best_of_n_probs(p, scores, n), p) for n in (2, 4, 16, 64)]
    assert found == pytest.approx([0.157, 0.587, 1.677, 2.293], abs=5e-4)
    bounds = [best_of_n_kl(n) for n in (2, 4, 16, 64)]
    assert bounds == pytest.approx([0.193, 0.636, 1.835, 3.175], abs=5e-4)
    assert kl(best_of_n_probs(p, scores, 10_000), p) == pytest.approx(math.log(10), abs=1e-9)


def test_the_bound_is_nearly_exact_for_many_rare_responses():
    p, scores = torch.full((2000,), 1 / 2000, dtype=torch.float64), torch.arange(2000.0).double()
    assert kl(best_of_n_probs(p, scores, 16), p) == pytest.approx(best_of_n_kl(16), abs=5e-3)


def test_rounded_probabilities_give_probabilities_for_a_large_n():
    p = torch.tensor([0.4, 0.3, 0.2, 0.10009])  # float32, and their sum is 1.00009
    for n in (1024, 10_000):
        kept = best_of_n_probs(p, torch.arange(4.0), n)
        assert kept.dtype == torch.float32 and kept.sum().item() == pytest.approx(1, abs=1e-6)


# ---- the estimate
def test_best_of_two_of_three_by_hand():
    # pairs by score: (1, 2) -> 2, (1, 3) -> 3, (2, 3) -> 3; values 20, 30, 30
    mean = best_of_n_mean(T([10.0, 20.0, 30.0]), T([1.0, 2.0, 3.0]), 2)
    torch.testing.assert_close(mean, T(80 / 3), **EXACT)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 7), st.integers(0, 10_000))
def test_estimate_is_the_mean_over_all_subsets(n, seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(2, 7, generator=generator, dtype=torch.float64)
    scores = torch.randint(0, 4, (2, 7), generator=generator).double()  # with ties
    wanted = []
    for row in range(2):
        kept = []
        for subset in itertools.combinations(range(7), n):
            best = max(scores[row, i] for i in subset)
            tied = [values[row, i].item() for i in subset if scores[row, i] == best]
            kept.append(sum(tied) / len(tied))
        wanted.append(sum(kept) / len(kept))
    torch.testing.assert_close(best_of_n_mean(values, scores, n), T(*wanted), **EXACT)


def test_estimate_is_unbiased_and_less_noisy_than_the_first_n():
    p, scores, gold = T(0.4, 0.3, 0.2, 0.1), T(0.0, 1.0, 2.0, 3.0), T(0.0, 2.0, 3.0, -1.0)
    exact = (best_of_n_probs(p, scores, 4) * gold).sum()
    drawn = p.expand(4000, 4).multinomial(
        32, replacement=True, generator=torch.Generator().manual_seed(0)
    )
    all_32 = best_of_n_mean(gold[drawn], scores[drawn], 4)
    first_4 = best_of_n_mean(gold[drawn[:, :4]], scores[drawn[:, :4]], 4)
    for estimate in (all_32, first_4):
        assert abs(estimate.mean() - exact) < 4 * estimate.std() / 4000**0.5
    assert all_32.std() < first_4.std() / 2


def test_one_sample_is_the_mean_and_all_samples_are_the_best():
    values, scores = torch.randn(3, 4096), torch.randn(3, 4096)
    torch.testing.assert_close(best_of_n_mean(values, scores, 1), values.mean(1))
    best = values.gather(1, scores.argmax(1, keepdim=True))[:, 0]
    torch.testing.assert_close(best_of_n_mean(values, scores, 4096), best)


def test_mean_score_grows_with_n():
    scores = torch.randn(5, 200, generator=torch.Generator().manual_seed(0))
    means = torch.stack([best_of_n_mean(scores, scores, n) for n in range(1, 201)])
    assert (means.diff(dim=0) > 0).all()


# ---- what is refused
def test_odd_arguments_are_refused_in_a_sentence():
    scores = torch.randn(2, 4)
    for n in (0, 5):
        with pytest.raises(ValueError, match=f"n is {n}; it must be from 1 to the 4 samples"):
            best_of_n_mean(scores, scores, n)
    with pytest.raises(ValueError, match="n is 0; it must be at least 1"):
        best_of_n_kl(0)
    with pytest.raises(ValueError, match="n is 0; it must be at least 1"):
        best_of_n_probs(T(1.0), T(0.0), 0)
    with pytest.raises(ValueError, match="probs sum to 0.9"):
        best_of_n_probs(T(0.4, 0.5), T(0.0, 1.0), 2)
    with pytest.raises(ValueError, match=r"scores\[1, 2\] is NaN"):
        broken = scores.clone()
        broken[1, 2] = math.nan
        best_of_n_mean(scores, broken, 2)
