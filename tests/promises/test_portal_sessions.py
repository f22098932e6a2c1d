"""W1, W2, W5, W8, W10, W11: the first owner, sessions, forms of other sites, and guessing."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
from harness.gateway import Gateway, Serve, until
from harness.office import VARIABLES, Office
from harness.portal import (
    CONFIGURATION,
    PASSWORD,
    Browser,
    books,
    first_link,
    found,
    joined,
    key_in,
    me,
)

from passy_portal import passwords

HEADERS = {
    "content-security-policy": "default-src 'self'; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cache-control": "no-store",
}


@pytest.fixture(scope="module")
def owned(serve: Serve) -> tuple[Gateway, Browser, str]:
    gateway = serve(CONFIGURATION, **VARIABLES)
    browser, key = found(gateway)
    return gateway, browser, key


@pytest.fixture
def gateway(owned: tuple[Gateway, Browser, str]) -> Iterator[Gateway]:
    """With nobody waiting for an earlier test's wrong passwords."""
    yield owned[0]
    books(owned[0], "DELETE FROM portal_attempts")


@pytest.fixture
def browser(gateway: Gateway) -> Browser:
    """The owner's, signed in."""
    signed_in = Browser(gateway)
    assert 303 == signed_in.sign_in("ada@example.com").status
    return signed_in


def test_W1_there_is_no_owner_until_the_consoles_link_makes_one(serve: Serve) -> None:
    gateway = serve(CONFIGURATION, **VARIABLES)
    Browser(gateway).ask("GET", "/login", host="evil.example")
    link, browser = first_link(gateway), Browser(gateway)
    assert "evil.example" not in gateway.complaints()  # Whom the link would have led to.
    for email, password in (("admin", "admin"), ("admin@example.com", "password"), ("", "")):
        assert 401 == browser.sign_in(email, password).status
    fields = {"name": "", "email": "m@example.com", "organisation": "M", "password": PASSWORD}
    assert 404 == browser.look("/first?link=guessed").status
    assert 404 == browser.send("/first", {"token": "guessed", **fields}).status
    token = link.partition("link=")[2]
    # What is not taken costs the link nothing.
    assert 422 == browser.send("/first", {"token": token, **fields, "password": "short"}).status
    assert 422 == browser.send("/first", {"token": token, **fields, "email": "nobody"}).status
    assert [] == books(gateway, "SELECT * FROM organisations")
    # An hour later it is good no more.
    was = books(gateway, "SELECT expires FROM portal_tokens")
    books(gateway, "UPDATE portal_tokens SET expires = ?", int(time.time() * 1000) - 1)
    assert 404 == browser.send("/first", {"token": token, **fields}).status
    books(gateway, "UPDATE portal_tokens SET expires = ?", was[0][0])
    assert 303 == browser.send("/first", {"token": token, **fields}).status
    # Once.
    other = Browser(gateway)
    other.look("/login")
    assert 404 == other.send("/first", {"token": token, **fields, "email": "n@example.com"}).status
    assert 303 == other.look(link).status
    assert [("owner",)] == books(gateway, "SELECT role FROM members")


def test_W2_signing_in_changes_the_id_whatever_it_was(gateway: Gateway) -> None:
    browser = Browser(gateway)
    browser.cookies["passy_session"] = "fixed-by-an-attacker"
    assert 303 == browser.sign_in("ada@example.com").status
    first = browser.cookies["passy_session"]
    assert "fixed-by-an-attacker" != first
    planted = Browser(gateway)
    planted.cookies["passy_session"] = "fixed-by-an-attacker"
    assert 303 == planted.look("/keys").status
    assert 303 == browser.sign_in("ada@example.com").status
    assert first != browser.cookies["passy_session"]
    planted.cookies["passy_session"] = first  # The session it had has ended.
    assert 303 == planted.look("/keys").status


def test_W2_logging_out_ends_the_session_at_the_server(gateway: Gateway) -> None:
    browser, thief = Browser(gateway), Browser(gateway)
    browser.sign_in("ada@example.com")
    thief.cookies = dict(browser.cookies)
    assert 200 == thief.look("/keys").status
    assert 303 == browser.send("/logout").status
    assert "passy_session" not in browser.cookies
    assert (303, 401) == (thief.look("/keys").status, thief.api("GET", "/me").status)


