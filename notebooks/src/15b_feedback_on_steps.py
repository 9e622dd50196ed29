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
# # 15b · Feedback on steps (a lab)
#
# After this lab you can
#
# - turn the first wrong step of a response into a pair of steps, and train on it (Step-DPO),
# - compare two kinds of feedback at equal numbers of checks,
# - label steps without people, and train a process reward model,
# - say when such a model finds a mistake, and when it cannot.
#
# **You need** lessons 05 (the value $V$), 08 (the reward model), 12 (direct preference optimisation, DPO)
# and 15 (the action mask). About 30 minutes to read and 95 for the exercises.

# %%
import copy
from dataclasses import replace

import pandas as pd
import torch
from datasets import Dataset
from torch.nn.functional import logsigmoid

from minirlhf import core, experiments, loops, models, rewards, show, tasks
from minirlhf.classroom import FAST, check

# %% [markdown]
# ## 1. Where did it go wrong?
#
# Here is a calculation with one mistake:
#
# | | written | right? |
# |---|---|---|
# | problem | `12+10-1+7=` | |
# | first step | `22-1+7=` | yes |
# | second step | `20+7=` | **no**: it should be `21+7=` |
# | third step | `27` | yes, it follows from the second |
#
# Feedback on the *whole response* says "wrong". It does not say which step is to blame. Feedback on *steps* says
# "the second step". There are two ways to use it:
#
# - **Step-DPO** (Lai et al. 2024) makes a pair for DPO from a wrong step and a right one: sections 2 and 3.
# - A **process reward model** (PRM) is a reward model that gives one number to every *step*: sections 4 to 7.
#
# Finer feedback costs more, because somebody has to check every step. One **check** is one step, or one
# final answer, compared with the truth. We compare methods at equal numbers of checks.
#
# In this lab, *step* always means a step of a calculation. One change of the weights is an *update*.
#
# The policy is `tiny-long-steps`, a GPT-2 of 0.6 million parameters. A token is one character. A step ends
# with `=`. The last step of a response ends with EOS, the end-of-sequence token. `ends` holds the ids of both tokens.
# The policy's problems take four to six steps, and about nine of its steps in ten are right.

# %% tags=["shared"]
torch.set_num_threads(1)  # sums in a fixed order, so that two runs can be equal
start, tokenizer = models.load_policy("tiny-long-steps")
eos, ends = tokenizer.eos_token_id, models.step_end_ids(start, tokenizer, "=")
sampling = models.SamplingConfig(max_new_tokens=72, temperature=1.0)
arithmetic = tasks.arithmetic

# %% [markdown]
# Here are six of its responses. `steps_right` compares every step with the one before it:

# %%
problems = arithmetic.problems("test", 6, levels=(arithmetic.LONG,))
held_out = [p.prompt for p in problems]
drawn = models.sample_text(start, tokenizer, held_out, config=sampling, seed=3)[0]
texts = models.decode(tokenizer, drawn)
found = [arithmetic.steps_right(*pair) for pair in zip(held_out, texts)]
wrong = [row.index(False) + 1 if False in row else "none" for row in found]
pd.DataFrame({"problem": held_out, "response": texts, "first wrong step": wrong})

# %% [markdown]
# ## 2. Step-DPO: a pair of steps
#
# Take the mistake of section 1. Three pieces make a pair:
#
# | piece | text | in the loss? |
# |---|---|---|
# | problem, and the right steps before | `12+10-1+7=` `22-1+7=` | no, it is only read |
# | rejected: the wrong step, as the policy wrote it | `20+7=` | yes |
# | chosen: a right step that the policy wrote when it tried again | `21+7=` | yes |
#
# Let $x$ be the part that is only read, $s_c$ the chosen step and $s_r$ the rejected one. The loss is that of DPO
# (lesson 12). $h$ is the log-ratio of lesson 15, here of one step:
#
# $$ -\log \sigma\big(\beta\, [h(s_c) - h(s_r)]\big), \qquad
# h(s) = \log \pi(s \mid x) - \log \pi_\text{ref}(s \mid x) . $$
#
# In words: the right step shall gain more probability, compared with the reference policy, than the wrong one.
# $\log \pi(s \mid x)$ is the sum over the tokens of the step. A step is not the end of a response, so **no EOS is
# added after it**: `append_eos=False`.
#
# **By hand.** One update has five parts, here for one response:
#
# 1. *Sample.* The policy writes a response: `22-1+7=20+7=27`.
# 2. *Find the first wrong step.* A judge reads step by step. `22-1+7=` is right: 1 check. `20+7=` is wrong: 2
#    checks. The judge stops here.
# 3. *Try again.* The policy reads the problem and `22-1+7=`, and writes the next step eight times.
# 4. *Make the pair.* The judge reads these tries until one is right. The first try is `20+7=` again. The judge
#    knows this step, so it is no new check. The second try is `21+7=`. It is right: 3 checks.
# 5. *Train.* The loss above, on the tokens of `21+7=` and `20+7=`.

# %%
problems = arithmetic.problems("train", 2000, seed=1, levels=(arithmetic.LONG,))
train = [p.prompt for p in problems]
actor, reference = copy.deepcopy(start).requires_grad_(True), copy.deepcopy(start)
slow = loops.OptimiserConfig.plain(lr=1e-4)
optimizer = loops.make_optimizer(actor, slow)
one_step = replace(sampling, max_new_tokens=24)
generator = torch.Generator().manual_seed(0)

# %% [markdown]
# `known` holds every step that was checked in this update. So `len(known)` is the number of checks. `write_again` is
# the third part, *try again*.


# %%
def judge(known, prompt, before, step):
    """Whether a step is right, by a rule; before and step are token ids."""
    texts = tokenizer.batch_decode([before, step], skip_special_tokens=True)
    if (prompt, *texts) not in known:
        known[prompt, *texts] = arithmetic.right_step(prompt, *texts)  # one check
    return known[prompt, *texts]


