"""Exercises of lessons 14 (who moves where, whose pairs, IPO) and 14b (equal KL, losses)."""

import torch
from torch.nn.functional import logsigmoid

from minirlhf.classroom.exercise import Exercise
from minirlhf.core.preference import ipo, orpo, simpo


def _runs_case(g):
    curve_kl = (0.5 + 2 * torch.rand(4, generator=g)).cumsum(0)
    kl = curve_kl[0] + (curve_kl[-1] - curve_kl[0]) * torch.rand(5, generator=g)
    kl[3], kl[4] = curve_kl[0] / 2, curve_kl[-1] * 2  # beyond both ends
    return kl, torch.rand(5, generator=g), curve_kl, torch.rand(4, generator=g).cumsum(0)


def _curve_at(x, xs, ys, *, level=True):
    """The curve's value at x, by straight lines; beyond its ends level, or straight on."""
    if level:
        x = x.clamp(xs[0], xs[-1])
    right = torch.searchsorted(xs, x).clamp(1, len(xs) - 1)
    way = (x - xs[right - 1]) / (xs[right] - xs[right - 1])
    return torch.lerp(ys[right - 1], ys[right], way)


def _wrong_way(x, xs, ys):
    x = x.clamp(xs[0], xs[-1])
    right = torch.searchsorted(xs, x).clamp(1, len(xs) - 1)
    way = (xs[right] - x) / (xs[right] - xs[right - 1])
    return torch.lerp(ys[right - 1], ys[right], way)


def _above(kl, gold, x, y):
    return gold - _curve_at(kl.log(), x.log(), y)


gold_above_curve = Exercise(
    "gold_above_curve",
    ("kl", "gold", "curve_kl", "curve_gold"),
    _runs_case,
    _above,
    {
        "the lines are straight in the KL itself. "
        "Take the logarithm of every KL first.": lambda k, g, x, y: g - _curve_at(k, x, y),
        "the sign is wrong: a run above the curve has a positive difference.": lambda k, g, x, y: (
            -_above(k, g, x, y)
        ),
        "this is the curve's gold at the KL of each run. "
        "Subtract it from the gold of the run.": lambda k, g, x, y: _curve_at(k.log(), x.log(), y),
        "you prolonged the last lines beyond the ends of the curve. "
        "There the curve stays level.": lambda k, g, x, y: (
            g - _curve_at(k.log(), x.log(), y, level=False)
        ),
        "you compared with the nearest point of the curve. Take the line between the two points "
        "on either side of the run.": lambda k, g, x, y: (
            g - y[(k.log()[:, None] - x.log()).abs().argmin(1)]
        ),
        "you compared with the point at the left of the run. Go from there towards the point at "
        "its right, as far as the run is.": lambda k, g, x, y: (
            g - y[(torch.searchsorted(x, k.clamp(x[0], x[-1])) - 1).clamp(min=0)]
        ),
        "the way is measured from the right point. Measure it from the left one, or exchange the "
        "two golds.": lambda k, g, x, y: g - _wrong_way(k.log(), x.log(), y),
    },
    edges=(
        (
            torch.tensor([1.0, 2.0, 4.0, 16.0]),  # three points of the curve, and half-way
            torch.tensor([0.0, 1.0, 1.0, 2.0]),
            torch.tensor([1.0, 4.0, 16.0]),
            torch.tensor([0.0, 1.0, 2.0]),
        ),
    ),
    sizes=(
        "For a run at an end of the curve or beyond, searchsorted gives 0 or K. "
        "Every run needs a point at its left and one at its right: clamp it to 1, ..., K - 1."
    ),
)


def _slopes_case(g):
    return (
        torch.randn(5, 3, generator=g),
        torch.randn(5, generator=g).log_softmax(0),
        *torch.randperm(5, generator=g)[:2].tolist(),
    )


def _slopes(x, p, c, r):
    return (x - p.exp() @ x) @ (x[c] - x[r])


