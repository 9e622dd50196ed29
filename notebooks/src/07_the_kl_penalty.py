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
# # 07 · The KL penalty
#
# After this lesson you can
#
# - compute the policy that a KL penalty leads to, and say what the KL coefficient does,
# - estimate a KL divergence from samples, and choose between three estimators,
# - put a penalty where it has the right gradient, and choose its coefficient.
#
# **You need** lesson 04 (the policy gradient, the return of a token) and lesson 06 (one step of
# PPO). About 75 minutes to read and 75 for the exercises.

# %%
import math

import pandas as pd
import torch

from minirlhf import core, experiments, show
from minirlhf.classroom import check

# %% [markdown]
# ## 1. What goes wrong without it
#
# Proximal policy optimisation (PPO) makes the score of a reward model rise. We trained the review
# writer of lesson 06 for 24 steps, with a KL penalty (coefficient 0.5) and without one. Here are
# their samples for three new films (first seed):

# %%
runs = experiments.results("leash")  # PPO with several KL coefficients, three seeds
samples = experiments.samples(runs, ["kl_coef 0.5", "kl_coef 0"]).head(3)
samples.columns = ["with a KL penalty", "without"]
show.texts(samples)

# %% [markdown]
# Read the last column aloud. Without the penalty, the policy writes nearly the same review for
# every film: *funny and funny and funny*. The reward model loves it. The mean score is 4.0, and
# with the penalty only 1.2. (Means over 76 films and three seeds. Training began near 0.)
#
# The reward model learned from reviews that people wrote. None of our 12,746 reviews has *funny and
# funny*, so no rating taught it that this is bad. Far from what people write it is wrong in places,
# and training finds them.
#
# The **KL penalty** keeps the policy near the **reference**: a copy of the model from before the
# training, which imitates people's reviews. In the middle column each film has its own review.

# %% [markdown]
# ## 2. The objective, and its best policy
#
# - $\pi$ is the policy, $\pi_{\text{ref}}$ the reference, and $r(y)$ the score of a response $y$.
# - $\ell(y) = \log \pi(y) - \log \pi_{\text{ref}}(y)$ is the **log-ratio** of the response. It is
#   positive if the policy writes $y$ more often than the reference does.
# - The **Kullback-Leibler (KL) divergence** is the mean log-ratio of the policy's own responses:
#   $\mathrm{KL}(\pi \,\|\, \pi_{\text{ref}}) = \mathbb{E}_{y \sim \pi}[\ell(y)]$. It is 0 if the
#   two policies are equal, otherwise it is positive. Its unit is the nat.
# - $\beta$ is the **KL coefficient**.
#
# Training maximises the expected score minus the penalty:
#
# $$ J(\pi) = \mathbb{E}_{y \sim \pi}[r(y)] - \beta\, \mathrm{KL}(\pi \,\|\, \pi_{\text{ref}}) . $$
#
# The policy with the highest $J$ is called the **Gibbs policy**:
#
# $$ \pi^*(y) = \frac{1}{Z}\, \pi_{\text{ref}}(y)\, e^{r(y)/\beta} , \qquad
# Z = \sum_y \pi_{\text{ref}}(y)\, e^{r(y)/\beta} . $$
#
# In words: take the reference, and multiply each probability by a factor that grows with the score.
# Dividing by $Z$ makes the probabilities add up to one.
#
# **By hand.** Suppose that there are only three responses. We choose $\beta = 1 / \ln 2 = 1.44$.
# Then the factor $e^{r/\beta}$ is $2^r$: it doubles with each point of the score.
#
# | response | $\pi_{\text{ref}}$ | score $r$ | factor $2^r$ | $\pi_{\text{ref}} \cdot 2^r$ | $\pi^*$ |
# |---|---|---|---|---|---|
# | *A dull film.* | 0.6 | 0 | 1 | 0.6 | 0.6 / 1.6 = 0.375 |
# | *A good film.* | 0.3 | 1 | 2 | 0.6 | 0.6 / 1.6 = 0.375 |
# | *A great film!* | 0.1 | 2 | 4 | 0.4 | 0.4 / 1.6 = 0.25 |
# | sum | 1 | | | $Z$ = 1.6 | 1 |

# %%
three = core.World(
    vocab=("A dull film.", "A good film.", "A great film!"),
    max_length=1,  # here each response is a single "word"
    rewards=torch.tensor([0.0, 1.0, 2.0]).double(),
    ref_logits=torch.tensor([[0.6, 0.3, 0.1]]).double().log(),
)
by_hand = torch.tensor([0.375, 0.375, 0.25]).double()
assert torch.allclose(three.gibbs(beta=1 / math.log(2)), by_hand)

# %% [markdown]
# **Predict.** Take two other coefficients: a quarter of this one (the factor per point is
# $2^4 = 16$), and ten times this one. For each: which response is the likeliest, and how likely is
# it, roughly?

