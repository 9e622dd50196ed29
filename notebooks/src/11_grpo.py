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
# 05 (advantages, the critic) and 06 (PPO's ratio and clip). Lessons 07 (the KL penalty) and 10 (RLOO)
# help. About 40 minutes to read and 95 for the exercises.

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
# Every token of the response has this advantage. The small constant $\delta = 0.0001$ avoids a division by 0.
#
# The rest is PPO (lesson 06). The importance ratio $\rho_{i,t} = \pi / \pi_{\text{old}}$ of token $t$ is its
# probability under the policy that learns, over that under the policy that sampled. With $\epsilon = 0.2$, the
# token's loss is
#
# $$ L_{i,t} = -\min\big(\rho_{i,t} A_i,\; \text{clip}(\rho_{i,t},\, 1-\epsilon,\, 1+\epsilon)\, A_i\big) . $$
#
# Response $i$ has $|y_i|$ tokens, and a batch has $N$ groups. The whole loss is
#
# $$ \frac{1}{N G} \sum_{i=1}^{N G} \frac{1}{|y_i|} \sum_{t=1}^{|y_i|} L_{i,t} , $$
#
# the mean over the tokens of a response, then over the responses. In words: responses that
# beat their group become more likely, the others less likely. The clip ends the push on a token once its ratio
# has moved by 20 % in the direction of the push.
#
# **The price.** There is no critic to store or train. But a prompt costs $G$ samples, and all tokens of
# a response share one advantage.
#
# The package computes the same advantages as we did by hand:

# %%
by_hand = torch.tensor([[0.866, -0.866, -0.866, 0.866]])
package = core.group_relative(torch.tensor([[1.0, 0.0, 0.0, 1.0]]))
assert torch.allclose(package, by_hand, atol=1e-3)

# %% [markdown]
# ## 2. Which advantages?
#
# What does the group make of other scores? **Predict** the advantages of these four groups, roughly.
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
# - *One is right*: about 1.5 for the right one, and −0.5 for each wrong one. The four advantages sum
#   to 0.
# - *All are right*: 0 everywhere. There is nothing to learn. The same holds if all are wrong.
# - *Far apart*: 0.71 and −0.71.
# - *Nearly equal*: 0.62 and −0.62, nearly the same! After the division, a tiny difference counts
#   almost as much as a large one.
# </details>

# %% [markdown]
# ## 3. A task with a verifiable reward
#
# What do we train on? A reward model can be fooled. For some tasks a rule can check the result itself: a
# **verifiable reward**. Our rule is: 1 if the last number of the response is right, else 0.
#
# The model is `tiny-steps`, a language model with 0.6 million parameters. It writes
# arithmetic, and every character is a token. Here are five samples for each of five new problems:

# %%
torch.set_num_threads(1)  # sums in a fixed order, so that two runs can be equal
start, tokenizer = models.load_policy("tiny-steps")
score = rewards.reward_function(rewards.right_answer, tokenizer)
sampling = models.SamplingConfig(max_new_tokens=24, temperature=1.0)


def table(policy, questions):
    each = [question for question in questions for _ in range(5)]
    (batch,) = models.sample_text(policy, tokenizer, each, config=sampling)
    pairs = zip(models.decode(tokenizer, batch), score(batch))
    cells = [f"{text} {'✓' if right else '✗'}" for text, right in pairs]
    rows = [cells[i : i + 5] for i in range(0, len(cells), 5)]
    return pd.DataFrame(rows, index=questions)


problems = tasks.arithmetic.problems("test", 5, levels=(2, 3, 4))
questions = [problem.prompt for problem in problems]
table(start, questions)

# %% [markdown]
# The model answers most problems at once (`~`), and fewer than a third of these answers are right. Of its
# answers in written steps, more than six in ten are right. So it would do better if it wrote steps more often.

