"""W1, W2, W3, W11: signing in with OpenID providers, and what they may not do."""

from __future__ import annotations

import html
import json
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from harness.gateway import Asked, Gateway, Serve
from harness.identity import IdentityProvider, came, linked, proved, returned, went
from harness.office import VARIABLES, Office
from harness.portal import (
    CONFIGURATION,
    PASSWORD,
    Browser,
    books,
    enrolled,
    found,
    invited,
    joined,
    me,
    next_code,
    token_in,
)

ODD: list[tuple[dict[str, str], str]] = [
    ({"issuer": "http://127.0.0.1:1"}, "calls itself otherwise"),
    ({"token_endpoint": "http://169.254.169.254/latest"}, "not reached by https"),
    ({"token_endpoint": "https://169.254.169.254/latest"}, "cannot be reached"),
    ({"token_endpoint": "https://localhost:1/token"}, "cannot be reached"),
    ({"token_endpoint": "file:///etc/passwd"}, "does not say where"),
    ({"jwks_uri": "https://10.0.0.1/jwks"}, "cannot be reached"),
]
"""What providers say of themselves, and what comes of that."""
GROUPS = {"llm-admins": "admin", "llm-devs": "developer"}


@pytest.fixture(scope="module")
def work() -> Iterator[IdentityProvider]:
    """Trusted with example.com, its groups have roles."""
    with IdentityProvider.running() as provider:
        yield provider


@pytest.fixture(scope="module")
def other() -> Iterator[IdentityProvider]:
    """Trusted with nobody who is not invited; it asks for second factors itself."""
    with IdentityProvider.running() as provider:
        yield provider


@pytest.fixture(scope="module")
def odd() -> Iterator[list[IdentityProvider]]:
    """One for each of `ODD`."""
    with ExitStack() as stack:
        made = [stack.enter_context(IdentityProvider.running()) for _ in ODD]
        for provider, (described, _) in zip(made, ODD, strict=True):
            provider.right(sub="x", email="x@example.com")
            provider.described = dict(described)
        yield made


@pytest.fixture(scope="module")
def owner(
    serve: Serve, work: IdentityProvider, other: IdentityProvider, odd: list[IdentityProvider]
) -> Browser:
    providers = {
        "work": work.settings(domains=["example.com"], roles=GROUPS, title="Work"),
        "other": other.settings(second_factor="on"),
        **{f"odd{n}": one.settings(domains=["example.com"]) for n, one in enumerate(odd)},
    }
    return found(serve(with_settings(oidc=providers), **VARIABLES))[0]


def with_settings(**settings: Any) -> str:
    """The configuration, with more settings of the portal."""
    told = json.dumps({"app": "portal", "store": "books", **settings})
    return CONFIGURATION.replace("{app: portal, store: books}", told, 1)


@pytest.fixture
def gateway(owner: Browser, work: IdentityProvider, other: IdentityProvider) -> Iterator[Gateway]:
    yield owner.gateway
    for provider in (work, other):
        provider.right()
    books(owner.gateway, "DELETE FROM portal_attempts")


def said(asked: Asked) -> str:
    shown = re.search(r'role="alert">([^<]+)<', asked.text)
    return shown[1] if shown else ""


def test_W2_a_domain_is_let_in_with_the_role_of_its_groups(
    gateway: Gateway, owner: Browser, work: IdentityProvider
) -> None:
    work.right(sub="carol-1", email="Carol@Example.com", name="Carol", groups=["llm-devs", "x"])
    browser = Browser(gateway)
    assert "Sign in with Work" in browser.look("/login").text
    asked = came(browser, "work", "?then=/keys")
    assert (303, "/portal/keys") == (asked.status, asked.headers["location"])
    assert ("carol@example.com", "developer") == (me(browser)["email"], me(browser)["role"])
    before = browser.cookies["passy_session"]
    # Another role there is another role here, and ends what was begun with the former one.
    work.right(sub="carol-1", email="renamed@example.com", groups=["llm-devs", "llm-admins"])
    again = Browser(gateway)
    again.cookies = dict(browser.cookies)
    assert 303 == came(again, "work").status
    assert before != again.cookies["passy_session"]
    assert ("carol@example.com", "admin") == (me(again)["email"], me(again)["role"])
    assert 401 == browser.api("GET", "/me").status
    work.algorithm = "ES256"
    assert 303 == came(again, "work").status
    user = me(again)["user"]
    log = books(gateway, "SELECT action, after FROM portal_audit WHERE subject = ?", user)
    assert ["account.link", "member.role"] == [row[0] for row in log]
    assert "admin" in log[1][1]
    # Nobody else is let in for what they call themselves.
    work.right(sub="carol-1", email="carol@example.com")
    assert 303 == came(again, "work").status
    assert "viewer" == me(again)["role"]


