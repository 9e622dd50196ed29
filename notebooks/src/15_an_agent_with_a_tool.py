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
# # 15 · An agent with a tool
#
# After this lesson you can
#
# - sample a response in which a policy and a tool take turns,
# - train on such responses with DPO, and count only the tokens that the policy chose,
# - say when it is exact to leave out the tool's tokens, and compute the error when it is not.
#
# **You need** lesson 11 (verifiable rewards, GRPO) and lesson 12 (direct preference optimisation, DPO).
# Soft values (lesson 13), online DPO (lesson 14) and KTO (lesson 14b) are recalled in a sentence.
# About 50 minutes to read and 70 for the exercises.

# %%
import copy
from dataclasses import replace
from functools import partial

import pandas as pd
import torch

from minirlhf import core, evaluate, experiments, loops, models, rewards, show, tasks
from minirlhf.classroom import FAST, check

# %% [markdown]
# ## 1. The idea: two authors, one response
#
# Until now the policy wrote every token of a response. An **agent** is a policy that can call a **tool**,
# such as a calculator or a search engine. The tool writes its **result** into the response, and the policy
# goes on. So one response has two authors:
#
# | who writes | tokens | what it is |
# |---|---|---|
# | policy | `[47*83]` | a *call* of the calculator |
# | tool | `{3901}` | its *result* |
# | policy | `3906` | the *answer* to the prompt `47*83+5=` |
#
# Training changes only the policy, so only the policy's tokens belong in the loss. The **action
# mask** $m_t$ is 1 if the policy chose token $t$, and 0 if the tool wrote it. Lesson 12's log-ratio of
# policy and reference becomes a sum over the policy's tokens:
#
# $$ h(y) = \sum_t m_t \big[ \log \pi(y_t \mid s_t) - \log \pi_{\text{ref}}(y_t \mid s_t) \big] . $$
#
# Here $s_t$ is the prompt and *all* tokens before $y_t$, those of the tool included: the policy reads
# what the tool wrote. A pair has the difference $\Delta h = h(\text{chosen}) - h(\text{rejected})$, and
# its loss is that of lesson 12, $-\log \sigma(\beta\, \Delta h)$. This is *multi-turn DPO* (Xiong et
# al. 2024). Lesson 12 wrote $h$ for the difference, our $\Delta h$, and called $\beta$ times it the
# *margin*.

# %% [markdown]
# **Predict.** Here are the tokens of one response: `[ 4 7 * 8 3 ] { 3 9 0 1 } 3 9 0 6 EOS`. For which of
# them is $m_t = 1$?

# %% [markdown]
# <details><summary>What you should see</summary>
#
# The policy chose `[ 4 7 * 8 3 ]` and `3 9 0 6 EOS`. The tool wrote `{ 3 9 0 1 }`, with both curly
# brackets. The `]` is the policy's decision to *end* the call, and the EOS to end the response. Both are
# learned.
# </details>

# %% [markdown]
# ## 2. Taking turns
#
# `tiny-agent` is a GPT-2 of 0.8 million parameters. A token is one character. A problem is a
# product of two two-digit numbers, plus or minus a number. The last examples of its training were 30 %
# right calls, 10 % wrong calls and 60 % answers *in the head*, without a call. These start with `~`.
# Products are too hard for its head: only 2 % of such answers are right.
#
# The policy samples token by token until it writes `]`. Then the tool reads the token ids up to there and
# appends its own, and the policy goes on. The text is not tokenised again, because that can give
# other tokens than those that were sampled.

# %%
torch.set_num_threads(1)  # sums in a fixed order, so that two runs can be equal
start, tokenizer = models.load_policy("tiny-agent")
calculator = tasks.calculator.Calculator(tokenizer)
prompts = [p.prompt for p in tasks.calculator.problems("test", 12)]

# %%
sampling = models.SamplingConfig(max_new_tokens=32, temperature=1.0)
eos = tokenizer.eos_token_id
ids, mask = models.encode_prompts(tokenizer, prompts)
batch = models.sample(
    start,
    ids,
    mask,
    eos_id=eos,
    config=sampling,
    generator=torch.Generator().manual_seed(0),
    tool=calculator,
)

# %%
score = rewards.reward_function(rewards.right_with_calculator, tokenizer)
pd.DataFrame(
    {
        "prompt": prompts,
        "response": models.decode(tokenizer, batch),
        "right": score(batch).bool(),
    }
)

