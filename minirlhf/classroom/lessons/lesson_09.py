"""Exercises of lesson 09: a critic that knows the position only, advantages from the four models,
the standard error for other films, and which token gets the score."""

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


def _targets_case(g):
    mask = _mask(g, rows=4)
    position = 2 * torch.randn(4, generator=g)
    targets = 1 + position + torch.randn(4, 4, generator=g)
    return torch.where(mask, targets, torch.nan), mask


def _position_means(targets, mask):
    return torch.where(mask, targets, 0.0).sum(0) / mask.sum(0).clamp(min=1)


def _by_position(targets, mask):
    return _explained(_position_means(targets, mask).expand_as(targets), targets, mask)


def _errors(targets, mask):
    return (targets - _position_means(targets, mask))[mask]


def _of_rows(targets, mask):
    means = torch.where(mask, targets, 0.0).sum(1, keepdim=True) / mask.sum(1, keepdim=True)
    return _explained(means.expand_as(targets), targets, mask)


def _means_with_padding(targets, mask):
    means = torch.where(mask, targets, 0.0).mean(0)
    return _explained(means.expand_as(targets), targets, mask)


def _mean_of_positions(targets, mask):
    squares = torch.where(mask, targets - _position_means(targets, mask), 0.0).square()
    some = mask.any(0)
    variances = (squares.sum(0) / mask.sum(0).clamp(min=1))[some]
    return 1 - variances.mean() / targets[mask].var(unbiased=False)


def _padding_counted(targets, mask):
    filled = torch.where(mask, targets, 0.0)
    errors = filled - filled.mean(0)
    return 1 - errors.var(unbiased=False) / filled.var(unbiased=False)


explained_by_position = Exercise(
    "explained_by_position",
    ("targets", "mask"),
    _targets_case,
    _by_position,
    {
        "this is the share that is left unexplained. Subtract it from 1.": lambda r, m: (
            1 - _by_position(r, m)
        ),
        "this critic says one number per response. It must say one number per position, "
        "the same for all responses.": _of_rows,
        "this critic says the same number everywhere. Take one mean for each position.": (
            lambda r, m: torch.zeros(())
        ),
        "the mean of a position divides by the number of responses. Divide by the number of "
        "real tokens at this position.": _means_with_padding,
        "this takes the variance within each position, then the mean over positions. Take one "
        "variance over all real tokens: positions with more tokens count more.": _mean_of_positions,
        "the mean square of the targets is not a variance. Subtract their mean first.": (
            lambda r, m: 1 - _errors(r, m).square().mean() / r[m].square().mean()
        ),
        "one variance divides by n, the other by n - 1. Use the same for both.": (
            lambda r, m: 1 - _errors(r, m).square().mean() / r[m].var()
        ),
        "padding is counted as a token with the target 0. Select the real tokens.": (
            _padding_counted
        ),
    },
)


def _batch_case(g):
    mask = _mask(g)
    mask[1] = True  # a full row: in it the last column is the right place for the score
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


def _elsewhere(place, *, over_padding=False):
    """A wrong answer: the score is added to the tokens that `place(scores, mask)` gives."""

    def wrong(scores, old, ref, values, mask, kl_coef):
        rewards = kl_shaped_rewards(0 * scores, old, ref, mask, kl_coef=kl_coef)
        rewards = rewards + place(scores, mask)
        seen = torch.ones_like(mask) if over_padding else mask
        advantages, _ = gae(rewards, torch.where(mask, values, 0.0), seen, gamma=1.0, lam=0.95)
        return masked_whiten(torch.where(mask, advantages, 0.0), mask)

    return wrong


def _in_the_last_column(scores, mask):
    return torch.nn.functional.pad(scores[:, None], (mask.shape[1] - 1, 0))


def _on_every_token(scores, mask):
    return torch.where(mask, scores[:, None], 0.0)


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
        "the score is in the last column. For a response that ended earlier this is padding, and "
        "the score is lost. Put it on the last real token.": _elsewhere(_in_the_last_column),
        "the score is in the last column, and is carried back over padding with a weight of 0.95 "
        "per position. Put it on the last real token, and carry nothing over padding.": _elsewhere(
            _in_the_last_column, over_padding=True
        ),
        "every token gets the score. Only the last real token gets it: else the response is "
        "rewarded once for each of its tokens.": _elsewhere(_on_every_token),
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
    films = int(torch.randint(4, 8, (), generator=g))
    film = 2 * torch.randn(films, 1, generator=g)
    method = 0.5 * torch.randn(2, films, 1, generator=g) + torch.tensor([0.5, 0.0]).view(2, 1, 1)
    return tuple(film + method + 0.5 * torch.randn(2, films, 4, generator=g))


def _paired(a, b):
    d = (a - b).mean(1)
    return torch.stack([d.mean(), d.std() / len(d) ** 0.5])


def _with_error(error):
    """A wrong answer: the mean difference with another standard error."""
    return lambda a, b: torch.stack([(a - b).mean(), error(a, b)])


paired_standard_error = Exercise(
    "paired_standard_error",
    ("ours", "theirs"),
    _scores_case,
    _paired,
    {
        "each response counts as an observation. Other films would change all responses of a "
        "film together. What is one observation then?": _with_error(
            lambda a, b: (a - b).std() / a.numel() ** 0.5
        ),
        "each response counts as an observation, and the two methods are not paired. Other "
        "films would change all responses of a film together.": _with_error(
            lambda a, b: ((a.var() + b.var()) / a.numel()).sqrt()
        ),
        "the mean is taken over films first. What scatters then is the responses, "
        "and not the films.": _with_error(lambda a, b: (a - b).mean(0).std() / a.shape[1] ** 0.5),
        "this is unpaired: it contains the differences between films. "
        "Take the difference for each film first.": _with_error(
            lambda a, b: ((a.mean(1).var() + b.mean(1).var()) / len(a)).sqrt()
        ),
        "this is the standard deviation over films. The standard error of their *mean* is "
        "smaller by the square root of their number.": _with_error(
            lambda a, b: (a - b).mean(1).std()
        ),
        "this is the variance of the mean. Return its square root.": _with_error(
            lambda a, b: (a - b).mean(1).var() / len(a)
        ),
        "this divides by the number of films. Divide by its square root.": _with_error(
            lambda a, b: (a - b).mean(1).std() / len(a)
        ),
        "this divides by the square root of the number of responses. "
        "How many observations are there?": _with_error(
            lambda a, b: (a - b).mean(1).std() / a.numel() ** 0.5
        ),
        "the variance divides by n. "
        "With so few films, divide by n - 1, as `std` does.": _with_error(
            lambda a, b: (a - b).mean(1).std(unbiased=False) / len(a) ** 0.5
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
