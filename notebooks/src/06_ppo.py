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
# # 06 · PPO
#
# After this lesson you can
#
# - write one training step of PPO, and say what each line is for,
# - say for which tokens PPO's clip stops the gradient, and why,
# - follow the numbers of one token through a training step.
#
# **You need** lesson 04 (the policy gradient, REINFORCE) and lesson 05 (values, advantages, GAE).
# About 45 minutes to read and 80 for the exercises. [Lesson 06b](06b_reading_a_run.ipynb) reads the curves of
# whole runs, and compares PPO with REINFORCE.

# %%
import copy

import pandas as pd
import torch

from minirlhf import core, experiments, loops, models, rewards, show, tasks
from minirlhf.classroom import FAST, check

# %% [markdown]
# ## 1. The idea: use every sample more than once
#
# With large models, sampling is often the slow part of RLHF, because a response is written one token at a time (not in
# our small runs). REINFORCE (lesson 04) makes one update with a batch of samples, and throws the batch away.
# **Proximal policy optimisation (PPO)** makes several updates with the same batch.
#
# But after the first update, the policy is no longer the one that sampled the batch. So PPO
# distinguishes $\pi_{\text{old}}$, the policy that sampled the batch, and $\pi$, the policy now.
#
# Let $y_t$ be a token of a response, and $s_t$ everything before it: the prompt and the tokens written so
# far. The **importance ratio** $\rho_t$ of the token is its probability now, divided by its probability when it was
# sampled:
#
# $$ \rho_t = \frac{\pi(y_t \mid s_t)}{\pi_{\text{old}}(y_t \mid s_t)} . $$
#
# A ratio of 1.5 means that the token has become 50 % more likely.
#
# The **advantage** $A_t$ (lesson 05) says how much better the token was than what $\pi_{\text{old}}$ would write there
# on average. It is positive for a good token and negative for a bad one. Nobody knows it, so PPO uses the
# estimate of lesson 05, $\hat A_t$. (A hat marks an estimate. Later lessons leave it out.)

# %% [markdown]
# ## 2. Why the ratio, and why stay close?
#
# The **true score** of a policy is the mean score over all responses that it could write. The **gain** is how
# much it has risen since the batch was sampled. PPO has to estimate it.
#
# **The gain is a mean of advantages.** Suppose that we know the old policy's values and advantages exactly, and that
# only the last token has a reward. An advantage is then the change of the value from one prefix to the next, and the
# last advantage leads to the score (lesson 03). So the advantages of a response add up to its score minus the first
# value:
#
# $$ \sum_t A_t = \text{score} - V(\text{prompt}) . $$
#
# (If every token has a reward, as in section 4, put the sum of the rewards in place of the score.)
#
# Take the mean over responses of the *new* policy. The mean score is the new true score. The mean of
# $V(\text{prompt})$ is the old true score, because $V$ belongs to the old policy. Their difference is the gain:
#
# $$ \text{gain} = \mathbb{E}_{y \sim \pi}\Big[\sum_t A_t\Big] . $$
#
# This is exact. But the old policy sampled the batch.
#
# **Why does each token get its ratio as a weight?** Suppose that the old policy continued the same prefix $s_t$ 100
# times, and chose a certain token 20 times. The new policy would choose it 30 times. The batch has only 20, so each
# of them must count 30 / 20 = 1.5 times. This weight is the ratio. With it we get **PPO's estimate** of the gain:
#
# $$ \text{gain} \approx \mathbb{E}_{y \sim \pi_{\text{old}}}\Big[\sum_t \rho_t A_t\Big] . $$
#
# **What is exact in it, and what is not?** The ratio is exact for one thing: how often the token comes
# *after its prefix*. But the new policy also reaches the prefix more or less often. The ratio does not correct for
# this. Take the response *not good*:
#
# | token | old policy | new policy | weight it has: its ratio | weight it should have |
# |---|---|---|---|---|
# | *not* | 0.5 | 0.1 | 0.2 | 0.2 |
# | *good* after *not* | 0.5 | 0.6 | 1.2 | 0.2 · 1.2 = 0.24 |
#
# The new policy comes to this *good* less often. In 100 responses the old policy writes *not good* 25 times, and the
# new one 6 times. But with the weight 1.2, these 25 count as 30: five times too many.
#
# **Why must the policy stay close to the old one?** Because there the error is small. After *not*,
# let *good* have the advantage +1, and every other word −1. All other advantages are 0, that of *not* itself, too.
#
# After *not*, the old policy writes *good* and other words equally often. Weighted with their ratios, 1.2 and 0.8,
# the mean advantage is 0.5 · 1.2 − 0.5 · 0.8 = 0.2. This is right: it is the new policy's mean, 0.6 − 0.4. PPO's
# estimate multiplies it by 0.5, how often the *old* policy writes *not*. The gain multiplies it by 0.1, how often the
# *new* one does:
#
# | change | mean advantage after *not*, new policy | PPO's estimate | gain | error |
# |---|---|---|---|---|
# | as above | 0.6 − 0.4 = 0.2 | 0.5 · 0.2 = 0.1 | 0.1 · 0.2 = 0.02 | 0.4 · 0.2 = 0.08 |
# | ten times smaller | 0.51 − 0.49 = 0.02 | 0.5 · 0.02 = 0.01 | 0.46 · 0.02 = 0.0092 | 0.04 · 0.02 = 0.0008 |
#
# The error is a product: how much less often *not* is written, times the mean advantage after it. For a change ten
# times smaller, both are ten times smaller. So the error is a hundred times smaller: it grows with the *square* of
# the change.
#
# **The gradient.** Without the clip PPO would maximise its estimate. REINFORCE's gradient for one token is
# $A_t \nabla \log \pi$. That of $\rho_t A_t$ has the weight $\rho_t$, too:
#
# $$ A_t \nabla \rho_t = A_t \frac{\nabla \pi}{\pi_{\text{old}}} = A_t \frac{\pi}{\pi_{\text{old}}}
# \frac{\nabla \pi}{\pi} = \rho_t A_t \nabla \log \pi . $$
#
# Right after sampling, every ratio is 1. So **PPO's first update is REINFORCE's**, with the advantages of lesson 05.

