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
# # 03 · A language model is a policy
#
# After this lesson you can
#
# - say what state, action, return, value and advantage are in a language model, and compute them on
#   paper,
# - compute the log-probability of every token of a response, without an off-by-one,
# - write the training step of supervised fine-tuning (SFT), and say what imitation cannot do.
#
# **You need** PyTorch and probability, but no reinforcement learning. About 50 minutes to read and
# 105 for the exercises.

# %%
import copy

import pandas as pd
import torch

from minirlhf import core, loops, models, show, tasks
from minirlhf.classroom import FAST, check

# %% [markdown]
# ## 1. The idea: each token is a decision
#
# Reinforcement learning (RL) is about decisions that are made one after the other. A language model
# makes a decision at every token: which word comes next? Take the prompt *the film*, which is a
# film's title, and the response *A dull film.* RL has four words for what happens:
#
# - The **state** is what is known before a decision. Here it is the **prefix**: the prompt and the
#   tokens so far. At the second token it is *the film*, then *A*.
# - The **action** is what is decided. Here it is the next token: *dull*.
# - The **policy** is the rule by which decisions are made. It gives every possible action a
#   probability. A language model does this with the softmax of its logits. So the language model
#   *is* the policy.
# - An **episode** is all decisions from the first to the last. Here it is the whole response. It
#   ends with the end-of-sequence token (EOS), or at a largest length.
#
# Call the prompt $x$ and the response $y$, with the tokens $y_1, y_2, \dots$ The prefix before token
# $y_t$ is $s_t$, and the policy is $\pi$. The probability of the whole response is the product over
# its tokens:
#
# $$ \pi(y \mid x) = \prod_t \pi(y_t \mid s_t), \qquad
# \log \pi(y \mid x) = \sum_t \log \pi(y_t \mid s_t) . $$
#
# In words: the log-probabilities of the tokens add up to that of the response.
#
# **Supervised fine-tuning** raises them for responses that people wrote. RL raises or lowers
# them for responses that the model wrote itself (lesson 04).

# %% [markdown]
# ## 2. The small world: rewards and values
#
# How good is a policy, and how good is one token? Here is a **small world** in which we can answer
# on paper.
#
# There are three words: *good*, *bad* and the full stop. The full stop ends a response, and plays
# the part of EOS. A response has at most two words. The policy chooses each word with probability
# 1/3: it is *uniform*. Each finished response gets a **score**: the number of *good* minus the
# number of *bad*. There are seven responses:
#
# | response | probability | score |
# |---|---|---|
# | good good | 1/9 | 2 |
# | good bad | 1/9 | 0 |
# | good . | 1/9 | 1 |
# | bad good | 1/9 | 0 |
# | bad bad | 1/9 | −2 |
# | bad . | 1/9 | −1 |
# | . at once | 1/3 | 0 |

# %% tags=["shared"]
world = core.World.from_reward(
    ("good", "bad", "."), 2, lambda w: float(w.count("good") - w.count("bad"))
)  # the words, the largest length, and the score of a finished response
# Logits, (3 states, 3 words), all 0: the words are equally likely. A world begins with
# this policy, and calls it "ref", for reference. You need this name from lesson 06 on.
uniform = world.ref_logits

# %% [markdown]
# **Score, reward, return.** A finished response has a score. A token has a **reward** $r_t$: what it
# earns at once. Here the last token earns the score, and every other token has the reward 0. The
# **return** $G_t$ is the sum of the rewards from token $t$ on. So here every return is the score of
# its response. (In lesson 06, every token has a reward.)
#
# **Value.** The policy has written *bad*. What will it get on average? One word is left. The three
# words lead to the scores 0, −2 and −1, and the mean is −1. This is the **value** of the prefix:
#
# $$ V(s_t) = \mathbb{E}[G_t \mid s_t] . $$
#
# In words: the mean return when the policy goes on from the prefix $s_t$. The letter $\mathbb{E}$ is
# the mean over all ways to go on. Each way counts with its probability.
#
# **Action value.** Now suppose that we also know the next token, $y_t$. The mean return is then called
# the **action value** $Q$ of the token:
#
# $$ Q(s_t, y_t) = \mathbb{E}[G_t \mid s_t, y_t] . $$
#
# After *bad*, $Q$ of *good* is 0, $Q$ of *bad* is −2, and $Q$ of the full stop is −1. Each of these
# words ends the response, so $Q$ is the score.
#
# **From V to Q.** A token earns its reward $r_t$. Then the policy goes on from the next prefix,
# $s_{t+1}$, which is $s_t$ with $y_t$ added. So
#
# $$ Q(s_t, y_t) = r_t + V(s_{t+1}) . $$
#
# In words: the action value is the reward of the token plus the value of the prefix after it. After
# the last token nothing more is earned, so there $V$ is 0. Take *bad*, first at the start and then
# after *bad*:
#
# $$ Q(\text{start}, \text{bad}) = 0 + V(\text{bad}) = -1, \qquad
# Q(\text{bad}, \text{bad}) = -2 + 0 = -2 . $$
#
# **Predict.** The policy decides in two more states: after *good*, and at the *start*, where the
# prefix is empty. Write down the $Q$ of each word in both states: six numbers. Then: what is $V$ of
# each?

