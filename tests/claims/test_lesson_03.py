"""Lesson 03, a language model is a policy: every number of its prose."""

import math

import nbformat
import pytest
import torch

from minirlhf import core, evaluate, loops, models, tasks
from minirlhf.classroom.course import NOTEBOOKS
from tests.claims.prose import Said, lesson

COUNTS = (30, 300, 30_000)  # samples in exercise 1
SHARES = torch.tensor([4, 1, 5, 1, 2, 3, 4], dtype=torch.float64) / 20
HELD_OUT, SHOWN = 256, 24  # reviews of section 7, positions of its figure


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def trained():
    base, tokenizer = models.load_policy("tiny-reviews")
    return {"base": base, "SFT": models.load_policy("tiny-reviews-sft")[0]}, tokenizer


@pytest.fixture(scope="module")
def world():
    return core.World.from_reward(
        ("good", "bad", "."), 2, lambda words: float(words.count("good") - words.count("bad"))
    )


@pytest.fixture(scope="module")
def people(trained):
    """The reviews of section 7, as rows and as a batch."""
    _, tokenizer = trained
    rows = tasks.reviews.sft_dataset(tokenizer, split="test").shuffle(seed=0)
    rows = rows.select(range(HELD_OUT))
    return rows, models.encode(tokenizer, rows["prompt"], rows["completion"])


@pytest.fixture(scope="module")
def surprise(trained, people):
    """Model -> (256, R) nats, 0 at padding."""
    with torch.no_grad():
        return {n: -models.policy_logprobs(m, people[1]) for n, m in trained[0].items()}


@pytest.fixture(scope="module")
def two_reviews(trained):
    """The batch of section 4 and the SFT model's logits about its response tokens."""
    policies, tokenizer = trained
    titles = ["the film\n", "a night at the opera\n"]
    batch = models.encode(tokenizer, titles, ["A dull film.", "Funny, and a little sad."])
    with torch.no_grad():
        return batch, models.policy_logits(policies["SFT"], batch)


def entropy(p):
    return -(p * p.log()).sum().item()


def at(p, temperature):
    """Probabilities at another temperature."""
    powers = p ** (1 / temperature)
    return powers / powers.sum()


# ---- sections 2 and 3: the small world


def rewards_of(world, label):
    """The score of one response."""
    return world.rewards[world.labels.index(label)].item()


def test_the_numbers_of_the_small_world(world):
    v, q = world.values(world.ref_logits)
    rewards = dict(zip(world.labels, world.rewards.tolist(), strict=True))
    assert rewards == {
        "goodgood": 2, "goodbad": 0, "good.": 1, "badgood": 0, "badbad": -2, "bad.": -1, ".": 0,
    }  # fmt: skip
    torch.testing.assert_close(v, torch.tensor([0.0, 1, -1]).double())
    torch.testing.assert_close(q, torch.tensor([[1.0, -1, 0], [2, 0, 1], [0, -2, -1]]).double())
    # Q = r + V of the next prefix: first words that go on, then words that end the response
    torch.testing.assert_close(q[0, :2], v[1:])
    ending = {"goodgood": (1, 0), "goodbad": (1, 1), "good.": (1, 2), ".": (0, 2)}
    ending |= {"badgood": (2, 0), "badbad": (2, 1), "bad.": (2, 2)}
    assert {label: q[place].item() for label, place in ending.items()} == rewards
    # the bandit's mean is V of the empty prefix
    torch.testing.assert_close((world.probs(world.ref_logits) * world.rewards).sum(), v[0])


# ---- section 5: temperature; going further: entropy


def test_entropy_never_falls_when_the_temperature_rises(two_reviews):
    logits = two_reviews[1][0, 0].double()
    temperatures = torch.linspace(0.2, 2.0, 19)
    entropies = [entropy((logits / t).softmax(0)) for t in temperatures]
    assert entropies == sorted(entropies)


def test_the_derivative_of_the_entropy_is_minus_theta_times_the_variance(two_reviews):
    logits = two_reviews[1][0, 0].double()
    for theta in (0.7, 1.0, 1.6):
        free = torch.tensor(theta, dtype=torch.float64, requires_grad=True)
        log_p = (free * logits).log_softmax(0)
        (slope,) = torch.autograd.grad(-(log_p.exp() * log_p).sum(), free)
        p = (theta * logits).softmax(0)
        variance = p @ logits.square() - (p @ logits) ** 2
        torch.testing.assert_close(slope, -theta * variance)


