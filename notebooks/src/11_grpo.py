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
# - say what the group does for the gradient, and what dividing by its standard deviation changes,
# - tell whether training made a model solve more problems, or made it surer of what it could do.
#
# **You need** lessons 03 (the end-of-sequence token EOS, the small world), 04 (REINFORCE, baselines),
# 05 (advantages, the critic) and 06 (PPO's ratio and clip). Lessons 07 (the KL penalty) and 10 (RLOO)
# help. About 60 minutes to read and 95 for the exercises.

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
# prompt. The advantage of a response compares it with the others. Four responses to `16+16+11=` have
# the scores 1, 0, 0, 1, with mean 1/2:
#
# | response (`~`: no written steps) | score | score − mean | squared | advantage |
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
# The rest is PPO (lesson 06). With the importance ratio $\rho_{i,t} = \pi / \pi_{\text{old}}$ of token $t$
# (the policy that learns over the one that sampled) and $\epsilon = 0.2$, the token's loss is
#
# $$ L_{i,t} = -\min\big(\rho_{i,t} A_i,\; \text{clip}(\rho_{i,t},\, 1-\epsilon,\, 1+\epsilon)\, A_i\big) . $$
#
# Response $i$ has $|y_i|$ tokens, and a batch has $N$ groups. The whole loss is
#
# $$ \frac{1}{N G} \sum_{i=1}^{N G} \frac{1}{|y_i|} \sum_{t=1}^{|y_i|} L_{i,t} , $$
#
# the mean over the tokens of a response, then over the responses. In words: responses that
# beat their group become more likely, the others less likely.
#
# **The price.** There is no critic to store or train. But a prompt costs $G$ samples, and all tokens of
# a response share one advantage.

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
# - *One is right*: about 1.5 for the right one, and −0.5 for each wrong one. The four advantages sum
#   to 0.
# - *All are right*: 0 everywhere. There is nothing to learn. The same holds if all are wrong.
# - *Far apart*: 0.71 and −0.71.
# - *Nearly equal*: 0.62 and −0.62, nearly the same! After the division, a tiny difference counts
#   almost as much as a large one. (Not 0.71, because $\delta$ counts beside $\sigma$ = 0.0007.)
# </details>

# %% [markdown]
# ## 3. A task with a verifiable reward
#
# A reward model can be fooled. For some tasks a rule can check the result itself: a **verifiable
# reward**. Our rule is: 1 if the last number of the response is right, else 0.
#
# The model is `tiny-steps`, a language model with 0.6 million parameters. It writes
# arithmetic, and every character is a token. It can answer in two ways: in written steps
# (`32+11=43`), or at once, with the sign `~` in front (`~43`). Here are five samples for each of five new problems:

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
# The model answers most problems at once, and fewer than a third of these answers are right. Of its
# answers in written steps, more than six in ten are right. Fine-tuning could not teach it to prefer them: all
# its examples were right, in both ways.

# %% [markdown]
# ## 4. A group, drawn
#
# The package gives the advantages of section 1, and draws the group:

# %%
four = ["16+16+11="] * 4
(batch,) = models.sample_text(start, tokenizer, four, config=sampling, seed=8)
texts, scores = models.decode(tokenizer, batch), score(batch)
by_hand = torch.tensor([[0.866, -0.866, -0.866, 0.866]])
assert torch.allclose(core.group_relative(scores[None]), by_hand, atol=1e-3)
show.grpo_group(
    "16+16+11=",
    [[*text, "EOS"] for text in texts],
    scores,
    note="~ answers at once, without written steps",
)

# %% [markdown]
# `~43` is a lucky guess and gets the same advantage as the careful `32+11=43`.

