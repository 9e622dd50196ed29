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
# - label steps without people, and train a process reward model on the labels,
# - compare two kinds of feedback at equal numbers of labels.
#
# **You need** lesson 12 (direct preference optimisation, DPO) and lesson 08 (the reward model).
# Lesson 15 helps: it explains the action mask. About 40 minutes to read and 60 for the exercises.

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
# ## 1. The idea: where did it go wrong?
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
# Feedback on the *whole response* says "wrong". It does not say which token is to blame, although
# two of the three steps are fine. Feedback on *steps* says "the second step". There are two ways to use it:
#
# - **Step-DPO** (Lai et al. 2024). The policy writes the second step again, from the same place, until a try is
#   right. The right step and the wrong one are a pair for DPO.
# - A **process reward model** (PRM). It is a reward model with one number for every *step*. To tell
#   them apart, the reward model of lesson 08 is then called an *outcome* reward model.
#
# Finer feedback costs more: somebody has to check every step. In this lab, one **label** is one step
# checked, or one final answer checked. Methods are compared at equal numbers of labels.
#
# The policy is `tiny-long-steps`, a GPT-2 of 0.6 million parameters. A token is one character. Its
# problems take four to six steps, and a step ends with `=`, or with EOS if it is the last. About nine
# steps in ten are right.

# %% tags=["shared"]
torch.set_num_threads(1)  # sums in a fixed order, so that two runs can be equal
start, tokenizer = models.load_policy("tiny-long-steps")
eos, ends = tokenizer.eos_token_id, models.step_end_ids(start, tokenizer, "=")
sampling = models.SamplingConfig(max_new_tokens=72, temperature=1.0)
arithmetic = tasks.arithmetic

# %%
problems = arithmetic.problems("test", 6, levels=(arithmetic.LONG,))
held_out = [p.prompt for p in problems]
drawn = models.sample_text(start, tokenizer, held_out, config=sampling, seed=3)[0]
texts = models.decode(tokenizer, drawn)
right = [arithmetic.steps_right(*pair) for pair in zip(held_out, texts)]
wrong = [row.index(False) + 1 if False in row else "none" for row in right]
pd.DataFrame({"problem": held_out, "response": texts, "first wrong step": wrong})

# %% [markdown]
# ## 2. Step-DPO: a pair of steps
#
# Take the mistake above. Three pieces make a row:
#
# | piece | text | in the loss? |
# |---|---|---|
# | problem, and the right steps before | `12+10-1+7=` `22-1+7=` | no, it is only read |
# | rejected: the wrong step, as the policy wrote it | `20+7=` | yes |
# | chosen: a right step that the policy wrote when it tried again | `21+7=` | yes |
#
# The loss is that of DPO, with log-ratios summed over one step. Two details matter:
#
# - **The policy itself writes the chosen step.** A step by somebody else may be one that the policy
#   would never write. A loss that raises it changes little of what the policy does write (lesson 14).
# - **A step is not the end of a response**, so no EOS is added after it. Only the last step has one,
#   and the policy wrote it.
#
# The mask of lesson 15 says which tokens are in the loss. Here is one such row. `False` marks the part
# that is read and not learned:

# %%
before, step = (tokenizer(text).input_ids for text in ("22-1+7=", "21+7="))
row = [[(before, False), (step, True)]]
one = models.encode(tokenizer, ["12+10-1+7="], row, append_eos=False)
in_loss = one.action_mask.int().numpy()
pd.DataFrame(in_loss, columns=list("22-1+7=21+7="), index=["in the loss"])

# %% [markdown]
# Here is the whole training step. The `judge` is a rule that knows arithmetic. With people, it would
# be a person who reads step by step and stops at the first wrong one. Three helpers: `steps_of` cuts
# sampled ids into steps, at the ids in `ends` (`=` and EOS). `left_padded` makes one batch of prompts of
# different lengths. `encode` takes a response in parts, as above.

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
# The package's loop is `train_step_dpo`. With its `plain` settings it leaves the same weights. (It
# also counts the labels.)

# %%
steps = 2 if FAST else 4  # FAST=1 is for the tests of this page
order = loops.shuffled_batches(len(train), 32, steps, seed=0)
log = [step_dpo([train[i] for i in index]) for index in order]