# %% tags=["predict"]
betas = [times / math.log(2) for times in (10, 1, 0.25)]
columns = {f"beta = {b:.2f}": three.gibbs(beta=b).numpy() for b in betas}
pd.DataFrame(columns, index=three.vocab).round(3)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# - $\beta = 14.4$: *A dull film.*, with 0.579. The reference has 0.6.
# - $\beta = 0.36$: *A great film!*, with 0.826. The products are 0.6, 0.3 · 16 = 4.8 and 0.1 · 256
#   = 25.6.
# </details>
#
# **Why is it the best?** Take the logarithm of $\pi^*$ and solve for the score:
# $r(y) = \beta \log \pi^*(y) - \beta \log \pi_{\text{ref}}(y) + \beta \log Z$. Put this into $J$.
# Then $\pi_{\text{ref}}$ cancels:
#
# $$ J(\pi) = \mathbb{E}\Big[ \beta \log \frac{\pi^*(y)}{\pi_{\text{ref}}(y)} + \beta \log Z -
# \beta \log \frac{\pi(y)}{\pi_{\text{ref}}(y)} \Big]
# = \beta \log Z - \beta\, \mathrm{KL}(\pi \,\|\, \pi^*) . $$
#
# The first term does not depend on $\pi$. The KL is 0 only for $\pi = \pi^*$. So no other policy is
# as good.
#
# **From responses to tokens.** The probability of a response is a product over its tokens, so its
# log-ratio is a sum:
#
# $$ \ell(y) = \sum_t \ell_t , \qquad
# \ell_t = \log \pi(y_t \mid s_t) - \log \pi_{\text{ref}}(y_t \mid s_t) . $$
#
# So lesson 06 gave every token the reward $-\beta\, \ell_t$, and the last one the score as well.
# The rewards of a response add up to $r(y) - \beta\, \ell(y)$, and the mean of this is $J$.
#
# Here is a response from the end of the PPO run in lesson 06. The colour is the log-ratio (*kl*):
# blue tokens are likelier under the policy, orange ones under the reference.

# %%
run = experiments.results("microscope")
one = run[(run.source == "fresh") & (run.step == 24) & (run.prompt == "amys o\n")]
show.microscope(one, "kl")

# %% [markdown]
# - *heart* has the log-ratio 1.41, because the policy gives it 3.2 % and the reference only 0.8 %.
#   With $\beta = 0.5$ its reward is −0.70.
# - *treat* has −1.27. The reference likes it more, so its reward is *positive*: 0.63.
# - All seven log-ratios add up to 0.96 nats. This is one sample of the KL. A sample may be
#   negative: at step 8, one has −2.29. Only the mean cannot.

# %% [markdown]
# ## 3. Three estimators of the KL
#
# A run estimates the KL from samples. Each gives a log-ratio $\ell$. Three formulas are usual
# (Schulman 2020):
#
# $$ k_1 = \ell , \qquad k_2 = \tfrac12 \ell^2 , \qquad k_3 = e^{-\ell} - 1 + \ell . $$
#
# **By hand.** The policy is the $\pi^*$ of our three responses:
#
# | response | $\pi$ | $\pi_{\text{ref}}$ | $\ell = k_1$ | $k_2$ | $k_3$ |
# |---|---|---|---|---|---|
# | *dull* | 0.375 | 0.6 | −0.47 | 0.11 | 0.13 |
# | *good* | 0.375 | 0.3 | 0.22 | 0.02 | 0.02 |
# | *great* | 0.25 | 0.1 | 0.92 | 0.42 | 0.32 |
#
# **Predict.** Compute the mean of each of the last three columns: multiply each row by $\pi$, then
# add. Which columns have the same mean?

# %% tags=["predict"]
log_pi, log_ref = by_hand.log()[:, None], three.ref_logits.T  # (3, 1): one token each
mask = torch.ones(3, 1).bool()  # true at real tokens, and nothing is padding here
for k in (core.k1, core.k2, core.k3):
    values = k(log_pi, log_ref, mask)[:, 0]
    print(k.__name__, "has the mean", round((by_hand @ values).item(), 3))

# %% [markdown]
# <details><summary>What you should see</summary>
#
# $k_1$ and $k_3$ have the mean 0.137, and $k_2$ has 0.156.
#
# - **$k_1$**: its mean is the KL, by definition. One sample can be negative.
# - **$k_3$**: its mean is the KL too. The mean of $e^{-\ell} = \pi_{\text{ref}} / \pi$ under $\pi$
#   is the sum of $\pi_{\text{ref}}$, which is 1. So $e^{-\ell} - 1$ has the mean 0. And $k_3$ is
#   never negative, because $e^{-\ell} \ge 1 - \ell$.
# - **$k_2$** is never negative either, but its mean is only near the KL.
# </details>
#
# **Bias and noise.** Now a world with 15 possible responses of at most three tokens, with random
# scores and a random reference (lesson 05). We take 20 policies on a way that leads from the
# reference in a random direction. Estimators are summed over the tokens of a response. The
# horizontal axis is the true KL. At the left is the bias: the mean minus the true KL. At the right
# is the standard deviation from response to response.
#
# **Predict.** Which estimator is the noisiest near the reference, and which far from it?

# %%
world = core.World.random(3, 3, seed=0)  # 3 words, responses of at most 3
generator = torch.Generator().manual_seed(1)
# logits of the 3 words after each of the 7 prefixes (of 0, 1 or 2 tokens)
direction = torch.randn(7, 3, generator=generator, dtype=torch.float64)
ref, mask = world.logprobs(world.ref_logits), world.response_mask
walk = [world.ref_logits + step * direction for step in torch.linspace(0.1, 2, 20)]


