"""Lesson 06b, reading a PPO run: every number of its prose, and every claim about a recorded run."""

import copy
import inspect
import math
import re
from dataclasses import replace

import nbformat
import numpy as np
import pytest
import torch

from minirlhf import core, evaluate, experiments, loops, models, rewards, tasks
from minirlhf.classroom import check
from minirlhf.classroom.course import NOTEBOOKS
from minirlhf.classroom.lessons.lesson_06b import LETTERS, TELLING
from minirlhf.experiments import practice
from minirlhf.experiments.microscope import one_batch_config
from minirlhf.experiments.registry import EXPERIMENTS, NO_CLIP
from minirlhf.experiments.runs import group_run_config, ppo_config
from minirlhf.show.variants import difference_of_means
from minirlhf.tour import TourConfig
from tests.claims.equal_kl import by_student
from tests.claims.prose import lesson
from tests.claims.records_06 import (
    COMPLETE,
    SEEDS,
    by_film,
    column,
    first_step_of_the_loop,
    mean,
    rates,
)

BATCHES = " and batches"  # the end of the names of the runs with 256 responses in a batch
PARTS = tuple(name for name in EXPERIMENTS["parts"] if not name.endswith(BATCHES))
LINE = ("kl_coef 2", "kl_coef 1", "kl_coef 0.5", "kl_coef 0.25", "kl_coef 0.1")  # of section 4


@pytest.fixture(scope="module")
def runs():
    return experiments.results("ablations", "leash", "parts")


@pytest.fixture(scope="module")
def tour():
    history = experiments.results("tour_history")
    return history[history.stage == "ppo"]


# ---- section 1: the settings, and the curves of a healthy run


def test_with_a_fifth_of_the_learning_rate_the_first_step_clips_much_less():
    full, fifth, _ = first_step_of_the_loop()
    assert 0.2 < full < 0.3 and round(fifth, 2) == 0.06


def test_train_ppo_begins_with_a_fifth_of_the_learning_rate():
    config = loops.PPOConfig()
    optimizer = loops.make_optimizer(torch.nn.Linear(1, 1), config.actor)
    loops.set_learning_rate(optimizer, config.actor, 0, config.steps)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(config.actor.lr / 5)


def test_the_rates_of_train_ppo_rise_for_five_steps_and_then_fall_towards_0():
    change = rates().diff()
    assert (change[:4] > 0).all() and (change[4:] < 0).all() and rates()[-1] < 0.06 * max(rates())


def test_the_runs_of_section_1_have_the_default_settings_and_the_loop_has_the_plain_ones():
    config, plain = loops.PPOConfig(), one_batch_config({"seed": 0})
    assert TourConfig().ppo == config
    for usual, slow in ((config.actor, plain.actor), (config.critic, plain.critic)):
        assert usual.lr == pytest.approx(5 * slow.lr) and slow.schedule == "constant"
        assert usual.schedule == "linear" and slow.max_grad_norm is None
    assert config.whiten and config.value_clip_eps and not plain.whiten
    assert plain.value_clip_eps is None and plain.missing_eos_penalty == 0
    same = {"kl", "epochs", "clip_eps", "gamma", "lam", "batch_size", "minibatch_size", "sampling"}
    assert all(getattr(config, name) == getattr(plain, name) for name in same)
    for other, usual in ((plain.actor, config.actor), (plain.critic, config.critic)):
        told = {"lr", "schedule", "max_grad_norm"}  # in the table
        assert {name for name in vars(usual) if vars(usual)[name] != vars(other)[name]} == told


def test_the_first_update_moves_every_weight_by_the_full_rate():
    config = one_batch_config({"seed": 0}).actor
    before = torch.tensor([0.0, 0.5, -0.5, 2.0, -2.0], dtype=torch.double)
    weights = torch.nn.Parameter(before.clone())
    optimizer = loops.make_optimizer(torch.nn.ParameterList([weights]), config)
    assert isinstance(optimizer, torch.optim.AdamW)
    weights.grad = torch.tensor([1e-3, -1e-2, 0.1, -1.0, 10.0], dtype=torch.double)
    optimizer.step()
    moved = weights.detach() - before
    torch.testing.assert_close(moved, -config.lr * weights.grad.sign(), rtol=1e-4, atol=0)


LATE = 19  # a step of section 1 with about the learning rate of the loop of lesson 06


def test_the_clip_fraction_falls_because_the_learning_rate_does(tour):
    """At one rate it is one number, late in a run and early; and it ends at 0 whatever the run."""
    late = tour[tour.step == LATE].clip_fraction.mean()
    early = experiments.results("one_batch_history").clip_fraction
    assert rates()[LATE] == pytest.approx(one_batch_config({"seed": 0}).actor.lr, rel=0.05)
    assert abs(late - early[2]) < 0.001 and early[2] < 0.1 * early[0]
    for name in ("ablations_history", "leash_history"):
        share = experiments.results(name).groupby(["variant", "step"]).clip_fraction.mean()
        for variant in share.index.unique("variant"):
            assert share[variant][23] < 0.05 * share[variant].max() or "no clip" in variant


