"""Every page of the portal, in use and at its beginning: accessible, within its policy and its
window, in light and dark, with and without scripts. The pages are those that links lead to."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import pytest
from axe_playwright_python.base import AXE_SCRIPT
from harness.chromium import UNHURRIED, Complaints, launched
from harness.demo import BEGINNER, CONFIGURATION, Demo, fill, patterns, steer, walked
from harness.gateway import Serve
from harness.portal import PASSWORD, books, me

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

pytestmark = pytest.mark.browser

STEERED = ("/models", "/settings/prices", "/settings/prices/set?target=openai/gpt-4.1")
"""Pages on which what the gateway does is changed for everybody: all rules, in the light too."""
MORE = (
    STEERED[-1],
    "/usage?by=key_id",
    "/usage?model=no%20such",
    "/keys?q=nothing-is-called-so",
    "/nowhere",
)
STRANGERS = ("/login", "/first?link=x", "/join?link=x")
NARROWEST = 320
"""Pixels: 1280 at four times their size, which WCAG's reflow asks for."""
FEW = """for (const table of document.querySelectorAll("table")) {
  [...table.tBodies].slice(4).forEach((body) => body.remove());
  for (const body of table.tBodies) [...body.rows].slice(4).forEach((row) => row.remove());
}"""
"""Rows are like each other, and axe looks at each cell of each."""
ZOOMED = {"width": 640, "height": 400}
"""What is left of 1280 by 800 at twice the size, drawn with two dots for each pixel."""
CUT_OFF = """() => [...document.querySelectorAll("a, button, input, select, textarea, summary")]
  .filter((each) => each.checkVisibility() && !each.closest("[role=region], .nav, .subnav, pre"))
  .filter((each) => !each.matches(".skip, .unseen, [type=hidden]"))
  .filter((each) => { const at = each.getBoundingClientRect();
    return at.width > 1 && (at.left < -1 || at.right > innerWidth + 1); })
  .map((each) => each.outerHTML.slice(0, 120))"""
"""Whatever can be used has to be within the window, but for what scrolls by itself."""
ALL = 'axe.run({resultTypes: ["violations"]})'
COLOURS = (
    'axe.run({resultTypes: ["violations"], runOnly: ["color-contrast", "link-in-text-block"]})'
)
"""What looks at colours: themes differ in nothing else, and axe takes its time. All of it is asked
of one theme in each run, and of both in the large ones."""


WORK, ELSEWHERE = "http://127.0.0.1:9/work", "http://127.0.0.1:9/elsewhere"
"""Issuers that nobody asks."""
OIDC = (
    f'oidc: {{work: {{issuer: "{WORK}", client_id: passy, title: Work}}, '
    f'elsewhere: {{issuer: "{ELSEWHERE}", client_id: passy, title: Elsewhere}}}}'
)


class Seen(NamedTuple):
    demo: Demo
    browser: Browser
    complaints: Complaints
    pages: dict[str, str]

    @property
    def url(self) -> str:
        return f"{self.demo.gateway.url}/portal"

    def signed_in(self, email: str, password: str, **more: Any) -> BrowserContext:
        context = self.browser.new_context(**more)
        page = self.complaints.watch(context.new_page())
        page.goto(f"{self.url}/login")
        page.fill("#email", email)
        page.fill("#password", password)
        page.click("button.primary")
        page.wait_for_selector("nav")
        page.wait_for_load_state()
        return context


@pytest.fixture(scope="module")
def seen(serve: Serve) -> Iterator[Seen]:
    text = CONFIGURATION.replace(
        "{app: portal, store: books}", f"{{app: portal, store: books, {OIDC}}}"
    )
    assert OIDC in text
    gateway = serve(text, start=False)
    demo = fill(gateway, 3)
    gateway.start()
    browser = demo.signed_in()
    user = me(browser)["user"]
    books(gateway, "INSERT INTO portal_identities VALUES (?, 'ada-there', ?, 0)", WORK, user)
    browser.look("/account/second")
    assert 303 == browser.send("/account/second/begin").status  # With its picture from now on.
    steer(browser)
    pages = walked(browser)
    with launched() as browser:
        yield Seen(demo, browser, Complaints(), pages)
    assert 0 == gateway.stop()


def looked_at(
    page: Page, address: str, complaints: Complaints, light: str = COLOURS
) -> dict[str, Any]:
    """What is wrong with a page: of its policy, its window and its accessibility. ``light``: what
    is asked of it in the light."""
    page.set_viewport_size({"width": NARROWEST, "height": 800})
    page.goto(address)
    wrong: dict[str, Any] = {}
    if (over := page.evaluate("document.documentElement.scrollWidth - innerWidth")) > 0:
        wrong["wider than its window by"] = over
    page.set_viewport_size(ZOOMED)
    if (over := page.evaluate("document.documentElement.scrollWidth - innerWidth")) > 0:
        wrong["zoomed, wider than its window by"] = over
    if cut := page.evaluate(CUT_OFF):
        wrong["zoomed, cut off"] = cut
    page.set_viewport_size({"width": 1280, "height": 800})
    page.evaluate(FEW)
    if complaints:
        wrong["complaints"] = list(complaints)
    page.evaluate(AXE_SCRIPT)
    themes: tuple[tuple[Literal["light", "dark"], str], ...] = (("light", light), ("dark", ALL))
    for theme, run in themes:
        page.emulate_media(color_scheme=theme)
        for one in page.evaluate(run)["violations"]:
            nodes = [node["html"][:160] for node in one["nodes"][:3]]
            wrong[f"{theme}: {one['id']}"] = nodes
        complaints.clear()  # axe looks at styles in ways that no page of ours does.
    return wrong


