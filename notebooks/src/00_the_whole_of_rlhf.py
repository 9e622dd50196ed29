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
# # 00 · The whole of RLHF in one picture
#
# After this page you can
#
# - explain the three stages of RLHF to a colleague, and write down the loss of each,
# - say what the score of a reward model means, and what it does not mean,
# - look at a training run, and say what was gained and what it cost.
#
# **You need** PyTorch: tensors, modules, a training loop. You need no reinforcement learning.
# About 35 minutes to read, 65 for the exercises and 15 for the test at the end.

# %%
import copy

import pandas as pd
import torch

from minirlhf import core, experiments, loops, models, rewards, show, tasks
from minirlhf.classroom import FAST, Questions, check, graded

# %% [markdown]
# ## 1. The picture
#
# A language model imitates: it writes what people write, good or bad. **Reinforcement learning from
# human feedback (RLHF)** trains it to write what people *prefer*.

# %%
show.pipeline()

# %% [markdown]
# Follow the numbers 1 to 3:
#
# 1. **Supervised fine-tuning (SFT).** The model learns to imitate what people wrote.
# 2. **Reward model.** People read two texts, A and B, and say which one is better. From these
#    judgements a second model learns to give each text one number, its **score**.
# 3. **Proximal policy optimisation (PPO).** The SFT model writes, the reward model scores, and the
#    training makes texts with a high score more likely.
#
# The model that writes is called the **policy**. The text that it continues is the **prompt**, and what
# it writes is the **response**.
#
# The picture has two other roads to a better policy. You can forget both for today:
#
# - **Group relative policy optimisation (GRPO)** is PPO without its critic, a network of section 4. It
#   writes several responses to each prompt, and compares the score of each with their mean (lesson 11).
# - **Direct preference optimisation (DPO)** leaves out the reward model, the critic and the writing.
#   It trains the policy on the pairs of texts: the preferred text becomes more likely, relative to the
#   other one (lesson 12).
#
# **Our example.** The policy is `tiny-reviews`, a GPT-2 of four million parameters that we trained
# ourselves. The prompt is the title of a film, and the response is a review of one sentence. What
# do people prefer? Nobody compared two reviews. People rated how positive a review is, from −4 to 4.
# *We* say: the more positive review is the better one.
#
# The model is tiny, so its sentences are often odd, and some may offend.
#
# **Predict.** PPO trains the policy to write reviews with a high score. Compare them with
# reviews of the SFT model:
#
# 1. Will they be longer or shorter?
# 2. Will they be more varied or less varied?
# 3. Will a judge that took no part in the training find them more positive?
# 4. Would you rather read them?
#
# Write your answers down. Section 5 has ours.

# %% [markdown]
# ## 2. Supervised fine-tuning
#
# Before SFT, the model has read film reviews, plot summaries and other short texts. SFT shows it
# titles, each with a review that a person wrote. Call the title $x$, and the review $y$ with the
# tokens $y_1, \dots, y_T$. (A **token** is a word or a piece of one.) The loss is that of ordinary
# next-token prediction:
#
# $$ L_{\text{SFT}} = -\frac{1}{T} \sum_{t=1}^{T} \log \pi(y_t \mid s_t) . $$
#
# Here $s_t$ is all that comes before token $y_t$: the title and the tokens so far. The model gives the
# token the probability $\pi(y_t \mid s_t)$. In words: the loss is the mean cross-entropy of the review's
# tokens. The model reads the title, but has no loss on it.
#
# The next table has six titles of our test films, which no training has seen. Each model writes one
# response to each title, of at most 32 tokens.

# %%
base, tokenizer = models.load_policy("tiny-reviews")
sft, _ = models.load_policy("tiny-reviews-sft")
titles = tasks.reviews.eval_prompts("test")[:6]


def write(policy):
    """One response to each title."""
    (batch,) = models.sample_text(policy, tokenizer, titles, seed=0)
    return models.decode(tokenizer, batch)


names = pd.Index([title.strip() for title in titles], name="title")
show.texts(pd.DataFrame({"before SFT": write(base), "after SFT": write(sft)}, names))

# %% [markdown]
# Before SFT, some responses are summaries, and some begin in the middle of a sentence. After SFT, each
# response ends like a sentence, and most have the tone of a review, though few make sense. SFT
# imitates critics of all kinds. So some of its reviews criticise, some praise, and some say nothing.
# Nothing has told the model which it should write.