# %% tags=["predict"]
v, q = world.values(uniform)
table = pd.DataFrame(q.numpy(), ["start", "good", "bad"], world.vocab)
table["V"] = v.numpy()
table.round(2)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# After *good*, one word is left. The three words lead to the scores 2, 0 and 1. So these are the
# three $Q$, and $V$ is their mean, 1.
#
# At the start, *good* has the reward 0, so its $Q$ is $V$ of the prefix *good*: 1. $Q$ of *bad* is −1.
# The full stop ends the response at once, with the score 0. So $V$ is the mean of 1, −1 and 0: it
# is 0.
# </details>

# %% [markdown]
# ## 3. The advantage: was this token better than usual?
#
# The **advantage** of a token compares it with the other tokens that the policy could have chosen:
#
# $$ A_t = Q(s_t, y_t) - V(s_t) . $$
#
# In words: how much better this token is than what the policy gets there on average. By the
# formula of section 2 this is
#
# $$ A_t = r_t + V(s_{t+1}) - V(s_t) . $$
#
# In words: the reward, plus the change of the value. Take *good bad*. Its score is 0:
#
# | token $y_t$ | prefix $s_t$ | $r_t$ | $G_t$ | $V(s_t)$ | $V(s_{t+1})$ | $Q = r_t + V(s_{t+1})$ | $A_t = Q - V(s_t)$ |
# |---|---|---|---|---|---|---|---|
# | first: good | start | 0 | 0 | 0 | 1 | 1 | 1 |
# | second: bad | good | 0 | 0 | 1 | 0 (the end) | 0 | −1 |
#
# *good* raises what the policy may expect from 0 to 1, and *bad* takes it away again. The returns
# do not show this: both are 0. Lesson 05 computes $r_t + V(s_{t+1}) - V(s_t)$ with an estimate of $V$,
# and calls it the **temporal-difference (TD) error**.

# %%
# v has an entry for each prefix: start, good, bad. q has a row for each.
assert torch.allclose(q[0, :2], v[1:])  # at the start: Q of good and bad is V after it
v_t = v[[0, 1]]  # V at the start and after good
q_t = q[[0, 1], [0, 1]]  # Q of good at the start, and of bad after good
assert torch.allclose(q_t - v_t, torch.tensor([1.0, -1.0]).double())

# %% [markdown]
# $V$, $Q$ and $A$ depend on the policy. If another policy always writes *bad* after *good*, its $V$
# after *good* is 0 instead of 1.

# %% [markdown]
# ## 4. Which number belongs to which token
#
# Until now the policy was a small table. From here on it is a transformer. It reads all tokens at
# once, and gives one row of logits at each position. Row $i$ has read the tokens up to position $i$,
# and **predicts the next one**. Here are the prompt *the film* and the response *A dull film.* on
# paper (`\n` ends the prompt):
#
# | position | 0 | 1 | 2 | 3 | 4 | 5 | 6 | 7 |
# |---|---|---|---|---|---|---|---|---|
# | token | the | film | \n | A | dull | film | . | EOS |
# | part | prompt | prompt | prompt | response | response | response | response | response |
#
# **Predict.** Which rows of logits do you need for the five tokens of the response? And which token
# has no log-probability?

# %% tags=["predict"]
base, tokenizer = models.load_policy("tiny-reviews")  # has read reviews, no titles
sft, _ = models.load_policy("tiny-reviews-sft")  # the same after SFT
batch = models.encode(tokenizer, ["the film\n"], ["A dull film."])
tokens = tokenizer.convert_ids_to_tokens(batch.sequences[0])  # prompt and response
shift = pd.DataFrame({"has just read": tokens, "predicts": [*tokens[1:], "nothing"]})
shift.rename_axis("row of logits").T

# %% [markdown]
# <details><summary>What you should see</summary>
#
# You need the rows 2 to 6. A token is predicted by the row **one position to its left**:
#
# | row of logits | 0 | 1 | 2 | 3 | 4 | 5 | 6 | 7 |
# |---|---|---|---|---|---|---|---|---|
# | has just read | the | film | \n | A | dull | film | . | EOS |
# | predicts | film | \n | **A** | **dull** | **film** | **.** | **EOS** | nothing |
#
# The first token of the prompt has no log-probability, because no row stands before it. (In the
# output `Ġ` stands for a space, and `Ċ` for the end of the line.)
# </details>
#
# In a real batch the lengths differ. Prompts are padded on the *left*, responses on the *right*. So
# all responses begin in the same column: P, the width of the padded prompts. The rows of logits
# that predict them begin one column earlier, and end one column before the last.

# %%
batch = models.encode(
    tokenizer,
    ["the film\n", "a night at the opera\n"],
    ["A dull film.", "Funny, and a little sad."],
)
with torch.no_grad():
    logits = sft(
        input_ids=batch.sequences,  # (B, T): prompt and response
        attention_mask=batch.attention_mask.long(),
        position_ids=batch.position_ids,  # counted without the padding
    ).logits
P = batch.prompt_ids.shape[1]  # the width of the padded prompts
rows = logits[:, P - 1 : -1]  # one to the left of each response token
logprobs = rows.log_softmax(-1).gather(-1, batch.response_ids[..., None])[..., 0]

# %%
with torch.no_grad():
    same = models.policy_logprobs(sft, batch)  # the package: 0 at padding
assert torch.allclose(
    logprobs.where(batch.response_mask, torch.tensor(0.0)), same, atol=1e-4
)
first = pd.DataFrame({"token": tokenizer.convert_ids_to_tokens(batch.response_ids[0])})
first["log-probability"] = logprobs[0]
first["probability"] = logprobs[0].exp()
first["real"] = batch.response_mask[0]
first.round(3)

