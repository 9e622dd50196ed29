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
# # 11 · GRPO
#
# After this lesson you can
#
# - write one training step of GRPO, and say what each line is for,
# - say what dividing by the length and by the standard deviation changes,
# - tell whether training made a model solve more problems, or made it surer of what it could do.
#
# **You need** lessons 03 (the end-of-sequence token EOS, the small world), 04 (REINFORCE, baselines),
# 05 (advantages, the critic) and 06 (PPO's ratio and clip). About 40 minutes to read and 95 for the exercises.

# %%
import copy

import pandas as pd
import torch

from minirlhf import core, evaluate, experiments, loops, models, rewards, show, tasks
from minirlhf.classroom import FAST, check

# %% [markdown]
# ## 1. The idea: the group is the baseline
#
# Is a score of 0.7 good? That depends on what the policy usually gets for this
# prompt. Proximal policy optimisation (PPO) trains a second network, the critic, to predict it.
# **Group relative policy optimisation (GRPO)** samples a **group** instead: $G$ responses to the same
# prompt. The advantage of a response compares it with the others.
#
# *Example.* A model answers `16+16+11=` four times. It can write a step first: `32+11=43` (16+16 is 32). Or
# it answers at once, with the sign `~` in front: `~43`. A right answer has the score 1. The scores 1, 0, 0, 1
# have the mean 1/2:
#
# | response | score | score − mean | squared | advantage |
# |---|---|---|---|---|
# | `~43` | 1 | 0.5 | 0.25 | 0.87 |
# | `~45` | 0 | −0.5 | 0.25 | −0.87 |
# | `32+11=33` | 0 | −0.5 | 0.25 | −0.87 |
# | `32+11=43` | 1 | 0.5 | 0.25 | 0.87 |
#
# The squares sum to 1. Divided by $G - 1 = 3$ this is 1/3, and the standard deviation is its
# root, 0.577. A right response has the advantage 0.5 / 0.577 = 0.87.
#
# In symbols: response $y_i$ has the score $r_i$. The $G$ scores have the mean $\bar r$ and the
# standard deviation $\sigma$. The advantage of the response is
#
# $$ A_i = \frac{r_i - \bar r}{\sigma + \delta} . $$
#
# Every token of the response has this advantage. The small constant $\delta = 0.0001$ (not lesson 05's TD error)
# avoids a division by 0.
#
# The rest is PPO (lesson 06) with one change: the mean at the end. The importance ratio
# $\rho_{i,t} = \pi / \pi_{\text{old}}$ of token $t$ is its probability under the policy that learns, over that under
# the policy that sampled. With $\epsilon = 0.2$, the token's loss is
#
# $$ L_{i,t} = -\min\big(\rho_{i,t} A_i,\; \text{clip}(\rho_{i,t},\, 1-\epsilon,\, 1+\epsilon)\, A_i\big) . $$
#
# Response $i$ has $|y_i|$ tokens, and a batch has $N$ groups. The whole loss is
#
# $$ \frac{1}{N G} \sum_{i=1}^{N G} \frac{1}{|y_i|} \sum_{t=1}^{|y_i|} L_{i,t} , $$
#
# the mean over the tokens of a response, then over the responses (`sequence_mean`). PPO took it over all tokens
# at once. In words: responses that beat their group become more likely, the others less likely.
#
# The package computes the same advantages:

# %%
by_hand = torch.tensor([[0.866, -0.866, -0.866, 0.866]])
package = core.group_relative(torch.tensor([[1.0, 0.0, 0.0, 1.0]]))
assert torch.allclose(package, by_hand, atol=1e-3)

# %% [markdown]
# ## 2. Which advantages?
#
# **Predict** the advantages of these four groups, roughly.
#
# | group | scores |
# |---|---|
# | one response is right | 1, 0, 0, 0 |
# | all are right | 1, 1, 1, 1 |
# | two responses, far apart | 1, 0 |
# | two responses, nearly equal | 1.001, 1.000 |

# %% tags=["predict"]
for scores in ([1, 0, 0, 0], [1, 1, 1, 1], [1, 0], [1.001, 1.000]):
    group = torch.tensor([scores], dtype=torch.float64)
    print(scores, "->", core.group_relative(group)[0].numpy().round(2))

# %% [markdown]
# <details><summary>What you should see</summary>
#
# - *One is right*: about 1.5 for the right one, and −0.5 for each wrong one.
# - *All are right*: 0 everywhere. There is nothing to learn. The same holds if all are wrong.
# - *Far apart*: 0.71 and −0.71.
# - *Nearly equal*: 0.62 and −0.62, nearly the same! After the division, a tiny difference counts
#   almost as much as a large one.
# </details>

# %% [markdown]
# ## 3. A task with a verifiable reward
#
# A reward model can be fooled. For some tasks a rule can check the result itself: a **verifiable reward**. Our
# rule is: 1 if the last number of the response is right, else 0.
#
# The model is `tiny-steps`, a language model with 0.6 million parameters. It writes
# arithmetic, and every character is a token. It trains on **practice problems** with two or three operations,
# such as `7+11+10=`. Here are five samples for each of five other problems:

# %%
torch.set_num_threads(1)  # sums in a fixed order, so that two runs can be equal
start, tokenizer = models.load_policy("tiny-steps")
score = rewards.reward_function(rewards.right_answer, tokenizer)
sampling = models.SamplingConfig(max_new_tokens=24, temperature=1.0)


def table(policy, questions):
    """Five responses to each question, with a mark: right or wrong."""
    five_each = [question for question in questions for _ in range(5)]
    (batch,) = models.sample_text(policy, tokenizer, five_each, config=sampling)
    marks = ["✓" if right else "✗" for right in score(batch)]
    cells = pd.Series(models.decode(tokenizer, batch)) + " " + pd.Series(marks)
    return pd.DataFrame(cells.to_numpy().reshape(-1, 5), index=questions)


problems = tasks.arithmetic.problems("test", 5, levels=(2, 3, 4))
questions = [problem.prompt for problem in problems]
table(start, questions)

