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
# # 11 · GRPO and its critics
#
# **The question.** PPO asks a second network what was to be expected. GRPO asks the prompt's other samples. Does that make RLHF cheaper, simpler and better, as its users say, or costlier, no simpler, no better and easier to hack, as its critics say?
# Five objections are on the table. Each gets an experiment and a verdict.
#
# **You need** lesson 06 (the clip) and 07 (the leash). Lesson 10 draws the whole family tree; here is its middle branch. 40 minutes to read, 70 for the exercises.
#
# **Predict.** Write down a number or a yes before you read on.
#
# | | your prediction |
# |---|---|
# | Two responses score 1.001 and 1.000. GRPO's advantages? | |
# | A model solves 41 % of problems at the first try and 98 % within 16 tries. After RL: does the 98 % rise, stay, or fall? | |
# | The learning rate is 0.0001, nobody is asked to write more. Do *wrong* answers become longer under GRPO? | |
# | At equal samples, GRPO beats PPO. By how much? | |

# %%
# %matplotlib inline
import inspect
import math

import torch
from IPython.display import display
from matplotlib.figure import Figure

from minirlhf.classroom import check
from minirlhf.classroom.claims import FAST, claim, load_results
from minirlhf.core.baselines import group_relative, leave_one_out
from minirlhf.core.exact import World
from minirlhf.core.policy_gradient import cispo, ppo_clip
from minirlhf.evaluate import paired_difference, pass_at_k, sharpened_or_learned
from minirlhf.loops import group, ppo
from minirlhf.loops.group import train_group
from minirlhf.models.cost import LLAMA_70B, Plan
from minirlhf.models.forward import decode
from minirlhf.models.load import load_policy
from minirlhf.models.roofline import H100, step_seconds
from minirlhf.models.sampling import SamplingConfig, sample_text
from minirlhf.practice import TASKS, group_config, practice_problems, scoring
from minirlhf.rewards.rules import right_answer
from minirlhf.runtime import set_threads
from minirlhf.show.curves import COLOURS
from minirlhf.tasks import arithmetic

set_threads()


def over_seeds(rows, variant, key):
    """(mean, lowest, highest) over the seeds of a recorded variant."""
    x = [row[key] for row in rows if row["variant"] == variant]
    return sum(x) / len(x), min(x), max(x)


# %% [markdown]
# ## 1. GRPO by hand on four rollouts
#
# The world of lessons 04 to 07 and of the one-page example (notebook 91): words *good*, *bad* and the full stop; at most two words; all equally likely; the score counts *good* minus *bad*. One prompt, **four** texts sampled: *good good*, *good .*, *bad bad* and the bare
# full stop. Scores 2, 1, -2, 0.
#
# $$ A_i = \frac{r_i - \bar r}{s + \epsilon} \qquad \bar r = \tfrac14 (2 + 1 - 2 + 0) = \tfrac14 \qquad r_i - \bar r = \tfrac74,\ \tfrac34,\ -\tfrac94,\ -\tfrac14 \qquad s = \sqrt{\tfrac13 \cdot \tfrac{49 + 9 + 81 + 1}{16}} = 1.708 $$
#
# Every token of a text gets its text's $A$: there is no word on *which* token was good. That is the price for having no critic.
#
# RLOO compares with the *others* only. Their mean is $\bar r^{-i} = (4 \bar r - r_i)/3$, so $r_i - \bar r^{-i} = \tfrac43 (r_i - \bar r)$: the centred score, times $G/(G-1)$. It is the same direction with another length.

