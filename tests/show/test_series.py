import math

import pytest
import torch
from matplotlib.figure import Figure

from minirlhf import show
from minirlhf.show.series import spaced


def drawn(figure, panel=0):
    """Label -> (x, y) of the lines of one panel."""
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()
    lines = figure.axes[panel].get_lines()
    return {line.get_label(): tuple(map(list, line.get_data())) for line in lines}


def notes(figure):
    return [text.get_text() for text in figure.texts]


def test_lines_stand_at_their_points():
    figure = show.lines({"a": [1, 2, 3], "b": torch.tensor([3.0, 2, 1])}, [10, 20, 40], xlabel="n")
    assert drawn(figure) == {"a": ([10, 20, 40], [1, 2, 3]), "b": ([10, 20, 40], [3, 2, 1])}
    assert figure.axes[0].get_xlabel() == "n"
    assert [text.get_text() for text in figure.legends[0].texts] == ["a", "b"]
    assert drawn(show.lines({"a": [5, 6]}))["a"] == ([0, 1], [5, 6])
    assert drawn(show.lines({"a": [5, 6], "b": [7]}, {"a": [1, 2], "b": [3]}))["b"] == ([3], [7])


def test_runs_are_drawn_as_their_mean_and_a_band():
    # Three runs of two points: means 2 and 4; range 1 to 3 and 0 to 8.
    runs = torch.tensor([[1.0, 0.0], [2.0, 4.0], [3.0, 8.0]])
    figure = show.lines({"a": runs})
    assert drawn(figure)["a"] == ([0, 1], [2, 4])
    (band,) = figure.axes[0].collections
    assert band.get_paths()[0].get_extents().bounds == (0, 0, 1, 8)
    assert "line: mean of 3 runs; band: lowest to highest" in notes(figure)
    # From the first to the third quartile: 1.5 to 2.5 and 2 to 6.
    figure = show.lines({"a": runs}, spread=(0.25, 0.75))
    (band,) = figure.axes[0].collections
    assert band.get_paths()[0].get_extents().bounds == (0, 1.5, 1, 4.5)
    assert "band: from 25% to 75% of the runs" in notes(figure)[0]


def test_bands_may_be_given():
    figure = show.lines({"a": [1, 2], "b": [1, 1]}, bands={"a": ([0, 1], [2, 5])})
    (band,) = figure.axes[0].collections
    assert band.get_paths()[0].get_extents().bounds == (0, 0, 1, 5)


def test_bands_may_be_given_panel_by_panel():
    figure = show.lines(
        {"bias": {"V": [1, 2]}, "noise": {"V": [3, 4]}},
        bands={"bias": {"V": ([0, 1], [2, 5])}, "noise": {"V": ([2, 3], [4, 5])}},
    )
    for axes, low, height in zip(figure.axes, (0, 2), (5, 3), strict=True):
        (band,) = axes.collections
        assert band.get_paths()[0].get_extents().bounds == (0, low, 1, height)


def test_a_band_belongs_to_a_series_that_has_the_name_of_its_panel():
    band = ([0, 1], [2, 5])
    for series in ({"clip": [1, 2]}, {"clip": {"clip": [1, 2]}}):
        figure = show.lines(series, bands={"clip": band}, title="clip")
        (drawn,) = figure.axes[0].collections
        assert drawn.get_paths()[0].get_extents().bounds == (0, 0, 1, 5)


def test_panels_have_their_own_lines_options_and_one_legend():
    figure = show.lines(
        {"bias": {"V": [1, 2]}, "noise": {"V": [3, 4], "no V": [5, 6]}},
        ylabel={"bias": "nats"},
        log={"noise": "y"},
        reference={"noise": {"no critic": 4.5}},
    )
    assert drawn(figure, 0) == {"V": ([0, 1], [1, 2])}
    assert set(drawn(figure, 1)) == {"V", "no V", "no critic"}
    bias, noise = figure.axes
    assert (bias.get_title(), noise.get_title()) == ("bias", "noise")
    assert (bias.get_yscale(), noise.get_yscale()) == ("linear", "log")
    assert (bias.get_ylabel(), noise.get_ylabel()) == ("nats", "")
    assert [t.get_text() for t in figure.legends[0].texts] == ["V", "no V", "no critic"]
    assert bias.lines[0].get_color() == noise.lines[0].get_color()


