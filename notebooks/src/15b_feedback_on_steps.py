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
# and 15 (the action mask). About 30 minutes to read and 80 for the exercises.

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
# What does feedback on steps say that feedback on a whole response does not? Here is a calculation with one
# mistake:
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
# with `=`. The last step of a response ends with EOS, the end-of-sequence token. The policy's problems take four
# to six steps, and about nine of its steps in ten are right.

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
# How does one wrong step become something to train on? Take the mistake of section 1. Three pieces make a pair:
#
# | piece | text | in the loss? |
# |---|---|---|
# | problem, and the right steps before | `12+10-1+7=` `22-1+7=` | no, it is only read |
# | rejected: the wrong step, as the policy wrote it | `20+7=` | yes |
# | chosen: a right step that the policy wrote when it tried again | `21+7=` | yes |
#
# Let $x$ be the part that is only read, $c$ the chosen step and $r$ the rejected one. The loss is that of DPO
# (lesson 12), for one step:
#
# $$ -\log \sigma\big(\beta\, [\Delta(c) - \Delta(r)]\big), \qquad
# \Delta(s) = \log \pi(s \mid x) - \log \pi_\text{ref}(s \mid x) . $$
#
# In words: the right step shall gain more probability, compared with the reference policy, than the wrong one.
# $\log \pi(s \mid x)$ is the sum over the tokens of the step. A step is not the end of a response, so **no EOS is
# added after it**: `append_eos=False`.
#
# **By hand.** One update has five parts. Here is what they do with one response:
#
# 1. *Sample.* The policy writes a response: `22-1+7=20+7=27`.
# 2. *Find the first wrong step.* A judge reads step by step. `22-1+7=` is right: 1 check. `20+7=` is wrong: 2
#    checks. The judge stops here.
# 3. *Try again.* The policy reads the problem and `22-1+7=`, and writes the next step eight times.
# 4. *Make the pair.* The judge reads these tries until one is right. The first try is `20+7=` again. It is known
#    to be wrong, so it is no new check. The second try is `21+7=`. It is right: 3 checks.
# 5. *Train.* The loss above, on the tokens of `21+7=` and `20+7=`.
#
# That is one pair for 3 checks. A response without a mistake has all its steps checked and gives no pair. So the
# average pair costs more (section 3).
#
# Now the same in code. The judge here is a rule that knows arithmetic:

# %%
problems = arithmetic.problems("train", 2000, seed=1, levels=(arithmetic.LONG,))
train = [p.prompt for p in problems]
actor, reference = copy.deepcopy(start).requires_grad_(True), copy.deepcopy(start)
plain = loops.OptimiserConfig.plain(lr=1e-4)
optimizer = loops.make_optimizer(actor, plain)
one_step = replace(sampling, max_new_tokens=24)
generator = torch.Generator().manual_seed(0)


def judge(prompt, before, step):
    """Whether a step is right; before and step are token ids."""
    pieces = tokenizer.batch_decode([before, step], skip_special_tokens=True)
    return arithmetic.right_step(prompt, *pieces)


# %% [markdown]
# In the loop, `steps_of` cuts sampled ids into steps, at the ids in `ends` (`=` and EOS). `encode` takes a response
# in parts, and `False` marks a part that is only read. `sequence_logprobs` adds the log-probabilities of the tokens
# in the action mask. The chosen steps come first in the batch, then the rejected ones. `chunk(2)` takes them apart.


# %%
def step_dpo(prompts):
    # 1. One response to each prompt, in steps.
    ids, mask = models.encode_prompts(tokenizer, prompts)
    options = {"config": sampling, "generator": generator}
    batch = models.sample(actor, ids, mask, eos_id=eos, **options)
    # 2. The first wrong step of each response, and the right steps before it.
    wrong = []
    for prompt, steps in zip(prompts, models.steps_of(batch, ends)):
        before = []
        for step in steps:
            if not judge(prompt, before, step):
                wrong.append((prompt, before, step))
                break
            before = before + step
    # 3. It writes this step again, eight times; sampling stops at the step's end.
    read = [tokenizer(prompt).input_ids + before for prompt, before, _ in wrong]
    options |= {"config": one_step, "samples_per_prompt": 8}
    tries = models.sample(actor, *models.left_padded(read), eos_id=ends, **options)
    tries = [i[m].tolist() for i, m in zip(tries.response_ids, tries.response_mask)]
    # 4. A pair: the first right try, and the wrong step. False: read, not learned.
    asked, chosen, rejected = [], [], []
    for k, (prompt, before, step) in enumerate(wrong):
        eight = tries[8 * k : 8 * k + 8]
        good = next((x for x in eight if judge(prompt, before, x)), None)
        if good is not None:
            asked.append(prompt)
            chosen.append([(before, False), (good, True)])
            rejected.append([(before, False), (step, True)])
    both = (asked + asked, chosen + rejected)
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
    return {"loss": losses.mean().item(), "wrong": len(wrong), "pairs": len(asked)}