# %%
hand = World.from_reward(
    ("good", "bad", "."), 2, lambda words: float(words.count("good") - words.count("bad"))
)
four = [hand.labels.index(text) for text in ("goodgood", "good.", "badbad", ".")]
scores = hand.rewards[four][None]
centred, a, others = scores - scores.mean(), group_relative(scores), leave_one_out(scores)
assert torch.equal(centred * 4, torch.tensor([[7, 3, -9, -1]]).double())
assert torch.allclose(others, 4 / 3 * centred)
print(f"std {scores.std():.3f}")
for text, r, c, x, y in zip(
    ("good good", "good .", "bad bad", "."),
    scores[0].tolist(),
    centred[0].tolist(),
    a[0].tolist(),
    others[0].tolist(),
    strict=True,
):
    print(f"{text:>10}  score {r:+.0f}   centred {c:+.2f}   GRPO {x:+.3f}   RLOO {y:+.3f}")

# %% [markdown]
# What does that do to the three logits at the start? A text pushes its first word's logit by $A_i (1 - \tfrac13)$ and the others' by $-A_i \tfrac13$. Centred advantages sum to 0, so the thirds cancel, and what is left is the sum of $A_i$ by first word, over 4: with the centred scores
#
# $$ \tfrac14 \big(\tfrac74 + \tfrac34,\ -\tfrac94,\ -\tfrac14\big) = (0.6250,\ -0.5625,\ -0.0625) . $$
#
# The true gradient there is $(\tfrac13, -\tfrac13, 0)$ (section 2 of the page). One group of four is a noisy opinion. What is it on average?
#
# ## 2. The exact world's verdict
#
# **Centring is nearly free of bias.** In $\bar r$ the text's own score stands with weight $1/G$, and $\mathbb{E}[r_i \nabla \log \pi(y_i)] = \nabla J$; the others are independent of $y_i$ and contribute $\mathbb{E}[r_j]\, \mathbb{E}[\nabla \log \pi(y_i)] = 0$. So
#
# $$ \mathbb{E}\big[(r_i - \bar r) \nabla \log \pi(y_i)\big] = \nabla J - \tfrac1G \nabla J = \tfrac{G-1}{G} \nabla J , \qquad \mathbb{E}\big[(r_i - \bar r^{-i}) \nabla \log \pi(y_i)\big] = \nabla J . $$
#
# The direction is right; the step is a little short. We enumerate all $7^G$ groups:


# %%
def mean_pull(world, logits, advantages_of, size):
    """The mean, over all groups of `size`, of the texts' mean push A_i grad log pi(y_i): sums over tokens, no lengths anywhere."""
    moved = logits.clone().requires_grad_(True)
    whole = world.logprobs(moved).sum(1)
    groups, chance = world.groups(logits, size)
    gains = (advantages_of(world.rewards[groups]) * whole[groups]).mean(1)
    return torch.autograd.grad((chance * gains).sum(), moved)[0]


truth = hand.gradient(hand.ref_logits)
for size in (2, 3, 4):
    plain = mean_pull(hand, hand.ref_logits, lambda s: group_relative(s, scale_by_std=False), size)
    assert torch.allclose(plain, (size - 1) / size * truth)
    assert torch.allclose(mean_pull(hand, hand.ref_logits, leave_one_out, size), truth)
    with_std = mean_pull(hand, hand.ref_logits, group_relative, size)
    cosine = torch.nn.functional.cosine_similarity(with_std.flatten(), truth.flatten(), dim=0)
    print(
        f"G = {size}: at the start centred {[round(x, 3) for x in plain[0].tolist()]}, with the std {[round(x, 3) for x in with_std[0].tolist()]}, cosine with the truth {cosine:.4f}"
    )
    assert 0.99 < cosine < 1

# %% [markdown]
# **Dividing by the std is another objective.** Take a score of 1 (right) or 0 (wrong) and let $p$ be the chance of right. A large group has mean $p$ and std $\sqrt{p(1-p)}$, so
#
# $$ \mathbb{E}[A\, \nabla \log \pi] \;\to\; \frac{\nabla p}{\sqrt{p (1 - p)}} = \nabla\, 2 \arcsin \sqrt{p} . $$
#
# Without the std one climbs $p$; with it, $2 \arcsin \sqrt p$, in which a step from 1 % to 2 % counts like many from 50 to 51 %. In *one* prompt it is a matter of the step's length. Across prompts it is a matter of who is heard: the very hard and the very easy speak up.
# How much of this does a small group see? Count the right ones, $c$ of $G$, binomially:


# %%
def weight(p, size, **given):
    """E[sum_i A_i d log P(y_i)] / (G dp): what GRPO multiplies the gradient of p by."""
    total = 0.0
    for c in range(size + 1):
        s = torch.zeros(1, size, dtype=torch.float64)
        s[0, :c] = 1
        slope = torch.where(s[0] == 1, 1 / p, -1 / (1 - p))
        chance = math.comb(size, c) * p**c * (1 - p) ** (size - c)
        total += chance * (group_relative(s, **given)[0] * slope).mean().item()
    return total


chances = torch.linspace(0.01, 0.99, 99).tolist()
figure = Figure(figsize=(9, 3.2), dpi=110, layout="constrained")
left, right = figure.subplots(1, 2)
for size, colour, style in zip((2, 4, 8, 16), COLOURS, (":", "-.", "--", "-"), strict=False):
    left.plot(
        chances,
        [weight(p, size) for p in chances],
        style,
        color=colour,
        label=f"G = {size}",
        linewidth=2,
    )
left.plot(
    chances,
    [1 / math.sqrt(p * (1 - p)) for p in chances],
    color="#444444",
    linewidth=1,
    label="limit",
)
left.set(
    ylim=(0, 6), xlabel="chance of a right answer", title="weight of a prompt's gradient, with the std"
)
left.legend(fontsize=8, frameon=False, ncol=2)
gaps = torch.logspace(-6, 0, 61, dtype=torch.float64)
for name, given, colour, style in (
    ("GRPO, eps 1e-4", {}, COLOURS[0], "-"),
    ("eps 1e-6 (verl)", {"eps": 1e-6}, COLOURS[1], "--"),
    ("floor of 0.1", {"min_std": 0.1}, COLOURS[2], "-."),
    ("no std", {"scale_by_std": False}, COLOURS[3], ":"),
):
    seven = torch.ones(7, dtype=torch.float64)
    right.plot(
        gaps,
        [group_relative(torch.cat([seven, 1 + gap[None]])[None], **given)[0, -1].item() for gap in gaps],
        style,
        color=colour,
        linewidth=2,
        label=name,
    )
right.set(
    xscale="log", xlabel="one of eight scores is better by", title="its advantage", ylim=(-0.1, 2.7)
)
right.legend(fontsize=8, frameon=False, loc="upper left")
for axes in (left, right):
    axes.grid(alpha=0.3)
display(figure)
for size in (2, 4, 8, 16):
    print(
        f"G = {size:2d}: share of the limit at p = .36: {weight(0.36, size) * math.sqrt(0.36 * 0.64):.2f};  weight of p = .02 over p = .5: {weight(0.02, size) / weight(0.5, size):.2f}"
    )
    assert math.isclose(
        weight(0.36, size, scale_by_std=False), (size - 1) / size
    )  # without the std: the same for all p
assert math.isclose(weight(0.02, 2), weight(0.5, 2), rel_tol=1e-9)
assert weight(0.02, 16) > 1.8 * weight(0.5, 16)

# %% [markdown]
# Left: a group of two cannot tell a hard prompt from an easy one (when its scores differ, they differ by the same), so its weight is flat. The larger the group, the nearer the limit, and the louder the prompts at both ends. Right: to this we come back in objection 4.
#
# ## 3. A task whose reward cannot be fooled
#
# A reward model has errors to find. A rule has none, if it is the thing itself: is the sum right? `tiny-steps` is a GPT-2 of 0.6 million parameters that does arithmetic, character by character, either at once (`~27`) or in steps, each of which does one operation. All its demonstrations were correct.
# Three in four of the last ones were answers at once.

