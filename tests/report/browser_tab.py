"""A page in a real browser, for tests: what it says, and everything that it should not have done."""

import csv
import io
import json
import shutil
import time
from pathlib import Path

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install -e '.[test]'")
BROWSER = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
PATIENCE = 60
"""Seconds until what a page does counts as not done: a slow machine with two tests at once takes more than five to draw what Plotly is loaded for."""
playwright.expect.set_options(timeout=1000 * PATIENCE)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine: apt-get install chromium")


@pytest.fixture(scope="module")
def browser():
    """Return a browser that has just been started."""
    with playwright.sync_playwright() as tools:
        started = tools.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])  # as root it starts no other way
        yield started
        started.close()


class Page:
    """A page that remembers everything it should not have done: errors, dialogs, requests."""

    def __init__(self, browser, address, width=1400):
        self.context = browser.new_context(viewport={"width": width, "height": 900}, accept_downloads=True)
        self.context.set_default_timeout(1000 * PATIENCE)
        self.tab, self.wrong = self.context.new_page(), []
        self.tab.on("console", lambda message: self.wrong.append(message.text) if message.type in ("error", "warning") else None)
        self.tab.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.tab.on("dialog", lambda dialog: (self.wrong.append(dialog.message), dialog.dismiss()))
        address = address.as_uri() if isinstance(address, Path) else address
        allowed = (address.partition("?")[0], "data:", "blob:")
        self.tab.on("request", lambda request: None if request.url.startswith(allowed) else self.wrong.append(request.url))
        self.tab.goto(address)
        self.alive()
        self.data = json.loads(self.tab.locator("#payload").text_content())

    def alive(self):
        self.until("document.documentElement.classList.contains('alive')")

    def until(self, condition):
        """Wait for what a script says; the page forbids the strings that playwright's own waiting would evaluate in it."""
        deadline = time.monotonic() + PATIENCE
        while not self.tab.evaluate(condition):
            assert time.monotonic() < deadline, condition
            self.tab.wait_for_timeout(20)

    def go(self, selector):
        self.tab.evaluate(f"document.querySelector('{selector}').scrollIntoView()")

    def press(self, *keys):
        for key in keys:
            self.tab.keyboard.press(key)

    def text(self, selector):
        return self.tab.locator(selector).text_content().replace(",", "")

    def says(self, selector, words):
        playwright.expect(self.tab.locator(selector)).to_contain_text(words)

    def download(self, kind):
        with self.tab.expect_download() as started:
            self.tab.locator(f"dl [data-export={kind}]").click()
        with open(started.value.path(), encoding="utf-8", newline="") as opened:
            return started.value.suggested_filename, opened.read()


def rows_of(text):
    """Return the rows of a table that the page wrote."""
    return list(csv.DictReader(io.StringIO(text, newline="")))
