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
# # 14 · What DPO gets wrong
#
# After this lesson you can
#
# - recognise three faults of DPO, and explain each with two or three numbers,
# - name the line that repairs each fault, and say what the repair costs,
# - compare two losses at equal KL.
#
# **You need** lesson 12 (direct preference optimisation, DPO). The runs on film reviews also use
# lessons 07 (the KL penalty) and 08 (the reward model).
# About 50 minutes to read and 85 for the exercises.

# %%
import copy

import pandas as pd
import torch
from torch.nn.functional import logsigmoid, relu

from minirlhf import core, evaluate, experiments, loops, models, rewards, show, tasks
from minirlhf.classroom import FAST, check

# %% [markdown]
# ## 1. The answer first: three faults, three repairs
#
# Lesson 12's notation: $y_c$ is the chosen and $y_r$ the rejected response of a pair. The
# **log-ratio** of a response is the difference $d = \log \pi - \log \pi_{\text{ref}}$. We write $d_c$
# for the chosen response, $d_r$ for the rejected one, and $h = d_c - d_r$. DPO's loss is $-\log
# \sigma(\beta h)$. A **judge** is whoever labels the pairs: people, a rule or a reward model.
#
# | fault | what DPO does | repair | the line that changes | what it costs |
# |---|---|---|---|---|
# | **likelihood displacement** | the chosen response may become *less* likely | DPO-positive (**DPOP**): a penalty, with the weight 5 | $h = d_c - d_r - 5 \max(0, -d_c)$ | at the same $\beta$ it learns less |
# | **off-policy data** | somebody else wrote the pairs, so they say little about the policy's own responses | **online DPO** | each pair is two fresh responses of the policy | sampling, and a judge at every step |
# | **labels that always agree** | if all labels of a pair agree, the policy runs off without end, whatever $\beta$ is | identity preference optimisation (**IPO**): a target for $h$, $\frac{1}{2\beta}$ | loss $= \big(h - \frac{1}{2\beta}\big)^2$ | it flattens "better" and "far better" |

# %% [markdown]
# ## 2. First fault: the chosen response falls
#
# **The symptom.** Here is lesson 12's DPO run again: film reviews, 32 pairs of human reviews per
# step, $\beta = 0.1$, three seeds. The figure shows the mean log-ratios of each step's pairs.

# %%
history = experiments.results("preference_history")
methods = ["DPO", "DPOP", "IPO", "online DPO"]
order = [*methods, "chosen", "rejected"]  # each keeps its colour


def log_ratios(variant):
    """Mean log-ratio of each step's pairs: (seeds, logged steps) for each side."""
    rows = history[history.variant == variant].sort_values(["seed", "step"])
    sides = ("chosen", "rejected")  # a logged reward is beta times the log-ratio
    return {x: rows[f"rewards/{x}"].to_numpy().reshape(3, 10) / 0.1 for x in sides}


axes = {"x": range(0, 100, 10), "xlim": (0, 100), "xlabel": "step", "order": order}
show.lines(log_ratios("dpo"), **axes, ylabel="log-ratio, nats")

# %% [markdown]
# The chosen ones fall as well, although DPO is trained *for* them. Their last three points lie 2.8
# nats below the start on average, a factor of 0.06 ($e^{-2.8}$). This is **likelihood displacement**.
#
# The loss contains only $h = d_c - d_r$, so both may fall if $d_r$ falls faster. What pushes the chosen
# one down? All responses share the network's weights, so a push on one moves the others.
#
# **The smallest such network** has one weight $w$ and three responses. Each response $k$ has a
# number $f_k$, its *feature*:
#
# | response | *yes* | *no* | *sure* |
# |---|---|---|---|
# | feature $f$ | 1 | −1 | 4 |
#
# The logit of a response is $f_k w$. The start is $w = 0$, so each has the probability 1/3. There is
# one pair: *yes* is chosen, *no* is rejected. *Sure* is in no pair. The logits of *yes* and *no*
# differ by $2w$, so $h = 2w$. DPO needs $h$ to rise, so **$w$ rises**.

# %%
features = torch.tensor([1.0, -1.0, 4.0], dtype=torch.float64)  # yes, no, sure


def train(loss, features, steps=4000):
    """One pair, the first response above the second: all probabilities at each step."""
    w, path = torch.zeros((), dtype=torch.float64), []
    for _ in range(steps):
        w = w.detach().requires_grad_(True)
        logprobs = (features * w).log_softmax(0)
        path.append(logprobs.detach().exp())
        d_c, d_r = logprobs[:2] - path[0][:2].log()  # the reference is the start
        loss(d_c, d_r).backward()
        w = w - 0.01 * w.grad
    return torch.stack(path)


# %% [markdown]
# **Predict.** We train for 4,000 steps with $\beta = 1$. Which of the three responses gain
# probability, and which lose it? How probable is each at the end, roughly?


# %% tags=["predict"]
def dpo(d_c, d_r, beta=1.0):
    return -logsigmoid(beta * (d_c - d_r))


print("yes, no, sure:", train(dpo, features)[-1].numpy().round(3))

# %% [markdown]
# <details><summary>What you should see</summary>
#
# *Yes* has 0.001, *no* less than 0.0005, and *sure* 0.999. Both responses of the pair lose, the
# rejected one faster. **The response that is in no pair takes everything.**
# </details>
#
# **Why?** Take the slope of each log-probability with respect to $w$. The policy is $\pi_k \propto
# e^{f_k w}$:
#
# $$ \log \pi_k = f_k w - \log \sum_j e^{f_j w}, \qquad
# \frac{d \log \pi_k}{dw} = f_k - \frac{\sum_j f_j\, e^{f_j w}}{\sum_j e^{f_j w}}
# = f_k - \sum_j \pi_j f_j = f_k - \bar f . $$
#
# In words: the slope is *its own feature minus the mean feature*. The mean $\bar f$ weights each
# feature by the present probability of its response. At the start all probabilities are 1/3, so
# $\bar f$ = (1 − 1 + 4)/3 = 4/3. The slopes are 1 − 4/3 = **−1/3** for *yes*, −1 − 4/3 = **−7/3** for
# *no* and 4 − 4/3 = **8/3** for *sure*. So *yes* falls from the first step on. *Sure* gains, and
# pulls the mean towards its own feature, 4. *Yes* stays below the mean, so it never stops falling.
#
# **And in the film reviews?** There we do not know the cause. But reviews by people became rarer, chosen
# and rejected ones. Probabilities sum to one, so reviews that are in no pair have gained.

