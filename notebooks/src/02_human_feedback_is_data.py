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
# After this lesson you can
#
# - measure how far people agree, and say what Krippendorff's alpha means,
# - turn ratings into preference pairs, and say why their labels are noisy,
# - say which accuracy of a reward model is good, and whose preferences it learns.
#
# **You need** PyTorch and lesson 01 (what a reward is for). About an hour to read, half an hour for
# "Going further", two hours for the exercises and the labelling.

# %%
from dataclasses import replace

import pandas as pd
import torch
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from minirlhf import evaluate, show, tasks
from minirlhf.classroom import FAST, check

# %% [markdown]
# ## 1. The idea: what a label is, and what it is not
#
# In reinforcement learning from human feedback (RLHF), a reward model learns from **preference
# pairs**: a prompt and two responses, one called *chosen* and the other *rejected*. In this course:
#
# - At least 15 people **rated** each of 10,448 short film reviews, from −4 (very negative) to 4
#   (very positive).
# - *We* decide that **preferred means more positive**.
# - The prompt is the title of a film, and the responses are two reviews of it. For the label we
#   draw *one* rating of each review. The review with the higher rating is chosen. Equal ratings give
#   no label.
#
# So nobody compared two reviews, or said which is better written. A model that learns from these
# labels learns to praise.
#
# Three of the reviews:

# %%
rated = [r for r in tasks.reviews.load_reviews() if r.ratings]
reviews = pd.DataFrame({"ratings": [sorted(r.ratings) for r in rated]})
reviews.index = [r.text for r in rated]
reviews["mean"] = [r.mean for r in rated]
reviews["deviation"] = [torch.tensor(r.ratings).float().std().item() for r in rated]
agreed = reviews.sort_values("deviation")
neutral, positive = agreed["mean"].abs() < 0.2, agreed["mean"].between(2, 3)
three = [agreed.tail(1), agreed[neutral].head(1), agreed[positive].head(1)]
show.texts(pd.concat(three).round(2))

# %% [markdown]
# The *deviation* is the standard deviation of a review's ratings: how far people disagree about it.
#
# - **The first review**, a joke about a bad remake, has the highest deviation of all. Six people
#   rated it as negative and nine as positive.
# - **The second review** says nothing good or bad, and nearly all people gave it 0.
# - **The third review** is praise, and people agree.
#
# The first two have almost the same mean. It does not say whether people agreed.

# %% [markdown]
# ## 2. Where people disagree
#
# The next figure shows the average deviation of the reviews with the same mean rating, rounded to half
# a point. The second line is a comparison: simulated people who disagree *equally* about all reviews.
# A simulated rating is the mean of the review plus normal noise, rounded, and cut off at −4 and 4. The
# deviation of the noise, 1.2, is that of the people in the middle.
#
# **Predict.** About which reviews do people disagree most: complaints, praise, or those in the
# middle?

# %% tags=["predict"]
torch.manual_seed(0)
means = torch.tensor(reviews["mean"].to_numpy())
simulated = means[:, None] + 1.2 * torch.randn(len(means), 18)
simulated = simulated.round().clamp(-4, 4)
halves = reviews["mean"].mul(2).round().div(2).clip(-3.5, 3.5)
people = reviews["deviation"].groupby(halves).mean()
equal = pd.Series(simulated.std(1)).groupby(halves.to_numpy()).mean()
show.lines(
    {"people": people, "simulated, equal noise": equal},
    people.index,
    xlabel="mean rating of a review",
    ylabel="deviation of its ratings",
    ylim=(0, 1.5),
)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# - **People** disagree most about reviews in the middle. The deviation is 1.24 at a mean of 0, and
#   0.92 and 0.80 at −2 and 2.
# - **The simulated people** have a flat line, which falls only near the ends of the scale. So these
#   ends do not make the peak.
# </details>

# %% [markdown]
# ## 3. One number for agreement: Krippendorff's alpha
#
# Is a deviation of 1 little or much? Compare it with chance. This is **Krippendorff's alpha**:
#
# $$ \alpha = 1 - \frac{D_o}{D_e} . $$
#
# - $D_o$ is the *observed* disagreement: the mean squared difference of a rating from the others of
#   the *same* review, averaged over all ratings.
# - $D_e$ is the disagreement that we *expect* by chance: the mean squared difference of *any* two
#   ratings.
#
# In words: people who rate at random disagree by $D_e$. Alpha is the share of $D_e$ that our people
# avoid. If all agree about every review, alpha is 1.
#
# **By hand.** Two people gave review A a 2 and a 1, and review B a −1 and a 0. The squared
# difference is 1 within A and 1 within B, so $D_o = 1$. For $D_e$ we take all six pairs of ratings:
#
# | pair | 2 and 1 | 2 and 0 | 2 and −1 | 1 and 0 | 1 and −1 | 0 and −1 | mean |
# |---|---|---|---|---|---|---|---|
# | squared difference | 1 | 4 | 9 | 1 | 4 | 1 | 20/6 = 10/3 |
#
# So $\alpha = 1 - 1 / (10/3) = 0.7$.
#
# **Why is chance 0?** There are three ways to deal these four ratings to two reviews:
#
# | | A | B | $D_o$ | alpha |
# |---|---|---|---|---|
# | deal I | 2, 1 | −1, 0 | (1 + 1) / 2 = 1 | 0.7 |
# | deal II | 2, 0 | 1, −1 | (4 + 4) / 2 = 4 | −0.2 |
# | deal III | 2, −1 | 1, 0 | (9 + 1) / 2 = 5 | −0.5 |
#
# The mean of the three $D_o$ is 10/3, exactly $D_e$. So random deals have an alpha of 0 on average.

