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
# - say what the implicit reward of a single token means, and under which conditions,
# - test whether a method that locates errors really finds them.
#
# **You need** lessons 03 to 06 (values, advantages, the KL penalty of a token), lesson 08
# (Bradley-Terry) and lesson 12 (DPO). About 55 minutes to read and 85 for the exercises.

# %%
import copy
import math

import pandas as pd
import torch

from minirlhf import core, evaluate, experiments, loops, models, show, tasks
from minirlhf.classroom import FAST, check

# %% [markdown]
# ## 1. The idea: a judgement of every token
#
# Direct preference optimisation (DPO) gets one label for a pair of whole responses. But the policy
# that it trains has a probability for every *token*. So every token has its own **implicit reward**
# $\beta \log \frac{\pi(y_t \mid s_t)}{\pi_{\text{ref}}(y_t \mid s_t)}$ ($\log$ is the natural
# logarithm). Does this number mean anything? Yes. **At DPO's optimum it is an advantage:**
#
# $$ \beta \log \frac{\pi^*(y_t \mid s_t)}{\pi_{\text{ref}}(y_t \mid s_t)} = Q^*(s_t, y_t) - V^*(s_t)
# \quad \text{for every token at every prefix.} $$
#
# - $s_t$ is the *prefix*: the prompt and the tokens before $y_t$. $\pi_{\text{ref}}$ is the reference,
#   and $\beta$ is the KL coefficient.
# - $\pi^*$ is the best policy: the one with the highest expected reward minus KL penalty.
# - $V^*(s_t)$ is what $\pi^*$ still expects to get from this prefix on: reward minus KL penalties.
# - $Q^*(s_t, y_t)$ is what it expects to get after the next token, if that is $y_t$. The KL penalty of
#   $y_t$ itself is not in it.
#
# In words: the implicit reward compares a token with the others at its prefix. $V^*$ is a *soft mean*
# of their $Q^*$: it lies between the reference's average and the best of them (section 2). A token is
# positive if its $Q^*$ is above this mean.
#
# A function that gives $Q$ for each token at each prefix is a **Q-function**. So at DPO's
# optimum a policy, trained on whole responses, is *secretly a Q-function* (Rafailov et al. 2024).
#
# Here is such a judgement. We train for twenty steps, as in section 8 of lesson 12. The film was
# not trained on. People liked response 0, but not response 1. Below each token stands its implicit
# reward, with $\beta = 0.1$. Blue is positive, orange negative. The scale, at the upper right, ends
# at 0.1. There the probability has grown 2.7 times.

# %%
torch.set_num_threads(1)  # sums in a fixed order, so that two runs can be equal
sft, tokenizer = models.load_policy("tiny-reviews-sft")
reviews = tasks.reviews.preference_pairs
pairs = reviews("reward", 4000, seed=0, max_tokens=32, tokenizer=tokenizer)
config = loops.DPOConfig(steps=2 if FAST else 20, beta=0.1)
trained, history = loops.train_dpo(copy.deepcopy(sft), tokenizer, pairs, config)

pair = reviews("val", 40, seed=3, min_gap=3.5, max_tokens=24, tokenizer=tokenizer)[3]
responses = [pair["chosen"], pair["rejected"]]
batch = models.encode(tokenizer, [pair["prompt"]] * 2, responses)
both = {"actor": trained, "reference": sft}
table = evaluate.token_table(batch, tokenizer, **both, temperature=1.0, beta=0.1)
scale = {"implicit_reward": 0.1}
show.microscope(table, "implicit_reward", text="all", limits=scale).figure()

