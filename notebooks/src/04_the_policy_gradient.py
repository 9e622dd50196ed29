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
# # 04 · The policy gradient
#
# **The question.** A reward model gives a number for a text that was *sampled*. A sample has no derivative. How, then, does one climb?
#
# **You need** lesson 03: a language model as a policy. 35 minutes to read, 65 for the exercises.
#
# **Predict.** A policy-gradient estimator multiplies a number, the *advantage* of a token, with the gradient of its log-probability. Which of these leave the mean of the estimator as it is? Which make it less noisy?
# Write two columns of yes and no.
#
# | instead of the text's reward, use | same mean? | less noise? |
# |---|---|---|
# | the reward plus 100 | | |
# | the reward minus its mean over the batch | | |
# | the reward minus the mean of the *other* texts of the batch | | |
# | only the rewards that come after the token | | |
# | the reward minus the value of the text before the token | | |
# | the last one, divided by the text's length | | |

# %%
# %matplotlib inline
import itertools
import math

import torch
from IPython.display import display
from matplotlib.figure import Figure

from minirlhf.classroom import check
from minirlhf.classroom.claims import FAST, claim
from minirlhf.core.exact import World
from minirlhf.core.kl import kl_shaped_rewards
from minirlhf.core.masking import aggregate
from minirlhf.core.policy_gradient import reinforce
from minirlhf.core.returns import reward_to_go
from minirlhf.models.forward import policy_logprobs
from minirlhf.models.load import load_policy, load_scalar
from minirlhf.models.sampling import sample_text
from minirlhf.rewards.model import rollout_score
from minirlhf.runtime import set_threads
from minirlhf.show import COLOURS
from minirlhf.tasks import reviews

set_threads()

# %% [markdown]
# ## 1. The theorem
#
# The objective is a sum over all texts, $J = \sum_y \pi(y)\, r(y)$. The reward is a number attached to a text; only $\pi$ depends on the weights. So
#
# $$ \nabla J = \sum_y \nabla \pi(y)\, r(y) . $$
#
# That is no average over samples: $\nabla \pi(y)$ is not a probability. Multiply and divide by $\pi(y)$, and use $\nabla \pi / \pi = \nabla \log \pi$:
#
# $$ \nabla J = \sum_y \pi(y)\, \frac{\nabla \pi(y)}{\pi(y)}\, r(y) = \mathbb{E}_{y \sim \pi} \big[ r(y)\, \nabla \log \pi(y) \big] . \qquad (1) $$
#
# Now it is an average over texts that the policy writes. The reward is never differentiated; it may come from a person, a program, a lookup. A text's probability is the product of its tokens', so
# $\nabla \log \pi(y) = \sum_t \nabla \log \pi(y_t \mid y_{<t})$: **each token is pushed up or down by the reward of its text.**
#
# To get (1) from automatic differentiation, hand it a *loss* whose gradient is (1) with the sign turned: $L = -r(y) \log \pi(y)$, with $r$ held fixed. Its value means nothing; only its gradient does.
#
# **By hand**, on the world that goes through lessons 04 to 07: words *good*, *bad* and the full stop, which ends a text; at most two words; each equally likely; the reward counts *good* minus *bad*. For a table of logits,
# $\frac{\partial \log \pi(a \mid s)}{\partial \theta_{s,b}} = \mathbb{1}[a = b] - \pi(b \mid s)$, so the expected push on logit $(s, b)$ is (how often one comes to $s$) times $\pi(b \mid s)$ times (how much better than average $b$ is there):
#
# - *at the start*, reached always; *good* leads to 1 on average, *bad* to -1, the stop to 0; their mean is 0. So $\nabla J = \tfrac13 (1, -1, 0)$.
# - *after good*, reached a third of the time: 2, 0, 1, with mean 1. So $\nabla J = \tfrac13 \cdot \tfrac13 (1, -1, 0)$. *After bad*: 0, -2, -1, with mean -1: the same.

# %%
hand = World.from_reward(
    ("good", "bad", "."), 2, lambda words: float(words.count("good") - words.count("bad"))
)
by_hand = torch.tensor([[1 / 3, -1 / 3, 0], [1 / 9, -1 / 9, 0], [1 / 9, -1 / 9, 0]]).double()
assert torch.allclose(
    hand.gradient(hand.ref_logits), by_hand
)  # automatic differentiation of the sum over all seven texts


