import math

import pandas as pd
import pytest

from minirlhf import experiments, show
from minirlhf.show import look


def runs(**by_variant):
    return pd.DataFrame(
        [
            {"variant": name.replace("_", " "), "seed": seed, "gold": value}
            for name, values in by_variant.items()
            for seed, value in enumerate(values)
        ]
    )


def test_welch_matches_hand_computation():
    # Means 2 and 6, variance 2 each: se^2 = 2/2 + 2/2 = 2; df = 4 / (1/1 + 1/1) = 2, t = 4.302653
    difference, low, high = show.difference_of_means([5, 7], [1, 3])
    assert difference == 4
    assert (low, high) == pytest.approx((4 - 4.302653 * 2**0.5, 4 + 4.302653 * 2**0.5))
    # Variances 1 and 1, three runs each: se^2 = 2/3; df = (4/9) / (1/18 + 1/18) = 4, t = 2.776445
    difference, low, high = show.difference_of_means([4, 5, 6], [1, 2, 3])
    half = 2.776445 * (2 / 3) ** 0.5
    assert (difference, low, high) == pytest.approx((3, 3 - half, 3 + half))
    # One group without scatter counts with n - 1 of the other: se^2 = 1/3, df = 2
    difference, low, high = show.difference_of_means([4, 5, 6], [1, 1, 1])
    assert high - difference == pytest.approx(4.302653 / 3**0.5)
    assert show.difference_of_means([2.0], [1, 3]) == (0, None, None)
    assert show.difference_of_means([3, 3], [1, 1]) == (2, None, None)


def test_the_baseline_is_all_runs_of_all_repeats():
    # Baseline: 1, 2, 3 and 2, 3, 4: mean 2.5, variance 5.5 / 5 = 1.1.
    # The variant: 4, 5, 6: mean 5, variance 1.
    # se^2 = 1/3 + 1.1/6 = 31/60; df = (31/60)^2 / [(1/3)^2 / 2 + (1.1/6)^2 / 5]
    df = runs(other=[4, 5, 6], as_it_is=[1, 2, 3], once_more=[2, 3, 4])
    table, baseline = show.difference_table(df, value="gold", repeats=["as it is", "once more"])
    assert baseline == {"as it is": (1, 2, 3), "once more": (2, 3, 4)}
    assert [row.variant for row in table] == ["as it is", "once more", "other"]
    assert [row.difference for row in table] == [-0.5, 0.5, 2.5]
    assert [row.mean for row in table] == [2, 3, 5]
    assert table[0].low is None and table[1].high is None
    freedom = (31 / 60) ** 2 / ((1 / 3) ** 2 / 2 + (1.1 / 6) ** 2 / 5)
    assert 4.28 < freedom < 4.29
    t = (table[2].high - 2.5) / (31 / 60) ** 0.5
    assert 2.570582 < t < 2.776445  # between the t of 5 and of 4 degrees of freedom
    assert t == pytest.approx(2.705, abs=2e-3)


def artists(figure):
    figure.draw_without_rendering()
    axes = figure.axes[0]
    dots = [
        line
        for line in axes.lines
        if line.get_markerfacecolor() == "white" and len(line.get_xdata())
    ]
    return axes, dots


def legend_of(figure):
    return texts_of(figure.legends[0].texts)


def table_of(figure):
    figure.draw_without_rendering()
    (numbers,) = [
        a for a in figure.axes[0].child_axes if "mean, difference" in texts_of(a.get_yticklabels())
    ]
    return texts_of(numbers.get_yticklabels())[1:]


def texts_of(labels):
    return [label.get_text() for label in labels]


