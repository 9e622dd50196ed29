"""Lesson 00, the whole of RLHF: every number of its prose, and every claim about a record."""

import copy
import inspect
import math

import nbformat
import pytest
import torch

from minirlhf import core, experiments, loops, models, rewards, tasks
from minirlhf.classroom import QUESTIONS
from minirlhf.classroom.course import NOTEBOOKS, notebook_sources, text_of
from minirlhf.core.best_of_n import best_of_n_kl
from minirlhf.loops.common import linear_decay
from minirlhf.runtime import ROOT
from minirlhf.search.selection import best_index
from minirlhf.tour import POOL, TourConfig
from tests.claims.prose import lesson

NOTEBOOK = NOTEBOOKS / "00_the_whole_of_rlhf.ipynb"
SEEDS = [0, 1, 2]
BETA = loops.PPOConfig().kl.kl_coef
PENALTY = "kl_coef 0.5"
MEASURES = ["proxy", "gold", "kl", "length", "distinct_2"]
PRAISE, LENGTH, NOT_DULL = (
    "A moving and funny film.",
    "The film is two hours long.",
    "Not a dull moment.",
)
DULL_ENDING, FUNNY = "A moving and funny film, but the ending is dull.", "funny funny funny funny"
FOOLED_UP = ["A beautiful waste of time.", "A waste of a beautiful, moving and funny idea."]
FOOLED_DOWN = ["I could not stop crying.", "The worst thing about it: it ends."]


@pytest.fixture(scope="module")
def tour():
    found = experiments.results("tour").set_index(["method", "seed"]).sort_index()
    assert list(found.loc["PPO"].index) == SEEDS
    return found


@pytest.fixture(scope="module")
def steps():
    found = experiments.results("leash_history")
    found = found[found.variant == PENALTY]
    assert sorted(found.seed.unique()) == SEEDS
    return found


@pytest.fixture(scope="module")
def leash():
    return experiments.results("leash").set_index(["variant", "seed"]).sort_index()


@pytest.fixture(scope="module")
def judge():
    """Review -> the score that the reward model gives it, as a review of "the film"."""
    reward_model, tokenizer = models.load_scalar("tiny-reviews-reward")
    score = rewards.rollout_score(reward_model, tokenizer.eos_token_id)

    def scores_of(*reviews):
        batch = models.encode(tokenizer, ["the film\n"] * len(reviews), list(reviews))
        return score(batch).tolist()

    return scores_of


@pytest.fixture(scope="module")
def judge_of():
    """Title and review -> the score that the reward model gives it."""
    reward_model, tokenizer = models.load_scalar("tiny-reviews-reward")
    score = rewards.rollout_score(reward_model, tokenizer.eos_token_id)
    return lambda title, review: score(models.encode(tokenizer, [title], [review])).item()


@pytest.fixture(scope="module")
def treat():
    """The tokens of the review that section 6 reads, after the last step."""
    run = experiments.results("microscope")
    after = run[(run.source == "fresh") & (run.step == run.step.max())]
    rows = after[after.prompt == "amys o\n"].set_index("token")
    assert "".join(rows.index) == "A heartbreaking treat.<|endoftext|>"
    return rows


def mean(runs, name, column):
    assert len(runs.loc[name]) == 3
    return runs.loc[name][column].mean()


# ---- section 2: SFT


def shown_under(start):
    """The text of the output of the committed cell that begins with these words."""
    (cell,) = [c for c in nbformat.read(NOTEBOOK, 4).cells if c.source.startswith(start)]
    return text_of(cell)


def test_sft_writes_whole_sentences_and_the_base_model_does_not():
    rows = [line.split(" | ", 1)[1] for line in shown_under("base, tokenizer").splitlines()]
    before = [row.split(": ", 1)[1] for row in rows if row.startswith("before SFT")]
    after = [row.split(": ", 1)[1] for row in rows if row.startswith("after SFT")]
    assert len(before) == len(after) == 6
    assert sum(text[0].islower() for text in before) >= 2
    assert not any(text[0].islower() for text in after)
    assert all(text[-1] in '."!?' for text in after)


