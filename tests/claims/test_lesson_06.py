"""Lesson 06, PPO: every number of its prose, and every claim about a recorded run."""

import copy
import json
import math
import re

import nbformat
import pytest
import torch

from minirlhf import core, experiments, loops, models, rewards, tasks
from minirlhf.classroom.course import NOTEBOOKS
from minirlhf.show.variants import difference_of_means
from tests.claims.prose import lesson

COMPLETE = ["as it is", "kl_coef 0.5"]  # the same settings, three runs each; in the lesson the
# second is called "as it is, again"
SEEDS = range(3)


@pytest.fixture(scope="module")
def runs():
    return experiments.results("ablations", "leash")


@pytest.fixture(scope="module")
def tour():
    history = experiments.results("tour_history")
    return history[history.stage == "ppo"]


def column(runs, variant, name):
    """The values of the three seeds."""
    return runs[runs.variant == variant].sort_values("seed")[name]


def mean(runs, variant, name):
    return column(runs, variant, name).mean()


def by_film(runs, variant, seed):
    rows = runs[(runs.variant == variant) & (runs.seed == seed)]
    return torch.tensor(rows["gold_by_prompt"].iloc[0])


# ---- section 5: the microscope


@pytest.fixture(scope="module")
def batches():
    run = experiments.results("microscope")
    return run[run.source == "fresh"]


def tokens(batches, step, prompt):
    """The rows of one response, by its prompt."""
    return batches[(batches.step == step) & (batches.prompt.str.strip() == prompt)]


def last_response(batches):
    return tokens(batches, 24, "amys o")


def heart(batches):
    """The word heart and the token after it, in the last response to one prompt."""
    rows = last_response(batches)
    assert "".join(rows.token).startswith("A heartbreaking treat.")
    place = rows.token.tolist().index(" heart")
    return rows.iloc[place], rows.iloc[place + 1]


def test_what_the_policy_has_learned_to_write(batches):
    word, _ = heart(batches)
    ours, theirs = ([token for token, _ in word[c]] for c in ("alternatives", "ref_alternatives"))
    assert ours == [" very", " fascinating", " compelling", " well", " powerful"]
    assert {" film", " movie"} <= set(theirs) and len(theirs) == 5


def large_errors_after_heart(batches):
    """Whether the advantage of *heart* is the sum of the TD errors, and *b* and *treat* have the
    largest of them."""
    rows = last_response(batches)
    rows = rows.iloc[rows.token.tolist().index(" heart") :]
    errors, lam = rows.td_error.tolist(), loops.PPOConfig().lam
    total = sum(lam**k * e for k, e in enumerate(errors))
    assert total == pytest.approx(rows.advantage.iloc[0], abs=1e-3)
    return set(rows.nlargest(3, "td_error").token) >= {"b", " treat"}


def test_the_batch_is_read_before_its_first_update(batches):
    assert (batches.ratio - 1).abs().max() < 1e-4 and not batches.clipped.any()
    assert (batches[batches.step == 0].kl.abs() < 1e-4).all()


def responses_on_the_page():
    """The words and the responses of the first microscope, from the committed notebook."""
    cells = nbformat.read(NOTEBOOKS / "06_ppo.ipynb", 4).cells
    (cell,) = [c for c in cells if c.source.startswith("third = by_hand")]
    html = "".join(cell.outputs[0]["data"]["text/html"])
    data = json.loads(re.search(r'<script type="application/json"[^>]*>(.*?)</script>', html)[1])
    return data["words"], data["sides"][0]["frames"][0]["texts"]


def share_of_clipped_tokens():
    clipped = [flag for text in responses_on_the_page()[1] for flag in text["numbers"]["clipped"]]
    return sum(clipped) / len(clipped)


