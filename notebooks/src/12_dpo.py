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
# # 12 · DPO: the policy is the reward model
#
# **The question.** PPO needs a reward model, a critic, and samples of its own at every step. Pairs of texts with a preferred one are all that people gave. Can a policy be fitted to the pairs directly, and is what comes out the same policy?
#
# **You need** lesson 07 (the best policy under a leash) and 08 (Bradley-Terry). 35 minutes to read, 60 for the exercises.
#
# **Predict.** Write down a number or a yes before you read on.
#
# | | your prediction |
# |---|---|
# | The loss before the first step? | |
# | DPO pushes the chosen text up and the rejected one down. Does the chosen text become likelier? | |
# | A larger $\beta$: does the policy end nearer to the reference, or farther? | |
# | PPO and DPO on the same exact preferences: how far apart do they end? | |

# %%
# %matplotlib inline
import math

import torch
from IPython.display import display
from matplotlib.figure import Figure

from minirlhf.classroom import check
from minirlhf.classroom.claims import FAST, claim, load_results
from minirlhf.core.bradley_terry import preference_probability, reward_model_loss
from minirlhf.core.exact import World
from minirlhf.core.kl import kl_shaped_rewards
from minirlhf.core.preference import dpo, implicit_rewards
from minirlhf.core.returns import gae
from minirlhf.evaluate import bootstrap
from minirlhf.loops.preference import DPOConfig, train_dpo
from minirlhf.models.load import load_policy, load_scalar
from minirlhf.rewards.model import text_judge
from minirlhf.runtime import set_threads
from minirlhf.show import COLOURS
from minirlhf.show.exact import trajectories
from minirlhf.tasks import reviews

set_threads()

# %% [markdown]
# ## 1. From the best policy to a loss, line by line
#
# Subscripts: $y_c$ is the chosen text, $y_r$ the rejected one; $r(x, y)$ is a reward. $y_c \succ y_r$ reads "is preferred to", $\sigma(z) = 1/(1 + e^{-z})$.
#
# **(a)** Lesson 07: among all policies, the one that maximises $\mathbb{E}[r] - \beta\, \mathrm{KL}(\pi \Vert \pi_{ref})$ is the Gibbs policy,
#
# $$ \pi^*(y|x) = \frac{1}{Z(x)}\, \pi_{ref}(y|x)\, e^{r(x, y)/\beta} . $$
#
# **(b)** Take logarithms and solve for the reward. Every step is an equality:
#
# $$ \log \pi^*(y|x) = \log \pi_{ref}(y|x) + \tfrac1\beta r(x, y) - \log Z(x) \qquad\Longrightarrow\qquad r(x, y) = \beta \log \frac{\pi^*(y|x)}{\pi_{ref}(y|x)} + \beta \log Z(x) . $$
#
# For a given reward, $Z(x)$, a sum over all texts, cannot be computed. But read it the other way round: *any* policy is the best policy for some reward, namely $\beta \log \frac{\pi}{\pi_{ref}}$ plus any function of $x$ (with none, $Z = 1$). That is the policy's **implicit reward**; it is known up to a number for each prompt.
#
# **(c)** Bradley and Terry (lesson 08): people prefer $y_c$ to $y_r$ with probability $\sigma(r(x, y_c) - r(x, y_r))$. Put (b) in. Both texts answer the same prompt, so the two $\beta \log Z(x)$ cancel:
#
# $$ P(y_c \succ y_r | x) = \sigma\Big( \beta \log \frac{\pi^*(y_c|x)}{\pi_{ref}(y_c|x)} - \beta \log \frac{\pi^*(y_r|x)}{\pi_{ref}(y_r|x)} \Big) . $$
#
# What could not be computed is gone. (It goes only because preferences are *within* a prompt: a pair from two prompts would keep $\beta \log Z(x) - \beta \log Z(x')$.)
#
# **(d)** Now do what one does with a reward model: maximise the likelihood of what people said, over the policy in the place of the reward. Minus its logarithm is the loss,
#
# $$ L = -\log \sigma(\beta h), \qquad h = \log \frac{\pi(y_c|x)}{\pi_{ref}(y_c|x)} - \log \frac{\pi(y_r|x)}{\pi_{ref}(y_r|x)} . $$
#
# It is the reward model's loss of lesson 08 with the implicit reward in it. Before training $h = 0$, and the loss is $-\log \sigma(0) = \ln 2$ for every pair.
#
# **By hand.** The world of the one-page example (notebook 91): *good*, *bad*, full stop; at most two words, uniform reference; $\beta = 1/\ln 2$. The policy says *good* first with ½ in the place of ⅓, *bad* with ¼. The second word is left at ⅓. Then *good good* has the log-ratio $\ln \frac{1/2}{1/3} = \ln \tfrac32$, *bad bad* $\ln \frac{1/4}{1/3} = \ln \tfrac34$,
# $h = \ln 2$, $\beta h = 1$ and the loss is $-\log \sigma(1) = 0.313$.

