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
# - choose between three estimators of the KL, for its value and for its gradient,
# - choose the coefficient of a run.
#
# **You need** lesson 04 (the policy gradient, the return of a token), lesson 05 (its small random
# world) and lesson 06 (one step of PPO). About 80 minutes to read and 85 for the exercises.

# %%
import math

import pandas as pd
import torch

from minirlhf import core, experiments, show
from minirlhf.classroom import check

# %% [markdown]
# ## 1. What goes wrong without it
#
# Proximal policy optimisation (PPO) raises the score that a reward model gives. We trained the
# review writer of lesson 06 for 24 steps, with a KL penalty (coefficient 0.5) and without one. Here
# are their samples for three new films (first seed):

# %%
runs = experiments.results("leash")  # PPO with several KL coefficients, three seeds
samples = experiments.samples(runs, ["kl_coef 0.5", "kl_coef 0"]).head(3)
samples.columns = ["with a KL penalty", "without"]
show.texts(samples)

# %% [markdown]
# Without the penalty, the policy writes nearly the same review for every film: *funny and funny and
# funny*. The mean score is 4.0, and with the penalty only 1.2. (Means over 76 films and three seeds.
# Before the training, scores have the mean 0 and the standard deviation 1.)
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
# - $\ell(y) = \log \pi(y) - \log \pi_{\text{ref}}(y)$ is the **log-ratio** of the response. Its
#   unit is the **nat**: at 1 nat, the policy writes $y$ $e$ = 2.7 times as often as the reference.
#   It is negative if the policy writes $y$ less often.
# - The **Kullback-Leibler (KL) divergence** is the mean log-ratio of the policy's own responses:
#   $\mathrm{KL}(\pi \,\|\, \pi_{\text{ref}}) = \mathbb{E}_{y \sim \pi}[\ell(y)]$. It is 0 if the
#   two policies are equal, otherwise it is positive.
# - $\beta$ is the **KL coefficient** (in code `kl_coef`).
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
# **Predict.** Take a quarter of this coefficient (the factor per point is $2^4 = 16$), and ten
# times this one. For each: which response is the likeliest, and how likely is it, roughly?

# %% tags=["predict"]
policies = {"reference": three.probs(three.ref_logits)}
for times in (10, 1, 0.25):
    beta = times / math.log(2)
    policies[f"Gibbs policy, beta = {beta:.2f}"] = three.gibbs(beta=beta)
show.policy_bars(three.labels, policies, rewards=three.rewards)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# - $\beta = 14.4$: *A dull film.*, with 0.579. The reference has 0.6. A large $\beta$ leaves the
#   policy where it was.
# - $\beta = 0.36$: *A great film!*, with 0.826. The products are 0.6, 0.3 · 16 = 4.8 and 0.1 · 256
#   = 25.6. A small $\beta$ gives nearly everything to the response with the highest score.
# </details>
#
# **Why is it the best?** $J$ is the mean of $r(y) - \beta\, \ell(y)$ over the policy's responses. We
# rewrite this number, first the score. Take the logarithm of $\pi^*$:
#
# $$ \log \pi^*(y) = \log \pi_{\text{ref}}(y) + \frac{r(y)}{\beta} - \log Z . $$
#
# Solve for the score:
#
# $$ r(y) = \beta \log \pi^*(y) - \beta \log \pi_{\text{ref}}(y) + \beta \log Z . $$
#
# The penalty is
#
# $$ \beta\, \ell(y) = \beta \log \pi(y) - \beta \log \pi_{\text{ref}}(y) . $$
#
# Subtract it from the score. $\log \pi_{\text{ref}}$ cancels:
#
# $$ r(y) - \beta\, \ell(y) = \beta \log Z - \beta\, \big( \log \pi(y) - \log \pi^*(y) \big) . $$
#
# Take the mean over the policy's responses. $Z$ is the same for all of them. The bracket is a
# log-ratio, with $\pi^*$ as the reference, so its mean is a KL:
#
# $$ J(\pi) = \beta \log Z - \beta\, \mathrm{KL}(\pi \,\|\, \pi^*) . $$
#
# The first term does not depend on $\pi$. The KL is 0 for $\pi = \pi^*$, otherwise it is positive. So
# no other policy is as good. In our table:
#
# $$ J(\pi^*) = \beta \log Z = 1.44 \cdot \log 1.6 = 0.68 , \qquad J(\pi_{\text{ref}}) =
# 0.3 \cdot 1 + 0.1 \cdot 2 = 0.5 . $$

# %% [markdown]
# ## 3. From responses to tokens
#
# The probability of a response is a product over its tokens, so its log-ratio is a sum:
#
# $$ \ell(y) = \sum_t \ell_t , \qquad
# \ell_t = \log \pi(y_t \mid s_t) - \log \pi_{\text{ref}}(y_t \mid s_t) . $$
#
# So lesson 06 gave every token the reward $-\beta\, \ell_t$, and the last one the score as well.
# The rewards of a response add up to $r(y) - \beta\, \ell(y)$, and the mean of this is $J$. Here is
# a response from the end of the PPO run in lesson 06 ($\beta = 0.5$), a row for each token:

# %%
run = experiments.results("microscope")
one = run[(run.source == "fresh") & (run.step == 24) & (run.prompt == "amys o\n")]
columns = {"logprob": "log pi", "ref_logprob": "log pi_ref", "kl": "log-ratio"}
columns["reward"] = "reward"
one.set_index("token")[list(columns)].rename(columns=columns).round(3)

# %% [markdown]
# - *heart* has the log-ratio 1.407: the policy gives it 3.2 % and the reference only 0.8 %. Its
#   reward is −0.704.
# - *treat* has −1.270. The reference likes it more, so its reward is *positive*: 0.635.
# - All seven log-ratios add up to 0.96 nats: one sample of the KL. The last token is the
#   end-of-sequence token (EOS). Its reward has the score in it.

# %% [markdown]
# ## 4. Three estimators: their value
#
# A run estimates the KL from samples. Each gives a log-ratio $\ell$. Its mean is the KL, but one sample
# can be negative, and a KL cannot. So two other formulas are in use (Schulman 2020):
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
# - **$k_1$**: its mean is the KL, by definition.
# - **$k_3$**: its mean is the KL too. The mean of $e^{-\ell} = \pi_{\text{ref}} / \pi$ under $\pi$
#   is the sum of $\pi_{\text{ref}}$, which is 1. So $e^{-\ell} - 1$ has the mean 0. And $k_3$ is
#   never negative, because $e^{-\ell} \ge 1 - \ell$.
# - **$k_2$** is never negative either, but its mean is only near the KL.
# </details>
#
# **How noisy are they?** We ask this in the small random world of lesson 05. It has three words:
# *a*, *b*, and a full stop that ends the response. A response has at most three tokens, so there
# are 15 responses.
#
# We take two policies, one near the reference and one far from it. An estimator is computed from the
# log-ratio $\ell_t$ of each token, and summed over the tokens of a response. Its mean and standard
# deviation are exact: sums over all 15 responses.
#
# **Predict.** Which estimator is the noisiest near the reference, and which far from it?

# %% tags=["predict"]
world = core.World.random(3, 3, seed=0)  # 3 words, responses of at most 3 tokens
ref, real = world.logprobs(world.ref_logits), world.response_mask
generator = torch.Generator().manual_seed(1)
direction = torch.randn(7, 3, generator=generator, dtype=torch.float64)
table = pd.DataFrame(index=["k1", "k2", "k3"])
for name, size in {"near": 0.1, "far": 2.0}.items():
    logits = world.ref_logits + size * direction
    for k in (core.k1, core.k2, core.k3):
        values = k(world.logprobs(logits), ref, real).sum(1)  # of each response
        mean = world.expectation(logits, values)  # the sum of pi(y) * values[y]
        noise = world.expectation(logits, (values - mean) ** 2).sqrt()
        table.loc[k.__name__, f"{name}: mean"] = mean.item()
        table.loc[k.__name__, f"{name}: standard deviation"] = noise.item()
table.round(3)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# - The means of $k_1$ and $k_3$ are equal: they are the KL, far away 0.471 nats. $k_2$ is too low
#   there, with 0.309.
# - Near the reference, $k_1$ is about ten times as noisy as the other two. The log-ratios are small
#   there: if $\ell = k_1$ is 0.1, then $k_2$ and $k_3$ are only 0.005.
# - Far away, $k_3$ is the noisiest by far, with 10.461 nats where $k_1$ has 0.581. 99 % of its
#   variance comes from one response, *a.*. The log-ratio of its full stop is −6.67, so
#   $e^{-\ell_t}$ is 791. The policy writes *a.* only twice in 10,000 responses.
# </details>

