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
# **You need** lesson 11 (verifiable rewards) and lesson 12 (direct preference optimisation, DPO).
# About 45 minutes to read and 60 for the exercises.

# %%
import copy
from functools import partial

import pandas as pd
import torch

from minirlhf import core, evaluate, experiments, loops, models, rewards, show, tasks
from minirlhf.classroom import FAST, check

# %% [markdown]
# ## 1. The idea: two authors, one response
#
# Until now the policy wrote every token of a response. An **agent** does not. It can call a
# **tool**, such as a calculator, a search engine or a compiler. The tool answers, and the policy
# writes on. So one response has two authors:
#
# | who writes | tokens | what it is |
# |---|---|---|
# | policy | `[47*83]` | a *call* of the calculator |
# | tool | `{3901}` | its result |
# | policy | `3906` | the answer to the prompt `47*83+5=` |
#
# Training may change the policy, and nothing else. So only the policy's tokens belong into the loss.
# Let $m_t$ be 1 if the policy chose token $t$, and 0 if the tool wrote it. This is the **action
# mask**. The log-ratio of lesson 12 becomes a sum over the policy's tokens:
#
# $$ h(y) = \sum_t m_t \big[ \log \pi(y_t \mid s_t) - \log \pi_{\text{ref}}(y_t \mid s_t) \big] . $$
#
# Here $s_t$ is the prompt and *all* tokens before $y_t$, those of the tool included: the policy
# reads what the tool wrote. With this $h$, the loss of a pair is that of lesson 12. It is called
# *multi-turn DPO* (Xiong et al. 2024).
#
# That is one line of code. This lesson asks two questions about it. Is it right? And does it matter?

# %% [markdown]
# **Predict.** Here are the tokens of one response: `[ 4 7 * 8 3 ] { 3 9 0 1 } 3 9 0 6 EOS`. For
# which of them is $m_t = 1$? Decide about the brackets one by one: who wrote `]`, `{`, `}` and EOS?

# %% [markdown]
# <details><summary>What you should see</summary>
#
# The policy chose `[ 4 7 * 8 3 ]` and `3 9 0 6 EOS`. The tool wrote `{ 3 9 0 1 }`, with both curly
# brackets. The `]` is the policy's decision to *end* the call. The EOS is its decision to end the
# response. Both are learned. A mask that is shifted by one token would drop the `]` and count the `{`.
# </details>

# %% [markdown]
# ## 2. Taking turns
#
# `tiny-agent` is a small GPT-2 of 0.8 million parameters. A token is one character. The problems
# are products of two-digit numbers, plus or minus a number. It has seen three kinds of
# demonstrations: right calls, some wrong calls, and mostly answers *in the head*, without a call,
# which start with `~`. Products are too hard for its head.
#
# The loop is the one of every policy, with one addition. The policy samples token by token until it
# writes `]`. Then the tool reads the token ids up to there and appends its own. Then the policy goes
# on. Nothing is turned into text and tokenised again: for most tokenizers that would give other
# tokens than those that were sampled.

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
# The score is a rule: 1 if the number after the last call is the value of the prompt, and 0
# otherwise. Look at a response that is wrong *although* it calls the calculator: it has copied a
# digit wrongly, so the calculator answered another question. And look at the answers in the head:
# nearly all are wrong.
#
# Here are three responses under the microscope. The colour is the log-probability of the token.
# The tool's tokens are grey: the policy did not choose them, so they have no number.

# %%
calls = (~batch.action_mask & batch.response_mask).any(1)
some = batch.select(calls.nonzero()[:3, 0])
table = evaluate.token_table(
    some, tokenizer, actor=start, temperature=1.0, alternatives=5
)
show.microscope(table, "logprob", text="all")

# %% [markdown]
# Most tokens are nearly certain. The first one is not: to call, or not to call, is a decision that
# training can change. And the digits of a wrong copy stand out in orange.

