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
# # 90 · Every estimator against the truth
#
# **The question.** RLHF code rarely crashes when it is wrong. How do we know that a formula computes what its name says?
#
# This is a reference sheet, not a lesson: the lessons come back to each part of it. We take a world so small that every text in it can be written down. There
# the expected reward, its gradient, the KL, V, Q and the best policy are *numbers*, and an estimator's mean over infinitely many samples is one sum. So
# each row below says exactly what an estimator estimates, and how far that is from what is often believed of it.
#
# You need: PyTorch. Words used before their lesson: *J* is the expected reward of a text that the policy writes; *grad J* its gradient in the policy's logits;
# an *advantage* is the weight with which a token's log-probability is pushed up.

# %%
# %matplotlib inline
import math

import torch
from IPython.display import display
from matplotlib.figure import Figure

from minirlhf.core.baselines import group_relative, leave_one_out
from minirlhf.core.bradley_terry import preference_probability
from minirlhf.core.exact import World
from minirlhf.core.kl import exact_kl, k1, k2, k3, kl_shaped_rewards, log_ratio
from minirlhf.core.masking import aggregate, masked_whiten
from minirlhf.core.policy_gradient import ppo_clip, reinforce
from minirlhf.core.preference import dpo, implicit_rewards
from minirlhf.core.returns import gae, reward_to_go
from minirlhf.show.exact import distance_to_optimum, policy_bars, trajectories

# %% [markdown]
# ## The world
#
# Three words, "a", "b" and the full stop, which ends a text; a text that is three words long is cut there. That makes 15 texts and 7 places where a
# word is chosen. Rewards, reference and policy are random numbers, fixed by their seeds.

# %%
world = World.random(3, 3, seed=0)
policy = world.ref_logits + torch.randn(
    7, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64
)
mask, ref = world.response_mask, world.logprobs(world.ref_logits)
display(
    policy_bars(
        world.labels,
        {"reference": world.probs(world.ref_logits), "policy": world.probs(policy)},
        rewards=world.rewards,
    )
)

# %% [markdown]
# *J* is a sum over 15 texts, and its gradient is what automatic differentiation makes of that sum. By hand, with a difference quotient for one of the 21 numbers:


# %%
def expected_reward(logits):
    return sum(
        math.exp(sum(logits.log_softmax(-1)[world.states.index(y[:t]), y[t]] for t in range(len(y))))
        * r
        for y, r in zip(world.sequences, world.rewards.tolist(), strict=True)
    )


truth, nudge = world.gradient(policy), torch.zeros(7, 3, dtype=torch.float64)
nudge[0, 1] = 1e-5  # the logit of "b" at the start
assert abs(expected_reward(policy) - world.objective(policy)) < 1e-12
assert (
    abs((expected_reward(policy + nudge) - expected_reward(policy - nudge)) / 2e-5 - truth[0, 1]) < 1e-9
)
print(
    f"J = {world.objective(policy):.4f}   KL(policy || reference) = {world.kl(policy, world.ref_logits):.4f} nats"
)

# %% [markdown]
# ## What policy gradients estimate
#
# An estimator turns sampled texts into a loss. Its expectation here: weight the loss of every text by the probability of sampling it, differentiate with those
# weights held fixed. Three numbers compare a gradient with grad J: the cosine of the angle between them, its length along grad J, and the *bias*,
# the length of the difference over the length of grad J.
#
# **Predict, then run:** which of these give grad J itself?


# %%
def expected_gradient(losses):
    """- d/dlogits of the sum over texts of p(y) losses(y), p fixed: the mean step of an estimator."""
    logits = policy.clone().requires_grad_(True)
    return -torch.autograd.grad((world.probs(policy) * losses(world.logprobs(logits))).sum(), logits)[0]


def compare(name, gradient, target=truth):
    cosine = (
        torch.nn.functional.cosine_similarity(gradient.flatten(), target.flatten(), dim=0).item()
        if gradient.norm() > 1e-9
        else 0.0
    )
    along, bias = (
        ((gradient * target).sum() / target.square().sum()).item(),
        ((gradient - target).norm() / target.norm()).item(),
    )
    print(
        f"{name:<44} cosine {cosine:+.4f}   length {along:+.3f}   bias {bias:.1e}"
        if bias < 1e-9
        else f"{name:<44} cosine {cosine:+.4f}   length {along:+.3f}   bias {bias:.3f}"
    )
    return cosine, along, bias


