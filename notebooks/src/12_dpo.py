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
# # 12 · DPO
#
# After this lesson you can
#
# - derive DPO's loss from the objective with a KL penalty, line by line,
# - write one training step of DPO, and say what each line is for,
# - say what $\beta$ does, and read the curves of a DPO run.
#
# **You need** lessons 03 and 04 (policies, log-probabilities, the policy gradient), 06 (PPO), 07
# (the KL penalty and its best policy) and 08 (reward models, Bradley-Terry). About 60 minutes to
# read and 90 for the exercises.

# %%
import copy

import pandas as pd
import torch

from minirlhf import core, evaluate, experiments, loops, models, show, tasks
from minirlhf.classroom import FAST, check

# %% [markdown]
# ## 1. The idea: the policy is its own reward model
#
# Proximal policy optimisation (PPO) needs four models and samples at every step. All that people
# gave us are **pairs**: two responses to the same prompt, of which one is preferred. **Direct
# preference optimisation (DPO)** trains the policy on these pairs directly. It needs no reward
# model, no critic and no sampling. The loss of a pair is
#
# $$ L = -\log \sigma\Big( \beta \log \frac{\pi(y_c \mid x)}{\pi_{\text{ref}}(y_c \mid x)} -
# \beta \log \frac{\pi(y_r \mid x)}{\pi_{\text{ref}}(y_r \mid x)} \Big) . $$
#
# - $x$ is the prompt, $y_c$ the **chosen** response and $y_r$ the **rejected** one.
# - $\pi$ is the policy that learns. $\pi_{\text{ref}}$ is the **reference**: a copy from before
#   training.
# - $\log \pi(y \mid x)$ is the log-probability of the whole response. It is the *sum* over its
#   tokens.
# - $\beta$ is the KL coefficient. $\sigma(z) = 1 / (1 + e^{-z})$ is the sigmoid.
#
# The quantity $\beta \log \frac{\pi(y \mid x)}{\pi_{\text{ref}}(y \mid x)}$ is called the
# **implicit reward** of a response. It is positive if the policy likes the response more than the
# reference does. In words: give the chosen response a higher implicit reward than the rejected one.
# It is the loss of a reward model (lesson 08), with the implicit reward in the place of the score.

# %% [markdown]
# ## 2. From the objective to the loss
#
# **(a) The objective.** Let $r(x, y)$ be the reward of a response. Training maximises the expected
# reward minus a KL penalty:
#
# $$ \mathbb{E}_{y \sim \pi}\big[ r(x, y) \big] - \beta\, \mathrm{KL}(\pi \,\|\, \pi_{\text{ref}}) . $$
#
# **(b) The best policy.** Lesson 07 (section 2) found the one policy that maximises this objective.
# It is called the **Gibbs policy**:
#
# $$ \pi^*(y \mid x) = \frac{1}{Z(x)}\, \pi_{\text{ref}}(y \mid x)\, e^{r(x, y) / \beta} , \qquad
# Z(x) = \sum_y \pi_{\text{ref}}(y \mid x)\, e^{r(x, y) / \beta} . $$
#
# In words: take the reference, and multiply each response by a factor that grows with its reward.
# Dividing by $Z(x)$, the **partition function**, makes the probabilities add up to one. We cannot
# compute it: there are far too many responses.
#
# **(c) Turn it round.** Take the logarithm of the Gibbs policy:
#
# $$ \log \pi^*(y \mid x) = \log \pi_{\text{ref}}(y \mid x) + \frac{r(x, y)}{\beta} - \log Z(x) . $$
#
# Bring the reward to the left and multiply by $\beta$:
#
# $$ r(x, y) = \beta \log \frac{\pi^*(y \mid x)}{\pi_{\text{ref}}(y \mid x)} + \beta \log Z(x) . $$
#
# In words: the reward of a response is the implicit reward of the best policy, plus a number that
# depends on the prompt alone.
#
# **(d) Compare two responses.** The **Bradley-Terry model** (lesson 08) says how often people
# prefer $y_c$ to $y_r$: with the probability $\sigma(r(x, y_c) - r(x, y_r))$. Put (c) in for both
# rewards. Both responses answer the same prompt, so both have the same $\beta \log Z(x)$. **In the
# difference it cancels:**
#
# $$ P(y_c \text{ is preferred}) = \sigma\Big( \beta \log \frac{\pi^*(y_c \mid x)}{\pi_{\text{ref}}(y_c
# \mid x)} - \beta \log \frac{\pi^*(y_r \mid x)}{\pi_{\text{ref}}(y_r \mid x)} \Big) . $$
#
# We do not know $\pi^*$. But every policy is the best one for some reward: put its own implicit reward
# into (b), and this policy comes out, with $Z = 1$. So **we put the policy $\pi$ that we train in its
# place**, and train it so that the labels become as probable as possible (maximum likelihood). Minus
# the logarithm of this probability is DPO's loss. Section 6 tests whether $\pi$ becomes $\pi^*$.

# %% [markdown]
# ## 3. One pair by hand
#
# For a pair we need four log-probabilities. We call the difference $\log \pi - \log
# \pi_{\text{ref}}$ the **log-ratio**. Its unit is the *nat*: one nat more is $e$ times more likely.
# With $\beta = 0.5$:
#
# | response | $\log \pi$ | $\log \pi_{\text{ref}}$ | log-ratio | implicit reward |
# |---|---|---|---|---|
# | chosen | −20 | −21 | 1 | 0.5 |
# | rejected | −16 | −15 | −1 | −0.5 |
#
# The difference of the implicit rewards is called the **margin**: 0.5 − (−0.5) = 1. The loss is
# $-\log \sigma(1)$ = 0.31. The rejected response is still the more likely one, −16 against −20. DPO
# looks only at how each one has *moved*.