def test_the_order_of_the_words_is_the_same_at_every_temperature(two_reviews):
    logits = two_reviews[1][0, 0]
    orders = [(logits / t).softmax(0).topk(6).indices.tolist() for t in (0.5, 1.0, 1.5)]
    assert orders[0] == orders[1] == orders[2]


def log_probabilities_off(trained):
    """Temperature -> log-probabilities computed again, minus those of the sampling at 0.7."""
    policies, tokenizer = trained
    prompts = tasks.reviews.eval_prompts("test")[:64]
    (drawn,) = models.sample_text(policies["SFT"], tokenizer, prompts, seed=0)
    assert models.SamplingConfig().temperature == 0.7
    with torch.no_grad():
        return {
            t: (models.policy_logprobs(policies["SFT"], drawn, temperature=t) - drawn.old_logprobs)
            for t in (0.7, 1.0)
        }


def test_log_probabilities_at_another_temperature_are_of_another_policy(trained):
    off = log_probabilities_off(trained)
    assert off[0.7].abs().max() < 1e-4
    assert off[1.0].abs().max() > 0.5


# ---- section 7: what SFT has changed


def gain_by_film(people, surprise):
    """Mean gain of each review's own mean; and the interval, drawn over films."""
    rows, batch = people
    gain = (surprise["base"] - surprise["SFT"]).sum(1) / batch.response_mask.sum(1)
    films = list(dict.fromkeys(rows["prompt"]))
    index = torch.tensor([films.index(prompt) for prompt in rows["prompt"]])
    shares = torch.zeros(len(films)).index_add(0, index, gain) * len(films) / len(rows)
    return gain.mean().item(), *evaluate.bootstrap(shares)


def what_was_read(tokenizer):
    """Keys of the pretraining texts, of SFT's reviews, and of the reviews of section 7."""
    key, rows = tasks.reviews.normalise, tasks.reviews.sft_dataset
    return (
        {key(text) for text in tasks.reviews.pretraining_texts()},
        {key(text) for text in rows(tokenizer)["completion"]},
        {key(text) for text in rows(tokenizer, split="test")["completion"]},
    )


@pytest.mark.slow
def test_sft_lowers_the_surprise_at_reviews_of_unseen_films(people, surprise):
    _, low, _ = gain_by_film(people, surprise)
    assert low > 0.1


def by_position(people, surprise):
    """Model -> (24,), what the figure shows."""
    count = people[1].response_mask.sum(0)
    return {name: (x.sum(0) / count)[:SHOWN] for name, x in surprise.items()}


def test_the_gain_is_at_the_beginning(people, surprise):
    shown = by_position(people, surprise)
    gain = shown["base"] - shown["SFT"]
    assert gain.argmax() == 0
    assert gain[4:].abs().max() < 0.15 < gain[:3].min()
    mask = people[1].response_mask
    total = surprise["base"] - surprise["SFT"]
    first = core.aggregate(total[:, :4], mask[:, :4])
    assert first > 2 * core.aggregate(total[:, 8:], mask[:, 8:])


def test_a_title_of_another_film_hardly_changes_the_surprise(trained, people, surprise):
    policies, tokenizer = trained
    rows, batch = people
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    prompts = rows["prompt"]
    swapped = models.encode(tokenizer, [prompts[i] for i in order], rows["completion"])
    with torch.no_grad():
        mixed = -models.policy_logprobs(policies["SFT"], swapped)
    totals = {n: core.aggregate(x, batch.response_mask) for n, x in surprise.items()}
    change = core.aggregate(mixed, batch.response_mask) - totals["SFT"]
    assert change.abs() < 0.05 * (totals["base"] - totals["SFT"])
    assert change.abs() < 0.001  # as question 5 says


@pytest.fixture(scope="module")
def cut_off(trained):
    """(model, temperature) -> share of 76 responses that do not end."""
    policies, tokenizer = trained
    prompts, found = tasks.reviews.eval_prompts("test")[:76], {}
    assert len(prompts) == 76
    for name, policy in policies.items():
        for temperature in (0.4, 0.7, 1.0):
            config = models.SamplingConfig(temperature=temperature)
            (drawn,) = models.sample_text(
                policy, tokenizer, prompts, config=config, seed=1, batch_size=76
            )
            ended = drawn.finished(tokenizer.eos_token_id).float().mean().item()
            found[name, temperature] = 1 - ended
    return found


