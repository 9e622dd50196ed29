import math

import pandas as pd
import pytest

from minirlhf import experiments, show


def rectangles(figure):
    figure.draw_without_rendering()
    return [patch for patch in figure.axes[0].patches if patch.get_width() and patch.get_height()]


def test_a_bar_per_name():
    figure = show.bars({"SFT": 0.5, "PPO": 2.0}, label="gold", intervals={"PPO": (1.5, 3.0)})
    assert [bar.get_height() for bar in rectangles(figure)] == [0.5, 2.0]
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["SFT", "PPO"]
    (interval,) = figure.axes[0].collections
    assert interval.get_segments()[0].tolist() == [[1, 1.5], [1, 3.0]]
    assert figure.axes[0].get_ylabel() == "gold"
    assert not figure.legends


def test_a_list_of_runs_is_a_bar_at_the_mean_and_a_dot_per_run():
    figure = show.bars({"PPO": [1.0, 2.0, 6.0], "DPO": [1.0]})
    assert [bar.get_height() for bar in rectangles(figure)] == [3.0, 1.0]
    (dots,) = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert list(dots.get_ydata()) == [1, 2, 6] and list(dots.get_xdata()) == [0, 0, 0]


def test_a_table_with_low_and_high_is_one_bar_per_row_with_its_interval():
    runs = pd.DataFrame(
        [
            {"variant": v, "step": t, "seed": s, "gold": g + s + t}
            for v, g in (("PPO", 1.0), ("DPO", 2.0))
            for s in (0, 2)
            for t in (0, 10)
        ]
    )
    first = runs[runs["step"] == 0]
    figure = show.bars(experiments.mean_over_seeds(first, "gold"))
    assert [bar.get_height() for bar in rectangles(figure)] == [2.0, 3.0]
    ends = [c.get_segments()[0][:, 1].tolist() for c in figure.axes[0].collections]
    assert ends == [[1.0, 3.0], [2.0, 4.0]]
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["PPO", "DPO"]
    figure = show.bars(experiments.mean_over_seeds(runs, "gold", by=["variant", "step"]))
    assert sorted(bar.get_height() for bar in rectangles(figure)) == [2.0, 3.0, 12.0, 13.0]
    assert len(figure.axes[0].collections) == 4
    with pytest.raises(ValueError, match="has columns low and high; leave `intervals` out"):
        show.bars(experiments.mean_over_seeds(first, "gold"), intervals={"PPO": (0, 1)})
    missing = pd.DataFrame({"x": [1.0], "low": [math.nan], "high": [math.nan]}, index=["a"])
    assert not show.bars(missing).axes[0].collections


@pytest.mark.parametrize("form", ["dict", "series", "frame"])
def test_groups_have_one_colour_per_inner_name(form):
    nested = {"planted": {"value": 0.25, "surprisal": 0.75}, "own": {"value": 0.5}}
    if form == "series":
        flat = {(group, name): v for group, cells in nested.items() for name, v in cells.items()}
        nested = pd.Series(flat)
    elif form == "frame":
        nested = pd.DataFrame(nested).T
    figure = show.bars(nested, reference={"by chance": 0.1})
    found = rectangles(figure)
    assert sorted(bar.get_height() for bar in found) == [0.25, 0.5, 0.75]
    same = [bar.get_facecolor() for bar in found if bar.get_height() in (0.25, 0.5)]
    assert same[0] == same[1] and len({bar.get_facecolor() for bar in found}) == 2
    assert {t.get_text() for t in figure.legends[0].texts} == {"value", "surprisal", "by chance"}
    edges = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for bar in found)
    assert all(left[1] <= right[0] for left, right in zip(edges, edges[1:], strict=False))


@pytest.mark.parametrize("horizontal", [True, False])
def test_the_parts_of_a_stacked_bar_follow_one_another(horizontal):
    held = {
        "sampling": {"weights": 3.0, "cache": 2.0},
        "training": {"weights": 1.0, "moments": 4.0},
    }
    figure = show.bars(held, stacked=True, horizontal=horizontal)
    ends = {}
    for bar in rectangles(figure):
        (low, high), (left, right) = bar.get_bbox().intervaly, bar.get_bbox().intervalx
        along, across = ((left, right), (low, high)) if horizontal else ((low, high), (left, right))
        ends.setdefault(round(sum(across) / 2), []).append(along)
    assert ends == {0: [(0, 3), (3, 5)], 1: [(0, 1), (1, 5)]}
    assert {t.get_text() for t in figure.legends[0].texts} == {"weights", "cache", "moments"}


@pytest.mark.parametrize(
    "values, intervals",
    [
        ({"a": 1.0}, None),
        ({"a": {"b": -1.0}}, None),
        ({"a": {"b": [1.0, 2.0]}}, None),
        ({"a": {"b": 1.0}}, {"a": {"b": (0, 2)}}),
    ],
)
def test_only_groups_of_single_values_are_stacked(values, intervals):
    with pytest.raises(ValueError, match="Only groups of single values"):
        show.bars(values, intervals=intervals, stacked=True)


def test_many_or_long_names_stand_at_the_left():
    figure = show.bars({f"a name of some length, number {i}": float(i) for i in range(1, 23)})
    assert [bar.get_width() for bar in rectangles(figure)] == list(map(float, range(1, 23)))
    boxes = [t.get_window_extent() for t in figure.axes[0].get_yticklabels()]
    assert all(above.y0 >= below.y1 for above, below in zip(boxes, boxes[1:], strict=False))
    assert figure.axes[0].get_ylim()[0] > figure.axes[0].get_ylim()[1]  # the first name on top


@pytest.mark.parametrize(
    "values, intervals, sentence",
    [
        ({}, None, "at least one value"),
        ({"a": math.nan}, None, "The value of 'a' has no finite number"),
        ({"a": [1.0, math.nan]}, None, "The value of 'a' has a value that is NaN"),
        ({"a": {}}, None, "either a value for every name or a dict"),
        ({"a": {"b": 1.0}, "c": 2.0}, None, "either a value for every name or a dict"),
        ({"a": 1.0}, {"b": (0, 1)}, "an interval for 'b' but no value"),
        ({"a": 1.0}, {"a": (2, 1)}, "low <= high"),
        ({"a": 1.0}, {"a": (1, 2, 3)}, "must be \\(low, high\\)"),
    ],
)
def test_bad_input_to_bars(values, intervals, sentence):
    with pytest.raises(ValueError, match=sentence):
        show.bars(values, intervals=intervals)