# %%
for a, b, alpha in (
    ((2, 1), (-1, 0), 0.7),
    ((2, 0), (1, -1), -0.2),
    ((2, -1), (1, 0), -0.5),
):
    assert abs(tasks.krippendorff_alpha([a, b]) - alpha) < 1e-9

# %% [markdown]
# **Predict** alpha for all reviews, and for the 1,412 *middle reviews*, whose mean is above −1 and
# below 1. Which changes more between the two, $D_o$ or $D_e$?

# %% tags=["predict"]
middle = reviews[reviews["mean"].abs() < 1]
table = {}
for name, some in {"all reviews": reviews, "middle reviews": middle}.items():
    observed, expected = tasks.disagreements(some["ratings"])
    table[name] = {"D_o": observed, "D_e": expected, "alpha": 1 - observed / expected}
pd.DataFrame(table).T.round(2)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# - *All reviews*: $D_o$ is 1.85 and $D_e$ is 9.17. So alpha is 0.80: a fifth of the chance
#   disagreement is left.
# - *Middle reviews*: $D_o$ rises to 2.89. But $D_e$ changes more: it falls to 3.55. We chose reviews
#   with means near 0, so two ratings of *different* middle reviews differ little more than two of the same
#   one. Alpha is 0.19.
# </details>
#
# **Which alpha is good enough?** Krippendorff's rule of thumb: rely on ratings with an alpha of 0.8
# or more, and draw only tentative conclusions from 0.67 on. So our ratings, with 0.798, are just
# below the limit. A reward model often compares close responses, so measure alpha on *such*
# responses.

# %% [markdown]
# ## 4. From ratings to pairs
#
# **By hand.** People gave review A a 3 and a 1, and review B a 2 and a 1. For the label of the pair
# we draw one rating of each:
#
# | | B: 2 | B: 1 |
# |---|---|---|
# | first rating of A: 3 | A is chosen | A is chosen |
# | second rating of A: 1 | B is chosen | tie |
#
# One of the four draws is a **tie**. It is dropped, because the usual loss of a reward model needs
# a winner. Two of the other three choose A, so the label says A with probability 2/3. It is
# **noisy**: it depends on whose ratings we happened to draw.
#
# Two rules hold for all pairs:
#
# - **Both reviews are about the same film.** Otherwise a reward model could win by knowing which
#   films people like.
# - **A film is in one split only.** We test on films that no training has seen (exercise 4).
#
# The splits of the 507 films: *reward* (203) for reward models, *gold* (203) for the judge of later
# lessons, *val* (25) for choosing settings, and *test* (76) for results.
#
# Two drawn pairs: the last whose label agrees with the means, and the first whose label goes against
# them by more than a point.

# %%
drawn = tasks.reviews.preference_pairs("reward", 2000, seed=0).to_pandas()
against = drawn["chosen_mean"] < drawn["rejected_mean"]
surprising = drawn["chosen_mean"] < drawn["rejected_mean"] - 1
two = pd.concat([drawn[~against].tail(1), drawn[surprising].head(1)]).round(1)
two.index = two["prompt"].str.strip()
columns = ["chosen", "chosen_mean", "rejected", "rejected_mean"]
print(f"labels that go against the means: {against.mean():.0%}")
show.texts(two[columns])

# %% [markdown]
# In the second pair, we drew a higher rating of the review that most people rated low.
# Of these 2,000 labels, 13 % go against the means.
#
# ## 5. The human ceiling
#
# How often can a reward model be right about such labels? Think of somebody who knows what all
# *other* people said, and predicts that the review with the higher mean is chosen. How often this is
# right is the **human ceiling**.
#
# **By hand.** Three people gave review A the ratings 3, 3 and 1, and two gave review B 2 and 0.
# Each row is a label that can be drawn. The *others' means* leave out its two ratings, which would
# help to predict themselves. The **gap** is the difference of the others' means.
#
# | | from | chosen | others' mean of A | others' mean of B | gap | they predict | right |
# |---|---|---|---|---|---|---|---|
# | label I | 3 and 2 (twice) | A | (3 + 1) / 2 = 2 | 0 | 2 | A | 1 |
# | label II | 3 and 0 (twice) | A | 2 | 2 | 0 | nothing | 1/2 |
# | label III | 1 and 2 | B | 3 | 0 | 3 | A | 0 |
# | label IV | 1 and 0 | A | 3 | 2 | 1 | A | 1 |
#
# Together 1 + 1 + 1/2 + 1/2 + 0 + 1 = 4 of 6 labels. The ceiling of this pair is 2/3.

# %%
a = tasks.reviews.Review("A", "a film", "reward", ratings=(3, 3, 1))
b = tasks.reviews.Review("B", "a film", "reward", ratings=(2, 0))
assert abs(tasks.human_ceiling([(a, b)]) - 2 / 3) < 1e-6
assert tasks.preference_share((3, 1), (2, 1)) == 2 / 3  # the table of section 4

# %% [markdown]
# Now the 48,466 pairs of the 203 reward films. A label is a random pair, and then one rating of each
# review. The figure shows the ceiling by gap, and for all labels.
#
# **Predict.**
#
# - What is the ceiling where the gap is less than half a point?
# - The means of *all* ratings are right on 0.86 of all labels. (In the sample of section 4 it was
#   0.87.) The ceiling of all labels is lower. Why?

# %% tags=["predict"]
pairs = tasks.reviews.pairs_within_films("reward")
ceilings = {}
for low, high in tasks.reviews.GAP_BANDS:  # 0 to 0.5, 0.5 to 1, and so on
    ceilings[f"gap {low:g} to {high:g}"] = tasks.human_ceiling(pairs, low, high)
ceilings["all labels"] = tasks.human_ceiling(pairs)
show.bars(ceilings, label="human ceiling", reference={"a coin": 0.5}, limits=(0, 1))

