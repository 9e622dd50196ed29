"""The wider family of DPO: hands, gradients, what each reduces to, and where it is least."""

import math

import pytest
import torch
from torch.autograd import grad, gradcheck

from minirlhf.core.bradley_terry import preference_probability
from minirlhf.core.exact import World
from minirlhf.core.preference import dpo, ipo
from minirlhf.core.preference_variants import (
    aot,
    apo_down,
    apo_zero,
    bco,
    discopop,
    exo,
    f_dpo,
    ld_logprobs,
    sppo,
    wpo_weights,
)
from tests.core.test_preference import T, against_reference, least, minimise, solve, win_shares

LOG3 = math.log(3)  # sigmoid(log 3) = 3/4
FOUR = T(-4.0), T(-5.0), T(-4.0 - LOG3), T(-5.0 + LOG3)  # c = log 3, r = -log 3
SHIFT = torch.tensor(0.4, dtype=torch.float64)


@pytest.fixture(scope="module")
def world():
    return World.random(3, 2, seed=5)


@pytest.mark.parametrize(
    "loss, expected",
    [
        (
            lambda *x: exo(*x, beta=0.5, label_smoothing=0.1),
            0.75 * math.log(0.75 / 0.9) + 0.25 * math.log(0.25 / 0.1),
        ),
        (lambda *x: apo_zero(*x, beta=1.0), 1 / 4 + 1 / 4),
        (lambda *x: apo_down(*x, beta=1.0), 3 / 4 + 1 / 10),  # sigmoid(2 log 3) = 9/10
        (lambda *x: bco(*x, 0 * SHIFT, beta=1.0), -2 * math.log(3 / 4)),
        (lambda *x: bco(*x, LOG3 + 0 * SHIFT, beta=1.0), math.log(2) - math.log(9 / 10)),
        (lambda *x: sppo(*x, beta=0.5), 2 * (LOG3 - 1) ** 2),
        (
            lambda *x: sppo(*x, beta=0.5, chosen_wins=0.75, rejected_wins=0.5),
            (LOG3 - 0.5) ** 2 + LOG3**2,
        ),
        (lambda *x: discopop(*x, beta=0.5, temperature=1.0), -math.log(3 / 4) / 4 + 3 / 4 / 3),
        (lambda *x: aot(*x, beta=0.5), -math.log(3 / 4)),
        (lambda *x: aot(*x, beta=0.5, paired=False), -math.log(3 / 4)),
        (
            lambda *x: f_dpo(*x, beta=3 / 8 * LOG3, divergence="forward_kl"),
            -math.log(3 / 4),
        ),  # f' = -1/3, -3: 8/3 apart
        (
            lambda *x: f_dpo(*x, beta=1.0, divergence="js"),
            -math.log(3 / 4),
        ),  # u = 3, 1/3: log 3/2 - log 1/2 = log 3
        (
            lambda *x: f_dpo(*x, beta=1.0, divergence="alpha", alpha=0.5),
            math.log1p(math.exp(-2 * (3**0.5 - 3**-0.5))),
        ),  # (1 - u^-1/2) 2: 2 (sqrt 3 - 1/sqrt 3) apart
    ],
)
def test_losses_by_hand(loss, expected):
    assert loss(*FOUR).item() == pytest.approx(expected, abs=1e-12)


def test_aot_compares_quantiles_lowest_first():
    chosen, rejected, zero = T(3.0, 1.0), T(0.0, 2.0), T(0.0, 0.0)
    # paired: differences 3, -1, sorted -1, 3, against 0, 0; unpaired: 1, 3 against 0, 2
    torch.testing.assert_close(
        aot(chosen, rejected, zero, zero, beta=1.0), -torch.nn.functional.logsigmoid(T(-1.0, 3.0))
    )
    torch.testing.assert_close(
        aot(chosen, rejected, zero, zero, beta=1.0, paired=False),
        -torch.nn.functional.logsigmoid(T(1.0, 1.0)),
    )
    # the reference's own quantiles, wherever they stand in the batch
    torch.testing.assert_close(
        aot(chosen, rejected, T(5.0, 0.0), zero, beta=1.0),
        -torch.nn.functional.logsigmoid(T(-1.0, -2.0)),
    )


def test_wpo_weights_by_hand():
    # mean log pi -1 and -2: exp(-3); a sampled token of such places has -1/2 and -1: exp(-3 + 3/2)
    assert wpo_weights(T(-1.0), T(-2.0)).item() == pytest.approx(math.exp(-3))
    assert wpo_weights(T(-1.0), T(-2.0), T(-0.5), T(-1.0)).item() == pytest.approx(math.exp(-1.5))
    assert (
        wpo_weights(T(-1.0), T(-1.0), T(-2.0), T(-2.0)).item() == 1
    )  # likelier than what it samples: not more than 1
    assert not wpo_weights(T(-1.0).requires_grad_(True), T(-2.0)).requires_grad