# %%
nothing = torch.zeros_like(ref)
to_go = reward_to_go(
    kl_shaped_rewards(world.rewards, nothing, nothing, mask, kl_coef=0.0), mask
)  # the reward, at every token before it
greedy = world.rewards[world.probs(policy).argmax()]
value = world.by_token(world.values(policy)[0])
estimators = {
    "REINFORCE, sum over tokens": lambda lp: reinforce(lp, to_go, mask).sum(1),
    "minus V of the text before the token": lambda lp: reinforce(lp, to_go - value, mask).sum(1),
    "minus one fixed text's score (ReMax)": lambda lp: reinforce(lp, to_go - greedy, mask).sum(1),
    "PPO-clip at ratio 1": lambda lp: ppo_clip(lp, lp.detach(), to_go - value, mask, clip_eps=0.2).sum(
        1
    ),
    "mean over the tokens of a text": lambda lp: reinforce(lp, to_go, mask).sum(1) / mask.sum(1),
}
bias = {name: compare(name, expected_gradient(losses))[2] for name, losses in estimators.items()}
assert max(list(bias.values())[:4]) < 1e-9 < 0.1 < list(bias.values())[4]

# %% [markdown]
# The first four are unbiased; the last, which divides each text's loss by its length, is not, at any batch size: it weighs the words of a short text more, and a text's
# length depends on its words.
#
# A baseline may look at everything *before* the token. Whether it adds bias is not the same question as how much noise it leaves; that is the next
# section's.
#
# ## The denominator
#
# Libraries divide the loss of a batch by its number of tokens. That number is random, and depends on the texts that are being weighed. We enumerate all batches
# of B texts: 50,625 of them for B = 4.

# %%
lengths = mask.sum(1).double()


def token_mean_gradient(batch):
    texts, probability = world.groups(policy, batch)
    share = (probability / lengths[texts].sum(1))[:, None].expand_as(
        texts
    )  # a text's weight in its batch
    weight = torch.zeros(15, dtype=torch.float64).index_add_(0, texts.flatten(), share.flatten())
    logits = policy.clone().requires_grad_(True)
    return -torch.autograd.grad(
        (weight * reinforce(world.logprobs(logits), to_go, mask).sum(1)).sum(), logits
    )[0]


pair = torch.tensor([0, 14])  # the same by hand and by the package, for one batch of two texts
losses = reinforce(ref, to_go, mask)
assert torch.allclose(
    losses[pair].sum() / lengths[pair].sum(), aggregate(losses[pair], mask[pair], how="token_mean")
)

# %%
length = (world.probs(policy) * lengths).sum()
sizes = [1, 2, 3, 4]
token_mean = [
    compare(f"token mean, B = {b}, times E[length]", length * token_mean_gradient(b)) for b in sizes
]
assert [t[0] for t in token_mean] == sorted(t[0] for t in token_mean) and token_mean[0][0] < 0.99
sequence_mean = expected_gradient(estimators["mean over the tokens of a text"])
assert torch.allclose(token_mean_gradient(1), sequence_mean)  # with one text both divide by its length

# %%
figure = Figure(figsize=(6, 2.8), dpi=110, layout="constrained")
axes = figure.add_subplot()
axes.plot(sizes, [t[2] for t in token_mean], "o-", label="token mean, times E[length]")
axes.axhline(
    compare("sequence mean, times E[length]", length * sequence_mean)[2],
    color="C1",
    ls="--",
    label="sequence mean, times E[length]",
)
axes.axhline(0, color="C2", label="sequence sum")
axes.set(xlabel="texts in a batch", ylabel="bias / length of grad J", xticks=sizes)
axes.legend(fontsize=8, frameon=False)
display(figure)

