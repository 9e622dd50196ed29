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
# - say why sampling is limited by reading from memory, and training by arithmetic,
# - choose among the usual savings, and say what each one costs.
#
# **You need** lessons 04 (REINFORCE, baselines), 06 (PPO and its four models) and 06b (comparing at equal KL). Lesson
# 07 (the KL penalty) helps. About 60 minutes to read and 105 for the exercises.

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
# trained. The reference and the reward model are only read. For a model with $N$ weights (elsewhere $N$
# counts prompts)
#
# $$ \text{bytes} \approx 16\, N \;\text{ if it is trained}, \qquad
# \text{bytes} \approx 2\, N \;\text{ if it is only read.} $$
#
# In words, with 2 bytes per number (section 2): a weight that is trained takes eight times as much memory as one that
# is only read. 7B means 7 billion weights (6.7 in sections 2 and 5). A gigabyte (GB) is a billion bytes.
#
# | model | trained? | bytes per weight | 7B | 70B |
# |---|---|---|---|---|
# | actor | yes | 16 | 112 GB | 1,120 GB |
# | critic | yes | 16 | 112 GB | 1,120 GB |
# | reference | no | 2 | 14 GB | 140 GB |
# | reward model | no | 2 | 14 GB | 140 GB |
# | **all four** | | | **252 GB** | **2,520 GB** |
#
# An H100, a large graphics processor (GPU), has room for 86 GB. (It is sold as 80 GB of $2^{30}$
# bytes.) So these parts alone fill 3 of them at 7B, and 30 at 70B. The critic takes 44 %.

# %% [markdown]
# ## 2. Memory, counted and measured
#
# Training a model needs four parts in memory:
#
# - The **weights**.
# - The **gradients**: one number per weight.
# - The **optimiser's state**. AdamW keeps two numbers per weight: a running mean of the gradient,
#   and a running mean of its square. They are called *moments*.
# - The **activations**: what the forward pass leaves behind for the backward pass.
#
# Before training, the actor samples. That needs a fifth part, the **cache**: the keys and values of
# all tokens so far. With it, attention need not compute them again for every new token. A 7B model (32
# layers of width 4096) keeps one key and one value per layer. With 2 bytes per number, that makes
# 2 · 32 · 4096 · 2 bytes = 0.52 MB per token of *each* response.
#
# Not all parts are in memory at the same time:
#
# | phase of a step | of all models | of one model |
# |---|---|---|
# | sampling | weights, optimiser's state | the actor's cache |
# | training | weights, optimiser's state, gradients | the activations of the model that is trained now |
#
# **The larger of the two sums is the memory that a step needs.** In between, the other models *score* the
# responses. Done in pieces, this needs less.
#
# A number has 4 bytes in the format *float32*, and 2 bytes in *bfloat16*. bfloat16 keeps fewer than
# three decimal digits. Add an update of 0.001 to a weight of 1: the sum is rounded to 1, and the
# update is lost. So with bfloat16 weights, the optimiser keeps everything in float32: both moments, and
# a precise copy of each weight. In bytes, a trained weight takes:
#
# | format of the weights | weight | gradient | two moments | copy | sum |
# |---|---|---|---|---|---|
# | bfloat16 | 2 | 2 | 4 + 4 | 4 | **16** |
# | float32 | 4 | 4 | 4 + 4 | 0 | **16** |
#
# So bfloat16 saves nothing for a trained weight. It halves the models that are only read, the
# activations and the cache, and makes arithmetic faster.
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
# `measured` counts what a forward pass keeps, and then frees it.
kept, _ = models.measured(lambda: models.policy_logprobs(learner, batch))
models.policy_logprobs(learner, batch).sum().backward()  # a second forward pass
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
# Here the **activations** are the largest part. How do they grow? A block of width $d$ has attention and
# an *inner layer*: matrices with a nonlinearity between them. A *norm* rescales the input of each. The
# large models of this lesson have Llama's blocks, with another norm and inner layer. For each
# token a block keeps:
#
# | part | weights, our model | numbers kept | weights, Llama (7B) | numbers kept |
# |---|---|---|---|---|
# | two norms | few | $4d$: input and output | few | $6d$: the rescaled input, too |
# | attention: queries, keys, values and output | $4d^2$ | $4d$ | $4d^2$ | $4d$ |
# | inner layer | $8d^2$: two matrices, $4d$ wide | $8d$: before and after the nonlinearity | $8.1d^2$: three matrices, $2.7d$ wide | $10.8d$: four times the width |
# | **sum** | $12d^2$ | $16d$ | $12.1d^2$ | $20.8d$ |
#
# $$ \frac{\text{activations}}{\text{weights}} \approx
# \frac{\text{tokens} \cdot 16\, d}{12\, d^2} = 1.3\, \frac{\text{tokens}}{d} . $$
#
# In words: more tokens at once mean more activations per weight, and a wider model means fewer. For
# Llama the factor is 1.7 instead of 1.3.
#
# Our model has $d = 256$ and reads 16 · 32 = 512 tokens at once. That makes 2.7 activations per weight
# of a block, or 11 bytes. The moments take 8. (The 40.8 / 17.0 = 2.4 of the whole model also count
# embedding and logits.)
#
# **Predict.** A 7B model has $d = 4096$, in bfloat16. A response has 1,536 tokens (with its prompt).
# How many responses at once must it train on until the activations take more than the optimiser's
# state (moments and copy)?
#
# In a step, 64 responses are decoded together (`decode_batch`), and the models are trained
# on *one* at a time (`micro_batch`). Which is the **worst phase**, the one that needs most memory?
#
# The cell shows GB. *logits* are the actor's next-token scores: two copies in float32, needed
# for a moment when it is trained. They count as activations.

