"""Lesson 10: what models cost, what bounds a step, and two baselines that need no critic."""

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
        "every model is counted as if it were trained; a frozen one has no gradient and no optimiser.": lambda w, t, b: (
            _bytes(w, torch.ones_like(t), b)
        ),
        "only the weights: what is trained keeps a gradient, and AdamW two moments.": lambda w, t, b: (
            _bytes(w, torch.zeros_like(t), b)
        ),
        "AdamW keeps two moments, m and v; one is counted.": lambda w, t, b: _bytes(
            w, t, b, moments=4
        ),
        "the gradients are missing.": lambda w, t, b: _bytes(w, t, b, gradients=False),
        "with bfloat16 the optimiser keeps its moments in float32 and a float32 copy of what it trains: 12 bytes.": lambda w, t, b: (
            _bytes(w, t, b, copy=0)
        ),
        "a weight has 2 bytes with bf16 and 4 without.": lambda w, t, b: _bytes(w, t, True),
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
        "both times are added: a machine computes while it reads, the slower of the two is what it takes.": lambda *x: (
            _decode(*x, by=torch.add)
        ),
        "the faster of the two is taken; the step waits for the slower.": lambda *x: _decode(
            *x, by=torch.minimum
        ),
        "the weights are read once for each sequence: they are read once a step, for all sequences; that is why batches pay.": lambda b, w, f, s: (
            torch.maximum(2 * w * b / f, 2 * w * b / s)
        ),
        "only arithmetic: what is read takes time too.": lambda b, w, f, s: 2 * w * b / f,
        "only reading: with many sequences arithmetic is the slower.": lambda b, w, f, s: (
            2 * w / s * torch.ones(len(b))
        ),
        "a weight has 2 bytes in bfloat16, not 1.": lambda *x: _decode(*x, read=1.0),
        "a weight has 2 bytes in bfloat16, not 4.": lambda *x: _decode(*x, read=4.0),
        "a weight is 2 FLOP a sequence: a product and a sum.": lambda b, w, f, s: torch.maximum(
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
        "the mean includes the response itself: that is GRPO's centring, (G - 1)/G of the gradient.": lambda s: (
            s - s.mean(1, keepdim=True)
        ),
        "the baseline is the others' *sum*; divide it by G - 1.": lambda s: (
            s - (s.sum(1, keepdim=True) - s)
        ),
        "the others' sum is divided by G; there are G - 1 of them.": lambda s: (
            s - (s.sum(1, keepdim=True) - s) / s.shape[1]
        ),
        "the mean of all other responses of the batch: those of other prompts say nothing of this one.": lambda s: (
            s - (s.sum() - s) / (s.numel() - 1)
        ),
        "divided by the std as well: RLOO keeps reward units.": lambda s: (
            leave_one_out(s) / (s.std(1, keepdim=True) + 1e-4)
        ),
        "the groups run down the columns; a prompt is a row.": lambda s: (
            s - (s.sum(0) - s) / (len(s) - 1)
        ),
        "the sign: better than the others is positive.": lambda s: -leave_one_out(s),
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
        "the rewards themselves are whitened: a token is answered for by all that comes after it, sum first.": lambda r, m: (
            masked_whiten(torch.where(m, r, 0.0), m)
        ),
        "each text by its own mean and std; REINFORCE++ takes those of all tokens of the batch.": lambda r, m: (
            _by_text(_to_go(r, m), m)
        ),
        "padding is counted in mean and std; take them over real tokens.": lambda r, m: torch.where(
            m,
            (_to_go(r, m) - _to_go(r, m).mean())
            * (_to_go(r, m).var(unbiased=False) + 1e-8).rsqrt(),
            0.0,
        ),
        "padding must be 0 afterwards; here it got the negative mean.": lambda r, m: (
            (_to_go(r, m) - _to_go(r, m)[m].mean())
            * (_to_go(r, m)[m].var(unbiased=False) + 1e-8).rsqrt()
        ),
        "the variance divides by n here; `torch.std` divides by n - 1.": lambda r, m: masked_whiten(
            _to_go(r, m), m, unbiased=True
        ),
        "the mean is not taken off.": lambda r, m: masked_whiten(_to_go(r, m), m, shift_mean=False),
        "centred, but not divided by the std.": lambda r, m: torch.where(
            m, _to_go(r, m) - _to_go(r, m)[m].mean(), 0.0
        ),
        "every token has the text's whole sum: what came before a token is not its doing.": lambda r, m: (
            masked_whiten(_to_go(r, m)[:, :1].expand(m.shape), m)
        ),
    },
)
