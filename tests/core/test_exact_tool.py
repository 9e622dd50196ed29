"""A world with a tool: its best policy, and what DPO learns with and without the action mask."""

import importlib.util
import inspect
import itertools
import math
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import grad, gradcheck

from minirlhf.core.exact_tool import ToolWorld
from minirlhf.core.logprobs import sequence_logprobs
from minirlhf.core.policy_gradient import reinforce

EXACT = {"rtol": 0, "atol": 1e-10}
LOG2, LOG3 = math.log(2), math.log(3)


def T(x):
    return torch.tensor(x, dtype=torch.float64)


def normal(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def random_world(seed, sizes=(2, 3, 2), *, deterministic=False):
    generator = torch.Generator().manual_seed(seed)
    tool = normal(generator, *sizes[:2]).softmax(-1)
    if deterministic:
        tool = torch.nn.functional.one_hot(tool.argmax(-1), sizes[1]).double()
    rewards, second = normal(generator, *sizes), normal(generator, *sizes)
    return ToolWorld(tool, rewards, normal(generator, sizes[0]), second)


def random_policy(world, seed=9):
    generator = torch.Generator().manual_seed(seed)
    return normal(generator, *world.ref_first.shape), normal(generator, *world.rewards.shape)


def hand_world():
    """Two first actions, two answers, two second actions; a uniform reference."""
    rewards = T([[[LOG3, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    zeros = torch.zeros_like(rewards)
    return ToolWorld(T([[0.75, 0.25], [1.0, 0.0]]), rewards, zeros[:, 0, 0], zeros)


# ---- by hand
def test_trajectories_by_hand():
    world = hand_world()
    # 1/2 * 3/4 * 1/2 = 3/16, 1/2 * 1/4 * 1/2 = 1/16, 1/2 * 1 * 1/2 = 1/4, and an impossible answer
    probs = world.probs(world.ref_first, world.ref_second)
    expected = T([[[3 / 16] * 2, [1 / 16] * 2], [[1 / 4] * 2, [0.0] * 2]])
    torch.testing.assert_close(probs, expected, **EXACT)
    torch.testing.assert_close(
        world.expected_reward(world.ref_first, world.ref_second), T(3 / 16 * LOG3), **EXACT
    )
    # first action 0 with 3/4; after its answer 0 the second action 0 with 3/4; otherwise uniform.
    second = torch.zeros(2, 2, 2, dtype=torch.float64)
    second[0, 0, 0] = LOG3
    policy = (T([LOG3, 0.0]), second)
    # the log-ratio of (0, 0, 0): log((3/4) / (1/2)) twice
    assert math.isclose(world.log_ratio(*policy)[0, 0, 0].item(), 2 * math.log(1.5))
    # KL: that of (3/4, 1/4) from (1/2, 1/2) for the first action, and again with 3/4 * 3/4
    kl = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    torch.testing.assert_close(world.kl(*policy), T(kl + 9 / 16 * kl), **EXACT)
    # r: 3/4 * 3/4 * 3/4 * log 3
    reward = 27 / 64 * LOG3
    torch.testing.assert_close(world.expected_reward(*policy), T(reward), **EXACT)
    torch.testing.assert_close(
        world.objective(*policy, beta=0.5), T(reward - 0.5 * 25 / 16 * kl), **EXACT
    )


def test_the_best_policy_by_hand():
    # beta 1. V(0,0) = log((3 + 1) / 2) = log 2, all other V are 0. Q(0) = 3/4 log 2, Q(1) = 0
    # V_0 = log((2^(3/4) + 1) / 2)
    world = hand_world()
    start, q, values = world.optimal_values(beta=1.0)
    torch.testing.assert_close(values, T([[LOG2, 0.0], [0.0, 0.0]]), **EXACT)
    torch.testing.assert_close(q, T([0.75 * LOG2, 0.0]), **EXACT)
    torch.testing.assert_close(start, T(math.log((2**0.75 + 1) / 2)), **EXACT)
    torch.testing.assert_close(
        world.transition_term(beta=1.0), T([[0.25 * LOG2, -0.75 * LOG2], [0.0, 0.0]]), **EXACT
    )
    first, second = (x.exp() for x in world.optimum(beta=1.0))
    torch.testing.assert_close(first[0], T(2**0.75 / (2**0.75 + 1)), **EXACT)
    torch.testing.assert_close(second[0], T([[0.75, 0.25], [0.5, 0.5]]), **EXACT)


def test_the_optimist_by_hand():
    # beta 1. sum over o of tool(o|0) exp V(0,o) = 3/4 * 2 + 1/4 * 1 = 7/4, and 1 for action 1:
    # first action 0 with (7/4) / (7/4 + 1) = 7/11; it believes in answer 0 with (3/2) / (7/4) = 6/7
    first, second, tool = (x.exp() for x in hand_world().unmasked_optimum(beta=1.0))
    torch.testing.assert_close(first, T([7 / 11, 4 / 11]), **EXACT)
    torch.testing.assert_close(tool, T([[6 / 7, 1 / 7], [1.0, 0.0]]), **EXACT)
    torch.testing.assert_close(second, hand_world().optimum(beta=1.0)[1].exp(), **EXACT)
    # with a reference that expects answer 0 with 1/2: 1/2 * 2 + 1/2 * 1 = 3/2
    first, _, tool = hand_world().unmasked_optimum(beta=1.0, ref_tool=T([[0.5, 0.5], [1.0, 0.0]]))
    torch.testing.assert_close(first.exp(), T([3 / 5, 2 / 5]), **EXACT)
    torch.testing.assert_close(tool.exp(), T([[2 / 3, 1 / 3], [1.0, 0.0]]), **EXACT)


def test_the_dpo_loss_by_hand():
    # One second action each, so two possible trajectories of rewards log 3 and 0, 1/2 each.
    # A pair of two different ones has the chance 1/2, and a share 3/4 prefers the first. With
    # beta 1/2 and log-ratios 2 and 0 the margin is 1. A pair of equal ones costs log 2, and so
    # does every pair where all log-ratios are 0.
    rewards = T([[[LOG3]], [[0.0]]])
    world = ToolWorld(T([[1.0], [1.0]]), rewards, T([0.0, 0.0]), torch.zeros_like(rewards))
    right, wrong = math.log1p(math.exp(-1)), math.log1p(math.exp(1))
    expected = 0.5 * (0.75 * right + 0.25 * wrong) + 0.5 * LOG2
    loss = world.dpo_loss(T([[[2.0]], [[0.0]]]), beta=0.5)
    torch.testing.assert_close(loss, T(expected), **EXACT)
    torch.testing.assert_close(world.dpo_loss(rewards * 0, beta=0.5), T(LOG2), **EXACT)


def test_two_tools_by_hand():
    world = ToolWorld.two_tools(right=0.8, cost=0.1)
    # fast and right 1 or 0, fast and wrong -1 or 0; the slow tool takes 0.1 off
    assert world.rewards[0].tolist() == [[1, 0], [-1, 0]]
    torch.testing.assert_close(world.rewards[1], T([[0.9, -0.1], [-1.1, -0.1]]), **EXACT)
    torch.testing.assert_close(world.tool, T([[0.8, 0.2], [1.0, 0.0]]), **EXACT)
    for beta in (0.05, 0.2, 1.0):
        # V(right) = b log((e^(1/b) + 1) / 2), V(wrong) = b log((e^(-1/b) + 1) / 2): 1 apart,
        # whatever b. Around their mean: 0.2 and -0.8
        term = world.transition_term(beta=beta)
        torch.testing.assert_close(term[0], T([0.2, -0.8]), **EXACT)
        assert term[1, 0] == 0
        # under the reference: sd = sqrt(1/2 * 0.8 * 0.2^2 + 1/2 * 0.2 * 0.8^2) = sqrt(0.08)
        chance = world.probs(world.ref_first, world.ref_second).sum(-1)
        assert math.isclose((chance * term**2).sum(), 0.08)


# ---- the best policy, in any world
@pytest.mark.parametrize("seed, sizes", [(0, (2, 3, 2)), (1, (3, 2, 4)), (2, (1, 2, 2))])
def test_the_identity_behind_dpo_holds_for_every_trajectory(seed, sizes):
    world, beta = random_world(seed, sizes), 0.4
    start = world.optimal_values(beta=beta)[0]
    term = world.transition_term(beta=beta)
    left = beta * world.log_ratio(*world.optimum(beta=beta))
    torch.testing.assert_close(left, world.rewards - start - term[..., None], **EXACT)
    assert term.abs().max() > 0.05  # the term is not small in these worlds
    # its mean is 0 under any policy, because the tool answers after the action
    chance = world.probs(*random_policy(world)).sum(-1)
    assert (chance * term).sum(1).abs().max() < 1e-12


def test_the_objective_agrees_with_a_sum_over_trajectories():
    world, beta = random_world(3), 0.4
    first, second = random_policy(world)
    total = 0.0
    for a, o, c in itertools.product(range(2), range(3), range(2)):
        pi = first.softmax(0)[a] * second[a, o].softmax(0)[c]
        ref = world.ref_first.softmax(0)[a] * world.ref_second[a, o].softmax(0)[c]
        total += pi * world.tool[a, o] * (world.rewards[a, o, c] - beta * (pi / ref).log())
    torch.testing.assert_close(world.objective(first, second, beta=beta), total, **EXACT)


def test_no_policy_beats_the_best_one():
    world, beta = random_world(4), 0.4
    best = [x.requires_grad_(True) for x in world.optimum(beta=beta)]
    value = world.objective(*best, beta=beta)
    torch.testing.assert_close(value, world.optimal_values(beta=beta)[0], **EXACT)
    assert max(g.abs().max() for g in grad(value, best)) < 1e-12
    # the shortfall of another policy is beta KL(pi || pi*)
    policy = random_policy(world)
    distance = (world.probs(*policy) * (world.log_ratio(*policy) - world.log_ratio(*best))).sum()
    shortfall = value - world.objective(*policy, beta=beta)
    torch.testing.assert_close(shortfall, beta * distance, **EXACT)
    assert shortfall > 0.1


def tokens(world, policy):
    """Each trajectory as a response of three tokens: ids as (N, 3), log-probabilities, mask."""
    ids = torch.cartesian_prod(*[torch.arange(size) for size in world.rewards.shape])
    a, o, c = ids.unbind(1)
    first, second = policy[0].log_softmax(0), policy[1].log_softmax(-1)
    columns = [first[a], world.tool.log()[a, o], second[a, o, c]]
    return torch.stack(columns, 1), torch.tensor([[True, False, True]]).expand(len(ids), 3)


def test_the_log_ratio_is_that_of_a_response_with_the_tools_token_masked():
    world = random_world(5)
    policy, ref = random_policy(world), (world.ref_first, world.ref_second)
    (logprobs, mask), (ref_logprobs, _) = tokens(world, policy), tokens(world, ref)
    mine = sequence_logprobs(logprobs, mask) - sequence_logprobs(ref_logprobs, mask)
    torch.testing.assert_close(world.log_ratio(*policy).flatten(), mine, **EXACT)


def test_the_policy_gradient_with_an_action_mask_needs_no_deterministic_tool():
    world = random_world(6)
    policy = [x.requires_grad_(True) for x in random_policy(world)]
    logprobs, mask = tokens(world, policy)
    scores = world.rewards.flatten()[:, None].expand_as(logprobs)
    losses = reinforce(logprobs, scores, mask).sum(1)
    chance = world.probs(*policy).detach().flatten()
    got = grad(-(chance * losses).sum(), policy)
    for g, wanted in zip(got, grad(world.objective(*policy, beta=0.0), policy), strict=True):
        torch.testing.assert_close(g, wanted, **EXACT)


# ---- DPO with the action mask
def close_where_it_occurs(world, policy, other, atol):
    """Compare two policies at the answers that occur."""
    torch.testing.assert_close(policy[0].exp(), other[0].exp(), rtol=0, atol=atol)
    occurs = world.tool > 0
    torch.testing.assert_close(policy[1].exp()[occurs], other[1].exp()[occurs], rtol=0, atol=atol)


@pytest.mark.parametrize("seed", [0, 1])
def test_dpo_with_the_mask_finds_the_best_policy_if_the_tool_is_deterministic(seed):
    world, beta = random_world(seed, deterministic=True), 0.5
    close_where_it_occurs(
        world, world.masked_optimum(beta=beta), world.optimum(beta=beta), atol=1e-6
    )
    # and so does DPO without the mask, if the reference knows the tool
    *optimist, _ = world.unmasked_optimum(beta=beta)
    close_where_it_occurs(world, optimist, world.optimum(beta=beta), atol=1e-9)


def test_dpo_with_the_mask_misses_the_best_policy_if_the_tool_is_random():
    world, beta = ToolWorld.two_tools(), 0.2
    best, learned = world.optimum(beta=beta), world.masked_optimum(beta=beta)

    def loss(policy):
        return world.dpo_loss(world.log_ratio(*policy), beta=beta)

    logits = [x.clone().requires_grad_(True) for x in learned]
    assert max(g.abs().max() for g in grad(loss(logits), logits)) < 1e-8
    assert loss(learned) < loss(best) - 1e-5  # pi* is not where the loss is smallest
    # passing on a wrong answer: the loss puts the tool's bad luck down to this action
    right, wrong = (policy[1].exp()[0, 1, 0].item() for policy in (best, learned))
    assert math.isclose(right, 1 / (1 + math.exp(5)), rel_tol=1e-9) and wrong < right / 10


def test_a_policy_that_starts_elsewhere_ends_in_the_same_place_with_two_tools():
    world, beta = ToolWorld.two_tools(), 0.5
    learned = world.masked_optimum(beta=beta)
    for seed in range(3):
        logits = [x.requires_grad_(True) for x in random_policy(world, seed)]
        optimizer = torch.optim.LBFGS(
            logits, max_iter=300, tolerance_grad=1e-10, line_search_fn="strong_wolfe"
        )

        def closure(logits=logits, optimizer=optimizer):
            optimizer.zero_grad()
            loss = world.dpo_loss(world.log_ratio(*logits), beta=beta)
            loss.backward()
            return loss

        optimizer.step(closure)
        ended = [x.detach().log_softmax(-1) for x in logits]
        close_where_it_occurs(world, ended, learned, atol=1e-4)


@pytest.mark.parametrize("seed", [0, 1])
def test_without_the_tools_luck_in_the_reward_dpo_with_the_mask_is_exact(seed):
    world, beta = random_world(seed), 0.5
    best = world.optimum(beta=beta)
    term = world.transition_term(beta=beta)[..., None]
    fair = ToolWorld(world.tool, world.rewards - term, world.ref_first, world.ref_second)
    assert fair.transition_term(beta=beta).abs().max() < 1e-12
    close_where_it_occurs(world, fair.optimum(beta=beta), best, atol=1e-9)
    close_where_it_occurs(world, fair.masked_optimum(beta=beta), best, atol=1e-6)
    learned = world.masked_optimum(beta=beta)
    assert (learned[1].exp() - best[1].exp()).abs().max() > 0.01


# ---- DPO without the action mask
def test_the_unmasked_loss_is_smallest_at_the_optimist():
    world, beta = random_world(7), 0.5
    *policy, tool = [x.requires_grad_(True) for x in world.unmasked_optimum(beta=beta)]

    def loss(first, second, model):
        answers = model.log_softmax(-1) - world.tool.log()
        return world.dpo_loss(world.log_ratio(first, second) + answers[..., None], beta=beta)

    at_the_minimum = loss(*policy, tool)
    assert max(g.abs().max() for g in grad(at_the_minimum, [*policy, tool])) < 1e-12
    assert at_the_minimum < loss(*world.masked_optimum(beta=beta), world.tool.log())
    # the model of the tool is too hopeful: it expects more of the tool's answers
    _, q, values = world.optimal_values(beta=beta)
    assert ((tool.exp() * values).sum(1) > q + 0.01).all()


def test_what_the_mask_is_worth_with_two_tools():
    """What lesson 15 shows: the optimist calls the fast tool, the others the slow one."""

    def row(policy):
        return world.objective(*policy, beta=beta).item(), policy[0].exp()[0].item()

    world, beta = ToolWorld.two_tools(), 0.2
    *optimist, tool = world.unmasked_optimum(beta=beta)
    table = [row(p) for p in (world.optimum(beta=beta), world.masked_optimum(beta=beta), optimist)]
    expected = [(0.7189, 0.378), (0.7184, 0.376), (0.7039, 0.569)]
    torch.testing.assert_close(T(table), T(expected), rtol=0, atol=6e-4)
    assert tool.exp()[0, 0] > 0.998  # the tool is right with 0.8
    # with beta 1 the mask does not pay: the tool's luck distorts the second actions
    beta = 1.0
    best, learned = row(world.optimum(beta=beta)), row(world.masked_optimum(beta=beta))
    optimist = row(world.unmasked_optimum(beta=beta)[:2])
    assert learned[0] < optimist[0] < best[0]


# ---- what changes nothing
@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.floats(-5, 5), st.floats(0.1, 10))
def test_a_constant_a_scale_and_the_names_of_answers_do_not_change_the_policies(seed, add, scale):
    world, beta = random_world(seed), 0.7
    tables = (world.tool, world.rewards, world.ref_first, world.ref_second)
    moved = ToolWorld(tables[0], tables[1] + add, *tables[2:])
    scaled = ToolWorld(tables[0], tables[1] * scale, *tables[2:])
    turned = ToolWorld(tables[0].flip(1), tables[1].flip(1), tables[2], tables[3].flip(1))
    for solve in (ToolWorld.optimum, ToolWorld.unmasked_optimum):
        first, second, *_ = solve(world, beta=beta)
        for other, b in ((moved, beta), (scaled, beta * scale)):
            torch.testing.assert_close(solve(other, beta=b)[:2], (first, second), rtol=0, atol=1e-8)
        torch.testing.assert_close(
            solve(turned, beta=beta)[:2], (first, second.flip(1)), rtol=0, atol=1e-9
        )
    torch.testing.assert_close(
        moved.optimal_values(beta=beta)[0], world.optimal_values(beta=beta)[0] + add, **EXACT
    )
    # logits need no normalisation
    policy = random_policy(world)
    shifted = (policy[0] + add, policy[1] + add)
    torch.testing.assert_close(world.log_ratio(*shifted), world.log_ratio(*policy), **EXACT)
    torch.testing.assert_close(world.probs(*shifted), world.probs(*policy), **EXACT)


def test_gradcheck():
    world = random_world(8)
    policy = [x.requires_grad_(True) for x in random_policy(world)]
    assert gradcheck(lambda *p: world.objective(*p, beta=0.4), policy)
    assert gradcheck(lambda *p: world.dpo_loss(world.log_ratio(*p), beta=0.4), policy)


# ---- refusals
@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"tool": T([[0.7, 0.2], [1.0, 0.0]])}, r"each row with a sum of 1; the sums are \[0.9, 1"),
        ({"tool": T([[1.5, -0.5], [1.0, 0.0]])}, "tool must hold probabilities: 0 or more"),
        ({"tool": T([[math.nan, 0.5], [1.0, 0.0]])}, "tool must hold probabilities"),
        ({"tool": T([[1.0], [1.0]])}, r"O = 2 in this world and tool \(2, 1\), which differ in O"),
        ({"tool": [[1.0], [1.0]]}, r"tool is .* it must be a tensor of floating-point numbers"),
        ({"rewards": torch.full((2, 2, 2), math.nan)}, "rewards has NaN or infinity"),
        ({"rewards": torch.zeros(2, 2, 2, dtype=torch.long)}, "rewards holds torch.int64"),
        ({"ref_first": T([math.inf, 0.0])}, "ref_first has NaN or infinity"),
        ({"ref_first": T([0.0, 0.0, 0.0])}, r"ref_first \(3,\), which differ in A"),
        ({"ref_second": torch.zeros(2, 2)}, r"ref_second has shape \(2, 2\)"),
    ],
)
def test_a_world_that_does_not_fit_is_refused(change, sentence, monkeypatch):
    world, name = hand_world(), "plain_exact_tool"
    # without the hook of the tests, which refuses shapes with a message of its own
    spec = importlib.util.spec_from_file_location(name, inspect.getfile(ToolWorld))
    plain = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, plain)
    spec.loader.exec_module(plain)
    tables = ("tool", "rewards", "ref_first", "ref_second")
    with pytest.raises(ValueError, match=sentence):
        plain.ToolWorld(**{table: getattr(world, table) for table in tables} | change)


