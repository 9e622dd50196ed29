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
# # 07 · The KL leash
#
# **The question.** RLHF pays a policy for reward and charges it for leaving the reference. Libraries write that charge in a dozen ways: an estimator
# called k1, k2 or k3; in the reward or in the loss; per token or per text. Which of these pull as we mean, and what does the leash make of the best policy?
#
# **You need** lesson 04: the policy gradient, and why a loss is a device for its gradient. 35 minutes to read, 60 for the exercises.
#
# **Predict.** The log-ratio of a token that the policy sampled is $\ell = \log \pi(y_t) - \log \pi_{\text{ref}}(y_t)$, and
#
# $$ k_1 = \ell \qquad k_2 = \tfrac12 \ell^2 \qquad k_3 = e^{-\ell} - 1 + \ell . $$
#
# Write a yes or a no into each of the nine places before you read on.
#
# | | its mean is KL(policy ‖ reference) | added to the *loss*, it pulls the policy to the reference | can be negative |
# |---|---|---|---|
# | $k_1$ | | | |
# | $k_2$ | | | |
# | $k_3$ | | | |

# %%
# %matplotlib inline
import itertools
import math

import torch
from IPython.display import display
from matplotlib.figure import Figure

from minirlhf.classroom import check
from minirlhf.classroom.claims import FAST, claim, load_results
from minirlhf.core import kl as core_kl
from minirlhf.core.exact import World
from minirlhf.core.kl import adapt_kl_coef, exact_kl, k1, k2, k3, log_ratio
from minirlhf.core.logprobs import response_logprobs
from minirlhf.core.returns import reward_to_go
from minirlhf.evaluate import paired_difference
from minirlhf.models.forward import policy_logits, policy_logprobs
from minirlhf.models.load import load_policy
from minirlhf.models.sampling import SamplingConfig, sample_text
from minirlhf.runtime import set_threads
from minirlhf.show import COLOURS
from minirlhf.show.exact import policy_bars
from minirlhf.tasks import reviews

set_threads()

# %% [markdown]
# ## 1. What the leash makes of the best policy
#
# The objective, for one prompt, with a sum over all texts $y$:
#
# $$ J(\pi) = \sum_y \pi(y)\, r(y) - \beta \sum_y \pi(y) \log \frac{\pi(y)}{\pi_{\text{ref}}(y)} . $$
#
# Take $-\beta$ out, and write $r(y) = \beta \log e^{r(y)/\beta}$:
#
# $$ J(\pi) = -\beta \sum_y \pi(y) \Big[ \log \pi(y) - \log \big( \pi_{\text{ref}}(y)\, e^{r(y)/\beta} \big) \Big] . $$
#
# The second term would be the logarithm of a policy if $\pi_{\text{ref}}(y) e^{r(y)/\beta}$ summed to 1. It sums to some $Z > 0$. So divide by it:
#
# $$ Z = \sum_y \pi_{\text{ref}}(y)\, e^{r(y)/\beta} , \qquad \pi^*(y) = \frac{1}{Z}\, \pi_{\text{ref}}(y)\, e^{r(y)/\beta} , $$
#
# $$ J(\pi) = -\beta \sum_y \pi(y) \big[ \log \pi(y) - \log \pi^*(y) - \log Z \big] = \beta \log Z - \beta\, \mathrm{KL}(\pi \,\|\, \pi^*) . $$
#
# $Z$ does not depend on $\pi$. A KL is never negative and is 0 only between equals. So $\pi^*$, the **Gibbs policy**, is the best policy and the only best one, its value is
# $\beta \log Z$, and every other policy falls short by $\beta$ times its KL *to* $\pi^*$. Nothing was assumed of $\pi_{\text{ref}}$ but that it gives every text a chance: where it gives none,
# the ratio is infinite and so is the charge.
#
# **By hand**, on the world that goes through lessons 04 to 07: three words, *good*, *bad* and the full stop, which ends a text; at most two words; every word equally likely in
# the reference; the reward counts *good* minus *bad*. With $\beta = 1/\ln 2$ the tilt $e^{r/\beta}$ is $2^r$, and all is fractions.

# %%
hand = World.from_reward(
    ("good", "bad", "."), 2, lambda words: float(words.count("good") - words.count("bad"))
)
beta = 1 / math.log(2)
texts = [" ".join(hand.vocab[i] for i in s) for s in hand.sequences]
ref_36 = {
    "good good": 4,
    "good bad": 4,
    "good .": 4,
    "bad good": 4,
    "bad bad": 4,
    "bad .": 4,
    ".": 12,
}  # in 36ths
tilted = {y: ref_36[y] * 2**r for y, r in zip(texts, hand.rewards.tolist(), strict=True)}
z = sum(tilted.values())
for y, weight in tilted.items():
    print(
        f"{y:>10}   ref {ref_36[y]:2d}/36   tilted {weight:4.1f}/36   pi* {weight:4.1f}/{z:.1f} = {weight / z:.3f}"
    )
assert torch.allclose(hand.gibbs(beta=beta), torch.tensor([w / z for w in tilted.values()]).double())
display(
    policy_bars(
        texts,
        {"reference": hand.probs(hand.ref_logits), "Gibbs policy": hand.gibbs(beta=beta)},
        rewards=hand.rewards,
    )
)

# %% [markdown]
# The identity holds for *every* policy, not only for the best; so it can be tried on policies drawn at random:

# %%
log_z = math.log(z / 36)
best = hand.gibbs_logits(beta=beta)
generator = torch.Generator().manual_seed(0)
for _ in range(100):
    some = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    assert torch.isclose(hand.objective(some, beta=beta), beta * (log_z - hand.kl(some, best)))
print(f"J of the Gibbs policy {hand.objective(best, beta=beta):.4f} = beta log Z = {beta * log_z:.4f}")
assert torch.isclose(hand.objective(best, beta=beta), torch.tensor(beta * log_z).double())

# %% [markdown]
# **The Gibbs policy is a posterior.** Read $\pi_{\text{ref}}(y)$ as a prior over texts and $e^{r(y)/\beta}$ as the likelihood that a text of reward $r$ *is approved*. Then $\pi^*(y)$
# is Bayes' rule: what texts look like, given that they were approved. $Z$ is the evidence and $J/\beta$ its lower bound (ELBO): RL with a KL leash is variational inference
# (Korbak et al. 2022). The reading makes a prediction that needs no training: write from the reference, keep each text with probability $e^{(r - r_{\max})/\beta}$, and what you keep is
# distributed as $\pi^*$. We do so two hundred thousand times.

