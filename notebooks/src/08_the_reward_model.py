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
# # 08 · The reward model
#
# After this lesson you can
#
# - derive the Bradley-Terry loss, and write it,
# - write one training step of a reward model, and say what each line is for,
# - say how far to believe a score.
#
# **You need** lesson 02 (ratings and pairs), lesson 03 (a language model as a policy) and, for
# section 5, lesson 07 (the KL penalty). About 50 minutes to read and 100 for the exercises.

# %%
import copy
from itertools import islice

import pandas as pd
import torch

from minirlhf import core, experiments, loops, models, rewards, show, tasks
from minirlhf.classroom import FAST, check

# %% [markdown]
# ## 1. The idea: scores from choices
#
# Reinforcement learning from human feedback (RLHF) needs one number for each response. People find
# it hard to give such a number. They find it easier to say which of two responses they prefer. A
# **reward model** learns a number, the **score**, from such choices. Its loss for one pair is
#
# $$ L = -\log \sigma(r_c - r_r) , \qquad \sigma(d) = \frac{1}{1 + e^{-d}} . $$
#
# - $r_c$ is the score of the *chosen* response, the one that a person preferred. $r_r$ is the score of
#   the *rejected* response. Both answer the same prompt.
# - $\sigma$ is the **sigmoid**. It turns any number into a probability: 0 becomes 0.5, a large
#   positive number nearly 1, a large negative number nearly 0.
#
# In words: the difference of two scores says how likely people are to prefer the first response. The
# loss is small if the model finds the actual choices likely.

# %% [markdown]
# ## 2. Where the loss comes from
#
# **The model of a choice.** Give each response a strength. A person prefers response $a$ to
# response $b$ with a probability in proportion to the strengths. With the strengths 3 and 1, $a$ is
# preferred in 3 of 4 cases. A strength is positive, so we write it as $e^{r}$, and $r$ is the
# score:
#
# $$ P(a \succ b) = \frac{e^{r_a}}{e^{r_a} + e^{r_b}} = \frac{1}{1 + e^{-(r_a - r_b)}} =
# \sigma(r_a - r_b) . $$
#
# ($a \succ b$ means: $a$ is preferred to $b$.) In the middle step we divide above and below by
# $e^{r_a}$. This is the **Bradley-Terry model** (1952).
#
# **The loss.** We look for the scores under which the choices that people made are most likely. The
# probability of all choices is a product of factors $\sigma(r_c - r_r)$. Its logarithm is a sum, and we
# minimise its negative. The mean over the pairs is the loss.
#
# **The gradient.** Call $P = \sigma(r_c - r_r)$ the probability that the model gives to the actual
# choice. Because $\sigma' = \sigma\,(1 - \sigma)$,
#
# $$ \frac{\partial L}{\partial r_c} = -(1 - P) , \qquad \frac{\partial L}{\partial r_r} = 1 - P . $$
#
# In words: the chosen response is pushed up and the rejected one is pushed down, by the same amount. The
# amount is how much the choice surprises the model. Three pairs by hand:
#
# | pair | $r_c$ | $r_r$ | $r_c - r_r$ | $P$ | loss | gradient for $r_c$ |
# |---|---|---|---|---|---|---|
# | the model agrees with the person | 1 | 0 | 1 | 0.73 | 0.31 | −0.27 |
# | the model is undecided | 2 | 2 | 0 | 0.50 | 0.69 | −0.50 |
# | the model disagrees | −1 | 1 | −2 | 0.12 | 2.13 | −0.88 |
#
# The loss of a model that is always undecided is $\ln 2$, about 0.69. We call it the loss of a coin.
# The package gives the same numbers:

# %%
chosen = torch.tensor([1.0, 2.0, -1.0], requires_grad=True)
rejected = torch.tensor([0.0, 2.0, 1.0])
losses = core.reward_model_loss(chosen, rejected)
losses.sum().backward()
assert torch.allclose(losses, torch.tensor([0.31, 0.69, 2.13]), atol=0.01)
assert torch.allclose(chosen.grad, torch.tensor([-0.27, -0.50, -0.88]), atol=0.01)

# %% [markdown]
# **Predict.** Three reward models differ from this one. Which of them has another loss?
#
# 1. One adds 10 to every score.
# 2. One doubles every score.
# 3. One adds a number that depends on the prompt: 5 to both responses of the first pair, −3 in the
#    second, 7 in the third.

# %% tags=["predict"]
per_prompt = torch.tensor([5.0, -3.0, 7.0])
for name, c, r in (
    ("as it is", chosen, rejected),
    ("added 10", chosen + 10, rejected + 10),
    ("doubled", 2 * chosen, 2 * rejected),
    ("added per prompt", chosen + per_prompt, rejected + per_prompt),
):
    print(f"{name}: {core.reward_model_loss(c, r).mean().item():.3f}")

