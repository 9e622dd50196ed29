"""The table of whole texts, and figures that a notebook shows by themselves."""

import pandas as pd
import pytest
from matplotlib.text import Text

from minirlhf import show
from tests.show.payloads import PAYLOADS
from tests.show.test_injection import Parsed

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


@pytest.mark.parametrize("name", ["$\\frac{$", "a $x$ b", "$^{$ and $_}$", "$5 to $10"])
def test_a_dollar_in_a_name_is_a_dollar(name):
    # matplotlib would read it as a formula: it is lost, or it stops the figure
    series = {name: [0.1, 10.0, 1000.0], "b": [1.0, 2.0, 3.0]}
    for figure in (
        show.lines(series, [1, 10, 100], xlabel=name, log="xy"),
        show.bars({name: 0.4, "b": 1.4}, label=name),
    ):
        figure._repr_png_()
        drawn = [text for text in figure.findobj(Text) if text.get_text()]
        assert name in [text.get_text() for text in drawn]
        assert not [text.get_text() for text in drawn if text.get_parse_math() and "$" in str(text)]


@pytest.mark.parametrize("payload", PAYLOADS)
def test_no_text_of_a_table_becomes_an_element(payload):
    index = pd.Index([payload], name=payload)
    page = Parsed(show.texts(pd.DataFrame({payload: [payload]}, index=index))._repr_html_())
    assert {*page.elements} <= {"table", "thead", "tbody", "tr", "th", "td"}
    assert page.attributes <= {("th", "style"), ("td", "style")} and not page.links


@pytest.mark.parametrize("payload", PAYLOADS)
def test_the_title_of_a_strip_is_text(payload):
    page = Parsed(show.token_strip_html([payload], [0.5], title=payload))
    assert {*page.elements} <= {"p", "b", "br", "span", "wbr"} and not page.links
    assert {name for _, name in page.attributes} <= {"style", "title"}


@pytest.mark.parametrize("name", ["a\ud800b", "\x00", "\u202e"])
def test_a_step_or_a_name_that_does_not_print_is_replaced_in_a_page(name):
    html = show.token_strip_html([name], [0.5], title=name)
    assert "\ufffd" in html and name not in html
