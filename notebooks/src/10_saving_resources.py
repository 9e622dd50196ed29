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
# # 10 · Saving resources
#
# After this lesson you can
#
# - count on paper the memory that training a model needs, and find the part that dominates,
# - say why sampling waits for memory, and training for arithmetic,
# - choose among the usual savings, and say what each one costs.
#
# **You need** lesson 04 (REINFORCE, baselines) and lesson 06 (PPO and its four models). Lesson 07
# (the KL penalty) helps. About 60 minutes to read and 90 for the exercises.

# %%
import copy
import time
from dataclasses import replace

import pandas as pd
import torch

from minirlhf import core, experiments, loops, models, show
from minirlhf.classroom import FAST, check

# %% [markdown]
# ## 1. The idea: what is trained is what costs
#
# Proximal policy optimisation (PPO) keeps four models in memory. The actor and the critic are
# trained. The reference and the reward model are only read. For a model with $N$ weights
#
# $$ \text{bytes} \approx 16\, N \;\text{ if it is trained}, \qquad
# \text{bytes} \approx 2\, N \;\text{ if it is only read.} $$
#
# In words: a weight that is trained takes eight times as much memory as one that is only read, if a
# number has 2 bytes (section 2). 7B means 7 billion weights. A gigabyte (GB) is a billion bytes.
#
# | model | trained? | bytes per weight | 7B | 70B |
# |---|---|---|---|---|
# | actor | yes | 16 | 112 GB | 1,120 GB |
# | critic | yes | 16 | 112 GB | 1,120 GB |
# | reference | no | 2 | 14 GB | 140 GB |
# | reward model | no | 2 | 14 GB | 140 GB |
# | **all four** | | | **252 GB** | **2,520 GB** |
#
# An H100, a large graphics processor (GPU), has room for 86 GB (sold as 80 GB). So these
# parts alone fill 3 of them at 7B, and 30 at 70B. The critic takes 44 %. So the savings that matter
# leave out the critic, or train fewer weights.

# %% [markdown]
# ## 2. Memory, counted and measured
#
# What must be in memory while a model is trained?
#
# - The **weights**.
# - The **gradients**: one number per weight.
# - The **optimiser's state**. AdamW keeps two numbers per weight: a running mean of the gradient,
#   and a running mean of its square. They are called *moments*.
# - The **activations**: what the forward pass leaves behind for the backward pass.
#
# Before training, the actor samples. Then it needs the **cache**: the keys and values of all tokens so
# far, so that attention need not compute them again for every new token. A token has one key and one
# value per layer. In a 7B model (32 layers of width 4096, 2 bytes per number) that makes 2 · 32 · 4096 ·
# 2 bytes = 0.52 MB per token of *each* response. (A megabyte, MB, is a million bytes.)
#
# A number has 4 bytes in the format *float32*, and 2 bytes in *bfloat16*. With fewer than three decimal
# digits, bfloat16 would round away an update of a thousandth of a weight.
# So with bfloat16 weights, the optimiser keeps everything in float32: both moments, and a precise
# copy of each weight.
#
# **Predict:** how many bytes does a *trained* weight take in float32, and how many in bfloat16?

# %% tags=["predict"]
for bf16 in (True, False):
    parts = (models.weights_bytes, models.gradient_bytes, models.optimiser_bytes)
    counts = [count(1, bf16=bf16) for count in parts]
    print("bfloat16" if bf16 else "float32", counts, "sum", sum(counts))

# %% [markdown]
# <details><summary>What you should see</summary>
#
# The three numbers are weight, gradient and optimiser.
#
# | format of the weights | weight | gradient | two moments | copy | sum |
# |---|---|---|---|---|---|
# | bfloat16 | 2 | 2 | 4 + 4 | 4 | **16** |
# | float32 | 4 | 4 | 4 + 4 | 0 | **16** |
#
# For a trained weight, bfloat16 saves nothing. It halves the models that are only read, the activations
# and the cache, and makes arithmetic faster.
# </details>
#
# **Is the count right?** We take one step with `tiny-reviews-sft`, the small model of
# lesson 06, in float32. The batch has 16 responses. Prompt and response have 8 + 24 = 32 tokens.

# %%
torch.set_num_threads(1)
sft, tokenizer = models.load_policy("tiny-reviews-sft")
titles = ["a cold day in august\n"] * 16
sampling = models.SamplingConfig(max_new_tokens=24)


def sample(titles):
    ids, mask = models.encode_prompts(tokenizer, titles)
    return models.sample(sft, ids, mask, eos_id=-1, config=sampling)  # none ends early


batch = sample(titles)

# %%
learner, shape = copy.deepcopy(sft), models.Shape.of(sft)
optimizer = loops.make_optimizer(learner, loops.OptimiserConfig())
kept, _ = models.measured(lambda: models.policy_logprobs(learner, batch))
models.policy_logprobs(learner, batch).sum().backward()
optimizer.step()
measured = {"weights": 0, "gradients": 0, "optimiser": 0, "activations": kept}
for weight in learner.parameters():
    state = optimizer.state[weight]  # the moments of this tensor of weights
    measured["weights"] += weight.nbytes
    measured["gradients"] += weight.grad.nbytes
    measured["optimiser"] += state["exp_avg"].nbytes + state["exp_avg_sq"].nbytes