# %% [markdown]
# Read the table from top to bottom:
#
# - *A* is a likely first word. *dull* is a surprise: its probability is about 0.002.
# - The fifth row is EOS. To stop is a decision, and the policy learns it like every other.
# - The last four rows are padding, because the second review is longer. Their log-probabilities mean
#   nothing. (They are equal, because their inputs are the same.) The **response mask** is
#   true at real tokens, and false at padding.
# - Padding and EOS are the same token in this model. Only the column *real* tells them apart. So the
#   mask must come from the lengths: `ids != pad` would also drop the real EOS.
# - The prompt is not in the table. Nobody chose its tokens, so no loss counts them. This is called
#   the **prompt mask**.
#
# The **length** of a response is the number of its tokens, EOS included. Here the lengths are 5 and
# 9.

# %% [markdown]
# ## 5. Sampling and temperature
#
# The policy **samples**: it draws the next token with the probabilities that it has computed. Take
# three words with the probabilities 0.5, 0.3 and 0.2. Draw a number $u$ between 0 and 1, each
# equally likely. Below 0.5 it means the first word, from 0.5 to 0.8 the second, and from 0.8 on the
# third.
#
# The **temperature** $\tau$ divides the logits before the softmax. This is the same as raising each
# probability to the power $1/\tau$ and scaling the results so that they sum to 1. At $\tau = 0.5$
# the three words get $0.25$, $0.09$ and $0.04$. Divided by their sum they are 0.66, 0.24 and 0.11.
# A low temperature makes the likely words more likely. A high one makes all words more alike.
#
# **Predict.** The SFT model begins a review of *the film*. Its vocabulary has 4,096 tokens. At the
# temperature 1, the likeliest first token is *A*, with a probability of 18 %. What is it at the
# temperature 0.5, and what at 1.5?

# %% tags=["predict"]
first_token = logits[0, P - 1]  # the row that predicts the first token
six = first_token.topk(6).indices
# S, in the figure, is the beginning of longer words
chances = pd.DataFrame(index=tokenizer.convert_ids_to_tokens(six))
for tau in (0.5, 1.0, 1.5):
    p = (first_token / tau).softmax(0)
    chances[f"temperature {tau}"] = p[six].numpy()
show.bars(chances, label="probability of the first token")

# %% [markdown]
# <details><summary>What you should see</summary>
#
# The probability of *A* is 56 % at 0.5: more than all other tokens together. At 1.5 it is 6 %. A
# small change of the temperature changes the policy a lot, because thousands of unlikely tokens
# together have much of the probability.
# </details>
#
# **One temperature everywhere.** At another temperature, the same weights give the same tokens other
# probabilities. So they are *another policy*. RL needs the probabilities of the policy that has
# sampled. Our models sample at 0.7. So every log-probability that RL uses must be computed at 0.7,
# too. A check: sample, and compute the log-probability of each token again. At 0.7 it is the same as
# when the token was drawn. At 1 some log-probability differs by more than 0.5.

# %%
prompts = tasks.reviews.eval_prompts("test")[:8]  # films that no training has seen
cool = models.SamplingConfig(temperature=0.7)
(sampled,) = models.sample_text(sft, tokenizer, prompts, config=cool, seed=0)
with torch.no_grad():
    # old_logprobs: the log-probabilities, written down when the tokens were drawn
    again = models.policy_logprobs(sft, sampled, temperature=0.7)
    other = models.policy_logprobs(sft, sampled, temperature=1.0)
assert (again - sampled.old_logprobs).abs().max() < 1e-4
assert (other - sampled.old_logprobs).abs().max() > 0.5

# %% [markdown]
# ## 6. SFT: one training step
#
# The **surprise** at a token is minus its log-probability, $-\log \pi$. Its unit is the **nat**, the
# unit of natural logarithms. The loss of SFT is the mean surprise at people's tokens (at the
# temperature 1):
#
# $$ L = -\frac{1}{N} \sum_{\text{responses}} \sum_t \log \pi(y_t \mid s_t) , $$
#
# where $N$ is the number of real response tokens in the batch, EOS included. In words: make each
# token that a person wrote more likely, after the prefix that the person had written. This is the
# cross-entropy loss of pretraining, with the prompt masked.
#
# Our data are short reviews by people. The prompt is the film's title:

# %%
data = tasks.reviews.sft_dataset(tokenizer)
show.texts(data.select(range(3)).to_pandas())

# %% [markdown]
# All three praise the same film. But they share hardly a word. So SFT has no single right answer to
# copy.
#
# The algorithm starts from the base model:


# %%
def sft_step(rows):
    # 1. Text to tokens: at most 32 per response, EOS included.
    batch = models.encode(
        tokenizer, rows["prompt"], rows["completion"], max_response=32
    )
    mask = batch.response_mask  # (B, R): true at real response tokens
    # 2. The log-probability of each token of the response: the shift of section 4.
    logprobs = models.policy_logprobs(policy, batch)  # (B, R)
    # 3. The loss: the mean surprise at the real tokens.
    loss = -logprobs.where(mask, 0.0).sum() / mask.sum()
    # 4. The gradient, and one update.
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


# %% [markdown]
# The package's `train_sft` adds logs, a learning-rate schedule and gradient clipping: a gradient
# that is too long is shortened. (The clip of lesson 06 is something else.) `SFTConfig.plain` switches
# the last two off. With the same seed, a few steps then leave exactly the same weights:

# %%
torch.set_num_threads(1)  # sums in a fixed order, so that two runs can be equal
steps = 2 if FAST else 6  # FAST=1 is for the tests of this page
order = list(loops.shuffled_batches(len(data), 16, steps, seed=0))  # rows of each batch
policy = copy.deepcopy(base)
optimizer = loops.make_optimizer(policy, loops.OptimiserConfig(lr=3e-4))
by_hand = [sft_step(data[index.tolist()]) for index in order]

config = loops.SFTConfig.plain(batch_size=16, epochs=steps * 16 / len(data))
trained, history = loops.train_sft(copy.deepcopy(base), tokenizer, data, config)
assert models.same_weights(policy, trained)
print("loss of each step:", [round(loss, 2) for loss in by_hand])

# %% [markdown]
# The loss jumps, because each step has other reviews. A whole run, over one and a half times the
# data, made the SFT model of section 4.
#
# ## 7. What SFT has changed
#
# We take people's reviews of the test films. Neither model has read them: they are held out from
# pretraining and from SFT. How surprised is each model at each token?
#
# **Predict.** Is SFT's gain about the same at each position in the review? Or is it largest at the
# beginning, or at the end?

# %% tags=["predict"]
held_out = tasks.reviews.sft_dataset(tokenizer, split="test").shuffle(seed=0)
people = held_out.select(range(32 if FAST else 256))
batch = models.encode(tokenizer, people["prompt"], people["completion"])
mask, logprobs, surprise = batch.response_mask, {}, {}
for name, model in (("base", base), ("SFT", sft)):
    with torch.no_grad():
        x = logprobs[name] = models.policy_logprobs(model, batch)
    surprise[name] = (-x.sum(0) / mask.sum(0))[:24]
    print(name, "over all tokens:", round((-x.sum() / mask.sum()).item(), 2))
position = range(1, 25)
show.lines(surprise, position, xlabel="position in the review", ylabel="surprise, nats")

# %% [markdown]
# <details><summary>What you should see</summary>
#
# The gain is largest at the first token: the surprise falls from 5.4 to 3.9 nats. From the fifth
# token on the two curves are close. Over all tokens it falls from 4.44 to 4.28 nats. SFT has taught
# the *format*: after a title, a review begins. It has hardly changed the language. The reviews that
# SFT trains on were nothing new: the base model had read all of *those* in pretraining.
# </details>
#
# What do the models write by themselves? Both get the same titles, at temperature 0.7:

# %%
written = pd.DataFrame(index=[prompt.strip() for prompt in prompts])
for name, model in (("base", base), ("SFT", sft)):
    (drawn,) = models.sample_text(model, tokenizer, prompts, config=cool, seed=1)
    written[name] = models.decode(tokenizer, drawn)
show.texts(written.head(5))

# %% [markdown]
# The base model goes on with anything. After the first title it begins to tell a plot, and it is cut
# off at the limit of 32 tokens.
#
# The SFT model writes short reviews, and all five end. *Funnyfloat* and *shernprovoking* are not
# even words. And nothing shows that this very small model knows the films.
#
# **SFT has taught it to stop.** The figure cannot show this, because reviews end at different
# positions. So take EOS alone. How likely is it, at the temperature 1, where a person ended the
# review? And how many of a model's own responses, to the 76 test titles and at 0.7, have no EOS?

# %%
eos = tokenizer.eos_token_id
end = (batch.response_ids == eos) & mask  # the real EOS, without padding
titles, stops = tasks.reviews.eval_prompts("test")[: 8 if FAST else 76], {}
for name, model in (("base", base), ("SFT", sft)):
    (drawn,) = models.sample_text(
        model, tokenizer, titles, config=cool, seed=1, batch_size=76
    )
    stops[name] = {
        "mean probability of EOS where a person ends": logprobs[name][end].exp().mean(),
        "own responses without EOS": (~drawn.finished(eos)).sum(),
    }
pd.DataFrame(stops).T.astype(float).round(2)

# %% [markdown]
# Where people end, the probability of EOS rises from 0.69 to 0.92. Of its own responses, the base
# model leaves about half or more unfinished, depending on the draw. The SFT model leaves a few
# percent. RL needs this, because a response that never ends cannot be scored well.

# %% [markdown]
# ## 8. What imitation cannot do
#
# SFT copies the good and the bad alike. The small world of section 2 shows it exactly. Suppose that
# people have written twenty reviews:
#
# | response | *good good* | *good bad* | *good .* | *bad good* | *bad bad* | *bad .* | *.* |
# |---|---|---|---|---|---|---|---|
# | number | 4 | 1 | 5 | 1 | 2 | 3 | 4 |
# | its score | 2 | 0 | 1 | 0 | −2 | −1 | 0 |
#
# Their mean score is $(8 + 0 + 5 + 0 - 4 - 3 + 0)/20 = 0.3$. This is $V$ of the start, for people as
# the policy. Now train a policy with SFT's loss, until it does not change any more:

# %%
share = torch.tensor([4, 1, 5, 1, 2, 3, 4]) / 20  # world.rewards has the seven scores
table = world.ref_logits.clone().requires_grad_(True)  # a row of logits per prefix
for _ in range(2000):
    loss = -(share * world.sequence_logprobs(table)).sum()  # log pi(y) of each response
    (gradient,) = torch.autograd.grad(loss, table)
    table.data -= gradient
imitation = world.probs(table.detach())
assert torch.allclose(imitation.float(), share, atol=1e-5)
print("mean score:", round((imitation * world.rewards).sum().item(), 3))
print("loss, nats per response:", round(loss.item(), 3))