@pytest.mark.slow
def test_sft_teaches_to_stop_at_every_temperature(cut_off):
    for temperature in (0.4, 0.7, 1.0):
        assert cut_off["SFT", temperature] <= cut_off["base", temperature]


# ---- section 8: imitation


def imitated(world, shares):
    """The table of logits with the smallest SFT loss."""
    table = world.ref_logits.clone().requires_grad_(True)
    optimiser = torch.optim.LBFGS(
        [table],
        max_iter=500,
        tolerance_grad=1e-10,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )

    def loss():
        optimiser.zero_grad()
        value = -(shares * world.sequence_logprobs(table)).sum()
        value.backward()
        return value

    optimiser.step(loss)
    return table.detach()


def expected(world, table):
    return (world.rewards * world.probs(table)).sum().item()


@pytest.mark.parametrize("kind", ["twenty reviews", "gibbs"])
def test_the_optimum_of_sft_is_people(world, kind):
    shares = SHARES if kind == "twenty reviews" else world.gibbs(beta=2.0).detach()
    table = imitated(world, shares)
    torch.testing.assert_close(world.probs(table), shares, atol=1e-5, rtol=0)
    # colder is better here, because the likely responses are also the better ones
    one, cool, cold = (expected(world, table / t) for t in (1.0, 0.7, 0.5))
    assert one == pytest.approx((shares * world.rewards).sum().item(), abs=1e-5)
    assert one < cool < cold


def test_colder_is_worse_if_people_mostly_wrote_bad_reviews(world):
    # the counts of good and bad exchanged: bad bad 4, bad good 1, bad . 5, ...
    shares = torch.tensor([2, 1, 3, 1, 4, 5, 4], dtype=torch.float64) / 20
    table = imitated(world, shares)
    assert expected(world, table / 0.5) < expected(world, table) < 0


def test_the_loss_is_the_kl_and_the_entropy_of_people(world):
    table = torch.randn(3, 3, generator=torch.Generator().manual_seed(0)).double()
    log_p = world.sequence_logprobs(table)
    kl = (SHARES * (SHARES.log() - log_p)).sum()
    torch.testing.assert_close(-(SHARES * log_p).sum(), kl + entropy(SHARES))


# ---- the prose


def test_the_base_models_first_sample_is_cut_off_and_the_sft_model_stops(trained):
    policies, tokenizer = trained
    prompts = tasks.reviews.eval_prompts("test")[:8]
    drawn = {n: models.sample_text(p, tokenizer, prompts, seed=1)[0] for n, p in policies.items()}
    eos = tokenizer.eos_token_id
    assert not drawn["base"].finished(eos)[0]
    assert drawn["base"].response_mask[0].sum() == models.SamplingConfig().max_new_tokens
    assert drawn["base"].finished(eos)[1]  # it can also stop, as the lesson says
    assert drawn["SFT"].finished(eos)[:5].all()
    written = models.decode(tokenizer, drawn["SFT"])
    assert [prompt.strip() for prompt in prompts[1:5:3]] == ["american psycho 2", "beijing bicycle"]
    assert written[1] == "A slice of suspense."
    assert "shernprovoking" in written[2] and "funnyfloat" in written[4]


def test_the_three_reviews_of_section_6_are_about_one_film(trained):
    data = tasks.reviews.sft_dataset(trained[1]).select(range(3))
    assert set(data["prompt"]) == {"a grin without a cat\n"}
    words = [set(text.lower().rstrip(".").split()) for text in data["completion"]]
    assert len(words[0] & words[1]) <= 2 and not words[0] & words[2]


