"""The portal on both databases: its own tables, several workers at once, and a whole first hour."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from decimal import Decimal
from typing import Any

import pytest
from harness.gateway import Gateway, Serve, until
from harness.office import TOKEN, VARIABLES, Office
from harness.portal import APART, CONFIGURATION, Apart, Browser, found, joined, me
from harness.postgres import Server

from passy_portal.migrate import REVISIONS
from passy_portal.tables import metadata

TEXT = CONFIGURATION.replace(
    "models:\n", "models:\n  two: [echo/echo:500, echo/echo]\n  gone: [echo/echo]\n"
).replace("alias, fallback]", "alias: {switchboard: books}, fallback: {retries: 0}]")
ROUND = 6
"""Questions on connections of their own, so that either worker has some."""


# The rest of the portal's tests are on SQLite.
@pytest.fixture(
    scope="module", params=[pytest.param("sqlite", marks=pytest.mark.large), "postgres"]
)
def gateway(request: pytest.FixtureRequest, serve: Serve) -> Iterator[Gateway]:
    if request.param == "sqlite":
        yield serve(TEXT, "--workers", "2", **VARIABLES)
        return
    server: Server = request.getfixturevalue("postgres")
    with server.database() as made:
        gateway = serve(TEXT, "--workers", "2", **VARIABLES, DATABASE_URL=made.url)
        yield gateway
        assert 0 == gateway.stop()


def test_a_first_hour(gateway: Gateway) -> None:
    """From the first owner to a key that lets nobody in any more, each step by its page."""
    owner, key = found(gateway)
    office = Office(gateway)
    assert 200 == office.chat(key).status
    made = owner.api("POST", "/keys", {"name": "second", "tags": ["ci"], "usage_limit": 2.5}).json
    assert 200 == office.chat(made["key"]).status

    def counted() -> bool | None:
        return owner.api("GET", "/usage?bucket=total").json["totals"]["requests"] == 2 or None

    assert until(counted)
    assert b"No traffic yet" not in owner.look("/").body
    for by in ("model", "provider", "key_id", "team", "user", "tag", "outcome"):
        assert 200 == owner.look(f"/usage?by={by}&show=requests").status, by
    lines = owner.look("/usage.csv?by=key_id").body.decode().splitlines()
    assert lines[0].startswith("day,key_id,name,requests,ok,input")
    assert {"first key", "second"} == {line.split(",")[2] for line in lines[1:]}
    page = owner.look(f"/keys/{made['id']}").body.decode()
    assert "<dd>1</dd>" in page
    rolled = owner.api("POST", f"/keys/{made['id']}/roll", {"grace_seconds": 60}).json["key"]
    assert (200, 200) == (office.chat(made["key"]).status, office.chat(rolled).status)
    owner.look(f"/keys/{made['id']}")
    assert 303 == owner.send(f"/keys/{made['id']}/disable").status
    statuses: list[int] = []

    def refused() -> bool | None:
        statuses.append(office.chat(rolled).status)
        return statuses[-1] == 401 or None

    assert until(refused)
    assert 422 == owner.send(f"/keys/{made['id']}/delete", {"typed": "another"}).status
    assert 303 == owner.send(f"/keys/{made['id']}/delete", {"typed": "second"}).status
    assert 404 == owner.look(f"/keys/{made['id']}").status
    viewer = joined(owner, "viewer@example.com", "viewer")
    assert "viewer" == me(viewer)["role"]
    assert b"Every entry is as it was written." in owner.look("/audit").body
    # What two workers have answered so far is all in the books before anybody counts on.
    answered = 4 + statuses.count(200)

    def entered() -> bool | None:
        totals = owner.api("GET", "/usage?bucket=total").json["totals"]
        return totals["requests"] == answered or None

    assert until(entered)


def test_models_and_providers_are_read_and_written(gateway: Gateway) -> None:
    owner, office = Browser(gateway), Office(gateway)
    owner.sign_in("ada@example.com")
    key = owner.api("POST", "/keys", {"name": "lately"}).json["key"]
    before = asked(owner)
    assert 200 == office.chat(key).status
    assert until(lambda: asked(owner) == before + 1 or None)
    own = {"name": "Own", "url": "https://llm.example.com/v1", "models": ["ours"],
           "credential": "sk-of-theirs-0123456789"}  # fmt: skip
    made = owner.api("POST", "/providers", own).json
    [held] = owner.api("GET", "/credentials").json["rows"]
    assert (made["id"], "6789") == (held["upstream"], held["last_four"])
    replaced = {"secret": "sk-of-theirs-9876543210", "priority": -1}
    changed = owner.api("PATCH", f"/credentials/{held['id']}", replaced).json
    assert ("3210", 2, -1) == tuple(changed[k] for k in ("last_four", "version", "priority"))
    assert "ours" in {row["name"] for row in owner.api("GET", "/models").json["rows"]}
    for page in ("/models", "/providers", f"/providers/{made['id']}",
                 f"/providers/keys/{held['id']}"):  # fmt: skip
        assert 200 == owner.look(page).status, page
    assert 200 == owner.api("PATCH", "/byok", {"byok": "own_only"}).status
    assert "own_only" == owner.api("GET", "/upstreams").json["byok"]
    assert 200 == owner.api("PATCH", "/byok", {"byok": "own_first"}).status
    assert 204 == owner.api("DELETE", f"/providers/{made['id']}").status
    assert [] == owner.api("GET", "/credentials").json["rows"]


def asked(browser: Browser) -> int:
    """Requests for a model, as the last 24 hours have them."""
    rows = browser.api("GET", "/models").json["rows"]
    return int(next(row["requests"] for row in rows if row["name"] == "one"))


@contextmanager
def portal_apart(gateway: Gateway) -> Iterator[Browser]:
    """The owner at a portal of another process, which asks the gateway over its admin API."""
    told = f"store: books, admin_url: '{gateway.admin_url}/admin/api', admin_token: {TOKEN},"
    portal = Apart(gateway, APART.replace("store: books,", told))
    portal.start()
    try:
        owner = Browser(portal)
        assert 303 == owner.sign_in("ada@example.com").status
        yield owner
    finally:
        portal.kill()


def test_W11_what_a_portal_apart_sets_for_targets_and_prices_holds_at_every_worker(
    gateway: Gateway,
) -> None:
    office = Office(gateway)
    with portal_apart(gateway) as owner:
        owner.csrf = me(owner)["csrf_token"]
        key = owner.api("POST", "/keys", {"name": "steered"}).json["key"]

        def answers(model: str, status: int, tries: str | None) -> bool | None:
            all = [office.chat(key, model) for _ in range(ROUND)]
            return {(status, tries)} == {
                (one.status, one.headers["x-passy-attempts"]) for one in all
            } or None

        def booked(price: str) -> bool | None:
            """Whether new requests are, and each costs what it comes to by its price."""
            ids = [office.chat(key).headers["x-request-id"] for _ in range(ROUND)]
            rows = [until(lambda id=id: shown(owner, id)) for id in ids]
            for row in rows:
                read, written = (
                    Decimal(n) for n in re.findall(r"([0-9.]+) (?:in|out)", row["price"])
                )
                comes_to = read * row["input"] + written * row["output"]
                assert comes_to == Decimal(row["cost_usd"]) * 10**6, row
            return all(row["price"].startswith(price) for row in rows) or None

        def steered(model: str, target: str, do: str) -> int:
            change = {"model": model, "target": target, "do": do}
            return owner.api("PUT", "/models/target", change).status

        def priced(rates: dict[str, float] | None) -> int:
            return owner.api("PUT", "/prices", {"target": "echo/echo", "rates": rates}).status

        assert answers("two", 200, "2")
        # What is written at once is waited for one by one.
        assert 200 == steered("two", "echo/echo", "pin") == steered("gone", "echo/echo", "disable")
        assert 200 == priced({"input": 0.3, "output": 40})
        assert until(lambda: answers("two", 200, "1"))
        assert until(lambda: answers("gone", 503, None))
        assert until(lambda: booked("0.3 in, 40 out"))
        assert 200 == steered("two", "echo/echo", "release")
        assert 200 == steered("gone", "echo/echo", "release") == priced(None)
        assert until(lambda: answers("two", 200, "2"))
        assert until(lambda: answers("gone", 200, "1"))
        assert until(lambda: booked("1 in, 2 out"))
        told = [row["action"] for row in owner.api("GET", "/audit").json["rows"]]
    assert 2 == told.count("target.release") == told.count("price.set")
    assert (1, 1) == (told.count("target.pin"), told.count("target.disable"))


def shown(browser: Browser, id: str) -> Any:
    """One request, once it is in the books."""
    asked = browser.api("GET", f"/requests/{id}")
    return asked.json if asked.status == 200 else None


def test_what_playground_and_settings_keep(gateway: Gateway) -> None:
    owner = Browser(gateway)
    owner.sign_in("ada@example.com")
    content = {"models": ["one"], "messages": [{"role": "user", "content": "ü 漢 𝄞"}]}
    kept = owner.api("POST", "/playground/prompts", {"title": "A", "content": content}).json
    path = f"/playground/prompts/{kept['id']}"
    assert owner.api("PATCH", path, {"shared": True}).json["shared"]
    [row] = owner.api("GET", "/playground/prompts").json["rows"]
    assert content["messages"] == row["content"]["messages"]
    key = owner.api("POST", "/playground/key").json["key"]
    assert 200 == Office(gateway).chat(key).status
    hook = owner.api("POST", "/webhooks", {"url": "https://hooks.example.com/x"}).json
    assert not owner.api("PATCH", f"/webhooks/{hook['id']}", {"enabled": False}).json["enabled"]
    for page in ("/playground", "/settings", "/settings/webhooks", "/settings/gateway"):
        assert 200 == owner.look(page).status, page
    owner.look("/account")
    assert 303 == owner.send("/logout").status
    assert until(lambda: Office(gateway).chat(key).status == 401 or None)


def test_changes_of_several_at_once_are_all_noted_in_one_chain(gateway: Gateway) -> None:
    owner = Browser(gateway)
    assert 303 == owner.sign_in("ada@example.com").status

    def make(n: int) -> int:
        browser = Browser(gateway)
        browser.cookies, browser.csrf = dict(owner.cookies), owner.csrf
        return browser.api("POST", "/keys", {"name": f"key {n}"}).status

    with ThreadPoolExecutor(8) as threads:
        assert [201] * 16 == list(threads.map(make, range(16)))
    page = owner.look("/audit").body.decode()
    assert "Every entry is as it was written." in page
    assert 16 <= len(re.findall("key.create", page))


def test_errors_of_pages_are_pages_and_those_of_the_api_are_json(gateway: Gateway) -> None:
    owner = Browser(gateway)
    owner.sign_in("ada@example.com")
    for path, status in (
        ("/nowhere", 404), ("/keys/key_0", 404), ("/usage?since=yesterday", 422),
        ("/usage?by=x", 422),
        ("/usage?since=2026-01-02&until=2026-01-01", 422), ("/keys?cursor=none", 422),
        ("/static/nothing.js", 404), ("/audit?before=x", 422),
    ):  # fmt: skip
        asked = owner.look(path)
        assert status == asked.status, path
        assert "text/html; charset=utf-8" == asked.headers["content-type"], path
        assert asked.headers["x-request-id"] in asked.body.decode()
    for path, status in (("/api/nowhere", 404), ("/api/keys?limit=0", 422), ("/api/keys/x", 404)):
        asked = owner.look(path)
        assert (status, "application/json") == (asked.status, asked.headers["content-type"]), path


@pytest.mark.parametrize(
    "fields",
    [
        {"name": ""}, {"name": "a", "usage_limit": "-1"}, {"name": "a", "usage_limit": "nan"},
        {"name": "a", "requests": "fast"}, {"name": "a", "concurrency": "0"},
        {"name": "a", "concurrency": "1.5"}, {"name": "a", "networks": "the office"},
        {"name": "a", "expires": "tomorrow"}, {"name": "a", "email": "nobody"},
        {"name": "a", "team": "team_0"}, {"name": "a", "kind": "gold"}, {"name": "a\x07"},
        {"name": "a" * 201}, {"name": "a", "usage_period": "eon"}, {"name": "a", "tags": "x" * 65},
    ],
)  # fmt: skip
def test_what_a_key_cannot_be_is_said_and_what_was_typed_stays(
    gateway: Gateway, fields: dict[str, Any]
) -> None:
    owner = Browser(gateway)
    owner.sign_in("ada@example.com")
    owner.look("/keys/new")
    before = len(owner.api("GET", "/keys").json["rows"])
    typed = {"usage_period": "month", "description": "typed by hand"} | fields
    asked = owner.send("/keys/new", typed)
    assert 422 == asked.status, asked.body
    assert b"typed by hand" in asked.body
    assert b'role="alert"' in asked.body
    assert before == len(owner.api("GET", "/keys").json["rows"])


def test_tables_are_as_the_migrations_make_them(gateway: Gateway) -> None:
    if (gateway.folder / ".passy/passy.db").exists():
        with closing(sqlite3.connect(gateway.folder / ".passy/passy.db")) as books:
            told = {
                name: [row[1] for row in books.execute(f"PRAGMA table_info({name})")]
                for name in metadata.tables
            }
            assert [(REVISIONS[-1],)] == books.execute("SELECT * FROM portal_version").fetchall()
        assert {n: [c.name for c in t.columns] for n, t in metadata.tables.items()} == told
