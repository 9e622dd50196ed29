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
# About 35 minutes to read and 75 for the exercises.

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
# Here $s_t$ is the prompt and *all* tokens before $y_t$, because the policy reads what the tool wrote. A pair
# has the difference $\Delta h = h(\text{chosen}) - h(\text{rejected})$, and its loss is that of lesson 12,
# $-\log \sigma(\beta\, \Delta h)$. This is *multi-turn DPO* (Xiong et al. 2024). Lesson 12 wrote $h$ for the
# difference, our $\Delta h$.

# %% [markdown]
# **Predict.** The prompt is `2*3+1=`, and here are the tokens of a response: `[ 2 * 3 ] { 6 } 7 EOS`. For
# which of them is $m_t = 1$?

# %% [markdown]
# <details><summary>What you should see</summary>
#
# For all but `{ 6 }`. The `]` is the policy's decision to *end* the call, and the EOS to end the response.
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
# ## 2. Taking turns
#
# How is such a response sampled? The policy samples token by token until it writes `]`. Then the tool reads
# the token ids up to there and appends its own. The policy goes on until it writes EOS.
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

# %% [markdown]
# First one response. `policy(ids)` draws the token that follows the ids so far.

# %%
eos = tokenizer.eos_token_id
question = models.encode_prompts(tokenizer, prompts[1:2])[0][0].tolist()
generator = torch.Generator().manual_seed(7)


def policy(ids):
    """The id of the next token, drawn by tiny-agent."""
    with torch.no_grad():
        logits = start(torch.tensor([question + ids])).logits[0, -1]
    return torch.multinomial(logits.softmax(0), 1, generator=generator).item()


# %%
ids, own = [], []
while True:
    ids.append(policy(ids))
    own.append(True)
    if ids[-1] == eos:
        break
    if ids[-1] == calculator.call_end:  # the id of ]
        result = calculator.run(ids)
        ids += result
        own += [False] * len(result)
tokens = tokenizer.convert_ids_to_tokens(ids)
pd.DataFrame({"token": tokens, "own": [int(x) for x in own]}).T

# %% [markdown]
# The row *own* is the action mask of this response. `models.sample` does the same for many prompts at once:

# %%
sampling = models.SamplingConfig(max_new_tokens=32, temperature=1.0)
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
# policy $\pi^*$, which has the highest expected reward minus KL penalty. There it satisfies
#
# $$ \beta \log \frac{\pi^*(y)}{\pi_{\text{ref}}(y)} = r(y) - C $$
#
# with one constant $C$ for all responses to a prompt. DPO puts this into the Bradley-Terry model.
#
# **Is the masked sum $h$ still the log-ratio?** Yes. Let $T$ be the probabilities of the tool. A response with
# a call has the probability
#
# $$ \pi(y) = \pi(\text{call}) \; T(\text{result} \mid \text{call}) \; \pi(\text{rest} \mid \text{call,
# result}) . $$
#
# $\pi_{\text{ref}}(y)$ has the same factor $T$, because both call the same tool. So $T$ cancels in the ratio.
# What remains is $h$.
#
# **Can a policy satisfy the equation?** Take two responses with the same call. In the second one the calculator
# has erred. Let policy and reference give the rest probability 1. Then the log-ratio of the rest is 0, and
# only that of the call is left:
#
# | response | reward | the equation demands |
# |---|---|---|
# | `[47*83]{3901}3906` | 1 | $\beta \log \frac{\pi(\text{call})}{\pi_{\text{ref}}(\text{call})} = 1 - C$ |
# | `[47*83]{3981}3986` | 0 | $\beta \log \frac{\pi(\text{call})}{\pi_{\text{ref}}(\text{call})} = 0 - C$ |
#
# The left sides are the same number, because the policy chooses the call before it sees the result. So no
# policy satisfies both lines.
#
# **If the tool always gives the same result to the same call,** the policy's tokens determine the whole response.
# So the results can be read as part of the state. The policy may give any probabilities to its responses, and
# it can satisfy the equation for all of them: this is lesson 12 again. So for a calculator without errors, a
# compiler or a fixed database, masked DPO is exact: its minimum is $\pi^*$, under the conditions of lesson 12.

