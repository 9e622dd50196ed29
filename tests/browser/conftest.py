"""A real Chromium without a window, driven by selenium. Tests use the fixture `browser`.

selenium is imported late, so that the other tests run without it.
"""

import importlib.util
import os
import shutil
from pathlib import Path

import pytest

BINARIES = ("chromium", "chromium-browser", "google-chrome")


class Browser:
    """One Chromium. It opens pages from files and answers questions about them."""

    def __init__(self, driver, folder: Path):
        self.driver, self.folder = driver, folder

    def reset(self, *, width=1000, height=800, dark=False, touch=False):
        self.driver.get("about:blank")
        self.size(width, height)
        self.media(dark=dark)
        self.cdp("Emulation.setTouchEmulationEnabled", enabled=touch)
        self.driver.get_log("performance")
        self.driver.get_log("browser")

    def size(self, width, height=800):
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.cdp("Emulation.setDeviceMetricsOverride", **metrics)

    def media(self, *, dark=False, media=""):
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.cdp("Emulation.setEmulatedMedia", media=media, features=[scheme])

    def cdp(self, command, **arguments):
        return self.driver.execute_cdp_cmd(command, arguments)

    def open(self, html: str) -> str:
        """Open a page from a file. Returns the file's URL."""
        path = self.folder / f"page{len(list(self.folder.iterdir()))}.html"
        path.write_text(html, encoding="utf-8")
        self.driver.get(path.as_uri())
        return path.as_uri()

    def js(self, expression: str, *arguments):
        """The value of a JavaScript expression; `arguments` are its a[0], a[1], ..."""
        return self.driver.execute_script(f"const a = arguments; return {expression}", *arguments)

    def all(self, selector: str) -> list:
        return self.driver.find_elements("css selector", selector)

    def one(self, selector: str):
        return self.driver.find_element("css selector", selector)

    def choose(self, select, label: str):
        """Choose an option of a select element by its text, or by its text before a colon."""
        for option in select.find_elements("tag name", "option"):
            if label in (option.text, option.text.split(":")[0]):
                option.click()
                return
        raise LookupError(f"no option {label!r}")

    def point(self, element):
        """Move the mouse over an element."""
        self._actions().move_to_element(element).perform()

    def press(self, *names: str):
        """Press keys, for example "HOME", in the element that has the focus."""
        self._actions().send_keys(*map(key, names)).perform()

    def press_in(self, element, *names: str):
        """Press keys in an element."""
        element.send_keys(*map(key, names))

    def _actions(self):
        from selenium.webdriver import ActionChains

        return ActionChains(self.driver)

    def errors(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]


def missing(reason: str):
    """Skip the test on a laptop; fail where the variable CI is set."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


def key(name: str) -> str:
    from selenium.webdriver import Keys

    return getattr(Keys, name)


@pytest.fixture(scope="session")
def driver():
    """Chromium with its driver from the system's packages; selenium downloads nothing."""
    binary = next(filter(None, map(shutil.which, BINARIES)), None)
    chromedriver = shutil.which("chromedriver")
    if binary is None or chromedriver is None:
        missing("Chromium or chromedriver is missing: apt-get install chromium chromium-driver")
    if importlib.util.find_spec("selenium") is None:
        missing("selenium is missing: python -m pip install -r requirements-dev.txt")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(chromedriver))
    yield driver
    driver.quit()


@pytest.fixture
def browser(driver, tmp_path):
    """The browser with an empty page of 1000 x 800 pixels, light, with a mouse."""
    browser = Browser(driver, tmp_path)
    browser.reset()
    yield browser
    driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})
