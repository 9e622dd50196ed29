"""Exercises of lesson 07: the Gibbs policy, the KL penalty in the reward, its full gradient, and a
penalty with the wrong reference policy."""

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
        "the probabilities do not sum to 1. "
        "Subtract log Z, the logsumexp of what you have.": lambda p, r, b: p + r / b,
        "beta multiplies the reward, but it must divide it. A large beta must keep the "
        "policy near the reference.": lambda p, r, b: (p + r * b).log_softmax(0),
        "the reference is missing. A response that the reference "
        "never writes cannot become likely.": lambda p, r, b: (r / b).log_softmax(0),
        "the sign is wrong: this makes bad responses likely.": lambda p, r, b: (
            p - r / b
        ).log_softmax(0),
        "these are probabilities. The exercise asks for their logarithms.": lambda p, r, b: _gibbs(
            p, r, b
        ).exp(),
        "`ref_logprobs` are logarithms already. "
        "The factor exp(r / beta) multiplies probabilities, "
        "so r / beta is added to their logarithms.": lambda p, r, b: (
            p * (r / b).exp()
        ).log_softmax(0),
    },
)


def _rollout_case(g):
    mask = torch.arange(4) < torch.randint(1, 5, (3, 1), generator=g)
    mask[0] = torch.tensor([True, True, False, False])  # at least one row with padding
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
    """The KL penalties, with each row's score added at its column."""
    return charges.scatter_add(1, column[:, None], scores[:, None])


kl_shaped_rewards = Exercise(
    "kl_shaped_rewards",
    ("scores", "old_logprobs", "ref_logprobs", "mask", "kl_coef"),
    _rollout_case,
    _shaped,
    {
        "the log-ratio is reversed: the policy comes first. "
        "This rewards the policy for leaving the reference.": lambda s, a, b, m, k: _put(
            k * _ratio(a, b, m), s, m.sum(1) - 1
        ),
        "the score is in the last column, which is padding in shorter rows. "
        "It belongs to the last real token.": lambda s, a, b, m, k: _put(
            -k * _ratio(a, b, m), s, m.sum(1) * 0 + m.shape[1] - 1
        ),
        "every token gets the score. "
        "The score is given once, at the last real token.": lambda s, a, b, m, k: torch.where(
            m, s[:, None] - k * _ratio(a, b, m), 0.0
        ),
        "at the last token the score replaces the KL penalty. "
        "That token gets both.": lambda s, a, b, m, k: (-k * _ratio(a, b, m)).scatter(
            1, m.sum(1, keepdim=True) - 1, s[:, None]
        ),
        "this is k3. "
        "It estimates the KL well, but as part of the reward it gives the wrong gradient. "
        "Use the log-ratio itself.": lambda s, a, b, m, k: _put(
            -k * (torch.expm1(-_ratio(a, b, m)) + _ratio(a, b, m)), s, m.sum(1) - 1
        ),
        "the KL penalty of the whole response is on its last token. "
        "Give each token its own penalty, so that "
        "each token is credited for its own choice.": lambda s, a, b, m, k: _put(
            torch.zeros_like(b), s - k * _ratio(a, b, m).sum(1), m.sum(1) - 1
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
        "this is the gradient of k2 per token, used as a loss. "
        "It weighs a token by its own log-ratio only. The log-ratios of the tokens "
        "that follow are missing.": lambda x, m: torch.where(m, x, 0.0),
        "this is right on average, but it has the noise of the past. "
        "The tokens before t are fixed when token t is drawn. "
        "Leave out their log-ratios.": lambda x, m: torch.where(
            m, torch.where(m, x, 0.0).sum(1, keepdim=True), 0.0
        ),
        "this sums from the left, over the past. "
        "Sum a token's own log-ratio and those after it.": lambda x, m: torch.where(
            m, torch.where(m, x, 0.0).cumsum(1), 0.0
        ),
        "a token's own log-ratio is missing. The sum starts at t, "
        "and t is included.": lambda x, m: _pull(x, m) - torch.where(m, x, 0.0),
        "the sign is wrong: this gives the gradient of minus the KL.": lambda x, m: -_pull(x, m),
        "padding is not 0 in the result. Mask the result as well.": lambda x, m: (
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
        "the bug is still there: the penalty compares with the policy that sampled. "
        "That policy follows the trained policy. "
        "Compare with the reference, which is fixed.": lambda s, new, old, ref, m, k: _shaped(
            s, new, old, m, k
        ),
        "now the log-ratio is reversed.": lambda s, new, old, ref, m, k: _shaped(s, ref, old, m, k),
        "rewards are fixed when the responses are sampled. "
        "Use the policy that sampled them (old), "
        "not the policy that is being trained.": lambda s, new, old, ref, m, k: _shaped(
            s, new, ref, m, k
        ),
    },
)
