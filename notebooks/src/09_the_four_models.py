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
# # 09 · The four models
#
# After this lesson you can
#
# - compute a token's advantage from what the four models of PPO say,
# - say what goes wrong when one of the four fails,
# - compare two trained policies properly,
# - read the log of a run: name the likely fault, and say what to look at next.
#
# **You need** lessons 03 to 08: the policy gradient, advantages, PPO, the KL penalty and the reward
# model. About 60 minutes to read and 100 for exercises 1 to 5. Exercise 6 takes another hour.

# %%
from dataclasses import replace

import pandas as pd
import torch
from IPython.display import display

from minirlhf import core, experiments, models, rewards, show
from minirlhf.classroom import Questions, atlas, check, graded

# %% [markdown]
# ## 1. The idea: four models, one number per token
#
# [Lesson 06](06_ppo.ipynb) (section 4) introduced the four models of proximal policy optimisation
# (PPO): actor, reference, reward model and critic. It also gave the formulas that turn their numbers
# into one **advantage** $A_t$ per token:
#
# $$ r_t = -\beta\,(\log \pi_{\text{old}} - \log \pi_{\text{ref}})_t \quad (+ \text{ score, if } t
# \text{ is the last token}), \qquad
# \delta_t = r_t + V(s_{t+1}) - V(s_t), \qquad
# A_t = \delta_t + \lambda A_{t+1} . $$
#
# Here $s_t$ is the prompt and the tokens before token $y_t$. The actor samples $y_t$ with
# log-probability $\log \pi_{\text{old}}$, and the reference gives it $\log \pi_{\text{ref}}$. The
# critic $V$ predicts the sum of the rewards that are still to come, and is 0 after the last token. It is
# fitted to the **critic's target** $A_t + V(s_t)$.
# $\beta$ is the coefficient of the Kullback-Leibler (KL) penalty, $r_t$ the reward, $\delta_t$ the
# temporal-difference (TD) error. The last formula is generalised advantage estimation (GAE). We use
# $\beta = 0.5$, $\lambda = 0.95$ and no discount.
#
# In words: actor and reference give the KL penalty, and the reward model adds its score at the end.
# The critic says what was expected anyway. What remains is the advantage.

# %% [markdown]
# ## 2. One batch goes through all four
#
# The task is that of lesson 06: the prompt is a film's title, the response a short review. The actor
# and the reference start as the same model, after supervised fine-tuning (SFT). The critic starts as
# the reward model.
#
# We read a *recorded* run of PPO, so that you see the numbers of this page. After 12 of its 24 steps
# the actor wrote one review each for four films that training has not seen.

# %%
recorded = experiments.results("microscope")
table = recorded[
    (recorded.source == "fresh") & (recorded.step == 12)
]  # a row per token
responses = table.groupby("text")  # numbered from 0
titles, given = responses.prompt.first(), responses.score.first()
reviews = responses.token.agg(lambda tokens: "".join(tokens.iloc[:-1]))  # without EOS
show.texts(
    pd.DataFrame(
        {"film": titles.str.strip(), "score": given.round(2), "review": reviews}
    )
)

# %% [markdown]
# Actor and critic change with every step, so we take from the record what they said. The reference and
# the reward model never change. They read the finished reviews again, now. Tensors have the shape
# (B, R): B responses, R token positions.

# %%
sft, tokenizer = models.load_policy("tiny-reviews-sft")
reward_model, _ = models.load_scalar("tiny-reviews-reward")
batch = models.encode(tokenizer, titles.tolist(), reviews.tolist())
mask = batch.response_mask
score = rewards.rollout_score(reward_model, tokenizer.eos_token_id)
with torch.no_grad():
    ref_logprobs = models.policy_logprobs(sft, batch, temperature=0.7)  # as sampled
    scores = score(batch)  # the reward model


# %%
def from_record(column):
    """A column of the table in the shape (B, R)."""
    return torch.zeros(mask.shape).masked_scatter(
        mask, torch.tensor(table[column].tolist())
    )


old_logprobs = from_record("old_logprob")  # the actor
values = from_record("value")  # the critic
assert (ref_logprobs - from_record("ref_logprob"))[mask].abs().max() < 0.001
batch = replace(batch, old_logprobs=old_logprobs)
batch = batch.with_columns(scores=scores, ref_logprobs=ref_logprobs, values=values)

# %% [markdown]
# **Predict.** Which of the four models
#
# 1. has to run token by token, and is therefore slow?
# 2. gives one number per response, and not one per token?
# 3. can be left out if $\beta = 0$?

# %% tags=["predict"]
show.four_models(batch, kl_coef=0.5)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# 1. Only the *actor*, and only while it samples. All other passes read a finished response, all
#    tokens at once.
# 2. The *reward model*. It has an output at every token, but only the one at the last token was
#    trained (lesson 08).
# 3. The *reference*. Its only use is the KL penalty.
# </details>
#
# **By hand.** We follow response 3, *A finely entertaining tale.* The reward model gives it 1.26,
# more than one standard deviation above the mean of the SFT model's reviews. The other three models
# say this of its tokens, of which the last is the end-of-sequence token (EOS):

