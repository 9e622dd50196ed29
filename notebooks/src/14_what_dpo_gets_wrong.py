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
# **You need** lesson 12 (direct preference optimisation, DPO). Lesson 13 helps, but is not needed.
# About 45 minutes to read and 70 for the exercises.

# %%
import copy

import torch
from torch.nn.functional import logsigmoid, relu

from minirlhf import core, experiments, loops, models, show, tasks
from minirlhf.classroom import FAST, check

# %% [markdown]
# ## 1. The answer first: three faults, three repairs
#
# Lesson 12's notation: $y_c$ is the chosen and $y_r$ the rejected response of a pair. The
# **log-ratio** of a response is $\log \pi - \log \pi_{\text{ref}}$. We write $c$ for the log-ratio
# of the chosen response, $r$ for that of the rejected one, and $h = c - r$. DPO's loss is $-\log
# \sigma(\beta h)$.
#
# | fault | what DPO does | repair | the line that changes | what it costs |
# |---|---|---|---|---|
# | **likelihood displacement** | the chosen response may become *less* likely | DPO-positive (**DPOP**) | $h = c - r - 5 \max(0, -c)$ | it learns less |
# | **off-policy data** | the pairs are by other people, so the policy learns little about its own responses | **online DPO** | each pair is two fresh responses of the policy | sampling, and a judge at every step |
# | **labels that always agree** | if all labels of a pair agree, the policy runs off without end, whatever $\beta$ is | identity preference optimisation (**IPO**) | loss $= \big(h - \frac{1}{2\beta}\big)^2$ | "just better" and "far better" count the same |
#
# Do you need all three? Section 5 compares them at the same distance from the reference.
# Pairs of the policy's own responses get more out of it than DPO, and most if they are fresh. IPO
# gets as much as DPO. DPOP moves too little for a comparison.

# %% [markdown]
# ## 2. First fault: the chosen response falls
#
# **The symptom.** Here is lesson 12's DPO run again: film reviews, 32 pairs of human reviews per
# step, $\beta = 0.1$, three seeds. The figure shows the mean log-ratio of the chosen and of the
# rejected responses of each step's pairs, in nats.

# %%
history = experiments.results("preference_history")


def log_ratios(variant):
    """Mean log-ratio of each step's pairs: (seeds, steps) for each side."""
    by_seed = history[history.variant == variant].pivot(index="seed", columns="step")
    return {  # a logged reward is beta times the log-ratio
        side: by_seed[f"rewards/{side}"].to_numpy() / 0.1
        for side in ("chosen", "rejected")
    }


steps = range(0, 100, 10)
dpo_runs = log_ratios("dpo")
show.lines(dpo_runs, steps, xlabel="step", ylabel="log-ratio, nats")

# %% [markdown]
# The rejected responses fall, as they should. But the chosen ones fall as well. Their last three
# points lie 2.8 nats below the start on average, which is a factor of 0.06 ($e^{-2.8}$). And these
# are the responses that DPO is trained *for*. This is **likelihood displacement**.
#
# **Why?** The loss contains only $h = c - r$. If both fall and $r$ falls faster, the loss is
# content. What pushes the chosen one down? A network has no separate weight for each response. All
# responses share the weights, so a push on one moves the others.
#
# **By hand.** The smallest such network has one weight $w$ and three responses. Each response has a
# number $e$, its *feature*:
#
# | | *yes* | *no* | *sure* |
# |---|---|---|---|
# | feature $e$ | 1 | −1 | 4 |
#
# The logit of a response is $e\,w$. The start is $w = 0$, so each has the probability 1/3. There is
# one pair: *yes* is chosen, *no* is rejected. Nobody was asked about *sure*.
#
# - DPO needs $h$ to rise. The logits of *yes* and *no* differ by $2w$, so $h = 2w$, and **$w$
#   rises**.
# - What does a rising $w$ do to each response? We take the slope of its log-probability with
#   respect to $w$. With the probabilities $p_k \propto e^{e_k w}$ of all responses $k$:
#
# $$ \log p_y = e_y w - \log \sum_k e^{e_k w}, \qquad
# \frac{d \log p_y}{dw} = e_y - \frac{\sum_k e_k\, e^{e_k w}}{\sum_k e^{e_k w}}
# = e_y - \sum_k p_k e_k = e_y - \bar e . $$
#
# In words: the slope is *its own feature minus the mean feature*. The mean $\bar e$ is **under the
# policy**: each feature is weighted by the present probability of its response. So $\bar e$ moves in
# training. At the start all probabilities are 1/3, so $\bar e$ = (1 − 1 + 4)/3 = 4/3. The slopes are
# 1 − 4/3 = **−1/3** for *yes*, −1 − 4/3 = **−7/3** for *no* and 4 − 4/3 = **8/3** for *sure*.
#
# *Yes* falls from the first step on. *No* falls faster, so $h$ rises. PyTorch gives the same
# slopes:

# %%
features = torch.tensor([1.0, -1.0, 4.0], dtype=torch.float64)  # yes, no, sure
w = torch.zeros((), dtype=torch.float64)
slopes = torch.func.jacfwd(lambda w: (features * w).log_softmax(0))(w)
assert torch.allclose(slopes, torch.tensor([-1 / 3, -7 / 3, 8 / 3]).double())

# %% [markdown]
# **Predict.** We train on this one pair for 4,000 steps. How probable are *yes*, *no* and *sure*
# at the end, roughly? Where does the mean feature $\bar e$ go?


# %%
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


def dpo(c, r, beta=1.0):
    return -logsigmoid(beta * (c - r))


# %% tags=["predict"]
print("yes, no, sure:", train(dpo, features)[-1].numpy().round(3))

# %% [markdown]
# <details><summary>What you should see</summary>
#
# *Yes* has 0.001, *no* less than 0.0005, and *sure* 0.999. **The response that nobody was asked
# about takes everything.** It lies further in the direction that leads from *no* to *yes*. The mean
# feature goes to 4. *Yes* stays below the mean all the time, so it falls all the time.
# </details>

# %% [markdown]
# ### Which unseen responses gain, and which lose?
#
# In lesson 12, the responses without a pair *lost* probability. Here one gains. Both follow from
# the slopes.
#
# - **Shared weights.** An unseen response gains if its feature lies beyond the mean, in the
#   direction from rejected to chosen. If the two responses of a pair are much alike, the
#   difference of their features is small and points anywhere. Then many other responses can lie
#   further along it. So **pairs of near twins are the dangerous ones**.
# - **A weight of its own for each response** (a table of logits). Then DPO raises the logit of the
#   chosen response, and lowers that of the rejected one by the same amount. It leaves all other
#   logits alone. The unseen responses only feel the sum by which all are divided.
#
# Take three responses with a probability of 1/3 each. DPO multiplies the first by 3, divides the
# second by 3, and then all are divided by their sum:
#
# | | chosen | rejected | unseen | sum |
# |---|---|---|---|---|
# | start | 0.33 | 0.33 | 0.33 | 1 |
# | times 3, divided by 3, times 1 | 1 | 0.11 | 0.33 | 1.44 |
# | divided by the sum | 0.69 | 0.08 | 0.23 | 1 |
#
# The unseen response loses: the chosen one has gained 0.67 and the rejected one has lost only 0.22,
# so the sum is above 1, and the division takes from all. In general, in a table, an unseen response
# loses while the chosen one is more likely than the rejected one, and gains while it is less
# likely. Training makes the chosen one more likely, so in the end unseen responses lose.

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
show.lines(panels, xlabel="step", ylabel={"yes": "probability"}, ylim=(0, 1))

# %% [markdown]
# DPOP keeps *yes* at 0.33, by hardly learning at all: *no* is still at 0.32. Why so little? Below
# the reference, $c$ counts six times, so the penalised $h$ has the slope 6 × (−1/3) + 7/3 = 1/3. It
# rises, but $\bar e$ rises as well. At $\bar e = 1.4$ the slope is 6 × (−0.4) + 2.4 = 0, and DPOP
# stops. If $h$ rises, $w$ rises. Then *yes* falls, because $\bar e$ exceeds its feature 1. So here no
# loss can raise $h$ and keep *yes*.
#
# **On film reviews**, with the settings of the first figure:

# %%
panels = {"DPO": dpo_runs, "DPOP": log_ratios("dpop")}
show.lines(
    panels, steps, xlabel="step", ylabel={"DPO": "log-ratio, nats"}, ylim=(-7, 2)
)

# %% [markdown]
# On its training pairs DPOP does what it is made for: the chosen responses rise by about 1 nat, on
# each of the three seeds.
#
# **What it costs.** Look at the other line: the rejected responses do not fall any more. Over the
# last three points the two lines are about 1 nat apart, and under DPO 3 nats. The record also has
# 2,000 pairs of *new* films. The policy has 53 % of them in the right order, after DPO 59 %. The
# difference has the 95 % interval [0.03, 0.09] over films. On new films the chosen reviews still
# fall, by 0.1 nats (DPO: 2.8).

# %% [markdown]
# ## 3. Second fault: pairs that the policy did not write
#
# **The symptom.** Lesson 12's exact world has 15 responses with known rewards. A judge prefers one
# to another with the known Bradley-Terry probability. Here **the policy is a table**: one logit per
# response, no shared weights. The KL coefficient $\beta$ is 0.5. At every step the *writer* writes
# 1,000 pairs, the judge labels them, and the policy makes a DPO step. Who is the writer? At first it
# is somebody who only ever writes 8 of the responses. Such data are **off-policy**: another policy
# than the trained one wrote them.


# %%
world, beta = core.World.random(3, 3, seed=0), 0.5
ref = world.sequence_logprobs(world.ref_logits)


def train_on_pairs(writer, steps=300, pairs=1000):
    """DPO in a table; writer(policy) gives the writer's probabilities."""
    torch.manual_seed(0)
    logits = ref
    for _ in range(steps):
        logits = logits.detach().requires_grad_(True)
        x = logits.log_softmax(0) - ref  # log-ratios
        writes = writer(logits.detach().softmax(0))
        a, b = torch.multinomial(writes, 2 * pairs, replacement=True).view(2, -1)
        share = core.preference_probability(world.rewards[a], world.rewards[b])
        wins = torch.rand(pairs) < share  # the judge
        chosen, rejected = torch.where(wins, a, b), torch.where(wins, b, a)
        dpo(x[chosen], x[rejected], beta).mean().backward()
        logits = logits - 10 * logits.grad
    return logits.detach().softmax(0)


# %% [markdown]
# The figure shows the probability of every response: in the reference, after DPO, and in the Gibbs
# policy, which is the optimum. The numbers on top are the rewards. **A star marks the 8 responses
# that have pairs.**

# %%
has_pairs = torch.arange(15) % 2 == 0  # every other response: 8 of 15
off_policy = train_on_pairs(lambda policy: has_pairs / 8)
words = ["".join(world.vocab[word] for word in y) for y in world.sequences]
stars = [word + "*" if k % 2 == 0 else word for k, word in enumerate(words)]
policies = {
    "reference": ref.exp(),
    "DPO": off_policy,
    "optimum": world.gibbs(beta=beta),
}
show.policy_bars(stars, policies, rewards=world.rewards)

# %% [markdown]
# The seven responses without a star have a total probability of 0.43 in the reference and of 0.49 in
# the optimum. After DPO it is 0.08. Three of them have the rewards 1.1, 0.8 and 0.6. But DPO
# multiplies all seven by the same factor, 0.18, whatever their rewards are.
#
# **Why?** Three responses, $\beta = 1$, and the reference gives each 1/3:
#
# | | A | B | U |
# |---|---|---|---|
# | reward | 1 | 0 | 2 |
# | has a pair | yes | yes | no |
# | optimum, in proportion to $e^{\text{reward}}$ | 0.24 | 0.09 | 0.67 |
# | DPO: A to B is as $e$ to 1, the logit of U stays | 0.51 | 0.19 | 0.31 |
#
# U is the best response, and its probability should double. But no label says so. Meanwhile the
# policy *writes* U in 31 % of its responses. Two of them are without U only in 0.69 × 0.69 = 48 % of
# the cases. So every second pair of the policy's own responses would have U in it.
#
# ### The repair: online DPO
#
# The loss stays. **Only the writer changes**: it is the policy itself, as it is at that step.