# %%
one = torch.tensor([1.0]).double()
chosen, rejected = math.log(1 / 2 * 1 / 3) * one, math.log(1 / 4 * 1 / 3) * one
both_ref = math.log(1 / 9) * one
by_hand = -math.log(1 / (1 + math.exp(-1)))
print(f"by hand {by_hand:.3f}, the package's {dpo(chosen, rejected, both_ref, both_ref, beta=1 / math.log(2)).item():.3f}")
assert abs(dpo(chosen, rejected, both_ref, both_ref, beta=1 / math.log(2)).item() - by_hand) < 1e-12
assert abs(by_hand - 0.313) < 5e-4
at_start = dpo(both_ref, both_ref, both_ref, both_ref, beta=0.1)
assert abs(at_start.item() - math.log(2)) < 1e-12
rewards = implicit_rewards(torch.cat([chosen, rejected]), both_ref.expand(2), beta=1 / math.log(2))
assert abs(reward_model_loss(rewards[:1], rewards[1:]).item() - by_hand) < 1e-12
print(f"implicit rewards, log2 of 3/2 and of 3/4: {[round(x, 3) for x in rewards.tolist()]}; the reward model's loss on them is the same number")

# %% [markdown]
# ## 2. Anatomy of the gradient
#
# By the chain rule, with $\sigma' = \sigma (1 - \sigma)$ and so $\frac{d}{dh} \big(-\log \sigma(\beta h)\big) = -\beta (1 - \sigma(\beta h)) = -\beta\, \sigma(-\beta h)$,
#
# $$ \nabla L = -\underbrace{\beta\, \sigma(-\beta h)}_{\text{how wrong the order is}} \Big[ \underbrace{\nabla \log \pi(y_c)}_{\text{push up}} - \underbrace{\nabla \log \pi(y_r)}_{\text{push down}} \Big] . $$
#
# Three things to see. The two pushes are **equal and opposite** in log-probability, whatever the pair. The weight is at most $\beta$; it is $\beta/2$ at the start and fades as the pair is learned: a pair that is right by a wide margin no longer pulls. And **only $h$ counts**: if both log-probabilities fall by the same amount the loss does not notice.
# That last one is a fault with a name, *likelihood displacement*; lesson 14 measures it.

# %%
margins = torch.linspace(-60, 60, 121, dtype=torch.float64)
figure = Figure(figsize=(9, 3), dpi=110, layout="constrained")
left, right = figure.subplots(1, 2)
zero = torch.zeros_like(margins)
for colour, style, b in zip(COLOURS, ("-", "--", ":"), (0.05, 0.1, 0.5), strict=False):
    h = margins.clone().requires_grad_(True)
    loss = dpo(h, zero, zero, zero, beta=b)
    (pull,) = torch.autograd.grad(loss.sum(), h)
    left.plot(margins, loss.detach(), color=colour, linestyle=style, label=f"β = {b}")
    right.plot(margins, -pull, color=colour, linestyle=style, label=f"β = {b}")
    assert abs(-pull[60].item() - b / 2) < 1e-12 and -pull[0] < b  # at h = 0; on the wrong side
left.set(xlabel="h, nats", ylabel="loss", ylim=(0, 8))
right.set(xlabel="h, nats", ylabel="push on each log-probability", yscale="log", ylim=(1e-4, 1))
for axes in (left, right):
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, frameon=False)
display(figure)

# %% [markdown]
# A large $\beta$ pulls hard at first and is satisfied soon: half of the pull is gone when the odds of $\sigma(\beta h)$ are 3, at $h = \ln 3/\beta$: 22 nats for 0.05, 2.2 for 0.5. So $\beta$ is a leash here too, though nothing in the loss mentions a KL: one unit of reward is worth $1/\beta$ nats.

# %%
for b in (0.05, 0.5):
    weight = b * torch.sigmoid(-b * torch.tensor(math.log(3) / b))
    print(f"β = {b}: at h = {math.log(3) / b:.1f} nats the push is {weight / (b / 2):.2f} of the first one")
    assert abs(weight / (b / 2) - 0.5) < 1e-6
assert round(math.log(3) / 0.05) == 22 and round(math.log(3) / 0.5, 1) == 2.2

