"""Lesson 02, human feedback is data: every number of its prose, computed from the ratings."""

import itertools
import math
from collections import Counter

import jupytext
import pandas as pd
import pytest
import torch

from minirlhf import evaluate, experiments, rewards, tasks
from minirlhf.classroom import check
from minirlhf.classroom.course import NOTEBOOKS, lesson_of
from tests.claims.prose import lesson

SOURCE = NOTEBOOKS / "src" / "02_human_feedback_is_data.py"
CLICKS = (10, 30, 100, 300)


@pytest.fixture(scope="module")
def page():
    """The names of the lesson after each code cell up to section 7, by the cell's first words."""
    names, after = {}, {}
    for cell in lesson_of(jupytext.read(SOURCE)).cells:
        if cell.cell_type == "code":
            if cell.source.startswith("to_label"):
                return after
            exec(cell.source, names)
            after[cell.source[:24]] = dict(names)
    raise AssertionError("the lesson has no section 8")


@pytest.fixture(scope="module")
def rated():
    return [r for r in tasks.reviews.load_reviews() if r.ratings]


@pytest.fixture(scope="module")
def learning():
    """`learn` and `right_on`, as the lesson defines them."""
    names = {}
    for cell in lesson_of(jupytext.read(SOURCE)).cells:
        if cell.source.startswith(("import tempfile", "def learn")):
            exec(cell.source, names)
    return names["learn"], names["right_on"]


def names_after(page, start):
    """The names after the one cell that begins so."""
    (found,) = [names for cell, names in page.items() if cell.startswith(start)]
    return found


# ---- section 2 and 3: disagreement


def test_people_disagree_most_about_lukewarm_reviews(page):
    names = names_after(page, "torch.manual_seed(0)")
    people, equal = names["people"], names["equal"]
    assert abs(people.idxmax()) <= 0.5
    assert people[0.0] > 1.2 * people[2.0] and people[0.0] > 1.2 * people[-2.0]
    assert people[-2.0] > people[2.0]
    assert equal[2.0] > 0.95 * equal[0.0] > 0.95 * equal[-2.0] > 0.9 * equal[0.0]
    assert max(equal[3.5], equal[-3.5]) < 0.8 * equal[0.0]


def test_the_mean_alpha_over_all_deals_is_0():
    deals = [((2, 1), (-1, 0)), ((2, 0), (1, -1)), ((2, -1), (1, 0))]
    observed = [((a - b) ** 2 + (c - d) ** 2) / 2 for (a, b), (c, d) in deals]
    expected = sum((a - b) ** 2 for a, b in itertools.combinations((2, 1, 0, -1), 2)) / 6
    assert sum(observed) / 3 == expected == 10 / 3
    alphas = [tasks.krippendorff_alpha(deal) for deal in deals]
    assert alphas == pytest.approx([1 - x / expected for x in observed], abs=1e-12)
    assert sum(alphas) == pytest.approx(0, abs=1e-12)


def alphas(page):
    names = names_after(page, "generator = torch")
    return [
        tasks.krippendorff_alpha(groups)
        for groups in (
            names["reviews"]["ratings"],
            [group.tolist() for group in names["dealt"]],
            names["lukewarm"]["ratings"],
        )
    ]


def test_alpha_is_high_for_all_reviews_0_by_chance_and_low_for_lukewarm_ones(page):
    everything, chance, lukewarm = alphas(page)
    assert 0.79 < everything < 0.81 and abs(chance) < 0.005 and lukewarm < 0.25
    names = names_after(page, "generator = torch")
    deviation = names["reviews"]["deviation"]
    inside = deviation[names["lukewarm"].index].pow(2).mean() / deviation.pow(2).mean()
    means = names["reviews"]["mean"].var(), names["lukewarm"]["mean"].var()
    assert 1 < inside < 1.6 and means[1] < means[0] / 5  # above all, they are alike


# ---- section 4 and 5: pairs and the ceiling


