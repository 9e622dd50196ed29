"""Lesson 08, the reward model: every number of its prose, and every claim about a recorded run."""

import copy
import math
import re
from collections import Counter
from itertools import islice, pairwise

import nbformat
import pytest
import torch
from torch.nn.functional import logsigmoid

from minirlhf import core, evaluate, experiments, loops, models, rewards, tasks
from minirlhf.classroom.course import NOTEBOOKS, text_of
from tests.claims.prose import code_of, lesson

SENTENCE = "A moving and funny film, but the ending is dull."
REVERSED = "A dull film, but the ending is moving and funny."
COIN = math.log(2)
CUT = 8  # tokens of a beginning


@pytest.fixture(scope="module")
def trained():
    """(reward model, tokenizer) of the package."""
    return models.load_scalar("tiny-reviews-reward")


@pytest.fixture(scope="module")
def sft():
    return models.load_policy("tiny-reviews-sft")[0]


# ---- section 2: the loss


def fit(truth, share, updates):
    """Scores after some updates by gradient descent, each pair decided for i in `share`."""
    i, j = torch.triu_indices(len(truth), len(truth), 1)
    r = torch.zeros(len(truth), dtype=torch.float64, requires_grad=True)
    for _ in range(updates):
        difference = r[i] - r[j]
        loss = -(share * logsigmoid(difference) + (1 - share) * logsigmoid(-difference)).mean()
        r = (r - torch.autograd.grad(loss, r)[0]).detach().requires_grad_(True)
    return r.detach()


def shares(truth):
    i, j = torch.triu_indices(len(truth), len(truth), 1)
    return torch.sigmoid(truth[i] - truth[j])


FIVE = torch.tensor([2.0, 1.0, 0.0, -1.0, -2.0], dtype=torch.float64)


