"""Who may do what, for every route there is: the tables below are compared with the routes, so that
none can be forgotten. And what can be set where, for every field there is."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import pytest
from fastapi.routing import APIRoute
from harness.gateway import Serve
from harness.office import CONFIGURATION, SECRET, TOKEN, VARIABLES, Office

from passy_plugins.api import admin_routes, keys_routes
from passy_plugins.stores.sql.schema import metadata


class Entry(NamedTuple):
    """How a route is asked, and what it says to whom."""

    body: Any = None
    status: int = 200
    """What those hear who may."""
    theirs: bool = False
    """It is about something inside an organisation: by way of another one it is a 404."""
    last: bool = False
    """It takes away what others need, and is asked after them."""


NEW_KEY: dict[str, Any] = {}
BUDGET = {"kind": "organisation", "subject": "{organisation}", "unit": "usd", "amount": 5}
PROVIDER = {"name": "Own", "url": "https://llm.example.com/v1"}
CREDENTIAL = {"upstream": "echo", "secret": "sk-of-theirs"}

ADMIN = {
    "POST /organisations": Entry({"name": "Acme"}, 201),
    "GET /organisations": Entry(),
    "GET /organisations/{id}": Entry(),
    "PATCH /organisations/{id}": Entry({"name": "Another"}),
    "DELETE /organisations/{id}": Entry(status=204, last=True),
    "POST /organisations/{id}/teams": Entry({"name": "Team"}, 201),
    "GET /organisations/{id}/teams": Entry(),
    "GET /organisations/{id}/teams/{team_id}": Entry(theirs=True),
    "PATCH /organisations/{id}/teams/{team_id}": Entry({"name": "Another"}, theirs=True),
    "DELETE /organisations/{id}/teams/{team_id}": Entry(status=204, theirs=True, last=True),
    "GET /organisations/{id}/members": Entry(),
    "PUT /organisations/{id}/members/{user_id}": Entry({"role": "viewer"}),
    "DELETE /organisations/{id}/members/{user_id}": Entry(status=204, theirs=True, last=True),
    "POST /organisations/{id}/providers": Entry(PROVIDER, 201),
    "GET /organisations/{id}/providers": Entry(),
    "GET /organisations/{id}/providers/{provider_id}": Entry(theirs=True),
    "PATCH /organisations/{id}/providers/{provider_id}": Entry({"priority": 2}, theirs=True),
    "POST /organisations/{id}/providers/{provider_id}/test": Entry({"model": "m"}, theirs=True),
    "DELETE /organisations/{id}/providers/{provider_id}": Entry(status=204, theirs=True, last=True),
    "POST /organisations/{id}/credentials": Entry(CREDENTIAL, 201),
    "GET /organisations/{id}/credentials": Entry(),
    "GET /organisations/{id}/credentials/{credential_id}": Entry(theirs=True),
    "PATCH /organisations/{id}/credentials/{credential_id}": Entry({"name": "N"}, theirs=True),
    "POST /organisations/{id}/credentials/test": Entry(
        {"upstream": "echo", "secret": "sk-of-theirs"},
        status=409,  # `echo` takes no key.
    ),
    "GET /organisations/{id}/models": Entry(),
    "GET /upstreams": Entry(),
    "POST /organisations/{id}/credentials/{credential_id}/test": Entry(
        {"model": "m"},
        status=409,
        theirs=True,  # `echo` takes no key.
    ),
    "DELETE /organisations/{id}/credentials/{credential_id}": Entry(
        status=204, theirs=True, last=True
    ),
    "POST /users": Entry({}, 201),
    "GET /users": Entry(),
    "GET /users/{id}": Entry(),
    "PATCH /users/{id}": Entry({"name": "Another"}),
    "DELETE /users/{id}": Entry(status=204, last=True),
    "POST /keys": Entry(NEW_KEY, 201),
    "GET /keys": Entry(),
    "GET /keys/{id}": Entry(),
    "PATCH /keys/{id}": Entry({"name": "Another"}),
    "POST /keys/{id}/roll": Entry({"grace_seconds": 0}),
    "DELETE /keys/{id}": Entry(status=204, last=True),
    "POST /budgets": Entry(BUDGET, 201),
    "GET /budgets": Entry(),
    "GET /budgets/{id}": Entry(),
    "PATCH /budgets/{id}": Entry({"amount": 6}),
    "DELETE /budgets/{id}": Entry(status=204, last=True),
    "POST /webhooks": Entry({"url": "https://example.com/hook"}, 201),
    "GET /webhooks": Entry(),
    "PATCH /webhooks/{id}": Entry({"events": []}),
    "POST /webhooks/{id}/test": Entry(),
    "DELETE /webhooks/{id}": Entry(status=204, last=True),
    "GET /usage": Entry(),
    "GET /usage/export": Entry(),
    "GET /exchanges": Entry(),
    "GET /exchanges/export": Entry(),
    "GET /exchanges/{id}": Entry(status=404),  # There was none.
    "GET /status": Entry(),
    "GET /config": Entry(),
    "GET /stats": Entry(),
    "GET /drain": Entry(),
    "POST /drain": Entry(),
    "DELETE /drain": Entry(last=True),
    "GET /plugins": Entry(),
    "POST /reload": Entry(),
    "GET /routing": Entry(),
    "GET /routing/{alias:path}": Entry(),
    "GET /switches": Entry(),
    "PUT /switches": Entry({"model": "m", "target": "echo/echo", "state": None}),
    "GET /prices": Entry(),
    "PUT /prices": Entry({"target": "echo/echo", "rates": {"input": 1, "output": 2}}),
}
"""For the holder of the admin token, and for nobody else."""

KEYS = {
    "POST /api": Entry({}, 201),
    "GET /api": Entry(),
    "GET /": Entry(),
    "GET /api/{key_id}": Entry(theirs=True),
    "PATCH /api/{key_id}": Entry({"description": "Another"}, theirs=True),
    "POST /api/{key_id}/roll": Entry(theirs=True),
    "POST /api/{key_id}/disable": Entry(theirs=True),
    "DELETE /api/{key_id}": Entry(status=204, theirs=True, last=True),
}
"""For a service and one of its users. The admin token reads."""


def routes_of(router: Any) -> Iterator[str]:
    """All of them, whether they are in the document or not."""
    for route in router.routes:
        if (included := getattr(route, "original_router", None)) is not None:
            yield from routes_of(included)
        else:
            methods = route.methods if isinstance(route, APIRoute) else {"GET"}
            yield from (f"{method} {route.path}" for method in methods)


@pytest.mark.parametrize(("made", "table"), [(admin_routes.made, ADMIN), (keys_routes.made, KEYS)])
def test_W3_every_route_has_an_entry(made: Any, table: dict[str, Entry]) -> None:
    app = made(None, None)
    assert {*table, "GET /openapi.json"} == set(routes_of(app))
    document = app.openapi()["paths"]
    described = {f"{way.upper()} {path}" for path, ways in document.items() for way in ways}
    assert described == {name.replace(":path", "") for name in table}


@pytest.fixture(scope="module")
def office(serve: Serve) -> Office:
    return Office(serve(CONFIGURATION, **VARIABLES))


class World(NamedTuple):
    """Two organisations with one of everything."""

    mine: dict[str, str]
    theirs: dict[str, str]


def furnished(office: Office) -> dict[str, str]:
    organisation = office.made("/organisations", {"name": "Acme"})["id"]
    inside = f"/organisations/{organisation}"
    user = office.made("/users", {})["id"]
    assert 200 == office.admin("PUT", f"{inside}/members/{user}", {"role": "owner"}).status
    budget = BUDGET | {"subject": organisation}
    return {
        "organisations": organisation,
        "team_id": office.made(f"{inside}/teams", {"name": "Team"})["id"],
        "user_id": user,
        "provider_id": office.made(f"{inside}/providers", PROVIDER)["id"],
        "credential_id": office.made(f"{inside}/credentials", CREDENTIAL)["id"],
        "users": user,
        "keys": office.made("/keys", {"organisation": organisation})["id"],
        "budgets": office.made("/budgets", budget)["id"],
        "webhooks": office.made("/webhooks", {"url": "https://example.com/hook"})["id"],
        "exchanges": "req_absent",
        "alias:path": "one",
    }


@pytest.fixture
def world(office: Office) -> World:
    return World(furnished(office), furnished(office))


def filled(path: str, ids: dict[str, str]) -> str:
    """A route's path with ids in it."""
    area = path.split("/")[1]
    return re.sub(r"\{([^}]+)\}", lambda found: ids.get(found[1], ids.get(area, "x")), path)


