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
# - judge a method that locates errors against baselines that cost nothing.
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
# $\beta \log \frac{\pi(y_t \mid s_t)}{\pi_{\text{ref}}(y_t \mid s_t)}$. Does this number mean
# anything? Yes. **At DPO's optimum it is the soft advantage of the token:**
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
# In words: the implicit reward says how much better this token is than what could be had at this
# place. So a language model that was trained on whole responses carries a judgement of every single
# token. Rafailov et al. (2024) call it *secretly a Q-function*.
#
# Here is such a judgement. We train for twenty steps, as in section 8 of lesson 12. The film was
# not trained on. People liked response 0 and did not like response 1. Below each token stands its
# implicit reward, with $\beta = 0.1$. Blue is positive, orange negative. The scale is at the upper
# right.

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
show.microscope(table, "implicit_reward", text="all").figure()

# %% [markdown]
# What to see in it: the most orange token of response 1 is the *n* of *Technically*. Most of its
# insult, *interesting as an insurance commercial*, is not orange at all. The bluest tokens are the
# two full stops. This does not look like a judgement of two reviews. Sections 2 to 4 show where the
# formula comes from, sections 5 and 6 how much of it is left in a real run.

# %% [markdown]
# ## 2. Soft values, on a tree of two tokens
#
# Take a language with two tokens: *good*, and a full stop that ends the response. A response has at
# most two tokens, so there are three:
#
# | response | *good good* | *good .* | *.* |
# |---|---|---|---|
# | reward $r$ | 2 | 1 | 0 |
#
# In the reference both tokens have the probability 1/2 at each prefix. We choose $\beta = 1 / \ln 2$
# = 1.44. Then $e^{r/\beta} = 2^r$ and $\beta \ln z = \log_2 z$. So everything can be done with powers
# of two.
#
# **One prefix.** Suppose that we know $Q^*(s, y)$ for each next token $y$. Which probabilities
# $\pi(y \mid s)$ are best at this prefix? Each token also pays its KL penalty, as in lesson 06. So
# we maximise
#
# $$ \sum_y \pi(y \mid s) \Big[ Q^*(s, y) - \beta \log \frac{\pi(y \mid s)}{\pi_{\text{ref}}(y \mid s)}
# \Big] . $$
#
# This is the objective of lesson 12, with tokens in the place of responses, and with $Q^*$ in the
# place of the reward. So we know the answer. It is the Gibbs policy, now for tokens:
#
# $$ \pi^*(y \mid s) = \frac{\pi_{\text{ref}}(y \mid s)\, e^{Q^*(s, y) / \beta}}{e^{V^*(s) / \beta}} ,
# \qquad V^*(s) = \beta \log \sum_y \pi_{\text{ref}}(y \mid s)\, e^{Q^*(s, y) / \beta} . $$
#
# In words: the best policy multiplies each token of the reference by a factor that grows with $Q^*$.
# The denominator makes the probabilities add up to one. $\beta$ times its logarithm is the **soft
# value** $V^*$. It is also what the maximum above is worth.
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
# is 0. What are $V^*$ and the two differences $Q^* - V^*$? An empty response has the reward 0, so it is
# neither good nor bad. Is its full stop better than, worse than or equal to what could be had?

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
# So the full stop is the worst token of the tree, although the reward of its response is not
# negative. At the start a value of 1 could be had, and this token gives it away. In the same way
# *good .* has the reward 1, and yet its full stop has −0.58. **An advantage compares a token with
# the other choices at its prefix.** It does not say whether the response is good.
# </details>
#
# Solve the formula of $\pi^*$ for $Q^* - V^*$, and you have the equation of section 1. Check it with the
# table: *good* after *good* has $\log_2 \frac{2/3}{1/2}$ = 0.42.

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
# This is equation (c) of lesson 12, and $V^*(s_0)$ is its $\beta \log Z(x)$. It cancels in a pair. So
# DPO's loss follows from tokens, too.
#
# A sum up to token $t$ is $V^*(s_{t+1}) - V^*(s_0)$. So the
# best policy contains a critic: it knows each prefix's value, up to one number per prompt.
#
# **But a right sum does not show that the tokens are right.** Take a bad policy, which nobody
# trained. At the start it gives *good* 1/4, and after *good* it gives *good* 1/2:
#
# | token of *good good* | $\pi$ | $\pi_{\text{ref}}$ | $\log_2 (\pi / \pi_{\text{ref}})$ | $Q^* - V^*$ |
# |---|---|---|---|---|
# | first *good* | 1/4 | 1/2 | −1 | 0.58 |
# | second *good* | 1/2 | 1/2 | 0 | 0.42 |
# | product, sum | 1/8 | 1/4 | −1 | 1 |
#
# The tokens add up to −1, and the response has $\log_2 \frac{1/8}{1/4}$ = −1. The sum is perfect, and
# both tokens are wrong. **The sum is right for every policy**, because the logarithm of a product is
# the sum of the logarithms. It proves nothing. Only a comparison with the true $Q^* - V^*$ can fail.

