"""Lab 14b, the repairs compared: every number of its prose, and every claim about a run."""

import inspect
import math

import numpy as np
import pandas as pd
import pytest
import torch

from minirlhf import core, evaluate, experiments, models, tasks
from minirlhf.experiments.preference_runs import pair_probe
from minirlhf.experiments.registry import BEST
from minirlhf.loops.losses import LOSSES as ALL_LOSSES
from minirlhf.loops.online import OnlineConfig
from tests.claims.equal_kl import (
    BETAS,
    COMPARED,
    HUMAN,
    ONCE,
    STUDENT,
    above,
    along,
    by_student,
    leads,
    mean,
    measured,
    recorded,
)
from tests.claims.prose import lesson

LOSSES = {name: ALL_LOSSES[name] for name in COMPARED}

IMITATED = f"best of {BEST}, imitated"
OWN = (ONCE, "online-dpo", "iterative-dpo", "rso", IMITATED)
ON_CURVE = ("cdpo", "robust", "ipo", "ipo-mean", "hinge", "nca", "tdpo", "kto")
RAISERS = ("dpop", "cpo", "orpo")
SHOWN = tuple(name for name in ON_CURVE if name != "ipo-mean")  # in the tables of the lesson
SIDES = ("chosen", "rejected")
SETTINGS = {
    "DPO": (core.dpo, {}),
    "cDPO": (core.cdpo, {"label_smoothing": 0.2}),
    "robust": (core.robust_dpo, {"label_smoothing": 0.2}),
    "hinge": (core.hinge, {}),
    "IPO": (core.ipo, {}),
    "DPOP": (core.dpop, {"penalty": 5.0}),
    "NCA": (core.nca, {}),
}


@pytest.fixture(scope="module")
def runs():
    return recorded("preference", "betas")


@pytest.fixture(scope="module")
def asked():
    return recorded("order")


def differences(runs, variant, other):
    """The difference of gold on each seed."""
    return runs.loc[variant].gold - runs.loc[other].gold


# ---- section 1: at equal KL


def comparable(runs, variants, beyond=0.1):
    """The lesson's rule: a KL between the curve's ends, or at most a tenth of the end beyond."""
    low, high = mean(runs, BETAS[0], "kl"), mean(runs, BETAS[-1], "kl")
    kls = {name: mean(runs, name, "kl") for name in variants}
    return [n for n in variants if (1 - beyond) * low <= kls[n] <= (1 + beyond) * high]


def test_the_rule_says_what_the_lesson_compares(runs):
    moving = ["dpo, synced", "dpo, mixed", "dpo, no reference"]
    own = [HUMAN, ONCE, "online-dpo", "iterative-dpo", IMITATED]
    assert comparable(runs, list(LOSSES)) == [n for n in LOSSES if n in {"dpo", *ON_CURVE}]
    assert comparable(runs, moving) == moving[:2]
    assert comparable(runs, own) == [n for n in own if n != "iterative-dpo"]
    strict = comparable(runs, [*SHOWN, *moving, *own], beyond=0)
    lost = set(comparable(runs, [*SHOWN, *moving, *own])) - set(strict)
    assert lost == {"tdpo", "dpo, synced"}
    per_token = runs.assign(kl=runs.kl / runs.length)
    assert set(comparable(per_token, own, beyond=0)) == {*own} - {"iterative-dpo"}


def test_within_a_tenth_of_its_ends_the_curve_changes_little(runs):
    x, y = ([mean(runs, n, column) for n in BETAS] for column in ("kl", "gold"))
    slopes = [(y[k + 1] - y[k]) / math.log(x[k + 1] / x[k]) for k in range(3)]
    assert -slopes[0] * math.log(0.9) < 0.035 and slopes[-1] * math.log(1.1) < 0.035


def test_eight_losses_lie_on_dpos_curve(runs):
    ends = [mean(runs, beta, "kl") for beta in (BETAS[0], BETAS[-1])]
    assert set(ON_CURVE) == {n for n in LOSSES if LOSSES[n].reference} - {"dpo", "dpop"}
    for variant in ON_CURVE:
        difference, low, high = above(variant)
        assert abs(difference) < 0.085 and low < 0 < high
        assert variant in comparable(runs, ON_CURVE) and mean(runs, variant, "kl") < ends[1]
    start = experiments.results("tour").query("method == 'SFT'").gold.mean()
    assert min(mean(runs, variant, "gold") for variant in ON_CURVE) > start + 0.3


@pytest.mark.parametrize("per", ["response", "token"])
@pytest.mark.parametrize("minus", [None, HUMAN])
def test_the_package_has_the_distance_from_the_curve_that_the_tests_compute(per, minus):
    rows = experiments.results("betas", "preference")
    rows = rows.assign(token=rows.kl / rows.length)
    kl = "kl" if per == "response" else per
    table = experiments.above_curve(rows, "gold", BETAS, ["kto", ONCE], kl=kl, minus=minus)
    for name in table.index:
        found = table.loc[name, ["difference", "low", "high"]].tolist()
        assert found == pytest.approx(above(name, per, minus), abs=1e-6)  # they read float32


def test_dpo_is_fifth_and_all_that_are_ahead_went_further(runs):
    ranks = sorted(LOSSES, key=lambda name: -mean(runs, name, "gold"))
    assert ranks[:5] == ["kto", "robust", "simpo", "hinge", "dpo"]
    assert all(mean(runs, name, "kl") > mean(runs, "dpo", "kl") for name in ranks[:4])
    surely = [name for name in ranks if (differences(runs, name, "dpo") > 0).all()]
    assert surely == ["kto", "hinge"]