def test_close_pairs_tie_more_and_have_a_lower_ceiling(page):
    table = names_after(page, "pairs = tasks.reviews.pa")["table"].astype(float)
    parts = table.iloc[:-1]
    assert parts["human ceiling"].is_monotonic_increasing and parts["ties"].is_monotonic_decreasing
    assert 0.55 < parts["human ceiling"].iloc[0] < 0.65
    assert (parts["human ceiling"].iloc[3:] > 0.965).all()


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
def chance(page):
    """Pairs of dealt ratings: (share by all ratings, their labels, the pairs)."""
    dealt = names_after(page, "generator = torch")["dealt"][:6000]
    dealt = [tuple(group.tolist()) for group in dealt]
    pairs = list(zip(dealt[::2], dealt[1::2], strict=True))
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
    answer = check.choice_ceiling.reference(a, b)
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
    ceiling = names_after(page, "pairs = tasks.reviews.pa")["table"]["human ceiling"].iloc[-1]
    assert 0.75 < agreements[0] < ceiling and 0.48 < agreements[1] < 0.55


# ---- section 6: Bradley-Terry


def test_the_choices_of_one_half_are_those_of_a_loop(page):
    names = names_after(page, "scale = torch")
    film = names["films"].iloc[0][:5]
    names["generator"].manual_seed(3)
    first, second, above = names["two_halves"](film)
    names["generator"].manual_seed(3)
    halves = []
    for review in film:
        order = torch.randperm(len(review.ratings), generator=names["generator"])
        halves.append(torch.tensor(review.ratings)[order].chunk(2))
    for i, (one, other) in enumerate(halves):
        assert first[i] == pytest.approx(one.float().mean().item(), abs=1e-6)
        assert second[i] == pytest.approx(other.float().mean().item(), abs=1e-5)
        for j, (_, third) in enumerate(halves):
            wins = sum(x > y for x in other.tolist() for y in third.tolist())
            assert above[i, j].item() == pytest.approx(wins / (len(other) * len(third)), abs=1e-5)


def test_triples_are_those_of_a_loop(page):
    names = names_after(page, "def triples")
    first, second, above = names["split"][0]
    expected = torch.zeros(6)
    for a, b, c in itertools.permutations(range(len(first)), 3):
        steps = (first[a] - first[b]).item(), (first[b] - first[c]).item()
        if all(0.75 <= step < 1.25 for step in steps):
            order = ((a, b), (b, a), (b, c), (c, b), (a, c), (c, a))
            expected += torch.stack([above[i, j] for i, j in order])
    found = names["triples"](first, second, above, 1.0)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def bend(page):
    """Logit per point for the closest pairs and at a gap of 4: value, low, high."""
    names = names_after(page, "def sums")
    ahead, behind, gap, count = names["redrawn"].unbind(-1)
    slopes = (ahead / behind).log() / (gap / count)
    ends = slopes.quantile(torch.tensor([0.025, 0.975]), 0)
    value = names["logit"] / names["gap"]
    at_4 = (names["gap"] - 4).abs().argmin()
    assert abs(names["gap"][at_4] - 4) < 0.1
    return [[x.item() for x in (value[i], ends[0, i], ends[1, i])] for i in (0, at_4)]


def test_the_logit_bends_down(page):
    close, far = bend(page)
    assert close[1] > 1.15 * far[2]
    names = names_after(page, "def sums")
    unit = (names["logit"] @ names["gap"]) / names["gap"].square().sum()
    assert ((names["logit"] / names["gap"] / unit - 1).abs() < 0.6).all()  # nearly in proportion


def odds(page):
    return names_after(page, "table = pd.DataFrame(\n ")["table"].astype(float)


def test_odds_of_two_steps_are_less_than_the_product(page):
    table = odds(page)
    assert (table["to"] < 1).all() and table["ratio"].is_monotonic_decreasing
    product, whole = (x / (1 + x) for x in table.loc["step 1", ["product", "a : c"]])
    assert 0.005 < product - whole < 0.02  # little, as a probability


