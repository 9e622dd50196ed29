"""Lesson 13, the Q-function inside a policy: every number of its prose, and its claims."""

import copy
import math
import re

import nbformat
import pytest
import torch

from minirlhf import core, evaluate, experiments, loops, models, tasks
from minirlhf.classroom.course import NOTEBOOKS
from minirlhf.experiments.planted import LOCATED
from minirlhf.loops.preference import LOSSES
from tests.claims.prose import lesson
from tests.claims.test_lesson_12 import shares

NOTEBOOK = NOTEBOOKS / "13_a_language_model_is_a_q_function.ipynb"
BETA = 0.5
STEPS = 200
TWENTY = {"steps": 20, "batch_size": 64, "beta": 0.1}
METHODS = ("surprisal", "implicit reward", "surprisal after DPO", "value")
TRAINED = ("implicit reward", "surprisal after DPO", "value")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ---- sections 2 and 3: the tree


def tree_of(beta):
    """(V*, Q*, Q* - V*) of the tree of two tokens."""
    tree = core.World.from_reward(("good", "."), 2, lambda words: float(words.count("good")))
    assert tree.labels == ["goodgood", "good.", "."]
    values, q = tree.optimal_values(beta=beta)
    return tree, values, q, q - values[:, None]


def test_the_best_policy_of_the_tree_gains_its_kl_penalty_back_at_every_token():
    beta = 1 / math.log(2)
    tree, values, q, gains = tree_of(beta)
    best = tree.gibbs_logits(beta=beta).log_softmax(-1)
    penalty = beta * (best - tree.ref_logits.log_softmax(-1))
    torch.testing.assert_close(penalty, gains)
    # PPO's advantage, whose Q contains the token's own KL penalty, is zero everywhere
    of_policy, with_penalty = tree.values(best, beta=beta)
    torch.testing.assert_close(with_penalty - of_policy[:, None], torch.zeros(2, 2).double())
    torch.testing.assert_close(of_policy, values)
    # and V* is what the maximum at a prefix is worth
    torch.testing.assert_close((best.exp() * (q - penalty)).sum(1), values)


@pytest.mark.parametrize("seed", range(3))
def test_logits_are_q_up_to_one_number_per_prefix(seed):
    """beta (z - log pi_ref) = Q* + c; for the z with c = 0, V* is beta times their logsumexp."""
    world = core.World.random(3, 3, seed=seed)
    values, q = world.optimal_values(beta=BETA)
    ref = world.ref_logits.log_softmax(-1)
    generator = torch.Generator().manual_seed(seed)
    added = torch.randn(len(q), 1, generator=generator, dtype=torch.float64)
    logits = world.gibbs_logits(beta=BETA).log_softmax(-1) + added
    number = BETA * (logits - ref) - q
    torch.testing.assert_close(number, (BETA * logits.logsumexp(-1) - values)[:, None].expand(7, 3))
    exact = ref + q / BETA
    torch.testing.assert_close(BETA * exact.logsumexp(-1), values)
    torch.testing.assert_close(exact.softmax(-1), logits.softmax(-1))


@pytest.mark.parametrize("seed", range(3))
def test_the_probabilities_of_responses_fix_those_of_next_words(seed):
    """A next word: all responses that begin with prefix and word, over all with the prefix."""
    world = core.World.random(3, 3, seed=seed)
    logits = world.gibbs_logits(beta=BETA)
    whole = dict(zip(world.sequences, world.probs(logits).tolist(), strict=True))

    def begin(start):
        return sum(p for y, p in whole.items() if y[: len(start)] == start)

    for state, probs in zip(world.states, logits.softmax(-1).tolist(), strict=True):
        for word, p in enumerate(probs):
            assert begin((*state, word)) / begin(state) == pytest.approx(p)


def test_the_soft_mean_falls_from_the_best_reward_to_the_mean_as_beta_grows():
    starts = [tree_of(beta)[1][0].item() for beta in torch.logspace(-2, 3, 60).tolist()]
    assert starts[0] == pytest.approx(2, abs=0.02)
    assert starts[-1] == pytest.approx(0.75, abs=1e-3)
    assert all(a > b for a, b in zip(starts, starts[1:], strict=False))


@pytest.mark.parametrize("seed", range(3))
def test_sums_of_gains_are_values(seed):
    """From the start: V* of the prefix minus V* of the prompt. To the end: the reward, less that."""
    world = core.World.random(3, 3, seed=seed)
    values, q = world.optimal_values(beta=BETA)
    gains = (q - values[:, None])[world.visited, world.response_ids]
    gains = torch.where(world.response_mask, gains, 0.0)
    before = values[world.visited] - values[0]
    expected = torch.where(world.response_mask, before, 0.0)
    found = torch.where(world.response_mask, gains.cumsum(1) - gains, 0.0)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gains.sum(1), world.rewards - values[0])