# %% [markdown]
# ### Which unseen responses gain?
#
# Here $w$ rises. So a response gains if its feature is *above* the mean feature.
#
# **Pairs of near twins are the dangerous ones.** Let *no* have the feature 0.9 instead of −1, close
# to *yes*. Then $h = (1 - 0.9)\,w$. For $h = 1$, $w$ has to be 10. With the feature −1 it is 0.5.
# The logit of *sure* lies $(4 - 1)\,w$ above that of *yes*: 30 instead of 1.5.

# %% [markdown]
# ### The repair: DPOP
#
# DPOP adds one term to DPO. If the log-ratio $d_c$ of the chosen response is negative, $h$ is reduced
# by $\lambda |d_c|$. The usual factor $\lambda$ is 5.


# %%
def dpop(d_c, d_r, beta=1.0, penalty=5.0):
    h = d_c - d_r - penalty * relu(-d_c)  # the changed line; relu(x) is max(0, x)
    return -logsigmoid(beta * h)


paths = {"DPO": train(dpo, features), "DPOP": train(dpop, features)}
panels = {
    name: {loss: path[:500, k] for loss, path in paths.items()}
    for k, name in enumerate(["yes", "no", "sure"])
}
show.lines(
    panels, xlabel="step", ylabel={"yes": "probability"}, ylim=(0, 1), order=methods
)

# %% [markdown]
# DPOP keeps *yes* at 0.33, by hardly learning at all: *no* is still at 0.32. With one weight no loss
# can lower *no* and keep *yes*: if $w$ rises, both fall.
#
# **On film reviews**, with the settings of the first figure:

# %%
panels = {"DPO": log_ratios("dpo"), "DPOP": log_ratios("dpop")}
show.lines(panels, **axes, ylabel={"DPO": "log-ratio, nats"}, ylim=(-7, 2))

# %% [markdown]
# On its training pairs DPOP does its work: the chosen responses rise by about 1 nat, on each seed.
#
# **What it costs.** The rejected responses do not fall any more. Here are means of three seeds, in the
# second column over 2,000 pairs of *new* films:
#
# | | chosen minus rejected, last three points | new pairs with $h > 0$ | KL |
# |---|---|---|---|
# | DPO | 2.6 nats | 59 % | 5.4 nats |
# | DPOP | 0.8 nats | 53 % | 0.3 nats |
#
# The shares of new pairs differ by more than luck (95 % interval of the difference: [0.03, 0.09]). But
# DPOP hardly moved. So it learns less *at the same $\beta$*. At equal KL we cannot say (section 5).
#
# **When to use it.** DPOP was made for near twins of which one is right, such as two solutions of a
# sum. It needs something that tells them apart ("Going further" has an example). Our reviews have no
# such pairs.

# %% [markdown]
# ## 3. Second fault: pairs that the policy did not write
#
# Lesson 12's exact world has 15 responses with known rewards. A judge prefers one to another with
# the Bradley-Terry probability. **The policy is a table**: one logit per response, no shared weights.
# The KL coefficient $\beta$ is 0.5. At every step the *writer* writes 1,000 pairs, the judge labels
# them, and the policy makes a DPO step. At first the writer is somebody else, who only ever writes 8
# of the responses. Such data are **off-policy**.


# %%
world, beta = core.World.random(3, 3, seed=0), 0.5
ref = world.sequence_logprobs(world.ref_logits)


def train_on_pairs(writer, steps=300, pairs=1000):
    """DPO in a table: the policy at each step. The writer sees the policy."""
    torch.manual_seed(0)
    logits, path = ref, []
    for _ in range(steps):
        path.append(logits.detach().softmax(0))
        logits = logits.detach().requires_grad_(True)
        d = logits.log_softmax(0) - ref  # log-ratios
        a, b = torch.multinomial(writer(path[-1]), 2 * pairs, True).view(2, -1)
        share = core.preference_probability(world.rewards[a], world.rewards[b])
        wins = torch.rand(pairs) < share  # the judge
        chosen, rejected = torch.where(wins, a, b), torch.where(wins, b, a)
        dpo(d[chosen], d[rejected], beta).mean().backward()
        logits = logits - 10 * logits.grad  # large: a response is in few of the pairs
    return torch.stack(path)


# %% [markdown]
# The figure shows the probability of every response in the reference, after DPO, and in the Gibbs
# policy, the optimum. Below each response stands its reward. **The 8 responses with *pairs* below
# them are compared.**

# %%
has_pairs = torch.arange(15) % 2 == 0  # every other response: 8 of 15
off_policy = train_on_pairs(lambda policy: has_pairs / 8)
words = ["".join(world.vocab[word] for word in y) for y in world.sequences]
scores = [f"\n{reward:+.1f}" for reward in world.rewards.tolist()]
below = ["\npairs" if has else "" for has in has_pairs]
labels = ["".join(parts) for parts in zip(words, scores, below)]
optimum = world.gibbs(beta=beta)
policies = {"reference": ref.exp(), "DPO": off_policy[-1], "optimum": optimum}
show.policy_bars(labels, policies)

