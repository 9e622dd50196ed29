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
# # 01 · Why RLHF?
#
# After this lesson you can
#
# - name three things that a reward does and imitation does not, and say how far each is shown,
# - read a picture of the reward of every prefix of a response,
# - say why a reward model's score of an unfinished response needs care.
#
# **You need** PyTorch and lesson 00. About 30 minutes to read and 60 for the exercises.

# %%
import pandas as pd
import torch

from minirlhf import core, evaluate, experiments, models, rewards, search, show, tasks
from minirlhf.classroom import FAST, check

# %% [markdown]
# ## 1. The idea: judge what the model writes
#
# **Supervised fine-tuning (SFT)** trains a language model to imitate. People write good responses,
# and the model learns to predict their next token. For one response with $T$ tokens the loss is
#
# $$ L_{\text{SFT}} = -\frac{1}{T} \sum_{t=1}^{T} \log \pi(y_t \mid s_t) . $$
#
# - $\pi$ is the model. $\pi(y_t \mid s_t)$ is the probability that it gives to a token.
# - $y_t$ is a token of the response that a person wrote.
# - $s_t$ is the **prefix**: the prompt $x$ and the tokens before $y_t$.
#
# In words: make each token that a person wrote likely, after the words that this person wrote
# before it.
#
# **Reinforcement learning from human feedback (RLHF)** lets the model write the response itself. A
# **reward model** then gives one number to the whole response, the **reward** $r(x, y)$. (Lesson 00
# calls this number the *score*.) The reward model has learned from people which responses they
# prefer. Training makes responses with a high reward more likely.
#
# | | SFT | RLHF |
# |---|---|---|
# | who writes the response? | a person | the model |
# | can it say "not like this"? | no | yes |
# | what is asked of a response? | is it what a person wrote? | is it good? |
# | which prefixes are trained? | those of people | the model's own |
#
# The last three rows are three reasons for RLHF. Sections 2 to 4 take them in turn.

# %% [markdown]
# ## 2. First reason: imitation has no negative examples
#
# We take a world so small that everything can be computed. It has three words: *good*, *bad* and
# the full stop. A response ends with the full stop, or after two words. So there are seven
# responses. The model is a table with one row for each prefix that can be continued: the empty
# prefix, *good*, and *bad*. At the start every word has the probability 1/3.
#
# - *Imitation:* a person has written one response, *good* and a full stop.
# - *Reward:* the number of times *good* occurs, minus the number of times *bad* occurs.
#
# Which words does a training step push up or down at the start of a response? The **push** on a
# word is the direction in which gradient descent changes its logit (the number that goes into the
# softmax).
#
# - SFT makes $\log \pi(\textit{good})$ larger. Its push on a word is 1 minus the word's probability
#   if the word was written, and 0 minus its probability otherwise.
# - The reward makes the **expected reward** larger. This is the mean reward of what the model
#   writes. The push on a word is its probability, times how much better the responses are that
#   begin with it than all responses together. For a later word there is one more factor: how often the
#   model comes to that prefix. (Lesson 04 derives this.)
#
# | first word | SFT | mean reward of the responses that begin so | reward |
# |---|---|---|---|
# | *good* | 1 − 1/3 = 2/3 | (2 + 0 + 1) / 3 = 1 | 1/3 · (1 − 0) = 1/3 |
# | *bad* | 0 − 1/3 = −1/3 | (0 − 2 − 1) / 3 = −1 | 1/3 · (−1 − 0) = −1/3 |
# | full stop | 0 − 1/3 = −1/3 | 0 | 1/3 · (0 − 0) = 0 |
#
# The package gives the same numbers. `core.World` is the small world. Its `gradient` is the exact
# gradient of the expected reward.

# %%
world = core.World.from_reward(
    ("good", "bad", "."), 2, lambda words: words.count("good") - words.count("bad")
)
logits = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
log_likelihood = world.sequence_logprobs(logits)[world.labels.index("good.")]
(sft_push,) = torch.autograd.grad(log_likelihood, logits)
reward_push = world.gradient(logits)

assert torch.allclose(3 * sft_push[0].float(), torch.tensor([2.0, -1.0, -1.0]))
assert torch.allclose(3 * reward_push[0].float(), torch.tensor([1.0, -1.0, 0.0]))