REFUSED: list[tuple[str, Any]] = [
    ("nonce", lambda idp: setattr(idp, "change", lambda c: c.update(nonce="another"))),
    ("nonce", lambda idp: setattr(idp, "change", lambda c: c.pop("nonce"))),
    ("audience", lambda idp: setattr(idp, "change", lambda c: c.update(aud="somebody-else"))),
    ("party", lambda idp: setattr(idp, "change", lambda c: c.update(aud=[c["aud"], "b"], azp="b"))),
    ("party", lambda idp: setattr(idp, "change", lambda c: c.update(aud=[c["aud"], "b"]))),
    ("issuer", lambda idp: setattr(idp, "change", lambda c: c.update(iss="https://evil.example"))),
    ("time", lambda idp: setattr(idp, "change", lambda c: c.update(exp=int(time.time()) - 120))),
    ("time", lambda idp: setattr(idp, "change", lambda c: c.pop("exp"))),
    ("time", lambda idp: setattr(idp, "change", lambda c: c.update(iat=int(time.time()) + 600))),
    ("time", lambda idp: setattr(idp, "change", lambda c: c.update(exp=True))),
    ("subject", lambda idp: setattr(idp, "change", lambda c: c.update(sub=""))),
    ("subject", lambda idp: setattr(idp, "change", lambda c: c.update(sub=["carol-1"]))),
    ("cannot be read", lambda idp: setattr(idp, "by", "none")),
    ("cannot be read", lambda idp: setattr(idp, "by", "secret")),
    ("not signed with one of its keys", lambda idp: setattr(idp, "by", "foreign")),
    ("another attempt", lambda idp: setattr(idp, "returned", {"state": "another"})),
    ("not of Work", lambda idp: setattr(idp, "returned", {"iss": "https://evil.example"})),
    ("did not say", lambda idp: setattr(idp, "returned", {"iss": None})),
    ("sent no code", lambda idp: setattr(idp, "returned", {"code": None})),
    ("invalid_grant", lambda idp: setattr(idp, "returned", {"code": "guessed"})),
    ("access_denied", lambda idp: setattr(idp, "returned", {"error": "access_denied"})),
    ("not verified", lambda idp: idp.person.update(sub="new", email_verified=False)),
    ("not verified", lambda idp: idp.person.update(sub="new", email_verified="no")),
    ("Nobody has invited", lambda idp: idp.person.update(sub="new", email="a@example.com.evil.x")),
    ("not verified", lambda idp: idp.person.update(sub="new", email="a@evil.x@example.com")),
]


@pytest.mark.parametrize(("why", "fault"), REFUSED, ids=[f"{n} {w}" for n, (w, _) in enumerate(REFUSED)])  # fmt: skip  # noqa: E501
def test_W2_a_token_that_does_not_fit_lets_nobody_in(
    gateway: Gateway, work: IdentityProvider, why: str, fault: Any
) -> None:
    work.right(sub="carol-1", email="carol@example.com")
    fault(work)
    browser = Browser(gateway)
    members = books(gateway, "SELECT count(*) FROM members")
    asked = came(browser, "work")
    assert 403 == asked.status
    assert why in said(asked)
    assert 401 == browser.api("GET", "/me").status
    assert members == books(gateway, "SELECT count(*) FROM members")


