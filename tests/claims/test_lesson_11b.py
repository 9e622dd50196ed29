"""Lesson 11b, five objections to GRPO: every number of its prose, and every claim about a run."""

import inspect
import math

import nbformat
import numpy as np
import pytest
import scipy.stats
import torch

from minirlhf import core, experiments, loops, models
from minirlhf.classroom import check
from minirlhf.classroom.course import NOTEBOOKS
from minirlhf.classroom.exercise import LONGEST
from minirlhf.classroom.lessons.lesson_11b import (
    COMPARISONS,
    DIFFERENCES,
    FACTORS,
    OVERLOOKED,
)
from minirlhf.evaluate import paired_difference
from minirlhf.experiments import (
    difference_over_prompts,
    difference_over_prompts_and_seeds,
    mean_over_seeds,
)
from tests.claims.prose import Said, lesson

SEEDS = range(3)
GROUPS = ["rloo", "dr-grpo", "dapo", "gspo", "cispo"]
SINGLE = ["reinforce", "remax", "reinforce++", "reinforce++-baseline"]
PPOS = ["ppo", "ppo, critic trained first", "ppo, 8 responses a prompt"]
SHOWN = [*GROUPS, *SINGLE, *PPOS]
FOUR = ["grpo, 4 epochs", "gspo, 4 epochs", "cispo, 4 epochs"]
CLIP = {"clip_eps": 3e-4, "clip_eps_high": 4e-4}  # of GSPO
REPAIRS = ["no std", "a floor of 0.1", "groups dropped"]
MATTERS = 0.02  # a difference of pass@1: section 3b


@pytest.fixture(scope="module")
def family():
    return experiments.results("family")


@pytest.fixture(scope="module")
def jitter():
    return experiments.results("jitter")


@pytest.fixture(scope="module")
def hacking():
    return experiments.results("hacking")


@pytest.fixture(scope="module")
def family_history():
    return experiments.results("family_history")


def column(runs, variant, name):
    """The values of the three seeds, in the order of the seeds."""
    values = runs[runs.variant == variant].sort_values("seed")[name].tolist()
    assert len(values) == len(SEEDS)
    return values


def mean(runs, variant, name):
    return sum(column(runs, variant, name)) / 3


def seed_by_seed(runs, variant, other, name="pass_1"):
    """(difference, low, high) of each seed, over prompts only."""
    pairs = zip(*(column(runs, v, f"{name}_by_prompt") for v in (variant, other)), strict=True)
    return [paired_difference(a, b) for a, b in pairs]


def row(table, name):
    return tuple(table.loc[name, ["difference", "low", "high"]])


def without_zero(table):
    return set(table.index[(table.low > 0) | (table.high < 0)])


def paired(runs, variant, other, name="pass_1"):
    """The difference of each seed."""
    pairs = zip(*(column(runs, v, name) for v in (variant, other)), strict=True)
    return [a - b for a, b in pairs]


def over_seeds(differences):
    """(mean, standard deviation, standard error, half width, low, high), as in section 3a."""
    x = torch.tensor(differences, dtype=torch.float64)
    error = x.std().item() / len(x) ** 0.5
    half = FACTORS[len(x)] * error
    mean = x.mean().item()
    return mean, x.std().item(), error, half, mean - half, mean + half


def verdict(low, high):
    """The rule of section 3b."""
    if low > 0 or high < 0:
        return "ahead" if low > 0 else "behind"
    return "equal" if -MATTERS < low and high < MATTERS else "undecided"


def verdicts(table):
    return {name: verdict(*row(table, name)[1:]) for name in table.index}


def against(runs, base, variant, name="pass_1"):
    """(difference, low, high) over prompts and seeds."""
    return row(difference_over_prompts_and_seeds(runs, name, base, variant), variant)


# ---- 1: the cost of sampling


def parts(together, critic, responses=1.0):
    """Seconds of the parts of a step at 70B on 64 GPUs, as in the lesson."""
    plan = models.Plan(
        prompts=int(128 * responses),
        group_size=8,
        bf16=True,
        decode_batch=together,
        critic=critic,
    )
    assert plan.prompt_tokens == 512 and plan.response_tokens == 1024
    return models.step_seconds(models.H100.times(64), plan, models.LLAMA_70B)


def seconds(*plan):
    return sum(parts(*plan).values())


def sampling_per_training(together, critic):
    part = parts(together, critic)
    return part["sampling"] / part["training"]


def test_sampling_takes_as_long_as_training_at_one_decode_batch_only():
    for critic, place in (("separate", 23), ("none", 49)):
        ratios = {n: sampling_per_training(n, critic) for n in range(4, 129)}
        assert abs(ratios[place] - 1) < 0.01
        assert all(ratios[n] > 1.03 for n in range(4, place))
        assert all(ratios[n] < 1 for n in range(place + 1, 129))


def test_grpo_with_as_many_responses_is_faster_everywhere():
    for n in (8, 16, 24, 32, 49, 64, 128, 256, 512, 1024):
        assert seconds(n, "none") < seconds(n, "separate")


def test_half_as_many_responses_again_spend_about_what_the_critic_cost():
    for n in (16, 24, 49, 64, 256):
        ppo, more = seconds(n, "separate"), seconds(n, "none", 1.5)
        assert ppo < 1.17 * more and more < 1.17 * ppo
        assert (more < ppo) == (n > 49)


