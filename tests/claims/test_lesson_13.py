"""Lesson 13, the Q-function inside a policy: every number of its prose, and its claims."""

import copy
import json
import math
import re

import nbformat
import pytest
import torch

from minirlhf import core, evaluate, experiments, loops, models, tasks
from minirlhf.classroom.course import NOTEBOOKS
from minirlhf.experiments.planted import LOCATED
from tests.claims.prose import lesson
from tests.claims.test_lesson_12 import shares

NOTEBOOK = NOTEBOOKS / "13_a_language_model_is_a_q_function.ipynb"
BETA = 0.5
STEPS = 200
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


def rewards_of_tokens():
    """The (token, implicit reward) of each of the two responses in the notebook's microscope."""
    cells = nbformat.read(NOTEBOOK, 4).cells
    (cell,) = [c for c in cells if c.source.startswith("show.microscope(")]
    html = next(o.data["text/html"] for o in cell.outputs if "text/html" in o.get("data", {}))
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', html, re.S)[1])
    return [
        list(
            zip(
                [data["words"][place] for place in text["tokens"]],
                text["numbers"]["implicit_reward"],
                strict=True,
            )
        )
        for text in data["sides"][0]["frames"][0]["texts"]
    ]


def moved_tokens():
    """(the six lowest, the six highest): token -> (mean implicit reward, count)."""
    rows = re.findall(r"^(.*?)\s+(-?\d\.\d+)\s+(\d+)$", output_of("means.head(6)"), re.M)
    found = [(token.strip(), float(mean), int(size)) for token, mean, size in rows]
    assert len(found) == 12
    return found[:6], found[6:]


def test_the_strip_of_the_first_screen():
    chosen, rejected = rewards_of_tokens()
    assert sum(x for _, x in chosen) > 0 > sum(x for _, x in rejected)
    assert min(rejected, key=lambda row: row[1])[0] == "n"
    both = sorted(chosen + rejected, key=lambda row: -row[1])
    assert [token for token, _ in both[:2]] == [".", "."]
    names = [token for token, _ in rejected]
    insult = rejected[names.index(" interesting") : names.index(".")]
    assert sum(x for _, x in insult) > 0 and sum(x > -0.005 for _, x in insult) > len(insult) / 2