# %% [markdown]
# ## 3. The exact world's verdict
#
# 15 texts of at most three words, a random reward, a reference that is not uniform. Suppose we knew what share of *all* people prefers each text to each other, for every pair. Where is DPO's loss least? A pair's mean loss over people is $-p \log \sigma(z) - (1 - p) \log \sigma(-z)$ with $z = \beta h$ and $p = \sigma(r_i - r_j)$. Its slope in $z$ is $\sigma(z) - p$, so it is least exactly where $\sigma(z) = p$, that is $z = r_i - r_j$. The Gibbs policy does this for every pair at once: no policy can do better, and any other that does as well has the same log-ratios up to
# a constant, which adding up to 1 fixes: it is the Gibbs policy. And by lesson 07 PPO, with the KL in its reward, climbs to the same place. Here are both walks: PPO's advantages in expectation (a true critic, no clip, natural-gradient steps that shrink) and DPO's by LBFGS. On the map each is drawn by the two directions in which the paths vary most, with their share of all that they move:

# %%
world, beta = World.random(3, 3, seed=0), 0.5
target, mask = world.gibbs(beta=beta), world.response_mask
ref = world.logprobs(world.ref_logits)
i, j = torch.triu_indices(15, 15, 1)


def ppo_walk(steps=150):
    """In expectation, with the true V and lambda 1; each place moves by the mean advantage of its words (a natural gradient)."""
    logits, path = world.ref_logits.clone(), []
    for step in range(steps):
        path.append(world.probs(logits))
        old, values = world.logprobs(logits), world.by_token(world.values(logits, beta=beta)[0])
        paid = kl_shaped_rewards(world.rewards, old, ref, mask, kl_coef=beta)
        gains = gae(paid, values, mask, gamma=1.0, lam=1.0)[0][mask]
        where, p = (world.visited[mask], world.response_ids[mask]), path[-1][:, None].expand_as(mask)[mask]
        sums, visits = (torch.zeros(7, 3).double().index_put(where, x, accumulate=True) for x in (p * gains, p))
        logits = logits + 0.5 / beta * sums / visits / (1 + step / 100)
    return torch.stack(path)


# %%
def dpo_walk(loss_of, steps=150, each=1):
    """LBFGS on any loss of the 15 texts' log-probabilities, `each` iterations a step: (path, logits at its end)."""
    logits, path = world.ref_logits.clone().requires_grad_(True), []
    optimizer = torch.optim.LBFGS(
        [logits], max_iter=each, history_size=50, tolerance_grad=0, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        (loss := loss_of(world.sequence_logprobs(logits))).backward()
        return loss

    for _ in range(steps):
        path.append(world.probs(logits.detach()))
        if logits.grad is None or logits.grad.abs().max() > 1e-9:  # there already
            optimizer.step(closure)
    return torch.stack(path), logits.detach()


def population(share, i=i, j=j, beta=beta):
    """DPO's mean loss over pairs (i, j), of which a share of people prefers i."""
    whole = ref.sum(1)

    def loss_of(p):
        won = dpo(p[i], p[j], whole[i], whole[j], beta=beta)
        lost = dpo(p[j], p[i], whole[j], whole[i], beta=beta)
        return (share * won + (1 - share) * lost).mean()

    return loss_of


# %%
truth = preference_probability(world.rewards[i], world.rewards[j])
fitted, at_optimum = dpo_walk(population(truth))
paths = {"PPO": ppo_walk(), "DPO": fitted}
display(trajectories(paths, target))
for name, path in paths.items():
    print(f"{name}: at the end no probability is off by more than {(path[-1] - target).abs().max():.1e}")
    assert (path[-1] - target).abs().max() < 1e-6

# %% [markdown]
# Two algorithms that share no line of code arrive at one policy, which neither was told. One was given the reward and no pairs, the other shares of people and no reward.
#
# **That theorem has four conditions.** (1) Labels are shares of a population that follows Bradley-Terry. (2) Every pair is covered. (3) The policy can be any distribution. (4) The optimum is reached. Break each of them:

# %%
generator = torch.Generator().manual_seed(0)


def off(share, i=i, j=j):
    """The largest error of a probability at DPO's end."""
    return (dpo_walk(population(share, i, j))[0][-1] - target).abs().max().item()


hard = off((truth > 0.5).double())
sampled = {
    n: [off(torch.binomial(torch.full_like(truth, n), truth, generator=generator) / n) for _ in range(4)] for n in (1, 1000)
}
seen = torch.tensor([0, 2, 4, 6, 8, 10, 12, 14])
rows = torch.isin(i, seen) & torch.isin(j, seen)
partial = off(truth[rows], i[rows], j[rows])
paths = dpo_walk(population(truth))[0]
one_row = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)  # (3): a policy that does not look at what stands before
whole = population(truth)
optimizer = torch.optim.LBFGS([one_row], max_iter=500, tolerance_grad=1e-10, tolerance_change=0, line_search_fn="strong_wolfe")


def same_everywhere():
    optimizer.zero_grad()
    (loss := whole(world.sequence_logprobs(one_row.expand(7, 3)))).backward()
    return loss