# %%
policy, tokenizer = load_policy("tiny-steps")
asked = [p.prompt for p in arithmetic.problems("test", 6, levels=(2, 3, 4))]
settings = TASKS["arithmetic"].settings["sampling"]
repeated = [p for p in asked for _ in range(5)]
texts = [
    t
    for r in sample_text(policy, tokenizer, repeated, config=settings, seed=0)
    for t in decode(tokenizer, r)
]
for i, prompt in enumerate(asked):
    mine = texts[5 * i : 5 * i + 5]
    marks = right_answer([prompt] * 5, mine)
    print(
        f"{prompt:>14}  "
        + "   ".join(f"{t}{'  ✓' if m else '  ✗'}" for t, m in zip(mine, marks, strict=True))
    )

# %% [markdown]
# At once it guesses; in steps it is mostly right. Nobody told it that one way of answering is safer: imitation cannot say so, both were in the book. A reward for right answers can.
#
# First by ourselves, a minute long: 40 steps of 16 prompts with 8 responses each. The loop is `loops/group.py`; its five numbered stages are sample, compare, advantage, update, log. Beside it a **control**: the same run with the same rewards, dealt out at random within the batch.
# What looks like learning and is not would show there. (Under `FAST=1` both are three steps long and nothing is claimed.)


# %%
def practise(steps, shuffled=False):
    """The share of right answers, step by step, of a run that is paid for them, or at random."""
    actor, exact = load_policy("tiny-steps")[0], scoring("arithmetic", tokenizer)[0]
    draw = torch.Generator().manual_seed(0)

    def at_random(rollout):
        paid = exact(rollout)
        return paid[torch.randperm(len(paid), generator=draw)]

    config = group_config("arithmetic", "grpo", steps=steps)
    score, own = at_random if shuffled else exact, {"reference": policy, "monitors": {"right": exact}}
    return train_group(actor, tokenizer, practice_problems(), score, config, **own)[1]


steps = 3 if FAST else 40
runs = {"paid for right answers": practise(steps), "paid at random": practise(steps, shuffled=True)}
figure = Figure(figsize=(6, 2.6), dpi=110, layout="constrained")
axes = figure.add_subplot()
for (name, rows), colour, style in zip(runs.items(), COLOURS, ("-", "--"), strict=False):
    axes.plot([row["right"] for row in rows], style, color=colour, label=name, linewidth=1.5)
axes.set(xlabel="step", ylabel="share of right answers", ylim=(0, 0.8))
axes.grid(alpha=0.3)
axes.legend(fontsize=8, frameon=False)
display(figure)
if not FAST:
    ends = {name: [row["right"] for row in rows] for name, rows in runs.items()}
    ends = {name: (sum(x[:5]) / 5, sum(x[-5:]) / 5) for name, x in ends.items()}
    paid, dealt = ends.values()
    claim(
        "Forty steps on right answers help; on the same rewards dealt out at random they harm.",
        paid[1] > paid[0] + 0.05 and dealt[1] < dealt[0],
        evidence="first and last five steps: "
        + "; ".join(f"{name} {x:.2f}, {y:.2f}" for name, (x, y) in ends.items()),
    )

# %% [markdown]
# ## 4. What 80 steps make of it: sharpening or learning?
#
# Recorded with `minirlhf grid family`: 80 steps of 128 responses, three seeds for each method, judged on 400 problems that nobody practised. **pass@k** is the chance that one of $k$ samples is right. From $n$ samples with $c$ right ones it is estimated without bias by the share of $k$-subsets that hold a right one:
#
# $$ \text{pass@}k = 1 - \binom{n - c}{k} \Big/ \binom{n}{k} . $$