# %% [markdown]
# ## 4. The exact world: a check that can fail
#
# So we compare, in the world of lesson 12: 15 responses of at most three words with random rewards,
# and DPO on all pairs with the exact shares of people. It has 7 prefixes with 3 next words, which
# makes 21 implicit rewards. DPO never sees a prefix or a reward. We compute the true
# $Q^* - V^*$ from the rewards, by walking back.

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
# They agree at all 21 places. The probabilities of all responses fix those of all next words. So if
# DPO gets all responses right, it has all tokens right.
#
# **Predict.** Now the labels are worse: *one vote per pair*, or *the majority always wins*. The figure
# shows the largest error among the 21 implicit rewards, in reward units, over the steps of training
# (lower is better). For each of the three kinds of labels: does the error go to zero, stop at some
# size, or grow?

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
# All three start at 3.2, because an untrained policy has implicit rewards of zero.
#
# - **Shares of many people**: the error goes to zero. After 200 steps it is 0.0001. All 21 signs are
#   right.
# - **One vote per pair**: the error stops at 1.3. 19 of the 21 signs are right.
# - **The majority always wins**: the error falls for the first steps and then grows, to 10.3 after
#   200 steps. With certain labels there is no optimum, and the log-ratios run away (lesson 12). But
#   20 of the 21 signs are right.
#
# At each of these steps the tokens of each response add up to its implicit reward. The sum sees
# nothing of all this. And in this small world, wrong labels spoil the sizes sooner than the signs.
# </details>

# %% [markdown]
# ## 5. A real run: two reviews, and all words
#
# Here is the pair of section 1 in the microscope. Point at a token to see its probability under
# both models.

# %%
show.microscope(table, "implicit_reward", text="all")

# %%
table.groupby("text").implicit_reward.sum().round(2)

# %% [markdown]
# The sums are 0.04 and −0.08, so DPO has this pair in the right order. We chose it because it is short.
# On 2,000 pairs of test films, 59 % were in the right order after 100 steps (lesson 12).
#
# Two responses prove nothing. So we take all reviews of 600 held-out pairs (most are in several
# pairs), and the mean implicit reward of each token that occurs at least eight times. If the
# numbers showed the sentiment, words of praise would be the highest and words of blame the lowest.

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
# The six lowest tokens come first, then the six highest. *mean* is the mean implicit reward, *size*
# is how often the token occurs.
#
# - *Bad* is among the lowest. That is as it should be.
# - Most others are fillers or pieces of words: *about*, *so* and *that* at the bottom, *'ll*, *h* and
#   the full stop at the top. No word of praise is there.
#
# The loss sees only sums over about twenty tokens, with one noisy label for each pair. We do not
# know why just the full stop has risen.

# %% [markdown]
# ## 6. Planted errors: who finds the place?
#
# Nobody knows the true $Q^* - V^*$ of a word in a review. So we ask where the answer is known.
# `tiny-steps` writes calculations, one character per token. It answers `20-1-9=` with `19-9=10`. We
# take the right solution, make **one digit wrong**, and go on from there without another error:
# `19-9=50`. Here only the 5 is wrong.
#
# DPO is trained on such pairs (right solution, the same with a planted error) of 5,000 problems. It is
# asked about 400 *other* problems. Two methods each blame one token:
#
# - **Implicit reward**: the token with the lowest $\log (\pi / \pi_{\text{ref}})$ after DPO.
# - **Surprisal**: the token with the lowest $\log \pi_{\text{ref}}$. This is the token with the
#   highest surprisal: the one that the model from *before* DPO expected least. It costs nothing, so
#   it is the baseline to beat.
#
# **Predict.** In what share of the 400 cases does each method blame the planted digit? A token drawn at
# random is the right one in 11 %. A rule that always blames the last digit is right in 22 %. The cell
# reads recorded runs (`minirlhf grid planted`): 300 steps of 64 pairs, mean of three seeds.

