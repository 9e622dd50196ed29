"""Lesson 01, why RLHF: every number of its prose, and every claim about a model or a record."""

import math
import re

import nbformat
import pandas as pd
import pytest
import torch

from minirlhf import core, evaluate, experiments, models, rewards, tasks
from minirlhf.classroom import check
from minirlhf.classroom.course import NOTEBOOKS
from tests.claims.prose import lesson

# The notes' sentence has one number per token of ours.
SENTENCE = "I love to walk the dog, what do you like?"
NOTES = [1.344, 1.152, 2.174, -0.385, 0.176, 2.305, 1.619, -0.201, 1.255, 2.377, 1.179, 1.298]
REVIEWS = ["A brilliant, moving film with a terrible ending.", "It is never boring."]
BEST = {"SFT": 1, "best-of-4": 4, "best-of-16": 16}


@pytest.fixture(scope="module")
def loaded():
    policy, tokenizer = models.load_policy("tiny-reviews-sft")
    return policy, tokenizer, models.load_scalar("tiny-reviews-reward")[0]


def prefixes(loaded, *responses):
    """A table for each response, its index the tokens, with both rewards of every prefix."""
    _, tokenizer, reward_model = loaded
    batch = models.encode(tokenizer, ["the film\n"] * len(responses), list(responses))
    table = evaluate.token_table(batch, tokenizer, reward_model=reward_model)
    return [rows.set_index(rows.token.str.strip()) for _, rows in table.groupby("text")]


@pytest.fixture(scope="module")
def dog(loaded):
    return prefixes(loaded, SENTENCE)[0]


@pytest.fixture(scope="module")
def pair(loaded):
    return prefixes(loaded, *REVIEWS)


@pytest.fixture(scope="module")
def smollm2():
    return experiments.results("smollm2").set_index("method")


@pytest.fixture(scope="module")
def best():
    """Means over the seeds of reward and gold score, by the number of samples."""
    rows = experiments.results("tour")
    assert sorted(rows.seed.unique()) == [0, 1, 2]
    return rows.groupby("method")[["proxy", "gold"]].mean().rename(index=BEST)


# ---- sections 2 to 4: the exact world


def world():
    return core.World.from_reward(
        ("good", "bad", "."), 2, lambda words: words.count("good") - words.count("bad")
    )


def pushes():
    """(SFT's, the reward's): what a step adds to each logit, times the step size."""
    exact = world()
    logits = exact.ref_logits.clone().requires_grad_(True)
    written = exact.sequence_logprobs(logits)[exact.labels.index("good.")]
    return torch.autograd.grad(written, logits)[0], exact.gradient(logits)


def test_imitation_cannot_tell_bad_words_from_words_that_were_not_written():
    sft, reward = pushes()
    assert sft[0, 1] == pytest.approx(sft[0, 2].item()) and sft[0, 0] > 0
    assert reward[0, 1] < 0 and reward[0, 2] == pytest.approx(0, abs=1e-12) and reward[0, 0] > 0


def by_hand():
    """The push of the reward by the formula of section 2."""
    exact = world()
    v, q = exact.values(exact.ref_logits)
    probs = exact.ref_logits.softmax(1)
    reach = torch.cat([torch.ones(1).double(), probs[0, :2]])[:, None]
    return reach * probs * (q - v[:, None]), v, q


def test_the_formula_of_the_push_is_right_after_every_prefix():
    found, v, _ = by_hand()
    assert torch.allclose(found, pushes()[1])
    assert v[0] == pytest.approx(0) and v[2] == pytest.approx(-1)


def after(push, steps=1):
    """(probabilities of the first word, J) after some steps of size 1 on a push."""
    exact, logits = world(), world().ref_logits
    for _ in range(steps):
        logits = logits + push(exact, logits)
    return logits.softmax(1)[0].tolist(), exact.objective(logits).item()


def of_sft(*written):
    """The push of SFT on these responses."""

    def push(exact, logits):
        logits = logits.clone().requires_grad_(True)
        rows = [exact.labels.index(name) for name in written]
        return torch.autograd.grad(exact.sequence_logprobs(logits)[rows].mean(), logits)[0]

    return push