# %% [markdown]
# ## 5. One training step
#
# A batch has 16 prompts with 8 responses each. The responses to a prompt are neighbours, so
# `scores.view(16, 8)` has one row per prompt. Tensors of tokens have the shape (B, R), with B = 128
# responses. Two epochs with minibatches of 64 responses make four updates per batch. At each
# update we measure how many ratios lie outside the clip range, 0.8 to 1.2.
#
# | part | what it does | explained in |
# |---|---|---|
# | **1.** Sample | writes a group of responses to each prompt, and keeps the log-probability of every token under the policy that samples | section 1 |
# | **2.** Score | the rule says right or wrong | section 3 |
# | **3.** Compare | the advantage of each response, copied to all its tokens | section 1 |
# | **4.** Update | for each minibatch: the ratios, the clipped loss ($\epsilon$ is 0.2 unless `core.ppo_clip` is told otherwise), its mean over the tokens of a response and then over the responses, one update of the weights | section 1, lesson 06 |

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
    outside = []  # share of tokens whose ratio is outside the clip range
    for _ in range(2):
        for rows in torch.randperm(len(scores), generator=generator).split(64):
            part = batch.select(rows)
            mask = part.response_mask
            logprobs = models.policy_logprobs(actor, part, temperature=1.0)
            ratio = (logprobs - part.old_logprobs).exp()
            outside.append(((ratio[mask] - 1).abs() > 0.2).float().mean().item())
            losses = core.ppo_clip(logprobs, part.old_logprobs, part.advantages, mask)
            # The mean over the tokens of each response, then over the responses.
            core.aggregate(losses, mask, how="sequence_mean").backward()
            optimizer.step()
            optimizer.zero_grad()
    return [scores.mean().item(), *outside]


# %% [markdown]
# Part 3 of the code replaces the critic, the value loss and the generalised advantage estimation of lesson 06.
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
columns = ["right answers", *(f"outside, update {i}" for i in (1, 2, 3, 4))]
pd.DataFrame(measured, columns=columns).round(2)

# %% [markdown]
# Each row is a batch. (Batches have other prompts, so no rise shows.) In the first update all ratios are
# 1: the policy that learns is still the one that sampled. At the fourth update roughly one token in ten is
# outside. Of these, a token loses its gradient if $A > 0$ and its ratio is above 1.2, or if $A < 0$ and it is
# below 0.8. Logs call their share `clip_fraction`. The others keep theirs: it leads back (lesson 06).

# %% [markdown]
# ## 6. A group under the microscope
#
# Another group for `16+16+11=`: eight responses by the policy before training. The colour is the
# advantage: blue tokens are pushed up, orange ones down.
#
# The **push** on a token is minus the derivative of the response's loss by the token's log-probability. While
# the ratio is 1, it is the advantage, divided by the response's length.
# A push down is **blame**.

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
# Four things to see:
#
# 1. **One number per response.** The only right response, `32+11=43`, has the advantage 2.47
#    at every token. All others have −0.35.
# 2. **Blame without a place.** Look at response 6, `32+11=33`. Its first written step is right: 16+16
#    is 32. Only the digit after `=` is wrong. But all its tokens are pushed down alike.
# 3. **Other responses show the place.** The right response, number 1, has the same `32+11=`. Both have 9
#    tokens, so each token of this prefix gets (2.47 − 0.35) / 9 = +0.24 in all. The right written step becomes
#    *more* likely. Where the two differ, `4` gets +0.27 and `3` gets −0.04.
# 4. **One group is luck, many are not.** Add up the pushes on the first token. Six responses of 4
#    tokens begin with `~`: 6 · (−0.35) / 4 = −0.53. The `3` of the two others gets +0.24, as above. So this
#    group makes written steps more likely. Over many groups they win: they are right more often.

# %% [markdown]
# ## 7. What the group does to the gradient
#
# ### 7a. The baseline and the divisor
#
# Is GRPO's gradient right, on average? A small world gives an exact answer (lesson 03). Its words are
# *good*, *bad* and the full stop, and a response has at most three. It is right if its
# *first* word is *good*. We list *all* groups of four, and compare a loss's expected gradient
# with that of the expected score, the **true** one.
#
# | in the code | what it is |
# |---|---|
# | `core.World` | a world so small that all its responses can be listed |
# | `world.rewards`, `world.response_mask` | the score and the mask of each response of the list |
# | `world.ref_logits` | a policy: one row of logits per prefix, for the next word. Here it is the policy that samples |
# | `world.groups(policy, 4)` | all groups of four, as places in the list, and their probabilities |
# | `world.probs(logits)`, `world.sequence_logprobs(logits)` | the probability of each response, and its logarithm |
# | `world.gradient(policy)` | the true gradient |

