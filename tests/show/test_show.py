import math
import warnings
from html.parser import HTMLParser

import matplotlib
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from minirlhf.show import report
from minirlhf.show.strips import (
    escape,
    strip_colour,
    token_strip,
    token_strip_html,
    token_strips,
    visible,
)

NASTY = [
    "<script>alert(1)</script>",
    '" onmouseover="x',
    "a\x1b[31m\x00",
    "\ud800",
    "&amp;",
    " lead",
    "\n",
    "\u202egnp.exe",
]
UNSAFE = {"\x1b", "\x00", "\ud800", "\u202e"}


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.seen = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, {name for name, _ in attributes}))


def draws(figure):
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()


@pytest.mark.parametrize("text", NASTY)
def test_text_cannot_become_markup(text):
    page = token_strip_html([text], [1.0], title=text)
    assert {tag for tag, _ in Tags(page).seen} <= {"p", "b", "br", "span", "wbr"}
    assert all(names <= {"style", "title"} for _, names in Tags(page).seen)
    assert not UNSAFE & set(page + visible(text) + escape(text))
    assert "<" not in escape(text) and '"' not in escape(text)


def test_a_line_of_tokens_may_break_after_each():
    assert token_strip_html(["a", " b", " c"], [0.0, 0.0, 0.0]).count("<wbr>") == 2


def test_colours_have_a_sign_and_nan_is_grey():
    assert strip_colour(math.nan, 1.0) == "#cccccc"
    assert (
        strip_colour(0.0, 1.0) == strip_colour(5.0, 0.0)
        and min(bytes.fromhex(strip_colour(0.0, 1.0)[1:])) > 250
    )
    low, high = (
        tuple(int(strip_colour(v, 1.0)[i : i + 2], 16) for i in (1, 3, 5)) for v in (-1.0, 1.0)
    )
    assert low[0] > low[2] and high[2] > high[0]  # orange has more red, blue more blue


@pytest.mark.parametrize(
    "tokens, values",
    [
        (["one"], [0.0]),
        (["a"] * 200, torch.randn(200)),
        (["x", "y"], [math.nan, 1.0]),
        (["x", "y"], [math.nan] * 2),
        (NASTY, range(8)),
        (["$x$", "\\$"], [1.0, 0.0]),
        (["x", "y"], [-math.inf, 1.0]),
        ([], []),
        (["w" * 300, "a"], [1.0, 0.0]),
    ],
)
def test_strips_draw(tokens, values):
    figure = token_strip(tokens, values, title="a $strip$\x1b")
    draws(figure)
    assert len(figure.axes[0].patches) == len(tokens)  # a box a token
    assert token_strip_html(tokens, values).count("<wbr>") == max(len(tokens) - 1, 0)


def test_what_the_font_lacks_is_drawn_as_a_replacement_and_kept_in_html():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = token_strip(["\u597d", "\U0001f600 ok"], [1.0, 2.0])
        draws(figure)
    assert [text.get_text() for text in figure.axes[0].texts][::2] == ["\ufffd", "\ufffd ok"]
    assert "\u597d" in token_strip_html(["\u597d"], [1.0])


def test_infinity_leaves_the_scale_to_the_others():
    figure = token_strip(["x", "y"], [-math.inf, 1.0])
    colours = [matplotlib.colors.to_hex(patch.get_facecolor()) for patch in figure.axes[0].patches]
    assert colours == [strip_colour(-1.0, 1.0), strip_colour(1.0, 1.0)]


def test_no_word_leaves_the_picture():
    figure = token_strip(["w" * 300, "a"], [1.0, 0.0], width=40)
    assert all(patch.get_x() + patch.get_width() <= 40 for patch in figure.axes[0].patches)


def test_a_strip_needs_one_value_a_token():
    with pytest.raises(ValueError):
        token_strip(["a", "b"], [1.0])


def test_several_strips_share_one_scale_and_say_what_the_colours_mean():
    figure = token_strips({"SFT": (["a", "b"], [1.0, -4.0]), "PPO": (["c"], [2.0])})
    draws(figure)
    boxes, scale = figure.axes
    colours = [matplotlib.colors.to_hex(patch.get_facecolor()) for patch in boxes.patches]
    assert colours == [strip_colour(value, 4.0) for value in (1.0, -4.0, 2.0)]
    assert [text.get_text() for text in scale.texts] == ["-4", "0", "+4"]
    (image,) = scale.images
    ends = [matplotlib.colors.to_hex(image.get_array()[0][i]) for i in (0, -1)]
    assert ends == [strip_colour(-4.0, 4.0), strip_colour(4.0, 4.0)]
    assert [text.get_text() for text in figure.texts] == ["SFT", "PPO"]
    heights = [patch.get_y() for patch in boxes.patches]
    assert heights[0] == heights[1] < heights[2]