dpo = {"steps": steps, "batch_size": 32, "beta": 0.1, "optimiser": plain}
dpo = loops.DPOConfig.plain(**dpo, max_response=96, append_eos=False)
given = {"step_end": "=", "tries": 8, "max_step": 24, "sampling": sampling}
config = loops.StepDPOConfig(**given, dpo=dpo)
other = copy.deepcopy(start).requires_grad_(True)
loops.train_step_dpo(other, tokenizer, train, arithmetic.right_step, config)
assert models.same_weights(actor, other)
pd.DataFrame(log).round(3)

# %% [markdown]
# The first loss is $\log 2$ = 0.693, as for every DPO that starts at its reference. A wrong step
# without a right try gives no pair.

# %% [markdown]
# ## 3. What did a label buy?
#
# `minirlhf experiment steps` compares Step-DPO with DPO on *whole responses*, whose pairs are a right and
# a wrong response to the same problem. Both start from `tiny-long-steps` and take 200 training steps with the
# same learning rate. Both pay for the same number of labels:
#
# | | problems of a training step | labels of a training step |
# |---|---|---|
# | Step-DPO | 64, one response each | about 290 steps checked, tries included |
# | whole responses | 146, two responses each | 292 final answers checked |
#
# A try is checked only until one is right, so it costs labels too.
#
# **Predict.** Which of the two has more right answers at the end? And will the curves rise from the first
# step on?

# %% tags=["predict"]
history = experiments.results("steps_history")
show.curves(history, columns="right", labels={"right": "share of right answers"})

# %% tags=["predict"]
runs = experiments.results("steps")
columns = {"pass_1": "right, sampled", "greedy": "right, greedy"}
columns |= {"pass_16": "right in 16 tries", "step_right": "right steps"}
experiments.shown(runs, columns)

# %% tags=["predict"]
difference = experiments.difference_over_prompts_and_seeds
gains = difference(runs, "pass_1", "start")
lead = difference(runs, "pass_1", "step dpo", "whole responses")
gains.loc["whole responses minus step dpo"] = lead.iloc[0]
experiments.with_interval(gains).to_frame("difference in right answers")

# %% [markdown]
# <details><summary>What you should see</summary>
#
# - **Whole responses win.** They gain 0.084 in right answers, and Step-DPO 0.053. The interval of the
#   difference, for other problems and other seeds, does not contain 0. With greedy decoding the two are
#   nearly equal.
# - **One reason: a pair of steps is expensive.** Nine of ten checked steps are right and give no pair. With its
#   tries, Step-DPO pays about 11 labels for a pair at the start. Of two responses to one problem, exactly one is right
#   in 0.37 of the cases. So a pair of whole responses costs about 5.4 labels.
# - **Both fall first.** After 20 training steps both have fewer right answers than the start, on every seed. We
#   believe that the first updates are mostly noise: there are few pairs, and Adam's first updates move every
#   weight by about the learning rate, however small its gradient is.
# - **Believe the table, not the ends of the curves.** A point of a curve comes from one response to each of
#   400 problems, and the table from sixteen.
#
# So finer feedback is not better *per label* here. It says more about one response, and it costs more. If
# checks of steps are free, count pairs instead. At its end Step-DPO has used about as many pairs as whole
# responses have after half of their steps. There the curves have 0.69 and 0.67. (Step-DPO has then made twice
# as many updates.)
# </details>

# %% [markdown]
# ## 4. Labels without people
#
# Who checks the steps? For arithmetic a rule can. For a proof or a program nobody has such a rule,
# but the *final answer* is often known. **Math-Shepherd** (Wang et al. 2024) makes labels of steps
# from it: let the policy finish the response $N$ times from the end of a step, and count how many of
# these *continuations* reach the right answer.
#
# - The **soft** label is the share of right continuations.
# - The **hard** label is 1 if any of them is right, and 0 otherwise.
#
# **By hand.** Of $N = 8$ continuations 2 are right. The soft label is 2/8 = 0.25, and the hard label
# is 1.
#
# **Predict.** Let $p$ be the chance that one continuation is right. What is the *mean* of each label
# for $p = 0.1$ and $N = 8$? And what becomes of the two means when $N$ grows?

