"""W2, W8, W11: the second factor, from its QR code to the day that the app is lost."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from harness.gateway import Gateway, Serve
from harness.office import VARIABLES
from harness.portal import (
    CONFIGURATION,
    PASSWORD,
    Browser,
    books,
    enrolled,
    found,
    half,
    invited,
    joined,
    me,
    next_code,
)

from passy_portal import totp


@pytest.fixture(scope="module")
def owner(serve: Serve) -> Browser:
    return found(serve(CONFIGURATION, **VARIABLES))[0]


@pytest.fixture
def gateway(owner: Browser) -> Iterator[Gateway]:
    yield owner.gateway
    books(owner.gateway, "DELETE FROM portal_attempts")


def code(browser: Browser, token: str, typed: str) -> int:
    return browser.send("/login/second", {"token": token, "code": typed, "then": "/keys"}).status


def test_W2_with_a_second_factor_a_password_alone_lets_nobody_in(
    gateway: Gateway, owner: Browser
) -> None:
    browser = joined(owner, "bob@example.com", "developer")
    other = Browser(gateway)
    other.sign_in("bob@example.com")
    before = browser.cookies["passy_session"]
    browser.look("/account/second")
    browser.send("/account/second/begin")
    assert (
        422
        == browser.send("/account/second/confirm", {"code": "000000", "password": PASSWORD}).status
    )
    browser.look("/account/second")
    secret, codes, used = enrolled(browser)
    assert 10 == len(set(codes))
    # Another id for this session (W2), none for the others.
    assert before != browser.cookies["passy_session"]
    assert (200, 401) == (browser.api("GET", "/me").status, other.api("GET", "/me").status)
    half_in, token = half(gateway, "bob@example.com")
    assert 401 == half_in.api("GET", "/me").status
    assert 401 == code(half_in, token, used)  # It was used.
    assert 401 == code(half_in, token, "000000")
    fresh = next_code(secret)
    assert 303 == code(half_in, token, f"{fresh[:3]} {fresh[3:]}")
    assert 200 == half_in.api("GET", "/me").status
    # Neither the code nor the token is good again.
    again, newer = half(gateway, "bob@example.com")
    assert 401 == code(again, newer, fresh)
    assert 404 == code(again, token, codes[0])
    # A recovery code is, once; however it is written.
    assert 303 == code(again, newer, codes[0].lower().replace("-", " "))
    last, newest = half(gateway, "bob@example.com")
    assert 401 == code(last, newest, codes[0])
    assert "9</dd>" in again.look("/account/second").text
    # The secret is shown no more, and nothing of it is readable in the database or the log.
    page = again.look("/account/second").text
    whole = (gateway.folder / ".passy/passy.db").read_bytes() + gateway.complaints().encode()
    for canary in (secret, *codes, *(one.replace("-", "") for one in codes)):
        assert canary not in page
        assert canary.encode() not in whole


def test_W2_a_token_is_for_ten_minutes(gateway: Gateway, owner: Browser) -> None:
    secret, _, _ = enrolled(joined(owner, "late@example.com", "viewer"))
    browser, token = half(gateway, "late@example.com")
    books(gateway, "UPDATE portal_tokens SET expires = ? WHERE kind = 'second'",
          int(time.time() * 1000) - 1)  # fmt: skip
    assert 404 == code(browser, token, next_code(secret))


def test_W8_codes_are_guessed_slower_and_slower(gateway: Gateway, owner: Browser) -> None:
    secret, _, _ = enrolled(joined(owner, "target@example.com", "viewer"))
    browser, token = half(gateway, "target@example.com")
    statuses = [code(browser, token, f"{n:06}") for n in range(10)]
    assert [401] * 5 == statuses[:5], statuses
    assert 429 in statuses[5:], statuses
    # To show the password again does not begin anew.
    browser, token = half(gateway, "target@example.com")
    now = int(time.time() * 1000)
    books(gateway, "UPDATE portal_attempts SET failures = 12, at = ? WHERE failures > 4", now)
    assert 429 == code(browser, token, next_code(secret))
    assert 12 in [row[0] for row in books(gateway, "SELECT failures FROM portal_attempts")]


def test_W2_it_is_given_up_by_who_knows_the_password_and_has_a_code(
    gateway: Gateway, owner: Browser
) -> None:
    browser = joined(owner, "tired@example.com", "viewer")
    secret, codes, used = enrolled(browser)
    browser.look("/account/second")
    for wrong in (
        {"password": "wrong", "code": next_code(secret)},
        {"password": PASSWORD, "code": used},
        {"password": "", "code": codes[1]},
    ):
        assert 422 == browser.send("/account/second/drop", wrong).status
    made = browser.send("/account/second/codes", {"code": codes[0]})
    assert 200 == made.status
    browser.look("/account/second")
    before = browser.cookies["passy_session"]
    right = {"password": PASSWORD, "code": next_code(secret)}
    assert 422 == browser.send("/account/second/drop", {**right, "code": codes[2]}).status
    assert 303 == browser.send("/account/second/drop", right).status
    assert before != browser.cookies["passy_session"]
    plain = Browser(gateway)
    assert 303 == plain.sign_in("tired@example.com").status
    actions = books(gateway, "SELECT action, before, after FROM portal_audit WHERE subject = ?",
                    me(browser)["user"])  # fmt: skip
    told = ["account.second.on", "account.second.codes", "account.second.off"]
    assert told == [row[0] for row in actions if "second" in row[0]]
    assert secret not in str(actions)


def test_W2_an_organisation_asks_it_of_everybody(gateway: Gateway, owner: Browser) -> None:
    viewer = joined(owner, "plain@example.com", "viewer")
    admin = joined(owner, "lead@example.com", "admin")
    owner.look("/team")
    assert 409 == owner.send("/team/second", {"wanted": "yes"}).status  # Without one themselves.
    secret, _, _ = enrolled(owner)
    assert 403 == admin.send("/team/second", {"wanted": "yes"}).status
    owner.look("/team")
    assert 303 == owner.send("/team/second", {"wanted": "yes"}).status
    # Sessions of who has none lead there and nowhere else.
    for browser in (viewer, admin):
        asked = browser.look("/keys")
        assert (303, "/portal/account/second") == (asked.status, asked.headers["location"])
        refused = browser.api("GET", "/keys")
        assert (403, "second_factor_required") == (refused.status, refused.json["error"]["code"])
        assert 403 == browser.send("/keys/new", {"name": "x", "usage_period": "month"}).status
    theirs, _, _ = enrolled(admin)
    assert 200 == admin.look("/keys").status
    admin.look("/account/second")
    kept = {"password": PASSWORD, "code": next_code(theirs)}
    assert 422 == admin.send("/account/second/drop", kept).status
    assert 200 == owner.look("/keys").status
    owner.look("/team")
    assert 303 == owner.send("/team/second", {"wanted": "no"}).status
    assert 200 == viewer.look("/keys").status
    assert totp.DIGITS == len(next_code(secret))


def test_W2_an_invitation_is_no_way_around_it(gateway: Gateway, owner: Browser) -> None:
    browser = joined(owner, "twice@example.com", "viewer")
    enrolled(browser)
    user = me(browser)["user"]
    owner.look("/team")
    assert 303 == owner.send(f"/team/{user}/remove").status
    link, fresh = invited(owner, "twice@example.com", "viewer"), Browser(gateway)
    fresh.look(f"/join?link={link}")
    fields = {"token": link, "name": "", "password": PASSWORD}
    asked = fresh.send("/join", fields)
    assert 200 == asked.status
    assert b"/login/second" in asked.body
    assert 401 == fresh.api("GET", "/me").status