# %% [markdown]
# The policy writes each response exactly as often as people did. Its mean score is theirs, 0.3. The
# best response, *good good*, has the score 2. The loss never sees a score, so it cannot prefer this
# response.
#
# **The loss does not go to 0.** It ends at 1.805 nats. People do not always write the same, so even
# a perfect imitation is surprised. This lowest loss is called the **entropy** of people's reviews:
#
# $$ H = -\sum_y p(y) \log p(y) , $$
#
# where $p(y)$ is the share of the response $y$. In words: the mean surprise under the true shares.
# A policy has an entropy, too: take its own probabilities as $p$. It says how undecided the policy
# is. It is 0 if the policy always writes the same. Lesson 06b watches it.
#
# **What RL will do instead.** Compare the two directions in which the weights are pushed.
# $\nabla \log \pi(y \mid x)$ is the direction in which the weights must change to make the response
# $y$ more likely. $r(y)$ is the score of $y$. $\mathbb{E}_{y \sim \pi}$ is a mean over responses that
# the policy samples, and $\mathbb{E}_{y \sim \text{people}}$ one over people's responses.
#
# $$ \text{SFT: } \mathbb{E}_{y \sim \text{people}}\big[\nabla \log \pi(y \mid x)\big] \qquad
# \text{policy gradient: } \mathbb{E}_{y \sim \pi}\big[r(y)\, \nabla \log \pi(y \mid x)\big] $$
#
# In words: SFT takes the responses of *people*, and makes all of them more likely. The policy
# gradient takes the responses of the *policy*, and weighs each with its score. A response
# with a negative score is pushed down. This is lesson 04.

# %% [markdown]
# ## What to remember
#
# | word | symbol | in a language model |
# |---|---|---|
# | state | $s_t$ | the prefix |
# | action | $y_t$ | the next token; EOS is one, too |
# | policy | $\pi$ | the model |
# | episode | $y$ | the response |
# | score | $r(y)$ | what a finished response gets |
# | reward | $r_t$ | 0, and the score at the last token |
# | return | $G_t$ | the sum of the rewards from token $t$ on |
# | value | $V(s_t)$ | the mean return after a prefix |
# | action value | $Q(s_t, y_t) = r_t + V(s_{t+1})$ | the mean return after a prefix and a token |
# | advantage | $A_t = Q(s_t, y_t) - V(s_t)$ | how much better the token is than the average there |
#
# - The logits of a token stand one position to its left. Prompt and padding are masked, EOS is not.
# - The temperature belongs to the policy: sample and compute log-probabilities at the same one.
# - SFT makes people's tokens more likely. It teaches the format quickly, and copies good and bad in
#   their proportions.
#
# ## Exercises
#
# Solutions are in `solutions/03_a_language_model_is_a_policy.ipynb`.

# %% [markdown] tags=["exercise"]
# **1. V and Q from samples** *(medium, 20 minutes)*. For a language model nobody can list all
# responses. But we can sample. `ids` (N, R) are the words of N sampled responses. `rewards` (N, R)
# has the reward of each of these words. Here any word can have a reward, not only the last one.
# Padding has the reward 0. `prefix` (t,) are the ids of t words; t can be 0. `word` is an id.
# Estimate $V$ of the prefix, and $Q$ of the word after the prefix. Return both as a tensor of the
# shape (2,).
#
# *Hint:* both are means of returns. Which rewards belong to the return of the word after the
# prefix? Which responses tell you something about this prefix?


# %% tags=["exercise"]
def v_and_q(ids, rewards, prefix, word): ...  # your code


check.v_and_q(v_and_q)


# %% tags=["solution"]
def v_and_q(ids, rewards, prefix, word):
    t = len(prefix)
    returns = rewards[:, t:].sum(1)  # from the word after the prefix on
    here = (ids[:, :t] == prefix).all(1)  # responses that begin with the prefix
    chosen = here & (ids[:, t] == word)  # and go on with the word
    return torch.stack([returns[here].mean(), returns[chosen].mean()])


check.v_and_q(v_and_q)

# %% [markdown] tags=["exercise"]
# **Then predict.** The next cell samples 30, 300 and 30,000 responses of the small world. It prints
# estimates of four numbers: $V$ of the start and $Q$ of *good* there, then $V$ of *good* and $Q$ of
# *good* there. You know the true values. Which estimate is exact from the beginning? Which two are
# equal in every line, and why? And what goes wrong with a language model?

# %% tags=["exercise", "solution"]
drawing = torch.Generator().manual_seed(0)
last = world.response_mask.sum(1) - 1  # the last token of each of the seven responses
at_end = torch.nn.functional.one_hot(last, 2) * world.rewards[:, None]
nothing, good = torch.tensor([], dtype=torch.long), torch.tensor([0])
for count in (30, 300, 30_000):
    index = torch.multinomial(world.probs(uniform), count, True, generator=drawing)
    given = world.response_ids[index], at_end[index].float()
    print(
        count, "start:", v_and_q(*given, nothing, 0), "good:", v_and_q(*given, good, 0)
    )

# %% [markdown] tags=["exercise"]
# <details><summary>What you should see</summary>
#
# $Q$ of *good* after *good* is exact in every line. The word ends the response, so all these
# returns are equal.
#
# $V$ of *good* and $Q$ of *good* at the start are equal in every line. Both are means over the
# responses that begin with *good*, and the first word has the reward zero. This is the formula of
# section 2. With more responses, the estimates come nearer to the true values. $V$ of *good* is
# less exact than $V$ of the start, because fewer responses begin with *good*.
#
# **A language model** has thousands of words. So hardly any two responses share a prefix of more
# than a few tokens, and the mean is a mean over one response. Lesson 05 trains a network to predict
# $V$: it also learns from prefixes that are only similar.
# </details>

