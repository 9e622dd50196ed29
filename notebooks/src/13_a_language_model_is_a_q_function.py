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
# # 13 · Your language model is secretly a Q-function
#
# After this lesson you can
#
# - compute the soft values $V^*$ and $Q^*$ of a small tree on paper,
# - read $Q^*$ off the best policy's logits, and say what you need besides them,
# - test whether a method that locates errors really finds them.
#
# **You need** lessons 03 to 06 (values, advantages, the KL penalty of a token), lesson 08
# (Bradley-Terry) and lesson 12 (DPO). About 60 minutes to read and 80 for the exercises.

# %%
import copy
import math

import pandas as pd
import torch

from minirlhf import core, evaluate, experiments, loops, models, show, tasks
from minirlhf.classroom import FAST, check

torch.set_num_threads(1)  # sums in a fixed order, so that two runs can be equal

# %% [markdown]
# ## 1. The idea: a judgement of every token
#
# Direct preference optimisation (DPO) gets one label for a pair of whole responses. But in its policy
# every *token* has its own **implicit reward**
# $\beta \log \frac{\pi(y_t \mid s_t)}{\pi_{\text{ref}}(y_t \mid s_t)}$ ($\log$ is the natural
# logarithm). What does it mean? **At DPO's optimum it is an advantage:**
#
# $$ \beta \log \frac{\pi^*(y_t \mid s_t)}{\pi_{\text{ref}}(y_t \mid s_t)} = Q^*(s_t, y_t) - V^*(s_t)
# \quad \text{for every token at every prefix.} $$
#
# - $y$ is a response to the prompt $x$, and $y_t$ is its token at position $t$. The *prefix* $s_t$ is
#   the prompt and the tokens before $y_t$. $\pi_{\text{ref}}$ is the reference, and $\beta$ is the KL
#   coefficient.
# - $\pi^*$ is the best policy: the one with the highest expected reward minus KL penalty.
# - $V^*(s_t)$ is what $\pi^*$ still expects to get from this prefix on: reward minus KL penalties.
# - $Q^*(s_t, y_t)$ is what it expects to get *after* the next token, if that is $y_t$. If $y_t$ ends
#   the response, $Q^*$ is the reward. The KL penalty of $y_t$ itself is not in $Q^*$, unlike in
#   lesson 06.
#
# In words: $V^*$ is a kind of mean of the $Q^*$ at a prefix, and a token is positive if its $Q^*$ is
# above it. **One difference from lesson 05:** there, the advantages at a prefix have the mean 0 under
# the policy. The mean of $Q^* - V^*$ under $\pi^*$ is the expected KL penalty of the next token.
#
# A function that gives $Q$ for each token at each prefix is a **Q-function**. The equation gives
# $Q^*$ except for one unknown number at each prefix, $V^*(s_t)$. Section 3 finds these numbers, too.
# Then the policy is *secretly a Q-function* (Rafailov et al. 2024).

# %% [markdown]
# ## 2. Soft values, on a tree of two tokens
#
# Take two tokens: *good*, and a full stop that ends the response. A response has at most two
# tokens, so there are three:
#
# | response | *good good* | *good .* | *.* |
# |---|---|---|---|
# | reward $r$ | 2 | 1 | 0 |
#
# In the reference both tokens have the probability 1/2 at each prefix. We choose $\beta = 1 / \log 2$
# = 1.44. Then $e^{r/\beta} = 2^r$, and $\beta \log$ is $\log_2$.
#
# **One prefix.** Start with the last prefixes, and suppose that $Q^*(s_t, y_t)$ is known for each next
# token $y_t$. Which $\pi(y_t \mid s_t)$ is best? Each token also pays its KL penalty, as in
# lesson 06. So we maximise
#
# $$ \sum_{y_t} \pi(y_t \mid s_t) \Big[ Q^*(s_t, y_t) - \beta \log \frac{\pi(y_t \mid
# s_t)}{\pi_{\text{ref}}(y_t \mid s_t)} \Big] . $$
#
# One prefix at a time is enough. We go from the end to the start, so the choices after $y_t$ are already
# the best ones. The tokens before $y_t$ decide only how *often* we reach $s_t$.
#
# This is the objective of lesson 12, with tokens for responses and $Q^*$ for the reward. So its best
# policy is Gibbs:
#
# $$ \pi^*(y_t \mid s_t) = \frac{\pi_{\text{ref}}(y_t \mid s_t)\, e^{Q^*(s_t, y_t) / \beta}}{e^{V^*(s_t)
# / \beta}} , \qquad V^*(s_t) = \beta \log \sum_{y_t} \pi_{\text{ref}}(y_t \mid s_t)\, e^{Q^*(s_t, y_t) /
# \beta} . $$
#
# In words: the best policy multiplies each token's probability by a factor that grows with $Q^*$.
# The denominator makes the sum one. It defines the **soft value** $V^*$: $\beta \log$ of the mean of
# $e^{Q^*/\beta}$ under the reference.
#
# Solve the formula of $\pi^*$ for $Q^* - V^*$, and you have the equation of section 1. So the KL penalty
# in the bracket above is $Q^* - V^*$. Put it in, and the bracket is $V^*$ for every token:
#
# $$ \sum_{y_t} \pi^*(y_t \mid s_t) \Big[ Q^*(s_t, y_t) - \big( Q^*(s_t, y_t) - V^*(s_t) \big) \Big]
# = \sum_{y_t} \pi^*(y_t \mid s_t)\, V^*(s_t) = V^*(s_t) . $$
#
# So the maximum is worth $V^*$.
#
# **All prefixes.** Now walk back. A token that ends the response has $Q^* = r$. Any other token has
# the $V^*$ of the longer prefix. At the prefix *good*, both tokens end the response:
#
# | token after *good* | $\pi_{\text{ref}}$ | $Q^*$ | $\pi_{\text{ref}} \cdot 2^{Q^*}$ | $\pi^*$ | $Q^* - V^*$ |
# |---|---|---|---|---|---|
# | *good* | 1/2 | 2 | 2 | 2/3 | 2 − 1.58 = 0.42 |
# | full stop | 1/2 | 1 | 1 | 1/3 | 1 − 1.58 = −0.58 |
# | sum | | | 3, so $V^* = \log_2 3$ = 1.58 | 1 | |
#
# $V^*$ is a **soft mean** of 2 and 1: above their mean under the reference, 1.5, and below the
# larger one. (Exercise 2.) The whole tree, from right to left:
#
# ```
# start, V* = ?
#   ├── good   Q* = 1.58  ◄──  prefix "good", V* = 1.58
#   │                            ├── good   Q* = 2  ◄──  reward of "good good"
#   │                            └── .      Q* = 1  ◄──  reward of "good ."
#   └── .      Q* = 0  ◄──  reward of "."
# ```
#
# **Predict.** Do the start on paper. What are $V^*$, the two differences $Q^* - V^*$ and $\pi^*$? The empty
# response has the reward 0, so it is neither good nor bad. Is the implicit reward of its full stop
# negative, zero or positive?

