"""Lesson 11: the length (section 6), the factor of a prompt (section 7), the exact gradient."""

import functools
import math

import pytest
import torch

from minirlhf import core
from minirlhf.classroom import check
from tests.loops.test_by_hand import lesson_step


@pytest.fixture(scope="module")
def directions():
    return exact_directions()


def exact_directions():
    """(norm, cosine, length) of the exact expected gradient, compared with the true one.

    The divisors are 1, 3 and the response's own length; the baseline is the expected score. The
    length is that of wrong responses after an update of norm 1 along the gradient.
    """
    world = core.World.from_reward(("good", "bad", "."), 3, lambda w: float(w[0] == "good"))
    p, true = world.probs(world.ref_logits), world.gradient(world.ref_logits)
    centred = world.rewards - (p * world.rewards).sum()
    found = {"before": length_of_wrong(world, world.ref_logits)}
    for name, divisor in (("1", 1), ("3", 3), ("own", world.response_mask.sum(1))):
        logits = world.ref_logits.clone().requires_grad_(True)
        (p * centred / divisor * world.sequence_logprobs(logits)).sum().backward()
        size = logits.grad.norm() / true.norm()
        cosine = (logits.grad * true).sum() / true.norm() ** 2 / size
        after = length_of_wrong(world, world.ref_logits + logits.grad / logits.grad.norm())
        found[name] = size.item(), cosine.item(), after
    return found


def length_of_wrong(world, logits):
    """The mean number of words of the wrong responses, under the policy with these logits."""
    p, wrong = world.probs(logits), world.rewards == 0
    lengths = world.response_mask.sum(1).to(p.dtype)
    return ((p * lengths)[wrong].sum() / p[wrong].sum()).item()


def test_only_the_own_length_changes_the_direction(directions):
    before = directions["before"]
    assert directions["1"] == pytest.approx((1, 1, before))
    assert directions["3"] == pytest.approx((1 / 3, 1, before))
    assert directions["own"][1] < 0.95 and directions["own"][2] > before + 0.1


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


def test_the_slope_of_grpos_objective():
    p = torch.linspace(0.05, 0.95, 19, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad((2 * p.sqrt().arcsin()).sum(), p)
    torch.testing.assert_close(slope, 1 / (p * (1 - p)).sqrt())


# ---- exercise 3 and going further: the divisor


def lengths(own_length):
    """(right, wrong): mean length at each of 61 exact steps in the world of exercise 3."""
    world = core.World.from_reward(("good", "bad", "."), 6, lambda w: float(w[0] == "good"))
    long, right = world.response_mask.sum(1).double(), world.rewards == 1
    logits, path = world.ref_logits, []
    for _ in range(61):
        p = world.probs(logits)
        path.append([((p * long)[rows].sum() / p[rows].sum()).item() for rows in (right, ~right)])
        moved = logits.clone().requires_grad_(True)
        centred = world.rewards - (p * world.rewards).sum()
        divisor = long if own_length else 6.0
        (p * centred / divisor * world.logprobs(moved).sum(1)).sum().backward()
        logits = logits + 4 * moved.grad
    assert p[right].sum() > 0.95
    return torch.tensor(path, dtype=torch.float64)


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

    lesson_step("11_grpo", "length_of_wrong_responses")(loss)
    return shares


def test_the_mean_length_of_the_group_moves_the_length_and_a_constant_does_not():
    """Exercise 3: the curve of the colleague's loss rises, that of the right one is flat.

    That of the mean of the other lengths is flat, too.
    """

    length = lesson_step("11_grpo", "length_of_wrong_responses")
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
    pushes_on_stop(said)
    said("of a prompt that is solved", 0.02, factor(0.02, 16), factor(0.5, 16), 16)
    said("Here it is for groups of", 16)
    for right, words in ((1, "one"), (8, "eight"), (15, "fifteen")):
        said(f"| {words} |", deviation(right, 16), 1 / deviation(right, 16))
    said("So its factor is near", 4, 3.5 < factor(0.02, 16) < 4)
    assert sum(math.comb(16, c) * 0.02**c * 0.98 ** (16 - c) for c in (0, 1)) > 0.9
    said("So that scores of any scale,", 0, 1, 0, 100)
    ours, hundred = (core.group_relative(k * torch.tensor([[0.0, 1, 1, 0]])) for k in (1, 100))
    torch.testing.assert_close(ours, hundred, rtol=1e-3, atol=0)
    # going further
    sizes = [factor(p, 16) for p in (0.02, 0.98, 0.5)]
    said("expected gradient. In groups of", 16, *sizes, units_agree(0.02, 16))
    said("because the sum of all $\\nabla \\pi(y)$ is", 0)
    pair = math.sqrt(1 / 2)
    said("Of groups with only", 2, pair, 1, pair, 1 / pair)
    assert math.isclose(1 / pair, factor(0.5, 2), rel_tol=1e-3)
    said("because the policy learns. After", 25, wrong_responses()[25])
    exact = exact_directions()
    said("without the two divisions, the expected gradient is", 3 / 4)
    said("the cosine with the true gradient is", exact["own"][1])
    said("After one update of norm", 1, exact["own"][2], exact["before"])


def pushes_on_stop(said):
    """The table on *stop* and *go on*, and what the pushes do to the choice between the two."""
    said("At its next token it can *stop*, and then has", 4, 9, 1 / 2, -1, 1)
    gains = {}
    for kind, advantage in (("wrong", -1), ("right", 1)):
        logits = torch.zeros(2, requires_grad=True)  # stop, go on
        chosen = logits.log_softmax(0)
        for name, divisors in (("not divided", (1, 1)), ("divided", (4, 9))):
            mean = sum(advantage / d * chosen[i] / 2 for i, d in enumerate(divisors))
            (slope,) = torch.autograd.grad(mean, logits, retain_graph=True)
            gains[kind, name] = (slope[0] - slope[1]).item()
        for word, length in (("stop", 4), ("go on", 9)):
            row = [advantage, advantage, length, advantage / length]
            said(f"| {kind} | *{word}* |", *row)
    assert gains["wrong", "not divided"] == gains["right", "not divided"] == 0
    said("Among wrong responses, *stop* is pushed down more", gains["wrong", "divided"] < 0)
    said("Among right ones, *stop* is pushed up more", gains["right", "divided"] > 0)


def units_agree(p, size):
    """Whether groups with c right answers have the gradient sigma^2, or sigma, times one number."""
    units = []
    for c in range(1, size):
        slope = (c * (1 - c / size) / p + (size - c) * c / size / (1 - p)) / size
        units.append(slope / (c * (size - c) / (size * (size - 1))))
    return all(math.isclose(unit, (size - 1) / size / (p * (1 - p))) for unit in units)