def test_simpo_went_furthest_for_no_more_gold_than_the_end_of_the_curve(runs):
    anchored = [name for name in LOSSES if LOSSES[name].reference]
    assert runs.loc["simpo"].kl.min() > max(runs.loc[name].kl.max() for name in anchored)
    assert mean(runs, "simpo", "kl") > mean(runs, "beta 0.03", "kl")
    assert mean(runs, "simpo", "gold") < mean(runs, "beta 0.03", "gold")


def test_dpop_cpo_and_orpo_hardly_moved(runs):
    for variant in RAISERS:
        assert runs.loc[variant].kl.max() < runs.loc["beta 1"].kl.min()


# ---- sections 2 and 3: pulls, pushes, and exact worlds


def kto(c, r, rc, rr, *, beta):
    up, z = torch.ones_like(c, dtype=torch.bool), torch.zeros((), dtype=c.dtype)
    return core.kto(c, rc, up, z, beta=beta) + core.kto(r, rr, ~up, z, beta=beta)


def push(name, c, r, *, beta=0.1):
    """(push up on the chosen, push down on the rejected) at these log-ratios."""
    c, r = (torch.as_tensor(x).double().clone().requires_grad_(True) for x in (c, r))
    loss, settings = (kto, {}) if name == "KTO" else SETTINGS[name]
    zero = torch.zeros_like(c)
    up, down = torch.autograd.grad(loss(c, r, zero, zero, beta=beta, **settings).sum(), (c, r))
    return -up, down


def pull(name, h):
    h = torch.as_tensor(h).double()
    return sum(push(name, h / 2, -h / 2)) / 2


def test_the_pulls_on_h():
    h = torch.linspace(-25, 25, 201, dtype=torch.float64)
    dpo = pull("DPO", h)
    assert dpo[100] == pytest.approx(0.05) and (dpo > 0).all() and (dpo.diff() < 0).all()
    assert (pull("hinge", h)[h > 10] == 0).all()
    assert pull("hinge", h)[h < 10] == pytest.approx(0.1)
    assert (pull("IPO", h)[h > 5] < 0).all() and pull("IPO", h).argmax() == 0
    turn = 10 * math.log(4)
    assert (pull("cDPO", h)[h > turn + 0.3] < 0).all() and (pull("cDPO", h)[h < turn] > 0).all()
    assert (pull("robust", h) > dpo).all() and (pull("robust", h) > 0.2 * 0.1 / 0.6).all()
    assert pull("KTO", h).argmax() == 100 and pull("KTO", h)[0] < dpo[0] / 5


def test_the_pushes_when_both_responses_move_together():
    both = torch.linspace(-15, 15, 121, dtype=torch.float64)
    pushes = {name: push(name, both, both) for name in ("DPO", "DPOP", "NCA", "KTO")}
    up, down = pushes["DPO"]
    assert torch.allclose(up, torch.full_like(up, 0.05)) and torch.equal(up, down)
    below = both < 0
    assert (pushes["DPOP"][0][below] > 0.3).all() and (pushes["DPOP"][1][below] < 0.1).all()
    nca = pushes["NCA"]
    assert torch.equal(nca[0] < 0, both > 10 * math.log(2))
    assert (nca[0][both < -10] > 4 * nca[1][both < -10]).all()
    for side in pushes["KTO"]:
        assert 55 <= side.argmax() <= 65 and max(side[0], side[-1]) < side.max() * 0.7


def test_imitation_outweighs_the_comparison_in_cpo():
    x = torch.zeros(1, requires_grad=True)
    core.cpo(x - 20, torch.full((1,), -20.0), beta=0.1).sum().backward()
    assert -x.grad > 1


@pytest.fixture(scope="module")
def world():
    return core.World.random(3, 3, seed=0)


def pairs(world):
    i, j = torch.triu_indices(15, 15, 1)
    return i, j, core.preference_probability(world.rewards[i], world.rewards[j])


def trained(world, name, share, iterations, beta=0.5, **other):
    """The policy after so many iterations of L-BFGS on the mean loss over all pairs."""
    (i, j, _), (loss, settings) = pairs(world), SETTINGS[name]
    settings = settings | other
    ref = world.sequence_logprobs(world.ref_logits)
    logits = world.ref_logits.clone().requires_grad_(True)
    limits = {"history_size": 50, "tolerance_grad": 1e-10, "tolerance_change": 0}
    optimizer = torch.optim.LBFGS(
        [logits], max_iter=iterations, line_search_fn="strong_wolfe", **limits
    )

    def closure():
        optimizer.zero_grad()
        p = world.sequence_logprobs(logits)
        won = loss(p[i], p[j], ref[i], ref[j], beta=beta, **settings)
        lost = loss(p[j], p[i], ref[j], ref[i], beta=beta, **settings)
        (total := (share * won + (1 - share) * lost).mean()).backward()
        return total

    optimizer.step(closure)
    return world.probs(logits.detach())


@pytest.fixture(scope="module")
def hard_ends(world):
    """name -> the probability of the best response on hard labels, after 100 iterations."""
    hard, best = (pairs(world)[2] > 0.5).double(), world.rewards.argmax()
    names = ("DPO", "cDPO", "hinge", "IPO", "NCA")
    return {name: trained(world, name, hard, 100)[best].item() for name in names}


def test_on_hard_labels_dpo_runs_to_one_and_three_losses_stop(hard_ends):
    assert hard_ends["DPO"] > 0.999 > hard_ends["hinge"] > 0.95
    assert max(hard_ends[name] for name in ("cDPO", "IPO", "NCA")) < 0.4