# %%
N = shape.parameters
counted = {
    "weights": models.weights_bytes(N),
    "gradients": models.gradient_bytes(N),
    "optimiser": models.optimiser_bytes(N),
    "activations": models.activation_bytes(shape, batch=16, tokens=32, response=24),
}
table = pd.DataFrame({"counted, MB": counted, "measured, MB": measured}) / 1e6
assert (table["counted, MB"] / table["measured, MB"]).between(0.999, 1).all()
table.round(1)

# %% [markdown]
# The model has 4.2 million weights: 4 bytes each are 17.0 MB.
#
# Here the **activations** are the largest part. A rule of thumb says how they grow. For each token,
# a block of width $d$ keeps the results of its steps (norms, queries, keys, values, the inner layer):
# about 16 vectors of width $d$. The block has about $12\,d^2$ weights. So
#
# $$ \frac{\text{activations}}{\text{weights}} \approx
# \frac{\text{tokens} \cdot 16\, d}{12\, d^2} = 1.3\, \frac{\text{tokens}}{d} . $$
#
# Our model has $d = 256$ and reads 16 · 32 = 512 tokens at once. That makes 2.7 activations
# per weight, or 11 bytes. The moments take 8.
#
# **Predict.** A 7B model has $d = 4096$, in bfloat16. A response has 1,536 tokens (with its prompt). How
# many responses at once must it train on until the activations take more than the optimiser's state?
# The cell shows the GB for *one* response at a time.

# %% tags=["predict"]
step = models.Plan(prompts=128, group_size=8, bf16=True)  # section 5 says what it holds
held = models.four_models(step, models.LLAMA_7B)
(pd.DataFrame(held).T / 1e9).round(1)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# By the rule, one response makes 1.3 · 1,536 / 4096 = 0.5 activations per weight, or 1 byte. The
# optimiser takes 12 bytes. So it takes 12 responses. The exact counts, in the actor's row, are 80.9 GB
# for the optimiser and 8.5 GB for the activations: 10 responses.
#
# *logits* are temporary copies of the next-token scores. The cache of 64 responses takes 51.5 GB.
# </details>
#
# Altogether, four 7B models need 265 GB at the worst moment of a step: 4 H100, not 3.

# %% [markdown]
# ## 3. Where the time goes
#
# A **floating-point operation (FLOP)** is one addition or multiplication. For each token, a weight
# takes part in one of each. So a forward pass costs $2N$ FLOP per token. The backward pass costs
# twice as much, because it computes gradients of the weights *and* of the activations. So training
# costs $6N$ FLOP per token.
#
# But the weights must also be *read* from memory. A machine reads and computes at the same time, and
# waits for the slower of the two:
#
# $$ \text{seconds} = \max\Big( \frac{\text{FLOP}}{\text{FLOP per second}},\;
# \frac{\text{bytes}}{\text{bytes per second}} \Big) . $$
#
# This is called the **roofline** model. An H100 does at most 989,000 billion FLOP and reads at most
# 3,350 GB per second.
#
# **Sampling.** To write one token with a 7B model, the machine reads all weights: 14 GB in bfloat16.
# That takes 14 / 3,350 seconds = 4.2 ms. The arithmetic, 2 · 7 = 14 billion FLOP, takes 0.014 ms. So
# the processor waits for memory nearly all the time. But several responses can be **decoded
# together**: they share one reading of the weights. Their caches are not shared.
#
# **Predict.** Each response has 500 tokens so far. How long does the next token take for one response, for
# 100 that are decoded together, and for 500? What takes longest: reading the weights, reading the
# cache, or arithmetic?

# %% tags=["predict"]
h100 = replace(models.H100, mfu=1, mbu=1)  # it reaches all of its speed
token = models.kv_cache_bytes(models.LLAMA_7B, batch=1, tokens=1, bf16=True)
rows = {}
for together in (1, 100, 500):
    flop, weights, cache = 2 * 7e9 * together, 2 * 7e9, 500 * token * together
    rows[f"{together} responses"] = {
        "weights": h100.seconds(0, weights),  # FLOP, bytes
        "cache": h100.seconds(0, cache),
        "arithmetic": h100.seconds(flop, 0),
        "all": h100.seconds(flop, weights + cache),
    }
(1000 * pd.DataFrame(rows).T).round(1)  # milliseconds

# %% [markdown]
# <details><summary>What you should see</summary>
#
# The three times are 4.3 ms, 12.0 ms and 43.3 ms. For one response, reading the weights takes longest.
# For 100 it is the cache, with 7.8 ms. The arithmetic is always hidden behind the reading. So 100
# responses take three times as long as one, not a hundred times. But each adds 0.08 ms for its own cache.
# </details>
#
# **Training** reads all tokens of a response in one pass. Take 100 responses of 1,000 tokens each.
# While they are sampled, the cache holds 500 tokens per response on average:
#
# | | reading the weights | reading the cache | arithmetic | takes |
# |---|---|---|---|---|
# | sample them one after the other | 100,000 times: 418 s | 7.8 s | 1.4 s | 426 s |
# | sample them together | 1,000 times: 4.2 s | 7.8 s | 1.4 s | 12.0 s |
# | train on them, one by one (a backward pass counts as two) | 300 times: 1.3 s | | 4.2 s | 4.2 s |
#
# **Sampling is limited by memory bandwidth, the bytes read
# per second. Training is limited by FLOP.** One by one, sampling takes a hundred times as long as
# training. Together, it takes three times as long.
#
# **The price is memory.** At the end, the cache of the 100 responses takes 52 GB, beside 14 GB of
# weights. No more than 137 such responses fit on one H100.
#
# ## 4. LoRA: the reference for free
#
# **Low-rank adaptation (LoRA)** freezes a matrix $W$ and adds a product of two thin matrices, an
# **adapter**:
#
# $$ W x \;\to\; W x + s\, U D x . $$
#
# $D$ maps down from the width of the input to a small rank $k$. $U$ maps up to the width of the
# output. $s$ is a fixed factor. Only $U$ and $D$ are trained. $U$ is 0 at first, so the model starts
# unchanged.
#
# For a matrix of 4096 × 4096 and rank 16, the adapter has 16 · (4096 + 4096) = 131,072 weights. That
# is 0.8 % of the matrix. So nearly all of the model takes 2 bytes per weight instead of 16. And
# **with its adapters switched off, the actor *is* the reference.**