# %% [markdown]
# The score is a rule: 1 if the answer is the value of the prompt, and 0 otherwise. The answer is the number
# after the tool's last result, or after the `~`. Here all six answers in the head are wrong. So are three
# of the six with a call: each has copied one digit wrongly.
#
# A batch has two masks. `response_mask` is true at every token of the response and false at padding.
# `action_mask` is true only at the tokens that the policy chose. The figure shows the log-probabilities of
# the first three responses with a call. The stronger the orange, the less likely the token was. The tool's
# tokens are grey.

# %%
calls = (~batch.action_mask & batch.response_mask).any(1)
some = batch.select(calls.nonzero()[:3, 0])
table = evaluate.token_table(
    some, tokenizer, actor=start, temperature=1.0, alternatives=5
)
show.microscope(table, "logprob", text="all")

# %% [markdown]
# Most tokens are nearly certain. The first one is not: `[` has about −0.9, a probability of 0.4. The two wrong digits stand out, with less than 1 %.

# %% [markdown]
# ## 3. Is it right? A tool that always gives the same result
#
# Lesson 12 began with the best policy $\pi^*$, which has the highest expected reward minus KL penalty.
# It satisfies
#
# $$ r(y) = \beta \log \frac{\pi^*(y)}{\pi_{\text{ref}}(y)} + \text{a constant} , $$
#
# and DPO puts this into the Bradley-Terry model. Does it still hold with the masked sum $h$?
#
# The probability of a response is now a product of the policy's probabilities and the tool's. The tool
# is the same for policy and reference, so its probabilities cancel in the ratio, and $h$ remains.
# Without the mask nothing cancels. The loss then has two *guesses* of what the tool will write: the
# policy's and the reference's.
#
# But is $r = \beta h + \text{constant}$ still the equation of the *best* policy? Take two responses with
# the same call. The equation makes the one with the better result likelier. The policy cannot do this: it
# chooses the call, but not the result. If the tool **always gives the same result to the same call**, there
# are no two such responses, and the equation holds. So for a calculator, a compiler or a fixed database,
# masked DPO is exact: its minimum is $\pi^*$. As in lesson 12, this needs pairs of all responses,
# Bradley-Terry labels and a network that can represent $\pi^*$.

# %% [markdown]
# ## 4. And a tool that is sometimes wrong?
#
# A search engine may answer differently tomorrow. A small world shows what this changes.
#
# The policy acts twice. First it calls a tool. The *fast* tool is right in 80 % of the calls. The *slow*
# one is always right, but it costs 0.1. The policy sees whether the result is right. Then it passes the
# result on (reward 1 if right, −1 if wrong) or says *I do not know* (reward 0). The reference tosses a
# coin for every action.
#
# The objective is $J = E[r] - \beta\, \text{KL}(\pi \| \pi_{\text{ref}})$, the expected reward minus the KL
# penalty. The reference has no penalty, so its $J$ is its expected reward, 0.35. For the largest $J$ we go
# backwards, from the last *situation* in which the policy acts to the first. If the *actions* $c$ of a
# situation have rewards $r(c)$, the best policy is
# $\pi^*(c) = \pi_{\text{ref}}(c)\, e^{(r(c) - V)/\beta}$. Its probabilities add up to 1, so
#
# $$ V = \beta \log \sum_c \pi_{\text{ref}}(c)\, e^{r(c)/\beta} . $$
#
# This is the *soft value* of lesson 13, a soft maximum of the rewards. Solve the equation of $\pi^*(c)$ for
# $V$:
#
# $$ V = r(c) - \beta \log \frac{\pi^*(c)}{\pi_{\text{ref}}(c)} . $$
#
# Reward minus penalty is $V$ for *every* action. So $V$ is the value of the situation. Take $\beta = 0.2$.
#
# *After the result* the rewards and the values are:
#
# | result | passing on | *I do not know* | $V$ |
# |---|---|---|---|
# | fast tool, right | 1 | 0 | $0.2 \log\big(\tfrac12 e^{1/0.2} + \tfrac12 e^{0}\big)$ = 0.86 |
# | fast tool, wrong | −1 | 0 | $0.2 \log\big(\tfrac12 e^{-1/0.2} + \tfrac12 e^{0}\big)$ = −0.14 |
# | slow tool, right | 0.9 | −0.1 | both rewards are lower by the cost 0.1, so is $V$: 0.76 |
#
# *Before the result*, $Q(\text{tool})$ is the value of the action *call this tool*. It is the *mean* of
# $V$ over the results, because nobody chooses them: $Q = 0.8 \cdot 0.86 - 0.2 \cdot 0.14$ = 0.66 for the
# fast tool. The slow one has one result, so $Q = V$ = 0.76.
#
# *At the start* the policy chooses the tool, so $V_0$ is the soft maximum of the two $Q$: 0.72. It is the
# largest $J$.
#
# So in each situation, $\beta$ times the log-ratio of $\pi^*$ is the value of the action minus the value
# of the situation. That is $Q(\text{tool}) - V_0$ for the first action and $r - V(\text{result})$ for the
# second. Their sum is
#
# $$ \beta\, h^*(y) = r(y) - V_0 - \big[ V(\text{result}) - Q(\text{tool}) \big] . $$
#
# The bracket is the **transition term**: how lucky this result was. A right result of the fast tool is
# luck of $0.86 - 0.66 = 0.20$. A wrong one is $-0.14 - 0.66 = -0.80$. The mean of the luck is
# $0.8 \cdot 0.20 - 0.2 \cdot 0.80 = 0$, but a single response has it. A tool with one result has
# $V = Q$ and no luck: that is section 3.