# %% tags=["predict"]
# 8 responses to each prompt; PPO makes no use of their being a group
step = models.Plan(prompts=128, group_size=8, bf16=True)
assert (step.decode_batch, step.micro_batch) == (64, 1)  # unless we say otherwise
held = pd.DataFrame(models.four_models(step, models.LLAMA_7B)).T / 1e9
held.loc["sum"] = held.sum()
held.round(1)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# By the formula, one response makes 1.7 · 1,536 / 4096 = 0.64 activations per weight, or 1.3 bytes. The
# optimiser takes 12 bytes, which is 9.4 times as much. So it takes 10 responses. The exact counts in
# the actor's row, 80.9 and 8.5 GB, say the same.
#
# | phase | weights | optimiser | gradients | activations and logits | cache | sum |
# |---|---|---|---|---|---|---|
# | sampling, GB | 53.4 | 160.1 | | | 51.5 | **265** |
# | training, GB | 53.4 | 160.1 | 26.7 | 8.8, of the actor | | **249** |
#
# So the worst phase is sampling. Four 7B models need 265 GB: 4 H100, and not 3 as in section 1.
# </details>

# %% [markdown]
# ## 3. Where the time goes
#
# A **floating-point operation (FLOP)** is one addition or multiplication. For each token, every weight
# is used in one multiplication and one addition. So a forward pass costs $2N$ FLOP per token. The
# backward pass costs twice as much, because it computes gradients of the weights *and* of the
# activations. So training costs $6N$ FLOP per token.
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
# That takes 14 / 3,350 seconds = 4.2 ms. The arithmetic, 2 · 7 = 14 billion FLOP, takes 0.014 ms. But
# several responses can be **decoded together**: they share one reading of the weights. Their caches are
# not shared.
#
# **Predict.** Each response has 500 tokens so far. How long does the next token take for one response,
# for 20 that are decoded together, and for 100? What takes longest: reading the weights, reading the
# cache, or arithmetic?

# %% tags=["predict"]
# mfu and mbu: the share of its top speed that it reaches, in arithmetic and in reading
h100 = replace(models.H100, mfu=1, mbu=1)
token = models.kv_cache_bytes(models.LLAMA_7B, batch=1, tokens=1, bf16=True)
rows = {}
for together in (1, 20, 100):
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
# The three times are 4.3 ms, 5.7 ms and 12.0 ms. For one and for 20 responses, reading the weights takes
# longest. For 100 it is the cache, with 7.8 ms. The arithmetic is always hidden behind the reading. So
# 100 responses take three times as long as one, not a hundred times.
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
# **Sampling is limited by memory bandwidth, the bytes read per second. Training is limited by FLOP.**
# One by one, sampling takes a hundred times as long as training this model. Together, it takes three
# times as long.
#
# **The price is room in memory.** At the end, the cache of the 100 responses takes 52 GB, beside 14 GB of
# weights.
#
# ## 4. LoRA: the reference for free
#
# **Low-rank adaptation (LoRA)** freezes a matrix $W$ and adds a product of two thin matrices, an
# **adapter**:
#
# $$ W x \;\to\; W x + s\, U D x . $$
#
# $D$ maps down from the width of the input to a small rank $k$. $U$ maps up to the width of the
# output. Only $U$ and $D$ are trained. $U$ is 0 at first, so the model starts unchanged. The factor $s$
# is fixed: a setting $\alpha$ divided by $k$. In this lesson $\alpha = 2k$, so $s$ is 2, and *every* matrix
# of a block has an adapter.
#
# For a matrix of 4096 × 4096 and rank 16, the adapter has 16 · (4096 + 4096) = 131,072 weights. That
# is 0.8 % of the matrix. (Our small model's matrices are narrow: there it is 6 % of the model.) So
# nearly all of a large model takes 2 bytes per weight instead of 16. Adapters are in float32: 16 bytes
# per weight, too. And **with its adapters switched off, the actor *is* the reference.**

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
# Here is the bill for one step in bfloat16, the `step` of section 2. It samples 1,024 responses of
# 1,024 tokens, for prompts of 512 tokens. The savings:
#
# | saving | what changes | its price |
# |---|---|---|
# | **critic on the actor's trunk** | The *trunk* is all of a model except its last layer. The critic is one more output on the actor's trunk. | two losses pull at the same weights |
# | **LoRA of rank 16** | actor and critic have adapters | the change of each matrix has at most rank 16 |
# | **no critic** | one trained model less | another baseline is needed (section 7 and lesson 11b) |
# | **a rule, no reward model** | a program checks the answer | possible only for some tasks |
# | **no reference** | one frozen model less | no KL penalty |
#
# The columns:
#
# - The memory, **7B** and **70B**: GB in the worst phase of the step. In the 70B model, 64 attention heads
#   share 8 sets of keys and values. So its cache is small, and its worst phase is training.
# - The time, **sampling**, **scoring** and **training**: seconds at 70B. 64 H100 work as one machine, at
#   40 % of their speed in arithmetic and 60 % in reading. *Scoring* is one forward pass each of the reward
#   model, the reference and the critic, over the finished responses.
#
# **Predict.** With all four models, which takes longest: sampling, scoring or training? Which single
# saving saves most memory at 70B? Does it save much to leave out a model that is only read?

