"""Returns, temporal-difference errors and GAE over the tokens of finished responses."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from minirlhf.core.masking import check_same_shape, zero_masked


def _check_discount(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}; it must be between 0 and 1.")


def reward_to_go(
    rewards: Float[Tensor, "B R"], response_mask: Bool[Tensor, "B R"], *, gamma: float = 1.0
) -> Float[Tensor, "B R"]:
    """G_t = r_t + gamma G_{t+1}, reward units; 0 where masked and past the end."""
    _check_discount(gamma=gamma)
    rewards = zero_masked(rewards, response_mask)
    total, columns = torch.zeros_like(rewards[:, 0]), []
    for t in reversed(range(rewards.shape[1])):
        total = rewards[:, t] + gamma * total
        columns.append(total)
    return zero_masked(torch.stack(columns[::-1], 1), response_mask)


def td_errors(
    rewards: Float[Tensor, "B R"],
    values: Float[Tensor, "B R"],
    response_mask: Bool[Tensor, "B R"],
    *,
    gamma: float = 1.0,
) -> Float[Tensor, "B R"]:
    """delta_t = r_t + gamma V_{t+1} - V_t, reward units; V is 0 past the last real token, so a truncated response counts as finished."""
    _check_discount(gamma=gamma)
    check_same_shape(rewards=rewards, values=values, response_mask=response_mask)
    values = zero_masked(values, response_mask)
    next_values = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], 1)
    return zero_masked(
        zero_masked(rewards, response_mask) + gamma * next_values - values, response_mask
    )


def gae(
    rewards: Float[Tensor, "B R"],
    values: Float[Tensor, "B R"],
    response_mask: Bool[Tensor, "B R"],
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
) -> tuple[Float[Tensor, "B R"], Float[Tensor, "B R"]]:
    """Generalised advantage estimation over the tokens of finished responses.

        delta_t = r_t + gamma V_{t+1} - V_t        A_t = delta_t + gamma lam A_{t+1}        return_t = A_t + V_t

    Column t is response token t: values[:, t] is V of the text before it, rewards[:, t] arrives after it. Past the last real
    token V and A are 0. lam = 1 is Monte Carlo minus V; lam = 0 is the TD error.

    Args:
        rewards, values: reward units. gamma, lam: 0 to 1.

    Returns:
        (advantages, returns), reward units, 0 where masked. Returns are made before any whitening.

    Source: Schulman et al. 2016, equations 11-16.
    """
    _check_discount(lam=lam)
    deltas = td_errors(rewards, values, response_mask, gamma=gamma)
    advantages = reward_to_go(
        deltas, response_mask, gamma=gamma * lam
    )  # the same recursion, another discount
    return advantages, advantages + zero_masked(values, response_mask)


def overlong_penalty(
    lengths: Int[Tensor, "B"], *, max_tokens: int, buffer: int
) -> Float[Tensor, "B"]:
    """DAPO's soft punishment of length: 0, then down a straight line over the last `buffer` tokens, -1 at max_tokens and beyond.

        0  if length <= max_tokens - buffer        -(length - (max_tokens - buffer)) / buffer        -1  if length >= max_tokens

    A cliff at the end would punish a response of one token too many as noise; a slope says which way to go.

    Args:
        lengths, max_tokens, buffer: tokens. Returns: reward units, to be added to the score.

    Source: Yu et al. 2025 (DAPO, equation 13).
    """
    if not 1 <= buffer <= max_tokens:
        raise ValueError(f"buffer is {buffer}; it must be from 1 to max_tokens = {max_tokens}.")
    return -((lengths - (max_tokens - buffer)) / buffer).clamp(0, 1)