def test_links_lead_to_every_page(seen: Seen) -> None:
    at_its_beginning = walked(seen.demo.beginner())
    assert set() == set(patterns()) - set(seen.pages) - set(at_its_beginning)


EMPTY = ("/", "/begin", "/requests", "/usage", "/keys", "/providers", "/limits", "/team", "/audit")
"""Pages that say something else where nothing has happened yet."""


@pytest.mark.parametrize(
    "state",
    [
        "in use", "to a stranger", pytest.param("at its beginning", marks=pytest.mark.large),
        pytest.param("all of it at its beginning", marks=pytest.mark.large),
    ],
)  # fmt: skip
def test_W7_every_page_is_accessible_and_keeps_its_policy(seen: Seen, state: str) -> None:
    demo = seen.demo
    if state == "in use":
        context = seen.signed_in(demo.owner, demo.password, device_scale_factor=2)
        paths = [*seen.pages.values(), *MORE]
        shown = demo.signed_in().look("/models").text
        for button in (">Pin<", ">Disable<", ">Unpin<", ">Enable<"):
            assert button in shown
        assert "nobody is asked" in shown
    elif state.endswith("at its beginning"):
        context = seen.signed_in(BEGINNER, PASSWORD)
        paths = list(walked(demo.beginner()).values() if "all" in state else EMPTY)
    else:
        context, paths = seen.browser.new_context(), list(STRANGERS)
    page = seen.complaints.watch(context.new_page())
    found = {
        path: looked_at(page, seen.url + path, seen.complaints,
                        ALL if state.endswith("at its beginning") or path in STEERED else COLOURS)
        for path in paths
    }  # fmt: skip
    assert {} == {path: wrong for path, wrong in found.items() if wrong}


def test_without_scripts_every_page_is_whole(seen: Seen) -> None:
    browser = seen.demo.signed_in()
    for path in (*seen.pages.values(), *MORE):
        text = browser.look(path).body.decode()
        assert 1 == len(re.findall(r"<h1[ >]", text)), path
        if path != "/nowhere":
            bar = text[text.index("<header") : text.index("</header>")]
            assert 1 == bar.count('aria-current="page"'), path
        for form in re.findall(r"<form.*?</form>", text, re.S):
            assert "<button" in form, (path, form[:200])


@pytest.mark.parametrize("role", ["admin", "developer", "viewer", "billing"])
def test_no_role_is_led_where_it_may_not_go(seen: Seen, role: str) -> None:
    people = {"admin": "tomas", "developer": "ines", "viewer": "sam", "billing": "lena"}
    browser = seen.demo.signed_in(f"{people[role]}@halcyon.example")
    for path in walked(browser).values():
        assert 200 == browser.look(path).status, path


def test_the_keyboard_leads_everywhere_and_rows_are_links(seen: Seen) -> None:
    context = seen.signed_in(seen.demo.owner, seen.demo.password, reduced_motion="reduce")
    page = context.pages[0]
    page.add_init_script(UNHURRIED)
    page.reload()
    links = page.locator("[data-go]").evaluate_all(
        "all => all.map(each => [each.dataset.go, new URL(each.href).pathname])"
    )
    assert len(links) == len({letter for letter, _ in links})
    for letter, path in links:
        with page.expect_navigation(url=f"**{path}"):
            page.keyboard.press("g")
            page.keyboard.press(letter)
    page.goto(f"{seen.url}/keys")
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("k")
    page.keyboard.press("ArrowDown")
    href = page.evaluate("document.activeElement.href")
    assert href == page.locator("tbody th a").nth(1).evaluate("each => each.href")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert "solid" == outline
    with page.expect_navigation(url=href):
        page.keyboard.press("Enter")
    page.goto(f"{seen.url}/keys")
    with page.expect_navigation(url="**/keys/key_*"):
        page.locator("tbody tr").nth(2).locator("td").nth(1).click()
    page.goto(f"{seen.url}/usage?by=key_id")
    with page.expect_navigation():
        page.click("button:text-is('Dark')")
    assert page.url.endswith("/usage?by=key_id")
    assert "dark" == page.get_attribute("html", "data-theme")
    still = "getComputedStyle(document.querySelector('.dot, body')).animationName"
    assert "none" == page.evaluate(still)
    assert [] == seen.complaints
