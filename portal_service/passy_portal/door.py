"""What every request goes through before its own code: from where it comes, who asks, and whether
they may.

A change is taken from our own pages only: the browser says that it comes from there, and the body
or a header has a token that is made of the cookie, which other sites cannot read.
"""

from __future__ import annotations

import hmac
import secrets
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

from fastapi import Request

from passy_plugins.api.denied import Denied
from passy_portal.access import ACCESS, UNTIL_SECOND
from passy_portal.accounts import Visitor
from passy_portal.settings import LOOPBACK
from passy_proxy.addresses import address_of, client_address

COOKIE = "passy_session"
BROWSER = "passy_browser"
FLOW = "passy_flow"
FORM = "application/x-www-form-urlencoded"
YEAR = 365 * 86_400
"""Seconds."""
LARGEST_FORM = 64 * 1024
"""Bytes."""
PLAIN = (
    "Passwords are taken over https only, or on this machine itself. Behind a proxy that ends TLS, "
    "set public_url of the portal."
)
"""What is said where it is not `is_safe`."""


class SignIn(Exception):
    """Who asks for a page has to sign in first."""

    def __init__(self, then: str) -> None:
        super().__init__("sign in first")
        self.then = then


class Enrol(Exception):
    """Who asks for a page has to set up a second factor first."""


class Form(dict[str, str]):
    """The fields of a form, each once. Taken out one by one: what is left is none of ours."""

    def text(self, name: str, longest: int = 200) -> str:
        """One line, without spaces around it. Empty where the form does not have it."""
        value = self.pop(name, "").strip()
        if len(value) > longest:
            raise Denied(422, "invalid_value", f"No more than {longest} characters.", name)
        if not value.isprintable():
            raise Denied(422, "invalid_value", "A control character cannot be part of this.", name)
        return value

    def secret(self, name: str) -> str:
        """As it was typed."""
        return self.pop(name, "")

    def lines(self, name: str) -> list[str]:
        """What is between commas, spaces and ends of lines."""
        return self.pop(name, "").replace(",", " ").split()

    def end(self) -> None:
        """422 where something is left: nothing can be set that the page does not offer."""
        if self:
            name = next(iter(self))
            raise Denied(422, "invalid_value", "Nothing is called that here.", name[:80])


async def admit(request: Request) -> None:
    """Lets a request in, with ``state.visitor`` and, of a form, ``state.form``."""
    request.state.visitor = None
    method = "GET" if request.method == "HEAD" else request.method
    api = is_api(request)
    access = ACCESS.get((method, request.scope["route"].path))
    if access is None:
        raise Denied(404, "not_found", "There is no such page.")
    cookie = request.cookies.get(cookie_name(request, COOKIE), "")
    if method != "GET":
        if not from_here(request):
            raise Denied(403, "cross_site", "This was sent from another site.")
        await _checked(request, cookie, api)
    if cookie:
        accounts = await request.app.state.office.accounts()
        request.state.visitor = await accounts.visitor(cookie, address(request))
    visitor: Visitor | None = request.state.visitor
    if access.roles is None:
        return
    if visitor is None:
        if api:
            raise Denied(401, "invalid_credentials", "Sign in first.")
        raise SignIn(here(request) if method == "GET" else "")
    path = request.scope["route"].path
    if visitor.barred and path not in UNTIL_SECOND:
        if api or method != "GET":
            message = "Your organisation asks for a second factor: set one up in the portal first."
            raise Denied(403, "second_factor_required", message)
        raise Enrol
    if visitor.role not in access.roles:
        raise Denied(403, "not_allowed", f"This is not for the role {visitor.role}.")


