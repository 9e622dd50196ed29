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
# - explain the three stages of RLHF to a colleague,
# - say what the score of a reward model means, and what it does not mean,
# - look at a training run, and say what was gained and what it cost.
#
# **You need** PyTorch: tensors, modules, a training loop. You need no reinforcement learning.
# About 30 minutes to read, 15 for the quiz at the end and 45 for the exercises.

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
# 1. **Supervised fine-tuning (SFT).** The model learns to imitate good examples.
# 2. **Reward model.** A second model learns from people's judgements. It gives each text one number,
#    its **score**.
# 3. **Proximal policy optimisation (PPO).** The SFT model writes, the reward model scores, and the
#    training makes texts with a high score more likely.
#
# The model that writes is called the **policy**. The text that it continues is the **prompt**, and what
# it writes is the **response**.
#
# GRPO and DPO, at the right, are two other roads from the SFT model to a better one. GRPO compares
# several responses to one prompt with each other (lesson 11). DPO learns from the pairs directly,
# without a reward model (lesson 12). You can forget both for today.
#
# **Our example.** The policy is `tiny-reviews`, a GPT-2 of four million parameters that we trained on
# film reviews. The prompt is the title of a film, and the response is a review of one sentence. What
# do people prefer? Nobody compared two reviews. People rated how positive a review is, from −4 to 4.
# *We* say: the more positive review is preferred. (Lesson 02 asks what this choice means.)
#
# The model is tiny, so its sentences are often odd, and some may offend.
#
# **Predict.** PPO trains the policy to write reviews with a high score. Compare these reviews with
# those of the SFT model:
#
# 1. Will they be longer or shorter?
# 2. Will they be more varied or less varied?
# 3. Will a judge that took no part in the training find them more positive?
# 4. Would you rather read them?
#
# Write your four answers down. Section 5 has ours.

# %% [markdown]
# ## 2. Supervised fine-tuning
#
# Before SFT, the model has read film reviews, plot summaries and other short texts. It does not know
# that we want a review. SFT shows it titles, each with a review that a person wrote. The training is
# ordinary next-token prediction.
#
# The next table has the first six titles of our test films. No training has seen these films. Each
# model writes one response to each title.

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
# response is a whole sentence, and most sound like a review. (The first one begins like a letter to a
# newspaper. The model has read such texts, too.) But SFT imitates critics of all kinds. Some of its
# reviews criticise, some praise, and some say nothing. Nothing has told the model which it should
# write.

# %% [markdown]
# ## 3. The reward model
#
# The reward model is a copy of the SFT model with another last layer. That layer gives one number, the
# score $r$, instead of a distribution over the next token. It learns from pairs of reviews of one film.
# For each pair we draw one person's rating of each review. The review with the higher rating is the
# preferred one. The training makes these preferences likely under a formula, the **Bradley-Terry
# model**:
#
# $$ P(A \text{ preferred to } B) = \sigma\big(r(A) - r(B)\big),
# \qquad \sigma(z) = \frac{1}{1 + e^{-z}} . $$
#
# In words: the further the score of A lies above that of B, the surer the reward model is that people
# prefer A. On paper:
#
# | $r(A) - r(B)$ | 0 | 1 | 2 | −1 |
# |---|---|---|---|---|
# | probability that A is preferred | 50 % | 73 % | 88 % | 27 % |

# %%
scores_a, scores_b = torch.tensor([1.0, 2.0, 3.0, 0.0]), torch.ones(4)
probability = core.preference_probability(scores_a, scores_b)
assert torch.allclose(probability, torch.tensor([0.50, 0.73, 0.88, 0.27]), atol=0.005)

