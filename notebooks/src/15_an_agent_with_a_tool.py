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
# Soft values (lesson 13) and online DPO (lesson 14) are recalled in a sentence.
# About 30 minutes to read and 70 for the exercises.

# %%
import copy
from dataclasses import replace
from functools import partial

import pandas as pd
import torch

from minirlhf import core, experiments, loops, models, rewards, show, tasks
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
# Which of these tokens belong in the loss? Training changes only the policy, so only the policy's own. The
# **action mask** $m_t$ is 1 if the policy chose token $t$, and 0 if the tool wrote it. Lesson 12's
# log-ratio of policy and reference becomes a sum over the policy's tokens:
#
# $$ h(y) = \sum_t m_t \big[ \log \pi(y_t \mid s_t) - \log \pi_{\text{ref}}(y_t \mid s_t) \big] . $$
#
# Here $s_t$ is the prompt and *all* tokens before $y_t$, because the policy reads what the tool wrote. A pair has the difference $\Delta h = h(\text{chosen}) - h(\text{rejected})$, and
# its loss is that of lesson 12, $-\log \sigma(\beta\, \Delta h)$. This is *multi-turn DPO* (Xiong et
# al. 2024). Lesson 12 wrote $h$ for the difference, our $\Delta h$.

# %% [markdown]
# **Predict.** The prompt is `2*3+1=`, and here are the tokens of a response: `[ 2 * 3 ] { 6 } 7 EOS`. For
# which of them is $m_t = 1$?

# %% [markdown]
# <details><summary>What you should see</summary>
#
# For all but `{ 6 }`. The `]` is the policy's decision to *end* the call, and the EOS to end the response.
# Both are learned.
# </details>
#
# **An example with numbers.** Let this be the chosen response of a pair. The policy has trained a little, so
# each token has a log-ratio:
#
# | token | `[` | `2` | `*` | `3` | `]` | `{` | `6` | `}` | `7` | EOS |
# |---|---|---|---|---|---|---|---|---|---|---|
# | $\log \pi - \log \pi_{\text{ref}}$ | 0.3 | 0.0 | 0.0 | 0.1 | 0.0 | 2.0 | 0.5 | 1.5 | 0.1 | 0.0 |
# | $m_t$ | 1 | 1 | 1 | 1 | 1 | 0 | 0 | 0 | 1 | 1 |
#
# The policy's tokens add up to $h(\text{chosen})$ = 0.5, and the tool's to 4.0. The rejected response is a
# wrong answer without a call. The policy chose all its tokens, and they add up to $h(\text{rejected})$ =
# −0.3. So $\Delta h$ is 0.5 + 0.3 = 0.8, and with $\beta = 0.1$ the loss is $-\log \sigma(0.08)$ = 0.65.
# Now forget the mask. Then the tool's 4.0 is counted too: $\Delta h$ is 4.8, and the loss is 0.48. The
# package gives the same numbers:

# %%
log_ratio = torch.tensor([[0.3, 0.0, 0.0, 0.1, 0.0, 2.0, 0.5, 1.5, 0.1, 0.0]])
m = torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0, 1, 1]]).bool()
rejected, zero = torch.tensor([-0.3]), torch.zeros(1)
table = {}
for name, counted in {"with the mask": m, "without": torch.ones_like(m)}.items():
    chosen = core.sequence_logprobs(log_ratio, counted)
    # the reference is already subtracted, so its two numbers are 0
    loss = core.dpo(chosen, rejected, zero, zero, beta=0.1)
    table[name] = {"difference": (chosen - rejected).item(), "loss": loss.item()}
pd.DataFrame(table).T.round(2)

# %% [markdown]
# It is the same policy in both rows. Without the mask the loss is lower, because this policy predicts the
# tool better than the reference does. That does not help: the tool writes its tokens in any case.

