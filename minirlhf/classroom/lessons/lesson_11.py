"""Lesson 11: a response against the others of its prompt; what is counted, what is divided by what, and which groups teach."""

import torch

from minirlhf.classroom.exercise import Exercise
from minirlhf.core.baselines import group_relative
from minirlhf.core.policy_gradient import sequence_log_ratio
from minirlhf.evaluate import pass_at_k as unbiased


def _group_case(g):
    scores = 2 * torch.randn(4, 3, generator=g)
    scores[1] = 0.9  # nobody did better than another; the mean of three times 0.9 is rounded
    return (scores,)


group_advantages = Exercise(
    "group_advantages",
    ("group_scores",),
    _group_case,
    group_relative,
    {
        "the mean and std of the whole batch: a hard prompt's responses then all look bad. A group is a row.": lambda s: (
            (s - s.mean()) / (s.std() + 1e-4)
        ),
        "mean and std run over the prompts (axis 0); the samples of one prompt are a row.": lambda s: (
            (s - s.mean(0)) / (s.std(0) + 1e-4)
        ),
        "equal scores must give exactly 0: their rounded mean is not theirs, and the rest is divided by almost nothing.": lambda s: (
            (s - s.mean(1, keepdim=True)) / (s.std(1, keepdim=True) + 1e-4)
        ),
        "centred, not divided by the std: Dr. GRPO's advantage; GRPO divides.": lambda s: (
            group_relative(s, scale_by_std=False)
        ),
        "the std divides by G; `torch.std` divides by G - 1, and so does this exercise.": lambda s: (
            group_relative(s, unbiased=False)
        ),
        "divided by the variance.": lambda s: (
            (s - s.mean(1, keepdim=True)) / (s.var(1, keepdim=True) + 1e-4)
        ),
        "the baseline is the mean of the *others*: RLOO's; GRPO's mean includes the response.": lambda s: (
            (s - (s.sum(1, keepdim=True) - s) / 2) / (s.std(1, keepdim=True) + 1e-4)
        ),
        "the mean is missing: every response of a good prompt would be praised.": lambda s: (
            s / (s.std(1, keepdim=True) + 1e-4)
        ),
    },
)


def _pass_case(g):
    chance = torch.rand(5, 1, generator=g)
    right = torch.rand(5, 8, generator=g) < chance
    right[0], right[1] = torch.arange(8) < 6, torch.arange(8) == 7
    return right, int(torch.randint(2, 5, (), generator=g))


pass_at_k = Exercise(
    "pass_at_k",
    ("right", "k"),
    _pass_case,
    unbiased,
    {
        "1 - (1 - c/n)^k draws with replacement: it is too low wherever the truth is not 0 or 1.": lambda r, k: (
            1 - (1 - r.double().mean(1)) ** k
        ),
        "this is pass@1, the share that is right.": lambda r, k: r.double().mean(1),
        "any of all n: that is pass@n.": lambda r, k: r.any(1).double(),
        "only the first k samples are looked at: right on average, the other n - k are thrown away.": lambda r, k: (
            r[:, :k].any(1).double()
        ),
        "this is the chance that all k are wrong.": lambda r, k: 1 - unbiased(r, k),
        "this is the chance that all k are right.": lambda r, k: 1 - unbiased(~r, k),
    },
    edges=((torch.tensor([[True] * 4, [False] * 4, [True, False, False, False]]), 4),),
)


def _tokens(g, rows, width):
    mask = torch.arange(width) < torch.randint(1, width + 1, (rows, 1), generator=g)
    mask[0], mask[1] = torch.arange(width) < 2, torch.arange(width) < width
    old = -0.5 - 2 * torch.rand(rows, width, generator=g)
    return mask, old, old + 0.4 * torch.randn(rows, width, generator=g)


def _sequence_case(g):
    mask, old, new = _tokens(g, 5, 4)
    advantages = torch.randn(5, generator=g)
    return (
        *(torch.where(mask, x, torch.nan) for x in (new, old)),
        advantages,
        mask,
        0.05 + 0.1 * torch.rand((), generator=g).item(),
    )


def _surrogate(ratio, a, e):
    return -torch.minimum(ratio * a, ratio.clamp(1 - e, 1 + e) * a)


def _gspo(new, old, a, mask, e):
    return _surrogate(sequence_log_ratio(new, old, mask, by_length=True).exp(), a, e)


def _by_token(new, old, mask):
    return (torch.where(mask, new, 0.0) - torch.where(mask, old, 0.0)).exp()