# %% tags=["predict"]
# two words, at most two in a response; its reward is the number of "good"
tree = core.World.from_reward(("good", "."), 2, lambda y: float(y.count("good")))
tree_values, tree_q = tree.optimal_values(beta=1 / math.log(2))  # walks back: V*, Q*
gains = tree_q - tree_values[:, None]
rows = {"V*": tree_values, "good: Q* - V*": gains[:, 0], ".: Q* - V*": gains[:, 1]}
rows["good: pi*"] = 0.5 * 2 ** gains[:, 0]  # pi_ref times e^((Q* - V*) / beta)
pd.DataFrame(rows, index=["start", "after good"]).round(2)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# The two terms are $\tfrac12 \cdot 3$ and $\tfrac12 \cdot 1$. Their sum is 2, so $V^*$ = 1. *Good*
# has 1.58 − 1 = 0.58, and the full stop has 0 − 1 = −1. $\pi^*$ is 3/4 for *good* and 1/4 for the full
# stop.
#
# So the full stop is the worst token of the tree, although its response is not bad. **An advantage
# compares a token with the other choices at its prefix.** It does not say whether the response is
# good.
# </details>

# %% [markdown]
# ## 3. From DPO to the tokens, and on to the logits
#
# Why does training on whole responses lead to this tree? The chain has four links:
#
# > - (a) **DPO's optimum is the Gibbs policy over responses** (lesson 12). DPO's loss is averaged over
# >   *all* pairs of responses. The labels are shares of many people, who follow Bradley-Terry with
# >   the reward $r$. The policy can be any distribution, and training reaches the minimum. Then
# >   $\pi^*(y \mid x) \propto \pi_{\text{ref}}(y \mid x)\, e^{r(x, y)/\beta}$. It maximises the
# >   expected reward minus the KL penalty.
# > - (b) **The probabilities of responses fix those of tokens.** Add up $\pi^*(y \mid x)$ of all
# >   responses that begin with $s_t$, and of those that go on with $y_t$. $\pi^*(y_t \mid s_t)$ is the
# >   second sum divided by the first.
# > - (c) **The objective is a sum over tokens.** $\log \pi(y \mid x)$ is the sum over the tokens. So the
# >   KL penalty of a response is the sum of what its tokens pay.
# > - (d) **This sum is maximised by walking back** (section 2). So at every prefix
# >   $\beta \log (\pi^* / \pi_{\text{ref}}) = Q^* - V^*$.
#
# The same links on the tree:
#
# | link | numbers |
# |---|---|
# | (a) | $\pi_{\text{ref}} \cdot 2^r$ is $\tfrac14 \cdot 4$ = 1 for *good good*, $\tfrac14 \cdot 2$ = 1/2 for *good .* and $\tfrac12 \cdot 1$ = 1/2 for the full stop alone. The sum is 2, so $\pi^*$ is 1/2, 1/4 and 1/4. (Lesson 12 calls this sum $Z$, and $\beta \log Z$ = 1 is $V^*$ of the start.) |
# | (b) | The first *good*: 1/2 + 1/4 = 3/4. The second *good*: 1/2 divided by 3/4, which is 2/3. |
# | (c) | *Good good* pays $\log_2 \frac{1/2}{1/4}$ = 1. Its tokens pay $\log_2 \frac{3/4}{1/2}$ = 0.58 and $\log_2 \frac{2/3}{1/2}$ = 0.42, together 1. |
# | (d) | Walking back in section 2 gave the same: $\pi^*$ is 3/4 and 2/3, and $Q^* - V^*$ is 0.58 and 0.42. |
#
# **Where are the logits?** A network's logits $z$ are $\log \pi^*$ plus one number per prefix. So by link
# (d)
#
# $$ \beta \big[ z(s_t, y_t) - \log \pi_{\text{ref}}(y_t \mid s_t) \big] = Q^*(s_t, y_t) + c(s_t) . $$
#
# In words: $\beta$ times the logit, measured from the reference, **is $Q^*$ up to one number per
# prefix**, $c(s_t)$. Training does not choose it: a number that is added to all logits of a prefix changes
# no probability. So we go on with $\log \pi^*$. For it the missing number is $V^*(s_t)$.
#
# **The missing numbers.** Add up the implicit rewards of *good good*: 0.58 + 0.42 = 1. Its reward is
# 2, and $V^*$ at the start is 1. So the sum is $r - V^*(s_0)$, where $s_0$ is the prompt alone. This
# holds for all responses. $Q^*$ of a token is $V^*$ of the next prefix, so these two cancel. The $Q^*$ of
# the last token remains, which is $r$, and $V^*(s_0)$:
#
# $$ \sum_t \beta \log \frac{\pi^*(y_t \mid s_t)}{\pi_{\text{ref}}(y_t \mid s_t)} = \sum_t \big[ Q^*(s_t,
# y_t) - V^*(s_t) \big] = r(x, y) - V^*(s_0) . $$
#
# Now take $\pi^*$, $\pi_{\text{ref}}$ and **one reward**: *good good* has 2. Then
#
# - $V^*$ at the start is 2 − 1 = 1. So *good* has $Q^*$ = 1 + 0.58 = 1.58, and the full stop has 1 − 1
#   = 0.
# - $Q^*$ of the first *good* is $V^*$ of the prefix *good*. So there *good* has 1.58 + 0.42 = 2, and
#   the full stop has 1.58 − 0.58 = 1.
#
# **DPO's optimum, its reference and one reward per prompt are a Q-function.** (Exercise 5.)

