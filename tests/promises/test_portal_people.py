"""W2, W3, W4, W11: owners that change, invitations by mail, and passwords that were lost."""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import anyio
import pytest
from harness.gateway import Gateway, Serve
from harness.mail import MailServer
from harness.office import VARIABLES, Office
from harness.portal import (
    CONFIGURATION,
    PASSWORD,
    Browser,
    books,
    enrolled,
    found,
    joined,
    link_in,
    me,
    next_code,
)
from harness.tls import Authority

from passy_portal import totp
from passy_portal.mail import Mailer, Undelivered
from passy_portal.settings import Mail
from passy_proxy.config.settings import Secret

NEW = "another battery entirely"


@pytest.fixture(scope="module")
def mail() -> Iterator[MailServer]:
    with MailServer.running() as server:
        yield server


@pytest.fixture(scope="module")
def owner(serve: Serve, mail: MailServer) -> Browser:
    setting = f'mail: {{url: "{mail.url}", sender: passy@example.com}}'
    text = CONFIGURATION.replace("store: books}\n", f"store: books, {setting}}}\n", 1)
    return found(serve(text, **VARIABLES))[0]


@pytest.fixture
def gateway(owner: Browser, mail: MailServer) -> Iterator[Gateway]:
    mail.letters.clear()
    yield owner.gateway
    mail.refuses = ""
    books(owner.gateway, "DELETE FROM portal_attempts")


def noted(gateway: Gateway, subject: str) -> list[str]:
    rows = books(gateway, "SELECT action FROM portal_audit WHERE subject = ? ORDER BY seq", subject)
    return [row[0] for row in rows]


def test_W11_an_invitation_is_mailed_and_shown(
    gateway: Gateway, owner: Browser, mail: MailServer
) -> None:
    owner.look("/team")
    made = owner.send("/team/invite", {"email": "bob@example.com", "role": "developer"})
    link = link_in(made)
    ((to, letter),) = mail.letters
    assert ("bob@example.com", "passy@example.com") == (to, letter["From"])
    assert "Ada invites you to Engines" == letter["Subject"]
    text = letter.get_content()
    assert f"{gateway.url}/portal/join?link={link}" in text.splitlines()
    assert "It was mailed" in made.text
    # Once more: another link, and the former one is good no more.
    id = books(gateway, "SELECT id FROM portal_tokens WHERE email = 'bob@example.com'")[0][0]
    again = owner.send(f"/team/invitations/{id}/resend")
    assert 200 == again.status
    assert 2 == len(mail.letters)
    bob = Browser(gateway)
    assert 404 == bob.look(f"/join?link={link}").status
    other = link_in(again)
    assert other in mail.letters[1][1].get_content()
    bob.look(f"/join?link={other}")
    assert 303 == bob.send("/join", {"token": other, "name": "B", "password": PASSWORD}).status
    # A week later it is good no more.
    late = link_in(owner.send("/team/invite", {"email": "late@example.com", "role": "viewer"}))
    in_a_week = books(gateway, "SELECT expires FROM portal_tokens WHERE email = 'late@example.com'")
    assert 6.9 < (in_a_week[0][0] / 1000 - time.time()) / 86_400 < 7.1
    books(gateway, "UPDATE portal_tokens SET expires = ? WHERE email = 'late@example.com'",
          int(time.time() * 1000))  # fmt: skip
    assert 404 == Browser(gateway).look(f"/join?link={late}").status


def test_W11_mail_that_is_not_taken_stops_nobody(
    gateway: Gateway, owner: Browser, mail: MailServer
) -> None:
    mail.refuses = "nobody@example.com"
    owner.look("/team")
    made = owner.send("/team/invite", {"email": "nobody@example.com", "role": "viewer"})
    assert "the address was refused (550 nobody of that name)" in made.text
    assert link_in(made)
    for odd in ("a@b\r\nBcc: x@example.com", "a@b>,<x@example.com"):
        asked = owner.send("/team/invite", {"email": odd, "role": "viewer"})
        assert asked.status in (200, 422), odd
    assert not [to for to, _ in mail.letters if to.startswith("x@")]
    assert not [letter for _, letter in mail.letters if letter["Bcc"]]
    assert mail.PASSWORD not in gateway.complaints() + owner.look("/audit").text


