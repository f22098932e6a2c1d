"""W3, W10, W11: settings, and what of the gateway they show to whom."""

from __future__ import annotations

import base64
import hmac
import html
import json
import re
import sqlite3
from contextlib import closing
from typing import Any, NamedTuple

import pytest
from harness.gateway import Asked, Gateway, Hire, Provider, Serve, until
from harness.office import SECRET, TOKEN, VARIABLES, Office
from harness.portal import CONFIGURATION, Browser, found, joined, me

CANARY = "sk-canary-of-the-operator-5b1e77"
MORE = f"""connect: {{tenants_may_reach: [127.0.0.1]}}   # {CANARY}
upstreams:
  real: {{url: "https://api.example.com/v1", credential: {CANARY}, models: [unheard-of]}}
"""
APPS = f"""apps:
  /away: {{app: portal, store: books, admin_url: "http://127.0.0.1:9/", admin_token: {TOKEN}}}
"""
BUDGETS = (
    "alias, budgets: {counters: state, books: books, alerts: books, interval: 100ms}, fallback"
)
TEXT = (
    CONFIGURATION.replace("upstreams:\n", MORE)
    .replace("apps:\n", APPS)
    .replace("alias, fallback", BUDGETS)
    .replace("stores:\n", "stores:\n  state: {kind: memory}\n")
    .replace('/passy.db}"}', '/passy.db}", keep: 90d}')
)
PAGES = ("/settings", "/settings/webhooks", "/settings/prices", "/settings/gateway", "/audit")
API = ("/settings", "/webhooks", "/prices", "/gateway/configuration", "/gateway/plugins")


class Scene(NamedTuple):
    gateway: Gateway
    owner: Browser
    viewer: Browser
    other: Browser
    """Another organisation's owner."""
    receiver: Provider


@pytest.fixture(scope="module")
def scene(serve: Serve, hire: Hire) -> Scene:
    assert TEXT.count("budgets: {counters") == TEXT.count("keep: 90d") == 1
    gateway = serve(TEXT, **VARIABLES)
    owner, _ = found(gateway)
    office, other = Office(gateway), joined(owner, "eve@example.com", "viewer")
    theirs, eve = office.made("/organisations", {"name": "Others"})["id"], me(other)["user"]
    place = f"/organisations/{theirs}/members/{eve}"
    assert 200 == office.admin("PUT", place, {"role": "owner"}).status
    other.look("/account")
    assert 303 == other.send("/account/organisation", {"organisation": theirs}).status
    other.look("/")
    return Scene(gateway, owner, joined(owner, "v@example.com", "viewer"), other, hire())


def noted(gateway: Gateway, action: str) -> list[Any]:
    with closing(sqlite3.connect(gateway.folder / ".passy/passy.db", timeout=90)) as books:
        rows = books.execute(
            "SELECT after FROM portal_audit WHERE action = ? ORDER BY seq", [action]
        )
        return [json.loads(row[0]) for row in rows]


def told(asked: Asked) -> str:
    assert 200 == asked.status, asked.body
    return html.unescape(asked.body.decode())


def test_W3_the_gateway_is_shown_to_those_who_run_it_alone(scene: Scene) -> None:
    for path in ("/settings/gateway", "/api/gateway/configuration", "/api/gateway/plugins"):
        assert 404 == scene.other.look(path).status, path
        assert 403 == scene.viewer.look(path).status, path
        assert 200 == scene.owner.look(path).status, path
    for browser, status in ((scene.other, 404), (scene.viewer, 403)):
        page = told(browser.look("/settings"))
        assert "/settings/gateway" not in page
        assert status == browser.api("POST", "/gateway/reload").status
        assert status == browser.send("/settings/gateway/reload").status
    assert "/settings/gateway" in told(scene.owner.look("/settings"))
    runs = [one.api("GET", "/settings").json["runs_the_gateway"] for one in scene[1:4]]
    assert [True, True, False] == runs