def write_again(read):
    """After each row of token ids: eight tries to write the next step, as token ids."""
    ids, mask = models.left_padded(read)  # padding makes all rows equally long
    options = {"config": one_step, "samples_per_prompt": 8, "generator": generator}
    options["eos_id"] = ends  # sampling stops at the end of a step
    drawn = models.sample(actor, ids, mask, **options)
    rows = zip(drawn.response_ids, drawn.response_mask)
    tries = [ids[is_token].tolist() for ids, is_token in rows]  # without padding
    return [tries[k : k + 8] for k in range(0, len(tries), 8)]


# %% [markdown]
# In the update, `steps_of` cuts sampled ids into steps, after each id in `ends`. `encode` takes a response in parts, and
# `False` marks a part that is only read.


# %%
def step_dpo(prompts):
    # 1. One response to each prompt.
    ids, mask = models.encode_prompts(tokenizer, prompts)
    options = {"config": sampling, "generator": generator}
    batch = models.sample(actor, ids, mask, eos_id=eos, **options)
    # 2. The first wrong step of each response, and the right steps before it.
    wrong, known = [], {}
    for prompt, steps in zip(prompts, models.steps_of(batch, ends)):
        before = []
        for step in steps:
            if not judge(known, prompt, before, step):
                wrong.append((prompt, before, step))
                break
            before = before + step
    # 3. The policy writes this step again, eight times.
    tries = write_again([tokenizer(p).input_ids + before for p, before, _ in wrong])
    # 4. A pair: the first right try, and the wrong step. False: read, not learned.
    asked, chosen, rejected = [], [], []
    for (prompt, before, step), eight in zip(wrong, tries):
        good = next((x for x in eight if judge(known, prompt, before, x)), None)
        if good is not None:
            asked.append(prompt)
            chosen.append([(before, False), (good, True)])
            rejected.append([(before, False), (step, True)])
    both = (asked + asked, chosen + rejected)  # chunk(2) below takes them apart
    # No EOS is added. A response's last step keeps the EOS that the policy wrote.
    pairs = models.encode(tokenizer, *both, append_eos=False)
    # 5. DPO on the tokens of the step.
    own = pairs.action_mask
    logprobs = core.sequence_logprobs(models.policy_logprobs(actor, pairs), own)
    with torch.no_grad():
        ref = core.sequence_logprobs(models.policy_logprobs(reference, pairs), own)
    losses = core.dpo(*logprobs.chunk(2), *ref.chunk(2), beta=0.1)
    losses.mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    counts = {"wrong": len(wrong), "pairs": len(asked), "checks": len(known)}
    return {"loss": losses.mean().item()} | counts


# %%
updates = 2 if FAST else 4  # FAST=1 is for the tests of this page
order = list(loops.shuffled_batches(len(train), 32, updates, seed=0))
log = [step_dpo([train[i] for i in index]) for index in order]
trained = copy.deepcopy(actor)  # exercise 4 compares its weights with these
pd.DataFrame(log).round(3)

# %% [markdown]
# Each row is an update of 32 problems. A wrong step without a right try gives no pair. The first loss is $\log 2$ =
# 0.693, as for every DPO that starts at its reference. The later losses are above it. Why? The changed
# policy has just written both steps of a pair. But in the place of a mistake it can write several wrong steps, and
# nearly always only one right step. We believe that this is the reason: wrong steps whose probability has risen are
# drawn more often, and the right step is the same, whether its probability has risen or fallen. In the runs of
# section 3 the right answers do fall first, and rise later.
#
# The package's loop is `train_step_dpo`. With its `plain` settings it leaves the same weights, and it counts the same
# checks. (You can skip this cell.)

# %%
dpo = {"steps": updates, "batch_size": 32, "beta": 0.1, "optimiser": slow}
dpo = loops.DPOConfig.plain(**dpo, max_response=96, append_eos=False)
given = {"step_end": "=", "tries": 8, "max_step": 24, "sampling": sampling}
config = loops.StepDPOConfig(**given, dpo=dpo)
other = copy.deepcopy(start).requires_grad_(True)
_, history = loops.train_step_dpo(
    other, tokenizer, train, arithmetic.right_step, config
)
assert models.same_weights(trained, other)
assert [row["labels"] for row in history] == [row["checks"] for row in log]

# %% [markdown]
# ## 3. What did a check buy?
#
# Is a check better spent on a step or on a final answer? `minirlhf experiment steps` compares two ways to spend about
# 290 checks in each update:
#
# - **Step-DPO**, as in section 2, but with 64 problems in an update instead of 32.
# - **DPO on whole responses.** A pair is a right and a wrong response to the same problem. Two responses to each of
#   146 problems have 292 final answers to check.
#
# Both take 200 updates with the same learning rate, on three seeds. In brackets are 95 % intervals, for other problems
# and other seeds.
#
# **Predict.** Which of the two has more right answers at the end?

# %% tags=["predict"]
runs = experiments.results("steps")
difference = experiments.difference_over_prompts_and_seeds
gains = difference(runs, "pass_1", "start")
lead = difference(runs, "pass_1", "step dpo", "whole responses")
gains.loc["whole responses minus step dpo"] = lead.iloc[0]
experiments.with_interval(gains).to_frame("difference in right answers")

# %% [markdown]
# <details><summary>What you should see</summary>
#
# **Whole responses win.** At the start 0.62 of the answers are right. Whole responses gain 0.084, and Step-DPO
# gains 0.053. The interval of the difference does not contain 0.
#
# **Compare the price of a pair.** This is one update at the start:
#
# | | Step-DPO | whole responses |
# |---|---|---|
# | problems | 64 | 146 |
# | checks of responses | 254 | 292 |
# | checks of tries | 35 | none |
# | pairs | 26 | 54 |
# | checks for a pair | 289 / 26 = 11 | 292 / 54 = 5.4 |
#
# (Two responses are a pair if exactly one is right. That happens for 0.37 of the problems.)
#
# **Per check, whole responses win**: they give twice as many pairs. **Per pair we cannot tell.** With about 5,000 pairs
# each (at the price of the start), both have about 0.67 right answers. (For whole responses this is after 100 updates,
# measured with one sample for each problem. Step-DPO has made 200.) Equal pairs *and* updates we did not measure.
#
# Lai et al. report that steps win. Longer responses may be one reason: most steps of a long wrong response can be
# right, but DPO on whole responses rejects them all.
# </details>

