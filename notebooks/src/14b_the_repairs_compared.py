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
# - place a new preference loss beside DPO: at equal KL, with an interval over seeds and films,
# - say for each of eleven repairs of DPO what it changes, and what it is good for,
# - ask for what is missing when somebody says "our loss beats DPO".
#
# **You need** lesson 14 (what DPO gets wrong), lesson 12 (direct preference optimisation, DPO) and, for the
# intervals, section 3 of lesson 11b.
# About 60 minutes to read and 90 for the exercises.

# %%
import numpy as np
import pandas as pd
import torch

from minirlhf import core, experiments, show
from minirlhf.classroom import check

# %% [markdown]
# ## What is compared
#
# Every paper shows that its own repair is better than DPO. This lab runs eleven of them.
#
# $c$ and $r$ are the log-ratios of the chosen and the rejected response ($d_c$ and $d_r$ in lesson
# 14), and $h = c - r$. DPO pulls $h$ up, but less and less. *Imitation* is the loss of supervised
# fine-tuning (SFT): the cross-entropy on the chosen response.
#
# | loss | in one line | formula |
# |---|---|---|
# | conservative DPO (**cDPO**) | do not become surer than 80 %: labels may be wrong | section 2 |
# | **robust** DPO | expect that 20 % of the labels are flipped, and undo it | section 2 |
# | **hinge** loss | raise $h$ to a margin, then stop | section 2 |
# | identity preference optimisation (**IPO**) | pull $h$ to a target, from both sides | section 2 |
# | DPO-positive (**DPOP**) | DPO, with a penalty if the chosen response falls | section 3 |
# | noise contrastive alignment (**NCA**) | look at each response by itself, not at the difference | section 3 |
# | Kahneman-Tversky optimisation (**KTO**) | no pairs: single responses with a thumb up or down | section 3 |
# | token-level DPO (**TDPO**) | DPO, with a penalty on the KL along the rejected response | section 3 |
# | contrastive preference optimisation (**CPO**) | no reference; DPO plus imitation | section 4 |
# | simple preference optimisation (**SimPO**) | no reference; the mean $\log \pi$ of a token, and a margin | section 4 |
# | odds ratio preference optimisation (**ORPO**) | no reference; imitation plus a comparison of odds | section 4 |
#
# All these runs start from the same model and see the same 3,200 pairs of human reviews, labelled by single votes:
# 100 steps of 32 pairs, one learning rate, three seeds. (KTO reads 64 single reviews of these pairs' training set at
# each step.) The settings are near those of the papers or of the libraries, which differ for some losses ("Going
# further"). **None was tuned here.** Each policy then writes one review for each of 76 test films. **Gold** is the
# score of a separate model that no training used. KL is in nats per review, and so is every change of a
# log-probability.

# %% [markdown]
# ## 1. Equal KL first
#
# A policy that goes further from the reference has more gold, up to a point. So DPO is a curve:
# lesson 12 ran it with $\beta$ = 1, 0.3, 0.1 and 0.03, and a smaller $\beta$ goes
# further. The question for a new loss is: **is it above DPO's curve?** How far it is above is its
# **lead** (lesson 14).
#
# Straight lines in the *logarithm* of the KL join its points, because the first nats bring most
# (lesson 14).
#
# **Is a lead more than luck?** Other seeds and films would give other numbers. DPO's runs of one seed make
# a curve of their own. We compare the variant's run of this seed with it: on each film, the run's gold
# minus the curve's gold at the KL of the run. This gives 3 × 76 differences, and their mean is the lead.
# Its 95 % interval allows for the luck of seeds and of films (`experiments.above_curve`; the formula is in
# lesson 11b, "Going further"). A lead is *more than luck* if its interval leaves out 0.
#
# **What can be compared?** A variant whose mean KL is between the ends of the curve, or at most a tenth
# beyond one of them. (Beyond the end of its curve, a run is compared with the end.) All others have *no
# comparison*.
#
# **Predict.** DPO with $\beta$ = 0.1 has a gold of 1.39. How many of the eleven have more? And how
# many are above the curve by more than luck?

# %% tags=["shared"]
names = {"dpo": "DPO", "cdpo": "cDPO", "ipo": "IPO", "dpop": "DPOP", "nca": "NCA"}
names |= {"kto": "KTO", "tdpo": "TDPO", "cpo": "CPO", "simpo": "SimPO", "orpo": "ORPO"}
runs = experiments.results("betas", "preference").replace({"variant": names})
dpo_curve = ["beta 1", "beta 0.3", "beta 0.1", "beta 0.03"]
eleven = ["cDPO", "robust", "hinge", "IPO", "NCA", "KTO", "TDPO"]
eleven += ["DPOP", "CPO", "ORPO", "SimPO"]


def comparable(runs, variants):
    """The variants whose KL is between the curve's ends, or at most a tenth beyond."""
    kl = runs.groupby("variant").kl.mean()
    low, high = 0.9 * kl[dpo_curve].min(), 1.1 * kl[dpo_curve].max()
    return [name for name in variants if low <= kl[name] <= high]


# %% tags=["predict"]
table = experiments.shown(runs[runs.variant.isin(eleven)], {"gold": "gold", "kl": "KL"})
ahead = experiments.above_curve(runs, "gold", dpo_curve, comparable(runs, eleven))
table["above DPO's curve"] = experiments.with_interval(ahead)
table.sort_values("gold", ascending=False).fillna("no comparison")

# %% [markdown]
# <details><summary>What you should see</summary>
#
# The first two brackets give the lowest and the highest seed, the last one is the 95 % interval.
#
# - **Four have more gold**: KTO (1.57), robust DPO (1.52), SimPO (1.45) and hinge (1.44). All four
#   also go further: 6.5 to 14.1 nats, and DPO 5.4.
# - **None is above the curve by more than luck.** The seven that can be compared differ from it by
#   0.00 to 0.08, and each interval contains 0.
# </details>
#
# Four:

# %%
four = runs[runs.variant.isin(["IPO", "hinge", "KTO", "SimPO", *dpo_curve])]
order = ["DPO", *eleven]  # each keeps its colour
show.frontier(four, curves={"DPO": dpo_curve}, log=True, ylabel="gold", order=order)

# %% [markdown]
# - **Hinge has 0.53 more gold than IPO, and 5.5 times its KL.** Both lie near the curve.
# - **DPOP, CPO and ORPO moved too little to be compared**: at most 0.7 nats. The curve begins at
#   1.1, where TDPO is.
# - **SimPO went too far**: 14.1 nats. The curve ends at 9.0 nats, with more gold.
#
# *Not told apart* is not *equal*: KTO's interval reaches to 0.44.

# %% [markdown]
# ## 2. Labels that are wrong, labels that are too sure
#
# $\ell(x) = -\log \sigma(\beta x)$ is DPO's loss at $x$. $\epsilon$ is the share of labels that are
# believed to be wrong: here 0.2 (`label_smoothing`).
#
# | loss | instead of $\ell(h)$ | idea |
# |---|---|---|
# | cDPO | $(1 - \epsilon)\, \ell(h) + \epsilon\, \ell(-h)$ | each label counts a little for the other side |
# | robust | $\big[(1 - \epsilon)\, \ell(h) - \epsilon\, \ell(-h)\big] / (1 - 2\epsilon)$ | subtract what flipped labels add |
# | hinge | $\max(0, 1 - \beta h)$ | stop at a margin of $1 / \beta$ |
# | IPO | $\big(h - \frac{1}{2\beta}\big)^2$ | a target |
#
# The figure shows the **pull** of each loss on $h$: minus its derivative. Where it is above 0, $h$
# rises. $\beta$ is 0.1.


# %%
def push(loss, c, r):
    """How hard a loss pushes the chosen response up and the rejected one down."""
    c, r = c.clone().requires_grad_(True), r.clone().requires_grad_(True)
    zero = torch.zeros_like(c)
    up, down = torch.autograd.grad(loss(c, r, zero, zero).sum(), (c, r))
    return -up, down


def setting(loss, **given):
    """A loss of c and r with its settings. rc and rr are the reference: here 0."""
    return lambda c, r, rc, rr: loss(c, r, rc, rr, beta=0.1, **given)


# %%
h = torch.linspace(-30, 30, 121, dtype=torch.float64)
labels = {
    "DPO": setting(core.dpo),
    "cDPO": setting(core.cdpo, label_smoothing=0.2),
    "robust": setting(core.robust_dpo, label_smoothing=0.2),
    "hinge": setting(core.hinge),
}
# With c = h / 2 and r = -h / 2, the pull on h is half the sum of both pushes.
pulls = {name: sum(push(loss, h / 2, -h / 2)) / 2 for name, loss in labels.items()}
show.lines(pulls, h, xlabel="h, nats", ylabel="pull on h", reference={"none": 0})

# %% [markdown]
# - **DPO** never stops.
# - **cDPO** turns round where $\sigma(\beta h) = 1 - \epsilon = 0.8$, at 13.9 nats. Beyond it the
#   pull is negative.
# - **Robust DPO** pulls harder than DPO everywhere, to make up for labels that lie. However large
#   $h$ is, it pulls with more than $\epsilon \beta / (1 - 2\epsilon)$ = 0.033.
# - **Hinge** pulls with full strength up to 10 nats, and then not at all.
# - **IPO** (not drawn: it is far steeper) pulls hardest where a pair is most wrong, and back beyond
#   its target of 5 nats.
#
# **Predict.** In the exact world of lesson 12 we now label all pairs by a rule: the better response
# *always* wins. $\beta$ is 0.5. The best response starts at a probability of 0.06. Which of DPO,
# cDPO, hinge and IPO stop, and which run to 1?

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


always, best = (share > 0.5).double(), world.rewards.argmax()
rows = {}
for name in ("dpo", "cdpo", "hinge", "ipo"):
    given = {"label_smoothing": 0.2} if name == "cdpo" else {}
    ends = [trained(getattr(core, name), always, n, **given) for n in (3, 10, 30, 100)]
    rows[name] = [policy[best].item() for policy in ends]
pd.DataFrame(rows, index=["3 iterations", "10", "30", "100"]).round(3).T

# %% [markdown]
# <details><summary>What you should see</summary>
#
# - **DPO runs to 1.** $\beta$ holds nothing.
# - **cDPO stops at 0.30** and **IPO at 0.12**: for each of them there is an $h$ that is too large.
# - **Hinge stops at 0.99.** It stops as soon as all pairs have their margin. Many policies give all
#   pairs their margin; this is the one that the optimiser found.
# </details>
#
# Now other labels in the same world: 20 % of all votes are flipped. A share $p$ of the people
# prefers a response, and the votes show $0.8\,p + 0.2\,(1 - p)$. We want the Gibbs policy of the
# true $p$. The table shows the largest error of a probability:

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
# Robust DPO undoes the noise, and cDPO adds its own caution to it.
#
# On our reviews none of the four can be told apart from DPO (section 1). How many of our labels are
# wrong is not known, so this is no test of what robust DPO and cDPO are made for.

