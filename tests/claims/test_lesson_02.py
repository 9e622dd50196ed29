"""Lesson 02, human feedback is data: every number of its prose, computed from the ratings."""

import itertools
import math
import random
from collections import Counter
from dataclasses import replace

import jupytext
import nbformat
import pandas as pd
import pytest
import torch
from scipy import stats
from sklearn.feature_extraction.text import CountVectorizer

from minirlhf import evaluate, experiments, rewards, tasks
from minirlhf.classroom import check
from minirlhf.classroom.course import NOTEBOOKS, lesson_of, tags
from minirlhf.tasks.agreement import step_choices, two_halves
from minirlhf.tasks.reviews import Review
from tests.claims.prose import Said, lesson

SOURCE = NOTEBOOKS / "src" / "02_human_feedback_is_data.py"
CLICKS = (10, 30, 100, 300)
CONTROL = "control: Bradley-Terry, rounded"


@pytest.fixture(scope="module")
def page():
    """The names of the lesson after each code cell that is no exercise, by the cell's first words."""
    names, after = {}, {}
    for cell in lesson_of(jupytext.read(SOURCE)).cells:
        if cell.cell_type != "code" or "exercise" in tags(cell):
            continue
        if not cell.source.startswith("clicks ="):  # `curve` is computed below
            exec(cell.source, names)
            after[cell.source[:24]] = dict(names)
    return after


@pytest.fixture(scope="module")
def rated():
    return [r for r in tasks.reviews.load_reviews() if r.ratings]


@pytest.fixture(scope="module")
def learning():
    """`learn` as the lesson defines it, and its `right_on`, which scores each text once."""
    names = {}
    for cell in lesson_of(jupytext.read(SOURCE)).cells:
        if cell.source.startswith(("from dataclasses", "def learn")):
            exec(cell.source, names)

    def right_on(pairs, score):
        texts = pd.concat([pairs["chosen"], pairs["rejected"]]).unique()
        known = pd.Series(score(texts), index=texts)
        return names["right_on"](pairs, lambda column: known[column].to_numpy())

    return names["learn"], right_on


def names_after(page, start):
    """The names after the one cell that begins so."""
    (found,) = [names for cell, names in page.items() if cell.startswith(start)]
    return found


# ---- section 2 and 3: disagreement


def test_people_disagree_most_about_reviews_in_the_middle(page):
    names = names_after(page, "torch.manual_seed(0)")
    people, equal = names["people"], names["equal"]
    assert abs(people.idxmax()) <= 0.5
    assert people[0.0] > 1.2 * people[2.0] and people[0.0] > 1.2 * people[-2.0]
    assert people[-2.0] > people[2.0]
    assert equal[2.0] > 0.95 * equal[0.0] > 0.95 * equal[-2.0] > 0.9 * equal[0.0]
    assert max(equal[3.5], equal[-3.5]) < 0.8 * equal[0.0]


def far_from(rated, centre):
    """The share of ratings two points or more from a mean, of reviews with about this mean."""
    ratings = [x for r in rated if abs(r.mean - centre) < 0.25 for x in r.ratings]
    return sum(abs(x - centre) >= 2 for x in ratings) / len(ratings)


def shares_near(rated, centre):
    """The share of each rating, of reviews with about this mean."""
    ratings = [x for r in rated if abs(r.mean - centre) < 0.25 for x in r.ratings]
    return {value: count / len(ratings) for value, count in Counter(ratings).items()}


def test_only_near_a_mean_of_0_the_mean_is_not_the_most_frequent_rating(rated):
    near = shares_near(rated, 0)
    assert near[0] < min(near[-1], near[1])
    for centre in (-2, -1, 1, 2):
        near = shares_near(rated, centre)
        assert max(near, key=near.get) == centre


def simulated_near_0(page):
    """The share of each rating of the simulated people, of reviews with a mean of about 0."""
    names = names_after(page, "torch.manual_seed(0)")
    ratings = names["simulated"][names["means"].abs() < 0.25].flatten().tolist()
    return {value: count / len(ratings) for value, count in Counter(ratings).items()}


def test_simulated_people_do_not_avoid_0(page):
    near = simulated_near_0(page)
    assert max(near, key=near.get) == 0


def test_the_peak_is_more_than_people_who_avoid_0(page, rated):
    """Without any 0, equal noise has a peak too, but not so many ratings far from the middle."""
    means = names_after(page, "torch.manual_seed(0)")["means"]
    middle = means[means.abs() < 0.25]
    generator = torch.Generator().manual_seed(0)
    felt = middle[:, None] + 0.85 * torch.randn(len(middle), 18, generator=generator)
    said = torch.where(felt.abs() < 0.5, felt.sign(), felt.round())
    assert said.std(1).mean() > 1.05  # the deviation at a mean of 2 is 0.80
    assert (said.abs() >= 2).double().mean() < 0.1 < 0.2 < far_from(rated, 0)
    assert max(far_from(rated, -2), far_from(rated, 2)) < 0.1


def test_the_mean_alpha_over_all_deals_is_0():
    deals = [((2, 1), (-1, 0)), ((2, 0), (1, -1)), ((2, -1), (1, 0))]
    observed = [((a - b) ** 2 + (c - d) ** 2) / 2 for (a, b), (c, d) in deals]
    expected = sum((a - b) ** 2 for a, b in itertools.combinations((2, 1, 0, -1), 2)) / 6
    assert sum(observed) / 3 == expected == 10 / 3
    alphas = [tasks.krippendorff_alpha(deal) for deal in deals]
    assert alphas == pytest.approx([1 - x / expected for x in observed], abs=1e-12)
    assert sum(alphas) == pytest.approx(0, abs=1e-12)


@pytest.fixture(scope="module")
def dealt(rated):
    """All ratings, dealt out to the reviews at random."""
    generator = torch.Generator().manual_seed(0)
    every = torch.tensor([rating for r in rated for rating in r.ratings])
    order = torch.randperm(len(every), generator=generator)
    return [x.tolist() for x in every[order].split([len(r.ratings) for r in rated])]


def measures(page):
    """(D_o, D_e) of all reviews and of the middle ones."""
    names = names_after(page, "middle = reviews")
    return [tasks.disagreements(names[name]["ratings"]) for name in ("reviews", "middle")]


def alphas(page):
    return [1 - observed / expected for observed, expected in measures(page)]


def test_alpha_is_high_for_all_reviews_0_by_chance_and_low_for_middle_ones(page, dealt):
    everything, middle = alphas(page)
    assert 0.79 < everything < 0.81 and middle < 0.25
    assert abs(tasks.krippendorff_alpha(dealt)) < 0.005
    (observed, expected), (close, narrow) = measures(page)
    assert 1 < close / observed < 1.6 and expected / narrow > 2.5  # above all, they are alike


# ---- section 4 and 5: pairs and the ceiling


def test_close_pairs_tie_more_and_have_a_lower_ceiling(page):
    *parts, _ = names_after(page, "pairs = tasks.reviews.pa")["ceilings"].values()
    assert parts == sorted(parts)
    assert 0.55 < parts[0] < 0.65 and parts[3] > 0.965
    ties = [
        tasks.tie_share(tasks.reviews.pairs_within_films("reward", *band)[::20])
        for band in tasks.reviews.GAP_BANDS
    ]
    assert ties == sorted(ties, reverse=True) and 0.32 < ties[0] < 0.36


@pytest.fixture(scope="module")
def ceilings_of_few():
    """The ceiling with 4 and with 8 other people."""
    pairs = tasks.reviews.pairs_within_films("reward")
    reviews = dict.fromkeys(r for pair in pairs for r in pair)
    found = []
    for people in (5, 9):
        rng = random.Random(0)
        few = {r: replace(r, ratings=tuple(rng.sample(r.ratings, people))) for r in reviews}
        found.append(tasks.human_ceiling([(few[a], few[b]) for a, b in pairs]))
    return found