def test_true_shares_give_the_true_scores_back():
    truth = torch.randn(7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    truth = truth - truth.mean()
    for scores in (FIVE, truth):
        torch.testing.assert_close(fit(scores, shares(scores), 2000), scores, atol=1e-4, rtol=0)


def test_people_who_always_agree_give_the_order_and_no_end():
    truth = torch.randn(7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    i, j = torch.triu_indices(7, 7, 1)
    always = (truth[i] > truth[j]).double()
    spread = []
    for updates in (600, 2000, 6000):
        fitted = fit(truth, always, updates)
        assert torch.equal(fitted.argsort(), truth.argsort())
        spread.append(fitted.std().item())
    assert all(later > 1.15 * earlier for earlier, later in pairwise(spread))
    assert spread[-1] > 3 * truth.std().item()


# ---- section 3: where the score is read


def test_the_score_is_read_at_eos(trained):
    model, tokenizer = trained
    config = model.backbone.config
    assert (config.n_layer, config.hidden_size, config.vocab_size) == (4, 256, 4096)
    texts = ["A dull film.", "A moving, funny and wise film."]
    batch = models.encode(tokenizer, ["the film\n"] * 2, texts)
    with torch.no_grad():
        numbers = models.token_scores(model, batch)
    positions = [row.nonzero()[-1].item() for row in batch.attention_mask]
    assert [batch.sequences[b, k].item() for b, k in enumerate(positions)] == [
        tokenizer.eos_token_id
    ] * 2
    by_hand = torch.stack([numbers[b, k] for b, k in enumerate(positions)])
    assert torch.equal(by_hand, core.last_token_scores(numbers, batch.attention_mask))


# ---- section 4: the first steps


@pytest.fixture(scope="module")
def learners(sft, trained):
    """The model of the page after 0, 3 and 20 steps."""
    _, tokenizer = trained
    pairs = tasks.reviews.preference_pairs(
        "reward", 20_000, seed=0, max_tokens=48, tokenizer=tokenizer
    )
    torch.manual_seed(0)
    learners = [models.ScalarModel(copy.deepcopy(sft).base_model).eval()]
    for steps in (3, 20):
        config = loops.RewardConfig.plain(steps=steps)
        backbone = copy.deepcopy(sft).base_model
        learners.append(loops.train_reward_model(backbone, tokenizer, pairs, config)[0])
    return learners


@pytest.fixture(scope="module")
def shares_right(learners, trained):
    """The share of clear held-out pairs on which the model of the page is right: 0, 3, 20 steps."""
    _, tokenizer = trained
    clear = tasks.reviews.preference_pairs(
        "test", 400, seed=1, min_gap=2.0, max_tokens=48, tokenizer=tokenizer
    )[:]
    judges = [rewards.text_judge([learner], tokenizer) for learner in learners]
    return [
        (judge(clear["prompt"], clear["chosen"]) > judge(clear["prompt"], clear["rejected"]))
        .float()
        .mean()
        .item()
        for judge in judges
    ]


@pytest.fixture(scope="module")
def spreads(learners, trained):
    """The standard deviation of raw scores of held-out reviews, before and after the training."""
    model, tokenizer = trained
    held = tasks.reviews.preference_pairs("test", 400, seed=1, max_tokens=48, tokenizer=tokenizer)[
        :
    ]
    texts = held["prompt"] * 2, held["chosen"] + held["rejected"]
    start, trained_scores = (
        rewards.text_judge([one], tokenizer)(*texts) * one.scale for one in (learners[0], model)
    )
    return start.std().item(), trained_scores.std().item()


# ---- section 5: zero and unit


def test_fresh_samples_have_mean_0_and_standard_deviation_1(trained, sft):
    model, tokenizer = trained
    prompts = tasks.reviews.rl_prompts()[:256]
    score = rewards.rollout_score(model, tokenizer.eos_token_id)
    fresh = torch.cat([score(s) for s in models.sample_text(sft, tokenizer, prompts, seed=3)])
    assert abs(fresh.mean()) < 4 / math.sqrt(len(fresh)) and abs(fresh.std() - 1) < 0.2


# ---- section 6: beginnings of responses


def read_at(model, tokenizer, prompts, texts, *, eos):
    """Scores (N,) of the first tokens of texts, read at EOS or at the last of these tokens."""
    found = []
    for start in range(0, len(texts), 64):
        ids = [tokenizer(t).input_ids[:CUT] for t in texts[start : start + 64]]
        beginnings = [tokenizer.decode(row) for row in ids]
        batch = models.encode(tokenizer, prompts[start : start + 64], beginnings)
        with torch.no_grad():
            numbers = models.token_scores(model, batch)
        for row, mask in zip(numbers, batch.attention_mask, strict=True):
            found.append(row[mask.bool()][-1 if eos else -2])
    return torch.stack(found)


def by_film(prompts, x):
    """(films,): each film's part of the mean of x (pairs,)."""
    films = {p: i for i, p in enumerate(dict.fromkeys(prompts))}
    index = torch.tensor([films[p] for p in prompts])
    return torch.zeros(len(films)).index_add(0, index, x) * len(films) / len(x)


def per_token_model(sft, tokenizer, steps=60, size=32):
    """A head that is trained at every token: a short run of DeepSpeed-Chat's loss."""
    torch.manual_seed(0)
    model = models.ScalarModel(copy.deepcopy(sft.base_model).requires_grad_(True))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.0)
    pairs = tasks.reviews.preference_pairs(
        "reward", steps * size, seed=0, max_tokens=32, tokenizer=tokenizer
    )
    for start in range(0, steps * size, size):
        rows = pairs[start : start + size]
        both = models.encode(tokenizer, rows["prompt"] * 2, rows["chosen"] + rows["rejected"])
        numbers = models.token_scores(model, both)[:, both.prompt_ids.shape[1] :]
        sides = [x.chunk(2) for x in (numbers, both.response_mask, both.response_ids)]
        optimizer.zero_grad()
        core.per_token_reward_loss(*(x for side in sides for x in side)).mean().backward()
        optimizer.step()
    return model.eval(), len(pairs)


@pytest.fixture(scope="module")
def beginnings(trained, sft):
    """name -> (pairs,) whether the beginning of the chosen response has the higher number."""
    model, tokenizer = trained
    held = tasks.reviews.preference_pairs("test", 2000, seed=3, max_tokens=32, tokenizer=tokenizer)[
        :
    ]
    per_token, read = per_token_model(sft, tokenizer)
    right = {}
    for name, one, eos in (
        ("prefix with EOS", model, True),
        ("one pass", model, False),
        ("trained at every token", per_token, False),
    ):
        chosen, rejected = (
            read_at(one, tokenizer, held["prompt"], held[side], eos=eos)
            for side in ("chosen", "rejected")
        )
        right[name] = (chosen > rejected).float()
    return held["prompt"], right, read


@pytest.mark.slow
def test_after_eight_tokens_each_picture_is_right_more_often_than_a_coin(beginnings):
    prompts, right, _ = beginnings
    for x in right.values():
        assert evaluate.bootstrap(by_film(prompts, x - 0.5))[0] > 0


@pytest.mark.slow
def test_the_three_pictures_cannot_be_told_apart(beginnings):
    prompts, right, _ = beginnings
    a, b, c = right.values()
    for difference in (b - a, c - a, c - b):
        low, high = evaluate.bootstrap(by_film(prompts, difference))
        assert -0.1 < low < 0 < high < 0.1


# ---- section 7: agreement with people, and calibration


@pytest.fixture(scope="module")
def bands():
    runs = experiments.results("reward_model")
    return runs.groupby(["low", "high"]).mean(numeric_only=True)


def test_the_reward_model_against_the_human_ceiling(bands):
    whole, parts = bands.loc[(0.0, 8.0)], bands.drop(index=(0.0, 8.0))
    assert (parts["reward model"] < parts["human ceiling"]).all()
    assert parts["reward model"].is_monotonic_increasing
    assert parts["reward model"].iloc[-1] > parts["reward model"].iloc[0] + 0.2
    way = (whole["reward model"] - 0.5) / (whole["human ceiling"] - 0.5)
    assert 0.35 < way < 0.45
    assert whole["reward model"] < whole["bag of words"] < whole["human ceiling"]
    runs = experiments.results("reward_model")
    every = runs[(runs.low == 0) & (runs.high == 8)]
    assert (every["reward model"] < every["bag of words"]).all() and len(every) == 3


def test_the_bars_stand_in_the_order_of_the_gaps_and_all_pairs_come_last():
    assert 'groupby(["low", "high"], sort=False)' in code_of("08", 'results("reward_model")')
    runs = experiments.results("reward_model").groupby(["low", "high"], sort=False)
    assert [*runs.groups] == [*tasks.reviews.GAP_BANDS, (0.0, 8.0)]


def test_the_model_is_too_sure_over_all_pairs(bands):
    runs = experiments.results("reward_model")
    every = runs[(runs.low == 0) & (runs.high == 8)]
    assert (every["mean probability"] > every["reward model"] + 0.05).all() and len(every) == 3
    own = bands["mean probability"].drop(index=(0.0, 8.0))
    assert own.max() - own.min() < 0.1


@pytest.fixture(scope="module")
def margins(trained):
    """Split -> raw score of the chosen response minus that of the rejected one, of 2,000 pairs."""
    model, tokenizer = trained
    judge, margins = rewards.text_judge([model], tokenizer), {}
    for split in ("val", "test"):
        held = tasks.reviews.preference_pairs(
            split, 2000, seed=5, max_tokens=48, tokenizer=tokenizer
        )[:]
        chosen, rejected = (judge(held["prompt"], held[s]) for s in ("chosen", "rejected"))
        margins[split] = (chosen - rejected) * model.scale
    return margins


@pytest.fixture(scope="module")
def calibration(margins):
    """The temperature, and before and after it: mean distance, excess of probability, loss."""
    candidates = torch.linspace(0.5, 6, 111)
    losses = torch.stack([-logsigmoid(margins["val"] / t).mean() for t in candidates])
    temperature = candidates[losses.argmin()].item()
    return temperature, *(measured(margins["test"] / t) for t in (1.0, temperature))


def measured(margins, groups=8):
    """(mean distance of probability and share, mean excess of probability, loss) of groups."""
    own = torch.sigmoid(margins.abs())
    excess = torch.stack(
        [own[g].mean() - (margins[g] > 0).float().mean() for g in own.argsort().chunk(groups)]
    )
    return excess.abs().mean().item(), excess.mean().item(), -logsigmoid(margins).mean().item()


@pytest.mark.slow
def test_one_number_mends_most_of_the_calibration(calibration):
    _, before, after = calibration
    assert before[1] > 0.03 and after[0] < before[0] / 2 and after[2] < before[2]


# ---- section 8: how many labels


@pytest.fixture(scope="module")
def labels():
    return experiments.results("labels")


def of(labels, pairs, name):
    return labels[labels.pairs == pairs].sort_values("seed")[name].reset_index(drop=True)


def test_a_hundred_pairs_are_learned_by_heart(labels):
    rows = labels[labels.pairs == 100]
    assert len(rows) == 3 and rows.accuracy.max() < 0.55
    assert rows.confidence.min() > 0.9 and rows.loss.min() > 2


def test_more_labels_are_right_more_often_and_less_wrongly_sure(labels, bands):
    gain = of(labels, 6400, "accuracy") - of(labels, 100, "accuracy")
    assert 0.06 < gain.min() and gain.max() < 0.14
    assert (of(labels, 6400, "loss") < COIN).all()
    few, many = (of(labels, n, "confidence") - of(labels, n, "accuracy") for n in (100, 6400))
    assert (many < few / 3).all()
    mean = labels.groupby("pairs").accuracy.mean()
    assert mean.is_monotonic_increasing
    steps = mean.diff()
    assert abs(steps[25_600] - steps[6400]) < 0.01 < steps[25_600]
    ceiling = bands.loc[(0.0, 8.0), "human ceiling"]
    assert of(labels, 25_600, "accuracy").max() < ceiling - 0.15


def times_read(tokenizer, n):
    """(different pairs, share that is never read, times each of the others is read, pairs of a
    batch on average)."""
    config = loops.RewardConfig()
    pairs = tasks.reviews.preference_pairs(
        "reward", n, seed=0, max_tokens=config.max_response, tokenizer=tokenizer
    )
    batches = islice(loops.comparison_batches(pairs, config), config.steps)
    read = Counter(pair for batch in batches for pair in batch)
    different = len(set(zip(pairs["prompt"], pairs["chosen"], pairs["rejected"], strict=True)))
    each = read.total() / len(read)
    return different, 1 - len(read) / different, each, read.total() / config.steps


# ---- exercises


@pytest.fixture(scope="module")
def endings(trained):
    judge = rewards.text_judge([trained[0]], trained[1])
    praise = "A moving and funny film"
    return {e: judge(["the film\n"], [praise + e]).item() for e in ("", ".", "!", "!!!", "?")}


def test_what_a_question_mark_costs(endings):
    assert abs(endings["."] - endings["!"]) < 0.05
    assert 0.05 < endings[""] - endings["."] < 0.3 < endings[""] - endings["?"] < 0.6


def test_policies_did_not_find_out_about_the_full_stop():
    samples = experiments.results("leash").samples.dropna()
    assert "kl_coef 0" in set(experiments.results("leash").variant)
    texts = [text for row in samples for text in row.values()]
    assert texts and all(text.strip()[-1:] == "." for text in texts)


# ---- every number of the prose


def printed(start):
    """What the one cell that begins so has printed, in the committed notebook."""
    cells = nbformat.read(NOTEBOOKS / "08_the_reward_model.ipynb", 4).cells
    (cell,) = [c for c in cells if c.cell_type == "code" and c.source.startswith(start)]
    return text_of(cell)


def strip_of(model, tokenizer, sentence):
    tokens, with_eos, one_pass = rewards.prefix_scores(model, tokenizer, "the film\n", sentence)
    names = [token.strip() for token in tokens]
    return dict(zip(names, with_eos.tolist(), strict=True)), dict(
        zip(names, one_pass.tolist(), strict=True)
    )


def changes(values, names):
    """How much the number changes at each of these tokens."""
    order = list(values)
    return [values[name] - values[order[order.index(name) - 1]] for name in names]


@pytest.mark.notebook  # CI runs it, as a notebook: it takes as long
def test_the_numbers_of_the_prose(
    trained,
    sft,
    bands,
    labels,
    margins,
    calibration,
    beginnings,
    endings,
    shares_right,
    spreads,
):
    model, tokenizer = trained
    with lesson("08") as said:
        derivation(said)
        the_step(said, tokenizer, shares_right)
        one_number_per_token(said, trained)
        belief(said, trained, bands, labels, margins)
        exercises_and_questions(said, bands, margins, calibration)
        going_further(said, tokenizer, calibration, beginnings, bands, endings)
        # 5: zero and unit
        said("call their mean", 0, 1)
        raw = -2.28
        unit = (model.shift, model.scale)
        score = (raw - model.shift) / model.scale
        said("The samples had the mean", *unit, raw, raw, -model.shift, model.scale, score)
        (samples,) = models.sample_text(sft, tokenizer, tasks.reviews.rl_prompts()[:64], seed=3)
        scores = rewards.rollout_score(model, tokenizer.eos_token_id)(samples)
        said("their standard deviation is", *spreads, loops.RewardConfig().steps)
        shown = scores.sort().values[::9]
        said("Eight new samples", len(shown) == 8)
        said("The first sample, with", shown[0], shown[-1])


def derivation(said):
    """Section 1 and 2."""
    said("turns any number into a probability:", 0, 0.5, 1, 0)
    said("With the strengths", 3, 1, 3, 4)
    for name, c, r in (
        ("the model agrees with the person", 1, 0),
        ("the model is undecided", 2, 2),
        ("the model disagrees", -1, 1),
    ):
        p = 1 / (1 + math.exp(r - c))
        said(name, c, r, c - r, p, -math.log(p), p - 1)
    said("The loss of a model that is always undecided", COIN)
    said("1. One adds", 10)
    said("One adds a number that depends on the prompt:", 5, -3, 7)
    c, r = torch.tensor([1.0, 2.0, -1.0]), torch.tensor([0.0, 2.0, 1.0])
    said("1. *Added", 10, core.reward_model_loss(c, r).mean(), 10)
    said("*Doubled*: another loss,", core.reward_model_loss(2 * c, 2 * r).mean())
    said("A score has no natural zero: a score of", 2)
    said("A difference does have a meaning: a difference of", math.log(3), 3, 1)
    said("Five responses have the true scores", *FIVE, 0)
    neighbours = torch.sigmoid(FIVE[0] - FIVE[1])
    said("The better of two neighbours wins in", neighbours)
    said("dotted line marks the true difference,", FIVE[0] - FIVE[4])
    disagree, agree = (
        fit(FIVE, share, 599) for share in (shares(FIVE), torch.ones(10, dtype=torch.float64))
    )
    said("*People disagree*: the difference goes to", disagree[0] - disagree[4])
    end = agree[0] - agree[4]
    said("*People always agree*: the difference grows without end. After", 600, 13, 13 < end < 13.5)


def the_step(said, tokenizer, shares_right):
    """Section 4."""
    said("people rated each review from", -4, 4)
    counts = [len(r.ratings) for r in tasks.reviews.load_reviews() if r.ratings]
    said("At least", min(counts))
    pairs = tasks.reviews.preference_pairs(
        "reward", 20_000, seed=0, max_tokens=48, tokenizer=tokenizer
    )
    third = pairs[7]
    said("people rated the chosen review", third["chosen_mean"], third["rejected_mean"])
    first_batches(said, pairs)
    said("We go on to", 20, 400)
    said("two reviews differ by at least", 2)
    said("is the model right: after", 0, 3, 20)
    losses = [float(x) for x in re.findall(r"\d\.\d+", printed("config = loops"))]
    said("The losses are a little above", COIN, len(losses) == 3)
    assert all(COIN < x < COIN + 0.2 for x in losses)
    start, soon, end = shares_right
    said("about half, as with a coin", abs(start - 0.5) < 0.05)
    said("a little more, still close to a coin", start < soon < 0.6)
    said("- At the end: about", round(end, 1))
    said("It was trained in the same way, for", loops.RewardConfig().steps)


def first_batches(said, pairs):
    """The sizes of the batches of section 4."""
    config = loops.RewardConfig.plain(steps=20)
    batches = list(islice(loops.comparison_batches(pairs, config), config.steps))
    reviews = [len({(film, text) for film, *both in b for text in both}) for b in batches]
    said("A batch takes several groups, with about", round(sum(reviews) / 20 / 5) * 5)
    assert 60 <= min(reviews) and max(reviews) <= 75
    said("labelled pairs inside them: about", round(sum(map(len, batches)) / 20, -1))
    assert config.texts_per_prompt == 8
    said("into **groups** of about eight", True)


def one_number_per_token(said, trained):
    """Section 6."""
    with_eos, one_pass = strip_of(*trained, SENTENCE)
    off = [-x for x in changes(with_eos, ["but", "ending", "dull"])]
    said("*A* alone is worth", with_eos["A"], with_eos["moving"], with_eos["funny"], *off)
    said("it is highest after *funny*", max(with_eos, key=with_eos.get) == "funny")
    names = list(with_eos)[1:]
    falls = sorted(zip(changes(with_eos, names), names, strict=True))
    said("*but* takes off", {name for _, name in falls[:3]} == {"but", "ending", "dull"})
    judge = rewards.text_judge([trained[0]], trained[1])
    scores = judge(["the film\n"] * 2, [SENTENCE, REVERSED])
    said("The whole sentence is below average", scores[0] < 0)
    said("There (b) gives the score,", scores[0], abs(scores[0] - with_eos["."]) < 1e-4)
    larger = [abs(one_pass[name]) > abs(with_eos[name]) for name in with_eos]
    said("its numbers are mostly larger", sum(larger) > 0.8 * len(larger))
    largest = max(map(abs, one_pass.values()))
    said("its numbers are mostly larger, up to", largest, one_pass["ending"], with_eos["ending"])
    rises, falls = (changes(x, ["ending"])[0] for x in (one_pass, with_eos))
    said("it rises to", rises > 1 and falls < -1)
    both = torch.tensor([list(with_eos.values()), list(one_pass.values())])
    said("has roughly the same shape", torch.corrcoef(both)[0, 1] > 0.8)
    assert max(one_pass, key=one_pass.get) == "funny" and one_pass["."] < 0


def test_at_eos_both_pictures_are_the_score(trained):
    model, tokenizer = trained
    batch = models.encode(tokenizer, ["the film\n"] * 2, [SENTENCE, REVERSED])
    table = evaluate.token_table(batch, tokenizer, reward_model=model)
    last = table.groupby("text").last()
    # computed in float32, in batches of different shapes
    assert last.prefix_reward.to_numpy() == pytest.approx(last.one_pass_reward.to_numpy(), abs=1e-5)
    before = table.groupby("text").nth(-2)
    assert ((before.prefix_reward - before.one_pass_reward).abs() > 0.5).all()


def belief(said, trained, bands, labels, margins):
    """Sections 7 and 8."""
    model, tokenizer = trained
    whole, parts = bands.loc[(0.0, 8.0)], bands.drop(index=(0.0, 8.0))
    first, last = parts.iloc[0], parts.iloc[-1]
    said("(three seeds) is right on", whole["reward model"])
    said("predicts it in only", whole["human ceiling"])
    said("only knows which words a review has, is right on", whole["bag of words"])
    said("its **own probability**: at least", 0.5, 0.8, 0.8)
    said("(a gap of less than", parts.index[0][1], parts.index[-1][0])
    said("The *human ceiling* rises from", first["human ceiling"], last["human ceiling"])
    said("The *model* rises from", first["reward model"], last["reward model"])
    test = margins["test"]
    own, right = torch.sigmoid(test.abs()), (test > 0).float()
    said("The next cell groups", len(test))
    said("*All pairs*: the model's own probability is", own.mean(), right.mean())
    said("The three recorded runs agree:", whole["mean probability"], whole["reward model"])
    assert len(experiments.results("reward_model").seed.unique()) == 3
    groups = [
        (own[here].mean().item(), right[here].mean().item())
        for k in range(5)
        for here in [(own > 0.5 + k / 10) & (own <= 0.6 + k / 10)]
    ]
    said("where the model is surer, it is more often right", groups == sorted(groups))
    assert all(a[1] < b[1] for a, b in pairwise(groups))
    excess = [100 * (sure - share) for sure, share in groups]
    said("But it is surer than right: by", min(excess), min(excess) == excess[0], excess[-1])
    assert round(excess[-2]) == round(excess[-1])
    said("Of the choices to which it gives more than", 0.9, groups[-1][1])
    forgotten = sigmoid_mean(test / model.scale)
    said("Without the factor `reward_model.scale` the", own.mean(), forgotten)
    sizes = sorted(labels.pairs.unique())
    times = times_read(tokenizer, 100)[2]
    steps = loops.RewardConfig().steps
    said("the same model, trained on", sizes[0], sizes[-1], steps, 100, times)
    said("**Predict** the case of", 100)
    mean = labels.groupby("pairs")[["accuracy", "confidence", "loss"]].mean()
    few, many, most = (mean.loc[n] for n in (100, 6400, 25_600))
    said("**Few labels**,", 100, few.accuracy, few.confidence, few.loss, COIN)
    said("**More labels**,", 6400, many.accuracy, many.confidence)
    said("The loss is just below that of a coin", COIN - 0.03 < many.loss < COIN)
    said("**Most labels**,", 25_600, most.accuracy, 100 * (most.accuracy - many.accuracy))
    said("and up to", 6400, 25_600)
    cells = nbformat.read(NOTEBOOKS / "08_the_reward_model.ipynb", 4).cells
    (line,) = [x for c in cells for x in c.source.splitlines() if '"human ceiling": 0.' in x]
    assert float(re.search(r"0\.\d+", line)[0]) == round(whole["human ceiling"], 2)


def sigmoid_mean(margins):
    """The mean own probability of a model with these differences."""
    return torch.sigmoid(margins.abs()).mean()


def exercises_and_questions(said, bands, margins, calibration):
    said("Compare the accuracy with the human ceiling, not with", 1)
    said("two scores can be", 200, -100, 100)
    said(
        "The right answer is about",
        core.reward_model_loss(torch.tensor([-100.0]), torch.tensor([100.0])),
    )
    said("Scores can be", 200)
    said("(The standard deviation divides by M −", 1)
    temperature, before, after = calibration
    test = margins["test"]
    right = (test > 0).float().mean()
    said("*Hint:* take the difference", -2)
    said("The temperature is", temperature, right)
    said("own probability falls from", sigmoid_mean(test), sigmoid_mean(test / temperature))
    said("and the loss from", before[2], after[2])
    said("2. Right on", 0.95, 0.65, bands.loc[(0.0, 8.0), "human ceiling"])
    said("Your reward model is right on", 0.72, 0.74)


def going_further(said, tokenizer, calibration, beginnings, bands, endings):
    first, second = -math.log(1 / (1 + math.exp(-(2 - 1 - 0.5)))), 0.01 * (2 + 1) ** 2
    both = core.reward_model_loss(
        torch.tensor([2.0]),
        torch.tensor([1.0]),
        margin=torch.tensor([0.5]),
        centering_coef=0.01,
    )
    said("By hand, with the scores", 2, 1, 0.5, first, 0.01, 9, second, both)
    _, before, after = calibration
    said("that is right falls from", before[0], after[0])
    parts = bands["mean probability"].drop(index=(0.0, 8.0))
    said("own probability hardly changes:", parts.iloc[0], parts.iloc[-1])
    said("without a mark", endings[""], endings["."], endings["!!!"], endings["?"])
    said("with an exclamation mark the same", abs(endings["."] - endings["!"]) < 0.005)
    runs = experiments.results("leash")
    assert set(runs.samples.map(len)) == {6}
    said("the six recorded samples of each of the", len(runs))
    prompts, right, read = beginnings
    shares = {name: x.mean() for name, x in right.items()}
    said("We cut the reviews of", len(prompts))
    said("Both pictures are right in about", round(shares["prefix with EOS"].item(), 1))
    said("Both pictures are right in about", round(shares["one pass"].item(), 1))
    said("After a short training on", read, shares["trained at every token"])
    different, never, times, size = times_read(tokenizer, 25_600)
    said("labels were read (section 8)?** Of", 25_600, different, loops.RewardConfig().steps, never)
    said("The others are read about twice", 1.5 < times < 2.5)
    few = times_read(tokenizer, 100)[3]
    said("on average it has", few, 100, size, 25_600)
    said("scores clipped to", 5)