# %% [markdown]
# ## 3. Anchors: more than the difference
#
# DPO sees only $h$, so it does not notice if both responses fall together. Four losses look at more
# than $h$:
#
# | loss | formula | idea |
# |---|---|---|
# | DPOP | $\ell\big(c - r - \lambda \max(0, -c)\big)$, $\lambda = 5$ | if the chosen response has fallen below the reference, $h$ loses $\lambda$ nats for each nat of the fall |
# | NCA | $\ell(c) + \frac12 \ell(-c) + \frac12 \ell(-r)$ | look at one response at a time, and ask whether it was chosen |
# | KTO | $\sigma(-\beta\,(c - z)) + \sigma(\beta\,(r - z))$ | a thumb up for the chosen response, a thumb down for the rejected one |
# | TDPO | $\ell\big(c - r - \alpha\,(D_r - D_c)\big)$, $\alpha = 0.5$ | lower the rejected response, and change little around it |
#
# ($z$, $D_c$ and $D_r$: below the figure.) We hold $h$ at 0 and move *both* log-ratios. How hard is the
# chosen response pushed up, and the rejected one down? (For KTO $z$ is 0. TDPO needs whole
# distributions, so it is not drawn.)


# %%
def kto(c, r, rc, rr, beta=0.1):
    """A chosen response with a thumb up, a rejected one with a thumb down."""
    up, z = torch.ones_like(c, dtype=torch.bool), torch.zeros((), dtype=c.dtype)
    return core.kto(c, rc, up, z, beta=beta) + core.kto(r, rr, ~up, z, beta=beta)


anchors = {
    "DPO": setting(core.dpo),
    "DPOP": setting(core.dpop, penalty=5.0),
    "NCA": setting(core.nca),
    "KTO": kto,
}
both = torch.linspace(-15, 15, 121, dtype=torch.float64)

# %%
pushes = {name: push(loss, both, both) for name, loss in anchors.items()}
panels = {
    side: {name: p[k] for name, p in pushes.items()}
    for k, side in enumerate(["push up on the chosen", "push down on the rejected"])
}
show.lines(panels, both, xlabel="log-ratio of both, nats", ylim=(-0.05, 0.15))

# %% [markdown]
# - **DPO** pushes with 0.05 both ways, wherever the pair is.
# - **DPOP** pushes the chosen response up with 0.3 or more once it is below the reference (outside
#   the figure).
# - **NCA** trains a classifier: was this response *chosen*, or picked blindly from the pair? For the
#   log-ratio $x$ it says *chosen* with probability $\sigma(\beta x)$. A chosen response costs $\ell(c)$,
#   and that pushes it up. A blind pick costs $\ell(-x)$. It is the chosen or the rejected response with
#   probability ½ each, so $\frac12 \ell(-c)$ and $\frac12 \ell(-r)$ push both down. For the chosen response
#   up and down balance at $\sigma(\beta c) = \frac23$, so at $c = \log 2 / \beta$ = 6.9 nats: its target. A fallen
#   one is brought back.
# - **KTO** needs no pairs, only thumbs. A response counts as raised if its log-ratio is above $z$. For $z$, each
#   response of the batch is put behind another prompt, and $z$ is the mean of these log-ratios (at least 0). What the
#   policy raises behind every prompt raises $z$, too, so it does not count. Each cost is between 0 and 1, so a wrong
#   thumb does limited harm. But the pushes fade on both sides: a fallen response is not called back, and there is no
#   target.
# - **TDPO** looks at whole distributions. At each position of the rejected response it takes
#   $\text{KL}(\pi_{\text{ref}} \,\|\, \pi)$ of the next token. Their sum is $D_r$. A policy that changes
#   much there has a large $D_r$, which lowers $h$ and so costs loss. $D_c$ is the same sum for the
#   chosen response, with the opposite sign. It only changes how hard the pair pulls: with a gradient, the
#   loss would *reward* change there.
#
# **CPO** (section 4) leaves out the reference and imitates: $\ell(\log \pi(y_c) - \log \pi(y_r)) -
# \log \pi(y_c)$.
#
# In lesson 14's network with one weight $w$, *yes* is chosen and *no* rejected, and $h = 2w$. The
# unseen *sure* gains most if $w$ rises. Where does each loss stop, with $\beta$ = 1?


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
# *Yes* starts at 0.333. **It falls in every row but the last, and *sure* gains.** IPO stops at its target, $h$ = 0.5.
# DPOP hardly starts. NCA, KTO and CPO find a balance: KTO has no target, but here its two pushes cancel. DPO does not
# stop. In the last row imitation outweighs the comparison: $w$ turns negative, *sure* loses, and *no* gains even more
# than *yes*.
#
# **On film reviews.** Which loss keeps the chosen reviews from falling? A policy that goes less far
# lowers them less, so we compare with DPO's curve again. *Training pairs*: the mean change of steps
# 70, 80 and 90; KTO's batches hold other responses. *New films*: 128 pairs of other films,
# after training.

# %%
history = experiments.results("betas_history", "preference_history")
history = history.replace({"variant": names}).set_index(["seed", "step", "variant"])


def moved(side):
    """Change of log pi of the training pairs. All these losses see the same batches."""
    logps = history[f"logps/{side}"].unstack("variant")
    rewards = history[f"rewards/{side}"].unstack("variant")
    # DPO logs 0.1 (log pi - log pi_ref) as its reward, so this is log pi_ref:
    reference = logps["DPO"] - rewards["DPO"] / 0.1
    change = logps.sub(reference, axis=0).query("step in (70, 80, 90)")
    return change.groupby("seed").mean().unstack()


# %%
fell = runs.set_index(["variant", "seed"])[["kl", "chosen_change"]]
fell = fell.assign(training=moved("chosen")).reset_index()
pairwise = [name for name in eleven if name != "KTO"]
drawn = fell[fell.variant.isin([*dpo_curve, *pairwise])]
shared = {"curves": {"DPO": dpo_curve}, "log": True, "order": order}
show.frontier(drawn, y="training", ylabel="change of chosen, training pairs", **shared)

# %%
drawn = fell[fell.variant.isin([*dpo_curve, *eleven])]
show.frontier(drawn, y="chosen_change", ylabel="change of chosen, new films", **shared)

# %% [markdown]
# The distance from DPO's curve in nats, of those that can be compared. Here the intervals are for other
# seeds only:

# %%
seven = comparable(runs, eleven)
six = comparable(runs, pairwise)
on_training = experiments.above_curve(fell, "training", dpo_curve, six)
on_new = experiments.above_curve(fell, "chosen_change", dpo_curve, seven)
table = experiments.with_interval(on_new).to_frame("new films")
table["training pairs"] = experiments.with_interval(on_training)
table.fillna("other batches")

# %% [markdown]
# - **Most of it is the KL.** On the training pairs DPO's chosen reviews fall by 2.8 nats with $\beta$ =
#   0.1 and by 0.3 with $\beta$ = 1. IPO, NCA and TDPO go about as far as the second.
# - **NCA holds them better on the training pairs**, by 0.44 [0.20, 0.67]. TDPO's seeds differ too much to
#   be sure.
# - **On new films no loss is shown to hold them better.** They fall in every run, and with KTO further than
#   with DPO, by 0.63 [0.02, 1.24]. (One of thirteen intervals: it may be luck.)
# - **DPOP, CPO and ORPO raise the chosen reviews of the training pairs** by 1 to 2 nats, on each seed.
#   On new films CPO's and ORPO's fall more than DPO's with $\beta$ = 1, on each seed, although these two
#   went less far.
#
# And the *order* of new pairs? *Right order* is the share of 2,000 pairs of the test films in which the
# chosen review has the larger change of $\log \pi$.

# %%
asked = experiments.results("order").replace({"variant": names})
experiments.shown(asked, {"right_order": "right order"}).loc[["DPO", *eleven]]

# %% [markdown]
# **The order does carry over**: 56 % to 60 % for all losses but three. DPOP, CPO and ORPO have only
# 53 %. The record cannot tell whether raising the chosen reviews cost them this, or moving too little.

# %% [markdown]
# ## 4. The reference: leave it out, or let it move
#
# Three losses do without the reference, a second model in memory. $m_c$ and $m_r$ are the mean $\log \pi$ of a token
# in the chosen and in the rejected response.
#
# - **CPO** (section 3) is DPO without $\log \pi_{\text{ref}}$, plus imitation.
# - **SimPO** is $-\log \sigma(\beta\,(m_c - m_r) - \gamma)$. The mean takes away the advantage that
#   short responses have in a sum. $\gamma$ is a margin: $\beta m_c$ should be above
#   $\beta m_r$ by so much.
# - **ORPO** is $-m_c$, which is imitation, plus $\beta$ times $-\log \sigma(o_c - o_r)$. Let
#   $q = e^m$ be the typical probability of a token. Then $o = \log \frac{q}{1 - q}$ are the
#   *log-odds*. For a small $q$ they are nearly $\log q$; near 1 they grow much faster.
#
# The other idea is a reference that follows: trust-region DPO (**TR-DPO**). Every 25 steps the
# reference becomes the policy (*synced*), or moves 60 % of the way (*mixed*).
#
# **Predict.** Does the policy then go further or less far? Does it get more gold at equal KL? And what
# if DPO has no reference at all (*dpo, no reference*)?

# %% tags=["predict"]
moving = ["dpo, synced", "dpo, mixed", "dpo, no reference"]
shown = runs[runs.variant.isin(["DPO", *moving])]
table = experiments.shown(shown, {"gold": "gold", "kl": "KL"})
ahead = experiments.above_curve(runs, "gold", dpo_curve, comparable(runs, moving))
table["above DPO's curve"] = experiments.with_interval(ahead)
table.loc["DPO", "above DPO's curve"] = "one of its points"
table.loc[["DPO", *moving]].fillna("no comparison")

# %% [markdown]
# <details><summary>What you should see</summary>
#
# **Further, on every seed, and near the same curve.** *Synced* has 0.03 more gold than the curve
# and *mixed* 0.06, and both intervals contain 0. A moving reference works like a smaller $\beta$.
#
# **Without a reference** DPO goes more than twice as far, 12.0 nats, and has *less* gold: 0.81.
# SimPO has no reference either, and 1.45 at 14.1 nats. But SimPO takes means over tokens. *No
# reference* takes sums, and its reviews become long: 29.5 tokens, and 27 % of them do not end.
# </details>

# %% [markdown]
# ## 5. Whose responses?
#
# Now the loss stays (DPO with $\beta$ = 0.5) and the pairs change. The reward model of lesson 08
# labels all of them.
#
# | variant | where the pairs come from |
# |---|---|
# | *relabelled* (lesson 14's *human reviews*) | the human reviews of section 1, with the reward model's labels |
# | *own, once* (lesson 14's *own reviews, once*) | two reviews per prompt that the policy wrote before training |
# | *online DPO* (lesson 14) | two of the policy's reviews, new ones at every step |
# | *iterative DPO* | the best against the worst of four of the policy's reviews, new ones every 25 steps |
# | *best of eight* | SFT, not DPO: imitation of the best of eight reviews that it wrote before training |
#
# The first three have 3,200 labelled pairs each, the other two score more reviews. *Distinct-2* is
# the share of different word pairs in the reviews.
#
# **Predict.** Where do *iterative DPO* and *best of eight* lie: in gold, in KL, and compared with
# DPO's curve?

# %% tags=["predict"]
sources = {
    "human texts, the scorer's labels": "relabelled",
    "the start's own texts": "own, once",
    "online-dpo": "online DPO",
    "iterative-dpo": "iterative DPO",
    "best of 8, imitated": "best of eight",
}
runs = runs.replace({"variant": sources})
inside = comparable(runs, sources.values())
columns = {"gold": "gold", "kl": "KL", "distinct_2": "distinct-2"}
table = experiments.shown(runs, columns).loc[[*sources.values()]]
ahead = experiments.above_curve(runs, "gold", dpo_curve, inside)
table["above DPO's curve"] = experiments.with_interval(ahead)
table.fillna("no comparison")

