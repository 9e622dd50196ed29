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
# In words: a weight that is trained takes eight times as much memory as one that is only read.
# Section 2 shows why. 7B means 7 billion weights. A gigabyte (GB) is a billion bytes.
#
# | model | trained? | bytes per weight | 7B | 70B |
# |---|---|---|---|---|
# | actor | yes | 16 | 112 GB | 1,120 GB |
# | critic | yes | 16 | 112 GB | 1,120 GB |
# | reference | no | 2 | 14 GB | 140 GB |
# | reward model | no | 2 | 14 GB | 140 GB |
# | **all four** | | | **252 GB** | **2,520 GB** |
#
# An H100, a large graphics processor (GPU), has room for 86 GB. So PPO needs at least 3 of them at
# 7B, and 30 at 70B. The critic alone takes 44 %. So the savings that matter leave out the critic,
# or train fewer weights.

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
# A number has 4 bytes in the format *float32*, and 2 bytes in *bfloat16*. A bfloat16 number has
# fewer than three decimal digits. An update of a thousandth of a weight would be rounded away.
# So with bfloat16 weights, the optimiser keeps everything in float32: both moments, and a precise
# copy of each weight.
#
# | format of the weights | weight | gradient | two moments | copy | sum |
# |---|---|---|---|---|---|
# | bfloat16 | 2 | 2 | 4 + 4 | 4 | **16** |
# | float32 | ? | ? | ? | ? | ? |
#
# **Predict** the second row. How much memory does bfloat16 save?

# %% tags=["predict"]
for bf16 in (True, False):
    parts = (models.weights_bytes, models.gradient_bytes, models.optimiser_bytes)
    counts = [count(1, bf16=bf16) for count in parts]
    print("bfloat16" if bf16 else "float32", counts, "sum", sum(counts))

# %% [markdown]
# <details><summary>What you should see</summary>
#
# The three numbers are weight, gradient and optimiser (moments and copy). The row of float32 is 4,
# 4, 4 + 4 and 0: **16 bytes again**. For a trained weight, bfloat16 saves nothing. It halves the
# models that are only read, and the activations, and it makes arithmetic faster.
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
# A megabyte (MB) is a million bytes. The model has 4.2 million weights: 4 bytes each are 17.0 MB.
# The count is right. (The measured activations include some token ids.)
#
# Here the **activations** are the largest part. A rule of thumb says how they grow. For each token,
# a block of a transformer of width $d$ keeps about $16\,d$ numbers. The block has about $12\,d^2$
# weights. So
#
# $$ \frac{\text{activations}}{\text{weights}} \approx
# \frac{\text{tokens} \cdot 16\, d}{12\, d^2} = 1.3\, \frac{\text{tokens}}{d} . $$
#
# In words: more tokens at once need more activations, and a wider model needs *fewer* of them per
# weight. Our model has $d = 256$ and reads 16 · 32 = 512 tokens at once. That makes 2.7 activations
# per weight, or 11 bytes. The moments take 8.
#
# **Predict.** A 7B model has $d = 4096$. It trains on one response at a time, with 1,536 tokens
# (prompt and response), in bfloat16. Which part is the largest now: weights, gradients, optimiser
# or activations?

# %% tags=["predict"]
step = models.Plan(prompts=128, group_size=8, bf16=True)  # section 5 says what it holds
held = models.four_models(step, models.LLAMA_7B)
(pd.DataFrame(held).T / 1e9).round(1)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# The cells are GB. In the actor's row, the **optimiser** is now the largest part: 80.9 GB, nine
# times as much as the activations (8.5 GB). The rule of thumb gives 1.3 · 1,536 / 4096 = 0.5
# activations per weight, or 1 byte. The optimiser takes 12.
#
# Two columns are new. *logits* are temporary copies of the next-token scores. The **cache** is needed
# while sampling: the keys and values of all tokens so far, so that attention need not compute them
# again. With 51.5 GB for 64 responses it is larger than all activations. Training starts without it.
# </details>
#
# Altogether, four 7B models need 265 GB at the worst moment of a step. Section 1 counted 252 GB.

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
# **Sampling.** To write one token, the machine reads all weights: 14 GB for a 7B model in bfloat16.
# That takes 14 / 3,350 seconds = 4.2 ms. The arithmetic, 2 · 7 = 14 billion FLOP, takes 0.014 ms. So
# the processor waits for memory nearly all the time. But several responses can be **decoded
# together**: they share one reading of the weights.
#
# **Predict.** One token for one response takes 4.2 ms. How long does it take to write one token for
# each of 100 responses that are decoded together? And of 500?

