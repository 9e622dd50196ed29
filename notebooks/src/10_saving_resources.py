# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 10 · Saving resources
#
# **The question.** PPO keeps four models: actor, reference, reward model, critic. What do they cost in memory and in time, on this laptop and at 70B? Which can share, shrink or go, and what does that cost in quality?
#
# **You need** lesson 09, the four models at work, with the words of 06 and 07 (ratio, clip, KL); section 5 uses the exact gradient of lesson 04. The names of section 4's tree are explained in lesson 11. 35 minutes to read, 70 for the exercises.
#
# **Predict.** Write numbers down before you read on.
#
# | | your number |
# |---|---|
# | Bytes for each weight that AdamW trains, all in | |
# | Four models of 70B in bfloat16: how many GPUs of 80 GB hold one PPO step? And without the critic? | |
# | How many sequences must be decoded together before an H100 computes, rather than waits for memory? | |
# | Actor and critic on one trunk: what does it do to the score? | |

# %%
# %matplotlib inline
import textwrap
import time
from dataclasses import replace

import torch
from IPython.display import display
from matplotlib.figure import Figure

from minirlhf.classroom import check
from minirlhf.classroom.claims import FAST, claim, load_results
from minirlhf.core.baselines import group_relative, leave_one_out
from minirlhf.core.exact import World
from minirlhf.core.rollout import Rollout
from minirlhf.evaluate import paired_difference
from minirlhf.experiments.practice import group_config, practice_problems, scoring
from minirlhf.loops.common import clipped_step, make_optimizer
from minirlhf.loops.config import KLConfig, OptimiserConfig
from minirlhf.loops.family import FAMILY
from minirlhf.loops.group import train_group
from minirlhf.models.adapters import reference_of, with_lora
from minirlhf.models.cost import (
    LLAMA_7B,
    LLAMA_70B,
    SMOLLM2_135M,
    TINY_REVIEWS,
    Plan,
    Shape,
    activation_bytes,
    decode_step,
    four_models,
    gradient_bytes,
    kv_cache_bytes,
    measured,
    optimiser_bytes,
    peak_bytes,
    weights_bytes,
)
from minirlhf.models.forward import policy_logprobs
from minirlhf.models.heads import SharedCritic
from minirlhf.models.load import load_policy
from minirlhf.models.roofline import (
    H100,
    decode_seconds,
    measure_machine,
    step_seconds,
    train_seconds,
)
from minirlhf.models.sampling import SamplingConfig, sample, sample_text
from minirlhf.runtime import set_threads
from minirlhf.show import COLOURS

set_threads()

# %% [markdown]
# ## 1. Memory, counted
#
# A weight that is only read has 4 bytes in float32, 2 in bfloat16. A weight that AdamW trains has more about it: its gradient, the two moments $m$ and $v$, and, when the weight itself is bfloat16, a float32 copy, because an update of a thousandth of the weight is below what bfloat16 can write:
#
# | | weight | gradient | $m$ | $v$ | copy | in all |
# |---|---|---|---|---|---|---|
# | float32 | 4 | 4 | 4 | 4 | - | **16** |
# | bfloat16 | 2 | 2 | 4 | 4 | 4 | **16** |
#
# Sixteen either way. Beside these there is what a pass leaves behind for the backward pass (the *activations*), the logits (a number for each word of the vocabulary at each place), and while sampling the keys and values of all layers, the *cache*: $2 \cdot L \cdot k$ numbers a token, with $L$ layers and $k$ = key-value heads times the width of a head.
#
# `models/cost.py` is that table as code. First, is it true? On the committed model, with the real tensors:

# %%
actor, tokenizer = load_policy("tiny-reviews-sft")
shape, learner = Shape.of(actor), load_policy("tiny-reviews-sft")[0]
B, P, R = 16, 12, 20
g = torch.Generator().manual_seed(0)
prompts, responses = (
    torch.randint(1, shape.vocab, (B, n), generator=g) for n in (P, R)
)
batch = Rollout(
    prompts, torch.ones(B, P, dtype=torch.bool), responses, torch.ones(B, R, dtype=torch.bool), torch.zeros(B, R)
)
optimizer = make_optimizer(learner, OptimiserConfig())
kept, _ = measured(lambda: policy_logprobs(learner, batch))
policy_logprobs(learner, batch).sum().backward()
grads = sum(p.grad.nbytes for p in learner.parameters())
clipped_step(learner, optimizer, 1.0)
moments = sum(
    x.nbytes for state in optimizer.state.values() for name, x in state.items() if name != "step"
)
ids = 8 * 2 * B * (P + R) + 12 * B * R  # the words' numbers, and the log-probabilities that are returned
rows = {
    "weights": (weights_bytes(shape.parameters), sum(p.nbytes for p in learner.parameters())),
    "gradients": (gradient_bytes(shape.parameters), grads),
    "optimiser": (optimiser_bytes(shape.parameters), moments),
    "activations": (activation_bytes(shape, B, P + R, response=R) + ids, kept),
}
print(f"tiny-reviews: {shape.parameters:,} parameters")
for name, (counted, found) in rows.items():
    print(f"{name:>12}: counted {counted:>12,}   measured {found:>12,} bytes")
    assert counted == found