# %% [markdown]
# ## 4. A group under the microscope
#
# Which tokens are blamed when an answer is wrong? Here is a group of eight responses to `16+16+11=`. The colour
# is the advantage: blue tokens are pushed up, orange ones down.
#
# The **push** on a token is minus the derivative of the response's loss by the token's log-probability. Before
# the first update every ratio is 1, because the policy that learns is the one that sampled. Then the push is the
# advantage, divided by the response's length. A push down is **blame**.

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
# Three things to see:
#
# 1. **One number per response.** The only right response, `32+11=43`, has the advantage 2.47
#    at every token. All others have −0.35.
# 2. **Blame without a place.** Look at response 6, `32+11=33`. Its first written step is right: 16+16
#    is 32. Only the digit after `=` is wrong. But all its tokens are pushed down alike.
# 3. **Other responses show the place.** The right response, number 1, has the same `32+11=`. Both have 9
#    tokens, with the EOS. So each token of this prefix gets 2.47 / 9 = +0.27 from one response, and −0.35 / 9 =
#    −0.04 from the other. The sum is +0.24: the right written step becomes *more* likely. Only
#    where the two differ is the wrong `3` pushed down.

# %% [markdown]
# ## 5. One training step
#
# What does GRPO look like in code? A batch has 16 prompts with 8 responses each. So there are B = 128 responses,
# and those to the same prompt are neighbours. R is the number of tokens of the longest response. Shorter ones
# are padded, and a mask marks the tokens that count.
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
    # 3. Compare each response with its group.
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
            # The mean over the tokens of each response, then over the responses.
            core.aggregate(losses, mask, how="sequence_mean").backward()
            optimizer.step()
            optimizer.zero_grad()
    return scores.mean().item()


# %% [markdown]
# Look at these lines again:
#
# - `scores.view(len(questions), 8)` has one row per prompt. So `mean(1)` and `std(1)` are those of a group.
# - The advantages are computed *before* the shuffle (`torch.randperm`), which tears the groups apart.
# - `aggregate` with `"sequence_mean"` divides the sum of a response's losses by its length $|y_i|$.
#
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
# These are the shares of right answers in the three batches. (Each batch has other prompts, so no rise shows.)
#
# ## 6. The length: wrong responses get longer
#
# What does the division by a response's own length do? It makes wrong responses longer, and right ones shorter,
# although length earns nothing.
#
# Take a response that is already right or wrong, whatever follows. At its next token it can *stop*, and then has
# 4 tokens. Or it can *go on*, to 9 tokens. Both have the chance 1/2. The advantage is −1 if the response is
# wrong, and 1 if it is right. This is the push on that token:
#
# | the response is | it was sampled to | push, not divided | push, divided by the length |
# |---|---|---|---|
# | wrong | *stop* | −1 | −1 / 4 = −0.25 |
# | wrong | *go on* | −1 | −1 / 9 = −0.11 |
# | right | *stop* | 1 | 1 / 4 = 0.25 |
# | right | *go on* | 1 | 1 / 9 = 0.11 |
#
# **Not divided**, both options get the same push. So neither gains on the other.
#
# **Divided**, the shorter response has the stronger push. Among wrong responses, *stop* is pushed down more. So it
# becomes rarer, and wrong responses get longer. Among right ones, *stop* is pushed up more, and right
# responses get shorter.

# %% [markdown]
# ## 7. The standard deviation: some prompts count for more
#
# What does the division by $\sigma$ do? It makes the gradient of a prompt that is solved 2 % of the time 3.7
# times as large, and that of one solved half of the time only 2.0 times (groups of 16). **Very hard and very
# easy prompts count for more.**
#
# The division multiplies all advantages of a group by $1/\sigma$. We call this number the group's **factor**.
# Here it is for groups of 16:
#
# | right answers | $\sigma$ | factor |
# |---|---|---|
# | one | 0.25 | 4.0 |
# | eight | 0.52 | 1.9 |
# | fifteen | 0.25 | 4.0 |
#
# A hard prompt mostly has groups with no right answer, which teach nothing, or with one. So its factor is near 4.
# ("Going further" has the derivation.)
#
# Why divide at all? So that scores of any scale, 0 to 1 or 0 to 100, give equally large advantages.
#
# **Dr. GRPO** ("done right") leaves $\sigma$ out, and divides by a constant instead of the length.