# %%
world = core.ToolWorld.two_tools(right=0.8, cost=0.1)
start_value, q, values = world.optimal_values(beta=0.2)
luck = world.transition_term(beta=0.2)
luck[world.tool == 0] = torch.nan  # the slow tool never gives a wrong result
columns = {"Q": q, "right result: V - Q": luck[:, 0], "wrong result: V - Q": luck[:, 1]}
pd.DataFrame(columns, index=["fast tool", "slow tool"]).round(2)

# %% [markdown]
# DPO leaves out the bracket: its loss asks for $\beta h = r + k$ with one constant $k$. No policy satisfies
# this. After a given result, only the second part of $\beta h$ depends on the second action. So this part
# has to be $r$ minus a number. The probabilities of the second actions add up to 1, so the number is
# $V(\text{result})$. Then $V(\text{result}) + k$ remains for the first action: for the fast tool $0.86 + k$
# if the result is right, and $-0.14 + k$ if it is wrong. But the first action comes before the result and
# has one probability.
#
# **Predict.** Take DPO with and without the action mask. Without it, the loss has the two guesses of
# section 3. Let the reference's guess be perfect: of the fast tool it expects a right result with 80 %. Does each call the fast tool more often than the best policy, less often, or
# about as often? Which has the higher $J$, and is it the same one for every $\beta$?


# %% tags=["predict"]
def optima(beta):
    return {
        "the best policy": world.optimum(beta=beta),
        "DPO with the mask": world.masked_optimum(beta=beta),
        "DPO without the mask": world.unmasked_optimum(beta=beta)[:2],
    }


# %% tags=["predict"]
table = {}
for beta in (0.2, 0.5, 1.0):
    for name, policy in optima(beta).items():
        first, second = (x.exp() for x in policy)
        table[beta, name] = {
            "takes the fast tool": first[0].item(),
            "passes on if right": second[0, 0, 0].item(),
            "if wrong": second[0, 1, 0].item(),
            "J": world.objective(*policy, beta=beta).item(),
        }
pd.DataFrame(table).T.rename_axis(["beta", ""]).round(4)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# The numbers are for $\beta = 0.2$.
#
# - **Without the mask only the first action is wrong.** DPO takes the fast tool with probability 0.569,
#   the best policy with 0.378. DPO is an optimist here: its loss also falls when a good *result* gets
#   likelier. So its guess goes from 80 % right results of the fast tool to 99.8 %.
# - **With the mask the first action is nearly right, 0.376, but the second is not.** After a wrong
#   result DPO wants both actions to be less likely, by the bad luck, and after a right one both to be more
#   likely. Two probabilities that add up to 1 can do neither. The one near 1 hardly moves, so the small one
#   does: passing a wrong result on falls from 0.7 % to 0.01 %, and *I do not know* after a right one rises
#   from 0.7 % to 1.9 %. Here the second error costs more.
# - **Which error costs more depends on $\beta$.** At 0.2 the mask is better: $J$ is 0.7184 with it, and
#   0.7039 without. At 0.5 and at 1, DPO *without* the mask is a little better.
# </details>
#
# **What helps?** Subtract the luck from the rewards, and masked DPO is exact again: it takes the fast tool
# with 0.378 and passes a wrong result on with 0.7 %. For a real tool you have to estimate $V$ and $Q$. GRPO
# (lesson 11) with the mask needs no repair. The policy gradient weights each action by its *return*: the
# rewards after it minus the later penalties. Over the tool's results and the later actions, its mean is the
# $Q$ of the current policy. So the luck averages out.