# %%
chosen, rejected = torch.tensor([-20.0]), torch.tensor([-16.0])
ref_chosen, ref_rejected = torch.tensor([-21.0]), torch.tensor([-15.0])
margin = 0.5 * (chosen - ref_chosen) - 0.5 * (rejected - ref_rejected)
by_hand = -torch.sigmoid(margin).log()
loss = core.dpo(chosen, rejected, ref_chosen, ref_rejected, beta=0.5)
assert torch.allclose(by_hand, loss)
print(f"margin {margin.item():.2f}, loss {loss.item():.2f}")

# %% [markdown]
# **Predict.** The reference gives −21 and −15, as before. For each of these four policies: is the
# loss higher than before training, the same, or lower? How large is the loss before training?
#
# | | what the policy has done |
# |---|---|
# | A | nothing yet: it equals the reference |
# | B | the chosen response has become more likely by 2 nats, the rejected one by 4 nats |
# | C | both responses have become less likely by 5 nats |
# | D | the chosen one has become less likely by 5 nats, the rejected one by 7 nats |

# %% tags=["predict"]
moves = {"A": (0, 0), "B": (2, 4), "C": (-5, -5), "D": (-5, -7)}
for name, (of_chosen, of_rejected) in moves.items():
    pair = ref_chosen + of_chosen, ref_rejected + of_rejected
    print(name, core.dpo(*pair, ref_chosen, ref_rejected, beta=0.5).numpy().round(2))

# %% [markdown]
# <details><summary>What you should see</summary>
#
# - **A: 0.69**, which is $\log 2$. Both log-ratios are zero, and $\sigma(0) = 1/2$. Every DPO run
#   starts at this number.
# - **B: 1.31, higher.** The chosen response has become more likely, but the rejected one even more.
#   The margin is −1.
# - **C: 0.69, the same.** The margin is zero. The loss does not notice that both have fallen.
# - **D: 0.31, lower.** The margin is 1, as in the table above. DPO is content with this, although
#   the chosen response has become much less likely.
# </details>

# %% [markdown]
# ## 4. Which pairs push?
#
# Call $h$ the difference of the two log-ratios, so that the margin is $\beta h$. The derivative of
# $-\log \sigma(\beta h)$ with respect to $h$ is $-\beta\, \sigma(-\beta h)$. So the gradient is
#
# $$ \nabla L = -\beta\, \sigma(-\beta h)\, \big[ \nabla \log \pi(y_c \mid x) - \nabla \log \pi(y_r \mid x)
# \big] . $$
#
# In words: push the chosen response up and the rejected one down, both with the same **weight**
# $\beta\, \sigma(-\beta h)$. Here are five pairs with $\beta = 0.1$:

# %%
h = torch.tensor([-40.0, -10.0, 0.0, 10.0, 40.0], requires_grad=True)
zero = torch.zeros(5)
core.dpo(h, zero, zero, zero, beta=0.1).sum().backward()
formula = 0.1 * torch.sigmoid(-0.1 * h.detach())
assert torch.allclose(-h.grad, formula)
table = {"h": h.detach(), "margin": 0.1 * h.detach(), "weight": -h.grad}
pd.DataFrame(table | {"by the formula": formula}).round(3)

# %% [markdown]
# - A pair in the **wrong order** (first row) has nearly the largest weight possible, $\beta$.
# - **Before training** $h = 0$, and every pair has the weight $\beta / 2$.
# - A pair that is **right by a wide margin** (last row) hardly pushes any more.

# %% [markdown]
# ## 5. What $\beta$ does
#
# Suppose that a share $p$ of people prefers response A to response B. Where does DPO stop? The mean
# loss over people is $-p \log \sigma(\beta h) - (1 - p) \log \sigma(-\beta h)$. Its derivative with
# respect to $\beta h$ is $\sigma(\beta h) - p$, because $\sigma(-z) = 1 - \sigma(z)$. So it is
# smallest where $\sigma(\beta h) = p$, which is
#
# $$ h = \frac{1}{\beta} \log \frac{p}{1 - p} . $$
#
# In words: the more people agree, the further the two responses move apart. **A smaller $\beta$
# lets the policy move further.**
#
# **Predict.** Suppose that 90 % of people prefer A to B. The policy is trained to the optimum. How
# many times larger than in the reference is the ratio $\pi(A) / \pi(B)$ then, with $\beta = 1$? And
# with $\beta = 0.1$, as in section 7?

# %% tags=["predict"]
for beta in (1.0, 0.1):
    print(f"beta {beta}: {(0.9 / 0.1) ** (1 / beta):.2g} times")  # this is e to the h

# %% [markdown]
# <details><summary>What you should see</summary>
#
# With $\beta = 1$ the ratio grows to 9 times its size, because 0.9 / 0.1 is 9. With $\beta =
# 0.1$ it is 9 to the tenth power: 3.5 *billion* times, or 22 nats. After that A is far likelier than
# B.
# </details>

# %% [markdown]
# ## 6. The exact world: does DPO find the Gibbs policy?
#
# Here is a small world in which everything can be computed: 15 responses of at most three words,
# with random rewards. Of every pair we know the exact share of people who prefer the first
# response, $p = \sigma(r_i - r_j)$. Two policies start from the same reference.
#
# - **DPO** gets these shares, and never sees a reward.
# - **The policy gradient** gets the rewards, and never sees a pair. Each step follows the exact
#   gradient of the objective (a) (lesson 04).