# %% [markdown]
# ## 4. Labels without people
#
# Who checks the steps? For arithmetic a rule can. Often there is no such rule, but the *final answer* is known.
# **Math-Shepherd** (Wang et al. 2024) makes **labels** of steps from it: numbers that a model is then trained to
# predict.
#
# Let the policy finish the response $N$ times from the end of a step. The share of these *continuations* that reach
# the right answer is the label of the step. It estimates the value $V$ of lesson 05. After the last step nothing is
# left to continue: its label is 1 if the answer is right, and 0 if it is wrong.


# %%
short = replace(sampling, max_new_tokens=47)  # the policy reads at most 128 tokens


def labels_of(prompt, steps, count):
    # 1. Read the problem and the first k steps. After the last step nothing follows.
    before = ["=".join(steps[:k]) + "=" for k in range(1, len(steps))]
    ids, mask = models.encode_prompts(tokenizer, [prompt + text for text in before])
    # 2. Sample `count` continuations of each.
    options = {"config": short, "samples_per_prompt": count, "generator": generator}
    drawn = models.sample(start, ids, mask, eos_id=eos, **options)
    # 3. The share with the right answer. The last step: 1 or 0.
    texts = models.decode(tokenizer, drawn)
    right = rewards.right_answer([prompt] * len(texts), texts)
    shares = torch.tensor(right).view(-1, count).mean(1).tolist()
    return shares + rewards.right_answer([prompt], ["=".join(steps)])


# %% [markdown]
# **By hand.** After `4*5+13+3-8=20+13+3-8=33+3-8=`, 59 of 64 continuations end in 28, the right answer. So the label of
# the step `33+3-8=` is 59/64 = 0.92.
#
# The next cell labels two responses. In the first, the third step is wrong: it should be `36-8`, and not `39-8`. In
# the second, only the last step is wrong.
#
# **Predict.** How does the label run along each response?

# %% tags=["predict"]
asked = ["4*5+13+3-8=", "8+17-13+13-15+10-19="]
written = [
    "20+13+3-8=33+3-8=39-8=31",
    "25-13+13-15+10-19=12+13-15+10-19=25-15+10-19=10+10-19=20-19=11",
]
generator = torch.Generator().manual_seed(0)
both = zip(asked, written)
first, second = [labels_of(prompt, y.split("="), 64) for prompt, y in both]
steps = [f"step {k}" for k in range(1, 7)]
table = pd.DataFrame({"first": pd.Series(first), "second": pd.Series(second)})
table.round(2).T.set_axis(steps, axis=1)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# - In the first response the label falls from above 0.9 to 0 at the wrong step. From `39-8=` no continuation
#   reaches the right answer, 28.
# - In the second response the labels are low *from the start*, between 0.06 and 0.20, although the first five
#   steps are right. This policy rarely solves this problem.
# </details>
#
# So **a label by continuation says how likely this policy is to succeed from here. It does not say whether the
# step is right.** But the *change* from one step to the next is useful. We labelled 400 wrong responses, with 8
# continuations of each step, and compared two rules. "Blame the step with the largest fall" finds the first wrong step
# in more than three of four responses. "Blame the first step with a label below one half" finds it in only 0.57.
#
# Each new response costs these checks again. A trained model costs none.
#
# The package's function, `continuation_labels`, gives the same labels:

# %%
options = {"step_end": "=", "count": 64, "sampling": sampling}
options |= {"generator": torch.Generator().manual_seed(0)}
for prompt, response, labels in zip(asked, written, [first, second]):
    batch = models.encode(tokenizer, [prompt], [response])
    given = loops.continuation_labels(
        start, tokenizer, [prompt], batch, rewards.right_answer, **options
    )
    assert given[0]["labels"] == labels

# %% [markdown]
# ## 5. A process reward model
#
# A causal model never reads ahead. So its last hidden state at the end of step $s$ depends on this step and those
# before it. Call this state $u_s$. A linear head turns it into a number, $z_s = w \cdot u_s + b$. One forward pass
# gives the numbers of all steps.
#
# $\sigma(z_s)$ is the model's probability that the step is good. With labels $y_s$ from 0 to 1 the loss is the
# cross-entropy:
#
# $$ -y_s \log \sigma(z_s) - (1 - y_s) \log \sigma(-z_s) . $$
#
# **By hand.** For a step with $\sigma(z) = 0.8$ the loss is $-\log 0.8$ = 0.22 if $y = 1$, and
# $-\log 0.2$ = 1.61 if $y = 0$.
#
# We train on 400 sampled responses, without those that have an empty step, as in `20+7==27`. Here the rule gives the
# labels, because they are exact: 1 for a right step, 0 for a wrong one. The rule stops at the first wrong step, so later
# steps have no label, `None`:

# %%
some = train[:400]
drawn = models.sample_text(start, tokenizer, some, config=sampling, batch_size=400)[0]
texts = models.decode(tokenizer, drawn)
pairs = [pair for pair in zip(some, texts) if all(pair[1].split("="))]
rows = [arithmetic.labelled_steps(*pair) for pair in pairs]

torch.manual_seed(0)  # the weights of the new head
scorer = models.ScalarModel(copy.deepcopy(start).requires_grad_(True).base_model)
fast = loops.OptimiserConfig.plain(lr=1e-3)
optimizer = loops.make_optimizer(scorer, fast)
arithmetic.labelled_steps("12+10-1+7=", "22-1+7=20+7=27")

