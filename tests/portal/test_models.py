"""Models in the portal: who answers, how they are, what that costs, and how it went lately. Targets
pinned and disabled there: workers of another gateway follow, a restart keeps it, it is undone."""

from __future__ import annotations

import html
import json
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import Any, NamedTuple

import pytest
from harness.gateway import Asked, Gateway, Serve, until
from harness.office import VARIABLES, Office
from harness.portal import CONFIGURATION, Browser, found, joined, me
from harness.upstream import Hit, RawUpstream, Step

from passy_proxy.testing import completion

MORE = """
connect: {{tenants_may_reach: [127.0.0.1]}}
upstreams:
  echo: {{kind: echo}}
  broken: {{url: "{url}/broken", credential: sk-of-the-operator-0123456789}}
  well: {{url: "{url}/v1", credential: sk-of-the-operator-0123456789}}
"""
TABLE = """models:
  pair: {targets: [broken/m, well/m], fallback_on: [5xx]}
  "any-*": ["well/*"]
  two: [echo/echo:500, echo/echo]
  gone: [echo/echo, echo/echo:slow]
  "wild-*": ["echo/*", echo/echo]
"""
ROUND = 8
"""Questions on connections of their own, so that every worker has some."""
CANARY = "<script>window.canary=1</script>"


class Shop(NamedTuple):
    gateway: Gateway
    owner: Browser
    key: str
    beside: Gateway
    """Another one on its database, with two workers."""


def answer(hit: Hit) -> Iterator[Step]:
    yield "read"
    status = 500 if hit.target.startswith("/broken") else 200
    body = json.dumps(completion("Hi", "m") if status == 200 else {"error": {"message": "no"}})
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n"
    yield {"send": f"{head}content-length: {len(body)}\r\n\r\n{body}"}


@pytest.fixture(scope="module")
def shop(serve: Serve) -> Iterator[Shop]:
    with RawUpstream(script=answer) as upstream:
        more = MORE.format(url=upstream.url)
        text = CONFIGURATION.replace("upstreams:\n  echo: {kind: echo}\n", more)
        text = text.replace("models:\n", TABLE)
        text = text.replace(
            "alias, fallback]",
            "byok: {vault: books, ttl: 1s, patience: 1m}, alias: {switchboard: books},"
            " breaker: {failures: 3, rest: 5m}, fallback: {retries: 0}]",
        )
        assert "breaker" in text
        gateway = serve(text, **VARIABLES)
        owner, key = found(gateway)
        url = f"sqlite:///{gateway.folder}/.passy/passy.db"
        keys = (gateway.data / "secret.key").read_text().strip()
        more = {"DATABASE_URL": url, "PASSY_SECRET_KEYS": keys} | VARIABLES
        yield Shop(gateway, owner, key, serve(text, "--workers", "2", **more))


def rows(browser: Browser) -> dict[str, Any]:
    asked = browser.api("GET", "/models")
    assert 200 == asked.status, asked.body
    return {row["name"]: row for row in asked.json["rows"]}


def said(browser: Browser, path: str = "/models") -> str:
    asked = browser.look(path)
    assert 200 == asked.status, asked.body
    return " ".join(html.unescape(re.sub("<[^>]+>", " ", asked.body.decode())).split())


def test_every_target_is_shown_with_its_state_its_price_and_its_share(shop: Shop) -> None:
    office = Office(shop.gateway)
    first = rows(shop.owner)["pair"]["targets"]
    assert ["broken", "well"] == [one["upstream"] for one in first]
    assert [0, 0] == [one["requests"] for one in first]
    for model in ("pair", "pair", "pair", "pair", "any-7", "any-8", "one"):
        assert 200 == office.chat(shop.key, model).status

    def counted() -> dict[str, Any] | None:
        now = rows(shop.owner)
        requests = sum(now[name]["requests"] for name in ("pair", "any-*", "one"))
        return now if requests == 7 else None

    now = until(counted)
    broken, well = now["pair"]["targets"]
    # Three failed tries, and from then on it is passed over.
    assert (0, 1, None) == (broken["requests"], broken["left_alone_by"], broken["first_ms"])
    assert (4, 0) == (well["requests"], well["left_alone_by"])
    assert well["first_ms"] is not None
    assert 2 == now["any-*"]["requests"] == now["any-*"]["targets"][0]["requests"]
    assert ("1", "2") == tuple(now["one"]["targets"][0]["price"][k] for k in ("input", "output"))
    shown = said(shop.owner)
    for part in ("left alone", "by 1 of 1 worker", "100 %", "$1.00", "unpriced", "any-*",
                 "depends on the name", "goes on after 5xx"):  # fmt: skip
        assert part in shown, part
    assert "2 models are answered at a price that nobody knows" not in shown
    assert "1 model is answered at a price that nobody knows" in shown
    assert b"playground?model=pair" in shop.owner.look("/models").body
    failing = next(
        one for one in shop.owner.api("GET", "/upstreams").json["rows"] if one["name"] == "broken"
    )
    assert (3, 3, "failing") == tuple(
        failing["lately"][name] for name in ("attempts", "failed", "health")
    )
    assert "status" in failing["lately"]["last_failure"]
    assert "left alone" in said(shop.owner, "/providers")


