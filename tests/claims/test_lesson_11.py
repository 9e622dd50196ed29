"""Lesson 11, GRPO: every number of its prose, and every claim about a recorded run."""

import copy
import math

import nbformat
import pytest
import torch

from minirlhf import core, experiments, loops, models, rewards, tasks
from minirlhf.classroom.course import NOTEBOOKS
from minirlhf.loops import FAMILY
from minirlhf.runtime import seed_all
from tests.claims.prose import lesson
from tests.claims.records_11 import (
    SEEDS,
    by_run,
    column,
    drawn,
    family,
    lesson_table,
    mean,
)
from tests.claims.test_lesson_11_gradient import gradients
from tests.claims.test_lesson_11_random import FULL, random_scores
from tests.claims.test_lesson_11_verdicts import harder, rule, six_runs
from tests.loops.test_by_hand import lesson_source

FOUR_UPDATES = "grpo, 4 epochs"
PASSED = ("pass_1", "greedy")
ONE_UPDATE = ("grpo", "dr-grpo", "dapo", "gspo", "cispo")


@pytest.fixture(scope="module")
def runs():
    return family()


@pytest.fixture(scope="module")
def longer():
    """Training on problems of levels 2 to 4, evaluation on those of level 5."""
    return by_run("longer")


@pytest.fixture(scope="module")
def steps():
    return experiments.results("family_history")


@pytest.fixture(scope="module")
def grpo(steps):
    """The curves of the recorded run, each the mean over the seeds."""
    rows = steps[steps.variant == "grpo"]
    assert sorted(rows.seed.unique()) == list(SEEDS) and set(rows.steps) == {80}
    return rows.select_dtypes("number").groupby(rows.step).mean()


# ---- sections 1 to 4: groups


def advantages(*scores):
    return core.group_relative(torch.tensor([scores], dtype=torch.float64))[0]


@pytest.fixture(scope="module")
def model():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield models.load_policy("tiny-steps")
    torch.set_num_threads(threads)


def test_the_group_of_four_is_the_one_in_the_table(model):
    texts, scores, _ = drawn(model, 4, seed=8)
    assert texts == ["~43", "~45", "32+11=33", "32+11=43"]
    assert scores.tolist() == [1, 0, 0, 1]


def test_a_wrong_response_of_the_group_of_eight_has_a_right_first_step(model):
    texts, scores, _ = drawn(model, 8, seed=2)
    assert [text for text, score in zip(texts, scores, strict=True) if score] == ["32+11=43"]
    assert "32+11=33" in texts
    assert tasks.arithmetic.steps_right("16+16+11=", "32+11=33") == [True, False]


@pytest.fixture(scope="module")
def answers(model):
    """16 samples for each test problem: (prompts, texts, right, at_once); the last two (400, 16)."""
    policy, tokenizer = model
    prompts = [p.prompt for p in tasks.arithmetic.problems("test", 400, levels=(2, 3, 4))]
    assert not set(prompts) & set(experiments.practice_problems())
    each = [prompt for prompt in prompts for _ in range(16)]
    sampling = models.SamplingConfig(max_new_tokens=24, temperature=1.0)
    batches = models.sample_text(policy, tokenizer, each, config=sampling, batch_size=800)
    texts = [text for batch in batches for text in models.decode(tokenizer, batch)]
    right = torch.tensor(rewards.right_answer(each, texts)).double().view(400, 16)
    at_once = torch.tensor([text.startswith("~") for text in texts]).view(400, 16)
    return each, texts, right, at_once


def test_a_right_first_step_does_better_than_other_samples_of_the_same_problem(answers):
    each, texts, right, _ = answers
    first = [tasks.arithmetic.steps_right(p, t)[0] for p, t in zip(each, texts, strict=True)]
    better = right - right.mean(1, keepdim=True)
    assert better[torch.tensor(first).view(400, 16)].mean() > 0.2


