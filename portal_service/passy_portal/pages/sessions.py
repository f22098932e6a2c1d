"""Sessions that begin, and the browsers that are known by then."""

from __future__ import annotations

import secrets
from contextlib import suppress
from typing import TYPE_CHECKING

from passy_portal.door import BROWSER, COOKIE, YEAR, address, cookie_name, set_cookie
from passy_portal.view import page
from passy_proxy.keyring import KeyringError

if TYPE_CHECKING:
    from fastapi import Request
    from starlette.responses import Response

    from passy_portal.accounts import Accounts


async def ask_second(
    request: Request, accounts: Accounts, user: str, email: str, organisation: str, then: str
) -> Response:
    """The page that asks for a code of who has shown all the rest; see ``second.py``."""
    token = await accounts.half(user, organisation, email)
    return page(request, "second.html", token=token, then=then, error="")


async def begun(
    request: Request,
    accounts: Accounts,
    user: str,
    organisation: str | None,
    *,
    second: bool = False,
) -> str | None:
    """A new session. The one there was ends: its cookie lets nobody in any more."""
    old = request.cookies.get(cookie_name(request, COOKIE), "")
    if old:
        await accounts.end(old)
    agent = request.headers.get("user-agent", "")
    return await accounts.begin(user, organisation, agent, address(request), second=second)


def signed_in(
    request: Request, response: Response, accounts: Accounts, cookie: str, email: str
) -> None:
    """Give a browser its session, and have it known to the account from now on."""
    set_cookie(request, response, COOKIE, cookie, accounts.longest)
    id = secrets.token_hex(8)
    proof = accounts.admin.keyring.attest(_browser(id, email))
    set_cookie(request, response, BROWSER, f"{id}.{proof}", YEAR)


def known_browser(request: Request, accounts: Accounts, email: str) -> str:
    """The id of a browser that has signed in to this account before; empty for any other."""
    cookie = request.cookies.get(cookie_name(request, BROWSER), "")
    id, _, proof = cookie.partition(".")
    with suppress(KeyringError):
        if accounts.admin.keyring.attested(_browser(id, email), proof):
            return id
    return ""


def _browser(id: str, email: str) -> bytes:
    return f"portal/browser/v1 {id} {email.lower()}".encode(errors="replace")
