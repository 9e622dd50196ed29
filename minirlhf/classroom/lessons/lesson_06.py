"""Exercises of lesson 06: the loss, clipped tokens, a pull back.

The whole step is in lesson_06_step.py.
"""

import torch

from minirlhf.classroom.exercise import Exercise
from minirlhf.core import policy_gradient


def _mask(g, rows=3, width=4):
    mask = torch.arange(width) < torch.randint(1, width + 1, (rows, 1), generator=g)
    mask[0] = torch.arange(width) < 2
    return mask


def _tokens_case(g):
    mask = _mask(g)
    old = -0.5 - 2 * torch.rand(3, 4, generator=g)
    new, advantages = old + 0.4 * torch.randn(3, 4, generator=g), torch.randn(3, 4, generator=g)
    return *(torch.where(mask, x, torch.nan) for x in (new, old, advantages)), mask


def _loss_case(g):
    return *_tokens_case(g), 0.1 + 0.2 * torch.rand((), generator=g).item()


def _loss(new, old, advantages, mask, eps):
    return policy_gradient.ppo_clip(new, old, advantages, mask, clip_eps=eps)


def _parts(new, old, advantages, mask):
    new, old, advantages = (torch.where(mask, x, 0.0) for x in (new, old, advantages))
    return (new - old).exp(), advantages


def _clip_only(n, o, a, m, e):
    ratio, a = _parts(n, o, a, m)
    return -ratio.clamp(1 - e, 1 + e) * a


def _greedy(n, o, a, m, e):
    ratio, a = _parts(n, o, a, m)
    return -torch.maximum(ratio * a, ratio.clamp(1 - e, 1 + e) * a)


def _unclipped(n, o, a, m, e):
    ratio, a = _parts(n, o, a, m)
    return -ratio * a


def _from_old(n, o, a, m, e):
    ratio, a = _parts(o, n, a, m)
    return -torch.minimum(ratio * a, ratio.clamp(1 - e, 1 + e) * a)


def _quotient(n, o, a, m, e):
    n, o, a = (torch.where(m, x, fill) for x, fill in ((n, 1.0), (o, 1.0), (a, 0.0)))
    return -torch.minimum(n / o * a, (n / o).clamp(1 - e, 1 + e) * a)


def _minimum_first(n, o, a, m, e):
    ratio, a = _parts(n, o, a, m)
    return -torch.minimum(ratio, ratio.clamp(1 - e, 1 + e)) * a


def _clipped_product(n, o, a, m, e):
    ratio, a = _parts(n, o, a, m)
    return torch.where(m, -torch.minimum(ratio * a, (ratio * a).clamp(1 - e, 1 + e)), 0.0)


ppo_loss = Exercise(
    "ppo_loss",
    ("logprobs", "old_logprobs", "advantages", "mask", "eps"),
    _loss_case,
    _loss,
    {
        "the sign is wrong. This is the objective, which is maximised. "
        "The loss is its negative.": lambda *x: -_loss(*x),
        "nothing is clipped.": _unclipped,
        "this uses only the clipped term. "
        "A token that moved in the wrong direction must still be pulled back. "
        "Take the minimum of both objectives.": _clip_only,
        "this takes the larger of the two objectives, so the clip never acts. "
        "Take the minimum of the objectives, which is the maximum of the losses.": _greedy,
        "the ratio is inverted. Divide new by old.": _from_old,
        "the ratio is divided from log-probabilities. Subtract them and take exp: "
        "exp(log a - log b) is a / b.": _quotient,
        "this takes the smaller *ratio* and multiplies it by the advantage afterwards. For A < 0 "
        "that is the other term. Multiply first, then take the minimum.": _minimum_first,
        "this clips the product of ratio and advantage. Clip the ratio, then multiply.": (
            _clipped_product
        ),
        "this is the log-ratio, not the ratio: exp is missing.": lambda n, o, a, m, e: (
            -torch.minimum(*(r * torch.where(m, a, 0.0) for r in _log_ratios(n, o, m, e)))
        ),
        "the value is right, but it carries no "
        "gradient: something detaches `logprobs`.": lambda *x: _loss(*x).detach(),
    },
    differentiate=("logprobs",),
)


def _log_ratios(new, old, mask, eps):
    ratio = torch.where(mask, new, 0.0) - torch.where(mask, old, 0.0)
    return ratio, ratio.clamp(1 - eps, 1 + eps)


def _share_case(g):
    new, old, advantages, mask = _tokens_case(g)
    eps = 0.1 + 0.2 * torch.rand((), generator=g).item()
    return torch.where(mask, (new - old).exp(), 5.0), torch.where(mask, advantages, 1.0), mask, eps


def _share(ratio, advantages, mask, eps):
    return (_clipped(ratio, advantages, eps) & mask).sum() / mask.sum()


def _clipped(ratio, advantages, eps):
    return ((advantages > 0) & (ratio > 1 + eps)) | ((advantages < 0) & (ratio < 1 - eps))


