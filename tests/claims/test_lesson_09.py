"""Lesson 09, the four models: every number of its prose, and every claim about a recorded run."""

import copy
import json
import math
import re

import nbformat
import pytest
import torch

from minirlhf import core, experiments, loops, models, rewards, tasks
from minirlhf.classroom import atlas
from minirlhf.classroom.course import NOTEBOOKS
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
    """The four responses of the microscope, from the committed notebook: dicts of columns."""
    cells = nbformat.read(NOTEBOOKS / "09_the_four_models.ipynb", 4).cells
    (cell,) = [c for c in cells if c.source.startswith("show.microscope(table")]
    html = "".join(cell.outputs[0]["data"]["text/html"])
    data = json.loads(re.search(r'<script type="application/json"[^>]*>(.*?)</script>', html)[1])
    texts = data["sides"][0]["frames"][0]["texts"]
    return [{"token": [data["words"][i] for i in t["tokens"]]} | t["numbers"] for t in texts]


@pytest.fixture(scope="module")
def broken(responses):
    """The advantages of response 1 with all four models, and without one of them."""
    fine = responses[1]
    score = sum(fine["reward"]) + 0.5 * sum(fine["kl"])
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


@pytest.fixture(scope="module")
def read_by_hand():
    """The table of response 1 on the page: token -> (old_logprob, ref_logprob, value)."""
    cells = nbformat.read(NOTEBOOKS / "09_the_four_models.ipynb", 4).cells
    (cell,) = [c for c in cells if c.source.startswith("four = dict(")]
    rows = [line.split()[1:] for line in cell.outputs[0]["data"]["text/plain"].splitlines()[1:]]
    return {token: tuple(map(float, numbers)) for token, *numbers in rows}


def at(response, token):
    """All numbers of the first such token of a response."""
    place = response["token"].index(token)
    return {name: column[place] for name, column in response.items()}


def test_actor_and_critic_are_those_of_lesson_06():
    for name in ("06_ppo", "09_the_four_models"):
        code = (NOTEBOOKS / "src" / f"{name}.py").read_text()
        assert "PPOConfig.plain(steps=" in code and "1 if FAST else 3" in code
    assert loops.PPOConfig.plain().batch_size == 64 and loops.PPOConfig.plain().seed == 0


def test_the_numbers_of_the_page_belong_together(responses):
    for r in responses:
        count = len(r["token"])
        kl_coef, lam = 0.5, loops.PPOConfig().lam
        later = 0.0
        for t in reversed(range(count)):
            # the page has three digits of each number
            ratio = r["old_logprob"][t] - r["ref_logprob"][t]
            assert r["kl"][t] == pytest.approx(ratio, abs=2e-3 + 0.01 * abs(r["ref_logprob"][t]))
            if t + 1 < count:
                assert r["reward"][t] == pytest.approx(-kl_coef * r["kl"][t], abs=2e-3)
            after = r["value"][t + 1] if t + 1 < count else 0.0
            error = r["reward"][t] + after - r["value"][t]
            assert r["td_error"][t] == pytest.approx(error, abs=3e-3)
            later = r["td_error"][t] + lam * later
            assert r["advantage"][t] == pytest.approx(later, abs=0.02)


def test_the_samples_of_the_page(responses):
    words = ["".join(r["token"][:-1]).strip() for r in responses]
    assert words[1] == "A fine film." and words[2].startswith("The film is flat but")
    fine = responses[1]
    assert [a > 0 for a in fine["advantage"]] == [False, False, False, True, True]
    the = at(responses[2], responses[2]["token"][0])
    assert the["old_logprob"] < the["ref_logprob"]


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


def test_a_worse_start_costs_little_gold():
    six = [g for v in SAME for g in gold(v, "ablations", "leash")]
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


def errors_of_one_seed(tour):
    """(standard error, that without pairing, correlation over films) of PPO and best-of-4."""
    found = []
    for seed in SEEDS:
        a, b = by_film(tour, "PPO", seed), by_film(tour, "best-of-4", seed)
        unpaired = ((a.var() + b.var()) / len(a)).sqrt().item()
        alike = torch.corrcoef(torch.stack([a, b]))[0, 1].item()
        found.append(((a - b).std().item() / math.sqrt(len(a)), unpaired, alike))
    return found


def test_films_that_are_easy_for_one_method_are_not_easier_for_the_other(tour):
    for method in ("best-of-4", "best-of-16"):
        for seed in SEEDS:
            pair = torch.stack([by_film(tour, m, seed) for m in ("PPO", method)])
            assert -0.05 < torch.corrcoef(pair)[0, 1] < 0.15