@pytest.fixture(scope="module")
def other_splits(page):
    """The ratio for steps of a point with two other splits of the people."""
    names = names_after(page, "def triples")
    ratios = []
    for seed in (1, 2):
        names["generator"].manual_seed(seed)
        sums = sum(names["triples"](*names["two_halves"](film), 1.0) for film in names["films"])
        ab, bc, ac = sums[0::2] / sums[1::2]
        ratios.append((ac / (ab * bc)).item())
    return ratios


def simulated_halves(ratings):
    """What `two_halves` returns, for ratings that may be any numbers."""
    halves = [x[torch.randperm(len(x))].chunk(2) for x in ratings]
    first, second = (torch.stack([pair[k].mean() for pair in halves]) for k in (0, 1))
    padded = torch.nn.utils.rnn.pad_sequence(
        [other for _, other in halves], batch_first=True, padding_value=math.nan
    )
    counts = (~padded.isnan()).sum(1).float()
    wins = (padded[:, None, :, None] > padded[None, :, None, :]).sum((2, 3))
    return first, second, wins / (counts[:, None] * counts)


def measured(page, ratings_of):
    """(logit per point at gaps of 0.2, 2 and 4, ratio for steps of a point) of simulated ratings."""
    names = names_after(page, "def triples")
    torch.manual_seed(0)
    total, three = torch.zeros(10, 4), torch.zeros(6)
    for film in names["films"][::2]:
        halves = simulated_halves([ratings_of(r) for r in film])
        total += names["sums"](*halves)
        three += names["triples"](*halves, 1.0)
    ahead, behind, gap, count = total.unbind(1)
    slopes = (ahead / behind).log() / (gap / count)
    ab, bc, ac = three[0::2] / three[1::2]
    return [slopes[i].item() for i in (0, 4, 8)], (ac / (ab * bc)).item()


@pytest.fixture(scope="module")
def simulations(page, rated):
    spread = {r: torch.tensor(r.ratings).float().std().item() for r in rated}
    pooled = math.sqrt(sum(x * x for x in spread.values()) / len(spread))

    def normal(mean, deviation, n):
        return (mean + deviation * torch.randn(n)).round().clamp(-4, 4)

    return {
        "gumbel": measured(
            page, lambda r: r.mean - (-torch.rand(len(r.ratings)).log()).log() / 1.5
        ),
        "equal": measured(page, lambda r: normal(r.mean, pooled, len(r.ratings))),
        "own": measured(page, lambda r: normal(r.mean, spread[r], len(r.ratings))),
    }


def test_unequal_noise_bends_the_curve_down_and_the_measurement_does_not(simulations, page):
    (close, middle, _), ratio = simulations["gumbel"]
    assert abs(middle / close - 1) < 0.03 and abs(ratio - 1) < 0.05
    (close, middle, far), ratio = simulations["equal"]
    assert far > 1.1 * close and middle > 0.98 * close and ratio > 1
    (close, middle, far), ratio = simulations["own"]
    assert middle < 0.9 * close and far > 1.1 * middle and ratio < 0.93
    real = names_after(page, "def sums")
    real = (real["logit"] / real["gap"])[[0, 4, 8]]
    assert real[1] < 0.9 * real[0] and real[2] < real[1]


# ---- section 7: people


def test_labels_of_one_and_two_people_are_those_of_a_loop(page):
    names = names_after(page, "def count_labels")
    block = names["blocks"][0][:4, :5]
    expected = torch.zeros(2, 3)
    people = range(block.shape[1])
    for (a, b), p, q in itertools.product(itertools.pairwise(block), people, people):
        others = [k for k in people if k not in (p, q)]
        label, gap = (a[p] - b[q]).item(), (a[others].mean() - b[others].mean()).item()
        gap = 0.0 if abs(gap) < 1e-6 else gap
        right = 0.5 if gap == 0 else float((gap > 0) == (label > 0))
        expected[int(p != q)] += torch.tensor([right * (label != 0), label != 0, 1.0])
    torch.testing.assert_close(names["count_labels"](block), expected)