# %% [markdown]
# ## 3. The reward model
#
# The reward model is a copy of the SFT model with another last layer. That layer gives one number, the
# score $r$, instead of a distribution over the next token. It learns from pairs of reviews of one film,
# A and B. Many people rated each review. We draw one of the ratings of A and one of those of B. The
# review with the higher rating is the preferred one.
#
# The reward model turns two scores into a probability, by the **Bradley-Terry model**:
#
# $$ P(A \text{ preferred to } B) = \sigma\big(r(A) - r(B)\big),
# \qquad \sigma(z) = \frac{1}{1 + e^{-z}} . $$
#
# In words: the further the score of A lies above that of B, the surer the reward model is that people
# prefer A. Call the preferred review of a pair A. The loss is
#
# $$ L_{\text{reward model}} = -\log \sigma\big(r(A) - r(B)\big) . $$
#
# In words: it is small if the preferred review has much the higher score. On paper:
#
# | $r(A) - r(B)$ | 0 | 1 | 2 | −1 |
# |---|---|---|---|---|
# | probability that A is preferred | 50 % | 73 % | 88 % | 27 % |
# | loss | 0.69 | 0.31 | 0.13 | 1.31 |

# %%
scores_a, scores_b = torch.tensor([1.0, 2.0, 3.0, 0.0]), torch.ones(4)
loss = -torch.nn.functional.logsigmoid(scores_a - scores_b)
assert torch.allclose(loss, torch.tensor([0.69, 0.31, 0.13, 1.31]), atol=0.005)

# %% [markdown]
# Only differences count, so we may shift all scores. After the training we do this, and we also divide
# them. Now the SFT model's responses have the mean score 0 and the standard deviation 1. So a score of 2
# is far better than that of an ordinary response.
#
# The division gives all reward models the same unit, but it changes the differences. The table
# above holds *before* it. We divide by 1.29, so from here on a difference of 1 means 78 %, not 73 %.
#
# **Predict.** Our reward model reads the five reviews below. Which gets the highest score, and which
# the lowest? Which of the five scores are negative?

# %% tags=["shared"]
reward_model, tokenizer = models.load_scalar("tiny-reviews-reward")
score = rewards.rollout_score(reward_model, tokenizer.eos_token_id)


def score_of(reviews):
    """The score of each review, as a review of "the film"."""
    batch = models.encode(tokenizer, ["the film\n"] * len(reviews), reviews)
    return pd.DataFrame({"score": score(batch).tolist()}, reviews).round(2)


# %% tags=["predict"]
five = ["A moving and funny film.", "The film is two hours long.", "Not a dull moment."]
five += ["A moving and funny film, but the ending is dull.", "funny funny funny funny"]
score_of(five)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# - **Highest:** "A moving and funny film." has 2.70.
# - **Lowest:** "Not a dull moment." has −3.21, although it is praise. The reward model reacts to
#   *dull* and misses the *not*.
# - **Negative:** this one, and the review with the dull ending, −1.18. One bad word outweighs two good
#   ones there. The review that only states a length is average, 0.03.
# - "funny funny funny funny" is no review, and has 1.17. Nobody wrote such a text, so no rating says
#   that it is bad.
#
# </details>
#
# So the reward model can be fooled. How good is it on real reviews? On new pairs, of films that it has
# not seen, it is right in 64 %. A guess is right in 50 %. Nobody could reach 100 %, because we drew
# single ratings, and people disagree. Take the mean of all *other* ratings of each review instead. The
# review with the higher mean is the preferred one in 84 % of the pairs.

