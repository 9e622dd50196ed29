"""Lesson 05, advantages and GAE: every number of its prose, and what its text says about them."""

import json
import re

import jupytext
import nbformat
import pytest
import torch

from minirlhf import core, experiments, loops, models, rewards, tasks
from minirlhf.classroom.course import NOTEBOOKS
from minirlhf.experiments.runs import group_run_config
from minirlhf.models.forward import token_scores
from minirlhf.show.variants import difference_of_means
from tests.claims.prose import lesson

SEEDS = range(3)


# ---- section 2 and 3: the formula


def test_gae_is_the_weighted_mean_of_the_n_step_estimates():
    generator = torch.Generator().manual_seed(0)
    r, v = torch.randn(2, 1, 5, generator=generator).double()
    full, lam, gamma = torch.ones(1, 5, dtype=torch.bool), 0.7, 0.9
    returns = core.reward_to_go(r, full, gamma=gamma)[0]
    after = torch.cat([v[0], torch.zeros(1)])
    n_step = [
        sum(gamma**i * r[0, i] for i in range(n)) + gamma**n * after[n] - v[0, 0]
        for n in range(1, 6)
    ]
    deltas = core.td_errors(r, v, full, gamma=gamma)[0]
    for n, estimate in enumerate(n_step, 1):
        assert torch.isclose(estimate, sum(gamma**i * deltas[i] for i in range(n)))
    # after the end nothing is added, so the last estimate has the weights of all longer ones
    weights = [(1 - lam) * lam ** (n - 1) for n in range(1, 5)] + [lam**4]
    assert sum(weights) == pytest.approx(1)
    mean = sum(w * a for w, a in zip(weights, n_step, strict=True))
    assert torch.isclose(mean, core.gae(r, v, full, gamma=gamma, lam=lam)[0][0, 0])
    assert torch.isclose(n_step[-1], returns[0] - v[0, 0])
    assert sum((1 - lam) * lam**k for k in range(3, 400)) == pytest.approx(lam**3)


HAND = core.World.from_reward(
    ("good", "bad", "."), 2, lambda words: float(words.count("good") - words.count("bad"))
)


def test_with_the_true_value_the_td_error_is_the_advantage():
    for world, logits in ((HAND, HAND.ref_logits), (WORLD, OTHER_POLICY)):
        value, q = world.values(logits)
        advantage = (world.by_token(q) - world.by_token(value)[..., None]).gather(
            -1, world.response_ids[..., None]
        )[..., 0]
        mask = world.response_mask
        deltas = core.td_errors(at_the_end(world), world.by_token(value), mask)
        torch.testing.assert_close(deltas[mask], advantage[mask])


@pytest.mark.parametrize(
    "values, deltas", [([0.0, 1.0], [1.0, 1.0]), ([1.0, 0.0], [-1.0, 2.0])], ids=["true", "wrong"]
)
def test_good_good_with_a_true_and_a_wrong_critic(values, deltas):
    assert HAND.values(HAND.ref_logits)[0].tolist() == pytest.approx([0, 1, -1])
    real, earned = torch.ones(1, 2, dtype=torch.bool), torch.tensor([[0.0, 2.0]])
    assert core.td_errors(earned, torch.tensor([values]), real)[0].tolist() == deltas
    for lam in (0.0, 0.5, 1.0):
        advantages, targets = core.gae(earned, torch.tensor([values]), real, lam=lam)
        assert advantages[0].tolist() == [deltas[0] + lam * deltas[1], deltas[1]]
        assert targets[0].tolist() == [advantages[0, 0] + values[0], advantages[0, 1] + values[1]]
    assert targets[0].tolist() == [2, 2]  # lambda 1: the return, whatever the critic says


# ---- section 4: the exact world


WORLD = core.World.random(3, 3, seed=0)
ERROR = torch.linspace(-1, 1, 7, dtype=torch.float64)
OTHER_POLICY = WORLD.ref_logits + torch.randn(
    7, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64
)


def at_the_end(world):
    """(N, R): the reward of each sequence at its last token."""
    last = world.response_mask.sum(1) - 1
    return torch.nn.functional.one_hot(last, world.max_length) * world.rewards[:, None]