# %%
world, beta = core.World.random(3, 3, seed=0), 0.5
target = world.gibbs(beta=beta)  # the best policy, from the rewards
ref = world.sequence_logprobs(world.ref_logits)
i, j = torch.triu_indices(15, 15, 1)  # all pairs
share = core.preference_probability(world.rewards[i], world.rewards[j])


# %%
def dpo_walk(share, i, j):
    """Gradient descent on DPO's mean loss over people: the policy at each step."""
    logits, path = world.ref_logits, []
    for _ in range(200):
        path.append(world.probs(logits))
        logits = logits.detach().requires_grad_(True)
        p = world.sequence_logprobs(logits)
        prefers_i = core.dpo(p[i], p[j], ref[i], ref[j], beta=beta)
        prefers_j = core.dpo(p[j], p[i], ref[j], ref[i], beta=beta)
        (share * prefers_i + (1 - share) * prefers_j).mean().backward()
        logits = (logits - 20 * logits.grad).detach()
    return torch.stack(path)


# %%
def gradient_walk():
    """Gradient ascent on the objective (a): the policy at each step."""
    logits, path = world.ref_logits, []
    for _ in range(200):
        path.append(world.probs(logits))
        logits = logits + 5 * world.gradient(logits, beta=beta)
    return torch.stack(path)


paths = {"policy gradient": gradient_walk(), "DPO": dpo_walk(share, i, j)}
distances = {}
for name, path in paths.items():
    assert (path[-1] - target).abs().max() < 0.001
    distances[name] = (target * (target / path).log()).sum(1)  # KL(target || policy)
show.distance_to_optimum(distances)

# %% [markdown]
# The figure shows the distance of each policy to the Gibbs policy, a KL divergence. Do not compare
# the speeds: the step sizes differ. At the end no probability is off by more than 0.001.
#
# **The two find the same policy.** But this needs four conditions:
#
# 1. The labels are shares of many people, who follow Bradley-Terry.
# 2. The pairs connect all responses: from each one you can get to every other one, pair by pair.
# 3. The policy can be any distribution ("Going further" has one that cannot).
# 4. Training reaches the optimum.
#
# **Predict.** Which of the seven runs in the next cell find the Gibbs policy? Its table shows the
# largest error of a probability, and that of the best response, number 0 (truly 0.41).

# %% tags=["predict"]
rng, many = torch.Generator().manual_seed(0), torch.full_like(share, 1000)
seen = torch.arange(15) % 2 == 0  # every other response: 8 of 15
some = seen[i] & seen[j]
ends = {
    "all conditions hold": paths["DPO"][-1],
    "only 14 pairs, each with response 0": dpo_walk(share[:14], i[:14], j[:14])[-1],
    "hard labels": dpo_walk((share > 0.5).double(), i, j)[-1],
    "one vote per pair": dpo_walk(torch.bernoulli(share, generator=rng), i, j)[-1],
    "1000 votes per pair": dpo_walk(torch.binomial(many, share, rng) / many, i, j)[-1],
    "pairs among 8 responses": dpo_walk(share[some], i[some], j[some])[-1],
    "after 10 steps": paths["DPO"][10],
}
table = pd.DataFrame(ends).T
error = (table - target.numpy()).abs().max(axis=1)
pd.DataFrame({"largest error": error, "response 0": table[0]}).round(2)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# The first two, and nearly the one with 1000 votes.
#
# - **Only 14 pairs** of 105 are enough: they connect each response with response 0.
# - **Hard labels**: what most people prefer counts as preferred by all, so $p$ is 0 or 1. The loss
#   asks for $\sigma(\beta h) = 1$, which no finite $h$ reaches. So there is no optimum. The policy
#   runs towards the best response as long as you train: after 200 steps its probability is 0.79,
#   and in the end 1.
# - **One vote per pair** makes $p$ 0 or 1 as well. But here no response, and no group of
#   them, has won all votes against the rest. If its probability rises towards 1, the loss of a vote
#   that it lost grows without end. So training stops, but not at the right place.
# - **Pairs among 8 responses.** *Among* these all ratios are right. The others should have a total
#   probability of 0.49, and they get 0.10. Exercise 2 and "Going further" show why.
# </details>
#
# The film reviews below meet none of the four conditions: one vote per pair, pairs of few responses,
# a network whose responses share their weights, and at most 100 steps.

# %% [markdown]
# ## 7. One step of DPO
#
# We take `tiny-reviews-sft`, the small fine-tuned language model of lesson 03, and pairs of film
# reviews. The prompt is a film's title. Both reviews are by people. The label compares two ratings,
# each by one random person. We use 32 pairs per step and $\beta = 0.1$.

# %%
torch.set_num_threads(1)  # sums in a fixed order, so that two runs can be equal
sft, tokenizer = models.load_policy("tiny-reviews-sft")
pairs = tasks.reviews.preference_pairs(
    "reward", 4000, seed=0, max_tokens=32, tokenizer=tokenizer
)

actor, reference = copy.deepcopy(sft), copy.deepcopy(sft)
optimizer = loops.make_optimizer(actor, loops.OptimiserConfig(lr=5e-5))
two = pd.DataFrame(pairs[:2])[["prompt", "chosen", "rejected"]]
show.texts(two.map(str.strip))  # without the line break that ends a prompt

# %% [markdown]
# Both responses to a prompt go through the models together, as one batch of `2B` rows. Tensors of
# tokens have the shape `(2B, R)`, where R is the number of positions. The mask is true at real
# tokens and false at padding.