# %% [markdown]
# ## 4. What does DPO leave out if the result is random?
#
# A search engine may answer differently tomorrow. Then the right side of section 3's equation lacks a term.
#
# **A small world.** The policy acts twice. Its first action is the *call*. The *fast* tool is right in 80 % of the
# calls. The *slow* one is always right, but it costs 0.1. The policy sees whether the result is right. Its
# **second action** passes the result on (reward 1 if right, −1 if wrong) or says *I do not know* (reward 0). The
# reference tosses a coin for every action. Take $\beta = 0.2$.
#
# **What lesson 13 tells us.** A *situation* is a moment in which the policy acts. Let its *actions* $a$ have
# the rewards $r(a)$. Then the situation has the *soft value*
#
# $$ V = \beta \log \sum_a \pi_{\text{ref}}(a)\, e^{r(a)/\beta} . $$
#
# This is $\beta \log Z$ of lesson 12's section 2, with the situation in the place of the prompt. The best
# policy satisfies
#
# $$ \beta \log \frac{\pi^*(a)}{\pi_{\text{ref}}(a)} = r(a) - V . $$
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
# fast tool. The slow one has one result, so $Q = V$ = 0.76.
#
# *At the start* the policy chooses between the two tools. Now $Q$ stands where $r$ stood: $V_0 = 0.2
# \log\big(\tfrac12 e^{0.66/0.2} + \tfrac12 e^{0.76/0.2}\big)$ = 0.72.
#
# Let $h^*(y)$ be the masked log-ratio of $\pi^*$. It has two parts. $\beta$ times the log-ratio is
# $Q(\text{tool}) - V_0$ for the call, and $r - V(\text{result})$ for the second action. The sum is
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
# **What does DPO do without the bracket?** Its loss asks for section 3's equation, $\beta h = r - C$. (DPO compares
# responses, so $C$ cancels and need not be $V_0$.) Take a result of the fast tool. For each second action $a$ this
# means
#
# $$ \beta \log \frac{\pi(a)}{\pi_{\text{ref}}(a)} = r(a) - k , \qquad k = C + \beta \log
# \frac{\pi(\text{fast})}{\pi_{\text{ref}}(\text{fast})} . $$
#
# So $\pi(a) = \pi_{\text{ref}}(a)\, e^{r(a)/\beta}\, e^{-k/\beta}$. These probabilities add up to one:
#
# $$ 1 = \sum_a \pi_{\text{ref}}(a)\, e^{r(a)/\beta}\, e^{-k/\beta} = e^{V/\beta}\, e^{-k/\beta} ,
# \quad \text{so } k = V . $$
#
# So $V - C$ is left for the call. The two results make two demands:
#
# $$ \beta \log \frac{\pi(\text{fast})}{\pi_{\text{ref}}(\text{fast})} = \phantom{-}0.86 - C
# \quad \text{if the result is right,} $$
#
# $$ \beta \log \frac{\pi(\text{fast})}{\pi_{\text{ref}}(\text{fast})} = -0.14 - C
# \quad \text{if the result is wrong.} $$
#
# Again no policy satisfies both, and DPO's minimum is a compromise.
#
# **Predict.** Which action does DPO get wrong: the call, or the second action?

# %% tags=["predict"]
# the minimum of masked DPO's loss over all pairs, beside the best policy; in %
policies = {"best": world.optimum(beta=0.2), "DPO": world.masked_optimum(beta=0.2)}
table = {}
for name, (first, second) in policies.items():
    call, after = first.exp(), second.exp()  # (tool,) and (tool, result, second action)
    table[name] = {
        "call of the fast tool": call[0].item(),
        "right result: I do not know": after[0, 0, 1].item(),
        "wrong result: pass it on": after[0, 1, 0].item(),
    }
