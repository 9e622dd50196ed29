"""Lesson 09, the four models: every number of its prose, and every claim about a recorded run."""

import copy
import math

import nbformat
import pandas as pd
import pytest
import torch
from scipy.stats import t as student_t

from minirlhf import core, experiments, loops, models, rewards, tasks
from minirlhf.classroom import atlas, check
from minirlhf.classroom.course import NOTEBOOKS
from minirlhf.experiments import faults
from minirlhf.experiments.runs import RUNS
from minirlhf.show import difference_of_means
from tests.claims.prose import lesson

SEEDS = range(3)
SAME = ["as it is", "kl_coef 0.5"]  # the same settings, three runs each
SFT_CRITIC = "critic from the SFT model"
WITH, WITHOUT = "kl_coef 0.5", "kl_coef 0"  # the KL penalty of section 7
WARM = "ppo, critic trained first"


# ---- section 2: the batch of the page


@pytest.fixture(scope="module")
def responses():
    """The four responses of the microscope, from the record: dicts of columns."""
    recorded = experiments.results("microscope")
    table = recorded[(recorded.source == "fresh") & (recorded.step == 12)]
    return [rows.to_dict("list") for _, rows in table.groupby("text")]


@pytest.fixture(scope="module")
def broken(responses):
    """The advantages of response 3 with all four models, and without one of them."""
    fine = responses[3]
    score = fine["score"][0]
    nothing = [0.0] * len(fine["kl"])

    def advantages(score=score, kl=fine["kl"], values=fine["value"]):
        row = [-0.5 * x for x in kl]
        row[-1] += score
        rewards, values = torch.tensor([row]), torch.tensor([values])
        mask = torch.ones(rewards.shape, dtype=torch.bool)
        return core.gae(rewards, values, mask, gamma=1, lam=0.95)[0][0].tolist()

    return {
        "all four": advantages(),
        "no reference": advantages(kl=nothing),
        "no reward model": advantages(score=0.0),
        "no critic": advantages(values=nothing),
    }


def source_cells():
    """The sources of the page's code cells."""
    cells = nbformat.read(NOTEBOOKS / "09_the_four_models.ipynb", 4).cells
    return [c.source for c in cells if c.cell_type == "code"]


def at(response, token):
    """All numbers of the first such token of a response."""
    place = response["token"].index(token)
    return {name: column[place] for name, column in response.items()}


def test_the_page_reads_the_record_that_is_compared_here():
    (cell,) = [c for c in source_cells() if 'results("microscope")' in c]
    assert '(recorded.source == "fresh") & (recorded.step == 12)' in cell
    settings = experiments.EXPERIMENTS["microscope"]["as it is"]
    assert 12 in settings["read_at"] and "ppo" not in settings  # the usual settings of PPO
    config = loops.PPOConfig()
    assert (config.steps, config.sampling.temperature, config.kl.kl_coef) == (24, 0.7, 0.5)


def test_reference_and_reward_model_say_of_the_reviews_what_is_recorded(responses):
    """So the page can let them read the reviews on any machine."""
    sft, tokenizer = models.load_policy("tiny-reviews-sft")
    reward_model, _ = models.load_scalar("tiny-reviews-reward")
    titles = [r["prompt"][0] for r in responses]
    assert titles == tasks.reviews.eval_prompts("test")[:4]
    batch = models.encode(tokenizer, titles, ["".join(r["token"][:-1]) for r in responses])
    assert batch.response_mask.sum(1).tolist() == [len(r["token"]) for r in responses]
    with torch.no_grad():
        found = models.policy_logprobs(sft, batch, temperature=0.7)
        scores = rewards.rollout_score(reward_model, tokenizer.eos_token_id)(batch)
    for row, r in enumerate(responses):
        assert found[row, : len(r["token"])].tolist() == pytest.approx(r["ref_logprob"], abs=1e-3)
        assert scores[row].item() == pytest.approx(r["score"][0], abs=1e-3)


def test_the_numbers_of_the_page_belong_together(responses):
    for r in responses:
        count, later = len(r["token"]), 0.0
        for t in reversed(range(count)):  # the record has five digits of each number
            ratio = r["old_logprob"][t] - r["ref_logprob"][t]
            assert r["kl"][t] == pytest.approx(ratio, abs=1e-3)
            score = r["score"][0] if t == count - 1 else 0.0
            assert r["reward"][t] == pytest.approx(score - 0.5 * r["kl"][t], abs=1e-3)
            after = r["value"][t + 1] if t + 1 < count else 0.0
            error = r["reward"][t] + after - r["value"][t]
            assert r["td_error"][t] == pytest.approx(error, abs=1e-3)
            later = r["td_error"][t] + loops.PPOConfig().lam * later
            assert r["advantage"][t] == pytest.approx(later, abs=1e-3)


def test_the_samples_of_the_page(responses):
    words = ["".join(r["token"][:-1]) for r in responses]
    assert words[3].strip() == "A finely entertaining tale."
    assert responses[3]["token"] == [
        *("A", " fine", "ly", " entertaining", " tale", "."),
        "<|endoftext|>",
    ]
    assert " bad" in words[2] and words[2].count("performance") == 2


