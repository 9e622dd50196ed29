"""The curves of over-optimisation: gain, peak and fit."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minirlhf.core.overoptimisation import (
    FORMS,
    ensemble_reward,
    fit_overoptimisation,
    overoptimisation_gain,
    overoptimisation_peak,
)


def T(*x):
    return torch.tensor(x, dtype=torch.float64)


def test_gain_by_hand():
    # best-of-n: 2 (1.5 - 0.25 * 2) = 2.   rl: e (1.5 - 0.25 * 1) = 1.25 e
    gain = overoptimisation_gain(T(0.0, 2.0), 1.5, 0.25, form="best-of-n")
    torch.testing.assert_close(gain, T(0.0, 2.0))
    gain = overoptimisation_gain(T(0.0, math.e), 1.5, 0.25, form="rl")
    torch.testing.assert_close(gain, T(0.0, 1.25 * math.e))


@pytest.mark.parametrize("form, peak", [("best-of-n", 3.0), ("rl", math.exp(5))])
def test_peak_by_hand(form, peak):
    # 1.5 / (2 * 0.25) = 3;   exp(1.5 / 0.25 - 1) = exp(5)
    assert overoptimisation_peak(1.5, 0.25, form=form) == pytest.approx(peak)


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(FORMS), st.floats(0.1, 3), st.floats(0.1, 3))
def test_no_distance_gains_more_than_the_peak(form, alpha, beta):
    peak = overoptimisation_peak(alpha, beta, form=form)
    around = peak * torch.tensor([0.8, 0.99, 1.0, 1.01, 1.2], dtype=torch.float64)
    gain = overoptimisation_gain(around, alpha, beta, form=form)
    assert gain.argmax() == 2


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("beta", [0.0, -0.5])
def test_a_curve_that_never_turns_has_no_peak(form, beta):
    assert overoptimisation_peak(1.0, beta, form=form) == math.inf
    assert overoptimisation_peak(-1.0, 0.0, form=form) == 0  # it falls from the start


@pytest.mark.parametrize("form", FORMS)
def test_fit_recovers_the_coefficients(form):
    d = torch.linspace(0.5, 10, 12)
    gain = overoptimisation_gain(d, 1.2, 0.3, form=form)
    assert fit_overoptimisation(d, gain, form=form) == pytest.approx((1.2, 0.3), abs=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_fit_recovers_the_coefficients_from_noisy_curves(form):
    generator = torch.Generator().manual_seed(0)
    d = torch.linspace(1, 10, 25, dtype=torch.float64)
    gain = overoptimisation_gain(d, 1.2, 0.1, form=form)
    noise = 0.1 * torch.randn(300, 25, generator=generator, dtype=torch.float64)
    fits = torch.tensor([fit_overoptimisation(d, gain + e, form=form) for e in noise])
    error = fits.mean(0) - torch.tensor([1.2, 0.1])
    assert (error.abs() < 4 * fits.std(0) / 300**0.5).all()


def test_the_wrong_form_puts_the_peak_elsewhere():
    d = torch.linspace(1, 10, 25)
    gain = overoptimisation_gain(d, 1.2, 0.3, form="rl")
    alpha, beta = fit_overoptimisation(d, gain, form="best-of-n")
    true = overoptimisation_peak(1.2, 0.3, form="rl")
    assert true == pytest.approx(math.exp(3))
    assert overoptimisation_peak(alpha, beta, form="best-of-n") < 0.6 * true


def test_ensembles_by_hand():
    scores = T([1.0, 4.0], [3.0, 4.0])  # two models, two responses
    torch.testing.assert_close(ensemble_reward(scores, how="mean"), T(2.0, 4.0))
    torch.testing.assert_close(ensemble_reward(scores, how="min"), T(1.0, 4.0))
    # variance of 1 and 3: ((1 - 2)^2 + (3 - 2)^2) / 2 = 1
    penalised = ensemble_reward(scores, how="variance", penalty=0.5)
    torch.testing.assert_close(penalised, T(1.5, 4.0))
    with pytest.raises(ValueError, match="how is 'max'; it must be one of"):
        ensemble_reward(scores, how="max")


def test_odd_arguments_are_refused_in_a_sentence():
    with pytest.raises(ValueError, match="beta is nan"):
        overoptimisation_peak(1.0, math.nan, form="rl")
    with pytest.raises(ValueError, match="form is 'ppo'; it must be one of"):
        overoptimisation_peak(1.0, 1.0, form="ppo")
    with pytest.raises(ValueError, match="d has an entry below 0"):
        overoptimisation_gain(T(-1.0), 1.0, 1.0, form="rl")
    with pytest.raises(ValueError, match="at least two different ones"):
        fit_overoptimisation(T(2.0, 2.0), T(1.0, 1.0), form="rl")
    with pytest.raises(ValueError, match="d must be finite and above 0"):
        fit_overoptimisation(T(0.0, 2.0), T(1.0, 1.0), form="rl")
