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
# # 04 · The policy gradient
#
# After this lesson you can
#
# - derive the policy gradient, line by line,
# - write REINFORCE with a baseline, and say what each line is for,
# - say what a baseline does to the mean and to the noise of the gradient, and why.
#
# **You need** lesson 03 (a language model is a policy: prefixes, returns, values, the small world).
# About 55 minutes to read and 95 for the exercises.

# %%
import copy

import pandas as pd
import torch

from minirlhf import core, experiments, loops, models, rewards, show, tasks
from minirlhf.classroom import FAST, check

# %% [markdown]
# ## 1. The idea: make good responses more likely
#
# A policy writes responses, and a reward model scores them. We want the mean score to rise. But a
# response is *sampled*, and a sample has no derivative with respect to the parameters. The **policy
# gradient** needs none:
#
# $$ \nabla J = \mathbb{E}_{y \sim \pi} \big[\, r(y)\, \nabla \log \pi(y) \,\big] . $$
#
# - $y$ is a response, and $\pi(y)$ is its probability under the policy.
# - $r(y)$ is its score: the reward of the whole response. ($r_t$ will be the reward of one token.)
# - $J$ is the **expected score**: the mean of $r(y)$ over responses of the policy.
# - $\nabla$ is the gradient with respect to the policy's parameters.
# - $\mathbb{E}_{y \sim \pi}$ is the mean over responses that the policy samples.
#
# In words: **sample responses, and make each one more likely, in proportion to its score.** A score
# of 2 pushes twice as hard as a score of 1. A negative score pushes the response down. The
# algorithm that does this is **REINFORCE**.

# %% [markdown]
# ## 2. Where the formula comes from
#
# The expected score is a sum over all possible responses (to one prompt, which we leave out of the
# formulas):
#
# $$ J = \sum_y \pi(y)\, r(y) . $$
#
# The score of a *given* response is a fixed number. Only its probability depends on the parameters.
# So
#
# $$ \nabla J = \sum_y \nabla \pi(y)\, r(y) . $$
#
# This is right, but there are far too many responses to list. We can only sample. A mean over samples
# is a sum in which each response has the factor $\pi(y)$, because it is sampled that often. This
# factor is missing here. So we multiply by it, and divide by it again:
#
# $$
# \begin{aligned}
# \nabla J &= \sum_y \pi(y)\, \frac{\nabla \pi(y)}{\pi(y)}\, r(y)
#   && \text{multiplied and divided by } \pi(y) \\
# &= \sum_y \pi(y)\, \nabla \log \pi(y)\; r(y)
#   && \text{the chain rule: } \nabla \log \pi = \nabla \pi / \pi \\
# &= \mathbb{E}_{y \sim \pi} \big[\, r(y)\, \nabla \log \pi(y) \,\big]
#   && \text{a sum with the factor } \pi(y) \text{ is a mean over samples}
# \end{aligned}
# $$
#
# Nobody differentiates the score. So a program or a person may give it, too.
#
# **From responses to tokens.** The probability of a response is the product of the probabilities of
# its tokens. The logarithm turns the product into a sum. With the prefix $s_t$, everything before
# token $y_t$:
#
# $$ \nabla \log \pi(y) = \sum_t \nabla \log \pi(y_t \mid s_t) . $$
#
# So every token is pushed up or down by the score of its whole response.
#
# **As a loss.** An optimiser minimises. We hand it a loss whose gradient is *minus* the policy
# gradient, estimated from $B$ sampled responses $y_1, \dots, y_B$. Token $t$ of response $y_i$ is
# $y_{i,t}$, and its prefix is $s_{i,t}$:
#
# $$ L = -\frac{1}{B} \sum_{i=1}^{B} r(y_i) \sum_t \log \pi(y_{i,t} \mid s_{i,t}) . $$
#
# In words: minus score times log-probability, summed over the tokens, averaged over the responses.
# Only the gradient of this loss has a meaning, not its value.

# %% [markdown]
# ## 3. By hand: the small world again
#
# We take the small world of lesson 03: the words *good*, *bad* and the full stop, at most two words
# in a response. The score is the number of *good* minus the number of *bad*. The policy is a table
# of logits, one row per prefix and one column per word. Again it is uniform at first: all logits
# are 0, and every word has the probability 1/3.
#
# The figure shows the tree of prefixes at the left, with the probability of each word. At the right
# are the seven responses. The bar is the probability of the response. The column *r* is its score.

# %% tags=["shared"]
world = core.World.from_reward(
    ("good", "bad", "."), 2, lambda w: float(w.count("good") - w.count("bad"))
)
show.world(world, {"uniform": world.ref_logits})