# %% [markdown]
# ## 4. What a sum of tokens does not prove
#
# Take a policy that nobody trained. It gives *good* 1/4 at the start, and 1/2 after *good*:
#
# | token of *good good* | $\pi$ | $\pi_{\text{ref}}$ | $\log_2 (\pi / \pi_{\text{ref}})$ | $Q^* - V^*$ |
# |---|---|---|---|---|
# | first *good* | 1/4 | 1/2 | −1 | 0.58 |
# | second *good* | 1/2 | 1/2 | 0 | 0.42 |
# | product, sum | 1/8 | 1/4 | −1 | 1 |
#
# The response has $\log_2 \frac{1/8}{1/4}$ = −1, too. The sum fits, and both tokens are wrong.
# **Tokens add up for every policy**: the logarithm of a product is the sum of the logarithms. Only
# a comparison with the true $Q^* - V^*$ can fail.

# %% [markdown]
# ## 5. The exact world: DPO's tokens beside the truth
#
# So we compare, in the world of lesson 12. Its words are *a*, *b* and a dot that ends the response.
# Its 15 responses have random rewards. DPO gets all pairs, with the exact shares of people, and
# sees no rewards. There are 7 prefixes with 3 next words: 21 implicit rewards.

# %% tags=["shared"]
world, beta = core.World.random(3, 3, seed=0), 0.5
values, q = world.optimal_values(beta=beta)  # V*, Q* from the true rewards
truth = q - values[:, None]
ref = world.sequence_logprobs(world.ref_logits)
i, j = torch.triu_indices(15, 15, 1)  # all pairs
share = core.preference_probability(world.rewards[i], world.rewards[j])


def token_rewards(share, steps=200):
    """Train by DPO; the implicit reward of every word at every prefix, at each step."""
    logits, path = world.ref_logits, []
    for _ in range(steps + 1):
        path.append(beta * (logits.log_softmax(-1) - world.ref_logits.log_softmax(-1)))
        logits = logits.detach().requires_grad_(True)
        p = world.sequence_logprobs(logits)
        prefers_i = core.dpo(p[i], p[j], ref[i], ref[j], beta=beta)
        prefers_j = core.dpo(p[j], p[i], ref[j], ref[i], beta=beta)
        (share * prefers_i + (1 - share) * prefers_j).mean().backward()
        logits = (logits - 20 * logits.grad).detach()  # 20: large, as there is no noise
    return torch.stack(path).detach()


# %% [markdown]
# A row is a prefix, a column is the next word. At the left is the truth, at the right what DPO's
# policy says after 200 steps:

# %% tags=["shared"]
by_shares = token_rewards(share)
prefixes = ["start", "a", "b", "aa", "ab", "ba", "bb"]
assert torch.allclose(by_shares[-1], truth, atol=2e-4)
tables = {"Q* - V*": pd.DataFrame(truth.numpy(), prefixes, world.vocab)}
tables["DPO"] = pd.DataFrame(by_shares[-1].numpy(), prefixes, world.vocab)
pd.concat(tables, axis=1).round(2)

# %% [markdown]
# They agree at all 21 places.
#
# **Predict.** Now the labels are worse: *one vote per pair*, or *the majority always wins*. Lesson
# 12 showed that both lead to a wrong policy. But are the *signs* wrong, too? For each of the two
# kinds, guess how many of the 21 signs are right after 200 steps. (Always saying *negative* is right
# for 13.) One way to reason: the signs depend on the *order* of the responses and on the *sizes* of
# their rewards. What is left of these in each kind of label?

# %% tags=["predict"]
votes = torch.Generator().manual_seed(0)
labels = {"shares of many people": share}
labels["one vote per pair"] = torch.bernoulli(share, generator=votes)
labels["the majority always wins"] = (share > 0.5).double()
errors, right_sign = {}, {}
for name, label in labels.items():
    path = token_rewards(label)
    errors[name] = (path - truth).abs().amax((1, 2))
    right_sign[name] = ((path[-1] > 0) == (truth > 0)).sum().item()
print("signs that are right at the end, of 21:", right_sign)
show.lines(errors, xlabel="steps of training", ylabel="largest error", log="y")

# %% [markdown]
# <details><summary>What you should see</summary>
#
# The figure shows the largest error of the 21, in reward units.
#
# - **Shares of many people**: all 21 signs are right. The error goes to zero, and after 200 steps it
#   is 0.0001.
# - **One vote per pair**: 19 of the 21 signs are right. Of the 105 votes, 27 go to the worse response.
#   *b.* is the second best response, and it loses to five worse ones. So at the prefix *b* the dot becomes
#   negative, and *a* becomes positive. The error stops at 1.3.
# - **The majority always wins**: 20 of the 21 signs are right. The order of any two responses is
#   exact, but the sizes run away: there is no optimum (lesson 12). The error first falls from 3.2, then
#   grows to 10.3. Larger sizes act as a smaller $\beta$ does: $V^*$ moves towards the largest $Q^*$. At
#   the start the true $Q^*$ of *b* is above $V^*$ by only 0.09. With larger sizes $V^*$ passes it, and the
#   implicit reward of *b* falls to −0.14.
#
# So wrong labels spoil the sizes sooner than the signs. Six other draws of votes gave 17 to 20,
# and six other worlds 15 to 21.
# </details>