def test_the_numbers_of_lesson_03(trained, world, two_reviews, people, surprise, cut_off):
    policies, tokenizer = trained
    with lesson("03") as said:
        # sections 2 and 3
        batch, logits = two_reviews
        lengths = batch.response_mask.sum(1).tolist()
        probs, scores = world.probs(world.ref_logits), world.rewards
        said("A response has at most", 2, 1 / len(world.vocab), 7)
        assert len(world.labels) == 7 and world.max_length == 2
        for index, response in enumerate(world.sequences):
            name = " ".join(world.vocab[i] for i in response)
            said(f"| {name if name != '.' else '. at once'} |", probs[index], scores[index])
        v, q = world.values(world.ref_logits)
        said("| reward | $r_t$ |", 0)
        said("and every other token has the reward", 0)
        said("After the last token nothing more is earned, so there $V$ is", 0)
        said("The policy has written *bad*.", *q[2], v[2])
        said("After *bad*, $Q$ of *good* is", *q[2])
        said("Write down the $Q$ of each word in both states:", q[:2].numel())
        said("words lead to the scores 2,", *q[1, 1:], v[1])
        said("After *good*, one word is left. The three words lead to the scores", *q[1])
        said("At the start, *good* has the reward", 0, q[0, 0], q[0, 1], q[0, 2], *q[0], v[0])
        end = rewards_of(world, "goodbad")  # G_t is the score at both tokens
        said("plus the change of the value. Take *good bad*. Its score is", end)
        change = [v[1] - v[0], end - v[1]]
        said("| first: good | start |", 0, end, v[0], v[1], 0 + v[1], change[0])
        said("| second: bad | good |", end, end, v[1], 0, end + 0, change[1])
        assert [q[0, 0], q[1, 1]] == [0 + v[1], end + 0]
        said("*good* raises what the policy may expect from", v[0], v[1], end)
        always = world.ref_logits.clone()
        always[1] = torch.tensor([-1e9, 0, -1e9])  # after good it writes bad
        said(
            "policy always writes *bad* after *good*, its $V$ after *good* is",
            world.values(always)[0][1],
            v[1],
        )
        # section 4
        one = models.encode(tokenizer, ["the film\n"], ["A dull film."])
        width, prompt = one.sequences.shape[1], one.prompt_ids.shape[1]
        said("| position", *range(width))
        said("do you need for the", lengths[0])
        last = width - 2
        said("You need the rows", prompt - 1, last)
        said("| row of logits |", *range(width))
        with torch.no_grad():
            logprobs = models.policy_logprobs(policies["SFT"], batch)
        said("its probability is about", logprobs[0, 1].exp())
        assert lengths[1] - lengths[0] == 4  # the last four rows of the table are padding
        assert tokenizer.pad_token_id == tokenizer.eos_token_id
        said("Here the lengths are", *lengths)
        # section 5, and entropy in going further
        p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
        sums = p.cumsum(0)
        said(
            "Take three words with the probabilities", *p, 0, 1, sums[0], sums[0], sums[1], sums[1]
        )
        off = log_probabilities_off(trained)
        said("so that they sum to", at(p, 0.5).sum(), *at(p, 0.5))
        torch.testing.assert_close(p.square(), torch.tensor([0.25, 0.09, 0.04]).double())
        said("have the entropy", entropy(p), math.exp(entropy(p)), math.exp(entropy(at(p, 0.5))))
        heat = {t: (logits[0, 0] / t).softmax(0) for t in (0.5, 1.0, 1.5)}
        effective = {t: math.exp(entropy(x)) for t, x in heat.items()}
        said("$e^H$ is about", effective[0.5], 0.5, effective[1.0], 1, effective[1.5], 1.5)
        (a,) = tokenizer("A").input_ids
        assert all(p.argmax() == a for p in heat.values())
        said("Its vocabulary has", logits.shape[-1], 1, heat[1.0][a], 0.5, 1.5)
        said("The probability of *A* is", heat[0.5][a], 0.5, heat[0.5][a] > 0.5, 1.5, heat[1.5][a])
        usual = models.SamplingConfig()
        said("Our models sample at", usual.temperature, usual.temperature, usual.temperature)
        said("the same as when the token was drawn. At", 1, off[1.0].abs().max() > 0.5, 0.5)
        padding = logits[0, 5:]  # the rows that predict padding: all equal
        assert (padding - padding[0]).abs().max() < 1e-3
        # section 8
        shown, mask = by_position(people, surprise), people[1].response_mask
        total = {name: core.aggregate(x, mask).item() for name, x in surprise.items()}
        falls = [shown["base"][0], shown["SFT"][0]]
        said("at the first token: the surprise falls from", *falls, total["base"], total["SFT"])
        said("Both get the same titles, at temperature", usual.temperature)
        said("and it is cut off at the limit of", usual.max_new_tokens)
        eos = (people[1].response_ids == tokenizer.eos_token_id) & mask
        stops = {name: (-x[eos]).exp().mean().item() for name, x in surprise.items()}
        assert cut_off["base", 0.7] > 0.45 and cut_off["SFT", 0.7] < 0.1
        said("model's own responses, to the", len(tasks.reviews.eval_prompts("test")), 0.7)
        said("at people's tokens (at the temperature", 1)
        said("How likely is it, at the temperature", 1)
        said("the probability of EOS rises from", stops["base"], stops["SFT"])
        assert loops.SFTConfig().epochs == 1.5  # one and a half times the data
        # section 9
        said("| number", *(20 * SHARES).round())
        said("| its score |", *scores)
        mean = (SHARES * scores).sum().item()
        said("Its mean score is theirs,", mean, scores.max())
        said("The loss does not go to", 0, entropy(SHARES), entropy(SHARES) > 0)
        said("how undecided the policy is. It is", 0)
        assert scores[0] == scores.max() and world.labels[0] == "goodgood"
        # exercises and questions
        said("Padding has the reward", 0, 0, 2)
        said("every response has", 2, 1, 0, 1, 2)
        said("Then predict.** The next cell samples", *COUNTS)
        said("Which of the two advantages moves nearer to", 0)
        said("Padding can hold NaN, and NaN times", 0)
        said("and one number between", 0, 1)
        said("The last sum should be", sums[-1])
        said("A response of", 30, -90)
        said("On average a token has the log-probability", -90 / 30, math.exp(-90 / 30))
        said("You sample at the temperature", usual.temperature)
        said("The policy at", usual.temperature, usual.temperature, 1)
        said("its surprise changes by less than", 0.001)
        # going further
        said("training can lower only the KL. The KL is never below", 0, 0)
        read, in_sft, in_test = what_was_read(tokenizer)
        assert read >= in_sft and not read & in_test
        said("It was pretrained on", len(tasks.reviews.pretraining_texts()))
        said("without titles. All", len(in_sft))
        said("are among them. None of the", len(in_test))
        said("to something that people write, $\\log \\pi(y)$ is far below", 0)
        cold = expected(world, imitated(world, SHARES) / 0.5)
        said("is about the policy at the temperature", 1, 0.5, cold, mean)
        gain, low, high = gain_by_film(people, surprise)
        said("we take the mean over all tokens: the gain is", total["base"] - total["SFT"], gain)
        said("of the second number, over films, is from", low, high)