# %%
family = load_results("family")
names = list(dict.fromkeys(row["variant"] for row in family))
print(f"{'':>26} {'greedy':>16} {'pass@1':>16} {'pass@16':>16} {'tokens':>6} {'seconds':>8}")
for name in names:
    cells = [
        "{:6.3f} ({:.3f}..{:.3f})".format(*over_seeds(family, name, key)).rjust(16)
        for key in ("greedy", "pass_1", "pass_16")
    ]
    length = over_seeds(family, name, "length")[0]
    seconds = "" if name == "start" else f"{over_seeds(family, name, 'seconds')[0]:8.0f}"
    print(f"{name:>26} " + " ".join(cells) + f" {length:6.1f} {seconds}")

# %% [markdown]
# ## 8. Repairs
#
# **Dr. GRPO: two divisions are dropped.** The std (section 2), and each response's own length. The second is worth a derivation. GRPO's loss is a mean of per-response means: token $t$ of response $i$ is weighted with $A_i / |y_i|$. Take all *wrong* responses of a prompt; all have the same $A < 0$. The longer one
# is, the less each of its tokens is blamed. So among wrong responses the long ones survive, and among right ones (where $A > 0$) the short ones win. No one is paid for length, and yet length moves. With a constant divisor the blame of a token does not depend on what comes after it:
# given that the text so far is already lost, $\mathbb{E}[A\, \nabla \log \pi]$ over its continuations is $A \cdot \mathbb{E}[\nabla \log \pi] = 0$, exactly.
#
# A world to see it in: up to six words, a text is right if its *first* word is *good*, and nothing later matters. Exact gradient steps on the mean over infinitely large groups:

# %%
first_word = World.from_reward(("good", "bad", "."), 6, lambda words: float(words[:1] == ["good"]))
lengths, is_right = first_word.response_mask.sum(1).double(), first_word.rewards == 1


def grow(divisor, steps=60, rate=4.0):
    """Mean length of right and of wrong texts, and the share of right ones, along exact gradient steps on centred rewards."""
    table, path = first_word.ref_logits.clone(), []
    for _ in range(steps + 1):
        p = first_word.probs(table)
        means = [(p * lengths)[k].sum() / p[k].sum() for k in (is_right, ~is_right)]
        path.append([x.item() for x in (*means, p[is_right].sum())])
        moved = table.clone().requires_grad_(True)
        gain = p * (first_word.rewards - (p * first_word.rewards).sum()) / divisor
        (gain * first_word.logprobs(moved).sum(1)).sum().backward()
        table = table + rate * moved.grad
    return torch.tensor(path)


walks = {"its own length (GRPO)": grow(lengths), "a constant (Dr. GRPO)": grow(6.0)}
figure = Figure(figsize=(9, 2.9), dpi=110, layout="constrained")
for axes, column, title in zip(
    figure.subplots(1, 3),
    (2, 0, 1),
    ("share of right texts", "length of right texts", "length of wrong texts"),
    strict=True,
):
    for (name, walk), colour, style in zip(walks.items(), COLOURS, ("-", "--"), strict=False):
        axes.plot(walk[:, column], style, color=colour, label=name, linewidth=2)
    axes.set(xlabel="step", title=title, ylim=(0, 1.05) if column == 2 else (2, 4))
    axes.grid(alpha=0.3)
axes.legend(fontsize=8, frameon=False, title="divided by", title_fontsize=8)
display(figure)
biased, constant = walks.values()
print(
    f"wrong texts: {biased[0, 1]:.2f} words at first, {biased[-1, 1]:.2f} at last; right ones {biased[0, 0]:.2f} and {biased[-1, 0]:.2f}"
)
assert (biased[1:, 1] > biased[:-1, 1]).all() and (biased[1:, 0] < biased[:-1, 0]).all()
assert torch.allclose(constant[:, :2], constant[:1, :2].expand(61, 2), atol=1e-9)
assert biased[-1, 2] > 0.95 and constant[-1, 2] > 0.95