def test_the_worst_response_falls_without_end_under_nca(world):
    hard, worst = (pairs(world)[2] > 0.5).double(), world.rewards.argmin()
    fallen = [trained(world, "NCA", hard, n)[worst].log().item() for n in (10, 30, 100)]
    assert fallen[0] > fallen[1] > fallen[2] and fallen[2] < -30


def ladder(world, beta=0.5):
    """The best response where all neighbours of the ranking are 1/beta apart."""
    ref = world.sequence_logprobs(world.ref_logits)
    steps = world.rewards.argsort().argsort().double() / beta
    return (ref + steps).softmax(0)[world.rewards.argmax()].item()


def test_hinge_on_hard_labels_ends_beyond_the_nearest_policy_with_all_margins(world, hard_ends):
    assert 0.8 < ladder(world) < 0.9 < hard_ends["hinge"]


def flipped_ends(world):
    share = pairs(world)[2]
    seen = 0.8 * share + 0.2 * (1 - share)
    return {name: trained(world, name, seen, 300) for name in ("DPO", "cDPO", "robust")}


def test_robust_dpo_undoes_flipped_labels_and_cdpo_adds_to_them(world):
    target, ends = world.gibbs(beta=0.5), flipped_ends(world)
    errors = {name: (p - target).abs().max().item() for name, p in ends.items()}
    assert errors["robust"] < 1e-6 < 0.05 < errors["DPO"] < errors["cDPO"]
    entropy = {name: -(p * p.log()).sum() for name, p in ends.items()}
    assert -(target * target.log()).sum() < entropy["DPO"] < entropy["cDPO"]


def of_doubts(world, smoothing=0.2):
    """cDPO on hard labels: its total variation to the Gibbs policy of the true shares."""
    hard = (pairs(world)[2] > 0.5).double()
    found = trained(world, "cDPO", hard, 300, label_smoothing=smoothing)
    return (found - world.gibbs(beta=0.5)).abs().sum().item() / 2


def test_only_dpo_has_no_end_with_one_weight(one_weight):
    """Descent ends where a grid over w has the least loss."""
    weights = torch.linspace(-3, 10, 130001, dtype=torch.float64)
    p = (weights[:, None] * torch.tensor([1.0, -1.0, 4.0]).double()).log_softmax(1)
    start = torch.full_like(weights, -math.log(3))
    for name in ("DPO", "IPO", "NCA", "KTO", "DPOP", "CPO"):
        loss, settings = {"KTO": (kto, {}), "CPO": (core.cpo, {})}.get(name) or SETTINGS[name]
        given = [] if name == "CPO" else [start, start]
        least = loss(p[:, 0], p[:, 1], *given, beta=1.0, **settings).argmin()
        if name == "DPO":
            assert least == len(weights) - 1
        else:
            assert 2 * weights[least].item() == pytest.approx(one_weight[name][3], abs=0.05)


@pytest.fixture(scope="module")
def one_weight():
    """name -> (yes, no, sure, h) at the end of one pair, yes above no, with beta 1."""
    features, start = torch.tensor([1.0, -1.0, 4.0]).double(), torch.full((1,), -math.log(3))

    def end(loss, *, beta=1.0, reference=True, **settings):
        w, given = torch.zeros(1).double(), 2 * [start.double()] if reference else []
        for _ in range(1000):
            w = w.detach().requires_grad_(True)
            p = (features * w).log_softmax(0)
            loss(p[:1], p[1:2], *given, beta=beta, **settings).sum().backward()
            w = w - 0.04 * w.grad
        return [*p.detach().exp().tolist(), 2 * w.item()]

    ends = {name: end(SETTINGS[name][0]) for name in ("DPO", "IPO", "NCA")}
    ends |= {"KTO": end(kto), "DPOP": end(core.dpop, penalty=5.0)}
    return ends | {
        "CPO": end(core.cpo, reference=False),
        "CPO 0.1": end(core.cpo, beta=0.1, reference=False),
    }


def test_yes_falls_and_sure_gains_under_six_losses(one_weight):
    for name, (yes, no, sure, _) in one_weight.items():
        if name == "CPO 0.1":
            assert no > yes > 1 / 3
        else:
            assert yes < 1 / 3 < sure and yes > no
    assert one_weight["IPO"][3] == pytest.approx(0.5, abs=1e-3)
    assert one_weight["DPOP"][0] > 0.32 and one_weight["DPO"][2] > 0.99
    assert one_weight["CPO"][0] > one_weight["DPO"][0]


# ---- section 3: on film reviews


@pytest.fixture(scope="module")
def moved():
    """name -> side -> (3,) the change of log pi of the training pairs in steps 70, 80 and 90."""
    history = experiments.results("betas_history", "preference_history")
    history = history.set_index(["seed", "step"])
    dpo, found = history[history.variant == "dpo"], {}
    for name in [*BETAS, *LOSSES]:
        if name == "kto":
            continue
        rows, found[name] = history[history.variant == name], {}
        for side in SIDES:
            reference = dpo[f"logps/{side}"] - dpo[f"rewards/{side}"] / 0.1
            change = (rows[f"logps/{side}"] - reference).unstack("step")
            found[name][side] = change[[70, 80, 90]].mean(axis=1)
    return found