def test_the_old_tree_of_three_words():
    hand = core.World.from_reward(
        ("good", "bad", "."), 2, lambda words: float(words.count("good") - words.count("bad"))
    )
    values, q = hand.optimal_values(beta=1 / math.log(2))
    gains = q - values[:, None]
    assert gains[0, 0] + gains[1, 0] == pytest.approx(2 - values[0].item())
    assert gains[0, 2] == pytest.approx(-values[0].item())  # the full stop at the start


# ---- section 4: the exact world


@pytest.fixture(scope="module")
def world():
    return core.World.random(3, 3, seed=0)


def truth_of(world):
    values, q = world.optimal_values(beta=BETA)
    return q - values[:, None]


def descent(world, share, steps=STEPS):
    """The logits at each step of DPO's gradient descent, as the lesson walks."""
    i, j = torch.triu_indices(len(world.sequences), len(world.sequences), 1)
    ref, logits, path = world.sequence_logprobs(world.ref_logits), world.ref_logits, []
    for _ in range(steps + 1):
        path.append(logits)
        logits = logits.detach().requires_grad_(True)
        p = world.sequence_logprobs(logits)
        won = core.dpo(p[i], p[j], ref[i], ref[j], beta=BETA)
        lost = core.dpo(p[j], p[i], ref[j], ref[i], beta=BETA)
        (share * won + (1 - share) * lost).mean().backward()
        logits = (logits - 20 * logits.grad).detach()
    return path


def words_of(world, logits):
    """The implicit reward of every word at every prefix."""
    return core.implicit_rewards(
        logits.log_softmax(-1), world.ref_logits.log_softmax(-1), beta=BETA
    ).detach()


@pytest.fixture(scope="module")
def paths(world):
    share, votes = shares(world), torch.Generator().manual_seed(0)
    labels = {
        "shares": share,
        "one vote": torch.bernoulli(share, generator=votes),
        "majority": (share > 0.5).double(),
    }
    return {name: descent(world, label) for name, label in labels.items()}


@pytest.fixture(scope="module")
def errors(world, paths):
    """name -> the largest error among the implicit rewards of words, at each step."""
    truth = truth_of(world)
    return {
        name: torch.stack([(words_of(world, x) - truth).abs().max() for x in path])
        for name, path in paths.items()
    }


def test_only_exact_shares_lead_to_the_truth(errors):
    assert errors["shares"][-1] < 2e-4 < 0.5 < errors["shares"][1]
    assert (errors["shares"].diff() < 0).all()
    last = errors["one vote"][-50:]
    assert last.min() > 1 and last.max() - last.min() < 0.05  # it has stopped
    assert errors["majority"].min() < 0.5 * errors["majority"][0]  # it falls first
    assert (errors["majority"][20:].diff() > 0).all()


def wrong_signs(world, gains, truth):
    """[(prefix, next word)] whose sign is not the true one."""
    return [
        ("".join(world.vocab[i] for i in world.states[k]), world.vocab[word])
        for k, word in ((gains > 0) != (truth > 0)).nonzero().tolist()
    ]


def votes_of(world):
    """(i, j, share that prefers i, one vote) of each pair; the votes are those of the lesson."""
    i, j = torch.triu_indices(len(world.sequences), len(world.sequences), 1)
    share = shares(world)
    return i, j, share, torch.bernoulli(share, generator=torch.Generator().manual_seed(0))


def test_one_vote_spoils_the_signs_behind_b_where_the_second_best_response_lost(world, paths):
    truth, (i, j, share, vote) = truth_of(world), votes_of(world)
    gains = words_of(world, paths["one vote"][-1])
    assert wrong_signs(world, gains, truth) == [("b", "a"), ("b", ".")]
    assert truth[2, 0] < 0 < gains[2, 0] and gains[2, 2] < 0 < truth[2, 2]
    second = world.labels.index("b.")
    assert world.rewards.argsort(descending=True)[1] == second
    wrong = (vote > 0.5) != (share > 0.5)
    lost = wrong & ((i == second) | (j == second))
    best = world.rewards.argmax()
    assert not (lost & ((i == best) | (j == best))).any()  # it lost to worse responses only
    repaired = torch.where(lost, (share > 0.5).double(), vote)
    gains = words_of(world, descent(world, repaired)[-1])
    assert (gains[2] > 0).equal(truth[2] > 0)


def test_the_majority_keeps_the_order_of_responses_and_loses_the_sign_of_b(world, paths):
    truth, (i, j, share, _) = truth_of(world), votes_of(world)
    last = paths["majority"][-1]
    gains = words_of(world, last)
    assert wrong_signs(world, gains, truth) == [("", "b")]
    learned = world.sequence_logprobs(last) - world.sequence_logprobs(world.ref_logits)
    assert ((learned[i] > learned[j]) == (share > 0.5)).all()
    # larger rewards alone do the same, at the optimum
    doubled = copy.copy(world)
    object.__setattr__(doubled, "rewards", 2 * world.rewards)
    assert wrong_signs(world, truth_of(doubled), truth) == [("", "b")]


