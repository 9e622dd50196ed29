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
# **You need** lesson 06 (the clip) and 07 (the leash). Lesson 10 draws the whole family tree; here is its middle branch. 40 minutes to read, 90 for the exercises.
#
# **Predict.** Write down a number or a yes before you read on.
#
# | | your prediction |
# |---|---|
# | Two responses score 1.001 and 1.000. GRPO's advantages? | |
# | A model solves 41 % of problems at the first try and 98 % within 16 tries. After RL: does the 98 % rise, stay, or fall? | |
# | Nobody is paid for length. Do *wrong* answers become longer under GRPO all the same? | |
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
from minirlhf.evaluate import paired_difference, sharpened_or_learned
from minirlhf.experiments.practice import TASKS, group_config, practice_problems, scoring
from minirlhf.loops import group, ppo
from minirlhf.loops.group import train_group
from minirlhf.models.cost import LLAMA_70B, Plan, Shape, four_models, peak_bytes
from minirlhf.models.forward import decode
from minirlhf.models.load import load_policy
from minirlhf.models.roofline import H100, Machine, step_seconds
from minirlhf.models.sampling import sample_text
from minirlhf.rewards.rules import right_answer
from minirlhf.runtime import set_threads
from minirlhf.show import COLOURS
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
first_words = torch.tensor([0, 0, 1, 2])  # good, good, bad, stop
push = torch.zeros(3).double().index_add(0, first_words, centred[0]) / 4
print("push on the start's logits:", "  ".join(f"{x:+.4f}" for x in push.tolist()))
assert push.tolist() == [0.6250, -0.5625, -0.0625]
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
        slope = s[0] / p - (1 - s[0]) / (1 - p)
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
    xscale="log", xlabel="one of eight scores is better by", title="its advantage", ylim=(-0.1, 3.4)
)
right.legend(fontsize=8, frameon=False, loc="upper left", ncol=2)
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
#
# A gain in pass@1 is called **learning** if pass@16 rises with it, beyond the 95 % interval of the difference paired by problem, and **sharpening** if it does not: then training made likelier what the model could already do within sixteen tries (`evaluate.sharpened_or_learned`).

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



# %%
def kept(variant):
    """What a gain is, seed by seed: sharpening, learning or none."""
    mine, start = ([r for r in family if r["variant"] == name] for name in (variant, "start"))
    return [sharpened_or_learned(a, b) for a, b in zip(start, mine, strict=True)]


long = ("grpo, 400 steps", "reinforce, 400 steps")
claim(
    "Whatever the method, pass@1 rises on every seed beyond its interval,",
    all("no gain" not in kept(name) for name in names if name != "start"),
    evidence="paired by problem, 400 problems",
    seeds=3,
)
claim(
    "and after 400 steps pass@16 has risen on no seed beyond its interval.",
    all(kept(name) == ["sharpening"] * 3 for name in long),
    evidence=", ".join(
        f"{name}: {over_seeds(family, name, 'pass_16')[0]:.3f}" for name in ("start", *long)
    ),
    seeds=3,
)
assert max(over_seeds(family, name, "greedy")[2] for name in names) < 0.9
widest = max(high - low for _, low, high in (over_seeds(family, name, "pass_1") for name in names))
print(f"pass@1 of one row's three seeds is at most {widest:.3f} apart")
assert 0.04 < widest < 0.05
assert min(over_seeds(family, name, "greedy")[1] for name in long) > 0.87

# %% [markdown]
# With GRPO the greedy answer goes from 41 % to 86 %, single samples from 40 % to 68 %, and within sixteen tries the model could do nearly everything before. By the rule above that is **sharpening**; but where the start solves 98 % in sixteen tries there is hardly room to rise, and this task cannot tell the two apart. A harder one is needed for that. What it found is visible in the length: twice as many characters. It works in steps now.
# Nine in ten, which we had hoped for before the first run, is not reached: 400 steps, five minutes of one core, bring 88 to 89 %.
#
# The seconds were taken beside another job and are good for their order only.
#
# ## 5. The five objections
#
# ### Objection 1: the cost of inference
#
# *"At 70B sampling and training cost about the same. Who removes the critic and samples more instead may well lose."*
#
# Decoding reads all weights once for one token of every sequence, so it is bound by memory bandwidth; training reads them once for thousands of tokens and is bound by arithmetic. What the ratio is depends on how many sequences are decoded together. The cost model of lesson 10 (`models/roofline.py`; 64 H100, utilisations of
# 0.4 and 0.6 *assumed*), for 1024 responses of 1024 tokens to prompts of 512:

# %%
machine, sampled = H100.times(64), {}
print(
    "decoded together | sampling : training with a critic | without | a step: PPO, GRPO, GRPO with half as many responses again"
)
for together in (16, 24, 49, 64, 256):
    steps = [
        step_seconds(
            machine,
            Plan(
                prompts=int(128 * more),
                group_size=8,
                prompt_tokens=512,
                response_tokens=1024,
                bf16=True,
                decode_batch=together,
                critic=critic,
            ),
            LLAMA_70B,
        )
        for critic, more in (("separate", 1), ("none", 1), ("none", 1.5))
    ]
    sampled[together] = [s["sampling"] / s["training"] for s in steps[:2]]
    whole = [sum(s.values()) for s in steps]
    print(
        f"{together:16d} | {sampled[together][0]:31.2f} | {sampled[together][1]:7.2f} | "
        + ", ".join(f"{x:.0f} s" for x in whole)
    )
    assert whole[1] < whole[0] < 1.17 * whole[2]
    assert (whole[2] < whole[0]) == (together > 49)
