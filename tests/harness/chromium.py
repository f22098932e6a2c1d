"""Debian's Chromium, driven by Playwright, on pages that may do nothing their policy forbids."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page

WAIT = 120_000
"""Milliseconds that anything may take; only a hang takes so long."""
UNHURRIED = """{ const wait = window.setTimeout;
window.setTimeout = (act, ms, ...more) => wait(act, 60 * ms, ...more); }"""
"""A script for before a page's own: its seconds are minutes. Of two keys that belong together the
second may come late."""


def installed() -> str:
    """The path of the browser; without one the test is skipped, and in CI it fails."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        missing = "BROWSER TESTS DID NOT RUN: Chromium is needed (apt-get install chromium)"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    return path


@contextmanager
def launched() -> Iterator[Browser]:
    path = installed()
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=WAIT)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


class Complaints(list[str]):
    """What the console says of the pages watched: violations of the policy, scripts that fail."""

    def watch(self, page: Page) -> Page:
        page.set_default_timeout(WAIT)
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.append(f"{page.url}: {error}"))
        return page

    def _said(self, message: ConsoleMessage) -> None:
        # A page that is answered with 4xx is said to be an error, and is meant.
        if message.type in ("error", "warning") and "the server responded with" not in message.text:
            self.append(f"{message.location.get('url')}: {message.text}")