def test_the_pair_of_the_first_screen_was_not_trained_on_and_people_agree():
    tokenizer = models.load_policy("tiny-reviews-sft")[1]
    pair = tasks.reviews.preference_pairs(
        "val", 40, seed=3, min_gap=3.5, max_tokens=24, tokenizer=tokenizer
    )[3]
    assert pair["chosen_mean"] > 0 > pair["rejected_mean"]
    assert pair["chosen"] == "Smart and taut." and "insurance commercial" in pair["rejected"]
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
    optimiser = loops.OptimiserConfig(lr=3e-4)
    config = loops.DPOConfig(steps=20, batch_size=64, optimiser=optimiser)
    learner, _ = loops.train_dpo(copy.deepcopy(model), tokenizer, practice, config)
    asked = planted["asked"]
    batch, after = evidence((learner, tokenizer), asked["prompt"], asked["rejected"])
    mask, place = batch.response_mask, torch.tensor(asked["place"])
    change = torch.where(mask, after - planted["before"], torch.inf)
    last, found = mask.sum(1) - 2, {}
    for name, low in (("surprisal", planted["before"]), ("implicit reward", change)):
        blamed = low.argmin(1)
        rest = (blamed != place) & (blamed == last)
        found[name] = {
            "the planted digit": (blamed == place).double().mean().item(),
            "the last digit, not planted": rest.double().mean().item(),
            "before the planted digit": (blamed < place).double().mean().item(),
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


def test_the_rule_never_finds_an_earlier_error_and_surprisal_nearly_all(own):
    assert own["surprisal, earlier"] > 0.85 and own["earlier"] > 40
    assert own["surprisal, last"] < own["surprisal, earlier"]


def test_the_verifier_hardly_learned(record):
    assert record.verifier_right.between(0.5, 0.6).all()


def test_in_the_run_of_the_lesson_the_blame_falls_on_the_last_digit(planted, places):
    of_surprisal, of_dpo = places["surprisal"], places["implicit reward"]
    assert of_surprisal["the planted digit"] == pytest.approx(planted["found"])
    at_random = planted["at random on another last digit"]
    elsewhere = "the last digit, not planted"
    assert of_dpo[elsewhere] > 0.3 > 2 * at_random and of_surprisal[elsewhere] < 0.1
    assert max(of_dpo, key=of_dpo.get) == elsewhere


def test_in_the_strip_dpo_blames_the_last_digit(places):
    change = places["of the strip"]
    assert change.argmin() == 6 and change[6] < 3 * change[1] < 0


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


def test_the_line_of_the_figure_is_the_rule_of_the_last_step(own):
    cells = nbformat.read(NOTEBOOK, 4).cells
    (cell,) = [c for c in cells if "show.bars(" in c.source]
    assert f'"always the last step": {own["last step"]:.2f}' in cell.source


# ---- the prose


def test_the_numbers_of_lesson_13(world, paths, errors, record, planted, own, places):
    with lesson("13") as said:
        on_the_tree(said)
        exercises(said)
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
    said("so there are", 3)
    said("| reward $r$ |", *tree.rewards)
    said("both tokens have the probability", ref[0, 0])
    said("We choose $\\beta = 1 / \\log 2$ =", beta)
    for row in (0, 1):
        assert ref[1, row] == 1 / 2
        numbers = ref[1, row], q[1, row], weights[1, row], best[1, row]
        said(("| *good* |", "| full stop |")[row], *numbers, q[1, row], after, gains[1, row])
    said("| sum | | |", weights[1].sum(), after, best[1].sum())
    said("There $Q^*$ of *good* is", q[0, 0], q[0, 1])
    said("The empty response has the reward", tree.rewards[2])
    assert weights[0].tolist() == pytest.approx([3 / 2, 1 / 2])
    said("Their sum is", weights[0].sum(), start)
    said("*Good* has", q[0, 0], start, gains[0, 0])
    said("and the full stop has", q[0, 1], start, gains[0, 1])
    said("is not bad. $V^*$ was", start)
    assert gains.argmin() == 1  # the full stop at the start is the worst token
    said("*good* after *good* has $\\log_2 \\frac{2/3}{1/2}$ =", math.log2((2 / 3) / (1 / 2)))
    summed = gains[0, 0] + gains[1, 0]
    said("Add up the tokens of *good good*:", gains[0, 0], gains[1, 0], summed)
    said("Its reward is", tree.rewards[0], start)
    bad = torch.tensor([1 / 4, 1 / 2]).double()
    ratio = torch.log2(bad / 0.5)
    said("At the start it gives *good*", bad[0], bad[1])
    said("| first *good* |", bad[0], 0.5, ratio[0], gains[0, 0])
    said("| second *good* |", bad[1], 0.5, ratio[1], gains[1, 0])
    said("| product, sum |", bad.prod(), 0.25, ratio.sum(), summed)
    assert ratio.sum() == math.log2(bad.prod() / 0.25)
    said("The response has $\\log_2 \\frac{1/8}{1/4}$ =", ratio.sum())


def exercises(said):
    assert math.isinf(torch.tensor(900.0).exp())
    said("It must be finite for a $Q^*$ of", 900)
    said("at the start for $\\beta$ =", 0.01, 1, 1000)
    said("*before* each token, and", 0)
    start, after = tree_of(1 / math.log(2))[1].tolist()
    said("Try *good good* on paper: the values are", start, after, 0)
    policy, ref = torch.tensor([0.9, 0.1]), torch.tensor([0.5, 0.5])
    said("take two tokens, a reference with", *ref, *policy)
    right = -(policy * (policy / ref).log()).sum()
    assert round(right.item(), 2) == -0.37  # in the solution and, with its sign, in the checker
    said("the number of the step, counted from", 0)


def exact_world(said, world, paths, errors):
    size = len(world.states) * len(world.vocab)
    sizes = world.response_mask.sum(1)
    counts = [int((sizes == n).sum()) for n in (1, 2, 3)]
    said("Of its", len(world.sequences), counts[0], counts[1], counts[2])
    said("exact shares of people. There are", len(world.states), len(world.vocab), size)
    said("what DPO's policy says after", STEPS)
    said("They agree at all", size)
    said("guess how many of the", size, STEPS)
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
    said("**One vote per pair**:", right["one vote"], size, last["one vote"])
    said(
        "**The majority always wins**:", right["majority"], size, starts[0], last["majority"], STEPS
    )
    assert right["shares"] == size


def real_run(said):
    sums = [sum(x for _, x in response) for response in rewards_of_tokens()]
    shown = re.findall(r"^[01]\s+(-?[\d.]+)", output_of("table.groupby"), re.M)
    assert [round(x, 2) for x in sums] == pytest.approx(list(map(float, shown)), abs=0.011)
    said("The sums are", *map(float, shown))
    said("with $\\beta =", 0.1)
    said("People liked response", 0, 1)
    said("at the upper right, ends at", 0.1, math.exp(0.1 / 0.1))
    said("the most orange token of response", 1)
    reviews = int(re.search(r"^(\d+) reviews", output_of("means.head(6)"), re.M)[1])
    said("So we take", 600, reviews)
    low, _ = moved_tokens()
    said("But it occurs only", next(size for token, _, size in low if token == "bad"))
    asked = experiments.results("order")
    asked = asked[asked.variant == "dpo"]
    pairs = sum(count for _, count in asked.by_film.iloc[0].values())
    said("(After the", 100, asked.right_order.mean(), pairs)
    said(
        "| compare two responses by their sums | this is what DPO trains:",
        asked.right_order.mean(),
        100,
    )


def calculations(said, record, planted, own, places):
    assert tasks.arithmetic.solution("8*4-2") == "32-2=30"
    said("Only the", 7, 37, 2, 35)
    said("Let the reward be", 1, 0)
    said("and else 0. After the", 7, 7)
    said("We train DPO on", LOCATED["problems"], LOCATED["asked"])
    said("**Predict.** In what share of the", LOCATED["asked"])
    said("drawn at random is the right one in", planted["by chance"])
    said("digit* is right in", planted["last digit"])
    steps = LOCATED["dpo"]["steps"]
    found = record[record.variant == "planted digits"]
    assert planted["found"] == pytest.approx(found["planted, surprisal"].mean(), abs=0.01)
    of_surprisal, of_dpo = places["surprisal"], places["implicit reward"]
    found_by = [x["the planted digit"] for x in (of_surprisal, of_dpo)]
    said("Surprisal finds the planted digit in", *found_by)
    at_end = [x["the last digit, not planted"] for x in (of_dpo, of_surprisal)]
    said("**The method without training wins by far.** In", *at_end)
    said("More training does not help: after", steps, found["planted, implicit reward"].mean())
    said("Before DPO, the", 7, 5, 5, 7)
    said("just below zero is written", 0)
    assert own["cases"] == record["own, cases"].iloc[0]
    said("The record also has", own["cases"])
    said("DPO was trained for", steps)
    best = max(record["own, surprisal after DPO"])
    row = record[record["own, surprisal after DPO"] == best].iloc[-1]
    mine = record[record.variant == "own samples"]
    said("- **Surprisal is weaker here**,", mine["own, surprisal"].mean())
    said("- **The implicit reward** finds", mine["own, implicit reward"].mean())
    said("**Surprisal after DPO** finds", mine["own, surprisal after DPO"].mean())
    said("Chance is", mine["own, by chance"].mean())
    said("**The rule *always the last step* is right in", own["last step"])
    said("95 % interval over the", own["cases"], *row["own, surprisal after DPO, interval"])
    said("- **The value** finds", mine["own, value"].mean())
    said("In the earlier steps, with", own["earlier"], own["surprisal, earlier"])
    said("fit another reward:", 1, 0, 5)


def further(said, world, record, own):
    beta = 1 / math.log(2)
    hand = core.World.from_reward(
        ("good", "bad", "."), 2, lambda words: float(words.count("good") - words.count("bad"))
    )
    values, q = hand.optimal_values(beta=beta)
    gains = q - values[:, None]
    said("has soft values for", *values)
    said("the first word gains", gains[0, 0], gains[1, 0], 2 - values[0], 2, values[0])
    one_step = world.ref_logits.log_softmax(-1) + world.values(world.ref_logits)[1] / BETA
    far = (world.probs(one_step) - world.gibbs(beta=BETA)).abs().max()
    said("differ from those of the Gibbs policy by up to", far)
    responses = 2 * LOCATED["dpo"]["steps"] * LOCATED["dpo"]["batch_size"]
    assert responses == LOCATED["verifier"].steps * LOCATED["verifier"].batch_size
    said("Both read", responses)
    pairs = record.groupby("variant").pairs
    said("Both read 38,400 responses. There are", pairs.max()["planted digits"])
    said("but only", pairs.min()["own samples"], pairs.max()["own samples"])
    said("The critic judges only", *record.verifier_right.agg(["min", "max"]), 0.5)
    row = record.iloc[0]
    said("Surprisal on planted digits has the 95 % interval", *row["planted, surprisal, interval"])
    said("and on own errors", *row["own, surprisal, interval"])
    for training in ("planted digits", "own samples"):
        mean = record[record.variant == training].mean(numeric_only=True)
        words = training.replace("samples", "responses")
        for kind, cases in (("planted", "planted digits"), ("own", "own errors")):
            columns = [mean[f"{kind}, {name}"] for name in TRAINED]
            said(f"| {cases} | {words} |", *columns)
    best = max(record[f"planted, {name}"].max() for name in TRAINED)
    said("the best run finds", best)
    said("minus the rule *last step* is", own["difference"], *own["interval"])