def critics(logits):
    value = WORLD.values(logits)[0]
    return {
        "right": value,
        "wrong": value + ERROR,
        "shifted": value + 1,
        "constant": torch.full_like(value, value[0].item()),
        "right + 5": value + 5,
        "none": 0 * value,
    }


def bias_and_spread(critic, lam, logits=WORLD.ref_logits):
    """Bias and spread of the gradient from one response, in lengths of the true gradient.

    The gradient of each response is taken by autograd of its weighted log-probabilities.
    """
    gradients = gradients_of(critic, lam, logits)
    probs, truth = WORLD.probs(logits), WORLD.gradient(logits).flatten()
    mean = probs @ gradients
    variance = probs @ (gradients - mean).square().sum(1)
    return (mean - truth).norm().item() / truth.norm().item(), (
        variance.sqrt() / truth.norm()
    ).item()


def gradients_of(critic, lam, logits=WORLD.ref_logits):
    """(N, S V): the gradient from each response."""
    value = critics(logits)[critic]
    weights = core.gae(at_the_end(WORLD), WORLD.by_token(value), WORLD.response_mask, lam=lam)[0]
    moved = logits.clone().requires_grad_(True)
    each = (weights * WORLD.logprobs(moved)).sum(1)
    return torch.stack(
        [torch.autograd.grad(x, moved, retain_graph=True)[0].flatten() for x in each]
    )


@pytest.mark.parametrize("logits", [WORLD.ref_logits, OTHER_POLICY], ids=["page", "other"])
def test_which_estimates_are_biased(logits):
    for lam in (0.0, 0.3, 0.95, 1.0):
        assert bias_and_spread("right", lam, logits)[0] < 1e-9
    for critic in critics(logits):
        assert bias_and_spread(critic, 1.0, logits)[0] < 1e-9
    for critic in ("wrong", "shifted", "constant"):
        assert bias_and_spread(critic, 0.0, logits)[0] > 0.1
        assert bias_and_spread(critic, 0.0, logits)[1] < bias_and_spread(critic, 1.0, logits)[1]
    assert bias_and_spread("wrong", 1.0, logits)[1] > bias_and_spread("none", 1.0, logits)[1]
    assert bias_and_spread("right", 1.0, logits)[1] < bias_and_spread("none", 1.0, logits)[1]


def test_bias_falls_and_spread_grows_with_lambda():
    for critic in ("wrong", "shifted", "constant"):
        bias, spread = zip(*(bias_and_spread(critic, i / 10) for i in range(11)), strict=True)
        assert list(bias) == sorted(bias, reverse=True) and list(spread) == sorted(spread)


def test_which_critics_have_more_spread_than_none():
    lams, none = [i / 10 for i in range(11)], bias_and_spread("none", 1.0)[1]
    above = {
        c: [lam for lam in lams if bias_and_spread(c, lam)[1] > none]
        for c in ("right", "wrong", "shifted")
    }
    assert above == {"right": [], "wrong": lams[5:], "shifted": lams}


def test_a_batch_without_a_critic_needs_more_responses_for_the_same_spread():
    rows = WORLD.probs(WORLD.ref_logits)
    draws = torch.Generator().manual_seed(0)
    right, none = (gradients_of(c, lam) for c, lam in (("right", 0.0), ("none", 1.0)))
    ratio = bias_and_spread("none", 1.0)[1] / bias_and_spread("right", 0.0)[1]
    spread = []
    for each, size in ((right, 20), (none, round(20 * ratio**2))):
        drawn = torch.multinomial(rows, 20_000 * size, replacement=True, generator=draws)
        means = each[drawn].reshape(20_000, size, -1).mean(1)
        spread.append(means.var(0).sum().sqrt().item())
    assert spread[0] == pytest.approx(spread[1], rel=0.02)


def test_a_large_offset_at_lambda_0():
    raised, right = (bias_and_spread(c, 0.0, OTHER_POLICY) for c in ("right + 5", "right"))
    assert right[0] < 1e-9 < 1 < raised[0] and raised[1] > 2 * right[1]