def test_twice_the_responses_cost_more_than_the_critic_everywhere():
    for n in (8, 16, 32, 64, 128, 256, 512, 1024, 2048):
        assert seconds(n, "none", 2) > seconds(n, "separate")


# ---- 2: the system


def held(critic="none", reward_model=True):
    plan = models.Plan(
        prompts=128, group_size=8, bf16=True, critic=critic, reward_model=reward_model
    )
    return models.four_models(plan, models.LLAMA_70B)


def test_the_critic_takes_more_memory_than_the_reward_model():
    ppo, grpo, rule = (
        models.peak_bytes(held(*given)) for given in (("separate",), (), ("none", False))
    )
    assert 1.7 < ppo / grpo < 1.8 and 1.0 < grpo / rule < 1.15


def test_a_trained_model_needs_eight_times_the_memory_of_a_frozen_one():
    table = held("separate")
    kept = {n: sum(r[k] for k in ("weights", "gradients", "optimiser")) for n, r in table.items()}
    assert kept["actor"] == 8 * kept["reference"]
    assert kept["critic"] == pytest.approx(8 * kept["reward"], rel=1e-6)
    assert [n for n, r in held().items() if sum(r.values())] == ["actor", "reference", "reward"]


def code_lines(function):
    lines = (line.strip() for line in inspect.getsource(function).splitlines())
    return sum(bool(line) and not line.startswith("#") for line in lines)


def test_the_loop_of_the_family_is_longer_than_that_of_ppo():
    from minirlhf.loops import group, ppo

    assert code_lines(group.train_group) + code_lines(group._refilled) > code_lines(ppo.train_ppo)


# ---- 3: not better than PPO


def test_pass_1_and_gold_are_compared_over_three_seeds(family, jitter, hacking):
    for runs, prompts, columns in (
        (family[family.variant.isin(["start", "grpo", *SHOWN])], 400, "pass_1"),
        (jitter, 400, "pass_1"),
        (hacking, 76, "gold"),
    ):
        assert runs.groupby("variant").seed.apply(sorted).map(lambda s: s == [0, 1, 2]).all()
        assert (runs[f"{columns}_by_prompt"].map(len) == prompts).all()


def test_only_reinforce_and_its_whitened_form_differ_from_grpo(family):
    table = difference_over_prompts_and_seeds(family, "pass_1", "grpo", SHOWN)
    assert without_zero(table) == {"reinforce", "reinforce++"}
    assert (table.loc[["reinforce", "reinforce++"], "low"] > 0.015).all()


def test_over_prompts_alone_ppo_dapo_and_remax_are_ahead_of_grpo(family):
    table = difference_over_prompts(family, "pass_1", "grpo", SHOWN)
    ahead = {"ppo", "dapo", "remax", "reinforce", "reinforce++"}
    assert without_zero(table) == ahead | {"ppo, 8 responses a prompt"}
    assert (table.loc[sorted(ahead), "low"] > 0).all()
    assert table.loc["ppo", "high"] < 0.03


def test_the_factors_are_those_of_students_t():
    for seeds, factor in (FACTORS | {6: 2.57, 7: 2.45, 8: 2.36}).items():
        assert abs(scipy.stats.t.ppf(0.975, seeds - 1) - factor) < 0.006


def test_for_rloo_the_interval_by_hand_is_that_of_the_figure(family):
    *_, low, high = over_seeds(paired(family, "rloo", "grpo"))
    assert row(difference_over_prompts_and_seeds(family, "pass_1", "grpo", "rloo"), "rloo")[
        1:
    ] == pytest.approx((low, high), abs=2e-4)


def test_the_verdicts_against_grpo(family):
    table = difference_over_prompts_and_seeds(family, "pass_1", "grpo", SHOWN)
    found = verdicts(table)
    assert {v for v in found if found[v] == "ahead"} == {"reinforce", "reinforce++"}
    assert {v for v in found if found[v] == "equal"} == {"gspo", "cispo"}
    assert "behind" not in found.values()


def test_the_runs_of_a_seed_share_the_order_of_problems():
    from minirlhf.loops.common import shuffled_batches

    few, many = (torch.cat(list(shuffled_batches(10_000, size, 5, seed=1))) for size in (16, 128))
    assert torch.equal(few, many[: len(few)])


def test_remax_and_reinforce_differ_in_the_baseline_only():
    rows = [loops.FAMILY[name] for name in ("reinforce", "remax")]
    settings = [{k: v for k, v in vars(r).items() if k not in ("baseline", "source")} for r in rows]
    assert settings[0] == settings[1] and rows[0].baseline != rows[1].baseline


def test_reinforce_is_ahead_of_grpo_on_every_seed(family):
    for name in ("reinforce", "reinforce++"):
        assert all(low > 0 for _, low, _ in seed_by_seed(family, name, "grpo"))


def test_the_lowest_seed_of_reinforce_is_above_the_others(family):
    brief = family[~family.variant.str.contains("400 steps")]
    others = brief[~brief.variant.isin(["reinforce", "reinforce++", "start"])]
    assert min(column(family, "reinforce", "pass_1")) > others.pass_1.max()


def test_training_the_critic_first_helps_on_no_seed(family):
    by_seed = seed_by_seed(family, PPOS[1], "ppo")
    assert not any(low > 0 for _, low, _ in by_seed) and all(d < 0 for d, *_ in by_seed)
    low, high = row(difference_over_prompts_and_seeds(family, "pass_1", "ppo", PPOS[1]), PPOS[1])[
        1:
    ]
    assert low < 0 < high