# %% [markdown]
# ## 4. PPO
#
# Four models take part in PPO:
#
# | model | what it does | begins as a copy of | in PPO |
# |---|---|---|---|
# | **actor** $\pi$ | writes; it is the policy | the SFT model | trained |
# | **reference** $\pi_{\text{ref}}$ | shows how far the actor has moved | the SFT model | frozen |
# | **reward model** $r$ | scores a finished review | (section 3) | frozen |
# | **critic** $V$ | predicts, before each token, how the review will end (see *Compare* below) | the reward model | trained |
#
# **What PPO maximises**, on average over the reviews that the actor writes:
#
# $$ \text{score} - \beta \, \log \frac{\pi(y \mid x)}{\pi_{\text{ref}}(y \mid x)} . $$
#
# - $\pi(y \mid x)$ is the probability that the actor writes $y$: the product over its tokens.
#   $\pi_{\text{ref}}(y \mid x)$ is the same for the reference.
# - The logarithm is the **log-ratio** of the review. It is the *sum* of its tokens' log-ratios.
# - $\beta = 0.5$ is the **KL coefficient**: how much moving away from the reference costs. KL stands
#   for Kullback-Leibler. The log-ratio times $\beta$ is the **KL penalty**.
#
# In words: get a high score, and stay close to the model that you came from.
#
# **By hand.** The actor writes *Very funny* and then stops. These are three tokens, because stopping is
# one, too. The score is 1.2. (All numbers are made up.)
#
# | token | actor | reference | log-ratio | KL penalty |
# |---|---|---|---|---|
# | Very | 0.2 | 0.1 | log 2 = 0.69 | 0.35 |
# | funny | 0.3 | 0.1 | log 3 = 1.10 | 0.55 |
# | stop | 0.1 | 0.2 | log 0.5 = −0.69 | −0.35 |
# | the review | 0.006 | 0.002 | log 3 = 1.10 | 0.55 |
#
# The actor writes this review three times as often as the reference. So it loses 0.55 of its score,
# and 1.2 − 0.55 = 0.65 is left. A token that the actor writes *less* often than the reference, like
# *stop*, gains.
#
# The mean log-ratio of the actor's own reviews is its **KL divergence** from the reference, for short
# its KL. It is never negative ("Going further" has an example), so on average moving away costs score.
# The unit is the **nat**, the unit of natural logarithms.
#
# **One step of PPO:**
#
# 1. **Sample.** The actor writes 64 reviews.
# 2. **Score.** The reward model gives each review its score.
# 3. **Penalise.** Each token gets its own KL penalty, as in the table.
# 4. **Compare.** The **return** $G_t$ of token $y_t$ is the score, minus the token's *own* penalty and
#    those of *later* tokens. (Earlier penalties do not count.) Before the token, the critic has predicted
#    the return: $V(s_t)$. The difference is the **advantage** of the token, $A_t = G_t - V(s_t)$.
# 5. **Update.** Tokens with a positive advantage become more likely, those with a negative one less
#    likely. The critic learns to predict the return. Its loss is $\tfrac{1}{2} (V(s_t) - G_t)^2$.
#
# Our runs do a little more: "Going further" has the list. The same review again:
#
# | token | return $G_t$: score minus own and later penalties | predicted, $V(s_t)$ | advantage $A_t$ |
# |---|---|---|---|
# | *Very* | 1.2 − (0.35 + 0.55 − 0.35) = 0.65 | 0.1 | 0.65 − 0.1 = 0.55 |
# | *funny* | 1.2 − (0.55 − 0.35) = 1.00 | 0.4 | 1.00 − 0.4 = 0.60 |
# | *stop* | 1.2 − (−0.35) = 1.55 | 1.7 | 1.55 − 1.7 = −0.15 |
#
# After *Very funny*, the critic predicts 1.7, because other reviews that begin so ended well. This one
# ends a little less well. So PPO makes *Very* and *funny* more likely, and stopping here a little less
# likely.

# %%
log_ratios = torch.tensor([[2.0, 3.0, 0.5]]).log()
end = torch.tensor([[0.0, 0.0, 1.2]])  # the score belongs to the last token
token_rewards = end - 0.5 * log_ratios
own_and_later = token_rewards.flip(1).cumsum(1).flip(1)  # summed from the end
predicted = torch.tensor([[0.1, 0.4, 1.7]])
by_hand = torch.tensor([[0.55, 0.60, -0.15]])
assert torch.allclose(own_and_later - predicted, by_hand, atol=0.005)
real = torch.ones(1, 3, dtype=torch.bool)  # true: a token and no padding
package, _ = core.gae(token_rewards, predicted, real, lam=1)  # lesson 05
assert torch.allclose(package, own_and_later - predicted)

# %% [markdown]
# **The policy's loss.** One batch serves for several updates. Let $\rho_t$ be the probability of token
# $y_t$ now, divided by its probability when it was sampled. (The log-ratio compares with the reference
# instead.) PPO minimises the mean over all tokens of
#
# $$ L_t = -\min\big(\rho_t A_t, \; \text{clip}(\rho_t, \, 0.8, \, 1.2) \, A_t\big) . $$
#
# - **The first update.** All $\rho_t$ are 1. There the gradient of $\rho_t$ is that of
#   $\log \pi(y_t \mid s_t)$. So the gradient of $L_t$ is that of $-A_t \log \pi(y_t \mid s_t)$: SFT's loss on the
#   actor's own tokens, each weighted by its advantage.
# - **Later updates.** Take a token with a positive advantage. Once it is 20 % more likely than when it was
#   sampled, its $L_t$ is constant, with gradient 0. With a negative advantage, this happens once it is
#   20 % less likely.
#
# *Proximal* means near. But the clip is no wall: the updates for *other* tokens can still move this
# token further. Lesson 06 builds this line by line.

# %% [markdown]
# **A real run** of eight steps takes about a minute. The curves are the mean score of the 64 reviews of
# each step, and the KL per response. (On another computer, they can look a little different.)

# %%
if FAST:  # for the tests of this page
    config = loops.PPOConfig(steps=2, batch_size=8, minibatch_size=4)
else:
    config = loops.PPOConfig(steps=8)
actor, critic, history = loops.train_ppo(
    copy.deepcopy(sft),
    copy.deepcopy(reward_model),  # the critic starts as a copy of the reward model
    tokenizer,
    tasks.reviews.rl_prompts(),  # the titles of other films
    score,
    config,
)
show.curves(history, columns=["score", "kl"])