def test_the_quietest_critic_can_be_the_most_wrong():
    at_0 = {c: bias_and_spread(c, 0.0, OTHER_POLICY) for c in ("right", "wrong", "constant")}
    assert min(at_0, key=lambda c: at_0[c][1]) == "constant"
    assert max(at_0, key=lambda c: at_0[c][0]) == "constant"


def less_spread_at_lambda_1(count):
    """In how many of `count` random worlds with one shared weight the right critic wants lambda 1.

    The weight moves all logits of the world of section 4 at once, each at a random rate. So its
    gradient is the gradient of the logits along a random direction.
    """
    each = [gradients_of("right", lam) for lam in (0.0, 1.0)]
    probs, fewer = WORLD.probs(WORLD.ref_logits), 0
    for seed in range(count):
        rates = torch.randn(21, 1, generator=torch.Generator().manual_seed(seed)).double()[:, 0]
        at_0, at_1 = (g @ rates for g in each)
        spread = [probs @ (x - probs @ x).square() for x in (at_0, at_1)]
        fewer += bool(spread[1] < spread[0])
    return fewer


def test_the_value_of_the_first_token_is_the_output_at_the_last_position_of_the_prompt():
    critic, _ = models.load_scalar("tiny-reviews-reward")
    policy, tokenizer = models.load_policy("tiny-reviews-sft")
    titles = tasks.reviews.eval_prompts("test")[:4]
    (batch,) = models.sample_text(policy, tokenizer, titles, seed=0, batch_size=4)
    with torch.no_grad():
        read, values = token_scores(critic, batch), models.response_values(critic, batch)
    first = batch.prompt_ids.shape[1]  # the position of the first response token
    assert torch.equal(values, read[:, first - 1 : -1])
    assert batch.sequences.shape[1] == read.shape[1] == first + values.shape[1]


@pytest.mark.parametrize("logits", [WORLD.ref_logits, OTHER_POLICY], ids=["page", "other"])
def test_a_larger_batch_wants_a_larger_lambda(logits):
    curve = [bias_and_spread("wrong", i / 50, logits) for i in range(51)]
    best = [
        min(range(51), key=lambda i: curve[i][0] ** 2 + curve[i][1] ** 2 / size)
        for size in (1, 16, 64, 256, 1024)
    ]
    assert best == sorted(best) and best[0] == 0 and best[-1] > best[2] > best[1]


def test_one_response_or_a_right_critic_wants_lambda_0():
    right = [bias_and_spread("right", i / 10) for i in range(11)]
    assert min(range(11), key=lambda i: right[i][1]) == 0


# ---- section 5: the critic


def cells():
    return jupytext.read(NOTEBOOKS / "src" / "05_advantages_gae.py").cells


def scope_of_the_critic():
    """What the code cells of section 5 define, up to the step of the critic."""
    scope = {"core": core, "loops": loops, "models": models, "rewards": rewards, "tasks": tasks}
    scope |= {"torch": torch, "copy": __import__("copy")}
    for start in ("torch.set_num_threads(1)", "def rewards_of"):
        (cell,) = [c for c in cells() if c.source.startswith(start)]
        exec(cell.source, scope)
    return scope


@pytest.mark.slow
def test_one_step_lifts_the_explained_variance_above_0_and_then_it_changes_little():
    threads = torch.get_num_threads()
    scope = scope_of_the_critic()
    order = loops.shuffled_batches(len(scope["prompts"]), 64, 8, seed=0)
    explained = [
        scope["critic_step"]([scope["prompts"][i] for i in index])
        for _, index in zip(range(8), order, strict=False)
    ]
    torch.set_num_threads(threads)
    assert explained[0] < -1 and all(0.1 < x < 0.5 for x in explained[1:])
    assert max(explained[1:]) - min(explained[1:]) < 0.2


@pytest.fixture(scope="module")
def fresh_reviews():
    """The names of the cell with fresh reviews, where the reward model is the critic."""
    scope = scope_of_the_critic()
    (cell,) = [c for c in cells() if c.source.startswith("titles = tasks")]
    exec(cell.source.split("print(")[0], scope)  # the critic is still the reward model
    return scope