optimizer.step(same_everywhere)
blind = (world.probs(one_row.detach().expand(7, 3)) - target).abs().max().item()
early = (paths[5] - target).abs().max().item()
print(f"hard labels (the majority always wins): {hard:.2f}")
for n, errors in sampled.items():
    print(f"{n} asked of each pair, four draws: " + ", ".join(f"{x:.3f}" for x in errors))
print(f"pairs among 8 of the 15 texts only: {partial:.2f}")
print(f"the same next-word probabilities after every prefix: {blind:.2f};  after 5 iterations: {early:.2f}")
assert hard > 0.5 and sum(sampled[1]) > 5 * sum(sampled[1000]) and partial > 0.2 and min(blind, early) > 0.05

# %% [markdown]
# **Hard labels** say "always", and $\sigma$ is 1 only at infinity: the loss has no minimum, and the policy runs towards the best text as long as it is trained (its error cannot exceed what the best text lacks to 1). A single vote is a hard label too; but votes that contradict each other, A over B over C over A, hold each other at a finite place, as in the four draws of one vote a pair. What else saves DPO in practice is that it is stopped, and that a network cannot fit every pair at once.
# **Few labels** a pair are noise, and go away with more of them. **A policy that cannot be any distribution**, and **an optimum not reached**, are the last line.
# **Partial coverage**: what nobody compared is not held in place by anything. How far does it drift?

# %%
path, _ = dpo_walk(population(truth[rows], i[rows], j[rows]))
unseen = torch.ones(15, dtype=torch.bool)
unseen[seen] = False
inside = path[-1][seen] / path[-1][seen].sum() - target[seen] / target[seen].sum()
before, after = world.probs(world.ref_logits)[unseen].sum().item(), path[-1][unseen].sum().item()
print(f"among the texts that were compared: off by {inside.abs().max():.1e}")
print(f"the mass of the 7 others: {before:.3f} under the reference, {target[unseen].sum():.3f} under the Gibbs policy, {after:.3f} under DPO")
assert inside.abs().max() < 1e-4

# %% [markdown]
# *Among* the compared texts every ratio is right. How much mass the other texts get, DPO does not know and does not ask: there it depends on which weights they share with the compared ones. PPO samples them, and is told their reward.
#
# ## 4. Every beta, one frontier
#
# As $\beta$ falls the optimum moves away from the reference along the frontier of lesson 07: more reward for more KL, and no policy lies above it. DPO's optima for several $\beta$ and PPO's objective: the same curve, because they are the same policies.

# %%
figure = Figure(figsize=(5.5, 3.4), dpi=110, layout="constrained")
axes = figure.add_subplot()
grid = [0.05 * 1.2**k for k in range(24)]
best = [(world.kl(world.gibbs_logits(beta=b), world.ref_logits), (world.gibbs(beta=b) * world.rewards).sum()) for b in grid]
axes.plot(*zip(*best, strict=True), color="#888888", label="the Gibbs policies")
for colour, b in zip(COLOURS, (0.2, 0.5, 1.0, 2.0), strict=False):
    logits = dpo_walk(population(truth, beta=b), steps=2, each=1000)[1]
    kl, reward = world.kl(logits, world.ref_logits), (world.probs(logits) * world.rewards).sum()
    axes.plot(kl, reward, "o", color=colour, label=f"DPO, β = {b}")
    print(f"β = {b}: off by {(world.probs(logits) - world.gibbs(beta=b)).abs().max():.1e}")
    assert torch.allclose(world.probs(logits), world.gibbs(beta=b), atol=1e-5)
axes.set(xlabel="KL to the reference, nats", ylabel="mean reward", xlim=(0, None))
axes.grid(alpha=0.3)
axes.legend(fontsize=8, frameon=False)
display(figure)

# %% [markdown]
# ## 5. On film reviews
#
# The same loss on the tiny GPT-2 and on single human ratings: 32 pairs a step, each of two reviews of one film, one rating a side. Sums over the response's tokens, EOS among them; no temperature; no dropout. Printed are the loss; the *margin*, the mean of $\beta h$; the share of the step's own pairs that $h$ has in the right order; and the two implicit rewards apart.

# %%
policy, tokenizer = load_policy("tiny-reviews-sft")
actor = load_policy("tiny-reviews-sft")[0].requires_grad_(True)
pairs = reviews.preference_pairs("reward", 4000, seed=0, max_tokens=32, tokenizer=tokenizer)
config = DPOConfig(steps=2, batch_size=4) if FAST else DPOConfig(steps=40)
_, history = train_dpo(actor, tokenizer, pairs, config, reference=policy)
for row in history[:: 1 if FAST else 8]:
    print(
        f"step {row['step']:2d}  loss {row['loss']:.3f}  margin {row['rewards/margins']:+.3f}  right order {row['rewards/accuracies']:.2f}"
        f"  reward of the chosen {row['rewards/chosen']:+.3f}, of the rejected {row['rewards/rejected']:+.3f}"
    )
