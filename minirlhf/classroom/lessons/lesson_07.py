"""Lesson 07: the Gibbs policy, the leash in the reward, its whole pull, and a leash that is tied to the wrong post."""

import torch

from minirlhf.classroom.exercise import Exercise
from minirlhf.core import kl
from minirlhf.core.returns import reward_to_go


def _gibbs_case(g):
    n = int(torch.randint(3, 7, (), generator=g))
    return (
        torch.randn(n, generator=g).log_softmax(0),
        2 * torch.randn(n, generator=g),
        0.3 + torch.rand((), generator=g).item(),
    )


def _gibbs(ref_logprobs, rewards, beta):
    return (ref_logprobs + rewards / beta).log_softmax(0)


gibbs_logprobs = Exercise(
    "gibbs_logprobs",
    ("ref_logprobs", "rewards", "beta"),
    _gibbs_case,
    _gibbs,
    {
        "this does not sum to 1: subtract log Z, the logsumexp of what you have.": lambda p, r, b: (
            p + r / b
        ),
        "beta multiplies where it must divide: a high price of leaving must keep the policy near the reference.": lambda p, r, b: (
            (p + r * b).log_softmax(0)
        ),
        "the prior is missing: a text that the reference never writes cannot become likely.": lambda p, r, b: (
            (r / b).log_softmax(0)
        ),
        "the sign is turned: this makes bad texts likely.": lambda p, r, b: (p - r / b).log_softmax(
            0
        ),
        "these are probabilities; the exercise asks for their logarithms.": lambda p, r, b: _gibbs(
            p, r, b
        ).exp(),
        "ref_logprobs are logarithms already: tilting multiplies probabilities, so it adds to logarithms.": lambda p, r, b: (
            (p * (r / b).exp()).log_softmax(0)
        ),
    },
)


def _rollout_case(g):
    mask = torch.arange(4) < torch.randint(1, 5, (3, 1), generator=g)
    mask[0] = torch.tensor([True, True, False, False])  # one row with padding at least
    old, ref = -2 * torch.rand(2, 3, 4, generator=g)
    return (
        torch.randn(3, generator=g),
        torch.where(mask, old, torch.nan),
        ref,
        mask,
        0.1 + torch.rand((), generator=g).item(),
    )


def _shaped(scores, old, ref, mask, kl_coef):
    return kl.kl_shaped_rewards(scores, old, ref, mask, kl_coef=kl_coef)


def _ratio(old, ref, mask):
    return torch.where(mask, old - ref, 0.0)


def _put(charges, scores, column):
    """The charges with each row's score added at its column."""
    return charges.scatter_add(1, column[:, None], scores[:, None])


kl_shaped_rewards = Exercise(
    "kl_shaped_rewards",
    ("scores", "old_logprobs", "ref_logprobs", "mask", "kl_coef"),
    _rollout_case,
    _shaped,
    {
        "the log-ratio is reversed: the policy comes first; this pays for leaving the reference.": lambda s, a, b, m, k: (
            _put(k * _ratio(a, b, m), s, m.sum(1) - 1)
        ),
        "the score is at the last column; in shorter rows that is padding. It belongs to the last real token.": lambda s, a, b, m, k: (
            _put(-k * _ratio(a, b, m), s, m.sum(1) * 0 + m.shape[1] - 1)
        ),
        "every token gets the score; it is paid once, at the last real token.": lambda s, a, b, m, k: (
            torch.where(m, s[:, None] - k * _ratio(a, b, m), 0.0)
        ),
        "the score of the last token replaces its charge; it pays both.": lambda s, a, b, m, k: (
            -k * _ratio(a, b, m)
        ).scatter(1, m.sum(1, keepdim=True) - 1, s[:, None]),
        "this is k3; it is a good value, but in the reward it pulls the wrong way. Charge the log-ratio itself.": lambda s, a, b, m, k: (
            _put(-k * (torch.expm1(-_ratio(a, b, m)) + _ratio(a, b, m)), s, m.sum(1) - 1)
        ),
        "the charge of the whole text stands at its last token; charge each token its own, so that credit goes where it is due.": lambda s, a, b, m, k: (
            _put(torch.zeros_like(b), s - k * _ratio(a, b, m).sum(1), m.sum(1) - 1)
        ),
    },
)


def _pull_case(g):
    mask = torch.arange(4) < torch.randint(2, 5, (3, 1), generator=g)
    mask[0] = torch.tensor([True, True, False, False])
    return torch.where(mask, torch.randn(3, 4, generator=g), torch.nan), mask


def _pull(log_ratio, mask):
    return reward_to_go(log_ratio, mask)


kl_pull = Exercise(
    "kl_pull",
    ("log_ratio", "mask"),
    _pull_case,
    _pull,
    {
        "this is k2 per token as a loss: a token is charged for itself and not for where it leads.": lambda x, m: (
            torch.where(m, x, 0.0)
        ),
        "right on average, but with the noise of the past: what was written before a token is fixed when it is drawn; leave it out.": lambda x, m: (
            torch.where(m, torch.where(m, x, 0.0).sum(1, keepdim=True), 0.0)
        ),
        "this sums from the left: the past. A token answers for itself and what comes after.": lambda x, m: (
            torch.where(m, torch.where(m, x, 0.0).cumsum(1), 0.0)
        ),
        "a token's own charge is missing; the sum runs from t on, t included.": lambda x, m: (
            _pull(x, m) - torch.where(m, x, 0.0)
        ),
        "the sign is turned: this is the pull of minus KL.": lambda x, m: -_pull(x, m),
        "padding is not 0: it holds what the last sum was. Mask the result as well.": lambda x, m: (
            torch.where(m, x, 0.0).sum(1, keepdim=True)
            - torch.where(m, x, 0.0).cumsum(1)
            + torch.where(m, x, 0.0)
            + (~m).float()
        ),
    },
)


def _charged_case(g):
    scores, old, ref, mask, kl_coef = _rollout_case(g)
    new = torch.where(mask, old + 0.3 * torch.randn(3, 4, generator=g), torch.nan)
    return scores, new, old, ref, mask, kl_coef


charged_rewards = Exercise(
    "charged_rewards",
    ("scores", "logprobs", "old_logprobs", "ref_logprobs", "mask", "kl_coef"),
    _charged_case,
    lambda s, new, old, ref, m, k: _shaped(s, old, ref, m, k),
    {
        "still tied to the wrong post: the policy is charged for leaving the policy that sampled, which follows it; the reference stays.": lambda s, new, old, ref, m, k: (
            _shaped(s, new, old, m, k)
        ),
        "the log-ratio is reversed now.": lambda s, new, old, ref, m, k: _shaped(s, ref, old, m, k),
        "rewards are fixed when the texts are drawn: charge the policy that sampled them (old), not the one that learns.": lambda s, new, old, ref, m, k: (
            _shaped(s, new, ref, m, k)
        ),
    },
)