def test_eight_responses_per_prompt_make_ppo_worse(family):
    assert all(high < 0 for *_, high in seed_by_seed(family, PPOS[2], "ppo"))
    table = difference_over_prompts_and_seeds(family, "pass_1", "ppo", PPOS[2])
    assert table.high.item() < 0


def test_gspo_has_the_gradient_of_grpo_where_all_ratios_are_1():
    torch.manual_seed(0)
    logprobs = (-torch.rand(4, 5, dtype=torch.float64)).requires_grad_(True)
    mask = torch.arange(5) < torch.tensor([[5], [3], [2], [4]])
    advantages = torch.randn(4, dtype=torch.float64)
    whole = core.sequence_clip(
        logprobs,
        logprobs.detach(),
        advantages,
        mask,
        by_length=True,
        clip_eps=3e-4,
        clip_eps_high=4e-4,
    )
    tokens = core.ppo_clip(logprobs, logprobs.detach(), advantages[:, None].expand(-1, 5), mask)
    gradients = [
        torch.autograd.grad(core.aggregate(losses, mask, how="sequence_mean"), logprobs)[0]
        for losses in (whole, tokens)
    ]
    assert torch.allclose(*gradients, atol=1e-12) and gradients[0].abs().sum() > 0.1


def test_grpo_and_gspo_reach_nearly_the_same_pass_1_in_one_epoch(family):
    pairs = zip(*(column(family, v, "pass_1") for v in ("grpo", "gspo")), strict=True)
    assert max(abs(a - b) for a, b in pairs) < 0.002


def variances(family):
    """(between problems, within a problem) of a score at the start."""
    p = torch.tensor(column(family, "start", "pass_1_by_prompt")).mean(0)
    within = (p * (1 - p)).mean().item()
    return p.var().item() - within / 48, within


def test_five_sixths_of_the_variance_lie_within_a_problem(family):
    between, within = variances(family)
    assert abs(within / (between + within) - 5 / 6) < 0.01


def test_a_step_of_ppo_takes_about_twice_the_arithmetic():
    def work(critic, prompts):
        plan = models.Plan(
            prompts=prompts,
            group_size=128 // prompts,
            prompt_tokens=10,
            response_tokens=10,
            critic=critic,
            reward_model=False,
        )
        policy, _ = models.load_policy("tiny-steps")
        machine = models.Machine(1.0, math.inf)
        return sum(models.step_seconds(machine, plan, models.Shape.of(policy)).values())

    assert 1.5 < work("separate", 128) / work("none", 16) < 2.5


def test_after_four_epochs_gspo_answers_best_and_cispo_worst(family):
    grpo, gspo, cispo = (column(family, name, "greedy") for name in FOUR)
    assert all(b > a > c for a, b, c in zip(grpo, gspo, cispo, strict=True))
    start = column(family, "start", "pass_16")
    assert max(column(family, FOUR[2], "pass_16")) < min(start)


# ---- 4: the division by the standard deviation


def test_exact_scores_are_ahead_of_noisy_ones_by_a_hundredth(jitter):
    for interval in (difference_over_prompts_and_seeds, difference_over_prompts):
        difference, low, high = row(interval(jitter, "pass_1", "grpo"), "grpo, exact scores")
        assert 0 < low and high < 0.02 and abs(difference - 0.01) < 0.005


def test_no_repair_differs_from_noisy_grpo(jitter):
    table = difference_over_prompts_and_seeds(jitter, "pass_1", "grpo")
    assert without_zero(table) == {"grpo, exact scores"}
    found = verdicts(table)
    assert [found[v] for v in REPAIRS] == ["equal", "equal", "undecided"]
    assert found["grpo, exact scores"] == "ahead"


def test_neither_exact_scores_nor_a_repair_differs_on_every_seed(jitter):
    for name in ("grpo, exact scores", *REPAIRS):
        by_seed = seed_by_seed(jitter, name, "grpo")
        assert not all(low > 0 for _, low, _ in by_seed)
        assert not all(high < 0 for *_, high in by_seed)


def equal_groups():
    """Share of groups without a difference in the first and in the last ten steps."""
    runs = experiments.results("jitter_history")
    runs = runs[runs.variant == "grpo, exact scores"]
    return [
        runs[runs.step.isin(steps)].frac_reward_zero_std.mean()
        for steps in (range(10), range(70, 80))
    ]


def preferred(gap=0.001, **scale):
    """Probability that a response begins with good: at the start, and after 30 updates."""
    world = core.World.from_reward(
        ("good", "bad", "."), 2, lambda words: 1 + gap * (words[:1] == ["good"])
    )
    assert len(world.labels) == 7
    begins = torch.tensor([label.startswith("good") for label in world.labels])
    logits = world.ref_logits
    rows, _ = world.groups(logits, 4)
    advantages = core.group_relative(world.rewards[rows], **scale)
    first = world.probs(logits)[begins].sum().item()
    for _ in range(30):
        logits = logits.detach().requires_grad_(True)
        chance = world.groups(logits, 4)[1]
        gains = (advantages * world.sequence_logprobs(logits)[rows]).mean(1)
        logits = logits + torch.autograd.grad((chance * gains).sum(), logits)[0]
    return first, world.probs(logits)[begins].sum().item()