assert abs(sampled[24][0] - 1) < 0.05 and abs(sampled[49][1] - 1) < 0.02
on_arithmetic = {
    name: sum(row["sampling_seconds"] / row["seconds"] for row in rows) / len(rows)
    for name in ("grpo", "dapo", "ppo")
    for rows in [[row for row in family if row["variant"] == name]]
}
print(
    "share of sampling in a step of this notebook's runs:",
    {k: f"{v:.0%}" for k, v in on_arithmetic.items()},
)

# %% [markdown]
# "One to one" is one point of a wide range: with a critic it takes a decode batch of 24, without one 49. At 16 sampling is almost three times the training of a GRPO step; at 256 a quarter. What the critic costs is a forward and a training pass; what that buys is nearly half as many responses again, more where
# decoding is cheap.
#
# **Verdict: half right.** The ratio in the objection occurs. But dropping the critic and keeping the number of responses is cheaper everywhere; sampling half as many again roughly spends what was saved; beyond that the objection holds.
#
# ### Objection 2: the system's complexity
#
# *"Several models must still work together, for inference and for training, so the system is hardly simpler."*

# %%


def lines_of(function):
    """Lines of code, comments and blank lines aside."""
    return sum(
        bool(x.strip()) and not x.strip().startswith("#")
        for x in inspect.getsource(function).splitlines()
    )


code = {
    "PPO": lines_of(ppo.train_ppo),
    "GRPO's family": lines_of(group.train_group) + lines_of(group._refilled),
}
table = {
    name: four_models(
        Plan(prompts=128, group_size=8, bf16=True, critic=critic, reward_model=judge), LLAMA_70B
    )
    for name, critic, judge in (
        ("PPO, reward model", "separate", True),
        ("GRPO, reward model", "none", True),
        ("GRPO, rule", "none", False),
    )
}
for name, row in table.items():
    held = [model for model, parts in row.items() if sum(parts.values())]
    print(
        f"{name:>20}: {len(held)} models ({', '.join(held)}), at 70B {peak_bytes(row) / 1e12:.2f} TB at the peak"
    )
print("lines of the training loop:", code)
peaks = [peak_bytes(row) for row in table.values()]
assert 1.7 < peaks[0] / peaks[1] < 1.8 and 1.0 < peaks[1] / peaks[2] < 1.15
assert code["GRPO's family"] > code["PPO"]

# %% [markdown]
# **Verdict: the system stays; a trained model goes.** Of four models three remain; sampler, reference and scorer must still be served. Of code we can only say that *our* loop without a critic is the longer one, because it holds fifteen rows, refilled groups and a greedy baseline; a loop for GRPO alone would be shorter, and PPO's has more of its maths in `core`. What goes, though the objection does not say so, is the second trained model with its optimiser:
# 1.1 of 2.6 TB. A rule in the place of the reward model, which is no matter of GRPO, saves far less: it is not trained.
#
# ### Objection 3: no better in theory or practice
#
# *"GRPO and RLOO do not clearly beat PPO. A sampled baseline may be more accurate than a learned critic, but one can train the critic first, with the actor frozen, or give PPO more responses a prompt."*
#
# All of these are rows of the table of section 4: PPO with 128 prompts a step; with its critic trained alone for the first 15 steps (they count, it sees the same number of responses); with 16 prompts of 8 responses, as GRPO. Differences by problem, with intervals over the 400 problems; all three seeds:

# %%


def apart(a, b, seed, rows=family, key="pass_1_by_prompt"):
    """Paired by problem: (mean of a - b, low, high)."""
    return paired_difference(
        *(next(r for r in rows if (r["variant"], r["seed"]) == (v, seed))[key] for v in (a, b))
    )


PPOS = ("ppo", "ppo, critic trained first", "ppo, 8 responses a prompt")
for name in ("rloo", "dr-grpo", "dapo", "remax", "reinforce", "reinforce++", *PPOS):
    print(
        f"pass@1 of {name:>26} - grpo:  "
        + "   ".join(
            f"{d:+.3f} [{low:+.3f}, {high:+.3f}]" for d, low, high in (apart(name, "grpo", s) for s in range(3))
        )
    )
print()
for name in PPOS[1:]:
    print(
        f"pass@1 of {name:>26} - ppo:   "
        + "   ".join(
            f"{d:+.3f} [{low:+.3f}, {high:+.3f}]" for d, low, high in (apart(name, "ppo", s) for s in range(3))
        )
    )