def correlations(page):
    rest = names_after(page, "blocks = {}")["rest"]
    inside = [(x[:-1], x[1:]) for x in rest]
    across = [(x[:15, :15], y[:15, :15]) for x, y in itertools.pairwise(rest)]
    found = []
    for pairs in (inside, across):
        x, y = (torch.cat([pair[k].flatten() for pair in pairs]) for k in (0, 1))
        found.append(torch.stack([x, y]).corrcoef()[0, 1].item())
    return found


def test_a_column_of_a_block_behaves_like_one_person(page):
    inside, across = correlations(page)
    assert inside > 0.3 and abs(across) < 0.02


def shares_right(page):
    """(right if decided, ties, right with ties as halves) of one person and of two."""
    names = names_after(page, "right, decided, labels =")
    right, decided, labels = names["right"], names["decided"], names["labels"]
    return torch.stack(
        [right / decided, 1 - decided / labels, (right + 0.5 * (labels - decided)) / labels], 1
    ).tolist()


def test_one_person_gives_better_labels_than_two(page):
    one, two = shares_right(page)
    assert one[0] > two[0] + 0.04 and one[1] > two[1] + 0.03
    assert 0.01 < one[2] - two[2] < one[0] - two[0]
    names = names_after(page, "def count_labels")
    counts = torch.stack([names["count_labels"](block) for block in names["blocks"]])
    again = torch.randint(
        len(counts), (500, len(counts)), generator=torch.Generator().manual_seed(0)
    )
    right, decided, labels = counts[again].sum(1).unbind(-1)
    halves = (right + 0.5 * (labels - decided)) / labels
    for share in (right / decided, halves):
        assert (share[:, 0] - share[:, 1]).quantile(0.025) > 0