# %% [markdown]
# ## 3. Is it right? A tool that always gives the same answer
#
# Lesson 12 began with the best policy: $\pi^*$ has the highest expected reward minus KL penalty. For
# whole responses it satisfies
#
# $$ r(y) = \beta \log \frac{\pi^*(y)}{\pi_{\text{ref}}(y)} + \text{a constant} , $$
#
# and DPO puts this into the Bradley-Terry model. Does it still hold with the masked sum $h$?
#
# The probability of a response is now a product of two kinds of factors: the policy's probabilities
# and the tool's. The tool is the same under both policies, so its factors *cancel* in the ratio.
# What remains is $h$. So far, the mask only leaves out what cancels anyway.
#
# But $\pi^*$ itself is the question. DPO's equation says: make each response likelier by
# $e^{r/\beta}$. For this the policy would have to choose *every* token. With a calculator it does,
# in a way: the call decides the result. If the tool **always gives the same answer to the same
# call**, choosing the call is choosing the answer, and the equation holds. So for a calculator, a
# compiler or a fixed database, masked DPO is exact.

# %% [markdown]
# ## 4. And a tool that is sometimes wrong?
#
# A search engine may return something else tomorrow. Then the policy cannot choose the answer, and
# the equation gets one more term. Let us see it in a world that we can solve on paper.
#
# There are two tools. The *fast* one is right in 80 % of the calls. The *slow* one is always right,
# but it costs 0.1. The policy chooses a tool, sees whether the answer is right, and then either
# passes it on (reward 1 if right, −1 if wrong) or says *I do not know* (reward 0). The reference
# tosses a coin for every choice.
#
# We work backwards, as in lesson 13. Take $\beta = 0.2$.
#
# 1. *After the answer.* The best policy passes a right answer on, and not a wrong one. This is worth
#    $V = 0.2 \log\big(\tfrac12 e^{1/0.2} + \tfrac12 e^{0}\big)$ = 0.86 after a right answer of the
#    fast tool, and $0.2 \log\big(\tfrac12 e^{-1/0.2} + \tfrac12\big)$ = −0.14 after a wrong one.
# 2. *Before the answer.* The fast tool is worth the mean: $Q = 0.8 \cdot 0.86 - 0.2 \cdot 0.14$ =
#    0.66. The slow one is worth $0.86 - 0.1$ = 0.76. So the slow tool is the better choice.
#
# Now add up the policy's log-ratios along one response, and compare with the reward:
#
# $$ \beta\, h^*(y) = r(y) - V_0 - \big[ V(\text{answer}) - Q(\text{tool}) \big] . $$
#
# The bracket is the **transition term**: how lucky this answer was. A right answer of the fast tool is
# luck of $0.86 - 0.66 = 0.20$. A wrong one is $-0.14 - 0.66 = -0.80$. The mean of the luck is
# $0.8 \cdot 0.20 - 0.2 \cdot 0.80 = 0$, but in a single pair it is there.

# %%
world = core.ToolWorld.two_tools(right=0.8, cost=0.1)
start_value, q, values = world.optimal_values(beta=0.2)
rows = ["fast tool", "slow tool"]
print("Q:", dict(zip(rows, q.numpy().round(2))))
pd.DataFrame(
    world.transition_term(beta=0.2).numpy().round(2),
    index=rows,
    columns=["right answer", "wrong answer"],
)

# %% [markdown]
# (A wrong answer of the slow tool never happens, so its number does not matter.)
#
# DPO does not know the bracket. Its pairs say "the fast tool and a right answer is preferred to the
# slow tool". That was luck, and DPO takes it for skill.
#
# **Predict.** Three policies choose between the tools: the best one, DPO with the action mask, and
# DPO without it, which treats the tool's answer as if the policy had chosen it. Which of the two
# chooses the fast tool too often? What does it believe about the tool?