def test_words_add_up_to_their_response_at_every_step_and_are_wrong(world, paths, errors):
    ref = world.sequence_logprobs(world.ref_logits)
    for name, path in paths.items():
        for step in (0, 1, 2, 5, 10, 20, STEPS):
            words = words_of(world, path[step])[world.visited, world.response_ids]
            summed = torch.where(world.response_mask, words, 0.0).sum(1)
            whole = BETA * (world.sequence_logprobs(path[step]) - ref)
            assert (summed - whole.detach()).abs().max() < 1e-12, name
    assert errors["shares"][1] > 0.5


# ---- section 5: what the notebook shows of its own run


def output_of(words):
    """What the cell with these words has shown as text."""
    cells = nbformat.read(NOTEBOOK, 4).cells
    (cell,) = [c for c in cells if c.cell_type == "code" and words in c.source]
    return "\n".join(o.get("text") or o.get("data", {}).get("text/plain", "") for o in cell.outputs)


def moved_tokens():
    """(the six lowest, the six highest): token -> (mean implicit reward, count)."""
    rows = re.findall(r"^(.*?)\s+(-?\d\.\d+)\s+(\d+)$", output_of("means.head(6)"), re.M)
    found = [(token.strip(" \u00b7"), float(mean), int(size)) for token, mean, size in rows]
    assert len(found) == 12
    return found[:6], found[6:]


@pytest.mark.slow
def test_the_lowest_tokens_of_the_pair_that_dpo_separates_most():
    """The criticism is that of lesson 12; the lowest tokens of the praise are no blame."""
    sft, tokenizer = models.load_policy("tiny-reviews-sft")
    reviews = tasks.reviews.preference_pairs
    pairs = reviews("reward", 4000, seed=0, max_tokens=32, tokenizer=tokenizer)
    config = loops.DPOConfig(steps=20, beta=0.1)
    trained, _ = loops.train_dpo(copy.deepcopy(sft), tokenizer, pairs, config)
    some = reviews("val", 40, seed=3, min_gap=3.5, max_tokens=24, tokenizer=tokenizer)[:]
    batch = models.encode(tokenizer, some["prompt"] * 2, some["chosen"] + some["rejected"])
    both = {"actor": trained, "reference": sft}
    table = evaluate.token_table(batch, tokenizer, temperature=1.0, beta=0.1, **both)
    sums = table.groupby("text").implicit_reward.sum()
    best = int((sums[:40].values - sums[40:].values).argmax())
    assert sums[best] > 0 > sums[best + 40]
    low = table.sort_values("implicit_reward").groupby("text").head(2).groupby("text").token
    assert [token.strip() for token in low.get_group(best + 40)] == ["ering", "y"]
    assert [token.strip() for token in low.get_group(best)] == ["line", "incred"]


def test_that_pair_was_not_trained_on_and_people_agree():
    tokenizer = models.load_policy("tiny-reviews-sft")[1]
    pairs = tasks.reviews.preference_pairs(
        "val", 40, seed=3, min_gap=3.5, max_tokens=24, tokenizer=tokenizer
    )
    (pair,) = [
        x for x in pairs if "storyline" in x["chosen"] and x["rejected"].startswith("A modest")
    ]
    assert pair["chosen_mean"] - pair["rejected_mean"] > 3.5
    assert "incredible" in pair["chosen"] and "messy" in pair["rejected"]
    assert "offering" in pair["rejected"]
    assert not set(tasks.reviews.eval_prompts("val")) & set(tasks.reviews.eval_prompts("reward"))


def test_fillers_moved_most():
    low, high = moved_tokens()
    assert max(mean for _, mean, _ in low) < 0 < min(mean for _, mean, _ in high)
    assert {"about", "bad", "so", "that"} <= {token for token, *_ in low}
    assert {"'ll", "h", "."} <= {token for token, *_ in high}
    assert max(high, key=lambda row: row[1])[0] == "."
    praise = {"good", "great", "best", "funny", "fun", "well", "love", "rich", "fine", "better"}
    assert not praise & {token for token, *_ in high}


# ---- section 6: planted errors


@pytest.fixture(scope="module")
def record():
    found = experiments.results("planted")
    assert (found.groupby("variant").size() == 3).all() and len(found) == 6
    return found


@pytest.fixture(scope="module")
def problems():
    return tasks.arithmetic.problems("test", 400, levels=experiments.LEVELS)


@pytest.fixture(scope="module")
def solver():
    return models.load_policy("tiny-steps")


@torch.no_grad()
def evidence(solver, prompts, responses):
    """(the batch, log pi_ref of each token, infinite in the padding)."""
    model, tokenizer = solver
    batch = models.encode(tokenizer, prompts, responses)
    logprobs = models.policy_logprobs(model, batch)
    assert (logprobs[~batch.response_mask] == 0).all()
    return batch, torch.where(batch.response_mask, logprobs, torch.inf)