# %%
def dpo_step(rows):
    # 1. One batch: the chosen responses, then the rejected ones.
    responses = rows["chosen"] + rows["rejected"]
    prompts = rows["prompt"] + rows["prompt"]
    batch = models.encode(tokenizer, prompts, responses, max_response=32)
    mask = batch.response_mask
    # 2. The log-probability of each response: the sum over its tokens.
    logprobs = core.sequence_logprobs(models.policy_logprobs(actor, batch), mask)
    with torch.no_grad():  # the reference does not learn
        ref_logprobs = core.sequence_logprobs(
            models.policy_logprobs(reference, batch), mask
        )
    # 3. The loss of each pair (section 1), and its mean.
    chosen, rejected = logprobs.chunk(2)
    losses = core.dpo(chosen, rejected, *ref_logprobs.chunk(2), beta=0.1)
    losses.mean().backward()
    # 4. Update.
    optimizer.step()
    optimizer.zero_grad()
    return losses.mean().item()


# %% [markdown]
# Two details matter:
#
# - Log-probabilities are summed over the tokens, the end token included.
# - Nothing is sampled, so there is no temperature: the logits are not scaled.
#
# The package's `train_dpo` adds logs and checkpoints, a learning-rate schedule and gradient clipping.
# `DPOConfig.plain` switches the last two off. Then three steps leave exactly the same weights:

# %%
steps = 1 if FAST else 3  # FAST=1 is for the tests of this page
order = list(loops.shuffled_batches(len(pairs), 32, steps, seed=0))
losses = [dpo_step(pairs[index.tolist()]) for index in order]

config = loops.DPOConfig.plain(steps=steps, batch_size=32, beta=0.1)
other, history = loops.train_dpo(copy.deepcopy(sft), tokenizer, pairs, config)
assert models.same_weights(actor, other)
print("loss of each step:", [round(loss, 3) for loss in losses])

# %% [markdown]
# The first loss is $\log 2$ (case A of section 3). If yours differs, the reference is no copy
# of the policy.

# %% [markdown]
# ## 8. A pair under the microscope
#
# The log-ratio of a response is the sum over its tokens. So each token has its part of the implicit
# reward. We train for twenty steps, and look at a pair of a film that was not trained on. The
# chosen response comes first, then the rejected one. The colour is the implicit reward of the
# token: blue is positive, orange negative.

# %%
config = loops.DPOConfig(steps=2 if FAST else 20, beta=0.1)
trained, history = loops.train_dpo(copy.deepcopy(sft), tokenizer, pairs, config)

unseen = tasks.reviews.preference_pairs(
    "val", 60, seed=3, max_tokens=32, tokenizer=tokenizer
)[0]
responses = [unseen["chosen"], unseen["rejected"]]
batch = models.encode(tokenizer, [unseen["prompt"]] * 2, responses, max_response=32)
both = {"actor": trained, "reference": sft}
tokens = evaluate.token_table(batch, tokenizer, **both, temperature=1.0, beta=0.1)
columns = ["text", "prompt", "position", "token", "implicit_reward"]
show.microscope(tokens[columns], "implicit_reward", text="all")

# %%
tokens.groupby("text").implicit_reward.sum().round(2)

# %% [markdown]
# The implicit rewards of the two responses are 0.04 and −0.26. So the margin is 0.30.
#
# - **The reward is spread.** Half of the tokens have at most ±0.02. The strongest
#   token is *ering* (of *offering*) in the rejected response, with −0.125.
# - **This pair is no rule.** After these twenty steps, only 51 % of 2,000 new pairs are in the right
#   order. Section 9 has the same pairs after 100 steps.

# %% [markdown]
# ## 9. What has the policy learned?
#
# In the experiment `order`, DPO trains for 100 steps as above ($\beta = 0.1$, 32 pairs per step).
# Then it compares 2,000 pairs of new films. Each row is a seed.
#
# | column | what it is |
# |---|---|
# | right_order | share of the new pairs that have a positive margin |
# | chosen_change, rejected_change | mean log-ratio of the two sides, in nats |
#
# **Predict.** Is the share in the right order nearer to 0.5 (a coin), 0.6 or 0.8? Do the chosen
# reviews become more likely? Do the rejected ones?

# %% tags=["predict"]
asked = experiments.results("order")  # with several losses; lesson 14b needs the others
asked = asked[asked.variant == "dpo"].set_index("seed")
asked[["right_order", "chosen_change", "rejected_change"]].round(2)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# - **Nearest to 0.6.** The mean is 0.59, with the 95 % interval [0.56, 0.62] over
#   films. The reward model of lesson 08, which has read more pairs, has 0.65.
# - **Both fall.** The chosen reviews lose 2.8 nats and the rejected ones 3.6. This is case D of
#   section 3. The rejected ones lose more, and that is all the loss asks for.
# </details>

# %% [markdown]
# ## 10. The chosen responses fall
#
# The fall of the chosen responses is called **likelihood displacement**. No training pair contained
# the reviews of section 9. They move because all responses share the parameters of the network. The
# chosen reviews of the training pairs fall, too (lesson 14).
#
# But each pair pushes its chosen response up (section 4). How can it fall? **Predict**, on paper. A
# policy has one parameter $w$. If $w$ rises by 1, $\log \pi$ of the chosen response falls by 1 nat
# and that of the rejected one by 3. Does DPO raise $w$ or lower it?
#
# <details><summary>What you should see</summary>
#
# The gradients are −1 and −3. DPO moves $w$ along their difference, −1 − (−3) = 2: it raises $w$. If
# $w$ rises by 0.2, the chosen response loses 0.2 nats and the rejected one 0.6, as in case D of
# section 3. **Both can fall where the two gradients point in similar directions and that of the
# rejected response is longer.**
# </details>
#
# We have not measured whether this is the reason in the film reviews. It is hardly the only one: with
# labels drawn by a coin, both sides together fell more than half as far ("Going further").
#
# The next figure shows 128 pairs of other new films, for four values of $\beta$, measured *after* every
# 10th update. The first update is step 0.

