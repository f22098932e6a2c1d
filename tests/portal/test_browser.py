"""The portal as people use it: Chromium, a real gateway, the real SDK."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import openai
import pytest
from harness.chromium import UNHURRIED, Complaints, launched
from harness.gateway import Gateway, Serve, until
from harness.office import VARIABLES
from harness.portal import CONFIGURATION, PASSWORD, first_link

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

pytestmark = pytest.mark.browser

CANARY = "<script>window.canary=1</script><img src=x onerror=window.canary=1>'\"&"
PAGES = (
    "/", "/usage", "/usage?by=key_id&show=requests", "/usage?model=no%20such", "/keys",
    "/keys?q=nothing-is-called-so", "/keys/new", "/team", "/audit", "/account", "/playground",
    "/settings", "/settings/webhooks", "/settings/prices", "/settings/gateway",
    "/limits", "/limits?edit=organisation", "/keys?status=active&sort=spent",
    "/nowhere",
)  # fmt: skip


class Visit(NamedTuple):
    gateway: Gateway
    browser: Browser
    context: BrowserContext
    page: Page
    complaints: Complaints
    key: str

    @property
    def url(self) -> str:
        return f"{self.gateway.url}/portal"

    def ask(self, key: str = "", model: str = "one") -> Any:
        """By the SDK, as anybody would."""
        client = openai.OpenAI(
            base_url=self.gateway.base_url, api_key=key or self.key, max_retries=0
        )
        with client:
            messages: Any = [{"role": "user", "content": "hello there"}]
            return client.chat.completions.create(model=model, messages=messages)


@pytest.fixture(scope="module")
def visit(serve: Serve) -> Iterator[Visit]:
    """After the first run, as it is done by hand: the first key is there and its dot has turned
    green with the first request."""
    with launched() as browser:
        gateway = serve(CONFIGURATION, **VARIABLES)
        link = first_link(gateway)
        context = browser.new_context()
        complaints = Complaints()
        page = complaints.watch(context.new_page())
        page.goto(f"{gateway.url}/portal{link}")
        page.fill("#name", "Ada")
        page.fill("#email", "ada@example.com")
        page.fill("#password", PASSWORD)
        page.fill("#organisation", f"Engines {CANARY}")
        page.click("button.primary")
        page.click("text=Use the echo for now")
        key = page.text_content("#the-key") or ""
        page.wait_for_load_state()
        visit = Visit(gateway, browser, context, page, complaints, key)
        assert page.locator(".dot:not(.on)").count() == 1
        assert "hello there" in visit.ask().choices[0].message.content
        page.wait_for_selector(".dot.on")
        yield visit


@pytest.fixture(autouse=True)
def quiet(visit: Visit) -> Iterator[None]:
    """No page does what its policy forbids, and no script of a name has run."""
    yield
    assert [] == visit.complaints
    assert visit.page.evaluate("window.canary") is None


@pytest.mark.large  # `test_end_to_end.py` goes a longer way
def test_from_a_key_to_its_numbers_and_to_401(visit: Visit) -> None:
    page = visit.page
    page.goto(f"{visit.url}/keys")
    page.click("text=Create a key")
    page.fill("#f-name", f"build {CANARY}")
    page.fill("#f-models", "one, pattern-*")
    page.click("text=Create the key")
    key = page.text_content("#the-key") or ""
    code = page.text_content("#code-1 code") or ""
    assert f"{visit.gateway.url}/v1/chat/completions" in code
    assert key in code
    for _ in range(3):
        visit.ask(key, "pattern-7")
    page.wait_for_selector(".dot.on")
    page.click("text=To the key")
    assert "3" == page.text_content(".tiles > div:nth-child(2) dd")
    page.goto(visit.url)
    assert "pattern-7" in page.text_content("main")
    requests = page.locator(".tiles > div", has=page.get_by_text("Requests", exact=True))
    assert int(requests.locator("dd").first.text_content() or 0) >= 4
    assert page.locator(".plot rect").count() >= 1
    page.goto(f"{visit.url}/usage?by=model&show=requests")
    rows = page.get_by_role("region", name="Usage by model").locator("tbody tr")
    row = rows.filter(has_text="pattern-7")
    assert "3" == row.locator("td").nth(1).text_content()
    page.goto(f"{visit.url}/keys")
    page.locator("tbody a", has_text="build").click()
    page.click("text=Disable the key")
    page.wait_for_selector(".state.disabled")

    def refused() -> bool | None:
        try:
            visit.ask(key, "pattern-7")
        except openai.AuthenticationError:
            return True
        return None

    assert until(refused)
    page.fill("#typed", f"build {CANARY}")
    page.click("text=Delete the key")
    page.wait_for_selector(".note.good")
    assert 0 == page.locator("tbody a", has_text="build").count()


def test_W7_what_clients_call_things_runs_nowhere(visit: Visit) -> None:
    with pytest.raises(openai.APIStatusError):
        visit.ask(model=CANARY)
    page = visit.page
    page.goto(f"{visit.url}/keys/new")
    page.fill("#f-name", CANARY)
    page.fill("#f-tags", "<b>,ci")
    page.click("text=Create the key")
    visit.ask(page.text_content("#the-key") or "")
    page.wait_for_selector(".dot.on")
    for path in (*PAGES, "/usage?by=tag", "/usage?by=key_id", "/usage?by=outcome"):
        page.goto(visit.url + path)
        assert page.evaluate("window.canary") is None, path


def test_without_scripts_everything_is_there(visit: Visit) -> None:
    context = visit.browser.new_context(java_script_enabled=False)
    page = visit.complaints.watch(context.new_page())
    page.goto(f"{visit.url}/keys/new")
    page.fill("#email", "ada@example.com")
    page.fill("#password", PASSWORD)
    page.click("button.primary")
    page.fill("#f-name", "by hand")
    page.click("text=Create the key")
    key = page.text_content("#the-key") or ""
    page.wait_for_load_state()
    assert 6 == page.locator(".code:visible").count()
    assert 0 == page.locator("[data-copy]:visible").count()
    visit.ask(key)
    page.click("text=To the key")

    def used() -> bool | None:
        page.reload()
        return page.text_content(".tiles > div:nth-child(2) dd") == "1" or None

    assert until(used)
    page.click("button:text-is('Dark')")
    page.wait_for_load_state()
    assert "dark" == page.get_attribute("html", "data-theme")
    page.goto(f"{visit.url}/usage")
    page.select_option("#by", "key_id")
    page.click("text=Show")
    page.wait_for_load_state()
    assert "by hand" in page.text_content("main")
    page.click("text=Sign out")
    assert page.url.endswith("/login")


def test_keys_of_the_keyboard_go_places(visit: Visit) -> None:
    page = visit.complaints.watch(visit.context.new_page())
    page.add_init_script(UNHURRIED)
    page.goto(visit.url)
    page.keyboard.press("g")
    page.keyboard.press("k")
    page.wait_for_url("**/keys")
    page.keyboard.press("/")
    assert "q" == page.evaluate("document.activeElement.id")
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    assert page.locator("dialog[open]").count() == 1
    page.keyboard.press("Escape")
    page.keyboard.press("c")
    page.wait_for_url("**/keys/new")