def test_the_reward_models_scores_have_mean_0_and_standard_deviation_1():
    recorded = experiments.results("tour")
    assert recorded[recorded.method == "SFT"].proxy.abs().max() < 0.1


# ---- section 6: the critic


@pytest.fixture(scope="module")
def logged():
    return experiments.results("ablations_history", "leash_history", "resources_history")


def explained(logged, variant, step):
    rows = logged[(logged.variant == variant) & (logged.step == step)]
    assert len(rows) == len(SEEDS)
    return rows.explained_variance


def test_the_start_decides_how_long_the_critic_is_useless(logged):
    for variant in SAME:
        assert (explained(logged, variant, 0) < 0).all() and (
            explained(logged, variant, 1) > 0
        ).all()
    assert (explained(logged, SFT_CRITIC, 0) < -5).all()
    means = [explained(logged, SFT_CRITIC, step).mean() for step in range(24)]
    assert max(means[:6]) < 0 < min(means[6:])
    for step in range(24):  # it stays behind, as a mean over the seeds
        assert means[step] < explained(logged, "as it is", step).mean()


def test_new_last_layers_swing_by_whole_points():
    sft, tokenizer = models.load_policy("tiny-reviews-sft")
    (batch,) = models.sample_text(sft, tokenizer, tasks.reviews.rl_prompts()[:16], seed=0)
    for seed in SEEDS:
        torch.manual_seed(seed)
        values = models.response_values(models.ScalarModel(copy.deepcopy(sft).base_model), batch)
        steps = (values[:, 1:] - values[:, :-1]).abs()[batch.response_mask[:, 1:]]
        assert steps.mean() > 0.5 and steps.max() > 2


def gold(variant, *records):
    runs = experiments.results(*records)
    return runs[runs.variant == variant].gold


def six_runs():
    """The gold scores of the six runs whose critic starts as the reward model."""
    return [g for v in SAME for g in gold(v, "ablations", "leash")]


def test_a_worse_start_costs_little_gold():
    six = six_runs()
    difference, low, high = difference_of_means(gold(SFT_CRITIC, "resources"), six)
    assert len(six) == 6 and -0.2 < low < difference < 0 < high
    (alone,) = gold("dead critic", "atlas")
    assert alone < min(six)


def test_the_records_start_from_the_models_that_the_page_says():
    """The tour trains its SFT and reward model per seed; the other records share the committed ones."""
    rows = experiments.results("tour")
    before_ppo = rows[rows.method == "SFT"].set_index("seed").gold_by_prompt
    assert before_ppo.map(tuple).nunique() == 3
    assert {RUNS.get(name) for name in ("ablations", "leash", "resources", "atlas")} == {None}


@pytest.fixture(scope="module")
def practised():
    history = experiments.results("family_history")
    return {v: history[history.variant == v] for v in ("ppo", WARM)}


def test_the_warm_up_shows_no_gain(practised):
    family = experiments.results("family")
    table = experiments.difference_over_prompts_and_seeds(family, "pass_1", "ppo", [WARM])
    assert (table.low < 0).all() and (table.high > 0).all()
    frozen = practised[WARM]
    assert frozen[frozen.step < 15].kl.abs().max() < 1e-3 < frozen[frozen.step == 24].kl.min()
    late = [
        rows[rows.step >= 36].groupby("step").explained_variance.mean()
        for rows in practised.values()
    ]
    assert all(column.abs().max() < 0.15 for column in late)
    assert loops.PPOConfig().critic_warmup == 0


@pytest.mark.slow
def test_the_reward_models_blocks_help_a_critic_with_a_new_layer():
    """Three critics learn from the same reviews of a frozen actor. See "Head or backbone?"."""
    sft, tokenizer = models.load_policy("tiny-reviews-sft")
    reward_model, _ = models.load_scalar("tiny-reviews-reward")
    score = rewards.rollout_score(reward_model, tokenizer.eos_token_id)
    prompts = tasks.reviews.rl_prompts()
    batches = [
        models.sample_text(sft, tokenizer, prompts[16 * i :][:16], seed=i)[0] for i in range(3)
    ]
    came = [core.reward_to_go(last_reward(score, b), b.response_mask) for b in batches]

    def learned(backbone, critic=None):
        torch.manual_seed(1)
        critic = (critic or models.ScalarModel(backbone)).requires_grad_(True)
        optimizer = loops.make_optimizer(critic, loops.OptimiserConfig(lr=3e-4))
        for batch, returns in zip(batches[:2], came, strict=False):
            for _ in range(3):
                losses = core.value_loss(
                    models.response_values(critic, batch), returns, batch.response_mask
                )
                core.aggregate(losses, batch.response_mask).backward()
                optimizer.step()
                optimizer.zero_grad()
        with torch.no_grad():
            values = models.response_values(critic, batches[2])
        return core.explained_variance(values, came[2], batches[2].response_mask).item()

    found = {
        "reward model": learned(None, copy.deepcopy(reward_model)),
        "new layer": learned(copy.deepcopy(reward_model).backbone),
        "SFT model": learned(copy.deepcopy(sft).base_model),
    }
    assert min(found["reward model"], found["new layer"]) > found["SFT model"] + 0.2