# %% [markdown]
# ## 5. Their gradient is another question
#
# In training only the gradient counts. Let $f(y)$ be an estimator. Its mean is the sum
# $\sum_y \pi(y) f(y)$. The policy stands in it twice: in the weight $\pi(y)$, and inside $f(y)$. So
# the product rule gives two parts. With $\nabla \pi = \pi\, \nabla \log \pi$ (lesson 04) they are
#
# $$ \nabla\, \mathbb{E}_{y \sim \pi}[f(y)] = \mathbb{E}[\nabla f(y)] +
# \mathbb{E}[f(y)\, \nabla \log \pi(y)] . $$
#
# - **Add $f$ to the loss**: you get the first part only. The batch holds responses already drawn.
#   `backward` cannot see that a changed policy would draw others.
# - **Subtract $f$ from the reward**: you get the second part only, with a plus: the loss is minus
#   the reward. This is lesson 04's policy gradient, with the fixed number $f(y)$ as the score.
#
# ```
# f in the loss:     loss = policy_loss(score) + beta * f
# f in the reward:   loss = policy_loss(score - beta * f.detach())
# ```
#
# **By hand**, for $k_1$ and the three responses. The policy is a softmax of three logits, and we
# take the derivative with respect to the logit of *great*. For $\log \pi(y)$ this is
# $1 - \pi(\textit{great})$ if $y$ is *great*, otherwise $-\pi(\textit{great})$ (lesson 04). The
# reference is fixed, so $\nabla k_1 = \nabla \ell = \nabla \log \pi$.
#
# | response | $\pi$ | $\ell$ | $\nabla \log \pi$ | loss: $\pi\, \nabla \ell$ | reward: $\pi\, \ell\, \nabla \log \pi$ |
# |---|---|---|---|---|---|
# | dull | 0.375 | −0.47 | −0.25 | −0.094 | 0.044 |
# | good | 0.375 | 0.22 | −0.25 | −0.094 | −0.021 |
# | great | 0.25 | 0.92 | 0.75 | 0.188 | 0.172 |
# | total | | | | 0 | 0.195 |
#
# In the loss, the three terms cancel. This is so for every policy, because the probabilities add up
# to 1: $\sum_y \pi \nabla \log \pi = \nabla \sum_y \pi = \nabla 1 = 0$. So **$k_1$ in the loss has
# no gradient on average**, only noise. The second part is then the whole gradient:
#
# $$ \nabla\, \mathrm{KL}(\pi \,\|\, \pi_{\text{ref}}) = \mathbb{E}[\ell\, \nabla \log \pi] . $$
#
# So **$k_1$ in the reward has the gradient of the KL.**
#
# **Predict.** The next table has the mean gradient of six penalties, with a column for each logit.
# The last row is the gradient of the KL itself. Which of the six rows are equal to it? *Hint:* what
# is $\nabla k_2$?

# %% tags=["predict"]
logits = by_hand.log()[None].requires_grad_(True)
new = three.logprobs(logits)  # (3, 1): the numbers of log_pi, with a gradient
means = {}
for k in (core.k1, core.k2, core.k3):
    # by_hand weighs the responses. It is a fixed number: they are already drawn
    means[f"{k.__name__} in the loss"] = by_hand @ k(new, log_ref, mask)
    score = k(log_pi, log_ref, mask)  # fixed numbers, so only new is differentiated:
    means[f"{k.__name__} in the reward"] = by_hand @ (score * new)
means["the KL itself"] = three.kl(logits, three.ref_logits)
table = pd.DataFrame(columns=["dull", "good", "great"])
for name, mean in means.items():
    gradient = torch.autograd.grad(mean, logits, retain_graph=True)[0]
    table.loc[name] = gradient[0].tolist()
table.round(3)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# - **$k_1$ in the reward**, as we found, **and $k_2$ in the loss**.
#   $\nabla \tfrac12 \ell^2 = \ell\, \nabla \ell = \ell\, \nabla \log \pi$, and that is the same
#   thing. The estimator with the wrong value has the right gradient!
# - **$k_2$ and $k_3$ in the reward** even have the wrong sign for *good*: −0.049 and −0.043 instead
#   of 0.032. The policy writes *good* too often, with 0.375 instead of 0.3. But its $k_2$ is the
#   smallest of the three, so it is punished least, and becomes more frequent.
# - **$k_3$ in the loss** is near, but not equal (section 6).
# </details>

# %% [markdown]
# ## 6. $k_3$ in the loss follows the other KL
#
# Differentiate $k_3 = e^{-\ell} - 1 + \ell$:
#
# $$ \nabla k_3 = (1 - e^{-\ell})\, \nabla \log \pi . $$
#
# **By hand**, for the logit of *great* again:
#
# | response | $\pi$ | $e^{-\ell} = \pi_{\text{ref}} / \pi$ | $1 - e^{-\ell}$ | $\nabla \log \pi$ | loss: $\pi\, (1 - e^{-\ell})\, \nabla \log \pi$ |
# |---|---|---|---|---|---|
# | A dull film. | 0.375 | 1.6 | −0.6 | −0.25 | 0.056 |
# | A good film. | 0.375 | 0.8 | 0.2 | −0.25 | −0.019 |
# | A great film! | 0.25 | 0.4 | 0.6 | 0.75 | 0.113 |
# | the total | | | | | 0.15 |
#
# The KL has 0.195. What has 0.15? Split the bracket:
#
# $$ \mathbb{E}[\nabla k_3] = \sum_y \pi(y)\, \nabla \log \pi(y) -
# \sum_y \pi(y)\, e^{-\ell(y)}\, \nabla \log \pi(y) . $$
#
# The first sum is 0 (section 5). In the second, $\pi\, e^{-\ell}$ is $\pi_{\text{ref}}$, which is
# fixed. So
#
# $$ \mathbb{E}[\nabla k_3] = -\sum_y \pi_{\text{ref}}(y)\, \nabla \log \pi(y)
# = \nabla \sum_y \pi_{\text{ref}}(y) \log \frac{\pi_{\text{ref}}(y)}{\pi(y)}
# = \nabla\, \mathrm{KL}(\pi_{\text{ref}} \,\|\, \pi) . $$
#
# This is the KL in the other direction: a mean over the *reference's* responses.
#
# **What does it change?** Take a policy that always writes *A great film!*. Our KL is
# $\log(1 / 0.1) = 2.3$ nats, and a high score can make up for it. The other KL is infinite, because
# this policy never writes *dull* or *good*. So with our KL, training can give up bad responses.
# With the other, it must keep a bit of everything that the reference writes.