@pytest.fixture(scope="module")
def planted(solver, problems):
    """The 400 cases, where the digit stands, and whom surprisal blames."""
    asked = experiments.planted_pairs(problems, 0)
    batch, before = evidence(solver, asked["prompt"], asked["rejected"])
    place, last = torch.tensor(asked["place"]), batch.response_mask.sum(1) - 2
    sizes = batch.response_mask.sum(1).double()
    wrong = torch.where(before.isinf(), 0.0, before).sum(1)
    _, right = evidence(solver, asked["prompt"], asked["chosen"])
    right = torch.where(right.isinf(), 0.0, right).sum(1)
    return {
        "asked": asked,
        "before": before,
        "found": (before.argmin(1) == place).double().mean().item(),
        "by chance": (1 / sizes).mean().item(),
        "last digit": (place == last).double().mean().item(),
        "at random on another last digit": ((place != last) / sizes).mean().item(),
        "right order": (right > wrong).double().mean().item(),
    }


@pytest.fixture(scope="module")
def places(solver, planted):
    """Place -> (surprisal, implicit reward): where the lesson's own run of 20 steps puts the blame.

    The lesson shows this table behind a prediction, so the notebook has no output to read.
    """
    model, tokenizer = solver
    train = tasks.arithmetic.problems("train", 5000, seed=1, levels=experiments.LEVELS)
    practice = experiments.planted_pairs(train, 0)
    practice = practice.select_columns(["prompt", "chosen", "rejected"])
    asked, runs = planted["asked"], []
    for seed in range(3):  # the lesson's own run, and two others
        optimiser = loops.OptimiserConfig(lr=3e-4)
        config = loops.DPOConfig(**TWENTY, seed=seed, optimiser=optimiser)
        learner, _ = loops.train_dpo(copy.deepcopy(model), tokenizer, practice, config)
        runs.append(evidence((learner, tokenizer), asked["prompt"], asked["rejected"]))
    batch, after = runs[0]
    mask, place = batch.response_mask, torch.tensor(asked["place"])
    change = torch.where(mask, after - planted["before"], torch.inf)
    last, found = mask.sum(1) - 2, {}
    early = place < last
    found["early"] = {
        "cases": int(early.sum()),
        "by chance": (1 / mask.sum(1).double())[early].mean(),
    }
    kinds = {"surprisal": planted["before"], "implicit reward": change}
    for name, low in (kinds | {"surprisal after DPO": after}).items():
        blamed = low.argmin(1)
        rest = (blamed != place) & (blamed == last)
        found[name] = {
            "the planted digit": (blamed == place).double().mean().item(),
            "the last digit, not planted": rest.double().mean().item(),
            "another token": ((blamed != place) & ~rest).double().mean().item(),
            "early": (blamed == place)[early].double().mean().item(),
        }
    of_runs = [torch.where(mask, x - planted["before"], torch.inf) for _, x in runs]
    at_last = [x.argmin(1) for x in of_runs]
    found["seeds"] = {
        "the last digit, not planted": [
            ((x != place) & (x == last)).double().mean().item() for x in at_last
        ],
        "implicit reward": [(x.argmin(1) == place).double().mean().item() for x in of_runs],
        "lost after DPO": [
            (planted["before"].argmin(1) == place).double() - (x.argmin(1) == place).double()
            for _, x in runs
        ],
    }
    case = asked["prompt"].index("8*4-2=")
    found["of the strip"] = change[case][mask[case]]
    return found


@pytest.fixture(scope="module")
def own(solver, problems):
    """The model's own errors: surprisal beside the rule that always blames the last step."""
    cases = experiments.false_steps(*solver, problems, 0, 400)
    _, before = evidence(solver, cases["prompt"], cases["rejected"])
    rows = zip(cases["rejected"], before.argmin(1).tolist(), cases["step"], strict=True)
    rows = [(text[:at].count("=") == step, step == text.count("=")) for text, at, step in rows]
    hit, in_last = torch.tensor(rows).double().T
    return {
        "cases": len(rows),
        "surprisal": hit.mean().item(),
        "last step": in_last.mean().item(),
        "earlier": int((1 - in_last).sum()),
        "surprisal, earlier": hit[in_last == 0].mean().item(),
        "surprisal, last": hit[in_last == 1].mean().item(),
        "difference": (hit - in_last).mean().item(),
        "interval": evaluate.bootstrap(hit - in_last),
    }


def test_nothing_that_was_trained_beats_surprisal_on_planted_digits(record):
    for row in record.to_dict("records"):
        low = row["planted, surprisal, interval"][0]
        assert max(row[f"planted, {name}, interval"][1] for name in TRAINED) < low


def test_the_implicit_reward_finds_about_what_the_last_digit_rule_finds(record, planted):
    found = record["planted, implicit reward"]
    assert found.between(0.15, 0.3).all()
    assert max(high for _, high in record["planted, implicit reward, interval"]) < 0.35
    assert abs(found.mean() - planted["last digit"]) < 0.05