# %% [markdown]
# The seven responses without a pair have a total probability of 0.43 in the reference and of 0.49 in
# the optimum. After DPO it is 0.08. Three of the seven have the rewards 1.1, 0.8 and 0.6. But DPO
# multiplies all seven by the same factor, 0.18.
#
# **Why?** Three responses, $\beta = 1$, and the reference gives each 1/3. A beats B with the
# probability $\sigma(1)$, so DPO stops where their ratio is $e^{1}$.
#
# | | A | B | U |
# |---|---|---|---|
# | reward | 1 | 0 | 2 |
# | has a pair | yes | yes | no |
# | optimum, in proportion to $e^{\text{reward}}$ | 0.24 | 0.09 | 0.67 |
# | DPO changes the logit by | 0.5 | −0.5 | 0 |
# | DPO, in proportion to $e^{0.5}$, $e^{-0.5}$, $e^{0}$ | 0.51 | 0.19 | 0.31 |
#
# U is the best response, and its probability should double. But no label says so.
#
# ### The repair: online DPO
#
# The loss stays. **Only the writer changes**: it is the policy itself, as it is at that step. The
# left figure shows the total probability of the seven responses without a pair. The right one shows
# what the Gibbs policy maximises, the **objective**: mean reward minus $\beta$ times KL.

# %%
online = train_on_pairs(lambda policy: policy)  # the changed line


def in_figures(path):
    """What the two figures show of a policy at each step, (steps, 15)."""
    kl = (path * (path.log() - ref)).sum(-1)
    objective = path @ world.rewards - beta * kl
    return {"without a pair": path[:, ~has_pairs].sum(-1), "objective": objective}


curves = {"DPO": in_figures(off_policy), "online DPO": in_figures(online)}
panels = pd.DataFrame(curves).T.to_dict()
best = {panel: {"optimum": y[0]} for panel, y in in_figures(optimum[None]).items()}
ylabel = {"without a pair": "probability", "objective": "reward − beta KL"}
show.lines(panels, xlabel="step", ylabel=ylabel, reference=best, order=methods)

# %% [markdown]
# Online DPO finds the optimum, up to the noise of the labels. Averaged over the last 200 steps, its
# largest error of a probability is below 0.005. That of off-policy DPO is 0.34.
#
# **What gets worse?** Not the mean reward. But off-policy DPO piles its probability on the best of the
# responses that are compared, and that costs KL:
#
# | | mean reward | KL, nats | objective | most likely response |
# |---|---|---|---|---|
# | off-policy DPO, last step | 1.20 | 1.72 | 0.34 | 0.73 |
# | optimum | 1.05 | 0.97 | 0.56 | 0.41 |
#
# **How do you notice this fault?** Not in the pairs: their $h$ rises as it should. And in practice the
# optimum is unknown. So let a judge score responses of the policy.
#
# - If $h$ rises and this score hardly moves, the pairs say little about what the policy writes.
# - If the score rises, as here, one run does not show what is missing. Do a short second run on pairs
#   that the policy writes. If it scores higher at the same KL, the old pairs were the limit.
#
# **On film reviews.** Now the judge is the reward model of lesson 08. Each variant has 3,200 pairs,
# $\beta = 0.5$, 100 steps and three seeds. **Gold** is the score of a separate model that no training
# used (lesson 12). The variants are
#
# - *human reviews*: DPO on reviews by people, but with the reward model's labels,
# - *own reviews, once*: DPO on reviews that the policy wrote before training,
# - *online DPO*: DPO on reviews that it writes anew at every step.
#
# **Predict.** Two things change down the list: the reviews become the policy's *own*, then *fresh*.
# Does each change bring gold, and which one more? Which one brings more KL?

# %% tags=["predict"]
names = {
    "human texts, the scorer's labels": "human reviews",  # the scorer: the reward model
    "the start's own texts": "own reviews, once",
    "online-dpo": "online DPO",
    "ipo": "IPO",
    "dpop": "DPOP",
}
runs = experiments.results("betas", "preference").replace({"variant": names})
three = runs[runs.variant.isin(list(names.values())[:3])]
columns = {"gold": "gold", "kl": "KL, nats", "length": "tokens"}
experiments.shown(three, columns)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# Gold is 1.17, 1.40 and 1.84, in the order of the list. (Brackets: lowest and highest seed.) But the
# KL is 2.3, 2.7 and 4.7 nats: the policies with more gold have also moved further. Section 5 compares at equal KL.
# </details>
#
# **What it costs.** Every step samples 64 reviews, and a judge labels them: here a reward model,
# which DPO was meant to avoid. The reviews of online DPO are shorter than those of *human reviews* (14
# tokens instead of 21) and more alike ("Going further").

# %% [markdown]
# ## 4. Third fault: labels that always agree
#
# **The symptom.** We train the small language model on four pairs, again and again. Each pair always
# has the same label, as a rule or a reward model would give it. The figure shows the mean $h$.

# %%
torch.set_num_threads(1)
sft, tokenizer = models.load_policy("tiny-reviews-sft")
pairs = tasks.reviews.preference_pairs(
    "reward", 4, seed=0, max_tokens=32, tokenizer=tokenizer
)
films = tasks.reviews.eval_prompts("test")


def four_pairs(loss, beta, updates=4 if FAST else 16):
    """The policy at the end, and the mean h of the four pairs before each update."""
    settings = {"loss": loss, "beta": beta, "batch_size": 4, "steps": updates}
    config = loops.DPOConfig.plain(**settings)
    policy, log = loops.train_dpo(copy.deepcopy(sft), tokenizer, pairs, config)
    return policy, torch.tensor([row["rewards/margins"] / beta for row in log])


# %%
dpo_policy, dpo_h = four_pairs("dpo", 0.1)  # a logged margin is beta times h
panels = {"beta 0.1": {"DPO": dpo_h}, "beta 1": {"DPO": four_pairs("dpo", 1.0)[1]}}
show.lines(panels, xlabel="step", ylabel={"beta 0.1": "mean h, nats"}, ylim=(0, 70))