# %% [markdown]
# SFT pushes *bad* and the full stop down by the same amount. It only knows that neither was written
# here. The reward tells them apart: it pushes *bad* down, and leaves the full stop as it is.
#
# **What this shows.** SFT treats a bad word like a word that nobody happened to write. So it does not
# help to leave bad responses out of the training data. A response that is missing because it is bad
# looks like one that is missing by chance.
#
# **What it does not show.** A model that copied its one example perfectly would not write *bad* either.
# The difference counts as long as a model is imperfect. All real models are.

# %% [markdown]
# ## 3. Second reason: there are many right answers
#
# Two reviewers can both be right when one writes *good* and the other writes *bad*. Say that a
# right review names one verdict and then stops: *good* and a full stop, or *bad* and a full stop.
# People write both equally often. The reward is 1 for a right review and 0 for all others. Here are
# two models:
#
# - **Model A** begins with *good* or *bad*, each with probability 0.5. After that it stops with
#   probability 0.5. Otherwise it adds a second verdict, such as *good bad*.
# - **Model B** begins with *good* with probability 0.95 and with *bad* with probability 0.05. After
#   that it always stops.
#
# **Predict.** Which model has the lower SFT loss on what people write? Which model has the higher
# expected reward?

# %% tags=["predict"]
right = [["good", "."], ["bad", "."]]
verdicts = core.World.from_reward(
    ("good", "bad", "."), 2, lambda words: float(words in right)
)
start, stops = [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]
tables = {  # a row per prefix: the empty one, good, bad; a column per word
    "people": [start, stops, stops],
    "model A": [start, [0.25, 0.25, 0.5], [0.25, 0.25, 0.5]],
    "model B": [[0.95, 0.05, 0.0], stops, stops],
}
written = verdicts.rewards == 1  # people write these two, equally often
results = pd.DataFrame(index=["SFT loss per token", "expected reward"])
for name, table in tables.items():
    logprobs = verdicts.sequence_logprobs(torch.tensor(table).log())
    loss = -logprobs[written].mean() / 2  # each of the two has two tokens
    results[name] = [loss.item(), (logprobs.exp() @ verdicts.rewards.float()).item()]
results.round(2)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# - **SFT loss.** Model A has 0.69 nats per token, and model B has 0.76. (A *nat* is the unit of a
#   natural logarithm.) So SFT prefers model A. People themselves would have 0.35, the lowest loss
#   that is possible.
# - **Expected reward.** Model A is right in 50 % of its responses, and model B in all of them. So
#   the reward prefers model B.
#
# By hand: the loss of A is $-\log 0.5 = 0.69$ at each token. The loss of B is $-\log 0.95 = 0.05$
# or $-\log 0.05 = 3.00$ at the first token, and 0 at the second. The mean of these four numbers is
# 0.76.
#
# **What this shows.** Where several answers are right, the two measures can rank two models in opposite
# order. With one right answer they could not: then the SFT loss falls exactly when the probability of
# this answer rises, and this probability is the expected reward.
# </details>
#
# The loss of SFT asks at each token: how likely is the word that a person wrote? So the model must
# cover everything that people write, in people's proportions. A model that always writes the same right
# review has an infinite SFT loss, although it never makes a mistake. A reward asks one question of
# the whole response: is it right?
#
# **What it does not show.** We chose A and B by hand. SFT does not lead to either of them. The lowest SFT
# loss is that of people, and people have the highest reward, too. So the choice between the two
# measures matters as long as a model is not as good as people.
#
# The reward has a price, too. It does not ask for variety, so a model trained on it often writes
# more and more of the same (lesson 07).

# %% [markdown]
# ## 4. Third reason: the model continues its own words
#
# In SFT each token is predicted after words that a *person* wrote. When the model writes, it
# continues its *own* words. So it meets prefixes that the training never showed. This difference is
# called **exposure bias**.
#
# Back to the small world of section 2. The table below has the push of SFT on every word (columns)
# after every prefix (rows):

# %%
prefixes = ["(empty)", "good", "bad"]
pd.DataFrame(sft_push, prefixes, world.vocab).round(2)

# %% [markdown]
# The last row is exactly 0. The person never began with *bad*, so SFT says nothing about what comes
# after *bad*. But the model itself begins with *bad* in one of three responses. The reward judges
# these responses, so it has a push there:

# %%
pd.DataFrame(reward_push, prefixes, world.vocab).round(2) + 0.0  # no -0.0