# %% [markdown]
# <details><summary>What you should see</summary>
#
# **Iterative DPO has the most gold**, 2.27, and the most KL, 10.8 nats, on every seed. DPO's curve ends
# before, at 9.0 nats, with 1.57.
#
# **The other four are above the curve** by more than luck. *Relabelled* has a lead of 0.14: this is
# what the reward model's labels bring.
#
# **Best of eight** has 1.57 at 4.3 nats. To *choose* it costs at most 1.2 nats (lesson 09). To *imitate*
# the chosen ones moved the policy much further.
# </details>
#
# The five:

# %%
rows = runs[runs.variant.isin([*dpo_curve, *sources.values()])]
show.frontier(rows, curves={"DPO": dpo_curve}, log=True, ylabel="gold")

# %% [markdown]
# *Relabelled* has the same labels. What do the policy's own responses add to it? We subtract its lead:
# 0.51 − 0.14 = 0.37 for online DPO (`minus=`). KL *per token* is fairer to long reviews.

# %%
runs["per_token"] = runs.kl / runs.length
differences = {}
for title, kl in {"per review": "kl", "per token": "per_token"}.items():
    ahead = experiments.above_curve(
        runs, "gold", dpo_curve, inside[1:], kl=kl, minus="relabelled"
    )
    differences[title] = experiments.with_interval(ahead)
pd.DataFrame(differences)

# %% [markdown]
# *Own, once* and online DPO are ahead of *relabelled* by 0.17 and 0.37 per review, at another KL. Per token they have
# 0.11 and 0.20, and this is not sure: one interval begins at 0.002, and the other contains 0. *Best of eight* is not
# ahead by more than luck.
#
# What they write, not selected:

# %%
written = ["relabelled", "online DPO", "iterative DPO"]
texts = experiments.samples(runs, written).head(3)
show.texts(texts.melt(var_name="variant", value_name="review", ignore_index=False))

# %% [markdown]
# With fresh responses the reviews become short: 21 tokens (*relabelled*), 14 (online), 15 (iterative),
# full of *funny* and *entertaining*. Distinct-2 falls from 84 % to 75 % and 66 %. *Best
# of eight* has no fresh responses, and the lowest: 63 %. Gold judges one review at a time, so it
# cannot see that they become alike.

# %% [markdown]
# ## 6. The verdicts
#
# | repair | made for | seen in sections 2 to 4 | gold at equal KL |
# |---|---|---|---|
# | robust DPO | labels that lie, if you know how many do | undoes them exactly; its pull never ends | not told apart from DPO |
# | cDPO | labels that are too sure | a brake: $h$ has a turning point | not told apart |
# | IPO | labels that are too sure | a target, whatever the labels are | not told apart |
# | hinge | a margin for each pair | no pull beyond the margin; many optima | not told apart |
# | NCA | chosen responses that fall | a target for the winners, no floor for the losers; on training pairs the chosen ones fall less than with DPO at equal KL; on new films this is not seen | not told apart |
# | TDPO | staying near the reference | at equal KL the chosen reviews do not surely fall less than with DPO | not told apart |
# | KTO | thumbs, where there are no pairs | the pushes fade on both sides; no target | not told apart |
# | DPOP | chosen responses that fall | raises them on the training pairs; fewer new pairs in order | no comparison: moved too little |
# | CPO, ORPO | one model in memory | raise the chosen reviews of the training pairs, not those of new films; fewer new pairs in order | no comparison: moved too little at these settings |
# | SimPO | one model in memory, no advantage for short responses | the chosen reviews fall, as with DPO | no comparison: moved too far |
# | TR-DPO | a reference that keeps up | further, like a smaller $\beta$ | not told apart |
#
# Choose a loss by the second *and* the third column: what it is made for, and whether it does that
# here. For more gold, first try another $\beta$, or other pairs:
#
# | source of section 5 | price | above DPO's curve | more than *relabelled* |
# |---|---|---|---|
# | relabelled | a reward model | yes | |
# | own, once | and one round of sampling | yes | per review yes; per token not sure |
# | online DPO | sampling and a judge at every step | yes | per review yes; per token not sure; goes twice as far |
# | iterative DPO | a few rounds of sampling; less variety | no comparison: most gold, moved too far | |
# | best of eight | one round of sampling; least variety | yes | not by more than luck |
#
# ## What to remember
#
# - The losses differ in *how far* they go. At equal KL, none of seven can be told apart from
#   DPO here. (They need not be equal.)
# - $\beta$ means something else in every loss. Never compare two losses at one $\beta$.
# - If a loss lowers the chosen response less, it may only have gone less far. At equal KL one of six is
#   shown to do so on the training pairs, and none of seven on new films.
# - Online DPO is further above DPO's curve than each of the seven losses: 0.51. The reward model's
#   labels alone bring 0.14.
# - A higher gold score beside a lower variety is a warning.
#
# ## Exercises
#
# Solutions are in `solutions/14b_the_repairs_compared.ipynb`.

# %% [markdown] tags=["exercise"]
# **1. Place a new run** *(medium, 25 minutes)*.
#
# (a) On paper: DPO's curve has 1.06 at 2.5 nats and 1.39 at 5.4. A run has a gold of 1.30 at 3.7
# nats. How far is it above the curve?
#
# (b) Write the calculation for any curve. `kl` and `gold` (N,) are of N runs, `curve_kl` and
# `curve_gold` (K,) are the points of the curve, in the order of rising KL. Return (N,): how far
# each run is above. Beyond its ends the curve stays level.
#
# (c) The record `leash` has proximal policy optimisation (PPO) with six KL coefficients. Use your
# function on their means. Which of the six can be compared with DPO's curve, by the rule of section
# 1? Are they above it by more than luck (`experiments.above_curve`)? Would you write "PPO's loss
# beats DPO's"? With which run of section 5 would you rather compare? Do it, with `minus=`.
#
# *Hint:* between which two points is the run? How far on the way, in the logarithm of the KL? Then
# take the same way in gold. `torch.searchsorted` finds the two points.