# %% [markdown]
# ## 6. A real run: the words that moved
#
# In section 8 of lesson 12 the strongest token of a criticism was *ering*, of *offering*. One pair proves
# nothing. So we train in the same way, for twenty steps with $\beta = 0.1$. Then we take
# the 221 reviews (of 23 films) of 600 held-out pairs, and the mean implicit reward of each token that
# occurs at least eight times. If it showed the sentiment, words of praise would be the highest and words
# of blame the lowest.

# %%
sft, tokenizer = models.load_policy("tiny-reviews-sft")
reviews = tasks.reviews.preference_pairs
pairs = reviews("reward", 4000, seed=0, max_tokens=32, tokenizer=tokenizer)
config = loops.DPOConfig(steps=2 if FAST else 20, beta=0.1)
trained, history = loops.train_dpo(copy.deepcopy(sft), tokenizer, pairs, config)

# %% [markdown]
# The table has the six lowest tokens, then the six highest. *size* is how often the token occurs, and
# · is a leading space.

# %%
many = reviews("val", 600, seed=3, max_tokens=32, tokenizer=tokenizer)[:]
films = pd.DataFrame({"prompt": many["prompt"] * 2})
films["response"] = many["chosen"] + many["rejected"]
films = films.drop_duplicates()  # each review once
batch = models.encode(tokenizer, list(films.prompt), list(films.response))
options = {"temperature": 1.0, "beta": 0.1, "alternatives": 0}  # list no other tokens
both = {"actor": trained, "reference": sft}
words = evaluate.token_table(batch, tokenizer, **options, **both)  # one row per token
words["token"] = words.token.map(show.visible)  # a leading space as a dot
means = words.groupby("token").implicit_reward.agg(["mean", "size"])
means = means[means["size"] >= 8].sort_values("mean").round(3)
pd.concat([means.head(6), means.tail(6)])

# %% [markdown]
# *Bad* is among the lowest. But one word of blame among twelve tokens can be chance. The others are
# fillers and pieces, such as *about*, *so* and the full stop. No word of praise is at the top.

# %% [markdown]
# ## 7. Planted errors: does DPO find the place?
#
# Where is the true $Q^* - V^*$ known? `tiny-steps` (lesson 11) writes calculations, one character per
# token. It answers `8*4-2=` with two steps, `32-2=` and `30`. We take the right response `32-2=30`,
# make **one digit wrong**, and go on from there without another error: `37-2=35`. Only the 7 is wrong,
# because 37 − 2 *is* 35.
#
# **What is the truth here?** Let the reward be 1 for the right response, and 0 for any other.
#
# - After the 7 the reward is 0, whatever follows. So the best policy stays at the reference, pays no KL
#   penalty, and $V^* = 0$. The 7 itself gives away all of $V^*$.
# - The tokens behind it have $Q^* = V^* = 0$.
# - Each right token before the 7 is the only one at its prefix with $Q^*$ above 0. So its $Q^*$ is above
#   the soft mean.
#
# **So the planted digit has the lowest $Q^* - V^*$.** At DPO's optimum the implicit reward would find it.
#
# We train DPO for 20 steps of 64 such pairs (right, planted error), and ask about 400 *other* problems.
# Each of two methods blames one token:
#
# - **Implicit reward**: the token with the lowest log-ratio $\log (\pi / \pi_{\text{ref}})$ after DPO.
# - **Surprisal**: the token that the model *before* DPO expected least, the highest $-\log \pi_{\text{ref}}$.

# %% tags=["shared"]
solver, digits = models.load_policy("tiny-steps")
train = tasks.arithmetic.problems("train", 5000, seed=1, levels=experiments.LEVELS)
practice = experiments.planted_pairs(train, seed=0)
practice = practice.select_columns(["prompt", "chosen", "rejected"])
settings = {"steps": 2 if FAST else 20, "batch_size": 64, "beta": 0.1}
config = loops.DPOConfig(**settings, optimiser=loops.OptimiserConfig(lr=3e-4))
learner, _ = loops.train_dpo(copy.deepcopy(solver), digits, practice, config)

problems = tasks.arithmetic.problems("test", 400, levels=experiments.LEVELS)
asked = experiments.planted_pairs(problems, seed=0)
wrong = models.encode(digits, asked["prompt"], asked["rejected"])
with torch.no_grad():
    before = models.policy_logprobs(solver, wrong)
    change = models.policy_logprobs(learner, wrong) - before

# %% [markdown]
# **Predict.** In what share of the 400 cases does each method blame the planted digit? A token drawn
# at random is the right one in 11 %. One way to reason: what has each method seen of such errors? And how
# likely is a 7 here for a model that calculates well?

# %% tags=["shared"]
place, mask = torch.tensor(asked["place"]), wrong.response_mask
last = mask.sum(1) - 2  # the last digit; EOS stands behind it


def where_blamed(evidence, cases):
    """Where the token with the lowest evidence stands: its share of these cases."""
    blamed = torch.where(mask, evidence, torch.inf).argmin(1)[cases]
    hit, at_end = blamed == place[cases], blamed == last[cases]
    parts = {"the planted digit": hit, "the last digit, not planted": at_end & ~hit}
    parts["another token"] = ~hit & ~at_end
    return {name: part.double().mean().item() for name, part in parts.items()}