# %%
policies = {
    "the best policy": world.optimum(beta=0.2),
    "DPO with the mask": world.masked_optimum(beta=0.2),
    "DPO without the mask": world.unmasked_optimum(beta=0.2)[:2],
}
pd.DataFrame(
    {
        name: {
            "chooses the fast tool": policy[0][0].exp().item(),
            "expected reward": world.expected_reward(*policy).item(),
            "objective J": world.objective(*policy, beta=0.2).item(),
        }
        for name, policy in policies.items()
    }
).T.round(3)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# The best policy chooses the fast tool with 0.378. DPO with the mask comes very close, with 0.376.
# DPO *without* the mask chooses it with 0.569: it is an **optimist**. It can lower its loss by making
# the *answer* likelier, so it learns a picture of the tool in which right answers come 99.8 % of the
# time instead of 80 %, and then it relies on that picture.
# </details>
#
# So the mask protects from optimism. It does not make DPO exact: some of the luck remains, and has to
# go somewhere. With the mask it goes into the second action. After a *wrong* answer the best policy
# passes it on with 0.7 %, and masked DPO with almost 0 %.
#
# **Which error is worse depends on $\beta$.** At $\beta = 0.2$ the objective $J$ is 0.7189 for the
# best policy, 0.7184 with the mask and 0.7039 without. At $\beta = 1$, where everybody stays close to
# the reference, it is 0.4714, 0.4667 and 0.4708: there DPO *without* the mask is the better one. A
# method that follows the gradient of $J$, such as GRPO, has no such term: it never asks why a
# response was good. For GRPO the mask is right for every tool.

# %% [markdown]
# ## 5. One step of multi-turn DPO
#
# Now the whole step. It is lesson 14's online DPO with three changes: the sampler has a tool, a rule
# is the judge, and the mask is the action mask. A prompt whose eight responses are all right or all
# wrong gives no pair.

# %%
train = [p.prompt for p in tasks.calculator.problems("train", 2000, seed=1)]
actor, reference = copy.deepcopy(start).requires_grad_(True), copy.deepcopy(start)
plain = loops.OptimiserConfig.plain(lr=1e-4)
optimizer = loops.make_optimizer(actor, plain)
generator = torch.Generator().manual_seed(0)


def agent_step(index):
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
    # 4. The log-probability of each response: the sum over the policy's own tokens.
    own = pairs.action_mask
    logprobs = core.sequence_logprobs(models.policy_logprobs(actor, pairs), own)
    with torch.no_grad():  # the reference does not learn
        ref_logprobs = core.sequence_logprobs(
            models.policy_logprobs(reference, pairs), own
        )
    # 5. The loss of lesson 12, and the update.
    losses = core.dpo(*logprobs.chunk(2), *ref_logprobs.chunk(2), beta=0.1)
    losses.mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    return {"loss": losses.mean().item(), "right": scores.mean().item()}


# %% [markdown]
# `train_online` is the package's loop. It gets the tool through `formulas`: the function that samples
# is replaced by one that has the calculator. With its `plain` settings it leaves the same weights.

# %%
steps = 2 if FAST else 4  # FAST=1 is for the tests of this page
order = list(loops.shuffled_batches(len(train), 32, steps, seed=0))
log = [agent_step(index) for index in order]

settings = {"steps": steps, "batch_size": 32, "beta": 0.1, "max_response": 33}
dpo = loops.DPOConfig.plain(**settings, optimiser=plain)
config = loops.OnlineConfig(
    samples=8, missing_eos_penalty=0.0, sampling=sampling, dpo=dpo
)
formulas = loops.DPOFormulas(sample=partial(models.sample, tool=calculator))
other = copy.deepcopy(start).requires_grad_(True)
loops.train_online(other, tokenizer, train, score, config, formulas=formulas)
assert models.same_weights(actor, other)
pd.DataFrame(log).round(3)

# %% [markdown]
# The first loss is $\log 2$ = 0.693, as for every DPO that starts at its reference. *right* is the
# share of right answers among the 256 responses of a step. After four steps it moves, but 256
# responses are too few to be sure.

# %% [markdown]
# ## 6. Does it matter? Three iterations on tiny-agent
#
# Four steps say little. `minirlhf experiment multi_turn` has longer runs, recorded with three seeds. An
# *iteration* is: sample eight responses to each of 384 problems, make the pairs, take 12 steps on them.
# Three iterations make a run. Three methods learn from the same kind of samples: DPO, Kahneman-Tversky
# optimisation (KTO, lesson 14b: single responses, labelled right or wrong) and GRPO (lesson 11).
#
# **Predict.** Without the mask, the tool's tokens count as if the policy had chosen them. The calculator
# is deterministic, so section 3 says that its factors cancel. Does a run without the mask end better,
# worse or the same? Which tokens will the loss use most?

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
columns = {"pass_1": "right answers", "no call": "answers in the head"}
columns |= {"margin_on_own": "own tokens, nats", "margin_on_tool": "tool's, nats"}
methods = ["dpo", "dpo, no mask", "kto", "kto, no mask", "grpo", "grpo, no mask"]
experiments.shown(runs[runs.variant.isin(["start", *methods])], columns)