# %% [markdown]
# What to see in it: the most orange token of response 1 is the *n* of *Technically*. Most of its
# insult, *interesting as an insurance commercial*, is not orange. The bluest tokens are the two
# full stops. This hardly looks like a judgement of two reviews. Sections 2 to 4 show where the
# formula comes from. Sections 5 and 6 ask what a real run makes of it.

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
# = 1.44. Then $e^{r/\beta} = 2^r$ and $\beta \log z = \log_2 z$, so powers of two are enough.
#
# **One prefix.** Suppose that we know $Q^*(s, y)$ for each next token $y$. Which $\pi(y \mid s)$ is
# best? Each token also pays its KL penalty, as in lesson 06. So we maximise
#
# $$ \sum_y \pi(y \mid s) \Big[ Q^*(s, y) - \beta \log \frac{\pi(y \mid s)}{\pi_{\text{ref}}(y \mid s)}
# \Big] . $$
#
# This is the objective of lesson 12, with tokens for responses and $Q^*$ for the reward. So the
# answer is the Gibbs policy, now for tokens:
#
# $$ \pi^*(y \mid s) = \frac{\pi_{\text{ref}}(y \mid s)\, e^{Q^*(s, y) / \beta}}{e^{V^*(s) / \beta}} ,
# \qquad V^*(s) = \beta \log \sum_y \pi_{\text{ref}}(y \mid s)\, e^{Q^*(s, y) / \beta} . $$
#
# In words: the best policy multiplies each token's probability by a factor that grows with $Q^*$.
# The denominator makes the sum one. $\beta$ times its logarithm is the **soft value** $V^*$. A
# large $Q^*$ counts more in it than in an average.
#
# Solve the formula of $\pi^*$ for $Q^* - V^*$, and you have the equation of section 1:
# $\beta \log (\pi^* / \pi_{\text{ref}}) = Q^* - V^*$. Put this into the bracket above. It becomes
# $Q^* - (Q^* - V^*) = V^*$ for every token. So $V^*$ is what the maximum is worth: the value of the
# best policy.
#
# **All prefixes.** Start at the end of the tree and walk back. If the token ends the response,
# $Q^*(s, y)$ is the reward $r$. If not, it is $V^*$ of the longer prefix. At the prefix *good*, both
# tokens end the response:
#
# | token after *good* | $\pi_{\text{ref}}$ | $Q^*$ | $\pi_{\text{ref}} \cdot 2^{Q^*}$ | $\pi^*$ | $Q^* - V^*$ |
# |---|---|---|---|---|---|
# | *good* | 1/2 | 2 | 2 | 2/3 | 2 − 1.58 = 0.42 |
# | full stop | 1/2 | 1 | 1 | 1/3 | 1 − 1.58 = −0.58 |
# | sum | | | 3, so $V^* = \log_2 3$ = 1.58 | 1 | |
#
# **Predict.** Now do the start on paper. There $Q^*$ of *good* is 1.58, and $Q^*$ of the full stop
# is 0. What are $V^*$ and the two differences $Q^* - V^*$? The empty response has the reward 0, so it
# is neither good nor bad. Is the implicit reward of its full stop negative, zero or positive?

# %% tags=["predict"]
tree = core.World.from_reward(("good", "."), 2, lambda y: float(y.count("good")))
tree_values, tree_q = tree.optimal_values(beta=1 / math.log(2))
gains = tree_q - tree_values[:, None]
rows = {"V*": tree_values, "good: Q* - V*": gains[:, 0], ".: Q* - V*": gains[:, 1]}
pd.DataFrame(rows, index=["start", "after good"]).round(2)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# The two terms are $\tfrac12 \cdot 3$ and $\tfrac12 \cdot 1$. Their sum is 2, so $V^*$ = 1. *Good*
# has 1.58 − 1 = 0.58, and the full stop has 0 − 1 = −1.
#
# So the full stop is the worst token of the tree, although its response is not bad. $V^*$ was 1,
# and now nothing is left. **An advantage compares a token with the other choices at its prefix.** It
# does not say whether the response is good.
# </details>
#
# Check the equation of section 1: *good* after *good* has $\log_2 \frac{2/3}{1/2}$ = 0.42.