# %%
curves = load_results("family_history")
figure = Figure(figsize=(9, 3.2), dpi=110, layout="constrained")
left, right = figure.subplots(1, 2)
for (name, colour), style in zip(
    {"grpo": COLOURS[0], "rloo": COLOURS[1], "reinforce": COLOURS[2], "ppo": COLOURS[3], "ppo, 8 responses a prompt": "#444444"}.items(),
    ("-", "--", "-.", ":", (0, (5, 1, 1, 1))),
    strict=True,
):
    mine = [r for r in curves if r["variant"] == name]
    steps = sorted({r["step"] for r in mine})
    for axes, key in ((left, "score"), (right, "length")):
        means = [sum(r[key] for r in mine if r["step"] == t) / 3 for t in steps]
        axes.plot(steps, means, linestyle=style, color=colour, label=name, linewidth=1.6)
for axes, title in ((left, "share of right answers, mean of 3 seeds"), (right, "characters of a response")):
    axes.set(xlabel="step of 128 responses", title=title)
    axes.grid(alpha=0.3)
left.legend(fontsize=7.5, frameon=False)
display(figure)

# %%
def pooled(a, b, rows=family, key="pass_1_by_prompt"):
    """The difference of two variants, each problem's mean over the seeds: (mean, its 95 % interval over problems)."""
    mine, other = (
        torch.tensor([r[key] for r in rows if r["variant"] == name]).mean(0).tolist() for name in (a, b)
    )
    return paired_difference(mine, other)


for name in ("ppo", "rloo", "dapo", "remax"):
    d, low, high = pooled(name, "grpo")
    print(f"pass@1 of {name:>5} - grpo, seeds averaged: {d:+.3f} [{low:+.3f}, {high:+.3f}]")
claim(
    "Averaged over the seeds PPO is ahead of GRPO, by one to three hundredths of pass@1 (an interval over problems, not over seeds).",
    0 < pooled("ppo", "grpo")[1] and pooled("ppo", "grpo")[2] < 0.03,
    evidence="{:+.3f} [{:+.3f}, {:+.3f}]".format(*pooled("ppo", "grpo")),
    seeds=3,
)
begin = torch.tensor([r["pass_1_by_prompt"] for r in family if r["variant"] == "start"]).mean(0)
within = (begin * (1 - begin)).mean().item()
between = begin.var().item() - within / 48  # less what 48 samples a problem scatter by themselves
print(f"variance of a score at the start: {between:.3f} between problems, {within:.3f} within: {between / (between + within):.0%} between")
assert 0.1 < between / (between + within) < 0.2
claim(
    "Training the critic first, on samples that count, helps on no seed.",
    not any(low > 0 for _, low, _ in (apart(PPOS[1], "ppo", s) for s in range(3))),
    evidence="the intervals above",
    seeds=3,
)
claim(
    "Eight responses to each of 16 prompts serve PPO worse than one to each of 128, on every seed beyond the interval;",
    all(high < 0 for *_, high in (apart(PPOS[2], "ppo", s) for s in range(3))),
    evidence="the intervals above",
    seeds=3,
)
claim(
    "and REINFORCE and REINFORCE++, with 128 prompts a step, are ahead of GRPO with 16 on every seed beyond the interval.",
    all(
        low > 0
        for name in ("reinforce", "reinforce++")
        for _, low, _ in (apart(name, "grpo", s) for s in range(3))
    ),
    evidence="the intervals above",
    seeds=3,
)
others = [n for n in names if n not in ("start", "reinforce", "reinforce++") and "steps" not in n]
assert over_seeds(family, "reinforce", "pass_1")[1] > max(over_seeds(family, n, "pass_1")[2] for n in others)
work = {
    critic: sum(
        step_seconds(
            Machine(1.0, math.inf),
            Plan(
                prompts=prompts,
                group_size=128 // prompts,
                prompt_tokens=10,
                response_tokens=10,
                critic=critic,
                reward_model=False,
            ),
            Shape.of(policy),
        ).values()
    )
    for critic, prompts in (("none", 16), ("separate", 128))
}
ratio = work["separate"] / work["none"]
print(f"FLOP of a step, PPO over GRPO: {ratio:.1f}")
assert 1.5 < ratio < 2.5

# %% [markdown]
# **Verdict: right.** At equal samples PPO is ahead of GRPO, by about two hundredths, and its step costs about twice the arithmetic; who is ahead at equal work we have not run. Pre-training the critic did not pay for the samples it took. More responses a prompt made PPO *worse*.
#
# A larger difference is one that the objection does not name. The plainest method of all, REINFORCE with a running mean, wins on every seed over every method that spends its samples on groups. It sees 128 *different prompts* a step in the place of 16, and PPO, where nothing else was changed, lost when it was given 16. But REINFORCE differs in its baseline and unit as well, and ReMax and PPO
# with 128 prompts are not ahead of DAPO with 16, so the number of prompts is not all of it. What a group's baseline could win is small here: lesson 10 says that it beats a running mean where prompts differ in difficulty, and five sixths of a score's variance lie *within* a problem. Had the table only rows with groups, we would not know. (The rows without groups are PPO, REINFORCE, REINFORCE++ and
# ReMax; the latter writes twice.)
#
# ### Objection 4: normalisation
#
# *"When two rewards differ slightly, 1.001 and 1.00, normalisation may blow the difference up."*
#
# By hand: two scores a distance $d$ apart have std $d/\sqrt2$, so their advantages are $\pm \frac{d/2}{d/\sqrt 2 + \epsilon} \approx \pm \tfrac{1}{\sqrt 2}$, *whatever $d$ is*, until $d$ comes near $\epsilon$. For 1.001 and 1.000 it is:

# %%
for pair in ((1.0, 0.0), (1.001, 1.0)):
    a = group_relative(torch.tensor([pair], dtype=torch.float64))[0].tolist()
    print(f"scores {pair}: advantages {a[0]:+.4f}, {a[1]:+.4f}")
assert group_relative(torch.tensor([[1.001, 1.0]], dtype=torch.float64))[0, 0] > 0.6

# %% [markdown]
# A thousandth of a point is paid like a whole one, as the right picture of section 2 says for eight. Does it matter in training? A rule has no such tremble: its groups are equal or they are not. A reward model's scores have. So the rule is made to tremble: to each 0 or 1 something between 0 and a thousandth is added, at random.
# Recorded with `minirlhf grid jitter`, 80 steps, three seeds, judged by the untrembling rule. In the second row GRPO meets the tremble as it is; in the others the std is left out, or has a floor of 0.1, or groups that differ by less than a hundredth are dropped.

# %%
jitter = load_results("jitter")
for name in dict.fromkeys(row["variant"] for row in jitter):
    print(
        f"{name:>20}  pass@1 {over_seeds(jitter, name, 'pass_1')[0]:.3f} ({over_seeds(jitter, name, 'pass_1')[1]:.3f}..{over_seeds(jitter, name, 'pass_1')[2]:.3f})"
        f"   greedy {over_seeds(jitter, name, 'greedy')[0]:.3f}   pass@16 {over_seeds(jitter, name, 'pass_16')[0]:.3f}"
        + (
            ""
            if name == "grpo"
            else "   pass@1 - that of grpo: "
            + "  ".join(
                f"{d:+.3f} [{low:+.3f}, {high:+.3f}]"
                for d, low, high in (apart(name, "grpo", s, jitter) for s in range(3))
            )
        )
    )
trembling = [r for r in load_results("jitter_history") if r["variant"] == "grpo, exact scores"]
early, late = (
    sum(r["frac_reward_zero_std"] for r in trembling if r["step"] in steps) / sum(r["step"] in steps for r in trembling)
    for steps in (range(0, 10), range(70, 80))
)
print(f"groups without a difference, exact scores: {early:.0%} in the first ten steps, {late:.0%} in the last ten")

# %%
OTHERS = ("grpo, exact scores", "no std", "a floor of 0.1", "groups dropped")
claim(
    "Neither exact scores nor any remedy differs from trembling GRPO on every seed beyond its interval.",
    not any(
        all(low > 0 for _, low, _ in gaps) or all(high < 0 for *_, high in gaps)
        for gaps in ([apart(name, "grpo", s, jitter) for s in range(3)] for name in OTHERS)
    ),
    evidence="the intervals above",
    seeds=3,
)
assert early < 0.2 and late < 0.25
for name in OTHERS:
    print("{:>20} - trembling grpo, seeds averaged: {:+.3f} [{:+.3f}, {:+.3f}]".format(name, *pooled(name, "grpo", jitter)))
claim(
    "Averaged over the seeds the tremble costs about a hundredth of pass@1 (an interval over problems, not over seeds).",
    0 < pooled("grpo, exact scores", "grpo", jitter)[1] and pooled("grpo, exact scores", "grpo", jitter)[2] < 0.02,
    evidence="{:+.3f} [{:+.3f}, {:+.3f}]".format(*pooled("grpo, exact scores", "grpo", jitter)),
    seeds=3,
)

# %% [markdown]
# **Verdict: true by arithmetic, and it costs little here.** The tremble is paid at full size, but only in groups whose answers are all right or all wrong, between one in ten and one in five; its sign is random, so on average it pushes nowhere. The exact scores are ahead by a hundredth on each seed, each time within that seed's interval; averaged over the seeds the interval is just above 0. It would be another matter if the small
# differences had a *direction*: a reward model that likes one word by a thousandth teaches that word at full strength wherever nothing else differs. All three remedies cost one line, and none of them harmed.
#
# ### Objection 5: reward hacking
#
# *"Under a Bradley-Terry reward model GRPO is more easily hacked: long outputs that earn reward rather than correct ones."*
#
# Back to the film reviews and their learned reward model, on a loose leash (`kl_coef` 0.1). Recorded with `minirlhf grid hacking`: 24 steps of 64 responses, three seeds. *proxy* is the reward model that was paid by, *gold* the judge that no training saw (lesson 09).

# %%
hacking = load_results("hacking")
print(f"{'':>12} {'proxy':>18} {'gold':>18} {'KL, nats':>18} {'tokens':>18} {'distinct-2':>10}")
for name in dict.fromkeys(row["variant"] for row in hacking):
    cells = [
        "{:.2f} ({:.2f}..{:.2f})".format(*over_seeds(hacking, name, key)).rjust(18)
        for key in ("proxy", "gold", "kl", "length")
    ]
    print(f"{name:>12} " + " ".join(cells) + f" {over_seeds(hacking, name, 'distinct_2')[0]:10.2f}")
