"""An OpenID provider that does as it is told: right, or wrong in one respect."""

from __future__ import annotations

import base64
import hashlib
import html
import http.client
import json
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import ECKey, KeySet, OctKey, RSAKey

if TYPE_CHECKING:
    from harness.gateway import Asked
    from harness.portal import Browser

Claims = dict[str, Any]


class IdentityProvider:
    """Answers on a port of loopback. Whoever comes to its first page is ``person``, at once."""

    CLIENT = "passy-portal"
    SECRET = "what the portal is known by: / & 8c5b"

    def __init__(self) -> None:
        self.person: Claims = {}
        """Claims of who signs in next; ``sub`` and more."""
        self.change: Callable[[Claims], object] = lambda claims: None
        """What is wrong with the next tokens."""
        self.described: Claims = {}
        """What is said otherwise of it."""
        self.algorithm = "RS256"
        self.by: str | None = None
        """Another key than the right one: ``none``, ``secret``, ``foreign``."""
        self.returned: Claims = {}
        """What is said otherwise in the address that leads back."""
        self.age: int | None = 0
        """Seconds since who signs in next has shown who they are; ``None``: it does not say."""
        self.told: Claims = {}
        """What the page for more about somebody says."""
        self.hits: list[str] = []
        self.used: list[Claims] = []
        """Forms that the token page was sent."""
        self._codes: dict[str, Claims] = {}
        self.rotate()
        provider = self

        class Pages(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                provider._get(self)

            def do_POST(self) -> None:
                provider._post(self)

            def log_message(self, *_: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
        self.issuer = f"http://127.0.0.1:{self._server.server_address[1]}"

    @classmethod
    @contextmanager
    def running(cls) -> Iterator[IdentityProvider]:
        provider = cls()
        thread = threading.Thread(target=provider._server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield provider
        finally:
            provider._server.shutdown()
            thread.join()
            provider._server.server_close()

    def right(self, **person: Any) -> None:
        """All as it should be, for somebody."""
        self.person = {"email_verified": True, **person}
        self.change = lambda claims: None
        self.described, self.returned, self.told = {}, {}, {}
        self.algorithm, self.by, self.age = "RS256", None, 0

    def rotate(self) -> None:
        """Other keys, and only those."""
        id = secrets.token_hex(4)
        self.keys = {
            "RS256": RSAKey.generate_key(2048, {"kid": f"r{id}", "use": "sig"}),
            "ES256": ECKey.generate_key("P-256", {"kid": f"e{id}", "use": "sig"}),
        }

    def settings(self, **more: Any) -> Claims:
        """As they stand in gateway.yaml."""
        return {
            "issuer": self.issuer, "client_id": self.CLIENT, "client_secret": self.SECRET, **more,
        }  # fmt: skip

    # Its pages

    def _get(self, page: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(page.path)
        self.hits.append(parts.path)
        if parts.path == "/.well-known/openid-configuration":
            self._say(page, 200, self._description())
        elif parts.path == "/jwks":
            keys = KeySet([*self.keys.values()]).as_dict(private=False)
            self._say(page, 200, keys)
        elif parts.path == "/userinfo":
            known = page.headers["authorization"] == "Bearer an-access-token"
            self._say(page, 200 if known else 401, self.told)
        elif parts.path == "/authorize":
            self._authorize(page, dict(parse_qsl(parts.query, strict_parsing=True)))
        else:
            self._say(page, 404, {})

    def _description(self) -> Claims:
        return {
            "issuer": self.issuer,
            "authorization_endpoint": f"{self.issuer}/authorize",
            "token_endpoint": f"{self.issuer}/token",
            "jwks_uri": f"{self.issuer}/jwks",
            "userinfo_endpoint": f"{self.issuer}/userinfo",
            "authorization_response_iss_parameter_supported": True,
        } | self.described

    def _authorize(self, page: BaseHTTPRequestHandler, asked: Claims) -> None:
        assert "code" == asked["response_type"]
        assert "S256" == asked["code_challenge_method"]
        assert "openid" in asked["scope"].split()
        code = secrets.token_urlsafe(16)
        self._codes[code] = {**asked, "person": self.person}
        back = {"code": code, "state": asked["state"], "iss": self.issuer} | self.returned
        query = urlencode({name: value for name, value in back.items() if value is not None})
        page.send_response(302)
        page.send_header("location", f"{asked['redirect_uri']}?{query}")
        page.end_headers()

    def _post(self, page: BaseHTTPRequestHandler) -> None:
        content = page.rfile.read(int(page.headers["content-length"])).decode()
        form = dict(parse_qsl(content, strict_parsing=True))
        self.hits.append(page.path)
        self.used.append(form)
        asked = self._codes.pop(form.get("code", ""), None)
        if self._client(page.headers.get("authorization", "")) != (self.CLIENT, self.SECRET):
            self._say(page, 401, {"error": "invalid_client"})
            return
        digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).decode().rstrip("=")
        wrong = asked is None or (challenge, form["redirect_uri"]) != (
            asked["code_challenge"], asked["redirect_uri"],
        )  # fmt: skip
        if wrong or asked is None:
            self._say(page, 400, {"error": "invalid_grant"})
            return
        token = {"id_token": self._token(asked), "access_token": "an-access-token",
                 "token_type": "Bearer"}  # fmt: skip
        self._say(page, 200, token)

    def _client(self, header: str) -> tuple[str, str]:
        id, _, secret = base64.b64decode(header.removeprefix("Basic ")).decode().partition(":")
        return unquote(id), unquote(secret)

    def _token(self, asked: Claims) -> str:
        now = int(time.time())
        claims = {"iss": self.issuer, "aud": self.CLIENT, "iat": now, "exp": now + 300,
                  "nonce": asked["nonce"], **asked["person"]}  # fmt: skip
        if "max_age" in asked and self.age is not None:
            claims["auth_time"] = now - self.age
        self.change(claims)
        key = self.keys[self.algorithm]
        header: Claims = {"alg": self.algorithm, "kid": key.kid}
        if self.by == "none":
            head, body = (json.dumps(part).encode() for part in ({"alg": "none"}, claims))
            raw = [base64.urlsafe_b64encode(part).decode().rstrip("=") for part in (head, body)]
            return f"{raw[0]}.{raw[1]}."
        if self.by == "secret":  # What a client knows as well, and might have made itself.
            header["alg"] = "HS256"
            return jwt.encode(header, claims, OctKey.import_key(self.SECRET))
        if self.by == "foreign":
            return jwt.encode(header, claims, RSAKey.generate_key(2048, {"kid": key.kid}))
        return jwt.encode(header, claims, key)

    @staticmethod
    def _say(page: BaseHTTPRequestHandler, status: int, told: Claims) -> None:
        content = json.dumps(told).encode()
        page.send_response(status)
        page.send_header("content-type", "application/json")
        page.send_header("content-length", str(len(content)))
        page.end_headers()
        page.wfile.write(content)


def went(url: str) -> str:
    """Where a provider's page leads."""
    parts = urlsplit(url)
    with closing(http.client.HTTPConnection(parts.netloc, timeout=90)) as connection:
        connection.request("GET", f"{parts.path}?{parts.query}")
        return str(connection.getresponse().headers["location"])


def returned(browser: Browser, url: str) -> Asked:
    """From a provider's page back to ours, as a browser goes."""
    back = urlsplit(went(url))
    assert browser.gateway.url == f"{back.scheme}://{back.netloc}"
    return browser.look(f"{back.path.removeprefix('/portal')}?{back.query}")


def came(browser: Browser, name: str, query: str = "") -> Asked:
    """There and back, to sign in."""
    begun = browser.look(f"/sso/{name}{query}")
    assert 303 == begun.status, begun.text
    return returned(browser, begun.headers["location"])


def linked(browser: Browser, name: str, password: str = "") -> Asked:
    """There and back, to link an account with the one that has signed in."""
    browser.look("/account")
    return _over(browser, browser.send(f"/sso/{name}/link", {"password": password}))


def proved(browser: Browser, name: str) -> Asked:
    """There and back, to show once more that one can sign in there."""
    browser.look("/account")
    return _over(browser, browser.send(f"/sso/{name}/prove"))


def _over(browser: Browser, begun: Asked) -> Asked:
    """The page between ours and a provider's."""
    to = re.search(r'http-equiv="refresh" content="0; url=([^"]+)"', begun.text)
    return returned(browser, html.unescape(to[1])) if to else begun