# %% tags=["predict"]
record = experiments.results("planted")
runs = record[record.variant == "planted digits"]
runs[["planted, surprisal", "planted, implicit reward"]].mean().round(2)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# Surprisal finds the planted digit in 94 % of the cases. The implicit reward finds it in 27 %,
# hardly more often than the rule *the last digit*. **The method that costs nothing wins by far.**
# On each seed the 95 % intervals lie far apart.
# </details>
#
# **Where does the blame fall?** We train here for 20 steps, and look at one of the 400 cases. Both strips
# are in nats, on one scale: orange is low.

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

# %%
case = asked["prompt"].index("20-1-9=")
tokens = [*asked["rejected"][case], "EOS"]
size = len(tokens)
strips = {"surprisal: log π_ref, before DPO": (tokens, before[case][:size])}
strips["implicit reward: log (π / π_ref)"] = (tokens, change[case][:size])
show.token_strips(strips, heading="20-1-9=   (planted: the 5)")

# %% [markdown]
# What to see in it: the model from before DPO finds the 5 by far the most unlikely token. DPO has
# pushed down the *0* behind it, and hardly the 5. The table counts all 400 cases: where does the
# blamed token stand?

# %%
place, mask = torch.tensor(asked["place"]), wrong.response_mask
last = mask.sum(1) - 2  # the last digit; EOS stands behind it


def where_blamed(evidence):
    """The share of cases in which the blamed token stands at each place."""
    blamed = torch.where(mask, evidence, torch.inf).argmin(1)
    hit, at_end = blamed == place, blamed == last
    parts = {"before the planted digit": blamed < place, "the planted digit": hit}
    parts["behind it, not the last digit"] = (blamed > place) & ~at_end
    parts["the last digit, not planted"] = at_end & ~hit
    return {name: part.double().mean().item() for name, part in parts.items()}


evidence = {"surprisal": before, "implicit reward": change}
pd.DataFrame({name: where_blamed(x) for name, x in evidence.items()}).round(2)

# %% [markdown]
# The implicit reward blames the last digit in 39 %, although this digit follows correctly from what
# stands before it. Surprisal does so in 2 %.
#
# And whole responses? For each problem we compare the right solution with the wrong one:

# %%
right = models.encode(digits, asked["prompt"], asked["chosen"])


def lead(model):
    """log pi of the right solution minus log pi of the wrong one, for each problem."""
    with torch.no_grad():
        logprobs = [models.policy_logprobs(model, b) for b in (right, wrong)]
    masks = [right.response_mask, wrong.response_mask]
    chosen, rejected = map(core.sequence_logprobs, logprobs, masks)
    return chosen - rejected


ahead = {"log π_ref": lead(solver) > 0}
ahead["implicit reward"] = lead(learner) > lead(solver)
pd.DataFrame(ahead).mean().round(2)

# %% [markdown]
# The sum of the implicit rewards is higher for the right solution in 68 % of the problems. So a policy
# can be right about sums and wrong about tokens. But here, too, the model from before DPO is better.
#
# **Errors of its own.** Planted errors are surprising by construction. The record also has 218 responses
# that the model *itself* wrote, with exactly one false step. Here a method must find the step. And it has
# two more methods:
#
# - **Surprisal after DPO**: the lowest $\log \pi$ of the trained policy.
# - **Value**: a critic that learned from the same responses to predict whether the answer will be
#   right (Cobbe et al. 2021). It blames the token after which the prediction falls most.
#
# Each was trained twice: on planted digits, and on the model's own right and wrong responses. The table
# has the mean share that is found. (Surprisal needs no training, so its columns are equal.)

# %%
methods = ["surprisal", "implicit reward", "surprisal after DPO", "value"]
columns = [f"{kind}, {name}" for kind in ("planted", "own") for name in methods]
shares = record.groupby("variant")[columns].mean().T.add_prefix("trained on ")
shares[["trained on planted digits", "trained on own samples"]].round(2)