def test_more_people_would_raise_the_ceiling_by_about_a_point(page, ceilings_of_few):
    ceiling = names_after(page, "pairs = tasks.reviews.pa")["ceilings"]["all labels"]
    four, eight = ceilings_of_few
    assert four < eight < ceiling
    # The error of a mean falls as 1 / people: eight people more than all of ours are not enough.
    thousands = eight + (eight - four) / (1 / 4 - 1 / 8) * (1 / 8)
    assert ceiling < thousands < ceiling + 0.015


def of_all_ratings(pairs):
    """How often the means of all ratings predict a label."""
    right = labels = 0.0
    for a, b in pairs:
        decided = 1 - tasks.tie_share([(a, b)])
        share = tasks.preference_share(a.ratings, b.ratings)
        gap = a.mean - b.mean
        right += decided * (share if gap > 0 else 1 - share if gap else 0.5)
        labels += decided
    return right / labels


def labels_of(a, b):
    """(gap of the others, gap of all, choice, weight) of all labels of a pair of ratings."""
    a, b = torch.tensor(a).float(), torch.tensor(b).float()
    others = [(x.sum() - x) / (len(x) - 1) for x in (a, b)]
    choice = (a[:, None] - b).flatten()
    gap = (others[0][:, None] - others[1]).flatten()
    whole = (a.mean() - b.mean()).expand(len(choice))
    return torch.stack([gap, whole, choice, torch.full_like(choice, 1 / len(choice))])[
        :, choice != 0
    ]


def ceiling_of(labels, low, high, by):
    """The ceiling of labels in a band of a gap: by=0 that of the others, by=1 that of all."""
    gap, choice, weight = labels[0], labels[2], labels[3]
    inside = (labels[by].abs() >= low) & (labels[by].abs() < high)
    return (
        (weight * (0.5 + 0.5 * (gap * choice).sign()))[inside].sum() / weight[inside].sum()
    ).item()


@pytest.fixture(scope="module")
def chance(dealt):
    """Pairs of dealt ratings: (share by all ratings, their labels, the pairs)."""
    some = [tuple(group) for group in dealt[:6000]]
    pairs = list(zip(some[::2], some[1::2], strict=True))
    shares = [tasks.preference_share(a, b) for a, b in pairs]
    plug_in = sum(max(p, 1 - p) for p in shares) / len(shares)
    return plug_in, torch.cat([labels_of(a, b) for a, b in pairs], 1), pairs


def test_on_random_ratings_only_the_ceiling_of_the_others_is_one_half(chance):
    plug_in, labels, pairs = chance
    assert plug_in > 0.58
    for low, high in ((0, 0.5), (0.5, 1), (1, 2), (0, 8)):
        assert abs(ceiling_of(labels, low, high, by=0) - 0.5) < 0.02
    assert ceiling_of(labels, 0, 0.5, by=1) < 0.4 and ceiling_of(labels, 1, 2, by=1) > 0.6
    real = [
        (
            tasks.reviews.Review("", "", "val", a, fresh=True),
            tasks.reviews.Review("", "", "val", b, fresh=True),
        )
        for a, b in pairs[:500]
    ]
    some = torch.cat([labels_of(a, b) for a, b in pairs[:500]], 1)
    assert tasks.human_ceiling(real) == pytest.approx(ceiling_of(some, 0, 8, by=0), abs=1e-4)


def test_the_answer_to_exercise_3_is_the_human_ceiling(rated):
    some = [r for r in rated if len(r.ratings) == 15][:40]
    pairs = list(zip(some[::2], some[1::2], strict=True))
    a, b = (torch.tensor([r.ratings for r in side]) for side in zip(*pairs, strict=True))
    answer = check.label_ceiling.reference(a, b)
    assert answer.item() == pytest.approx(tasks.human_ceiling(pairs), abs=1e-5)


def two_and_two(pairs):
    """How often two labels of a pair from different people agree, if neither is a tie."""
    same = decided = 0.0
    for a, b in pairs:
        halves = [
            tuple(torch.tensor(r.ratings)[torch.randperm(len(r.ratings))].chunk(2) for r in (a, b))
        ]
        ((a1, a2), (b1, b2)) = halves[0]
        up = [(x[:, None] > y).float().mean() for x, y in ((a1, b1), (a2, b2))]
        down = [(x[:, None] < y).float().mean() for x, y in ((a1, b1), (a2, b2))]
        same += up[0] * up[1] + down[0] * down[1]
        decided += (up[0] + down[0]) * (up[1] + down[1])
    return float(same / decided)


@pytest.fixture(scope="module")
def agreements():
    """Agreement of two labels from different people: all pairs, close pairs."""
    torch.manual_seed(0)
    everything = tasks.reviews.pairs_within_films("reward")
    close = tasks.reviews.pairs_within_films("reward", 0, 0.5)
    return two_and_two(everything[::48]), two_and_two(close[::12])


def test_labels_of_different_people_agree_on_close_pairs_as_coins_do(agreements, page):
    ceiling = names_after(page, "pairs = tasks.reviews.pa")["ceilings"]["all labels"]
    assert 0.75 < agreements[0] < ceiling and 0.48 < agreements[1] < 0.55


# ---- section 6: Bradley-Terry


def by_film(reviews):
    """The ratings of each film's reviews, (n, m) with NaN."""
    groups = {}
    for r in reviews:
        groups.setdefault(r.movie, []).append(torch.tensor(r.ratings).float())
    pad = torch.nn.utils.rnn.pad_sequence
    return [pad(g, batch_first=True, padding_value=math.nan) for g in groups.values()]


@pytest.fixture(scope="module")
def films(rated):
    return by_film(rated)


def sums(first, second, above):
    """For ten ranges of the gap: choices of i, choices of j, gap, pairs (10, 4)."""
    i, j = (first[:, None] > first).nonzero(as_tuple=True)
    place = ((first[i] - first[j]) * 2).long().clamp(max=9)
    each = [above[i, j], above[j, i], second[i] - second[j], torch.ones(len(i))]
    return torch.zeros(10, 4).index_add(0, place, torch.stack(each, 1))


@pytest.fixture(scope="module")
def bend(films):
    """(gap, value, low, high) of the logit per point, for ten ranges of the gap: (4, 10)."""
    generator = torch.Generator().manual_seed(0)
    per_film = torch.stack([sums(*two_halves(film, generator)) for film in films])
    again = torch.randint(len(films), (500, len(films)), generator=generator)
    drawn = torch.cat([per_film.sum(0)[None], per_film[again].sum(1)])  # the first is the real one
    ahead, behind, gap, count = drawn.unbind(-1)
    gap = gap / count
    slopes = (ahead / behind).log() / gap
    ends = slopes[1:].quantile(torch.tensor([0.025, 0.975]), 0)
    return torch.stack([gap[0], slopes[0], *ends])


def at(bend, gap):
    """(value, low, high) of the range whose mean gap is nearest."""
    place = (bend[0] - gap).abs().argmin()
    assert abs(bend[0, place] - gap) < 0.05
    return bend[1:, place].tolist()


def test_the_logit_bends_down(bend):
    close, middle, far = bend[1:, 0].tolist(), at(bend, 2.2), at(bend, 4.1)
    assert close[1] > 1.15 * middle[2] and close[1] > 1.15 * far[2]
    assert middle[0] > far[0]


def odds(page, who="people"):
    """A table of section 6; its index is the step."""
    return names_after(page, "steps, tables")["tables"][who]