# %% tags=["predict"]
methods = {"surprisal": before, "implicit reward": change}
kinds = {"all cases": place <= last, "planted before the last digit": place < last}
found = {
    (kind, name): where_blamed(evidence, cases)
    for kind, cases in kinds.items()
    for name, evidence in methods.items()
}
pd.DataFrame(found).round(2)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# | share that is found | all 400 cases | the 312 with an earlier planted digit |
# |---|---|---|
# | surprisal, before DPO | 94 % | 93 % |
# | implicit reward, after DPO | 25 % | 20 % |
# | rule: always the last digit | 22 % | 0 % |
# | a random token | 11 % | 10 % |
#
# **The method without training wins by far.** The fair comparison with the rule is the right column,
# where it finds nothing. There DPO has learned something, but little. In 39 % of all cases the implicit
# reward blames the last digit, although another one was planted.
#
# Two other seeds of DPO find 33 % and 30 % of all cases, and blame a last digit that was not planted in
# 31 % and 26 %. More training does not help: after 300 steps (`minirlhf experiment planted`, three
# seeds) the implicit reward finds 27 %.
# </details>
#
# One case. Both strips are in nats. Orange is low, and the colour
# ends at −6. (A log-probability just below zero is written +0.00.)

# %%
case = asked["prompt"].index("8*4-2=")
tokens = [*asked["rejected"][case], "EOS"]
size = len(tokens)
strips = {"log π_ref, before DPO": (tokens, before[case][:size])}
strips["log (π / π_ref), after DPO"] = (tokens, change[case][:size])
show.token_strips(strips, heading="8*4-2=   (planted: the 7)", limit=6)

# %% [markdown]
# Before DPO, the 7 is by far the least likely token, and the last 5 is nearly certain. DPO has pushed
# down this *5* by 5.41 nats, and the 7 by 1.04.
#
# **Why is a real run so far from the theorem?** The conditions of (a) in section 3 fail:
#
# - Labels are hard: one response of a pair always wins. So there is no optimum (section 5).
# - Nearly all responses are in no pair. The loss says nothing about them.
# - The policy is a network: a push at one prefix moves others.
# - Training stops early.
#
# And the loss moves a margin between two sums. It does not say which token must move.
# We do not know why it is so often the last digit.
#
# **Is the test fair?** Planted digits are surprising by construction, so surprisal has it easy. On 218 of
# the model's own errors, after DPO on its own responses, surprisal finds the false step in 69 % and the
# implicit reward in 69 %. No method is shown to beat the rule *always the last step* (Going further).
#
# ## 8. What the numbers can be used for
#
# | use | what we saw |
# |---|---|
# | compare two responses by their sums | this is what DPO trains: 59 % of test pairs after 100 steps (lesson 12) |
# | see what training has changed, token by token | exact, for any policy: it is a log-ratio |
# | blame a token for an error | not without beating surprisal and the last position |
# | a reward for each step of reasoning | open: Going further has a method (PRIME) that needs many responses with checked answers |
#
# ## What to remember
#
# - The soft value $V^*$ is $\beta \log$ of the mean of $e^{Q^*/\beta}$ under the reference. $Q^*$ of a
#   token is the reward, or $V^*$ of the next prefix.
# - At DPO's optimum $\beta \log (\pi/\pi_{\text{ref}})$ of a token is $Q^* - V^*$. The logits are $Q^*$
#   up to one number per prefix. One known reward per prompt gives all these numbers.
# - Tokens add up to their response for any policy. This proves nothing.
# - After a real run the implicit rewards show *what has moved*. On planted errors, which are surprising by
#   construction, they are far worse than surprisal. On the model's own errors the two tie at best.
# - Compare a method that locates errors with surprisal, the last position and chance.
#
# ## Exercises
#
# Solutions are in `solutions/13_a_language_model_is_a_q_function.ipynb`.

# %% [markdown] tags=["exercise"]
# **1. The value of a prefix** *(easy, 10 minutes)*. At one prefix you have the reference's
# log-probabilities of the next tokens, (V,), their $Q^*$, (V,), and beta. Return $V^*$, one number.
# It must be finite for a $Q^*$ of 900, where $e^{900}$ is infinite.
#
# *Hint:* take the logarithm of every term of the sum first. PyTorch has a function that adds up numbers
# which are given by their logarithms.


# %% tags=["exercise"]
def soft_value(ref_logprobs, q, beta): ...  # your code


check.soft_value(soft_value)


# %% tags=["solution"]
def soft_value(ref_logprobs, q, beta):
    return beta * torch.logsumexp(ref_logprobs + q / beta, 0)


check.soft_value(soft_value)

# %% [markdown] tags=["exercise"]
# **2. Sketch the soft mean** *(easy, 10 minutes)*. In the tree of section 2, sketch on paper $V^*$ at
# the start against $\beta$, on a logarithmic axis from 0.01 to 1000. First write down what it
# approaches at both ends. Does it rise or fall between them? Then draw the curve with `show.lines`.
#
# *Hint:* what does the best policy do if leaving the reference is very expensive? And if it is free?
# `tree.optimal_values(beta=...)` gives $V^*$ of both prefixes, the start first. `show.lines({"V*":
# values}, betas, log="x")` draws a list of values against a list of betas.
#
# <details><summary>What you should see</summary>
#
# $V^*$ falls all the way. Near $\beta$ = 0 leaving the reference is free, and $V^*$ is the largest
# reward, 2. For very large $\beta$ the best policy stays at the reference, and $V^*$ is the mean reward
# there, 0.75.
# </details>

# %% tags=["exercise"]
# your code

# %% [markdown] tags=["solution"]
# If leaving the reference is free ($\beta$ near 0), the policy writes the best response, and $V^*$
# is the largest reward, 2. If it is very expensive, the best policy stays at the reference. Then
# $V^*$ is the mean reward under the reference:
# $\tfrac14 \cdot 2 + \tfrac14 \cdot 1 + \tfrac12 \cdot 0 = 0.75$. Between them it falls all the
# way: each policy pays more for the same KL divergence when $\beta$ grows, so the best of them gets
# less.

