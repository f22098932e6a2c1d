"""The second factor: asked for when somebody signs in, set up and given up under Account."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request

from passy_plugins.api.denied import Denied
from passy_portal import personal, totp
from passy_portal.accounts import Accounts
from passy_portal.door import Form, address, csrf_of, safe
from passy_portal.links import GONE
from passy_portal.pages.sessions import begun, known_browser, signed_in
from passy_portal.view import accounts_of, moved, page, visitor_of
from passy_proxy.keyring import KeyringError

if TYPE_CHECKING:
    from starlette.responses import Response

    from passy_portal.accounts import Visitor

router = APIRouter()

ISSUER = "passy"


@router.post("/login/second")
async def sign_in(request: Request) -> Response:
    """A session for who has shown their password, and now a code."""
    form: Form = request.state.form
    token, typed, then = form.secret("token"), form.text("code", 40), form.text("then", 2_000)
    form.end()
    accounts = await accounts_of(request)
    found = await accounts.invitation("second", token)
    if found is None:
        return page(request, "error.html", status=404, message=GONE)
    place, browser = address(request), known_browser(request, accounts, found.email)
    again: dict[str, Any] = {"token": token, "then": then}
    if (wait := await accounts.throttle.enter(found.email, place, browser, second=True)) > 0:
        seconds = math.ceil(wait)
        error = f"Too many tries. Wait {seconds} s, then try again."
        headers = {"retry-after": str(seconds)}
        return page(request, "second.html", status=429, headers=headers, error=error, **again)
    try:
        fits = await accounts.factors.fits(found.made_by, typed)
    except KeyringError as error:
        message = personal.KEY_MISSING.format(error)
        return page(request, "second.html", status=409, error=message, **again)
    if not fits or not await accounts.void(found.organisation, found.id):
        return page(request, "second.html", status=401, error=personal.WRONG_CODE, **again)
    cookie = await begun(request, accounts, found.made_by, found.organisation or None, second=True)
    if cookie is None:
        raise Denied(403, "not_allowed", "You are a member of no organisation.")
    for second in (True, False):
        await accounts.throttle.forgive(found.email, place, browser, second=second)
    response = moved(request, safe(then))
    signed_in(request, response, accounts, cookie, found.email)
    return response


@router.get("/account/second")
async def second(request: Request) -> Response:
    """What there is, or how to set one up."""
    return await _page(request)


@router.post("/account/second/begin")
async def begin(request: Request) -> Response:
    """A secret for an app, shown until a code confirms it."""
    request.state.form.end()
    await personal.begin_second(await accounts_of(request), visitor_of(request))
    return moved(request, "/account/second")


@router.post("/account/second/confirm")
async def confirm(request: Request) -> Response:
    """With a code of the app, and the password. All other sessions end, this one goes on under
    another id, and the recovery codes are shown, this once."""
    form: Form = request.state.form
    typed, password = form.text("code", 40), form.secret("password")
    form.end()
    accounts, visitor = await accounts_of(request), visitor_of(request)
    try:
        codes = await personal.confirm_second(accounts, visitor, typed, password)
    except Denied as error:
        return await _page(request, str(error), error.status)
    return await _codes(request, accounts, visitor, codes)


@router.post("/account/second/codes")
async def renew(request: Request) -> Response:
    """Other recovery codes, for who shows a code."""
    form: Form = request.state.form
    typed = form.text("code", 40)
    form.end()
    accounts, visitor = await accounts_of(request), visitor_of(request)
    try:
        codes = await personal.renew_codes(accounts, visitor, typed)
    except Denied as error:
        return await _page(request, str(error), error.status)
    return await _codes(request, accounts, visitor, codes)


@router.post("/account/second/drop")
async def drop(request: Request) -> Response:
    """Do without it, for who knows the password and, where there is one, shows a code."""
    form: Form = request.state.form
    typed, password = form.text("code", 40), form.secret("password")
    form.end()
    accounts, visitor = await accounts_of(request), visitor_of(request)
    try:
        await personal.drop_second(accounts, visitor, typed, password)
    except Denied as error:
        return await _page(request, str(error), error.status)
    cookie = await begun(request, accounts, visitor.user, visitor.organisation)
    assert cookie is not None
    response = moved(request, "/account", "second")
    signed_in(request, response, accounts, cookie, visitor.email)
    return response


async def _codes(
    request: Request, accounts: Accounts, visitor: Visitor, codes: list[str]
) -> Response:
    cookie = await begun(request, accounts, visitor.user, visitor.organisation, second=True)
    assert cookie is not None
    response = page(request, "second_codes.html", codes=codes, csrf=csrf_of(cookie))
    signed_in(request, response, accounts, cookie, visitor.email)
    return response


async def _page(request: Request, error: str = "", status: int = 200) -> Response:
    accounts, visitor = await accounts_of(request), visitor_of(request)
    secret = picture = ""
    try:
        secret = await personal.unconfirmed(accounts, visitor)
    except Denied as missing:
        error, status = str(missing), missing.status
    if secret:
        picture = totp.picture(totp.uri(secret, visitor.email, ISSUER))
    return page(
        request, "account_second.html", status=status, error=error,
        factor=await accounts.factors.of(visitor.user), picture=picture,
        secret=" ".join(secret[at : at + 4] for at in range(0, len(secret), 4)),
        password=await accounts.has_password(visitor.user),
        required=bool(await accounts.factors.required_of(visitor.user)),
    )  # fmt: skip
