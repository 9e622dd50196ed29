import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minirlhf.core.masking import (
    AGGREGATIONS,
    aggregate,
    check_same_shape,
    loss_denominator,
    masked_mean,
    masked_var,
    masked_whiten,
)

X = torch.tensor([[1.0, 3.0, 99.0], [8.0, 99.0, 99.0]])
MASK = torch.tensor([[True, True, False], [True, False, False]])


def test_means_by_hand():
    # real entries 1, 3, 8: mean 12 / 3 = 4; squares of -3, -1, 4: 9 + 1 + 16 = 26, over n - 1 = 2: 13
    assert masked_mean(X, MASK) == 4
    assert masked_var(X, MASK, unbiased=True) == 13


@pytest.mark.parametrize(
    "how, constant, expected",
    [
        ("token_mean", None, 4.0),  # (1 + 3 + 8) / 3
        ("sequence_mean", None, 5.0),  # ((1 + 3) / 2 + 8 / 1) / 2
        ("sequence_sum", None, 6.0),  # ((1 + 3) + 8) / 2
        ("constant", 3.0, 2.0),  # 12 / (2 rows * 3)
    ],
)
def test_aggregate_by_hand(how, constant, expected):
    assert aggregate(X, MASK, how=how, constant=constant) == expected


def test_whiten_by_hand():
    x = torch.tensor([[1.0, 3.0, 7.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, False]])
    # mean 2, variance ((-1)^2 + 1^2) / 2 = 1
    torch.testing.assert_close(
        masked_whiten(x, mask, eps=0.0), torch.tensor([[-1.0, 1.0, 0.0]], dtype=torch.float64)
    )
    torch.testing.assert_close(
        masked_whiten(x, mask, eps=0.0, shift_mean=False), torch.tensor([[1.0, 3.0, 0.0]]).double()
    )


def test_equal_values_whiten_to_zero():
    assert (
        masked_whiten(torch.full((2, 3), 0.1), torch.ones(2, 3, dtype=torch.bool)).abs() < 1e-6
    ).all()


@pytest.mark.parametrize("how", AGGREGATIONS)
def test_nan_in_padding_reaches_neither_value_nor_gradient(how):
    x = torch.where(MASK, X, torch.nan).requires_grad_(True)
    loss = aggregate(x.exp(), MASK, how=how, constant=2.0 if how == "constant" else None)
    loss.backward()
    assert loss.isfinite()
    assert x.grad[MASK].isfinite().all()
    y = torch.where(MASK, X, torch.nan).requires_grad_(True)
    masked_whiten(y, MASK)[0, 0].backward()
    assert y.grad.isfinite().all()


def test_an_empty_batch_raises_and_a_masked_row_counts():
    nothing = torch.zeros_like(MASK)
    with pytest.raises(ValueError, match="mean needs at least one"):
        masked_mean(X, nothing)
    with pytest.raises(ValueError, match="Nothing to average"):
        loss_denominator(nothing, how="token_mean")
    half = torch.tensor([[True, True, False], [False, False, False]])
    assert aggregate(X, half, how="sequence_mean") == 1.0  # (2 + 0) / 2 rows
    assert aggregate(X, half, how="token_mean") == 2.0


@pytest.mark.parametrize(
    "arguments",
    [
        {"how": "mean"},
        {"how": "constant"},
        {"how": "constant", "constant": 0.0},
        {"how": "token_mean", "constant": 2.0},
    ],
)
def test_bad_aggregations_raise(arguments):
    with pytest.raises(ValueError):
        aggregate(X, MASK, **arguments)


def test_a_shape_error_names_the_shapes():
    with pytest.raises(ValueError, match=r"a \(2,\), b \(2, 1\)"):
        check_same_shape(a=torch.zeros(2), b=torch.zeros(2, 1))


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 4), min_size=2, max_size=6).filter(any),
    how=st.sampled_from(AGGREGATIONS),
    split=st.integers(1, 5),
    pad=st.integers(0, 3),
    junk=st.sampled_from([0.0, 1e30, float("nan"), float("inf")]),
)
def test_micro_batches_and_padding_change_nothing(lengths, how, split, pad, junk):
    constant = 4.0 if how == "constant" else None
    width = 4 + pad
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    x = torch.randn(len(lengths), width, dtype=torch.float64)
    narrow = aggregate(x[:, :4], mask[:, :4], how=how, constant=constant)
    poisoned = torch.where(mask, x, junk)
    whole = loss_denominator(mask, how=how, constant=constant)
    parts = [
        aggregate(a, m, how=how, denominator=whole)
        for a, m in zip(poisoned.split(split), mask.split(split), strict=True)
    ]
    torch.testing.assert_close(sum(parts), narrow, rtol=0, atol=1e-12)


def test_whitening_with_n_and_with_n_minus_one_by_hand():
    full = torch.ones(3, dtype=torch.bool)
    # 3 5 7: mean 5, sum of squares 8; n - 1: variance 4, sd 2
    assert masked_whiten(torch.tensor([3.0, 5.0, 7.0]), full, unbiased=True, eps=0.0).tolist() == [
        -1,
        0,
        1,
    ]
    # 1 9: mean 5, n: variance 16, sd 4; the default
    assert masked_whiten(torch.tensor([1.0, 9.0]), full[:2], eps=0.0).tolist() == [-1, 1]
    assert masked_var(torch.tensor([1.0, 9.0]), full[:2]) == 16
    with pytest.raises(ValueError, match="at least two real tokens"):
        masked_var(torch.ones(3), torch.tensor([True, False, False]), unbiased=True)


def test_a_bad_aggregation_or_denominator_is_refused():
    for arguments in (
        {"how": "tokn_mean", "denominator": 3.0},
        {"how": "token_mean", "denominator": 0.0},
    ):
        with pytest.raises(ValueError, match="denominator"):
            aggregate(X, MASK, **arguments)


def test_rows_without_tokens_count_in_every_row_denominator():
    x, mask = torch.cat([X, X, X[:0]]), torch.cat([MASK, torch.zeros_like(MASK)])
    # two real rows, two empty ones: sums 4 and 8; (2 + 8) / 4, 12 / 4, 12 / (4 * 3)
    assert aggregate(x, mask, how="sequence_mean") == 2.5
    assert aggregate(x, mask, how="sequence_sum") == 3
    assert aggregate(x, mask, how="constant", constant=3.0) == 1
    assert aggregate(x, mask, how="token_mean") == 4


@pytest.mark.parametrize("denominator", [0.5, 1.0])
def test_a_denominator_of_at_most_one_is_used_as_given(denominator):
    assert (
        aggregate(X, MASK, how="token_mean", denominator=denominator) == X[MASK].sum() / denominator
    )


@pytest.mark.parametrize("constant", [0.5, 1.0])
def test_a_constant_of_at_most_one_is_used_as_given(constant):
    torch.testing.assert_close(
        aggregate(X, MASK, how="constant", constant=constant), X[MASK].sum() / (len(X) * constant)
    )