def interval(draws):
    """95 % interval of the mean of independent draws, by Student's t."""
    half = stats.t.ppf(0.975, len(draws) - 1) * draws.std().item() / math.sqrt(len(draws))
    return draws.mean().item() - half, draws.mean().item() + half


def test_odds_of_two_steps_are_less_than_the_product(page):
    table, control = odds(page), odds(page, CONTROL)
    assert (table["high"] < 1).all() and table["ratio"].is_monotonic_decreasing
    assert (table["high"] < control["low"]).all()
    for step in (0.5, 1.0):  # about as noisy as our people
        assert abs(control.loc[step, "a : b"] / table.loc[step, "a : b"] - 1) < 0.05
    for step, smallest, largest in ((1.0, 0.005, 0.02), (2.0, 0.001, 0.004)):
        product, whole = (x / (1 + x) for x in table.loc[step, ["product", "a : c"]])
        assert smallest < product - whole < largest  # little, as a probability
    scores = table[["product", "a : c"]].map(math.log)  # the error as a score grows with the step
    assert (scores["product"] - scores["a : c"]).is_monotonic_increasing


def test_the_control_uses_the_scale_of_the_people(page, rated):
    simulated = names_after(page, "def with_bradley_terry")["simulated"]
    values = {x for r in rated for x in r.ratings}
    assert {x for r in simulated for x in r.ratings} == values == set(range(-4, 5))
    for real, drawn in zip(rated, simulated, strict=True):
        assert real.movie == drawn.movie and len(real.ratings) == len(drawn.ratings)


def test_rounding_is_a_part_of_the_cause_and_does_not_make_the_fall(page, simulations):
    people, control = odds(page)["ratio"], simulations["control"]
    for i, step in enumerate((1.0, 2.0)):
        low, high = interval(control[:, i])
        assert odds(page).loc[step, "high"] < min(low, control[:, i].min()) < high < 1
    _, largest_fall = interval(control[:, 0] - control[:, 1])
    assert people[1.0] - people[2.0] > largest_fall


def gumbel(shape):
    """Noise with the mean 0 and the size 1, not the deviation 1: that is pi / sqrt(6)."""
    return -(-torch.rand(shape).log()).log() - 0.5772157


def exact_ratios(films):
    """The ratio for the four steps, with the true means as sorters and exact shares."""
    total = torch.zeros(4, 6, dtype=torch.float64)
    for film in films:
        means = film.double().nanmean(1)
        above = ((means[:, None] - means) / 0.75).sigmoid()
        for i, step in enumerate((0.5, 1.0, 1.5, 2.0)):
            total[i] += step_choices(means, above, step)
    ab, bc, ac = (total[:, 0::2] / total[:, 1::2]).T
    return ac / (ab * bc)


def test_without_errors_of_the_sorters_the_simulated_odds_multiply(films):
    assert (exact_ratios(films) - 1).abs().max() < 0.015
    torch.manual_seed(0)  # the share is a sigmoid of the difference
    first, second = 0.75 * gumbel(40_000), 0.75 * gumbel(40_000) + 1
    expected = torch.tensor(1 / 0.75).sigmoid()
    assert abs((second > first).double().mean() - expected) < 0.01


def analyze_that(rated):
    """(mean of the sorters, ratings of the judges) of the three reviews of section 6."""
    starts = ("The movie bounces all", "Just a collection of this", "Painfully padded.")
    found = []
    for start in starts:
        (review,) = [r for r in rated if r.text.startswith(start) and r.movie == "analyze_that"]
        sorters, judges = review.ratings[0::2], review.ratings[1::2]
        found.append((sum(sorters) / len(sorters), sorted(judges, reverse=True)))
    return found


def wins(a, b):
    return sum(x > y for x in a for y in b), sum(x < y for x in a for y in b)


def test_three_reviews_whose_odds_do_not_multiply():
    a, b, c = (4, 1), (3, 0), (2, -1)
    for one, other in ((a, b), (b, c), (a, c)):
        assert tasks.preference_share(one, other) == 3 / 4
    said_a, _, said_c = [Review("", "", "val", x, fresh=True) for x in (a, b, c)]
    assert tasks.tie_share([(said_a, said_c)]) == 0


def ratios(films, generator):
    """The ratio for steps of a point and of two, with two splits as in the lesson."""
    total = torch.zeros(2, 6)
    for film in films:
        for _ in range(2):
            first, _, above = two_halves(film, generator)
            for i, step in enumerate((1.0, 2.0)):
                total[i] += step_choices(first, above, step)
    ab, bc, ac = (total[:, 0::2] / total[:, 1::2]).T
    return ac / (ab * bc)


@pytest.fixture(scope="module")
def simulations(page, rated, films):
    """Ratios of simulated people for steps of a point and of two: kind -> (5 draws, 2)."""
    draw_review = names_after(page, "def with_bradley_terry")["with_bradley_terry"]
    means = [film.nanmean(1, keepdim=True) for film in films]
    spread = [
        ((film - mean).square().nansum(1, keepdim=True) / ((~film.isnan()).sum(1, True) - 1)).sqrt()
        for film, mean in zip(films, means, strict=True)
    ]
    size = math.pi / math.sqrt(6)  # of `gumbel` with the deviation 1

    def on_the_scale(felt):
        return felt.round().clamp(-4, 4)

    def continuous(shape, mean, _):
        return mean + 0.75 * gumbel(shape)

    def normal(shape, mean, _):
        return on_the_scale(mean + 0.75 * size * torch.randn(shape))

    def unequal(shape, mean, deviation):
        return on_the_scale(mean + deviation / size * gumbel(shape))

    def careless(shape, mean, deviation):
        random_rating = torch.randint(-4, 5, shape).float()
        return torch.where(torch.rand(shape) < 0.01, random_rating, unequal(shape, mean, deviation))

    def films_of(kind):
        for film, *known in zip(films, means, spread, strict=True):
            yield kind(film.shape, *known).where(~film.isnan(), math.nan)

    found = {}
    generator = torch.Generator().manual_seed(0)  # of the splits
    torch.manual_seed(1)  # of the ratings
    for kind in (continuous, unequal, careless, normal):
        drawn = [ratios(films_of(kind), generator) for _ in range(5)]
        found[kind.__name__] = torch.stack(drawn)
    drawn = [by_film([draw_review(r) for r in rated]) for _ in range(5)]
    found["control"] = torch.stack([ratios(each, generator) for each in drawn])
    return found


def test_what_lowers_the_ratio_of_simulated_people(page, simulations):
    mean = {kind: draws.mean(0).tolist() for kind, draws in simulations.items()}
    low, high = interval(simulations["continuous"][:, 0])
    assert low < 1 < high + 0.01 and interval(simulations["continuous"][:, 1])[0] > 1
    assert mean["normal"][0] > 1 and mean["normal"][1] > 2
    people = odds(page)
    # Rounding and unequal noise are enough for a step of a point, and not for two.
    assert mean["unequal"][0] < mean["control"][0] - chance_differences(simulations)[0]
    assert mean["unequal"][0] < people.loc[1.0, "high"]
    assert interval(simulations["unequal"][:, 1])[0] > people.loc[2.0, "high"]
    # With careless ratings both are near those of our people.
    low, high = interval(simulations["careless"][:, 1])
    assert low < people.loc[2.0, "high"] and people.loc[2.0, "low"] < high
    assert mean["careless"][1] < mean["unequal"][1] - chance_differences(simulations)[1]