# %% [markdown]
# The package's loop is `train_step_dpo`. With its `plain` settings it leaves the same weights.

# %%
updates = 2 if FAST else 4  # FAST=1 is for the tests of this page
order = loops.shuffled_batches(len(train), 32, updates, seed=0)
log = [step_dpo([train[i] for i in index]) for index in order]

dpo = {"steps": updates, "batch_size": 32, "beta": 0.1, "optimiser": plain}
dpo = loops.DPOConfig.plain(**dpo, max_response=96, append_eos=False)
given = {"step_end": "=", "tries": 8, "max_step": 24, "sampling": sampling}
config = loops.StepDPOConfig(**given, dpo=dpo)
other = copy.deepcopy(start).requires_grad_(True)
loops.train_step_dpo(other, tokenizer, train, arithmetic.right_step, config)
assert models.same_weights(actor, other)
pd.DataFrame(log).round(3)

# %% [markdown]
# A wrong step without a right try gives no pair. The first loss is $\log 2$ = 0.693, as for every DPO that starts at
# its reference. Then it rises: the first updates do harm, and training recovers later ("Going further" has the
# curves).

# %% [markdown]
# ## 3. What did a check buy?
#
# Is a check better spent on a step or on a final answer? `minirlhf experiment steps` compares Step-DPO with DPO on
# *whole responses*. There a pair is a right and a wrong response to the same problem. Both methods take 200 updates
# with the same learning rate, and pay for the same number of checks: in each update about 290 steps, or 292 final
# answers.
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
# **Compare the price of a pair**, at the start:
#
# - *Steps.* To read 256 responses, up to the first wrong step of each, costs 1,015 checks. To read the tries costs
#   140 more. This gives 105 pairs. So a pair costs (1,015 + 140) / 105 = 11 checks.
# - *Whole responses.* Two responses to one problem cost 2 checks. They are a pair if exactly one is right. That
#   happens in 0.37 of the cases. So a pair costs 2 / 0.37 = 5.4 checks.
#
# At about equal numbers of pairs the two methods were level ("Going further"). So the price of a pair may explain the
# result.
# </details>

# %% [markdown]
# ## 4. Labels without people
#
# Who checks the steps? For arithmetic a rule can. Often there is no such rule, but the *final answer* is known.
# **Math-Shepherd** (Wang et al. 2024) makes **labels** of steps from it: numbers that a model is then trained to
# predict.
#
# Let the policy finish the response $N$ times from the end of a step. The share of these *continuations* that reach
# the right answer is the label of the step. With the reward 1 for a right answer and 0 for a wrong one, it estimates
# the value $V$ of lesson 05.
#
# **By hand.** Of $N = 8$ continuations 2 are right. The label is 2/8 = 0.25.
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
batch = models.encode(tokenizer, asked, written)
options = {"step_end": "=", "count": 64, "sampling": sampling}
options |= {"generator": torch.Generator().manual_seed(0)}
labelled = loops.continuation_labels(
    start, tokenizer, asked, batch, rewards.right_answer, **options
)
first, second = labelled["labels"]
steps = [f"step {k}" for k in range(1, 7)]
table = pd.DataFrame({"first": pd.Series(first), "second": pd.Series(second)})
table.round(2).T.set_axis(steps, axis=1)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# - In the first response the label falls from above 0.9 to 0 at the wrong step. From `39-8=` no continuation
#   reaches the right answer, 28.
# - In the second response the labels are low *from the start*, between 0.08 and 0.20, although the first five
#   steps are right. This policy rarely solves this problem.
# </details>
#
# So **a label by continuation says how likely this policy is to succeed from here. It does not say whether the
# step is right.** The *change* from one step to the next says more (exercise 1).