# %% [markdown]
# ## 2. Taking turns
#
# How is such a response sampled? The policy samples token by token until it writes `]`. Then the tool reads
# the token ids up to there and appends its own, and the policy goes on.
#
# `tiny-agent` is a GPT-2 of 0.8 million parameters. A token is one character. A problem is a product of two
# two-digit numbers, plus or minus a number. tiny-agent calls the calculator in 40 % of its responses. The
# others are answers *in the head*, and start with `~`. Products are too hard for its head: only 2 % of
# such answers are right.

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
# `action_mask` is true only at the tokens that the policy chose.

# %% [markdown]
# ## 3. When is the mask exact?
#
# Does DPO still find the best policy if the tool's tokens are left out? Lesson 12 began with the best
# policy $\pi^*$, which has the highest expected reward minus KL penalty. It satisfies
#
# $$ r(y) = \beta \log \frac{\pi^*(y)}{\pi_{\text{ref}}(y)} + \text{a constant} , $$
#
# and DPO puts this into the Bradley-Terry model.
#
# **Is the masked sum $h$ still the log-ratio?** Yes. The probability of a response is now a product of the policy's
# probabilities and the tool's. The tool is the same for policy and reference, so its probabilities cancel
# in the ratio. What remains is $h$.
#
# **Can a policy satisfy the equation?** Take two responses with the same call. The equation makes the one
# with the better result likelier. The policy cannot do this: it chooses the call, but not the result. If
# the tool **always gives the same result to the same call**, there are no two such responses, and the
# equation holds. So for a calculator, a compiler or a fixed database, masked DPO is exact: its minimum is
# $\pi^*$, under the conditions of lesson 12.

# %% [markdown]
# ## 4. What does DPO leave out if the result is random?
#
# A search engine may answer differently tomorrow. Then the equation of section 3 lacks a term.
#
# **A small world.** The policy acts twice. First it calls a tool. The *fast* tool is right in 80 % of the
# calls. The *slow* one is always right, but it costs 0.1. The policy sees whether the result is right. Then
# it passes the result on (reward 1 if right, −1 if wrong) or says *I do not know* (reward 0). The reference
# tosses a coin for every action. Take $\beta = 0.2$.
#
# **What lesson 13 tells us.** A *situation* is a moment in which the policy acts. Let its *actions* $c$ have
# the rewards $r(c)$. Then the situation has the *soft value*
#
# $$ V = \beta \log \sum_c \pi_{\text{ref}}(c)\, e^{r(c)/\beta} , $$
#
# and the best policy satisfies
#
# $$ \beta \log \frac{\pi^*(c)}{\pi_{\text{ref}}(c)} = r(c) - V . $$
#
# In words: $\beta$ times the log-ratio is the value of the action minus the value of the situation.
#
# Now we go backwards. *After the result* the rewards and the values are:
#
# | result | passing on | *I do not know* | $V$ |
# |---|---|---|---|
# | fast tool, right | 1 | 0 | $0.2 \log\big(\tfrac12 e^{1/0.2} + \tfrac12 e^{0}\big)$ = 0.86 |
# | fast tool, wrong | −1 | 0 | $0.2 \log\big(\tfrac12 e^{-1/0.2} + \tfrac12 e^{0}\big)$ = −0.14 |
# | slow tool, right | 0.9 | −0.1 | both rewards are lower by the cost 0.1, so is $V$: 0.76 |
#
# *Before the result*, $Q(\text{tool})$ is the value of the action *call this tool*. It is the *mean* of
# $V$ over the results, because nobody chooses them: $Q = 0.8 \cdot 0.86 - 0.2 \cdot 0.14$ = 0.66 for the
# fast tool. The slow one has one result, so $Q = V$ = 0.76. *At the start* the policy chooses between the
# two $Q$. The soft value of this is $V_0$ = 0.72.
#
# A response has two actions. $\beta$ times the log-ratio is $Q(\text{tool}) - V_0$ for the first one, and
# $r - V(\text{result})$ for the second. The sum is
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
# **DPO leaves out the bracket.** Its loss asks for $\beta h = r + k$ with one constant $k$. After a given
# result, the second action has to give $r - V(\text{result})$, because its probabilities add up to one. So
# $V(\text{result}) + k$ remains for the first action. For the call of the fast tool these are two demands:
#
# $$ \beta \log \frac{\pi(\text{fast})}{\pi_{\text{ref}}(\text{fast})} = \phantom{-}0.86 + k
# \quad \text{if the result is right,} $$
#
# $$ \beta \log \frac{\pi(\text{fast})}{\pi_{\text{ref}}(\text{fast})} = -0.14 + k
# \quad \text{if the result is wrong.} $$
#
# The left sides are the same number, because the call comes before the result. So no policy satisfies both
# lines, and DPO's minimum is a compromise. In this world its call is nearly right, and its action after the
# result is wrong: it says *I do not know* after 1.9 % of the right results, and the best policy after 0.7 %.
#
# **What should you do?** GRPO (lesson 11) with the mask does not have this error: it averages over the
# tool's results, and the mean of the luck is zero. "Going further" repairs DPO, and shows a case in which
# the luck does no harm.

