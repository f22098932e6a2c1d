"""A portal with people in it: browsers without scripts, which keep cookies and send forms."""

from __future__ import annotations

import html
import http.client
import json
import re
import sqlite3
import time
from contextlib import closing
from typing import Any
from urllib.parse import urlencode

from harness.gateway import PATIENCE, Asked, Gateway, until
from harness.office import CONFIGURATION as OFFICE
from harness.office import UNHURRIED
from passy_portal import totp

PASSWORD = "correct horse battery staple"
CONFIGURATION = OFFICE.replace("apps:\n", "apps:\n  /portal: {app: portal, store: books}\n")


APART = f"""{UNHURRIED}
stores: {{books: {{kind: sql, url: "${{DATABASE_URL}}"}}}}
apps: {{/: {{app: portal, store: books, gateway_url: "${{API_PASSY_AI_URL:-}}"}}}}
"""


class Apart(Gateway):
    """``passy portal``, on the database and with the secret keys of a gateway."""

    command = "portal"

    def __init__(self, beside: Gateway, configuration: str = APART) -> None:
        folder = beside.folder / "apart"
        folder.mkdir()
        books = f"sqlite:///{beside.folder}/.passy/passy.db"
        variables = {"DATABASE_URL": books, "API_PASSY_AI_URL": beside.url}
        super().__init__(folder, configuration, variables | beside.variables)
        self.data = beside.data


class Browser:
    """Somebody's, with their cookies. What it sends comes from the portal's own pages."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.root = "" if isinstance(gateway, Apart) else "/portal"
        self.cookies: dict[str, str] = {}
        self.csrf = ""
        """Of the page that was looked at last."""

    def ask(
        self, method: str, path: str, body: bytes | None = None, **headers: str | None
    ) -> Asked:
        """One request with the cookies; a header that is ``None`` is left out."""
        host = self.gateway.url.partition("//")[2]
        cookies = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        sent: dict[str, str | None] = {"cookie": cookies or None}
        if method != "GET":
            sent |= {"origin": self.gateway.url, "sec_fetch_site": "same-origin"}
        sent |= headers
        named = {name.replace("_", "-"): value for name, value in sent.items() if value is not None}
        with closing(http.client.HTTPConnection(host, timeout=PATIENCE)) as connection:
            connection.request(method, f"{self.root}{path}", body, named)
            answer = connection.getresponse()
            asked = Asked(answer.status, answer.headers, answer.read())
        for line in asked.headers.get_all("set-cookie") or ():
            name, _, value = line.partition(";")[0].partition("=")
            if value.strip('"'):
                self.cookies[name] = value
            else:
                self.cookies.pop(name, None)
        if found := re.search(rb'name="csrf" value="([0-9a-f]+)"', asked.body):
            self.csrf = found[1].decode()
        return asked

    def look(self, path: str) -> Asked:
        """A page."""
        return self.ask("GET", path)

    def send(self, path: str, fields: dict[str, str] | None = None, **headers: str | None) -> Asked:
        """A form."""
        told = {"content_type": "application/x-www-form-urlencoded"} | headers
        body = urlencode({"csrf": self.csrf, **(fields or {})}).encode()
        return self.ask("POST", path, body, **told)

    def api(self, method: str, path: str, body: object = None, **headers: str | None) -> Asked:
        """The JSON API, with what its changes need."""
        told: dict[str, str | None] = {} if method == "GET" else {"x_csrf_token": self.csrf}
        content = None if body is None else json.dumps(body).encode()
        if content is not None:
            told["content_type"] = "application/json"
        return self.ask(method, f"/api{path}", content, **(told | headers))

    def sign_in(self, email: str, password: str = PASSWORD) -> Asked:
        if self.look("/login").status == 303:
            self.look("/account")
        asked = self.send("/login", {"email": email, "password": password, "then": ""})
        if asked.status == 303:
            self.look("/")
        return asked


def first_link(gateway: Gateway) -> str:
    """What the console shows, once somebody opens a portal that has no owner; its path there."""
    Browser(gateway).look("/login")

    def written() -> str | None:
        for line in gateway.complaints().splitlines(keepends=True):
            if "portal_has_no_owner" in line and line.endswith("\n"):
                return str(json.loads(line)["open"]).removeprefix("/portal")
        return None

    return until(written)


def found(gateway: Gateway, email: str = "ada@example.com") -> tuple[Browser, str]:
    """The first owner's browser, and their first key."""
    browser, link = Browser(gateway), first_link(gateway)
    browser.look(link)
    fields = {"token": link.partition("link=")[2], "name": "Ada", "email": email}
    made = browser.send("/first", fields | {"organisation": "Engines", "password": PASSWORD})
    assert "/begin" == made.headers["location"].removeprefix(browser.root), made.body
    browser.look("/begin")
    return browser, key_in(browser.send("/begin", {"do": "echo"}))