# %% [markdown]
# Take one logit $\theta_{s,a}$: that of word $a$ after prefix $s$. Only responses that reach $s$ can
# push it. For a softmax, the derivative of $\log \pi(y)$ with respect to $\theta_{s,a}$ is
# $1 - \pi(a \mid s)$ if the response goes on with $a$, and $-\pi(a \mid s)$ if it goes on with
# another word. REINFORCE multiplies this with the score. So the logit gets two contributions:
#
# - $-\pi(a \mid s)\, r(y)$ from *every* response that reaches $s$. That happens with the probability
#   $P(\text{reach } s)$, and the mean score of these responses is the value $V(s)$.
# - $r(y)$ in addition from those that go on with $a$. That happens with the probability
#   $P(\text{reach } s)\, \pi(a \mid s)$, and the mean score of these responses is $Q(s,a)$.
#
# The sum of both is the gradient:
#
# $$ \frac{\partial J}{\partial \theta_{s,a}} =
# P(\text{reach } s)\; \pi(a \mid s)\; \big(Q(s,a) - V(s)\big) . $$
#
# In words: how often the policy comes to the prefix, times how often it writes the word there,
# times how much better the word is than the average word there. The last factor, $Q - V$, is the
# **advantage** of the word.
#
# The table has a row for each logit. $Q$ and $V$ are those of lesson 03. The last column is the
# product of three others: P(reach $s$), $\pi$ and $Q - V$.
#
# | prefix $s$ | word $a$ | P(reach $s$) | $\pi(a \mid s)$ | $Q(s,a)$ | $V(s)$ | $Q - V$ | gradient |
# |---|---|---|---|---|---|---|---|
# | start | good | 1 | 1/3 | 1 | 0 | 1 | 1 · 1/3 · 1 = 1/3 |
# | start | bad | 1 | 1/3 | −1 | 0 | −1 | −1/3 |
# | start | . | 1 | 1/3 | 0 | 0 | 0 | 0 |
# | good | good | 1/3 | 1/3 | 2 | 1 | 1 | 1/3 · 1/3 · 1 = 1/9 |
# | good | bad | 1/3 | 1/3 | 0 | 1 | −1 | −1/9 |
# | good | . | 1/3 | 1/3 | 1 | 1 | 0 | 0 |
# | bad | good | 1/3 | 1/3 | 0 | −1 | 1 | 1/9 |
# | bad | bad | 1/3 | 1/3 | −2 | −1 | −1 | −1/9 |
# | bad | . | 1/3 | 1/3 | −1 | −1 | 0 | 0 |
#
# Everywhere *good* becomes more likely and *bad* less likely. The same comes out in two other ways:
# by differentiating the sum over all seven responses, and as the mean of the gradient of
# REINFORCE's loss, $-r(y) \log \pi(y)$.

# %%
by_hand = torch.tensor([[3, -3, 0], [1, -1, 0], [1, -1, 0]], dtype=torch.float64) / 9
logits, mask = world.ref_logits, world.response_mask  # mask: the real tokens
assert torch.allclose(world.gradient(logits), by_hand)  # the derivative of the sum

moved = logits.clone().requires_grad_(True)
scores = world.rewards[:, None].expand(mask.shape)  # each token has its response's
losses = core.reinforce(world.logprobs(moved), scores, mask)
world.expectation(logits, losses.sum(1)).backward()  # the mean over responses
assert torch.allclose(-moved.grad, by_hand)

# %% [markdown]
# ## 4. Reward-to-go: only what comes after
#
# Now suppose that the small world pays word by word: the reward of a token is $r_t = 1$ for each
# *good* and $-1$ for each *bad*. Their sum is the score. Take the response *good bad*. Its score is
# 0, so the score does not push its tokens at all. But when *bad* was written, the 1 for *good* had
# already been paid. *bad* should only answer for what comes after: its own reward and later ones.
# This sum is the **return** of the token, also called **reward-to-go**:
# $G_t = r_t + r_{t+1} + \dots$, up to the last token.
#
# | token | reward $r_t$ | score | return $G_t$ |
# |---|---|---|---|
# | first: good | 1 | 0 | 1 − 1 = 0 |
# | second: bad | −1 | 0 | −1 |
#
# With the return, *bad* is pushed down. May we replace the score by the return? Yes. **Given the
# prefix, the gradient of the next token has the mean zero:**
#
# $$ \mathbb{E}\big[ \nabla \log \pi(y_t \mid s_t) \,\big|\, s_t \big]
# = \sum_a \pi(a \mid s_t)\, \nabla \log \pi(a \mid s_t)
# = \sum_a \nabla \pi(a \mid s_t) = \nabla \sum_a \pi(a \mid s_t) = \nabla 1 = 0 . $$
#
# The sum runs over all words $a$. In words: probabilities sum to 1 whatever the parameters are, so
# the pushes after one prefix cancel on average. The rewards before token $t$ are fixed once $s_t$ is
# known. A fixed number times zero is zero. So they add nothing to the mean, only noise.

# %%
rewards_good_bad = torch.tensor([[1.0, -1.0]])
returns = core.reward_to_go(rewards_good_bad, torch.ones(1, 2).bool())
assert returns.tolist() == [[0.0, -1.0]]