# %% [markdown]
# The bias of the token mean falls as the batch grows, because the denominator comes to its mean; that of the sequence mean stays. With the batches of real training
# the token mean is close to grad J / E[length], a matter of the learning rate.
#
# ## Groups
#
# Several texts for one prompt make a baseline of each other. Here each estimator has *its own* expectation, and it is not always grad J.


# %%
def group_gradient(advantages_of, size, scores=world.rewards):
    texts, probability = world.groups(policy, size)
    pushes = probability[:, None] * advantages_of(scores[texts]) / size
    weight = torch.zeros(15, dtype=torch.float64).index_add_(0, texts.flatten(), pushes.flatten())
    logits = policy.clone().requires_grad_(True)
    return torch.autograd.grad((weight * world.sequence_logprobs(logits)).sum(), logits)[0]


def centred(scores):
    return group_relative(scores, scale_by_std=False)


for size in (2, 3, 4):
    assert (
        abs(
            compare(f"score - mean of the group, G = {size}", group_gradient(centred, size))[1]
            - (size - 1) / size
        )
        < 1e-9
    )
    assert (
        compare(f"score - mean of the others, G = {size}", group_gradient(leave_one_out, size))[2]
        < 1e-9
    )
assert compare("divided by the std (GRPO), G = 4", group_gradient(group_relative, 4))[2] > 0.01

# %% [markdown]
# The group's mean contains the text itself, so the step is (G - 1)/G as long, in the right direction. Leaving it out mends that. Dividing by the
# group's standard deviation is another objective. On right-or-wrong rewards it is known: as G grows, the step tends to the gradient of 2 arcsin(sqrt p), p being the
# probability of being right, which pushes hardest where p is near 0 or 1. It tends slowly:


# %%
def share_of_limit(p, size):
    """The length of GRPO's mean step over that of its limit, grad p / sqrt(p (1 - p)): a sum over how many of G are right."""
    right = torch.arange(size + 1)
    scores = (torch.arange(size) < right[:, None]).double()  # row k: k ones, then zeros
    advantages = group_relative(scores, eps=1e-12)
    chance = torch.tensor(
        [math.comb(size, k) * p**k * (1 - p) ** (size - k) for k in range(size + 1)],
        dtype=torch.float64,
    )
    push = torch.where(scores == 1, advantages / p, -advantages / (1 - p)).mean(1)
    return math.sqrt(p * (1 - p)) * (chance * push).sum().item()


shares = {size: share_of_limit(0.36, size) for size in (2, 4, 8, 16, 256)}
print({size: round(share, 2) for size, share in shares.items()})
assert list(shares.values()) == sorted(shares.values()) and shares[4] < 0.7 and 0.98 < shares[256] < 1

# %%
passed = (world.rewards > 0).double()  # the same in the world, by enumeration
p = (world.probs(policy) * passed).sum().item()
right_or_wrong = World(world.vocab, 3, passed, world.ref_logits)
limit = right_or_wrong.gradient(policy) / math.sqrt(p * (1 - p))
for size in (2, 3, 4):
    step = group_gradient(lambda scores: group_relative(scores, eps=1e-12), size, passed)
    assert torch.allclose(step, share_of_limit(p, size) * limit, atol=1e-9)

# %% [markdown]
# ## GAE: a dial between bias and noise
#
# GAE with lambda = 1 waits for the reward; with lambda = 0 it believes the critic about the next word. With the true V every lambda is unbiased. With a wrong V
# only lambda = 1 is. What does one gain by trusting the critic? The noise of one text's gradient is on the right.

# %%
jacobian = torch.autograd.functional.jacobian(
    world.logprobs, policy
)  # (15, 3, 7, 3): each token's push on each logit


def mean_and_noise(advantages):
    """The mean of a text's gradient and the trace of its covariance."""
    gradients = torch.einsum("nt,ntsv->nsv", advantages * mask, jacobian)
    mean = world.expectation(policy, gradients)
    return mean, world.expectation(policy, (gradients - mean).square().sum((1, 2))).item()