# ---- 5: reward hacking


def test_ppo_takes_more_of_the_proxy_on_each_seed_and_its_gold_is_no_lower(hacking):
    ppo, grpo = (column(hacking, v, "proxy") for v in ("ppo", "grpo"))
    assert all(a > b for a, b in zip(ppo, grpo, strict=True))
    assert not any(high < 0 for *_, high in seed_by_seed(hacking, "ppo", "grpo", "gold"))
    for name in ("proxy", "gold"):
        difference, low, high = row(difference_over_prompts_and_seeds(hacking, name, "grpo"), "ppo")
        assert low < 0 < difference < high


def test_one_proxy_score_of_four_differs_from_that_of_grpo(hacking):
    table = difference_over_prompts_and_seeds(hacking, "proxy", "grpo")
    assert len(table) == 4 and without_zero(table) == {"rloo"}
    assert "rloo" not in without_zero(difference_over_prompts_and_seeds(hacking, "gold", "grpo"))


def test_reviews_become_shorter_with_every_method(hacking):
    steps = experiments.results("hacking_history")
    first = steps[steps.step == 0].length.mean()
    assert hacking.length.max() < 0.7 * first


def test_the_variety_of_word_pairs_falls(hacking):
    tour = experiments.results("tour")
    before = tour[tour.method == "SFT"].distinct_2
    assert hacking.distinct_2.max() < 0.66 * before.min()
    pairs = mean_over_seeds(hacking, "distinct_2")["mean"]
    assert pairs.idxmin() == "ppo"


def test_the_denominator_does_not_move_length_in_the_same_direction(hacking):
    constant, own = (column(hacking, v, "length") for v in ("dr-grpo", "grpo-no-std"))
    assert [a > b for a, b in zip(constant, own, strict=True)].count(True) == 1


def paths():
    steps = experiments.results("hacking_history")
    return {
        name: rows.groupby("step")[["score", "gold"]].mean()
        for name, rows in steps.groupby("variant")
    }


def gold_at(path, proxies):
    """Gold at given proxy scores, between the steps by straight lines."""
    path = path.sort_values("score")
    return np.interp(proxies, path.score, path.gold)


def furthest_apart():
    """The largest difference in gold at one proxy, wherever both paths have been."""
    grpo, ppo = (paths()[name].sort_values("score") for name in ("grpo", "ppo"))
    inside = ppo.score.between(grpo.score.min(), grpo.score.max())
    assert inside.sum() > 10
    return np.abs(np.interp(ppo.score, grpo.score, grpo.gold) - ppo.gold)[inside].max()


def test_at_the_same_proxy_grpo_and_ppo_have_the_same_gold():
    proxies = np.arange(0.2, 2.41, 0.05)
    grpo, ppo = (gold_at(paths()[name], proxies) for name in ("grpo", "ppo"))
    assert np.abs(grpo - ppo).max() < 0.1


def test_proxy_and_gold_of_grpo_end_a_little_below_their_best():
    for column in ("score", "gold"):
        path = paths()["grpo"][column]
        assert path.iloc[0] < path.iloc[-1] < path.max() < path.iloc[-1] + 0.3


def test_how_strongly_each_loss_pulls():
    ratio = torch.tensor([[0.5, 1.0, 1.19, 1.25, 1.29, 4.0, 6.0]], dtype=torch.float64)

    def pull(loss, advantage, **clip):
        logprobs = ratio.log().requires_grad_(True)
        given = torch.zeros_like(ratio), torch.full_like(ratio, advantage), ratio > 0
        loss(logprobs, *given, **clip).sum().backward()
        return (-logprobs.grad[0]).tolist()

    def close(*values):
        return pytest.approx(list(values))

    assert pull(core.ppo_clip, 1.0) == close(0.5, 1, 1.19, 0, 0, 0, 0)
    assert pull(core.ppo_clip, 1.0, clip_eps_high=0.28) == close(0.5, 1, 1.19, 1.25, 0, 0, 0)
    assert pull(core.cispo, 1.0) == close(0.5, 1, 1.19, 1.25, 1.29, 4, 5)
    assert pull(core.ppo_clip, -1.0) == close(0, -1, -1.19, -1.25, -1.29, -4, -6)
    assert pull(core.cispo, -1.0) == close(-0.5, -1, -1.19, -1.25, -1.29, -4, -5)


def test_gradients_and_values_at_ratio_one():
    generator = torch.Generator().manual_seed(0)
    old = -torch.rand(6, 5, generator=generator, dtype=torch.float64)
    mask = torch.arange(5) < torch.tensor([[1], [2], [3], [4], [5], [5]])
    responses = torch.randn(6, generator=generator, dtype=torch.float64)
    tokens = core.over_tokens(responses[None], mask)

    def at_one(loss, given, how, **clip):
        logprobs = old.clone().requires_grad_(True)
        losses = loss(logprobs, old, given, mask, **clip)
        core.aggregate(losses, mask, how=how).backward()
        return losses.detach(), logprobs.grad

    value, grpo = at_one(core.ppo_clip, tokens, "sequence_mean")
    _, token_mean = at_one(core.ppo_clip, tokens, "token_mean")
    of_gspo, gspo = at_one(core.sequence_clip, responses, "sequence_mean", by_length=True, **CLIP)
    of_cispo, cispo = at_one(core.cispo, tokens, "token_mean")
    _, dapo = at_one(core.ppo_clip, tokens, "token_mean", clip_eps_high=0.28)
    torch.testing.assert_close(gspo, grpo)
    torch.testing.assert_close(cispo, token_mean)
    torch.testing.assert_close(dapo, token_mean)
    assert not torch.allclose(grpo, token_mean)
    torch.testing.assert_close(value, -tokens)
    torch.testing.assert_close(of_gspo, -tokens)
    torch.testing.assert_close(of_cispo, torch.where(mask, -tokens * old, 0.0))