def last_reward(score, batch):
    mask = batch.response_mask
    with torch.no_grad():
        return core.kl_shaped_rewards(
            score(batch), batch.old_logprobs, batch.old_logprobs, mask, kl_coef=0.0
        )


# ---- section 5: evaluation


@pytest.fixture(scope="module")
def tour():
    return experiments.results("tour")


def by_film(tour, method, seed):
    rows = tour[(tour.method == method) & (tour.seed == seed)]
    return torch.tensor(rows["gold_by_prompt"].iloc[0])


def against_ppo(tour, how):
    return how(tour, "gold", "PPO", ["SFT", "best-of-4", "best-of-16"], by="method")


def test_ppo_lies_between_best_of_4_and_best_of_16(tour):
    for seed in SEEDS:
        ppo = by_film(tour, "PPO", seed).mean()
        assert (
            by_film(tour, "best-of-4", seed).mean() < ppo < by_film(tour, "best-of-16", seed).mean()
        )
    films = against_ppo(tour, experiments.difference_over_prompts)
    both = against_ppo(tour, experiments.difference_over_prompts_and_seeds)
    assert films.high["best-of-4"] < 0 < films.low["best-of-16"]
    assert 0 < both.high["best-of-4"] < 0.01 and 0 < both.low["best-of-16"] < 0.01
    wider = (both.high - both.low) / (films.high - films.low)
    assert wider["best-of-4"] == pytest.approx(3, abs=0.15)
    assert wider["best-of-16"] == pytest.approx(2, abs=0.15)


def over_seeds(tour, method):
    """PPO's gold score minus that of a method: (mean, standard deviation, low, high) of the runs."""
    at = {m: tour[tour.method == m].set_index("seed").gold for m in ("PPO", method)}
    above = at["PPO"] - at[method]
    assert sorted(above.index) == list(SEEDS)
    half = factor(len(above)) * above.std() / math.sqrt(len(above))
    return above.mean(), above.std(), above.mean() - half, above.mean() + half


def factor(runs):
    """Student's t: how many standard errors a 95 % interval of so many runs goes to each side."""
    return float(student_t.ppf(0.975, runs - 1))


def test_three_runs_decide_about_sft_and_not_about_best_of_n(tour):
    intervals = {m: over_seeds(tour, m)[2:] for m in ("SFT", "best-of-4", "best-of-16")}
    assert intervals["SFT"][0] > 0
    assert all(low < 0 < high for low, high in (intervals["best-of-4"], intervals["best-of-16"]))


def test_the_interval_of_the_page_is_computed_as_here():
    (cell,) = [c for c in source_cells() if c.startswith("half = 4.303")]
    assert round(factor(3), 3) == 4.303
    names = {"above": pd.DataFrame({"x": [1.0, 2.0, 4.0]}), "pd": pd}
    exec(cell.rsplit("\n", 1)[0], names)
    pooled = 4.303 * math.sqrt(7 / 3) / math.sqrt(3)
    assert names["half"]["x"] == pytest.approx(pooled)


def bounds(table, method):
    """The interval of PPO minus a method; the table has the method minus PPO."""
    return -table.high[method], -table.low[method]


def error_over_both(tour, method):
    """(standard error, factor) of PPO minus a method for other films and runs: the two-way layout."""
    d = torch.stack([by_film(tour, "PPO", s) - by_film(tour, method, s) for s in SEEDS]).double()
    runs, films = d.shape
    rows, columns = d.mean(1, keepdim=True), d.mean(0, keepdim=True)
    freedom = (runs - 1, films - 1, (runs - 1) * (films - 1))
    run, film, rest = (
        (x.square().sum() * times / n).item()
        for x, times, n in zip(
            (rows - d.mean(), columns - d.mean(), d - rows - columns + d.mean()),
            (films, runs, 1),
            freedom,
            strict=True,
        )
    )
    total = max(run + film - rest, run, film)
    parts = sum(x**2 / n for x, n in zip((run, film, rest), freedom, strict=True))
    return math.sqrt(total / (runs * films)), float(student_t.ppf(0.975, total**2 / parts))


def errors_of_one_seed(tour, method):
    """(standard error, that without pairing) of PPO minus a method, by seed."""
    found = []
    for seed in SEEDS:
        a, b = by_film(tour, "PPO", seed), by_film(tour, method, seed)
        unpaired = ((a.var() + b.var()) / len(a)).sqrt().item()
        found.append(((a - b).std().item() / math.sqrt(len(a)), unpaired))
    return found