@pytest.fixture(scope="module")
def of_the_trained_critic():
    """Its explained variance: over all positions, and at the positions 0, 5, 10 and 15."""
    outputs = [o for c in notebook().cells if c.cell_type == "code" for o in c.outputs]
    printed = "".join(o["text"] for o in outputs if o["output_type"] == "stream")
    at = re.search(r"0, 5, 10 and 15: (\[.*\])", printed)[1]
    return float(re.search(r"trained critic: (-?\d\.\d+)", printed)[1]), json.loads(at)


def test_the_trained_critic_is_better_on_new_reviews(fresh_reviews, of_the_trained_critic):
    assert fresh_reviews["trained"] < 0 < 0.3 < of_the_trained_critic[0] < 0.6


def test_the_critic_explains_more_the_more_it_has_read(of_the_trained_critic):
    at = of_the_trained_critic[1]
    assert abs(at[0]) < 0.05 and at == sorted(at) and at[-1] > 0.5


def first_steps(variant, steps):
    """The explained variance of three recorded PPO runs at these steps."""
    history = experiments.results("ablations_history")
    rows = history[(history.variant == variant) & history.step.isin(steps)]
    assert sorted(rows.seed.unique()) == list(SEEDS)
    return rows.explained_variance


# ---- section 6: the microscope


def notebook():
    return nbformat.read(NOTEBOOKS / "05_advantages_gae.ipynb", 4)


@pytest.fixture(scope="module")
def reviews():
    """Per response of the microscope: its tokens, and its columns of numbers."""
    (cell,) = [c for c in notebook().cells if c.source.startswith("chosen = torch")]
    html = "".join(cell.outputs[0]["data"]["text/html"])
    data = json.loads(re.search(r'<script type="application/json"[^>]*>(.*?)</script>', html)[1])
    texts = data["sides"][0]["frames"][0]["texts"]
    return [([data["words"][i] for i in t["tokens"]], t["numbers"]) for t in texts]


def test_the_reviews_are_those_of_the_text(reviews):
    starts = ("It's a celebration of the dullestness", "A very well-acted, unfunny film.")
    starts += ("A boring, vuildly satisfying thriller",)
    for (words, _), start in zip(reviews, starts, strict=True):
        assert "".join(words).strip().startswith(start)


def test_the_numbers_of_the_microscope_belong_together(reviews):
    for words, numbers in reviews:
        value, score = numbers["value"], numbers["score"][-1]
        after = [*value[1:], 0]
        reward = [0] * (len(words) - 1) + [score]
        assert numbers["reward"] == pytest.approx(reward, abs=1e-3)
        deltas = [r + b - a for r, a, b in zip(reward, value, after, strict=True)]
        assert numbers["td_error"] == pytest.approx(deltas, abs=3e-3)
        for t, advantage in enumerate(numbers["advantage"]):
            later = sum(0.95**k * d for k, d in enumerate(deltas[t:]))
            assert advantage == pytest.approx(later, abs=2e-2)


def test_who_is_blamed_for_the_first_review(reviews):
    words, numbers = reviews[0]
    dull = words.index(" dull")
    rest = [d for t, d in enumerate(numbers["td_error"]) if t != dull]
    assert numbers["td_error"][dull] < -2 and min(rest) > -0.6 and rest[-1] == min(rest)
    waiting = [numbers["score"][0] - v for v in numbers["value"]]  # lambda 1: G - V
    assert all(-2.2 < a < -1.7 for a in waiting[: dull + 1])
    assert all(abs(a) < 0.6 for a in waiting[dull + 1 :])
    between = [a - b for a, b in zip(numbers["advantage"], waiting, strict=True)][:dull]
    assert between[-1] < 0.2 and between[0] > 0.5 and all(x > 0 for x in between)


def test_the_two_tokens_of_unfunny_stand_out(reviews):
    words, numbers = reviews[1]
    lowest = sorted(range(len(words)), key=lambda t: numbers["td_error"][t])[:2]
    assert {words[t] for t in lowest} == {" unf", "unny"}


# ---- exercise 4 and "Going further"