def in_steps_or_at_once(said, answers):
    """Section 3: what answers at once and answers in written steps are worth."""
    _, _, right, at_once = answers
    said("The model mostly answers at once", at_once.double().mean() > 0.7)
    gap = right[~at_once].mean() - right[at_once].mean()
    said("Five samples are few, so we took", 16, 400)
    said("Of the answers at once,", right[at_once].mean(), right[~at_once].mean())
    both = at_once.any(1) & (~at_once).any(1)  # problems with answers of both kinds
    shares = [((right * kind).sum(1) / kind.sum(1))[both].mean() for kind in (~at_once, at_once)]
    assert both.sum() > 350
    said("The gap is as large among", abs(shares[0] - shares[1] - gap) < 0.02)


# ---- section 5: one step


def trained_by_hand(model, prompts, seed, batches, slips=()):
    """The lesson's `grpo_step` on some batches: (the trained policy, the mean score of each batch).

    slips: pairs, a piece of its code and what stands there instead.
    """
    policy, tokenizer = copy.deepcopy(model[0]), model[1]
    code = lesson_source("11_grpo", "grpo_step")
    for old, new in slips:
        assert code.count(old) == 1
        code = code.replace(old, new)
    names = {
        "core": core,
        "models": models,
        "torch": torch,
        "tokenizer": tokenizer,
        "sampling": models.SamplingConfig(max_new_tokens=24, temperature=1.0),
        "score": rewards.reward_function(rewards.right_answer, tokenizer),
        "actor": policy,
        "optimizer": loops.make_optimizer(policy, loops.OptimiserConfig(lr=1e-4)),
        "generator": torch.Generator().manual_seed(seed),
    }
    exec(code, names)
    step = names["grpo_step"]
    order = loops.shuffled_batches(len(prompts), 16, batches, seed=seed)
    return policy, [step([prompts[i] for i in index]) for index in order]


def test_with_the_two_lines_of_section_7_the_step_is_dr_grpo(model):
    """And without one of them it is not."""
    text = " ".join(c.source for c in nbformat.read(NOTEBOOKS / "11_grpo.ipynb", 4).cells)
    assert "`advantages = centred`" in text
    assert '`core.aggregate(losses, mask, how="constant", constant=24)`' in text
    slips = (
        ("centred / (groups.std(1, keepdim=True) + 1e-4)", "centred"),
        ('how="sequence_mean"', 'how="constant", constant=24'),
    )
    settings = {"steps": 1, "group_size": 8, "minibatch_size": 64, "epochs": 2}
    sampling = models.SamplingConfig(max_new_tokens=24, temperature=1.0)
    kl = loops.KLConfig(kl_coef=0)
    config = loops.GroupConfig.plain("dr-grpo", **settings, sampling=sampling, kl=kl)
    policy, tokenizer = model
    score = rewards.reward_function(rewards.right_answer, tokenizer)
    prompts = experiments.practice_problems()
    package, _ = loops.train_group(copy.deepcopy(policy), tokenizer, prompts, score, config)
    equal = [
        models.same_weights(package, trained_by_hand(model, prompts, config.seed, 1, some)[0])
        for some in (slips, slips[:1], slips[1:])
    ]
    assert equal == [True, False, False]


def test_three_slips_of_exercise_5_show_in_the_second_mean_score(model):
    prompts = experiments.practice_problems()

    def scores(*slip):
        return trained_by_hand(model, prompts, 0, 2, [slip] if slip else [])[1]

    right = scores()
    kept = scores("optimizer.zero_grad()", "pass")
    assert kept[0] == right[0] and kept[1] != right[1]
    unseeded = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        unseeded.append(
            scores(
                "torch.randperm(len(scores), generator=generator)", "torch.randperm(len(scores))"
            )
        )
        assert unseeded[-1][0] == right[0] and unseeded[-1][1] != right[1]
    assert unseeded[0] != unseeded[1]
    sampled = []  # without a generator, after `train_group` has seeded torch's own one
    seed_all(loops.GroupConfig().seed)
    for _ in range(2):
        sampled.append(scores("config=sampling,\n        generator=generator", "config=sampling"))
    assert sampled[0][0] == right[0] and sampled[0][1] != right[1]
    assert sampled[1][0] != right[0]


# ---- section 8: a run