# %% [markdown]
# After *bad*, a training step with the reward makes *good* more likely and a second *bad* less
# likely. The pushes are smaller than in the first row, because the model comes to *bad* in one
# third of its responses only.
#
# **What this shows.** In a table, SFT trains no prefix that people did not write. The reward trains every
# prefix that the model reaches.
#
# **What it does not show.** A real language model is no table. All its prefixes share the same
# weights, so what it learns at people's prefixes changes the others too.
# Whether a real model writes worse after its own words is a question for an experiment. Exercise 5
# designs one. We have not run it.

# %% [markdown]
# ## 5. The reward of every prefix
#
# Now the trained reward model of lesson 00. It learned from ratings of film reviews. Its number is
# scaled: over the responses of our SFT model the rewards have the mean 0 and the standard deviation
# 1.
#
# Every response ends with the special token **EOS** (end of sequence; `<|endoftext|>` in GPT-2).
# The reward model was trained to give its number *there*, after the whole response. This number is
# the **score** of the response. What about an unfinished response? There are two ways to ask, and
# they give different numbers:
#
# - **prefix + EOS**: cut the response after a token, put EOS behind it, and score this short
#   response alone. The reward model is read where it was trained. But the text is unusual: a review
#   seldom ends in the middle of a phrase.
# - **one pass**: let the model read the whole response once, and read its number at every token.
#   The text is natural. But the model was never trained to give a number in the middle.
#
# Some lecture notes on RLHF begin with the rewards of all prefixes of one sentence. Here is the
# sentence of such notes, with our reward model. The colour of a token is the reward of the prefix
# that ends with it: blue is positive, orange negative, white 0. Point at a token to see both
# numbers. The menu *Colour* switches to one pass.

# %%
policy, tokenizer = models.load_policy("tiny-reviews-sft")
reward_model, _ = models.load_scalar("tiny-reviews-reward")

sentence = "I love to walk the dog, what do you like?"
batch = models.encode(tokenizer, ["the film\n"], [sentence])
table = evaluate.token_table(batch, tokenizer, reward_model=reward_model)
show.microscope(table, "prefix_reward")

# %% [markdown]
# The next table puts the numbers of the notes beside ours, for the first six of twelve prefixes.
# Each row is the prefix that ends with its token.

# %%
notes = [1.344, 1.152, 2.174, -0.385, 0.176, 2.305, 1.619, -0.201, 1.255, 2.377]
notes += [1.179, 1.298]
compared = table.iloc[:-1].assign(notes=notes)  # the notes have no EOS
compared = compared[["token", "notes", "prefix_reward", "one_pass_reward"]].round(2)
compared.head(6)

# %% [markdown]
# What to see:
#
# - **Our reward model likes *love*.** The prefix *I love* has the highest reward, 1.34. All later
#   prefixes have a lower one. The reward model knows film reviews only, so do not read more into
#   it.
# - **The notes have other numbers.** Over all twelve prefixes, their correlation with ours is −0.01
#   (prefix + EOS) and −0.02 (one pass). The two reward models do not agree at all: that of the
#   notes learned from other people's choices, on other texts.
# - **The two ways differ.** At *love* one says 1.34, the other 4.13. They agree at EOS only, where
#   both read the whole response. The number there, −0.31, is *the* reward of the response.
#
# Now two reviews: "A brilliant, moving film with a terrible ending." and "It is never boring."
#
# **Predict.** Think of prefix + EOS. After which word of the first review does the reward rise
# most? After which does it fall most? Is the reward of the whole first review positive? And that of
# the second?

# %% tags=["predict"]
reviews = ["A brilliant, moving film with a terrible ending.", "It is never boring."]
pair = models.encode(tokenizer, ["the film\n"] * 2, reviews)
table = evaluate.token_table(pair, tokenizer, reward_model=reward_model)
show.microscope(table, "prefix_reward", text="all")

# %% [markdown]
# <details><summary>What you should see</summary>
#
# - *brilliant* raises the reward most, from 0.0 to 2.1. *moving* adds a little.
# - *terrible* lowers it most. The word is two tokens here, *ter* and *rible*, and the reward falls
#   from 2.6 to 0.9. After *ending* it is 0.3.
# - The first review ends with 0.4, a little above average. The praise and the criticism nearly
#   balance.
# - The second review ends with −1.4, although it is praise. The reward falls at *boring*. This
#   reward model reacts to the word and does not understand *never boring*. The prefix "It is" still
#   has 0.5: it did not predict how the review would end. A model that is trained
#   on this reward learns its errors, too.
#
# Look at *terrible* in one pass: after the first half, *ter*, the number is 6.93, the highest of
# all. It is read in the middle of a word, where nothing was ever trained. So use prefix + EOS when
# you want to compare prefixes, and remember that a prefix is not a review.
# </details>
#
# **Why care is needed.** The reward of a prefix does not predict how the response will end. It says
# how good the response would be *if it ended here*. Lesson 05 trains another model, the critic, to
# predict the end.

