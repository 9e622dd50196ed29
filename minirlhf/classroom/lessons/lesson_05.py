"""Exercises of lesson 05: temporal-difference (TD) errors, generalised advantage estimation (GAE),
n-step advantages, the critic's targets computed after whitening (a bug), the best lambda for a
batch, and the critic's loss."""

import torch

from minirlhf.classroom.exercise import Exercise
from minirlhf.core import returns


def _critic_case(g):
    mask = torch.arange(4) < torch.randint(2, 5, (3, 1), generator=g)
    mask[0] = torch.arange(4) < 2
    rewards, values = (
        torch.where(mask, torch.randn(3, 4, generator=g), torch.nan) for _ in range(2)
    )
    return rewards, values, mask, 0.5 + 0.4 * torch.rand((), generator=g).item()


def _clean(*tensors, mask):
    return [torch.where(mask, x, 0.0) for x in tensors]


def _delta(rewards, values, mask, gamma):
    return returns.td_errors(rewards, values, mask, gamma=gamma)


def _shift(x):
    """Shift by one column to the left, with 0 in the last column."""
    return torch.cat([x[:, 1:], torch.zeros(len(x), 1)], 1)


def _with_next(r, v, m, g, after):
    """TD errors with other next values."""
    return torch.where(m, r + g * after - v, 0.0)


def _last(mask):
    """True at the last token of each row."""
    return mask & ~_shift(mask.float()).bool()


def _from_padding(r, v, m, g):
    """The value after the last token is whatever stands in the padding."""
    return _with_next(r, v, m, g, _shift(v))


def _own_again(r, v, m, g):
    """The value after the last token is the last token's own."""
    return _with_next(r, v, m, g, torch.where(_last(m), v, _shift(v)))


FROM_PADDING = (
    "the value after the last token is read from the padding. It must be 0. "
    "Put 0 into the padding of `values` before you shift it."
)
OWN_AGAIN = (
    "after the last token you use the last token's own value again. "
    "Nothing follows it, so the next value there is 0."
)


td_error = Exercise(
    "td_error",
    ("rewards", "values", "mask", "gamma"),
    _critic_case,
    _delta,
    {
        "gamma is not used.": lambda r, v, m, g: _delta(r, v, m, 1.0),
        "the next value is missing. This is the reward minus V.": lambda r, v, m, g: torch.where(
            m, r - v, 0.0
        ),
        "V is not shifted: both values are V(s_t). "
        "The next value V(s_{t+1}) is one column to the right.": lambda r, v, m, g: torch.where(
            m, r + g * v - v, 0.0
        ),
        "the values have the wrong signs. "
        "Subtract V(s_t), and add gamma times V(s_{t+1}).": lambda r, v, m, g: torch.where(
            m, r + torch.where(m, v, 0.0) - g * _shift(torch.where(m, v, 0.0)), 0.0
        ),
        "V is read one position too early: you compared V(s_t) with V(s_{t-1}). "
        "Compare V(s_{t+1}) with V(s_t).": lambda r, v, m, g: torch.where(
            m,
            r + g * v - torch.cat([torch.zeros(len(v), 1), torch.where(m, v, 0.0)[:, :-1]], 1),
            0.0,
        ),
        "the next value is read on the wrong side. "
        "V(s_{t+1}) is one column to the right.": lambda r, v, m, g: torch.where(
            m,
            r + g * torch.cat([torch.zeros(len(v), 1), torch.where(m, v, 0.0)[:, :-1]], 1) - v,
            0.0,
        ),
        FROM_PADDING: _from_padding,
        OWN_AGAIN: _own_again,
        "`torch.roll` wraps around: the last column gets "
        "the value of the first column as its next value. "
        "The next value there is 0.": lambda r, v, m, g: torch.where(
            m, r + g * torch.where(m, v, 0.0).roll(-1, 1) - v, 0.0
        ),
        "the last token's TD error is r - V, and you returned r. "
        "After the end V is 0, so only the *next* value drops out.": lambda r, v, m, g: torch.where(
            m & _shift(m.float()).bool(), _delta(r, v, m, g), torch.where(m, r, 0.0)
        ),
    },
)