def test_surprisal_finds_fewer_of_the_own_errors_than_of_the_planted_ones(record):
    row = record.iloc[0]
    assert row["own, surprisal, interval"][1] < row["planted, surprisal, interval"][0]


@pytest.mark.slow
def test_no_method_can_be_told_from_the_rule_of_the_last_step(record, own):
    low, high = own["interval"]
    assert low < 0 < high
    best = max(
        (row[f"own, {name}"], row[f"own, {name}, interval"])
        for row in record.to_dict("records")
        for name in METHODS
    )
    assert best[1][0] < own["last step"] < best[1][1]
    assert best[0] > record["own, surprisal"].iloc[0] > record["own, by chance"].iloc[0]
    of_best = [row["own, surprisal after DPO"] for row in record.to_dict("records")]
    assert max(of_best) == best[0]  # the best single run is one of surprisal after DPO


def test_the_rule_never_finds_an_earlier_error_and_surprisal_nearly_all(own):
    assert own["surprisal, earlier"] > 0.85 and own["earlier"] > 40
    assert own["surprisal, last"] < own["surprisal, earlier"]


def test_the_verifier_hardly_learned(record):
    assert record.verifier_right.between(0.5, 0.6).all()


@pytest.mark.slow
def test_in_the_run_of_the_lesson_the_blame_falls_on_the_last_digit(planted, places):
    of_surprisal, of_dpo = places["surprisal"], places["implicit reward"]
    assert of_surprisal["the planted digit"] == pytest.approx(planted["found"])
    at_random = planted["at random on another last digit"]
    elsewhere = "the last digit, not planted"
    assert of_dpo[elsewhere] > 0.3 > 2 * at_random and of_surprisal[elsewhere] < 0.1
    early = places["early"]["by chance"].item()
    assert 3 * early > of_dpo["early"] > 1.5 * early  # more than chance, and far from surprisal
    assert of_surprisal["early"] > 4 * of_dpo["early"]


def test_in_the_strip_dpo_blames_the_last_digit(places):
    change = places["of the strip"]
    assert change.argmin() == 6 and -6 < change[6] < 3 * change[1] < 0


def test_the_case_of_the_strips(planted):
    """The model before DPO finds the planted 7 by far the least likely; the 5 follows from it."""
    asked, case = planted["asked"], planted["asked"]["prompt"].index("8*4-2=")
    assert (asked["chosen"][case], asked["rejected"][case]) == ("32-2=30", "37-2=35")
    assert asked["place"][case] == 1
    before = planted["before"][case]
    lowest = before.sort()
    assert lowest.indices[0] == 1 and lowest.values[0] < 2 * lowest.values[1]
    assert before[6].exp() > 0.9  # the last 5


def test_the_model_before_dpo_puts_nearly_all_pairs_in_the_right_order(planted):
    assert planted["right order"] > 0.97


@pytest.mark.parametrize("beta", [0.1, 0.5, 2.0])
def test_the_first_error_loses_most_if_each_step_must_be_right(beta):
    """After the first b nothing can be earned: the tokens behind it lose nothing."""
    world = core.World.from_reward(("a", "b", "."), 3, lambda words: float("b" not in words))
    values, q = world.optimal_values(beta=beta)
    gains = q - values[:, None]
    spoilt = torch.tensor([1 in state for state in world.states])
    assert (values[spoilt] == 0).all() and (gains[spoilt] == 0).all()
    torch.testing.assert_close(gains[~spoilt, 1], -values[~spoilt])
    assert (gains[~spoilt, 1] < gains[~spoilt][:, [0, 2]].min()).all()
    # if only the end counts, a token behind the error can lose, too
    world = core.World.from_reward(("a", "b", "."), 3, lambda words: float(words[-1] == "a"))
    values, q = world.optimal_values(beta=beta)
    assert (q - values[:, None])[world.states.index((1, 0)), 1] < -0.01


