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
# # 91 · The worked example, on one page
#
# **The problem.** Three words: *good*, *bad* and the full stop, which ends a text. A text has at most two words, so there are seven. In the reference every word is equally likely. The reward counts *good* minus *bad*. Logarithms are natural; $\beta = 1/\ln 2$ in 5, 6 and 8, so that $e^{r/\beta} = 2^r$.
#
# | text | good good | good bad | good . | bad good | bad bad | bad . | . |
# |---|---|---|---|---|---|---|---|
# | reference | 1/9 | 1/9 | 1/9 | 1/9 | 1/9 | 1/9 | 1/3 |
# | reward | 2 | 0 | 1 | 0 | -2 | -1 | 0 |
#
# **1. Values** (03). $V$ = mean reward from there: start 0, after *good* 1, after *bad* -1. $Q$ of (good, bad, .): start (1, -1, 0); after *good* (2, 0, 1); after *bad* (0, -2, -1). $A = Q - V$: (1, -1, 0) everywhere. (The numbers in brackets are lessons.)
#
# **2. The gradient** (04). On the logits of a place, that is of a text so far: (how often it is reached) · π(b) · A(b). Start ⅓ (1, -1, 0); after *good* and after *bad* ⅓ · ⅓ (1, -1, 0). One sample, *good good*, pushes the start by $2\,(1 - ⅓, -⅓, -⅓) = (4/3, -2/3, -2/3)$, and *after good* as much;
# with the baseline $V$ the second push is $(2 - 1)(2/3, -1/3, -1/3)$.
#
# **3. GAE** (05), on *good good*, rewards (0, 2). True critic (0, 1): δ = (1, 1). Wrong critic (1, 0): δ = (-1, 2). $A_2 = δ_2$, $A_1 = δ_1 + λ A_2$:
#
# | λ | 0 | ½ | 1 |
# |---|---|---|---|
# | true critic: $A$ | (1, 1) | (3/2, 1) | (2, 1) |
# | wrong critic: $A$ | (-1, 2) | (0, 2) | (1, 2) |
# | true critic: returns $A + V$ | (1, 2) | (3/2, 2) | (2, 2) |
#
# **4. PPO** (06). The new policy has (½, ¼, ¼) at the start and is uniform after. Ratios of *good good* (3/2, 1), $A$ = (1, 1): gains min(3/2, 6/5) = **6/5**, clipped, and 1. Ratios of *bad bad* (3/4, 1), $A$ = (-1, -1): gains min(-3/4, -4/5) = **-4/5**, clipped, and -1.
#
# **5. KL** (07) of that policy. Log-ratio at the start: good ln 3/2 = 0.405, bad and stop ln 3/4 = -0.288. $\mathrm{KL}(π‖π_{ref}) = ½ · 0.405 - ½ · 0.288 = 0.059$ = mean of $k_1$ = mean of $k_3$; mean of $k_2$ = 0.062. In bits, $\log_2 3/2 = 0.585$: PPO is fed (-0.585, 2) for *good good*, in all 1.415.
#
# **6. The best policy under the leash** (07, 12). Reference times $2^r$, in 36ths: 16, 4, 8, 4, 1, 2, 12; their sum is 47. So $Z = 47/36$, $π^* = (16, 4, 8, 4, 1, 2, 12)/47$, and its objective is $β \ln Z = \log_2 47/36 = 0.385$.
# Soft values, from the end: after *good* $\log_2 (4 + 1 + 2)/3 = 1.222$; after *bad* $\log_2 (1 + ¼ + ½)/3 = -0.778$; start $\log_2 (7/3 + 7/12 + 1)/3 = 0.385$, the same.
#
# **7. A group** (11): *good good*, *good .*, *bad bad*; scores 2, 1, -2; mean ⅓. Centred 5/3, 2/3, -7/3; std $\sqrt{(25 + 4 + 49)/9/2} = 2.082$. GRPO 0.801, 0.320, -1.121. RLOO (minus the mean of the others) 5/2, 1, -7/2.
#
# **8. DPO** (12), *good good* preferred to *bad bad*, policy of 4. Log-ratios of the texts ln 3/2 and ln 3/4; margin $β \ln \frac{3/2}{3/4} = β \ln 2 = 1$; loss $-\log σ(1) = 0.313$. Before training it was ln 2 = 0.693.

# %% [markdown]
# The page ends here. What follows asserts every number on it, with the package's functions.

# %%
import math

import torch

from minirlhf.core.baselines import group_relative, leave_one_out
from minirlhf.core.exact import World
from minirlhf.core.kl import k1, k2, k3, kl_shaped_rewards
from minirlhf.core.policy_gradient import is_clipped, ppo_clip
from minirlhf.core.preference import dpo
from minirlhf.core.returns import gae, td_errors

hand = World.from_reward(
    ("good", "bad", "."), 2, lambda words: float(words.count("good") - words.count("bad"))
)
place, beta = {label: i for i, label in enumerate(hand.labels)}, 1 / math.log(2)


