"""The site, as `make site` builds it: its links, and its pages in a real browser."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.browser.conftest import missing

pytestmark = pytest.mark.browser
ROOT = Path(__file__).parents[2]
LOADED = {"img": "src", "script": "src", "iframe": "src", "link": "href", "source": "src"}


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The site's folder, built once."""
    if importlib.util.find_spec("sphinx") is None:
        missing("Sphinx is missing: python -m pip install -r requirements-site.txt")
    out = tmp_path_factory.mktemp("site") / "pages"
    command = [sys.executable, str(ROOT / "docs" / "site" / "build.py"), str(out)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


class Page(HTMLParser):
    """A page's links, the files that it loads, and the places that a link can name."""

    def __init__(self, text: str):
        super().__init__()
        self.links, self.loads, self.places = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.places |= {given[name] for name in ("id", "name") if given.get(name)}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        link = tag != "link" or given.get("rel") not in ("index", "search", "next", "prev")
        if tag in LOADED and given.get(LOADED[tag]) and link:
            self.loads.append(given[LOADED[tag]])


@pytest.fixture(scope="session")
def pages(site):
    paths = [p for p in sorted(site.rglob("*.html")) if "_static" not in p.parts]  # templates
    return {path: Page(path.read_text("utf-8")) for path in paths}


def test_the_site_has_every_lesson_page_and_source_file(site):
    for source in (ROOT / "notebooks").glob("*.ipynb"):
        assert (site / "notebooks" / f"{source.stem}.html").is_file()
    for source in (ROOT / "notebooks" / "solutions").glob("*.ipynb"):
        assert (site / "notebooks" / "solutions" / f"{source.stem}.html").is_file()
    for source in [*(ROOT / "docs").glob("*.md")]:
        assert (site / "docs" / f"{source.stem}.html").is_file()
    for source in (ROOT / "minirlhf").rglob("*.py"):
        assert (site / f"{source.relative_to(ROOT)}.html").is_file()


def test_every_link_within_the_site_leads_somewhere(site, pages):
    broken = []
    for path, page in pages.items():
        for link in page.links + page.loads:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                broken.append((path.name, link))
            elif parts.fragment and target.suffix == ".html":
                if unquote(parts.fragment) not in pages[target].places:
                    broken.append((path.name, link))
    assert not broken


def test_no_page_loads_anything_from_outside(pages):
    outside = {
        (path.name, load)
        for path, page in pages.items()
        for load in page.loads
        if urlsplit(load).scheme not in ("", "data") or urlsplit(load).netloc
    }
    assert not outside


def test_a_site_is_not_written_over_another_folder(tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    command = [sys.executable, str(ROOT / "docs" / "site" / "build.py"), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert "is not a site of this command; give another folder" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def opened(browser, path):
    browser.driver.get(path.as_uri())
    for _ in range(100):
        if browser.js("document.readyState") == "complete":
            return
        time.sleep(0.1)


def waited(browser, expression):
    """The value of an expression as soon as it is true."""
    for _ in range(200):
        if value := browser.js(expression):
            return value
        time.sleep(0.1)
    raise AssertionError(f"never true: {expression}")


def requests(browser):
    """The addresses that the pages asked for, other than files and data."""
    events = [json.loads(e["message"])["message"] for e in browser.driver.get_log("performance")]
    sent = [
        e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"
    ]
    return [url for url in sent if not url.startswith(("file:", "data:", "blob:", "about:"))]


def wrong(browser):
    """Errors in the console. A fresh browser has no colour mode yet, which the theme calls invalid."""
    return [
        entry["message"]
        for entry in browser.driver.get_log("browser")
        if entry["level"] == "SEVERE" and "Got invalid theme mode" not in entry["message"]
    ]


def test_a_lesson_has_formulas_figures_and_the_microscope(browser, site):
    opened(browser, site / "notebooks" / "06_ppo.html")
    assert waited(browser, "document.querySelectorAll('mjx-container').length") > 50
    assert browser.js("document.querySelectorAll('mjx-merror').length") == 0
    assert browser.js("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    assert waited(browser, "document.querySelectorAll('.tokens .token').length") > 20
    box = browser.one(".tokens .token")
    browser.js("a[0].scrollIntoView({block: 'center'})", box)
    browser.point(box)
    assert "Position 0" in waited(browser, "document.querySelector('.which').innerText")
    assert not requests(browser) and not wrong(browser)


def test_a_source_page_has_words_beside_its_code(browser, site):
    browser.size(1500)
    opened(browser, site / "minirlhf" / "core" / "returns.py.html")
    row = browser.all(".annotated")[1]
    assert browser.one("article h1").text.startswith("minirlhf/core/returns.py")
    words, code = (row.find_element("css selector", f".{name}") for name in ("words", "code"))
    assert "Reward-to-go" in words.text and "def reward_to_go" in code.text
    assert words.rect["y"] == pytest.approx(code.rect["y"], abs=2)
    assert words.rect["x"] + words.rect["width"] <= code.rect["x"]
    assert browser.js("document.documentElement.scrollWidth <= innerWidth")
    browser.size(500)
    words, code = (row.find_element("css selector", f".{name}") for name in ("words", "code"))
    assert words.rect["y"] < code.rect["y"]  # below each other on a telephone
    assert not requests(browser) and not wrong(browser)


def test_the_search_finds_a_lesson_and_a_source_file(browser, site):
    browser.driver.get((site / "search.html").as_uri() + "?q=reward_to_go")
    for page in ("notebooks/04_the_policy_gradient", "minirlhf/core/returns.py"):
        waited(browser, f"document.querySelector('#search-results a[href*=\"{page}\"]') !== null")
    assert not requests(browser) and not wrong(browser)


def test_a_folded_answer_opens(browser, site):
    opened(browser, site / "notebooks" / "06_ppo.html")
    browser.js("document.querySelector('details summary').click()")
    assert waited(browser, "document.querySelector('details').open")
    text = browser.js("document.querySelector('details').innerText")
    assert re.search(r"\w+ \w+ \w+", text) and "$" not in text