# %% [markdown]
# ## 7. Responses of several tokens
#
# In the loss an estimator can be computed in two ways:
#
# - **whole response**: one term, from the sum of the log-ratios. $k_2$ is
#   $\tfrac12 \big( \sum_t \ell_t \big)^2$.
# - **token by token**: the sum of one term per token. $k_2$ is $\sum_t \tfrac12 \ell_t^2$.
#
# Sections 5 and 6 hold for the whole response. Libraries mostly compute token by token. Then the
# gradient of $k_2$ in the loss is *not* that of the KL. And the gradient of $k_3$ is *not* that of
# the other KL.
#
# Take a response of three tokens. Each penalty multiplies $\nabla \log \pi(y_t \mid s_t)$ by a
# number. In the reward, it is the return: the sum of the token's own reward and the later ones
# (lesson 04). In the loss, the derivative shows it:
#
# $$ \nabla\, \tfrac12 \ell_t^2 = \ell_t\, \nabla \log \pi(y_t \mid s_t) , \qquad
# \nabla\, \tfrac12 \Big( \sum_s \ell_s \Big)^2 =
# \sum_t \Big( \sum_s \ell_s \Big) \nabla \log \pi(y_t \mid s_t) . $$
#
# | | first token | second token | third token |
# |---|---|---|---|
# | log-ratio $\ell_t$ | 0.5 | −0.2 | 1.0 |
# | $k_2$ in the loss, token by token: its own log-ratio | 0.5 | −0.2 | 1.0 |
# | $k_3$ in the loss, token by token: $1 - e^{-\ell_t}$ (section 6) | 0.39 | −0.22 | 0.63 |
# | $k_1$ in the reward: its own and the later ones | 1.3 | 0.8 | 1.0 |
# | $k_2$ in the loss, whole response: all of them | 1.3 | 1.3 | 1.3 |
#
# The second token has a negative log-ratio, so token by token the penalty makes it *more* likely.
# But it led to a third token with a large one. In the reward that counts. The last row also counts
# the *earlier* tokens. They are fixed when a token is drawn, so they add only noise (lesson 04,
# section 4).
#
# **What does it do to training?** We train in the small world, from the reference, with
# $\beta = 0.5$. Each of 150 steps follows the mean gradient of the score minus $\beta$ times that
# of the penalty. The figure shows the KL and $J$ after each step. No policy can have a higher $J$ than
# the Gibbs policy (dotted).


# %%
def train(k=None, beta=0.5):
    """150 steps with k token by token in the loss. None: k1 in the reward."""
    logits, kl, objective = world.ref_logits, [], []
    for _ in range(150):
        kl.append(world.kl(logits, world.ref_logits))
        objective.append(world.objective(logits, beta=beta))
        step = world.gradient(logits, beta=beta)  # of J, which has k1 in the reward
        if k is not None:
            moved = logits.clone().requires_grad_(True)
            values = k(world.logprobs(moved), ref, real).sum(1)
            loss = world.expectation(logits, values)  # weights pi(y), held fixed
            step = world.gradient(logits) - beta * torch.autograd.grad(loss, moved)[0]
        logits = logits + 2 * step
    return kl, objective


# %%
kl, objective = {}, {}
kl["k1 in the reward"], objective["k1 in the reward"] = train()
kl["k2 token by token"], objective["k2 token by token"] = train(core.k2)
kl["k3 token by token"], objective["k3 token by token"] = train(core.k3)
best = world.gibbs_logits(beta=0.5)
goal = {
    "KL, nats": {"Gibbs policy": world.kl(best, world.ref_logits)},
    "objective J": {"Gibbs policy": world.objective(best, beta=0.5)},
}
panels = {"KL, nats": kl, "objective J": objective}
show.lines(panels, xlabel="step", reference=goal)

# %% [markdown]
# | penalty | KL after 150 steps, nats | $J$ |
# |---|---|---|
# | $k_1$ in the reward | 0.95 | 0.56 |
# | $k_2$ in the loss, token by token | 1.27 | 0.52 |
# | $k_3$ in the loss, token by token | 0.75 | 0.49 |
# | $k_1$ in the loss (not drawn) | 2.8 | 0.14 |
# | the Gibbs policy | 0.97 | 0.56 |
#
# - **$k_1$ in the reward** goes to the Gibbs policy.
# - **Token by token in the loss**, $k_2$ is too weak here and $k_3$ too strong: both leave out the
#   later tokens. Other worlds can differ ("Going further").
# - **$k_1$ in the loss** trains as without a penalty.

# %% [markdown]
# ## 8. Which estimator, and where
#
# | what for | choose | because |
# |---|---|---|
# | to report the KL | $k_1$, averaged over the batch | its mean is right, and its noise stays moderate |
# | to report it near the reference | $k_3$ | its mean is right, with less noise there. Far away one response can spoil the mean |
# | to train | $k_1$ in the reward, for each token | the right gradient |
# | to train, if it must be in the loss | $k_2$ of the whole response | the right gradient, with more noise (by 5 to 14 % in the small world) |
# | to train, as many libraries do | $k_3$ token by token in the loss | works as a brake, but leads to another policy |
# | never | $k_1$ in the loss; $k_2$ or $k_3$ in the reward | no gradient; a wrong one |

# %% [markdown]
# ## 9. Reward against KL: recorded runs
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
# But even so it is far above the 1.43 of our default, $\beta = 0.5$. By gold, *funny and funny* is
# the better review.
# </details>
#
# The table adds the score and the variety: *distinct word pairs* is the share of different pairs
# among all pairs of neighbouring words. (Brackets: lowest and highest of three runs.)

# %% tags=["predict"]
measures = {"kl": "KL, nats", "gold": "gold", "proxy": "score"}  # a proxy for gold
measures["distinct_2"] = "distinct word pairs"
experiments.shown(fixed, measures)

# %% [markdown]
# - **The score rises to the end**, to 4.03. It cannot warn you: training maximises it.
# - **Variety warns before gold does.** It falls from 81 % at 0.5 to 36 % at 0.1, where gold is
#   highest. (The reference has 86 %.)
#
# **How far may you believe gold?** Gold is a model too, fitted to what people write. With no
# penalty the KL is 91 nats. Gold has seen nothing like these responses, so its score is a guess.
# So test gold: for 30 films, look at one sample from each of two neighbouring coefficients, without
# their names, and choose. If you choose the coefficient with more gold at least 21 times, believe
# gold between these two. (By guessing you get that far in 2 % of such tests.)

# %% [markdown]
# ## 10. Choosing the coefficient
#
# Set a limit for the variety, and strike out the coefficients below it. Strike out those whose
# samples you do not accept. Of the rest take the one with the highest gold. Here are samples for two
# films (first seed). 0 stands in section 1.

# %%
names = ["kl_coef 2", "kl_coef 1", "kl_coef 0.5", "kl_coef 0.25", "kl_coef 0.1"]
show.texts(experiments.samples(runs, names).loc[["amys o", "big bad love"]].T)

# %% [markdown]
# Which rows do you strike out?
#
# <details><summary>What we struck out</summary>
#
# - **Variety**: our limit is nine tenths of the reference's, 78 %. At 0.25 it is 68 %. So we struck
#   out 0.25, 0.1 and 0.
# - **Samples**: the sentences at 2 and 1 are odd, but all different. One at 0.1 is
#   *A very funny, funny, funny film.*
#
# Of the rest, 0.5 has the highest gold, 1.43. So it is our default. The limit is a choice, and we
# made it after the runs. If 60 % is enough for you, take 0.25, with a gold score of 2.01.
# </details>
#
# **$\beta$ has a unit**: points of score per nat. If you double all scores, double $\beta$, because
# only $r / \beta$ stands in the Gibbs policy. So first scale the reward model (lesson 08).

# %% [markdown]
# ## What to remember
#
# - Without a penalty, training finds the errors of the reward model.
# - The best policy under a penalty is the Gibbs policy, $\pi_{\text{ref}}\, e^{r/\beta} / Z$.
# - $k_1$ and $k_3$ have the KL as their mean. For a gradient, this says nothing.
# - $k_1$ in the reward has the right gradient. In the loss, $k_2$ of the whole response has it too,
#   and $k_3$ of the whole response follows the other KL.
# - Token by token in the loss, $k_2$ and $k_3$ leave out the later tokens.
# - Choose $\beta$ with your own eyes and the variety first, then with a second judge.
#
# ## Exercises
#
# Solutions are in `solutions/07_the_kl_penalty.ipynb`.

# %% [markdown] tags=["exercise"]
# **1. The rewards of the tokens** *(easy, 10 minutes)*. From scores (B,), log-probabilities (B, R)
# under the policy that sampled and under the reference, the mask (B, R) and `kl_coef`, return PPO's
# rewards (B, R). Return 0 where the mask is false. *This function goes into your `my_rlhf.py`.*
#
# *Hint:* padding can hold NaN, and NaN times 0 is NaN. Replace padding with
# `torch.where(mask, x, 0.0)` before you compute. Responses have different lengths.


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
# **2. Repair a library** *(medium, 20 minutes)*. A library puts $k_3$ token by token into the loss.
# You may add a second term $\sum_t w_t \log \pi(y_t \mid s_t)$ to the loss, with fixed numbers
# $w_t$. For each token, section 7's number for $k_3$ plus $w_t$ must equal its number for $k_1$ in
# the reward. Return $w$ (B, R), from the log-ratios (B, R) and the mask. Return 0 where the mask is
# false. (Other weights have the true gradient on average, too. The checker tells you if yours do.)
#
# *Hint:* begin with a response of one token. There $w$ is not 0. Padding can hold NaN.


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