# %% [markdown]
# If only the last token has a reward, the score, then the return of every token is the score.
#
#
# ## 5. Baselines: subtract a number
#
# Scores have no natural zero. Add 20 to all scores of the small world: *good good* now has 22 and
# *bad .* has 19. The differences between the responses stay the same. But in one batch of four,
# *bad .* happens to be sampled twice.
#
# The table shows how each response pushes the logits of *good* and *bad* at the start. By section 3,
# a response that begins with *good* pushes the logit of *good* by $\frac23$ of its score, and any
# other response by $-\frac13$ of its score. For the logit of *bad* it is the same with *bad*. The
# left half of the table takes the score, the right half the score − 20.
#
# | response | score | it pushes *good* by | it pushes *bad* by | score − 20 | it pushes *good* by | it pushes *bad* by |
# |---|---|---|---|---|---|---|
# | good good | 22 | 44/3 | −22/3 | 2 | 4/3 | −2/3 |
# | bad . | 19 | −19/3 | 38/3 | −1 | 1/3 | −2/3 |
# | bad . again | 19 | −19/3 | 38/3 | −1 | 1/3 | −2/3 |
# | . at once | 20 | −20/3 | −20/3 | 0 | 0 | 0 |
# | **mean** | 20 | **−7/6** | **17/6** | 0 | **1/2** | **−1/2** |
#
# In the left half, this batch makes *bad* more likely, only because it was sampled more often. In
# the right half we have subtracted 20, the mean score. Now the batch makes *good* more likely.

# %%
four = torch.tensor([world.labels.index(x) for x in ("goodgood", "bad.", "bad.", ".")])
raised = world.rewards[four] + 20
for advantages, good, bad in (
    (raised, -7 / 6, 17 / 6),
    (raised - raised.mean(), 1 / 2, -1 / 2),
):
    moved = logits.clone().requires_grad_(True)
    (advantages * world.sequence_logprobs(moved)[four]).mean().backward()
    row = moved.grad[0]  # the logits at the start: good, bad, full stop
    assert torch.allclose(row[:2], torch.tensor([good, bad]).double())

# %% [markdown]
# What we subtract is a **baseline** $b(s_t)$. It may depend on the prefix, but not on the
# token $y_t$ itself or on later ones. Then it leaves the *mean* of the gradient as it is:
#
# $$
# \begin{aligned}
# \mathbb{E}\big[ b(s_t)\, \nabla \log \pi(y_t \mid s_t) \,\big|\, s_t \big]
# &= b(s_t)\; \mathbb{E}\big[ \nabla \log \pi(y_t \mid s_t) \,\big|\, s_t \big]
#   && b(s_t) \text{ is fixed once } s_t \text{ is known} \\
# &= b(s_t) \cdot 0
#   && \text{section 4} \\
# &= 0 .
# \end{aligned}
# $$
#
# And it lowers the *noise*, if the returns are far from 0. A push is $G_t - b(s_t)$ times
# $\nabla \log \pi$. With scores near 20 each push is about 20 times as long as with scores near 1, and
# it pushes up whatever was sampled. On average these pushes cancel, but not in a single batch, as the
# table shows. A baseline near the returns makes them short.
#
# ## 6. Which number to subtract
#
# Four baselines are common:
#
# - **The value** $V(s_t) = \mathbb{E}[G_t \mid s_t]$, the mean return after the prefix. A second
#   network can learn it (lesson 05).
# - **The mean score of earlier batches.** It is fixed before this batch is sampled. Section 9 uses
#   it.
# - **The mean of the others**: for response $i$, the mean score of the other $B - 1$ responses of
#   the batch. They are independent of response $i$.
# - **The batch mean.** It contains the response's own score $r(y_i)$ with the weight $1/B$, so it
#   *does* depend on the tokens of $y_i$. This part takes away
#   $\frac1B \mathbb{E}[r(y_i) \nabla \log \pi(y_i)] = \frac1B \nabla J$. The other scores take away
#   nothing. So the batch mean leaves $\frac{B-1}{B} \nabla J$: the right direction, and a slightly
#   shorter step.
#
# **A sample of the advantage.** With the value as baseline, $G_t - V(s_t)$ stands in front of
# $\nabla \log \pi$. The return $G_t$ depends on how the response happened to go
# on after $y_t$. Its mean, given $s_t$ and $y_t$, is $Q(s_t, y_t)$. So $G_t - V(s_t)$ is a noisy
# sample of $Q(s_t, y_t) - V(s_t)$, the advantage of section 3. Both are called advantage, $A_t$.
#
# $V$, $Q$ and $A_t$ belong to one policy: the one that sampled the batch. After an update it is the
# *old* policy. The new one has other advantages. So REINFORCE samples again before each update.

# %% [markdown]
# ## 7. Bias and noise, exactly
#
# In the small world we can list all $7^4 = 2401$ batches of four responses, with their probabilities.
# Each batch gives one estimate of $\nabla J$.
#
# - The **bias** is the distance between the mean of all estimates and the true $\nabla J$.
# - The **noise** is the standard deviation of the estimate: the root of the mean squared distance
#   between one estimate and that mean.
#
# Both are divided by the norm of $\nabla J$. A noise of 1 says: the typical error of one batch is as
# large as the gradient itself.
#
# **Predict.** Six numbers can stand in front of $\nabla \log \pi$:
#
# 1. the score,
# 2. the return (the small world pays word by word, as in section 4),
# 3. the score + 20,
# 4. the score + 20, minus the batch mean,
# 5. the score + 20, minus the mean of the other three,
# 6. the score + 20, minus its value $V(s_t)$: 20 at the start, 21 after *good*, 19 after *bad*.
#
# Which have a bias, and how large? Which has the most noise, and how many times that of the score?