# %% tags=["predict"]
h100 = replace(models.H100, mfu=1, mbu=1)  # at its full speed
for together in (1, 100, 500):
    seconds = h100.seconds(2 * 7e9 * together, 2 * 7e9)  # FLOP, bytes
    print(f"{together} responses: {1000 * seconds:.1f} ms")

# %% [markdown]
# <details><summary>What you should see</summary>
#
# The three times are 4.2 ms, 4.2 ms and 7.1 ms. A hundred responses take as long as one: reading
# takes 4.2 ms, and the arithmetic, 1.4 ms, is hidden behind it. With 500 responses the arithmetic
# takes 7.1 ms, so now the machine waits for it. The border lies where both take equally long: at
# 989,000 / 3,350 = 295 responses. The size of the model does not matter, because it stands on both
# sides.
# </details>
#
# **Training** reads all tokens of a response in one pass. Take 100 responses of 1,000 tokens each,
# and a 7B model:
#
# | | reading the weights | arithmetic | takes |
# |---|---|---|---|
# | sample them one after the other | 100,000 times: 418 s | 1.4 s | 418 s |
# | sample them together | 1,000 times: 4.2 s | 1.4 s | 4.2 s |
# | train on them, one by one | 300 times: 1.3 s | 4.2 s | 4.2 s |
#
# (In training, each response needs a forward pass, and a backward pass that counts as two.) **Sampling
# is limited by memory bandwidth, the bytes read per second. Training is limited by FLOP.** So
# sampling takes anything from a hundred times as long as training to less than training. What
# decides is how many responses are decoded together.
#
# **On your machine.** The next cell samples 1 and then 64 responses with `tiny-reviews`, and
# trains on them. **Predict:** how many times as long do 64 responses take as one, for sampling? And
# for training?


# %% tags=["predict"]
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

# %% [markdown]
# <details><summary>What you should see</summary>
#
# The seconds depend on your machine. For sampling, the factor is far below 64. For training it is
# more than twice as large. The reason differs from the H100's: our model is so small that most of a
# decoding step goes into *starting* operations. All 64 responses share this.
# </details>

# %% [markdown]
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
# **with its adapters switched off, the actor *is* the reference.** No second copy is needed.

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
# (In this small model that is 6 %.)
#
# ## 5. The savings, one at a time
#
# Here is the bill for one step, with models in bfloat16. It samples 1,024 responses of 1,024
# tokens, for prompts of 512 tokens, and decodes 64 together. Training reads one response at a time.
# The columns:
#
# - The memory, **7B** and **70B**: GB at the worst moment of the step.
# - The time, **sampling**, **scoring** and **training**: seconds at 70B on 64 H100. *Scoring* is
#   the forward passes of reward model, reference and critic. We assume that the GPUs reach 40 % of
#   their speed in arithmetic and 60 % in reading. This is the table's weakest point.

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
#   becomes one extra output on top of it, with 8,193 weights. That saves 43 % of the memory and
#   half of the training. The price: two losses pull at the same weights.
# - **LoRA.** Memory falls to less than a fifth. Time falls little, from 100 to 82 seconds: gradients
#   still flow through all frozen weights. The price: the change of each matrix has at most rank 16.
# - **No critic.** It saves as much memory as the shared trunk, and 9 seconds of scoring besides. The
#   price: another baseline is needed (section 7).
# - **A rule instead of the reward model.** It saves only 5 % of the memory: a model that is only read is
#   cheap. It is possible where a program can check the answer.
# - **No reference.** It saves the same. The price: there is no KL penalty.
# - **LoRA and no critic.** Savings combine: 4 GPUs instead of 30.
#
# One more idea is often named here: **the critic starts as a copy of the reward model**, not of the
# supervised fine-tuned (SFT) model. It saves no memory and no time per step. It can only save steps.
#
# ## 6. Do the savings cost reward?
#
# We recorded PPO on tiny-reviews as in lesson 06: 24 steps of 64 responses, three seeds per
# variant. *As it is* has a separate critic, which starts as the reward model. *MB* is the counted
# memory, with minibatches of 32 responses. The rest is measured on 76 test films. *gold* is the
# rating that people would give, predicted by models that training never saw. In brackets are the
# lowest and the highest seed.

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
# The figure shows the difference in gold from *as it is*. The bar is a 95 % interval over films and
# seeds. If it includes 0, the runs do not show which is better.

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
# - **Critic from the SFT model.** The interval includes 0. But the log shows what the better start buys.
#   After five steps, the critic that began as the reward model explains 54 % of the variance of the
#   returns, and the other one nothing (−7 %). After ten steps it is 55 % and 47 %.
# - **Shared trunk.** The interval includes 0, too. But on every seed its KL is higher (1.3 to 2.3 times)
#   and its reviews are shorter. So it moves further for no more gold. A likely reason is in the log: at
#   the first step the gradient of both losses together is 5 times as long as the policy's alone. It is
#   shortened to length 1, and most of what is left belongs to the value loss.
# - **Adapters.** They have less gold on every seed, at less than half of the KL. They had the same
#   learning rate, and their score (what the reward model says) still rises at the last step: they
#   did not get far. This does not show that they are worse. LoRA usually gets a larger learning
#   rate. We have not recorded such a run.
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
# **How much noise?** In the exact world we can list all responses. Take two prompts whose mean
# scores are a **gap** apart, each with 15 possible responses. *How many responses must be sampled
# until the noise of the averaged gradient is as long as the gradient itself?* Call this number
# $n^*$: smaller is better. The noise is the root of the mean squared distance from the mean. A
# constant factor in the advantages does not change $n^*$.