def loss_gradient(world, logits, losses):
    """The mean, over texts as the policy writes them, of the gradient of losses(logprobs) (N, R) -> (N, R), summed over tokens."""
    moved = logits.clone().requires_grad_(True)
    return torch.autograd.grad(world.expectation(logits, losses(world.logprobs(moved)).sum(1)), moved)[
        0
    ]


rewards, mask = (
    hand.rewards[:, None].expand(-1, 2),
    hand.response_mask,
)  # every token of a text has its text's reward
assert torch.allclose(
    -loss_gradient(hand, hand.ref_logits, lambda lp: -rewards * lp), by_hand
)  # (1), as one would write it
assert torch.allclose(
    -loss_gradient(hand, hand.ref_logits, lambda lp: reinforce(lp, rewards, mask)), by_hand
)  # the package's
print(by_hand)

# %% [markdown]
# ## 2. What may be left out, and what may be taken off
#
# Two identities change the estimator's noise without moving its mean. Both rest on one line: given what was written before, a token's push has mean zero,
#
# $$ \mathbb{E}\big[ \nabla \log \pi(y_t \mid y_{<t}) \,\big|\, y_{<t} \big] = \sum_a \pi(a \mid y_{<t}) \frac{\nabla \pi(a \mid y_{<t})}{\pi(a \mid y_{<t})} = \nabla 1 = 0 . \qquad (2) $$
#
# **Reward-to-go.** Let the reward come in parts, $r_1, r_2, \dots$, one after each token (a KL charge does). A part that was paid before $y_t$ was drawn is a fixed number given $y_{<t}$, so by (2) its product with the push has mean zero. A
# token need only answer for what comes after it: $G_t = \sum_{s \ge t} r_s$. (A KL charge contains $\pi$ itself. Its own gradient, $\nabla \log \pi(y_t)$ times a constant, has mean zero by (2) as well, so (1) stands.)
#
# **Baseline.** For the same reason any number $b(y_{<t})$ may be taken off that does not look at $y_t$ itself: $\mathbb{E}[b(y_{<t})\, \nabla \log \pi(y_t \mid y_{<t})] = 0$. The value
# $V(y_{<t}) = \mathbb{E}[G_t \mid y_{<t}]$ is the usual choice, and $A_t = G_t - V(y_{<t})$ is the **advantage**: was it better than expected?
#
# The mean of the *batch* is not such a number: it contains the text's own reward. With $B$ texts its share is $1/B$, so the mean estimator is $(B - 1)/B$ of the true one. Right direction, shorter step.
# The mean of the *others* is, since the texts are drawn independently. (With $B = 2$ that is checked below over all pairs of texts.)
#
# Now the verdict by enumeration, in a world of random rewards with a KL charge of 0.5 a nat, so that every token has a reward of its own. *Noise* is the trace of the covariance of one text's gradient.

# %%
world = World.random(3, 3, seed=0)
logits = world.ref_logits + torch.randn(
    world.ref_logits.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64
)
mask, kl_coef = world.response_mask, 0.5
lp, ref = world.logprobs(logits), world.logprobs(world.ref_logits)
rewards = kl_shaped_rewards(world.rewards, lp, ref, mask, kl_coef=kl_coef)
truth = world.gradient(logits, beta=kl_coef)
jacobian = torch.autograd.functional.jacobian(
    world.logprobs, logits
)  # d log pi(y_t) / d logits, (N, R, S, V)
values = world.by_token(world.values(logits, beta=kl_coef)[0])
total = rewards.sum(1, keepdim=True).expand(-1, 3) * mask
to_go = reward_to_go(rewards, mask)
lengths = mask.sum(1, keepdim=True)


