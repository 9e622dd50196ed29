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
import copy

import pandas as pd
import torch
from IPython.display import display

from minirlhf import core, evaluate, experiments, loops, models, rewards, show, tasks
from minirlhf.classroom import FAST, Questions, atlas, check, graded

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
# starts as the model after supervised fine-tuning (SFT). The reference stays that model. Actor and
# critic first get three steps of lesson 06's loop, here with the full learning rates. So actor and
# reference differ.

# %%
torch.set_num_threads(1)  # sums in a fixed order, so that two runs can be equal
sft, tokenizer = models.load_policy("tiny-reviews-sft")
reward_model, _ = models.load_scalar("tiny-reviews-reward")
eos_id = tokenizer.eos_token_id
score = rewards.rollout_score(reward_model, eos_id)
actor, critic, _ = loops.train_ppo(
    copy.deepcopy(sft),  # the actor starts as the SFT model,
    copy.deepcopy(reward_model),  # the critic as the reward model
    tokenizer,
    tasks.reviews.rl_prompts(),
    score,
    loops.PPOConfig.plain(steps=1 if FAST else 3),
)

# %% [markdown]
# Now one batch: four films that training has not seen, one response each. Tensors have the shape (B,
# R): B responses, R token positions.

# %%
titles = tasks.reviews.eval_prompts("test")[:4]
ids, prompt_mask = models.encode_prompts(tokenizer, titles)
generator = torch.Generator().manual_seed(3)
sampling = models.SamplingConfig(temperature=0.7, max_new_tokens=32)
batch = models.sample(  # the actor
    actor, ids, prompt_mask, eos_id=eos_id, config=sampling, generator=generator
)
with torch.no_grad():
    ref_logprobs = models.policy_logprobs(sft, batch, temperature=0.7)  # reference
    scores = score(batch)  # the reward model
    values = models.response_values(critic, batch)  # the critic
batch = batch.with_columns(scores=scores, ref_logprobs=ref_logprobs, values=values)
read = pd.DataFrame(
    {"score": scores.tolist(), "review": models.decode(tokenizer, batch)}
)
show.texts(read.round(2))

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
# **By hand.** We follow response 1, *A fine film.* (Responses are numbered from 0.) The reward
# model gives it 1.33, more than one standard deviation above the mean of the SFT model's reviews.
# The other three models say this of its tokens, of which the last is the end-of-sequence token
# (EOS):

# %%
four = dict(actor=actor, reference=sft, reward_model=reward_model, critic=critic)
table = evaluate.token_table(batch, tokenizer, **four, kl_coef=0.5)
one = table[table.text == 1]
one[["token", "old_logprob", "ref_logprob", "value"]].round(2)

# %% [markdown]
# **Predict**, with a pencil.
#
# 1. What is the reward of the token *film*?
# 2. What is the reward of EOS?
# 3. What is the TD error of the full stop?
# 4. The score is high. Is the sum of all five rewards positive?

# %% tags=["predict"]
one[["token", "kl", "reward", "value", "td_error", "advantage"]].round(2)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# 1. The log-ratio of *film* is −2.90 + 4.15 = 1.25 nats. (The table says 1.26, because it computes
#    before it rounds.) The reward is half of that, negative: −0.63.
# 2. EOS has the score as well. Its log-ratio is 0.01, so its reward is about 1.33.
# 3. The reward of the full stop is −0.80. The critic says −0.01 before it and 0.03 after it. The TD
#    error is −0.80 + 0.03 + 0.01 = −0.76. (Without rounding, −0.75.)
# 4. No. The sum is −0.45. The log-ratios add up to 3.56 nats, so the KL penalty is 1.78. That is more
#    than the score.
# </details>
#
# A good score is not enough. The actor has learned to write short praise, and finds this review
# $e^{3.56}$ times, or 35 times, as likely as the reference does. The KL penalty takes back more than the
# reward model gives. At the first three tokens the penalties of *film* and the full stop are still to
# come: their advantages are negative. At the full stop the score outweighs its own penalty.
#
# The **token microscope** shows all numbers of all four responses. Point at
# a token, or use the arrow keys. Colour is the reward, or what you choose in the menu: blue is positive,
# orange negative.

# %%
show.microscope(table, "reward", text="all")

# %% [markdown]
# Try these two things:
#
# 1. **A bonus.** In response 2, *The film is flat*, the token *The* has the reward 0.26. The actor
#    writes it less often than the reference.
# 2. **Who is to blame?** In response 2 the pieces *ell*, *or* and *ious* of an invented word have the
#    rewards −0.43, −0.62 and −0.56. The critic did not expect them. So GAE blames all earlier tokens:
#    choose *advantage*, and the first eleven lie between −1.46 and −0.87.