(100 * pd.DataFrame(table)).round(2)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# The second action. At this $\beta$ the *call* is nearly right: 37.6 %, and 37.8 % under the best
# policy. But after a right result DPO says *I do not know* in 1.9 %, and the best policy in 0.7 %. DPO
# passes on a wrong result in 0.01 %, and the best policy in 0.7 %.
# </details>
#
# **Why the second action?** DPO's equation asks only for the *sum* of both log-ratios. Both results share the
# call, so the call takes nearly the mean of the two demands. That is $Q - C$, as in $\pi^*$ up to the constant.
# What is missing for a result is its luck, 0.20 or −0.80. DPO's equation asks for it in *both* second actions.
# But two probabilities that add up to 1 cannot both rise or both fall. The one near 1 hardly moves. The small one can
# move, and that hardly changes the sum:
#
# | result | the small probability | under $\pi^*$ | DPO's equation asks for the factor | product |
# |---|---|---|---|---|
# | right | *I do not know* | 0.67 % | $e^{0.20/0.2}$ = 2.7 | 1.8 % |
# | wrong | passing on | 0.67 % | $e^{-0.80/0.2}$ = 0.018 | 0.01 % |
#
# **What should you do?** GRPO (lesson 11) with the mask does not have this error. The policy gradient is a mean
# over responses, and it is linear in the reward. So luck, whose mean is zero for a given call, is only noise.
# DPO's equation has to hold for every single response. "Going further" repairs DPO. It also
# has a case in which luck does no harm: a calculator that errs, whose errors the policy cannot see.

# %% [markdown]
# ## 5. One step of multi-turn DPO
#
# How does an agent train on its own responses? As in lesson 14's online DPO: at each step the policy writes
# new pairs. Three things change: the sampler has a tool, a rule judges, and the sum has the action mask.
#
# We run the step with the mask and, as if we had forgotten the tool, without. So our helper `every_logprob`
# gives the log-probabilities of *all* tokens. (`models.policy_logprobs` gives 0 at the tool's.)
#
# A step has P prompts and B responses of at most R tokens. They make K pairs.
#
# | part | what it does | what it makes | shape |
# |---|---|---|---|
# | **1.** Sample | eight responses to each prompt; the tool writes its own tokens | `batch` | (B, R): responses × tokens |
# | **2.** Score | the rule says right or wrong | `scores` | (P, 8): prompts × responses |
# | **3.** Pair | a right and a wrong response to each prompt that has both | `pairs` | (2K, R): K chosen, then K rejected |
# | **4.** Mask | which tokens count | `own` | (2K, R) |
# | **5.** Log-probabilities | of every token, under policy and reference | `logprobs`, `ref_logprobs` | (2K, R) |
# | **6.** Update | sums over the tokens that count | `sums`, `ref_sums` | (K,) chosen and (K,) rejected |
# | | the loss of lesson 12, and one update of the weights | `losses` | (K,) |

# %%
train = [p.prompt for p in tasks.calculator.problems("train", 2000, seed=1)]
actor, reference = copy.deepcopy(start), copy.deepcopy(start)
plain = loops.OptimiserConfig.plain(lr=1e-4)
optimizer = loops.make_optimizer(actor, plain)
generator = torch.Generator().manual_seed(0)


# %%
def every_logprob(model, batch):
    """Log-probabilities of all response tokens, the tool's included, (B, R)."""
    every = replace(batch, action_mask=batch.response_mask)
    return models.policy_logprobs(model, every)


def difference(log_ratio, mask):
    """h(chosen) - h(rejected) from the tokens of a mask, mean over the pairs, nats."""
    chosen, rejected = core.sequence_logprobs(log_ratio, mask).chunk(2)
    return (chosen - rejected).mean().item()


