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
# # 05 · Advantages: GAE
#
# **The question.** The reward model speaks once, at the end of the text. Which of its twenty tokens earned the praise?
#
# **You need** lesson 04: baselines, reward-to-go. 30 minutes to read, 65 for the exercises.
#
# **Predict.** A *critic* guesses, before each token, what the text will earn. One can trust it (score a token by how the guess moved) or wait for the reward (score a token by what came, minus the guess). Write *yes* or *no*:
#
# | | biased with the true critic? | biased with a wrong one? | noisy? |
# |---|---|---|---|
# | trust the critic's next guess ($\lambda = 0$) | | | |
# | wait for the reward ($\lambda = 1$) | | | |
# | something between | | | |

# %%
# %matplotlib inline
import math

import torch
from IPython.display import display
from matplotlib.figure import Figure

from minirlhf.classroom import check
from minirlhf.classroom.claims import FAST, claim
from minirlhf.core.exact import World
from minirlhf.core.kl import kl_shaped_rewards
from minirlhf.core.policy_gradient import explained_variance
from minirlhf.core.returns import gae, reward_to_go, td_errors
from minirlhf.loops.ppo import PPOConfig, train_ppo
from minirlhf.models.forward import policy_logprobs, response_values
from minirlhf.models.load import load_policy, load_scalar
from minirlhf.models.sampling import sample_text
from minirlhf.rewards.model import rollout_score
from minirlhf.runtime import set_threads
from minirlhf.show import COLOURS
from minirlhf.show.strips import token_strip
from minirlhf.tasks import reviews
from minirlhf.tour import trainable

set_threads()

# %% [markdown]
# ## 1. From a guess to an advantage
#
# Write $s_t = y_{<t}$ for the text before token $t$. The **value** $V(s_t)$ is the mean of the reward-to-go from there; $Q(s_t, y_t)$ the same with token $y_t$ already written; the **advantage** is $A = Q - V$, how much better the token is than what
# the policy would have written on average.
#
# Writing is deterministic: after $y_t$ the text *is* $s_{t+1}$. So $Q(s_t, y_t) = r_t + \gamma V(s_{t+1})$, with no mean over anything. Hence a critic needs only $V$ (lecture notes often say Q), and the
#
# $$ \textbf{TD error} \qquad \delta_t = r_t + \gamma V(s_{t+1}) - V(s_t) $$
#
# *is* the advantage, exactly, if $V$ is the truth. If it is not, its errors at both ends are in it. One can also look further before trusting it. After $n$ tokens,
#
# $$ A_t^{(n)} = r_t + \gamma r_{t+1} + \dots + \gamma^{n-1} r_{t+n-1} + \gamma^n V(s_{t+n}) - V(s_t) = \sum_{l=0}^{n-1} \gamma^l \delta_{t+l} : $$
#
# the values in between cancel in pairs. Larger $n$: less of the critic's error (it is weighted with $\gamma^n$, and past the end of the text it is 0), more of the noise of what was drawn.
#
# **GAE** (Schulman et al. 2016) takes all $n$ at once, with weights $(1 - \lambda) \lambda^{n-1}$ that sum to 1:
#
# $$ A_t = (1 - \lambda) \sum_{n \ge 1} \lambda^{n-1} \sum_{l=0}^{n-1} \gamma^l \delta_{t+l} = \sum_{l \ge 0} \gamma^l \delta_{t+l} \, (1 - \lambda) \sum_{n \ge l + 1} \lambda^{n-1} = \sum_{l \ge 0} (\gamma \lambda)^l \, \delta_{t+l} , $$
#
# since the inner sum is a geometric series, $\lambda^l / (1 - \lambda)$. So it is one backward recursion, $A_t = \delta_t + \gamma \lambda A_{t+1}$. $\lambda = 0$ is the TD error, $\lambda = 1$ is reward-to-go minus $V$.
# The critic is trained towards the **returns** $A_t + V(s_t)$.
#
# **By hand**, on the text *good good* of the world of lessons 04 to 07: reward 2 at its end, true values 0 at the start and 1 after *good*. And with a critic that is wrong, 1 and 0.

