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
# - say what a baseline does to the gradient estimate, to its mean and to its spread, and why.
#
# **You need** lesson 03 (a language model is a policy: prefixes, returns, values, the small world).
# About 55 minutes to read and 100 for the exercises.

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
# - $r(y)$ is its score: the reward of the whole response.
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
# its tokens. The logarithm turns the product into a sum:
#
# $$ \nabla \log \pi(y) = \sum_t \nabla \log \pi(y_t \mid s_t) . $$
#
# So every token is pushed up or down by the score of its whole response.
#
# **As a loss.** An optimiser minimises. We hand it a loss whose gradient is *minus* the policy
# gradient, estimated from $B$ sampled responses $y^{(1)}, \dots, y^{(B)}$. The number of a response
# stands above, that of a token below: token $t$ of response $y^{(i)}$ is $y^{(i)}_t$, after the
# prefix $s^{(i)}_t$:
#
# $$ L = -\frac{1}{B} \sum_{i=1}^{B} r(y^{(i)}) \sum_t \log \pi(y^{(i)}_t \mid s^{(i)}_t) . $$
#
# In words: minus score times log-probability, summed over the tokens, averaged over the responses.
#
# **The spread.** Another batch gives another estimate of $\nabla J$. The mean of all estimates is
# right, but a single one can be far off. The **spread** says how far: it is the root of the mean
# squared distance from the mean (the standard deviation).

# %% [markdown]
# ## 3. By hand: the small world again
#
# We take the small world of lesson 03 again. The policy is a table of logits, one row per prefix and
# one column per word. It is uniform at first: all logits are 0, and every word has the probability
# 1/3.
#
# The figure shows the tree of prefixes. At the right are the seven responses, with their
# probability (the bar) and their score (*r*).

# %% tags=["shared"]
world = core.World.from_reward(
    ("good", "bad", "."), 2, lambda w: float(w.count("good") - w.count("bad"))
)
uniform = world.ref_logits  # the table of zeros: the policy with which we start
show.world(world, {"uniform": uniform})

# %% [markdown]
# **One logit.** Take the prefix *good*, and there the logit of the word *good*. Only responses that
# begin with *good* can push it. A push is the score times the derivative of $\log \pi(y)$. For a
# softmax, this derivative is $1 - \frac13 = \frac23$ if the response goes on with *good*, and
# $-\frac13$ if it goes on with another word:
#
# | response | probability | score | push |
# |---|---|---|---|
# | *good good* | 1/9 | 2 | 2/3 · 2 = 4/3 |
# | *good bad* | 1/9 | 0 | −1/3 · 0 = 0 |
# | *good .* | 1/9 | 1 | −1/3 · 1 = −1/3 |
#
# The mean push is the gradient: $\frac19 \cdot \frac43 + \frac19 \cdot 0 - \frac19 \cdot \frac13 =
# \frac19$. The same number is the product of three others:
#
# | factor | its value | what it is |
# |---|---|---|
# | $P(\text{reach } s)$ | 1/3 | how often the policy comes to the prefix *good* |
# | $\pi(a \mid s)$ | 1/3 | how often it then writes *good* again |
# | $Q(s,a) - V(s)$ | 2 − 1 | the score of *good good*, minus the mean score after *good* |
#
# This holds for the logit $\theta_{s,a}$ of any word $a$ after any prefix $s$ ("Going further" says why):
#
# $$ \frac{\partial J}{\partial \theta_{s,a}} =
# P(\text{reach } s)\; \pi(a \mid s)\; \big(Q(s,a) - V(s)\big) . $$
#
# In words: how often the policy comes to the prefix, times how often it writes the word there,
# times the **advantage** of the word. The next cell computes this for all nine logits, and compares
# it with the derivative of the sum over all responses, and with REINFORCE's loss.

# %%
logits, mask = uniform, world.response_mask  # mask: the real tokens
v, q = world.values(logits)
reach = torch.tensor([[1], [1 / 3], [1 / 3]])
by_hand = reach * logits.softmax(1) * (q - v[:, None])
assert torch.allclose(world.gradient(logits), by_hand)  # the derivative of the sum