# %% [markdown]
# ## 5. One step of multi-turn DPO
#
# This is lesson 14's online DPO: at each step the policy writes new pairs. Three things change: the sampler
# has a tool, a rule judges, and the sum has the action mask. A prompt whose eight responses are all right
# or all wrong gives no pair.
#
# `models.policy_logprobs` sets the tool's tokens to 0 for you. `every_logprob` does not: the mask goes in
# at step 4 only. `masked=False` puts the response mask there, as if you had forgotten the tool.

# %%
train = [p.prompt for p in tasks.calculator.problems("train", 2000, seed=1)]
actor, reference = copy.deepcopy(start).requires_grad_(True), copy.deepcopy(start)
plain = loops.OptimiserConfig.plain(lr=1e-4)
optimizer = loops.make_optimizer(actor, plain)
generator = torch.Generator().manual_seed(0)


def every_logprob(model, batch):
    """Log-probabilities of all response tokens, the tool's included, (B, R)."""
    return models.policy_logprobs(
        model, replace(batch, action_mask=batch.response_mask)
    )


def agent_step(index, masked=True):
    # 1. Eight responses to each prompt. The calculator writes its own tokens.
    ids, mask = models.encode_prompts(tokenizer, [train[i] for i in index])
    options = {"eos_id": eos, "config": sampling, "samples_per_prompt": 8}
    options |= {"generator": generator, "tool": calculator}
    batch = models.sample(actor, ids, mask, **options)
    # 2. The rule's score, one row per prompt: 1 if the answer is right, else 0.
    scores = score(batch).view(-1, 8)
    # 3. A pair for each prompt that has both: a right response and a wrong one.
    first = torch.arange(len(scores)) * 8
    differ = scores.amax(1) > scores.amin(1)
    chosen = (first + scores.argmax(1))[differ]
    rejected = (first + scores.argmin(1))[differ]
    pairs = batch.select(torch.cat([chosen, rejected]))
    # 4. The mask: which tokens count, (B, R).
    own = pairs.action_mask if masked else pairs.response_mask
    # 5. The log-probability of each response: the sum over these tokens.
    logprobs = core.sequence_logprobs(every_logprob(actor, pairs), own)
    with torch.no_grad():  # the reference does not learn
        ref_logprobs = core.sequence_logprobs(every_logprob(reference, pairs), own)
    # 6. The loss of lesson 12, and the update.
    losses = core.dpo(*logprobs.chunk(2), *ref_logprobs.chunk(2), beta=0.1)
    losses.mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    return {"loss": losses.mean().item(), "right": scores.mean().item()}


# %% [markdown]
# `train_online` is the package's loop. `formulas` are the functions that it calls: here the sampler gets
# the calculator. With its `plain` settings the loop leaves the same weights.

# %%
steps = 2 if FAST else 4  # FAST=1 is for the tests of this page
order = list(loops.shuffled_batches(len(train), 32, steps, seed=0))
log = pd.DataFrame([agent_step(index) for index in order])

settings = {"steps": steps, "batch_size": 32, "beta": 0.1}
settings["max_response"] = 33  # max_new_tokens, and the EOS
dpo = loops.DPOConfig.plain(**settings, optimiser=plain)
config = loops.OnlineConfig(
    samples=8, missing_eos_penalty=0.0, sampling=sampling, dpo=dpo
)
formulas = loops.DPOFormulas(sample=partial(models.sample, tool=calculator))
other = copy.deepcopy(start).requires_grad_(True)
loops.train_online(other, tokenizer, train, score, config, formulas=formulas)
assert models.same_weights(actor, other)
log.round(3)

# %% [markdown]
# The first loss is $\log 2$ = 0.693, as for every DPO that starts at its reference. *right* is the
# share of right answers among the 256 responses of a step.
#
# **Predict.** The next cell runs 36 steps with the mask and 36 without. Which of
# the two has the lower loss at the end? Which has more right answers?

# %% tags=["predict"]
curves = {}
for name in ("with the mask", "without the mask"):
    actor = copy.deepcopy(start).requires_grad_(True)
    optimizer = loops.make_optimizer(actor, plain)
    generator = torch.Generator().manual_seed(0)
    batches = loops.shuffled_batches(len(train), 32, 2 if FAST else 36, seed=0)
    masked = name == "with the mask"
    curves[name] = pd.DataFrame([agent_step(index, masked) for index in batches])
both = pd.concat(curves, axis=1).swaplevel(axis=1)
panels = {"loss": dict(both["loss"]), "share of right answers": dict(both["right"])}
show.lines(panels, xlabel="step")