@pytest.fixture(scope="module")
def people(page):
    """Spread of the levels, the same of dealt ratings, and each person's agreement with the others."""
    names = names_after(page, "blocks = {}")
    fifteen = [x for x in names["rest"] if x.shape[1] == 15]
    level = torch.cat([x.mean(0) for x in fifteen]).std().item()
    generator = torch.Generator().manual_seed(0)
    pool = torch.cat([x.flatten() for x in fifteen])
    pool = pool[torch.randperm(len(pool), generator=generator)]
    dealt = pool.split([x.numel() for x in fifteen])
    by_chance = (
        torch.cat([y.view_as(x).mean(0) for x, y in zip(fifteen, dealt, strict=True)]).std().item()
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
    assert level > 1.5 * by_chance
    assert 0.02 < (agree < 0.6).float().mean() < 0.06 < 0.8 < agree.median()


def mean_against_choices(pairs):
    """How often the higher mean and most single choices prefer different reviews."""
    return sum(
        (tasks.preference_share(a.ratings, b.ratings) - 0.5) * (a.mean - b.mean) < 0
        for a, b in pairs
    ) / len(pairs)


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
def curve(learning):
    """right on the lesson's test labels: (draws, numbers of clicks)."""
    learn, right_on = learning
    new = tasks.reviews.preference_pairs("test", 4000, seed=9).to_pandas()
    found = torch.zeros(4, len(CLICKS))
    for seed in range(4):
        for i, count in enumerate(CLICKS):
            drawn = tasks.reviews.preference_pairs("reward", count, seed=seed).to_pandas()
            found[seed, i] = right_on(new, learn(drawn["chosen"], drawn["rejected"]))
    return found


@pytest.fixture(scope="module")
def many(learning):
    """1,000 labels of four draws from single ratings and from the means; the bag of words."""
    learn, right_on = learning
    new = tasks.reviews.preference_pairs("test", 4000, seed=9).to_pandas()
    found, turned = [], []
    for seed in range(4):
        pairs = tasks.reviews.preference_pairs("reward", 1000, seed=seed).to_pandas()
        turn = pairs["chosen_mean"] < pairs["rejected_mean"]
        chosen = pairs["chosen"].where(~turn, pairs["rejected"])
        rejected = pairs["rejected"].where(~turn, pairs["chosen"])
        single = right_on(new, learn(pairs["chosen"], pairs["rejected"]))
        found.append((single, right_on(new, learn(chosen, rejected))))
        turned.append(turn.mean())
    ridge = rewards.ridge_judge("reward")
    words = ridge(new["prompt"], new["chosen"]) > ridge(new["prompt"], new["rejected"])
    return (
        torch.tensor(found),
        sum(turned) / 4,
        words.float().mean().item(),
    )


def test_a_thousand_clicks_teach_something_and_ten_nothing(curve, many):
    thousand, _, ridge = many
    assert abs(curve[:, 0].mean() - 0.5) < 0.03 and curve[:, 2].max() < 0.56
    assert thousand[:, 0].min() > 0.53
    means = [curve[:, 0].mean(), curve[:, 2].mean(), curve[:, 3].mean(), thousand[:, 0].mean()]
    assert means[0] < means[1] < means[2] < means[3] < ridge
    assert 0.4 < (means[3] - 0.5) / (ridge - 0.5) < 0.6


def test_labels_from_the_means_are_hardly_better(many):
    single, means = many[0].mean(0)
    assert abs(means - single) < 0.02


def test_a_split_by_rows_makes_the_accuracy_too_high(learning):
    learn, right_on = learning
    hers = tasks.reviews.preference_pairs("val", 3000, seed=0).to_pandas()
    film = torch.tensor(hers["prompt"].factorize(sort=True)[0])
    assert film.max() + 1 == 24
    by_rows = torch.arange(3000) >= round(3000 * (1 - 8 / 24))
    by_film = check.held_out_pairs.reference(film, 8)
    found = []
    for held in (by_rows.numpy(), by_film.numpy()):
        drawn = hers[~held][:1000]
        found.append(right_on(hers[held], learn(drawn["chosen"], drawn["rejected"])))
    assert found[0] > found[1] + 0.1
    assert check.held_out_pairs(lambda film, n: film > film.max() - n)


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
    chance,
    agreements,
    other_splits,
    simulations,
    people,
    simulated_people,
    curve,
    many,
):
    with lesson("02") as said:
        what_a_label_is(said, page, rated)
        disagreement(said, page)
        pairs_and_ceiling(said, page)
        bradley_terry(said, page)
        who_said_it(said, page)
        labelling(said, simulated_people, curve, many)
        exercises_and_questions(said, page, many)
        going_further(said, page, rated, chance, agreements, other_splits, simulations, people)


def what_a_label_is(said, page, rated):
    said("- At least", min(len(r.ratings) for r in rated), len(rated), -4, 4)
    three = pd.concat(names_after(page, "rated = [")["three"])
    joke, neutral, positive = (row for _, row in three.iterrows())
    negative = sum(x < 0 for x in joke["ratings"])
    assert "this remake" in three.index[0]
    said("Six people rated it as negative", negative == 6, len(joke["ratings"]) - negative == 9)
    said("nearly all people gave it", 0, Counter(neutral["ratings"])[0] > 20)
    said("third review** is praise, and people agree", positive["deviation"] < 0.4)
    said("The first two have almost the same mean", abs(joke["mean"] - neutral["mean"]) < 0.3)
    said("The first review** has the highest deviation", joke["deviation"] > 2.7)