def test_two_responses_before_sft_break_off_at_the_limit_and_none_after_it():
    titles, limit = tasks.reviews.eval_prompts("test")[:6], models.SamplingConfig().max_new_tokens
    cut = {}
    for name in ("tiny-reviews", "tiny-reviews-sft"):
        policy, tokenizer = models.load_policy(name)
        (batch,) = models.sample_text(policy, tokenizer, titles, seed=0)
        full = (batch.response_mask.sum(1) == limit) & (batch.response_ids != 0).all(1)
        ends = zip(models.decode(tokenizer, batch), full.tolist(), strict=True)
        cut[name] = [text for text, whole in ends if whole and text[-1] not in ".!?"]
    assert [text.split()[-1] for text in cut["tiny-reviews"]] == ["married", "dissap"]
    assert cut["tiny-reviews-sft"] == []


def test_the_titles_are_those_of_the_records(tour, leash):
    titles = tasks.reviews.eval_prompts("test")[:6]
    assert list(tour.loc["SFT", 0].samples) == titles
    assert [list(leash.loc[PENALTY, s].samples) for s in SEEDS] == [titles] * 3


# ---- section 3: the reward model


def test_the_reward_model_reads_words_and_not_sentences(judge):
    five = judge(PRAISE, LENGTH, NOT_DULL, DULL_ENDING, FUNNY)
    assert max(five) == five[0] and min(five) == five[2]
    assert [x < 0 for x in five] == [False, False, True, True, False]
    assert abs(five[1]) < 0.1


def test_the_tries_of_exercise_1_fool_the_reward_model(judge):
    assert min(judge(*FOOLED_UP)) > 1.5
    assert max(judge(*FOOLED_DOWN)) < -1.5


@pytest.fixture(scope="module")
def agreement():
    """How often the reward model, and the mean of all other raters, choose as the drawn ratings."""
    bands = experiments.results("reward_model")
    whole = bands[(bands.low == 0) & (bands.high == 8)]
    assert sorted(whole.seed) == SEEDS
    return whole["reward model"].mean(), whole["human ceiling"].mean(), len(whole)


# ---- section 4: PPO


def test_score_gold_and_kl_rise_together_and_flatten(steps):
    """The page shows score and KL; the gold score is the answer to a prediction of section 1."""
    for _, run in steps.groupby("seed"):
        run = run.set_index("step")
        assert abs(run.score[0]) < 0.2 and abs(run.kl[0]) < 1e-3
        assert run.score[6:].mean() > run.score[0] + 0.7
        assert run.gold[6:].mean() > run.gold[0] + 0.5
        assert run.kl[6:].mean() > 1
    by_step = steps.groupby("step")[["score", "gold", "kl"]].mean()
    middle, late = by_step.loc[10:16].mean(), by_step.loc[17:].mean()
    rise = by_step.loc[7:10].mean() - by_step.loc[0]
    assert ((late - middle).abs() < 0.2 * rise).all()


SCORE, PREDICTED = 1.2, [0.1, 0.4, 1.7]
CHANCES = {"Very": (0.2, 0.1), "funny": (0.3, 0.1), "stop": (0.1, 0.2)}  # actor, reference
WORLD = {"A": (0.8, 0.5), "B": (0.2, 0.5)}  # all reviews of a tiny world: actor, reference


def on_paper():
    """Each token's KL penalty, and what it answers for: the score less own and later penalties."""
    penalties = [BETA * math.log(actor / reference) for actor, reference in CHANCES.values()]
    return penalties, [SCORE - sum(penalties[t:]) for t in range(3)]


def test_the_advantages_on_paper_are_those_of_the_package():
    """Without GAE's mixing (lam=1), a token answers for its own and later penalties."""
    actor, reference = torch.tensor(list(CHANCES.values())).log().T
    mask = torch.ones(1, 3, dtype=torch.bool)
    pair = actor[None], reference[None]
    token_rewards = core.kl_shaped_rewards(torch.tensor([SCORE]), *pair, mask, kl_coef=BETA)
    advantages, returns = core.gae(token_rewards, torch.tensor([PREDICTED]), mask, lam=1)
    own_and_later = torch.tensor(on_paper()[1])
    assert torch.allclose(returns[0], own_and_later)
    assert torch.allclose(advantages[0], own_and_later - torch.tensor(PREDICTED))