# %% [markdown]
# ## 5. One step of multi-turn DPO
#
# How does an agent train on its own responses? As in lesson 14's online DPO: at each step the policy writes
# new pairs. Only three things change: the sampler has a tool, a rule judges, and the sum has the action mask.
#
# `models.policy_logprobs` sets the tool's tokens to 0 for you. `every_logprob` does not, so that you see
# where the mask goes in: at step 4 only. `masked=False` puts the response mask there, as if you had
# forgotten the tool.

# %%
train = [p.prompt for p in tasks.calculator.problems("train", 2000, seed=1)]
actor, reference = copy.deepcopy(start).requires_grad_(True), copy.deepcopy(start)
plain = loops.OptimiserConfig.plain(lr=1e-4)
optimizer = loops.make_optimizer(actor, plain)
generator = torch.Generator().manual_seed(0)


# %%
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
    # 2. The rule's score: 1 if the answer is right, else 0. A row has one prompt.
    scores = score(batch).view(-1, 8)
    # 3. A pair for each prompt that has both: a right response and a wrong one.
    first = torch.arange(len(scores)) * 8  # where each prompt's responses begin
    differ = scores.amax(1) > scores.amin(1)  # False if all are right, or all wrong
    chosen = (first + scores.argmax(1))[differ]  # the first right response
    rejected = (first + scores.argmin(1))[differ]  # the first wrong one
    # the chosen ones come first; chunk(2) in step 6 parts them from the rejected ones
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
# `train_online` is the package's loop. We give its sampler the calculator. With `plain` settings it then
# leaves the same weights.

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
# The first loss is $\log 2$ = 0.693, because the policy starts at its reference. *right* is the share of
# right answers.
#
# **Predict.** The next cell runs 36 steps with the mask and 36 without. It takes about a minute. Which of
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
# **Why does the policy learn less without the mask?** One thing leads to the next. The values of $\Delta h$
# are from the runs of section 6.
#
# 1. *Predicting the tool separates the pairs.* At the start a result is in 96 % of the right responses, and
#    in 15 % of the wrong ones. So a policy that predicts the calculator raises the right responses.
# 2. *This is easy.* tiny-agent was trained with the mask, so it has never learnt to predict its tool. It
#    gives the tool's `{` about −13 nats and its `}` about −10.
# 3. *So $\Delta h$ grows there.* It ends at 14.83 nats, and 14.28 of them are on the tool's tokens: 96 %.
#    Only 0.55 are on the policy's own.
# 4. *DPO takes such a pair for learnt.* It weights a pair with $\sigma(-\beta\, \Delta h)$ (lesson 12).
#    At 14.83 nats the weight is 0.18. With the mask $\Delta h$ ends at 2.05 nats, where it is 0.45.
#
# A model that already predicts its tool well has less to gain in the second link, and may lose less.

