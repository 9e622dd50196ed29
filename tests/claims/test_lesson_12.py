"""Lesson 12, DPO: every number of its prose, and every claim about a recorded run."""

import copy
import json
import math
import re
from functools import cache

import datasets
import nbformat
import pandas as pd
import pytest
import torch

from minirlhf import core, evaluate, experiments, loops, models, tasks
from minirlhf.classroom import check
from minirlhf.classroom.course import NOTEBOOKS, text_of
from minirlhf.experiments.preference_runs import pair_probe, rated_pairs
from minirlhf.rewards.model import text_judge
from minirlhf.tour import TourConfig
from tests.claims.prose import code_of, lesson
from tests.core.test_exact import solve_dpo

NOTEBOOK = NOTEBOOKS / "12_dpo.ipynb"
BETA = 0.5
BETAS = ("beta 1", "beta 0.3", "beta 0.1", "beta 0.03")
LOG2 = math.log(2)
STEPS = 200


@pytest.fixture(scope="module")
def betas():
    return experiments.results("betas").set_index(["variant", "seed"]).sort_index()


@pytest.fixture(scope="module")
def leash():
    return experiments.results("leash").set_index(["variant", "seed"]).sort_index()


@pytest.fixture(scope="module")
def steps():
    return experiments.results("betas_history")


@pytest.fixture(scope="module")
def asked():
    found = experiments.results("order")
    found = found[found.variant == "dpo"].set_index("seed").sort_index()
    assert list(found.index) == [0, 1, 2]
    return found


def mean(runs, variant, column):
    assert len(runs.loc[variant]) == 3
    return runs.loc[variant][column].mean()


# ---- sections 3 to 5: pairs by hand


def loss(chosen, rejected, *, beta=0.5):
    """The loss of a pair whose log-ratios are these numbers."""
    four = [torch.tensor([x]).double() for x in (chosen, rejected, 0.0, 0.0)]
    return core.dpo(*four, beta=beta).item()


def test_only_the_difference_of_the_log_ratios_counts():
    assert loss(0, 0) == loss(-5, -5) == pytest.approx(LOG2)
    assert loss(1, -1) == loss(-5, -7) < LOG2 < loss(2, 4)


def test_the_weight_of_a_pair():
    h = torch.tensor([-40.0, -10.0, 0.0, 10.0, 40.0]).double().requires_grad_(True)
    zero = torch.zeros(5).double()
    core.dpo(h, zero, zero, zero, beta=0.1).sum().backward()
    weights = -h.grad
    assert (weights.diff() < 0).all() and (weights < 0.1).all()
    assert weights[0] > 0.98 * 0.1 and weights[-1] < 0.02 * 0.1  # nearly beta, hardly any
    assert weights[2] == pytest.approx(0.1 / 2)


@pytest.mark.parametrize("beta", [0.05, 0.5])
def test_half_of_the_push_is_left_at_odds_of_three(beta):
    h = math.log(3) / beta
    assert beta * torch.tensor(-beta * h).sigmoid().item() == pytest.approx(beta / 4)


def test_a_factor_of_the_weights_does_not_make_the_first_updates_larger(steps):
    """Section 4: clipping and AdamW take it out. "After the 11th": step 0 is the first update."""
    seeds = steps.set_index(["step", "seed", "variant"]).sort_index()
    for side in ("chosen_change", "rejected_change"):
        first = seeds.loc[0][side].unstack()
        assert ((first.max(axis=1) - first.min(axis=1)) < 1e-5).all()
    fallen = seeds.loc[10].chosen_change.unstack()
    assert len(fallen) == 3 and (fallen.idxmax(axis=1) == "beta 1").all()
    config = loops.OptimiserConfig()
    optimizer = loops.make_optimizer(torch.nn.Linear(1, 1), config)
    assert isinstance(optimizer, torch.optim.AdamW) and config.max_grad_norm == 1


# ---- section 6: the exact world


@pytest.fixture(scope="module")
def world():
    return core.World.random(3, 3, seed=0)


def pairs_of(world):
    return torch.triu_indices(len(world.sequences), len(world.sequences), 1)


def shares(world):
    i, j = pairs_of(world)
    return core.preference_probability(world.rewards[i], world.rewards[j])