# %% [markdown] tags=["solution"]
# The true gradient multiplies $\nabla \log \pi(y_t \mid s_t)$ by the log-ratios from token $t$ on.
# The library multiplies it by $1 - e^{-\ell_t}$. The weights are the difference. For a response of
# one token it is $\ell - 1 + e^{-\ell}$, which is $k_3$ itself! So in the loss $k_3$ lacks exactly
# the part that comes from drawing other responses: the second part of section 5's product rule.
#
# For several tokens you can also add this second part, $w_t = \sum_{s \ge t} k_3(\ell_s)$. Its mean
# is right as well, in another way. But in section 7's world it has more noise.

# %% [markdown] tags=["exercise"]
# **3. Find the bug** *(medium, 20 minutes)*. A colleague writes $k_1$ in the reward as a loss of its
# own: the sum over the tokens of return times log-probability, where the rewards are the log-ratios.
# To test it she leaves out the score and trains on the penalty alone, in the small world. From the
# reference, the KL must stay at 0. From another policy, it must fall to 0. Run the cell: the
# figure shows the KL of her two runs.


# %% tags=["exercise", "solution"]
def her_loss(logprobs, ref_logprobs, mask):
    """The loss of each response, (B,)."""
    new, ref = (torch.where(mask, x, 0.0) for x in (logprobs, ref_logprobs))
    returns = core.reward_to_go(new - ref, mask)
    return (returns * new).sum(1)


def penalty_alone(loss, logits):
    """The KL during 100 steps on the penalty alone, along the mean gradient."""
    path = []
    for _ in range(100):
        path.append(world.kl(logits, world.ref_logits).item())
        moved = logits.clone().requires_grad_(True)
        losses = loss(world.logprobs(moved), ref, real)
        world.expectation(logits, losses).backward()
        logits = logits - 2 * moved.grad
    return path


def draw(loss):
    generator = torch.Generator().manual_seed(1)
    direction = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    runs = {"from the reference": penalty_alone(loss, world.ref_logits)}
    runs["from another policy"] = penalty_alone(loss, world.ref_logits + direction)
    return show.lines(runs, xlabel="step", ylabel="KL to the reference, nats")


world = core.World.random(3, 3, seed=0)  # as in section 4
ref, real = world.logprobs(world.ref_logits), world.response_mask
draw(her_loss)

# %% [markdown] tags=["exercise"]
# 1. Both runs end at nearly the same policy. After every prefix it is *flatter* than the reference:
#    the probabilities of the next words are closer to each other. Why? Which policy would it be, if
#    all responses had one token? *Hint:* write down what multiplies $\nabla \log \pi$. If it is the
#    same number for all words, the mean gradient is 0 (section 5).
# 2. Mend the gradient of `penalty_loss` without changing its value. The checker says when it is
#    right. Then draw the curves again, in the cell after it.


# %% tags=["exercise"]
def penalty_loss(logprobs, ref_logprobs, mask):
    """The loss of each response, (B,)."""
    new, ref = (torch.where(mask, x, 0.0) for x in (logprobs, ref_logprobs))
    returns = core.reward_to_go(new - ref, mask)
    return (returns * new).sum(1)


check.penalty_loss(penalty_loss)


# %% tags=["solution"]
def penalty_loss(logprobs, ref_logprobs, mask):
    new, ref = (torch.where(mask, x, 0.0) for x in (logprobs, ref_logprobs))
    returns = core.reward_to_go(new - ref, mask).detach()
    return (returns * new).sum(1)


check.penalty_loss(penalty_loss)

# %% tags=["exercise", "solution"]
draw(penalty_loss)

# %% [markdown] tags=["exercise"]
# <details><summary>The answer to question 1. Open it when the checker has passed your mend.</summary>
#
# For a single token her loss is $\ell \log \pi$. By the product rule, its derivative multiplies
# $\nabla \log \pi$ by $\ell + \log \pi = 2 \log \pi - \log \pi_{\text{ref}}$, instead of by
# $\ell$. This is the same number for all words if $\pi$ is proportional to
# $\sqrt{\pi_{\text{ref}}}$. The square root brings probabilities nearer to each other: 0.64 and 0.04
# become 0.8 and 0.2, before they are divided by their sum. So the policy is flatter.
# </details>

# %% [markdown] tags=["solution"]
# Before the repair, both runs end about 0.07 nats from the reference. So the loss has a minimum, but
# at a wrong place. The returns are rewards: fixed numbers that belong to the responses. Here they
# carry a gradient. A `.detach()` mends it.

# %% [markdown] tags=["exercise"]
# **4. Which coefficient?** *(medium, 20 minutes)*. `ref_logprobs` are the log-probabilities of all
# N responses under the reference, (N,), and `rewards` their scores, (N,).
#
# (a) Return $\log \pi^*$ of each response, (N,), for a given $\beta$. A score of 1,000 is possible.


# %% tags=["exercise"]
def gibbs_logprobs(ref_logprobs, rewards, beta): ...  # your code


check.gibbs_logprobs(gibbs_logprobs)


# %% tags=["solution"]
def gibbs_logprobs(ref_logprobs, rewards, beta):
    return (ref_logprobs + rewards / beta).log_softmax(0)


check.gibbs_logprobs(gibbs_logprobs)


# %% [markdown] tags=["exercise"]
# (b) You allow a KL of `kl` nats. Return the $\beta$ whose Gibbs policy has this KL, one number. It
# lies between 0.01 and 100, and the checker compares six digits.
#
# *Hint* for (b): there is no formula. Does the KL rise or fall when $\beta$ grows? Then search.


# %% tags=["exercise"]
def coefficient_for_kl(ref_logprobs, rewards, kl): ...  # your code


check.coefficient_for_kl(coefficient_for_kl)


# %% tags=["solution"]
def coefficient_for_kl(ref_logprobs, rewards, kl):
    low, high = 0.01, 100.0
    for _ in range(60):
        beta = math.sqrt(low * high)
        best = gibbs_logprobs(ref_logprobs, rewards, beta)
        too_far = (best.exp() * (best - ref_logprobs)).sum() > kl
        low, high = (beta, high) if too_far else (low, beta)
    return beta


check.coefficient_for_kl(coefficient_for_kl)

# %% [markdown] tags=["solution"]
# (a) `log_softmax` subtracts $\log Z$, the logarithm of the sum of the exponentials. It first
# subtracts the largest entry, so nothing overflows.
#
# (b) A larger $\beta$ keeps the policy nearer, so the KL falls with $\beta$. If the KL is too large,
# the answer lies above the middle. We halve the interval of the logarithms again and again.

# %% [markdown]
# **5. Design the experiment** *(hard, 15 minutes)*. You get a new reward model and a budget of
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
#   that are held out for choosing, and others to report the result. Best-of-n ("Going further") is
#   the line to beat.
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
# batches, the log-ratio is reversed, or the log-probabilities are not computed at the temperature
# (lesson 03) with which the tokens were drawn.
# </details>
#
# <details><summary>2. Why must the reference give every response a chance?</summary>
#
# The Gibbs policy only multiplies what is there. Where the reference has probability 0, the
# log-ratio is infinite.
#
# Some samplers draw only from the few likeliest tokens ("top-k"). Then the tokens come from another
# policy than the one whose log-probabilities you compute, and their mean log-ratio is no KL.
# </details>
#
# <details><summary>3. PPO makes several epochs over a batch. Why is the penalty not computed again?</summary>
#
# Rewards belong to the responses that were drawn, and the old policy drew them. How far the policy
# has moved since then is the business of the ratio and its clip.
# </details>
#
# <details><summary>4. Near the reference, how wrong is k₃ in the loss?</summary>
#
# For responses of one token it hardly matters: near the reference the two KL divergences agree, and
# so do their gradients. For longer responses the later tokens are still missing.
# </details>
#
# ## Going further
#
# **A controller.** You name a target KL, and $\beta$ follows. After each batch of $n$ responses
# (Ziegler et al. 2019):
#
# $$ \beta \leftarrow \beta\, \Big(1 + u\, \frac{n}{h}\Big) , \qquad
# u = \text{clip}\Big(\frac{\text{measured KL}}{\text{target}} - 1,\, -0.2,\, 0.2\Big) . $$
#
# In words: if the KL is above the target, raise $\beta$. The horizon $h$ says how slowly. For
# example, let $\beta = 0.1$, the KL 6, the target 2, $n = 64$ and $h = 100$. Then $6/2 - 1 = 2$ is
# clipped to 0.2, and $\beta$ becomes $0.1 \cdot (1 + 0.2 \cdot 0.64) = 0.1128$
# (`core.adapt_kl_coef`).
#
# **Predict.** We ran PPO with this controller, from $\beta = 0.1$. (Fixed at 0.1, the KL ends at 9
# nats. Fixed at 0.5, it ends at 2, the target.) Sketch the KL over the 24 steps.

# %% tags=["predict"]
history = experiments.results("leash_history")
controlled = history[history.variant == "target 2 nats"]
show.curves(controlled, columns=["kl", "kl_coef"])

