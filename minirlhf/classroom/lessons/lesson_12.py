"""Lesson 12: the loss of direct preference optimisation, its gradient, and the reward that a policy is."""

import torch
from torch.nn.functional import logsigmoid

from minirlhf.classroom.exercise import Exercise
from minirlhf.core.preference import dpo


def _dpo_case(g):
    chosen, rejected, ref_chosen, ref_rejected = -30 * torch.rand(4, 5, generator=g)
    chosen[0], rejected[0] = -3000.0, 0.0  # far apart, and wrong
    return chosen, rejected, ref_chosen, ref_rejected, 0.05 + torch.rand((), generator=g).item()


def _dpo(chosen, rejected, ref_chosen, ref_rejected, beta):
    return dpo(chosen, rejected, ref_chosen, ref_rejected, beta=beta)


dpo_loss = Exercise(
    "dpo_loss",
    (
        "chosen_logprobs",
        "rejected_logprobs",
        "ref_chosen_logprobs",
        "ref_rejected_logprobs",
        "beta",
    ),
    _dpo_case,
    _dpo,
    {
        "log(sigmoid(x)) is minus infinity where x is very negative: use logsigmoid.": lambda c, r, rc, rr, b: (
            -torch.sigmoid(b * (c - rc - r + rr)).log()
        ),
        "chosen and rejected are exchanged: this makes rejected texts likelier.": lambda c, r, rc, rr, b: (
            _dpo(r, c, rr, rc, b)
        ),
        "the reference's log-ratio has the wrong sign: policy minus reference, for each text.": lambda c, r, rc, rr, b: (
            _dpo(c, r, -rc, -rr, b)
        ),
        "the reference is missing: without it the loss only pulls the two texts apart.": lambda c, r, rc, rr, b: (
            _dpo(c, r, 0 * rc, 0 * rr, b)
        ),
        "beta is missing.": lambda c, r, rc, rr, b: _dpo(c, r, rc, rr, 1.0),
        "beta multiplies the loss; it belongs inside the sigmoid.": lambda c, r, rc, rr, b: (
            b * _dpo(c, r, rc, rr, 1.0)
        ),
        "divided by beta; the implicit reward is beta times the log-ratio.": lambda c, r, rc, rr, b: (
            _dpo(c, r, rc, rr, 1 / b)
        ),
        "the sign: a loss is minus the log-probability.": lambda c, r, rc, rr, b: (
            -_dpo(c, r, rc, rr, b)
        ),
    },
    differentiate=("chosen_logprobs", "rejected_logprobs"),
)


def _weights_case(g):
    chosen, rejected, *refs = -20 * torch.rand(4, 5, generator=g)
    return chosen, rejected, *refs, 0.05 + torch.rand((), generator=g).item()


def _margin(c, r, rc, rr, b):
    return b * (c - rc - r + rr)


gradient_weights = Exercise(
    "gradient_weights",
    (
        "chosen_logprobs",
        "rejected_logprobs",
        "ref_chosen_logprobs",
        "ref_rejected_logprobs",
        "beta",
    ),
    _weights_case,
    lambda *x: x[-1] * torch.sigmoid(-_margin(*x)),
    {
        "beta is missing: the derivative of beta h by h.": lambda *x: torch.sigmoid(-_margin(*x)),
        "the sign inside the sigmoid: a pair whose order is already right would pull most.": lambda *x: (
            x[-1] * torch.sigmoid(_margin(*x))
        ),
        "this is p (1 - p), the sigmoid's own slope; the loss has a logarithm, which divides by p.": lambda *x: (
            x[-1] * torch.sigmoid(_margin(*x)) * torch.sigmoid(-_margin(*x))
        ),
        "the weight is a size; the sign is in which log-probability goes up.": lambda *x: (
            -x[-1] * torch.sigmoid(-_margin(*x))
        ),
        "the reference is missing: what counts is how far the policy has moved.": lambda c, r, rc, rr, b: (
            b * torch.sigmoid(-b * (c - r))
        ),
    },
)


