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
# - compute by hand what one training step does to each word, in SFT and with a reward,
# - name three things that a reward does and imitation does not, and say how far each is shown,
# - read a picture of the reward of every prefix of a response, with the care that it needs.
#
# **You need** PyTorch and lesson 00. About 35 minutes to read and 90 for the exercises.

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
# and the code call it the *score*.) The reward model has learned from people which responses they
# prefer. The training makes the **expected reward** $J$ as large as it can:
#
# $$ J = \sum_y \pi(y \mid x)\, r(x, y) . $$
#
# The sum runs over all possible responses $y$. In words: the mean reward of what the *model* writes.
# (We leave out the KL penalty of lesson 00 here.)
#
# | | SFT | RLHF |
# |---|---|---|
# | who writes the response? | a person | the model |
# | can it say "not like this"? | no | yes |
# | what is asked of a response? | is it what a person wrote? | is it good? |
# | which prefixes are trained? | those of people | the model's own |
#
# The last three rows are three reasons for RLHF.

# %% [markdown]
# ## 2. First reason: imitation has no negative examples
#
# We take a world so small that everything can be computed. It has three words: *good*, *bad* and
# the full stop. The full stop is this world's end-of-sequence token (EOS): a response ends with it,
# or after two words. So there are seven responses. The model is a table of logits, with one row for
# each prefix that can be continued: the empty prefix, *good*, and *bad*. At the start all logits
# are 0, so every word has the probability 1/3.
#
# - *Imitation:* a person has written one response, *good* and a full stop.
# - *Reward:* the number of times *good* occurs, minus the number of times *bad* occurs.
#
# | response | good good | good bad | good . | bad good | bad bad | bad . | . |
# |---|---|---|---|---|---|---|---|
# | its reward | 2 | 0 | 1 | 0 | −2 | −1 | 0 |
# | its probability | 1/9 | 1/9 | 1/9 | 1/9 | 1/9 | 1/9 | 1/3 |
#
# So at the start $J$ is (2 + 0 + 1 + 0 − 2 − 1) / 9 + 0 / 3 = 0.
#
# Each kind of training makes one number larger. The **push** on a word is the derivative of this
# number with respect to the word's logit. A training step adds the push, times the step size, to
# the logit.
#
# **SFT** makes $\log \pi(y)$ of the written response larger. (This is minus the loss, without the
# factor $1/T$, which only changes the size of the step.) After a prefix $s$ of the written response,
# its push on the word $a$ is
#
# $$ \text{push}_{\text{SFT}}(s, a) = \mathbb{1}[a \text{ was written}] - \pi(a \mid s) . $$
#
# In words: if the word was written, 1 minus its probability, and otherwise 0 minus its probability.
#
# **The reward** makes $J$ larger. Its push is
#
# $$ \text{push}_{\text{reward}}(s, a) =
# P(\text{reach } s)\; \pi(a \mid s)\; \big(Q(s, a) - V(s)\big) . $$
#
# - $P(\text{reach } s)$ is the probability that a response of the model begins with $s$.
# - $Q(s, a)$ is the mean reward of the model's responses that begin with $s$ and then $a$.
# - $V(s)$, the *value* of $s$, is the mean reward of all its responses that begin with $s$.
#
# In words, multiply three numbers: how often the model comes to the prefix, how often it writes the
# word there, and how much better its responses with this word are than the average from this
# prefix. (Lesson 04 derives this.)
#
# Every response begins with the empty prefix. So there $P(\text{reach } s) = 1$ and $V(s) = J = 0$:
#
# | first word | SFT | $Q$ | reward |
# |---|---|---|---|
# | *good* | 1 − 1/3 = 2/3 | (2 + 0 + 1) / 3 = 1 | 1 · 1/3 · (1 − 0) = 1/3 |
# | *bad* | 0 − 1/3 = −1/3 | (0 − 2 − 1) / 3 = −1 | 1 · 1/3 · (−1 − 0) = −1/3 |
# | full stop | 0 − 1/3 = −1/3 | 0 | 1 · 1/3 · (0 − 0) = 0 |
#
# If SFT has no negative examples, why does it push *bad* down? Because probabilities sum to 1: when
# *good* becomes more likely, the other words together become less likely. The full stop gets the same −1/3 as
# *bad*, so nothing here says that *bad* is bad.
#
# PyTorch finds the same numbers when it differentiates $\log \pi(y)$ and $J$. `core.World` is the
# small world: `labels` are the names of its seven responses, and `sequence_logprobs` is the
# $\log \pi(y)$ of each.