print()
for name in ("grpo-no-std", "dr-grpo", "rloo", "ppo"):
    print(
        f"gold of {name:>12} - grpo: "
        + "   ".join(
            f"{d:+.2f} [{low:+.2f}, {high:+.2f}]"
            for d, low, high in (apart(name, "grpo", s, hacking, "gold_by_prompt") for s in range(3))
        )
    )
steps = load_results("hacking_history")
figure = Figure(figsize=(9, 3.0), dpi=110, layout="constrained")
for axes, key, title in zip(
    figure.subplots(1, 3), ("score", "gold", "length"), ("proxy, paid", "gold, not paid", "tokens of a review"), strict=True
):
    for name, colour, style in zip(("grpo", "dr-grpo", "rloo", "ppo"), COLOURS, ("-", "--", "-.", ":"), strict=False):
        rows = [r for r in steps if r["variant"] == name]
        ticks = sorted({r["step"] for r in rows})
        axes.plot(
            ticks,
            [sum(r[key] for r in rows if r["step"] == t) / 3 for t in ticks],
            linestyle=style,
            color=colour,
            label=name,
            linewidth=1.8,
        )
    axes.set(xlabel="step", title=title)
    axes.grid(alpha=0.3)
axes.legend(fontsize=8, frameon=False)
display(figure)
for name in ("grpo", "ppo"):
    print(f"\n{name}, seed 0, the first samples:")
    row = next(r for r in hacking if (r["variant"], r["seed"]) == (name, 0))
    print(*(text.strip() for text in list(row["samples"].values())[:3]), sep="\n")

# %%
def hacked(name, key):
    return [r[key] for r in hacking if r["variant"] == name]


start = [r["length"] for r in load_results("hacking_history") if r["step"] == 0]
print(f"tokens of a review at the first step: {min(start):.1f} to {max(start):.1f}")
claim(
    "PPO takes more of the proxy than GRPO on every seed, and its gold is no lower;",
    all(a > b for a, b in zip(hacked("ppo", "proxy"), hacked("grpo", "proxy"), strict=True))
    and not any(high < 0 for *_, high in (apart("ppo", "grpo", s, hacking, "gold_by_prompt") for s in range(3))),
    evidence="the table above",
    seeds=3,
)
claim(
    "with every method reviews become shorter by three tenths or more.",
    max(r["length"] for r in hacking) < 0.7 * sum(start) / len(start),
    evidence=f"{min(r['length'] for r in hacking):.1f} to {max(r['length'] for r in hacking):.1f} tokens at the end",
    seeds=3,
)
before = [r["distinct_2"] for r in load_results("tour") if r["method"] == "SFT"]
print(f"distinct-2 of the SFT model: {sum(before) / 3:.2f}")
assert max(r["distinct_2"] for r in hacking) < 0.66 * min(before)
assert over_seeds(hacking, "ppo", "distinct_2")[0] == min(
    over_seeds(hacking, r["variant"], "distinct_2")[0] for r in hacking
)
claim(
    "Dr. GRPO's constant denominator makes no difference to length that seeds agree on: against the same without it, longer once and shorter twice.",
    [a > b for a, b in zip(hacked("dr-grpo", "length"), hacked("grpo-no-std", "length"), strict=True)].count(True) == 1,
    evidence=", ".join(
        f"{a:.1f} against {b:.1f}" for a, b in zip(hacked("dr-grpo", "length"), hacked("grpo-no-std", "length"), strict=True)
    ),
    seeds=3,
)

path = {
    key: [sum(x) / 3 for x in zip(*([r[key] for r in steps if (r["variant"], r["seed"]) == ("grpo", s)] for s in range(3)), strict=True)]
    for key in ("gold", "score")
}
for key, x in path.items():
    print(f"GRPO's {key}, mean of the seeds: {x[0]:.2f} at first, {max(x):.2f} at best, {x[-1]:.2f} at the end")
    assert x[0] < x[-1] < max(x)

# %% [markdown]
# **Verdict: not borne out, as far as this can test it.** On this leash all methods hack: read the samples. They are one exclamation in variations, and the variety of word pairs is about half of what the SFT model writes. But GRPO is no more easily led than PPO, which takes *more* of the proxy with the fewest word pairs. (PPO had 64 different prompts a step, GRPO 16 with four responses each: by objection 3 that is a difference of its own.) Whether long outputs earn reward cannot be asked of
# this reward model: it likes short raves, so everybody's texts shrink.
# Length is what the reward model makes of it (lesson 18 will plant that bias on purpose). What a *rule* does to length we saw in section 4: there it grew, because steps are right. The denominator, of which section 6 proves that it moves length, is too weak a force to be seen here beside a reward.
# And gold, which nobody was paid by, goes with the proxy: both rise, level off and end a little below their best. It was fitted on what people write, and nobody writes this. It is a better judge than the one that was paid, and still no reader.