def verdict(name, advantages):
    """Cosine of the mean with grad J, its length along it, the noise of one text. advantages: (N, R)."""
    gradients = torch.einsum("nt,ntsv->nsv", advantages * mask, jacobian)
    mean = world.expectation(logits, gradients)
    noise = world.expectation(logits, (gradients - mean).square().sum((1, 2))).item()
    cosine, along = (
        torch.cosine_similarity(mean.flatten(), truth.flatten(), dim=0),
        (mean * truth).sum() / truth.square().sum(),
    )
    print(f"{name:<42} cosine {cosine:+.4f}   length {along:+.4f}   noise {noise:8.3f}")
    return cosine.item(), along.item(), noise


# %%
mean_reward = world.expectation(logits, rewards.sum(1))
rows = {
    "the text's reward": verdict("the text's reward", total),
    "plus 100": verdict("plus 100", total + 100),
    "minus the mean reward": verdict("minus the mean reward", total - mean_reward),
    "to go": verdict("to go", to_go),
    "to go, minus V": verdict("to go, minus V", to_go - values),
    "divided by the length": verdict("divided by the length", (to_go - values) / lengths),
}
unbiased = [
    name
    for name, (cosine, along, _) in rows.items()
    if abs(cosine - 1) < 1e-9 and abs(along - 1) < 1e-9
]
assert unbiased == list(rows)[:5]
noise = {name: n for name, (_, _, n) in rows.items()}
push = torch.einsum("nt,ntsv->nsv", mask.double(), jacobian)  # of each text, (N, S, V)
for size in (2, 4):
    groups, chance = world.groups(logits, size)  # all batches of so many texts, and their probabilities
    own = total[groups][..., 0]
    everybody = own.sum(1, keepdim=True)
    for name, share, taken_off in (
        ("batch mean", 1 - 1 / size, own - everybody / size),
        ("mean of the others", 1.0, own - (everybody - own) / (size - 1)),
    ):
        estimate = torch.einsum("mg,mgsv->msv", taken_off, push[groups]) / size
        mean = torch.einsum("m,msv->sv", chance, estimate)
        spread = size * (chance * (estimate - mean).square().sum((1, 2))).sum().item()
        print(
            f"{size} texts, minus the {name:<19} {(mean / truth)[0, 0]:.3f} of the true gradient, noise of one text {spread:.3f}, by its length squared {spread / share**2:.3f}"
        )
        assert torch.allclose(mean, share * truth) and spread / share**2 > noise["the text's reward"]
relative = noise["divided by the length"] / rows["divided by the length"][1] ** 2
assert relative > noise["to go, minus V"]
assert noise["to go, minus V"] < noise["to go"] < noise["the text's reward"] < noise["plus 100"] / 1000

# %% [markdown]
# Adding 100 to every reward moves the mean not at all, and makes each sample useless: thousands of times the noise. That is the case for a baseline, and for centring rewards before training. It has a limit: a mean that is *estimated* from two or four texts brings noise of its own, and here, where rewards lie near 0 anyway, more than it takes away (against 1.813 without any, 1.721 with the exact mean; the batch mean's smaller number is that of its shorter steps). It pays where rewards lie far from 0, and where there are more texts to a mean. The length divides
# tokens by something that depends on what they *are* (a stop makes a text short), so it moves the mean. (Its noise is small because its steps are: measured against the square of its length it is the noisier one.)
#
# Is $V$ the best baseline? Minimise the noise of one push: with $g = \nabla \log \pi(y_t)$, $\mathbb{E}\|(G_t - b)\, g\|^2$ has its minimum where its derivative in $b$ is zero,
#
# $$ b^* = \frac{\mathbb{E}[\, \|g\|^2\, G_t ]}{\mathbb{E}[\, \|g\|^2 ]} , $$
#
# a mean of $G_t$ that counts surprising tokens more. $V$ counts all alike. Here $b^*$ takes off as much again as $V$ does, but it needs the squared length of every token's gradient, and $V$ is learned by a plain regression, so $V$ it is. (This is the best number *for each place by itself*; noise of different tokens of a text is correlated.)

# %%
squared = jacobian.square().sum((2, 3))  # |g|^2 of every token
place = torch.zeros(len(truth), 2, dtype=torch.float64)  # one row a state
chance = world.probs(logits).detach()[:, None] * mask
for column, x in enumerate((squared * to_go, squared)):
    place[:, column].index_add_(0, world.visited.flatten(), (chance * x).flatten())