def test_W2_another_password_ends_all_sessions_and_moves_this_one(gateway: Gateway) -> None:
    leader, new = Browser(gateway), "another battery entirely"
    leader.sign_in("ada@example.com")
    browser = joined(leader, "changer@example.com", "viewer")
    other, before = Browser(gateway), dict(browser.cookies)
    other.sign_in("changer@example.com")
    browser.look("/account")
    assert 422 == browser.send("/account/password", {"current": "wrong", "new": new}).status
    assert 303 == browser.send("/account/password", {"current": PASSWORD, "new": new}).status
    assert before["passy_session"] != browser.cookies["passy_session"]
    assert 200 == browser.look("/account").status
    assert 303 == other.look("/account").status
    other.cookies = before
    assert 303 == other.look("/account").status
    assert 401 == other.sign_in("changer@example.com").status
    assert 303 == other.sign_in("changer@example.com", new).status


def test_W2_another_role_ends_the_sessions_it_was_not_given_to(gateway: Gateway) -> None:
    leader = Browser(gateway)
    leader.sign_in("ada@example.com")
    browser = joined(leader, "promoted@example.com", "viewer")
    user = me(browser)["user"]
    leader.look("/team")
    assert 303 == leader.send(f"/team/{user}/role", {"role": "developer"}).status
    assert 401 == browser.api("GET", "/me").status
    browser.sign_in("promoted@example.com")
    assert "developer" == me(browser)["role"]
    made = browser.api("POST", "/keys", {"name": "theirs"}).json
    assert 200 == Office(gateway).chat(made["key"]).status
    assert 303 == leader.send(f"/team/{user}/remove").status
    assert 401 == browser.api("GET", "/me").status
    assert 401 == browser.sign_in("promoted@example.com").status  # A member of nothing.
    refused = until(lambda: Office(gateway).chat(made["key"]).status == 401 or None)
    assert refused


def test_W2_sessions_end_when_idle_and_in_any_case(serve: Serve) -> None:
    text = CONFIGURATION.replace("store: books}\n", "store: books, idle: 1h, longest: 2h}\n", 1)
    gateway = serve(text, **VARIABLES)
    browser, _ = found(gateway)
    for column, ages in (("created", (7_100, 7_201)), ("seen", (3_500, 3_601))):
        for age, status in zip(ages, (200, 401), strict=True):
            then = int((time.time() - age) * 1000)
            books(gateway, f"UPDATE portal_sessions SET {column} = ?", then)
            assert status == browser.api("GET", "/me").status, (column, age)
        browser.sign_in("ada@example.com")


def test_W2_cookies_are_of_the_host_and_for_no_script(serve: Serve, gateway: Gateway) -> None:
    plain = Browser(gateway)
    plain.look("/login")
    lines = plain.send("/login", {"email": "ada@example.com", "password": PASSWORD, "then": ""})
    for line in lines.headers.get_all("set-cookie") or []:
        assert line.startswith("passy_")
        assert {"HttpOnly", "Path=/", "SameSite=lax"} <= set(line.split("; "))
        assert "Domain" not in line
    text = CONFIGURATION.replace(
        "store: books}\n", "store: books, public_url: https://llm.example.com}\n", 1
    )
    behind = serve(text, **VARIABLES)
    browser, link = Browser(behind), first_link(behind).partition("/portal")[2]
    browser.look(link)
    fields = {"token": link.partition("link=")[2], "name": "", "email": "a@example.com",
              "organisation": "A", "password": PASSWORD}  # fmt: skip
    assert 403 == browser.send("/first", fields).status  # Sent from http://127.0.0.1.
    made = browser.send("/first", fields, origin="https://llm.example.com")
    assert 303 == made.status
    browser.look("/begin")
    shown = browser.send("/begin", {"do": "echo"}, origin="https://llm.example.com")
    assert b"https://llm.example.com/v1/chat/completions" in shown.body
    cookies = made.headers.get_all("set-cookie") or []
    assert any(line.startswith("__Host-passy_session=") for line in cookies)
    for line in cookies:
        assert line.startswith("__Host-")
        assert {"HttpOnly", "Path=/", "SameSite=lax", "Secure"} <= set(line.split("; "))