# %%
def two_prompts(gap):
    """An easy and a hard prompt: two worlds whose mean scores are `gap` apart."""
    prompts = []
    for seed, mean in ((0, gap / 2), (1, -gap / 2)):
        world = core.World.random(3, 3, seed=seed)
        prompts.append(replace(world, rewards=world.rewards - mean_of(world) + mean))
    return prompts


def mean_of(world):
    return world.expectation(world.ref_logits, world.rewards)


# %%
def needed(prompts, advantages, size=1, sampled=None):
    """n*. `size`: responses per group. `sampled`: responses paid for, if more."""
    noise = length = 0.0
    for world in prompts:
        logits = world.ref_logits
        grads = torch.autograd.functional.jacobian(world.logprobs, logits)
        groups, chance = world.groups(logits, size)  # all groups, and their chances
        pushes = advantages(world, groups)  # one per response, or one per token
        pushes = pushes if pushes.dim() == 3 else pushes[..., None].expand(-1, -1, 3)
        estimates = torch.einsum("mgt,mgtsv->msv", pushes, grads[groups]) / size
        mean = torch.tensordot(chance, estimates, dims=1)
        noise += (chance * (estimates - mean).square().sum((1, 2))).sum()
        length += mean.square().sum()
    return ((sampled or size) * noise / length).item()


def greedy(world):
    return world.rewards[world.probs(1000 * world.ref_logits).argmax()]


def perfect(world, groups):
    values, q = world.values(world.ref_logits)
    advantages = world.by_token(q - values[:, None])  # of every word
    return advantages.gather(2, world.response_ids[..., None])[..., 0][groups]


def compared(gap):
    some, score = two_prompts(gap), lambda world, groups: world.rewards[groups]
    return {
        "running mean (REINFORCE)": needed(some, score),
        "greedy (ReMax)": needed(some, lambda w, g: score(w, g) - greedy(w), sampled=2),
        "3 others (RLOO)": needed(
            some, lambda w, g: core.leave_one_out(score(w, g)), 4
        ),
        "the prompt's true mean": needed(some, lambda w, g: score(w, g) - mean_of(w)),
        "a perfect critic": needed(some, perfect),
    }


# %% [markdown]
# Two rows are ideals that nobody has. The *true mean* of the prompt is the limit of RLOO with very many
# responses. A *perfect critic* knows $Q(s_t, y_t) - V(s_t)$ for every token. The running mean is 0
# here, the mean of both prompts. RLOO has groups of four. ReMax pays for two responses per sample.
#
# **Predict.** The gap is 2. Put the five rows in order. Which of them would change if the gap were 0?
# (The second cell draws $n^*$ against the gap.)

# %% tags=["predict"]
pd.Series(compared(2)).round(1)