def test_the_losses_of_the_page_are_those_of_the_package():
    """The means of SFT's and the reward model's losses, and the gradients of PPO's."""
    generator = torch.Generator().manual_seed(0)
    logprobs, old = -torch.rand(2, 2, 4, generator=generator)
    advantages, mask = torch.randn(2, 4, generator=generator), torch.ones(2, 4, dtype=torch.bool)
    assert torch.allclose(core.sft_loss(logprobs, mask), -logprobs)
    a, b = torch.tensor([1.0, 2.0, 3.0, 0.0]), torch.ones(4)
    assert torch.allclose(core.reward_model_loss(a, b).mean(), -torch.sigmoid(a - b).log().mean())
    ratio = (logprobs - old).exp()
    by_hand = -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
    assert torch.allclose(core.ppo_clip(logprobs, old, advantages, mask), by_hand)
    # The first update has the gradient of SFT's loss, weighted by the advantage.
    first = old.clone().requires_grad_()
    core.ppo_clip(first, old, advantages, mask).sum().backward()
    assert torch.allclose(first.grad, -advantages)
    # Beyond 20 % the push ends, in the direction of the advantage only.
    for factor, advantage, gradient in ((1.21, 1, 0), (1.19, 1, -1.19), (0.79, -1, 0)):
        moved = (old + math.log(factor)).requires_grad_()
        core.ppo_clip(moved, old, torch.full((2, 4), float(advantage)), mask).sum().backward()
        assert torch.allclose(moved.grad, torch.full((2, 4), float(gradient)))


def test_the_critics_loss_is_half_the_squared_error():
    values, returns = torch.randn(2, 2, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 4, dtype=torch.bool)
    by_hand = 0.5 * (values - returns) ** 2
    assert torch.allclose(core.value_loss(values, returns, mask), by_hand)


def train_ppo(actor, critic, reward_model, tokenizer, config, **options):
    score = rewards.rollout_score(reward_model, tokenizer.eos_token_id)
    prompts = tasks.reviews.rl_prompts()
    loops.train_ppo(actor, critic, tokenizer, prompts, score, config, **options)


def test_the_clip_is_no_wall():
    """After the updates on one batch, some tokens have moved much further than 20 %."""
    beyond, furthest = [], []

    def ppo_clip(logprobs, old, advantages, mask, **clip):
        beyond.append(core.is_clipped(logprobs, old, advantages, mask, **clip)[mask])
        ratio = (logprobs - old).exp()[mask].detach()
        furthest.append(max(ratio.max().item(), 1 / ratio.min().item()))
        return core.ppo_clip(logprobs, old, advantages, mask, **clip)

    actor, tokenizer = models.load_policy("tiny-reviews-sft")
    critic, _ = models.load_scalar("tiny-reviews-reward")
    config = loops.PPOConfig(steps=1, batch_size=8, minibatch_size=4)
    formulas = loops.PPOFormulas(ppo_clip=ppo_clip)
    train_ppo(actor, critic, copy.deepcopy(critic), tokenizer, config, formulas=formulas)
    assert len(beyond) == 4 and beyond[-1].any()
    assert furthest[-1] > 1.5


def test_ppo_trains_the_actor_and_the_critic_only():
    """The reward model and the reference of the page's short run stay as they are."""
    actor, tokenizer = models.load_policy("tiny-reviews-sft")
    critic, _ = models.load_scalar("tiny-reviews-reward")
    reference, reward_model = copy.deepcopy(actor), copy.deepcopy(critic)
    networks = [actor, critic, reference, reward_model]
    before = [[p.detach().clone() for p in network.parameters()] for network in networks]
    config = loops.PPOConfig(steps=1, batch_size=4, minibatch_size=4, epochs=1)
    train_ppo(actor, critic, reward_model, tokenizer, config, reference=reference)
    changed = [
        any(not torch.equal(p, q) for p, q in zip(network.parameters(), old, strict=True))
        for network, old in zip(networks, before, strict=True)
    ]
    assert changed == [True, True, False, False]