# %%
world = core.World.from_reward(
    ("good", "bad", "."), 2, lambda words: words.count("good") - words.count("bad")
)
logits = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
log_pi = world.sequence_logprobs(logits)  # one number per response
expected_reward = (log_pi.exp() * world.rewards).sum()
(sft_push,) = torch.autograd.grad(
    log_pi[world.labels.index("good.")], logits, retain_graph=True
)
(reward_push,) = torch.autograd.grad(expected_reward, logits)

assert torch.allclose(3 * sft_push[0].float(), torch.tensor([2.0, -1.0, -1.0]))
assert torch.allclose(3 * reward_push[0].float(), torch.tensor([1.0, -1.0, 0.0]))

# %% [markdown]
# Now one step of each kind, with step size 1. The table has the probabilities of the first word, and
# $J$ (`objective`):

# %%
rows = {"before": 0 * sft_push, "after SFT": sft_push, "after reward": reward_push}
steps = pd.DataFrame(index=["good", "bad", "full stop", "J"])
for name, push in rows.items():
    moved = logits.detach() + push
    steps[name] = [*moved.softmax(1)[0].tolist(), world.objective(moved).item()]
steps.round(2).T

# %% [markdown]
# Both steps make *good* more likely, and both raise $J$: from 0 to 0.36 with SFT, and to 0.27 with
# the reward. (Do not compare these two. Another step size would change them.) The difference is in
# the other words. After SFT, *bad* and the full stop have the same probability, 0.21. The reward
# tells them apart: *bad* has 0.23, and the full stop 0.32.
#
# After many steps, SFT always writes *good* and a full stop, so $J$ comes close to 1. The reward leads
# to *good good*, and $J$ comes close to 2. SFT stops at what people wrote. A reward can lead beyond it,
# for better or worse: remember *funny and funny and funny* in lesson 00.
#
# **What this shows.** SFT lowers a bad word by the same rule as a word that nobody happened to
# write. It helps to leave bad responses out of the training data, because then SFT does not make
# them likely. But a response that is missing because it is bad looks like one that is missing by
# chance.
#
# **What it does not show.** A model that copies its one example perfectly never writes *bad*,
# although nobody told it that *bad* is bad. So the difference counts only for an imperfect model.

# %% [markdown]
# ## 3. Second reason: there are many right answers
#
# Two reviewers can both be right when one writes *good* and the other writes *bad*. Say that a
# right review names one verdict and then stops: *good* and a full stop, or *bad* and a full stop.
# People write both equally often. The reward is 1 for a right review and 0 for all others. Two
# models:
#
# - **Model A** begins with *good* or *bad*, each with probability 0.5. After that it stops with
#   probability 0.5. Otherwise it adds a second verdict, such as *good bad*.
# - **Model B** begins with *good* with probability 0.95 and with *bad* with probability 0.05. After
#   that it always stops.
#
# **Predict.** Which model has the lower SFT loss on what people write? Which model has the higher
# expected reward? (Answers to predictions are not saved in this notebook: run the cells.)

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
# - **Expected reward.** Model A is right in 50 % of its responses, model B in all. So the reward
#   prefers model B.
#
# By hand: the loss of A is $-\log 0.5 = 0.69$ at each token. The loss of B is $-\log 0.95 = 0.05$
# or $-\log 0.05 = 3.00$ at the first token, and 0 at the second. The mean of these four numbers is
# 0.76.
#
# **What this shows.** Where several answers are right, the two measures can rank two models in
# opposite order. For SFT the worse mistake is that B hardly ever writes *bad*. For the reward it is
# that A adds a second verdict. With a single right answer, which people always write, the two
# measures agree. Then $J$ is the probability of this answer, and the SFT loss falls when this
# probability rises.
# </details>
#
# The SFT loss asks how likely people's words are, so the model must cover everything that people
# write, in people's proportions. A reward asks only whether the response is right.
#
# **What it does not show.** We chose A and B by hand. A model that imitates people *perfectly* has the
# lowest SFT loss, and here also the highest expected reward. The two measures disagree about imperfect
# models, because they weigh mistakes differently.
#
# The reward has a price: it does not ask for variety (lesson 07).