# %% [markdown]
# Only differences count, so scores have no zero of their own. After the training we shift and stretch
# them once: over the SFT model's responses they have the mean 0 and the standard deviation 1. So a
# score of 2 is far better than an ordinary response.
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
# - **Highest:** "A moving and funny film." has 2.70. The reward model has learned what praise looks
#   like.
# - **Lowest:** "Not a dull moment." has −3.21, although it is praise. The reward model reacts to
#   *dull* and misses the *not*.
# - **Negative:** this one, and the review with the dull ending, −1.18. One bad word outweighs two good
#   ones there. The review that only states a length is average, 0.03.
# - "funny funny funny funny" is no review, and has 1.17. Nobody wrote such a text, so no rating says
#   that it is bad.
#
# </details>
#
# So the reward model can be fooled. How good is it on real reviews? We drew such pairs for films
# that it has not seen. It prefers the same review as the drawn ratings in 64 % of the pairs. The
# mean ratings of all other people do so in 84 %, and guessing in 50 %. PPO will maximise the score
# of *this* reward model.

# %% [markdown]
# ## 4. PPO
#
# PPO repeats one step many times. It begins with two copies of the SFT model. The **actor** learns.
# The **reference** stays as it is.
#
# 1. **Sample.** The actor writes 64 reviews.
# 2. **Score.** The reward model gives each review its score.
# 3. **KL penalty.** A review that has become more likely than under the reference loses some of its
#    score.
# 4. **Compare.** A second network, the **critic**, predicts before each token how the review will end.
#    A token is good if things turn out better than predicted, and bad if they turn out worse.
# 5. **Update.** Good tokens become more likely and bad ones less likely, by a small amount.
#
# So the training maximises this quantity, on average over the reviews that the actor writes:
#
# $$ \text{score} - \beta \, \log \frac{\pi(y \mid x)}{\pi_{\text{ref}}(y \mid x)} . $$
#
# - $x$ is the prompt and $y$ the response.
# - $\pi(y \mid x)$ is the probability that the actor writes $y$. $\pi_{\text{ref}}(y \mid x)$ is the
#   same for the reference.
# - $\beta = 0.5$ is the **KL coefficient**: how much the distance from the reference costs.
#
# In words: get a high score, and stay close to the model that you came from. The mean of the logarithm
# over the actor's reviews is its **KL divergence** from the reference, for short its KL. The unit of
# such a logarithm is the **nat**.
#
# Now a real run of eight steps. It takes less than a minute on an ordinary laptop. The left curve is
# the mean score of the 64 reviews of each step, the right one is the KL.

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
# Step 0 comes before any update. So the score is near 0, as it is for the SFT model, and the KL is 0:
# the actor still *is* the reference. Then both rise. (The score jumps, because it is the mean of only
# 64 random reviews.)
#
# A full run has 24 steps. We recorded three of them. Each has another random seed, and its own SFT
# model and reward model. The middle panel is new. The **gold score** is the rating from −4 to 4 that
# people would give, as another model predicts it. That model counts words, and learned from the ratings
# of other films. PPO never sees it.

# %%
record = experiments.results("tour_history")
show.curves(record, stage="ppo", columns=["score", "gold", "kl"])

# %% [markdown]
# Score and gold score rise together. This is what you want to see: the judge that PPO does not see
# agrees with the one that it maximises. After about ten steps all three curves flatten. The KL penalty
# and a learning rate that falls to 0 hold them there.

# %% [markdown]
# ## 5. What PPO changed
#
# Here are the answers to section 1. In each of the three runs, each model wrote at least four
# reviews for each of 76 films that no training has seen. Each cell of the next table is the mean of
# the three runs, and behind it the lowest and the highest run. The rows are:
#
# - *score*, *gold score* and *KL*, as in section 4,
# - *tokens*: the length of a review (a token is a word or a piece of one),
# - *different word pairs*, a measure of variety. Take 500 pairs of neighbouring words from the reviews.
#   Which share of the 500 is left when you count equal pairs once? (Its usual name is distinct-2.)

# %% tags=["predict"]
tour = experiments.results("tour")
measures = {
    "proxy": "score",
    "gold": "gold score",
    "kl": "KL, nats",
    "length": "tokens",
    "distinct_2": "different word pairs",
}
both = tour[tour.method.isin(["SFT", "PPO"])]
experiments.shown(both, measures, by="method").T