def key_in(asked: Asked) -> str:
    """The key that a page shows."""
    shown = re.search(rb'id="the-key"[^>]*>(sk-passy-[^<]+)<', asked.body)
    assert shown, asked.body
    return shown[1].decode()


def link_in(asked: Asked) -> str:
    """What is in the link that a page shows; empty where it shows none."""
    shown = re.search(r'id="the-link"[^>]*>[^<]*link=([^<]+)<', asked.text)
    return html.unescape(shown[1]) if shown else ""


def invited(leader: Browser, email: str, role: str) -> str:
    """What is in the link of somebody who is invited."""
    leader.look("/team")
    made = leader.send("/team/invite", {"email": email, "role": role})
    link = link_in(made)
    assert link, made.body
    return link


def joined(leader: Browser, email: str, role: str) -> Browser:
    """Somebody invited, who has taken it."""
    link, browser = invited(leader, email, role), Browser(leader.gateway)
    browser.look(f"/join?link={link}")
    fields = {"token": link, "name": "", "password": PASSWORD}
    assert 303 == browser.send("/join", fields).status
    browser.look("/")
    return browser


def books(gateway: Gateway, statement: str, *values: object) -> list[tuple[Any, ...]]:
    """Asks or changes the database of a gateway."""
    with closing(sqlite3.connect(gateway.folder / ".passy/passy.db", timeout=90)) as connection:
        rows = connection.execute(statement, values).fetchall()
        connection.commit()
        return rows


def me(browser: Browser) -> dict[str, Any]:
    asked = browser.api("GET", "/me")
    assert 200 == asked.status, asked.body
    told: dict[str, Any] = asked.json
    return told


def enrolled(browser: Browser, password: str = PASSWORD) -> tuple[str, list[str], str]:
    """Sets up a second factor: its secret, the recovery codes, and the code that was used."""
    browser.look("/account/second")
    assert 303 == browser.send("/account/second/begin").status
    shown = re.search(r'id="the-secret"[^>]*>([A-Z2-7 ]+)<', browser.look("/account/second").text)
    assert shown
    secret = shown[1].replace(" ", "")
    code = totp.code(secret, totp.step_at(time.time()))
    made = browser.send("/account/second/confirm", {"code": code, "password": password})
    assert 200 == made.status, made.body
    browser.look("/")
    return secret, re.findall(r"<code>([A-Z2-7]{4}(?:-[A-Z2-7]{4}){3})</code>", made.text), code


def half(gateway: Gateway, email: str) -> tuple[Browser, str]:
    """Who has shown the password, and the token of the form that asks for a code."""
    browser = Browser(gateway)
    return browser, token_in(browser.sign_in(email))


def token_in(asked: Asked) -> str:
    """Of the form that asks for a code."""
    assert 200 == asked.status
    shown = re.search(r'name="token" value="([^"]+)"', asked.text)
    assert shown, asked.text
    return shown[1]


def next_code(secret: str) -> str:
    """One that was not used yet: of the period to come, which a clock may have reached."""
    return totp.code(secret, totp.step_at(time.time()) + 1)
