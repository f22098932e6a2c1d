"""W3, W4: what is another organisation's does not exist, and nobody makes themselves more."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import Any, NamedTuple
from urllib.parse import urlencode

import pytest
from harness.gateway import Gateway, Serve, until
from harness.office import VARIABLES, Office
from harness.portal import CONFIGURATION, Browser, found, joined, me

from passy_portal.access import ACCESS, Access
from passy_portal.app import application
from passy_portal.door import csrf_of
from passy_portal.identities import id_of
from passy_proxy.issue import ROLES, Role

Route = tuple[str, str]


def routes() -> Iterator[Route]:
    """All that the application has, included routers among it."""

    def within(routers: Any) -> Iterator[Route]:
        for route in routers:
            if (inner := getattr(route, "original_router", None)) is not None:
                yield from within(inner.routes)
            else:
                for method in route.methods - {"HEAD"}:
                    yield method, route.path

    yield from within(application(None, "", None).routes)


def test_W3_every_route_has_an_entry_and_every_entry_a_route() -> None:
    assert sorted(ACCESS) == sorted(routes())
    for (_, path), access in ACCESS.items():
        assert (access.object is not None) == (
            "{" in path and path.split("/")[1] not in ("static", "sso")
        ), path


class Cast(NamedTuple):
    """One of each role in one organisation, and the ids of another one's things."""

    gateway: Gateway
    people: dict[Role, Browser]
    other: Browser
    """The other organisation's owner."""
    ids: dict[str, str]


@pytest.fixture(scope="module")
def cast(serve: Serve) -> Cast:
    gateway = serve(CONFIGURATION, **VARIABLES)
    office = Office(gateway)
    owner, _ = found(gateway)
    people: dict[Role, Browser] = {"owner": owner}
    for role in ROLES[1:]:
        people[role] = joined(owner, f"{role}@example.com", role)
    other = joined(owner, "eve@example.com", "viewer")
    eve = me(other)["user"]
    organisation = office.made("/organisations", {"name": "Others"})["id"]
    place = office.admin("PUT", f"/organisations/{organisation}/members/{eve}", {"role": "owner"})
    assert 200 == place.status
    other.look("/account")
    assert 303 == other.send("/account/organisation", {"organisation": organisation}).status
    other.look("/")
    owner.look("/team")
    assert 303 == owner.send(f"/team/{eve}/remove").status
    other.sign_in("eve@example.com")
    other.look("/team")
    invited = other.send("/team/invite", {"email": "mallory@example.com", "role": "viewer"})
    invitation = re.search(rb"/team/invitations/(inv_[0-9a-f]+)/", invited.body)
    session = re.search(rb"/account/sessions/(sess_[0-9a-f]+)/", two(other).look("/account").body)
    assert invitation
    assert session
    made = other.api("POST", "/keys", {"name": "theirs"}).json
    key, asked = made["id"], office.chat(made["key"]).headers["x-request-id"]
    view = other.api("POST", "/requests/views", {"name": "theirs"}).json["id"]
    assert until(lambda: other.api("GET", f"/requests/{asked}").status == 200 or None)
    inside = f"/organisations/{organisation}"
    own = {"name": "Theirs", "url": "https://llm.example.com/v1", "credential": "sk-of-theirs"}
    provider = office.made(f"{inside}/providers", own)["id"]
    mine = {"upstream": "echo", "secret": "sk-of-theirs"}
    credential = office.made(f"{inside}/credentials", mine)["id"]
    content = {"models": ["one"], "messages": []}
    kept = {"title": "Theirs", "content": content, "shared": True}
    prompt = other.api("POST", "/playground/prompts", kept).json["id"]
    team = office.made(f"/organisations/{organisation}/teams", {"name": "Theirs"})["id"]
    told = {"organisation": organisation, "url": "https://hooks.example.com/x"}
    webhook = office.made("/webhooks", told)["id"]
    identity = "http://id.example.com", "eve"
    with closing(sqlite3.connect(gateway.folder / ".passy/passy.db", timeout=90)) as books:
        books.execute("INSERT INTO portal_identities VALUES (?, ?, ?, 0)", (*identity, eve))
        books.commit()
    ids = {
        "identity": id_of(*identity),
        "webhook": webhook,
        "prompt": prompt,
        "key": key,
        "request": asked,
        "view": view,
        "member": eve,
        "invitation": invitation[1].decode(),
        "session": session[1].decode(),
        "provider": provider,
        "credential": credential,
        "team": team,
    }
    return Cast(gateway, people, other, ids)


def two(browser: Browser) -> Browser:
    """A second session of the same person, so that a page names the first one."""
    second = Browser(browser.gateway)
    second.sign_in("eve@example.com")
    return second