# %% [markdown]
# <details><summary>What you should see</summary>
#
# 1. *Added 10*: the same loss, 1.044. The 10 cancels in the difference.
# 2. *Doubled*: another loss, 1.613. The same model is now surer of every choice, also of the wrong one.
# 3. *Added per prompt*: the same loss again. Both responses of a pair have the same prompt.
# </details>
#
# **So only differences within a prompt count.** A score has no natural zero: a score of 2
# means nothing alone. And a score for one film cannot be compared with a score for
# another. A difference does have a meaning: a difference of 1.10 says 3 to 1, because $\ln 3 = 1.10$.

# %% [markdown]
# ### Does the truth come back?
#
# Five responses have the true scores 2, 1, 0, −1 and −2. Infinitely many people compare every
# pair of them. We fit five numbers with the loss above, starting from 0, in two worlds:
#
# - **People disagree** as the Bradley-Terry model says. The better of two neighbours wins in 73 %
#   of the cases.
# - **People always agree**: the better response wins every time.
#
# The figure will show the difference between the best and the worst fitted score after each update. A
# dotted line marks the true difference, 4.
#
# **Predict** both curves.

# %% tags=["predict"]
truth = torch.tensor([2.0, 1.0, 0.0, -1.0, -2.0])
i, j = torch.triu_indices(5, 5, 1)  # all pairs, the better response first


def fit(share, updates=600):
    """Best minus worst score after each update. share: how often i wins against j."""
    r, path = torch.zeros(5), []
    for _ in range(updates):
        path.append((r[0] - r[4]).item())
        r = r.detach().requires_grad_(True)
        i_wins, j_wins = (
            core.reward_model_loss(r[i], r[j]),
            core.reward_model_loss(r[j], r[i]),
        )
        (share * i_wins + (1 - share) * j_wins).mean().backward()
        r = r - r.grad
    return path


# %% tags=["predict"]
as_modelled = core.preference_probability(truth[i], truth[j])
show.lines(
    {"people disagree": fit(as_modelled), "people always agree": fit(torch.ones(10))},
    xlabel="updates",
    ylabel="best score minus worst score",
    reference={"the truth": 4},
)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# - *People disagree*: the difference goes to 4 and stays there. All five true scores come back.
# - *People always agree*: the difference grows without end. After 600 updates it is above 13 and
#   still rising. The order of the responses is right. The distances only say how long we trained.
# </details>
#
# So how often people disagree decides how far apart the scores are. If they never disagree, nothing in
# the loss stops the scores from growing.

# %% [markdown]
# ## 3. The model: one number at the last token
#
# A reward model is a language model whose last layer is replaced:
#
# | | language model | reward model |
# |---|---|---|
# | backbone | four transformer blocks | a copy of the same blocks |
# | last layer | `nn.Linear(256, 4096)`: a logit for each token of the vocabulary | `nn.Linear(256, 1)`: one number |
# | where it is read | at every token | at the last token of the response |
#
# The backbone starts as a copy of the model after supervised fine-tuning (SFT), which already knows the
# language. The new layer starts with random weights.
#
# The new layer gives a number at *every* token. We use one of them: the number at the last real token.
# Only there has the model read the whole response. Here that token is the end-of-sequence token (EOS).
# A sample that was cut off (lesson 03) is given an EOS before it is scored.

# %% tags=["shared"]
torch.set_num_threads(1)  # sums in a fixed order, so that two runs can be equal
sft, tokenizer = models.load_policy("tiny-reviews-sft")

# %%
torch.manual_seed(0)  # the new layer is random
# base_model: the blocks. ScalarModel: the blocks and the new layer
model = models.ScalarModel(copy.deepcopy(sft).base_model)
two = ["A dull film.", "A moving, funny and wise film."]
batch = models.encode(tokenizer, ["the film\n"] * 2, two)
numbers = models.token_scores(model, batch)  # one at every token
scores = core.last_token_scores(numbers, batch.attention_mask)  # one for each response
print("tokens with padding:", tuple(numbers.shape), "scores:", tuple(scores.shape))

# %% [markdown]
# ## 4. One training step
#
# **The labels.** The prompt is a film's title, the response a short review. At least 15 people rated each
# review from −4 to 4 (lesson 02). For each pair we draw *one* rating of each review. The review with
# the higher one is chosen. Equal ratings are dropped. Three pairs:

# %%
pairs = tasks.reviews.preference_pairs(
    "reward", 20_000, seed=0, max_tokens=48, tokenizer=tokenizer
)
three = pairs.to_pandas().iloc[[1, 5, 7]]
three.index = three["prompt"].str.strip()
show.texts(three[["chosen", "rejected"]])

# %% [markdown]
# The first label is clear. The third is surprising: on average, people rated the chosen review −1.3 and the rejected one 1.7. But two single
# people can see it the other way round. Such labels are called *noisy*.
#
# **The batch.** A batch holds about 65 reviews of about nine films, and 100 to 170 labelled pairs
# among them. So a review is in several pairs, but it passes through the model only once per step. That
# is cheaper. And once all reviews are read, each was trained on once. If a review in ten pairs were read
# ten times, the model would soon know it by heart (Ouyang et al. 2022).
#
# The whole step:

# %%
optimizer = loops.make_optimizer(model, loops.OptimiserConfig(lr=4e-4))


# %%
def reward_step(pairs):
    # 1. The responses of the batch, each once, however often it is compared.
    texts = [(film, text) for film, *both in pairs for text in both]
    texts = list(dict.fromkeys(texts))
    films, responses = zip(*texts)
    batch = models.encode(tokenizer, films, responses, max_response=48)
    # 2. A number at every token. The score is the number at the last token.
    numbers = models.token_scores(model, batch)  # (B, T)
    scores = core.last_token_scores(numbers, batch.attention_mask)  # (B,)
    # 3. The two scores of each pair.
    chosen = scores[[texts.index((film, c)) for film, c, r in pairs]]
    rejected = scores[[texts.index((film, r)) for film, c, r in pairs]]
    # 4. The loss of each pair, and their mean.
    loss = core.reward_model_loss(chosen, rejected).mean()
    # 5. Update.
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


# %% [markdown]
# `pairs` is a list of (prompt, chosen, rejected). B is the number of responses, T the number of
# positions of prompt and response. The gradient flows through both scores of a pair into the same
# model.
#
# The package's `train_reward_model` is this loop, plus logs and checkpoints, dropout, sorting by
# length (for less padding), a learning-rate schedule and gradient clipping. `RewardConfig.plain`
# switches the last four off. With the same seed, three steps then leave exactly the same weights:

# %%
config = loops.RewardConfig.plain(steps=3)
# comparison_batches never ends, so islice takes the first ones
batches = list(islice(loops.comparison_batches(pairs, config), 3 if FAST else 20))
losses = [reward_step(batch) for batch in batches[:3]]

other, history = loops.train_reward_model(
    copy.deepcopy(sft).base_model, tokenizer, pairs, config
)
assert models.same_weights(model, other)
print("loss of each step:", [round(loss, 2) for loss in losses])

# %% [markdown]
# The losses are a little above 0.69, the loss of a coin. The new layer is random: the model prefers some
# reviews to others, but it does not know which ones people prefer.
#
# We go on to 20 steps. Pairs of films that training never sees are **held-out** pairs. As a first test
# we take 400 *clear* ones: the mean ratings of the two reviews differ by at least 2. We call the model
# *right* on a pair if the chosen review has the higher score.
#
# **Predict.** On how many percent of the clear pairs is the model right: after 0 steps, after 3, and
# after 20?

# %%
clear = tasks.reviews.preference_pairs(
    "test", 400, seed=1, min_gap=2.0, max_tokens=48, tokenizer=tokenizer
)[:]


def share_right(model):
    # a judge gives the mean score of one or more models: here of one
    judge = rewards.text_judge([model.eval()], tokenizer)
    chosen = judge(clear["prompt"], clear["chosen"])
    return (chosen > judge(clear["prompt"], clear["rejected"])).float().mean().item()


# %% tags=["predict"]
torch.manual_seed(0)
start = models.ScalarModel(copy.deepcopy(sft).base_model)
shares = [share_right(start), share_right(model)]
later = [reward_step(batch) for batch in batches[3:]]
print("right:", [f"{share:.0%}" for share in [*shares, share_right(model)]])

# %% [markdown]
# <details><summary>What you should see</summary>
#
# - At the start: about half, as with a coin.
# - After three steps: a little more, still close to a coin.
# - At the end: about 70 %.
# </details>
#
# The rest of the lesson uses a reward model of the package. It was trained in the same way, for 160 steps
# and with dropout.

# %% [markdown]
# ## 5. Give the score a zero and a unit
#
# Proximal policy optimisation (PPO) subtracts a Kullback-Leibler (KL) penalty from the score
# (lessons 06 and 07). So the unit of the score matters. But the model's own numbers, the **raw
# scores**, have no zero, and they move apart while we train: their standard deviation is 0.25 at the
# start and 1.0 after 160 steps (on held-out reviews). So we choose zero and unit *after* the
# training: we score samples of the SFT model, and call their mean 0 and their standard deviation 1.
#
# $$ \text{score} = \frac{\text{raw score} - \text{mean of the samples}}{\text{standard deviation of the samples}} $$
#
# Our model's mean was −4.86 and its standard deviation 1.29. A raw score of −2.28 becomes
# (−2.28 + 4.86) / 1.29 = 2.0: two standard deviations above the mean. (The package keeps
# the two numbers with the weights.) Eight new samples, sorted by score:

# %%
reward_model, _ = models.load_scalar("tiny-reviews-reward")
titles = tasks.reviews.rl_prompts()[:64]
(samples,) = models.sample_text(sft, tokenizer, titles, seed=3)
score = rewards.rollout_score(reward_model, tokenizer.eos_token_id)  # a function
scores = score(samples)
table = pd.DataFrame({"score": scores.tolist()}, index=[t.strip() for t in titles])
table["sample"] = models.decode(tokenizer, samples)
show.texts(table.round(2).sort_values("score").iloc[::9])

# %% [markdown]
# The model likes praise and dislikes complaints. The first sample, with −2.05, says that a film fails.
# The last one, with 2.39, praises from beginning to end.

# %% [markdown]
# ## 6. One number per token: two pictures
#
# How does the score grow while the model reads? Two pictures of it are often confused:
#
# - **(a) Prefix with EOS.** Cut the response after each token, add EOS, and score it as a response of its
#   own. The number is read at EOS, where the model was *trained*. But the text is unusual: training
#   never showed a review that ends in mid-sentence.
# - **(b) One pass.** Let the model read the whole response, and read the number at each token. The
#   text is natural. But except at EOS, the model was *never trained* to give a score there.
#
# **Predict** for "A moving and funny film, but the ending is dull.": after which word is the score
# highest in (a)? Which words lower it? In which picture are the numbers larger?

# %% tags=["predict"]
sentence = "A moving and funny film, but the ending is dull."
tokens, with_eos, one_pass = rewards.prefix_scores(
    reward_model, tokenizer, "the film\n", sentence
)
show.token_strips(
    {
        "(a) each prefix with EOS, trained": (tokens, with_eos),
        "(b) one pass, not trained at these tokens": (tokens, one_pass),
    }
)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# - **(a)** says what the model would give if the review ended here. *A* alone is worth 0. *moving* lifts
#   the score to 2.1, and it is highest after *funny*, 2.9. *but* takes off 0.4, *ending* takes off 1.5,
#   and *dull* 2.2. The whole sentence is below average.
# - **(b)** has roughly the same shape, but its numbers are mostly larger, up to 6.6. They have no
#   unit. At *ending* it rises to 5.5, where (a) falls to 1.0. Read alone, this token misleads.
# </details>
#
# Only at EOS do both give the same number: the score. Neither picture is a reward of single tokens,
# because the loss knows only whole responses.

# %% [markdown]
# ## 7. How far can you believe a score?
#
# **Agreement with people.** Our recorded reward model (three seeds) is right on 64 % of all held-out
# pairs, close ones too. A label comes from one rating of each review. Somebody who knows all the
# *other* ratings of both reviews predicts it in only 84 % of the cases. This is the **human ceiling**.
# It is no strict bound (lesson 02), but nobody can be much better. A bag of words, a model that only
# knows which words a review has, is right on 68 %. (It learned from the mean ratings of many people,
# ours from single ratings.)
#
# The figure will sort the pairs by their **gap**: how far apart the mean ratings of the two reviews
# are, without the two ratings that made the label (lesson 02).
#
# **Predict.** How do the ceiling and the model change from the closest pairs (a gap of less than 0.5)
# to the clearest (more than 3.5)?

# %% tags=["predict"]
runs = experiments.results("reward_model")
# in the order of the record: the last group, a gap of 0 to 8, has all pairs
runs = runs.groupby(["low", "high"], sort=False)
runs = runs[["human ceiling", "reward model"]].mean()
runs.index = runs.index.map("gap {0[0]:g} to {0[1]:g}".format)
runs = runs.rename(index={"gap 0 to 8": "all pairs"})
show.bars(
    runs.rename(columns={"reward model": "model is right"}),
    label="share of held-out pairs",
    limits=(0, 1),
    reference={"a coin": 0.5},
)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# - The *human ceiling* rises from 60 % to 99 %.
# - The *model* rises from 51 % to 83 %. Nowhere does it reach the ceiling.
# </details>
#
# So on clearly different responses the model mostly agrees with people, and on similar ones it
# guesses.
#
# **Calibration.** The model chooses the response with the higher score. It gives this choice the
# probability $\sigma(|r_a - r_b|)$, its **own probability**: at least 50 %. A model is *calibrated* if
# these probabilities are right: of all choices to which it gives 80 %, it gets 80 % right.
#
# The formula needs *raw* scores. Ours are in the unit of section 5, so we multiply their difference by
# this unit, `reward_model.scale`. (The mean cancels.)
#
# **Predict.** The next cell groups 2,000 held-out pairs by the model's own probability. Is the model
# surer than it is right, or less sure? In which groups most?

