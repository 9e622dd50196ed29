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
# # 02 · Human feedback is data
#
# **The question.** RLHF begins with what people said. How much do they agree, does a reward model's formula fit them, and whose preference is it that we train on?
#
# **You need** lesson 01. 30 minutes to read, 75 for the exercises.
#
# **Predict.** Fifteen people or more rated each of 10,448 film-review snippets from -4 to 4. Write a number beside each.
#
# 1. Two random people, two random snippets of one film. How often do they give the two the *same* rating?
# 2. When they do not, how often do two different pairs of people agree on which is more positive?
# 3. Of two snippets whose mean ratings differ by less than half a point, how well can anybody say which one a random person will prefer?

# %%
# %matplotlib inline
import math
import random
from collections import Counter, defaultdict

import torch
from IPython.display import display
from matplotlib.figure import Figure

from minirlhf.classroom import check
from minirlhf.classroom.claims import FAST, claim
from minirlhf.rewards.bag_of_words import ridge_judge
from minirlhf.show import COLOURS
from minirlhf.tasks import reviews
from minirlhf.tasks.agreement import human_ceiling, krippendorff_alpha, preference_share, tie_share

rated = [r for r in reviews.load_reviews() if r.ratings]
print(
    f"{len(rated):,} snippets of {len({r.movie for r in rated})} films, {sum(len(r.ratings) for r in rated):,} ratings"
)

# %% [markdown]
# ## 1. What was said
#
# Nobody compared two reviews. Each rater saw one snippet and said how positive it is. *We* define preferred as more positive, as Ziegler et al. 2019 did. Everything that follows, the reward model, PPO, inherits that choice: a model trained on it learns to praise, not to be right. Three snippets with all
# that was said of them: the one on which raters differ most, one in the middle, and the clearly positive one on which they differ least.