# %%
history = experiments.results("betas_history")
sides = {"chosen_change": "chosen: log-ratio, nats"}
sides["rejected_change"] = "rejected: log-ratio, nats"
show.curves(history, columns=sides, labels=sides)

# %% [markdown]
# - **Both sides fall** at every $\beta$ and on every seed; most at $\beta = 0.03$.
# - **Too few pairs to tell the sides apart.** Of the 128 pairs, a share of 0.51 ends in the right
#   order ($\beta = 0.1$). Two standard errors are 0.09. So a coin is possible, and 0.59, too.
#   On 2,000 pairs of these films, one run has 0.57.

# %% [markdown]
# ## 11. The curves of a run
#
# A run logs the pairs of each step, *before* it trains on them. In the runs of section 10:

# %%
show.curves(history, columns=["loss", "rewards/margins", "rewards/accuracies"])

# %% [markdown]
# | curve | what it is | what to expect |
# |---|---|---|
# | loss | mean over the pairs | starts at $\log 2$, falls slowly |
# | rewards/margins | mean of $\beta h$ | rises, with dips |
# | rewards/accuracies | share of pairs with a positive margin | starts at zero, because a tie is not right; then 0.64 to 0.67 on average |
#
# At $\beta = 1$ the mean loss of the three seeds *rises* above its start. A large $\beta$ enlarges
# wrong margins, too, and a margin of −2 costs 2.1. So do not compare the losses of different
# $\beta$. None of the three curves shows displacement: log the change of $\log \pi$ on new pairs,
# too.

# %% [markdown]
# ## 12. DPO against PPO
#
# The DPO runs of section 10 stand beside PPO runs with six KL coefficients
# (lesson 07). Each policy then wrote one review for each of 76 test films. The **gold
# score** comes from a separate model that no training used. Each point is the mean of three seeds.
#
# **Predict.** In section 6 rewards and pairs led to the same policy. Here, at equal KL: has DPO or
# PPO the higher gold score, or are they equal?

# %% tags=["predict"]
betas = experiments.results("betas")
by_coefficient = experiments.results("leash")
by_coefficient = by_coefficient[by_coefficient.variant.str.startswith("kl_coef")]
curves = {"DPO, four values of beta": betas.variant.unique()}
curves["PPO, six KL coefficients"] = by_coefficient.variant.unique()
runs = pd.concat([betas, by_coefficient])
show.frontier(runs, curves=curves, log=True, ylabel="gold score")

# %% [markdown]
# <details><summary>What you should see</summary>
#
# **PPO**, from about 2 nats on: 1.43 at 2.0 nats, where DPO has 1.06 at 2.5. At about 1 nat the
# seeds of the two overlap.
#
# But these runs do not show that PPO is the better algorithm. The two did not get the same:
#
# | | PPO | DPO |
# |---|---|---|
# | pairs with labels | 40,000, for its reward model | 3,200 (100 steps of 32) |
# | learns from | the reviews that it writes now | reviews that people wrote |
# | tokens per review: PPO at 2.0 and 4.1 nats, DPO at 2.5 | 15 and 12 | 22 |
# | a review without an end | costs reward | costs nothing |
#
# And part of PPO's gold at its last point is an error of the gold model ("Going further").
# </details>

# %% [markdown]
# ## What to remember
#
# - The Gibbs policy $\pi^* \propto \pi_{\text{ref}}\, e^{r/\beta}$ turns a reward into a policy.
#   Read backwards, it turns a policy into a reward: $\beta \log (\pi / \pi_{\text{ref}})$, up to a
#   number per prompt. In a pair this number cancels.
# - DPO's loss is the reward model's loss on implicit rewards. It starts at $\log 2$.
# - Pairs in the wrong order push most, with a weight of at most $\beta$.
# - With exact shares as labels, pairs that connect all responses, a policy that can be any
#   distribution and enough training, DPO finds the Gibbs policy. If one of the four fails, DPO may
#   end elsewhere.
# - Only the difference counts. Both log-probabilities may fall while the loss looks good.
#
# ## Exercises
#
# Solutions are in `solutions/12_dpo.ipynb`.

# %% [markdown] tags=["exercise"]
# **1. DPO's loss** *(easy, 10 minutes)*. From four log-probabilities of shape (B,), each the sum
# over the tokens of a response, and beta, return the loss of each pair, (B,). It must be finite
# where a pair is very wrong: there the sigmoid is rounded to zero, and the line of section 3 gives
# infinity. The checker compares the gradient, too. *This function goes into `my_rlhf.py`, the file
# that collects your functions (lesson 00): `minirlhf tour --mine my_rlhf.py` then trains its DPO with
# it.*
#
# *Hint:* look for a function of `torch.nn.functional` that computes the logarithm of a sigmoid in
# one step.


# %% tags=["exercise"]
def dpo_loss(
    chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs, beta
): ...  # your code


check.dpo_loss(dpo_loss)


# %% tags=["solution"]
def dpo_loss(
    chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs, beta
):
    chosen = chosen_logprobs - ref_chosen_logprobs
    rejected = rejected_logprobs - ref_rejected_logprobs
    return -torch.nn.functional.logsigmoid(beta * (chosen - rejected))


check.dpo_loss(dpo_loss)

