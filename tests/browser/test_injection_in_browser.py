"""21 payloads in every page that is written, opened by a real browser: none runs."""

import pytest

from minirlhf.tasks import LabelSession, Pair
from tests.browser.test_labelling_in_browser import Labeller
from tests.show.payloads import PAYLOADS, WRITERS

pytestmark = pytest.mark.browser
EVENTS = """[...document.querySelectorAll('body *')].forEach((e) => {
  for (const name of ['mouseover', 'focus', 'toggle', 'load', 'error'])
    e.dispatchEvent(new Event(name));
  if (e.tagName === 'A' && e.protocol === 'javascript:') e.click();
})"""


def none_runs(browser, page: str) -> None:
    """Open a page and send every element the events that a payload waits for."""
    browser.open(page)
    browser.js(EVENTS)
    assert browser.js("typeof window.hacked") == "undefined"


@pytest.mark.parametrize("name", WRITERS)
def test_no_payload_runs_in_a_page(browser, name, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    for payload in PAYLOADS:
        none_runs(browser, WRITERS[name](payload, folder))


def test_no_payload_runs_in_the_labelling_page(browser, tmp_path_factory):
    folder = tmp_path_factory.mktemp("labels")
    for number, payload in enumerate(PAYLOADS):
        pair = Pair(prompt=payload, left=payload, right=payload + "b")
        Labeller(browser, LabelSession([pair], folder / f"{number}.jsonl", "anna"))
        browser.js(EVENTS)
        assert browser.js("typeof window.hacked") == "undefined", payload


def test_a_payload_that_is_not_escaped_runs(browser):
    """The browser would notice: without escaping most payloads run."""
    ran = 0
    for payload in PAYLOADS:
        browser.open(f"<!doctype html><body><p>{payload}</p><p title='{payload}'>b</p>")
        browser.js(EVENTS)
        ran += browser.js("typeof window.hacked") != "undefined"
    assert ran >= 10