# %% [markdown]
# ## 3. The clip
#
# How does PPO stay near the old policy? Its loss for one token is
#
# $$ L_t = -\min\big(\rho_t \hat A_t,\; \text{clip}(\rho_t,\, 1-\epsilon,\, 1+\epsilon)\, \hat A_t\big) . $$
#
# The usual $\epsilon$ is 0.2. Then the clip leaves a ratio between 0.8 and 1.2 as it
# is, and replaces any other by the nearer end.
#
# **Predict.** In which of these six cases does the token still get a gradient? Write down *yes* or *no* for each case,
# then run the cell.
#
# | | $\rho < 0.8$ | $0.8 \le \rho \le 1.2$ | $\rho > 1.2$ |
# |---|---|---|---|
# | $\hat A > 0$: the token was better than expected | ? | ? | ? |
# | $\hat A < 0$: the token was worse than expected | ? | ? | ? |

# %% tags=["predict"]
ratio = torch.tensor([[0.5, 1.0, 1.5]])  # one response of three tokens
old = torch.zeros(1, 3)  # only the difference of the log-probabilities matters
mask = torch.ones(1, 3, dtype=torch.bool)  # all three are real tokens, none is padding
for advantage in (+1.0, -1.0):
    logprobs = ratio.log().requires_grad_(True)
    losses = core.ppo_clip(
        logprobs, old, torch.full((1, 3), advantage), mask, clip_eps=0.2
    )
    losses.sum().backward()
    print(f"A = {advantage:+.0f}:", ["yes" if g else "no" for g in logprobs.grad[0]])
show.clip(eps=0.2)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# Two of the six cases have no gradient:
#
# - $\hat A > 0$ and $\rho > 1.2$: the token was good, and it is already much more likely.
# - $\hat A < 0$ and $\rho < 0.8$: the token was bad, and it is already much less likely.
# </details>
#
# Both panels draw what PPO *maximises*, $-L_t$. Dashed: no gradient. A token that loses its gradient in this way
# is called **clipped**. The **clip fraction** is the share of clipped tokens.
#
# The clip does not hold a token at 1.2. It only stops the pushing, once the token is beyond. Two things can still
# move it on. All tokens share the policy's weights, so the updates of other tokens move it, too. And the optimiser
# has **momentum**: it moves the weights along a running mean of the gradients, so earlier pushes go on.
#
# **Why the minimum?** Outside the range the clipped term is a constant, so it has no gradient. The loss is minus the
# *smaller* term. Take care with negative terms: −0.8 is smaller than −0.6. Here are four tokens by hand:
#
# | token | ratio: new / old probability | $\hat A$ | $\rho \hat A$ | $\text{clip}(\rho) \hat A$ | loss: minus the smaller |
# |---|---|---|---|---|---|
# | good, already up | 0.75 / 0.50 = 1.5 | 1 | 1.5 | 1.2 | −1.2, no gradient |
# | good, but down | 0.30 / 0.50 = 0.6 | 1 | 0.6 | 0.8 | −0.6 |
# | bad, already down | 0.30 / 0.50 = 0.6 | −1 | −0.6 | −0.8 | 0.8, no gradient |
# | bad, but up | 0.30 / 0.20 = 1.5 | −1 | −1.5 | −1.2 | 1.5 |
#
# - *Already up* and *already down* have moved far enough in the right direction. The clipped term is the
#   smaller one, so the token gets no gradient.
# - *But down* and *but up* have moved in the wrong direction. The first term is the smaller one, so the
#   token keeps its gradient, and is pushed back. With the clipped term alone it would not be pushed back.
#
# The package's function takes log-probabilities, and gives the same losses:

# %%
old = torch.tensor([[0.50, 0.50, 0.50, 0.20]])
new = torch.tensor([[0.75, 0.30, 0.30, 0.30]])
advantages = torch.tensor([[1.0, 1.0, -1.0, -1.0]])
losses = core.ppo_clip(new.log(), old.log(), advantages, torch.ones(1, 4).bool())
assert torch.allclose(losses, torch.tensor([[-1.2, -0.6, 0.8, 1.5]]))

# %% [markdown]
# **What does the clip prevent?** Let us use one small batch far too often: for 60 updates. We do it in a small world,
# where the true score of a policy can be *computed* and compared with PPO's estimate. The world has three words: *a*,
# *b* and the full stop that ends a response (lesson 05). A response has at most three words, so 15 are possible. The
# old policy has the true score −0.17. Say that it has sampled this batch:
#
# | response | score | advantage: the score minus the mean of the other three scores |
# |---|---|---|
# | *aa.* | −2.18 | −1.41 |
# | *bb.* | −0.86 | +0.35 |
# | *bab* | −0.72 | +0.53 |
# | *bab*, again | −0.72 | +0.53 |
#
# The advantage of a response is split evenly among its three tokens, so that the advantages add up to it, as in
# section 2.