best_baseline = world.by_token(place[:, 0] / place[:, 1])
rows["to go, minus the best number"] = verdict("to go, minus the best number", to_go - best_baseline)
assert abs(rows["to go, minus the best number"][1] - 1) < 1e-9


def own_noise(baseline):
    """sum_t E |(G_t - b) g_t|^2: what b* minimises."""
    return (chance * (to_go - baseline).square() * squared).sum().item()


print(
    {
        name: round(own_noise(b), 4)
        for name, b in {"none": 0 * values, "V": values, "b*": best_baseline}.items()
    }
)
assert own_noise(best_baseline) < own_noise(values) < own_noise(0 * values)

# %% [markdown]
# What noise costs is samples. Draw $B$ texts, average, and ask how far the average points from $\nabla J$:

# %%
generator = torch.Generator().manual_seed(0)
sizes = [4, 16, 64, 256, 1024]
choices = {
    "the text's reward plus 3": total + 3,
    "the text's reward": total,
    "to go": to_go,
    "to go, minus V": to_go - values,
}


def typical_angle(advantages, size, draws=1500):
    """The median, over draws of a batch, of the angle between its gradient and grad J, degrees."""
    gradients = torch.einsum("nt,ntsv->nsv", advantages * mask, jacobian).flatten(1)
    texts = torch.multinomial(world.probs(logits), draws * size, replacement=True, generator=generator)
    means = gradients[texts].view(draws, size, -1).mean(1)
    return (
        torch.cosine_similarity(means, truth.flatten()[None], dim=1).clamp(-1, 1).acos().median().item()
        * 180
        / math.pi
    )


angles = {name: [typical_angle(a, size) for size in sizes] for name, a in choices.items()}
figure = Figure(figsize=(6.4, 3.6), dpi=110, layout="constrained")
axes = figure.add_subplot()
for (name, y), colour, style in zip(angles.items(), COLOURS, ("-", "--", "-.", ":"), strict=False):
    axes.plot(sizes, y, style, marker="o", markersize=4, color=colour, label=name)
axes.axhline(90, color="#888888", linewidth=0.8)
axes.text(sizes[0], 91, "90: no information", fontsize=7.5, color="#666666")
axes.set(
    xscale="log",
    xlabel="texts in a batch",
    ylabel="angle to grad J, degrees",
    ylim=(0, 100),
    xticks=sizes,
    xticklabels=sizes,
)
axes.legend(fontsize=8, frameon=False)
axes.grid(alpha=0.3)
display(figure)

# %%
assert all(
    max(angles[name][i] for name in choices if name != "the text's reward plus 3")
    < angles["the text's reward plus 3"][i]
    for i in range(len(sizes))
)
assert sum(angles["to go, minus V"]) < sum(angles["the text's reward"])
needed = {
    name: next((s for s, angle in zip(sizes, y, strict=True) if angle < 30), None)
    for name, y in angles.items()
}
print(f"of the sizes {sizes} the smallest that points within 30 degrees, half of the time:", needed)

# %% [markdown]
# Three of the four curves lie on each other: here the rewards are near 0 on average and a text has three tokens, so there is little to take off; an offset is what hurts. The longer the texts and the more the prompts differ in what they promise, the more a $V$ is worth (lesson 05).
#
# ## 3. The denominator
#
# A batch of texts has two sizes: texts and tokens. By which does one divide? `aggregate` is the one place in this package that decides. Equation (1) says: sum over the tokens of a text, mean over texts. Libraries do other things:
#
# | how | divides the sum over tokens by | used by |
# |---|---|---|
# | `sequence_sum` | the number of texts | (1) |
# | `token_mean` | the number of tokens in the batch | TRL's and verl's default, DAPO |
# | `sequence_mean` | each text's own length, then the number of texts | the GRPO paper |
# | `constant` | texts times a fixed length | Dr. GRPO |
#
# The token mean's denominator is random, the same for all texts of a batch, and tends to $B\, \mathbb{E}[\text{length}]$: a bias at small batches that fades, in a *constant* that the learning rate takes up. The sequence mean's is each text's own length: tokens
# of long texts are pushed less, at any batch size.


# %%
advantages = to_go - values