def test_ld_logprobs_by_hand():
    nan = torch.nan
    chosen, rejected = (
        torch.tensor([[-1.0, -2.0, -4.0], [-1.0, nan, nan]]),
        torch.tensor([[-3.0, nan, nan], [-1.0, -5.0, nan]]),
    )
    masks = ~chosen.isnan(), ~rejected.isnan()
    assert [x.tolist() for x in ld_logprobs(chosen, rejected, *masks, alpha=0.5)] == [
        [-4.0, -1.0],
        [-3.0, -3.5],
    ]
    assert [x.tolist() for x in ld_logprobs(chosen, rejected, *masks, alpha=1.0)] == [
        [-7.0, -1.0],
        [-3.0, -6.0],
    ]
    assert [x.tolist() for x in ld_logprobs(chosen, rejected, *masks, alpha=0.0)] == [
        [-1.0, -1.0],
        [-3.0, -1.0],
    ]
    x = chosen.clone().requires_grad_(True)
    assert grad(ld_logprobs(x, rejected, *masks, alpha=0.5)[0].sum(), x)[0].tolist() == [
        [1.0, 0.5, 0.5],
        [1.0, 0.0, 0.0],
    ]


ALL = {
    "exo": lambda *x: exo(*x, beta=0.7, label_smoothing=0.2),
    "apo_zero": lambda *x: apo_zero(*x, beta=0.7),
    "apo_down": lambda *x: apo_down(*x, beta=0.7),
    "bco": lambda *x: bco(*x, SHIFT, beta=0.7),
    "sppo": lambda *x: sppo(*x, beta=0.7),
    "discopop": lambda *x: discopop(*x, beta=0.7, temperature=0.5),
    "aot": lambda *x: aot(*x, beta=0.7),
    "aot, unpaired": lambda *x: aot(*x, beta=0.7, paired=False),
    "alpha": lambda *x: f_dpo(*x, beta=0.7, divergence="alpha", alpha=0.5),
    **{
        d: lambda *x, d=d: f_dpo(*x, beta=0.7, divergence=d)
        for d in ("reverse_kl", "forward_kl", "js")
    },
}


@pytest.mark.parametrize("name", ALL)
def test_gradcheck_and_no_gradient_of_the_reference(name):
    x, y, a, b = (torch.randn(4, dtype=torch.float64, requires_grad=True) for _ in range(4))
    assert gradcheck(lambda x, y: ALL[name](x, y, a.detach(), b.detach()), (x, y))
    loss = ALL[name](x, y, a, b)
    assert loss.shape == (4,) and grad(loss.sum(), (a, b), allow_unused=True) == (None, None)


def test_the_shift_of_bco_gets_no_gradient():
    shift = SHIFT.clone().requires_grad_(True)
    assert grad(
        bco(T(-1.0).requires_grad_(True), T(0.0), T(0.0), T(0.0), shift, beta=1.0).sum(),
        shift,
        allow_unused=True,
    ) == (None,)


def test_reductions_to_other_losses():
    x = torch.randn(4, 6, dtype=torch.float64)
    same = lambda a, b, atol=1e-12: torch.testing.assert_close(a, b, rtol=0, atol=atol)
    same(f_dpo(*x, beta=0.7), dpo(*x, beta=0.7))
    same(f_dpo(*x, beta=0.7, divergence="alpha", alpha=1e-9), dpo(*x, beta=0.7), 1e-6)
    same(
        f_dpo(*x, beta=0.7, divergence="alpha", alpha=1 - 1e-9),
        f_dpo(*x, beta=0.7, divergence="forward_kl"),
        1e-6,
    )
    one = x[:, :1]
    same(aot(*one, beta=0.7), dpo(*one, beta=0.7))
    same(aot(*one, beta=0.7, paired=False), dpo(*one, beta=0.7))
    right = x.clone()
    right[0] = (
        x[1] + x[2] - x[3] + 9
    )  # far on the right side discopop is the exponential, far on the wrong one DPO
    same(discopop(*right, beta=1.0), torch.full((6,), math.exp(-9.0), dtype=torch.float64), 1e-9)
    right[0] -= 18
    same(discopop(*right, beta=1.0), dpo(*right, beta=1.0), 1e-9)
    # SPPO's two squares: where c = -r they are IPO's one, halved
    c, zero = x[0], 0 * x[0]
    same(sppo(c, -c, zero, zero, beta=0.7), ipo(c, -c, zero, zero, beta=0.35) / 2)