def test_the_html_strip_shows_its_scale():
    head, strip = token_strip_html(["a"], [-2.5], title="t").split("<br>")
    assert [colour in head for colour in (strip_colour(-1, 1), strip_colour(1, 1))] == [True, True]
    assert all(f">{end}</span>" in head for end in ("-2.5", "+0", "+2.5"))
    assert strip_colour(-1, 1) in strip and strip_colour(1, 1) not in strip


def test_strips_that_cannot_be_drawn():
    with pytest.raises(ValueError, match="at least one strip"):
        token_strips({})
    with pytest.raises(ValueError, match="Strip 'PPO' has 2 tokens but 1 values"):
        token_strips({"PPO": (["a", "b"], [1.0])})
    assert len(token_strip(["a"], [0.0]).axes) == 1  # all values 0: no scale to show


def page(path, **given):
    methods = [
        {
            "method": m,
            "gold": g,
            "gold_low": g - 0.1,
            "gold_high": g + 0.1,
            "kl": k,
            "length": 20.0,
            "seconds": 3.0,
        }
        for m, g, k in (("SFT", 0.0, 0.0), ("<b>PPO", 1.0, 3.0))
    ]
    history = [{"stage": "ppo", "step": i, "kl": 0.1 * i, "score": 0.0} for i in range(3)]
    samples = [
        {
            "prompt": text,
            "columns": {"SFT": text, NASTY[0]: text},
            "golds": {"SFT": 0.1, NASTY[0]: 0.2},
        }
        for text in NASTY
    ]
    tokens = pd.DataFrame(
        {
            "text": 0,
            "prompt": NASTY[0],
            "position": range(len(NASTY)),
            "token": pd.Series(NASTY, dtype=object),  # a lone surrogate is no pandas string
            "prefix_reward": 0.5,
            "alternatives": [[(text, 0.5)] for text in NASTY],
        }
    )
    return report.write_report(
        path,
        **{
            **dict(
                title="".join(NASTY),
                history=history,
                methods=methods,
                samples=samples,
                tokens={"SFT": tokens, NASTY[0]: tokens},
                times={"ppo": 3.0},
                environment={"seed": NASTY[0]},
                recorded=[{**m, "seed": 0} for m in methods],
            ),
            **given,
        },
    )


def test_the_report_is_self_contained_and_escaped(tmp_path):
    text = page(tmp_path / "report.html").read_text(encoding="utf-8")
    tags = Tags(text).seen
    assert sum(tag == "script" for tag, _ in tags) == 2  # the microscope's own: data and code
    assert not any(name.startswith("on") for _, names in tags for name in names)
    assert not UNSAFE & set(text)
    assert "http" not in text.replace("http-equiv", "")
    assert text.count("data:image/png;base64,") == 2 and "may offend" in text and "Recorded" in text


def test_the_report_opens_with_what_people_look_for(tmp_path):
    long = [
        {"prompt": f"film {i}", "columns": {"SFT": f"text {i}"}, "golds": {"SFT": 0.0}}
        for i in range(7)
    ]
    text = page(tmp_path / "report.html", samples=long).read_text(encoding="utf-8")
    order = [
        "with a gold score of 0.00. After training it is 1.00 with &lt;b&gt;PPO.",
        'alt="gold score against KL"',
        "Before and after",
        "text 4",
        "token by token",
        "<h2>PPO</h2>",
        "All numbers of the methods",
        "Recorded:",
        "More samples",
        "text 5",
        "This run",
    ]
    places = [text.index(words) for words in order]
    assert places == sorted(places)


@pytest.mark.parametrize(
    "methods, said",
    [
        ([("SFT", 0.4), ("PPO", 1.3)], "After training it is 1.30 with PPO."),
        (
            [("SFT", 0.4), ("best-of-4", 1.1), ("PPO", 1.3), ("DPO", 1.4), ("GRPO", 1.5)],
            "After training it is 1.30 with PPO, 1.40 with DPO and 1.50 with GRPO.",
        ),
        ([("SFT", 0.4)], "with a gold score of 0.40. The gold score is"),
    ],
)
def test_the_result_is_one_sentence(methods, said):
    assert said in report._result([{"method": m, "gold": g} for m, g in methods])


def test_a_report_without_tokens_has_no_script(tmp_path):
    text = page(tmp_path / "report.html", tokens=None).read_text(encoding="utf-8")
    assert "script" not in {tag for tag, _ in Tags(text).seen} and "token by token" not in text


def test_a_failing_report_leaves_nothing(tmp_path):
    with pytest.raises(KeyError):
        page(
            tmp_path / "report.html",
            samples=[{"prompt": "p", "columns": {"SFT": "x"}, "golds": {}}],
        )
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fails_leaves_the_old_report(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")
    monkeypatch.setattr("os.replace", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        page(path)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_stage_without_its_metrics_is_left_out(tmp_path):
    text = page(
        tmp_path / "report.html", history=[{"stage": "dpo", "step": 0, "lr": 1.0}]
    ).read_text(encoding="utf-8")
    assert "<h2>DPO</h2>" not in text
