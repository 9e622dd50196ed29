"""Exercises of lesson 12: the loss of direct preference optimisation (DPO), where it ends, and
the implicit reward."""

import torch
from torch.nn.functional import logsigmoid

from minirlhf.classroom.exercise import Exercise
from minirlhf.core.preference import dpo


def _dpo_case(g):
    chosen, rejected, ref_chosen, ref_rejected = -30 * torch.rand(4, 5, generator=g)
    chosen[0], rejected[0] = -3000.0, 0.0  # far apart, in the wrong order
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
        "log(sigmoid(x)) is minus infinity where x is very negative. "
        "Use logsigmoid.": lambda c, r, rc, rr, b: -torch.sigmoid(b * (c - rc - r + rr)).log(),
        "chosen and rejected are exchanged: this "
        "makes the rejected responses more likely.": lambda c, r, rc, rr, b: _dpo(r, c, rr, rc, b),
        "the reference has the wrong sign. Take policy minus reference, "
        "for each response.": lambda c, r, rc, rr, b: _dpo(c, r, -rc, -rr, b),
        "the reference is missing. "
        "Without it the loss only pushes the two responses apart.": lambda c, r, rc, rr, b: _dpo(
            c, r, 0 * rc, 0 * rr, b
        ),
        "beta is missing.": lambda c, r, rc, rr, b: _dpo(c, r, rc, rr, 1.0),
        "beta multiplies the loss. It belongs inside the sigmoid.": lambda c, r, rc, rr, b: (
            b * _dpo(c, r, rc, rr, 1.0)
        ),
        "this divides by beta. The implicit reward is "
        "beta times the log-ratio.": lambda c, r, rc, rr, b: _dpo(c, r, rc, rr, 1 / b),
        "the sign is wrong. A loss is minus the log-probability.": lambda c, r, rc, rr, b: (
            -_dpo(c, r, rc, rr, b)
        ),
    },
    differentiate=("chosen_logprobs", "rejected_logprobs"),
)


def _unseen_case(g):
    seen = torch.rand(6, generator=g) < 0.5
    seen[0], seen[1], seen[5] = True, True, False  # a pair, and a response without one
    beta = 0.3 + torch.rand((), generator=g).item()
    return torch.randn(6, generator=g).log_softmax(0), torch.randn(6, generator=g), seen, beta


def _moved(ref, change, seen):
    return (ref + torch.where(seen, change, 0.0)).softmax(0)


def _shared(ref, rewards, seen, beta):
    """The seen responses share out the probability that they had in the reference."""
    probs = torch.where(seen, ref + rewards / beta, -torch.inf).softmax(0)
    return torch.where(seen, probs * ref[seen].exp().sum(), ref.exp())


def _shared_overflows(ref, rewards, seen, beta):
    """The same with exp(r / beta), which can be infinite."""
    weight = ref.exp() * (rewards / beta).exp()
    return torch.where(seen, weight / weight[seen].sum() * ref[seen].exp().sum(), ref.exp())


optimum_of_pairs = Exercise(
    "optimum_of_pairs",
    ("ref_logprobs", "rewards", "seen", "beta"),
    _unseen_case,
    lambda p, r, s, b: _moved(p, (r - r[s].mean()) / b, s),
    {
        "this is the Gibbs policy. DPO has no pair with the other responses, so it never hears "
        "of their rewards.": lambda p, r, s, b: (p + r / b).softmax(0),
        "the sum of the seen logits has changed. Each pair raises one logit and lowers another by "
        "as much.": lambda p, r, s, b: _moved(p, r / b, s),
        "you subtracted the mean reward of all responses. Only the seen logits move, so it is "
        "their changes that add up to 0.": lambda p, r, s, b: _moved(p, (r - r.mean()) / b, s),
        "the unseen responses keep their logits, not their probabilities. All are divided by a "
        "new sum.": _shared,
        "the unseen responses keep their logits, not their probabilities. All are divided by a "
        "new sum. (And exp(r / beta) can be infinite: use softmax.)": _shared_overflows,
        "the unseen responses have lost everything. Their logits do not move, so they keep some "
        "probability.": lambda p, r, s, b: torch.where(s, p + r / b, -torch.inf).softmax(0),
        "beta multiplies the rewards, but it must divide them.": lambda p, r, s, b: _moved(
            p, (r - r[s].mean()) * b, s
        ),
        "these are logits. Return probabilities.": lambda p, r, s, b: (
            p + torch.where(s, (r - r[s].mean()) / b, 0.0)
        ),
    },
    edges=(
        # exp(r / beta) overflows
        (
            torch.tensor([0.5, 0.3, 0.2]).log(),
            torch.tensor([1.0, 0.0, 5.0]),
            torch.tensor([True, True, False]),
            0.002,
        ),
    ),
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
        "beta divides, but it must multiply. Solve log pi = log ref + "
        "r / beta - log Z for r.": lambda p, q, b: _centred((p - q) / b, q.exp()),
        "the constant is not fixed. Subtract the reward's mean under the "
        "reference, so that this mean becomes 0.": lambda p, q, b: b * (p - q),
        "you subtracted the plain mean. "
        "The mean under the reference weights each response by its probability.": lambda p, q, b: (
            b * (p - q) - (b * (p - q)).mean()
        ),
        "you subtracted the mean under the policy. "
        "The mean under the reference must be 0.": lambda p, q, b: _centred(b * (p - q), p.exp()),
        "the sign is wrong. The policy prefers responses with a high reward.": lambda p, q, b: (
            _centred(b * (q - p), q.exp())
        ),
        "the reference is missing. A response can be likely under pi because "
        "it is likely under the reference.": lambda p, q, b: _centred(b * p, q.exp()),
    },
)


