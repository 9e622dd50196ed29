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
# **You need** PyTorch and lesson 01 (what a reward is for). About 90 minutes to read, two hours for
# the exercises with ten minutes of labelling.

# %%
import tempfile

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
#   (very positive). Each person saw one review at a time.
# - *We* decide that **preferred means more positive**.
# - The prompt is the title of a film, and the responses are two reviews of it. For the label we
#   draw *one* rating of each review. The review with the higher rating is chosen.
#
# So nobody compared two reviews. Nobody said which one is truer, or better written. A model that is
# trained on these labels learns to praise.
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
# - **The first review** has the highest deviation of all. It is a joke about a bad remake. Six
#   people rated it as negative and nine as positive.
# - **The second review** says nothing good or bad, and nearly all people gave it 0.
# - **The third review** is praise, and people agree.
#
# The first two have almost the same mean. A mean does not say whether people agreed.

# %% [markdown]
# ## 2. Where people disagree
#
# The next figure has the mean rating of a review on the x axis, rounded to half a point, and the
# average deviation of these reviews on the y axis. The second line is a comparison: simulated
# people who disagree *equally* about all reviews. Each review gets 18 ratings, as in the data on
# average. They are the mean plus normal noise, rounded, and cut off at −4 and 4, where the scale
# ends. The deviation of the noise, 1.2, is that of people on lukewarm reviews.
#
# **Predict.** About which reviews do people disagree most: complaints, praise, or the lukewarm ones
# in the middle?

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
# - **People** disagree most about lukewarm reviews. The deviation is 1.24 at a mean of 0, and 0.92
#   and 0.80 at −2 and 2.
# - **The simulated people** have a flat line, which falls only near the ends of the scale. So the
#   ends of the scale do not make the peak.
# </details>

# %% [markdown]
# ## 3. One number for agreement: Krippendorff's alpha
#
# Is a deviation of 1 little or much? Compare it with chance. This is **Krippendorff's alpha**:
#
# $$ \alpha = 1 - \frac{D_o}{D_e} . $$
#
# - $D_o$ is the *observed* disagreement: the mean squared difference of two ratings of the *same*
#   review.
# - $D_e$ is the disagreement that we *expect* by chance: the mean squared difference of *any* two
#   of the ratings.
#
# In words: people who rate at random disagree by $D_e$. Alpha is the part of it that our people
# avoid. If all agree, they avoid all of it, and alpha is 1.
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
# The mean of the three $D_o$ is 10/3, exactly $D_e$. So ratings that are dealt out at random have
# an alpha of 0 on average.

# %%
for a, b, alpha in (
    ((2, 1), (-1, 0), 0.7),
    ((2, 0), (1, -1), -0.2),
    ((2, -1), (1, 0), -0.5),
):
    assert abs(tasks.krippendorff_alpha([a, b]) - alpha) < 1e-9

# %% [markdown]
# **Predict** alpha for our data: for all reviews, and for the 1,412 lukewarm reviews, whose mean is
# between −1 and 1. The third number is a check: all ratings, dealt out to the reviews at random.

# %% tags=["predict"]
generator = torch.Generator().manual_seed(0)
every = torch.tensor([rating for r in rated for rating in r.ratings])
order = torch.randperm(len(every), generator=generator)
dealt = every[order].split([len(r.ratings) for r in rated])
lukewarm = reviews[reviews["mean"].abs() < 1]
for name, groups in {
    "all reviews": reviews["ratings"],
    "lukewarm": lukewarm["ratings"],
    "dealt out": [group.tolist() for group in dealt],
}.items():
    print(f"{name}: {tasks.krippendorff_alpha(groups) + 0.0:.2f}")