# %% tags=["predict"]
p = torch.tensor([0.0, 0.02, 0.1, 0.5, 0.9])
means = {f"hard, N = {n}": 1 - (1 - p) ** n for n in (1, 8, 64)}
pd.DataFrame({"p": p, "soft, any N": p} | means).round(2)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# The mean soft label is $p$ = 0.10, whatever $N$ is. The mean hard label is $1 - 0.9^8$ = 0.57, and
# for $N = 64$ nearly 1. So for large $N$ hard labels only tell *impossible* from *possible*.
# </details>
#
# Now the labels of two responses. In the first, the third step is wrong. In the second only the last step is
# wrong. Look at both kinds of numbers before you read on.

# %%
asked = ["4*5+13+3-8=", "8+17-13+13-15+10-19="]
written = [
    "20+13+3-8=33+3-8=39-8=31",
    "25-13+13-15+10-19=12+13-15+10-19=25-15+10-19=10+10-19=20-19=11",
]

# %%
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
# In the first response the label falls from near 1 to 0 at the wrong step, and stays there: from
# `39-8=` nobody reaches 28. That is what we want.
#
# In the second response the labels are low *from the start*, although the first steps are right. This
# policy rarely gets past this problem. So **a label by continuation says how likely this policy is to
# succeed from here. It does not say whether the step is right.** The *change* from one step to the
# next says more (exercise 1).

# %% [markdown]
# ## 5. A process reward model
#
# A causal model has read the whole step at its last token, and nothing after it. So one forward pass
# gives a number $z_s$ for every step. $\sigma(z_s)$ is the model's probability that the step is good.
# With labels $y_s$ from 0 to 1 the loss is the cross-entropy:
#
# $$ -y_s \log \sigma(z_s) - (1 - y_s) \log \sigma(-z_s) . $$
#
# **By hand.** For a step with $\sigma(z) = 0.8$ the loss is $-\log 0.8$ = 0.22 if $y = 1$, and
# $-\log 0.2$ = 1.61 if $y = 0$.
#
# To *compare responses* we need one number for each. There are three usual ways. For steps with the
# probabilities 0.9, 0.2 and 0.9:
#
# | way | score | here |
# |---|---|---|
# | **last** | that of the last step | 0.9 |
# | **min** | that of the worst step | 0.2 |
# | **product** | all multiplied | 0.16 |
#
# **Predict.** Which of the three would be fooled by the calculation of section 1, where the second step is
# wrong and the third follows from it? And which prefers short responses?

# %% [markdown]
# <details><summary>What you should see</summary>
#
# - *last* misleads if the model asks only whether a step follows from the one before. It does not if the
#   labels come from outcomes or continuations: there the label of the last step *is* the outcome.
# - *min* and *product* prefer short responses: a further step cannot raise them.
# </details>
#
# Here is the loop, on the rule's labels of 400 sampled responses. The rule stops at the first wrong
# step, so later steps have no label.


# %%
def labelled_row(prompt, response):
    steps, labels = response.split("="), arithmetic.checked_steps(prompt, response)
    labels = [*map(float, labels), *[None] * (len(steps) - len(labels))]
    return {"prompt": prompt, "completions": steps, "labels": labels}


some = train[:400]
drawn = models.sample_text(start, tokenizer, some, config=sampling, batch_size=400)[0]
texts = models.decode(tokenizer, drawn)
rows = [labelled_row(*x) for x in zip(some, texts) if all(x[1].split("="))]

# %%
torch.manual_seed(0)  # the weights of the new head
scorer = models.ScalarModel(copy.deepcopy(start).requires_grad_(True).base_model)
optimizer = loops.make_optimizer(scorer, loops.OptimiserConfig.plain(lr=1e-3))


# %%
def prm_step(some):
    responses = ["=".join(row["completions"]) for row in some]
    batch = models.encode(tokenizer, [row["prompt"] for row in some], responses)
    logits, is_step = models.step_logits(scorer, batch, ends)  # one pass, all steps
    given = [float("nan") if y is None else y for row in some for y in row["labels"]]
    labels = torch.zeros_like(logits)
    labels[is_step] = torch.tensor(given)
    rated = is_step & ~labels.isnan()
    losses = core.process_reward_loss(logits, labels, rated)
    loss = core.aggregate(losses, rated)  # the mean over labelled steps
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