# %% [markdown] tags=["solution"]
# $Q$ of *good* after *good* is exactly 2: the response is over, and nothing is left to chance.
#
# $V$ of *good* and $Q$ of *good* at the start are equal: both are the mean of the same responses,
# those that begin with *good*. The first word earns nothing, so the returns are the same, too.
#
# $V$ of the start uses all responses, $V$ of *good* only a third of them. After 30 samples, 8
# responses begin with *good*, and the estimate is 0.63 instead of 1. After 300 samples it is 0.86, and
# after 30,000 it is 0.99. The longer the prefix, the fewer responses reach it.
#
# In a language model hardly any two responses share a prefix of more than a few tokens. So the mean
# would be taken over a single return. That is why lesson 05 trains a network to predict $V$: it
# learns from similar prefixes, not only from equal ones.

# %% [markdown] tags=["exercise"]
# **2. The advantages of a response** *(medium, 20 minutes)*. A world has W words, and every response
# has two of them. `logits` (W + 1, W) are the policy's: row 0 belongs to the start, and row 1 + a to
# the prefix that is the word number a. `scores` (W, W) has the score of each response: the row is
# the first word, the column the second. Return the advantages of both words of the response with
# the words number `a` and `b`, as a tensor of the shape (2,).
#
# *Hint:* begin at the end, as in section 2. What is $V$ after each possible first word? A value is a
# mean *under the policy*: likely words count more.


# %% tags=["exercise"]
def word_advantages(logits, scores, a, b): ...  # your code


check.word_advantages(word_advantages)


# %% tags=["solution"]
def word_advantages(logits, scores, a, b):
    probs = logits.softmax(-1)
    after_first = (probs[1:] * scores).sum(-1)  # (W,): V after each first word
    at_start = (probs[0] * after_first).sum()  # V at the start
    first = after_first[a] - at_start
    second = scores[a, b] - after_first[a]
    return torch.stack([first, second])


check.word_advantages(word_advantages)

# %% [markdown] tags=["exercise"]
# **Then predict.** The small world is such a world: after a full stop, a second word changes nothing.
# The next cell computes the advantages of *good bad* twice. First the policy is uniform. Then it
# writes *good* nine times out of ten, in every state. Which of the two advantages moves nearer to
# 0, and which further away? Why?

# %% tags=["exercise", "solution"]
small = torch.tensor([[2.0, 0, 1], [0, -2, -1], [0, 0, 0]])  # rows: good, bad, stop
nine_of_ten = torch.tensor([0.9, 0.05, 0.05]).log().expand(4, 3)
print("uniform:    ", word_advantages(torch.zeros(4, 3), small, 0, 1))
print("nine of ten:", word_advantages(nine_of_ten, small, 0, 1))

# %% [markdown] tags=["exercise"]
# <details><summary>What you should see</summary>
#
# The advantage of *good* becomes smaller. This policy nearly always begins with *good*. So *good* is
# hardly better than what it writes there on average.
#
# The advantage of *bad* moves further away, below zero. After *good*, this policy would most likely
# write *good* again, and get the best score. So *bad* loses more than under the uniform policy.
#
# The response and its score are the same. Only the policy is another one.
# </details>

# %% [markdown] tags=["solution"]
# The advantage of *good* moves towards 0, from 1 to 0.19. This policy nearly always begins with
# *good*. So *good* is hardly better than what it writes on average: $V$ of the start is 1.66, and
# after *good* it is 1.85. The advantage of *bad* moves away from 0, from −1 to −1.85. After *good*
# the policy would most likely have reached the score 2. So *bad* loses more.
#
# The response and its score are the same. Advantages belong to a policy.

# %% [markdown] tags=["exercise"]
# **3. Log-probabilities** *(medium, 15 minutes)*. `logits` (B, T, V) are those of whole sequences,
# `ids` (B, T) are their tokens. The first `prompt_length` columns are the (padded) prompt. Return
# the log-probabilities of the response tokens, with the shape (B, T − prompt_length).
#
# *Hint:* write the positions of a sequence with two prompt tokens and three response tokens on
# paper. Which rows do you need? Take `log_softmax`, not the logarithm of `softmax`.


# %% tags=["exercise"]
def token_logprobs(logits, ids, prompt_length): ...  # your code


check.token_logprobs(token_logprobs)


# %% tags=["solution"]
def token_logprobs(logits, ids, prompt_length):
    rows = logits[:, prompt_length - 1 : -1].log_softmax(-1)
    return rows.gather(-1, ids[:, prompt_length:, None])[..., 0]


check.token_logprobs(token_logprobs)

# %% [markdown] tags=["exercise"]
# **4. Draw a word** *(medium, 15 minutes)*. Given `logits` (B, V), a `temperature`, and one number
# between 0 and 1 for each row, `uniform` (B,), return the token that is drawn in each row, (B,), as
# in section 5.
#
# *Hint:* `cumsum` adds up the probabilities from the left. How many of the sums has the number
# passed? The last sum should be 1, but rounding can leave it a little below, and `uniform` above
# it.


# %% tags=["exercise"]
def draw_word(logits, temperature, uniform): ...  # your code


check.draw_word(draw_word)