# %%
hand = World.from_reward(
    ("good", "bad", "."), 2, lambda words: float(words.count("good") - words.count("bad"))
)
true_values = hand.values(hand.ref_logits)[0]
assert torch.allclose(
    true_values, torch.tensor([0.0, 1.0, -1.0]).double()
)  # start, after good, after bad
rewards, one_text = torch.tensor([[0.0, 2.0]]), torch.tensor([[True, True]])
for name, v, delta_by_hand in (
    ("true critic", [0.0, 1.0], [0 + 1 - 0, 2 + 0 - 1]),
    ("wrong critic", [1.0, 0.0], [0 + 0 - 1, 2 + 0 - 0]),
):
    values = torch.tensor([v])
    assert td_errors(rewards, values, one_text)[0].tolist() == delta_by_hand
    for lam in (0.0, 0.5, 1.0):
        second = delta_by_hand[1]
        first = delta_by_hand[0] + lam * second
        advantages, returns = gae(rewards, values, one_text, gamma=1.0, lam=lam)
        print(
            f"{name:>12}, lambda {lam}: delta {delta_by_hand}   A = [{first:+.1f}, {second:+.1f}]   returns = [{first + v[0]:+.1f}, {second + v[1]:+.1f}]"
        )
        assert advantages[0].tolist() == [first, second] and returns[0].tolist() == [
            first + v[0],
            second + v[1],
        ]

# %% [markdown]
# With the true critic and $\lambda = 0$ both tokens earned 1: each made the text one better than expected. The wrong critic thinks the first *good* cost it something. At $\lambda = 1$ the returns are 2 and 2 whatever the critic thinks, and the advantages
# differ by $V(s_t)$ alone, which is a baseline and harms nothing.
#
# The mean with weights, and the sum of discounted TD errors, are the same thing; three lines show it on random numbers:

# %%
generator = torch.Generator().manual_seed(0)
r, v = torch.randn(2, 1, 5, generator=generator).double()
full, lam, gamma = torch.ones(1, 5, dtype=torch.bool), 0.7, 0.9
delta = td_errors(r, v, full, gamma=gamma)[0]
n_step = [
    sum(gamma**i * delta[i] for i in range(n)) for n in range(1, 6)
]  # from t = 0; past the end nothing is added
weights = [(1 - lam) * lam ** (n - 1) for n in range(1, 5)] + [
    lam**4
]  # the last one has what is left of the series
assert torch.isclose(
    sum(w * a for w, a in zip(weights, n_step, strict=True)),
    gae(r, v, full, gamma=gamma, lam=lam)[0][0, 0],
)
assert abs(sum(weights) - 1) < 1e-12

# %% [markdown]
# ## 2. The dial
#
# The verdict of the exact world, for three critics: the truth; the truth plus a smooth error; and one that says the same everywhere. *Bias* is the length of (mean estimate - grad J) over that of grad J, *noise* the standard deviation of one
# text's gradient over the same.

# %%
world = World.random(3, 3, seed=0)
logits = world.ref_logits + torch.randn(
    7, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64
)
mask, truth = world.response_mask, world.gradient(logits)
jacobian = torch.autograd.functional.jacobian(
    world.logprobs, logits
)  # d log pi(y_t) / d logits, (N, R, S, V)
nothing = torch.zeros_like(world.logprobs(logits))
rewards = kl_shaped_rewards(
    world.rewards, nothing, nothing, mask, kl_coef=0.0
)  # the score on the last token
true_v = world.values(logits)[0]
critics = {
    "the true V": true_v,
    "V plus an error": true_v + torch.linspace(-1, 1, 7).double(),
    "a constant": torch.full((7,), true_v[0].item()).double(),
}
lams = [0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 1.0]


def bias_and_noise(advantages):
    """(bias, noise) of the policy gradient with these advantages (N, R), both in units of |grad J|."""
    gradients = torch.einsum("nt,ntsv->nsv", advantages * mask, jacobian)
    mean = world.expectation(logits, gradients)
    noise = world.expectation(logits, (gradients - mean).square().sum((1, 2))).sqrt()
    return ((mean - truth).norm() / truth.norm()).item(), (noise / truth.norm()).item()