# %%
batches, chance = world.groups(logits, 4)  # (2401, 4) and (2401,)
grads = torch.autograd.functional.jacobian(world.logprobs, logits)  # of every token
truth = world.gradient(logits)
scores = world.rewards[batches][..., None]  # the same number for all tokens


def bias_and_noise(advantages):
    """advantages: a number for each batch, response and token, (2401, 4, 2)."""
    estimates = (advantages[..., None, None] * grads[batches]).sum((1, 2)) / 4
    mean = (chance[:, None, None] * estimates).sum(0)
    square = (chance * (estimates - mean).square().sum((1, 2))).sum()
    bias, noise = (mean - truth).norm(), square.sqrt()
    return (bias / truth.norm()).item(), (noise / truth.norm()).item()


# %% tags=["predict"]
raised = scores + 20
pay = torch.tensor([1.0, -1.0, 0.0])[world.response_ids].double()  # word by word
returns = core.reward_to_go(pay, mask)[batches]
values = world.by_token(world.values(logits)[0])[batches]
others = (raised.sum(1, keepdim=True) - raised) / 3
rows = {
    "the score": scores,
    "the return": returns,
    "the score + 20": raised,
    "... minus the batch mean": raised - raised.mean(1, keepdim=True),
    "... minus the mean of the others": raised - others,
    "... minus the value": raised - (values + 20),
}
table = {name: bias_and_noise(numbers) for name, numbers in rows.items()}
pd.DataFrame(table, index=["bias", "noise"]).T.round(2)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# - **Bias.** Only the batch mean has one: 0.25, which is $1/B$ for a batch of four. The other five
#   are exact on average.
# - **The return** has less noise than the score: 0.84 instead of 1.06.
# - **The noisiest** is the score + 20, with about 19 times the noise of the score: 20.25.
# - **Each baseline** takes nearly all of that noise away again. The batch mean leaves 0.94, the
#   mean of the others 1.26, the value 0.84. Here the score
#   minus the value *is* the return: both leave out what has been paid before.
# - The batch mean has less noise than the mean of the others, only because its step is shorter: its
#   advantages are always exactly 3/4 of the other ones.
# </details>

# %% [markdown]
# ## 8. Learning with scores near 20
#
# What does noise do to training? We train the policy of the small world: 100 steps, 16 new
# responses in each, plain gradient steps of size 0.5. Each setting is run 40 times, with other
# random numbers. We compute the expected score (without the 20) exactly. It starts at 0. The best
# policy always writes *good good* and has 2.


# %% tags=["shared"]
def learn(advantages_of, offset=0.0):
    """The expected score before each step of REINFORCE, for 40 seeds."""
    paths = []
    for seed in range(5 if FAST else 40):  # FAST=1 is for the tests of this page
        drawing, path = torch.Generator().manual_seed(seed), []
        logits = world.ref_logits
        for _ in range(100):
            path.append(world.objective(logits).item())
            rows = torch.multinomial(world.probs(logits), 16, True, generator=drawing)
            advantages = advantages_of(world.rewards[rows] + offset)
            logits = logits.detach().requires_grad_(True)
            (-advantages * world.sequence_logprobs(logits)[rows]).mean().backward()
            logits = logits - 0.5 * logits.grad
        paths.append(path)
    return torch.tensor(paths)


# %% [markdown]
# **Predict.** Three settings: the score as it is; the score + 20; the score + 20, minus the mean of
# the others. All three have the same expected gradient and the same step size. Where does each end
# after 100 steps, on average? Do its 40 runs agree with each other?
#
# In the figure, a line is the mean of the 40 runs. Its band reaches from the lowest to the highest
# of them.

# %% tags=["predict"]
curves = {
    "score": learn(lambda x: x),
    "score + 20": learn(lambda x: x, offset=20),
    "score + 20, minus the others": learn(lambda x: x - (x.sum() - x) / 15, offset=20),
}
show.lines(
    curves,
    xlabel="step",
    ylabel="expected score, without the 20",
    reference={"best": 2},
)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# - **The score** reaches the best policy in all 40 runs.
# - **With an offset of 20** and no baseline, the mean at the end is about 0.7. The runs do not
#   agree: some find the best policy, others end below 0. Every response that happens to be sampled
#   is pushed up by about 20. After 20 steps one response has a probability of 93 %, on average over
#   the runs. A run hardly leaves such a response any more, good or bad.
# - **With the baseline** the curve lies on that of the score.
#
# Nothing about the *expected* gradient has changed. The noise alone decides.
# </details>

# %% [markdown]
# ## 9. REINFORCE on a language model
#
# Now a small language model writes movie reviews. The prompt is a film's title. A reward model,
# trained on human ratings, scores the review. The scores are scaled: before training they have the
# mean 0 and the standard deviation 1. (So at first the baseline changes little.)

# %%
torch.set_num_threads(1)  # sums in a fixed order, so that two runs can be equal
start, tokenizer = models.load_policy("tiny-reviews-sft")
reward_model, _ = models.load_scalar("tiny-reviews-reward")
eos_id = tokenizer.eos_token_id
score = rewards.rollout_score(reward_model, eos_id)
sampling = models.SamplingConfig(temperature=0.7, max_new_tokens=32)
prompts = tasks.reviews.rl_prompts()  # film titles