def test_the_kl_penalty_on_paper_is_that_of_the_package():
    actor, reference = torch.tensor(list(CHANCES.values())).log().T
    mask = torch.ones(1, 3, dtype=torch.bool)
    pair = actor[None], reference[None]
    total = core.kl_shaped_rewards(torch.tensor([SCORE]), *pair, mask, kl_coef=BETA).sum()
    assert total == pytest.approx(SCORE - BETA * math.log(3), abs=1e-6)
    pair = reference[None], actor[None]  # a third as likely: it gains what the other one lost
    total = core.kl_shaped_rewards(torch.tensor([SCORE]), *pair, mask, kl_coef=BETA).sum()
    assert total == pytest.approx(SCORE + BETA * math.log(3), abs=1e-6)


def test_the_tiny_world_is_one_and_its_kl_is_the_actors_own_mean():
    actor, reference = torch.tensor(list(WORLD.values()), dtype=torch.float64).T
    assert actor.sum() == pytest.approx(1) and reference.sum() == pytest.approx(1)
    kl = torch.distributions.kl_divergence(
        torch.distributions.Categorical(actor), torch.distributions.Categorical(reference)
    )
    mean_logarithm = (actor * (actor / reference).log()).sum()
    assert mean_logarithm == pytest.approx(kl.item()) and kl > 0


# ---- section 5: what PPO changed


def test_ppo_is_judged_more_positive_than_sft_on_every_seed(tour, leash):
    for seed in SEEDS:
        pairs = [(tour.loc["SFT", 0], leash.loc[PENALTY, seed])]  # the runs of section 5
        pairs += [(tour.loc["SFT", seed], tour.loc["PPO", seed])]  # each with its own SFT model
        for sft, ppo in pairs:
            assert ppo.gold_low - sft.gold_high > 0.5 and ppo.proxy_low - sft.proxy_high > 0.5
            assert ppo.length < sft.length and ppo.distinct_2 < sft.distinct_2


def test_the_row_of_the_sft_model_is_that_of_the_committed_one(tour, best_of):
    """Eight reviews of each film by the committed model, beside 16 by that of the record."""
    row = tour.loc["SFT", 0]
    assert row.proxy_low < best_of[1] < row.proxy_high


def test_the_samples_that_the_page_reads_are_those_of_the_record(tour, leash):
    rows = tour.loc["SFT", 0], leash.loc[PENALTY, 0]
    sft, ppo = (" ".join(row.samples.values()).lower() for row in rows)
    for words in ("a fresh, entertaining thriller", "just too hard to work with"):
        assert words in sft and words not in ppo
    praise = ("very funny and entertaining", "warm, romantic", "well-acted")
    for words in (*praise, "a urban era at sparkling life"):
        assert words in ppo and words not in sft


# ---- section 7: without the KL penalty


def test_without_the_kl_penalty_score_kl_and_length_rise_and_the_variety_goes(leash):
    for seed in SEEDS:
        free, held = leash.loc["kl_coef 0", seed], leash.loc["kl_coef 0.5", seed]
        assert free.proxy > held.proxy + 2 and free.kl > 10 * held.kl
        assert free.gold > held.gold and free.length > held.length
        assert free.distinct_2 < 0.1 < 0.5 < held.distinct_2
    said = list(leash.loc["kl_coef 0", 0].samples.values())[:3]
    assert all("funny and funny and funny" in text for text in said)


def test_the_samples_of_section_7_differ_only_under_the_kl_penalty(leash):
    held, free = (
        list(leash.loc[name, 0].samples.values())[:3] for name in ("kl_coef 0.5", "kl_coef 0")
    )
    assert len({text.split()[1] for text in held}) == 3
    assert {" ".join(text.split()[:7]) for text in free} == {"A funny and funny and funny and"}
    assert sum("funny" in text for text in held) == 2


def test_the_runs_of_section_7_share_one_sft_model_and_the_settings_of_the_page():
    history = experiments.results("leash_history")
    history = history[history.variant.isin(["kl_coef 0.5", "kl_coef 0"])]
    assert sorted(history.seed.unique()) == SEEDS
    assert history.groupby(["variant", "seed"]).step.max().eq(loops.PPOConfig().steps - 1).all()