def test_the_runs_of_the_curve_see_the_same_pairs_as_the_losses(moved):
    history = experiments.results("betas_history", "preference_history")
    history = history.set_index(["seed", "step"])
    dpo = history[history.variant == "dpo"]
    for name in BETAS:
        rows, beta = history[history.variant == name], float(name.split()[1])
        for side in SIDES:
            both = [
                run[f"logps/{side}"] - run[f"rewards/{side}"] / b
                for run, b in ((rows, beta), (dpo, 0.1))
            ]
            assert (both[0] - both[1]).abs().max() < 1e-4  # log pi_ref, nats


def test_on_training_pairs_three_losses_raise_the_chosen_reviews_and_dpo_lowers_them(moved):
    for name in RAISERS:
        assert (moved[name]["chosen"] > 0.5).all()
    for name in (*BETAS, "hinge", "simpo"):
        assert all((moved[name][side] < 0).all() for side in SIDES)
    assert all((x["chosen"] > x["rejected"]).all() for x in moved.values())


def straight(kl, x, y):
    """The curve of lines that are straight in the KL itself, on each seed."""
    return torch.tensor([np.interp(*one) for one in zip(kl, x, y, strict=True)])


def held(runs, moved, name, where, line=along):
    """How far the chosen reviews are above DPO's curve of them, on each seed: (3,), nats."""

    def change(variant):
        rows = moved[variant]["chosen"] if where == "training" else runs.loc[variant].chosen_change
        return torch.tensor(rows.tolist())

    def kl(variant):
        return torch.tensor(runs.loc[variant].kl.tolist())

    x, y = (torch.stack([of(v) for v in BETAS], 1) for of in (kl, change))
    return change(name) - line(kl(name), x, y)


def lowered(runs, moved):
    """How much lower each distance of `held` is with lines that are straight in the KL."""
    every = [(n, w) for n in SHOWN for w in ("training", "new") if (n, w) != ("kto", "training")]
    return [(held(runs, moved, *one) - held(runs, moved, *one, straight)).mean() for one in every]


def test_at_equal_kl_one_loss_holds_the_chosen_reviews_and_on_new_films_none(runs, moved):
    six = [name for name in SHOWN if name != "kto"]
    for line in (along, straight):
        on_pairs = {n: by_student(held(runs, moved, n, "training", line)) for n in six}
        assert [n for n in six if on_pairs[n][0] > 0] == ["nca"]
        new = {n: by_student(held(runs, moved, n, "new", line)) for n in SHOWN}
        assert not [n for n in SHOWN if new[n][0] > 0]
        fallen = {n for n in six if on_pairs[n][1] < 0}, {n for n in SHOWN if new[n][1] < 0}
        if line is along:
            assert fallen == (set(), {"kto"})
        else:
            assert fallen == ({"cdpo"}, {"cdpo", "nca", "kto"})
    assert min(lowered(runs, moved)) > 0


def test_no_loss_makes_the_chosen_reviews_of_new_films_likelier(runs, asked):
    for name in LOSSES:
        assert (runs.loc[name].chosen_change < 0).all()
        assert (asked.loc[name].chosen_change < 0).all()
    for beta in BETAS:
        assert (runs.loc[beta].chosen_change < 0).all()
    for name in ("cpo", "orpo"):
        assert (runs.loc[name].chosen_change < runs.loc["beta 1"].chosen_change).all()
        assert runs.loc[name].kl.max() < runs.loc["beta 1"].kl.min()


def above_half(asked, variant):
    """(films,) each film's part of the share of pairs in the right order, minus a half."""
    counts = torch.tensor([list(row.values()) for row in asked.loc[variant].by_film])
    right, total = counts.mean(0).T
    return (right - 0.5 * total) * len(total) / total.sum()


def test_the_order_carries_over_for_ten_losses_and_less_for_the_raisers(asked):
    for name in LOSSES:
        if name in RAISERS:
            behind = above_half(asked, "dpo") - above_half(asked, name)
            assert evaluate.bootstrap(behind)[0] > 0
        else:
            assert evaluate.bootstrap(above_half(asked, name))[0] > 0
            assert (asked.loc[name].right_order > 0.54).all()


def test_128_pairs_cannot_tell_the_order_from_a_coin(runs):
    found = runs[runs.experiment == "preference"].loc[list(LOSSES)].right_order
    assert ((found - 0.5).abs() < 2 * math.sqrt(0.25 / 128)).all()


# ---- section 4: the reference


def test_a_moving_reference_goes_further_along_the_same_curve(runs):
    for variant in ("dpo, synced", "dpo, mixed"):
        assert (runs.loc[variant].kl > runs.loc["dpo"].kl).all()
        difference, low, high = above(variant)
        assert low < 0 < high and abs(difference) < 0.15


def test_without_a_reference_dpo_goes_twice_as_far_for_less_gold(runs):
    far = runs.loc["dpo, no reference"]
    assert (far.kl > 2 * runs.loc["dpo"].kl - 0.6).all()
    assert far.kl.mean() > 2 * mean(runs, "dpo", "kl")
    gold = experiments.difference_over_prompts_and_seeds(
        runs.reset_index(), "gold", "dpo", "dpo, no reference"
    )
    assert gold.high.item() < 0


# ---- section 5: whose responses


def test_rejection_sampling_nears_the_gibbs_policy(world):
    ref, target = world.probs(world.ref_logits), world.gibbs(beta=0.5)
    accept = ((world.rewards - world.rewards.max()) / 0.5).exp()
    torch.testing.assert_close(ref * accept / (ref * accept).sum(), target)
    distance = distances(world)
    assert distance[2] > distance[8] > 0.1 > 0.05 > distance[64]