assert abs(history[0]["loss"] - math.log(2)) < 1e-6 and history[0]["rewards/margins"] == 0
assert history[0]["rewards/accuracies"] == 0  # strict: a tie is not right
assert FAST or sum(row["rewards/chosen"] for row in history[-5:]) < 0  # prediction 2
chosen_texts, rejected_texts = set(pairs["chosen"]), set(pairs["rejected"])
both_roles = sum(text in rejected_texts for text in pairs["chosen"]) / len(pairs)
print(f"{len(chosen_texts | rejected_texts):,} texts in {len(pairs):,} pairs; in {both_roles:.0%} of the pairs the chosen text is the rejected one of another")
assert 0.5 < both_roles < 0.7

# %% [markdown]
# The loss begins at $\ln 2 = 0.693$ and falls slowly: single ratings are noisy, so even the truth could not make it small. If your loss begins anywhere else, the reference is not the policy's copy, or dropout is on; if it *stays* there, look at the learning rate and at whether the two texts differ. The reward of the *chosen* texts falls as well: that is prediction 2, and lesson 14's subject. And beware of "right order": it is of the pairs being trained on, whose texts come back in many pairs.
#
# **PPO and DPO on one frontier.** Recorded with `minirlhf grid betas` (DPO at four $\beta$, the same pairs, three seeds) and `minirlhf grid leash` (PPO at six prices, lesson 07), judged on the same 76 test films by *gold*, which no training saw.

# %%
swept, leash = load_results("betas"), load_results("leash")


def over_seeds(rows, variant, key):
    x = [row[key] for row in rows if row["variant"] == variant]
    return sum(x) / len(x), min(x), max(x)


betas = list(dict.fromkeys(row["variant"] for row in swept))
prices = [v for v in dict.fromkeys(row["variant"] for row in leash) if v.startswith("kl_coef")]
figure = Figure(figsize=(6, 3.6), dpi=110, layout="constrained")
axes = figure.add_subplot()
for name, rows, variants, colour, marker in (
    ("DPO at four β", swept, betas, COLOURS[1], "D"),
    ("PPO at six prices", leash, prices, COLOURS[0], "o"),
):
    points = sorted((over_seeds(rows, v, "kl"), over_seeds(rows, v, "gold")) for v in variants)
    x, y = ([p[k][0] for p in points] for k in (0, 1))
    spread = [[p[1][0] - p[1][1] for p in points], [p[1][2] - p[1][0] for p in points]]
    axes.errorbar(x, y, spread, color=colour, marker=marker, capsize=2, label=name)
axes.set(xlabel="KL to SFT, nats a text", ylabel="gold", xscale="log")
axes.grid(alpha=0.3, which="both")
axes.legend(fontsize=8, frameon=False)
display(figure)
print("means of three seeds; of 128 pairs of validation films: the share that h has in the right order, and how far log pi went, nats a text")
columns = ("gold", "kl", "length", "distinct_2", "missing_eos")
for variant in betas:
    print(f"{variant:>15}: " + "  ".join(f"{k} {over_seeds(swept, variant, k)[0]:.2f}" for k in (*columns, "right_order", "chosen_change", "rejected_change")))
for variant in prices:
    print(f"{'PPO ' + variant:>15}: " + "  ".join(f"{k} {over_seeds(leash, variant, k)[0]:.2f}" for k in columns))

# %%
def rows_of(rows, variant):
    return [row for row in rows if row["variant"] == variant]


for nearer, farther in (("kl_coef 0.5", "beta 0.3"), ("kl_coef 0.25", "beta 0.03")):
    ppo_rows, dpo_rows = rows_of(leash, nearer), rows_of(swept, farther)
    claim(
        f"PPO at {nearer} has more gold, for less KL, than DPO at {farther}, whichever seeds one compares.",
        min(r["gold"] for r in ppo_rows) > max(r["gold"] for r in dpo_rows)
        and max(r["kl"] for r in ppo_rows) < min(r["kl"] for r in dpo_rows),
        evidence=f"gold {min(r['gold'] for r in ppo_rows):.2f} and more at {max(r['kl'] for r in ppo_rows):.1f} nats and less,"
        f" against {max(r['gold'] for r in dpo_rows):.2f} and less at {min(r['kl'] for r in dpo_rows):.1f} and more",
        seeds=3,
    )
