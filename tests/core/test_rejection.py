"""Rejection sampling: its chances by hand, its limits, and how near it comes to the Gibbs policy as K grows."""

import math

import pytest
import torch

from minirlhf.core.rejection import rejection_sample


def frequencies(scores, count, *, draws=40_000, **given):
    kept = rejection_sample(
        torch.tensor([scores]).expand(draws, -1),
        count=count,
        generator=torch.Generator().manual_seed(0),
        **given,
    )
    return [kept[:, place].bincount(minlength=len(scores)) / draws for place in range(count)]


def test_sampling_probabilities_by_hand():
    # r / beta = log 1, log 2, log 5: the first is drawn with 1/8, 2/8, 5/8. Then by what is left:
    # second is 0: 2/8 * 1/6 + 5/8 * 1/3 = 1/4;  1: 1/8 * 2/7 + 5/8 * 2/3 = 19/42;  2: 1/8 * 5/7 + 2/8 * 5/6 = 25/84
    first, second = frequencies([0.0, 0.5 * math.log(2), 0.5 * math.log(5)], 2, beta=0.5)
    torch.testing.assert_close(
        first, torch.tensor([1 / 8, 2 / 8, 5 / 8]), rtol=0, atol=0.01
    )  # 4 standard errors
    torch.testing.assert_close(second, torch.tensor([1 / 4, 19 / 42, 25 / 84]), rtol=0, atol=0.01)


def test_limits_and_refusals():
    scores = torch.tensor([[1.0, 3.0, 2.0], [0.0, -1.0, 5.0]])
    assert rejection_sample(scores, beta=1e-6, count=2).tolist() == [[1, 2], [2, 0]]
    torch.testing.assert_close(
        frequencies([0.0, 9.0], 1, beta=1e9)[0], torch.tensor([0.5, 0.5]), rtol=0, atol=0.01
    )
    for given, words in (
        ({"beta": 0.0}, "beta is 0.0"),
        ({"beta": 1.0, "count": 4}, "is 4"),
        ({"beta": 1.0, "count": 0}, "is 0"),
    ):
        with pytest.raises(ValueError, match=words):
            rejection_sample(scores, **given)


def test_rejection_sampling_nears_the_gibbs_policy_as_k_grows(world):
    generator, ref, beta = torch.Generator().manual_seed(1), world.probs(world.ref_logits), 0.5
    distances = []
    for k in (1, 4, 64):
        drawn = torch.multinomial(ref.expand(20_000, -1), k, replacement=True, generator=generator)
        kept = drawn.gather(
            1, rejection_sample(world.rewards[drawn], beta=beta, generator=generator)
        )[:, 0]
        distances.append(
            (kept.bincount(minlength=15) / 20_000 - world.gibbs(beta=beta)).abs().sum() / 2
        )  # total variation
    assert distances[0] > 0.3 and distances[1] < 0.6 * distances[0] and distances[2] < 0.05
