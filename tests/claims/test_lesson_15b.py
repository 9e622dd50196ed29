"""Lab 15b, feedback on steps: every number of its prose, and every claim about a run."""

import ast
import copy
import math

import nbformat
import pytest
import torch
from datasets import Dataset

from minirlhf import core, experiments, loops, models, rewards, tasks
from minirlhf.classroom.course import NOTEBOOKS
from minirlhf.experiments.process_rewards import PROBLEMS, ROLLOUTS, process_rewards_config
from minirlhf.experiments.steps import (
    ASKED,
    DEMONSTRATIONS,
    OWN,
    PROMPTS,
    SAMPLING,
    TRIES,
    long_problems,
)
from minirlhf.loops.step_dpo import step_pairs
from tests.claims import faults_15b
from tests.claims.prose import lesson

LEVELS = (tasks.arithmetic.LONG,)
MODELS = (
    "soft labels",
    "hard labels",
    "outcomes",
    "outcomes at every step",
    "labels of the rule",
)
PICKS = ("best_last", "best_min", "best_product")


@pytest.fixture(scope="module")
def start():
    return models.load_policy("tiny-long-steps")


def recorded(name):
    runs = experiments.results(name)
    assert sorted(set(runs.seed)) == [0, 1, 2]
    return runs.set_index(["variant", "seed"]).sort_index()


@pytest.fixture(scope="module")
def steps():
    return recorded("steps")


@pytest.fixture(scope="module")
def reward_models():
    return recorded("process_rewards")


@pytest.fixture(scope="module")
def price(start):
    """Labels that a pair of Step-DPO costs, for the start."""
    policy, tokenizer = start
    config = loops.StepDPOConfig(
        step_end="=", max_step=24, sampling=SAMPLING, dpo=loops.StepDPOConfig().dpo
    )
    rows, log = step_pairs(
        policy,
        tokenizer,
        long_problems()[:256],
        tasks.arithmetic.right_step,
        config,
        models.step_end_ids(policy, tokenizer, "="),
        torch.Generator().manual_seed(0),
    )
    return log["labels"].item() / len(rows["prompt"])


# ---- the records


def test_whole_responses_gain_more_than_step_dpo_at_equal_labels(steps):
    spent = {name: steps.loc[name].labels for name in ("step dpo", "whole responses")}
    assert (abs(spent["step dpo"] / spent["whole responses"] - 1) < 0.02).all()
    frame = steps.reset_index()
    found = experiments.difference_over_prompts_and_seeds(frame, "pass_1", "step dpo")
    assert found.loc["whole responses"].low > 0
    greedy = experiments.difference_over_prompts_and_seeds(frame, "greedy", "step dpo")
    assert greedy.loc["whole responses"].low < 0 < greedy.loc["whole responses"].high


def test_both_fall_first():
    history = experiments.results("steps_history").set_index(["variant", "seed", "step"])
    for name in ("step dpo", "whole responses"):
        for seed in range(3):
            run = history.loc[name, seed].right
            assert run[20] < run[0]


def test_no_reward_model_finds_errors_and_the_policy_does(reward_models):
    for name in MODELS:
        row = reward_models.loc[name]
        assert (abs(row.own - row.chance_own) < 0.09).all()
        assert (abs(row.planted - row.chance_planted) < 0.1).all()
        assert all((row[pick] < row.random - 0.15).all() for pick in PICKS)
        assert (row.best_min > row[["best_last", "best_product"]].max(axis=1)).all()
    policy = reward_models.loc["no reward model"]
    assert (policy[["best_product", "own", "planted"]] > 0.8).all().all()


def test_labels_by_continuation_fall_at_the_wrong_step(start):
    """Section 4's two responses; the bounds leave room for other draws."""
    policy, tokenizer = start
    asked = ["4*5+13+3-8=", "8+17-13+13-15+10-19="]
    written = [
        "20+13+3-8=33+3-8=39-8=31",
        "25-13+13-15+10-19=12+13-15+10-19=25-15+10-19=10+10-19=20-19=11",
    ]
    rows = loops.continuation_labels(
        policy,
        tokenizer,
        asked,
        models.encode(tokenizer, asked, written),
        rewards.right_answer,
        step_end="=",
        count=64,
        sampling=SAMPLING,
        generator=torch.Generator().manual_seed(1),
    )
    first, second = rows["labels"]
    assert min(first[:2]) > 0.85 and first[2:] == [0, 0]
    assert max(second[:-1]) < 0.35 and second[-1] == 0