def test_dots_band_and_interval_stand_where_the_numbers_are():
    df = runs(other=[4, 5, 6], as_it_is=[1, 2, 3], once_more=[2, 3, 4])
    figure = show.differences(df, value="gold", repeats=["as it is", "once more"], label="score")
    axes, dots = artists(figure)
    assert [t.get_text() for t in axes.get_yticklabels()] == ["as it is", "once more", "other"]
    assert [list(line.get_xdata()) for line in dots] == [
        [-1.5, -0.5, 0.5],
        [-0.5, 0.5, 1.5],
        [1.5, 2.5, 3.5],
    ]
    (band,) = [patch for patch in axes.patches if patch.get_width()]
    assert (band.get_x(), band.get_x() + band.get_width()) == (-1.5, 1.5)
    table, _ = show.difference_table(df, value="gold", repeats=["as it is", "once more"])
    ends = [list(line.get_xdata()) for line in axes.lines if len(line.get_xdata()) == 2]
    assert [table[2].low, table[2].high] in ends
    means = [line for line in axes.lines if line.get_markersize() == 7.5 and len(line.get_xdata())]
    assert [float(line.get_xdata()[0]) for line in means] == [-0.5, 0.5, 2.5]
    assert [line.get_color() for line in means] == [look.GREY, look.GREY, look.COLOURS[0]]
    assert {line.get_marker() for line in means} == {"o"}
    numbers = [t.get_text() for t in figure.findobj(lambda a: hasattr(a, "get_text"))]
    assert f"5.00  +2.50 [{table[2].low:+.2f}, {table[2].high:+.2f}]" in numbers
    assert table_of(figure)[:2] == ["2.00", "3.00"]
    both = "'as it is' and 'once more'"
    assert axes.get_xlabel() == f"score, difference from the mean of {both}"
    assert legend_of(figure) == [
        "one run",
        "mean of the runs",
        "95 % interval over seeds",
        f"range of the 6 runs of {both}",
    ]
    assert figure.legends[0].legend_handles[1].get_marker() == "o"


def test_the_baseline_is_the_first_variant_by_default_and_may_have_one_seed():
    figure = show.differences(runs(a=[1.0], b=[2.0]), value="gold")
    axes, dots = artists(figure)
    assert [list(line.get_xdata()) for line in dots] == [[0], [1]]
    assert axes.get_xlabel() == "gold, difference from the mean of 'a'"
    assert legend_of(figure) == ["one run", "mean of the runs"]  # no interval, and no range


def test_baseline_runs_with_long_names_are_called_baseline():
    df = runs(**{f"as_it_is,_a_rather_long_name_{i}": [i, i + 1] for i in range(2)}, other=[5, 7])
    figure = show.differences(df, value="gold", repeats=df.variant.unique()[:2])
    assert figure.axes[0].get_xlabel() == "gold, difference from the mean of the baseline runs"
    assert legend_of(figure)[-1] == "range of the 4 baseline runs"
    assert table_of(figure)[:2] == ["0.5  baseline", "1.5  baseline"]


def test_variants_can_be_chosen_sorted_and_given_intervals():
    df = runs(a=[1, 1.5], b=[9, 9.5], c=[3, 3.5], d=[5, 5.5])
    figure = show.differences(
        df,
        value="gold",
        variants=["b", "c"],
        sort=True,
        intervals={"c": (1.0, 4.0)},
        interval_of="95 % interval over prompts and seeds",
    )
    axes, _ = artists(figure)
    assert [t.get_text() for t in axes.get_yticklabels()] == ["a", "c", "b"]
    assert [1.0, 4.0] in [list(line.get_xdata()) for line in axes.lines]
    assert "95 % interval over prompts and seeds" in legend_of(figure)


OVER_BOTH = "95 % interval over prompts and seeds"


def test_a_variant_without_a_given_interval_has_none():
    df = runs(a=[1, 1.5], b=[9, 9.5], c=[3, 3.5])
    table, _ = show.difference_table(df, value="gold", intervals={"c": (1.0, 4.0)})
    assert [(row.low, row.high) for row in table] == [(None, None), (None, None), (1.0, 4.0)]
    table, _ = show.difference_table(df, value="gold", intervals={"c": (math.nan, math.nan)})
    assert table[2].low is None
    for given in ({"intervals": {"c": (1.0, 4.0)}}, {"interval_of": OVER_BOTH}):
        with pytest.raises(ValueError, match="`intervals` and `interval_of` belong together"):
            show.differences(df, value="gold", **given)
    with pytest.raises(ValueError, match="interval of 'c' must be"):
        show.difference_table(df, value="gold", intervals={"c": (4.0, 1.0)})