def test_sampling_takes_a_fifth_to_a_third_of_a_step_here(family):
    rows = family[family.variant.isin(["grpo", "ppo", "dapo"])]
    share = (rows.sampling_seconds / rows.seconds).groupby(rows.variant).mean()
    assert 0.15 < share["ppo"] < share["grpo"] < share["dapo"] < 0.4


# ---- exercises 3 and 6


def test_the_verdicts_of_the_exercise_follow_the_rule():
    assert check.six_comparisons(COMPARISONS) and list(COMPARISONS) == list(DIFFERENCES)
    for variant, differences in DIFFERENCES.items():
        *_, low, high = over_seeds(differences)
        assert COMPARISONS[variant].removesuffix(", reason open") == verdict(low, high)
    assert [v for v, said in COMPARISONS.items() if "reason open" in said] == ["F"]
    assert all(x > 0 for x in DIFFERENCES["B"]) and sum(DIFFERENCES["E"]) == 0


@pytest.mark.parametrize("variant, wrong", OVERLOOKED)
def test_the_checker_names_what_a_wrong_verdict_overlooks(variant, wrong):
    assert wrong in COMPARISONS.values() and wrong != COMPARISONS[variant]
    result = check.six_comparisons(COMPARISONS | {variant: wrong})
    assert not result and OVERLOOKED[variant, wrong] in result.message
    assert result.message.startswith(f'variant {variant} is not "{wrong}": ')
    assert len(result.message) <= LONGEST


@pytest.mark.parametrize("variant", COMPARISONS)
def test_the_checker_asks_for_a_verdict_that_is_missing_or_has_another_name(variant):
    for given in ({}, {variant: ""}, {variant: "better"}, {variant: None}):
        answers = {v: said for v, said in COMPARISONS.items() if v != variant} | given
        result = check.six_comparisons(answers)
        assert not result and result.message.startswith(f"variant {variant} needs a verdict.")
        assert all(f'"{name}"' in result.message for name in COMPARISONS.values())
        assert len(result.message) <= LONGEST
    other = check.six_comparisons(COMPARISONS | {"A": "behind"})
    assert not other and "section 3b" in other.message


def test_the_numbers_of_the_solutions(family):
    found = Said(nbformat.read(NOTEBOOKS / "solutions" / "11b_five_objections.ipynb", 4).cells)
    most = {n: seconds(n, "separate") / seconds(n, "none") for n in (8, 512)}
    for n, times in most.items():  # the time of a step is in proportion to its responses
        assert seconds(n, "none", 1.5) == pytest.approx(1.5 * seconds(n, "none"), rel=0.001)
        assert seconds(n, "none", 2) / seconds(n, "separate") == pytest.approx(2 / times, rel=0.001)
    assert parts(512, "none", 2)["training"] == pytest.approx(
        parts(512, "separate")["training"], rel=0.01
    )
    found("divided by GRPO's as many:", most[8], 8, most[512], 512)
    few, many = (seconds(512, "none", prompts / 128) for prompts in (208, 212))
    ppo = seconds(512, "separate")
    assert few < ppo < many
    found("The last round of", 512, 208, 208 / 128, few, 212, many, ppo, 8)
    assert seconds(8, "none", 148 / 128) < seconds(8, "separate") < seconds(8, "none", 152 / 128)
    _, deviation, _, half, *_ = over_seeds(paired(family, "rloo", "grpo"))
    needed = {5: 2.78 * deviation / 5**0.5, 6: 2.57 * deviation / 6**0.5}
    assert needed[6] < MATTERS < needed[5]
    found("half the interval is then", needed[6])
    found("Three seeds give", half)


# ---- every number of the prose


def test_the_numbers_of_the_prose(family, jitter, hacking, family_history):
    with lesson("11b") as said:
        about_cost(said)
        about_the_system(said)
        about_pass_1(said, family)
        about_small_differences(said, jitter)
        about_hacking(said, hacking)
        in_the_exercises(said)
        about_gspo_and_cispo(said)
        about_intervals_over_prompts(said, family)
        about_four_epochs(said, family, family_history)
        in_going_further(said, family)