# %% [markdown]
# The model mostly answers at once (`~`). Five samples are few, so we took 16 for each of 400 **test problems** (never
# practised). Of the answers at once, 29 % are right. Of those in written steps, 75 % are right. The gap is as large
# among the answers to the *same* problem. So the model would do better if it wrote steps more often.

# %% [markdown]
# ## 4. A group under the microscope
#
# Which tokens are blamed when an answer is wrong? Here is a group of eight responses to `16+16+11=`. The colour
# is the advantage: blue tokens are pushed up, orange ones down.
#
# The **push** on a token is minus the derivative of the response's loss (section 1, without $1/(NG)$) with respect to
# the token's log-probability. Before the first update every ratio is 1, because the policy that learns is the one that
# sampled. Then the push is $A_i / |y_i|$: the advantage, divided by the response's length. A push down is
# **blame**.

# %%
eight = ["16+16+11="] * 8
(batch,) = models.sample_text(start, tokenizer, eight, config=sampling, seed=2)
scores = score(batch)
# `over_tokens` copies the advantage of a response to all its tokens.
advantages = core.over_tokens(core.group_relative(scores[None]), batch.response_mask)
batch = batch.with_columns(scores=scores, advantages=advantages)
tokens = evaluate.token_table(batch, tokenizer, actor=start, temperature=1.0)
assert scores.sum() == 1  # one response of eight is right
still = "../docs/images/microscope_group.png"
show.microscope(tokens, "advantage", text="all", still=still)

# %% [markdown]
# 1. **One number per response.** The only right response, `32+11=43`, has the advantage 2.474
#    at every token. All others have −0.353.
# 2. **Blame without a place.** Look at response 6, `32+11=33`. Its first written step is right. But all its tokens are
#    pushed down alike.
# 3. **Other responses show the place.** Response 1, the right one, has the same `32+11=`. Both have 9
#    tokens, with the EOS. So the pushes on each token of this prefix are 2.474 / 9 = 0.275 and
#    −0.353 / 9 = −0.039. They sum to +0.236: the right step becomes *more* likely.

# %% [markdown]
# ## 5. One training step
#
# A batch has 16 prompts with 8 responses each. So there are B = 128 responses, and those to the same prompt are
# neighbours. R is the number of tokens of the longest response. Shorter ones are padded, and a mask marks the
# tokens that count.
#
# Two epochs with minibatches of 64 responses make four updates per batch.
#
# | part | what it does | what it makes | shape |
# |---|---|---|---|
# | **1.** Sample | writes a group of responses to each prompt, and keeps the log-probability of every token under the policy that samples | `batch` | (B, R): responses × tokens |
# | **2.** Score | the rule says right or wrong | `scores` | (B,) |
# | **3.** Compare | compares each score with its group | `groups`, `centred` | (16, 8): prompts × group |
# | | copies the advantage of a response to all its tokens | `advantages` | (B, R) |
# | **4.** Update | for each minibatch: the clipped loss of every token | `losses` | (64, R) |
# | | the mean over the tokens of a response, then over the responses; one update of the weights | the loss | one number |

# %%
prompts = experiments.practice_problems()  # 10,000 prompts such as "7+11+10="
actor = copy.deepcopy(start)
optimizer = loops.make_optimizer(actor, loops.OptimiserConfig(lr=1e-4))
generator = torch.Generator().manual_seed(0)


# %%
def grpo_step(questions):
    # 1. Sample a group of 8 responses to each prompt. Keep their log-probabilities.
    ids, prompt_mask = models.encode_prompts(tokenizer, questions)
    batch = models.sample(
        actor,
        ids,
        prompt_mask,
        samples_per_prompt=8,
        eos_id=tokenizer.eos_token_id,
        config=sampling,
        generator=generator,
    )
    mask = batch.response_mask
    # 2. Score every response: 1 if its answer is right, else 0.
    scores = score(batch)  # (B,)
    # 3. Compare each response with its group: a row of `groups` for each prompt.
    # This comes before the shuffle below, which tears the groups apart.
    groups = scores.view(len(questions), 8)
    centred = groups - groups.mean(1, keepdim=True)
    advantages = centred / (groups.std(1, keepdim=True) + 1e-4)
    # Every token of a response has the advantage of the response.
    advantages = advantages.view(-1, 1).expand(mask.shape)
    batch = batch.with_columns(advantages=advantages)
    # 4. Update: two epochs over the batch, in minibatches of 64 responses.
    for _ in range(2):
        for rows in torch.randperm(len(scores), generator=generator).split(64):
            part = batch.select(rows)
            mask = part.response_mask
            logprobs = models.policy_logprobs(actor, part, temperature=1.0)
            # The clipped loss of every token, with epsilon = 0.2.
            losses = core.ppo_clip(logprobs, part.old_logprobs, part.advantages, mask)
            # The sum over a response divided by its length; then the mean of all.
            core.aggregate(losses, mask, how="sequence_mean").backward()
            optimizer.step()
            optimizer.zero_grad()
    return scores.mean().item()


# %% [markdown]
# The package's `train_group` is this loop with extras such as gradient clipping. `GroupConfig.plain` switches
# them off. Then three training steps leave the same weights:

# %%
order = list(loops.shuffled_batches(len(prompts), 16, 3, seed=0))
measured = [grpo_step([prompts[i] for i in index]) for index in order]

off = loops.KLConfig(kl_coef=0)
settings = {"steps": 3, "group_size": 8, "minibatch_size": 64, "epochs": 2}
config = loops.GroupConfig.plain("grpo", **settings, sampling=sampling, kl=off)
other, _ = loops.train_group(copy.deepcopy(start), tokenizer, prompts, score, config)
assert models.same_weights(actor, other)
measured

# %% [markdown]
# These are the batches' shares of right answers. (Each batch has other prompts, so no rise shows.)
#
# ## 6. Divided by the length
#
# Why does GRPO divide by the length of a response? So that long and short responses count the same: the pushes of
# a response sum to its advantage.
#
# But look at a small world (lesson 03). Its words are *good*, *bad* and the full stop, which
# ends a response. At most six words are allowed. A response is right if its *first* word is *good*. So length
# earns nothing.

# %% tags=["shared"]
small = core.World.from_reward(
    ("good", "bad", "."), 6, lambda words: float(words[0] == "good")
)
lengths = small.response_mask.sum(1).double()  # of every response