def of_reward(exact, logits):
    return exact.gradient(logits)


def test_one_step_of_both_kinds_raises_j():
    (good, bad, stop), sft = after(of_sft("good."))
    assert good > 1 / 3 > bad and bad == pytest.approx(stop) and sft > 0
    (good, bad, stop), reward = after(of_reward)
    assert good > 1 / 3 > stop > bad and reward > 0
    exact = world()  # the push of section 2 is minus the gradient of the loss, times T
    assert exact.logprobs(exact.ref_logits)[exact.labels.index("good.")].count_nonzero() == 2


def test_sft_ends_at_what_the_person_wrote_and_the_reward_beyond_it():
    assert after(of_sft("good."), 1000)[1] == pytest.approx(1, abs=0.01)
    assert after(of_reward, 1000)[1] == pytest.approx(2, abs=0.01) == world().rewards.max()


def test_it_helps_to_leave_bad_responses_out():
    everything = after(of_sft("good.", "bad.", "badbad", "goodgood"), 20)[1]
    assert after(of_sft("good.", "goodgood"), 20)[1] > everything + 1


def test_with_one_right_answer_the_sft_loss_and_the_expected_reward_rank_alike():
    exact = core.World.from_reward(("good", "bad", "."), 2, lambda words: words == ["good", "."])
    logits = torch.randn(20, 3, 3, generator=torch.Generator().manual_seed(0)).double()
    written = exact.rewards == 1
    logprobs = torch.stack([exact.sequence_logprobs(table)[written] for table in logits])
    reward = torch.stack([exact.objective(table) for table in logits])
    assert written.sum() == 1 and torch.allclose(logprobs[:, 0].exp(), reward, atol=1e-6)


def test_the_push_after_bad_is_a_third_of_that_at_the_start():
    _, reward = pushes()
    assert torch.allclose(reward[2, :2], reward[0, :2] / 3)


def test_imitation_says_nothing_after_a_prefix_that_nobody_wrote():
    sft, reward = pushes()
    assert (sft[2] == 0).all()
    assert reward[2, 0] > 0 > reward[2, 1]


def two_models():
    """(SFT loss per token, expected reward) of people, model A and model B, on paper."""
    half = math.log(0.5)
    return {
        "people": (-half / 2, 1.0),
        "A": (-(half + half) / 2, 0.5),
        "B": (-(math.log(0.95) + math.log(0.05)) / 4, 1.0),
    }


def test_the_exact_world_has_the_numbers_on_paper():
    right = [["good", "."], ["bad", "."]]
    exact = core.World.from_reward(("good", "bad", "."), 2, lambda words: float(words in right))
    written = exact.rewards == 1
    stops, adds = [0, 0, 1], [0.25, 0.25, 0.5]
    tables = {
        "people": [[0.5, 0.5, 0], stops, stops],
        "A": [[0.5, 0.5, 0], adds, adds],
        "B": [[0.95, 0.05, 0], stops, stops],
    }
    for name, table in tables.items():
        logprobs = exact.sequence_logprobs(torch.tensor(table, dtype=torch.float64).log())
        found = -logprobs[written].mean() / 2, logprobs.exp() @ exact.rewards
        assert [x.item() for x in found] == pytest.approx(two_models()[name])
    always_good = torch.tensor([[1.0, 0, 0], stops, stops]).log()
    assert exact.sequence_logprobs(always_good)[written].mean() == -math.inf
    assert exact.probs(always_good) @ exact.rewards.float() == 1


def test_a_smaller_kl_coefficient_gives_a_higher_expected_reward():
    exact = world()
    rewards_of = [exact.objective(exact.ref_logits)]
    for beta in (1.0, 0.3):
        logits = exact.gibbs_logits(beta=beta)
        assert exact.objective(logits, beta=beta) > exact.objective(exact.ref_logits, beta=beta)
        assert exact.gradient(logits, beta=beta).abs().max() < 1e-5
        rewards_of.append(exact.objective(logits))
    assert rewards_of == sorted(rewards_of) and rewards_of[-1] < exact.rewards.max()


