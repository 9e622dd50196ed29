"""No text becomes an element or an attribute of a page: 21 payloads in every page that is written."""

from html.parser import HTMLParser

import pytest

from tests.show.payloads import PAYLOADS, WRITERS

HARMLESS = "a film"


class Parsed(HTMLParser):
    """The elements, attributes and links of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.attributes: set[tuple[str, str]] = set()
        self.links: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append(tag)
        self.attributes |= {(tag, name) for name, _ in attributes}
        self.links += [value or "" for name, value in attributes if name in ("href", "src")]


@pytest.mark.parametrize("name", WRITERS)
def test_a_payload_adds_no_element_no_attribute_and_no_link(name, tmp_path):
    honest = Parsed(WRITERS[name](HARMLESS, tmp_path))
    # `score` loads two models for each page; the browser tests open all of them
    for payload in PAYLOADS[:2] if name == "score --html" else PAYLOADS:
        page = Parsed(WRITERS[name](payload, tmp_path))
        assert {*page.elements} <= {*honest.elements}, payload
        assert page.elements.count("script") == honest.elements.count("script"), payload
        assert page.attributes <= honest.attributes, payload
        assert not any("javascript:" in link for link in page.links), payload


def test_the_payloads_would_be_noticed():
    for payload in PAYLOADS:
        page = Parsed(f"<p>{payload}</p><p title='{payload}'>")
        seen = {*page.elements} - {"p"} or {n for _, n in page.attributes} - {"title"}
        text_only = ("[a](", "&lt;", "<!--", "\\u003c", '" autofocus')
        assert seen or payload.startswith(text_only), payload