# %% [markdown]
# ## 8. What a run looks like
#
# What happens when we train? First a short run of our own: 40 training steps, with the settings of our experiments.
# It takes about half a minute. Then the model answers the problems of section 3 again:

# %%
steps = 3 if FAST else 40  # FAST=1 is for the tests of this page
config = experiments.group_config("arithmetic", "grpo", steps=steps)
trained, _ = loops.train_group(copy.deepcopy(start), tokenizer, prompts, score, config)
table(trained, questions)

# %% [markdown]
# It uses written steps more often. (Five samples are few: `16-1-10=` does worse.)
#
# And this is a longer run, recorded with `minirlhf experiment family`: 80 training steps, with three seeds.

# %%
history = experiments.results("family_history")
show.curves(
    history[history.variant == "grpo"],
    columns=["score", "length", "frac_reward_zero_std"],
    across=3,
)

# %% [markdown]
# - `score` is the share of right answers to practice problems. It rises from 0.46 to about 0.69.
# - `length` is the number of tokens of a response. It nearly doubles, from 5.2 to about 9.6. Length is not
#   rewarded. But written steps are longer than guesses, and more often right. The pull of section 6 is weak beside
#   this ("Going further").
# - `frac_reward_zero_std` is the share of groups in which all scores are equal. It rises from 9 % to 19 %. These
#   groups cost samples and teach nothing.

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
# We test on 400 problems that are harder than those practised: sums of four numbers, such as `12+5-16+2=`.
# `minirlhf experiment longer` trains as in section 8, for 400 training steps, with three seeds. The start solves
# 34 % of the sums in 16 tries.
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
# Would other problems show the same? Average the change of each problem over the seeds (**pooled**).
# Draw 400 of these changes with replacement, take their mean, and repeat (the *bootstrap*). The middle 95 % of
# these means are the **95 % interval**. Only problems are drawn anew, not seeds.
#
# Choose before you look which rise of pass@16 is worth having. Ours is 0.05. Then go through three questions:
#
# 1. Does the pooled interval of pass@1 lie above 0? If not, the verdict is **no gain**.
# 2. Does the interval of pass@16 lie above 0 for one seed, and below 0 for another? Then the seeds contradict
#    each other, and the verdict is **undecided**.
# 3. Otherwise look at the pooled interval of pass@16:
#
# | the interval contains 0? | contains 0.05? | verdict |
# |---|---|---|
# | no, it lies above 0 | | **learning**: a rise is shown |
# | yes | yes | **undecided** |
# | yes | no | **sharpening**: a rise worth having is excluded |
# | no, it lies below 0 | | **sharpening with a loss** |
#
# **Predict** the verdict on our run.

# %% tags=["predict"]
changes = {}  # of pass@1 and pass@16, with the intervals
for measure in ("pass_1", "pass_16"):
    for seed in (0, 1, 2, "pooled"):
        runs = longer if seed == "pooled" else longer[longer.seed == seed]
        change = experiments.difference_over_prompts(runs, measure, "start")
        changes[measure, seed] = experiments.with_interval(change, digits=3)
pd.DataFrame(changes).T.rename_axis(["measure", "seed"])