# %%
one = table[table.text == 3]
one[["token", "old_logprob", "ref_logprob", "value"]].round(2)

# %% [markdown]
# **Predict**, with a pencil.
#
# 1. What is the reward of the token *tale*?
# 2. What is the TD error of *tale*?
# 3. EOS earns the whole score. Is its advantage positive? (After EOS the value is 0.)
# 4. Is the sum of all seven rewards positive?

# %% tags=["predict"]
made = ["token", "kl", "reward", "value", "td_error", "advantage"]
one[made].rename(columns={"kl": "log-ratio"}).round(2)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# 1. The log-ratio of *tale* is −3.45 + 5.09 = 1.64 nats. The reward is half of that, negative: −0.82.
# 2. The critic says 1.24 before *tale* and 1.44 after it. The TD error is −0.82 + 1.44 − 1.24 =
#    −0.62.
# 3. No. Its log-ratio is 0.00, so its reward is 1.26. No token follows, so its advantage is its TD error:
#    1.26 − 1.85 = −0.59. (Without rounding, −0.58.) The score is high, but the critic expected more.
# 4. No. The sum is −1.43: the log-ratios add up to 5.39 nats, so the KL penalty is 2.69.
# </details>
#
# A good score is not enough. The actor finds this review
# $e^{5.39}$ times, or 219 times, as likely as the reference does. The KL penalty takes back more than the
# reward model gives: the sum of the rewards is −1.43, and the critic expected −0.52. All seven advantages
# (before whitening, lesson 06b) are negative. Taken alone, this review would become less likely.
#
# The **token microscope** shows all numbers of all four responses. Colour is the reward, or what you
# choose in the menu: blue is positive, orange negative.

# %%
show.microscope(table, "reward", text="all")

# %% [markdown]
# Try these two things, both in response 2:
#
# 1. **A bonus.** *bad* (of *badly*) has the reward 0.26: the actor writes it less often than the
#    reference. But its TD error is −0.37. Before *bad* the critic expects 1.22, after it only 0.60.
# 2. **Who is to blame?** *solid* and the second *performance* have the rewards −0.66 and −0.69. The critic
#    had not expected them: the TD errors are −0.51 and −0.60. GAE blames the earlier tokens, too. Choose
#    *advantage*: the twelve tokens from the first comma to *solid* are negative.

# %% [markdown]
# ## 3. One of the four fails
#
# We break one model at a time, and compute the advantages of response 3 again:
#
# - *No reference*: it agrees with the actor on every token.
# - *No reward model*: it gives every response the score 0.
# - *No critic*: it says 0 before every token.
#
# **Predict.** With all four, all seven advantages are negative. In each of the three cases: are the first
# ones positive? Are the last ones? (The critic says −0.52 before the first token and 1.85 before EOS.)


# %% tags=["predict"]
def advantages(scores=scores, ref_logprobs=ref_logprobs, values=values):
    """The advantages of response 3."""
    token_rewards = core.kl_shaped_rewards(
        scores, old_logprobs, ref_logprobs, mask, kl_coef=0.5
    )
    return core.gae(token_rewards, values, mask, gamma=1, lam=0.95)[0][3, : len(one)]


failed = pd.DataFrame({"token": one.token.tolist(), "all four": advantages()})
failed["no reference"] = advantages(ref_logprobs=old_logprobs)
failed["no reward model"] = advantages(scores=0 * scores)
failed["no critic"] = advantages(values=0 * values)
failed.round(2)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# - *No reference*: the first five are positive, from 1.68 down to 0.05. Only the score is left, and
#   nothing holds the actor. The last two are negative: there the critic expects more than 1.26.
# - *No reward model*: all seven are negative, and lower than before. Only the penalty is left. It pushes
#   the actor back to the reference.
# - *No critic*: the first four are negative, the last three positive. Now an advantage is what is still
#   to come. From *tale* on that is mostly the score, and no baseline is subtracted from it.
# </details>

# %% [markdown]
# ## 4. V, not Q
#
# Some lecture notes write the critic with the letter Q. But what PPO trains is $V$: the critic is read
# *before* the token, and does not know which one comes.
#
# The advantage is $Q(s_t, y_t) - V(s_t)$, where $Q(s_t, y_t)$ is the expected return once token $y_t$ is
# chosen. PPO needs no network for $Q$, because appending a token is *deterministic*: after $y_t$ the
# prefix is $s_{t+1}$, with certainty. So
#
# $$ Q(s_t, y_t) = r_t + V(s_{t+1}) . $$
#
# In words: read the same critic one token later, and add the reward. For *fine* in response 3, the
# reward −0.71 and the critic's 0.65 after it make a $Q$ of −0.05 (rounded at the end). The value before
# it is −0.29. The difference is the TD error, 0.24. The same holds for every token of the batch:

# %%
after = table.groupby("text").value.shift(-1, fill_value=0.0)  # V of the next prefix
q = table.reward + after
assert ((q - table.value) - table.td_error).abs().max() < 1e-3