# %% [markdown]
# <details><summary>What you should see</summary>
#
# - *Gaps below half a point*: 0.60, a little better than a coin (0.50). From a gap of 2 on, the ceiling
#   is 0.97 and more. So the noise is in the close pairs.
# - *All labels*: 0.85. The means of all ratings are right more often because they contain the two
#   ratings of the label.
# </details>
#
# **It is no strict bound.** The others are about 18 people for each review, so their means are
# noisy, too. With 4 others the ceiling is 0.82, and with 8 it is 0.84. So thousands would be right a
# little more often.
#
# Compare an accuracy with the ceiling of the same films. The reward model of lesson 08 is right on
# 0.64 of the labels of the *test* films. The ceiling there is 0.84. So the model is wrong on 0.36, and
# the others on 0.16. The difference is more than half of the model's errors.

# %% [markdown]
# ## 6. Does the Bradley-Terry model fit our people?
#
# A reward model gives each response a score $r$. It assumes the **Bradley-Terry model**: people
# prefer $a$ to $b$, written $a \succ b$, with the probability
#
# $$ P(a \succ b) = \frac{e^{r_a}}{e^{r_a} + e^{r_b}} = \sigma(r_a - r_b) . $$
#
# ($\sigma$ is the sigmoid of lesson 00.) The **odds** are
# $P(a \succ b) / P(b \succ a) = e^{r_a - r_b}$. Whatever the scores are, **odds multiply**: if $a$
# beats $b$ 3 to 1, and $b$ beats $c$ 3 to 1, then $a$ beats $c$ 9 to 1.
#
# **By hand.** Take three reviews of the film "Analyze That". We split the people who rated them into
# two halves:
#
# - The *first half* says which reviews are one step apart. For a step of 1, their means differ by
#   0.75 to 1.25.
# - The *second half* says how often each review is preferred.
#
# Why two halves? Suppose that a review got high ratings by chance. The same people would put it a
# step higher, and would also prefer it.
#
# | | review | mean of the first half | ratings of the second half |
# |---|---|---|---|
# | $a$ | The movie bounces all over the map. | −0.88 | −1, −1, −2, −2, −2, −2, −2, −2 |
# | $b$ | Just a collection of this and that [...] | −1.75 | −1, −2, −2, −2, −2, −2, −3 |
# | $c$ | Painfully padded. | −2.62 | −1, −2, −2, −2, −3, −3, −3, −3 |
#
# We compare each rating of $a$ with each of $b$: $a$ is higher 18 times, and $b$ 6 times. So the odds
# are 3. Then $b$ and $c$: 27 times and 9 times, 3 again. So Bradley-Terry predicts 9 for $a$ and
# $c$. But it is 38 times and 6 times, odds of only 6.3.

# %%
ratings_a = (-1, -1, -2, -2, -2, -2, -2, -2)
ratings_b = (-1, -2, -2, -2, -2, -2, -3)
ratings_c = (-1, -2, -2, -2, -3, -3, -3, -3)
assert tasks.preference_share(ratings_a, ratings_b) == 18 / (18 + 6)
assert tasks.preference_share(ratings_b, ratings_c) == 27 / (27 + 9)
assert tasks.preference_share(ratings_a, ratings_c) == 38 / (38 + 6)

# %% [markdown]
# **All triples.** One triple may be chance. So we take all triples of all 507 films, for steps of
# 0.5, 1, 1.5 and 2 points (0.25 more or less), and add up the shares of comparisons that are won. From
# the sums we compute odds, and the **ratio** of the odds and their prediction:
#
# $$ \text{ratio} = \frac{\text{odds}(a, c)}{\text{odds}(a, b) \cdot \text{odds}(b, c)} . $$
#
# Its **95 % interval**: we draw the 507 films 500 times, with replacement, and 95 % of the
# results lie in it.
#
# **The control** is simulated people. What they *feel* follows Bradley-Terry: the mean of the review
# plus random noise ("Going further"). What they *say* is on our people's scale: the nearest whole
# number from −4 to 4. Their ties are dropped, too.


# %%
def with_bradley_terry(review):
    """A review with simulated ratings. Before rounding, Bradley-Terry is true."""
    noise = -(-torch.rand(len(review.ratings)).log()).log() - 0.577  # Gumbel, mean 0
    # 0.75: for a step of a point, the odds are then about as large as our people's
    felt = review.mean + 0.75 * noise
    return replace(review, ratings=tuple(felt.round().clamp(-4, 4).tolist()))


torch.manual_seed(0)
simulated = [with_bradley_terry(review) for review in rated]
raters = {"people": rated, "control: Bradley-Terry, rounded": simulated}

# %% [markdown]
# **Predict.** In the example the ratio is 0.7, for steps of about 1. What is it over all triples? Is
# it nearer to 1 for smaller or for larger steps? And is it 1 for the control?

# %% tags=["predict"]
steps, tables = (0.5, 1.0, 1.5, 2.0), {}
for name, some in raters.items():
    films = pd.Series(some).groupby([review.movie for review in some]).agg(list)
    rows = tasks.odds_of_steps(films, steps, splits=2)  # two random splits in halves
    tables[name] = pd.DataFrame(rows).set_index("step")
pd.concat(tables).round(2)