def sent_to(server: MailServer, url: str = "") -> str:
    """What became of a letter: empty when it was taken."""
    mailer = Mailer(Mail(url=Secret(url or server.url), sender="passy@example.com"))
    assert server.PASSWORD not in repr(mailer.__dict__)
    try:
        anyio.run(mailer.send, "bob@example.com", "Hello", "a link")
    except Undelivered as undelivered:
        return str(undelivered)
    return ""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.mark.parametrize("implicit", [False, True], ids=["STARTTLS", "from the first byte"])
def test_W10_letters_are_encrypted_for_a_server_that_is_trusted(
    authority: Authority, monkeypatch: pytest.MonkeyPatch, implicit: bool
) -> None:
    elsewhere = "127.0.0.2"
    context = authority.server(elsewhere)
    with MailServer.running(elsewhere, context, implicit=implicit) as server:
        assert "certificate is refused" in sent_to(server)  # By an authority nobody knows.
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
        assert "" == sent_to(server)
        ((to, letter),) = server.letters
        assert ("bob@example.com", "a link") == (to, letter.get_content().strip())
        assert f"AUTH PLAIN {secret()}" in server.heard
        wrong = server.url.replace("9c41", "guess")
        assert "refuses to let the portal in" in sent_to(server, wrong)
        assert 1 == len(server.letters)
        # What comes before the handshake is not taken for an answer within it.
        server.slips_in = "\r\n250-mail.test\r\n250 AUTH LOGIN"
        assert sent_to(server) == ""
        assert not [
            line for line in server.in_clear if not line.upper().startswith(("EHLO", "STARTTLS"))
        ]
    for name, shifted, why in (("127.0.0.3", 0, "mismatch"), (elsewhere, -3, "expired")):
        context = authority.server(name, shifted=shifted)
        with MailServer.running(elsewhere, context, implicit=implicit) as server:
            assert why in sent_to(server)
            assert not [line for line in server.heard if line.startswith(("AUTH", "MAIL"))]


def test_W10_without_encryption_no_password_and_no_letter_is_sent(authority: Authority) -> None:
    for context in (None, authority.server("127.0.0.2")):
        with MailServer.running("127.0.0.2", context) as server:
            server.offers = False  # Or somebody on the way has cut it out.
            assert "offers no encryption" in sent_to(server)
            assert not server.letters
            assert {"ehlo"} >= {line[:4] for line in server.heard if line.lower() != "quit"}
    assert "cannot be reached" in sent_to(server)


def secret() -> str:
    """As ``AUTH PLAIN`` has it."""
    return base64.b64encode(f"\0{MailServer.USER}\0{MailServer.PASSWORD}".encode()).decode()


def test_W2_who_lost_their_password_chooses_another_by_an_owners_link(
    gateway: Gateway, owner: Browser, mail: MailServer
) -> None:
    lost = joined(owner, "lost@example.com", "developer")
    admin = joined(owner, "lead@example.com", "admin")
    enrolled(lost)
    user = me(lost)["user"]
    mail.letters.clear()
    admin.look(f"/team/{user}")
    assert 403 == admin.send(f"/team/{user}/reset").status
    owner.look(f"/team/{user}")
    made = owner.send(f"/team/{user}/reset", {"second": "yes"})
    link = link_in(made)
    assert link in mail.letters[0][1].get_content()
    browser = Browser(gateway)
    assert "lost@example.com" in browser.look(f"/reset?link={link}").text
    assert 422 == browser.send("/reset", {"token": link, "password": "short"}).status
    assert 404 == browser.send("/reset", {"token": "guessed", "password": NEW}).status
    assert 200 == lost.api("GET", "/me").status  # Nothing has happened so far.
    assert 303 == browser.send("/reset", {"token": link, "password": NEW}).status
    assert 401 == lost.api("GET", "/me").status
    assert 404 == browser.send("/reset", {"token": link, "password": PASSWORD}).status
    assert 401 == browser.sign_in("lost@example.com").status
    assert 303 == browser.sign_in("lost@example.com", NEW).status
    assert ["member.reset", "account.reset"] == noted(gateway, user)[-2:]
    # Without being told to, it leaves the second factor alone.
    enrolled(browser, NEW)
    owner.look(f"/team/{user}")
    link = link_in(owner.send(f"/team/{user}/reset"))
    browser = Browser(gateway)
    browser.look(f"/reset?link={link}")
    assert 303 == browser.send("/reset", {"token": link, "password": PASSWORD}).status
    assert b"/login/second" in browser.sign_in("lost@example.com").body


