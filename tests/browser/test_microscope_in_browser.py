"""The token microscope in a real browser: what a reader can see and do."""

import base64
import json
import math

import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from minirlhf.show import microscope, strip_colour

pytestmark = pytest.mark.browser
TOKEN = ".tokens .token"

HOSTILE = [
    "<script>window.hacked = 1</script>",
    "</script><img src=x onerror=window.hacked=1>",
    '"><svg onload=window.hacked=1>',
    "<!--",
    "&lt;i&gt;",
    "javascript:window.hacked=1",
    "${window.hacked=1}",
]


def table(tokens=(" The", " film", " is", "."), text=0, shift=0.0, **columns):
    size = len(tokens)
    places = range(size)
    alternatives = [[(f" x{t}", 0.5), (" y", 0.25), (tokens[t], 0.125)] for t in places]
    row = {
        "text": text,
        "prompt": f"Prompt {text}",
        "position": places,
        "token": list(tokens),
        "advantage": [shift + math.cos(t) for t in places],
        "logprob": [-0.5 * t for t in places],
        "ref_logprob": [-4.0 * t for t in places],
        "ratio": [1 + 0.1 * (t % 3) for t in places],
        "clipped": [t % 3 == 2 for t in places],
        "alternatives": alternatives,
        "ref_alternatives": [pairs[:2] for pairs in alternatives],
    }
    return pd.DataFrame(row | columns)


def two_texts():
    return pd.concat([table(), table([" Another", " one"], text=1, shift=1.0)])


def panel(browser):
    """Label -> the values in the panel, from left to right."""
    rows = browser.all(".numbers tbody tr:not(.group)")
    cells = [[c.text for c in row.find_elements("css selector", "th, td")] for row in rows]
    return {label: [v for v in values if v] for label, *values in cells}


def which(browser):
    return browser.one(".which").text


def selected(browser):
    """The positions of the tokens that keys start from."""
    return [box.get_attribute("aria-label").split(":")[0] for box in browser.all("[tabindex='0']")]


def colour(browser, element, name="background-color"):
    """Red, green and blue of a computed colour, 0 to 1."""
    text = element.value_of_css_property(name)
    if text.startswith("color(srgb"):
        return [float(x) for x in text[10:].strip(" ()").split("/")[0].split()]
    return [float(x) / 255 for x in text[text.index("(") + 1 :].strip(" )").split(",")[:3]]


def test_pointing_shows_the_numbers_of_a_token(browser):
    browser.open(microscope(table()).page())
    assert which(browser) == "Position 0 (of 0 to 3): ·The"
    browser.point(browser.all(TOKEN)[2])
    assert which(browser) == "Position 2 (of 0 to 3): ·is"
    numbers = panel(browser)
    assert numbers["advantage"] == ["−0.416"]
    assert numbers["log-probability, policy"] == ["−1.000"]
    assert numbers["importance ratio"] == ["1.200"]
    assert numbers["clipped"] == ["yes"]
    assert browser.errors() == []


def test_the_panel_goes_back_to_the_clicked_token(browser):
    browser.open(microscope(table()).page())
    tokens = browser.all(TOKEN)
    tokens[1].click()
    browser.point(tokens[3])
    assert "Position 3" in which(browser)
    browser.point(browser.one(".which"))
    assert "Position 1" in which(browser)


def test_alternatives_are_bars_with_probabilities(browser):
    browser.open(microscope(table()).page())
    policy, reference = browser.all(".chart")
    lines = [li.text.split("\n") for li in policy.find_elements("css selector", "li") if li.text]
    assert lines == [["·x0", "50 %"], ["·y", "25 %"], ["·The", "13 %"]]
    widths = [bar.rect["width"] for bar in policy.find_elements("css selector", ".share")]
    assert widths[0] == pytest.approx(2 * widths[1], abs=1)
    framed = reference.find_elements("css selector", ".written")
    assert [li.text.split("\n") for li in framed] == [["·The", "100 %"]]  # exp(ref_logprob)
    browser.point(browser.all(TOKEN)[2])
    framed = reference.find_elements("css selector", ".written")
    assert [li.text.split("\n") for li in framed] == [["·is", "<0.1 %"]]  # exp(-8)


