"""The table of whole texts, and figures that a notebook shows by themselves."""

import pandas as pd
import pytest

from minirlhf import show

LONG = "a very long review " * 10
TABLE = pd.DataFrame(
    {"SFT": [LONG, "<script>x</script>"], "PPO": ["good\nfilm", "\u202eevil"]},
    index=pd.Index(["film <a>", "film b"], name="prompt"),
)


def test_no_text_is_cut_off_and_all_text_is_escaped():
    html = show.texts(TABLE)._repr_html_()
    assert LONG in html and "&lt;script&gt;x" in html and "film &lt;a&gt;" in html
    assert "<script" not in html and "\u202e" not in html
    assert html.count("<tr>") == 3 and ">prompt</th>" in html


def test_plain_text_has_a_line_per_text():
    lines = repr(show.texts(TABLE)).splitlines()
    assert lines[0] == f"film <a> | SFT: {LONG}" and len(lines) == 4
    assert lines[1] == "film <a> | PPO: good\ufffdfilm"  # a line end in a text breaks no line


def test_an_empty_table_is_refused():
    with pytest.raises(ValueError, match="no texts"):
        show.texts(TABLE.iloc[:0])


@pytest.mark.parametrize(
    "figure", [show.clip(), show.token_strip(["a"], [1.0])], ids=["lines", "strips"]
)
def test_a_notebook_shows_a_figure_without_any_magic(figure):
    png = figure._repr_png_()
    width, height = (int.from_bytes(png[i : i + 4], "big") for i in (16, 20))
    inches = figure.get_size_inches() * figure.dpi
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert (width, height) == tuple(int(x) for x in inches)