def test_a_table_of_differences_may_be_the_intervals_if_its_baseline_is_the_same():
    recorded = experiments.results("ablations", "leash")
    repeats = ["as it is", "kl_coef 0.5"]
    both = experiments.difference_over_prompts_and_seeds(recorded, "gold", repeats)
    settings = {"value": "gold", "repeats": repeats}
    table, _ = show.difference_table(recorded, intervals=both, **settings)
    assert [row.low for row in table[2:]] == both["low"].tolist()
    show.differences(recorded, intervals=both, interval_of=OVER_BOTH, **settings)
    other = experiments.difference_over_prompts_and_seeds(recorded, "gold", "as it is")
    with pytest.raises(ValueError, match="another baseline. Give the table the baseline"):
        show.difference_table(recorded, intervals=other, **settings)


def test_a_bound_that_is_not_zero_is_not_printed_as_zero():
    df = runs(a=[1.0, 1.0], b=[2.0, 2.1])
    given = {"value": "gold", "interval_of": OVER_BOTH}
    figure = show.differences(df, intervals={"b": (-0.0039, 2.0)}, **given)
    assert table_of(figure)[1] == "2.050  +1.050 [-0.004, +2.000]"
    figure = show.differences(df, intervals={"b": (-2.0, -1e-9)}, **given)
    assert table_of(figure)[1] == "2.05  +1.05 [-2.00, +0.00]"  # never -0.00


def test_one_string_is_one_name_and_by_names_the_column():
    df = runs(ab=[1.0, 2.0], cd=[3.0, 4.0], ef=[5.0, 6.0]).rename(columns={"variant": "method"})
    table, baseline = show.difference_table(
        df, value="gold", by="method", repeats="ab", variants="cd"
    )
    assert [row.variant for row in table] == ["ab", "cd"] and list(baseline) == ["ab"]
    figure = show.differences(df, value="gold", by="method", variants="ef")
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["ab", "ef"]


def test_twenty_three_variants_with_long_names_do_not_overlap():
    df = runs(**{f"a_variant_with_a_rather_long_name,_{i}": [i, i + 1, i + 3] for i in range(23)})
    figure = show.differences(df, value="gold")
    axes, _ = artists(figure)
    boxes = [t.get_window_extent() for t in axes.get_yticklabels()]
    assert all(above.y0 >= below.y1 for above, below in zip(boxes, boxes[1:], strict=False))
    assert min(box.x0 for box in boxes) >= 0
    legend = figure.legends[0].get_window_extent()
    assert legend.y0 >= axes.get_window_extent().y1


@pytest.mark.parametrize(
    "df, settings, sentence",
    [
        (runs(a=[1.0]).iloc[:0], {}, "There are no rows to draw"),
        (runs(a=[1.0]).drop(columns="seed"), {}, "no column 'seed'"),
        (
            runs(a=[1.0]),
            {"value": "proxy"},
            "no column 'proxy'; its columns are 'variant', 'seed', 'gold'",
        ),
        (runs(a=[1.0], b=[math.nan]), {}, "1 of 2 rows; the first is of 'b'"),
        (runs(a=[1.0]), {"repeats": ["b"]}, "no variant 'b'; there are 'a'"),
        (runs(a=[1.0]), {"variants": ["c"]}, "no variant 'c'"),
        (runs(a=[1.0]), {"intervals": {"d": (0, 1)}, "interval_of": "x"}, "no variant 'd'"),
        (pd.concat([runs(a=[1.0])] * 2), {}, "two rows of variant 'a', seed 0"),
        (runs(a=[1.0]).assign(variant=None), {}, "Column 'variant' has no value in 1 of 1 rows"),
        (runs(a=[1.0, 2.0], b=[1.0, 2.0]), {"repeats": ["a", "b"]}, "'a' and 'b' have the same"),
    ],
)
def test_bad_input_to_differences(df, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        show.differences(df, **{"value": "gold", **settings})


def test_numbers_have_as_many_decimals_as_the_differences_need():
    def texts(df):
        figure = show.differences(df, value="gold")
        return [t.get_text() for t in figure.findobj(lambda a: hasattr(a, "get_text"))]

    assert "0.690  +0.010" in texts(runs(a=[0.68], b=[0.69], c=[0.60]))
    assert "2.50  +1.50" in texts(runs(a=[1.0], b=[2.5]))
    assert "90  +80" in texts(runs(a=[10.0], b=[90.0]))
    assert "1.00  +0.00" in texts(runs(a=[1.0], b=[1.0]))