def mean_length(probs, score):
    """The mean length of the responses with this score: 0, the wrong ones, or 1."""
    these = small.rewards == score
    return ((probs * lengths)[these].sum() / probs[these].sum()).item()


# %% [markdown]
# All responses of this world can be listed. So we train with the exact gradient, here without $\sigma$. One run
# divides by the response's own length, the other by the constant 6. **Predict**: does the mean length of the wrong
# responses rise, fall or stay? And that of the right ones?


# %%
def train_small(divisor):
    """The mean length of wrong and of right responses, over 60 training steps."""
    logits, path = small.ref_logits, {"wrong responses": [], "right responses": []}
    for _ in range(61):
        logits = logits.detach().requires_grad_(True)
        probs = small.probs(logits).detach()
        path["wrong responses"].append(mean_length(probs, 0))
        path["right responses"].append(mean_length(probs, 1))
        # The expected score is the baseline: the mean of a very large group.
        advantages = small.rewards - (probs * small.rewards).sum()
        logprobs = small.sequence_logprobs(logits)
        (probs * advantages * logprobs / divisor).sum().backward()
        logits = logits + 4 * logits.grad
    return path


# %% tags=["predict"]
runs = {"divided by the own length": train_small(lengths), "by 6": train_small(6)}
labels = {"xlabel": "training step", "ylabel": "mean number of words"}
show.lines(runs, ylim=(2, 4), **labels)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# - *Own length*: wrong responses get longer, from 2.3 to 3.1 words. Right ones get shorter, from 3.6 to 3.1.
# - *The constant*: no length changes.
# </details>
#
# Why? After its first word a response is right or wrong, whatever follows. As its second word it can *stop*, and
# then has 2 words. Or it can *go on*, say to 4. Let the advantage be −1 if the response is wrong, and 1 if it is
# right. This is the push on the second word:
#
# | the response is | it was sampled to | push, not divided | push, divided by the length |
# |---|---|---|---|
# | wrong | *stop* | −1 | −1 / 2 = −0.50 |
# | wrong | *go on* | −1 | −1 / 4 = −0.25 |
# | right | *stop* | 1 | 1 / 2 = 0.50 |
# | right | *go on* | 1 | 1 / 4 = 0.25 |
#
# **Not divided**, or divided by a constant, both options get the same push. Equal pushes cancel on average,
# because the mean of $\nabla \log \pi$ is 0 (lesson 04).
#
# **Divided**, the shorter response has the stronger push. So wrong responses stop less often, and right ones more
# often.

# %% [markdown]
# ## 7. Divided by the standard deviation
#
# Why does GRPO divide by $\sigma$? So that scores of any scale give equally large advantages. But then some prompts
# count for more.
#
# Leave the division out first. If $c$ of $G$ responses are right, each right one has the advantage $1 - c/G$. All
# right ones together have $c\,(G-c)/G$. We call this the **pull** of the group. The squared deviations of all $G$
# scores sum to the same number, so it is also $(G-1)\,\sigma^2$. Now divide by $\sigma$: the pull becomes
# $(G-1)\,\sigma$.
#
# How many times as large does the division make the pull of a prompt? This is the **factor of the prompt**: the mean of
# $\sigma$ over all groups that one could sample, divided by the mean of $\sigma^2$. Let $p$ be the chance of a right
# response. We take groups of 16.
#
# **Predict.** Which prompts have the largest factor: hard ones (small $p$), middling ones or easy ones?

# %% tags=["predict"]
c = torch.arange(17, dtype=torch.float64)  # right answers in a group of 16
sigma = (c * (16 - c) / 16 / 15).sqrt()  # because (G - 1) sigma^2 = c (G - c) / G
p = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
# The chance of each c: a row for each p.
chance = torch.distributions.Binomial(16, p[:, None]).log_prob(c).exp()
factor = (chance @ sigma) / (chance @ sigma**2)
labels = {"xlabel": "chance of a right answer, p", "ylabel": "factor of the prompt"}
show.lines({"factor": factor}, p, ylim=(0, 4.2), **labels)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# Very hard and very easy ones. At $p$ = 2 % and at 98 % the factor is 3.7, at 50 % only 2.0.
# </details>
#
# A factor that all prompts share changes no prompt's share of the gradient. So only the ratio of two factors
# counts. Beside a prompt with $p$ = 50 %, a hard one with 2 % weighs 3.7 / 2.0 = 1.9 times as much as without the
# division. It still pulls less, because most of its groups have no right answer: the mean of $\sigma$ is 0.07, and
# 0.50 at $p$ = 50 %.
#
# Why is its factor so large? Here are its groups:
#
# | right answers | probability | $\sigma$ | probability × $\sigma^2$ | probability × $\sigma$ |
# |---|---|---|---|---|
# | none | 0.724 | 0 | 0 | 0 |
# | one | 0.236 | 0.25 | 0.0148 | 0.0591 |
# | two | 0.036 | 0.34 | 0.0042 | 0.0124 |
# | three | 0.003 | 0.40 | 0.0006 | 0.0014 |
# | sum of all | | | 0.0196 | 0.0729 |
#
# The factor is 0.0729 / 0.0196 = 3.7. Most of the pull comes from groups with one right answer. Their $\sigma$ is
# small, so dividing by it changes much. At $p$ = 50 % $\sigma$ is mostly near 0.5.
#
# **Dr. GRPO** ("done right") leaves $\sigma$ out, and divides by a constant instead of the length. For `tiny-steps` we
# take the greatest length allowed, 24 tokens. Two lines of `grpo_step` change: `advantages = centred`, and
# `core.aggregate(losses, mask, how="constant", constant=24)`.

# %% [markdown]
# ## 8. What a run looks like
#
# First a short run of our own: 40 training steps, half a minute. It makes **one update per batch**, not four
# as in section 5. Then the model answers the problems of section 3 again:

# %%
steps = 3 if FAST else 40  # FAST=1 is for the tests of this page
config = experiments.group_config("arithmetic", "grpo", steps=steps)
trained, _ = loops.train_group(copy.deepcopy(start), tokenizer, prompts, score, config)
table(trained, questions)