def mean_and_noise(k, logits):
    values = k(world.logprobs(logits), ref, mask).sum(1)  # of each response
    mean = world.expectation(logits, values)
    return mean, world.expectation(logits, (values - mean) ** 2).sqrt()


# %% tags=["predict"]
true_kl = torch.stack([world.kl(logits, world.ref_logits) for logits in walk])
bias, noise = {}, {}
for k in (core.k1, core.k2, core.k3):
    table = torch.tensor([mean_and_noise(k, logits) for logits in walk])
    bias[k.__name__], noise[k.__name__] = table[:, 0] - true_kl, table[:, 1]
panels = {"bias, nats": bias, "standard deviation, nats": noise}
show.lines(
    panels, true_kl, xlabel="true KL, nats", log={"standard deviation, nats": "y"}
)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# - Left: $k_1$ and $k_3$ have no bias: one line hides the other. $k_2$ is nearly right close to
#   the reference, and too low by 0.16 at a KL of 0.47.
# - Right, near the reference: $k_1$ is about ten times as noisy as the other two.
# - Right, far away: $k_3$ is the noisiest by far, with 10.5 nats where $k_1$ has 0.6. Where the
#   policy has made a response rare, $\ell$ is very negative, and $e^{-\ell}$ is huge.
# </details>
#
# So *for a log*, use $k_1$ or $k_3$, averaged over the batch.

# %% [markdown]
# ## 4. Value and gradient are two questions
#
# In training only the gradient counts. Let $f(y)$ be an estimator. Its mean is the sum
# $\sum_y \pi(y) f(y)$. The policy stands in it twice: in the weight $\pi(y)$, and inside $f(y)$. So
# the product rule gives two parts. With $\nabla \pi = \pi\, \nabla \log \pi$ (lesson 04) they are
#
# $$ \nabla\, \mathbb{E}_{y \sim \pi}[f(y)] = \mathbb{E}[\nabla f(y)]
# + \mathbb{E}[f(y)\, \nabla \log \pi(y)] . $$
#
# In the first part the responses stay the same. The second comes from drawing others.
#
# - **Add $f$ to the loss**: you get the first part only. The batch holds responses already drawn.
#   `backward` cannot see that a changed policy would draw others.
# - **Subtract $f$ from the reward**: you get the second part only. This is the policy gradient of
#   lesson 04, with the fixed number $f(y)$ as the score.
#
# **By hand**, for $k_1$ and the three responses. The policy is a softmax of three logits, and we
# take the derivative with respect to the logit of *great*. For $\log \pi(y)$ this is
# $1 - \pi(\textit{great})$ if $y$ is *great*, otherwise $-\pi(\textit{great})$ (lesson 04). The
# reference is fixed, so $\nabla \ell = \nabla \log \pi$.
#
# | response | $\pi$ | $\ell$ | $\nabla \log \pi$ | loss: $\pi\, \nabla \ell$ | reward: $\pi\, \ell\, \nabla \log \pi$ |
# |---|---|---|---|---|---|
# | dull | 0.375 | −0.47 | −0.25 | −0.094 | 0.044 |
# | good | 0.375 | 0.22 | −0.25 | −0.094 | −0.021 |
# | great | 0.25 | 0.92 | 0.75 | 0.188 | 0.172 |
# | total | | | | 0 | 0.195 |
#
# In the loss, the three terms cancel. In the reward they do not: a larger logit of *great* raises
# the KL. Here are all three logits. The last column is the derivative of the KL itself, with nothing
# held fixed:

# %%
logits = by_hand.log().requires_grad_(True)
log_pi = logits.log_softmax(0)
ell = log_pi - three.ref_logits[0]
means = {
    "k1 in the loss": (by_hand * ell).sum(),  # the weights are held fixed
    "k1 in the reward": (by_hand * ell.detach() * log_pi).sum(),  # and so is ell
    "true": (log_pi.exp() * ell).sum(),
}
for name, mean in means.items():
    means[name] = torch.autograd.grad(mean, logits, retain_graph=True)[0].numpy()
pd.DataFrame(means, index=["dull", "good", "great"]).round(3) + 0.0

# %% [markdown]
# The second column equals the last, and this is so for every policy. The first part is always 0,
# because the probabilities add up to 1:
# $\sum_y \pi \nabla \log \pi = \nabla \sum_y \pi = \nabla 1 = 0$. So **$k_1$ in the loss has no
# gradient on average**, only noise. The second part is the whole gradient:
#
# $$ \nabla\, \mathrm{KL}(\pi \,\|\, \pi_{\text{ref}}) = \mathbb{E}[\ell\, \nabla \log \pi] . $$
#
# **$k_1$ in the reward has exactly this gradient.**
#
# Now all estimators in three placements. *Whole response*: one term, from $\ell$ of the response.
# *Token by token*: the sum of one term per token, from its $\ell_t$. In the reward, each token gets
# its own term. For each we compute the mean gradient in the small world, at the tenth of the 20
# policies, and its **cosine** with the true gradient. 1 is the right direction.
# Below 0 the penalty pushes the wrong way. (If the mean gradient is 0, we write 0.)
#
# **Predict** the missing cells: right (1), roughly right, or wrong (below 0)? *Hint:* what is
# $\nabla k_2$?
#
# | | loss, whole response | loss, token by token | reward |
# |---|---|---|---|
# | $k_1$ | 0 | 0 | 1 |
# | $k_2$ | ? | ? | ? |
# | $k_3$ | ? | ? | ? |


