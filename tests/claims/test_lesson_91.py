"""Sheet 91, the worked example: every number of its text, computed by the package."""

import math
from fractions import Fraction

import jupytext
import torch

from minirlhf import core
from minirlhf.classroom.course import NOTEBOOKS, solutions_of, tags
from tests.claims.prose import Said, lesson

SOURCE = NOTEBOOKS / "src" / "91_the_worked_example.py"
BETA = 1 / math.log(2)


def world_of(reward):
    return core.World.from_reward(("good", "bad", "."), 2, reward)


WORLD = world_of(lambda y: y.count("good") - y.count("bad"))
NAMES = ["goodgood", "goodbad", "good.", "badgood", "badbad", "bad.", "."]


def test_the_responses_stand_in_the_order_of_the_table():
    assert WORLD.labels == NAMES


def test_the_numbers_of_the_prose():
    reference, mask = WORLD.ref_logits, WORLD.response_mask
    value, q = WORLD.values(reference)
    advantage, gradient = q - value[:, None], WORLD.gradient(reference)
    reached = [1.0, *reference.softmax(-1)[0, :2].tolist()]
    with lesson("91") as said:
        # 1: the example
        said("every word has the probability", 1 / 3)
        said("| reference |", *WORLD.probs(reference))
        said("| reward |", *WORLD.rewards)
        # 2 and 3: values, advantages, gradient
        prefixes = ("(empty)", "at the start"), ("*good*", "after *good*"), ("*bad*", "after *bad*")
        for row, (first, second) in enumerate(prefixes):
            said(f"| {first} |", value[row], *q[row], *advantage[row])
            said(f"| {second} |", reached[row], *gradient[row])
        said("For example, after *good* the rewards are", *q[1], value[1])
        said("with the return", WORLD.rewards[0])
        said("of the empty prefix is", value[0])
        # 4: TD errors and GAE
        said("with the rewards", 0, WORLD.rewards[0])
        rewards, real = torch.tensor([[0.0, 2.0]]), torch.ones(1, 2, dtype=torch.bool)
        said("| critic |", 0, 1 / 2, 1)
        for name, critic in (("true", [0.0, 1.0]), ("wrong", [1.0, 0.0])):
            values = torch.tensor([critic])
            found = [core.gae(rewards, values, real, gamma=1, lam=lam)[0][0] for lam in (0, 0.5, 1)]
            deltas = core.td_errors(rewards, values, real)[0]
            said(f"| {name} |", *critic, *deltas, *torch.cat(found))
        values = torch.tensor([[0.0, 1.0]])
        numbers = []
        for lam in (0, 0.5, 1):
            numbers += [*core.gae(rewards, values, real, gamma=1, lam=lam)[1][0], lam]
        said("The targets of the true critic are", *numbers)
        # 5: PPO's clip
        new = reference.clone()
        new[0, 0] = math.log(2)
        said("the first word the probabilities", *new[0].softmax(0))
        said("The clip range is", 0.2)
        logprobs, old = WORLD.logprobs(new), WORLD.logprobs(reference)
        for name, row, sign in (("*good good*", 0, 1.0), ("*bad bad*", 4, -1.0)):
            ratio = (logprobs - old)[row].exp()
            for token, rho in zip(("first", "second"), ratio, strict=True):
                products = rho * sign, rho.clamp(0.8, 1.2) * sign
                said(f"| {name}, {token} |", rho, sign, *products, min(products))
        # 6: the KL
        first = (logprobs - old)[:, 0]
        good, bad, kl = first[0], first[4], WORLD.kl(new, reference)
        said("log-ratio of the first word is", good, bad, 0, 1 / 2, good, 1 / 2, -bad, kl)
        k1, k2, k3 = (
            WORLD.expectation(new, k(logprobs, old, mask).sum(1))
            for k in (core.k1, core.k2, core.k3)
        )
        assert torch.isclose(k1, kl) and torch.isclose(k3, kl)
        said("The mean of $k_2$ is", k2)
        shaped = core.kl_shaped_rewards(WORLD.rewards, logprobs, old, mask, kl_coef=BETA)[0]
        said("gets the reward", shaped[0], shaped[1], shaped.sum())
        # 7: the best policy
        tilted = 36 * WORLD.probs(reference) * 2.0**WORLD.rewards
        said("In units of", 1 / 36)
        said("| reference · $2^r$ |", *tilted, tilted.sum())
        said("So $Z$ is", tilted.sum() / 36, WORLD.gibbs(beta=BETA)[0])
        best = WORLD.objective(WORLD.gibbs_logits(beta=BETA), beta=BETA)
        said("$\\beta \\ln Z = \\log_2 Z$ =", best)
        start, after_good, after_bad = WORLD.optimal_values(beta=BETA)[0]
        said("The soft values say", after_good, after_bad, start)
        # 8: a group
        scores = WORLD.rewards[[0, 2, 4]][None]
        said("Their mean score is", scores.mean(), scores.std())
        rows = zip(
            ("*good good*", "*good stop*", "*bad bad*"),
            scores[0],
            core.group_relative(scores, scale_by_std=False)[0],
            core.group_relative(scores)[0],
            core.leave_one_out(scores)[0],
            strict=True,
        )
        for name, *numbers in rows:
            said(f"| {name} |", *numbers)
        # 9: DPO
        totals, before = WORLD.sequence_logprobs(new), WORLD.sequence_logprobs(reference)
        margin = BETA * ((totals - before)[0] - (totals - before)[4])
        said("$\\beta \\ln 2$ is", margin, -torch.sigmoid(margin).log(), 0, math.log(2))


def test_the_solutions_give_what_their_text_says():
    cells = solutions_of(jupytext.read(SOURCE), SOURCE.stem).cells
    names = {}
    for cell in cells:
        if cell.cell_type == "code":
            exec(cell.source, names)  # its assertions hold
    other = world_of(lambda y: y.count("good"))
    value, q = other.values(other.ref_logits)
    advantage, gradient = q - value[:, None], other.gradient(other.ref_logits)
    assert torch.allclose(advantage[1:, 1], advantage[1:, 2])
    assert torch.allclose(gradient[0], advantage[0] / 3)
    assert torch.allclose(gradient[1:], advantage[1:] / 9)
    said = Said([c for c in cells if "solution" in tags(c)])
    said("with the advantage", advantage[1, 1], advantage[0, 2] < advantage[0, 1])
    tilted = [Fraction(1, 9) * Fraction(4) ** int(r) for r in WORLD.rewards[:6]] + [Fraction(1, 3)]
    units = [float(144 * x) for x in tilted]
    said("In units of", 1 / 144, *units, sum(units))
    now, before = (WORLD.gibbs(beta=b)[0] for b in (1 / math.log(4), BETA))
    said("So the probability is", now, now, before, before)