# %% [markdown]
# <details><summary>What you should see</summary>
#
# 1. **Shorter.** From about 19 tokens to 14.5.
# 2. **Less varied.** 86 % of the word pairs are different with SFT, and 78 % with PPO.
# 3. **More positive.** The gold score rises from 0.38 to 1.34. It rises by more than 0.5 in each of
#    the three runs.
# 4. **Your choice.** Read the samples below first. We find them friendlier, and we do not learn more
#    about the films.
#
# </details>
#
# The same six titles as in section 2, one recorded sample each, from the second of the three runs:

# %%
show.texts(experiments.samples(tour, ["SFT", "PPO"], by="method", seed=1))

# %% [markdown]
# Read them aloud. The SFT model praises and criticises: *a delightfully crafted* film, but also
# *vividly cloying* and *soap opera*. PPO's reviews nearly all praise: *entertaining*, *wonderful*, *a
# fun and funny and moving film*. Their English is not better: *heart-piction* is no word. Nothing in
# the training asks for better English. The KL penalty asks only to stay near the SFT model.
#
# **What it cost.**
#
# - **Distance.** The KL is about 2 nats. So a typical review of the PPO policy is about $e^2$, that is
#   seven, times as likely as under the SFT model.
# - **Variety and length**, as in the table.
# - **Information.** PPO praises whatever the film. People were asked how positive a review is. Nobody
#   was asked whether it fits the film.

# %% [markdown]
# ## 6. One batch under the microscope
#
# Where in a review has the policy changed? The **token microscope** shows every token of four reviews
# by a PPO policy, after the last of its 24 steps. Blue tokens are more likely than under the reference,
# orange ones less likely. Point at a token, or use the arrow keys, to see its numbers and the words
# that each model found likeliest there.

# %%
run = experiments.results("microscope")
after = run[(run.source == "fresh") & (run.step == 24)]
show.microscope(after, "kl", text="all")

# %% [markdown]
# Take the response to *amys o*: "A heartbreaking treat." The PPO policy begins *heart* with a
# probability of 3.2 %, the reference with 0.8 %. So this token is blue. *treat* is orange: it is a
# word that PPO has made *less* likely. (A word can be several tokens, as *heart*, *b* and *reaking*.)
#
# Add up the logarithms of all its tokens, and you get 0.96 nats. So PPO has made the whole review
# $e^{0.96} = 2.6$ times as likely. Its score is 0.99. What PPO maximises is 0.99 − 0.5 · 0.96 = 0.51.
#
# The response to the second title is "Happy Thanks!" Its score is 0.40, so it is better than average
# for the reward model. This says more about the reward model than about the film.
#
# The microscope has more columns, in its menu. Later lessons explain them one by one.

# %% [markdown]
# ## 7. What holds the policy back?
#
# The KL penalty takes something off the scores. Do we need it? We trained with the coefficient
# $\beta = 0.5$ and with $\beta = 0$, three runs each. (All six start from the same SFT model,
# unlike those of section 5.)
#
# **Predict.** Without the KL penalty, which of the five numbers of section 5 become larger? What does
# a review look like?

# %% tags=["predict"]
by_coefficient = experiments.results("leash")
two = by_coefficient[by_coefficient.variant.isin(["kl_coef 0.5", "kl_coef 0"])]
experiments.shown(two, measures).T

# %% tags=["predict"]
show.texts(experiments.samples(by_coefficient, ["kl_coef 0.5", "kl_coef 0"]).head(3))

# %% [markdown]
# <details><summary>What you should see</summary>
#
# - **Larger:** the score (4.03 instead of 1.24), the KL (91 nats instead of 2), the length, and also
#   the gold score (2.63 instead of 1.43).
# - **Smaller:** the variety. Only 2 % of the word pairs are different.
# - **The reviews** say *funny and funny and funny*, whatever the film. You saw in section 3 that the
#   reward model likes this.
#
# Why does the gold judge like it too? It counts words, and *funny* is a good word. It has its own
# errors, and this policy has found them.
#
# </details>
#
# This is called **over-optimisation** or *reward hacking*: the score rises, and the reviews get worse.
# No single number shows it safely. So watch the score of another judge, the KL, the variety, and read
# samples.