# %% [markdown]
# After one update $h$ is 8 nats in both panels: the optimiser is Adam, and its first step has the same
# size whatever the gradient is. At step 15 and with $\beta = 0.1$, $h$ is 66 nats: the ratio of chosen
# to rejected has grown by a factor of $e^{66}$, more than $10^{28}$. With $\beta = 1$ it is 39 nats,
# and still rises.
#
# **Why does it never stop?** Take two responses A and B, and let a share $p$ of the labels prefer A.
# Call $h_{AB} = d_A - d_B$. A label for A has $h = h_{AB}$, a label for B has $h = -h_{AB}$. DPO stops
# where $\sigma(\beta h_{AB}) = p$ (lesson 12, section 5), which is at $h_{AB} = \frac{1}{\beta} \log
# \frac{p}{1 - p}$. With one label that never changes, $p = 1$. Then the sigmoid would have to be one,
# and no finite $h_{AB}$ reaches this, whatever $\beta$ is.
#
# ### The repair: IPO
#
# IPO replaces the sigmoid by a target. With $m = \frac{1}{2\beta}$, the loss of a pair is
#
# $$ L = (h - m)^2 . $$
#
# In words: the squared distance of $h$ from the target $m$. The mean over the labels is
# $p\,(h_{AB} - m)^2 + (1 - p)(-h_{AB} - m)^2$. Its derivative is $2h_{AB} - 2m\,(2p - 1)$. IPO stops
# where this is zero:
#
# $$ h_{AB} = \frac{2p - 1}{2\beta} . $$
#
# With $\beta = 0.1$:
#
# | share $p$ | 0.5 | 0.9 | 0.999 | 1 |
# |---|---|---|---|---|
# | difference of the rewards, $\log \frac{p}{1 - p}$ | 0 | 2.2 | 6.9 | infinite |
# | DPO stops at $h_{AB}$ = | 0 | 22 | 69 | infinite |
# | IPO stops at $h_{AB}$ = | 0 | 4 | 4.99 | 5 |
#
# **What it costs.** DPO's $h_{AB}$ is in proportion to the difference of the rewards. IPO's is not: from
# 0.9 to 0.999 this difference becomes three times as large, and IPO's $h_{AB}$ hardly moves. Nor does
# IPO repair the first fault: its loss also contains only $h$. In section 2's network, with $\beta = 1$,
# *yes* ends at 0.27 and *sure* at 0.57.
#
# **Predict.** The four pairs again, with IPO's loss, $\beta = 0.1$ and Adam. The target is $h = 5$ nats.
# Does $h$ rise to 5 from below, or go beyond it? Does it stay at 5?

# %% tags=["predict"]
ipo_policy, ipo_h = four_pairs("ipo", 0.1)
both, target = {"DPO": dpo_h, "IPO": ipo_h}, {"IPO's target": 5}
show.lines(both, xlabel="step", ylabel="mean h, nats", reference=target, order=methods)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# IPO goes beyond its target, to 8.9 nats, comes back, and then stays within 2 nats of it. Adam's first
# step alone takes $h$ to about 8 nats, as under DPO. From there IPO's gradient points back.
# </details>
#
# **What does a large $h$ cost?** We stop DPO after 1, 4 and 16 updates, and train IPO with two values
# of $\beta$. $h$ is the mean of the four pairs at the end. KL and gold are those of two reviews for every
# test film, with 95 % intervals over films.


# %%
def measured(policy):
    """Mean h of the four pairs; KL, gold and the first one of the policy's reviews."""
    settings = {"samples_per_prompt": 2, "reference": sft}
    drawn = evaluate.draw(policy, tokenizer, films, **settings)
    x = evaluate.summary(drawn, {"gold": rewards.gold_judge()})
    d = evaluate.scored_pairs(pairs, tokenizer, policy=policy, reference=sft)
    gold = f"{x['gold']:.2f} [{x['gold_low']:.2f}, {x['gold_high']:.2f}]"
    numbers = (d.chosen - d.rejected).mean().round(1), abs(round(x["kl"], 1)), gold
    return dict(zip(["h", "KL", "gold", "a review"], (*numbers, drawn.texts[0])))


writers = {"start": sft, "DPO, 1 update": four_pairs("dpo", 0.1, 1)[0]}
writers |= {"DPO, 4": four_pairs("dpo", 0.1, 4)[0], "DPO, 16": dpo_policy}
writers |= {"IPO, 16": ipo_policy, "IPO, beta 0.01, 16": four_pairs("ipo", 0.01)[0]}
show.texts(pd.DataFrame({name: measured(it) for name, it in writers.items()}).T)

# %% [markdown]
# - **The loss decides where $h$ ends.** DPO goes on, to 67 nats after 16 updates. IPO ends near its
#   target: at 5 nats with $\beta = 0.1$, at 50 with $\beta = 0.01$.
# - **A large $h$ is expensive under both losses.** DPO stopped after one update pays 0.1 nats of KL,
#   and IPO at 5 pays 0.2. DPO at 67 pays 16 nats, IPO at 50 even 32.
# - **So IPO is not the cheaper loss.** But you set its end by $\beta$. DPO you have to stop in time.
# - **Which loss learns more, the table does not show.** Four pairs teach little: no run gains gold.
#
# **When to use it.** IPO is meant for labels that always agree, on pairs that are seen again and again. Where labels
# contradict each other, DPO stops as well.

# %% [markdown]
# ## 5. Compare at equal KL
#
# Two losses at the same $\beta$ go different distances. With many pairs, going further mostly brings
# more gold. Then a loss may look better only because it went further. So we ask: **how much gold has
# DPO at the same KL?**
#
# In the figure the curve is lesson 12's DPO on people's labels; from left to right $\beta$ is 1, 0.3,
# 0.1 and 0.03. The other points are IPO and DPOP with the same labels and $\beta = 0.1$, and the three
# variants of section 3.