# %% [markdown]
# <details><summary>What you should see</summary>
#
# - *All reviews*: 0.80. The squared disagreement within a review is a fifth of what chance gives.
# - *Lukewarm*: 0.19. People disagree a little more here. But above all, these reviews are alike, so
#   $D_e$ is small.
# - *Dealt out*: 0.00, as the three deals say.
# </details>
#
# So alpha says how well these people can tell *these* reviews apart. A reward model often has to
# compare responses that are close, and there people agree less.

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
# a winner. Two of the other three choose A, so the label says A with probability 2/3. The label is
# **noisy**: it depends on whose ratings we happened to draw.
#
# Two rules hold for all pairs:
#
# - **Both reviews are about the same film.** Otherwise a reward model could win by knowing which
#   films people like.
# - **A film is in one split only.** We test on films that no training has seen (exercise 4).
#
# The splits of the 507 films: *reward* (203) is what reward models learn from, *gold* (203) is for
# the judge of later lessons, *val* (25) for choosing settings, and *test* (76) for results.
#
# Two drawn pairs: the first one, and the first one whose label goes against the mean ratings by
# more than a point.

# %%
drawn = tasks.reviews.preference_pairs("reward", 2000, seed=0).to_pandas()
against = drawn["chosen_mean"] < drawn["rejected_mean"]
surprising = drawn["chosen_mean"] < drawn["rejected_mean"] - 1
two = pd.concat([drawn.head(1), drawn[surprising].head(1)]).round(1)
two.index = two["prompt"].str.strip()
columns = ["chosen", "chosen_mean", "rejected", "rejected_mean"]
print(f"labels that go against the means: {against.mean():.0%}")
show.texts(two[columns])

# %% [markdown]
# In the second pair, we happened to draw a higher rating of the review that most people rated low.
# Of all labels, 13 % go against the means.
#
# ## 5. The human ceiling
#
# How often can a reward model be right about such noisy labels? Think of somebody who knows what
# what all *other* people said, and who predicts that the review with the higher mean is chosen. How
# often this is right is the **human ceiling**. It is no strict bound, but hard to beat by reading.
#
# **By hand.** Three people gave review A the ratings 3, 3 and 1, and two gave review B 2 and 0.
# Each row is a label that can be drawn. The means leave out the two ratings of the label. If they
# stayed in, they would help to predict themselves.
#
# | | from | chosen | the others' mean of A | the others' mean of B | they predict | right |
# |---|---|---|---|---|---|---|
# | label I | 3 and 2 (twice) | A | (3 + 1) / 2 = 2 | 0 | A | 1 |
# | label II | 3 and 0 (twice) | A | 2 | 2 | nothing | 1/2 |
# | label III | 1 and 2 | B | 3 | 0 | A | 0 |
# | label IV | 1 and 0 | A | 3 | 2 | A | 1 |
#
# Together 1 + 1 + 1/2 + 1/2 + 0 + 1 = 4 of 6 labels. The ceiling of this pair is 2/3. The package
# gives the same:

# %%
a = tasks.reviews.Review("A", "a film", "reward", (3, 3, 1), fresh=True)
b = tasks.reviews.Review("B", "a film", "reward", (2, 0), fresh=False)
assert abs(tasks.human_ceiling([(a, b)]) - 2 / 3) < 1e-6
assert tasks.preference_share((3, 1), (2, 1)) == 2 / 3  # the table of section 4

# %% [markdown]
# Now all 48,466 pairs of the 203 films that our reward models learn from. The **gap** of a pair is
# the difference of the two mean ratings. A row of the next table is a range of gaps: the number of
# pairs, the share of ties, and the ceiling (with the gap of the *others'* means).
#
# **Predict** the ties and the ceiling of the closest pairs (gap 0 to 0.5), and of all pairs (gap 0
# to 8).

# %% tags=["predict"]
pairs = tasks.reviews.pairs_within_films("reward")
table = pd.DataFrame(columns=["pairs", "ties", "human ceiling"])
for low, high in [*tasks.reviews.GAP_BANDS, (0.0, 8.0)]:
    near = tasks.reviews.pairs_within_films("reward", low, high)
    ceiling = tasks.human_ceiling(pairs, low, high)
    row = [len(near), tasks.tie_share(near[::10]), ceiling]  # ties: every tenth pair
    table.loc[f"gap {low:g} to {high:g}"] = row