# %% [markdown]
# ## 3. One of the four fails
#
# We break one model at a time, and compute the advantages of response 1 again:
#
# - *No reference*: it agrees with the actor on every token.
# - *No reward model*: it gives every response the score 0.
# - *No critic*: it says 0 before every token.
#
# **Predict.** With all four, the signs of the five advantages are − − − + +. What are they in each of
# the three cases?


# %% tags=["predict"]
mask, old_logprobs = batch.response_mask, batch.old_logprobs


def advantages(scores=scores, ref_logprobs=ref_logprobs, values=values):
    """The advantages of response 1."""
    token_rewards = core.kl_shaped_rewards(
        scores, old_logprobs, ref_logprobs, mask, kl_coef=0.5
    )
    return core.gae(token_rewards, values, mask, gamma=1, lam=0.95)[0][1, : len(one)]


failed = pd.DataFrame({"token": one.token.tolist(), "all four": advantages()})
failed["no reference"] = advantages(ref_logprobs=old_logprobs)
failed["no reward model"] = advantages(scores=0 * scores)
failed["no critic"] = advantages(values=0 * values)
failed.round(2)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# - *No reference*: all five are positive, from 0.91 to 1.30. Only the high score is left, and nothing
#   holds the actor.
# - *No reward model*: all five are negative. Only the penalty is left. It pushes the actor back to the
#   reference.
# - *No critic*: the signs stay, and no advantage changes by more than 0.3. The critic expected nearly 0
#   here, so losing this baseline changes little.
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
# In words: read the same critic one token later, and add the reward. For *fine* in response 1, the
# reward −0.13 and the critic's 0.29 after it make a $Q$ of 0.17 (rounded at the end). The value before it
# is −0.01. The difference is the TD error, 0.18. The same holds for every token of the batch:

# %%
after = table.groupby("text").value.shift(-1, fill_value=0.0)  # V of the next prefix
q = table.reward + after
assert ((q - table.value) - table.td_error).abs().max() < 1e-4

# %% [markdown]
# But section 2 gave *fine* the advantage −0.28, not 0.18. Both estimate the same advantage. The TD
# error trusts the critic's 0.29 after *fine*. GAE adds what came later: *film* and the full stop cost
# more than the critic expected (lesson 05).

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
# And a **reference line**: *best-of-n* samples n responses from the SFT model and keeps the one that
# the reward model likes best. It needs no training, but n samples for each answer. Its KL in the table
# is an upper bound, $\ln n - (n-1)/n$ nats.
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
judged.loc["KL, nats", bound] = "at most " + judged.loc["KL, nats", bound].str[:4]
judged

# %% [markdown]
# **What is one observation?** We ask which *method* is better: what would the next training run show? So
# one observation is one run, and not one film. Each run gives one gold score per method, the mean over
# the 76 films. Here is PPO's gold score minus that of the other method, run by run:

# %%
gold = tour.pivot(index="seed", columns="method", values="gold")
above = -gold.drop(columns="PPO").sub(gold["PPO"], axis=0)
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
half = 4.303 * above.std() / 3**0.5
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
# best-of-4 and best-of-16.

# %% [markdown]
# ## 6. A bad critic
#
# Our critic starts as a copy of the reward model. It could also start as the SFT model with a new last
# layer, which is random. We recorded PPO with both, 24 steps of 64 reviews: three runs from the SFT
# model, six from the reward model.
#
# The table shows the critic's **explained variance** (lesson 05) in the batch of some steps, before
# the update, as a mean over three seeds: 1 is perfect, 0 is as good as a constant. The figure shows
# the gold score of the final policies, minus the mean of the six. The bar decides: it is again a
# 95 % interval for other seeds. The grey band is the range of the six.
#
# **Predict.** Which start is worse at step 0? After about how many steps is each of them above 0? And
# does the worse start cost gold at the end?

# %% tags=["predict"]
names = {"as it is": "reward model", "kl_coef 0.5": "reward model, again"}
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
# - *SFT model*: −9.37 at step 0. Its new layer is random, and its outputs swing by whole points. It comes
#   above 0 at step 6, and stays behind to the end.
# - *Gold score*: with the SFT start it is 0.08 lower, with an interval from −0.17 to 0.002. It contains
#   0, so this is no difference that three seeds can show.
# </details>
#
# So the start decides when the critic becomes useful. Whether it costs gold, these runs do not show: the
# critic is bad in six of 24 steps only.