def about_cost(said):
    saved = [1 - seconds(n, "none") / seconds(n, "separate") for n in (8, 512)]
    sampling, training = (
        {n: parts(n, "separate")[part] for n in (16, 64, 256)} for part in ("sampling", "training")
    )
    said("With models of", 70, 70)
    said("We assume", 64, 1024, 1024, 128, 512)
    said("**The machine of section 1.** Its GPUs reach", models.H100.mfu, models.H100.mbu)
    said("in one step, sampling or training, if", 16, 256)
    said("the cells are seconds. With", 16, sampling[16], training[16], 256, sampling[256])
    assert len(set(training.values())) == 1
    said("as long as training (ratio", 1, 23, 49)
    with_critic, without = parts(64, "separate"), parts(64, "none")
    lost = {part: with_critic[part] - without[part] for part in with_critic}
    said("No critic means", sum(lost.values()), lost["training"], lost["scoring"])
    said("the share that is saved:", saved[0], 8, saved[1], 512)
    said("cost model,", 70, 64)
    said("**Half right.** GRPO takes", 16, round(100 * saved[0]) == 16, saved[1], 1.5)
    ratio = {n: seconds(n, "none", 1.5) / seconds(n, "separate") for n in (8, 512)}
    said("**Right, orange.** With", 1.5, 49, 8, ratio[8] - 1, 512, 1 - ratio[512])


def about_the_system(said):
    ppo, grpo, rule = (
        models.peak_bytes(held(*given)) / 1e12 for given in (("separate",), (), ("none", False))
    )
    said("**Predict.** At", 70, ppo)
    said("Without the critic", grpo, ppo, rule, ppo - grpo, grpo - rule)
    said("Three of four models remain. But", 1 - grpo / ppo)
    said("A trained model takes", 2 + 2 + 3 * 4, 2, 2, 3 * 4, 2)
    actor, frozen = (held("separate")[name] for name in ("actor", "reference"))
    kept = ("weights", "gradients", "optimiser")
    assert sum(actor[k] for k in kept) == 8 * sum(frozen[k] for k in kept)
    said("models and memory at", 70, 1 - grpo / ppo)


def about_pass_1(said, family):
    config = experiments.group_config("arithmetic", "grpo", steps=80)
    prompts, size = config.prompts_per_step, config.group_size
    rows = loops.FAMILY
    said("a rule gives", 1, 0, config.steps, prompts * size, len(SEEDS))
    said("GRPO's groups of", size, prompts, prompts * size)
    history = experiments.results("family_history")
    sampled = history.groupby("variant").samples.agg(["mean", "min", "max"])
    more = {"dapo", "remax"}
    assert (sampled.loc[[*GROUPS, *SINGLE]].drop(more)[["min", "max"]] == prompts * size).all(
        axis=None
    )
    for name in ("RLOO", "Dr. GRPO", "GSPO", "CISPO", "REINFORCE++-baseline"):
        said(f"| **{name}**", prompts)
    clips = rows["dapo"].clip_eps_high, rows["grpo"].clip_eps
    said("| **DAPO**", prompts, *clips, sampled["mean"]["dapo"])
    for name in ("REINFORCE", "REINFORCE++", "PPO"):
        said(f"| **{name}** |", prompts * size)
    said("| **ReMax** |", prompts * size, sampled["min"]["remax"])
    assert sampled["max"]["remax"] == sampled["min"]["remax"]
    said("| `ppo, critic trained first` |", prompts * size, 15, config.steps)
    said("| `ppo, 8 responses a prompt` |", prompts, size)
    said("The actor trains in", config.steps - 15)
    said("We measure it on", 400, 16)
    said("has a pass@1 of", mean(family, "start", "pass_1"), mean(family, "grpo", "pass_1"))
    said("On average PPO has", *(mean(family, v, "pass_1") for v in ("ppo", "reinforce")))
    grpo, ppo, plain = (column(family, v, "pass_1") for v in ("grpo", "ppo", "reinforce"))
    said("PPO's range overlaps", min(ppo) < max(grpo), min(plain) > max(grpo + ppo))

    by_hand(said, family)
    differences = difference_over_prompts_and_seeds(family, "pass_1", "grpo", SHOWN)
    ahead = [differences.difference[v] for v in ("reinforce", "reinforce++")]
    alike = differences.difference[PPOS[2]]
    said("PPO is higher by", *row(differences, "ppo"), prompts * size, prompts, prompts, alike)
    said("(the last row) the difference is", *row(differences, PPOS[2]))
    said("so all ratios are", 1)
    said("are ahead of GRPO**, by", *ahead)
    said("REINFORCE is higher by", *against(family, "ppo", "reinforce"), min(plain) > max(ppo))
    from_ppo = difference_over_prompts_and_seeds(family, "pass_1", "ppo", PPOS[1:])
    assert [verdicts(from_ppo)[v] for v in PPOS[1:]] == ["undecided", "behind"]
    said("PPO is lower by", -from_ppo.difference[PPOS[1]])
    said("**behind**, by", -from_ppo.difference[PPOS[2]], prompts, prompts * size)
    plus, plain = (together(family, v) for v in ("reinforce++", "reinforce"))
    assert [verdict(*ends) for ends in (plus, plain)] == ["ahead", "undecided"]
    said("wide enough for all twelve together", *plus, *plain)
    said("But a win is not excluded: with", prompts, -differences.low[PPOS[2]])
    said("arithmetic,", len(SHOWN))


def two_way(family, variant, base="grpo"):
    """(standard error, degrees of freedom) as "Going further" writes them."""
    a, b = (torch.tensor(column(family, v, "pass_1_by_prompt")).double() for v in (variant, base))
    D = a - b
    S, P = D.shape
    by_seed, by_prompt, mean = D.mean(1, keepdim=True), D.mean(0, keepdim=True), D.mean()
    m_s = P * (by_seed - mean).square().sum().item() / (S - 1)
    m_p = S * (by_prompt - mean).square().sum().item() / (P - 1)
    m_r = (D - by_seed - by_prompt + mean).square().sum().item() / ((S - 1) * (P - 1))
    v = max(m_s + m_p - m_r, m_s, m_p)
    freedom = v**2 / (m_s**2 / (S - 1) + m_p**2 / (P - 1) + m_r**2 / ((S - 1) * (P - 1)))
    return (v / (S * P)) ** 0.5, freedom