def _gae_case(g):
    return (*_critic_case(g), 0.3 + 0.5 * torch.rand((), generator=g).item())


def _gae(rewards, values, mask, gamma, lam):
    return returns.gae(rewards, values, mask, gamma=gamma, lam=lam)[0]


GAE_MISTAKES = {
    "these are the TD errors: lambda is not used.": lambda r, v, m, g, lam: _delta(r, v, m, g),
    "each step back is multiplied by lambda alone. "
    "Multiply it by gamma times lambda.": lambda r, v, m, g, lam: returns.reward_to_go(
        _delta(r, v, m, g), m, gamma=lam
    ),
    "each step back is multiplied by gamma alone. "
    "Multiply it by gamma times lambda.": lambda r, v, m, g, lam: returns.reward_to_go(
        _delta(r, v, m, g), m, gamma=g
    ),
    "gamma is not used. It multiplies the next value in the TD error, and it is part of the "
    "factor gamma times lambda.": lambda r, v, m, g, lam: _gae(r, v, m, 1.0, lam),
    "V is not shifted in the TD errors: both values are V(s_t). "
    "The next value V(s_{t+1}) is one column to the right.": lambda r, v, m, g, lam: (
        returns.reward_to_go(torch.where(m, r + g * v - v, 0.0), m, gamma=g * lam)
    ),
    FROM_PADDING: lambda r, v, m, g, lam: returns.reward_to_go(
        _from_padding(r, v, m, g), m, gamma=g * lam
    ),
    OWN_AGAIN: lambda r, v, m, g, lam: returns.reward_to_go(
        _own_again(r, v, m, g), m, gamma=g * lam
    ),
    "the last token's TD error is r - V, and you returned r. "
    "After the end V is 0, so only the *next* value drops out.": lambda r, v, m, g, lam: (
        returns.reward_to_go(torch.where(_last(m), r, _delta(r, v, m, g)), m, gamma=g * lam)
    ),
    "V(s_t) is not subtracted in the TD errors.": lambda r, v, m, g, lam: returns.reward_to_go(
        torch.where(m, r + g * _shift(torch.where(m, v, 0.0)), 0.0), m, gamma=g * lam
    ),
    "gamma is missing from the TD errors.": lambda r, v, m, g, lam: returns.reward_to_go(
        _delta(r, v, m, 1.0), m, gamma=g * lam
    ),
    "the recursion runs from the left, so a token's advantage depends on what came before it. "
    "Start at the last token.": lambda r, v, m, g, lam: _from_left(_delta(r, v, m, g), m, g * lam),
}


gae_advantages = Exercise(
    "gae_advantages",
    ("rewards", "values", "mask", "gamma", "lam"),
    _gae_case,
    _gae,
    GAE_MISTAKES
    | {
        "these are the critic's targets. Subtract V.": lambda r, v, m, g, lam: (
            _gae(r, v, m, g, lam) + torch.where(m, v, 0.0)
        ),
    },
)


def _from_left(x, mask, factor):
    total, columns = torch.zeros(len(x)), []
    for t in range(x.shape[1]):
        total = x[:, t] + factor * total
        columns.append(total)
    return torch.where(mask, torch.stack(columns, 1), 0.0)


def _n_step_case(g):
    return (*_critic_case(g), int(torch.randint(1, 7, (), generator=g)))


def _n_step(rewards, values, mask, gamma, n):
    deltas = _delta(rewards, values, mask, gamma)
    padded = torch.cat([deltas, torch.zeros(len(deltas), n)], 1)
    return torch.where(
        mask, sum(gamma**i * padded[:, i : i + deltas.shape[1]] for i in range(n)), 0.0
    )