# %% [markdown]
# `step_logits` gives $z_s$, a row for each response, and the mask `is_step` of the steps that exist. The labels are put
# at these places, row by row. `rated` is true at the steps that have a label. The loss is the mean over these.


# %%
def prm_update(some):
    responses = ["=".join(row["completions"]) for row in some]
    batch = models.encode(tokenizer, [row["prompt"] for row in some], responses)
    logits, is_step = models.step_logits(scorer, batch, ends)
    nan = float("nan")  # stands for None
    given = [nan if y is None else y for row in some for y in row["labels"]]
    labels = torch.zeros_like(logits)
    labels[is_step] = torch.tensor(given)  # both go row by row
    rated = is_step & ~labels.isnan()
    losses = core.process_reward_loss(logits, labels, rated)
    loss = core.aggregate(losses, rated)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


# %% [markdown]
# The package's loop is `train_prm`. It leaves the same weights.

# %%
updates = 4 if FAST else 60
batches = loops.shuffled_batches(len(rows), 32, updates, seed=0)
losses = [prm_update([rows[i] for i in index]) for index in batches]

prm = loops.PRMConfig(step_end="=", steps=updates, batch_size=32, optimiser=fast)
backbone = copy.deepcopy(start).requires_grad_(True).base_model
other, _ = loops.train_prm(backbone, tokenizer, Dataset.from_list(rows), prm)
assert models.same_weights(scorer, other)

# %% [markdown]
# ## 6. What must the model see?
#
# **Predict.** The trained model reads the calculation of section 1. Which $\sigma(z)$ does it give to the second
# step, the wrong one?

# %% tags=["predict"]
batch = models.encode(tokenizer, ["12+10-1+7="], ["22-1+7=20+7=27"])
with torch.no_grad():
    logits, _ = models.step_logits(scorer, batch, ends)
names = ["first step", "second step", "third step"]
pd.DataFrame(logits.sigmoid().numpy(), columns=names, index=["sigma(z)"]).round(2)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# All three get more than 0.9, the wrong one too. Of the labels, 0.90 say "right". The model has learned that most
# steps are right, and nothing about *this* step.
# </details>
#
# To judge `20+7=`, a model has to calculate `22-1`, and to compare. The policy does both when it writes: after the `2`
# it expects a `1`, and finds the `0` unlikely. Why does the head not see this? It reads the hidden state at the
# *end* of the step, at `=`. This state serves to predict the next token. Nothing made the policy keep in it how
# unlikely the `0` was. Why did 60 updates not change that? We believe that a model needs many texts to learn to
# calculate. The policy had 60,000 solutions, and these updates have 400 responses.
#
# *Another output* shows this: the log-probabilities. Here is the lowest one of a token in each step:

# %%
with torch.no_grad():
    logprobs = models.policy_logprobs(start, batch)[0]
in_steps = logprobs.split([7, 5, 3])  # "22-1+7=", "20+7=", and "27" with EOS
lowest = [part.min().item() for part in in_steps]
pd.DataFrame([lowest], columns=names, index=["lowest log-probability"]).round(2)

# %% [markdown]
# The `0` of `20` has the log-probability −4.58, and all other tokens have more than −0.05. Let $l_s$ be the lowest
# log-probability of a token in step $s$. The head gets it as one more input:
#
# $$ z_s = w \cdot u_s + a\, l_s + b . $$
#
# Only $w$, $a$ and $b$ are trained, on the same 400 responses. The policy stays as it is.
# `models.WithLogprobs` does this.
#
# **Predict.** What do the three steps get now?

# %% tags=["predict"]
head = loops.OptimiserConfig.plain(lr=1e-2)
prm = replace(prm, steps=4 if FAST else 50, optimiser=head)
backbone = models.WithLogprobs(start, ends)
reader, _ = loops.train_prm(backbone, tokenizer, Dataset.from_list(rows), prm)
with torch.no_grad():
    also, _ = models.step_logits(reader, batch, ends)
both = torch.cat([logits, also]).sigmoid().numpy()
index = ["text alone", "log-probabilities too"]
pd.DataFrame(both, columns=names, index=index).round(2)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# The second step falls to 0.00, and the two others get more than 0.9.
# </details>

# %% [markdown]
# ## 7. Finding the wrong step
#
# Was that a lucky example? `minirlhf experiment process_rewards` takes 400 of the policy's wrong responses. In each, a
# model blames the first step with $\sigma(z) < \frac12$. If there is none, it blames the step with the lowest
# $\sigma(z)$. We count how often the blamed step is the first wrong one.
#
# All models train on labels of the rule. *Whole model* trains all weights, as in section 5, but with 12,700 checks
# (3,200 responses). *Head only* leaves the policy as it is, as in section 6. In brackets are the lowest and the
# highest of three seeds. The last row but one has no reward model: it blames the step with the policy's least likely
# token.
#
# **Predict.** Which rows find more than a random step does?

# %% tags=["predict"]
runs = experiments.results("process_rewards")
rows_of = {
    "labels of the rule": "whole model, text alone, 12,700 checks",
    "head only, text alone": "head only, text alone, 1,000 checks",
    "log-probabilities too, 100 checks": "head only, log-probabilities too, 100 checks",
    "log-probabilities too, 1,000 checks": "the same, 1,000 checks",
    "no reward model": "no reward model: the step with the least likely token",
}
# the record's column "own": how often the policy's own first mistake is found
found = experiments.shown(runs, {"own": "first wrong step found"})
found = found.loc[list(rows_of)].rename(rows_of)
found.loc["a random step"] = f"{runs.chance_own.mean():.2f}"
found