# %%
online = train_on_pairs(lambda policy: policy)  # the changed line
for name, policy in {"off-policy": off_policy, "online": online}.items():
    error = (policy - world.gibbs(beta=beta)).abs().max()
    print(f"{name}: largest error of a probability {error.item():.2f}")

# %% [markdown]
# Online DPO finds the optimum, up to the noise of the labels, because every response gets into
# pairs. Of course it gets labels for all 15. That is the point: the writer decides which labels are
# asked for.
#
# **On film reviews.** The reward model of lesson 08 takes the place of the people, so that every
# variant has labels by the same judge: 3,200 pairs each, $\beta = 0.5$, 100 steps, three seeds.
# (The record calls it *the scorer*.) **Gold** is the score of a second reward model, which no
# training used; lesson 12 has the same scale. The variants are
#
# - *human reviews*: DPO on reviews by people,
# - *own reviews, once*: DPO on reviews that the policy wrote before training,
# - *online DPO*: DPO on reviews that it writes anew at every step.
#
# **Predict.** Gold rises from each of them to the next. Which of the two changes brings more, the
# policy's *own* reviews or *fresh* ones? And which of the two brings more KL?

# %% tags=["predict"]
names = {
    "human texts, the scorer's labels": "human reviews",
    "the start's own texts": "own reviews, once",
    "online-dpo": "online DPO",
}
runs = experiments.results("betas", "preference").replace({"variant": names})
three = runs[runs.variant.isin(names.values())]
columns = {"gold": "gold", "kl": "KL, nats", "length": "tokens"}
experiments.shown(three, columns | {"distinct_2": "distinct-2"})

# %% [markdown]
# <details><summary>What you should see</summary>
#
# Gold is 1.17, 1.40 and 1.84, in the order of the list: own reviews bring 0.22, fresh ones 0.44.
# The brackets give the lowest and the highest seed. Online DPO is ahead of both others on every
# seed.
#
# But the KL is 2.3, 2.7 and 4.7 nats: fresh reviews also bring most of it. Section 5 compares at
# equal KL.
# </details>
#
# **What it costs.** Every step samples 64 reviews, and somebody has to judge them: here a reward
# model, which DPO was meant to avoid. And the policy now looks for what this judge likes. Its
# reviews become shorter (14 tokens instead of 21) and more alike: *distinct-2*, the share of
# different word pairs, falls from 0.84 to 0.75.

# %% [markdown]
# ## 4. Third fault: labels that always agree
#
# **The symptom.** We train the small language model on four pairs, again and again. So each
# pair has one fixed label, as a rule or a reward model would give it. We log the mean $h$.

# %%
torch.set_num_threads(1)
sft, tokenizer = models.load_policy("tiny-reviews-sft")
pairs = tasks.reviews.preference_pairs(
    "reward", 4, seed=0, max_tokens=32, tokenizer=tokenizer
)


def mean_h(loss, beta):
    """The mean h of the four pairs at each step."""
    settings = {"loss": loss, "beta": beta, "batch_size": 4, "steps": 4 if FAST else 16}
    config = loops.DPOConfig.plain(**settings)
    _, log = loops.train_dpo(copy.deepcopy(sft), tokenizer, pairs, config)
    return torch.tensor([row["rewards/margins"] / beta for row in log])


# %%
by_beta = {"DPO": mean_h("dpo", 0.1), "DPO, beta 1": mean_h("dpo", 1.0)}
show.lines(by_beta, xlabel="step", ylabel="mean h, nats")