# %% [markdown]
# ## 7. A fooled reward model
#
# A policy *hacks* the reward model when it finds responses that the model likes and people do not.
# You met such runs in exercise 5 of lesson 06: PPO without the KL penalty, three seeds. The figure
# shows four curves of the training batches, with the penalty and without it.
#
# **Predict.**
#
# 1. Which runs end with the higher gold score?
# 2. A real project has no gold curve. Which of the other three (score, KL, entropy) would warn you?

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
# The line is the mean of three runs, the band goes from the lowest to the highest.
#
# 1. Those without the penalty: 2.64 instead of 1.45. But gold has been at 3.07, at step 10. From step
#    12 on the score still rises, and gold falls.
# 2. Not the score: it rises to 4, and looks like success. The *KL* warns first. At step 6 it is 6.2
#    nats, instead of 1.8, and gold still rises. It ends at 86. The *entropy* follows: it falls from 2.48
#    to 0.37 nats per token. The policy hardly chooses any more.
# </details>
#
# Now read the first samples of seed 0, for the first four held-out films:

# %%
by_coefficient = experiments.results("leash")
samples = experiments.samples(by_coefficient, list(penalties)).rename(columns=penalties)
show.texts(samples.head(4))

# %% [markdown]
# The healthy policy writes four different sentences, short and sometimes odd (*Bad, funny and very
# funny*). The hacked policy writes nearly the same for all films: *A funny and funny and funny ...*
# Reward model and gold model both like the word. Both learned from reviews that people write, and
# no person writes it ten times. A judge that training has never seen is harder to fool, not
# impossible to fool.
#
# Variety can also be counted: on the 76 held-out films distinct-2 is 0.02 instead of 0.81. KL,
# entropy and variety cost nothing to log. And always read samples.

# %% [markdown]
# ## 8. Reading a log
#
# First ask *when* a curve goes wrong:
#
# - **In the first batch**, before any update: the fault is in what you start from, or in the rewards.
# - **In the first steps**, as a jump: the updates are too large.
# - **Later**, as a drift: the policy goes where the rewards send it, and you do not want it there.
#
# The figure compares healthy runs (section 7, with the KL penalty) with three faulty ones, one run each:
#
# - *EOS never trained*: PPO started from an SFT model that was never trained to stop.
# - *reward scale wrong*: the scores are twenty times as large as they should be.
# - *collapsed*: the learning rate is thirty times too high.
#
# *missing_eos* is the share of responses that were cut at 32 tokens. *clip_fraction* is the share of
# tokens without a gradient because of PPO's clip. *clip_fraction* and *value_loss* are means over
# the updates on a batch, so at step 0 they already tell about the first updates.

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
# | first batch | *missing_eos* is 77 % | the SFT model cannot stop | SFT data: is EOS there, and in the loss? |
# | first batch | *value_loss* is 63, in healthy runs 0.7 | the scores are on the wrong scale | the SFT model's scores: their standard deviation should be 1 (lesson 08) |
# | first batch | *explained_variance* is −9 (section 6) | the critic's last layer is random | the next steps: it should soon be positive |
# | first steps | *clip_fraction* is 36 %, then *kl* is 27 nats | the updates are too large | the learning rate, and the entropy of the next steps |
# | later | *entropy* is near 0, *explained_variance* is 0.99 | collapse: all responses are alike, so their values are easy to predict | samples for different prompts |
# | later | *score* rises to the end, *kl* is in the tens (section 7) | the policy hacks the reward model | entropy, variety, samples |
#
# A symptom is not yet a fault. The KL of *reward scale wrong* also rises, to 16 nats, because a
# penalty with $\beta = 0.5$ has little weight against such scores. So look at a second curve: the
# first value loss tells this run from those of section 7: theirs is 0.7, as in healthy runs.

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
# - In a log, first ask when a curve goes wrong: in the first batch, in the first steps, or later.
#
# ## Exercises
#
# Solutions are in `solutions/09_the_four_models.ipynb`.

# %% [markdown] tags=["exercise"]
# **1. A critic that cannot read** *(medium, 15 minutes)*. Imagine a critic that sees a token's
# position $t$, and nothing else. For each $t$ it says the mean of the critic's targets
# $A_t + V(s_t)$ over the responses of the batch that have a token there. You get the `targets` and
# the `mask`, (B, R) each. Return the explained variance of this critic over the real tokens of the
# batch, one number. Suppose that the critic of your run has the same explained variance. What do
# you conclude?
#
# *Hint:* first write down the values that this critic says. Responses have different lengths. Padding can
# hold NaN, and NaN times 0 is NaN. Replace padding with `torch.where(mask, x, 0.0)` before you sum.


# %% tags=["exercise"]
def explained_by_position(targets, mask): ...  # your code