# %% tags=["predict"]
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
# <details><summary>What you should see</summary>
#
# | plan | 7B | 70B | sampling | scoring | training |
# |---|---|---|---|---|---|
# | PPO, four models | 265 | 2,567 | 21 | 26 | 53 |
# | critic on the actor's trunk | 173 | 1,455 | 21 | 26 | 27 |
# | LoRA of rank 16 | 92 | 472 | 21 | 26 | 35 |
# | no critic | 173 | 1,455 | 21 | 18 | 27 |
# | a rule, no reward model | 252 | 2,428 | 21 | 18 | 53 |
# | no reference | 252 | 2,426 | 21 | 18 | 53 |
# | LoRA and no critic | 79 | 330 | 21 | 18 | 18 |
#
# - **Memory at 70B.** LoRA saves most, 82 %. Sharing or dropping the critic saves 43 %, and leaving out a
#   model that is only read 5 %. LoRA without a critic needs 4 GPUs instead of 30, or 5, since adapters keep
#   more activations than we count (Going further). At 7B, one is enough.
# - **Time.** Training takes longest, and sampling is shortest. Scoring passes all tokens through
#   three models: $3 \cdot 2N$ FLOP per token, as many as training one. A shared critic saves half of the
#   training. LoRA saves a third of it (no gradients of frozen weights), but only 18 % of the step.
# - **In section 3, sampling took three times as long as training.** Here, mainly, two models are trained (a factor
#   of 2). The GPUs reach 40 % of their speed in arithmetic, and 60 % in reading (1.5). And the 70B model
#   has a small cache beside its many weights (3.0, against 7B in this plan).
# </details>
#
# The figure shows four plans at 7B, with one bar per phase. A plan needs the longer of its two bars.

# %%
phases = {}
for name in ("PPO, four models", "no critic", "LoRA of rank 16", "LoRA and no critic"):
    by_model = pd.DataFrame(models.four_models(savings[name], models.LLAMA_7B)) / 1e9
    held = by_model.sum(axis=1)  # of all models
    held["activations"] = by_model.loc[["activations", "logits"]].sum().max()  # of one
    both = ["weights", "optimiser"]
    phases[f"{name}: sampling"] = held[[*both, "cache"]].to_dict()
    phases[f"{name}: training"] = held[[*both, "gradients", "activations"]].to_dict()
room = {"one H100": models.H100.memory_bytes / 1e9}
show.bars(phases, stacked=True, reference=room, label="GB")

# %% [markdown]
# For all four plans the worst phase is sampling. With LoRA most of it is cache.
#
# ## 6. Do the savings cost reward?
#
# We recorded PPO on tiny-reviews as in lesson 06: 24 steps of 64 responses, three seeds per variant.
#
# | variant | what differs |
# |---|---|
# | *as it is* | all weights are trained; the critic is separate, and starts as the reward model |
# | *critic from the SFT model* | the critic starts as the actor does, from supervised fine-tuning (SFT) |
# | *shared trunk* | the same start, since the critic is part of the actor; both losses train the same weights |
# | *adapters of rank 16* | only adapters are trained (actor and critic), with the learning rate of full training |
#
# *MB* is the counted memory, with minibatches of 32 responses, each in one pass. The rest is measured on
# 76 test films. *gold* is the predicted human rating (lesson 06). In brackets: lowest and highest seed.

