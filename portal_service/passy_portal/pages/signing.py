"""Signing in with a password, and out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request

from passy_plugins.api.denied import Denied
from passy_portal.accounts import Accounts
from passy_portal.door import (
    COOKIE,
    PLAIN,
    Form,
    address,
    cookie_name,
    drop_cookie,
    is_safe,
    safe,
)
from passy_portal.pages.sessions import ask_second, begun, known_browser, signed_in
from passy_portal.view import accounts_of, moved, page

if TYPE_CHECKING:
    from starlette.responses import Response

router = APIRouter()

WRONG = "E-mail and password do not fit."
TOLD_AGAIN = 60_000
"""Milliseconds between two links on the console."""


@router.get("/login")
async def login(request: Request, then: str = "") -> Response:
    """The page to sign in."""
    if request.state.visitor is not None:
        return moved(request, "/")
    accounts = await accounts_of(request)
    if first := not await accounts.has_owner():
        await _tell(request, accounts)
    error = "" if is_safe(request) else PLAIN
    return await login_page(request, then=then, error=error, first=first)


async def login_page(
    request: Request,
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    **given: Any,
) -> Response:
    """``given``: ``error``, and what was typed."""
    office = request.app.state.office
    values = {"then": "", "email": "", "error": "", "first": False, **given}
    return page(
        request, "login.html", status=status, headers=headers,
        providers=list(office.providers.values()), passwords=office.settings.passwords,
        **values,
    )  # fmt: skip


async def _tell(request: Request, accounts: Accounts) -> None:
    """Have the console show how to make the first owner, once in a while. Without the host, which
    whoever asks can make up, and whom the link would lead to."""
    token = await accounts.first_token(TOLD_AGAIN)
    if token is not None:
        root = request.app.state.public_url + request.scope.get("root_path", "")
        request.app.state.log.warning("portal_has_no_owner", open=f"{root}/first?link={token}")


@router.post("/login")
async def sign_in(request: Request) -> Response:
    """A new session, whatever cookie came with the form."""
    form: Form = request.state.form
    email, password, then = form.text("email"), form.secret("password"), form.text("then", 2_000)
    form.end()
    if not is_safe(request):
        raise Denied(400, "insecure", PLAIN)
    accounts = await accounts_of(request)
    email = email.lower()
    browser = known_browser(request, accounts, email)
    wait = await accounts.throttle.enter(email, address(request), browser)
    if wait > 0:
        seconds = math.ceil(wait)
        error = f"Too many tries. Wait {seconds} s, then try again."
        headers = {"retry-after": str(seconds)}
        return await login_page(
            request, status=429, headers=headers, then=then, email=email, error=error
        )
    user = await accounts.known(email, password)
    if user is not None and not await _by_password(request, accounts, user):
        user = None
    if user is not None and await accounts.factors.confirmed(user):
        return await ask_second(request, accounts, user, email, "", then)
    cookie = await begun(request, accounts, user, None) if user else None
    if user is None or cookie is None:
        return await login_page(request, status=401, then=then, email=email, error=WRONG)
    await accounts.throttle.forgive(email, address(request), browser)
    response = moved(request, safe(then))
    signed_in(request, response, accounts, cookie, email)
    return response


async def _by_password(request: Request, accounts: Accounts, user: str) -> bool:
    """Whether a password is enough of them, or they have to come by a provider."""
    settings = request.app.state.office.settings
    return settings.passwords == "all" or await accounts.owns(user)


@router.post("/logout")
async def logout(request: Request) -> Response:
    """The session ends here and at the server."""
    request.state.form.end()
    accounts = await accounts_of(request)
    await accounts.end(request.cookies.get(cookie_name(request, COOKIE), ""))
    response = moved(request, "/login")
    drop_cookie(request, response, COOKIE)
    return response