# %% [markdown]
# ## 5. Did it get better?
#
# The score of the training batches cannot say: it is what PPO maximised. A proper comparison keeps five
# rules:
#
# 1. **Held-out prompts.** We use 76 films that no model was trained on.
# 2. **The same prompts for all methods.** Some films are easier to praise than others.
# 3. **A judge that training has never seen.** Ours is the *gold score*: the rating from −4 to 4 that
#    people would give, predicted by a model that was fitted on ratings of other films.
# 4. **Several training runs.** Another seed gives another policy (see below).
# 5. **Never the score alone.** Beside it: KL, length and variety. *Distinct-2* is the share of
#    different pairs of neighbouring words.
#
# And compare with a method that needs no training. *Best-of-n* samples n responses from the SFT model
# and keeps the one that the reward model likes best. Choosing among n makes a response at most n times
# as likely. So its log-ratio, and with it the KL, is at most $\ln n$ nats. The table has a closer
# bound, $\ln n - (n-1)/n$, which we do not derive.
#
# The table has three recorded runs. Each has its own SFT model and reward model. Brackets: lowest and
# highest run. The *proxy* is the reward model's score.

# %%
tour = experiments.results("tour")
tour = tour[tour.method.isin(["SFT", "best-of-4", "best-of-16", "PPO"])]
measures = {"gold": "gold score", "proxy": "proxy", "kl": "KL, nats"}
measures |= {"length": "tokens", "distinct_2": "distinct-2"}
judged = experiments.shown(tour, measures, by="method").T
bound = ["best-of-4", "best-of-16"]
numbers = judged.loc["KL, nats", bound].str.split().str[0]  # without the brackets
judged.loc["KL, nats", bound] = "at most " + numbers
judged

# %% [markdown]
# **What is one observation?** We ask which *method* is better: what would the next training run show? So
# one observation is one run, and not one film. Each run gives one gold score per method, the mean over
# the 76 films. Here is PPO's gold score minus that of the other method, run by run:

# %%
gold = tour.pivot(index="seed", columns="method", values="gold")
above = gold.drop(columns="PPO").rsub(gold["PPO"], axis=0)  # PPO minus each column
above.round(2)

# %% [markdown]
# **By hand**, for best-of-4: the three differences have the mean 0.238 and the standard deviation
# 0.103. The standard error of their mean is $0.103 / \sqrt 3 = 0.0595$. A 95 % interval for other
# seeds is the mean plus and minus 4.30 standard errors: from −0.02 to 0.49. For many runs the
# factor would be 1.96. For three it is 4.30 (Student's t distribution), because three numbers say
# little about how much runs scatter.
#
# **Predict.** Does the interval contain 0 for SFT? For best-of-16?

# %% tags=["predict"]
half = 4.303 * above.std() / 3**0.5  # 4.30 with one more digit
mean = above.mean()
pd.DataFrame({"PPO minus": mean, "low": mean - half, "high": mean + half}).round(2)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# - *SFT*: no. PPO is 0.97 above it, with an interval from 0.76 to 1.18.
# - *Best-of-16*: yes. PPO is 0.23 below it, with an interval from −0.49 to 0.04.
# </details>
#
# So PPO gains about one gold point over SFT, at a KL of 2 nats. In each of the three runs it lies between
# best-of-4 and best-of-16. Best-of-16 has about the same KL, at most 1.84 nats. What speaks for PPO
# is the price of an answer: one sample instead of 16.

# %% [markdown]
# ## 6. A bad critic
#
# Our critic starts as a copy of the reward model. It could also start as the SFT model with a new last
# layer, which is random. We recorded PPO with both, 24 steps of 64 reviews: three runs from the SFT
# model, six from the reward model.
#
# The table shows the critic's **explained variance** (lesson 05) in the batch of some steps, before the
# update, as a mean over three runs of each start: 1 is perfect, 0 is as good as a constant.
#
# The figure shows the gold scores of the final policies, minus the mean of the six runs. The grey band is
# the range of the six. The bar is a 95 % interval for the SFT start, for other seeds. Only the bar
# tells whether the start costs gold.
#
# **Predict.** Which start is worse at step 0? After about how many steps is each of them above 0? And
# does the worse start cost gold at the end?

# %% tags=["predict"]
names = {"as it is": "reward model", "kl_coef 0.5": "reward model, again"}  # 3 + 3
names |= {"critic from the SFT model": "SFT model"}
logged = experiments.results("ablations_history", "resources_history")
logged["critic"] = logged.variant.replace(names)
explained = logged.pivot_table("explained_variance", "critic", "step")
explained.loc[["reward model", "SFT model"], [0, 1, 2, 4, 6, 8, 12, 23]].round(2)

# %% tags=["predict"]
runs = experiments.results("ablations", "leash", "resources")
show.differences(
    runs.assign(variant=runs.variant.replace(names)),
    value="gold",
    repeats=["reward model", "reward model, again"],
    variants=["SFT model"],
    label="gold score",
)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# - *Reward model*: −0.29 at step 0, since it was never trained in the middle of a review. One step later
#   it is above 0.
# - *SFT model*: −9.37 at step 0. Its errors have ten times the variance of its targets. It comes
#   above 0 at step 6, and stays behind to the end.
# - *Gold score*: with the SFT start it is 0.085 lower, with an interval from −0.17 to 0.002. It contains
#   0, so you do not know whether there is a difference.
# </details>
#
# So the start decides when the critic becomes useful.