# %% [markdown]
# <details><summary>What you should see</summary>
#
# - **With log-probabilities, the model finds the wrong step.** With 100 checks it finds 0.87 of them, and with
#   1,000 checks 0.93.
# - **From the text alone it hardly does.** 12,700 checks find 0.25, and a random step 0.20. The head alone finds
#   0.20, too. It trains on the same 1,000 checks as the model that finds 0.93. Only the input is missing.
# - **The policy knew most of it.** Its least likely token, without any label, finds 0.85. Where this fails, the token
#   mostly stands in a *later* step. Labels say how unlikely is *too* unlikely. So the *first* such step can be blamed.
# </details>
#
# **The limit:** a mistake that the policy *believes* is not unlikely, so this model cannot see it. The `20-19=11` of
# section 4 is one.

# %% [markdown]
# ## What to remember
#
# - **Step-DPO** pairs the first wrong step with a right one that the policy writes in its place. The steps
#   before are read and not learned, and a step gets no EOS.
# - Compare at equal numbers of checks. Here whole responses won: a pair of steps costs twice as many checks.
# - A **label by continuation** is the chance that this policy still succeeds. A fall of the label shows the
#   bad step, not a low label.
# - A **process reward model** gives each step a probability, in one pass.
# - A reward model must be able to see what it judges. From the text alone, 12,700 checks taught little. The
#   policy's least likely token finds 0.85 of the wrong steps without any check. With log-probabilities as an
#   input, 100 checks raise this to 0.87, and 1,000 to 0.93.
#
# ## Exercises
#
# Exercises 1, 2, 3 and 5 have a checker. Exercise 4 compares your numbers with those of section 2. Exercise 6 has a
# folded answer. Solutions are in `solutions/15b_feedback_on_steps.ipynb`.

# %% [markdown] tags=["exercise"]
# **1. What did each step change?** *(easy, 10 minutes)*. In section 4 the labels of the second response are low at
# every step. Better: how much does each step *change* the chance of success? `chances` (B, S)
# has the chance after each step, as the labels estimate it. `at_start` (B,) has the chance before the
# first step. `step_mask` (B, S) is true at the steps that exist. Return the change that each step
# makes, (B, S), with 0 where there is no step. Where the mask is false, `chances` can be NaN.
#
# Then apply it to the labels of section 4, `first` and `second`. Before the first step, 57 of 64 responses to the
# first problem were right, and 10 of 64 to the second. Which step of the second response does it blame? How sure is
# that? (A share $p$ of $N$ has the standard error $\sqrt{p (1 - p) / N}$. For the difference of two shares, add the
# squares of their standard errors, and take the root.)
#
# *Hint:* the chance before a step is the one after the step before it. NaN times 0 is NaN, so choose
# with `torch.where`.


# %% tags=["exercise"]
def progress_of_steps(chances, at_start, step_mask): ...  # your code


check.progress_of_steps(progress_of_steps)

# %% [markdown] tags=["exercise"]
# <details><summary>Answer: which step, and how sure?</summary>
#
# The changes of the second response are +0.05, −0.03, −0.11, +0.12, −0.05 and −0.14. The largest fall is at the last
# step, the wrong one.
#
# - *The last change is clear.* The label before it is 9 of 64, 0.14, with a standard error of 0.04. The label after
#   it has no error, because the answer itself is checked. So the fall is more than three times its standard error.
# - *The others are not.* The largest of them, +0.12, goes from 4 of 64 to 12 of 64. The standard errors are 0.03 and
#   0.05, and that of the change is 0.06. Of five changes, one that is about twice its standard error can be chance.
# </details>


# %% tags=["solution"]
def progress_of_steps(chances, at_start, step_mask):
    before = torch.cat([at_start[:, None], chances[:, :-1]], 1)
    return torch.where(step_mask, chances - before, 0.0)


check.progress_of_steps(progress_of_steps)

# %% [markdown] tags=["solution"]
# The changes of a response add up to its outcome minus the chance at its start. So this is the outcome,
# divided among the steps. It is the advantage of lesson 05 with one step as the action. The chance before the
# step is $V$, the one after it is $Q$ of this step, and the change is $Q - V$.

# %% tags=["solution"]
nan = float("nan")  # section 4: how many of 64 continuations were right
right = [[59, 59, 0, 0, nan, nan], [13, 11, 4, 12, 9, 0]]
chances, at_start = torch.tensor(right) / 64, torch.tensor([57, 10]) / 64
changes = progress_of_steps(chances, at_start, ~chances.isnan())
pd.DataFrame(changes.numpy(), ["first", "second"], range(1, 7)).round(2)

# %% [markdown] tags=["solution"]
# In the first response the third step changes the chance by −0.92, and no other by more than 0.05. The answer for the
# second response is in the exercise.

# %% [markdown] tags=["exercise"]
# **2. Which pairs?** *(medium, 15 minutes)*. This is the heart of Step-DPO. `right` (B, S) says whether each step
# is right, and `step_mask` (B, S) whether it exists. Let $K$ of the B responses have a wrong step. In each of them the
# policy went back to the place of the *first* wrong step, and made `count` new tries at this step. `tries_right`
# (K · `count`,) says which of these tries are right: the first `count` belong to the first of the $K$ responses, the
# next `count` to the second, and so on.
#
# Return the pairs, whole numbers (B, 2): which step is rejected, and which of its tries is chosen, the first
# right one. Both count from 0. A response without a pair has −1, −1.
#
# *Example* with `count` = 2. Of three responses two have a wrong step, so there are four tries, `[F, T, F, F]` (T is
# True, F is False). All steps exist.
#
# | `right` | its tries | pair |
# |---|---|---|
# | `[T, T, F]` | `[F, T]` | `[2, 1]` |
# | `[T, T, T]` | none | `[-1, -1]` |
# | `[T, F, F]` | `[F, F]`, none is right | `[-1, -1]` |
#
# *Hint:* a response without a wrong step has no tries. Where `step_mask` is false, `right` can be anything.


# %% tags=["exercise"]
def pairs_of(right, step_mask, tries_right, count): ...  # your code


check.pairs_of(pairs_of)