# %% tags=["predict"]
show.lines(
    {name: table["ratio"] for name, table in tables.items()},
    steps,
    bands={name: (table["low"], table["high"]) for name, table in tables.items()},
    xlabel="step, in points of the mean rating",
    ylabel="odds / predicted odds",
    reference={"odds multiply": 1.0},
)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# - *Half a point.* The ratio is 0.96, and the control's is 0.99. It must come near 1 for small steps:
#   equal reviews have odds of 1, and 1 × 1 = 1.
# - *A point.* The odds are 12 instead of 14, a ratio of 0.85. The control has 0.92. So rounding, with
#   its dropped ties, makes about half of what is missing.
# - *Two points.* The ratio falls to 0.64, with an interval of 0.56 to 0.72. The control's ratio is
#   0.96, and that of five more draws of it 0.81 to 0.92.
#
# At each step the people are below the control. So rounding alone does not make the fall to 0.64. It makes a
# part of it: *without* rounding, simulated people have 1.22 at two points. (It is more than 1 because of
# an error that "Going further" explains.)
# </details>
#
# So Bradley-Terry is nearly true for close reviews. For distant ones the odds are smaller than it
# predicts, partly because of the scale, partly because of the people. Their score difference is only
# a rough number. ("Going further" looks for the causes, and shows that much depends on the noise.)

# %% [markdown]
# ## 7. Whose preferences are averaged away?
#
# It depends on how the answers are combined. Three people rate review A with 4, −1 and −1, and
# review B with 0, 0 and 0.
#
# | | A | B | preferred |
# |---|---|---|---|
# | mean rating | 0.67 | 0 | A |
# | share of the labels | 1/3 | 2/3 | B |
#
# The mean counts *how much* people care. Labels count *heads*: B is chosen in 2/3 of them. A reward
# model sees only labels, so it learns what the majority prefers.
#
# **Predict.** In how many of our pairs do the two rules prefer different reviews: among pairs whose
# means (of all ratings) differ by less than half a point, and among the others?

# %% tags=["predict"]
for low, high in ((0, 0.5), (0.5, 8)):
    some = tasks.reviews.pairs_within_films("reward", low, high)
    different = 0
    for a, b in some:
        heads = tasks.preference_share(a.ratings, b.ratings) - 0.5
        different += heads * (a.mean - b.mean) < 0
    share = different / len(some)
    print(f"means differ by {low} to {high}: {share:.0%} of {len(some)} pairs")

# %% [markdown]
# <details><summary>What you should see</summary>
#
# They differ in 9 % of the close pairs, and in almost none of the others. Why so few? The rules differ
# only if a few strong ratings pull the mean of one review past that of the other. But for 86 % of the
# reviews, the mean is less than half a point from the median.
# </details>
#
# So the two rules mostly agree. But both lose the **minority**. The joke of section 1 becomes
# "slightly positive", although most of its readers were far from 0. So write down whom you asked, and
# how you combined the answers.

# %% [markdown]
# ## 8. Label pairs yourself
#
# The next cell shows 30 pairs of reviews, and six of them again with the sides swapped. Each click
# is saved at once, in the format that `minirlhf reward` and the library TRL read.

# %% tags=["exercise"]
to_label = tasks.pairs_to_label(count=30, repeats=6, seed=0)
session = tasks.LabelSession(to_label, "../out/labels/me.jsonl")
show.label_pairs(session)

# %% [markdown]
# The next cell compares your labels with the *crowd* (the review with the higher mean rating), and
# with *yourself* (the pairs that came twice). `agreement` leaves out ties, and `low` to `high` is its
# 95 % interval.

# %% tags=["exercise"]
mine = tasks.read_labels(session.path) if session.done else None
"no labels yet" if mine is None else evaluate.label_agreement(mine).round(2)

# %% [markdown]
# For comparison: a simulated person drew one rating of each review. Of 23 labels (seven were ties), 19
# agreed with the crowd: an interval of 0.63 to 0.93. So 30 pairs say little about one person.
#
# **How many clicks does a reward model need?** We train a very small one: every word has a score,
# and a review has the sum of its words' scores. Bradley-Terry is then a logistic regression on the
# difference of the word counts.


# %% tags=["shared"]
def learn(chosen, rejected):
    """A Bradley-Terry model with a score per word: a function of texts."""
    words = CountVectorizer(token_pattern=r"\w+").fit([*chosen, *rejected])
    difference = words.transform(chosen) - words.transform(rejected)
    # turn every second pair around: the regression needs two classes
    sign = torch.tensor([1, -1]).repeat(len(chosen))[: len(chosen)].numpy()
    model = LogisticRegression(fit_intercept=False, max_iter=300)
    model.fit(difference.multiply(sign[:, None]).tocsr(), sign)
    # decision_function: the sum of the scores of a text's words
    return lambda texts: model.decision_function(words.transform(texts))


def right_on(pairs, score):
    """The share of pairs whose chosen review has the higher score; equal: half."""
    difference = score(pairs["chosen"]) - score(pairs["rejected"])
    return ((difference > 0) + 0.5 * (difference == 0)).mean()


# %% [markdown]
# The next figure shows how often the model is right on 4,000 labels of the 76 test films. The clicks
# are simulated, four draws of each number.
#
# **Predict.** How often is it right after 100 clicks, and after 1,000?

# %% tags=["predict"]
clicks = (10, 100) if FAST else (10, 30, 100, 300, 1000)
new = tasks.reviews.preference_pairs("test", 4000, seed=9).to_pandas()
curve = torch.zeros(1 if FAST else 4, len(clicks))  # draws of the clicks
for seed in range(len(curve)):
    for i, count in enumerate(clicks):
        drawn = tasks.reviews.preference_pairs("reward", count, seed=seed).to_pandas()
        curve[seed, i] = right_on(new, learn(drawn["chosen"], drawn["rejected"]))
show.lines(
    {"simulated clicks": curve},
    clicks,
    log="x",
    xlabel="clicks",
    ylabel="right on labels of new films",
    reference={"a coin": 0.5, "human ceiling": 0.84},
)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# - *Ten to a hundred clicks*: 51 %, 50 % and 52 %. We cannot tell this from a coin: the interval of
#   the 52 % is 50 % to 53 % (Student's t, four draws).
# - *Three hundred clicks*: 54 %, with an interval of 53 % to 56 %. That is more than a coin.
# - *A thousand clicks*: 59 %, far below the ceiling.
#
# Why so many? A hundred pairs have about 1,500 different words: too many scores for 100 labels. And
# 32 % of the words of new reviews are not among them.
# </details>
#
# Your own clicks, if you made some:

# %% tags=["exercise"]
if mine is not None and mine["chosen"].count() > 1:
    own = mine.dropna(subset="chosen")
    share = right_on(new, learn(own["chosen"], own["rejected"]))
    print(f"{len(own)} clicks of yours: right on {share:.0%}")

# %% [markdown]
# ## What to remember
#
# - Here *preferred* means "more positive".
# - Alpha compares the disagreement within a review with chance.
# - Labels of close pairs are mostly noise. Compare an accuracy with the human ceiling of its films.
# - Bradley-Terry says that odds multiply. For close reviews this is nearly true. For distant ones it
#   is not, and rounding is only a part of the cause.
# - Labels count heads, means count how much people care. Both forget the minority.
#
# ## Exercises
#
# Solutions are in `solutions/02_human_feedback_is_data.ipynb`.

# %% [markdown] tags=["exercise"]
# **1. The share of the labels** *(easy, 10 minutes)*. A warm-up: the table of section 4 as code. `a`
# (m,) and `b` (n,) are the ratings of two reviews. Return the probability that a label chooses
# review a: a random rating of `a` against a random one of `b`, ties left out. If all of them tie,
# return 0.5.
#
# *Hint:* `a[:, None]` and `b` compare every rating with every other.


# %% tags=["exercise"]
def share_preferring(a, b): ...  # your code


check.share_preferring(share_preferring)


# %% tags=["solution"]
def share_preferring(a, b):
    above, below = (a[:, None] > b).sum(), (a[:, None] < b).sum()
    return above / (above + below) if above + below else torch.tensor(0.5)


check.share_preferring(share_preferring)

# %% [markdown] tags=["exercise"]
# **2. Alpha in one line** *(medium, 20 minutes)*. `ratings` (N, m), floats, has a row for each review
# and a column for each person. Return Krippendorff's alpha, one number, without a loop over pairs.
#
# *Hint:* take two numbers, 2 and 6. What is their squared difference, and what is their variance?
# Then try three numbers. `torch.var` divides by n − 1.


# %% tags=["exercise"]
def interval_alpha(ratings): ...  # your code


check.interval_alpha(interval_alpha)


# %% [markdown] tags=["solution"]
# The mean squared difference of two different numbers of a set is twice its variance, if the
# variance divides by n − 1. (2 and 6: the squared difference is 16 and the variance 8.) So $D_o$ is
# twice the mean variance of the rows, and $D_e$ is twice the variance of all ratings. The 2
# cancels.


# %% tags=["solution"]
def interval_alpha(ratings):
    return 1 - ratings.var(1).mean() / ratings.var()


check.interval_alpha(interval_alpha)

# %% [markdown] tags=["exercise"]
# **3. The human ceiling** *(hard, 40 minutes)*. `a` (N, m) and `b` (N, n) are the ratings of N
# pairs of reviews, as integers (`mean` needs floats). A *label* is a rating of `a` and a rating of
# `b` of the same pair, unless they are equal. Return the share of all labels, of all pairs thrown
# together, that the other m − 1 and n − 1 people predict. Where their means are equal, a label
# counts one half.
#
# *Hint:* `a.sum(1, keepdim=True)` is the sum of all ratings of each review. How do you get from
# there to the mean without each of them? For the labels you need the shape (N, m, n):
# `[:, :, None]` and `[:, None]`. Try the table of section 5.


# %% tags=["exercise"]
def label_ceiling(a, b): ...  # your code


check.label_ceiling(label_ceiling)


# %% [markdown] tags=["solution"]
# All pairs have the same m and n here. So each combination of two ratings has the same weight, and the
# result is also the ceiling of section 5, where we draw a pair first, and then its two ratings.


# %% tags=["solution"]
def label_ceiling(a, b):
    means = [(x.sum(1, keepdim=True) - x) / (x.shape[1] - 1) for x in (a, b)]
    gap = means[0][:, :, None] - means[1][:, None]
    label = a[:, :, None] - b[:, None]
    right = 0.5 + 0.5 * (gap * label).sign()
    return right[label != 0].mean()


check.label_ceiling(label_ceiling)

# %% [markdown] tags=["exercise"]
# **4. Find the bug** *(medium, 20 minutes)*. A colleague has 3,000 labelled pairs of 24 of the *val*
# films (no pair of the 25th was drawn). She trains the model of section 8 on a part of them, and holds
# out all pairs of the last eight films. The last cell draws two curves: how often the model is right
# on her held-out pairs, and on pairs of films that are in none of her data. The first should not be
# far above the second. They need not be equal, because eight films are few. What is wrong in
# `held_out_pairs`? Mend it, run the checker, and draw the curves again.


# %% tags=["exercise"]
def held_out_pairs(film, n):
    """(P,) true for pairs of the last n films. film (P,): films, numbered from 0."""
    order = film.argsort(stable=True)  # the pairs, sorted by film
    size = film.bincount()[-n:].sum()  # how many pairs the last n films have
    last = torch.arange(len(film)) >= len(film) - size
    return last[order]


check.held_out_pairs(held_out_pairs)


# %% [markdown] tags=["solution"]
# `last` belongs to the *sorted* pairs: its place 0 is the pair `order[0]`. So its values have to be
# written to these places: `held[order] = last`. The function reads from them instead, and marks
# other pairs. Almost every film is then on both sides, with the same reviews in other pairs. The
# model has learned these reviews by heart.
#
# Hold out what will be new later: whole films.