# %% tags=["solution"]
def draw_word(logits, temperature, uniform):
    cumulative = (logits / temperature).softmax(-1).cumsum(-1)
    return (cumulative <= uniform[:, None]).sum(-1).clamp(max=logits.shape[-1] - 1)


check.draw_word(draw_word)


# %% [markdown] tags=["exercise"]
# **5. Find the bug** *(medium, 15 minutes)*. A colleague fits a table of logits to four responses
# of three tokens. The loss that they report falls quickly. The true surprise of the same table,
# computed by us, does not: the two curves below should be one. What is wrong in `sft_loss`? Mend
# it, run the checker, and draw the curves again.
#
# *Hint:* `mask` is true at real tokens. The bug is not in the masking. (Padding can hold NaN, and NaN
# times 0 is NaN, in the gradient too. So the function replaces padding *before* it computes. This
# part is right.)


# %% tags=["exercise"]
def sft_loss(logits, ids, mask):
    """Mean surprise at real tokens: logits (B, R, V), ids (B, R)."""
    logits = torch.where(mask[..., None], logits, 0.0)
    logprobs = logits.log_softmax(1).gather(-1, ids[..., None])[..., 0]
    return -torch.where(mask, logprobs, 0.0).sum() / mask.sum()


check.sft_loss(sft_loss)


# %% [markdown] tags=["solution"]
# `log_softmax(1)` normalises over the positions of a response. It answers "at which position does
# this word stand?", and there are few positions. The words are in the last axis: `log_softmax(-1)`.


# %% tags=["solution"]
def sft_loss(logits, ids, mask):
    logits = torch.where(mask[..., None], logits, 0.0)
    logprobs = logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    return -torch.where(mask, logprobs, 0.0).sum() / mask.sum()


check.sft_loss(sft_loss)


# %% tags=["exercise", "solution"]
def fit(loss_of, steps=150):
    """Fit one row of logits per position: reported and true surprise."""
    ids = torch.randint(8, (4, 3), generator=torch.Generator().manual_seed(0))
    real = torch.ones(4, 3, dtype=torch.bool)
    logits = torch.zeros(3, 8, requires_grad=True)
    adam = torch.optim.Adam([logits], lr=0.1)
    reported, true = [], []
    for _ in range(steps):
        loss = loss_of(logits.expand(4, 3, 8), ids, real)
        by_position = torch.distributions.Categorical(logits=logits)
        reported.append(loss.item())
        true.append(-by_position.log_prob(ids).mean().item())
        adam.zero_grad()
        loss.backward()
        adam.step()
    return {"reported loss": reported, "true surprise": true}


show.lines(fit(sft_loss), xlabel="step", ylabel="nats per token")

# %% [markdown] tags=["exercise"]
# **6. SFT's step on an empty page** *(medium, 20 minutes)*. Close section 6. Write `sft_step` from
# memory, under the name `my_step`: tokens, log-probabilities, loss, update. Return the loss as a
# number. The next cell runs it on the batches of section 6 and compares.
#
# The functions are `models.encode` (with `max_response=32`) and `models.policy_logprobs`. The model
# is called `policy`, the optimiser `optimizer`. If the first loss differs, look at the mask. If a
# later one differs, look at the update.


# %% tags=["exercise"]
def my_step(rows): ...  # your code


# %% [markdown] tags=["solution"]
# `sft_step` in section 6 of the lesson is the solution. Common slips: a mean over responses instead
# of tokens, padding in the denominator, no minus sign, gradients that are not set to zero after the
# update.

# %% tags=["exercise"]
policy = copy.deepcopy(base)
optimizer = loops.make_optimizer(policy, loops.OptimiserConfig(lr=3e-4))
mine = [my_step(data[index.tolist()]) for index in order]
print("losses, section 6:", by_hand)
print("losses, my_step:  ", mine)
print("the weights are equal:", models.same_weights(policy, trained))