def chance_differences(simulations):
    """Half of the 95 % interval of the difference of two means of five draws; without normal noise."""
    rows = torch.stack([draws for kind, draws in simulations.items() if kind != "normal"])
    variance = rows.var(1).mean(0)  # of a draw, for the two steps
    degrees = rows.shape[0] * (rows.shape[1] - 1)
    return (stats.t.ppf(0.975, degrees) * (2 * variance / rows.shape[1]).sqrt()).tolist()


# ---- section 7: people


def count_labels(block):
    """(2, 3): labels of one person and of two; how many are right, decided, and all."""
    people = block.shape[1]
    one = torch.eye(people).bool()  # [p, q]: p rated the first review, q the second
    gone = torch.where(one, block[:, :, None], block[:, :, None] + block[:, None])
    left = torch.where(one, people - 1, people - 2)
    others = (block.sum(1)[:, None, None] - gone) / left  # mean without p and q
    label = block[:-1, :, None] - block[1:, None]
    right = (0.5 + 0.5 * (label * (others[:-1] - others[1:])).sign()) * (label != 0)
    counts = torch.stack([right, label != 0, torch.ones_like(label)])
    return torch.stack([counts[:, :, kind].sum((1, 2)) for kind in (one, ~one)])


def test_labels_of_one_and_two_people_are_those_of_a_loop(page):
    block = names_after(page, "blocks = {}")["blocks"][0][:4, :5]
    expected = torch.zeros(2, 3)
    people = range(block.shape[1])
    for (a, b), p, q in itertools.product(itertools.pairwise(block), people, people):
        others = [k for k in people if k not in (p, q)]
        label, gap = (a[p] - b[q]).item(), (a[others].mean() - b[others].mean()).item()
        gap = 0.0 if abs(gap) < 1e-6 else gap
        right = 0.5 if gap == 0 else float((gap > 0) == (label > 0))
        expected[int(p != q)] += torch.tensor([right * (label != 0), label != 0, 1.0])
    torch.testing.assert_close(count_labels(block), expected)


def correlations(page):
    """Of a review and the next one: on the same side, on two sides, of different blocks."""
    names = names_after(page, "blocks = {}")
    blocks, rest = names["blocks"], names["rest"]
    found = []
    for same in (True, False):
        x, y = [], []
        for block, own in zip(blocks, rest, strict=True):
            for i, (one, two) in enumerate(itertools.pairwise(block.mean(1).tolist())):
                if (one * two > 0) == same:
                    x.append(own[i])
                    y.append(own[i + 1])
        found.append(torch.stack([torch.cat(x), torch.cat(y)]).corrcoef()[0, 1].item())
    x, y = (
        torch.cat([part[k][:15, :15].flatten() for part in itertools.pairwise(rest)])
        for k in (0, 1)
    )
    return [*found, torch.stack([x, y]).corrcoef()[0, 1].item()]


def test_a_column_of_a_block_behaves_like_one_person(page):
    same, opposite, across = correlations(page)
    assert same > 0.3 and 0.05 < opposite < 0.15 and abs(across) < 0.02
    shown = names_after(page, "following = [torch")["bars"].values()
    assert list(shown) == pytest.approx([same, opposite, across], abs=1e-4)


@pytest.fixture(scope="module")
def counts(page):
    """`count_labels` of every block: (blocks, 2, 3)."""
    return torch.stack([count_labels(x) for x in names_after(page, "blocks = {}")["blocks"]])


def shares_right(counts):
    """Right if decided, ties, right with ties as halves: (..., 2, 3), of one person and of two."""
    right, decided, labels = counts.unbind(-1)
    halves = (right + 0.5 * (labels - decided)) / labels
    return torch.stack([right / decided, 1 - decided / labels, halves], -1)


def test_one_person_gives_better_labels_than_two(counts):
    one, two = shares_right(counts.sum(0)).tolist()
    assert one[0] > two[0] + 0.04 and one[1] > two[1] + 0.03
    assert 0.01 < one[2] - two[2] < one[0] - two[0]
    generator = torch.Generator().manual_seed(0)
    again = torch.randint(len(counts), (500, len(counts)), generator=generator)
    shares = shares_right(counts[again].sum(1))
    for place in (0, 2):
        assert (shares[:, 0, place] - shares[:, 1, place]).quantile(0.025) > 0


def level_and_opinions():
    """The example by hand: rows A and B, and the level."""
    level = torch.tensor([1.0, 1, -1, -1])
    opinions = torch.tensor([[1.0, -1, 1, -1], [1, -1, -1, 1]])
    return level, opinions, level + opinions


def test_the_correlation_is_the_share_of_the_levels():
    level, opinions, rows = level_and_opinions()
    everything = torch.stack([level, *opinions])
    assert torch.equal(everything @ everything.T, 4 * torch.eye(3))  # nothing to do with each other
    share = level.square().mean() / rows.square().mean(1)
    assert share.tolist() == [0.5, 0.5]
    assert rows.corrcoef()[0, 1].item() == pytest.approx(0.5)
    generator = torch.Generator().manual_seed(0)  # and for many people with other shares
    for size in (0.3, 1.0, 2.0):
        level = size * torch.randn(40_000, generator=generator)
        rows = level + torch.randn(2, 40_000, generator=generator)
        assert abs(rows.corrcoef()[0, 1].item() - size**2 / (1 + size**2)) < 0.02


@pytest.fixture(scope="module")
def people(page):
    """Spread of the levels, the same of dealt ratings, and each person's agreement with the others."""
    names = names_after(page, "blocks = {}")
    fifteen = [x for x in names["rest"] if x.shape[1] == 15]
    level = torch.cat([x.mean(0) for x in fifteen]).std().item()
    generator = torch.Generator().manual_seed(0)
    pool = torch.cat([x.flatten() for x in fifteen])
    pool = pool[torch.randperm(len(pool), generator=generator)]
    parts = pool.split([x.numel() for x in fifteen])
    by_chance = (
        torch.cat([y.view_as(x).mean(0) for x, y in zip(fifteen, parts, strict=True)]).std().item()
    )
    agree = []
    for block in names["blocks"]:
        i, j = torch.triu_indices(len(block), len(block), 1)
        others = (block.sum(1, keepdim=True) - block) / (block.shape[1] - 1)
        label, gap = block[i] - block[j], others[i] - others[j]
        right = (0.5 + 0.5 * (label * gap).sign()) * (label != 0)
        agree.append(right.sum(0) / (label != 0).sum(0))
    return level, by_chance, torch.cat(agree)


def test_people_differ_in_level_and_in_more(people):
    level, by_chance, agree = people
    assert level > 1.5 * by_chance and level == pytest.approx(0.59, abs=0.005)
    assert by_chance == pytest.approx(0.18, abs=0.005)
    assert 0.02 < (agree < 0.6).float().mean() < 0.06 < 0.8 < agree.median()


def mean_against_choices(pairs):
    """How often the higher mean and most single choices prefer different reviews."""
    return sum(
        (tasks.preference_share(a.ratings, b.ratings) - 0.5) * (a.mean - b.mean) < 0
        for a, b in pairs
    ) / len(pairs)


@pytest.fixture(scope="module")
def by_chance():
    """The two rules differ in this share of close pairs, if noise is normal.

    Each simulated person rates around the mean of the review, with the deviation of its ratings. So
    the two rules agree for very many of them.
    """
    generator = torch.Generator().manual_seed(0)
    pairs = tasks.reviews.pairs_within_films("reward")
    simulated = {}
    for r in dict.fromkeys(r for pair in pairs for r in pair):
        ratings = torch.tensor(r.ratings).float()
        noise = ratings.std() * torch.randn(len(ratings), generator=generator)
        said = (r.mean + noise).round().clamp(-4, 4).int().tolist()
        simulated[r] = replace(r, ratings=tuple(said))
    drawn = [(simulated[a], simulated[b]) for a, b in pairs]
    return mean_against_choices([(a, b) for a, b in drawn if abs(a.mean - b.mean) < 0.5])