# %% tags=["solution"]
tree = core.World.from_reward(("good", "."), 2, lambda y: float(y.count("good")))
betas = torch.logspace(-2, 3, 60).tolist()
starts = []
for beta_now in betas:
    starts.append(tree.optimal_values(beta=beta_now)[0][0].item())
limits = {"largest reward": 2, "mean under the reference": 0.75}
axes = {"xlabel": "beta", "ylabel": "V* at the start", "log": "x"}
show.lines({"V*": starts}, betas, reference=limits, **axes)

# %% [markdown] tags=["exercise"]
# **3. The critic inside the policy** *(medium, 10 minutes)*. `logprobs` and `ref_logprobs`, (B, R),
# belong to a policy at DPO's optimum and to its reference. `rewards`, (B,), are the rewards of the
# whole responses. Return (B, R): $V^*(s_t)$ *before* each token, and 0 in the padding.
#
# *Hint:* what is still to come from a token on, in implicit rewards? At the end of the response the
# known number is the reward, so sum from that end. Try *good good* on paper: the values are 1 and
# 1.58. Padding can hold NaN, and NaN times 0 is NaN. Replace padding with
# `torch.where(mask, x, 0.0)` before you compute.


# %% tags=["exercise"]
def prefix_values(logprobs, ref_logprobs, rewards, mask, beta): ...  # your code


check.prefix_values(prefix_values)


# %% tags=["solution"]
def prefix_values(logprobs, ref_logprobs, rewards, mask, beta):
    gain = torch.where(mask, logprobs, 0.0) - torch.where(mask, ref_logprobs, 0.0)
    to_come = (beta * gain).flip(1).cumsum(1).flip(1)  # from this token to the end
    return torch.where(mask, rewards[:, None] - to_come, 0.0)


check.prefix_values(prefix_values)

# %% [markdown] tags=["exercise"]
# **4. Find the bug** *(easy, 10 minutes)*. A colleague computes the value of *any* policy at one prefix
# at which every next token ends the response: the expected $Q$, less the KL penalty. The first three
# arguments have the shape (V,). DPO trains a policy in such a world, and the second cell draws its
# value. The curve should rise to $V^*$, the dotted line. Run both cells first. Why is this curve
# impossible? Then find the bug on paper, with the hint. Mend it, run the checker, and draw the curve
# again.
#
# *Hint:* with `log_target=True` and `reduction="sum"`, `kl_div(input, target)` computes
# $\sum e^{\text{target}} (\text{target} - \text{input})$. Take two tokens, a reference with (0.5,
# 0.5), a policy with (0.9, 0.1) and all $Q$ zero. Compute the value with the formula of section 2,
# on paper and with the colleague's function.
#
# <details><summary>Why is the curve impossible?</summary>
#
# It rises above $V^*$. But $V^*$ is the most that any policy can get at this prefix (section 2). So no
# policy's value can be above it.
# </details>


# %% tags=["exercise"]
def state_value(logprobs, ref_logprobs, q, beta):
    penalty = torch.nn.functional.kl_div(
        logprobs, ref_logprobs, reduction="sum", log_target=True
    )
    return (logprobs.exp() * q).sum() - beta * penalty


check.state_value(state_value)

# %% [markdown] tags=["solution"]
# The curve rises above $V^*$, but no policy can be better than the best one. PyTorch's
# `kl_div(input, target)` weights the log-ratios with the probabilities of its *second* argument. So the
# colleague computes $\mathrm{KL}(\pi_{\text{ref}} \,\|\, \pi)$. The policy chooses the tokens, so its KL
# penalty is $\mathrm{KL}(\pi \,\|\, \pi_{\text{ref}})$: swap the two arguments, or write the mean out, as
# below. In the hint's case the right value is −0.37 and the colleague's −0.51, both for $\beta = 1$.
# Before training both penalties are zero, so a test with an untrained policy does not find the bug.


# %% tags=["solution"]
def state_value(logprobs, ref_logprobs, q, beta):
    penalty = beta * (logprobs.exp() * (logprobs - ref_logprobs)).sum()
    return (logprobs.exp() * q).sum() - penalty


check.state_value(state_value)


# %% tags=["exercise", "solution"]
def value_in_training(value, steps=60, beta=0.5):
    """The policy's value at each step of DPO, in a world of one-token responses."""
    world, path = core.World.random(5, 1, seed=2), []
    logits, ref = world.ref_logits, world.sequence_logprobs(world.ref_logits)
    i, j = torch.triu_indices(5, 5, 1)
    share = core.preference_probability(world.rewards[i], world.rewards[j])
    for _ in range(steps):
        logits = logits.detach().requires_grad_(True)
        p = world.sequence_logprobs(logits)
        path.append(value(p.detach(), ref, world.rewards, beta).item())
        prefers_i = core.dpo(p[i], p[j], ref[i], ref[j], beta=beta)
        prefers_j = core.dpo(p[j], p[i], ref[j], ref[i], beta=beta)
        (share * prefers_i + (1 - share) * prefers_j).mean().backward()
        logits = logits - 5 * logits.grad  # the step size that fits this world
    return path, world.optimal_values(beta=beta)[0].item()


curve, ceiling = value_in_training(state_value)
show.lines(
    {"state_value": curve}, reference={"V*": ceiling}, xlabel="step", ylabel="value"
)

