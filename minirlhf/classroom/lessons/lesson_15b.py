"""Exercises of lab 15b: progress of steps, pairs, steps that are read, the loss of labels."""

import torch
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from minirlhf.classroom.exercise import Exercise


def _mask(g):
    lengths = torch.randint(1, 5, (4,), generator=g)
    lengths[0] = 4
    return torch.arange(4) < lengths[:, None]


def _progress_case(g):
    return torch.rand(4, 4, generator=g), torch.rand(4, generator=g), _mask(g)


def _progress(chances, at_start, step_mask):
    before = torch.cat([at_start[:, None], chances[:, :-1]], 1)
    return torch.where(step_mask, chances - before, 0.0)


def _progress_from(chances, first, step_mask):
    before = torch.cat([first, chances[:, :-1]], 1)
    return torch.where(step_mask, chances - before, 0.0)


progress_of_steps = Exercise(
    "progress_of_steps",
    ("chances", "at_start", "step_mask"),
    _progress_case,
    _progress,
    {
        "the sign is wrong. A good step raises the chance: after minus before.": (
            lambda c, s, m: -_progress(c, s, m)
        ),
        "the first step is compared with 0. Compare it with `at_start`.": lambda c, s, m: (
            _progress_from(c, torch.zeros_like(c[:, :1]), m)
        ),
        "the first step has no change. Compare it with `at_start`.": lambda c, s, m: _progress_from(
            c, c[:, :1], m
        ),
        "every step is compared with `at_start`. "
        "Compare it with the step before it.": lambda c, s, m: torch.where(m, c - s[:, None], 0.0),
        "these are the chances themselves. Return how each step changes them.": lambda c, s, m: (
            torch.where(m, c, 0.0)
        ),
        "the result is a ratio. Return the difference.": lambda c, s, m: torch.where(
            m, c / torch.cat([s[:, None], c[:, :-1]], 1), 0.0
        ),
    },
    edges=(
        (
            torch.tensor([[0.75, 0.75, 0.0], [0.25, 0.5, torch.nan]]),
            torch.tensor([0.5, 0.5]),
            torch.tensor([[True, True, True], [True, True, False]]),
        ),
    ),
)


def _pairs_case(g):
    right, step_mask = torch.rand(4, 4, generator=g) < 0.6, _mask(g)
    right[0], right[1, 0] = True, False  # one response without a wrong step, one that begins so
    places = int((~right & step_mask).any(1).sum())
    return right, step_mask, torch.rand(3 * places, generator=g) < 0.4, 3


def _pairs(right, step_mask, tries_right, count, *, step=0, tried=0):
    """The pairs; `step` and `tried` count from the front (0) or from the back (-1)."""
    pairs, tries = torch.full((len(right), 2), -1), iter(tries_right.view(-1, count))
    for i in range(len(right)):
        wrong = (~right[i] & step_mask[i]).nonzero()[:, 0]
        if len(wrong):
            good = next(tries, tries_right[:0]).nonzero()[:, 0]
            if len(good):
                pairs[i] = torch.stack([wrong[step], good[tried]])
    return pairs


def _pairs_without_a_right_try(right, step_mask, tries_right, count):
    pairs, wrong = _pairs(right, step_mask, tries_right, count), ~right & step_mask
    first = torch.stack([wrong.long().argmax(1), torch.zeros(len(right), dtype=torch.long)], 1)
    return torch.where((wrong.any(1) & (pairs[:, 0] < 0))[:, None], first, pairs)


def _pairs_of_any_place(right, step_mask, tries_right, count):
    """Each wrong step gets the next right try, whichever step it was written for."""
    pairs, wrong = torch.full((len(right), 2), -1), ~right & step_mask
    good = tries_right.nonzero()[:, 0]
    for i, at in zip(wrong.any(1).nonzero()[:, 0], good, strict=False):
        pairs[i] = torch.stack([wrong[i].long().argmax(), at % count])
    return pairs


def _tries_by_response(right, step_mask, tries_right, count):
    """Row i of the tries for response i, also behind a response without a wrong step."""
    tries = torch.zeros(len(right), count, dtype=torch.bool)
    given = tries_right.view(-1, count)
    tries[: len(given)] = given
    return _pairs(right, step_mask, tries[(~right & step_mask).any(1)].flatten(), count)


def _changed(pairs, change):
    """The pairs, with the rows of pairs changed and those of -1 left."""
    return torch.where(pairs < 0, pairs, change(pairs))