def descent(world, share, i, j, *, steps=STEPS, beta=BETA):
    """The policies of gradient descent on DPO's mean loss over people, as the lesson walks."""
    ref, logits, path = world.sequence_logprobs(world.ref_logits), world.ref_logits, []
    for _ in range(steps):
        path.append(world.probs(logits))
        logits = logits.detach().requires_grad_(True)
        p = world.sequence_logprobs(logits)
        won = core.dpo(p[i], p[j], ref[i], ref[j], beta=beta)
        lost = core.dpo(p[j], p[i], ref[j], ref[i], beta=beta)
        (share * won + (1 - share) * lost).mean().backward()
        logits = (logits - 20 * logits.grad).detach()
    return torch.stack(path)


@pytest.fixture(scope="module")
def ends(world):
    """name -> the policy at the end, as in the table of section 6."""
    (i, j), share = pairs_of(world), shares(world)
    votes, many = torch.Generator().manual_seed(0), torch.full_like(share, 1000)
    some = (i % 2 == 0) & (j % 2 == 0)
    whole = descent(world, share, i, j)
    return {
        "all": whole[-1],
        "14 pairs": descent(world, share[:14], i[:14], j[:14])[-1],
        "hard": descent(world, (share > 0.5).double(), i, j)[-1],
        "one vote": descent(world, torch.bernoulli(share, generator=votes), i, j)[-1],
        "many": descent(world, torch.binomial(many, share, votes) / many, i, j)[-1],
        "partial": descent(world, share[some], i[some], j[some])[-1],
        "early": whole[10],
    }


def error(world, policy):
    return (policy - world.gibbs(beta=BETA)).abs().max().item()


def ascent(world, *, steps=STEPS, beta=BETA):
    """The policy gradient: each step follows the exact gradient of the objective."""
    logits = world.ref_logits
    for _ in range(steps - 1):
        logits = logits + 5 * world.gradient(logits, beta=beta)
    return world.probs(logits)


def test_the_policy_gradient_and_dpo_end_at_the_gibbs_policy(world, ends):
    assert max(error(world, ends["all"]), error(world, ascent(world))) < 1e-3


def test_one_vote_per_pair_goes_in_circles(world):
    """Each group of responses has lost a vote to one of the others: the optimum is finite.

    For then each response beats each other one over some chain of votes.
    """
    (i, j), share = pairs_of(world), shares(world)
    votes = torch.bernoulli(share, generator=torch.Generator().manual_seed(0))
    beats = torch.zeros(15, 15, dtype=torch.float64)
    beats[i, j], beats[j, i] = votes, 1 - votes
    chains = torch.linalg.matrix_power(beats + torch.eye(15).double(), 14)
    assert (chains > 0).all()
    groups = torch.arange(1, 2**15 - 1)[:, None] >> torch.arange(15) & 1  # but not all 15
    inside = groups.double()
    assert ((inside @ beats.T) * (1 - inside)).sum(1).min() >= 1  # votes of others against it
    path = descent(world, votes, i, j, steps=300)
    assert (path[200] - path[-1]).abs().max() < 1e-3 and error(world, path[-1]) > 0.15


def test_each_condition_that_fails_moves_the_end(world, ends):
    wrong = {name: error(world, policy) for name, policy in ends.items()}
    assert min(wrong[name] for name in ("hard", "one vote", "partial", "early")) > 0.15
    assert wrong["many"] < 0.05


def test_pairs_that_connect_all_responses_are_enough(world, ends):
    """Pairs with one response, or a chain, have the Gibbs policy as their only optimum."""
    assert error(world, ends["14 pairs"]) < 1e-3
    assert error(world, chain_of_pairs(6000)) < 1e-12
    (i, j), share = pairs_of(world), shares(world)
    same = i % 2 == j % 2  # two groups, and no pair connects them
    assert error(world, descent(world, share[same], i[same], j[same], steps=1000)[-1]) > 0.15


@cache
def chain_of_pairs(steps):
    """The policy after descent on the pairs (0, 1), (1, 2), ... with the exact shares."""
    world = core.World.random(3, 3, seed=0)
    i = torch.arange(len(world.sequences) - 1)
    share = core.preference_probability(world.rewards[i], world.rewards[i + 1])
    return descent(world, share, i, i + 1, steps=steps + 1)[-1]