# %%
def whole_response(k):
    return lambda new, old: k(new.sum(1)[:, None], ref.sum(1)[:, None], mask[:, :1])


def by_token(k):
    return lambda new, old: k(new, ref, mask)


def in_reward(k):  # REINFORCE: the return of a token times its log-probability
    return lambda new, old: core.reward_to_go(k(old, ref, mask), mask) * new


def gradient(logits, penalty):
    """The mean gradient of a penalty over the policy's responses."""
    moved = logits.clone().requires_grad_(True)
    losses = penalty(world.logprobs(moved), world.logprobs(logits)).sum(1)
    return torch.autograd.grad(world.expectation(logits, losses), moved)[0]


# %% tags=["predict"]
tenth = walk[9]
truth = world.gradient(tenth) - world.gradient(tenth, beta=1.0)  # J without, J with
placements = {"loss, whole response": whole_response}
placements |= {"loss, token by token": by_token, "reward": in_reward}
cosines = pd.DataFrame(index=["k1", "k2", "k3"], columns=list(placements))
for k in (core.k1, core.k2, core.k3):
    for name, place in placements.items():
        found = gradient(tenth, place(k))
        cosine = torch.cosine_similarity(found.flatten(), truth.flatten(), dim=0)
        cosines.loc[k.__name__, name] = round(cosine.item(), 2) + 0.0
cosines

# %% [markdown]
# <details><summary>What you should see</summary>
#
# - **$k_2$ in the loss.** $\nabla \tfrac12 \ell^2 = \ell\, \nabla \ell = \ell\, \nabla \log \pi$:
#   exactly the true gradient. So for the whole response the cosine is 1. The estimator with the
#   wrong value has the right gradient! Token by token it is only 0.86 (section 5 says why).
# - **$k_2$ in the reward**: −0.26. $\tfrac12 \ell^2$ is large where the policy writes a response
#   much more *or* much less often than the reference. In the reward it makes both rarer, but the
#   second kind should become more frequent.
# - **$k_3$ in the loss**: 0.75 in both columns. (Equal by chance.) For the whole response this is
#   the gradient of the *other* KL (see below).
# - **$k_3$ in the reward**: −0.29, for the same reason as $k_2$.
# </details>
#
# Only the ones and zeros hold in every world.
#
# **Two KLs.** $\mathrm{KL}(\pi \,\|\, \pi_{\text{ref}})$ is a mean over the *policy's* responses,
# $\mathrm{KL}(\pi_{\text{ref}} \,\|\, \pi)$ over the *reference's*. Take a policy that always
# writes *A great film!*. Our KL is $\log(1 / 0.1) = 2.3$ nats. The other one is infinite, because
# this policy never writes *dull* or *good*. So our KL lets a policy give up responses, and the
# other does not. $k_3$ in the loss follows the other.
#
# **What does it do to training?** From the reference we take 150 steps along the mean gradient of
# the score minus $\beta = 0.5$ times that of the penalty. The figure shows the KL to the reference
# and the objective $J$. The Gibbs policy (thin dots) is the best possible.


# %%
def train(penalty, beta=0.5):
    logits, path = world.ref_logits, []
    for _ in range(150):
        path.append(logits)
        step = world.gradient(logits) - beta * gradient(logits, penalty)
        logits = logits + 2 * step
    return path


paths = {
    "k1 in the loss": train(by_token(core.k1)),
    "k1 in the reward": train(in_reward(core.k1)),
    "k2 in the loss, token by token": train(by_token(core.k2)),
    "k3 in the loss, token by token": train(by_token(core.k3)),
}

# %%
best = world.gibbs_logits(beta=0.5)
kl, objective = {}, {}
for name, path in paths.items():
    kl[name] = [world.kl(logits, world.ref_logits) for logits in path]
    objective[name] = [world.objective(logits, beta=0.5) for logits in path]
panels = {"KL to the reference, nats": kl, "objective J": objective}
goal = (world.kl(best, world.ref_logits), world.objective(best, beta=0.5))
goal = {name: {"Gibbs policy": x.item()} for name, x in zip(panels, goal)}
show.lines(panels, xlabel="step", reference=goal)

# %% [markdown]
# - **$k_1$ in the loss** runs away to 2.8 nats and an objective of 0.14, exactly as with no
#   penalty.
# - **$k_1$ in the reward** goes to the Gibbs policy, with a KL of 0.97 and the objective 0.56.
# - **$k_2$ token by token** is too weak here (1.27 nats), **$k_3$ token by token** too strong
#   (0.75). Both miss the best objective, with 0.52 and 0.49.