table.astype({"pairs": int}).round(2)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# - *The closest pairs*: 34 % ties. The ceiling is 0.60, a little better than a coin.
# - *All pairs*: 18 % ties, and a ceiling of 0.85.
#
# From a gap of 2 on, the ceiling is 0.97 and more. The noise is in the close pairs.
# </details>
#
# So compare an accuracy with its ceiling, on the same films. The reward model of lesson 08 is right
# on 64 % of the labels of the *test* films. On these films the ceiling is 0.84, and a coin has 0.5.

# %% [markdown]
# ## 6. Does the Bradley-Terry model fit our people?
#
# A reward model gives each response a score $s$. It assumes the **Bradley-Terry model**: people
# prefer $a$ to $b$ with the probability
#
# $$ P(a \succ b) = \frac{e^{s_a}}{e^{s_a} + e^{s_b}} = \sigma(s_a - s_b) . $$
#
# ($\sigma$ is the sigmoid of lesson 00.) The **odds** are
# $P(a \succ b) / P(b \succ a) = e^{s_a - s_b}$. Odds of 3 mean that $a$ is preferred 3 times as
# often as $b$. Whatever the scores are, **odds multiply**: if $a$ beats $b$ 3 to 1, and $b$ beats
# $c$ 3 to 1, then $a$ beats $c$ 9 to 1.
#
# **By hand.** People need not be like that. Two people rated review A with 4 and 1, B with 3 and 0,
# and C with 2 and −1. We compare each rating of one review with each of another:
#
# | | the first is higher | the second is higher | odds |
# |---|---|---|---|
# | A and B | 4 > 3, 4 > 0, 1 > 0 | 1 < 3 | 3 |
# | B and C | 3 > 2, 3 > −1, 0 > −1 | 0 < 2 | 3 |
# | A and C | 4 > 2, 4 > −1, 1 > −1 | 1 < 2 | 3 |
#
# The odds of the two steps multiply to 9, but the odds of A against C are 3. No scores give these
# odds.

# %%
a, b, c = (4, 1), (3, 0), (2, -1)
for one, other in ((a, b), (b, c), (a, c)):
    assert tasks.preference_share(one, other) == 3 / 4  # odds of 3 to 1

# %% [markdown]
# **The measurement** does this for all triples $a$, $b$, $c$ of reviews of one film, in which $b$
# is one step below $a$, and $c$ one step below $b$. A step of 1 means a gap of 0.75 to 1.25. One
# half of the people, drawn at random, says which reviews are such a triple. The odds come from the
# *other* half. Otherwise a review that is ahead by luck would also be chosen by the same luck.
#
# In the table, `a : b` and `b : c` are the odds of the two steps, and `product` is what
# Bradley-Terry says for $a$ against $c$. `a : c` is what people say, and `ratio` is `a : c` divided
# by `product`. `low` and `high` are its 95 % interval by the **bootstrap**: draw the 507 films
# again, with replacement, and compute the ratio, 500 times. (We draw films and not pairs: pairs of
# one film share reviews.)
#
# **Predict.** For a step of 1 both odds are about 3.7, so Bradley-Terry says 14. Do people say the
# same, more, or less? Is the ratio nearer to 1 for smaller or for larger steps?

# %% tags=["predict"]
films = pd.Series(rated).groupby([r.movie for r in rated]).agg(list)
odds = pd.DataFrame(tasks.odds_of_steps(films, (0.5, 1.0, 2.0)))
odds.round(2)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# Less: 11. The ratio is 0.96 for half a point, 0.84 for a point, and 0.68 for two points.
#
# - *Close reviews.* Bradley-Terry is nearly true: odds of 14 are a probability of 93 %, and odds of
#   11 are 92 %.
# - *Distant reviews.* As a probability the error is tiny: 99.4 % against
#   99.2 %. As a score it is not. Odds of 180 are a score difference of $\ln 180$, or 5.2, and odds
#   of 123 one of 4.8.
# </details>
#
# So trust Bradley-Terry on how often people prefer one of two close reviews. The score difference
# of distant reviews is only a rough number. ("Going further" looks for the cause.)