# %% [markdown]
# ## 7. A fooled reward model
#
# A policy *hacks* the reward model when it finds responses that the model likes and people do not.
# You know such runs from lesson 07: PPO without the KL penalty writes *A funny and funny and funny ...*
# for every film. The figure shows four curves of the
# training batches, with the penalty and without it.
#
# **Predict.** A real project has no gold curve. Which of the other three (score, KL, entropy) warns
# first? Which never does?

# %% tags=["predict"]
penalties = {"kl_coef 0.5": "with KL penalty", "kl_coef 0": "without"}
logged = experiments.results("leash_history")
logged = logged[logged.variant.isin(penalties)]
show.curves(
    logged.assign(variant=logged.variant.replace(penalties)),
    columns=["score", "gold", "kl", "entropy"],
    across=2,
    order=penalties.values(),
)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# - The *score* never warns: it rises to 4, and looks like success. From step 12 on it still rises, and
#   gold falls.
# - The *KL* warns first. At step 6 it is 6.2 nats, instead of 1.8, and gold still rises. It ends at 86.
# - The *entropy* follows: it falls from 2.48 to 0.37 nats per token. The policy hardly chooses any more.
# </details>
#
# Gold itself is no alarm. It falls from 3.07, but ends at 2.64, above the 1.45 of the healthy runs. So
# this judge can be fooled, too.
#
# Variety can also be counted: on the 76 held-out films distinct-2 is 0.02 instead of 0.81.

# %% [markdown]
# ## 8. Reading a log
#
# First ask *when* a curve goes wrong:
#
# - **At the start**, step 0: the fault is in what you start from, or in the scale of the scores.
# - **In the first updates**, as a jump: the updates are too large.
# - **Later**, as a drift: the policy goes where the rewards send it, and you do not want it there.
#
# The figure compares healthy runs (section 7, with the KL penalty) with three faulty ones, one run each:
#
# - *EOS never trained*: PPO started from an SFT model that was never trained to stop.
# - *reward scale wrong*: the scores are twenty times as large as they should be.
# - *collapsed*: the learning rate is thirty times too high.
#
# *missing_eos* is the share of responses that were cut at 32 tokens. *clip_fraction* is the share of
# tokens without a gradient because of PPO's clip. For one step, *clip_fraction* and *value_loss* are
# means over all updates on its batch. So at step 0 *clip_fraction* shows the first updates. Some axes
# are stretched, so the table below repeats small numbers.

# %%
faulty = ["EOS never trained", "reward scale wrong", "collapsed"]
logged = experiments.results("leash_history", "atlas_history")
logged = logged[logged.variant.isin(["kl_coef 0.5", *faulty])]
show.curves(
    logged.replace({"variant": {"kl_coef 0.5": "healthy"}}),
    columns=["missing_eos", "value_loss", "clip_fraction"]
    + ["kl", "entropy", "explained_variance"],
    order=["healthy", *faulty],
)

# %% [markdown]
# | when | what you see | likely fault | what to look at next |
# |---|---|---|---|
# | start | *missing_eos* is 77 % | the SFT model cannot stop | SFT data: is EOS there, and in the loss? |
# | start | *value_loss* is 63, in healthy runs 0.7 | the scores are on the wrong scale | the SFT model's scores: their standard deviation should be 1 (lesson 08) |
# | start | *explained_variance* is −9 (section 6) | the critic's last layer is random, or its targets hardly vary | the scores: do they vary? And the next steps: it should soon be positive |
# | first updates | *clip_fraction* is 36 %, then *kl* is 27 nats, in healthy runs 0.1 | the updates are too large | the learning rate, and the entropy of the next steps |
# | later | at step 16, *entropy* is near 0 and *explained_variance* 0.99 | collapse: all responses are alike, so their values are easy to predict | samples for different prompts |
# | later | *score* rises to the end, *kl* is in the tens (section 7) | the policy hacks the reward model | entropy, variety, samples |
#
# The fourth and the fifth row are one run: *collapsed* first jumps, then collapses. From
# step 17 on it jumps again, and its explained variance falls to 0.03.
#
# A symptom is not yet a fault. The KL of *reward scale wrong* also rises, to 16 nats, because a
# penalty with $\beta = 0.5$ has little weight against such scores. So look at a second curve. Its first
# value loss is 63. In the hacked runs of section 7 it is 0.7, as in healthy runs.

# %% [markdown]
# ## What to remember
#
# - Actor and reference give the KL penalty, the reward model the score, the critic the expectation.
# - Without the reference nothing holds the actor. Without the score it is pushed back to the reference.
#   Without a critic the advantages have no baseline.
# - The critic is $V$. Since appending a token is deterministic, $Q(s_t, y_t) = r_t + V(s_{t+1})$.
# - Compare on held-out prompts, with a judge that training has never seen, and next to best-of-n. For a
#   method, one observation is one training run.
# - A hacked run can have a high gold score. Watch KL, entropy and variety, and read samples.
# - In a log, first ask when a curve goes wrong: at the start, in the first updates, or later.
#
# ## Exercises
#
# Solutions are in `solutions/09_the_four_models.ipynb`.