# %% [markdown]
# ## 4. Third reason: the model continues its own words
#
# In SFT each token is predicted after words that a *person* wrote. When the model writes, it
# continues its *own* words. So it meets prefixes that the training never showed. This difference is
# called **exposure bias**.
#
# Back to the small world of section 2, and to the prefix *bad*. The person never wrote it, so SFT
# says nothing about what comes after it: all its pushes there are 0. But the model itself begins with
# *bad* in one of three responses.
#
# **Predict.** After *bad*, which word does the reward push up, and which down? Are these pushes larger
# or smaller than those at the start? (The formula of section 2 gives them.) The cell shows all pushes.

# %% tags=["predict"]
prefixes = ["(empty)", "good", "bad"]
both = {
    "SFT": pd.DataFrame(sft_push, prefixes, world.vocab),
    "reward": pd.DataFrame(reward_push, prefixes, world.vocab),
}
pd.concat(both, axis=1).round(2) + 0.0  # no -0.0

# %% [markdown]
# <details><summary>What you should see</summary>
#
# The reward pushes *good* up and a second *bad* down. By hand, $P(\text{reach } s)$ is 1/3, and $V(s)$
# is (0 − 2 − 1) / 3 = −1:
#
# | word after *bad* | $Q$ | reward |
# |---|---|---|
# | then *good* | 0 | 1/3 · 1/3 · (0 + 1) = 1/9 |
# | then *bad* | −2 | 1/3 · 1/3 · (−2 + 1) = −1/9 |
# | then full stop | −1 | 1/3 · 1/3 · (−1 + 1) = 0 |
#
# The pushes are a third of those at the start, because the model comes to *bad* in one third of its
# responses only.
# </details>
#
# **What this shows.** In a table, SFT trains no prefix that people did not write. The reward trains every
# prefix that the model reaches.
#
# **What it does not show.** A real language model is no table. All its prefixes share the same
# weights, so what it learns at people's prefixes changes the others too. Does a real model write worse
# after its own words? Exercise 6 designs an experiment. We have not run it.

# %% [markdown]
# ## 5. The reward of every prefix
#
# Now the reward model of lesson 00. It learned from ratings of film reviews. Over responses of our
# SFT model its rewards have the mean 0 and the standard deviation 1.
#
# Every response ends with the special token **EOS** (end of sequence; `<|endoftext|>` in GPT-2).
# The reward model was trained to give its number, the reward, *there*. What about an unfinished
# response? There are two ways to ask:
#
# - **prefix + EOS**: cut the response after a token, put EOS behind it, and ask for the reward of
#   this short response alone. The reward model is read where it was trained. But the text is
#   unusual: a review seldom ends in the middle of a phrase.
# - **one pass**: let the model read the whole response once, and read its number at every token.
#   The text is natural. But the model was never trained to give a number in the middle.
#
# Take two reviews: "A brilliant, moving film with a terrible ending." and "It is never boring."
#
# **Predict.** Think of prefix + EOS. After which word of the first review does the reward rise
# most? After which does it fall most? Is the reward of the whole first review positive? And that of
# the second?
#
# In the picture, the colour of a token is the reward of the prefix that ends with it: blue is
# positive, orange negative. Point at a token to see both numbers. The menu *Colour* switches to one
# pass. The table has the numbers of the first review.

