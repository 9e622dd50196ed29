"""Exercises of lessons 11 and 11b: GRPO's loss, Dr. GRPO, GSPO, pass@k, groups to keep."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch

from minirlhf.classroom.exercise import Exercise, Result
from minirlhf.core.baselines import group_relative
from minirlhf.core.policy_gradient import sequence_log_ratio
from minirlhf.evaluate import pass_at_k as unbiased


def _group_case(g):
    scores = 2 * torch.randn(4, 3, generator=g)
    scores[1] = 0.9  # equal scores, whose mean is rounded
    return (scores,)


group_advantages = Exercise(
    "group_advantages",
    ("group_scores",),
    _group_case,
    group_relative,
    {
        "these are the mean and standard deviation of the whole batch. "
        "All responses to a hard prompt then look bad. "
        "A group is a row.": lambda s: (s - s.mean()) / (s.std() + 1e-4),
        "the mean and standard deviation run over the prompts (axis 0). "
        "The samples of one prompt are a row.": lambda s: (s - s.mean(0)) / (s.std(0) + 1e-4),
        "equal scores must give exactly 0. Their mean is rounded. "
        "The small difference that is left is divided by almost nothing.": lambda s: (
            (s - s.mean(1, keepdim=True)) / (s.std(1, keepdim=True) + 1e-4)
        ),
        "this is centred, but not divided by the standard deviation. That is Dr. "
        "GRPO's advantage. "
        "GRPO divides.": lambda s: group_relative(s, scale_by_std=False),
        "your standard deviation divides by G. `torch.std` divides by G - 1, "
        "and so does this exercise.": lambda s: group_relative(s, unbiased=False),
        "this divides by the variance. Divide by the standard deviation.": lambda s: (
            (s - s.mean(1, keepdim=True)) / (s.var(1, keepdim=True) + 1e-4)
        ),
        "the baseline is the mean of the *other* responses. "
        "GRPO's mean includes the response itself.": lambda s: (
            (s - (s.sum(1, keepdim=True) - s) / 2) / (s.std(1, keepdim=True) + 1e-4)
        ),
        "the mean is not subtracted. Every response to a prompt with "
        "high scores would be reinforced.": lambda s: s / (s.std(1, keepdim=True) + 1e-4),
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
        "1 - (1 - c/n)^k draws with replacement. It is too low wherever the "
        "true value is not 0 or 1.": lambda r, k: 1 - (1 - r.double().mean(1)) ** k,
        "this is pass@1, the share that is right.": lambda r, k: r.double().mean(1),
        "this asks whether any of all n samples is right. That is pass@n.": lambda r, k: r.any(
            1
        ).double(),
        "only the first k samples are used. This is right on average, but "
        "it throws away the other n - k.": lambda r, k: r[:, :k].any(1).double(),
        "this is the probability that all k are wrong.": lambda r, k: 1 - unbiased(r, k),
        "this is the probability that all k are right.": lambda r, k: 1 - unbiased(~r, k),
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
        "this is the ratio of the whole response. Its sum of log-ratios grows with the "
        "length: divide the sum by the length.": lambda n, o, a, m, e: _surrogate(
            sequence_log_ratio(n, o, m, by_length=False).exp(), a, e
        ),
        "this is the mean of the token ratios. "
        "GSPO uses exp of the mean *log*-ratio.": lambda n, o, a, m, e: _surrogate(
            (_by_token(n, o, m) * m).sum(1) / m.sum(1), a, e
        ),
        "this divides by the number of all positions in the row. "
        "Padding is not a token.": lambda n, o, a, m, e: _surrogate(
            (sequence_log_ratio(n, o, m, by_length=False) / m.shape[1]).exp(), a, e
        ),
        "this is PPO's loss: one ratio per "
        "token, averaged over the response.": lambda n, o, a, m, e: (
            (_surrogate(_by_token(n, o, m), a[:, None], e) * m).sum(1) / m.sum(1)
        ),
        "nothing is clipped.": lambda n, o, a, m, e: (
            -sequence_log_ratio(n, o, m, by_length=True).exp() * a
        ),
        "this uses only the clipped term. "
        "Take the smaller of the two objectives.": lambda n, o, a, m, e: (
            -sequence_log_ratio(n, o, m, by_length=True).exp().clamp(1 - e, 1 + e) * a
        ),
        "the sign is wrong. This is the objective, which is maximised. "
        "The loss is its negative.": lambda *x: -_gspo(*x),
        "the value is right, but it carries no "
        "gradient: something detaches `logprobs`.": lambda *x: _gspo(*x).detach(),
    },
    differentiate=("logprobs",),
)


def _grpo_case(g):
    mask, old, new = _tokens(g, 6, 4)
    return (
        *(torch.where(mask, x, torch.nan) for x in (new, old)),
        torch.randn(2, 3, generator=g),
        mask,
        0.05 + 0.2 * torch.rand((), generator=g).item(),
    )


def _per_token(new, old, scores, mask, e, *, loss=_surrogate, advantages=group_relative):
    a = advantages(scores).flatten()[:, None]
    return torch.where(mask, loss(_by_token(new, old, mask), a, e), 0.0)


def _padding_counts(new, old, scores, mask, e):
    """The losses if only the log-probabilities are masked: padding has ratio 1 and loss -A."""
    return _surrogate(_by_token(new, old, mask), group_relative(scores).flatten()[:, None], e)


def _grpo(new, old, scores, mask, e, **kinds):
    return (_per_token(new, old, scores, mask, e, **kinds).sum(1) / mask.sum(1)).mean()


grpo_loss = Exercise(
    "grpo_loss",
    ("logprobs", "old_logprobs", "group_scores", "mask", "eps"),
    _grpo_case,
    _grpo,
    {
        "this is the mean over all tokens of the batch. GRPO takes the mean over the "
        "tokens of each response first, then the mean over the responses.": lambda *x: (
            _per_token(*x).sum() / x[3].sum()
        ),
        "the mean over tokens also counts the padding. Divide by the number of real "
        "tokens of each response.": lambda *x: _per_token(*x).mean(),
        "padding counts. With its log-probabilities set to 0, its ratio is 1 and its loss is -A. "
        "Set the losses at padding to 0, too.": lambda *x: (
            _padding_counts(*x).sum(1) / x[3].sum(1)
        ).mean(),
        "padding counts twice: its ratio is 1 and its loss -A, and the mean runs over all "
        "positions. Set its losses to 0, and divide by the number of real tokens of "
        "each response.": lambda *x: _padding_counts(*x).mean(),
        "padding counts: its ratio is 1 and its loss is -A. And the mean runs over all tokens of "
        "the batch. GRPO takes the mean of each response first.": lambda *x: (
            _padding_counts(*x).sum() / x[3].sum()
        ),
        "the losses of a response are added up. GRPO takes their mean.": lambda *x: (
            _per_token(*x).sum(1).mean()
        ),
        "the losses of the responses are added up. GRPO takes their mean.": lambda *x: (
            _grpo(*x) * len(x[3])
        ),
        "the advantages are not divided by the standard deviation of the group.": lambda *x: _grpo(
            *x, advantages=lambda s: group_relative(s, scale_by_std=False)
        ),
        "your standard deviation divides by G. `torch.std` divides by G - 1.": lambda *x: _grpo(
            *x, advantages=lambda s: group_relative(s, unbiased=False)
        ),
        "these are the mean and standard deviation of the whole batch. A group is a row of "
        "`group_scores`.": lambda *x: _grpo(
            *x, advantages=lambda s: (s - s.mean()) / (s.std() + 1e-4)
        ),
        "the 0.0001 is missing that GRPO adds to the standard deviation.": lambda *x: _grpo(
            *x, advantages=lambda s: (s - s.mean(1, keepdim=True)) / s.std(1, keepdim=True)
        ),
        "the advantages are in the wrong order: the responses to one prompt stand side by side. "
        "`flatten()` of (N, G) gives that order.": lambda *x: _grpo(
            *x, advantages=lambda s: group_relative(s).T
        ),
        "these are the scores, not the advantages.": lambda *x: _grpo(*x, advantages=lambda s: s),
        "nothing is clipped.": lambda *x: _grpo(*x, loss=lambda r, a, e: -r * a),
        "this uses only the clipped term. Take the smaller of the two objectives.": lambda *x: (
            _grpo(*x, loss=lambda r, a, e: -r.clamp(1 - e, 1 + e) * a)
        ),
        "this takes the larger of the two objectives. Take the smaller one: a maximum of two "
        "losses, or a minimum of two objectives.": lambda *x: _grpo(
            *x, loss=lambda r, a, e: -torch.maximum(r * a, r.clamp(1 - e, 1 + e) * a)
        ),
        "the sign is wrong. This is the objective, which is maximised. "
        "The loss is its negative.": lambda *x: -_grpo(*x),
        "this is one ratio per response. GRPO has one per token.": lambda n, o, s, m, e: _gspo(
            n, o, group_relative(s).flatten(), m, e
        ).mean(),
        "the value is right, but it carries no "
        "gradient: something detaches `logprobs`.": lambda *x: _grpo(*x).detach(),
    },
    differentiate=("logprobs",),
)


@dataclass(frozen=True)
class UpToAConstant(Exercise):
    """An exercise in which any positive constant times the reference is right, too."""

    def __call__(self, function: Callable, *, seed: int | None = None) -> Result:
        """Check a function; and if it fails, the function times the constant that fits one case."""
        result = super().__call__(function, seed=seed)
        case = self.case(torch.Generator().manual_seed(0))
        try:
            constant = float(self.reference(*case) / function(*copy.deepcopy(case)))
        except Exception:  # the result says what the function raised or returned
            return result
        scaled = super().__call__(lambda *x: constant * function(*x), seed=seed)
        return scaled if scaled and constant > 0 else result


def _dr_case(g):
    groups, width = (int(torch.randint(low, low + 3, (), generator=g)) for low in (2, 3))
    mask, _, new = _tokens(g, 3 * groups, width)
    return torch.where(mask, new, torch.nan), torch.randn(groups, 3, generator=g), mask


def _dr(logprobs, scores, mask, *, std=False, divisor=6):
    advantages = group_relative(scores, scale_by_std=std).flatten()[:, None]
    losses = torch.where(mask, -advantages * torch.where(mask, logprobs, 0.0), 0.0).sum(1)
    return (losses / divisor).mean()


def _mean_length_of_group(scores, mask, *, others=False):
    """For each response, the mean length of its group; or that of the other responses in it."""
    lengths = mask.sum(1).view(scores.shape).float()
    size, total = scores.shape[1], lengths.sum(1, keepdim=True)
    means = (total - lengths) / (size - 1) if others else (total / size).expand(scores.shape)
    return means.flatten()


colleagues_loss = UpToAConstant(
    "colleagues_loss",
    ("logprobs", "group_scores", "mask"),
    _dr_case,
    _dr,
    {
        "the length bias is still there. On paper, take two wrong responses, of one token and of "
        "four. How much does a token of each count in the loss?": lambda p, s, m: _dr(
            p, s, m, divisor=m.sum(1)
        ),
        "a length bias is left. On paper, take a group of three with the scores 1, 0, 0. One wrong "
        "response has one token, and then four. By what is its blame divided each "
        "time?": lambda p, s, m: _dr(p, s, m, divisor=_mean_length_of_group(s, m)),
        "length is not pulled any more. But the mean length of the other responses differs from "
        "group to group, so prompts with short responses count for more.": lambda p, s, m: _dr(
            p, s, m, divisor=_mean_length_of_group(s, m, others=True)
        ),
        "the advantage is divided by the group's standard deviation. The colleague's loss "
        "does not do that.": lambda p, s, m: _dr(p, s, m, std=True),
        "this is GRPO: it divides by the standard deviation and by the response's own "
        "length.": lambda p, s, m: _dr(p, s, m, std=True, divisor=m.sum(1)),
        "this divides by the number of tokens in the batch. "
        "A batch of short responses then takes a larger step. "
        "The divisor must not depend on the samples.": lambda p, s, m: _dr(
            p, s, m, divisor=m.sum() / len(m)
        ),
        "this divides by the longest response of this "
        "batch, which is another number in the next batch.": lambda p, s, m: _dr(
            p, s, m, divisor=m.shape[1]
        ),
        "this is not divided by the number of responses.": lambda p, s, m: _dr(p, s, m) * len(m),
        "the length bias is gone. But all losses are added up: divide by the number of "
        "responses, so that the step does not grow with it.": lambda p, s, m: (
            _dr(p, s, m, divisor=1) * len(m)
        ),
        "the sign is wrong: this makes the expected reward smaller.": lambda p, s, m: -_dr(p, s, m),
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
        "these are the groups to drop. Return the groups to keep.": lambda s, d: (
            s.amax(1) - s.amin(1) <= d
        ),
        "this compares the standard deviation. It is smaller than the difference between best and "
        "worst, and for equal scores rounding can put it above 0.": lambda s, d: s.std(1) > d,
        "`spread` is ignored. Scores that differ by a tiny "
        "amount count as different.": lambda s, d: s.amax(1) > s.amin(1),
        "a group is kept if any response is right. "
        "A group in which all are right teaches nothing either.": lambda s, d: s.amax(1) > d,
        "a group is kept if any response is wrong. "
        "A group in which all are wrong teaches nothing either.": lambda s, d: s.amin(1) < 1 - d,
    },
    edges=(
        (torch.tensor([[0.0, 0.01], [0.0, 0.0]]), 0.01),
        (torch.tensor([[0.9, 0.9, 0.9], [0.3, 0.1, 0.1]]), 0.0),
        (torch.tensor([[0.0, 0.012, 0.012]]), 0.01),
    ),
)