# %%
drawn = torch.multinomial(hand.probs(hand.ref_logits), 200_000, replacement=True, generator=generator)
approval = ((hand.rewards - hand.rewards.max()) / beta).exp()
kept = drawn[torch.rand(len(drawn), generator=generator) < approval[drawn]]
shares = kept.bincount(minlength=len(texts)) / len(kept)
error = (hand.gibbs(beta=beta) * (1 - hand.gibbs(beta=beta)) / len(kept)).sqrt()
print(f"kept {len(kept) / len(drawn):.3f} of them; predicted Z / e^(r_max / beta) = {z / 36 / 4:.3f}")
print(
    "largest deviation, in standard errors:",
    f"{((shares - hand.gibbs(beta=beta)) / error).abs().max():.1f}",
)
assert ((shares - hand.gibbs(beta=beta)).abs() < 4 * error).all()

# %% [markdown]
# ## 2. From a charge per text to a charge per token
#
# A text's probability is the product of its tokens', so its log-ratio is a sum, and the KL of texts is the mean of that sum over texts that *the policy* wrote:
#
# $$ \mathrm{KL}(\pi \,\|\, \pi_{\text{ref}}) = \mathbb{E}_{y \sim \pi} \sum_t \ell_t , \qquad \ell_t = \log \pi(y_t \mid y_{<t}) - \log \pi_{\text{ref}}(y_t \mid y_{<t}) . $$
#
# So the penalised objective is an ordinary sum of rewards: each token earns $-\beta \ell_t$, the last one earns the score as well. That is what PPO is fed, and all of it is one line:

# %%
policy = hand.ref_logits + torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.5, 0.0], [-1.0, 0.0, 1.0]]).double()
lp, ref, mask = hand.logprobs(policy), hand.logprobs(hand.ref_logits), hand.response_mask
rewards = core_kl.kl_shaped_rewards(hand.rewards, lp, ref, mask, kl_coef=beta)
for n, y in enumerate(texts):
    by_hand = [-beta * (lp[n, t] - ref[n, t]).item() for t in range(len(hand.sequences[n]))]
    by_hand[-1] += hand.rewards[n].item()
    print(f"{y:>10}  " + "  ".join(f"{x:+.3f}" for x in by_hand))
    assert torch.allclose(rewards[n, : len(by_hand)], torch.tensor(by_hand).double())
assert torch.isclose(hand.expectation(policy, rewards.sum(1)), hand.objective(policy, beta=beta))

# %% [markdown]
# The last line is the point: their mean is $J$, exactly. Mind the direction. The policy comes first, and the policy samples. The other one, $\mathrm{KL}(\pi_{\text{ref}} \| \pi)$, is an
# expectation over texts that the *reference* wrote; no rollout has those.
#
# ## 3. The value of an estimator
#
# From one sampled token each of the three is a number. Its mean over the policy's choices:
#
# - $\mathbb{E}_\pi[k_1] = \sum_v \pi_v (\log \pi_v - \log \pi_{\text{ref},v})$, the KL itself, by definition. One sample can be negative; the mean cannot.
# - $\mathbb{E}_\pi[k_3] = \mathbb{E}_\pi[e^{-\ell}] - 1 + \mathbb{E}_\pi[\ell]$, and $\mathbb{E}_\pi[e^{-\ell}] = \sum_v \pi_v \frac{\pi_{\text{ref},v}}{\pi_v} = 1$. So its mean is the KL too, and since $e^{-\ell} \ge 1 - \ell$
#   no sample is negative. Where the policy has made rare what the reference likes, $e^{-\ell}$ explodes.
# - $\mathbb{E}_\pi[k_2] = \tfrac12 \mathbb{E}_\pi[\ell^2]$. Expand the zero that we just used: $0 = \mathbb{E}[e^{-\ell} - 1] = -\mathbb{E}[\ell] + \tfrac12 \mathbb{E}[\ell^2] - \tfrac16 \mathbb{E}[\ell^3] + \dots$, so
#   $\mathbb{E}[k_2] = \mathrm{KL} + \tfrac16 \mathbb{E}[\ell^3] - \dots$: right to second order near the reference, biased away from it.
#
# A fourth needs no sample at all. A language model shows the probabilities of *all* words, so the KL at a place can be summed over the vocabulary: `exact_kl`. It is what k1 becomes when its
# noise about the present token is averaged out (Rao-Blackwell); the noise about which places are visited stays.
#
# From here on a world of random numbers, so that no symmetry flatters us. We walk from the reference to a policy and past it, and watch bias and noise of a text's sum:

# %%
world = World.random(3, 3, seed=0)
push = torch.randn(7, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
mask, ref = world.response_mask, world.logprobs(world.ref_logits)
ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}


def at_places(logits):
    """The exact KL of every place that a text visits, (N, R)."""
    return exact_kl(logits[world.visited], world.ref_logits[world.visited], mask)


def text_values(logits):
    """Each estimator summed over a text's tokens, (N,) each."""
    lp = world.logprobs(logits)
    return {name: k(lp, ref, mask).sum(1) for name, k in ESTIMATORS.items()} | {
        "exact at places": at_places(logits).sum(1)
    }


# %%
steps = torch.linspace(0.1, 2.0, 20)
kl, bias, noise = [], {}, {}
for step in steps:
    logits = world.ref_logits + step * push
    kl.append(world.kl(logits, world.ref_logits).item())
    for name, x in text_values(logits).items():
        mean = world.expectation(logits, x)
        bias.setdefault(name, []).append(mean.item() - kl[-1])
        noise.setdefault(name, []).append(world.expectation(logits, (x - mean).square()).sqrt().item())
assert all(abs(b) < 1e-9 for name in ("k1", "k3", "exact at places") for b in bias[name])
assert max(map(abs, bias["k2"])) > 0.05

# %%
figure = Figure(figsize=(9, 3.2), dpi=110, layout="constrained")
for axes, numbers, title in zip(
    figure.subplots(1, 2),
    (bias, noise),
    ("mean - KL, nats", "standard deviation of one text, nats"),
    strict=True,
):
    for (name, y), colour, style in zip(numbers.items(), COLOURS, ("-", "--", "-.", ":"), strict=False):
        axes.plot(kl, y, style, color=colour, label=name, linewidth=2)
    axes.set(xlabel="KL(policy || reference), nats", title=title)
    axes.grid(alpha=0.3)
axes.set_yscale("log")
axes.legend(fontsize=8, frameon=False)
display(figure)

# %% [markdown]
# Left: k2 drifts from the truth as the policy leaves; the other three do not. Right: near the reference k1 is the noisiest, by far: its mean is of second order in the step, its noise of the first.
# k2 and k3 are quiet there, which is why they were proposed. Far out k3's exponential makes it the worst. The exact KL is quieter than k1 everywhere, and unbiased.

# %%
near, far = 0, -1
assert noise["k1"][near] > 2 * max(noise["k2"][near], noise["k3"][near])
assert noise["k3"][far] > noise["k1"][far] > noise["exact at places"][far]
assert all(e < k for e, k in zip(noise["exact at places"], noise["k1"], strict=True))