def body_of(entry: Entry, ids: dict[str, str]) -> Any:
    if entry.body is None:
        return None
    return {
        name: ids["organisations"] if value == "{organisation}" else value
        for name, value in entry.body.items()
    }


STRANGERS: Sequence[dict[str, str]] = (
    {"authorization": ""},
    {"authorization": TOKEN},
    {"authorization": f"Basic {TOKEN}"},
    {"authorization": f"Bearer {TOKEN[:-1]}"},
    {"authorization": f"Bearer {TOKEN}x"},
    {"authorization": "Bearer "},
    {"authorization": "", "x_emby_secure_key": SECRET, "x_authenticated_user": "root"},
    {"authorization": "", "x_api_key": TOKEN},
    {"authorization": "", "cookie": f"token={TOKEN}"},
)


@pytest.mark.parametrize("name", [*ADMIN, "GET /openapi.json", "GET /nothing", "PUT /keys"])
def test_W9_without_the_admin_token_every_path_says_the_same(office: Office, name: str) -> None:
    method, path = name.split(" ")
    key = office.keys("POST", "/api", {}).json["key"]
    strangers = [*STRANGERS, {"authorization": f"Bearer {key}"}, {"x_api_key": key}]
    said = set()
    for stranger in strangers:
        headers = {"authorization": ""} | stranger
        asked = office.admin(method, filled(path, {}), {} if method != "GET" else None, **headers)
        assert 401 == asked.status, (stranger, asked.body)
        assert "Bearer" == asked.headers["www-authenticate"]
        error = asked.json["error"]
        said.add((error["code"], error["message"]))
    assert 1 == len(said)