steps = 2 if FAST else 6
order = list(loops.shuffled_batches(len(prompts), 64, steps, seed=0))
policy = copy.deepcopy(start)
optimizer = loops.make_optimizer(policy, loops.OptimiserConfig(lr=1e-4))
generator = torch.Generator().manual_seed(0)

# %% [markdown]
# `order` holds the numbers of 64 titles for each step. Tensors of tokens have the shape (B, R): 64
# responses, R positions. The mask is true at real tokens. The baseline is a running mean of the
# scores of *earlier* batches.


# %%
def train_by_hand(order):
    baseline, log = None, []
    for index in order:
        # 1. Sample one response to each title.
        titles = [prompts[i] for i in index]
        ids, prompt_mask = models.encode_prompts(tokenizer, titles)
        batch = models.sample(
            policy,
            ids,
            prompt_mask,
            eos_id=eos_id,
            config=sampling,
            generator=generator,
        )
        mask = batch.response_mask
        # 2. Score the finished responses. No gradient flows through the score.
        with torch.no_grad():
            scores = score(batch)  # (B,)
        # 3. Subtract the baseline. The first batch has no earlier one.
        mean_score = scores.mean().item()
        baseline = mean_score if baseline is None else baseline
        advantages = (scores - baseline)[:, None].expand(mask.shape)
        baseline = 0.9 * baseline + 0.1 * mean_score  # for the next batch
        # 4. The loss: minus advantage times log-probability, for each token ...
        batch = batch.with_columns(advantages=advantages)
        # (shuffled, as the package does; only the rounding depends on it)
        batch = batch.select(torch.randperm(len(titles), generator=generator))
        mask = batch.response_mask
        logprobs = models.policy_logprobs(policy, batch, temperature=0.7)
        losses = core.reinforce(logprobs, batch.advantages, mask)
        # ... summed over the tokens, averaged over the responses.
        loss = core.aggregate(losses, mask, how="sequence_sum")
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        log.append({"mean score": mean_score, "loss": loss.item()})
    return log


# %% [markdown]
# The responses are sampled at temperature 0.7. So their log-probabilities are computed at 0.7, too.
#
# **The denominator.** Our loss is the *sum* over the tokens of a response, and the *mean* over the
# responses, as in the formula. Lesson 05 (for its critic) and lesson 06 take the mean over all tokens
# of a batch. For one batch this is the same gradient, divided by the mean length of its responses
# (here about 20 tokens). Our optimiser, Adam, divides the gradient by its usual size, so the step
# hardly changes. But dividing each response by its *own* length, as in lesson 11, changes the
# direction. "Going further" has the numbers.
#
# The package's `train_group` with the row `"reinforce"` is this loop plus logs, checkpoints, a
# learning-rate schedule and gradient norm clipping. `GroupConfig.plain` switches the last two off.
# With the same seed, both leave exactly the same weights:

# %%
log = train_by_hand(order)

config = loops.GroupConfig.plain(
    "reinforce",
    steps=steps,
    prompts_per_step=64,
    kl=loops.KLConfig(kl_coef=0),  # no KL penalty (lesson 06)
)
other, _ = loops.train_group(copy.deepcopy(start), tokenizer, prompts, score, config)
assert models.same_weights(policy, other)
pd.DataFrame(log).rename_axis("step").T.round(2)

# %% [markdown]
# The table has one column per step. The mean score rises by about 1.2, more than one standard
# deviation. And the *loss* rises as well! The scores are now above the mean of
# earlier batches, so most advantages are positive, and each is multiplied with a large
# $-\log \pi(y)$.
#
# Reviews of three films: what has changed?

# %%
titles = tasks.reviews.eval_prompts("test")[:3]
reviews = {}
for name, model in {"before": start, "after six steps": policy}.items():
    (batch,) = models.sample_text(model, tokenizer, titles, config=sampling, seed=0)
    reviews[name] = models.decode(tokenizer, batch)
show.texts(pd.DataFrame(reviews, index=[title.strip() for title in titles]))

# %% [markdown]
# Before the training the reviews are mixed, or hard to understand. After six steps all three praise
# their film: *touching*, *compelling*, *fascinating*. The reward model likes praise. Nothing in
# this loop keeps the policy near good English. Lesson 06 adds what does.
#
# ## What to remember
#
# - $\nabla J = \mathbb{E}[\, r(y)\, \nabla \log \pi(y)\,]$: make each sampled response more likely,
#   in proportion to its score.
# - Given the prefix, $\nabla \log \pi(y_t \mid s_t)$ has the mean zero. So earlier rewards can be
#   left out (reward-to-go), and a baseline can be subtracted.
# - A baseline must not depend on the token. It takes away the noise of what all scores have in
#   common. The batch mean shortens the step to $(B-1)/B$.
# - The value of the loss means nothing. Watch the score, and read samples.
#
# ## Exercises
#
# Solutions are in `solutions/04_the_policy_gradient.ipynb`.