# %%
small = models.Plan(
    prompts=64, prompt_tokens=12, response_tokens=32, epochs=2, micro_batch=32
)
changes = {
    "as it is": {},
    "critic from the SFT model": {},
    "shared trunk": {"critic": "shared"},
    "adapters of rank 16": {"lora": 16},
}
memory = {}
for name, change in changes.items():
    counts = models.four_models(replace(small, **change), models.TINY_REVIEWS)
    memory[name] = round(models.peak_bytes(counts) / 1e6)

# %%
# "leash" has PPO as it is, with other KL coefficients (lesson 07)
runs = experiments.results("ablations", "resources", "leash")
columns = {"gold": "gold", "kl": "KL, nats", "length": "tokens"}
table = experiments.shown(runs[runs.variant.isin(changes)], columns)
table = table.loc[list(changes)]
table.insert(0, "MB", pd.Series(memory))
pd.set_option("display.width", 100)
table

# %% [markdown]
# At this size the activations dominate, so adapters save only a third of the memory.
#
# The variants went differently far from the reference. So we **compare at equal KL** (lesson 06b). The
# line is PPO as it is, with four KL coefficients:
#
# | KL coefficient | 2 | 1 | 0.5 | 0.25 |
# |---|---|---|---|---|
# | KL, nats | 0.73 | 1.00 | 2.04 | 4.06 |
# | gold | 0.61 | 0.91 | 1.43 | 2.01 |
#
# (*As it is* has the coefficient 0.5, too: three other runs.) A variant below the line has less gold than
# PPO at the same KL.
#
# **Predict.** By gold alone, the shared trunk costs little and the adapters cost most. Use both
# tables: where does each lie at equal KL, above or below the line?
#
# The second cell gives the distance from a line of the same seed. Its 95 % interval is for other films and
# seeds (lesson 06b).

# %% tags=["predict"]
ppo = ["kl_coef 2", "kl_coef 1", "kl_coef 0.5", "kl_coef 0.25"]
shown = runs[runs.variant.isin([*ppo, *changes])]
show.frontier(shown, curves={"PPO": ppo}, log=True, ylabel="gold")

# %% tags=["predict"]
near = ["critic from the SFT model", "shared trunk"]
experiments.above_curve(runs, "gold", ppo, near).round(2)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# | variant | distance from the line | 95 % interval |
# |---|---|---|
# | critic from the SFT model | −0.12 | −0.31 to 0.07 |
# | shared trunk | −0.46 | −0.54 to −0.37 |
#
# - **Shared trunk: less gold at equal KL.** All three seeds lie below the line. Its critic's start
#   explains at most a part: with this start alone the distance is smaller, and its interval includes 0.
# - **Adapters: no comparison.** They end at 0.45 nats, left of the line, so they have no row. PPO with
#   the coefficient 2 has less gold *and* a higher KL, on each seed. So the record does not say that
#   adapters cost gold. They may have learned too little: adapters usually get a larger learning
#   rate than full training.
# </details>
#
# ## 7. No critic: other scores are the baseline
#
# Without a critic, something else must be subtracted from a score (lesson 04):
#
# | method | the baseline of a response | it costs |
# |---|---|---|
# | REINFORCE | the mean score of earlier batches | nothing |
# | REINFORCE++ | the mean of the batch; the difference is divided by the batch's standard deviation | nothing |
# | ReMax | the score of the **greedy** response, which takes the most likely token everywhere | one more response per prompt |
# | RLOO (REINFORCE leave-one-out) | the mean score of the *other* responses to the prompt | several responses per prompt |
# | GRPO (group relative policy optimisation, lesson 11) | the mean of all responses to the prompt; the difference is divided by their standard deviation | several responses per prompt |
#
# **By hand.** A batch has two prompts. The responses to the hard prompt have the scores 4, 2, 2 and
# 0, those to the easy one 8, 6, 6 and 4. All have the same length (REINFORCE++ averages over tokens).
# Earlier batches had the mean 4, and the greedy response to the hard prompt has the score 3. The
# advantages of the *hard* prompt:
#
# | method | computed as | 4 | 2 | 2 | 0 |
# |---|---|---|---|---|---|
# | REINFORCE | score − 4 | 0 | −2 | −2 | −4 |
# | REINFORCE++ | batch mean 4, standard deviation $\sqrt{48/8} = 2.45$ (divided by $n$) | 0 | −0.82 | −0.82 | −1.63 |
# | ReMax | score − 3 | 1 | −1 | −1 | −3 |
# | RLOO | for the first: 4 − (2 + 2 + 0) / 3 | 2.67 | 0 | 0 | −2.67 |
# | GRPO | group mean 2, standard deviation $\sqrt{8/3} = 1.63$ (divided by $n - 1$) | 1.22 | 0 | 0 | −1.22 |

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
# REINFORCE and REINFORCE++ give not even the best response to the hard prompt a positive advantage. On
# average this changes nothing: the same number is subtracted from all four scores (lesson 04). But it
# adds noise.
#
# **When does a group pay?** A response's gradient is its advantage times the gradient of its
# log-probability. So we measure the noise by the mean *square* of the advantages. A mean square
# is the variance plus the square of the mean. Say the scores of each prompt have variance 1. The mean
# of an easy prompt is $g/2$, that of a hard prompt $-g/2$. We call $g$ the **gap**. Easy and hard
# prompts are equally frequent.
#
# - *The true mean of the prompt* leaves only the variance: $1$. No other number per prompt does better.
# - *REINFORCE* subtracts 0, the mean of all. A prompt's advantages keep the mean $g/2$ or $-g/2$:
#   $1 + g^2/4$.
# - *RLOO* with groups of four subtracts the mean of three other scores. They are drawn independently, so
#   the variance of this mean is added to that of the score: $1 + 1/3$.
#
# **Predict.** From which gap on does RLOO have less noise than REINFORCE?

