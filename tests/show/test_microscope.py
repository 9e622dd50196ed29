import json
import math
import re
from html.parser import HTMLParser

import pandas as pd
import pytest

from minirlhf.runtime import ROOT
from minirlhf.show import Microscope, microscope, strip_colour
from minirlhf.show.microscope_columns import KNOWN
from minirlhf.show.microscope_data import clean, microscope_data, to_json
from minirlhf.show.strips import SPAN

HOSTILE = [
    "<script>hacked = 1</script>",
    "</script><img src=x onerror=hacked=1>",
    "<!--<script>",
    '" onmouseover="hacked=1',
    "&lt;b&gt;",
    "\u2028\u2029",
    "\ud800",
    "\u202egnp.exe",
    "\x00\x1b[31m",
]


class Tags(HTMLParser):
    """Every element of a page with its attributes, and the content of its scripts."""

    def __init__(self, text):
        super().__init__()
        self.seen, self.scripts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.lasttag == "script" and self.scripts:
            self.scripts[-1] += data


def table(tokens=(" a", " b", "."), text=0, **columns):
    size = len(tokens)
    words = pd.Series(list(tokens), dtype=object)  # pandas has no other type for half a character
    row = {"text": text, "prompt": "The film", "position": range(size), "token": words}
    return pd.DataFrame(row | {"advantage": [0.5, -1.0, 0.0][:size]} | columns)


def big(texts=8, length=64):
    """A table with every known column and ten alternatives a token."""
    rows = []
    for text in range(texts):
        for t in range(length):
            at = text * length + t
            numbers = {name: math.sin(at + 7 * i) * 3.14159 for i, name in enumerate(KNOWN)}
            likely = [(f" word{(at * 5 + k) % 700}", 0.345678 / (k + 1)) for k in range(5)]
            rows.append(
                {"text": text, "prompt": f"Prompt {text}", "position": t, "token": f" tok{at}"}
                | {"chosen": True}
                | numbers
                | {"clipped": at % 9 == 0, "alternatives": likely, "ref_alternatives": likely}
            )
    return pd.DataFrame(rows)


def data_of(html):
    return json.loads(Tags(html).scripts[0])


def test_the_json_holds_the_table_as_lists():
    data = data_of(microscope(table(clipped=[True, False, False])).html)
    text = data["sides"][0]["frames"][0]["texts"][0]
    assert [data["words"][i] for i in text["tokens"]] == [" a", " b", "."]
    assert text["numbers"] == {"advantage": [0.5, -1, 0], "clipped": [1, 0, 0]}
    assert data["prompts"][text["prompt"]] == "The film"
    assert [c["kind"] for c in data["columns"]] == ["number", "yes or no"]


def test_numbers_have_four_significant_digits_and_nan_is_no_value():
    rows = table(advantage=[1 / 3, float("nan"), 123456.7], entropy=[None, 1e-3 / 3, math.inf])
    numbers = microscope_data(rows)["sides"][0]["frames"][0]["texts"][0]["numbers"]
    assert numbers["advantage"] == [0.333, None, 123500]
    assert numbers["entropy"] == [None, 0.0003333, "Infinity"]
    rows = table(advantage=[0.84147, 12.3456, -0.0004])  # 0.8415 would become 0.842 on the page
    numbers = microscope_data(rows)["sides"][0]["frames"][0]["texts"][0]["numbers"]
    assert numbers["advantage"] == [0.841, 12.35, 0]


def test_tokens_are_ordered_by_position():
    rows = table().iloc[[2, 0, 1]]
    data = microscope_data(rows)
    entry = data["sides"][0]["frames"][0]["texts"][0]
    assert [data["words"][i] for i in entry["tokens"]] == [" a", " b", "."]
    assert entry["numbers"]["advantage"] == [0.5, -1, 0]


