"""Exercises of lesson 07: the KL penalty in the reward, what a penalty in the loss leaves out, a
penalty with a bug, the Gibbs policy, and the coefficient that leads to a given KL."""

import torch

from minirlhf.classroom.exercise import Exercise
from minirlhf.core import kl
from minirlhf.core.returns import reward_to_go


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


def _put(penalties, scores, column):
    """The KL penalties, with each row's score added at its column."""
    return penalties.scatter_add(1, column[:, None], scores[:, None])


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


def _weights_case(g):
    mask = torch.arange(4) < torch.randint(2, 5, (3, 1), generator=g)
    mask[0] = torch.tensor([True, True, False, False])
    return torch.where(mask, torch.randn(3, 4, generator=g), torch.nan), mask


def _real(log_ratio, mask):
    return torch.where(mask, log_ratio, 0.0)


def _slope(log_ratio, mask):
    """What k3 in the loss multiplies the gradient of a token's log-probability with."""
    return -torch.expm1(-_real(log_ratio, mask))


def _k3(log_ratio, mask):
    """k3 of each token."""
    return torch.expm1(-_real(log_ratio, mask)) + _real(log_ratio, mask)


def _later(log_ratio, mask):
    """The sum of the log-ratios of the tokens after each token."""
    return reward_to_go(log_ratio, mask) - _real(log_ratio, mask)


missing_weights = Exercise(
    "missing_weights",
    ("log_ratio", "mask"),
    _weights_case,
    lambda x, m: reward_to_go(x, m) - _slope(x, m),
    {
        "these weights would be right without the library's term. "
        "Take off what the library already has at each token: "
        "the derivative of k3.": lambda x, m: reward_to_go(x, m),
        "this is what is missing beside k2. The derivative of k3 is not "
        "the log-ratio, so the token's own weight needs a repair, too.": _later,
        "this repairs the token's own weight. "
        "The tokens that follow are still missing.": lambda x, m: _real(x, m) - _slope(x, m),
        "this is a token's own log-ratio. The tokens that follow are missing, and the library's "
        "term already multiplies this token's gradient by something.": _real,
        "the sign is wrong. Write down: "
        "weight = what should stand there, minus what the library has.": lambda x, m: (
            _slope(x, m) - reward_to_go(x, m)
        ),
        "the library's term is added. It must be subtracted from "
        "what should stand there.": lambda x, m: reward_to_go(x, m) + _slope(x, m),
        "you subtract k3 itself. In the loss, "
        "its derivative multiplies the gradient.": lambda x, m: (
            reward_to_go(x, m) - torch.expm1(-_real(x, m)) - _real(x, m)
        ),
        "the derivative of k3 with respect to the log-ratio has a wrong sign inside: "
        "the derivative of exp(-x) is -exp(-x).": lambda x, m: (
            reward_to_go(x, m) - torch.where(m, 1 + torch.exp(-_real(x, m)), 0.0)
        ),
        "right on average, but this counts the tokens before t as well. They are fixed when token "
        "t is drawn, and only add noise. k1 in the reward does not count them.": (
            lambda x, m: torch.where(m, _real(x, m).sum(1, keepdim=True) - _slope(x, m), 0.0)
        ),
        "right on average: your weights are the second part of section 5's product rule, for k3. "
        "But the task asks for k1's number at every token. Your weights have more noise in the "
        "small world.": lambda x, m: reward_to_go(_k3(x, m), m),
        "right on average: your weights are the second part of section 5's product rule, for k3. "
        "But the task asks for k1's number at every token, and this counts the earlier tokens as "
        "well. They only add noise.": lambda x, m: torch.where(
            m, _k3(x, m).sum(1, keepdim=True), 0.0
        ),
        "right on average, but the 1 in the derivative of k3 is missing. A constant gives nothing "
        "on average, only noise. With it, both terms have k1's number.": (
            lambda x, m: torch.where(m, reward_to_go(x, m) + torch.exp(-_real(x, m)), 0.0)
        ),
        "this sums from the left, over the past. "
        "Sum a token's own log-ratio and those after it.": lambda x, m: torch.where(
            m, _real(x, m).cumsum(1) - _slope(x, m), 0.0
        ),
        "a token's own log-ratio is missing. "
        "The sum starts at t, and t is included.": lambda x, m: _later(x, m) - _slope(x, m),
    },
)


def _loss_case(g):
    mask = torch.arange(4) < torch.randint(2, 5, (3, 1), generator=g)
    mask[0] = torch.tensor([True, True, False, False])
    new, ref = -2 * torch.rand(2, 3, 4, generator=g)
    return torch.where(mask, new, torch.nan), ref, mask


def _weighted(weights, new, mask):
    """Each log-probability times its weight, summed over a response."""
    return (weights * torch.where(mask, new, 0.0)).sum(1)


def _all_tokens(new, ref, mask):
    """The log-ratio of the whole response, at each of its tokens."""
    return _ratio(new, ref, mask).sum(1, keepdim=True).expand_as(new)