# %% [markdown]
# ## 3. What a sum of tokens does not prove
#
# Add up the tokens of *good good*: 0.58 + 0.42 = 1. Its reward is 2, and $V^*$ at the start is 1.
# So the sum is $r - V^*(s_0)$, where $s_0$ is the prompt alone. This holds for all responses. $Q^*$
# of a token *is* $V^*$ of the next prefix, so all values between cancel:
#
# $$ \sum_t \beta \log \frac{\pi^*(y_t \mid s_t)}{\pi_{\text{ref}}(y_t \mid s_t)} = \sum_t \big[ Q^*(s_t,
# y_t) - V^*(s_t) \big] = r(x, y) - V^*(s_0) . $$
#
# Lesson 12 had $r - \beta \log Z(x)$ for a whole response, so $V^*(s_0)$ is its $\beta \log Z(x)$. Both
# responses of a pair start at the same $s_0$. In $r(x, y_c) - r(x, y_r)$ it cancels, and a difference
# of two sums over tokens is left: the margin in DPO's loss.
#
# If you stop the sum after token $t$, it is $V^*(s_{t+1}) - V^*(s_0)$. So the best policy's
# log-ratios of a prefix tell its value, up to one number per prompt. In this sense it contains a
# critic.
#
# **But that tokens add up to their response does not show that they are right.** Take a bad policy,
# which nobody trained. At the start it gives *good* 1/4, and after *good* it gives *good* 1/2:
#
# | token of *good good* | $\pi$ | $\pi_{\text{ref}}$ | $\log_2 (\pi / \pi_{\text{ref}})$ | $Q^* - V^*$ |
# |---|---|---|---|---|
# | first *good* | 1/4 | 1/2 | −1 | 0.58 |
# | second *good* | 1/2 | 1/2 | 0 | 0.42 |
# | product, sum | 1/8 | 1/4 | −1 | 1 |
#
# The response has $\log_2 \frac{1/8}{1/4}$ = −1, too. The sum is perfect, and both tokens are
# wrong. **Tokens add up for every policy**: the logarithm of a product is the sum of the
# logarithms. Only a comparison with the true $Q^* - V^*$ can fail.

# %% [markdown]
# ## 4. The exact world: a check that can fail
#
# So we compare, in the world of lesson 12. Its words are *a*, *b* and a dot that ends the response.
# Of its 15 responses, 1 has one word (the dot), 2 have two and 12 have three. Their rewards are
# random. DPO gets all pairs, with the exact shares of people. There are 7 prefixes with 3 next
# words: 21 implicit rewards. DPO sees no rewards. We compute the true $Q^* - V^*$ from them, by
# walking back.

# %%
world, beta = core.World.random(3, 3, seed=0), 0.5
values, q = world.optimal_values(beta=beta)  # from the true rewards
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
        logits = (logits - 20 * logits.grad).detach()
    return torch.stack(path).detach()


# %% [markdown]
# A row is a prefix, a column is the next word, and the dot ends the response. At the left is the
# truth, at the right what DPO's policy says after 200 steps:

# %%
by_shares = token_rewards(share)
prefixes = ["start", "a", "b", "aa", "ab", "ba", "bb"]
assert torch.allclose(by_shares[-1], truth, atol=2e-4)
tables = {"Q* - V*": pd.DataFrame(truth.numpy(), prefixes, world.vocab)}
tables["DPO"] = pd.DataFrame(by_shares[-1].numpy(), prefixes, world.vocab)
pd.concat(tables, axis=1).round(2)

# %% [markdown]
# They agree at all 21 places. This is more than a sum: here the implicit rewards of *all* responses
# are the true ones. And the probabilities of all responses fix those of all next words.
#
# **Predict.** Now the labels are worse: *one vote per pair*, or *the majority always wins*. Lesson
# 12 showed that both lead to a wrong policy. But are the *signs* wrong, too? For each of the three
# kinds of labels, guess how many of the 21 signs are right after 200 steps. A coin would get about
# half. The figure shows the largest error of the 21, in reward units.

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
# - **Shares of many people**: all 21 signs are right. The error goes to zero, and after 200 steps it
#   is 0.0001.
# - **One vote per pair**: 19 of the 21 signs are right. But the error stops at 1.3.
# - **The majority always wins**: 20 of the 21 signs are right. But the error first falls from 3.2 and
#   then grows, to 10.3 after 200 steps. With such hard labels there is no optimum, and the log-ratios
#   run away (lesson 12).
#
# So here wrong labels spoil the sizes sooner than the signs. The sum of the tokens sees nothing of
# all this: it is right at every step.
# </details>