# %% [markdown]
# ## 6. Repairs
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
# **DAPO** leaves the KL out and changes four things. *Clip-higher*: the upper end of the clip is 0.28, the lower 0.2; a token may rise by 28 % in a step instead of 20 %; in absolute terms that is next to nothing for a rare one, and rare ones are where exploration comes from. *Dynamic sampling*: groups without a difference are drawn anew. *Token mean*: the batch's tokens are averaged,
# so a long response counts by its length. *Overlong penalty*: in the last tokens before the limit a response pays, linearly.
#
# **GSPO** gives a whole response one ratio, $s_i = \big(\pi(y_i)/\pi_{\text{old}}(y_i)\big)^{1/|y_i|}$, since what is rewarded is the whole; the clip is then a few ten-thousandths wide. (RLOO in TRL has the whole ratio without the root.)
#
# **CISPO** asks what the clip does to a token that has moved far: PPO takes its gradient away. CISPO caps its *weight* instead: $-\,\mathrm{sg}[\min(\rho, 1 + \epsilon_{\text{high}})]\, A \log \pi$, and every token goes on teaching. (In the table $\epsilon_{\text{high}} = 4$: the weight is at most 5, and has no floor but 0.)
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
# *there* GSPO is GRPO, down to rounding, and CISPO is GRPO with a token mean. Four passes over each batch, with half of the batches:

# %%
four = ("grpo, 4 epochs", "gspo, 4 epochs", "cispo, 4 epochs")
moved = load_results("family_history")
taken = [r["clip_fraction"] for r in moved if r["variant"] == "gspo, 4 epochs"]
assert 0.5 < sum(taken) / len(taken) < 0.6 and 0.7 < sum(taken) / len(taken) * 4 / 3 < 0.75  # of all passes; of the last three
for name in ("grpo", "gspo", "cispo", *four):
    ratio = [r["clip_fraction"] for r in moved if r["variant"] == name]
    print(
        f"{name:>16}  pass@1 {over_seeds(family, name, 'pass_1')[0]:.3f} ({over_seeds(family, name, 'pass_1')[1]:.3f}..{over_seeds(family, name, 'pass_1')[2]:.3f})"
        f"   tokens clipped, mean of the run: {sum(ratio) / len(ratio):.1%}"
    )

# %%
apart_at_most = max(
    abs(a["pass_1"] - b["pass_1"])
    for a in family
    for b in family
    if (a["variant"], b["variant"]) == ("grpo", "gspo") and a["seed"] == b["seed"]
)
by_seed = {name: [r["greedy"] for r in family if r["variant"] == name] for name in four}
print(f"the same algorithm twice (GRPO and GSPO in one pass): pass@1 at most {apart_at_most:.3f} apart")
claim(
    "After four passes over half of the batches the greedy answer of GSPO is best and CISPO's worst, on every seed,",
    all(gspo > grpo > cispo for grpo, gspo, cispo in zip(*by_seed.values(), strict=True)),
    evidence="; ".join(
        f"{name} {', '.join(f'{x:.2f}' for x in xs)}" for name, xs in by_seed.items()
    ),
    seeds=3,
)
claim(
    "and CISPO's pass@16 has fallen below the start's on every seed.",
    max(r["pass_16"] for r in family if r["variant"] == "cispo, 4 epochs")
    < min(r["pass_16"] for r in family if r["variant"] == "start"),
    evidence=f"at most {over_seeds(family, 'cispo, 4 epochs', 'pass_16')[2]:.3f} against at least {over_seeds(family, 'start', 'pass_16')[1]:.3f}",
    seeds=3,
)

# %% [markdown]
# Here is where clips matter. GSPO's, a few ten-thousandths wide, takes away half of all gradients of the run; the first pass has ratio 1 and clips nothing, so from the second pass on it is almost three in four, and what is left keeps the greedy answer. GRPO's takes the gradient of one token in seventy; it gets as far with half of the samples as with all of them in one pass, by pass@1, and loses greedily. CISPO, which silences nobody, walks farthest and has lost some of what the start could do. None of this is a ranking: the bands were
# taken from the papers, not tuned to four passes of a model of 0.6 million parameters.
#
# ## What the libraries do
#
# | | TRL (1.12) | OpenRLHF (0.11) | verl (0.10) |
# |---|---|---|---|
# | GRPO's std | divides by G - 1, `eps` 1e-4; off or of the whole batch by `scale_rewards` | eps 1e-9; off with `dr_grpo` | eps 1e-6; a switch |
# | denominator | by `loss_type`: own length (`grpo`), batch's tokens (`dapo`), a constant (`dr_grpo`) | token mean | by `loss_agg_mode` |
# | RLOO | KL summed into the score, one ratio a response | KL charged per token after the baseline | n/(n-1)(r - mean), token by token |
# | KL | k3 in the loss, `beta` 0 by default | in the reward, or the loss | either, two switches |
# | equal groups | kept, their advantage is 0 | dropped with `dynamic_filtering` | dropped in its DAPO recipe |
#
# Three libraries, three RLOOs: a name in a paper's table is not an algorithm until its row is written down. `GroupConfig.named("rloo-openrlhf")` and `"rloo-verl"` run the other two.
#
# ## Exercises
#
# Each checker says *pass*, or the likely mistake in one sentence.
#
# **1. GRPO's advantages** *(easy, 10 minutes)*. From the scores (N, G) of N prompts with G responses each, return the advantages (N, G): centred within the prompt, divided by the prompt's std (that of `torch.std`, by G - 1) plus 1e-4. A group of equal scores must give exactly 0, also for 0.9, whose mean
# is rounded. *This function goes into your `my_rlhf.py`.*
#
# *Hint:* `keepdim=True`. For equal scores: `torch.where` on the group's largest and smallest.