def equal(x, expected, digits=1e-9):
    assert torch.allclose(
        x.double(), torch.tensor(expected, dtype=torch.float64), atol=digits, rtol=0
    ), x


assert list(place) == ["goodgood", "goodbad", "good.", "badgood", "badbad", "bad.", "."]
equal(hand.probs(hand.ref_logits), [1 / 9] * 6 + [1 / 3])
equal(hand.rewards, [2, 0, 1, 0, -2, -1, 0])
v, q = hand.values(hand.ref_logits)  # 1
equal(v, [0, 1, -1])
equal(q, [[1, -1, 0], [2, 0, 1], [0, -2, -1]])
equal(q - v[:, None], [[1, -1, 0]] * 3)

# %%
push = torch.tensor([1, -1, 0])  # 2
equal(hand.gradient(hand.ref_logits), [(push / 3).tolist()] + [(push / 9).tolist()] * 2, 1e-6)
moved = hand.ref_logits.clone().requires_grad_(True)
one = hand.logprobs(moved)[place["goodgood"]]
start, after = (2 * torch.autograd.grad(x, moved, retain_graph=True)[0] for x in one)
equal(start[0], [4 / 3, -2 / 3, -2 / 3])
equal(after[1], [4 / 3, -2 / 3, -2 / 3])
equal((2 - v[1]) / 2 * after[1], [2 / 3, -1 / 3, -1 / 3])

rewards, real = torch.tensor([[0.0, 2.0]]), torch.ones(1, 2, dtype=torch.bool)  # 3
for critic, delta, advantages in (
    ([0.0, 1.0], [1, 1], ([1, 1], [1.5, 1], [2, 1])),
    ([1.0, 0.0], [-1, 2], ([-1, 2], [0, 2], [1, 2])),
):
    values = torch.tensor([critic])
    equal(td_errors(rewards, values, real)[0], delta)
    for lam, expected in zip((0.0, 0.5, 1.0), advantages, strict=True):
        a, returns = gae(rewards, values, real, gamma=1.0, lam=lam)
        equal(a[0], expected)
        if critic == [0.0, 1.0]:
            equal(returns[0], {0.0: [1, 2], 0.5: [1.5, 2], 1.0: [2, 2]}[lam])

# %%
new_logits = torch.zeros(3, 3).double()  # 4
new_logits[0, 0] = math.log(2)
old, new = hand.logprobs(hand.ref_logits), hand.logprobs(new_logits)
a = torch.tensor([[1.0, 1], [-1, -1]]).double()
rows, both = [place["goodgood"], place["badbad"]], torch.ones(2, 2, dtype=torch.bool)
equal((new - old).exp()[rows], [[1.5, 1], [0.75, 1]])
equal(-ppo_clip(new[rows], old[rows], a, both), [[1.2, 1], [-0.8, -1]])
assert is_clipped(new[rows], old[rows], a, both).tolist() == [[True, False], [True, False]]

mean = [  # 5
    hand.expectation(new_logits, k(new, old, hand.response_mask).sum(1)) for k in (k1, k2, k3)
]
equal(torch.stack(mean), [0.0589, 0.0618, 0.0589], 5e-5)
equal(torch.tensor([1.5, 0.75]).log(), [0.405, -0.288], 5e-4)
fed = kl_shaped_rewards(hand.rewards, new, old, hand.response_mask, kl_coef=beta)
equal(fed[place["goodgood"]], [-0.585, 2], 5e-4)
equal(fed[place["goodgood"]].sum(), 1.415, 5e-4)

# %%
equal(hand.gibbs(beta=beta) * 47, [16, 4, 8, 4, 1, 2, 12])  # 6
best = hand.gibbs_logits(beta=beta)
equal(hand.objective(best, beta=beta), math.log2(47 / 36))
equal(hand.optimal_values(beta=beta)[0], [0.385, 1.222, -0.778], 5e-4)

scores = torch.tensor([[2.0, 1.0, -2.0]]).double()  # 7
equal(scores.mean(1), [1 / 3])
equal(scores - scores.mean(1), [[5 / 3, 2 / 3, -7 / 3]])
equal(scores.std(1), [2.082], 5e-4)
equal(group_relative(scores)[0], [0.801, 0.320, -1.121], 5e-4)
equal(leave_one_out(scores)[0], [2.5, 1, -3.5])

sums, ref_sums = new.sum(1)[rows], old.sum(1)[rows]  # 8
loss = dpo(*(x[None] for x in (*sums, *ref_sums)), beta=beta)
equal(beta * ((sums - ref_sums)[0] - (sums - ref_sums)[1]), 1)
equal(loss, [0.3133], 5e-5)
equal(dpo(*(x[None] for x in (*ref_sums, *ref_sums)), beta=beta), [0.693], 5e-4)
print("Every number of the page holds.")