# %% [markdown]
# ## 5. A real run: two reviews, and all words
#
# The pair of section 1 again. Point at a token to see its probability under both models.

# %%
show.microscope(table, "implicit_reward", text="all", limits=scale)

# %%
table.groupby("text").implicit_reward.sum().round(2)

# %% [markdown]
# The sums are 0.04 and −0.08, so DPO has this pair in the right order. (After the 100 steps of
# lesson 12, it was 59 % of 2,000 pairs of test films.)
#
# Two responses prove nothing. So we take 600 held-out pairs. Most reviews stand in several pairs,
# so these are 221 reviews. We list the mean implicit reward of each token that occurs at least
# eight times. If it showed the sentiment, words of praise would be the highest and words of blame
# the lowest.

# %%
many = reviews("val", 600, seed=3, max_tokens=32, tokenizer=tokenizer)[:]
films = pd.DataFrame({"prompt": many["prompt"] * 2})
films["response"] = many["chosen"] + many["rejected"]
films = films.drop_duplicates()  # each review once
batch = models.encode(tokenizer, list(films.prompt), list(films.response))
options = {"temperature": 1.0, "beta": 0.1, "alternatives": 0}
words = evaluate.token_table(batch, tokenizer, **both, **options)
means = words.groupby("token").implicit_reward.agg(["mean", "size"])
means = means[means["size"] >= 8].sort_values("mean").round(3)
print(len(films), "reviews,", len(words), "tokens")
pd.concat([means.head(6), means.tail(6)])

# %% [markdown]
# The six lowest tokens come first, then the six highest. *size* is how often the token occurs.
#
# - *Bad* is among the lowest. But it occurs only 9 times, and one word of blame among twelve tokens
#   can be chance.
# - The others are fillers and pieces: *about*, *so* and *that* at the bottom, *'ll*, *h* and the
#   full stop at the top. No word of praise is there.
#
# The loss sees only sums over about twenty tokens, with one noisy label per pair. We do not know why
# the full stop has risen.

# %% [markdown]
# ## 6. Planted errors: who finds the place?
#
# Nobody knows the true $Q^* - V^*$ of a word in a review. So we ask where it is known. `tiny-steps`
# (lesson 11) writes calculations, one character per token. It answers `8*4-2=` with two steps, `32-2=`
# and `30`. We take the right response `32-2=30`, make **one digit wrong**, and go on from there
# without another error: `37-2=35`. Only the 7 is wrong, because 37 − 2 *is* 35.
#
# **What is the truth here?** Let the reward be 1 if every step is right, and else 0. After the 7
# nothing can be earned any more, so from there on $V^* = 0$. The 7 gives away all of $V^*$. The
# tokens behind it have $Q^* - V^* = 0$: nothing is left to lose. The right digits before it lose
# little or nothing. **So the planted digit has the lowest $Q^* - V^*$.** At DPO's optimum the
# implicit reward would find it.
#
# We train DPO on 5,000 such pairs (right, planted error), and ask about 400 *other* problems. Two
# methods each blame one token:
#
# - **Implicit reward**: the token with the lowest $\log (\pi / \pi_{\text{ref}})$ after DPO.
# - **Surprisal**: the token with the highest $-\log \pi_{\text{ref}}$, which the model from *before* DPO
#   expected least.