# %% [markdown]
# *DPO* is the run with $\beta = 0.1$. At step 15 its $h$ is 66 nats: the ratio of chosen to rejected
# has grown by a factor of $e^{66}$, more than $10^{28}$. With $\beta = 1$ it is 39 nats, and still
# rises. That it never stops, only the formula shows.
#
# **Why?** Let a share $p$ of people prefer A to B. DPO stops where $\sigma(\beta h) = p$ (lesson
# 12, section 5), which is at $h = \frac{1}{\beta} \log \frac{p}{1 - p}$. If all agree, $p = 1$: the
# sigmoid would have to be one, and no finite $h$ reaches this. A larger $\beta$ does not help:
# infinity divided by $\beta$ is still infinity.
#
# ### The repair: IPO
#
# IPO replaces the sigmoid by a target. With $m = \frac{1}{2\beta}$, the loss of a pair is
#
# $$ L = (h - m)^2 . $$
#
# In words: the squared distance of $h$ from the target $m$. Let a share $p$ of the labels prefer A to
# B, and let $h$ be the log-ratio of A minus that of B. Where the label prefers B, the roles change,
# and the loss sees $-h$. So the mean loss is $p\,(h - m)^2 + (1 - p)(-h - m)^2$, and its derivative
# is $2h - 2m\,(2p - 1)$. IPO stops where this is zero:
#
# $$ h = \frac{2p - 1}{2\beta} . $$
#
# **Predict.** The labels of a pair become clearer: $p$ goes from 0.5 to 0.9, and then from 0.9 to 1.
# On which of the two steps does DPO's $h$ move further, and on which IPO's?

# %% tags=["predict"]
p = torch.tensor([0.5, 0.9, 0.999, 1.0], dtype=torch.float64)
print("DPO:", (torch.logit(p) / 0.1).numpy().round(1))
print("IPO:", ((2 * p - 1) / 0.2).numpy().round(2))

# %% [markdown]
# <details><summary>What you should see</summary>
#
# | $p$ | 0.5 | 0.9 | 0.999 | 1 |
# |---|---|---|---|---|
# | DPO | 0 | 22 | 69 | infinite |
# | IPO | 0 | 4 | 4.99 | 5 |
#
# DPO moves by 22 nats on the first step, and without end on the second. IPO moves by 4 nats, and
# then by 1. So IPO hardly notices the step on which DPO's $h$ explodes.
# </details>
#
# The four pairs again, with IPO's loss. Its target for $\beta = 0.1$ is the line at 5 nats:

# %%
with_ipo = by_beta | {"IPO, beta 0.1": mean_h("ipo", 0.1)}
target = {"IPO's target": 5}
show.lines(with_ipo, xlabel="step", ylabel="mean h, nats", reference=target)

# %% [markdown]
# Adam's first step has the same size whatever the gradient. It takes $h$ to about 8 nats under all
# three losses, already beyond IPO's target. IPO reaches 8.9 nats, comes back, and then stays within
# 2 nats of its target.
#
# **What it costs.** IPO treats "everybody finds A a little better" and "everybody finds A far
# better" alike: it sees shares of wins, not rewards. And $\beta$ has another meaning: at 0.1, IPO's
# $h$ stops at 5 nats at most. DPO with the same $\beta$ goes on, so comparing the two at one
# $\beta$ says nothing.

# %% [markdown]
# ## 5. What the record says: compare at equal KL
#
# A run that goes further from the reference has more gold *and* more KL. So a fair comparison asks:
# **how much gold at the same KL?** In the figure, the curve is DPO with labels by people (lesson 12).
# From left to right $\beta$ is 1, 0.3, 0.1 and 0.03. The points are DPOP and IPO with the same labels,
# and the three variants of section 3. All are judged on the same 76 test films, three seeds each.
# The bars reach from the lowest to the highest seed.

# %%
of_curve = runs.experiment == "betas"
curve = {"DPO": runs[of_curve].variant.unique()}
repairs = {"ipo": "IPO, beta 0.1", "dpop": "DPOP, beta 0.1"}
points = runs.variant.isin([*names.values(), *repairs])
drawn = runs[of_curve | points].replace({"variant": repairs})
show.frontier(drawn, curves=curve, log=True, ylabel="gold")