slopes_of_a_pair = Exercise(
    "slopes_of_a_pair",
    ("features", "logprobs", "chosen", "rejected"),
    _slopes_case,
    _slopes,
    {
        "these are the slopes of the logits. A log-probability is a logit minus the logarithm "
        "of a sum, and this sum moves, too.": lambda x, p, c, r: x @ (x[c] - x[r]),
        "you subtracted the plain mean of the features. "
        "The mean under the policy weights each response by its probability.": lambda x, p, c, r: (
            (x - x.mean(0)) @ (x[c] - x[r])
        ),
        "the weights follow the chosen response alone. h also falls with the logit of the "
        "rejected response.": lambda x, p, c, r: (x - p.exp() @ x) @ x[c],
        "the sign is wrong: h falls in this direction.": lambda x, p, c, r: -_slopes(x, p, c, r),
        "the direction is the gradient of the chosen log-probability. "
        "Take the gradient of h.": lambda x, p, c, r: (x - p.exp() @ x) @ (x[c] - p.exp() @ x),
        "the mean weights the features by log-probabilities. "
        "Weight by probabilities.": lambda x, p, c, r: (x - p @ x) @ (x[c] - x[r]),
        "these are the slopes of the probabilities. "
        "Return those of their logarithms.": lambda x, p, c, r: p.exp() * _slopes(x, p, c, r),
    },
    edges=(
        (torch.eye(3), torch.tensor([0.5, 0.25, 0.25]).log(), 0, 1),
        (torch.tensor([[1.0], [-1.0], [4.0]]), torch.full((3,), 1 / 3).log(), 0, 1),
    ),
)


def _table_case(g):
    scores = 2 * torch.randn(5, generator=g)
    return (
        torch.randn(5, generator=g).softmax(0),
        torch.randn(5, generator=g),
        torch.sigmoid(scores[:, None] - scores),
        0.5 + torch.rand((), generator=g).item(),
    )


def _surprise(x, share, b):
    return torch.sigmoid(b * (x[:, None] - x)) - share


def _pairs(w, x, share, b):
    return 2 * b * w * (_surprise(x, share, b) @ w)


gradient_of_pairs = Exercise(
    "gradient_of_pairs",
    ("writer", "log_ratios", "share", "beta"),
    _table_case,
    _pairs,
    {
        "every pair counts the same here. A pair occurs as often as "
        "the writer writes both of its responses.": lambda w, x, s, b: _pairs(
            torch.full_like(w, 1 / len(w)), x, s, b
        ),
        "you weighted the partners only. Response k is in more pairs if "
        "the writer writes it more often.": lambda w, x, s, b: 2 * b * (_surprise(x, s, b) @ w),
        "you weighted response k only. "
        "Its partner also comes from the writer.": lambda w, x, s, b: (
            2 * b * w * _surprise(x, s, b).sum(1)
        ),
        "this is half of it. Either you counted response k as the first of a pair only, and not as "
        "the second. Or you counted one of the two labels only: j can also win, with the "
        "probability share[j, i].": lambda w, x, s, b: _pairs(w, x, s, b) / 2,
        "you counted only the labels that response k wins. If its partner wins, "
        "logit k has a gradient, too.": lambda w, x, s, b: (
            2 * b * w * ((s * (_surprise(x, s, b) + s - 1)) @ w)
        ),
        "this is the direction of descent. Return the gradient of the loss.": lambda w, x, s, b: (
            -_pairs(w, x, s, b)
        ),
        "a factor beta is missing: h stands in the loss as beta h.": lambda w, x, s, b: (
            _pairs(w, x, s, b) / b
        ),
        "beta is missing inside the sigmoid.": lambda w, x, s, b: (
            2 * b * w * (_surprise(x, s, 1.0) @ w)
        ),
        "you took the majority as the label. "
        "The judge prefers i to j only with the probability share[i, j].": lambda w, x, s, b: (
            _pairs(w, x, ((s > 0.5) + 0.5 * (s == 0.5)).to(s), b)
        ),
        "share[i, j] is the probability that i, the row, wins.": lambda w, x, s, b: _pairs(
            w, x, s.T, b
        ),
        "share is not used: the gradient of a pair depends on who wins it, "
        "and either response can win.": lambda w, x, s, b: _pairs(w, x, torch.full_like(s, 0.5), b),
    },
    edges=(
        (
            torch.tensor([0.5, 0.5, 0.0]),
            torch.zeros(3),
            torch.sigmoid(torch.tensor([1.0, 0.0, 2.0])[:, None] - torch.tensor([1.0, 0.0, 2.0])),
            1.0,
        ),
    ),
)


