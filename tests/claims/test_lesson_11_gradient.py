"""Lesson 11: the length (section 6 and exercise 3), and the factor of a prompt (section 7)."""

import functools
import math

import nbformat
import pytest
import torch

from minirlhf import core, experiments
from minirlhf.classroom import check
from minirlhf.classroom.course import NOTEBOOKS
from tests.loops.test_by_hand import lesson_step


def test_the_mean_of_the_others_gives_the_true_gradient_and_that_of_the_group_three_quarters():
    world = core.World.from_reward(("good", "bad", "."), 3, lambda w: float(w[0] == "good"))
    groups, chance = world.groups(world.ref_logits, 4)
    scores, true = world.rewards[groups], world.gradient(world.ref_logits)
    for advantages, share in (
        (core.leave_one_out(scores), 1),
        (core.group_relative(scores, scale_by_std=False), 3 / 4),
    ):
        logits = world.ref_logits.clone().requires_grad_(True)
        objective = advantages * world.sequence_logprobs(logits)[groups]
        (chance * objective.mean(1)).sum().backward()
        torch.testing.assert_close(logits.grad, share * true)


@pytest.mark.parametrize("own_length, cosine", [(False, 1.0), (True, 0.94)])
def test_sigma_changes_no_direction_whatever_the_divisor(own_length, cosine):
    """Going further: the mean gradient of the groups with c right answers is sigma^2 times one vector.

    The vector is along the true gradient only without the division by the own length.
    """
    world = core.World.from_reward(("good", "bad", "."), 3, lambda w: float(w[0] == "good"))
    true, units = world.gradient(world.ref_logits).flatten(), []
    groups, chance = world.groups(world.ref_logits, 4)
    scores = world.rewards[groups]
    divisor = world.response_mask.sum(1)[groups] if own_length else 1
    for right in (1, 2, 3):
        logits = world.ref_logits.clone().requires_grad_(True)
        log_probs = world.sequence_logprobs(logits)[groups]
        objective = core.group_relative(scores, scale_by_std=False) * log_probs / divisor
        share = torch.where(scores.sum(1) == right, chance, 0.0)
        (share / share.sum() * objective.mean(1)).sum().backward()
        units.append(logits.grad.flatten() / (right * (4 - right) / 12))
    torch.testing.assert_close(units[1], units[0])
    torch.testing.assert_close(units[2], units[0])
    assert torch.cosine_similarity(units[0], true, 0).item() == pytest.approx(cosine, abs=5e-3)


def test_the_mean_of_the_group_is_that_of_the_others_shortened():
    scores = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    others = (scores.sum(1, keepdim=True) - scores) / 3
    torch.testing.assert_close(scores - scores.mean(1, keepdim=True), 3 / 4 * (scores - others))


def weight(p, size, *, scaled=True):
    """What GRPO multiplies the gradient of p by: the mean over the number c of right responses."""
    total = 0.0
    for c in range(size + 1):
        mean, std = c / size, math.sqrt(c * (size - c) / (size * (size - 1)))
        unit = std + 1e-4 if scaled else 1.0
        slope = (c * (1 - mean) / p + (size - c) * mean / (1 - p)) / size
        total += math.comb(size, c) * p**c * (1 - p) ** (size - c) * slope / unit
    return total


def factor(p, size):
    """By how much the division multiplies the expected gradient of a prompt."""
    return weight(p, size) / weight(p, size, scaled=False)


def ratio_of_means(p, size):
    """The mean of sigma over all groups of a prompt, divided by that of sigma^2."""
    chance = [math.comb(size, c) * p**c * (1 - p) ** (size - c) for c in range(size + 1)]
    sigma = [deviation(c, size) for c in range(size + 1)]
    means = [sum(x * s**k for x, s in zip(chance, sigma, strict=True)) for k in (1, 2)]
    return means[0] / means[1]


def deviation(right, size):
    """The standard deviation of the scores of a group."""
    return torch.tensor([1.0] * right + [0.0] * (size - right)).double().std().item()


@pytest.mark.parametrize("p", [0.02, 0.36, 0.5, 0.9])
def test_the_factor_of_a_prompt(p):
    for size in (2, 4, 8, 16):
        assert math.isclose(weight(p, size, scaled=False), (size - 1) / size)
        assert math.isclose(factor(p, size), ratio_of_means(p, size), rel_tol=1e-3)  # no delta
    assert math.isclose(factor(p, 2), factor(0.5, 2))  # flat: a group of two cannot tell
    assert math.isclose(factor(0.36, 1000), 1 / math.sqrt(0.36 * 0.64), rel_tol=5e-3)
    assert factor(0.02, 16) > factor(0.02, 8) > factor(0.02, 4) > factor(0.02, 2)
    assert factor(0.02, 16) > factor(0.5, 16) and math.isclose(factor(0.02, 16), factor(0.98, 16))


