"""Lesson 09: what the critic explains, the four models' numbers as one advantage, an honest difference, and where the score lands."""

import torch

from minirlhf.classroom.exercise import Exercise
from minirlhf.core.kl import kl_shaped_rewards
from minirlhf.core.masking import masked_whiten
from minirlhf.core.policy_gradient import explained_variance as _explained
from minirlhf.core.returns import gae


def _mask(g, rows=3, width=4):
    mask = torch.arange(width) < torch.randint(1, width + 1, (rows, 1), generator=g)
    mask[0] = torch.arange(width) < 2
    return mask


def _values_case(g):
    mask, returns = _mask(g), 1 + torch.randn(3, 4, generator=g)
    values = 0.7 * returns + 0.3 * torch.randn(3, 4, generator=g) + 0.5
    return torch.where(mask, values, torch.nan), torch.where(mask, returns, torch.nan), mask


def _real(function):
    return lambda v, r, m: function(v[m], r[m])


explained_variance = Exercise(
    "explained_variance",
    ("values", "returns", "mask"),
    _values_case,
    _explained,
    {
        "values and returns are exchanged: the returns' variance is what is to be explained.": lambda v, r, m: (
            _explained(r, v, m)
        ),
        "this is the share that is left unexplained; take it from 1.": lambda v, r, m: (
            1 - _explained(v, r, m)
        ),
        "the mean of the squared errors is no variance: a constant error is in it; a variance leaves it out.": _real(
            lambda v, r: 1 - (r - v).square().mean() / r.var(unbiased=False)
        ),
        "the returns' mean square is no variance: subtract their mean first.": _real(
            lambda v, r: 1 - (r - v).var(unbiased=False) / r.square().mean()
        ),
        "this is the variance of the values over that of the returns; a critic that is wildly wrong has much of it.": _real(
            lambda v, r: v.var(unbiased=False) / r.var(unbiased=False)
        ),
        "this is the squared correlation: a critic whose values are ten times too large would get full marks.": _real(
            lambda v, r: torch.corrcoef(torch.stack([v, r]))[0, 1].square()
        ),
        "padding is counted: values and returns are 0 there after nan_to_num, and that looks well explained.": lambda v, r, m: (
            1
            - (r.nan_to_num() - v.nan_to_num()).var(unbiased=False)
            / r.nan_to_num().var(unbiased=False)
        ),
    },
)


def _batch_case(g):
    mask = _mask(g)
    old, ref = -0.5 - 2 * torch.rand(2, 3, 4, generator=g)
    values = torch.randn(3, 4, generator=g)
    old, ref, values = (torch.where(mask, x, torch.nan) for x in (old, ref, values))
    return (
        torch.randn(3, generator=g),
        old,
        ref,
        values,
        mask,
        0.3 + torch.rand((), generator=g).item(),
    )


def _advantages(scores, old, ref, values, mask, kl_coef, *, lam=0.95, whiten=True):
    rewards = kl_shaped_rewards(scores, old, ref, mask, kl_coef=kl_coef)
    advantages, _ = gae(rewards, values, mask, gamma=1.0, lam=lam)
    return masked_whiten(advantages, mask) if whiten else advantages


def _whitened_with_padding(s, o, r, v, m, k):
    a = _advantages(s, o, r, v, m, k, whiten=False)
    return (a - a.mean()) / (a.var(unbiased=False) + 1e-8).sqrt() * m


four_models = Exercise(
    "four_models",
    ("scores", "old_logprobs", "ref_logprobs", "values", "mask", "kl_coef"),
    _batch_case,
    _advantages,
    {
        "the advantages are not whitened.": lambda *x: _advantages(*x, whiten=False),
        "the padding takes part in mean and variance; whiten the real tokens only.": _whitened_with_padding,
        "the charge has the wrong sign: drifting away is paid for.": lambda s, o, r, v, m, k: (
            _advantages(s, r, o, v, m, k)
        ),
        "the charge is missing.": lambda s, o, r, v, m, k: _advantages(s, o, o, v, m, k),
        "kl_coef is missing.": lambda s, o, r, v, m, k: _advantages(s, o, r, v, m, 1.0),
        "this is lambda 1; the exercise asks for 0.95.": lambda *x: _advantages(*x, lam=1.0),
        "this is lambda 0, the TD error; the exercise asks for 0.95.": lambda *x: _advantages(
            *x, lam=0.0
        ),
        "the critic is missing.": lambda s, o, r, v, m, k: _advantages(
            s, o, r, torch.zeros_like(v), m, k
        ),
    },
)