n_step_advantages = Exercise(
    "n_step_advantages",
    ("rewards", "values", "mask", "gamma", "n"),
    _n_step_case,
    _n_step,
    {
        "this is one step too many. With n = 1 the result is the TD error.": lambda r, v, m, g, n: (
            _n_step(r, v, m, g, n + 1)
        ),
        "gamma is not used.": lambda r, v, m, g, n: _n_step(r, v, m, 1.0, n),
        "the TD errors are not discounted.": lambda r, v, m, g, n: _n_step_weighted(
            r, v, m, g, n, lambda i: 1.0
        ),
        "the n rewards are there, but the critic's "
        "estimate of the rest is missing.": lambda r, v, m, g, n: (
            _n_step(r, torch.zeros_like(r), m, g, n) - torch.where(m, v, 0.0)
        ),
        "this sums to the end of the response: n is not used.": lambda r, v, m, g, n: _gae(
            r, v, m, g, 1.0
        ),
        "V is not subtracted. Subtract V of the prefix before the token.": lambda r, v, m, g, n: (
            _n_step(r, v, m, g, n) + torch.where(m, v, 0.0)
        ),
    },
)


def _n_step_weighted(r, v, m, g, n, weight):
    deltas = _delta(r, v, m, g)
    padded = torch.cat([deltas, torch.zeros(len(deltas), n)], 1)
    return torch.where(
        m, sum(weight(i) * padded[:, i : i + deltas.shape[1]] for i in range(n)), 0.0
    )


def _targets_case(g):
    mask = torch.arange(4) < torch.randint(2, 5, (3, 1), generator=g)
    mask[0] = torch.arange(4) < 2
    return (
        *(torch.where(mask, 1 + 2 * torch.randn(3, 4, generator=g), torch.nan) for _ in range(2)),
        mask,
    )


def _white(advantages, mask):
    real = advantages[mask]
    return torch.where(mask, (advantages - real.mean()) / (real.std(unbiased=False) + 1e-8), 0.0)


critic_targets = Exercise(
    "critic_targets",
    ("advantages", "values", "mask"),
    _targets_case,
    lambda a, v, m: torch.stack([_white(a, m), torch.where(m, a + v, 0.0)]),
    {
        "the bug is still there. In the curve the critic stays near its start. Which line decides "
        "where it should go? Follow that line for two tokens on paper.": lambda a, v, m: (
            torch.stack([_white(a, m), torch.where(m, _white(a, m) + v, 0.0)])
        ),
        "now nothing is whitened. "
        "The policy's advantages should still be whitened.": lambda a, v, m: torch.stack(
            [torch.where(m, a, 0.0), torch.where(m, a + v, 0.0)]
        ),
        "V is missing from the targets.": lambda a, v, m: torch.stack(
            [_white(a, m), torch.where(m, a, 0.0)]
        ),
    },
)


def _lambda_case(g):
    bias = torch.rand(25, generator=g).sort(descending=True)[0]
    spread = 0.5 + 3 * torch.rand(25, generator=g).sort()[0]
    return bias, spread, int(torch.randint(4, 60, (), generator=g))


best_lambda = Exercise(
    "best_lambda",
    ("bias", "spread", "batch_size"),
    _lambda_case,
    lambda b, s, n: (b**2 + s**2 / n).argmin(),
    {
        "the batch size has no influence. It divides the variance, but not the squared "
        "bias.": lambda b, s, n: (b**2 + s**2).argmin(),
        "the squared spread is divided by the square of the batch size. The variance of a mean is "
        "the variance of one, divided by the batch size once.": lambda b, s, n: (
            b**2 + (s / n) ** 2
        ).argmin(),
        "the squared error has the *squared* spread in it, that is the variance.": lambda b, s, n: (
            b**2 + s / n
        ).argmin(),
        "the squared error has the *squared* bias in it.": lambda b, s, n: (b + s**2 / n).argmin(),
        "neither bias nor spread is squared.": lambda b, s, n: (b + s / n).argmin(),
        "this looks at the bias alone.": lambda b, s, n: b.argmin(),
        "this looks at the spread alone.": lambda b, s, n: s.argmin(),
        "this is the worst lambda. Take the smallest error.": lambda b, s, n: (
            b**2 + s**2 / n
        ).argmax(),
    },
)