# %% tags=["solution"]
def held_out_pairs(film, n):
    return film > film.max() - n


check.held_out_pairs(held_out_pairs)


# %% tags=["exercise", "solution"]
def two_curves(sizes=(100, 300, 1000, 2000)):
    """How often the model is right: on the held-out pairs, and on films never seen."""
    hers = tasks.reviews.preference_pairs("val", 3000, seed=0).to_pandas()
    film = torch.tensor(hers["prompt"].factorize(sort=True)[0])
    held = held_out_pairs(film, 8).numpy()
    unseen = tasks.reviews.preference_pairs("test", 2000, seed=1).to_pandas()
    curves = {"her held-out pairs": [], "films never seen": []}
    for size in sizes:
        drawn = hers[~held][:size]
        model = learn(drawn["chosen"], drawn["rejected"])
        for name, pairs in zip(curves, (hers[held], unseen)):
            curves[name].append(right_on(pairs, model))
    return curves


show.lines(
    two_curves(),
    (100, 300, 1000, 2000),
    log="x",
    xlabel="pairs that the model learns from",
    ylabel="right",
    reference={"a coin": 0.5},
    ylim=(0.45, 0.85),
)

# %% [markdown] tags=["exercise"]
# <details><summary>What you should see</summary>
#
# - *With the bug*, the model is right on 59 % of her held-out pairs after 100 pairs, and on 83 %
#   after 2,000. On films never seen it is right on less than 60 %.
# - *Without it*, both curves stay below 60 %. Hers is now the lower one at first, by up to 4 points.
#   That is no sign of a bug: films differ, and eight are few. We held out eight of her films at random,
#   20 times. Hers minus the other was −3 points on average, with a standard deviation of 3 points.
# </details>

# %% [markdown] tags=["exercise"]
# **5. Predict, then run** *(easy, 15 minutes)*. Suppose that each of 1,000 labels came from the
# *mean* ratings, not from two single ratings. Then about 13 % of the labels would turn around. How
# much better would the model of section 8 be on new films? Write down a number. The cell shows four
# draws of the labels. Is the difference more than chance?

# %% tags=["exercise", "solution"]
unseen = tasks.reviews.preference_pairs("test", 4000, seed=9).to_pandas()
table = {"single ratings": [], "mean ratings": []}
for seed in range(1 if FAST else 4):
    pairs = tasks.reviews.preference_pairs("reward", 1000, seed=seed).to_pandas()
    turned = pairs["chosen_mean"] < pairs["rejected_mean"]
    chosen = pairs["chosen"].where(~turned, pairs["rejected"])
    rejected = pairs["rejected"].where(~turned, pairs["chosen"])
    single = right_on(unseen, learn(pairs["chosen"], pairs["rejected"]))
    table["single ratings"].append(single)
    table["mean ratings"].append(right_on(unseen, learn(chosen, rejected)))
table = pd.DataFrame(table)
table["difference"] = table["mean ratings"] - table["single ratings"]
table.round(3)

# %% [markdown] tags=["exercise"]
# <details><summary>What you should see</summary>
#
# Hardly better, if at all. The differences are −0.002, 0.013, 0.003 and 0.006. Their mean is 0.005,
# and the standard error of this mean is 0.003 (their standard deviation divided by $\sqrt{4}$). With
# so few draws, the 95 % interval is the mean ± 3.18 standard errors (Student's t distribution): −0.005
# to 0.015. So we cannot tell the difference from 0.
#
# Why does it help so little? The labels that turn are those of close pairs. Their means differ by 0.55 on
# average, those of the other labels by 2.21. So the two reviews are about equally positive, and the
# label says little about words, whichever way it points. And noise is not the main problem: 1,000
# labels must set more than 6,000 scores of words. (The labels of the test are still single ratings, so
# the ceiling is the same.)
# </details>

# %% [markdown] tags=["exercise"]
# **6. Design the experiment** *(hard, 15 minutes)*. You can pay for 3,000 ratings. Would you ask
# one person about each of 3,000 responses, or fifteen people about each of 200? For which purpose
# would each be right? Write a plan of three sentences, and compare it with the solution.
#
# *Hint:* which numbers of this lesson can you not compute with one rating per response? And what
# does a second rating of the *same* response tell a reward model about new words?

# %% [markdown] tags=["solution"]
# A good answer has three parts.
#
# - **To train a reward model:** many responses, with one person each. The noise averages out over
#   the responses, and new responses bring new words.
# - **To measure** (a test set, the ceiling, alpha, who disagrees): several people for each of fewer
#   responses. With one rating each, none of this can be computed. With fifteen ratings and a
#   deviation of 1, the standard error of a mean is $1 / \sqrt{15}$, or 0.26.
# - **First a pilot:** for example fifteen people for each of 50 responses. It shows how much of the
#   variance is within responses and how much between them. The split of the money follows from
#   that.