# %% [markdown]
# The brackets give the lowest and the highest seed. The two columns in nats come from pairs of a right
# and a wrong response of the *start*. They say by how much training has raised $\log \pi$ of the right one
# above that of the wrong one, on the policy's own tokens and on the tool's.
#
# <details><summary>What you should see</summary>
#
# - **The mask decides.** With it, right answers rise from 0.32 to 0.56 (DPO), 0.57 (KTO) and 0.58
#   (GRPO). Without it they reach only 0.40, 0.41 and 0.42. The gap is there on every seed.
# - **Without the mask, training is spent on the tool's tokens.** Of the 14.8 nats that DPO gains
#   without the mask, 14.3 are on the tool's tokens: 96 %. On the policy's own tokens it gains 0.6, and
#   with the mask 2.1. Most right responses contain a result such as `{3901}`, and most wrong ones do
#   not. The start never learned to predict these tokens. So the easiest way to make right
#   responses more likely is to predict what the calculator writes. To *call* it is learned less.
# - **Why do the factors not cancel?** Those of the *calculator* do. But without the mask, the loss
#   has the policy's *guess* of what the calculator will write. The reference makes another guess.
# - With the mask, the tool's tokens lose about 2 nats. They have no loss, so they drift. It does no
#   harm: the policy never writes them.
# </details>

# %% [markdown]
# **A calculator that errs.** Now it gives a wrong result in one call of five, in training and in the
# test. Some good calls get a bad label. Section 4 says that DPO then leaves out a transition term, and
# GRPO does not.
#
# **Predict.** Without errors GRPO ends 0.02 above DPO. Will the gap be larger with errors?

# %% tags=["predict"]
errs = runs[runs.variant.str.endswith("; the tool errs")]
columns = {"pass_1": "right answers", "right call": "right calls"}
experiments.shown(errs, columns)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# No: GRPO is again 0.02 above DPO. Errors cost every method about 0.13 of its right answers, because one
# right call in five gets a wrong result. But the policy makes as many right calls as before. In
# section 4 there was a second tool to turn to. Here there is none: calling is better than the head,
# errors or not, and the luck of an answer is the same for all calls. **A random tool does not always
# hurt DPO. It hurts where the policy can choose between more and less luck.** The mask matters as much
# as before.
#
# In the rows *reference follows* the reference becomes the policy after each iteration. Here it changes
# nothing. With $\beta = 0.1$ a gain of 2.1 nats makes $\beta h$ = 0.21. DPO then weighs the pair by
# $\sigma(-0.21)$ = 0.45, and with a reference that has followed by nearly 0.50.
# </details>

# %% [markdown]
# ## What to remember
#
# - An agent's response has two authors. The **action mask** is true at the tokens that the policy
#   chose, the end of a call and the EOS included.
# - Multi-turn DPO is DPO whose log-ratio is summed over these tokens. The policy still *reads* the
#   tool's tokens.
# - If the same call always gets the same answer, this is exact. If not, DPO takes luck for skill. The
#   error is the transition term: how much better the answer was than its mean.
# - Without the mask, training is spent on predicting the tool. In a world with a choice of tools, the
#   policy also becomes an optimist.
# - Keep the ids that were sampled. Text that is tokenised again can be other tokens.
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
# *Hint:* NaN times 0 is NaN. Choose with `torch.where` first, then add.


# %% tags=["exercise"]
def turn_log_ratio(logprobs, ref_logprobs, action_mask): ...  # your code


check.turn_log_ratio(turn_log_ratio)


# %% tags=["solution"]
def turn_log_ratio(logprobs, ref_logprobs, action_mask):
    return torch.where(action_mask, logprobs - ref_logprobs, 0.0).sum(1)


check.turn_log_ratio(turn_log_ratio)