# %% [markdown]
# ## 7. Whose preferences are averaged away?
#
# **First: those of strict and of generous people.** The data has no names. But it comes in blocks
# of 30 reviews, and the $k$-th rating of every review of a block seems to come from the same
# person.
#
# **By hand.** Suppose that each person has a *level*: a generous person rates everything higher, a
# strict person everything lower. The rest is the person's *opinion* of this review. Four people
# rate A and B, and we subtract the mean of each review:
#
# | person | 1 | 2 | 3 | 4 |
# |---|---|---|---|---|
# | level | 1 | 1 | −1 | −1 |
# | opinion of A | 1 | −1 | 1 | −1 |
# | opinion of B | 1 | −1 | −1 | 1 |
# | A: level + opinion | 2 | 0 | 0 | −2 |
# | B: level + opinion | 2 | 0 | −2 | 0 |
#
# The opinions are unrelated to each other and to the levels. The mean square of row A, and of row
# B, is 2, and that of the levels is 1. So levels are 1/2 of the disagreement. The mean product of
# rows A and B is (4 + 0 + 0 + 0) / 4 = 1, so their correlation is 1/2, the same number. **The
# correlation is the share of the disagreement that comes from levels.**
#
# **Predict** this correlation for a review and the next one of its block, and for two reviews of
# different blocks.