def test_W2_an_answer_is_taken_where_it_was_asked_for_and_once(
    gateway: Gateway, work: IdentityProvider, other: IdentityProvider
) -> None:
    work.right(sub="carol-1", email="carol@example.com")
    browser, victim = Browser(gateway), Browser(gateway)
    to = browser.look("/sso/work").headers["location"]
    asked = parse_qs(urlsplit(to).query)
    assert f"{gateway.url}/portal/sso/work/return" == asked["redirect_uri"][0]
    back = urlsplit(went(to))
    path = f"{back.path.removeprefix('/portal')}?{back.query}"
    # Somebody else's browser has not begun it (and would be signed in as who has).
    assert "has not begun" in said(victim.look(path))
    victim.look("/sso/work")
    assert "another attempt" in said(victim.look(path))
    # What was begun with one provider is not ended with another.
    browser.cookies["kept"] = browser.cookies["passy_flow"]
    assert "has not begun" in said(browser.look(path.replace("/work/", "/other/")))
    browser.cookies["passy_flow"] = browser.cookies.pop("kept")
    flow = browser.cookies["passy_flow"]
    assert 303 == browser.look(path).status
    assert "passy_flow" not in browser.cookies
    browser.cookies["passy_flow"] = flow
    assert "invalid_grant" in said(browser.look(path))
    assert 404 == browser.look("/sso/nobody").status
    assert work.SECRET not in gateway.complaints() + flow
    assert not other.used


def test_W2_what_a_token_leaves_out_is_asked_for_of_the_same_person(
    gateway: Gateway, work: IdentityProvider
) -> None:
    work.right(sub="fay", name="Fay")
    work.told = {"sub": "fay", "email": "fay@example.com", "email_verified": True}
    browser = Browser(gateway)
    assert 303 == came(browser, "work").status
    assert "fay@example.com" == me(browser)["email"]
    work.right(sub="gil", name="Gil")
    work.told = {"sub": "fay", "email": "gil@example.com", "email_verified": True}
    assert "somebody else" in said(came(Browser(gateway), "work"))


def test_W2_keys_may_change(gateway: Gateway, work: IdentityProvider) -> None:
    work.right(sub="carol-1", email="carol@example.com")
    assert 303 == came(Browser(gateway), "work").status
    before = work.hits.count("/jwks")
    work.rotate()
    deadline = time.monotonic() + 90
    while (asked := came(Browser(gateway), "work")).status != 303:
        assert "not signed" in said(asked)  # They were looked at a moment ago.
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert 2 >= work.hits.count("/jwks") - before
    assert work.hits.count("/.well-known/openid-configuration") == 1


def test_W3_an_account_is_linked_by_an_invitation_and_by_nothing_less(
    gateway: Gateway, owner: Browser, other: IdentityProvider
) -> None:
    bob = joined(owner, "bob@elsewhere.example", "viewer")
    # A verified e-mail alone is not enough, neither for an account that is there nor for a new one.
    for email in ("bob@elsewhere.example", "ada@example.com", "new@elsewhere.example"):
        other.right(sub=f"at-other-{email}", email=email)
        assert f"Nobody has invited {email}" in said(came(Browser(gateway), "other"))
    link = invited(owner, "new@elsewhere.example", "developer")
    assert "Join with other" in Browser(gateway).look(f"/join?link={link}").text
    other.right(sub="somebody", email="somebody@elsewhere.example")
    refused = came(Browser(gateway), "other", f"?link={link}")
    assert "another e-mail address" in said(refused)
    other.right(sub="new", email="new@elsewhere.example", name="New")
    browser = Browser(gateway)
    assert 303 == came(browser, "other", f"?link={link}").status
    assert ("developer", "New") == (me(browser)["role"], me(browser)["name"])
    assert "was used" in said(came(Browser(gateway), "other", f"?link={link}"))
    # Who has no account yet need not come by the link.
    invited(owner, "late@elsewhere.example", "billing")
    other.right(sub="late", email="late@elsewhere.example")
    late = Browser(gateway)
    assert 303 == came(late, "other").status
    assert "billing" == me(late)["role"]
    # It is the provider's id that counts from then on.
    other.right(sub="late", email="ada@example.com")
    assert 303 == came(late, "other").status
    assert "late@elsewhere.example" == me(late)["email"]
    assert "viewer" == me(bob)["role"]


