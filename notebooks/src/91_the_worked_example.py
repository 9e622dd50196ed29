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
# # 91 · The worked example, on one page
#
# This is a reference sheet, not a lesson. With it you can
#
# - follow each formula of the course on paper, with the same small example,
# - check your own code: every number is followed by the function that gives it.
#
# **You need** the lesson that each section names. About 45 minutes with a pen and 30 for the exercises.

# %%
import math

import torch

from minirlhf import core, show

# %% [markdown]
# ## 1. The example
#
# There are three words: *good*, *bad* and *stop*. *stop* ends a response, and a response has at most two
# words. So there are seven responses. Under the reference policy every word has the probability 1/3
# everywhere. The reward is the number of times *good* occurs, minus the number of times *bad* occurs.
# Logarithms are natural ones.
#
# | response | good good | good bad | good stop | bad good | bad bad | bad stop | stop |
# |---|---|---|---|---|---|---|---|
# | reference | 1/9 | 1/9 | 1/9 | 1/9 | 1/9 | 1/9 | 1/3 |
# | reward | 2 | 0 | 1 | 0 | −2 | −1 | 0 |
#
# The figure below draws the same: at the left the words with their probabilities, at the right the
# probability of each response and its reward $r$. The full stop is *stop*.

# %% tags=["shared"]
words = ("good", "bad", ".")
world = core.World.from_reward(words, 2, lambda y: y.count("good") - y.count("bad"))
reference = world.ref_logits
good_good, bad_bad = world.labels.index("goodgood"), world.labels.index("badbad")


def equal(x, numbers, digits=9):
    """Require that a tensor has these numbers, rounded to so many digits."""
    expected = torch.tensor(numbers, dtype=torch.float64)
    assert torch.allclose(x.double(), expected, rtol=0, atol=0.51 * 10**-digits), x


# %%
equal(world.probs(reference), [1 / 9] * 6 + [1 / 3])
equal(world.rewards, [2, 0, 1, 0, -2, -1, 0])
show.world(world)

# %% [markdown]
# ## 2. Values and advantages (lessons 03 and 05)
#
# The value $V$ of a prefix is the mean reward of the responses that begin so. $Q$ of a word is the mean
# reward after this word. The advantage is $A = Q - V$.
#
# | prefix | $V$ | $Q$ of good, bad, stop | $A$ of good, bad, stop |
# |---|---|---|---|
# | (empty) | 0 | 1, −1, 0 | 1, −1, 0 |
# | *good* | 1 | 2, 0, 1 | 1, −1, 0 |
# | *bad* | −1 | 0, −2, −1 | 1, −1, 0 |
#
# For example, after *good* the rewards are 2, 0 and 1, so $V$ is 1.

# %%
value, q = world.values(reference)
equal(value, [0, 1, -1])
equal(q, [[1, -1, 0], [2, 0, 1], [0, -2, -1]])
equal(q - value[:, None], [[1, -1, 0]] * 3)

# %% [markdown]
# ## 3. The policy gradient (lesson 04)
#
# The exact gradient on the logit of a word is: the probability of reaching its prefix, times the
# probability of the word, times its advantage.
#
# | prefix | reached with probability | good | bad | stop |
# |---|---|---|---|---|
# | at the start | 1 | 1/3 | −1/3 | 0 |
# | after *good* | 1/3 | 1/9 | −1/9 | 0 |
# | after *bad* | 1/3 | 1/9 | −1/9 | 0 |
#
# REINFORCE estimates this from samples. Take the single sample *good good* with the return 2. At
# each of its two prefixes the push on the logits is
# $2 \cdot (1 - 1/3, -1/3, -1/3) = (4/3, -2/3, -2/3)$. With the baseline $V$ the second push is
# $(2 - 1) \cdot (2/3, -1/3, -1/3) = (2/3, -1/3, -1/3)$. The first one stays, because $V$ of the
# empty prefix is 0.

# %%
equal(world.gradient(reference), [[1 / 3, -1 / 3, 0]] + [[1 / 9, -1 / 9, 0]] * 2, 6)
logits = reference.clone().requires_grad_(True)
first, second = world.logprobs(logits)[good_good]
(push,) = torch.autograd.grad(2 * first + 2 * second, logits)
equal(push[:2], [[4 / 3, -2 / 3, -2 / 3]] * 2)
equal((2 - value[1]) / 2 * push[1], [2 / 3, -1 / 3, -1 / 3])

# %% [markdown]
# ## 4. TD errors and GAE (lesson 05)
#
# The response is *good good* with the rewards 0 and 2, and $\gamma = 1$. The temporal-difference
# (TD) error is $\delta_t = r_t + V_{t+1} - V_t$. Generalised advantage estimation (GAE) adds them
# up from the end: $A_2 = \delta_2$ and $A_1 = \delta_1 + \lambda A_2$. The critic's target is
# $A_t + V_t$.
#
# | critic | $V_1$, $V_2$ | $\delta_1$, $\delta_2$ | $A$ at λ = 0 | at λ = 1/2 | at λ = 1 |
# |---|---|---|---|---|---|
# | true | 0, 1 | 1, 1 | 1, 1 | 3/2, 1 | 2, 1 |
# | wrong | 1, 0 | −1, 2 | −1, 2 | 0, 2 | 1, 2 |
#
# The targets of the true critic are (1, 2) at λ = 0, (3/2, 2) at λ = 1/2 and (2, 2) at λ = 1.