# %% [markdown]
# ## 5. A process reward model
#
# How does a model learn to give a number to every step? A causal model has read the whole step at its last token,
# and nothing after it. So one forward pass gives a number $z_s$ for every step $s$. $\sigma(z_s)$ is the model's
# probability that the step is good. With labels $y_s$ from 0 to 1 the loss is the cross-entropy:
#
# $$ -y_s \log \sigma(z_s) - (1 - y_s) \log \sigma(-z_s) . $$
#
# **By hand.** For a step with $\sigma(z) = 0.8$ the loss is $-\log 0.8$ = 0.22 if $y = 1$, and
# $-\log 0.2$ = 1.61 if $y = 0$.
#
# We train on 400 sampled responses. Their labels come from the rule: 1 for a right step, 0 for a wrong one. The
# rule stops at the first wrong step, so later steps have no label, `None`:

# %%
some = train[:400]
drawn = models.sample_text(start, tokenizer, some, config=sampling, batch_size=400)[0]
texts = models.decode(tokenizer, drawn)
pairs = [pair for pair in zip(some, texts) if all(pair[1].split("="))]  # no empty step
rows = [arithmetic.labelled_steps(*pair) for pair in pairs]

torch.manual_seed(0)  # the weights of the new head
scorer = models.ScalarModel(copy.deepcopy(start).requires_grad_(True).base_model)
optimizer = loops.make_optimizer(scorer, loops.OptimiserConfig.plain(lr=1e-3))
arithmetic.labelled_steps("12+10-1+7=", "22-1+7=20+7=27")

# %% [markdown]
# In an update, the responses go through the model once. `step_logits` reads $z_s$ at the end of every step. The
# labels are put at the same places. `rated` is true at the steps that have a label. The loss is the mean over these.


# %%
def prm_update(some):
    responses = ["=".join(row["completions"]) for row in some]
    batch = models.encode(tokenizer, [row["prompt"] for row in some], responses)
    logits, is_step = models.step_logits(scorer, batch, ends)
    given = [float("nan") if y is None else y for row in some for y in row["labels"]]
    labels = torch.zeros_like(logits)
    labels[is_step] = torch.tensor(given)
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
order = loops.shuffled_batches(len(rows), 32, updates, seed=0)
log = [prm_update([rows[i] for i in index]) for index in order]

plain = loops.OptimiserConfig.plain(lr=1e-3)
config = loops.PRMConfig(step_end="=", steps=updates, batch_size=32, optimiser=plain)
backbone = copy.deepcopy(start).requires_grad_(True).base_model
other, _ = loops.train_prm(backbone, tokenizer, Dataset.from_list(rows), config)
assert models.same_weights(scorer, other)

# %% [markdown]
# ## 6. What must the model see?
#
# Does the trained model tell a wrong step from a right one?
#
# **Predict.** It now reads the calculation of section 1. Which $\sigma(z)$ does it give to the second step, the
# wrong one?

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
# To judge `20+7=`, a model has to calculate `22-1`. The policy can do that, but this shows in *another output*: its
# log-probabilities. Here is the lowest log-probability of a token in each step:

# %%
with torch.no_grad():
    logprobs = models.policy_logprobs(start, batch)[0]
in_steps = logprobs.split([7, 5, 3])  # "22-1+7=", "20+7=", and "27" with EOS
lowest = [part.min().item() for part in in_steps]
pd.DataFrame([lowest], columns=names, index=["lowest log-probability"]).round(2)

# %% [markdown]
# The `0` of `20` has the log-probability −4.58, and all other tokens have more than −0.05. So let us give this
# number to the reward model, too. Let $h_s$ be the policy's last hidden state at the end of step $s$, and $l_s$
# the lowest log-probability of a token in this step. The head gets $l_s$ as one more input:
#
# $$ z_s = w \cdot h_s + a\, l_s + b . $$
#
# Only $w$, $a$ and $b$ are trained, on the same 400 responses. The policy stays as it is.
# `models.WithLogprobs` does this.
#
# **Predict.** What do the three steps get now?

# %% tags=["predict"]
head = loops.OptimiserConfig.plain(lr=1e-2)
config = replace(config, steps=4 if FAST else 50, optimiser=head)
backbone = models.WithLogprobs(start, ends)
reader, _ = loops.train_prm(backbone, tokenizer, Dataset.from_list(rows), config)
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
# All models train on labels of the rule. *Whole model* is the model of section 5. *Head only* leaves the policy as it
# is, as in section 6. The last two rows of the table have no reward model.
#
# **Predict.** Which rows find more than a random step does?