# %% [markdown] tags=["exercise"]
# **1. The loss** *(easy, 10 minutes)*. `logprobs` (B, R) are the log-probabilities of the sampled
# tokens, `scores` (B,) the scores, and `mask` (B, R) is true at real tokens. Return REINFORCE's
# loss, one number: sum over the tokens, mean over the responses. The checker compares the gradient,
# too.
#
# *Hint:* padding can hold NaN, and NaN times 0 is NaN. Replace padding with
# `torch.where(mask, x, 0.0)` before you compute.


# %% tags=["exercise"]
def policy_gradient_loss(logprobs, scores, mask): ...  # your code


check.policy_gradient_loss(policy_gradient_loss)


# %% tags=["solution"]
def policy_gradient_loss(logprobs, scores, mask):
    of_response = torch.where(mask, logprobs, 0.0).sum(1)
    return -(scores * of_response).mean()


check.policy_gradient_loss(policy_gradient_loss)

# %% [markdown] tags=["exercise"]
# **2. The returns** *(easy, 10 minutes)*. `rewards` (B, R) are the rewards of the tokens. Return
# the return $G_t$ of every token, (B, R), and 0 where the mask is false.
#
# *Hint:* a sum from the right is the total minus a sum from the left. Or turn the rows round with
# `flip`. Padding can hold NaN here, too.


# %% tags=["exercise"]
def returns_to_go(rewards, mask): ...  # your code


check.returns_to_go(returns_to_go)


# %% tags=["solution"]
def returns_to_go(rewards, mask):
    real = torch.where(mask, rewards, 0.0)
    return torch.where(mask, real.flip(1).cumsum(1).flip(1), 0.0)


check.returns_to_go(returns_to_go)

# %% [markdown] tags=["exercise"]
# **3. Find the bug** *(medium, 20 minutes)*. A colleague builds the batch mean into the loss:
# REINFORCE with advantages, summed over the tokens, averaged over the responses. The run does not
# learn. The expected score stays where it started, and the loss is 0 at every step, up to rounding.
# See the curve, beside that of section 8. What is wrong in `centred_loss`? Mend it, run the
# checker, and draw the curves again. Then say why the loss was exactly 0.
#
# *Hint:* there is no error message, so follow the shapes. Take a batch of two responses, and write
# down the shape of every tensor.


# %% tags=["exercise"]
def centred_loss(logprobs, scores, mask):
    """(B, R), (B,), (B, R) -> one number."""
    advantages = (scores - scores.mean())[:, None]
    of_responses = torch.where(mask, logprobs, 0.0).sum(1)
    return -(advantages * of_responses).mean()


check.centred_loss(centred_loss)

# %% [markdown] tags=["solution"]
# `advantages` has the shape (B, 1), and `of_responses` the shape (B,). Their product is not (B,) but
# (B, B): it has the advantage of *every* response times the log-probability of *every* response. The
# mean of this table is the mean advantage times the mean log-probability. The mean advantage is 0,
# because the batch mean was subtracted. So the loss is 0, and its gradient too. The `[:, None]` is
# right where an advantage meets tokens, (B, R). Here the tokens are already summed.


# %% tags=["solution"]
def centred_loss(logprobs, scores, mask):
    advantages = scores - scores.mean()
    of_responses = torch.where(mask, logprobs, 0.0).sum(1)
    return -(advantages * of_responses).mean()


check.centred_loss(centred_loss)


# %% tags=["exercise", "solution"]
def learn_with(loss_of):
    """The setting of section 8, one run, with a loss of (logprobs, scores, mask)."""
    drawing, path = torch.Generator().manual_seed(0), []
    logits = world.ref_logits
    for _ in range(100):
        path.append(world.objective(logits).item())
        rows = torch.multinomial(world.probs(logits), 16, True, generator=drawing)
        logits = logits.detach().requires_grad_(True)
        new = world.logprobs(logits)[rows]
        loss_of(new, world.rewards[rows] + 20, world.response_mask[rows]).backward()
        logits = logits - 0.5 * logits.grad
    return torch.tensor(path)


compared = {
    "section 8, minus the others": learn(lambda x: x - (x.sum() - x) / 15, offset=20),
    "the colleague's": learn_with(centred_loss),
}
show.lines(compared, xlabel="step", ylabel="expected score, without the 20")

# %% [markdown] tags=["exercise"]
# **4. Predict, then run** *(medium, 10 minutes)*. Subtract the *best* score of the batch instead of
# a mean. Then every advantage is negative or 0. Write down: Is there a bias? Does the policy learn,
# in the setting of section 8? Then run the cell.

# %% tags=["exercise"]
raised = world.rewards[batches] + 20
best = raised.amax(1, keepdim=True)
print("bias and noise, as in section 7:", bias_and_noise((raised - best)[..., None]))
show.lines(
    {"minus the best": learn(lambda x: x - x.max(), offset=20)},
    xlabel="step",
    ylabel="expected score, without the 20",
)

# %% [markdown] tags=["solution"]
# There is a bias: the best score of a batch depends on the response itself. For batches of four the
# bias is 0.34, larger than that of the batch mean (0.25). And yet the policy learns, nearly as fast
# as with the mean of the others. What is pushed down less than the others gains, because
# probabilities sum to 1. The expected gradient still points nearly in the right direction (a cosine
# of 0.97 with the true one). Most of the bias is a shorter step. So a biased estimate can be
# useful. But you should know that it is biased.