# %% [markdown] tags=["exercise"]
# **2. The responses without a pair** *(medium, 20 minutes)*. A policy has one logit for each of its N
# responses. At the start it equals the reference, and the logits are `ref_logprobs`, (N,). `seen`,
# (N,), is true for the responses that have pairs: every two of them are compared, and the labels are
# the exact shares $\sigma(r_i - r_j)$ of the `rewards`, (N,). Gradient descent on DPO's loss reaches
# the optimum. Return the probabilities of all N responses there, (N,).
#
# *Hint:* a log-ratio of two responses is a difference of logits. So which logits does the loss of a
# pair move, and in which direction? What does that mean for the sum of the logits that are seen?


# %% tags=["exercise"]
def optimum_of_pairs(ref_logprobs, rewards, seen, beta): ...  # your code


check.optimum_of_pairs(optimum_of_pairs)

# %% [markdown] tags=["solution"]
# The loss of a pair contains only the difference of two logits. Its gradient raises one and lowers
# the other by as much. So the logits without a pair stay, and the sum of the seen ones stays. At the
# optimum the seen ones have changed by $r / \beta$ plus one number for all, and the sum of these
# changes is zero. So the number is minus their mean.


# %% tags=["solution"]
def optimum_of_pairs(ref_logprobs, rewards, seen, beta):
    change = (rewards - rewards[seen].mean()) / beta
    return (ref_logprobs + torch.where(seen, change, 0.0)).softmax(0)


check.optimum_of_pairs(optimum_of_pairs)

# %% [markdown] tags=["exercise"]
# **3. The implicit reward** *(medium, 10 minutes)*. `logprobs` and `ref_logprobs` are the
# log-probabilities of *all* N responses to a prompt, (N,), under a policy and its reference. For
# which reward is this policy the best one? Return it, (N,). It is known only up to a constant:
# choose the constant so that the mean reward *under the reference* is zero.
#
# *Hint:* start from (c) in section 2. A mean under the reference weights each response with its
# probability.


# %% tags=["exercise"]
def reward_from_policy(logprobs, ref_logprobs, beta): ...  # your code


check.reward_from_policy(reward_from_policy)


# %% tags=["solution"]
def reward_from_policy(logprobs, ref_logprobs, beta):
    reward = beta * (logprobs - ref_logprobs)
    return reward - (ref_logprobs.exp() * reward).sum()


check.reward_from_policy(reward_from_policy)

# %% [markdown] tags=["exercise"]
# **4. What the loss does not see** *(medium, 15 minutes)*. `chosen` and `rejected` are the log-ratios
# of B new pairs, (B,). At least one pair is in the right order. Return two numbers in one tensor: the
# share of the pairs that are in the right order, and, *among these*, the share whose chosen response has
# become less likely.
#
# Then **predict**: section 8's run has trained for 20 steps. How large are the two shares on 60 pairs
# that it was not trained on? In a pair of the second share, what has happened to the rejected
# response? The last cell uses your function.
#
# *Hint:* the sign of a log-ratio says whether a response has become more likely. The order of a pair
# says nothing about this sign.


# %% tags=["exercise"]
def order_and_displacement(chosen, rejected): ...  # your code


check.order_and_displacement(order_and_displacement)


# %% tags=["solution"]
def order_and_displacement(chosen, rejected):
    right = chosen > rejected
    fallen = right & (chosen < 0)
    return torch.stack([right.float().mean(), fallen.sum() / right.sum()])


check.order_and_displacement(order_and_displacement)

# %% tags=["exercise"]
fresh = tasks.reviews.preference_pairs(
    "val", 60, seed=3, max_tokens=32, tokenizer=tokenizer
)[:]
texts = models.encode(
    tokenizer, 2 * fresh["prompt"], fresh["chosen"] + fresh["rejected"], max_response=32
)
with torch.no_grad():
    moved = core.sequence_logprobs(
        models.policy_logprobs(trained, texts) - models.policy_logprobs(sft, texts),
        texts.response_mask,
    )
print("right order, and fallen among these:", order_and_displacement(*moved.chunk(2)))

# %% [markdown] tags=["exercise"]
# <details><summary>What you should see in section 8's run</summary>
#
# A little more than half of the pairs are in the right order. So few pairs cannot tell this from
# a coin (section 8). In about half of these, the chosen
# response has become less likely. The rejected one has then fallen too, and further: otherwise the
# pair would not be in the right order. The loss counts such a pair as a success.
# </details>

# %% [markdown] tags=["exercise"]
# **5. Find the bug** *(medium, 15 minutes)*. A colleague computes DPO's loss from log-probabilities
# of tokens. `logprobs` and `ref_logprobs` have the shape `(2B, R)`, the B chosen responses first,
# then the B rejected ones. The result is the loss of each pair, (B,). The labels are those of
# section 6, so the distance to the Gibbs policy should shrink to zero. It shrinks at first, but
# then it wanders and never gets small: see the curve. What is wrong? Mend it, run the checker, and
# draw the curve again.
#
# *Hint:* padding can hold NaN, and NaN times zero is NaN. This part of the code is right. Follow a
# pair of responses of one and three tokens through the rest, on paper.


# %% tags=["exercise"]
def dpo_of_a_batch(logprobs, ref_logprobs, mask, beta):
    ratio = torch.where(mask, logprobs, 0.0) - torch.where(mask, ref_logprobs, 0.0)
    chosen, rejected = (ratio.sum(1) / mask.sum(1)).chunk(2)
    return -torch.nn.functional.logsigmoid(beta * (chosen - rejected))


check.dpo_of_a_batch(dpo_of_a_batch)


# %% [markdown] tags=["solution"]
# The log-probability of a response is the *sum* over its tokens. The mean is another loss with
# another optimum. Each token's push is divided by the length of its response. And at the optimum,
# the log-ratio of a response of three tokens is three times as large as its reward says. (Without a
# reference the mean has a use: SimPO, lesson 14b.)