# %% [markdown]
# ## 5. Per token or per sequence?
#
# What is missing token by token? A token also decides which prefixes come next, and so the
# log-ratios of the *later* tokens. Take a response of three tokens. Each penalty multiplies
# $\nabla \log \pi(y_t \mid s_t)$ by a number:
#
# | | first token | second token | third token |
# |---|---|---|---|
# | log-ratio $\ell_t$ | 0.5 | −0.2 | 1.0 |
# | $k_2$ in the loss, token by token: its own log-ratio | 0.5 | −0.2 | 1.0 |
# | $k_1$ in the reward: its own and the later ones | 1.3 | 0.8 | 1.0 |
# | $k_2$ in the loss, whole response: all of them | 1.3 | 1.3 | 1.3 |

# %%
ratio, real = torch.tensor([[0.5, -0.2, 1.0]]), torch.ones(1, 3).bool()
zero = torch.zeros(1, 3)  # log-probabilities of the reference; only differences count

new = ratio.clone().requires_grad_(True)
core.k2(new, zero, real).sum().backward()
assert torch.allclose(new.grad, torch.tensor([[0.5, -0.2, 1.0]]))
returns = core.reward_to_go(core.k1(ratio, zero, real), real)
assert torch.allclose(returns, torch.tensor([[1.3, 0.8, 1.0]]))
new = ratio.clone().requires_grad_(True)
core.k2(new.sum(1, keepdim=True), zero[:, :1], real[:, :1]).sum().backward()
assert torch.allclose(new.grad, torch.tensor([[1.3, 1.3, 1.3]]))

# %% [markdown]
# Token by token, the penalty makes the second token *more* likely. In the reward it counts that a
# third token with a large log-ratio follows. The last row also counts the *earlier* tokens. They
# are fixed when a token is drawn, so they add only noise (lesson 04).
#
# ## 6. Which placement to use
#
# - **Usually: $k_1$ in the reward**, token by token, as in our PPO.
# - **If it must be in the loss: $k_2$ of the whole response**, on samples of the current policy.
# - **$k_2$ or $k_3$ token by token in the loss**, as in many libraries, lead to another policy.
# - **Never $k_1$ in the loss. Never $k_2$ or $k_3$ in the reward.**

# %% [markdown]
# ## 7. Reward against KL: recorded runs
#
# We ran PPO with six KL coefficients, $k_1$ in the reward, three seeds each. The **gold score** is
# the rating from −4 to 4 that people would give, predicted by another model (lesson 06). Training
# never sees it. The figure shows gold against the KL (logarithmic axis).
#
# **Predict.** Is gold without a penalty the highest of the six, the lowest, or in between?

# %% tags=["predict"]
fixed = runs[runs.variant.str.startswith("kl_coef")]
show.frontier(fixed, log=True, ylabel="gold score")

# %% [markdown]
# <details><summary>What you should see</summary>
#
# In between. From $\beta = 2$ to $\beta = 0.1$, a weaker penalty has more KL and more gold, from
# 0.61 to 2.78. Without a penalty gold falls back to 2.63, lower than at 0.1 on each of the
# three seeds.
#
# At step 10 it had been 3.07, so the later steps lost gold.
# </details>
#
# The table adds the score and the variety. *Distinct word pairs* is the share of different pairs
# among all pairs of neighbouring words. (Brackets: lowest and highest of three runs.)

# %% tags=["predict"]
measures = {"kl": "KL, nats", "gold": "gold", "proxy": "score"}
measures["distinct_2"] = "distinct word pairs"
experiments.shown(fixed, measures)

# %% [markdown]
# - **The score rises to the end**, to 4.03. It cannot warn you: training maximises it.
# - **Variety warns early.** The reference has about 86 %. At 0.5 there are still 81 %, at 0.1 only
#   36 %. One sample there is *A funny, charming and funny, funny,.*
#
# **Why not believe gold?** By gold, no penalty (2.63) beats our default of 0.5 (1.43). But gold is
# a model too, fitted to what people write. With no penalty the KL is 91 nats: for the reference,
# such responses are about $e^{91}$ times less likely. Gold has seen nothing like them, so its score
# is a guess. Two things need no model: only 2 % of the word pairs are different, and you have read
# the samples.
#
# **So choose in this order.** Strike out the coefficients whose samples or variety you do not
# accept. Of the rest take the highest gold. Our default of 0.5 is the smallest with nearly the
# variety of the reference. If 68 % is enough for you, take 0.25, with gold 2.01.

# %% [markdown]
# ## 8. Choosing the coefficient
#
# $\beta$ has a unit: points of score per nat. If you double all scores, double $\beta$, because
# only $r / \beta$ stands in the Gibbs policy. So first scale the reward model (lesson 08). Then try
# values as in section 7.
#
# **Or let a controller choose.** You name a target KL, and $\beta$ follows. After each batch of $n$
# responses (Ziegler et al. 2019):
#
# $$ \beta \leftarrow \beta\, \Big(1 + u\, \frac{n}{h}\Big) , \qquad
# u = \text{clip}\Big(\frac{\text{measured KL}}{\text{target}} - 1,\, -0.2,\, 0.2\Big) . $$
#
# In words: if the KL is above the target, raise $\beta$. The horizon $h$ says how slowly.
# **By hand**, with $\beta = 0.1$, a KL of 6, a target of 2, $n = 64$ and $h = 100$: $6/2 - 1 = 2$
# is clipped to 0.2, and $\beta$ becomes $0.1 \cdot (1 + 0.2 \cdot 0.64) = 0.1128$.