# %% tags=["predict"]
blocks = {}
for row, _, ratings in tasks.reviews.rated_snippets():
    blocks.setdefault((int(row) - 1) // 30, []).append(ratings)
blocks = [torch.tensor(block).float() for block in blocks.values()]
rest = [block - block.mean(1, keepdim=True) for block in blocks]  # (reviews, people)
for name, one, other in (
    ("same block", [x[:-1] for x in rest], [x[1:] for x in rest]),
    ("next block", [x[:15, :15] for x in rest[:-1]], [x[:15, :15] for x in rest[1:]]),
):
    both = [torch.cat([x.flatten() for x in side]) for side in (one, other)]
    print(f"{name}: {torch.stack(both).corrcoef()[0, 1].item():.2f}")

# %% [markdown]
# <details><summary>What you should see</summary>
#
# In the same block the correlation is 0.34. From one block to the next it is 0.01: the people
# differ.
# </details>
#
# So a third of the disagreement is no difference of opinion. In our labels it is noise: one rating
# may come from a strict person, and the other from a generous one. If one person judges both
# reviews, the level cancels. ("Going further" measures how much this helps.)
#
# **Second: those who feel strongly, or the many.** It depends on how the answers are combined.
# Three people rate review A with 4, −1 and −1, and review B with 0, 0 and 0.
#
# | | A | B | preferred |
# |---|---|---|---|
# | mean rating | 0.67 | 0 | A |
# | share of single choices | 1/3 | 2/3 | B |
#
# One person loves A, and two dislike it a little. The mean counts *how much* people care, and
# choices count *heads*. In our data the two rules seldom differ: in 3 % of the pairs.
#
# **Third, by both rules: the minority.** The joke of section 1 becomes "slightly positive",
# although most of its readers were far from 0. So write down whom you asked, and how you combined
# the answers.

# %% [markdown]
# ## 8. Label pairs yourself
#
# The next cell shows 30 pairs of reviews, and six of them again with the sides swapped. Each choice
# is saved at once, in the format that `minirlhf reward` and the library TRL read.

# %% tags=["exercise"]
to_label = tasks.pairs_to_label(count=30, repeats=6, seed=0)
session = tasks.LabelSession(to_label, "../out/labels/me.jsonl")
show.label_pairs(session)

# %% [markdown]
# The next cell compares your labels with the *crowd* (the review with the higher mean rating), with
# *yourself* (the pairs that came twice), and with two **simulated** people. At every pair they draw
# one random rating of each review. `agreement` leaves out ties. `low` and `high` are a 95 %
# interval. Add the files of friends to `files`.


# %% tags=["exercise"]
folder = tempfile.mkdtemp()
generator = torch.Generator().manual_seed(0)


def simulated(name):
    """The file of a simulated person, who draws one rating of each review."""
    person = tasks.LabelSession(to_label, f"{folder}/{name}.jsonl", name)
    ratings = {review.text: review.ratings for review in rated}
    while pair := person.current:
        said = [ratings[pair.left], ratings[pair.right]]
        a, b = (x[torch.randint(len(x), (), generator=generator)] for x in said)
        person.choose("tie" if a == b else "left" if a > b else "right")
    return person.path


files = [simulated("simulated 1"), simulated("simulated 2")]
if session.done:
    files.append(session.path)
labels = tasks.read_labels(*files)
evaluate.label_agreement(labels).round(2)

# %% [markdown]
# <details><summary>What you should see</summary>
#
# The simulated people agree with the crowd in 19 of 23 and 24 of 25 pairs. 7 and 5 of their 30
# pairs are ties. The first interval is 0.63 to 0.93: thirty pairs say little about one person. With
# each other they agree in 19 of 20, and one agrees with itself in 3 of 3, by luck.
# </details>
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
    return lambda texts: model.decision_function(words.transform(texts))


def right_on(pairs, score):
    """The share of pairs whose chosen review has the higher score; equal: half."""
    margin = score(pairs["chosen"]) - score(pairs["rejected"])
    return ((margin > 0) + 0.5 * (margin == 0)).mean()


# %% [markdown]
# The clicks are simulated: labels from single ratings, four draws of each number. We test on 4,000
# labels of the 76 test films. The next figure has the clicks on the x axis, and how often the model
# is right on the y axis.

# %%
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
# - *Ten to a hundred clicks*: 51 %, 50 % and 52 %. That is a coin.
# - *Three hundred clicks*: 54 %. All four draws are above 53 %, so this is more than a coin.
# - *A thousand clicks*: 59 %, far below the ceiling.
#
# If a click takes 20 seconds, 300 clicks take 100 minutes, and 1,000 take 5.6 hours.  Your own
# clicks, if you made some:

# %% tags=["exercise"]
mine = labels[labels["annotator"] == "me"].dropna(subset="chosen")
if len(mine) > 1:
    share = right_on(new, learn(mine["chosen"], mine["rejected"]))
    print(f"{len(mine)} clicks of yours: right on {share:.0%}")

# %% [markdown]
# ## What to remember
#
# - Here *preferred* means "more positive".

# - Alpha compares the disagreement within a review with chance.
# - Labels of close pairs are mostly noise. Compare an accuracy with the human ceiling of its films.
# - Bradley-Terry says that odds multiply. For close reviews this is nearly true.
# - Means and choices both forget who said what.
#
# ## Exercises
#
# Solutions are in `solutions/02_human_feedback_is_data.ipynb`.

# %% [markdown] tags=["exercise"]
# **1. The share of a choice** *(easy, 10 minutes)*. A warm-up: the table of section 4 as code. `a`
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
# **2. Alpha in one line** *(medium, 20 minutes)*. `ratings` (N, m) has a row for each review and a
# column for each person. Return Krippendorff's alpha, one number, without a loop over pairs.
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
def choice_ceiling(a, b): ...  # your code


check.choice_ceiling(choice_ceiling)


# %% tags=["solution"]
def choice_ceiling(a, b):
    means = [(x.sum(1, keepdim=True) - x) / (x.shape[1] - 1) for x in (a, b)]
    gap = means[0][:, :, None] - means[1][:, None]
    label = a[:, :, None] - b[:, None]
    right = 0.5 + 0.5 * (gap * label).sign()
    return right[label != 0].mean()


check.choice_ceiling(choice_ceiling)

# %% [markdown] tags=["exercise"]
# **4. Find the bug** *(medium, 20 minutes)*. A colleague has 3,000 labelled pairs of 24 films. She
# trains the model of section 8 on a part of them, and holds out all pairs of the last eight films.
# The last cell draws two curves: how often the model is right on her held-out pairs, and on pairs
# of films that are in none of her data. The two should be about equal. What is wrong in
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
# Hold out what will be new later: whole films. Then both curves stay below 0.6. (They differ a
# little, because her held-out pairs are of eight films only.)


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
# **5. Predict, then run** *(easy, 10 minutes)*. Suppose that each of 1,000 labels came from the
# *mean* ratings, not from two single ratings. Then about 13 % of the labels would turn around. How
# much better would the model of section 8 be on new films? Write down a number, then run the cell.
# Is the difference that you see more than chance? How would you find out?

# %% tags=["exercise", "solution"]
pairs = tasks.reviews.preference_pairs("reward", 1000, seed=0).to_pandas()
turned = pairs["chosen_mean"] < pairs["rejected_mean"]
chosen = pairs["chosen"].where(~turned, pairs["rejected"])
rejected = pairs["rejected"].where(~turned, pairs["chosen"])
unseen = tasks.reviews.preference_pairs("test", 4000, seed=9).to_pandas()
print("single ratings:", right_on(unseen, learn(pairs["chosen"], pairs["rejected"])))
print("mean ratings:", right_on(unseen, learn(chosen, rejected)))

# %% [markdown] tags=["solution"]
# Hardly better, if at all: 0.61 and 0.60 here. This is one draw of the labels, and a share of 4,000
# test labels has a standard error of 0.008. So repeat it: over four draws, the means are better by
# −0.002 to 0.013, by 0.005 on average. That is no difference that we can tell from 0.
#
# Why does it help so little? The labels that turn are those of close pairs: their mean gap is 0.55,
# that of the others 2.21. They say little about words, whichever way they point. And at 1,000
# labels the noise is not the main problem. Most words of new films were never seen, or only once.
# (The labels of the test are still single ratings, so the ceiling is the same.)

# %% [markdown] tags=["exercise"]
# **6. Design the experiment** *(hard, 15 minutes)*. You can pay for 3,000 ratings. Would you ask
# one person about each of 3,000 responses, or fifteen people about each of 200? For which purpose
# would each be right? Write a plan of three sentences, and compare it with the solution.

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
# No. Their squared disagreement is a fifth of what chance gives. For two close reviews, the label
# of two people is predicted in 60 % of the cases only.
# </details>
#
# <details><summary>2. Why are ties dropped, and what is lost?</summary>
#
# The Bradley-Terry model has no tie. What is lost: that two responses are about equal. A reward
# model that is very sure about such a pair is never told so.
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
# First look for a leak (exercise 4), and compute an interval. Somebody who knows what all other
# people said is hard to beat by reading the text.
# </details>
#
# <details><summary>5. Whom does the mean of fifteen ratings represent?</summary>
#
# Those who were asked, in equal parts: strict and generous, careful and hasty. It does not
# represent those who were not asked.
# </details>
#
# ## Going further
#
# **Where Bradley-Terry comes from.** Suppose that a person feels $u = s + \text{noise}$ about each
# response, and prefers the response with the larger $u$. If the noise has a Gumbel distribution
# (that of the largest of many small influences), the difference of two noises has a logistic
# distribution. Then $P(a \succ b) = \sigma(s_a - s_b)$ exactly, with the sigmoid $\sigma$. With
# normal noise the formula is nearly the same in the middle.
#
# **How the logit bends.** The logarithm of the odds is the *logit*. If the mean rating were the
# score, the logit divided by the gap would be the same number at every gap. For close reviews this
# is 1.77 (95 % interval 1.74 to 1.81). At a gap of 2.2 it is 1.32, and at a gap of 4.1 it is 1.27
# (1.24 to 1.31). So the mean rating is not exactly a Bradley-Terry score. The test of section 6 is
# stronger: it holds for any scores.
#
# **Why do our people not fit exactly?** We measured the same on simulated ratings. Their means are
# those of our reviews, and only the noise is simulated.
#
# - *Gumbel noise*, equal for all reviews. Bradley-Terry is true here. The logit per point is the
#   same at a gap of 0.2 and of 2, within 3 %, and the ratio for steps of a point is 1.0. So the
#   measurement does not make the bend.
# - *Normal noise*, equal for all reviews: the curve bends up. At a gap of 4 a point counts more
#   than at a gap of 0.2.
# - *Normal noise, with the deviation that each review has in the data*: the logit per point falls
#   from 1.59 to 1.37 between gaps of 0.2 and 2, as ours does, and the ratio is 0.92. But then it
#   rises, to 1.64 at a gap of 4. Ours does not rise.
#
# So unequal noise is a part of the cause: Bradley-Terry has a score for each review, and no place
# for how far people disagree about it. At large gaps, our people choose the worse review more often
# than normal noise would. Careless answers would do that. We did not test it.
#
# **Why the ceiling leaves out the two ratings.** It seems simpler to take one direction per pair
# from all ratings, and to count how many labels agree with it. On 3,000 pairs with ratings that
# were dealt out at random, there is nothing to know. But this way gives 0.59. One review is ahead
# by chance, and the same chance is in the labels. Without the two ratings of the label we get 0.50.
# For the same reason the gap of a label has to be that of the other people. If we sort the labels
# of these random pairs by the gap of *all* ratings, we find 0.36 for gaps below 0.5 and 0.70 for
# gaps from 1 to 2.
#
# **Two people and two others.** How often do two labels of different people agree, if neither is a
# tie? In 83 % of the cases on all pairs, and in 50 % on pairs with a gap below 0.5. The first
# number is high because pairs without a tie are the easy ones.
#
# **One person or two?** A label of this course draws two ratings, so they are nearly always of two
# people. Inside a block, we can also take both ratings from one column, so from one person. For
# each review and the next one, we ask how often the mean of all other people predicts the label.
# (These reviews are of different films, so compare the numbers with each other, not with section
# 5.)
#
# - Labels of one person are right more often: 83 % against 76 %.
# - They also have more ties: 33 % against 27 %. Two people differ by their levels too, so their
#   ratings are less often equal.
# - Ties take away close pairs, which makes the rest easier. If a tie counts as half right, the
#   difference is smaller: 72 % against 69 %.
#
# **More about the people of section 7.** In the blocks with 15 people, a person's mean distance
# from the others has a standard deviation of 0.59 over the people. If we deal out the ratings at
# random it is 0.18. People differ in more than their level. Take all labels of one person inside a
# block: the person in the middle agrees with the others in 85 % of them, but 4 % of the people in
# fewer than 60 %. A mean gives these people the same weight.
#
# **Who says 0?** Only 5 % of all ratings are 0. So a part of the peak in section 2 may have a
# simple cause: people who feel neutral say −1 or 1.
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
# **References.** Hutto and Gilbert 2014 (the ratings), section 3. Krippendorff 2011. Bradley and
# Terry
# 1952. Luce 1959 and McFadden 1974 (Gumbel noise). Ziegler et al. 2019, sections 2.1 and 3.2.
#       Ouyang et al. 2022, section 3.4. Touvron et al. 2023 (Llama 2), section 3.2. Sorensen et al.
#       2024 (whose preferences), section 2.
#
# *How this lesson is checked:* every number is computed again from the ratings
# (`tests/claims/test_lesson_02.py`), and the measures of agreement are compared with examples by
# hand (`tests/tasks/test_agreement.py`).