# %% [markdown]
# It uses written steps more often.
#
# And this is the same training for 80 steps, with three seeds, recorded with `minirlhf experiment family`:

# %%
history = experiments.results("family_history")
show.curves(
    history[history.variant == "grpo"],
    columns=["score", "length", "frac_reward_zero_std"],
    across=3,
)

# %% [markdown]
# **The payoff**: always writing the most likely token, the model solves 41 % of the 400 test problems before training,
# and 87 % after it. The other numbers are means over the first ten training steps, and over the last twenty.
#
# - `score`, the share of right answers to practice problems, rises from 0.41 to 0.67.
# - `length`, in tokens, rises from 5.8 to 9.6. Length is not rewarded. But written steps are longer than guesses, and
#   more often right. The effect of section 6 is weak here: on the test problems GRPO and Dr. GRPO end at nearly the
#   same length (9.5 and 9.6 tokens).
# - `frac_reward_zero_std`, the share of groups with equal scores, rises from 9 % to 20 %.

# %% [markdown]
# ## 9. Sharpening or learning?
#
# Did the model learn something, or did it only become surer of what it could do?
# **pass@k** is the chance that at least one of $k$ samples is right. Three made-up
# problems, with their chances of a right answer:
#
# | | problem A | problem B | problem C | pass@1 | pass@16 |
# |---|---|---|---|---|---|
# | before training | 50 % | 50 % | 0 % | 33 % | 67 % |
# | one model after it: **sharpening** | 90 % | 90 % | 0 % | 60 % | 67 % |
# | another model after it: **learning** | 70 % | 70 % | 40 % | 60 % | 100 % |
#
# Both models have the same pass@1. Only pass@16 shows that the second one solves problem C.
#
# ### 9a. The experiment
#
# We test on 400 problems that are harder than those practised: sums of four numbers instead of
# three, such as `12+5-16+2=`. (Practice has four numbers only together with a multiplication.)
#
# `minirlhf experiment longer` trains as in section 8, for 400 training steps, with three seeds. The
# model before it is called `start`.
#
# **Predict.** Training lifts pass@1 from 6 % to 9 %. Does pass@16 rise, too?

# %% tags=["predict"]
longer = experiments.results("longer")
longer = longer[longer.variant.isin(["start", "grpo, 400 steps"])]
passed = experiments.pass_at_each_k(longer, samples=16)
show.lines(passed, range(1, 17), xlabel="k", ylabel="pass@k")

# %% [markdown]
# <details><summary>What you should see</summary>
#
# The two lines cross near $k = 8$. With one try the trained model is ahead. With 16 tries the start is.
# </details>
#
# ### 9b. The verdict
#
# Is a change more than luck? With each seed, `start` was sampled anew. It is the same model three times, but its
# pass@16 is 0.34, 0.32 and 0.37. This spread is larger than the gap between the two lines at $k = 16$. So we need
# an interval.
#
# For each problem, average its change of pass@16 over the three seeds. The mean of these 400 changes is the **pooled**
# change. How different would it be with other problems? We estimate it from our
# own (the *bootstrap*). Draw 400 of the changes with replacement: some come twice, others not at all. Take their mean.
# Repeat this many times. The middle 95 % of the means are the **95 % interval**.
#
# So the interval is about other problems, with the same three training runs. The second step below looks at each run.
#
# Choose before you look which rise of pass@16 is worth having. Ours is 0.05. Then go through three steps:
#
# 1. Does the pooled interval of pass@1 lie above 0? If not, the verdict is **no gain**.
# 2. Does the interval of pass@16 lie above 0 for one seed, and below 0 for another? Then the verdict is
#    **undecided**, because the next run may go either way.
# 3. Otherwise look at the pooled interval of pass@16:
#
# | the interval contains 0? | contains 0.05? | verdict |
# |---|---|---|
# | no, it lies above 0 | | **learning**: a rise is shown |
# | yes | yes | **undecided** |
# | yes | no, the whole interval is below 0.05 | **sharpening**: a rise worth having is excluded |
# | no, it lies below 0 | | **sharpening with a loss** |
#
# **Predict** the verdict on our run.


# %% tags=["predict"]
def change(measure, runs):
    """The mean change from the start, with its interval: difference, low, high."""
    return experiments.difference_over_prompts(runs, measure, "start").iloc[0, :3]


changes = {"pass@1, pooled": change("pass_1", longer)}
for seed in (0, 1, 2):
    changes[f"pass@16, seed {seed}"] = change("pass_16", longer[longer.seed == seed])
changes["pass@16, pooled"] = change("pass_16", longer)
changes = pd.DataFrame(changes).T
changes.round(3)

# %% tags=["predict"]
lines = {"no change": 0, "a rise worth having": 0.05}
show.bars(changes, reference=lines, label="change", horizontal=True)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# **Sharpening.** First step: the pooled interval of pass@1 lies above 0. Second step: the interval of seed 2 lies
# wholly below 0. But no interval of pass@16 lies above 0, so nothing contradicts it. Third step: the pooled
# interval of pass@16, from −0.07 to 0.01, contains 0, but not 0.05.
# </details>

# %% [markdown]
# ## What to remember
#
# - GRPO: a group per prompt, $A_i = (r_i - \bar r) / (\sigma + \delta)$ at every token, PPO's clipped loss. No
#   critic. A group of equal scores teaches nothing.
# - Right written steps of a wrong answer are blamed, too. Other responses with the same beginning can make
#   up for it.
# - Dividing by a response's own length makes wrong responses longer.
# - Dividing by $\sigma$ gives very hard and very easy prompts more weight. Dr. GRPO leaves out both divisions.
# - A gain in pass@1 may be sharpening. Look at pass@k, too.
#
# ## Exercises
#
# Solutions are in `solutions/11_grpo.ipynb`.

# %% [markdown] tags=["exercise"]
# **1. GRPO's advantages** *(easy, 10 minutes)*. `group_scores` has the shape (N, G): N prompts with G
# responses each. Return the advantages (N, G), with $\delta = 0.0001$ and the standard deviation of
# `torch.std`. A group of equal scores must give exactly 0. *(If you collect your functions in `my_rlhf.py`, as
# lesson 00 proposes, this is one of them.)*
#
# *Hint:* try the code of section 5 on three scores of 0.9. Is the answer 0?