# %% [markdown]
# ## 6. Does the mask matter on new problems?
#
# `minirlhf experiment multi_turn` has trained tiny-agent with DPO and with GRPO, with the mask and without,
# on three seeds. The tests use *held-out* problems, which are not in the training. The first column is the
# share of right answers among samples at temperature 1. The second has *greedy* answers: each token is the
# likeliest one. In brackets are the lowest and the highest seed.
#
# **Predict.** Does GRPO need the mask as much as DPO? Which of the two columns shows it?

# %% tags=["predict"]
runs = experiments.results("multi_turn")
columns = {"pass_1": "right samples", "greedy": "right greedy answers"}
methods = ["start", "dpo", "dpo, no mask", "grpo", "grpo, no mask"]
experiments.shown(runs[runs.variant.isin(methods)], columns)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# With the mask, right samples rise from 0.32 to 0.56 (DPO) and 0.58 (GRPO). Without it they reach only 0.40
# and 0.42. So GRPO needs the mask as much as DPO. The gap is there on every seed.
#
# The gap is one of samples. Greedy answers are nearly all right in either case: DPO has 0.98 with the mask
# and 0.97 without.
# </details>

# %% [markdown]
# ## What to remember
#
# - The **action mask** is true at the tokens that the policy chose, the end of a call and the EOS
#   included. Multi-turn DPO sums its log-ratio over these tokens.
# - If the same call always gets the same result, this is exact. If not, DPO leaves out the luck of the
#   result (the transition term).
# - Without the mask, training is spent on predicting the tool. The loss looks *better*, and the agent is
#   worse.
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
# falls nicely, but the share of right answers does not move. The figure shows two real runs of DPO. One has
# the right mask and is in the record of section 6. The colleague's has the same settings and the mask
# below. `mask_of` builds the mask of step 4 in section 5, `own`. The columns of all its tensors are
# the tokens of the response, as there. `by_policy` (B, R) is true where the policy wrote the token; at
# padding it can be anything.
#
# First on paper, for `[ 7 ] { 7 } 7 EOS`. Which two tokens have no loss and should have one? Which
# token has a loss and should have none? Which of the three explains that the agent does not learn to
# call, and which one that the loss falls? Then mend `mask_of` in the cell below the figure, and run the
# check under it.
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
# **Why does the policy learn less without the mask? A second reason.** The tool's tokens are a fifth of all.
# They give about nine tenths of the squared norm of DPO's first gradient, and about three quarters of
# GRPO's. Adam's steps are about equally long, however large the gradient is. So little is left for the
# policy's own tokens. With the mask, the tool's part of $\Delta h$ *falls* in section 6, by 1.5 to 2.2 nats.
# The policy does not write these tokens, so this does no harm.
#
# **How were the runs of section 6 made?** An *iteration* is: sample eight responses to each of 384 problems,
# make the pairs, take 12 steps on them. A run is three iterations, with $\beta = 0.1$ as in section 5. Its
# learning rate decays, so do not compare its numbers with those of section 5. GRPO samples anew for each
# step. The test has 16 samples for each of 400 problems. $\Delta h$ is the record's `margin`, without
# $\beta$. Its pairs are a right and a wrong response that tiny-agent wrote before training.
#
# **Single responses.** The record also has Kahneman-Tversky optimisation (KTO, lesson 14b). It learns from
# single responses, labelled right or wrong, and needs the mask as much as DPO: 0.57 of its answers are right
# with it, and 0.41 without.
#
# **What is learnt in section 6?** *To call, in each case.* DPO raises the share of responses with a call from
# 0.40 to 0.54 without the mask, and to 0.63 with it. *To copy the numbers, only with the mask.* At the start
# 0.79 of the calls have the prompt's product. Without the mask 0.77 have, and with it 0.91.
#
# **Why are greedy answers right, and samples not?** With the mask, DPO's samples still answer 37 % in the
# head. But for nearly every prompt calling is now the likelier choice. At the start only 0.025 of the
# greedy answers are right.
#
# **A calculator that errs.** The record also has runs in which one call in five gets a wrong result, in
# training and in the test: one digit is changed, such as `{3981}` for `{3901}`. By section 4, DPO then
# leaves out a transition term, and GRPO does not. But GRPO's lead over DPO is 0.02 without errors, and
# again 0.02 with them. The reason: masked DPO gets the *call* nearly right, and the action *after* the
# result wrong. Here that action cannot depend on the error. Nothing tells the policy that a result is
# wrong, and it has no *I do not know*. So a random tool does not always hurt DPO.
#
# **What do these errors cost?** With the mask they lower right answers from 0.57 to 0.44, by
# 0.13 (means of the three methods). One wrong result in five explains most of this: 0.57 / 5 = 0.11. The
# rest has two sources. By chance the test's calculator erred in 21 % of the calls. And right calls, counted
# without errors, fall by 0.005. Without the mask fewer answers are right, so errors cost less: 0.07 to 0.09.
#
# **Masked DPO in the world of section 4.** `world.masked_optimum(beta=0.2)` finds the minimum of its loss.
# DPO takes the fast tool with probability 0.376, the best policy with 0.378. So the call is nearly right.
# The action after the result is not. After a wrong result the loss wants both actions to be less likely, by
# the bad luck, and after a right one both to be more likely. Two probabilities that add up to 1 can do
# neither. The one near 1 hardly moves, so the small one does. Passing a wrong result on falls from 0.7 % to
# 0.01 %, and *I do not know* after a right one rises from 0.7 % to 1.9 %. The second error costs more.
#
# **A repair of masked DPO.** In the world of section 4, subtract the luck from the rewards. Then masked DPO
# is exact again: it takes the fast tool with 0.378 and passes a wrong result on with 0.7 %. For a real tool
# you have to estimate $V$ and $Q$. GRPO needs no repair. The policy gradient weights each action by its
# *return*: the rewards after it minus the later penalties. Over the tool's results and the later actions,
# its mean is the $Q$ of the current policy. So the luck averages out.
#
# **DPO without the mask, in the world of section 4.** Its loss has two *guesses* of what the tool will
# write: the policy's and the reference's. Let the reference's guess be perfect: of the fast tool it expects
# a right result with 80 %. Then the second actions are those of $\pi^*$, and only the first one is wrong. DPO
# takes the fast tool with probability 0.569, the best policy with 0.378. DPO is an optimist here: its loss
# also falls when a good *result* gets likelier. So its guess goes from 80 % right results to 99.8 %.
#
# **Which error costs more?** Let $J$ be the expected reward minus the KL penalty. At $\beta = 0.2$ the mask
# is better: $J$ is 0.7184 with it and 0.7039 without, against 0.7189 for the best policy. At 0.5 and at 1,
# DPO *without* the mask is a little better.
#
# **Without the mask, for any guess.** Let the reference give result $o$ of a tool the probability
# $p_{\text{ref}}(o \mid \text{tool})$. Then the minimum without the mask chooses a tool in proportion to
#
# $$ \pi_{\text{ref}}(\text{tool}) \sum_o p_{\text{ref}}(o \mid \text{tool})\, e^{V(o)/\beta} , $$
#
# and its own guess is in proportion to $p_{\text{ref}}(o \mid \text{tool})\, e^{V(o)/\beta}$. The second
# actions are those of $\pi^*$. This holds if the results that are possible in the guess are those that the
# tool can give. The probabilities of the true tool do not occur. If the reference guesses 50 % right
# results of the fast tool, this policy takes it with probability 0.45 ($\beta = 0.2$). The minimum *with*
# the mask has no formula. The package finds it numerically, for pairs of two responses of the reference.
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