# %% tags=["solution"]
def pairs_of(right, step_mask, tries_right, count):
    pairs = torch.full((len(right), 2), -1)
    tries = iter(tries_right.split(count))
    for i, wrong in enumerate(~right & step_mask):
        if wrong.any():
            good = next(tries)
            if good.any():
                pairs[i, 0], pairs[i, 1] = wrong.int().argmax(), good.int().argmax()
    return pairs


check.pairs_of(pairs_of)

# %% [markdown] tags=["exercise"]
# **3. How many checks?** *(medium, 15 minutes)*. A reader goes through a response step by step and
# stops at the first wrong one. `right` (B, S) says whether each step is right, and `step_mask` (B, S)
# whether it exists. Return how many steps are read in each response, (B,).
#
# Then think: as a policy gets better, does one response need more checks or fewer? Does a pair?
#
# *Hint:* a step is read if there is no wrong one *before* it. `cumsum` counts.
#
# <details><summary>Answer</summary>
#
# A response needs *more* checks, because its first wrong step comes later or never. For a pair two numbers change:
#
# - More responses are read for each pair, because fewer have a wrong step.
# - Fewer tries may be read, because a right one comes sooner.
#
# At the start (the table of section 3) the tries are only 35 of 289 checks. So fewer tries can save little, and a pair
# gets more expensive while the policy improves.
# </details>


# %% tags=["exercise"]
def steps_read(right, step_mask): ...  # your code


check.steps_read(steps_read)


# %% tags=["solution"]
def steps_read(right, step_mask):
    wrong = (~right & step_mask).long()
    wrong_before = wrong.cumsum(1) - wrong
    return (step_mask & (wrong_before == 0)).sum(1)


check.steps_read(steps_read)

# %% [markdown] tags=["exercise"]
# **4. The whole step on an empty page** *(hard, 30 minutes)*. Close section 2. Write `step_dpo` from memory, under
# the name `my_step`: its five parts are sample, find the first wrong step, try again, make the pairs, train with
# $\beta = 0.1$. Return the mean loss and the number of checks. The last cell runs the updates of section 2 again and
# compares.
#
# Use `judge(known, prompt, before, step)` and `write_again(read)` of section 2. `tokenizer(prompt).input_ids` are the ids
# of a prompt. You also need `models.encode_prompts`, `models.sample`, `models.steps_of(batch, ends)`, `models.encode`,
# `models.policy_logprobs`, `core.sequence_logprobs` and `core.dpo`. `help(models.encode)` tells you the arguments of
# a function. Sample with `sampling` and `generator`.
#
# <details><summary>My numbers differ. Where do I look?</summary>
#
# - The first loss is not $\log 2$: the four log-probabilities, or their order.
# - The first number of checks is too high: is the judge asked after the first wrong step, or after the first right
#   try? Too low: are the tries judged with the same `known`, in their order? Only later ones are too high: does each
#   update start with an empty `known`?
# - Loss and checks of the first update agree, and the second loss differs. If it is below the first, chosen and
#   rejected are exchanged. Else: are the steps before left out? Is there an EOS too many?
# - It differs only in the seventh digit: is `before` marked `True`? Both steps of a pair have the same steps before, so
#   these cancel in the loss, but for rounding.
# - The second loss agrees, and the third differs: the gradients are not set to zero.
# - The losses agree, and the weights do not: the last update.
# </details>


# %% tags=["exercise"]
def my_step(prompts): ...  # your code


# %% [markdown] tags=["solution"]
# `step_dpo` in section 2 of the lesson is the solution. If your weights differ, compare the two line by line.

# %% tags=["exercise"]
actor, reference = copy.deepcopy(start).requires_grad_(True), copy.deepcopy(start)
optimizer = loops.make_optimizer(actor, slow)
generator = torch.Generator().manual_seed(0)
mine = [my_step([train[i] for i in index]) for index in order]
for here, there in zip(mine, log):
    print("section 2:", there["loss"], there["checks"], "my_step:", here)
print("the weights are equal:", models.same_weights(actor, trained))

# %% [markdown] tags=["exercise"]
# **Then predict.** A colleague trains by *imitation*: supervised fine-tuning on the chosen steps that section 2 makes.
# The figure has the share of right answers and the number of steps in a response, on 200 problems. After ten
# updates nothing is right. *Mended* is the same run without her fault. What is the fault? She then makes the same fault in Step-DPO. Will
# the curves look the same?

# %% tags=["exercise"]
right_answers = {
    "colleague": [0.59, 0.52, 0.165, 0.015, 0.005, 0.0],
    "mended": [0.59, 0.48, 0.505, 0.515, 0.545, 0.515],
}
written_steps = {
    "colleague": [4.79, 4.775, 3.805, 2.685, 2.45, 2.45],
    "mended": [4.79, 4.79, 4.8, 4.795, 4.81, 4.82],
}
panels = {"share of right answers": right_answers}
panels |= {"steps of a response": written_steps}
show.lines(panels, range(0, 11, 2), xlabel="update")

# %% [markdown] tags=["exercise"]
# <details><summary>Answer</summary>
#
# *Imitation.* She forgot `append_eos=False`, so every chosen step ends with EOS. The policy learns to end its response
# after any right step. (The last step of a response keeps the EOS that the policy wrote there.)
#
# *The mended run* ends below its start, too: 0.515 after 0.59. The learning rate is too high for imitation. We repeated
# this run with 60 updates, on 600 problems. With the same learning rate the right answers fall from 0.67 to 0.50. With
# a tenth of it they stay at 0.67. (One run each.)
#
# *Step-DPO* hardly shortens the responses. *Both* steps of a pair have the EOS. What the chosen one pushes up, the
# rejected one pushes down, so little remains. A loss that takes differences can hide a fault.
# </details>