def for_figures(losses, scores, log_ratio, pairs):
    """Means of a step. Whose tokens make the difference of a pair?"""
    tools = pairs.response_mask & ~pairs.action_mask
    row = {"loss": losses.mean().item(), "right": scores.mean().item()}
    row["policy"] = difference(log_ratio, pairs.action_mask)
    return row | {"tool": difference(log_ratio, tools)}


# %%
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
    # the chosen ones come first; chunk(2) parts them from the rejected ones
    pairs = batch.select(torch.cat([chosen, rejected]))
    # 4. The mask: which tokens count, (2K, R).
    own = pairs.action_mask if masked else pairs.response_mask
    # 5. The log-probability of every token. The reference does not learn.
    logprobs = every_logprob(actor, pairs)
    with torch.no_grad():
        ref_logprobs = every_logprob(reference, pairs)
    # 6. Sums over the tokens that count, the loss of lesson 12, and the update.
    sums = core.sequence_logprobs(logprobs, own).chunk(2)
    ref_sums = core.sequence_logprobs(ref_logprobs, own).chunk(2)
    losses = core.dpo(*sums, *ref_sums, beta=0.1)
    losses.mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    return for_figures(losses, scores, (logprobs - ref_logprobs).detach(), pairs)


# %% [markdown]
# `train_online` is the package's loop for online DPO. `DPOFormulas` gives it a sampler with the calculator. `plain`
# switches the extras off (lesson 12), and `missing_eos_penalty=0.0` switches off a penalty for responses that
# are cut off. Then the weights are the same:

# %%
steps = 2 if FAST else 4  # FAST=1 is for the tests of this page
order = list(loops.shuffled_batches(len(train), 32, steps, seed=0))
log = pd.DataFrame([agent_step(index) for index in order])

dpo = loops.DPOConfig.plain(steps=steps, batch_size=32, beta=0.1, optimiser=plain)
config = loops.OnlineConfig(
    samples=8, missing_eos_penalty=0.0, sampling=sampling, dpo=dpo
)
formulas = loops.DPOFormulas(sample=partial(models.sample, tool=calculator))
other = copy.deepcopy(start)
loops.train_online(other, tokenizer, train, score, config, formulas=formulas)
assert models.same_weights(actor, other)
log.round(3)

# %% [markdown]
# The first loss is $\log 2$ = 0.693, because the policy starts at its reference. *right* is the share of
# right answers. *policy* and *tool* are the two parts of $\Delta h$, in nats: on the policy's tokens and on the
# tool's.
#
# **Predict.** The next cell runs 36 steps with the mask and 36 without. It takes about a minute. Which of
# the two has the lower loss at the end? Which has more right answers? On whose tokens does $\Delta h$ grow?

# %% tags=["predict"]
curves = {}
for name in ("with the mask", "without the mask"):
    actor = copy.deepcopy(start)
    optimizer = loops.make_optimizer(actor, plain)
    generator = torch.Generator().manual_seed(0)
    batches = loops.shuffled_batches(len(train), 32, 2 if FAST else 36, seed=0)
    masked = name == "with the mask"
    curves[name] = pd.DataFrame([agent_step(index, masked) for index in batches])
both = pd.concat(curves, axis=1).swaplevel(axis=1)
panels = {"loss": dict(both["loss"]), "share of right answers": dict(both["right"])}
show.lines(panels, xlabel="step")

# %% tags=["predict"]
whose = {"on the policy's tokens": "policy", "on the tool's tokens": "tool"}
panels = {title: dict(both[part]) for title, part in whose.items()}
show.lines(panels, xlabel="step", ylabel="difference, nats")