# ---- the numbers of the prose


def test_the_numbers_of_lab_15b(start, steps, reward_models, price):
    with lesson("15b") as said:
        idea(said, start)
        gained(said, steps, price)
        learned(said, start)
        labels(said)
        scores(said)
        judged(said, reward_models, steps)
        exercises(said)


def idea(said, start):
    said("is `tiny-long-steps`, a GPT-2 of", start[0].num_parameters() / 1e6)
    said("The first loss is", math.log(2))


def gained(said, steps, price):
    assert OWN.steps == 200
    said("and take", OWN.steps)
    per_step = steps.loc["step dpo"].labels.mean() / OWN.steps
    said("| Step-DPO |", PROMPTS["step"], 290, abs(per_step - 290) < 5)
    said("| whole responses |", PROMPTS["whole"], 2 * PROMPTS["whole"])
    mean = steps.groupby("variant")[["pass_1", "greedy", "step_right"]].mean()
    gain = mean.pass_1 - mean.pass_1["start"]
    said("**Whole responses win.**", gain["whole responses"], gain["step dpo"], 0)
    assert abs(mean.greedy["step dpo"] - mean.greedy["whole responses"]) < 0.005
    said("With greedy decoding the two are nearly equal")
    assert 0.87 < mean.step_right["start"] < 0.92  # nine of ten
    share = torch.tensor(steps.loc["start"].pass_1_by_prompt.tolist())
    # of two of 16 responses, drawn without replacement
    differ = (2 * share * (1 - share) * 16 / 15).mean().item()
    said("With its tries, Step-DPO pays", 11, abs(price - 11) < 1.5, differ)
    said("So a pair of whole responses costs", 2 / differ)
    said("**Both fall first.** After", 20)
    said("**Believe the table, not the ends of the curves.**", ASKED)
    assert TRIES == 16
    history = experiments.results("steps_history").groupby(["variant", "step"]).right.mean()
    ends = history["step dpo", OWN.steps], history["whole responses", OWN.steps // 2]
    said("There the curves have", *ends)
    pairs = per_step / price, PROMPTS["whole"] * differ / 2
    assert abs(pairs[0] / pairs[1] - 1) < 0.15


def learned(said, start):
    """What twenty steps teach: the share of right steps, and little about a step."""
    policy, tokenizer = start
    prompts = faults_15b.problems("train", 2000, seed=1)[:400]
    texts = faults_15b.responses(policy, tokenizer, prompts, seed=0)
    rows = [tasks.arithmetic.labelled_steps(p, t) for p, t in zip(prompts, texts, strict=True)]
    rows = [row for row in rows if all(row["completions"])]
    given = [y for row in rows for y in row["labels"] if y is not None]
    config = loops.PRMConfig(
        step_end="=", steps=20, batch_size=32, optimiser=loops.OptimiserConfig.plain(lr=1e-3)
    )
    backbone = copy.deepcopy(policy).requires_grad_(True).base_model
    scorer, _ = loops.train_prm(backbone, tokenizer, Dataset.from_list(rows), config)
    ends = models.step_end_ids(policy, tokenizer, "=")
    read = models.encode(tokenizer, ["12+10-1+7="], ["22-1+7=20+7=27"])
    with torch.no_grad():
        good = models.step_logits(scorer, read, ends)[0].sigmoid()[0]
    share = sum(given) / len(given)
    near = ((good - share).abs() < 0.1).all()
    said("All three get about", share, bool(near))


def labels(said):
    said("Of $N = 8$ continuations", 2, 2 / 8, 2 / 8, 1)
    said("The **hard** label is", 1, 0)
    said("The mean soft label is $p$ =", 0.1)
    said("The mean hard label is $1 - 0.9^8$ =", 1 - 0.9**8, 1, 1 - 0.9**64 > 0.99)
    said("the label falls from near", 1, 0, 28)


def scores(said):
    said("With labels $y_s$ from", 0, 1)
    said("For a step with $\\sigma(z) = 0.8$", -math.log(0.8), -math.log(0.2))
    p = torch.tensor([[0.9, 0.2, 0.9]], dtype=torch.float64)
    mask = torch.ones_like(p, dtype=torch.bool)
    said("For steps with the probabilities", 0.9, 0.2, 0.9)
    for how in ("last", "min", "product"):
        score = core.process_reward_score(p.logit(), mask, how=how).exp().item()
        said(f"| **{how}** |", score)
    said("on the rule's labels of", 400)


def judged(said, reward_models, steps):
    checks = [reward_models.loc[n].labels.mean() for n in ("outcomes", "labels of the rule")]
    good = all(abs(x - 12_700) < 100 for x in checks)
    said("the same number of checks, about", 12_700, good)
    said("so a soft label costs", ROLLOUTS)
    said("the share of right ones among", ROLLOUTS)
    said("whether any of these", ROLLOUTS)
    said("**Pick**: of", TRIES)
    mean = reward_models.groupby("variant").mean(numeric_only=True)
    policy, trained = mean.loc["no reward model"], mean.loc[list(MODELS)]
    said("are best at both**", policy.best_product, policy.own, policy.planted)
    assert all(abs(mean[f"chance_{kind}"].mean() - 0.2) < 0.02 for kind in ("own", "planted"))
    found = trained[["own", "planted"]]
    said("The means of the reward models are", found.min().min(), found.max().max())
    picked = trained[list(PICKS)]
    said(
        "**They pick worse than a random response**",
        policy.random,
        picked.min().min(),
        picked.max().max(),
    )
    said("Then its pick is right in only", policy.blind)
    for pick in ("best_last", "best_product"):
        assert (abs(reward_models.loc[list(MODELS)][pick] - policy.blind) < 0.1).all()
    said("why a majority vote does so well", policy.majority)
    said("Then the first step below one half is the wrong one in", policy.labels_half)
    said("The step with the largest *fall* is it in more than", policy.labels_fall > 0.75)
    said("But a model that knew the soft labels would reach", policy.labels_half)
    said(
        "That is also what greedy decoding avoids, and it has",
        steps.loc["start"].greedy.mean(),
        ASKED,
        ASKED // 2,
    )
    frame = reward_models.reset_index()
    for better in ("soft labels", "outcomes at every step"):
        difference = experiments.difference_over_prompts_and_seeds
        assert difference(frame, "best_min", "hard labels", better).iloc[0].low > 0
        assert (reward_models.loc[better].best_min > policy.blind + 0.04).all()
    said("The policy has learned it from", DEMONSTRATIONS)
    said("The models of soft and hard labels have", PROBLEMS, 3_300, 12_700)
    config = process_rewards_config({"seed": 0})
    passes = config.steps * config.batch_size / PROBLEMS
    said(
        "The checks and the training steps are equal. But",
        config.steps,
        passes,
        PROBLEMS,
        4,
        round(config.steps * config.batch_size / 3_300) == 4,
        1,
    )
    said("With hard labels it has fallen to", mean.loss["hard labels"], PROBLEMS)


def exercises(said):
    said("Return the change that each step makes, (B, S), with", 0)
    said("NaN times", 0)
    said("Another colleague writes", -100)
    said("A label is", -100, 0, 1, 0)
    said("which steps have no label in section 5, and so", -100, 0.25)


# ---- the faulty runs of exercises 3 and 4


def curves_of_exercise_3():
    """(right answers, steps of a response), each by name, of the lab's figure."""
    book = nbformat.read(NOTEBOOKS / "15b_feedback_on_steps.ipynb", as_version=4)
    cell = next(c.source for c in book.cells if "written_steps = {" in c.source)
    return [ast.literal_eval(line.value) for line in ast.parse(cell).body[:2]]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["colleague", "mended"])
def test_the_curves_of_exercise_3_are_those_of_imitation(name):
    found = faults_15b.trained_on_steps(append_eos=name == "colleague")
    right, written = (curves[name] for curves in curves_of_exercise_3())
    # another processor may sample another token somewhere
    assert found[0] == pytest.approx(right, abs=0.05)
    assert found[1] == pytest.approx(written, abs=0.2)


@pytest.mark.slow
def test_with_dpo_the_same_fault_does_not_shorten_the_responses():
    _, written = faults_15b.trained_on_steps(append_eos=True, loss="dpo")
    assert min(written) > written[0] - 0.05


@pytest.mark.slow
def test_the_table_of_exercise_4_is_that_of_labels_cast_to_bool():
    book = nbformat.read(NOTEBOOKS / "15b_feedback_on_steps.ipynb", as_version=4)
    cell = next(c.source for c in book.cells if "steps after them" in c.source)
    table = ast.literal_eval(ast.parse(cell).body[0].value)
    for name, cast in (("colleague", True), ("mended", False)):
        means, right = faults_15b.reward_model_reads(cast=cast)
        assert table[name] == pytest.approx([right, *means], abs=0.02)