async def _checked(request: Request, cookie: str, api: bool) -> None:
    """Refuses a change without its token, and in another format than that of its route."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if api:
        body = int(request.headers.get("content-length", "0") or 0) or (
            "transfer-encoding" in request.headers
        )
        if body and kind != "application/json":
            raise Denied(415, "unsupported_media_type", "Send JSON: application/json.")
        told = request.headers.get("x-csrf-token", "")
    else:
        if kind != FORM:
            raise Denied(415, "unsupported_media_type", "Send a form.")
        request.state.form = form_of(await request.body())
        told = request.state.form.pop("csrf", "")
    if not cookie or not hmac.compare_digest(told.encode(), csrf_of(cookie).encode()):
        message = "This page was too old, or cookies are off. Go back, load it again, and repeat."
        raise Denied(403, "invalid_csrf_token", message)


def form_of(body: bytes) -> Form:
    if len(body) > LARGEST_FORM:
        raise Denied(413, "request_too_large", "This is too much.")
    try:
        pairs = parse_qsl(
            body.decode("ascii"), keep_blank_values=True, max_num_fields=100, errors="strict"
        )
    except ValueError:
        raise Denied(400, "invalid_form", "This form cannot be read.") from None
    form = Form(pairs)
    if len(form) < len(pairs):
        raise Denied(400, "invalid_form", "A field is there twice.")
    if any("\0" in value for value in form.values()):
        raise Denied(400, "invalid_form", "A text cannot hold a NUL character.")
    return form


def from_here(request: Request) -> bool:
    """Whether a page of ours has sent it, as far as the browser tells."""
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    if site is not None and site != "same-origin":
        return False
    if origin is not None:
        return origin.lower() == own_origin(request)
    return site is not None


def own_origin(request: Request) -> str:
    """``https://llm.example.com``: where the browser believes to be."""
    public: str = request.app.state.public_url
    if public:
        return public
    return f"{request.url.scheme}://{request.headers.get('host', '')}".lower()


def gateway_origin(request: Request) -> str:
    """``https://llm.example.com``: where clients reach the gateway."""
    told: str = request.app.state.office.settings.gateway_url
    return told or own_origin(request)


def is_secure(request: Request) -> bool:
    return own_origin(request).startswith("https:")


def is_safe(request: Request) -> bool:
    """Whether a password may be typed here: over TLS, or without leaving this machine."""
    return is_secure(request) or urlsplit(own_origin(request)).hostname in LOOPBACK


def cookie_name(request: Request, name: str) -> str:
    """Browsers take ``__Host-`` as a promise that no other host and no plain page has set it."""
    return f"__Host-{name}" if is_secure(request) else name


def set_cookie(request: Request, response: Any, name: str, value: str, age: int = 0) -> None:
    """``age``: seconds; 0 is until the browser ends."""
    response.set_cookie(
        cookie_name(request, name), value, max_age=age or None, path="/",
        secure=is_secure(request), httponly=True, samesite="lax",
    )  # fmt: skip


def drop_cookie(request: Request, response: Any, name: str) -> None:
    response.delete_cookie(
        cookie_name(request, name), path="/", secure=is_secure(request), httponly=True,
        samesite="lax",
    )  # fmt: skip


def csrf_of(cookie: str) -> str:
    """The token of a cookie, which may be a session's or that of somebody not signed in."""
    return hmac.digest(cookie.encode(errors="replace"), b"passy/portal/csrf/v1", "sha256").hex()


def own_cookie(request: Request) -> tuple[str, bool]:
    """The cookie that the page's forms go with, and whether it is new."""
    cookie = request.cookies.get(cookie_name(request, COOKIE), "")
    return (cookie, False) if cookie else (secrets.token_urlsafe(32), True)


def address(request: Request) -> str:
    """Of the connection; behind proxies that are trusted, of who asked the first of them."""
    if (client := request.client) is None:
        return ""
    trusted = request.app.state.office.settings.trusted_proxies
    found = client_address(client.host, request.scope["headers"], trusted)
    return str(found or address_of(client.host) or "")


def is_api(request: Request) -> bool:
    return inner(request).startswith("/api/")


def inner(request: Request) -> str:
    """The path below where the portal is mounted."""
    path: str = request.scope["path"]
    return path.removeprefix(request.scope.get("root_path", "")) or "/"


def here(request: Request) -> str:
    """To come back to."""
    query = request.url.query
    return quote(inner(request)) + (f"?{query}" if query else "")


def safe(then: str) -> str:
    """A path of ours, whatever was asked for."""
    return then if then.startswith("/") and then[1:2] not in ("/", "\\") else "/"