dial = {
    name: [bias_and_noise(gae(rewards, world.by_token(v), mask, lam=lam)[0]) for lam in lams]
    for name, v in critics.items()
}
without = bias_and_noise(reward_to_go(rewards, mask))
assert max(b for b, _ in dial["the true V"]) < 1e-9 and all(
    dial[name][-1][0] < 1e-9 for name in critics
)
assert all(dial[name][0][0] > 0.1 for name in ("V plus an error", "a constant"))
assert all(points[0][1] < points[-1][1] for points in dial.values())  # trust buys less noise, with every critic
assert min(dial, key=lambda name: dial[name][0][1]) == "a constant" and dial["V plus an error"][-1][1] > without[1]

# %%
figure = Figure(figsize=(9, 3.2), dpi=110, layout="constrained")
for axes, index, title in zip(
    figure.subplots(1, 2), (0, 1), ("bias / |grad J|", "noise of one text / |grad J|"), strict=True
):
    for (name, points), colour, style in zip(dial.items(), COLOURS, ("-", "--", ":"), strict=False):
        axes.plot(
            lams, [p[index] for p in points], style, marker="o", markersize=4, color=colour, label=name
        )
    axes.set(xlabel="lambda", title=title)
    axes.grid(alpha=0.3)
axes.axhline(without[1], color="#888888", linewidth=1)
axes.text(0, without[1] + 0.05, "no critic", fontsize=8, color="#666666")
axes.legend(fontsize=8, frameon=False)
display(figure)

# %% [markdown]
# Left: the true critic is unbiased at any $\lambda$, the others only at 1. Right: what trust buys in this world, where every place has weights of its own: less noise, with every critic. The constant is the
# quietest of all at $\lambda = 0$, and the most wrong: quiet is not right. At $\lambda = 1$ the critic with the error is noisier than none at all.
#
# That fills the table of the beginning: at $\lambda = 0$ no bias with the true critic, bias with a wrong one, least noise; at $\lambda = 1$ no bias with either, most noise; something between lies between, biased unless the critic is true.
#
# Bias stays when the batch grows, noise does not: with $B$ texts the squared error of the gradient is $\text{bias}^2 + \text{noise}^2 / B$. So the best $\lambda$ depends on the batch as well as on the critic:

# %%
fine = torch.linspace(0, 1, 51).tolist()
curve = [
    bias_and_noise(gae(rewards, world.by_token(critics["V plus an error"]), mask, lam=lam)[0])
    for lam in fine
]
figure = Figure(figsize=(6.4, 3.4), dpi=110, layout="constrained")
axes, best = figure.add_subplot(), {}
for b, colour, style in zip((1, 16, 64, 1024), COLOURS, ("-", "--", "-.", ":"), strict=False):
    error = [math.sqrt(bias**2 + noise**2 / b) for bias, noise in curve]
    best[b] = fine[error.index(min(error))]
    axes.plot(fine, error, style, color=colour, label=f"{b} text{'s' * (b > 1)}: best at {best[b]:.2f}")
    axes.plot(best[b], min(error), "o", color=colour)
axes.set(xlabel="lambda", ylabel="error of the gradient / |grad J|", yscale="log")
axes.legend(fontsize=8, frameon=False)
axes.grid(alpha=0.3, which="both")
display(figure)
assert list(best.values()) == sorted(best.values()) and best[1] < best[1024]

# %% [markdown]
# There is no right $\lambda$, then. A large batch and a poor critic ask for 1; a small batch and a good critic for less. 0.95 is a habit that has worked.
#
# ## 3. On a real policy
#
# In this package the critic starts as a copy of the reward model, head and all. Its number at a place in mid-text was never trained; so at first it is a wrong critic. Training it with the actor frozen (*critic warm-up*) is
# regression on returns. Eight rollouts of 64 reviews:

# %%
policy, tokenizer = load_policy("tiny-reviews-sft")
scorer, _ = load_scalar("tiny-reviews-reward")
score = rollout_score(scorer, tokenizer.eos_token_id)
config = PPOConfig(
    steps=1 if FAST else 8, epochs=1 if FAST else 2, critic_warmup=8, lam=1.0, seed=0
)  # lambda 1: the targets do not lean on the critic itself
actor, critic, history = train_ppo(
    trainable(policy), trainable(scorer), tokenizer, reviews.rl_prompts(), score, config
)
print(
    "explained variance, rollout by rollout:", [round(row["explained_variance"], 2) for row in history]
)
assert all(
    torch.equal(a, b) for a, b in zip(actor.parameters(), policy.parameters(), strict=True)
)  # the actor did not move

# %% [markdown]
# *Explained variance* is $1 - \mathrm{var}(\text{return} - V) / \mathrm{var}(\text{return})$: 1 for a perfect critic, 0 for a constant, below 0 for one that is worse than a constant. It cannot come to 1 here: at the first token nobody knows
# how the review will end.
#
# On fresh reviews, both critics at once:

# %%
(batch,) = sample_text(policy, tokenizer, reviews.eval_prompts("test")[:64], seed=5, batch_size=64)
lengths = batch.response_mask.sum(1)
with torch.no_grad():
    scores = score(batch)
    at_start, trained = (response_values(c, batch) for c in (scorer, critic))
    zero = torch.zeros_like(policy_logprobs(policy, batch))
real_rewards = kl_shaped_rewards(scores, zero, zero, batch.response_mask, kl_coef=0.0)
to_go = reward_to_go(real_rewards, batch.response_mask)
explained = {
    name: explained_variance(v, to_go, batch.response_mask).item()
    for name, v in (("reward model", at_start), ("trained", trained))
}
if not FAST:  # FAST trains too few steps
    claim(
        "Eight rollouts make a critic of the reward model: on fresh reviews it explains more of the returns' variance.",
        explained["trained"] > explained["reward model"] + 0.1,
        evidence=", ".join(f"{name} {x:+.2f}" for name, x in explained.items()),
    )

# %%
shown = int((scores - scores.mean()).abs().argmax())  # the review furthest from the average
tokens = [tokenizer.decode([i]) for i in batch.response_ids[shown][batch.response_mask[shown]].tolist()]
display(
    token_strip(
        tokens,
        trained[shown][batch.response_mask[shown]],
        title=f"V before each token; the review's score is {scores[shown]:+.2f}",
    )
)
for lam in (0.0, 0.95, 1.0):
    advantages = gae(real_rewards, trained, batch.response_mask, lam=lam)[0][shown][
        batch.response_mask[shown]
    ]
    display(token_strip(tokens, advantages, title=f"advantage of each token, lambda {lam}"))

# %% [markdown]
# At $\lambda = 0$ credit is local: a token is praised or blamed for how it moved the guess. At $\lambda = 1$ all tokens before the surprise share it, less what was expected. Both sum up a text's story; neither is the truth about *which word people liked*.
#
# ## 4. The discount
#
# $\gamma < 1$ makes later rewards count less. In a text that ends, whose reward comes at its end, that means: *the same praise is worth less in a longer text, and the same blame hurts less.* Neither is what people said, so $\gamma = 1$ here and in every library. What it would do
# can be read off the best policy under a leash (the Gibbs policy, lesson 07) of the hand world, where only a text of two tokens (two words, or a word and the stop) can earn anything but 0:

# %%
tokens = hand.response_mask.sum(1)
two_words = {}
for gamma in (1.0, 0.9, 0.4):
    discounted = World(hand.vocab, 2, gamma ** (tokens - 1) * hand.rewards, hand.ref_logits)
    best = discounted.gibbs(beta=0.5)
    two_words[gamma] = best[tokens == 2].sum().item()
    print(
        f"gamma {gamma}: good good is worth {discounted.rewards[0]:.2f}, bad bad {discounted.rewards[4]:+.2f}; the best policy writes a second token in {two_words[gamma]:.2f} of its texts"
    )
assert two_words[1.0] > two_words[0.9] > two_words[0.4]