at_one = {name: sorted(r["gold"] for r in rows_of(rows, v)) for name, rows, v in (("PPO", leash, "kl_coef 1"), ("DPO", swept, "beta 1"))}
print("at about 1 nat: " + "; ".join(f"{name} {', '.join(f'{x:.2f}' for x in gold)}" for name, gold in at_one.items()))
assert at_one["PPO"][0] < at_one["DPO"][-1]  # the seeds overlap
claim(
    "A smaller beta goes farther and gets more gold, from 1 to 0.03, on every seed.",
    all(
        a[s]["kl"] < b[s]["kl"] and a[s]["gold"] < b[s]["gold"]
        for a, b in (("beta 1", "beta 0.3"), ("beta 0.3", "beta 0.1"), ("beta 0.1", "beta 0.03"))
        for a, b in [(rows_of(swept, a), rows_of(swept, b))]
        for s in range(3)
    ),
    evidence=", ".join(f"{v}: {over_seeds(swept, v, 'gold')[0]:.2f} at {over_seeds(swept, v, 'kl')[0]:.1f} nats" for v in betas),
    seeds=3,
)
claim(
    "The chosen texts of held-out pairs became less likely at every beta, on every seed, and so did the rejected ones;",
    all(row["chosen_change"] < 0 and row["rejected_change"] < 0 for row in swept),
    evidence=", ".join(f"{v}: {over_seeds(swept, v, 'chosen_change')[0]:+.1f} nats" for v in betas),
    seeds=3,
)
few = [row["right_order"] for row in swept]
print(f"right order: {min(few):.2f} to {max(few):.2f} of 128 pairs, the same for all runs, whose standard error is {math.sqrt(0.25 / 128):.2f} or more: too few to tell")
asked = [row for row in load_results("order") if row["variant"] == "dpo"]  # so 2,000 pairs of the test films, at beta 0.1
each, films = [row["right_order"] for row in asked], {film: n for film, (_, n) in asked[0]["by_film"].items()}
right = torch.tensor([sum(row["by_film"][film][0] for row in asked) / len(asked) for film in films])
same = reviews.preference_pairs("test", sum(films.values()), seed=17, max_tokens=32, tokenizer=tokenizer)[:]
judge = text_judge([load_scalar("tiny-reviews-reward")[0]], tokenizer)  # on the very same pairs
of_chosen, of_rejected = judge(2 * same["prompt"], same["chosen"] + same["rejected"]).chunk(2)
ahead = (of_chosen > of_rejected).double()
of_film = {film: n for n, film in enumerate(films)}
judged = torch.zeros(len(films)).double().index_add(0, torch.tensor([of_film[film] for film in same["prompt"]]), ahead)
unit = len(films) / sum(films.values())  # each film's part of a share of pairs
share = [0.5 + edge for edge in bootstrap((right - 0.5 * torch.tensor(list(films.values()))) * unit)]
less = bootstrap((right - judged) * unit)
claim(
    "and yet at beta 0.1 the order of held-out pairs is better than a coin's, on every seed; it is worse than that of the reward model, which read several times as many.",
    share[0] > 0.5 and min(each) > 0.5 and less[1] < 0,
    evidence=f"{sum(each) / len(each):.2f} [{share[0]:.2f}, {share[1]:.2f}] over films, by seed {', '.join(f'{x:.2f}' for x in each)};"
    f" the reward model {ahead.mean():.2f}; difference [{less[0]:.2f}, {less[1]:.2f}]; log pi moved by"
    f" {sum(r['chosen_change'] for r in asked) / 3:+.1f} and {sum(r['rejected_change'] for r in asked) / 3:+.1f} nats",
    seeds=3,
)

lengths = [round(r["length"]) for v in ("kl_coef 0.5", "kl_coef 0.25") for r in rows_of(leash, v)], [round(r["length"]) for r in swept]
print("tokens: PPO at 0.5 and 0.25 {} to {}, DPO {} to {}".format(*(end(x) for x in lengths for end in (min, max))))
assert [end(x) for x in lengths for end in (min, max)] == [11, 15, 20, 24]
unfinished = [row["missing_eos"] for row in swept]
print(f"DPO's texts without an end: {min(unfinished):.2f} to {max(unfinished):.2f}")
assert 0.15 < max(unfinished) < 0.25