# %% tags=["shared"]
world = core.World.random(3, 3, seed=0)
start = world.ref_logits  # a row of logits for each prefix: the old policy
old_logprobs = world.logprobs(start)  # (15, 3): each response, each token


# %%
def updates(rows, eps):  # 60 updates with one batch; the numbers before and after each
    scores, logits, path = world.rewards[rows, None], start, []
    advantages = scores - (scores.sum() - scores) / 3  # of the responses, (4, 1)
    advantages = advantages / 3  # of each token
    for _ in range(61):
        logits = logits.detach().requires_grad_(True)
        ratio = (world.logprobs(logits) - old_logprobs).exp()[rows]  # (4, 3)
        free = ratio * advantages
        clipped = ratio.clamp(1 - eps, 1 + eps) * advantages
        path.append([free.sum(1).mean().item(), world.objective(logits).item()])
        torch.minimum(free, clipped).sum(1).mean().backward()  # PPO maximises this
        logits = logits + 3 * logits.grad  # plain gradient ascent
    path = torch.tensor(path).T  # (2, 61): PPO's estimate of the gain, true score
    return path - path[:, :1]  # how much both have changed


# %% [markdown]
# **Predict.** Without the clip, how does PPO's estimate of the gain move, and how the true score? And with it?

# %% tags=["predict"]
batch = torch.tensor([2, 12, 8, 8])  # the numbers of the four responses in `world`
free, clipped = updates(batch, eps=torch.inf), updates(batch, eps=0.2)
curves = {
    "PPO's estimate, no clip": free[0],
    "true score, no clip": free[1],
    "PPO's estimate, clip 0.2": clipped[0],
    "true score, clip 0.2": clipped[1],
}
show.lines(curves, xlabel="updates on one batch", ylabel="change", reference=0)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# Without the clip PPO's estimate rises all the way, to 0.97. But the true score *falls* by 0.51. With the clip both
# move little: the estimate rises by 0.22, and the true score falls by 0.09.
#
# Without the clip, the first two updates do no harm: the true score even rises, by 0.03. The reuse does the damage.
# Why? All four responses are worse than the mean of the old policy, −0.17. The last three only look good beside *aa.*
# So the policy learns to write *bab*: without the clip, its probability rises from 0.03 to 0.95.
# </details>
#
# So PPO cannot see the damage: its own estimate says that all is well. The clip does not make the batch better. It
# limits how much one batch can do. This batch is unlucky: of 40 that we drew it does the most damage. On 38 of them
# the true score rises, and more without the clip: by 0.82 on average, against 0.12 with it. So the clip makes a batch
# safer, and slower ("Going further").

# %% [markdown]
# ## 4. One step of PPO
#
# A **training step** samples one batch and learns from it. Four models take part:
#
# | model | what it does | starts as | trained? |
# |---|---|---|---|
# | **actor** $\pi$ | the policy: it writes the responses | the SFT model (supervised fine-tuning, lesson 03) | yes |
# | **critic** $\hat V$ | predicts, before each token, the sum of the rewards that are still to come | a copy of the reward model. In lesson 05 it was trained first. Here it learns during PPO, within two training steps (lesson 06b) | yes |
# | **reward model** | scores a finished response | itself | no |
# | **reference** $\pi_{\text{ref}}$ | gives log-probabilities to compare with | a copy of the actor | no |
#
# A training step has five parts. (B, R) means B responses with R token positions: R is the length of the longest.
#
# ![One step of PPO with the shapes and numbers of a real batch](../docs/images/ppo_step.png)
#
# The picture shows training step 4 of another run. Read only arrows and shapes.
#
# **1. Sample.** The actor writes a short review (the response) to each of 64 film titles (the prompts). It keeps
# $\log \pi_{\text{old}}$, the log-probability of each token.
#
# **2. Ask the three other models.** They give one score per response, and $\log \pi_{\text{ref}}$ and the value
# $\hat V_t$ of each token.
#
# **3. Rewards.** The reward model makes errors: it gives high scores to some texts that are not even good
# English. So each token also pays for moving away from the reference. Four words of lesson 00:
#
# | word | what it is |
# |---|---|
# | **log-ratio** of a token | $\log \pi_{\text{old}} - \log \pi_{\text{ref}}$ |
# | **KL coefficient** | the number $\beta$. We use 0.5 |
# | **KL penalty** of a token | $\beta$ times its log-ratio: what the token pays |
# | **KL** (Kullback–Leibler divergence) | how far the policy is from the reference: the sum of the log-ratios of a response, averaged over all responses of the policy. Its unit is the **nat**, the unit of natural logarithms |
#
# The **reward** of a token is
#
# $$ r_t = -\beta\,(\log \pi_{\text{old}} - \log \pi_{\text{ref}})_t \quad (+ \text{ score, if } t
# \text{ is the last token}). $$
#
# So the penalty is part of the reward, not of the loss: it is computed once, before the updates. And a
# token's advantage contains the penalties of the later tokens, too.
#
# Do not mix up the two ratios:
#
# | | it compares | it is part of | right after sampling |
# |---|---|---|---|
# | *log-ratio* | $\pi_{\text{old}}$ with the reference | the reward | any number. 0 in the very first batch |
# | *importance ratio* $\rho_t$ | the policy now with $\pi_{\text{old}}$ | the actor's loss | 1 |
#
# **4. Advantages** (lesson 05). The temporal-difference (TD) error $\delta_t$ compares what came with what the
# critic predicted. Generalised advantage estimation (GAE) adds the later errors to it, from the last token to the
# first:
#
# $$ \delta_t = r_t + \gamma \hat V_{t+1} - \hat V_t , \qquad \hat A_t = \delta_t + \gamma\lambda\, \hat A_{t+1} . $$
#
# After the last token, $\hat V$ and $\hat A$ are 0. We use $\gamma = 1$ and $\lambda = 0.95$. The **critic's target**
# is $\hat A_t + \hat V_t$.
#
# **5. Update.** An **epoch** is one pass over the batch. We make two. In each epoch the 64 responses are shuffled and
# cut into two **minibatches** of 32, so one training step makes four updates. The actor's loss is that of section 3.
# The critic's loss is half the squared difference between its value and its target.
#
# First the models and their optimisers:

# %%
torch.set_num_threads(1)  # sums in a fixed order, so that two runs can be equal
sft, tokenizer = models.load_policy("tiny-reviews-sft")
reward_model, _ = models.load_scalar("tiny-reviews-reward")
eos_id = tokenizer.eos_token_id
score = rewards.rollout_score(reward_model, eos_id)
sampling = models.SamplingConfig(temperature=0.7, max_new_tokens=32)
prompts = tasks.reviews.rl_prompts()  # film titles

actor, critic, reference = (copy.deepcopy(m) for m in (sft, reward_model, sft))
actor_config = loops.OptimiserConfig.plain(lr=2e-5)
critic_config = loops.OptimiserConfig.plain(lr=6e-5)
actor_optimizer = loops.make_optimizer(actor, actor_config)
critic_optimizer = loops.make_optimizer(critic, critic_config)
generator = torch.Generator().manual_seed(0)

# %% [markdown]
# **Predict.** In the updates of a batch, which of these are computed anew in each minibatch, and which are fixed?
#
# - `logprobs`
# - `old_logprobs`
# - `values`, from which the advantages are computed
# - `advantages`
# - `targets`


# %%
def ppo_step(titles):
    # 1. Sample. Keep the log-probability of every token under this policy.
    ids, prompt_mask = models.encode_prompts(tokenizer, titles)
    batch = models.sample(
        actor, ids, prompt_mask, eos_id=eos_id, config=sampling, generator=generator
    )
    mask = batch.response_mask
    with torch.no_grad():
        # 2. Ask the three other models.
        scores = score(batch)  # (B,) one number per response
        ref_logprobs = models.policy_logprobs(reference, batch, temperature=0.7)
        values = models.response_values(critic, batch)  # read one position to the left
        # 3. Rewards: the KL penalty on every token, the score on the last one.
        token_rewards = core.kl_shaped_rewards(
            scores, batch.old_logprobs, ref_logprobs, mask, kl_coef=0.5
        )
        # 4. Advantages, and targets for the critic.
        advantages, targets = core.gae(token_rewards, values, mask, gamma=1, lam=0.95)
    batch = batch.with_columns(  # tensors that stay with their responses
        scores=scores, rewards=token_rewards, advantages=advantages, targets=targets
    )
    # 5. Update: two epochs over the batch, in minibatches of 32 responses.
    for _ in range(2):
        for rows in torch.randperm(len(titles), generator=generator).split(32):
            part = batch.select(rows)
            real = part.response_mask
            logprobs = models.policy_logprobs(actor, part, temperature=0.7)
            policy_losses = core.ppo_clip(
                logprobs, part.old_logprobs, part.advantages, real, clip_eps=0.2
            )
            core.aggregate(policy_losses, real).backward()  # the mean over tokens
            actor_optimizer.step()
            actor_optimizer.zero_grad()
            new_values = models.response_values(critic, part)
            value_losses = core.value_loss(new_values, part.targets, real)
            core.aggregate(value_losses, real).backward()
            critic_optimizer.step()
            critic_optimizer.zero_grad()
    return batch


# %% [markdown]
# <details><summary>What you should see</summary>
#
# - **Anew:** only `logprobs`, because each update changes the actor. (The critic's own loss needs its new
#   values, too: `new_values`.)
# - **Fixed:** the other four. They belong to the tokens and the policy that sampled.
# </details>
#
# Some lines need a word:
#
# - `response_mask` is true at real tokens and false at padding. `real` is that of the minibatch, and
#   `core.aggregate` takes the mean over these tokens.
# - `policy_logprobs` and `response_values` read a model's output one position to the left of each token (lessons 03 and
#   05).
# - `temperature=0.7` stands wherever log-probabilities are computed, because the tokens were sampled at 0.7.
#
# The package's `train_ppo` is this loop, plus what a long run needs. `PPOConfig.plain` switches the extras off. With
# the same seed, three training steps then leave exactly the same weights. The cell takes about a minute:

# %%
steps = 1 if FAST else 3  # FAST=1 is for the tests of this page
order = list(loops.shuffled_batches(len(prompts), 64, steps, seed=0))
by_hand = [ppo_step([prompts[i] for i in index]) for index in order]