# %% [markdown] tags=["exercise"]
# **5. Read the Q-function** *(medium, 20 minutes)*. `by_shares[-1]` of section 5, (7, 3), holds the
# implicit rewards of a policy that DPO has trained without seeing a reward. Now somebody tells you one
# reward, that of the response with the dot alone: `world.rewards[-1]`. Compute all 21 values $Q^*$, (7,
# 3), and compare them with `q`. Where in your table do you now see the rewards of the other 14 responses?
#
# *Hint:* section 3 does it for the tree. Begin with $V^*$ at the start, then take the prefixes in the
# order of `prefixes`: *a* and *b* are rows 1 and 2, and prefix `k` has its longer prefixes in rows
# `2 * k + 1` and `2 * k + 2`.

# %% tags=["exercise"]
# your code

# %% [markdown] tags=["solution"]
# The dot alone is one token, so $V^*$ at the start is its reward minus its implicit reward. From there
# walk *forward*: $V^*$ of a longer prefix is $V^*$ of the prefix plus the implicit reward of the word
# between. At last add $V^*$ to each row. A word that ends its response has $Q^* = r$: these are the dots
# in every row, and all words in the last four rows. So one reward and DPO's policy give all 15 rewards.

# %% tags=["solution"]
gains_of_dpo = by_shares[-1]
found_v = torch.zeros(7, dtype=torch.float64)
found_v[0] = world.rewards[-1] - gains_of_dpo[0, 2]
for k in range(3):
    for word in (0, 1):
        found_v[2 * k + 1 + word] = found_v[k] + gains_of_dpo[k, word]
found_q = gains_of_dpo + found_v[:, None]
print("largest error:", round((found_q - q).abs().max().item(), 4))
pd.DataFrame(found_q.numpy(), prefixes, world.vocab).round(2)

# %% [markdown] tags=["exercise"]
# **6. Test a method that locates errors** *(medium, 20 minutes)*. Each of B responses has one wrong
# digit, at the position `place`, (B,). A method gives `evidence`, (B, R), and blames the token of the
# response whose evidence is lowest. The last token is EOS, and the last digit stands just before it.
# Return (3,), three shares of the responses in which the wrong digit is blamed:
#
# - by the method,
# - by the rule *always the last digit*,
# - by drawing a token of the response at random, EOS included: the expected share.
#
# *Hint:* responses differ in length. Padding can hold NaN or any number, and it must never be blamed.
#
# Then use your function. **Surprisal after DPO** blames the token with the lowest $\log \pi$ of the
# *trained* policy. Section 7 has `before`, `change`, `place` and `mask`. Guess first: is it better
# than surprisal before DPO? Compare both on all cases, and on those with an error before the last digit.
#
# <details><summary>What you should see</summary>
#
# Surprisal after DPO finds 90 % of all cases and 88 % of those with an earlier error. It beats the rule
# and chance. But surprisal before DPO finds 94 % and 93 %. This training has made the method worse, and
# 300 steps make it worse still: 75 % of all cases (Going further).
# </details>


# %% tags=["exercise"]
def blame_shares(evidence, place, mask): ...  # your code


check.blame_shares(blame_shares)


# %% tags=["solution"]
def blame_shares(evidence, place, mask):
    sizes = mask.sum(1)
    blamed = torch.where(mask, evidence, torch.inf).argmin(1)
    found_by_method, found_by_rule = blamed == place, sizes - 2 == place
    shares = [found_by_method.float(), found_by_rule.float(), 1 / sizes]
    return torch.stack(shares).mean(1)


check.blame_shares(blame_shares)

# %% tags=["solution"]
earlier = place < last
scores = {}
for when, seen in {"before DPO": before, "after DPO": before + change}.items():
    scores[when, "all"] = blame_shares(seen, place, mask)
    scores[when, "earlier"] = blame_shares(seen[earlier], place[earlier], mask[earlier])
pd.DataFrame(scores, index=["surprisal", "last digit", "random"]).round(2)