# %%
after = core.adapt_kl_coef(0.1, 6.0, target=2.0, horizon=100, batch_size=64)
assert math.isclose(after, 0.1128)

# %% [markdown]
# **Predict.** PPO starts at $\beta = 0.1$ with the controller of this example: a target of 2 nats,
# $n = 64$ and $h = 100$. (Fixed at 0.1, the KL ends at 9 nats. Fixed at 0.5, it ends at 2.) Sketch
# the KL over the 24 steps.

# %% tags=["predict"]
history = experiments.results("leash_history")
controlled = history[history.variant == "target 2 nats"]
show.curves(controlled, columns=["kl", "kl_coef"])

# %% [markdown]
# <details><summary>What you should see</summary>
#
# The KL rises to about 9 nats, more than four times the target. At the last step it is still 5.1.
# At first the KL is below the target, so the controller lowers $\beta$ to 0.06. Then the policy moves
# fast, but $\beta$ grows by at most 12.8 % per step. It needs the whole run to reach 0.5.
# </details>
#
# So in a short run choose $\beta$ yourself. (We tried one target, horizon and start.)

# %% [markdown]
# ## What to remember
#
# - Without a penalty, training finds the errors of the reward model.
# - The best policy under a penalty is the Gibbs policy, $\pi_{\text{ref}}\, e^{r/\beta} / Z$.
# - $k_1$ and $k_3$ have the KL as their mean.
# - The right gradient comes from $k_1$ in the reward.
# - Choose $\beta$ with your own eyes and the variety first, then with a second judge.
#
# ## Exercises
#
# Solutions are in `solutions/07_the_kl_penalty.ipynb`.

# %% [markdown] tags=["exercise"]
# **1. The best policy** *(easy, 10 minutes)*. `ref_logprobs` are the log-probabilities of all N
# responses under the reference, (N,), `rewards` their scores, (N,). Return $\log \pi^*$ of each
# response, (N,).
#
# *Hint:* a score of 1,000 is possible, and $e^{1000}$ is infinite. Work with logarithms to the end.


# %% tags=["exercise"]
def gibbs_logprobs(ref_logprobs, rewards, beta): ...  # your code


check.gibbs_logprobs(gibbs_logprobs)


# %% tags=["solution"]
def gibbs_logprobs(ref_logprobs, rewards, beta):
    return (ref_logprobs + rewards / beta).log_softmax(0)


check.gibbs_logprobs(gibbs_logprobs)

# %% [markdown] tags=["solution"]
# `log_softmax` subtracts the logarithm of the sum of the exponentials, which is $\log Z$. It first
# subtracts the largest entry, so nothing overflows.

# %% [markdown] tags=["exercise"]
# **2. The rewards of the tokens** *(medium, 10 minutes)*. From scores (B,), log-probabilities (B,
# R) under the policy that sampled and under the reference, the mask (B, R) and `kl_coef`, return
# PPO's rewards (B, R). Return 0 where the mask is false. *This function goes into your
# `my_rlhf.py`.*
#
# *Hint:* padding can hold NaN, and NaN times 0 is NaN. Replace padding with
# `torch.where(mask, x, 0.0)` before you compute. Responses have different lengths, so their last
# tokens stand in different columns.


# %% tags=["exercise"]
def kl_shaped_rewards(
    scores, old_logprobs, ref_logprobs, mask, kl_coef
): ...  # your code


check.kl_shaped_rewards(kl_shaped_rewards)


# %% tags=["solution"]
def kl_shaped_rewards(scores, old_logprobs, ref_logprobs, mask, kl_coef):
    rewards = -kl_coef * torch.where(mask, old_logprobs - ref_logprobs, 0.0)
    rewards[torch.arange(len(scores)), mask.sum(1) - 1] += scores
    return rewards


check.kl_shaped_rewards(kl_shaped_rewards)

# %% [markdown] tags=["exercise"]
# **3. Repair a library** *(medium, 15 minutes)*. A library puts $k_3$ token by token into the loss.
# You may add a second term $\sum_t w_t \log \pi(y_t \mid s_t)$ to the loss, with fixed numbers
# $w_t$. Return $w$ (B, R), from the log-ratios (B, R) and the mask, such that both terms together
# have the true gradient $\nabla \mathrm{KL}(\pi \,\|\, \pi_{\text{ref}})$ on average. Leave out
# what was fixed before a token was drawn, and return 0 where the mask is false.
#
# *Hint:* write down what should multiply $\nabla \log \pi(y_t \mid s_t)$, and what the library has
# there. Padding can hold NaN.


# %% tags=["exercise"]
def missing_weights(log_ratio, mask): ...  # your code


check.missing_weights(missing_weights)


# %% tags=["solution"]
def missing_weights(log_ratio, mask):
    ratio = torch.where(mask, log_ratio, 0.0)
    wanted = ratio.flip(1).cumsum(1).flip(1)  # its own and the later ones
    library = 1 - torch.exp(-ratio)  # the derivative of k3
    return torch.where(mask, wanted - library, 0.0)


check.missing_weights(missing_weights)