# %%
adapted = models.with_lora(copy.deepcopy(sft), rank=16)
reference = models.reference_of(adapted)  # the same model, its adapters off
assert reference.model is adapted
with torch.no_grad():
    trained = [p for p in adapted.parameters() if p.requires_grad]
    for weight in trained:
        weight.add_(0.05)  # as if it had been trained
    before = models.policy_logprobs(sft, batch)
    off = models.policy_logprobs(reference, batch)
    on = models.policy_logprobs(adapted, batch)
assert torch.allclose(off, before, atol=1e-5)
assert (on - off).abs().max() > 0.1
print(f"{sum(p.numel() for p in trained):,} of {N:,} weights are trained")

# %% [markdown]
# ## 5. The savings, one at a time
#
# Here is the bill for one step, in bfloat16. It samples 1,024 responses of 1,024
# tokens, for prompts of 512 tokens, and decodes 64 together. Training reads one response at a time.
# The columns:
#
# - The memory, **7B** and **70B**: GB at the worst moment of the step.
# - The time, **sampling**, **scoring** and **training**: seconds at 70B on 64 H100. *Scoring* is
#   the forward passes of reward model, reference and critic. We assume that the GPUs reach 40 % of
#   their speed in arithmetic (`mfu` in the code) and 60 % in reading (`mbu`).

# %%
savings = {
    "PPO, four models": step,
    "critic on the actor's trunk": replace(step, critic="shared"),
    "LoRA of rank 16": replace(step, lora=16),
    "no critic": replace(step, critic="none"),
    "a rule, no reward model": replace(step, reward_model=False),
    "no reference": replace(step, reference=False),
    "LoRA and no critic": replace(step, lora=16, critic="none"),
}
rows, sizes = {}, (models.LLAMA_7B, models.LLAMA_70B)
for name, plan in savings.items():
    small, large = (models.peak_bytes(models.four_models(plan, x)) / 1e9 for x in sizes)
    parts = models.step_seconds(models.H100.times(64), plan, models.LLAMA_70B)
    rows[name] = {"7B": small, "70B": large, **parts}
pd.DataFrame(rows).T.round().astype(int)

# %% [markdown]
# Row by row:
#
# - **PPO, four models.** At 70B it needs 30 GPUs for its memory alone. Half of the time is training.
# - **Critic on the actor's trunk.** The *trunk* is all of the model except its last layer. The critic
#   becomes one extra output on top of it. That saves half of the training, and 43 % of the memory at
#   70B (35 % at 7B, where the cache stays). The price: two losses pull at the same weights.
# - **LoRA.** Memory falls to 18 % at 70B, and to 35 % at 7B. Training takes a third less (no gradients
#   of frozen weights), the whole step 82 instead of 100 seconds. The price: the change of each
#   matrix has at most rank 16.
# - **No critic.** It saves what the shared trunk saves, and a third of the scoring. The price: another
#   baseline is needed (section 7).
# - **A rule instead of the reward model.** It saves only 5 % of the memory: a model that is only read is
#   cheap. It is possible where a program can check the answer.
# - **No reference.** It saves the same. The price: there is no KL penalty.
# - **LoRA and no critic.** Savings combine: 4 GPUs instead of 30 at 70B.
#
# The figure shows the parts of four plans at 7B, all models together.

# %%
shown = ["PPO, four models", "no critic", "LoRA of rank 16", "LoRA and no critic"]
parts = ["weights", "gradients", "optimiser", "activations", "cache"]
held = {}
for name in shown:
    by_model = pd.DataFrame(models.four_models(savings[name], models.LLAMA_7B))
    held[name] = (by_model.sum(axis=1) / 1e9)[parts].to_dict()
show.bars(held, label="GB")

# %% [markdown]
# With LoRA the cache is the largest part. Decoding 32 together instead of 64 would halve it, and
# sampling would take longer (section 3).
#
# ## 6. Do the savings cost reward?
#
# We recorded PPO on tiny-reviews as in lesson 06: 24 steps of 64 responses, three seeds per
# variant. *As it is* has a separate critic, which starts as a copy of the reward model. The last row
# starts it from the supervised fine-tuned (SFT) model. Neither start saves memory, but a better one may
# save steps. *MB* is the counted memory, with minibatches of 32 responses. The rest
# is measured on 76 test films. *gold* is the rating that people would give, predicted by models that
# training never saw. In brackets are the lowest and the highest seed.

# %%
small = models.Plan(
    prompts=64, prompt_tokens=12, response_tokens=32, epochs=2, micro_batch=32
)
changes = {
    "as it is": {},
    "shared trunk": {"critic": "shared"},
    "adapters of rank 16": {"lora": 16},
    "critic from the SFT model": {},
}
memory = {}
for name, change in changes.items():
    counts = models.four_models(replace(small, **change), models.TINY_REVIEWS)
    memory[name] = round(models.peak_bytes(counts) / 1e6)