def path_of_v(whiten_first):
    """V before the first token, when targets come from whitened advantages or from plain ones."""
    scope = {"core": core, "torch": torch, "world": WORLD, "score_at_end": at_the_end(WORLD)}
    scope["true_value"] = WORLD.values(WORLD.ref_logits)[0]

    def critic_targets(advantages, values, mask):
        white = core.masked_whiten(advantages, mask)
        used = white if whiten_first else advantages
        return torch.stack([white, torch.where(mask, used + values, 0.0)])

    scope["critic_targets"] = critic_targets
    (cell,) = [c for c in cells() if c.source.startswith("def train_critic")]
    exec(cell.source.split("goal =")[0], scope)
    return scope["train_critic"](), scope["true_value"][0].item() + 3


def test_the_colleagues_critic_never_learns_the_level():
    right, truth = path_of_v(whiten_first=False)
    wrong, _ = path_of_v(whiten_first=True)
    assert all(abs(v - truth) < 0.3 for v in right[50:])
    assert max(map(abs, wrong)) < 1 < truth


def two_tokens(gamma):
    """How often the Gibbs policy writes a second token, when a reward is discounted."""
    length = HAND.response_mask.sum(1)
    earned = gamma ** (length - 1).double() * HAND.rewards
    world = core.World(HAND.vocab, 2, earned, HAND.ref_logits)
    return world.gibbs(beta=0.5)[length == 2].sum().item()


def test_ppo_on_arithmetic_is_reinforce_with_a_critic_and_whitening():
    ours, plain = (group_run_config({"row": row, "seed": 0}) for row in ("ppo", "reinforce"))
    assert (ours.epochs, ours.minibatch_size, ours.whiten) == (1, ours.batch_size, True)
    assert ours.batch_size == plain.prompts_per_step * plain.group_size
    assert ours.steps == plain.steps and plain.algorithm.baseline == "running mean"
    family = experiments.results("family").set_index("variant")
    assert list(family.seed["ppo"]) == list(family.seed["reinforce"]) == list(SEEDS)
    assert family.pass_1["ppo"].max() < family.pass_1["reinforce"].min()


def recorded(variant, column):
    runs = experiments.results("ablations", "leash")
    return runs[runs.variant == variant].sort_values("seed")[column]


# ---- every number of the prose


def swing(scope):
    """The standard deviation of the untrained critic's predictions, in those of the returns."""
    values, came, mask = (scope[name] for name in ("values", "came", "mask"))
    return (values[mask].std() / came[mask].std()).item()


def best_lambda_for(batch_size, share):
    """Exercise 5 for a critic with this share of the wrong critic's error."""
    scope = {"core": core, "torch": torch}
    (cell,) = [c for c in cells() if c.source.startswith("world = core.World.random(3, 3")]
    exec(cell.source, scope)
    lams = [i / 100 for i in range(101)]
    pairs = [scope["bias_and_spread"](scope["true_value"] + share * ERROR, lam) for lam in lams]
    errors = [bias**2 + spread**2 / batch_size for bias, spread in pairs]
    return lams[min(range(101), key=lambda i: errors[i])]


def on_paper(said):
    """Section 2: three tokens, from the last to the first. Section 3 adds up two TD errors."""
    earned, values = (0, 0, 1), (0.5, -0.5, 1.5)
    deltas = [r + b - a for r, a, b in zip(earned, values, (*values[1:], 0), strict=True)]
    last = deltas[2]
    middle = deltas[1] + 0.5 * last
    first = deltas[0] + 0.5 * middle
    said("The response is *Not bad* and an end token (EOS). Its score is", earned[2])
    said("Before *Not* the critic predicts", *values)
    terms = earned[0], values[1], -values[0], deltas[0], deltas[0], 0.5, middle, first
    said("| *Not* |", earned[0], values[0], *signed(terms, 1, 2), first + values[0])
    terms = earned[1], values[2], values[1], deltas[1], deltas[1], 0.5, last, middle
    said("| *bad* |", earned[1], values[1], *terms, middle + values[1])
    terms = earned[2], 0, -values[2], deltas[2], last
    said("| EOS |", earned[2], values[2], *signed(terms, 2), last + values[2])
    said("*Not* lowered the prediction by", -deltas[0], deltas[0], deltas[1], 0, abs(first) < 0.2)
    said("these are the TD errors,", *deltas)
    total = sum(deltas)
    assert total == earned[2] - values[0]
    said("count in full. *Not* has", *deltas[:2], -deltas[2], total, earned[2], values[0])
    assert earned[0] + earned[1] + values[2] - values[0] == deltas[0] + deltas[1]
    said("They cancel. For *Not*:", *earned[:2], values[2], values[0], *deltas[:2])