# %% [markdown]
# ## 4. The gradient is another question
#
# Let $f_\theta(y)$ be any estimator. The gradient of its mean has two parts, because $\theta$ stands in two places, in the texts that are drawn and in the number that is read off them:
#
# $$ \nabla\, \mathbb{E}_{y \sim \pi}[f(y)] = \underbrace{\mathbb{E}[\nabla f(y)]}_{\text{what autograd sees in a loss}} + \underbrace{\mathbb{E}[f(y)\, \nabla \log \pi(y)]}_{\text{what a reward does}} . $$
#
# Put $f$ into the **loss** and call `backward`: the sampled texts are constants to autograd, so you get the first part alone. Put $f$ into the **reward**: policy gradient multiplies it with $\nabla \log \pi$ as a
# fixed number, so you get the second part alone. Two facts do the rest: $\mathbb{E}[\nabla \log \pi] = \sum \pi \frac{\nabla \pi}{\pi} = \nabla 1 = 0$, and $\nabla \ell = \nabla \log \pi$, the reference being fixed.
#
# What we want. For $\ell$ the first part vanishes, so
#
# $$ \nabla\, \mathrm{KL}(\pi \| \pi_{\text{ref}}) = \mathbb{E}[\ell\, \nabla \log \pi] . \qquad (*) $$
#
# What we get, for one token, or for a whole text with the text's $\ell$:
#
# | | in the loss: $\mathbb{E}[\nabla f]$ | in the reward: $\mathbb{E}[f\, \nabla \log \pi]$ |
# |---|---|---|
# | $k_1$ | $\mathbb{E}[\nabla \log \pi] = 0$ | $\nabla \mathrm{KL}(\pi \| \pi_{\text{ref}})$, which is $(*)$ |
# | $k_2$ | $\mathbb{E}[\ell\, \nabla \log \pi] = \nabla \mathrm{KL}(\pi \| \pi_{\text{ref}})$ | $\mathbb{E}[\tfrac12 \ell^2\, \nabla \log \pi]$: a pull from tokens that are *likelier or rarer* than in the reference alike |
# | $k_3$ | $\mathbb{E}[(1 - e^{-\ell}) \nabla \log \pi] = -\sum_y \pi_{\text{ref}} \nabla \log \pi = \nabla \mathrm{KL}(\pi_{\text{ref}} \| \pi)$ | the rest of $\nabla \mathrm{KL}(\pi \| \pi_{\text{ref}})$: $\nabla \mathrm{KL}(\pi \| \pi_{\text{ref}}) - \nabla \mathrm{KL}(\pi_{\text{ref}} \| \pi)$ |
#
# The last place follows from the first identity: k3's mean is the KL, so its two parts add up to the KL's gradient.
#
# **Per token** there is a further gap. In a text, a token is charged for itself *and for where it leads*. In full,
#
# $$ \nabla\, \mathrm{KL} = \mathbb{E} \sum_t \nabla \log \pi(y_t)\, \Big( \ell_t + \sum_{s > t} \ell_s \Big) $$
#
# (terms $s < t$ vanish: what is past is fixed when $y_t$ is drawn). A loss $\sum_t k_2(t)$ has $\nabla \log \pi(y_t)\, \ell_t$ and nothing of the later tokens. k1 in the reward, with reward-to-go, has them.
#
# Now the verdict, by enumeration. For every way of writing the charge: its mean pull, against the true gradient.

# %%
logits = world.ref_logits + push
lp, places = world.logprobs(logits), at_places(logits)
jacobian = torch.autograd.functional.jacobian(
    world.logprobs, logits
)  # d log pi(y_t) / d logits, (N, R, S, V)
forward = torch.autograd.functional.jacobian(lambda x: world.kl(x, world.ref_logits), logits)
reverse = torch.autograd.functional.jacobian(lambda x: world.kl(world.ref_logits, x), logits)


def in_loss(f):
    """The gradient of f (logits -> (N,)), text by text, as autograd sees it."""
    return torch.autograd.functional.jacobian(f, logits)


def in_reward(charges):
    """sum_t (charge from t on) grad log pi(y_t), text by text: what policy gradient makes of a charge per token, (N, R)."""
    return torch.einsum("nt,ntsv->nsv", reward_to_go(charges, mask), jacobian)


# %%
whole, one = ref.sum(1, keepdim=True), mask[:, :1]  # the text as one long token
pulls = {}
for name, k in ESTIMATORS.items():
    pulls[name, "loss, per token"] = in_loss(lambda x, k=k: k(world.logprobs(x), ref, mask).sum(1))
    pulls[name, "loss, per text"] = in_loss(
        lambda x, k=k: k(world.logprobs(x).sum(1, keepdim=True), whole, one)[:, 0]
    )
    pulls[name, "reward"] = in_reward(k(lp, ref, mask))
pulls["exact", "loss, per token"] = in_loss(lambda x: at_places(x).sum(1))
pulls["exact", "reward"] = in_reward(places)


def verdict(gradients, truth=forward):
    """(cosine with the truth, length along it, noise: the trace of the covariance over texts)."""
    mean = world.expectation(logits, gradients)
    noise = world.expectation(logits, (gradients - mean).square().sum((1, 2))).item()
    along = (mean * truth).sum() / truth.square().sum()
    return (
        (along * truth.norm() / mean.norm()).item() if mean.norm() > 1e-9 else 0.0,
        along.item(),
        noise,
    )


table = {key: verdict(gradients) for key, gradients in pulls.items()}
for (name, where), (cosine, along, noise) in table.items():
    print(
        f"{name:>6} in the {where:<16} cosine {cosine:+.3f}   length {along:+.3f}   noise {noise:6.3f}"
    )

# %% [markdown]
# The same as a picture: each arrow is a mean pull, drawn in the plane with the true gradient to the right, at its own angle and length. Only arrows that lie on the dashed one pull as meant.

# %%
wheres = ("loss, per token", "loss, per text", "reward")
figure = Figure(figsize=(8, 6.2), dpi=110, layout="constrained")
for row, name in zip(figure.subplots(4, 3), ("k1", "k2", "k3", "exact"), strict=True):
    for axes, where in zip(row, wheres, strict=True):
        axes.set(xlim=(-0.9, 1.8), ylim=(-0.3, 1.5), xticks=[], yticks=[], aspect="equal")
        axes.annotate(
            "", (1, 0), (0, 0), arrowprops={"arrowstyle": "->", "ls": "--", "color": "#888888"}
        )
        cosine, along, _ = table.get((name, where), (0.0, 0.0, 0.0))
        said = "no pull" if (name, where) in table else "(needs every text)"
        if cosine:
            good = abs(cosine - 1) < 1e-9 and abs(along - 1) < 1e-9
            said = "as meant" if good else f"cosine {cosine:+.2f}"
            tip = along, abs(along) * math.tan(math.acos(min(abs(cosine), 1.0)))
            axes.annotate(
                "",
                tip,
                (0, 0),
                arrowprops={"arrowstyle": "->", "lw": 2.2, "color": COLOURS[0 if good else 1]},
            )
        axes.text(-0.8, 1.2, said, fontsize=8.5)
        axes.set_title(f"in the {where}" if name == "k1" else "", fontsize=9)
    row[0].set_ylabel(name, fontsize=10, rotation=0, labelpad=18)