_AT_THE_EDGES = (  # advantages of 0 on both sides of the range, and each other case once
    torch.tensor([[0.5, 0.5, 1.5, 0.5, 1.5, 0.5, 1.5, 1.0]]),
    torch.tensor([[0.0, 0.0, 0.0, 1.0, 1.0, -1.0, -1.0, 1.0]]),
    torch.ones(1, 8, dtype=torch.bool),
    0.2,
)


def _zero_is_bad(r, a, m, e):
    return (torch.where(a > 0, r > 1 + e, r < 1 - e) & m).sum() / m.sum()


def _zero_is_good(r, a, m, e):
    return (torch.where(a < 0, r < 1 - e, r > 1 + e) & m).sum() / m.sum()


def _zero_is_both(r, a, m, e):
    return ((_clipped(r, a, e) | ((a == 0) & ((r - 1).abs() > e))) & m).sum() / m.sum()


_ZERO = "this is right unless A = 0{}. Is it the clip that leaves such a token without gradient?"
clipped_share = Exercise(
    "clipped_share",
    ("ratio", "advantages", "mask", "eps"),
    _share_case,
    _share,
    {
        "this counts every ratio outside the range, also tokens that keep their gradient. "
        "Go through the six cases of section 3.": lambda r, a, m, e: (
            (((r - 1).abs() > e) & m).sum() / m.sum()
        ),
        _ZERO.format(" and the ratio is low"): _zero_is_bad,
        _ZERO.format(" and the ratio is high"): _zero_is_good,
        _ZERO.format(""): _zero_is_both,
        "this is the mean of each response's share. Divide the number of clipped tokens of the "
        "batch by the number of tokens of the batch.": lambda r, a, m, e: (
            (_clipped(r, a, e) & m).sum(1) / m.sum(1)
        ).mean(),
        "padding is counted. Use the mask.": lambda r, a, m, e: _clipped(r, a, e).float().mean(),
        "this divides by the number of all positions. Padding is not a token.": lambda r, a, m, e: (
            (_clipped(r, a, e) & m).float().mean()
        ),
        "these tokens lie outside the range, but keep their gradient. "
        "Count the others outside the range.": lambda r, a, m, e: (
            (_clipped(r, -a, e) & m).sum() / m.sum()
        ),
    },
    edges=(_AT_THE_EDGES,),
)


def _pull_case(g):
    return *_loss_case(g), 0.1 + 0.4 * torch.rand((), generator=g).item()


def _pull(n, o, a, m, e, alpha, *, line=None, choose=torch.minimum):
    """The loss. A mistake has another line beyond the range, or does not take the minimum."""
    ratio, a = _parts(n, o, a, m)
    held = ratio.clamp(1 - e, 1 + e)
    line = line or (lambda ratio, held, alpha: held - alpha * (ratio - held))
    return -choose(ratio * a, line(ratio, held, alpha) * a)


def _pull_with_a_jump(n, o, a, m, e, alpha):
    ratio, a = _parts(n, o, a, m)
    return -torch.where(_clipped(ratio, a, e), -alpha * ratio, ratio) * a


def _pull_without_advantage(n, o, a, m, e, alpha):
    ratio, a = _parts(n, o, a, m)
    beyond = torch.where(_clipped(ratio, a, e), (ratio - ratio.clamp(1 - e, 1 + e)).abs(), 0.0)
    return _loss(n, o, a, m, e) + alpha * beyond


def _falling_on_both_sides(n, o, a, m, e, alpha):
    ratio, a = _parts(n, o, a, m)
    held = ratio.clamp(1 - e, 1 + e)
    return -torch.minimum(ratio * a, held * a - alpha * a.abs() * (ratio - held).abs())


def _pull_outside(n, o, a, m, e, alpha, *, pull):
    """PPO's loss and a pull at every ratio outside the range, also on the side PPO leaves free.

    Args:
        pull: (ratio beyond the range, with its sign; advantage) -> the pull for alpha = 1.
    """
    ratio, advantages = _parts(n, o, a, m)
    beyond = ratio - ratio.clamp(1 - e, 1 + e)
    return _loss(n, o, a, m, e) + alpha * pull(beyond, advantages)


def _pull_one_way(n, o, a, m, e, alpha):
    ratio, a = _parts(n, o, a, m)
    beyond = torch.where(_clipped(ratio, a, e), ratio - ratio.clamp(1 - e, 1 + e), 0.0)
    return _loss(n, o, a, m, e) + alpha * a.abs() * beyond


def _line_one_way(n, o, a, m, e, alpha):
    ratio, a = _parts(n, o, a, m)
    held = ratio.clamp(1 - e, 1 + e)
    return -torch.minimum(ratio * a, held * a - alpha * a.abs() * (ratio - held))


def _falling_outside(n, o, a, m, e, alpha):
    ratio, a = _parts(n, o, a, m)
    held = ratio.clamp(1 - e, 1 + e)
    return -held * a + alpha * a.abs() * (ratio - held).abs()


