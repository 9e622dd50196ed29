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
# # 06 · PPO
#
# **The question.** Writing texts is the dear part of RLHF. How many steps can one take on texts that an *earlier* policy wrote, and what keeps them honest?
#
# **You need** lessons 04 and 05. 35 minutes to read, 60 for the exercises.
#
# **Predict.** PPO's loss of a token is $-\min(\rho A,\ \mathrm{clip}(\rho, 0.8, 1.2)\, A)$, where $\rho$ is the token's probability now over its probability when it was sampled. In which of the six cases is the gradient zero?
#
# | | $\rho$ below 0.8 | between | above 1.2 |
# |---|---|---|---|
# | $A > 0$, the token was good | | | |
# | $A < 0$, the token was bad | | | |

# %%
# %matplotlib inline
import math

import torch
from IPython.display import display
from matplotlib.figure import Figure

from minirlhf.classroom import check
from minirlhf.classroom.claims import claim, load_results
from minirlhf.core.exact import World
from minirlhf.core.masking import aggregate
from minirlhf.core.policy_gradient import is_clipped, ppo_clip, reinforce, value_loss_clipped
from minirlhf.evaluate import paired_difference
from minirlhf.loops.ppo import PPOConfig, train_ppo
from minirlhf.models.load import load_policy, load_scalar
from minirlhf.rewards.model import rollout_score
from minirlhf.runtime import set_threads
from minirlhf.show import COLOURS
from minirlhf.tasks import reviews
from minirlhf.tour import trainable

set_threads()

# %% [markdown]
# ## 1. Another policy's texts
#
# A mean under the policy $\pi$ can be taken over texts of an older one, if each is weighted: $\mathbb{E}_{y \sim \pi}[f] = \sum_y \pi_{\text{old}}(y) \frac{\pi(y)}{\pi_{\text{old}}(y)} f(y) = \mathbb{E}_{y \sim \pi_{\text{old}}}[\rho(y) f(y)]$. This is *importance sampling*, and it is exact.
# Its trouble is noise. A text's ratio is the product of its tokens', $\rho(y) = \prod_t \rho_t$, and products of many factors around 1 are rarely around 1.
#
# PPO does not use the product. For each token it takes that token's ratio alone,
#
# $$ L^{\text{tokens}} = \mathbb{E}_{\pi_{\text{old}}} \sum_t \rho_t A_t , \qquad \rho_t = \frac{\pi(y_t \mid y_{<t})}{\pi_{\text{old}}(y_t \mid y_{<t})} = e^{\log \pi - \log \pi_{\text{old}}} , $$
#
# as if the text before the token were still written by the old policy. Where $\pi = \pi_{\text{old}}$ every ratio is 1 and $\nabla \rho_t = \rho_t \nabla \log \pi = \nabla \log \pi$: the gradient is REINFORCE's. Further off it is wrong by what the prefixes have changed. So one must not go far:
# that is all that the clip is for.
#
# **By hand**, on the world of lessons 04 to 07. The old policy is uniform, the new one prefers *good* at the start: (1/2, 1/4, 1/4). The text *good good* then has the token ratios 3/2 and 1:

# %%
hand = World.from_reward(
    ("good", "bad", "."), 2, lambda words: float(words.count("good") - words.count("bad"))
)
new_logits = torch.tensor([[math.log(2), 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]).double()
old, new = hand.logprobs(hand.ref_logits), hand.logprobs(new_logits)
assert torch.allclose(
    (new - old).exp()[hand.labels.index("goodgood")], torch.tensor([1.5, 1.0]).double()
)
values, q = hand.values(hand.ref_logits)  # V is 0, 1, -1 (lesson 05)
advantages = torch.where(
    hand.response_mask, (q - values[:, None])[hand.visited, hand.response_ids], 0.0
)  # of a word: Q - V
losses = ppo_clip(new, old, advantages, hand.response_mask)
one_by_one = {
    "first": -min(1.5 * 1, 1.2 * 1),
    "second": -1.0 * 1,
}  # A is 1 for both: clipped at 1.2, and not clipped
assert torch.allclose(
    losses[hand.labels.index("goodgood")], torch.tensor(list(one_by_one.values())).double()
)
print(
    "good good:",
    {k: round(x, 2) for k, x in one_by_one.items()},
    "  bad bad:",
    losses[hand.labels.index("badbad")].tolist(),
)

# %% [markdown]
# *bad* at the start has ratio 3/4 and advantage -1: already below 0.8, so it is clipped too, at $-0.8 \cdot (-1) = 0.8$.
#
# ## 2. Six cases
#
# $$ L^{\text{clip}}_t = \min \big( \rho_t A_t,\ \mathrm{clip}(\rho_t, 1 - \epsilon, 1 + \epsilon)\, A_t \big) $$
#
# A good token ($A > 0$) is worth pushing until its ratio is $1 + \epsilon$; beyond, the second term is smaller and constant: no gradient. A bad one until $1 - \epsilon$. On the *other* side the min picks the first term, which is not clipped: a good token that
# has become rarer, a bad one that has become likelier, are pulled back from however far. So of the six cases two have no gradient.

# %%
ratios = torch.linspace(0.5, 1.5, 201, dtype=torch.float64)
figure = Figure(figsize=(9, 3), dpi=110, layout="constrained")
for axes, a in zip(figure.subplots(1, 2), (1.0, -1.0), strict=True):
    x = ratios.log()[:, None].requires_grad_(True)
    everything = torch.ones_like(x, dtype=torch.bool)
    gain = -ppo_clip(x, torch.zeros_like(x), torch.full_like(x, a), everything)
    (slope,) = torch.autograd.grad(gain.sum(), x)
    flat = slope[:, 0] == 0
    axes.plot(ratios, ratios * a, color="#bbbbbb", linewidth=1, label="ratio times A")
    axes.plot(
        ratios[~flat], gain.detach()[~flat, 0], "-", color=COLOURS[0], linewidth=2.5, label="pulls"
    )
    axes.plot(
        ratios[flat],
        gain.detach()[flat, 0],
        "--",
        color=COLOURS[1],
        linewidth=2.5,
        label="clipped: no gradient",
    )
    axes.axvline(1, color="#888888", linewidth=0.7)
    axes.set(
        xlabel="ratio",
        ylabel="what is maximised",
        title=f"A {'> 0: a good token' if a > 0 else '< 0: a bad token'}",
    )
    axes.legend(fontsize=8, frameon=False)
    assert torch.equal(flat, ratios > 1.2 if a > 0 else ratios < 0.8)
    assert torch.equal(
        is_clipped(x, torch.zeros_like(x), torch.full_like(x, a), everything)[:, 0], flat
    )
display(figure)

# %% [markdown]
# The min makes the objective a *lower bound* of the unclipped one: it never promises more. It is no wall, though. A clipped token has no gradient of its own, but it shares its weights with all others, and their gradients move it. In the first minibatch
# nothing is clipped and all ratios are 1; the clip begins to act when the policy has moved.
#
# At ratio 1 the gradient is REINFORCE's, with the same advantages, token by token:

# %%
world = World.random(3, 3, seed=0)
logits = world.ref_logits + torch.randn(
    7, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64
)
mask, old = world.response_mask, world.logprobs(logits)
values, q = world.values(logits)
advantages = torch.where(mask, (q - values[:, None])[world.visited, world.response_ids], 0.0)


def pull(loss_of, at):
    """- d/dlogits of the expected loss over texts of the old policy, at other logits."""
    moved = at.clone().requires_grad_(True)
    return -torch.autograd.grad(
        world.expectation(logits, loss_of(world.logprobs(moved)).sum(1)), moved
    )[0]


assert torch.allclose(
    pull(lambda lp: ppo_clip(lp, old, advantages, mask), logits), world.gradient(logits)
)
assert torch.allclose(pull(lambda lp: reinforce(lp, advantages, mask), logits), world.gradient(logits))

# %% [markdown]
# ## 3. How far is too far?
#
# Now walk on the *same* rollout. Four texts of the fifteen are drawn once; advantages are fixed; gradient steps are taken on the token surrogate, with and without the clip, and after each step we ask the exact world how good the policy has truly become. Many draws, so that the picture is not one story.


# %%
def walk(clip, *, texts, steps=60, rate=1.0):
    """True J after each step on one rollout, whose advantages are the sampled reward minus the others' mean."""
    table, path = logits.clone(), []
    reward = world.rewards[texts]
    advantage = (reward - (reward.sum() - reward) / (len(reward) - 1))[:, None].expand(-1, 3)
    for _ in range(steps + 1):
        path.append((world.objective(table) - world.objective(logits)).item())
        moved = table.clone().requires_grad_(True)
        lp, here = world.logprobs(moved)[texts], mask[texts]
        bounds = {} if clip else {"clip_eps": 1.0, "clip_eps_high": 1e9}
        aggregate(
            ppo_clip(lp, old[texts], advantage, here, **bounds), here, how="sequence_sum"
        ).backward()
        table = table - rate * moved.grad
    return path


generator = torch.Generator().manual_seed(0)
draws = [
    torch.multinomial(world.probs(logits), 4, replacement=True, generator=generator) for _ in range(60)
]
gain = {
    name: torch.tensor([walk(clip, texts=texts) for texts in draws])
    for name, clip in (("clip 0.2", True), ("no clip", False))
}
figure = Figure(figsize=(6.4, 3.4), dpi=110, layout="constrained")
axes = figure.add_subplot()
for (name, y), colour, style in zip(gain.items(), COLOURS, ("-", "--"), strict=False):
    axes.plot(y.mean(0), style, color=colour, linewidth=2, label=f"{name}: mean")
    axes.plot(
        y.quantile(0.1, dim=0),
        style,
        color=colour,
        linewidth=1,
        alpha=0.6,
        label=f"{name}: the worst tenth",
    )
axes.axhline(0, color="#888888", linewidth=0.8)
axes.set(xlabel="steps on one rollout of 4 texts", ylabel="true gain in mean reward")
axes.legend(fontsize=8, frameon=False, loc="center right", bbox_to_anchor=(1, 0.6))
axes.grid(alpha=0.3)
display(figure)

# %%
worst = {name: y.quantile(0.1, dim=0)[-1].item() for name, y in gain.items()}
print(
    {
        name: f"mean gain {y.mean(0)[-1]:+.2f}, worst tenth {worst[name]:+.2f}"
        for name, y in gain.items()
    }
)
assert worst["no clip"] < 0 < worst["clip 0.2"]
assert gain["no clip"].mean(0)[-1] > gain["clip 0.2"].mean(0)[-1]

# %% [markdown]
# Read the picture for what it is. Without the clip the mean gain of many steps is *larger*: four texts do say something. But the worst tenth loses: it walked to where its four texts pointed, as far as it was let. The clip trades the upside for not losing; a new rollout then gives a new
# direction. (On a true reward. On a learned one the upside is partly the reward model's errors.)
#
# ## 4. The critic's clip
#
# The same idea for V: $L^V = \tfrac12 \max\big((V - R)^2, (\mathrm{clip}(V, V_{\text{old}} \pm c) - R)^2\big)$. The *larger* of the two squared errors is minimised, so a value that has moved further than $c$ from its rollout's has no gradient as long as the clipped value is the further from $R$; one that moved the wrong way, or overshot by more, has all of it. It is not in the paper, but in its
# authors' code. By hand, with $V_{\text{old}} = 0$, $c = 0.5$ and a return of 2: at $V = 1$ the clipped value is 0.5, its error 1.5, larger than 1, so the loss is $1.125$ and V is left where it is.

# %%
v = torch.tensor([[1.0, 0.3, -1.0]], requires_grad=True)
returns, three = torch.full((1, 3), 2.0), torch.ones(1, 3, dtype=torch.bool)
loss = value_loss_clipped(v, torch.zeros(1, 3), returns, three, clip_eps=0.5)
(slope,) = torch.autograd.grad(loss.sum(), v)
print("loss", loss.tolist(), "gradient", slope.tolist())
assert loss[0, 0].item() == 1.125 and slope[0, 0] == 0  # too far already: left alone
assert (
    slope[0, 1] < 0 and slope[0, 2] == -3
)  # within the band; and the wrong way, where it is pulled back at full strength

# %% [markdown]
# ## 5. What breaks when a part is removed?
#
# Recorded with `minirlhf grid ablations`: PPO on tiny-reviews from the committed models, three seeds each, judged on the 76 test films. Nothing else was changed or tuned. Beside them stands lesson 07's `kl_coef 0.5`: *the same settings and seeds once more*, run with one thread where the others had two. Sums are taken in another order, a last digit differs, another word is drawn; after 24 steps they are different runs. So there are six runs of "as it is", and their spread is the yardstick.
# **Predict** before you look: which one of these hurts most?

# %%
twin = "as it is, once more"
leash = load_results("leash")
variants = list(dict.fromkeys(row["variant"] for row in load_results("ablations")))
recorded = load_results("ablations") + [row | {"variant": twin} for row in leash if row["variant"] == "kl_coef 0.5"]
print(f"{'variant':>22} {'gold':>14} {'proxy':>14} {'KL, nats':>14} {'tokens':>7} {'distinct-2':>10}")
for variant in (*variants, twin):
    rows = [row for row in recorded if row["variant"] == variant]
    cells = []
    for key in ("gold", "proxy", "kl"):
        x = [row[key] for row in rows]
        cells.append(f"{sum(x) / len(x):6.2f} ({min(x):.1f}..{max(x):.1f})")
    print(
        f"{variant:>22} "
        + " ".join(f"{c:>14}" for c in cells)
        + f" {sum(row['length'] for row in rows) / len(rows):7.1f} {sum(row['distinct_2'] for row in rows) / len(rows):10.2f}"
    )

# %%
figure = Figure(figsize=(9, 3.4), dpi=110, layout="constrained")
for axes, key in zip(figure.subplots(1, 2), ("gold", "distinct_2"), strict=True):
    for variant, marker in zip((*variants, twin), "osD^vPX*.", strict=True):
        rows = [row for row in recorded if row["variant"] == variant]
        many = "eight" in variant
        axes.plot(
            [row["kl"] for row in rows],
            [row[key] for row in rows],
            marker,
            color=COLOURS[1] if many else COLOURS[0],
            label=variant,
            markersize=7,
            alpha=0.85,
        )
    axes.set(xlabel="KL to SFT, nats a text", ylabel=key.replace("_", "-"))
    axes.grid(alpha=0.3)
axes.legend(fontsize=7.5, frameon=False)
display(figure)


# %%
def row_of(variant, seed):
    return next(row for row in recorded if (row["variant"], row["seed"]) == (variant, seed))


def gold_of(*names):
    """(films,) gold of each test film, the mean over the variants and their three seeds."""
    return torch.tensor([row_of(name, seed)["gold_by_prompt"] for name in names for seed in range(3)]).mean(0).tolist()


def against(variant, other="as it is"):
    """Paired by film, for each seed: gold's mean difference and its 95 % interval."""
    return [
        paired_difference(*(row_of(v, seed)["gold_by_prompt"] for v in (variant, other)))
        for seed in range(3)
    ]


same = ("as it is", twin)
repeated = [row_of(name, seed)["gold"] for name in same for seed in range(3)]
print(f"gold of six runs of the same settings: {', '.join(f'{x:.2f}' for x in sorted(repeated))}")
together = {v: paired_difference(gold_of(v), gold_of(*same)) for v in variants[1:]}
print(f"{'gold, minus those six':>22}   three seeds           each alone, minus as it is")
for variant, (d, low, high) in (together | {twin: paired_difference(gold_of(twin), gold_of("as it is"))}).items():
    note = "  (minus as it is)" if variant == twin else ""
    print(
        f"{variant:>22}   {d:+.2f} [{low:+.2f}, {high:+.2f}]  "
        + "  ".join(f"{d:+.2f} [{low:+.2f}, {high:+.2f}]" for d, low, high in against(variant))
        + note
    )
two_passes = ("no clip", "no value clip", "no whitening", "lambda 1")
mean = {v: sum(row_of(v, s)["gold"] for s in range(3)) / 3 for v in (*variants, twin)}
claim(
    "With two passes over a rollout, three runs without one of the four parts have, in the mean, a gold that lies within the range of the six that have them all;",
    all(min(repeated) < mean[v] < max(repeated) for v in two_passes),
    evidence=f"{', '.join(f'{v} {mean[v]:.2f}' for v in two_passes)}; the six {min(repeated):.2f} to {max(repeated):.2f}",
    seeds=3,
)
claim(
    "one pass lies below it, eight passes above.",
    mean["one epoch"] < min(repeated) and mean["eight epochs"] > max(repeated) and together["one epoch"][2] < 0 < together["eight epochs"][1],
    evidence=", ".join(f"{v} {mean[v]:.2f}: {d:+.2f} [{low:+.2f}, {high:+.2f}]" for v, (d, low, high) in together.items() if v in ("one epoch", "eight epochs")),
    seeds=3,
)
looser = [row for row in leash if row["variant"] == "kl_coef 0.25"]
worth = [paired_difference(row_of("eight epochs", row["seed"])["gold_by_prompt"], row["gold_by_prompt"]) for row in looser]
claim(
    "But a looser leash that goes as far has more gold than eight passes, on every seed.",
    all(d < 0 for d, *_ in worth) and sum(high < 0 for *_, high in worth) >= 2,
    evidence="eight passes minus kl_coef 0.25: " + ", ".join(f"{d:+.2f} [{low:+.2f}, {high:+.2f}]" for d, low, high in worth)
    + f"; KL {sum(row_of('eight epochs', s)['kl'] for s in range(3)) / 3:.1f} and {sum(row['kl'] for row in looser) / 3:.1f}",
    seeds=3,
)
claim(
    "With eight passes the clip is what holds the policy: without it KL is higher on every seed,",
    min(row_of("eight epochs, no clip", s)["kl"] for s in range(3))
    > 1.2 * max(row_of("eight epochs", s)["kl"] for s in range(3)),
    evidence=", ".join(
        f"{row_of('eight epochs, no clip', s)['kl']:.1f} against {row_of('eight epochs', s)['kl']:.1f} nats"
        for s in range(3)
    ),
    seeds=3,
)
assert min(row_of("eight epochs, no clip", s)["kl"] for s in range(3)) > 6
assert all(min(row_of(v, s)["kl"] for s in range(3)) > max(row_of(x, s)["kl"] for x in same for s in range(3)) for v in ("no clip", "lambda 1"))
assert mean["eight epochs, no clip"] > min(repeated) and max(row_of("eight epochs, no clip", s)["length"] for s in range(3)) < 6.5
logged = load_results("ablations_history")
explained = {v: [[r["explained_variance"] for r in logged if (r["variant"], r["seed"], r["step"]) == (v, s, k)][0] for k in (0, 2) for s in range(3)] for v in ("as it is", "no value clip")}
norms = [r["grad_norm"] for r in logged if r["variant"] in ("as it is", "no whitening")]
for variant, x in explained.items():
    print(f"{variant}: the critic explains at first {', '.join(f'{y:.2f}' for y in x[:3])} of the variance, at the third rollout {', '.join(f'{y:.2f}' for y in x[3:])}")
print(f"norm of the policy's gradient before it is clipped to 1, each step's mean: {min(norms):.1f} to {max(norms):.1f}")
assert all(max(x[:3]) < 0 < 0.35 < min(x[3:]) for x in explained.values()) and min(norms) > 1
assert abs(round(together["no value clip"][0], 2)) == 0.08 and abs(mean[twin] - mean["as it is"]) > 0.06
claim(
    "variety goes, and gold is lower than with it.",
    all(high < 0 for *_, high in against("eight epochs, no clip", "eight epochs"))
    and max(row_of("eight epochs, no clip", s)["distinct_2"] for s in range(3)) < 0.4,
    evidence="eight without the clip minus eight with it: "
    + ", ".join(
        f"{d:+.2f} [{low:+.2f}, {high:+.2f}]"
        for d, low, high in against("eight epochs, no clip", "eight epochs")
    ),
    seeds=3,
)
for variant in ("as it is", "eight epochs", "eight epochs, no clip"):
    print(f"\n{variant}:")
    print(*list(row_of(variant, 0)["samples"].values())[:4], sep="\n")

# %% [markdown]
# Is that what you predicted? Textbooks say that each part is needed. Here, with two passes over each rollout and the leash of lesson 07 in place, taking away the clip, the value clip, whitening or $\lambda < 1$ leaves the mean gold within the spread of single repeats. (For the value clip the films alone would say "worse": 0.08 below the six. The two triples of the very same settings differ by 0.07.) That is less than "they do not matter": the intervals are over films, for these runs; another seed moves a difference by as much again, and three runs say little of that.
# Why so little? The ratio has little time to leave 1, so little is clipped (the KL does notice: without the clip, and with $\lambda = 1$, it is higher in each run than in all six). The critic starts worse than a constant, and is of some use by the third rollout, with or without its clip. And the unit that whitening sets hardly reaches the weights: the gradient's norm, by its mean in every step, is above 1 and clipped to it, and Adam divides by its size. In another run each may decide.
#
# **Which one hurts most?** By gold alone: one pass, which does less of everything (half the steps, less KL). That is the trap of asking gold alone. The clip's hour comes with eight passes, where the policy walks so far from its rollout that the ratios mean little. With the clip it gets more gold out of the same texts, but for twice the KL; a looser leash that goes as far has a quarter of a point more (the claim above). Without the clip it arrives at more than six nats, at six tokens, and at "A very funny movie." for one title after another; *and its gold is as good as that of "as it is"*. What hurts most, gold does not see.

# %% [markdown]
# ## 6. One step, opened
#
# The real loop, one rollout of 64 reviews, four passes: how the ratio leaves 1, and the clip begins to act.

# %%
policy, tokenizer = load_policy("tiny-reviews-sft")
scorer, _ = load_scalar("tiny-reviews-reward")
score = rollout_score(scorer, tokenizer.eos_token_id)
passes = {}
for epochs in (1, 2, 4):
    config = PPOConfig(steps=1, epochs=epochs, minibatch_size=64, seed=0)
    row = train_ppo(
        trainable(policy), trainable(scorer), tokenizer, reviews.rl_prompts(), score, config
    )[2][0]
    passes[epochs] = row
    print(
        f"passes: {epochs}, mean ratio {row['ratio']:.4f}, clipped {row['clip_fraction']:.3f} of the tokens, on average over the passes"
    )
assert abs(passes[1]["ratio"] - 1) < 1e-5 and passes[1]["clip_fraction"] == 0
assert passes[4]["clip_fraction"] > passes[2]["clip_fraction"] >= 0

# %% [markdown]
# ## What the libraries do
#
# | matter | decision here | elsewhere |
# |---|---|---|
# | old log-probabilities | recorded while sampling | TRL's PPO the same; RLOO and OpenRLHF read the texts again with the model, which costs a pass and, with dropout on, makes ratios differ from 1 |
# | clip | 0.2 both ways; `clip_eps_high` for another upper end (DAPO) | the same defaults |
# | dual clip | an option | verl's default (3), OpenRLHF's option |
# | value clip | 0.5 reward units | TRL and DeepSpeed-Chat 0.2; OpenRLHF 0.5 (older versions 0.2) |
# | minibatches | all of an optimiser step share one denominator | DeepSpeed-Chat: each its own (exercise 4) |
# | early stop on KL | none | Spinning Up has one, as TRL's older PPO had; today's LLM libraries mostly do not |
#
# ## Exercises
#
# **1. The loss** *(medium, 10 minutes)*. From `logprobs`, `old_logprobs`, `advantages`, the mask (all (B, R)) and `eps`, return PPO's loss of each token, 0 where masked. *This function goes into your `my_rlhf.py`.*
#
# *Hint:* a loss is minimised: the min of the gains is a max of losses. The checker looks at the gradient too.


# %%
def ppo_loss(logprobs, old_logprobs, advantages, mask, eps): ...  # your code


print(check.ppo_loss(ppo_loss))

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def ppo_loss(logprobs, old_logprobs, advantages, mask, eps):
#     logprobs, old_logprobs, advantages = (torch.where(mask, x, 0.0) for x in (logprobs, old_logprobs, advantages))
#     ratio = (logprobs - old_logprobs).exp()
#     return -torch.minimum(ratio * advantages, ratio.clamp(1 - eps, 1 + eps) * advantages)
# ```
# </details>
#
# **2. The share without gradient** *(medium, 10 minutes)*. Return the share of real tokens whose gradient the clip has taken, a number. (Some logs count every ratio outside the band; that is more.)
#
# *Hint:* two of six cases.


# %%
def clipped_share(ratio, advantages, mask, eps): ...  # your code


print(check.clipped_share(clipped_share))

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def clipped_share(ratio, advantages, mask, eps):
#     clipped = ((advantages > 0) & (ratio > 1 + eps)) | ((advantages < 0) & (ratio < 1 - eps))
#     return (clipped & mask).sum() / mask.sum()
# ```
# </details>
#
# **3. PPO's sister** *(hard, 15 minutes)*. The paper has a second form (section 4): no clip, but a price on leaving the *old* policy, $-\rho_t A_t + c\, \mathrm{KL}_t(\pi_{\text{old}} \| \pi)$. Texts come from the old policy. Return each token's loss, 0 where masked, with the plain log-ratio $\log \pi_{\text{old}} - \log \pi$ of the token for that KL, of which it is the mean. It is not in the package.
#
# *Hint:* the penalty pulls a token that was drawn back up. (Lesson 07 calls the log-ratio k1, and says that as a loss its gradient is zero on average. There the policy that moves also samples; here it does not.)


# %%
def ppo_penalty(logprobs, old_logprobs, advantages, mask, coef): ...  # your code


print(check.ppo_penalty(ppo_penalty))

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def ppo_penalty(logprobs, old_logprobs, advantages, mask, coef):
#     logprobs, old_logprobs, advantages = (torch.where(mask, x, 0.0) for x in (logprobs, old_logprobs, advantages))
#     return -(logprobs - old_logprobs).exp() * advantages + coef * (old_logprobs - logprobs)
# ```
#
# The mean is over $\pi_{\text{old}}$, which does not move: $\nabla \mathbb{E}_{\text{old}}[\log \pi_{\text{old}} - \log \pi] = -\mathbb{E}_{\text{old}}[\nabla \log \pi]$, all of the gradient. It vanishes only where $\pi = \pi_{\text{old}}$, as it should. (Another estimator, $\rho - 1 - \log \rho$, adds a term of mean 0: the same gradient on average, with less noise near the old policy.)
# </details>
#
# **4. Find the bug** *(medium, 15 minutes)*. "Gradient accumulation changed my result." A colleague splits a batch of sixteen texts into micro-batches to save memory. The two curves below should be one: the solid one is what they had before. (That the other is higher is no merit: in this world the short texts are the bad ones.) Look, read, mend.


# %%
def accumulated_loss(losses, mask, size):
    """The loss of a batch, token losses (B, R), in micro-batches of `size` texts whose gradients add up: the token mean of the batch."""
    total, parts = 0.0, math.ceil(len(losses) / size)
    for one, real in zip(losses.split(size), mask.split(size), strict=True):
        total = total + torch.where(real, one, 0.0).sum() / real.sum() / parts
    return total


def train(size, steps=60):
    """REINFORCE on sampled texts in a world where long texts are good; micro-batches of `size`. Returns J."""
    long_world = World.from_reward(("a", "b", "."), 3, lambda words: len(words) - 2.0)
    drawing, table, path = torch.Generator().manual_seed(0), long_world.ref_logits.clone(), []
    for _ in range(steps):
        path.append(long_world.objective(table).item())
        texts = torch.multinomial(long_world.probs(table), 16, replacement=True, generator=drawing)
        moved, reward = table.clone().requires_grad_(True), long_world.rewards[texts]
        advantage = (reward - reward.mean())[:, None].expand(-1, 3)
        here = long_world.response_mask[texts]
        accumulated_loss(
            reinforce(long_world.logprobs(moved)[texts], advantage, here), here, size
        ).backward()
        table = table - 0.5 * moved.grad
    return path


# %%
figure = Figure(figsize=(6.4, 2.8), dpi=110, layout="constrained")
axes = figure.add_subplot()
for size, colour, style in zip((16, 1), COLOURS, ("-", "--"), strict=False):
    axes.plot(train(size), style, color=colour, linewidth=2, label=f"micro-batches of {size}")
axes.set(xlabel="step", ylabel="mean reward")
axes.legend(fontsize=8, frameon=False)
axes.grid(alpha=0.3)
display(figure)

# %%
print(check.accumulated_loss(accumulated_loss))

# %% [markdown]
# <details><summary>Solution</summary>
#
# Each micro-batch is divided by its *own* number of tokens, so tokens of short texts weigh more; with one text a micro-batch the token mean has become the sequence mean. One denominator for the whole optimiser step:
#
# ```python
# total = total + torch.where(real, one, 0.0).sum() / mask.sum()
# ```
# </details>
#
# **5. Predict, then run** *(5 minutes)*. In section 3, with `rate=0.2` in place of 1: does the clip still matter after 60 steps? For the mean gain, and for the worst tenth? Write it down, take the hash away.

# %%
slower = {
    name: torch.tensor([walk(clip, texts=texts, rate=0.2)[-1] for texts in draws])
    for name, clip in (("clip 0.2", True), ("no clip", False))
}
# print({name: f"mean {y.mean():+.2f}, worst tenth {y.quantile(0.1):+.2f}" for name, y in slower.items()})

# %% [markdown]
# <details><summary>What you should see</summary>
#
# For the mean, yes: without the clip it is already several times as large. The worst tenth is not yet hurt: it is near 0 for both, and below 0 without the clip only when one walks on (600 steps; try it, it takes half a minute). Epochs and learning rate are one dial; the clip bounds their product.
# </details>

# %%
assert slower["no clip"].mean() > 3 * slower["clip 0.2"].mean()
assert all(0 < y.quantile(0.1) < 0.15 for y in slower.values())

# %% [markdown]
# **6. Read the log** *(5 minutes)*. `clip_fraction 0.45`, `ratio 1.3`, `kl` jumps by 2 nats a step, the score climbs. What is happening, and which three settings would you look at?
#
# <details><summary>What a good answer has</summary>
#
# Steps are too large for the rollout: nearly half of the tokens have no gradient left, and the policy still moves, by the others. Learning rate first, then epochs (or minibatches a rollout), then the batch: a larger rollout makes each step better informed. A lower clip treats the symptom. The climbing score
# is no comfort: gold and samples beside it.
# </details>
#
# ## Questions
#
# <details><summary>1. Why is the ratio of the first minibatch exactly 1, and what does it mean if it is not?</summary>
# The policy has not moved since it sampled. If it is not 1, the two log-probabilities were computed differently: dropout on, another temperature, padding without position ids, another precision.
# </details>
# <details><summary>2. Does the clip bound the KL to the old policy?</summary>
# No. It takes single tokens' gradients away; shared weights and unclipped tokens go on moving the policy. It discourages, it does not forbid.
# </details>
# <details><summary>3. Why the min, and not the clipped term alone?</summary>
# With the clipped term alone a token that moved the wrong way beyond the band would have no gradient either, and would stay there.
# </details>
# <details><summary>4. PPO with one pass and one minibatch a rollout. What is left of it?</summary>
# REINFORCE with a critic: the ratio is 1, nothing is clipped.
# </details>
# <details><summary>5. Which trust is placed in old texts by per-token ratios?</summary>
# That prefixes are still written as the old policy wrote them. Sequence-level ratios (GSPO, lesson 11) weigh whole texts instead.
# </details>
#
# **References.** Schulman et al. 2017, *Proximal policy optimization algorithms*, sections 3 and 4. Schulman et al. 2015 (TRPO), section 2 (why not too far). Engstrom et al. 2020, *Implementation matters in deep policy gradients*, section 3. Huang et al. 2022,
# *The 37 implementation details of PPO* (value clip, whitening). Ye et al. 2020 (dual clip).
