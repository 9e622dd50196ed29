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
# # 90 · Every estimator against the truth
#
# This is a reference sheet, not a lesson. With it you can
#
# - look up what each estimator of RLHF estimates, and how far that is from the truth,
# - check an estimator of your own in the same way.
#
# **You need** the lesson that each section names. About 40 minutes to read and 35 for the exercises.

# %%
import pandas as pd
import torch

from minirlhf import core, show

# %% [markdown]
# ## 1. The world
#
# RLHF code seldom crashes when it is wrong. So we test formulas in a world that is so small that
# nothing has to be estimated. It has three words: *a*, *b* and the full stop, which ends a response. A
# response of three words is cut off there. That makes 15 responses, and 7 prefixes after which a word
# is chosen. Rewards, reference and policy are random numbers from fixed seeds.
#
# At the left of the figure stands the tree of all prefixes, with the policy's probability of each
# word. At the right stand the probability of each response under both policies, and its reward $r$.

# %% tags=["shared"]
world = core.World.random(3, 3, seed=0)
seeded = torch.Generator().manual_seed(1)
noise = torch.randn(7, 3, generator=seeded, dtype=torch.float64)
policy = world.ref_logits + noise
mask = world.response_mask
show.world(world, {"policy": policy, "reference": world.ref_logits})

# %% [markdown]
# $J$ is the expected reward of the policy: a sum over 15 responses. Its gradient has 21 numbers, one for
# each logit (7 prefixes, 3 words). `world.gradient` computes it exactly. Here is one of the 21, compared
# with a small change of that logit:

# %% tags=["shared"]
truth = world.gradient(policy)
change = torch.zeros(7, 3, dtype=torch.float64)
change[0, 1] = 1e-5  # the logit of "b" as the first word
up, down = world.objective(policy + change), world.objective(policy - change)
assert torch.isclose((up - down) / 2e-5, truth[0, 1], atol=1e-9)

# %% [markdown]
# ## 2. How an estimator is compared
#
# An estimator turns sampled responses into a loss. Its *mean* gradient is an average over infinitely
# many samples. Here that is a sum: weight the loss of each response with the probability that it is
# sampled, and hold these weights fixed. Three numbers compare a mean gradient with the true one:
#
# - **cosine**: of the angle between the two. 1 is the same direction.
# - **progress**: how far the mean gradient goes in the true direction. 1 is as far as the true one.
# - **bias**: the norm of the difference, divided by the norm of the true gradient. 0 is unbiased.


# %% tags=["shared"]
def mean_gradient(losses):
    """The mean ascent direction; `losses` maps log-probabilities to (15,) losses."""
    logits = policy.clone().requires_grad_(True)
    mean_loss = (world.probs(policy) * losses(world.logprobs(logits))).sum()
    return -torch.autograd.grad(mean_loss, logits)[0]


def compare(gradients, target):
    """Cosine, progress and bias of each named gradient."""
    rows, size = {}, target.norm()
    for name, g in gradients.items():
        along = (g * target).sum() / size
        cosine = along / g.norm() if g.norm() > 1e-9 else 0.0
        rows[name] = [
            float(x) for x in (cosine, along / size, (g - target).norm() / size)
        ]
    return pd.DataFrame(rows, ["cosine", "progress", "bias"]).T.round(3) + 0.0


# %% [markdown]
# ## 3. Policy gradients (lessons 04 and 06)
#
# Here the reward comes at the end of a response, and every token gets it as its return. $V$ is the true
# value of the prefix before the token. ReMax subtracts the reward of one fixed response,
# here the most probable one.

# %% tags=["shared"]
returns = world.rewards[:, None].expand(15, 3) * mask
value = world.by_token(world.values(policy)[0])
fixed = world.rewards[world.probs(policy).argmax()]


def reinforce(advantages):
    """The mean gradient of REINFORCE with these advantages, shape (15, 3)."""
    return mean_gradient(lambda lp: core.reinforce(lp, advantages, mask).sum(1))


# %% [markdown]
# **Predict.** Four of the five estimators have no bias. Which one has? The last one divides each
# response's loss by its number of tokens.

# %% tags=["predict"]
policy_gradients = {
    "REINFORCE": reinforce(returns),
    "REINFORCE, minus V": reinforce(returns - value),
    "REINFORCE, minus one fixed reward (ReMax)": reinforce(returns - fixed),
    "PPO's clipped loss at ratio 1": mean_gradient(
        lambda lp: core.ppo_clip(lp, lp.detach(), returns - value, mask).sum(1)
    ),
    "REINFORCE, mean over the tokens of a response": reinforce(
        returns / mask.sum(1, keepdim=True)
    ),
}
compare(policy_gradients, truth)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# The last one. It divides the loss of each response by its length, so the words of a short response get
# a larger weight. How long a response is depends on its words. So this is another objective, with any
# number of samples. A baseline that is known before the token is chosen adds no bias.
#
# </details>
#
# ## 4. The denominator (lesson 06)
#
# Libraries often divide the loss of a batch by the number of its tokens. That number is random. We
# enumerate all batches of $B$ responses and multiply the result by the mean length, so that only the
# effect of the random denominator is left. `sequence mean` divides each response by its own length.

# %%
lengths = mask.sum(1).double()
mean_length = (world.probs(policy) * lengths).sum()


def token_mean(size):
    """The mean gradient of REINFORCE, divided by the tokens of a batch of `size`."""
    batches, probability = world.groups(policy, size)
    share = (probability / lengths[batches].sum(1))[:, None].expand_as(batches)
    weight = torch.zeros(15).double().index_add_(0, batches.flatten(), share.flatten())
    weight = weight / world.probs(policy)  # mean_gradient multiplies by it again
    return reinforce(returns * weight[:, None]) * mean_length


per_response = policy_gradients["REINFORCE, mean over the tokens of a response"]
denominators = {f"token mean, B = {size}": token_mean(size) for size in (1, 2, 3, 4)}
denominators["sequence mean, any B"] = per_response * mean_length
compare(denominators, truth)

# %% [markdown]
# With one response the two are the same. The bias of the token mean falls as the batch grows, because
# the denominator comes closer to its mean. The bias of the sequence mean stays.
#
# ## 5. Groups (lesson 11)
#
# Several responses to one prompt can be each other's baseline. We enumerate all groups of $G$ responses.


# %%
def group_gradient(advantages_of, size):
    """The mean gradient of a group of `size`; `advantages_of` maps (M, G) scores."""
    groups, probability = world.groups(policy, size)
    push = probability[:, None] * advantages_of(world.rewards[groups]) / size
    weight = torch.zeros(15).double().index_add_(0, groups.flatten(), push.flatten())
    logits = policy.clone().requires_grad_(True)
    weighted = (weight * world.sequence_logprobs(logits)).sum()
    return torch.autograd.grad(weighted, logits)[0]


def minus_mean(scores):
    return core.group_relative(scores, scale_by_std=False)


# %%
grouped = {
    "minus the group's mean, G = 2": group_gradient(minus_mean, 2),
    "minus the group's mean, G = 4": group_gradient(minus_mean, 4),
    "minus the mean of the others (RLOO), G = 4": group_gradient(core.leave_one_out, 4),
    "also divided by the std (GRPO), G = 4": group_gradient(core.group_relative, 4),
}
compare(grouped, truth)

# %% [markdown]
# - **Minus the group's mean:** the direction is right, and the progress is $(G - 1)/G$. The mean contains
#   the response's own reward. The learning rate can make up for such a factor.
# - **Minus the mean of the others:** no bias.
# - **Divided by the standard deviation:** another direction. This is another objective.
#
# ## 6. Advantages: GAE (lesson 05)
#
# Generalised advantage estimation (GAE) with $\lambda = 1$ waits for the reward. With $\lambda = 0$ it
# believes the critic about the next prefix. We take two critics: the true $V$, and a wrong one (the true
# one plus −1 to 1, in seven equal steps over the prefixes). The left panel shows the bias over $\lambda$,
# the right one the variance of the gradient of one response.

# %%
per_token = torch.autograd.functional.jacobian(world.logprobs, policy)  # (15, 3, 7, 3)
rewards = torch.zeros_like(returns)
rewards[torch.arange(15), mask.sum(1) - 1] = world.rewards  # at the last token
true_v = world.values(policy)[0]
critics = {"true V": true_v, "wrong V": true_v + torch.linspace(-1, 1, 7).double()}
lams = torch.linspace(0, 1, 11)
bias, variance = {name: [] for name in critics}, {name: [] for name in critics}
for name, critic in critics.items():
    for lam in lams.tolist():
        values = world.by_token(critic)
        advantages, _ = core.gae(rewards, values, mask, gamma=1, lam=lam)
        each = torch.einsum("nt,ntsv->nsv", advantages * mask, per_token)
        mean = world.expectation(policy, each)
        bias[name].append((mean - truth).norm() / truth.norm())
        spread = (each - mean).square().sum((1, 2))
        variance[name].append(world.expectation(policy, spread))
panels = {"bias": bias, "variance": variance}
show.lines(panels, lams, xlabel="lambda", ylim={"bias": (-0.05, 1)})

# %% [markdown]
# With the true $V$ there is no bias at any $\lambda$, and a smaller $\lambda$ has less variance.
# With the wrong $V$ only $\lambda = 1$ has no bias, and the bias grows as $\lambda$ falls. So a
# critic buys a lower variance, and its errors are the price.
#
# ## 7. The KL: value and gradient (lesson 07)
#
# From a sampled token with the log-ratio $\ell = \log \pi - \log \pi_{\text{ref}}$ there are three
# estimators: $k_1 = \ell$, $k_2 = \ell^2 / 2$ and $k_3 = e^{-\ell} - 1 + \ell$. The *exact* KL at a
# prefix uses the probabilities of all words instead. First their values, summed over a response. All
# are in nats. `std` is the standard deviation over responses, `lowest` the lowest value of a response.

# %%
logprobs, ref = world.logprobs(policy), world.logprobs(world.ref_logits)
all_words = world.by_token(policy), world.by_token(world.ref_logits)
estimates = {
    "k1": core.k1(logprobs, ref, mask).sum(1),
    "k2": core.k2(logprobs, ref, mask).sum(1),
    "k3": core.k3(logprobs, ref, mask).sum(1),
    "exact at each prefix": core.exact_kl(*all_words, mask).sum(1),
}
table = {}
for name, x in estimates.items():
    mean = world.expectation(policy, x)
    std = world.expectation(policy, (x - mean).square()).sqrt()
    table[name] = [mean.item(), std.item(), x.min().item()]
print("true KL:", round(world.kl(policy, world.ref_logits).item(), 3))
pd.DataFrame(table, ["mean", "std", "lowest"]).T.round(3)

# %% [markdown]
# $k_1$, $k_3$ and the exact KL have the right mean, and $k_2$ has not. $k_1$ of one response can be
# negative. $k_3$ varies most here. Near the reference it varies far less than $k_1$.
#
# Now their *gradients*. The target is the gradient of $\mathrm{KL}(\pi \,\|\, \pi_{\text{ref}})$. An
# estimator can stand in the loss, where it is differentiated, or in the reward, where it only weighs.

# %%
logits = policy.clone().requires_grad_(True)
(kl_gradient,) = torch.autograd.grad(world.kl(logits, world.ref_logits), logits)
whole, one = ref.sum(1, keepdim=True), mask[:, :1]
to_go = core.reward_to_go(core.log_ratio(logprobs, ref, mask), mask)
placements = {"k1 in the reward": reinforce(to_go)}
for name, k in {"k1": core.k1, "k2": core.k2, "k3": core.k3}.items():
    placements[f"{name} in the loss, per token"] = -mean_gradient(
        lambda lp: k(lp, ref, mask).sum(1)
    )
    placements[f"{name} in the loss, whole response"] = -mean_gradient(
        lambda lp: k(lp.sum(1, keepdim=True), whole, one)[:, 0]
    )
compare(placements, kl_gradient)

# %% [markdown]
# - **The whole gradient:** $k_1$ in the reward, and $k_2$ of the whole response in the loss.
# - **No gradient on average:** $k_1$ in the loss. It is only noise.
# - **The gradient of another divergence:** $k_3$ of the whole response follows
#   $\mathrm{KL}(\pi_{\text{ref}} \,\|\, \pi)$.
# - **A part of the gradient:** $k_2$ and $k_3$ per token. A word also decides which words come after it,
#   and a loss per token leaves this out.
#
# ## 8. Where PPO and DPO end (lesson 12)
#
# With a KL coefficient $\beta$ the best policy is known. It is the **Gibbs policy**,
# $\pi_{\text{ref}}(y) \exp(r(y) / \beta) / Z$. We let two algorithms walk towards it, on average, without
# samples:
#
# - **PPO** moves each logit in proportion to the advantage of its word, KL penalty included. The whitened
#   version divides the advantages by their standard deviation over the tokens of all responses.
# - **DPO** sees pairs only. For each pair it knows the share of people who prefer the first response, by
#   Bradley-Terry. With *hard labels* the better response always wins.
#
# The figure shows the distance to the Gibbs policy over 200 steps, on a logarithmic axis.

# %%
beta = 0.5
target, whole = world.gibbs(beta=beta), ref.sum(1)
i, j = torch.triu_indices(15, 15, 1)  # all pairs
shares = core.preference_probability(world.rewards[i], world.rewards[j])


def walk(step):
    """KL(Gibbs policy || policy) along 200 steps from the reference."""
    logits, path = world.ref_logits, []
    for _ in range(200):
        path.append((target * (target.log() - world.sequence_logprobs(logits))).sum())
        logits = logits + step(logits)
    return torch.stack(path)


# %%
def ppo_step(logits, whiten=False):
    values, q = world.values(logits, beta=beta)
    advantages = q - values[:, None]
    spread = advantages[world.visited[mask], world.response_ids[mask]].std()
    return 0.1 * advantages / (spread if whiten else 1)


def dpo_step(logits, share=shares):
    logits = logits.clone().requires_grad_(True)
    p = world.sequence_logprobs(logits)
    prefers_i = core.dpo(p[i], p[j], whole[i], whole[j], beta=beta)
    prefers_j = core.dpo(p[j], p[i], whole[j], whole[i], beta=beta)
    loss = (share * prefers_i + (1 - share) * prefers_j).mean()
    return -20 * torch.autograd.grad(loss, logits)[0]


# %%
walks = {
    "PPO": walk(ppo_step),
    "PPO, whitened": walk(lambda logits: ppo_step(logits, whiten=True)),
    "DPO": walk(dpo_step),
    "DPO, hard labels": walk(lambda logits: dpo_step(logits, (shares > 0.5).double())),
}
show.distance_to_optimum(walks)

# %% [markdown]
# PPO and DPO arrive at the same policy. The other two do not:
#
# - **Whitened advantages.** At the optimum every advantage is 0. Dividing by a standard deviation that is
#   nearly 0 makes the rest large again, so the policy keeps jumping around the optimum. In real runs a
#   learning rate that falls to 0 makes the jumps small.
# - **Hard labels** ask for infinitely large differences. So the policy runs past the Gibbs policy,
#   towards the best response alone.
#
# ## What to remember
#
# - A gradient that is too short or too long is harmless. Another direction is not.
# - A baseline that is known before the token adds no bias. A division by something that depends on the
#   response adds bias.
# - The critic's errors are harmless only at $\lambda = 1$.
# - A good estimate of the KL's value can have a useless gradient.
# - PPO and DPO have the same optimum. Whitening and hard labels change where they end.
#
# ## Exercises
#
# Solutions are in `solutions/90_the_exact_world.ipynb`.

# %% [markdown] tags=["exercise"]
# **1. Three new baselines** *(medium, 15 minutes)*. Which of these have no bias? Answer first, then
# compute all three with `reinforce` and `compare`. Subtract from the return of each token
#
# - (a) the mean reward of the 15 responses, each counted once,
# - (b) half of the response's own reward,
# - (c) the number of words before the token.
#
# *Hint:* `torch.arange(3).double()` counts the words before each position.

# %% tags=["exercise"]
unchanged = reinforce(returns)
compare({"a": unchanged, "b": unchanged, "c": unchanged}, truth)  # your changes

# %% tags=["solution"]
new = {
    "a": reinforce(returns - world.rewards.mean()),
    "b": reinforce(returns - returns / 2),
    "c": reinforce(returns - torch.arange(3).double()),
}
compare(new, truth)

# %% [markdown] tags=["solution"]
# (a) and (c) have no bias. Both are known before the token is chosen. (b) depends on the response,
# so it is no baseline. It leaves half of each reward, so the direction is right and the progress is
# 0.5. The bias is 0.5, too.

# %% [markdown] tags=["exercise"]
# **2. A baseline that knows too much** *(medium, 20 minutes)*. Section 3 subtracts the value of the
# prefix *before* a token. Somebody subtracts the value *after* it instead (for the last token: the
# reward). What is left of the gradient, and why? Find out with `world.values(policy)`, which
# returns $V$ and $Q$.
#
# *Hint:* the value after a word is the $Q$ of that word. `q[world.visited, world.response_ids]` picks it
# for every token.

# %% tags=["exercise"]
compare({"minus the value after the token": reinforce(returns)}, truth)  # your change

# %% tags=["solution"]
values, q = world.values(policy)
after = q[world.visited, world.response_ids]
compare({"minus the value after the token": reinforce(returns - after)}, truth)

# %% [markdown] tags=["solution"]
# Nothing is left. The value after the token is $Q(s_t, y_t)$, the mean return of this very choice.
# The return minus its mean is 0 on average, for good and bad choices alike. So the estimator cannot
# tell them apart. This is the reason for the value *before* the token.

# %% [markdown]
# ## Questions
#
# <details><summary>1. Your mean gradient has the cosine 1 and the progress 0.5. Is the estimator wrong?</summary>
#
# No. It has the right direction, and the learning rate makes up for the factor. The group's mean with
# $G = 2$ is this case.
# </details>
#
# <details><summary>2. Somebody logs k1 as the KL and sees −0.3 in a batch. Is this a bug?</summary>
#
# Not by itself. $k_1$ of one response can be negative, and so can the mean of a small batch. In a large
# batch, look for a reversed sign.
# </details>
#
# <details><summary>3. Somebody adds the mean of k1 to the loss, and the policy runs away. Why?</summary>
#
# In the loss, the mean gradient of $k_1$ is zero. So there is no KL penalty, only noise.
# </details>
#
# <details><summary>4. When would you choose lambda below 1?</summary>
#
# When the critic is good. Then the variance that it saves is worth the bias.
# </details>
#
# ## Going further
#
# **What GRPO's division does.** Take rewards that are 0 or 1, and let $p$ be the probability of 1.
# As $G$ grows, the mean step of GRPO tends to the gradient of $2 \arcsin \sqrt{p}$, slowly. This
# objective pushes hardest where $p$ is near 0 or 1 (`tests/core/test_baselines.py`).
#
# **A repair for the loss per token.** $k_2$ per token in the loss, plus the $k_1$ of the *later*
# tokens in the reward, has the whole gradient. The exact KL at each prefix has the gradient of
# $k_2$ per token, so it leaves out the same part.
#
# **Words have rewards too.** At DPO's end, $\beta (\log \pi - \log \pi_{\text{ref}})$ of a word equals
# $Q^* - V^*$: how much better this word is than the best that can be had at its prefix, with the KL
# penalty. Lesson 13 shows it. $Q^*$ and $V^*$ come from the true rewards, so the comparison could fail.
# That the words' rewards of a response add up to that of the response would hold for every policy.
#
# **References.** Schulman et al. 2016 (GAE), section 3. Schulman 2020, *Approximating KL divergence*.
# Korbak et al. 2022, section 3. Rafailov et al. 2023 (DPO), section 4. Rafailov et al. 2024, *From r to
# Q\**, section 4. Liu et al. 2025, *Understanding R1-Zero-like training*, section 3. Kool et al. 2019
# (leave-one-out).
#
# *How this sheet is checked:* each estimator is compared with the truth in
# `tests/core/test_exact.py`, and the sheet's own numbers in `tests/claims/test_lesson_90.py`.