def test_W2_a_password_is_not_taken_over_a_plain_network(gateway: Gateway) -> None:
    browser = Browser(gateway)
    browser.look("/login")
    fields = {"email": "ada@example.com", "password": PASSWORD, "then": ""}
    asked = browser.send("/login", fields, host="portal.example", origin="http://portal.example")
    assert 400 == asked.status
    assert "set-cookie" not in asked.headers


def test_W2_each_sees_their_sessions_and_ends_them(gateway: Gateway) -> None:
    browser, other = Browser(gateway), Browser(gateway)
    browser.sign_in("ada@example.com")
    other.sign_in("ada@example.com")
    body = browser.look("/account").body.decode()
    for id in re.findall(r"/account/sessions/(sess_[0-9a-f]+)/end", body):
        assert 303 == browser.send(f"/account/sessions/{id}/end").status
    assert (401, 200) == (other.api("GET", "/me").status, browser.api("GET", "/me").status)


FOREIGN = [
    ({"origin": "https://evil.example"}, 403),
    ({"origin": "null"}, 403),
    ({"sec_fetch_site": "cross-site"}, 403),
    ({"sec_fetch_site": "same-site"}, 403),
    ({"origin": None, "sec_fetch_site": None}, 403),
    ({"content_type": "text/plain"}, 415),
    ({"content_type": "multipart/form-data; boundary=x"}, 415),
    ({"content_type": None}, 415),
]


@pytest.mark.parametrize(("headers", "status"), FOREIGN)
def test_W5_what_another_site_sends_changes_nothing(
    gateway: Gateway, browser: Browser, headers: dict[str, str | None], status: int
) -> None:
    before = browser.api("GET", "/keys").json
    browser.look("/keys/new")
    fields = {"name": "stolen", "usage_period": "month"}
    assert status == browser.send("/keys/new", fields, **headers).status
    assert status == browser.api("POST", "/keys", {"name": "stolen"}, **headers).status
    assert before == browser.api("GET", "/keys").json


@pytest.mark.parametrize("token", ["", "0" * 64, "foreign", "ü"])
def test_W5_a_change_needs_the_token_of_its_session(
    gateway: Gateway, browser: Browser, token: str
) -> None:
    if token == "foreign":
        other = Browser(gateway)
        other.sign_in("ada@example.com")
        token = other.csrf
    browser.look("/")
    fields = {"csrf": token, "name": "stolen", "usage_period": "month"}
    assert 403 == browser.send("/keys/new", fields).status
    told = token if token.isascii() else "x"
    assert 403 == browser.api("POST", "/keys", {"name": "stolen"}, x_csrf_token=told).status
    browser.look("/")
    assert 403 == browser.send("/logout", {"csrf": token}).status
    assert 200 == browser.api("GET", "/me").status


def test_W5_a_form_to_sign_in_is_ours_too(gateway: Gateway) -> None:
    """Else somebody could be signed in to an attacker's account."""
    browser = Browser(gateway)
    fields = {"csrf": "0" * 64, "email": "ada@example.com", "password": PASSWORD, "then": ""}
    assert 403 == browser.send("/login", fields).status
    browser.look("/login")
    assert (
        403
        == browser.send(
            "/login", {**fields, "csrf": browser.csrf}, sec_fetch_site="cross-site"
        ).status
    )