# %%
solver, digits = models.load_policy("tiny-steps")
train = tasks.arithmetic.problems("train", 5000, seed=1, levels=experiments.LEVELS)
practice = experiments.planted_pairs(train, seed=0)
practice = practice.select_columns(["prompt", "chosen", "rejected"])
optimiser = loops.OptimiserConfig(lr=3e-4)
config = loops.DPOConfig(steps=2 if FAST else 20, batch_size=64, optimiser=optimiser)
learner, _ = loops.train_dpo(copy.deepcopy(solver), digits, practice, config)

problems = tasks.arithmetic.problems("test", 400, levels=experiments.LEVELS)
asked = experiments.planted_pairs(problems, seed=0)
wrong = models.encode(digits, asked["prompt"], asked["rejected"])
with torch.no_grad():
    before = models.policy_logprobs(solver, wrong)
    change = models.policy_logprobs(learner, wrong) - before

# %% [markdown]
# **Predict.** In what share of the 400 cases does each method blame the planted digit? And where does
# the blame fall otherwise? A token drawn at random is the right one in 11 %. The rule *always the last
# digit* is right in 22 %.

# %% tags=["predict"]
place, mask = torch.tensor(asked["place"]), wrong.response_mask
last = mask.sum(1) - 2  # the last digit; EOS stands behind it


def where_blamed(evidence):
    """The share of cases whose token with the lowest evidence stands at each place."""
    blamed = torch.where(mask, evidence, torch.inf).argmin(1)
    hit, at_end = blamed == place, blamed == last
    parts = {"before the planted digit": blamed < place, "the planted digit": hit}
    parts["behind it, not the last digit"] = (blamed > place) & ~at_end
    parts["the last digit, not planted"] = at_end & ~hit
    return {name: part.double().mean().item() for name, part in parts.items()}


evidence = {"surprisal": before, "implicit reward": change}
pd.DataFrame({name: where_blamed(x) for name, x in evidence.items()}).round(2)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# Surprisal finds the planted digit in 94 % of the cases, the implicit reward in 25 %. That is
# hardly more than the rule finds. **The method without training wins by far.** In 39 % the implicit
# reward blames a last digit that follows correctly from what stands before it. Surprisal does so in
# 2 %.
#
# More training does not help: after 300 steps (`minirlhf grid planted`, three seeds) the implicit
# reward finds 27 %.
# </details>
#
# Here is a case in which the implicit reward blames the last digit. Both strips are in nats, on one
# scale: orange is low. (A log-probability just below zero is written +0.00.)

# %%
case = asked["prompt"].index("8*4-2=")
tokens = [*asked["rejected"][case], "EOS"]
size = len(tokens)
strips = {"log π_ref, before DPO": (tokens, before[case][:size])}
strips["implicit reward: log (π / π_ref)"] = (tokens, change[case][:size])
show.token_strips(strips, heading="8*4-2=   (planted: the 7)")

# %% [markdown]
# Before DPO, the 7 is by far the least likely token, and the last 5 nearly
# certain. DPO has pushed down this *5*, and hardly the 7.
#
# **Errors of its own.** Planted errors are surprising by construction. The record also has 218
# responses that the model *itself* wrote, with exactly one false step. A method must find the step.
# DPO was trained for 300 steps on the model's own right and wrong responses. Two methods are new:
#
# - **Surprisal after DPO**: the lowest $\log \pi$ of the trained policy.
# - **Value**: a critic that learned from the same responses to predict whether the answer will be
#   right. It blames the token after which the prediction falls most.
#
# A bar is the mean share that a method finds, a dot one of three seeds. The lines show two rules: a
# step drawn at random, and *always the last step*.

# %%
record = experiments.results("planted")
own = record[record.variant == "own samples"]
methods = ["surprisal", "implicit reward", "surprisal after DPO", "value"]
shares = {name: own[f"own, {name}"].tolist() for name in methods}
rules = {"chance": own["own, by chance"].mean(), "always the last step": 0.74}
show.bars(shares, reference=rules, label="share of false steps found", limits=(0, 1))

