"""Script injection: every payload in every page that the package writes, in a real browser."""

from tests.browser.conftest import browser, driver  # noqa: F401  (fixtures)
from tests.browser.test_injection_in_browser import none_runs
from tests.show.payloads import PAYLOADS, WRITERS


def test_no_payload_runs(browser, tmp_path_factory, record_property):  # noqa: F811
    folder, opened = tmp_path_factory.mktemp("pages"), 0
    for write in WRITERS.values():
        for payload in PAYLOADS:
            none_runs(browser, write(payload, folder))
            opened += 1
    record_property("scripts in pages", f"none of {opened} ran ({len(PAYLOADS)} payloads)")