def distances(world):
    ref, target = world.probs(world.ref_logits), world.gibbs(beta=0.5)
    draw, count, found = torch.Generator().manual_seed(0), 100_000, {}
    for k in (1, 2, 8, 64):
        samples = torch.multinomial(ref.expand(count, 15), k, True, generator=draw)
        kept = core.rejection_sample(world.rewards[samples], beta=0.5, generator=draw)
        share = samples.gather(1, kept)[:, 0].bincount(minlength=15) / count
        found[k] = ((share - target).abs().sum() / 2).item()
    return found


def test_the_distances_of_rejection_sampling_are_those_of_the_exact_sums(world):
    ref, weights = world.probs(world.ref_logits), (world.rewards / 0.5).exp()
    first = ref[:, None] * ref * weights[:, None] / (weights[:, None] + weights)
    for k, share in ((1, ref), (2, 2 * first.sum(1))):
        exact = (share - world.gibbs(beta=0.5)).abs().sum() / 2
        assert distances(world)[k] == pytest.approx(exact.item(), abs=0.005)


def test_iterative_dpo_has_the_most_gold_and_the_most_kl_on_every_seed(runs):
    for other in {HUMAN, *OWN} - {"iterative-dpo"}:
        for column in ("gold", "kl"):
            assert (runs.loc["iterative-dpo"][column] > runs.loc[other][column]).all()
    assert mean(runs, "iterative-dpo", "kl") > mean(runs, "beta 0.03", "kl")


def test_all_six_lie_above_the_curve():
    for variant in (HUMAN, *OWN):
        if variant != "iterative-dpo":  # beyond the curve
            assert above(variant)[1] > 0


def test_two_lead_people_with_the_same_labels_by_response_and_one_of_them_by_token():
    for variant in (ONCE, "online-dpo"):
        assert above(variant, other=HUMAN)[1] > 0
    assert 0.01 > above(ONCE, "token", HUMAN)[1] > 0 > above("online-dpo", "token", HUMAN)[1]


def test_best_of_eight_does_not_lead_by_more_than_luck():
    for per in ("response", "token"):
        _, low, high = above(IMITATED, per, HUMAN)
        assert low < 0 < high


def test_online_dpo_is_further_above_the_curve_than_each_loss():
    for loss in SHOWN:
        for per in ("response", "token"):
            assert above("online-dpo", per, loss)[1] > 0


def seeds_of_points(variant, same, draws=4000, seed=2):
    """The 95 % interval if the points of the curve have the same drawn seeds, or others."""
    (gold, kl, _), curve = measured("preference", variant), [measured("betas", n) for n in BETAS]
    generator, found = torch.Generator().manual_seed(seed), []
    for _ in range(draws):
        s, films = (torch.randint(n, (n,), generator=generator) for n in gold.shape)
        each = [s if same else torch.randint(3, (3,), generator=generator) for _ in curve]
        x = torch.stack([point[1][k].mean() for point, k in zip(curve, each, strict=True)])
        y = torch.stack(
            [point[0][k][:, films].mean() for point, k in zip(curve, each, strict=True)]
        )
        at = along(kl[s].mean()[None], x[None], y[None])
        found.append(gold[s][:, films].mean() - at[0])
    return torch.stack(found).quantile(torch.tensor([0.025, 0.975]).double())


def test_with_other_seeds_for_the_curve_one_interval_is_wider_and_one_narrower():
    width = {
        (n, same): seeds_of_points(n, same).diff().item()
        for n in ("robust", "kto")
        for same in (True, False)
    }
    assert width["robust", False] > 1.2 * width["robust", True]
    assert width["kto", False] < 0.95 * width["kto", True]


def test_on_one_seed_the_luck_of_kto_and_of_the_curve_are_opposite():
    """The reason for the narrower interval."""
    curve = [measured("betas", n) for n in BETAS]
    x, y = (torch.stack(z, 1) for z in ([p[1] for p in curve], [p[0].mean(1) for p in curve]))
    order = {}
    for variant in ("kto", "robust"):
        gold, kl, _ = measured("preference", variant)
        both = torch.stack([gold.mean(1), along(kl, x, y)])
        order[variant] = both.argsort(1)
        assert (torch.corrcoef(both)[0, 1] > 0) == (variant == "robust")
    assert torch.equal(order["kto"][0], order["kto"][1].flip(0))


def test_how_far_each_goes(runs):
    kls = [mean(runs, variant, "kl") for variant in (HUMAN, ONCE, "online-dpo")]
    assert kls == sorted(kls)
    gaps = (runs.loc[ONCE].kl - runs.loc[HUMAN].kl).abs()
    assert sorted(round(gap, 1) for gap in gaps)[:2] == [0.1, 0.1]
    assert (differences(runs, ONCE, HUMAN) > 0).all()


def test_ppo_has_more_gold_than_online_dpo_for_less_kl(runs):
    ppo = experiments.results("leash").set_index(["variant", "seed"]).sort_index()
    for column, sign in (("gold", 1), ("kl", -1)):
        ahead = mean(ppo, "kl_coef 0.25", column) - mean(runs, "online-dpo", column)
        assert sign * ahead > 0


# ---- the prose


def test_the_numbers_of_lab_14b(runs, asked, moved, world, hard_ends, one_weight):
    with lesson("14b") as said:
        at_equal_kl(said, runs)
        labels(said, world, hard_ends)
        anchors(said, one_weight, asked)
        moved_by(said, runs, moved, asked)
        reference(said, runs)
        responses(said, runs)
        exercises(said, runs)
        further(said, runs, asked, world)