# %% [markdown]
# - **Surprisal is weaker here**, 69 %: the model was not surprised enough not to write the error.
# - **The implicit reward** finds 69 %, too. **Surprisal after DPO** finds 77 %. Chance is 43 %, so
#   this looks like a success.
# - But most errors stand in the last step. **The rule *always the last step* is right in 74 %.**
#   This is inside the best run's 95 % interval over the 218 cases, [0.71, 0.82]. So no method is shown to beat it.
# - **The value** finds 56 %, but its critic hardly learned. This says nothing about critics.
#
# In the earlier steps, with 56 errors, the rule finds none, and surprisal 95 %.
#
# **Why is a real run so far from the theorem?** Its conditions fail, one after the other:
#
# - In each pair the same response always wins (hard labels). So there is no optimum (section 4).
# - Nearly all responses are in no pair. The loss says nothing about them.
# - The policy is a network: a push at one prefix moves others.
# - It is stopped early.
#
# And the loss asks only that the *sum* of the rejected response falls. Pushing last digits down
# helps with that. The pairs even fit another reward: 1 if the last number is right. With it a 0
# behind `37-2=3` could still earn something, and the 5 gives this away. This could explain the
# blame, but nothing here proves it.

# %% [markdown]
# ## 7. What the numbers can be used for
#
# | use | what we saw |
# |---|---|
# | compare two responses by their sums | this is what DPO trains: 59 % of test pairs after 100 steps |
# | see what training has changed, token by token | exact, for any policy. It is a log-ratio |
# | blame a token for an error | not without beating surprisal and the last position |
# | a reward for each step of reasoning | open: it needs many responses with checked answers (the method PRIME, in Going further) |
#
# So a strip shows *where the policy has moved*. Only at the optimum is this where the response is
# good or bad.
#
# ## What to remember
#
# - The soft value $V^*$ is $\beta \log$ of the mean of $e^{Q^*/\beta}$ under the reference: a mean in
#   which large $Q^*$ count more. $Q^*$ of a token is the reward, or $V^*$ of the next prefix.
# - At DPO's optimum $\beta \log (\pi/\pi_{\text{ref}})$ of a token is $Q^* - V^*$: its gain over
#   this soft mean.
# - That tokens add up to their response holds for any policy and proves nothing.
# - After a real run the strip shows what has moved. On planted errors it is far worse than surprisal.
# - Compare a locator with surprisal, the last position and chance.
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
# **2. A weak and a strong KL penalty** *(easy, on paper, 10 minutes)*. In the tree of section 2,
# let $\beta$ become very large. What does $V^*$ at the start approach? And what, if $\beta$ becomes
# very small? Write down both numbers. Then write a few lines that compute $V^*$ at the start for
# $\beta$ = 0.01, 1 and 1000.
#
# *Hint:* what does the best policy do if leaving the reference is very expensive? And if it is
# free? `core.World.from_reward` of section 2 gives you the tree.

# %% tags=["exercise"]
# your code

# %% [markdown] tags=["solution"]
# If leaving the reference is very expensive, the best policy stays there. Then $V^*$ is the mean reward
# under the reference: $\tfrac14 \cdot 2 + \tfrac14 \cdot 1 + \tfrac12 \cdot 0 = 0.75$. If it is free, the
# policy writes the best response, and $V^*$ is the largest reward, 2. Soft values lie between the two.

# %% tags=["solution"]
tree = core.World.from_reward(("good", "."), 2, lambda y: float(y.count("good")))
starts = {beta: tree.optimal_values(beta=beta)[0][0].item() for beta in (0.01, 1, 1000)}
{beta: round(value, 3) for beta, value in starts.items()}