# %% tags=["exercise"]
def group_advantages(group_scores): ...  # your code


check.group_advantages(group_advantages)


# %% tags=["solution"]
def group_advantages(group_scores):
    centred = group_scores - group_scores.mean(1, keepdim=True)
    equal = group_scores.amax(1, keepdim=True) == group_scores.amin(1, keepdim=True)
    spread = group_scores.std(1, keepdim=True)
    return torch.where(equal, 0.0, centred) / (spread + 1e-4)


check.group_advantages(group_advantages)

# %% [markdown] tags=["exercise"]
# **2. GRPO's loss, whole** *(medium, 15 minutes)*. `logprobs`, `old_logprobs` and `mask` have the
# shape (N G, R), a prompt's responses side by side. `group_scores` is (N, G). Return the loss of
# the batch, one number: advantages (with $\delta = 0.0001$), ratio, clip, the mean over the tokens
# of each response, the mean over responses. (In no group are all scores equal.) The checker
# compares the gradient, too.
#
# *Hint:* padding can hold NaN, and NaN times 0 is NaN: replace it with `torch.where(mask, x, 0.0)`
# first. What is the ratio at a padded position then? `flatten()` puts the advantages into the order of
# the responses.


# %% tags=["exercise"]
def grpo_loss(logprobs, old_logprobs, group_scores, mask, eps): ...  # your code


check.grpo_loss(grpo_loss)


# %% tags=["solution"]
def grpo_loss(logprobs, old_logprobs, group_scores, mask, eps):
    centred = group_scores - group_scores.mean(1, keepdim=True)
    advantages = centred / (group_scores.std(1, keepdim=True) + 1e-4)
    advantages = advantages.flatten()[:, None]  # one per response, for all its tokens
    new, old = (torch.where(mask, x, 0.0) for x in (logprobs, old_logprobs))
    ratio = (new - old).exp()
    clipped = ratio.clamp(1 - eps, 1 + eps)
    losses = -torch.minimum(ratio * advantages, clipped * advantages)
    return (torch.where(mask, losses, 0.0).sum(1) / mask.sum(1)).mean()


check.grpo_loss(grpo_loss)

# %% [markdown] tags=["exercise"]
# **3. A colleague's divisor** *(hard, 20 minutes)*. A colleague has read section 6, and no longer divides by a
# response's own length. The loss below divides all responses of a group by the *same* number: their mean length.
# So every token of the group counts the same. It leaves $\sigma$
# out, as section 6 does.
#
# Try it in the small world of section 6, where length earns nothing. **Predict**: does the mean length of the
# wrong responses rise, fall or stay? Then run both cells, and look at the curve. (The first cell trains on sampled
# groups of four, with the loss that it is given. It still measures the exact length.)
#
# `logprobs` and `mask` have the shape (N G, R), a prompt's responses side by side. `group_scores` is
# (N, G). The responses are sampled by the policy that learns, so all ratios are 1.


# %% tags=["exercise", "solution"]
def length_of_wrong_responses(loss, steps=40, groups=4096):
    """The exact mean length of wrong responses, at each training step."""
    drawing, logits, path = torch.Generator().manual_seed(0), small.ref_logits, []
    for _ in range(steps):
        probs = small.probs(logits)
        path.append(mean_length(probs, 0))
        rows = torch.multinomial(probs, groups * 4, True, generator=drawing)
        scores = small.rewards[rows].view(groups, 4)
        logits = logits.detach().requires_grad_(True)
        logprobs, mask = small.logprobs(logits)[rows], small.response_mask[rows]
        loss(logprobs, scores, mask).backward()
        logits = logits - 4 * logits.grad
    return path


# %% tags=["exercise"]
def colleagues_loss(logprobs, group_scores, mask):
    centred = group_scores - group_scores.mean(1, keepdim=True)
    advantages = centred.flatten()[:, None]
    losses = torch.where(mask, -advantages * torch.where(mask, logprobs, 0.0), 0.0)
    lengths = mask.sum(1).view(group_scores.shape).double()
    of_group = lengths.mean(1, keepdim=True).expand(group_scores.shape).flatten()
    return (losses.sum(1) / of_group).mean()


show.lines(
    {"wrong responses": length_of_wrong_responses(colleagues_loss)},
    xlabel="training step",
    ylabel="mean number of words",
    ylim=(2.2, 2.6),
)

# %% [markdown] tags=["exercise"]
# <details><summary>Once you have seen the curve: what to explain, and what to mend</summary>
#
# It flattens, because the policy learns. After 25 training steps only 3 % of its responses are wrong. So
# few wrong responses are sampled, and little pulls on their length. But why does it rise at all?
#
# The mean *score* of a group contains the response's own score, and that does no harm: it only shrinks the
# expected gradient, to $(G-1)/G$. The mean *length* contains its own length. Why does that do harm? Answer in
# two sentences. This table helps. The group has the scores 1, 0, 0, 0. Your response is the last, a wrong one. The
# other three have 3 words each:
#
# | your response has | its advantage | mean length of the group | push on each of its words |
# |---|---|---|---|
# | one word | | | |
# | five words | | | |
#
# Then mend the loss, draw the curve again, and run the checker. The curve should be flat but for noise. That is
# necessary, but not enough. Take the mean length of the *other three* as the divisor: the curve is flat, and the
# loss is still wrong. To see why, compare a prompt whose responses are all short with one whose responses are all
# long. (The checker accepts any positive constant times our loss. The solutions have the answers in words, too.)
# </details>

# %% tags=["exercise"]
check.colleagues_loss(colleagues_loss)