def at_equal_kl(said, runs):
    golds, kls = ({n: mean(runs, n, x) for n in LOSSES} for x in ("gold", "kl"))
    repairs = set(LOSSES) - {"dpo", "ipo-mean"}
    assert repairs == {*SHOWN, *RAISERS, "simpo"} and len(SHOWN) == 7
    said("say for each of eleven", len(repairs) == 11)
    flipped = LOSSES["robust"].settings["label_smoothing"]
    said("do not become surer than", 1 - LOSSES["cdpo"].settings["label_smoothing"])
    said("expect that", flipped)
    prompts = {len(row) for row in runs.gold_by_prompt}
    same = "All these runs start from the same model and see the same"
    said(same, 100 * 32, 100, 32, 2 * 32, *prompts)
    said("lesson 12 ran it with $\\beta$ =", 1, 0.3, 0.1, 0.03)
    films = {len(row) for row in runs.gold_by_prompt}
    said("This gives", 3, *films)
    said("if its interval leaves out", 0)
    assert nearly_level(runs) < 0.05  # "then we compare with the end itself"
    said("**Predict.** DPO with $\\beta$ =", 0.1, golds["dpo"])
    ahead = ("kto", "robust", "simpo", "hinge")
    assert {n for n in repairs if golds[n] > golds["dpo"]} == set(ahead)
    said("**Four have more gold**:", *[golds[n] for n in ahead])
    further = [kls[n] for n in ahead]
    said("All four also go further:", min(further), max(further), kls["dpo"])
    found = {n: above(n)[0] for n in SHOWN}
    said(
        "The seven that can be compared differ from it by", min(found.values()), max(found.values())
    )
    assert all(above(n)[1] < 0 < above(n)[2] for n in SHOWN)
    said("each interval contains", 0)
    said("**Hinge has", golds["hinge"] - golds["ipo"], kls["hinge"] / kls["ipo"])
    said("moved too little to be compared**: at most", max(kls[n] for n in RAISERS))
    said(
        "The curve begins at",
        mean(runs, "beta 1", "kl"),
        abs(kls["tdpo"] - mean(runs, "beta 1", "kl")) < 0.01,
    )
    said("**SimPO went too far**:", kls["simpo"], mean(runs, "beta 0.03", "kl"))
    said("with more gold", mean(runs, "beta 0.03", "gold") > golds["simpo"])
    widest = max(above(n)[2] for n in SHOWN)
    said("KTO's interval reaches to", widest, widest == above("kto")[2])


def nearly_level(runs):
    """The most that a tenth of the KL beyond an end would change the curve's gold."""
    x, y = ([mean(runs, n, column) for n in BETAS] for column in ("kl", "gold"))
    ends = ((0, 1, 0.9), (2, 3, 1.1))
    return max((y[j] - y[i]) / math.log(x[j] / x[i]) * abs(math.log(tenth)) for i, j, tenth in ends)


def labels(said, world, hard_ends):
    said("believed to be wrong: here", 0.2)
    assert LOSSES["cdpo"].settings["label_smoothing"] == 0.2
    said("Where it is above", 0, 0.1)
    said("**cDPO** turns round where", math.log(4) / 0.1)
    least = pull("robust", [200.0]).item()
    assert least == pytest.approx(0.2 * 0.1 / 0.6, abs=1e-6)
    assert pull("DPO", [200.0]).item() < 1e-8
    said("However large $h$ is, it pulls with more than", least)
    said("pulls with full strength up to", 1 / 0.1)
    said("back beyond its target of", 1 / 0.2)
    best = world.rewards.argmax()
    said("*always* wins. $\\beta$ is", 0.5)
    said("The best response starts at", world.probs(world.ref_logits)[best].item())
    said("which run to", 1)
    said("**DPO runs to", 1)
    said("**cDPO stops at", hard_ends["cDPO"], hard_ends["IPO"])
    said("**Hinge stops at", hard_ends["hinge"])
    said("Now other labels in the same world:", 0.2)


def anchors(said, one_weight, asked):
    assert (LOSSES["dpop"].settings["penalty"], LOSSES["tdpo"].settings["alpha"]) == (5.0, 0.5)
    said("Each cost is between", 0, 1)
    said("We hold $h$ at", 0, 0)
    said("**DPO** pushes with", push("DPO", [3.0], [3.0])[0].item())
    said("- **DPOP** pushes the chosen response up with", 0.3)
    said("so at $c = \\log 2 / \\beta$ =", math.log(2) / 0.1)
    said("Where does each loss stop, with $\\beta$ =", 1)
    said("*Yes* starts at", 1 / 3)
    said("IPO stops at its target, $h$ =", one_weight["IPO"][3])
    said("imitation outweighs the comparison: $w$ turns negative", one_weight["CPO 0.1"][3] < 0)
    said("*Training pairs*: the mean change of steps", 70, 80, 90)
    said("(at least", 0)
    totals = {sum(count for _, count in row.values()) for row in asked.by_film}
    said("*Right order* is the share of", *totals)
    shares = [mean(asked, n, "right_order") for n in LOSSES if n not in RAISERS]
    said("**The order does carry over**:", min(shares), max(shares))
    for name in RAISERS:
        said("DPOP, CPO and ORPO have only", mean(asked, name, "right_order"))


def of_seeds(apart):
    """The mean of three seeds and the ends of its interval."""
    return apart.mean().item(), *by_student(apart)