# %%
def group_advantages(group_scores): ...  # your code


print(check.group_advantages(group_advantages))

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def group_advantages(group_scores):
#     centred = group_scores - group_scores.mean(1, keepdim=True)
#     equal = group_scores.amax(1, keepdim=True) == group_scores.amin(1, keepdim=True)
#     return torch.where(equal, 0.0, centred) / (group_scores.std(1, keepdim=True) + 1e-4)
# ```
# </details>
#
# **2. pass@k** *(medium, 10 minutes)*. From `right` (N, n), booleans, and k, return for each prompt the chance (N,) that k samples, drawn from its n without putting back, hold a right one.
#
# *Hint:* all k are wrong with probability $\prod_{i<k} \frac{w - i}{n - i}$, with $w$ wrong ones; where $w < k$ that is 0. Floats of any precision will do.


# %%
def pass_at_k(right, k): ...  # your code


print(check.pass_at_k(pass_at_k))

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def pass_at_k(right, k):
#     n, wrong, missed = right.shape[1], (~right).sum(1).double(), 1.0
#     for i in range(k):
#         missed = missed * (wrong - i).clamp(min=0) / (n - i)
#     return 1 - missed
# ```
# </details>
#
# **3. GSPO's loss** *(medium, 15 minutes)*. From log-probabilities (B, R) now and when sampled, advantages (B,), the mask (B, R) and eps, return the loss (B,) of each response: the ratio is the geometric mean of its tokens' ratios, clipped as PPO does. Padding may hold NaN. The checker compares gradients too.
#
# *Hint:* a geometric mean is exp of the mean logarithm.


# %%
def gspo_loss(logprobs, old_logprobs, advantages, mask, eps): ...  # your code


print(check.gspo_loss(gspo_loss))

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def gspo_loss(logprobs, old_logprobs, advantages, mask, eps):
#     log_ratio = torch.where(mask, logprobs, 0.0) - torch.where(mask, old_logprobs, 0.0)
#     ratio = (log_ratio.sum(1) / mask.sum(1)).exp()
#     return -torch.minimum(ratio * advantages, ratio.clamp(1 - eps, 1 + eps) * advantages)
# ```
# </details>
#
# **4. Find the bug: "Dr. GRPO"** *(medium, 15 minutes)*. A colleague's Dr. GRPO makes wrong answers longer and longer. Here is the loss, for samples that the present policy wrote, and its curve in the world of section 6. Say from the curve which of the two halves is missing; then mend it.


# %%
def dr_grpo_loss(logprobs, group_scores, mask, max_tokens):
    """logprobs (N G, R), a prompt's responses side by side; group_scores (N, G); max_tokens: the limit of a response."""
    advantages = (group_scores - group_scores.mean(1, keepdim=True)).flatten()
    losses = torch.where(mask, -advantages[:, None] * torch.where(mask, logprobs, 0.0), 0.0)
    return (losses.sum(1) / mask.sum(1)).mean()


# %%
def walk_with(loss_of, steps=40, rate=4.0, groups=2048):
    """Length of wrong texts along steps of a loss on groups of eight sampled in section 6's world."""
    table, path, draw = first_word.ref_logits.clone(), [], torch.Generator().manual_seed(0)
    for _ in range(steps):
        p = first_word.probs(table)
        path.append(((p * lengths)[~is_right].sum() / p[~is_right].sum()).item())
        index = torch.multinomial(p, groups * 8, replacement=True, generator=draw)
        moved = table.clone().requires_grad_(True)
        scores, mask = first_word.rewards[index].view(-1, 8), first_word.response_mask[index]
        loss_of(first_word.logprobs(moved)[index], scores, mask, 6).backward()
        table = table - rate * moved.grad
    return path


curve = walk_with(dr_grpo_loss)
figure = Figure(figsize=(5.5, 2.6), dpi=110, layout="constrained")
axes = figure.add_subplot()
axes.plot(curve, color=COLOURS[0], linewidth=2)
axes.set(xlabel="step", ylabel="words of a wrong text", ylim=(2, 4))
axes.grid(alpha=0.3)
display(figure)

# %%
print(check.dr_grpo_loss(dr_grpo_loss))

# %% [markdown]
# <details><summary>Solution</summary>
#
# The scale of scores is left alone (no std), but each response is still divided by its own length, so a long wrong text is blamed less per word: wrong texts lengthen. The last line must be `return losses.sum() / (len(losses) * max_tokens)`. Call `walk_with(dr_grpo_loss)` again: the curve is flat but for sampling noise.
# </details>
#
# **5. Which groups teach?** *(easy, 5 minutes)*. Return (N,) booleans: True for the groups that dynamic sampling keeps, those whose scores differ by more than `spread`.


# %%
def kept_groups(group_scores, spread): ...  # your code


