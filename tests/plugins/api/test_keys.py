"""The keys API as its callers know it, and each user with their own keys alone."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from harness.gateway import ROOT, Asked, Serve, until
from harness.office import CONFIGURATION, SECRET, TOKEN, VARIABLES, Office

from passy_plugins.api.keys import Keys
from passy_proxy.config.build import settings_of

WANTED = {"email": "ada@example.com", "description": "For Ada", "usageLimit": None,
          "isTrial": False, "isTest": False}  # fmt: skip


@pytest.fixture(scope="module")
def office(serve: Serve) -> Office:
    return Office(serve(CONFIGURATION, **VARIABLES))


def code(asked: Asked) -> tuple[int, str]:
    """Of an error, which is always JSON and names its request."""
    assert "application/json" == asked.headers["content-type"], asked.body
    error = asked.json["error"]
    assert error["request_id"] == asked.headers["x-request-id"]
    return asked.status, error["code"]


def key_of(office: Office, user: str = "user-1", **more: object) -> dict[str, Any]:
    asked = office.keys("POST", "/api", WANTED | more, user=user)
    assert 201 == asked.status, asked.body
    made: dict[str, Any] = asked.json
    return made


@pytest.mark.parametrize(
    ("body", "description", "email"),
    [
        ({}, "Emby-generated API Key", None),
        (WANTED, "For Ada", "ada@example.com"),
        ({**WANTED, "description": None}, "Emby-generated API Key", "ada@example.com"),
        ({**WANTED, "description": ""}, "Emby-generated API Key", "ada@example.com"),
        ({**WANTED, "isTest": True}, "Test Key", None),
        ({**WANTED, "isTrial": True}, "Trial Key", "ada@example.com"),
        ({**WANTED, "isTest": True, "isTrial": True}, "Test Key", None),
        ({"isTest": None, "isTrial": None, "email": None}, "Emby-generated API Key", None),
        ({**WANTED, "usageLimit": 12.5}, "For Ada", "ada@example.com"),
    ],
)
def test_a_key_is_made_and_shown_this_once(
    office: Office, body: dict[str, Any], description: str, email: str | None
) -> None:
    made = office.keys("POST", "/api", body)
    assert (201, "no-store") == (made.status, made.headers["cache-control"])
    key = made.json["key"]
    assert key.startswith("sk-passy-")
    shown = {name: value for name, value in made.json.items() if name != "key"}
    assert (description, email, body.get("usageLimit")) == (
        shown["description"],
        shown["email"],
        shown["usageLimit"],
    )
    again = office.keys("GET", f"/api/{shown['id']}")
    assert (200, shown) == (again.status, again.json)
    assert key.encode() not in office.keys("GET", "/api").body
    assert 200 == office.chat(key).status


@pytest.mark.parametrize(
    "secret", ["", SECRET[:-1], SECRET + "x", SECRET.swapcase(), TOKEN, "x" * 4000]
)
def test_K7_without_the_service_s_secret_nobody_is_answered(office: Office, secret: str) -> None:
    for method, path in (("POST", "/api"), ("GET", "/api"), ("GET", "/"), ("GET", "/nowhere"),
                         ("GET", "/openapi.json"), ("DELETE", "/api/key_1")):  # fmt: skip
        asked = office.keys(method, path, WANTED if method == "POST" else None,
                            x_emby_secure_key=secret)  # fmt: skip
        assert (401, "invalid_credentials") == code(asked)
        assert "Service" == asked.headers["www-authenticate"]


def test_a_secret_that_is_shown_twice_is_none(office: Office) -> None:
    host = office.gateway.url.partition("//")[2]
    import http.client

    connection = http.client.HTTPConnection(host, timeout=90)
    connection.putrequest("GET", "/keys/api")
    connection.putheader("x-emby-secure-key", "wrong")
    connection.putheader("x-emby-secure-key", SECRET)
    connection.putheader("x-authenticated-user", "user-1")
    connection.endheaders()
    assert 401 == connection.getresponse().status
    connection.close()


def test_a_client_s_key_opens_neither(office: Office) -> None:
    key = key_of(office)["key"]
    assert 401 == office.keys("GET", "/api", x_emby_secure_key=key).status
    asked = office.keys("GET", "/api", x_emby_secure_key="", authorization=f"Bearer {key}")
    assert 401 == asked.status
    assert 401 == office.admin("GET", "/status", authorization=f"Bearer {key}").status


def test_a_user_must_be_named(office: Office) -> None:
    for method, path in (("POST", "/api"), ("GET", "/api"), ("GET", "/api/key_1")):
        asked = office.keys(method, path, {} if method == "POST" else None, user="")
        assert (422, "user_missing") == code(asked)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"usageLimit": "5"}, "body.usageLimit"),
        ({"usageLimit": -1}, "body.usageLimit"),
        ({"usageLimit": True}, "body.usageLimit"),
        ({"usageLimit": 1e300}, "body.usageLimit"),
        ({"isTest": "yes"}, "body.isTest"),
        ({"isTrial": 1}, "body.isTrial"),
        ({"email": "nobody"}, "body.email"),
        ({"email": "a@b\u0000c"}, "body.email"),
        ({"email": 5}, "body.email"),
        ({"description": "x" * 201}, "body.description"),
        ({"description": "two\nlines"}, "body.description"),
        ({"description": ["x"]}, "body.description"),
        ({"usagelimit": 5}, "body.usagelimit"),
        ([], "body"),
        ("text", "body"),
        (None, "body"),
    ],
)
def test_a_mistake_is_told_with_its_place(office: Office, body: object, param: str) -> None:
    asked = office.keys("POST", "/api", json.dumps(body).encode())
    assert (422, "invalid_value") == code(asked)
    assert param == asked.json["error"]["param"]
    assert param in [problem["param"] for problem in asked.json["error"]["problems"]]


@pytest.mark.parametrize(
    "body", [b"{", b"\xff", b"[" * 5000, b'{"a": 1e999', b'{"usageLimit": ' + b"9" * 5000 + b"}"]
)
def test_S9_what_cannot_be_read_is_no_fault_of_ours(office: Office, body: bytes) -> None:
    asked = office.keys("POST", "/api", body)
    assert asked.status in (400, 422), asked.body
    code(asked)


def test_half_a_character_is_refused(office: Office) -> None:
    asked = office.keys("POST", "/api", b'{"description": "\\ud800"}')
    assert (422, "body.description") == (asked.status, asked.json["error"]["param"])


def test_a_large_body_is_refused(office: Office) -> None:
    asked = office.keys("POST", "/api", b'{"description": "' + b"x" * (1 << 20) + b'"}')
    assert (413, "request_too_large") == code(asked)


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/api/key_1/roll", 405),
        ("PUT", "/api", 405),
        ("OPTIONS", "/api", 405),
        ("GET", "/docs", 404),
        ("GET", "/redoc", 404),
    ],
)
def test_what_is_not_there_is_said_in_json(
    office: Office, method: str, path: str, expected: int
) -> None:
    asked = office.keys(method, path)
    assert expected == asked.status
    assert asked.headers["content-type"] == "application/json"
    assert ("allow" in asked.headers) is (405 == expected)


# Whose is whose


def test_W3_a_user_sees_their_own_keys_and_no_others(office: Office) -> None:
    mine = [key_of(office, "ada")["id"] for _ in range(3)]
    theirs = key_of(office, "bob")["id"]
    listed = office.keys("GET", "/api", user="ada").json
    assert (mine, None) == ([key["id"] for key in listed["keys"]], listed["cursor"])
    assert {"ada"} == {key["userId"] for key in listed["keys"]}
    for method, path, body in (
        ("GET", "", None),
        ("PATCH", "", {"description": "mine now"}),
        ("DELETE", "", None),
        ("POST", "/roll", None),
        ("POST", "/disable", None),
    ):
        asked = office.keys(method, f"/api/{theirs}{path}", body, user="ada")
        absent = office.keys(method, f"/api/key_absent{path}", body, user="ada")
        assert (404, "not_found") == code(asked)
        assert asked.json["error"]["message"] == absent.json["error"]["message"]
    assert "active" == office.keys("GET", f"/api/{theirs}", user="bob").json["state"]
    assert "For Ada" == office.keys("GET", f"/api/{theirs}", user="bob").json["description"]


def test_a_list_comes_in_pages(office: Office) -> None:
    made = [key_of(office, "paul")["id"] for _ in range(5)]
    found: list[str] = []
    cursor = ""
    while True:
        page = office.keys("GET", f"/api?limit=2{cursor}", user="paul").json
        found += [key["id"] for key in page["keys"]]
        if page["cursor"] is None:
            break
        cursor = f"&cursor={page['cursor']}"
    assert made == found
    for wrong in ("limit=0", "limit=1001", "cursor=x", "cursor=e30", "limit=x"):
        assert 422 == office.keys("GET", f"/api?{wrong}", user="paul").status


FIELDS = {
    "id": "key_mine", "shown": "x", "digest": "x", "key": "sk-passy-mine", "name": "x",
    "organisation": "org_1", "team": "team_1", "user_id": "bob", "userId": "bob", "user": "bob",
    "tags": ["x"], "limits": {"requests": "9/s"}, "requests": "9/s", "tokens": "9/s",
    "concurrency": 9, "models": ["*"], "networks": ["0.0.0.0/0"], "upstreams": ["openai"],
    "usage_limit": 9, "usagePeriod": "day", "usage_period": "day", "expires": 9,
    "expiresAt": "2030-01-01",
    "disabled": False, "state": "active", "is_test": False, "is_trial": False, "created": 1,
    "createdAt": "2020-01-01", "created_by": "root", "old_digest": "x", "old_until": 1,
    "deleted": None, "role": "admin", "budgets": [], "last_used": 1,
}  # fmt: skip
"""Everything that a key has in some model, and its service cannot set."""


def test_W4_no_field_but_those_that_are_offered_can_be_set(office: Office) -> None:
    made = key_of(office, "eve")
    kept = office.keys("GET", f"/api/{made['id']}", user="eve").json
    for name, value in FIELDS.items():
        created = office.keys("POST", "/api", {name: value}, user="eve")
        patched = office.keys("PATCH", f"/api/{made['id']}", {name: value}, user="eve")
        rolled = office.keys("POST", f"/api/{made['id']}/roll", {name: value}, user="eve")
        for asked in (created, patched, rolled):
            assert (422, f"body.{name}") == (asked.status, asked.json["error"]["param"])
    for name in ("isTest", "isTrial"):  # What kind of key it is stays.
        asked = office.keys("PATCH", f"/api/{made['id']}", {name: False}, user="eve")
        assert 422 == asked.status
    assert kept == office.keys("GET", f"/api/{made['id']}", user="eve").json
    assert 1 == len(office.keys("GET", "/api", user="eve").json["keys"])


def test_W4_a_key_can_do_no_more_than_its_maker(office: Office) -> None:
    office.made("/users", {"id": "small", "models": ["nothing-but-this"]})
    key = key_of(office, "small")["key"]
    refused = office.chat(key)
    assert 403 == refused.status or 404 == refused.status, refused.body
    assert 422 == office.keys("POST", "/api", {"models": ["*"]}, user="small").status


# What becomes of a key


def test_a_key_is_changed_and_what_is_not_named_stays(office: Office) -> None:
    made = key_of(office, usageLimit=3)
    path = f"/api/{made['id']}"
    changed = office.keys("PATCH", path, {"description": "Another"})
    assert (200, "Another", 3, "ada@example.com") == (
        changed.status,
        changed.json["description"],
        changed.json["usageLimit"],
        changed.json["email"],
    )
    assert changed.json == office.keys("GET", path).json
    changed = office.keys("PATCH", path, {"usageLimit": None, "email": None}).json
    assert (None, None, "Another") == (
        changed["usageLimit"],
        changed["email"],
        changed["description"],
    )
    assert changed == office.keys("PATCH", path, {}).json


def test_a_rolled_key_lets_the_old_one_in_for_the_grace_it_is_given(office: Office) -> None:
    made = key_of(office)
    rolled = office.keys("POST", f"/api/{made['id']}/roll", {"graceSeconds": 3600})
    assert (200, made["id"]) == (rolled.status, rolled.json["id"])
    assert rolled.json["key"] != made["key"]
    assert rolled.json["oldKeyUntil"] is not None
    assert [200, 200] == [office.chat(key).status for key in (made["key"], rolled.json["key"])]
    last = office.keys("POST", f"/api/{made['id']}/roll", {"graceSeconds": 0}).json
    assert last["oldKeyUntil"] is None
    assert 200 == office.chat(last["key"]).status
    for key in (made["key"], rolled.json["key"]):
        until(lambda key=key: 401 == office.chat(key).status or None)  # type: ignore[misc]


@pytest.mark.parametrize("grace", [-1, 8_000_000, "1h", 1.5, None])
def test_a_grace_that_cannot_be_is_refused(office: Office, grace: object) -> None:
    made = key_of(office)
    asked = office.keys("POST", f"/api/{made['id']}/roll", {"graceSeconds": grace})
    assert (422, "body.graceSeconds") == (asked.status, asked.json["error"]["param"])
    assert 200 == office.chat(made["key"]).status


@pytest.mark.parametrize("how", ["disable", "delete"])
def test_D6_a_key_that_is_taken_back_lets_nobody_in(office: Office, how: str) -> None:
    made = key_of(office)
    assert 200 == office.chat(made["key"]).status
    if how == "disable":
        asked = office.keys("POST", f"/api/{made['id']}/disable")
        assert (200, "disabled") == (asked.status, asked.json["state"])
    else:
        asked = office.keys("DELETE", f"/api/{made['id']}")
        assert (204, b"") == (asked.status, asked.body)
        assert 404 == office.keys("GET", f"/api/{made['id']}").status
        assert 404 == office.keys("DELETE", f"/api/{made['id']}").status
        assert 404 == office.keys("PATCH", f"/api/{made['id']}", {}).status
    began = time.monotonic()
    until(lambda: office.chat(made["key"]).status in (401, 403) or None)
    assert time.monotonic() - began < 15


# The admin token


def test_with_the_admin_token_all_keys_are_read_and_none_is_written(office: Office) -> None:
    made = key_of(office, "nina")
    shown = {"x_emby_secure_key": "", "authorization": f"Bearer {TOKEN}"}
    for path in ("", "/", "/api"):
        listed = office.keys("GET", f"{path}?limit=1000", user="", **shown)
        assert 200 == listed.status
        assert made["id"] in [key["id"] for key in listed.json["keys"]]
    listed = office.keys("GET", "/api", user="nina", **shown)
    assert [made["id"]] == [key["id"] for key in listed.json["keys"]]
    assert 200 == office.keys("GET", f"/api/{made['id']}", user="", **shown).status
    for method, path, body in (
        ("POST", "/api", {}),
        ("PATCH", f"/api/{made['id']}", {}),
        ("POST", f"/api/{made['id']}/roll", None),
        ("POST", f"/api/{made['id']}/disable", None),
        ("DELETE", f"/api/{made['id']}", None),
    ):
        for user in ("", "nina"):
            assert (403, "read_only") == code(office.keys(method, path, body, user=user, **shown))
    assert "active" == office.keys("GET", f"/api/{made['id']}", user="nina").json["state"]


# The start


@pytest.mark.parametrize(
    "secret", ["", "short", "x" * 64, "change-me-change-me-change-me-change-me", SECRET[:31]]
)
def test_K7_a_secret_that_is_none_refuses_to_start(serve: Serve, secret: str) -> None:
    gateway = serve(CONFIGURATION, start=False, **VARIABLES | {"PASSY_SERVICE_SECRET": secret})
    ended = gateway.passy("serve", "--listen", "127.0.0.1:1")
    assert 78 == ended.returncode
    assert "secret" in ended.stderr
    assert not secret or secret not in ended.stderr


def test_an_app_without_its_secret_is_off_and_that_is_said(serve: Serve) -> None:
    gateway = serve(CONFIGURATION, "--data", "data")
    assert 404 == gateway.ask("/keys/api").status
    assert 404 == gateway.ask("/admin/api/status").status
    assert "PASSY_SERVICE_SECRET" in gateway.complaints()
    assert "PASSY_ADMIN_TOKEN" in gateway.complaints()


def test_no_key_and_no_secret_is_logged(office: Office) -> None:
    made = key_of(office)
    written = office.gateway.complaints() + (office.gateway.folder / "out").read_text()
    assert made["key"] not in written
    assert SECRET not in written
    assert TOKEN not in written


def test_every_setting_has_a_place() -> None:
    assert {"store", "organisation", "secret", "admin_token"} == set(settings_of(Keys).model_fields)


IMPORTS = """
import sys
from pathlib import Path
import structlog
from passy_proxy.config.build import Parts, build
from passy_proxy.config.document import parse
from passy_proxy.config.legacy import layers
from passy_proxy.keyring import Keyring
from passy_proxy.registry import Registry
from passy_proxy.shared import Shared
from passy_proxy.site import Site