# %% [markdown]
# ## Questions
#
# <details><summary>1. Alpha is 0.80. Do people agree on 80 % of the reviews?</summary>
#
# No. Their squared disagreement is a fifth of what chance gives. Where the gap is below half a point,
# the other people's means predict only 60 % of the labels.
# </details>
#
# <details><summary>2. Why are ties dropped, and what is lost?</summary>
#
# The Bradley-Terry model has no tie. What is lost: that two responses are about equal. A reward
# model that is very sure about such a pair is never told so. On the reward films, 18 % of all draws
# are ties.
# </details>
#
# <details><summary>3. Why do we compare only reviews of the same film?</summary>
#
# A reward model is used to compare responses to one prompt. Between films it could win by knowing
# which films are liked.
# </details>
#
# <details><summary>4. A reward model is right on 88 % of the labels of the test films. The ceiling there is 84 %. Is it better than people?</summary>
#
# First look for the fault of exercise 4, and compute an interval. It is not impossible: the ceiling is no
# strict bound. But on the reward films, eight people instead of four raised it by 2 points, and 18
# instead of eight by 1 point. The gains shrink, so more people will hardly raise it by four points.
# </details>
#
# <details><summary>5. Whom does the mean of fifteen ratings represent?</summary>
#
# Those who were asked, in equal parts: careful and hasty, those who use the ends of the scale and
# those who do not. It does not represent those who were not asked.
# </details>
#
# ## Going further
#
# **Do people avoid the 0?** Near a mean of 0, our people say −1 (27 %) and 1 (28 %) more often than 0
# (24 %). The simulated people of section 2 say 0 most often (32 %). That makes a part of the peak, but
# not all. Near a mean of 0, 21 % of the ratings are two points or more away from 0. Near a mean of −2,
# only 7 % are that far away from −2, and near a mean of 2, only 4 % from 2.
#
# **Where Bradley-Terry comes from.** Suppose that a person feels $u = r + \text{noise}$ about each
# response, and prefers the response with the larger $u$. If the noise has a Gumbel distribution, the
# difference of two noises has a logistic distribution. Then $P(a \succ b) = \sigma(r_a - r_b)$ exactly.
# With normal noise the formula is nearly the same in the middle.
#
# The simulated people of section 6 feel the mean rating plus Gumbel noise of size 0.75. So their score
# $r$ is the mean rating divided by 0.75.
#
# **Why does rounding lower the ratio?** Rounded ratings tie, and ties are dropped. Take three reviews
# for which $e^r$ is 9, 3 and 1. If nobody ties, the odds are 3, 3 and 9. Now suppose that people say
# "higher" only if they feel a clear difference, and call the rest a tie. For example, let $a$ be higher
# with the probability $e^{r_a} / (e^{r_a} + 2 e^{r_b})$:
#
# | $e^r$ | the first is higher | the second is higher | tie | odds without the ties |
# |---|---|---|---|---|
# | a close pair, 3 and 1 | 3 / (3 + 2) = 0.60 | 1 / (1 + 6) = 0.14 | 0.26 | 4.2 |
# | a distant pair, 9 and 1 | 9 / (9 + 2) = 0.82 | 1 / (1 + 18) = 0.05 | 0.13 | 15.5 |
#
# Dropping the ties raises all odds, above all those of close reviews, which tie more often. The odds
# of 3 become 4.2. So Bradley-Terry now predicts 4.2 × 4.2 = 17.6 instead of 9. But the odds of 9 become
# only 15.5. The ratio is 0.88.
#
# **An error upwards.** The first half is about nine people, so its means have errors. Say that they put
# $b$ too low in one triple, and too high in another:
#
# | | odds of $a$ and $b$ | odds of $b$ and $c$ | odds of $a$ and $c$ |
# |---|---|---|---|
# | one triple | 2 | 8 | 16 |
# | another triple | 8 | 2 | 16 |
# | shares added | (2/3 + 8/9) / (1/3 + 1/9) = 3.5 | (8/9 + 2/3) / (1/9 + 1/3) = 3.5 | (16/17 + 16/17) / (1/17 + 1/17) = 16 |
#
# In each triple odds multiply. But after adding up, the product is 12.25, and 16 is 1.31 times as
# much. Without rounding and without this error Bradley-Terry fits: if the steps are those of the means
# that the simulated ratings were made from, the exact ratios lie between 0.99 and 1.00.
#
# **Why do our people not fit exactly?** We gave the simulated people other noise, and measured again.
# Each row changes one thing in the row before it.
#
# | simulated people | ratio, a step of 1 | ratio, a step of 2 |
# |---|---|---|
# | Gumbel noise, the same for all reviews, *not* rounded: Bradley-Terry is true | 1.00 | 1.22 |
# | and rounded, ties dropped (the control) | 0.92 | 0.86 |
# | and the noise of each review has the deviation of its ratings | 0.81 | 0.93 |
# | and one rating in a hundred is a random number from −4 to 4 | 0.81 | 0.63 |
# | **our people** | 0.85 | 0.64 |
#
# (Means of five draws of the simulated people. Differences below 0.02 for a step of 1, and below 0.1
# for a step of 2, may be chance.)
#
# - For a small step, of 1, *rounding* and *unequal noise* are enough. Bradley-Terry has a score for each
#   review, and no place for how far people disagree about it. (The ratio is even below our people's.
#   We measured each deviation with about 19 ratings, so the deviations are too unequal.)
# - For a large step, of 2, they are not enough. A few *careless ratings* would be: they matter most where
#   almost everybody agrees.
#
# So these three causes can explain our people. They need not be the true ones. One in a hundred was a
# guess. And the kind of noise matters: with normal noise the control has 1.04 and 2.52.
#
# **How large is the error?** As a *probability* it is tiny. For a step of 1, odds of 14 are 93 %, and
# odds of 12 are 92 %. As a *score* it is larger, and grows with the step. For a step of 2,
# Bradley-Terry predicts odds of 198. That is a score difference of $\ln 198$, or 5.3. The people's odds
# are 127, a score difference of 4.8.
#
# **Why the ceiling leaves out the two ratings.** A simpler way: find the review that most labels of a
# pair choose, and count the labels that choose it. We tried both ways on 3,000 pairs whose ratings
# were dealt out at random. Nobody can predict them, so a ceiling must be 0.50. The simpler way gives
# 0.59: one review is ahead by chance, and the same chance is in the labels. Without the two ratings of
# the label we get 0.50.
#
# The gap leaves them out for the same reason. For example, A has the ratings 3 and 1, and B has 1
# and 3. Both means are 2. Draw the 3 of A and the 1 of B: the label says A. The others gave A a 1 and
# B a 3, so they predict B: wrong. Of the random pairs, take those whose means of *all*
# ratings differ by less than 0.5. There the others are right on only 0.36.
#
# **What helps the reward model of lesson 08?** More labels: it was right on 62 % of the test labels
# after training on 6,400 labels, and on 64 % after 25,600. More people for each review may help, too: a
# model that only counts words, but learned from the mean of all ratings, is right on 68 %.
#
# **Chance (section 7).** About half of the 9 % may be chance: simulated people with normal noise, for
# whom the two rules agree, differ in 5 %.
#
# **People use the scale differently.** The data has no names. But it comes in blocks of 30 reviews,
# and we guess that the $k$-th rating of every review of a block is by the same person. Suppose that
# each person has a *level*: some rate these reviews higher than others do, and some lower. The rest
# is the person's *opinion* of this review. Four people rate A and B. The mean of A is 1, and that
# of B is 2:
#
# | person | 1 | 2 | 3 | 4 |
# |---|---|---|---|---|
# | level | 1 | 1 | −1 | −1 |
# | opinion of A | 1 | −1 | 1 | −1 |
# | opinion of B | 1 | −1 | −1 | 1 |
# | rating of A | 3 | 1 | 1 | −1 |
# | rating of B | 4 | 2 | 0 | 2 |
# | A minus its mean: level + opinion | 2 | 0 | 0 | −2 |
# | B minus its mean: level + opinion | 2 | 0 | −2 | 0 |
#
# The mean square of each of the last two rows is 2. Of this, 1 comes from the levels, and 1 from the opinions. So
# levels are 1/2 of the disagreement. The correlation of the two rows is also 1/2. Call a person's level $l$, and the
# opinions $o_A$ and $o_B$. The correlation is the mean product of the two rows, divided by their mean square (2 in
# the table). The product is
#
# $$ (l + o_A)(l + o_B) = l^2 + l\,o_B + o_A\,l + o_A\,o_B . $$
#
# Opinions are unrelated to each other and to the levels, so the last three terms are 0 on average.
# Only $l^2$ remains (1 in the table). **The correlation is the share of the disagreement that comes
# from levels.**
#
# The figure shows this correlation for a review and the next one of its block. Its first two bars
# tell apart whether people liked both reviews, none of them, or one of them. The last bar is for
# reviews of two different blocks.