def factors(freedom):
    """Student's t for one interval of 95 %, and for each of twelve that hold together."""
    return [scipy.stats.t.ppf(1 - 0.025 / n, freedom) for n in (1, len(SHOWN))]


def together(family, variant):
    """The interval over prompts and seeds, minus GRPO, that is one of twelve (Bonferroni)."""
    error, freedom = two_way(family, variant)
    half = factors(freedom)[1] * error
    mean = sum(paired(family, variant, "grpo")) / len(SEEDS)
    return mean - half, mean + half


@pytest.mark.parametrize("variant", SHOWN)
def test_the_formula_on_the_page_gives_the_intervals_of_the_figure(family, variant):
    difference, low, high = against(family, "grpo", variant)
    error, freedom = two_way(family, variant)
    half = factors(freedom)[0] * error
    assert (low, high) == pytest.approx((difference - half, difference + half), abs=1e-6)


def by_hand(said, family):
    """Sections 3a and 3b."""
    differences = paired(family, "rloo", "grpo")
    mean_of, deviation, error, half, low, high = over_seeds(differences)
    said("The three differences are", *differences, mean_of)
    said("Their standard deviation is", deviation)
    said("A mean of three scatters less. Divide by", error)
    said("Multiply by", FACTORS[3], half, half, low, high)
    said("**Why", FACTORS[3], scipy.stats.norm.ppf(0.975))
    said("The true mean is", 0, 0, 1.96, FACTORS[3])
    draws = torch.randn(10_000, 3, generator=torch.Generator().manual_seed(0))
    errors = draws.std(1) / 3**0.5
    held = [(draws.mean(1).abs() < k * errors).float().mean().item() for k in (1.96, FACTORS[3])]
    said("With the factor", 1.96, held[0], FACTORS[3], held[1])
    said("come from Student's t distribution:", *(x for n in FACTORS for x in (FACTORS[n], n)))
    said("tested on the same", 400, 400)
    said("On this page it is", MATTERS)
    said("| lies above", 0, MATTERS)
    said("| lies below", 0, -MATTERS)
    said("| contains", 0, -MATTERS, MATTERS)
    said("| reaches further, and contains", 0)


def about_small_differences(said, jitter):
    table = difference_over_prompts_and_seeds(jitter, "pass_1", "grpo")
    exact = row(table, "grpo, exact scores")
    eight = torch.ones(2, 8).double()
    eight[:, 0] += torch.tensor([0.001, 1.0])
    blown = core.group_relative(eight)[:, 0]
    for repair in ({"min_std": 0.1}, {"scale_by_std": False}):
        assert core.group_relative(eight, **repair)[0, 0] < 0.01
    said("When two rewards differ slightly,", 1.001, 1)
    said("GRPO gives a difference of", 0.001, blown[0], 1, blown[1], 0.001, 0)
    said("a random number between", 0, 0.001, 0.01)
    said("Exact scores are **ahead** by", *exact, *paired(jitter, "grpo, exact scores", "grpo"), 0)
    less, low, high = against(jitter, "grpo, exact scores", "no std")
    said("is behind GRPO on exact scores by", -less, -high, -low)
    said("with exact scores these are", *equal_groups())
    said("likes one word by", 0.001, 7, 1, 1.001)
    start, learned = preferred()
    assert 0 < preferred(gap=1)[1] - learned < 0.01  # a whole point
    said("begin with *good* at the start. How many do after", 30)
    said("with a floor of", 0.1)
    repaired = max(preferred(min_std=0.1)[1], preferred(scale_by_std=False)[1])
    said("the probability rises from", start, learned, 0.35 < repaired < 0.36, 0.36)
    said("Noise of this size cost", exact[0])
    said("Blows up small differences | noise of", 0.001, exact[0])


