"""The labelling widget in a real browser: what a person clicks and presses is in the file."""

import json

import pytest

from minirlhf.show import label_pairs
from minirlhf.show.labelling_widget import FOLDER
from minirlhf.tasks import LabelSession, Pair, read_labels

pytestmark = pytest.mark.browser

HOSTILE = "</p><img src=x onerror=window.hacked=1><script>window.hacked = 1</script>"
PAGE = """<!doctype html><meta charset=utf-8><style>%(css)s</style><body><main></main>
<script type=module>
const { default: widget } = await import("data:text/javascript;base64," + btoa(unescape(encodeURIComponent(%(js)s))));
window.view = %(view)s;
window.sent = [];
window.heard = [];
window.notebook = [];
document.addEventListener("keydown", (event) => window.notebook.push(event.key));
const model = {
  get: () => window.view,
  on: (name, f) => window.heard.push(f),
  off: (name, f) => window.heard.splice(window.heard.indexOf(f), 1),
  send: (message) => window.sent.push(message),
};
window.gone = widget.render({ model, el: document.querySelector("main") });
</script>"""


class Labeller:
    """The widget's own files in a page, and its own Python object, which answers by hand."""

    def __init__(self, browser, session):
        self.browser, self.widget = browser, label_pairs(session)
        js, css = (
            (FOLDER / f"labelling.{end}").read_text(encoding="utf-8") for end in ("js", "css")
        )
        view = json.dumps(self.widget.view).replace("<", "\\u003c")
        browser.open(PAGE % {"css": css, "js": json.dumps(js), "view": view})

    def answer(self):
        """Give what the page has sent to Python, one by one, and the answers to the page."""
        for message in self.browser.js("window.sent.splice(0)"):
            self.widget._received(self.widget, message, [])
            self.show()

    def show(self):
        self.browser.js("(window.view = a[0], window.heard.forEach((f) => f()))", self.widget.view)

    def click(self, action):
        self.browser.one(f"[data-action={action}]").click()
        self.answer()

    def press(self, keys):
        self.browser._actions().send_keys(keys).perform()
        self.answer()

    def shown(self):
        return [text.text for text in self.browser.all(".minirlhf-label .text")]

    def said(self, name):
        return self.browser.one(f".minirlhf-label .{name}").text


def pairs(*lefts):
    return [Pair("the film\n", left, "dull", 2.0, -1.0) for left in lefts]


@pytest.fixture
def file(tmp_path):
    return tmp_path / "labels" / "anna.jsonl"


def choices(file):
    return read_labels(file).choice.tolist()


def test_buttons_and_keys_are_in_the_file(browser, file):
    page = Labeller(browser, LabelSession(pairs(*"abcdef"), file, "anna"))
    assert (page.shown(), page.said("prompt")) == (["a", "dull"], "the film")
    page.click("right")
    assert choices(file) == ["right"] and page.shown() == ["b", "dull"]
    page.press("1")  # the click has given the widget the focus
    page.press("0")
    assert choices(file) == ["right", "left", "tie"]
    page.press("u")
    page.press("S")
    page.click("tie")
    page.press("2")
    assert page.said("count") == "5 of 6 labelled" and page.said("note") == ""
    page.click("left")
    assert choices(file) == ["right", "left", "skip", "tie", "right", "left"]
    assert page.said("note") == f"All 6 pairs are labelled. Your choices are in {file}."
    page.press("1")  # nothing is left to choose
    page.press("u")  # but the last choice can be taken back
    assert choices(file) == ["right", "left", "skip", "tie", "right"]
    assert page.shown() == ["f", "dull"] and browser.errors() == []


def test_a_second_click_before_the_answer_labels_nothing(browser, file):
    page = Labeller(browser, LabelSession(pairs(*"abc"), file))
    button = browser.one("[data-action=left]")
    button.click()
    button.click()
    assert len(browser.js("window.sent")) == 1
    page.answer()
    assert choices(file) == ["left"]
    page.widget._received(page.widget, {"action": "right", "seen": 0}, [])  # of another view
    assert choices(file) == ["left"] and page.widget.view["done"] == 1