# %% tags=["predict"]
policy, tokenizer = models.load_policy("tiny-reviews-sft")
reward_model, _ = models.load_scalar("tiny-reviews-reward")
reviews = ["A brilliant, moving film with a terrible ending.", "It is never boring."]
pair = models.encode(tokenizer, ["the film\n"] * 2, reviews)
table = evaluate.token_table(pair, tokenizer, reward_model=reward_model)
show.microscope(table, "prefix_reward", text="all")

# %% tags=["predict"]
ways = ["prefix_reward", "one_pass_reward"]
table.loc[table.text == 0, ["token", *ways]].round(2)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# - *brilliant* raises the reward most, from 0.0 to 2.1.
# - *terrible* lowers it most. The word is two tokens here, *ter* and *rible*, and the reward falls
#   from 2.6 to 0.9.
# - The first review ends with 0.4, a little above average. The praise and the criticism nearly
#   balance.
# - The second review ends with −1.4, although it is praise. The reward falls at *boring*. This
#   reward model reacts to the word and does not understand *never boring*. A model that is trained
#   on this reward learns its errors, too.
# - **The two ways differ.** After *brilliant* one says 2.1, the other 5.9. They agree at EOS only,
#   where both read the whole response.
# </details>
#
# **Why care is needed.** The reward of a prefix says how good the response would be *if it ended
# here*. It does not predict how the response will end: the prefix "It is" has 0.5 (point at *is* in
# the picture), and the review that begins so ends with −1.4. Use prefix + EOS to compare prefixes,
# and remember that a prefix is not a review. Lesson 05 trains another model, the critic, to predict
# the end.

# %% [markdown]
# ## 6. The simplest use of a reward: best-of-n
#
# What does a reward do to real responses? You can use it without any training: let the SFT model write
# four responses to each title, and keep the one with the highest reward. This is **best-of-n** (lesson
# 00, exercise 2), here with n = 4. The titles are those of 76 films that no training has seen.

# %%
score = rewards.rollout_score(reward_model, tokenizer.eos_token_id)
titles = tasks.reviews.eval_prompts("test")[: 8 if FAST else None]
four_each = pd.Series(titles).repeat(4).tolist()
(batch,) = models.sample_text(policy, tokenizer, four_each, batch_size=len(four_each))
scores = score(batch)  # one reward per response
best = search.best_index(scores, 4)  # the row of the best response to each title

responses = models.decode(tokenizer, batch)
samples = pd.DataFrame(
    {"response": responses, "reward": scores.tolist()},
    index=pd.Index([title.strip() for title in four_each], name="title"),
)
show.texts(samples.head(8).round(1))

# %% [markdown]
# These are the responses to the first two titles. Best-of-n keeps "There's a great way ..." with 0.5
# for the first title, and "... is very funny." with 0.8 for the second.
#
# The **gold score** of lesson 00 is a second model's prediction of people's mean rating, from −4
# to 4. It is never used for choosing. The next table has the means of both, live and from the
# **record** of our own runs. The row *one sample* is the mean over all responses.
#
# **Predict.** Does the reward rise with n? And the gold score?

# %% tags=["predict"]
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
# <details><summary>What you should see</summary>
#
# The record is the mean of three runs, with the same titles. Your live numbers may differ a little.
#
# - **The reward rises**, from −0.05 to 0.99 with four samples and to 1.70 with sixteen. It must: we
#   choose by it.
# - **The gold score rises too**, from 0.38 to 1.11 and to 1.57. This was not certain: the gold model
#   learned from other films. But it learned from ratings of the same kind, and it likes *funny*,
#   too (lesson 00). So the two can share errors, and this is no proof that people would agree.
# </details>
#
# Best-of-n pays every time: four samples for each response that a user reads. RLHF pays once. It
# changes the model, so that a single sample has a high reward. Lessons 03 to 09 show how.