@pytest.mark.parametrize("seed", SEEDS)
def test_forty_steps_on_right_answers_help_and_on_random_scores_harm(steps, seed):
    random = experiments.results("dealt_history")
    paid = steps[(steps.variant == "grpo") & (steps.seed == seed)].set_index("step")
    control = random[(random.variant == FULL) & (random.seed == seed)].set_index("step")
    near_40 = slice(31, 45)
    assert paid.score.loc[near_40].mean() > paid.score[0] + 0.05
    assert control.right.loc[near_40].mean() < control.right[0] - 0.05
    assert control.kl.loc[near_40].mean() > paid.kl.loc[near_40].mean()


def test_after_training_there_are_more_than_twice_as_many_answers_in_steps():
    before, after = (lesson_table(f"table({of}, questions)") for of in ("start", "trained"))
    written = [sum("~" not in cell for row in rows for cell in row) for rows in (before, after)]
    assert written[1] > 2 * written[0]


def test_the_responses_become_steps(grpo):
    assert grpo.length.iloc[-5:].mean() > 1.7 * grpo.length.iloc[0]
    assert grpo.kl_coef.max() == 0


def test_no_method_of_the_comparison_updates_more_than_once_per_batch():
    configs = [experiments.group_config("arithmetic", name) for name in FAMILY]
    assert all(c.epochs == 1 and c.minibatch_size == 128 for c in configs)
    assert any(c.algorithm.ratio == "none" for c in configs)


# ---- going further: one change each


def test_with_one_update_gspo_is_grpo_up_to_rounding(runs):
    apart = column(runs, "grpo", "pass_1") - column(runs, "gspo", "pass_1")
    assert apart.abs().max() < 0.001


def test_with_one_update_the_five_methods_differ_less_than_the_seeds_of_one(runs):
    means = [mean(runs, name, "pass_1") for name in ONE_UPDATE]
    seeds = column(runs, "grpo", "pass_1")
    assert max(means) - min(means) < seeds.max() - seeds.min()


# ---- every number of the prose