def mean_pull(size, how, draws=40_000):
    """The mean over many batches of the gradient of `aggregate(reinforce(...), how)`, exact up to its own sampling noise."""
    texts = torch.multinomial(
        world.probs(logits), draws * size, replacement=True, generator=generator
    ).view(draws, size)
    weight = (advantages * mask)[texts]  # (draws, size, R)
    count = mask[texts].sum(2, keepdim=True)
    if how == "token_mean":
        weight = weight / count.sum(1, keepdim=True)
    elif how == "sequence_mean":
        weight = weight / count / size
    else:
        weight = weight / size
    by_text = (
        torch.zeros(len(mask), 3, dtype=torch.float64).index_add_(
            0, texts.flatten(), weight.flatten(0, 1)
        )
        / draws
    )
    return torch.einsum("nt,ntsv->sv", by_text, jacobian)


hows = ("sequence_sum", "token_mean", "sequence_mean")
batch_sizes = [1, 2, 4, 8, 16, 32]
cosines = {
    how: [
        torch.cosine_similarity(mean_pull(b, how).flatten(), truth.flatten(), dim=0).item()
        for b in batch_sizes
    ]
    for how in hows
}
figure = Figure(figsize=(6.4, 3.2), dpi=110, layout="constrained")
axes = figure.add_subplot()
for (how, y), colour, style in zip(cosines.items(), COLOURS, ("-", "--", ":"), strict=False):
    axes.plot(
        batch_sizes,
        [math.degrees(math.acos(min(c, 1))) for c in y],
        style,
        marker="o",
        markersize=4,
        color=colour,
        label=how,
    )
axes.set(
    xscale="log",
    xticks=batch_sizes,
    xticklabels=batch_sizes,
    xlabel="texts in a batch",
    ylabel="angle of the mean pull\nto grad J, degrees",
)
axes.legend(fontsize=8, frameon=False)
axes.grid(alpha=0.3)
display(figure)

# %%
one_text = torch.einsum(
    "n,nt,ntsv->sv", world.probs(logits), advantages * mask / lengths, jacobian
)  # exact, for B = 1
exact = torch.cosine_similarity(one_text.flatten(), truth.flatten(), dim=0).item()
print(f"sequence mean, exact at any batch size: cosine {exact:.4f}")
print({how: [round(c, 4) for c in y] for how, y in cosines.items()})
assert round(exact, 2) == 0.95 and all(abs(c - exact) < 0.01 for c in cosines["sequence_mean"])
assert abs(cosines["token_mean"][0] - exact) < 0.01 and cosines["token_mean"][-1] > 0.999
losses = torch.randn(4, 3, generator=generator)  # and that `aggregate` divides as the table says:
some = torch.arange(3) < torch.tensor([[1], [3], [2], [3]])
assert torch.allclose(aggregate(losses, some, how="token_mean"), losses[some].sum() / 9)
assert torch.allclose(aggregate(losses, some, how="sequence_sum"), losses[some].sum() / 4)

# %% [markdown]
# ## 4. On a real policy
#
# The SFT model writes 512 reviews, the reward model scores them: 0 on average over such samples, with standard deviation 1, because we scaled it so. That scaling *is* a baseline, so we also look at the same scores plus 3, which
# Bradley-Terry cannot tell apart. The true gradient over four million weights is unknown; but a real pull is the same in two independent halves of the texts, and noise is not.

# %%
policy, tokenizer = load_policy("tiny-reviews-sft")
scorer, _ = load_scalar("tiny-reviews-reward")
score = rollout_score(scorer, tokenizer.eos_token_id)
size = 2 if FAST else 64
batches = sample_text(policy, tokenizer, (reviews.rl_prompts() * 2)[: 8 * size], seed=0, batch_size=size)
scores = [score(batch) for batch in batches]


def batch_gradient(i, offset, minus_mean):
    """The policy gradient (1) from one batch of 64 texts, as one vector."""
    policy.zero_grad()
    mask = batches[i].response_mask
    reward = scores[i] + offset
    if minus_mean:  # the mean of the others of the batch
        reward = reward - (reward.sum() - reward) / (len(reward) - 1)
    lp = policy_logprobs(policy, batches[i], temperature=0.7)  # the temperature at which they were drawn
    aggregate(reinforce(lp, reward[:, None].expand_as(lp), mask), mask, how="sequence_sum").backward()
    return torch.cat([p.grad.flatten() for p in policy.parameters()])