# %% [markdown]
# <details><summary>What you should see</summary>
#
# The run without the mask has the lower loss and is the worse agent. In the last six steps its loss is
# about 0.3, against 0.6 with the mask. But only about half of its answers are right, and about three
# quarters with the mask. The two losses sum over different tokens, so they cannot be compared: no loss
# shows that the mask is missing.
# </details>
#
# **Why do the policy's own tokens learn less?** tiny-agent was trained with the action mask too, so it
# gives the tool's `{` about −13 nats and its `}` about −10, which is easy to raise. Without the mask the
# tool's tokens, a fifth of all, give about nine tenths of the squared norm of the first gradient. Adam's
# steps are about equally long, however large the gradient is. So little is left for the policy's own
# tokens.

# %% [markdown]
# ## 6. Does it matter? Three iterations on tiny-agent
#
# `minirlhf experiment multi_turn` has recorded runs with three seeds, tested on *held-out* problems, which
# are not in the training. An *iteration* is: sample eight responses to each of 384 problems, make the
# pairs, take 12 steps on them. A run is three iterations, with $\beta = 0.1$ as in section 5. Its learning
# rate decays, so do not compare the two. We compare DPO, Kahneman-Tversky optimisation (KTO, lesson 14b:
# single responses, labelled right or wrong) and GRPO, which samples anew for each step. The columns of the
# table:
#
# | column | what it is |
# |---|---|
# | right answers | pass@1: the share of right ones among single samples at temperature 1, here 16 for each of 400 problems (the figure has one of each) |
# | calls | the share of all responses that have a call |
# | right numbers | the share of these calls that have the prompt's product |
# | own tokens, tool's | the two parts of $\Delta h$ (the record's `margin`, without $\beta$). The pairs are a right and a wrong response that tiny-agent wrote before training |
# | in brackets | the lowest and the highest seed |
#
# **Predict.** Do KTO and GRPO need the mask as much as DPO? Without the mask, does a policy learn to call,
# to copy the numbers, or both?

# %% tags=["predict"]
history = experiments.results("multi_turn_history")
four = ["dpo", "dpo, no mask", "grpo", "grpo, no mask"]
show.curves(
    history[history.variant.isin(four)],
    columns="right",
    labels={"right": "share of right answers"},
)

# %% tags=["predict"]
runs = experiments.results("multi_turn")
runs["margin_on_own"] = runs.margin - runs.margin_on_tool
runs["calls"] = 1 - runs["no call"]
runs["right numbers"] = runs["right call"] / runs.calls
columns = {"pass_1": "right answers", "calls": "calls"}
columns["right numbers"] = "right numbers, of the calls"
columns |= {"margin_on_own": "own tokens, nats", "margin_on_tool": "tool's, nats"}
methods = ["dpo", "dpo, no mask", "kto", "kto, no mask", "grpo", "grpo, no mask"]
experiments.shown(runs[runs.variant.isin(["start", *methods])], columns)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# - **With the mask, samples are better.** Right answers rise from 0.32 to 0.56 (DPO), 0.57 (KTO) and 0.58
#   (GRPO). Without it they reach only 0.40, 0.41 and 0.42. The gap is there on every seed.
# - **Without the mask the policy learns to call, but less, and it does not learn to copy.** DPO raises
#   the calls from 0.40 to 0.54 without the mask, and to 0.63 with it. At the start 0.79 of the calls
#   have the right numbers. Without the mask 0.77 have, and with it 0.91.
# - **Without the mask, training is spent on the tool's tokens.** Of DPO's $\Delta h$ of 14.83 nats, 14.28
#   are on the tool's tokens: 96 %. Only 0.55 are on the policy's own, and with the mask 2.05.
# - **Greedy answers are nearly all right.** With the mask, DPO's samples still answer 37 % in the head. But
#   of its greedy answers 0.98 are right, against 0.025 at the start: for nearly every prompt, calling is
#   now the likelier choice. Without the mask it is 0.97.
# </details>

# %% [markdown]
# **A calculator that errs.** Now one call in five gets a wrong result, in training and in the test: one
# digit is changed, such as `{3981}` for `{3901}`. By section 4, DPO then leaves out a transition term, and
# GRPO does not. *Right calls* is the share of all responses that call with the prompt's product, whatever
# the result.
#
# **Predict.** Without errors GRPO ends 0.02 above DPO. Will the gap be larger with errors?