# ---- section 5: the reward of every prefix


def correlation(a, b):
    return pd.Series(list(a)).corr(pd.Series(list(b)))


def likeness(dog):
    """The correlation of our two rewards with those of the notes."""
    rows = dog.iloc[:-1]
    return [correlation(NOTES, rows[c]) for c in ("prefix_reward", "one_pass_reward")]


def test_our_reward_model_does_not_resemble_that_of_the_notes(dog):
    assert max(map(abs, likeness(dog))) < 0.3
    assert dog.prefix_reward.idxmax() == "love"
    assert (dog.prefix_reward.iloc[6:].diff().dropna() < 0.01).all()
    assert len(dog) - 1 == len(NOTES)


def test_the_two_rewards_agree_at_eos_and_only_there(loaded, dog, pair):
    _, tokenizer, reward_model = loaded
    score = rewards.rollout_score(reward_model, tokenizer.eos_token_id)
    batch = models.encode(tokenizer, ["the film\n"], [SENTENCE])
    for rows in (dog, *pair):
        gap = (rows.prefix_reward - rows.one_pass_reward).abs()
        assert gap.iloc[-1] < 1e-4 and (gap.iloc[:-1] > 0.01).all()
    assert dog.prefix_reward.iloc[-1] == pytest.approx(score(batch).item(), abs=1e-4)
    everywhere = models.token_scores(reward_model, batch)
    assert torch.equal(core.last_token_scores(everywhere, batch.attention_mask), everywhere[:, -1])


def test_which_words_move_the_reward(pair):
    first, second = (rows.prefix_reward for rows in pair)
    change = first.diff()
    assert change.idxmax() == "brilliant" and change.idxmin() == "rible"
    assert 0 < change["moving"] < change["brilliant"] / 2
    assert second.diff().idxmin() == "boring"
    assert first.iloc[-1] > 0 > second.iloc[-1]
    assert pair[0].one_pass_reward.idxmax() == "ter"


def test_one_pass_has_the_larger_difference_at_the_adjective(loaded):
    good, bad = prefixes(loaded, "The film is a brilliant", "The film is a boring")
    for column in ("prefix_reward", "one_pass_reward"):
        assert good[column]["a"] == pytest.approx(bad[column]["a"], abs=1e-4)
    gaps = [good[c]["brilliant"] - bad[c]["boring"] for c in ("prefix_reward", "one_pass_reward")]
    assert 0 < gaps[0] < gaps[1]


# ---- section 6: where a response ends


def test_the_mask_of_ids_that_are_not_padding_leaves_out_eos():
    ids = torch.tensor([[7, 2, 0, 0, 0]])
    assert check.eos_mask.reference(ids, 0).tolist() == [[True, True, True, False, False]]
    assert (ids != 0).tolist() == [[True, True, False, False, False]]


def test_encoded_responses_have_one_real_token_more_than_that_mask(loaded):
    tokenizer = loaded[1]
    batch = models.encode(tokenizer, ["the film\n"] * 2, ["Short.", "A somewhat longer review."])
    wrong = batch.response_ids != tokenizer.pad_token_id
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    assert (batch.response_mask.sum(1) - wrong.sum(1)).tolist() == [1, 1]


def lengths(loss, steps=100):
    """The mean length during the training of exercise 4."""
    exact = core.World.from_reward(("good", "bad", "."), 4, len)
    rows = [exact.labels.index("good."), exact.labels.index("goodbad.")]
    logits, path = exact.ref_logits, []
    for _ in range(steps):
        path.append(exact.objective(logits).item())
        logits = logits.detach().requires_grad_(True)
        loss(exact.logprobs(logits)[rows], exact.response_ids[rows], 2).backward()
        logits = logits - logits.grad
    return path, exact.response_mask[rows].sum(1).float()


def without_eos(logprobs, ids, eos_id):
    """The colleague's loss of exercise 5."""
    mask = ids != eos_id
    return -(logprobs * mask).sum() / mask.sum()