@pytest.mark.slow
def test_what_three_altered_lines_of_the_loop_do():
    """Exercise 1: without the critic's updates, at another temperature, without the actor's updates."""
    policy, tokenizer = models.load_policy("tiny-reviews-sft")
    reward_model, _ = models.load_scalar("tiny-reviews-reward")
    score = rewards.rollout_score(reward_model, tokenizer.eos_token_id)
    config, prompts = one_batch_config({"seed": 0}), tasks.reviews.rl_prompts()
    still = loops.OptimiserConfig.plain(lr=1e-12)

    def run(**changed):
        pair = copy.deepcopy(policy), copy.deepcopy(reward_model)
        return loops.train_ppo(*pair, tokenizer, prompts, score, replace(config, **changed))[2]

    assert max(row["explained_variance"] for row in run(critic=still)) < 0.1
    frozen = run(actor=still)
    assert all(abs(row["kl"]) < 1e-4 and row["clip_fraction"] == 0 for row in frozen)
    assert frozen[-1]["explained_variance"] > 0.3
    ids, prompt_mask = models.encode_prompts(tokenizer, prompts[:64])
    given = {"eos_id": tokenizer.eos_token_id, "config": config.sampling}
    batch = models.sample(
        policy, ids, prompt_mask, generator=torch.Generator().manual_seed(0), **given
    )
    with torch.no_grad():
        new = models.policy_logprobs(policy, batch)  # at temperature 1
        values = models.response_values(reward_model, batch)
        mask = batch.response_mask
        paid = torch.nn.functional.one_hot(mask.sum(1) - 1, mask.shape[1]) * score(batch)[:, None]
    advantages = core.gae(paid, values, mask, gamma=1, lam=0.95)[0]
    ratio = (new - batch.old_logprobs).exp()[mask]
    assert ((ratio < 0.8) | (ratio > 1.2)).double().mean() > 0.6
    flags = core.is_clipped(new, batch.old_logprobs, advantages, mask, clip_eps=0.2)
    assert flags[mask].double().mean() > 0.3


def test_without_a_penalty_the_gold_score_falls_back_and_is_still_the_highest():
    logged = experiments.results("leash_history")
    gold = logged[logged.variant == "kl_coef 0"].groupby("step").gold.mean()
    assert gold.iloc[-1] < gold.max() - 0.3
    last = logged[logged.step == logged.step.max()].groupby("variant").gold.mean()
    assert last["kl_coef 0"] > last["kl_coef 0.25"] > last["kl_coef 2"]
    runs = experiments.results("leash").groupby("variant")[["length", "distinct_2"]].mean()
    assert runs.length["kl_coef 0"] > 0.8 * 32 and runs.distinct_2["kl_coef 0"] < 0.05


def test_the_curves_of_a_run(tour):
    def at(name, steps):
        return tour[tour.step.isin(steps)].groupby("step")[name].mean()

    assert sorted(tour.seed.unique()) == list(SEEDS) and tour.step.max() == 23
    assert abs(at("score", [0]).item()) < 0.1
    assert at("gold", [23]).item() > at("gold", [0]).item() + 0.5
    late = at("kl", range(8, 24))
    assert late.min() > 1.5 and late.max() < 2.6  # about 2 nats
    assert at("entropy", [0]).item() > at("entropy", [23]).item() > 2
    assert at("clip_fraction", [23]).item() < 0.001
    start = tour[tour.step == 0]["explained_variance"]
    assert start.mean() < 0


# ---- sections 2 and 4: parts removed


def test_with_two_epochs_no_single_part_decides(runs):
    band = [x for v in COMPLETE for x in column(runs, v, "gold")]
    for variant in (
        "no clip",
        "no value clip",
        "no whitening",
        "lambda 1",
        "eight epochs, no clip",
    ):
        _, low, high = difference_of_means(column(runs, variant, "gold"), band)
        assert low < 0 < high
    assert difference_of_means(column(runs, "one epoch", "gold"), band)[2] < 0
    assert difference_of_means(column(runs, "eight epochs", "gold"), band)[1] > 0
    changed = runs[runs.experiment == "ablations"].groupby("variant").gold.mean()
    assert changed.idxmin() == "one epoch"