# %% [markdown]
# Read the last two again. DPO's implicit reward (we asked at beta 0.1) tells a little about which of two *unseen* human texts is preferred, and both became less likely all the same. (A caution about small numbers: on 128 pairs, for all four betas and three seeds, that looked like a coin, and chosen and rejected seemed to fall alike. Only more pairs could say.)
#
# So much for "the same optimum": on real labels PPO's frontier lies above DPO's from about 2 nats on (at 1 nat the seeds overlap). Before you write that on a slide, count what is unequal.
#
# * *The labels.* PPO's reward model learned from 40,000 draws of pairs of the reward films (not all were read: lesson 08), and is asked about texts that the policy writes *now*; DPO saw 3,200 draws, of shorter texts, all of them other people's.
# * *The price.* At 2 to 4 nats PPO's reviews have 11 to 15 tokens, DPO's 20 to 24; at 9 nats they are "funny, funny" (lesson 07): distinct-2 is 0.36 where DPO's is 0.82, and the lead in gold there is partly the judge's.
# * *The ends.* PPO is fined for a text without an end, DPO is not: up to about a fifth of its texts have none.
#
# The texts that fell were in no training pair, so nothing held them (section 3), and in training most chosen texts are rejected elsewhere. (The README's tour starts its DPO at an SFT model of each seed's own, so its numbers differ.) Lesson 14 takes these apart: who wrote the texts, what fell and why, and which repair helps.
#
# ## 6. What the libraries do
#
# | | TRL (1.16) | OpenRLHF (0.11) | verl, DeepSpeed-Chat |
# |---|---|---|---|
# | log-probabilities | sums over the completion, no temperature | sums | verl: recipes only; DeepSpeed-Chat: none, it is PPO's |
# | IPO | each log-ratio divided by its length | sums | |
# | `label_smoothing` | read by `robust`, `exo_pair` and `aot`; the plain loss ignores it | cDPO | |
# | the reference | a copy, an adapter switched off, or log-probabilities computed before (`precompute_ref_log_probs`); may follow (`sync_ref_model`) | a frozen model | |
# | logged | `rewards/chosen`, `rewards/rejected`, `rewards/margins`, `rewards/accuracies`, `logps/*` | `chosen_reward`, `reject_reward`, `acc` | |
#
# Ours: sums, TRL's names, and `displaced`, the share of chosen texts that became *less* likely. `minirlhf dpo --beta 0.3`, `--precompute`, `--lora 16`.
#
# ## Exercises
#
# Each checker says *pass*, or the likely mistake in one sentence.
#
# **1. DPO's loss** *(easy, 10 minutes)*. From the four log-probabilities (B,), sums over tokens, and beta, return each pair's loss (B,). The order of the arguments is in the cell. It must be finite where a pair is very wrong. *This function goes into your `my_rlhf.py`: `minirlhf tour --mine my_rlhf.py` then trains its DPO with it.*
#
# *Hint:* `torch.nn.functional.logsigmoid`.


# %%
def dpo_loss(chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs, beta): ...  # your code


print(check.dpo_loss(dpo_loss))

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# from torch.nn.functional import logsigmoid
#
#
# def dpo_loss(chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs, beta):
#     chosen = chosen_logprobs - ref_chosen_logprobs
#     rejected = rejected_logprobs - ref_rejected_logprobs
#     return -logsigmoid(beta * (chosen - rejected))
# ```
# </details>
#
# **2. The push of each pair** *(easy, 10 minutes)*. Return (B,) the size of the push on the chosen text's log-probability (section 2): how strongly each pair pulls, without autograd.


# %%
def gradient_weights(chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs, beta): ...  # your code


print(check.gradient_weights(gradient_weights))

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def gradient_weights(chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs, beta):
#     h = chosen_logprobs - ref_chosen_logprobs - rejected_logprobs + ref_rejected_logprobs
#     return beta * torch.sigmoid(-beta * h)
# ```
# </details>
#
# **3. The reward that a policy is** *(medium, 10 minutes)*. `logprobs` and `ref_logprobs` (N,) are those of *all* N texts under a policy and its reference. Return the reward (N,) for which this policy is the best one under the leash `beta`. Rewards are known up to a constant; choose it so that their mean under the reference is 0.


# %%
def reward_from_policy(logprobs, ref_logprobs, beta): ...  # your code


print(check.reward_from_policy(reward_from_policy))

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def reward_from_policy(logprobs, ref_logprobs, beta):
#     reward = beta * (logprobs - ref_logprobs)
#     return reward - (ref_logprobs.exp() * reward).sum()
# ```
# </details>
#
# **4. Where does it end?** *(medium, 10 minutes)*. A share `share` (N,) of people prefers the chosen text; a rater's hand slips with probability `flipped`, in both directions. DPO is trained on the labels to its optimum. Return $h$ (N,), nats.
#
# *Hint:* first the share that the *labels* give. Then the loss is least where $\sigma(\beta h)$ is that share.


# %%
def best_log_ratio(share, flipped, beta): ...  # your code