# %% tags=["predict"]
with_errors = [f"{name}; the tool errs" for name in ["start", *methods]]
columns = {"pass_1": "right answers", "right call": "right calls"}
experiments.shown(runs[runs.variant.isin(with_errors)], columns)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# No: GRPO is again 0.02 above DPO. In section 4 masked DPO gets the *call* nearly right, and the action
# *after* the result wrong. Here that action cannot depend on the error: nothing tells the policy that a
# result is wrong, and it has no *I do not know*. **A random tool does not always hurt DPO.**
# </details>

# %% [markdown]
# ## What to remember
#
# - The **action mask** is true at the tokens that the policy chose, the end of a call and the EOS
#   included. Multi-turn DPO sums its log-ratio over these tokens.
# - If the same call always gets the same result, this is exact. If not, DPO leaves out the luck of the
#   result (the transition term), and this distorts the actions after it.
# - Without the mask, training is spent on predicting the tool, and the loss looks *better*. With several
#   tools, the policy can also become an optimist.
#
# ## Exercises
#
# The checkers say "pass", or name the mistake. Solutions are in
# `solutions/15_an_agent_with_a_tool.ipynb`.

# %% [markdown] tags=["exercise"]
# **1. The log-ratio of an agent's response** *(easy, 10 minutes)*. `logprobs` and `ref_logprobs`
# (B, R) are the log-probabilities of the response tokens under policy and reference. `action_mask`
# (B, R) is true at the tokens that the policy chose. Return $h$ for each response, (B,). Where the
# mask is false the numbers can be NaN.
#
# *Hint:* NaN times 0 is NaN, so do not multiply by the mask. Which function *chooses* between two tensors?


# %% tags=["exercise"]
def turn_log_ratio(logprobs, ref_logprobs, action_mask): ...  # your code


check.turn_log_ratio(turn_log_ratio)


# %% tags=["solution"]
def turn_log_ratio(logprobs, ref_logprobs, action_mask):
    return torch.where(action_mask, logprobs - ref_logprobs, 0.0).sum(1)


check.turn_log_ratio(turn_log_ratio)

# %% [markdown] tags=["exercise"]
# **2. The luck of a result** *(medium, 20 minutes)*. First on paper: a third tool is right in half
# of its calls and costs nothing. Take $\beta = 0.2$ and the values of section 4. What is $Q$ of this
# tool, and how lucky is its right result?
#
# <details><summary>The two numbers</summary>
#
# $Q = (0.86 - 0.14) / 2$ = 0.36, so a right result is luck of $0.86 - 0.36$ = 0.50.
# </details>
#
# Now the general case. `tool` (A, O) has the probability of each result of each first action,
# `rewards` (A, O, C) the reward of each whole response, and `ref_second` (A, O, C) the probabilities
# of the second action under the reference. Return the transition term $V - Q$, (A, O).
#
# *Hint:* $V = \beta \log \sum_c \pi_{\text{ref}}(c)\, e^{r/\beta}$. Rewards of 300 should not give
# infinity: use `logsumexp`.


# %% tags=["exercise"]
def luck_of_a_result(tool, rewards, ref_second, beta): ...  # your code


check.luck_of_a_result(luck_of_a_result)


# %% tags=["solution"]
def luck_of_a_result(tool, rewards, ref_second, beta):
    values = beta * (ref_second.log() + rewards / beta).logsumexp(-1)
    q = (tool * values).sum(1, keepdim=True)
    return values - q


check.luck_of_a_result(luck_of_a_result)

# %% [markdown] tags=["exercise"]
# **3. Find the bug** *(medium, 15 minutes)*. A colleague trains `tiny-agent` as in section 6. The loss
# falls nicely, but the share of right answers does not move. The figure shows two real runs of DPO: the
# right one is recorded in section 6, and the colleague's has the same settings and the mask below.
# `by_policy` (B, R) is true where the policy wrote the token; at padding it can be anything.
#
# First on paper, for `[ 7 ] { 7 } 7 EOS`. Which two tokens have no loss and should have one? Which
# token has a loss and should have none? Which of the three explains that the agent does not learn to
# call, and which one that the loss falls? Then mend `mask_of`, and run the check in the last cell.
#
# *Hint:* write both masks of the eight tokens under each other, the right one and the colleague's.
#
# <details><summary>The three tokens</summary>
#
# The first `[` and the `7` after the result have no loss. The `{` has a loss, and the tool wrote it. The
# `[` is the decision to call. It has no loss, so the agent does not learn to call. The loss falls because
# the policy learns to predict the `{` of the right responses.
# </details>