@pytest.fixture(scope="module")
def clipped_in_the_first_step():
    """The clip fraction of the plain loop's first step, and with a fifth of its learning rate.

    The critic's updates are left out: they do not change the actor within a step.
    """
    sft, tokenizer = models.load_policy("tiny-reviews-sft")
    reward_model, _ = models.load_scalar("tiny-reviews-reward")
    config, prompts = loops.PPOConfig(), tasks.reviews.rl_prompts()
    generator = torch.Generator().manual_seed(0)
    (index,) = loops.shuffled_batches(len(prompts), config.batch_size, 1, seed=0)
    ids, prompt_mask = models.encode_prompts(tokenizer, [prompts[i] for i in index])
    given = {"eos_id": tokenizer.eos_token_id, "config": config.sampling, "generator": generator}
    batch = models.sample(sft, ids, prompt_mask, **given)
    with torch.no_grad():  # the reference is the policy itself, so there is no KL penalty yet
        score = rewards.rollout_score(reward_model, tokenizer.eos_token_id)(batch)
        values = models.response_values(reward_model, batch)
    mask = batch.response_mask
    paid = torch.nn.functional.one_hot(mask.sum(1) - 1, mask.shape[1]) * score[:, None]
    advantages = core.gae(paid, values, mask, gamma=config.gamma, lam=config.lam)[0]
    batch, state = batch.with_columns(advantages=advantages), generator.get_state()
    shares = []
    for rate in (config.actor.lr, config.actor.lr / 5):
        actor, clipped = copy.deepcopy(sft), []
        optimizer = loops.make_optimizer(actor, loops.OptimiserConfig.plain(lr=rate))
        generator.set_state(state)
        for _ in range(config.epochs):
            order = torch.randperm(len(mask), generator=generator)
            for rows in order.split(config.minibatch_size):
                part = batch.select(rows)
                new = models.policy_logprobs(actor, part, temperature=config.sampling.temperature)
                pair, real = (new, part.old_logprobs), part.response_mask
                flags = core.is_clipped(*pair, part.advantages, real, clip_eps=config.clip_eps)
                clipped.append(flags[real].double().mean().item())
                core.aggregate(core.ppo_clip(*pair, part.advantages, real), real).backward()
                optimizer.step()
                optimizer.zero_grad()
        shares.append(sum(clipped) / len(clipped))
    return shares


def test_the_two_tokens_of_the_batch_that_the_page_shows():
    every, texts = responses_on_the_page()
    second = texts[1]
    words = [every[place] for place in second["tokens"]]
    columns = ("ratio", "advantage", "clipped")
    ing, cast = (
        [second["numbers"][name][words.index(word)] for name in columns]
        for word in ("ing", " cast")
    )
    assert ing[0] > 2 and ing[1] > 0 and ing[2]
    assert cast[0] < 0.8 and cast[1] > 0 and not cast[2]


def test_with_a_fifth_of_the_learning_rate_the_first_step_clips_much_less(
    clipped_in_the_first_step,
):
    full, fifth = clipped_in_the_first_step
    assert 0.2 < full < 0.3 and round(fifth, 2) == 0.06


def test_train_ppo_begins_with_a_fifth_of_the_learning_rate():
    config = loops.PPOConfig()
    optimizer = loops.make_optimizer(torch.nn.Linear(1, 1), config.actor)
    loops.set_learning_rate(optimizer, config.actor, 0, config.steps)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(config.actor.lr / 5)


# ---- section 6: the exact world


WORLD = core.World.random(3, 3, seed=0)


def logprobs(logits):
    """(K, 15, R) of K policies at once, 0 where masked."""
    every = torch.arange(len(logits))[:, None, None]
    tokens = logits.log_softmax(-1)[every, WORLD.visited, WORLD.response_ids]
    return torch.where(WORLD.response_mask, tokens, 0.0)