def test_films_that_are_easy_for_one_method_are_not_easier_for_the_other(tour):
    for method in ("best-of-4", "best-of-16"):
        for seed in SEEDS:
            pair = torch.stack([by_film(tour, m, seed) for m in ("PPO", method)])
            assert -0.05 < torch.corrcoef(pair)[0, 1] < 0.15


# ---- section 7: healthy and hacked


@pytest.fixture(scope="module")
def leash():
    history, runs = experiments.results("leash_history"), experiments.results("leash")
    return tuple(frame[frame.variant.isin([WITH, WITHOUT])] for frame in (history, runs))


def step_means(history, variant, name):
    return history[history.variant == variant].groupby("step")[name].mean()


def test_the_hacked_runs_end_higher_in_gold_explained_variance_and_length(leash):
    history, runs = leash
    last = history[history.step == 23].groupby("variant")[["gold", "explained_variance", "length"]]
    assert (last.mean().loc[WITHOUT] > last.mean().loc[WITH]).all()
    for name in ("gold", "length"):
        assert last.min()[name][WITHOUT] > last.max()[name][WITH]


def test_responses_that_are_alike_leave_the_critic_little_to_predict(leash):
    """The variance of the critic's targets, value loss / (1 - explained variance), up to a factor."""
    history, _ = leash
    late = history[history.step >= 20].groupby(["variant", "seed"]).mean(numeric_only=True)
    varies = late.value_loss / (1 - late.explained_variance)
    assert 10 * varies[WITHOUT].max() < varies[WITH].min()
    assert 10 * late.value_loss[WITHOUT].max() < late.value_loss[WITH].min()


def test_gold_falls_while_the_score_still_rises(leash):
    history, _ = leash
    for seed in SEEDS:
        run = history[(history.variant == WITHOUT) & (history.seed == seed)].set_index("step")
        assert run.gold[23] < run.gold[12] - 0.1 and run.score[23] > run.score[12] + 0.2
        assert run.gold.idxmax() <= 12


def test_the_samples_of_both_runs(leash):
    read = experiments.samples(leash[1], [WITH, WITHOUT]).head(4)
    assert read[WITH].nunique() == 4 and "Bad, funny and very funny." in set(read[WITH])
    for text in read[WITHOUT]:
        assert text.startswith("A funny and funny and") and text.count("funny") >= 5


def test_the_kl_warns_before_gold_falls(leash):
    """In each run: at step 6 the KL is far above that of the healthy runs, and gold still rises."""
    history, _ = leash
    healthy = history[history.variant == WITH]
    for seed in SEEDS:
        run = history[(history.variant == WITHOUT) & (history.seed == seed)].set_index("step")
        assert run.kl[6] > 2 * healthy[healthy.step == 6].kl.max()
        assert run.gold[6] < run.gold[8] and run.gold.idxmax() > 8
        assert run.entropy[6] > 0.8 * run.entropy[0] and run.entropy[23] < 0.25 * run.entropy[0]


# ---- section 8 and exercise 5: logs of runs with a fault


@pytest.fixture(scope="module")
def logs():
    """Name -> the log of one run of the atlas, by step."""
    rows = experiments.results("atlas_history")
    return {name: run.set_index("step") for name, run in rows.groupby("variant")}


def test_each_row_of_the_table_is_seen_in_its_run_alone(logs, leash):
    healthy = leash[0][leash[0].variant == WITH]

    def stands_out(column, step, name):
        """Whether a run is above the healthy runs and the two other runs of the figure."""
        others = [logs[n].loc[step, column] for n in atlas.NAMED if n != name]
        return logs[name].loc[step, column] > max(
            *others, healthy[healthy.step == step][column].max()
        )

    assert stands_out("missing_eos", 0, "EOS never trained")
    assert stands_out("value_loss", 0, "reward scale wrong")
    assert stands_out("clip_fraction", 0, "collapsed") and stands_out("kl", 1, "collapsed")
    assert stands_out("explained_variance", 16, "collapsed")
    assert logs["collapsed"].entropy[16] < 0.05
    assert logs["collapsed"].length[8:16].between(4.9, 6.1).all()
    hacked = leash[0][leash[0].variant == WITHOUT]
    for seed in SEEDS:
        run = hacked[hacked.seed == seed].set_index("step")
        assert run.score[23] > run.score[12] > run.score[6] and run.kl[23] > 60


def test_the_explained_variance_of_the_wrong_scale_falls(logs):
    column = logs["reward scale wrong"].explained_variance
    assert column[:8].max() > 0.35 and column[18:].max() < 0.2