# %%
world = core.World.from_reward(
    ("good", "bad", "."), 3, lambda words: float(words[0] == "good")
)
policy = world.ref_logits  # the policy that samples: all words are equally likely
groups, chance = world.groups(policy, 4)
scores, lengths = world.rewards[groups], world.response_mask.sum(1)[groups]
true = world.gradient(policy)


def expected_gradient(advantages, divisor):
    logits = policy.clone().requires_grad_(True)
    objective = advantages * world.sequence_logprobs(logits)[groups] / divisor
    (chance * objective.mean(1)).sum().backward()
    return logits.grad


def length_of_wrong(logits):
    wrong = world.probs(logits) * (world.rewards == 0)
    return (wrong * world.response_mask.sum(1)).sum() / wrong.sum()


# %% [markdown]
# The objective is that of lesson 04: the advantage times the log-probability of the response. While all ratios
# are 1, the loss of section 5 has the same gradient with a minus sign ($\nabla \rho = \rho\, \nabla \log \pi$), and
# the divisor $|y_i|$. We compare three divisors, and two baselines. The standard deviation comes in section 7b:
#
# | column | what it is |
# |---|---|
# | norm | the norm of the expected gradient; that of the true one is 1 |
# | cosine | 1 means the direction of the true gradient |
# | length of wrong | the mean length of wrong responses after an update along the gradient; before it, 1.83 words; all updates have the same norm |

# %%
of_group = core.group_relative(scores, scale_by_std=False)  # minus the group's mean
of_others = core.leave_one_out(scores)  # minus the mean of the other three
rows = []
for name, divisor in (("1", 1), ("a constant, 3", 3), ("its length", lengths)):
    for baseline, advantages in (("the group", of_group), ("the others", of_others)):
        gradient = expected_gradient(advantages, divisor)
        norm = gradient.norm() / true.norm()
        cosine = torch.cosine_similarity(gradient.flatten(), true.flatten(), 0)
        length = length_of_wrong(policy + gradient / gradient.norm())  # after an update
        rows.append([name, baseline, norm.item(), cosine.item(), length.item()])
columns = ["sum over tokens, divided by", "baseline: mean of", "norm (true: 1)"]
columns += ["cosine (true: 1)", "length of wrong"]
pd.DataFrame(rows, columns=columns).round(2)