# %% [markdown]
# <details><summary>What you should see</summary>
#
# *Loss and answers.* The run without the mask has the lower loss: about 0.3 in the last six steps, against 0.6
# with the mask. But it is the worse agent: about half of its answers are right, against three quarters. The
# two losses sum over different tokens, so they cannot be compared: no loss shows that the mask is missing.
#
# *Whose tokens.* Without the mask $\Delta h$ grows on the tool's tokens, to about 15 nats. On the policy's own
# it stays near 0 for about 20 steps, and ends at about 0.5. With the mask the policy's part grows from the first
# step, to about 1.5. The tool's part falls by about 3: the policy does not write these tokens, so this does no
# harm.
# </details>
#
# **Why does the policy learn less without the mask?** Three things send the steps to the tool's tokens:
#
# 1. *Predicting the tool separates right from wrong.* At the start a result is in 96 % of the right responses, and
#    in 15 % of the wrong ones. So a policy that learns to predict the calculator raises the counted
#    log-probability of the right responses, and seldom that of the wrong ones.
# 2. *There is much to gain.* tiny-agent was trained with the mask, so it has never learnt to predict its tool. It
#    gives the tool's `{` about −13 nats and its `}` about −10.
# 3. *So the tool's tokens take the direction of the step.* They are a fifth of the tokens, but they give about
#    nine tenths of the squared norm of the first gradient. Adam's steps are about equally long, however large the
#    gradient is. What counts is the direction.
#
# The next cell measures point 3.

# %%
vector = torch.nn.utils.parameters_to_vector
gradients = []
for masked in (True, False):
    actor = copy.deepcopy(start)
    optimizer = torch.optim.SGD(actor.parameters(), lr=1.0)  # subtracts the gradient
    generator = torch.Generator().manual_seed(0)  # both have the same pairs
    agent_step(order[0], masked)
    gradients.append((vector(start.parameters()) - vector(actor.parameters())).detach())
own, every = gradients
parts = {"the policy's tokens": own, "the tool's tokens": every - own}
pd.Series({name: part.square().sum().item() for name, part in parts.items()}).round(1)

# %% [markdown]
# None of this is special to DPO. DPO has one thing more: its weight $\sigma(-\beta\, \Delta h)$ (lesson 12) falls
# when the tool separates a pair. That is not the cause: with all weights held at 1/2, again about half of the
# answers were right.

# %% [markdown]
# ## 6. Does the mask matter on new problems?
#
# `minirlhf experiment multi_turn` has trained tiny-agent with DPO and with GRPO, with the mask and without,
# on three seeds. (These runs use other settings than section 5, so do not compare their numbers.) In GRPO the mask
# enters the loss of lesson 11 in two places:
#
# $$ \frac{1}{N G} \sum_{i=1}^{N G} \frac{1}{\sum_t m_{i,t}} \sum_t m_{i,t}\, L_{i,t} . $$
#
# As there, $N$ prompts have $G$ responses each, and $L_{i,t}$ is the clipped loss of a token. Only the policy's
# tokens have a loss, and only they count in the length $|y_i| = \sum_t m_{i,t}$.
#
# The tests use *held-out* problems, which are not in the training. The first column is the share of right
# answers among samples at temperature 1. The second has *greedy* answers: each token is the likeliest one. In
# brackets are the lowest and the highest seed.
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
# *Samples.* With the mask, right samples rise from 0.32 to 0.56 (DPO) and 0.58 (GRPO). Without it they reach
# only 0.40 and 0.42. So GRPO needs the mask as much as DPO, although it has no weight of pairs. The three points
# of section 5 hold for it, too: the tool's tokens give about three quarters of the squared norm of its first
# gradient.
#
# *Greedy answers hide the gap.* DPO has 0.98 with the mask and 0.97 without. A greedy answer takes the
# likelier choice, and in both cases calling has become the likelier one for nearly every prompt. But with the mask
# DPO's samples still answer 37 % in the head, and without it 46 %.
# </details>