print(check.kept_groups(kept_groups))

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def kept_groups(group_scores, spread):
#     return group_scores.amax(1) - group_scores.amin(1) > spread
# ```
#
# Not `std > 0`: the std of three times 0.9 is a rounding error, and a rounding error is above 0. And not `std > spread`: a std is smaller than a spread.
# </details>
#
# **6. Predict, then run** *(5 minutes)*. A group of eight on a problem with $p = 0.02$: with which probability does it teach anything at all? And with $p = 0.4$, its mean at the start? If a batch must hold 16 groups that teach, how many must dynamic sampling draw at each? Write it down, take the hash away.


# %%
def teaches(p, size=8):
    return 1 - p**size - (1 - p) ** size


# print({p: (round(teaches(p), 2), round(16 / teaches(p))) for p in (0.02, 0.4)})

# %% [markdown]
# <details><summary>What you should see</summary>
#
# 0.15 and 0.98: of the hard problems 107 groups are needed for 16, of the others 16. Dynamic sampling does not make hard problems easier; it moves the cost from wasted gradients to more sampling, and keeps the batch's size.
# </details>

# %%
assert round(teaches(0.02), 2) == 0.15 and round(teaches(0.4), 2) == 0.98
assert round(16 / teaches(0.02)) == 107 and round(16 / teaches(0.4)) == 16

# %% [markdown]
# **7. Invent a row** *(15 minutes)*. An algorithm is a row of choices (`loops/family.py`; notebook 10 draws them). Write one that is not in the table, say why it might do well on arithmetic, and train it for 20 steps with `train_group` as in section 3, with `dataclasses.replace(group_config("arithmetic", "grpo", steps=20), algorithm=Algorithm(...))`; `from minirlhf.loops.family import CHOICES, Algorithm`, and `CHOICES` lists what each choice may be.
# A wrong choice is refused with a sentence: try `Algorithm(scale="group std", baseline="none")`.
#
# <details><summary>What a good answer has</summary>
#
# For instance `Algorithm(baseline="others' mean", scale="none", clip="cispo", clip_eps=1.0, clip_eps_high=4.0, aggregation="constant")`: an unbiased baseline, no bias of length, and tokens that have moved far still taught. Twenty steps from one seed will not tell it from GRPO: in section 4 three seeds of the
# *same* row are up to five hundredths apart.
# </details>
#
# **8. Design the experiment** *(hard, 15 minutes)*. "GRPO beats PPO on maths by two points." What would you have to see before you believe it?
#
# <details><summary>What a good answer has</summary>
#
# Equal prompts, equal numbers of responses, and the same *number of responses a prompt* for both; each with its learning rate chosen on a validation set with the same number of tries; the critic's start said (a head on what?), and given its warm-up. Several seeds, differences paired by problem with intervals; the spread of two runs of one algorithm beside
# them. Both axes: responses and seconds. Greedy, pass@1 and pass@k: a gain in pass@1 alone is sharpening, and both may be at its ceiling. Length, since a denominator moves it.
# </details>
#
# ## Questions
#
# <details><summary>1. My GRPO loss is 0 at the first step. Does it learn?</summary>
# At ratio 1 each response's loss is minus its advantage, and centred advantages sum to 0, so with a mean of per-response means the loss <i>is</i> 0. Its gradient is not. Watch the reward, the gradient's norm, and the share of groups without a difference.
# </details>
# <details><summary>2. Why does GRPO need several samples of a prompt, and REINFORCE does not?</summary>
# The group is its baseline. REINFORCE may compare with the mean of earlier batches: that is the same number for an easy and a hard prompt, so an easy prompt's responses all look good. It is unbiased and noisier.
# </details>
# <details><summary>3. The ratio in my log is always 1. Is something broken?</summary>
# Not if each batch is used for one step: then the policy that learns is the one that sampled, and the clip never acts. It moves from the second step on the same batch.
# </details>
# <details><summary>4. Length grows during my run. Is that hacking?</summary>
# Find out what length buys. Here steps buy right answers, and length grows with accuracy. If wrong responses lengthen faster than right ones, look at the denominator; if the judge that no training saw falls, at the reward model.
# </details>
# <details><summary>5. Why does a tremble of a thousandth reach GRPO at full size, and RLOO as a thousandth?</summary>
# GRPO measures each group with its own unit. Where all scores are equal but for the tremble, the tremble is the unit. RLOO keeps reward units, in which a thousandth is a thousandth.
# </details>
#
# **References.** Shao et al. 2024, *DeepSeekMath*, section 4.1 (GRPO). Ahmadian et al. 2024, *Back to Basics*, section 3 (RLOO). Li et al. 2023 (ReMax). Hu 2025 (REINFORCE++). Liu et al. 2025, *Understanding R1-Zero-like training*, section 3 (Dr. GRPO). Yu et al. 2025, *DAPO*, section 3. Zheng et al. 2025, *Group sequence policy
# optimization*, section 4. MiniMax 2025, *MiniMax-M1*, section 3 (CISPO). Chen et al. 2021 (pass@k, equation 1). Yue et al. 2025, *Does reinforcement learning really incentivize reasoning capacity beyond the base model?* (sharpening).
