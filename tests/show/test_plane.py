import math

import pandas as pd
import pytest
from matplotlib.collections import LineCollection

from minirlhf import show


def rows():
    return pd.DataFrame(
        [
            {"variant": v, "seed": s, "kl": k, "gold": g}
            for v, s, k, g in (
                ("SFT", 0, 0.0, 1.0),
                ("SFT", 1, 0.0, 2.0),
                ("beta 1", 0, 1.0, 2.0),
                ("beta 1", 1, 3.0, 4.0),
                ("beta 0.1", 0, 6.0, 5.0),
                ("beta 0.1", 1, 8.0, 5.0),
            )
        ]
    )


def points(figure):
    """Label -> list of (x, y), and label -> list of error bars' ends."""
    figure.draw_without_rendering()
    containers = figure.axes[0].containers
    where = {
        c.get_label(): [tuple(map(float, p)) for p in zip(*c[0].get_data(), strict=True)]
        for c in containers
    }
    bars = {
        c.get_label(): [segment.tolist() for part in c[2] for segment in part.get_segments()]
        for c in containers
    }
    return where, bars


def test_a_point_is_the_mean_of_the_seeds_and_its_bars_are_their_range():
    where, bars = points(show.frontier(rows()))
    assert where == {"SFT": [(0, 1.5)], "beta 1": [(2, 3)], "beta 0.1": [(7, 5)]}
    assert sorted(bars["beta 1"]) == [[[1, 3], [3, 3]], [[2, 2], [2, 4]]]
    figure = show.frontier(rows())
    assert "mean of 2 runs; bars: lowest to highest" in [t.get_text() for t in figure.texts]


def test_a_single_row_has_the_intervals_of_its_own_columns():
    methods = [
        {"method": "SFT", "kl": 0.0, "gold": 1.0, "gold_low": 0.5, "gold_high": 2.0},
        {"method": "PPO", "kl": 2.0, "gold": 3.0, "gold_low": 2.5, "gold_high": 3.5},
    ]
    where, bars = points(show.frontier(methods, by="method"))
    assert where == {"SFT": [(0, 1)], "PPO": [(2, 3)]}
    assert bars["SFT"] == [[[0, 0.5], [0, 2]]]
    methods[1] |= {"kl_low": 1.0, "kl_high": 4.0}
    _, bars = points(show.frontier(methods, by="method"))
    assert [[1, 3], [4, 3]] in bars["PPO"] and len(bars["SFT"]) == 1


def test_a_curve_joins_its_variants_in_the_given_order():
    figure = show.frontier(rows(), curves={"DPO": ["beta 0.1", "beta 1"]})
    where, _ = points(figure)
    assert where == {"DPO": [(7, 5), (2, 3)], "SFT": [(0, 1.5)]}
    lines = {c.get_label(): c[0].get_linestyle() for c in figure.axes[0].containers}
    assert lines["DPO"] != "None" and lines["SFT"] == "None"


def test_the_legend_shows_each_mark_without_its_bars():
    figure = show.frontier(rows(), curves={"DPO": ["beta 0.1", "beta 1"]})
    legend = figure.axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["DPO", "SFT"]
    assert [line.get_marker() for line in legend.get_lines()] == ["s", "o"]
    assert not legend.findobj(LineCollection)


def test_a_variant_along_its_steps_is_a_curve_of_means():
    frame = pd.concat([rows().assign(step=s, kl=rows().kl + s) for s in range(3)])
    frame.loc[frame["step"] == 1, "gold"] = math.nan  # measured at some steps only
    where, _ = points(show.frontier(frame, along="step"))
    assert where["beta 1"] == [(2, 3), (4, 3)]


def test_a_log_axis_and_many_names():
    frame = pd.concat(
        [rows().head(2).assign(variant=f"variant {i}", kl=i + 1.0) for i in range(22)]
    )
    figure = show.frontier(frame, log=True)
    where, _ = points(figure)
    assert len(where) == 22 and figure.axes[0].get_xscale() == "log"
    legend = figure.legends[0].get_window_extent()
    assert legend.y0 >= 0 and legend.x0 >= figure.axes[0].get_window_extent().x1


@pytest.mark.parametrize(
    "data, settings, sentence",
    [
        ([], {}, "no rows"),
        (rows(), {"y": "proxy"}, "no column 'proxy'"),
        (rows().assign(kl=math.nan), {}, "Column 'kl' has no finite number in 6 of 6 rows"),
        (rows(), {"curves": {"DPO": ["beta 2"]}}, "Curve 'DPO' needs 'beta 2'"),
        (rows(), {"log": True}, "Column 'kl' has values of 0 or below"),
        (rows().assign(variant=None), {}, "Column 'variant' has no value in 6 of 6 rows"),
        (pd.concat([rows(), rows()]), {}, "two rows of variant 'SFT', seed 0"),
        (
            pd.concat([rows().assign(step=1)] * 2),
            {"along": "step"},
            "two rows of variant 'SFT', step 1, seed 0",
        ),
        (rows().assign(step=math.nan), {"along": "step"}, "Column 'step' has no value"),
    ],
)
def test_bad_input_to_frontier(data, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        show.frontier(data, **settings)