# %% [markdown] tags=["exercise"]
# **1. A critic that cannot read** *(medium, 15 minutes)*. Imagine a critic that sees a token's
# position $t$, and nothing else. For each position it says one number, the same for all responses: the
# mean of the critic's targets $A_t + V(s_t)$ at this position. Responses without a token there do not
# count. You get the `targets` and the `mask`, (B, R) each. Return the explained variance of this critic
# over the real tokens of the batch, one number. Suppose that the critic of your run has the same
# explained variance. What do you conclude?
#
# *Hint:* first write down the values that this critic says. Responses have different lengths. Padding can
# hold NaN, and NaN times 0 is NaN. Replace padding with `torch.where(mask, x, 0.0)` before you sum.
#
# <details><summary>What do you conclude?</summary>
#
# Your critic knows how the targets change along a response. It has learned nothing about what the tokens
# say, so it cannot tell a good beginning from a bad one. A useful critic explains more than this one.
# </details>


# %% tags=["exercise"]
def explained_by_position(targets, mask): ...  # your code


check.explained_by_position(explained_by_position)


# %% [markdown] tags=["solution"]
# Take the mean of each position over the real tokens there. Then compare the real tokens only.


# %% tags=["solution"]
def explained_by_position(targets, mask):
    sums = torch.where(mask, targets, 0.0).sum(0)
    values = (sums / mask.sum(0).clamp(min=1)).expand_as(targets)
    errors = (targets - values)[mask]
    return 1 - errors.var(unbiased=False) / targets[mask].var(unbiased=False)


check.explained_by_position(explained_by_position)

# %% [markdown] tags=["exercise"]
# **2. From four models to one number** *(medium, 25 minutes)*. You get what the four models say:
# `scores` (B,), `old_logprobs`, `ref_logprobs` and `values`, (B, R) each, with `mask` and
# `kl_coef`. Return the *whitened* advantages, (B, R), and 0 where the mask is false. Use
# $\lambda = 0.95$ and no discount. Whitened means, as in lesson 06b: subtract the mean over all real
# tokens of the batch, and divide by the standard deviation (the variance divides by the number of
# tokens).
#
# *Hint:* you have written the parts: `kl_shaped_rewards` (lesson 07) and `gae_advantages` (lesson
# 05). Padding can hold NaN, and NaN times 0 is NaN. Replace padding with
# `torch.where(mask, x, 0.0)` before you compute.


# %% tags=["exercise"]
def four_models(scores, old_logprobs, ref_logprobs, values, mask, kl_coef):
    """The whitened advantages (B, R)."""  # your code below


check.four_models(four_models)


# %% tags=["solution"]
def four_models(scores, old_logprobs, ref_logprobs, values, mask, kl_coef):
    token_rewards = -kl_coef * torch.where(mask, old_logprobs - ref_logprobs, 0.0)
    last = mask.sum(1, keepdim=True) - 1
    token_rewards = token_rewards.scatter_add(1, last, scores[:, None])
    values = torch.where(mask, values, 0.0)
    advantages, later, after = torch.zeros_like(token_rewards), 0.0, 0.0
    for t in reversed(range(token_rewards.shape[1])):
        later = token_rewards[:, t] + after - values[:, t] + 0.95 * later
        later = torch.where(mask[:, t], later, 0.0)  # nothing is carried over padding
        advantages[:, t], after = later, values[:, t]
    real = advantages[mask]
    return torch.where(mask, (advantages - real.mean()) / real.std(unbiased=False), 0.0)


check.four_models(four_models)

# %% [markdown] tags=["exercise"]
# **3. How would it do on other films?** *(medium, 15 minutes)*. You have one trained policy of each
# of two methods. `ours` and `theirs` are the gold scores of their responses to the same N films,
# four responses to each: (N, 4). Return a tensor of two numbers: the mean difference (ours minus
# theirs), and its standard error for *other films*.
#
# *Hint:* section 5 asked about other runs, so its observation was one run. What is one observation here?


# %% tags=["exercise"]
def paired_standard_error(ours, theirs): ...  # your code


check.paired_standard_error(paired_standard_error)


# %% [markdown] tags=["solution"]
# One observation is one film: the difference of the two means over its four responses. The four responses
# share the film, so they are not four independent observations.


# %% tags=["solution"]
def paired_standard_error(ours, theirs):
    difference = (ours - theirs).mean(1)
    return torch.stack([difference.mean(), difference.std() / len(difference) ** 0.5])


check.paired_standard_error(paired_standard_error)