def test_W5_looking_writes_nothing(gateway: Gateway, browser: Browser) -> None:
    key = browser.api("GET", "/keys").json["rows"][0]["id"]
    tables = ("keys", "members", "users", "organisations", "webhooks", "portal_tokens",
              "portal_prompts", "portal_playground_keys", "portal_audit")  # fmt: skip
    count = [books(gateway, f"SELECT * FROM {table}") for table in tables]
    for path in (
        "/", "/keys", f"/keys/{key}", "/keys/new", "/usage", "/usage.csv", "/team",
        "/audit", "/account", f"/keys/{key}/disable", f"/keys/{key}/delete", "/logout",
        "/playground", "/settings", "/settings/webhooks", "/settings/gateway",
        "/settings/gateway/reload", "/api/playground/key",
    ):  # fmt: skip
        assert browser.look(path).status in (200, 405), path
    assert count == [books(gateway, f"SELECT * FROM {table}") for table in tables]


def test_W8_guessing_gets_slower_and_says_nothing_of_accounts(gateway: Gateway) -> None:
    browser = Browser(gateway)
    said = []
    for email in ("ada@example.com", "nobody@example.com"):
        books(gateway, "DELETE FROM portal_attempts")
        answers = [browser.sign_in(email, "wrong password") for _ in range(10)]
        statuses = [answer.status for answer in answers]
        assert [401] * 5 == statuses[:5], statuses
        assert 429 in statuses[5:], statuses
        refused = next(answer for answer in answers if answer.status == 429)
        assert 1 <= int(refused.headers["retry-after"]) <= 30
        text = answers[0].body.decode().replace(email, "…")
        said.append(re.sub(r'"[0-9a-f]{64}"|req_\w+', "…", text))
    assert said[0] == said[1]


def test_W8_unknown_accounts_take_as_long() -> None:
    """The work itself, in time of the processor: what a network adds says nothing."""
    hashed = anyio.run(passwords.Passwords().hash, PASSWORD)
    took: dict[str | None, list[float]] = {hashed: [], None: []}
    for _ in range(5):
        for known, times in took.items():
            began = time.thread_time()
            assert not passwords.fits("wrong password", known)
            times.append(time.thread_time() - began)
    assert 0.5 < min(took[hashed]) / min(took[None]) < 2, took


def test_W8_a_stranger_who_guesses_keeps_nobody_out(gateway: Gateway) -> None:
    mine, stranger = Browser(gateway), Browser(gateway)
    mine.sign_in("ada@example.com")
    books(gateway, "DELETE FROM portal_attempts")
    assert 401 == stranger.sign_in("ada@example.com", "wrong password").status
    now = int(time.time() * 1000)
    books(gateway, "UPDATE portal_attempts SET failures = 12, at = ? WHERE failures = 1", now)
    assert 429 == stranger.sign_in("ada@example.com").status  # Though it is the right one.
    assert 303 == mine.sign_in("ada@example.com").status  # A browser that is known.
    forged = Browser(gateway)
    forged.cookies["passy_browser"] = mine.cookies["passy_browser"][:-4] + "0000"
    assert 429 == forged.sign_in("ada@example.com").status


def test_W8_an_address_that_tries_many_accounts_waits_too(gateway: Gateway) -> None:
    """Whatever it says of where it comes from: no proxy is trusted here."""
    browser, statuses = Browser(gateway), []
    browser.look("/login")
    for n in range(25):
        forged = {name: f"203.0.113.{n}" for name in ("x_forwarded_for", "x_real_ip", "forwarded")}
        fields = {"email": f"user{n}@example.com", "password": "wrong", "then": ""}
        statuses.append(browser.send("/login", fields, **forged).status)
    assert 429 in statuses[20:]
    assert [401] * 20 == statuses[:20]


def test_W10_a_key_is_shown_once(owned: Any, gateway: Gateway, browser: Browser) -> None:
    browser.look("/keys/new")
    made = browser.send("/keys/new", {"name": "canary", "usage_period": "month"})
    key = key_in(made)
    id = browser.api("GET", "/keys").json["rows"][-1]["id"]
    rolled = browser.send(f"/keys/{id}/roll", {"grace": "0"})
    secrets = [key, key_in(rolled), owned[2]]
    assert secrets[0] != secrets[1]
    for path in (
        "/", "/keys", f"/keys/{id}", "/usage", "/team", "/audit", "/account",
        "/api/keys", f"/api/keys/{id}", "/api/me", "/api/usage", "/openapi.json",
    ):  # fmt: skip
        body = browser.look(path).body.decode()
        assert not [secret for secret in (*secrets, PASSWORD) if secret in body], path
        assert browser.cookies["passy_session"] not in body
    whole = (gateway.folder / ".passy/passy.db").read_bytes()
    for secret in (*secrets, PASSWORD, browser.cookies["passy_session"]):
        assert secret.encode() not in whole
        assert secret not in gateway.complaints()