# %% [markdown]
# ## What to remember
#
# - The **action mask** is true at the tokens that the policy chose, the end of a call and the EOS
#   included. Multi-turn DPO sums its log-ratio over these tokens.
# - If the same call always gets the same result, this is exact. If not, DPO leaves out the luck of the
#   result (the transition term).
# - Without the mask the steps go into predicting the tool, in GRPO as in DPO. The loss looks *better*, and the
#   agent is worse.
#
# ## Exercises
#
# The checkers say "pass", or name the mistake. Solutions are in
# `solutions/15_an_agent_with_a_tool.ipynb`.

# %% [markdown] tags=["exercise"]
# **1. Take turns** *(easy, 10 minutes)*. Close section 2 and write its loop as a function. `policy(ids)` returns
# the id that the policy writes after the ids so far. `tool(ids)` returns a list: the ids of the result of the call
# with which the ids so far end. `call_end` and `eos` are the ids of `]` and of EOS. Return two lists: the ids of
# the response, and for each of them whether the policy chose it (true or false).
#
# *Hint:* a response can have two calls, or none.


# %% tags=["exercise"]
def take_turns(policy, tool, call_end, eos): ...  # your code


check.take_turns(take_turns)


# %% tags=["solution"]
def take_turns(policy, tool, call_end, eos):
    ids, own = [], []
    while True:
        ids.append(policy(ids))
        own.append(True)
        if ids[-1] == eos:
            return ids, own
        if ids[-1] == call_end:
            result = tool(ids)
            ids += result
            own += [False] * len(result)


check.take_turns(take_turns)

# %% [markdown] tags=["exercise"]
# **2. The log-ratio of an agent's response** *(easy, 10 minutes)*. `logprobs` and `ref_logprobs`
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
# **3. The luck of a result** *(medium, 20 minutes)*. First on paper: a third tool is right in half
# of its calls and costs nothing. Take $\beta = 0.2$ and the values of section 4. What is $Q$ of this
# tool, and how lucky is its right result?
#
# <details><summary>The two numbers</summary>
#
# $Q = (0.86 - 0.14) / 2$ = 0.36, so a right result is luck of $0.86 - 0.36$ = 0.50.
# </details>
#
# Now the general case: F first actions (calls), O results (outcomes) of each, S second actions after each.
# `tool` (F, O) has the probability of each result of each call, `rewards` (F, O, S) the reward of each
# whole response, and `ref_second` (F, O, S) the probabilities of the second action under the reference.
# Return the transition term $V - Q$, (F, O).
#
# *Hint:* $V = \beta \log \sum_a \pi_{\text{ref}}(a)\, e^{r/\beta}$. Rewards of 300 should not give
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
# **4. Find the bug** *(easy, 10 minutes)*. A colleague trains `tiny-agent` as in section 6. The loss
# falls nicely, but the share of right answers does not move. The figure shows two real runs of DPO. One has
# the right mask and is a run of section 6. The colleague's has the same settings and the mask
# below. `mask_of` builds the mask of step 4 in section 5, `own`. The columns of all its tensors are
# the tokens of the response, as there. `by_policy` (B, R) is true where the policy wrote the token; at
# padding it can be anything.
#
# First on paper: this is the main part. Take `[ 7 ] { 7 } 7 EOS`. Which two tokens have no loss and should have
# one? Which token has a loss and should have none? Which of the three explains that the agent does not learn to
# call, and which one that the loss falls? Then mend `mask_of` in the cell below the figure, and run the check
# under it.
#
# *Hint:* write both masks of the eight tokens under each other, the right one and the colleague's.


# %% tags=["exercise"]
right = {"colleague": [0.31, 0.33, 0.32, 0.32], "right mask": [0.31, 0.42, 0.51, 0.53]}
colours = ["right mask", "colleague"]  # as in section 5: with the mask, without
label = "share of right answers"
show.lines(right, [0, 12, 24, 36], order=colours, xlabel="step", ylabel=label)