@pytest.mark.parametrize("p", [0.6, 0.9])
def test_the_optimal_log_ratio_for_a_known_preference(p):
    zero, logit = T(0.0), math.log(p / (1 - p))

    def single(loss):
        """The response against one that stays at the reference."""
        return lambda x: p * loss(x, zero, zero, zero) + (1 - p) * loss(zero, x, zero, zero)

    e = 0.1
    told = 2 * (2 * p - 1) * math.log((1 - e) / e)
    assert least(single(lambda *x: exo(*x, beta=0.5, label_smoothing=e))) == pytest.approx(
        told, abs=1e-5
    )
    assert least(single(lambda *x: bco(*x, SHIFT, beta=0.5))) == pytest.approx(
        2 * (0.4 + logit), abs=1e-5
    )
    assert least(single(lambda *x: sppo(*x, beta=0.5))) == pytest.approx(2 * (p - 0.5), abs=1e-6)
    x = torch.linspace(
        -20, 20, 9, dtype=torch.float64, requires_grad=True
    )  # APO-zero: the majority's sign from end to end
    nothing = torch.zeros_like(x)
    mean = p * apo_zero(x, nothing, nothing, nothing, beta=0.5) + (1 - p) * apo_zero(
        nothing, x, nothing, nothing, beta=0.5
    )
    assert (grad(mean.sum(), x)[0] < 0).all()


def test_optimal_log_ratios_follow_the_win_rates(world):
    i, j = (~torch.eye(len(world.rewards), dtype=torch.bool)).nonzero().T
    share, zero = (
        preference_probability(world.rewards[i], world.rewards[j]),
        torch.zeros(len(i), dtype=torch.float64),
    )
    wins = (win_shares(world) * len(world.rewards) - 0.5) / (
        len(world.rewards) - 1
    )  # without the draw against itself
    for loss, expected in (
        (lambda *x: sppo(*x, beta=0.5), (wins - 0.5) / 0.5),
        (lambda *x: bco(*x, SHIFT, beta=0.5), 2 * (0.4 + (wins / (1 - wins)).log())),
    ):
        found = minimise(
            lambda x, loss=loss: (share * loss(x[i], x[j], zero, zero)).sum(),
            torch.zeros(len(world.rewards), dtype=torch.float64, requires_grad=True),
        )
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "divergence, slope",
    [
        ("reverse_kl", lambda u: u.log()),
        ("forward_kl", lambda u: -1 / u),
        ("js", lambda u: (2 * u / (1 + u)).log()),
        ("alpha", lambda u: (1 - u**-0.5) / 0.5),
    ],
)
def test_at_the_f_dpo_optimum_the_slope_of_the_divergence_is_the_reward(world, divergence, slope):
    given = {"alpha": 0.5} if divergence == "alpha" else {}
    found = world.probs(
        solve(world, against_reference(world, f_dpo, beta=2.0, divergence=divergence, **given))
    )
    rest = 2.0 * slope(found / world.probs(world.ref_logits)) - world.rewards
    torch.testing.assert_close(rest, rest.mean().expand(rest.shape), rtol=0, atol=1e-4)
    assert ((found - world.gibbs(beta=2.0)).abs().max() < 1e-5) == (divergence == "reverse_kl")


def test_f_dpo_is_finite_for_extreme_log_ratios():
    x = torch.tensor([-1e4]).requires_grad_(True)
    for given in ({"divergence": "forward_kl"}, {"divergence": "alpha", "alpha": 0.5}):
        loss = f_dpo(x, torch.zeros(1), torch.zeros(1), torch.zeros(1), beta=0.1, **given)
        assert (
            loss.isfinite().all() and grad(loss.sum(), x)[0].item() == 0
        )  # beyond e^80 nothing pulls


def test_bad_arguments_are_refused():
    for call, words in [
        (
            lambda: exo(*FOUR, beta=0.1, label_smoothing=0.0),
            "label_smoothing is 0.0; it must be above 0",
        ),
        (lambda: exo(*FOUR, beta=0.1, label_smoothing=0.5), "label_smoothing is 0.5"),
        (lambda: discopop(*FOUR, beta=0.1, temperature=0.0), "temperature is 0.0"),
        (
            lambda: f_dpo(*FOUR, beta=0.1, divergence="kl"),
            "divergence is 'kl'; it must be one of reverse_kl",
        ),
        (lambda: f_dpo(*FOUR, beta=0.1, divergence="alpha", alpha=1.0), "alpha is 1.0"),
        (lambda: f_dpo(*FOUR, beta=0.1, divergence="alpha", alpha=0.0), "alpha is 0.0"),
        (lambda: sppo(*FOUR, beta=0.1, chosen_wins=1.5), "chosen_wins is 1.5"),
        (lambda: wpo_weights(T(-1.0), T(-1.0), T(-1.0)), "one side only"),
        (
            lambda: ld_logprobs(*2 * [T(0.0)[None]], *2 * [T(1.0)[None].bool()], alpha=1.5),
            "alpha is 1.5",
        ),
    ]:
        with pytest.raises(ValueError, match=words):
            call()
    for loss in (apo_zero, apo_down, sppo, aot, f_dpo):
        with pytest.raises(ValueError, match="beta is 0"):
            loss(*FOUR, beta=0.0)