def test_a_search_finds_names_and_providers(shop: Shop) -> None:
    shown = said(shop.owner, "/models?q=well")
    assert "pair" in shown
    assert "pattern-*" not in shown
    assert "Nothing matches" in said(shop.owner, "/models?q=nothing-is-called-so")
    assert CANARY in said(shop.owner, f"/models?q={CANARY}")
    assert CANARY.encode() not in shop.owner.look(f"/models?q={CANARY}").body


def test_what_is_brought_is_there_and_what_is_not_allowed_is_marked(shop: Shop) -> None:
    owner, office = shop.owner, Office(shop.gateway)
    own = {"name": f"Ours {CANARY}", "url": "https://llm.example.com/v1", "models": ["ours", "one"]}
    made = owner.api("POST", "/providers", own).json
    now = rows(owner)
    for name in ("ours", "one"):
        [target] = now[name]["targets"]
        assert now[name]["own"]
        assert (own["name"], "none") == (target["title"], target["key"])
    assert CANARY.encode() not in owner.look("/models").body
    organisation = me(owner)["organisation"]
    office.admin("PATCH", f"/organisations/{organisation}", {"models": ["pair"]})
    allowed = {name for name, row in rows(owner).items() if row["allowed"]}
    assert {"pair"} == allowed
    assert "not allowed to you" in said(owner)
    office.admin("PATCH", f"/organisations/{organisation}", {"models": None})
    assert 204 == owner.api("DELETE", f"/providers/{made['id']}").status


def test_a_developer_sees_how_their_own_requests_went(shop: Shop) -> None:
    developer = joined(shop.owner, "dev@example.com", "developer")
    assert 0 == rows(developer)["pair"]["requests"]
    key = developer.api("POST", "/keys", {"name": "mine"}).json["key"]
    assert 200 == Office(shop.gateway).chat(key, "pair").status
    assert until(lambda: rows(developer)["pair"]["requests"] == 1 or None)
    assert b"/providers/new" not in developer.look("/models").body


def answers(shop: Shop, model: str) -> set[tuple[int, str | None, str | None]]:
    """Of the gateway beside: status, who answered, and after how many tries."""
    office = Office(shop.beside)
    asked = [office.chat(shop.key, model) for _ in range(ROUND)]
    names = ("x-passy-upstream", "x-passy-attempts")
    return {(one.status, *(one.headers[name] for name in names)) for one in asked}  # type: ignore[misc]


def steered(browser: Browser, model: str, target: str, do: str) -> Asked:
    return browser.api("PUT", "/models/target", {"model": model, "target": target, "do": do})


def switched(browser: Browser, model: str) -> dict[str, str | None]:
    [row] = [one for one in browser.api("GET", "/models").json["rows"] if one["name"] == model]
    return {f"{one['upstream']}/{one['model']}": one["switch"] and one["switch"]["state"]
            for one in row["targets"]}  # fmt: skip