# %% tags=["solution"]
def dpo_of_a_batch(logprobs, ref_logprobs, mask, beta):
    ratio = torch.where(mask, logprobs, 0.0) - torch.where(mask, ref_logprobs, 0.0)
    chosen, rejected = ratio.sum(1).chunk(2)
    return -torch.nn.functional.logsigmoid(beta * (chosen - rejected))


check.dpo_of_a_batch(dpo_of_a_batch)


# %% tags=["exercise", "solution"]
def distance_to_gibbs(loss, steps=200, beta=0.5):
    """KL(Gibbs policy || policy) at each step of gradient descent on a loss."""
    world, path = core.World.random(3, 3, seed=0), []
    logits, target = world.ref_logits, world.gibbs(beta=beta)
    i, j = torch.triu_indices(15, 15, 1)
    share = core.preference_probability(world.rewards[i], world.rewards[j])
    rows = torch.cat([i, j, j, i])  # the chosen responses, then the rejected ones
    weights = torch.cat([share, 1 - share])
    ref, mask = world.logprobs(logits)[rows], world.response_mask[rows]
    for _ in range(steps):
        logprobs = world.sequence_logprobs(logits)
        path.append((target * (target.log() - logprobs)).sum().item())
        logits = logits.detach().requires_grad_(True)
        losses = loss(world.logprobs(logits)[rows], ref, mask, beta)
        (weights * losses).mean().backward()
        logits = (logits - 40 * logits.grad).detach()
    return path


path = distance_to_gibbs(dpo_of_a_batch)
show.lines({"distance": path}, xlabel="step", ylabel="KL, nats", ylim=(0, 1))

# %% [markdown] tags=["exercise"]
# **6. The whole step on an empty page** *(hard, 25 minutes)*. Close section 7. Write `dpo_step`
# from memory, under the name `my_step`: one batch with the chosen and the rejected responses;
# log-probabilities under `actor` and `reference`; loss with $\beta = 0.1$ (use your `dpo_loss` of
# exercise 1); update with `optimizer`. Return the mean loss. The last cell creates `actor`,
# `reference` and `optimizer`, runs the steps of section 7 again and compares. If the first
# loss is not $\log 2$, look at the four log-probabilities. If a later one differs, look at the
# update.
#
# `rows` has the lists `rows["prompt"]`, `rows["chosen"]` and `rows["rejected"]`. The functions are
# `models.encode` (with `max_response=32`), `models.policy_logprobs` and `core.sequence_logprobs`.
# `help(models.encode)` tells you the arguments of a function.


# %% tags=["exercise"]
def my_step(rows): ...  # your code


# %% [markdown] tags=["solution"]
# `dpo_step` in section 7 of the lesson is the solution. If your weights differ, compare the two
# line by line. Common slips: the mean over tokens instead of the sum, a reference that is the actor
# itself, gradients that are not set to zero, a sum over the pairs instead of the mean.

# %% tags=["exercise"]
actor, reference = copy.deepcopy(sft), copy.deepcopy(sft)
optimizer = loops.make_optimizer(actor, loops.OptimiserConfig(lr=5e-5))
mine = [my_step(pairs[index.tolist()]) for index in order]
print("losses, section 7:", losses)
print("losses, my_step:  ", mine)
print("the weights are equal:", models.same_weights(actor, other))