def test_means_and_heads_differ_by_more_than_chance(by_chance):
    """Where they differ for one half of the people, the other half mostly repeats it."""
    rng = random.Random(0)
    close = tasks.reviews.pairs_within_films("reward", 0, 0.5)
    assert mean_against_choices(close) > 1.5 * by_chance
    halves = {}
    for r in dict.fromkeys(r for pair in close for r in pair):
        ratings = list(r.ratings)
        rng.shuffle(ratings)
        half = len(ratings) // 2
        halves[r] = [replace(r, ratings=tuple(x)) for x in (ratings[:half], ratings[half:])]
    same = opposite = 0
    for a, b in close:
        heads, means = zip(
            *(
                (tasks.preference_share(x.ratings, y.ratings) - 0.5, x.mean - y.mean)
                for x, y in zip(halves[a], halves[b], strict=True)
            ),
            strict=True,
        )
        if heads[0] * means[0] < 0 and heads[1] * means[1] < 0:
            same += heads[0] * heads[1] > 0
            opposite += heads[0] * heads[1] < 0
    assert same > 2 * opposite > 0


# ---- section 8: labels of simulated people


@pytest.fixture(scope="module")
def simulated_people(rated, tmp_path_factory):
    """What the lesson's table shows, without a person's file."""
    folder = tmp_path_factory.mktemp("labels")
    generator = torch.Generator().manual_seed(0)
    ratings = {r.text: r.ratings for r in rated}
    paths = []
    for name in ("simulated 1", "simulated 2"):
        pairs = tasks.pairs_to_label(count=30, repeats=6, seed=0)
        person = tasks.LabelSession(pairs, folder / f"{name}.jsonl", name)
        for pair in pairs:
            said = [
                x[torch.randint(len(x), (), generator=generator)]
                for x in (ratings[pair.left], ratings[pair.right])
            ]
            order = (said[0] > said[1]) - (said[0] < said[1])
            person.choose({1: "left", -1: "right", 0: "tie"}[order])
        paths.append(person.path)
    return evaluate.label_agreement(tasks.read_labels(*paths)).set_index(
        ["comparison", "annotator"]
    )


@pytest.fixture(scope="module")
def drawn():
    """Four draws of 1,000 labels. Fewer labels of the same seed are the first of them."""
    draws = [tasks.reviews.preference_pairs("reward", 1000, seed=s).to_pandas() for s in range(4)]
    fewer = tasks.reviews.preference_pairs("reward", 30, seed=1).to_pandas()
    assert fewer.equals(draws[1][:30])
    return draws


@pytest.fixture(scope="module")
def new():
    """The lesson's test labels."""
    return tasks.reviews.preference_pairs("test", 4000, seed=9).to_pandas()


@pytest.fixture(scope="module")
def curve(learning, drawn, new):
    """right on the lesson's test labels: (draws, numbers of clicks)."""
    learn, right_on = learning
    return torch.tensor(
        [
            [right_on(new, learn(x["chosen"][:n], x["rejected"][:n])) for n in (*CLICKS, 1000)]
            for x in drawn
        ]
    )


def turn(pairs):
    """Which labels go against the means."""
    return pairs["chosen_mean"] < pairs["rejected_mean"]


@pytest.fixture(scope="module")
def turned(learning, drawn, new):
    """right with labels from the means, four draws."""
    learn, right_on = learning
    found = []
    for pairs in drawn:
        chosen = pairs["chosen"].where(~turn(pairs), pairs["rejected"])
        rejected = pairs["rejected"].where(~turn(pairs), pairs["chosen"])
        found.append(right_on(new, learn(chosen, rejected)))
    return torch.tensor(found)


@pytest.fixture(scope="module")
def bag(new):
    """right of the bag of words that learns from all ratings."""
    ridge = rewards.ridge_judge("reward")
    words = ridge(new["prompt"], new["chosen"]) > ridge(new["prompt"], new["rejected"])
    return words.float().mean().item()


def test_a_thousand_clicks_teach_something_and_ten_nothing(curve, bag):
    assert abs(curve[:, 0].mean() - 0.5) < 0.03 and curve[:, 2].max() < 0.56
    assert curve[:, 4].min() > 0.53
    means = curve[:, [0, 2, 3, 4]].mean(0)
    assert means[0] < means[1] < means[2] < means[3] < bag
    assert 0.4 < (means[3] - 0.5) / (bag - 0.5) < 0.6


def test_labels_from_the_means_are_hardly_better(curve, turned, drawn):
    better = turned - curve[:, 4]
    assert abs(better.mean()) < 0.02
    assert abs(better.mean()) < 3.18 * better.std() / 2  # t interval of four draws: 0 is inside
    for pairs in drawn:  # the labels that turn are those of close pairs
        gap = (pairs["chosen_mean"] - pairs["rejected_mean"]).abs()
        assert gap[turn(pairs)].mean() < gap[~turn(pairs)].mean() / 3


def given_bug():
    """`held_out_pairs` as exercise 4 gives it."""
    names = {"torch": torch}
    (cell,) = [
        cell.source
        for cell in lesson_of(jupytext.read(SOURCE)).cells
        if cell.source.startswith("def held_out_pairs")
    ]
    exec(cell.split("\n\n\n")[0], names)
    return names["held_out_pairs"]


def her_pairs():
    """The pairs of exercise 4 and their films, numbered from 0."""
    hers = tasks.reviews.preference_pairs("val", 3000, seed=0).to_pandas()
    film = torch.tensor(hers["prompt"].factorize(sort=True)[0])
    assert film.max() + 1 == 24
    return hers, film


@pytest.fixture(scope="module")
def leak(learning):
    """The two curves of exercise 4 with the bug and without, and hers minus the other for 20 draws.

    A draw holds out eight of her films, at random.
    """
    learn, right_on = learning
    hers, film = her_pairs()
    unseen = tasks.reviews.preference_pairs("test", 2000, seed=1).to_pandas()

    def right(held, size):
        drawn = hers[~held][:size]
        model = learn(drawn["chosen"], drawn["rejected"])
        return right_on(hers[held], model), right_on(unseen, model)

    curves = [
        list(zip(*(right(held(film, 8).numpy(), n) for n in (100, 300, 1000, 2000)), strict=True))
        for held in (given_bug(), check.held_out_pairs.reference)
    ]
    generator = torch.Generator().manual_seed(0)
    eights = [torch.randperm(24, generator=generator)[:8] for _ in range(20)]
    both = torch.tensor([right(torch.isin(film, eight).numpy(), 1000) for eight in eights])
    return *curves, both[:, 0] - both[:, 1]


def test_a_split_that_mixes_films_makes_the_accuracy_too_high(leak):
    with_bug, mended, _ = leak
    assert all(a > b + 0.05 for a, b in zip(*with_bug, strict=True))
    assert with_bug[0][2] > mended[0][2] + 0.1
    assert check.held_out_pairs(lambda film, n: film > film.max() - n)


def test_the_checker_does_not_name_the_bug_that_the_exercise_gives():
    result = check.held_out_pairs(given_bug())
    assert not result and "On paper" in result.message and "order" not in result.message