def _pull_on_all(n, o, a, m, e, alpha):
    ratio, advantages = _parts(n, o, a, m)
    return _loss(n, o, a, m, e) + alpha * advantages.abs() * (ratio - 1).abs()


_FREE = (
    "A > 0 and ratio < 1 - eps must be unchanged, and A < 0 and ratio > 1 + eps, too: these tokens "
    "moved in the *wrong* direction"
)
_LEFT = "this is right for A > 0. For A < 0 the new piece must fall to the *left*"
_FROM_1 = (
    "the pull is measured from the ratio 1. Measure it from the end of the range: how far is the "
    "ratio *beyond* it?"
)
_OUTSIDE = (  # alpha above 1, and each sign of A on both sides of the range
    torch.tensor([[0.5, 1.5, 0.5, 1.5]]).log(),
    torch.zeros(1, 4),
    torch.tensor([[1.0, 1.0, -1.0, -1.0]]),
    torch.ones(1, 4, dtype=torch.bool),
    0.2,
    1.5,
)


pull_back_loss = Exercise(
    "pull_back_loss",
    ("logprobs", "old_logprobs", "advantages", "mask", "eps", "alpha"),
    _pull_case,
    _pull,
    {
        "this is PPO's loss: a clipped token has no gradient. Beyond the range the objective must "
        "fall.": lambda n, o, a, m, e, alpha: _loss(n, o, a, m, e),
        "nothing is clipped.": lambda n, o, a, m, e, alpha: _unclipped(n, o, a, m, e),
        f"the new line is there, but it is used at every ratio outside the range. {_FREE}. "
        "Which of two terms does PPO take?": lambda *x: _pull(
            *x, choose=lambda free, falling: falling
        ),
        f"the objective falls on both sides of the range. {_FREE}, and keep PPO's loss.": (
            _falling_outside
        ),
        f"the pull acts at every ratio outside the range. {_FREE}. So two of the four cases that "
        "PPO does not clip have changed.": lambda *x: _pull_outside(
            *x, pull=lambda beyond, a: a.abs() * beyond.abs()
        ),
        f"the pull acts at every ratio outside the range, and without |A|. {_FREE}.": (
            lambda *x: _pull_outside(*x, pull=lambda beyond, a: beyond.abs())
        ),
        f"the pull is added after the minimum, at every ratio outside the range. {_FREE}. "
        "Which term of the minimum is for clipped tokens?": lambda *x: _pull_outside(
            *x, pull=lambda beyond, a: beyond * a
        ),
        "this takes the larger of the two objectives. Take the smaller one.": lambda *x: _pull(
            *x, choose=torch.maximum
        ),
        "beyond the range the objective still rises, only more slowly. It must fall.": (
            lambda *x: _pull(*x, line=lambda ratio, held, alpha: held + alpha * (ratio - held))
        ),
        "the slope is right, but the objective jumps at the end of the range. For A = 1 the line "
        "must have the height 1 + eps at the ratio 1 + eps.": _pull_with_a_jump,
        f"{_FROM_1} So the objective jumps at the end of the range.": lambda *x: _pull(
            *x,
            line=lambda ratio, held, alpha: torch.where(
                ratio == held, ratio, held - alpha * (ratio - 1)
            ),
        ),
        f"{_FROM_1} So it acts inside the range, too.": lambda *x: _pull(
            *x, line=lambda ratio, held, alpha: held - alpha * (ratio - 1)
        ),
        f"{_FROM_1} It also acts on every token, whatever its ratio.": _pull_on_all,
        f"{_FROM_1} So the line begins at the height 1, not at the end of the range.": (
            lambda *x: _pull(
                *x,
                line=lambda ratio, held, alpha: torch.where(
                    ratio == held, ratio, 1 - alpha * (ratio - 1)
                ),
            )
        ),
        f"{_LEFT}, so its slope is +alpha |A|.": _pull_one_way,
        f"{_LEFT}. Which slope has yours there?": _line_one_way,
        "the pull is the same for each token. It must be in proportion to |A|, as the push "
        "is.": _pull_without_advantage,
        "the objective falls with slope 1 beyond the range. Its slope must be alpha times "
        "|A|.": lambda *x: _pull(*x, line=lambda ratio, held, alpha: 2 * held - ratio),
        "this is right for alpha up to 1. For alpha above 1 the minimum takes your falling line "
        "also for tokens that moved in the *wrong* direction. For A = 1 and the ratio 0.5, is your "
        "line above or below the ratio times A there? Where must it be?": (_falling_on_both_sides),
        "the ratio is inverted. Divide new by old.": lambda n, o, *x: _pull(o, n, *x),
        "the sign is wrong. This is the objective, which is maximised. "
        "The loss is its negative.": lambda *x: -_pull(*x),
        "the value is right, but it carries no "
        "gradient: something detaches `logprobs`.": lambda *x: _pull(*x).detach(),
    },
    differentiate=("logprobs",),
    edges=(_OUTSIDE,),
)
