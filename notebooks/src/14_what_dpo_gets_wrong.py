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
# - recognise three faults of DPO in a curve, and explain each with two or three numbers,
# - repair each fault by changing one line,
# - say what each repair costs.
#
# **You need** lesson 12 (direct preference optimisation, DPO). The runs on film reviews also use
# lessons 07 (the KL penalty) and 08 (the reward model).
# About 50 minutes to read and 80 for the exercises.

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
# **log-ratio** of a response is $\log \pi - \log \pi_{\text{ref}}$. We write $c$ for the log-ratio
# of the chosen response, $r$ for that of the rejected one, and $h = c - r$. DPO's loss is $-\log
# \sigma(\beta h)$. A **judge** is whoever labels the pairs: people, a rule or a reward model.
#
# | fault | what DPO does | repair | the line that changes | what it costs |
# |---|---|---|---|---|
# | **likelihood displacement** | the chosen response may become *less* likely | DPO-positive (**DPOP**) | $h = c - r - 5 \max(0, -c)$ | at the same $\beta$ it learns less |
# | **off-policy data** | somebody else wrote the pairs, so they say little about the policy's own responses | **online DPO** | each pair is two fresh responses of the policy | sampling, and a judge at every step |
# | **labels that always agree** | if all labels of a pair agree, the policy runs off without end, whatever $\beta$ is | identity preference optimisation (**IPO**) | loss $= \big(h - \frac{1}{2\beta}\big)^2$ | it flattens "better" and "far better" |

# %% [markdown]
# ## 2. First fault: the chosen response falls
#
# **The symptom.** Here is lesson 12's DPO run again: film reviews, 32 pairs of human reviews per
# step, $\beta = 0.1$, three seeds. The figure shows the mean log-ratios of each step's pairs.

# %%
history = experiments.results("preference_history")
methods = ["DPO", "DPOP", "IPO", "online DPO"]  # each keeps its colour


def log_ratios(variant):
    """Mean log-ratio of each step's pairs: (seeds, logged steps) for each side."""
    rows = history[history.variant == variant].sort_values(["seed", "step"])
    sides = ("chosen", "rejected")  # a logged reward is beta times the log-ratio
    return {x: rows[f"rewards/{x}"].to_numpy().reshape(3, 10) / 0.1 for x in sides}


axes = {"x": range(0, 100, 10), "xlim": (0, 100), "xlabel": "step"}
show.lines(log_ratios("dpo"), **axes, ylabel="log-ratio, nats")

# %% [markdown]
# The chosen ones fall as well, although DPO is trained *for* them. Their last three points lie 2.8
# nats below the start on average, which is a factor of 0.06 ($e^{-2.8}$). This is **likelihood displacement**.
#
# The loss contains only $h = c - r$, so both may fall if $r$ falls faster. What pushes the chosen one
# down? All responses share the network's weights, so a push on one moves the others.
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
        c, r = logprobs[:2] - path[0][:2].log()  # the reference is the start
        loss(c, r).backward()
        w = w - 0.01 * w.grad
    return torch.stack(path)


# %% [markdown]
# **Predict.** We train for 4,000 steps with $\beta = 1$. Which of the three responses gain
# probability, and which lose it? How probable is each at the end, roughly?


# %% tags=["predict"]
def dpo(c, r, beta=1.0):
    return -logsigmoid(beta * (c - r))


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
# **And in the film reviews?** There we know where the probability went, but not why. The mean
# log-ratio of the policy's *own* reviews is the KL divergence: 5.4 nats at the end. So its own
# reviews gained, and people's reviews lost, chosen and rejected ones.

# %% [markdown]
# ### Which unseen responses gain?
#
# Here $w$ rises. So a response gains if its feature is *above* the mean feature.
#
# **Pairs of near twins are the dangerous ones.** Let *no* have the feature 0.9 instead of −1, close
# to *yes*. Then $h = (1 - 0.9)\,w$. For $h = 1$, $w$ has to be 10. With the feature −1 it is 0.5.
# The logit of *sure* lies $(4 - 1)\,w$ above that of *yes*: 30 instead of 1.5.
#
# **Why did lesson 12's unseen responses lose?** There each response has (nearly) a logit of its
# own. A pair pushes only the logits of its two responses. This is as if the chosen one had the
# feature 1, the rejected one −1 and all others 0. Once the chosen one is likelier than the rejected
# one, the mean feature is above 0. So all unseen responses lose.