rewards = kl_shaped_rewards(world.rewards, nothing, nothing, mask, kl_coef=0.0)
true_v = world.values(policy)[0]
critics = {"true V": true_v, "wrong V": true_v + torch.linspace(-1, 1, 7).double()}
lams = [0.0, 0.25, 0.5, 0.75, 0.95, 1.0]
curves = {
    name: [mean_and_noise(gae(rewards, world.by_token(v), mask, gamma=1.0, lam=lam)[0]) for lam in lams]
    for name, v in critics.items()
}
off = {
    name: [((mean - truth).norm() / truth.norm()).item() for mean, _ in curve]
    for name, curve in curves.items()
}
assert max(off["true V"]) < 1e-9 and off["wrong V"][-1] < 1e-9
assert off["wrong V"] == sorted(off["wrong V"], reverse=True) and off["wrong V"][0] > 0.1

# %%
figure = Figure(figsize=(8, 2.8), dpi=110, layout="constrained")
left, right = figure.subplots(1, 2)
for name, curve in curves.items():
    left.plot(lams, off[name], "o-", label=name)
    right.plot(lams, [noise for _, noise in curve], "o-", label=name)
right.axhline(mean_and_noise(to_go)[1], color="gray", ls="--", label="no critic")
left.set(xlabel="lambda", ylabel="bias / length of grad J")
right.set(xlabel="lambda", ylabel="variance of one text's gradient")
left.legend(fontsize=8, frameon=False)
right.legend(fontsize=8, frameon=False)
display(figure)
assert curves["true V"][0][1] < curves["true V"][-1][1] < mean_and_noise(to_go)[1]

# %% [markdown]
# ## KL: value and gradient are two questions
#
# Three estimators of KL(policy || reference) from sampled words, by the log-ratio of each word: k1 = log-ratio, k2 = its square over 2, k3 =
# exp(-log-ratio) - 1 + log-ratio; and the exact KL at each place, from all logits. First their *values*:

# %%
kl = world.kl(policy, world.ref_logits)
lp = world.logprobs(policy)
at_places = exact_kl(world.by_token(policy), world.by_token(world.ref_logits), mask).sum(1)
values = {
    "k1": k1(lp, ref, mask).sum(1),
    "k2": k2(lp, ref, mask).sum(1),
    "k3": k3(lp, ref, mask).sum(1),
    "exact at each place": at_places,
}
for name, x in values.items():
    mean = world.expectation(policy, x)
    sd = world.expectation(policy, (x - mean).square()).sqrt()
    print(f"{name:<20} mean {mean:.3f} (truth {kl:.3f})   sd {sd:.3f}   least {x.min():+.3f}")
means = {name: world.expectation(policy, x) for name, x in values.items()}
assert (
    all(abs(means[name] - kl) < 1e-9 for name in ("k1", "k3", "exact at each place"))
    and abs(means["k2"] - kl) > 0.01
)
assert (
    values["k1"].min() < 0 <= min(values["k2"].min(), values["k3"].min())
)  # one text's k1 can be negative
spread = {name: world.expectation(policy, (x - means[name]).square()) for name, x in values.items()}
assert (
    spread["exact at each place"] < spread["k1"] < spread["k3"]
)  # k3's exponential: noisy where the policies differ much

# %% [markdown]
# Then the *gradient* that each gives as a loss on sampled texts. Summed per token, as every library does it, or of the whole text's log-ratio:

# %%
logits = policy.clone().requires_grad_(True)
forward = torch.autograd.grad(world.kl(logits, world.ref_logits), logits)[
    0
]  # of KL(policy || ref): what the leash means
reverse = torch.autograd.grad(world.kl(world.ref_logits, logits), logits)[0]  # of KL(ref || policy)
one, whole_ref = mask[:, :1], ref.sum(1, keepdim=True)
table = {}
for name, k in (("k1", k1), ("k2", k2), ("k3", k3)):
    token = -expected_gradient(lambda lp, k=k: k(lp, ref, mask).sum(1))
    whole = -expected_gradient(lambda lp, k=k: k(lp.sum(1, keepdim=True), whole_ref, one)[:, 0])
    table[name] = token, whole
    compare(f"{name} as a loss, per token", token, forward)
    compare(f"{name} as a loss, whole text", whole, forward)
assert (
    table["k1"][0].norm() < 1e-9 and table["k1"][1].norm() < 1e-9
)  # k1 as a loss does nothing, on average
assert torch.allclose(table["k2"][1], forward) and torch.allclose(table["k3"][1], reverse)