# %%
runs = experiments.results("ablations", "resources")
runs = runs[runs.variant.isin(changes)]
columns = {"gold": "gold", "kl": "KL, nats", "length": "tokens"}
table = experiments.shown(runs, columns)
table.insert(0, "MB", pd.Series(memory))
table

# %% [markdown]
# At this size the activations dominate, so adapters save only a third of the memory.
#
# The figure shows the difference in gold from *as it is*. Dots are seeds. The bar is a 95 % interval
# over films and seeds. If it includes 0, the runs do not show which is better. Where the dots scatter, it
# is far wider than they are: three seeds say little about a fourth.

# %%
show.differences(
    runs,
    value="gold",
    repeats="as it is",
    intervals=experiments.difference_over_prompts_and_seeds(runs, "gold", "as it is"),
    interval_of="95 % interval over films and seeds",
    label="gold",
)

# %% [markdown]
# Which savings can this record judge?
#
# - **Shared trunk: roughly.** The interval includes 0. But on every seed its KL is higher (1.3 to 2.3
#   times) and its reviews are shorter. So it moves further for no more gold.
# - **Adapters: not yet.** They have less gold on every seed, at less than half of the KL. But they had the
#   learning rate of full training, and LoRA usually gets a larger one. Their score (what the reward
#   model says) still rises at the last step.
# - **Critic from the SFT model: yes, for gold.** The interval includes 0.
# - **No critic: it is not in the table.** Lesson 11b compares PPO with methods without a critic. On a task
#   with exact answers, PPO and GRPO (section 7) cannot be told apart.
#
# ## 7. No critic at all: one family of baselines
#
# Without a critic, something else must be subtracted from a score (lesson 04):
#
# | method | the baseline of a response | it costs |
# |---|---|---|
# | REINFORCE | the mean score of earlier batches | nothing |
# | REINFORCE++ | the mean of the batch; the difference is divided by the batch's standard deviation | nothing |
# | ReMax | the score of the **greedy** response, which takes the most likely token everywhere | one more response per prompt |
# | RLOO | the mean score of the *other* responses to the prompt | several responses per prompt |
# | GRPO (lesson 11) | the mean of all responses to the prompt; the difference is divided by their standard deviation | several responses per prompt |
#
# RLOO is REINFORCE leave-one-out. ReMax is REINFORCE with the maximum: the greedy response. GRPO is
# group relative policy optimisation.
#
# **By hand.** A batch has two prompts. The responses to the hard prompt have the scores 4, 2, 2 and
# 0, those to the easy one 8, 6, 6 and 4. All have the same length. Earlier batches had the mean 4, and
# the greedy response to the hard prompt has the score 3. The advantages of the *hard* prompt:
#
# | method | computed as | 4 | 2 | 2 | 0 |
# |---|---|---|---|---|---|
# | REINFORCE | score − 4 | 0 | −2 | −2 | −4 |
# | REINFORCE++ | batch mean 4, standard deviation $\sqrt{48/8} = 2.45$ | 0 | −0.82 | −0.82 | −1.63 |
# | ReMax | score − 3 | 1 | −1 | −1 | −3 |
# | RLOO | for the first: 4 − (2 + 2 + 0) / 3 | 2.67 | 0 | 0 | −2.67 |
# | GRPO | group mean 2, standard deviation $\sqrt{8/3} = 1.63$ | 1.22 | 0 | 0 | −1.22 |
#
# REINFORCE++ divides the squares by the number of scores, $n$, and GRPO by $n - 1$. Both conventions are
# common.

# %%
groups = torch.tensor([[4.0, 2, 2, 0], [8, 6, 6, 4]])
hard, every = groups[0], torch.ones(8, 1).bool()
for advantages, by_hand in (
    (core.remax(hard, torch.full((4,), 3.0)), [1, -1, -1, -3]),
    (core.leave_one_out(groups)[0], [2.67, 0, 0, -2.67]),
    (core.group_relative(groups)[0], [1.22, 0, 0, -1.22]),
    (core.masked_whiten(groups.view(8, 1), every)[:4, 0], [0, -0.82, -0.82, -1.63]),
):
    assert torch.allclose(advantages, torch.tensor(by_hand).float(), atol=0.01)

# %% [markdown]
# REINFORCE and REINFORCE++ push no response to the hard prompt up. On average these pushes
# cancel (lesson 04). But they are noise.
#
# **How much noise?** The gradient of one response is noisy. Let *length* be the length of its mean, the
# true gradient. Let *noise* be the root of the mean squared distance from this mean. Averaging the
# gradients of $n$ responses divides $\text{noise}^2$ by $n$. So noise and length are equal at
#
# $$ n^* = \text{noise}^2 / \text{length}^2 . $$
#
# In words: the noise of $n^*$ averaged gradients is as long as the gradient itself. Smaller is better.
# Say the gradient is 3 or −1, with equal chance. The mean is 1, and both are 2 away from it. So $n^* =
# 4 / 1 = 4$. A constant factor in the advantages does not change $n^*$.
#
# In small worlds (lesson 05) we can list all responses and compute $n^*$ exactly. Take two prompts
# whose mean scores are a **gap** apart, each with 15 possible responses.