# %%
of_curve = runs.experiment == "betas"
curve = {"DPO": runs[of_curve].variant.unique()}
drawn = runs[of_curve | runs.variant.isin(names.values())]
show.frontier(drawn, curves=curve, log=True, ylabel="gold", order=methods)

# %% [markdown]
# A variant's **lead** is its gold minus the gold of DPO's curve at the same KL: the vertical distance of
# its point from the curve.
#
# **By hand.** Online DPO lies between two points of the curve:
#
# | | KL | gold |
# |---|---|---|
# | DPO, $\beta = 0.3$ | 2.47 | 1.06 |
# | online DPO | 4.75 | 1.84 |
# | DPO, $\beta = 0.1$ | 5.43 | 1.39 |
#
# 1. On the logarithmic axis of the KL, online DPO is log(4.75 / 2.47) / log(5.43 / 2.47) = 0.83 of the
#    way from one point to the other.
# 2. There the curve has the gold 1.06 + 0.83 × (1.39 − 1.06) = 1.33.
# 3. The lead is 1.84 − 1.33 = 0.51.
#
# `experiments.above_curve` takes the mean of this over seeds (here equal to 0.01), with 95 % intervals
# (lesson 14b).
#
# | variant | KL | gold | lead | lead, KL per token |
# |---|---|---|---|---|
# | *IPO* | 1.19 | 0.91 | 0.04 [−0.03, 0.11] | 0.04 [−0.04, 0.12] |
# | *human reviews* | 2.26 | 1.17 | 0.14 [0.04, 0.23] | 0.12 [0.04, 0.21] |
# | *own reviews, once* | 2.65 | 1.40 | 0.31 [0.21, 0.40] | 0.23 [0.14, 0.33] |
# | *online DPO* | 4.75 | 1.84 | 0.51 [0.34, 0.68] | 0.33 [0.16, 0.49] |
#
# - **IPO cannot be told apart from DPO's curve**: its interval contains 0. At the same $\beta$ DPO went
#   further, to 5.4 nats, and has more gold, 1.39.
# - **DPOP** is missing: 0.3 nats is left of the curve's end.
# - **Does the fall of section 2 hurt?** Nothing here shows it. Of the curve's runs, those with $\beta = 0.03$ fall
#   most and have the most gold, but they also went furthest.
# - **The three variants of section 3 lie above the curve.** Their distance does not explain all of their gold. The
#   first of them, *human reviews*, has the curve's reviews: its 0.14 comes with the reward model's labels.
#
# **Why the last column?** The KL of a review is a sum over its tokens. Online DPO writes 14 tokens,
# and DPO with $\beta = 0.1$ writes 23. So short reviews have a smaller KL even if each token changed as
# much. Therefore we also divide each KL by the number of tokens. The three leads stay above 0.
#
# **What do own, fresh reviews add?** *Human reviews* and *online DPO* have the same judge. The lead of
# online DPO is larger by 0.37 [0.10, 0.65], and with KL per token by 0.20 [−0.04, 0.44]. The
# second interval contains 0, and the two runs end at different KL.

# %% [markdown]
# ## What to remember
#
# - DPO's loss sees only $h$. Both log-ratios can fall, because responses share weights.
# - DPOP stops the fall of the chosen response on its training pairs. At the same $\beta$ it learns
#   less.
# - A response in no pair has no label. Online DPO labels its own: it needs samples and a judge.
# - Labels that always agree have no finite optimum under DPO. IPO has a target, and flattens how
#   *much* better a response is.
# - Compare losses at equal KL, never at equal $\beta$.
#
# ## Exercises
#
# Solutions are in `solutions/14_what_dpo_gets_wrong.ipynb`.

# %% [markdown]
# **1. A nearer rival** *(easy, 10 minutes)*. In section 2, suppose that *sure* has the feature 0.5
# instead of 4. On paper: what are the three slopes at the start? Which response gains in the long
# run? Does *sure* gain or lose at the start, and later? Write your answers down, then run the cell.

# %% tags=["predict"]
nearer = torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64)
by_name = dict(zip(["yes", "no", "sure"], train(dpo, nearer)[:1500].T))
show.lines(by_name, xlabel="step", ylabel="probability")

# %% [markdown]
# <details><summary>What you should see</summary>
#
# The mean feature is 1/6 at the start, so the slopes are 5/6, −7/6 and 1/3. *Yes* rises all the
# way. *Sure* rises first, from 0.33 to 0.36. Then the mean feature passes 0.5, and *sure* falls.
# With one pair and one weight, displacement needs a response *beyond* the chosen one.
# </details>

# %% [markdown] tags=["exercise"]
# **2. Who moves where?** *(medium, 15 minutes)*. Now each response has D features. `features` has
# the shape (K, D), and the logits are `features @ w` with weights `w` of shape (D,). `logprobs`
# (K,) are the log-probabilities of all K responses now. `chosen` and `rejected` are two positions
# among the K. Let $g$ (D,) be the gradient of $h$ with respect to `w`. A small step of DPO moves `w`
# to $w + \epsilon g$. Return the slopes of all K log-probabilities with respect to $\epsilon$ at
# $\epsilon = 0$, (K,), without autograd.
#
# *Hint:* $h$ is a difference of two logits, up to a constant. What is its gradient with respect to
# `w`? Then do for vectors what section 2 does for one number.


# %% tags=["exercise"]
def slopes_of_a_pair(features, logprobs, chosen, rejected): ...  # your code


check.slopes_of_a_pair(slopes_of_a_pair)


# %% tags=["solution"]
def slopes_of_a_pair(features, logprobs, chosen, rejected):
    direction = features[chosen] - features[rejected]
    mean = logprobs.exp() @ features
    return (features - mean) @ direction