splits = [half for half in itertools.combinations(range(8), 4) if 0 in half]  # 35 ways to halve eight batches


agreement = {}
for name, setting in {
    "score": (0.0, False),
    "score + 3": (3.0, False),
    "score + 3, minus the others' mean": (3.0, True),
}.items():
    each = torch.stack([batch_gradient(i, *setting) for i in range(8)])
    dots = each @ each.T  # all that the cosines and lengths of halves are made of
    member = torch.tensor([[float(i in half) / 4 for i in range(8)] for half in splits])
    other = 0.25 - member
    product, a, b = (torch.einsum("ki,ij,kj->k", x, dots, y) for x, y in ((member, other), (member, member), (other, other)))
    agreement[name] = product / (a * b).sqrt()
    c = agreement[name]
    print(f"{name:<34} cosine of two halves, mean of {len(splits)} splits {c.mean():+.3f} ({c.min():+.3f}..{c.max():+.3f})   length {a.sqrt().mean():.1f}")
more = agreement["score + 3, minus the others' mean"] > agreement["score + 3"]
if not FAST:  # FAST draws too few texts
    claim(
        "Halves of 512 reviews, 256 each, agree more on where to go when the scores have a baseline than with 3 added and none, in nearly all of the 35 ways to halve them.",
        more.double().mean().item() >= 0.9,
        evidence=f"{more.double().mean():.0%} of the splits; mean cosines " + ", ".join(f"{name}: {c.mean():+.3f}" for name, c in agreement.items()),
    )

# %% [markdown]
# ## 5. Learning
#
# Sixteen texts a step in the small world, a plain step along each estimate, twenty runs with other random numbers. Same step size, same mean pull; only the noise differs. **Predict:** how much does an offset of 3 cost? And of 20?


# %%
def learn(advantage_of, *, steps=100, size=16, rate=0.5, runs=5 if FAST else 20, offset=0.0):
    """J (without the offset) after each step of REINFORCE on sampled texts: (runs, steps)."""
    curves = torch.zeros(runs, steps)
    for run in range(runs):
        drawing = torch.Generator().manual_seed(run)
        table = world.ref_logits.clone()
        for step in range(steps):
            curves[run, step] = world.objective(table)
            texts = torch.multinomial(world.probs(table), size, replacement=True, generator=drawing)
            pushed = advantage_of(world.rewards[texts] + offset)
            moved = table.clone().requires_grad_(True)
            (world.sequence_logprobs(moved)[texts] * pushed).mean().backward()
            table = table + rate * moved.grad
    return curves


def minus_others(r):
    return r - (r.sum() - r) / (len(r) - 1)


learned = {
    "the reward": learn(lambda r: r),
    "plus 3": learn(lambda r: r, offset=3.0),
    "plus 20": learn(lambda r: r, offset=20.0),
    "plus 20, minus the others' mean": learn(minus_others, offset=20.0),
}
figure = Figure(figsize=(6.4, 3.2), dpi=110, layout="constrained")
axes = figure.add_subplot()
for (name, y), colour, style in zip(learned.items(), COLOURS, ("-", "-.", "--", ":"), strict=False):
    axes.plot(y.mean(0), style, color=colour, label=name, linewidth=2)
    axes.fill_between(
        range(y.shape[1]), y.quantile(0.1, dim=0), y.quantile(0.9, dim=0), color=colour, alpha=0.12
    )
axes.axhline(world.rewards.max().item(), color="#888888", linewidth=0.8)
axes.set(xlabel="step of 16 texts", ylabel="mean reward of the policy\n(band: eight runs of ten)")
axes.legend(fontsize=8, frameon=False, loc="lower right")
axes.grid(alpha=0.3)
display(figure)