display(figure)

# %%
exactly = {
    key for key, (cosine, along, _) in table.items() if abs(cosine - 1) < 1e-9 and abs(along - 1) < 1e-9
}
assert exactly == {("k1", "reward"), ("k2", "loss, per text")}
assert all(
    table["k1", where][0] == 0 for where in wheres[:2]
)  # k1 as a loss: no pull at all, only noise
text_k3 = world.expectation(logits, pulls["k3", "loss, per text"])
assert torch.allclose(text_k3, reverse)  # k3 as a loss: the other KL
assert [round(table[k, "loss, per token"][0], 2) for k in ("k2", "k3")] == [0.86, 0.75]
assert all(table[k, "reward"][0] < 0 for k in ("k2", "k3", "exact"))
rest = (
    world.expectation(logits, pulls["k2", "loss, per token"]),
    world.expectation(logits, pulls["exact", "loss, per token"]),
)
assert torch.allclose(*rest)  # the exact KL as a loss has k2's mean pull, and its gap

# %% [markdown]
# Two placements pull as meant. The most common of the others, k2 or k3 per token in the loss, pull roughly the right way here (a cosine of 0.86 and 0.75 in *this* world), which
# is why training with them works at all. In the reward, k2, k3 and even the exact KL of each place pull *away* in this world: the gradient of a charge that is not the log-ratio itself is not the KL's, and may point anywhere.
#
# ## 5. The whole pull with less noise
#
# The formula with its two terms also says how to mend a loss per token: give the later tokens' charge to the reward. And it can be done with the exact KL, which costs no sample:
#
# $$ \nabla\, \mathrm{KL} = \mathbb{E} \sum_t \Big[ \nabla \mathrm{KL}_t + \nabla \log \pi(y_t) \sum_{s>t} \mathrm{KL}_s \Big] , \qquad \mathrm{KL}_t = \mathrm{KL}\big(\pi(\cdot \mid y_{<t}) \,\|\, \pi_{\text{ref}}(\cdot \mid y_{<t})\big) . $$

# %%
ratio = log_ratio(lp, ref, mask)


def after(charges):
    """What tokens later than t are charged, for `in_reward` (which already sums from t on)."""
    return torch.einsum("nt,ntsv->nsv", reward_to_go(charges, mask) - charges, jacobian)


whole_pulls = {
    "k1 in the reward": pulls["k1", "reward"],
    "k2 of the text in the loss": pulls["k2", "loss, per text"],
    "k2 per token in the loss + later k1 in the reward": pulls["k2", "loss, per token"] + after(ratio),
    "exact in the loss + later k1 in the reward": pulls["exact", "loss, per token"] + after(ratio),
    "exact in the loss + later exact in the reward": pulls["exact", "loss, per token"] + after(places),
}
for name, gradients in whole_pulls.items():
    cosine, along, noise = verdict(gradients)
    print(f"{name:<52} cosine {cosine:+.3f}   length {along:+.3f}   noise {noise:.3f}")
    assert abs(cosine - 1) < 1e-9 and abs(along - 1) < 1e-9
noises = {name: verdict(gradients)[2] for name, gradients in whole_pulls.items()}
assert torch.allclose(
    whole_pulls["k1 in the reward"], whole_pulls["k2 per token in the loss + later k1 in the reward"]
)
third = noises["exact in the loss + later exact in the reward"] / noises["k1 in the reward"]
assert 0.28 < third < 0.38

# %% [markdown]
# All five are unbiased. The first and the third are not only equal on average: they are the same number on every text (why? look at $\nabla k_2$). The last has a third of the first's noise.
# No library does it: it needs the logits of policy and reference at every place, a tensor of tokens times vocabulary, twice.
#
# ## 6. On a real policy
#
# Everything above had tables for policies. Now `tiny-reviews-sft` against `tiny-reviews`, the base model it was made from: two GPT-2 of four million parameters, 4,096 words, texts of up to 48 tokens.
# We let the SFT model write 512 reviews of films that it has not seen, and read all four estimators off the same texts.

# %%
sft, tokenizer = load_policy("tiny-reviews-sft")
base, _ = load_policy("tiny-reviews")
titles, size = reviews.eval_prompts("test") * 7, 4 if FAST else 64
batches = sample_text(
    sft, tokenizer, titles[: 8 * size], config=SamplingConfig(temperature=1.0), seed=0, batch_size=size
)


@torch.no_grad()
def estimates(batch):
    """Each estimator summed over each text's tokens, (B,)."""
    here, there = policy_logits(sft, batch), policy_logits(base, batch)
    mask = batch.response_mask
    a, b = (response_logprobs(x, batch.response_ids, mask) for x in (here, there))
    return {name: k(a, b, mask).sum(1) for name, k in ESTIMATORS.items()} | {
        "exact at places": exact_kl(here, there, mask).sum(1)
    }


every = [estimates(batch) for batch in batches]
real = {name: torch.cat([e[name] for e in every]) for name in every[0]}
for name, x in real.items():
    print(
        f"{name:>16}: mean {x.mean():.2f} +- {x.std() / math.sqrt(len(x)):.2f}   sd of a text {x.std():.2f}   least {x.min():+.2f}"
    )

# %%
standard_error = {name: (x.std() / math.sqrt(len(x))).item() for name, x in real.items()}
apart = (real["k1"] - real["exact at places"]).mean().item()
claim(
    "k1 and the exact KL at each place have the same mean, and the exact one less noise.",
    abs(apart) < 3 * standard_error["k1"] and standard_error["exact at places"] < standard_error["k1"],
    evidence=f"difference {apart:+.2f} nats, standard errors {standard_error['k1']:.2f} and {standard_error['exact at places']:.2f}",
)
assert real["k1"].min() < 0 <= min(real["k2"].min(), real["k3"].min())

# %% [markdown]
# And the gradient. In a real model the true one is not known, but this much can be tested: a pull that exists is the same in two independent halves of the texts, noise is not. We take the gradient of each loss over all four million weights,
# from two halves of 256 texts, and ask for the cosine between them.


# %%
def gradient(k, some):
    """d/dweights of the mean over texts of the sum over tokens of k: the loss as libraries write it, per token."""
    sft.zero_grad()
    for batch in some:
        with torch.no_grad():
            theirs = policy_logprobs(base, batch)
        (
            k(policy_logprobs(sft, batch), theirs, batch.response_mask).sum(1).mean() / len(some)
        ).backward()
    return torch.cat([p.grad.flatten() for p in sft.parameters()])