def test_the_numbers_of_the_prose(runs, longer, grpo, model, answers):
    means = [mean(runs, name, "pass_1") for name in ONE_UPDATE]
    seeds = column(runs, "grpo", "pass_1")
    with lesson("11") as said:
        # 1 to 4: definitions, groups and the task
        said("Is a score of", 0.7)
        said("avoids a division by", 0)
        groups_of_section_2(said)
        in_steps_or_at_once(said, answers)
        said("Our rule is:", 1, 0)
        said("a language model with", parameters(model) / 1e6)
        group_by_hand(said)
        microscope(said, model)
        # 5: one step
        said("A batch has", 16, 8, 16 * 8)
        said("Two epochs with minibatches of", 64, 2 * 16 * 8 // 64)
        said("| `groups`, `centred` |", 16, 8)
        said("the clipped loss of every token | `losses` |", 64)
        said("before part", 3)
        # 6 and 7: the two divisions
        gradients(said)
        # 8: a run
        said("a short run of our own:", 40)
        problems = len(runs.loc[("start", 0)].pass_16_by_prompt)
        longer_runs(said, runs)
        first, last = grpo[grpo.index < 10].mean(), grpo[grpo.index >= 80 - 20].mean()
        payoff = [mean(runs, name, "greedy") for name in ("start", "grpo")]
        said("the model solves", payoff[0], problems, payoff[1])
        said(
            "The other numbers are means over the first ten training steps, and over the last twenty"
        )
        said("answers to practice problems, rises from", first.score, last.score)
        said("in tokens, rises from", first.length, last.length)
        equal = [part.frac_reward_zero_std for part in (first, last)]
        said("groups with equal scores, rises from", *equal)
        # 9: sharpening or learning
        rule(said, longer)
        said("We test on", problems)
        said("On the problems of section 8, pass@16 is", mean(runs, "start", "pass_16"))
        harder(said, longer)
        # going further: variants
        three = means[:3]
        said("In the recorded runs of", 80, max(three) - min(three))
        said("differ by more,", seeds.max() - seeds.min())
        # exercises and questions
        said("must give exactly", 0)
        said("on three scores of", 0.9, 0)
        hint = torch.tensor([0.9, 0.9, 0.9])
        assert ((hint - hint.mean()) / (hint.std() + 1e-4)).abs().max() > 0
        said("that learns, so all ratios are", 1)
        said("sample groups of", 8, 64)
        said("and NaN times", 0)
        six_runs(said)
        said("the norm of your gradient is", 3 / 4)
        said("a learning rate that is", 4 / 3)
        said("My GRPO loss is", 0)
        said("So the loss of a batch is", 0)
        said("Yes. At ratio", 1)
        said("The gradient is not", 0)
        said("The ratio in my log is always", 1)
        # going further
        random_scores(said, by_run("dealt"), runs)
        pair = [mean(runs, v, "length") for v in ("grpo", "dr-grpo")]
        said("GRPO and Dr. GRPO end at nearly the same length", *pair, as_long(runs))
        said("their advantage is", 0)


def longer_runs(said, runs):
    """Section 8: GRPO with one update per batch, and with four."""
    registered = experiments.EXPERIMENTS["family"][FOUR_UPDATES]["given"]
    assert registered == {"epochs": 4, "steps": 40}  # a minibatch is the whole batch
    said("the same training for", 80, 3)
    said("The run `grpo, 4 epochs` has", registered["steps"], registered["epochs"], 4)
    config = experiments.group_config("arithmetic", "grpo")
    assert config.epochs == 1 and config.minibatch_size == 16 * 8  # one update per batch
    said("It makes **one update per batch**, not", 4)
    said("so four epochs are four updates. On the", len(runs.loc[("grpo", 0)].pass_1_by_prompt))
    said("| no training |", 0, 0, *(mean(runs, "start", x) for x in PASSED))
    for name, steps, epochs in (("grpo", 80, 1), (FOUR_UPDATES, 40, 4)):
        right = [mean(runs, name, x) for x in PASSED]
        said(f"| `{name}` |", steps * 16 * 8, steps * epochs, *right)
    sampled, greedy = ([column(runs, v, x) for v in (FOUR_UPDATES, "grpo")] for x in PASSED)
    said("get as far with half the responses", sampled[0].mean() > sampled[1].mean() - 0.01)
    said("on every seed it is lower", (greedy[0] < greedy[1]).all())


def as_long(runs):
    """Whether GRPO and Dr. GRPO end at the same length, up to a quarter of a token."""
    return abs(mean(runs, "grpo", "length") - mean(runs, "dr-grpo", "length")) < 0.25


def parameters(model):
    return sum(p.numel() for p in model[0].parameters())


def groups_of_section_2(said):
    said("one response is right |", 1, 0, 0, 0)
    said("all are right |", 1, 1, 1, 1)
    said("two responses, far apart |", 1, 0)
    said("two responses, nearly equal |", 1.001, 1)
    one = advantages(1, 0, 0, 0)
    said("*One is right*: about", one[0], one[1])
    assert not advantages(1, 1, 1, 1).any() and not advantages(0, 0, 0, 0).any()
    said("*All are right*:", 0)
    said("*Far apart*:", *advantages(1, 0))
    said("*Nearly equal*:", *advantages(1.001, 1))


def group_by_hand(said):
    scores, centre = [1, 0, 0, 1], 1 / 2
    std = math.sqrt(sum((r - centre) ** 2 for r in scores) / 3)
    said("It can write a step first:", 16, 16, 16 + 16)
    said("A right answer has the score", 1, *scores, centre)
    for text, r in zip(("`~43`", "`~45`", "`32+11=33`", "`32+11=43`"), scores, strict=True):
        said(f"| {text} |", r, r - centre, (r - centre) ** 2, (r - centre) / std)
    said("The squares sum to", 1, 1 / 3, std)
    said("A right response has the advantage", 0.5, std, 0.5 / std)


def microscope(said, model):
    texts, scores, _ = drawn(model, 8, seed=2)
    each = core.group_relative(scores[None])[0]
    right, wrong = each[texts.index("32+11=43")].item(), each[texts.index("32+11=33")].item()
    said("Before the first update every ratio is", 1)
    said("`32+11=43`, has the advantage", right, wrong)
    said("Look at response", texts.index("32+11=33"))
    assert len("32+11=43") + 1 == 9
    shared = (right + wrong) / 9
    said("**Other responses show the place.** Response", texts.index("32+11=43"))
    said("has the same `32+11=`. Both have", 9, right, 9, right / 9, wrong, 9, wrong / 9)
    said("They sum to", shared, shared > 0)
    assert [text for text in texts if text.startswith("32+11=")] == ["32+11=43", "32+11=33"]
