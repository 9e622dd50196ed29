"""Means over real tokens, and the one place where a loss is reduced."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

AGGREGATIONS = ("token_mean", "sequence_mean", "sequence_sum", "constant")


def check_same_shape(**tensors: Tensor) -> None:
    """Raise a ValueError that lists the shapes, unless all are equal: (B,) against (B, 1) would broadcast in silence."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(
            "Shapes must be equal; got "
            + ", ".join(f"{name} {shape}" for name, shape in shapes.items())
            + "."
        )


def zero_masked(x: Tensor, mask: Bool[Tensor, "..."]) -> Tensor:
    """x where mask is True, 0 elsewhere. Applied to inputs: NaN in padding then reaches neither value nor gradient."""
    check_same_shape(x=x, mask=mask)
    return torch.where(mask, x, torch.zeros_like(x))


def masked_mean(x: Float[Tensor, "..."], mask: Bool[Tensor, "..."]) -> Float[Tensor, ""]:
    """Mean over the entries where mask is True.

        mean = sum_i m_i x_i / sum_i m_i

    Raises:
        ValueError: nothing is True, or the shapes differ.
    """
    count = mask.sum()
    if count == 0:
        raise ValueError(
            f"No real token in a mask of shape {tuple(mask.shape)}: a mean over nothing."
        )
    return zero_masked(x, mask).sum() / count


def masked_var(
    x: Float[Tensor, "..."], mask: Bool[Tensor, "..."], *, unbiased: bool = False
) -> Float[Tensor, ""]:
    """Variance over the entries where mask is True, divided by n, or by n - 1 when `unbiased`.

    Raises:
        ValueError: nothing is True, or one entry with `unbiased`.
    """
    count = int(mask.sum())
    if unbiased and count < 2:
        raise ValueError(f"An unbiased variance needs two real tokens; got {count}.")
    centred = zero_masked(x, mask) - masked_mean(x, mask)
    return zero_masked(centred, mask).square().sum() / (count - unbiased)


def masked_whiten(
    x: Float[Tensor, "..."],
    mask: Bool[Tensor, "..."],
    *,
    shift_mean: bool = True,
    unbiased: bool = False,
    eps: float = 1e-8,
) -> Float[Tensor, "..."]:
    """To mean 0 and variance 1 over the real entries; 0 where masked.

        y = (x - mean) / sqrt(var + eps)        `shift_mean=False` adds the mean back (what TRL does to *rewards*)

    eps keeps a batch of equal values at 0 instead of 0 / 0. The variance divides by n (TRL: n - 1).
    """
    mean = masked_mean(x, mask)
    y = (zero_masked(x, mask) - mean) * torch.rsqrt(masked_var(x, mask, unbiased=unbiased) + eps)
    return zero_masked(y if shift_mean else y + mean, mask)


def loss_denominator(
    mask: Bool[Tensor, "B R"], *, how: str = "token_mean", constant: float | None = None
) -> float:
    """What `aggregate` divides by. Compute it once on the whole batch of an optimiser step, then micro-batches add up.

        token_mean: real tokens        sequence_mean, sequence_sum: rows        constant: rows * constant

    A fully masked row counts as a row: it was sampled, and leaving it out would change the weight of the others.

    Raises:
        ValueError: unknown `how`, a missing or non-positive constant, no rows, or token_mean without a real token.
    """
    if how not in AGGREGATIONS:
        raise ValueError(f"how is {how!r}; it must be one of {AGGREGATIONS}.")
    if (how == "constant") != (constant is not None) or (constant is not None and constant <= 0):
        raise ValueError(
            f"constant is {constant!r} with how={how!r}; it belongs to how='constant' and must be above 0."
        )
    total = float(mask.sum()) if how == "token_mean" else len(mask) * (constant or 1.0)
    if total == 0:
        raise ValueError(
            f"Nothing to average in a mask of shape {tuple(mask.shape)} with how={how!r}."
        )
    return total


def aggregate(
    x: Float[Tensor, "B R"],
    mask: Bool[Tensor, "B R"],
    *,
    how: str = "token_mean",
    constant: float | None = None,
    denominator: float | None = None,
) -> Float[Tensor, ""]:
    """Reduce per-token losses to the scalar that is differentiated: the denominator is always in sight.

        token_mean      sum_bt x / real tokens          long responses weigh more (DAPO)
        sequence_mean   mean_b [sum_t x / len_b]        every response weighs the same (GRPO)
        sequence_sum    mean_b [sum_t x]                the policy gradient's own (REINFORCE)
        constant        sum_bt x / (B * constant)       the same up to a constant (Dr. GRPO)

    Args:
        denominator: `loss_denominator` of the whole optimiser step when x is a micro-batch of it.

    Raises:
        ValueError: as `loss_denominator`; a denominator that is not above 0.
    """
    check_same_shape(x=x, mask=mask)
    if denominator is None:
        denominator = loss_denominator(mask, how=how, constant=constant)
    elif how not in AGGREGATIONS or denominator <= 0:  # a misspelt `how` would pass as a plain sum
        raise ValueError(
            f"how is {how!r}, one of {AGGREGATIONS}; denominator is {denominator}, above 0."
        )
    x = zero_masked(x, mask)
    if how == "sequence_mean":
        x = x / mask.sum(1, keepdim=True).clamp(min=1)  # a fully masked row adds 0
    return x.sum() / denominator