# %% tags=["exercise"]
def gold_above_curve(kl, gold, curve_kl, curve_gold): ...  # your code


check.gold_above_curve(gold_above_curve)


# %% tags=["solution"]
def gold_above_curve(kl, gold, curve_kl, curve_gold):
    at, x = kl.clamp(curve_kl[0], curve_kl[-1]).log(), curve_kl.log()
    right = torch.searchsorted(x, at).clamp(1, len(x) - 1)
    left = right - 1
    way = (at - x[left]) / (x[right] - x[left])
    return gold - torch.lerp(curve_gold[left], curve_gold[right], way)


check.gold_above_curve(gold_above_curve)

# %% tags=["exercise", "solution"]
ppo = [f"kl_coef {coefficient}" for coefficient in (2, 1, 0.5, 0.25, 0.1, 0)]
with_ppo = experiments.results("betas", "preference", "leash")
means = with_ppo.groupby("variant")[["kl", "gold"]].mean()
means.loc[[*dpo_curve, "online-dpo", *ppo]].round(2)

# %% tags=["solution"]
points = torch.tensor(means.loc[ppo].to_numpy()).T
mine = gold_above_curve(*points, *torch.tensor(means.loc[dpo_curve].to_numpy()).T)
table = experiments.above_curve(with_ppo, "gold", dpo_curve, ppo)
assert np.allclose(mine, table.difference, atol=0.01)  # a mean over seeds
near = comparable(with_ppo, ppo)
experiments.with_interval(table.loc[near]).to_frame()

# %% tags=["solution"]
experiments.with_interval(
    experiments.above_curve(with_ppo, "gold", dpo_curve, near, minus="online-dpo")
).to_frame("minus online DPO")

# %% [markdown]
# <details><summary>Answers</summary>
#
# (a) log(3.7 / 2.5) / log(5.4 / 2.5) = 0.51 of the way, so the curve has 1.06 + 0.51 × 0.33 = 1.23,
# and the run is 0.07 above.
#
# (c) The coefficient 2 ends at 0.7 nats and 0 at 91 nats: no comparison. The coefficient 1 ends at
# 1.0 nats, before the curve begins, and 0.1 at 9.1 nats, beyond its end. Both are within a tenth, so
# they can be compared.
#
# With the coefficient 1 PPO is above by 0.07 [−0.17, 0.30]: no more than luck. With 0.5 it is above
# by 0.42 [0.27, 0.58], with 0.25 by 0.74 [0.31, 1.17] and with 0.1 by 1.21 [0.82, 1.61].
#
# This is no comparison of losses. PPO writes fresh reviews, and its judge is the reward model.
# Online DPO has both. It ends at 4.7 nats, and PPO with 0.25 ends near it, at 4.1. There PPO's
# distance from the curve is larger by 0.23 [0.03, 0.43]. One reason may be that PPO is told *how
# much* better a review is, and not only which one is better.
#
# The other coefficients show a limit of `minus=`. They have −0.44 (1), −0.09 (0.5) and 0.70 (0.1).
# PPO's distance grows with the KL, so a run that went further looks better. Trust such a difference
# most where both runs end near each other. In section 5 online DPO and *relabelled* do not.
# </details>

# %% [markdown] tags=["exercise"]
# **2. Another interval** *(medium, 35 minutes)*. Many papers make their intervals by drawing: draw
# three seeds from the three, and 76 films from the 76, so that one can come twice and another not at
# all. Compute the lead again, many times. The middle 95 % of the results are the interval (a
# *bootstrap*). Is it as good as that of section 1?
#
# (a) One draw. `kl` (S,) and `gold` (S, F) are of a run with S seeds and F films. `curve_kl` (K, S)
# and `curve_gold` (K, S, F) are of the K points of the curve, in the order of rising KL. `seeds`
# (S,) and `films` (F,) are the numbers that were drawn. Return how far the run is above the curve
# in this draw: one number, of shape (). Here, first take the means over the drawn seeds and films, and
# then one lead. Your function of exercise 1 may help.
#
# (b) Draw seeds and films 2,000 times with `torch.randint`. Take the quantiles 0.025 and 0.975 of
# the results, for IPO, robust DPO and KTO. Are these intervals wider than those of section 1, or
# narrower? Why? (The leads of the three seeds are 0.08, 0.03 and 0.01 for IPO, −0.02, 0.08 and 0.08 for
# robust DPO, and 0.05, −0.05 and 0.24 for KTO.)
#
# (c) A colleague draws other seeds for each point of the curve than for the run. Is that better,
# because the draws are independent? Try it on robust DPO and KTO.
#
# *Hint:* `gold[seeds, films]` would pair the two lists. Take the seeds first, then the films. The
# logarithm is taken of the mean KL.


# %% tags=["exercise"]
def lead_in_draw(seeds, films, kl, gold, curve_kl, curve_gold): ...  # your code


check.lead_in_draw(lead_in_draw)


# %% tags=["solution"]
def lead_in_draw(seeds, films, kl, gold, curve_kl, curve_gold):
    x = curve_kl[:, seeds].mean(1)
    y = curve_gold[:, seeds][:, :, films].mean((1, 2))
    run = kl[seeds].mean()[None], gold[seeds][:, films].mean()[None]
    return gold_above_curve(*run, x, y)[0]


check.lead_in_draw(lead_in_draw)


# %% tags=["exercise", "solution"]
def measured(name):
    """KL (S,) and gold (S, F) of a variant."""
    its = runs[runs.variant == name].sort_values("seed")
    return torch.tensor(its.kl.tolist()), torch.tensor(its.gold_by_prompt.tolist())


point_kl, point_gold = map(torch.stack, zip(*map(measured, dpo_curve), strict=True))
point_kl.shape, point_gold.shape