def test_W10_no_page_of_settings_shows_a_secret(scene: Scene) -> None:
    made = scene.owner.send("/settings/webhooks", {"url": "https://chat.example.com/T0/B0/xyzzy"})
    secret = re.search(r'id="the-secret"[^>]*>(whsec_[^<]+)<', told(made))
    assert secret
    assert "whsec_" not in told(scene.owner.look("/settings/webhooks"))
    assert "/T0/B0/xyzzy" in told(scene.owner.look("/settings/webhooks"))
    seen = told(scene.viewer.look("/settings/webhooks"))
    assert "https://chat.example.com/…" in seen
    shown = [*map(scene.owner.look, PAGES), *(scene.owner.api("GET", path) for path in API)]
    shown += [scene.viewer.look(path) for path in PAGES[:3]] + [
        scene.viewer.api("GET", "/webhooks")
    ]
    assert 200 == scene.owner.look("/settings/gateway").status
    for asked in shown:
        assert 200 == asked.status, asked.body
        for hidden in (CANARY, SECRET, TOKEN, secret[1], html.escape(secret[1])):
            assert hidden.encode() not in asked.body
    for asked in (scene.viewer.look("/settings/webhooks"), scene.viewer.api("GET", "/webhooks"),
                  scene.owner.look("/audit")):  # fmt: skip
        assert b"xyzzy" not in asked.body
    assert "credential: •••" in told(scene.owner.look("/settings/gateway"))
    [row] = scene.owner.api("GET", "/webhooks").json["rows"]
    assert 204 == scene.owner.api("DELETE", f"/webhooks/{row['id']}").status


def test_W11_a_reload_says_what_it_would_change_and_what_is_wrong(scene: Scene) -> None:
    gateway, owner = scene.gateway, scene.owner
    before = owner.api("GET", "/gateway/configuration").json["hash"]
    assert "is what runs" in told(owner.look("/settings/gateway"))
    wrong = TEXT.replace("one: [echo/echo]", "one: [ecko/echo]")
    gateway.file.write_text(wrong)
    page = told(owner.look("/settings/gateway"))
    assert "cannot run" in page
    assert "did you mean 'echo'?" in page
    assert "ecko/echo" in page
    refused = owner.send("/settings/gateway/reload")
    assert 409 == refused.status
    assert "It was not taken" in html.unescape(refused.body.decode())
    assert "did you mean 'echo'?" in html.unescape(refused.body.decode())
    asked = owner.api("POST", "/gateway/reload")
    assert (409, "configuration_refused") == (asked.status, asked.json["error"]["code"])
    assert any(str(gateway.file) in one["param"] for one in asked.json["error"]["problems"])
    # The terminal says the same, at the same place.
    checked = json.loads(gateway.passy("check", "--json").stdout)
    [error] = [one for one in checked if one["severity"] == "error"]
    place = f"{error['path']}:{error['line']}:{error['column']}"
    assert place in page
    assert error["message"] in page
    assert place in asked.json["error"]["message"]
    assert before == owner.api("GET", "/gateway/configuration").json["hash"]
    gateway.file.write_text(TEXT.replace("one: [echo/echo]", "one: [echo/echo:slow, echo/echo]"))
    assert 303 == owner.send("/settings/gateway/reload").status
    now = owner.api("GET", "/gateway/configuration").json
    assert (False, True) == (now["on_disk"]["differs"], now["hash"] != before)
    gateway.file.write_text(TEXT)
    assert before == owner.api("POST", "/gateway/reload").json["hash"]
    entries = noted(gateway, "gateway.reload")
    assert [False, False, True, True] == [one["taken"] for one in entries]
    assert "ecko" in entries[0]["reason"]


