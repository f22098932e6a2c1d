"""Requests in the portal: found, shown try by try, watched live, saved as views and as files."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from harness.books import enter
from harness.chromium import Complaints, launched
from harness.gateway import Gateway, Serve, until
from harness.office import VARIABLES, Office
from harness.portal import CONFIGURATION, Browser, found, me
from playwright.sync_api import expect

from passy_proxy.records import AttemptRecord, UsageRecord

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser

MODELS = CONFIGURATION.replace(
    "models:\n",
    "time_filters: 1\nmodels:\n  two: {targets: [echo/echo:500, echo/echo], fallback_on: [5xx]}\n",
)
CANARY = "<script>window.canary=1</script><img src=x onerror=window.canary=1>'\"&"


class Visit(NamedTuple):
    gateway: Gateway
    owner: Browser
    office: Office
    key: str
    page: Page
    complaints: Complaints
    organisation: str

    @property
    def url(self) -> str:
        return f"{self.gateway.url}/portal"

    def asked(self, model: str) -> str:
        """The id of a request that is in the books by now."""
        id = self.office.chat(self.key, model).headers["x-request-id"]
        assert until(lambda: self.owner.api("GET", f"/requests/{id}").status == 200 or None)
        return str(id)


@pytest.fixture(scope="module")
def visit(serve: Serve) -> Iterator[Visit]:
    with launched() as browser:
        gateway = serve(MODELS, **VARIABLES)
        owner, key = found(gateway)
        context = browser.new_context()
        context.add_cookies(
            [{"name": n, "value": v, "url": gateway.url} for n, v in owner.cookies.items()]
        )
        complaints = Complaints()
        page = complaints.watch(context.new_page())
        where = me(owner)["organisation"]
        yield Visit(gateway, owner, Office(gateway), key, page, complaints, where)


@pytest.fixture(autouse=True)
def quiet(visit: Visit) -> Iterator[None]:
    """No page does what its policy forbids, and no script of a name has run."""
    yield
    assert [] == visit.complaints
    assert visit.page.evaluate("window.canary") is None


def test_a_request_that_fell_back_is_shown_try_by_try(visit: Visit) -> None:
    id, page = visit.asked("two"), visit.page
    page.goto(f"{visit.url}/requests")
    row = page.get_by_role("region", name="Requests").locator(f'tr[data-id="{id}"]')
    expect(row).to_contain_text("echo✗500 → echo✓")
    row.get_by_role("link").click()
    page.wait_for_url(f"**/requests/{id}")
    expect(page.get_by_role("heading", name="2 tries")).to_be_visible()
    assert 2 == page.locator(".try svg[role=img]").count()
    assert "echo ✗500, begun after" in (
        page.locator(".try svg").first.get_attribute("aria-label") or ""
    )
    table = page.get_by_role("region", name="The tries as a table")
    told = visit.owner.api("GET", f"/requests/{id}").json
    assert [500, 200] == [one["status"] for one in told["attempts"]]
    [ran] = {one["ran"] for one in told["attempts"]}
    chain, _, hash = ran.partition("@")
    assert "default" == chain
    assert hash == visit.office.admin("GET", "/status").json["configuration"]["hash"]
    assert {chain, hash} <= set(page.locator(".facts dd").all_text_contents())
    for place, one in enumerate(told["attempts"]):
        cells = table.locator("tbody tr").nth(place).locator("td").all_text_contents()
        assert one["upstream"] == cells[0]
        assert [f"{one['started_ms']:,} ms", f"{one['head_ms']:,} ms"] == [cells[3], cells[6]]
    assert "Answered by echo, after one try that failed." in page.text_content("main")
    # This gateway times each request: what its filters took is told apart.
    rows = page.get_by_role("region", name="Filters").locator("tbody tr")
    shown = [each.strip() for each in rows.all_text_contents()]
    assert [f"{one['filter']}{one['ms']:.3f} ms" for one in told["filters"]] == shown
    assert ["usage", "auth", "alias"] == [one["filter"] for one in told["filters"]]
    code = page.text_content(".code code") or ""
    assert '"model": "two"' in code
    assert "sk-passy" not in page.content()


def test_files_and_the_api_say_what_the_page_says(visit: Visit) -> None:
    ids = {visit.asked(model) for model in ("two", "one", "no-such-model")}
    owner = visit.owner
    for query in ("", "?ended=errors", "?retried=1", "?model=two", "?search=no-such",
                  "?outcome=model_not_found", "?slower_ms=86400000", "?last=1h&upstream=echo",
                  "?since=2020-01-01T00:00&until=2020-01-02T00:00", "?tag=none"):  # fmt: skip
        page = owner.look(f"/requests{query}").body.decode()
        shown = re.findall(r'data-id="([^"]+)"', page)
        assert shown == [r["id"] for r in owner.api("GET", f"/requests{query}").json["rows"]], query
        rows = csv.DictReader(io.StringIO(owner.look(f"/requests.csv{query}").body.decode()))
        assert shown == [row["id"] for row in rows], query
        lines = owner.look(f"/requests.jsonl{query}").body.decode().splitlines()
        assert shown == [json.loads(line)["id"] for line in lines], query
    assert ids <= {row["id"] for row in owner.api("GET", "/requests").json["rows"]}
    whole = [r["id"] for r in owner.api("GET", "/requests").json["rows"]]
    first = owner.api("GET", "/requests?limit=2").json
    rest = owner.api("GET", f"/requests?cursor={first['cursor']}").json
    assert whole == [r["id"] for r in (*first["rows"], *rest["rows"])]
    for wrong in ("ended=x", "slower_ms=-1", "since=yesterday", "cursor=none", "last=2h"):
        assert 422 == owner.look(f"/requests?{wrong}").status, wrong
        assert 422 == owner.api("GET", f"/requests?{wrong}").status, wrong


def test_W5_views_are_ones_own_and_their_changes_are_noted(visit: Visit) -> None:
    page = visit.page
    page.goto(f"{visit.url}/requests?ended=errors&done=x")
    page.click("text=Save this view")
    page.fill("#view-name", CANARY)
    page.click("button:text-is('Save')")
    views = page.get_by_role("navigation", name="Saved views")
    views.get_by_role("link", name=CANARY).click()
    page.wait_for_url("**/requests?ended=errors")
    [view] = visit.owner.api("GET", "/requests/views").json["rows"]
    assert (CANARY, "ended=errors") == (view["name"], view["query"])
    visit.owner.look("/requests")
    assert 303 == visit.owner.send(f"/requests/views/{view['id']}/delete").status
    assert 404 == visit.owner.send(f"/requests/views/{view['id']}/delete").status
    assert [] == visit.owner.api("GET", "/requests/views").json["rows"]
    wrong = {"name": "x", "query": "ended=never"}
    assert 422 == visit.owner.api("POST", "/requests/views", wrong).status
    log = visit.owner.look("/audit").body.decode()
    assert "view.save" in log
    assert "view.delete" in log


def test_rows_appear_as_they_arrive_until_the_session_ends(visit: Visit) -> None:
    page = visit.page
    before = visit.asked("one")
    page.goto(f"{visit.url}/requests?model=two")
    live = page.get_by_role("button", name="Live")
    live.click()
    ids = [visit.office.chat(visit.key, model).headers["x-request-id"] for model in ("two", "one")]
    rows = page.locator("#request-rows")
    expect(rows.locator(f'tr[data-id="{ids[0]}"]')).to_have_count(1)
    expect(page.get_by_role("status")).to_contain_text("new request")
    assert 0 == rows.locator(f'tr[data-id="{ids[1]}"], tr[data-id="{before}"]').count()
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_role("status")).to_contain_text("Paused")
    paused = visit.asked("two")
    live.click()  # What came meanwhile is there as well, once.
    expect(rows.locator(f'tr[data-id="{paused}"]')).to_have_count(1)
    other = Browser(visit.gateway)
    other.sign_in("ada@example.com")
    other.look("/account")
    assert 303 == other.send("/account/sessions/end").status
    expect(page.get_by_role("status")).to_contain_text("session has ended")
    missed = other.api("GET", "/me").json["organisation"]
    assert missed == visit.organisation
    visit.owner.cookies, visit.owner.csrf = other.cookies, other.csrf
    page.context.add_cookies(
        [{"name": n, "value": v, "url": visit.gateway.url} for n, v in other.cookies.items()]
    )


def test_W7_what_clients_and_providers_say_runs_nowhere(visit: Visit) -> None:
    page = visit.page
    page.goto(f"{visit.url}/requests")
    page.get_by_role("button", name="Live").click()
    attempt = AttemptRecord(CANARY, CANARY, 200, f"stream: {CANARY}", 0, 1, True, 2, 3)
    record = UsageRecord(
        f"req_{'f' * 32}", 1_795_430_994.913, CANARY, visit.organisation, CANARY, CANARY,
        f"{CANARY},b", f"POST /v1/chat/completions {CANARY}", CANARY, CANARY, CANARY, CANARY, 502,
        True, 1, 2, 1, 1, 1, 1, 1, True, 7, CANARY, 1, 2_000, (attempt, attempt),
    )  # fmt: skip
    enter(visit.gateway, record, record._replace(id="req_<b>", route=f"GET {CANARY}"))
    expect(page.locator(f'tr[data-id="{record.id}"]')).to_have_count(1)
    query = "since=2026-11-01T00:00"
    for path in (f"/requests?{query}", f"/requests/{record.id}", f"/requests?search={CANARY}"):
        page.goto(visit.url + path)
        assert page.evaluate("window.canary") is None, path
    page.goto(f"{visit.url}/requests/{record.id}")
    assert CANARY in page.text_content("main")
    assert "time_filters: 100" in (page.text_content("main") or "")  # It was not timed.
    lines = visit.owner.look(f"/requests.csv?{query}").body.decode()
    assert not re.search(r'(^|,)"?[=+@]', lines, re.MULTILINE)


@pytest.mark.large  # `test_pages.py` walks over them as well, at rest
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_on_pages_of_requests(visit: Visit, theme: Any) -> None:
    from axe_playwright_python.sync_playwright import Axe

    id = visit.asked("two")
    context = visit.page.context.browser.new_context(
        color_scheme=theme, bypass_csp=True, storage_state=visit.page.context.storage_state(),
        viewport={"width": 360, "height": 800},
    )  # fmt: skip
    page = context.new_page()
    for path in ("/requests?ended=ok&retried=1", "/requests?model=none", f"/requests/{id}"):
        page.goto(visit.url + path)
        violations = Axe().run(page).response["violations"]
        assert [] == [(v["id"], [n["html"][:160] for n in v["nodes"]]) for v in violations], path
        assert 0 >= page.evaluate("document.documentElement.scrollWidth - innerWidth"), path
    context.close()