def disagreement(said, page):
    names = names_after(page, "torch.manual_seed(0)")
    deviation = names["people"]
    said("and cut off at", -4, 4)
    said("The deviation is", deviation[0.0], 0, deviation[-2.0], deviation[2.0], -2, 2)
    said("Is a deviation of", 1)
    said("If all people agree, it is", tasks.krippendorff_alpha([(1, 1), (3, 3)]))
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
    said("have an alpha of", 0)
    everything, by_chance, lukewarm = alphas(page)
    said("and for the", len(names_after(page, "generator = torch")["lukewarm"]), -1, 1)
    said("*All reviews*:", everything, 0.15 < 1 - everything < 0.25)
    said("*Dealt out*:", by_chance)
    said("*Lukewarm*:", lukewarm)


def pairs_and_ceiling(said, page):
    a, b = (3, 1), (2, 1)
    said("**By hand.** People gave review A a", *a, *b)
    said("| | B:", *b)
    said("| first rating of A:", a[0])
    said("| second rating of A:", a[1], a[1] == b[1])
    said("the label says A with probability", tasks.preference_share(a, b))
    drawn = names_after(page, "drawn = tasks")
    said("Of all labels,", drawn["against"].mean())
    second = drawn["two"].iloc[1]
    said("the other way round than most", second["chosen_mean"] < second["rejected_mean"] - 1)
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
        said(f"| label {name} |", a[i], b[j], *worked, *others, right)
    said("Together", 1, 1, 0.5, 0.5, 0, 1, total, 6, total / 6)
    pairs = tasks.reviews.pairs_within_films("reward")
    films = {r.movie for pair in pairs for r in pair}
    said("Now all", len(pairs), len(films))
    said("of the closest pairs (gap", 0, 0.5, 0, 8)
    table = names_after(page, "pairs = tasks.reviews.pa")["table"].astype(float)
    close, every = table.iloc[0], table.iloc[-1]
    said("*The closest pairs*:", close["ties"], close["human ceiling"])
    said("*All pairs*:", every["ties"], every["human ceiling"])
    said("From a gap of", 2, table.iloc[3]["human ceiling"])
    runs = experiments.results("reward_model")
    runs = runs[(runs.low == 0) & (runs.high == 8)]
    said("The reward model of lesson 08 is right on", runs["reward model"].mean())
    said("There the ceiling is", runs["human ceiling"].mean(), 0.5)


def bradley_terry(said, page):
    said("are the **odds**:", 3, 3)
    said("If $a$ beats $b$", 3, 1, 3, 1, 9, 1)
    said("we draw the", len(names_after(page, "scale = torch")["films"]))
    close, far = bend(page)
    said("a point of gap adds", close[0], *close[1:])
    said("Among distant reviews, at a gap of", 4, *far)
    said("A step of", 1, 0.75, 1.25)
    step = odds(page).loc["step 1"]
    product, whole = step["product"], step["a : c"]
    said("**Predict** for a step of", 1, step["a : b"])
    said("are both about", step["b : c"], product)
    half = odds(page).loc["step 0.5"]
    said("Less:", whole)
    said("says that the ratio is", 1, half["ratio"], step["ratio"])
    said("nearly true here.**", product, product / (1 + product), whole, whole / (1 + whole))


def who_said_it(said, page):
    blocks = names_after(page, "blocks = {}")["blocks"]
    said("it comes in blocks of", 30, {len(block) for block in blocks} == {30, 15})
    inside, across = correlations(page)
    said("In the same block the correlation is", inside, 0, abs(across) < 0.02)
    said("So about a third of it", abs(inside - 1 / 3) < 0.02)
    one, two = shares_right(page)
    said("are right more often:", one[0], two[0])
    said("They also have more ties:", one[1], two[1])
    said("the difference is smaller:", one[2], two[2])
    a, b = (4, -1, -1), (0, 0, 0)
    said("rate review A with", *a, *b)
    said("| mean rating |", sum(a) / 3, sum(b) / 3)
    share = tasks.preference_share(a, b)
    said("| share of single choices |", share, 1 - share)
    said("scores A lower than B by", math.log((1 - share) / share))
    pairs = tasks.reviews.pairs_within_films("reward")[::8]
    said("the two rules seldom differ: in", mean_against_choices(pairs))
    joke = names_after(page, "rated = [")["three"][0].iloc[0]
    clear = sum(abs(x) >= 2 for x in joke["ratings"])
    said("most of its readers were far from", 0, clear > 0.7 * len(joke["ratings"]))