def test_reference_lines_and_limits():
    figure = show.lines({"a": [1, 2]}, reference=0.5, vertical={"here": 1}, ylim=(0, 3))
    assert figure.axes[0].get_ylim() == (0, 3)
    assert drawn(figure)["here"][0] == [1, 1]
    assert [0.5, 0.5] in [list(line.get_ydata()) for line in figure.axes[0].lines]


def test_few_steps_of_the_same_size_have_a_tick_each():
    def ticks(x):
        return show.lines({"a": range(len(x))}, x).axes[0].get_xticks().tolist()

    assert ticks([0.5, 1, 1.5, 2]) == [0.5, 1, 1.5, 2]
    assert ticks([0.1, 0.11, 2]) != [0.1, 0.11, 2]  # two names would overlap
    assert all(tick == round(tick) for tick in ticks([1, 2, 3]))


def test_log_axes_have_plain_numbers():
    figure = show.lines({"a": [0.5, 5, 50]}, [4, 64, 1024], log="xy")
    drawn(figure)
    axes = figure.axes[0]
    assert axes.get_xscale() == axes.get_yscale() == "log"
    assert [t.get_text() for t in axes.get_xticklabels()] == ["4", "64", "1024"]
    assert {"1", "10"} <= {t.get_text() for t in axes.get_yticklabels()}


def test_names_at_the_ends_do_not_overlap():
    series = {f"name {i}": [0.0, 1 + i / 1000] for i in range(5)} | {"far": [0.0, 0.2]}
    figure = show.lines(series, names="end")
    drawn(figure)
    assert not figure.legends
    texts = figure.axes[0].texts
    assert [t.get_text() for t in texts] == list(series)
    boxes = sorted((t.get_window_extent() for t in texts), key=lambda box: box.y0)
    assert all(below.y1 <= above.y0 for below, above in zip(boxes, boxes[1:], strict=False))
    # ... and stand in the order of the lines' ends
    assert [t.get_position()[1] for t in texts[:5]] == sorted(
        t.get_position()[1] for t in texts[:5]
    )


def test_spaced_moves_names_as_little_as_needed():
    assert spaced([0.0, 1.0], 0.5) == [0.0, 1.0]
    # Three at 0, a gap of 1: they spread around their mean.
    assert spaced([0.0, 0.0, 0.0], 1.0) == [-1.0, 0.0, 1.0]
    assert spaced([5.0, 4.8, 0.0], 1.0) == pytest.approx([5.4, 4.4, 0.0])


def test_a_gap_is_left_where_a_value_is_nan():
    x, y = drawn(show.lines({"a": [1, math.nan, 3]}))["a"]
    assert y[0] == 1 and math.isnan(y[1]) and y[2] == 3


@pytest.mark.parametrize(
    "series, settings, sentence",
    [
        ({}, {}, "at least one name"),
        ({"a": []}, {}, "Series 'a' has no values"),
        ({"a": [math.nan]}, {}, "Series 'a' has no finite number"),
        ({"a": [1, 2]}, {"x": [1]}, "Series 'a' has 2 points but 1 x values"),
        ({"a": [1, 2]}, {"x": [1, math.nan]}, "The x of 'a' has a value that is NaN"),
        ({"a": [1, 2]}, {"x": {"b": [1, 2]}}, "no x for series 'a'"),
        ({"a": [1, 2]}, {"bands": {"a": ([1], [2])}}, "2 points but 1 lower ends"),
        (
            {"a": [1, 2]},
            {"bands": {"b": ([0, 1], [2, 3])}},
            "bands has 'b'; it must name one of a",
        ),
        (
            {"bias": {"V": [1, 2]}, "noise": {"W": [1, 2]}},
            {"bands": {"bias": {"W": ([0, 1], [2, 3])}}},
            "bands has 'W'; it must name one of V",
        ),
        (
            {"bias": {"V": [1, 2]}},
            {"bands": {"nois": {"V": ([0, 1], [2, 3])}}},
            "bands has 'nois'; it must name one of bias",
        ),
        ({"a": [0, 2]}, {"log": "y"}, "0 or below, which a log axis cannot show"),
        ({"a": [1, 2]}, {"log": "x"}, "The x of 'a' has values of 0 or below"),
        ({"a": [1]}, {"names": "somewhere"}, 'it must be "legend" or "end"'),
        ({"a": torch.zeros(1, 2, 3)}, {}, "3 dimensions"),
        ({"panel": {"a": [1]}, "b": [1]}, {}, "A panel needs a dict"),
    ],
)
def test_bad_input_to_lines(series, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        show.lines(series, **settings)