def test_W11_every_change_is_noted_and_an_edit_shows(gateway: Gateway, browser: Browser) -> None:
    forged = {"x_forwarded_for": "203.0.113.9"}
    made = browser.api("POST", "/keys", {"name": "noted"}, **forged).json
    browser.api("PATCH", f"/keys/{made['id']}", {"name": "renamed", "usage_limit": 5.0})
    browser.api("POST", f"/keys/{made['id']}/roll")
    browser.api("DELETE", f"/keys/{made['id']}")
    rows = books(gateway, "SELECT action, before, after, actor, address FROM portal_audit"
                 " WHERE subject = ?", made["id"])  # fmt: skip
    assert {"127.0.0.1"} == {row[4] for row in rows}
    assert ["key.create", "key.change", "key.roll", "key.delete"] == [row[0] for row in rows]
    before, after = json.loads(rows[1][1]), json.loads(rows[1][2])
    assert ("noted", "renamed", 5.0) == (before["name"], after["name"], after["usage_limit"])
    assert {me(browser)["user"]} == {row[3] for row in rows}
    page = browser.look("/audit").body.decode()
    assert "Every entry is as it was written." in page
    assert "renamed" in page
    assert "organisation.found" in page
    last = books(gateway, "SELECT max(seq) FROM portal_audit WHERE after <> '{}'")[0][0]
    saved = books(gateway, "SELECT * FROM portal_audit")
    for edit in (
        "UPDATE portal_audit SET after = '{}' WHERE seq = ?",
        "UPDATE portal_audit SET actor = 'mallory' WHERE seq = ?",
        "DELETE FROM portal_audit WHERE seq = ? - 1",
    ):
        books(gateway, edit, last)
        assert "is not as it was written" in browser.look("/audit").body.decode(), edit
        books(gateway, "DELETE FROM portal_audit")
        for row in saved:
            books(gateway, f"INSERT INTO portal_audit VALUES ({', '.join('?' * len(row))})", *row)
    assert "Every entry is as it was written." in browser.look("/audit").body.decode()


def test_W7_every_answer_forbids_what_pages_do_not_do(gateway: Gateway, browser: Browser) -> None:
    for path in ("/", "/login", "/keys", "/nowhere", "/api/me", "/usage?by=nothing", "/playground"):
        headers = browser.look(path).headers
        for name, value in HEADERS.items():
            assert [value] == headers.get_all(name), (path, name)


def test_W7_pages_hold_no_script_and_no_style_of_their_own(
    gateway: Gateway, browser: Browser
) -> None:
    key = browser.api("GET", "/keys").json["rows"][0]["id"]
    for path in ("/", "/login", "/keys", "/keys/new", f"/keys/{key}", "/usage", "/team", "/audit",
                 "/playground"):  # fmt: skip
        body = browser.look(path).body.decode()
        assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:|<script(?! src=)", body), path
        assert not re.search(r'(src|href)="(https?:)?//', body), path


def test_a_place_to_come_back_to_is_ours(gateway: Gateway) -> None:
    browser = Browser(gateway)
    assert "/portal/login?then=%2Fkeys%3Fq%3Da" == browser.look("/keys?q=a").headers["location"]
    for then, place in (
        ("/keys?q=a", "/portal/keys?q=a"),
        ("//evil.example", "/portal/"),
        ("/\\evil.example", "/portal/"),
        ("https://evil.example", "/portal/"),
    ):
        browser = Browser(gateway)
        browser.look("/login")
        fields = {"email": "ada@example.com", "password": PASSWORD, "then": then}
        assert place == browser.send("/login", fields).headers["location"]