# %% [markdown]
# Step 0 comes before any update: the actor still *is* the reference. So the score is near 0, and
# the KL 0. Then both rise. (The score jumps, because 64 reviews are few.)
#
# A full run has 24 steps. We recorded three, which differ only in the random seed.

# %%
record = experiments.results("leash_history")
three_runs = record[record.variant == "kl_coef 0.5"]
show.curves(three_runs, by=None, columns=["score", "kl"])

# %% [markdown]
# In the first ten steps both rise fast, and after that little.

# %% [markdown]
# ## 5. What PPO changed
#
# The SFT model and the three runs wrote reviews of 76 test films.
# Each cell of the next table has the mean of the three runs, and behind it the lowest and the highest
# run. (The SFT model is one model, so its three numbers are equal.) The rows are:
#
# - *score* and *KL*, as in section 4,
# - *gold score*: another model's prediction of the rating, from −4 to 4, that people would give. This
#   model counts words, and learned from the ratings of other films. PPO never sees it.
# - *tokens*: the length of a review,
# - *different word pairs*, a measure of variety: of 500 pairs of neighbouring words, the share of
#   different ones.

# %% tags=["predict"]
tour = experiments.results("tour")  # all methods of the picture
by_coefficient = experiments.results("leash")  # PPO with several KL coefficients
before = tour[(tour.method == "SFT") & (tour.seed == 0)].assign(variant="SFT")
after = by_coefficient[by_coefficient.variant == "kl_coef 0.5"].assign(variant="PPO")
both = pd.concat([before, after])
measures = {
    "proxy": "score",  # by the reward model
    "gold": "gold score",
    "kl": "KL, nats",
    "length": "tokens",
    "distinct_2": "different word pairs",
}
experiments.shown(both, measures).T

# %% [markdown]
# <details><summary>What you should see</summary>
#
# 1. **Shorter.** From about 19 tokens to 15.
# 2. **Less varied.** 85 % of the word pairs are different with SFT, and 81 % with PPO.
# 3. **More positive.** The gold score rises from 0.37 to 1.43. It rises by more than 1 in each run.
# 4. **Your choice.** Read the samples below first. We find them friendlier, but they say no more
#    about the films.
#
# </details>
#
# The six titles of section 2 again, with one recorded review by each model:

# %%
show.texts(experiments.samples(both, ["SFT", "PPO"]))

# %% [markdown]
# The SFT model praises and criticises: *a fresh, entertaining thriller*, but also *just too hard to
# work with*. PPO's six nearly all praise: *very funny and entertaining*, *warm, romantic*,
# *well-acted*. Their English is not better: *a urban era at sparkling life*.
#
# **What it cost,** beside variety:
#
# - **Distance.** The KL is 2.04 nats. This is the mean log-ratio of the reviews that PPO writes. A review
#   with this log-ratio is about 8 times ($e^{2.04}$) as likely under PPO as under the SFT model.
# - **Information.** PPO praises whatever the film. Nobody was asked whether a review fits its film.

# %% [markdown]
# ## 6. One batch under the microscope
#
# The **token microscope** shows every token of four reviews by a PPO policy, after the last of its
# 24 steps. Blue tokens are more likely than under the reference, orange ones less likely. Point at
# a token to see five numbers and each model's likeliest words.

# %%
run = experiments.results("microscope")
last = run[(run.source == "fresh") & (run.step == 24)]
columns = ["text", "prompt", "position", "token", "alternatives", "ref_alternatives"]
columns += ["score", "value", "logprob", "ref_logprob", "kl"]  # kl: log-ratio
show.microscope(last[columns], "kl", text="all")

# %% [markdown]
# Take the response to *amys o*: "A heartbreaking treat." It has seven tokens. *heartbreaking* is three
# of them, and `<|endoftext|>` is the token that stops.
#
# - **One token.** The PPO policy writes *heart* after *A* with a probability of 3.2 %, the reference
#   with 0.8 %. The log-ratio is log (3.2 / 0.8) = 1.4, and the token is blue. *treat* is orange: PPO has made
#   it *less* likely there.
# - **The whole review.** The log-ratios of its tokens add up to 0.96 nats. So PPO has made the review
#   $e^{0.96} = 2.6$ times as likely. Its score is 0.99. What PPO maximises is 0.99 − 0.5 · 0.96 = 0.51.
# - **The critic.** The row *value (the critic)* is its prediction (section 4). It is 0.14 before
#   *heart*, and 0.67 after it.

# %% [markdown]
# ## 7. What holds the policy back?
#
# Do we need the KL penalty? The three runs of section 5 have $\beta = 0.5$. We trained three more with
# $\beta = 0$. All else is the same.
#
# **Predict.** Without the KL penalty, which of the five numbers of section 5 become larger? What does
# a review look like?