# %% [markdown]
# <details><summary>What you should see</summary>
#
# **Sharpening.** Question 1: the pooled interval of pass@1 lies above 0. Question 2: for no seed does the interval
# of pass@16 lie above 0. Question 3: the pooled interval of pass@16 contains 0, but not 0.05.
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
# `torch.std`. A group of equal scores must give exactly 0. *This function goes into your
# `my_rlhf.py`.*
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
# **3. A divisor that looks fair** *(hard, 20 minutes)*. A colleague has read section 6, and no longer divides
# by a response's own length. The loss below divides all responses of a group by the *same* number: their
# mean length. So every token of the group counts the same.
#
# Try it in a world where a response is right if its *first* word is right, and has at most six words. Length
# earns nothing there, so it should not move. **Predict**: does the mean length of the wrong responses rise,
# stay or fall? Then run both cells, and look at the curve. (The first cell can list all responses of this world, so
# it computes the exact length.)
#
# `logprobs` and `mask` have the shape (N G, R), a prompt's responses side by side. `group_scores` is
# (N, G). The responses are sampled by the policy that learns, so all ratios are 1.


# %% tags=["exercise", "solution"]
def length_of_wrong_responses(loss, steps=40, groups=4096):
    """The exact mean length of wrong responses, at each training step."""
    first = core.World.from_reward(
        ("good", "bad", "."), 6, lambda words: float(words[0] == "good")
    )
    lengths, wrong = first.response_mask.sum(1).double(), first.rewards == 0
    drawing, logits, path = torch.Generator().manual_seed(0), first.ref_logits, []
    for _ in range(steps):
        probs = first.probs(logits)
        path.append(((probs * lengths)[wrong].sum() / probs[wrong].sum()).item())
        rows = torch.multinomial(probs, groups * 4, True, generator=drawing)
        scores = first.rewards[rows].view(groups, 4)
        logits = logits.detach().requires_grad_(True)
        logprobs, mask = first.logprobs(logits)[rows], first.response_mask[rows]
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
# two sentences. Then mend the loss, draw the curve again, and run the checker. The curve should be flat but
# for noise. That is necessary, but not enough: a loss can leave the length alone and still be wrong. (The
# checker accepts any positive constant times our loss.) The solutions have the answer in words, too.
#
# *Hint:* hold the other responses of the group fixed, and look at one wrong response. Once it is short, and
# once it is long. How large is its own advantage each time, and by what is it divided?
# </details>

# %% tags=["exercise"]
check.colleagues_loss(colleagues_loss)

