"""Masked means and variances, and `aggregate`, which reduces per-token losses to one number.

A mask is True at the entries that count. For the response tokens of a Rollout, pass
`batch.action_mask`. Shapes: B responses of at most R tokens.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from minirlhf.core.checks import (
    LARGEST,
    SMALLEST,
    check_not_negative,
    checked,
    shown,
)

AGGREGATIONS = ("token_mean", "sequence_mean", "sequence_sum", "constant")


def check_same_shape(**tensors: Tensor) -> None:
    """Raise a ValueError that lists the shapes, unless all are tensors of one shape.

    Without this check (B,) combined with (B, 1) would broadcast to (B, B) without an error.
    """
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{name} is {shown(tensor)}; it must be a tensor.")
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(
            "Shapes must be equal; got "
            + ", ".join(f"{name} {shape}" for name, shape in shapes.items())
            + "."
        )


@checked
def zero_masked(x: Tensor, mask: Bool[Tensor, "..."]) -> Tensor:
    """x where mask is True, 0 elsewhere.

    It is applied to the inputs of a function. So NaN in padding reaches neither the value nor the
    gradient.
    """
    check_same_shape(x=x, mask=mask)
    return torch.where(mask, x, torch.zeros_like(x))


@checked
def masked_mean(x: Float[Tensor, "..."], mask: Bool[Tensor, "..."]) -> Float[Tensor, ""]:
    """Mean over the entries where mask is True.

        mean = sum_i m_i x_i / sum_i m_i

    Raises:
        ValueError: no entry counts, or shapes differ.
    """
    count = mask.sum()
    if count == 0:
        raise ValueError(
            f"The mask of shape {tuple(mask.shape)} is False everywhere; a mean needs at least "
            "one entry that counts."
        )
    return zero_masked(x, mask).sum() / count


@checked
def masked_var(
    x: Float[Tensor, "..."], mask: Bool[Tensor, "..."], *, unbiased: bool = False
) -> Float[Tensor, ""]:
    """Variance over the entries where mask is True.

    Args:
        x: the values.
        mask: True at the entries that count; there are n of them.
        unbiased: divide the sum of squares by n - 1 (True) or by n (False).

    Raises:
        ValueError: no entry counts, only one counts and `unbiased` is True, or shapes differ.
    """
    count = int(mask.sum())
    if unbiased and count < 2:
        raise ValueError(f"An unbiased variance needs at least two real tokens; got {count}.")
    centred = zero_masked(x, mask) - masked_mean(x, mask)
    return zero_masked(centred, mask).square().sum() / (count - unbiased)


@checked
def masked_whiten(
    x: Float[Tensor, "..."],
    mask: Bool[Tensor, "..."],
    *,
    shift_mean: bool = True,
    unbiased: bool = False,
    eps: float = 1e-8,
) -> Float[Tensor, "..."]:
    """Whiten x: scale it to mean 0 and variance 1 over the entries where mask is True.

        y = (x - mean) / sqrt(var + eps)

    By default the variance is the sum of squares divided by n. TRL and verl divide by n - 1.

    Args:
        x: the values.
        mask: True at the entries that count; there are n of them.
        shift_mean: False adds the mean back, as TRL does when it whitens rewards.
        unbiased: divide the sum of squares by n - 1 (True) or by n (False).
        eps: keeps a batch of equal values at 0; 0 or more. With eps = 0 equal values are refused,
            because they would be 0 / 0.

    Returns:
        The whitened values; 0 where masked.

    Raises:
        ValueError: as `masked_mean` and `masked_var`; a negative eps; equal values with eps = 0.
    """
    check_not_negative(eps=eps)
    mean = masked_mean(x, mask)
    if eps < torch.finfo(x.dtype).tiny and (x[mask] == x[mask][0]).all():
        raise ValueError(f"eps is {eps}, and all values are equal; it must be above 0 then.")
    y = (zero_masked(x, mask) - mean) * torch.rsqrt(masked_var(x, mask, unbiased=unbiased) + eps)
    return zero_masked(y if shift_mean else y + mean, mask)


@checked
def loss_denominator(
    mask: Bool[Tensor, "B R"], *, how: str = "token_mean", constant: float | None = None
) -> float:
    """The number by which `aggregate` divides.

        token_mean                      the number of tokens that count
        sequence_mean, sequence_sum     the number of rows
        constant                        the number of rows times `constant`

    Compute it once for the whole batch of an optimiser step, and pass it to `aggregate` for each
    micro-batch. Then the micro-batch losses add up to the loss of the whole batch.

    A row that is masked throughout still counts as a row. It was sampled, and leaving it out would
    change the weight of the others. OpenRLHF leaves such rows out of its sequence mean.

    Args:
        mask: True at the tokens that count.
        how: one of AGGREGATIONS.
        constant: above 0; only with how="constant".

    Raises:
        ValueError: an unknown `how`, a constant that is missing, not above 0 or not asked for, no
            rows, or token_mean without a token that counts.
    """
    if how not in AGGREGATIONS:
        raise ValueError(f"how is {how!r}; it must be one of {AGGREGATIONS}.")
    if (how == "constant") != (constant is not None) or (
        constant is not None and not SMALLEST <= constant <= LARGEST
    ):
        raise ValueError(
            f"constant is {constant!r} with how={how!r}; how='constant' needs a constant above "
            "0, and the others take none."
        )
    total = float(mask.sum()) if how == "token_mean" else len(mask) * (constant or 1.0)
    if total == 0:
        raise ValueError(
            f"Nothing to average with how={how!r}: the mask of shape {tuple(mask.shape)} has no "
            "token that counts."
        )
    return total


@checked
def aggregate(
    x: Float[Tensor, "B R"],
    mask: Bool[Tensor, "B R"],
    *,
    how: str = "token_mean",
    constant: float | None = None,
    denominator: float | None = None,
) -> Float[Tensor, ""]:
    """Reduce per-token losses to the scalar that is differentiated.

        token_mean       sum_bt x / tokens that count    long responses weigh more (DAPO)
        sequence_mean    mean_b [sum_t x / length_b]     every response weighs the same (GRPO)
        sequence_sum     mean_b [sum_t x]                the policy gradient itself (REINFORCE)
        constant         sum_bt x / (B * constant)       sequence_sum / constant (Dr. GRPO)

    The losses of `policy_gradient` are not reduced. This function reduces them, and `how` names the
    denominator. By default the denominator is the number of tokens that count.

    Args:
        x: the loss of each token.
        mask: True at the tokens that count.
        how: one of AGGREGATIONS.
        constant: above 0; only with how="constant".
        denominator: `loss_denominator` of the whole optimiser step, if x is a micro-batch of it. If
            None, it is computed from mask.

    Raises:
        ValueError: as `loss_denominator`, or a denominator that is not above 0.
    """
    check_same_shape(x=x, mask=mask)
    if denominator is None:
        denominator = loss_denominator(mask, how=how, constant=constant)
    elif how not in AGGREGATIONS or not SMALLEST <= denominator <= LARGEST:
        # otherwise a misspelt `how` would pass as a sum
        raise ValueError(
            f"how is {how!r} and denominator is {denominator}; how must be one of {AGGREGATIONS} "
            "and the denominator above 0."
        )
    x = zero_masked(x, mask)
    if how == "sequence_mean":
        x = x / mask.sum(1, keepdim=True).clamp(min=1)  # a fully masked row adds 0
    return x.sum() / denominator