# %% [markdown]
# - **The mean of the group only shrinks the gradient**, to $(G-1)/G$ = 3/4, because
#   $r_i - \bar r = \frac{G-1}{G} (r_i - \text{mean of the others})$. With the mean of the others
#   (REINFORCE leave-one-out, lesson 10), the gradient is exactly the true one.
# - **A constant divisor only shrinks it, too.** A larger learning rate makes up for both.
# - **The response's own length (section 5) changes the direction**: the cosine is 0.94. Wrong responses
#   get longer, although length earns nothing.
#
# **Why do wrong responses get longer?** Look at one token after a wrong first word: *stop*, for a
# response of 4 tokens, or *go on*, to 9. Both have the chance $\pi$ = 1/2 and the advantage −0.35 (section 6).
# The logit of *stop* moves by $1 - \pi = 1/2$ times the push on this token if *stop* is sampled, and by
# $-\pi = -1/2$ times the push if *go on* is (lesson 04):
#
# | sampled | push on this token, not divided | on the logit of *stop* | push on this token, divided | on the logit of *stop* |
# |---|---|---|---|---|
# | *stop* | −0.35 | −0.18 | −0.35 / 4 = −0.09 | −0.04 |
# | *go on* | −0.35 | +0.18 | −0.35 / 9 = −0.04 | +0.02 |
# | both | | 0 | | −0.02 |
#
# **Not divided**, the two cancel: a constant advantage pushes nowhere on average. **Divided**, *go
# on* gets less blame at this token, because its response spreads the blame over more tokens. So *stop*
# becomes rarer. Among right responses, short ones gain.
#
# ### 7b. The standard deviation
#
# Why divide by $\sigma$? So that scores of any scale, 0 to 1 or 0 to 100, give equally large
# advantages. But more changes. If $c$ answers of a group are right, the squares of section
# 1 sum to $c\,(G-c)/G$. Here is $\sigma^2$, also for $c$ = 1 and 2 of 16:
#
# $$ \sigma^2 = \frac{c\,(G-c)}{G\,(G-1)} , \qquad \frac{1 \cdot 15}{16 \cdot 15} = 0.0625 , \qquad
# \frac{2 \cdot 14}{16 \cdot 15} = 0.1167 . $$
#
# The gradient of one group, **here without the division by length**, is
#
# $$ \frac{1}{G} \sum_{i=1}^{G} A_i\, \nabla \log \pi(y_i) . $$
#
# What is its mean over all groups with $c$ right answers? Let $p$ be the chance of a right answer. The
# true gradient is $\nabla p$, because $p$ is the expected score.
#
# 1. Among the right responses, $y$ has the share $\pi(y)/p$. So the mean of $\nabla \log \pi(y)$ over them is
#
#    $$ \sum_{y \text{ right}} \frac{\pi(y)}{p}\, \nabla \log \pi(y) =
#    \frac{1}{p} \sum_{y \text{ right}} \nabla \pi(y) = \frac{\nabla p}{p} . $$
#
#    Over wrong ones it is $-\nabla p / (1 - p)$, because the sum of all $\nabla \pi(y)$ is 0.
# 2. Before the division by $\sigma$, the advantage is $(G-c)/G$ for a right response and $-c/G$ for a wrong one. So the
#    mean gradient is
#
#    $$ \frac{1}{G} \Big( c \cdot \frac{G-c}{G} \cdot \frac{\nabla p}{p} + (G-c) \cdot \frac{c}{G} \cdot
#    \frac{\nabla p}{1-p} \Big) = \sigma^2 u , \qquad u = \frac{G-1}{G} \cdot \frac{\nabla p}{p\,(1-p)} . $$
#
#    The vector $u$ does not depend on $c$.
# 3. Dividing by $\sigma$ turns $\sigma^2$ into $\sigma$. **The standard deviation changes how much a prompt
#    counts, not where it points.** With a constant divisor the direction stays $\nabla p$.
#
# **With the own length** (section 1), $\nabla \log \pi(y) / |y|$ takes the place of $\nabla \log \pi(y)$. Then $u$
# is another vector, which does not depend on $c$ either, but is not along $\nabla p$ (cosine 0.94 above).
#
# *Example:* a hard prompt, $p = 0.02$, with groups of 16. The unit of the last two columns is $u$. The
# **factor** of a prompt says how many times as large the division makes its expected gradient. **Predict** it
# from the means of these columns over all groups.
#
# | right answers | chance of such a group | proportional to $\sigma^2$ (not divided) | proportional to $\sigma$ (divided) |
# |---|---|---|---|
# | none | 72 % | 0 | 0 |
# | one | 24 % | 0.0625 | 0.250 |
# | two | 4 % | 0.1167 | 0.342 |
#
# <details><summary>What you should find</summary>
#
# The means are 0.0196 and 0.073. So the factor is 0.073 / 0.0196 = 3.7.
# </details>
#
# If all prompts had the same factor, a learning rate could make up for it.


# %%
def factor(p, size):
    """The mean of sigma over all groups, divided by the mean of sigma^2."""
    right = torch.arange(size + 1.0, dtype=torch.float64)  # how many may be right
    chance = torch.distributions.Binomial(size, p).log_prob(right).exp()
    variance = right * (size - right) / (size * (size - 1))  # sigma^2
    return (chance * variance.sqrt()).sum() / (chance * variance).sum()


# %% [markdown]
# **Predict.** Groups of 16. Which prompt has the largest factor: one that the policy nearly always gets
# right ($p = 0.98$), one at $p = 0.5$, or our hard one ($p = 0.02$)? And in groups of 2?