def test_few_votes_are_noisier_than_many(world):
    (i, j), share = pairs_of(world), shares(world)
    votes, wrong = torch.Generator().manual_seed(1), {}
    for count in (1, 1000):
        n = torch.full_like(share, count)
        draws = [torch.binomial(n, share, votes) / n for _ in range(4)]
        wrong[count] = [error(world, descent(world, draw, i, j)[-1]) for draw in draws]
    assert min(wrong[1]) > max(wrong[1000]) and sum(wrong[1]) > 5 * sum(wrong[1000])


def test_hard_labels_put_everything_on_the_best_response(world):
    """The error is then 1 minus the probability that the Gibbs policy gives this response."""
    hard = world.probs(solve_dpo(world, beta=BETA, label=lambda a, b: (a > b).double()))
    best = world.rewards.argmax()
    assert hard[best] > 0.999
    rest = 1 - world.gibbs(beta=BETA)[best].item()
    assert error(world, hard) == pytest.approx(rest, abs=1e-3)


def test_only_the_compared_responses_are_held(world, ends):
    seen, target = torch.arange(15) % 2 == 0, world.gibbs(beta=BETA)
    found = ends["partial"]
    among = found[seen] / found[seen].sum(), target[seen] / target[seen].sum()
    torch.testing.assert_close(*among, rtol=0, atol=1e-5)
    assert found[~seen].sum() < 0.25 * target[~seen].sum()


def of_a_logit_per_response(world):
    """(the responses of the table that have pairs, the optimum of exercise 2 in its world)."""
    ref, seen = world.sequence_logprobs(world.ref_logits), torch.arange(15) % 2 == 0
    return seen, check.optimum_of_pairs.reference(ref, world.rewards, seen, BETA)


def test_a_response_without_a_pair_gains_if_the_raised_one_is_much_rarer_than_the_lowered_one():
    for raised, lowered, others in ((0.3, 0.3, 0.4), (0.02, 0.58, 0.4)):
        total = 3 * raised + lowered / 3 + others
        assert (others / total > others) == (raised < lowered / 3)


def test_each_pair_counts_the_same_in_the_gradient_of_dpo_however_rare_its_responses_are():
    for logits in ([0.0, 0.0, 0.0], [-5.0, -4.0, 9.0]):
        x = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
        p, ref = x.log_softmax(0), x.detach().log_softmax(0)
        core.dpo(p[:1], p[1:2], ref[:1], ref[1:2], beta=BETA).sum().backward()
        torch.testing.assert_close(x.grad, torch.tensor([-BETA / 2, BETA / 2, 0]).double())


def test_flipped_labels_pull_the_optimum_towards_the_reference():
    share = torch.linspace(0.01, 0.99, 99).double()
    for flipped in (0.1, 0.4):
        said = (1 - flipped) * share + flipped * (1 - share)
        assert (torch.logit(said).abs() <= torch.logit(share).abs() + 1e-12).all()


def test_a_response_without_a_pair_loses_in_a_table_of_logits_too(world):
    """Exercise 2: descent ends where its formula says, and the unseen responses have lost."""
    seen, expected = of_a_logit_per_response(world)
    (i, j), share = pairs_of(world), shares(world)
    some = seen[i] & seen[j]
    i, j, share = i[some], j[some], share[some]
    ref = logits = world.sequence_logprobs(world.ref_logits)
    for _ in range(200):
        logits = logits.detach().requires_grad_(True)
        p = logits.log_softmax(0)
        won = core.dpo(p[i], p[j], ref[i], ref[j], beta=BETA)
        lost = core.dpo(p[j], p[i], ref[j], ref[i], beta=BETA)
        (share * won + (1 - share) * lost).mean().backward()
        logits = logits - 40 * logits.grad
    found = logits.detach().softmax(0)
    torch.testing.assert_close(found, expected)
    assert found[~seen].sum() < 0.5 * ref[~seen].exp().sum() < world.gibbs(beta=BETA)[~seen].sum()


@pytest.mark.parametrize("beta", [0.2, 0.5, 1.0, 2.0])
def test_the_optimum_of_every_beta_lies_on_the_frontier(world, beta):
    found = solve_dpo(world, beta=beta, label=core.preference_probability)
    torch.testing.assert_close(world.probs(found), world.gibbs(beta=beta), rtol=0, atol=1e-5)