@pytest.mark.parametrize("text", HOSTILE)
def test_text_of_data_never_becomes_markup(text):
    rows = table(
        [text, "b"], prompt=pd.Series([text] * 2, dtype=object), alternatives=[[(text, 0.5)], []]
    ).rename(columns={"advantage": clean(text)})
    shown = microscope({text: rows, "other": rows}, clean(text), title=text, still=text)
    known = microscope({"PPO": table(), "other": table()}, title="ok", still="ok")
    for page, honest in ((shown.html, known.html), (shown.page(), known.page())):
        tags = Tags(page)
        assert {t for t, _ in tags.seen} == {t for t, _ in Tags(honest).seen}
        assert [t for t, _ in tags.seen].count("script") == 2
        assert not [a for _, attributes in tags.seen for a in attributes if a.startswith("on")]
        assert not {"\ud800", "\u202e", "\x00", "\x1b"} & set(page)
        page.encode()
    assert not set("<>&\u2028\u2029") & set(Tags(shown.html).scripts[0])
    assert data_of(shown.html)["words"][0] == clean(text)


def test_json_can_not_end_its_script_element():
    text = to_json({"<&>": "</script>\u2028"})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"<&>": "</script>\u2028"}


def test_emoji_and_other_scripts_stay_whole():
    for token in ("\U0001f469\u200d\U0001f4bb", "好", " سلام", "می\u200cخواهم", "\n", "\t", ""):
        assert clean(token) == token
    assert clean("\u200d") == "\ufffd"  # alone it would be invisible


def test_eight_texts_of_64_tokens_with_everything_stay_below_300_kb():
    shown = microscope(big())
    data = shown.data["sides"][0]["frames"][0]["texts"]
    assert sum(len(text["tokens"]) for text in data) == 512
    assert len(data[0]["alternatives"][0]) == len(data[0]["ref_alternatives"][0]) == 10
    assert len(shown.page().encode()) < 300_000


def test_the_settings_of_a_table_stay_with_its_side():
    rows = table()
    rows.attrs["settings"] = {"kl_coef": 0.5, "gamma": 1, "lam": 0.95, "unknown": 3}
    sides = microscope({"PPO": rows[rows["position"] >= 0], "other": table()}).data["sides"]
    assert sides[0]["settings"] == {"kl_coef": 0.5, "gamma": 1, "lam": 0.95}
    assert "settings" not in sides[1]
    for given in ({"beta": 1}, None, {"kl_coef": float("nan"), "gamma": 1, "lam": 1}):
        rows.attrs["settings"] = given
        assert "settings" not in microscope(rows).data["sides"][0]


def test_a_token_is_stored_once():
    shown = microscope(table([" the"] * 3, alternatives=[[(" the", 0.9)]] * 3))
    assert shown.data["words"] == [" the"]


def test_one_colour_scale_holds_for_all_steps_and_tables():
    early, late = table(step=0), table(step=10, advantage=[0.1, 4.0, 0.2])
    data = microscope({"PPO": pd.concat([early, late]), "other": table()}).data
    assert data["columns"][0]["limit"] == 4
    assert data["steps"] == [0, 10]
    assert [[f["step"] for f in side["frames"]] for side in data["sides"]] == [[0, 10], [None]]


def test_a_column_of_one_sign_uses_half_of_the_scale():
    rows = table(entropy=[0.1, 2.0, 0.0], logprob=[-1.0, -3.0, -0.1], ratio=[1.0, 1.5, 0.8])
    columns = {c["name"]: c for c in microscope(rows).data["columns"]}
    assert (columns["entropy"]["low"], columns["entropy"]["high"]) == (False, True)
    assert (columns["logprob"]["low"], columns["logprob"]["high"]) == (True, False)
    assert columns["advantage"]["low"] and columns["advantage"]["high"]
    assert columns["ratio"]["factor"] and columns["ratio"]["low"] and columns["ratio"]["high"]
    assert columns["ratio"]["limit"] == pytest.approx(math.log(1.5), rel=1e-3)