# %% tags=["predict"]
two = by_coefficient[by_coefficient.variant.isin(["kl_coef 0.5", "kl_coef 0"])]
experiments.shown(two, measures).T

# %% tags=["predict"]
show.texts(experiments.samples(by_coefficient, ["kl_coef 0", "kl_coef 0.5"]).head(3))

# %% [markdown]
# <details><summary>What you should see</summary>
#
# - **Larger:** the score (4.03 instead of 1.24), the KL (91 nats instead of 2.04), the length, and also
#   the gold score (2.63 instead of 1.43).
# - **Smaller:** the variety. Only 2 % of the word pairs are different.
# - **The reviews** say *funny and funny and funny*, whatever the film. As a review of "the film", the
#   first one has a score of 4.24. Honest praise has 2.70 (section 3).
#
# The gold judge counts words, and *funny* is a good word. So it has its own errors, and this policy
# has found them.
#
# </details>
#
# When the score rises and the reviews get worse, this is called **over-optimisation** or *reward
# hacking*.

# %% [markdown]
# ## What to remember
#
# - RLHF has three stages: imitate (SFT), learn a score from people's judgements (reward model), make
#   responses with a high score more likely (PPO).
# - PPO trains the actor and the critic. The reward model and the reference are frozen.
# - A score means something only beside other scores. It is a model of people, and it can be fooled.
# - PPO maximises the score minus a KL penalty for moving away from the SFT model. The return of a token is
#   the score, minus its own and later penalties.
# - It gains score. It costs KL and variety.
# - Never trust one number: look at another judge, the KL, the variety, and read samples.
#
# ## Exercises
#
# Solutions are in `solutions/00_the_whole_of_rlhf.ipynb`. A checker says *pass*, or what is probably
# wrong. Write, run, mend.

# %% [markdown] tags=["exercise"]
# **1. Fool the reward model** *(easy, 10 minutes)*. Write a review that no reader would take for
# praise, with a score above 1.5. Then write a review that clearly praises the film, with a score
# below −1.5. Do not use *dull*. What do your successful tries have in common?
#
# *Hint:* which words does the reward model like, and which not? Section 3 has examples.

# %% tags=["exercise"]
score_of(["A film about a film.", "Go and see it."])  # your tries

# %% tags=["solution"]
tries = ["A beautiful waste of time.", "A waste of a beautiful, moving and funny idea."]
tries += ["I could not stop crying.", "The worst thing about it: it ends."]
score_of(tries)

# %% [markdown] tags=["solution"]
# These are our tries. The reward model adds up the mood of single words, more or less. It misses what
# the sentence does with them: a good word that describes something bad, a bad word that is meant as
# praise. A policy that maximises this score learns to use the good words.

# %% [markdown] tags=["exercise"]
# **2. Best of n** *(medium, 20 minutes)*. The simplest use of a reward model needs no training: write n
# responses to each prompt, and keep the one with the highest score.
#
# (a) `scores` has the shape (N * n,), with the n responses to each of the N prompts side by side. Return
# the N row numbers of the best ones.
#
# *Hint:* begin on paper. With n = 2, the scores 1, 5, 7, 2 belong to two prompts. The answer is [1, 2].


# %% tags=["exercise"]
def best_of_n(scores, n): ...  # your code


check.best_of_n(best_of_n)


# %% tags=["solution"]
def best_of_n(scores, n):
    groups = scores.view(-1, n)
    return torch.arange(len(groups)) * n + groups.argmax(1)


check.best_of_n(best_of_n)

# %% [markdown] tags=["exercise"]
# (b) PPO has a mean score of 1.24 in section 5, on all test films and by the reward model that you have.
# **About how many reviews must the SFT model write for each film, so that the best one scores as high on
# average?** Guess first. Then let it write eight for each film (half a minute), and find n.
#
# How sure is this? Each of your means comes from 76 films. Its **standard error** is the standard
# deviation of the 76 scores, divided by $\sqrt{76}$. Which values of n can you not tell from PPO, because
# their mean is less than two standard errors from 1.24?
#
# *Hint:* you have eight scores for each film, and n = 3 needs the first three of each.

# %% tags=["exercise", "solution"]
sft, tokenizer = models.load_policy("tiny-reviews-sft")
films = tasks.reviews.eval_prompts("test")[: 8 if FAST else None]
repeated = [film for film in films for _ in range(8)]  # eight of each, side by side
batches = models.sample_text(sft, tokenizer, repeated, seed=0)
scores = torch.cat([score(batch) for batch in batches])

# %% tags=["exercise"]
mean_scores = {}  # n: the mean score of the best of n, for n = 1, 2, ... 8
mean_scores

