"""Exercises of lesson 10: memory, a layer with an adapter, a leave-one-out baseline."""

import torch

from minirlhf.classroom.exercise import Exercise

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
        "only the two moments are added to a trained weight. It also has a gradient, "
        "and with bfloat16 a copy in float32.": lambda w, t, b: _bytes(
            w, t, b, copy=0, gradients=False
        ),
        "with bfloat16, 2 bytes per trained weight are missing. Weight and gradient take 2 bytes "
        "each, and AdamW 12.": lambda w, t, b: (w * ((2 if b else 4) + 12 * t)).sum(),
        "with bfloat16, 4 bytes per trained weight are missing. AdamW keeps both moments "
        "and a copy of the weight in float32: 12 bytes.": lambda w, t, b: _bytes(w, t, b, copy=0),
        "a weight has 2 bytes with bf16 and 4 bytes without it.": lambda w, t, b: _bytes(
            w, t, True
        ),
        "only the trained models are counted. The others need memory "
        "for their weights.": lambda w, t, b: (w * t * 16).sum(),
    },
    edges=(
        (torch.tensor([7, 7, 7, 7]), torch.tensor([True, False, False, True]), False),
        (torch.tensor([7, 7, 7, 7]), torch.tensor([True, False, False, True]), True),
    ),
)


def _layer_case(g):
    sizes = ((3, 4), (5, 4), (2, 4), (5, 2))  # x, weight, down, up
    # whole numbers: their products are exact, in whatever order they are computed
    tensors = [torch.randint(-3, 4, size, generator=g).float() for size in sizes]
    on = torch.tensor([True, False, True])[torch.randperm(3, generator=g)]
    return *tensors, 2.0 * torch.randint(2, 7, (), generator=g).item(), on


def _layer(x, weight, down, up, alpha, on, *, scale=None):
    scale = alpha / len(down) if scale is None else scale
    return x @ weight.T + on[:, None] * scale * (x @ down.T @ up.T)


_SMALL = (
    torch.tensor([[1.0, 2.0], [1.0, 0.0]]),
    torch.tensor([[1.0, 1.0]]),
    torch.tensor([[1.0, 0.0], [0.0, 1.0]]),
    torch.tensor([[1.0, 2.0]]),
    4.0,
)

adapted_layer = Exercise(
    "adapted_layer",
    ("x", "weight", "down", "up", "alpha", "on"),
    _layer_case,
    _layer,
    {
        "the adapter is added to all rows. Where `on` is false, "
        "the row belongs to the reference.": lambda x, w, d, u, a, on: _layer(
            x, w, d, u, a, torch.ones_like(on)
        ),
        "the switch is the wrong way round: where `on` is true the "
        "adapter must be added.": lambda x, w, d, u, a, on: _layer(x, w, d, u, a, ~on),
        "the adapter is never added.": lambda x, w, d, u, a, on: _layer(
            x, w, d, u, a, torch.zeros_like(on)
        ),
        "all rows follow one switch. `on` has one for each row.": lambda x, w, d, u, a, on: _layer(
            x, w, d, u, a, on[:1].expand(len(on))
        ),
        "rows with the adapter on lack the frozen matrix. "
        "The adapter is added to it.": lambda x, w, d, u, a, on: (
            _layer(x, w, d, u, a, on) - on[:, None] * (x @ w.T)
        ),
        "the switch also turns the frozen matrix off. It belongs to the adapter "
        "alone.": lambda x, w, d, u, a, on: on[:, None] * _layer(x, w, d, u, a, on),
        "the adapter is multiplied by alpha. The factor is alpha divided by "
        "the rank.": lambda x, w, d, u, a, on: _layer(x, w, d, u, a, on, scale=a),
        "the adapter's factor, alpha divided by the rank, is missing.": lambda x, w, d, u, a, on: (
            _layer(x, w, d, u, a, on, scale=1.0)
        ),
        "alpha is divided by the width of the input. The rank is the number "
        "of rows of `down`.": lambda x, w, d, u, a, on: _layer(
            x, w, d, u, a, on, scale=a / d.shape[1]
        ),
        "alpha is divided by the width of the output. The rank is the number "
        "of rows of `down`.": lambda x, w, d, u, a, on: _layer(x, w, d, u, a, on, scale=a / len(u)),
        "alpha is divided by 16. The rank can be another number: that of the rows "
        "of `down`.": lambda x, w, d, u, a, on: _layer(x, w, d, u, a, on, scale=a / 16),
        "the factor is upside down. It is alpha divided by the rank.": lambda x, w, d, u, a, on: (
            _layer(x, w, d, u, a, on, scale=len(d) / a)
        ),
        "the factor also multiplies the frozen matrix. "
        "It belongs to the adapter alone.": lambda x, w, d, u, a, on: (
            (1 + on[:, None] * (a / len(d) - 1)) * _layer(x, w, d, u, a, on, scale=1.0)
        ),
    },
    edges=((*_SMALL, torch.tensor([True, False])), (*_SMALL, torch.tensor([False, False]))),
    sizes=(
        "x is (B, in), weight (out, in), down (k, in), up (out, k), on (B,). Broadcasting lines up "
        "the *last* dimensions: the B of `on` meets the `out` of (B, out)."
    ),
)


def _loo_case(g):
    prompt = torch.tensor([0, 0, 0, 1, 1, 2, 2, 3])  # the last prompt has one response only
    order = torch.randperm(8, generator=g)
    return 2 * torch.randn(8, generator=g), prompt[order]


def _loo(scores, prompt, *, alone=0.0, mine=False, total=False, whole=False):
    same = prompt[:, None] == prompt
    others = same if mine else same & ~torch.eye(len(scores), dtype=torch.bool)
    count = others.sum(1)
    divisor = 1 if total else count + whole
    baseline = torch.where(others, scores, 0.0).sum(1) / divisor
    return torch.where(same.sum(1) == 1, alone * scores, scores - baseline)


def _unguarded(scores, prompt):
    count = (prompt[:, None] == prompt).sum(1)
    total = torch.where(prompt[:, None] == prompt, scores, 0.0).sum(1)
    return scores - (total - scores) / (count - 1)


rloo_advantages = Exercise(
    "rloo_advantages",
    ("scores", "prompt"),
    _loo_case,
    _loo,
    {
        "the mean includes the response itself. That is GRPO's centring, which "
        "gives (G - 1)/G of the gradient.": lambda s, p: _loo(s, p, mine=True),
        "the baseline is the *sum* of the other scores. Divide it by their number.": lambda s, p: (
            _loo(s, p, total=True)
        ),
        "the sum of the other scores is divided by one too many. There are G - 1 "
        "others.": lambda s, p: _loo(s, p, whole=True),
        "this is the mean of all other responses in the batch. Responses to other prompts say "
        "nothing about this prompt.": lambda s, p: s - (s.sum() - s) / (len(s) - 1),
        "a response that is alone on its prompt has no others to compare with: 0 / 0 is NaN. "
        "Its advantage is 0.": _unguarded,
        "a response that is alone on its prompt keeps its whole score. "
        "Its advantage is 0.": lambda s, p: _loo(s, p, alone=1.0),
        "this compares neighbours. The responses to a prompt need not stand side by side: "
        "compare the prompts' numbers.": lambda s, p: s - (s.roll(1) + s.roll(-1)) / 2,
        "the sign is wrong. A response that is better than the "
        "others has a positive advantage.": lambda s, p: -_loo(s, p),
    },
    edges=((torch.tensor([4.0, 9.0, 2.0, 0.0]), torch.tensor([5, 1, 5, 5])),),
)