check.slopes_of_a_pair(slopes_of_a_pair)

# %% [markdown] tags=["solution"]
# In a table of logits, `features` is the identity matrix. Then the slope of an unseen response is
# minus the probability of the chosen response plus that of the rejected one. So it loses as long as
# the chosen one is the likelier of the two.

# %% [markdown]
# **3. Which fault is it?** *(medium, 10 minutes)*. Here are four small runs of DPO, made for this
# exercise. Three have one fault each, and one is healthy. The first figure shows the mean log-ratio
# of the chosen and of the rejected responses over the steps; the scale of log C is its own. The
# second shows the mean reward of what the policy itself writes. The best response has the reward 1
# in log A, 2 in log B, 1 in log C and 2 in log D. Write down for each log: which fault, which curve
# shows it, and which repair you would try. Then open the box below the figures.
#
# *Hint:* ask of each log: does the chosen response fall? Do the curves level off? Does the reward
# come near the best one?

# %%
chosen = {
    "log A": [0.0, -0.5, -1.1, -1.4, -1.6, -1.8, -1.8],
    "log B": [0.0, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6],
    "log C": [0.0, 1.3, 1.4, 1.4, 1.4, 1.4, 1.4],
    "log D": [0.0, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9],
}
rejected = {
    "log A": [0.0, -1.4, -2.4, -3.0, -3.4, -3.6, -3.7],
    "log B": [0.0, -0.4, -0.3, -0.3, -0.3, -0.3, -0.3],
    "log C": [0.0, -6.6, -11.7, -15.4, -18.2, -20.4, -22.3],
    "log D": [0.0, -1.0, -1.1, -1.1, -1.1, -1.1, -1.1],
}
four = {k: {"chosen": chosen[k], "rejected": rejected[k]} for k in chosen}
scale = {k: (-24, 2) if k == "log C" else (-4, 2) for k in four}
show.lines(four, range(0, 301, 50), ylabel="log-ratio", ylim=scale, order=order)