def without_looking_back(world):
    """The error of the best policy under DPO's loss that has the same words after all prefixes."""
    (i, j), share = pairs_of(world), shares(world)
    row = torch.zeros(1, len(world.vocab), dtype=torch.float64, requires_grad=True)
    ref = world.sequence_logprobs(world.ref_logits)
    optimizer = torch.optim.LBFGS([row], max_iter=500, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        p = world.sequence_logprobs(row.expand(len(world.states), -1))
        won = core.dpo(p[i], p[j], ref[i], ref[j], beta=BETA)
        lost = core.dpo(p[j], p[i], ref[j], ref[i], beta=BETA)
        (total := (share * won + (1 - share) * lost).mean()).backward()
        return total

    optimizer.step(closure)
    return error(world, world.probs(row.detach().expand(len(world.states), -1)))


def test_the_mean_over_tokens_has_another_optimum(world):
    """Exercise 5: the log-ratio per token is the reward over beta, up to a constant."""
    (i, j), share = pairs_of(world), shares(world)
    ref, lengths = world.sequence_logprobs(world.ref_logits), world.response_mask.sum(1)

    def logprobs(constant):
        return ref + lengths * (world.rewards / BETA + constant)

    low, high = -20.0, 20.0  # the constant for which the probabilities add up to 1
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (low, middle) if logprobs(middle).logsumexp(0) > 0 else (middle, high)
    optimum = logprobs(middle)
    per_token = (optimum - ref) / lengths
    torch.testing.assert_close(torch.sigmoid(BETA * (per_token[i] - per_token[j])), share)
    assert optimum.exp().sum() == pytest.approx(1)
    assert error(world, optimum.exp()) > 0.05
    assert set(lengths.tolist()) == {1, 2, 3}


# ---- section 8: a pair under the microscope


def rewards_of_tokens():
    """token -> implicit reward, for each of the two responses of the notebook's microscope."""
    cells = nbformat.read(NOTEBOOK, 4).cells
    (cell,) = [c for c in cells if "show.microscope(" in c.source]
    html = next(o.data["text/html"] for o in cell.outputs if "text/html" in o.get("data", {}))
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', html, re.S)[1])
    words, found = data["words"], []
    for text in data["sides"][0]["frames"][0]["texts"]:
        names = [words[place] for place in text["tokens"]]
        found.append(dict(zip(names, text["numbers"]["implicit_reward"], strict=True)))
    return found


def summed():
    """The implicit rewards of the two responses, as the notebook shows them."""
    cells = nbformat.read(NOTEBOOK, 4).cells
    (cell,) = [c for c in cells if "implicit_reward.sum()" in c.source]
    return [float(x) for x in re.findall(r"^[01]\s+(-?[\d.]+)", text_of(cell), re.M)]


def test_the_first_pair_has_a_clear_winner_and_the_second_has_none():
    tokenizer = models.load_policy("tiny-reviews-sft")[1]
    pairs = tasks.reviews.preference_pairs(
        "reward", 4000, seed=0, max_tokens=32, tokenizer=tokenizer
    )
    first, second = pairs[0], pairs[1]
    assert first["chosen_mean"] > first["rejected_mean"] + 2
    assert max(second["chosen_mean"], second["rejected_mean"]) < -1.5  # both are harsh
    assert second["gap"] < 0.2


def test_the_pair_of_the_microscope_is_in_the_right_order_and_was_not_trained_on():
    chosen, rejected = summed()
    assert chosen > 0 > rejected
    assert not set(tasks.reviews.eval_prompts("val")) & set(tasks.reviews.eval_prompts("reward"))


# ---- section 9: recorded runs


def test_a_smaller_beta_goes_further_and_gets_more_gold_on_every_seed(betas):
    for larger, smaller in zip(BETAS, BETAS[1:], strict=False):
        for column in ("kl", "gold"):
            assert (betas.loc[smaller][column] > betas.loc[larger][column]).all()


@pytest.mark.parametrize("ppo, dpo", [("kl_coef 0.5", "beta 0.3"), ("kl_coef 0.25", "beta 0.03")])
def test_ppo_has_more_gold_for_less_kl_whichever_seeds_one_compares(betas, leash, ppo, dpo):
    assert leash.loc[ppo].gold.min() > betas.loc[dpo].gold.max()
    assert leash.loc[ppo].kl.max() < betas.loc[dpo].kl.min()


def test_at_one_nat_the_seeds_overlap(betas, leash):
    assert leash.loc["kl_coef 1"].gold.min() < betas.loc["beta 1"].gold.max()


def test_chosen_and_rejected_responses_become_less_likely_at_every_beta_on_every_seed(betas):
    assert len(betas) == 12
    assert (betas[["chosen_change", "rejected_change"]] < 0).all().all()


def test_at_beta_one_the_loss_rises(steps):
    last = steps[steps.step == steps.step.max()]
    ends = last.groupby("variant").loss.mean()
    assert ends["beta 1"] > LOG2 > ends.drop("beta 1").max()


def test_128_pairs_cannot_tell_whether_the_rejected_ones_fall_more(betas, asked):
    error = math.sqrt(0.25 / 128)
    assert ((betas.right_order - 0.5).abs() < 2 * error).all()
    share = mean(betas, "beta 0.1", "right_order")
    assert abs(share - 0.5) < 2 * error and abs(share - asked.right_order.mean()) < 2 * error
    ends = betas.chosen_change - betas.rejected_change
    assert ends.loc["beta 0.1"].min() < 0 < ends.loc["beta 0.1"].max()


def log_ratios(model, start, tokenizer, rows):
    """The log-ratios of the chosen and of the rejected responses of some pairs."""
    texts = rows["chosen"] + rows["rejected"]
    batch = models.encode(tokenizer, 2 * rows["prompt"], texts, max_response=32)
    parts = [batch.select(part) for part in torch.arange(len(texts)).split(64)]
    with torch.no_grad():
        new, old = (
            [core.sequence_logprobs(models.policy_logprobs(m, p), p.response_mask) for p in parts]
            for m in (model, start)
        )
    return (torch.cat(new) - torch.cat(old)).chunk(2)


ON_2000 = 0.57  # share in the right order on 2,000 pairs of the films of section 10, one run


@pytest.mark.slow
def test_128_pairs_and_2000_pairs_of_their_films(betas):
    """Section 10: the run of seed 0 at beta 0.1 once more."""
    torch.set_num_threads(1)
    sft, tokenizer = models.load_policy("tiny-reviews-sft")
    config = loops.DPOConfig(beta=0.1, seed=0)
    pairs = rated_pairs(config, tokenizer)
    trained, _ = loops.train_dpo(copy.deepcopy(sft), tokenizer, pairs, config)
    found, right = {}, {}
    for count in (128, 2000):
        rows = tasks.reviews.preference_pairs(
            "val", count, seed=17, max_tokens=32, tokenizer=tokenizer
        )[:]
        chosen, rejected = log_ratios(trained, sft, tokenizer, rows)
        found[count] = chosen - rejected
        right[count] = (chosen > rejected).float().mean().item()
    recorded = betas.loc["beta 0.1", 0]
    assert found[128].mean().item() == pytest.approx(
        recorded.chosen_change - recorded.rejected_change, abs=0.02
    )
    assert right[128] == pytest.approx(recorded.right_order, abs=0.015)
    assert right[2000] == pytest.approx(ON_2000, abs=0.015)


AFTER_TWENTY = 0.51  # share of 2,000 new pairs in the right order after section 8's run


def twenty_steps(sft, tokenizer, *, coin=None, seed=0):
    """The run of section 8, with people's labels or with those of a coin."""
    torch.set_num_threads(1)
    pairs = tasks.reviews.preference_pairs(
        "reward", 4000, seed=0, max_tokens=32, tokenizer=tokenizer
    )
    if coin is not None:
        heads = torch.rand(len(pairs), generator=torch.Generator().manual_seed(coin)) < 0.5
        sides = [("rejected", "chosen") if head else ("chosen", "rejected") for head in heads]
        pairs = datasets.Dataset.from_list(
            [
                {"prompt": row["prompt"], "chosen": row[won], "rejected": row[lost]}
                for row, (won, lost) in zip(pairs, sides, strict=True)
            ]
        )
    config = loops.DPOConfig(steps=20, beta=0.1, seed=seed)
    return loops.train_dpo(copy.deepcopy(sft), tokenizer, pairs, config)[0]


@pytest.mark.slow
def test_new_reviews_become_less_likely_even_if_a_coin_draws_the_labels():
    """Section 10: the mean of both sides of new pairs, after 20 steps. And exercise 4's shares."""
    sft, tokenizer = models.load_policy("tiny-reviews-sft")
    probe = pair_probe(sft, tokenizer, "test", 2000)

    def lost(model):
        found = probe(model)
        return -(found["chosen_change"] + found["rejected_change"]) / 2

    trained = twenty_steps(sft, tokenizer)
    assert probe(trained)["right_order"] == pytest.approx(AFTER_TWENTY, abs=0.015)
    people = lost(trained)
    for seed in (0, 1):
        assert lost(twenty_steps(sft, tokenizer, coin=seed, seed=seed)) > people / 2
    rows = tasks.reviews.preference_pairs("val", 60, seed=3, max_tokens=32, tokenizer=tokenizer)[:]
    right, displaced = check.order_and_displacement.reference(
        *log_ratios(trained, sft, tokenizer, rows)
    )
    assert 0.5 < right < 0.65 and 0.4 < displaced < 0.6


@pytest.fixture(scope="module")
def order(asked):
    """Right order by DPO and by the reward model, on the same pairs, with intervals over films."""
    tokenizer = models.load_policy("tiny-reviews-sft")[1]
    films = {film: count for film, (_, count) in asked.by_film.iloc[0].items()}
    total = sum(films.values())
    pairs = tasks.reviews.preference_pairs(
        "test", total, seed=17, max_tokens=32, tokenizer=tokenizer
    )[:]
    assert pd.Series(pairs["prompt"]).value_counts().to_dict() == films
    right = torch.tensor([sum(row[film][0] for row in asked.by_film) / 3 for film in films])
    judge = text_judge([models.load_scalar("tiny-reviews-reward")[0]], tokenizer)
    scores = judge(2 * pairs["prompt"], pairs["chosen"] + pairs["rejected"])
    chosen, rejected = scores.chunk(2)
    ahead = pd.Series((chosen > rejected).double().numpy()).groupby(pairs["prompt"]).sum()
    judged = torch.tensor([ahead[film] for film in films])
    counts = torch.tensor(list(films.values())).double()
    unit = len(films) / total  # the mean over films of the sums is then the share of pairs
    return {
        "pairs": total,
        "dpo": (right.sum() / total).item(),
        "dpo interval": [0.5 + x for x in evaluate.bootstrap((right - counts / 2) * unit)],
        "reward model": (judged.sum() / total).item(),
        "difference": evaluate.bootstrap((right - judged) * unit),
    }


@pytest.mark.slow
def test_on_2000_pairs_dpo_beats_a_coin_and_the_reward_model_beats_dpo(order, asked):
    assert order["dpo interval"][0] > 0.5 and (asked.right_order > 0.5).all()
    assert order["difference"][1] < 0
    assert (asked.rejected_change < asked.chosen_change).all() and (asked.chosen_change < 0).all()


# ---- the prose


def test_the_numbers_of_lesson_12(world, ends, betas, leash, steps, asked, order):
    with lesson("12") as said:
        by_hand(said)
        exact_world(said, world, ends)
        real_pairs(said)
        recorded(said, betas, leash, steps)
        held_out(said, betas, asked, order, steps)
        further(said, world, betas, leash, steps)


def by_hand(said):
    new, ref, beta = {"chosen": -20, "rejected": -16}, {"chosen": -21, "rejected": -15}, 0.5
    rewards = {}
    for side in new:
        ratio = new[side] - ref[side]
        rewards[side] = beta * ratio
        said(f"| {side} |", new[side], ref[side], ratio, rewards[side])
    margin = rewards["chosen"] - rewards["rejected"]
    said("is called the **margin**", *rewards.values(), margin)
    said("The loss is", loss(1, -1))
    said("still the more likely one,", new["rejected"], new["chosen"])
    said("**Predict.** The reference gives", ref["chosen"], ref["rejected"])
    moves = {"A": (0, 0), "B": (2, 4), "C": (-5, -5), "D": (-5, -7)}
    said("| B |", *moves["B"])
    said("| C |", -moves["C"][0])
    said("| D |", -moves["D"][0], -moves["D"][1])
    for name, (chosen, rejected) in moves.items():
        said(f"**{name}:", loss(chosen, rejected))
    said("even more. The margin is", beta * (2 - 4))
    said("lower.** The margin is", beta * (-5 + 7))
    share = 0.9
    odds = share / (1 - share)
    said("**Predict.** Suppose that", share)
    said("the ratio grows to", odds, share, 1 - share, odds, odds, odds**10 / 1e9)
    said("*billion* times, or", 10 * math.log(odds))


def exact_world(said, world, ends):
    target, seen = world.gibbs(beta=BETA), torch.arange(15) % 2 == 0
    best = target.max().item()
    assert target.argmax() == world.rewards.argmax() == ends["hard"].argmax()
    said("Here is a small world in which everything can be computed:", len(target))
    assert max(map(len, world.sequences)) == 3
    others = max(error(world, ends["all"]), error(world, ascent(world)))
    said("no probability is off by more than", 0.001, others < 0.001)
    said("and that of the best response, number", int(target.argmax()), best)
    nearly = error(world, ends["many"])
    said("and nearly the one with", 1000, nearly < 0.01)
    said("If its probability rises towards", 1)
    (i, j), few = pairs_of(world), 14
    assert not i[:few].any() and sorted(j[:few].tolist()) == list(range(1, 15))
    said("- **Only", few, len(i))
    said("connect each response with response", int(i[0]))
    chain = error(world, chain_of_pairs(STEPS)), error(world, chain_of_pairs(6000))
    said("A chain of", few, 0, 1, 1, 2)
    said("needs more steps: after", STEPS, chain[0], 6000)
    assert chain[1] < 1e-12
    assert {*shares(world).round().tolist()} == {0, 1}
    said("counts as preferred by all, so", 0, 1)
    said("**One vote per pair** makes", 0, 1)
    said("as long as you train: after", STEPS, ends["hard"].max().item(), 1)
    said("**Pairs among", int(seen.sum()))
    said("a total probability of", target[~seen].sum().item(), ends["partial"][~seen].sum().item())
    others, flat = of_a_logit_per_response(world)
    said("there the seven get", flat[~others].sum().item())
    start, factor = 0.3, 3
    raised, lowered = start * factor, start / factor
    assert raised + lowered > 2 * start
    said("one probability by", factor, factor, start, start, raised, lowered)
    rare, common = 0.01, 0.6
    raised, lowered = rare * factor, common / factor
    assert raised + lowered < rare + common
    said("much rarer than the lowered one:", rare, common, raised, lowered)
    assert "20 * logits.grad" in code_of("12", "def dpo_walk")
    assert "5 * world.gradient" in code_of("12", "def gradient_walk")
    said("share their weights, and at most", 100)


def real_pairs(said):
    said("We use", 32)
    chosen, rejected = summed()
    said("of the two responses are", chosen, rejected)
    said("So the margin is", chosen - rejected)
    said("After these twenty steps, only", AFTER_TWENTY, 2000, 100)  # in a slow test
    first, second = rewards_of_tokens()
    sizes = torch.tensor([*first.values(), *second.values()]).abs()
    said("Half of the tokens have at most", sizes.median().item())
    said("in the rejected response, with", second["ering"])
    assert abs(second["ering"]) == max(map(abs, [*first.values(), *second.values()]))
    assert 15 < len(first) < 30 and 15 < len(second) < 30


def recorded(said, betas, leash, steps):
    kl, gold = ({v: mean(betas, v, column) for v in BETAS} for column in ("kl", "gold"))
    assert set(steps.steps) == {100} and len(betas.loc["beta 1"]) == 3
    later = steps[steps.step > 0].groupby("variant")
    accuracies = later["rewards/accuracies"].mean()
    said("a tie is not right; then", accuracies.min(), accuracies.max())
    coefficients = [v for v in leash.index.unique("variant") if v.startswith("kl_coef")]
    said("stand beside PPO runs with", len(coefficients))
    prompts = {len(row) for row in betas.gold_by_prompt}
    said("one review for each of", *prompts)
    half, quarter, far = "kl_coef 0.5", "kl_coef 0.25", "kl_coef 0.1"
    said("**PPO**, from about", 2)
    said("nats on:", mean(leash, half, "gold"), mean(leash, half, "kl"))
    said("where DPO has", gold["beta 0.3"], kl["beta 0.3"])
    said("At about", mean(leash, "kl_coef 1", "kl"), kl["beta 1"] < 1.5)
    lengths = [mean(runs, v, "length") for runs, v in ((leash, half), (leash, quarter))]
    of_dpo = mean(betas, "beta 0.3", "length")
    said("| pairs with labels |", TourConfig().pairs, 100 * 32, 100, 32)
    at = mean(leash, half, "kl"), mean(leash, quarter, "kl")
    said("| tokens per review: PPO at", *at, kl["beta 0.3"], *lengths, of_dpo)
    repeats = mean(leash, far, "distinct_2"), mean(betas, "beta 0.03", "distinct_2")
    said("**Repetition (section 12).** At", mean(leash, far, "kl"), *repeats)


def held_out(said, betas, asked, order, steps):
    said("DPO trains for", 100)
    said("as above (", 32)
    assert order["dpo"] == pytest.approx(asked.right_order.mean())
    said("Then it compares", order["pairs"])
    said("in the right order nearer to", 0.5, 0.6, 0.8)
    said("**Nearest to", round(order["dpo"], 1), order["dpo"], *order["dpo interval"])
    said("which has read more pairs, has", order["reward model"])
    ahead = [-x for x in reversed(order["difference"])]
    said("On the same", order["pairs"])
    said("the reward model has", order["reward model"] - order["dpo"], *ahead)
    said("The chosen reviews lose", -asked.chosen_change.mean(), -asked.rejected_change.mean())
    said("The next figure shows", 128, len(BETAS), 10, 0)
    assert {*steps.step} == {*range(0, 100, 10)}
    ends = betas.groupby("variant")[["chosen_change", "rejected_change"]].mean()
    said("on every seed; most at", (ends.idxmin() == "beta 0.03").all())
    gradients = [-1, -3]  # of one parameter: the chosen and the rejected response
    step = gradients[0] - gradients[1]
    said("The gradients are", *gradients, *gradients, step)
    size = 0.2
    assert size * step > 0
    said("it raises $w$. If $w$ rises by", size, *(size * -gradient for gradient in gradients))
    said("**Predict**, on paper", 1, -gradients[0], -gradients[1])
    share = mean(betas, "beta 0.1", "right_order")
    errors = 2 * math.sqrt(0.25 / 128)
    said("the sides apart.** Of the", 128, share, errors, order["dpo"], 2000, ON_2000)
    said("two runs of", 20, 2000)  # in a slow test
    microscope = code_of("12", "show.microscope(")
    assert "else 20, beta=0.1" in microscope and '"val", 60' in microscope
    said("section 8's run has trained for", 20, 60)
    said("wrong margins, too, and a margin of", -2, loss(-2, 0, beta=1))


def further(said, world, betas, leash, steps):
    said("stays at", LOG2)
    said("when $\\beta h = \\log 3$: at", math.log(3) / 0.05, math.log(3) / 0.5)
    said("has an error of", without_looking_back(world))
    far, quarter = betas.loc["beta 0.03"], leash.loc["kl_coef 0.25"]
    said("At $\\beta = 0.03$ DPO has at most", far.gold.max(), far.kl.min())
    said("PPO with the coefficient", 0.25, quarter.gold.min(), quarter.kl.max())
    said("for $\\beta = 0.3$ and the coefficient", 0.5)
    first = steps[steps.step == 0].set_index(["variant", "seed"]).grad_norm
    said("the norm of the first gradient is", (first["beta 1"] / first["beta 0.03"]).mean())
    said(
        "longer than", loops.OptimiserConfig().max_grad_norm, loops.OptimiserConfig().max_grad_norm
    )
    said("differ by less than", 1e-5, len(BETAS) == 4)
    said("between the four $\\beta$. After the", sorted({*steps.step})[1] + 1)
    said("asks a review to end: up to", betas.missing_eos.max())
    tokenizer = models.load_policy("tiny-reviews-sft")[1]
    pairs = tasks.reviews.preference_pairs(
        "reward", 4000, seed=0, max_tokens=32, tokenizer=tokenizer
    )
    rejected = set(pairs["rejected"])
    said(
        "**Training pairs are not independent.** In",
        sum(x in rejected for x in pairs["chosen"]) / len(pairs),
    )