# %% tags=["exercise"]
right = {"colleague": [0.31, 0.33, 0.32, 0.32], "right mask": [0.31, 0.42, 0.51, 0.53]}
show.lines(right, [0, 12, 24, 36], xlabel="step", ylabel="share of right answers")


# %% tags=["exercise"]
def mask_of(by_policy, response_mask):
    """True where the policy wrote the token, (B, R)."""
    before = torch.zeros_like(by_policy[:, :1])
    return torch.cat([before, by_policy[:, :-1]], 1) & response_mask


# %% tags=["exercise"]
check.mask_of(mask_of)

# %% [markdown] tags=["solution"]
# The mask is shifted by one token, as if it stood at the position that *predicts* the token. The
# package's columns are those of the token itself. The two masks:
#
# | token | `[` | `7` | `]` | `{` | `7` | `}` | `7` | EOS |
# |---|---|---|---|---|---|---|---|---|
# | right | 1 | 1 | 1 | 0 | 0 | 0 | 1 | 1 |
# | colleague | 0 | 1 | 1 | 1 | 0 | 0 | 0 | 1 |
#
# No loss, but should have one: the first `[`, and the `7` after the result. A loss, but should have
# none: the `{`.
#
# The first token is the decision: `[` calls, `~` answers in the head. It is just what the agent should
# learn. It has no loss, so the agent does not learn to call. The loss falls all the same, because the
# policy learns to predict the `{` of the right responses.


# %% tags=["solution"]
def mask_of(by_policy, response_mask):
    """True where the policy wrote the token, (B, R)."""
    return by_policy & response_mask


check.mask_of(mask_of)

# %% [markdown] tags=["exercise"]
# **4. The whole step on an empty page** *(hard, 25 minutes)*. Close section 5. Write `agent_step` from
# memory, under the name `my_step`: sample eight responses to each prompt of `train[i]`, with the tool;
# score; for each prompt that has both, the first right and the first wrong response; log-probabilities
# under `actor` and `reference`, on the policy's own tokens; loss with $\beta = 0.1$; update with
# `optimizer`. Return the mean loss. The last cell runs the steps of section 5 again and compares.
#
# Take the log-probabilities from `every_logprob(model, batch)` of section 5. It does not leave out the
# tool's tokens, so the mask is your task. You also need `models.encode_prompts`, `models.sample`, `score`,
# `batch.select`, `core.sequence_logprobs` and `core.dpo`. `help(models.sample)` tells you the arguments
# of a function. All random numbers come from `generator`.
#
# <details><summary>My numbers differ. Where do I look?</summary>
#
# - An error that asks for at least one row: no prompt had both a right and a wrong response. Does the
#   sampler have the tool?
# - The first loss is not $\log 2$: the four log-probabilities, or their order.
# - The second one differs: the sampling, the pairs, the mask or the update.
# - The second agrees and the third differs, if only a little: the gradients are not set to zero.
# - The losses agree and the weights do not: the last update.
# </details>


# %% tags=["exercise"]
def my_step(index): ...  # your code


# %% [markdown] tags=["solution"]
# `agent_step` in section 5 of the lesson is the solution. If your weights differ, compare the two line
# by line. Common slips: the response mask instead of the action mask, the mean over tokens instead of
# the sum, a sampler without the tool, a pair of prompts whose responses are all right or all wrong,
# gradients that are not set to zero.

# %% tags=["exercise"]
actor, reference = copy.deepcopy(start).requires_grad_(True), copy.deepcopy(start)
optimizer = loops.make_optimizer(actor, plain)
generator = torch.Generator().manual_seed(0)
mine = [my_step(index) for index in order]
print("losses, section 5:", log["loss"].tolist())
print("losses, my_step:  ", mine)
print("the weights are equal:", models.same_weights(actor, other))