def about_hacking(said, hacking):
    steps, tour = experiments.results("hacking_history"), experiments.results("tour")
    last, size = steps.steps.max(), experiments.group_config("reviews", "grpo").group_size
    said("small KL coefficient of", steps.kl_coef.max(), last, 64, 64, 64 // size, size)
    said("**Predict.** After", last)
    proxy, gold = ([mean(hacking, v, k) for v in ("ppo", "grpo")] for k in ("proxy", "gold"))
    said("PPO has more of both on average: a proxy score of", *proxy, *gold)
    path = paths()["grpo"]
    last_steps = path.iloc[path.gold.argmax() :]
    fall = last_steps.iloc[-1] < last_steps.iloc[0]
    said("fall: gold from", path.gold.max(), path.gold.iloc[-1], fall.all())
    lengths = mean_over_seeds(hacking, "length")["mean"]
    first = steps[steps.step == 0].length.mean()
    said("*shorter* with every method: about", 12, (lengths - 12).abs().max() < 0.6, first)
    said("gold scores of GRPO and PPO differ by less than", 0.15, furthest_apart() < 0.15)
    pairs = [mean(hacking, v, "distinct_2") for v in ("grpo", "ppo")]
    said("almost any film. Of all word pairs", *pairs, tour[tour.method == "SFT"].distinct_2.mean())
    difference = difference_over_prompts_and_seeds(hacking, "proxy", "grpo")
    said("proxy score is higher by", *row(difference, "ppo"))
    said("GRPO's gold is within", 0.15)
    less, low, high = row(difference, "rloo")
    said("Of their proxy scores only one interval excludes", 0, -less, -high, -low)
    less, low, high = against(hacking, "grpo", "rloo", "gold")
    said("Its gold score is lower by", -less, -high, -low)


def in_the_exercises(said):
    said("Padding can hold NaN, and NaN times", 0)

    def teaches(p, size=8):
        return 1 - p**size - (1 - p) ** size

    hard, easy = teaches(0.02), teaches(0.4)
    said("4. A problem is solved with probability", 0.02, 16, 0.4)
    said("are wrong. With", 0.02, hard, 16 / hard, 0.4, easy, 16 / easy)
    said("Six variants are compared with GRPO, on", 400)
    said("| variant | what differs from GRPO | seed", *SEEDS)
    problems_alone = {
        "A": (0.04, 0.06),
        "B": (0.02, 0.04),
        "C": (-0.05, -0.03),
        "D": (-0.008, 0.008),
        "E": (-0.01, 0.01),
        "F": (0.04, 0.06),
    }
    for variant, differences in DIFFERENCES.items():
        prompts = (128, 16) if variant == "F" else ()
        said(f"| {variant} |", *prompts, *differences, *problems_alone[variant])
    said("end of its 95 % interval over seeds. `factor` is", FACTORS[3])
    said("it is wide: the factor is", FACTORS[3])
    said("may it take at most, with", 8, 512)
    said("whole rounds: with", 512, 1056, 3, 1536)
    assert math.ceil(1056 / 512) == math.ceil(1536 / 512) == 3
    said("The factors are", *FACTORS.values(), 2.57, 2.45, 2.36)


def about_gspo_and_cispo(said):
    dapo, gspo, cispo = (loops.FAMILY[name] for name in ("dapo", "gspo", "cispo"))
    assert dapo.clip_eps_high > dapo.clip_eps
    said("many ratios stays near", 1, 1 - gspo.clip_eps, 1 + gspo.clip_eps_high)
    said("Right after sampling all ratios are", 1)
    said("So at ratio", 1)
    said("A good token that has become", 1.2)
    said("weight of at most", 1 + cispo.clip_eps_high)


def about_intervals_over_prompts(said, family):
    table = difference_over_prompts(family, "pass_1", "grpo", SHOWN)
    said("PPO is higher than GRPO by", *row(table, "ppo"))
    said("DAPO by", *row(table, "dapo"))
    said("ReMax by", *row(table, "remax"))
    critic, low, high = row(difference_over_prompts(family, "pass_1", "ppo", PPOS[1]), PPOS[1])
    said("PPO is lower than plain PPO by", -critic, -high, -low)
    said("Over prompts *and* seeds, all four intervals contain", 0, 0, 0)
    plus = "reinforce++"
    both = row(difference_over_prompts_and_seeds(family, "pass_1", "grpo", plus), plus)[1:]
    *_, low, high = over_seeds(paired(family, plus, "grpo"))
    assert low < both[0] and both[1] < high
    _, freedom = two_way(family, plus)
    said("is near", 2, FACTORS[3], 1.96, freedom, factors(freedom)[0], *both, low, high)


def about_four_epochs(said, family, history):
    clipped = {v: history[history.variant == v].clip_fraction.mean() for v in FOUR}
    for name, words in zip(FOUR, ("| GRPO |", "| GSPO |", "| CISPO |"), strict=True):
        answers = column(family, name, "greedy")
        shares = [] if name.startswith("cispo") else [clipped[name]]
        single = column(family, name, "pass_1")
        said(words, *answers, *single, mean(family, name, "pass_16"), *shares)
    assert clipped[FOUR[2]] == 0
    grpo, *others = (column(family, name, "pass_1") for name in FOUR)
    ahead = all(a > b for other in others for a, b in zip(grpo, other, strict=True))
    said("and GRPO's single samples are best", ahead)
    lost, low, high = against(family, "start", FOUR[2], "pass_16")
    said("its pass@16 is below that of the untrained model by", -lost, -high, -low)
    lost, low, high = against(family, "start", FOUR[0], "pass_16")
    said("GRPO's is below it on every seed, too, by", -lost, -high, -low, 0)
    assert all(x < 0 for x in paired(family, FOUR[0], "start", "pass_16"))
    said("The first epoch has ratio", 1, clipped[FOUR[1]] * 4 / 3)


def in_going_further(said, family):
    plain, plus = (two_way(family, v)[1] for v in ("reinforce", "reinforce++"))
    mean_of, _, error, *_ = over_seeds(paired(family, "reinforce++", "grpo"))
    half = factors(2)[1] * error
    ends = mean_of - half, mean_of + half
    said("should hold *together* in", 0.95, 0.05, *factors(plain), *factors(plus), *ends)
    remax = against(family, "reinforce", "remax")
    said("alone is not the reason: ReMax has", 128, -remax[0], -remax[2], -remax[1])
    for name, words in (("rloo", "ahead of them by"), ("dr-grpo", "0.056] and")):
        less, low, high = against(family, "reinforce", name)
        said(words, -less, -high, -low)