def test_W3_who_invites_an_account_elsewhere_does_not_get_it(
    gateway: Gateway, owner: Browser, other: IdentityProvider
) -> None:
    """An account without a password would be given one by who holds the invitation's link."""
    invited(owner, "eve@elsewhere.example", "viewer")
    other.right(sub="eve", email="eve@elsewhere.example")
    eve = Browser(gateway)
    assert 303 == came(eve, "other").status
    user = me(eve)["user"]
    office = Office(gateway)
    second = office.made("/organisations", {"name": "Second"})["id"]
    assert 200 == office.admin("PUT", f"/organisations/{second}/members/{user}", {"role": "owner"}).status  # fmt: skip  # noqa: E501
    owner.look("/team")
    assert 303 == owner.send(f"/team/{user}/remove").status
    link = invited(owner, "eve@elsewhere.example", "viewer")
    thief = Browser(gateway)
    assert b'name="password"' not in thief.look(f"/join?link={link}").body
    asked = thief.send("/join", {"token": link, "name": "", "password": PASSWORD})
    assert 422 == asked.status
    assert 401 == thief.api("GET", "/me").status
    assert 401 == thief.sign_in("eve@elsewhere.example").status
    assert 204 == office.admin("DELETE", f"/organisations/{second}").status


def test_W2_a_second_factor_is_asked_for_unless_the_provider_did(
    gateway: Gateway, owner: Browser, work: IdentityProvider, other: IdentityProvider
) -> None:
    work.right(sub="dan", email="dan@example.com")
    browser = Browser(gateway)
    assert 303 == came(browser, "work").status
    secret, _, _ = enrolled(browser, "")
    half = Browser(gateway)
    asked = came(half, "work", "?then=/team")
    assert 200 == asked.status
    assert 401 == half.api("GET", "/me").status
    fields = {"token": token_in(asked), "code": next_code(secret), "then": "/team"}
    assert "/portal/team" == half.send("/login/second", fields).headers["location"]
    owner.look("/team")
    invited(owner, "dora@elsewhere.example", "viewer")
    other.right(sub="dora", email="dora@elsewhere.example")
    dora = Browser(gateway)
    assert 303 == came(dora, "other").status
    enrolled(owner)
    owner.look("/team")
    assert 303 == owner.send("/team/second", {"wanted": "yes"}).status
    assert 200 == dora.look("/keys").status
    owner.look("/team")
    assert 303 == owner.send("/team/second", {"wanted": "no"}).status


def test_W1_with_passwords_for_owners_the_owner_still_gets_in(serve: Serve) -> None:
    with IdentityProvider.running() as idp:
        providers = {"work": idp.settings(domains=["example.com"])}
        gateway = serve(with_settings(oidc=providers, passwords="owners"), **VARIABLES)
        owner, _ = found(gateway)
        link = invited(owner, "bob@elsewhere.example", "viewer")
        bob = Browser(gateway)
        assert b'name="password"' not in bob.look(f"/join?link={link}").body
        assert 422 == bob.send("/join", {"token": link, "name": "", "password": PASSWORD}).status
        idp.right(sub="bob", email="bob@elsewhere.example")
        assert 303 == came(bob, "work", f"?link={link}").status
        bob.csrf = me(bob)["csrf_token"]
        first = bob.api("PUT", "/me/password", {"new": PASSWORD})
        assert (403, "not_allowed") == (first.status, first.json["error"]["code"])
        assert b"/sso/work/prove" not in bob.look("/account").body
        hashed = books(gateway, "SELECT hash, changed FROM portal_passwords")[0]
        books(gateway, "INSERT INTO portal_passwords VALUES (?, ?, ?)", me(bob)["user"], *hashed)
        plain = Browser(gateway)
        assert 401 == plain.sign_in("bob@elsewhere.example").status  # Though it is the right one.
        # The way out: the provider is gone.
        idp._server.shutdown()
        idp._server.server_close()
        books(gateway, "DELETE FROM portal_attempts")
        fresh = Browser(gateway)
        assert "An owner" in fresh.look("/login").text
        assert 303 == fresh.sign_in("ada@example.com").status
        refused = Browser(gateway).look("/sso/work/return?state=x&code=y")
        assert 403 == refused.status


@pytest.mark.parametrize("number", range(len(ODD)))
def test_W2_what_a_provider_says_of_itself_leads_to_no_other_place(
    gateway: Gateway, number: int
) -> None:
    browser = Browser(gateway)
    begun = browser.look(f"/sso/odd{number}")
    if begun.status == 303:
        back = urlsplit(went(begun.headers["location"]))
        begun = browser.look(f"{back.path.removeprefix('/portal')}?{back.query}")
    assert 403 == begun.status
    assert ODD[number][1] in said(begun)