def _ratios_case(g):
    chosen, rejected = 3 * torch.randn(2, 8, generator=g)
    chosen[:4] = torch.tensor([-1.0, 2.0, -3.0, 1.0])  # in the right order, with a fall; without;
    rejected[:4] = torch.tensor([-2.0, 1.0, -1.0, 4.0])  # in the wrong order, with a fall; without
    return chosen, rejected


def _among(right, counted, of=None):
    """The share of pairs in the right order, and the share of these that are counted."""
    of = right if of is None else of
    return torch.stack([right.float().mean(), (of & counted).float().sum() / of.float().sum()])


order_and_displacement = Exercise(
    "order_and_displacement",
    ("chosen", "rejected"),
    _ratios_case,
    lambda c, r: _among(c > r, c < 0),
    {
        "the second share is of all pairs. Take it among the pairs in the right "
        "order.": lambda c, r: torch.stack(
            [(c > r).float().mean(), ((c > r) & (c < 0)).float().mean()]
        ),
        "the second share counts pairs in the wrong order, too. Count the pairs in the right order "
        "only.": lambda c, r: _among(c > r, c < 0, torch.ones_like(c > r)),
        "the second share counts all pairs of which both have fallen. Count those in the right "
        "order only, and divide by the number in the right order.": lambda c, r: torch.stack(
            [(c > r).float().mean(), ((c < 0) & (r < 0)).float().mean()]
        ),
        "the chosen response need not have risen. A pair is in the right order if its margin is "
        "positive: which number must be larger than which?": lambda c, r: _among(c > 0, c < 0),
        "a pair can be in the right order although both responses have moved in the same "
        "direction.": lambda c, r: _among((c > 0) & (r < 0), c < 0),
        "the second share counts the rejected responses that have fallen. It asks for the chosen "
        "ones.": lambda c, r: _among(c > r, r < 0),
        "the second share counts the chosen responses that have become more likely. "
        "A log-ratio below 0 means less likely.": lambda c, r: _among(c > r, c > 0),
        "these are the pairs in the wrong order. The chosen response must have the larger "
        "log-ratio.": lambda c, r: _among(r > c, c < 0),
    },
)


def _sums_case(g):
    mask = torch.arange(4) < torch.randint(1, 5, (6, 1), generator=g)
    mask[0], mask[3] = torch.arange(4) < 4, torch.arange(4) < 2  # a pair of unequal lengths
    new, ref = (torch.where(mask, -4 * torch.rand(6, 4, generator=g), torch.nan) for _ in range(2))
    return new, ref, mask, 0.1 + torch.rand((), generator=g).item()


def _pair_margin(new, ref, mask, beta, *, mean=False, right=True):
    whole = torch.where(mask, new, 0.0).sum(1) - torch.where(mask, ref, 0.0).sum(1)
    whole = whole / mask.sum(1) if mean else whole
    chosen, rejected = whole.chunk(2) if right else (whole[::2], whole[1::2])
    return beta * (chosen - rejected)


def _pair_loss(*case, **wrong):
    return -logsigmoid(_pair_margin(*case, **wrong))


dpo_of_a_batch = Exercise(
    "dpo_of_a_batch",
    ("logprobs", "ref_logprobs", "mask", "beta"),
    _sums_case,
    _pair_loss,
    {
        "log(sigmoid(x)) is minus infinity where x is very negative. Use logsigmoid.": lambda *x: (
            -torch.sigmoid(_pair_margin(*x)).log()
        ),
        "the bug is still there. On paper, take a response of two tokens with the "
        "log-probabilities -1 and -3. What is the log-probability of the response, "
        "and what is used?": lambda *x: _pair_loss(*x, mean=True),
        "you paired neighbouring rows. The first half of the rows is "
        "chosen, the second half is rejected.": lambda *x: _pair_loss(*x, right=False),
        "chosen and rejected are exchanged.": lambda n, r, m, b: _pair_loss(
            *(x.roll(len(x) // 2, 0) for x in (n, r, m)), b
        ),
        "this is one number for the batch. Return the loss of each pair.": lambda *x: (
            _pair_loss(*x).mean().expand(len(x[0]) // 2)
        ),
    },
    differentiate=("logprobs",),
    edges=(
        (
            torch.tensor([[-400.0], [-1.0]]),
            -torch.ones(2, 1),
            torch.ones(2, 1, dtype=torch.bool),
            1.0,
        ),
    ),
)