def test_W3_an_account_is_not_one_organisations(
    gateway: Gateway, owner: Browser, mail: MailServer
) -> None:
    """Else an owner would come into another organisation by who is a member of both."""
    both = joined(owner, "both@example.com", "viewer")
    user = me(both)["user"]
    owner.look(f"/team/{user}")
    early = link_in(owner.send(f"/team/{user}/reset"))
    assert early
    office = Office(gateway)
    second = office.made("/organisations", {"name": "Second"})["id"]
    place = office.admin("PUT", f"/organisations/{second}/members/{user}", {"role": "owner"})
    assert 200 == place.status
    mail.letters.clear()
    # The link that was shown is good no more, and another one is mailed and not shown.
    assert 404 == Browser(gateway).look(f"/reset?link={early}").status
    made = owner.send(f"/team/{user}/reset")
    assert (200, "") == (made.status, link_in(made))
    ((to, letter),) = mail.letters
    assert "both@example.com" == to
    told = re.search(r"link=(\S+)", letter.get_content())
    assert told
    assert told[1] not in made.text
    browser = Browser(gateway)
    assert 200 == browser.look(f"/reset?link={told[1]}").status
    mail.refuses = "both@example.com"
    assert 502 == owner.send(f"/team/{user}/reset").status


def test_W4_an_organisation_is_given_to_somebody_else(gateway: Gateway, owner: Browser) -> None:
    heir = joined(owner, "heir@example.com", "developer")
    user, own = me(heir)["user"], me(owner)["user"]
    admin = Browser(gateway)
    assert 303 == admin.sign_in("lead@example.com").status
    admin.look(f"/team/{user}")
    assert 403 == admin.send(f"/team/{user}/transfer", {"typed": "Engines"}).status
    owner.look(f"/team/{user}")
    assert 422 == owner.send(f"/team/{user}/transfer", {"typed": "engines"}).status
    assert 409 == owner.send(f"/team/{own}/transfer", {"typed": "Engines"}).status
    other = Browser(gateway)
    other.sign_in("ada@example.com")
    before = owner.cookies["passy_session"]
    assert 303 == owner.send(f"/team/{user}/transfer", {"typed": "Engines"}).status
    # New ids for both, other sessions have ended (W2).
    assert before != owner.cookies["passy_session"]
    assert "admin" == me(owner)["role"]
    assert (401, 401) == (heir.api("GET", "/me").status, other.api("GET", "/me").status)
    assert 303 == heir.sign_in("heir@example.com").status
    assert "owner" == me(heir)["role"]
    assert "organisation.transfer" in noted(gateway, me(heir)["organisation"])
    assert ["member.role"] == noted(gateway, user)[-1:] == noted(gateway, own)[-1:]
    assert "Every entry is as it was written." in heir.look("/audit").text
    heir.look("/team")
    assert 409 == heir.send(f"/team/{user}/remove").status  # The last owner stays.
    heir.look(f"/team/{own}")
    assert 303 == heir.send(f"/team/{own}/transfer", {"typed": "Engines"}).status
    assert 303 == owner.sign_in("ada@example.com").status
    assert "owner" == me(owner)["role"]