def test_W3_who_has_signed_in_links_an_account_whatever_its_address(
    gateway: Gateway, owner: Browser, other: IdentityProvider
) -> None:
    hal = joined(owner, "hal@elsewhere.example", "developer")
    user, mine = me(hal)["user"], {"sub": "hal-there", "email": "h@third.example"}
    # The same address there is nothing, and neither is this session without the password.
    other.right(sub="liar", email="hal@elsewhere.example")
    assert "Nobody has invited" in said(came(Browser(gateway), "other"))
    assert "not your password" in said(linked(hal, "other", "guessed"))
    assert not books(gateway, "SELECT 1 FROM portal_identities WHERE user_id = ?", user)
    other.right(**mine, email_verified=False)
    done = linked(hal, "other", PASSWORD)
    assert (303, "/portal/account?done=linked") == (done.status, done.headers["location"])
    (row,) = hal.api("GET", "/identities").json["rows"]
    assert ("other", "hal-there") == (row["provider"], row["subject"])
    fresh = Browser(gateway)
    assert 303 == came(fresh, "other").status
    assert ("hal@elsewhere.example", "developer") == (me(fresh)["email"], me(fresh)["role"])
    # It is one account's, and where it was begun is where it ends.
    ivy = joined(owner, "ivy@elsewhere.example", "viewer")
    assert "somebody else signs in" in said(linked(ivy, "other", PASSWORD))
    ivy.look("/account")
    page = ivy.send("/sso/other/link", {"password": PASSWORD}).text
    to = re.search(r'href="(http://127[^"]+/authorize[^"]+)"', page)
    assert to
    other.right(sub="ivy-there", email="ivy@elsewhere.example")
    thief = Browser(gateway)
    thief.cookies = {**hal.cookies, "passy_flow": ivy.cookies["passy_flow"]}
    assert "signed in anew" in said(returned(thief, html.unescape(to[1])))
    assert 303 == linked(ivy, "other", PASSWORD).status
    # A password that was chosen is one way in; the last one stays.
    path = f"/identities/{row['id']}/unlink"
    assert 404 == ivy.api("POST", path, {"password": PASSWORD}).status
    assert 422 == hal.api("POST", path, {"password": "guessed"}).status
    hashed = books(gateway, "SELECT hash, changed FROM portal_passwords WHERE user_id = ?", user)[0]
    books(gateway, "DELETE FROM portal_passwords WHERE user_id = ?", user)
    hal.look("/account")
    assert b'name="current"' not in hal.look("/account").body
    assert "Link another one first" in said(hal.send(f"/account{path}"))
    books(gateway, "INSERT INTO portal_passwords VALUES (?, ?, ?)", user, *hashed)
    assert 303 == hal.send(f"/account{path}", {"password": PASSWORD}).status
    assert (200, 401) == (hal.api("GET", "/me").status, fresh.api("GET", "/me").status)
    other.right(**mine)
    assert "Nobody has invited" in said(came(Browser(gateway), "other"))
    log = books(gateway, "SELECT action FROM portal_audit WHERE subject = ?", user)
    assert ["account.link", "account.unlink"] == [row[0] for row in log if "link" in row[0]]


def arrived(owner: Browser, provider: IdentityProvider, name: str) -> Browser:
    """Somebody invited, who signs in with ``other`` alone."""
    email = f"{name}@elsewhere.example"
    invited(owner, email, "viewer")
    provider.right(sub=name, email=email)
    browser = Browser(owner.gateway)
    assert 303 == came(browser, "other").status
    return browser