check.explained_by_position(explained_by_position)


# %% [markdown] tags=["solution"]
# A critic that is no better than this one has learned how the targets change along a response, and
# nothing about what the tokens say. So it cannot tell a good beginning from a bad one.


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
# $\lambda = 0.95$ and no discount. Whitened means: subtract the mean over all real tokens of the
# batch, and divide by the standard deviation (the variance divides by the number of tokens).
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
# *Hint:* section 5 asked about other runs, so its observation was one run. Which of these numbers would
# change together if you drew another film?


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
# comes close to 1. What is wrong in `score_rewards`? Mend it, run the checker, and draw the curves again.
#
# *Hint:* write down `response_ids` of the good response (three tokens, EOS is 2), and what the function
# returns for it.


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
# | name | what is wrong |
# |---|---|
# | `hacked` | there is no KL penalty |
# | `dead critic` | the critic says 0, whatever it reads |
# | `KL sign wrong` | the KL penalty has the wrong sign |
# | `whitening at the optimum` | every response has the same score, so there is nothing to learn; the advantages are whitened all the same |
#
# Before you look, write down for each fault in which curve you expect it, and from which step on. Then
# give each run its name, and note the curve that decided. For a wrong answer you are told what such a run
# would look like. Score and gold are those of the training batches. The second figure has the two runs with large numbers.

# %% tags=["shared"]
frames = map(pd.DataFrame, atlas.runs().values())
logs = pd.concat(frames, keys=atlas.runs(), names=["variant"]).reset_index("variant")
columns = ["score", "gold", "kl", "entropy", "length", "missing_eos"]
columns += ["clip_fraction", "explained_variance", "value_loss"]
for letters in ("ABD", "CE"):
    some = logs[logs.variant.isin(list(letters))]
    display(show.curves(some, columns=columns, order="ABCDE"))

# %% tags=["exercise"]
diagnoses = {}  # yours, such as {"A": "hacked", "B": "collapsed"}
print(atlas.diagnosed(diagnoses))

# %% [markdown] tags=["solution"]
# Begin with what one curve alone decides, and ask when it begins.
#
# - **A** is `whitening at the optimum`. From step 0 on the score is 1 and never moves. Yet the KL is not
#   0: whitening scales pure noise to variance 1, so the policy is pushed around. The explained variance
#   starts near −3, because the targets hardly vary: any error is large beside them.
# - **D** is `dead critic`. From step 0 on the explained variance is exactly 0, and the value loss does
#   not fall. The rest looks nearly healthy, with less gold.
# - **C** and **E** begin like **B**, and drift later. In both the score rises to the end and the KL
#   passes 90 nats, so both look hacked. The second look tells them apart. In **C** the entropy
#   falls to 0.45 and few responses are cut: it is `hacked`. In **E** the KL itself is rewarded. It
#   reaches 222 nats, and a longer response can earn more, so nearly every response is cut. The
#   rewards grow without end, and so does the value loss: `KL sign wrong`.
# - **B** is `healthy`: the KL stays below 3 nats, the explained variance rises to 0.74.
#
# At the end C and E have a gold score above 2.5, and the healthy run 1.2. Neither of the two writes
# anything that you would like to read.