def test_the_solution_of_exercise_5(logs):
    key = {
        "A": "equal scores",
        "B": "healthy",
        "C": "no penalty",
        "D": "zero values",
        "E": "turned sign",
    }
    assert atlas.diagnosed(key).startswith("5 of 5.")
    run = {letter: logs[atlas.RECORDED.get(name, name)] for letter, name in key.items()}
    for log in run.values():  # none of the faults of section 8
        assert log.missing_eos[0] < 0.05 and log.value_loss[0] < 1.1
        assert log.clip_fraction.max() < 0.15
    first = {letter: log.value_loss[0] for letter, log in run.items()}
    assert min(first, key=first.get) == "D" and round(first["D"], 2) == 0.18
    assert run["A"].kl.max() < 1.2 and run["A"].length[16:].min() > 16
    assert run["B"].length[16:].max() < 16.5
    a, b = (run[letter].value_loss[23] for letter in "AB")
    assert round(a, 2) == 0.05 and a < b / 2 and round(b, 2) == 0.12
    assert a < first["A"] / 4 and b < first["B"] / 4
    assert run["B"].score[20:].mean() > run["D"].score[20:].mean() + 0.2
    assert set(run["A"].score) == {1.0} and run["A"].kl[23] > 0.5
    assert run["A"].explained_variance[0] == pytest.approx(-3, abs=0.2)
    assert set(run["D"].explained_variance) == {0.0}
    assert (
        run["D"].value_loss[23] > run["D"].value_loss[0] and run["D"].gold[23] < run["B"].gold[23]
    )
    for letter in "CE":  # like the healthy run at first, then a drift
        assert run[letter].score[0] == run["B"].score[0] and run[letter].kl[2] < 1
        assert run[letter].score[23] > run[letter].score[16] > run[letter].score[8]
        assert run[letter].kl[23] > 90 and run[letter].gold[23] > 2.5
    assert round(run["C"].entropy[23], 2) == 0.45 and run["C"].missing_eos[23] < 0.1
    assert round(run["E"].kl[23]) == 222 and run["E"].missing_eos[23] > 0.9
    assert (run["E"].kl.diff()[1:] > -8).all() and run["E"].value_loss[23] > 600
    assert run["B"].kl.max() < 3 and round(run["B"].explained_variance[23], 2) == 0.74
    assert round(run["B"].gold[23], 1) == 1.2


def test_a_critic_without_eyes_is_no_better_than_the_position():
    """Exercise 1: the values that depend on the position alone and explain the most."""
    targets = torch.tensor([[1.0, 3.0], [3.0, torch.nan]])
    mask = torch.tensor([[True, True], [True, False]])
    best = check.EXERCISES["explained_by_position"].reference(targets, mask).item()
    assert best == pytest.approx(0.25)
    for first in (1.5, 2.5):
        values = torch.tensor([[first, 3.0]]).expand(2, 2)
        squares = (targets - values)[mask].square().mean() / targets[mask].var(unbiased=False)
        assert 1 - squares.item() < best


def test_the_bug_of_exercise_4_teaches_no_stopping():
    """With the bug the expected score stays near a third, without it it comes close to 1."""

    def with_bug(scores, ids, eos_id):
        last = ((ids != eos_id).sum(1) - 1).clamp(min=0)
        return torch.zeros(ids.shape).scatter(1, last[:, None], scores[:, None])

    def mended(scores, ids, eos_id):
        ended = ids == eos_id
        last = torch.where(ended.any(1), ended.int().argmax(1), ids.shape[1] - 1)
        return torch.zeros(ids.shape).scatter(1, last[:, None], scores[:, None])

    ends = {f: [learned_to_stop(f, seed)[-1] for seed in range(5)] for f in (with_bug, mended)}
    assert 0.3 < min(ends[with_bug]) and max(ends[with_bug]) < 1 / 3  # EOS after a keeps 1/3
    assert min(ends[mended]) > 0.9


def learned_to_stop(place, seed):
    """The path of exercise 4's training, with another function that places the score."""
    world = core.World.from_reward(("a", "b", "."), 3, lambda words: float(words == ["a", "."]))
    drawing, logits, path = torch.Generator().manual_seed(seed), world.ref_logits, []
    for _ in range(80):
        path.append(world.objective(logits).item())
        rows = torch.multinomial(world.probs(logits), 32, True, generator=drawing)
        mask, ids = world.response_mask[rows], world.response_ids[rows]
        returns = core.reward_to_go(place(world.rewards[rows].float(), ids, 2), mask)
        logits = logits.detach().requires_grad_(True)
        losses = core.reinforce(world.logprobs(logits)[rows], returns, mask)
        core.aggregate(losses, mask, how="sequence_sum").backward()
        logits = logits - logits.grad
    return path


# ---- every number of the prose


def test_the_numbers_of_the_page(responses, broken, logged, practised, tour, leash, logs):
    with lesson("09") as said:
        the_batch(said, responses)
        one_fails(said, broken, responses)
        the_evaluation(said, tour)
        the_critic(said, logged)
        the_hacked_run(said, leash)
        the_log(said, leash, logs)
        the_exercises(said, tour, leash, logs)
        a_warm_up(said, practised)
        going_further(said, tour, logged, leash)