def test_keys_move_between_tokens_and_texts(browser):
    browser.open(microscope(two_texts()).page())
    browser.all(TOKEN)[0].click()
    browser.press("ARROW_RIGHT", "ARROW_RIGHT")
    assert "Position 2" in which(browser) and selected(browser) == ["token 2"]
    browser.press("ARROW_LEFT")
    assert "Position 1" in which(browser)
    browser.press("END", "ARROW_RIGHT")
    assert "Position 3" in which(browser) and selected(browser) == ["token 3"]
    browser.press("HOME", "ARROW_LEFT")
    assert "Position 0" in which(browser)
    browser.press("END", "ARROW_DOWN")
    assert which(browser) == "Position 1 (of 0 to 1): ·one"
    assert browser.all("select")[1].get_attribute("value") == "[0,1]"
    browser.press("ARROW_DOWN", "ARROW_UP")
    assert which(browser) == "Position 1 (of 0 to 3): ·film"
    assert browser.driver.switch_to.active_element.text == "·film"


def test_tab_enters_the_text_at_one_token(browser):
    browser.open(microscope(two_texts()).page())
    browser.all("select")[2].click()
    browser.press("ESCAPE", "TAB")
    assert browser.driver.switch_to.active_element.text == "·The"
    browser.press("ARROW_RIGHT", "TAB")
    assert not browser.js("document.activeElement.matches('.token')")


def test_arrow_keys_move_between_all_responses(browser):
    browser.open(microscope(two_texts(), text="all").page())
    assert len(browser.all("[role=listbox]")) == 2
    browser.all(TOKEN)[2].click()
    browser.press("ARROW_DOWN")
    assert which(browser) == "Position 1 (of 0 to 1): ·one"
    assert browser.all("select")[1].get_attribute("value") == '[0,"all"]'