def test_the_logistic_regression_is_a_bradley_terry_model(learning):
    """Its weights minimise the Bradley-Terry loss of the pairs, with a penalty on the weights."""
    learn, _ = learning
    chosen = ["good film", "good", "fine good film", "fine"]
    rejected = ["bad film", "bad fine", "bad", "bad film film"]
    score = learn(pd.Series(chosen), pd.Series(rejected))
    words = ["bad", "film", "fine", "good"]
    weights = torch.tensor(score(words), dtype=torch.float64, requires_grad=True)

    def scores(texts):
        counts = [[Counter(text.split())[word] for word in words] for text in texts]
        return torch.tensor(counts, dtype=torch.float64) @ weights

    loss = -torch.nn.functional.logsigmoid(scores(chosen) - scores(rejected)).sum()
    loss = loss + weights.square().sum() / 2
    (gradient,) = torch.autograd.grad(loss, weights)
    assert gradient.abs().max() < 1e-3


# ---- every number of the prose


def test_the_numbers_of_the_prose(
    page,
    rated,
    films,
    chance,
    ceilings_of_few,
    bag,
    simulations,
    counts,
    simulated_people,
    curve,
    turned,
    drawn,
    new,
    by_chance,
    leak,
):
    with lesson("02") as said:
        what_a_label_is(said, page, rated)
        disagreement(said, page, rated)
        pairs_and_labels(said, page, rated)
        the_ceiling(said, page, ceilings_of_few, bag)
        bradley_terry(said, page, rated, simulations)
        means_and_heads(said, page, rated, by_chance)
        labelling(said, simulated_people, curve, drawn, new)
        exercises_and_questions(said, page, drawn, turned - curve[:, 4], ceilings_of_few, leak)
        going_further(said, page, films, chance, simulations)
        people_and_scales(said, page, counts)


def test_the_numbers_of_the_solutions():
    path = NOTEBOOKS / "solutions" / "02_human_feedback_is_data.ipynb"
    said = Said(nbformat.read(path, 4).cells)
    said("the standard error of a mean is", 1 / math.sqrt(15))


def what_a_label_is(said, page, rated):
    said("- At least", min(len(r.ratings) for r in rated), len(rated), -4, 4)
    three = pd.concat(names_after(page, "rated = [")["three"])
    joke, neutral, positive = (row for _, row in three.iterrows())
    negative = sum(x < 0 for x in joke["ratings"])
    assert "this remake" in three.index[0]
    said(
        "highest deviation of all. Six people rated it as negative",
        negative == 6,
        len(joke["ratings"]) - negative == 9,
    )
    said("nearly all people gave it", 0, Counter(neutral["ratings"])[0] > 20)
    said("third review** is praise, and people agree", positive["deviation"] < 0.4)
    said("The first two have almost the same mean", abs(joke["mean"] - neutral["mean"]) < 0.3)
    said("has the highest deviation", joke["deviation"] > 2.7)


def disagreement(said, page, rated):
    names = names_after(page, "torch.manual_seed(0)")
    deviation = names["people"]
    sizes = [len(ratings) for ratings in names["reviews"]["ratings"]]
    assert abs(sum(sizes) / len(sizes) - 18) < 1  # the code draws 18 ratings of each review
    said("and cut off at", -4, 4)
    said("The deviation of the noise,", 1.2, abs(deviation[0.0] - 1.2) < 0.05)
    said("The deviation is", deviation[0.0], 0, deviation[-2.0], deviation[2.0], -2, 2)
    near, simulated = shares_near(rated, 0), simulated_near_0(page)
    far = {centre: far_from(rated, centre) for centre in (0, -2, 2)}
    said("**Do people avoid the", 0, 0, -1, near[-1], 1, near[1], 0, near[0], 0, simulated[0], 0)
    said("but not all. Near a mean of", 0, far[0], 0, -2, far[-2], -2, 2, far[2], 2)
    said("Is a deviation of", 1)
    said("agree about every review, alpha is", tasks.krippendorff_alpha([(1, 1), (3, 3)]))
    said("**By hand.** Two people gave review A a", 2, 1, -1, 0, 1, 1)
    said("For $D_e$ we take all six pairs", True)
    said("| pair |", 2, 1, 2, 0, 2, -1, 1, 0, 1, -1, 0, -1)
    squares = [(a - b) ** 2 for a, b in itertools.combinations((2, 1, 0, -1), 2)]
    assert sorted(squares) == sorted([1, 4, 9, 1, 4, 1])
    said("| squared difference |", 1, 4, 9, 1, 4, 1, sum(squares) / 6, 10 / 3)
    said("**Why is chance", 0)
    deals = {"I": ((2, 1), (-1, 0)), "II": ((2, 0), (1, -1)), "III": ((2, -1), (1, 0))}
    for name, (a, b) in deals.items():
        one, other = (a[0] - a[1]) ** 2, (b[0] - b[1]) ** 2
        alpha = tasks.krippendorff_alpha([a, b])
        said(f"| deal {name} |", *a, *b, one, other, 2, (one + other) / 2, alpha)
    said("The mean of the three $D_o$ is", (1 + 4 + 5) / 3)
    said("So random deals have an alpha of", 0)
    (observed, expected), (close, narrow) = measures(page)
    everything, middle = alphas(page)
    said(
        "alpha for all reviews, and for the", len(names_after(page, "middle = r")["middle"]), -1, 1
    )
    said("*All reviews*:", observed, expected, everything, 0.15 < 1 - everything < 0.25)
    said("*Middle reviews*:", close, narrow, 0, middle)
    said("rely on ratings with an alpha of", 0.8, 0.67)  # Krippendorff 2004: 0.800 and 0.667
    said("So our ratings, with", everything, 0.797 < everything < 0.8, middle < 0.667)


def pairs_and_labels(said, page, rated):
    a, b = (3, 1), (2, 1)
    said("**By hand.** People gave review A a", *a, *b)
    said("| | B:", *b)
    said("| first rating of A:", a[0])
    said("| second rating of A:", a[1], a[1] == b[1])
    said("the label says A with probability", tasks.preference_share(a, b))
    films = Counter({r.movie: r.split for r in rated}.values())
    said("The splits of the", sum(films.values()))
    said("films: *reward*", *(films[split] for split in ("reward", "gold", "val", "test")))
    pairs = tasks.reviews.pairs_within_films("reward")
    said("is never told so. On the reward films,", tasks.tie_share(pairs[::10]))
    drawn = names_after(page, "drawn = tasks")
    said("Of these", len(drawn["drawn"]), drawn["against"].mean())
    first, second = (row for _, row in drawn["two"].iterrows())
    assert first["chosen_mean"] > first["rejected_mean"]
    shown = {frozenset(row[["chosen", "rejected"]]) for row in (first, second)}
    for pair in tasks.pairs_to_label(count=30, repeats=6, seed=0):  # the page shows none of them
        assert frozenset((pair.left, pair.right)) not in shown
    said(
        "of the review that most people rated low",
        second["chosen_mean"] < second["rejected_mean"] - 1,
    )
    highest = {r.text: max(r.ratings) for r in rated}
    lowest = {r.text: min(r.ratings) for r in rated}
    assert highest[second["chosen"]] > lowest[second["rejected"]]