# %%
ends = {name: y[:, -1] for name, y in learned.items()}
with_baseline, without = ends["plus 20, minus the others' mean"].mean(), ends["plus 20"].mean()
first = world.probs(world.ref_logits)
variance = (first * world.rewards.square()).sum() - (first * world.rewards).sum() ** 2
assert abs(3 / variance.sqrt().item() - 3) < 0.2
print({name: f"{y.mean():.2f}, from {y.min():.2f} to {y.max():.2f}" for name, y in ends.items()})
claim(
    "With 20 added and no baseline the policy ends far lower than with the others' mean taken off.",
    bool(with_baseline > without + 0.5),
    evidence=f"mean reward {with_baseline:.2f} against {without:.2f}",
    seeds=len(ends["plus 20"]),
)

# %% [markdown]
# An offset of 3 is three times the rewards' own spread, and it costs little here: noise is averaged over steps as well as over texts. An offset of 20 is another matter: every text that happens to be drawn is pushed up hard, and runs settle on what they drew first. Nothing about the mean has changed.
#
# ## What the libraries do
#
# | matter | TRL | OpenRLHF | verl | DeepSpeed-Chat |
# |---|---|---|---|---|
# | aggregation of the policy loss | PPO: token mean; GRPO: `loss_type`, "dapo" (a token mean over all processes' tokens) by default | token mean | `loss_agg_mode`, token mean by default | token mean |
# | micro-batches | GRPO: denominators of the whole step | sums, divided by the whole | as it is told | each by its own tokens |
# | reward-to-go with KL | PPO: yes; RLOO: one number for the text | yes | yes | yes |
#
# The sum over tokens of (1), as it stands, is what RLOO in TRL takes (one ratio a text, the mean over texts). The others do not: with texts of a thousand tokens the step would depend on the length of a text. The constant denominator keeps (1)'s direction and a step of sane size.
#
# ## Exercises
#
# Each checker says *pass*, or the likely mistake in one sentence.
#
# **1. The loss** *(easy, 10 minutes)*. From `logprobs` (B, R) of sampled tokens, `rewards` (B,) and the mask (B, R), return the scalar whose gradient is minus (1), estimated from the batch: sum over tokens, mean over texts.
#
# *Hint:* padding may hold NaN. The checker looks at the gradient as well.


# %%
def policy_gradient_loss(logprobs, rewards, mask): ...  # your code


print(check.policy_gradient_loss(policy_gradient_loss))

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def policy_gradient_loss(logprobs, rewards, mask):
#     return -(rewards * torch.where(mask, logprobs, 0.0).sum(1)).mean()
# ```
# </details>
#
# **2. Only what comes after** *(medium, 10 minutes)*. From `rewards` (B, R), the mask and a discount `gamma`, return $G_t = r_t + \gamma G_{t+1}$, 0 where masked.
#
# *Hint:* walk from the right.


# %%
def discounted_to_go(rewards, mask, gamma): ...  # your code


print(check.discounted_to_go(discounted_to_go))

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def discounted_to_go(rewards, mask, gamma):
#     rewards = torch.where(mask, rewards, 0.0)
#     columns, later = [], torch.zeros(len(rewards))
#     for t in reversed(range(rewards.shape[1])):
#         later = rewards[:, t] + gamma * later
#         columns.append(later)
#     return torch.where(mask, torch.stack(columns[::-1], 1), 0.0)
# ```
# </details>
#
# **3. The best number** *(medium, 10 minutes)*. Many pushes at one place were observed: their squared lengths `squares` (n,) and the rewards-to-go `returns` (n,). Return the number $b$ that makes $\sum_i (G_i - b)^2 \|g_i\|^2$ least.
#
# *Hint:* section 2, or set the derivative to zero.


# %%
def least_noise_baseline(squares, returns): ...  # your code


print(check.least_noise_baseline(least_noise_baseline))

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def least_noise_baseline(squares, returns):
#     return (squares * returns).sum() / squares.sum()
# ```
# </details>
#
# **4. Find the bug** *(medium, 15 minutes)*. A colleague whitens rewards before the update: mean 0, standard deviation 1 (the one that divides by n). Their runs are as noisy as with no baseline at all. Look at the curves, read the code, mend it.


# %%
def whitened(rewards):
    """(B,) rewards of a batch -> advantages."""
    mean = rewards.mean()
    spread = (rewards - mean).square().mean().sqrt() + 1e-8
    return (rewards - mean) / spread + mean