def test_a_model_trained_without_eos_never_stops():
    (right, people), (sick, _) = lengths(check.imitation_loss.reference), lengths(without_eos)
    assert abs(right[-1] - people.mean()) < 0.1
    assert sick[-1] > people.mean() + 1 and sick == sorted(sick)
    assert not check.imitation_loss(without_eos)


def of_four():
    """Exercise 1 (b): [SFT loss, J] of the given models, of the answer, and of people."""
    people = torch.tensor([0.6, 0.3, 0.1, 0.0])
    right = torch.tensor([1.0, 1.0, 1.0, 0.0])
    models_ = {
        "often wrong": torch.tensor([0.06, 0.03, 0.01, 0.9]),
        "never wrong": torch.tensor([0.9998, 0.0001, 0.0001, 0.0]),
        "people": people,
    }
    return {k: check.two_measures.reference(p, people, right).tolist() for k, p in models_.items()}


def test_a_model_that_is_never_wrong_can_have_the_larger_sft_loss():
    four = of_four()
    assert four["never wrong"][1] == pytest.approx(1) and four["often wrong"][1] < 0.11
    losses = [four[name][0] for name in ("never wrong", "often wrong", "people")]
    assert losses == pytest.approx([3.68, 3.20, 0.90], abs=0.005)  # as the solution says
    assert losses[1] - losses[2] == pytest.approx(math.log(10))


def test_the_pushes_of_exercise_2_are_those_of_the_exact_world():
    exact = world()
    logits = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    found = check.reward_pushes.reference(logits.softmax(1), exact.rewards.float())
    assert torch.allclose(found, exact.gradient(logits.double()).float(), atol=1e-6)


def test_the_loss_of_sft_is_the_mean_over_real_tokens(loaded):
    policy, tokenizer, _ = loaded
    batch = models.encode(tokenizer, ["the film\n"] * 2, ["Short.", "A somewhat longer review."])
    with torch.no_grad():
        logprobs = models.policy_logprobs(policy, batch)
    by_hand = check.imitation_loss.reference(logprobs, batch.response_ids, tokenizer.eos_token_id)
    packaged = core.aggregate(-logprobs, batch.response_mask, how="token_mean")
    assert by_hand == pytest.approx(packaged.item(), abs=1e-5)


# ---- section 7: best-of-n


def kept_on_the_page():
    """The highest reward of the four responses to each of the two titles that the page shows."""
    cells = nbformat.read(NOTEBOOKS / "01_why_rlhf.ipynb", 4).cells
    (cell,) = [c for c in cells if c.source.startswith("score = rewards.rollout_score")]
    text = "".join(cell.outputs[0]["data"]["text/plain"])
    numbers = [float(x) for x in re.findall(r"\| reward: (\S+)", text)]
    responses = re.findall(r"\| response: (.+)", text)
    assert len(numbers) == len(responses) == 8
    tops = [max(range(4), key=numbers.__getitem__), max(range(4, 8), key=numbers.__getitem__)]
    assert responses[tops[0]].startswith("There's a great way ")
    assert responses[tops[1]].endswith(" is very funny.")
    assert max(numbers) > 0 > min(numbers)
    return [numbers[i] for i in tops]


def test_reward_and_gold_score_rise_with_the_number_of_samples():
    rows = experiments.results("tour").set_index(["seed", "method"])
    for seed in range(3):
        for column in ("proxy", "gold"):
            one, four, sixteen = (rows[column][seed, method] for method in BEST)
            assert one < four < sixteen


# ---- "Going further"


def test_smollm2_ranks_held_out_pairs_better_than_chance(smollm2):
    head, tiny = smollm2.loc["reward head"], smollm2.loc["tiny-reviews-reward"]
    assert head.low > 0.5
    assert head.low < tiny.high and tiny.low < head.high
    assert (head.films, head.pairs) == (tiny.films, tiny.pairs)