# %% [markdown] tags=["exercise"]
# **4. Find the bug** *(medium, 15 minutes)*. A colleague writes $k_1$ in the reward as a loss of its
# own: the sum over the tokens of return times log-probability, where the rewards are the log-ratios.
# To test it she leaves out the score and trains on the penalty alone. From the reference, the KL
# must stay at 0. From the tenth policy of section 4, it must fall to 0. Run the two cells below:
# the figure shows the KL of her two runs.
#
# What do the two curves have in common at the end? What is wrong in `penalty_loss`? Mend its
# gradient without changing its value, run the checker, and draw the curves again.


# %% tags=["exercise"]
def penalty_loss(logprobs, ref_logprobs, mask):
    """The loss of each response, (B,)."""
    new, ref = (torch.where(mask, x, 0.0) for x in (logprobs, ref_logprobs))
    returns = core.reward_to_go(new - ref, mask)
    return (returns * new).sum(1)


check.penalty_loss(penalty_loss)


# %% [markdown] tags=["solution"]
# Both runs end about 0.07 nats from the reference. So the loss has a minimum, but at a
# wrong place. The returns are rewards: fixed numbers that belong to the responses. Here they carry a
# gradient. For the last token, the loss is $\ell_t \log \pi$, and its derivative multiplies
# $\nabla \log \pi$ by $\ell_t + \log \pi = 2 \log \pi - \log \pi_{\text{ref}}$ instead of
# $\ell_t$. On average this is 0 for a policy proportional to $\sqrt{\pi_{\text{ref}}}$, which is
# flatter than the reference. A `.detach()` mends it.


# %% tags=["solution"]
def penalty_loss(logprobs, ref_logprobs, mask):
    new, ref = (torch.where(mask, x, 0.0) for x in (logprobs, ref_logprobs))
    returns = core.reward_to_go(new - ref, mask).detach()
    return (returns * new).sum(1)


check.penalty_loss(penalty_loss)


# %% tags=["exercise", "solution"]
def penalty_alone(logits):
    """The KL during 100 steps on the penalty alone, along the mean gradient."""
    path = []
    for _ in range(100):
        path.append(world.kl(logits, world.ref_logits).item())
        moved = logits.clone().requires_grad_(True)
        losses = penalty_loss(world.logprobs(moved), ref, mask)
        world.expectation(logits, losses).backward()
        logits = logits - 2 * moved.grad
    return path


world = core.World.random(3, 3, seed=0)  # as in section 3
ref, mask = world.logprobs(world.ref_logits), world.response_mask
generator = torch.Generator().manual_seed(1)
direction = torch.randn(7, 3, generator=generator, dtype=torch.float64)
tenth = world.ref_logits + 1.0 * direction
starts = {"from the reference": world.ref_logits, "from the tenth policy": tenth}
show.lines(
    {name: penalty_alone(start) for name, start in starts.items()},
    xlabel="step",
    ylabel="KL to the reference, nats",
)

# %% [markdown] tags=["exercise"]
# **5. Which coefficient?** *(medium, 15 minutes)*. You allow a KL of `kl` nats. `ref_logprobs` and
# `rewards`, (N,), are those of exercise 1. Return the $\beta$ whose Gibbs policy has this KL, one
# number. It lies between 0.01 and 100, and the checker compares six digits.
#
# *Hint:* does the KL rise or fall when $\beta$ grows? Then halve the interval again and again. The
# middle of the *logarithms* of its two ends is a good place to halve it.


# %% tags=["exercise"]
def coefficient_for_kl(ref_logprobs, rewards, kl): ...  # your code


check.coefficient_for_kl(coefficient_for_kl)


# %% tags=["solution"]
def coefficient_for_kl(ref_logprobs, rewards, kl):
    low, high = 0.01, 100.0
    for _ in range(60):
        beta = math.sqrt(low * high)
        best = (ref_logprobs + rewards / beta).log_softmax(0)
        too_far = (best.exp() * (best - ref_logprobs)).sum() > kl
        low, high = (beta, high) if too_far else (low, beta)
    return beta


check.coefficient_for_kl(coefficient_for_kl)

# %% [markdown] tags=["solution"]
# A larger $\beta$ keeps the policy nearer, so the KL falls with $\beta$. If the KL is too large,
# the answer lies above the middle. This is what a controller does, without the noise of samples.