# %% [markdown] tags=["exercise"]
# **3. The critic inside the policy** *(medium, 15 minutes)*. `logprobs` and `ref_logprobs`, (B, R),
# belong to a policy at DPO's optimum and to its reference. `rewards`, (B,), are the rewards of the
# whole responses. Return (B, R): $V^*(s_t)$ *before* each token, and 0 in the padding.
#
# *Hint:* section 3 sums from the start. From which end must you sum here, so that the known number
# is the reward? Try *good good* on paper: the values are 1 and 1.58. Padding can hold NaN, and NaN
# times 0 is NaN. Replace padding with `torch.where(mask, x, 0.0)` before you compute.


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
# **4. Find the bug** *(medium, 15 minutes)*. A colleague computes the value of *any* policy at one prefix
# at which every next token ends the response: the expected $Q$, less the KL penalty. The first three
# arguments have the shape (V,). DPO trains a policy in such a world, and the curve shows its value. It
# should rise to $V^*$, the dotted line. Why is the curve below impossible? What is wrong? Mend it, run
# the checker, and draw the curve again.
#
# *Hint:* take two tokens, a reference with (0.5, 0.5), a policy with (0.9, 0.1) and all $Q$ zero.
# Compute the value with the formula of section 2, on paper and with the colleague's function.


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
        logits = logits - 5 * logits.grad
    return path, world.optimal_values(beta=beta)[0].item()


path, best = value_in_training(state_value)
show.lines({"state_value": path}, reference={"V*": best}, xlabel="step", ylabel="value")

# %% [markdown] tags=["exercise"]
# **5. Blame a step** *(medium, 20 minutes)*. A response such as `36-9=27` (to the prompt `12*3-9=`) has
# two steps, `36-9=` and `27`. A `=` belongs to the step that it ends. After the last step there is no
# `=`. From `evidence`, (B, R), `equals`, (B, R), true where the token is `=`, and the mask, return (B,)
# the number of the step, counted from 0, that contains the real token with the lowest evidence. Of
# equal ones take the first.
#
# *Hint:* write the number of its step below each character of `36-9=27`, and below that a running count
# of `=`. Where do they differ? Padding can hold NaN, and `equals` can be true there. Some evidence is
# positive at every token. What must you put into the padding, so that it is never the lowest?


# %% tags=["exercise"]
def blamed_step(evidence, equals, mask): ...  # your code


check.blamed_step(blamed_step)


# %% tags=["solution"]
def blamed_step(evidence, equals, mask):
    blamed = torch.where(mask, evidence, torch.inf).argmin(1, keepdim=True)
    step = (
        equals.long().cumsum(1) - equals.long()
    )  # how many "=" stand before each token
    return step.gather(1, blamed)[:, 0]


check.blamed_step(blamed_step)

# %% [markdown] tags=["exercise"]
# **6. Design the experiment** *(hard, on paper, 15 minutes)*. "DPO gives us, for free, a reward
# model that judges every step of a solution." What would you have to see before you believe it?
# Name the cases, the baselines, the measure and one use.

# %% [markdown] tags=["solution"]
# **Cases**: errors at known places which nobody trained on, several hundred, with an interval. Not
# only planted ones, which are surprising by construction, but the model's own. **Baselines** that
# cost nothing: surprisal under the model before DPO, the last token or step, chance. **Measure**:
# the share that is found, apart for errors in the last step and in earlier ones, on several seeds.
# **A use**: choose among sampled solutions, or train, once with the rewards of steps and once with
# the sum for the response. Does the first give more right answers?