halves = {name: [gradient(k, batches[:4]), gradient(k, batches[4:])] for name, k in ESTIMATORS.items()}
agreement = {name: torch.cosine_similarity(*pair, dim=0).item() for name, pair in halves.items()}
print({name: round(c, 2) for name, c in agreement.items()})
if not FAST:  # FAST draws too few texts
    claim(
        "As a loss, k2 and k3 pull the same way in both halves; what k1 does in one half says almost nothing of the other.",
        min(agreement["k2"], agreement["k3"]) > 0.3 and abs(agreement["k1"]) < 0.1,
        evidence=", ".join(f"{name}: cosine {c:+.2f}" for name, c in agreement.items()),
    )

# %% [markdown]
# That is the reader's question "why did my run fall apart with the KL in the loss?", answered: with k1 there, nothing was holding it.
#
# ## 7. How strong a leash?
#
# $\beta$ is a price: reward units per nat. It means something only when the reward has a unit, which is why the reward model is scaled to standard deviation 1 on SFT samples.
# **Small $\beta$**: the Gibbs policy goes to the single best text, $\beta = 0$ is no leash at all. **Large $\beta$**: it stays the reference. Between them lies a curve, and nothing lies above it:
# $\pi^*$ maximises reward minus $\beta$ KL, so among policies of the same KL none has more reward. Best-of-n can be put on the same plane, exactly. It keeps the best of $n$ texts, so it writes a
# text as good as $y$ or worse with probability $F(y)^n$, where $F$ is the reference's share of such texts:

# %%
p_ref = world.probs(world.ref_logits)
order = world.rewards.argsort()
share = p_ref[order].cumsum(0)


def best_of(n):
    """The exact distribution of the best of n texts of the reference, (N,)."""
    cumulative = torch.cat([torch.zeros(1).double(), share.clamp(max=1) ** n])
    return torch.zeros_like(p_ref).index_put((order,), cumulative.diff())


def reward_and_kl(p):
    """(mean reward, KL to the reference) of a policy given as probabilities of texts."""
    return (p @ world.rewards).item(), (torch.xlogy(p, p) - torch.xlogy(p, p_ref)).sum().item()


betas = torch.logspace(1.5, -2, 80)
frontier = [reward_and_kl(world.gibbs(beta=b.item())) for b in betas]
best_points = {n: reward_and_kl(best_of(n)) for n in (2, 4, 8, 16)}
others = [reward_and_kl(world.probs(world.ref_logits + step * torch.randn(7, 3, generator=generator).double()))
          for step in (0.3, 0.6, 1.0, 1.5) for _ in range(60)]  # fmt: skip
for n, (_, kl_n) in best_points.items():
    print(
        f"best of {n:2d}: KL {kl_n:.3f} nats, its bound log n - (n - 1)/n = {math.log(n) - (n - 1) / n:.3f}"
    )
    assert kl_n <= math.log(n) - (n - 1) / n
for r, kl_r in [*others, *best_points.values()]:  # nobody stands above the Gibbs policy, at any price
    assert all(
        r - b * kl_r <= r_b - b * kl_b + 1e-9
        for b, (r_b, kl_b) in zip(betas.tolist(), frontier, strict=True)
    )

# %%
figure = Figure(figsize=(6.4, 3.8), dpi=110, layout="constrained")
axes = figure.add_subplot()
axes.plot(
    [k for _, k in others],
    [r for r, _ in others],
    ".",
    color="#bbbbbb",
    markersize=4,
    label="random policies",
)
axes.plot(
    [k for _, k in frontier],
    [r for r, _ in frontier],
    color=COLOURS[0],
    linewidth=2,
    label="Gibbs policies, beta from 30 to 0.01",
)
axes.plot(
    [k for _, k in best_points.values()],
    [r for r, _ in best_points.values()],
    "D",
    color=COLOURS[1],
    label="best of 2, 4, 8, 16",
)
for b in (1.0, 0.3):
    r, k = reward_and_kl(world.gibbs(beta=b))
    axes.annotate(
        f"beta {b}",
        (k, r),
        (k + 0.15, r - 0.25),
        fontsize=8,
        arrowprops={"arrowstyle": "-", "color": "#888888"},
    )
axes.set(xlabel="KL(policy || reference), nats", ylabel="mean reward", xlim=(-0.05, None))
axes.grid(alpha=0.3)
axes.legend(fontsize=8, frameon=False, loc="lower right")
display(figure)

# %% [markdown]
# **Who knows the right price?** One can name the KL instead and let the price follow: after each rollout, $\beta \leftarrow \beta\,(1 + e\, \tfrac{n}{h})$ with the error
# $e = \mathrm{clip}(\mathrm{KL}/\mathrm{target} - 1, -0.2, 0.2)$, $n$ texts a rollout and a horizon of $h$ texts (Ziegler et al. 2019, section 2.2). If this settles, it settles where KL = target, and the policy there is the Gibbs policy of *that* $\beta$. We let it
# drive exact gradient ascent from two prices that are far too low and far too high.


# %%
def controlled_ascent(coef, target=0.5, steps=400):
    """Gradient ascent on J with beta = coef, adapted after every step. Returns the rows (KL, coef)."""
    table, rows = world.ref_logits.clone(), []
    for _ in range(steps):
        rows.append((world.kl(table, world.ref_logits).item(), coef))
        table = table + 2.0 * world.gradient(table, beta=coef)
        coef = adapt_kl_coef(coef, rows[-1][0], target=target, horizon=2000, batch_size=256)
    return rows


walks = {start: controlled_ascent(start) for start in (0.05, 5.0)}
figure = Figure(figsize=(9, 3), dpi=110, layout="constrained")
for axes, index, title in zip(
    figure.subplots(1, 2),
    (0, 1),
    ("KL, nats (dotted: the target)", "beta, reward units a nat"),
    strict=True,
):
    for (start, rows), colour, style in zip(walks.items(), COLOURS, ("-", "--"), strict=False):
        axes.plot([row[index] for row in rows], style, color=colour, label=f"beta starts at {start}")
    axes.set(xlabel="step", title=title)
    axes.grid(alpha=0.3)
figure.axes[0].axhline(0.5, color="#888888", ls=":")
figure.axes[1].set_yscale("log")
axes.legend(fontsize=8, frameon=False)
display(figure)
for start, rows in walks.items():
    kl_end, coef = rows[-1]
    print(
        f"from {start}: beta ends at {coef:.3f}, KL at {kl_end:.3f}; the Gibbs policy of that beta has {reward_and_kl(world.gibbs(beta=coef))[1]:.3f}"
    )
    assert abs(kl_end - 0.5) < 0.01 and abs(reward_and_kl(world.gibbs(beta=coef))[1] - kl_end) < 0.01

