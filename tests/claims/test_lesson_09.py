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
from minirlhf.show import difference_of_means
from tests.claims.prose import lesson

SEEDS = range(3)
SAME = ["as it is", "kl_coef 0.5"]  # the same settings, three runs each
SFT_CRITIC = "critic from the SFT model"
WITH, WITHOUT = "kl_coef 0.5", "kl_coef 0"  # the KL penalty of section 6
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


# ---- section 4: the critic


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


# ---- section 6: healthy and hacked


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


def test_the_numbers_of_the_page(responses, read_by_hand, logged, practised, tour, leash, unnamed):
    with lesson("09") as said:
        the_batch(said, responses, read_by_hand)
        the_critic(said, logged, practised)
        the_evaluation(said, tour)
        the_hacked_run(said, leash)
        the_exercises(said, unnamed)
        going_further(said, tour, logged)


def the_batch(said, responses, page):
    fine, flat = responses[1], responses[2]
    beta, names = loops.PPOConfig().kl.kl_coef, fine["token"]
    first, film, stop, end = (at(fine, name) for name in (" fine", " film", ".", names[-1]))
    total = sum(fine["kl"])
    score = sum(fine["reward"]) + beta * total
    assert end["reward"] == pytest.approx(score - beta * end["kl"], abs=2e-3)
    said("After the last token $V$ is", 0)
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
    said("would need an output for each of the", 4096)
    q = first["reward"] + film["value"]
    said("For *fine* in response", 1, first["reward"], film["value"], q, first["value"])
    said("The difference is the TD error,", first["td_error"])
    assert first["td_error"] == pytest.approx(q - first["value"], abs=2e-3)


def the_critic(said, logged, practised):
    config = loops.PPOConfig()
    start, sft = (explained(logged, v, 0).mean() for v in ("as it is", SFT_CRITIC))
    above = next(k for k in range(24) if explained(logged, SFT_CRITIC, k).mean() > 0)
    six = [g for v in SAME for g in gold(v, "ablations", "leash")]
    difference, low, high = difference_of_means(gold(SFT_CRITIC, "resources"), six)
    (alone,) = gold("dead critic", "atlas")
    said("We recorded PPO with both:", config.steps, config.batch_size, len(six))
    said("as a mean over three seeds:", 1, 0)
    said("Which start is worse at step", 0, 0)
    said("the rating from", -4, 4)
    said("- *Reward model*:", start, 0, 0)
    said("- *SFT model*:", sft, 0, 0, above)
    said("from the SFT model costs", -difference, low, high)
    said("- *Always", 0, sum(six) / len(six) - alone)
    family = experiments.results("family")
    ppo = practised["ppo"]
    frozen = practised[WARM]
    steps = ppo.steps.iloc[0]
    warm = frozen[frozen.kl.abs() < 1e-3].step.max()  # sampled before the actor's first update
    said("arithmetic in written steps,", steps, 128)
    said("means that in the first", warm, steps)
    problems = len(family["pass_1_by_prompt"].iloc[0])
    said("the share of right answers to", problems)
    said("**Predict.** At step", warm, steps)
    at_the_end = [rows[rows.step == 15].explained_variance.mean() for rows in (frozen, ppo)]
    passed = family.groupby("variant").pass_1.mean()
    table = experiments.difference_over_prompts_and_seeds(family, "pass_1", "ppo", [WARM])
    said(
        "After the warm-up the critic has",
        *at_the_end,
        0,
        passed[WARM],
        passed["ppo"],
        *table.low,
        *table.high,
    )
    said("The warm-up took", warm)
    said("`critic_warmup` is", config.critic_warmup)


def the_evaluation(said, tour):
    ppo = tour[tour.method == "PPO"]
    said("**Held-out prompts.** We use", len(ppo.gold_by_prompt.iloc[0]))
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


def the_hacked_run(said, leash):
    history, runs = leash
    said("Here it stands beside PPO with it (KL coefficient", float(WITH.split()[-1]))
    last = history[history.step == 23].groupby("variant").mean(numeric_only=True)
    for label, name in (
        ("gold", "gold"),
        ("explained variance", "explained_variance"),
        ("length", "length"),
    ):
        said(f"- *{label}*:", last[name][WITHOUT], last[name][WITH])
    said("the first ones of seed", 0)
    said("**Score and gold part.** From step", 12)
    late = step_means(history, WITH, "kl")[8:]
    said("- **KL** reaches", last.kl[WITHOUT], late.mean(), late.min() > 1.5 and late.max() < 2.6)
    said("- **Entropy** falls to", last.entropy[WITHOUT])
    means = runs.groupby("variant")[["distinct_2", "opening_share"]].mean()
    said("disappears: distinct-2 is", means.distinct_2[WITHOUT], means.distinct_2[WITH])
    said("and half of the responses begin alike", 0.45 < means.opening_share[WITHOUT] < 0.6)


def the_exercises(said, unnamed):
    said("return the explained variance, one number:", 1)
    said("*Hint:* padding can hold NaN, and NaN times", 0)
    said("What does a critic get that is wrong by", 3)
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
    said("4. The explained variance is", 0.9)
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
