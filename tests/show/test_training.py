import math

import pandas as pd
import pytest

from minirlhf import show
from minirlhf.runtime import History


def two_runs():
    """gold at every second step; the second run ends early and is 2 higher."""
    return [
        History(
            {"stage": "ppo", "step": i} | ({"gold": i + up} if i % 2 == 0 else {}) for i in range(n)
        )
        for n, up in ((9, 0.0), (6, 2.0))
    ]


def test_a_history_is_drawn_at_the_steps_that_have_the_metric():
    history = History({"stage": "ppo", "step": i, "kl": i / 2, "score": -i} for i in range(5))
    figure = show.curves(history, stage="ppo", columns=["kl", "score"])
    assert [axes.get_title() for axes in figure.axes] == ["kl, nats per response", "score"]
    (line,) = figure.axes[0].lines
    assert list(line.get_ydata()) == [0, 0.5, 1, 1.5, 2]
    (line,) = show.curves(two_runs()[0], stage="ppo", columns=["gold"]).axes[0].lines
    assert list(line.get_xdata()) == [0, 2, 4, 6, 8] and list(line.get_ydata()) == [0, 2, 4, 6, 8]


@pytest.mark.parametrize("form", ["histories", "frame"])
def test_several_runs_are_their_mean_and_range_at_common_steps(form):
    # mean: 1 above the first run; range: from 0 to 2 above it; at steps 0, 2, 4, which both have
    data = two_runs()
    if form == "frame":
        data = pd.concat([pd.DataFrame(list(run)).assign(seed=s) for s, run in enumerate(data)])
    figure = show.curves(data, stage="ppo", columns=["gold"])
    (axes,) = figure.axes
    assert list(axes.lines[0].get_xdata()) == [0, 2, 4]
    assert list(axes.lines[0].get_ydata()) == [1, 3, 5]
    assert axes.collections[0].get_paths()[0].get_extents().bounds == (0, 0, 4, 6)
    assert figure.texts[0].get_text() == "line: mean of 2 runs; band: lowest to highest"


def frame_of_variants():
    return pd.DataFrame(
        [
            {"variant": v, "seed": s, "stage": v, "step": t, "score": t * up + s}
            for v, up in (("grpo", 1), ("ppo", 2))
            for s in range(3)
            for t in range(4)
        ]
    )


def test_every_variant_has_its_own_line_and_the_same_colour_in_all_panels():
    frame = frame_of_variants().assign(kl=1.0)
    figure = show.curves(frame, columns=["score", "kl"], labels={"score": "proxy"})
    score, kl = figure.axes
    assert {line.get_label(): list(line.get_ydata()) for line in score.lines} == {
        "grpo": [1, 2, 3, 4],
        "ppo": [1, 3, 5, 7],
    }
    assert [line.get_color() for line in score.lines] == [line.get_color() for line in kl.lines]
    assert score.get_title() == "proxy" and len(score.collections) == 2
    assert [text.get_text() for text in figure.legends[0].texts] == ["grpo", "ppo"]


def test_panels_wrap_and_seeds_without_band():
    frame = frame_of_variants().query("variant == 'ppo' and seed == 0").assign(a=1.0, b=2.0, c=3.0)
    figure = show.curves(frame, stage="ppo", columns=["score", "a", "b", "c"], across=2)
    assert len(figure.axes) == 4 and not figure.axes[0].collections and not figure.texts
    assert [axes.get_xlabel() for axes in figure.axes] == ["", "", "step", "step"]


def test_a_step_that_is_nan_in_one_run_is_left_out():
    frame = frame_of_variants().query("variant == 'ppo'")
    frame.loc[(frame["seed"] == 1) & (frame["step"] == 3), "score"] = math.nan
    (line,) = show.curves(frame, stage="ppo", columns=["score"]).axes[0].lines
    assert list(line.get_xdata()) == [0, 1, 2]


@pytest.mark.parametrize(
    "data, settings, sentence",
    [
        ([], {}, "There are no rows to draw"),
        (two_runs(), {"stage": "dpo"}, "No row of stage 'dpo'; there are 'ppo'"),
        (two_runs(), {"columns": ["glod"]}, "No row of stage 'ppo' has 'glod'"),
        (two_runs(), {"columns": []}, "at least one metric"),
        (two_runs(), {"x": "tokens"}, "no column 'tokens'"),
        (two_runs()[0] + two_runs()[0], {}, "Two rows of one run have the same step"),
        (
            [two_runs()[0][:1], two_runs()[1][2:]],
            {},
            "no common step at which 'gold' is logged",
        ),
    ],
)
def test_bad_input_to_curves(data, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        show.curves(data, **{"stage": "ppo", "columns": ["gold"], **settings})


def test_one_string_is_one_metric_and_a_row_without_a_name_is_refused():
    frame = frame_of_variants()
    assert len(show.curves(frame, columns="score").axes) == 1
    frame.loc[0, "variant"] = None
    with pytest.raises(ValueError, match="Column 'variant' has no value in 1 of 24 rows"):
        show.curves(frame, columns="score")
    mixed = pd.concat([frame_of_variants(), pd.DataFrame(list(two_runs()[0]))])
    with pytest.raises(ValueError, match="Column 'seed' has no value"):
        show.curves(mixed, columns="score", by=None)
    with pytest.raises(ValueError, match="Two rows of one run have the same step"):
        show.curves(pd.concat([frame_of_variants()] * 2), columns="score")
