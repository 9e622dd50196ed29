"""Bradley-Terry, DPO and its family: hands, gradients, and where each loss is least when the whole population is known."""

import math

import pytest
import torch
from torch.autograd import grad, gradcheck

from minirlhf.core.bradley_terry import preference_probability, reward_model_loss
from minirlhf.core.kl import exact_kl
from minirlhf.core.preference import (
    cdpo,
    cpo,
    dpo,
    dpop,
    hinge,
    implicit_rewards,
    ipo,
    kto,
    kto_baseline,
    nca,
    orpo,
    robust_dpo,
    simpo,
    tdpo,
)


def T(*x):
    return torch.tensor(x, dtype=torch.float64)


def test_implicit_rewards_by_hand():
    # beta (log pi - log pi_ref): 1/2 (-1 - -3) = 1, 1/2 (-3 - -2) = -1/2
    assert implicit_rewards(T(-1.0, -3.0), T(-3.0, -2.0), beta=0.5).tolist() == [1.0, -0.5]


def test_dpo_is_bradley_terry_on_implicit_rewards():
    chosen, rejected, ref_chosen, ref_rejected = torch.randn(4, 6, dtype=torch.float64)
    chosen, rejected = chosen.requires_grad_(True), rejected.requires_grad_(True)
    loss = dpo(chosen, rejected, ref_chosen, ref_rejected, beta=0.3)
    rewards = [0.3 * (chosen - ref_chosen), 0.3 * (rejected - ref_rejected)]
    same = reward_model_loss(*rewards)
    torch.testing.assert_close(loss, same, rtol=0, atol=1e-12)
    for a, b in zip(
        grad(loss.sum(), (chosen, rejected)), grad(same.sum(), (chosen, rejected)), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_the_gradient_of_dpo_at_the_reference_is_half_of_beta():
    x, y = T(-7.0).requires_grad_(True), T(-5.0).requires_grad_(True)
    assert [g.item() for g in grad(dpo(x, y, T(-7.0), T(-5.0), beta=0.5).sum(), (x, y))] == [
        -0.25,
        0.25,
    ]


def test_dpo_depends_only_on_the_difference_of_log_ratios():
    chosen, rejected, ref_chosen, ref_rejected = torch.randn(4, 6, dtype=torch.float64)
    base = dpo(chosen, rejected, ref_chosen, ref_rejected, beta=0.3)
    # both logprobs may fall together: the loss does not see it (likelihood displacement)
    torch.testing.assert_close(
        dpo(chosen - 5, rejected - 5, ref_chosen, ref_rejected, beta=0.3), base, rtol=0, atol=1e-12
    )


def test_gradcheck():
    x, y = (torch.randn(4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    ref, margin = torch.randn(4, dtype=torch.float64), torch.rand(4, dtype=torch.float64)
    for loss in (dpo, ipo, hinge, nca):
        assert gradcheck(lambda x, y, loss=loss: loss(x, y, ref, -ref, beta=0.7), (x, y))
    for loss in (cdpo, robust_dpo):
        assert gradcheck(
            lambda x, y, loss=loss: loss(x, y, ref, -ref, beta=0.7, label_smoothing=0.2), (x, y)
        )
    lengths = {
        "chosen_lengths": torch.tensor([1, 2, 3, 4]),
        "rejected_lengths": torch.tensor([3, 1, 2, 5]),
    }
    assert gradcheck(lambda x, y: ipo(x, y, ref, -ref, beta=0.7, **lengths), (x, y))
    assert gradcheck(lambda x, y: dpop(x, y, ref, -ref, beta=0.7, penalty=2.0), (x, y))
    assert gradcheck(lambda x, y: tdpo(x, y, ref, -ref, x.exp(), y.exp(), beta=0.7), (x, y))
    thumbs = torch.tensor([True, False, True, False])
    assert gradcheck(
        lambda x: kto(
            x, ref, thumbs, T(0.3)[0], beta=0.7, desirable_weight=2.0, undesirable_weight=3.0
        ),
        x,
    )
    assert gradcheck(lambda x, y: cpo(x, y, beta=0.7, nll_coef=0.5), (x, y))
    assert gradcheck(lambda x, y: simpo(x, y, beta=0.7, margin=0.5), (x, y))
    assert gradcheck(lambda x, y: orpo(-x.exp(), -y.exp(), beta=0.7), (x, y))
    assert gradcheck(
        lambda x, y: reward_model_loss(x, y, margin=margin, centering_coef=0.1), (x, y)
    )
    assert gradcheck(preference_probability, (x, y))


def test_losses_are_finite_and_keep_their_slope_for_extreme_margins():
    x, zero = torch.tensor([-300.0], requires_grad=True), torch.zeros(1)
    for loss, slope in (
        (dpo(x, zero, zero, zero, beta=0.5), -0.5),
        (reward_model_loss(x, zero), -1.0),
    ):
        assert loss.item() == -slope * 300  # -log sigmoid(-m) = m far out, in float32 as well
        assert grad(loss.sum(), x)[0].item() == slope


def test_preference_probabilities_add_to_one_and_ignore_a_constant():
    a, b = torch.randn(2, 8, dtype=torch.float64)
    torch.testing.assert_close(
        preference_probability(a, b) + preference_probability(b, a), torch.ones_like(a)
    )
    torch.testing.assert_close(preference_probability(a + 9, b + 9), preference_probability(a, b))
    assert preference_probability(T(0.0), T(0.0)) == 0.5
    torch.testing.assert_close(preference_probability(T(math.log(3)), T(0.0)), T(0.75))


def minimise(loss, x):
    optimizer = torch.optim.LBFGS(
        [x],
        max_iter=2000,
        tolerance_grad=1e-12,
        tolerance_change=1e-16,
        history_size=50,
        line_search_fn="strong_wolfe",
    )

    def closure():
        optimizer.zero_grad()
        value = loss(x)
        value.backward()
        return value

    optimizer.step(closure)
    return x.detach()


def test_bradley_terry_recovers_every_reward_up_to_a_constant(world):
    i, j = torch.triu_indices(15, 15, 1)
    share = preference_probability(world.rewards[i], world.rewards[j])

    def population(centering_coef):
        def loss(r):
            win, lose = (
                reward_model_loss(r[a], r[b], centering_coef=centering_coef)
                for a, b in ((i, j), (j, i))
            )
            return (share * win + (1 - share) * lose).mean()

        return minimise(loss, torch.ones(15, dtype=torch.float64, requires_grad=True))

    found = population(0.0)
    torch.testing.assert_close(
        found - found.mean(), world.rewards - world.rewards.mean(), rtol=0, atol=1e-6
    )
    # only centring sees a constant c: sum_ij (r_i + r_j + 2c)^2 is least where the mean score is 0
    assert population(0.01).mean().abs() < 1e-6


def test_hard_labels_have_no_finite_optimum():
    # two responses, one always preferred: the slope never reaches 0
    difference = torch.linspace(0, 30, 7, dtype=torch.float64, requires_grad=True)
    (slope,) = grad(reward_model_loss(difference, torch.zeros_like(difference)).sum(), difference)
    assert (slope < 0).all() and (slope.diff() > 0).all()


@pytest.mark.parametrize("beta", [0.0, -0.1])
def test_beta_must_be_above_zero(beta):
    with pytest.raises(ValueError, match="beta"):
        dpo(T(0.0), T(0.0), T(0.0), T(0.0), beta=beta)


# ---- the family by hand. beta h is log 3 or -log 3, so that sigmoid is 3/4 or 1/4; log 3 + log 1 are what two log-ratios make
L3, L4, QUARTERS = (
    math.log(3),
    math.log(4),
    (math.log(4 / 3), math.log(4)),
)  # -log sigmoid of +-log 3
ONE_PAIR = (
    T(-1 + 4 * L3),
    T(-2 + 2 * L3),
    T(-1.0),
    T(-2.0),
)  # log-ratios 4 log 3 and 2 log 3: h = 2 log 3, with beta 1/2 it is log 3


@pytest.mark.parametrize(
    "loss,expected",
    [
        (lambda *x: dpo(*x, beta=0.5), QUARTERS[0]),
        (
            lambda *x: cdpo(*x, beta=0.5, label_smoothing=0.25),
            0.75 * QUARTERS[0] + 0.25 * QUARTERS[1],
        ),
        (
            lambda *x: robust_dpo(*x, beta=0.5, label_smoothing=0.25),
            (0.75 * QUARTERS[0] - 0.25 * QUARTERS[1]) / 0.5,
        ),
        (lambda *x: ipo(*x, beta=0.25), (2 * L3 - 2) ** 2),  # the target is 1 / (2 beta) = 2
        (
            lambda *x: ipo(
                *x, beta=0.25, chosen_lengths=torch.tensor([8]), rejected_lengths=torch.tensor([4])
            ),
            4.0,
        ),  # both means log 3 / 2
        (
            lambda *x: ipo(
                *x, beta=0.25, chosen_lengths=torch.tensor([1]), rejected_lengths=torch.tensor([1])
            ),
            (2 * L3 - 2) ** 2,
        ),
        (lambda *x: hinge(*x, beta=0.25), 1 - L3 / 2),
        (lambda *x: hinge(*x, beta=0.5), 0.0),  # log 3 > 1: the pair pulls no more
        (
            lambda *x: dpop(*x, beta=0.5, penalty=9.0),
            QUARTERS[0],
        ),  # the chosen one became likelier: DPO
        (
            lambda *x: tdpo(*x, T(2.0), T(2.0 + 4 * L3), beta=0.5),
            QUARTERS[1],
        ),  # h - 4 log 3 = -2 log 3
        (lambda *x: tdpo(*x, T(2.0), T(2.0 + 8 * L3), beta=0.5, alpha=0.5), QUARTERS[1]),
        (
            lambda *x: nca(*x, beta=0.5),
            math.log(10 / 9) + 0.5 * math.log(10) + 0.5 * math.log(4),
        ),  # r = log 9 and log 3
    ],
)
def test_losses_with_a_reference_by_hand(loss, expected):
    torch.testing.assert_close(loss(*ONE_PAIR), T(expected), rtol=0, atol=1e-12)


def test_dpop_by_hand_where_the_chosen_response_became_less_likely():
    # log-ratios -log 3 and -3 log 3: h = 2 log 3, the penalty takes 4 log 3 off, beta 1/2
    x = T(-L3).requires_grad_(True)
    loss = dpop(x, T(-3 * L3), T(0.0), T(0.0), beta=0.5, penalty=4.0)
    torch.testing.assert_close(loss, T(L4), rtol=0, atol=1e-12)
    # it is pulled up with (1 + penalty) beta (1 - sigmoid(-log 3)) = 5/2 * 3/4; the paper's point
    torch.testing.assert_close(grad(loss.sum(), x)[0], T(-1.875), rtol=0, atol=1e-12)


def test_kto_by_hand():
    # z = 1, log-ratios 1 + 2 log 3: gain log 3 with beta 1/2; a thumb up loses 1 - 3/4, a thumb down 1 - 1/4
    logprobs, thumbs = T(1 + 2 * L3, 1 + 2 * L3), torch.tensor([True, False])
    expected = T(2 * 0.25, 3 * 0.75)
    got = kto(
        logprobs,
        T(0.0, 0.0),
        thumbs,
        T(1.0)[0],
        beta=0.5,
        desirable_weight=2.0,
        undesirable_weight=3.0,
    )
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    assert (
        kto_baseline(T(-1.0, -2.0), T(-2.0, -4.0)) == 1.5
        and kto_baseline(T(-5.0, -2.0), T(-2.0, -4.0)) == 0
    )  # mean -1/2: held at 0


def test_losses_without_a_reference_by_hand():
    # log-probabilities -1 and -1 - 2 log 3: sigmoid 3/4 with beta 1/2
    torch.testing.assert_close(
        cpo(T(-1.0), T(-1 - 2 * L3), beta=0.5, nll_coef=0.25),
        T(QUARTERS[0] + 0.25),
        rtol=0,
        atol=1e-12,
    )
    torch.testing.assert_close(
        simpo(T(-1.0), T(-1 - 2 * L3), beta=1.0, margin=L3), T(QUARTERS[0]), rtol=0, atol=1e-12
    )
    # a token's geometric mean 3/4 and 1/2: odds 3 and 1; -log 3/4 + 2 (-log 3/4)
    torch.testing.assert_close(
        orpo(T(math.log(0.75)), T(math.log(0.5)), beta=2.0), T(3 * QUARTERS[0]), rtol=0, atol=1e-12
    )


def test_orpo_is_precise_at_both_ends():
    # odds of a mean of -1e-12 are 1e12 (log 1 - exp would say 0 or lose half of it); of -60 they are exp(-60)
    torch.testing.assert_close(
        orpo(T(-60.0), T(-1e-12), beta=1.0), T(60 + 60 - math.log(1e-12)), rtol=1e-11, atol=0
    )
    x = torch.tensor([-1e-12], requires_grad=True)
    assert (
        grad(orpo(x, torch.tensor([-60.0]), beta=1.0).sum(), x)[0].item() == -1.0
    )  # float32: imitation alone still pulls
    assert orpo(T(0.0), T(0.0), beta=1.0).isfinite().all()


# ---- reductions
@pytest.fixture
def four():
    return torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def same(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_reductions_to_dpo(four):
    plain, zero = dpo(*four, beta=0.3), torch.zeros(6, dtype=torch.float64)
    same(cdpo(*four, beta=0.3, label_smoothing=0.0), plain)
    same(robust_dpo(*four, beta=0.3, label_smoothing=0.0), plain)
    same(dpop(*four, beta=0.3, penalty=0.0), plain)
    same(tdpo(*four, zero + 2, zero + 2, beta=0.3), plain)
    same(tdpo(*four, zero + 2, zero + 5, beta=0.3, alpha=0.0), plain)
    same(cpo(four[0], four[1], beta=0.3, nll_coef=0.0), dpo(four[0], four[1], zero, zero, beta=0.3))
    same(simpo(four[0], four[1], beta=0.3, margin=0.0), dpo(four[0], four[1], zero, zero, beta=0.3))


def test_robust_dpo_is_unbiased_and_cdpo_is_not(four):
    # labels flipped with probability e: the mean over both labels of robust_dpo is DPO's loss of the true label
    e, flipped = 0.2, (four[1], four[0], four[3], four[2])
    mean = lambda loss: (
        (1 - e) * loss(*four, beta=0.3, label_smoothing=e)
        + e * loss(*flipped, beta=0.3, label_smoothing=e)
    )
    same(mean(robust_dpo), dpo(*four, beta=0.3))
    assert (mean(cdpo) - dpo(*four, beta=0.3)).abs().max() > 0.01


def test_tdpo1_and_tdpo2_differ_at_the_chosen_response(four):
    def pull(**given):
        kls = [torch.full((6,), 2.0, dtype=torch.float64, requires_grad=True) for _ in range(2)]
        return [
            g if g is None else g.sign().unique().tolist()
            for g in grad(tdpo(*four, *kls, beta=0.3, **given).sum(), kls, allow_unused=True)
        ]

    assert pull() == [
        [-1.0],
        [1.0],
    ]  # TDPO1 pays for distance from the reference at the chosen response
    assert pull(alpha=0.5) == [None, [1.0]]


def test_the_reference_and_the_baseline_get_no_gradient(four):
    for loss in (dpo, ipo, hinge, nca):
        x = four.clone().requires_grad_(True)
        assert grad(loss(*x, beta=0.3).sum(), x)[0][2:].eq(0).all()
    ref, z = (
        four[1].clone().requires_grad_(True),
        kto_baseline(four[2].requires_grad_(True), four[3]),
    )
    assert not z.requires_grad
    x, z = four[0].clone().requires_grad_(True), T(0.5)[0].requires_grad_(True)
    assert grad(kto(x, ref, four[0] > 0, z, beta=0.3).sum(), (ref, z), allow_unused=True) == (
        None,
        None,
    )


def test_gradients_of_the_chosen_and_the_rejected_response():
    # push up and push down: DPO's are equal and opposite, whatever the pair; of NCA and CPO the chosen response has a pull of its own
    def halves(loss, a, b):
        x, y = T(a).requires_grad_(True), T(b).requires_grad_(True)
        return [g.item() for g in grad(loss(x, y).sum(), (x, y))]

    zero = T(0.0)
    for a, b in ((0.0, 0.0), (-5.0, 3.0)):
        up, down = halves(lambda x, y: dpo(x, y, zero, zero, beta=0.5), a, b)
        assert up == -down < 0
    up, down = halves(
        lambda x, y: nca(x, y, zero, zero, beta=0.5), -5.0, -5.0
    )  # both fell below the reference: only up is left
    assert up < -0.4 and 0 < down < 0.05
    up, down = halves(lambda x, y: cpo(x, y, beta=0.5), 0.0, 0.0)
    assert (up, down) == (-1.25, 0.25)


# ---- where each is least
def least(loss, start=0.0):
    """The number at which a loss of one number is least."""
    return minimise(lambda x: loss(x).sum(), T(start).requires_grad_(True)).item()


@pytest.mark.parametrize("p", [0.6, 0.9])
def test_the_optimal_margin_of_a_pair_for_a_known_preference(p):
    zero, e = T(0.0), 0.1

    def shared(loss):
        return lambda h: p * loss(h, zero, zero, zero) + (1 - p) * loss(zero, h, zero, zero)

    logit = lambda q: math.log(q / (1 - q))
    at = lambda loss: least(shared(loss))
    assert abs(at(lambda *x: dpo(*x, beta=0.5)) - 2 * logit(p)) < 1e-6
    flipped = (1 - e) * p + e * (1 - p)  # what raters who err say
    assert abs(at(lambda *x: cdpo(*x, beta=0.5, label_smoothing=e)) - 2 * logit(flipped)) < 1e-6
    assert abs(at(lambda *x: ipo(*x, beta=0.5)) - (2 * p - 1)) < 1e-6
    p, true = flipped, p  # `shared` reads p: the labels are now the noisy ones
    assert abs(at(lambda *x: robust_dpo(*x, beta=0.5, label_smoothing=e)) - 2 * logit(true)) < 1e-6
    # hinge: its slope changes sign at beta h = 1 for every share above a half
    h = T(2 - 1e-6, 2 + 1e-6).requires_grad_(True)
    nothing = torch.zeros_like(h)
    slopes = grad(
        (
            p * hinge(h, nothing, nothing, nothing, beta=0.5)
            + (1 - p) * hinge(nothing, h, nothing, nothing, beta=0.5)
        ).sum(),
        h,
    )[0]
    assert slopes[0] < 0 < slopes[1]
    # KTO: no minimum, the slope keeps the majority's sign from end to end
    g = torch.linspace(-20, 20, 9, dtype=torch.float64, requires_grad=True)
    up, down = torch.ones(9, dtype=torch.bool), torch.zeros(9, dtype=torch.bool)
    mean = p * kto(g, 0 * g, up, T(0.0)[0], beta=0.5) + (1 - p) * kto(
        g, 0 * g, down, T(0.0)[0], beta=0.5
    )
    assert (grad(mean.sum(), g)[0] < 0).all()


def solve(world, loss, *, labels=preference_probability, start=None):
    """The policy where the mean of `loss(log pi, i, j)` over all ordered pairs, weighted by the share that prefers i, is least."""
    i, j = (~torch.eye(len(world.sequences), dtype=torch.bool)).nonzero().T
    share = labels(world.rewards[i], world.rewards[j])
    start = world.ref_logits if start is None else start
    return minimise(
        lambda logits: (share * loss(logits, i, j)).sum() / len(i) * 2,
        start.clone().requires_grad_(True),
    )


def against_reference(world, loss, **settings):
    ref = world.sequence_logprobs(world.ref_logits)

    def pairs(logits, i, j):
        log_p = world.sequence_logprobs(logits)
        return loss(log_p[i], log_p[j], ref[i], ref[j], **settings)

    return pairs


def win_shares(world, labels=preference_probability):
    """Share of draws from all sequences, itself among them, that each one is preferred to."""
    pairs = torch.cartesian_prod(world.rewards, world.rewards)
    return labels(pairs[:, 0], pairs[:, 1]).view(len(world.rewards), -1).mean(1)


def test_ipo_optimum_is_the_gibbs_policy_of_the_win_rate(world):
    ref = world.sequence_logprobs(world.ref_logits)
    for labels in (preference_probability, lambda a, b: (a > b).double() + 0.5 * (a == b)):
        found = solve(world, against_reference(world, ipo, beta=0.5), labels=labels)
        torch.testing.assert_close(
            world.probs(found),
            (ref + win_shares(world, labels) / 0.5).softmax(0),
            rtol=0,
            atol=1e-7,
        )


def test_nca_optimum_fixes_absolute_probabilities(world):
    # both of a pair drawn from the reference, beta 1: pi(y) = pi_ref(y) 2 P(y is chosen), normalised as it stands
    i, j = torch.cartesian_prod(torch.arange(15), torch.arange(15)).T  # a draw may meet itself
    ref = world.sequence_logprobs(world.ref_logits).exp()
    share, loss = (
        preference_probability(world.rewards[i], world.rewards[j]),
        against_reference(world, nca, beta=1.0),
    )
    found = minimise(
        lambda logits: (ref[i] * ref[j] * share * loss(logits, i, j)).sum(),
        world.ref_logits.clone().requires_grad_(True),
    )
    wins = (
        preference_probability(*torch.cartesian_prod(world.rewards, world.rewards).T).view(15, 15)
        @ ref
    )
    torch.testing.assert_close(world.probs(found), 2 * wins * ref, rtol=0, atol=1e-7)


@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_nca_optimal_ratio_is_twice_the_win_rate(beta):
    rewards, i, j = T(1.0, -0.5, 0.25), *torch.triu_indices(3, 3, 1)
    p, zero = preference_probability(rewards[i], rewards[j]), T(0.0, 0.0, 0.0)
    loss = lambda x: (
        p * nca(x[i], x[j], zero, zero, beta=beta)
        + (1 - p) * nca(x[j], x[i], zero, zero, beta=beta)
    ).sum()
    wins = (
        torch.zeros(3, dtype=torch.float64).index_add(0, i, p / 2).index_add(0, j, (1 - p) / 2)
    )  # each is in two pairs
    torch.testing.assert_close(
        minimise(loss, T(0.0, 0.0, 0.0).requires_grad_(True)),
        (2 * wins).log() / beta,
        rtol=0,
        atol=1e-7,
    )


def test_tdpo_optimum_is_one_policy_improvement_step_and_not_gibbs(world):
    beta = 0.5

    def loss(logits, i, j):
        log_p, ref = world.sequence_logprobs(logits), world.sequence_logprobs(world.ref_logits)
        kl = exact_kl(
            world.by_token(world.ref_logits.clone()), world.by_token(logits), world.response_mask
        ).sum(1)
        return tdpo(log_p[i], log_p[j], ref[i], ref[j], kl[i], kl[j], beta=beta)

    found = solve(world, loss)
    _, q = world.values(world.ref_logits)  # of the reference itself, without a KL term
    step = world.ref_logits.log_softmax(-1) + q / beta
    torch.testing.assert_close(world.probs(found), world.probs(step), rtol=0, atol=1e-6)
    assert (world.probs(found) - world.gibbs(beta=beta)).abs().max() > 0.03


def test_cpo_optimum_does_not_depend_on_the_reference(world):
    def sums(logits, i, j, nll_coef=0.0):
        log_p = world.sequence_logprobs(logits)
        return cpo(log_p[i], log_p[j], beta=0.5, nll_coef=nll_coef)

    uniform = (world.rewards / 0.5).softmax(0)
    torch.testing.assert_close(world.probs(solve(world, sums)), uniform, rtol=0, atol=1e-6)
    assert (uniform - world.gibbs(beta=0.5)).abs().max() > 0.05
    # imitation pulls back towards what was chosen, more often than by its merit alone
    imitating = world.probs(solve(world, lambda *x: sums(*x, nll_coef=1.0)))
    assert (imitating - uniform).abs().max() > 0.05


def test_simpo_optimum_makes_the_mean_logprob_the_reward_over_beta(world):
    lengths = world.response_mask.sum(1)

    def loss(logits, i, j):
        means = world.sequence_logprobs(logits) / lengths
        return simpo(means[i], means[j], beta=2.0, margin=0.0)

    means = world.sequence_logprobs(solve(world, loss)) / lengths
    constant = means - world.rewards / 2.0
    torch.testing.assert_close(constant, constant.mean().expand(15), rtol=0, atol=1e-6)


# ---- refusals
def test_bad_arguments_are_refused(four):
    for call, words in [
        (lambda: cdpo(*four, beta=0.1, label_smoothing=0.5), "label_smoothing is 0.5"),
        (lambda: robust_dpo(*four, beta=0.1, label_smoothing=0.5), "label_smoothing is 0.5"),
        (lambda: dpop(*four, beta=0.1, penalty=-1.0), "penalty is -1.0"),
        (
            lambda: ipo(*four, beta=0.1, chosen_lengths=torch.ones(6, dtype=torch.long)),
            "lengths of one side",
        ),
        (lambda: kto_baseline(T(0.0), T(0.0)), "at least 2"),
        (lambda: simpo(four[0], four[1], beta=1.0, margin=-0.5), "margin is -0.5"),
        (lambda: cpo(four[0], four[1], beta=1.0, nll_coef=-0.5), "nll_coef is -0.5"),
        (lambda: tdpo(*four, four[0], four[1], beta=1.0, alpha=-0.5), "alpha is -0.5"),
        (
            lambda: kto(four[0], four[1], four[0] > 0, T(0.0)[0], beta=1.0, desirable_weight=-1.0),
            "desirable_weight is -1.0",
        ),
    ]:
        with pytest.raises(ValueError, match=words):
            call()