gspo_loss = Exercise(
    "gspo_loss",
    ("logprobs", "old_logprobs", "advantages", "mask", "eps"),
    _sequence_case,
    _gspo,
    {
        "the ratio of the whole response, not its root: a sum of log-ratios grows with length. Divide it by the length.": lambda n, o, a, m, e: (
            _surrogate(sequence_log_ratio(n, o, m, by_length=False).exp(), a, e)
        ),
        "the mean of the tokens' ratios; GSPO's is exp of the mean *log*-ratio.": lambda n, o, a, m, e: (
            _surrogate((_by_token(n, o, m) * m).sum(1) / m.sum(1), a, e)
        ),
        "divided by all places of the row; padding is no token.": lambda n, o, a, m, e: _surrogate(
            (sequence_log_ratio(n, o, m, by_length=False) / m.shape[1]).exp(), a, e
        ),
        "this is PPO's loss, a ratio a token, averaged over the response.": lambda n, o, a, m, e: (
            (_surrogate(_by_token(n, o, m), a[:, None], e) * m).sum(1) / m.sum(1)
        ),
        "nothing is clipped.": lambda n, o, a, m, e: (
            -sequence_log_ratio(n, o, m, by_length=True).exp() * a
        ),
        "only the clipped term: of the two gains take the smaller.": lambda n, o, a, m, e: (
            -sequence_log_ratio(n, o, m, by_length=True).exp().clamp(1 - e, 1 + e) * a
        ),
        "the sign: this is what should be maximised; a loss is its negative.": lambda *x: (
            -_gspo(*x)
        ),
        "right as a number, but it carries no gradient: something detaches `logprobs`.": lambda *x: (
            _gspo(*x).detach()
        ),
    },
    differentiate=("logprobs",),
)


def _dr_case(g):
    mask, _, new = _tokens(g, 6, 4)
    return (
        torch.where(mask, new, torch.nan),
        torch.randn(2, 3, generator=g),
        mask,
        int(torch.randint(5, 9, (), generator=g)),
    )


def _dr(logprobs, scores, mask, limit, *, std=False, divisor=None):
    advantages = group_relative(scores, scale_by_std=std).flatten()[:, None]
    losses = torch.where(mask, -advantages * torch.where(mask, logprobs, 0.0), 0.0).sum(1)
    return (losses / (limit if divisor is None else divisor)).mean()


dr_grpo_loss = Exercise(
    "dr_grpo_loss",
    ("logprobs", "group_scores", "mask", "max_tokens"),
    _dr_case,
    _dr,
    {
        "the length bias is still there: each response is divided by its own length, so a long wrong one is blamed less a token.": lambda p, s, m, limit: (
            _dr(p, s, m, limit, divisor=m.sum(1))
        ),
        "the first half is missing: the advantage is still divided by the group's std.": lambda p, s, m, limit: (
            _dr(p, s, m, limit, std=True)
        ),
        "this is GRPO: both halves are missing.": lambda p, s, m, limit: _dr(
            p, s, m, limit, std=True, divisor=m.sum(1)
        ),
        "divided by the batch's tokens (DAPO's mean): a batch of short texts steps further. The divisor must not depend on the draw.": lambda p, s, m, limit: (
            _dr(p, s, m, limit, divisor=m.sum() / len(m))
        ),
        "divided by the longest response of this batch: another number in the next batch. Take max_tokens.": lambda p, s, m, limit: (
            _dr(p, s, m, limit, divisor=m.shape[1])
        ),
        "not divided by the number of responses.": lambda p, s, m, limit: (
            _dr(p, s, m, limit) * len(m)
        ),
        "the sign: this climbs down.": lambda p, s, m, limit: -_dr(p, s, m, limit),
    },
    differentiate=("logprobs",),
)


def _kept_case(g):
    scores = torch.randint(0, 2, (6, 4), generator=g).float()
    scores[0], scores[1], scores[2, 0], scores[2, 1] = 0.0, 1.0, 0.0, 1.0
    scores[3] = 0.1
    trembling = (torch.arange(6) > 3)[:, None]
    return scores + 1e-3 * torch.rand(6, 4, generator=g) * trembling, [0.0, 0.01][
        int(torch.rand((), generator=g) < 0.7)
    ]


kept_groups = Exercise(
    "kept_groups",
    ("group_scores", "spread"),
    _kept_case,
    lambda s, d: s.amax(1) - s.amin(1) > d,
    {
        "these are the groups to be dropped.": lambda s, d: s.amax(1) - s.amin(1) <= d,
        "the std is compared: it is smaller than the difference of best and worst, and of equal scores it may be a rounding error above 0.": lambda s, d: (
            s.std(1) > d
        ),
        "spread is ignored: scores that differ by a hair count as different.": lambda s, d: (
            s.amax(1) > s.amin(1)
        ),
        "a group is kept when somebody was right: one in which all were right teaches nothing either.": lambda s, d: (
            s.amax(1) > d
        ),
        "a group is kept when somebody was wrong: one in which all were wrong teaches nothing either.": lambda s, d: (
            s.amin(1) < 1 - d
        ),
    },
    edges=(
        (torch.tensor([[0.0, 0.01], [0.0, 0.0]]), 0.01),
        (torch.tensor([[0.9, 0.9, 0.9], [0.3, 0.1, 0.1]]), 0.0),
        (torch.tensor([[0.0, 0.012, 0.012]]), 0.01),
    ),
)