def of_smollm2(smollm2, dog):
    """The correlation of SmolLM2's rewards with the notes', and with ours, over equal prefixes."""
    row = smollm2.loc["prefixes"]
    theirs = dict(zip(pd.Series(row.tokens).cumsum(), row.with_eos, strict=True))
    ends = pd.Series(list(dog.iloc[:-1].reset_index(names="word").index))
    words = [SENTENCE[:k] for k in range(1, len(SENTENCE) + 1)]
    shared = [end for end in words if end in theirs]
    assert len(shared) == len(ends) == len(theirs)
    values = [theirs[end] for end in shared]
    return [correlation(NOTES, values), correlation(dog.prefix_reward.iloc[:-1], values)]


@pytest.fixture(scope="module")
def surprise(loaded):
    """The mean of -log pi per token on held-out reviews by people, and on the model's own."""
    policy, tokenizer, _ = loaded
    held = [
        r
        for r in tasks.reviews.load_reviews()
        if r.split == "test" and len(tokenizer(r.text).input_ids) < 32
    ][:128]
    prompts = [r.prompt for r in held]
    config = models.SamplingConfig(temperature=1.0)
    (own,) = models.sample_text(policy, tokenizer, prompts, config=config, batch_size=len(prompts))
    people = models.encode(tokenizer, prompts, [r.text for r in held])
    with torch.no_grad():
        means = [
            core.aggregate(-models.policy_logprobs(policy, b), b.response_mask).item()
            for b in (people, own)
        ]
    return len(held), *means


# ---- every number of the prose


