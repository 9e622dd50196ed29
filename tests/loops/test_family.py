"""The expected gradient of every algorithm, by enumerating all groups of two, with KL penalty."""

from dataclasses import asdict, replace

import pytest
import torch

from minirlhf.core.baselines import reinforce_plus_plus, reinforce_plus_plus_baseline
from minirlhf.core.exact import World
from minirlhf.core.kl import kl_shaped_rewards
from minirlhf.core.masking import aggregate
from minirlhf.loops.family import CHOICES, FAMILY, Algorithm, markdown
from minirlhf.loops.group import GroupConfig
from minirlhf.runtime import ROOT

BETA = 0.5
SUM = "sequence_sum"


def ascent(world, policy, row, *, size=2, baseline=0.0, how=None, beta=BETA):
    """E over all groups of `size` of minus the gradient of the row's loss, at the policy that sampled."""
    ref, rollout = world.logprobs(world.ref_logits), world.rollout(policy)
    groups, weight = world.groups(policy, size)
    total = torch.zeros_like(policy)
    for index, w in zip(groups, weight, strict=True):
        part, logits = rollout.select(index), policy.clone().requires_grad_(True)
        width = part.response_ids.shape[1]
        mask, old, refs = part.response_mask, part.old_logprobs, ref[index, :width]
        given = baseline[index] if isinstance(baseline, torch.Tensor) else baseline
        advantages = row.advantages(
            world.rewards[index],
            part,
            refs,
            kl_coef=beta,
            group_size=size if row.compares else 1,
            baseline=given,
        )
        losses = row.losses(
            world.logprobs(logits)[index, :width], old, advantages, refs, mask, kl_coef=beta
        )
        loss = aggregate(
            losses,
            mask,
            how=how or row.aggregation,
            constant=5.0 if (how or row.aggregation) == "constant" else None,
        )
        total -= w * torch.autograd.grad(loss, logits)[0]
    return total