# %% [markdown]
# **Planted digits** (upper half). Nothing beats surprisal, on any seed and with either kind of training.
#
# **Own errors** (lower half). A step at random is right in 43 %. Surprisal is weaker here, 69 %:
# the model was not surprised enough not to write the error. After DPO it seems better, with 77 % at
# best. But most errors stand in the last step. The rule *always the last step* is right in 74 %.
# This is inside the 95 % interval of the best run, [0.71, 0.82]. Had we compared with chance alone,
# we should have reported a success.
#
# A share hides something, too. Of the 56 errors in an earlier step, the rule finds none, and surprisal
# 95 %. In the last step surprisal finds 60 %.

# %% [markdown]
# **Why is a real run so far from the theorem?** Its conditions fail, one after the other:
#
# - Each pair has a certain label. So there is no optimum, and the sizes run away (section 4).
# - Nearly all responses are in no pair. The loss says nothing about them.
# - The policy is a network: a push at one prefix moves others.
# - It is stopped early.
#
# And the loss asks only that the *sum* of the rejected response falls. Wherever the error was
# planted, the wrong calculation ends with a wrong answer. So pushing final digits down helps with
# every pair. This would explain the blame, but nothing here proves it.

# %% [markdown]
# ## 7. What the numbers can be used for
#
# | use | what we saw |
# |---|---|
# | compare two responses by their sums | this is what DPO trains: 59 % of test pairs |
# | see what training has changed, token by token | exact, for any policy. It is a log-ratio |
# | blame a token for an error | not without beating surprisal and the last position |
# | a reward for each step of reasoning | open: it needs many responses with checked answers (PRIME, in Going further) |
#
# So a strip shows *where the policy has moved*. That this is where the response is good or bad holds at
# the optimum only.
#
# ## What to remember
#
# - The soft value $V^*$ is $\beta \log$ of the mean of $e^{Q^*/\beta}$ under the reference. $Q^*$ of a
#   token is the reward, or $V^*$ of the next prefix.
# - At DPO's optimum $\beta \log (\pi/\pi_{\text{ref}})$ of a token is $Q^* - V^*$: its gain over
#   what could be had at its prefix.
# - That tokens add up to their response holds for any policy and proves nothing.
# - After a real run the strip shows what has moved. On planted errors it is far worse than the
#   surprisal of the model before DPO.
# - Compare a locator with surprisal, with the last position and with chance.
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
# **4. Find the bug** *(medium, 20 minutes)*. A colleague computes the value of *any* policy at one prefix
# at which every next token ends the response: the expected $Q$, less the KL penalty. The first three
# arguments have the shape (V,). DPO trains a policy in such a world, and the curve shows its value. It
# should rise to $V^*$, the dotted line. Why is the curve below impossible? What is wrong? Mend it, run
# the checker, and draw the curve again.
#
# *Hint:* $V^*$ is the value of the *best* policy. The KL penalty is $\beta$ times a mean of log-ratios.
# Of which policy is it the mean?


# %% tags=["exercise"]
def state_value(logprobs, ref_logprobs, q, beta):
    probs, ref_probs = logprobs.exp(), ref_logprobs.exp()
    penalty = beta * (ref_probs * (logprobs - ref_logprobs)).sum()
    return (probs * q).sum() - penalty


check.state_value(state_value)

# %% [markdown] tags=["solution"]
# The curve rises above $V^*$, but no policy can be better than the best one. The policy chooses the
# tokens, so the log-ratios must be weighted with *its* probabilities, as $Q$ is. Weighted with the
# reference's, their mean is $-\mathrm{KL}(\pi_{\text{ref}} \,\|\, \pi)$. That is never positive, so
# the penalty became a bonus for leaving the reference. Before training both are zero, so a test
# with an untrained policy does not find the bug.


# %% tags=["solution"]
def state_value(logprobs, ref_logprobs, q, beta):
    penalty = beta * (logprobs.exp() * (logprobs - ref_logprobs)).sum()
    return (logprobs.exp() * q).sum() - penalty


check.state_value(state_value)