# %% [markdown]
# ## Questions
#
# <details><summary>1. Why not read the mask off the text: everything between { and } is the tool's?</summary>
#
# Because the policy can write `{` and `}` itself. A policy that is rewarded for it may *forge* a
# result. Then a mask from the text would leave out tokens that it did choose. The sampler knows who
# wrote a token, so it should say so.
# </details>
#
# <details><summary>2. The tool's tokens have no loss. Does the policy learn nothing from them?</summary>
#
# It learns to *use* them: the log-probabilities of its later tokens depend on them, and these have a
# loss. It does not learn to predict them.
# </details>
#
# <details><summary>3. Do GRPO and PPO need the mask, too?</summary>
#
# Yes, and for a simpler reason. The policy gradient is a sum over the policy's own actions. The
# tool's tokens are no actions. With the mask the policy gradient has no transition term, even if the
# tool errs.
# </details>
#
# <details><summary>4. Half of my pairs are "the tool had an error" against "it had none". What do I learn?</summary>
#
# Mostly luck. Pair responses that got the same kind of result, or use a method that follows the
# gradient of the reward.
# </details>
#
# ## Going further
#
# **What else weakens the policy's own tokens without the mask?** Section 5 gives the share of the tool's
# tokens in DPO's gradient. In GRPO's it is three quarters. DPO also weights each pair with
# $\sigma(-\beta\, \Delta h)$ (lesson 12). Take $\beta = 0.1$, as in section 6, and the mean $\Delta h$
# of its table. Without the mask $\Delta h$ is 14.83 nats, so $\beta\, \Delta h$ is 1.48 and the weight
# 0.19. With the mask $\Delta h$ has only the policy's tokens, 2.05 nats, and the weight is 0.45.
#
# **Why does a result raise $\Delta h$ so easily?** At the start a result is in 96 % of the right
# responses, and in 15 % of the wrong ones. So predicting what the calculator writes raises the right
# responses above the wrong ones. A model that already knows what its tool writes has less to gain there,
# and may lose less. With the mask the tool's part of $\Delta h$ *falls*, by 1.5 to 2.2 nats. The policy
# does not write these tokens, so this does no harm.
#
# **What do the calculator's errors cost?** With the mask they lower right answers from 0.57 to 0.44, by
# 0.13 (means of the three methods). One wrong result in five explains most of this: 0.57 / 5 = 0.11. The
# rest has two sources. By chance the test's calculator erred in 21 % of the calls. And right calls, counted
# without errors, fall by 0.005. Without the mask fewer answers are right, so errors cost less: 0.07 to 0.09.
#
# **Without the mask, for any guess.** In section 4 the reference's guess is perfect. In general it gives
# result $o$ of a tool the probability $p_{\text{ref}}(o \mid \text{tool})$. Then the minimum without the
# mask chooses a tool in proportion to
#
# $$ \pi_{\text{ref}}(\text{tool}) \sum_o p_{\text{ref}}(o \mid \text{tool})\, e^{V(o)/\beta} , $$
#
# and its own guess is in proportion to $p_{\text{ref}}(o \mid \text{tool})\, e^{V(o)/\beta}$. The second
# actions are those of $\pi^*$. This holds if the results that are possible in the guess are those that the
# tool can give. The probabilities of the true tool do not occur. If the reference guesses 50 % right
# results of the fast tool, this policy takes it with probability 0.45 ($\beta = 0.2$). The minimum *with*
# the mask has no formula. The lesson finds it numerically, for pairs of two responses of the reference.
#
# **Several calls.** A response with several calls has one transition term for each: the sum of section 4
# goes on, with $Q$ of a call minus $V$ of the situation before it. Between two actions without a tool in
# between, $Q$ of the first *is* $V$ of the next situation, and there is no term.
#
# **A reference that follows.** The experiment has rows *reference follows*: after each iteration the
# reference becomes the policy. This changes right answers by less than 0.01. With the mask DPO gains
# 2.05 nats, so $\beta\, \Delta h$ = 0.21. DPO weights the pair with $\sigma(-0.21)$ = 0.45, and with a
# reference that has followed by nearly 0.50.
#
# **Errors of the tool that a rule can see.** The authors of multi-turn DPO drop pairs in which the tool
# reported an error. That removes some luck, and it also removes what the policy could learn about calls
# that fail.
#
# **What the libraries do.** TRL's GRPO takes the tokens of a tool as a mask (`tool_mask`). Its DPO has
# no mask for single turns (version 1.16). There the whole completion is in the loss. The code published
# with multi-turn DPO finds the turns in the token ids of the chat template: for each kind of template it
# needs a branch of its own, and a wrong branch masks wrong tokens. Several libraries once decoded the
# turns to text and tokenised them again. TRL now joins the ids instead.
#
# **References.** Xiong et al. 2024, *Building math agents with multi-turn iterative preference
# learning* (section 3: the loss, and when it is exact). Ethayarajh et al. 2024, *KTO*. Shao et al.
# 2024, *DeepSeekMath* (GRPO). Schick et al. 2023, *Toolformer*.
#
# *How this lesson is checked:* the world of section 4 is solved in three ways in
# `tests/core/test_exact_tool.py`. That ids, masks and turns stay as they were sampled is tested in
# `tests/models/test_agent.py`. Every number about a recorded run is compared with the record
# (`tests/claims/test_lesson_15.py`).