def near(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def cosine(a, b):
    return torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()


@pytest.mark.parametrize("name, baseline", [("reinforce", 0.7), ("remax", "greedy"), ("rloo", 0.0)])
def test_the_expected_gradient_is_that_of_the_objective(world, policy, name, baseline):
    if baseline == "greedy":
        baseline = world.rewards[world.probs(policy * 1e3).argmax()].expand(len(world.rewards))
    near(ascent(world, policy, FAMILY[name], baseline=baseline), world.gradient(policy, beta=BETA))


@pytest.mark.parametrize("name", ["rloo-openrlhf", "rloo-verl"])
def test_rloo_variants_differ_only_in_their_normalisation(world, policy, name):
    truth = world.gradient(policy, beta=BETA)
    near(ascent(world, policy, FAMILY[name], how=SUM), truth)
    assert (
        cosine(ascent(world, policy, FAMILY[name]), truth) < 0.999
    )  # with their own token mean the direction differs


@pytest.mark.parametrize("name, how", [("grpo-no-std", SUM), ("dr-grpo", "constant")])
def test_a_group_mean_over_two_halves_the_gradient(world, policy, name, how):
    scale = {SUM: 1.0, "constant": 1 / 5.0}[how]
    near(
        ascent(world, policy, FAMILY[name], how=how), scale * world.gradient(policy, beta=BETA) / 2
    )


def test_a_token_kl_penalty_is_not_halved_by_the_group_mean(world, policy):
    # The group mean halves the gradient of the reward but not that of the KL penalty, so the
    # effective KL coefficient is twice kl_coef.
    row = Algorithm(scale="none", kl="tokens")
    reward, leash = (
        world.gradient(policy),
        world.gradient(policy) - world.gradient(policy, beta=1.0),
    )
    near(ascent(world, policy, row, how=SUM), reward / 2 - BETA * leash)


@pytest.mark.parametrize("name", ["k2 loss", "k3 loss"])
def test_k2_and_k3_losses_do_not_have_the_gradient_of_the_kl(world, policy, name):
    # By hand, from the derivatives of the estimators: k2' = log_ratio and
    # k3' = 1 - exp(-log_ratio), each times grad log pi of its token.
    logits = policy.clone().requires_grad_(True)
    ratio = world.logprobs(policy) - world.logprobs(world.ref_logits)
    slope = ratio if name == "k2 loss" else 1 - (-ratio).exp()
    penalty = torch.autograd.grad(
        world.expectation(policy, (slope * world.logprobs(logits)).sum(1)), logits
    )[0]
    row = Algorithm(scale="none", kl=name)
    near(ascent(world, policy, row, how=SUM), world.gradient(policy) / 2 - BETA * penalty)
    leash = world.gradient(policy) - world.gradient(policy, beta=1.0)
    assert cosine(penalty, leash) < 0.95


@pytest.fixture
def smaller():
    """A world of seven sequences and a policy: all groups of three can be enumerated."""
    world = World.random(3, 2, seed=0)
    generator = torch.Generator().manual_seed(1)
    return world, torch.randn(world.ref_logits.shape, generator=generator, dtype=torch.float64)


def test_reinforce_plus_plus_approaches_the_objective_as_the_batch_grows(smaller):
    world, policy = smaller
    truth = world.gradient(policy, beta=BETA)
    angles = [
        cosine(ascent(world, policy, FAMILY["reinforce++"], size=size), truth) for size in (2, 3)
    ]
    assert angles[0] < angles[1] < 1
    # With the moments over infinitely many tokens instead of the batch's, the gradient is that of
    # the objective, divided by the standard deviation and the mean length.
    mask, lengths = (
        world.response_mask,
        world.expectation(policy, world.response_mask.sum(1).double()),
    )
    rewards = kl_shaped_rewards(
        world.rewards, world.logprobs(policy), world.logprobs(world.ref_logits), mask, kl_coef=BETA
    )
    to_go = rewards.flip(1).cumsum(1).flip(1)
    mean = world.expectation(policy, (to_go * mask).sum(1)) / lengths
    std = (world.expectation(policy, ((to_go - mean).square() * mask).sum(1)) / lengths).sqrt()
    logits = policy.clone().requires_grad_(True)
    surrogate = (
        world.expectation(policy, ((to_go - mean) / std * mask * world.logprobs(logits)).sum(1))
        / lengths
    )
    near(torch.autograd.grad(surrogate, logits)[0], truth / std / lengths)


@pytest.mark.parametrize(
    "name, function",
    [
        ("reinforce++", lambda rewards, grouped, mask: reinforce_plus_plus(rewards, mask)),
        (
            "reinforce++-baseline",
            lambda rewards, grouped, mask: reinforce_plus_plus_baseline(grouped, mask),
        ),
    ],
)
def test_whitened_advantages_equal_the_functions_of_core(world, policy, name, function):
    rollout, ref = world.rollout(policy).select(range(14)), world.logprobs(world.ref_logits)[:14]
    rewards = kl_shaped_rewards(
        world.rewards[:14], rollout.old_logprobs, ref, rollout.response_mask, kl_coef=BETA
    )
    got = FAMILY[name].advantages(world.rewards[:14], rollout, ref, kl_coef=BETA, group_size=2)
    near(got, function(rewards, world.rewards[:14].view(7, 2), rollout.response_mask))


REDUCTIONS = [  # two algorithms and the ratio of their gradients, at the policy that sampled
    ("grpo-no-std", "rloo-verl", {"aggregation": "token_mean"}, 0.5),
    ("dapo", "grpo", {"aggregation": "token_mean"}, 1.0),
    ("cispo", "grpo", {"aggregation": "token_mean"}, 1.0),
    ("gspo", "grpo", {}, 1.0),
    ("grpo-no-std", "dr-grpo", {"aggregation": "constant"}, 1.0),
]


@pytest.mark.parametrize("one, other, changes, factor", REDUCTIONS)
def test_related_algorithms_have_proportional_gradients(smaller, one, other, changes, factor):
    world, policy = smaller
    pulls = [
        ascent(
            world,
            policy,
            replace(FAMILY[one], **({} if FAMILY[one].ratio.startswith("sequence") else changes)),
        ),
        ascent(world, policy, replace(FAMILY[other], **changes)),
    ]
    near(pulls[0], factor * pulls[1])


def test_with_one_group_the_batch_std_is_the_group_std(world, policy):
    near(ascent(world, policy, FAMILY["grpo-batch-std"]), ascent(world, policy, FAMILY["grpo"]))


@pytest.mark.parametrize(
    "ratio, clipped",
    [
        ("token", [[True, False], [False, False]]),
        ("sequence", [[True, True], [False, False]]),
        ("sequence mean", [[False, False], [False, False]]),
    ],
)
def test_clipped_tokens_are_reported_for_token_and_sequence_ratios(ratio, clipped):
    # Token ratios 4 and 1: their product is 4, their geometric mean 2, the upper clip bound 3.
    # In row 1 the advantage is negative, so nothing is clipped.
    logprobs, mask = (
        torch.tensor([[4.0, 1.0], [4.0, 1.0]]).log(),
        torch.tensor([[True, True], [True, False]]),
    )
    advantages = torch.tensor([[1.0, 1.0], [-1.0, 0.0]])
    row = Algorithm(ratio=ratio, clip_eps=0.5, clip_eps_high=2.0)
    assert row.clipped(logprobs, 0 * logprobs, advantages, mask).tolist() == clipped


def test_no_two_algorithms_are_the_same():
    rows = [tuple(v for k, v in asdict(row).items() if k != "source") for row in FAMILY.values()]
    assert len(set(rows)) == len(rows) and all(row.source for row in FAMILY.values())


@pytest.mark.parametrize(
    "choices, sentence",
    [
        ({"baseline": "median"}, "baseline is 'median'; it must be one of none, running mean"),
        ({"aggregation": "mean"}, "aggregation is 'mean'"),
        ({"clip_eps": 0.0}, "clip_eps is 0.0"),
        ({"clip_eps_high": -1.0}, "clip_eps_high"),
        (
            {"baseline": "greedy"},
            "baseline is 'greedy'; it must be group mean where the unit is the group std",
        ),
        ({"min_std": 0.1, "scale": "none"}, "min_std is 0.1"),
        ({"ratio": "none"}, "clip is 'ppo'; it must be none without a ratio"),
        ({"ratio": "sequence", "clip": "cispo"}, "clip is 'cispo'"),
        ({"ratio": "sequence", "aggregation": "token_mean"}, "aggregation is"),
        ({"ratio": "sequence mean", "kl": "tokens"}, "kl is 'tokens'"),
        ({"ratio": "sequence", "scale": "whiten"}, "scale is 'whiten'"),
        ({"overlong_buffer": -1}, "overlong_buffer is -1"),
        ({"drop_spread": -1.0}, "drop_spread is -1.0"),
        (
            {"drop_spread": 0.0, "baseline": "greedy", "scale": "none"},
            "None with the greedy baseline",
        ),
    ],
    ids=str,
)
def test_inconsistent_algorithm_choices_are_refused(choices, sentence):
    with pytest.raises(ValueError, match=sentence):
        Algorithm(**choices)


@pytest.mark.parametrize(
    "given, sentence",
    [
        ({"algorithm": FAMILY["reinforce"]}, "samples are good for one update only"),
        ({"algorithm": FAMILY["dapo"], "group_size": 1}, "group of one"),
        ({"max_refills": -1}, "max_refills is -1"),
        (
            {"algorithm": replace(FAMILY["grpo"], overlong_buffer=33)},
            "overlong_buffer is 33; it must be at most max_new_tokens = 32",
        ),
    ],
)
def test_settings_that_do_not_fit_the_algorithm_are_refused(given, sentence):
    with pytest.raises(ValueError, match=sentence):
        GroupConfig(**given)
    with pytest.raises(ValueError, match="algorithm is 'grop'"):
        GroupConfig.named("grop")


def test_every_algorithm_samples_64_responses_a_step():
    for name in FAMILY:
        config = GroupConfig.named(name)
        assert config.prompts_per_step * config.group_size == 64 and config.stage == name
        assert (config.epochs * 64 // config.minibatch_size == 1) == (FAMILY[name].ratio == "none")
    assert (
        GroupConfig.named("grpo") == GroupConfig()
        and GroupConfig(Algorithm(min_std=0.3)).stage == "group"
    )
    assert GroupConfig.named("reinforce", prompts_per_step=8, group_size=2).minibatch_size == 16


def test_the_page_of_algorithms_holds_their_table():
    assert markdown() in (ROOT / "docs" / "algorithms.md").read_text(encoding="utf-8")
    assert len(markdown().splitlines()) == len(FAMILY) + 2 and set(CHOICES) <= set(
        Algorithm.__dataclass_fields__
    )


def test_the_table_lists_only_the_extras_in_use():
    rows = {
        "both": Algorithm(drop_spread=0.0, overlong_buffer=6),
        "drops": Algorithm(drop_spread=0.0),
        "overlong": Algorithm(overlong_buffer=6),
        "neither": Algorithm(),
    }
    cells = [line.split(" | ")[-2] for line in markdown(rows).splitlines()[2:]]
    assert cells == [
        "sequence_mean; drops equal groups, overlong penalty",
        "sequence_mean; drops equal groups",
        "sequence_mean; overlong penalty",
        "sequence_mean",
    ]