# %% [markdown]
# Two prices a hundredfold apart end at one. The way there is not harmless: from the low price the policy ran five times as far as it was allowed before the price caught up, and with a reward model that is
# wrong far out, that is where the damage is done.

# %%
assert 4.5 < max(row[0] for row in walks[0.05]) / 0.5 < 5.5

# %% [markdown]
# **No leash at all.** With $\beta = 0$ gradient ascent has no reason to keep anything: probability flows to the one best text, entropy to 0. On a true reward that is the answer to the question asked. On a learned
# one it is the fastest way to its errors (lesson 16).

# %%
table = world.ref_logits.clone()
for _ in range(2000):
    table = table + 5.0 * world.gradient(table, beta=0.0)
p = world.probs(table)
print(
    f"after 2000 steps: the best text has {p[world.rewards.argmax()]:.3f} of the probability, entropy {-torch.xlogy(p, p).sum():.3f} nats"
)
print(
    f"the reference:    {p_ref[world.rewards.argmax()]:.3f}, entropy {-torch.xlogy(p_ref, p_ref).sum():.3f} nats"
)
assert p[world.rewards.argmax()] > 0.97

# %% [markdown]
# ## 8. The leash on a real policy
#
# Recorded with `minirlhf grid leash`: PPO on tiny-reviews from the committed models, at six prices and once with the controller, three seeds each, judged on the 76 test films. *Gold* is a scorer that no training saw, *proxy* the reward model that was paid.
# **Predict:** where does gold stand at $\beta = 0$: highest, lowest, or between?

# %%
recorded = load_results("leash")
variants = list(dict.fromkeys(row["variant"] for row in recorded))


def over_seeds(variant, key):
    x = [row[key] for row in recorded if row["variant"] == variant]
    return sum(x) / len(x), min(x), max(x)


print(
    f"{'':>14} {'KL, nats':>9} {'gold':>6} {'proxy':>6} {'tokens':>7} {'distinct-2':>10} {'one opening':>12}"
)
for variant in variants:
    kl, gold, proxy, length, distinct, opening = (
        over_seeds(variant, key)[0]
        for key in ("kl", "gold", "proxy", "length", "distinct_2", "opening_share")
    )
    print(
        f"{variant:>14} {kl:9.2f} {gold:6.2f} {proxy:6.2f} {length:7.1f} {distinct:10.2f} {opening:12.2f}"
    )

# %%
tour = load_results("tour")
figure = Figure(figsize=(9, 3.6), dpi=110, layout="constrained")
for axes, key in zip(figure.subplots(1, 2), ("gold", "proxy"), strict=True):
    for variant, colour, marker in zip(variants, [*COLOURS, "#000000"], "osD^vPX", strict=False):
        (kl, *kl_range), (y, *y_range) = over_seeds(variant, "kl"), over_seeds(variant, key)
        axes.errorbar(
            kl,
            y,
            [[y - y_range[0]], [y_range[1] - y]],
            [[kl - kl_range[0]], [kl_range[1] - kl]],
            color=colour,
            marker=marker,
            label=variant,
            capsize=2,
        )
    for n in (4, 16):
        same = [row[key] for row in tour if row["method"] == f"best-of-{n}"]
        axes.plot(
            math.log(n) - (n - 1) / n,
            sum(same) / len(same),
            "*",
            color="#888888",
            markersize=10,
            label="best of 4, 16" if n == 4 else None,
        )
    axes.set(xscale="log", xlabel="KL to SFT, nats a text (best-of-n: its bound)", title=key)
    axes.grid(alpha=0.3)
axes.legend(fontsize=7.5, frameon=False)
display(figure)

# %% [markdown]
# Read the two panels together. From right to left the leash tightens.
# The stars are best-of-n from the tour's own SFT and reward models (retrained for each seed): for its KL it buys more gold than PPO does here, and has no training to do; it pays n samples for each answer.


# %%
def row_of(variant, seed):
    return next(row for row in recorded if (row["variant"], row["seed"]) == (variant, seed))


apart = [
    paired_difference(*(row_of(v, seed)["gold_by_prompt"] for v in ("kl_coef 0.1", "kl_coef 0")))
    for seed in range(3)
]
loose = [paired_difference(*(row_of(v, seed)["gold_by_prompt"] for v in ("kl_coef 0", "kl_coef 0.5"))) for seed in range(3)]
claim(
    "After 24 steps gold without a leash is lower than at a price of 0.1, whatever the seed, and higher than at the default 0.5;",
    all(low > 0 for _, low, _ in apart) and all(low > 0 for _, low, _ in loose),
    evidence="0.1 minus 0: " + ", ".join(f"{d:+.2f} [{low:+.2f}, {high:+.2f}]" for d, low, high in apart)
    + "; 0 minus 0.5: " + ", ".join(f"{d:+.2f} [{low:+.2f}, {high:+.2f}]" for d, low, high in loose),
    seeds=3,
)
logged = load_results("leash_history")  # on the titles of training, 64 texts a step
way = {v: [[r["gold"] for r in logged if (r["variant"], r["seed"]) == (v, s)] for s in range(3)] for v in ("kl_coef 0", "kl_coef 0.1")}
peaks = [max(x) for x in way["kl_coef 0"]]
claim(
    "on the way, about half-way, it had been higher than the run at 0.1 ever was: the steps after its peak cost gold,",
    all(peak > max(held) and 8 < free.index(peak) < 14 and free[-1] < peak - 0.3 for peak, free, held in zip(peaks, *way.values(), strict=True)),
    evidence=", ".join(
        f"{peak:.2f} at step {free.index(peak)}, {free[-1]:.2f} at the last (at 0.1 never above {max(held):.2f})"
        for peak, free, held in zip(peaks, *way.values(), strict=True)
    ),
    seeds=3,
)
claim(
    "while the proxy, which was paid, is higher by more than a unit.",
    min(row_of("kl_coef 0", s)["proxy"] - row_of("kl_coef 0.1", s)["proxy"] for s in range(3)) > 1,
    evidence=", ".join(
        f"{row_of('kl_coef 0', s)['proxy']:.2f} against {row_of('kl_coef 0.1', s)['proxy']:.2f}"
        for s in range(3)
    ),
    seeds=3,
)
prices = [v for v in variants if v.startswith("kl_coef") and v != "kl_coef 0"]
claim(
    "Between the prices 2 and 0.1 a looser leash gives more gold and more KL, in the mean over seeds.",
    all(
        over_seeds(a, key)[0] > over_seeds(b, key)[0]
        for a, b in itertools.pairwise(prices)
        for key in ("gold", "kl")
    ),
    evidence=", ".join(f"{v.split()[1]}: {over_seeds(v, 'gold')[0]:.2f}" for v in prices),
    seeds=3,
)
best = [row["gold"] for row in tour if row["method"] == "best-of-16"]
assert sum(best) / 3 > over_seeds("kl_coef 0.5", "gold")[0]  # with less KL:
assert math.log(16) - 15 / 16 < over_seeds("kl_coef 0.5", "kl")[0]
for variant in ("kl_coef 0", "kl_coef 0.1", "kl_coef 0.5"):
    print(f"\n{variant}:")
    print(*list(row_of(variant, 0)["samples"].values())[:4], sep="\n")