# %% [markdown]
# ### The repair: DPOP
#
# DPOP adds one term to DPO. If the log-ratio $c$ of the chosen response is negative, $h$ is reduced
# by $\lambda |c|$. The usual factor $\lambda$ is 5.


# %%
def dpop(c, r, beta=1.0, penalty=5.0):
    h = c - r - penalty * relu(-c)  # the changed line; relu(-c) is max(0, -c)
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
# can lower *no* and keep *yes*: if $w$ rises, both fall. ("Going further" computes where DPOP stops.)
#
# **On film reviews**, with the settings of the first figure:

# %%
panels = {"DPO": log_ratios("dpo"), "DPOP": log_ratios("dpop")}
show.lines(panels, **axes, ylabel={"DPO": "log-ratio, nats"}, ylim=(-7, 2))

# %% [markdown]
# On its training pairs DPOP does its work: the chosen responses rise by about 1 nat, on each seed.
#
# **What it costs.** The rejected responses do not fall any more. Over the last three points the two
# lines are 0.8 nats apart, and under DPO 2.6. Of 2,000 pairs of *new* films $h$ is positive in 53 %,
# after DPO in 59 % (95 % interval of the difference: [0.03, 0.09]). But both runs have the same
# $\beta$, not the same KL: DPOP moved 0.3 nats from the reference, and DPO 5.4. So DPOP learns less
# *at the same $\beta$*. At equal KL we cannot say (section 5).
#
# **When to use it.** DPOP was made for near twins of which one is right, such as two solutions of a
# sum. It needs something that tells them apart. Here are the ends after 4,000 steps for the near
# twins from above. In the second row they also have a second feature, with a weight of its own:
#
# | twins with | *yes*, *no*, *sure* | after DPO | after DPOP |
# |---|---|---|---|
# | one feature | 1, 0.9, 4 | 0.003, 0.003, 0.994 | 0.34, 0.34, 0.33 |
# | two features | (1, 0.1), (0.9, −0.1), (4, 0) | 0.012, 0.005, 0.983 | 0.33, 0.17, 0.50 |
#
# In the first row DPOP only prevents the harm. In the second it uses the new feature: *yes* keeps
# its third, and *no* loses half. Our reviews have no such pairs, so they do not show whether DPOP
# pays.

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
        x = logits.log_softmax(0) - ref  # log-ratios
        a, b = torch.multinomial(writer(path[-1]), 2 * pairs, True).view(2, -1)
        share = core.preference_probability(world.rewards[a], world.rewards[b])
        wins = torch.rand(pairs) < share  # the judge
        chosen, rejected = torch.where(wins, a, b), torch.where(wins, b, a)
        dpo(x[chosen], x[rejected], beta).mean().backward()
        logits = logits - 10 * logits.grad  # large: a response is in few of the pairs
    return torch.stack(path)


# %% [markdown]
# The figure shows the probability of every response in the reference, after DPO, and in the Gibbs
# policy, the optimum. The numbers on top are the rewards, there called *r*. **The 8 responses with
# *pairs* below them are compared.**

# %%
has_pairs = torch.arange(15) % 2 == 0  # every other response: 8 of 15
off_policy = train_on_pairs(lambda policy: has_pairs / 8)
words = ["".join(world.vocab[word] for word in y) for y in world.sequences]
labels = [word + "\npairs" * (k % 2 == 0) for k, word in enumerate(words)]
optimum = world.gibbs(beta=beta)
policies = {"reference": ref.exp(), "DPO": off_policy[-1], "optimum": optimum}
show.policy_bars(labels, policies, rewards=world.rewards)

