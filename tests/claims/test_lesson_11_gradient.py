"""Lesson 11, section 7: the exact gradient of a loss, length, and the factor of a prompt."""

import functools
import math
import re

import nbformat
import pytest
import torch

from minirlhf import core
from minirlhf.classroom import check
from minirlhf.classroom.course import NOTEBOOKS
from tests.claims.records_11 import drawn, lesson_table
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


def test_the_table_of_section_7(directions):
    before = directions["before"]
    assert directions["1"] == pytest.approx((1, 1, before))
    assert directions["3"] == pytest.approx((1 / 3, 1, before))
    shown = [
        [directions[name][0] * share, *directions[name][1:]]
        for name in ("1", "3", "own")
        for share in (3 / 4, 1)  # the mean of the group, and the mean of the others
    ]
    table = torch.tensor(numbers_of_table("of_group = "), dtype=torch.float64)
    torch.testing.assert_close(table, torch.tensor(shown, dtype=torch.float64), rtol=0, atol=5.1e-3)
    assert (table[:4, 1] == 1).all() and (table[4:, 1] < 0.95).all()
    assert (table[4:, 2] > before + 0.1).all()


def numbers_of_table(start):
    """The last three columns of such a table, as numbers."""
    return [[float(x) for x in row[-3:]] for row in lesson_table(start)]


@pytest.mark.parametrize("own_length, cosine", [(False, 1.0), (True, 0.94)])
def test_sigma_changes_no_direction_whatever_the_divisor(own_length, cosine):
    """Section 7b: the mean gradient of the groups with c right answers is sigma^2 times one vector.

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


@pytest.mark.parametrize("p", [0.02, 0.36, 0.5, 0.9])
def test_the_factor_of_a_prompt(p):
    for size in (2, 4, 8, 16):
        assert math.isclose(weight(p, size, scaled=False), (size - 1) / size)
        ours = lesson_step("11_grpo", "factor")(torch.tensor(p, dtype=torch.float64), size)
        assert math.isclose(factor(p, size), ours.item(), rel_tol=1e-3)  # without delta
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


def test_the_mean_length_of_the_group_moves_the_length_and_a_constant_does_not():
    """Exercise 3: the curve of the colleague's loss rises, that of the right one is flat.

    That of the mean of the other lengths is flat, too.
    """

    def divided(logprobs, group_scores, mask, *, others=False):
        lengths = mask.sum(1).view(group_scores.shape).double()
        means = lengths.mean(1, keepdim=True).expand(lengths.shape)
        if others:
            means = (lengths.sum(1, keepdim=True) - lengths) / (lengths.shape[1] - 1)
        weighted = logprobs * (6 / means.flatten())[:, None]
        return check.colleagues_loss.reference(weighted, group_scores, mask)

    length = lesson_step("11_grpo", "length_of_wrong_responses")
    shared = torch.tensor(length(divided))
    of_others = torch.tensor(length(functools.partial(divided, others=True)))
    assert (of_others - of_others[0]).abs().max() < 0.03
    constant = torch.tensor(length(check.colleagues_loss.reference))
    assert shared[-1] > shared[20] > shared[5] > shared[0] + 0.05 and shared[-1] < 2.6
    assert (constant - constant[0]).abs().max() < 0.03


# ---- the numbers of the prose, called by test_lesson_11.py


def gradients(said, model):
    """Section 7: three divisors, two baselines, and the standard deviation."""
    said("While all ratios are", 1)
    said("that of the true one is", 1)
    said("| cosine |", 1)
    said("along the gradient; before it,", exact_directions()["before"])
    said("only shrinks the gradient**, to", 3 / 4)
    said("(section 5) changes the direction**: the cosine is", exact_directions()["own"][1])
    said("but is not along $\\nabla p$ (cosine", exact_directions()["own"][1])
    pushes_on_stop(said, model)
    said("So that scores of any scale,", 0, 1, 0, 100)
    ours, hundred = (core.group_relative(k * torch.tensor([[0.0, 1, 1, 0]])) for k in (1, 100))
    torch.testing.assert_close(ours, hundred, rtol=1e-3, atol=0)
    chance = [math.comb(16, c) * 0.02**c * 0.98 ** (16 - c) for c in range(17)]
    sigma = [torch.tensor([1.0] * c + [0.0] * (16 - c)).double().std().item() for c in range(17)]
    means = [sum(x * y for x, y in zip(chance, z, strict=True)) for z in (squares(sigma), sigma)]
    said("Here is $\\sigma^2$, also for $c$ =", 1, 2, 16)
    formula = [float(x) for x in re.findall(r"= (0\.\d+) ", displayed("1 \\cdot 15"))]
    assert formula == [round(s * s, 4) for s in sigma[1:3]]
    said("because the sum of all $\\nabla \\pi(y)$ is", 0)
    said("with groups of", 16)
    said("The unit of the last two columns is", units_agree(0.02, 16))
    for c, words in enumerate(("none", "one", "two")):
        said(f"| {words} |", chance[c], sigma[c] ** 2, sigma[c])
    said("The means are", *means, means[1], means[0], means[1] / means[0])
    assert math.isclose(means[1] / means[0], factor(0.02, 16), rel_tol=1e-3)  # without delta
    said("**Predict.** Groups of", 16)
    said("And in groups of", 2)
    said("have the same factor in groups of", 16, factor(0.02, 16), factor(0.5, 16), 2)
    pair = math.sqrt(1 / 2)
    said("Its $\\sigma$ is", pair, 1, pair, 1 / pair)
    assert math.isclose(1 / pair, factor(0.5, 2), rel_tol=1e-3)


def displayed(words):
    """The one displayed formula of the lesson that has these words."""
    cells = nbformat.read(NOTEBOOKS / "11_grpo.ipynb", 4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    (found,) = [f for f in re.findall(r"\$\$(.*?)\$\$", text, re.DOTALL) if words in f]
    return found


def pushes_on_stop(said, model):
    """The table on *stop* and *go on*, from the derivative of a log-probability by a logit."""
    _, scores, _ = drawn(model, 8, seed=2)
    advantage = core.group_relative(scores[None]).min().item()
    logits = torch.zeros(2, requires_grad=True)  # stop, go on
    slopes = [
        torch.autograd.grad(logits.log_softmax(0)[word], logits)[0][0].item() for word in (0, 1)
    ]
    assert slopes == [1 - 1 / 2, -1 / 2]
    said("for a response of", 4, 9, 1 / 2, advantage)
    sums = []
    for word, length, slope in (("stop", 4, slopes[0]), ("go on", 9, slopes[1])):
        each = advantage / length
        moved = [slope * advantage, slope * each]
        said(f"| *{word}* |", advantage, moved[0], advantage, length, each, moved[1])
        sums.append(moved)
    whole, divided = (a + b for a, b in zip(*sums, strict=True))
    said("| both |", whole, divided)


def units_agree(p, size):
    """Whether groups with c right answers have the gradient sigma^2, or sigma, times one number."""
    units = []
    for c in range(1, size):
        slope = (c * (1 - c / size) / p + (size - c) * c / size / (1 - p)) / size
        units.append(slope / (c * (size - c) / (size * (size - 1))))
    return all(math.isclose(unit, (size - 1) / size / (p * (1 - p))) for unit in units)


def squares(numbers):
    return [x * x for x in numbers]