def test_a_webhook_is_tried_and_hears_of_a_budget_unless_it_is_disabled(scene: Scene) -> None:
    owner, receiver, office = scene.owner, scene.receiver, Office(scene.gateway)
    secrets = []
    for name in ("on", "off"):
        owner.look("/settings/webhooks")
        made = owner.send("/settings/webhooks", {"url": f"{receiver.url}/{name}"})
        secret = re.search(r'id="the-secret"[^>]*>(whsec_[^<]+)<', told(made))
        assert secret
        secrets.append(secret[1])
    on, off = owner.api("GET", "/webhooks").json["rows"]
    receiver.forget()
    for _ in range(4):
        receiver.json({})
    assert "Taken: 200" in told(owner.send(f"/settings/webhooks/{on['id']}/test"))
    [request] = receiver.requests
    id, at = request.headers["webhook-id"], request.headers["webhook-timestamp"]
    key = base64.b64decode(secrets[0].removeprefix("whsec_"))
    signed = b"%b.%b.%b" % (id.encode(), at.encode(), request.body)
    made_of = base64.b64encode(hmac.digest(key, signed, "sha256")).decode()
    assert f"v1,{made_of}" == request.headers["webhook-signature"]
    assert 303 == owner.send(f"/settings/webhooks/{off['id']}/disable").status
    assert [True, False] == [one["enabled"] for one in owner.api("GET", "/webhooks").json["rows"]]
    mine = me(owner)["organisation"]
    budget = {"kind": "organisation", "subject": mine, "unit": "tokens", "amount": 10,
              "alerts": [50], "hard": False}  # fmt: skip
    office.made("/budgets", budget)
    issued = owner.api("POST", "/keys", {"name": "spender"}).json["key"]

    def heard() -> list[str] | None:
        assert 200 == office.chat(issued).status
        came = [one for one in list(receiver.requests) if one.whole.is_set()]
        types = [json.loads(one.body)["type"] for one in came]
        return types if "budget.alert" in types else None

    until(heard)
    alerts = [one for one in receiver.requests if b"budget.alert" in one.body]
    assert ["/on"] == [one.target for one in alerts]
    assert "webhook.test" == json.loads(request.body)["type"]
    host = receiver.url.partition("://")[2]
    assert 422 == owner.send(f"/settings/webhooks/{on['id']}/delete", {"typed": "x"}).status
    for one in (on, off):
        path = f"/settings/webhooks/{one['id']}/delete"
        assert 303 == owner.send(path, {"typed": host}).status
    assert [] == owner.api("GET", "/webhooks").json["rows"]
    assert [{"url": f"http://{host}/…"}] * 2 == noted(scene.gateway, "webhook.create")[-2:]


@pytest.mark.parametrize(
    "url", ["ftp://example.com", "javascript:alert(1)", "https://u:p@example.com/", "x", "http://"]
)
def test_what_is_no_webhook_is_told_and_kept_in_the_form(scene: Scene, url: str) -> None:
    scene.owner.look("/settings/webhooks")
    asked = scene.owner.send("/settings/webhooks", {"url": url})
    assert 422 == asked.status
    assert f'value="{html.escape(url)}"' in asked.body.decode()
    assert scene.owner.api("POST", "/webhooks", {"url": url}).status == 422


def test_the_organisation_its_prices_and_how_long_usage_is_kept(scene: Scene) -> None:
    owner = scene.owner
    owner.look("/settings")
    assert 422 == owner.send("/settings/organisation", {"name": " "}).status
    assert 303 == owner.send("/settings/organisation", {"name": "Analytical"}).status
    assert "90 days" in told(owner.look("/settings"))
    said = owner.api("GET", "/settings").json
    assert ("Analytical", 90, True) == (said["name"], said["usage_kept_days"], said["usage_known"])
    assert {"name": "Analytical"} in noted(scene.gateway, "organisation.change")
    assert "Others" == scene.other.api("GET", "/settings").json["name"]
    rows = {
        f"{one['upstream']}/{one['model']}": one for one in owner.api("GET", "/prices").json["rows"]
    }
    assert ("1", "2", "prices: echo/*") == (
        rows["echo/echo"]["price"]["input"],
        rows["echo/echo"]["price"]["output"],
        rows["echo/echo"]["price"]["source"],
    )
    assert {"one", "pattern-*", "echo"} == set(rows["echo/echo"]["names"])

    def without() -> bool | None:  # The list is asked, and knows no such model.
        return "no price known" in told(owner.look("/settings/prices")) or None

    assert until(without)