# %% tags=["predict"]
runs = experiments.results("process_rewards")
rows_of = {
    "labels of the rule": "whole model, text alone, 12,700 checks",
    "head only, text alone": "head only, text alone, 1,000 checks",
    "log-probabilities too, 100 checks": "head only, log-probabilities too, 100 checks",
    "log-probabilities too, 1,000 checks": "the same, 1,000 checks",
    "no reward model": "the step with the token that the policy found least likely",
}
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
#   0.20, too. It has the same training as the model with 0.93, without the one input.
# - **The policy knew most of it.** Its least likely token, without any label, finds 0.85.
# </details>
#
# **The limit:** a mistake that the policy *believes* is not unlikely, so this model cannot see it. Asked for the
# second problem of section 4 again, 12 of 16 responses end in the same wrong step, `20-19=11`.
#
# Can such a model also pick the best of several responses? "Going further" has the answer.

# %% [markdown]
# ## What to remember
#
# - **Step-DPO** pairs the first wrong step with a right one that the policy writes in its place. The steps
#   before are read and not learned, and a step gets no EOS.
# - Compare at equal numbers of checks. Here whole responses won: a pair of steps costs twice as many checks.
# - A **label by continuation** is the chance that this policy still succeeds. A fall of the label shows the
#   bad step, not a low label.
# - A **process reward model** gives each step a probability, in one pass.
# - A reward model must be able to see what it judges. From the text alone, 12,700 checks taught little. With the
#   policy's log-probabilities as an input, 100 checks were enough.
#
# ## Exercises
#
# Exercises 1, 2, 3 and 5 have a checker. Solutions and answers to all of them are in
# `solutions/15b_feedback_on_steps.ipynb`.

# %% [markdown] tags=["exercise"]
# **1. What did each step change?** *(easy, 10 minutes)*. In section 4 the labels of the second response are low at
# every step. Better: how much does each step *change* the chance of success? `chances` (B, S)
# has the chance after each step, as the labels estimate it. `at_start` (B,) has the chance before the
# first step. `step_mask` (B, S) is true at the steps that exist. Return the change that each step
# makes, (B, S), with 0 where there is no step. Where the mask is false, `chances` can be NaN.
#
# Then apply it to the labels of section 4. Before the first step, 57 of 64 responses to the first problem were
# right, and 10 of 64 to the second. Which step of the second response does it blame? How sure is that?
#
# *Hint:* the chance before a step is the one after the step before it. NaN times 0 is NaN, so choose
# with `torch.where`.


# %% tags=["exercise"]
def progress_of_steps(chances, at_start, step_mask): ...  # your code


check.progress_of_steps(progress_of_steps)


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
right = [[60, 59, 0, 0, nan, nan], [9, 5, 13, 8, 11, 0]]
chances, at_start = torch.tensor(right) / 64, torch.tensor([57, 10]) / 64
changes = progress_of_steps(chances, at_start, ~chances.isnan())
pd.DataFrame(changes.numpy(), ["first", "second"], range(1, 7)).round(2)

# %% [markdown] tags=["solution"]
# In the first response the third step changes the chance by −0.92, and no other by more than 0.05. In the
# second, the changes are −0.02, −0.06, +0.12, −0.08, +0.05 and −0.17. The largest fall is at the wrong step. But 64
# continuations with a chance of 0.14 give the label a standard error of about 0.04, and a change has two of them. So
# only this last fall is clear.

# %% [markdown] tags=["exercise"]
# **2. Which pairs?** *(medium, 15 minutes)*. This is the heart of Step-DPO. `right` (B, S) says whether each step
# is right, and `step_mask` (B, S) whether it exists. In each response with a wrong step, the policy wrote the
# *first* wrong one `count` times again. `tries_right` says which of these tries are right: the first `count` belong
# to the first response with a wrong step, the next `count` to the next such response, and so on.
#
# Return the pairs, whole numbers (B, 2): which step is rejected, and which of its tries is chosen, the first
# right one. Both count from 0. A response without a pair has −1, −1.
#
# *Hint:* a response without a wrong step has no tries.


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
# Then think: as a policy gets better, does one response need more checks or fewer?
#
# *Hint:* a step is read if there is no wrong one *before* it. `cumsum` counts.


# %% tags=["exercise"]
def steps_read(right, step_mask): ...  # your code


check.steps_read(steps_read)


# %% tags=["solution"]
def steps_read(right, step_mask):
    wrong = (~right & step_mask).long()
    wrong_before = wrong.cumsum(1) - wrong
    return (step_mask & (wrong_before == 0)).sum(1)