def test_W11_scripts_do_with_people_what_pages_do(
    gateway: Gateway, owner: Browser, mail: MailServer
) -> None:
    asked = {"email": "Kim@example.com", "role": "developer"}
    made = owner.api("POST", "/invitations", asked)
    assert (201, True, None) == (made.status, made.json["mailed"], made.json["why_not"])
    assert made.json["link"] in mail.letters[0][1].get_content()
    again = owner.api("POST", f"/invitations/{made.json['id']}/resend").json
    assert 404 == Browser(gateway).look(f"/join?{urlsplit(made.json['link']).query}").status
    waiting = owner.api("GET", "/invitations").json["rows"]
    assert ["kim@example.com"] == [row["email"] for row in waiting if row["id"] == again["id"]]
    kim, link = Browser(gateway), again["link"].partition("link=")[2]
    kim.look(f"/join?link={link}")
    assert 303 == kim.send("/join", {"token": link, "name": "K", "password": PASSWORD}).status
    kim.look("/")
    assert 409 == owner.api("POST", "/invitations", asked).status
    gone = owner.api("POST", "/invitations", {"email": "x@example.com", "role": "viewer"}).json
    assert 204 == owner.api("DELETE", f"/invitations/{gone['id']}").status
    assert 404 == owner.api("DELETE", f"/invitations/{gone['id']}").status
    # A second factor, set up and given up; a new session each time, with a token of its own.
    user = me(kim)["user"]
    secret = kim.api("POST", "/second").json["secret"]
    shown = {"code": totp.code(secret, totp.step_at(time.time())), "password": PASSWORD}
    before = dict(kim.cookies)
    assert 422 == kim.api("POST", "/second/confirm", {**shown, "code": "000000"}).status
    told = kim.api("POST", "/second/confirm", shown)
    codes, kim.csrf = told.json["recovery_codes"], told.json["csrf_token"]
    old = Browser(gateway)
    old.cookies = before
    assert (200, 401) == (kim.api("GET", "/me").status, old.api("GET", "/me").status)
    assert {"on": True, "recovery_codes": 10}.items() <= kim.api("GET", "/second").json.items()
    assert owner.api("GET", f"/members/{user}").json["second_factor"]
    kim.csrf = kim.api("POST", "/second/codes", {"code": codes[0]}).json["csrf_token"]
    assert 422 == kim.api("POST", "/second/drop", {**shown, "code": codes[1]}).status
    dropped = kim.api("POST", "/second/drop", {**shown, "code": next_code(secret)})
    kim.csrf = dropped.json["csrf_token"]
    assert not kim.api("GET", "/second").json["on"]
    # Sessions and the password.
    other = Browser(gateway)
    other.sign_in("kim@example.com")
    rows = kim.api("GET", "/sessions").json["rows"]
    assert 2 == len(rows)
    theirs = next(row["id"] for row in rows if not row["this"])
    assert 404 == owner.api("DELETE", f"/sessions/{theirs}").status
    assert 204 == kim.api("DELETE", f"/sessions/{theirs}").status
    assert 401 == other.api("GET", "/me").status
    other.sign_in("kim@example.com")
    assert 1 == kim.api("DELETE", "/sessions").json["ended"]
    wrong = {"current": "guessed", "new": NEW}
    assert 422 == kim.api("PUT", "/me/password", wrong).status
    changed = kim.api("PUT", "/me/password", {**wrong, "current": PASSWORD})
    assert user == changed.json["user"]
    assert 303 == other.sign_in("kim@example.com", NEW).status
    # Another role, another password, and out.
    assert "viewer" == owner.api("PATCH", f"/members/{user}", {"role": "viewer"}).json["role"]
    assert 401 == other.api("GET", "/me").status
    assert "reset?link=" in owner.api("POST", f"/members/{user}/reset").json["link"]
    own = me(owner)["user"]
    for path in (f"/members/{own}", f"/members/{user}?keys=move&heir={user}"):
        assert owner.api("DELETE", path).status in (409, 422), path
    assert user in [row["user"] for row in owner.api("GET", "/members").json["rows"]]
    assert 204 == owner.api("DELETE", f"/members/{user}").status
    assert user not in [row["user"] for row in owner.api("GET", "/members").json["rows"]]
    rows = owner.api("GET", "/audit?limit=200").json["rows"]
    log = [row["action"] for row in rows if user in (row["user"], row["subject"])]
    assert ["member.remove", "member.reset", "member.role", "account.password"] == log[:4]
    assert not [word for word in (NEW, secret, *codes) if word in str(rows)]


def test_W4_a_script_gives_an_organisation_to_somebody_else(
    gateway: Gateway, owner: Browser
) -> None:
    heir, admin = (joined(owner, f"{name}@example.com", "admin") for name in ("next", "aide"))
    user, own = me(heir)["user"], me(owner)["user"]
    assert 403 == admin.api("PATCH", f"/members/{own}", {"role": "viewer"}).status
    assert 403 == admin.api("PATCH", f"/members/{user}", {"role": "owner"}).status
    invited = {"email": "o@example.com", "role": "owner"}
    assert 403 == admin.api("POST", "/invitations", invited).status
    for name in ("user", "organisation", "id", "owner"):
        change = {"role": "viewer", name: own}
        assert 422 == admin.api("PATCH", f"/members/{user}", change).status, name
    before = owner.cookies["passy_session"]
    told = owner.api("POST", f"/members/{user}/transfer").json
    assert ("admin", True) == (told["role"], before != owner.cookies["passy_session"])
    assert 303 == heir.sign_in("next@example.com").status
    assert "owner" == me(heir)["role"]
    heir.csrf = me(heir)["csrf_token"]
    assert 200 == heir.api("POST", f"/members/{own}/transfer").status
    assert 303 == owner.sign_in("ada@example.com").status
    assert "owner" == me(owner)["role"]