# %%
steps = 4 if FAST else 20
order = loops.shuffled_batches(len(rows), 32, steps, seed=0)
log = [prm_step([rows[i] for i in index]) for index in order]

plain = loops.OptimiserConfig.plain(lr=1e-3)
config = loops.PRMConfig(step_end="=", steps=steps, batch_size=32, optimiser=plain)
backbone = copy.deepcopy(start).requires_grad_(True).base_model
other, _ = loops.train_prm(backbone, tokenizer, Dataset.from_list(rows), config)
assert models.same_weights(scorer, other)

# %% [markdown]
# **Predict.** What has the model learned in these few steps? It now reads the calculation of section 1. Which
# $\sigma(z)$ does it give to its second step, the wrong one?

# %% tags=["predict"]
batch = models.encode(tokenizer, ["12+10-1+7="], ["22-1+7=20+7=27"])
with torch.no_grad():
    logits, _ = models.step_logits(scorer, batch, ends)
names = ["first step", "second step", "third step"]
pd.DataFrame(logits.sigmoid().numpy(), columns=names, index=["sigma(z)"]).round(2)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# All three get about 0.9. That is the share of right steps among the labels. The model has learned how often
# steps are right, and nothing about *this* step. A model that looks at nothing does as well. Do longer
# training and other labels help? That is the next section.
# </details>

# %% [markdown]
# ## 6. What are they good for?
#
# `minirlhf experiment process_rewards` trains five reward models on this policy's responses. Each gets
# the same number of checks, about 12,700 per seed. One final answer or one step checked is one check, so a
# soft label costs 8:
#
# | reward model | its labels |
# |---|---|
# | soft labels | for each step: the share of right ones among 8 continuations |
# | hard labels | for each step: whether any of these 8 is right |
# | outcomes | each of these continuations as a whole response; its outcome is the label of its last step |
# | outcomes at every step | the same, but the outcome is the label of *every* step |
# | labels of the rule | for each step, up to the first wrong one: whether it is right |
#
# The sixth row of the results is no reward model at all: the policy's own log-probabilities. It picks the
# response with the highest probability. Two questions are asked on held-out problems:
#
# - **Pick**: of 16 responses, how often is the one with the highest score right?
# - **Find**: in a wrong response, is the step that is blamed the first wrong one? The blamed step is the first with
#   $\sigma(z) < \frac12$; if there is none, the one with the lowest $\sigma(z)$. Without a reward model it is the step
#   with the token that the policy found least likely. Responses are the policy's *own* wrong ones, or
#   right ones with one *planted* wrong digit.
#
# **Predict.** Which row is best at picking? Which is best at finding?

# %% tags=["predict"]
runs = experiments.results("process_rewards")
columns = {f"best_{how}": f"pick, {how}" for how in ("last", "min", "product")}
columns |= {"own": "find, own", "planted": "find, planted"}
experiments.shown(runs, columns).replace("nan [nan, nan]", "")

# %% [markdown]
# <details><summary>What you should see</summary>
#
# - **The policy's own log-probabilities are best at both**, by far. Their pick is right in 0.86 of the cases, they
#   find 0.85 of the policy's own mistakes and 0.82 of the planted ones. Why? Most mistakes of a
#   *sampled* response are unlucky draws, so the wrong token was an unlikely one. That is also what greedy
#   decoding avoids, and it has 0.86 as well (section 3, on 400 problems; here there are 200).
# - **No reward model finds errors much better than chance.** A step picked at random is the first wrong
#   one in a fifth of the cases. The means of the reward models are 0.18 to 0.27.
# - **They pick worse than a random response**, which is right in 0.60 of the cases: 0.23 to 0.38. The next
#   table says why.
# - *min* picks better than *last* and *product*. With *min*, soft labels and outcomes at every step pick
#   better than hard labels. Among the other rows we saw no clear difference.
# </details>