# %% tags=["predict"]
torch.manual_seed(0)
gaps, noise = [0, 0.5, 1, 1.5, 2], {"REINFORCE": [], "RLOO, groups of 4": []}
for gap in gaps:
    scores = torch.randn(50_000, 4)  # a row has four responses to one prompt
    scores[::2] += gap / 2  # easy prompts
    scores[1::2] -= gap / 2  # hard prompts
    noise["REINFORCE"].append(scores.square().mean())
    noise["RLOO, groups of 4"].append(core.leave_one_out(scores).square().mean())
labels = dict(xlabel="gap between the prompts' means", ylabel="mean squared advantage")
show.lines(noise, gaps, ylim=(0, None), **labels)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# The lines cross where $g^2/4 = 1/3$, at a gap of 1.15. RLOO's line is flat, because it knows which
# prompt a response belongs to. REINFORCE's line rises from 1 to 2.
#
# **If prompts differ little, a group adds noise.** Three scores are then a noisier baseline than the
# mean of everything.
# </details>
#
# A *perfect* critic would do better than all of these: it knows *which token* was good (Going further).
# A learned one need not (lesson 05).

# %% [markdown]
# ## What to remember
#
# - In bfloat16 a trained weight takes 16 bytes, a weight that is only read takes 2. Count the trained
#   models first.
# - A step needs the larger of two sums: with the cache while it samples, with gradients and activations
#   while it trains.
# - Decoding waits for reading, training for arithmetic. Responses that are decoded together share the
#   reading of the weights, but each needs its own cache.
# - At 70B, sharing or dropping the critic saves 43 % of the memory. LoRA saves more, but only 18 % of
#   the time. What a saving costs in gold is compared at equal KL.
# - Without a critic, the baseline comes from other scores. A group per prompt pays if prompts
#   differ by about a standard deviation of their scores.
#
# ## Exercises
#
# Solutions are in `solutions/10_saving_resources.ipynb`. Exercises 2, 4, 6 and 7 have no checker. Write
# your answer down before you open the folded one.

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
# **2. Which part dominates?** *(medium, 20 minutes)*. Four situations, in bfloat16. Each response has
# 512 + 1,024 tokens. Which part of the actor is the largest: weights, gradients, optimiser, activations
# or cache? Estimate each part in GB on paper, with section 2. Leave the logits out. All four models have
# Llama's blocks. Then run the cell.
#
# | | model | layers | width | what happens |
# |---|---|---|---|---|
# | A | 135 million | 30 | 576 | all weights are trained, on 4 responses at a time |
# | B | 70B | 80 | 8,192 | all weights are trained, on 16 responses at a time |
# | C | 7B | 32 | 4,096 | adapters of rank 16 are trained (40 million weights, in float32), on one response at a time |
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

# %% [markdown] tags=["exercise"]
# <details><summary>What you should see</summary>
#
# - **A: the activations.** 4.9 GB, against 1.6 GB for the optimiser. The model is narrow: by the formula,
#   1.7 · 4 · 1,536 / 576 makes 18 activations per weight, or 36 bytes.
# - **B: the optimiser.** 847 GB, against 726 GB for the activations. The model is so wide that even 16
#   responses at a time take fewer bytes (10 by the formula) than the optimiser's 12 per weight.
# - **C: the weights.** 13.6 GB. Only 40 million weights have gradients (0.2 GB) and an optimiser's state
#   (0.3 GB). Adapters are in float32, so it is 4 and 8 bytes each. The activations are the second part:
#   1.3 bytes per weight by the formula, and 8.5 GB. Adapters do not make them smaller.
# - **D: the weights.** 141 GB. A token takes 2 · 80 · 1,024 numbers of 2 bytes, 0.33 MB. With 64 · 1,535
#   tokens the cache has 32 GB. (The last token is never read, so it has no keys.) With keys as wide as
#   the model it would be 258 GB, and the cache would be the largest part.
# </details>