def power(error, size):
    """The chance that a 95 % interval of a difference of this size excludes 0."""
    return 0.5 * (1 + math.erf((size / error - 1.96) / math.sqrt(2)))


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


# ---- exercise 5: the unnamed runs


@pytest.fixture(scope="module")
def unnamed():
    return {
        letter: {k: [row[k] for row in rows] for k in rows[0]}
        for letter, rows in atlas.runs().items()
    }


def test_the_solution_of_exercise_5(unnamed):
    run = unnamed
    assert set(run["H"]["score"]) == {1.0} and run["H"]["kl"][-1] > 0.5
    assert max(run["E"]["score"]) > 50 > 5 > max(max(run[k]["score"]) for k in "ABCDFGH")
    assert run["E"]["value_loss"][0] == pytest.approx(100 * run["C"]["value_loss"][0], rel=0.1)
    assert set(run["A"]["explained_variance"]) == {0.0}
    assert run["A"]["gold"][-1] < run["C"]["gold"][-1]
    assert run["B"]["missing_eos"][-1] < 0.1
    assert 0.3 < run["F"]["clip_fraction"][0] < 0.4 and min(run["F"]["entropy"]) < 0.01
    assert run["F"]["length"][8:17] == pytest.approx([5] * 9, abs=1.1)
    assert all(a < b + 8 for a, b in zip(run["G"]["kl"], run["G"]["kl"][1:], strict=False))
    assert run["G"]["missing_eos"][-1] > 0.9 and run["G"]["value_loss"][-1] > 600
    assert run["D"]["gold"].index(max(run["D"]["gold"])) == 12
    ends = {letter: columns["gold"][-1] for letter, columns in run.items()}
    assert {letter for letter, g in ends.items() if g > 2.5} == set("DEG")
    assert max(g for letter, g in ends.items() if letter not in "DEG") < 1.5
    assert all(name in atlas.CLUES for name in ("healthy", "hacked", "EOS never trained"))


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
    assert max(ends[with_bug]) < 0.4 and min(ends[mended]) > 0.9


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


def test_the_numbers_of_the_page(
    responses, read_by_hand, broken, logged, practised, tour, leash, unnamed
):
    with lesson("09") as said:
        the_batch(said, responses, read_by_hand)
        one_fails(said, broken)
        the_evaluation(said, tour)
        the_critic(said, logged)
        the_hacked_run(said, leash)
        the_exercises(said, unnamed, leash)
        a_warm_up(said, practised)
        going_further(said, tour, logged)


def the_batch(said, responses, page):
    fine, flat = responses[1], responses[2]
    beta, names = loops.PPOConfig().kl.kl_coef, fine["token"]
    first, film, stop, end = (at(fine, name) for name in (" fine", " film", ".", names[-1]))
    total = sum(fine["kl"])
    score = sum(fine["reward"]) + beta * total
    assert end["reward"] == pytest.approx(score - beta * end["kl"], abs=2e-3)
    said("the sum of the rewards that are still to come, and is", 0)
    said("(Responses are numbered from", 0)
    said("We follow response", 1)
    said("The reward model gives it", score, score > 1)
    old, ref, _ = page["film"]
    said("1. The log-ratio of *film* is", old, -ref, old - ref, film["kl"], film["reward"])
    said("EOS has the score as well. Its log-ratio is", end["kl"], end["reward"])
    rounded = [round(stop["reward"], 2), page["."][2], page["<|endoftext|>"][2]]
    said("The reward of the full stop is", *rounded, rounded[0], rounded[2], -rounded[1])
    error = rounded[0] + rounded[2] - rounded[1]
    said("The TD error is", rounded[0], rounded[2], -rounded[1], error, stop["td_error"])
    said("No. The sum is", sum(fine["reward"]), total, beta * total, beta * total > score)
    said("times, or", math.exp(total))
    the = {name: column[0] for name, column in flat.items()}
    said("**A bonus.** In response", 2, the["reward"])
    score_of_flat = sum(flat["reward"]) + beta * sum(flat["kl"])
    eleven = flat["advantage"][:11]
    said("**Who is to blame?** Response", 2, score_of_flat, 11, min(eleven), max(eleven))
    assert flat["advantage"][11] > max(eleven)
    pieces = [flat["reward"][flat["token"].index(piece)] for piece in ("ell", "or", "ious")]
    said("*ell*, *or* and *ious* of an invented word have", *pieces)
    earlier = flat["token"].index("ell")
    said("So GAE blames all earlier tokens for them", max(flat["advantage"][:earlier]) < 0)
    said("did not expect them", min(flat["value"][:earlier]) > sum(pieces) + 0.9)
    q = first["reward"] + film["value"]
    said("For *fine* in response", 1, first["reward"], film["value"], q, first["value"])
    said("The difference is the TD error,", first["td_error"])
    assert first["td_error"] == pytest.approx(q - first["value"], abs=2e-3)