# ---- section 8 and the twelve questions


def test_the_map_names_every_lesson_that_exists():
    (cell,) = [
        c for c in nbformat.read(NOTEBOOK, 4).cells if "## The map of the course" in c.source
    ]
    for source in notebook_sources():
        number = source.stem.split("_")[0]
        if number != "00":
            assert number in cell.source, number
    assert "to come" not in cell.source


def test_the_quiz_is_shown_whole_and_the_committed_page_gives_no_answer():
    (cell,) = [c for c in nbformat.read(NOTEBOOK, 4).cells if c.source == "Questions()"]
    shown = cell.outputs[0]["data"]["text/markdown"]
    assert all(question.text in shown for question in QUESTIONS)
    assert "concept test" in cell.outputs[0]["data"]["text/plain"]
    assert not shown_under("my_answers")


# ---- exercises 2 to 4, and "Going further"


@pytest.fixture(scope="module")
def best_of_with_errors():
    """n -> mean score of the best of n and its standard error, as the solution prints them."""
    cells = nbformat.read(NOTEBOOK.parent / "solutions" / NOTEBOOK.name, 4).cells
    (shown,) = [text_of(cell) for cell in cells if cell.source.startswith("mean_scores = {}")]
    rows = [line.split() for line in shown.splitlines()]
    found = {int(row[0]): [float(x) for x in row[1:]] for row in rows if row[0].isdigit()}
    assert list(found) == list(range(1, 9))
    assert all(len(row) == 2 for row in found.values())
    return found


@pytest.fixture(scope="module")
def best_of(best_of_with_errors):
    """n -> the mean score of the best of n."""
    return {n: score for n, (score, _) in best_of_with_errors.items()}


def test_five_to_eight_samples_cannot_be_told_from_ppo(leash, best_of_with_errors):
    """Exercise 2: two standard errors around PPO's mean score."""
    at, films = mean(leash, PENALTY, "proxy"), len(tasks.reviews.eval_prompts("test"))
    near = [n for n, (score, error) in best_of_with_errors.items() if abs(score - at) < 2 * error]
    assert near == [5, 6, 7, 8]
    errors = [best_of_with_errors[n][1] for n in near]
    low, high = min(errors), max(errors)
    text = solution_with("About six or seven.")
    assert f"A standard error is {low:.2f} to {high:.2f} there." in text
    assert f"less than two standard errors from {at:.2f}." in text
    assert f"Four have {best_of_with_errors[4][0]:.2f}, and this is clearly less." in text
    assert "a choice among five to eight reviews" in text
    assert f"\\sqrt{{{films}}}" in NOTEBOOK.read_text(encoding="utf-8").replace("\\\\", "\\")


def test_the_best_of_six_or_seven_samples_is_nearest_to_ppo(leash, best_of):
    runs, at = leash.loc[PENALTY].proxy, mean(leash, PENALTY, "proxy")
    assert best_of[6] < at < best_of[7]
    assert sorted(best_of, key=lambda n: abs(best_of[n] - at))[:2] == [6, 7]
    assert list(best_of.values()) == sorted(best_of.values())
    text = solution_with("About six or seven.")
    assert f"Six have {best_of[6]:.2f}, a little less than PPO's {at:.2f}." in text
    assert f"Seven have {best_of[7]:.2f}, a little more." in text
    assert f"reach from {runs.min():.2f} to {runs.max():.2f}." in text
    assert f"But five, with {best_of[5]:.2f}, and eight, with {best_of[8]:.2f}," in text


def solution_with(words):
    """The text of the one solution with these words, on one line."""
    cells = nbformat.read(NOTEBOOK.parent / "solutions" / NOTEBOOK.name, 4).cells
    (found,) = [cell.source for cell in cells if words in " ".join(cell.source.split())]
    return " ".join(found.split())