# %% [markdown]
# Where does gold stand at $\beta = 0$? Between: below 0.1, above all dearer prices; and highest, had one known when to stop (the best of 24 noisy points, chosen afterwards). When to stop is a leash, too, and nothing in the score says when. Read the samples. At 0 every title gets the same incantation, the variety of word pairs (*distinct-2*) is nearly gone, and gold still pays it well: gold was fitted on what people wrote, and nobody wrote this. At 0.1, where gold is highest, it is
# "funny, funny" already. **A judge that no training saw is a better judge than the one that was paid, and still no reader.** By gold alone one would choose 0.1; by reading, more. This package's default is 0.5. (Had we to choose here, we would choose on the validation films, not on these.)
#
# And the controller? It was told to hold 2 nats, from 0.1:

# %%
steps = [r for r in load_results("leash_history") if r["variant"] == "target 2 nats"]
figure = Figure(figsize=(8.4, 2.8), dpi=110, layout="constrained")
for axes, key, label in zip(
    figure.subplots(1, 2),
    ("kl", "kl_coef"),
    ("KL, nats a text (dotted: the target)", "kl_coef"),
    strict=True,
):
    for seed, style in zip(range(3), ("-", "--", ":"), strict=True):
        axes.plot([r[key] for r in steps if r["seed"] == seed], style, color=COLOURS[seed])
    axes.set(xlabel="step", title=label)
    axes.grid(alpha=0.3)
    if key == "kl":
        axes.axhline(2, color="#444444", linestyle=":", linewidth=1)
display(figure)
peaks = [max(r["kl"] for r in steps if r["seed"] == s) for s in range(3)]
ends = [max((r for r in steps if r["seed"] == s), key=lambda r: r["step"])["kl"] for s in range(3)]
claim(
    "The controller overshoots its target more than threefold and has not come back to it after 24 steps.",
    min(peaks) > 6 and min(ends) > 2 * 1.5,
    evidence=f"highest {[round(p, 1) for p in peaks]}, last {[round(e, 1) for e in ends]} nats",
    seeds=3,
)

# %% [markdown]
# It starts five times too loose (0.5 ends at 2 nats) and loosens further while KL is still below the target; each step may change the price by about an eighth at most, and a policy that has found its reward runs faster than that. From such a start 24 steps do not suffice; we tried one target, one horizon, one start. In a short run choose the price.

# %% [markdown]
# ## What the libraries do
#
# | | where | what | remarks |
# |---|---|---|---|
# | this package, PPO and GRPO | reward | k1 per token | both then have the one Gibbs policy as their optimum |
# | TRL, PPO (1.12) | reward | k1 per token; k3 by an option | with k3 there the pull is that of the table's last column |
# | TRL, RLOO | reward | k1, summed over the text before the baseline | the text's charge, with its past |
# | TRL, GRPO | loss | k3 per token, `beta` 0 by default | without a leash unless one asks |
# | OpenRLHF (0.11) | reward, or loss by an option | k1, k2 or k3 | its help recommends k2 or k3 for the loss |
# | verl (0.10) | reward or loss, two switches | several, among them k3 clipped (`low_var_kl`) | |
# | DeepSpeed-Chat | reward | k1 per token, coefficient 0.1 | scores clipped to ±5 |
#
# The GRPO paper (Shao et al. 2024) introduced k3 in the loss "because it is unbiased". It is, as a *value*. Its gradient is that of the other KL, and per token it has the gap as well; it trains, because
# it pulls roughly the right way. Nothing in a log tells the two apart.
#
# ## Exercises
#
# Each checker says *pass*, or the likely mistake in one sentence.
#
# **1. The posterior** *(easy, 5 minutes)*. Given log-probabilities of all texts under the reference (N,), their rewards (N,) and $\beta$, return $\log \pi^*$ of each.
#
# *Hint:* Bayes' rule in logarithms: add, then subtract one number.


# %%
def gibbs_logprobs(ref_logprobs, rewards, beta): ...  # your code


print(check.gibbs_logprobs(gibbs_logprobs))

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def gibbs_logprobs(ref_logprobs, rewards, beta):
#     tilted = ref_logprobs + rewards / beta
#     return tilted - tilted.logsumexp(0)
# ```
# </details>
#
# **2. The charge of each token** *(medium, 10 minutes)*. From scores (B,), log-probabilities (B, R) under the policy that sampled and under the reference, the mask (B, R) and `kl_coef`, return the rewards (B, R)
# that PPO is fed: the charge at every real token, the score on the last real one as well, 0 where masked. *This function goes into your `my_rlhf.py`.*
#
# *Hint:* `mask.sum(1) - 1` is the place of the last real token. Padding may hold NaN.


# %%
def kl_shaped_rewards(scores, old_logprobs, ref_logprobs, mask, kl_coef): ...  # your code


print(check.kl_shaped_rewards(kl_shaped_rewards))

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def kl_shaped_rewards(scores, old_logprobs, ref_logprobs, mask, kl_coef):
#     rewards = -kl_coef * torch.where(mask, old_logprobs - ref_logprobs, 0.0)
#     rewards[torch.arange(len(scores)), mask.sum(1) - 1] += scores
#     return rewards
# ```
# </details>
#
# **3. The whole pull** *(medium, 10 minutes)*. Return weights $w$ (B, R), from the log-ratios (B, R) and the mask, such that $\sum_t w_t \nabla \log \pi(y_t)$ is on average $\nabla \mathrm{KL}(\pi \| \pi_{\text{ref}})$, and such that
# no weight holds anything that was fixed before its token was drawn; 0 where masked.
#
# *Hint:* section 4's last formula. `flip(1).cumsum(1).flip(1)`.


# %%
def kl_pull(log_ratio, mask): ...  # your code


print(check.kl_pull(kl_pull))

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def kl_pull(log_ratio, mask):
#     charges = torch.where(mask, log_ratio, 0.0)
#     return torch.where(mask, charges.flip(1).cumsum(1).flip(1), 0.0)
# ```
# </details>
#
# **4. Find the bug** *(medium, 15 minutes)*. A colleague's policy runs away, with a `kl_coef` as without one. Here is their charge, and their run beside a right one: exact policy-gradient steps in the world of section 3, two passes over each rollout, as PPO does.
# Look at the curves first and say what kind of fault it must be. Then read the code; mend it.