def test_the_numbers_of_the_prose(loaded, dog, pair, best, smollm2, surprise):
    sft, reward = pushes()
    exact, third = world(), 1 / 3
    values = dict(zip(exact.labels, exact.rewards.tolist(), strict=True))
    by_model = two_models()
    first, second = (rows.prefix_reward for rows in pair)
    alike = likeness(dog)
    titles = tasks.reviews.eval_prompts("test")
    head, tiny = smollm2.loc["reward head"], smollm2.loc["tiny-reviews-reward"]
    kept = kept_on_the_page()
    with lesson("01") as said:
        # 2: no negative examples
        said("So there are", len(exact.sequences))
        said("At the start all logits are", 0, third)
        said("| its reward |", *exact.rewards.tolist()[:4], *exact.rewards.tolist()[4:])
        said("| its probability |", *exact.probs(exact.ref_logits).tolist())
        objective = exact.objective(exact.ref_logits)
        said("So at the start $J$ is", 2, 0, 1, 0, 2, 1, 9, 0, 3, objective)
        said("In words: if the word was written,", 1, 0)
        ahead = ("goodgood", "goodbad", "good."), ("badgood", "badbad", "bad.")
        good, bad = ([values[name] for name in names] for names in ahead)
        means = [sum(x) / 3 for x in (good, bad)]
        hand, v, q = by_hand()
        assert torch.allclose(hand, reward) and means == pytest.approx(q[0, :2].tolist())
        said("| *good* |", 1, third, sft[0, 0], *good, 3, q[0, 0])
        said("(2 + 0 + 1) / 3 = 1 |", 1, third, q[0, 0], v[0], hand[0, 0])
        said("| *bad* |", 0, third, sft[0, 1], bad[0], -bad[1], -bad[2], 3, q[0, 1])
        said("(0 − 2 − 1) / 3 = −1 |", 1, third, q[0, 1], v[0], hand[0, 1])
        said("| full stop |", 0, third, sft[0, 2], q[0, 2], 1, third, q[0, 2], v[0], hand[0, 2])
        said("Because probabilities sum to", 1, sft[0, 2], sft[0, 1] == sft[0, 2])
        said("Now one step of each kind, with step size", 1)
        by_sft, by_reward = after(of_sft("good.")), after(of_reward)
        said("and both raise $J$: from", objective, by_sft[1], by_reward[1])
        said("and the full stop have the same probability,", by_sft[0][1], *by_reward[0][1:])
        many = after(of_sft("good."), 1000)[1], after(of_reward, 1000)[1]
        said("so $J$ comes close to", *(round(x, 2) for x in many))
        # 3: many right answers
        said("People write both equally often. The reward is", 1, 0)
        said("- **Model A** begins", 0.5, 0.5)
        said("- **Model B** begins", 0.95, 0.05)
        said("- **SFT loss.** Model A has", by_model["A"][0], by_model["B"][0])
        said("SFT prefers model A", by_model["A"][0] < by_model["B"][0])
        said("People themselves would have", by_model["people"][0])
        said("Model A is right in", by_model["A"][1])
        nats = [-math.log(p) for p in (0.5, 0.95, 0.05)]
        said("With a single right answer, which people always write, the two measures agree", True)
        said("By hand: the loss of A is", nats[0] > 0)
        said("at the first token, and", 0, (nats[1] + nats[2]) / 4)
        # 4: exposure bias
        said("all its pushes there are", 0, (sft[2] == 0).all())
        said("The reward pushes *good* up and a second *bad* down", reward[2, 0] > 0 > reward[2, 1])
        said("By hand, $P(\\text{reach } s)$ is", third, bad[0], -bad[1], -bad[2], 3, v[2])
        said("| then *good* |", q[2, 0], third, third, q[2, 0], -v[2], hand[2, 0])
        said("| then *bad* |", q[2, 1], third, third, q[2, 1], -v[2], hand[2, 1])
        said("| then full stop |", q[2, 2], third, third, q[2, 2], -v[2], hand[2, 2])
        # 5: the reward of every prefix
        said("its rewards have the mean", 0, 1)
        said("- *brilliant* raises the reward most, from", first["A"], first["brilliant"])
        said("and the reward falls from", first.iloc[6], first["rible"])
        said("- The first review ends with", first.iloc[-1])
        said("- The second review ends with", second.iloc[-1])
        one_pass = pair[0].one_pass_reward
        said("After *brilliant* one says", first["brilliant"], one_pass["brilliant"])
        said("in one pass the highest number of the first review is", one_pass.max())
        said('the prefix "It is" has', second["is"], second.iloc[-1])
        # 6: best-of-n
        said("here with n =", 4)
        said("The titles are those of", len(titles))
        said("Best-of-n keeps", *kept)
        said("prediction of people's mean rating, from", -4, 4)
        said("- **The reward rises**, from", *(best.proxy[n] for n in (1, 4, 16)))
        said("- **The gold score rises too**, from", *(best.gold[n] for n in (1, 4, 16)))
        # exercises and questions
        right_path, _ = lengths(check.imitation_loss.reference)
        said("may have the probability", 0)
        said("its reward must be", of_four()["never wrong"][1])
        said("The right line first rises to", max(right_path), right_path[-1])
        said("| token id |", 7, 2, 0, 0, 0)
        said("They are", 2, 3)
        said("so the mean length is", 2.5)
        said("take one response, the ids", 7, 2, 0, 0, 0, 0)
        said("It should come close to", 2.5)
        said("with the bug the line ends at", lengths(without_eos)[0][-1])
        said("With more steps it comes to", lengths(without_eos, 3000)[0][-1], 4)
        said("so `eos_id` is", world().vocab.index("."))
        said("1. SFT has no negative examples", True)
        said("Probabilities sum to", 1)
        said("the mean of the SFT model's responses is", 0)
        # "Going further"
        said("so the mean reward of one sample is not exactly", 0, best.proxy[1] != 0)
        said('"I love" has the highest reward,', dog.prefix_reward["love"])
        said("The correlation of the notes' numbers with ours is", *alike)
        said("SmolLM2 is a language model with", 135)
        said("(prefix + EOS) have a correlation of", *of_smollm2(smollm2, dog))
        said("On", head.pairs, head.films)
        said("randomly chosen rater in", head.accuracy, head.low, head.high)
        said("our small reward model in", tiny.accuracy, tiny.low, tiny.high)
        bands = experiments.results("reward_model")
        whole = bands[(bands.low == 0) & (bands.high == 8)]
        said("(Lesson 00 says", whole["reward model"].mean(), whole.seed.nunique())
        said("per token on", surprise[0])
        said("drawn with its own probabilities (temperature", 1)
        said("(temperature 1). It is", *surprise[1:], abs(surprise[1] - surprise[2]) < 0.1)
