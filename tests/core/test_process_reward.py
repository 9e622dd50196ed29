"""Process rewards: where steps end, labels from continuations, the loss, and one score for all steps."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import grad, gradcheck

from minirlhf.core.process_reward import (
    STEP_AGGREGATIONS,
    by_step,
    process_reward_loss,
    process_reward_score,
    step_ends,
    step_labels,
)

LINE, EOS = 5, 9
ENDS = torch.tensor([LINE, EOS])
EXACT = {"rtol": 0, "atol": 1e-12}


def T(*x):
    return torch.tensor(x, dtype=torch.float64)


def M(*x):
    return torch.tensor(x, dtype=torch.bool)


# ---- where steps end
@pytest.mark.parametrize(
    "ids, mask, ends",
    [
        ([1, LINE, 2, 3, EOS], [1, 1, 1, 1, 1], [1, 4]),
        ([1, LINE, 2, LINE, EOS], [1, 1, 1, 1, 1], [1, 3]),  # EOS after a line is no step
        ([1, LINE, LINE, 2, EOS], [1, 1, 1, 1, 1], [1, 4]),  # nor is an empty line
        ([1, LINE, 2, 3, 4], [1, 1, 1, 1, 1], [1]),  # the last step was cut off
        ([1, EOS, LINE, LINE, EOS], [1, 1, 0, 0, 0], [1]),  # padding
        ([1, LINE, 7, LINE, 2], [1, 0, 0, 1, 1], [3]),  # a tool wrote columns 1 and 2
        ([EOS, LINE, 1, 1, 1], [1, 0, 0, 0, 0], [0]),  # an empty response is one step
        ([1, 2, 3, 4, 1], [1, 1, 1, 1, 1], []),
    ],
)
def test_step_ends_by_hand(ids, mask, ends):
    found = step_ends(torch.tensor([ids]), M(mask), ENDS)
    assert found[0].nonzero()[:, 0].tolist() == ends


def test_eos_ends_a_step_only_if_it_is_named():
    ids, mask = torch.tensor([[1, LINE, 2, EOS]]), M([1, 1, 1, 1])
    assert step_ends(ids, mask, torch.tensor([LINE])).tolist() == [[False, True, False, False]]


def test_one_value_for_each_step_by_hand():
    nan = math.nan
    values = T([nan, 2.0, nan, 4.0, nan], [nan, nan, nan, nan, 7.0]).requires_grad_(True)
    ends = M([0, 1, 0, 1, 0], [0, 0, 0, 0, 1])
    steps, mask = by_step(values, ends)
    assert steps.tolist() == [[2.0, 4.0], [7.0, 0.0]]
    assert mask.tolist() == [[True, True], [True, False]]
    assert grad(steps.square().sum(), values)[0].tolist() == [
        [0.0, 4.0, 0.0, 8.0, 0.0],
        [0.0, 0.0, 0.0, 0.0, 14.0],
    ]
    with pytest.raises(ValueError, match="step_ends is False everywhere"):
        by_step(values, ends & False)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=4))
def test_steps_keep_their_order_and_their_row(rows):
    ends, values = torch.tensor(rows), torch.arange(6.0 * len(rows)).view(-1, 6)
    if not ends.any():
        return
    steps, mask = by_step(values, ends)
    assert mask.shape[1] == ends.sum(1).max()
    for row in range(len(rows)):
        assert steps[row, mask[row]].tolist() == values[row, ends[row]].tolist()


# ---- labels
def test_labels_by_hand():
    # continuations right: 1 of 4, none, all; the second response has one step
    right = M(
        [[1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]], [[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1]]
    )
    mask = M([1, 1, 1], [1, 0, 0])
    assert step_labels(right, mask, hard=True).tolist() == [[1, 0, 1], [1, 0, 0]]
    assert step_labels(right, mask, hard=False).tolist() == [[0.25, 0, 1], [0.75, 0, 0]]


def test_a_soft_label_is_unbiased_and_a_hard_one_grows_with_the_number_of_continuations():
    # all outcomes of N continuations, each right with probability p
    p = 0.3
    for count in (1, 2, 5):
        outcomes = M(*itertools.product([0, 1], repeat=count))[:, None]
        chance = torch.where(outcomes, p, 1 - p).double().prod(-1)[:, 0]
        mask = torch.ones(len(outcomes), 1, dtype=torch.bool)
        hard, soft = (step_labels(outcomes, mask, hard=hard)[:, 0] for hard in (True, False))
        torch.testing.assert_close((chance * soft).sum(), T(p)[0], rtol=0, atol=1e-6)
        torch.testing.assert_close((chance * hard).sum(), T(1 - 0.7**count)[0], rtol=0, atol=1e-6)


# ---- the loss
def test_loss_and_gradient_by_hand():
    # z = log 3: sigmoid 3/4. y = 1: -log 3/4.  y = 0: -log 1/4.  y = 1/2: the mean of both
    logits = T([math.log(3)] * 4).requires_grad_(True)
    labels, mask = T([1.0, 0.0, 0.5, 1.0]), M([1, 1, 1, 0])
    losses = process_reward_loss(logits, labels, mask)
    one, zero = -math.log(0.75), -math.log(0.25)
    torch.testing.assert_close(losses, T([one, zero, (one + zero) / 2, 0.0]), **EXACT)
    # d loss / dz = sigmoid(z) - y
    gradient = grad(losses.sum(), logits)[0]
    torch.testing.assert_close(gradient, T([-0.25, 0.75, 0.25, 0.0]), **EXACT)


def test_the_mean_loss_is_smallest_at_the_mean_label():
    # labels 1, 0, 1, 1/2: mean 5/8, so z = log(5/3)
    logits = T([math.log(5 / 3)] * 4).requires_grad_(True)
    loss = process_reward_loss(logits, T([1.0, 0.0, 1.0, 0.5]), M([1, 1, 1, 1])).mean()
    assert abs(grad(loss, logits)[0].sum()) < 1e-12


def test_the_loss_is_stable_far_out():
    logits = torch.tensor([[500.0, -500.0, 500.0, 20.0]], requires_grad=True)
    losses = process_reward_loss(logits, torch.tensor([[0.0, 1.0, 1.0, 1.0]]), M([1, 1, 1, 1]))
    assert losses[0, :3].tolist() == [500, 500, 0]
    torch.testing.assert_close(losses[0, 3].item(), math.log1p(math.exp(-20)))  # not rounded to 0
    assert grad(losses.sum(), logits)[0][0, :3].tolist() == [1, -1, 0]


def test_labels_carry_no_gradient_and_the_loss_passes_gradcheck():
    logits = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.rand(2, 3, dtype=torch.float64, requires_grad=True)
    mask = M([1, 1, 1], [1, 0, 1])
    assert gradcheck(lambda z: process_reward_loss(z, labels.detach(), mask), logits)
    loss = process_reward_loss(logits, labels, mask).sum()
    assert grad(loss, labels, allow_unused=True)[0] is None


def test_a_sentinel_is_no_label():
    # -100, cast to bool, would be True: a good step
    logits, labels = T([0.0, 0.0, 0.0]), T([1.0, -100.0, -100.0])
    with pytest.raises(ValueError, match=r"labels\[0, 1\] is -100; a label must be from 0 to 1"):
        process_reward_loss(logits, labels, M([1, 1, 0]))
    with pytest.raises((ValueError, TypeError)):
        process_reward_loss(logits, labels.bool(), M([1, 0, 0]))
    ln2 = math.log(2)
    assert process_reward_loss(logits, labels, M([1, 0, 0])).tolist() == [[ln2, 0.0, 0.0]]


@pytest.mark.parametrize("label", [-1e-9, 1 + 1e-9, math.nan, math.inf])
def test_a_label_outside_0_to_1_is_refused(label):
    with pytest.raises(ValueError, match=r"labels\[1, 0\]"):
        process_reward_loss(T([0.0], [0.0]), T([0.5], [label]), M([1], [1]))


# ---- one score for a response
def test_scores_by_hand():
    # probabilities 3/4, 1/4, 1/2; product 3/32. The second response has only its first step
    logits = T([math.log(3), -math.log(3), 0.0], [math.log(3), math.nan, math.nan])
    mask = M([1, 1, 1], [1, 0, 0])
    for how, expected in (
        ("last", [1 / 2, 3 / 4]),
        ("min", [1 / 4, 3 / 4]),
        ("product", [3 / 32, 3 / 4]),
    ):
        scores = process_reward_score(logits, mask, how=how)
        torch.testing.assert_close(scores.exp(), T(*expected), **EXACT)


def test_a_product_of_many_steps_is_not_rounded_to_0():
    scores = process_reward_score(
        torch.zeros(1, 2000), torch.ones(1, 2000, dtype=torch.bool), how="product"
    )
    torch.testing.assert_close(scores.item(), -2000 * math.log(2), rtol=1e-5, atol=0)
    far = process_reward_score(torch.full((1, 1), -300.0), M([1]), how="min")
    assert far.item() == -300  # log(sigmoid(-300)) would be -inf in float32


@pytest.mark.parametrize("how", STEP_AGGREGATIONS)
def test_a_response_without_a_step_is_refused(how):
    with pytest.raises(ValueError, match="step_mask is False throughout row 1"):
        process_reward_score(T([0.0, 0.0], [0.0, 0.0]), M([1, 0], [0, 0]), how=how)


def test_an_unknown_reduction_is_refused():
    with pytest.raises(ValueError, match="how is 'mean'; it must be one of"):
        process_reward_score(T([0.0]), M([1]), how="mean")


logits_of_a_response = st.lists(st.floats(-30, 30), min_size=1, max_size=6)


@settings(max_examples=40, deadline=None)
@given(logits_of_a_response, st.randoms(use_true_random=False))
def test_the_order_of_steps_changes_neither_minimum_nor_product(logits, random):
    shuffled = random.sample(logits, len(logits))
    mask = torch.ones(1, len(logits), dtype=torch.bool)
    for how in ("min", "product"):
        a, b = (process_reward_score(T(x), mask, how=how) for x in (logits, shuffled))
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("how", STEP_AGGREGATIONS)
@settings(max_examples=40, deadline=None)
@given(logits_of_a_response, st.lists(st.integers(0, 6), max_size=4))
def test_holes_with_nan_change_neither_score_nor_gradient(how, logits, holes):
    x = T(logits).requires_grad_(True)
    whole = process_reward_score(x, torch.ones_like(x, dtype=torch.bool), how=how)
    wanted = grad(whole.sum(), x)[0]
    wide, mask = list(logits), [True] * len(logits)
    for place in holes:
        wide.insert(place, math.nan)
        mask.insert(place, False)
    y = T(wide).requires_grad_(True)
    score = process_reward_score(y, M(mask), how=how)
    gradient = grad(score.sum(), y)[0]
    torch.testing.assert_close(score, whole, **EXACT)
    torch.testing.assert_close(gradient[M(mask)], wanted[0], **EXACT)
    assert gradient[~M(mask)].eq(0).all()


@pytest.mark.parametrize("how", STEP_AGGREGATIONS)
@settings(max_examples=40, deadline=None)
@given(logits_of_a_response, st.integers(0, 5), st.floats(0, 10))
def test_a_better_step_never_lowers_the_score(how, logits, place, gain):
    better = list(logits)
    better[place % len(logits)] += gain
    mask = torch.ones(1, len(logits), dtype=torch.bool)
    low, high = (process_reward_score(T(x), mask, how=how) for x in (logits, better))
    assert low <= high <= 0


@settings(max_examples=40, deadline=None)
@given(logits_of_a_response)
def test_minimum_is_at_least_the_product_and_at_most_the_last(logits):
    mask = torch.ones(1, len(logits), dtype=torch.bool)
    last, smallest, product = (
        process_reward_score(T(logits), mask, how=how) for how in STEP_AGGREGATIONS
    )
    assert product <= smallest <= last
    # every step twice: the product is squared, the others stay
    twice = T([z for z in logits for _ in "ab"])
    mask = torch.ones_like(twice, dtype=torch.bool)
    again = [process_reward_score(twice, mask, how=how) for how in STEP_AGGREGATIONS]
    torch.testing.assert_close(again, [last, smallest, 2 * product], rtol=1e-12, atol=1e-12)


def test_tokens_to_score_in_one_pass():
    # two responses of two steps and one step; token logits at the ends log 3, 0 and -log 3
    ids = torch.tensor([[1, LINE, 2, EOS], [1, 2, EOS, 0]])
    mask = M([1, 1, 1, 1], [1, 1, 1, 0])
    logits = T([8.0, math.log(3), 8.0, 0.0], [8.0, 8.0, -math.log(3), math.nan])
    steps, step_mask = by_step(logits, step_ends(ids, mask, ENDS))
    scores = process_reward_score(steps, step_mask, how="product")
    torch.testing.assert_close(scores.exp(), T(3 / 8, 1 / 4), **EXACT)
