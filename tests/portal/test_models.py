"""Models in the portal: who answers, how they are, what that costs, and how it went lately."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from harness.gateway import Gateway, Serve, until
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
"""
CANARY = "<script>window.canary=1</script>"


class Shop(NamedTuple):
    gateway: Gateway
    owner: Browser
    key: str


def answer(hit: Hit) -> Iterator[Step]:
    yield "read"
    status = 500 if hit.target.startswith("/broken") else 200
    import json

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
            "byok: {vault: books, ttl: 1s}, alias, breaker: {failures: 3}, fallback: {retries: 0}]",
        )
        assert "breaker" in text
        gateway = serve(text, **VARIABLES)
        owner, key = found(gateway)
        yield Shop(gateway, owner, key)


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