def walks(count, *, updates=60, rate=1.0):
    """Change of the true expected return of `count` policies, each updated on a batch of its own.

    Returns:
        (count, updates + 1) with the clip, and without it. The lesson does this one by one.
    """
    generator = torch.Generator().manual_seed(0)
    probs = WORLD.probs(WORLD.ref_logits).expand(count, -1)
    rows = torch.multinomial(probs, 4, replacement=True, generator=generator)
    pick = torch.arange(count)[:, None], rows
    scores, mask = WORLD.rewards[rows], WORLD.response_mask[rows]
    advantages = (scores - (scores.sum(1, keepdim=True) - scores) / 3)[..., None]
    start = WORLD.ref_logits.expand(count, -1, -1)
    old, paths = logprobs(start)[pick], []
    for low, high in ((0.8, 1.2), (0.0, 1e9)):
        logits, path = start, []
        for _ in range(updates + 1):
            path.append(logprobs(logits).sum(2).exp() @ WORLD.rewards)
            moved = logits.clone().requires_grad_(True)
            ratio = (logprobs(moved)[pick] - old).exp()
            gain = torch.minimum(ratio * advantages, ratio.clamp(low, high) * advantages)
            torch.where(mask, gain, 0.0).sum(2).mean(1).sum().backward()
            logits = logits + rate * moved.grad
        paths.append(torch.stack(path, 1) - WORLD.objective(WORLD.ref_logits))
    return tuple(paths)


@pytest.fixture(scope="module")
def reused():
    return walks(40)


@pytest.fixture(scope="module")
def slowly_reused():
    return walks(40, rate=0.2)


def test_a_few_updates_take_what_the_clip_allows(reused):
    clip, _ = reused
    assert clip.mean(0)[5] > 0.95 * clip.mean(0)[-1]


def test_small_steps_without_the_clip_gain_a_little_less(reused, slowly_reused):
    clip, free = (path[:, -1] for path in slowly_reused)
    assert 3 * clip.mean() < free.mean() < reused[1][:, -1].mean()


# ---- section 7: a run


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