def test_the_reviews_that_each_of_two_methods_writes(leash):
    """Exercise 4: PPO's training, and the requests after which it has written fewer."""
    config, text = loops.PPOConfig(), solution_with("Best of n writes n − 1")
    written = config.steps * config.batch_size
    assert f"{config.steps} steps of {config.batch_size} reviews are {written:,}." in text
    assert f"For n = 7 this is {written:,} / 6 = {written / 6:.0f}," in text
    assert f"for n = 6 it is {written:,} / 5, about {written / 5:.0f}." in text
    assert f"after {written / 6:.0f} or after {written / 5:.0f} requests" in text
    assert best_of_n_kl(6) < best_of_n_kl(7)
    kl = mean(leash, PENALTY, "kl")
    assert f"\\log 7 - 6/7 = {best_of_n_kl(7):.2f}$ nats, and PPO's is {kl:.2f}" in text


def test_each_kl_coefficient_of_exercise_3_has_another_winner():
    run = experiments.results("microscope")
    after = run[(run.source == "fresh") & (run.step == 24)]
    reviews = after.groupby("prompt").agg(score=("score", "first"), log_ratio=("kl", "sum"))
    sums = after.groupby("prompt").apply(lambda r: (r.old_logprob - r.ref_logprob).sum())
    assert (sums - reviews.log_ratio).abs().max() < 1e-3
    first, thanks, treat = "a shot at glory\n", "american psycho 2\n", "amys o\n"
    best = [(reviews.score - beta * reviews.log_ratio).idxmax() for beta in (0, 0.5, 2)]
    assert best == [first, treat, thanks]
    found = reviews.loc[[first, treat, thanks]].round(2)
    assert found.score.tolist() == [1.29, 0.99, 0.40]
    assert found.log_ratio.tolist() == [2.08, 0.96, 0.57]


def test_best_of_16_has_more_gold_than_ppo_on_every_seed_at_no_higher_kl(tour):
    for seed in SEEDS:
        assert tour.loc["best-of-16", seed].gold > tour.loc["PPO", seed].gold
    assert mean(tour, "best-of-16", "kl") < mean(tour, "PPO", "kl")
    assert mean(tour, "best-of-16", "kl") == pytest.approx(math.log(16) - 15 / 16)
    assert mean(tour, "best-of-16", "length") > mean(tour, "PPO", "length") + 1
    gap = mean(tour, "best-of-16", "distinct_2") - mean(tour, "PPO", "distinct_2")
    assert abs(gap) < 0.03


def test_the_methods_of_the_figure(tour):
    gold = {name: mean(tour, name, "gold") for name in ("PPO", "DPO", "GRPO", "best-of-16")}
    kl = {name: mean(tour, name, "kl") for name in gold}
    assert max(kl, key=kl.get) == "DPO" and max(gold, key=gold.get) == "best-of-16"
    assert gold["DPO"] < gold["GRPO"]
    higher = [tour.loc["DPO", seed].gold > tour.loc["GRPO", seed].gold for seed in SEEDS]
    assert sum(higher) == 1


# ---- every number of the prose