def test_the_scale_can_be_given():
    shown = microscope(table(), limits={"advantage": 5.0})
    assert shown.data["columns"][0]["limit"] == 5
    assert strip_colour(-1.0, 5.0) in shown.html
    with pytest.raises(ValueError, match="limits"):
        microscope(table(), limits={"advantage": 0.0})
    with pytest.raises(ValueError, match="limits is 'kl'; it must be a column of numbers: advan"):
        microscope(table(), limits={"kl": 1.0})


def test_every_column_of_numbers_can_be_chosen_and_text_can_not():
    rows = table(my_score=[1, 2, 3], note=["x", "y", "z"], seen=[True, None, False])
    columns = {c["name"]: c for c in microscope(rows, "my_score").data["columns"]}
    assert list(columns) == ["advantage", "my_score", "seen"]
    assert columns["my_score"]["label"] == "my score"
    assert columns["seen"]["kind"] == "yes or no"


def test_known_columns_are_explained_in_plain_words():
    for name, column in KNOWN.items():
        assert column.label and column.about.endswith("."), name
        assert len(re.findall(r"\w+", column.about)) <= 30, name
        assert "_" not in column.label, name


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([1], "table is a list; it must be a DataFrame with a row a token"),
        ({}, "The mapping holds no table"),
        ({"PPO": 3}, "table is a dict; it must be a DataFrame"),
        (table().drop(columns="token"), "The table has no column token; it has text, prompt, posi"),
        ({"PPO": table().drop(columns="text")}, "The table 'PPO' has no column text"),
        (table().iloc[:0], "The table is empty; it needs at least one token"),
        (table(position=[0, 1, 1]), "two rows for text 0, position 1"),
        (table(position=[0.0, 1.0, 2.0]), "whole numbers in its column position"),
        (table().drop(columns="advantage"), "no column of numbers"),
        (table(**{"a\x00": 1.0}), r"name is 'a\\x00'; it must be text that can be printed"),
        (table(alternatives=[[("a", 2.0)]] * 3), r"holds \('a', 2.0\); it must be a pair"),
        (table(ref_alternatives=[["ab"]] * 3), "holds 'ab'; it must be a pair"),
    ],
)
def test_a_bad_table_gets_one_clear_sentence(given, message):
    with pytest.raises(ValueError, match=message):
        microscope(given)