# %% tags=["predict"]
held_out = tasks.reviews.preference_pairs(
    "test", 400 if FAST else 2000, seed=5, max_tokens=48, tokenizer=tokenizer
)[:]
judge = rewards.text_judge([reward_model], tokenizer)
of_chosen = judge(held_out["prompt"], held_out["chosen"])
of_rejected = judge(held_out["prompt"], held_out["rejected"])
margins = (of_chosen - of_rejected) * reward_model.scale  # differences of raw scores
each = {"own probability": torch.sigmoid(margins.abs()), "model is right": margins > 0}
each = pd.DataFrame(each).astype(float)
ends = [0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
groups = each.groupby(pd.cut(each["own probability"], ends), observed=True).mean()
groups.index = groups.index.map(lambda x: f"{x.left:.0%} to {x.right:.0%}")
groups.loc["all pairs"] = each.mean()
show.bars(groups, label="mean of the group", limits=(0, 1), reference={"a coin": 0.5})

# %% [markdown]
# <details><summary>What you should see</summary>
#
# - *All pairs*: the model's own probability is 72 %, and it is right on 65 %. So it is **too sure**. The
#   three recorded runs agree: 73 % and 64 %.
# - *The groups*: where the model is surer, it is more often right. But it is surer than right: by 2
#   points in the least sure group, and by 13 in the surest. Of the choices to which it gives more than
#   90 %, it gets 81 % right.
# - Without the factor `reward_model.scale` the 72 % would be 69 %, and nothing would warn you.
# </details>
#
# Equal means over all pairs are not enough: a model can be too sure in one group and not sure enough in
# another. So look at the groups, and do it before you read a difference of scores as a probability.
# Exercise 4 mends most of it with one number.

# %% [markdown]
# ## 8. How many labels does it take?
#
# Recorded: the same model, trained on 100 to 25,600 labelled pairs, three seeds each. All take 160
# steps, so few labels are read many times: each of 100 pairs 54 times.
#
# The left panel will show the share of held-out pairs on which the model is right, and its mean own
# probability, against the number of labelled pairs. The right panel has the loss on these pairs.
#
# **Predict** the case of 100 pairs: on how many held-out pairs is the model right, and how sure is it?

# %% tags=["predict"]
runs = experiments.results("labels")
measures = ["accuracy", "confidence", "loss"]
runs = runs.pivot(index="seed", columns="pairs", values=measures)
right, sure, loss = (runs[name].to_numpy() for name in measures)
show.lines(
    {
        "right, and how sure": {"right": right, "its own probability": sure},
        "held-out loss": {"loss": loss},
    },
    x=runs["loss"].columns,
    log="x",
    xlabel="labelled pairs",
    reference={"right, and how sure": {"human ceiling": 0.84, "a coin": 0.5}},
)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# - **Few labels**, 100 pairs, are learned by heart. On held-out pairs the model is right in 52 %,
#   hardly more than a coin, and it gives its choices 95 %. Its loss is 4.5, far above the 0.69 of a
#   coin: it is certain, and wrong half of the time.
# - **More labels**, 6,400 pairs: right in 62 %, its own probability is 72 %. The loss is just below
#   that of a coin.
# - **Most labels**, 25,600 pairs: right in 64 %. Four times as many labels add 2 points.
# </details>
#
# More labels make the model more often right, and above all less wrongly sure. At 25,600 the curve still
# rises, slowly, and the human ceiling is far away. There, the model may lack steps as much as labels
# ("Going further").

# %% [markdown]
# ## What to remember
#
# - The Bradley-Terry loss is $-\log \sigma(r_c - r_r)$. Only differences within a prompt count.
# - A reward model is a language model with its last layer replaced by one number. It is read at the last
#   token, and trained nowhere else.
# - One step: score each response once; take the differences of the pairs; loss; update.
# - Choose zero and unit after the training, from samples of the SFT model.
# - Compare the accuracy with the human ceiling, not with 100 %. Check the calibration.
#
# ## Exercises
#
# Solutions are in `solutions/08_the_reward_model.ipynb`.

# %% [markdown] tags=["exercise"]
# **1. The loss** *(easy, 10 minutes)*. From the scores of chosen and rejected responses, (B,) each,
# return the mean Bradley-Terry loss, one number. *This function goes into your `my_rlhf.py`.*
#
# *Hint:* two scores can be 200 apart. What does your function return for −100 and 100? The right
# answer is about 200.


# %% tags=["exercise"]
def bradley_terry_loss(chosen_scores, rejected_scores): ...  # your code


check.bradley_terry_loss(bradley_terry_loss)


# %% [markdown] tags=["solution"]
# `torch.sigmoid(-200.0)` is exactly 0 in single precision, and its logarithm is minus infinity.
# `logsigmoid` computes $-\log(1 + e^{-d})$ without this intermediate step.


# %% tags=["solution"]
def bradley_terry_loss(chosen_scores, rejected_scores):
    return -torch.nn.functional.logsigmoid(chosen_scores - rejected_scores).mean()


check.bradley_terry_loss(bradley_terry_loss)

# %% [markdown] tags=["exercise"]
# **2. The best of several** *(medium, 15 minutes)*. Now people see $K$ responses and point at the best
# one. Each response is chosen with a probability in proportion to its strength $e^{r}$. Return the mean
# loss, one number. `scores` has the shape (B, K). `chosen` (B,) is the index of the chosen response. This
# is not in the package.
#
# *Hint:* start from $P = e^{r_a} / (e^{r_a} + e^{r_b})$ and add more responses. For $K = 2$ the loss must
# be that of exercise 1. Scores can be 200 here, too, and `torch.exp(torch.tensor(200.0))` is infinite.


# %% tags=["exercise"]
def best_of_k_loss(scores, chosen): ...  # your code


check.best_of_k_loss(best_of_k_loss)


# %% [markdown] tags=["solution"]
# The probability is a softmax over the responses. With $K = 2$ that is the sigmoid of the difference.


# %% tags=["solution"]
def best_of_k_loss(scores, chosen):
    return -scores.log_softmax(1).gather(1, chosen[:, None]).mean()


check.best_of_k_loss(best_of_k_loss)

# %% [markdown] tags=["exercise"]
# **3. Zero and unit** *(easy, 5 minutes)*. `scores` (N,) are raw scores of any responses. `sft_scores`
# (M,) are the raw scores of samples of the SFT model. Return `scores` with the zero and the unit of
# section 5. (The standard deviation divides by M − 1, as `torch.std` does.)


# %% tags=["exercise"]
def in_sft_units(scores, sft_scores): ...  # your code


check.in_sft_units(in_sft_units)


# %% tags=["solution"]
def in_sft_units(scores, sft_scores):
    return (scores - sft_scores.mean()) / sft_scores.std()


check.in_sft_units(in_sft_units)

# %% [markdown] tags=["exercise"]
# **4. Too sure?** *(medium, 20 minutes)*. People compared response $a$ with response $b$, in N pairs.
# `differences` (N,) are raw scores of $a$ minus raw scores of $b$. `labels` (N,) are true where the
# person prefers $a$. `temperatures` (K,) are candidates for a **temperature**, a number by which all
# differences are divided. Return four numbers as one tensor, `(4,)`. The first three use the differences
# as they are:
#
# 1. the accuracy,
# 2. the mean of the model's own probability,
# 3. the mean of the loss of section 1,
# 4. the candidate with the smallest mean loss.
#
# The last cell chooses the temperature on films of another split. Then it calls your function on the
# pairs of section 7, before and after the division. **Predict**: which of the first three change, and
# in which direction?
#
# *Hint:* take the difference −2 and the label true. Is the model right? How sure is it of its own
# choice? Which probability does it give to the person's choice? Only the last one enters the loss.


# %% tags=["exercise"]
def calibrate(differences, labels, temperatures): ...  # your code


check.calibrate(calibrate)


# %% [markdown] tags=["solution"]
# The sign turns each difference into "score of the preferred response minus score of the other one". The
# accuracy and the model's own probability do not need the same sign: one asks for the label, the other
# does not.


# %% tags=["solution"]
def calibrate(differences, labels, temperatures):
    right_way = torch.where(labels, differences, -differences)
    accuracy = (right_way > 0).float().mean()
    own = torch.sigmoid(differences.abs()).mean()
    divided = right_way / temperatures[:, None]  # (K, N)
    losses = -torch.nn.functional.logsigmoid(divided).mean(1)
    loss = -torch.nn.functional.logsigmoid(right_way).mean()
    return torch.stack([accuracy, own, loss, temperatures[losses.argmin()]])


check.calibrate(calibrate)


# %% tags=["exercise", "solution"]
def raw_differences(split):
    """Raw score of the chosen response minus that of the rejected one, pair by pair."""
    scorer, _ = models.load_scalar("tiny-reviews-reward")
    drawn = tasks.reviews.preference_pairs(
        split, 400 if FAST else 2000, seed=5, max_tokens=48, tokenizer=tokenizer
    )[:]
    scores_of = rewards.text_judge([scorer], tokenizer)
    difference = scores_of(drawn["prompt"], drawn["chosen"])
    difference = difference - scores_of(drawn["prompt"], drawn["rejected"])
    return scorer.scale * difference


candidates = torch.linspace(0.5, 6, 111)
before = raw_differences("val")
always = torch.ones(len(before), dtype=torch.bool)  # a is the chosen response
answer = calibrate(before, always, candidates)
if answer is not None:
    temperature = answer[3]
    print("the temperature:", round(temperature.item(), 2))
    before = raw_differences("test")
    for name, x in (("before", before), ("after", before / temperature)):
        found = calibrate(x, always, candidates)[:3]
        print(f"{name}: accuracy, own probability, loss", found.numpy().round(2))

# %% [markdown] tags=["exercise"]
# <details><summary>What you should see</summary>
#
# The temperature is 1.5. The accuracy stays at 65 %, because a division changes no sign. The model's own
# probability falls from 72 % to 66 %, and the loss from 0.66 to 0.63. So the model is as often right as
# before, and it now says better how often that is.
# </details>

# %% [markdown] tags=["exercise"]
# **5. Find the bug** *(medium, 20 minutes)*. A colleague's reward model learns, but badly. The last
# cell draws its training accuracy beside that of a right one: the share of pairs with the higher
# score for the chosen response, as a mean over ten steps. What is wrong in `read_score`? Mend it,
# run the checker, and draw the curves again.
#
# *Hint:* `token_scores` has the shape (B, T). In a batch, prompts are padded on the left, and responses
# on the right. Write down a mask of two rows on paper.


# %% tags=["exercise"]
def read_score(token_scores, attention_mask):
    """The score of each response (B,) from the numbers at all tokens (B, T)."""
    last = attention_mask.long().sum(1)
    last = last.clamp(max=token_scores.shape[1] - 1)
    return token_scores.gather(1, last[:, None])[:, 0]


check.read_score(read_score)


# %% [markdown] tags=["solution"]
# The number of real tokens is not the position of the last one. With padding on the left, the last
# token stands further right. Without it, the number is one too large, because positions start at 0.
# Subtracting 1 mends only the second case. So find the last position at which the mask is true:


# %% tags=["solution"]
def read_score(token_scores, attention_mask):
    positions = torch.arange(attention_mask.shape[1])
    last = torch.where(attention_mask, positions, -1).argmax(1)
    return token_scores.gather(1, last[:, None])[:, 0]


check.read_score(read_score)


# %% tags=["exercise", "solution"]
def train(read, steps=12 if FAST else 30):
    """Training accuracy of a reward model whose scores are read by `read`."""
    torch.manual_seed(0)
    learner = models.ScalarModel(copy.deepcopy(sft).base_model)
    optimizer = loops.make_optimizer(learner, loops.OptimiserConfig(lr=4e-4))
    labelled = tasks.reviews.preference_pairs(
        "reward", 16 * steps, seed=1, min_gap=2.0, max_tokens=32, tokenizer=tokenizer
    )
    right = torch.zeros(steps)
    for step in range(steps):
        rows = labelled[16 * step : 16 * step + 16]
        sides = rows["chosen"] + rows["rejected"]
        both = models.encode(tokenizer, rows["prompt"] * 2, sides)
        numbers = models.token_scores(learner, both)
        chosen, rejected = read(numbers, both.attention_mask).chunk(2)
        core.reward_model_loss(chosen, rejected).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        right[step] = (chosen > rejected).float().mean()
    return right.unfold(0, 10, 1).mean(1).tolist()


show.lines(
    {
        "a right one": train(core.last_token_scores),
        "the colleague's": train(read_score),
    },
    xlabel="step",
    ylabel="training accuracy, mean of ten steps",
    reference={"a coin": 0.5},
)

# %% [markdown] tags=["exercise"]
# **6. The whole step on an empty page** *(medium, 30 minutes)*. Close section 4. Write `reward_step` from
# memory, under the name `my_step`: the responses of the batch, each once; the number at every token; the
# scores; both sides of each pair; loss; update. Return the loss. A batch is a list of (prompt, chosen,
# rejected). The last cell runs three steps and compares them with section 4. If the first loss differs,
# look at the scores. If a later one differs, look at the update.
#
# You need `models.encode` (with `max_response=48`), `models.token_scores`, `core.last_token_scores`
# and `core.reward_model_loss`. `help(models.encode)` tells you the arguments of a function. The
# model is `learner`, its optimiser `optimizer`. Keep the responses in the order in which the pairs
# name them: chosen, rejected, chosen, rejected. `dict.fromkeys(texts)` removes repetitions and
# keeps the order.


# %% tags=["exercise"]
def my_step(pairs): ...  # your code


# %% [markdown] tags=["solution"]
# `reward_step` in section 4 of the lesson is the solution. Common slips: a response that is scored
# once for each of its pairs (the result is nearly the same, and slower), the chosen responses first
# and then the rejected ones (a sum in another order is rounded differently), no `zero_grad`.

# %% tags=["exercise"]
torch.manual_seed(0)
learner = models.ScalarModel(copy.deepcopy(sft).base_model)
optimizer = loops.make_optimizer(learner, loops.OptimiserConfig(lr=4e-4))
print("losses, section 4:", losses)
print("losses, my_step:  ", [my_step(batch) for batch in batches[:3]])
print("the weights are equal:", models.same_weights(learner, other))

# %% [markdown]
# ## Questions
#
# <details><summary>1. Two reward models have the same loss on every pair. Can they give different scores to the same response?</summary>
#
# Yes. Only differences within a prompt enter the loss. Each prompt has a constant that the loss does not
# see.
# </details>
#
# <details><summary>2. Right on 95 % of the training pairs, on 65 % of the held-out pairs, with a ceiling of 84 %. What happened?</summary>
#
# The model has learned its training pairs by heart. The labels are noisy, so above the ceiling
# there is only noise to learn.
# </details>
#
# <details><summary>3. The bag of words beats our reward model. Is something broken?</summary>
#
# No. Words of praise are most of what there is to see, and the bag of words was fitted on mean ratings of
# many people. The reward model saw single ratings only. It is also a small model.
# </details>
#
# <details><summary>4. Why do we not train the reward model on the mean ratings?</summary>
#
# Here we could. In most applications there are no ratings, only choices.
# </details>
#
# <details><summary>5. Your reward model is right on 72 % of the held-out pairs, a colleague's on 74 %. Which one do you train a policy on?</summary>
#
# First ask whether the difference is real: compare both on the same pairs, with an interval over
# prompts. Then ask where it comes from: close or clear pairs, long or short responses. Held-out
# pairs are written by people, but the model will score what a *policy* writes. So let both choose
# the best of several samples, and let a judge compare who knows neither model.
# </details>
#
# ## Going further
#
# **A margin** asks for more distance where people said "much better": $-\log \sigma(r_c - r_r - m)$
# (Touvron et al. 2023). **Centring** adds $c\,(r_c + r_r)^2$ to the loss, which chooses a zero
# during the training (Eisenstein et al. 2023). By hand, with the scores 2 and 1, the margin 0.5 and
# $c = 0.01$: the first part is $-\log \sigma(0.5)$, or 0.474. The second is 0.01 · 9 = 0.09.
# Together 0.564. Both are options of `core.reward_model_loss`.
#
# **More on calibration.** The temperature of exercise 4 is from Guo et al. 2017. In eight groups of
# equal size by the model's own probability, the mean distance between the probability and the share
# that is right falls from 0.08 to 0.03. For PPO the division changes nothing: it divides all
# scores, so also their standard deviation, and the score of section 5 stays the same. Sorted by the gap
# (section 7), the model's own probability hardly changes: 70 % for the closest pairs and 78 % for the
# clearest. This is no test of the calibration, because the model does not know the gap.
#
# **Does a full stop matter?** Our model gives "A moving and funny film" without a mark 2.87, with a
# full stop 2.70, with an exclamation mark the same. With `!!!` it is 2.66, with a question mark 2.42.
# This is one sentence, and other sentences may differ. A policy that is trained on this score could
# earn a little by leaving out the full stop. Our policies did not, as far as we see: the six
# recorded samples of each of the 21 runs of lesson 07 end in a full stop, even without a KL penalty.
#
# **Are the pictures of section 6 of any use?** We cut the reviews of 2,000 held-out pairs after
# eight tokens, and asked which beginning belongs to the chosen review. Both pictures are right in
# about 60 % of the cases, surely more than a coin. So the number at an early token says something
# about the whole review, but little. PPO's critic (lesson 06) answers another question: how the response
# will end on average, if the policy goes on from here. It has to be trained for that.
#
# **A head that is trained at every token** (DeepSpeed-Chat's loss, `core.per_token_reward_loss`).
# It lays the chosen and the rejected response side by side. At each position, from the first at which
# they differ to the end, it takes the Bradley-Terry loss of the two numbers. After a short training on
# 1,920 pairs such a head is right in 57 % after eight tokens. The three cannot be told apart on these
# pairs. This is no verdict about the methods: the model of the two pictures was trained on many more
# pairs.
#
# **How many labels were read (section 8)?** Of 25,600 pairs drawn, 19,383 are different. In 160
# steps 32 % of these are never read, because a batch has only the pairs within small groups of
# reviews, and the others are read about twice. So the right end of the curve may lack steps as much
# as labels. The record varies only the number of labels. At the left end, stopping earlier would
# probably have spared most of the loss. We did not run that.
#
# **What the libraries do.**
#
# | | here | elsewhere |
# |---|---|---|
# | where the score is read | at EOS, found by the mask | TRL and DeepSpeed-Chat: the last token before the padding. OpenRLHF: EOS |
# | zero and unit | from samples of the SFT model, kept with the weights | OpenRLHF: from the training data, as an option. TRL: none. DeepSpeed-Chat: scores clipped to ±5 in PPO |
# | new layer | standard deviation $1/\sqrt{h + 1}$ with $h$ inputs | TRL: the default of transformers. OpenRLHF: as small or smaller |
# | margin, centring | options | TRL: both. OpenRLHF: the margin |
# | epochs | a few, with dropout | usually one, because the pairs of one prompt share responses |
#
# **References.** Bradley and Terry 1952. Ziegler et al. 2019, section 2.1. Stiennon et al. 2020,
# section 3.4. Ouyang et al. 2022, section 3.5. Touvron et al. 2023 (Llama 2), section 3.2.2.
# Eisenstein et al. 2023, section 3. Guo et al. 2017, section 4.
#
# *How this lesson is checked:* its loop equals `train_reward_model`
# (`tests/loops/test_by_hand.py`), and every number about a recorded run is compared with the record
# (`tests/claims/test_lesson_08.py`).