def tried(browser: Browser, route: Route, id: str) -> int:
    method, path = route
    path = re.sub(r"{\w+}", id, path)
    browser.csrf = csrf_of(browser.cookies["passy_session"])
    if path.startswith("/api"):
        body = {} if method in ("POST", "PATCH") else None
        return browser.api(method, path.removeprefix("/api"), body).status
    if method == "GET":
        return browser.look(path).status
    fields = (
        {"grace": "0"} if path.endswith("/roll") else {"role": "viewer"} if "role" in path else {}
    )
    return browser.send(path, fields).status


OBJECTS = {route: access for route, access in ACCESS.items() if access.object}


@pytest.mark.parametrize("route", OBJECTS, ids=" ".join)
@pytest.mark.parametrize("role", ROLES)
def test_W3_what_is_another_organisations_does_not_exist(
    cast: Cast, role: Role, route: Route
) -> None:
    access = ACCESS[route]
    assert access.object is not None
    assert access.roles is not None
    expected = 404 if role in access.roles else 403
    assert expected == tried(cast.people[role], route, cast.ids[access.object])
    if role == "owner":
        assert 404 == tried(cast.people[role], route, "key_0000000000000000")


def test_W3_what_others_tried_to_change_is_as_it_was(cast: Cast) -> None:
    assert 200 == cast.other.api("GET", f"/keys/{cast.ids['key']}").status
    assert 200 == cast.other.api("GET", f"/requests/{cast.ids['request']}").status
    assert [cast.ids["view"]] == [
        row["id"] for row in cast.other.api("GET", "/requests/views").json["rows"]
    ]


@pytest.mark.parametrize("route", ACCESS, ids=" ".join)
def test_W3_a_stranger_gets_in_nowhere(cast: Cast, route: Route) -> None:
    stranger = Browser(cast.gateway)
    stranger.look("/login")
    access = ACCESS[route]
    if access.roles is None:
        return
    status = tried(stranger, route, cast.ids.get(access.object or "", "x"))
    assert (401 if route[1].startswith("/api") else 303) == status


@pytest.mark.parametrize("route", ACCESS, ids=" ".join)
def test_W3_a_role_that_may_not_is_told_so(cast: Cast, route: Route) -> None:
    access: Access = ACCESS[route]
    for role in ROLES:
        if access.roles is not None and role not in access.roles:
            assert 403 == tried(cast.people[role], route, cast.ids["key"]), role


@pytest.mark.parametrize("route", [one for one in ACCESS if one[0] != "GET"], ids=" ".join)
def test_W5_no_change_is_made_without_the_token_or_for_another_site(
    cast: Cast, route: Route
) -> None:
    browser = Browser(cast.gateway)
    browser.cookies = dict(cast.people["owner"].cookies)
    method, path = route[0], re.sub(r"{\w+}", "x_0", route[1])
    kind = None if path.startswith("/api") else "application/x-www-form-urlencoded"
    csrf = me(browser)["csrf_token"]
    for token, site in (("0" * 64, "same-origin"), (csrf, "cross-site"), (csrf, "same-site")):
        body = None if kind is None else urlencode({"csrf": token}).encode()
        asked = browser.ask(
            method, path, body, content_type=kind, sec_fetch_site=site,
            x_csrf_token=None if kind else token,
        )  # fmt: skip
        assert 403 == asked.status, (token, site)


def test_W3_another_organisations_usage_is_not_there(cast: Cast) -> None:
    office, key = (
        Office(cast.gateway),
        cast.other.api("POST", "/keys", {"name": "used"}).json["key"],
    )
    assert 200 == office.chat(key).status
    theirs = me(cast.other)["organisation"]
    for query in (f"organisation={theirs}", f"by=organisation&organisation={theirs}", "by=key"):
        told = cast.people["owner"].api("GET", f"/usage?{query}").json
        assert 0 == told["totals"]["requests"], query
        assert [] == told["rows"], query


def test_W3_a_developer_has_their_own_keys_alone(cast: Cast) -> None:
    owner, developer = cast.people["owner"], cast.people["developer"]
    mine = developer.api("POST", "/keys", {"name": "mine"}).json["id"]
    owners = owner.api("POST", "/keys", {"name": "owner's"}).json["id"]
    assert [mine] == [row["id"] for row in developer.api("GET", "/keys").json["rows"]]
    assert 404 == developer.api("GET", f"/keys/{owners}").status
    assert 404 == developer.api("PATCH", f"/keys/{owners}", {"name": "x"}).status
    assert 200 == owner.api("GET", f"/keys/{mine}").status
    assert b"owner&#39;s" not in developer.look("/keys").body


MORE = {
    "organisation": "org_1", "user": "user_1", "user_id": "user_1", "id": "key_1", "role": "owner",
    "created_by": "x", "digest": "x", "shown": "x", "created_at": "2020-01-01", "is_admin": True,
    "status": "active", "spent": 0, "last_used_at": None, "routes": ["*"], "owner": "user_1",
    "csrf_token": "x",
}  # fmt: skip