def test_keys_work_only_in_the_widget_and_stay_in_it(browser, file):
    page = Labeller(browser, LabelSession(pairs(*"abc"), file))
    page.press("1")  # nothing has the focus
    assert not file.exists() and browser.js("window.notebook") == ["1"]
    help_text = "getComputedStyle(document.querySelector('.help'), '::before').content"
    assert browser.js(help_text) == "attr(data-away)" or "Click here" in browser.js(help_text)
    browser.one(".minirlhf-label .question").click()
    assert browser.js(help_text) == '"The keys work now."'
    page.press("1")
    page.press("d")  # a notebook would delete its cell at the second d
    assert choices(file) == ["left"] and browser.js("window.notebook") == ["1"]
    browser._actions().key_down("\ue009").send_keys("1").key_up("\ue009").perform()  # Control
    page.answer()
    assert choices(file) == ["left"]
    marked = "[...document.querySelectorAll('.minirlhf-label, button')].map(e => e.dataset)"
    assert browser.js(f"{marked}.every(d => d.lmSuppressShortcuts === 'true')")


def test_enter_and_space_press_the_button_that_has_the_focus(browser, file):
    page = Labeller(browser, LabelSession(pairs(*"abc"), file))
    browser.js("document.querySelector('[data-action=tie]').focus()")
    page.press("\ue007")  # Enter
    page.press(" ")
    assert choices(file) == ["tie", "tie"]


def test_hostile_text_stays_text(browser, file):
    hostile = [Pair(HOSTILE, HOSTILE + "1", HOSTILE + "2")]
    session = LabelSession(hostile, file)
    page = Labeller(browser, session)
    page.widget = label_pairs(session, question=HOSTILE)
    page.show()
    assert page.shown() == [HOSTILE + "1", HOSTILE + "2"]
    assert page.said("prompt") == page.said("question") == HOSTILE
    page.click("left")
    assert browser.js("typeof window.hacked") == "undefined"
    assert not browser.all(".minirlhf-label img, .minirlhf-label script")


def test_an_error_of_saving_is_shown_and_the_pair_stays(browser, file):
    page = Labeller(browser, LabelSession(pairs(*"abc"), file))
    page.click("left")
    file.write_text("")  # another program
    page.click("left")
    assert "anna.jsonl was changed by another program" in page.said("note")
    assert page.said("count") == "1 of 3 labelled" and page.shown() == ["b", "dull"]


def test_a_silent_kernel_is_reported(browser, file):
    page = Labeller(browser, LabelSession(pairs(*"abc"), file))
    browser.js("(window.setTimeout = (f) => { f(); return 1; })")  # no waiting
    browser.one("[data-action=left]").click()
    assert page.said("note").startswith("The kernel does not answer.")
    page.answer()
    assert page.said("note") == "" and choices(file) == ["left"]


def test_a_removed_widget_no_longer_listens(browser, file):
    page = Labeller(browser, LabelSession(pairs("a"), file))
    assert browser.js("window.heard.length") == 1
    browser.js("window.gone()")
    assert browser.js("window.heard.length") == 0
    page.show()


@pytest.mark.parametrize("dark", [False, True])
def test_the_theme_of_the_system_or_of_jupyterlab(browser, file, dark):
    browser.media(dark=dark)
    Labeller(browser, LabelSession(pairs("a"), file))
    paper = "getComputedStyle(document.querySelector('.minirlhf-label')).backgroundColor"
    papers = {True: "rgb(27, 28, 31)", False: "rgb(255, 255, 255)"}
    assert browser.js(paper) == papers[dark]
    browser.js("(document.body.dataset.jpThemeLight = a[0])", str(dark).lower())
    assert browser.js(paper) == papers[not dark]


def test_a_phone_shows_one_response_under_the_other(browser, file):
    browser.size(360, 740)
    Labeller(browser, LabelSession(pairs("x" * 400), file))
    left, right = browser.all(".side")
    assert right.rect["y"] > left.rect["y"]
    assert browser.js("document.documentElement.scrollWidth") <= 360