# %% tags=["predict"]
p = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
sizes = (2, 4, 8, 16)
factors = {f"G = {size}": [factor(x, size).item() for x in p] for size in sizes}
factors["very large G"] = 1 / (p * (1 - p)).sqrt()
show.lines(factors, p, xlabel="chance of a right answer", ylabel="factor", ylim=(0, 6))

# %% [markdown]
# <details><summary>What you should see</summary>
#
# The two ends have the same factor in groups of 16: 3.7. The middle has 2.0. In groups of 2, every group that
# teaches has one right and one wrong answer. Its $\sigma$ is 0.707. So the factor is $\sigma / \sigma^2$ = 1
# / 0.707 = 1.4 for all prompts.
# </details>
#
# So the prompts have other weights than in the share of right answers ("Going further" has the
# objective). **Dr. GRPO** ("done right") leaves $\sigma$ out, and divides by a constant instead of
# the length.

# %% [markdown]
# ## 8. What a run looks like
#
# First a short run of our own: 40 training steps with the settings of our experiments (`group_config`): 16
# prompts, groups of 8, one update per batch. So every ratio is 1, and the clip never acts. Beside it runs a
# **control**: the same training, but in each batch the scores are dealt out to the responses at random. (It
# takes about a minute.)
#
# **Predict.** What happens to the share of right answers in the control: does it rise, stay or fall?


# %%
def practise(reward):
    """Train a copy of the policy on a reward. Log the share of right answers."""
    steps = 3 if FAST else 40  # FAST=1 is for the tests of this page
    config = experiments.group_config("arithmetic", "grpo", steps=steps)
    logged = {"right": score}
    return loops.train_group(
        copy.deepcopy(start), tokenizer, prompts, reward, config, monitors=logged
    )


def dealt_at_random(batch):
    scores = score(batch)
    return scores[torch.randperm(len(scores), generator=drawing)]


drawing = torch.Generator().manual_seed(0)
trained, paid = practise(score)
_, control = practise(dealt_at_random)

# %% tags=["predict"]
shares = {"paid for right answers": paid.column("grpo", "right")}
shares["paid at random"] = control.column("grpo", "right")
show.lines(
    shares, xlabel="training step", ylabel="share of right answers", ylim=(0, 0.8)
)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# The share of right answers starts near 0.4. It rises to between 0.5 and 0.65 (the mean of the last five
# training steps). In the control it *falls*, to between 0.2 and 0.35. So the rise comes from rewarding
# right answers.
#
# Why do random scores hurt? Their gradient is zero on average, but not in a single batch. So the policy
# takes a random walk, and most ways make it worse ("Going further").
# </details>
#
# Section 3 again. The trained model uses written steps more often. (Five samples are few: `16-1-10=` does worse.)

# %%
table(trained, questions)

# %% [markdown]
# And longer runs, recorded with `minirlhf experiment family`: 80 training steps as above, with three seeds:

# %%
history = experiments.results("family_history")
show.curves(
    history[history.variant == "grpo"],
    columns=["score", "length", "frac_reward_zero_std"],
    across=3,
)

# %% [markdown]
# | panel | what it shows |
# |---|---|
# | `score`: the share of right answers to practice problems | It rises from 0.46 to about 0.69 (the mean of the last five points). |
# | `length`: tokens of a response | It nearly doubles, from 5.2 to about 9.6. Length is not rewarded. But written steps are longer than guesses, and more often right. The pull on length of section 7 is weak beside this ("Going further"). |
# | `frac_reward_zero_std`: the share of groups in which all scores are equal | It rises from 9 % in the first ten training steps to 19 % in the last ten. These groups cost samples and teach nothing. |

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
# | one model after it | 90 % | 90 % | 0 % | 60 % | 67 % |
# | another model after it | 70 % | 70 % | 40 % | 60 % | 100 % |
#
# Both models have the same pass@1. Only pass@16 shows that the second one solves problem C.
#
# Take 400 problems like those of section 8. There pass@16 of the start is 98 %: it can hardly rise. So we ask
# for sums of four numbers, such as `12+5-16+2=`. No example and no practice problem has three
# plus or minus signs. `minirlhf experiment longer` trains as in section 8, for 80 and 400 training steps, with
# three seeds, and tests on 400 of these sums. The start solves 34 % in 16 tries.
#
# **Predict.** After 400 training steps, pass@1 has risen from 6 % to 9 %. Has pass@16 risen, too? And after 80?