config = loops.PPOConfig.plain(steps=steps, actor=actor_config, critic=critic_config)
other_actor, other_critic, history = loops.train_ppo(
    copy.deepcopy(sft), copy.deepcopy(reward_model), tokenizer, prompts, score, config
)
assert models.same_weights(actor, other_actor)
assert models.same_weights(critic, other_critic)
print("mean score of each batch:", [round(b.scores.mean().item(), 2) for b in by_hand])

# %% [markdown]
# The mean scores, about 0.1, 0.3 and 0.1, show no learning yet. (REINFORCE in lesson 04 had five times this learning
# rate, and no KL penalty.) Single scores have a standard deviation of about 1, so the mean of 64 differs by about 1/8
# by chance.
#
# ## 5. One token, all the way
#
# What does a training step do with a single token? The last digits of your own numbers may differ. So we read a
# *recorded* batch: the third one of this run. Responses are numbered from 0, updates from 1. Response 1
# begins *A moving portrait*. Here are these three tokens before update 1. (In the record, `text` is
# the number of the response, and `updates` counts the updates so far: `0` is before update 1.)

# %%
names = {"step": "updates", "kl": "log-ratio", "return": "target"}  # as we call them
recorded = experiments.results("one_batch").rename(columns=names)  # four responses
before = recorded[(recorded.text == 1) & (recorded.updates == 0)].set_index("token")
columns = ["old_logprob", "ref_logprob", "log-ratio", "reward", "value"]
columns += ["td_error", "advantage", "target"]
before[columns].head(3).round(4)

# %% [markdown]
# Follow *moving* with a calculator:
#
# | what | of *moving* | line of the loop |
# |---|---|---|
# | log-ratio | −4.0061 + 4.2842 = 0.2781 | `batch.old_logprobs`, minus `ref_logprobs` |
# | reward $r_t$ | −0.5 · 0.2781 = −0.1391 | `core.kl_shaped_rewards` |
# | value $\hat V_t$, and $\hat V_{t+1}$ of *portrait* | 0.4984, and 0.4718 | `models.response_values` |
# | TD error $\delta_t$ | −0.1391 + 0.4718 − 0.4984 = −0.1657 | `core.gae` |
# | advantage $\hat A_t$ | −0.1657 + 0.95 · 0.6376 = 0.4400 | `core.gae`, from the end: *portrait* has 0.6376 |
# | critic's target | 0.4400 + 0.4984 = 0.9384 | `core.gae` |
# | ratio in update 2 | exp(−3.9914 + 4.0061) = 1.0148 | `logprobs`, minus `part.old_logprobs` |
# | loss in update 2 | −1.015 · 0.440 = −0.447 | `core.ppo_clip`: nothing to clip |
#
# This response is first used in update 2. Update 1 has changed the actor, so the ratio is not 1. The log-probability
# −3.9914 is that of `recorded[(recorded.text == 1) & (recorded.updates == 1)]`, in the column `logprob`.

# %% [markdown]
# ## 6. A whole run
#
# This is `train_ppo` with its usual settings: 24 training steps of 64 responses, and three seeds. The most important
# difference from section 4 is the learning rate, which is five times as large at its highest. (Lesson 06b lists all
# differences.)

# %%
show.curves(
    experiments.results("tour_history"),  # the whole pipeline of lesson 00, recorded
    stage="ppo",
    columns=["score", "gold", "kl"],
)

# %% [markdown]
# | curve | what it is | what you see |
# |---|---|---|
# | **score** | the reward model's score, without the KL penalty | rises from about 0 to about 1.2 |
# | **gold** | a second score that training never sees: the rating from −4 to 4 that people would give, predicted by another model | rises too |
# | **kl** | the KL (section 4), as a mean over the responses of the batch | grows to about 2 and stays near that |
#
# Why is *gold* needed? The policy is trained to raise the score, so a rising score only says that the training works.
# If gold rises too, the reviews are also better for a judge that the training never asks. (It can share errors with
# the reward model: lesson 06b has an example.)
#
# Read samples as well. Here is the first one for each of three of the 76 test films, which training never sees.

# %%
tour = experiments.results("tour")
show.texts(experiments.samples(tour, ["SFT", "PPO"], by="method").head(3))

# %% [markdown]
# On average PPO's reviews are shorter: 14.5 tokens instead of 19.0.
#
# **Is PPO better than REINFORCE?** With the same learning rate and as many samples, it learns faster: the mean score
# over the whole training is higher by 0.2 to 0.3. But it also moves further from the reference. At the same distance
# from it, plain REINFORCE has as much gold here. Lesson 06b shows how we compare, and what the critic, the reuse and
# the clip each add.

# %% [markdown]
# ## What to remember
#
# - PPO uses a batch for several updates. Its first update is that of REINFORCE with a critic.
# - The ratio $\rho_t = \pi / \pi_{\text{old}}$ corrects for how often a token now comes after its prefix. It does not
#   correct for how often the prefix comes. So the policy must stay close to the one that sampled.
# - The clip takes the gradient from tokens that have moved far enough in the right direction. It does not hold them.
#   It makes the reuse of a batch safer, and slower.
# - One training step: sample; score, reference, critic; rewards; advantages; a few epochs of minibatches.
# - The KL penalty is part of the reward. It is fixed before the updates begin.
# - PPO learns faster than REINFORCE. At the same distance from the reference, both have as much gold here (lesson 06b).
#
# ## Exercises
#
# Solutions are in `solutions/06_ppo.ipynb`.