# %% [markdown]
# The seven responses without a pair have a total probability of 0.43 in the reference and of 0.49 in
# the optimum. After DPO it is 0.08. Three of the seven have the rewards 1.1, 0.8 and 0.6. But DPO
# multiplies all seven by the same factor, 0.18.
#
# **Why?** Three responses, $\beta = 1$, and the reference gives each 1/3. A beats B with the
# probability $\sigma(1)$, so DPO stops where their ratio is $e^{1}$. It moves the logits of A and B
# by 0.5 and −0.5, and that of U not at all:
#
# | | A | B | U |
# |---|---|---|---|
# | reward | 1 | 0 | 2 |
# | has a pair | yes | yes | no |
# | optimum, in proportion to $e^{\text{reward}}$ | 0.24 | 0.09 | 0.67 |
# | DPO, in proportion to $e^{0.5}$, $e^{-0.5}$, $e^{0}$ | 0.51 | 0.19 | 0.31 |
#
# U is the best response, and its probability should double. But no label says so. Now let this
# policy write a pair itself. Both responses are other than U with the probability 0.69 × 0.69 =
# 48 %. So every second pair has U in it.
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
# Online DPO finds the optimum, up to the noise of the labels. Averaged over the last 200 steps no
# probability is off by more than 0.005 (off-policy: 0.32).
#
# **What gets worse?** Not the mean reward: off-policy DPO ends at 1.20, and the optimum has 1.05. But
# off-policy DPO piles 0.73 on one response, the best of those compared (optimum: 0.41). So its KL is
# 1.72 nats instead of 0.97, and the objective is 0.34 instead of 0.56.
#
# In practice the optimum is unknown, and the margin of the pairs tells nothing about other
# responses. So let a judge score samples of the policy. Look at score *and* KL, beside a run on fresh
# pairs. If the policy rarely writes what the pairs compare, even the score may hardly move.
#
# **On film reviews.** The judge is the reward model of lesson 08. Each variant has 3,200 pairs,
# $\beta = 0.5$, 100 steps and three seeds. **Gold** is the score of a second reward model, which no
# training used (lesson 12). *Distinct-2* is the share of different word pairs. The variants are
#
# - *human reviews*: DPO on reviews by people,
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
experiments.shown(three, columns | {"distinct_2": "distinct-2"})

# %% [markdown]
# <details><summary>What you should see</summary>
#
# Gold is 1.17, 1.40 and 1.84, in the order of the list. (Brackets: lowest and highest seed.) Fresh
# reviews bring about twice as much as own ones. But the KL is 2.3, 2.7 and 4.7 nats: fresh reviews
# also bring most of it.
# </details>
#
# **What it costs.** Every step samples 64 reviews, and a judge labels them: here a reward model,
# which DPO was meant to avoid. Its reviews become shorter (14 tokens instead of 21) and more alike:
# distinct-2 falls from 0.84 to 0.75.

# %% [markdown]
# ## 4. Third fault: labels that always agree
#
# **The symptom.** We train the small language model on four pairs, again and again. So each pair
# has one fixed label, as a rule or a reward model would give it. The figure shows the mean $h$.

# %%
torch.set_num_threads(1)
sft, tokenizer = models.load_policy("tiny-reviews-sft")
pairs = tasks.reviews.preference_pairs(
    "reward", 4, seed=0, max_tokens=32, tokenizer=tokenizer
)


def four_pairs(loss, beta):
    """The policy at the end, and the mean h of the four pairs at each step."""
    settings = {"loss": loss, "beta": beta, "batch_size": 4, "steps": 4 if FAST else 16}
    config = loops.DPOConfig.plain(**settings)
    policy, log = loops.train_dpo(copy.deepcopy(sft), tokenizer, pairs, config)
    return policy, torch.tensor([row["rewards/margins"] / beta for row in log])


# %%
dpo_policy, dpo_h = four_pairs("dpo", 0.1)  # a logged margin is beta times h
panels = {"beta 0.1": {"DPO": dpo_h}, "beta 1": {"DPO": four_pairs("dpo", 1.0)[1]}}
show.lines(panels, xlabel="step", ylabel={"beta 0.1": "mean h, nats"}, ylim=(0, 70))