# %% [markdown] tags=["exercise"]
# **5. Find the bug: the reward model that likes everything** *(medium, 15 minutes)*. Another colleague
# has money for one check in each response. A step is picked at random and checked. For the other steps
# he writes −100, "no label", as many libraries do. He trains the model that also reads
# log-probabilities (section 6). In training it looks as accurate as the mended one. But it likes wrong steps,
# too, as the table shows. What is wrong in his loss? Mend it.
#
# `logits` and `labels` (B, S), `step_mask` (B, S). A label is −100 or a number from 0 to 1. Return the
# loss of each step, (B, S), with 0 where a step does not exist or has no label.
#
# *Hint:* there are four kinds of labels: −100, 0, 1 and a number between 0 and 1. Which loss should each have?


# %% tags=["exercise"]
measured = {
    "colleague": [0.97, 0.98, 0.89],
    "mended": [0.97, 0.95, 0.22],
}
index = ["training: sigma(z) and the label on the same side of 1/2 (share)"]
index += [
    "mean sigma(z), held out: right steps",
    "mean sigma(z), held out: wrong steps",
]
pd.DataFrame(measured, index=index)


# %% tags=["exercise"]
def loss_of_labelled_steps(logits, labels, step_mask):
    good = labels.bool().float()
    losses = -good * logsigmoid(logits) - (1 - good) * logsigmoid(-logits)
    return torch.where(step_mask, losses, 0.0)


check.loss_of_labelled_steps(loss_of_labelled_steps)


# %% [markdown] tags=["solution"]
# `bool` makes True of everything but 0, so −100 counts as *good*, and 0.25 as 1. Most wrong steps were not picked,
# and the model learns that they are good. It still looks accurate, because nearly all of its labels are
# now 1. TRL's first trainer of process reward models had this fault.


# %% tags=["solution"]
def loss_of_labelled_steps(logits, labels, step_mask):
    rated = step_mask & (labels != -100)
    z, y = torch.where(rated, logits, 0.0), torch.where(rated, labels, 0.0)
    losses = -y * logsigmoid(z) - (1 - y) * logsigmoid(-z)
    return torch.where(rated, losses, 0.0)


check.loss_of_labelled_steps(loss_of_labelled_steps)

# %% [markdown]
# **6. Read the data** *(medium, 10 minutes)*. In some public data a person saw several *alternatives*
# for the next step, rated each, and one of them was taken. A colleague makes one text of a record by
# joining everything. What does his process reward model read, and what is wrong with it? Write down
# the rows that you would make: how many, and with which labels? May a step get the same label in two rows?

# %%
record = {
    "prompt": "12+10-1+7=",
    "steps": [
        {"alternatives": ["22-1+7", "21-1+7"], "ratings": [1, 0], "taken": 0},
        {"alternatives": ["20+7", "21+7"], "ratings": [0, 1], "taken": 1},
        {"alternatives": ["28"], "ratings": [1], "taken": 0},
    ],
}
"=".join(text for step in record["steps"] for text in step["alternatives"])

# %% [markdown]
# <details><summary>Answer</summary>
#
# *What he reads.* The alternatives look like *consecutive* steps: `22-1+7=21-1+7=20+7=21+7=28`. In this text `21-1+7`
# seems to follow from `22-1+7`, although nobody wrote it there. The model learns to judge a step after a
# step that was thrown away, and never sees that at test time. (A public teaching code has this fault.)
#
# *The rows.* One for every alternative. Its text is the steps that were *taken* before it, and then the alternative.
# That makes five rows:
#
# | text | labels |
# |---|---|
# | `22-1+7` | 1 |
# | `21-1+7` | 0 |
# | `22-1+7=20+7` | None, 0 |
# | `22-1+7=21+7` | None, 1 |
# | `22-1+7=21+7=28` | None, None, 1 |
#
# *Three rows are right, too*: `22-1+7=21+7=28` with the labels 1, 1, 1, and a row for each alternative that was not
# taken, `21-1+7` and `22-1+7=20+7`. They have the same five labels.
#
# *A step with its label in two rows* is not false, but it counts more often in the loss. With 1 in the place of each
# None of the five rows, the first step would count four times. So give each label once, and None elsewhere.
# </details>

# %% [markdown]
# ## Questions
#
# <details><summary>1. Is a step that does not follow, but leads to the right answer, a good step?</summary>
#
# By the rule it is wrong. By continuations it can have a high label: the policy may correct itself. The
# two kinds of labels answer two questions.
# </details>
#
# <details><summary>2. My labels come from continuations of a weak policy. What happens if I use them for a strong one?</summary>
#
# They are too low, and lowest where the weak policy is weak. A label by continuation belongs to the
# policy that made it.
# </details>
#
# <details><summary>3. Can I use a process reward model as the reward of PPO or GRPO?</summary>
#
# Yes, with care. If the score is a *sum* over steps of positive numbers, the policy learns to write more
# steps. Minimum and product do not pay for length. And the policy will find what the model likes by
# mistake, as with every learned reward (lesson 07).
# </details>
#
# ## Going further
#
# **The curves of section 3.** Share of right answers, on the way:

# %%
history = experiments.results("steps_history").rename(columns={"step": "update"})
titles = {"right": "share of right answers"}
show.curves(history, columns="right", x="update", labels=titles)