# %% [markdown]
# ## Questions
#
# <details><summary>1. My DPO loss stays at 0.693. What do I look at?</summary>
#
# At the start the policy is where the reference is, and the margin of every pair is zero. If it stays
# there, nothing moves the margins. Is the learning rate zero, for example in a long
# warm-up? Are chosen and rejected the same response, or is their difference cut off by the length
# limit? Is the reference the very model that is trained? Then the two always agree, and the loss
# never moves.
# </details>
#
# <details><summary>2. The loss has fallen and the margins grow. Can I use the model?</summary>
#
# Not yet. The loss and the margins are those of the training pairs. If *rewards/accuracies* is near
# one and the share in the right order on *new* pairs is near one half, the model knows the training
# pairs by heart: take fewer steps or more pairs. If the new pairs are in order but *chosen_change*
# has fallen far, the probability has gone to responses unlike people's. Read samples, and
# measure the KL to the reference (lesson 14 has repairs).
# </details>
#
# <details><summary>3. The partition function cancelled. Did we lose something?</summary>
#
# Nothing that the pairs contained. They compare within a prompt, so a reward model fitted to them
# has the same unknown number per prompt. Neither can say whether the best response to prompt A is
# better than the best one to prompt B. A pair from two prompts would keep $\beta \log Z(x) - \beta
# \log Z(x')$.
# </details>
#
# <details><summary>4. Does DPO need a KL penalty?</summary>
#
# It is inside: log-ratios are measured from the reference, and $\beta$ says how far they go. But it
# says so only where labels disagree: with hard labels nothing stops the policy (section 6). And the
# loss contains the compared responses only. All others move along through the shared parameters, and
# nothing measures what the policy would write.
# </details>
#
# <details><summary>5. "DPO is as good as PPO and needs no reward model." What would you have to see?</summary>
#
# The same labels for both: PPO's reward model is trained on the very pairs that DPO gets. Both at
# several KL coefficients, so that you compare curves and not points. For each the same number of
# tries to find a learning rate, on other prompts. A judge that neither was trained on, with KL,
# length and variety beside it. Several seeds, compared prompt by prompt. And the cost of the reward
# model and of PPO's samples.
# </details>
#
# ## Going further
#
# **A language model is a reward model.** By section 2 (d), any policy that excludes no response of the
# reference is the best one for some reward: $\pi_{\text{ref}}\, e^{r/\beta}$ with its implicit reward $r$
# is the policy itself. So a language model that was trained by DPO is also a reward model, known up to
# a number per prompt.
#
# **Every $\beta$.** In the world of section 6, DPO's optimum for each $\beta$ is the Gibbs policy of
# that $\beta$. No policy has more reward at the same KL (lesson 07).
#
# **The optimum is unique.** The mean loss of a pair is smallest where $\sigma(\beta h) = p =
# \sigma(r_i - r_j)$. The Gibbs policy reaches this for all pairs at once. If the pairs connect all
# responses, another policy with the same differences has the same log-ratios up to a constant, and
# the constant is fixed because probabilities add up to one. A chain of 14 pairs (0 and 1, 1 and 2,
# and so on) has the same optimum, but needs more steps: after 200 the largest error is 0.18, after
# 6,000 it is zero up to rounding.
#
# **The responses without a pair (section 6).** Think of a policy with one logit per response (exercise
# 2; there the seven get 0.08). A pair raises one logit and lowers another by as much. This multiplies
# one probability by 3, say, and divides the other by 3: 0.3 and 0.3 become 0.9 and 0.1, together more
# than before. Then all are divided by the new total, and the responses without a pair lose. They gain
# if the raised response is much rarer than the lowered one: 0.01 and 0.6 become 0.03 and 0.2.
#
# **Labels that are wrong by chance.** Suppose that a rater's hand slips in a share $\epsilon$ of the
# labels. Then the labels show $(1 - \epsilon)\, p + \epsilon\, (1 - p)$ instead of $p$, which is nearer
# to one half. So the optimum of section 5 is nearer to the reference. Lesson 14b has a loss that
# takes this back.
#
# **Half of the push.** A pair pushes half as strongly as at the start when $\beta h = \log 3$: at
# 22 nats with $\beta = 0.05$, and at 2.2 nats with $\beta = 0.5$. So with a large $\beta$ the pairs
# are satisfied soon.
#
# **The size of the weights (section 4).** In section 10's runs, the norm of the first gradient is 33
# times as large at $\beta = 1$ as at $\beta = 0.03$. But gradients longer than 1 are shortened to 1,
# and AdamW divides by their size. After the first update, the mean log-ratios of new pairs differ
# by less than 0.00001 nats between the four $\beta$. After the 11th, the chosen reviews have fallen
# *least* at $\beta = 1$.
#
# **A policy that cannot be any distribution** (the third condition). Take a policy that ignores the
# words before: its next word has the same probabilities after every prefix. In the world of section
# 6 the best it can do under DPO's loss has an error of 0.19.
#
# **Repetition (section 12).** At 9 nats PPO repeats itself: 36 % of its word pairs are distinct,
# against 82 % for DPO. Part of its gold there is an error of the gold model (lesson 07).
#
# **Every seed of section 12.** At $\beta = 0.03$ DPO has at most 1.70 gold points at 8.6 nats or more.
# PPO with the coefficient 0.25 has at least 1.83 at 4.3 nats or less. So PPO's worst seed has more
# gold than DPO's best, at a lower KL. The same holds for $\beta = 0.3$ and the coefficient 0.5.
#
# **Labels by a coin (section 10).** We drew the labels by a coin, so there was nothing to learn. In
# two runs of 20 steps, the mean log-ratio of 2,000 new pairs, both sides together, still fell more
# than half as far as with people's labels. So the fall does not need preferences. Nothing in the loss
# keeps people's reviews likely.
#
# **DPO against the reward model (section 9).** On the same 2,000 new pairs, the reward model has 0.06
# more in the right order, with the 95 % interval [0.02, 0.09] over films. (It was trained on more
# pairs, so this does not compare the two methods.)
#
# **Reviews without an end (section 12).** DPO's loss never asks a review to end: up to 21 % do not,
# within the limit. PPO's score has a penalty for that.
#
# **Training pairs are not independent.** In 60 % of the pairs of section 7, the chosen response is
# the rejected one of another pair, nearly always against a third review. So a response of a new
# step may have been trained on before, and *rewards/accuracies* in section 11 is no test on new
# data.
#
# **Other starts.** The README's tour starts DPO at a fine-tuned model of each seed's own, so its
# numbers differ.
#
# **In the libraries.** TRL 1.16 and OpenRLHF 0.11 both sum the log-probabilities over the response.
# Both have a `label_smoothing` for labels that are wrong by chance. OpenRLHF's plain
# loss uses it (lesson 14b calls that cDPO), and TRL's plain loss ignores it. TRL can compute the
# reference's log-probabilities once, before training (`precompute_ref_log_probs`). verl has DPO in
# recipes only, and DeepSpeed-Chat has PPO only. Our log uses TRL's names. On the command line:
# `minirlhf dpo --beta 0.3`, `--precompute`, `--lora 16`.
#
# **References.** Rafailov et al. 2023, *Direct preference optimization* (sections 4 and 5, equation
# 7). Korbak et al. 2022, *RL with KL penalties is better viewed as Bayesian inference* (section 3).
# Azar et al. 2023, *A general theoretical paradigm to understand learning from human preferences*
# (section 4: deterministic pairs). Razin et al. 2024, *Unintentional unalignment* (displacement).
# Xu et al. 2024, *Is DPO superior to PPO for LLM alignment?* (section 4: coverage).
#
# *How this lesson is checked:* its loop equals `train_dpo` (`tests/loops/test_by_hand.py`), the
# optimum in the exact world is tested in `tests/core/test_exact.py`, and every number about a
# recorded run is compared with the record (`tests/claims/test_lesson_12.py`).