def one_fails(said, broken):
    signs = {name: [a > 0 for a in column] for name, column in broken.items()}
    assert signs["all four"] == [False, False, False, True, True]
    said("and compute the advantages of response", 1)
    said("it gives every response the score", 0)
    said("But the critic expected nearly", 0)
    said("*No critic*: it says", 0)
    low, high = min(broken["no reference"]), max(broken["no reference"])
    said("all five are positive, from", low, high)
    said("*No reward model*: all five are negative", max(broken["no reward model"]) < 0)
    pairs = zip(broken["no critic"], broken["all four"], strict=True)
    moved = max(abs(a - b) for a, b in pairs)
    said("the signs stay, and no advantage changes by more than", math.ceil(10 * moved) / 10)
    assert signs["no critic"] == signs["all four"]


def the_critic(said, logged):
    config = loops.PPOConfig()
    start, sft = (explained(logged, v, 0).mean() for v in ("as it is", SFT_CRITIC))
    assert start < 0 < explained(logged, "as it is", 1).mean()
    above = next(k for k in range(24) if explained(logged, SFT_CRITIC, k).mean() > 0)
    six = [g for v in SAME for g in gold(v, "ablations", "leash")]
    difference, low, high = difference_of_means(gold(SFT_CRITIC, "resources"), six)
    (alone,) = gold("dead critic", "atlas")
    count = len(gold(SFT_CRITIC, "resources"))
    said("We recorded PPO with both,", config.steps, config.batch_size, count, len(six))
    said("A last single run has a critic that always says", 0)
    said("before the update, as a mean over three seeds:", 1, 0)
    said("Which start is worse at step", 0, 0)
    said("- *Reward model*:", start, 0, 0)
    said("- *SFT model*:", sft, 0, 0, above)
    said("with the SFT start it is", -difference, low, high, 0, low < 0 < high)
    said("- *Always", 0, min(six) - alone)
    said("The critic is bad in", above, config.steps)
    said("useful after one step. A worse start takes", above)


def a_warm_up(said, practised):
    config = loops.PPOConfig()
    family = experiments.results("family")
    ppo = practised["ppo"]
    frozen = practised[WARM]
    steps = ppo.steps.iloc[0]
    warm = frozen[frozen.kl.abs() < 1e-3].step.max()  # sampled before the actor's first update
    said("(`critic_warmup`,", config.critic_warmup)
    said("arithmetic in written steps:", steps, 128, frozen.seed.nunique())
    problems = len(family["pass_1_by_prompt"].iloc[0])
    at_its_end = [rows[rows.step == warm].explained_variance.mean() for rows in (frozen, ppo)]
    passed = family.groupby("variant").pass_1.mean()
    table = experiments.difference_over_prompts_and_seeds(family, "pass_1", "ppo", [WARM])
    said("layer. With", warm, warm, *at_its_end)
    said("The share of right answers to", problems, passed[WARM], passed["ppo"])
    said("of the difference, for other problems and seeds, goes from", *table.low, *table.high)