site = Site(Path(sys.argv[2]), Keyring(["a key for tests only, of 32 bytes or more"]))
parts = Parts(Registry(), Shared(), site, structlog.get_logger())
snapshot = build(layers(parse(Path(sys.argv[1]).read_text(), "g", {}), {}), parts, "x")
assert {"/keys", "/admin/api"} == set(snapshot.apps_left_out), snapshot.apps_left_out
print(sorted({name.partition(".")[0] for name in sys.modules}))
"""


def test_apps_that_are_off_cost_no_import(tmp_path: Path) -> None:
    """The file that is shipped, with nothing set."""
    ended = subprocess.run(
        [sys.executable, "-c", IMPORTS, str(ROOT / "config/gateway.yaml"), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert 0 == ended.returncode, ended.stderr
    loaded = set(ast.literal_eval(ended.stdout))
    assert set() == loaded & {"fastapi", "starlette", "sqlalchemy", "jinja2"}


def test_keys_belong_to_the_organisation_that_the_file_names(serve: Serve) -> None:
    """The one that was entered first where it says nothing; and where there is none, it is made."""
    app = '  /{0}: {{app: keys, store: books, secret: "{1}", organisation: {2}}}\n'
    more = "".join(app.format(*each) for each in (("nobody", SECRET, "none"),
                   ("missing", SECRET, "org_nowhere")))  # fmt: skip
    office = Office(serve(CONFIGURATION + more, **VARIABLES))

    def theirs(made: Asked) -> object:
        return office.admin("GET", f"/keys/{made.json['id']}").json["organisation"]

    def asked(app: str) -> Asked:
        told = {"x-emby-secure-key": SECRET, "x-authenticated-user": "user-1"}
        return office.ask("POST", f"/{app}/api", WANTED, told)

    made = asked("keys")
    [first] = office.admin("GET", "/organisations").json["rows"]
    assert ("Default", first["id"]) == (first["name"], theirs(made))
    second = office.made("/organisations", {"name": "Second"})["id"]
    assert first["id"] == theirs(asked("keys"))
    assert theirs(asked("nobody")) is None
    assert (503, "organisation_missing") == code(asked("missing"))
    assert "organisation_missing" in office.gateway.complaints()
    office.gateway.file.write_text(CONFIGURATION + app.format("named", SECRET, second))

    def named() -> bool | None:
        made = asked("named")
        return theirs(made) == second if made.status == 201 else None

    assert until(named)