def the_ceiling(said, page, ceilings_of_few, bag):
    a, b = (3, 3, 1), (2, 0)
    said("gave review A the ratings", *a)
    said("and two gave review B", *b)
    labels = {"I": (0, 0), "II": (0, 1), "III": (2, 0), "IV": (2, 1)}
    total = 0
    for name, (i, j) in labels.items():
        rest = [x[:k] + x[k + 1 :] for x, k in ((a, i), (b, j))]
        others = [sum(x) / len(x) for x in rest]
        gap = (others[0] - others[1]) * (a[i] - b[j])
        right = 0.5 if gap == 0 else float(gap > 0)
        total += right * a.count(a[i])
        worked = (3, 1, 2) if name == "I" else ()
        said(f"| label {name} |", a[i], b[j], *worked, *others, others[0] - others[1], right)
    said("Together", 1, 1, 0.5, 0.5, 0, 1, total, 6, total / 6)
    pairs = tasks.reviews.pairs_within_films("reward")
    films = {r.movie for pair in pairs for r in pair}
    said("Now the", len(pairs), len(films))
    against = names_after(page, "drawn = tasks")["against"].mean()
    said("- The means of *all* ratings are right on", of_all_ratings(pairs), 1 - against)
    close, *_, clear, _, every = names_after(page, "pairs = tasks.reviews.pa")["ceilings"].values()
    said("*Gaps below half a point*:", close, 0.5, 2, clear)
    said("ceiling of all labels is lower", every < of_all_ratings(pairs[::8]) - 0.01)
    said("*All labels*:", every)
    others = sum(len(r.ratings) - 1 for pair in pairs for r in pair) / (2 * len(pairs))
    four, eight = ceilings_of_few
    said("The others are about", others, 4, four, 8, eight)
    runs = experiments.results("reward_model")
    runs = runs[(runs.low == 0) & (runs.high == 8)]
    said("The reward model of lesson 08 is right on", runs["reward model"].mean())
    of_films = tasks.human_ceiling(pairs_of_test_films())
    accuracy = experiments.results("labels").groupby("pairs").accuracy.mean()
    said("of the *test* films. The ceiling there is", runs["human ceiling"].mean())
    said("More labels: it was right on", accuracy[6400], 6400, accuracy[25_600], 25_600)
    said("learned from the mean of all ratings, is right on", bag)
    right, most = runs["reward model"].mean(), runs["human ceiling"].mean()
    said("So the model is wrong on", 1 - right, 1 - most)
    said("The difference is more than half of the model's errors", most - right > 0.5 * (1 - right))
    assert round(of_films, 2) == round(runs["human ceiling"].mean(), 2)


def bradley_terry(said, page, rated, simulations):
    said("if $a$ beats $b$", 3, 1, 3, 1, 9, 1)
    (first, a), (second, b), (third, c) = analyze_that(rated)
    said("The movie bounces all over the map. |", first, *a)
    said("Just a collection of this and that [...] |", second, *b)
    said("Painfully padded. |", third, *c)
    assert 0.75 < first - second < 1.25 and 0.75 < second - third < 1.25
    (ab, ba), (bc, cb), (ac, ca) = wins(a, b), wins(b, c), wins(a, c)
    said("each of $b$: $a$ is higher", ab, ba, ab / ba)
    said("Then $b$ and $c$:", bc, cb, bc / cb, ab / ba * bc / cb, ac, ca, ac / ca)
    said("reviews are one step apart. For a step of", 1, 0.75, 1.25)
    films = len({r.movie for r in rated})
    said("all triples of all", films, 0.5, 1, 1.5, 2, 0.25)
    said("Its **95 % interval**: we draw the", films, 500, 0.95)
    said("whole number from", -4, 4)
    said("In the example the ratio is", (ac / ca) / (ab / ba * bc / cb), 1)
    said("Is it nearer to", 1)
    said("And is it", 1)
    half, one, two = (odds(page).loc[step] for step in (0.5, 1.0, 2.0))
    of_half, of_one, of_two = (odds(page, CONTROL).loc[step] for step in (0.5, 1.0, 2.0))
    product, whole = one["product"], one["a : c"]
    said("*Half a point.* The ratio is", half["ratio"], of_half["ratio"], 1, 1, 1, 1, 1 * 1)
    draws = simulations["control"]
    said("*A point.* The odds are", whole, product, one["ratio"], of_one["ratio"])
    shares = [(1 - x) / (1 - one["ratio"]) for x in (of_one["ratio"], draws[:, 0].mean().item())]
    said("makes about half of what is missing", all(0.4 < x < 0.6 for x in shares))
    said("*Two points.* The ratio falls to", *two[["ratio", "low", "high"]])
    more = draws[:, 1]
    assert len(more) == 5
    said(
        "The control's ratio is",
        of_two["ratio"],
        5,
        more.min(),
        more.max(),
        two["high"] < more.min(),
    )
    below = (odds(page)["high"] < odds(page, CONTROL)["low"]).all()
    said("At each step the people are below the control", below)
    said("So rounding alone does not make the fall to", two["ratio"])
    unrounded = simulations["continuous"][:, 1].mean().item()
    said("simulated people have", unrounded)
    said("(It is more than", 1, unrounded > 1 > more.mean())
    probability = [x / (1 + x) for x in (product, whole)]
    said("For a step of 1, odds of", product, probability[0], whole, probability[1])
    score = [math.log(two[name]) for name in ("product", "a : c")]
    said("and grows with the step. For a step of", 2, two["product"], score[0])
    said("The people's odds are", two["a : c"], score[1])
    said("it is tiny. For a step of", 1)


def people_and_scales(said, page, counts):
    blocks = names_after(page, "blocks = {}")["blocks"]
    said("it comes in blocks of", 30, {len(block) for block in blocks} == {30, 15})
    level, opinions, rows = level_and_opinions()
    means = torch.tensor([1, 2])
    said("The mean of A is", *means)
    for name, ratings in zip("AB", means[:, None] + rows, strict=True):
        said(f"| rating of {name} |", *ratings)
    said("| person |", 1, 2, 3, 4)
    said("| level |", *level)
    said("| opinion of A |", *opinions[0])
    said("| opinion of B |", *opinions[1])
    said("| A minus its mean: level + opinion |", *rows[0])
    said("| B minus its mean: level + opinion |", *rows[1])
    square = rows.square().mean(1).tolist()
    assert square[0] == square[1]
    own = opinions.square().mean(1).tolist()
    said("each of the last two rows is", square[0], level.square().mean(), own[0], 0.5)
    assert own[0] == own[1]
    said("rows, divided by their mean square", square[0])
    product = (rows[0] * rows[1]).mean().item()
    assert product == level.square().mean()
    said("Only $l^2$ remains", product)
    said("The correlation of the two rows is also", 0.5, abs(rows.corrcoef()[0, 1] - 0.5) < 1e-6)
    same, opposite, across = correlations(page)
    said("*Next block*:", across, 0)
    said("*Both liked or both not*", same, abs(same - 1 / 3) < 0.04)
    said("*One liked, one not*:", opposite)
    one, two = shares_right(counts.sum(0)).tolist()
    said("The others are right on", one[0], two[0], one[2], two[2], one[1] > two[1])
    halved = one[2] - two[2] < 0.5 * (one[0] - two[0])
    said("So more than half of the difference comes from ties", halved)
    said("so the last three terms are", 0)


def means_and_heads(said, page, rated, by_chance):
    a, b = (4, -1, -1), (0, 0, 0)
    said("rate review A with", *a, *b)
    said("| mean rating |", sum(a) / 3, sum(b) / 3)
    share = tasks.preference_share(a, b)
    said("| share of the labels |", share, 1 - share)
    said("B is chosen in", 1 - share)
    close, clear = (
        mean_against_choices(tasks.reviews.pairs_within_films("reward", *band))
        for band in ((0, 0.5), (0.5, 8))
    )
    said("They differ in", close, clear < 0.001)
    apart = [abs(r.mean - torch.tensor(r.ratings).float().quantile(0.5).item()) for r in rated]
    said("But for", sum(x < 0.5 for x in apart) / len(apart))
    said("About half of the", close, by_chance, 0.4 < by_chance / close < 0.6)
    joke = names_after(page, "rated = [")["three"][0].iloc[0]
    clear = sum(abs(x) >= 2 for x in joke["ratings"])
    said("most of its readers were far from", 0, clear > 0.7 * len(joke["ratings"]))