# %% [markdown]
# ## 6. Where a response ends
#
# The reward is read at EOS, so the code must know where EOS is. There is a trap. GPT-2 has no
# padding token, and the usual choice is to pad with EOS. Then a batch looks like this:
#
# | | *Short* | *.* | EOS | padding | padding |
# |---|---|---|---|---|---|
# | token id | 7 | 2 | 0 | 0 | 0 |
# | real token? | yes | yes | yes | no | no |
#
# The first EOS is a real token: the model chose to stop there. The others are padding. All have the
# same id, so only the *position* tells them apart. Exercise 1 is about this.

# %% [markdown]
# ## 7. The simplest use of a reward: best-of-n
#
# You can use a reward without any training: let the SFT model write four responses to each title,
# and keep the one with the highest reward. This is **best-of-n**, here with n = 4. The titles are
# those of 76 films that no training has seen.

# %%
score = rewards.rollout_score(reward_model, tokenizer.eos_token_id)
titles = tasks.reviews.eval_prompts("test")[: 8 if FAST else None]
four_each = pd.Series(titles).repeat(4).tolist()
(batch,) = models.sample_text(policy, tokenizer, four_each, batch_size=len(four_each))
scores = score(batch)  # one reward per response
best = search.best_index(scores, 4)  # the number of the best response to each title

responses = models.decode(tokenizer, batch)
samples = pd.DataFrame(
    {"response": responses, "reward": scores.tolist()},
    index=pd.Index([title.strip() for title in four_each], name="title"),
)
show.texts(samples.head(8).round(1))

# %% [markdown]
# The table has the four responses to each of the first two titles. Some are positive and some
# negative, because SFT imitates critics of both kinds. (Some stop in the middle of a sentence. The
# model itself stopped there.) Best-of-n keeps the one with the highest reward: "There's a great way
# ..." with 0.5 for the first title, and "... is very funny." with 0.8 for the second.
#
# Does the choice please anyone but the reward model that made it? To find out we use the **gold
# score** of lesson 00: a second model's prediction of the mean rating that people would give, from
# −4 to 4. It is never used for choosing. The next table has the means of both, live and from the
# record. The row *one sample* is the mean over all responses.

# %%
gold = rewards.gold_judge()(four_each, responses)
live = pd.DataFrame(
    {
        "reward": [scores.mean().item(), scores[best].mean().item()],
        "gold score": [gold.mean().item(), gold[best].mean().item()],
    },
    index=["one sample", "best of 4"],
)
names = {"SFT": "one sample", "best-of-4": "best of 4", "best-of-16": "best of 16"}
record = experiments.results("tour").groupby("method")[["proxy", "gold"]].mean()
record = record.loc[list(names)].rename(index=names)
record.columns = live.columns
pd.concat({"live": live, "record": record}, axis=1).loc[list(names.values())].round(2)

# %% [markdown]
# The record has the same titles, with sixteen responses to each, and three seeds. We ran no best of
# 16 live.
#
# - **The reward rises**, from −0.05 to 0.99 with four samples and to 1.70 with sixteen. It must: we
#   choose by it.
# - **The gold score rises too**, from 0.38 to 1.11 and to 1.57. This was not certain. It shows that
#   the reward model has learned something that another judge also finds.
#
# But best-of-n pays every time: four samples for each response that a user reads. The model itself
# learns nothing. RLHF pays once. It changes the model, so that a single sample has a high reward.
# How to do this is the subject of lessons 03 to 09.

# %% [markdown]
# ## What to remember
#
# - SFT makes likely what people wrote. It cannot say that something is bad.
# - SFT asks whether a person wrote this response. A reward asks whether it is good, so it accepts
#   every right answer.
# - SFT trains at people's prefixes. RLHF trains at the model's own. How much this matters for a
#   real model is an open question here.
# - A reward model is trained at the end of a response. The reward of a prefix says how good the
#   response would be if it ended there.
# - Best-of-n is the simplest use of a reward. It costs n samples per response, and the model stays
#   as it is.
#
# ## Exercises
#
# Solutions are in `solutions/01_why_rlhf.ipynb`.

