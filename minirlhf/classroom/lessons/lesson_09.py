"""Exercises of lesson 09: explained variance, advantages from the four models, a paired standard
error, and the position of the score."""

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
    mask, targets = _mask(g), 1 + torch.randn(3, 4, generator=g)
    values = 0.7 * targets + 0.3 * torch.randn(3, 4, generator=g) + 0.5
    return torch.where(mask, values, torch.nan), torch.where(mask, targets, torch.nan), mask


def _real(function):
    return lambda v, r, m: function(v[m], r[m])


explained_variance = Exercise(
    "explained_variance",
    ("values", "targets", "mask"),
    _values_case,
    _explained,
    {
        "values and targets are exchanged. "
        "The variance to be explained is that of the targets.": lambda v, r, m: _explained(r, v, m),
        "this is the share that is left unexplained. Subtract it from 1.": lambda v, r, m: (
            1 - _explained(v, r, m)
        ),
        "the mean of the squared errors is not a variance. "
        "It contains a constant error, and a variance leaves a constant error out.": _real(
            lambda v, r: 1 - (r - v).square().mean() / r.var(unbiased=False)
        ),
        "the mean square of the targets is not a variance. Subtract their mean first.": _real(
            lambda v, r: 1 - (r - v).var(unbiased=False) / r.square().mean()
        ),
        "this is the variance of the values over that of the targets. "
        "It can be high for a critic that is very wrong.": _real(
            lambda v, r: v.var(unbiased=False) / r.var(unbiased=False)
        ),
        "this is the squared correlation. "
        "It would be perfect for a critic whose values are ten times too large.": _real(
            lambda v, r: torch.corrcoef(torch.stack([v, r]))[0, 1].square()
        ),
        "padding is counted. After `nan_to_num`, values and targets are "
        "both 0 there, which looks well explained.": lambda v, r, m: (
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


def _whitened_with_n_minus_1(*x):
    a, m = _advantages(*x, whiten=False), x[4]
    return torch.where(m, (a - a[m].mean()) / a[m].std(), 0.0)


def _whitened_by_response(*x):
    a, m = _advantages(*x, whiten=False), x[4]
    mean = a.sum(1, keepdim=True) / m.sum(1, keepdim=True)
    variance = torch.where(m, a - mean, 0.0).square().sum(1, keepdim=True) / m.sum(1, keepdim=True)
    return torch.where(m, (a - mean) / (variance + 1e-8).sqrt(), 0.0)


four_models = Exercise(
    "four_models",
    ("scores", "old_logprobs", "ref_logprobs", "values", "mask", "kl_coef"),
    _batch_case,
    _advantages,
    {
        "the advantages are not whitened.": lambda *x: _advantages(*x, whiten=False),
        "padding is part of the mean and the variance. "
        "Whiten the real tokens only.": _whitened_with_padding,
        "the variance divides by the number of tokens minus 1. Divide by their number: "
        "`std(unbiased=False)`.": _whitened_with_n_minus_1,
        "each response is whitened by itself. "
        "Use one mean and one standard deviation for the whole batch.": _whitened_by_response,
        "the score is missing. It belongs to the last real token.": lambda s, *x: _advantages(
            0 * s, *x
        ),
        "the KL penalty has the wrong sign: the policy "
        "is rewarded for leaving the reference.": lambda s, o, r, v, m, k: _advantages(
            s, r, o, v, m, k
        ),
        "the KL penalty is missing.": lambda s, o, r, v, m, k: _advantages(s, o, o, v, m, k),
        "`kl_coef` is missing.": lambda s, o, r, v, m, k: _advantages(s, o, r, v, m, 1.0),
        "this is lambda = 1. The exercise asks for 0.95.": lambda *x: _advantages(*x, lam=1.0),
        "this is lambda = 0, the TD error. The exercise asks for 0.95.": lambda *x: _advantages(
            *x, lam=0.0
        ),
        "the critic's values are missing.": lambda s, o, r, v, m, k: _advantages(
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
        "this is unpaired: it contains the differences between films. "
        "Take the difference for each film first.": lambda a, b: torch.stack(
            [(a - b).mean(), ((a.var() + b.var()) / len(a)).sqrt()]
        ),
        "this is the standard deviation over films. The standard error of their *mean* is "
        "smaller by the square root of their number.": lambda a, b: torch.stack(
            [(a - b).mean(), (a - b).std()]
        ),
        "this is the variance of the mean. Return its square root.": lambda a, b: torch.stack(
            [(a - b).mean(), (a - b).var() / len(a)]
        ),
        "this divides by the number of films. Divide by its square root.": lambda a, b: torch.stack(
            [(a - b).mean(), (a - b).std() / len(a)]
        ),
        "the variance divides by n. "
        "With so few films, divide by n - 1, as `std` does.": lambda a, b: torch.stack(
            [(a - b).mean(), (a - b).std(unbiased=False) / len(a) ** 0.5]
        ),
        "this is the second minus the first. Return ours minus theirs.": lambda a, b: _paired(b, a),
    },
)


def _ids_case(g):
    eos_id = int(torch.randint(5, (), generator=g))
    ids = (eos_id + torch.randint(1, 5, (4, 5), generator=g)) % 5
    # Padding has EOS's id. Row 3 was cut: it has no EOS.
    ids[0, 2:], ids[1, 4:], ids[2, 0:] = eos_id, eos_id, eos_id
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
        "the bug is still there. On paper, take scores [1], response_ids [[3, 0, 0]] and "
        "eos_id = 0. What should each of the three tokens get, and what does it get?": (
            lambda s, ids, e: _put(s, ids, ((ids != e).sum(1) - 1).clamp(min=0))
        ),
        "this is the last column. "
        "For a response that has ended it is padding, which no loss sees.": lambda s, ids, e: _put(
            s, ids, torch.full((len(ids),), ids.shape[1] - 1)
        ),
        "a response that was cut has no EOS, so `argmax` returns 0. "
        "Its score belongs on its last token.": lambda s, ids, e: _put(
            s, ids, (ids == e).int().argmax(1)
        ),
        "every token gets the score. "
        "The response is then rewarded once for each of its tokens.": lambda s, ids, e: (
            s[:, None] * (torch.arange(ids.shape[1]) <= _place(ids, e)[:, None])
        ),
        "this is one position after EOS, which is padding.": lambda s, ids, e: _put(
            s, ids, (_place(ids, e) + 1).clamp(max=ids.shape[1] - 1)
        ),
    },
)