def test_W2_a_first_password_takes_signing_in_at_the_provider_just_now(
    gateway: Gateway, owner: Browser, other: IdentityProvider
) -> None:
    kim = arrived(owner, other, "kim")
    user, new = me(kim)["user"], {"new": "a first one of kim's"}
    page = kim.look("/account").text
    assert "Sign in with other once more" in page
    assert 'name="new"' not in page
    assert "Sign in with your provider once more" in said(kim.send("/account/password", new))
    # The provider says when that was, and of whom.
    for age, why in ((None, "does not say when"), (3_600, "too long ago")):
        other.age = age
        assert why in said(proved(kim, "other"))
    other.right(sub="new", email="kim@elsewhere.example")
    assert "not the account" in said(proved(kim, "other"))
    assert 403 == kim.send("/account/password", new).status
    other.right(sub="kim", email="kim@elsewhere.example")
    elsewhere = Browser(gateway)
    assert 303 == came(elsewhere, "other").status
    assert "/portal/account?done=proven" == proved(kim, "other").headers["location"]
    # In that session, for some minutes.
    elsewhere.look("/account")
    assert 403 == elsewhere.send("/account/password", new).status
    ((until,),) = books(
        gateway, "SELECT proven FROM portal_sessions WHERE user_id = ? AND proven > 0", user
    )
    assert 0 < until / 1000 - time.time() <= 300
    assert 'name="new"' in kim.look("/account").text
    assert 422 == kim.send("/account/password", {"new": "short"}).status
    books(gateway, "UPDATE portal_sessions SET proven = 1 WHERE user_id = ?", user)
    assert 403 == kim.send("/account/password", new).status
    books(gateway, "UPDATE portal_sessions SET proven = ? WHERE proven = 1", until)
    assert 303 == kim.send("/account/password", new).status
    assert (200, 401) == (kim.api("GET", "/me").status, elsewhere.api("GET", "/me").status)
    assert 303 == Browser(gateway).sign_in("kim@elsewhere.example", new["new"]).status
    # From then on it is known or it is not: the proof is of no more use.
    kim.look("/account")
    assert 422 == kim.send("/account/password", {"new": "a second one of kim's"}).status
    log = books(gateway, "SELECT action, after FROM portal_audit WHERE subject = ?", user)
    assert ["account.password"] == [action for action, after in log if "first" in after]
    assert new["new"] not in str(log) + gateway.complaints()


def test_W3_a_first_password_and_one_more_way_in_over_the_json_api(
    gateway: Gateway, owner: Browser, work: IdentityProvider, other: IdentityProvider
) -> None:
    lee = arrived(owner, other, "lee")
    lee.csrf, new = me(lee)["csrf_token"], "a first one of lee's"
    assert (False, True, None) == tuple(lee.api("GET", "/me/password").json.values())
    asked = lee.api("PUT", "/me/password", {"new": new})
    assert (403, "sign_in_again") == (asked.status, asked.json["error"]["code"])
    assert 404 == lee.api("POST", "/me/password/proof", {"provider": "nobody"}).status
    asked = lee.api("POST", "/identities", {"provider": "work"})
    assert (403, "sign_in_again") == (asked.status, asked.json["error"]["code"])
    assert b"/sso/work/link" not in lee.look("/account").body
    begun = lee.api("POST", "/me/password/proof", {"provider": "other"})
    assert parse_qs(urlsplit(begun.json["to"]).query)["prompt"] == ["login"]
    # It is for the browser that began it.
    assert "has not begun" in said(returned(Browser(gateway), begun.json["to"]))
    begun = lee.api("POST", "/me/password/proof", {"provider": "other"})
    assert 303 == returned(lee, begun.json["to"]).status
    assert lee.api("GET", "/me/password").json["proven_until"]
    assert b"/sso/work/link" in lee.look("/account").body
    assert 200 == lee.api("POST", "/identities", {"provider": "work"}).status
    asked = lee.api("PUT", "/me/password", {"new": new})
    assert 200 == asked.status
    lee.csrf = asked.json["csrf_token"]
    assert (True, True, None) == tuple(lee.api("GET", "/me/password").json.values())
    # One more way in, for who knows the password.
    told = lee.api("GET", "/identities").json
    assert ["other"] == [one["provider"] for one in told["rows"]]
    assert {"name": "work", "title": "Work"} in told["others"]
    assert 422 == lee.api("POST", "/identities", {"provider": "work", "password": "guess"}).status
    begun = lee.api("POST", "/identities", {"provider": "work", "password": new})
    work.right(sub="lee-at-work", email="l@example.com")
    assert 303 == returned(lee, begun.json["to"]).status
    told = lee.api("GET", "/identities").json
    assert ["other", "work"] == [one["provider"] for one in told["rows"]]
    assert {"name": "work", "title": "Work"} not in told["others"]
    odd = lee.api("POST", "/identities", {"provider": "odd0", "password": new})
    assert (503, "provider_unavailable") == (odd.status, odd.json["error"]["code"])