@pytest.mark.parametrize("field", MORE)
def test_W4_no_route_sets_what_its_page_does_not_offer(cast: Cast, field: str) -> None:
    browser = cast.people["developer"]
    key = browser.api("POST", "/keys", {"name": "plain"}).json["id"]
    value = MORE[field]
    assert 422 == browser.api("POST", "/keys", {"name": "a", field: value}).status
    assert 422 == browser.api("PATCH", f"/keys/{key}", {field: value}).status
    form = {"name": "a", "usage_period": "month", field: json.dumps(value)}
    assert 422 == browser.send("/keys/new", form).status
    assert 422 == browser.send(f"/keys/{key}", form).status
    if field not in ("role",):
        leader = cast.people["admin"]
        leader.look("/team")
        invited = {"email": "n@example.com", "role": "viewer", field: json.dumps(value)}
        assert 422 == leader.send("/team/invite", invited).status


def test_W4_a_key_belongs_to_who_makes_it_and_their_limits_hold_for_it(cast: Cast) -> None:
    office, developer = Office(cast.gateway), cast.people["developer"]
    user = me(developer)["user"]
    assert 200 == office.admin("PATCH", f"/users/{user}", {"models": ["pattern-*"]}).status
    made = developer.api("POST", "/keys", {"name": "wide", "models": ["*"]}).json
    assert (user, user) == (made["user"], made["created_by"])
    assert 200 == office.chat(made["key"], "pattern-1").status
    assert 403 == office.chat(made["key"], "one").status
    assert 200 == office.admin("PATCH", f"/users/{user}", {"models": None}).status


def test_W4_nobody_makes_themselves_more(cast: Cast) -> None:
    admin, owner = cast.people["admin"], cast.people["owner"]
    own, owners = me(admin)["user"], me(owner)["user"]
    admin.look("/team")
    assert 403 == admin.send(f"/team/{own}/role", {"role": "owner"}).status
    assert 403 == admin.send(f"/team/{owners}/role", {"role": "viewer"}).status
    assert 403 == admin.send(f"/team/{owners}/remove").status
    assert 403 == admin.send("/team/invite", {"email": "o@example.com", "role": "owner"}).status
    owner.look("/team")
    assert 409 == owner.send(f"/team/{owners}/role", {"role": "viewer"}).status
    assert 409 == owner.send(f"/team/{owners}/remove").status
    assert ("admin", "owner") == (me(admin)["role"], me(owner)["role"])


def test_W4_a_form_with_a_field_twice_is_refused(cast: Cast) -> None:
    browser = cast.people["owner"]
    browser.look("/keys/new")
    body = urlencode([("csrf", browser.csrf), ("name", "a"), ("name", "b")]).encode()
    kind = "application/x-www-form-urlencoded"
    assert 400 == browser.ask("POST", "/keys/new", body, content_type=kind).status


def test_W3_requests_are_those_of_ones_own_organisation_and_of_a_developer_their_own(
    cast: Cast,
) -> None:
    office, owner = Office(cast.gateway), cast.people["owner"]
    developer = cast.people["developer"]
    asked = []
    for browser in (owner, developer):
        key = browser.api("POST", "/keys", {"name": "asks"}).json["key"]
        asked.append(office.chat(key).headers["x-request-id"])
    mine, theirs = asked

    def ids(browser: Browser, query: str = "") -> set[str]:
        return {row["id"] for row in browser.api("GET", f"/requests{query}").json["rows"]}

    def seen(browser: Browser, query: str = "") -> set[str]:
        found = ids(browser, query)
        lines = browser.look(f"/requests.jsonl{query}").body.decode().splitlines()
        assert found == {json.loads(line)["id"] for line in lines}
        page = browser.look(f"/requests{query}").body.decode()
        assert found == set(re.findall(r'data-id="([^"]+)"', page))
        return found

    place = developer.api("GET", "/requests/arrived").json["place"]
    assert until(lambda: {mine, theirs} <= ids(owner) or None)
    assert cast.ids["request"] not in seen(owner)
    assert theirs in seen(developer)
    assert mine not in seen(developer)
    assert 404 == developer.api("GET", f"/requests/{mine}").status
    assert 404 == developer.look(f"/requests/{mine}").status
    foreign = me(cast.other)["organisation"]
    assert set() == ids(owner, f"?organisation={foreign}")
    assert set() == seen(developer, f"?user={me(owner)['user']}")
    key = owner.api("POST", "/keys", {"name": "later"}).json["key"]
    later = office.chat(key).headers["x-request-id"]
    assert until(lambda: later in ids(owner) or None)
    arrived = f"/requests/arrived?after={place}"
    own = {row["user"] for row in developer.api("GET", arrived).json["rows"]}
    assert own <= {me(developer)["user"]}
    assert later in {row["id"] for row in owner.api("GET", arrived).json["rows"]}