# %% [markdown]
# ## What to remember
#
# - SFT makes likely what people wrote. It cannot say that something is bad.
# - A step on $J$ pushes a word up if the responses with it are better than average for its prefix.
# - SFT asks whether a person wrote this response. A reward asks whether it is good, so it accepts
#   every right answer.
# - SFT trains at people's prefixes. RLHF trains at the model's own. How much this matters for a
#   real model is an open question here.
# - A reward model is trained at the end of a response. The reward of a prefix says how good the
#   response would be if it ended there.
#
# ## Exercises
#
# Solutions are in `solutions/01_why_rlhf.ipynb`. Exercises 1 and 2 practise the lesson's idea.

# %% [markdown] tags=["exercise"]
# **1. The two measures** *(easy, 15 minutes)*. (a) Only N responses are possible. `probs` has the
# shape (N,): the probability of each under the model. `people` has the same shape: how often people
# write each. `rewards` has the reward of each. Return two numbers in one tensor of shape `(2,)`: the
# mean over what people write of $-\log \pi(y)$ (the SFT loss of whole responses), and the expected
# reward $J$.
#
# *Hint:* over whose responses does each measure take its mean? A response that people never write may
# have the probability 0, and `0 * inf` is NaN. So leave it out of the loss.


# %% tags=["exercise"]
def two_measures(probs, people, rewards): ...  # your code


check.two_measures(two_measures)


# %% tags=["solution"]
def two_measures(probs, people, rewards):
    written_ones = people > 0
    sft_loss = -(people[written_ones] * probs[written_ones].log()).sum()
    return torch.stack([sft_loss, (probs * rewards).sum()])


check.two_measures(two_measures)

# %% [markdown] tags=["exercise"]
# (b) Three responses are right, and the fourth is wrong. The model `often_wrong` is wrong in nine of
# ten responses. Find a model `never_wrong` that is always right, and whose SFT loss is *larger*. The
# table shows whether you have found one: its reward must be 1, and its loss above that of the other.
# Which of the two would you rather use?

# %% tags=["exercise"]
people_write = torch.tensor([0.6, 0.3, 0.1, 0.0])
is_right = torch.tensor([1.0, 1.0, 1.0, 0.0])
two = {
    "often_wrong": torch.tensor([0.06, 0.03, 0.01, 0.9]),
    "never_wrong": torch.tensor([0.6, 0.3, 0.1, 0.0]),  # yours
}
pd.DataFrame(
    {name: two_measures(model, people_write, is_right) for name, model in two.items()},
    ["SFT loss", "expected reward"],
)

# %% tags=["solution"]
people_write = torch.tensor([0.6, 0.3, 0.1, 0.0])
is_right = torch.tensor([1.0, 1.0, 1.0, 0.0])
two = {
    "often_wrong": torch.tensor([0.06, 0.03, 0.01, 0.9]),
    "never_wrong": torch.tensor([0.9998, 0.0001, 0.0001, 0.0]),
}
pd.DataFrame(
    {name: two_measures(model, people_write, is_right) for name, model in two.items()},
    ["SFT loss", "expected reward"],
).round(2)

# %% [markdown] tags=["solution"]
# A model that nearly always writes the first response is one answer. Its loss is 3.68 nats, because
# people write the other two as well. (A model with probability 0 there has an infinite loss, and is an
# answer, too.) The other model has 3.20: it gives each right response a tenth of
# its share, which costs $\log 10 = 2.30$ nats more than people themselves have, 0.90. By the SFT
# loss the model that is nearly always wrong is better. If you want variety, `never_wrong` is a poor
# model, too: it knows only one answer.

# %% [markdown] tags=["exercise"]
# **2. All pushes of the reward** *(medium, 20 minutes)*. The small world of section 2 again, with other
# numbers. `probs` has the shape `(3, 3)`: the probability of *good*, *bad* and the full stop (columns)
# after the empty prefix, *good* and *bad* (rows). `rewards` has the shape `(7,)`: the rewards of the
# seven responses, in the order of the table in section 2. Return the push of the reward on each logit,
# shape `(3, 3)`.
#
# *Hint:* begin with the last two rows. After *good*, each of the three words ends the response, so
# $Q$ is a reward. $V$ is the mean of the $Q$ of a row, each with its probability. At the start, the
# $Q$ of *good* is the $V$ of the prefix *good*. `keepdim=True` keeps a column a column.