def test_the_curve_of_section_7_is_the_factor():
    cells = nbformat.read(NOTEBOOKS / "11_grpo.ipynb", 4).cells
    (code,) = [c.source for c in cells if c.cell_type == "code" and "Binomial" in c.source]
    names = {"torch": torch}
    exec(code[: code.index("labels =")], names)
    exact = torch.tensor([factor(p, 16) for p in names["p"].tolist()], dtype=torch.float64)
    torch.testing.assert_close(names["factor"], exact, rtol=1e-3, atol=0)  # no delta


@pytest.mark.parametrize("size", [2, 3, 16])
def test_the_right_responses_of_a_group_are_pushed_up_by_sigma_squared(size):
    """Section 7. For G = 4 and scores 1, 0, 0, 0: the mean is 1/4, the advantages are 3/4, -1/4
    three times. The squares sum to 9/16 + 3/16 = 3/4, so sigma^2 is 3/4 / 3 = 1/4, and the right
    response has 1 (4 - 1) / 4 = 3/4 = (4 - 1) sigma^2.
    """
    for right in range(size + 1):
        scores = torch.tensor([[1.0] * right + [0.0] * (size - right)]).double()
        for scaled, power in ((False, 2), (True, 1)):
            advantages = core.group_relative(scores, scale_by_std=scaled)
            up, down = advantages[scores == 1].sum().item(), advantages[scores == 0].sum().item()
            sigma = scores.std().item()
            assert up == pytest.approx((size - 1) * sigma**power, rel=1e-3, abs=1e-9)
            assert down == pytest.approx(-up, abs=1e-9)
            if not scaled:
                assert up == pytest.approx(right * (size - right) / size, abs=1e-9)