# %%
spread = sorted(rated, key=lambda r: torch.tensor(r.ratings).float().std().item())
for r in (spread[-1], spread[len(spread) // 2], next(r for r in spread if 1 < r.mean < 3)):
    counts = Counter(r.ratings)
    print(
        f"mean {r.mean:+.2f}   "
        + " ".join(f"{v:+d}:{counts[v]}" for v in sorted(counts))
        + f"\n   {r.text[:150]}"
    )

# %%
figure = Figure(figsize=(9, 3), dpi=110, layout="constrained")
left, right = figure.subplots(1, 2)
every = Counter(v for r in rated for v in r.ratings)
left.bar(list(range(-4, 5)), [every[v] / sum(every.values()) for v in range(-4, 5)], color=COLOURS[0])
left.set(xlabel="a single rating", ylabel="share of all ratings", xticks=range(-4, 5))
means = torch.tensor([r.mean for r in rated])
deviations = torch.tensor([torch.tensor(r.ratings).float().std() for r in rated])
bins = [(means - c).abs() < 0.25 for c in torch.arange(-3.5, 3.6, 0.5)]
right.plot(torch.arange(-3.5, 3.6, 0.5), [deviations[b].mean() for b in bins], "o-", color=COLOURS[0])
right.set(xlabel="mean rating of a snippet", ylabel="standard deviation of its ratings", ylim=(0, None))
for axes in (left, right):
    axes.grid(alpha=0.3)
display(figure)

# %% [markdown]
# People disagree most about what is lukewarm. **Krippendorff's alpha** puts one number on it: one minus the disagreement within snippets over the disagreement between ratings drawn at random,
#
# $$ \alpha = 1 - \frac{D_o}{D_e}, \qquad D_o = \text{mean squared difference of two ratings of one snippet}, \quad D_e = \text{of any two ratings} . $$
#
# 1 is perfect agreement, 0 what chance would give. **By hand**, three snippets with two ratings each, (1, 2), (3, 3), (5, 4). Squared differences within: 1, 0, 1, so $D_o = 2/3$. The six numbers 1 2 3 3 4 5 have 15 pairs, whose squared differences sum to 60:
# $D_e = 60/15 = 4$. So $\alpha = 1 - (2/3)/4 = 5/6$.

# %%
six = [1, 2, 3, 3, 4, 5]
assert sum((a - b) ** 2 for i, a in enumerate(six) for b in six[i + 1 :]) == 60
assert math.isclose(krippendorff_alpha([(1, 2), (3, 3), (5, 4)]), 5 / 6)
alpha = krippendorff_alpha([r.ratings for r in rated])
rng = random.Random(0)
pool = [v for r in rated for v in r.ratings]
rng.shuffle(pool)
shuffled, start = [], 0
for r in rated:
    shuffled.append(tuple(pool[start : start + len(r.ratings)]))
    start += len(r.ratings)
print(f"alpha {alpha:.2f}; with the ratings dealt out at random {krippendorff_alpha(shuffled):+.3f}")
assert round(alpha, 2) == 0.80 and abs(krippendorff_alpha(shuffled)) < 0.01

# %% [markdown]
# ## 2. From ratings to pairs
#
# A *pair* is two snippets of one film (so that they answer the same prompt), and its label is drawn: one random rating of each, the higher is preferred, ties are thrown away. So labels are as noisy as people are, on purpose. How noisy that is depends on how far apart the two are:

# %%
table, within = [], reviews.pairs_within_films("reward")
for low, high in (*reviews.GAP_BANDS, (0.0, 8.0)):
    pairs = reviews.pairs_within_films("reward", low, high)
    few = pairs if len(pairs) <= 3000 else random.Random(1).sample(pairs, 3000)
    table.append((low, high, len(pairs), tie_share(few), human_ceiling(within, low, high)))
    print(
        f"gap {low:g} to {high:g}: {len(pairs):6,} pairs, {table[-1][3]:.2f} ties, ceiling {table[-1][4]:.2f}"
    )
assert round(table[0][4], 2) == 0.60 and table[3][4] > 0.95 and 0.15 < table[-1][3] < 0.21
of_test = human_ceiling(reviews.pairs_within_films("test"))
print(f"the 76 test films, all gaps: ceiling {of_test:.2f}")
assert round(table[-1][4], 2) == 0.85 and round(of_test, 2) == 0.84


def strangers(pairs):
    """Two pairs of *different* people, neither of which ties: how often do they prefer the same text?"""
    rng, same, decided = random.Random(0), 0.0, 0.0
    for pair in pairs:
        a, b = (torch.tensor(rng.sample(x.ratings, len(x.ratings))) for x in pair)
        apart = [(x[:, None] - y).sign() for x, y in zip(a.split(8), b.split(8), strict=False)][:2]
        above, below = ([(d == s).float().mean().item() for d in apart] for s in (1, -1))
        same += above[0] * above[1] + below[0] * below[1]
        decided += (above[0] + below[0]) * (above[1] + below[1])
    return same / decided


of_all, of_close = strangers(few), strangers(random.Random(1).sample(reviews.pairs_within_films("reward", 0, 0.5), 3000))
print(f"two pairs of people, neither tied, agree on {of_all:.2f}; on pairs whose means are less than half a point apart on {of_close:.2f}")
assert 0.75 < of_all < table[-1][4] and 0.48 < of_close < 0.55

# %% [markdown]
# Two pairs of people agree so often because a choice on which neither ties is an easy one: agreement is in part a matter of *which* pairs are asked.
#
# The *ceiling* is what a predictor reaches that knows what all the **others** said: for every single choice, a rating $x$ of one text against a rating $y$ of the other, $x \neq y$, take the means of both texts *without* $x$ and $y$, and see whether the higher mean is on the chosen side (one half if they are equal). A pair counts as often as two of its ratings differ,
# since that is how often it would be asked about. (In the table the ceiling's bands are by the same means; pairs and ties are counted by the means of all.) Where the others are less than half a point apart, knowing all that they said is right on 60 % of the choices: better than a coin, by little. A reward model that is right on 65 % of all pairs is to be read against 0.85 (0.84 on the test films), not against 1.
#
# Your three predictions, then: 0.18 (the ties of the last row), 0.83, and 0.60.
#
# **Why leave out?** It is tempting to take the direction from all ratings and count how many of the same ratings agree. That is biased upward: chance differences are counted as knowledge. And to tell *close* pairs by means that hold the choice is biased downward: they are close because somebody's rating went against the others (and far pairs upward). On *shuffled* ratings, where there is nothing to know:

# %%
null = [(a, b) for a, b in zip(shuffled[::2], shuffled[1::2], strict=True)][:3000]
plug_in = sum(max(p := preference_share(a, b), 1 - p) for a, b in null) / len(null)


def ceiling(pairs, low=0.0, high=8.0, held=0):
    """human_ceiling, written out. With held=1 the band is by means that hold the choice."""
    right = asked = 0.0
    for a, b in pairs:
        n, m, weight = sum(a), sum(b), 1 / (len(a) * len(b))
        for x in a:
            for y in b:
                others = (n - x) / (len(a) - 1) - (m - y) / (len(b) - 1)
                apart = abs(n / len(a) - m / len(b)) if held else abs(others)
                if x != y and low <= apart < high:
                    asked += weight
                    right += weight * ((others > 0) == (x > y) if others else 0.5)
    return right / asked


some = random.Random(2).sample(within, 500)
assert math.isclose(ceiling([(a.ratings, b.ratings) for a, b in some]), human_ceiling(some))
bands = reviews.GAP_BANDS[:3]  # on noise hardly a pair is farther apart
left_out, held_in = ([ceiling(null, *band, held=held) for band in bands] for held in (0, 1))
print(f"on noise: direction and agreement from the same ratings {plug_in:.3f}; by the others {ceiling(null):.3f}")
print("  in bands by the others' means", [round(x, 2) for x in left_out])
print("  in bands by means that hold the choice", [round(x, 2) for x in held_in])
assert plug_in > 0.58 and all(abs(x - 0.5) < 0.02 for x in (ceiling(null), *left_out))
assert held_in[0] < 0.4 and held_in[2] > 0.6

# %% [markdown]
# ## 3. Does Bradley-Terry fit our raters?
#
# A reward model assumes $P(a \succ b) = \sigma(r_a - r_b)$. Where would that come from? Suppose a rater feels $u = r + \text{noise}$ and prefers what feels better. Then $P(a \succ b) = P(\text{noise}_b - \text{noise}_a < r_a - r_b)$; if each noise has a Gumbel distribution (that of the largest of many
# small influences), their difference has exactly the logistic distribution, and $P = \sigma(r_a - r_b)$. With Gaussian noise it would be a probit, hard to tell apart.
#
# A test: if the mean rating were the strength, up to a unit, then the *logit* of the preference would be a straight line through 0 in the difference of means. One half of the raters of each text says which pairs are close and which side is ahead; the other half is measured, or chance would make the line by itself:

# %%
rng, found = random.Random(0), defaultdict(lambda: [0.0, 0.0, 0.0, 0])
every_pair = [p for split in reviews.SPLITS for p in reviews.pairs_within_films(split)]
for a, b in rng.sample(every_pair, 30_000):
    first, second = (rng.sample(x.ratings, len(x.ratings)) for x in (a, b))
    (a1, a2), (b1, b2) = ((x[: len(x) // 2], x[len(x) // 2 :]) for x in (first, second))
    gap = sum(a1) / len(a1) - sum(b1) / len(b1)
    if gap < 0:
        a2, b2, gap = b2, a2, -gap
    cell = found[min(int(gap * 2), 10)]
    wins = sum(x > y for x in a2 for y in b2) / (len(a2) * len(b2))
    losses = sum(x < y for x in a2 for y in b2) / (len(a2) * len(b2))
    for i, value in enumerate((wins, losses, sum(a2) / len(a2) - sum(b2) / len(b2), 1)):
        cell[i] += value
gaps = [found[k][2] / found[k][3] for k in sorted(found)]
logits = [math.log(found[k][0] / found[k][1]) for k in sorted(found)]
slopes = [y / x for x, y in zip(gaps, logits, strict=True)]
for x, y, slope in zip(gaps, logits, slopes, strict=True):
    print(f"difference of means {x:.2f}: logit {y:+.2f}, {slope:.2f} a point")

# %%
figure = Figure(figsize=(6.4, 3.6), dpi=110, layout="constrained")
axes = figure.add_subplot()
axes.plot(gaps, logits, "o-", color=COLOURS[0], label="our raters")
unit = sum(x * y for x, y in zip(gaps, logits, strict=True)) / sum(x * x for x in gaps)
axes.plot(
    [0, max(gaps)],
    [0, unit * max(gaps)],
    "--",
    color="#888888",
    label=f"Bradley-Terry with {unit:.2f} a point",
)
axes.set(
    xlabel="difference of mean ratings (other half of the raters)", ylabel="logit of being preferred"
)
axes.legend(fontsize=8, frameon=False)
axes.grid(alpha=0.3)
display(figure)
claim(
    "The logit grows nearly in proportion to the difference of means, but the mean rating is not exactly a Bradley-Terry strength: a point is worth more between close texts.",
    slopes[0] > slopes[5] * 1.15 and all(0.6 < s / unit < 1.6 for s in slopes),
    evidence=f"{slopes[0]:.2f} logits a point at {gaps[0]:.1f}, {slopes[5]:.2f} at {gaps[5]:.1f}",
)

# %% [markdown]
# Not a bad model, then. The bend refutes only that the score is *proportional to the mean rating*. A Bradley-Terry model whose scores are another function of the mean would bend as well; whether such a one fits, this figure cannot tell. A straight line makes the probabilities a little wrong, and leaves the order right. Worse would be preferences that no scores can order (lesson 19, to come).
#
# ## 4. Who said it
#
# There are no rater ids in the data. Yet the $k$-th numbers of all rows, a *column*, may be one person's. Inside each block of 30 consecutive rows they behave so: if they rated one snippet above its mean, they tend to rate the next one above its mean too.

# %%
rows = {int(key): values for key, _, values in reviews.rated_snippets()}


def column_correlation(lag, same_block):
    """Correlation of a column's centred ratings, `lag` rows apart."""
    x, y = [], []
    for i, here in rows.items():
        there = rows.get(i + lag)
        if there and ((i - 1) // 30 == (i + lag - 1) // 30) == same_block:
            mean_here, mean_there = sum(here) / len(here), sum(there) / len(there)
            for a, b in zip(here, there, strict=False):
                x.append(a - mean_here)
                y.append(b - mean_there)
    return torch.corrcoef(torch.tensor([x, y]))[0, 1].item()


within, across = column_correlation(1, True), column_correlation(30, False)
print(f"one row apart, same block {within:.2f}; thirty rows apart, other block {across:.3f}")
assert within > 0.3 and abs(across) < 0.02

# %%
people = defaultdict(list)
for i, values in rows.items():
    if len(values) == 15:  # the columns of longer rows cannot be told apart
        for column, v in enumerate(values):
            people[(i - 1) // 30, column].append(v - sum(values) / 15)
leaning = torch.tensor([sum(v) / len(v) for v in people.values() if len(v) >= 10])
shuffler = random.Random(0)
mixed = [v for values in people.values() for v in values]
shuffler.shuffle(mixed)
by_chance, start = [], 0
for values in people.values():
    if len(values) >= 10:
        by_chance.append(sum(mixed[start : start + len(values)]) / len(values))
    start += len(values)
figure = Figure(figsize=(6.4, 3), dpi=110, layout="constrained")
axes = figure.add_subplot()
edges = torch.linspace(-2.5, 2.5, 41).tolist()
axes.hist(leaning.tolist(), edges, color=COLOURS[0], alpha=0.7, label=f"our {len(leaning)} columns")
axes.hist(
    by_chance, edges, histtype="step", color=COLOURS[1], linewidth=2, label="the same ratings, shuffled"
)
axes.set(xlabel="how far above the others somebody rates, on average", ylabel="columns")
axes.legend(fontsize=8, frameon=False)
display(figure)
print(f"standard deviation {leaning.std():.2f}, shuffled {torch.tensor(by_chance).std():.2f}")
assert leaning.std() > 1.5 * torch.tensor(by_chance).std()

# %% [markdown]
# Some people are generous, some strict, and the means add them up. What is averaged away are people: a snippet with ratings -3 and +3 and one with nothing but 0 have the same mean. A policy that is paid by the mean is indifferent between them. Whether one should average at all is not a
# technical question; that one *does* is worth saying.

# %% [markdown]
# ## 5. Label pairs yourself
#
# `ask(20)` shows you twenty pairs and writes your choices to `out/my_labels.jsonl`; then `fit` trains a small Bradley-Terry model on *your* clicks: one weight a word. Take the hash from `# ask(20)` below. The curve is a simulated rater's, one random rating a side; yours get a line of their own above it. (Twenty clicks teach next to nothing, as the curve will show; they are for you to feel what a rater does.) How many clicks does it take to be better than a coin on films that were not asked about?

# %%
import json  # noqa: E402
from pathlib import Path  # noqa: E402

MINE = Path("../out/my_labels.jsonl")


def ask(n, seed=0):
    """Ask for n choices at the keyboard: 1 or 2, anything else skips."""
    labels = []
    for row in reviews.preference_pairs("reward", n, seed=seed):
        pair = [row["chosen"], row["rejected"]]
        random.Random(len(labels)).shuffle(pair)
        answer = input(f"\n{row['prompt']}1: {pair[0]}\n2: {pair[1]}\nwhich is more positive? ")
        if answer in ("1", "2"):
            labels.append(
                {
                    "prompt": row["prompt"],
                    "chosen": pair[int(answer) - 1],
                    "rejected": pair[2 - int(answer)],
                }
            )
    MINE.parent.mkdir(exist_ok=True)
    MINE.write_text("".join(json.dumps(x) + "\n" for x in labels), encoding="utf-8")


# ask(20)


def words(text):
    return Counter("".join(c if c.isalnum() else " " for c in text.lower()).split())


def fit(pairs, penalty=1.0):
    """Bradley-Terry with one weight a word, by gradient descent on -log sigmoid(difference) + penalty |w|^2 / 2n. Returns text -> score."""
    known = {
        w: i
        for i, w in enumerate(
            sorted({w for p in pairs for side in ("chosen", "rejected") for w in words(p[side])})
        )
    }

    def row(text):
        x = torch.zeros(len(known))
        for w, n in words(text).items():
            if w in known:
                x[known[w]] = n
        return x

    x = torch.stack([row(p["chosen"]) - row(p["rejected"]) for p in pairs])
    weights = torch.zeros(len(known), requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        loss = -torch.nn.functional.logsigmoid(
            x @ weights
        ).mean() + penalty * weights.square().sum() / (2 * len(x))
        loss.backward()
        return loss

    optimiser.step(closure)
    return lambda text: (row(text) @ weights.detach()).item()


held_out = reviews.preference_pairs("test", 800 if FAST else 4000, seed=9).to_list()


def accuracy(score):
    margins = [score(p["chosen"]) - score(p["rejected"]) for p in held_out]
    return sum((m > 0) + 0.5 * (m == 0) for m in margins) / len(margins)


clicks = (10, 30, 100, 300, 1000)
learned = {
    n: [accuracy(fit(reviews.preference_pairs("reward", n, seed=s).to_list())) for s in range(4)]
    for n in clicks
}
if MINE.exists() and MINE.read_text(encoding="utf-8"):
    mine = [json.loads(line) for line in MINE.read_text(encoding="utf-8").splitlines()]
    print(f"your {len(mine)} clicks: right on {accuracy(fit(mine)):.3f} of the held-out pairs")

# %%
figure = Figure(figsize=(6.4, 3.2), dpi=110, layout="constrained")
axes = figure.add_subplot()
mean = [sum(learned[n]) / 4 for n in clicks]
axes.plot(clicks, mean, "o-", color=COLOURS[0], label="one weight a word, four draws of labels")
axes.fill_between(
    clicks,
    [min(learned[n]) for n in clicks],
    [max(learned[n]) for n in clicks],
    color=COLOURS[0],
    alpha=0.2,
)
axes.axhline(0.5, color="#888888", linewidth=0.8)
axes.axhline(table[-1][4], color=COLOURS[1], ls="--", label="ceiling: what people know of people")
axes.set(
    xscale="log",
    xlabel="choices learned from",
    ylabel="right on held-out pairs",
    xticks=clicks,
    xticklabels=clicks,
)
axes.legend(fontsize=8, frameon=False)
axes.grid(alpha=0.3)
display(figure)
ridge = ridge_judge("reward")
margins = ridge([p["prompt"] for p in held_out], [p["chosen"] for p in held_out]) - ridge(
    [p["prompt"] for p in held_out], [p["rejected"] for p in held_out]
)
print(
    {n: round(m, 3) for n, m in zip(clicks, mean, strict=True)},
    f"  a ridge on all mean ratings of these films: {(margins > 0).float().mean():.3f}",
)
claim(
    "A thousand single choices teach a bag of words to rank films it was not asked about better than a coin does, ten hardly.",
    min(learned[1000]) > 0.53 and abs(mean[0] - 0.5) < 0.03 and mean[0] < mean[2] < mean[-1],
    evidence=f"10 choices {mean[0]:.3f}, 1,000 choices {mean[-1]:.3f}",
    seeds=4,
)
assert max(learned[100]) < 0.56 and 0.4 < (mean[-1] - 0.5) / ((margins > 0).float().mean() - 0.5) < 0.6

# %% [markdown]
# How many clicks does it take, then? Some hundreds before anything is to be seen; a thousand go about half of the way from a coin to a bag of words that was given *all* ratings of these films.
#
# ## What the libraries do
#
# Libraries take pairs as they are given; what a pair *is* is decided before them, and is seldom said. InstructGPT's labellers ranked 4 to 9 answers of one prompt, and all pairs of a ranking enter one batch (Ouyang et al. 2022). Llama 2's said how much better, and that became a margin in the loss. Anthropic's hh-rlhf is one choice
# between two answers a turn. UltraFeedback's pairs are made from a model's ratings: its best answer against a random other. Ties are dropped by nearly all. TRL, OpenRLHF and DeepSpeed-Chat check none of it: a pair of equal texts trains on nothing, and one prompt in both splits makes a held-out accuracy of memory.
#
# ## Exercises
#
# Each checker says *pass*, or the likely mistake in one sentence.
#
# **1. Preferred, ties left out** *(easy, 10 minutes)*. From the ratings `a` (m,) and `b` (n,) of two texts, return the probability that a random rating of `a` is above a random one of `b`, given that they differ (1/2 if they never do).
#
# *Hint:* `a[:, None] > b` compares each with each.


# %%
def share_preferring(a, b): ...  # your code


print(check.share_preferring(share_preferring))

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def share_preferring(a, b):
#     above, below = (a[:, None] > b).sum(), (a[:, None] < b).sum()
#     return above / (above + below) if above + below else torch.tensor(0.5)
# ```
# </details>
#
# **2. Alpha** *(medium, 15 minutes)*. From `ratings` (N, m), every text rated by m people, return Krippendorff's alpha for squared differences.
#
# *Hint:* the mean squared difference of two *different* numbers of a set is twice its variance with n - 1.


# %%
def interval_alpha(ratings): ...  # your code


print(check.interval_alpha(interval_alpha))

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def interval_alpha(ratings):
#     return 1 - ratings.var(1).mean() / ratings.var()
# ```
#
# Within a text the mean squared difference is $2 \cdot \mathrm{var}$ with n - 1, over all ratings likewise; the 2 cancels.
# </details>
#
# **3. The ceiling** *(medium, 15 minutes)*. `a` (N, m) and `b` (N, n) are the ratings of N pairs of texts. Take every single choice: a rating of `a` and one of `b` of the same pair, unless they are equal. Return the share of all these choices, of all pairs together, in which the means of the *other* m - 1 and n - 1 raters are in the same order; a choice where those
# means are equal counts one half. (Together: a pair with few ties has more choices and counts for more. `human_ceiling` weighs so, too.)
#
# *Hint:* the others' means are `(a.sum(1, keepdim=True) - a) / (m - 1)`, again (N, m); compare with `[:, :, None]` and `[:, None]`.


# %%
def choice_ceiling(a, b): ...  # your code


print(check.choice_ceiling(choice_ceiling))

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def choice_ceiling(a, b):
#     others = [(x.sum(1, keepdim=True) - x) / (x.shape[1] - 1) for x in (a, b)]
#     gap = others[0][:, :, None] - others[1][:, None]
#     choice = a[:, :, None] - b[:, None]
#     right = 0.5 + 0.5 * (gap * choice).sign()
#     return right[choice != 0].mean()
# ```
# </details>
#
# **4. Find the bug** *(medium, 15 minutes)*. A colleague's little reward model is right on more "held-out" pairs than ours, with the same words and the same number of choices. Look at the bars, read how the pairs are split, mend it.


# %%
def held_out_pairs(film, n):
    """(P,) True for the pairs to judge on: film (P,) is each pair's film, numbered from 0; the last n films are to be held out."""
    every = len(film)
    return torch.arange(every) % 3 == 0


drawn = [p for s in range(3) for p in reviews.preference_pairs("reward", 400, seed=s).to_list()]
drawn += drawn[:400]  # the same pairs come back, as they do when pairs are drawn from few texts
films = {t: i for i, t in enumerate(sorted({p["prompt"] for p in drawn}))}
number = torch.tensor([films[p["prompt"]] for p in drawn])
shown = {}
for name, split in (
    ("the colleague's", held_out_pairs),
    ("by film", lambda film, n: film >= len(films) - n),
):
    apart = split(number, len(films) // 3).tolist()
    score = fit([p for p, held in zip(drawn, apart, strict=True) if not held])
    judged = [
        score(p["chosen"]) > score(p["rejected"]) for p, held in zip(drawn, apart, strict=True) if held
    ]
    shown[name] = sum(judged) / len(judged)
figure = Figure(figsize=(5, 2.4), dpi=110, layout="constrained")
axes = figure.add_subplot()
axes.barh(list(shown), list(shown.values()), color=[COLOURS[1], COLOURS[0]])
axes.axvline(0.5, color="#888888", linewidth=0.8)
axes.set(xlabel="right on what is called held out", xlim=(0.4, 1))
display(figure)
print({name: round(x, 2) for name, x in shown.items()})
untouched = torch.equal(held_out_pairs(torch.arange(9), 3), torch.arange(9) % 3 == 0)
assert not untouched or shown["the colleague's"] > shown["by film"] + 0.05

# %%
print(check.held_out_pairs(held_out_pairs))

# %% [markdown]
# <details><summary>Solution</summary>
#
# Every third *pair* is held out, but its texts, and often the very pair, are trained on too. What is held out must be what will be new in use: films. `return film > film.max() - n`.
# </details>
#
# **5. Predict, then run** *(5 minutes)*. If every label were made from the *mean* ratings of both texts in place of one rating each, how would the curve of section 5 change at 1,000 choices? Write it down, take the hash away.


# %%
def by_the_means(pair):
    if pair["chosen_mean"] > pair["rejected_mean"]:
        return pair
    return pair | {"chosen": pair["rejected"], "rejected": pair["chosen"]}


cleaner = [
    accuracy(fit([by_the_means(p) for p in reviews.preference_pairs("reward", 1000, seed=s).to_list()]))
    for s in range(4)
]
# print(cleaner, learned[1000])

# %% [markdown]
# <details><summary>What you should see</summary>
#
# Hardly at all, by a hundredth or so. At a thousand choices what is missing is mostly words that were never seen, not certainty about those that were. (The held-out labels stay single ratings, so the ceiling is the same.)
# </details>

# %%
assert abs(sum(cleaner) / 4 - mean[-1]) < 0.02

# %% [markdown]
# **6. Design the experiment** *(hard, 15 minutes)*. You can pay for 3,000 ratings. One rater for each of 3,000 texts, or fifteen for each of 200? For what purpose would each be right?
#
# <details><summary>What a good answer has</summary>
#
# To train a reward model: many texts, few raters each; noise averages out over texts, and new texts bring new words. To measure (a test set, a ceiling, agreement, who disagrees): many raters on fewer texts. Usually both, from different budgets, and the measuring set first. A pilot on fifty texts gives the two variances, within and between texts, from which
# the split follows.
# </details>
#
# ## Questions
#
# <details><summary>1. Alpha is 0.80. Does that mean that people agree on 80 % of the texts?</summary>
# No: their squared disagreement is a fifth of what chance would give. Of two close texts two strangers prefer the same one hardly more often than a coin.
# </details>
# <details><summary>2. Why are ties dropped, and what is lost?</summary>
# Bradley-Terry has no tie. Lost is the information that two texts are alike: a model that separates them with confidence is not punished.
# </details>
# <details><summary>3. Why pairs within a film?</summary>
# A reward model is asked to compare answers to one prompt. Between films it could win by knowing which films are liked.
# </details>
# <details><summary>4. A reward model is right on 88 % of random pairs. The ceiling is 0.84. Congratulations?</summary>
# Look for a leak, or an interval: who reads the text can hardly know more of one random rating than who knows what everybody else said of it.
# </details>
# <details><summary>5. Who is represented in the mean of fifteen ratings?</summary>
# Those who were asked, in equal parts, strict and generous, careful and hasty. Not those who were not asked, and nobody in particular.
# </details>
#
# **References.** Hutto and Gilbert 2014 (VADER; the ratings), section 3. Krippendorff 2011. Bradley and Terry 1952. Luce 1959 and McFadden 1974 (Gumbel noise gives the logistic). Ziegler et al. 2019, sections 2.1 and 3.2. Ouyang et al. 2022, section 3.4 (labellers). Sorensen et al. 2024 (whose preferences), section 2.