# %% [markdown] tags=["exercise"]
# **3. A layer with a switch** *(medium, 15 minutes)*. In one batch, some rows belong to the policy, and
# the others to its free reference. Write a linear layer that computes both in one pass. `x` has the
# shape (B, in), for B rows, the frozen matrix `weight` (out, in), `down` (k, in) and `up` (out, k). The adapter's
# factor $s$ is `alpha` divided by the rank k. `on` has the shape (B,), and is true for a row of the
# policy. Return the shape (B, out).
#
# Then count on paper, for 4096 × 4096 and rank 16: how many multiplications does your adapter take per
# row? Suppose you first multiplied `up` by `down`. How many does this take once, and how many does each
# row take then?
#
# *Hint:* (B,) and (B, out) do not broadcast. Which shape must `on` have?


# %% tags=["exercise"]
def adapted_layer(x, weight, down, up, alpha, on): ...  # your code


check.adapted_layer(adapted_layer)


# %% tags=["solution"]
def adapted_layer(x, weight, down, up, alpha, on):
    adapter = alpha / len(down) * (x @ down.T @ up.T)
    return x @ weight.T + on[:, None] * adapter


check.adapted_layer(adapted_layer)

# %% [markdown] tags=["exercise"]
# <details><summary>The two counts</summary>
#
# The thin matrices one after the other take 16 · 4096 + 16 · 4096 = 131,072 multiplications per row.
# The product of both has 4096 · 4096 entries: 16.8 million multiplications per row, as many as the frozen
# matrix takes. Forming it takes another 268 million, once.
# </details>

# %% [markdown] tags=["exercise"]
# **4. Find the bug** *(medium, 15 minutes)*. A colleague trains with LoRA. For the KL penalty she
# uses the free reference of section 4. To test it, she trains the policy to make 16 responses more
# likely, and computes their log-ratio $\log \pi - \log \pi_{\text{ref}}$ in two ways: with the
# adapters off, and with a copy of the model from before training. The two lines should be one. What
# is wrong? Which line is right, and what does the mistake do to the KL penalty? Mend it and draw
# the lines again.
#
# *Hint:* after training, switch the adapters off, and compare the model's weights with those from before,
# tensor by tensor.


# %% tags=["exercise"]
def prepared(policy):
    model = models.with_lora(policy, rank=16)
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            weight.requires_grad_(True)
    return model


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
# <details><summary>What you should see</summary>
#
# The two lines part at the first step after an update. The biases are trained, too. They have no
# switch: with the adapters off, the model still has the trained biases. So the reference moves
# along with the policy. The copy's line is right. The other one is lower, because a part of the
# change is in both models. The KL penalty is computed from too small a log-ratio, and the policy
# drifts further than the penalty says. The free reference needs that *every* trained number can be
# switched off. Leave the biases frozen (or keep a copy of them).
# </details>

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
    # row i: the responses to the prompt of i
    same = (prompt[:, None] == prompt).float()
    others = same.sum(1) - 1
    baseline = (same @ scores - scores) / others.clamp(min=1)
    return torch.where(others > 0, scores - baseline, 0.0)


check.rloo_advantages(rloo_advantages)

# %% [markdown] tags=["exercise"]
# **6. Design under a budget** *(hard, 25 minutes)*. You have one GPU with room for 24 GB, and want
# to train a model of 1.1 billion parameters in bfloat16 with RL. The reward model has the same
# size. Find at least two plans that fit. For each, say what you gave up, and what you expect it to
# cost. What would you give up first, and what last?
#
# `models.Plan` takes `critic` ("separate", "shared" or "none"), `lora` (the rank), `reference` and
# `reward_model` (true or false), `micro_batch` (responses per forward and backward pass),
# `decode_batch`, and `recompute`. With `recompute=True`, each block keeps only its input, and is
# computed once more in the backward pass. What you leave out keeps its
# default: four models, all weights trained, one response per pass, and 64 decoded together.
#
# *Hint:* first count the trained models on paper. At this size, is the worst phase sampling or
# training? Only what is in memory then is worth saving. The cell takes your
# plans. It shows GB, and the seconds of a step on an H100, to compare plans.

# %% tags=["exercise"]
model = models.Shape(layers=22, width=2048, heads=32, kv_heads=4, ffn=5632, vocab=32000)
mine = {
    "everything": models.Plan(bf16=True),
    "no critic": models.Plan(bf16=True, critic="none"),
}
costs = {}
for name, plan in mine.items():
    gigabytes = models.peak_bytes(models.four_models(plan, model)) / 1e9
    seconds = sum(models.step_seconds(models.H100, plan, model).values())
    costs[name] = {"GB": gigabytes, "seconds": seconds}