# %% [markdown]
# Wrong texts grow from 2.30 to 3.12 words and right ones shrink, though length was worth nothing; with the constant neither moves by a digit. A common half-repair drops the std and keeps the length: it is exercise 4.
#
# **DAPO** changes four things. *Clip-higher*: the upper end of the clip is 0.28, the lower 0.2; a word of probability 0.01 may rise to 0.0128 instead of 0.012, and rare words are where exploration comes from. *Dynamic sampling*: groups without a difference are drawn anew. *Token mean*: the batch's tokens are averaged,
# so a long response counts by its length. *Overlong penalty*: in the last tokens before the limit a response pays, linearly.
#
# **GSPO** gives a whole response one ratio, $s_i = \big(\pi(y_i)/\pi_{\text{old}}(y_i)\big)^{1/|y_i|}$, since what is rewarded is the whole; the clip is then a few ten-thousandths wide. (RLOO in TRL has the whole ratio without the root.)
#
# **CISPO** asks what the clip does to a token that has moved far: PPO takes its gradient away. CISPO caps its *weight* instead: $-\,\mathrm{sg}[\min(\rho, 1 + \epsilon_{\text{high}})]\, A \log \pi$, and every token goes on teaching.
#
# What each does to the gradient of one good token ($A = 1$) and one bad one ($A = -1$), drawn from the package's functions:

# %%
ratios = torch.linspace(0.05, 6, 596, dtype=torch.float64)
everything, nothing = torch.ones(len(ratios), 1, dtype=torch.bool), torch.zeros(len(ratios), 1)
METHODS = {
    "PPO, GRPO": lambda x, a: ppo_clip(x, nothing, a, everything, clip_eps=0.2),
    "DAPO": lambda x, a: ppo_clip(x, nothing, a, everything, clip_eps=0.2, clip_eps_high=0.28),
    "CISPO": lambda x, a: cispo(x, nothing, a, everything, clip_eps=1.0, clip_eps_high=4.0),
}
figure = Figure(figsize=(9, 3.1), dpi=110, layout="constrained")
pulls = {}
for axes, sign in zip(figure.subplots(1, 2), (1.0, -1.0), strict=True):
    for (name, loss), colour, style in zip(METHODS.items(), COLOURS, ("-", "--", "-."), strict=False):
        x = ratios.log()[:, None].requires_grad_(True)
        (slope,) = torch.autograd.grad(loss(x, torch.full_like(x, sign).detach()).sum(), x)
        pulls[name, sign] = -slope[:, 0]
        axes.plot(ratios, pulls[name, sign], style, color=colour, label=name, linewidth=2)
    axes.axvline(1, color="#888888", linewidth=0.7)
    axes.set(
        xlabel="ratio",
        ylabel="pull on log π",
        title="a good token, A = 1" if sign > 0 else "a bad token, A = -1",
    )
    axes.grid(alpha=0.3)
axes.legend(fontsize=8, frameon=False)
display(figure)
assert (pulls["PPO, GRPO", 1.0][ratios > 1.201] == 0).all()
assert (pulls["DAPO", 1.0][(ratios > 1.201) & (ratios < 1.279)] > 1.2).all()
assert pulls["CISPO", 1.0].max() == 5 and (pulls["CISPO", 1.0][ratios > 5.01] == 5).all()
assert pulls["PPO, GRPO", -1.0].min() < -5.9  # a bad token that grew: PPO's pull has no bound

# %% [markdown]
# See the right picture, too: of a *bad* token that has become likelier PPO's pull grows with the ratio, without a bound; CISPO's stops at 5. At ratio 1 all of them, GSPO included, are the same gradient: the differences live in the second and later passes over a batch. The recorded runs above make one pass, so
# *there* GSPO is GRPO and CISPO is GRPO with a token mean; what differs between their rows is rounding and luck, and that is a useful yardstick. Four passes over each batch, with half of the batches:
