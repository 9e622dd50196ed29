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
# # 05 · Advantages and GAE
#
# After this lesson you can
#
# - compute TD errors and GAE advantages, on paper and in code,
# - say what $\lambda$ trades, with a right critic and with a wrong one,
# - train a critic, and say what number it is trained to predict.
#
# **You need** lesson 03 (a language model as a policy) and lesson 04 (REINFORCE, baselines, the
# value). About 50 minutes to read and 85 for the exercises.

# %%
import copy

import torch

from minirlhf import core, evaluate, experiments, loops, models, rewards, show, tasks
from minirlhf.classroom import FAST, check

# %% [markdown]
# ## 1. The idea: how did the prediction change?
#
# A reward model gives one score to a finished response. REINFORCE (lesson 04) pushes every token of
# the response with this one number. So a good word in a bad review is pushed down, too.
#
# A **critic** can help. This second network predicts, before each token, what the response will
# earn. Then a token can be judged by how it changed the prediction (this works only in part: sections 6
# and 7). This change is the **temporal-difference (TD) error** $\delta_t$. **Generalised advantage estimation
# (GAE)** adds up TD errors:
#
# $$ \delta_t = r_t + \gamma \hat V(s_{t+1}) - \hat V(s_t), \qquad
# \hat A_t = \delta_t + \gamma\lambda\, \hat A_{t+1} . $$
#
# - $s_t$ is the prompt and the tokens before token $t$. We call it the *prefix*.
# - $r_t$ is the reward of token $t$. In this lesson it is 0, except at the last token, where it is
#   the score.
# - $\hat V(s_t)$ is the critic's prediction before token $t$. After the last token $\hat V$ is 0,
#   because nothing more will be earned. $\hat A$ is 0 there, too.
# - $\gamma$ (gamma) is the **discount**, from 0 to 1. A reward that comes $k$ tokens later counts
#   only $\gamma^k$ of its size. We use $\gamma = 1$: a long review should not get less for the same
#   praise.
# - $\lambda$ (lambda) is a number from 0 to 1 that you choose. Usual is 0.95 (section 7 asks why).
# - $\hat A_t$ is the estimated **advantage** of token $t$. If it is positive, training makes the
#   token more likely. If it is negative, less likely.
#
# A hat marks an *estimate*. The true value and advantage are $V$ and $A_t$ (section 3).
#
# The TD error says how one token changed the prediction. GAE adds the later changes, because what a
# token has done may show only later (section 2). Their weights fall: $\lambda$, $\lambda^2$, and so on
# (for $\gamma = 1$).

# %% [markdown]
# ## 2. Three tokens on paper
#
# The response is *Not bad* and an end token (EOS). Its score is 1, and $\gamma = 1$. Before *Not*
# the critic predicts 0.5. After *Not* it expects a bad review, and predicts −0.5. After *Not bad*
# it predicts 1.5.
#
# We use $\lambda = 0.5$. Compute the TD errors first, then the advantages, from the last token back:
#
# | token | $r_t$ | $\hat V(s_t)$ | $\delta_t = r_t + \hat V(s_{t+1}) - \hat V(s_t)$ | $\hat A_t = \delta_t + 0.5\, \hat A_{t+1}$ | target $\hat A_t + \hat V(s_t)$ |
# |---|---|---|---|---|---|
# | *Not* | 0 | 0.5 | 0 − 0.5 − 0.5 = −1.0 | −1.0 + 0.5 · 1.75 = −0.125 | 0.375 |
# | *bad* | 0 | −0.5 | 0 + 1.5 − (−0.5) = 2.0 | 2.0 + 0.5 · (−0.5) = 1.75 | 1.25 |
# | EOS | 1 | 1.5 | 1 + 0 − 1.5 = −0.5 | −0.5 | 1.0 |
#
# - *Not* lowered the prediction by 1, so its TD error is −1. But *bad* then raised it by 2. For
#   *Not*, GAE counts half of that, and a quarter of the last TD error. So its advantage is nearly 0.
# - The last column is what the critic is trained to predict (section 5).
#
# The package gives the same. All tensors have the shape (B, R): B responses, R positions. The mask
# is true at real tokens and false at padding.

# %%
token_rewards = torch.tensor([[0.0, 0.0, 1.0]])
values = torch.tensor([[0.5, -0.5, 1.5]])
mask = torch.ones(1, 3, dtype=torch.bool)
advantages, targets = core.gae(token_rewards, values, mask, gamma=1, lam=0.5)
assert advantages.tolist() == [[-0.125, 1.75, -0.5]]
assert targets.tolist() == [[0.375, 1.25, 1.0]]

# %% [markdown]
# **Predict** the three advantages with $\lambda = 0$, and with $\lambda = 1$.

# %% tags=["predict"]
for lam in (0, 1):
    print("lambda", lam, core.gae(token_rewards, values, mask, gamma=1, lam=lam)[0])

# %% [markdown]
# <details><summary>What you should see</summary>
#
# - $\lambda = 0$: these are the TD errors, −1, 2 and −0.5. *Not* is blamed.
# - $\lambda = 1$: all later TD errors count in full. *Not* has −1 + 2 − 0.5 = 0.5, which is the score
#   minus the prediction, 1 − 0.5. Now *Not* is praised: the response ended better than predicted.
# </details>

# %% [markdown]
# ## 3. Where the formula comes from
#
# Lessons 03 and 04 define these quantities for a policy:
#
# | symbol | name | what it is |
# |---|---|---|
# | $G_t$ | return | the sum of the rewards from token $t$ on: $r_t + \gamma r_{t+1} + \gamma^2 r_{t+2} + \dots$ |
# | $V(s_t)$ | value | the mean of $G_t$, when the policy continues after $s_t$ |
# | $Q(s_t, y_t)$ | | the same mean, when the next token is $y_t$ |
# | $A_t = Q(s_t, y_t) - V(s_t)$ | advantage | how much better $y_t$ is than what the policy writes there on average |
#
# Nobody knows the true advantage. Lesson 04 estimates it by $G_t - V(s_t)$. Over many responses with
# $y_t$ after $s_t$, the mean of this is the advantage. But in one response it depends on all tokens
# that happen to come later.
#
# **One token ahead.** The TD error does not look at the later tokens. Suppose that the critic is right:
# $\hat V = V$. Lesson 03 has the identity $Q(s_t, y_t) = r_t + V(s_{t+1})$: after token $y_t$ the
# prefix is $s_{t+1}$. With a discount,
#
# $$ Q(s_t, y_t) = r_t + \gamma V(s_{t+1}), \qquad\text{so}\qquad
# A_t = r_t + \gamma V(s_{t+1}) - V(s_t) = \delta_t . $$
#
# In words: with the true value, the TD error *is* the advantage. So a critic for $V$ is enough.
#
# **Two tokens ahead.** We can also wait for two rewards, and only then use the critic. This is the
# sum of two TD errors:
#
# $$ \hat A_t^{(2)} = r_t + \gamma r_{t+1} + \gamma^2 \hat V(s_{t+2}) - \hat V(s_t)
# = \delta_t + \gamma\,\delta_{t+1} . $$
#
# One TD error contains $+\gamma \hat V(s_{t+1})$, the other $-\gamma \hat V(s_{t+1})$. They cancel. For *Not*:
# 0 + 0 + 1.5 − 0.5 = −1 + 2.
#
# **$n$ tokens ahead.** In the same way
# $\hat A_t^{(n)} = \delta_t + \gamma\,\delta_{t+1} + \dots + \gamma^{n-1}\delta_{t+n-1}$. It is
# called the **n-step** estimate. For $n = 1$ it is the TD error. If the response ends within these $n$
# tokens, all rewards are in the sum, and $\hat V$ after them is 0. Then it is $G_t - \hat V(s_t)$.
#
# **All at once.** Which $n$ is best? GAE takes a weighted mean of all of them. The longer the
# estimate, the smaller its weight:
#
# $$ \hat A_t = (1-\lambda)\,\hat A_t^{(1)} + (1-\lambda)\lambda\,\hat A_t^{(2)} +
# (1-\lambda)\lambda^2\,\hat A_t^{(3)} + \dots $$
#
# For $\lambda = 0.5$ the weights are 1/2, 1/4, 1/8 and so on. For every $\lambda$ below 1 they sum
# to 1.
#
# This mean is a sum of TD errors. How much of each one is in it?
#
# - $\delta_t$ is in all the estimates. Their weights sum to 1.
# - $\gamma\,\delta_{t+1}$ is in all but the first. The first has the weight $1-\lambda$, so the weights
#   of the others sum to $\lambda$.
# - $\gamma^2\,\delta_{t+2}$ is in all but the first two. The second has the weight
#   $(1-\lambda)\lambda$, so those of the others sum to $\lambda - (1-\lambda)\lambda = \lambda^2$.
#
# So each later TD error has one $\lambda$ more, as in section 1:
#
# $$ \hat A_t = \delta_t + \gamma\lambda\,\delta_{t+1} + (\gamma\lambda)^2\,\delta_{t+2} + \dots
# = \delta_t + \gamma\lambda\,\hat A_{t+1} . $$
#
# - $\lambda = 0$ gives the TD error $\delta_t$.
# - $\lambda = 1$ gives the sum of all TD errors, $G_t - \hat V(s_t)$.

# %% [markdown]
# ## 4. What lambda trades
#
# A second small world shows this exactly. It has three words, *a*, *b* and one that ends the
# response. A response has at most three words, so there are 15. Their scores and the policy are
# random. We can compute the true value $V$ of every
# prefix, and the true gradient of the expected score.
#
# One sampled response gives an *estimate* of this gradient: the sum of $\hat A_t \nabla \log \pi(y_t
# \mid s_t)$ over its tokens. We ask two things of an estimate:
#
# - **Bias**: how far is its mean, over all responses of the policy, from the true gradient?
# - **Spread**: how much does it change from response to response? This is its standard
#   deviation, the root of the variance.
#
# Both are divided by the norm of the true gradient.

# %% tags=["shared"]
world = core.World.random(3, 3, seed=0)  # 3 words, responses of at most 3
policy_logits, real_tokens = world.ref_logits, world.response_mask
truth = world.gradient(policy_logits)
true_value = world.values(policy_logits)[0]  # one number for each of the 7 prefixes
score_at_end = torch.zeros(15, 3, dtype=torch.float64)
score_at_end[torch.arange(15), real_tokens.sum(1) - 1] = world.rewards
# (15, 3, ...): the gradient of log pi of every token of every response
grad_log_pi = torch.autograd.functional.jacobian(world.logprobs, policy_logits)


def bias_and_spread(value, lam):
    """Of the gradient that one response gives, with this critic and this lambda."""
    advantages, _ = core.gae(score_at_end, world.by_token(value), real_tokens, lam=lam)
    estimates = (advantages[..., None, None] * grad_log_pi).sum(1)  # over tokens
    mean = world.expectation(policy_logits, estimates)
    variance = world.expectation(policy_logits, (estimates - mean).square().sum((1, 2)))
    return (mean - truth).norm() / truth.norm(), variance.sqrt() / truth.norm()


# %% [markdown]
# We try three critics:
#
# - *right*: the true value,
# - *wrong*: the true value plus an error between −1 and 1, a different one for each prefix,
# - *shifted*: the true value plus 1, the same error everywhere.
#
# **Predict.** *Yes* or *no*? And at which $\lambda$ is the spread larger, 0 or 1?
#
# | | biased at $\lambda = 0$? | biased at $\lambda = 1$? |
# |---|---|---|
# | right | ? | ? |
# | wrong | ? | ? |
# | shifted | ? | ? |
#
# The figure shows the bias (left) and the spread (right) for each $\lambda$. The dotted line is the spread without a
# critic ($G_t$ instead of an advantage).

# %% tags=["predict"]
error = torch.linspace(-1, 1, 7, dtype=torch.float64)
critics = {"right": true_value, "wrong": true_value + error, "shifted": true_value + 1}
lams, panels = torch.linspace(0, 1, 11), {"bias": {}, "spread": {}}
for name, value in critics.items():
    pairs = [bias_and_spread(value, lam.item()) for lam in lams]
    panels["bias"][name], panels["spread"][name] = torch.tensor(pairs).T
_, without = bias_and_spread(0 * true_value, 1.0)  # V = 0, lambda = 1: this is G
reference = {"spread": {"no critic": without.item()}}
show.lines(panels, lams, xlabel="lambda", reference=reference)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# **Bias** (left):
#
# - *right*: no bias at any $\lambda$. With the true value, the mean of every n-step estimate is the
#   true advantage.
# - *wrong*: at $\lambda = 0$ a bias of 0.52. The estimate believes the critic. At $\lambda = 1$ no
#   bias: $G_t$ does not depend on the critic, and $\hat V(s_t)$ is only a baseline. A baseline may be
#   wrong, as long as it does not depend on the token $y_t$ (lesson 04).
# - *shifted*: at $\lambda = 0$ the bias is even larger, 0.66. You may have expected 0, since the
#   error cancels in $\hat V(s_{t+1}) - \hat V(s_t)$. But after the last token $\hat V$ is 0, not 1.
#   So the last TD error is 1 too low: the policy is punished for ending. At $\lambda = 1$ no bias.
#
# **Spread** (right): it is larger at $\lambda = 1$, with all three critics: there the advantage
# depends on all later tokens.
#
# - *right*: below the dotted line at every $\lambda$, 2.56 at $\lambda = 0$ against 3.95 without a
#   critic.
# - *wrong*: worse than no critic from $\lambda = 0.5$ on.
# - *shifted*: worse than no critic at *every* $\lambda$.
#
# A small $\lambda$ trusts the critic: less spread, but its errors become bias. A large $\lambda$ trusts
# the rewards: less bias, but more spread.
# </details>
#
# **What does a right critic buy?** Samples. The mean of $B$ responses has $1/\sqrt{B}$ of the spread of
# one. Without a critic the spread is 3.95 / 2.56 = 1.54 times that of the right critic at
# $\lambda = 0$. For an equal spread you need 1.54² = 2.4 times as many responses. With the right critic
# at the usual 0.95 it is only 1.1 times.
#
# Averaging does not change the bias (exercise 5).

# %% [markdown]
# ## 5. Training the critic
#
# Nobody knows the true $V$ of a language model. The critic learns it by regression. Its loss for
# one token is
#
# $$ L_t = \tfrac12 \big(\hat V(s_t) - T_t\big)^2, \qquad T_t = \hat A_t + \hat V_{\text{old}}(s_t) . $$
#
# $\hat V_{\text{old}}$ is the critic's prediction when the batch was sampled. The **critic's target**
# $T_t$ is computed once for a batch and then stays fixed: no gradient flows through it. In words: the
# target is the old prediction, plus the correction that GAE has found. How far ahead does this
# correction look?
#
# - With $\lambda = 1$, to the end: the target is $\hat A_t + \hat V_{\text{old}}(s_t) = G_t$, the
#   return that came. The mean of $G_t$ is the true value, so this is plain regression on samples of
#   the right answer.
# - With $\lambda = 0$, one token: the target is $r_t + \gamma \hat V_{\text{old}}(s_{t+1})$, the
#   reward plus the critic's own prediction one token later.
# - The code below uses 0.95, which lies in between.
#
# **Explained variance** measures how good a critic is:
#
# $$ 1 - \frac{\text{variance of } G_t - \hat V(s_t)}{\text{variance of } G_t} . $$
#
# The variances are taken over all tokens of a batch. A critic that foresaw every return would have 1.
# A critic that predicts the same number everywhere has 0. A worse one is below 0. (Lesson 06
# puts the target $T_t$ in place of $G_t$, so the same critic gets another number there.)
#
# Our policy writes short film reviews after a film's title. It is not trained here: training the
# critic alone is called **critic warm-up**. The critic starts as a copy of the reward model, because
# that already knows good words from bad ones. This network gives a number at every position:
#
# - The number at the last token is the score of the response.
# - The value of a token is the number one position to its *left*: the critic must not have read the
#   token yet. In *Not bad*, the value of *bad* stands at the position of *Not*. The value of *Not*
#   stands at the last position of the prompt.

# %%
torch.set_num_threads(1)  # sums in a fixed order, so that two runs can be equal
policy, tokenizer = models.load_policy("tiny-reviews-sft")
reward_model, _ = models.load_scalar("tiny-reviews-reward")
eos_id = tokenizer.eos_token_id
score = rewards.rollout_score(reward_model, eos_id)
sampling = models.SamplingConfig(temperature=0.7, max_new_tokens=32)
prompts = tasks.reviews.rl_prompts()  # film titles

critic = copy.deepcopy(reward_model)
optimizer = loops.make_optimizer(critic, loops.OptimiserConfig(lr=3e-4))
generator = torch.Generator().manual_seed(0)


# %% [markdown]
# One step samples 64 reviews, computes their targets, and makes four updates of the critic:


# %%
def rewards_of(scores, mask):
    """(B, R): the score at the last token of each response, 0 elsewhere."""
    token_rewards = torch.zeros(mask.shape)
    token_rewards[torch.arange(len(mask)), mask.sum(1) - 1] = scores
    return token_rewards


def critic_step(titles):
    # 1. Sample, and score the responses.
    ids, prompt_mask = models.encode_prompts(tokenizer, titles)
    batch = models.sample(
        policy, ids, prompt_mask, eos_id=eos_id, config=sampling, generator=generator
    )
    mask = batch.response_mask
    with torch.no_grad():
        token_rewards = rewards_of(score(batch), mask)
        # 2. What does the critic predict now?
        values = models.response_values(critic, batch)
        # 3. Targets. (The advantages would train the policy.)
        advantages, targets = core.gae(token_rewards, values, mask, gamma=1, lam=0.95)
    batch = batch.with_columns(targets=targets)
    # 4. Regression: two epochs over the batch, in minibatches of 32 responses.
    for _ in range(2):
        for rows in torch.randperm(len(titles), generator=generator).split(32):
            part = batch.select(rows)
            predicted = models.response_values(critic, part)
            losses = core.value_loss(predicted, part.targets, part.response_mask)
            core.aggregate(losses, part.response_mask).backward()  # mean over tokens
            optimizer.step()
            optimizer.zero_grad()
    came = core.reward_to_go(token_rewards, mask)  # G, the sum of the rewards to come
    return core.explained_variance(values, came, mask).item()


# %% [markdown]
# Each step returns the explained variance of its batch, measured *before* its updates.
#
# **Predict.** We run eight steps. In the first batch the critic still is the copy of the reward
# model. Is its explained variance near 1, near 0, or below 0? And after how many steps is it above
# 0?

# %% tags=["predict"]
steps = 1 if FAST else 8  # FAST=1 is for the tests of this page
order = loops.shuffled_batches(len(prompts), 64, steps, seed=0)
explained = [critic_step([prompts[i] for i in index]) for index in order]
print("explained variance:", [round(x, 2) for x in explained])

# %% [markdown]
# <details><summary>What you should see</summary>
#
# The first number is far below 0: worse than a constant. The reward model was trained to score
# finished reviews. Nobody taught it what to say in the middle of one. There its predictions swing
# about twice as far as the returns. So $G_t - \hat V(s_t)$ varies more than $G_t$ itself.
#
# One step is enough to come above 0. Then the number changes little, and stays far below 1 (the next
# figure shows why).
#
# (Here and below your last digits may differ.)
# </details>
#
# The critic now reads 64 fresh reviews, of films that were not used for training. In the figure, the
# explained variance at a position is taken over all reviews that have a token there.

# %%
titles = tasks.reviews.eval_prompts("test")[:64]
(fresh,) = models.sample_text(policy, tokenizer, titles, seed=5, batch_size=64)
mask = fresh.response_mask
with torch.no_grad():
    scores, values = score(fresh), models.response_values(critic, fresh)
token_rewards = rewards_of(scores, mask)
came = core.reward_to_go(token_rewards, mask)
trained = core.explained_variance(values, came, mask).item()
print(f"explained variance of the trained critic: {trained:.2f}")

# %%
by_position = [
    core.explained_variance(values[:, [t]], came[:, [t]], mask[:, [t]]).item()
    for t in range(20)
]
print("at position 0, 5, 10 and 15:", [round(x, 2) for x in by_position[:16:5]])
show.lines(
    {"trained critic": by_position},
    xlabel="position of the token",
    ylabel="explained variance",
    reference=0,
)

# %% [markdown]
# At the first token the critic explains nothing. It has read only the title. With every
# word that it reads it knows more: at position 5 it explains 0.34 of the variance, at position 15 0.65.
# The 0.40 is over all positions. The first ones keep even the best possible critic below 1.
#
# ## 6. Lambda on a real review
#
# Now GAE on one fresh review, chosen by hand.
#
# *It's a celebration of the dullestness of its own cinematic equivalent on gust and its best.* The
# reward model scores it −1.68. (Over the policy's reviews its scores have the mean 0
# and the standard deviation 1.)
#
# **Predict.** Which tokens have clearly negative advantages with $\lambda = 0$? And which with
# $\lambda = 1$?
#
# The figure has one strip for each $\lambda$. Every box is a token, with its advantage below it.
# Blue is positive, orange negative.

# %% tags=["predict"]
one, real = 42, mask[42]  # the review, and its tokens
tokens = [tokenizer.decode([token]) for token in fresh.response_ids[one][real].tolist()]
strips = {}
for lam in (0.0, 0.95, 1.0):
    advantages, _ = core.gae(token_rewards, values, mask, gamma=1, lam=lam)
    strips[f"lambda = {lam}"] = tokens, advantages[one][real]
show.token_strips(strips)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# - $\lambda = 0$: one token gets the blame, *dull*, with −2.37. There the prediction falls from
#   0.39 to −1.97. EOS gets −0.56, since the score is lower than the last prediction.
# - $\lambda = 1$: all tokens up to *dull* have about −2. Before *dull* the critic expected a good
#   review, and the score was bad. After *dull* the advantages are small: the critic already expects
#   a bad score.
# - $\lambda = 0.95$: nearly as at 1, also in colour. All tokens before *dull* are still pushed down,
#   with −1.1 to −2.0. *It*, seven tokens earlier, still gets $0.95^7$, or 70 %, of the −2.37 and parts of
#   others.
#
# None of the three proves which word people disliked: the critic, too, is a model.
# </details>
#
# ## 7. Why 0.95?
#
# In the review of section 6, $\lambda = 0.95$ does half of what section 1 asks for. Without a critic every token
# is pushed with −1.68. With it, the tokens *after* *dull* are hardly pushed. Those *before* it still
# are. Why not a smaller $\lambda$? No formula gives the best one. We know this:
#
# - **It depends on the critic and the number of samples.** For the right critic of section 4 the
#   best is 0. For a wrong one, see exercise 5 and question 8.
# - **It depends on the length.** At 0.95, a TD error that comes 100 tokens later counts less than 1 %.
#   So in a long response the first tokens learn of the score only through the critic.
# - **It is older than RLHF.** GAE first taught simulated robots to walk. A $\lambda$ a little
#   below 1 was best.
# - **Our recorded runs** on reviews show no difference in score between 0.95 and 1 ("Going
#   further").
#
# So nothing here shows that 0.95 is better than 1. It is usual.

# %% [markdown]
# ## What to remember
#
# - The TD error $\delta_t = r_t + \gamma \hat V(s_{t+1}) - \hat V(s_t)$ is the reward plus the change
#   of the prediction ($\hat V$ is 0 after the last token). With the true value it is the advantage.
# - GAE is $\hat A_t = \delta_t + \gamma\lambda \hat A_{t+1}$, computed from the last token back. It is
#   a weighted mean of all n-step estimates.
# - $\lambda = 0$ trusts the critic: less spread, and its errors become bias. $\lambda = 1$
#   trusts the rewards: no bias, more spread. A right critic saves samples. A bad one can be worse than
#   none.
# - In a short response, 0.95 works nearly as 1.
# - The critic is trained by regression on its target $\hat A_t + \hat V_{\text{old}}(s_t)$. With
#   $\lambda = 1$ this is the return $G_t$.
#
# ## Exercises
#
# Solutions are in `solutions/05_advantages_gae.ipynb`. In all exercises tensors have the shape (B,
# R), `mask` is true at real tokens, and padding stands at the end of each row.

# %% [markdown] tags=["exercise"]
# **1. The TD error** *(easy, 10 minutes)*. Return $\delta_t$ for every token, and 0 where the mask
# is false.
#
# *Hint:* the value of the next prefix stands one column to the right. Padding can hold NaN, and NaN
# times 0 is NaN. Replace padding with `torch.where(mask, x, 0.0)` before you compute. This also
# makes the value after the last token 0.


# %% tags=["exercise"]
def td_error(rewards, values, mask, gamma): ...  # your code


check.td_error(td_error)


# %% tags=["solution"]
def td_error(rewards, values, mask, gamma):
    rewards, values = torch.where(mask, rewards, 0.0), torch.where(mask, values, 0.0)
    after = torch.cat([values[:, 1:], torch.zeros(len(values), 1)], dim=1)
    return rewards + gamma * after - values


check.td_error(td_error)

# %% [markdown] tags=["exercise"]
# **2. GAE** *(medium, 15 minutes)*. Return the advantages, and 0 where the mask is false. *This
# function goes into your `my_rlhf.py`, the file that collects your functions (lesson 00), with those
# that it calls.*
#
# *Hint:* a loop over positions, from the last to the first. One number per response is carried
# along.


# %% tags=["exercise"]
def gae_advantages(rewards, values, mask, gamma, lam): ...  # your code


check.gae_advantages(gae_advantages)


# %% tags=["solution"]
def gae_advantages(rewards, values, mask, gamma, lam):
    deltas, advantage, columns = td_error(rewards, values, mask, gamma), 0.0, []
    for t in reversed(range(deltas.shape[1])):
        advantage = deltas[:, t] + gamma * lam * advantage
        columns.append(advantage)
    return torch.stack(columns[::-1], dim=1)


check.gae_advantages(gae_advantages)

# %% [markdown] tags=["exercise"]
# **3. Look n tokens ahead** *(medium, 15 minutes)*. Return the n-step estimate $\hat A_t^{(n)}$ of
# every token, and 0 where the mask is false. Near the end of a response there are fewer than `n` tokens
# left. Then it is $G_t - \hat V(s_t)$. `n` can even be larger than R. The package has no such function.
#
# *Hint:* it is a sum of discounted TD errors. Of how many, if only k tokens are left?


# %% tags=["exercise"]
def n_step_advantages(rewards, values, mask, gamma, n): ...  # your code


check.n_step_advantages(n_step_advantages)


# %% tags=["solution"]
def n_step_advantages(rewards, values, mask, gamma, n):
    deltas = td_error(rewards, values, mask, gamma)
    total = torch.zeros_like(deltas)
    for k in range(min(n, deltas.shape[1])):
        total[:, : deltas.shape[1] - k] += gamma**k * deltas[:, k:]
    return torch.where(mask, total, 0.0)


check.n_step_advantages(n_step_advantages)

# %% [markdown] tags=["exercise"]
# **4. Find the bug** *(medium, 15 minutes)*. A colleague *whitens* the advantages of a batch before
# the policy is trained on them: they are shifted and scaled to mean 0 and standard deviation 1.
# That is usual. But the critic never learns. Run both cells and look at the curve: the critic's
# prediction at the start of a response, over 200 steps in the world of section 4, with 3 added to
# every score. The dotted line is the true value. What is wrong in `critic_targets`? Mend it, run
# the checker, and draw the curve again.


# %% tags=["exercise"]
def critic_targets(advantages, values, mask):
    """(whitened advantages for the policy, targets for the critic), 0 at padding."""
    real = advantages[mask]
    white = (advantages - real.mean()) / (real.std(unbiased=False) + 1e-8)
    white = torch.where(mask, white, 0.0)
    targets = torch.where(mask, white + values, 0.0)
    return torch.stack([white, targets])


check.critic_targets(critic_targets)


# %% [markdown] tags=["solution"]
# The targets are made from the *whitened* advantages. Their mean over the batch is 0, so on average
# the critic is told to stay where it is. It never learns the level of the returns, nor their unit.
# The targets must be made from the advantages as they are.


# %% tags=["solution"]
def critic_targets(advantages, values, mask):
    real = advantages[mask]
    white = (advantages - real.mean()) / (real.std(unbiased=False) + 1e-8)
    white = torch.where(mask, white, 0.0)
    targets = torch.where(mask, advantages + values, 0.0)
    return torch.stack([white, targets])


check.critic_targets(critic_targets)


# %% tags=["exercise", "solution"]
def train_critic(steps=200, rate=0.2):
    """Regression on 64 responses in each step: the prediction at the start."""
    value, path, drawing = torch.zeros(7).double(), [], torch.Generator().manual_seed(0)
    probs, mask = world.probs(world.ref_logits), world.response_mask
    raised = score_at_end + 3.0 * (score_at_end != 0)
    which = world.visited  # (15, 3): the number of the prefix before each token, 0 to 6
    for _ in range(steps):
        path.append(value[0].item())
        rows = torch.multinomial(probs, 64, replacement=True, generator=drawing)
        now, real = world.by_token(value)[rows], mask[rows]
        advantages, _ = core.gae(raised[rows], now, real, lam=1.0)
        change = critic_targets(advantages, now, real)[1] - now
        value.index_add_(0, which[rows][real], rate / 64 * change[real])
    return path


goal = true_value[0].item() + 3
show.lines(
    {"critic": train_critic()},
    xlabel="step",
    ylabel="prediction before the first token",
    reference={"true value": goal},
)

# %% [markdown] tags=["exercise"]
# **5. Which lambda for which batch?** *(medium, 15 minutes)*. A batch of `batch_size` responses
# estimates the gradient by the mean of their estimates. `bias` and `spread` have the shape (K,):
# bias and spread of the estimate from *one* response, for K values of $\lambda$. They are the
# curves of section 4. Return the number of the $\lambda$ (0 to K − 1) for which the batch's
# expected squared error is smallest. Before you run the second cell: with the *wrong* critic, does
# a larger batch want a larger or a smaller $\lambda$?
#
# *Hint:* the expected squared error of an estimate is its squared bias plus its variance. The mean
# of B independent numbers has 1/B of the variance of one. And its bias?


# %% tags=["exercise"]
def best_lambda(bias, spread, batch_size): ...  # your code


check.best_lambda(best_lambda)


# %% tags=["solution"]
def best_lambda(bias, spread, batch_size):
    return (bias**2 + spread**2 / batch_size).argmin()


check.best_lambda(best_lambda)

# %% tags=["exercise", "solution"]
fine = torch.linspace(0, 1, 101)
wrong = true_value + torch.linspace(-1, 1, 7, dtype=torch.float64)
bias, spread = torch.tensor([bias_and_spread(wrong, lam.item()) for lam in fine]).T
for batch_size in (1, 16, 64, 256, 1024):
    best = best_lambda(bias, spread, batch_size)
    if best is not None:
        print("batch of", batch_size, "best lambda:", round(fine[best].item(), 2))

# %% [markdown] tags=["solution"]
# A larger batch wants a larger $\lambda$. Its mean has hardly any spread left, so bias is what
# remains. With one response the spread is everything, and $\lambda = 0$ is best even with a wrong
# critic. (With the right critic it is best for every batch.)

# %% [markdown] tags=["exercise"]
# **6. The critic's loss on an empty page** *(hard, 15 minutes)*. Close the lesson. Write the critic's
# loss of a minibatch, one number: the mean of $L_t$ over the real tokens. `predicted` is what the
# critic predicts now. `values` is what it predicted when the batch was sampled. You may call your own
# functions, but none of the package. Padding can hold NaN. The checker compares the gradient with
# respect to `predicted`, too. The second cell compares your loss with the package's on the 64 reviews
# of section 5.


# %% tags=["exercise"]
def critic_loss(predicted, rewards, values, mask, gamma, lam): ...  # your code


check.critic_loss(critic_loss)


# %% tags=["solution"]
def critic_loss(predicted, rewards, values, mask, gamma, lam):
    targets = gae_advantages(rewards, values, mask, gamma, lam) + values
    return 0.5 * (predicted[mask] - targets[mask]).square().mean()


check.critic_loss(critic_loss)

# %% tags=["exercise"]
with torch.no_grad():
    at_first = models.response_values(reward_model, fresh)  # the untrained critic
mine = critic_loss(values, token_rewards, at_first, mask, 1.0, 0.95)
if mine is not None:
    _, goals = core.gae(token_rewards, at_first, mask, gamma=1.0, lam=0.95)
    package = core.aggregate(core.value_loss(values, goals, mask), mask)
    print("equal on the 64 reviews:", torch.allclose(mine, package, atol=1e-5))

# %% [markdown]
# ## Questions
#
# <details><summary>1. Does the critic compute V or Q?</summary>
#
# V. It is read before each token. Q of a token is its reward plus V of the prefix with the token,
# because appending a token is deterministic.
# </details>
#
# <details><summary>2. Your critic is perfect. Is a lambda of 0 better than 1?</summary>
#
# Neither is biased. At 0 each advantage has less spread. In the world of section 4, the gradient
# has less spread, too. There every prefix has logits of its own. In a network all prefixes share the same
# weights. Then less spread of the gradient is usual but not certain: at 1, the pushes on two tokens can partly
# cancel. (We let one weight move all logits of that world, in 300 random ways. In 12 of them the
# gradient has less spread at 1.) And nobody has a perfect critic.
# </details>
#
# <details><summary>3. A run starts with an explained variance of −3. What may be wrong?</summary>
#
# The critic is far from the returns: its head was new, or it had never been trained on
# unfinished responses. So the first advantages were mostly its errors. Train the critic alone for
# some steps first (*critic warm-up*, as in section 5), or start it from the reward model *with*
# its head, or use a $\lambda$ nearer to 1 at first. One error does not show in the explained variance:
# a constant added to all predictions, because a variance does not change with it. Look at the value
# loss for it.
# </details>
#
# <details><summary>4. A response was cut off at the length limit. Why is V 0 after it?</summary>
#
# It is a convention: the score is paid at the cut, and nothing is paid after it. In a task that
# goes on after the cut, one would put the critic's prediction there.
# </details>
#
# <details><summary>5. GRPO (lesson 11) has no critic. Which lambda does it use?</summary>
#
# In effect 1. In group relative policy optimisation (GRPO) every token of a response gets the
# advantage of the whole response.
# </details>
#
# <details><summary>6. What does whitening (exercise 4) do to the advantages of the best policy?</summary>
#
# Its true advantages are all 0. What is left are the errors of the estimates, and whitening scales
# them up to a standard deviation of 1 (lesson 90).
# </details>
#
# <details><summary>7. The prompts of a batch have P positions, counted from 0. At which position does the critic give the
# value of the first response token?</summary>
#
# At position $P - 1$, the last one of the prompt. The value of response token $t$, also counted from 0, is at
# position $P - 1 + t$. The number at the last response token is the value of no token. A common bug is to begin at
# position $P$. Then the critic has already read the token whose value it gives, and the TD error of a token shows
# what the *next* token changed.
# </details>
#
# <details><summary>8. In exercise 5, why is no single lambda the best? What does this say about 0.95?</summary>
#
# The best $\lambda$ is 0 for one response, 0.73 for 64 and 0.98 for 1,024. More responses shrink the
# spread, but not the bias. So the more samples you have, the nearer to 1 you should go. The critic
# matters, too: with half of the error the best $\lambda$ for 64 responses is 0.35. Large runs of RLHF
# have hundreds of responses in a batch, and their critic is never quite right. So a $\lambda$ near 1 is
# reasonable. But 0.95 itself does not follow from this.
# </details>
#
# ## Going further
#
# **Three reviews under the microscope.** The first is that of section 6. Point at a token to see its
# numbers:
#
# - *score of the whole response* is the same at every token.
# - *reward after the KL penalty* is $r_t$. There is no penalty in this lesson, so it is 0 except at
#   the last token.
# - *value* is $\hat V(s_t)$, the prediction *before* the token. It is the colour at first.
# - *TD error*, *advantage* (with $\lambda = 0.95$) and *critic's target* are $\delta_t$, $\hat A_t$
#   and $T_t$.
#
# The lines below show how the numbers add up. Responses are numbered from 0.

# %%
chosen = torch.tensor([42, 51, 4])
shown = fresh.with_columns(scores=scores).select(chosen)
table = evaluate.token_table(shown, tokenizer, critic=critic, lam=0.95)
show.microscope(table.drop(columns="old_logprob"), "value", text=1)

# %% [markdown]
# - **The value reads along.** Response 1 is *A very well-acted, unfunny film.* The critic predicts
#   0.35 before *very* and 0.63 after it. *unf* and *unny* are two tokens of one word. They lower
#   the prediction from 0.55 to −0.54. Choose *TD error* as the colour: these two tokens stand out.
# - **Good step, negative advantage.** In response 2, *A boring, vuildly satisfying thriller*, the
#   TD error of *satisfying* is 0.46. Still its advantage is −0.65: the later TD errors are added,
#   and the last one is −1.43. All tokens before it share this surprise. So GAE still pushes down a
#   good word in a bad review. With $\lambda = 0$ it would not, but that trusts the critic alone.
#
# **What a smaller discount does.** With $\gamma < 1$ the same praise is worth less in a longer
# response, and the same blame hurts less. Take a world with the words *good*, *bad* and a stop, and
# at most two words. The score is the number of *good* minus the number of *bad*. Every response
# with a score other than 0 has two tokens. With $\gamma = 1$ *good good* is worth 2, with
# $\gamma = 0.4$ it is worth 0.8. The best policy with a Kullback-Leibler (KL) penalty of 0.5
# (lesson 07) writes a second token in 96 % of its responses with $\gamma = 1$, in 94 % with
# $\gamma = 0.9$, and in 77 % with $\gamma = 0.4$. Nobody said that long reviews are worse, so
# libraries for language models use $\gamma = 1$.
#
# **A critic that says the same everywhere** is the simplest wrong one. In the world of section 4 let it
# always say the mean score, −0.17. It has a bias of 0.27 at $\lambda = 0$, and none at
# $\lambda = 1$. With another random policy (and that policy's mean score), it has less spread at
# $\lambda = 0$ than the true value, but a bias of 0.67. A small spread alone does not make an estimate
# good.
#
# **Lambda in recorded runs.** In nine recorded runs the policy is trained, too, with GAE's advantages, by
# the algorithm of lesson 06. Each step samples 64 reviews, and the critic learns along. The runs
# differ only in $\lambda$. Three have $\lambda = 1$. Six have 0.95: two rows of three, to show how far
# equal settings differ. *Gold* is a second score, which training never sees. *KL* says how far the
# policy has moved from its start, in nats (lesson 07). Brackets: lowest and highest of three runs.

# %%
# "ablations" and "leash" are two files of records. The usual settings are called
# "as it is" in the first and "kl_coef 0.5" in the second.
runs = experiments.results("ablations", "leash")
names = {"as it is": "0.95", "kl_coef 0.5": "0.95, again", "lambda 1": "1"}
runs["lambda"] = runs.variant.map(names)
columns = {"gold": "gold score", "kl": "KL, nats per response"}
runs = runs.dropna(subset="lambda").sort_values("lambda")
experiments.shown(runs, columns, by="lambda")

# %% [markdown]
# With $\lambda = 1$ gold is higher by 0.02, and the 95 % interval of this difference goes from −0.04 to
# 0.08: no difference that we can see. The KL is higher by 0.30 (0.09 to 0.50). But the two rows with
# equal settings already differ by 0.20, so take this with care.
#
# **The first explained variance.** On the 64 fresh reviews that of the reward model itself is below
# −1. The recorded runs show the same. In those with $\lambda = 1$, where the target is $G_t$, the first
# explained variance is between −1.49 and −1.39. Two steps later it is at least 0.37. In the runs with
# $\lambda = 0.95$ the first value is between −0.48 and −0.13. The critic is the same: only the target
# is nearer to its prediction.
#
# **Critic or mean score?** On reviews three runs of each cannot tell (lesson 06b, section 5; more than the critic
# differs there). On arithmetic problems (lesson 11), REINFORCE with critic and GAE solves 70 % of the problems at the
# first try. With the mean score of earlier batches as its baseline it solves 73 %, with as many samples. Each is a
# mean of three runs, and the 95 % interval of the difference goes from −6.0 to +0.2 percentage points. It includes 0.
# And the runs with a critic also whiten the advantages, as in exercise 4. So these runs cannot tell whether the
# critic helps.
#
# **What the libraries do.**
#
# | | here | elsewhere |
# |---|---|---|
# | $\gamma$ and $\lambda$ | 1 and 0.95 | the same in TRL and DeepSpeed-Chat; 1 and 1 in OpenRLHF and verl |
# | end of a response that was cut off | $\hat V$ is 0 after it | the same |
# | targets | advantages plus values | the same. TRL, like the code of our package, names them `returns`, whatever $\lambda$ is |
# | padding | reward and value 0 | verl also skips the tokens of a tool in the middle; most others do not |
# | where $\hat V$ is read | at the prefix before the token | the same; one position off is a common bug |
#
# **References.** Schulman et al. 2016, *High-dimensional continuous control using generalized
# advantage estimation*, sections 2 to 4. Kimura and Kobayashi 1998 (the same estimator, earlier).
# Sutton and Barto 2018, *Reinforcement learning: an introduction*, chapter 12 (lambda-returns).
# Ziegler et al. 2019, section 2.1 ($\gamma = 1$, and how the critic starts).
#
# *How this lesson is checked:* the loop of section 5 equals the critic warm-up of `train_ppo`
# (`tests/loops/test_by_hand.py`), and every number of the text is compared with what it comes from
# (`tests/claims/test_lesson_05.py`).