def labelling(said, simulated_people, curve, many):
    said("The next cell shows", 30)
    crowd = simulated_people.loc["with the crowd"]
    first, second = crowd.iloc[0], crowd.iloc[1]
    between = simulated_people.loc["between people"].iloc[0]
    oneself = simulated_people.loc["with oneself"].iloc[0]
    said(
        "The simulated people agree with the crowd in",
        *(first.agree, first.pairs, second.agree, second.pairs),
        *(first.ties, second.ties, 30, first.low, first.high, between.agree, between.pairs),
        *(oneself.agree, oneself.pairs),
    )
    said("four draws of each number. We test on", 4000, len(tasks.reviews.eval_prompts("test")))
    mean = curve.mean(0)
    said("*Ten to a hundred clicks*:", *mean[:3])
    said("*Three hundred clicks*:", mean[3], 0.53, curve[:, 3].min() > 0.53)
    said("*A thousand clicks*:", many[0][:, 0].mean())
    said("If a click takes", 20, 300, 300 * 20 / 60, 1000, 1000 * 20 / 3600)


def exercises_and_questions(said, page, many):
    said("If all of them tie, return", 0.5)
    said("*Hint:* take two numbers,", 2, 6)
    said("divides by n −", 1)
    said("that the other m −", 1, 1)
    said("A colleague has", 3000, 24)
    said("Suppose that each of", 1000, many[1])
    said("1. Alpha is", alphas(page)[0], alphas(page)[0])
    table = names_after(page, "pairs = tasks.reviews.pa")["table"].astype(float)
    said("the label of two people is predicted in", table["human ceiling"].iloc[0])
    said("a fifth of what chance gives. For two", abs(1 - alphas(page)[0] - 0.2) < 0.02)
    said("4. A reward model is right on", 0.88, tasks.human_ceiling(pairs_of_test_films()))
    said("You can pay for", 3000, 3000, 15 * 200 / 15)


def pairs_of_test_films():
    return tasks.reviews.pairs_within_films("test")


def going_further(said, page, rated, chance, agreements, other_splits, simulations, people):
    close, middle, far = simulations["gumbel"][0]
    said("The logit per point is the same at a gap of", 0.2, 2, 0.03, simulations["gumbel"][1])
    said("the curve bends up. At a gap of", 4, 0.2)
    said("*Normal noise, with the deviation", 2, simulations["own"][1])
    said("other splits that ratio is", min(other_splits), max(other_splits) < 0.835)
    plug_in, labels, pairs = chance
    said("to count how many labels agree with it. On", len(pairs), plug_in)
    said("Without the two ratings of the label we get", ceiling_of(labels, 0, 8, by=0))
    said(
        "by the gap of *all* ratings, we find",
        *(ceiling_of(labels, 0, 0.5, by=1), 0.5, ceiling_of(labels, 1, 2, by=1), 1, 2),
    )
    said("if neither is a tie? In", agreements[0], agreements[1], 0.5)
    level, by_chance, agree = people
    said("In the blocks with", 15, level, by_chance)
    said("agrees with the others in", agree.median(), (agree < 0.6).float().mean(), 0.6)
    ratings = [x for r in rated for x in r.ratings]
    zeros = sum(x == 0 for x in ratings) / len(ratings)
    said("**Who says", 0, zeros, 0, -1, 1)
    said(
        "On test films, of which there are",
        len(tasks.reviews.eval_prompts("test")),
        tasks.human_ceiling(pairs_of_test_films()),
    )
    said("- Llama", 2)
    said("people ranked", 4, 9)