# %% [markdown] tags=["solution"]
# **Why the mean length does harm.** A longer wrong response raises the group's mean length. So it lowers its own
# blame by being long, and long wrong responses survive. In the table the advantage is −1/4 both times. With 1 word
# the mean length is 2.5, and the push −0.10. With 5 words the mean length is 3.5, and the push −0.07. The pull is
# weaker than with its own length, because the own length is only one of four.
#
# **Why the mean score does none.** It is *subtracted*, and only rescales the expected gradient. The others'
# part of it is a number that the response does not influence, and such a number changes nothing on average
# (lesson 04). The own part, a quarter of the own score, makes the advantage smaller by the same share for
# every response.
#
# A divisor *multiplies* the gradient of each response. So it must not depend on the response. A constant does
# not, and any will do. The mended loss is that of Dr. GRPO: no standard deviation, and a constant divisor. We
# take the longest length allowed, as Dr. GRPO does.
#
# **Why not the mean length of the *others*?** It does not depend on the response, so the curve is flat, too.
# It is still not the answer: where a prompt's responses are short, the divisor is small, so this prompt
# counts for more.


# %% tags=["solution"]
def colleagues_loss(logprobs, group_scores, mask):
    centred = group_scores - group_scores.mean(1, keepdim=True)
    advantages = centred.flatten()[:, None]
    losses = torch.where(mask, -advantages * torch.where(mask, logprobs, 0.0), 0.0)
    return losses.sum() / (len(losses) * 6)  # the longest response has six words


show.lines(
    {"wrong responses": length_of_wrong_responses(colleagues_loss)},
    xlabel="training step",
    ylabel="mean number of words",
    ylim=(2.2, 2.6),
)

# %% tags=["solution"]
check.colleagues_loss(colleagues_loss)

# %% [markdown] tags=["exercise"]
# **4. pass@k** *(medium, 10 minutes)*. `right` has the shape (N, n), booleans: n samples of each of N
# problems. Return pass@k of each problem, (N,). If $c$ of the $n$ samples are right,
#
# $$ \text{pass@}k = 1 - \binom{n - c}{k} \Big/ \binom{n}{k} , $$
#
# where $\binom{a}{k}$ counts the ways to choose $k$ of $a$ things. The fraction is the chance that
# $k$ samples, chosen from the $n$, are all wrong.
#
# *Hint:* choose the $k$ samples one after the other, without putting any back. How likely is it that
# the first one is wrong? And the second, if the first was wrong?


# %% tags=["exercise"]
def pass_at_k(right, k): ...  # your code


check.pass_at_k(pass_at_k)


# %% tags=["solution"]
def pass_at_k(right, k):
    n, wrong, missed = right.shape[1], (~right).sum(1).double(), 1.0
    for i in range(k):
        missed = missed * (wrong - i).clamp(min=0) / (n - i)
    return 1 - missed


check.pass_at_k(pass_at_k)

# %% [markdown] tags=["exercise"]
# **5. The whole training step on an empty page** *(hard, 30 minutes)*. Close section 5. Write `grpo_step` from
# memory, under the name `my_step`: sample groups of 8, score, compare (with $\delta = 0.0001$), two
# epochs with minibatches of 64. Return the mean score of the batch. The
# last cell runs three training steps and compares them with section 5.
#
# You need `models.encode_prompts`, `models.sample`, `score`, `batch.with_columns`, `batch.select`,
# `batch.response_mask`, `batch.old_logprobs`, `models.policy_logprobs`, `core.ppo_clip` and
# `core.aggregate(..., how="sequence_mean")`. `help(models.sample)` tells you the arguments of a function.
# All random numbers come from `generator`.
#
# <details><summary>My numbers differ. Where do I look?</summary>
#
# Mostly like this:
#
# - The first mean score differs: the sampling.
# - The second one differs: the mean that is subtracted, the `view`, the shuffling, the number of epochs
#   or updates, the clip, a sum where a mean is due, or a forgotten `optimizer.zero_grad()`.
# - The second one differs, and is another one each time you run your cells: no `generator=generator` in the
#   shuffle, or no `generator` in `models.sample`. Without it, `models.sample` draws from torch's own generator.
#   `train_group` has just given that one the same seed. So the first score agrees the first time you run your cells,
#   and differs from then on.
# - Only the third one differs: a mean over all tokens of the minibatch, one shuffle for both epochs, or
#   no division by the standard deviation.
# - All scores agree, and the weights do not: another $\delta$, $G$ instead of $G - 1$ in the standard
#   deviation, or one standard deviation for the whole batch.
# </details>


# %% tags=["exercise"]
def my_step(questions): ...  # your code


# %% [markdown] tags=["solution"]
# `grpo_step` in section 5 of the lesson is the solution. If your weights differ, compare the two line
# by line. Common slips: log-probabilities at another temperature than the samples, `mask` of the whole
# batch instead of the minibatch, advantages computed in the minibatch, where groups are torn apart.

# %% tags=["exercise"]
actor = copy.deepcopy(start)
optimizer = loops.make_optimizer(actor, loops.OptimiserConfig(lr=1e-4))
generator = torch.Generator().manual_seed(0)
mine = [my_step([prompts[i] for i in index]) for index in order]
print("mean scores, section 5:", measured)
print("mean scores, my_step:  ", mine)
print("the weights are equal:", models.same_weights(actor, other))

# %% [markdown] tags=["exercise"]
# **6. Six verdicts** *(medium, 10 minutes)*. Six runs, each with three seeds. The start solves 40 % of
# their test problems in 16 tries. The table has the changes, and in brackets their 95 % intervals for other
# problems. Give each run its verdict by section 9: `"learning"`, `"sharpening"`, `"sharpening with a loss"`,
# `"undecided"` or `"no gain"`. What would you do next? (Question 7 below has the answers.)
#
# | run | problems | pass@1, pooled | pass@16, seed 0 | seed 1 | seed 2 | pass@16, pooled |
# |---|---|---|---|---|---|---|
# | A | 400 | 0.06 [0.03, 0.09] | 0.03 [−0.01, 0.07] | 0.05 [0.01, 0.09] | 0.04 [−0.01, 0.09] | 0.04 [0.01, 0.07] |
# | B | 400 | 0.05 [0.02, 0.08] | 0.08 [0.04, 0.12] | −0.05 [−0.09, −0.01] | 0.00 [−0.04, 0.04] | 0.01 [−0.02, 0.04] |
# | C | 400 | 0.08 [0.05, 0.11] | 0.00 [−0.03, 0.03] | −0.01 [−0.04, 0.02] | 0.01 [−0.02, 0.04] | 0.00 [−0.02, 0.02] |
# | D | 40 | 0.12 [0.04, 0.20] | 0.05 [−0.07, 0.17] | 0.03 [−0.09, 0.15] | 0.07 [−0.06, 0.20] | 0.05 [−0.05, 0.15] |
# | E | 400 | 0.01 [−0.01, 0.03] | 0.01 [−0.02, 0.04] | 0.00 [−0.03, 0.03] | −0.01 [−0.04, 0.02] | 0.00 [−0.02, 0.02] |
# | F | 400 | 0.07 [0.04, 0.10] | −0.06 [−0.10, −0.02] | −0.03 [−0.07, 0.01] | −0.06 [−0.10, −0.02] | −0.05 [−0.08, −0.02] |