def _invert_case(g):
    ref = torch.randn(6, generator=g).log_softmax(0)
    return (
        (ref + torch.randn(6, generator=g)).log_softmax(0),
        ref,
        0.2 + torch.rand((), generator=g).item(),
    )


def _centred(x, weights):
    return x - (weights * x).sum()


reward_from_policy = Exercise(
    "reward_from_policy",
    ("logprobs", "ref_logprobs", "beta"),
    _invert_case,
    lambda p, q, b: _centred(b * (p - q), q.exp()),
    {
        "beta divides where it must multiply: solve log pi = log ref + r / beta - log Z for r.": lambda p, q, b: (
            _centred((p - q) / b, q.exp())
        ),
        "the constant: subtract the mean under the reference, so that it is 0.": lambda p, q, b: (
            b * (p - q)
        ),
        "the plain mean was subtracted; the reference's mean weighs each text by its probability.": lambda p, q, b: (
            b * (p - q) - (b * (p - q)).mean()
        ),
        "the policy's mean was subtracted; it is the reference's that is to be 0.": lambda p, q, b: (
            _centred(b * (p - q), p.exp())
        ),
        "the sign: the policy likes what has a high reward.": lambda p, q, b: _centred(
            b * (q - p), q.exp()
        ),
        "the reference is missing: a text is likely in pi for being likely in ref, too.": lambda p, q, b: (
            _centred(b * p, q.exp())
        ),
    },
)


def _noisy_case(g):
    return (
        torch.rand(5, generator=g),
        0.3 * torch.rand((), generator=g).item(),
        0.05 + torch.rand((), generator=g).item(),
    )


def _said(p, e):
    return (1 - e) * p + e * (1 - p)


best_log_ratio = Exercise(
    "best_log_ratio",
    ("share", "flipped", "beta"),
    _noisy_case,
    lambda p, e, b: torch.logit(_said(p, e)) / b,
    {
        "beta multiplies where it must divide: beta h is the logit.": lambda p, e, b: (
            torch.logit(_said(p, e)) * b
        ),
        "the flips are missing: what the labels say is not what people prefer.": lambda p, e, b: (
            torch.logit(p) / b
        ),
        "this is the share that the labels give; the loss is least at its logit over beta.": lambda p, e, b: (
            _said(p, e)
        ),
        "only the wrong labels of the winner were counted: the loser's flips go the other way.": lambda p, e, b: (
            torch.logit((1 - e) * p) / b
        ),
        "the logarithm of the share, not of the odds.": lambda p, e, b: _said(p, e).log() / b,
    },
)


def _sums_case(g):
    mask = torch.arange(4) < torch.randint(1, 5, (6, 1), generator=g)
    mask[0], mask[3] = torch.arange(4) < 4, torch.arange(4) < 2  # a pair of unequal lengths
    new, ref = (torch.where(mask, -4 * torch.rand(6, 4, generator=g), torch.nan) for _ in range(2))
    return new, ref, mask, 0.1 + torch.rand((), generator=g).item()


def _pair_loss(new, ref, mask, beta, mean=False, right=True):
    whole = torch.where(mask, new, 0.0).sum(1) - torch.where(mask, ref, 0.0).sum(1)
    whole = whole / mask.sum(1) if mean else whole
    chosen, rejected = whole.chunk(2) if right else (whole[::2], whole[1::2])
    return -logsigmoid(beta * (chosen - rejected))


dpo_of_a_batch = Exercise(
    "dpo_of_a_batch",
    ("logprobs", "ref_logprobs", "mask", "beta"),
    _sums_case,
    _pair_loss,
    {
        "the mean over tokens instead of the sum: another loss, under which a long text's log-ratio counts less.": lambda *x: (
            _pair_loss(*x, mean=True)
        ),
        "rows are taken two by two; the first half is chosen, the second rejected.": lambda *x: (
            _pair_loss(*x, right=False)
        ),
        "chosen and rejected are exchanged.": lambda n, r, m, b: _pair_loss(
            n.roll(3, 0), r.roll(3, 0), m.roll(3, 0), b
        ),
        "one number for the batch: return each pair's loss.": lambda *x: (
            _pair_loss(*x).mean().expand(3)
        ),
    },
    differentiate=("logprobs",),
)