def _votes_case(g):
    share = torch.randint(0, 11, (6,), generator=g) / 10
    share[0], share[1] = 1.0, 0.7  # votes that agree, and votes that do not
    return 4 * torch.randn(6, generator=g), share, 0.05 + 0.2 * torch.rand((), generator=g).item()


def _ipo(h, share, beta):  # the target of h is 1 / (2 beta)
    for_a, for_b = (ipo(x, 0 * h, 0 * h, 0 * h, beta=beta) for x in (h, -h))
    return share * for_a + (1 - share) * for_b


ipo_of_votes = Exercise(
    "ipo_of_votes",
    ("h", "share", "beta"),
    _votes_case,
    _ipo,
    {
        "the bug is still there. On paper: beta = 0.1, h = 5, one vote for A and one for B. "
        "What is the loss of each vote, what is their mean, and what does your line give?": (
            lambda h, p, b: ((2 * p - 1) * h - 1 / (2 * b)) ** 2
        ),
        "it stops at the right place. But its value differs from the mean over the votes by a "
        "number that does not depend on h. Return the mean.": lambda h, p, b: (
            (h - (2 * p - 1) / (2 * b)) ** 2
        ),
        "you took the majority as the label. The votes of the minority count, too.": (
            lambda h, p, b: _ipo(h, (p > 0.5) + 0.5 * (p == 0.5), b)
        ),
        "the votes for B are missing.": lambda h, p, b: p * (h - 1 / (2 * b)) ** 2,
        "both terms are the loss of a vote for A. For a vote for B the sign of h changes, and the "
        "target stays.": lambda h, p, b: (h - 1 / (2 * b)) ** 2,
        "the two losses are added without weights. Weight each by its share of the votes.": (
            lambda h, p, b: 2 * _ipo(h, 0.5, b)
        ),
        "the weights are exchanged: share belongs to the votes for A.": lambda h, p, b: _ipo(
            h, 1 - p, b
        ),
        "the target is not 1 / (2 beta). In Python, 1 / 2 * beta is beta / 2.": lambda h, p, b: (
            _ipo(h, p, 1 / b)
        ),
        "the target is twice as far as that of section 4.": lambda h, p, b: _ipo(h, p, b / 2),
        "beta multiplies h here. It stops at the right place, but this is not IPO's loss: "
        "h stands in it alone.": lambda h, p, b: _ipo(b * h, p, 1.0),
        "this is one number for the batch. Return the loss of each pair.": lambda h, p, b: (
            _ipo(h, p, b).mean().expand_as(h)
        ),
    },
    differentiate=("h",),
    edges=((torch.tensor([5.0, 0.0]), torch.tensor([0.5, 0.0]), 0.1),),
)


def _sequences_case(g):
    mask = torch.arange(5) < torch.randint(1, 6, (8, 1), generator=g)
    mask[0], mask[4] = torch.arange(5) < 5, torch.arange(5) < 2  # a pair of unequal lengths
    return (
        torch.where(mask, -3 * torch.rand(8, 5, generator=g), torch.nan),
        mask,
        1 + torch.rand((), generator=g).item(),
        0.5,
    )


_PAIR_MASK = torch.tensor([[True, False], [True, True]])


def _means(x, mask, whole=False):
    sums = torch.where(mask, x, 0.0).sum(1)
    return (sums if whole else sums / mask.sum(1)).chunk(2)