def the_batch(said, responses):
    tale = responses[3]
    beta, config = loops.PPOConfig().kl.kl_coef, loops.PPOConfig()
    fine, ly, word, stop, end = (
        at(tale, name) for name in (" fine", "ly", " tale", ".", tale["token"][-1])
    )
    total, score = sum(tale["kl"]), end["score"]
    said("the sum of the rewards that are still to come, and is", 0)
    said("so that you see the numbers of this page. After", 12, config.steps, len(responses))
    said("We follow response", 3)
    said("The reward model gives it", score, score > 1)
    old, ref = (round(word[name], 2) for name in ("old_logprob", "ref_logprob"))
    said("1. The log-ratio of *tale* is", old, -ref, old - ref, word["reward"])
    assert round(old - ref, 2) == round(word["kl"], 2)
    before, after = pd.Series([word["value"], stop["value"]]).round(2)  # as the page rounds
    cost = round(word["reward"], 2)
    said("2. The critic says", before, after, cost, after, before, cost + after - before)
    assert round(cost + after - before, 2) == round(word["td_error"], 2)
    said("(After EOS the value is", 0)
    rounded = (round(end["reward"], 2), round(end["value"], 2))
    said("No. Its log-ratio is", abs(end["kl"]), end["reward"])
    said("so its advantage is its TD error:", *rounded, rounded[0] - rounded[1], end["advantage"])
    assert end["advantage"] == end["td_error"]
    said("No. The sum is", sum(tale["reward"]), total, beta * total, beta * total > score)
    said("times, or", math.exp(total), max(tale["advantage"]) < 0, len(tale["token"]) == 7)
    said("gives: the sum of the rewards is", sum(tale["reward"]), tale["value"][0])
    assert config.whiten  # of the usual settings, not of the table
    flat = responses[2]
    bad, place = at(flat, " bad"), flat["token"].index(" bad")
    said("Try these two things, both in response", 2)
    said(
        "**A bonus.** *bad* (of *badly*) has the reward",
        bad["reward"],
        bad["td_error"],
        bad["value"],
    )
    said("after it only", flat["value"][place + 1], bad["old_logprob"] < bad["ref_logprob"])
    solid, last = flat["token"].index(" solid"), len(flat["token"]) - 3
    assert flat["token"][last] == " performance" and flat["token"].index(" performance") < last
    said("the second *performance* have the rewards", flat["reward"][solid], flat["reward"][last])
    said("them: the TD errors are", flat["td_error"][solid], flat["td_error"][last])
    blamed = flat["advantage"][flat["token"].index(",") : solid + 1]
    said("Choose *advantage*: the", len(blamed))
    assert max(blamed) < 0
    q = fine["reward"] + ly["value"]
    said("For *fine* in response", 3, fine["reward"], ly["value"], q, fine["value"])
    said("The difference is the TD error,", fine["td_error"])
    assert fine["td_error"] == pytest.approx(q - fine["value"], abs=1e-3)


def one_fails(said, broken, responses):
    signs = {name: [a > 0 for a in column] for name, column in broken.items()}
    assert signs["all four"] == 7 * [False]
    tale = responses[3]
    said("and compute the advantages of response", 3)
    said("it gives every response the score", 0)
    said("*No critic*: it says", 0)
    said("(The critic says", tale["value"][0], tale["value"][-1])
    column = broken["no reference"]
    assert signs["no reference"] == 5 * [True] + 2 * [False] and column[:5] == sorted(
        column[:5], reverse=True
    )
    said("the first five are positive, from", column[0], column[4], tale["score"][0])
    assert min(tale["value"][5:]) > tale["score"][0] > max(tale["value"][:5])
    pairs = zip(broken["no reward model"], broken["all four"], strict=True)
    said("all seven are negative, and lower than before", all(a < b < 0 for a, b in pairs))
    said(
        "the first four are negative, the last three",
        signs["no critic"] == [False] * 4 + [True] * 3,
    )


def the_critic(said, logged):
    config = loops.PPOConfig()
    start, sft = (explained(logged, v, 0).mean() for v in ("as it is", SFT_CRITIC))
    assert start < 0 < explained(logged, "as it is", 1).mean()
    above = next(k for k in range(24) if explained(logged, SFT_CRITIC, k).mean() > 0)
    six = six_runs()
    difference, low, high = difference_of_means(gold(SFT_CRITIC, "resources"), six)
    count = len(gold(SFT_CRITIC, "resources"))
    said("We recorded PPO with both,", config.steps, config.batch_size, count, len(six))
    said("before the update, as a mean over three runs of each start:", 1, 0)
    said("Which start is worse at step", 0, 0)
    said("- *Reward model*:", start, 0, 0)
    said("- *SFT model*:", sft, 0, 1 - sft, 0, above)
    said("with the SFT start it is", -difference, low, high, 0, low < 0 < high)


def a_warm_up(said, practised):
    config = loops.PPOConfig()
    family = experiments.results("family")
    frozen = practised[WARM]
    warm = frozen[frozen.kl.abs() < 1e-3].step.max()  # sampled before the actor's first update
    said("(`critic_warmup`,", config.critic_warmup)
    problems = len(family["pass_1_by_prompt"].iloc[0])
    passed = family.groupby("variant").pass_1.mean()
    table = experiments.difference_over_prompts_and_seeds(family, "pass_1", "ppo", [WARM])
    said("random last layer.", warm, problems, passed["ppo"], passed[WARM])
    said("of the difference, for other problems and seeds,", *table.low, *table.high)
    assert frozen.seed.nunique() == 3


