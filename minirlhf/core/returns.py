"""Returns, temporal-difference (TD) errors and generalised advantage estimation (GAE).

`response_mask` is True at the tokens that count; for a Rollout pass `batch.action_mask`. A hole is
a token that does not count between two that do, such as the output of a tool. A *value* V_t
predicts the return before token t is chosen; a critic is a network that gives these values.
Rewards, values and returns are in reward units, the unit of the score.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from minirlhf.core.checks import checked
from minirlhf.core.masking import zero_masked


@checked
def reward_to_go(
    rewards: Float[Tensor, "B R"], response_mask: Bool[Tensor, "B R"], *, gamma: float = 1.0
) -> Float[Tensor, "B R"]:
    """Reward-to-go of each token: its reward plus all later rewards, discounted.

        G_t = r_t + gamma G_(t+1)

    Args:
        rewards: r_t, reward units.
        response_mask: True at the tokens that count. Where the mask has holes, such as the tokens
            of a tool, t + 1 is the next token that counts, and gamma is applied once for it.
        gamma: discount, from 0 to 1.

    Returns:
        G_t, reward units; 0 where masked.

    Raises:
        ValueError: shapes that differ, gamma outside 0 to 1, or a reward on a hole.
    """
    _check_discount(gamma=gamma)
    _check_no_reward_on_a_hole(rewards, response_mask)
    return _without_holes(_reward_to_go, response_mask, rewards, gamma=gamma)


@checked
def td_errors(
    rewards: Float[Tensor, "B R"],
    values: Float[Tensor, "B R"],
    response_mask: Bool[Tensor, "B R"],
    *,
    gamma: float = 1.0,
) -> Float[Tensor, "B R"]:
    """Temporal-difference (TD) errors.

        delta_t = r_t + gamma V_(t+1) - V_t

    The TD error of a token is its reward, plus the value after the token, minus the value before
    it. V is 0 after the last token that counts. So a truncated response, which was cut off before
    its end, is treated as finished.

    Args:
        rewards: r_t, reward units.
        values: V_t, the value of the prompt and the tokens before response token t, reward units.
        response_mask: True at the tokens that count. Where the mask has holes, such as the tokens
            of a tool, t + 1 is the next token that counts.
        gamma: discount, from 0 to 1.

    Returns:
        delta_t, reward units; 0 where masked.

    Raises:
        ValueError: shapes that differ, gamma outside 0 to 1, or a reward on a hole.
    """
    _check_discount(gamma=gamma)
    _check_no_reward_on_a_hole(rewards, response_mask)
    return _without_holes(_td_errors, response_mask, rewards, values, gamma=gamma)


@checked
def gae(
    rewards: Float[Tensor, "B R"],
    values: Float[Tensor, "B R"],
    response_mask: Bool[Tensor, "B R"],
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
) -> tuple[Float[Tensor, "B R"], Float[Tensor, "B R"]]:
    """Generalised advantage estimation (GAE).

        delta_t  = r_t + gamma V_(t+1) - V_t
        A_t      = delta_t + gamma lam A_(t+1)
        return_t = A_t + V_t

    The advantage is a sum of TD errors. The error of the k-th token from here has the weight
    (gamma lam)^k, with k = 0 for this token. lam = 1 gives the return minus V; lam = 0 gives the TD
    error.

    Column t belongs to response token t. V_t is the value before the token, and r_t is the reward
    after it. Past the last token that counts V and A are 0, so a truncated response is treated as
    finished.

    Args:
        rewards: r_t, reward units.
        values: V_t, the value of the prompt and the tokens before response token t, reward units.
        response_mask: True at the tokens that count. Where the mask has holes, such as the tokens
            of a tool, the advantages are computed without them and then put back. t + 1 is the next
            token that counts, and gamma and lam are applied once for it.
        gamma: discount, from 0 to 1.
        lam: weight of later TD errors, from 0 to 1.

    Returns:
        (advantages, returns), reward units; 0 where masked. The advantages are not whitened. If you
        whiten them, leave the returns as they are: they are the critic's targets.

    Raises:
        ValueError: shapes that differ, gamma or lam outside 0 to 1, or a reward on a hole.

    Source: Schulman et al. 2016, equations 11-16.
    """
    _check_discount(lam=lam)
    deltas = td_errors(rewards, values, response_mask, gamma=gamma)
    # the same recursion as the return's, with TD errors for rewards and another discount
    advantages = reward_to_go(deltas, response_mask, gamma=gamma * lam)
    return advantages, advantages + zero_masked(values, response_mask)


def _reward_to_go(rewards: Tensor, mask: Tensor, *, gamma: float) -> Tensor:
    """`reward_to_go` where the tokens that count come first in each row."""
    rewards = zero_masked(rewards, mask)
    total, columns = torch.zeros_like(rewards[:, 0]), []
    for t in reversed(range(rewards.shape[1])):
        total = rewards[:, t] + gamma * total
        columns.append(total)
    return zero_masked(torch.stack(columns[::-1], 1), mask)


def _td_errors(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float) -> Tensor:
    """`td_errors` where the tokens that count come first in each row."""
    values = zero_masked(values, mask)
    next_values = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], 1)
    return zero_masked(zero_masked(rewards, mask) + gamma * next_values - values, mask)


def _without_holes(function: Callable, mask: Tensor, *columns: Tensor, **settings: float) -> Tensor:
    """Apply `function` to the tokens that count, and put the results back where they belong.

    The tokens that count are moved to the left of their row, in order. Then the row looks like any
    right-padded response. A mask without holes needs no move.
    """
    if not (~mask[:, :-1] & mask[:, 1:]).any():
        return function(*columns, mask, **settings)
    order = (~mask).byte().argsort(dim=1, stable=True)  # tokens that count first, in order
    moved = function(*(x.gather(1, order) for x in columns), mask.gather(1, order), **settings)
    return torch.zeros_like(moved).scatter(1, order, moved)


def _check_no_reward_on_a_hole(rewards: Tensor, mask: Tensor) -> None:
    """Raise where a token that does not count has a reward and stands between two that count.

    Positions before the first or after the last token that counts are padding. Rewards there are
    ignored.
    """
    between = (mask.cumsum(1) > 0) & (mask.flip(1).cumsum(1).flip(1) > 0) & ~mask
    wrong = between & (rewards != 0) & ~rewards.isnan()
    if wrong.any():
        row, column = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"rewards[{row}, {column}] is {rewards[row, column].item():g}, but the policy did not "
            "choose this token: its mask is False. Put the reward on a token that counts."
        )


def _check_discount(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}; it must be between 0 and 1.")


@checked
def overlong_penalty(
    lengths: Int[Tensor, "B"], *, max_tokens: int, buffer: int
) -> Float[Tensor, "B"]:
    """DAPO's soft penalty for long responses.

        0                                              if length <= max_tokens - buffer
        -(length - (max_tokens - buffer)) / buffer     in between
        -1                                             if length >= max_tokens

    The penalty falls in a straight line over the last `buffer` tokens. A step at max_tokens would
    give very different rewards to two responses that differ by one token. On the slope every token
    fewer raises the reward.

    Args:
        lengths: of the responses, tokens.
        max_tokens: length from which the penalty is -1, tokens.
        buffer: number of tokens over which the penalty grows, from 1 to max_tokens.

    Returns:
        One penalty per response, reward units, to be added to the score.

    Raises:
        ValueError: buffer is out of range.

    Source: Yu et al. 2025 (DAPO, equation 13).
    """
    if not 1 <= buffer <= max_tokens:
        raise ValueError(f"buffer is {buffer}; it must be from 1 to max_tokens = {max_tokens}.")
    return -((lengths - (max_tokens - buffer)) / buffer).clamp(0, 1)
