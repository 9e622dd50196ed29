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
# # 14b · The repairs compared (a lab)
#
# After this lab you can
#
# - compare preference losses fairly: at equal KL, over seeds and films,
# - say for each of a dozen repairs of DPO what it changes, and what it is good for,
# - tell a loss that is better from a loss that only goes further.
#
# **You need** lesson 14 (what DPO gets wrong) and lesson 12 (direct preference optimisation, DPO).
# About 40 minutes to read and 60 for the exercises.

# %%
import numpy as np
import pandas as pd
import torch

from minirlhf import core, experiments, show
from minirlhf.classroom import check

# %% [markdown]
# ## What is compared
#
# Lesson 14 had three repairs. There are many more, and every paper shows that its own is better
# than DPO. This lab runs twelve other losses, three ways to treat the reference, and six ways to
# make the pairs, all on the same film reviews. Each section ends with a **verdict** per repair.
#
# The notation is that of lesson 14. $c$ and $r$ are the log-ratios of the chosen and the rejected
# response, $h = c - r$, and $\ell(h) = -\log \sigma(\beta h)$ is DPO's loss.
#
# All runs of DPO start from the same model and have 100 steps of 32 pairs, the same learning rate,
# and three seeds. The settings of each loss are near those of its paper or of the libraries. **None
# was tuned here.** Each policy then writes one review for each of 76 test films. **Gold** is the
# score of a separate model that no training used. KL is in nats per review, and so is every change
# of a log-probability.

# %% [markdown]
# ## 1. Equal KL first
#
# The first grid has thirteen losses on the same 3,200 pairs of human reviews, labelled by single
# votes.
#
# **Predict.** Is DPO among the best three by gold? And do the best ones go further from the
# reference than DPO, or less far?

# %% tags=["predict"]
runs = experiments.results("betas", "preference")
losses = ["dpo", "cdpo", "robust", "hinge", "ipo", "ipo-mean", "dpop"]
losses += ["nca", "kto", "tdpo", "cpo", "simpo", "orpo"]
columns = {"gold": "gold", "kl": "KL", "length": "tokens", "distinct_2": "distinct-2"}
table = experiments.shown(runs[runs.variant.isin(losses)], columns)
table.sort_values("gold", ascending=False)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# DPO is fifth, with 1.39. KTO (1.57), robust DPO (1.52), SimPO (1.45) and the hinge loss (1.44)
# have more. But **all four go further**: from 6.5 to 14.1 nats, and DPO 5.4. The brackets give the
# lowest and the highest seed. Only KTO and hinge are ahead of DPO on every seed.
#
# The hinge loss has 0.53 more gold than IPO (0.91), and 5.5 times its KL. So is it a better loss,
# or has it only gone further?
# </details>
#
# DPO itself goes further with a smaller $\beta$. Lesson 12 ran it with four values. They are a
# curve, and a loss is better than DPO only if it lies *above* this curve.

# %%
kept = runs[(runs.experiment == "betas") | runs.variant.isin(losses[1:])]
of_curve = runs[runs.experiment == "betas"].variant.unique()
curve = {"DPO, four values of beta": of_curve}
show.frontier(kept, curves=curve, log=True, ylabel="gold")

# %% [markdown]
# How far is each loss above the curve? We join the four points by straight lines in the logarithm
# of the KL. Beyond its ends the curve is continued level.


# %%
def above_curve(variants):
    """Gold minus the gold of DPO's curve at the same KL."""
    means = runs.groupby("variant")[["gold", "kl"]].mean()
    dpo = means.loc[of_curve].sort_values("kl")
    log_kl = np.log(means.loc[variants].kl)
    at_equal_kl = np.interp(log_kl, np.log(dpo.kl), dpo.gold)
    return (means.loc[variants].gold - at_equal_kl).round(2)


above_curve(losses).to_frame("above the curve")

# %% [markdown]
# - **Eight losses lie on the curve**: cDPO, robust DPO, hinge, IPO (both forms), NCA, KTO and TDPO.
#   They differ from it by at most 0.07. For each of them the 95 % interval over films and seeds
#   contains 0. What tells them apart at these settings is how far they go.
# - **DPOP, CPO and ORPO hardly moved**: at most 0.7 nats. The curve starts at 1.1 nats, so their
#   numbers compare with a point further right, and say nothing.
# - **SimPO went furthest**, 14.1 nats, on every seed. It has no more gold than DPO has at 9.0 nats.
#
# So the right question is not "which loss has more gold?" but "at which KL?". This is no law. On
# this task the first nats are cheap, the labels are single votes, and no learning rate was tuned.
# It is a reason to compare curves instead of points.