# %%
blocks = {}
for row, _, ratings in tasks.reviews.rated_snippets():
    blocks.setdefault((int(row) - 1) // 30, []).append(ratings)
blocks = [torch.tensor(block).float() for block in blocks.values()]
rest = [x - x.mean(1, keepdim=True) for x in blocks]  # (reviews, people)
same = [x.mean(1)[:-1] * x.mean(1)[1:] > 0 for x in blocks]  # with the next review

# %%
following = [torch.stack([x[:-1], x[1:]]) for x in rest]
across = [torch.stack([x[:15, :15], y[:15, :15]]) for x, y in zip(rest, rest[1:])]
kinds = {
    "both liked or both not": [x[:, y] for x, y in zip(following, same)],
    "one liked, one not": [x[:, ~y] for x, y in zip(following, same)],
    "next block": across,
}
bars = {}
for kind, some in kinds.items():
    both = torch.cat([x.flatten(1) for x in some], 1)
    bars[kind] = both.corrcoef()[0, 1].item()
show.bars(bars, label="correlation of two reviews")

# %% [markdown]
# - *Next block*: 0.01. These are different people. If the order inside a block were random, too, the
#   other two bars would be near 0. So our guess holds.
# - *Both liked or both not* (their means have the same sign): 0.36. About a third of the
#   disagreement is no difference of opinion.
# - *One liked, one not*: 0.11. So the level is not only a strict or generous mood, which would be
#   the same for all reviews. Some people use the ends of the scale: they rate good reviews higher
#   than others do, and bad ones lower.
#
# In our labels this is noise, because the two ratings of a label nearly always come from two people.
# To see how much, take each review and the next one of its block, almost always of another film. Draw the two
# ratings of a label from one person, or from two different people $p$ and $q$. As in section 5, the
# others predict the label. For *both* reviews their means leave out $p$ and $q$. The others are right
# on 83 % of the labels of one person, and on 76 % of those of two people. But one person ties more
# often, and dropped ties are hard cases. If we keep them, and count a tie as half right, it is 72 %
# against 69 %. So more than half of the difference comes from ties.
#
# **What a pair is elsewhere.** Libraries take pairs as they are given. What a pair means was
# decided before, and is seldom written down.
#
# - InstructGPT's people ranked 4 to 9 responses to a prompt. All pairs of a ranking went into one
#   batch.
# - Llama 2's people also said *how much* better a response is. This became a margin in the loss.
# - Anthropic's hh-rlhf has one choice between two answers of a dialogue.
# - UltraFeedback's ratings come from a language model. A pair is its best answer against another
#   one.
#
# Almost everybody drops ties. TRL, OpenRLHF and DeepSpeed-Chat check none of this: a pair of two
# equal responses trains nothing, and a prompt on both sides of a split gives the accuracy of
# exercise 4.
#
# **References.** Hutto and Gilbert 2014 (the ratings), section 3. Krippendorff 2004 (the rule of
# thumb), chapter 11, and 2011 (alpha). Bradley and Terry 1952. Luce 1959 and McFadden 1974 (Gumbel
# noise). Ziegler et al. 2019, sections 2.1 and 3.2. Ouyang et al. 2022, section 3.4. Touvron et al.
# 2023 (Llama 2), section 3.2. Sorensen et al. 2024 (whose preferences), section 2.
#
# *How this lesson is checked:* every number is computed again from the ratings
# (`tests/claims/test_lesson_02.py`), and the measures of agreement are compared with examples by
# hand (`tests/tasks/test_agreement.py`).