# %% tags=["solution"]
def interval(name, same=True, draws=2000):
    (kl, gold), generator = measured(name), torch.Generator().manual_seed(1)
    S, F = gold.shape
    drawn, leads = lambda n: torch.randint(n, (n,), generator=generator), []
    for _ in range(draws):
        s, films = drawn(S), drawn(F)
        of_points = [s if same else drawn(S) for _ in point_kl]
        x = torch.stack([x[k] for x, k in zip(point_kl, of_points, strict=True)])
        y = torch.stack([y[k] for y, k in zip(point_gold, of_points, strict=True)])
        leads.append(lead_in_draw(torch.arange(S), films, kl[s], gold[s], x, y))
    return torch.stack(leads).quantile(torch.tensor([0.025, 0.975])).tolist()


found = {
    f"{name}, {words}": interval(name, same)
    for name in ("IPO", "robust", "KTO")
    for words, same in (("the same seeds", True), ("other seeds", False))
}
pd.DataFrame(found, index=["low", "high"]).round(2).T

# %% [markdown]
# <details><summary>Answers</summary>
#
# (b)
#
# | | drawn | section 1 |
# |---|---|---|
# | IPO: its seeds agree | [−0.05, 0.14] | [−0.03, 0.11] |
# | robust DPO: they disagree | [−0.05, 0.13] | [−0.11, 0.20] |
# | KTO: they disagree most | [−0.09, 0.24] | [−0.28, 0.44] |
#
# *Where the seeds disagree, drawing is too sure.* A draw cannot find a seed that differs
# more than the three we have, and often it has one of them twice. And three seeds may misjudge their own
# scatter: lesson 11b has the factor 4.30 for this, and drawing has nothing.
#
# *Where they agree, it is too cautious.* The noise of single reviews comes in twice: with the
# seeds, and once more with the films.
#
# (c) No. On the same seed robust DPO and DPO see the same batches, so part of their luck is the
# same, and it cancels in the difference. With other seeds for the curve it does not cancel: the
# interval of robust DPO becomes wider. KTO reads other batches. By chance its gold is highest on the
# seed where the curve is lowest, and lowest where the curve is highest. On the same seed both add to
# the difference, and with other seeds they sometimes cancel. So its interval becomes narrower. That
# is no better: it is luck of these three seeds.
# </details>

# %% [markdown] tags=["exercise"]
# **3. No reference, a mean: SimPO** *(medium, 15 minutes)*. `logprobs` `(2B, R)` are of tokens, the
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
# **4. Find the bug: odds** *(medium, 15 minutes)*. A colleague's ORPO works for hours. Then its
# loss becomes infinite. The curve shows the loss of a pair whose *rejected* response has become
# nearly certain, by the distance of its mean log-probability from zero. Where there is no line, the
# loss is infinite. It should be a smooth curve without gaps. Mend it, run the checker, and draw the
# curve again. Both means are negative, (B,).
#
# *Hint:* take a point where the curve is not smooth and compute each step of `log_odds` there. How
# many digits does float32 have? Some functions of torch are made for tiny numbers.


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
    {"orpo_loss": finite},
    distance,
    log="x",
    xlim=(1e-9, 1e-5),
    xlabel="minus the rejected mean log π",
    ylabel="loss, nats",
)