# %% tags=["predict"]
gaps = [0, 0.5, 1, 1.5, 2]
by_gap = pd.DataFrame({gap: compared(gap) for gap in gaps})
show.lines(
    by_gap.T.to_dict("list"),
    gaps,
    xlabel="gap between the mean scores of the two prompts",
    ylabel="responses needed",
    ylim=(0, None),
)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# At a gap of 2: perfect critic 5.9, true mean 13.2, RLOO 17.9, running mean 35.2, ReMax 38.2. Only
# the running mean changes with the gap. The other four know which prompt a response belongs to.
#
# - **If prompts differ little, a group buys nothing.** Without a gap the running mean needs 13.2
#   responses and RLOO 17.9, because three scores are a noisy baseline. RLOO is ahead from a gap of
#   about 0.85 on.
# - **ReMax** pays for two responses. And in these random worlds, the greedy response says little about
#   the mean.
# - **REINFORCE++**, with a large batch, is as noisy as the running mean: 35.3 at a gap of 2.
# - **A perfect critic** needs less than half of what the true mean needs. It knows *which token*
#   was good. A learned critic lies above this line. How far above decides whether its memory is
#   well spent (lesson 11b).
# </details>

# %% [markdown]
# ## What to remember
#
# - A trained weight takes 16 bytes, a weight that is only read takes 2. Count the trained models first.
# - Activations grow with the tokens at once. In wide models the optimiser's state dominates.
# - Decoding waits for memory unless hundreds of responses are decoded together. Training waits for
#   arithmetic.
# - Sharing or dropping the critic saves 43 %. LoRA saves more memory and makes the reference free, but
#   saves little time.
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
# **2. Which part dominates?** *(easy, 10 minutes)*. Four situations with a 7B model in bfloat16. Which
# part is the largest: weights, gradients, optimiser, activations or cache? Estimate each part in GB
# on paper. A response has 512 + 1,024 tokens, and its activations take 8.5 GB. Then run the cell.
#
# | | what happens |
# |---|---|
# | A | all weights are trained, on one response at a time |
# | B | all weights are trained, on 16 responses at a time |
# | C | adapters of rank 16 are trained (40 million weights), on one response at a time |
# | D | nothing is trained; 64 responses are decoded together |
#
# *Hint:* for D, the cache keeps one key and one value per layer and token. Each of them has the width of
# the model. This model has 32 layers of width 4096.

# %% tags=["exercise", "solution"]
one = models.Plan(bf16=True, decode_batch=1)
situations = {
    "A": one,
    "B": replace(one, micro_batch=16),
    "C": replace(one, lora=16),
    "D": replace(one, decode_batch=64),
}
actor = {}
for name, plan in situations.items():
    actor[name] = models.four_models(plan, models.LLAMA_7B)["actor"]
    if name == "D":
        actor[name] |= {"gradients": 0, "optimiser": 0, "activations": 0, "logits": 0}
(pd.DataFrame(actor).T / 1e9).round(1)

# %% [markdown] tags=["solution"]
# - **A: the optimiser.** 12 · 6.7 = 81 GB, against 13 GB each for weights and gradients.
# - **B: the activations.** 16 · 8.5 = 136 GB. They grow with the tokens at once, and the other parts
#   do not. This is why one splits a batch into micro-batches.
# - **C: the weights.** 13.6 GB. Gradients and optimiser belong to 40 million weights and take less
#   than half a GB. The activations are now the second part. Adapters do not make them smaller.
# - **D: the cache.** A token takes 2 · 32 · 4096 numbers of 2 bytes, half a megabyte. With 64 ·
#   1,535 tokens that is 51.5 GB, nearly four times the weights. (The last token is never read, so
#   it has no keys.)

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
# **4. Find the bug** *(medium, 15 minutes)*. A colleague trains adapters. `log_ratios` should
# return $\log \pi
# - \log \pi_{\text{ref}}$ of every token, with the free reference of section 4. To test it, she
# trains the policy to make 16 responses more likely, and computes their log-ratio in two ways: with
# `log_ratios`, and with a copy of the model from before training. The two lines should be
# one. What is wrong? Mend it and draw the lines again.


# %% tags=["exercise"]
def log_ratios(model, batch):
    with model.disable_adapter():
        logprobs = models.policy_logprobs(model, batch)
        ref_logprobs = models.policy_logprobs(model, batch)
    return logprobs - ref_logprobs