# %% [markdown]
# ## 8. The map of the course
#
# Each lesson takes one part of this page and explains it from the beginning.
#
# | lessons | what they explain |
# |---|---|
# | lesson 01 | why people's judgements, and not only people's texts? |
# | lesson 02 | what the ratings are worth |
# | lesson 03 | a language model as a policy; SFT |
# | lessons 04 and 05 | which tokens should become more likely: policy gradient, critic, advantage |
# | lesson 06 | PPO, line by line |
# | lesson 07 | the KL penalty |
# | lesson 08 | the reward model |
# | lesson 09 | the four models at work: actor, critic, reward model, reference |
# | lesson 10 | what it costs in time and memory |
# | lessons 11 and 11b | GRPO, and a lab on it |
# | lessons 12 and 13 | DPO, and what it says about single tokens |
# | lessons 14 and 14b | what DPO gets wrong, and a lab on the repairs |
# | lessons 90 and 91 | two reference sheets, to look things up |
#
# Lessons 01, 03 to 06, 08, 11 and 12 are the core. The exercises of six lessons fill a file of your
# own, `my_rlhf.py`. At the end, `minirlhf tour --mine my_rlhf.py` trains the whole pipeline with it.

# %% [markdown]
# ## 9. What do you believe now?
#
# Twelve questions about things that many people get wrong. You are not meant to know the answers yet.
# Many words in them are explained only later, so "I do not know" is a good answer today. Note how many
# you got right, and take the same test again at the end of lesson 09. There you also get reasons.

# %%
Questions()

# %% [markdown]
# Write your twelve letters, with `-` for "I do not know". The answer names the lesson of each question
# that is still open.

# %% tags=["exercise"]
my_answers = "- - - - - -  - - - - - -"  # yours
print(graded(my_answers))

# %% [markdown]
# ## What to remember
#
# - RLHF has three stages: imitate (SFT), learn a score from people's judgements (reward model), make
#   responses with a high score more likely (PPO).
# - Only differences of scores have a meaning. The score is a model of people, and it can be fooled.
# - PPO maximises the score minus a KL penalty for moving away from the SFT model.
# - It gains score. It costs KL, variety and length.
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
score_of(["A film about a film.", "Everybody should see it."])  # your tries

# %% tags=["solution"]
tries = ["A beautiful waste of time.", "A waste of a beautiful, moving and funny idea."]
tries += ["I could not stop crying.", "The worst thing about it: it ends."]
score_of(tries)

# %% [markdown] tags=["solution"]
# These are our tries. The reward model adds up the mood of single words, more or less. It misses what
# the sentence does with them: a good word that describes something bad, a bad word that is meant as
# praise. A policy that maximises this score learns to use the good words.

# %% [markdown] tags=["exercise"]
# **2. Best of n** *(easy, 10 minutes)*. The simplest use of a reward model needs no training: write n
# responses to each prompt and keep the best. `scores` has the shape (N * n,), with the n responses to
# each of the N prompts side by side. Return the N row numbers of the best ones.
#
# *Hint:* reshape to (N, n). `argmax(1)` then counts from the start of each group.


# %% tags=["exercise"]
def best_of_n(scores, n): ...  # your code


check.best_of_n(best_of_n)


# %% tags=["solution"]
def best_of_n(scores, n):
    groups = scores.view(-1, n)
    return torch.arange(len(groups)) * n + groups.argmax(1)


check.best_of_n(best_of_n)

# %% [markdown] tags=["exercise"]
# **3. What PPO maximises** *(medium, 15 minutes)*. `scores` has the shape (B,): the score of each of
# B responses. `logprobs` and `ref_logprobs` have the shape (B, R): the log-probability of each token
# under the actor and under the reference, at R positions. `mask` has the same shape. It is true at
# real tokens and false at padding. Return the score minus the KL penalty of each response, shape (B,).
#
# *Hint:* the log-probability of a response is the sum over its tokens. Padding can hold NaN, and NaN
# times 0 is NaN. Replace padding with `torch.where(mask, x, 0.0)` before you add up.


