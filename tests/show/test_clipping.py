import math

import pytest

from minirlhf import show


def curves(figure):
    """For A > 0 and A < 0: a list of (ratios, objective, dashed?) of the thick stretches."""
    figure.draw_without_rendering()
    return [
        [
            (list(line.get_xdata()), list(line.get_ydata()), line.get_linestyle() != "-")
            for line in axes.lines
            if line.get_linewidth() > 2
        ]
        for axes in figure.axes
    ]


def test_the_curve_is_dashed_where_the_gradient_is_zero():
    good, bad = curves(show.clip(eps=0.2))
    (rising, flat) = good
    assert not rising[2] and flat[2]
    assert rising[1] == pytest.approx(rising[0]) and rising[0][-1] == pytest.approx(1.2, abs=2e-3)
    assert flat[1] == pytest.approx([1.2] * len(flat[0]), abs=2e-3) and flat[0][-1] == 2
    (flat, falling) = bad
    assert flat[2] and not falling[2]
    assert flat[1] == pytest.approx([-0.8] * len(flat[0]), abs=2e-3)
    assert falling[1] == pytest.approx([-x for x in falling[0]], abs=2e-3)  # no bound on this side


def test_a_higher_upper_end_and_a_dual_clip():
    good, bad = curves(show.clip(eps=0.2, clip_eps_high=0.28, dual_clip=3.0))
    assert good[1][1][-1] == pytest.approx(1.28)
    assert [dashed for *_, dashed in bad] == [True, False, True]
    assert bad[2][0][0] == pytest.approx(3.0, abs=4e-3) and bad[2][1][-1] == -3


@pytest.mark.parametrize("eps, dual", [(3e-4, None), (0.2, None), (0.05, 3.0), (0.5, 3.0)])
def test_tick_labels_do_not_overlap(eps, dual):
    figure = show.clip(eps, dual_clip=dual)
    figure.draw_without_rendering()
    for axes in figure.axes:
        boxes = [t.get_window_extent() for t in axes.get_xticklabels()]
        assert all(a.x1 < b.x0 for a, b in zip(boxes, boxes[1:], strict=False))


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({"eps": -0.1}, "clip_eps is -0.1"),
        ({"dual_clip": 0.5}, "dual_clip is 0.5; it must be above 1"),
        ({"largest_ratio": 1.1}, "above 1.2 to show the clip"),
        ({"largest_ratio": math.inf}, "above 1.2 to show the clip"),
    ],
)
def test_bad_input_to_clip(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        show.clip(**settings)