# %%
rewards, real = torch.tensor([[0.0, 2.0]]), torch.ones(1, 2, dtype=torch.bool)
true, wrong = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]])
equal(core.td_errors(rewards, true, real), [[1, 1]])
equal(core.td_errors(rewards, wrong, real), [[-1, 2]])
both = rewards.expand(2, 2), torch.cat([true, wrong]), real.expand(2, 2)
expected = {0.0: [[1, 1], [-1, 2]], 0.5: [[1.5, 1], [0, 2]], 1.0: [[2, 1], [1, 2]]}
for lam, advantages in expected.items():
    equal(core.gae(*both, gamma=1, lam=lam)[0], advantages)
targets = {0.0: [1, 2], 0.5: [1.5, 2], 1.0: [2, 2]}
for lam, returns in targets.items():
    equal(core.gae(*both, gamma=1, lam=lam)[1][0], returns)

# %% [markdown]
# ## 5. PPO's clip (lesson 06)
#
# A new policy gives the first word the probabilities 1/2, 1/4 and 1/4 (*good*, *bad*, *stop*), and stays
# uniform after it. The clip range is 0.2. PPO maximises the smaller of the last two products.
#
# | token | ratio | $A$ | ratio · $A$ | clipped ratio · $A$ | the smaller |
# |---|---|---|---|---|---|
# | *good good*, first | 3/2 | 1 | 1.5 | 1.2 | 1.2, no gradient |
# | *good good*, second | 1 | 1 | 1 | 1 | 1 |
# | *bad bad*, first | 3/4 | −1 | −0.75 | −0.8 | −0.8, no gradient |
# | *bad bad*, second | 1 | −1 | −1 | −1 | −1 |

# %%
new = torch.zeros(3, 3, dtype=torch.float64)
new[0, 0] = math.log(2)  # the first word: 1/2, 1/4, 1/4
logprobs, old = world.logprobs(new), world.logprobs(reference)
pair, advantages = [good_good, bad_bad], torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
equal((logprobs - old).exp()[pair], [[1.5, 1], [0.75, 1]])
given = logprobs[pair], old[pair], advantages.double(), torch.ones(2, 2).bool()
equal(-core.ppo_clip(*given, clip_eps=0.2), [[1.2, 1], [-0.8, -1]])
assert core.is_clipped(*given, clip_eps=0.2).tolist() == [[True, False]] * 2

# %% [markdown]
# ## 6. The KL (lesson 07)
#
# How far is this new policy from the reference? The log-ratio of the first word is $\ln 3/2$ =
# 0.405 for *good* and $\ln 3/4$ = −0.288 for *bad* and *stop*. Later words have the log-ratio 0. So
# the KL is 1/2 · 0.405 − 1/2 · 0.288 = 0.059 nats. This is also the mean of $k_1$ and of $k_3$. The
# mean of $k_2$ is 0.062.
#
# With the KL coefficient $\beta = 1 / \ln 2 = 1.443$ the first token of *good good* gets the reward
# −0.585, and the second gets 2. Together that is 1.415.

# %%
mask, beta = world.response_mask, 1 / math.log(2)
equal(world.kl(new, reference), 0.059, 3)
for k, number in ((core.k1, 0.059), (core.k2, 0.062), (core.k3, 0.059)):
    equal(world.expectation(new, k(logprobs, old, mask).sum(1)), number, 3)
shaped = core.kl_shaped_rewards(world.rewards, logprobs, old, mask, kl_coef=beta)
equal(shaped[good_good], [-0.585, 2], 3)
equal(shaped[good_good].sum(), 1.415, 3)

# %% [markdown]
# ## 7. The best policy (lessons 07 and 12)
#
# With the same $\beta$ we have $e^{r/\beta} = 2^r$. The Gibbs policy is the reference times $2^r$,
# divided by the sum $Z$. In units of 1/36:
#
# | response | good good | good bad | good stop | bad good | bad bad | bad stop | stop | sum |
# |---|---|---|---|---|---|---|---|---|
# | reference · $2^r$ | 16 | 4 | 8 | 4 | 1 | 2 | 12 | 47 |
#
# So $Z$ is 47/36, and *good good* has the probability 16/47. The objective, expected reward minus $\beta$
# times the KL, is $\beta \ln Z = \log_2 Z$ = 0.385. No policy has more.
#
# The soft values say the same from the end. After *good* the value is $\log_2 \frac{4 + 1 + 2}{3}$
# = 1.222, after *bad* it is $\log_2 \frac{1 + 1/4 + 1/2}{3}$ = −0.778, and at the start 0.385.

# %%
equal(47 * world.gibbs(beta=beta), [16, 4, 8, 4, 1, 2, 12])
best = world.gibbs_logits(beta=beta)
equal(world.objective(best, beta=beta), math.log2(47 / 36))
equal(world.optimal_values(beta=beta)[0], [0.385, 1.222, -0.778], 3)

# %% [markdown]
# ## 8. A group (lesson 11)
#
# Three responses to one prompt are *good good*, *good stop* and *bad bad*. Their mean score is 1/3, and
# their standard deviation is 2.082 (with $G - 1$). GRPO divides by it. Leave-one-out (RLOO) subtracts the
# mean of the two others.
#
# | response | score | minus the mean | GRPO | RLOO |
# |---|---|---|---|---|
# | *good good* | 2 | 5/3 | 0.801 | 2.5 |
# | *good stop* | 1 | 2/3 | 0.320 | 1 |
# | *bad bad* | −2 | −7/3 | −1.121 | −3.5 |

# %%
scores = torch.tensor([[2.0, 1.0, -2.0]], dtype=torch.float64)
equal(scores.std(1), [2.082], 3)
equal(core.group_relative(scores, scale_by_std=False), [[5 / 3, 2 / 3, -7 / 3]])
equal(core.group_relative(scores), [[0.801, 0.320, -1.121]], 3)
equal(core.leave_one_out(scores), [[2.5, 1, -3.5]])

# %% [markdown]
# ## 9. DPO (lesson 12)
#
# *good good* is preferred to *bad bad*, the policy is that of section 5, and $\beta = 1 / \ln 2$.
# The log-ratios of the two responses are $\ln 3/2$ and $\ln 3/4$. Their difference is $\ln 2$, so
# the margin $\beta \ln 2$ is 1. The loss is $-\ln \sigma(1)$ = 0.313. Before any training the
# margin is 0 and the loss $\ln 2$ = 0.693.

# %%
totals, ref_totals = world.sequence_logprobs(new), world.sequence_logprobs(reference)
chosen, rejected = (totals - ref_totals)[pair]
equal(beta * (chosen - rejected), 1.0)
four = [x[[row]] for x in (totals, ref_totals) for row in pair]
equal(core.dpo(*four, beta=beta), [0.313], 3)
equal(core.dpo(*four[2:], *four[2:], beta=beta), [0.693], 3)

# %% [markdown]
# ## What to remember
#
# The example is yours. When a formula of a lesson is unclear, put these numbers into it.
#
# ## Exercises
#
# Solutions are in `solutions/91_the_worked_example.ipynb`.

# %% [markdown] tags=["exercise"]
# **1. Another reward** *(medium, 20 minutes)*. Now the reward is only the number of times *good*
# occurs. On paper, fill in the tables of sections 2 and 3: $V$, $Q$, $A$ and the gradient. Which
# rows of the gradient change? Then put your numbers into the cell.

# %% tags=["exercise"]
other = core.World.from_reward(words, 2, lambda y: y.count("good"))
my_values = [0, 0, 0]  # yours: V of the empty prefix, of good, of bad
print(torch.allclose(other.values(reference)[0], torch.tensor(my_values).double()))

# %% tags=["solution"]
other = core.World.from_reward(words, 2, lambda y: y.count("good"))
other_value, other_q = other.values(reference)
equal(other_value, [5 / 9, 4 / 3, 1 / 3])
equal(other_q, [[4 / 3, 1 / 3, 0], [2, 1, 1], [1, 0, 0]])
advantage = other_q - other_value[:, None]
equal(advantage, [[7 / 9, -2 / 9, -5 / 9]] + [[2 / 3, -1 / 3, -1 / 3]] * 2)
other.gradient(reference)

# %% [markdown] tags=["solution"]
# All rows change. Now *bad* and *stop* are equally bad as a second word, with the advantage −1/3. As a
# first word *stop* is worse than *bad*: after *stop* no *good* can follow. The gradient of the first
# row is a third of the advantages, and that of the other two rows a ninth.

# %% [markdown] tags=["exercise"]
# **2. A smaller KL coefficient** *(medium, 10 minutes)*. In section 7, replace $2^r$ by $4^r$.
# Which $\beta$ is that? What is the probability of *good good* then? Compute it on paper first.

# %% tags=["exercise"]
my_beta = 1 / math.log(2)  # the old one; put yours here
world.gibbs(beta=my_beta)[good_good]

# %% tags=["solution"]
my_beta = 1 / math.log(4)
equal(world.gibbs(beta=my_beta)[good_good], 256 / 405)

# %% [markdown] tags=["solution"]
# $e^{r/\beta} = 4^r$ means $\beta = 1 / \ln 4$, half of the old one. In units of 1/144 the products are
# 256, 16, 64, 16, 1, 4 and 48, together 405. So the probability is 256/405 = 0.63 instead of 16/47 =
# 0.34. A smaller KL coefficient lets the policy go further.

# %% [markdown]
# *How this sheet is checked:* the cells compare every number with the package, and
# `tests/claims/test_lesson_91.py` compares every number of the text.