# %% tags=["exercise"]
def mask_of(by_policy, response_mask):
    """True where the policy wrote the token, (B, R)."""
    before = torch.zeros_like(by_policy[:, :1])
    return torch.cat([before, by_policy[:, :-1]], 1) & response_mask


# %% tags=["exercise"]
check.mask_of(mask_of)

# %% [markdown] tags=["exercise"]
# <details><summary>The three tokens</summary>
#
# The first `[` and the `7` after the result have no loss. The `{` has a loss, and the tool wrote it. The
# `[` is the decision to call. It has no loss, so the agent does not learn to call. The loss falls because
# the policy learns to predict the `{` of the right responses.
# </details>

# %% [markdown] tags=["solution"]
# The mask is shifted by one token, as if it stood at the position that *predicts* the token. The
# package's columns are those of the token itself. The two masks:
#
# | token | `[` | `7` | `]` | `{` | `7` | `}` | `7` | EOS |
# |---|---|---|---|---|---|---|---|---|
# | right | 1 | 1 | 1 | 0 | 0 | 0 | 1 | 1 |
# | colleague | 0 | 1 | 1 | 1 | 0 | 0 | 0 | 1 |


# %% tags=["solution"]
def mask_of(by_policy, response_mask):
    """True where the policy wrote the token, (B, R)."""
    return by_policy & response_mask


check.mask_of(mask_of)