def test_numbers_at_the_edge_are_taken():
    assert random_world(0, (10, 10, 10)).rewards.numel() == 1000
    assert ToolWorld.two_tools(right=0.0, cost=0.0).tool[0].tolist() == [0.0, 1.0]


def test_odd_numbers_are_refused():
    world = hand_world()
    for call, sentence in (
        (lambda: world.optimum(beta=0.0), "beta is 0.0; it must be above 0"),
        (lambda: world.masked_optimum(beta=math.nan), "beta is nan"),
        (lambda: world.unmasked_optimum(beta=-1.0), "beta is -1.0"),
        (lambda: world.objective(T([0.0, 0.0]), world.ref_second, beta=-1.0), "beta is -1.0"),
        (lambda: world.probs(T([0.0] * 3), world.ref_second), r"A = 2 in this world and first"),
        (lambda: world.unmasked_optimum(beta=1.0, ref_tool=T([[0.5] * 2] * 2)), "differ in which"),
        (lambda: world.unmasked_optimum(beta=1.0, ref_tool=T([[1.0, 0.0]] * 2)), "differ in which"),
        (lambda: world.unmasked_optimum(beta=1.0, ref_tool=T([[0.5, 0.6]] * 2)), "ref_tool must"),
        (lambda: ToolWorld.two_tools(right=1.1), "right is 1.1; it must be a probability"),
        (lambda: ToolWorld.two_tools(cost=-1.0), "cost is -1.0"),
        (lambda: random_world(0, (7, 11, 13)), "rewards has 1,001 trajectories"),
    ):
        with pytest.raises(ValueError, match=sentence) as said:
            call()
        assert "\n" not in str(said.value)
