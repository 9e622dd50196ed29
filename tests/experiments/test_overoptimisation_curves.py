"""The law fitted to curves whose coefficients are known."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from minirlhf.core.best_of_n import best_of_n_kl
from minirlhf.core.overoptimisation import overoptimisation_gain
from minirlhf.experiments.overoptimisation_curves import fitted_curves, gain_curves

START = 0.4  # gold score of the first policy


def simulated(alpha, beta, noise=0.0, variant="a proxy", seed=0):
    """The records of three seeds whose curves have these coefficients."""
    draw = np.random.default_rng(seed)
    history, rows = [], []
    for run in range(3):
        origin = {"variant": variant, "seed": run}
        rows.append(origin | {"start_gold": START, "start_proxy": -0.5, "gold": 0.0, "kl": 9.0})
        for n in (2**k for k in range(11)):
            d = torch.tensor([math.sqrt(best_of_n_kl(n))])
            gain = overoptimisation_gain(d, alpha, beta, form="best-of-n").item()
            films = START + gain + noise * draw.normal(size=32)
            scores = {"gold": films.mean(), "gold_by_prompt": films.tolist(), "proxy": float(n)}
            history.append(origin | {"way": "best-of-n", "n": n, "kl": best_of_n_kl(n)} | scores)
        for step in range(40):
            d = torch.tensor([step / 4])
            gain = overoptimisation_gain(d, alpha, beta, form="rl").item() + noise * draw.normal()
            history.append(
                origin
                | {"way": "rl", "step": step, "kl": d.item() ** 2, "gold": START + gain}
                | {"proxy": float(step)}
            )
    return pd.DataFrame(history), pd.DataFrame(rows)


@pytest.mark.parametrize("way, peak", [("best-of-n", 2.0), ("rl", math.exp(3))])
def test_exact_curves_give_their_coefficients(way, peak):
    history, rows = simulated(1.2, 0.3)
    row = fitted_curves(history, rows, way, ["a proxy"], draws=20).loc["a proxy"]
    for end in ("", "_low", "_high"):
        assert row["alpha" + end] == pytest.approx(1.2, abs=1e-4)
        assert row["beta" + end] == pytest.approx(0.3, abs=1e-4)
        assert row["peak" + end] == pytest.approx(peak, rel=1e-3)
    tries = [math.sqrt(best_of_n_kl(2**k)) for k in range(11)]
    nearest = min(tries, key=lambda d: abs(d - 2))
    assert row.observed_peak == pytest.approx(nearest if way == "best-of-n" else 39 / 4)
    assert row.share_peaked == (way == "best-of-n")  # the peak of rl lies beyond the last step


def test_the_interval_of_best_of_n_holds_the_truth_nearly_always():
    held = []
    for seed in range(40):
        history, rows = simulated(1.2, 0.3, noise=0.5, seed=seed)
        row = fitted_curves(history, rows, "best-of-n", ["a proxy"], draws=100).loc["a proxy"]
        held.append((row.alpha_low <= 1.2 <= row.alpha_high, row.beta_low <= 0.3 <= row.beta_high))
    assert np.mean(held) >= 0.9


@pytest.mark.parametrize("steps", [40, 12])  # one seed ends early: its fit counts as much
def test_of_rl_the_seeds_are_fitted_alone(steps):
    history, rows = simulated(1.2, 0.3, noise=0.1)
    history = history[(history.seed > 0) | ~(history.step >= steps)]
    row = fitted_curves(history, rows, "rl", ["a proxy"]).loc["a proxy"]
    alone = pd.concat(
        fitted_curves(history[history.seed == s], rows[rows.seed == s], "rl", ["a proxy"])
        for s in range(3)
    )
    for column in ("alpha", "beta"):
        assert row[column] == pytest.approx(alone[column].mean())
    for column in ("alpha", "beta", "peak"):
        ends = row[f"{column}_low"], row[f"{column}_high"]
        assert ends == pytest.approx((alone[column].min(), alone[column].max()))
        assert ends[0] < row[column] < ends[1]


def test_gains_are_measured_from_the_first_policy():
    history, rows = simulated(1.2, 0.3)
    points = gain_curves(history, rows, "rl", ["a proxy"])
    first = points[points.step == 0]
    assert first.d.tolist() == [0, 0, 0] and first.gold.abs().max() < 1e-9
    assert first.proxy.tolist() == [0.5] * 3  # 0 in the batch, and -0.5 for the first policy
    points = gain_curves(history, rows, "best-of-n", ["a proxy"])
    assert points[points.n == 1][["d", "gold", "proxy"]].abs().max().max() < 1e-9
    assert points[points.n == 1024].proxy.tolist() == [1023, 1023, 1023]


def test_odd_arguments_are_refused_in_a_sentence():
    history, rows = simulated(1.2, 0.3)
    with pytest.raises(ValueError, match="variant is 'none'; it must be one with rows of rl"):
        gain_curves(history, rows, "rl", ["none"])
    with pytest.raises(
        ValueError, match="min_d is 20, and 'a proxy' has fewer than two points of rl"
    ):
        fitted_curves(history, rows, "rl", ["a proxy"], min_d=20)
    with pytest.raises(ValueError, match="way is 'ppo'; it must be one of best-of-n, rl"):
        gain_curves(history, rows, "ppo", ["a proxy"])
