"""The first quarter of an hour with passy, as somebody has it: one command, a browser, the SDK."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openai
import pytest
from harness.chromium import Complaints, launched
from harness.gateway import Gateway, Shipped, until
from harness.portal import PASSWORD

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser


class Up(Gateway):
    """``passy up`` in an empty folder."""

    command = "up"

    def printed(self, pattern: str) -> str:
        """What it tells whoever started it, as soon as it does."""

        def told() -> str | None:
            found = re.search(rf"{pattern}\s", (self.folder / "out").read_text())
            return found[1] if found else None

        return until(told)

    def chat(self, key: str, model: str) -> Any:
        """By the SDK."""
        with openai.OpenAI(base_url=self.base_url, api_key=key, max_retries=0) as client:
            messages: Any = [{"role": "user", "content": "is anybody there"}]
            return client.chat.completions.create(model=model, messages=messages)


def founded(page: Page, link: str) -> str:
    """The first owner's first key."""
    page.goto(link)
    page.fill("#name", "Ada")
    page.fill("#email", "ada@example.com")
    page.fill("#password", PASSWORD)
    page.fill("#organisation", "Engines")
    page.click("button.primary")
    page.click("button[value=echo]")
    return page.text_content("#the-key") or ""


def test_from_passy_up_to_a_request_in_the_live_tail_and_to_401(
    tmp_path: Path, shipped: Shipped
) -> None:
    up = Up(tmp_path, shipped(), {})
    up.start()
    try:
        with launched() as browser:
            complaints = Complaints()
            page = complaints.watch(browser.new_page())
            key = founded(page, up.printed(r"(http://\S+/portal/first\?link=\S+)"))

            # The key that the console showed is of this organisation, with what it has done.
            page.goto(f"{up.url}/portal/keys")
            assert page.locator("tbody a", has_text="passy up").count() == 1
            printed = up.printed(r"(sk-passy-\S+)")
            assert up.chat(printed, "echo").choices[0].message.content

            # The row of a request appears by itself, and leads to its attempts.
            page.goto(f"{up.url}/portal/requests?live=1")
            page.wait_for_selector("#live[aria-pressed=true]")
            up.chat(key, "demo")
            row = page.locator("#request-rows tr", has_text="demo")
            row.wait_for()
            row.locator("th a").click()
            page.wait_for_selector(".tries")
            page.wait_for_load_state()
            assert page.locator(".tries .try svg[role=img]").count() == 2
            tries = page.locator("table.tries-table tbody tr")
            assert "500" in (tries.nth(0).text_content() or "")
            assert "✓" in (tries.nth(1).text_content() or "")

            # It is on the chart of usage, and in its table.
            page.goto(f"{up.url}/portal/usage?by=model&show=requests")
            assert page.locator(".plot rect").count() >= 1
            assert "demo" in (page.text_content("main") or "")

            page.goto(f"{up.url}/portal/keys")
            page.locator("tbody a", has_text="first key").click()
            page.click("text=Disable the key")
            page.wait_for_selector(".state.disabled")
            assert until(lambda: refused(up, key))
            assert [] == complaints
    finally:
        assert up.stop() == 0, up.complaints()


def refused(up: Up, key: str) -> bool | None:
    try:
        up.chat(key, "demo")
    except openai.AuthenticationError:
        return True
    return None