# %% [markdown] tags=["exercise"]
# **5. Design the experiment** *(hard, 15 minutes)*. Somebody says: "Our new baseline halves the
# noise." On a real model you cannot list all batches. How do you measure it? Say what you hold
# fixed, what you compare, how you know that your result is not luck, and what makes the comparison
# fair.

# %% [markdown] tags=["solution"]
# A good answer has these points:
#
# - One frozen policy, and the same sampled responses for both baselines.
# - The gradient as a vector, one per small batch, for many batches. Its standard deviation, as in
#   section 7, is the noise. Or split the batches into two halves, and see how well the two mean
#   gradients agree.
# - An interval, from resampling the *prompts*. Responses to one prompt are not independent.
# - The same mean for both baselines. A shorter step has less noise as well, see the batch mean.
# - The cost: a baseline that needs a second network, or more samples, must be compared at equal
#   *compute*.

# %% [markdown] tags=["exercise"]
# **6. The whole loop on an empty page** *(hard, 30 minutes)*. Close section 9. Write
# `train_by_hand` from memory, under the name `my_training`: sample at temperature 0.7, score,
# subtract the running mean of earlier batches (weight 0.9 for the old mean; the first batch takes
# its own), shuffle, update. Return the list of the mean scores. The last cell runs it and compares
# it with section 9. If the first mean score differs, look at the sampling. If a later one differs,
# look at the baseline and at the update.
#
# The functions are `models.encode_prompts`, `models.sample`, `score`, `batch.with_columns`,
# `batch.select`, `models.policy_logprobs`, `core.reinforce` and `core.aggregate`.
# `help(core.aggregate)` tells you the arguments of a function. `order` is a list, and each entry
# holds the numbers of 64 titles in `prompts`. All random numbers come from `generator`. For the
# shuffle, write `batch.select(torch.randperm(64, generator=generator))`, after the advantages are
# in the batch.


# %% tags=["exercise"]
def my_training(order): ...  # your code


# %% [markdown] tags=["solution"]
# `train_by_hand` in section 9 of the lesson is the solution. If your weights differ, compare the
# two line by line. Common slips: the baseline already contains the batch from which it is
# subtracted; log-probabilities at another temperature than the samples; the mean over tokens
# instead of the sum.

# %% tags=["exercise"]
policy = copy.deepcopy(start)
optimizer = loops.make_optimizer(policy, loops.OptimiserConfig(lr=1e-4))
generator = torch.Generator().manual_seed(0)
mine = my_training(order)
print("mean scores, section 9:  ", [row["mean score"] for row in log])
print("mean scores, my_training:", mine)
print("the weights are equal:", models.same_weights(policy, other))

# %% [markdown]
# ## Questions
#
# <details><summary>1. All scores of a batch are equal. What does REINFORCE do, with and without a baseline?</summary>
#
# Without a baseline it pushes up whatever was sampled (or down, if the score is negative). That is
# pure noise. With the mean of the others all advantages are 0, and nothing happens.
# </details>
#
# <details><summary>2. Why may a baseline depend on the prefix, but not on the token?</summary>
#
# The proof takes the mean over the token, given the prefix. A number that depends on the token does
# not come out of that mean.
# </details>
#
# <details><summary>3. Why not follow the gradient of the reward model into the policy?</summary>
#
# Between the two stands a choice of words. A small change of the parameters changes no word, until
# suddenly it changes one. There are methods that replace the words by mixtures of words. They
# maximise the score of mixtures that nobody writes.
# </details>
#
# <details><summary>4. Why are old samples useless after an update?</summary>
#
# The formula is a mean over responses of the policy *now*. Responses of an older policy come with
# other frequencies. PPO (lesson 06) corrects for that, and so uses a batch several times.
# </details>
#
# <details><summary>5. Would a smaller step not help as well as a baseline?</summary>
#
# It helps, because the noise of many small steps averages out. But training then takes many more
# steps. "Going further" has an example. A mean of other scores costs nothing.
# </details>
#
# ## Going further
#
# **A recorded run.** It is the same algorithm on another task, with the extras of a long run,
# recorded with three seeds. The model is `tiny-steps`, which writes arithmetic. The prompt is a
# problem such as `16+16+11=`. The score is 1 if the last number of the response is right, and 0 if
# not. A run has 80 steps of 128 responses, each to another problem. The figure shows two things over
# the steps: the mean score of the batches (the share of right answers), and the entropy of the
# policy (lesson 03).

# %%
history = experiments.results("family_history")
show.curves(
    history[history.variant == "reinforce"], columns=["score", "entropy"], across=2
)