def test_a_tap_shows_the_numbers_and_keeps_the_token(browser):
    browser.reset(width=400, touch=True)
    browser.open(microscope(table()).page())
    box = browser.all(TOKEN)[2].rect
    place = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
    browser.cdp("Input.dispatchTouchEvent", type="touchStart", touchPoints=[place])
    browser.cdp("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
    assert "Position 2" in which(browser) and selected(browser) == ["token 2"]


def test_the_slider_shows_other_training_steps(browser):
    steps = [table(step=step, shift=step / 10) for step in (0, 20, 40)]
    browser.open(microscope(pd.concat(steps)).page())
    browser.all(TOKEN)[1].click()
    before = colour(browser, browser.all(TOKEN)[1])
    assert panel(browser)["advantage"] == ["+0.540"]
    slider = browser.one("input[type=range]")
    browser.press_in(slider, "ARROW_RIGHT")
    assert panel(browser)["advantage"] == ["+2.540"] and "Position 1" in which(browser)
    assert browser.one("output").text == "20 of 40"
    assert slider.get_attribute("aria-valuetext") == "training step 20 of 40"
    browser.press_in(slider, "END")
    assert panel(browser)["advantage"] == ["+4.540"]
    assert colour(browser, browser.all(TOKEN)[1]) != before


def test_a_run_without_the_chosen_step_shows_its_last_one_before(browser):
    runs = {
        "short": pd.concat([table(step=0), table(step=20, shift=2.0)]),
        "long": pd.concat([table(step=0), table(step=30, shift=3.0)]),
    }
    browser.open(microscope(runs).page())
    browser.press_in(browser.one("input[type=range]"), "END")
    names = [p.text for p in browser.all(".name")]
    assert names == ["short, response 0, step 20", "long, response 0, step 30"]
    assert panel(browser)["advantage"] == ["+3.000", "+4.000"]


def test_a_table_without_steps_stands_beside_a_run(browser):
    browser.open(
        microscope({"SFT": table(), "run": pd.concat([table(step=s) for s in (0, 9)])}).page()
    )
    assert [p.text for p in browser.all(".name")] == ["SFT, response 0", "run, response 0, step 0"]


def test_another_column_gives_the_colours_of_the_strips(browser):
    rows = table(entropy=[0.0, 1.0, 2.0, float("nan")])
    browser.open(microscope(rows).page())
    for label, column, distance in (
        ("advantage", "advantage", float),
        ("log-probability, policy", "logprob", float),
        ("importance ratio", "ratio", math.log),
        ("entropy", "entropy", float),
    ):
        browser.choose(browser.all("select")[0], label)
        values = [distance(value) for value in rows[column]]
        limit = max(abs(v) for v in values if not math.isnan(v))
        for box, value in zip(browser.all(TOKEN), values, strict=False):
            expected = to_rgb(strip_colour(value, limit))
            assert colour(browser, box) == pytest.approx(expected, abs=0.01), (label, value)
        assert browser.one(".coloured th").text == label
        assert browser.one(".legend.on .about").text
    assert "no value" in browser.one(".legend.on").text
    assert browser.all(TOKEN)[3].get_attribute("aria-label").endswith("entropy no value")


def test_a_clipped_token_is_marked_by_a_line_not_by_colour_alone(browser):
    browser.open(microscope(table()).page())
    for label in ("advantage", "clipped"):
        browser.choose(browser.all("select")[0], label)
        lines = [box.value_of_css_property("text-decoration-line") for box in browser.all(TOKEN)]
        assert lines == ["none", "none", "underline", "none"]
        assert "double line: clipped" in browser.one(".legend.on").text
    assert "clipped yes" in browser.all(TOKEN)[2].get_attribute("aria-label")


def test_a_tools_token_looks_different(browser):
    browser.open(microscope(table(chosen=[True, False, True, True])).page())
    styles = [box.value_of_css_property("border-style") for box in browser.all(TOKEN)]
    assert styles == ["solid", "dashed", "solid", "solid"]
    assert "written by a tool" in browser.one(".legend.on").text


def test_two_models_stand_side_by_side(browser):
    browser.open(microscope({"PPO": two_texts(), "SFT": table(shift=0.5)}).page())
    left, right = browser.all(".pane")
    assert left.rect["x"] + left.rect["width"] <= right.rect["x"]
    browser.point(right.find_elements("css selector", TOKEN)[1])
    assert panel(browser)["advantage"] == ["+0.540", "+1.040"]
    twins = left.find_elements("css selector", ".twin")
    assert [box.text for box in twins] == ["·film"]
    browser.choose(browser.all("select")[1], "PPO, response 1")
    assert [p.text for p in browser.all(".name")] == ["PPO, response 1", "SFT, response 0"]
    browser.choose(browser.all("select")[2], "nothing")
    assert len(browser.all(".pane")) == 1 and len(panel(browser)["advantage"]) == 1
    browser.choose(browser.all("select")[2], "PPO, all responses")
    assert len(browser.all("[role=listbox]")) == 3


@pytest.mark.parametrize("width", [1000, 360])
def test_nothing_moves_while_a_reader_looks_around(browser, width):
    long = table([f" word{t}" for t in range(90)], text=1)
    steps = pd.concat([table(step=0), long.assign(step=0), table([" a"], step=5)])
    browser.size(width)
    browser.open(microscope(steps.assign(my_score=1.0)).page())

    def place():
        return browser.js(
            "[...document.querySelectorAll('.panel, .panes')].map(e => e.getBoundingClientRect())"
            ".map(r => [r.x, r.y + window.scrollY, r.width, r.height].map(Math.round))"
        )

    start = place()
    for box in browser.all(TOKEN):
        browser.point(box)
        assert place() == start
    browser.choose(browser.all("select")[1], "response 1")
    assert place() == start
    browser.all(TOKEN)[0].click()
    browser.press("END")
    assert place() == start
    for label in ("importance ratio", "my score", "clipped"):
        browser.choose(browser.all("select")[0], label)
        assert place() == start
    browser.press_in(browser.one("input[type=range]"), "END")
    assert place() == start


def a_response_with_sums(**changed):
    """Two tokens of the policy with one of a tool between them. gamma 0.9, lambda 0.5."""
    rows = {
        "kl": [0.2, math.nan, -0.1],
        "score": [2.0, math.nan, 2.0],
        "reward": [-0.1, math.nan, 2.05],  # -0.5 * 0.2; 0.5 * 0.1 + 2
        "value": [0.5, math.nan, 1.0],
        "td_error": [0.3, math.nan, 1.05],  # -0.1 + 0.9 * 1 - 0.5; 2.05 - 1
        "advantage": [0.7725, math.nan, 1.05],  # 0.3 + 0.45 * 1.05
        "return": [1.2725, math.nan, 2.05],
    }
    rows = table([" The", "4", "."], chosen=[True, False, True], **(rows | changed))
    rows.attrs["settings"] = {"kl_coef": 0.5, "gamma": 0.9, "lam": 0.5}
    return rows


def sums(browser):
    rows = browser.all(".sums tr")
    return [[c.text for c in row.find_elements("css selector", "th, td")] for row in rows]


def test_the_panel_shows_how_rewards_and_advantages_add_up(browser):
    browser.open(microscope(a_response_with_sums(), "advantage").page())
    assert sums(browser) == [
        ["reward", "−0.5 × 0.200"],
        ["TD error", "(−0.100) + 0.9 × 1.000 − 0.500"],
        ["advantage", "0.300 + 0.45 × 1.050"],
        ["critic's target", "0.772 + 0.500"],
    ]
    assert "KL coefficient 0.5, gamma 0.9, lambda 0.5" in browser.one(".panel").text
    browser.point(browser.all(TOKEN)[1])  # the tool's: no numbers, no sums
    assert [cell for _, cell in sums(browser)] == ["", "", "", ""]
    browser.point(browser.all(TOKEN)[2])  # the last: nothing comes after it
    assert [cell for _, cell in sums(browser)] == [
        "−0.5 × (−0.100) + 2.000",
        "2.050 + 0.9 × 0.000 − 1.000",
        "1.050 + 0.45 × 0.000",
        "1.050 + 1.000",
    ]


@pytest.mark.parametrize("score", [2.0, 0.0])
def test_without_a_critic_the_reward_adds_up_too(browser, score):
    penalties = [-0.1, 0.0, 0.05]
    rows = table(
        [" The", "4", "."],
        kl=[0.2, 0.0, -0.1],
        score=score,
        reward=[*penalties[:2], penalties[2] + score],
    ).drop(columns="advantage")
    rows.attrs["settings"] = {"kl_coef": 0.5, "gamma": 1.0, "lam": 0.95}
    browser.open(microscope(rows, "reward").page())
    assert sums(browser) == [["reward", "\u22120.5 \u00d7 0.200"]]
    browser.point(browser.all(TOKEN)[2])
    assert sums(browser) == [["reward", f"\u22120.5 \u00d7 (\u22120.100) + {score:.3f}"]]


def test_large_rewards_add_up_too(browser):
    large = {
        n: [30 * x for x in a_response_with_sums()[n]] for n in ("reward", "value", "td_error")
    }
    rows = a_response_with_sums(**large)
    browser.open(microscope(rows, "reward").page())
    assert dict(sums(browser))["TD error"] == "(\u22123.000) + 0.9 \u00d7 30.000 \u2212 15.000"


def test_a_sum_that_does_not_hold_is_not_shown(browser):
    whitened = a_response_with_sums(advantage=[-0.5, math.nan, 0.5])
    browser.open(microscope(whitened, "advantage").page())
    assert [bool(cell) for _, cell in sums(browser)] == [True, True, False, False]
    browser.open(microscope(a_response_with_sums(reward=1.0, value=5.0, td_error=9.0)).page())
    assert "gamma" not in browser.one(".panel").text  # no sum holds: no settings are named
    plain = table()
    browser.open(microscope(plain, "advantage").page())
    assert sums(browser) == []


def test_hostile_text_stays_text(browser):
    rows = table(HOSTILE, prompt=HOSTILE[0], alternatives=[[(t, 0.5)] for t in HOSTILE])
    rows = rows.assign(**{HOSTILE[1]: 1.0})
    shown = microscope({HOSTILE[1]: rows, HOSTILE[2]: rows}, title=HOSTILE[0], still=HOSTILE[2])
    honest = table(["a"] * len(HOSTILE)).assign(other=1.0)
    kinds = "[...new Set([...document.querySelectorAll('*')].map(e => e.tagName))].sort()"
    browser.open(microscope({"PPO": honest, "SFT": honest}, title="A", still="b").page())
    expected = browser.js(kinds)
    for page in (shown.page(), shown.html):
        browser.open(page)
        for box in browser.all(TOKEN):
            browser.point(box)
        texts = [box.text for box in browser.all(".pane:first-child .token")]
        assert texts == HOSTILE
        assert set(browser.js(kinds)) <= set(expected)
        assert browser.js("document.scripts.length") == 2
        assert browser.js("typeof window.hacked") == "undefined"
        attributes = browser.js(
            "[...document.querySelectorAll('*')].flatMap(e => e.getAttributeNames())"
        )
        assert not [name for name in attributes if name.startswith("on")]
        assert not {"src", "href", "srcdoc"} & set(attributes)


def test_nothing_is_requested(browser):
    steps = pd.concat([table(step=0), table(step=5)])
    for page in (microscope(steps).page(), microscope({"a": steps, "b": steps}).html):
        url = browser.open(page)
        browser.point(browser.all(TOKEN)[2])
        browser.choose(browser.all("select")[0], "importance ratio")
        browser.press_in(browser.one("input[type=range]"), "END")
        events = [
            json.loads(e["message"])["message"] for e in browser.driver.get_log("performance")
        ]
        requested = [
            e["params"]["request"]["url"]
            for e in events
            if e["method"] == "Network.requestWillBeSent"
        ]
        assert requested == [url]
    assert browser.errors() == []


def luminance(rgb):
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("dark", [False, True])
def test_text_can_be_read_on_every_colour(browser, dark):
    browser.media(dark=dark)
    tokens = [f" {t}" for t in range(21)]
    rows = table(tokens, advantage=[t / 10 - 1 for t in range(21)])
    rows.loc[20, "logprob"] = float("nan")
    browser.open(microscope(rows).page())
    for label in ("advantage", "log-probability, policy"):
        browser.choose(browser.all("select")[0], label)
        for box in browser.all(TOKEN):
            pair = sorted(
                (luminance(colour(browser, box)), luminance(colour(browser, box, "color")))
            )
            assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 4.5, box.text


def is_dark(browser):
    paper = luminance(colour(browser, browser.one(".minirlhf-microscope")))
    assert abs(paper - 0.5) > 0.4
    return paper < 0.5


def test_dark_and_light_follow_the_system_jupyterlab_or_the_argument(browser):
    for system in (False, True):
        browser.media(dark=system)
        browser.open(microscope(table()).page())
        assert is_dark(browser) == system
        for jupyter in (True, False):
            browser.js("document.body.dataset.jpThemeLight = a[0]", str(not jupyter).lower())
            assert is_dark(browser) == jupyter
        for theme in ("light", "dark"):
            browser.open(microscope(table(), theme=theme).page())
            assert is_dark(browser) == (theme == "dark")


def test_a_phone_scrolls_only_downwards(browser):
    browser.size(360, 740)
    tokens = ["x" * 300, *(f" w{t}" for t in range(511))]
    rows = table(tokens, prompt="y" * 300)
    long = "A long title " * 9
    for given in ({long: rows, "b": rows}, rows):
        browser.open(microscope(given, title=long).page())
        for box in browser.all(TOKEN)[:3]:
            browser.point(box)
        assert browser.js("document.documentElement.scrollWidth") <= 360
        assert browser.js("document.querySelector('.panes').scrollWidth") <= 360


def test_it_prints_with_colours_and_the_whole_text(browser):
    tokens = [f" word{t}" for t in range(300)]
    browser.open(microscope(table(tokens)).page())
    pdf = base64.b64decode(browser.cdp("Page.printToPDF")["data"])
    assert pdf.startswith(b"%PDF")
    browser.media(dark=True, media="print")
    assert not is_dark(browser)
    panes = browser.one(".panes")
    assert browser.js("a[0].scrollHeight <= a[0].clientHeight + 1", panes)
    for selector in (".token", ".bar", ".share"):
        assert browser.one(selector).value_of_css_property("print-color-adjust") == "exact"
    assert browser.one(".panel").is_displayed()


def test_several_microscopes_on_one_page_do_not_disturb_each_other(browser):
    block = microscope(table()).html
    browser.open("<!doctype html><body>" + block + microscope(two_texts(), text=1).html + block)
    first, second, third = browser.all(".minirlhf-microscope")
    browser.point(first.find_elements("css selector", TOKEN)[3])
    browser.choose(third.find_element("css selector", "select"), "importance ratio")
    titles = [box.find_element("css selector", ".which").text for box in (first, second, third)]
    assert titles == [
        "Position 0 (of 0 to 3): ·The",  # the mouse has left it
        "Position 0 (of 0 to 1): ·Another",
        "Position 0 (of 0 to 3): ·The",
    ]
    columns = [b.find_element("css selector", ".coloured th").text for b in (first, second, third)]
    assert columns == ["advantage", "advantage", "importance ratio"]
    assert len(browser.all(".head")) == 3


def test_it_starts_where_a_notebook_puts_it_into_a_page_later(browser):
    browser.open("<!doctype html><meta charset=utf-8><body>")
    browser.driver.execute_script(
        """const host = document.createElement("div");
        host.innerHTML = arguments[0];
        for (const old of host.querySelectorAll("script")) {
          const fresh = document.createElement("script");
          for (const { name, value } of old.attributes) fresh.setAttribute(name, value);
          fresh.textContent = old.textContent;
          old.replaceWith(fresh);
        }
        document.body.append(host);""",
        microscope(table()).html + microscope(table()).html,
    )
    assert [e.text for e in browser.all(".which")] == ["Position 0 (of 0 to 3): ·The"] * 2
    assert len(browser.all(TOKEN)) == 8


def test_without_scripts_the_coloured_text_is_there(browser):
    browser.cdp("Emulation.setScriptExecutionDisabled", value=True)
    browser.open(microscope(table([" The", " <b>"]), title="Still").page())
    root = browser.cdp("DOM.getDocument", depth=-1)["root"]["nodeId"]

    def find(selector):
        return browser.cdp("DOM.querySelectorAll", nodeId=root, selector=selector)["nodeIds"]

    tokens = find(".still span[title]")  # the scale's boxes have no title
    assert not find(".head") and len(tokens) == 2
    html = browser.cdp("DOM.getOuterHTML", nodeId=tokens[1])["outerHTML"]
    assert "·&lt;b&gt;" in html and 'title="+0.540"' in html
    model = browser.cdp("DOM.getBoxModel", nodeId=find(".still")[0])["model"]
    assert model["width"] > 300 and model["height"] > 30


def test_every_token_keeps_its_place_in_any_script(browser):
    tokens = [
        " مرحبا",
        " بالعالم",
        "!",
        " 你好",
        " שלום",
        " \U0001f469\u200d\U0001f4bb",
        " e\u0301",
        " ok",
    ]
    browser.open(microscope(table(tokens)).page())
    boxes = browser.all(TOKEN)
    assert [box.text.replace("·", " ") for box in boxes] == tokens
    lefts = [(round(box.rect["y"] / 30), box.rect["x"]) for box in boxes]
    assert lefts == sorted(lefts)


def test_white_space_can_be_seen(browser):
    browser.open(microscope(table([" a", "\n", "b", "  ", "\t", ""])).page())
    boxes = browser.all(TOKEN)
    assert [box.text for box in boxes] == ["·a", "⏎", "b", "··", "⇥", "∅"]
    assert boxes[2].rect["y"] > boxes[1].rect["y"] and boxes[2].rect["x"] == boxes[0].rect["x"]
    spoken = [box.get_attribute("aria-label").split(",")[0] for box in boxes]
    assert spoken == [
        "token 0: a",
        "token 1: new line",
        "token 2: b",
        "token 3: space",
        "token 4: tab",
        "token 5: empty",
    ]


def test_the_last_of_512_tokens_can_be_reached_and_seen(browser):
    browser.open(microscope(table([f" word{t}" for t in range(512)])).page())
    browser.all(TOKEN)[0].click()
    browser.press("END")
    assert "Position 511" in which(browser)
    box, panes = browser.js(
        "[document.activeElement, document.querySelector('.panes')]"
        ".map(e => e.getBoundingClientRect()).map(r => [r.top, r.bottom])"
    )
    assert panes[0] <= box[0] and box[1] <= panes[1] + 1


def test_a_screen_reader_finds_names_and_roles(browser):
    browser.open(microscope({"PPO": two_texts(), "SFT": table()}).page())
    nodes = browser.cdp("Accessibility.getFullAXTree")["nodes"]
    names = {}
    for node in nodes:
        role = node.get("role", {}).get("value")
        names.setdefault(role, []).append(node.get("name", {}).get("value"))
    assert "Tokens of PPO, response 0" in names["listbox"] + names.get("ListBox", [])
    assert "token 0: The, advantage +1.000" in names["option"] + names.get("listBoxOption", [])
    assert "Numbers of one token" in names["region"]
    assert {"Colour:", "Show:", "Beside it:"} <= {n.strip() for n in names["combobox"]}