# %%
names = {"random": "a random response", "blind": "a random text"}
names |= {"majority": "majority vote", "possible": "a perfect judge"}
names |= {"labels_half": "first label below 1/2", "labels_fall": "largest fall"}
last = runs[runs.variant == "no reward model"]
experiments.shown(last, names).T

# %% [markdown]
# **How can a pick be worse than random?** The right responses to a problem are nearly all the *same*
# text, because each step has one right result. The wrong ones differ. Equal texts have equal scores, so
# ten copies of the right text count once. A judge that is blind to the content
# gives each different text some score. Then its pick is right in only 0.30 of the cases (*a
# random text*). So *last* and *product* are no better than a blind judge. *min* is a little better with soft labels and with
# outcomes at every step.
# This is also why a majority vote does so well: 0.84.
#
# **Is the rule for finding bad, or the models?** Both. The last two rows take estimated soft labels in the
# place of a model. Then the first step below one half is the wrong one in 0.57 of the cases: section 4's second
# response is low from the start. The step with the largest *fall* is it in more than three of four (exercise 1). But a model
# that knew the soft labels would reach 0.57, and none comes near it.
#
# **Why did they not learn?** We believe: to check a step such as `26-9=17`, a model has to calculate it. That is as
# hard as to write it. The policy has learned it from 60,000 solutions. The models of soft and hard labels
# have 400 responses, the model of the rule about 3,300, and those of outcomes about 12,700. In lesson 13, too, trained models found fewer planted
# digits than the policy's surprise did. Large models that have learned to reason start from more, and papers
# report gains there. At our size this negative result is what we measured.
#
# <details><summary>What would you try next?</summary>
#
# More labels: the loss in training shows whether a model still learns. With hard labels it has fallen to
# 0.00: the model knows its 400 responses by heart. And give the model what the policy knows: the
# log-probability of each token as a second input.
# </details>

# %% [markdown]
# ## What to remember
#
# - **Step-DPO** pairs the first wrong step with a right one that the policy writes in its place. The steps
#   before are read and not learned, and a step gets no EOS.
# - A **label by continuation** is the chance that this policy still succeeds. A fall of the label shows the
#   bad step, not a low label.
# - A **process reward model** gives each step a probability, in one pass. *last*, *min* and *product*
#   make one score of them.
# - Compare at equal numbers of labels. Here whole responses won, because a pair of steps costs more labels.
# - A reward model has to know what it judges. Ours, on tiny data, knew less than the policy's own
#   log-probabilities.
#
# ## Exercises
#
# Exercises 1, 2 and 4 have a checker. Solutions and answers to all of them are in
# `solutions/15b_feedback_on_steps.ipynb`.

# %% [markdown] tags=["exercise"]
# **1. What did each step change?** *(easy, 10 minutes)*. The labels of section 4 blamed every step of
# the second response. Better: how much does each step *change* the chance of success? `chances` (B, S)
# has the chance after each step, as soft labels estimate it. `start` (B,) has the chance before the
# first step. `step_mask` (B, S) is true at the steps that exist. Return the change that each step
# makes, (B, S), with 0 where there is no step. Where the mask is false, `chances` can be NaN.
#
# *Hint:* the chance before a step is the one after the step before it. NaN times 0 is NaN, so choose
# with `torch.where`.


# %% tags=["exercise"]
def progress_of_steps(chances, start, step_mask): ...  # your code


check.progress_of_steps(progress_of_steps)


# %% tags=["solution"]
def progress_of_steps(chances, start, step_mask):
    before = torch.cat([start[:, None], chances[:, :-1]], 1)
    return torch.where(step_mask, chances - before, 0.0)


check.progress_of_steps(progress_of_steps)

# %% [markdown] tags=["solution"]
# The changes of a response add up to its outcome minus the chance at its start. So this is the outcome,
# divided among the steps. It is the advantage of lesson 05 with one step as the action: $Q - V$.

# %% [markdown] tags=["exercise"]
# **2. How many labels?** *(medium, 15 minutes)*. A reader goes through a response step by step and
# stops at the first wrong one. `right` (B, S) says whether each step is right, and `step_mask` (B, S)
# whether it exists. Return how many steps are read in each response, (B,).
#
# Then think: as a policy gets better, does one response need more labels or fewer?
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
# A better policy needs *more* labels for each response, because its first wrong step comes later or
# never. And it needs more responses for each pair. So the price of a pair rises.