penalty_loss = Exercise(
    "penalty_loss",
    ("logprobs", "ref_logprobs", "mask"),
    _loss_case,
    lambda new, ref, m: _weighted(reward_to_go(_ratio(new, ref, m), m).detach(), new, m),
    {
        "the bug is still there. On paper, take a response of one token: 50 % under the policy, "
        "25 % under the reference. What should multiply the gradient of its log-probability, and "
        "what does `backward` find?": (
            lambda new, ref, m: _weighted(reward_to_go(_ratio(new, ref, m), m), new, m)
        ),
        "you hold the wrong factor fixed. Section 5: which one is differentiated "
        "when a penalty stands in the reward?": lambda new, ref, m: _weighted(
            reward_to_go(_ratio(new, ref, m), m), new.detach(), m
        ),
        "the sign is wrong. The optimiser lowers the loss, so this drives the policy away from the "
        "reference. The value of the loss must not change, either.": lambda new, ref, m: (
            -_weighted(reward_to_go(_ratio(new, ref, m), m).detach(), new, m)
        ),
        "now nothing has a gradient. Hold only one factor fixed.": lambda new, ref, m: _weighted(
            reward_to_go(_ratio(new, ref, m), m), new, m
        ).detach(),
        "this is k1 in the loss. It has no gradient on average.": lambda new, ref, m: _ratio(
            new, ref, m
        ).sum(1),
        "this counts only the token's own log-ratio. "
        "The tokens that follow belong to its return.": lambda new, ref, m: _weighted(
            _ratio(new, ref, m).detach(), new, m
        ),
        "right on average, but this counts the earlier tokens, too. They only add noise. "
        "Keep the returns.": lambda new, ref, m: _weighted(
            _all_tokens(new, ref, m).detach(), new, m
        ),
        "the gradient is right on average, but the value of the loss has changed. Multiply each "
        "return by the log-probability, as she does.": lambda new, ref, m: _weighted(
            reward_to_go(_ratio(new, ref, m), m).detach(), new - ref, m
        ),
        "this is k2, token by token. The tokens that follow belong to a token's return, and the "
        "value of the loss must not change.": lambda new, ref, m: (
            _ratio(new, ref, m).square().sum(1) / 2
        ),
        "this is k2 of the whole response. Its gradient is right on average, but the value of the "
        "loss must not change. Keep the returns.": lambda new, ref, m: (
            _ratio(new, ref, m).sum(1).square() / 2
        ),
    },
    differentiate=("logprobs",),
)


def _gibbs_case(g):
    n = int(torch.randint(3, 7, (), generator=g))
    return (
        torch.randn(n, generator=g).log_softmax(0),
        2 * torch.randn(n, generator=g),
        0.3 + torch.rand((), generator=g).item(),
    )


def _gibbs(ref_logprobs, rewards, beta):
    return (ref_logprobs + rewards / beta).log_softmax(0)


def _log_of_shares(weights):
    return (weights / weights.sum()).log()


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
        "exp overflows for a large score. Stay with logarithms: "
        "log Z is a logsumexp.": lambda p, r, b: p + r / b - (p.exp() * (r / b).exp()).sum().log(),
        "right for small scores, but exp overflows for a score of 1,000, and infinity divided by "
        "infinity is NaN. Stay with logarithms to the end: log Z is a logsumexp.": (
            lambda p, r, b: _log_of_shares(p.exp() * (r / b).exp())
        ),
    },
    # in double precision: the rounding of single precision at 1,000 is seen in right answers
    edges=((torch.tensor([0.5, 0.5]).double().log(), torch.tensor([1000.0, 999.0]).double(), 1.0),),
)


def _found_case(g):
    n = int(torch.randint(3, 6, (), generator=g))
    ref = torch.randn(n, generator=g).double().log_softmax(0)
    rewards = torch.randn(n, generator=g).double()
    beta = 0.7 + 2 * torch.rand((), generator=g).item()
    return ref, rewards, _distance(ref, rewards, beta)


def _distance(ref, rewards, beta):
    """KL(Gibbs policy || reference)."""
    best = _gibbs(ref, rewards, beta)
    return (best.exp() * (best - ref)).sum().item()


def _distance_from_ref(ref, rewards, beta):
    """KL(reference || Gibbs policy)."""
    return (ref.exp() * (ref - _gibbs(ref, rewards, beta))).sum().item()


def _coefficient(ref, rewards, kl, distance=_distance):
    """The beta with this distance, which falls with beta, by halving the logarithm's interval."""
    low, high = 0.01, 100.0
    for _ in range(80):
        beta = (low * high) ** 0.5
        low, high = (beta, high) if distance(ref, rewards, beta) > kl else (low, beta)
    return torch.tensor(beta)


coefficient_for_kl = Exercise(
    "coefficient_for_kl",
    ("ref_logprobs", "rewards", "kl"),
    _found_case,
    _coefficient,
    {
        "the KL is the wrong way round. It is a mean over the responses of the policy, "
        "so its weights are those of the Gibbs policy.": lambda p, r, kl: _coefficient(
            p, r, kl, _distance_from_ref
        ),
        "this is 1 / beta. A large beta keeps the policy near the reference.": lambda p, r, kl: (
            1 / _coefficient(p, r, kl)
        ),
        "you halve towards the wrong end. If the KL is too large, "
        "beta must grow.": lambda p, r, kl: torch.tensor(0.01),
        "you halve towards the wrong end: if the KL is too small, "
        "beta must shrink.": lambda p, r, kl: torch.tensor(100.0),
    },
)