def signed(terms, *places):
    """The terms of a sum; a minus between two terms is no part of the number after it."""
    return [abs(x) if i in places else x for i, x in enumerate(terms)]


def test_the_numbers_of_the_prose(reviews, fresh_reviews, of_the_trained_critic):
    at_0, at_1 = (
        {c: bias_and_spread(c, lam) for c in critics(WORLD.ref_logits)} for lam in (0.0, 1.0)
    )
    config = loops.PPOConfig()
    lam_1, lam_95, later = (
        first_steps(v, [step]) for v, step in (("lambda 1", 0), ("as it is", 0), ("lambda 1", 2))
    )
    (words_0, first), (words_1, second), (words_2, third) = reviews
    dull, satisfying = words_0.index(" dull"), words_2.index(" satisfying")
    unf, very = words_1.index(" unf"), words_1.index(" very")
    with lesson("05") as said:
        # 1 and 2: the formula
        said("is the reward of token", 0)
        said("are in the sum, and $\\hat V$ after them is", 0)
        said("the weights are", 1 / 2, 1 / 4, 1 / 8, 1, 1)
        said("is in all the estimates. Their weights sum to", 1)
        said("is the critic's prediction before token", 0, 0)
        said("is the **discount**, from", 0, 1)
        said("is a number from", 0, 1, config.lam)
        on_paper(said)
        # 4: the exact world
        said("at most three words, so there are", len(WORLD.vocab) == 3, len(WORLD.sequences))
        said("the true value plus an error between", ERROR.min(), ERROR.max())
        said("- *shifted*: the true value plus", 1)
        said("And at which $\\lambda$ is the spread larger,", 0, 1)
        said("- *wrong*: at $\\lambda = 0$ a bias of", at_0["wrong"][0])
        said(
            "- *shifted*: at $\\lambda = 0$ the bias is even larger,",
            at_0["shifted"][0],
            0,
            0,
            1,
            1,
        )
        none, right = at_1["none"][1], at_0["right"][1]
        said("below the dotted line at every $\\lambda$,", right, none)
        said("Without a critic the spread is", none, right, none / right)
        said("For an equal spread you need", none / right, (none / right) ** 2)
        usual = (none / bias_and_spread("right", config.lam)[1]) ** 2
        said("With the right critic at the usual", config.lam, usual)
        # 5: the critic
        said("that foresaw every return would have", 1, 0, 0)
        said("- The code below uses", config.lam)
        said("One step samples", config.batch_size)
        said("makes four", config.epochs * config.batch_size == 4 * config.minibatch_size)
        said("explained variance near", 1, 0, 0, 0)
        said("The first number is far below", 0)
        said("its predictions swing about twice as far as", 1.75 < swing(fresh_reviews) < 2.25)
        said("One step is enough to come above", 0, 1)  # the slow test above
        said("The critic now reads", 64)
        overall, at = of_the_trained_critic
        said("it knows more: at position", 5, at[1], 15, at[3], overall, 1)
        # 6: one review
        said("The reward model scores it", first["score"][0], 0, 1)
        said("one token gets the blame, *dull*, with", first["td_error"][dull])
        said("There the prediction falls from", first["value"][dull], first["value"][dull + 1])
        said("EOS gets", first["td_error"][-1])
        said("all tokens up to *dull* have about", -2)
        pushed = first["advantage"]
        said("- $\\lambda = 0.95$: nearly as at", 1)
        said("before *dull* are still pushed down, with", max(pushed[:dull]), min(pushed[:dull]))
        said("*It*,", dull - words_0.index("It"), config.lam**dull, first["td_error"][dull])
        # 7: why 0.95?
        said("## 7. Why", config.lam)
        without, after = first["score"][0], max(map(abs, pushed[dull + 1 :]))
        said(
            "Without a critic every token is pushed with",
            without,
            after < 0.6 < -max(pushed[:dull]),
        )
        said("For the right critic of section 4 the best is", 0)
        said("a TD error that comes", 100, 0.01, config.lam**100 < 0.01)
        said("- **It depends on the length.** At", config.lam)
        said("A $\\lambda$ a little below", 1)
        said("on reviews show no difference in score between", config.lam, 1)
        said("nothing here shows that", config.lam, 1)
        said("In a short response", config.lam, 1)
        # the microscope, in "Going further"
        said("There is no penalty in this lesson, so it is", 0)
        said("Responses are numbered from", 0)
        said("- **The value reads along.** Response", 1)
        said("The critic predicts", second["value"][very], second["value"][very + 1])
        said("lower the prediction from", second["value"][unf], second["value"][unf + 2])
        said("In response", 2, third["td_error"][satisfying], third["advantage"][satisfying])
        said("and the last one is", third["td_error"][-1])
        said("of the prediction ($\\hat V$ is", 0)
        # exercises and questions
        said("for every token, and", 0)
        said("Padding can hold NaN, and NaN times", 0, 0)
        said("Return the advantages, and", 0)
        said("of every token, and", 0)
        said("they are shifted and scaled to mean", 0, 1, 200, 3)
        said("Return the number of the", 0, 1)
        said("The mean of B independent numbers has", 1)
        said("your loss with the package's on the", 64)
        said("Is a lambda of", 0, 1)
        said("Neither is biased. At", 0)
        ties = 300
        fewer = less_spread_at_lambda_1(ties)
        said(
            "In a network all prefixes share the same weights. Then less spread", 1, ties, fewer, 1
        )
        said("starts with an explained variance of", -3)
        said("or use a $\\lambda$ nearer to", 1)
        said("Why is V", 0)
        said("In effect", 1)
        said("have P positions, counted from", 0)
        said("of response token $t$, also counted from", 0, True)  # tested below
        said("Its true advantages are all", 0, 1)
        said("What does this say about", config.lam)
        best = [best_lambda_for(size, 1.0) for size in (1, 64, 1024)]
        said("The best $\\lambda$ is", best[0], best[1], 64, best[2], 1024)
        said("the nearer to", 1)
        said("the best $\\lambda$ for", 64, best_lambda_for(64, 0.5), 1, config.lam)
        # going further
        said("Every response with a score other than", 0)
        said("*good good* is worth", HAND.rewards[0], 0.4 * HAND.rewards[0])
        said("(KL) penalty of", 0.5, two_tokens(1.0), two_tokens(0.9), two_tokens(0.4))
        mean_score = WORLD.values(WORLD.ref_logits)[0][0]
        said("always say the mean score,", mean_score, at_0["constant"][0])
        said(
            "than the true value, but a bias of", bias_and_spread("constant", 0.0, OTHER_POLICY)[0]
        )
        # real runs, in "Going further"
        said("Each step samples", config.batch_size)
        said("Six have", config.lam)
        repeats = ("as it is", "kl_coef 0.5")
        gold, kl = (
            difference_of_means(
                recorded("lambda 1", column), [x for v in repeats for x in recorded(v, column)]
            )
            for column in ("gold", "kl")
        )
        said("gold is higher by", *gold, gold[1] < 0 < gold[2])
        said("The KL is higher by", *kl, kl[1] > 0)
        equal = [recorded(v, "kl").mean() for v in repeats]
        said("equal settings already differ by", abs(equal[0] - equal[1]))
        family = experiments.results("family").groupby("variant").pass_1
        means, runs = family.mean(), {v: family.get_group(v) for v in ("ppo", "reinforce")}
        said("with critic and GAE solves", means["ppo"], means["reinforce"])
        _, low, high = difference_of_means(runs["ppo"], runs["reinforce"])
        said("interval of the difference goes from", 100 * low, 100 * high, 0, low < 0 < high)
        # another processor rounds differently, and then draws another token somewhere: no digits
        said("On the", 64, -1, fresh_reviews["trained"] < -1)
        said("first explained variance is between", lam_1.min(), lam_1.max(), later.min())
        said("the first value is between", lam_95.min(), lam_95.max(), lam_95.min() > lam_1.max())
        said("| $\\gamma$ and $\\lambda$ |", config.gamma, config.lam, 1, 1)
        said("| end of a response that was cut off | $\\hat V$ is", 0)
        said("| padding | reward and value", 0)