# %% [markdown] tags=["exercise"]
# **3. Find the bug: the response that ends too soon** *(medium, 15 minutes)*. A colleague does not use
# DPO. She trains the policy by imitation on its own right steps: the chosen steps of section 2, with
# the loss of supervised fine-tuning. The figure has the share of right answers, and the number of
# steps in a response. After ten training steps nothing is right. Here is how she makes a
# batch. What is wrong? Mend `batch_of`.
#
# Then predict: she uses the same faulty rows for Step-DPO. Will the responses become as short?
#
# *Hint:* what is the last token of each row, and what did the policy write after that step?

# %% tags=["exercise"]
right = {
    "colleague": [0.59, 0.52, 0.165, 0.015, 0.005, 0.0],
    "mended": [0.59, 0.48, 0.505, 0.515, 0.545, 0.515],
}
written_steps = {
    "colleague": [4.79, 4.775, 3.805, 2.685, 2.45, 2.45],
    "mended": [4.79, 4.79, 4.8, 4.795, 4.81, 4.82],
}
panels = {"share of right answers": right, "steps of a response": written_steps}
show.lines(panels, range(0, 11, 2), xlabel="training step")


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
# **4. Find the bug: the reward model that likes everything** *(medium, 15 minutes)*. Another colleague
# writes −100 for "this step has no label", as many libraries do. His process reward model looks *more*
# accurate in training than the right one. But it hardly tells a wrong step from a right one, as the table
# shows. What is wrong in his loss? Mend it.
#
# `logits` and `labels` (B, S), `step_mask` (B, S). A label is −100 or a number from 0 to 1. Return the
# loss of each step, (B, S), with 0 where a step does not exist or has no label.
#
# *Hint:* which steps have no label in section 5, and so −100 in his data? What does `bool` make of it?
# And of 0.25?


# %% tags=["exercise"]
table = {
    "colleague": [0.91, 0.89, 0.88, 0.87],
    "mended": [0.89, 0.88, 0.84, 0.82],
}
rows = ["labels on the right side of one half, in training"]
kinds = ["right steps", "first wrong steps", "steps after them"]
pd.DataFrame(table, index=rows + [f"mean sigma(z), held out: {k}" for k in kinds])


# %% tags=["exercise"]
def loss_of_labelled_steps(logits, labels, step_mask):
    good = labels.bool().float()
    losses = -good * logsigmoid(logits) - (1 - good) * logsigmoid(-logits)
    return torch.where(step_mask, losses, 0.0)


check.loss_of_labelled_steps(loss_of_labelled_steps)


# %% [markdown] tags=["solution"]
# `bool` makes True of everything but 0, so −100 counts as *good*. The steps after a wrong one have
# no label: the model learns that they are good. It also looks accurate, because these steps are easy
# to tell. TRL's first trainer of process reward models had this fault.


# %% tags=["solution"]
def loss_of_labelled_steps(logits, labels, step_mask):
    rated = step_mask & (labels != -100)
    z, y = torch.where(rated, logits, 0.0), torch.where(rated, labels, 0.0)
    losses = -y * logsigmoid(z) - (1 - y) * logsigmoid(-z)
    return torch.where(rated, losses, 0.0)


check.loss_of_labelled_steps(loss_of_labelled_steps)

# %% [markdown]
# **5. Read the data** *(medium, 10 minutes)*. In some public data a person saw several *alternatives*
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
# **What is not equal in section 3.** Labels, training steps and learning rate are equal. The number of
# pairs and of sampled tokens is not. The learning rate was chosen by single
# runs on other problems, most of them with Step-DPO. Final answers are often free, because a rule
# knows them. Then the comparison favours whole responses even more.
#
# **What is not equal in section 6.** The checks and the training steps are equal. But 400 steps are 32
# passes over the 400 responses of soft and hard labels, 4 over those of the rule and 1 over the outcomes.
# One learning rate was used for all, and not tuned.
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
# the faulty runs of exercises 3 and 4 are repeated (`tests/claims/test_lesson_15b.py`).