# %% tags=["predict"]
longer = experiments.results("longer")
longer["variant"] = longer["variant"].replace("grpo", "grpo, 80 steps")
passed = experiments.pass_at_each_k(longer, samples=16)
show.lines(passed, range(1, 17), xlabel="k", ylabel="pass@k")

# %% [markdown]
# <details><summary>What you should see</summary>
#
# - The line of 400 steps crosses the start's near $k = 8$. Perhaps right answers have gathered on fewer
#   problems; we test it next.
# - That with 80 steps lies above the start's for every $k$.
# </details>
#
# **Would other problems show the same?** Average the change of each problem over the seeds (**pooled**).
# Draw 400 of these changes with replacement, take their mean, and repeat (the *bootstrap*). The middle 95 % of
# these means are the **95 % interval**. Only problems are drawn anew, not seeds.
#
# **The verdict** is that of the first line that fits. The last two columns show the rule at work on a made-up
# run.
#
# | line | the 95 % interval of | fits if | verdict | the run | fits? |
# |---|---|---|---|---|---|
# | **1.** | pass@1, pooled | it does not lie above 0 | **no gain** | 0.06 [0.03, 0.09] | no |
# | **2.** | pass@16, each seed | one lies above 0, and another below | **undecided** | all three hold 0 | no |
# | **3.** | pass@16, pooled | it lies above 0 | **learning**: a rise is shown | 0.01 [−0.02, 0.04] | no |
# | **4.** | pass@16, pooled | it lies below 0 | **sharpening with a loss** | 0.01 [−0.02, 0.04] | no |
# | **5.** | pass@16, pooled | its upper end is below 0.05 | **sharpening**: a rise worth having is excluded | 0.01 [−0.02, 0.04] | **yes** |
# | **6.** | | no line above fits | **undecided** | | |
#
# Why the 0.05? You choose, before you look, which rise is worth having. Here it is 20 of 400 problems. Our
# intervals reach 0.03 to 0.04 to each side, so they can exclude it.
#
# **Predict** the verdicts after 80 and after 400 training steps.

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
# - **Sharpening after 400 steps** (line 5). The interval of pass@1 lies above 0. That of pass@16 ends at 0.01, and
#   there was room for 0.66. It holds 0, so a loss is not shown, although the mean falls by 0.033.
# - **Undecided after 80 steps** (line 6). The interval of pass@16 holds 0 and 0.05. With seed 1 alone we would have
#   reported learning, and with seed 2 alone not even a gain in pass@1.
# </details>