# %% [markdown]
# ## Questions
#
# <details><summary>1. V or Q: which of them is PPO's critic?</summary>
#
# $V$. It predicts from the prefix, before the next token is known. The advantage is made of rewards and
# $V$. The policy itself, by this lesson, holds $Q^* - V^*$.
# </details>
#
# <details><summary>2. The implicit rewards of a response's tokens add up to its own. Is the theory confirmed?</summary>
#
# No. They add up for any policy. Only a comparison with $Q^* - V^*$ from the true reward can fail.
# </details>
#
# <details><summary>3. Is the token with the lowest implicit reward an error?</summary>
#
# It is the token whose probability fell most against the reference. Some token is always the lowest, in
# a perfect response, too. At the optimum it is the one that gave away most. How much it gave away says
# whether it was an error. After some hundred steps it may be a token that stands in many rejected
# responses.
# </details>
#
# <details><summary>4. Does a policy know $V^*$, or only $Q^* - V^*$?</summary>
#
# At the optimum, sums from the start give $V^*$ of every prefix minus $V^*$ of the prompt. The last
# number is missing. One known reward of a response to this prompt gives it (exercise 3).
# </details>
#
# <details><summary>5. Where would a reward for each step get its labels?</summary>
#
# From people who mark steps, which is expensive. From a program that checks steps, where there is one,
# as in arithmetic. Or from sampling: how often does the policy end with a right answer from here? The
# last is the value of this lesson, without the KL penalty.
# </details>
#
# ## Going further
#
# **What PPO would see at the optimum.** In lesson 06 the reward of a token contains its KL
# penalty, so its $Q$ contains it, too. In this lesson $Q^*$ does not. Subtract it from the equation of
# section 1: $Q^* - \beta \log (\pi^*/\pi_{\text{ref}}) - V^* = 0$. This is PPO's advantage, and it
# is zero for every token. At the optimum the KL penalty of a token is exactly as large as what the
# token gains.
#
# **Another loss has another optimum.** Token-level DPO (TDPO, Zeng et al. 2024) adds the KL
# divergence of each position to the margin. In our world its optimum is not the Gibbs policy, but
# one step of improvement at each prefix:
# $\pi(y_t \mid s_t) \propto \pi_{\text{ref}}(y_t \mid s_t)\, e^{Q^{\text{ref}}(s_t, y_t)/\beta}$.
# Here $Q^{\text{ref}}$ is the plain $Q$ of the *reference*: it assumes that the reference writes
# the rest. In the world of section 4 the probabilities differ from those of the Gibbs policy by up
# to 0.30.
#
# **The worked example of three words.** Section 7 of `91_the_worked_example` has soft values for *good*, *bad* and the full stop: 0.385 at the start,
# 1.222 after *good* and −0.778 after *bad*. In *good good* the first word gains 0.838, the second
# 0.778, together 1.615 = 2 − 0.385.
#
# **About the recorded runs of section 6.** DPO and the critic had one learning rate, one $\beta$ and
# one length of training. We did not look for better ones. Both read 38,400 responses. There are
# 5,000 planted pairs, but only 2,094 to 2,206 pairs of own responses, which are therefore read more
# often. The critic judges only 53 % to 59 % of its training responses rightly, and a coin 50 %. All
# intervals are over cases. Surprisal on planted digits has the 95 % interval [0.92, 0.96], and on own
# errors [0.62, 0.75]. On own errors surprisal minus the rule *last step* is −0.06 [−0.15, 0.05]. Of the
# trained methods the record has only the share over all own errors.
#
# The mean shares, with both kinds of training pairs:
#
# | cases | trained on | implicit reward | surprisal after DPO | value |
# |---|---|---|---|---|
# | planted digits | planted digits | 0.27 | 0.75 | 0.27 |
# | planted digits | own responses | 0.23 | 0.74 | 0.13 |
# | own errors | planted digits | 0.61 | 0.72 | 0.45 |
# | own errors | own responses | 0.69 | 0.77 | 0.56 |
#
# No trained method beats surprisal on planted digits, on any seed: the best run finds 76 %.
#
# **What the libraries do.** TRL and OpenRLHF add up the log-ratios of a response before they do
# anything else. Neither logs a token's implicit reward, though it is there. TRL weighs tokens
# differently in one case (`ld_alpha`, for the tokens beyond the shorter response's length). Rewards
# of steps are trained on purpose: OpenRLHF trains process reward models from labelled steps. PRIME
# (a recipe of verl) trains a model on right and wrong answers, and uses
# $\beta \log (\pi/\pi_{\text{ref}})$ of each token as a reward, updated all the time on new
# samples. Here `core.implicit_rewards` takes any shape, and `show.token_strips` draws it.
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