# %% [markdown]
# At step 15 and with $\beta = 0.1$, $h$ is 66 nats: the ratio of chosen to rejected has grown by a
# factor of $e^{66}$, more than $10^{28}$. With $\beta = 1$ it is 39 nats, and still rises.
#
# **Why does it never stop?** Let a share $p$ of the labels prefer A to B. DPO stops where
# $\sigma(\beta h) = p$ (lesson 12, section 5), which is at $h = \frac{1}{\beta} \log \frac{p}{1 - p}$.
# If all labels agree, $p = 1$. Then the sigmoid would have to be one, and no finite $h$ reaches this,
# whatever $\beta$ is.
#
# ### The repair: IPO
#
# IPO replaces the sigmoid by a target. With $m = \frac{1}{2\beta}$, the loss of a pair is
#
# $$ L = (h - m)^2 . $$
#
# In words: the squared distance of $h$ from the target $m$. Let $h$ be the log-ratio of A minus that
# of B. Where a label prefers B, the roles change, and the loss sees $-h$. So the mean loss is
# $p\,(h - m)^2 + (1 - p)(-h - m)^2$, and its derivative is $2h - 2m\,(2p - 1)$. IPO stops where this
# is zero:
#
# $$ h = \frac{2p - 1}{2\beta} . $$
#
# With $\beta = 0.1$:
#
# | share $p$ | 0.5 | 0.9 | 0.999 | 1 |
# |---|---|---|---|---|
# | DPO stops at $h$ = | 0 | 22 | 69 | infinite |
# | IPO stops at $h$ = | 0 | 4 | 4.99 | 5 |
#
# **What it costs.** Under Bradley-Terry $\log \frac{p}{1 - p}$ is the difference of the two rewards.
# So DPO's $h$ is in proportion to how much better A is. IPO's $h$ is in proportion to $2p - 1$, which
# levels off. From 0.9 to 0.999 the difference of the rewards becomes three times as large, and IPO's
# $h$ hardly moves.
#
# **Predict.** The four pairs again, with IPO's loss and $\beta = 0.1$. Its target is $h = 5$ nats.
# Sketch the curve: does $h$ rise to 5 from below, or go beyond it? Does it stay at 5?

# %% tags=["predict"]
ipo_policy, ipo_h = four_pairs("ipo", 0.1)
both, target = {"DPO": dpo_h, "IPO": ipo_h}, {"IPO's target": 5}
show.lines(both, xlabel="step", ylabel="mean h, nats", reference=target, order=methods)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# IPO goes beyond its target, to 8.9 nats, comes back, and then stays within 2 nats of it. The first
# step alone takes $h$ to about 8 nats, under DPO as well: Adam's first step has the same size
# whatever the gradient. From there IPO's gradient points back.
# </details>
#
# **What gets worse when $h$ runs off?** The start, DPO and IPO each write two reviews for every
# test film. In brackets are 95 % intervals over films.


# %%
def written(policy):
    """KL and gold of a policy's reviews, and its first two."""
    films, gold = tasks.reviews.eval_prompts("test"), {"gold": rewards.gold_judge()}
    settings = {"samples_per_prompt": 2, "reference": sft}
    drawn = evaluate.draw(policy, tokenizer, films, **settings)
    x = evaluate.summary(drawn, gold)
    score = f"{x['gold']:.2f} [{x['gold_low']:.2f}, {x['gold_high']:.2f}]"
    return {
        "KL, nats": f"{abs(x['kl']):.1f}",
        "gold": score,
        "reviews": drawn.texts[:2],
    }


writers = {"start": sft, "DPO": dpo_policy, "IPO": ipo_policy}
table = pd.DataFrame({name: written(policy) for name, policy in writers.items()})
show.texts(table.T)

# %% [markdown]
# Four pairs teach little: neither run gains gold. But DPO pays 16 nats of KL (read its reviews), and
# its $h$ still rises. IPO pays 0.2.
#
# **When to use it.** Use IPO if one rule or one model gives the labels and the pairs are seen again
# and again. Where labels contradict each other, DPO stops as well.

# %% [markdown]
# ## 5. Compare at equal KL
#
# A run that goes further from the reference has more gold *and* more KL. So we ask: **how much gold
# has DPO at the same KL?** In the figure the curve is lesson 12's DPO on people's labels; from left
# to right $\beta$ is 1, 0.3, 0.1 and 0.03. The other points are IPO and DPOP with the same labels and
# $\beta = 0.1$, and the three variants of section 3. All are judged on the same 76 test films, three
# seeds each. The bars reach from the lowest to the highest seed.

# %%
of_curve = runs.experiment == "betas"
curve = {"DPO": runs[of_curve].variant.unique()}
drawn = runs[of_curve | runs.variant.isin(names.values())]
show.frontier(drawn, curves=curve, log=True, ylabel="gold", order=methods)