# %% [markdown]
# ## What to remember
#
# - GRPO: a group per prompt, $A_i = (r_i - \bar r) / (\sigma + \delta)$ at every token, PPO's clipped loss. No
#   critic. A group of equal scores teaches nothing.
# - Right written steps of a wrong answer are blamed, too. Other responses with the same beginning can make
#   up for it.
# - Dividing by a response's own length lets long wrong responses survive.
# - Dividing by $\sigma$ gives very hard and very easy prompts more weight.
# - Dr. GRPO leaves out both divisions.
# - A gain in pass@1 may be sharpening. Look at pass@k, and at its room to rise.
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
# **3. A divisor that looks fair** *(hard, 20 minutes)*. A colleague has read section 7, and no longer divides
# by a response's own length. The loss below divides all responses of a group by the *same* number: their
# mean length. So every token of the group counts the same.
#
# Try it in a world where a response is right if its *first* word is right, and has at most six words. Length
# earns nothing there, so it should not move. **Predict**: does the mean length of the wrong responses rise,
# stay or fall? Then run both cells, and look at the curve.
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
# The mean *score* of a group contains the response's own score, and section 7 shows that this does no harm.
# The mean *length* contains its own length. Why does that do harm? Answer in two sentences. Then mend the
# loss, draw the curve again, and run the checker. The curve should be flat but for noise. That is necessary,
# but not enough: a loss can leave the length alone and still be wrong. (The checker accepts any positive
# constant times our loss.) The solutions have the answer in words, too.
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
# epochs with minibatches of 64. You need not measure the ratios. Return the mean score of the batch. The
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
print("mean scores, section 5:", [row[0] for row in measured])
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
# - **A is learning.** Two of its seeds do not show it alone. But an interval that contains 0 does not say
#   that nothing has changed. All three seeds point the same way, and the pooled interval is above 0. Next:
#   compare at a larger $k$. It shows whether the start would solve these problems, too, with more tries.
# - **B is undecided.** The interval of seed 0 lies above 0, and that of seed 1 below: they contradict each
#   other. The pooled interval speaks of other problems, not of other seeds. Next: more seeds.
# - **C is sharpening.** Its intervals contain 0 as well, but they are narrow: the pooled one ends at 0.02,
#   below 0.05, and there was room for 0.60. Next: change the training, for example what is practised.
#   More seeds or problems will hardly change the verdict.
# - **D is undecided.** Its intervals contain 0, and a rise of 0.05, too. 40 problems are too few. Next:
#   more problems.
# - **E has no gain.** Its pass@16 is that of C. But its pass@1 has not been shown to rise, so nothing has been
#   sharpened either. Next: look at the training. Does the score rise on the practice problems?
# - **F is sharpening with a loss.** The pooled interval of pass@16 lies below 0. It also ends below 0.05, like that of C,
#   but here a fall is shown: fewer problems are solved within 16 tries. Next: fewer training steps, or
#   practise problems that are still solved sometimes.
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
# than right ones, look at what the loss is divided by (section 7).
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
# **GRPO's objective**, with a constant divisor (section 7b). For very large groups $\sigma$ is
# $\sqrt{p(1-p)}$, in every group. So the expected gradient is $\nabla p / \sqrt{p(1-p)}$. The slope of
# $\arcsin x$ is $1/\sqrt{1-x^2}$. So that of $2 \arcsin\sqrt{p}$ is $2 \cdot \frac{1}{\sqrt{1-p}} \cdot
# \frac{1}{2\sqrt{p}} = 1/\sqrt{p(1-p)}$. GRPO then maximises the mean of $2 \arcsin\sqrt{p}$ over the
# prompts, instead of the mean of $p$. This does not hold for the loss of section 1. It divides by the own
# length, so its gradient is not along $\nabla p$, as that of a function of $p$ would be.
#
# **The table of section 5.** At update 2, the first batch has more ratios outside than the others. The
# optimiser, Adam, divides each gradient by its usual size. After one gradient this is its own size, so every
# weight moves by the full learning rate.
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
# **Four updates per batch** get as far with half the responses. The run `grpo, 4 epochs` has 40 training steps. A
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
# **What pass@16 does not see** (section 9). Learning only means that more problems are solved within 16 tries. A
# problem that goes from 2 % to 10 % lifts its pass@16 from 28 % to
# 81 %, although the start could already solve it.
#
# **Fewer problems, more often right** (section 9). After 400 training steps at least one sample is right for 124 of
# the 400 problems (before: 137). But at least half of the samples are right for 27 (before: 10; means of three
# seeds). Where the policy is sure and wrong, more tries do not help.
#
# **Why do random rewards do harm?** In the control of section 8 the scores are independent of the
# responses. So the expected gradient is exactly 0 (lesson 04): there is no direction to learn, not even a
# wrong one. But every single batch pulls somewhere, because by chance some responses got the better
# scores. Adam divides the gradient by its usual size, so in both runs the updates have about the same norm.
# The policy takes a random walk. It was trained to fit its examples, so a random change of
# its outputs makes it worse far more often than better. The paid run has the same noise, and a direction
# besides that repairs the damage.
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