def the_evaluation(said, tour):
    ppo = tour[tour.method == "PPO"]
    films_of = len(ppo.gold_by_prompt.iloc[0])
    said("**Held-out prompts.** We use", films_of)
    said("the rating from", -4, 4)
    said("one gold score per method, the mean over the", films_of)
    for name in ("4", "16"):
        same_sign = {
            a.gold > b.gold
            for (_, a), (_, b) in zip(
                ppo.iterrows(), tour[tour.method == f"best-of-{name}"].iterrows(), strict=True
            )
        }
        said("In each of the three runs it lies between", same_sign == {name == "4"})
    mean, deviation, low, high = over_seeds(tour, "best-of-4")
    said("three differences have the mean", mean, deviation)
    said("plus and minus", factor(3), low, high, low < 0 < high)
    said("For many runs the factor would be", factor(10**6))
    said("For three it is", factor(3))
    said("**Predict.** Does the interval contain", 0)
    mean, _, low, high = over_seeds(tour, "SFT")
    said("- *SFT*: no. PPO is", mean, low, high, low > 0)
    mean, _, low, high = over_seeds(tour, "best-of-16")
    said("- *Best-of-16*: yes. PPO is", -mean, low, high, low < 0 < high)
    gain = ppo.gold.mean() - tour[tour.method == "SFT"].gold.mean()
    said("PPO gains about one gold point over SFT, at a KL of", 0.9 < gain < 1.1, ppo.kl.mean())
    assert loops.PPOConfig().kl.kl_coef == 0.5
    best = tour[tour.method == "best-of-16"]
    said("Best-of-16 has about the same KL, at most", best.kl.max(), 16)
    assert best.gold.mean() > ppo.gold.mean() and abs(best.kl.max() - ppo.kl.mean()) < 0.2
    assert ppo.kl.min() < best.kl.max() < ppo.kl.max()


def the_hacked_run(said, leash):
    history, runs = leash
    last = history[history.step == 23].groupby("variant").mean(numeric_only=True)
    course = step_means(history, WITHOUT, "gold")
    kl, entropy = (step_means(history, WITHOUT, name) for name in ("kl", "entropy"))
    said("- The *score* never warns: it rises to", last.score[WITHOUT], 12)
    said("The *KL* warns first. At step", 6, kl[6], step_means(history, WITH, "kl")[6])
    said("It ends at", last.kl[WITHOUT])
    said("it falls from", entropy[0], entropy[23])
    said(
        "Gold itself is no alarm. It falls from", course.max(), last.gold[WITHOUT], last.gold[WITH]
    )
    means = runs.groupby("variant")[["distinct_2", "opening_share", "kl", "entropy"]].mean()
    films_of = len(runs.gold_by_prompt.iloc[0])
    said(
        "Variety can also be counted: on the",
        films_of,
        means.distinct_2[WITHOUT],
        means.distinct_2[WITH],
    )


def the_log(said, leash, logs):
    ppo, limit = loops.PPOConfig(), loops.PPOConfig().sampling.max_new_tokens
    rate = experiments.EXPERIMENTS["atlas"]["collapsed"]["ppo"]["actor"].lr
    said("the learning rate is thirty times too high", rate / ppo.actor.lr == pytest.approx(30))
    said("the scores are twenty times as large", faults.twentyfold(lambda r: 1.0)(None) == 20)
    said("*missing_eos* is the share of responses that were cut at", limit)
    said("So at step", 0)
    said("- **At the start**, step", 0)
    never, scale, collapsed = (logs[name] for name in atlas.NAMED[::-1])
    first = {
        v: leash[0][(leash[0].variant == v) & (leash[0].step == 0)].value_loss.mean()
        for v in (WITH, WITHOUT)
    }
    sft = explained(experiments.results("resources_history"), SFT_CRITIC, 0).mean()
    said("| start | *missing_eos* is", never.missing_eos[0])
    said("| start | *value_loss* is", scale.value_loss[0], first[WITH])
    said("| start | *explained_variance* is", sft)
    said("their standard deviation should be", 1)
    healthy = step_means(leash[0], WITH, "kl")[1]
    said(
        "| first updates | *clip_fraction* is", collapsed.clip_fraction[0], collapsed.kl[1], healthy
    )
    said(
        "| later | at step",
        16,
        0,
        collapsed.explained_variance[16],
        collapsed.entropy[16] < 0.05,
    )
    said("then collapses. From step", 17, collapsed.explained_variance[23])
    assert collapsed.kl[17] > collapsed.kl[16] + 10 and collapsed.value_loss[17] > 10
    said(
        "| the policy hacks the reward model |",
        (step_means(leash[0], WITHOUT, "kl")[8:] > 10).all(),
    )
    said("The KL of *reward scale wrong* also rises, to", scale.kl[23])
    said("So look at a second curve. Its first value loss is", scale.value_loss[0])
    said("In the hacked runs of section 7 it is", first[WITHOUT])
    # the row of the explained variance: targets that hardly vary
    assert logs["whitening at the optimum"].explained_variance[:2].max() < -2