print(check.best_log_ratio(best_log_ratio))

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def best_log_ratio(share, flipped, beta):
#     said = (1 - flipped) * share + flipped * (1 - share)
#     return torch.log(said / (1 - said)) / beta
# ```
#
# Slips pull the optimum towards the reference: noise acts like a shorter leash. Lesson 14 has a loss that takes this back.
# </details>
#
# **5. Find the bug: a batch of pairs** *(medium, 15 minutes)*. A colleague's loss trains, but long reviews hardly move. `logprobs` and `ref_logprobs` are (2B, R), the B chosen texts first, then the B rejected ones; padding may hold NaN. Find what is wrong and mend it; return (B,).


# %%
def dpo_of_a_batch(logprobs, ref_logprobs, mask, beta):
    ratio = torch.where(mask, logprobs, 0.0) - torch.where(mask, ref_logprobs, 0.0)
    chosen, rejected = (ratio.sum(1) / mask.sum(1)).chunk(2)
    return -torch.nn.functional.logsigmoid(beta * (chosen - rejected))


print(check.dpo_of_a_batch(dpo_of_a_batch))

# %% [markdown]
# <details><summary>Solution</summary>
#
# The equation has $\log \pi(y|x)$, which is a *sum* over tokens. The mean is another loss: each token's push is divided by the length, so long reviews hardly move; and at *its* optimum a text of 30 tokens would have gone 30 nats where one token goes 1. `chosen, rejected = ratio.sum(1).chunk(2)`. (As a loss of its own, without a reference, the mean has a use: SimPO, lesson 14.)
# </details>
#
# **6. Predict, then run** *(5 minutes)*. People prefer A to B with 90 %. After DPO with $\beta = 0.1$ to its optimum: by which *factor* has the odds of A against B grown? And with $\beta = 1$? Write it down, take the hash away.


# %%
def odds_factor(share, beta):
    return (share / (1 - share)) ** (1 / beta)


# print({b: f"{odds_factor(0.9, b):.2g}" for b in (0.1, 1.0)})

# %% [markdown]
# <details><summary>What you should see</summary>
#
# 3.5e+09 and 9. At $\beta = 0.1$ a preference of nine to one becomes one of billions to one: the optimum of DPO at the usual $\beta$ is nearly deterministic wherever people agree, and no run of a hundred steps gets near it. What you see in practice is the path, not the end.
# </details>

# %%
assert f"{odds_factor(0.9, 0.1):.1e}" == "3.5e+09" and round(odds_factor(0.9, 1.0)) == 9

# %% [markdown]
# **7. Design the experiment** *(hard, 15 minutes)*. "DPO is as good as PPO and needs no reward model." What would you have to see before you believe it?
#
# <details><summary>What a good answer has</summary>
#
# The same labels for both: PPO's reward model is trained on the very pairs that DPO gets. Both at several strengths of the leash, so that curves are compared and not points; each with its learning rate chosen on other prompts with the same number of tries. A judge that neither was trained on; KL, length and distinct-2 beside it; several seeds, paired by prompt. And
# the reward model's own bill: its training, and PPO's samples.
# </details>
#
# ## Questions
#
# <details><summary>1. My DPO loss is stuck at 0.693. What do I look at?</summary>
# At ln 2 the policy is where the reference is. Is the learning rate 0 (a schedule with a warm-up of all steps)? Are chosen and rejected the same text, or their difference cut off by the length limit? Is the reference the very model that is trained? Then the two always agree, and the loss never moves.
# </details>
# <details><summary>2. Why do both log-probabilities fall?</summary>
# Only their difference is in the loss. Two texts share most of their words and all of the weights; pushing one down drags the other along, and where the push down wins, both fall. Section 3: what is not compared is not held.
# </details>
# <details><summary>3. Z(x) cancelled. Did we lose something?</summary>
# Nothing that the pairs contained: they compare within a prompt, so a Bradley-Terry reward model fitted to them has the same unknown number a prompt. Neither can say whether prompt A's best text is better than prompt B's.
# </details>
# <details><summary>4. Does DPO need the KL penalty?</summary>
# It is inside: 1/beta nats are what a unit of reward is worth, and the log-ratios are to the reference. But it acts on the compared texts only. Nothing looks at what the policy would write.
# </details>
# <details><summary>5. PPO and DPO have the same optimum. Why do they differ in practice?</summary>
# None of the four conditions holds: single votes, few pairs, a network in the place of a table, a hundred steps. PPO asks a reward model about texts it writes now; DPO learns from texts that others wrote before.
# </details>
#
# **References.** Rafailov et al. 2023, *Direct preference optimization*, sections 4 and 5 (equation 7). Korbak et al. 2022, *RL with KL penalties is better viewed as Bayesian inference*, section 3. Azar et al. 2023, *A general theoretical paradigm to understand learning from human preferences*, section 4 (deterministic pairs). Razin et al. 2024,
# *Unintentional unalignment* (displacement). Xu et al. 2024, *Is DPO superior to PPO for LLM alignment?*, section 4 (coverage).