# %% [markdown]
# ## Questions
#
# <details><summary>1. A response of 30 tokens has the log-probability −90. How likely is a typical token of it?</summary>
#
# On average a token has the log-probability −3. So its probability is typically $e^{-3}$, about
# 5 %. The log-probabilities of responses of different lengths cannot be compared as they stand:
# each further token makes the sum smaller.
# </details>
#
# <details><summary>2. Why is the prompt masked in the losses?</summary>
#
# Nobody chose its tokens. The prompt is part of the state, not an action.
# </details>
#
# <details><summary>3. You sample at the temperature 0.7. Which policy does RL improve?</summary>
#
# The policy at 0.7, if all log-probabilities are computed at 0.7. At the temperature 1 the same
# weights are another policy.
# </details>
#
# <details><summary>4. Which do you need to know how good a token was: V or Q?</summary>
#
# $V$ is enough, because $Q(s_t, y_t) = r_t + V(s_{t+1})$. The advantage is this number minus
# $V(s_t)$. So you need the reward, and $V$ twice: after the token and before it. Lesson 05 builds on
# this.
# </details>
#
# <details><summary>5. We give each review the title of another film. Will the SFT model be more surprised? (A guess.)</summary>
#
# Hardly: over the reviews of section 7, its surprise changes by less than 0.001 nats. It knows that
# *a* title is followed by a review. It has four million weights and has not seen these films, so it
# can say little about *which* review.
# </details>
#
# <details><summary>6. "Our SFT model is better than the base model." Which three numbers could show it, and what would each miss?</summary>
#
# The surprise at people's held-out responses misses what the model writes by itself. The share of
# responses that end misses their content. The score by a judge misses what the judge does not see,
# so length and variety belong beside it. Measure all on prompts that no training has seen, the same
# for both models. And give a confidence interval: with other prompts the numbers would be a little
# different.
# </details>
#
# ## Going further
#
# **Two views.** You can see a response as a chain of decisions, one for each token: the *token view*.
# Or you can see it as a *single* decision, the whole response, which gets one score: the *bandit
# view*. (A bandit is a slot machine: you choose once, and you are paid at once.) Both have the
# same goal, a high mean score: the mean over all responses is $V$ of the start.
#
# **Entropy in words.** $e^H$ is the number of equally likely words that would leave you as undecided.
# The three words of section 5 have the entropy 1.03 nats, and $e^H$ is 2.8. At $\tau = 0.5$ it is
# 2.3. For the first token of the review in section 5, $e^H$ is about 5 words at the temperature 0.5, 54
# at 1, and 526 at 1.5.
#
# **Entropy never falls when the temperature rises.** Write $\theta = 1/\tau$ for the inverse
# temperature and $\ell_a$ for the logit of word $a$. Then $\pi(a) = e^{\theta \ell_a} / Z$ with
# $Z = \sum_a e^{\theta \ell_a}$. The derivative of $\log Z$ with respect to $\theta$ is
# $\frac1Z \sum_a \ell_a e^{\theta \ell_a} = \sum_a \pi(a)\, \ell_a$. This is the mean logit under
# $\pi$, written $\mathbb{E}[\ell]$. In the same way, the derivative of $\mathbb{E}[\ell]$ is the
# variance of the logits. The surprise at word $a$ is $\log Z - \theta \ell_a$. Its mean is $H$:
#
# $$ H = \log Z - \theta\, \mathbb{E}[\ell], \qquad
# \frac{dH}{d\theta} = \mathbb{E}[\ell] - \mathbb{E}[\ell] - \theta\, \text{Var}(\ell) = -\theta\, \text{Var}(\ell) \le 0 . $$
#
# In words: lower the temperature, and $\theta$ grows. Then the entropy falls. (If all logits are
# equal, it stays the same.)
#
# **SFT's loss is a KL divergence.** Over all responses that people could write, the loss per
# response is
#
# $$ -\mathbb{E}_{y \sim \text{people}}[\log \pi(y)] = \text{KL}(\text{people} \,\|\, \pi) + H(\text{people}) . $$
#
# The Kullback-Leibler (KL) divergence is the mean of $\log \text{people}(y) - \log \pi(y)$ over
# what people write. The second term, the entropy of people, does not depend on the policy. So
# training can lower only the KL. The KL is never below 0. It is 0 only if the policy gives every
# response the probability that people give it. So the best that SFT can do is to write as people do.
#
# The mean in this KL is over what *people* write. If the policy gives almost no probability to
# something that people write, $\log \pi(y)$ is far below 0, and the KL is large. So the policy must
# cover all that people write. The KL penalty of RL (lesson 07) has the other direction: its mean is
# over what the *policy* writes. It punishes what the reference would not write, and the policy may
# leave out much of what the reference writes.
#
# **Colder imitation.** Section 8 is about the policy at the temperature 1. Sampled colder, the
# imitation can be better than people, if their likely responses are also the better ones. In
# section 8 the mean score at the temperature 0.5 is 0.61 instead of 0.3. This is no general rule.
# If people mostly wrote bad reviews, a low temperature would make them worse.
#
# **Leaving out the bad reviews** is a first step from imitation to RL: SFT on the best of many
# responses. It can only say "more of this". What the policy writes instead of the bad ones is
# decided by how it generalises.
#
# **Two means.** In section 7 we take the mean over all tokens: the gain is 0.16 nats. If you first
# take the mean of each review, and then the mean over reviews, a short review counts as much as a
# long one. The gain is then 0.18 nats, because it is largest at the beginning, and the beginning is
# a larger part of a short review. Lesson 04 comes back to such denominators. The 95 % interval of
# the second number, over films, is from 0.15 to 0.22.
#
# **What the base model had read.** It was pretrained on 24,220 short texts without titles. All 2,682
# reviews of SFT are among them. None of the 971 short reviews of test films is. So the numbers of
# section 7 are held-out numbers for both models. But there was little language left for SFT to
# teach. With another base model, SFT may change more than the format.
#
# **What the libraries do.**
#
# | | here | elsewhere |
# |---|---|---|
# | loss on the prompt | never | TRL: with the columns `prompt` and `completion`, on the completion only; with one column `text`, on everything |
# | EOS | added to every response, and trained | TRL adds it for prompt-completion data. Where padding is EOS and the mask is `ids != pad`, it is lost |
# | temperature in RL | one, for all policies | TRL divides the logits of policy and reference by it; DeepSpeed-Chat ignores it |
# | positions with left padding | counted from the mask | a forward pass without `position_ids` can give wrong log-probabilities |
#
# **References.** Sutton and Barto 2018, *Reinforcement learning*, chapter 3 (the dictionary).
# Ranzato et al. 2016, *Sequence level training with recurrent neural networks* (sequence models as
# policies). Ouyang et al. 2022, *Training language models to follow instructions with human
# feedback* (SFT, and the bandit view). Ziegler et al. 2019, *Fine-tuning language models from human
# preferences*.
#
# *How this lesson is checked:* its loop equals `train_sft` (`tests/loops/test_by_hand.py`), and
# every number of its prose is computed again (`tests/claims/test_lesson_03.py`).
