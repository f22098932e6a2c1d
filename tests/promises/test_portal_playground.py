"""W2, W3, W4, W11: keys of the playground, and the prompts that are kept."""

from __future__ import annotations

import calendar
import re
import time
from typing import Any

import pytest
from harness.gateway import ROOT, Gateway, Serve, until
from harness.office import VARIABLES, Office
from harness.portal import CONFIGURATION, PASSWORD, Browser, books, found, joined, me

from passy_portal.explained import BY_CODE
from passy_portal.playing import MOST

CONTENT = {
    "models": ["one"],
    "messages": [{"role": "user", "content": "hello"}],
    "parameters": {"temperature": 0.5, "stop": ["x"]},
}


@pytest.fixture(scope="module")
def owner(serve: Serve) -> Browser:
    browser, _ = found(serve(CONFIGURATION, **VARIABLES))
    return browser


@pytest.fixture(scope="module")
def developer(owner: Browser) -> Browser:
    return joined(owner, "dev@example.com", "developer")


def issued(browser: Browser) -> str:
    asked = browser.api("POST", "/playground/key")
    assert 201 == asked.status, asked.body
    return str(asked.json["key"])


def refused(gateway: Gateway, key: str) -> bool:
    """Within seconds: gateways remember keys for as long as ``ttl`` says."""
    return bool(until(lambda: Office(gateway).chat(key).status == 401 or None))


def test_W4_a_key_of_the_playground_can_do_no_more_than_who_asks(developer: Browser) -> None:
    office, user = Office(developer.gateway), me(developer)["user"]
    before = time.time()
    told = developer.api("POST", "/playground/key").json
    assert f"{developer.gateway.url}/v1" == told["base_url"]
    assert 200 == office.chat(told["key"]).status
    [row] = [
        one for one in developer.api("GET", "/keys").json["rows"] if one["name"] == "Playground"
    ]
    assert (user, user, ["playground"]) == (row["user"], row["created_by"], row["tags"])
    assert row["limits"]["requests"]
    end = calendar.timegm(time.strptime(row["expires_at"][:19], "%Y-%m-%dT%H:%M:%S"))
    assert before < end < time.time() + 901
    assert 200 == office.admin("PATCH", f"/users/{user}", {"models": ["pattern-*"]}).status
    key = issued(developer)
    assert 403 == office.chat(key, "one").status
    assert 200 == office.chat(key, "pattern-1").status
    assert b'value="one"' not in developer.look("/playground").body
    assert 200 == office.admin("PATCH", f"/users/{user}", {"models": None}).status
    assert b'<option value="one">' in developer.look("/playground").body
    # What it is cannot be asked for.
    wide = {"expires_at": None, "models": ["*"], "user": "user_1"}
    status = developer.api("POST", "/playground/key", wide).status
    assert status in (201, 422)
    last = developer.api("GET", "/keys").json["rows"][-1]
    assert (user, None) == (last["user"], last["models"])
    assert last["expires_at"]


def test_W2_keys_of_the_playground_end_with_their_session(owner: Browser) -> None:
    gateway = owner.gateway
    mine, other = joined(owner, "two@example.com", "developer"), Browser(gateway)
    other.sign_in("two@example.com")
    key, kept = issued(mine), issued(other)
    mine.look("/account")
    assert 303 == mine.send("/logout").status
    assert refused(gateway, key)
    assert 200 == Office(gateway).chat(kept).status
    # And when the session is ended from another one, or by another password.
    mine.sign_in("two@example.com")
    other.look("/account")
    assert 303 == mine.send("/account/sessions/end").status
    assert refused(gateway, kept)
    key = issued(mine)
    mine.look("/account")
    fields = {"current": PASSWORD, "new": f"{PASSWORD} 2"}
    assert 303 == mine.send("/account/password", fields).status
    assert refused(gateway, key)


def test_W2_a_session_has_few_keys_and_those_that_expired_are_gone(developer: Browser) -> None:
    gateway = developer.gateway
    first, *_, last = [issued(developer) for _ in range(MOST + 1)]
    assert refused(gateway, first)
    assert 200 == Office(gateway).chat(last).status
    rows = books(gateway, "SELECT count(*) FROM portal_playground_keys")
    assert MOST >= rows[0][0]
    books(gateway, "UPDATE portal_playground_keys SET expires = 1")
    issued(developer)
    assert [(1,)] == books(gateway, "SELECT count(*) FROM portal_playground_keys")
    assert refused(gateway, last)


def test_W11_a_key_is_noted_and_the_key_is_not(owner: Browser) -> None:
    key = issued(owner)
    [(after,)] = books(
        owner.gateway,
        "SELECT after FROM portal_audit WHERE action = 'key.create' ORDER BY seq DESC LIMIT 1",
    )
    assert '"Playground"' in after
    assert key not in after
    assert key.encode() not in owner.look("/playground").body
    whole = (owner.gateway.folder / ".passy/passy.db").read_bytes()
    assert key.encode() not in whole


def test_W3_a_prompt_is_ones_own_until_it_is_shared(owner: Browser, developer: Browser) -> None:
    kept = developer.api("POST", "/playground/prompts", {"title": "Mine", "content": CONTENT}).json
    path = f"/playground/prompts/{kept['id']}"
    assert 404 == owner.api("GET", path).status
    assert 404 == owner.look(f"/playground?open={kept['id']}").status
    shared = developer.api("PATCH", path, {"shared": True, "title": "Ours"}).json
    assert (True, "Ours", 0.5) == (
        shared["shared"],
        shared["title"],
        shared["content"]["parameters"]["temperature"],
    )
    assert b"Ours" in owner.look(f"/playground?open={kept['id']}").body
    seen = owner.api("GET", path).json
    assert (False, "dev@example.com") == (seen["mine"], seen["by"])
    assert 403 == owner.api("PATCH", path, {"title": "Theirs"}).status
    third = joined(owner, "third@example.com", "developer")
    assert 403 == third.api("DELETE", path).status
    viewer = joined(owner, "viewer@example.com", "viewer")
    assert 200 == viewer.api("GET", path).status
    assert 403 == viewer.api("POST", "/playground/key").status
    assert b"Your role (viewer) makes no keys" in viewer.look("/playground").body
    assert 204 == owner.api("DELETE", path).status
    assert 404 == developer.api("GET", path).status


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("user", "user_1"), ("organisation", "org_1"), ("id", "prompt_1"), ("key", "sk-passy-x"),
        ("title", ""), ("title", "a\nb"), ("content", {"models": [], "messages": []}),
        ("content", CONTENT | {"models": ["a", "b", "c"]}),
        ("content", CONTENT | {"messages": [{"role": "tool", "content": "x"}]}),
        ("content", CONTENT | {"parameters": {"temperature": 3}}),
        ("content", CONTENT | {"parameters": {"api_key": "x"}}),
        ("content", CONTENT | {"messages": [{"role": "user", "content": "\0"}]}),
    ],
)  # fmt: skip
def test_W4_a_prompt_is_what_the_page_offers(developer: Browser, field: str, value: Any) -> None:
    body = {"title": "A", "content": CONTENT, field: value}
    assert 422 == developer.api("POST", "/playground/prompts", body).status


def test_every_refusal_of_the_chain_is_explained() -> None:
    page = (ROOT / "docs/reference/replies.md").read_text()
    chain = page.partition("## From the chain")[2].partition("\n## ")[0]
    codes = set(re.findall(r"^\| `(\w+)`", chain, re.MULTILINE))
    elsewhere = {code for code in codes if "admin" in code or "metrics" in code}
    assert codes - elsewhere - {"invalid_multipart"} <= set(BY_CODE)