# %%
def two_prompts(gap):
    """An easy and a hard prompt: two worlds whose mean scores are `gap` apart."""
    prompts = []
    for seed, mean in ((0, gap / 2), (1, -gap / 2)):
        world = core.World.random(3, 3, seed=seed)
        shift = mean - world.expectation(world.ref_logits, world.rewards)
        prompts.append(replace(world, rewards=world.rewards + shift))
    return prompts


def needed(prompts, advantages, size=1):
    """n*, if responses come in groups of this size."""
    noise = length = 0.0
    for world in prompts:
        grads = torch.autograd.functional.jacobian(world.logprobs, world.ref_logits)
        groups, chance = world.groups(world.ref_logits, size)  # all that can be sampled
        pushes = advantages(world, groups)[..., None, None]  # one per token
        gradients = (pushes * grads[groups]).sum(2).mean(1)  # one per group
        mean = torch.tensordot(chance, gradients, dims=1)
        noise += (chance * (gradients - mean).square().sum((1, 2))).sum()
        length += mean.square().sum()
    return (size * noise / length).item()


# %%
def score(world, groups):
    return world.rewards[groups][..., None]  # the same push for every token


def greedy(world, groups):
    likely = world.probs(world.ref_logits * 1000).argmax()
    return score(world, groups) - world.rewards[likely]


def others(world, groups):
    return core.leave_one_out(world.rewards[groups])[..., None]


def true_mean(world, groups):
    return score(world, groups) - world.expectation(world.ref_logits, world.rewards)


def perfect(world, groups):
    values, q = world.values(world.ref_logits)
    advantages = world.by_token(q - values[:, None])  # of every word
    return advantages.gather(2, world.response_ids[..., None])[..., 0][groups]


# %% [markdown]
# `score` is REINFORCE: its running mean is 0 here. Two others are ideals that nobody has. The *true mean*
# is the limit of RLOO with very many responses. A *perfect critic* knows $Q(s_t, y_t) - V(s_t)$ for
# every token. We sample four responses to each prompt. ReMax pays for a fifth, so its $n^*$ counts
# 1.25 times.
#
# **Predict.** The gap is 2. Put the five in order. Which of them would change if the gap were 0?

# %% tags=["predict"]
by_gap = {}
for gap in (0, 0.5, 1, 1.5, 2):
    some = two_prompts(gap)
    by_gap[gap] = {
        "running mean (REINFORCE)": needed(some, score),
        "greedy (ReMax)": 5 / 4 * needed(some, greedy),
        "3 others (RLOO)": needed(some, others, 4),
        "the prompt's true mean": needed(some, true_mean),
        "a perfect critic": needed(some, perfect),
    }
by_gap = pd.DataFrame(by_gap).T
print(by_gap.loc[2].round(1).to_string())
labels = dict(xlabel="gap between the mean scores", ylabel="responses needed")
show.lines(by_gap.to_dict("list"), list(by_gap.index), ylim=(0, None), **labels)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# At a gap of 2: perfect critic 5.9, true mean 13.2, RLOO 17.9, ReMax 23.9, running mean 35.2. Only
# the running mean changes with the gap. The other four know which prompt a response belongs to.
#
# - **If prompts differ little, a group buys nothing.** Without a gap the running mean needs 13.2
#   responses and RLOO 17.9, because three scores are a noisy baseline. RLOO is ahead from a gap of
#   about 0.85 on.
# - **ReMax** is behind RLOO: in these random worlds, the greedy response says little about the mean.
#   With one sampled response per prompt it pays two for one, 38.2, and is last.
# - **A perfect critic** needs less than half of what the true mean needs. It knows *which token*
#   was good. A learned critic lies above this line (lesson 11b).
# </details>

# %% [markdown]
# ## What to remember
#
# - In bfloat16 a trained weight takes 16 bytes, a weight that is only read takes 2. Count the trained
#   models first.
# - Activations grow with the tokens at once. In wide models the optimiser's state dominates.
# - Decoding waits for memory, training for arithmetic. Responses that are decoded together share the
#   reading of the weights, but each needs its own cache.
# - At 70B, sharing or dropping the critic saves 43 % of the memory. LoRA saves more and makes the
#   reference free, but the step takes only 18 % less time.
# - Without a critic, the baseline comes from other scores. One per prompt pays off if prompts differ a
#   lot.
#
# ## Exercises
#
# Solutions are in `solutions/10_saving_resources.ipynb`.

# %% [markdown] tags=["exercise"]
# **1. The memory of four models** *(easy, 10 minutes)*. `weights` has the number of weights of each
# model, (4,). `trained` says which models are trained, (4,) booleans. `bf16` is true if the weights are
# bfloat16. Return the bytes of weights, gradients and AdamW's state of all four models, one number.
#
# *Hint:* do it on paper first: two models of 7 weights, of which one is trained. Section 2 has the
# bytes. A tensor of booleans times a number works: true counts as 1.


# %% tags=["exercise"]
def model_bytes(weights, trained, bf16): ...  # your code


check.model_bytes(model_bytes)


# %% tags=["solution"]
def model_bytes(weights, trained, bf16):
    read = 2 if bf16 else 4
    return (weights * (read + trained * (16 - read))).sum()


check.model_bytes(model_bytes)