# %% [markdown]
# **5. Where does NCA stop?** *(medium, 10 minutes)*. On paper: a response is in many pairs and is
# chosen in a share $w$ of them. Suppose that its log-ratio $x$ is a free number. Write down NCA's
# mean loss for this one response, and set its derivative to zero. Where does $x$ stop? What happens
# at $w = 1$, at $w = \frac12$ and towards $w = 0$?
#
# *Hint:* $\frac{d}{dx} \log \sigma(x) = \sigma(-x)$, and $\sigma(-x) / \sigma(x) = e^{-x}$.
#
# <details><summary>Answer</summary>
#
# If it is chosen, it pays $\ell(x) + \frac12 \ell(-x)$, otherwise $\frac12 \ell(-x)$. The mean is
# $w\, \ell(x) + \frac12 \ell(-x)$. Its derivative vanishes where $w\, \sigma(-\beta x) = \frac12
# \sigma(\beta x)$, so $e^{-\beta x} = 1 / (2w)$ and
#
# $$ x = \frac{\log 2w}{\beta} . $$
#
# At $w = 1$ it is $\log 2 / \beta$, the 6.9 nats of section 3. A response that wins every second
# comparison stays where it was. Towards $w = 0$ it falls without end. So NCA has a ceiling and no
# floor.
# </details>
#
# ## Questions
#
# <details><summary>1. My judge is a rule: always the same label. Which losses still have a finite optimum?</summary>
#
# IPO and cDPO. NCA bounds the winner only. Hinge has many optima. DPO, KTO and robust DPO have
# none, and $\beta$ does not help. (A network can still stop them, as it stopped KTO in section 3. The
# others of this page we have not examined.)
# </details>
#
# <details><summary>2. What does leaving out the reference change in theory?</summary>
#
# The optimum. With sums, as in CPO without its imitation, it is proportional to $e^{\text{reward} /
# \beta}$ over *all* responses, as if every response had been equally likely at the start. Only the starting weights
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
# <details><summary>4. A paper reports a gold of 1.52 at 6.9 nats for its loss and 1.39 at 5.4 nats for DPO. Its authors tried five learning rates for their loss and took the library's for DPO. What do you ask for?</summary>
#
# For DPO with a smaller $\beta$. These are the numbers of robust DPO in our record. DPO's curve has
# 1.47 at its KL. Seed by seed, the difference is 0.04 [−0.11, 0.20]. Then for five learning
# rates for DPO, too, chosen on other prompts than those of the test. And for several seeds, length
# and variety.
# </details>
#
# ## Going further
#
# **Settings.** $\beta$ is 0.1, except for SimPO (2, with $\gamma = 1$) and the runs of section 5
# (0.5). Our CPO sums its imitation over tokens, as its paper does. That weighs some twenty times as
# much as TRL's mean, and with TRL's weight CPO might move further. *Best of eight* is supervised
# fine-tuning for three epochs, with twice the learning rate.
#
# **DPOP, CPO and ORPO moved too little.** TDPO and IPO have 58 % of the order of new pairs at 1.1 and
# 1.2 nats, and these three moved at most 0.7. CPO and ORPO raise the reviews of the training pairs,
# but what the policy itself writes hardly changes. A likely reason: the start was already trained on
# such reviews, so imitation has little to add.
#
# **Another curve in section 3.** The change of the chosen reviews is more nearly straight in the KL than
# in its logarithm. With lines straight in the KL, NCA has 0.38 [0.16, 0.60] on the training pairs and
# −0.25 [−0.51, 0.00] on new films, and KTO −0.83 [−1.49, −0.17]. The chosen reviews of cDPO then fall
# further than DPO's, by 0.15 [0.07, 0.23] and 0.14 [0.04, 0.24]. All distances are lower than in the
# table, by up to 0.2. Only those of NCA on the training pairs and of KTO leave out 0 with both kinds of
# line.
#
# **IPO with means.** The record has a second form of IPO, which divides each log-ratio by its
# number of tokens, with $\beta$ = 1. It lies on DPO's curve, too: 1.13 at 2.6 nats, 0.04 above it
# [−0.04, 0.12]. It aims at half a nat per token; TRL's default of 0.1 would ask for five.
#
# **Rejection sampling optimisation (RSO).** The policy writes four reviews before training. Two of
# them are drawn for the pair, good ones more often: with weights $e^{r / \beta}$, where $r$ is the
# score. So the pair looks more like one that the Gibbs policy wrote. The loss is hinge. RSO has
# 1.42 at 2.6 nats, 0.34 above the curve [0.24, 0.43], about as much as *own, once*.
#
# How near does such a draw come to the Gibbs policy? In the exact world of section 2, draw one
# response out of several with these weights, and take the total variation distance to the Gibbs
# policy (half the sum of all errors). It is 0.53 without a choice, 0.41 with one out of two, 0.16
# with one out of 8, and 0.02 with one out of 64.
#
# **Why robust DPO works.** Call its loss $\tilde\ell$. Over labels that are flipped with
# probability $\epsilon$, its mean is $(1 - \epsilon)\, \tilde\ell(h) + \epsilon\, \tilde\ell(-h)$.
# Put the formula in: the terms $\ell(-h)$ cancel, and $\ell(h)$ is left. So its mean over lying
# labels *is* DPO's loss on true ones.
#
# **How cDPO ends.** On the labels of section 2 that always agree, it ends near the Gibbs policy of
# the true shares: the total variation distance is 0.11. That is luck: with $\epsilon$ = 0.05 it is
# 0.37, and with 0.3 it is 0.27.
#
# **The small set of pairs.** The main record also has the order of 128 validation pairs: 0.43 to
# 0.54 over all runs of the losses, and up to 0.57 with the pairs of section 5. With a standard
# error of 0.04 they cannot tell 0.58 from 0.5. We first read them as "a coin". The 2,000 pairs of
# the test films can tell. For scale: the reward models of lesson 08 have 60 % with 1,600 pairs and
# 62 % with 6,400, on other pairs.
#
# **What is not equal in section 5.** The reward model learned from many more votes (lesson 08). The policy writes
# about all titles, about 3 pairs each; human reviews are of the films with votes and short reviews, about 19 pairs
# each. An unfinished review of the policy's costs 1, and human reviews teach no such thing, so own reviews are
# shorter and whole. Each variant has one $\beta$ only, and its distance from the curve is taken where it ends. *Own,
# once* and *relabelled* end at 2.7 and 2.3 nats. On two of the three seeds their KL differs by 0.1 only. Online DPO
# goes twice as far. If its distance grows with the KL, as PPO's does in exercise 1, its difference to *relabelled*
# gains from that.
#
# **Luck.** Of twenty such intervals one misses by chance. Only KTO and hinge have more gold than
# DPO on every seed, and both went further.
#
# **The rule of section 1.** The tenth is our choice. With the ends of the curve as limits, TDPO,
# *synced* and, in exercise 1, PPO with the coefficients 1 and 0.1 would have no comparison. No other
# verdict would change.
#
# **What the libraries do.** TRL 1.16 puts most pairwise losses into its DPO trainer and gives KTO a
# trainer of its own, for thumbs. CPO, SimPO and ORPO are experimental trainers there; SimPO is a
# setting of CPO. Its `label_smoothing` is read by the robust loss, and the plain loss ignores it.
# `sync_ref_model` is TR-DPO, by default with 60 % every 512 steps. We have all losses as rows of
# one table (`docs/losses.md`), sums unless a name says *mean*.
#
# **References.** Mitchell 2023 (cDPO). Chowdhury et al. 2024 (robust DPO). Zhao et al. 2023
# (SLiC-HF, hinge). Azar et al. 2023 (IPO). Pal et al. 2024 (DPOP). Chen et al. 2024 (NCA).
# Ethayarajh et al. 2024 (KTO). Zeng et al. 2024 (TDPO). Xu et al. 2024 (CPO). Meng et al. 2024
# (SimPO). Hong, Lee and Thorne 2024 (ORPO). Gorbatovski et al. 2024 (TR-DPO). Liu et al. 2023
# (RSO). Xiong et al. 2023 (iterative DPO). Guo et al. 2024 (online DPO).
#
# *How this lab is checked:* every number about a recorded run is compared with the record
# (`tests/claims/test_lesson_14b.py`), the optima of the losses are tested in
# `tests/core/test_preference.py`, and the distance at equal KL in
# `tests/experiments/test_tables.py`.