@pytest.mark.parametrize("beta", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("seed", range(5))
def test_the_first_error_loses_most_if_one_response_is_right(beta, seed):
    """Any reference: right tokens gain, the first wrong one loses all of V*, the others nothing."""
    world = core.World.random(3, 3, seed=seed)
    object.__setattr__(world, "rewards", torch.zeros_like(world.rewards))
    right = world.labels.index("aba")
    world.rewards[right] = 1.0
    values, q = world.optimal_values(beta=beta)
    gains = q - values[:, None]
    on_the_way = [world.states.index(state) for state in ((), (0,), (0, 1))]
    for state, word in zip(on_the_way, (0, 1, 0), strict=True):
        others = [w for w in range(3) if w != word]
        assert gains[state, word] > 0 > gains[state, others].max()
        torch.testing.assert_close(gains[state, others], -values[state].expand(2))
        gains[state] = 0.0
    torch.testing.assert_close(gains, torch.zeros_like(gains))


@pytest.mark.slow
def test_training_makes_surprisal_worse_on_every_seed(record, places):
    for lost in places["seeds"]["lost after DPO"]:
        assert evaluate.bootstrap(lost)[0] > 0
    found = record[record.variant == "planted digits"]["planted, surprisal after DPO"]
    assert found.max() < places["surprisal after DPO"]["the planted digit"] - 0.1


# ---- the prose


def test_the_numbers_of_lesson_13(world, paths, errors, record, planted, own, places):
    with lesson("13") as said:
        on_the_tree(said)
        exercises(said, record, planted, places)
        exact_world(said, world, paths, errors)
        real_run(said)
        calculations(said, record, planted, own, places)
        further(said, world, record, own)


def on_the_tree(said):
    beta = 1 / math.log(2)
    tree, values, q, gains = tree_of(beta)
    start, after = values.tolist()
    ref = tree.ref_logits.softmax(-1)
    best = tree.gibbs_logits(beta=beta).softmax(-1)
    weights = ref * 2**q
    plain_values, plain_q = tree.values(tree.gibbs_logits(beta=beta).log_softmax(-1))
    means = (best * (plain_q - plain_values[:, None])).sum(1)
    said("there, the advantages at a prefix have the mean", means.abs().max())
    penalty = beta * (best * (best / ref).log()).sum(1)
    torch.testing.assert_close((best * gains).sum(1), penalty)
    assert penalty.min() > 0.05
    said("so there are", 3)
    said("| reward $r$ |", *tree.rewards)
    said("both tokens have the probability", ref[0, 0])
    said("We choose $\\beta = 1 / \\log 2$ =", beta)
    for row in (0, 1):
        assert ref[1, row] == 1 / 2
        numbers = ref[1, row], q[1, row], weights[1, row], best[1, row]
        said(("| *good* |", "| full stop |")[row], *numbers, q[1, row], after, gains[1, row])
    said("| sum | | |", weights[1].sum(), after, best[1].sum())
    said("is a **soft mean** of", *q[1], (ref[1] * q[1]).sum())
    assert (ref[1] * q[1]).sum() < after < q[1].max()
    said("The empty response has the reward", tree.rewards[2])
    assert weights[0].tolist() == pytest.approx([3 / 2, 1 / 2])
    said("Their sum is", weights[0].sum(), start)
    assert torch.allclose(best, ref * 2**gains)
    said("0 \u2212 1 = \u22121. $\\pi^*$ is", *best[0])
    said("*Good* has", q[0, 0], start, gains[0, 0])
    said("= 0.58, and the full stop has", q[0, 1], start, gains[0, 1])
    whole = tree.ref_logits.softmax(-1)[0, 0] * ref[1], ref[0, 1]
    whole = torch.stack([*whole[0], whole[1]]) * 2**tree.rewards
    assert whole.tolist() == pytest.approx([1, 1 / 2, 1 / 2])
    numbers = whole[0], whole[1], whole[2], whole.sum(), *(whole / whole.sum()), start
    said("| (a) |", *numbers)
    assert math.log2(whole.sum()) == pytest.approx(start)
    probs = whole / whole.sum()
    numbers = probs[0], probs[1], best[0, 0], probs[0], best[0, 0], best[1, 0]
    assert probs[0] + probs[1] == pytest.approx(best[0, 0].item())
    said("| (b) |", *numbers)
    paid = torch.log2(probs[0] / (1 / 4))
    said("| (c) |", paid, gains[0, 0], gains[1, 0], gains[0, 0] + gains[1, 0])
    assert torch.allclose(torch.log2(best / ref), gains)
    said("| (d) |", best[0, 0], best[1, 0], gains[0, 0], gains[1, 0])
    assert gains.argmin() == 1  # the full stop at the start is the worst token
    summed = gains[0, 0] + gains[1, 0]
    said("Add up the implicit rewards of *good good*:", gains[0, 0], gains[1, 0], summed)
    said("Its reward is", tree.rewards[0], start)
    said("and **one reward**: *good good* has", tree.rewards[0])
    assert tree.rewards[0] - summed == pytest.approx(start)
    numbers = start, gains[0, 0], q[0, 0], start, -gains[0, 1], q[0, 1]
    said("- $V^*$ at the start is", tree.rewards[0], summed, start, *numbers)
    assert q[0, 0] == values[1]
    said("So there *good* has", after, gains[1, 0], q[1, 0], after, -gains[1, 1], q[1, 1])
    bad = torch.tensor([1 / 4, 1 / 2]).double()
    ratio = torch.log2(bad / 0.5)
    said("It gives *good*", bad[0], bad[1])
    said("| first *good* |", bad[0], 0.5, ratio[0], gains[0, 0])
    said("| second *good* |", bad[1], 0.5, ratio[1], gains[1, 0])
    said("| product, sum |", bad.prod(), 0.25, ratio.sum(), summed)
    assert ratio.sum() == math.log2(bad.prod() / 0.25)
    said("The response has $\\log_2 \\frac{1/8}{1/4}$ =", ratio.sum())


def exercises(said, record, planted, places):
    assert math.isinf(torch.tensor(900.0).exp())
    said("It must be finite for a $Q^*$ of", 900)
    said("on a logarithmic axis from", 0.01, 1000)
    said("*before* each token, and", 0)
    said("the last digit stands just before it. Return", 3)
    limits = tree_of(1e-3)[1][0], tree_of(1e5)[1][0]
    said("$V^*$ falls all the way. Near", 0, *limits)
    after = places["surprisal after DPO"]
    said("Surprisal after DPO finds", after["the planted digit"], after["early"])
    said("But surprisal before DPO finds", planted["found"], places["surprisal"]["early"])
    longer = record[record.variant == "planted digits"]["planted, surprisal after DPO"].mean()
    said("made the method worse, and", LOCATED["dpo"]["steps"], longer)
    start, after = tree_of(1 / math.log(2))[1].tolist()
    said("Try *good good* on paper: the values are", start, after, 0)
    policy, ref = torch.tensor([0.9, 0.1]), torch.tensor([0.5, 0.5])
    said("Take two tokens, a reference with", *ref, *policy)
    right = -(policy * (policy / ref).log()).sum()
    assert round(right.item(), 2) == -0.37  # in the solution and, with its sign, in the checker
    world = core.World.random(3, 3, seed=0)
    states, vocab, others = len(world.states), len(world.vocab), len(world.sequences) - 1
    assert world.labels[-1] == "."
    said("`by_shares[-1]` of section 5,", states, vocab)
    said("Compute all", states * vocab, states, vocab)
    said("the rewards of the other", others)
    for k in range(3):  # the longer prefixes of prefix k
        assert [world.states[2 * k + 1 + word][:-1] for word in (0, 1)] == [world.states[k]] * 2
    said("*a* and *b* are rows", 1, 2)


def exact_world(said, world, paths, errors):
    size = len(world.states) * len(world.vocab)
    sizes = world.response_mask.sum(1)
    assert sizes.max() == 3
    said("a dot that ends the response. Its", len(world.sequences))
    said("and sees no rewards. There are", len(world.states), len(world.vocab), size)
    said("what DPO's policy says after", STEPS)
    said("They agree at all", size)
    said("guess how many of the", size, STEPS, (truth_of(world) < 0).sum())
    said("The figure shows the largest error of the", size)
    starts = [path[0].item() for path in errors.values()]
    assert max(starts) == min(starts)
    truth = truth_of(world)
    right = {
        name: int(((words_of(world, path[-1]) > 0) == (truth > 0)).sum())
        for name, path in paths.items()
    }
    last = {name: path[-1] for name, path in errors.items()}
    said("**Shares of many people**: all", right["shares"], STEPS, last["shares"])
    _, _, share, vote = votes_of(world)
    wrong = ((vote > 0.5) != (share > 0.5)).sum()
    said("**One vote per pair**:", right["one vote"], size, len(vote), wrong)
    said("and it loses to", lost_by_the_second(world), last["one vote"])
    gains = words_of(world, paths["majority"][-1])
    falls = truth[0, 1], gains[0, 1]
    numbers = right["majority"], size, starts[0], last["majority"], *falls
    said("**The majority always wins**:", *numbers)
    assert right["shares"] == size
    draws = [right_signs(world, vote_share(world, draw)) for draw in range(1, 7)]
    others = []
    for seed in range(1, 7):
        other = core.World.random(3, 3, seed=seed)
        for label in (vote_share(other, 0), (shares(other) > 0.5).double()):
            others.append(right_signs(other, label))
    said("sooner than the signs.", 6, min(draws), max(draws), 6, min(others), max(others))


def vote_share(world, draw):
    """One vote per pair."""
    return torch.bernoulli(shares(world), generator=torch.Generator().manual_seed(draw))


def right_signs(world, label):
    """How many signs DPO with these labels gets right."""
    gains = words_of(world, descent(world, label)[-1])
    return int(((gains > 0) == (truth_of(world) > 0)).sum())


def lost_by_the_second(world):
    """How many worse responses won their vote against the second best."""
    i, j, share, vote = votes_of(world)
    second = world.rewards.argsort(descending=True)[1]
    return (((vote > 0.5) != (share > 0.5)) & ((i == second) | (j == second))).sum()


def real_run(said):
    tokenizer = models.load_policy("tiny-reviews-sft")[1]
    many = tasks.reviews.preference_pairs("val", 600, seed=3, max_tokens=32, tokenizer=tokenizer)
    reviews = {(row["prompt"], row[side]) for row in many for side in ("chosen", "rejected")}
    films = {prompt for prompt, _ in reviews}
    said("Then we take the", len(reviews), len(films), len(many))
    asked = experiments.results("order")
    asked = asked[asked.variant == "dpo"]
    pairs = sum(count for _, count in asked.by_film.iloc[0].values())
    assert pairs == 2000
    said(
        "| compare two responses by their sums | this is what DPO trains:",
        asked.right_order.mean(),
        100,
    )


def calculations(said, record, planted, own, places):
    assert tasks.arithmetic.solution("8*4-2") == "32-2=30"
    said("Only the", 7, 37, 2, 35)
    said("Let the reward be", 1, 0)
    said("- After the", 7, 0, 7)
    said("- Each right token before the", 7, 0)
    said("And how likely is a", 7)
    said("We train DPO for", TWENTY["steps"], TWENTY["batch_size"], LOCATED["asked"])
    same = LOCATED["dpo"] | {"steps": 20}
    assert same["batch_size"] == TWENTY["batch_size"]
    assert loops.DPOConfig().beta is None  # the record took the loss's own beta
    assert LOSSES["dpo"].settings["beta"] == TWENTY["beta"]
    said("**Predict.** In what share of the", LOCATED["asked"])
    said("drawn at random is the right one in", planted["by chance"])
    steps = LOCATED["dpo"]["steps"]
    found = record[record.variant == "planted digits"]
    assert planted["found"] == pytest.approx(found["planted, surprisal"].mean(), abs=0.01)
    of_surprisal, of_dpo = places["surprisal"], places["implicit reward"]
    early = places["early"]
    said("| share that is found |", LOCATED["asked"], early["cases"])
    said("| surprisal, before DPO |", of_surprisal["the planted digit"], of_surprisal["early"])
    said("| implicit reward, after DPO |", of_dpo["the planted digit"], of_dpo["early"])
    said("| rule: always the last digit |", planted["last digit"], 0)
    said("| a random token |", planted["by chance"], early["by chance"])
    said("There DPO has learned something, but little. In", of_dpo["the last digit, not planted"])
    seeds = places["seeds"]["implicit reward"]
    assert seeds[0] == of_dpo["the planted digit"]
    elsewhere = places["seeds"]["the last digit, not planted"]
    assert elsewhere[0] == of_dpo["the last digit, not planted"]
    said("other seeds of DPO find", *seeds[1:], *elsewhere[1:])
    longer = found["planted, implicit reward"].mean()
    said("More training does not help: after", steps, longer)
    assert longer < sum(seeds) / 3
    said("the colour ends at", -6)
    said("just below zero is written", 0)
    change = places["of the strip"]
    said("Before DPO, the", 7, 5, 5, -change[6], 7, -change[1])
    assert own["cases"] == record["own, cases"].iloc[0]
    trained_on_own = record[record.variant == "own samples"]
    tie = trained_on_own["own, surprisal"].mean(), trained_on_own["own, implicit reward"].mean()
    said("so surprisal has it easy. On", own["cases"], *tie)


def further(said, world, record, own):
    beta = 1 / math.log(2)
    hand = core.World.from_reward(
        ("good", "bad", "."), 2, lambda words: float(words.count("good") - words.count("bad"))
    )
    values, q = hand.optimal_values(beta=beta)
    gains = q - values[:, None]
    said("has soft values for", beta, *values)
    said("the first word gains", gains[0, 0], gains[1, 0], 2 - values[0], 2, values[0])
    tree_gains = tree_of(beta)[3]
    said("In the tree, the first *good* has $Q^* - V^*$ =", tree_gains[0, 0], tree_gains[0, 0], 0)
    one_step = world.ref_logits.log_softmax(-1) + world.values(world.ref_logits)[1] / BETA
    far = (world.probs(one_step) - world.gibbs(beta=BETA)).abs().max()
    said("differ from those of the Gibbs policy by up to", far)
    responses = 2 * LOCATED["dpo"]["steps"] * LOCATED["dpo"]["batch_size"]
    assert responses == LOCATED["verifier"].steps * LOCATED["verifier"].batch_size
    said("length of training, and read", responses)
    pairs = record.groupby("variant").pairs
    said("We did not look for better settings. There are", pairs.max()["planted digits"])
    said("planted pairs and", pairs.min()["own samples"], pairs.max()["own samples"])
    said("right about only", *record.verifier_right.agg(["min", "max"]), 0.5)
    for training in ("planted digits", "own samples"):
        mean = record[record.variant == training].mean(numeric_only=True)
        words = training.replace("samples", "responses")
        for kind, cases in (("planted", "planted digits"), ("own", "own errors")):
            columns = [mean[f"{kind}, {name}"] for name in METHODS]
            said(f"| {cases} | {words} |", *columns)
    said("fit a reward that is", 1, 0, 5)
    said(
        "The record of `minirlhf experiment planted` also has",
        own["cases"],
        LOCATED["dpo"]["steps"],
    )
    said("a random step is right in", record["own, by chance"].mean(), own["last step"])
    top = max(record["own, surprisal after DPO"])
    row = record[record["own, surprisal after DPO"] == top].iloc[-1]
    said("interval over the cases is", *row["own, surprisal after DPO, interval"])
    said("Surprisal minus the rule is", own["difference"], *own["interval"])
    said("- In", own["earlier"], own["surprisal, earlier"])
    best = max(record[f"planted, {name}"].max() for name in TRAINED)
    said("the best run finds", best)