# %% [markdown] tags=["exercise"]
# **5. The whole step on an empty page** *(hard, 25 minutes)*. Close section 5. Write `agent_step` from
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
actor, reference = copy.deepcopy(start), copy.deepcopy(start)
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
# Yes, and for a simpler reason. The policy gradient has a term for each action of the policy: the gradient of
# its log-probability, times the reward that follows. The tool's tokens are no actions of the policy, so
# they have no term. The luck of a result is part of the reward that follows a call, and its mean is zero. So
# nothing is left out, even if the tool errs.
# </details>
#
# <details><summary>4. Half of my pairs are "the tool had an error" against "it had none". What do I learn?</summary>
#
# Mostly luck, if the tool fails by chance. Both responses may have the same call. Then the pair asks the policy to
# make this call likelier and less likely at once, as in section 3. So pair responses whose tools both had an
# error, or both had none. Then the luck is about the same on both sides, and it cancels in the difference. Or
# use GRPO, whose gradient averages over the luck.
#
# It is another case if the policy *causes* the errors, for example with calls that the tool cannot read. Keep
# these pairs: they teach it to call rightly.
# </details>
#
# ## Going further
#
# **A tool that the policy knows.** tiny-agent has never learnt to predict its tool. A model that predicts it well
# has less to gain there (point 2 in section 5), and may lose less without the mask.
#
# **How were the runs of section 6 made?** An *iteration* is: sample eight responses to each of 384 problems,
# make the pairs, take 12 steps on them. A run is three iterations, with $\beta = 0.1$ as in section 5. GRPO
# samples anew for each step. The learning rate decays. So do not compare these numbers with those of
# section 5. The test has 16 samples for each of 400 problems.
#
# **Single responses.** We also trained with Kahneman-Tversky optimisation (KTO, lesson 14b). It learns from
# single responses, labelled right or wrong, and needs the mask as much as DPO: 0.57 of its answers are right
# with it, and 0.41 without.
#
# **What is learnt in section 6?** *To call, in each case.* DPO raises the share of responses with a call from
# 0.40 to 0.54 without the mask, and to 0.63 with it. *To copy the numbers, only with the mask.* At the start
# 0.79 of the calls have the prompt's product. Without the mask 0.77 have, and with it 0.91.
#
# **A calculator that errs.** We also have runs in which one call in five gets a wrong result, in
# training and in the test: one digit is changed, such as `{3981}` for `{3901}`. By section 4, DPO then
# leaves out a transition term, and GRPO does not. But GRPO's lead over DPO is 0.02 without errors, and
# again 0.02 with them. The reason: in section 4 masked DPO gets the *call* nearly right, and the
# *second action* wrong. Here the second action cannot depend on the error. Nothing tells the policy that a result is
# wrong, and it has no *I do not know*. So a random tool does not always hurt DPO.
#
# **What do these errors cost?** With the mask they lower right answers from 0.57 to 0.44 (means of the three
# methods). One wrong result in five explains most of this: 0.57 / 5 = 0.11. Without the mask fewer answers are
# right, so errors cost less: 0.07 to 0.09.
#
# **A reference that follows.** We also have runs of DPO and KTO in which the reference becomes the policy after
# each iteration. This changes right answers by less than 0.01, without errors of the tool and with them.
#
# **What do DPO's two errors cost in the world of section 4?** Its two second actions are less good than
# those of $\pi^*$. Saying *I do not know* too often after a right result costs more than passing on a wrong
# result too seldom.
#
# **A repair of masked DPO.** In the world of section 4, subtract the luck from the rewards. Then masked DPO
# is exact again: it takes the fast tool with 0.378 and passes a wrong result on with 0.7 %. For a real tool
# you have to estimate $V$ and $Q$. GRPO needs no repair. The policy gradient weights each action by its
# *return*: the rewards after it minus the later penalties. Over the tool's results and the later actions,
# its mean is the $Q$ of the current policy. So the luck averages out.
#
# **DPO without the mask, in the world of section 4.** Now the policy $\pi$ and the reference also give the
# *result* a probability, as a guess of what the tool will write. So $h$ has one term more:
#
# $$ \log \frac{\pi(\text{result} \mid \text{call})}{\pi_{\text{ref}}(\text{result} \mid \text{call})} . $$
#
# Let the reference's guess be perfect: of the fast tool it expects a right result with 80 %. Then the second
# actions are those of $\pi^*$, and only the call is wrong. DPO calls the fast tool with probability 0.569, and
# the best policy with 0.378. DPO is an optimist here: its loss also falls when a good *result* gets likelier. So
# its guess goes from 80 % right results to 99.8 %.
#
# **Is the mask always better there?** No. Let $J$ be the expected reward minus the KL penalty of the policy's
# actions: $\pi^*$ has the largest $J$. At $\beta = 0.2$ the mask is better: $J$ is 0.7184 with it, and 0.7039
# without. But at 0.5 DPO *without* the mask has the higher $J$, 0.5666 against 0.5651, and at 1 too, 0.4708
# against 0.4667. Nor is the masked call nearly right at each $\beta$: at 0.5 DPO calls the fast tool in 46.3 %,
# and the best policy in 45.0 %.
#
# **Several calls.** A response with several calls has one transition term for each: the sum of section 4
# goes on, with $Q$ of a call minus $V$ of the situation before it. Between two actions without a tool in
# between, $Q$ of the first *is* $V$ of the next situation, and there is no term.
#
# **Errors of the tool that a rule can see.** The authors of multi-turn DPO drop pairs in which the tool
# reported an error. That removes some luck, and it also removes what the policy could learn about calls
# that fail.
#
# **What the libraries do.** TRL's GRPO takes the tokens of a tool as a mask (`tool_mask`). Its DPO has
# no mask for single turns (version 1.16): there the whole completion is in the loss.
#
# **References.** Xiong et al. 2024, *Building math agents with multi-turn iterative preference
# learning* (section 3: the loss, and when it is exact). Ethayarajh et al. 2024, *KTO*. Shao et al.
# 2024, *DeepSeekMath* (GRPO). Schick et al. 2023, *Toolformer*.
#
# *How this lesson is checked:* the world of section 4 is solved in three ways in
# `tests/core/test_exact_tool.py`. That ids, masks and turns stay as they were sampled is tested in
# `tests/models/test_agent.py`. Every number about a recorded run is compared with the record
# (`tests/claims/test_lesson_15.py`).