# %% tags=["exercise", "solution"]
def value_in_training(value, steps=60, beta=0.5):
    """The value of the policy at each step of DPO, in a world of one-token responses."""
    world, path = core.World.random(5, 1, seed=0), []
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
# **5. Blame a step** *(medium, 15 minutes)*. A response such as `12*3-9=26-9=17` has three steps.
# They end with `=`, and a `=` belongs to the step that it ends. From `evidence`, (B, R), `equals`,
# (B, R), true where the token is `=`, and the mask, return (B,) the number of the step, counted
# from 0, that contains the real token with the lowest evidence. Of equal ones take the first.
#
# *Hint:* padding can hold NaN, and `equals` can be true there. Some evidence is positive
# at every token. What must you put into the padding, so that it is never the lowest?


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
# divergence of each position to the margin. Let
# $D(y) = \sum_t \mathrm{KL}\big(\pi_{\text{ref}}(\cdot \mid s_t) \,\|\, \pi(\cdot \mid s_t)\big)$,
# and $h$ the difference of the two log-ratios. The loss is
# $-\log \sigma\big( \beta h - \beta [D(y_r) - D(y_c)] \big)$. So
# $\beta \log (\pi/\pi_{\text{ref}})(y) + \beta D(y)$ stands where DPO has the first term alone. In
# our world its optimum is not the Gibbs policy. It is one step of improvement at each prefix:
# $\pi(y_t \mid s_t) \propto \pi_{\text{ref}}(y_t \mid s_t)\, e^{Q^{\text{ref}}(s_t, y_t)/\beta}$,
# with the plain $Q$ of the *reference*. It assumes that the reference writes the rest.
#
# Why? With this policy $\beta \log (\pi/\pi_{\text{ref}}) = Q^{\text{ref}} - \beta \log N$, where
# $N$ is the sum that normalises. The KL term of the position is the mean of minus that under the
# reference: $\beta \log N - V^{\text{ref}}$. Together they are $Q^{\text{ref}} - V^{\text{ref}}$.
# Over a response these add up to $r(x, y) - V^{\text{ref}}(s_0)$, so every pair has the right
# margin. In the world of section 4 its probabilities differ from those of the Gibbs policy by up to 0.30.
#
# **The worked example of three words.** Section 7 of sheet 91 has soft values for *good*, *bad* and
# the full stop: 0.385 at the start, 1.222 after *good* and −0.778 after *bad*. In *good good* the
# first word gains 0.838, the second 0.778, together 1.615 = 2 − 0.385.
#
# **About the experiment of section 6.** DPO and the critic had one learning rate, one $\beta$ and
# one length of training. We did not look for better ones. Both read 38,400 responses. There are
# 5,000 planted pairs, but only 2,094 to 2,206 pairs of own responses, which are therefore read more
# often. The critic hardly learned: of its training responses it judges only 53 % to 59 % rightly, and
# a coin 50 %. So its row says nothing about critics as such. All intervals are over cases.
# Surprisal on planted digits has the 95 % interval [0.92, 0.96], and on own errors [0.62, 0.75].
# The best share of any trained method on a planted digit is 0.76. On own errors surprisal minus the
# rule *last step* is −0.06 [−0.15, 0.05]. For the trained methods the record has only the share
# over all own errors.
#
# **What the libraries do.** TRL and OpenRLHF add up the log-ratios of a response before they do
# anything else. Neither logs a token's implicit reward, though it is there. TRL weighs tokens
# differently in one case (`ld_alpha`, for the tokens beyond the shorter response's length). Rewards
# of steps are trained on purpose: OpenRLHF trains process reward models from labelled steps. PRIME
# (a recipe of verl) trains a model on right and wrong answers, and uses
# $\beta \log (\pi/\pi_{\text{ref}})$ of each token as a reward, updated all the time on new
# samples. Here `core.implicit_rewards` takes any shape, and `show.token_strips` draws it.
#
# **References.** Rafailov et al. 2024, *From r to Q\*: your language model is secretly a Q-function*
# (sections 3 and 4). Zeng et al. 2024, *Token-level direct preference optimization* (section 4). Cobbe
# et al. 2021, *Training verifiers to solve math word problems* (section 4). Haarnoja et al. 2017,
# *Reinforcement learning with deep energy-based policies* (section 2: soft values). Cui et al. 2025,
# *Process reinforcement through implicit rewards* (PRIME). Xiong et al. 2024, *Building math agents with
# multi-turn iterative preference learning*.
#
# *How this lesson is checked:* that DPO's optimum has $Q^* - V^*$ at every prefix is tested in
# `tests/core/test_exact.py`, TDPO's optimum in `tests/core/test_preference.py`, the planted cases in
# `tests/experiments/test_planted.py`. Every number about a run is compared with the record or with
# the output above (`tests/claims/test_lesson_13.py`).
