"""Exercises of lesson 10: memory, the time of a decoding step, two critic-free baselines."""

import torch

from minirlhf.classroom.exercise import Exercise
from minirlhf.core.baselines import leave_one_out
from minirlhf.core.masking import masked_whiten
from minirlhf.core.returns import reward_to_go

NAMES = ("weights", "trained", "bf16")


def _bytes_case(g):
    weights = torch.randint(10, 1000, (4,), generator=g)  # actor, reference, reward model, critic
    trained = torch.tensor([True, False, False, True])
    return weights, trained[torch.randperm(4, generator=g)], bool(torch.rand((), generator=g) < 0.5)


def _bytes(weights, trained, bf16, *, moments=8, copy=4, gradients=True):
    each = 2 if bf16 else 4
    learning = each * gradients + moments + copy * bf16
    return (weights * (each + trained * learning)).sum()


model_bytes = Exercise(
    "model_bytes",
    NAMES,
    _bytes_case,
    _bytes,
    {
        "every model is counted as if it were trained. A frozen model has no gradient "
        "and no optimiser state.": lambda w, t, b: _bytes(w, torch.ones_like(t), b),
        "only the weights are counted. A trained model also has a gradient, "
        "and AdamW keeps two moments.": lambda w, t, b: _bytes(w, torch.zeros_like(t), b),
        "AdamW keeps two moments, m and v. You counted one.": lambda w, t, b: _bytes(
            w, t, b, moments=4
        ),
        "the gradients are missing.": lambda w, t, b: _bytes(w, t, b, gradients=False),
        "the float32 copy is missing. With bfloat16, AdamW keeps its moments "
        "and a copy of the weights it trains in "
        "float32: 12 bytes per weight.": lambda w, t, b: _bytes(w, t, b, copy=0),
        "a weight has 2 bytes with bf16 and 4 bytes without it.": lambda w, t, b: _bytes(
            w, t, True
        ),
    },
    edges=(
        (torch.tensor([7, 7, 7, 7]), torch.tensor([True, False, False, True]), False),
        (torch.tensor([7, 7, 7, 7]), torch.tensor([True, False, False, True]), True),
    ),
)


def _decode_case(g):
    weights, batch = 5 + 100 * torch.rand((), generator=g).item(), torch.tensor([1, 8, 64, 512])
    return (
        batch,
        weights,
        50 + 400 * torch.rand((), generator=g).item(),
        1 + 3 * torch.rand((), generator=g).item(),
    )


def _decode(batch, weights, flops, bandwidth, *, by=torch.maximum, read=2.0):
    return by(2 * weights * batch / flops, read * weights / bandwidth * torch.ones(len(batch)))


decode_step_seconds = Exercise(
    "decode_step_seconds",
    ("batch", "weights", "flop_per_second", "bytes_per_second"),
    _decode_case,
    _decode,
    {
        "the two times are added. A machine computes while it reads, so "
        "a step takes the longer of the two.": lambda *x: _decode(*x, by=torch.add),
        "this takes the shorter of the two times. "
        "The step must wait for the longer one.": lambda *x: _decode(*x, by=torch.minimum),
        "the weights are read once for each sequence. "
        "They are read once per step, for all sequences together. "
        "This is why larger batches are cheaper.": lambda b, w, f, s: torch.maximum(
            2 * w * b / f, 2 * w * b / s
        ),
        "only arithmetic is counted. Reading the weights takes time too.": lambda b, w, f, s: (
            2 * w * b / f
        ),
        "only reading is counted. With many sequences the "
        "arithmetic takes longer.": lambda b, w, f, s: 2 * w / s * torch.ones(len(b)),
        "a weight has 2 bytes in bfloat16, not 1.": lambda *x: _decode(*x, read=1.0),
        "a weight has 2 bytes in bfloat16, not 4.": lambda *x: _decode(*x, read=4.0),
        "each weight costs 2 FLOP per sequence: "
        "a multiplication and an addition.": lambda b, w, f, s: torch.maximum(
            w * b / f, 2 * w / s * torch.ones(len(b))
        ),
    },
    edges=((torch.tensor([1, 8, 64, 512]), 100.0, 100.0, 1.0),),
)