# %% tags=["solution"]
diagnoses = {
    "A": "whitening at the optimum",
    "B": "healthy",
    "C": "hacked",
    "D": "dead critic",
    "E": "KL sign wrong",
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
# `--mine` as well, and compare `ppo.jsonl` of both runs. Are the numbers the same? Should they be?

# %% [markdown] tags=["solution"]
# **6.** Nearly, at first. A sum that is taken in another order differs in its last digit. Sampling
# carries this on: after some steps one token is another one, and from there on the responses
# differ. So the first steps agree to many digits, and the ends differ as two seeds do.

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
# They make the data of the update: rewards, old log-probabilities, advantages, the critic's targets.
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
# You answered them in lesson 00. The first cell asks them, the second takes your letters and gives
# reasons.

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
# (`critic_warmup`, 0 by default). We have not measured this on the reviews. One record is about
# arithmetic in written steps: 80 steps of 128 responses, three seeds. The critic starts there with a
# random last layer. With 15 steps of warm-up its explained variance at step 15 is −0.47, without one
# −0.68. The share of right answers to 400 held-out problems ends at 0.68 with it and at 0.70 without.
# The 95 % interval of the difference, for other problems and seeds, goes from −0.06 to 0.02. So three
# seeds show no gain there.
#
# **When V is not enough.** Where chance answers, $Q(s_t, y_t)$ is not $r_t + V(s_{t+1})$. Suppose a
# user replies *yes* or *no*, each with probability 0.5. After *yes* the value is 2, after *no* 0.
# Then $Q$ is 1, and $V(s_{t+1})$ is 2 or 0: right on average, not each time.
#
# **Explained variance and $\lambda$.** In section 6 the critic is compared with its targets
# $A_t + V(s_t)$. With $\lambda = 0.95$ they contain a part of the critic's own predictions. With
# $\lambda = 1$ they do not, and the same start has −1.45 at step 0, instead of −0.29.
#
# **A critic that never learns.** One recorded run has a critic that always says 0. Its gold score is 0.22
# below the lowest of the six runs of section 6. It is one run, so it has no interval.
#
# **Other films.** The interval of section 5 keeps the 76 films. You can also ask how the same
# policies would do on other films. The *bootstrap* draws 76 of the differences per film with
# replacement, 2,000 times, and takes the middle 95 % of their means. PPO minus best-of-4 then goes
# from 0.16 to 0.32, and PPO minus best-of-16 from −0.35 to −0.11. Neither contains 0, but neither
# says anything about another run. An interval for other films and other seeds together goes from
# −0.003 to 0.48 and from −0.45 to −0.01. Its factor is smaller than 4.30, because the 76 films give
# part of the scatter. So for best-of-16 this interval excludes 0, and that of section 5 does not.
# Three runs do not decide it.
#
# **How much does one film say?** The 76 differences between PPO and best-of-4 have a standard
# deviation of about 0.6 in one seed. So their mean has a standard error of about 0.07, and a
# difference of 0.2 is found about four times in five. For half the standard error you need four
# times as many films. In these records pairing hardly helps: without it the standard error would be
# at most 1.05 times as large. Films that are easy for one method are not easier for the other. You
# only know after you have looked.
#
# **Which gold is which?** All gold scores of PPO on this page have $\beta = 0.5$ and 24 steps.
# Section 5: three runs, 1.34. Section 6: six runs, two for each of the seeds 0, 1 and 2, with a
# mean of 1.40. The runs with the KL penalty in section 7 are three of the six. Their final policies
# have 1.43. All of these are means over four responses to each of the 76 held-out films. The curve
# of section 7 ends at 1.45, for the same three runs. It shows the 64 responses of a training batch.
#
# **A hacked run's critic.** At the end of the runs without the KL penalty the explained variance is
# 0.76, with it 0.68. It is a share, and the value loss is not: that is 0.006 instead of 0.15. The
# responses are nearly alike, so the targets hardly vary, and the critic's errors shrink with them.
# So this curve does not give the run away. *Same opening*, the share of responses that begin with
# the commonest four words, would: it is about one half.
#
# **Not explained.** In section 8 the explained variance of *reward scale wrong* falls after a few
# steps. The clip of the critic's loss may be the reason: it holds each value near its old one, and
# these targets are far away. The record does not tell.
#
# **How many samples?** We draw 16 responses of the SFT model per film. All of them count for SFT.
# Best-of-4 makes four choices of them, best-of-16 one. PPO has four responses per film.
#
# **Cut responses.** The recorded runs of this lesson subtract 1 from the score of a response without
# EOS. Apart from that it is treated as finished.
#
# **What the libraries do.** TRL lets you name the model from which the critic starts.
# DeepSpeed-Chat takes the reward model. OpenRLHF takes the reward model if you name none. verl has
# a warm-up of the critic as an option, TRL has none. The score lands on EOS here, on the last token
# that the policy chose in OpenRLHF, and one position later in TRL. The logged KL is a sum per
# response here and in TRL, and a mean per token in OpenRLHF. So ask which one it is before you
# compare two logs. To save memory, adapters share one model, and the reference is the model with
# its adapter switched off (lesson 10).
#
# **References.** Ziegler et al. 2019, *Fine-tuning language models from human preferences*
# (sections 2.1 and 2.2: reward model, KL penalty, the critic's start). Stiennon et al. 2020,
# *Learning to summarize from human feedback* (appendix G.1: a separate critic that starts as the
# reward model). Ouyang et al. 2022, *Training language models to follow instructions* (section 3.5,
# appendix C.4). Huang et al. 2024, *The N+ implementation details of RLHF with PPO* (logs, EOS,
# where the score lands). Zheng et al. 2023, *Secrets of RLHF in large language models, part I*
# (sections 4 and 5: which curves tell a run's health).
#
# *How this lesson is checked:* its step is that of lesson 06 and equals `train_ppo`
# (`tests/loops/test_by_hand.py`), and every number about a recorded run is compared with the record
# (`tests/claims/test_lesson_09.py`).