# %% [markdown] tags=["exercise"]
# **4. Find the bug** *(medium, 20 minutes)*. A colleague writes the function that puts the score on a
# token. Padding has the same id as EOS, as with GPT-2. There is no KL penalty. Nothing fails, and the
# policy learns a little. The last cell trains it in a world of three words, *a*, *b* and EOS, in which
# exactly one response is good: *a*, then EOS. It has the score 1, all others 0. A right function
# comes close to 1. Draw the curves of the function as it is. What is wrong in `score_rewards`? Mend it,
# run the checker, and draw the curves again. Then explain the first curve: why does it stop just below
# 1/3? (The policy starts with equal probabilities for the three words.) The
# solutions have the answer.
#
# *Hint:* write down `response_ids` of the good response (three tokens, EOS is 2), and what the function
# returns for it. A response that was cut has no EOS.


# %% tags=["exercise"]
def score_rewards(scores, response_ids, eos_id):
    """Rewards of the tokens (B, R): the score of each response on one of its tokens."""
    mask = response_ids != eos_id
    last = (mask.sum(1) - 1).clamp(min=0)
    token_rewards = torch.zeros(response_ids.shape)
    return token_rewards.scatter(1, last[:, None], scores[:, None])


check.score_rewards(score_rewards)


# %% [markdown] tags=["solution"]
# The mask takes EOS for padding, so the score lands on the token *before* EOS. EOS is a choice of the
# policy, like any other token. Nothing is earned after it, so it is never pushed up: the policy learns to
# write *a*, but not to stop there. The *first* EOS belongs to the response, and only later ones are
# padding. A response that was cut has no EOS. Its score belongs on its last token.
#
# Why 1/3? The score of the good response lands on *a*. So the probability of *a* as the first word goes
# to 1. At the second word no token ever gets a reward. The gradient there is 0, and the three words keep
# their equal probabilities: after *a*, EOS comes in 1/3 of the cases.


# %% tags=["solution"]
def score_rewards(scores, response_ids, eos_id):
    ended = response_ids == eos_id
    end = response_ids.shape[1] - 1
    last = torch.where(ended.any(1), ended.int().argmax(1), end)
    token_rewards = torch.zeros(response_ids.shape)
    return token_rewards.scatter(1, last[:, None], scores[:, None])


check.score_rewards(score_rewards)


# %% tags=["exercise", "solution"]
def train(seed):
    """REINFORCE with reward-to-go. Returns the expected score after each update."""
    world = core.World.from_reward(
        ("a", "b", "."), 3, lambda words: float(words == ["a", "."])
    )
    drawing, logits, path = torch.Generator().manual_seed(seed), world.ref_logits, []
    for _ in range(80):
        path.append(world.objective(logits).item())
        rows = torch.multinomial(world.probs(logits), 32, True, generator=drawing)
        mask, ids = world.response_mask[rows], world.response_ids[rows]
        token_rewards = score_rewards(world.rewards[rows].float(), ids, eos_id=2)
        returns = core.reward_to_go(token_rewards, mask)
        logits = logits.detach().requires_grad_(True)
        losses = core.reinforce(world.logprobs(logits)[rows], returns, mask)
        core.aggregate(losses, mask, how="sequence_sum").backward()
        logits = logits - logits.grad
    return path


show.lines(
    {"your score_rewards": torch.tensor([train(seed) for seed in range(5)])},
    xlabel="update",
    ylabel="expected score",
    reference={"the best policy": 1},
)

# %% [markdown] tags=["exercise"]
# **5. Five runs without a name** *(hard, 30 minutes)*. Five recorded runs of PPO, A to E, one seed
# each. One is `healthy`. Each of the others has one fault, and no two have the same. The fault is
# one of those of section 8 (`EOS never trained`, `reward scale wrong`, `collapsed`), or one of
# these:
#
# | name | what is wrong in the code |
# |---|---|
# | `no penalty` | `kl_coef=0` |
# | `zero values` | the critic's values are multiplied by 0 |
# | `turned sign` | `kl_shaped_rewards` gets `old_logprobs` and `ref_logprobs` in the wrong order |
# | `equal scores` | the score of every response is 1 |
#
# Before you look, write down for each fault in which curves you expect it, and from which step on. Then
# give each run its name, and note the curve that decided. Score, gold and explained variance are hidden,
# because they would tell some of the runs at once. When you have decided, add them to `columns` and look
# again. For a wrong answer you are told what such a run would look like. When all five are right,
# you get the reasons. The second figure has the two
# runs with large numbers.

# %% tags=["shared"]
frames = map(pd.DataFrame, atlas.runs().values())
logs = pd.concat(frames, keys=atlas.runs(), names=["variant"]).reset_index("variant")
columns = ["kl", "entropy", "length", "missing_eos", "clip_fraction", "value_loss"]
for letters in ("ABD", "CE"):
    some = logs[logs.variant.isin(list(letters))]
    display(show.curves(some, columns=columns, order="ABCDE"))

# %% tags=["exercise"]
diagnoses = {}  # yours, such as {"A": "no penalty", "B": "collapsed"}
print(atlas.diagnosed(diagnoses))