# %% [markdown] tags=["exercise"]
# **1. The loss** *(medium, 10 minutes)*. Write PPO's loss of each token. `logprobs`,
# `old_logprobs` and `advantages` have the shape (B, R). `mask` is true at real tokens. Return 0
# where it is false. *This function goes into your
# `my_rlhf.py`, the file that collects your functions. In lesson 09 it trains the whole pipeline.*
#
# *Hint:* padding can hold NaN, and NaN times 0 is NaN. Replace padding with
# `torch.where(mask, x, 0.0)` before you compute. The checker compares the gradient, too.


# %% tags=["exercise"]
def ppo_loss(logprobs, old_logprobs, advantages, mask, eps): ...  # your code


check.ppo_loss(ppo_loss)


# %% tags=["solution"]
def ppo_loss(logprobs, old_logprobs, advantages, mask, eps):
    logprobs, old_logprobs, advantages = (
        torch.where(mask, x, 0.0) for x in (logprobs, old_logprobs, advantages)
    )
    ratio = (logprobs - old_logprobs).exp()
    clipped = ratio.clamp(1 - eps, 1 + eps)
    return -torch.minimum(ratio * advantages, clipped * advantages)


check.ppo_loss(ppo_loss)

# %% [markdown] tags=["exercise"]
# **2. The clip fraction** *(medium, 10 minutes)*. Return the share of real tokens that have no
# gradient because of the clip, one number. `ratio`, `advantages` and `mask` have the shape (B, R).
#
# *Hint:* a ratio outside the range is not enough. Section 3 has six cases.


# %% tags=["exercise"]
def clipped_share(ratio, advantages, mask, eps): ...  # your code


check.clipped_share(clipped_share)


# %% tags=["solution"]
def clipped_share(ratio, advantages, mask, eps):
    too_high = (advantages > 0) & (ratio > 1 + eps)
    too_low = (advantages < 0) & (ratio < 1 - eps)
    return ((too_high | too_low) & mask).sum() / mask.sum()


check.clipped_share(clipped_share)

# %% [markdown] tags=["exercise"]
# **3. A clip that pulls back** *(hard, 20 minutes)*. A clipped token can move on, because it shares
# the weights with other tokens (section 3). Change PPO's loss so that such a token is pulled *back*.
# Section 3's figure draws what PPO maximises, which is minus the loss. Leave the figure as it is in four of
# the six cases. In the other two it is flat. Make it fall there:
#
# - $\hat A > 0$: to the right of $1+\epsilon$ it has the slope $-\alpha \hat A$. So the new piece is
#   $(1+\epsilon)\hat A - \alpha \hat A\,(\rho - 1 - \epsilon)$.
# - $\hat A < 0$: to the left of $1-\epsilon$ it has the slope $+\alpha |\hat A|$, so it falls when the ratio *shrinks*.
#
# It must not jump at the end of the range. $\alpha$ can be any positive number, also above 1. Return the *loss*.
# The arguments have the shapes of exercise 1. Return 0 where the mask is false.
#
# *Hint:* first draw both panels of section 3's figure on paper, with the new parts. What is the formula of the new
# piece for $\hat A < 0$? Which one expression, with the clipped ratio in it, gives both?


# %% tags=["exercise"]
def pull_back_loss(logprobs, old_logprobs, advantages, mask, eps, alpha):
    # This is PPO's loss. Replace it by your code.
    return core.ppo_clip(logprobs, old_logprobs, advantages, mask, clip_eps=eps)


check.pull_back_loss(pull_back_loss)


# %% tags=["solution"]
def pull_back_loss(logprobs, old_logprobs, advantages, mask, eps, alpha):
    logprobs, old_logprobs, advantages = (
        torch.where(mask, x, 0.0) for x in (logprobs, old_logprobs, advantages)
    )
    ratio = (logprobs - old_logprobs).exp()
    clipped = ratio.clamp(1 - eps, 1 + eps)
    # Inside the range ratio and clipped are equal, and nothing changes.
    falling = clipped - alpha * (ratio - clipped)
    return -torch.minimum(ratio * advantages, falling * advantages)


check.pull_back_loss(pull_back_loss)

# %% [markdown] tags=["exercise"]
# When your loss passes, use it in the small world of section 3. We make 60 updates on a **perfect batch**: all 15
# responses, weighted with their probabilities, and their exact advantages.
#
# The cell draws the largest ratio of a token after each update, for PPO's loss and for yours. **Predict** both
# curves first. Where does each of them end, above or below 1.2? And which of the two policies has the higher true
# score?


# %% tags=["exercise", "solution"]
def largest_ratio(loss):
    """The largest ratio after each update, and the true score after the last."""
    mask, logits, path = world.response_mask, start, []
    values, action_values = world.values(start)  # V of each prefix, Q of each word
    exact = (action_values - values[:, None])[world.visited, world.response_ids]
    for _ in range(61):
        logits = logits.detach().requires_grad_(True)
        logprobs = world.logprobs(logits)
        path.append((logprobs - old_logprobs).exp()[mask].max().item())
        true_score = world.objective(logits).item()
        (
            world.probs(start) @ loss(logprobs, old_logprobs, exact, mask).sum(1)
        ).backward()
        logits = logits - logits.grad
    return path, true_score


def with_alpha(*batch):
    return pull_back_loss(*batch, eps=0.2, alpha=0.3)