# %% [markdown] tags=["solution"]
# Both log-probabilities are computed with the adapters off, so both are the reference's. The
# difference is always 0: there is no KL penalty, and the log looks as if the policy never moved. (The
# opposite mistake, both with the adapters on, gives the same flat line.) Only the reference belongs
# inside the `with`.


# %% tags=["solution"]
def log_ratios(model, batch):
    logprobs = models.policy_logprobs(model, batch)
    with model.disable_adapter():
        ref_logprobs = models.policy_logprobs(model, batch)
    return logprobs - ref_logprobs


# %% tags=["exercise", "solution"]
def two_ways(log_ratios, steps=2 if FAST else 5):
    """The log-ratio of 16 responses, in nats per response, while they are trained."""
    policy, tokenizer = models.load_policy("tiny-reviews-sft")
    ids, mask = models.encode_prompts(tokenizer, ["a cold day in august\n"] * 16)
    limit = models.SamplingConfig(max_new_tokens=24)
    batch = models.sample(policy, ids, mask, eos_id=-1, config=limit)
    kept, model = copy.deepcopy(policy), models.with_lora(policy, rank=16)
    optimizer = loops.make_optimizer(model, loops.OptimiserConfig(lr=1e-3))
    lines = {"log_ratios": [], "with a copy": []}
    for _ in range(steps):
        with torch.no_grad():
            new, old = (models.policy_logprobs(m, batch) for m in (model, kept))
            ours = log_ratios(model, batch)
        lines["log_ratios"].append(ours.sum(1).mean())
        lines["with a copy"].append((new - old).sum(1).mean())
        (-models.policy_logprobs(model, batch).mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return lines


show.lines(two_ways(log_ratios), xlabel="step", ylabel="log-ratio, nats")

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
# 128). An H100 that holds nothing else has room for 262,144 tokens. With 64 heads of keys it would be
# 32,768. A larger cache allows more responses to be decoded together.
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
# **When does sampling take as long as training?** In section 3 it is at 295 / 3 = 98 responses decoded
# together, for one model that is trained. With prompts, a cache and the assumed 40 % and 60 % it is
# about 49 (lesson 11b). Between 8 and 512 responses decoded together, the ratio of the two
# changes more than tenfold. So "sampling costs as much as training" is true somewhere, and says little.
#
# **More savings.** *Micro-batches* split a batch and add up the gradients. They cost little time,
# and the result is the same. *Recomputing* (gradient checkpointing) costs a third more arithmetic.
# *Sharding* (ZeRO, FSDP) spreads the 16 bytes over many GPUs. It saves nothing in total, but each
# GPU holds a part. *Offloading* moves what is not needed to the CPU's memory, and costs the time to
# bring it back.
#
# **More about section 6.** Take the critic from the SFT model. On each single seed the interval
# over films includes 0, and all three means are lower. Of the score that it is trained on, the
# shared trunk gets 1.06 and *as it is* 1.17. Adapters did not save time: a run took 198 to 225
# seconds. With the critic from the SFT model, which is full training, it took 170 to 201 seconds.
#
# **The whole family.** `loops.FAMILY` has 15 rows. Each is a choice of baseline, unit, place of the
# KL penalty, importance ratio, clip and denominator (`docs/algorithms.md`). `loops.train_group`
# runs any of them. In the libraries the same name can be another row. TRL's RLOO has a ratio per
# response, and takes the KL penalty off the score before the baseline. OpenRLHF's has a ratio per
# token, and takes it off each token after the baseline.
#
# **More about section 7.** RLOO with groups of two needs 27.3 responses, more than with groups of
# four. In ten other pairs of worlds, the order of RLOO, the true mean and the perfect critic is the
# same. The group's mean *with* the response itself has the same $n^*$ as RLOO, because it differs
# by a factor. Dividing by the group's standard deviation gives a gradient of another objective
# (lesson 11), so its $n^*$ does not belong in the comparison. In lesson 11b most of a score's
# variance lies within a prompt. There the gap is small, and REINFORCE is ahead of GRPO.
#
# **What the libraries do.** DeepSpeed-Chat has all four models, and starts the critic from the
# reward model. TRL's PPO has a separate value model, and with a PEFT configuration it uses the
# actor without adapters as the reference. Its GRPO and RLOO have no critic, and load no reference
# if `beta` is 0. OpenRLHF and verl place the models on the same or on separate GPUs. Between
# sampling and training, verl moves the actor's weights into the layout that each of them needs. A
# shared trunk is rare today. Older versions of TRL had it.
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