# %% [markdown]
# **6. Design the experiment** *(hard, 15 minutes)*. You get a new reward model and a budget of
# twenty runs. How do you choose `kl_coef`? Say what you hold fixed, what you read off each run, on
# which prompts and by which judge, and what would make you distrust the answer.
#
# <details><summary>What a good answer contains</summary>
#
# - Scale the reward model first (mean 0, standard deviation 1 on the reference's samples).
#   Otherwise the coefficients mean nothing.
# - Try values a factor of two or three apart, wide enough to see both ends: hardly any change, and
#   samples that nobody wants. Better several seeds of a few values than one seed of many.
# - Each run is a point in the plane of KL and a judge that the policy did not train on. Use prompts
#   that are held out for choosing, and others to report the result. Best-of-n is the line to
#   beat: the best of n responses of the reference, by the reward model.
# - Distrust the answer if the score rises and the judge does not, if two seeds differ more than two
#   coefficients, if the best value is the largest or smallest that you tried, or if length or
#   variety changed with it.
# </details>
#
# ## Questions
#
# <details><summary>1. A log shows a KL of −0.4. Is that possible?</summary>
#
# Yes, for the mean of $k_1$ over a small batch near the reference. If it stays negative over many
# batches, the log-ratio is reversed, or the log-probabilities are not at the temperature of the
# sampling.
# </details>
#
# <details><summary>2. Why must the reference give every response a chance? What does top-k sampling do?</summary>
#
# The Gibbs policy only multiplies what is there. Where the reference has probability 0, the
# log-ratio is infinite. Top-k sampling draws only from the k likeliest tokens. Then the tokens come
# from another policy than the one whose log-probabilities you compute. Then the sums are not the KL
# of anything.
# </details>
#
# <details><summary>3. PPO makes several epochs over a batch. Why is the penalty not computed again?</summary>
#
# Rewards belong to the responses that were drawn, and the old policy drew them. How far the policy
# has moved since then is the business of the ratio and its clip.
# </details>
#
# <details><summary>4. Near the reference, how wrong is $k_3$ in the loss?</summary>
#
# For responses of one token it hardly matters: near the reference the two KL divergences agree, and
# so do their gradients. For longer responses the later tokens are still missing.
# </details>
#
# ## Going further
#
# **Sampling from the Gibbs policy without training.** Section 2 is Bayesian inference:
# $\pi_{\text{ref}}$ is the prior, $e^{r/\beta}$ the likelihood, and the Gibbs policy the posterior.
# You can draw from it by rejection: write a response with the reference, and keep it with
# probability $e^{(r - r_{\max})/\beta}$. What you keep is distributed as $\pi^*$. The share that
# you keep is $Z e^{-r_{\max}/\beta}$. For our three responses it is 0.4. For a language model with
# a small $\beta$ it is far too small to be of use.
#
# **The exact KL of each token.** A language model shows the probabilities of *all* tokens. So the
# KL of the next token can be summed over the vocabulary (`core.exact_kl`). Summed over a response,
# it has the right mean and less noise than $k_1$. In the loss, its gradient has the same mean as
# that of $k_2$ token by token: the later tokens are missing. In the reward it is wrong (cosine
# −0.15 at the tenth policy of section 4). The reason is that this KL is the same whichever token is
# drawn at its position. So as a reward it cannot tell a good token from a bad one there.
#
# **On a real policy.** We compared the fine-tuned review model with its base model on 128 samples.
# There we cannot know the true gradient. But a direction that is real is the same in two halves of
# the samples, and noise is not. Token by token in the loss, the cosine between the halves is 0.38
# for $k_2$, 0.29 for $k_3$ and −0.02 for $k_1$.
#
# **Best-of-n on the frontier.** Best-of-n samples n responses of the reference and keeps the one with
# the highest score. In the world of section 3, best-of-16 has a KL of 1.78 nats. No policy with this
# KL has a higher expected score than its Gibbs policy, and that one is better by only 0.015, a
# hundredth of the gain over the reference. On our reviews, best-of-16 has 1.57 gold points at no
# more than 1.84 nats, and PPO with $\beta = 0.5$ has 1.43 at 2.04. (The models of best-of-16 were
# retrained for each seed, those of section 7 were not.) It pays with 16 samples for each response.
#
# **How sure is section 7?** The paired difference in gold between 0.1 and 0 is 0.15 on average,
# with the 95 % interval [0.07, 0.20] over films for the seed that is nearest to 0. Between 0 and
# 0.5 it is more than 1 point on each seed. The peak during training is the best of 24 noisy points,
# chosen afterwards, on 64 titles of the training.
#
# **What the libraries do.** This package, DeepSpeed-Chat and TRL's PPO put $k_1$ token by token
# into the reward. TRL's REINFORCE leave-one-out (RLOO) puts it there too, summed over the response.
# TRL's group relative policy optimisation (GRPO) puts $k_3$ token by token into the loss, and its
# coefficient is 0 by default, so there is no penalty unless you ask for one. OpenRLHF 0.11 and verl
# 0.10 offer both places and several estimators by options. So check two settings before you compare
# a coefficient with a paper: which estimator, and where. The GRPO paper (Shao et al. 2024) chose
# $k_3$ in the loss because it is unbiased. That is true of its value.
#
# **References.** Ziegler et al. 2019, *Fine-tuning language models from human preferences* (section
# 2.2: penalty and controller). Schulman 2020, *Approximating KL divergence* ($k_1$, $k_2$, $k_3$).
# Korbak, Perez and Buckley 2022, *RL with KL penalties is better viewed as Bayesian inference*
# (section 3). Beirami et al. 2024, *Theoretical guarantees on the best-of-n alignment policy*
# (section 3). Rafailov et al. 2023 (DPO, appendix A.1: the Gibbs policy). Shao et al. 2024 (GRPO,
# section 4.1).
#
# *How this lesson is checked:* the estimators and their gradients are tested in
# `tests/core/test_exact.py` and `tests/core/test_kl.py`. Every number about a recorded run is
# compared with the record (`tests/claims/test_lesson_07.py`).