# %% tags=["exercise"]
def reward_pushes(probs, rewards): ...  # your code


check.reward_pushes(reward_pushes)


# %% tags=["solution"]
def reward_pushes(probs, rewards):
    later_q = torch.stack([rewards[:3], rewards[3:6]])  # after good, after bad
    later_v = (probs[1:] * later_q).sum(1)
    first_q = torch.cat([later_v, rewards[6:]])
    q = torch.cat([first_q[None], later_q])
    v = (probs * q).sum(1, keepdim=True)
    reach = torch.cat([torch.ones(1), probs[0, :2]])[:, None]
    return reach * probs * (q - v)


check.reward_pushes(reward_pushes)

# %% [markdown] tags=["exercise"]
# **3. The mask** *(easy, 10 minutes)*. The reward is read at EOS, so the code must know where EOS is.
# There is a trap. GPT-2 has no padding token, and the usual choice is to pad with EOS. Then a batch
# looks like this:
#
# | | *Short* | *.* | EOS | padding | padding |
# |---|---|---|---|---|---|
# | token id | 7 | 2 | 0 | 0 | 0 |
# | real token? | yes | yes | yes | no | no |
#
# EOS is a token of its own here, and the full stop is an ordinary word, as in GPT-2. The first EOS
# is a real token: the model chose to stop there. The others are padding. All have the same id, so
# only the *position* tells them apart.
#
# `ids` has the shape (B, R): the token ids of B responses at
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
# **4. The reward of a response** *(medium, 10 minutes)*. `token_scores` has the shape (B, T): a
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
# **5. Find the bug** *(medium, 15 minutes)*. A colleague trains a model by SFT on two reviews,
# *good.* and *good bad.*, in a small world with at most four tokens. They are 2 and 3 tokens long,
# so the mean length is 2.5 (the thin line). The thick line is the mean length of what the model
# writes. It should come close to 2.5, and it does not. What is wrong in `imitation_loss`? Mend it,
# run the checker, and draw the line again. (The right line first rises to 2.66, and comes down to
# 2.53.) Then explain: with the bug the line ends at 3.63. With more steps it comes to 3.67, and not
# to 4. Why?
#
# In this small world EOS is the full stop, as in section 2, so `eos_id` is 2. In the cell that draws,
# the reward of a response is its length. So the expected reward is the mean length.
#
# *Hint:* take one response, the ids 7, 2, 0, 0, 0 of exercise 3 with `eos_id` 0. Write `mask` down
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
#
# Why 3.67? With the bug the model learns *good* at the start, and *bad* after *good*. After *good bad*
# the only training token is EOS, and it is masked. So this row of the table stays uniform. There the
# model stops with probability 1/3, and else it writes a fourth token. The mean length is
# 1/3 · 3 + 2/3 · 4 = 3.67.


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
# **6. Design the experiment** *(hard, 15 minutes)*. Is a language model worse after its own words
# than after the words of people? Section 4 does not show it. How would you *measure* it? Say what
# you compare, who judges it, and which result would speak against exposure bias.
#
# *Hint:* the two kinds of prefix differ in who wrote them. In what else do they differ? How could you
# tell its effect from that of exposure bias?