# %% [markdown] tags=["solution"]
# **Why the mean length does harm.** Hold the other three responses fixed. A longer wrong response raises the
# group's mean length. So it lowers its own blame by being long, and long wrong responses survive. The pull is
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
#   shuffle, or no `generator` in `models.sample`. (Then the first one agrees only in your first run:
#   `train_group` has given torch's own generator the same seed.)
# - Only the third one differs: a mean over all tokens of the minibatch, one shuffle for both epochs, or
#   no division by the standard deviation.
# - All scores agree, and the weights do not: another $\delta$, or $G$ instead of $G - 1$ in the standard
#   deviation.
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
# `"undecided"` or `"no gain"`. What would you do next?
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
# <details><summary>Answer to exercise 6</summary>
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
# ## Going further
#
# **When is PPO worth its critic?** Where samples are expensive, or where one token of a long response is the
# mistake.
#
# **The factor of a prompt** (section 7) says how many times as large the division by $\sigma$ makes its
# expected gradient. In groups of 16 it is 3.7 for a prompt with the chance $p = 0.02$ of a right answer, also 3.7
# for $p = 0.98$, and 2.0 for $p = 0.5$. The direction stays.
#
# The derivation, without the division by length: If $c$ answers of a group are right, the squares of section
# 1 sum to $c\,(G-c)/G$. So
#
# $$ \sigma^2 = \frac{c\,(G-c)}{G\,(G-1)} . $$
#
# The gradient of one group is $\frac{1}{G} \sum_i A_i\, \nabla \log \pi(y_i)$. What is its mean over all groups
# with $c$ right answers? The true gradient is $\nabla p$, because $p$ is the expected score.
#
# 1. Among the right responses, $y$ has the share $\pi(y)/p$. So the mean of $\nabla \log \pi(y)$ over them is
#
#    $$ \sum_{y \text{ right}} \frac{\pi(y)}{p}\, \nabla \log \pi(y) =
#    \frac{1}{p} \sum_{y \text{ right}} \nabla \pi(y) = \frac{\nabla p}{p} . $$
#
#    Over wrong ones it is $-\nabla p / (1 - p)$, because the sum of all $\nabla \pi(y)$ is 0.
# 2. Before the division by $\sigma$, the advantage is $(G-c)/G$ for a right response and $-c/G$ for a wrong
#    one. So the mean gradient is
#
#    $$ \frac{1}{G} \Big( c \cdot \frac{G-c}{G} \cdot \frac{\nabla p}{p} + (G-c) \cdot \frac{c}{G} \cdot
#    \frac{\nabla p}{1-p} \Big) = \sigma^2 u , \qquad u = \frac{G-1}{G} \cdot \frac{\nabla p}{p\,(1-p)} . $$
#
#    The vector $u$ does not depend on $c$.
# 3. Dividing by $\sigma$ turns $\sigma^2$ into $\sigma$. So the factor is the mean of $\sigma$ over all
#    groups of the prompt, divided by the mean of $\sigma^2$.
#
# Of groups with only 2 responses, those that teach have one right and one wrong answer. Their $\sigma$ is 0.707.
# So the factor is 1 / 0.707 = 1.4 for all prompts.
#
# With the own length (section 1), $\nabla \log \pi(y) / |y|$ takes the place of $\nabla \log \pi(y)$. Then $u$ is
# another vector, not along $\nabla p$. But it does not depend on $c$ either.
#
# **GRPO's objective**, with a constant divisor. For very large groups $\sigma$ is
# $\sqrt{p(1-p)}$, in every group. So the expected gradient is $\nabla p / \sqrt{p(1-p)}$. The slope of
# $\arcsin x$ is $1/\sqrt{1-x^2}$. So that of $2 \arcsin\sqrt{p}$ is $2 \cdot \frac{1}{\sqrt{1-p}} \cdot
# \frac{1}{2\sqrt{p}} = 1/\sqrt{p(1-p)}$. GRPO then maximises the mean of $2 \arcsin\sqrt{p}$ over the
# prompts, instead of the mean of $p$. This does not hold for the loss of section 1. It divides by the own
# length, so its gradient is not along $\nabla p$, as that of a function of $p$ would be.
#
# **The gradient, exactly.** We list all groups of four in a small world: the words *good*, *bad* and the full stop,
# at most three of them, and a response is right if its first word is *good*. With the group's mean as the
# baseline, and without the two divisions, the expected gradient is 3/4 of the true one. With the mean of the
# other three it is exactly the true one. The division by the own length changes its direction: the cosine
# with the true gradient is 0.94. After one update of norm 1, wrong responses have 2.03 words instead of 1.83.
#
# **Dr. GRPO's divisor** is the longest length allowed. Any constant gives the same direction.
#
# **How strong is the pull on length?** In the world of exercise 3, with exact gradients and without
# the standard deviation, sixty updates with GRPO's loss lengthen the wrong responses from 2.30 to 3.12 words,
# and shorten the right ones from 3.60 to 3.15. With a constant divisor neither changes. On our
# arithmetic this force is weak beside the reward: after 80 training steps, GRPO and Dr. GRPO have nearly the same
# length (9.5 and 9.6 tokens).
#
# **The KL penalty, in the score or in the loss** (needs lesson 07). This lesson trains without one: our rule is
# hard to fool. By default `train_group` puts it into
# the score, as PPO does: before part 3 of the training step, each response pays `kl_coef` times the sum of
# $\log \pi_{\text{old}} - \log \pi_{\text{ref}}$ over its tokens. It acts through the advantage.
# There is a catch: in a group of equal scores only the penalties differ, and the standard deviation
# blows them up to full size (section 2). The GRPO paper adds a term to the loss of each token
# instead, with $u_t = \pi_{\text{ref}} / \pi$:
#
# $$ L_{i,t} + \beta\, (u_t - 1 - \log u_t) . $$
#
# The bracket is the estimate $k_3$ of the KL. `GroupConfig.named("grpo-paper")` runs this form.
#
# **Four updates per batch** get as far with half the responses. The runs of section 8 make one update per batch. So
# every ratio is 1, and the clip never acts. The run `grpo, 4 epochs` has 40 training steps. A
# minibatch is the whole batch, so four epochs are four updates. In section 5 it takes two epochs of two
# minibatches. On 400 problems that were not practised:
#
# | run | responses sampled | updates | right answers, sampled as in training | right answers, always the most likely token |
# |---|---|---|---|---|
# | no training | 0 | 0 | 0.40 | 0.41 |
# | `grpo` | 10,240 | 80 | 0.68 | 0.87 |
# | `grpo, 4 epochs` | 5,120 | 160 | 0.69 | 0.81 |
#
# The last column is the price: on every seed it is lower. We do not know why.
#
# **What pass@16 does not see** (section 9). On the problems of section 8 it is 98 % before training, so it
# can hardly rise. That is why we test on harder ones. And learning only means that more problems are solved
# within 16 tries. A problem that goes from 2 % to 10 % lifts its pass@16 from 28 % to 81 %, although the
# start could already solve it.
#
# **The verdict is undecided after 80 training steps** (section 9). The line of pass@k lies above the start's for
# every $k$. But the pooled interval of pass@16 contains 0 and 0.05. With seed 1 alone we would have reported
# learning, and with seed 2 alone not even a gain in pass@1.
#
# **Fewer problems are solved, and these more often, after 400 training steps** (section 9). At least
# one sample is right for 124 of the 400 problems (before: 137; means of three seeds). At least half of the
# samples are right for 27 (before: 10). Where the policy is sure and wrong, more tries do not help. But this
# loss might be luck: pass@16 falls by 0.033, and its interval contains 0.
#
# **Random rewards do harm.** This is a control for section 8: the same training, but in each batch the scores
# are dealt out to the responses at random. The share of right answers falls. So the rise of section 8 comes
# from rewarding right answers.
#
# Why does it fall? These scores are independent of the responses. So the expected gradient is exactly 0 (lesson
# 04): there is no direction to learn, not even a wrong one. But every single batch pulls somewhere, because by
# chance some responses got the better scores. Adam divides the gradient by its usual size, so in both runs the
# updates have about the same norm. The policy takes a random walk. It was trained to fit its examples, so a
# random change of its outputs makes it worse far more often than better. The run on right answers has the same
# noise, and a direction besides that repairs the damage.
#
# If so, smaller updates must do less harm. `minirlhf experiment dealt` trains the control for 80
# training steps with three learning rates, each with three seeds. Then it tests on 400 problems that were
# not practised. Before training, pass@1 is 0.40 and pass@16 is 0.98.
#
# | learning rate | pass@1 | lowest and highest seed | pass@16 |
# |---|---|---|---|
# | as in section 8: 0.0001 | 0.17 | 0.14, 0.20 | 0.67 |
# | a quarter of it | 0.35 | 0.31, 0.37 | 0.94 |
# | a tenth of it | 0.39 | 0.39, 0.40 | 0.97 |
#
# On every seed, smaller updates do less harm. This fits our explanation, but it does not prove it: a wrong
# direction, too, would be followed less far with smaller updates. But the loss gives none: its expected
# gradient is 0.
#
# **Variants.** DAPO replaces groups with equal scores by groups for new prompts, takes the mean over all
# tokens of the batch, widens the upper end of the clip, and lowers the scores of responses that are nearly
# too long. GSPO and CISPO change the clip (lesson 11b). The page
# [algorithms](../docs/algorithms.md) has all variants in one table. In the recorded runs of 80 training steps,
# pass@1 of GRPO, Dr. GRPO and DAPO differs by at most 0.015. Three seeds of the *same* method differ by
# more, 0.025 for GRPO.
#
# **What the libraries do.**
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