# %% [markdown]
# ## What the libraries do
#
# | matter | decision here | elsewhere |
# |---|---|---|
# | gamma, lambda | 1, 0.95 | TRL 1, 0.95; DeepSpeed-Chat 1, 0.95; OpenRLHF and verl 1, 1 |
# | end of a cut text | treated as an end: V is 0 after it | the same everywhere |
# | returns | advantages + values, *before* whitening | the same; getting it wrong is exercise 4 |
# | masked tokens | reward and value 0 | verl skips over tool tokens in mid-text; the others do not |
# | where V is read | at the text *before* the token | the same; one place off is a common bug |
#
# ## Exercises
#
# **1. How the guess moved** *(easy, 10 minutes)*. From `rewards`, `values`, the mask (all (B, R)) and `gamma`, return the TD errors, 0 where masked; V is 0 after the last real token.
#
# *Hint:* padding may hold NaN; shift the masked values by one.


# %%
def td_error(rewards, values, mask, gamma): ...  # your code


print(check.td_error(td_error))

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def td_error(rewards, values, mask, gamma):
#     rewards, values = (torch.where(mask, x, 0.0) for x in (rewards, values))
#     later = torch.cat([values[:, 1:], torch.zeros(len(values), 1)], 1)
#     return torch.where(mask, rewards + gamma * later - values, 0.0)
# ```
# </details>
#
# **2. GAE** *(medium, 15 minutes)*. The same with `lam`: return the advantages. *This function goes into your `my_rlhf.py`, with those that it calls.*
#
# *Hint:* $A_t = \delta_t + \gamma \lambda A_{t+1}$, from the right.


# %%
def gae_advantages(rewards, values, mask, gamma, lam): ...  # your code


print(check.gae_advantages(gae_advantages))

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def gae_advantages(rewards, values, mask, gamma, lam):
#     deltas, later, columns = td_error(rewards, values, mask, gamma), 0.0, []
#     for t in reversed(range(deltas.shape[1])):
#         later = deltas[:, t] + gamma * lam * later
#         columns.append(later)
#     return torch.where(mask, torch.stack(columns[::-1], 1), 0.0)
# ```
# </details>
#
# **3. Look n tokens ahead** *(medium, 15 minutes)*. Return $A_t^{(n)}$ for every token: n rewards (fewer where the text ends), then the critic. It is not in the package.
#
# *Hint:* a sum of n discounted TD errors.


# %%
def n_step_advantages(rewards, values, mask, gamma, n): ...  # your code


print(check.n_step_advantages(n_step_advantages))

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def n_step_advantages(rewards, values, mask, gamma, n):
#     deltas = td_error(rewards, values, mask, gamma)
#     padded = torch.cat([deltas, torch.zeros(len(deltas), n)], 1)
#     total = sum(gamma**i * padded[:, i : i + deltas.shape[1]] for i in range(n))
#     return torch.where(mask, total, 0.0)
# ```
# </details>
#
# **4. Find the bug** *(medium, 15 minutes)*. A colleague's critic never learns, though the advantages look healthy. Below, in the small world with 3 added to each reward, a table of values is trained towards their returns, 64 texts a step, beside a right one. Look at the curves first:
# what about V is never learned? Then mend the function.


# %%
def critic_targets(advantages, values, mask):
    """(whitened advantages for the policy, returns for the critic), both 0 where masked."""
    real = advantages[mask]
    advantages = torch.where(mask, (advantages - real.mean()) / (real.std(unbiased=False) + 1e-8), 0.0)
    returns = torch.where(mask, advantages + values, 0.0)
    return torch.stack([advantages, returns])


def train_critic(targets_of, steps=200, rate=0.2, added=3.0):
    """V at the start, step by step: regression on the returns of 64 texts drawn from the policy."""
    v, path, drawing = torch.zeros_like(true_v), [], torch.Generator().manual_seed(0)
    praised = kl_shaped_rewards(world.rewards + added, nothing, nothing, mask, kl_coef=0.0)
    for _ in range(steps):
        path.append(v[0].item())
        texts = torch.multinomial(world.probs(logits), 64, replacement=True, generator=drawing)
        here, values = mask[texts], world.by_token(v)[texts]
        returns = targets_of(gae(praised[texts], values, here, lam=1.0)[0], values, here)[1]
        v.index_add_(0, world.visited[texts][here], rate / len(texts) * (returns - values)[here])
    return path