# %% [markdown] tags=["solution"]
# A good answer has five parts.
#
# - Two sets of prefixes of the same length and to the same titles: people's, and the model's own.
# - What the model writes *next* after each of them.
# - A judge that is not the model itself: people, or a fixed model that scores how fluent a text is.
# - The difference by length of the prefix, with an interval over titles.
# - A control. The model's own prefixes are also worse English, and that alone may spoil what follows.
#   So let a person, or another model, continue both kinds of prefix, too. Only what the model loses
#   *beyond* that is a sign of exposure bias.
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
# <details><summary>4. Take the unfinished reviews "The film is a brilliant" and "The film is a boring". Are the rewards after <em>a</em> equal in the two?</summary>
#
# Yes, in both ways to ask. Prefix + EOS reads the same short response. One pass has read the same
# tokens, and the model cannot look ahead. At the adjective both put *brilliant* above *boring*, and
# one pass has the larger difference. That does not make it better: its numbers are read where nothing
# was trained or scaled.
# </details>
#
# <details><summary>5. Which of the two pictures of section 5 would you show to a user, and with which words?</summary>
#
# Prefix + EOS, with the remark that a prefix is not a review. Show one pass only if the reward
# model was trained to give a number at every token. Ours was not: in one pass the highest number of
# the first review is 6.93, after *ter*, in the middle of a word.
# </details>
#
# ## Going further
#
# **Another reward model.** Some lecture notes on RLHF begin with a picture of the reward of every
# prefix of "I love to walk the dog, what do you like?", with twelve numbers. We do not know how
# the prefixes were read. Ours likes *love*: "I love" has the highest reward, 1.34 (prefix + EOS),
# and all later prefixes have a lower one. The correlation of the notes' numbers with ours is
# −0.01 (prefix + EOS) and −0.02 (one pass). So we see no agreement. But twelve prefixes that contain
# each other are few, and ours knows film reviews only. `minirlhf score "I love to walk the dog"`
# shows the rewards of any sentence.
#
# **A larger judge.** SmolLM2 is a language model with 135 million parameters, and it knows what a
# dog is. `minirlhf smollm2` trained it for some minutes as a reward model on ratings of the same
# films. Its rewards of the notes' prefixes (prefix + EOS) have a correlation of 0.05 with the
# notes' and 0.21 with ours. On 600 pairs of reviews of 60 held-out films it agrees with one
# randomly chosen rater in 72 % of the pairs (95 % interval over films: 67 % to 77 %), and our small
# reward model in 65 % (60 % to 70 %). Both judged the same pairs, so whether one is better must be
# read from the difference film by film. The record has only the two intervals, so we leave it open.
# (Lesson 00 says 64 %: that is the mean of three reward models, on another set of pairs.) We do not
# know what SmolLM2 has read before.
#
# **Is the model surprised by people?** We compared the mean of $-\log \pi$ per token on 128
# held-out reviews by people and on as many responses of our SFT model, drawn with its own
# probabilities (temperature 1). It is 4.24 nats for people and 4.18 nats for the model's own
# responses. The two are close. But this is *no* measure of exposure bias, for two reasons. The
# surprise also depends on how varied people's words are. And a mean over whole responses hides
# whether it grows from token to token. Exercise 6 asks for a better measure.
#
# **The record of section 6.** Each of its three runs trained its own SFT model and its own reward
# model. The rewards were scaled on other titles, so the mean reward of one sample is not exactly 0.
#
# **What the libraries do.**
#
# | | where the reward is read | what to watch |
# |---|---|---|
# | here | at the last real token, which is EOS | a response that was cut off gets an EOS first |
# | OpenRLHF 0.11 | at the last token of the response | as here |
# | TRL 1.12 (the last with a PPO trainer) | at the last token before the padding | the padding token must not be EOS, or EOS counts as padding |
# | DeepSpeed-Chat | at the last token | it was also trained in the middle of a response: at every token from the first difference between the two responses of a pair. So one pass reads trained positions there |
#
# **References.** Ziegler et al. 2019, section 2.1 (the reward model and its scale). Stiennon et al.
# 2020, section 3.4. Ranzato et al. 2016, *Sequence level training with recurrent neural networks*,
# section 1 (exposure bias).
#
# *How this lesson is checked:* every number is compared with the models and the record that it
# comes from (`tests/claims/test_lesson_01.py`). The exact world is tested in
# `tests/core/test_exact.py`, the two rewards of a prefix in `tests/evaluate/test_tokens.py`.