def words_of(pairs):
    """The words of the reviews of some pairs, as the model of section 8 counts them."""
    words = CountVectorizer(token_pattern=r"\w+").build_analyzer()
    return [
        word for column in ("chosen", "rejected") for text in pairs[column] for word in words(text)
    ]


def labelling(said, simulated_people, curve, drawn, new):
    said("The next cell shows", 30)
    first = simulated_people.loc["with the crowd"].iloc[0]
    said(
        "drew one rating of each review. Of", first.pairs, 7, first.agree, first.low, first.high, 30
    )
    assert first.ties == 7
    said(
        "The next figure shows how often the model is right on",
        4000,
        len(tasks.reviews.eval_prompts("test")),
    )
    said("How often is it right after", 100, 1000)
    mean = curve.mean(0)
    low, high = interval(curve[:, 2])
    said("*Ten to a hundred clicks*:", *mean[:3], mean[2], low, high, len(curve))
    assert all(interval(curve[:, i])[0] < 0.5 < interval(curve[:, i])[1] for i in range(3))
    low, high = interval(curve[:, 3])
    said("*Three hundred clicks*:", mean[3], low, high, low > 0.5)
    said("*A thousand clicks*:", mean[4])
    known = [set(words_of(pairs[:100])) for pairs in drawn]
    size = sum(map(len, known)) / len(known)
    every = words_of(new)
    missed = sum(word not in words for words in known for word in every) / len(every) / len(known)
    said("Why so many? A hundred pairs have about", round(size, -2), 100, missed)


def exercises_and_questions(said, page, drawn, better, ceilings_of_few, leak):
    said("If all of them tie, return", 0.5)
    said("*Hint:* take two numbers,", 2, 6)
    said("divides by n −", 1)
    said("that the other m −", 1, 1)
    val = {r.movie for pair in tasks.reviews.pairs_within_films("val") for r in pair}
    said("A colleague has", 3000, len(her_pairs()[1].unique()), len(val))
    with_bug, mended, difference = leak
    said("*With the bug*, the model is right on", with_bug[0][0], 100, with_bug[0][3], 2000)
    said("On films never seen it is right on less than", 0.6, max(with_bug[1]) < 0.6)
    lower = [b - a for a, b in zip(*mended, strict=True)]
    said("*Without it*, both curves stay below", 0.6, max(*mended[0], *mended[1]) < 0.6)
    said("Hers is now the lower one at first, by up to", 100 * max(lower), min(lower[:2]) > 0)
    mean, deviation = 100 * difference.mean(), 100 * difference.std()
    said("We held out eight of her films at random,", len(difference), mean, deviation)
    said("Suppose that each of", 1000, sum(turn(pairs).mean() for pairs in drawn) / 4)
    error = better.std() / 2
    said("The differences are", *better, better.mean(), error)
    factor = stats.t.ppf(0.975, 3)  # 3 degrees of freedom
    ends = (better.mean() - factor * error, better.mean() + factor * error)
    said("the 95 % interval is the mean ±", factor, *ends)
    said("So we cannot tell the difference from", 0, ends[0] < 0 < ends[1])
    gap = (drawn[0]["chosen_mean"] - drawn[0]["rejected_mean"]).abs()
    said("Their means differ by", gap[turn(drawn[0])].mean(), gap[~turn(drawn[0])].mean())
    size = min(len(set(words_of(pairs))) for pairs in drawn)
    said("noise is not the main problem:", len(drawn[0]), 6000, size > 6000)
    said("1. Alpha is", alphas(page)[0], alphas(page)[0])
    close, *_ = names_after(page, "pairs = tasks.reviews.pa")["ceilings"].values()
    said("the other people's means predict only", close)
    said("squared disagreement is a fifth of what", abs(1 - alphas(page)[0] - 0.2) < 0.02)
    said("4. A reward model is right on", 0.88, tasks.human_ceiling(pairs_of_test_films()))
    every = names_after(page, "pairs = tasks.reviews.pa")["ceilings"]["all labels"]
    four, eight = ceilings_of_few
    gains = 100 * (eight - four), 100 * (every - eight)
    said("But on the reward films,", 8, 4, gains[0], 18, 8, gains[1], 4, gains[1] < gains[0])
    said("You can pay for", 3000, 3000, 15 * 200 / 15)


def pairs_of_test_films():
    return tasks.reviews.pairs_within_films("test")


def going_further(said, page, films, chance, simulations):
    said("plus Gumbel noise of size", 0.75, 0.75)
    said("for which $e^r$ is", 9, 3, 1, 3 / 1, 9 / 3, 9 / 1)
    found = []
    for pair, a, b in (("close", 3, 1), ("distant", 9, 1)):
        first, second = a / (a + 2 * b), b / (b + 2 * a)
        found.append(first / second)
        worked = (a, b, a, a, 2 * b, first, b, b, 2 * a, second)
        said(f"| a {pair} pair,", *worked, 1 - first - second, found[-1])
    once, twice = found
    said("The odds of", 3, once)
    said("So Bradley-Terry now predicts", once, once, once**2, 9, 9, twice, twice / once**2)
    means = {kind: draws.mean(0) for kind, draws in simulations.items()}
    said("| simulated people | ratio, a step of", 1, 2)
    said("| Gumbel noise, the same for all reviews,", *means["continuous"])
    said("| and rounded, ties dropped (the control) |", *means["control"])
    said("| and the noise of each review", *means["unequal"])
    said("| and one rating in a hundred is a random number from", -4, 4, *means["careless"])
    said("| **our people** |", *odds(page).loc[[1.0, 2.0], "ratio"])
    assert all(len(draws) == 5 for draws in simulations.values())
    one, two = chance_differences(simulations)
    said("Differences below", 0.02, 1, 0.1, 2, 0.01 < one < 0.02, 0.05 < two < 0.1)
    ratio = odds(page).loc[1.0, "ratio"]
    said("- For a small step, of", 1, means["unequal"][0] < ratio < means["control"][0])
    sizes = [(~film.isnan()).sum(1) for film in films]
    said("We measured each deviation with about", torch.cat(sizes).double().mean())
    said("- For a large step, of", 2, means["unequal"][1] > odds(page).loc[2.0, "high"])
    said("And the kind of noise matters: with normal noise the control has", *means["normal"])
    said("| one triple |", 2, 8, 16)
    said("| another triple |", 8, 2, 16)
    added = (2 / 3 + 8 / 9) / (1 / 3 + 1 / 9)
    far = (16 / 17 + 16 / 17) / (1 / 17 + 1 / 17)
    shares = (2 / 3, 8 / 9, 1 / 3, 1 / 9, added, 8 / 9, 2 / 3, 1 / 9, 1 / 3, added)
    said("| shares added |", *shares, 16 / 17, 16 / 17, 1 / 17, 1 / 17, far)
    said("the product is", added**2, 16, 16 / added**2)
    exact = exact_ratios(films)
    said("the exact ratios lie between", exact.min(), exact.max())
    plug_in, labels, pairs = chance
    said("We tried both ways on", len(pairs), 0.5, plug_in)
    said("Without the two ratings of the label we get", ceiling_of(labels, 0, 8, by=0))
    said("of *all* ratings differ by less than", 0.5, ceiling_of(labels, 0, 0.5, by=1))
    a, b = (3, 1), (1, 3)
    said("For example, A has the ratings", *a, *b, sum(a) / 2, a[0], b[0])
    said("The others gave A a", a[1], b[1], a[0] > b[0], a[1] < b[1])
    said("- Llama", 2)
    said("people ranked", 4, 9)