def advantages_of_good_bad(world, logits):
    """(V of the start, V after good, advantage of good, advantage of bad)."""
    v, q = world.values(logits)
    return v[0], v[1], q[0, 0] - v[0], q[1, 1] - v[1]


def test_the_numbers_of_the_solution_on_advantages(world):
    *_, good, bad = advantages_of_good_bad(world, world.ref_logits)
    nine = torch.tensor([0.9, 0.05, 0.05]).double().log().expand(3, 3)
    at_start, after_good, good_after, bad_after = advantages_of_good_bad(world, nine)
    assert abs(good_after) < abs(good) and abs(bad_after) > abs(bad)
    cells = nbformat.read(
        NOTEBOOKS / "solutions" / "03_a_language_model_is_a_policy.ipynb", 4
    ).cells
    said = Said([c for c in cells if "The advantage of *good* moves" in c.source])
    said("The advantage of *good* moves towards", 0, good, good_after)
    said("$V$ of the start is", at_start, after_good)
    said("The advantage of *bad* moves away from", 0, bad, bad_after)
    said("would most likely have reached the score", 2)


def test_the_numbers_of_the_solution_on_samples(world):
    """Exercise 1: a third of the responses begins with *good*, and the estimates come nearer."""
    drawing, found = torch.Generator().manual_seed(0), []
    probs = world.probs(world.ref_logits)
    for count in COUNTS:
        index = torch.multinomial(probs, count, True, generator=drawing)
        good = world.response_ids[index][:, 0] == 0
        found.append((good.sum(), world.rewards[index][good].mean()))
    cells = nbformat.read(
        NOTEBOOKS / "solutions" / "03_a_language_model_is_a_policy.ipynb", 4
    ).cells
    said = Said([c for c in cells if "are the mean of the same responses" in c.source])
    value = world.values(world.ref_logits)[0][1]
    (few, rough), (_, better), (many, best) = found
    said("After 30 samples,", few, rough, value, COUNTS[1], better, COUNTS[2], best)
    assert many / COUNTS[2] == pytest.approx(1 / 3, abs=0.01)
    assert world.values(world.ref_logits)[1][1, 0] == 2
    said_too = Said([c for c in cells if "nothing is left to chance" in c.source])
    said_too("after *good* is exactly", 2)
    (printed,) = [c for c in cells if c.source.startswith("drawing = torch")]
    assert f"{rough:.4f}" in printed.outputs[0]["text"]