def the_exercises(said, tour, leash, logs):
    said("Responses have different lengths. Padding can hold NaN, and NaN times", 0)
    said("Return the *whitened* advantages, (B, R), and", 0)
    said("(lesson 05). Padding can hold NaN, and NaN times", 0)
    said("to the same N films, four responses to each: (N,", 4)
    said("It has the score", 1, 0, 1)
    said("| `zero values` | the critic's values are multiplied by", 0)
    said("| `equal scores` | the score of every response is", 1)
    said("why does it stop just below", 1 / 3)
    said("If step", 0)
    history = experiments.results("tour_history")
    ends = history[(history.stage == "ppo") & (history.step == 23)].gold
    assert len(ends) == len(SEEDS)
    said("In three recorded tours the `gold` of PPO's last step goes from", ends.min(), ends.max())
    said("if the KL coefficient is", 0)
    said("*Hint:* write down `response_ids` of the good response (three tokens, EOS is", 2)
    said("4. The explained variance is", 0.9)
    last = leash[0][leash[0].step == 23].groupby("variant").explained_variance.mean()
    said("In the healthy runs of section 8 it ends near", last[WITH])
    said("The collapsed run of section 8 has", logs["collapsed"].explained_variance[16])
    said("With $\\lambda$ below", 1)
    said("One trained policy beats another by", 0.30, 0.20, 0.40)
    said("that is narrow and contains", 0, 0)


def going_further(said, tour, logged, leash):
    said("*yes* or *no*, each with probability", 0.5, 2, 0, 0.5 * 2 + 0.5 * 0, 2, 0)
    start, other = (explained(logged, v, 0).mean() for v in ("as it is", "lambda 1"))
    said("the same start has", other, 0, start)
    six = six_runs()
    (alone,) = gold("dead critic", "atlas")
    said("One recorded run has a critic that always says", 0, min(six) - alone)
    films_of = len(by_film(tour, "PPO", 0))
    films = against_ppo(tour, experiments.difference_over_prompts)
    said("The interval of section 5 keeps the", films_of)
    said("The *bootstrap* draws", films_of, 2000, 0.95)
    said("PPO minus best-of-4 then goes from", *bounds(films, "best-of-4"))
    said("and PPO minus best-of-16 from", *bounds(films, "best-of-16"))
    said("Neither contains", 0)
    both = against_ppo(tour, experiments.difference_over_prompts_and_seeds)
    low, high = bounds(both, "best-of-4")
    said("and* other runs goes from", low, high, 0, low < 0 < high)
    below, above = bounds(both, "best-of-16")
    said("For best-of-16 it goes from", below, above, 0, below < above < 0)
    _, _, low, high = over_seeds(tour, "best-of-16")
    narrow = bounds(both, "best-of-16")
    assert narrow[1] - narrow[0] < high - low and narrow[1] < 0 < high
    error, own_factor = error_over_both(tour, "best-of-16")
    mean = sum(narrow) / 2
    assert mean + own_factor * error == pytest.approx(narrow[1], abs=1e-4)
    said("The reason is its factor,", own_factor, factor(3), films_of)
    wide = (mean - factor(3) * error, mean + factor(3) * error)
    said("With the factor", factor(3), *wide, 0, wide[0] < 0 < wide[1])
    errors = [e for m in ("best-of-4", "best-of-16") for e in errors_of_one_seed(tour, m)]
    said(
        "without pairing the standard errors would be at most",
        math.ceil(100 * max(b / a for a, b in errors) - 0.5) / 100,
    )
    history = leash[0]
    last = history[history.step == 23].groupby("variant").mean(numeric_only=True)
    values = [last.explained_variance[v] for v in (WITHOUT, WITH)]
    said("without the KL penalty the explained variance is", *values)
    atlas_runs = experiments.results("atlas").set_index("variant")
    (scaled,) = atlas_runs.loc[["reward scale wrong"]].itertuples()
    healthy = leash[1][leash[1].variant == WITH]
    said("on the held-out films it is", scaled.gold, 1.9 < scaled.gold / healthy.gold.mean() < 2.1)
    said("But distinct-2 is", scaled.distinct_2, healthy.distinct_2.mean())
    wrong = experiments.results("atlas_history").set_index(["variant", "step"])
    column = wrong.loc["reward scale wrong"].explained_variance
    said("*reward scale wrong* starts at", column[0], start, column.max(), column[23])
    normal = history[(history.variant == WITH) & (history.step == 0)].value_loss.mean()
    said("you may expect squared errors", 20**2, 400 * round(normal, 1), 0, 0)
    dead = wrong.loc["dead critic"].value_loss[0]  # the same reviews: no update came before
    said("would have a first value loss of", 20**2 * dead)