def _loss_case(g):
    rewards, values, mask, gamma = _critic_case(g)
    predicted = torch.where(mask, torch.randn(mask.shape, generator=g), torch.nan)
    return predicted, rewards, values, mask, gamma, 0.3 + 0.5 * torch.rand((), generator=g).item()


def _squared(predicted, targets, mask):
    """Half the squared difference at each real token, in one row."""
    return 0.5 * (predicted[mask] - targets[mask]).square()


def _targets(r, v, m, g, lam):
    return _gae(r, v, m, g, lam) + torch.where(m, v, 0.0)


critic_loss = Exercise(
    "critic_loss",
    ("predicted", "rewards", "values", "mask", "gamma", "lam"),
    _loss_case,
    lambda p, r, v, m, g, lam: _squared(p, _targets(r, v, m, g, lam), m).mean(),
    {
        "the targets are returns. That is right for lambda = 1 only. The target is the advantage "
        "plus the old value.": lambda p, r, v, m, g, lam: _squared(
            p, returns.reward_to_go(_clean(r, mask=m)[0], m, gamma=g), m
        ).mean(),
        "the targets are the TD errors plus the old values. That is right for lambda = 0 only. "
        "The target is the advantage plus the old value.": lambda p, r, v, m, g, lam: _squared(
            p, _targets(r, v, m, g, 0.0), m
        ).mean(),
        "the targets are the advantages. The old value is missing in them.": (
            lambda p, r, v, m, g, lam: _squared(p, _gae(r, v, m, g, lam), m).mean()
        ),
        "the target is the advantage *plus* the old value. You subtract it.": (
            lambda p, r, v, m, g, lam: _squared(p, _gae(r, v, m, g, lam) - v, m).mean()
        ),
        "the targets are computed from `predicted`, so they move with the critic. They are "
        "computed once for a batch, from `values`.": lambda p, r, v, m, g, lam: _squared(
            p, _targets(r, p, m, g, lam), m
        ).mean(),
        "the targets are computed from `predicted`. They belong to the predictions of the time "
        "when the batch was sampled: `values`.": lambda p, r, v, m, g, lam: _squared(
            p, _targets(r, p.detach(), m, g, lam), m
        ).mean(),
        "this is half the squared advantage, whatever `predicted` is: the gradient is 0. Compare "
        "`predicted` with the advantage plus `values`.": lambda p, r, v, m, g, lam: _squared(
            p, _gae(r, v, m, g, lam) + p, m
        ).mean(),
        "the advantage is added to `predicted`. Add it to `values`, the old prediction.": (
            lambda p, r, v, m, g, lam: _squared(p, _gae(r, v, m, g, lam) + p.detach(), m).mean()
        ),
        "the factor 1/2 is missing.": lambda p, r, v, m, g, lam: (
            2 * _squared(p, _targets(r, v, m, g, lam), m).mean()
        ),
        "this is the sum over the tokens. Take the mean.": lambda p, r, v, m, g, lam: _squared(
            p, _targets(r, v, m, g, lam), m
        ).sum(),
        "this divides by the number of all positions, padding too. Divide by the number of real "
        "tokens.": lambda p, r, v, m, g, lam: (
            _squared(p, _targets(r, v, m, g, lam), m).sum() / m.numel()
        ),
        "this divides by the number of responses. Divide by the number of real tokens.": (
            lambda p, r, v, m, g, lam: _squared(p, _targets(r, v, m, g, lam), m).sum() / len(m)
        ),
        "this is the mean over responses of their means. Every real token should count the "
        "same.": lambda p, r, v, m, g, lam: torch.stack(
            [_squared(*row).mean() for row in zip(p, _targets(r, v, m, g, lam), m, strict=True)]
        ).mean(),
        "gamma is not used in the advantages.": lambda p, r, v, m, g, lam: _squared(
            p, _targets(r, v, m, 1.0, lam), m
        ).mean(),
    },
    differentiate=("predicted",),
)