# %% [markdown]
# - **score**: the share of right answers rises from 40 % to about 73 %. On 400 new problems it is the
#   same.
# - **entropy**: it falls from 0.39 to about 0.11 nats per token. The policy tries less and less.
#   Lesson 11 asks whether it has learned something new, or has only become surer.
#
# **The name.** In statistics the gradient $\nabla \log \pi(y)$ is called the *score function*, so
# the formula of section 1 is known as the score-function estimator. That word has nothing to do
# with our scores.
#
# **What a baseline saves.** Noise falls with the root of the batch size. In section 7 you would need
# about 260 times as many responses to come down from 20.25 to 1.26 without a baseline.
#
# **When a baseline hurts.** Look at the table of section 7 again. The score *without* the 20 has
# the noise 1.06. The mean of the others has 1.26, a little more. The reason: these scores already
# have the mean 0, so there is nothing to take away. And the mean of three scores is noisy itself.
# In larger batches this extra noise fades. With batches of two the mean of the others is a single
# score. There the noise grows from 1.49 to 2.24. So a baseline from a few samples pays where scores
# are far from 0. For the single prompts of a language model they are: some are easy and some are
# hard.
#
# **How large may the offset be?** In the setting of section 8 an offset of 3 does nothing bad: the
# 40 runs end at 1.97, like those without an offset. An offset of 20 does. Then 14 of the 40 runs
# end near 2, five near 1, 18 near 0 and three near −1. Steps that are 25 times smaller (0.02) need
# more steps: after 1,000 of them, five runs with the offset have reached 1.73 on average. With the
# baseline they have reached 1.91.
#
# **The best baseline.** Which number $b(s)$ gives the least noise at one prefix? Call the gradient
# of the token $g = \nabla \log \pi(y_t \mid s)$. The derivative of
# $\mathbb{E}\big[(G_t - b)^2\, \|g\|^2\big]$ with respect to $b$ is 0 at
#
# $$ b^* = \frac{\mathbb{E}\big[\, \|g\|^2\, G_t \,\big]}{\mathbb{E}\big[\, \|g\|^2 \,\big]} . $$
#
# This is a mean of the return that counts tokens with a large gradient more. Those are the
# surprising tokens. The value counts all tokens alike. We have tried it in a world with random
# scores and a random policy (three words, at most three tokens):
#
# | baseline | noise of one response | $\sum_t \mathbb{E}\big[(G_t - b)^2 \lVert g \rVert^2\big]$ |
# |---|---|---|
# | none | 2.92 | 1.79 |
# | $V(s_t)$ | 2.86 | 1.72 |
# | $b^*(s_t)$ | 2.76 | 1.62 |
#
# So $b^*$ takes off more than $V$. But it needs the norm of every token's gradient. The value is
# learned by plain regression, so everybody uses the value.
#
# **Denominators.** A batch has a number of responses and a number of tokens. By which do we divide?
# The formula of section 1 says: sum over the tokens of a response, mean over the responses. With
# long responses that makes long steps, so most libraries divide differently. `core.aggregate` knows
# four ways:
#
# | `how=` | divides the sum over all tokens by | used by |
# |---|---|---|
# | `sequence_sum` | the number of responses | REINFORCE, RLOO in TRL |
# | `token_mean` | the number of tokens in the batch | DAPO, OpenRLHF, default of TRL and verl |
# | `sequence_mean` | the length of each response, then the number of responses | the GRPO paper |
# | `constant` | the number of responses times a fixed length | Dr. GRPO |
#
# Only the first and the last keep the direction of $\nabla J$. In the random world (with $V$ as
# baseline) the expected gradient of the sequence mean has a cosine of 0.92 with $\nabla J$,
# whatever the batch size: tokens of long responses are pushed less. The token mean has 0.92 for
# batches of one, 0.99 for two and 0.998 for four. Its bias fades, because the number of tokens of a
# large batch hardly varies.
#
# **Noise on the language model.** There we do not know the true gradient. But we can sample 256
# reviews from the policy of section 9 before training, and compute the gradient on two halves of
# them. What the halves have in common is signal. There are 35 ways to cut eight batches of 32 into
# halves. The mean cosine between the two halves is
#
# | in front of $\nabla \log \pi$ | cosine of two halves |
# |---|---|
# | the score (scaled to mean 0) | 0.11 |
# | the score plus 3 | 0.02 |
# | the same, minus the mean of the others | 0.12 |
#
# In all 35 cuts the baseline makes the halves agree more. Scaling the scores to mean 0, as we do,
# *is* a baseline.
#
# **What the libraries do.**
#
# | | TRL | OpenRLHF | verl | DeepSpeed-Chat |
# |---|---|---|---|---|
# | policy loss is divided by | PPO: tokens; GRPO: `loss_type`, by default tokens of all processes | tokens | `loss_agg_mode`, by default tokens | tokens |
# | micro-batches | GRPO: denominator of the whole step | sums, divided by the whole | as configured | each by its own tokens |
# | returns per token | PPO: yes; RLOO: one number per response | yes | yes | yes |
#
# **References.** Williams 1992, *Simple statistical gradient-following algorithms* (REINFORCE).
# Sutton et al. 2000, *Policy gradient methods for reinforcement learning with function
# approximation* (the theorem, with a baseline). Greensmith, Bartlett and Baxter 2004, *Variance
# reduction techniques for gradient estimates* (the best baseline). Kool et al. 2019, *Buy 4
# REINFORCE samples, get a baseline for free!* (the mean of the others). Liu et al. 2025,
# *Understanding R1-Zero-like training* (denominators).
#
# *How this lesson is checked:* its loop equals `train_group` (`tests/loops/test_by_hand.py`), its
# exact statements are asserted on the page, and every number of the prose is compared with a
# computation or with the record (`tests/claims/test_lesson_04.py`).