# %% tags=["solution"]
mean_scores = {}
standard_errors = {}
for n in range(1, 9):
    first = scores.view(-1, 8)[:, :n].flatten()
    best = first[best_of_n(first, n)]
    mean_scores[n] = best.mean().item()
    standard_errors[n] = (best.std() / len(best) ** 0.5).item()
columns = {"best of n": mean_scores, "standard error": standard_errors}
pd.DataFrame(columns).round(3)

# %% [markdown] tags=["solution"]
# About six or seven. Six have 1.22, a little less than PPO's 1.24. Seven have 1.29, a little more.
#
# But five, with 1.09, and eight, with 1.36, are also less than two standard errors from 1.24. (A standard
# error is 0.07 to 0.08 there.) So you cannot tell five, six, seven or eight from PPO. Four have 0.96,
# and this is clearly less. PPO's number is not exact either: its three runs reach from 1.18 to 1.33.
#
# So a whole training has moved the mean score about as far as a choice among five to eight reviews does.

# %% [markdown] tags=["exercise"]
# **3. What does β decide?** *(medium, 20 minutes)*. Take the four reviews of section 6 again. The first
# cell prints the score of each, and the sum of its log-ratios. Which of them is best by the quantity
# that PPO maximises, with $\beta = 0$, with 0.5 and with 2? Predict it on paper. Then write the
# function, and run the last cell. Does the same review always win?

# %% tags=["exercise", "solution"]
recorded = experiments.results("microscope")
trained = recorded[(recorded.source == "fresh") & (recorded.step == 24)]
reviews = trained.groupby("prompt")
reviews.agg(score=("score", "first"), sum_of_log_ratios=("kl", "sum")).round(2)

# %% [markdown] tags=["exercise"]
# `scores` has the shape (B,): the score of each of B responses. `logprobs` and `ref_logprobs` have the
# shape (B, R): the log-probability of each token under the actor and under the reference, at R
# positions. A shorter response is filled up with **padding**. `mask` is true at real tokens and false
# at padding. Return the score minus the KL penalty of each response, shape (B,).
#
# *Hint:* the probability of a response is the product over its tokens. Padding can hold NaN, and NaN
# times 0 is NaN. So replace padding before you add up. `torch.where` can do this.


# %% tags=["exercise"]
def kl_penalised_score(scores, logprobs, ref_logprobs, mask, kl_coef): ...  # your code


check.kl_penalised_score(kl_penalised_score)


# %% tags=["solution"]
def kl_penalised_score(scores, logprobs, ref_logprobs, mask, kl_coef):
    log_ratio = torch.where(mask, logprobs - ref_logprobs, 0.0)
    return scores - kl_coef * log_ratio.sum(1)


check.kl_penalised_score(kl_penalised_score)

# %% tags=["exercise", "solution"]
tokens = ["old_logprob", "ref_logprob"]  # a row for each review, padded with NaN
padded = trained.pivot(index="prompt", columns="position", values=tokens)
logprobs = torch.tensor(padded["old_logprob"].to_numpy())
ref_logprobs = torch.tensor(padded["ref_logprob"].to_numpy())
review_scores = torch.tensor(reviews.score.first().to_numpy())
table = pd.DataFrame(index=padded.index.str.strip())
for beta in (0.0, 0.5, 2.0):
    table[f"beta = {beta}"] = kl_penalised_score(
        review_scores, logprobs, ref_logprobs, ~logprobs.isnan(), beta
    )
table.round(2)

# %% [markdown] tags=["solution"]
# Another review wins each time.
#
# - $\beta = 0$: only the score counts. The first review wins with 1.29.
# - $\beta = 0.5$: "A heartbreaking treat." wins. Its score is lower, 0.99, but the sum of its log-ratios
#   is 0.96, and that of the first review is 2.08.
# - $\beta = 2$: "Happy Thanks!" wins, with the low score 0.40. Its sum is the smallest, 0.57.
#
# So $\beta$ decides how much score PPO must gain to move away from the SFT model by one nat. With
# $\beta = 2$ it must gain 2.

# %% [markdown] tags=["exercise"]
# **4. When does PPO pay?** *(medium, 15 minutes)*. On paper. PPO must be trained, and best of n need
# not. Count the reviews that each of them writes.
#
# (a) How many reviews does PPO write in a full run (section 4)?
#
# (b) After the training, PPO writes one review for each request, and best of n writes n. Take the
# two values of n whose means in exercise 2 are nearest to PPO's. After how many requests has PPO
# written fewer reviews, its training included?
#
# (c) The two have about the same score then. What does this count leave out? Find something that
# speaks for PPO, and something that speaks for best of n.