def test_W11_a_pinned_and_a_disabled_target_hold_everywhere_until_they_are_released(
    shop: Shop,
) -> None:
    owner, office = shop.owner, Office(shop.beside)
    assert {(200, "echo/echo", "2")} == answers(shop, "two")
    assert 200 == steered(owner, "two", "echo/echo:500", "pin").status
    assert 200 == steered(owner, "two", "echo/echo", "pin").status
    owner.look("/models")
    fields = {"model": "gone", "target": "echo/echo", "do": "disable"}
    assert 303 == owner.send("/models/target", fields).status
    assert 200 == steered(owner, "gone", "echo/echo:slow", "disable").status
    assert 200 == steered(owner, "wild-*", "echo/*", "disable").status
    assert {"echo/echo:500": None, "echo/echo": "pinned"} == switched(owner, "two")

    def holds() -> bool:
        """Pinned: it is asked first; one of two disabled: the other one; both: nobody."""
        well = {(200, "echo/echo", "1")}
        return (
            well == answers(shop, "two")
            and well == answers(shop, "wild-7")
            and {503} == {status for status, *_ in answers(shop, "gone")}
        )

    assert until(lambda: holds() or None)

    def nobody() -> Asked | None:
        """Those who were asked so far may all have come to one of the two workers."""
        asked = office.chat(shop.key, "gone")
        return asked if asked.status == 503 else None

    refused = until(nobody)
    assert ("no_healthy_target", "false") == (
        refused.json["error"]["code"], refused.headers["x-should-retry"]
    )  # fmt: skip
    assert "disabled echo/echo and echo/echo:slow" in refused.json["error"]["message"]
    assert {(200, "echo/echo", "1")} == answers(shop, "echo/echo")  # By its own name it answers.
    page = owner.look("/models").body.decode()
    assert page.count("ada@example.com") >= 4
    # Who is asked first stands first.
    assert ["echo/echo", "echo/echo:500"] == [*switched(owner, "two")]
    assert "nobody is asked: clients get 503 no_healthy_target" in page

    shop.beside.kill()
    shop.beside.start()
    assert holds(), "what starts later holds it from its first request on"

    for model, target in (("two", "echo/echo"), ("gone", "echo/echo"), ("wild-*", "echo/*")):
        assert 200 == steered(owner, model, target, "release").status
    # Three releases: the host beside may read between two of them, so each is waited for.
    for model, tries in (("two", "2"), ("gone", "1")):
        released = {(200, "echo/echo", tries)}
        assert until(lambda m=model, well=released: well == answers(shop, m) or None), model
    with closing(sqlite3.connect(shop.gateway.folder / ".passy/passy.db", timeout=10)) as books:
        rows = books.execute(
            "SELECT action, subject, before, after FROM portal_audit"
            " WHERE action LIKE 'target.%' AND subject LIKE 'two %' ORDER BY seq"
        ).fetchall()
    told = [(action, json.loads(before), json.loads(after)) for action, _, before, after in rows]
    assert [
        ("target.pin", {"state": None}, {"state": "pinned"}),
        ("target.pin", {"state": None, "pinned": "echo/echo:500"}, {"state": "pinned"}),
        ("target.release", {"state": "pinned"}, {"state": None}),
    ] == told
    assert "two → echo/echo" == rows[-1][1]


def test_W3_only_who_runs_the_gateway_steers_it_and_only_what_there_is(shop: Shop) -> None:
    owner, office = shop.owner, Office(shop.gateway)
    other = joined(owner, "eve@example.com", "admin")
    assert 200 == steered(other, "two", "echo/echo", "disable").status
    theirs = office.made("/organisations", {"name": "Others"})["id"]
    place = f"/organisations/{theirs}/members/{me(other)['user']}"
    assert 200 == office.admin("PUT", place, {"role": "owner"}).status
    other.look("/account")
    assert 303 == other.send("/account/organisation", {"organisation": theirs}).status
    other.look("/")
    assert 404 == steered(other, "two", "echo/echo", "release").status
    seen = other.look("/models").body
    assert b"never asked under this name" in seen
    assert b"eve@example.com</span>" not in seen.partition(b"<table")[2]
    assert b'action="/portal/models/target"' not in seen
    viewer = joined(owner, "vi@example.com", "developer")
    assert 403 == steered(viewer, "two", "echo/echo", "release").status
    for model, target in (("two", "echo/nobody"), ("nothing", "echo/echo")):
        asked = steered(owner, model, target, "disable")
        assert 404 == asked.status, asked.body
    put = {"model": "two", "target": "echo/ech", "state": "disabled"}
    asked = office.admin("PUT", "/switches", put)
    assert (404, True) == (asked.status, "echo/echo" in asked.json["error"]["message"])
    gone = office.admin("PUT", "/switches", put | {"target": "echo/echo", "state": None})
    assert ([], True) == tuple(
        [[one for one in gone.json["rows"] if one["model"] == "two"], gone.json["held"]]
    )