def the_evaluation(said, tour):
    ppo = tour[tour.method == "PPO"]
    films_of = len(ppo.gold_by_prompt.iloc[0])
    said("**Held-out prompts.** We use", films_of)
    said("the rating from", -4, 4)
    table = {
        "easy to praise": (2.5, 2.0),
        "quite easy": (1.4, 1.2),
        "quite hard": (0.3, -0.2),
        "hard": (-0.2, -0.6),
    }
    for name, (a, b) in table.items():
        said(f"| {name} |", a, b, a - b)
    ours, theirs = zip(*table.values(), strict=True)
    mean = sum(a - b for a, b in table.values()) / len(table)
    said("The films differ by up to", max(ours) - min(ours), mean, min(ours) < max(theirs))
    said("Do this", 2000, 0.95)
    films = against_ppo(tour, experiments.difference_over_prompts).difference
    said("**Predict.** PPO is", -films["best-of-4"], films["best-of-16"], 0)
    said("for other films the interval lies below", 0, 0)
    said("both intervals lie above", 0)
    gain = ppo.gold.mean() - tour[tour.method == "SFT"].gold.mean()
    said("PPO gains about one gold point over SFT, at a KL of", 0.9 < gain < 1.1, ppo.kl.mean())
    config = loops.PPOConfig()
    assert config.kl.kl_coef == 0.5
    said("gold scores of PPO on this page, always with", config.steps)
    said("| this section |", len(ppo), 4, films_of, ppo.gold.mean())
    six, three = ([*gold("as it is", "ablations"), *gold(WITH, "leash")], gold(WITH, "leash"))
    said("final policies |", len(six), *SEEDS, 4, films_of, sum(six) / len(six), three.mean())
    history = experiments.results("leash_history")
    last = step_means(history, WITH, "gold")[config.steps - 1]
    said("the last training batch:", config.batch_size, last)


def the_hacked_run(said, leash):
    history, runs = leash
    last = history[history.step == 23].groupby("variant").mean(numeric_only=True)
    said("PPO without the KL penalty, three seeds. Their score rises to", last.score[WITHOUT])
    said("their KL to", last.kl[WITHOUT])
    said("Draw two curves over the", loops.PPOConfig().steps)
    course = step_means(history, WITHOUT, "gold")
    said("- *Gold*:", last.gold[WITHOUT], last.gold[WITH], course.max(), course.idxmax(), 12)
    values = [last.explained_variance[v] for v in (WITHOUT, WITH)]
    said("- *Explained variance*:", *values)
    said("the first ones of seed", 0)
    said("So its value loss ends at", last.value_loss[WITHOUT], last.value_loss[WITH])
    means = runs.groupby("variant")[["distinct_2", "opening_share", "kl", "entropy"]].mean()
    said("- **KL** is more than forty times", 40 < means.kl[WITHOUT] / means.kl[WITH] < 45)
    said("- **Entropy** falls to", means.entropy[WITHOUT])
    said("disappears: distinct-2 is", means.distinct_2[WITHOUT], means.distinct_2[WITH])
    said("and half of the responses begin alike", 0.45 < means.opening_share[WITHOUT] < 0.6)


def the_exercises(said, unnamed, leash):
    said("What does a critic get that is wrong by", 3)
    said("*Hint:* it is", 1, 1, 0, 0)
    said("Return the *whitened* advantages, (B, R), and", 0)
    said("(lesson 05). Padding can hold NaN, and NaN times", 0)
    said("It has the score", 1, 0, 1)
    rates = [
        loops.PPOConfig().actor.lr,
        experiments.EXPERIMENTS["atlas"]["collapsed"]["ppo"]["actor"].lr,
    ]
    said("the learning rate is thirty times too high", rates[1] / rates[0] == pytest.approx(30))
    said("| `dead critic` | the critic says", 0)
    limit = loops.PPOConfig().sampling.max_new_tokens
    said("of responses that were cut at", limit)
    said("if the KL coefficient is", 0)
    said("*Hint:* write down `response_ids` of the good response (three tokens, EOS is", 2)
    said("4. The explained variance is", 0.9)
    last = leash[0][leash[0].step == 23].groupby("variant").explained_variance.mean()
    said("In the healthy runs of section 7 it ends near", last[WITH])
    said("The hacked runs have", last[WITHOUT])
    said("With $\\lambda$ below", 1)
    said("One trained policy beats another by", 0.30, 0.20, 0.40)
    said("that is narrow and contains", 0, 0)


def going_further(said, tour, logged):
    said("*yes* or *no*, each with probability", 0.5, 2, 0, 0.5 * 2 + 0.5 * 0, 2, 0)
    start, other = (explained(logged, v, 0).mean() for v in ("as it is", "lambda 1"))
    said("the same start has", other, 0, start)
    count = len(by_film(tour, "PPO", 0))
    errors = errors_of_one_seed(tour)
    paired = sum(e for e, _, _ in errors) / len(errors)
    said("**How much does one film say?** The", count, paired * math.sqrt(count))
    said("So their mean has a standard error of about", paired, 0.2)
    assert 0.78 < power(paired, 0.2) < 0.88
    said("would be at most", math.ceil(100 * max(b / a for a, b, _ in errors) - 0.5) / 100)
    said("We draw", 16)
    said("The recorded runs of this lesson subtract", loops.PPOConfig().missing_eos_penalty)