# %% [markdown]
# <details><summary>What you should see</summary>
#
# The KL rises to about 9 nats, more than four times the target. At the last step it is still 5.1.
# At first the KL is below the target, so the controller lowers $\beta$ to 0.06. Then the policy moves
# fast, but $\beta$ grows by at most 12.8 % per step. It needs the whole run to reach 0.5. So in a
# short run choose $\beta$ yourself. (We tried one target, horizon and start.)
# </details>
#
# **Sampling from the Gibbs policy without training.** You can do it by rejection: write a response
# with the reference, and keep it with probability $e^{(r - r_{\max})/\beta}$. What you keep is
# distributed as $\pi^*$. For our three responses you keep a share of 0.4. For a language model with
# a small $\beta$ the share is far too small to be of use.
#
# **The exact KL of each token.** A language model shows the probabilities of *all* tokens. So the
# KL of the next token can be summed over the vocabulary (`core.exact_kl`). Summed over a response,
# it has the right mean and less noise than $k_1$. In the loss, its gradient has the same mean as
# that of $k_2$ token by token: the later tokens are missing. In the reward, the other part is
# missing. A token's own KL is the same whichever token is drawn, so it cannot tell a good token from
# a bad one. Only the exact KLs of the later tokens can, through the return. So use *both* places: each
# token's own exact KL in the loss, and those of the later tokens in its return. Then the gradient is
# right, and in the small world its variance is about a third of that of $k_1$ in the reward.
#
# **Other worlds.** We repeated the training of section 7 in 30 small worlds (`core.World.random` with
# the seeds 0 to 29). $k_2$ token by token ends with a higher KL than $k_1$ in the reward in 27 of
# them. $k_3$ token by token ends with a lower KL in 20. So $k_2$ is mostly too weak and $k_3$ mostly
# too strong, but neither is a rule.
#
# **How much noise do the earlier tokens add?** We compared $k_2$ of the whole response with $k_1$ in
# the reward, for policies near the reference and far from it (section 4). The standard deviation of the
# gradient is larger by 5 to 14 %. Responses have at most three tokens there. We did not measure it
# for longer ones.
#
# **On a real policy.** The policy is the review writer before PPO, and the reference is the model
# that it was fine-tuned from (lesson 03). We took 128 samples. We cannot know the true gradient.
# But a real direction is the same in two halves of the samples (cosine 1), and noise is not (cosine
# 0). Token by token in the loss, the cosine between the halves is 0.38 for $k_2$ and 0.29 for
# $k_3$. For $k_1$ it is less than 0.1 away from 0.
#
# **Is it worth it?** Best-of-16 (lesson 01) samples 16 responses of the reference and keeps the one
# with the highest score. It has 1.57 gold points: *more* than PPO at our default, at a lower KL (at
# most 1.84 nats instead of 2.04). But it pays 16 samples for each response, forever. PPO pays once.
# (Its models were retrained for each seed, those of PPO were not. 1.84 is an upper bound for its KL,
# $\log n - (n - 1)/n$.)
#
# **Why is best-of-n so good?** In the small world we can compare. Best-of-16 has a KL of 1.78 nats
# there. The Gibbs policy with this KL has the highest expected score that is possible. It is better
# by only 0.015, a hundredth of the gain over the reference. So best-of-n is nearly a Gibbs policy.
#
# **How sure is section 9?** Is gold at 0.1 really higher than at 0? On the same films it is higher
# by 0.15 on average over the seeds. Each seed has a 95 % interval over films. The one that comes
# nearest to 0 is [0.07, 0.20]. Gold at 0 is higher than at 0.5 by more than 1 point on each seed.
# In the batches of the training, gold without a penalty was 3.07 at step 10, and 2.64 at the last
# step. The peak of 3.07 is the best of 24 noisy points, chosen afterwards, on 64 titles.
#
# These intervals do not include how much a run changes when it is repeated. Lesson 06b has runs with
# the same settings and the same three seeds as 0.5 here (*as it is*). There gold is 1.36 and the KL
# 1.84, and here they are 1.43 and 2.04. In their first four steps the runs of a seed differ only
# by rounding: the KL by less than 0.000001 nats. Sampling makes this grow. At the end, for one seed,
# gold differs by 0.14. So do not choose between coefficients whose gold differs by only 0.1.
#
# **How far is 91 nats?** Without a penalty a response has about 29 tokens. So these are about 3 nats
# per token: each is $e^3$ = 20 times as likely as under the reference.
#
# **What the libraries do.** This package, DeepSpeed-Chat and TRL's PPO put $k_1$ token by token
# into the reward. TRL's REINFORCE leave-one-out (RLOO) puts it there too, summed over the response.
# TRL's group relative policy optimisation (GRPO) puts $k_3$ token by token into the loss. Its
# coefficient is 0 by default, so there is no penalty unless you ask for one. OpenRLHF 0.11 and verl
# 0.10 offer both places and several estimators. So before you compare a coefficient with a paper,
# check the estimator and the place. The GRPO paper (Shao et al. 2024) chose $k_3$ in the loss
# because it is unbiased. That is true of its value.
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