def moved_by(said, runs, moved, asked):
    """How far the chosen reviews and the policies went."""
    count = inspect.signature(pair_probe).parameters["count"].default
    said("*New films*:", count)
    falls = [-moved[name]["chosen"].mean() for name in ("dpo", "beta 1")]
    said("DPO's chosen reviews fall by", falls[0], 0.1, falls[1], 1)
    kls = [mean(runs, name, "kl") for name in ("ipo", "nca", "tdpo", "beta 1")]
    assert max(kls) < 1.5 * min(kls) and mean(runs, "dpo", "kl") > 3 * max(kls)
    said(
        "**NCA holds them better on the training pairs**, by",
        *of_seeds(held(runs, moved, "nca", "training")),
    )
    kto, most = held(runs, moved, "kto", "new"), max(lowered(runs, moved))
    said("and with KTO further than with DPO, by", *of_seeds(-kto))
    said("One of thirteen intervals", len(SHOWN) + len([n for n in SHOWN if n != "kto"]) == 13)
    other = [
        x
        for name, where in (("nca", "training"), ("nca", "new"), ("kto", "new"))
        for x in of_seeds(held(runs, moved, name, where, straight))
    ]
    cdpo = [
        x for w in ("training", "new") for x in of_seeds(-held(runs, moved, "cdpo", w, straight))
    ]
    said("With lines straight in the KL, NCA has", *other, *cdpo)
    said("lower than in the table, by up to", most, 0)
    rises = [moved[name]["chosen"].mean() for name in RAISERS]
    said("raise the chosen reviews of the training pairs** by", min(rises), max(rises))
    said("fall more than DPO's with $\\beta$ =", 1)
    for name in ("ipo", "tdpo"):
        said("TDPO and IPO have", mean(asked, name, "right_order"))
    kls = [mean(runs, name, "kl") for name in ("tdpo", "ipo")]
    said("of the order of new pairs at", *kls, max(mean(runs, name, "kl") for name in RAISERS))


def reference(said, runs):
    said("(**TR-DPO**). Every", 25, 0.6)
    said("*Synced* has", above("dpo, synced")[0], above("dpo, mixed")[0])
    said("and both intervals contain", 0)
    odds = torch.tensor([0.001, 0.01, 0.9, 0.99]).logit().diff() / math.log(10)
    assert 1 < odds[0] < 1.01 and odds[2] / (math.log(0.99 / 0.9) / math.log(10)) > 20
    said("they are nearly $\\log q$; near", 1)
    far = "dpo, no reference"
    said("more than twice as far,", mean(runs, far, "kl"), mean(runs, far, "gold"))
    said(
        "SimPO has no reference either, and", mean(runs, "simpo", "gold"), mean(runs, "simpo", "kl")
    )
    said("its reviews become long:", mean(runs, far, "length"), mean(runs, far, "missing_eos"))
    assert mean(runs, far, "length") > max(mean(runs, n, "length") for n in ("dpo", "simpo"))


def responses(said, runs):
    said("Now the loss stays (DPO with $\\beta$ =", 0.5)
    said("new ones every", 25)
    said("The first three have", 3200)
    best = "iterative-dpo"
    said("**Iterative DPO has the most gold**,", mean(runs, best, "gold"), mean(runs, best, "kl"))
    end = "beta 0.03"
    said("DPO's curve ends before, at", mean(runs, end, "kl"), mean(runs, end, "gold"))
    said("*Relabelled* has a lead of", above(HUMAN)[0])
    said("**Best of eight** has", mean(runs, IMITATED, "gold"), mean(runs, IMITATED, "kl"))
    assert BEST == 8
    said("To *choose* it costs at most", math.log(8) - 7 / 8)
    online, once = (
        [above(v, p, HUMAN) for p in ("response", "token")] for v in ("online-dpo", ONCE)
    )
    said("We subtract its lead:", above("online-dpo")[0], above(HUMAN)[0], online[0][0])
    ahead = once[0][0], online[0][0], once[1][0], online[1][0]
    said("are ahead of *relabelled* by", *ahead, once[1][1], 0, online[1][1] < 0)
    said("is further above DPO's curve than each", above("online-dpo")[0], above(HUMAN)[0])
    assert mean(runs, "online-dpo", "kl") > 2 * mean(runs, HUMAN, "kl")
    variety = {v: mean(runs, v, "distinct_2") for v in (HUMAN, *OWN)}
    three = (HUMAN, "online-dpo", best)
    said("the reviews become short:", *[mean(runs, v, "length") for v in three])
    said("Distinct-2 falls from", *[variety[v] for v in three])
    said("has no fresh responses, and the lowest:", variety[IMITATED])
    said("one round of sampling; least variety", min(variety, key=variety.get) == IMITATED)


def exercises(said, runs):
    way = math.log(3.7 / 2.5) / math.log(5.4 / 2.5)
    at = 1.06 + round(way, 2) * 0.33
    points = [(mean(runs, n, "kl"), mean(runs, n, "gold")) for n in ("beta 0.3", "beta 0.1")]
    said("(a) On paper: DPO's curve has", points[0][1], points[0][0], points[1][1], points[1][0])
    said("A run has a gold of", 1.30, 3.7)
    said("(a) log", 3.7, 2.5, 5.4, 2.5, way, 1.06, way, 0.33, at, round(1.30 - at, 2))
    of_ppo(said, runs)
    films = {len(row) for row in runs.gold_by_prompt}
    said("draw three seeds from the three, and", *films, *films)
    said("The middle", 0.95)
    said("(b) Draw seeds and films", 2000)
    said("Take the quantiles", 0.025, 0.975)
    three = {"ipo": "IPO: its", "robust": "robust DPO: they", "kto": "KTO: they"}
    for name, label in three.items():
        low, high = seeds_of_points(name, same=True, draws=2000, seed=1).tolist()
        ends = above(name)[1:]
        said(f"| {label}", low, high, *ends, (high - low > ends[1] - ends[0]) == (name == "ipo"))
    said("(The leads of the three seeds are", *[x for n in three for x in leads(n).mean(1)])
    said("lesson 11b has the factor", STUDENT)
    said("At $w = 1$ it is $\\log 2 / \\beta$, the", math.log(2) / 0.1)
    numbers = [mean(runs, n, x) for n in ("robust", "dpo") for x in ("gold", "kl")]
    said("4. A paper reports a gold of", *numbers)
    robust = above("robust")
    x, y = ([mean(runs, n, column) for n in BETAS] for column in ("kl", "gold"))
    curve = np.interp(math.log(mean(runs, "robust", "kl")), np.log(x), y)
    said("record. DPO's curve has", curve, *robust)


