"""One's own account: the password, the sessions, and the organisation one works in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter, Request

from passy_plugins.api.denied import Denied
from passy_plugins.api.errors import absent
from passy_plugins.api.words import Id
from passy_portal.accounts import Accounts
from passy_portal.door import Form, address
from passy_portal.pages.signing import begun, signed_in
from passy_portal.view import accounts_of, moved, page, visitor_of

if TYPE_CHECKING:
    from starlette.responses import Response

router = APIRouter()


@router.get("/account")
async def account(request: Request) -> Response:
    """Who one is here, and where else one has signed in."""
    return await _page(request)


@router.post("/account/password")
async def change_password(request: Request) -> Response:
    """Another password, for who knows the present one. All other sessions end; this one goes on
    under another id."""
    form: Form = request.state.form
    current, new = form.secret("current"), form.secret("new")
    form.end()
    accounts, visitor = await accounts_of(request), visitor_of(request)
    place = address(request)
    try:
        if await accounts.throttle.enter(visitor.email, place, visitor.session) > 0:
            raise ValueError("Too many tries. Wait a moment, then try again.")
        if await accounts.known(visitor.email, current) is None:
            raise ValueError("This is not your present password.")
        await accounts.throttle.forgive(visitor.email, place, visitor.session)
        hashed = await accounts.passwords.hash(new)
    except ValueError as error:
        return await _page(request, str(error), 422)
    async with accounts.noting(visitor.who, "account.password", visitor.user):
        await accounts.set_password(visitor.user, hashed)
    return await _again(request, accounts, visitor.organisation, "/account", "password")


@router.post("/account/organisation")
async def change_organisation(request: Request) -> Response:
    """Work in another organisation; the session gets another id."""
    form: Form = request.state.form
    wanted = form.text("organisation")
    form.end()
    accounts, visitor = await accounts_of(request), visitor_of(request)
    if wanted not in [one.organisation for one in await accounts.admin.places_of(visitor.user)]:
        raise absent("organisation")
    return await _again(request, accounts, wanted, "/", "")


@router.post("/account/sessions/end")
async def end_others(request: Request) -> Response:
    """All but this one."""
    request.state.form.end()
    accounts, visitor = await accounts_of(request), visitor_of(request)
    async with accounts.noting(visitor.who, "account.sessions", visitor.user) as noted:
        noted.after = {"ended": await accounts.end_all(visitor.user, but=visitor.session)}
    return moved(request, "/account", "ended")


@router.post("/account/sessions/{id}/end")
async def end_session(request: Request, id: Id) -> Response:
    """One of one's own."""
    request.state.form.end()
    accounts, visitor = await accounts_of(request), visitor_of(request)
    if not await accounts.end_session(visitor.user, id):
        raise absent("session")
    return moved(request, "/account", "ended")


async def _again(
    request: Request, accounts: Accounts, organisation: str, path: str, done: str
) -> Response:
    visitor = visitor_of(request)
    cookie = await begun(request, accounts, visitor.user, organisation, second=visitor.second)
    if cookie is None:
        raise Denied(403, "not_allowed", "You are a member of no organisation.")
    response = moved(request, path, done)
    signed_in(request, response, accounts, cookie, visitor.email)
    return response


async def _page(request: Request, error: str = "", status: int = 200) -> Response:
    accounts, visitor = await accounts_of(request), visitor_of(request)
    places = []
    for one in await accounts.admin.places_of(visitor.user):
        found = await accounts.admin.get_organisation(one.organisation)
        if found is not None and found.status == "active":
            places.append((one, found))
    return page(
        request, "account.html", status=status, error=error, places=places,
        factor=await accounts.factors.of(visitor.user),
        sessions=await accounts.sessions_of(visitor.user),
    )  # fmt: skip