# %% [markdown]
# - **IPO lies on DPO's curve.** It went only 1.2 nats far. DPO with a larger $\beta$ has as much
#   gold there: the difference is 0.04, with a 95 % interval over films and seeds from −0.04 to
#   0.14. Our labels are single votes that contradict each other, so section 4's fault does not
#   arise.
# - **DPOP hardly moved**, 0.3 nats. That is left of the curve's end, so we cannot compare.
# - **The three variants of section 3 lie above the curve**, and no interval contains 0.
#
# The table splits the lead of online DPO into three changes: gold at equal KL, and the 95 %
# interval. The last column counts KL *per token*, which is fairer to long reviews: a short one has
# less KL for the same change of style.
#
# | change | variant | KL per response | KL per token |
# |---|---|---|---|
# | the reward model's labels | *human reviews*, above the curve | 0.13 [0.04, 0.24] | 0.12 [0.03, 0.22] |
# | the policy's own responses | *own reviews, once*, above *human reviews* | 0.17 [0.06, 0.29] | 0.11 [−0.00, 0.22] |
# | fresh ones at every step | *online DPO*, above *own reviews, once* | 0.20 [0.02, 0.35] | 0.10 [−0.08, 0.28] |
#
# The reward model's labels contradict each other less. Own and fresh responses each bring about as
# much again, but per token neither interval excludes 0. Together they bring 0.38 [0.18, 0.55], and
# per token 0.21 [0.01, 0.38], which just excludes 0.
#
# **So first ask whose responses the pairs are**, then which loss. Lesson 14b compares all thirteen
# losses of the package in this way.

# %% [markdown]
# ## What to remember
#
# - DPO's loss sees only $h$, the difference of two log-ratios. Both can fall.
# - A push on one response moves all that share its weights. Pairs of near twins are dangerous:
#   many other responses lie further along their difference.
# - DPOP stops the fall of the chosen response on its training pairs. It pays by learning less.
# - Pairs by others say nothing about what the policy writes. Online DPO pays for this knowledge
#   with samples and a judge.
# - Labels that always agree have no finite optimum under DPO. IPO has a target, and forgets how
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
show.lines(dict(zip(["yes", "no", "sure"], train(dpo, nearer)[:1500].T)), xlabel="step")

# %% [markdown]
# <details><summary>What you should see</summary>
#
# The mean feature is 1/6 at the start, so the slopes are 5/6, −7/6 and 1/3. *Yes* rises all the
# way. *Sure* rises first, from 0.33 to 0.36. Then the mean feature passes 0.5, and *sure* falls.
# Displacement needs a response that lies *further* than the chosen one.
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
# minus the probability of the chosen response plus that of the rejected one: the rule of section 2.

# %% [markdown] tags=["exercise"]
# **3. Two losses to take along** *(easy, 10 minutes)*. From four log-probabilities of shape (B,),
# each the sum over the tokens of a response, return DPOP's and IPO's loss of each pair, (B,).
# `penalty` is $\lambda$. DPOP's loss must be finite where a pair is very wrong. The checkers compare
# the gradients, too.
#
# *Hint:* compute the log-ratios first. In DPOP only one of them is penalised. Does IPO compare $h$
# with its target, or $\beta h$?


# %% tags=["exercise"]
def dpop_loss(
    chosen_logprobs,
    rejected_logprobs,
    ref_chosen_logprobs,
    ref_rejected_logprobs,
    beta,
    penalty,
): ...  # your code


def ipo_loss(
    chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs, beta
): ...  # your code


check.dpop_loss(dpop_loss)
check.ipo_loss(ipo_loss)


# %% tags=["solution"]
def dpop_loss(
    chosen_logprobs,
    rejected_logprobs,
    ref_chosen_logprobs,
    ref_rejected_logprobs,
    beta,
    penalty,
):
    c = chosen_logprobs - ref_chosen_logprobs
    r = rejected_logprobs - ref_rejected_logprobs
    return -logsigmoid(beta * (c - r - penalty * relu(-c)))


def ipo_loss(
    chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs, beta
):
    h = chosen_logprobs - ref_chosen_logprobs
    h = h - (rejected_logprobs - ref_rejected_logprobs)
    return (h - 1 / (2 * beta)) ** 2


check.dpop_loss(dpop_loss)
check.ipo_loss(ipo_loss)