# %% [markdown] tags=["solution"]
# (a) 24 steps of 64 reviews are 1,536.
#
# (b) Best of n writes n − 1 reviews more for each request. For n = 7 this is 1,536 / 6 = 256, and for
# n = 6 it is 1,536 / 5, about 307. So PPO has written fewer after 256 or after 307 requests.
#
# (c) *For PPO:* a request needs no reward model, and nobody waits for n reviews. And best of n can
# only choose among what the SFT model writes. PPO can go further, also to where the reward model is
# wrong (section 7).
#
# *For best of n:* PPO also trains two networks on its 1,536 reviews, and somebody must find its
# settings. With a new reward model, PPO begins again. And best of n stays nearer to the SFT model:
# the KL of best of seven is at most $\log 7 - 6/7 = 1.09$ nats, and PPO's is 2.04. In
# the record of the tour, best of 16 has a higher gold score than PPO in each of the three runs. So
# on this task, PPO is not the better of the two.

# %% [markdown]
# ## Questions
#
# <details><summary>1. Which of the three stages could you leave out, and what would you lose?</summary>
#
# - *SFT*: PPO would start from a model that does not know what a review is. It would have to find
#   reviews by chance.
# - *The reward model*: you can leave it out where a program can score the response, for example in
#   arithmetic. Lesson 11 does this.
# - *PPO*: you can keep the best of n responses instead (exercises 2 and 4).
# </details>
#
# <details><summary>2. Why do we judge with another model than the one that PPO maximises?</summary>
#
# PPO finds what the reward model likes, and this includes the reward model's errors. A judge that PPO
# never saw has errors too, but nobody has searched for them. Section 7 shows that this is no
# guarantee.
# </details>
#
# <details><summary>3. Why is the KL 0 at the first step, and not later?</summary>
#
# The actor begins as a copy of the reference, so every token has the same probability under both. Each
# update moves the actor.
# </details>
#
# <details><summary>4. Why does the reward model score finished responses only?</summary>
#
# People rated finished reviews, so it learned to judge where a review ends. Lesson 01 shows what it
# says earlier.
# </details>
#
# <details><summary>5. What on this page was decided by people, and what by us?</summary>
#
# People rated how positive a review is. We decided that more positive is better, that each rating
# counts the same, and how strong the KL penalty is.
# </details>
#
# <details><summary>6. The actor writes <em>stop</em> at the end of a review more often than the reference would.
# Whose advantages does this penalty lower?</summary>
#
# That of *stop*, and those of all tokens before it, because it is a later penalty for them. In the table of
# section 4, the returns of *Very* and *funny* contain the penalty of *stop*. The returns of *funny* and *stop*
# do not contain that of *Very*.
# </details>
#
# <details><summary>7. Section 7 has two gold scores, 1.43 with the KL penalty and 2.63 without. Which do
# you believe? How could you know?</summary>
#
# We believe the 1.43, and not the 2.63. Three things tell us:
#
# - **The samples.** With the penalty, three films get three different sentences. Without it, they
#   get nearly the same one.
# - **The variety.** It is 81 % with the penalty and 2 % without.
# - **The KL.** At 2 nats the policy still writes much like the SFT model. At 91 nats it writes what
#   nobody ever wrote or rated, and the gold judge learned from rated reviews only.
#
# A doubt remains: *funny* is in two of the three reviews with the penalty, too. So a part of the
# 1.43 may be the same error. Only people who rate PPO's reviews could settle this.
# </details>
#
# ## What do you believe now?
#
# Twelve questions about things that many people get wrong. Many of their words are explained only
# later, so "I do not know" is a good answer today. The numbers in them are examples, and not those of this
# page. Take the same test again after lesson 09.

# %%
Questions()

# %% [markdown]
# Write your twelve letters, with `-` for "I do not know". The cell names the lesson of each open
# question.

# %% tags=["exercise"]
my_answers = "- - - - - -  - - - - - -"  # yours
print(graded(my_answers))

# %% [markdown]
# ## The map of the course
#
# Each lesson explains one part of this page from the beginning.
#
# | lessons | what they explain |
# |---|---|
# | lesson 01 | why people's judgements, and not only people's texts? |
# | lesson 02 | what the ratings are worth |
# | lesson 03 | a language model as a policy; SFT |
# | lessons 04 and 05 | which tokens should become more likely: policy gradient, critic, advantage |
# | lessons 06 and 06b | PPO, line by line, and a lab on its runs |
# | lesson 07 | the KL penalty |
# | lesson 08 | the reward model |
# | lesson 09 | the four models at work: actor, critic, reward model, reference |
# | lesson 10 | what it costs in time and memory |
# | lessons 11 and 11b | GRPO, and a lab on it |
# | lessons 12 and 13 | DPO, and what it says about single tokens |
# | lessons 14 and 14b | what DPO gets wrong, and a lab on the repairs |
# | lessons 15 and 15b | an agent with a tool, and a lab on feedback on steps |
# | lesson 16 | over-optimisation: when a better score is no better response any more |
# | lessons 90 and 91 | two reference sheets, to look things up |
#
# Lessons 01, 03 to 06, 08, 11 and 12 are the core. The exercises of six lessons fill a file of your
# own, `my_rlhf.py`. At the end, `minirlhf tour --mine my_rlhf.py` trains the whole pipeline with it.

