"""The playground as people use it: Chromium asks a real gateway, from its own page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import pytest
from harness.chromium import WAIT, Complaints, launched
from harness.gateway import Gateway, Serve, until
from harness.office import VARIABLES
from harness.portal import CONFIGURATION, PASSWORD, Browser, found, joined
from harness.ports import free_port

if TYPE_CHECKING:
    from playwright.sync_api import Browser as Chromium
    from playwright.sync_api import BrowserContext, Locator, Page

pytestmark = pytest.mark.browser

CANARY = "<script>window.canary=1</script><img src=x onerror=window.canary=1>"
ELSEWHERE = """  /elsewhere: {app: portal, store: books, gateway_url: "http://localhost:PORT"}
"""
CORS = """
  - match: OPTIONS /*
    chain: [cors: {origins: ["http://127.0.0.1:PORT"]}, static: {status: 204}]
prices:"""
"""For who opens the portal at another origin than the gateway's: 127.0.0.1 is not localhost."""


def configuration(port: int) -> str:
    """With a second portal that was told that the gateway is at localhost."""
    text = CONFIGURATION.replace("\nprices:", CORS).replace("apps:\n", f"apps:\n{ELSEWHERE}")
    cors = 'cors: {origins: ["http://127.0.0.1:PORT"]}'
    text = text.replace("usage: {ledger: books}", f"{cors}, usage: {{ledger: books}}")
    return text.replace("PORT", str(port))


class Visit(NamedTuple):
    gateway: Gateway
    chromium: Chromium
    context: BrowserContext
    page: Page
    complaints: Complaints
    owner: Browser

    def open(self, query: str = "") -> Page:
        self.page.goto(f"{self.gateway.url}/portal/playground{query}")
        return self.page

    def ask(self, text: str, *models: str) -> None:
        for place, model in enumerate(models):
            self.page.fill(f"#model-{place}", model)
        self.page.fill(".turns li:last-child textarea", text)
        self.page.click("[data-send]")

    def answer(self, place: int = 0) -> Locator:
        return self.page.locator("[data-answer]").nth(place)


@pytest.fixture(scope="module")
def visit(serve: Serve) -> Iterator[Visit]:
    with launched() as chromium:
        port = free_port()
        gateway = serve(configuration(port), start=False, **VARIABLES)
        gateway.start(f"127.0.0.1:{port}")
        owner, _ = found(gateway)
        context = chromium.new_context()
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        complaints = Complaints()
        page = complaints.watch(context.new_page())
        page.goto(f"{gateway.url}/portal/login")
        page.fill("#email", "ada@example.com")
        page.fill("#password", PASSWORD)
        page.click("button.primary")
        yield Visit(gateway, chromium, context, page, complaints, owner)
        assert 0 == gateway.stop(), gateway.complaints()
        assert "Traceback" not in gateway.complaints()


@pytest.fixture(autouse=True)
def quiet(visit: Visit) -> Iterator[None]:
    """No page does what its policy forbids, and nothing that was answered has run."""
    visit.page.goto("about:blank")  # Without what an earlier test has typed.
    yield
    assert [] == visit.complaints
    assert visit.page.evaluate("window.canary") is None


def emptied(visit: Visit, query: str = "") -> Page:
    page = visit.open(query)
    page.evaluate("sessionStorage.clear()")
    return visit.open(query)


def test_an_answer_streams_with_its_measures_and_the_key_is_nowhere(visit: Visit) -> None:
    from playwright.sync_api import expect

    page = emptied(visit, "?model=one")
    assert "one" == page.input_value("#model-0")
    assert page.locator("[data-example]").count() >= 4
    asked = []
    page.on("request", lambda request: asked.append(request) if "/v1/" in request.url else None)
    visit.ask(f"Say {CANARY}", "one")
    answer = visit.answer()
    expect(answer.locator(".state")).to_have_text("done", timeout=WAIT)
    expect(answer.locator("[data-said]")).to_contain_text(CANARY)
    for term in ("First text here", "In all", "Tokens in", "Tokens out"):
        assert answer.locator("dt", has_text=term).count() == 1, term
    told = answer.locator("[data-measures]").inner_text()
    assert "echo/echo" in told
    assert "req_" in told
    # What it cost and when the first byte was sent is read from the books, a moment later.
    expect(answer.locator("dt", has_text="First byte, gateway")).to_be_visible(timeout=WAIT)
    expect(answer.locator("dt", has_text="Cost")).to_be_visible(timeout=WAIT)
    request = answer.locator("[data-measures] a")
    assert "/portal/requests/req_" in str(request.get_attribute("href"))
    assert page.locator("[data-examples]").is_hidden()
    key = str(asked[-1].headers["authorization"]).removeprefix("Bearer ")
    assert key.startswith("sk-passy-")
    assert "cookie" not in asked[-1].all_headers()
    for place in ("JSON.stringify(sessionStorage)", "JSON.stringify(localStorage)",
                  "document.documentElement.outerHTML", "document.cookie"):  # fmt: skip
        assert key not in page.evaluate(place), place
    # Go on, with what was answered; the same page goes on with its key.
    answer.locator("[data-go-on]").click()
    visit.ask("And again")
    expect(answer.locator(".state")).to_have_text("done", timeout=WAIT)
    assert ["user", "assistant", "user"] == page.evaluate(
        "[...document.querySelectorAll('[data-role]')].map((one) => one.value)"
    )
    assert key in asked[-1].headers["authorization"]
    page.reload()  # And nothing that was typed is lost by a reload.
    assert "And again" == page.input_value(".turns li:last-child textarea")


def test_two_models_side_by_side_and_one_is_stopped(visit: Visit) -> None:
    from playwright.sync_api import expect

    page = emptied(visit)
    page.click("[data-compare]")
    visit.ask("a long story " * 200, "one", "echo:slow")
    first, second = visit.answer(0), visit.answer(1)
    expect(first.locator(".state")).to_have_text("done", timeout=WAIT)
    expect(second.locator("[data-said]")).not_to_be_empty(timeout=WAIT)
    for width in (360, 1440):
        page.set_viewport_size({"width": width, "height": 900})
        assert 0 >= page.evaluate("document.documentElement.scrollWidth - innerWidth")
        left, right = first.bounding_box(), second.bounding_box()
        assert left
        assert right
        assert (left["x"] < right["x"]) == (width > 1000)
    expect(second.locator(".state")).to_have_text("answering")
    second.locator("[data-stop]").click()
    expect(second.locator(".state")).to_have_text("stopped")
    expect(page.locator("[data-send]")).to_be_visible()
    page.click("[data-compare]")
    visit.ask("slowly " * 200, "echo:slow")
    page.keyboard.press("Escape")
    expect(first.locator(".state")).to_have_text("stopped")
    assert second.is_hidden()


def test_an_error_is_what_a_client_sees_and_is_explained(visit: Visit) -> None:
    from playwright.sync_api import expect

    page = emptied(visit)
    for model, status, code, words in (
        ("no-such", "failed · 404", "model_not_found", "answers to that name"),
        ("echo:429", "failed · 429", "", "is used up"),
        ("echo:cut", "failed · 200", "upstream_broken", "broke off in the middle"),
    ):
        visit.ask("hello there, and more of it", model)
        answer = visit.answer()
        expect(answer.locator(".state")).to_have_text(status, timeout=WAIT)
        assert '"error"' in answer.locator("[data-json]").inner_text()
        assert code in answer.locator("[data-json]").inner_text()
        assert words in answer.locator("[data-words]").inner_text(), model
    assert visit.answer().locator("[data-said]").inner_text()  # What came before it broke off.
    # A key that ended meanwhile is replaced, and nobody notices.
    for row in visit.owner.api("GET", "/keys").json["rows"]:
        if row["name"] == "Playground":
            assert 204 == visit.owner.api("DELETE", f"/keys/{row['id']}").status

    def again() -> bool | None:
        made = visit.owner.api("GET", "/keys").json["rows"]
        if any(row["name"] == "Playground" for row in made):
            return True
        visit.ask("hello", "one")
        expect(visit.answer().locator(".state")).to_have_text("done", timeout=WAIT)
        return None

    assert until(again)
    page.click(".own summary")
    page.fill("[data-own-key]", "sk-passy-wrong")
    visit.ask("hello", "one")
    expect(visit.answer().locator(".state")).to_have_text("failed · 401", timeout=WAIT)


def test_who_makes_no_keys_pastes_one(visit: Visit) -> None:
    from playwright.sync_api import expect

    viewer = joined(visit.owner, "sam@example.com", "viewer")
    key = visit.owner.api("POST", "/keys", {"name": "for Sam"}).json["key"]
    context = visit.chromium.new_context()
    url = visit.gateway.url
    cookies = [{"name": name, "value": value, "url": url} for name, value in viewer.cookies.items()]
    context.add_cookies(cookies)  # type: ignore[arg-type]
    within = visit._replace(page=visit.complaints.watch(context.new_page()))
    page = within.open()
    page.click(".own summary")  # Closed: it opens again where it is needed.
    within.ask("hello", "one")
    expect(page.locator("[data-own-key]")).to_be_focused()
    assert page.locator("[data-answers]").is_hidden()
    page.fill("[data-own-key]", key)
    page.click("[data-send]")
    expect(within.answer().locator(".state")).to_have_text("done", timeout=WAIT)
    assert 0 == page.locator("[data-title]").count()
    context.close()


def test_a_prompt_is_kept_shared_and_written_as_code(visit: Visit) -> None:
    from playwright.sync_api import expect

    page = emptied(visit)
    page.locator("[data-example]", has_text="Extract").click()
    page.fill("#model-0", "one")
    page.click("[data-parameters] summary")
    page.fill("#p-temperature", "0.25")
    page.fill("#p-stop", "END, STOP")
    page.uncheck("[data-parameter=stream]")
    page.fill("[data-title]", f"Invoices {CANARY}")
    page.check("[data-shared]")
    page.click("[data-keep-button]")
    expect(page.locator("[data-prompts] li")).to_have_count(1)
    address = page.url
    assert "open=prompt_" in address
    page.click("#as-code summary")
    page.click("#as-code [role=tab]:text-is('Python')")
    code = page.locator("[data-code=Python]").inner_text()
    compile(code, "playground", "exec")
    assert "temperature=0.25" in code
    assert '"STOP"' in code
    assert f'base_url="{visit.gateway.base_url}"' in code
    page.locator("#play-code-2 [data-copy]").click()
    assert until(lambda: page.evaluate("navigator.clipboard.readText()") == code or None)
    other = joined(visit.owner, "grace@example.com", "developer")
    body = other.look(address.partition("/portal")[2]).body.decode()
    assert "Invoices &lt;script&gt;" in body
    page.goto(address)
    assert "0.25" == page.input_value("#p-temperature")
    assert "END, STOP" == page.input_value("#p-stop")
    assert "Invoice of 3 March" in page.input_value(".turns li:last-child textarea")
    visit.ask("hello")
    expect(visit.answer().locator(".state")).to_have_text("done", timeout=WAIT)
    expect(visit.answer().locator("[data-measures]")).to_contain_text("Cost")
    page.locator("[data-forget]").click()
    page.locator("[data-forget]").click()
    expect(page.locator("[data-prompts] li")).to_have_count(0)


@pytest.mark.large
def test_axe_finds_nothing_in_what_is_answered(visit: Visit) -> None:
    from axe_playwright_python.sync_playwright import Axe
    from playwright.sync_api import expect

    state = visit.context.storage_state()
    context = visit.chromium.new_context(storage_state=state, bypass_csp=True)
    page = context.new_page()
    within = visit._replace(page=page)
    within.open()
    page.click("[data-compare]")
    for summary in (".own", "#as-code", "[data-parameters]"):
        page.click(f"{summary} > summary")
    within.ask("hello", "one", "no-such")
    expect(within.answer().locator(".state")).to_have_text("done", timeout=WAIT)
    expect(within.answer(1).locator(".state")).to_have_text("failed · 404", timeout=WAIT)
    for theme, width in (("light", 1440), ("dark", 360)):
        page.emulate_media(color_scheme="dark" if theme == "dark" else "light")
        page.set_viewport_size({"width": width, "height": 900})
        wrong = Axe().run(page).response["violations"]
        assert [] == [(one["id"], [node["html"][:160] for node in one["nodes"]]) for one in wrong]
        assert 0 >= page.evaluate("document.documentElement.scrollWidth - innerWidth")
    context.close()


def test_a_gateway_elsewhere_is_asked_where_it_lets_the_page(visit: Visit) -> None:
    from playwright.sync_api import expect

    page, url = visit.page, visit.gateway.url
    port = url.rpartition(":")[2]
    answer = page.goto(f"{url}/elsewhere/playground")
    assert answer
    policy = f"connect-src 'self' http://localhost:{port}"
    assert policy in answer.headers["content-security-policy"]
    visit.ask("hello", "one")
    expect(visit.answer().locator(".state")).to_have_text("done", timeout=WAIT)
    assert "echo/echo" in visit.answer().locator("[data-measures]").inner_text()
    other = page.goto(f"{url}/elsewhere/keys")
    assert other
    assert "connect-src" not in other.headers["content-security-policy"]