# %% [markdown] tags=["exercise"]
# **4. Whose pairs?** *(hard, 20 minutes)*. First on paper: the best of all responses has the
# probability 0.02 in the starting policy and 0.3 in today's. How often is it in a pair that the
# starting policy wrote? And in a pair that today's policy writes?
#
# Now the general case, in the table of section 3. Two responses are drawn independently, each with
# the probabilities `writer` (K,). They can be equal. `share[i, j]` (K, K) is the probability that
# the judge prefers i to j. `log_ratios` (K,) are those of the policy. Return the *expected* gradient
# of DPO's loss of one such pair with respect to the K logits of the policy, (K,). Use neither
# sampling nor autograd.
#
# *Hint:* begin with one pair (i, j) and both possible labels. $h$ is a difference of two logits, up
# to a constant, so only two logits have a gradient. Then ask how often response k is the first of
# a pair, how often the second, and who is its partner.


# %% tags=["exercise"]
def gradient_of_pairs(writer, log_ratios, share, beta): ...  # your code


check.gradient_of_pairs(gradient_of_pairs)


# %% [markdown] tags=["solution"]
# On paper: in $1 - 0.98^2$ = 4 % of the old pairs, and in $1 - 0.7^2$ = 51 % of the fresh ones.
#
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
# The second of lesson 12's conditions says that every pair is covered. Online DPO comes closer to
# it: what the policy is about to write is what is compared. But for the same reason it also finds
# what the judge likes by mistake.
# </details>
#
# <details><summary>3. My judge is a rule that always gives the same label. Does a larger $\beta$ help DPO?</summary>
#
# It delays. The loss still asks for an infinite $h$. Use IPO, or stop early.
# </details>
#
# <details><summary>4. Does a single pair always push its chosen response down?</summary>
#
# No. In a table of logits it never does: the slope of the chosen response is one minus the
# difference of the two probabilities, which is positive. With many pairs it can happen even there:
# a response that wins once is crowded out by one that wins often.
# </details>
#
# ## Going further
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
# **Does the order carry over?** In section 2, DPOP knows the order of fewer unseen pairs than DPO.
# It also moved far less, 0.3 nats instead of 5.4. But that is not the whole reason: IPO went only
# 1.2 nats and has 58 % in the right order. Raising the chosen reviews seems to be what costs the
# order. Lesson 14b has the same numbers for thirteen losses.
#
# **The pairs of the first figure.** The mean is over the pairs of the step, before its update. The
# pairs are new, but most of their responses have been in earlier pairs, as chosen or as rejected
# ones.
#
# **What is not equal in section 3.** The reward model was trained on many more votes than 3,200.
# The policy writes about all titles, about three pairs each. The human reviews are of the films
# that have votes and short reviews, about nineteen pairs each. An unfinished review of the policy
# costs a penalty of 1, and human reviews teach no such thing. Each variant was run at one $\beta$
# only. PPO with the KL coefficient 0.25 also samples (lesson 07). It has more gold than online DPO,
# 2.01 against 1.84, at a lower KL, 4.1 nats against 4.7. But a pair only says which of two
# responses is better, and PPO is told by how much.
#
# **What the libraries do.** TRL's DPO trainer has IPO as `loss_type="ipo"`. It divides each
# log-ratio by the length of its response, so its $\beta$ means something else: the target is per
# token. OpenRLHF uses sums, as we do. TRL's online DPO is marked as experimental. It takes a judge
# or a reward model, and penalises reviews without an end token. None of them logs how many chosen
# responses have become less likely. Our log calls this number *displaced*.
#
# **References.** Rafailov et al. 2023, *Direct preference optimization*. Razin et al. 2024,
# *Unintentional unalignment* (section 4: displacement and similar responses). Pal et al. 2024,
# *Smaug* (DPO-positive, sections 3 and 4). Guo et al. 2024, *Direct language model alignment from
# online AI feedback*. Azar et al. 2023, *A general theoretical paradigm to understand learning from
# human preferences* (IPO, sections 4 and 5).
#
# *How this lesson is checked:* IPO's optimum, DPOP by hand and the gradients of all losses are
# tested in `tests/core/test_preference.py`, and every number about a recorded run is compared with
# the record (`tests/claims/test_lesson_14.py`).