def _scores_case(g):
    prompts = int(torch.randint(4, 8, (), generator=g))
    film = 2 * torch.randn(prompts, generator=g)
    return tuple(
        film + noise
        for noise in 0.5 * torch.randn(2, prompts, generator=g) + torch.tensor([[0.5], [0.0]])
    )


def _paired(a, b):
    d = a - b
    return torch.stack([d.mean(), d.std() / len(d) ** 0.5])


paired_standard_error = Exercise(
    "paired_standard_error",
    ("ours", "theirs"),
    _scores_case,
    _paired,
    {
        "this is unpaired: the films' own differences are in it. Take the difference of each film first.": lambda a, b: (
            torch.stack([(a - b).mean(), ((a.var() + b.var()) / len(a)).sqrt()])
        ),
        "this is the spread of single films; the error of their *mean* is smaller by the root of their number.": lambda a, b: (
            torch.stack([(a - b).mean(), (a - b).std()])
        ),
        "this is the variance of the mean; its root is asked for.": lambda a, b: torch.stack(
            [(a - b).mean(), (a - b).var() / len(a)]
        ),
        "divided by the number of films; divide by its root.": lambda a, b: torch.stack(
            [(a - b).mean(), (a - b).std() / len(a)]
        ),
        "the variance divides by n; from so few films divide by n - 1, as `std` does.": lambda a, b: (
            torch.stack([(a - b).mean(), (a - b).std(unbiased=False) / len(a) ** 0.5])
        ),
        "the second minus the first; asked is ours minus theirs.": lambda a, b: _paired(b, a),
    },
)


def _ids_case(g):
    eos_id = int(torch.randint(5, (), generator=g))
    ids = (eos_id + torch.randint(1, 5, (4, 5), generator=g)) % 5
    ids[0, 2:], ids[1, 4:], ids[2, 0:] = (
        eos_id,
        eos_id,
        eos_id,
    )  # padding has EOS's id; row 3 was cut
    return torch.randn(4, generator=g), ids, eos_id


def _place(ids, eos_id):
    ended = ids == eos_id
    return torch.where(ended.any(1), ended.int().argmax(1), ids.shape[1] - 1)


def _put(scores, ids, where):
    return torch.zeros(ids.shape).scatter(1, where[:, None], scores[:, None])


score_rewards = Exercise(
    "score_rewards",
    ("scores", "response_ids", "eos_id"),
    _ids_case,
    lambda s, ids, e: _put(s, ids, _place(ids, e)),
    {
        "still the last token that is not EOS: stopping earns nothing and is in no loss. The first EOS is a choice like any other.": lambda s, ids, e: (
            _put(s, ids, ((ids != e).sum(1) - 1).clamp(min=0))
        ),
        "this is the last column: for a text that has ended it is padding, which no loss sees.": lambda s, ids, e: (
            _put(s, ids, torch.full((len(ids),), ids.shape[1] - 1))
        ),
        "a text that was cut has no EOS, and `argmax` of nothing is 0: its score belongs on its last token.": lambda s, ids, e: (
            _put(s, ids, (ids == e).int().argmax(1))
        ),
        "every token has the score: the text is paid once for each of its words.": lambda s, ids, e: (
            s[:, None] * (torch.arange(ids.shape[1]) <= _place(ids, e)[:, None])
        ),
        "one behind EOS is padding.": lambda s, ids, e: _put(
            s, ids, (_place(ids, e) + 1).clamp(max=ids.shape[1] - 1)
        ),
    },
)