pairs_of = Exercise(
    "pairs_of",
    ("right", "step_mask", "tries_right", "count"),
    _pairs_case,
    _pairs,
    {
        "a wrong step without a right try gives no pair: -1, -1.": _pairs_without_a_right_try,
        "the tries of two steps are mixed. "
        "Only a response with a wrong step has tries.": _tries_by_response,
        "the tries of two steps are mixed. "
        "A right try belongs to the step that it was written for.": _pairs_of_any_place,
        "the tries of two steps are mixed. "
        "The first `count` belong to the first wrong step.": lambda r, m, t, n: _pairs(
            r, m, t.view(n, -1).T.flatten(), n
        ),
        "a step that does not exist counts as wrong. Use step_mask.": lambda r, m, t, n: _pairs(
            r, torch.ones_like(m), t, n
        ),
        "the last wrong step is taken. Take the first: the policy wrote it after right steps.": (
            lambda r, m, t, n: _pairs(r, m, t, n, step=-1)
        ),
        "the last right try is taken. Take the first.": lambda r, m, t, n: _pairs(
            r, m, t, n, tried=-1
        ),
        "steps are counted from 1. The first has number 0.": lambda r, m, t, n: _changed(
            _pairs(r, m, t, n), lambda p: p + torch.tensor([1, 0])
        ),
        "steps and tries are counted from 1. The first has number 0.": lambda r, m, t, n: _changed(
            _pairs(r, m, t, n), lambda p: p + 1
        ),
        "the columns are exchanged. The step comes first.": lambda r, m, t, n: _pairs(
            r, m, t, n
        ).flip(1),
        "a wrong try is chosen. Choose a right one.": lambda r, m, t, n: _pairs(r, m, ~t, n),
    },
    edges=(
        (
            torch.tensor([[True, True, False], [True, True, True], [False, True, False]]),
            torch.tensor([[True, True, False], [True, True, True], [True, True, True]]),
            torch.tensor([False, True, True]),
            3,
        ),
        (
            torch.tensor([[False, True], [True, False]]),
            torch.tensor([[True, True], [True, True]]),
            torch.tensor([False, False, True, True]),
            2,
        ),
    ),
    sizes="Only responses with a wrong step have tries, `count` for each. "
    "Where step_mask is false there is no step, so none is wrong.",
)


def _read_case(g):
    return torch.rand(6, 4, generator=g) < 0.75, torch.cat([_mask(g), _mask(g)[:2]])


def _until_wrong(right, step_mask):
    wrong = (~right & step_mask).long()
    return (step_mask & (wrong.cumsum(1) - wrong == 0)).sum(1)


steps_read = Exercise(
    "steps_read",
    ("right", "step_mask"),
    _read_case,
    _until_wrong,
    {
        "the first wrong step is missing. It is read, too.": lambda r, m: (
            m & ((~r & m).cumsum(1) == 0)
        ).sum(1),
        "these are all steps. The reader stops at the first wrong one.": lambda r, m: m.sum(1),
        "these are the right steps. Count those that are read, "
        "up to and including the first wrong one.": lambda r, m: (r & m).sum(1),
        "steps that do not exist are counted. Use step_mask.": lambda r, m: _until_wrong(
            r, torch.ones_like(m)
        ),
        "this is the position of the first wrong step, counted from 0. "
        "Return how many steps are read.": lambda r, m: (~r & m).long().argmax(1),
        "a response without a wrong step is read to its end.": lambda r, m: (
            (~r & m).long().argmax(1) + 1
        ),
    },
    edges=(
        (
            torch.tensor([[True, True, True], [False, True, False], [True, False, False]]),
            torch.tensor([[True, True, True], [True, True, True], [True, False, False]]),
        ),
    ),
)


def _labels_case(g):
    labels = torch.rand(4, 4, generator=g)
    labels[torch.rand(4, 4, generator=g) < 0.3] = -100.0
    labels[0, 0], labels[0, 1] = -100.0, 0.0
    return 3 * torch.randn(4, 4, generator=g), labels, _mask(g)


def _entropy(z, y):
    return -y * logsigmoid(z) - (1 - y) * logsigmoid(-z)


def _labelled(logits, labels, step_mask):
    rated = step_mask & (labels != -100)
    z, y = torch.where(rated, logits, 0.0), torch.where(rated, labels, 0.0)
    return torch.where(rated, _entropy(z, y), 0.0)


def _cast(labels):
    return labels.nan_to_num().bool().float()


loss_of_labelled_steps = Exercise(
    "loss_of_labelled_steps",
    ("logits", "labels", "step_mask"),
    _labels_case,
    _labelled,
    {
        "bool turns -100 into True: a step without a label counts as good.": lambda z, y, m: (
            torch.where(m, _entropy(z.nan_to_num(), _cast(y)), 0.0)
        ),
        "-100 is used as a label. A step with this number has no label, and no loss.": (
            lambda z, y, m: torch.where(
                m, binary_cross_entropy_with_logits(z, y, reduction="none"), 0.0
            )
        ),
        "a step without a label counts as wrong. It has no loss.": lambda z, y, m: torch.where(
            m, _entropy(z.nan_to_num(), y.nan_to_num().clamp(min=0)), 0.0
        ),
        "labels are rounded to 0 or 1. A label between 0 and 1, such as 0.25, stays as it is.": (
            lambda z, y, m: _labelled(z, torch.where(y > 0, y.round(), y), m)
        ),
        "a label above 0 was made 1. A label between 0 and 1, such as 0.25, stays as it is.": (
            lambda z, y, m: _labelled(z, torch.where(y > 0, 1.0, y), m)
        ),
        "the term of (1 - y) is missing.": lambda z, y, m: torch.where(
            m & (y != -100), -y * logsigmoid(z), 0.0
        ),
    },
    differentiate=("logits",),
    edges=(
        (
            torch.tensor([[200.0, -200.0, 0.0]]),
            torch.tensor([[0.0, 1.0, -100.0]]),
            torch.tensor([[True, True, True]]),
        ),
    ),
)