def _loo_case(g):
    return (2 * torch.randn(4, 3, generator=g),)


rloo_advantages = Exercise(
    "rloo_advantages",
    ("group_scores",),
    _loo_case,
    leave_one_out,
    {
        "the mean includes the response itself. That is GRPO's centring, which "
        "gives (G - 1)/G of the gradient.": lambda s: s - s.mean(1, keepdim=True),
        "the baseline is the *sum* of the other scores. Divide it by G - 1.": lambda s: (
            s - (s.sum(1, keepdim=True) - s)
        ),
        "the sum of the other scores is divided by G. There are G - 1 of them.": lambda s: (
            s - (s.sum(1, keepdim=True) - s) / s.shape[1]
        ),
        "this is the mean of all other responses in the batch. Responses to other prompts say "
        "nothing about this prompt.": lambda s: s - (s.sum() - s) / (s.numel() - 1),
        "this also divides by the standard deviation. "
        "RLOO keeps the unit of the reward.": lambda s: (
            leave_one_out(s) / (s.std(1, keepdim=True) + 1e-4)
        ),
        "the groups run down the columns. The responses to one prompt are a row.": lambda s: (
            s - (s.sum(0) - s) / (len(s) - 1)
        ),
        "the sign is wrong. A response that is better than the "
        "others has a positive advantage.": lambda s: -leave_one_out(s),
    },
)


def _plus_case(g):
    mask = torch.arange(5) < torch.randint(1, 6, (4, 1), generator=g)
    mask[0], mask[1] = torch.arange(5) < 2, torch.arange(5) < 5
    return torch.where(mask, torch.randn(4, 5, generator=g), torch.nan), mask


def _to_go(rewards, mask):
    return reward_to_go(torch.where(mask, rewards, 0.0), mask)


def _by_text(x, mask):
    rows = [
        torch.where(m, (r - r[m].mean()) * (r[m].var(unbiased=False) + 1e-8).rsqrt(), 0.0)
        for r, m in zip(x, mask, strict=True)
    ]
    return torch.stack(rows)


whitened_to_go = Exercise(
    "whitened_to_go",
    ("rewards", "mask"),
    _plus_case,
    lambda r, m: masked_whiten(_to_go(r, m), m),
    {
        "the rewards themselves are whitened. "
        "Sum first: a token is credited with its own reward and all later ones.": lambda r, m: (
            masked_whiten(torch.where(m, r, 0.0), m)
        ),
        "each response is whitened with its own mean and standard deviation. "
        "REINFORCE++ uses those of "
        "all tokens of the batch.": lambda r, m: _by_text(_to_go(r, m), m),
        "padding is counted in the mean and the standard deviation. "
        "Compute them over the real tokens.": lambda r, m: torch.where(
            m,
            (_to_go(r, m) - _to_go(r, m).mean())
            * (_to_go(r, m).var(unbiased=False) + 1e-8).rsqrt(),
            0.0,
        ),
        "padding must be 0 in the result. Here the mean was subtracted there too.": lambda r, m: (
            (_to_go(r, m) - _to_go(r, m)[m].mean())
            * (_to_go(r, m)[m].var(unbiased=False) + 1e-8).rsqrt()
        ),
        "the variance divides by n - 1, as in `torch.std`. Here it divides by n.": lambda r, m: (
            masked_whiten(_to_go(r, m), m, unbiased=True)
        ),
        "the mean is not subtracted.": lambda r, m: masked_whiten(
            _to_go(r, m), m, shift_mean=False
        ),
        "the result is centred, but not divided by the standard deviation.": lambda r, m: (
            torch.where(m, _to_go(r, m) - _to_go(r, m)[m].mean(), 0.0)
        ),
        "every token has the sum of the whole response. "
        "A token does not influence the rewards before it: leave them out.": lambda r, m: (
            masked_whiten(_to_go(r, m)[:, :1].expand(m.shape), m)
        ),
    },
)