# %%
runs = {
    "a right one": train_critic(lambda a, v, m: torch.stack([a, a + v])),
    "the colleague's": train_critic(critic_targets),
}
figure = Figure(figsize=(6.4, 2.8), dpi=110, layout="constrained")
axes = figure.add_subplot()
for (name, y), colour, style in zip(runs.items(), COLOURS, ("-", "--"), strict=False):
    axes.plot(y, style, color=colour, label=name, linewidth=2)
axes.axhline(true_v[0].item() + 3, color="#888888", ls=":", label="the true V at the start")
axes.set(xlabel="step of the critic", ylabel="V before the first token")
axes.legend(fontsize=8, frameon=False)
axes.grid(alpha=0.3)
display(figure)

# %%
print(check.critic_targets(critic_targets))

# %% [markdown]
# <details><summary>Solution</summary>
#
# Returns are made from the advantages *after* whitening, whose mean over the batch is 0: on average the critic is told at every step to stay where it is, so its *level* never comes, nor does the unit of its differences. Make the returns first:
#
# ```python
# returns = torch.where(mask, advantages + values, 0.0)
# advantages = ...  # then whiten
# ```
# </details>
#
# **5. Predict, then run** *(5 minutes)*. Take the true V and add 5 to it everywhere. Bias at $\lambda = 0$? Noise? Write it down, take the hash away. (Mind the end of a text.)

# %%
raised, right = (
    bias_and_noise(gae(rewards, world.by_token(true_v + off), mask, lam=0.0)[0]) for off in (5, 0)
)
# print(raised, right)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# Large on both counts. Within a text the 5 cancels between $V(s_{t+1})$ and $V(s_t)$, but after the end V is 0: the last TD error is 5 too low, as a punishment for ending. A critic's offset teaches a policy at low $\lambda$ not to stop.
# </details>

# %%
assert right[0] < 1e-9 < 1 < raised[0] and raised[1] > 2 * right[1]

# %% [markdown]
# **6. Read it** *(5 minutes)*. Explained variance is -3 at the first step of a PPO run and 0.4 at the tenth. The score rose from the fifth step on. What happened, and what would you change?
#
# <details><summary>What a good answer has</summary>
#
# The critic began far from the returns (another scale, or the wrong places: a mere offset does not show in this number, look at the value loss for it; perhaps its head was new, or it was read at places it was not trained at), so early advantages were mostly its error, and whitening made them as large as any others. Warm it up with the actor frozen, or start it from the reward model *with* its
# head, or take $\lambda$ nearer 1 at first.
# </details>
#
# ## Questions
#
# <details><summary>1. With the true V, is lambda = 0 better than lambda = 1?</summary>
# Both are unbiased, and each token's advantage has less noise at 0. In a table, as here, so has the gradient; where places share weights it usually has, but errors of several tokens may then cancel in the sum. The true V is what one never has.
# </details>
# <details><summary>2. V or Q: which does the critic of RLHF compute?</summary>
# V, read before each token. Q of a token is r + V of the text with it, because writing is deterministic.
# </details>
# <details><summary>3. Why is V 0 after a text that was cut, not only after EOS?</summary>
# It is a convention: the score is paid at the cut, and nothing is paid after. (In tasks that go on after the cut one would put V there.)
# </details>
# <details><summary>4. Advantages are whitened over the batch. What is lost?</summary>
# The mean and the unit: whether the batch as a whole was better than expected, and how large a surprise was. At the optimum, where all advantages are noise around 0, whitening blows that noise up to size 1 (lesson 90).
# </details>
# <details><summary>5. GRPO has no critic. Which lambda does it use?</summary>
# In effect 1: every token of a text has the text's whole advantage over the group.
# </details>
#
# **References.** Schulman et al. 2016, *High-dimensional continuous control using generalized advantage estimation*, sections 2 to 4. Sutton and Barto 2018, chapter 12 (lambda-returns). Kimura and Kobayashi 1998 (the same estimator, earlier).
# Ziegler et al. 2019, section 2.1 (gamma 1, the critic's start).