# %% [markdown] tags=["exercise"]
# **1. The mask** *(easy, 10 minutes)*. `ids` has the shape (B, R): the token ids of B responses at
# R positions. Return a mask of the same shape. It is true at real tokens, up to and including the
# first EOS. A response without EOS is real everywhere.
#
# *Hint:* a token is real if there is no EOS *before* it. `cumsum(1)` of a tensor of zeros and ones
# counts the ones so far, the position itself included.


# %% tags=["exercise"]
def eos_mask(ids, eos_id): ...  # your code


check.eos_mask(eos_mask)


# %% tags=["solution"]
def eos_mask(ids, eos_id):
    is_eos = (ids == eos_id).long()
    return is_eos.cumsum(1) - is_eos == 0


check.eos_mask(eos_mask)

# %% [markdown] tags=["exercise"]
# **2. The score of a response** *(medium, 10 minutes)*. `token_scores` has the shape (B, T): a
# reward model's number at every position of prompt and response. `mask` is true at real tokens.
# Return the number at the last real token of each row, shape (B,).
#
# *Hint:* prompts are padded on the left and responses on the right. So a row may begin with
# padding, end with padding, or both. `torch.arange` gives every position its number. Which of the
# real positions is the last one?


# %% tags=["exercise"]
def score_of_text(token_scores, mask): ...  # your code


check.score_of_text(score_of_text)


# %% tags=["solution"]
def score_of_text(token_scores, mask):
    positions = torch.arange(mask.shape[1])
    last = torch.where(mask, positions, -1).max(1).values
    return token_scores[torch.arange(len(mask)), last]


check.score_of_text(score_of_text)

# %% [markdown] tags=["exercise"]
# **3. Predict, then run** *(easy, 10 minutes)*. Take the two unfinished reviews "The film is a
# brilliant" and "The film is a boring". For each of the two ways to ask (prefix + EOS, one pass):
# are the numbers equal at *a*? At the adjective, which way gives the larger difference between
# *brilliant* and *boring*? Does a larger difference make it the better way?

# %% tags=["exercise"]
two = models.encode(
    tokenizer,
    ["the film\n"] * 2,
    ["The film is a brilliant", "The film is a boring"],
)
table = evaluate.token_table(two, tokenizer, reward_model=reward_model)
table[["text", "token", "prefix_reward", "one_pass_reward"]].round(2)

# %% [markdown] tags=["solution"]
# At *a* both ways give equal numbers for the two reviews. Prefix + EOS scores the same short
# response. One pass has read the same tokens, and the model cannot look ahead. At the adjective
# both ways put *brilliant* above *boring*, and one pass has the larger difference. That does not
# make it better. Its numbers are read at positions that were never trained and never scaled, so
# nothing says what a difference of 1 means there.

# %% [markdown] tags=["exercise"]
# **4. Find the bug** *(medium, 15 minutes)*. A colleague trains a model by SFT on two reviews of
# the small world. They are 2 and 3 tokens long, so the mean length is 2.5 (the thin line). The
# thick line is the mean length of what the model writes. It should come close to 2.5, and it does
# not. What is wrong in `imitation_loss`? Mend it, run the checker, and draw the line again.
#
# *Hint:* take one response, the ids 7, 2, 0, 0, 0 of section 6 with `eos_id` 0. Write `mask` down
# on paper. What does the loss teach the model at each position?


# %% tags=["exercise"]
def imitation_loss(logprobs, ids, eos_id):
    """The mean over all real tokens of minus the log-probability. Inputs: (B, R)."""
    mask = ids != eos_id
    return -(logprobs * mask).sum() / mask.sum()


check.imitation_loss(imitation_loss)


# %% [markdown] tags=["solution"]
# The mask `ids != eos_id` leaves out padding, and the first EOS as well. So the model is never
# trained to write EOS. All other words are pushed up, so EOS becomes less and less likely. Padding
# must be found by its position after the first EOS.


# %% tags=["solution"]
def imitation_loss(logprobs, ids, eos_id):
    mask = eos_mask(ids, eos_id)
    return -torch.where(mask, logprobs, 0.0).sum() / mask.sum()


check.imitation_loss(imitation_loss)


# %% tags=["exercise", "solution"]
def lengths_during_training():
    """The mean length of what the model writes, before each of 100 steps."""
    world = core.World.from_reward(("good", "bad", "."), 4, len)  # reward = length
    rows = [world.labels.index("good."), world.labels.index("goodbad.")]
    logits, path = world.ref_logits, []
    for _ in range(100):
        path.append(world.objective(logits).item())
        logits = logits.detach().requires_grad_(True)
        logprobs = world.logprobs(logits)[rows]
        imitation_loss(logprobs, world.response_ids[rows], eos_id=2).backward()
        logits = logits - logits.grad
    return path