# %% tags=["exercise"]
def kl_penalised_score(scores, logprobs, ref_logprobs, mask, kl_coef): ...  # your code


check.kl_penalised_score(kl_penalised_score)


# %% tags=["solution"]
def kl_penalised_score(scores, logprobs, ref_logprobs, mask, kl_coef):
    log_ratio = torch.where(mask, logprobs - ref_logprobs, 0.0)
    return scores - kl_coef * log_ratio.sum(1)


check.kl_penalised_score(kl_penalised_score)

# %% [markdown] tags=["exercise"]
# **4. Is PPO worth it?** *(easy, 10 minutes)*. *Best of 16* lets the SFT model write sixteen responses
# to each title, and keeps the one with the highest score. It trains nothing. Run the cell. Compare best
# of 16 with PPO in each row. When would you use PPO all the same? (The KL of best of 16 is not
# measured. It is an upper bound, $\log 16 - 15/16$.)

# %% tags=["exercise", "solution"]
tour = experiments.results("tour")
rows = {"gold": "gold score", "kl": "KL, nats", "length": "tokens"}
rows["distinct_2"] = "different word pairs"
three = tour[tour.method.isin(["SFT", "best-of-16", "PPO"])]
experiments.shown(three, rows, by="method").T

# %% [markdown] tags=["solution"]
# Best of 16 has the higher gold score, in the mean and in each of the three runs. Its mean KL is no
# higher than PPO's, its reviews are longer, and the variety is about the same. So on this task, PPO is
# not the better of the two.
#
# But best of 16 pays for sixteen responses each time that somebody wants one. PPO pays once, during the
# training. And best of 16 can only choose among what the SFT model writes. PPO can go further, also
# where the reward model is wrong.

# %% [markdown]
# ## Questions
#
# <details><summary>1. Which of the three stages could you leave out, and what would you lose?</summary>
#
# - *SFT*: PPO would start from a model that does not know what a review is. It would have to find
#   reviews by chance.
# - *The reward model*: you can leave it out where a program can score the response, for example in
#   arithmetic. Lesson 11 does this.
# - *PPO*: you can choose the best of n responses instead (exercises 2 and 4).
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
# ## Going further
#
# **Run it yourself.** `make tour` trains all stages on your machine, then DPO and GRPO from the same
# SFT model. It ends with a report, `out/tour/report.html`. This page does not need it.
#
# **All methods of the record.** Each point of the next figure is one method, the mean of three runs of
# the tour. The bars reach from the lowest to the highest run. Further up is a higher gold score, further
# right is a larger KL. At the same KL, the higher point is better. The points of best of n stand at an
# upper bound of their KL, so their true place is further left or there.

# %%
show.frontier(experiments.results("tour"), by="method", ylabel="gold score (-4 to 4)")

# %% [markdown]
# DPO goes furthest from the SFT model here. Its gold score is no higher than that of GRPO. Best of 16
# is above all three trained policies. These are the default settings. Another $\beta$ moves each point
# along a curve (lessons 07 and 12).
#
# **What the libraries do.** TRL, OpenRLHF and DeepSpeed-Chat have the same three stages. They differ in
# details that matter when you compare numbers:
#
# - *The KL penalty* is in the reward of each token, as here. OpenRLHF can also put it into the loss.
# - *The critic* starts as the reward model here and in DeepSpeed-Chat. In TRL and OpenRLHF you name the
#   model.
# - *The scores* are shifted and stretched here. TRL takes them as they are, OpenRLHF can normalise
#   them, and DeepSpeed-Chat clips them to ±5.
#
# Later versions than TRL 1.12 have no PPO trainer. GRPO took its place there.
#
# **References.** Ziegler et al. 2019, *Fine-tuning language models from human preferences* (sections 2
# and 3). Stiennon et al. 2020, *Learning to summarize from human feedback* (section 3). Ouyang et al.
# 2022, *Training language models to follow instructions with human feedback* (section 3). Bradley and
# Terry 1952 (the model of section 3).
#
# *How this lesson is checked:* every number is compared with the models and the records that it comes
# from (`tests/claims/test_lesson_00.py`).