# %% tags=["exercise"]
verdicts = {"A": "", "B": "", "C": "", "D": "", "E": "", "F": ""}
check.six_verdicts(verdicts)

# %% tags=["solution"]
verdicts = {"A": "learning", "B": "undecided", "C": "sharpening", "D": "undecided"}
verdicts |= {"E": "no gain", "F": "sharpening with a loss"}
check.six_verdicts(verdicts)

# %% [markdown]
# ## Questions
#
# <details><summary>1. My GRPO loss is 0 at the first update. Does it learn?</summary>
#
# Yes. At ratio 1 the loss of a response is minus its advantage, and the advantages of a group sum to
# 0. So the loss of a batch is 0 (that of a minibatch only if it holds whole groups). The gradient is
# not 0. Watch the score, the gradient's norm and the share of groups
# with equal scores.
# </details>
#
# <details><summary>2. Why does GRPO need several responses to a prompt, and REINFORCE does not?</summary>
#
# The group is GRPO's baseline. REINFORCE can take the mean score of earlier batches (lesson 04). That
# is one number for easy and hard prompts alike, so all responses to an easy prompt look good. It is
# unbiased, and noisier where prompts differ a lot.
# </details>
#
# <details><summary>3. The ratio in my log is always 1. Is something broken?</summary>
#
# Not if each batch is used for one update. Then the policy that learns is the one that sampled, and
# the clip never acts.
# </details>
#
# <details><summary>4. Responses get longer during my run. Is that reward hacking?</summary>
#
# Reward hacking means that the score rises, but not what it stands for (lesson 07). So find out what
# length buys. Here written steps buy right answers, and length grows with them. If wrong responses grow faster
# than right ones, look at what the loss is divided by (section 6).
# </details>
#
# <details><summary>5. Without the standard deviation, the norm of your gradient is 3/4 of your colleague's. Why?</summary>
#
# You have groups of four, and the group's mean contains the response's own score: $(G-1)/G = 3/4$. Your
# colleague takes the mean of the others. Both point in the same direction. With plain gradient descent,
# a learning rate that is 4/3 times as large makes up for it.
# </details>
#
# <details><summary>6. Can GRPO be used with a reward model instead of a rule?</summary>
#
# Yes: replace `score`. Then the KL penalty is needed again, and small errors of the reward model
# count in full when the scores of a group are nearly equal (section 2).
# </details>
#
# <details><summary>7. The answers to exercise 6</summary>
#
# - **A is learning.** The pooled interval of pass@16 lies above 0. Two of the seeds do not show it alone: their
#   intervals contain 0. But that does not say that nothing has changed. All three seeds point the same way.
#   Next: compare at a larger $k$. It shows whether the start would solve these problems, too, with more
#   tries.
# - **B is undecided.** The interval of seed 0 lies above 0, and that of seed 1 below: they contradict each
#   other. The pooled interval speaks of other problems, not of other seeds. Next: more seeds.
# - **C is sharpening.** The pooled interval contains 0, but not 0.05, although there was room for a rise of
#   0.60. Next: change the training, for example what is practised. More seeds or problems will hardly change
#   the verdict.
# - **D is undecided.** The pooled interval contains 0 and 0.05. 40 problems are too few. Next: more problems.
# - **E has no gain.** Its pass@16 is that of C. But the interval of pass@1 contains 0, so nothing has been
#   shown to be sharpened either. Next: look at the training. Does the score rise on the practice problems?
# - **F is sharpening with a loss.** The pooled interval of pass@16 lies below 0: fewer problems are solved
#   within 16 tries. Next: fewer training steps, or practise problems that are still solved sometimes.
# </details>
#
# ## Going further
#
# **When is PPO worth its critic?** GRPO has no critic to store or train. But a prompt costs $G$ samples, and all
# tokens of a response share one advantage. So a critic is worth it where samples are expensive, or where one token
# of a long response is the mistake.
#
# ### The factor of a prompt (section 7)
#
# Section 7 adds up how strongly the groups of a prompt pull. It may, because on average they all pull in the same
# direction. To see this, leave out the division by length.
#
# 1. The true gradient is $\nabla p$, because $p$ is the expected score. Among the right responses, $y$ has the share
#    $\pi(y)/p$. So the mean of $\nabla \log \pi(y)$ over them is
#
#    $$ \sum_{y \text{ right}} \frac{\pi(y)}{p}\, \nabla \log \pi(y) =
#    \frac{1}{p} \sum_{y \text{ right}} \nabla \pi(y) = \frac{\nabla p}{p} . $$
#
#    Over wrong ones it is $-\nabla p / (1 - p)$, because the sum of all $\nabla \pi(y)$ is 0.
# 2. The gradient of one group is $\frac{1}{G} \sum_i A_i\, \nabla \log \pi(y_i)$. Before the division by $\sigma$, the
#    advantages of the right responses sum to $c\,(G-c)/G = (G-1)\,\sigma^2$, and those of the wrong ones to minus
#    that. So the mean over groups with $c$ right answers is
#
#    $$ \frac{G-1}{G}\, \sigma^2 \Big( \frac{\nabla p}{p} + \frac{\nabla p}{1-p} \Big) = \sigma^2 u , \qquad
#    u = \frac{G-1}{G} \cdot \frac{\nabla p}{p\,(1-p)} . $$
#
#    The vector $u$ does not depend on $c$. The division turns $\sigma^2 u$ into $\sigma u$.
#
# With the division by length, $u$ is another vector, not along $\nabla p$. It does not depend on $c$ either, so
# the factor is the same.
#
# **What does GRPO maximise?** Take a constant divisor and very large groups. Then $\sigma$ is
# $\sqrt{p(1-p)}$ in every group, and the expected gradient is $\nabla p / \sqrt{p(1-p)}$. This is the gradient of
# $2 \arcsin\sqrt{p}$. So GRPO maximises the mean of $2 \arcsin\sqrt{p}$ over the prompts, instead of the mean of
# $p$.
#
# ### Other ways to train (section 8)
#
# **Four updates per batch** get as far with half the responses. The run `grpo, 4 epochs` has 40 training steps. A
# minibatch is the whole batch, so four epochs are four updates. On the 400 test problems:
#
# | run | responses sampled | updates | right answers, sampled as in training | right answers, always the most likely token |
# |---|---|---|---|---|
# | no training | 0 | 0 | 0.40 | 0.41 |
# | `grpo` | 10,240 | 80 | 0.68 | 0.87 |
# | `grpo, 4 epochs` | 5,120 | 160 | 0.69 | 0.81 |
#
# The last column is the price: on every seed it is lower. We do not know why.
#
# **Random rewards do harm.** This is a control: the same training, but the scores of each batch are dealt out at
# random among the responses of this batch. The share of right answers falls. So the rise of section 8 comes from
# rewarding right answers.
#
# Why does it fall? The scores are independent of the responses, so the expected gradient is exactly 0 (lesson 04).
# But every single batch pulls somewhere, because by chance some responses got the better scores. The policy takes a
# random walk away from what it was trained to do. If so, smaller updates must do less harm.
# `minirlhf experiment dealt` has three learning rates, each with three seeds and 80 training steps, and tests on 400
# problems. Before training, pass@1 is 0.40 and pass@16 is 0.98.
#
# | learning rate | pass@1 | lowest and highest seed | pass@16 |
# |---|---|---|---|
# | as in section 8: 0.0001 | 0.17 | 0.14, 0.20 | 0.67 |
# | a quarter of it | 0.35 | 0.31, 0.37 | 0.94 |
# | a tenth of it | 0.39 | 0.39, 0.40 | 0.97 |
#
# **The KL penalty** (needs lesson 07). This lesson trains without one: our rule is hard to fool. By default
# `train_group` puts it into the score, as PPO does: before part 3 of the training step, each response pays
# `kl_coef` times the sum of $\log \pi_{\text{old}} - \log \pi_{\text{ref}}$ over its tokens. There is a catch: in a
# group of equal scores only the penalties differ, and the standard deviation blows them up to full size (section
# 2). The GRPO paper adds a term to the loss of each token instead, with $u_t = \pi_{\text{ref}} / \pi$:
#
# $$ L_{i,t} + \beta\, (u_t - 1 - \log u_t) . $$
#
# The bracket is the estimate $k_3$ of the KL. `GroupConfig.named("grpo-paper")` runs this form.
#
# ### What section 9 does not see
#
# **Easy problems.** On the problems of section 8, pass@16 is 98 % before training, so it can hardly rise. That is
# why we test on harder ones.
#
# **Problems that were nearly unsolved.** A problem that goes from 2 % to 10 % lifts its pass@16 from 28 % to 81 %.
# This counts as learning, although the start could already solve it.
#
# **Fewer problems, more often right.** With 16 samples for each of the 400 problems, the start has at least one right
# sample for 137 of them. After 400 training steps there are only 124 such problems. But the problems with at
# least 8 right samples have risen from 10 to 27. (Means of three seeds.) So pass@1 rises, and pass@16 falls
# a little. (Its interval in section 9 contains 0.)
#
# **Other lengths of training.** After 80 training steps the verdict is undecided: the pooled interval of pass@16
# contains 0 and 0.05. With seed 1 alone we would have reported learning, and with seed 2 alone not even a gain
# in pass@1.
#
# ### Variants and libraries
#
# DAPO replaces groups with equal scores by groups for new prompts, takes the mean over all
# tokens of the batch, widens the upper end of the clip, and lowers the scores of responses that are nearly
# too long. GSPO and CISPO change the clip (lesson 11b). The page
# [algorithms](../docs/algorithms.md) has all variants in one table. In the recorded runs of 80 training steps,
# pass@1 of GRPO, Dr. GRPO and DAPO differs by at most 0.015. Three seeds of the *same* method differ by
# more, 0.025 for GRPO.
#
# | | TRL 1.16 | OpenRLHF 0.11 | verl 0.10 |
# |---|---|---|---|
# | standard deviation | of the group, $\delta = 10^{-4}$; of the batch or off by `scale_rewards` | of the group, $\delta = 10^{-9}$; off with `dr_grpo` | of the group, $\delta = 10^{-6}$; a switch |
# | divisor of the loss | by `loss_type`: own length, tokens of the batch, a constant | token mean | by `loss_agg_mode` |
# | KL penalty | $k_3$ in the loss, off by default | in the score or in the loss | either, by two switches |
# | equal groups | kept; their advantage is 0 | dropped with `dynamic_filtering` | dropped in its DAPO recipe |
#
# A name is not yet an algorithm. Before you compare two libraries, write down the baseline, what the
# advantage is divided by, the place of the KL penalty, the ratio, the clip and the divisor of the loss.
#
# **References.** Shao et al. 2024, *DeepSeekMath* (section 4.1: GRPO). Liu et al. 2025, *Understanding
# R1-Zero-like training* (Dr. GRPO). Yu et al. 2025, *DAPO*. Zheng et al. 2025, *Group sequence policy
# optimization*. MiniMax 2025, *MiniMax-M1* (CISPO). Ahmadian et al. 2024, *Back to basics* (RLOO).
# Chen et al. 2021 (pass@k, equation 1). Yue et al. 2025, *Does reinforcement learning really
# incentivize reasoning capacity beyond the base model?* (sharpening).
#
# *How this lesson is checked:* its loop equals `train_group` (`tests/loops/test_by_hand.py`, with the KL
# penalty on, too), and every number about a recorded run is compared with the record
# (`tests/claims/test_lesson_11.py`).