# %%
leash = reward_to_go(
    -log_ratio(lp, ref, mask), mask
)  # k1 in the reward: every token pays for itself and for what follows
in_reward = -expected_gradient(lambda new: reinforce(new, leash, mask).sum(1))
assert compare("k1 in the reward", in_reward, forward)[2] < 1e-9
assert (
    max(compare(f"{name} as a loss, per token", table[name][0], forward)[0] for name in ("k2", "k3"))
    < 0.99
)
later = -expected_gradient(
    lambda new: reinforce(new, (leash + log_ratio(lp, ref, mask)) * mask, mask).sum(1)
)
assert (
    compare("k2 per token + the later tokens' k1 in the reward", table["k2"][0] + later, forward)[2]
    < 1e-9
)
logits = policy.clone().requires_grad_(True)
exact_loss = exact_kl(logits[world.visited], world.ref_logits[world.visited], mask).sum(1)
assert torch.allclose(
    torch.autograd.grad(world.expectation(policy, exact_loss), logits)[0], table["k2"][0]
)

# %% [markdown]
# A loss per token leaves out that a word also decides which words come after it. Of the single placements, k1 in the reward and k2 of the whole text have the whole gradient. k1 as a loss
# does nothing on average; k3 as a loss pulls by the *other* KL. The exact KL at each place is the least noisy unbiased *value* of the three and has k2's gradient as a loss, with the same gap.
#
# ## Two walks to one policy
#
# With a leash of strength beta the best policy is known: pi*(y) = ref(y) exp(r(y) / beta) / Z, the *Gibbs policy*. PPO climbs towards it on its own samples. DPO never
# samples: it fits preferences between texts. In expectation, and with preferences that follow Bradley-Terry, both end at pi*.

# %%
beta = 0.5
target = world.gibbs(beta=beta)


def ppo_walk(whiten, steps=150):
    """PPO in expectation: true V, lambda 1, KL in the reward, a step that decays; each place moves at its own visits' scale."""
    logits, path = world.ref_logits.clone(), []
    for step in range(steps):
        path.append(world.probs(logits))
        old, place = world.logprobs(logits), world.by_token(world.values(logits, beta=beta)[0])
        advantages, _ = gae(
            kl_shaped_rewards(world.rewards, old, ref, mask, kl_coef=beta),
            place,
            mask,
            gamma=1.0,
            lam=1.0,
        )
        advantages = masked_whiten(advantages, mask) if whiten else advantages
        push = torch.zeros(7, 3, dtype=torch.float64), torch.zeros(7, 3, dtype=torch.float64)
        where, p = (
            (world.visited[mask], world.response_ids[mask]),
            world.probs(logits)[:, None].expand_as(mask)[mask],
        )
        push[0].index_put_(
            where, p * advantages[mask], accumulate=True
        )  # the mean advantage of each word at each place ...
        push[1].index_put_(
            where, p, accumulate=True
        )  # ... over how often it is chosen: a natural gradient
        logits = logits + 0.5 / beta * push[0] / push[1] / (1 + step / 100)
    return torch.stack(path)