# %% [markdown]
# - **Both fall first.** After 20 updates both have fewer right answers than the start, on every seed. We
#   believe that the first updates are mostly noise: Adam's first updates move every weight by about the learning
#   rate, however small its gradient is.
# - **At about 5,000 pairs**, Step-DPO is at its end and whole responses are at update 100 (section 3).
# - **Believe section 3's table, not the ends of the curves.** It has sixteen responses to each of 400 problems, a
#   point of a curve has one.
# - **With greedy decoding the two are nearly equal:** 0.90 and 0.89.
#
# **What is not equal in section 3.** Checks, updates and learning rate are equal. Pairs and sampled tokens are not. The
# learning rate was chosen by single runs on other problems, most of them with Step-DPO. And final answers are often
# free, because a rule knows them. Then the comparison favours whole responses even more.
#
# **Who writes the chosen step?** The policy itself. To raise the probability of a step that it would never write
# hardly changes what it does write (lesson 14).
#
# **Hard labels.** The share of right continuations is called the *soft* label. The *hard* label is 1 if any
# continuation is right, and 0 otherwise. Let $p$ be the chance that one is right. The mean soft label is $p$. The
# mean hard label is $1 - (1 - p)^N$. For $p = 0.1$ and $N = 8$ it is 0.57, and for $N = 64$ nearly 1. So for large
# $N$ hard labels only tell *impossible* from *possible*.
#
# **One score for a response.** To compare *responses* we need one number for each. Suppose the steps have the
# probabilities 0.9, 0.2 and 0.9:
#
# | way | score | here |
# |---|---|---|
# | **last** | that of the last step | 0.9 |
# | **min** | that of the worst step | 0.2 |
# | **product** | all multiplied | 0.16 |
#
# *min* and *product* prefer short responses: a further step cannot raise them. *last* can miss a mistake. The third step
# of section 1 follows from the second, so a model can find it good, and *last* reads only this score.
#
# **Picking a response.** The experiment of section 7 has more reward models than its table. The first five train the
# whole model in 400 updates, the others the head in 100 updates.
#
# - *Soft labels* and *hard labels* are made with 8 continuations of each step. A response of three steps costs 8 + 8 +
#   1 = 17 checks.
# - *Outcomes* trains on these 17 responses instead: the sampled one and its continuations. Only the last step has a
#   label, 1 if the answer is right. With *outcomes at every step* each step has this label.
# - All others train on labels of the rule.
#
# Each held-out problem has 16 responses. How often is the one with the highest score right?

# %%
columns = {"best_last": "pick, last", "best_min": "pick, min"}
table = experiments.shown(runs[runs.variant != "no reward model"], columns)
checks = [*["12,700"] * 5, "100", "1,000", "1,000"]
responses = ["400", "400", "12,700", "12,700", "3,200", "26", "250", "250"]
table.insert(0, "checks", checks)
table.insert(1, "responses", responses)
table

# %% [markdown]
# - **A judge that knows nothing picks worse than a random response.** A random response is right in 0.60 of the
#   cases. A *blind* judge gives a random score to each *text*. It picks a right one in 0.30. Why? Of 16 responses to the
#   first held-out problem 13 are right, and they all have the same text. The wrong ones have three different texts. So
#   the blind judge chooses among four texts, and takes the right one with the chance 1/4.
# - **The text alone teaches little.** Scored by the last step, none of the six models with the text alone picks a right
#   response more often than the blind judge does, in the mean. Scored by the worst step (*min*), two of them beat it on
#   every seed: outcomes at every step (0.38) and soft labels (0.37).
# - **Log-probabilities help here, too**, at *min*: 0.82 with 100 checks, and 0.84 with 1,000. *Head only* has the same
#   training without this input, and 0.31. *last* fails: a last step often follows, also behind a mistake.
# - **Labels add nothing for picking.** A majority vote over final answers has 0.84. The response that the policy finds
#   most likely is right in 0.86.
#
# The first five rows have equally many checks and updates, and one learning rate, which was not tuned. But 400 updates
# are 32 passes over the 400 responses of soft and hard labels, and 1 over the outcomes. With hard labels the loss in
# training has fallen to 0.00: the model knows its 400 responses by heart. With soft labels, and with outcomes at every
# step, *min* picks better than with hard labels. Papers report gains with the text alone.
# Their models are larger.
#
# **Finding the wrong step, once more.** The record also has right responses with one *planted* wrong digit.
#
# - The models that read log-probabilities find 0.92 of the planted mistakes with 100 checks, and 0.96 with 1,000. The
#   least likely token finds 0.82. Where it misses, it stands in a *later* step: after a mistake the calculation looks
#   strange to the policy.
# - The six models with the text alone find 0.18 to 0.27 of both kinds of mistakes. A random step finds 0.20 of the
#   policy's own and 0.21 of the planted ones.
#
# **The head in the package.** `models.WithLogprobs` adds $l_s v$ to the hidden state, with a learned vector
# $v$ that starts at 0. So $a = w \cdot v$. In section 6 the learned $a$ is about 5. So the digit with $l$ = −4.58
# takes 5 × 4.58 = 23 off the logit of its step.
#
# **Token-level DPO.** Zeng et al. 2024 keep pairs of whole responses and add a penalty on the KL
# divergence at each token (TDPO in lesson 14b). Their loss is finer, their feedback is not.
#
# **Where steps end.** Here `=` ends a step and is one token. In text a step often ends with a line break,
# and a tokenizer may have one token for "a full stop and a line break". `models.step_end_ids` therefore
# collects every token whose text ends in the end of a step. If prefix and step are tokenised apart, the
# tokens at their border can be other ones than those that were sampled. We keep the sampled ids.
#
# **What the libraries do.** The code published with Step-DPO has the line that appends EOS commented
# out. TRL's DPO appends one to plain text, so rows of steps must be prepared by hand. Its stepwise format
# (`prompt`, `completions`, `labels`) is the one that `train_prm` reads.
#
# **References.** Lai et al. 2024, *Step-DPO*. Wang et al. 2024, *Math-Shepherd* (equations 3 and 4: the
# labels). Lightman et al. 2023, *Let's verify step by step* (labels by people, *product*). Snell et al.
# 2024, *Scaling LLM test-time compute* (*last*). Zeng et al. 2024, *Token-level direct preference
# optimization*.
#
# *How this lab is checked:* the pairs, the labels and the loss are worked by hand in
# `tests/loops/test_step_dpo.py`, `tests/loops/test_process_reward_loop.py` and
# `tests/core/test_process_reward.py`. Every number about a recorded run is compared with the record, and
# the faulty runs of exercises 4 and 5 are repeated (`tests/claims/test_lesson_15b.py`).
