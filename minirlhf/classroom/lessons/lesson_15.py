"""Exercises of lesson 15: a response's log-ratio and mask, the luck of a tool's result."""

import torch

from minirlhf.classroom.exercise import Exercise


def _turns_case(g):
    chosen = torch.rand(4, 7, generator=g) < 0.6
    chosen[:, 0], chosen[0, 3], chosen[1, -1] = True, False, True
    logprobs, ref_logprobs = -3 * torch.rand(2, 4, 7, generator=g)
    return logprobs, ref_logprobs, chosen


def _sum(x, mask):
    return torch.where(mask, x, 0.0).sum(1)


def _turn_ratio(p, q, m):
    return _sum(p, m) - _sum(q, m)


def _shifted(m):
    return torch.cat([torch.zeros_like(m[:, :1]), m[:, :-1]], 1)


turn_log_ratio = Exercise(
    "turn_log_ratio",
    ("logprobs", "ref_logprobs", "action_mask"),
    _turns_case,
    _turn_ratio,
    {
        "the mean over the tokens was taken. DPO takes the sum.": lambda p, q, m: (
            _turn_ratio(p, q, m) / m.sum(1)
        ),
        "the sign is wrong. Take policy minus reference.": lambda p, q, m: -_turn_ratio(p, q, m),
        "the reference is missing.": lambda p, q, m: _sum(p, m),
        "the sum goes over the tokens of all responses. "
        "Each response has its own.": lambda p, q, m: _turn_ratio(p, q, m).sum().expand(len(p)),
        "the mask is shifted by one token. "
        "It is true at the tokens that the policy chose, and these columns are their own.": (
            lambda p, q, m: _turn_ratio(p.nan_to_num(), q.nan_to_num(), _shifted(m))
        ),
        "the mask is inverted. It is true at the policy's own tokens.": lambda p, q, m: _turn_ratio(
            p.nan_to_num(), q.nan_to_num(), ~m
        ),
    },
    differentiate=("logprobs",),
    edges=(
        (
            torch.tensor([[-1.0, torch.nan, -2.0], [-0.5, -0.5, torch.nan]]),
            torch.tensor([[-1.5, torch.nan, -1.0], [-0.5, -2.5, torch.nan]]),
            torch.tensor([[True, False, True], [True, True, False]]),
        ),
    ),
)


def _world_case(g):
    tool = torch.rand(3, 2, generator=g).softmax(-1)
    ref_second = torch.randn(3, 2, 2, generator=g).softmax(-1)
    beta = 0.2 + torch.rand((), generator=g).item()
    return tool, 2 * torch.randn(3, 2, 2, generator=g), ref_second, beta


def _value(r, ref, b):
    return b * (ref.log() + r / b).logsumexp(-1)


def _luck(tool, r, ref, b):
    values = _value(r, ref, b)
    return values - (tool * values).sum(1, keepdim=True)


luck_of_a_result = Exercise(
    "luck_of_a_result",
    ("tool", "rewards", "ref_second", "beta"),
    _world_case,
    _luck,
    {
        "exp(r / beta) overflows where r / beta is large. Use logsumexp.": lambda t, r, ref, b: (
            lambda v: v - (t * v).sum(1, keepdim=True)
        )(b * (ref * (r / b).exp()).sum(-1).log()),
        "V is the largest reward. The best policy pays a KL penalty, "
        "so V is the soft value of section 4.": lambda t, r, ref, b: (
            r.amax(-1) - (t * r.amax(-1)).sum(1, keepdim=True)
        ),
        "the reference is missing in V. "
        "Weight each second action by its probability.": lambda t, r, ref, b: (
            lambda v: v - (t * v).sum(1, keepdim=True)
        )(b * (r / b).logsumexp(-1)),
        "V is the mean reward under the reference. "
        "It belongs to a policy that never learns.": lambda t, r, ref, b: (
            lambda v: v - (t * v).sum(1, keepdim=True)
        )((ref * r).sum(-1)),
        "Q is the plain mean of V. Weight each result "
        "by its probability under the tool.": lambda t, r, ref, b: (
            _value(r, ref, b) - _value(r, ref, b).mean(1, keepdim=True)
        ),
        "Q is a soft maximum over the results. The policy does not choose the result, "
        "so Q is their mean.": lambda t, r, ref, b: (
            _value(r, ref, b) - b * (t.log() + _value(r, ref, b) / b).logsumexp(1, keepdim=True)
        ),
        "the sign is wrong: a good result is good luck, above 0.": lambda t, r, ref, b: (
            -_luck(t, r, ref, b)
        ),
        "these are the values V of the results. "
        "Subtract the Q of the first action.": lambda t, r, ref, b: _value(r, ref, b),
    },
    edges=(
        (
            torch.tensor([[0.8, 0.2], [1.0, 0.0]]),
            torch.tensor([[[1.0, 0.0], [-1.0, 0.0]], [[0.9, -0.1], [-1.1, -0.1]]]),
            torch.full((2, 2, 2), 0.5),
            0.2,
        ),
        (
            torch.tensor([[0.5, 0.5]]),
            torch.tensor([[[300.0, 0.0], [-300.0, 0.0]]]),
            torch.full((1, 2, 2), 0.5),
            0.5,
        ),
    ),
    sizes="V has the shape (F, O), and Q one number for each call. "
    "Keep it as (F, 1): sum over dimension 1 with keepdim=True.",
)


def _authors_case(g):
    by_policy = torch.rand(4, 8, generator=g) < 0.6
    by_policy[0, :3] = torch.tensor([True, False, True])
    lengths = torch.randint(4, 9, (4,), generator=g)
    lengths[1], by_policy[1, 5:] = 5, True  # padding that the mask must leave out
    return by_policy, torch.arange(8) < lengths[:, None]


mask_of = Exercise(
    "mask_of",
    ("by_policy", "response_mask"),
    _authors_case,
    lambda own, real: own & real,
    {
        "the mask is shifted to the right. "
        "Compare the first token of a response with its column.": lambda own, real: (
            _shifted(own) & real
        ),
        "the mask is shifted to the left. "
        "Compare the last token of a response with its column.": lambda own, real: (
            torch.cat([own[:, 1:], torch.zeros_like(own[:, :1])], 1) & real
        ),
        "the mask is inverted. It is true at the policy's own tokens.": lambda own, real: (
            ~own & real
        ),
        "padding counts. It is no token of the response.": lambda own, real: own.clone(),
    },
    edges=(
        (  # [ 7 ] { 7 } 7 EOS
            torch.tensor([[True, True, True, False, False, False, True, True]]),
            torch.ones(1, 8, dtype=torch.bool),
        ),
    ),
)