assert shape == TINY_REVIEWS

# %% [markdown]
# To the byte, and the package's tests say the same of Llamas. So it may be asked about models that do not fit here. One PPO step: one response of 1024 tokens to each prompt of 512, 64 decoded together, one sequence at a time through the backward pass; reward model and critic as large as the actor; bfloat16:

# %%
plan = Plan(prompts=64, prompt_tokens=512, response_tokens=1024, bf16=True)
SAVED = {
    "PPO, four models": {},
    "critic on the actor's trunk": {"critic": "shared"},
    "no critic": {"critic": "none"},
    "no critic, a rule": {"critic": "none", "reward_model": False},
    "LoRA of rank 16": {"lora": 16},
    "LoRA, shared trunk": {"lora": 16, "critic": "shared"},
}
SHAPES = {"SmolLM2-135M": SMOLLM2_135M, "Llama 7B": LLAMA_7B, "Llama 70B": LLAMA_70B}
peak = {
    (name, size): peak_bytes(four_models(replace(plan, **given), model)) / 1e9
    for name, given in SAVED.items()
    for size, model in SHAPES.items()
}
print(f"{'GB at the peak':>28} " + " ".join(f"{size:>13}" for size in SHAPES) + "   H100s for 70B")
for name in SAVED:
    cards = -(-peak[name, "Llama 70B"] * 1e9 // (80 * 2**30))
    print(f"{name:>28} " + " ".join(f"{peak[name, size]:13.2f}" for size in SHAPES) + f" {cards:10.0f}")
table = four_models(plan, LLAMA_70B)
figure = Figure(figsize=(9, 3.4), dpi=110, layout="constrained")
left, right = figure.subplots(1, 2, width_ratios=(2, 3))
PARTS = ("weights", "gradients", "optimiser", "activations", "logits", "cache")
base = [0.0] * 4
for part, colour, hatch in zip(
    PARTS, (*COLOURS, "#666666", "#bbbbbb"), ("", "//", "", "..", "", "xx"), strict=False
):
    heights = [table[model][part] / 1e9 for model in table]
    left.bar(
        list(table), heights, bottom=base, color=colour, label=part, hatch=hatch, edgecolor="white"
    )
    base = [b + h for b, h in zip(base, heights, strict=True)]
left.set(ylabel="GB at 70B", title="who holds what")
left.tick_params(axis="x", labelsize=8)
left.legend(fontsize=7, frameon=False)
names = list(SAVED)[::-1]
right.barh(names, [peak[name, "Llama 70B"] for name in names], color=COLOURS[0])
for i, name in enumerate(names):
    right.text(
        peak[name, "Llama 70B"] + 20, i, f"{peak[name, 'Llama 70B']:.0f}", va="center", fontsize=8
    )
right.set(xlabel="GB at the peak, 70B", xlim=(0, 3000))
display(figure)

# %% [markdown]
# What is *trained* is what costs: a trained 70B model has 16 bytes a weight, a frozen one 2. So two of the four models hold nearly all. From 30 GPUs to 17 it is one step, whether the critic goes altogether or moves onto the actor's trunk (then it is a vector of 8,193 numbers); replacing the reward model by a rule
# saves as much as any frozen model, a GPU or two. With LoRA only the adapters are trained, and the reference is free: it is *the actor with its adapters switched off*.

# %%
big = {name: peak[name, "Llama 70B"] for name in SAVED}
assert 1.7 < big["PPO, four models"] / big["no critic"] < 1.8
assert abs(big["critic on the actor's trunk"] / big["no critic"] - 1) < 0.01
assert big["no critic"] / big["no critic, a rule"] < 1.12
assert big["PPO, four models"] / big["LoRA, shared trunk"] > 7
adapted = with_lora(load_policy("tiny-reviews-sft")[0], 16)
counted = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
below = reference_of(adapted)
assert below.model is adapted  # no second copy in memory
with torch.no_grad():
    for p in adapted.parameters():
        if p.requires_grad:
            p.add_(0.05)  # as if it had been trained
    off = policy_logprobs(below, batch)
    on = policy_logprobs(adapted, batch)
print(f"rank 16: {counted:,} of {shape.parameters:,} parameters are trained")
assert counted == shape.adapters(16)
with torch.no_grad():
    assert torch.allclose(off, policy_logprobs(load_policy("tiny-reviews-sft")[0], batch), atol=1e-5)
assert (on - off).abs().max() > 0.1
value_head = SharedCritic(actor)
assert sum(p.numel() for p in value_head.parameters()) == shape.width + 1

# %% [markdown]
# ## 2. Time, counted
#
# A forward pass takes 2 FLOP for each weight and token (a product and a sum), the backward pass twice as many: once for the inputs' gradients, once for the weights'. So training costs about $6N$ a token, and $2N$ for each model that only scores.
#
# Decoding is another matter. Each step writes one token a sequence, and must *read all weights* for it. A machine does arithmetic and reading at once and waits for the slower:
#
# $$ \text{seconds} = \max\Big( \frac{\text{FLOP}}{\text{FLOP a second}},\ \frac{\text{bytes}}{\text{bytes a second}} \Big) . $$
#
# This is the *roofline*. With $b$ sequences decoded together a bfloat16 weight is read once (2 bytes) and used $b$ times ($2b$ FLOP), so arithmetic takes over at $b$ = (FLOP a second) / (bytes a second), caches left aside. For an H100 with 989 TFLOP and 3.35 TB a second that is 295. Below it, a larger batch is free.
#
# Starting an operation costs time too: `block_seconds` is added for each transformer block of each pass. Does so crude a model predict this machine? We measure its two rates and that time, and ask it:

# %%
flop, size = decode_step(LLAMA_70B, 295, 0, bf16=True)
assert abs(flop / 989e12 / (size / 3.35e12) - 1) < 0.02
machine = measure_machine()
print(
    f"this machine: {machine.flop_per_second / 1e9:.0f} GFLOP/s, {machine.bytes_per_second / 1e9:.0f} GB/s, {machine.block_seconds * 1e6:.0f} microseconds to start a block"
)
here = Plan(
    prompts=64,
    prompt_tokens=P,
    response_tokens=R,
    decode_batch=64,
    micro_batch=64,
    critic="none",
    reward_model=False,
)
predicted = {
    "sample 64 x 20 tokens": decode_seconds(machine, shape, here),
    "train on them once": train_seconds(machine, shape, here),
}


def seconds(work, times=1 if FAST else 5):
    """The median of a few runs, after one that is not counted."""
    work()
    spans = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        spans.append(time.perf_counter() - started)
    return sorted(spans)[times // 2]


four = Rollout(*(x.repeat(4, 1) for x in (prompts, batch.prompt_mask, responses, batch.response_mask, batch.old_logprobs)))


def decoding():
    return sample(
        actor, four.prompt_ids, four.prompt_mask, eos_id=-1, config=SamplingConfig(max_new_tokens=R)
    )


found = {
    "sample 64 x 20 tokens": seconds(decoding),
    "train on them once": seconds(lambda: policy_logprobs(learner, four).sum().backward()),
}
for name in predicted:
    print(
        f"{name:>22}: predicted {predicted[name]:.3f} s, measured {found[name]:.3f} s, ratio {found[name] / predicted[name]:.1f}"
    )
assert all(x > 0 for x in (*predicted.values(), *found.values()))

# %% [markdown]
# It is a lower bound, and a useful one. On the machine that wrote the committed outputs training took between one and two times what it says, sampling more: with matrices as small as these, drawing words, copying the cache and starting each operation weigh as much as reading weights. Larger models have
# larger matrices, and the bound becomes tighter.
#
# Now the same arithmetic for 70B on 64 H100: 1024 responses a step, utilisations of 0.4 (arithmetic) and 0.6 (bandwidth) **assumed**; they are the model's weakest point.

# %%
many = Plan(prompts=128, group_size=8, prompt_tokens=512, response_tokens=1024, bf16=True)
cluster, batches = H100.times(64), (8, 16, 32, 64, 128, 256, 512)
figure = Figure(figsize=(9, 3.2), dpi=110, layout="constrained")
left, right = figure.subplots(1, 2)
share = {}
for (name, critic), colour, style in zip(
    (("separate critic", "separate"), ("critic on the trunk", "shared"), ("no critic", "none")),
    COLOURS,
    ("-", "--", ":"),
    strict=False,
):
    steps = [
        step_seconds(cluster, replace(many, decode_batch=b, critic=critic), LLAMA_70B) for b in batches
    ]
    share[critic] = [s["sampling"] / s["training"] for s in steps]
    left.plot(batches, share[critic], style, color=colour, label=name, linewidth=2)
    right.plot(batches, [sum(s.values()) for s in steps], style, color=colour, label=name, linewidth=2)
    s = steps[3]
    print(
        f"{name:>20}, 64 together: "
        + ", ".join(f"{k} {v:.0f} s" for k, v in s.items())
        + f"; sampling / training {share[critic][3]:.2f}"
    )
left.axhline(1, color="#888888", linewidth=0.8)
left.set(
    xscale="log", yscale="log", xlabel="sequences decoded together", title="sampling : training, 70B"
)
right.set(xscale="log", xlabel="sequences decoded together", title="seconds of a step", ylim=(0, None))
left.set_yticks((0.1, 0.5, 1, 5), ("0.1", "0.5", "1", "5"))
for axes in (left, right):
    axes.set_xticks(batches, [str(b) for b in batches])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
right.legend(fontsize=8, frameon=False)
display(figure)
assert max(share["none"]) / min(share["none"]) > 10
assert abs(share["shared"][3] - share["none"][3]) < 1e-9

# %% [markdown]
# "Sampling costs as much as training" is true somewhere on each line, and the lines run over more than a decade. Lesson 11b takes this up.
#
# ## 3. What saving costs in quality
#
# Memory and seconds are one side. Recorded with `minirlhf grid resources`: PPO on tiny-reviews as in lesson 06, three seeds each, judged on the 76 test films; *as it is* is that lesson's run with a separate critic that starts as the reward model.

# %%
saved, as_it_is = (
    load_results("resources"),
    [r for r in load_results("ablations") if r["variant"] == "as it is"],
)
rows = as_it_is + saved
variants = list(dict.fromkeys(row["variant"] for row in rows))
print(f"{'':>26} {'gold':>18} {'proxy':>18} {'KL, nats':>18} {'tokens':>7}")
for variant in variants:
    cells = []
    for key in ("gold", "proxy", "kl"):
        x = [row[key] for row in rows if row["variant"] == variant]
        cells.append(f"{sum(x) / len(x):6.2f} ({min(x):.2f}..{max(x):.2f})".rjust(18))
    x = [row["length"] for row in rows if row["variant"] == variant]
    print(f"{variant:>26} " + " ".join(cells) + f" {sum(x) / len(x):7.1f}")


# %%
def against(variant, key="gold"):
    """Paired by film, for each seed: (mean difference to the run as it is, low, high)."""
    of = {
        (r["variant"], r["seed"]): r[f"{key}_by_prompt"] for r in rows
    }
    return [paired_difference(of[variant, s], of["as it is", s]) for s in range(3)]


for variant in variants[1:]:
    for key in ("gold", "proxy"):
        print(
            f"{key:>6} of {variant:>24} - as it is: "
            + "   ".join(f"{d:+.2f} [{low:+.2f}, {high:+.2f}]" for d, low, high in against(variant, key))
        )

def of(variant, seed, key):
    return next(r[key] for r in rows if (r["variant"], r["seed"]) == (variant, seed))


claim(
    "Whether the critic starts from the SFT model or from the reward model makes no difference in gold that a seed shows beyond its interval; all three are a little lower.",
    all(low < d < 0 < high for d, low, high in against("critic from the SFT model")),
    evidence="the intervals above",
    seeds=3,
)
farther = [of("shared trunk", s, "kl") / of("as it is", s, "kl") for s in range(3)]
print("KL on the shared trunk, times that of its own critic: " + ", ".join(f"{x:.1f}" for x in farther))
assert 1.3 <= round(min(farther), 1) and round(max(farther), 1) <= 2.3
claim(
    "On a shared trunk KL is higher and texts are shorter on every seed, and gold is no higher.",
    all(
        of("shared trunk", s, "kl") > of("as it is", s, "kl")
        and of("shared trunk", s, "length") < of("as it is", s, "length")
        for s in range(3)
    )
    and not any(low > 0 for _, low, _ in against("shared trunk")),
    evidence=", ".join(
        f"{of('shared trunk', s, 'kl'):.1f} against {of('as it is', s, 'kl'):.1f} nats" for s in range(3)
    ),
    seeds=3,
)
claim(
    "Adapters at the same learning rate get less gold on every seed, beyond the interval, at less than half of the KL.",
    all(
        high < 0 and of("adapters of rank 16", s, "kl") < of("as it is", s, "kl") / 2
        for s, (_, _, high) in enumerate(against("adapters of rank 16"))
    ),
    evidence=", ".join(
        f"{of('adapters of rank 16', s, 'kl'):.2f} against {of('as it is', s, 'kl'):.2f} nats"
        for s in range(3)
    ),
    seeds=3,
)

# %% [markdown]
# Three savings, three prices.
#
# - **Which start the critic has** made no difference that three seeds could show, with all three signs against the SFT model. DeepSpeed-Chat starts it from the reward model.
# - **The shared trunk** is cheap in memory and in time, and pays in KL: it goes 1.3 to 2.3 times as far from the reference, for the same gold or less, and for less of the score that it is paid by (1.06 against 1.17 in the mean). A likely reading, not tested here: the value loss's gradient is larger than the policy's, both are clipped together, and it moves the features that the policy writes with.
# - **Adapters** at the learning rate of full training simply got less far in 24 steps: less gold *and* less KL. Whether a larger rate closes the gap is a question for your own run (`minirlhf ppo --lora 16 --lr ...`); that they are worse is *not* what this shows.
#
# ## 4. No critic at all: one family tree
#
# If the critic is half of the memory, what would the score be compared with? The answers of ten years fit into one table, because an algorithm is a row of choices:
#
# 1. **baseline**: nothing; the mean of earlier batches (REINFORCE); the greedy response's score (ReMax); the mean of the prompt's *other* samples (RLOO), or of all of them (GRPO).
# 2. **unit**: reward units as they are, or divided by the group's std, the batch's, or all tokens of the batch whitened (REINFORCE++).
# 3. **who pays the KL**: the score, before the baseline; each token, after it; or a loss of its own (lesson 07 says what that does).
# 4. **ratio**: none, so a batch is good for one step; one a token; one a response; or its root.
# 5. **clip**, and 6. **what the sum is divided by**.
#
# In the package they *are* a table (`loops/family.py`), from which the loop is configured by name. Drawn from it:


# %%
def choices(row):
    """The stations of a row, from the root to its leaf."""
    high = row.clip_eps if row.clip_eps_high is None else row.clip_eps_high
    clip = "no ratio" if row.ratio == "none" else f"ratio a {row.ratio}, {row.clip} {row.clip_eps:g}/{high:g}"
    clip = clip.replace("a sequence mean", "a response, its root").replace("a sequence", "a response")
    return row.baseline, {"none": "reward units"}.get(row.scale, row.scale), clip


rows_by_path = sorted(FAMILY.items(), key=lambda item: [str(x) for x in choices(item[1])])
leaf_at = {name: -i for i, (name, _) in enumerate(rows_by_path)}
nodes = {}
for name, row in rows_by_path:
    for depth in range(4):
        nodes.setdefault(choices(row)[:depth], []).append(leaf_at[name])
height = {path: sum(ys) / len(ys) for path, ys in nodes.items()}
figure = Figure(figsize=(11, 6.2), dpi=110, layout="constrained")
axes = figure.add_subplot()
for path, y in height.items():
    if path:
        axes.plot([len(path) - 1, len(path)], [height[path[:-1]], y], color="#999999", linewidth=1)
    axes.text(
        len(path),
        y,
        textwrap.fill(path[-1], 26) if path else "score less ...",
        ha="center",
        va="center",
        fontsize=8,
        bbox={"boxstyle": "round", "facecolor": "white", "edgecolor": COLOURS[0]},
    )
for name, row in rows_by_path:
    axes.plot([3, 3.75], [height[choices(row)], leaf_at[name]], color="#999999", linewidth=1)
    axes.text(
        3.75,
        leaf_at[name],
        f"{name}  ({row.aggregation.replace('_', ' ')}; KL: {row.kl})",
        va="center",
        fontsize=8,
        color="#000000",
    )
axes.set(xlim=(-0.35, 5.6), ylim=(min(leaf_at.values()) - 0.7, 1.6))
for x, title in enumerate(("", "baseline", "unit", "ratio and clip")):
    axes.text(x, 1.0, title, ha="center", fontsize=9, weight="bold")
axes.text(3.75, 1.0, "name (divisor; who pays the KL)", fontsize=9, weight="bold")
axes.axis("off")
display(figure)
assert len(rows_by_path) == 15

# %% [markdown]
# ## 5. What a baseline is worth
#
# These baselines leave the mean gradient alone, the group's own mean up to a factor (`tests/loops/test_family.py` enumerates it row by row). They differ in *noise*. In the exact world noise is a number. Two prompts, an easy one whose mean reward is +1 and a hard one at -1; for each method: how many **responses** must be written until the noise of the averaged
# gradient is as large as the gradient,
#
# $$ n^* = \text{responses written} \times \frac{\mathbb{E}\,\|g - \mathbb{E}\,g\|^2}{\|\mathbb{E}\,g\|^2} \quad \text{for an estimate } g \text{ from that many.} $$
#
# A common factor does not matter to it, so the group's mean may stand beside the others'. Dividing by the group's *std* is more than a factor: it weighs prompts and outcomes anew (lesson 11), so that bar is the noise of another gradient. ReMax writes two responses for each that it learns from. PPO's critic appears as what it would be if it were *perfect*: $A = Q - V$ at every token.


# %%
worlds, levels = [World.random(3, 3, seed=s) for s in (0, 1)], (1.0, -1.0)
facts = []
for world, level in zip(worlds, levels, strict=True):
    start = world.ref_logits
    p, reward = world.probs(start), world.rewards - world.expectation(start, world.rewards) + level
    by_token = torch.autograd.functional.jacobian(world.logprobs, start).flatten(2)
    v, q = world.values(start)
    perfect = torch.where(
        world.response_mask, (q - v[:, None])[world.visited, world.response_ids], 0.0
    )
    facts.append((world, p, reward, by_token, perfect))


def noise_to_signal(pushes, chances, written):
    """n* from all outcomes of an estimate, (M, D) for each prompt, and their chances (M,)."""
    noise = signal = 0.0
    for g, chance in zip(pushes, chances, strict=True):
        mean = chance @ g
        noise, signal = noise + chance @ (g - mean).square().sum(1), signal + mean.square().sum()
    return (written * noise / signal).item()


def alone(baseline_of, written=1):
    pushes = [
        (reward - baseline_of(p, reward))[:, None] * by_token.sum(1)
        for _, p, reward, by_token, _ in facts
    ]
    return noise_to_signal(pushes, [p for _, p, *_ in facts], written)


def grouped(advantages_of, size):
    pushes, chances = [], []
    for world, _, reward, by_token, _ in facts:
        groups, chance = world.groups(world.ref_logits, size)
        a = advantages_of(reward[groups])
        pushes.append(torch.einsum("mg,mgd->md", a, by_token.sum(1)[groups]) / size)
        chances.append(chance)
    return noise_to_signal(pushes, chances, size)


greedy_text = {tuple(p.tolist()): world.probs(1e3 * world.ref_logits).argmax() for world, p, *_ in facts}  # word by word
overall = sum((p * reward).sum() for _, p, reward, *_ in facts) / 2
bars = {
    "nothing": alone(lambda p, r: 0.0),
    "running mean": alone(lambda p, r: overall),
    "greedy (ReMax)": alone(lambda p, r: r[greedy_text[tuple(p.tolist())]], written=2),
    "others', G = 2": grouped(leave_one_out, 2),
    "others', G = 4": grouped(leave_one_out, 4),
    "and std, another goal, G = 4": grouped(group_relative, 4),
    "the prompt's true mean": alone(lambda p, r: (p * r).sum()),
    "perfect critic, by token": noise_to_signal(
        [(by_token * perfect[:, :, None]).sum(1) for *_, by_token, perfect in facts],
        [p for _, p, *_ in facts],
        1,
    ),
}
figure = Figure(figsize=(7.5, 3.2), dpi=110, layout="constrained")
axes = figure.add_subplot()
axes.barh(list(bars)[::-1], list(bars.values())[::-1], color=COLOURS[0])
for i, x in enumerate(list(bars.values())[::-1]):
    axes.text(x + 0.4, i, f"{x:.1f}", va="center", fontsize=8)
axes.set(xlabel="responses until the noise equals the gradient", xlim=(0, 50))
display(figure)
assert abs(bars["nothing"] - bars["running mean"]) < 1e-9
assert bars["others', G = 2"] > bars["others', G = 4"] > bars["the prompt's true mean"]
assert bars["perfect critic, by token"] < bars["the prompt's true mean"] / 2
assert bars["greedy (ReMax)"] > bars["nothing"]

# %% [markdown]
# Read it from below. A perfect critic would need less than half the responses of anything that gives a whole text one number: it knows *which token*. No critic is perfect; that is where the argument about GRPO begins. Of the baselines that anyone can have, the others' mean improves with the group and tends to the prompt's true mean. A running mean over prompts that differ is worth nothing
# here: it is 0, being right for neither. And ReMax pays for its baseline with as many responses again; in this world the greedy response is a poor guess of the mean. (On a task where nearly all responses score as the greedy one does, it is a good one.)

# %% [markdown]
# ## What the libraries do
#
# | | |
# |---|---|
# | DeepSpeed-Chat | four models, critic from the reward model; a hybrid engine switches the actor between training and inference |
# | TRL, PPO (1.12) | separate value model; with `peft_config` the reference is the actor without adapters |
# | TRL, GRPO and RLOO | no critic; with `beta` 0 no reference is loaded either; vLLM may decode on the same GPUs |
# | OpenRLHF (0.11) | models placed on separate or the same GPUs by Ray; `init_kl_coef` 0 drops the reference |
# | verl (0.10) | one controller; actor, rollout and reference share workers, weights are resharded between training and decoding |
# | shared trunk | in older TRL (`AutoModelForCausalLMWithValueHead`); today's loops keep the critic apart |
#
# ## Exercises
#
# Each checker says *pass*, or the likely mistake in one sentence.
#
# **1. Bytes of four models** *(easy, 10 minutes)*. From the numbers of weights (4,), which of the models are trained (4,) booleans, and whether weights are bfloat16, return the bytes of weights, gradients and AdamW's states (a float32 copy among them, where there is one) of all of them together, one integer.
#
# *Hint:* section 1's table. What is not trained has its weight alone.


# %%
def model_bytes(weights, trained, bf16): ...  # your code


print(check.model_bytes(model_bytes))

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def model_bytes(weights, trained, bf16):
#     each = 2 if bf16 else 4
#     return (weights * (each + trained * (16 - each))).sum()
# ```
# </details>
#
# **2. A step of decoding** *(easy, 10 minutes)*. A model of `weights` weights in bfloat16 decodes `batch` sequences together (a tensor of several batch sizes). Return the seconds of one step for each, by the roofline, caches left aside.
#
# *Hint:* what is read does not depend on the batch; what is computed does. The three other arguments are plain numbers: `clamp(min=...)` takes one.


# %%
def decode_step_seconds(batch, weights, flop_per_second, bytes_per_second): ...  # your code


print(check.decode_step_seconds(decode_step_seconds))

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def decode_step_seconds(batch, weights, flop_per_second, bytes_per_second):
#     return (2 * weights * batch / flop_per_second).clamp(min=2 * weights / bytes_per_second)
# ```
# </details>
#
# **3. RLOO** *(easy, 5 minutes)*. From the scores (N, G), a prompt a row, return the advantages (N, G): each score less the mean of the *other* scores of its row.
#
# *Hint:* the others' sum is the row's sum less the score.


# %%
def rloo_advantages(group_scores): ...  # your code


print(check.rloo_advantages(rloo_advantages))

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def rloo_advantages(group_scores):
#     others = group_scores.sum(1, keepdim=True) - group_scores
#     return group_scores - others / (group_scores.shape[1] - 1)
# ```
# </details>
#
# **4. REINFORCE++** *(medium, 15 minutes)*. From the tokens' rewards (B, R), KL charges in them, and the mask, return what REINFORCE++ multiplies each token's log-probability with: the sum of its own and all later rewards of its text, whitened over **all real tokens of the batch** (mean 0, variance 1, the variance divided by their number, 1e-8 added to it),
# 0 where masked. Padding may hold NaN.
#
# *Hint:* `flip(1).cumsum(1).flip(1)`; take mean and variance of `x[mask]`.


# %%
def whitened_to_go(rewards, mask): ...  # your code


print(check.whitened_to_go(whitened_to_go))

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def whitened_to_go(rewards, mask):
#     to_go = torch.where(mask, rewards, 0.0).flip(1).cumsum(1).flip(1)
#     mean, var = to_go[mask].mean(), to_go[mask].var(unbiased=False)
#     return torch.where(mask, (to_go - mean) / (var + 1e-8).sqrt(), 0.0)
# ```
# </details>
#
# **5. Predict, then run** *(5 minutes)*. A Llama of 70B keeps the keys and values of 8 heads of 128, in 80 layers, in bfloat16. How many bytes is a token of its cache, and how many tokens fit into the 80 GiB of one H100 that holds nothing else? With 64 heads of keys, as its queries have? Write it down, take the hash away.

# %%
# for heads in (8, 64):
#     token = kv_cache_bytes(replace(LLAMA_70B, kv_heads=heads), 1, 1, bf16=True)
#     print(heads, token, 80 * 2**30 // token)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# 327,680 bytes and 262,144 tokens: 170 sequences of 1536. With 64 heads of keys eight times the bytes, and 32,768 tokens: 21 sequences. Sharing keys between heads is what makes large decode batches possible, and with section 2, cheap.
# </details>

# %%
token = kv_cache_bytes(LLAMA_70B, 1, 1, bf16=True)
assert token == 327_680 == 2 * 80 * 8 * 128 * 2 and 80 * 2**30 // token == 262_144
assert 262_144 // 1536 == 170 and 32_768 // 1536 == 21

# %% [markdown]
# **6. Read the log** *(medium, 10 minutes)*. A colleague trains adapters on the arithmetic of lesson 11, on a leash of 0.5, and prints this log. Read the log first: which column cannot be? Then find the line.

# %%
steps_model, steps_tokenizer = load_policy("tiny-steps")
score, _ = scoring("arithmetic", steps_tokenizer)
leashed = group_config(
    "arithmetic", "grpo", steps=1 if FAST else 25, kl=KLConfig(kl_coef=0.5), optimiser=OptimiserConfig(lr=1e-3)
)
theirs = with_lora(steps_model, 16)
theirs, log = train_group(
    theirs, steps_tokenizer, practice_problems(), score, leashed, reference=theirs
)
for row in list(log)[::6]:
    print("  ".join(f"{k} {row[k]:.3f}" for k in ("step", "score", "kl", "kl_coef", "entropy", "length")))

# %% [markdown]
# <details><summary>Answer</summary>
#
# Entropy and length move, so the policy has moved; yet its KL to the reference is exactly 0 at every step. The "reference" is the policy itself, adapters and all: `reference=theirs`. Nothing is charged, so this is a run without a leash. Leave the argument out, and the loop takes what lies *below* the adapters, as section 1 does. At step 0 a fresh adapter changes nothing, so the first row is right
# in either case; a check that can fail changes the adapters first. The cell below measures how far the policy has truly gone.
# </details>

# %%
assert all(abs(row["kl"]) < 1e-5 for row in log)
fresh = load_policy("tiny-steps")[0]
asked = practice_problems()[:200]
gone = sum(
    ((r.old_logprobs - policy_logprobs(fresh, r).detach()) * r.response_mask).sum()
    for r in sample_text(theirs, steps_tokenizer, asked, config=leashed.sampling)
)
print(f"KL to where it began: {gone / len(asked):.2f} nats a response")
assert FAST or gone / len(asked) > 0.3

# %% [markdown]
# **7. Design** *(hard, 15 minutes)*. You have one GPU of 24 GB and a model of 1 billion parameters in bfloat16 that is to be trained with RL against a reward model of the same size. Which of section 1's rows fit, and what else would you give up, in which order? Use `four_models` with section 1's `plan` and `SAVED`, on `Shape(layers=22, width=2048, heads=32, kv_heads=4, ffn=5632, vocab=32000)` (`from minirlhf.models.cost import Shape`); `replace(plan, recompute=True)` computes each block once more in the backward pass in the place of keeping
# its activations.
#
# <details><summary>What a good answer has</summary>
#
# Two trained models need 32 GB before a single activation: full PPO is out. Without a critic 16 GB, reference and reward model 2 GB each: 20 GB; activations, logits and the cache bring it to just over 24 as section 1 plans it, and to less with `recompute=True`. With LoRA three times
# 2 GB and small change: then a separate critic fits too, as adapters on the reward model. What one gives up, in order: the micro-batch (costs little time), stored activations (a third more time), full training (costs quality on some tasks: to be measured), and the critic last or first, as section 3 and lesson 11 say for one's task.
# </details>
#
# ## Questions
#
# <details><summary>1. Why does bfloat16 not halve the memory of training?</summary>
# Because of the optimiser: moments and copy stay in float32. Weights, gradients, activations and the cache halve; a trained weight has 16 bytes either way. It is faster, which is another matter.
# </details>
# <details><summary>2. Why can a larger decode batch be free, and a larger training batch not?</summary>
# While decoding the machine waits for weights to arrive, and the same weights serve all sequences. In training thousands of tokens already share one reading of the weights, so more tokens are more arithmetic.
# </details>
# <details><summary>3. A shared trunk halves the memory. Why does not everybody share?</summary>
# Two losses pull at one trunk. The value loss is a squared error in reward units, often larger than the policy's, and it moves features that the policy writes with. Section 3 shows the price at this scale.
# </details>
# <details><summary>4. LoRA's reference is free in memory. Also in time?</summary>
# No. It is a forward pass with the adapters off, as long as any reference's.
# </details>
# <details><summary>5. Why is ReMax's baseline unbiased though it looks at the same prompt?</summary>
# The greedy response is not drawn: it is a function of the prompt and the weights, fixed before the sample is. A baseline may be anything that does not depend on the sample it is taken off.
# </details>
#
# **References.** Rajbhandari et al. 2020, *ZeRO*, section 3 (16 bytes). Williams, Waterman and Patterson 2009, *Roofline*. Pope et al. 2022, *Efficiently scaling Transformer inference*. Hu et al. 2021, *LoRA*. Santacroce et al. 2023, *Efficient RLHF*. Ahmadian et al. 2024 (RLOO), section 3. Li et al. 2023 (ReMax). Hu 2025 (REINFORCE++).