# %% [markdown]
# ## 2. Labels that are wrong, labels that are too sure
#
# | loss | the line that differs from DPO | idea |
# |---|---|---|
# | DPO | $\ell(h)$ | |
# | conservative DPO (cDPO) | $(1 - \epsilon)\, \ell(h) + \epsilon\, \ell(-h)$ | never be surer than $1 - \epsilon$ |
# | robust DPO | $\big[(1 - \epsilon)\, \ell(h) - \epsilon\, \ell(-h)\big] / (1 - 2\epsilon)$ | undo flipped labels |
# | hinge (from sequence likelihood calibration, SLiC) | $\max(0, 1 - \beta h)$ | stop at a margin |
# | identity preference optimisation (IPO) | $\big(h - \frac{1}{2\beta}\big)^2$ | a target instead of a slope |
#
# $\epsilon$ is the share of labels that are believed to be wrong: here 0.2. The figure shows the
# **pull** of each loss on $h$: minus its derivative. DPO pulls less and less, but never stops.


# %%
def push(loss, c, r):
    """How hard a loss pushes the chosen response up and the rejected one down."""
    c, r = c.clone().requires_grad_(True), r.clone().requires_grad_(True)
    zero = torch.zeros_like(c)
    up, down = torch.autograd.grad(loss(c, r, zero, zero).sum(), (c, r))
    return -up, down


# %%
def setting(loss, **given):
    return lambda c, r, rc, rr: loss(c, r, rc, rr, beta=0.1, **given)


def kto(c, r, rc, rr, beta=0.1):
    """A chosen response with a thumb up, a rejected one with a thumb down."""
    up, z = torch.ones_like(c, dtype=torch.bool), torch.zeros((), dtype=c.dtype)
    return core.kto(c, rc, up, z, beta=beta) + core.kto(r, rr, ~up, z, beta=beta)


# %%
h = torch.linspace(-30, 30, 121, dtype=torch.float64)
labels = {
    "DPO": setting(core.dpo),
    "cDPO": setting(core.cdpo, label_smoothing=0.2),
    "robust": setting(core.robust_dpo, label_smoothing=0.2),
    "hinge": setting(core.hinge),
}
pulls = {name: sum(push(loss, h / 2, -h / 2)) / 2 for name, loss in labels.items()}
show.lines(pulls, h, xlabel="h, nats", ylabel="pull on h", reference={"none": 0})

# %% [markdown]
# - **cDPO** turns round where $\sigma(\beta h) = 1 - \epsilon = 0.8$, at 13.9 nats. Beyond it the
#   pull is negative.
# - **Robust DPO** pulls harder than DPO everywhere, to make up for labels that lie. It never pulls
#   less than $\epsilon \beta / (1 - 2\epsilon)$ = 0.033.
# - **Hinge** pulls with full strength up to 10 nats, and then not at all.
# - **IPO** (not drawn: it is far steeper) is a spring. It pulls hardest where a pair is most wrong,
#   and back beyond its target of 5 nats.
#
# **Predict.** In the exact world of lesson 12, the better of two responses always wins: hard
# labels. $\beta$ is 0.5. Which losses stop, and which run to a probability of 1 for the best
# response? In the reference it has 0.06, and the Gibbs policy of the true shares gives it 0.41.

# %% tags=["predict"]
world = core.World.random(3, 3, seed=0)
ref, target = world.sequence_logprobs(world.ref_logits), world.gibbs(beta=0.5)
i, j = torch.triu_indices(15, 15, 1)  # all pairs
share = core.preference_probability(world.rewards[i], world.rewards[j])