clip, clip_score = largest_ratio(core.ppo_clip)
back, back_score = largest_ratio(with_alpha)
print(f"true score: {clip_score:.2f} with PPO's clip, {back_score:.2f} with the pull")
show.lines(
    {"PPO's clip": clip, "a clip that pulls back": back},
    xlabel="updates on one batch",
    ylabel="largest ratio",
    reference=1.2,
)

# %% [markdown] tags=["exercise"]
# <details><summary>What you should see</summary>
#
# | | largest ratio | true score |
# |---|---|---|
# | before the first update | 1 | −0.17 |
# | PPO's clip, after 60 updates | 1.70, still rising | 0.17 |
# | the pull with $\alpha = 0.3$, after 60 updates | 1.27, above the range | 0.05 |
#
# **Why does the pull not end at 1.2?** Tokens after the same prefix push each other, because their probabilities
# add up to 1 (the softmax). Take the prefix *ba*. Its next token is *a* with the probability 0.41, and *a* is
# good. The other two, with 0.32 and 0.27, are bad. They are pushed down to the end of their own range, to about 0.8
# times what they were. What they lose, *a* gains: its ratio becomes 1.27. With $\alpha = 0.3$, the pull on *a* is
# weaker than these two pushes.
#
# **Why is the score lower?** The pull also holds back tokens that were rightly moving on, such as *a* after *aa*, the
# token with the largest advantage. Its ratio becomes 1.19 instead of 1.39. So the pull keeps the ratios closer to
# the range, and pays for it: the score rises by 0.23 instead of 0.34.
# </details>

# %% [markdown] tags=["solution"]
# The minimum still chooses the right term in all six cases. Beyond the range, the falling line lies below
# $\rho \hat A$ on the side where PPO clips, and above it on the other side. That is why the difference
# $\rho - \text{clip}(\rho)$ keeps its sign. With $-\alpha |\hat A|\,|\rho - \text{clip}(\rho)|$ the line falls on both
# sides, and for $\alpha$ above 1 the minimum takes it on the wrong side, too. (Wang et al. 2019, *Truly proximal
# policy optimization*, call the pull a rollback.)

# %% [markdown] tags=["exercise"]
# **4. The whole step on an empty page** *(hard, 40 minutes)*. Close section 4. Write `ppo_step`
# from memory, under the name `my_step`: sample; ask the three models; rewards; advantages; update.
# Use the temperature 0.7, $\beta = 0.5$, $\gamma = 1$, $\lambda = 0.95$ and two epochs with
# minibatches of 32. Return the batch with its columns `scores`, `rewards`, `advantages` and `targets`.
# The last cell takes about twenty seconds. It runs your steps and compares every column with section 4, in order. It
# names the first one that differs, and the part to look at. If an update differs, it says what differs first: the
# minibatches, the actor's gradient or the critic's.
#
# The functions are `models.encode_prompts`, `models.sample`, `models.policy_logprobs`,
# `models.response_values`, `score`, `core.kl_shaped_rewards`, `core.gae`, `batch.with_columns`,
# `batch.select`, `torch.randperm`, `core.ppo_clip`, `core.value_loss` and `core.aggregate`.
# `models.encode_prompts` returns ids and mask. A batch has `response_mask` and `old_logprobs`.
# `help(core.gae)` tells you the arguments of a function. All random numbers come from `generator`.


# %% tags=["exercise"]
def my_step(titles): ...  # your code


# %% [markdown] tags=["solution"]
# `ppo_step` in section 4 of the lesson is the solution. If your weights differ, compare the two line
# by line. Common slips: the actor's log-probabilities at another temperature than the samples,
# `torch.randperm` without `generator`, `mask` of the whole batch instead of the minibatch, advantages computed
# anew in each minibatch.

# %% tags=["exercise"]
actor, critic, reference = (copy.deepcopy(m) for m in (sft, reward_model, sft))
actor_optimizer = loops.make_optimizer(actor, actor_config)
critic_optimizer = loops.make_optimizer(critic, critic_config)
generator = torch.Generator().manual_seed(0)
watched = check.watch_updates(
    actor=(actor, actor_optimizer), critic=(critic, critic_optimizer)
)
mine = [my_step([prompts[i] for i in index]) for index in order]
check.whole_step(mine, by_hand, watched, actor=other_actor, critic=other_critic)

# %% [markdown]
# ## Questions
#
# <details><summary>1. Why is every ratio 1 in the first minibatch? What if it is not?</summary>
#
# The policy has not changed since it sampled. If a ratio differs from 1 by more than rounding, the
# two log-probabilities were computed differently. Usual causes: dropout is on, another temperature,
# wrong position ids for padded prompts, another numerical precision.
# </details>
#
# <details><summary>2. Does the clip guarantee that the policy stays close to the old one?</summary>
#
# No, for three reasons. One large update can jump far beyond the range, because the clip acts only after
# a token has left it. The optimiser's momentum goes on with the earlier pushes on a clipped token. And a clipped token
# shares its weights with all other tokens, and their gradients move it.
# </details>
#
# <details><summary>3. What is left of PPO with one epoch and one minibatch per batch?</summary>
#
# REINFORCE with a critic. All ratios are 1, and nothing is clipped.
# </details>
#
# ## Going further
#
# **A batch under the microscope.** Where have the four updates of section 5 moved the tokens? The **token microscope**
# shows the numbers of every token. Point at a token, or use the arrow keys. Here are four responses, numbered from 0,
# *after* the four updates.
#
# Blue tokens have become more likely since they were sampled, orange ones less likely. (The colour
# shows the logarithm of the importance ratio: 0.18 for 1.2.) A double line below a token says that it is clipped. (A
# still view, without scripts, does not draw it. The table below follows three tokens.)