check.steps_read(steps_read)

# %% [markdown] tags=["solution"]
# A better policy needs *more* checks for each response, because its first wrong step comes later or
# never. And it needs more responses for each pair. So the price of a pair rises.

# %% [markdown] tags=["exercise"]
# **4. Find the bug: the response that ends too soon** *(medium, 15 minutes)*. A colleague does not use
# DPO. She trains the policy by imitation on its own right steps: the chosen steps of section 2, with
# the loss of supervised fine-tuning. The figure has the share of right answers, and the number of
# steps in a response. After ten updates nothing is right. Here is how she makes a
# batch. What is wrong? Mend `batch_of`.
#
# Then predict: she uses the same faulty rows for Step-DPO. Will the responses become as short?

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


# %% tags=["exercise"]
def batch_of(prompts, steps_before, right_steps):
    parts = [[(b, False), (step, True)] for b, step in zip(steps_before, right_steps)]
    return models.encode(tokenizer, prompts, parts)


step = tokenizer("22-1+7=").input_ids
batch_of(["12+10-1+7="], [[]], [step]).response_ids


# %% [markdown] tags=["solution"]
# `encode` adds EOS to every row, as a finished response needs it. A step is not finished: the policy
# learns to end its response after any right step. `append_eos=False` mends it. The last step of a
# response keeps its EOS, because the policy wrote it.
#
# Step-DPO with the same fault hardly shortens the responses. *Both* steps of a pair have the EOS.
# What the chosen one pushes up, the rejected one pushes down, so little remains. A fault can be hidden
# by a loss that takes differences.


# %% tags=["solution"]
def batch_of(prompts, steps_before, right_steps):
    parts = [[(b, False), (step, True)] for b, step in zip(steps_before, right_steps)]
    return models.encode(tokenizer, prompts, parts, append_eos=False)


step = tokenizer("22-1+7=").input_ids
batch_of(["12+10-1+7="], [[]], [step]).response_ids

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
# *Hint:* what does `bool` make of −100? And of 0.25?


# %% tags=["exercise"]
table = {
    "colleague": [0.97, 0.98, 0.89],
    "mended": [0.97, 0.95, 0.22],
}
index = ["training: sigma(z) and the label on the same side of 1/2 (share)"]
index += [
    "mean sigma(z), held out: right steps",
    "mean sigma(z), held out: wrong steps",
]
pd.DataFrame(table, index=index)


# %% tags=["exercise"]
def loss_of_labelled_steps(logits, labels, step_mask):
    good = labels.bool().float()
    losses = -good * logsigmoid(logits) - (1 - good) * logsigmoid(-logits)
    return torch.where(step_mask, losses, 0.0)


check.loss_of_labelled_steps(loss_of_labelled_steps)


# %% [markdown] tags=["solution"]
# `bool` makes True of everything but 0, so −100 counts as *good*. Most wrong steps were not picked,
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
# the rows that you would make: how many, and with which labels?

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