def trained(loss, share, iterations, **settings):
    """The policy after so many iterations of L-BFGS, a fast optimiser."""
    logits = world.ref_logits.clone().requires_grad_(True)
    optimizer = torch.optim.LBFGS(
        [logits],
        max_iter=iterations,
        history_size=50,
        tolerance_grad=1e-10,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def closure():
        optimizer.zero_grad()
        p = world.sequence_logprobs(logits)
        wins = loss(p[i], p[j], ref[i], ref[j], beta=0.5, **settings)
        loses = loss(p[j], p[i], ref[j], ref[i], beta=0.5, **settings)
        mean = (share * wins + (1 - share) * loses).mean()
        mean.backward()
        return mean

    optimizer.step(closure)
    return world.probs(logits.detach())


hard, best = (share > 0.5).double(), world.rewards.argmax()
rows = {}
for name in ("dpo", "cdpo", "hinge", "ipo", "nca"):
    given = {"label_smoothing": 0.2} if name == "cdpo" else {}
    ends = [trained(getattr(core, name), hard, n, **given) for n in (3, 10, 30, 100)]
    rows[name] = [policy[best].item() for policy in ends]
pd.DataFrame(rows, index=["3 iterations", "10", "30", "100"]).round(3).T

# %% [markdown]
# <details><summary>What you should see</summary>
#
# - **DPO runs to 1.** $\beta$ holds nothing.
# - **cDPO stops at 0.30**, **IPO at 0.12**, and **NCA** (section 3) **at 0.16**: they have a
#   target.
# - **Hinge stops at 0.99.** It is content wherever all neighbours are $1/\beta$ apart, and there
#   are many such policies. The nearest has 0.84. Where it ends depends on the optimiser.
# </details>
#
# Now the labels lie: 20 % of all votes are flipped. The votes show the share
# $0.8\,p + 0.2\,(1 - p)$ instead of $p$. How large is the largest error
# of a probability, compared with the Gibbs policy of the *true* shares?

# %%
seen = 0.8 * share + 0.2 * (1 - share)
ends = {
    "DPO": trained(core.dpo, seen, 300),
    "cDPO": trained(core.cdpo, seen, 300, label_smoothing=0.2),
    "robust": trained(core.robust_dpo, seen, 300, label_smoothing=0.2),
}
errors = {name: (p - target).abs().max().item() for name, p in ends.items()}
pd.Series(errors).round(3).to_frame("largest error").T

# %% [markdown]
# cDPO and robust DPO share the name of their setting, *label smoothing*, and have opposite effects.
# Robust DPO undoes the noise. cDPO adds its own caution to it.
#
# **Verdicts.**
#
# - **Robust DPO**: right if you know how many labels lie and have many votes per pair. Where labels
#   are sure it has no lower bound, and runs off faster than DPO: at 200 nats it still pulls with
#   0.033.
# - **cDPO**: a simple brake against labels that are too sure. It assumes that everybody is unsure.
# - **IPO**: finite whatever the labels are. But it counts wins, not how clear they are.
# - **Hinge**: stops, and never learns how large a majority is.
# - On our reviews all four lie on DPO's curve.

# %% [markdown]
# ## 3. Anchors: hold the chosen response
#
# | loss | the line that differs from DPO | idea |
# |---|---|---|
# | DPO-positive (DPOP) | $h = c - r - \lambda \max(0, -c)$ | do not let the chosen response fall |
# | noise contrastive alignment (NCA) | $\ell(c) + \frac12 \ell(-c) + \frac12 \ell(-r)$ | fit each reward, not only the difference |
# | Kahneman-Tversky optimisation (KTO) | $\sigma(-\beta (c - z)) + \sigma(\beta (r - z))$ | thumbs instead of pairs; bounded |
# | token-level DPO (TDPO) | $h = c - r - \alpha\,(D_r - D_c)$ | count the KL at every position |
#
# $z$ is an estimate of the KL to the reference; the figure below holds it at 0. $D_c$ and $D_r$ are
# the KL at the positions of the two responses, summed. $\lambda$ is 5 and $\alpha$ is 0.5.
#
# DPO does not notice if both responses fall together. So we hold $h$ at 0 and move *both*
# log-ratios. How hard is the chosen response pushed up, and the rejected one down?

# %%
anchors = {
    "DPO": setting(core.dpo),
    "DPOP": setting(core.dpop, penalty=5.0),
    "NCA": setting(core.nca),
    "KTO": kto,
}
both = torch.linspace(-15, 15, 121, dtype=torch.float64)
pushes = {name: push(loss, both, both) for name, loss in anchors.items()}
panels = {
    side: {name: p[k] for name, p in pushes.items()}
    for k, side in enumerate(["push up on the chosen", "push down on the rejected"])
}
show.lines(panels, both, xlabel="log-ratio of both, nats", ylim=(-0.05, 0.15))

# %% [markdown]
# - **DPO** pushes with 0.05 both ways, wherever the pair is. Nothing calls it back.
# - **DPOP** pushes the chosen response up with 0.3 or more once it is below the reference (outside
#   the figure).
# - **NCA** pushes up a chosen response that fell far harder than it pushes down its partner. It
#   pushes *down* a chosen response whose log-ratio is above 6.9 nats, which is $\log 2 / \beta$.
# - **KTO** fades on both sides. It gives up on pairs that are far off, whether they are noise or
#   hard. It does not call a fallen response back.
#
# In lesson 14's network with one weight, the only way to raise *yes* above *no* is through *sure*.
# Where does each loss stop? Here $\beta$ is 1. CPO (section 4) also imitates the chosen response.


# %%
def one_pair(loss, beta=1.0, steps=1000):
    """Where descent on one pair ends: yes above no, features 1, -1 and 4."""
    features, w = torch.tensor([1.0, -1.0, 4.0]).double(), torch.zeros(1).double()
    start = torch.full((1,), 1 / 3).double().log()
    for _ in range(steps):
        w = w.detach().requires_grad_(True)
        p = (features * w).log_softmax(0)
        given = (start, start) if loss is not core.cpo else ()
        loss(p[:1], p[1:2], *given, beta=beta).sum().backward()
        w = w - 0.04 * w.grad
    return [*p.detach().exp().tolist(), 2 * w.item()]


# %%
def dpop(*given, beta):
    return core.dpop(*given, beta=beta, penalty=5.0)


worlds = {"DPO": core.dpo, "IPO": core.ipo, "DPOP": dpop, "NCA": core.nca, "KTO": kto}
ends = {name: one_pair(loss) for name, loss in worlds.items()}
ends |= {"CPO": one_pair(core.cpo), "CPO, beta 0.1": one_pair(core.cpo, beta=0.1)}
pd.DataFrame(ends, index=["yes", "no", "sure", "h"]).round(3).T

# %% [markdown]
# *Yes* starts at 0.333. **It falls in every row but the last, and *sure* gains.** What differs is
# where they stop. IPO stops at its target of 0.5. DPOP hardly starts. NCA and CPO find a balance.
# KTO slows down as its sigmoid fades. Only DPO goes to the end. In the last row, imitation weighs
# more than the comparison. Then *yes* rises, and *no* rises more: the cheapest way to say *yes*
# here is to say both.
#
# **On film reviews.** How far have the pairs of the *training* set moved (mean of steps 70, 80 and
# 90, before the update)? KTO's batches are other responses, so it is left out.

# %%
history = experiments.results("preference_history").set_index(["seed", "step"])


def moved(variant, side):
    """Mean change of log pi of the training pairs. All losses see the same batches."""
    run, dpo = (history[history.variant == name] for name in (variant, "dpo"))
    reference = dpo[f"logps/{side}"] - dpo[f"rewards/{side}"] / 0.1
    change = run[f"logps/{side}"] - reference
    return change[change.index.isin([70, 80, 90], level="step")].mean()


sides = ["chosen", "rejected"]
pairwise = [name for name in losses if name != "kto"]
change = {name: {side: moved(name, side) for side in sides} for name in pairwise}
show.bars(change, label="change of log π, nats, training pairs")

# %% [markdown]
# DPOP, CPO and ORPO do what they promise: the chosen responses rise, on every seed. The rejected
# ones rise as well, by less. DPO, hinge and SimPO let both fall. NCA and TDPO hold the chosen ones
# where they were.
#
# And on **new films**? 2,000 pairs of the test films; *right order* is the share of pairs in which
# the chosen response has the larger change.

# %%
asked = experiments.results("order")
columns = {"right_order": "right order", "chosen_change": "chosen"}
experiments.shown(asked, columns | {"rejected_change": "rejected"})

# %% [markdown]
# - **No loss makes the chosen reviews of new films more likely**, on any seed. DPOP comes closest.
# - **The order does carry over.** Ten losses have more pairs right than a coin, on every seed: 56 %
#   to 60 %. Reward models of lesson 08 have 60 % with 1,600 pairs and 62 % with 6,400, on other
#   pairs.
# - **DPOP, CPO and ORPO have only 53 %**, less than DPO. The three that *raise* the chosen reviews
#   have learned less of the order. They also moved least, but IPO and TDPO moved little more and
#   have 58 %.
#
# **Verdicts.**
#
# - **DPOP**: use it if a falling chosen response is a harm in itself. You pay with what is learned.
# - **NCA**: holds chosen responses, has the order of DPO. But it bounds only the winners. On the
#   hard labels of section 2 the worst response falls without end.
# - **KTO**: the loss for thumbs up and down, where there are no pairs. Single wrong labels do
#   little harm.
# - **TDPO**: stays near the reference. On DPO's curve.

# %% [markdown]
# ## 4. The reference: leave it out, or let it move
#
# | variant | the line that differs from DPO | idea |
# |---|---|---|
# | contrastive preference optimisation (CPO) | no $\pi_{\text{ref}}$ in $h$; minus $\log \pi(y_c)$ | saves the reference, imitates the chosen |
# | simple preference optimisation (SimPO) | $-\log \sigma(\beta\,(m_c - m_r) - \gamma)$, with $m$ the mean $\log \pi$ of a token | a reward that does not depend on length |
# | odds ratio preference optimisation (ORPO) | $-m_c$, plus $\beta$ times $-\log \sigma$ of the difference of log-odds | one stage instead of two |
# | DPO without reference | $\log \pi_{\text{ref}} = 0$ | as if all responses had been equally likely |
# | trust-region DPO (TR-DPO), *synced* | every 25 steps the reference becomes the policy | a reference that follows |
# | TR-DPO, *mixed* | every 25 steps it moves 60 % of the way | the same, softer |
#
# **Predict.** The reference moves to where the policy is. Does the policy then go further or less
# far? And does it get more gold at equal KL?

# %% tags=["predict"]
moving = ["dpo", "dpo, synced", "dpo, mixed", "dpo, no reference"]
columns = {"gold": "gold", "kl": "KL", "length": "tokens", "distinct_2": "distinct-2"}
table = experiments.shown(runs[runs.variant.isin(moving)], columns)
table["above the curve"] = above_curve(moving)
table

# %% [markdown]
# <details><summary>What you should see</summary>
#
# **Further, on every seed, but along the same curve.** At equal KL, *synced* has 0.03 more gold
# than the curve and *mixed* 0.05, and both intervals contain 0. Updating the reference weakens the
# KL constraint, like a smaller $\beta$.
#
# **Without a reference** DPO goes 12.0 nats, more than twice as far, and has *less* gold than DPO:
# 0.81. Nothing in the loss knows what language was like.
# </details>
#
# **Verdicts.**
#
# - **TR-DPO**: another way to set the KL. Try a smaller $\beta$ first.
# - **CPO and ORPO**: save the reference model. Here they hardly moved: they imitate reviews that
#   the start was already trained on.
# - **SimPO**: saves the reference and removes the advantage of short responses. But nothing limits
#   how far it goes: stop it early.
# - **No reference at all**: further away, and worse.

# %% [markdown]
# ## 5. Whose responses?
#
# | variant | where the pairs come from |
# |---|---|
# | *human reviews* | reviews by people |
# | *own, once* | two reviews per prompt that the start wrote |
# | rejection sampling optimisation (RSO) | two of four such reviews, drawn so that they look like the best policy's; hinge loss |
# | *iterative DPO* | best against worst of four of the policy's reviews, new ones every 25 steps |
# | *online DPO* | two of the policy's reviews, new ones at every step |
# | *best of eight* | no pairs: supervised fine-tuning on the best of eight |
#
# The reward model of lesson 08 labels all of them; the record calls it *the scorer*. $\beta$ is 0.5,
# except that imitation has none. *Human reviews*, *own, once* and *online DPO* have 3,200 labelled pairs each. The others score more reviews.
#
# RSO keeps one of $K$ samples, with a probability in proportion to $e^{r / \beta}$. As $K$ grows,
# this is a sample of the Gibbs policy. In the exact world, the total variation distance (half the
# sum of all errors) from it:

# %%
draw = torch.Generator().manual_seed(0)
distance = {}
for k in (2, 8, 64):
    samples = torch.multinomial(ref.exp().expand(4000, 15), k, True, generator=draw)
    rewards = world.rewards[samples]
    kept = core.rejection_sample(rewards, beta=0.5, generator=draw)
    found = samples.gather(1, kept)[:, 0].bincount(minlength=15) / 4000
    distance[f"one of {k}"] = ((found - target).abs().sum() / 2).item()
pd.Series(distance).round(2).to_frame("distance to the Gibbs policy").T

# %% [markdown]
# With two or four samples RSO is still far from it. It approaches the optimum only with many.
#
# **Predict.** Which of the six has the most gold? And which are above DPO's curve at equal KL?

# %% tags=["predict"]
names = {
    "human texts, the scorer's labels": "human reviews",
    "the start's own texts": "own, once",
    "rso": "RSO",
    "iterative-dpo": "iterative DPO",
    "online-dpo": "online DPO",
    "best of 8, imitated": "best of eight",
}
runs = runs.replace({"variant": names})
six = list(names.values())
table = experiments.shown(runs[runs.variant.isin(six)], columns)
table["above the curve"] = above_curve(six)
table

# %% [markdown]
# <details><summary>What you should see</summary>
#
# **Iterative DPO has the most gold**, 2.27, and the most KL, 10.8 nats: more of both than the other
# five, on every seed. Its KL is beyond the curve's end.
#
# **All six are above the curve**, and no interval contains 0. For *human reviews* it is 0.13: this
# is what the reward model's labels bring, because they contradict each other less than single
# votes. For the policy's own responses it is 0.27 to 0.51.
# </details>
#
# The figure shows the same six, and proximal policy optimisation (PPO) with four KL coefficients.

# %%
by_coefficient = experiments.results("leash")
of_ppo = ["kl_coef 2", "kl_coef 1", "kl_coef 0.5", "kl_coef 0.25"]
rows = runs[(runs.experiment == "betas") | runs.variant.isin(six)]
rows = pd.concat([rows, by_coefficient[by_coefficient.variant.isin(of_ppo)]])
show.frontier(rows, curves=curve | {"PPO": of_ppo}, log=True, ylabel="gold")

# %% [markdown]
# Is it the policy's own responses, or something else? Compare with *human reviews*, which have the
# same labels. At equal KL, *own, once* is ahead by 0.17 [0.06, 0.29], and online DPO by 0.38 [0.18,
# 0.55]. Counted by KL *per token*, which is fairer to long reviews, it is 0.11 [−0.00, 0.22] and
# 0.21 [0.01, 0.38]. So for responses written once the answer depends on how KL is counted. For
# online DPO the lead remains, but it is small. PPO at 4.1 nats has 2.01, more than online DPO at
# 4.7. It is told *how much* better a response is.
#
# Read what they write, not selected:

# %%
shown = ["human reviews", "online DPO", "iterative DPO"]
texts = experiments.samples(runs, shown).head(3)
show.texts(texts.melt(var_name="variant", value_name="review", ignore_index=False))

# %% [markdown]
# With fresh responses the reviews become short raves, full of *funny* and *entertaining*. Different
# word pairs fall from 84 % (human reviews) to 75 % (online) and 66 % (iterative). The policy has
# found what the reward model likes. Gold, which was fitted to the same kind of ratings, does not
# notice.
#
# **Verdicts.**
#
# - **Online DPO**: the repair with the clearest gain at equal KL. It costs samples and a judge.
# - **Iterative DPO**: goes furthest with few rounds of sampling. Watch the variety.
# - **RSO and own responses once**: most of the gain in KL efficiency for one round of sampling.
# - **Best of eight**: a strong baseline without any preference loss. It is the least varied.

# %% [markdown]
# ## 6. The verdicts
#
# | repair | what it mends | at equal KL, in our record |
# |---|---|---|
# | cDPO, hinge, IPO | labels that are too sure | as DPO |
# | robust DPO | labels that lie, at a known rate | as DPO |
# | NCA, TDPO, KTO | both responses falling; KTO: no pairs needed | as DPO |
# | DPOP, CPO, ORPO | the chosen response falling | moved too little to compare; know less of the order |
# | SimPO, no reference | memory of the reference | as DPO's end at best; without anything: worse |
# | TR-DPO | nothing: a weaker KL constraint | as DPO |
# | own responses (RSO, once, iterative, online) | pairs that the policy would not write | ahead |
#
# ## What to remember
#
# - Most losses differ in *how far* they go. At equal KL, nine of the thirteen cannot be told apart
#   here.
# - $\beta$ means something else in every loss. Never compare two losses at one $\beta$.
# - What holds the chosen response on the training pairs need not carry over to new prompts.
# - The pairs matter more than the loss: the policy's own responses are ahead.
# - A higher gold score beside a lower variety is a warning.
#
# ## Exercises
#
# Solutions are in `solutions/14b_the_repairs_compared.ipynb`.

# %% [markdown] tags=["exercise"]
# **1. Thumbs: KTO** *(medium, 15 minutes)*. `logprobs` and `ref_logprobs` (B,) are of single
# responses, `desirable` (B,) holds booleans, and `kl_baseline` is a tensor with the one number $z$.
# No gradient may flow through $z$. With $g = \beta\,(\log \pi - \log \pi_{\text{ref}} - z)$, return
# $1 - \sigma(g)$ where a response is desirable and $1 - \sigma(-g)$ elsewhere.
#
# *Hint:* why must $z$ carry no gradient? What would the model be paid for otherwise?


# %% tags=["exercise"]
def kto_loss(logprobs, ref_logprobs, desirable, kl_baseline, beta): ...  # your code


check.kto_loss(kto_loss)


# %% tags=["solution"]
def kto_loss(logprobs, ref_logprobs, desirable, kl_baseline, beta):
    gain = beta * (logprobs - ref_logprobs - kl_baseline.detach())
    return torch.where(desirable, 1 - torch.sigmoid(gain), 1 - torch.sigmoid(-gain))


check.kto_loss(kto_loss)

# %% [markdown] tags=["solution"]
# With a gradient through $z$ the model would be paid for moving all *other* responses. The paper
# also has a weight for each kind of thumb, and keeps $z$ at 0 or above. So does the package.

# %% [markdown] tags=["exercise"]
# **2. No reference, a mean: SimPO** *(medium, 15 minutes)*. `logprobs` `(2B, R)` are of tokens, the
# chosen responses first, and `mask` is `(2B, R)`. Return (B,): $-\log \sigma(\beta\,(m_c - m_r) -
# \text{margin})$, where $m$ is the mean over the real tokens of a response.
#
# *Hint:* padding can hold NaN, and NaN times zero is NaN. Replace padding with
# `torch.where(mask, x, 0.0)` before you compute.


# %% tags=["exercise"]
def simpo_loss(logprobs, mask, beta, margin): ...  # your code


check.simpo_loss(simpo_loss)


# %% tags=["solution"]
def simpo_loss(logprobs, mask, beta, margin):
    means = torch.where(mask, logprobs, 0.0).sum(1) / mask.sum(1)
    chosen, rejected = means.chunk(2)
    return -torch.nn.functional.logsigmoid(beta * (chosen - rejected) - margin)


check.simpo_loss(simpo_loss)

# %% [markdown] tags=["exercise"]
# **3. Find the bug: odds** *(medium, 15 minutes)*. ORPO imitates the chosen response and compares
# *odds*, $p / (1 - p)$, where $\log p$ is a response's mean log-probability. A colleague's loss
# works for hours. Then it becomes infinite. The curve shows the loss of a pair whose *rejected*
# response has become nearly certain, by its distance from a log-probability of zero. It should be a
# smooth curve without gaps. Mend it, run the checker, and draw the curve again. Both means are
# negative, (B,).
#
# *Hint:* where does the curve stop being smooth? How many digits does float32 have?


# %% tags=["exercise"]
def orpo_loss(chosen_mean_logprobs, rejected_mean_logprobs, beta):
    def log_odds(mean):
        return mean - torch.log(1 - torch.exp(mean))

    odds = log_odds(chosen_mean_logprobs) - log_odds(rejected_mean_logprobs)
    return -chosen_mean_logprobs - beta * torch.nn.functional.logsigmoid(odds)


check.orpo_loss(orpo_loss)


# %% [markdown] tags=["solution"]
# In float32, $e^{-10^{-8}}$ *is* 1, and $\log(1 - 1)$ is minus infinity. A little further left few
# digits of $1 - e^x$ are right. `torch.expm1(x)` is $e^x - 1$ without the subtraction, so it keeps
# the digits.


# %% tags=["solution"]
def orpo_loss(chosen_mean_logprobs, rejected_mean_logprobs, beta):
    def log_odds(mean):
        return mean - torch.log(-torch.expm1(mean))

    odds = log_odds(chosen_mean_logprobs) - log_odds(rejected_mean_logprobs)
    return -chosen_mean_logprobs - beta * torch.nn.functional.logsigmoid(odds)


check.orpo_loss(orpo_loss)

# %% tags=["exercise", "solution"]
distance = torch.logspace(-9, -5, 200)
losses_of = orpo_loss(torch.full((200,), -1.0), -distance, 1.0)
finite = torch.where(losses_of.isfinite(), losses_of, torch.nan)
show.lines(
    {"orpo_loss": finite}, distance, log="x", xlabel="minus the rejected mean log π"
)

# %% [markdown]
# **4. Design the experiment** *(hard, 15 minutes)*. "Our new preference loss beats DPO." It was run
# with its authors' settings, and DPO with the library's. What would you have to see? Write down at
# least five things.
#
# <details><summary>What a good answer contains</summary>
#
# - Each loss at several strengths of its own KL constraint, so that curves of score against KL are
#   compared, and not points.
# - Learning rates chosen with as many tries for each loss, on other prompts.
# - A judge that no training saw, with length and variety beside it.
# - Several seeds, paired by prompt, with an interval over both.
# - The same pairs, and a statement of who wrote them.
#
# Many published tables have one point per loss.
# </details>
#
# ## Questions
#
# <details><summary>1. My judge is a rule: always the same label. Which losses still have a finite optimum?</summary>
#
# IPO and cDPO. NCA bounds the winner only: a response that always loses falls without end. Hinge
# has many optima. DPO, KTO and robust DPO have none, and $\beta$ does not help.
# </details>
#
# <details><summary>2. What does leaving out the reference change in theory?</summary>
#
# The optimum. With sums, as in CPO without its imitation, it is $e^{r / \beta}$ over *all*
# responses, as if every response had been equally likely at the start. Only the starting weights
# and the number of steps remember what language looks like.
# </details>
#
# <details><summary>3. SimPO and ORPO use the mean over tokens. Which bias does that remove, and which does it add?</summary>
#
# A sum makes long responses improbable whatever they say. Without a reference, their rewards would
# be lower. The mean removes that. But a long response can now hide one bad word among many good
# ones.
# </details>
#
# ## Going further
#
# **Settings.** $\beta$ is 0.1, except for IPO with means (1), SimPO (2, with $\gamma = 1$) and the
# runs of section 5 (0.5). IPO with means aims at half a nat per token; TRL's default of 0.1 would
# ask for five. Our CPO sums its imitation over tokens, as its paper does. That weighs some twenty
# times as much as TRL's mean, and with TRL's weight CPO might move further.
#
# *Best of eight* is supervised fine-tuning for three epochs, with twice the learning rate.
#
# **Why robust DPO works.** Call its loss $\tilde\ell$. Over labels that are flipped with
# probability $\epsilon$, its mean is $(1 - \epsilon)\, \tilde\ell(h) + \epsilon\, \tilde\ell(-h)$.
# Put the formula in: the terms $\ell(-h)$ cancel, and $\ell(h)$ is left. So its mean over lying
# labels *is* DPO's loss on true ones.
#
# **How cDPO ends.** On the hard labels of section 2 it ends not far from the Gibbs policy of
# people's own doubts: the total variation distance is 0.11.
#
# **The small set of pairs.** The main record also has the order of 128 validation pairs: 0.43 to
# 0.54 over all runs. With a standard error of 0.04 they cannot tell 0.58 from 0.5. We first read
# them as "a coin". The 2,000 pairs of the test films can tell.
#
# **What is not equal in section 5.** The reward model learned from many more votes (lesson 08). The
# policy writes about all titles, about 3 pairs each; human reviews are of the films with votes and
# short reviews, about 19 pairs each. An unfinished review of the policy's costs 1, and human
# reviews teach no such thing, so own reviews are shorter and whole. Each variant has one $\beta$
# only. And *own, once* and *human reviews* end at 2.7 and 2.3 nats: two of the three seeds differ
# by 0.1.
#
# **Intervals and luck.** The intervals of section 1 are over films and seeds, and DPO's curve is
# drawn anew, too. Of twenty such intervals one misses by chance.
#
# **What the libraries do.** TRL 1.16 puts most pairwise losses into its DPO trainer and gives KTO a
# trainer of its own, for thumbs. CPO, SimPO and ORPO are experimental trainers there; SimPO is a
# setting of CPO. Its `label_smoothing` is read by the robust loss, and the plain loss ignores it.
# `sync_ref_model` is TR-DPO, by default with 60 % every 512 steps. We have all losses as rows of
# one table (`docs/losses.md`), sums unless a name says *mean*.
#
# **References.** Mitchell 2023 (cDPO). Chowdhury et al. 2024 (robust DPO). Zhao et al. 2023
# (SLiC-HF). Azar et al. 2023 (IPO). Pal et al. 2024 (DPOP). Chen et al. 2024 (NCA). Ethayarajh et
# al. 2024 (KTO). Zeng et al. 2024 (TDPO). Xu et al. 2024 (CPO). Meng et al. 2024 (SimPO). Hong, Lee
# and Thorne 2024 (ORPO). Gorbatovski et al. 2024 (TR-DPO). Liu et al. 2023 (RSO). Xiong et al. 2023
# (iterative DPO). Guo et al. 2024 (online DPO).
#
# *How this lab is checked:* every number about a recorded run is compared with the record
# (`tests/claims/test_lesson_14b.py`), and the optima of the losses are tested in
# `tests/core/test_preference.py`.