def test_a_wrong_choice_names_the_right_ones():
    rows = table(kl=[0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="column is 'value'; it must be a column of numbers: adv"):
        microscope(rows, "value")
    with pytest.raises(ValueError, match='text is 3; it must be "all" or one of 0'):
        microscope(rows, text=3)
    with pytest.raises(ValueError, match="beside is 3"):
        microscope(rows, beside=3)
    with pytest.raises(ValueError, match="step is 5; it must be one of no steps"):
        microscope(rows, step=5)
    with pytest.raises(ValueError, match="theme is 'blue'"):
        microscope(rows, theme="blue")
    with pytest.raises(ValueError, match="a name in .html or .png"):
        microscope(rows).save("x.pdf")


def test_missing_alternatives_are_no_error():
    rows = table(alternatives=[[("a", 0.5)], None, float("nan")])
    entry = microscope(rows).data["sides"][0]["frames"][0]["texts"][0]
    assert entry["alternatives"] == [[0 + 3, 0.5], [], []]


def test_without_scripts_the_coloured_tokens_are_there():
    page = microscope({"PPO": table([" <b>", "y"]), "SFT": table()}, still="pictures/x.png").html
    still = still_of(page)
    assert f'background:{strip_colour(0.5, 1.0)};{SPAN}" title="+0.500">·&lt;b&gt;' in still
    assert "PPO, response 0: advantage" in still and "SFT, response 0: advantage" in still
    assert "pictures/x.png" in still


def test_plain_text_says_what_it_is_and_names_the_picture():
    bundle = microscope(table(), still="pictures/x.png")._repr_mimebundle_()
    assert "Token microscope" in bundle["text/plain"]
    assert "pictures/x.png" in bundle["text/plain"]
    assert bundle["text/html"] == microscope(table(), still="pictures/x.png")._repr_html_()
    assert "save(" in str(microscope(table()))


def test_the_page_is_whole_and_reads_nothing_from_outside():
    page = microscope(table(), title="A & B").page()
    assert page.startswith("<!doctype html>") and "<title>A &amp; B</title>" in page
    assert "default-src 'none'" in page
    assert not re.search(r"https?:|//[a-z]|url\(|@import|fetch\(|\bsrc=", page)


def test_save_writes_a_page_or_a_picture(tmp_path):
    shown = microscope(table())
    assert shown.save(tmp_path / "a.html").read_text() == shown.page()
    assert shown.save(tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.html", "a.png"]


def words_of(figure):
    return [t.get_text() for t in figure.findobj(lambda a: hasattr(a, "get_text")) if t.get_text()]


def test_the_figure_shows_the_first_view():
    steps = pd.concat([table(step=0), table(step=10, advantage=[2.0, 2.0, 2.0])])
    figure = microscope({"PPO": steps, "SFT": table(step=0)}, step=10).figure()
    words = words_of(figure)
    assert "PPO, response 0, step 10: advantage" in words
    assert "SFT, response 0, step 0: advantage" in words
    assert words.count("+2.00") == 3 and "-1.00" in words and "·a" in words


def still_of(page):
    return page[page.index('class="still"') : page.index('<script type="application/json"')]


def test_a_prompt_that_all_responses_share_stands_once_above_them():
    rows = pd.concat([table(prompt="The\nfilm\n"), table(text=4, prompt="The\nfilm\n")])
    shown = microscope(rows, text="all")
    words = words_of(shown.figure())
    assert words.count("prompt: The\u23cefilm") == 1
    assert "response 0: advantage" in words and "response 4: advantage" in words
    assert still_of(shown.html).count("<b>Prompt:</b> The\nfilm</p>") == 1
    assert "prompt: " not in " ".join(words_of(microscope(table().drop(columns="prompt")).figure()))


def test_short_prompts_that_differ_stand_in_the_titles():
    rows = pd.concat([table(prompt="The film\n"), table(text=4, prompt="A <book>")])
    shown = microscope(rows, text="all")
    assert {'response 0 to "The film": advantage', 'response 4 to "A <book>": advantage'} <= set(
        words_of(shown.figure())
    )
    assert "response 4 to &quot;A &lt;book&gt;&quot;: advantage" in still_of(shown.html)
    long = pd.concat([rows, table(text=5, prompt="word " * 9)])
    words = words_of(microscope(long, text="all").figure())
    assert "response 0: advantage" in words and "response 5: advantage" in words
    assert "prompt: The film" in words_of(microscope(long).figure())  # one response is shown


def test_a_long_prompt_is_cut_after_three_lines():
    figure = microscope(table(prompt="word " * 99)).figure()
    figure.draw_without_rendering()
    lines = [t for t in figure.texts if "word" in t.get_text()]
    assert len(lines) == 3 and lines[-1].get_text().endswith("\u2026")
    places = [t.get_window_extent() for t in figure.texts]
    assert all(above.y0 > below.y1 for above, below in zip(places, places[1:], strict=False))
    end = min(axes.get_window_extent().x0 for axes in figure.axes[1:])  # the colour scale
    assert max(place.x1 for place in places) < end - 30


@pytest.mark.parametrize(
    "scores, title",
    [
        ([1.0, 1.0, 1.0], "response 0, score 1: advantage"),
        ([0.76427] * 3, "response 0, score 0.76: advantage"),
        ([-1.4855, None, -1.4855], "response 0, score -1.49: advantage"),
        ([0.1, 0.2, 0.3], "response 0: advantage"),  # no score of the whole response
        ([float("nan")] * 3, "response 0: advantage"),
        ([math.inf] * 3, "response 0, score inf: advantage"),
    ],
)
def test_a_title_names_the_score_of_the_response(scores, title):
    shown = microscope(table(score=scores))
    assert title in words_of(shown.figure()) and title in still_of(shown.html)


def test_the_score_stands_once_where_it_is_the_colour():
    words = words_of(microscope(table(score=[1, 1, 1]), "score").figure())
    assert "response 0: score of the whole response" in words


def test_the_figure_of_a_ratio_shows_its_logarithm():
    words = words_of(microscope(table(ratio=[1.0, 2.0, 0.5]), "ratio").figure())
    assert "response 0: log of the importance ratio" in words
    assert {"+0.00", "+0.69", "-0.69"} <= set(words)


def test_half_and_twice_have_the_same_distance_from_white():
    ends = {"ratio": 4.0}
    data = microscope(table(ratio=[1.0, 2.0, 0.5]), "ratio", limits=ends).data
    (column,) = (c for c in data["columns"] if c["name"] == "ratio")
    assert column["limit"] == pytest.approx(math.log(4), rel=1e-3)
    for wrong in (1.0, 0.5):
        with pytest.raises(ValueError, match="a number above 1"):
            microscope(table(ratio=[1.0, 2.0, 0.5]), "ratio", limits={"ratio": wrong})


def test_a_figure_of_missing_values_and_equal_titles_is_drawn():
    rows = table(advantage=[float("nan"), math.inf, 0.0])
    figure = microscope({"a\u202e": rows, "a\u202d": rows}).figure()
    figure.draw_without_rendering()
    assert len([w for w in words_of(figure) if "response 0" in w]) == 2
    assert "+nan" not in words_of(figure)


def test_all_responses_or_two_of_them_can_be_shown_first():
    rows = pd.concat([table(), table(text=4)])
    assert microscope(rows).data["right"] is None
    assert microscope(rows, text=4, beside=0).data["right"] == [0, 0]
    assert "response 4" in " ".join(words_of(microscope(rows, text="all").figure()))
    two = {"PPO": rows, "SFT": table(text=4)}
    assert microscope(two).data["right"] == [1, 4]
    assert microscope(two, text=4).data["right"] == [1, 4]


def test_numbers_of_numpy_are_accepted():
    rows = pd.concat([table(step=3), table(text=4, step=3)])
    shown = microscope(
        rows, text=rows["text"].iloc[-1], beside=rows["text"].iloc[0], step=rows["step"].iloc[0]
    )
    assert data_of(shown.html)["left"] == [0, 4] and data_of(shown.html)["step"] == 3


def test_scripts_and_styles_are_in_the_wheel():
    names = re.search(r'"minirlhf.show" = \[(.*)\]', (ROOT / "pyproject.toml").read_text())[1]
    patterns = re.findall(r'"(.*?)"', names)
    files = [p for p in (ROOT / "minirlhf").rglob("*") if p.suffix in (".js", ".css")]
    assert {p.name for p in files} >= {"microscope.js", "microscope.css", "labelling.js"}
    for path in files:
        assert path.parent.name == "show" and any(map(path.match, patterns)), path


def test_the_script_never_parses_text_as_markup():
    script = (ROOT / "minirlhf/show/microscope.js").read_text()
    for name in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "http"):
        assert name not in script, name
    assert "<script" not in script and "</" not in script


def test_a_microscope_is_what_the_function_returns():
    assert isinstance(microscope(table()), Microscope)


def test_a_ratio_without_a_value_is_no_extreme():
    view = microscope(table(ratio=[1.0, float("nan"), 0.5]), "ratio")
    fallback = view.html.split("<script")[0]
    assert "inf" not in " ".join(words_of(view.figure())) and "inf" not in fallback
    assert 'title="no value"' in fallback