# %% [markdown] tags=["exercise"]
# **2. Which part dominates?** *(medium, 15 minutes)*. Four situations, in bfloat16. Each response has
# 512 + 1,024 tokens. Which part is the largest: weights, gradients, optimiser, activations or cache?
# Estimate each part in GB on paper, with the rules of section 2. Then run the cell.
#
# | | model | layers | width | what happens |
# |---|---|---|---|---|
# | A | 135 million | 30 | 576 | all weights are trained, on 4 responses at a time |
# | B | 70B | 80 | 8,192 | all weights are trained, on 16 responses at a time |
# | C | 7B | 32 | 4,096 | adapters of rank 16 are trained (40 million weights), on one response at a time |
# | D | 70B | 80 | 8,192 | nothing is trained; 64 responses are decoded together |
#
# *Hint:* the 70B model has 64 heads for queries, but only 8 for keys and values. So a key is 8 times
# narrower than the model.

# %% tags=["exercise", "solution"]
plan = models.Plan(bf16=True, decode_batch=1)
situations = {
    "A": (replace(plan, micro_batch=4), models.SMOLLM2_135M),
    "B": (replace(plan, micro_batch=16), models.LLAMA_70B),
    "C": (replace(plan, lora=16), models.LLAMA_7B),
    "D": (replace(plan, decode_batch=64), models.LLAMA_70B),
}
actor = {}
for name, (plan, model) in situations.items():
    actor[name] = models.four_models(plan, model)["actor"]
    if name == "D":
        actor[name] |= {"gradients": 0, "optimiser": 0, "activations": 0, "logits": 0}
(pd.DataFrame(actor).T / 1e9).round(1)

# %% [markdown] tags=["solution"]
# - **A: the activations.** 4.9 GB, against 1.6 GB for the optimiser. The model is narrow: by the rule,
#   1.3 · 4 · 1,536 / 576 makes 14 activations per weight, or 28 bytes.
# - **B: the optimiser.** 847 GB, against 726 GB for the activations. The model is so wide that even 16
#   responses at a time take fewer bytes (8 by the rule, 10 by the count) than the optimiser's 12 per weight.
# - **C: the weights.** 13.6 GB. Only 40 million weights have gradients (0.2 GB) and an optimiser's state
#   (0.3 GB). These adapters are in float32, so it is 4 and 8 bytes each, not 2 and 12. The activations
#   are the second part, 8.5 GB. Adapters do not make them smaller.
# - **D: the weights.** 141 GB. A token takes 2 · 80 · 1,024 numbers of 2 bytes, 0.33 MB. With 64 · 1,535
#   tokens the cache has 32 GB. (The last token is never read, so it has no keys.) With keys as wide as
#   the model it would be 257 GB, and the cache would be the largest part.

# %% [markdown] tags=["exercise"]
# **3. A layer with a switch** *(medium, 15 minutes)*. Write a linear layer with an adapter. `x` has the
# shape (B, in), the frozen matrix `weight` (out, in), `down` (k, in) and `up` (out, k). The adapter's
# factor is `alpha` divided by the rank k. If `on` is false, return what the reference computes.
#
# *Hint:* multiply `x` with the thin matrices one after the other. Forming the product of `up` and
# `down` first would cost as much as the full matrix.


# %% tags=["exercise"]
def adapted_layer(x, weight, down, up, alpha, on): ...  # your code


check.adapted_layer(adapted_layer)


# %% tags=["solution"]
def adapted_layer(x, weight, down, up, alpha, on):
    out = x @ weight.T
    if on:
        out = out + alpha / len(down) * x @ down.T @ up.T
    return out


check.adapted_layer(adapted_layer)

# %% [markdown] tags=["exercise"]
# **4. Find the bug** *(medium, 15 minutes)*. A colleague trains with LoRA. For the KL penalty she uses the
# free reference of section 4. To test it, she trains the policy to make 16 responses more likely, and
# computes their log-ratio $\log \pi - \log \pi_{\text{ref}}$ in two ways: with the adapters off, and with a
# copy of the model from before training. The two lines should be one. What is wrong? Which line
# is right, and what does the mistake do to the KL penalty? Mend it and draw the lines again.
#
# *Hint:* which weights does the optimiser change?


# %% tags=["exercise"]
def prepared(policy):
    model = models.with_lora(policy, rank=16)
    for name, weight in model.named_parameters():
        if name.endswith("bias"):  # few numbers, and they help
            weight.requires_grad_(True)
    return model


# %% [markdown] tags=["solution"]
# The biases are trained, too. They have no switch: with the adapters off, the model still has the
# trained biases. So the reference moves along with the policy. The copy's line is right. The other one
# is lower, because a part of the change is in both models. The KL penalty is computed from too small
# a log-ratio, and the policy drifts further than the penalty says. The free reference needs that
# *every* trained number can be switched off. Leave the biases frozen (or keep a copy of them).


# %% tags=["solution"]
def prepared(policy):
    return models.with_lora(policy, rank=16)