def test_the_numbers_of_the_prose(tour, steps, leash, judge, judge_of, agreement, treat):
    default, by_hand = (
        loops.PPOConfig(),
        [
            core.preference_probability(torch.tensor(float(gap)), torch.tensor(0.0))
            for gap in (0, 1, 2, -1)
        ],
    )
    parameters = sum(p.numel() for p in models.load_policy("tiny-reviews-sft")[0].parameters())
    praise, plain, not_dull, ending, funny = judge(PRAISE, LENGTH, NOT_DULL, DULL_ENDING, FUNNY)
    with lesson("00") as said:
        # 1: the picture
        said("Follow the numbers", 1, 3)
        said("a GPT-2 of", round(parameters / 1e6))
        said("how positive a review is, from", -4, 4)
        # 2: SFT
        limit = models.SamplingConfig().max_new_tokens
        said("one response to each title, of at most", limit)
        # 3: the reward model
        said("| $r(A) - r(B)$ |", 0, 1, 2, -1)
        said("| probability that A is preferred |", *by_hand)
        said("| loss |", *(-math.log(chance) for chance in by_hand))
        said("responses have the mean score", 0, 1)
        said("So a score of", 2)
        scale = models.load_scalar("tiny-reviews-reward")[0].scale
        after = core.preference_probability(torch.tensor(scale), torch.tensor(0.0))
        said("We divide by", scale, 1, after, by_hand[1])
        said("- **Highest:**", praise)
        said("- **Lowest:**", not_dull)
        said("the review with the dull ending,", ending, plain)
        said("is no review, and has", funny)
        said("that it has not seen, it is right in", agreement[0], 0.5, 1, agreement[1])
        # 4: PPO
        said("**Sample.** The actor writes", default.batch_size)
        said("is one, too. The score is", SCORE)
        advantages_by_hand(said)
        kl_by_hand(said)
        left_out(said)
        said("the mean score of the", default.batch_size)
        said("Then both rise. (The score jumps, because", default.batch_size)
        said("So the score is near", 0, 0)
        clip = default.clip["clip_eps"]
        said("Once it is", clip, 0, clip)
        said("All $\\rho_t$ are", 1)
        said("Step", 0)
        said("A full run has", steps.step.max() + 1)
        said("prediction of the rating, from", -4, 4)
        # 5: what PPO changed
        said("three runs wrote reviews of", len(tasks.reviews.eval_prompts("test")))
        said("a measure of variety: of", 500)
        sft, ppo = tour.loc["SFT", 0], {c: mean(leash, PENALTY, c) for c in MEASURES}
        said("From about", sft.length, ppo["length"])
        said("**Less varied.**", sft.distinct_2, ppo["distinct_2"])
        said("The gold score rises from", sft.gold, ppo["gold"])
        said("It rises by more than", 1, (leash.loc[PENALTY].gold - sft.gold).min() > 1)
        said("The KL is", ppo["kl"], round(math.exp(ppo["kl"])))
        assert f"e^{{{ppo['kl']:.2f}}}" in NOTEBOOK.read_text(encoding="utf-8")
        # 6: the microscope
        said("after the last of its", default.steps)
        heart = treat.loc[" heart"] if " heart" in treat.index else treat.loc["heart"]
        word = treat.loc[" treat"] if " treat" in treat.index else treat.loc["treat"]
        chances = [math.exp(heart.old_logprob), math.exp(heart.ref_logprob)]
        said("after *A* with a probability of", *chances)
        rounded = [round(100 * chance, 1) for chance in chances]
        said("The log-ratio is log", *rounded, heart.kl)
        assert round(math.log(rounded[0] / rounded[1]), 1) == round(heart.kl, 1)
        said("is orange", word.kl < 0)
        said("It has seven tokens", len(treat) == 7)
        said("of them, and", "".join(treat.index[1:4]).strip() == "heartbreaking")
        total, points = treat.kl.sum(), treat.score.iloc[-1]
        said("The log-ratios of its tokens add up to", total)
        said("So PPO has made", abs(math.exp(total) - 2.6) < 0.05)
        said("times as likely. Its score is", points)
        said("is its prediction (section 4). It is", heart.value, treat.value.iloc[2])
        said("What PPO maximises is", points, BETA, total, points - BETA * total)
        # 7: without the KL penalty
        names = ("kl_coef 0", "kl_coef 0.5")
        ends = {c: [mean(leash, n, c) for n in names] for c in ("proxy", "kl", "gold")}
        said("- **Larger:** the score", *ends["proxy"], *ends["kl"], *ends["gold"])
        title, review = next(iter(leash.loc["kl_coef 0", 0].samples.items()))
        said("first one has a score of", *judge(review), praise)
        assert judge_of(title, review) > praise  # under its own title, too
        said("the variety. Only", mean(leash, "kl_coef 0", "distinct_2"))
        free, held = (mean(leash, name, "distinct_2") for name in names)
        said("We believe the", ends["gold"][1], ends["gold"][0])
        said("- **The variety.** It is", held, free)
        said("- **The KL.** At", ends["kl"][1], ends["kl"][0])
        said("So a part of the", ends["gold"][1])
        # exercises and "Going further"
        said("that PPO maximises, with $\\beta = 0$, with", 0.5, 2)
        said("with a score above", 1.5, -1.5)
        said("Padding can hold NaN, and NaN times", 0)
        said("3. Why is the KL", 0)
        assert best_index(torch.tensor([1.0, 5, 7, 2]), 2).tolist() == [1, 2]
        said("With n =", 2, 1, 5, 7, 2, 1, 2)
        said("(b) PPO has a mean score of", mean(leash, PENALTY, "proxy"))
        films = len(tasks.reviews.eval_prompts("test"))
        said("Each of your means comes from", films, films)
        said("less than two standard errors from", mean(leash, PENALTY, "proxy"))
        said("7. Section 7 has two gold scores,", ends["gold"][1], ends["gold"][0])
        said("and n =", 3)
        gold = {name: mean(tour, name, "gold") for name in ("DPO", "GRPO")}
        said("On average over the three runs its gold score is", gold["DPO"], gold["GRPO"])
        said("is the higher one.) Best of", 16, math.log(16) - 15 / 16, mean(tour, "PPO", "kl"))
        said("of section 5, PPO wrote", TourConfig().samples_per_prompt, POOL)
        said("those of the first run (seed", 0)
        said("These shares are means of", agreement[2])