moved = logits.clone().requires_grad_(True)
scores = world.rewards[:, None].expand(mask.shape)  # each token has its response's
losses = core.reinforce(world.logprobs(moved), scores, mask)
world.expectation(logits, losses.sum(1)).backward()  # the mean over responses
assert torch.allclose(-moved.grad, by_hand)
pd.DataFrame(by_hand.numpy(), ["start", "good", "bad"], world.vocab).round(2)

# %% [markdown]
# After every prefix *good* becomes more likely and *bad* less likely.

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
# prefix, $\nabla \log \pi$ of the next token has the mean zero:**
#
# $$ \mathbb{E}\big[ \nabla \log \pi(y_t \mid s_t) \,\big|\, s_t \big]
# = \sum_a \pi(a \mid s_t)\, \nabla \log \pi(a \mid s_t)
# = \sum_a \nabla \pi(a \mid s_t) = \nabla \sum_a \pi(a \mid s_t) = \nabla 1 = 0 . $$
#
# The sum runs over all words $a$. In words: probabilities sum to 1 whatever the parameters are, so
# the pushes after one prefix cancel on average. The rewards before token $t$ are fixed once $s_t$ is
# known. A fixed number times zero is zero, after every prefix. So the earlier rewards do not change
# the mean gradient, only its spread. Here they raise it (section 8).

# %%
rewards_good_bad = torch.tensor([[1.0, -1.0]])
returns = core.reward_to_go(rewards_good_bad, torch.ones(1, 2).bool())
assert returns.tolist() == [[0.0, -1.0]]

# %% [markdown]
# If only the last token has a reward, the score, then the return of every token is the score.
#
# ## 5. Baselines: subtract a number
#
# Add 20 to all scores of the small world: *good good* now has 22 and *bad .* has 19. The differences
# between the responses stay the same. But in one batch of four, *bad .* happens to be sampled twice.
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
# the right half we have subtracted 20. Now the batch makes *good* more likely.