# %% [markdown]
# Each variant ran at one $\beta$ only. From its point we go straight down (or up) to the curve, and
# read DPO's gold there. The difference is the variant's **lead**. For online DPO the curve has 1.33,
# so its lead is 1.84 − 1.33 = 0.51. In brackets are 95 % intervals (`experiments.above_curve`): seeds
# and films are drawn again 10,000 times, those of the curve too.
#
# | variant | KL | gold | DPO's gold at this KL | lead |
# |---|---|---|---|---|
# | *IPO* | 1.2 | 0.91 | 0.87 | 0.04 [−0.05, 0.13] |
# | *human reviews* | 2.3 | 1.17 | 1.04 | 0.13 [0.04, 0.25] |
# | *own reviews, once* | 2.7 | 1.40 | 1.09 | 0.30 [0.19, 0.41] |
# | *online DPO* | 4.7 | 1.84 | 1.33 | 0.51 [0.37, 0.64] |
#
# - **IPO lies on DPO's curve**: its interval contains 0. Our labels are single votes, and each pair
#   is seen once. So section 4's fault is not there.
# - **DPOP** is missing: at 0.3 nats it is left of the curve's end.
# - **The three variants of section 3 lie above the curve**, and their intervals exclude 0.
#
# Own *and* fresh reviews instead of people's raise the lead by 0.38 [0.19, 0.55]. But the evidence
# is thin. A shorter review has less KL for the same change of style. With KL *per token* it is 0.21
# [0.03, 0.38]. The variants also differ in more than the writer. "Going further" has both steps.
#
# **Per response, this gain is 0.34 [0.10, 0.55] above IPO's lead.** Per token, the interval contains 0.
# Lesson 14b compares all thirteen losses of the package in this way.

# %% [markdown]
# ## What to remember
#
# - DPO's loss sees only $h$, the difference of two log-ratios. Both can fall, because a push on one
#   response moves all that share its weights.
# - DPOP stops the fall of the chosen response on its training pairs. At the same $\beta$ it learns
#   less.
# - Pairs by others say little about what the policy writes. Look at reward *and* KL. Online DPO
#   needs samples and a judge.
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
# among the K. Gradient descent on DPO moves `w` in the direction in which $h$ rises fastest. Return
# the slopes of all K log-probabilities in this direction, (K,), without autograd. (Take the
# gradient of $h$ itself, without a factor for the length of the step.)
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
# **3. Which fault is it?** *(medium, 15 minutes)*. Here are four small runs of DPO, made for this
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
show.lines(four, range(0, 301, 50), ylabel={"log A": "log-ratio"}, ylim=scale)

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
# **4. Whose pairs?** *(medium, 25 minutes)*. First on paper: the best of all responses has the
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
# constant, so only two logits have a gradient. Then ask how often response k is the first of a
# pair, how often the second, and who is its partner.


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
# **5. Find the bug** *(medium, 15 minutes)*. A colleague trains DPOP on two films. Each film has
# the three responses of section 2 and a weight of its own. In film A, *sure* has the feature 4. In
# film B it has 0.5, so there *yes* can rise (exercise 1). The curve shows the log-ratio of *yes* in
# both films. DPOP should keep film A near zero, but it falls. What is wrong in `dpop_of_a_batch`?
# Mend it, run the checker, and draw the curve again.
#
# `c` and `r` are the log-ratios of the chosen and the rejected responses, (B,). The result is the
# loss of each pair, (B,).
#
# *Hint:* compare the two curves. What is their sum? Which number does the loss hold near zero?


# %% tags=["exercise"]
def dpop_of_a_batch(c, r, beta, penalty):
    fallen = relu(-c.mean())
    return -logsigmoid(beta * (c - r - penalty * fallen))


check.dpop_of_a_batch(dpop_of_a_batch)


# %% [markdown] tags=["solution"]
# The sum of the two curves stays near zero: the penalty is of the *mean* log-ratio of the batch. So
# film A may fall as far as film B rises, and both go on. The penalty has to look at each pair.


# %% tags=["solution"]
def dpop_of_a_batch(c, r, beta, penalty):
    fallen = relu(-c)
    return -logsigmoid(beta * (c - r - penalty * fallen))


check.dpop_of_a_batch(dpop_of_a_batch)


# %% tags=["exercise", "solution"]
def two_films(loss, steps=600):
    """The log-ratio of yes in both films at each step."""
    features = torch.tensor([[1.0, -1.0, 4.0], [1.0, -1.0, 0.5]])
    w, path = torch.zeros(2, 1), []
    for _ in range(steps):
        w = w.detach().requires_grad_(True)
        log_ratios = (features * w).log_softmax(1) + torch.tensor(3.0).log()
        path.append(log_ratios[:, 0].detach())
        loss(log_ratios[:, 0], log_ratios[:, 1], 1.0, 5.0).sum().backward()
        w = w - 0.01 * w.grad
    return torch.stack(path).T