show.lines(
    {"the model": lengths_during_training()},
    xlabel="training step",
    ylabel="mean length (tokens)",
    reference=2.5,
    ylim=(1, 4.2),
)

# %% [markdown] tags=["exercise"]
# **5. Design the experiment** *(hard, 15 minutes)*. Is a language model worse after its own words
# than after the words of people? Section 4 does not show it. How would you *measure* it? Say what
# you compare, who judges it, and which result would speak against exposure bias.

# %% [markdown] tags=["solution"]
# A good answer has four parts.
#
# - Two sets of prefixes of the same length and to the same titles: people's, and the model's own.
# - What the model writes *next* after each of them.
# - A judge that is not the model itself: people, or a fixed model that scores how fluent a text is.
# - The difference by length of the prefix, with an interval over titles.
#
# Exposure bias predicts that the text after the model's own prefixes is worse, and more so for
# longer prefixes. Equal quality at all lengths would speak against it. The model's own
# probabilities are no judge: it finds its own words likely anyway ("Going further").

# %% [markdown]
# ## Questions
#
# <details><summary>1. SFT has no negative examples. Why does its loss not make every response likely?</summary>
#
# Probabilities sum to 1. When the response that was written becomes more likely, all others become
# less likely, good and bad alike.
# </details>
#
# <details><summary>2. Why does the reward of "It is" say little about the review that begins so?</summary>
#
# It is the reward of another response: one that ends after two words. The reward of the whole
# review is read at its own end.
# </details>
#
# <details><summary>3. Two reward models prefer the same response in every pair, with the same probability. Can their numbers differ?</summary>
#
# Yes. The preference depends only on the difference of two rewards. You may add the same number to
# the rewards of all responses to a prompt, and no preference changes. So a single reward has no
# zero of its own. Ours is set by convention: the mean of the SFT model's responses is 0.
# </details>
#
# <details><summary>4. Which of the two pictures of section 5 would you show to a user, and with which words?</summary>
#
# Prefix + EOS, with the remark that a prefix is not a review. One pass only for a reward model that
# was trained to give a number at every token.
# </details>
#
# ## Going further
#
# **A larger judge.** SmolLM2 is a language model with 135 million parameters, and it knows what a
# dog is. `minirlhf smollm2` trained it for some minutes as a reward model on ratings of the same
# films. Its rewards of the notes' prefixes (prefix + EOS) have a correlation of 0.05 with the
# notes' and 0.21 with ours. On 600 pairs of reviews of 60 held-out films it agrees with one
# randomly chosen rater in 72 % of the pairs (interval 67 % to 77 %), and our small reward model in
# 65 % (60 % to 70 %). The two intervals overlap. We do not know what SmolLM2 has read before.
#
# **Is the model surprised by people?** We compared the mean of $-\log \pi$ per token on 128
# held-out reviews by people and on as many responses of our SFT model, drawn at temperature 1. It
# is 4.24 nats for people and 4.18 nats for the model's own responses. The two are close. But this
# is *no* measure of exposure bias: how much people's words surprise a model also depends on how
# varied people are, and these are means over whole responses. Exercise 5 asks for a better one.
#
# **What the libraries do.**
#
# | | where the score is read | what to watch |
# |---|---|---|
# | here | at the last real token, which is EOS | a response that was cut off gets an EOS first |
# | OpenRLHF 0.11 | at the last token of the response | as here |
# | TRL 1.12 (the last with a PPO trainer) | at the last token before padding, and it is added to the next position's reward, where there is one | padding must not be EOS |
# | DeepSpeed-Chat | at the last token, but it was trained at every token from the first one in which two responses differ | its one-pass picture is read at trained positions |
#
# **References.** Ziegler et al. 2019, section 2.1 (the reward model and its scale). Stiennon et al.
# 2020, section 3.4. Ranzato et al. 2016, *Sequence level training with recurrent neural networks*,
# section 1 (exposure bias).
#
# *How this lesson is checked:* every number is compared with the models and the record that it
# comes from (`tests/claims/test_lesson_01.py`). The exact world is tested in
# `tests/core/test_exact.py`, the two rewards of a prefix in `tests/evaluate/test_tokens.py`.