def of_ppo(said, runs):
    rows, ppo = experiments.results("betas", "preference", "leash"), recorded("leash")
    kl = {c: mean(ppo, f"kl_coef {c}", "kl") for c in ("2", "1", "0.5", "0.25", "0.1", "0")}
    assert {f"kl_coef {c}" for c in kl} == {n for n in set(ppo.index.levels[0]) if "kl_c" in n}
    both = pd.concat([ppo, runs[~runs.index.duplicated()]])
    near = comparable(both, [f"kl_coef {c}" for c in kl])
    assert near == [f"kl_coef {c}" for c in ("1", "0.5", "0.25", "0.1")]
    lost = set(near) - set(comparable(both, near, beyond=0))
    assert lost == {"kl_coef 1", "kl_coef 0.1"}
    said("in exercise 1, PPO with the coefficients", 1, 0.1)
    said("(c) The coefficient", 2, kl["2"], 0, kl["0"])
    said("no comparison. The coefficient", 1, kl["1"], 0.1, kl["0.1"])
    assert kl["1"] < mean(runs, "beta 1", "kl") and kl["0.1"] > mean(runs, "beta 0.03", "kl")
    far, over = (
        experiments.above_curve(rows, "gold", BETAS, near, minus=minus)[
            ["difference", "low", "high"]
        ]
        for minus in (None, "online-dpo")
    )
    first, *more = (far.loc[n].tolist() for n in near)
    values = [x for c, row in zip((0.5, 0.25, 0.1), more, strict=True) for x in (c, *row)]
    said("With the coefficient", 1, *first, first[1] < 0, *values)
    online = mean(runs, "online-dpo", "kl")
    said("has both. It ends at", online, 0.25, kl["0.25"], *over.loc["kl_coef 0.25"])
    values = [x for c in (1, 0.5, 0.1) for x in (over.difference[f"kl_coef {c}"], c)]
    said("limit of `minus=`. They have", *values, far.difference.is_monotonic_increasing)


def further(said, runs, asked, world):
    beta = {name: LOSSES[name].settings["beta"] for name in LOSSES}
    assert set(beta.values()) == {0.1, 1.0, 2.0}
    assert beta["simpo"] == 2 and beta["ipo-mean"] == 1
    said("**Settings.** $\\beta$ is", 0.1, 2, 0.5)
    assert LOSSES["simpo"].settings["margin"] == 1
    means = mean(runs, "ipo-mean", "gold"), mean(runs, "ipo-mean", "kl")
    said("tokens, with $\\beta$ =", beta["ipo-mean"], *means, *above("ipo-mean"))
    said("TRL's default of", 0.1, 1 / (2 * 0.1) == 5)
    said("RSO has", mean(runs, "rso", "gold"), mean(runs, "rso", "kl"), *above("rso"))
    of_k = distances(world)
    said("half the sum of all errors). It is", of_k[1], of_k[2], 2, of_k[8], 8, of_k[64], 64)
    said("variation distance is", of_doubts(world))
    said(
        "That is luck: with $\\epsilon$ =", 0.05, of_doubts(world, 0.05), 0.3, of_doubts(world, 0.3)
    )
    few = runs[runs.experiment == "preference"].loc[list(LOSSES)].right_order
    others = runs[runs.experiment == "preference"].loc[[HUMAN, *OWN]].right_order.max()
    error = math.sqrt(0.25 / 128)
    said("also has the order of", 128, few.min(), few.max(), others, error)
    said("they cannot tell", mean(asked, "ipo", "right_order"), 0.5)
    totals = {sum(count for _, count in row.values()) for row in asked.by_film}
    said('We first read them as "a coin". The', *totals)
    votes = experiments.results("labels").groupby("variant").accuracy.mean()
    said("For scale: the reward models of lesson 08 have", votes["1600 pairs"], 1600)
    said("with 1,600 pairs and", votes["6400 pairs"], 6400)
    tokenizer = models.load_policy("tiny-reviews-sft")[1]
    voted = tasks.reviews.preference_pairs(
        "reward", 3200, seed=0, max_tokens=32, tokenizer=tokenizer
    )["prompt"]
    titles = len(tasks.reviews.rl_prompts())
    said("all titles, about", round(3200 / titles), round(3200 / len(set(voted))))
    said("An unfinished review of the policy's costs", OnlineConfig().missing_eos_penalty)
    said("*relabelled* end at", mean(runs, ONCE, "kl"), mean(runs, HUMAN, "kl"), 2, 0.1)
    further = mean(runs, "online-dpo", "kl") / mean(runs, HUMAN, "kl")
    said("Online DPO goes twice as far", 2 < further < 2.2)
    said("by default with", 0.6, 512)