# %% [markdown] tags=["solution"]
# None of the three faults of section 8 is here. Few responses are cut at step 0, the first value losses
# are near 1 or below, and at most 15 % of the tokens are clipped.
#
# - **C** and **E** begin like **B**, and drift later. In both the KL passes 90 nats. In **C** the entropy
#   falls to 0.45 and few responses are cut. Nothing holds this policy: `no penalty`. In **E** the KL
#   itself is rewarded. It reaches 222 nats, and a longer response can earn more, so nearly every response
#   is cut. The rewards grow without end, and so does the value loss: `turned sign`.
# - **D** is `zero values`. Its value loss starts lowest, at 0.18, because 0 is not a bad first guess. It
#   ends higher, so this critic learns nothing. In A and B the value loss falls. (The explained variance is
#   exactly 0, and the score rises less than in B.)
# - **A** is `equal scores`. Its KL stays below 1.2 nats and its responses hardly get shorter: there is
#   nothing to gain. The targets hardly vary, so its value loss falls to 0.05, less than half of B's. The
#   KL is not 0, because whitening scales pure noise to variance 1, and so the policy is pushed around.
#   (The score is always 1. The explained variance starts near −3: any error is large beside such
#   targets.)
# - **B** is `healthy`: the KL stays below 3 nats, the value loss falls to 0.12. (The explained variance
#   rises to 0.74.)
#
# At the end C and E have a gold score above 2.5, and the healthy run 1.2. Neither of the two writes
# anything that you would like to read.

# %% tags=["solution"]
diagnoses = {
    "A": "equal scores",
    "B": "healthy",
    "C": "no penalty",
    "D": "zero values",
    "E": "turned sign",
}
print(atlas.diagnosed(diagnoses))

# %% [markdown] tags=["exercise"]
# **6. Your own RLHF** *(an hour)*. Put your `kl_shaped_rewards` (lesson 07), `gae_advantages`
# (lesson 05), `ppo_loss` (lesson 06) and `bradley_terry_loss` (lesson 08) into a file `my_rlhf.py`,
# with `import torch` on top. Run
#
# ```
# minirlhf tour --mine my_rlhf.py
# ```
#
# Each function is checked first. Then the tour trains a reward model and PPO with your functions in
# the place of the package's. (`group_advantages` and `dpo_loss` come in lessons 11 and 12. Until
# then the package's are used.) The report is `out/tour/mine/report.html`. Run the tour without
# `--mine` as well, and compare `out/tour/ppo.jsonl` with `out/tour/mine/ppo.jsonl`. (Each run takes
# five minutes on two free cores,
# and much longer on a busy machine.) Are the numbers the same? Should they be? How near is near enough?
#
# <details><summary>What you should see</summary>
#
# They need not be the same. Your sums may run in another order, and then their last digits differ.
# Training and sampling make such a difference grow: after some steps one token is another one, and from
# there on the responses differ. So the first two or three steps should agree to about three digits. If
# step 0 already differs more, look for an error in your functions. The last steps may differ as two seeds
# do. In three recorded tours the `gold` of PPO's last step goes from 1.21 to 1.34.
# </details>

# %% [markdown]
# ## Questions
#
# <details><summary>1. The reference can be left out if the KL coefficient is 0. What is the price?</summary>
#
# Nothing holds the policy any more. Section 7 shows what it then does. (You also cannot log the KL.)
# </details>
#
# <details><summary>2. Reward model and critic have the same shape. Why do we read one number from the one, and many from the other?</summary>
#
# The reward model was trained at the last token only, so its other outputs mean little. The critic is
# trained at every token, and each token's advantage needs the value before it.
# </details>
#
# <details><summary>3. Why are the passes of section 2 made without gradient, though two of the models are trained?</summary>
#
# They only make the data of the update: rewards, old log-probabilities, advantages, the critic's targets.
# These are constants in the loss. The gradient flows through the passes that come after, one per
# minibatch.
# </details>
#
# <details><summary>4. The explained variance is 0.9. Is the run healthy?</summary>
#
# You cannot know. The number says one thing: the critic predicts its targets well. It does not say what
# these are worth. There are three possibilities:
#
# - The critic has learned, and the policy is sound. In the healthy runs of section 8 it ends near 0.7.
# - The responses have become alike, so their values are easy to predict. The collapsed run of section 8
#   has 0.99 for some steps.
# - With $\lambda$ below 1 the targets contain a part of the critic's own predictions. Then the number
#   flatters the critic (see "Going further").
#
# So look at entropy, variety and KL, and read samples.
# </details>
#
# <details><summary>5. One trained policy beats another by 0.30, with the interval [0.20, 0.40] over films. What may you conclude about the two methods?</summary>
#
# Only that this policy is better on films like these. Another seed gives another policy. Train several.
# </details>
#
# <details><summary>6. A colleague says that the critic should be larger than the actor. What would you run?</summary>
#
# Critics of two or three sizes, with the same actor, prompts and at least three seeds. Report explained
# variance, and gold at equal KL on held-out films, as one difference per run. To say that size makes *no*
# difference you need an interval that is narrow and contains 0. A wide interval that contains 0 says only
# that you do not know.
# </details>
#
# ## The twelve questions again
#
# You answered them in lesson 00. The first cell asks them, the second takes your letters and says what
# is wrong with each wrong one.