yes = dict(zip(["film A", "film B"], two_films(dpop_of_a_batch)))
show.lines(yes, xlabel="step", ylabel="log-ratio of yes")

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
# **Unseen responses in a table.** With a weight of its own for each response (a table of logits), DPO
# raises the logit of the chosen response, lowers that of the rejected one by the same amount, and
# leaves all others alone. Take three responses with a probability of 1/3 each. DPO multiplies the
# first by 3, divides the second by 3, and then all are divided by their sum:
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
# **Where DPOP stops in section 2.** Where $c$ is negative, DPOP's $h$ is $c - r + 5c = 6c - r$. At the
# start $c$ has the slope −1/3 and $r$ has −7/3. So this $h$ has the slope 6 × (−1/3) + 7/3 = 1/3. It
# rises, but $\bar f$ rises as well. At $\bar f = 1.4$ the slope is 6 × (−0.4) + 2.4 = 0, and DPOP
# stops. For the near twins it is 6 × (1 − 59/30) − (0.9 − 59/30) = −4.7 at the start. So as soon as
# $w$ rises, the loss pushes it back.
#
# **Section 4 with other pairs.** With two other sets of four pairs, chosen by other seeds, DPO pays 6
# and 12 nats of KL, and IPO 0.3 and 0.2. Gold does not rise above the start's there either.
#
# **IPO's optimum for all pairs.** The mean loss of a pair is
# $\big(h - \frac{2p - 1}{2\beta}\big)^2$ plus a constant. So the log-ratios are a least-squares fit
# to these targets. If all pairs weigh the same, the log-ratio of response $i$ is $u_i / \beta$ plus
# a constant. Here $u_i$ is its share of wins: the mean of $p_{ij}$ over all $j$, where a draw of
# $i$ against itself counts one half. The optimum is $\pi_{\text{ref}}\, e^{u / \beta} / Z$. It is
# the Gibbs policy with the share of wins in the place of the reward, whatever the labels are:
# shares of people or hard labels.
#
# "Share of wins" means: against the responses that happen to be compared. DPO on the same hard
# labels has no optimum at all (lesson 12, section 6).
#
# **Does the order carry over?** In section 2, DPOP knows the order of fewer unseen pairs than DPO,
# and it moved far less. But that is not the whole reason: IPO went only 1.2 nats and has 58 % in the
# right order. On new films the chosen reviews still fall, by 0.1 nats under DPOP and by 2.8 under
# DPO. Lesson 14b has the same numbers for thirteen losses.
#
# **Section 5, step by step.** *Human reviews* differs from DPO in the labels: those of the reward
# model contradict each other less than single votes. After that the writer changes:
#
# | what changes | the lead grows by | KL per token |
# |---|---|---|
# | own reviews instead of people's | 0.17 [0.05, 0.28] | 0.11 [−0.01, 0.22] |
# | fresh ones at every step | 0.20 [0.04, 0.38] | 0.10 [−0.08, 0.28] |
# | both together | 0.38 [0.19, 0.55] | 0.21 [0.03, 0.38] |
#
# (Rounded numbers need not add up.) With KL per response, each step excludes 0. With KL per token,
# only both together do. The leads themselves, with KL per token:
#
# | variant | lead, KL per token |
# |---|---|
# | IPO | 0.04 [−0.05, 0.14] |
# | human reviews | 0.12 [0.03, 0.23] |
# | own reviews, once | 0.23 [0.12, 0.33] |
# | online DPO | 0.33 [0.19, 0.46] |
#
# **The pairs of the first figure.** The mean is over the pairs of the step, before its update. The
# pairs are new, but most of their responses have been in earlier pairs, as chosen or as rejected
# ones.
#
# **What is not equal in section 5.** The reward model was trained on many more votes than 3,200.
# The policy writes about all titles, about three pairs each. The human reviews are of fewer films,
# about nineteen pairs each. And an unfinished review of the policy costs a penalty of 1, which
# human reviews cannot teach.
#
# **And PPO?** PPO with the KL coefficient 0.25 also samples (lesson 07). It has more gold than online
# DPO, 2.01 against 1.84, at a lower KL, 4.1 nats against 4.7. A pair only says which of two responses
# is better, and PPO is told by how much.
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