# ---- section 8: parts removed


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
    """The table in the answer of exercise 5, word for word."""
    cells = nbformat.read(NOTEBOOKS / "06_ppo.ipynb", 4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    drawn = experiments.results("leash_history").variant.unique()[[5, 0, 2]]
    table = experiments.samples(runs[runs.experiment == "leash"], list(drawn))
    for film in ("american psycho 2", "big bad love"):
        assert f"| *{film}* | {' | '.join(table.loc[film])} |" in text


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


def test_the_numbers_of_the_prose(runs, tour, batches, reused, slowly_reused):
    eps, ratio = 0.2, 1.5
    config = loops.PPOConfig()
    temperature = config.sampling.temperature
    world = len(WORLD.sequences)
    clip, free = reused
    word, after = heart(batches)
    size = batches.groupby("step").advantage.apply(lambda a: a.abs().mean())
    first, last = (batches[batches.step == step].value for step in (0, 24))
    assert batches[batches.step == 0].prompt.nunique() == 4
    policy, reference = math.exp(word.logprob), math.exp(word.ref_logprob)
    by_step = tour.groupby("step")[["score", "entropy", "clip_fraction", "explained_variance"]]
    start, end = by_step.mean().loc[0], by_step.mean().iloc[-1]
    updates = config.epochs * config.batch_size // config.minibatch_size
    logged = experiments.results("ablations_history")
    eight = logged[logged.variant == "eight epochs"]
    sick = logged[logged.variant == "eight epochs, no clip"].groupby("step").mean(numeric_only=True)
    sick_start, sick_end = sick.loc[0], sick.loc[23]
    twins = abs(mean(runs, COMPLETE[0], "gold") - mean(runs, COMPLETE[1], "gold"))
    leash = experiments.results("leash_history")
    with lesson("06") as said:
        # 1 to 4: definitions and settings
        said("A ratio of", ratio, ratio - 1)
        said("leaves a ratio between", 1 - eps, 1 + eps)
        said("The usual", config.clip_eps)
        said("the new policy makes a token", ratio, ratio, ratio)
        said("and every ratio is", 1)
        said("Take $\\epsilon = 0.2$, and the two ratios", 0.5, 1.5)
        for advantage, who, moved, gone_back in (
            (1, "a good token. At $\\rho = 1.5$ the two terms are", 1.5, 0.5),
            (-1, "a bad token. At $\\rho = 0.5$ the two terms are", 0.5, 1.5),
        ):
            far, back = (
                (r * advantage, min(max(r, 1 - eps), 1 + eps) * advantage)
                for r in (moved, gone_back)
            )
            said(who, *far, min(far) == far[1], *back, min(back) == back[0])
        said("| writes *not* |", 0.5, 0.1, 0.1 / 0.5)
        said("| writes *good* after *not* |", 0.5, 0.6, 0.6 / 0.5)
        said("| writes *not good* |", 0.5 * 0.5, 0.1 * 0.6, 0.1 * 0.6 / 0.25)
        said("A new batch would contain *not good*", 0.1 * 0.6 / 0.25, 0.6 / 0.5)
        policy_share, reference_share = 0.4, 0.2
        cost = config.kl.kl_coef * math.log(policy_share / reference_share)
        said("Take a token that the policy gives", policy_share, reference_share, cost)
        collapsed = experiments.results("leash").query("variant == 'kl_coef 0' and seed == 0")
        quote = collapsed.samples.iloc[0]["american psycho 2\n"]
        said("For the film *american psycho", 2)
        said(f"2* such a policy writes: *{quote}")
        explained = tour.groupby("step").explained_variance.mean()
        said("fast beside the actor: after one step it explains", explained[1])
        by_hand(said, eps)
        said("false at padding. With", config.batch_size, config.minibatch_size, updates)
        said("Tokens are sampled at temperature", temperature, temperature)
        said("scaled to mean", 0, 1)
        said("After the last token", 0)
        said("| first", -0.25, 0.5, -0.25, 1.0, 0.5, 0.25, 0.25, 0.5, 0.5, 0.5, 1.0)
        said("| middle", 0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.5, 1.0, 0.5, 1.5)
        said("| last", 2.0, 1.0, 2.0, 0.0, 1.0, 1.0, 1.0, 2.0)
        said("before PPO its scores have the mean", 0, 1)
        # 5: the microscope
        said("Responses are numbered from", 0)
        said("Look at two tokens of response", 1)
        said("has a ratio far above", 1 + eps)
        said("So the clip does not hold a token at", 1 + eps)
        said("One large update can jump past", 1 + eps)
        said("a ratio below", 1 - eps)
        said("Of all tokens in the four responses", share_of_clipped_tokens())
        recorded = tour.clip_fraction.max() < share_of_clipped_tokens() / 4
        said("So its runs clip less,", recorded)
        # a run under the microscope, in "Going further"
        said("(../docs/images/microscope.png) of step", 0)
        said("before the update of step", *sorted(set(batches.step))[:-1], config.steps)
        said("the interval of the gold score exclude", 0)
        said("Its values for the four responses swing", first.min(), first.max())
        said("Its values now lie between", last.min(), last.max(), size[0], size[24])
        said("Before *heart* the critic predicts", word.value, after.value)
        said("The policy gives *heart*", policy, reference, word.kl, word.reward)
        assert word.reward == pytest.approx(-config.kl.kl_coef * word.kl, abs=1e-3)
        said("The TD error is", word.reward, after.value, word.value, word.td_error)
        said("Still, the advantage is", word.advantage, large_errors_after_heart(batches))
        # 6: the exact world
        said("second danger in a world with", world)
        said("We sample", len(clip), 4, clip.shape[1] - 1, 1)
        said("**Predict.** After", clip.shape[1] - 1, len(clip))
        said("The line is the mean over the", len(clip))
        said("updates do hardly more than three", clip[:, 3].mean() > 0.9 * clip[:, -1].mean())
        said(
            "follows its batch all the way. On average the score rises by",
            free[:, -1].mean(),
            -free[:, -1].min(),
        )
        said("- **With the clip**", 60, clip[:, -1].mean(), -clip[:, -1].min())
        below = [(path[:, -1] < 0).sum().item() for path in (free, clip)]
        said("With step size", 1, below[0], len(clip), 0, below[1])
        # 7: a run
        said("`train_ppo` with its usual settings:", config.steps, config.batch_size)
        said("It rises from about", round(start.score), tour[tour.step > 15].score.mean())
        said("the rating from", -4, 4)
        said("It grows to about", tour[tour.step > 7].kl.mean())
        said("by a learning rate that falls to", 0)
        entropy = by_step.mean().entropy
        said("It stays between", 2.1, 2.6, entropy.min() > 2.1 and entropy.max() < 2.6)
        said("of a step: at most", tour.clip_fraction.max())
        said("predicts its targets (in lesson 05: the returns):", 1, 0)
        said("It starts below", 0, end.explained_variance)
        said("| explained variance |", 0, 0)
        unclipped = logged[logged.variant == "eight epochs, no clip"].clip_fraction
        said("- The clip fraction is near", 0, unclipped.max() < 0.01)
        gains = [path[:, -1] for path in (clip, free)]
        said("So in this tiny world the clip costs more", gains[0].mean() < 0.5 * gains[1].mean())
        said("What it buys is a narrow band", gains[0].min() > gains[1].min())
        recorded = experiments.results("tour").set_index("method")
        length = recorded.length.groupby("method").mean()
        said("On average PPO's reviews are shorter", length["PPO"] < 0.8 * length["SFT"])
        praise = recorded.loc["PPO"].samples.iloc[0]
        read = [praise[prompt] for prompt in list(praise)[:3]]
        kind = ("pleasant", "funny, romantic", "entertaining")
        said("and these three all praise", all(map(str.__contains__, read, kind)))
        # 8: parts removed
        said("A bar that includes", 0)
        said("- **No clip**: with two epochs and with eight, the bar includes", 0)
        said("With the clip, up to", eight.groupby("step").clip_fraction.mean().max())
        said("The KL jumps above", sick.kl.min() < 10 < sick.kl.max())
        said("The KL jumps above", 10)
        said("The responses shrink to", sick_end["length"], sick_start.entropy, sick_end.entropy)
        said("the KL stays below", eight.groupby("step").kl.mean().max() < 5)
        said("the KL stays below", 5)
        # exercises and questions
        said("true at real tokens. Return", 0)
        said("NaN times", 0)
        said("(But do not lower it to", 0)
        said("Use the temperature", temperature, config.minibatch_size)
        said("policies (seed", 0)
        said("| *american psycho", 2)
        drawn = leash.variant.unique()[[5, 0, 2]]  # as the page takes them
        said("The setting is the KL coefficient:", *(float(v.split()[-1]) for v in drawn))
        ways = [mean(runs, v, "kl") for v in ("eight epochs", *COMPLETE)]
        said("Eight epochs move the policy twice as far", 1.9 < ways[0] / max(ways[1:]) < 2.4)
        said("Two epochs with a KL coefficient of", 0.25, config.kl.kl_coef)
        unpenalised = leash[leash.variant == "kl_coef 0"].groupby("step")[
            ["score", "kl", "entropy"]
        ]
        last_step = unpenalised.mean().iloc[-1]
        said("Its score rises to about", last_step.score, last_step.kl, last_step.entropy)
        said("Why is every ratio", 1)
        said("If a ratio differs from", 1)
        said("All ratios are", 1)
        # going further
        said("many factors near", 1, 1)
        said("the clipped value is", 0.5, 2 - 0.5)
        said("shortens the gradient to length", config.actor.max_grad_norm)
        said("The two rows with the *same* settings differ by", twins)
        said("worse than a constant at step", 0, 0.35, 2)
        said("With a step size of", 0.2, 1)
        said(
            "on average, and the worst batch falls by",
            -slowly_reused[1][:, -1].min(),
            -free[:, -1].min(),
        )
        said("clip range", config.clip_eps)
        said("It is on in verl at a ratio of", 3)
        said("value clip |", config.value_clip_eps, 0.2, 0.5)


def by_hand(said, eps):
    """The table of four tokens."""
    for name, old, new, advantage in (
        ("good, already up", 0.5, 0.75, 1),
        ("good, unchanged", 0.4, 0.4, 2),
        ("good, but down", 0.5, 0.3, 1),
        ("bad, already down", 0.5, 0.3, -1),
        ("bad, but up", 0.2, 0.3, -1),
    ):
        ratio = new / old
        clipped = min(max(ratio, 1 - eps), 1 + eps) * advantage
        loss = -min(ratio * advantage, clipped)
        said(name, old, new, ratio, advantage, ratio * advantage, clipped, loss)
