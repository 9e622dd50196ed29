import itertools

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_rgb

from minirlhf import show
from minirlhf.core.exact import World
from minirlhf.show import look

# Viénot, Brettel and Mollon 1999: what red-blind and green-blind eyes see, in linear RGB.
EYES = {
    "normal": np.eye(3),
    "red-blind": np.array([[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]]),
    "green-blind": np.array([[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]]),
}


def lab(colour: str, eye: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of what an eye sees of a colour."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    xyz = to_xyz @ np.clip(eye @ linear, 0, 1) / np.array([0.9505, 1, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("eye", EYES)
def test_colours_differ_for_colour_blind_readers(eye):
    # A distance of 2.3 is just noticeable; 20 is told apart at a glance.
    seen = [lab(colour, EYES[eye]) for colour in (*look.COLOURS, look.GREY)]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 18


def test_every_colour_is_dark_enough_on_white():
    assert all(lab(c, EYES["normal"])[0] < 72 for c in (*look.COLOURS, look.GREY))


def test_thirty_names_have_thirty_styles_and_neighbours_differ_in_grey_print():
    styles = list(look.styles(f"variant {i}" for i in range(30)).values())
    assert len(set(styles)) == 30
    assert all(a.marker != b.marker and a.dashes != b.dashes for a, b in itertools.pairwise(styles))


def test_a_name_has_the_same_colour_in_every_figure():
    # Methods have fixed places, whatever stands beside them; references are grey.
    assert look.styles(["PPO", "DPO"])["PPO"] == look.styles(["GRPO", "x", "ppo", "PPO"])["ppo"]
    assert (
        look.styles(["a", "SFT"])["SFT"].colour
        == look.GREY
        == look.styles(["start"])["start"].colour
    )
    base, sft, _ = look.styles(["base", "SFT", "PPO"]).values()
    assert base.colour == sft.colour == look.GREY and base.dashes != sft.dashes
    base, sft = look.styles(["base", "SFT"]).values()  # two grey lines alone would be hard to tell
    assert base.colour == look.GREY and sft.colour == look.DARK
    assert look.styles(["PPO", "a", "b"])["a"] != look.styles(["PPO", "a", "b"])["PPO"]
    # Other names keep theirs in a figure of some of them, if all of the lesson's are given.
    every = look.styles(["a", "b", "c"])
    assert look.styles(["c"], order=["a", "b", "c"])["c"] == every["c"] != look.styles(["c"])["c"]


def figures():
    frame = pd.DataFrame(
        {"variant": list("aabb"), "seed": [0, 1] * 2, "gold": [1.0, 2, 3, 4], "kl": [1.0, 2, 3, 4]}
    )
    history = frame.assign(step=[0, 0, 0, 0], stage="ppo")
    yield show.lines({"a": [1, 2]})
    yield show.bars({"a": 1.0})
    yield show.curves(history, columns=["kl"])
    yield show.differences(frame, value="gold")
    yield show.frontier(frame)
    yield show.clip()
    yield show.world(World.random(2, 2))
    yield show.token_strips({"a": (["x"], [1.0])})


def test_a_dark_style_of_the_reader_leaves_the_page_white_and_the_text_dark(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with matplotlib.style.context("dark_background"):
        before = dict(matplotlib.rcParams)
        for figure in figures():
            assert to_rgb(figure.get_facecolor()) == (1, 1, 1)
            assert figure.get_facecolor()[3] == 1  # opaque
            figure.draw_without_rendering()
            texts = [text for text in figure.findobj(matplotlib.text.Text) if text.get_text()]
            assert texts and all(lab(text.get_color(), EYES["normal"])[0] < 65 for text in texts)
        assert dict(matplotlib.rcParams) == before  # and the reader's settings are back
    assert not list(tmp_path.iterdir())  # nothing writes a file


def test_numbers_come_from_lists_tensors_arrays_and_columns():
    grad = torch.tensor([1.0, 2.0], requires_grad=True)
    for values in ([1, 2], (1.0, 2.0), grad, np.array([1, 2]), pd.Series([1, 2]), list(grad)):
        assert look.numbers(values, "x").tolist() == [1.0, 2.0]
    for values, sentence in (
        ([], "x has no values."),
        ([float("nan")], "x has no finite number."),
        (["a"], "not a number"),
        ([[1, 2], [3]], "not a number"),
    ):
        with pytest.raises(ValueError, match=sentence):
            look.numbers(values, "x")


def test_long_names_are_wrapped():
    assert (
        max(map(len, look.wrapped("a rather long name of a variant, " * 3, 30).split("\n"))) <= 30
    )
