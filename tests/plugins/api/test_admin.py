"""The admin API: what is entered holds, what is edited is not lost, no secret comes out."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import Any

import pytest
from harness.gateway import Hire, Provider, Serve, until
from harness.office import CONFIGURATION, SECRET, TOKEN, VARIABLES, Office
from harness.postgres import Database, OwnServer

from passy_proxy.testing import Answer

CANARY = "sk-canary-4711-of-an-organisation-9f3e"


@pytest.fixture(scope="module")
def provider(hire: Hire) -> Provider:
    return hire()


@pytest.fixture(scope="module")
def office(serve: Serve, provider: Provider) -> Office:
    more = f"""
connect: {{tenants_may_reach: [127.0.0.1]}}
upstreams:
  echo: {{kind: echo}}
  real: {{url: "{provider.url}/v1", credential: sk-of-the-operator-0123456789}}
  unset: {{url: "https://unset.example.com/v1", credential: "${{NOT_SET:-}}"}}
  loose: {{url: "https://loose.example.com/v1", verify: off}}
"""
    text = CONFIGURATION.replace("upstreams:\n  echo: {kind: echo}\n", more)
    assert more in text
    return Office(serve(text, **VARIABLES))


def organisation(office: Office, **more: object) -> str:
    return str(office.made("/organisations", {"name": "Acme", **more})["id"])


# What is entered holds


def test_limits_of_an_organisation_are_entered_changed_and_taken_away(office: Office) -> None:
    limits = {"requests": "60/min", "tokens": "100k/h", "concurrency": 5}
    made = office.made("/organisations", {"name": "Acme", "limits": limits, "models": ["one"]})
    shown = {"requests": "60/min", "tokens": "100000/h", "concurrency": 5}
    assert (shown, ["one"], "active") == (made["limits"], made["models"], made["status"])
    path = f"/organisations/{made['id']}"
    changed = office.admin("PATCH", path, {"limits": {"tokens": None}, "models": None}).json
    assert (shown | {"tokens": None}, None) == (changed["limits"], changed["models"])
    assert "Acme" == changed["name"]
    assert changed == office.admin("GET", path).json


def test_models_of_an_organisation_hold_for_its_keys(office: Office) -> None:
    mine = organisation(office, models=["pattern-*"])
    key = office.made("/keys", {"organisation": mine})["key"]
    assert 200 == office.chat(key, "pattern-x").status
    assert 200 != office.chat(key, "one").status
    assert 200 == office.admin("PATCH", f"/organisations/{mine}", {"models": ["one"]}).status
    until(lambda: 200 == office.chat(key, "one").status or None)


@pytest.mark.parametrize("what", ["organisation", "team", "user", "key"])
def test_D6_what_is_disabled_lets_nobody_in(office: Office, what: str) -> None:
    mine = organisation(office)
    team = office.made(f"/organisations/{mine}/teams", {"name": "Team"})["id"]
    user = office.made("/users", {})["id"]
    body = {"organisation": mine, "team": team, "user": user}
    made = office.made("/keys", body)
    assert 200 == office.chat(made["key"]).status
    place = {
        "organisation": f"/organisations/{mine}",
        "team": f"/organisations/{mine}/teams/{team}",
        "user": f"/users/{user}",
        "key": f"/keys/{made['id']}",
    }[what]
    off = {"disabled": True} if what == "key" else {"status": "disabled"}
    on = {"disabled": False} if what == "key" else {"status": "active"}
    began = time.monotonic()
    assert 200 == office.admin("PATCH", place, off).status
    until(lambda: office.chat(made["key"]).status in (401, 403) or None)
    assert time.monotonic() - began < 15
    assert 200 == office.admin("PATCH", place, on).status
    until(lambda: 200 == office.chat(made["key"]).status or None)


def test_a_key_has_what_it_was_given_and_loses_what_is_taken(office: Office) -> None:
    mine = organisation(office)
    body = {
        "organisation": mine, "name": "build", "email": "a@b.c", "description": "For builds",
        "tags": ["ci", "eu"], "limits": {"requests": "5/s"}, "models": ["one"],
        "networks": ["127.0.0.0/8"], "upstreams": ["echo"], "usage_limit": 2.5,
        "usage_period": "week", "expires_at": "2030-01-01",
    }  # fmt: skip
    made = office.made("/keys", body)
    shown = {name: made[name] for name in body if name not in ("expires_at", "limits")}
    assert {name: body[name] for name in shown} == shown
    assert "2030-01-01T00:00:00.000Z" == made["expires_at"]
    assert "5/s" == made["limits"]["requests"]
    none: dict[str, Any] = {
        "networks": None, "models": None, "upstreams": None, "usage_limit": None,
        "expires_at": None, "tags": [], "limits": {"requests": None}, "email": None,
    }  # fmt: skip
    changed = office.admin("PATCH", f"/keys/{made['id']}", none).json
    assert [None] * 6 == [changed[name] for name in none if name not in ("tags", "limits")]
    assert ([], None) == (changed["tags"], changed["limits"]["requests"])
    assert 200 == office.chat(made["key"]).status


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/keys", {"organisation": "org_none"}, None),
        ("/keys", {"networks": ["not-a-network"]}, None),
        ("/keys", {"tags": ["a,b"]}, "body.tags.0"),
        ("/keys", {"limits": {"requests": "lots"}}, "body.limits.requests"),
        ("/keys", {"limits": {"concurrency": 0}}, "body.limits.concurrency"),
        ("/keys", {"expires_at": "tomorrow"}, "body.expires_at"),
        ("/organisations", {}, "body.name"),
        ("/organisations", {"name": " "}, "body.name"),
        ("/organisations", {"name": "x", "byok": "never"}, "body.byok"),
        ("/budgets", {"kind": "key", "subject": "key_none", "unit": "usd", "amount": 1}, None),
        ("/budgets", {"kind": "key", "subject": "k", "unit": "tokens", "amount": 1.5}, "body"),
        ("/budgets", {"kind": "key", "subject": "k", "unit": "usd", "amount": 1e10}, "body"),
        ("/budgets", {"kind": "key", "subject": "k", "unit": "eur", "amount": 1}, "body.unit"),
        ("/webhooks", {"url": "ftp://example.com"}, "body.url"),
        ("/webhooks", {"url": "https://u:p@example.com/"}, None),
        ("/users", {"email": "nobody"}, "body.email"),
    ],
)
def test_a_mistake_is_told_with_its_place(
    office: Office, path: str, body: object, param: str | None
) -> None:
    asked = office.admin("POST", path, body)
    error = asked.json["error"]
    assert (422, "invalid_value", param) == (asked.status, error["code"], error["param"]), error


def test_an_e_mail_is_one_user_s(office: Office) -> None:
    first = office.made("/users", {"email": "Ada@Example.com", "name": "Ada"})
    assert "ada@example.com" == first["email"]
    again = office.admin("POST", "/users", {"email": "ada@example.com"})
    assert (409, "exists_already", "body.email") == (
        again.status,
        again.json["error"]["code"],
        again.json["error"]["param"],
    )
    other = office.made("/users", {"email": "bob@example.com"})["id"]
    taken = office.admin("PATCH", f"/users/{other}", {"email": "ada@example.com"})
    assert 409 == taken.status
    own = office.admin("PATCH", f"/users/{first['id']}", {"email": "ada@example.com"})
    assert 200 == own.status
    assert 409 == office.admin("POST", "/users", {"id": other}).status


def test_budgets_are_in_dollars_or_tokens(office: Office) -> None:
    mine = organisation(office)
    for unit, amount, other in (("usd", 12.345678901, 0.000000001), ("tokens", 5_000_000, 0)):
        body = {"kind": "organisation", "subject": mine, "unit": unit, "amount": amount}
        made = office.made("/budgets", body)
        assert (amount, unit, "month", True) == (
            made["amount"],
            made["unit"],
            made["period"],
            made["hard"],
        )
        path = f"/budgets/{made['id']}"
        changed = office.admin("PATCH", path, {"amount": other, "hard": False, "alerts": [90, 50]})
        assert (other, False, [50, 90]) == (
            changed.json["amount"],
            changed.json["hard"],
            changed.json["alerts"],
        )
    listed = office.admin("GET", f"/budgets?kind=organisation&subject={mine}").json["rows"]
    assert ["usd", "tokens"] == [one["unit"] for one in listed]
    assert 422 == office.admin("PATCH", path, {"amount": 0.5}).status


def test_a_list_is_searched_and_no_character_is_a_wildcard(office: Office) -> None:
    for name in ("Hundred % Inc", "Under_score", "Back\\slash", "Plain"):
        office.made("/organisations", {"name": name})
    asked = {"%25": "Hundred % Inc", "_sc": "Under_score", "%5C": "Back\\slash", "PLAIN": "Plain"}
    for search, expected in asked.items():
        listed = office.admin("GET", f"/organisations?search={search}").json["rows"]
        assert [expected] == [one["name"] for one in listed]
    began = time.monotonic()
    assert 422 == office.admin("GET", f"/organisations?search={'%25' * 1000}").status
    assert 200 == office.admin("GET", f"/organisations?search={'%25' * 200}").status
    assert time.monotonic() - began < 20


def test_pages_skip_nothing_that_is_entered_meanwhile(office: Office) -> None:
    mine = organisation(office)
    path = f"/organisations/{mine}/teams"
    made = [office.made(path, {"name": f"Team {n}"})["id"] for n in range(5)]
    found: list[str] = []
    cursor = ""
    while True:
        page = office.admin("GET", f"{path}?limit=2{cursor}").json
        found += [one["id"] for one in page["rows"]]
        if len(found) == 2:
            made.append(office.made(path, {"name": "Late"})["id"])
        if page["cursor"] is None:
            break
        cursor = f"&cursor={page['cursor']}"
    assert made == found


# Edits


def test_an_edit_of_what_has_changed_since_is_refused(office: Office) -> None:
    mine = organisation(office)
    path = f"/organisations/{mine}"
    tag = office.admin("GET", path).headers["etag"]
    first = office.admin("PATCH", path, {"name": "First"}, if_match=tag)
    assert 200 == first.status
    assert first.headers["etag"] not in ("", tag)
    late = office.admin("PATCH", path, {"name": "Late"}, if_match=tag)
    assert (412, "changed_meanwhile") == (late.status, late.json["error"]["code"])
    assert "First" == office.admin("GET", path).json["name"]
    for fresh in (first.headers["etag"], "*", f'"other", {first.headers["etag"]}'):
        found = office.admin("PATCH", path, {}, if_match=fresh)
        assert 200 == found.status


@pytest.fixture(params=["sqlite", "postgres"])
def crowd(request: pytest.FixtureRequest, serve: Serve) -> Iterator[Office]:
    """Two workers on one database."""
    variables = dict(VARIABLES)
    if request.param == "postgres":
        variables["DATABASE_URL"] = request.getfixturevalue("database").url
    gateway = serve(CONFIGURATION, "--workers", "2", start=False, **variables)
    gateway.start()
    yield Office(gateway)
    assert 0 == gateway.stop(), gateway.complaints()  # Before its database goes.


def test_of_edits_at_once_one_is_taken(crowd: Office) -> None:
    mine = organisation(crowd)
    path = f"/organisations/{mine}"
    for turn in range(5):
        tag = crowd.admin("GET", path).headers["etag"]
        bodies = [{"name": f"{turn} {n}"} for n in range(8)]
        edit = partial(crowd.admin, "PATCH", path, if_match=tag)
        with ThreadPoolExecutor(8) as threads:
            asked = list(threads.map(edit, bodies))
        statuses = sorted(one.status for one in asked)
        assert [200] + [412] * 7 == statuses, [one.body for one in asked]
        [taken] = [one.json["name"] for one in asked if one.status == 200]
        assert taken == crowd.admin("GET", path).json["name"]


WRITES = (
    ("POST", "/organisations", {"name": "x"}),
    ("PATCH", "/organisations/{organisation}", {"name": "y"}),
    ("POST", "/organisations/{organisation}/teams", {"name": "x"}),
    ("PUT", "/organisations/{organisation}/members/{user}", {"role": "owner"}),
    ("PUT", "/organisations/{organisation}/members/{user}", {"role": "viewer"}),
    ("DELETE", "/organisations/{organisation}/members/{user}", None),
    ("POST", "/organisations/{organisation}/credentials", {"upstream": "echo", "secret": "x"}),
    ("POST", "/users", {}),
    ("PATCH", "/users/{user}", {"name": "y"}),
    ("POST", "/keys", {}),
    ("PATCH", "/keys/{key}", {"name": "y"}),
    ("POST", "/keys/{key}/roll", None),
    ("DELETE", "/keys/{key}", None),
    ("DELETE", "/users/{user}", None),
    ("DELETE", "/organisations/{organisation}", None),
)


def test_every_write_leaves_a_note_for_the_workers(office: Office) -> None:
    ids = {"organisation": organisation(office), "user": office.made("/users", {})["id"],
           "key": office.made("/keys", {})["id"]}  # fmt: skip

    def notes() -> int:
        with closing(sqlite3.connect(office.gateway.folder / ".passy/passy.db")) as books:
            return int(books.execute("SELECT max(seq) FROM changes").fetchone()[0])

    for method, path, body in WRITES:
        before = notes()
        asked = office.admin(method, path.format(**ids), body)
        assert asked.status in (200, 201, 204), asked.body
        assert notes() > before, (method, path)


# Secrets


def test_W10_a_credential_goes_in_and_never_comes_out(office: Office, provider: Provider) -> None:
    mine = organisation(office)
    inside = f"/organisations/{mine}"
    own = {"name": "Own", "url": f"{provider.url}/v1", "models": ["own-*"], "credential": CANARY}
    heard = [office.admin("POST", f"{inside}/providers", own)]
    assert 201 == heard[0].status, heard[0].body
    provider_id = heard[0].json["id"]
    heard.append(office.admin("POST", f"{inside}/credentials",
                              {"upstream": "real", "secret": CANARY, "name": "first"}))  # fmt: skip
    credential = heard[-1].json["id"]
    assert (201, CANARY[-4:]) == (heard[-1].status, heard[-1].json["last_four"])
    provider.forget()
    provider.then(Answer(401, pieces=[b'{"error": {"message": "bad key %s"}}' % CANARY.encode()]))
    heard += [
        office.admin("PATCH", f"{inside}/credentials/{credential}", {"secret": CANARY}),
        office.admin("PATCH", f"{inside}/credentials/{credential}", {"secret": f"{CANARY} "}),
        office.admin("PATCH", f"{inside}/credentials/{credential}", {"secrt": CANARY}),
        office.admin("POST", f"{inside}/credentials", {"upstream": CANARY, "secret": CANARY}),
        office.admin("POST", f"{inside}/providers", {**own, "url": "http://10.0.0.1/"}),
        office.admin("POST", f"{inside}/credentials/{credential}/test"),
        office.admin("POST", f"{inside}/providers/{provider_id}/test"),
        office.admin("GET", f"{inside}/credentials"),
        office.admin("GET", f"{inside}/credentials/{credential}"),
        office.admin("GET", f"{inside}/providers"),
        office.admin("GET", f"{inside}/providers/{provider_id}"),
        office.admin("GET", "/status"),
        office.admin("GET", "/routing"),
        office.admin("GET", "/openapi.json"),
    ]
    whole = b"".join(one.body for one in heard if one.json.get("error", {}).get("message") is None)
    assert CANARY.encode() not in whole
    for one in heard:
        said = one.body.replace(f"There is no upstream {CANARY}".encode(), b"")
        assert CANARY.encode() not in said, one.body
    assert b"refused" in heard[7].body
    written = office.gateway.complaints() + (office.gateway.folder / "out").read_text()
    for secret in (CANARY, TOKEN, SECRET):
        assert secret not in written
    database = (office.gateway.folder / ".passy/passy.db").read_bytes()
    assert CANARY.encode() not in database


def test_a_credential_that_is_edited_keeps_its_secret_unless_there_is_another(
    office: Office, provider: Provider
) -> None:
    mine = organisation(office)
    body = {"upstream": "real", "secret": CANARY}
    made = office.made(f"/organisations/{mine}/credentials", body)
    path = f"/organisations/{mine}/credentials/{made['id']}"
    kept = office.admin("PATCH", path, {"name": "renamed", "priority": 3}).json
    assert (CANARY[-4:], 1, "renamed") == (kept["last_four"], kept["version"], kept["name"])
    other = office.admin("PATCH", path, {"secret": "sk-another-of-theirs-abcd"}).json
    assert ("abcd", 2, "renamed") == (other["last_four"], other["version"], other["name"])


def test_a_credential_is_tried_in_three_steps(office: Office, provider: Provider) -> None:
    mine = organisation(office)
    made = office.made(f"/organisations/{mine}/credentials", {"upstream": "real", "secret": CANARY})
    provider.forget()
    provider.json({"error": {"message": "model is missing"}}, 400)
    provider.json({"data": [{"id": "small"}, {"id": "large"}]})
    provider.chat("Hi", "small")
    tried = office.admin("POST", f"/organisations/{mine}/credentials/{made['id']}/test")
    assert 200 == tried.status
    assert (True, "real", ["small", "large"]) == (
        tried.json["ok"],
        tried.json["upstream"],
        tried.json["models"],
    )
    assert [("authentication", "ok"), ("models", "ok"), ("call", "ok")] == [
        (step["name"], step["verdict"]) for step in tried.json["steps"]
    ]
    assert {f"Bearer {CANARY}"} == {seen.headers["authorization"] for seen in provider.requests}


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://example.com/v1", "https"),
        ("https://169.254.169.254/latest", ""),
        ("https://user:secret@example.com", ""),
        ("https://10.0.0.1/v1", ""),
        ("nonsense", ""),
    ],
)
def test_S5_a_provider_where_tenants_may_not_go_is_refused(
    office: Office, url: str, words: str
) -> None:
    path = f"/organisations/{organisation(office)}/providers"
    asked = office.admin("POST", path, {"name": "x", "url": url})
    assert (422, "body.url") == (asked.status, asked.json["error"]["param"]), asked.body
    assert words in asked.json["error"]["message"]
    assert b"secret" not in asked.body


def test_an_unknown_upstream_or_dialect_is_told_with_what_was_meant(office: Office) -> None:
    inside = f"/organisations/{organisation(office)}"
    asked = office.admin("POST", f"{inside}/credentials", {"upstream": "reel", "secret": "x"})
    assert "did you mean real?" in asked.json["error"]["message"]
    unset = office.admin("POST", f"{inside}/credentials", {"upstream": "unset", "secret": "x"})
    assert 201 == unset.status
    body = {"name": "x", "url": "https://example.com/v1", "dialect": "klingon"}
    asked = office.admin("POST", f"{inside}/providers", body)
    assert (422, "body.dialect") == (asked.status, asked.json["error"]["param"])


# The gateway


def test_U14_the_status_tells_what_is_off_and_what_a_failure_means(office: Office) -> None:
    def well() -> dict[str, Any] | None:
        status: dict[str, Any] = office.admin("GET", "/status").json
        return status if status["database"] == "ok" else None

    told = until(well)  # It is asked, and has little time to answer.
    assert (["loose"], ["unset"]) == (told["tls_off"], told["upstreams_left_out"])
    assert {"/keys": "keys", "/admin/api": "admin"} == told["apps"]
    modes = {one["name"]: one["modes"] for one in told["filters"]}
    assert "refuse" == modes["usage"]["when_full"]
    assert "closed" == modes["auth"]["on_error"]
    [books] = told["stores"]
    assert ("sql", False) == (books["kind"], books["full"])
    assert told["configuration"]["problem"] == ""


def test_a_reload_says_what_is_wrong_and_the_old_one_serves(serve: Serve) -> None:
    office = Office(serve(CONFIGURATION, **VARIABLES))
    file = office.gateway.file
    before = office.admin("GET", "/status").json["configuration"]["hash"]
    file.write_text(file.read_text().replace("alias, fallback", "alias, fallbak"))
    refused = office.admin("POST", "/reload")
    assert (409, "configuration_refused") == (refused.status, refused.json["error"]["code"])
    assert "did you mean 'fallback'?" in refused.json["error"]["message"]
    status = office.admin("GET", "/status").json["configuration"]
    assert (before, True) == (status["hash"], "fallbak" in status["problem"])
    file.write_text(CONFIGURATION + "\nlog: {level: debug}\n")
    taken = office.admin("POST", "/reload")
    assert 200 == taken.status
    assert before != taken.json["hash"]


def test_the_routing_table_is_told_row_by_row(office: Office) -> None:
    table = office.admin("GET", "/routing").json
    assert ["one", "pattern-*"] == [row["alias"] for row in table["routes"]]
    row = office.admin("GET", "/routing/one").json
    assert [{"provider": "echo", "model": "echo", "priority": 0}] == row["targets"]
    assert "pattern-*" == office.admin("GET", "/routing/pattern-7").json["alias"]
    assert 404 == office.admin("GET", "/routing/none").status
    assert "sk-of-the-operator" not in str(table)


# A database that is away


def test_D4_the_apis_work_again_when_the_database_is_back(
    serve: Serve, own_postgres: OwnServer, database: Database
) -> None:
    gateway = serve(CONFIGURATION, start=False, DATABASE_URL=database.url, **VARIABLES)
    gateway.start()
    office = Office(gateway)
    key = office.made("/keys", {})["key"]
    assert 200 == office.chat(key).status
    own_postgres.stop()
    for asked in (office.admin("GET", "/keys"), office.admin("POST", "/keys", {}),
                  office.keys("GET", "/api"), office.admin("GET", "/usage")):  # fmt: skip
        assert (503, "books_unavailable") == (asked.status, asked.json["error"]["code"])
        assert "1" == asked.headers["retry-after"]
        assert "127.0.0.1" not in asked.json["error"]["message"]
    assert "ok" != office.admin("GET", "/status").json["database"]
    own_postgres.start()
    until(lambda: 200 == office.admin("GET", "/keys").status or None)
    until(lambda: 201 == office.keys("POST", "/api", {}).status or None)
    assert gateway.stop() == 0
    assert "Traceback" not in gateway.complaints()


def test_no_answer_is_anything_but_json(office: Office) -> None:
    for path in ("/", "/nothing", "/docs", "/keys/%C3%A4", "/organisations/x/teams/y/z"):
        asked = office.admin("GET", path)
        assert "application/json" == asked.headers["content-type"]
        assert asked.json["error"]["request_id"] == asked.headers["x-request-id"]


def test_many_who_ask_at_once_are_all_answered(crowd: Office) -> None:
    """More than the database has connections for."""
    with ThreadPoolExecutor(40) as threads:
        statuses = list(threads.map(lambda _: crowd.admin("GET", "/keys").status, range(200)))
    assert {200} == set(statuses)