pd.DataFrame(costs).T.round(1)

# %% tags=["solution"]
model = models.Shape(layers=22, width=2048, heads=32, kv_heads=4, ffn=5632, vocab=32000)
mine = {
    "everything": {},
    "no critic": {"critic": "none"},
    "no critic, recompute": {"critic": "none", "recompute": True},
    "no critic, no reference": {"critic": "none", "reference": False},
    "LoRA": {"lora": 16},
    "LoRA, 3 responses at a time": {"lora": 16, "micro_batch": 3},
}
costs = {}
for name, change in mine.items():
    plan = models.Plan(bf16=True, **change)
    gigabytes = models.peak_bytes(models.four_models(plan, model)) / 1e9
    seconds = sum(models.step_seconds(models.H100, plan, model).values())
    costs[name] = {"GB": gigabytes, "seconds": seconds}
pd.DataFrame(costs).T.round(1)

# %% [markdown] tags=["exercise"]
# <details><summary>What a good answer contains</summary>
#
# The worst phase is training: the cache takes 2.2 GB, less than the gradients of one model and its
# activations. Two trained models of 1.1 billion weights take 16 · 2.2 = 35 GB before a single activation.
# So full PPO is out: it needs 41.5 GB. Without a critic the actor takes 18 GB, reference and reward
# model 2.2 and 2.1 GB. With activations and logits it is 24.9 GB: just too much. Three of the plans that
# fit:
#
# - **No critic, and recompute**: 22.5 GB. It costs time: one more forward pass in training, a
#   third more arithmetic (5.4 seconds per step instead of 4.8). Recomputing
#   changes no gradient. Without a critic you need another baseline (section 7).
# - **No critic, and no reference**: 22.7 GB. It costs the KL penalty. With a reward model this is risky.
# - **LoRA, with all four models**: 9.8 GB by our count, or 11.5, because adapters keep about 1.6 times
#   the activations that we count ("Going further"). So there is room for three responses at a time (21.0
#   GB with this factor), but not for four. It costs full-rank updates, and you must find a new learning rate.
#
# One order: first recompute, because it costs only time. Then full-rank training or the critic,
# whichever matters less for your task. The KL penalty last, as long as the reward can be fooled.
# </details>

# %% [markdown] tags=["exercise"]
# **7. On your machine** *(easy, 5 minutes)*. The cell samples 1 and then 64 responses with
# `tiny-reviews`, and computes their gradients. It needs `sample`, `titles` and `learner`: run section 2
# first. Predict: how many times as long do 64 responses take as one, for
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