# %%
after = recorded[recorded.updates == 4]  # after update 4
place = ["text", "prompt", "position", "token"]
measures = ["old_logprob", "logprob", "ratio", "advantage", "clipped"]
show.microscope(after[place + measures], "ratio", text="all")

# %% [markdown]
# | token | $\hat A_t$ | ratio before update 4 | ratio after it | what it shows |
# |---|---|---|---|---|
# | *or*, response 0 | 0.62 | 1.199 | 1.30 | clipped now. One update moved it beyond 1.2 |
# | *er*, response 1 | −0.83 | 0.73 | 0.62 | clipped before and after. A clipped token moves on, although update 4 does not even use its response |
# | *offers*, response 0 | 0.17 | 0.85 | 0.79 | not clipped. It has moved in the wrong direction, so it keeps its gradient and can come back |
#
# One of the tokens that update 4 uses is clipped: *the* at position 12 of response 0, with the advantage 0.2187 and
# the ratio 1.209. Its loss is −1.2 · 0.2187 = −0.2624, whatever its exact ratio. So its gradient is 0. To see
# its row, run `recorded[recorded.clipped & recorded.used & (recorded.updates == 3)].T`. (`used` is true if the next
# update uses the token's response.)
#
# **Why *er* moves on.** In update 4 its log-probability falls by 0.15. We repeated the training step with one change
# each:
#
# - The gradient of update 4 is set to 0. *er* falls just as far in this update, by 0.16. So momentum alone moves it:
#   the gradients of the first three updates.
# - The advantage of *er* is set to 0 in all four updates. In update 4 it still falls by 0.05. So about a third of the
#   momentum comes from other tokens, through the shared weights. (Of the fall in all four updates, too, it is about a
#   third.)
#
# **Forty batches.** The batch of section 3 is one of 40 that we drew, of 4 responses each. How is it on all of them?


# %%
drawing = torch.Generator().manual_seed(0)
probs = world.probs(start).expand(40, -1)
batches = torch.multinomial(probs, 4, replacement=True, generator=drawing)
free = torch.stack([updates(rows, eps=torch.inf)[1] for rows in batches])  # (40, 61)
clip = torch.stack([updates(rows, eps=0.2)[1] for rows in batches])
changes = {
    "clip, 60 updates": clip[:, -1],
    "no clip, 60 updates": free[:, -1],
    "no clip, three updates": free[:, 3],
}
pd.DataFrame(changes).agg(["mean", "min"]).T.round(2)

# %% [markdown]
# - **How rare is the damage?** Of the 40 batches, 2 end below the start without the clip, at −0.51 and −0.11. With
#   the clip only the first of these two does, at −0.09.
# - **At equal updates** no clip gains more: 0.82 on average, against 0.12. On 38 of 40 batches it ends higher. On the
#   perfect batch of exercise 3 the true score rises by 1.21 without the clip (PPO's estimate by 1.49), and by 0.34
#   with it.
# - **At equal KL** there is no clear difference. We stopped each run without the clip at the KL from the old policy
#   that the run with the clip has after 60 updates. (This KL lies between two updates, so we take the score on the
#   line between them.) The true score then rises by 0.13, against 0.12 with the clip. And no batch ends below its
#   start.
# - **So stopping early** can replace the clip here. PPO cannot see the true score, but it can measure the KL.
#
# **A log-ratio can be negative, the KL divergence cannot.** Say that two alternatives are possible at one position.
# The policy gives them 0.4 and 0.6, the reference 0.2 and 0.8. Then the mean log-ratio is
# 0.4 ln 2 + 0.6 ln 0.75 = 0.277 − 0.173 = 0.10.
#
# **The product of the ratios.** The right weight of a token is the product of the ratios so far. With it and
# with exact advantages, PPO's estimate would be right on average, however far the policy has moved. But a product of
# many ratios is often far from 1, so a few responses with a large product would dominate the mean. So PPO takes
# the single ratio. Lesson 11b explains a method that takes one ratio for the whole response (GSPO).
#
# **PPO without a clip.** The PPO paper has a second form, with a penalty that grows
# smoothly as the policy leaves the old one:
# $L_t = -\rho_t \hat A_t + b \,(\log \pi_{\text{old}} - \log \pi)_t$, with a coefficient $b$. The mean of the
# bracket, over tokens that $\pi_{\text{old}}$ sampled, is the KL divergence
# $\mathrm{KL}(\pi_{\text{old}} \,\|\, \pi)$. Another way is to stop the updates on a batch when this KL is large
# (Spinning Up does).
#
# **Other libraries.** If $\hat A < 0$ and the ratio is very large, so is the loss. verl bounds it by a second clip
# (*dual clip*).
#
# **References.** Schulman et al. 2017, *Proximal policy optimization algorithms* (sections 3 and 4). Schulman et al.
# 2015, *Trust region policy optimization* (why not too far). Ye et al. 2020 (dual clip). Ziegler et al. 2019 (PPO for
# language models).
#
# *How this lesson is checked:* its loop equals `train_ppo` (`tests/loops/test_by_hand.py`), and every
# number about a recorded run is compared with the record (`tests/claims/test_lesson_06.py`).