def left_out(said):
    """ "Going further": the settings of the runs that section 4 leaves out."""
    config, recorded = loops.PPOConfig(), TourConfig().ppo
    for name in ("lam", "epochs", "minibatch_size"):
        assert getattr(config, name) == getattr(recorded, name)
    limit = config.sampling.max_new_tokens
    said("A review that is cut off after", limit, config.missing_eos_penalty)
    said("with $\\lambda = 0.95$", f"{config.lam}" == "0.95")
    said("shifted and stretched over the batch, to the mean", 0, 1, config.whiten)
    assert inspect.signature(linear_decay).parameters["warmup"].default == 5
    for optimiser in (config.actor, config.critic):
        assert optimiser.schedule == "linear"
        said("is shortened to the length", optimiser.max_grad_norm)
    said("The learning rates rise over the first five steps", 0)
    said("once a prediction has moved by more than", config.value_clip_eps)
    updates = config.epochs * config.batch_size // config.minibatch_size
    said("in two minibatches of", config.minibatch_size, config.epochs == 2, updates)
    said("divided by the temperature", config.sampling.temperature)


def advantages_by_hand(said):
    """Section 4: what each token answers for, and its advantage. The rounded numbers agree."""
    penalties, answers = on_paper()
    first, second, third = (round(penalty, 2) for penalty in penalties)
    lines = [(first, second, -third), (second, -third), (third,)]
    for name, line, answer, predicted in zip(
        ("Very", "funny", "stop"), lines, answers, PREDICTED, strict=True
    ):
        rounded, gain = round(answer, 2), answer - predicted
        said(f"| *{name}* |", SCORE, *line, answer, predicted, answer, predicted, gain)
        assert round(rounded - predicted, 2) == round(gain, 2)
    said("the critic predicts", PREDICTED[2], PREDICTED[2] > answers[2])


def kl_by_hand(said):
    """Section 4: the KL penalty of one review."""
    logs = [math.log(actor / reference) for actor, reference in CHANCES.values()]
    for (name, (actor, reference)), log in zip(CHANCES.items(), logs, strict=True):
        said(f"| {name} |", actor, reference, actor / reference, log, BETA * log)
    actor, reference = (math.prod(chances) for chances in zip(*CHANCES.values(), strict=True))
    total, penalty = sum(logs), BETA * math.log(3)
    assert total == pytest.approx(math.log(3))
    said("| the review |", actor, reference, 3, total, penalty)
    said("So it loses", penalty, SCORE, penalty, SCORE - penalty)
    logs = {name: math.log(actor / reference) for name, (actor, reference) in WORLD.items()}
    for name, chances in WORLD.items():
        said(f"| {name} |", *chances, logs[name])
    (first, _), (second, _) = WORLD.values()
    kl = first * logs["A"] + second * logs["B"]
    said("The mean log-ratio is", first, logs["A"], second, -logs["B"], kl)
    # What the reader computes from the rounded logarithms is the same.
    assert round(first * round(logs["A"], 2) + second * round(logs["B"], 2), 2) == round(kl, 2)


def test_the_tour_is_a_command_that_the_page_names():
    assert "tour:" in (ROOT / "Makefile").read_text(encoding="utf-8")