# %% tags=["exercise"]
Questions()

# %% tags=["exercise"]
my_answers = "- - - - - -  - - - - - -"  # yours
print(graded(my_answers, explain=True))

# %% [markdown]
# ## Going further
#
# **Head or backbone?** The reward model gives the critic two things: blocks that know good words
# from bad ones, and a last layer with the right unit. We let three critics learn from the same
# reviews of a frozen actor, in two steps, with one seed. On new reviews a critic with the reward
# model's blocks and a *new* last layer explains more than one that starts as the SFT model. So the
# blocks matter.
#
# **A warm-up.** One can also let only the critic learn for some steps, before the actor starts
# (`critic_warmup`, 0 by default). We have measured it on arithmetic only, with three seeds. There the
# critic starts with a random last layer. 15 steps of warm-up change the share of right answers to 400
# held-out problems from 0.70 to 0.68. The 95 % interval of the difference, for other problems and seeds,
# goes from −0.06 to 0.02. So three seeds show no gain.
#
# **A critic that never learns.** One recorded run has a critic that always says 0. Its gold score is 0.22
# below the lowest of the six runs of section 6. It is one run, so it has no interval.
#
# **When V is not enough.** Where chance answers, $Q(s_t, y_t)$ is not $r_t + V(s_{t+1})$. Suppose a
# user replies *yes* or *no*, each with probability 0.5. After *yes* the value is 2, after *no* 0.
# Then $Q$ is 1, and $V(s_{t+1})$ is 2 or 0: right on average, not each time.
#
# **Explained variance and $\lambda$.** In section 6 the critic is compared with its targets
# $A_t + V(s_t)$. With $\lambda = 0.95$ they contain a part of the critic's own predictions. With
# $\lambda = 1$ they do not, and the same start has −1.45 at step 0, instead of −0.29.
#
# **Other films.** The interval of section 5 keeps the 76 films and asks about other runs. You can also
# keep the policies and ask about other films. The *bootstrap* draws 76 of the differences per film with
# replacement, 2,000 times, and takes the middle 95 % of their means. PPO minus best-of-4 then goes
# from 0.16 to 0.32, and PPO minus best-of-16 from −0.35 to −0.11. Neither contains 0, but neither
# says anything about another run.
#
# An interval for other films *and* other runs goes from −0.003 to 0.48 for best-of-4, and contains 0.
# For best-of-16 it goes from −0.45 to −0.01, and does not contain 0. This second interval is narrower than
# that of section 5, although more may change. The reason is its factor, 3.27 standard errors instead of
# 4.30: it estimates a part of the scatter from 76 films, and not from three runs. With the factor 4.30 it
# would go from −0.52 to 0.06, and contain 0. So the answer depends on the method: three runs do not decide
# whether best-of-16 is better.
#
# **Pairing.** The second rule of section 5 gains little in this comparison. A film that is easier for PPO is hardly
# easier for best-of-n. So without pairing the standard errors would be at most 1.06 times as large.
#
# **Curves that do not warn.** At the end of the runs without the KL penalty the explained variance is
# 0.76, with it 0.68. So this curve does not give a hacked run away. Gold does not give
# *reward scale wrong* away either: on the held-out films it is 2.87, twice that of the healthy runs. But
# distinct-2 is 0.10 instead of 0.81.
#
# **Not explained.** In section 8 the explained variance of *reward scale wrong* starts at 0.19, and in
# healthy runs at −0.29. It rises to 0.46, and then falls to 0.03. The record does not tell why.
#
# **The first value loss.** With scores twenty times as large you may expect squared errors 400 times as large, so a
# first value loss of about 280. But this critic still has the old unit, so beside such targets it says
# almost 0. A critic that always says 0 would have a first value loss of 71.
#
# **What the libraries do.** TRL lets you name the model from which the critic starts.
# DeepSpeed-Chat takes the reward model. OpenRLHF takes the reward model if you name none. verl has
# a warm-up of the critic as an option, TRL has none. The score lands on EOS here, on the last token
# that the policy chose in OpenRLHF, and one position later in TRL. The logged KL is a sum per
# response here and in TRL, and a mean per token in OpenRLHF. So ask which one it is before you
# compare two logs.
#
# **References.** Ziegler et al. 2019, *Fine-tuning language models from human preferences*
# (sections 2.1 and 2.2: reward model, KL penalty, the critic's start). Stiennon et al. 2020,
# *Learning to summarize from human feedback* (appendix G.1: a separate critic that starts as the
# reward model). Ouyang et al. 2022, *Training language models to follow instructions* (section 3.5,
# appendix C.4). Huang et al. 2024, *The N+ implementation details of RLHF with PPO* (logs, EOS,
# where the score lands). Zheng et al. 2023, *Secrets of RLHF in large language models, part I*
# (sections 4 and 5: which curves tell a run's health).
#
# *How this lesson is checked:* the record of sections 2 to 4 comes from `minirlhf experiment microscope`,
# and every number about a recorded run is compared with the record
# (`tests/claims/test_lesson_09.py`).