# %%
reward = {
    "log A": [0.0, -0.5, -0.7, -0.8, -0.9, -0.9, -0.9],
    "log B": [0.2, 1.5, 1.5, 1.5, 1.5, 1.5, 1.5],
    "log C": [0.2, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
    "log D": [0.1, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2],
}
show.lines(reward, range(0, 301, 50), xlabel="step", ylabel="mean reward")

# %% [markdown] tags=["exercise"]
# <details><summary>The four logs</summary>
#
# - **A: likelihood displacement.** The chosen response falls with the rejected one, and the reward
#   falls: the probability went to a bad response that is in no pair. DPOP would at least stop here,
#   as in section 2. Pairs of the policy's own responses would be better: they contain the bad one.
#   (The run is section 2's network, with labels of which 73 % agree.) If you said *off-policy*: you
#   are right that the bad response is in no pair. But it gains because the weight is shared.
# - **B: healthy.** Both log-ratios level off, and the reward rises to 1.5. (It stays below 2
#   because of the KL penalty.) The run is online DPO with four responses in a table.
# - **C: labels that always agree.** The rejected response still falls at the last step. The chosen
#   one cannot rise further, because its probability is nearly one. The reward is perfect only because
#   the chosen response is the best one here. So only the first figure shows the fault. Section 4's
#   table shows what it costs where responses share weights. Try IPO, or stop early.
# - **D: off-policy data.** The pairs look as healthy as in B. But the reward hardly moves, although
#   there is a response with the reward 2. The two responses of the pair have only a tenth of the
#   probability at the start. In a real run you do not know the best reward. There only the score of
#   the policy's own responses, beside a run on fresh pairs, tells D from B. Try online DPO.
# </details>

# %% [markdown] tags=["exercise"]
# **4. Whose pairs?** *(hard, 30 minutes)*. First on paper: the best of all responses has the
# probability 0.02 in the starting policy and 0.3 in today's. How often is it in a pair that the
# starting policy wrote? And in a pair that today's policy writes?
#
# <details><summary>The two shares</summary>
#
# In $1 - 0.98^2$ = 4 % of the old pairs, and in $1 - 0.7^2$ = 51 % of the fresh ones.
# </details>
#
# Now the general case, in the table of section 3. Two responses are drawn independently, each with
# the probabilities `writer` (K,). They can be equal. `share[i, j]` (K, K) is the probability that
# the judge prefers i to j. `log_ratios` (K,) are those of the policy. Return the *expected* gradient
# of DPO's loss of one such pair with respect to the K logits of the policy, (K,). Use neither
# sampling nor autograd.
#
# *Hint:* begin with one pair (i, j) and both possible labels: j wins with the probability
# `share[j, i]`, which is one minus `share[i, j]`. $h$ is a difference of two logits, up to a
# constant, so only two logits have a gradient. Then sum over all pairs.


# %% tags=["exercise"]
def gradient_of_pairs(writer, log_ratios, share, beta): ...  # your code


check.gradient_of_pairs(gradient_of_pairs)


# %% [markdown] tags=["solution"]
# One pair (i, j) gives logit i the gradient $\beta\,(\sigma(\beta h) -$ share$)$, and logit j minus
# that. Response k is the first or the second of a pair: a factor of 2.


# %% tags=["solution"]
def gradient_of_pairs(writer, log_ratios, share, beta):
    h = log_ratios[:, None] - log_ratios
    surprise = torch.sigmoid(beta * h) - share
    return 2 * beta * writer * (surprise @ writer)


check.gradient_of_pairs(gradient_of_pairs)

# %% [markdown] tags=["solution"]
# The gradient of response k is in proportion to `writer[k]`. What the writer never writes gets no
# gradient, however good it is. If the writer is the policy itself, a good response gets *more*
# pairs as it becomes likelier. That is why fresh pairs help. But a response that the policy hardly
# ever writes is also out of reach for online DPO at first.

# %% [markdown] tags=["exercise"]
# **5. Find the bug** *(medium, 15 minutes)*. People voted on pairs of responses A and B. A colleague
# trains IPO on the votes, with $\beta = 0.1$. In film 1 all votes prefer A, in film 2 a share of 0.9,
# in film 3 a share of 0.6. First on paper: where should $h_{AB}$ stop in each film, by section 4's
# formula? Then run the two cells and look at the curves. The more the votes contradict each other, the
# *further* $h_{AB}$ goes. What is wrong in `ipo_of_votes`, and where does this wrong loss stop, as a
# formula in $p$? Mend it, run the checker, and draw the curves again.
#
# `h` are the $h_{AB}$ of B pairs, (B,). `share` is the share of the votes that prefers A, (B,). The
# result is the mean of IPO's loss over the votes of each pair, (B,).
#
# *Hint:* take a pair with two votes, one for A and one for B. Write down the loss of each vote.


# %% tags=["exercise"]
def ipo_of_votes(h, share, beta):
    mean_h = share * h + (1 - share) * -h  # a vote for B sees -h
    return (mean_h - 1 / (2 * beta)) ** 2


check.ipo_of_votes(ipo_of_votes)


# %% [markdown] tags=["solution"]
# On paper: 5, 4 and 1. The colleague takes the mean of the two $h$ first and squares then. This loss
# is zero where $(2p - 1)\, h_{AB} = m$, so at $h_{AB} = m / (2p - 1)$: 5, 6.25 and 25. IPO takes the
# mean of the two squares.


# %% tags=["solution"]
def ipo_of_votes(h, share, beta):
    target = 1 / (2 * beta)
    return share * (h - target) ** 2 + (1 - share) * (-h - target) ** 2


check.ipo_of_votes(ipo_of_votes)


# %% tags=["exercise", "solution"]
def three_films(loss, steps=800):
    """h of the three films at each step of gradient descent on their loss."""
    h, share, path = torch.zeros(3), torch.tensor([1.0, 0.9, 0.6]), []
    for _ in range(steps):
        h = h.detach().requires_grad_(True)
        path.append(h.detach())
        loss(h, share, 0.1).sum().backward()
        h = h - 0.1 * h.grad
    return torch.stack(path).T


films = ["film 1: all votes for A", "film 2: 0.9", "film 3: 0.6"]
show.lines(dict(zip(films, three_films(ipo_of_votes))), xlabel="step", ylabel="h, nats")

# %% [markdown]
# ## Questions
#
# <details><summary>1. The chosen log-probability falls during DPO. Is that a bug in my code?</summary>
#
# Not by itself: the loss contains only the difference. A bug looks different. The margin does not
# grow, or DPO's loss does not start at $\log 2$. But look where the probability went: sample from
# the policy.
# </details>
#
# <details><summary>2. Why does online DPO need no better loss to do better?</summary>
#
# The second of lesson 12's conditions says that the pairs connect all responses. Online DPO comes
# closer to it: what the policy is about to write is what is compared. But for the same reason it
# also finds what the judge likes by mistake.
# </details>
#
# <details><summary>3. My judge is a rule that always gives the same label. Does a larger β help DPO?</summary>
#
# It delays. The loss still asks for an infinite $h$. Use IPO, or stop early.
# </details>
#
# <details><summary>4. Does a single pair always push its chosen response down?</summary>
#
# No. In a table of logits it never does: the slope of the chosen response is one minus the
# difference of the two probabilities, which is positive. With many pairs it can happen even there.
# Let A beat B in one pair, and let C beat each of them in five. Then C takes the probability, and A
# ends below its start.
# </details>
#
# ## Going further
#
# **Why did lesson 12's unseen responses lose?** There each response has (nearly) a logit of its own. A
# pair pushes only the logits of its two responses. This is as if the chosen one had the feature 1, the
# rejected one −1 and all others 0. Then the mean feature is $\pi_c - \pi_r$. So an unseen response has
# the slope $0 - (\pi_c - \pi_r)$. It loses while the chosen response is likelier than the rejected one,
# and gains while it is not.
#
# A large step with numbers: three responses have a probability of 1/3 each. DPO multiplies the first by
# 3, divides the second by 3, and then all are divided by their sum:
#
# | | chosen | rejected | unseen | sum |
# |---|---|---|---|---|
# | start | 0.33 | 0.33 | 0.33 | 1 |
# | times 3, divided by 3, times 1 | 1 | 0.11 | 0.33 | 1.44 |
# | divided by the sum | 0.69 | 0.08 | 0.23 | 1 |
#
# The chosen one has gained 0.67 and the rejected one has lost only 0.22. So the sum is above 1, and
# the division takes from all. This is how the unseen response loses. It would gain if the sum were
# below 1. With the factor 3, the rejected response then has to be more than three times as likely as
# the chosen one. With a tiny step it only has to be the likelier one.
#
# **Where DPOP stops in section 2.** Where $d_c$ is negative, DPOP's $h$ is $d_c - d_r + 5 d_c$, so
# $6 d_c - d_r$. At the start $d_c$ has the slope −1/3 and $d_r$ has −7/3. So this $h$ has the slope
# 6 × (−1/3) + 7/3 = 1/3. It rises, but $\bar f$ rises as well. At $\bar f = 1.4$ the slope is
# 6 × (−0.4) + 2.4 = 0, and DPOP stops.
#
# **DPOP and near twins.** Here is where the near twins of section 2 end. In the second row they also
# have a second feature, with a weight of its own:
#
# | twins with | *yes*, *no*, *sure* | after DPO | after DPOP |
# |---|---|---|---|
# | one feature | 1, 0.9, 4 | 0.003, 0.003, 0.994 | as at the start: 0.33, 0.33, 0.33 |
# | two features | (1, 0.1), (0.9, −0.1), (4, 0) | 0.012, 0.005, 0.983 | 0.33, 0.17, 0.50 |
#
# In the first row DPOP only prevents the harm. Its $h$ has the slope 6 × (1 − 59/30) − (0.9 − 59/30) =
# −4.7 at the start, so as soon as $w$ rises, the loss pushes it back. The lowest point of the loss is
# the start. (A run with steps of finite size wobbles about it, by less than 0.01.) In the second row DPOP
# uses the new feature: *no* loses half, and *yes* keeps its third. *Yes* does not gain: what *no* lost
# went to *sure*.
#
# **Section 4 with other pairs.** With two other sets of four pairs, chosen by other seeds, DPO pays 6
# and 12 nats of KL in 16 updates. IPO pays 0.3 and 0.2 with $\beta = 0.1$, and 7.0 and 7.2 with $\beta =
# 0.01$. Gold does not rise above the start's there either.
#
# **IPO's optimum for all pairs.** Three responses are compared, each pair equally often. A row of the
# table says how often its response wins. A comparison with itself counts as a draw, 0.5. The *share of
# wins* $u$ is the mean of the row:
#
# | | against A | against B | against C | $u$ |
# |---|---|---|---|---|
# | *A* | 0.5 | 0.9 | 0.8 | 0.73 |
# | *B* | 0.1 | 0.5 | 0.6 | 0.40 |
# | *C* | 0.2 | 0.4 | 0.5 | 0.37 |
#
# Each pair has its own target, $\frac{2p - 1}{2\beta}$. With $\beta = 0.1$ it is 4 for A against B, 1 for
# B against C and 3 for A against C. But 4 + 1 is not 3, so IPO cannot meet all three. It finds the
# least-squares fit: 3.3, 0.3 and 3.7. In this fit the log-ratio of each response is $u / \beta$ plus a
# constant, which makes the sum of the probabilities one. So the optimum is $\pi_{\text{ref}}\, e^{u /
# \beta} / Z$: the Gibbs policy with the share of wins in the place of the reward. With only two
# responses, $u_A - u_B = \frac{2p - 1}{2}$. This is why the target is $\frac{1}{2\beta}$.
#
# It holds whatever the labels are, shares of people or hard labels. DPO on hard labels has no optimum
# at all (lesson 12, section 6). But the share of wins is against the responses that happen to be
# compared.
#
# **Does the order carry over?** In section 2, DPOP knows the order of fewer unseen pairs than DPO,
# and it moved far less. But that is not the whole reason: IPO went only 1.2 nats and has 58 % in the
# right order. On new films the chosen reviews still fall, by 0.1 nats under DPOP and by 2.8 under
# DPO. Lesson 14b has the same numbers for other losses.
#
# **Section 5, step by step.** From *human reviews* to *online DPO* two things change: the reviews
# become the policy's own, and then fresh. The table has the growth of the lead, by both ways to count
# the KL:
#
# | what changes | KL per response | KL per token |
# |---|---|---|
# | own reviews instead of people's | 0.17 [0.07, 0.26] | 0.106 [0.002, 0.210] |
# | fresh ones at every step | 0.21 [−0.02, 0.43] | 0.10 [−0.15, 0.34] |
# | both together | 0.37 [0.10, 0.65] | 0.20 [−0.04, 0.44] |
#
# (Rounded numbers need not add up.) With KL per response, the policy's own reviews bring something, and both changes
# together do. With KL per token nothing is sure: one of the three intervals begins at 0.002. That fresh reviews alone
# bring more, neither column says. The labels also matter: *human reviews* differs from DPO in the labels only, and
# lies above DPO's curve. The labels of a reward model contradict each other less than single votes.
#
# **Online DPO's reviews are more alike.** Distinct-2 is the share of different word pairs. It is 0.84
# for *human reviews*, 0.79 for *own reviews, once* and 0.75 for online DPO.
#
# **The pairs of the first figure.** The mean is over the pairs of the step, before its update. The
# pairs are new, but most of their responses have been in earlier pairs, as chosen or as rejected
# ones.
#
# **What is not equal in section 5.** The reward model was trained on many more votes than 3,200.
# The policy writes about all titles, about three pairs each. The human reviews are of fewer films,
# about nineteen pairs each. And an unfinished review of the policy costs a penalty of 1, which
# human reviews cannot teach. The curve, IPO and DPOP have people's labels: single votes, which
# contradict each other, and each pair is seen once. So section 4's fault is not there.
#
# **And PPO?** PPO with the KL coefficient 0.25 also samples (lesson 07). It has more gold than online
# DPO, 2.01 against 1.84, at a lower KL, 4.1 nats against 4.7. One possible reason is that a pair only
# says which of two responses is better, and PPO is told by how much. We did not test it.
#
# **What the libraries do.** TRL's IPO (`loss_type="ipo"`) divides each log-ratio by the length of its
# response, so its target is per token. OpenRLHF uses sums, as we do. Neither logs how many chosen
# responses have become less likely. Our log calls this number *displaced*.
#
# **References.** Rafailov et al. 2023, *Direct preference optimization*. Razin et al. 2024,
# *Unintentional unalignment* (section 4: displacement and similar responses). Pal et al. 2024,
# *Smaug* (DPO-positive, sections 3 and 4). Guo et al. 2024, *Direct language model alignment from
# online AI feedback*. Azar et al. 2023, *A general theoretical paradigm to understand learning from
# human preferences* (IPO, sections 4 and 5).
#
# *How this lesson is checked:* IPO's optimum, DPOP by hand and the gradients of all losses are
# tested in `tests/core/test_preference.py`. Every number about a recorded run is compared with the
# record, and the four logs of exercise 3 are computed again (`tests/claims/test_lesson_14.py`).