def test_the_responses_of_runs_a_b_and_c(runs):
    """The table in the answer of exercise 2, word for word."""
    cells = nbformat.read(NOTEBOOKS / "06b_reading_a_run.ipynb", 4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    table = experiments.samples(runs[runs.experiment == "leash"], list(LETTERS))
    for film in ("american psycho 2", "big bad love"):
        assert f"| *{film}* | {' | '.join(table.loc[film])} |" in text


def test_the_logs_of_runs_a_b_and_c_do_not_name_their_setting():
    shown, leash = check.three_runs(), experiments.results("leash_history")
    assert list(shown.variant.unique()) == ["A", "B", "C"] == list(LETTERS.values())
    assert not set(TELLING) & set(shown) and set(leash) == set(shown) | set(TELLING)
    assert not any("leash" in str(x) or "kl_coef" in str(x) for x in shown.to_numpy().flat)
    for variant, letter in LETTERS.items():
        rows = leash[leash.variant == variant].sort_values(["seed", "step"])
        assert rows.gold.tolist() == shown[shown.variant == letter].gold.tolist()


def test_with_eight_epochs_the_clip_matters(runs):
    with_clip, without = ("eight epochs", "eight epochs, no clip")
    kl = [column(runs, v, "kl") for v in (without, with_clip)]
    assert kl[0].min() > 1.2 * kl[1].max() and kl[0].min() > 6
    for seed in SEEDS:
        difference = by_film(runs, without, seed) - by_film(runs, with_clip, seed)
        assert difference.mean() < 0
        half = 1.96 * difference.std().item() / math.sqrt(len(difference))
        assert difference.mean().item() + half < 0
    assert column(runs, without, "distinct_2").max() < 0.4
    assert column(runs, without, "length").max() < 6.5
    assert mean(runs, without, "gold") > min(x for v in COMPLETE for x in column(runs, v, "gold"))
    samples = column(runs, without, "samples").iloc[0].values()
    assert list(samples)[:3] == ["A very funny movie."] * 3


def test_kl_is_higher_without_the_clip_and_with_lambda_1(runs):
    complete = max(x for v in COMPLETE for x in column(runs, v, "kl"))
    for variant in ("no clip", "lambda 1"):
        assert column(runs, variant, "kl").min() > complete


def test_a_smaller_kl_coefficient_uses_4_nats_better(runs):
    for seed in SEEDS:
        eight, two = (by_film(runs, v, seed) for v in ("eight epochs", "kl_coef 0.25"))
        assert two.mean() > eight.mean()
    assert abs(mean(runs, "kl_coef 0.25", "kl") - mean(runs, "eight epochs", "kl")) < 0.3


def test_the_critic_learns_within_two_steps_with_and_without_its_clip():
    logged = experiments.results("ablations_history")
    for variant in ("as it is", "no value clip"):
        rows = logged[logged.variant == variant]
        assert rows[rows.step == 0]["explained_variance"].max() < 0
        assert rows[rows.step == 2]["explained_variance"].min() > 0.35


def test_the_gradient_is_longer_than_1_at_every_step():
    logged = experiments.results("ablations_history")
    assert logged[logged.variant.isin(["as it is", "no whitening"])]["grad_norm"].min() > 1


# ---- every number of the prose


def test_the_numbers_of_the_prose(runs, tour):
    with lesson("06b") as said:
        a_healthy_run(said, tour)
        a_run_that_goes_wrong(said, runs)
        what_ppo_maximises(said)
        at_equal_kl(said, runs)
        parts_of_ppo(said)
        exercises(said, runs)
        sick_run(said, tour)
        further(said, runs, tour)


def a_healthy_run(said, tour):
    """Section 1."""
    config, plain = loops.PPOConfig(), one_batch_config({"seed": 0})
    said("so that you do not have to wait: each is", config.steps, config.batch_size)
    assert sorted(tour.seed.unique()) == list(SEEDS)
    lower, higher = plain.actor.lr, config.actor.lr
    times = plain.critic.lr / lower, config.critic.lr / higher
    said("| learning rate of the actor |", lower, higher, 5, 0)
    assert times[0] == pytest.approx(times[1]) == pytest.approx(3)
    said("and then falls towards", 0, rates()[-1] < 0.06 * rates().max())
    said("| learning rate of the critic |", plain.critic.lr, config.critic.lr)
    said("which rises and falls in the same way", config.critic.schedule == "linear")
    said("| gradient |", config.actor.max_grad_norm)
    said("| critic's loss |", config.value_clip_eps)
    said("| advantages of a batch |", 0, 1)
    said("| response without an end token (EOS) |", config.missing_eos_penalty)
    by_step = tour.groupby("step").mean(numeric_only=True)
    said("| **score** |", round(by_step.score[0]), tour[tour.step > 15].score.mean())
    said("| **gold** |", -4, 4)
    said("| **kl** |", tour[tour.step > 7].kl.mean())
    entropy = by_step.entropy
    said("Here it stays between", 2.1, 2.6, entropy.min() > 2.1 and entropy.max() < 2.6)
    peaks = tour.groupby("seed").clip_fraction.max()
    said("It peaks at", round(peaks.min(), 2) * 100, peaks.max(), by_step.clip_fraction[23])
    explained = by_step.explained_variance
    said("says how well the critic predicts its targets", 1, 0, explained[0] < 0)
    said("It starts near", 0)
    said("It reaches", explained[1], explained[2], explained[23])
    lesson_05 = (NOTEBOOKS / "src" / "05_advantages_gae.py").read_text("utf-8")
    fresh = re.search(r"The (0\.\d\d) is over all positions", lesson_05)[1]
    said("returns $G_t$, and found", float(fresh))


def a_run_that_goes_wrong(said, runs):
    """Sections 2 and 3."""
    logged = experiments.results("ablations_history")
    unclipped = logged[logged.variant == "eight epochs, no clip"]
    ends = unclipped[unclipped.step == 23].explained_variance.mean()
    said("| explained variance | rises", 0, ends)
    eight = logged[logged.variant == "eight epochs"]
    share = eight.groupby("step").clip_fraction.mean()
    sick = unclipped.groupby("step").mean(numeric_only=True)
    said("The KL climbs above", 10, sick.kl.min() < 10 < sick.kl.max())
    said("The responses shrink to", sick.length[23], sick.entropy[0], sick.entropy[23])
    wide = loops.PPOConfig(**NO_CLIP)
    ends = math.log10(1 - wide.clip_eps), math.log10(wide.clip_eps_high)
    assert ends == pytest.approx((-6, 6)) and 0 < unclipped.clip_fraction.max()
    said("- The clip fraction is near", 0, unclipped.clip_fraction.max() < 0.01)
    assert eight.groupby("step").kl.mean().max() < 5
    said("(orange), eight epochs do not collapse", eight[eight.step == 23].length.min() > 8)
    shrink = eight[eight.step.isin([0, 23])].groupby("step").length.mean()
    said("their responses shrink from", *shrink, share.max())
    last = logged[logged.step == 23].groupby("variant")[["score", "gold"]].mean()
    for variant in ("eight epochs", "eight epochs, no clip"):
        assert (last.loc[variant] > 0.8 * last.loc["as it is"]).all()
    said("Score and gold look fine at the end of all three")
    films = len(runs[runs.experiment == "ablations"].gold_by_prompt.iloc[0])
    assert films == len(set(tasks.reviews.eval_prompts("test")))
    said("These are the first ones of seed", 0, films)
    each = int(re.search(r"samples_per_prompt=(\d+)", inspect.getsource(practice.judged))[1])
    assert each == 4
    said("we measured gold on four responses to each test film")
    gold, kl = final(runs)
    for name, with_clip, without in (
        ("eight", "eight epochs", "eight epochs, no clip"),
        ("two", "as it is", "no clip"),
    ):
        said(f"| {name} epochs | gold", *(x[v] for v in (with_clip, without) for x in (gold, kl)))
        assert kl[without] > kl[with_clip]
    said("the run without the clip even has more gold", gold["no clip"] > gold["as it is"])


def trained_for(history, variant, kl_coef):
    """Score, KL and score - kl_coef * KL: means over the last eight steps and the seeds."""
    rows = history[(history.variant == variant) & (history.step > 15)]
    return rows.score.mean(), rows.kl.mean(), (rows.score - kl_coef * rows.kl).mean()


def what_ppo_maximises(said):
    """Section 3."""
    history = experiments.results("ablations_history")
    beta = loops.PPOConfig().kl.kl_coef
    start = history[history.step == 0]
    said("Before the training this number is about", 0, abs(start.score.mean()) < 0.05)
    said("| run | score | KL | score −", beta)
    for variant in ("as it is", "no clip", "eight epochs", "eight epochs, no clip"):
        said(f"| **{variant}** |", *trained_for(history, variant, beta))
    for seed in SEEDS:
        own = history[history.seed == seed]
        usual, eight = (trained_for(own, v, beta)[2] for v in ("as it is", "eight epochs"))
        assert eight < -0.5 and usual > 0
    _, kl, ends = trained_for(experiments.results("leash_history"), "kl_coef 2", 2)
    said("with its coefficient", 2, 2, ends, kl)


def final(runs):
    """Mean gold and KL of each variant, after the training."""
    means = runs.groupby("variant")[["gold", "kl"]].mean()
    return means.gold, means.kl


OTHERS = ("as it is", "one epoch", "no clip", "eight epochs", "eight epochs, no clip")


def at_equal_kl(said, runs):
    """Section 4."""
    gold, kl = final(runs)
    said("eight epochs end with more gold than two:", gold["eight epochs"], gold["as it is"])
    said("Look at the KL as well. It is", kl["eight epochs"], kl["as it is"])
    coefficients = [float(variant.removeprefix("kl_coef ")) for variant in LINE]
    said("| KL coefficient, two epochs |", *coefficients)
    said("| its KL |", *(kl[v] for v in LINE))
    said("| its gold |", *(gold[v] for v in LINE))
    assert gold[list(LINE)].is_monotonic_increasing and kl[list(LINE)].is_monotonic_increasing
    both = {"leash": EXPERIMENTS["leash"]["kl_coef 0.5"], "ablations": {}}
    assert len({ppo_config(s | {"seed": 0}) for s in both.values()}) == 1
    said(
        "The usual coefficient is",
        loops.PPOConfig().kl.kl_coef,
        gold["as it is"],
        gold["kl_coef 0.5"],
    )
    as_far = abs(kl["kl_coef 0.25"] / kl["eight epochs"] - 1) < 0.1
    numbers = gold["kl_coef 0.25"], gold["eight epochs"]
    said("The coefficient 0.25 goes as far as eight epochs", as_far and numbers[0] > numbers[1])
    said("The further, the more gold. The coefficient", 0.25, *numbers)
    said("Without any penalty, the KL on the test films is", kl["kl_coef 0"], gold["kl_coef 0"])
    assert gold["kl_coef 0"] < gold["kl_coef 0.1"]
    leads = experiments.above_curve(runs, "gold", LINE, OTHERS)
    for name, lead in leads.iterrows():
        said(f"| *{name}* |", kl[name], lead.difference, lead.low, lead.high)
    said("the reviews become alike (already at", kl["kl_coef 0.1"])
    undecided = leads.low["no clip"] < 0 < leads.high["no clip"]
    said("but its interval contains", 0, undecided)
    said("The interval says how sure the difference is:", 95, 100)
    said("do not pay here: eight epochs lie", -leads.difference["eight epochs"])
    better = gold["eight epochs"] > gold["eight epochs, no clip"]
    better = better and kl["eight epochs"] < kl["eight epochs, no clip"]
    said("With eight epochs, the run with the clip has more gold", better)
    each = max(leads_by_seed(runs, "no clip")) < 0
    said("Without it, the run is", -leads.difference["no clip"], each)
    said("is 0.14 lower: by", *sorted(-x for x in leads_by_seed(runs, "no clip")))
    said("But the interval contains", 0, undecided)


def test_with_eight_epochs_the_clip_has_more_gold_and_a_smaller_kl_on_each_seed(runs):
    with_clip, without = (column(runs, f"eight epochs{end}", "gold") for end in ("", ", no clip"))
    assert with_clip.min() > without.max()
    with_clip, without = (column(runs, f"eight epochs{end}", "kl") for end in ("", ", no clip"))
    assert with_clip.max() < without.min()


def test_at_equal_kl_eight_epochs_have_less_gold_and_one_epoch_as_much(runs):
    leads = experiments.above_curve(runs, "gold", LINE, OTHERS)
    assert leads.high[["eight epochs", "eight epochs, no clip"]].max() < -0.05
    for name in ("eight epochs", "eight epochs, no clip"):
        assert max(leads_by_seed(runs, name)) < 0
    for name in ("as it is", "one epoch"):
        assert leads.low[name] < 0 < leads.high[name]
    assert -0.25 < leads.difference["no clip"] < 0 < leads.high["no clip"]
    assert max(leads_by_seed(runs, "no clip")) < 0


def exercises(said, runs):
    leash = experiments.results("leash_history")
    logged = experiments.results("ablations_history")
    gold, kl = final(runs)
    # 1
    said("(a) The explained variance stays near", 0)
    said("(c) The KL and the clip fraction are", 0)
    # 2
    said("policies (seed", 0)
    said("| *american psycho", 2)
    drawn = list(LETTERS)
    said("so the KL penalty is", 0, leash[leash.step == 0].kl.abs().max() < 1e-3)
    full, fifth, _ = first_step_of_the_loop()
    plain_share = experiments.results("one_batch_history").clip_fraction
    assert abs(fifth - plain_share[0]) < 0.005
    said("the loop of lesson 06 clips", fifth, 5, 0.2 < full < 0.3)
    unnamed = leash[leash.variant.isin(drawn) & (leash.step == 0)]
    first_clip = unnamed.clip_fraction.groupby(unnamed.seed)
    said("of the first training step is the same", (first_clip.nunique() == 1).all())
    said("of the first training step is the same", unnamed.clip_fraction.mean())
    said("So it is the KL coefficient:", *(float(v.split()[-1]) for v in drawn))
    second = leash[leash.variant.isin(drawn) & (leash.step == 1)].groupby("seed").kl
    said("The KL of the second batch tells the same", (second.max() - second.min()).max() < 1e-4)
    share = unnamed_shares(leash)
    weak = share["B"].loc[4:9]
    said("gives a weak warning at most: from training step", 4, 9, weak.mean())
    said("it stays near", abs(weak - 0.1).max() < 0.015, share["B"].max() < 0.12)
    others = [share[name] for name in "AC"]
    first = {round(x[4], 2) for x in others}
    said("while in A and C it falls from", *first, 0.05, all(x[9] < 0.05 for x in others))
    unpenalised = leash[leash.variant == "kl_coef 0"].groupby("step")[["kl", "entropy"]]
    said("The KL grows to about", *unpenalised.mean().iloc[-1])
    mild = leash[leash.variant == "kl_coef 0.25"].groupby("step").mean(numeric_only=True)
    paired = [x for name in ("length", "entropy") for x in mild[name].iloc[[0, -1]]]
    late = mild.kl.iloc[-8:]
    said("In C the length falls from", *paired, late.mean())
    eight = logged[logged.variant == "eight epochs"].groupby("step").mean(numeric_only=True)
    close = abs(eight.entropy.iloc[-1] - mild.entropy.iloc[-1]) < 0.15
    said("So do the runs with eight epochs", close and abs(eight.kl.iloc[-1] - late.mean()) < 0.5)
    most = mild.clip_fraction.max(), eight.clip_fraction.max()
    said("Only the clip fraction differs: at most", *most)
    said("C has much more gold on test films,", gold["kl_coef 0.25"], gold["kl_coef 2"])
    # 3
    for name, ends, at, of_run in (("P", (1, 2), 1.43, 1.40), ("Q", (3, 4), 6.1, 2.20)):
        left, right = ((kl[LINE[i]], gold[LINE[i]]) for i in ends)
        height, above = (left[1] + right[1]) / 2, of_run - (left[1] + right[1]) / 2
        assert math.sqrt(left[0] * right[0]) == pytest.approx(at, rel=0.01)
        said(f"| {name} |", at, of_run)
        side = "above" if above > 0 else "below"
        said(f"- **{name} is {side}.**", left[1], right[1], height, abs(above))
    said("| R |", 20, 2.95)
    said("The line ends at", kl[LINE[-1]], 2.95 > gold[list(LINE)].max())
    (no_clip,) = experiments.above_curve(runs, "gold", LINE, "no clip").itertuples()
    said("of *no clip* is", no_clip.high - no_clip.low)


def sick_run(said, tour):
    """Exercise 4: the table of the solutions, and question 2."""
    cells = nbformat.read(NOTEBOOKS / "solutions" / "06b_reading_a_run.ipynb", 4).cells
    (cell,) = [c for c in cells if "log = loops.train_ppo" in c.source]
    lines = cell.outputs[-1]["data"]["text/plain"].splitlines()
    assert lines[0].split() == ["score", "kl", "length", "entropy", "clip_fraction", "\\"]
    rows = [[float(x) for x in line.split()[-5:]] for line in lines[2:8]]
    healthy, sick = rows[:3], rows[3:]
    recorded = experiments.results("one_batch_history")
    assert [row[4] for row in healthy] == [round(x, 2) for x in recorded.clip_fraction]
    said("tens of percent, where the unchanged loop has", recorded.clip_fraction.max())
    assert min(row[4] for row in sick) > 0.2
    said("The KL jumps above", 10, sick[1][1] > 10)
    said("The entropy rises first", sick[1][3] > healthy[1][3] + 0.3)
    said("the reviews shrink to about", sick[2][2])
    said("after the first batch it is even higher", sick[1][0] > healthy[1][0])
    leash = experiments.results("leash_history")
    free = leash[(leash.variant == "kl_coef 0") & (leash.step == 3)].kl.mean()
    said("Some settings do no harm so soon. With a KL coefficient of", 0)
    said("the KL of run B is still below", 2, free < 2)
    said("<summary>2. The clip fraction is", 0)
    said("so that every ratio is", 1)
    said("from the others: it stays at", 0)


def further(said, runs, tour):
    """Going further."""
    logged = experiments.results("ablations_history")
    gold, kl = final(runs)
    config = loops.PPOConfig()
    varied = runs.groupby("variant").distinct_2.mean()
    said("a matter of distance? *Two* epochs with the coefficient", 0.1)
    said("go further than the collapsed runs, to", kl["kl_coef 0.1"], gold["kl_coef 0.1"])
    many = inspect.signature(evaluate.distinct_n).parameters["budget"].default
    said("the share of different pairs among", many)
    said("of neighbouring words. It is", varied["kl_coef 0.1"], varied["eight epochs, no clip"])
    assert kl["kl_coef 0.1"] > kl["eight epochs, no clip"]
    explained = gold["kl_coef 0.1"] > 1.5 * gold["eight epochs, no clip"]
    said("It does not explain the lost gold", explained)
    for variant in ("kl_coef 0.25", "eight epochs"):  # shorter and less varied, as they say
        assert varied[variant] < varied["as it is"] - 0.1
        assert mean(runs, variant, "length") < mean(runs, "as it is", "length") - 2
    second = logged[logged.step == 1].groupby("variant").kl.mean()
    said(
        "The collapse begins with the first batch: it moves the policy by",
        second["eight epochs, no clip"],
        second["eight epochs"],
    )
    said("- The coefficient", 0.25)  # on each of the three seeds: tested above
    eight = logged[logged.variant == "eight epochs"].groupby("step").clip_fraction.mean()
    said("Eight epochs with the clip reach", eight.max(), eight.idxmax())
    said("and still have a high gold", gold["eight epochs"] > gold["as it is"])
    ends = logged[logged.step == 23].groupby("variant").explained_variance.mean()
    which = ends["no value clip"], ends["as it is"]
    said("Without it, the explained variance in the last training step is", *which)
    last = experiments.results("tour_history")
    again = last[(last.stage == "ppo") & (last.step == 23)].explained_variance.mean()
    said("have the settings of those with", which[1], again, again - which[1] > which[1] - which[0])
    (lead,) = experiments.above_curve(runs, "gold", LINE, "no whitening").difference
    said("- *Whitening.* Without it, the gold is", gold["no whitening"], gold["as it is"], -lead)
    said("because all gradients of the actor are longer than", 1, config.actor.max_grad_norm)
    said("has no end. Its score is lowered by", config.missing_eos_penalty)
    plain_share = experiments.results("one_batch_history").clip_fraction
    clipped_late = tour[tour.step == LATE].clip_fraction.mean()
    said("In training step", LATE, rates()[LATE])
    same = abs(clipped_late - plain_share[2]) < 0.001
    said("The clip fraction of this step is", clipped_late, same)
    said("In the very first training step it is", plain_share[0])
    said("In the very first training step it is", tour[tour.step == 0].clip_fraction.mean())
    explained = tour.groupby("step").explained_variance.mean()
    said("in the runs of section 1 its explained variance is", explained[1])
    films = len(runs.gold_by_prompt.iloc[0])
    said("We have three seeds and", films)
    said("This gives", len(SEEDS), films)
    said("TRL and DeepSpeed-Chat clip the value at", 0.2, config.value_clip_eps)


# ---- section 5: from REINFORCE to PPO, one part after the other


def parts_of_ppo(said):
    """Section 5."""
    records = experiments.results("parts", "leash")
    usual = loops.PPOConfig()
    updates = usual.epochs * usual.batch_size // usual.minibatch_size
    for name in PARTS:
        config = group_run_config(EXPERIMENTS["parts"][name] | {"seed": 0})
        if name.startswith("REINFORCE"):
            said(f"| **{name}** | no | |", 1, config.optimiser.lr)
        else:
            said(f"| **{name}** | yes |", config.lam, config.epochs, config.actor.lr)
    said("| **PPO**, the line of section 4 | yes |", usual.lam, updates, usual.actor.lr)
    said("The first seven have the KL coefficient", usual.kl.kl_coef, len(PARTS) == 7)
    leads = experiments.above_curve(records, "gold", LINE, PARTS)
    for part, lead in leads.iterrows():
        length = mean(records, part, "length")
        said(f"| {part} |", lead.difference, lead.low, lead.high, length)
    kl, gold = (records.groupby("variant")[name].mean() for name in ("kl", "gold"))
    alone = leads_by_seed(records, "with GAE")
    first = [min(records[(records.seed == s) & records.variant.isin(LINE)].kl) for s in SEEDS]
    left = [s for s in SEEDS if column(records, "with GAE", "kl").tolist()[s] < first[s]]
    said("with the end of the line, and has", max(alone), left == [alone.index(max(alone))])
    for size, pair in zip(
        ("small", "double", "larger"), zip(*STEPS.values(), strict=True), strict=True
    ):
        said(f"| {size} |", *(x[name] for name in pair for x in (kl, gold)))
        assert kl[pair[1]] < 0.75 * kl[pair[0]]
    small, double, _ = experiments.above_curve(
        records, "gold", STEPS["with GAE"], STEPS["REINFORCE"]
    ).itertuples()
    said("REINFORCE minus this line is", small.difference, small.low, small.high)
    said("with small steps, and", double.difference, double.low, double.high)
    as_far = abs(kl["with a critic"] - kl["REINFORCE"]) < 0.1
    said("the KL is 1.5, as far", as_far)
    said("(With a critic and", kl["with a critic"])
    assert small.low < 0 < small.high and double.low < 0 < double.high
    beyond = kl[STEPS["REINFORCE"][2]] > 1.1 * kl[STEPS["with GAE"][2]]
    said("REINFORCE goes beyond the end of the line", beyond)
    luck_of_a_batch(said, records, kl, gold)
    trap = [-leads.difference[f"{name}, double steps"] for name in ("REINFORCE", "with GAE")]
    said("With double steps, REINFORCE is", *trap, trap[0] - trap[1])
    said("No. The first run is at", *(kl[f"{n}, double steps"] for n in ("REINFORCE", "with GAE")))
    for names in STEPS.values():  # the distance to PPO's line grows with the KL
        assert list(leads.difference[names]) == sorted(leads.difference[names], reverse=True)
    history = experiments.results("parts_history", "ablations_history")
    later = history[history.step > 0].groupby(["variant", "seed"]).score.mean()
    kl = experiments.results("parts", "ablations").groupby("variant").kl.mean()
    for row, v in (
        ("| *REINFORCE* |", "REINFORCE"),
        ("| *with GAE* |", "with GAE"),
        ("| *PPO*: four updates of each batch |", "as it is"),
        ("| *with GAE, double steps* |", "with GAE, double steps"),
        ("| *REINFORCE, double steps* |", "REINFORCE, double steps"),
    ):
        said(row, later[v].min(), later[v].max(), kl[v])
    said("but pays with a KL of", kl["REINFORCE, double steps"])
    assert later["REINFORCE, double steps"].mean() > later["as it is"].mean()
    assert later["as it is"].min() > later[["REINFORCE", "with GAE"]].max() + 0.15
    assert 0 < later["as it is"].mean() - later["with GAE, double steps"].mean() < 0.1
    ends = abs(kl["with GAE, double steps"] - kl["as it is"]) < 0.1
    said(
        "It even ends at the same KL as PPO, and only",
        -leads.difference["with GAE, double steps"],
        ends,
    )
    leash = experiments.results("leash_history")
    free_kl = leash[(leash.variant == "kl_coef 0") & (leash.step == 23)].kl.mean()
    said("without it the KL of the last batch is about", free_kl)


def luck_of_a_batch(said, records, kl, gold):
    """Section 5: larger steps with larger batches."""
    usual = loops.PPOConfig().batch_size
    config = group_run_config(
        EXPERIMENTS["parts"][f"with GAE, larger steps{BATCHES}"] | {"seed": 0}
    )
    said("We repeated the runs with larger steps, now with", config.batch_size, usual)
    said("| runs |", usual, config.batch_size)
    for name in STEPS:
        few, many = f"{name}, larger steps", f"{name}, larger steps{BATCHES}"
        said(f"| *{few}* |", *(x[v] for v in (few, many) for x in (kl, gold)))
        assert kl[many] < 0.75 * kl[few] and 0 < gold[many] - gold[few] < 0.1
    many = [f"{name}, larger steps{BATCHES}" for name in STEPS]
    own = [
        experiments.above_curve(records, "gold", STEPS[name], [run]).iloc[0]
        for name, run in zip(STEPS, many, strict=True)
    ]
    ends = [x for lead in own for x in (lead.difference, lead.low, lead.high)]
    said("end with as much gold. At equal KL, they have", *ends)
    said("more than their own lines with", usual)
    ahead = all(
        min(leads_by_seed(records, run, STEPS[name])) > 0
        for name, run in zip(STEPS, many, strict=True)
    )
    undecided = all(lead.low < 0 < lead.high for lead in own)
    said("All six runs have more, but both intervals contain", 0, ahead and undecided)
    below = experiments.above_curve(records, "gold", LINE, many)
    behind = all(max(leads_by_seed(records, run)) < 0 for run in many)
    numbers = [x for lead in (-below).itertuples() for x in (lead.difference, lead.high, lead.low)]
    said("all six runs still lie below PPO's line, by", *numbers, behind)
    said("cost four times", config.batch_size == 4 * usual)


STEPS = {
    name: [name, f"{name}, double steps", f"{name}, larger steps"]
    for name in ("REINFORCE", "with GAE")
}


@pytest.mark.parametrize("part", PARTS)
def test_only_these_steps_lead_away_from_ppos_line(part, runs):
    leads = leads_by_seed(runs, part)
    mean_lead, of_all = sum(leads) / 3, experiments.above_curve(runs, "gold", LINE, part)
    assert of_all.difference.item() == pytest.approx(mean_lead, abs=1e-5)
    if part.endswith("steps") and part != "with GAE, double steps":
        assert by_student(torch.tensor(leads))[1] < 0 and of_all.high.item() < 0 and max(leads) < 0
    else:
        assert of_all.low.item() < 0 < of_all.high.item() and abs(mean_lead) < 0.15


def test_what_the_parts_of_ppo_are_compared_with():
    """The PPO runs differ from the line by their part alone.

    REINFORCE has the line's samples, optimiser and KL coefficient. But it takes the KL of the whole
    response off the score, and does not whiten, as section 5 says.
    """
    line = ppo_config(EXPERIMENTS["leash"]["kl_coef 0.5"] | {"seed": 0})
    one_update = {"epochs": 1, "minibatch_size": line.batch_size}
    configs = {v: group_run_config(s | {"seed": 0}) for v, s in EXPERIMENTS["parts"].items()}
    assert configs["with GAE"] == replace(line, **one_update)
    assert configs["with a critic"] == replace(line, lam=1.0, **one_update)
    four_times = replace(line.actor, lr=4 * line.actor.lr)
    assert configs["with GAE, larger steps"] == replace(line, **one_update, actor=four_times)
    twice = replace(line.actor, lr=2 * line.actor.lr)
    assert configs["with GAE, double steps"] == replace(line, **one_update, actor=twice)
    plain = configs["REINFORCE"]
    assert plain.optimiser == line.actor
    for size, optimiser in (("double", twice), ("larger", four_times)):
        assert configs[f"REINFORCE, {size} steps"] == replace(plain, optimiser=optimiser)
    assert plain.algorithm.kl == "score" and plain.algorithm.scale == "none" and line.whiten
    many = 4 * line.batch_size
    large = {"batch_size": many, "minibatch_size": many}
    gae, reinforce = ("with GAE, larger steps", "REINFORCE, larger steps")
    assert configs[gae + BATCHES] == replace(configs[gae], **large)
    large = {"prompts_per_step": many, "minibatch_size": many}
    assert configs[reinforce + BATCHES] == replace(configs[reinforce], **large)
    for name in ("steps", "kl", "sampling", "missing_eos_penalty"):
        assert getattr(plain, name) == getattr(line, name)
    assert plain.prompts_per_step * plain.group_size == line.batch_size


@pytest.mark.parametrize("name", ["REINFORCE", "with GAE"])
def test_larger_batches_make_larger_steps_less_costly_on_each_seed(name, runs):
    few, many = f"{name}, larger steps", f"{name}, larger steps{BATCHES}"
    assert column(runs, many, "kl").max() < column(runs, few, "kl").min() - 0.5
    assert min(leads_by_seed(runs, many, line=STEPS[name])) > 0
    assert max(leads_by_seed(runs, many)) < 0


def leads_by_seed(runs, name, line=LINE):
    """Gold above the line, each seed on its own. Left of the line it is level."""
    points, leads = list(line), []
    for seed in SEEDS:
        run = runs[runs.seed == seed].set_index("variant")
        line = run.loc[points].sort_values("kl")
        equal_kl = np.interp(np.log(run.kl[name]), np.log(line.kl), line.gold)
        leads.append(run.gold[name] - equal_kl)
    return leads


def unnamed_shares(leash):
    """The clip fraction at each step of the runs A, B and C, a mean over the seeds."""
    return {
        name: leash[leash.variant == variant].groupby("step").clip_fraction.mean()
        for variant, name in LETTERS.items()
    }