def test_the_slope_of_grpos_objective():
    p = torch.linspace(0.05, 0.95, 19, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad((2 * p.sqrt().arcsin()).sum(), p)
    torch.testing.assert_close(slope, 1 / (p * (1 - p)).sqrt())


# ---- section 6 and exercise 3: the divisor


def lengths(own_length):
    """(right, wrong): mean length at each of 61 exact steps, as section 6 computes it."""
    world = small_world()
    path = lesson_step("11_grpo", "train_small", **world)(world["lengths"] if own_length else 6)
    columns = [path[name] for name in ("right responses", "wrong responses")]
    return torch.tensor(columns, dtype=torch.float64).T


def small_world():
    """The world of section 6, with the names that the lesson gives to its parts."""
    names = lesson_step("11_grpo", "mean_length").__globals__
    return {name: names[name] for name in ("small", "lengths", "mean_length")}


def length_of_wrong_responses(loss):
    """The curve of exercise 3."""
    return lesson_step("11_grpo", "length_of_wrong_responses", **small_world())(loss)


def test_only_the_own_length_moves_the_length():
    own, constant = lengths(True), lengths(False)
    assert (own[1:, 1] > own[:-1, 1]).all() and (own[1:, 0] < own[:-1, 0]).all()
    torch.testing.assert_close(constant, constant[:1].expand(61, 2), rtol=0, atol=1e-9)


def by_mean_length(logprobs, group_scores, mask, *, others=False):
    """The colleague's loss: divided by the mean length of the group, or of the others in it."""
    lengths = mask.sum(1).view(group_scores.shape).double()
    means = lengths.mean(1, keepdim=True).expand(lengths.shape)
    if others:
        means = (lengths.sum(1, keepdim=True) - lengths) / (lengths.shape[1] - 1)
    weighted = logprobs * (6 / means.flatten())[:, None]
    return check.colleagues_loss.reference(weighted, group_scores, mask)


def wrong_responses():
    """The share of wrong responses in each batch, while the colleague's loss trains."""
    shares = []

    def loss(logprobs, group_scores, mask):
        shares.append(1 - group_scores.mean().item())
        return by_mean_length(logprobs, group_scores, mask)

    length_of_wrong_responses(loss)
    return shares


def test_the_mean_length_of_the_group_moves_the_length_and_a_constant_does_not():
    """Exercise 3: the curve of the colleague's loss rises, that of the right one is flat.

    That of the mean of the other lengths is flat, too.
    """
    length = length_of_wrong_responses
    shared = torch.tensor(length(by_mean_length))
    of_others = torch.tensor(length(functools.partial(by_mean_length, others=True)))
    assert (of_others - of_others[0]).abs().max() < 0.03
    constant = torch.tensor(length(check.colleagues_loss.reference))
    assert shared[-1] > shared[20] > shared[5] > shared[0] + 0.05 and shared[-1] < 2.6
    assert shared[-1] - shared[20] < (shared[20] - shared[0]) / 5  # it flattens
    assert (constant - constant[0]).abs().max() < 0.03


# ---- the numbers of the prose, called by test_lesson_11.py


def gradients(said):
    """Sections 6 and 7, and what "Going further" says about them."""
    own = lengths(own_length=True)
    said("*Own length*: wrong responses get longer, from", own[0, 1], own[-1, 1])
    said("Right ones get shorter, from", own[0, 0], own[-1, 0])
    said("the other by the constant", 6)
    pushes_on_stop(said)
    factors(said)
    # going further
    said("because the sum of all $\\nabla \\pi(y)$ is", 0)
    said("because the policy learns. After", 25, wrong_responses()[25])
    said("The group has the scores", 1, 0, 0, 0)
    said("The other three have", 3)


def factors(said):
    """Section 7: the factor of a prompt, and the groups of a hard one."""
    ours, hundred = (core.group_relative(k * torch.tensor([[0.0, 1, 1, 0]])) for k in (1, 100))
    torch.testing.assert_close(ours, hundred, rtol=1e-3, atol=0)  # scores of any scale
    sides = (0.02, factor(0.02, 16)), (0.98, factor(0.98, 16))
    assert sides[0][1] == pytest.approx(sides[1][1])
    said("Very hard and very easy ones. At $p$ =", 0.02, 0.98, sides[0][1], 0.5, factor(0.5, 16))
    said("We take groups of", 16)
    chances = [math.comb(16, c) * 0.02**c * 0.98 ** (16 - c) for c in range(17)]
    sigmas = [deviation(c, 16) for c in range(17)]
    rows = [(x, s, x * s**2, x * s) for x, s in zip(chances, sigmas, strict=True)]
    for words, row in zip(("none", "one", "two", "three"), rows, strict=False):
        said(f"| {words} |", *row)
    squared, plain = (sum(row[i] for row in rows) for i in (2, 3))
    said("| sum of all |", squared, plain)
    said("The factor is", plain, squared, plain / squared, units_agree(0.02, 16))
    said("Most of the pull comes from groups with one right answer", rows[1][3] > plain / 2)
    middling = sum(math.comb(16, c) / 2**16 * deviation(c, 16) for c in range(17))
    hard, other = factor(0.02, 16), factor(0.5, 16)
    said("only the ratio of two factors counts", 0.5, 0.02, hard, other, hard / other)
    said("It still pulls less", plain, middling, 0.5)
    half = [math.comb(16, c) / 2**16 * (abs(deviation(c, 16) - 0.5) < 0.05) for c in range(17)]
    said("so dividing by it changes much. At $p$ =", 0.5, sum(half) > 0.9, 0.5)
    longest = experiments.group_config("arithmetic", "dr-grpo").sampling.max_new_tokens
    said("we take the greatest length allowed,", longest)


def pushes_on_stop(said):
    """The table on *stop* and *go on*, and what the pushes do to the choice between the two."""
    said("As its second word it can *stop*, and then has", 2, 4, -1, 1)
    gains = {}
    for kind, advantage in (("wrong", -1), ("right", 1)):
        logits = torch.zeros(2, requires_grad=True)  # stop, go on
        chosen = logits.log_softmax(0)
        for name, divisors in (("not divided", (1, 1)), ("divided", (2, 4))):
            mean = sum(advantage / d * chosen[i] / 2 for i, d in enumerate(divisors))
            (slope,) = torch.autograd.grad(mean, logits, retain_graph=True)
            gains[kind, name] = (slope[0] - slope[1]).item()
        for word, length in (("stop", 2), ("go on", 4)):
            row = [advantage, advantage, length, advantage / length]
            said(f"| {kind} | *{word}* |", *row)
    assert gains["wrong", "not divided"] == gains["right", "not divided"] == 0
    said("Equal pushes cancel on average, because the mean of $\\nabla \\log \\pi$ is", 0)
    said("So wrong responses stop less often", gains["wrong", "divided"] < 0)
    said("and right ones more often", gains["right", "divided"] > 0)


def units_agree(p, size):
    """Whether groups with c right answers have the gradient sigma^2, or sigma, times one number."""
    units = []
    for c in range(1, size):
        slope = (c * (1 - c / size) / p + (size - c) * c / size / (1 - p)) / size
        units.append(slope / (c * (size - c) / (size * (size - 1))))
    return all(math.isclose(unit, (size - 1) / size / (p * (1 - p))) for unit in units)