# %% [markdown]
# ## Going further
#
# **Run it yourself.** `make tour` trains all stages on your machine, then DPO and GRPO from the same
# SFT model. It ends with a report, `out/tour/report.html`. This page does not need it.
#
# **Why the KL is never negative.** Suppose that only two reviews are possible:
#
# | review | actor | reference | log-ratio |
# |---|---|---|---|
# | A | 0.8 | 0.5 | 0.47 |
# | B | 0.2 | 0.5 | −0.92 |
#
# B gains more than A loses. But the actor writes A four times as often. The mean log-ratio is
# 0.8 · 0.47 − 0.2 · 0.92 = 0.19.
#
# In general, let $z = \pi_{\text{ref}}(y \mid x) / \pi(y \mid x)$. The log-ratio is $-\log z$. Each review $y$
# counts as often as the actor writes it, so the mean of $z$ is
#
# $$ \sum_y \pi(y \mid x) \, \frac{\pi_{\text{ref}}(y \mid x)}{\pi(y \mid x)}
# = \sum_y \pi_{\text{ref}}(y \mid x) \le 1 . $$
#
# (The sum goes over the reviews that the actor can write.) For every $z$, $\log z \le z - 1$. So the mean of
# $\log z$ is at most $1 - 1 = 0$, and the mean log-ratio is at least $0$.
#
# **What section 4 leaves out.** The runs of this page do more:
#
# - A review that is cut off after 32 tokens loses 1 from its score.
# - Generalised advantage estimation (`gae`) mixes the critic's predictions at later tokens into the
#   advantages and into the returns that the critic learns, with $\lambda = 0.95$ (lesson 05). Section 4 shows
#   $\lambda = 1$, without this.
# - The advantages are then shifted and stretched over the batch, to the mean 0 and the standard
#   deviation 1. So *positive* means better than the mean of the batch. A token can be a little worse than
#   the critic predicted, and still become more likely.
# - Each batch is used twice, in two minibatches of 32 reviews: four updates.
# - The learning rates rise over the first five steps (a **warm-up**). They also fall, step by step, towards
#   0 at the end of the run.
# - The gradient of each network is shortened to the length 1, if it is longer.
# - The critic's loss has a clip, too. The loss no longer falls once a prediction has moved by more than 0.5
#   towards its return.
# - The logits are divided by the temperature 0.7 before each softmax. So likely tokens are written even
#   more often.
#
# **All methods of the record.** Each point of the next figure is one method, the mean of three runs
# of the tour. (Each run has its own SFT model and reward model. So PPO stands a little elsewhere
# than in section 5.) The bars reach from the lowest to the highest run. Further up is a higher gold
# score, further right is a larger KL. At the same KL, the higher point is better. For best of n we know
# only that the KL is at most $\log n - (n - 1)/n$ (lesson 16). Its points stand there. Their true place may
# be further left.

# %%
show.frontier(experiments.results("tour"), by="method", ylabel="gold score (-4 to 4)")

# %% [markdown]
# DPO goes furthest from the SFT model here. On average over the three runs its gold score is 1.38, and
# that of GRPO is 1.47. (In one of the runs, DPO's is the higher one.) Best of 16
# is above all three trained policies, and above PPO in each of the three runs. Its KL is at most 1.84
# nats, and PPO's is 1.99. Its reviews are longer than PPO's, and about as varied. All this is at the
# default settings. Another $\beta$ moves each point along a curve (lessons 07 and 12).
#
# **The records.** For the table of section 5, PPO wrote four reviews of each film, and the SFT
# model wrote 16 of each. The samples of sections 5 and 7 are those of the first run (seed 0). They
# are not chosen. Section 6 has the reviews of the first four test titles.
#
# Section 3 says how often the choice on new pairs is right. These shares are means of three trainings
# of the reward model. They are in the record `reward_model`, and lesson 08 shows more of it. Pairs with
# two equal ratings are left out.
#
# **The libraries.** TRL, OpenRLHF and DeepSpeed-Chat have the same three stages. Lessons 06 to 09 say
# where they differ from us.
#
# **References.** Ziegler et al. 2019, *Fine-tuning language models from human preferences* (sections 2
# and 3). Stiennon et al. 2020, *Learning to summarize from human feedback* (section 3). Ouyang et al.
# 2022, *Training language models to follow instructions with human feedback* (section 3). Bradley and
# Terry 1952 (the model of section 3).
#
# *How this lesson is checked:* every number is compared with the models and the records that it comes
# from (`tests/claims/test_lesson_00.py`).