# %% tags=["exercise", "solution"]
def two_ways(prepared, steps=2 if FAST else 5):
    """The log-ratio of 16 responses, in nats per response, while they are trained."""
    policy, tokenizer = models.load_policy("tiny-reviews-sft")
    ids, mask = models.encode_prompts(tokenizer, ["a cold day in august\n"] * 16)
    limit = models.SamplingConfig(max_new_tokens=24)
    batch = models.sample(policy, ids, mask, eos_id=-1, config=limit)
    kept, model = copy.deepcopy(policy), prepared(policy)
    optimizer = loops.make_optimizer(model, loops.OptimiserConfig(lr=1e-3))
    lines = {"adapters off": [], "with a copy": []}
    for _ in range(steps):
        with torch.no_grad():
            new, old = (models.policy_logprobs(m, batch) for m in (model, kept))
            with model.disable_adapter():
                off = models.policy_logprobs(model, batch)
        lines["adapters off"].append((new - off).sum(1).mean())
        lines["with a copy"].append((new - old).sum(1).mean())
        (-models.policy_logprobs(model, batch).mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return lines


show.lines(two_ways(prepared), xlabel="step", ylabel="log-ratio, nats")

# %% [markdown] tags=["exercise"]
# **5. Leave one out** *(medium, 15 minutes)*. The responses of a batch come in any order, and some
# prompts have more responses than others. `scores` has the shape (B,). `prompt` has the number of
# each response's prompt, (B,). Return RLOO's advantages, (B,). A response that is alone on its
# prompt gets the advantage 0.
#
# *Hint:* `prompt[:, None] == prompt` is a table of shape (B, B). What does its row i say?


# %% tags=["exercise"]
def rloo_advantages(scores, prompt): ...  # your code


check.rloo_advantages(rloo_advantages)


# %% tags=["solution"]
def rloo_advantages(scores, prompt):
    same = (
        prompt[:, None] == prompt
    ).float()  # row i: the responses to the prompt of i
    others = same.sum(1) - 1
    baseline = (same @ scores - scores) / others.clamp(min=1)
    return torch.where(others > 0, scores - baseline, 0.0)


check.rloo_advantages(rloo_advantages)

# %% [markdown] tags=["exercise"]
# **6. Design under a budget** *(hard, 25 minutes)*. You have one GPU of 24 GB, and want to train a model
# of 1.1 billion parameters in bfloat16 with RL. The reward model has the same size. Find at least two
# plans that fit. For each, say what you gave up, and what you expect it to cost. What would you give up
# first, and what last?
#
# `models.Plan` takes `critic` ("separate", "shared" or "none"), `lora` (the rank), `reference` and
# `reward_model` (true or false), `micro_batch` (responses per forward and backward pass),
# `decode_batch`, and `recompute`. With `recompute=True`, each block keeps only its input, and is
# computed once more in the backward pass.
#
# *Hint:* first count the trained models on paper. The cell takes your plans.

# %% tags=["exercise"]
model = models.Shape(layers=22, width=2048, heads=32, kv_heads=4, ffn=5632, vocab=32000)
mine = {
    "everything": models.Plan(bf16=True),
    "no critic": models.Plan(bf16=True, critic="none"),
}
peaks = {}
for name, plan in mine.items():
    peaks[name] = models.peak_bytes(models.four_models(plan, model)) / 1e9
pd.Series(peaks).round(1)

# %% tags=["solution"]
model = models.Shape(layers=22, width=2048, heads=32, kv_heads=4, ffn=5632, vocab=32000)
mine = {
    "everything": {},
    "no critic": {"critic": "none"},
    "no critic, recompute": {"critic": "none", "recompute": True},
    "no critic, no reference": {"critic": "none", "reference": False},
    "LoRA": {"lora": 16},
    "LoRA, 4 responses at a time": {"lora": 16, "micro_batch": 4},
}
peaks = {}
for name, change in mine.items():
    plan = models.Plan(bf16=True, **change)
    peaks[name] = models.peak_bytes(models.four_models(plan, model)) / 1e9
pd.Series(peaks).round(1)

# %% [markdown] tags=["solution"]
# Two trained models of 1.1 billion weights take 16 · 2.2 = 35 GB before a single activation. So
# full PPO is out: it needs 41.5 GB. Without a critic the actor takes 18 GB, reference and reward
# model 2.2 GB each. With activations and logits it is 24.9 GB: just too much. Three plans fit:
#
# - **No critic, and recompute**: 22.5 GB. It costs time: one more forward pass in training, a
#   third more arithmetic. The reward should not suffer.
# - **No critic, and no reference**: 22.7 GB. It costs the KL penalty. With a reward model this is risky.
# - **LoRA, with all four models**: 9.8 GB. There is even room for four responses at a time (19.1
#   GB). It costs full-rank updates, and you must find a new learning rate.
#
# One order: first recompute, because it costs only time. Then full-rank training or the critic,
# whichever matters less for your task. The KL penalty last, as long as the reward can be fooled.

# %% [markdown] tags=["exercise"]
# **7. On your machine** *(easy, 5 minutes)*. The cell samples 1 and then 64 responses with
# `tiny-reviews`, and trains on them. Predict: how many times as long do 64 responses take as one, for
# sampling? And for training? Section 3 gives one reason. Which other one could a very small model have?


# %% tags=["exercise"]
def timed(work):
    work()  # the first call is slower
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


for n in (1, 64):
    some = sample(titles[:1] * n)
    sampled = timed(lambda: sample(titles[:1] * n))
    trained = timed(lambda: models.policy_logprobs(learner, some).sum().backward())
    print(f"{n} responses: sampling {sampled:.2f} s, training {trained:.2f} s")

# %% [markdown] tags=["solution"]
# The seconds depend on your machine. For sampling, the factor is far below 64. For training it is more
# than twice as large. The reason differs from the H100's: our model is so small that most of a
# decoding step goes into *starting* operations. All 64 responses share this.

# %% [markdown]
# ## Questions
#
# <details><summary>1. Why can a larger decode batch be free, and a larger training batch not?</summary>
#
# While decoding, the machine waits for weights to arrive, and one reading serves all responses. In
# training, thousands of tokens already share one reading. More tokens are simply more arithmetic.
# </details>
#
# <details><summary>2. LoRA's reference is free in memory. Is it also free in time?</summary>
#
# No. It is a forward pass with the adapters off. It takes as long as that of any other reference.
# </details>
#
# <details><summary>3. The shared trunk saves so much. Why does not everybody share?</summary>
#
# Two losses pull at one trunk. The value loss is a squared error in reward units, and often larger
# than the policy's loss. It moves features that the policy writes with. Section 6 shows what
# happened in our runs.
# </details>
#
# <details><summary>4. Why is ReMax's baseline unbiased, although it scores the same prompt?</summary>
#
# The greedy response is not sampled. It depends on the prompt and on the weights, and both are fixed
# before the sample is drawn. A baseline may depend on everything but the sample that it is subtracted
# from (lesson 04).
# </details>
#
# <details><summary>5. Why do large models share keys and values among their heads?</summary>
#
# To make the cache smaller. Our 70B model has 64 heads for queries, and 8 for keys and values. In
# bfloat16 a token of its cache takes 2 · 80 · 8 · 128 · 2 bytes = 327,680 bytes (80 layers, heads of
# 128). An H100 that holds nothing else has room for 262,000 tokens. With 64 heads of keys it would be
# 33,000. A larger cache allows more responses to be decoded together.
# </details>
#
# ## Going further
#
# **How far to trust the cost model.** Weights, gradients, moments, cache and activations agree to
# the byte with real GPT-2 and Llama models in float32 (`tests/models/test_cost.py`). With adapters
# on bfloat16 weights, activations are up to about 1.6 times the count, because adapters keep
# float32 copies of what they read. Seconds are less certain. The roofline leaves out communication
# between GPUs, the optimiser's step, and waiting for the longest response.
# `models.measure_machine()` measures your own CPU, and `models.decode_seconds` and
# `models.train_seconds` predict it. For matrices as small as ours this is only a lower bound.
#
# **When does sampling take as long as training?** Not always. With section 3's 7B model, the cache of
# a response of 500 tokens takes 0.08 ms per token, and training on a token 0.04 ms. So sampling is slower,
# however many are decoded together. For our 70B model, whose heads share keys, it is as fast as
# training at about 49 responses decoded together, with the assumed 40 % and 60 % (without a critic,
# lesson 11b). Between 8 and 512 the ratio of the two changes more than tenfold. So "sampling
# costs as much as training" is true somewhere, and says little.
#
# **More savings.** *Micro-batches* split a batch and add up the gradients. They cost little time,
# and the result is the same. *Recomputing* (gradient checkpointing) costs a third more arithmetic.
# *Sharding* (ZeRO, FSDP) spreads the 16 bytes over many GPUs. It saves nothing in total, but each
# GPU holds a part. *Offloading* moves what is not needed to the CPU's memory, and costs the time to
# bring it back.
#
# **More about section 6.** Why does the shared trunk move further? At the first step the gradient of both
# losses together is 5 times as long as the policy's alone. It is shortened to length 1, and most of
# what is left belongs to the value loss. That is a likely reason, not a tested one. What does the better
# start of the critic buy? After five steps, the critic that began as the reward model explains 54 % of
# the variance of the returns, and the other one nothing (−7 %). After ten steps it is 55 % and 47 %.
#
# Take the critic from the SFT model. On each single seed the interval
# over films includes 0, and all three means are lower. Of the score that it is trained on, the
# shared trunk gets 1.06 and *as it is* 1.17. Adapters did not save time: a run took 198 to 225
# seconds. With the critic from the SFT model, which is full training, it took 170 to 201 seconds.
#
# **The whole family.** `loops.train_group` runs any of the 15 methods of `loops.FAMILY`
# (`docs/algorithms.md`). The same name can mean another method elsewhere. TRL's RLOO takes the KL penalty off
# the score before the baseline. OpenRLHF's takes it off each token after the baseline.
#
# **More about section 7.** REINFORCE++, with a large batch, is as noisy as the running mean (35.3 at a gap
# of 2). RLOO with groups of two needs 27.3 responses, more than with groups of
# four. In ten other pairs of worlds, the order of RLOO, the true mean and the perfect critic is the
# same. The group's mean *with* the response itself has the same $n^*$ as RLOO, because it differs
# by a factor. Dividing by the group's standard deviation gives a gradient of another objective
# (lesson 11), so its $n^*$ does not belong in the comparison. In lesson 11b most of a score's
# variance lies within a prompt. There the gap is small, and REINFORCE is ahead of GRPO.
#
# **What the libraries do.** DeepSpeed-Chat has all four models. TRL's PPO has a separate value model. With
# adapters it uses the actor without them as the reference, as in section 4. TRL's GRPO and
# RLOO have no critic. A shared trunk is rare today.
#
# **References.** Rajbhandari et al. 2020, *ZeRO* (section 3: the 16 bytes). Williams, Waterman and
# Patterson 2009, *Roofline*. Pope et al. 2022, *Efficiently scaling Transformer inference*. Hu et
# al. 2021, *LoRA*. Santacroce et al. 2023, *Efficient RLHF*. Ahmadian et al. 2024, *Back to basics*
# (RLOO, section 3). Li et al. 2023 (ReMax). Hu 2025 (REINFORCE++).
#
# *How this lesson is checked:* the cost model is compared with real tensors
# (`tests/models/test_cost.py`), the expected gradient of each baseline with the exact one
# (`tests/loops/test_family.py`), and every number of the prose with a computation or a record
# (`tests/claims/test_lesson_10.py`).