runs = {
    "a right one": learn(lambda r: (r - r.mean()) / (r.std(unbiased=False) + 1e-8), offset=20.0),
    "the colleague's": learn(whitened, offset=20.0),
}
figure = Figure(figsize=(6.4, 2.8), dpi=110, layout="constrained")
axes = figure.add_subplot()
for (name, y), colour, style in zip(runs.items(), COLOURS, ("-", "--"), strict=False):
    axes.plot(y.mean(0), style, color=colour, label=name, linewidth=2)
    axes.fill_between(range(y.shape[1]), y.amin(0), y.amax(0), color=colour, alpha=0.15)
axes.set(xlabel="step of 16 texts", ylabel="mean reward of the policy")
axes.legend(fontsize=8, frameon=False, loc="lower right")
axes.grid(alpha=0.3)
display(figure)

# %%
print(check.whitened(whitened))

# %% [markdown]
# <details><summary>Solution</summary>
#
# `+ mean` gives back what was taken off. TRL's `masked_whiten` has an option that does so, on purpose, for whitening *rewards*; used on advantages it brings back the noise of no baseline. Take it away.
# </details>
#
# **5. Predict, then run** *(5 minutes)*. Subtract the *best* reward of the batch in place of the mean of the others: every push then is down or zero. Is it unbiased? Will it learn? Write it down, take the hash away.

# %%
below_best = learn(lambda r: r - r.max(), offset=20.0)[:, -1]
# print(below_best)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# It is biased: the maximum looks at the text's own reward. And yet it learns, here: pushing down what is worse pushes up the rest, since probabilities sum to one, and it ends about where the others' mean ends. Biased is not useless and unbiased is not good;
# know which you have.
# </details>

# %%
assert below_best.min() > 1 and (FAST or abs(below_best.mean() - with_baseline) < 0.2)

# %% [markdown]
# **6. Design the experiment** *(hard, 15 minutes)*. Somebody says: "our new baseline halves the variance". On a real model, how do you measure that? Say what you hold fixed, what vector you look at, how many texts you need and what a fair comparison costs.
#
# <details><summary>What a good answer has</summary>
#
# One frozen policy, one set of texts for all estimators; the gradient as a vector, per text or per small batch, its variance estimated over many of them, with an interval from resampling texts (by prompt: texts of a prompt are not independent). Or the angle between independent halves, as
# here. The baseline's own cost counted (a critic is a second model, other samples of the prompt cost sampling): variance at equal *compute*. And that the mean is the same, tested, or the halved variance is a bias.
# </details>
#
# ## Questions
#
# <details><summary>1. The loss of REINFORCE went up while the reward went up. A bug?</summary>
# No. The loss is a device for its gradient; its value follows the rewards' offset and the log-probabilities, not the quality of the policy.
# </details>
# <details><summary>2. All rewards of a batch are equal. What does the estimator do without a baseline, and with the others' mean?</summary>
# Without: it pushes up whatever was drawn, pure noise. With: exactly nothing.
# </details>
# <details><summary>3. Why may V depend on the text before the token but not on the token?</summary>
# (2) is a mean over the token given what is before it. A number that depends on the token does not come out of that mean.
# </details>
# <details><summary>4. Could one differentiate the reward model instead, and follow its gradient into the policy?</summary>
# The text in between is made of discrete choices; a small change of the weights changes no token, until it changes one. Relaxations exist; they optimise a reward of mixtures of words that nobody wrote.
# </details>
# <details><summary>5. The sequence mean has cosine 0.95 with the true gradient. Why does anyone care?</summary>
# The part that is missing is systematic: it pays less attention to long texts, good or bad, so it leaves long bad texts longer than they should be. Lesson 11 meets it again.
# </details>
#
# **References.** Williams 1992 (REINFORCE), section 5. Sutton et al. 2000 (the theorem with a baseline), section 2. Greensmith, Bartlett and Baxter 2004 (variance of baselines), section 4. Kool et al. 2019 (the others' mean).
# Liu et al. 2025, *Understanding R1-Zero-like training*, section 3 (denominators).
