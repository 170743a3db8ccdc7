"""A page in a headless Chromium for tests: the fixture `page`, which remembers whatever went wrong in it.

Without Chromium on the machine these tests are skipped; with DISTILKIT_REQUIRE_BROWSER=1, as in CI, they fail.
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
OWN_HOSTS = ("localhost", "127.0.0.1", "::1")


@dataclass
class Faults:
    """What a page should not do. `console`: its errors and warnings; `foreign`: requests that leave this machine."""

    console: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    """All, for those who want to look."""

    def __bool__(self) -> bool:
        return bool(self.console or self.foreign or self.failed)


class WatchedPage:
    """A Playwright page and its `faults`; everything else is the page's own."""

    def __init__(self, page: "Page") -> None:
        self.page, self.faults = page, Faults()
        page.on("console", self._told)
        page.on("pageerror", lambda error: self.faults.console.append(str(error)))
        page.on("request", self._asked)
        page.on("requestfailed", lambda request: self.faults.failed.append(request.url))
        page.on("dialog", self._dialog)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.page, name)

    def _told(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.faults.console.append(message.text)

    def _asked(self, request: Any) -> None:
        url = request.url
        self.faults.requests.append(url)
        parts = urlsplit(url)
        if parts.scheme not in ("file", "data", "blob", "about") and parts.hostname not in OWN_HOSTS:
            self.faults.foreign.append(url)

    def _dialog(self, dialog: Any) -> None:
        self.faults.console.append(f"dialog: {dialog.message}")
        dialog.dismiss()


def chromium() -> str:
    """Where Chromium is; skips the test, or fails it where a browser is required."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        message = f"no Chromium on this machine (looked for {', '.join(NAMES)})"
        if os.environ.get("DISTILKIT_REQUIRE_BROWSER") == "1":
            pytest.fail(f"{message}, and DISTILKIT_REQUIRE_BROWSER is 1")
        pytest.skip(message)
    return found


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """Of a module, not of the session: Playwright keeps an event loop running, which other tests may not expect."""
    executable = chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def page(browser: "Browser") -> Iterator[WatchedPage]:
    """A fresh page of 1280 x 900 in a context of its own, light by default."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light")
    yield WatchedPage(context.new_page())
    context.close()