# %%
def charged_rewards(scores, logprobs, old_logprobs, ref_logprobs, mask, kl_coef):
    """The rewards of the tokens. logprobs: the policy that learns, at this pass; old_logprobs: the one that sampled."""
    charge = torch.where(mask, logprobs - old_logprobs, 0.0)
    rewards = -kl_coef * charge
    rewards[torch.arange(len(scores)), mask.sum(1) - 1] += scores
    return rewards


def walk(rewards_of, kl_coef=1.0, rollouts=60):
    """Exact policy-gradient steps on the rewards that a function gives. Returns the KL to the reference after each rollout."""
    table, rows = world.ref_logits.clone(), []
    for _ in range(rollouts):
        old = world.logprobs(table)
        for _ in range(2):
            new = world.logprobs(table)
            to_go = reward_to_go(rewards_of(world.rewards, new, old, ref, mask, kl_coef), mask)
            moved = table.clone().requires_grad_(True)
            (world.probs(table) * (to_go * world.logprobs(moved)).sum(1)).sum().backward()
            table = table + 2.0 * moved.grad
        rows.append(world.kl(table, world.ref_logits).item())
    return rows


# %%
right = walk(
    lambda scores, new, old, ref, mask, kl_coef: core_kl.kl_shaped_rewards(
        scores, old, ref, mask, kl_coef=kl_coef
    )
)
runs = {"a right charge": right, "the colleague's": walk(charged_rewards)}
figure = Figure(figsize=(6, 2.8), dpi=110, layout="constrained")
axes = figure.add_subplot()
for (name, rows), colour, style in zip(runs.items(), COLOURS, ("-", "--"), strict=False):
    axes.plot(rows, style, color=colour, label=name, linewidth=2)
axes.axhline(
    reward_and_kl(world.gibbs(beta=1.0))[1],
    color="#888888",
    ls=":",
    label="the Gibbs policy of beta = 1",
)
axes.set(xlabel="rollout", ylabel="KL to the reference, nats")
axes.grid(alpha=0.3)
axes.legend(fontsize=8, frameon=False)
display(figure)

# %%
print(check.charged_rewards(charged_rewards))

# %% [markdown]
# <details><summary>Solution</summary>
#
# The charge is tied to the policy that sampled, which is renewed with every rollout: the leash is fastened to the dog. At the first pass it is exactly 0. It must be `old_logprobs - ref_logprobs`: the policy that sampled, against the reference. The curve told as much:
# it is that of no leash at all. (From the second pass on the charge is not 0 but keeps the policy near the one that sampled: a much larger `kl_coef` slows each rollout. It never ties anything to the reference.)
# </details>
#
# **5. Predict, then run** *(5 minutes)*. Best-of-16 stands at 1.78 nats in the picture of section 7. Which $\beta$ has a Gibbs policy of the same KL, and how much more reward does it have: a third of the way from the reference, a
# tenth, a hundredth? Write it down, take the hash away.


# %%
def same_kl(kl):
    """(beta, mean reward) of the Gibbs policy with this KL, by bisection."""
    low, high = 1e-3, 100.0
    for _ in range(60):
        beta = math.sqrt(low * high)
        low, high = (beta, high) if reward_and_kl(world.gibbs(beta=beta))[1] > kl else (low, beta)
    return beta, reward_and_kl(world.gibbs(beta=beta))[0]


# print(best_points[16][0], same_kl(best_points[16][1]))

# %% [markdown]
# <details><summary>What you should see</summary>
#
# A beta of 0.27, and 0.015 more: a hundredth of the way. Best-of-n knows only the *order* of the rewards and no $\beta$, yet it almost lies on the frontier. It is a hard reference to beat with training (lesson 20); its price is n texts for each one.
# </details>

# %%
(beta, matched), start = same_kl(best_points[16][1]), reward_and_kl(p_ref)[0]
assert abs(beta - 0.27) < 0.005 and abs(matched - best_points[16][0] - 0.015) < 0.001
assert abs((matched - best_points[16][0]) / (matched - start) - 0.01) < 0.002

# %% [markdown]
# **6. Design the experiment** *(hard, 15 minutes)*. You get a new reward model and a budget of twenty runs. How do you choose `kl_coef`? Say what you hold fixed, what you read off each run, on which prompts and by which judge, and what would make you
# distrust the answer.
#
# <details><summary>What a good answer has</summary>
#
# The reward scaled first (mean 0 and standard deviation 1 on the reference's samples), or the coefficients mean nothing. A sweep by factors of two or three, wide enough to see both ends: no change from the reference, and samples that nobody wants. Several seeds of the
# few candidates rather than many candidates once. Each run is a point in the plane of KL and a judge that the policy was not paid by, on prompts held out for choosing and not used again to report; best-of-n as the line to beat. Distrust: the score rises and
# the judge does not; two seeds further apart than two coefficients; an optimum at the sweep's edge; length or variety that changed with it.
# </details>
#
# ## Questions
#
# <details><summary>1. A log shows kl = -0.4. Is that possible?</summary>
# For k1 over a small batch, yes; its mean is not negative, a sample's is, half of the time near the reference. If it stays negative over many batches, the log-ratio is reversed or the temperature is not the one that was sampled with.
# </details>
# <details><summary>2. Why must the reference give every text a chance, and what does top-k sampling do to that?</summary>
# The Gibbs policy can only tilt what is there: where the reference has 0 the charge is infinite. Sampling with top-k writes from another policy than the one whose log-probabilities are charged, so the sums are of no KL at all; loops refuse it.
# </details>
# <details><summary>3. PPO makes several passes over a rollout. Why is the charge not computed anew at each?</summary>
# Rewards belong to the texts that were drawn, and those were drawn by the old policy. The new policy's departure is what the ratio and its clip look after.
# </details>
# <details><summary>4. You double all rewards. What must you do to keep the same optimum?</summary>
# Double beta: only r / beta enters the Gibbs policy.
# </details>
# <details><summary>5. k3 in the loss has low noise near the reference and the wrong KL. Near the reference, how wrong?</summary>
# There the two KLs agree to second order, so their gradients agree to first order: for one token it hardly matters. What remains is the gap of the later tokens, which does not vanish.
# </details>
#
# **References.** Ziegler et al. 2019, section 2.2 (penalty and controller). Schulman 2020, *Approximating KL divergence* (k1, k2, k3). Korbak, Perez and Buckley 2022, *RL with KL penalties is better viewed as
# Bayesian inference*, section 3. Beirami et al. 2024, *Theoretical guarantees on the best-of-n alignment policy*, section 3 (the bound). Rafailov et al. 2023 (DPO), appendix A.1 (the Gibbs policy). Shao et al. 2024 (GRPO), section 4.1.