simpo_loss = Exercise(
    "simpo_loss",
    ("logprobs", "mask", "beta", "margin"),
    _sequences_case,
    lambda x, m, b, c: simpo(*_means(x, m), beta=b, margin=c),
    {
        "log(sigmoid(x)) is minus infinity where x is very negative. "
        "Use logsigmoid.": lambda x, m, b, c: (
            -torch.sigmoid(b * (_means(x, m)[0] - _means(x, m)[1]) - c).log()
        ),
        "these are sums, not means. "
        "A longer response would get a lower reward because of its length.": lambda x, m, b, c: (
            simpo(*_means(x, m, True), beta=b, margin=c)
        ),
        "the mean includes the padding. Divide by the number of real tokens.": lambda x, m, b, c: (
            simpo(*(torch.where(m, x, 0.0).mean(1)).chunk(2), beta=b, margin=c)
        ),
        "the margin is added. "
        "It is what the difference must exceed: subtract it.": lambda x, m, b, c: (
            -logsigmoid(b * (_means(x, m)[0] - _means(x, m)[1]) + c)
        ),
        "the margin is multiplied by beta. Multiply m_c - m_r by beta first, then subtract it. "
        "(The authors' code takes the ratio of margin and beta instead.)": lambda x, m, b, c: simpo(
            *_means(x, m), beta=b, margin=b * c
        ),
        "the margin is missing.": lambda x, m, b, c: simpo(*_means(x, m), beta=b, margin=0.0),
        "chosen and rejected are exchanged.": lambda x, m, b, c: simpo(
            *_means(x, m)[::-1], beta=b, margin=c
        ),
        "the chosen responses come first, then the rejected ones. "
        "They do not alternate.": lambda x, m, b, c: simpo(
            *(lambda y: (y[::2], y[1::2]))(torch.cat(_means(x, m))), beta=b, margin=c
        ),
    },
    differentiate=("logprobs",),
    edges=((torch.tensor([[-400.0, torch.nan], [-1.0, -1.0]]), _PAIR_MASK, 2.0, 0.5),),
)


def _odds_case(g):
    chosen, rejected = -0.01 - 3 * torch.rand(2, 6, generator=g)
    return chosen, rejected, 0.1 + torch.rand((), generator=g).item()


def _odds(c, r, b):
    return orpo(c, r, beta=b)


def _log_not(x):
    return (-torch.expm1(x)).log()


orpo_loss = Exercise(
    "orpo_loss",
    ("chosen_mean_logprobs", "rejected_mean_logprobs", "beta"),
    _odds_case,
    _odds,
    {
        "this is the ratio of the probabilities. Odds are p / (1 - p).": lambda c, r, b: (
            -c - b * logsigmoid(c - r)
        ),
        "the first term is missing: the loss of imitating the chosen response.": lambda c, r, b: (
            _odds(c, r, b) + c
        ),
        "beta is inside the sigmoid. It multiplies the odds-ratio term.": lambda c, r, b: (
            -c - logsigmoid(b * (c - _log_not(c) - r + _log_not(r)))
        ),
        "chosen and rejected are exchanged in the odds ratio.": lambda c, r, b: (
            _odds(r, c, b) + r - c
        ),
        "log-odds are log p *minus* log (1 - p).": lambda c, r, b: (
            -c - b * logsigmoid(c + _log_not(c) - r - _log_not(r))
        ),
        "the bug is still there. On paper, take a mean log-probability of -1e-8. What is exp of it "
        "in float32, with about 7 digits? And 1 minus that?": lambda c, r, b: (
            -c - b * logsigmoid(c - (1 - c.exp()).log() - r + (1 - r.exp()).log())
        ),
        **{
            f"a floor of {e:g} makes the result finite, but its digits are wrong. "
            "Compute 1 - exp(x) without the subtraction.": lambda c, r, b, e=e: (
                -c
                - b
                * logsigmoid(
                    c - (1 - c.exp()).clamp(min=e).log() - r + (1 - r.exp()).clamp(min=e).log()
                )
            )
            for e in (1e-12, 1e-10, 1e-8)
        },
    },
    differentiate=("chosen_mean_logprobs", "rejected_mean_logprobs"),
    # In float32, 1 - exp(x) is a fifth too large for the first x, and 0 for the second.
    edges=tuple((torch.tensor([-30.0]), torch.tensor([x]), 1.0) for x in (-1e-7, -1e-8)),
)
