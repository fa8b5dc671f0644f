"""Debian's Chromium, or the browser that SUPERMASK_CHROMIUM names, and pages that must log nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = os.environ.get("SUPERMASK_CHROMIUM") or shutil.which("chromium")

WAIT = 20_000
"""Milliseconds. The dashboard polls every two seconds; a busy machine needs a few more."""

needs_browser = pytest.mark.skipif(
    CHROMIUM is None and not os.environ.get("CI"), reason="no chromium here: install it, or set SUPERMASK_CHROMIUM"
)
"""Without a browser the tests are skipped, except in CI, where they fail."""


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Start a browser. One per module: until it ends, no test of the module can use `asyncio.run`."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass
class LoggedPage:
    """A page with its requests, its errors and its console messages."""

    page: Page
    requests: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)

    @property
    def addresses(self) -> list[str]:
        """Requested addresses, without those that hold their own content."""
        return [url for url in self.requests if not url.startswith(("data:", "blob:"))]


@contextmanager
def open_page(browser: Browser, width: int = 1280, scheme: Any = "light", height: int = 900) -> Iterator[LoggedPage]:
    """Open an empty page that records every request, error and console message."""
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    log = LoggedPage(page)
    page.on("request", lambda request: log.requests.append(request.url))
    page.on("pageerror", lambda error: log.messages.append(str(error)))
    page.on("console", lambda message: log.messages.append(message.text))
    yield log
    page.close()
