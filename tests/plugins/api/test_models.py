"""Who answers an organisation for which model, at what price, and how the upstreams are."""

from __future__ import annotations

from typing import Any

import pytest
from harness.gateway import Hire, Provider, Serve, until
from harness.office import CONFIGURATION, VARIABLES, Office

from passy_proxy.testing import Answer

MORE = """
connect: {{tenants_may_reach: [127.0.0.1]}}
upstreams:
  echo: {{kind: echo}}
  openai: {{url: "https://api.openai.com/v1", credential: sk-of-the-operator-0123456789}}
  real: {{url: "{url}/v1", credential: sk-of-the-operator-0123456789, models: [listed-here]}}
  unset: {{url: "https://unset.example.com/v1", credential: "${{NOT_SET:-}}"}}
"""


@pytest.fixture(scope="module")
def provider(hire: Hire) -> Provider:
    return hire()


@pytest.fixture(scope="module")
def office(serve: Serve, provider: Provider) -> Office:
    more = MORE.format(url=provider.url)
    text = CONFIGURATION.replace("upstreams:\n  echo: {kind: echo}\n", more)
    table = "models:\n  pair: {targets: [real/m, openai/gpt-4o-mini], fallback_on: [5xx]}\n"
    table += "  half: [unset/x, real/m]\n"
    text = text.replace("models:\n", table)
    text = text.replace("alias, fallback]", "byok: {vault: books}, alias, breaker, fallback]")
    assert "unset" in text
    assert "breaker" in text
    return Office(serve(text, **VARIABLES))


def models(office: Office, organisation: str) -> dict[str, Any]:
    asked = office.admin("GET", f"/organisations/{organisation}/models")
    assert 200 == asked.status, asked.body
    return {row["name"]: row for row in asked.json["rows"]}


def test_every_name_is_told_with_who_answers_and_what_it_costs(office: Office) -> None:
    acme = office.made("/organisations", {"name": "Acme", "models": ["pair", "one"]})["id"]

    def priced() -> dict[str, Any] | None:
        rows = models(office, acme)
        return rows if rows["pair"]["targets"][1]["price"] else None

    rows = until(priced)  # The price list is read in a process of its own.
    names = [name for name in rows if not name.startswith("gpt-")]  # Known of that provider.
    assert ["pair", "half", "one", "pattern-*", "echo", "listed-here"] == names
    kinds = {name: (row["kind"], row["allowed"]) for name, row in rows.items()}
    assert ("alias", True) == kinds["pair"]
    assert ("in_process", False) == kinds["echo"]
    assert ("listed", False) == kinds["listed-here"]
    first, second = rows["pair"]["targets"]
    assert ("real", "m", "shared", None) == tuple(
        first[name] for name in ("upstream", "model", "key", "price")
    )
    assert not first["price_asked"]  # On this network nobody sells: it is unpriced for good.
    assert ("0.15", "0.6", "0.075") == tuple(
        second["price"][name] for name in ("input", "output", "cached")
    )
    assert 128_000 == second["context"]
    assert ["5xx"] == rows["pair"]["fallback_on"]
    assert ["unset"] == rows["half"]["missing"]
    assert 1 == len(rows["half"]["targets"])
    assert ("1", "none") == (
        rows["one"]["targets"][0]["price"]["input"],
        rows["one"]["targets"][0]["key"],
    )


def test_what_an_organisation_brings_is_what_answers_it(office: Office, provider: Provider) -> None:
    acme = office.made("/organisations", {"name": "Acme"})["id"]
    inside = f"/organisations/{acme}"
    office.made(f"{inside}/credentials", {"upstream": "openai", "secret": "sk-of-theirs-0123"})
    own = {"name": "Own", "url": f"{provider.url}/v1", "models": ["one", "ours", "our-*"]}
    made = office.made(f"{inside}/providers", own)
    rows = models(office, acme)
    assert [("real", "shared"), ("openai", "own")] == [
        (one["upstream"], one["key"]) for one in rows["pair"]["targets"]
    ]
    for name, kind in (("one", "alias"), ("ours", "own"), ("our-*", "own")):
        assert (kind, True) == (rows[name]["kind"], rows[name]["own"])
        assert [made["upstream"]] == [one["upstream"] for one in rows[name]["targets"]]
    office.admin("PATCH", inside, {"byok": "own_only"})
    assert "none" == models(office, acme)["pair"]["targets"][0]["key"]
    office.admin("PATCH", f"{inside}/providers/{made['id']}", {"status": "disabled"})
    rows = models(office, acme)
    assert "ours" not in rows
    assert not rows["one"]["own"]


def test_U11_an_upstream_that_is_left_alone_is_told(office: Office, provider: Provider) -> None:
    key = office.made("/keys", {})["key"]
    told = office.admin("GET", "/upstreams").json
    assert ["unset"] == told["left_out"]
    assert {"openai", "anthropic"} <= set(told["dialects"])
    assert (["127.0.0.1"], True, 1) == (told["tenants_may_reach"], told["byok"], told["workers"])
    assert [0, 0, 0] == [row["left_alone_by"] for row in told["rows"]]
    for _ in range(12):  # Each request is tried more than once.
        provider.wait(scripted(provider))
        office.chat(key, "listed-here")
        rows = {row["name"]: row for row in office.admin("GET", "/upstreams").json["rows"]}
        if rows["real"]["left_alone_by"]:
            break
    assert 1 == rows["real"]["left_alone_by"]
    assert 0 < rows["real"]["back_in_seconds"] <= 30
    assert (0, None) == (rows["echo"]["left_alone_by"], rows["echo"]["back_in_seconds"])


async def scripted(provider: Provider) -> None:
    provider.forget()
    for _ in range(8):
        provider.then(Answer(500))


def test_a_key_is_tried_before_it_is_entered(office: Office, provider: Provider) -> None:
    acme = office.made("/organisations", {"name": "Acme"})["id"]
    path = f"/organisations/{acme}/credentials/test"

    async def answers() -> None:
        provider.forget()
        provider.json({"error": {"message": "model is needed"}}, 400)
        provider.json({"data": [{"id": "small"}]}).chat("Hi")

    for body in ({"upstream": "real"}, {"url": f"{provider.url}/v1"}):
        provider.wait(answers())
        tried = office.admin("POST", path, {**body, "secret": "sk-of-theirs-0123"})
        assert 200 == tried.status, tried.body
        assert tried.json["ok"], tried.json
        assert ["small"] == tried.json["models"]
        shown = {one.headers["authorization"] for one in provider.requests}
        assert {"Bearer sk-of-theirs-0123"} == shown
    assert [] == office.admin("GET", f"/organisations/{acme}/credentials").json["rows"]
    for body in ({}, {"upstream": "real", "url": "https://a.example.com"}, {"upstream": "reel"}):
        assert 422 == office.admin("POST", path, {**body, "secret": "sk-x"}).status
    for url in ("http://169.254.169.254/v1", "https://10.0.0.1/v1", "http://[::1]/v1"):
        refused = office.admin("POST", path, {"url": url, "secret": "sk-x"})
        assert (422, "body.url") == (refused.status, refused.json["error"]["param"]), url