# %% [markdown] tags=["exercise"]
# **2. The luck of an answer** *(medium, 20 minutes)*. First on paper: a third tool is right in half
# of its calls and costs nothing. Take $\beta = 0.2$ and the values of section 4. What is $Q$ of this
# tool, and how lucky is its right answer?
#
# <details><summary>The two numbers</summary>
#
# $Q = (0.86 - 0.14) / 2$ = 0.36, so a right answer is luck of $0.86 - 0.36$ = 0.50.
# </details>
#
# Now the general case. `tool` (A, O) has the probability of each answer to each first action,
# `rewards` (A, O, C) the reward of each whole response, and `ref_second` (A, O, C) the probabilities
# of the second action under the reference. Return the transition term $V - Q$, (A, O).
#
# *Hint:* $V = \beta \log \sum_c \pi_{\text{ref}}(c)\, e^{r/\beta}$. Rewards of 300 should not give
# infinity: use `logsumexp`.


# %% tags=["exercise"]
def luck_of_an_answer(tool, rewards, ref_second, beta): ...  # your code


check.luck_of_an_answer(luck_of_an_answer)


# %% tags=["solution"]
def luck_of_an_answer(tool, rewards, ref_second, beta):
    values = beta * (ref_second.log() + rewards / beta).logsumexp(-1)
    q = (tool * values).sum(1, keepdim=True)
    return values - q


check.luck_of_an_answer(luck_of_an_answer)

# %% [markdown] tags=["exercise"]
# **3. Find the bug** *(medium, 15 minutes)*. A colleague trains `tiny-agent` as in section 6. The
# loss falls nicely, but the accuracy does not move. The figure has the colleague's run and the right
# one. Here is how the mask is made from a list that says who wrote each token. What is wrong? Mend
# `mask_of`. And say why just *this* token stops the agent from learning to call.
#
# *Hint:* write the mask of `[ 7 ] { 7 } 7 EOS` on paper.


# %% tags=["exercise"]
right = {"colleague": [0.31, 0.33, 0.32, 0.32], "right mask": [0.31, 0.42, 0.51, 0.53]}
show.lines(right, [0, 12, 24, 36], xlabel="step", ylabel="share of right answers")


# %% tags=["exercise"]
def mask_of(authors):
    """True where the policy wrote the token; authors: "policy" or "tool" for each."""
    own = torch.tensor([author == "policy" for author in authors])
    return torch.cat([torch.tensor([False]), own[:-1]])


mask_of(["policy"] * 3 + ["tool"] * 3 + ["policy"] * 2)

# %% [markdown] tags=["solution"]
# The mask is shifted by one token, as if it stood at the position that *predicts* the token. The
# package's columns are already those of the token itself. So the first token of the response has no
# loss, and the first token of each result has one. In this task the first token is the decision: `[`
# calls, `~` answers in the head. It is just what the agent should learn. The loss falls all the same,
# because it can make the `{` of the right responses likelier.


# %% tags=["solution"]
def mask_of(authors):
    """True where the policy wrote the token."""
    return torch.tensor([author == "policy" for author in authors])


mask_of(["policy"] * 3 + ["tool"] * 3 + ["policy"] * 2)

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
# Yes, and for a simpler reason. The policy gradient is a sum over the policy's own choices. The
# tool's tokens are no choices. With the mask GRPO is right for every tool, also for one that errs.
# </details>
#
# <details><summary>4. Half of my pairs are "the tool had an error" against "it had none". What do I learn?</summary>
#
# Mostly luck. Pair responses that got the same kind of answer, or use a method that follows the
# gradient of the reward.
# </details>
#
# ## Going further
#
# **The transition term, derived.** At a state where the policy acts, the best policy has
# $\beta \log \frac{\pi^*(a)}{\pi_{\text{ref}}(a)} = Q(a) - V$, as in lesson 13. Take the sum over the two
# actions of section 4. The first gives $Q(\text{tool}) - V_0$, the second $r - V(\text{answer})$. Together:
# $r - V_0 - [V(\text{answer}) - Q(\text{tool})]$. With one action after the other and no tool between them,
# $Q$ of an action *is* $V$ of the next state, and the bracket is 0. With a tool, $Q$ is the mean of $V$
# over its answers. If there is only one answer, the bracket is 0 again. A response with several calls
# has one bracket for each.
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