# %% [markdown]
# ## Questions
#
# <details><summary>1. V or Q: which of them is PPO's critic?</summary>
#
# $V$. It predicts from the prefix, before the next token is known. The advantage is made of rewards and
# $V$. The policy itself, by this lesson, holds $Q^* - V^*$.
# </details>
#
# <details><summary>2. You add the same number to all logits of one prefix. What changes?</summary>
#
# Not the probabilities. So not the policy, its loss or its implicit rewards. But $\beta (z - \log
# \pi_{\text{ref}})$ changes by $\beta$ times the number, at this prefix. This is why the logits alone are
# $Q^*$ only up to one number per prefix.
# </details>
#
# <details><summary>3. Is the token with the lowest implicit reward an error?</summary>
#
# It is the token whose probability fell most against the reference. Some token is always the lowest, in
# a perfect response, too. At the optimum the size of its $Q^* - V^*$ says how much was lost with it.
# After a real run it may only be the token that has moved most. In section 7 it is mostly another token
# than the error.
# </details>
#
# <details><summary>4. Does a policy know V<sup>∗</sup>, or only Q<sup>∗</sup> − V<sup>∗</sup>?</summary>
#
# Only $Q^* - V^*$. At the optimum, sums from the start give $V^*$ of every prefix minus $V^*$ of the
# prompt. One known reward of a response to this prompt gives that number, too (section 3).
# </details>
#
# <details><summary>5. Where would a reward for each step get its labels?</summary>
#
# From people who mark steps, which is expensive. From a program that checks steps, where there is one,
# as in arithmetic. Or from sampling: how often does the policy end with a right answer from here? The
# last is the value of this lesson, without the KL penalty.
# </details>
#
# <details><summary>6. "DPO gives us, for free, a reward model that judges every step of a solution."
# What would you have to see before you believe it?</summary>
#
# *Cases:* solutions with errors at known steps, several hundred, on problems that nobody trained on. Not
# only planted errors, which are surprising by construction, but the model's own. *Baselines* that cost
# nothing: surprisal before DPO, the last step, a random step. *Measure:* the share that is found, with an
# interval and on several seeds. Count errors in the last step and in earlier ones apart. *A use:* choose
# among sampled solutions by the rewards of steps, and by the sum for the whole response. Does the first
# give more right answers?
# </details>
#
# ## Going further
#
# **What PPO would see at the optimum.** In lesson 06 the reward of a token contains its KL
# penalty, so its $Q$ contains it, too. In this lesson $Q^*$ does not. Subtract it from the equation of
# section 1: $Q^* - \beta \log (\pi^*/\pi_{\text{ref}}) - V^* = 0$. This is PPO's advantage, and it
# is zero for every token. In the tree, the first *good* has $Q^* - V^*$ = 0.58. Its KL penalty is
# $\log_2 \frac{3/4}{1/2}$ = 0.58, so PPO's advantage is 0. At the optimum the KL penalty of a token is
# exactly as large as its $Q^* - V^*$.
#
# **Logits that are $Q^*$ without a missing number.** The number of section 3 is $c(s_t) = \beta \log
# \sum_{y_t} e^{z} - V^*(s_t)$, because $\log \pi^* = z - \log \sum_{y_t} e^{z}$. The logits with
# $c(s_t) = 0$ are $z = \log \pi_{\text{ref}} + Q^* / \beta$. For them $V^*(s_t) = \beta \log \sum_{y_t} e^{z}$.
#
# **Another loss has another optimum.** Token-level DPO (TDPO, Zeng et al. 2024) adds to DPO's margin
# the KL divergence of each position. We tested its optimum in our world. At each prefix it is
# $\pi(y_t \mid s_t) \propto \pi_{\text{ref}}(y_t \mid s_t)\, e^{Q^{\text{ref}}(s_t, y_t)/\beta}$. The
# form is the same, but $Q^{\text{ref}}$ is the plain $Q$ of the *reference*: the mean reward if the
# reference writes the rest. In the world of section 5 the probabilities of responses differ from those
# of the Gibbs policy by up to 0.30.
#
# **The worked example of three words.** Section 7 of `91_the_worked_example` has soft values for *good*,
# *bad* and the full stop, with the same $\beta$ = 1.44: 0.38 at the start, 1.22 after *good* and −0.78
# after *bad*. In *good good* the first word gains 0.84 and the second 0.78, together 1.62 = 2 − 0.38.
#
# **Another reward for the planted pairs.** They also fit a reward that is 1 if the last number is right.
# Behind `37-2=3` a 0 would still earn something then, and the 5 loses it. This could be why DPO blames
# last digits. Nothing here proves it.
#
# **The model's own errors.** The record of `minirlhf experiment planted` also has 218 responses that
# the model itself wrote, with exactly one false step. A method must find the *step*. DPO was trained for 300 steps. Two methods
# are new. *Surprisal after DPO* is the lowest $\log \pi$ of the trained policy. *Value* is a critic that
# learned from the same responses to predict whether the answer will be right; it blames the token after
# which the prediction falls most. The share of cases that are found (mean of three seeds):
#
# | cases | trained on | surprisal | implicit reward | surprisal after DPO | value |
# |---|---|---|---|---|---|
# | planted digits | planted digits | 0.94 | 0.27 | 0.75 | 0.27 |
# | planted digits | own responses | 0.94 | 0.23 | 0.74 | 0.13 |
# | own errors | planted digits | 0.69 | 0.61 | 0.72 | 0.45 |
# | own errors | own responses | 0.69 | 0.69 | 0.77 | 0.56 |
#
# - On planted digits no trained method beats surprisal, on any seed: the best run finds 76 %.
# - On own errors a random step is right in 43 %, and the rule *always the last step* in 74 %,
#   because most errors stand there. The best single run is one of *surprisal after DPO*. Its 95 %
#   interval over the cases is [0.71, 0.82], so the rule is inside it. Surprisal minus the rule is
#   −0.055 [−0.15, 0.05]. No method is shown to beat the rule.
# - Surprisal finds fewer of the own errors than of the planted ones. The model wrote these errors
#   itself, so it found them likely enough to write.
# - In 56 cases the error stands before the last step. There the rule finds none, and surprisal 95 %. For
#   the trained methods the record has only the share of all cases, so this fair comparison is missing.
# - The critic is right about only 53 % to 59 % of its training responses, and a coin about 50 %. It
#   hardly learned, so its rows say nothing about critics.
#
# DPO and the critic had one learning rate, one $\beta$ and one length of training, and read 38,400
# responses each. We did not look for better settings. There are 5,000 planted pairs and 2,094 to 2,206
# pairs of own responses.
#
# **What the libraries do.** TRL and OpenRLHF add up the log-ratios of a response and do not log
# those of its tokens. Rewards of steps are trained on purpose: OpenRLHF trains process reward
# models from labelled steps. PRIME (a recipe of verl) trains a model on right and wrong answers,
# and uses its $\beta \log (\pi/\pi_{\text{ref}})$ of each token as a reward. It trains this model
# again and again on new samples.
#
# **References.** Rafailov et al. 2024, *From r to Q\*: your language model is secretly a
# Q-function* (sections 3 and 4). Zeng et al. 2024, *Token-level direct preference optimization*
# (section 4). Cobbe et al. 2021, *Training verifiers to solve math word problems* (section 4; our
# critic *value*). Haarnoja et al. 2017, *Reinforcement learning with deep energy-based policies*
# (section 2: soft values). Cui et al. 2025, *Process reinforcement through implicit rewards*
# (PRIME). Xiong et al. 2024, *Building math agents with multi-turn iterative preference learning*.
#
# *How this lesson is checked:* that DPO's optimum has $Q^* - V^*$ at every prefix is tested in
# `tests/core/test_exact.py`, TDPO's optimum in `tests/core/test_preference.py`, the planted cases in
# `tests/experiments/test_planted.py`. Every number about a run is compared with the record or with
# the output above (`tests/claims/test_lesson_13.py`).