def test_W11_a_price_holds_for_what_comes_and_the_books_keep_what_was(scene: Scene) -> None:
    owner, office, path = scene.owner, Office(scene.gateway), "/settings/prices/set"
    key = owner.api("POST", "/keys", {"name": "priced"}).json["key"]
    before = office.chat(key).headers["x-request-id"]
    assert "prices: echo/*" in scene.gateway.record(before)["price"]
    wanted = {"target": "echo/echo", "rates": {"input": 0.3, "output": 40, "cached_input": 0.1}}
    for browser in (scene.viewer, scene.other):  # One does not lead, one does not run the gateway.
        assert 403 == browser.api("PUT", "/prices", wanted).status
        browser.look("/account")
        form = {"target": "echo/echo", "input": "1", "output": "1", "do": "set"}
        assert 403 == browser.send(path, form).status
    assert b"Tokens read" in owner.look(f"{path}?target=echo/echo").body
    typed = {"target": "echo/echo", "input": "0.3", "output": "40", "cached_input": "0.1"}
    for wrong in ({"output": "free"}, {"input": ""}, {"input": "-1"}, {"input": "1000001"}):
        refused = owner.send(path, {**typed, **wrong, "do": "set"})
        assert 422 == refused.status, wrong
        assert b'aria-invalid="true"' in refused.body
    for odd, status in (("nobody/x", 404), ("echo", 422), ("echo/*", 422)):
        body = {**wanted, "target": odd}
        assert status == owner.api("PUT", "/prices", body).status, odd
    assert 303 == owner.send(path, {**typed, "do": "set"}).status
    assert "set here" in told(owner.look("/settings/prices"))

    def after(source: str) -> str | None:
        asked = office.chat(key).headers["x-request-id"]
        return asked if source in scene.gateway.record(asked)["price"] else None

    now = scene.gateway.record(until(lambda: after("0.3 in, 40 out, 0.1 cached")))
    assert now["cost_nanos"] == now["input"] * 300 + now["output"] * 40_000
    assert "prices: echo/*" in scene.gateway.record(before)["price"]
    (row,) = [one for one in owner.api("GET", "/prices").json["rows"] if one["upstream"] == "echo"]
    assert ("0.3", me(owner)["user"]) == (row["price"]["input"], row["set_by"])
    assert 303 == owner.send(path, {"target": "echo/echo", "do": "reset"}).status
    assert until(lambda: after("prices: echo/*"))
    rates = [one["rates"] for one in noted(scene.gateway, "price.set")]
    assert [wanted["rates"], None] == rates
    # What an organisation brought it prices itself, and nobody else.
    own = {"name": "Theirs", "url": "https://llm.example.com/v1", "models": ["m"]}
    theirs = me(scene.other)["organisation"]
    mine = office.made(f"/organisations/{theirs}/providers", own)["id"]
    body = {"target": f"custom-{mine}/m", "rates": {"input": 1, "output": 2}}
    assert 404 == owner.api("PUT", "/prices", body).status
    assert 404 == owner.look(f"{path}?target=custom-{mine}/m").status
    assert 200 == scene.other.api("PUT", "/prices", body).status
    shown = {one["upstream"] for one in owner.api("GET", "/prices").json["rows"]}
    assert f"custom-{mine}" not in shown


def test_where_the_gateway_cannot_be_asked_settings_say_so(scene: Scene) -> None:
    cookie = "; ".join(f"{name}={value}" for name, value in scene.owner.cookies.items())

    def away(path: str) -> Asked:
        return scene.gateway.ask(f"/away{path}", method="GET", cookie=cookie)

    assert "cannot be asked now" in told(away("/settings/gateway"))
    assert "The gateway cannot be asked now." in told(away("/settings"))
    assert "cannot be told now" in told(away("/settings/prices"))
    assert "Any name can be asked for" in told(away("/playground"))
    assert 503 == away("/api/gateway/configuration").status
    assert 200 == away("/settings/webhooks").status