def test_W3_the_admin_token_opens_every_route(office: Office, world: World) -> None:
    takes_along = ("DELETE /users/{id}", "DELETE /organisations/{id}")
    order = sorted(ADMIN.items(), key=lambda one: (one[1].last, one[0] in takes_along))
    for name, entry in order:
        method, path = name.split(" ")
        asked = office.admin(method, filled(path, world.mine), body_of(entry, world.mine))
        assert entry.status == asked.status, (name, asked.body)


@pytest.mark.parametrize("name", [name for name, entry in ADMIN.items() if entry.theirs])
def test_W3_by_way_of_another_organisation_there_is_nothing(
    office: Office, world: World, name: str
) -> None:
    method, path = name.split(" ")
    entry = ADMIN[name]
    crossed = world.mine | {"organisations": world.theirs["organisations"]}
    if "{user_id}" in path:
        crossed["user_id"] = world.mine["user_id"]
    asked = office.admin(method, filled(path, crossed), body_of(entry, crossed))
    assert (404, "not_found") == (asked.status, asked.json["error"]["code"])
    still = office.admin(method, filled(path, world.mine), body_of(entry, world.mine))
    assert entry.status == still.status, still.body


@pytest.mark.parametrize("name", [name for name, entry in ADMIN.items() if "{" in name])
def test_W3_what_is_not_there_is_a_404(office: Office, world: World, name: str) -> None:
    method, path = name.split(" ")
    absent = {part: f"{part.split(':')[0]}_absent" for part in world.mine}
    asked = office.admin(method, filled(path, absent), body_of(ADMIN[name], world.mine))
    assert (404, "not_found") == (asked.status, asked.json["error"]["code"])


@pytest.mark.parametrize("name", KEYS)
def test_W3_each_route_of_the_keys_api_is_for_a_service_and_its_user(
    office: Office, name: str
) -> None:
    method, path = name.split(" ")
    entry = KEYS[name]
    own = office.keys("POST", "/api", {}, user="ada").json["id"]
    path = path.replace("{key_id}", own)
    admin = {"x_emby_secure_key": "", "authorization": f"Bearer {TOKEN}"}
    assert 401 == office.keys(method, path, entry.body, x_emby_secure_key="").status
    assert 422 == office.keys(method, path, entry.body, user="").status
    if entry.theirs:
        asked = office.keys(method, path, entry.body, user="bob")
        assert (404, "not_found") == (asked.status, asked.json["error"]["code"])
    read = office.keys(method, path, entry.body, user="", **admin)
    assert (200 if method == "GET" else 403) == read.status
    asked = office.keys(method, path, entry.body, user="ada")
    assert entry.status == asked.status, asked.body


# Fields


@cache
def described() -> dict[str, Any]:
    """The document of the admin API."""
    return admin_routes.made(None, None).openapi()


def fields_of_all_models(document: dict[str, Any]) -> list[str]:
    """Every field of every model of the API, and every column of every table."""
    shapes = document["components"]["schemas"].values()
    named = {name for shape in shapes for name in shape.get("properties", {})}
    columns = {column.name for table in metadata.tables.values() for column in table.columns}
    return sorted(named | columns)


@pytest.mark.parametrize(
    "name", [name for name in ADMIN if name.split(" ")[0] in ("POST", "PUT", "PATCH")]
)
def test_W4_a_route_sets_what_it_offers_and_nothing_else(
    office: Office, world: World, name: str
) -> None:
    document = described()
    method, path = name.split(" ")
    operation = document["paths"][path.replace(":path", "")][method.lower()]
    sent = operation.get("requestBody", {}).get("content", {}).get("application/json")
    if sent is None:
        return  # It takes none: what is sent is not read.
    schema = sent["schema"]
    ref = schema.get("$ref") or next(one["$ref"] for one in schema["anyOf"] if "$ref" in one)
    offered = document["components"]["schemas"][ref.rpartition("/")[2]]["properties"]
    body = body_of(ADMIN[name], world.mine)
    place = filled(path, world.mine)
    others = [field for field in fields_of_all_models(document) if field not in offered]
    assert others
    # Each is refused for itself, beside all the others; and one of them is enough.
    for fields in (others, [random.Random(name).choice(others)]):
        asked = office.admin(method, place, body | dict.fromkeys(fields, "x"))
        assert 422 == asked.status, (fields, asked.body)
        problems = {one["param"] for one in asked.json["error"]["problems"]}
        assert {f"body.{field}" for field in fields} <= problems