# %%
four = torch.tensor([world.labels.index(x) for x in ("goodgood", "bad.", "bad.", ".")])
raised = world.rewards[four] + 20
# 20 was fixed before the sampling. That it is also the mean of this batch is chance.
for advantages, good, bad in (
    (raised, -7 / 6, 17 / 6),
    (raised - 20, 1 / 2, -1 / 2),
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
# The *spread* becomes smaller, if the baseline is near the returns. A push is $G_t - b(s_t)$ times
# $\nabla \log \pi$. With scores near 20 each push is about 20 times as long as with scores near 1, and
# it pushes up whatever was sampled. On average these pushes cancel, but not in a single batch, as the
# table shows. A baseline near 20 makes them short. (Returns near 0 need none: see "Going further".)
#
# ## 6. Baselines made of other scores
#
# Three baselines need nothing but scores. Take response $y^{(i)}$ of a batch of $B$:
#
# - **The mean score of earlier batches.** It is fixed before this batch is sampled. Section 10 uses
#   it from the second batch on.
# - **The mean of the others**: the mean score of the other $B - 1$ responses of the batch. They are
#   sampled independently of $y^{(i)}$.
# - **The batch mean.** It contains the own score $r(y^{(i)})$. So it *does* depend on the tokens of
#   $y^{(i)}$.
#
# What does the batch mean do to the gradient? In a batch of four it leaves for the first response
#
# $$ r(y^{(1)}) - \tfrac14 \big(r(y^{(1)}) + r(y^{(2)}) + r(y^{(3)}) + r(y^{(4)})\big)
# = \tfrac34\, r(y^{(1)}) - \tfrac14 \big(r(y^{(2)}) + r(y^{(3)}) + r(y^{(4)})\big) . $$
#
# The part with the other three scores is a baseline: it changes nothing on average. What remains is
# 3/4 of the own score. So the mean estimate is $\frac34 \nabla J$, and $\frac{B-1}{B} \nabla J$ in a
# batch of $B$: the right direction, and a slightly shorter step.
#
# ## 7. The value as a baseline
#
# The value $V(s_t)$ depends on the prefix only, so it is a baseline. A second network can learn it
# (lesson 05). With it, $G_t - V(s_t)$ stands in front of $\nabla \log \pi$.
#
# Take *good* at the start. Its $Q$ is $V$ after *good* (lesson 03: $Q(s_t, y_t) = r_t + V(s_{t+1})$,
# and $r_t$ is 0 here), so its advantage $Q - V$ is 1. The responses that begin with *good* have the
# returns 2, 0 and 1, and $V$ is 0. So $G_t - V$ is 2, 0 or 1, depending on how the response goes on.
# The mean is 1: the advantage. In general, $G_t - V(s_t)$ is a **sample of the advantage** $Q - V$.
# Lesson 05 estimates the advantage: $\hat A_t$.
#
# All these numbers belong to the policy that sampled the batch. So REINFORCE samples again before
# each update.

# %% [markdown]
# ## 8. Bias and spread, exactly
#
# In the small world we can list all $7^4 = 2401$ batches of four responses, with their probabilities.
# Each batch gives one estimate of $\nabla J$.
#
# - The **bias** is the distance between the mean of all estimates and the true $\nabla J$.
# - The **spread** is the standard deviation (section 2).
#
# `world.bias_and_spread` computes both, and divides them by the norm of $\nabla J$. A spread of 1
# says: the typical error of one batch is as large as the gradient itself.
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
# Which have a bias, and how large? Which has the largest spread, and how many times that of the
# score?

# %%
batches, _ = world.groups(logits, 4)  # (2401, 4): the four responses of each batch
scores = world.rewards[batches][..., None]  # (2401, 4, 1): the same for all tokens
raised = scores + 20
others = (raised.sum(1, keepdim=True) - raised) / 3
pay = torch.tensor([1.0, -1.0, 0.0])[world.response_ids].double()  # word by word
returns = core.reward_to_go(pay, mask)[batches]  # (2401, 4, 2): one for each token
v_t = world.by_token(v)[batches] + 20  # the value before each token

# %% tags=["predict"]
rows = {
    "the score": scores,
    "the return": returns,
    "the score + 20": raised,
    "... minus the batch mean": raised - raised.mean(1, keepdim=True),
    "... minus the mean of the others": raised - others,
    "... minus the value": raised - v_t,
}
table = {name: world.bias_and_spread(logits, x) for name, x in rows.items()}
pd.DataFrame(table, index=["bias", "spread"]).T.round(2)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# - **Bias.** Only the batch mean has one: 0.25, which is $1/B$ for a batch of four. The other five
#   are exact on average.
# - **The return** has a smaller spread than the score: 0.84 instead of 1.06.
# - **The largest spread** has the score + 20: 20.25, about 19 times that of the score.
# - **Each baseline** takes nearly all of it away again. The batch mean leaves 0.94, the mean of the
#   others 1.26, the value 0.84. The mean of the others has even more spread than the plain score
#   (1.26 against 1.06), because a mean of three scores varies, too.
# - **The value** has the spread of the return. For the uniform policy they are the same ("Going further").
# - **The batch mean** is no better than the mean of the others. The advantages are 3/4 as large, so
#   the spread *and* the step are 3/4 as large.
# </details>

# %% [markdown]
# ## 9. Learning with scores near 20
#
# What does a large spread do to training? We train the policy of the small world: 100 steps, 16 new
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
# The line is the mean of the 40 runs, the band reaches from the lowest to the highest. The table
# below counts the runs by the score near which they end.

# %% tags=["predict"]
curves = {
    "no offset": {"score": learn(lambda x: x)},
    "offset of 20": {
        "score + 20": learn(lambda x: x, offset=20),
        "minus the others": learn(lambda x: x - (x.sum() - x) / 15, offset=20),
    },
}
show.lines(curves, xlabel="step", ylabel="expected score", ylim=(-2.1, 2.1))

# %% tags=["predict"]
runs = curves["no offset"] | curves["offset of 20"]
ends = {name: x[:, -1].round().int().tolist() for name, x in runs.items()}
counts = pd.DataFrame(ends).apply(pd.Series.value_counts)
counts.fillna(0).astype(int).rename_axis("runs that end near")

# %% [markdown]
# <details><summary>What you should see</summary>
#
# - **The score** reaches the best policy in all 40 runs.
# - **With an offset of 20** and no baseline, the mean at the end is about 0.7. But no run ends near
#   it: 14 runs end near 2, 5 near 1, 18 near 0 and 3 near −1. Every sampled response is pushed up by
#   about 20. So one response soon has nearly all of the probability, and the expected score is near
#   *its* score. Chance decides which one, and when another takes its place.
# - **With the baseline** the line is nearly that of the left panel.
#
# The *expected* gradient is the same. The spread alone decides.
# </details>

# %% [markdown]
# ## 10. REINFORCE on a language model
#
# Now a small language model writes movie reviews. The prompt is a film's title. A reward model,
# trained on human ratings, scores the review. The scores are scaled: before training they have the
# mean 0 and the standard deviation 1.

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
# `order` holds the numbers of 64 titles for each step. The baseline is a running mean of the scores of
# *earlier* batches.


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
        mask = batch.response_mask  # (B, R) responses, positions: true at real tokens
        # 2. Score the finished responses. No gradient flows through the score.
        with torch.no_grad():
            scores = score(batch)  # (B,)
        # 3. Subtract the baseline. The first batch has no earlier one.
        mean_score = scores.mean().item()
        baseline = mean_score if baseline is None else baseline
        advantages = (scores - baseline)[:, None].expand(mask.shape)
        baseline = 0.9 * baseline + 0.1 * mean_score  # for the next batch
        # 4. The loss: minus advantage times log-probability, for each token ...
        batch = batch.with_columns(advantages=advantages)  # one more tensor in it
        # (Shuffled, as in the package. The loss does not depend on the order. But the
        # shuffle uses up random numbers: without it, the next samples are others.)
        # `select` puts the responses, with all their tensors, into this order.
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
# Samples and log-probabilities have the same temperature, 0.7 (lesson 03). The loss is the *sum* over
# the tokens of a response, and the *mean* over the responses, as in the formula: `"sequence_sum"`.
#
# The package's `train_group` knows several algorithms. `"reinforce"` is the name of this one. It
# adds logs, a penalty for responses without an end, a learning-rate schedule and gradient clipping.
# `GroupConfig.plain` switches the last three off.
# With the same seed, both leave exactly the same weights:

# %%
log = train_by_hand(order)

config = loops.GroupConfig.plain(
    "reinforce",
    steps=steps,
    prompts_per_step=64,
    kl=loops.KLConfig(kl_coef=0),  # no KL penalty (lesson 07)
)
other, _ = loops.train_group(copy.deepcopy(start), tokenizer, prompts, score, config)
assert models.same_weights(policy, other)
pd.DataFrame(log).rename_axis("step").T.round(2)

# %% [markdown]
# The mean score rises by more than 1, the standard deviation before training. And the *loss* rises as
# well! The scores are now above the mean of earlier batches, so most advantages are positive, and
# each is multiplied with a large $-\log \pi(y)$.
#
# Your numbers may differ a little.
#
# Reviews of three films: what has changed?

# %%
titles = tasks.reviews.eval_prompts("test")[:3]
names = [title.strip() for title in titles]
(before,) = models.sample_text(start, tokenizer, titles, config=sampling, seed=0)
(after,) = models.sample_text(policy, tokenizer, titles, config=sampling, seed=0)
reviews = {
    "before": models.decode(tokenizer, before),
    "after six steps": models.decode(tokenizer, after),
}
show.texts(pd.DataFrame(reviews, index=names))

# %% [markdown]
# Before the training the reviews are mixed, or hard to understand. Afterwards each has words of
# praise, such as *funny*. Lessons 06 and 07 keep the policy near good English.
#
# Which tokens have moved? Below each token of the reviews *before* is the change of its log-probability.

# %%
with torch.no_grad():
    now = models.policy_logprobs(policy, before, temperature=0.7)
strips = {}
for i, title in enumerate(names):
    real = before.response_mask[i]
    tokens = [tokenizer.decode([t]) for t in before.response_ids[i, real].tolist()]
    strips[title] = tokens, (now - before.old_logprobs)[i, real]
show.token_strips(strips)

# %% [markdown]
# *funny* and *great* (of *greatest*) have become more likely, *but* and *us-eless* less. Yet *starts* and the full
# stop have moved as much. For each token gets the push of its whole review. A word of praise is mostly in reviews
# with a high score, so over many reviews its pushes add up. Other words' pushes mostly cancel. Lesson 05 looks for a
# better way.
#
# ## What to remember
#
# - $\nabla J = \mathbb{E}[\, r(y)\, \nabla \log \pi(y)\,]$: make each sampled response more likely,
#   in proportion to its score.
# - Given the prefix, $\nabla \log \pi(y_t \mid s_t)$ has the mean zero. So earlier rewards can be
#   left out (reward-to-go), and a baseline can be subtracted.
# - A baseline must not depend on the token. It takes away the spread that comes from what all scores
#   have in common. The batch mean shortens the step to $(B-1)/B$.
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
# **3. Find the bug** *(medium, 25 minutes)*. A colleague takes the value as a baseline. In the
# small world it can be exact: column $t$ of `values` (B, R + 1) has the value of the prefix with
# $t$ words, and 0 where the response is finished. The policy learns, but no run comes near the best
# score. See the curve, beside that of section 9 (no offset is added here). What is wrong in
# `baseline_loss`? Mend it, run the checker, and draw the curves again. Then say: Which words did the
# policy not learn, and why? At which score does the *mean* of the 40 runs stop?
#
# *Hint:* take *good bad* and the uniform policy. Write down what is subtracted from the score at each
# of the two words.


# %% tags=["exercise"]
def baseline_loss(logprobs, scores, values, mask):
    """(B, R), (B,), (B, R + 1), (B, R) -> one number."""
    logprobs = torch.where(mask, logprobs, 0.0)
    advantages = scores[:, None] - values[:, 1:]
    return -(advantages * logprobs).sum(1).mean()


check.baseline_loss(baseline_loss)

# %% [markdown] tags=["solution"]
# Column $t$ is the value *before* word number $t$, counted from 0. So the baseline of the first word
# is column 0, and the slice is `values[:, :-1]`. The colleague subtracts the value *after* the word.
# It depends on the word, so it is no baseline.


# %% tags=["solution"]
def baseline_loss(logprobs, scores, values, mask):
    logprobs = torch.where(mask, logprobs, 0.0)
    advantages = scores[:, None] - values[:, :-1]
    return -(advantages * logprobs).sum(1).mean()


check.baseline_loss(baseline_loss)


# %% tags=["exercise", "solution"]
def learn_with(loss_of):
    """The setting of section 9 without an offset, with exact values."""
    paths = []
    for seed in range(5 if FAST else 40):
        drawing, path = torch.Generator().manual_seed(seed), []
        logits = world.ref_logits
        for _ in range(100):
            path.append(world.objective(logits).item())
            rows = torch.multinomial(world.probs(logits), 16, True, generator=drawing)
            before = world.by_token(world.values(logits)[0])[rows]
            values = torch.nn.functional.pad(before, (0, 1))  # 0 after the last word
            logits = logits.detach().requires_grad_(True)
            new, real = world.logprobs(logits)[rows], world.response_mask[rows]
            loss_of(new, world.rewards[rows], values, real).backward()
            logits = logits - 0.5 * logits.grad
        paths.append(path)
    return torch.tensor(paths)


compared = {
    "section 9, score": learn(lambda x: x),
    "baseline_loss": learn_with(baseline_loss),
}
show.lines(compared, xlabel="step", ylabel="expected score", reference={"best": 2})

# %% [markdown] tags=["exercise"]
# <details><summary>What you should see (open it when the checker has passed)</summary>
#
# - **Before you mend it**, the 40 runs end at 0.66 on average. A single run ends between 0.34 and
#   0.96. **After that**, the two lines lie nearly on each other.
# - **The first word is not learned.** Until the response ends, the value *after* a word is the $Q$ of
#   the word: lesson 03 has $Q(s_t, y_t) = r_t + V(s_{t+1})$, and here $r_t$ is 0 before the end. So
#   $G_t - Q$ stands in front of the first word. Its mean is 0 for *every* first word, so no word looks
#   better than another.
# - **The second word is learned.** The value after it is 0, so it gets the whole score. The policy
#   learns *good good* with 2, and *bad good* with 0. A response that ends at once has 0.
# - **The mean stops at 2/3.** Each of the three first words keeps 1/3 of the responses on average:
#   1/3 · 2 + 1/3 · 0 + 1/3 · 0 = 2/3. In a single run it may be more or less. Pushes with the mean 0
#   are still pushes, so chance moves the first word in each run.
# </details>

# %% [markdown] tags=["exercise"]
# **4. Predict, then run** *(medium, 10 minutes)*. Subtract the *best* score of the batch instead of
# a mean. Then every advantage is negative or 0. Write down: Is there a bias? Does the policy learn,
# in the setting of section 9, and how fast? Then run the cell.

# %% tags=["exercise"]
best = raised.amax(1, keepdim=True)
found = world.bias_and_spread(world.ref_logits, raised - best)
print("bias and spread, as in section 8:", found)
show.lines(
    {
        "minus the others": learn(lambda x: x - (x.sum() - x) / 15, offset=20),
        "minus the best": learn(lambda x: x - x.max(), offset=20),
    },
    xlabel="step",
    ylabel="expected score, without the 20",
)

# %% [markdown] tags=["exercise"]
# <details><summary>What you should see</summary>
#
# - **Bias:** yes, 0.34. The batch mean of section 8 has 0.25. The best score depends on the response
#   itself.
# - **Learning:** just as fast as with the mean of the others. The two lines lie nearly on each other.
# - **Why does it learn?** Take one response of a batch of four, and take the mean over the other
#   three. For a response with the score 2, the mean advantage is 0. For a score of 1 it is −0.30, then
#   −0.83 for 0, −1.82 for −1, and −2.81 for −2. So on average the batch
#   pushes as if these five numbers were the scores. They have the same order as the true scores. By
#   section 5 only their differences count. So good responses still become more likely than bad ones.
# - **Why just as fast?** Section 9 has batches of 16. At the start 85 % of them contain *good good*,
#   and after ten steps nearly all. So the best score is nearly always 22, a *fixed* number, and a fixed
#   number is a proper baseline. At the start the bias is only 0.05. With `lambda x: x - 22` the curve
#   is the same.
#
# So a biased estimate can be useful. Exercise 3 shows that it can also be harmful. There the number
# depends on the word, and takes away all that makes one first word better than another.
# </details>

# %% [markdown] tags=["exercise"]
# **5. Design the experiment** *(hard, 15 minutes)*. Somebody says: "Our new baseline halves the
# spread of the gradient estimate." On a real model you cannot list all batches. How do you measure
# it? Say what you hold fixed, what you compare, how you know that your result is not luck, and what
# makes the comparison fair.
#
# <details><summary>What a good answer contains</summary>
#
# - **Held fixed:** one policy, which is not trained. Both baselines get the same sampled responses, so
#   they are compared in pairs.
# - **Compared:** the gradient as a vector, one per small batch, for many batches. Take its mean *and*
#   its standard deviation, as in section 8. The two means should agree. If one is shorter, divide each
#   standard deviation by the norm of its own mean: a shorter step alone lowers the spread (see the
#   batch mean).
# - **Not luck:** an interval, from resampling the *prompts*. Responses to one prompt are not
#   independent.
# - **Fair:** a baseline that needs a second network, or more samples, must be compared at equal
#   *compute*.
# </details>

# %% [markdown] tags=["exercise"]
# **6. The whole loop on an empty page** *(hard, 30 minutes)*. Close section 10. Write
# `train_by_hand` from memory, under the name `my_training`: sample at temperature 0.7, score,
# subtract the running mean of earlier batches (weight 0.9 for the old mean; the first batch takes
# its own), shuffle, update. Return the log, as in section 10: for each step the mean score and the
# loss. The last cell runs it and shows it beside the log of section 10. Go from left to right, and
# find the first number that differs:
#
# - **The mean score of step 0:** look at the sampling.
# - **The loss of step 0:** look at the advantages, the sign, the temperature, the sum and the mean.
# - **The mean score of a later step:** look at the update and at the shuffle. The shuffle draws from
#   the same generator as the sampling. So without it the next batch is another one.
# - **Only the loss of a later step:** look at the baseline and at `zero_grad`.
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
# `train_by_hand` in section 10 of the lesson is the solution. If your weights differ, compare the
# two line by line. Common slips: the baseline already contains the batch from which it is
# subtracted; log-probabilities at another temperature than the samples; the mean over tokens
# instead of the sum.

# %% tags=["exercise"]
policy = copy.deepcopy(start)
optimizer = loops.make_optimizer(policy, loops.OptimiserConfig(lr=1e-4))
generator = torch.Generator().manual_seed(0)
mine = my_training(order)
print("the weights are equal:", models.same_weights(policy, other))
logs = {"section 10": pd.DataFrame(log), "my_training": pd.DataFrame(mine)}
pd.concat(logs, axis=1).rename_axis("step").T.round(4)

# %% [markdown]
# ## Questions
#
# <details><summary>1. All scores of a batch are equal. What does REINFORCE do, with and without a baseline?</summary>
#
# Without a baseline it pushes up whatever was sampled (or down, if the score is negative). It learns
# nothing from that. With the mean of the others all advantages are 0, and nothing happens.
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
# Between the two stands the sampling, and one cannot differentiate through it. A small change of the
# parameters changes no sampled word, until suddenly it changes one. There are methods that replace
# the words by mixtures of words. They maximise the score of mixtures that nobody writes.
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
# It helps, because the errors of many small steps average out. But training then takes many more
# steps. "Going further" has an example. A mean of other scores costs nothing.
# </details>
#
# ## Going further
#
# Where no cell shows a number of this section, the test of this page computes it
# (`tests/claims/test_lesson_04.py`).
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
# **The three factors of section 3.** Take the logit of *good* after the prefix *good* again. The derivative of $\log
# \pi(y)$ is $1 - \frac13$ if *good* follows, and $-\frac13$ if another word follows. So each push has two parts:
#
# | part | when | how often | the logit moves by | mean |
# |---|---|---|---|---|
# | **up** | if *good* is chosen after *good* | 1/3 · 1/3 | the score, 2 = $Q$ | 1/3 · 1/3 · 2 = 2/9 |
# | **down** | whatever is chosen after *good* | 1/3 | −1/3 of the score. The mean score there is 1 = $V$ | 1/3 · (−1/3) · 1 = −1/9 |
#
# Reach times probability times $Q$, minus reach times probability times $V$: this is the formula.
#
# **The value and the return in section 8.** Take *bad* after *good*: the score is 0 and $V$ is 1, and 0 − 1 = −1 is
# the return of *bad*. Here $V$ is what has already been paid, because the uniform policy earns 0 on average from
# there on. So subtracting the value leaves the return. For other policies the two differ.
#
# **What a baseline saves.** The spread falls with the root of the batch size. In section 8 you would need
# about 260 times as many responses to come down from 20.25 to 1.26 without a baseline.
#
# **When a baseline hurts.** Look at the table of section 8 again. The score *without* the 20 has
# the spread 1.06. The mean of the others has 1.26, a little more. The reason: these scores already
# have the mean 0, so there is nothing to take away. And the mean of three scores varies itself.
# In larger batches this extra spread fades. With batches of two the mean of the others is a single
# score. There the spread grows from 1.49 to 2.24. So a baseline from a few samples pays where scores
# are far from 0. For the single prompts of a language model they are: some are easy and some are
# hard.
#
# **How large may the offset be?** In the setting of section 9 an offset of 3 does nothing bad: the
# 40 runs end at 1.97, like those without an offset. An offset of 20 can be repaired by smaller steps,
# but then you need more of them. Replace 0.5 by 0.02 in `learn`, and 100 steps by 1,000. Five such
# runs reach 1.73 on average with the offset alone, and 1.91 with the mean of the others.
#
# **The best baseline.** Which number $b(s)$ gives the smallest spread at one prefix? Call the gradient
# of the token $g = \nabla \log \pi(y_t \mid s)$. The derivative of
# $\mathbb{E}\big[(G_t - b)^2\, \|g\|^2\big]$ with respect to $b$ is 0 at
#
# $$ b^* = \frac{\mathbb{E}\big[\, \|g\|^2\, G_t \,\big]}{\mathbb{E}\big[\, \|g\|^2 \,\big]} . $$
#
# This is a weighted mean of the return. The weight of a token is $\|g\|^2$, so tokens with a large
# gradient count more. Those are the surprising tokens. The value counts all tokens alike. We have
# tried it in a *random world*: `core.World.random(3, 3, seed=0)` has three words, at most three
# tokens, and random scores. The policy is random, too.
#
# | baseline | spread with one response |
# |---|---|
# | none | 2.92 |
# | $V(s_t)$ | 2.86 |
# | $b^*(s_t)$ | 2.76 |
#
# So $b^*$ takes off more than $V$. But it needs the norm of every token's gradient. The value is
# learned by plain regression, so everybody uses the value.
#
# **Denominators.** A batch has a number of responses and a number of tokens. By which do we divide?
# The formula of section 1 says: sum over the tokens of a response, mean over the responses. With
# long responses that makes long steps, so most libraries divide differently. Lesson 05 (for its
# critic) and lesson 06 take the mean over all tokens of a batch. For one batch this is the same
# gradient, divided by the mean length of its responses (here about 20 tokens). Our optimiser, Adam,
# divides the gradient by its usual size, so the step hardly changes. But dividing each response by
# its *own* length, as in lesson 11, changes the direction. `core.aggregate` knows
# four ways. (RLOO, DAPO, GRPO and Dr. GRPO are relatives of REINFORCE, see lessons 10 and 11. TRL,
# OpenRLHF, verl and DeepSpeed-Chat are libraries.)
#
# | `how=` | divides the sum over all tokens by | used by |
# |---|---|---|
# | `sequence_sum` | the number of responses | REINFORCE, RLOO in TRL |
# | `token_mean` | the number of tokens in the batch | DAPO, PPO in TRL, OpenRLHF, DeepSpeed-Chat, default of GRPO in TRL and of verl |
# | `sequence_mean` | the length of each response, then the number of responses | the GRPO paper |
# | `constant` | the number of responses times a fixed length | Dr. GRPO |
#
# Only the first and the last keep the direction of $\nabla J$. In the random world (with $V$ as
# baseline) the expected gradient of the sequence mean has a cosine of 0.92 with $\nabla J$,
# whatever the batch size: tokens of long responses are pushed less. The token mean has 0.92 for
# batches of one, and 0.998 for batches of four. Its bias fades, because the number of tokens of a
# large batch hardly varies.
#
# **The spread on the language model.** There we do not know the true gradient. But we can sample 256
# reviews from the policy of section 10 before training, and compute the gradient on each half of
# them. Both halves estimate the same $\nabla J$, and each has an error of its own. If the errors are
# large, the two gradients point in unrelated directions: their cosine is near 0. Without errors
# their cosine would be 1. There are 35 ways to cut eight batches of 32 into halves. The mean cosine is
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