# %% [markdown] tags=["solution"]
# He reads the alternatives as *consecutive* steps: `22-1+7=21-1+7=20+7=21+7=28`. In this text `21-1+7`
# seems to follow from `22-1+7`, although nobody wrote it there. The model learns to judge a step after a
# step that was thrown away, and never sees that at test time. (A public teaching code has this fault.)
#
# Right: one row for every alternative. Its text is the steps that were *taken* before it, and then the
# alternative. Only the last step has a label. That makes five rows. Or only three rows: the taken steps
# share one text, `22-1+7=21+7=28`, with the labels 1, 1, 1, and each of the two others has a row of its
# own.

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
# - **At about equal numbers of pairs the curves are level**: Step-DPO has 0.69 at its end, and whole responses
#   have 0.67 at update 100. Step-DPO has then made twice as many updates.
# - **Believe section 3's table, not the ends of the curves.** It has sixteen responses to each of 400 problems, a
#   point of a curve has one.
# - **With greedy decoding the two are nearly equal:** 0.90 and 0.89.
#
# **What is not equal in section 3.** Checks, updates and learning rate are equal. The number of
# pairs and of sampled tokens is not. The learning rate was chosen by single
# runs on other problems, most of them with Step-DPO. Final answers are often free, because a rule
# knows them. Then the comparison favours whole responses even more.
#
# **Who writes the chosen step?** The policy itself. A step by somebody else may be one that the policy would never
# write. To raise its probability hardly changes the steps that the policy does write (lesson 14).
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
# *min* and *product* prefer short responses: a further step cannot raise them. *last* misleads if labels only say
# whether a step follows from the one before. The third step of section 1 follows, and its answer is wrong.
#
# **Picking a response.** The experiment of section 7 has more reward models than its table:
#
# | reward model | checks | responses | trains | updates |
# |---|---|---|---|---|
# | soft labels | 12,700 | 400 | the whole model | 400 |
# | hard labels | 12,700 | 400 | the whole model | 400 |
# | outcomes | 12,700 | 12,700 | the whole model | 400 |
# | outcomes at every step | 12,700 | 12,700 | the whole model | 400 |
# | labels of the rule | 12,700 | 3,200 | the whole model | 400 |
# | head only, text alone (labels of the rule) | 1,000 | 250 | the head | 100 |
# | log-probabilities too (labels of the rule) | 100 or 1,000 | 26 or 250 | the head, $a$ too | 100 |
#
# Take `22-1+7=20+7=27`. Let 7 of the 8 continuations of its first step be right, and none of the second's. At
# the end nothing is left to continue: the answer itself is checked. Here are the labels that this response gets:
#
# | step | soft | hard | outcome at the last step | outcome at every step | rule |
# |---|---|---|---|---|---|
# | label of `22-1+7=` | 7/8 | 1 | none | 0 | 1 |
# | label of `20+7=` | 0 | 0 | none | 0 | 0 |
# | label of `27` | 0 | 0 | 0 | 0 | none |
# | its checks | 8 + 8 + 1 | 8 + 8 + 1 | 1 | 1 | 2 |
#
# Models with outcomes train on all 17 checked responses: this one and its 16 continuations.
#
# Each held-out problem has 16 responses. How often is the one with the highest score right?

# %%
columns = {f"best_{how}": f"pick, {how}" for how in ("last", "min", "product")}
experiments.shown(runs[runs.variant != "no reward model"], columns)

# %% [markdown]
# - **A judge that knows nothing picks worse than a random response.** A random response is right in 0.60 of the
#   cases. A *blind* judge, with a random score for each *text*, picks a right one in 0.30. Right responses are nearly
#   always the same text, and wrong ones differ. Of 16 responses to the first held-out problem, 13 are right, but
#   they are one text among four.
# - **The text alone teaches little.** At *last* and *product* no model's mean is better than blind: they have 0.22
#   to 0.28. *min* does better than blind on every seed with outcomes at every step (0.38) and soft labels (0.37).
# - **Log-probabilities help here, too.** With 100 checks *min* is right in 0.82 of the cases, and in 0.84 with 1,000
#   checks. *Head only* has the same training without this input, and 0.31.
# - **Labels add nothing for picking.** A majority vote over final answers has 0.84. The response that the
#   policy finds most likely is right in 0.86.
# - **With log-probabilities *last* fails: 0.33 and 0.34.** A last step often follows, also behind a mistake.
#
# **Finding the wrong step, once more.** The record also has right responses with one *planted* wrong digit.
#
# - The models that read log-probabilities find 0.92 of the planted mistakes with 100 checks, and 0.96 with 1,000. The
#   least likely token finds 0.82. It misses 35 of 200. Each time the least likely token stands in a *later* step: after
#   a mistake the calculation looks strange to the policy. Labels say how unlikely is *too* unlikely. So the *first*
#   such step can be blamed.
# - The six models with the text alone find 0.18 to 0.27 of both kinds of mistakes. A random step is right in
#   0.20 of the policy's own mistakes and 0.21 of the planted ones. For the planted ones every 95 % interval of the
#   difference contains 0. We believe: calculating is learned from many texts. The policy had 60,000 solutions.
# - Soft labels, with 8 continuations of each step, can blame a step by themselves. The first below one half is the
#   wrong one in only 0.57 of the cases. The largest fall finds more than three of four.
#
# **What is not equal here.** The first five rows of the table have equally many checks and updates. But 400 updates
# are 32 passes over the 400 responses of soft and hard labels, 4 over those of the rule and 1 over the
# outcomes. One learning rate was used for these five, and not tuned. With hard labels the loss in training
# has fallen to 0.00: the model knows its 400 responses by heart. Among the five, *min* with soft labels and with
# outcomes at every step picks better than with hard labels. Large models that have learned to reason start
# from more, and papers report gains with the text alone.
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