# %%
def dpo_walk(label, steps=150):
    """DPO on all pairs of texts, weighted by label(r_i, r_j), the share of people who prefer i; one LBFGS iteration a step."""
    i, j = torch.triu_indices(15, 15, 1)
    share, whole_ref = label(world.rewards[i], world.rewards[j]), ref.sum(1)
    logits, path = world.ref_logits.clone().requires_grad_(True), []
    optimizer = torch.optim.LBFGS(
        [logits],
        max_iter=1,
        history_size=50,
        tolerance_grad=0,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def closure():
        optimizer.zero_grad()
        p = world.sequence_logprobs(logits)
        won, lost = (
            dpo(p[a], p[b], whole_ref[a], whole_ref[b], beta=beta) for a, b in ((i, j), (j, i))
        )
        (loss := (share * won + (1 - share) * lost).mean()).backward()
        return loss

    for _ in range(steps):
        path.append(world.probs(logits.detach()))
        optimizer.step(closure)
    return torch.stack(path), logits.detach()


# %%
fitted, dpo_logits = dpo_walk(preference_probability)
paths = {"PPO": ppo_walk(whiten=False), "DPO": fitted}
display(trajectories(paths, target))
far = {name: (path[-1] - target).abs().max().item() for name, path in paths.items()}
print({name: f"{distance:.1e}" for name, distance in far.items()})
assert far["PPO"] < 1e-6 and far["DPO"] < 1e-6

# %% [markdown]
# PPO and DPO arrive, by different ways. PPO with whitened advantages (here over the 15 texts) does not: at the optimum every advantage is 0, and dividing by their standard
# deviation blows what is left up to size 1, so the policy circles the optimum at a distance that only the decay of the step makes smaller.

# %%
whitened = ppo_walk(whiten=True)
gap = {
    name: (torch.xlogy(target, target) - torch.xlogy(target, path)).sum(1).tolist()
    for name, path in {**paths, "PPO, whitened": whitened}.items()
}
display(distance_to_optimum(gap))
assert (
    max(gap["PPO"][-20:]) < 1e-6
    and min(gap["PPO, whitened"]) > 1e-6
    and max(gap["PPO, whitened"][-20:]) > 1e-3
)

# %% [markdown]
# DPO arrives because its labels are the *shares* of people who prefer each text. With hard labels, the better text wins always, it goes elsewhere:

# %%
hard, _ = dpo_walk(lambda a, b: (a > b).double())
print(f"largest difference of a probability: {(hard[-1] - target).abs().max():.2f}")
assert (hard[-1] - target).abs().max() > 0.1

# %% [markdown]
# At DPO's end the policy holds a reward for every word: beta (log pi - log ref) equals Q* - V*, how much better the word is than what could be had at that place
# under the leash. Q* and V* come from the *true* rewards, by backward induction; nothing of DPO is in them.

# %%
optimal_v, optimal_q = world.optimal_values(beta=beta)
words = implicit_rewards(dpo_logits.log_softmax(-1), world.ref_logits.log_softmax(-1), beta=beta)
print(f"{'after':>6}  " + "  ".join(f"{'word ' + w:>14}" for w in world.vocab))
for state, mine, theirs in zip(world.states, words, optimal_q - optimal_v[:, None], strict=True):
    print(
        f"{''.join(world.vocab[w] for w in state) or 'start':>6}  "
        + "  ".join(f"{a:+.3f} ({b:+.3f})" for a, b in zip(mine, theirs, strict=True))
    )
assert torch.allclose(words, optimal_q - optimal_v[:, None], atol=1e-4)

# %% [markdown]
# ## Questions
#
# <details><summary>1. Your gradient has cosine 1 with grad J but half its length. Is the estimator wrong?</summary>
# No: it is biased by a factor, which the learning rate takes up. A direction cannot be mended so. (score - group mean with G = 2 is this case.)
# </details>
# <details><summary>2. Somebody logs k1 as the KL and sees -0.3 on a batch. A bug?</summary>
# Not by itself: k1 of one text can be negative, its mean cannot. With a large batch, look for a reversed sign.
# </details>
# <details><summary>3. Somebody adds kl_coef * k1.mean() to the loss instead of to the reward, and the policy runs away. Why?</summary>
# As a loss its mean gradient is zero: there is no leash, only noise.
# </details>
# <details><summary>4. Why compare with Q* - V* from the true reward rather than check that the words' rewards of a text add up to the text's?</summary>
# They add up for any policy: log-probabilities telescope. Only the comparison with the true reward can fail.
# </details>
# <details><summary>5. When would you choose lambda below 1?</summary>
# When the critic is good enough that the noise it saves is worth the bias it brings.
# </details>
#
# **References.** Schulman et al. 2016 (GAE), section 3. Schulman 2020, *Approximating KL divergence*. Korbak et al. 2022, section 3. Rafailov et al. 2023 (DPO), section 4;
# Rafailov et al. 2024, *From r to Q\**, section 4. Liu et al. 2025, *Understanding R1-Zero-like training*, section 3. Kool et al. 2019 (leave-one-out).