# %% [markdown] tags=["exercise"]
# <details><summary>What you should see</summary>
#
# The seconds depend on your machine. For sampling, the factor is far below 64. For training it is more
# than twice as large. The reason differs from the H100's: our model is so small that most of a
# decoding step goes into *starting* operations. All 64 responses share this.
# </details>

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
# **How far to trust the cost model.** Weights, gradients, moments and cache agree to the byte
# with real GPT-2 and Llama models in float32 (`tests/models/test_cost.py`). Activations agree but for
# the token ids, which the count leaves out (0.03 % in section 2). In bfloat16, a Llama block keeps about a
# tenth more than the count, because norms are computed in float32. With adapters on bfloat16
# weights, it keeps about 1.6 times the count, because adapters keep float32 copies of what they
# read. Our own loops score all responses in one piece, with three copies of all logits. For
# section 2's 7B models this is more than everything that we counted.
#
# Seconds are less certain. The roofline leaves out communication
# between GPUs, the optimiser's step, and waiting for the longest response. `models.measure_machine()`
# measures your own CPU. For matrices as small as ours its prediction is only a lower bound.
#
# **When does sampling take as long as training?** The more responses are decoded together, the less time
# each token spends on reading weights. But it still reads its own cache. In section 3's 7B model, the cache
# of 500 tokens takes 0.08 ms to read, and training on a token 0.04 ms. So there sampling always takes
# longer. Our 70B model has a smaller cache. With section 5's settings, 49 responses decoded together and
# no critic, sampling takes as long as training. With 8 it takes 5.5 times as long, and with 512 only 0.23 times.
#
# Section 5 decodes 64 together, which is one response per GPU. With 512, its sampling would take 6 seconds
# instead of 21. At 70B, the four models would need no more memory, because training stays the worst
# phase.
#
# **More savings.** *Micro-batches* split a batch and add up the gradients. They cost little time,
# and the result is the same. *Recomputing* (gradient checkpointing) costs a third more arithmetic.
# *Sharding* (ZeRO, FSDP) spreads the 16 bytes over many GPUs. It saves nothing in total, but each
# GPU holds a part. *Offloading* moves what is not needed to the CPU's memory, and costs the time to
# bring it back.
#
# **More about section 6.** The critic of the shared trunk and the *critic from the SFT model* have the same
# start. At equal KL the shared trunk still has 0.33 less gold, with an interval from 0.07 to 0.60. So the
# start explains at most a part. On each seed its KL is higher, too (1.3 to 2.0 times), and its reviews
# are shorter.
#
# Why does the shared trunk move further? It learns from both losses together, and their gradient is
# clipped to length 1. At the first step it is 5 times as long as the gradient of the policy's loss alone.
# So most of what is left after clipping belongs to the value loss. That is a likely reason, not a
# tested one.
#
# Had the adapters finished learning? Their score (what the reward model says) still rose in the second
# half of the run: its mean is 0.31 over steps 10 to 13, and 0.51 over steps 20 to 23. And they
# moved less than any run of the line. A smaller learning rate without adapters may be as good. We have
# tried neither this nor a larger one with adapters.
#
# The critic that starts from the SFT model saves no memory, and learns later. After five steps, the
# critic from the reward model explains 54 % of the variance of its target, and the other one nothing
# (−7 %). After ten steps it is 55 % and 47 %. For gold the difference from *as it is* is −0.05, with an
# interval that includes 0. (Lesson 09 compares with three more runs of *as it is*: −0.08.)
#
# *Without equal KL*, the runs say less. Compare each with the run of *as it is* that has the same seed.
# The gold of the shared trunk differs by +0.06, −0.01 and −0.21. The interval over films and seeds is
# −0.40 to +0.29: much lower, or higher. It is so wide because these differences lie apart, and three of
# them say little about a fourth. Those of the adapters are −0.44, −0.50 and −0.45, and the interval is
# −0.55 to −0.38.
#
# **The noise, exactly.** Section 7 leaves out *which* response gets an advantage. In small worlds
# (lesson 05) all responses can be listed, so the noise of the gradient can be computed. It falls when more
# responses are averaged (lesson 04). Noise and true gradient are vectors. Let $n^*$ be the number of
# responses with which both have the same length. A smaller $n^*$ is better. Two prompts, each with 15
# possible responses, give:
#
# | baseline | $n^*$, gap 0 | $n^*$, gap 2 |
# |---|---|---|
# | a perfect critic | 5.9 | 5.9 |
# | the prompt's true mean | 13.2 | 13.2 |
# | RLOO, groups of four | 17.9 | 17.9 |
# | RLOO, groups of two | 27.3 | 27.3 |
# | ReMax, four responses and the greedy one | 23.9 | 23.9 |
# | ReMax, one response and the greedy one | 38.2 | 38.2 |
# | REINFORCE, mean of earlier batches | 13.2 | 35.2 |
#
# Only REINFORCE depends on the gap. (REINFORCE++ is as noisy.) A perfect critic knows $Q(s_t, y_t) -
# V(s_t)$ for every token. A learned one is worse (lesson 11b). ReMax subtracts the greedy response's
# score, which is not the prompt's mean. Its advantages keep the difference, and its square is added to
# the noise.
#
# In these worlds the scores of a prompt have a variance of 0.65 and not 1. So section 7's formula lets
# the lines of RLOO and REINFORCE cross at a gap of 0.93 and not 1.15. In fact they cross at about 0.85.
# In ten other pairs of worlds, the order of critic, true mean and RLOO is the same. In lesson 11b the
# gap is small, and REINFORCE is ahead of GRPO.
#
# **Methods and libraries.** `loops.train_group` runs any of the 15 methods of `loops.FAMILY`
# (`docs/algorithms.md`). The same name can mean another method elsewhere: TRL's RLOO takes the KL
# penalty off the score before the baseline, and OpenRLHF's takes it off each token afterwards.
# DeepSpeed-Chat has all four models. TRL's PPO has a separate value model, and with adapters it uses the
# actor without them as the reference. A shared trunk is rare today.
#
# **References.** Rajbhandari et al. 2020, *ZeRO* (section 3: the 16 bytes). Williams, Waterman and
# Patterson 2009, *Roofline*. Pope et al. 2022, *Efficiently scaling Transformer inference*. Hu et
# al. 2021, *LoRA*. Santacroce et al. 2023, *Efficient RLHF*. Ahmadian et al. 2024, *Back to basics*
# (RLOO, section 3). Li et al. 2023 (ReMax). Hu 2025 (REINFORCE++).
#
# *How this lesson is checked:* the cost model is compared with real tensors
# (`tests/models/test_cost.py`), the expected gradient of each baseline with the exact one
# (`tests/loops/test_family.py`), and every number of the prose and of the solutions with a
# computation or a record (`tests/claims/test_lesson_10.py`).
